"""Twenty securities, a twentieth of the account in each whose fast average is above its slow one."""
from jqdata import *

SECURITIES = ['000001.XSHE', '000002.XSHE', '000333.XSHE', '000651.XSHE', '000858.XSHE', '000938.XSHE', '002415.XSHE',
              '002594.XSHE', '300059.XSHE', '600000.XSHG', '600030.XSHG', '600036.XSHG', '600276.XSHG', '600519.XSHG',
              '600900.XSHG', '601166.XSHG', '601318.XSHG', '601398.XSHG', '601988.XSHG', '510300.XSHG']


def initialize(context):
    set_option('use_real_price', True)
    set_benchmark('000300.XSHG')
    run_daily(trade, '9:30')


def trade(context):
    share = context.portfolio.total_value / len(SECURITIES)
    closes = history(20, '1d', 'close', SECURITIES)
    rising = closes[-5:].mean() > closes.mean()
    for security in SECURITIES:
        above = rising[security]
        held = security in context.portfolio.positions
        if above and not held:
            order_value(security, share)
        elif held and not above:
            order_target(security, 0)
