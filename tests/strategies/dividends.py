"""Buys before an ex-date and holds: the dividend comes in cash, less tax, and is told."""
from jqdata import *


def initialize(context):
    g.security, g.told = '600519.XSHG', []
    set_option('use_real_price', True)
    set_benchmark(g.security)
    run_daily(buy, '9:30')


def buy(context):
    if not context.portfolio.positions:
        order(g.security, 1000)


def on_event(context, event):
    log.info('%s %s', type(event).__name__, event.security)
    record(dividend=event.cash)
