"""One account, three ways to trade on it: backtest, live run and JoinQuant take-over show a strategy the same."""
import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import A, MadeMarket, day_row, days_from, run
from tests.live import stage

WORDS = sorted(bq.STATUS_RAW) + ['strange']


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)


def live_broker():
    """A RemoteBroker that has read nothing yet."""
    class Book:
        own, unfinished = {}, {}

        def finish(self, order_id):
            pass
    return jq.RemoteBroker(type('View', (), {'last_price': None})(), None, None, lambda *line: None, None, Book(), None,
                           None)


@pytest.mark.parametrize('word', WORDS)
@pytest.mark.parametrize('filled', [0, 100])
def test_a_server_s_status_word_has_one_meaning(word, filled):
    """JoinQuant's `filled` is filled in part, its `held` is done; what is not known to be over is alive."""
    row = jq.RemoteOrder({'order_id': '1', 'security': A, 'amount': 300, 'filled': filled, 'status': word,
                          'side': 'BUY', 'order_time': 1.7e9})
    over = {'filled': 'held', 'canceled': 'canceled', 'partly_canceled': 'canceled', 'rejected': 'rejected'}
    alive = 'filled' if filled else 'new' if word == 'new' else 'open'
    taken_over = jq.JqOrder(row, dict(jq.JqOrderStatus.__members__))
    assert [live_broker()._order_of(row).status.name, taken_over.status.name] == [over.get(word, alive)] * 2


HOLDING = {'security': A, 'amount': 500, 'closeable_amount': 300, 'avg_cost': 10.0, 'last_price': 10.0,
           'market_value': 5000.0}
SHOWN = ('amount', 'sellable_amount', 'closeable_amount', 'total_amount', 'locked_amount', 'today_amount', 'value')


@pytest.mark.parametrize('row, expected', [
    (HOLDING, [300, 300, 300, 500, 0, 200, 5000.0]),
    (dict(HOLDING, closeable_amount=0), [0, 0, 0, 500, 0, 500, 5000.0]),
    (dict(HOLDING, frozen_volume=100), [300, 300, 300, 400, 100, 100, 5000.0])])
def test_a_holding_is_shown_alike(row, expected):
    """amount and sellable_amount are JoinQuant's old names of closeable_amount."""
    portfolio = jq.RemotePortfolio(lambda code: 10.0, lambda text: None, lambda: None)
    live = portfolio._position(A, jq.RemotePosition(row))
    taken_over = jq._jq_positions([jq.RemotePosition(row)])[A]
    assert [[getattr(each, name) for name in SHOWN] for each in (live, taken_over)] == [expected] * 2


BUYING = '''
def initialize(context):
    g.seen = []
    run_daily(buy, '9:31')
    run_daily(look, '9:35')


def buy(context):
    if not context.portfolio.positions:
        order('%(code)s', 500)


def look(context):
    held = context.portfolio.positions['%(code)s']
    g.seen.append((held.amount, held.closeable_amount, held.total_amount))
'''


def test_on_the_day_of_buying_the_amount_is_0_in_a_backtest_and_live(tmp_path):
    market = MadeMarket(tmp_path)
    days = days_from('2024-03-04', 2)
    market.daily(A, [day_row(day, 10.0) for day in days])
    text = BUYING % {'code': A} + '    log.info("%s", g.seen)\n'
    _, lines = run(tmp_path, text, market.source, days[0], days[-1])
    assert [line.rpartition(' - ')[2] for line in lines if ' - INFO - ' in line] == [
        '[(0, 0, 500)]', '[(0, 0, 500), (500, 500, 500)]']
    with stage(tmp_path, '2025-03-03 09:00', '2025-03-04 10:00') as it:
        assert it.run(it.strategy(text, 'live.py')).session.g.seen == [(0, 0, 500), (500, 500, 500)]
