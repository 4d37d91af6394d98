"""A third of the account in each of two stocks, put right on the first trade day of each month."""
import jqdata

POOL = ['600519.XSHG', '000938.XSHE']


def initialize(context):
    jqdata.set_option('use_real_price', True)
    jqdata.set_slippage(jqdata.PriceRelatedSlippage(0.002))
    jqdata.set_order_cost(jqdata.OrderCost(0, 0.001, 0.0002, 0.0002, 0, 5), type='stock')
    jqdata.set_benchmark({POOL[0]: 0.5, POOL[1]: 0.5})
    jqdata.run_monthly(rebalance, 1, '9:30')


def rebalance(context):
    total = context.portfolio.total_value
    for security in sorted(POOL, key=lambda code: -context.portfolio.positions[code].value if
                           code in context.portfolio.positions else 0):
        jqdata.order_target_value(security, total / 3)
