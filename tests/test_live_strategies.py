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
    ('moving_average', '2018-01-02', '2018-02-12'), ('weekly_rotation', '2018-01-02', '2018-02-12'),
    ('target_value', '2018-01-29', '2018-03-05'), ('suspended', '2018-05-21', '2018-06-22'),
    ('dividends', '2018-06-11', '2018-06-20')])
def test_it_decides_as_in_its_backtest(tmp_path, name, first, last):
    """Prices and the cash that market orders need differ a little, and with them the shares of all-in orders."""
    result, rows, run = lived(tmp_path, name, first, last)
    assert decisions(rows) == decisions(result.trades) and len(decisions(rows)) >= 1, run.lines[-20:]
    assert run.state.running is None and not run.state.keys


@pytest.mark.parametrize('name, frequency, first, last', [
    ('minute_tasks', 'minute', '2024-03-04', '2024-03-06'), ('minute_tasks', 'day', '2024-03-04', '2024-03-15'),
    ('etf_pair', 'day', '2024-03-04', '2024-03-15'), ('limit_orders', 'day', '2024-03-04', '2024-03-14')])
def test_it_does_so_within_the_day(tmp_path, name, frequency, first, last):
    """On days with minutes, those of the paper exchange. A limit that is touched for a moment only, between two looks
    at the quote, fills in a backtest alone: not in these days."""
    result, rows, run = lived(tmp_path, name, first, last, 'stub', None, frequency)
    assert decisions(rows) == decisions(result.trades) and len(decisions(rows)) > 2, run.lines[-20:]
