"""Two securities, looked at each minute: bought below the mean of the last ten minutes, sold above it."""
from jqdata import *

SECURITIES = ['000001.XSHE', '510300.XSHG']


def initialize(context):
    set_option('use_real_price', True)
    run_daily(look, 'every_bar')


def look(context):
    for security in SECURITIES:
        closes = attribute_history(security, 10, '1m', ['close'])['close']
        position = context.portfolio.positions[security] if security in context.portfolio.positions else None
        if position is None and closes.iloc[-1] < closes.mean() * 0.998:
            order_value(security, 100000)
        elif position is not None and position.closeable_amount and closes.iloc[-1] > closes.mean() * 1.002:
            order_target(security, 0)
