"""Wants to leave a stock that is suspended for months: nothing is sold before it trades again."""
from jqdata import *


def initialize(context):
    g.security = '000938.XSHE'
    set_option('use_real_price', True)
    set_slippage(FixedSlippage(0))
    set_benchmark('600519.XSHG')
    run_daily(trade, '9:30')


def trade(context):
    paused = get_current_data()[g.security].paused
    record(paused=paused)
    if context.current_dt.date() == context.run_params.start_date:
        order(g.security, 1000)
    elif g.security in context.portfolio.positions:
        order_target(g.security, 0) if context.current_dt.day >= 20 or paused else None
