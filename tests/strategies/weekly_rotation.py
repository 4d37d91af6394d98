"""Each week all money into whichever of two stocks rose more in the last twenty days."""
from kuanke.user_space_api import *

POOL = ['600519.XSHG', '000938.XSHE']


def initialize(context):
    set_option('use_real_price', True)
    set_slippage(FixedSlippage(0))
    set_benchmark(POOL[0])
    run_weekly(rotate, 1, time='9:30', reference_security='000300.XSHG')


def rotate(context):
    closes = history(21, '1d', 'close', POOL)
    gains = closes.iloc[-1] / closes.iloc[0]
    best = gains.idxmax()
    current = get_current_data()
    for security in list(context.portfolio.positions):
        if security != best and not current[security].paused:
            order_target(security, 0)
    if not current[best].paused and best not in context.portfolio.positions:
        order_target_value(best, context.portfolio.available_cash)
