"""A T+0 gold fund bought and sold within the day, and an index fund held beside it; no tax, three decimals."""
from jqdata import *

GOLD, INDEX = '518880.XSHG', '510300.XSHG'


def initialize(context):
    set_option('use_real_price', True)
    set_slippage(FixedSlippage(0.002), type='fund')
    set_order_cost(OrderCost(open_commission=0.0001, close_commission=0.0001, min_commission=0.1), type='fund')
    set_benchmark(INDEX)
    run_daily(morning, '9:30')
    run_daily(afternoon, '15:00')
    run_daily(last_minute, '14:59')


def morning(context):
    order_target_value(GOLD, 100000)
    if INDEX not in context.portfolio.positions:
        order_value(INDEX, 200000)


def last_minute(context):
    order_target(GOLD, 0)
    order_target(INDEX, 0) if context.current_dt.day == 1 else None


def afternoon(context):
    record(gold=context.portfolio.positions[GOLD].total_amount if GOLD in context.portfolio.positions else 0)
