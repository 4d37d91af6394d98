"""Within the day: buy at 10:00 below the open, sell what is left over from yesterday at 14:50; counts its bars."""
from jqdata import *


def initialize(context):
    g.security, g.bars = '600519.XSHG', 0
    set_option('use_real_price', True)
    set_slippage(FixedSlippage(0))
    set_benchmark(g.security)
    run_daily(buy, '10:00')
    run_daily(sell, 'close-10m')


def handle_data(context, data):
    g.bars += 1


def buy(context):
    current = get_current_data()[g.security]
    if current.last_price < current.day_open:
        order(g.security, 100)


def sell(context):
    position = context.portfolio.positions.get(g.security)
    if position is not None and position.closeable_amount:
        order(g.security, -position.closeable_amount)


def after_trading_end(context):
    record(bars=g.bars)
