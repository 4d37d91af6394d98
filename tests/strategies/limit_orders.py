"""Each morning a bid a hundredth below yesterday's close, cancelled unfilled; what was had is sold the next morning."""
from jqdata import *


def initialize(context):
    g.security, g.canceled = '600519.XSHG', 0
    set_option('use_real_price', True)
    set_slippage(FixedSlippage(0))
    set_benchmark(g.security)
    run_daily(bid, 'open')
    run_daily(clean_up, 'after_close')


def bid(context):
    if g.security in context.portfolio.positions:
        order_target(g.security, 0)
    if get_current_data()[g.security].paused:
        return
    yesterday = attribute_history(g.security, 1, '1d', ['close'])['close'].iloc[-1]
    order(g.security, 200, LimitOrderStyle(round(yesterday * 0.99, 2)))


def clean_up(context):
    for placed in list(get_open_orders().values()):
        if cancel_order(placed).status == OrderStatus.canceled:
            g.canceled += 1
    record(canceled=g.canceled)
