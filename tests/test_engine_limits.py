"""Backtest: who opens at the day's limit is not bought, and what only a wrong rule calls a limit is."""
import pytest

from tests.engine import MadeMarket, day_row, days_from, run

BUY = '''
def initialize(context):
    g.code = '%s'
    set_slippage(FixedSlippage(0))
    run_daily(buy, '9:30')

def buy(context):
    if str(context.current_dt.date()) == '%s':
        g.placed = order(g.code, 100)
        log.info('%%s %%s', g.placed and g.placed.filled, get_current_data()[g.code].high_limit)
'''


def bought(tmp_path, code, day, opens, told=None):
    """Shares bought at the open of `day`, which is at `opens` after a close of 1.0; told: the file's own high_limit."""
    before = days_from('2020-08-17', 20)
    before = [text for text in before if text < day][-3:] or days_from('2024-05-29', 3)
    market = MadeMarket(tmp_path)
    rows = [day_row(text, 1.0) for text in before] + [day_row(day, opens, pre_close=1.0)]
    header = 'date,open,close,high,low,volume,money,pre_close,paused'
    if told is not None:
        header, rows = header + ',high_limit,low_limit', [row + [told, round(2 - told, 3)] for row in rows]
    market._write(code + '_1d.csv', header, rows)
    result, _ = run(tmp_path, BUY % (code, day), market.source, before[0], day)
    return sum(row['amount'] for row in result.trades)


@pytest.mark.parametrize('code, day, opens, shares', [
    ('159915.XSHE', '2020-08-21', 1.1, 0), ('159915.XSHE', '2020-08-24', 1.1, 100),
    ('159915.XSHE', '2020-08-24', 1.2, 0),
    ('159919.XSHE', '2020-08-24', 1.1, 0), ('588000.XSHG', '2024-06-03', 1.15, 100),
    ('588000.XSHG', '2024-06-03', 1.2, 0),
    ('159999.XSHE', '2024-06-03', 1.15, 100),   # a fund that no list has: its own trade tells that it is not 10 %
    ('159999.XSHE', '2024-06-03', 1.2, 0),      # and that 20 % is as far as it goes
    ('600000.XSHG', '2024-06-03', 1.1, 0), ('600000.XSHG', '2024-06-03', 1.5, 100)])
def test_what_opens_at_its_limit_is_not_bought(tmp_path, code, day, opens, shares):
    assert bought(tmp_path, code, day, opens) == shares


@pytest.mark.parametrize('opens, told, shares', [(1.15, 1.1, 100), (1.1, 1.1, 0), (1.2, 1.1, 0), (1.25, 1.1, 100)])
def test_a_limit_that_the_source_has_wrong_refuses_nothing(tmp_path, opens, told, shares):
    assert bought(tmp_path, '159999.XSHE', '2024-06-03', opens, told) == shares
