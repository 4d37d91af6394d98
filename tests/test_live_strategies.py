"""Each strategy of the tests live on the paper exchange, on the same real days as its backtest."""
import pytest

import jq_helper as jq
from tests.engine import DATA, REAL, strategy_path
from tests.test_live_same import Trades
from tests.live import stage

MOUTAI, UNIS = '600519.XSHG', '000938.XSHE'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)
    monkeypatch.setattr(jq, 'LIMIT_WAIT_S', 0.2)


def lived(tmp_path, name, first, last, source=REAL, stub_data=DATA, frequency='day'):
    """(BacktestResult, trades of the paper exchange, LiveRun)."""
    path = strategy_path(name)
    result = jq.backtest(path, first, last, provider=source, frequency=frequency)
    with stage(tmp_path, first + ' 00:00', last + ' 23:00', stub_data=stub_data) as it:
        run = it.make(path, frequency=frequency)
        trades = Trades(it)
        run.run()
        run.lines, run.held = it.lines, {row['security']: row['amount'] for row in it.broker.get_positions()}
    return result, trades.rows, run


def decisions(rows):
    """[(day, security, side)], each once."""
    found = []
    for row in rows:
        what = str(row['time'])[:10], row['security'], row['side']
        if what not in found:
            found.append(what)
    return found


@pytest.mark.parametrize('name, first, last', [
    ('moving_average', '2018-01-02', '2018-03-30'), ('weekly_rotation', '2018-01-02', '2018-02-28'),
    ('target_value', '2018-01-02', '2018-04-10'), ('suspended', '2018-05-02', '2018-07-25')])
def test_it_decides_as_in_its_backtest(tmp_path, name, first, last):
    result, rows, run = lived(tmp_path, name, first, last)
    assert decisions(rows) == decisions(result.trades) and len(decisions(rows)) >= 1, run.lines[-20:]
