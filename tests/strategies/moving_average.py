"""Two moving averages of one stock: all in when the fast one is above the slow one, all out when it is below."""
from jqdata import *

FAST, SLOW = 5, 20


def initialize(context):
    g.security = '600519.XSHG'
    set_benchmark(g.security)
    set_option('use_real_price', True)
    set_slippage(FixedSlippage(0.02))
    run_daily(trade, '9:30')


def trade(context):
    closes = attribute_history(g.security, SLOW, '1d', ['close'])['close']
    fast, slow = closes[-FAST:].mean(), closes.mean()
    held = g.security in context.portfolio.positions
    if fast > slow and not held:
        order_value(g.security, context.portfolio.available_cash)
    elif fast < slow and held:
        order_target(g.security, 0)
    record(fast=fast, slow=slow)
