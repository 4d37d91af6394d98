"""Places real orders at whatever server the environment names. Off unless REMOTE_QMT_TEST_ENABLED=1.

Where: QMT_SERVER_HOST, _PORT, _TOKEN, _TLS_CERT, _ACCOUNT_KEY, _SUB_ACCOUNT, as for every client.
What: REMOTE_QMT_TEST_LIMIT_SYMBOL, _LIMIT_PRICE, _LIMIT_AMOUNT: a limit order, best at a price that does not fill; it
is cancelled. _MARKET_SYMBOL, _MARKET_AMOUNT: a market order that is meant to fill, and costs money.
REMOTE_QMT_TEST_ACCOUNT: the account id (资金账号) that must answer; with another nothing is ordered.
"""
import os
import uuid

import pytest

import bullet_qmt as bq

PREFIX = 'REMOTE_QMT_TEST_'
WAIT_S = 10
pytestmark = [
    pytest.mark.requires_network,
    pytest.mark.skipif(os.environ.get(PREFIX + 'ENABLED') != '1',
                       reason='places real orders: set %sENABLED=1 and QMT_SERVER_* to run it' % PREFIX)]


def wanted(name, parse=str):
    """The value of REMOTE_QMT_TEST_<name>; the test is skipped, by that name, without it."""
    text = os.environ.get(PREFIX + name, '').strip()
    if not text:
        pytest.skip('%s%s is not set' % (PREFIX, name))
    return parse(text)


@pytest.fixture(scope='module')
def broker():
    """A broker for the account of the environment. What it placed and still rests is cancelled at the end."""
    placed = Placed()
    try:
        expected = os.environ.get(PREFIX + 'ACCOUNT', '').strip()
        if expected:
            assert placed.get_account_info()['account_id'] == expected, 'another account answered: nothing is ordered'
        yield placed
    finally:
        placed.cancel_what_rests()
        placed.close()


class Placed(bq.RemoteQmtBroker):
    """A broker that remembers the orders it placed."""

    def __init__(self):
        super().__init__()
        self._keys = {}

    def place_order(self, security, side, amount, style, wait_timeout=None, remark=None, idempotency_key=None):
        key = idempotency_key or 'e2e-' + uuid.uuid4().hex
        self._keys.setdefault(key, None)  # known before anything can go wrong
        answer = super().place_order(security, side, amount, style, wait_timeout, remark, key)
        self._keys[key] = answer['order_id']
        return answer

    def cancel_what_rests(self):
        for key, order_id in self._keys.items():
            order_id = order_id or self.resolve_submission(key).get('order_id')
            if order_id and self.get_order_status(order_id).get('status') not in bq.FINAL_STATUSES | {None}:
                self.cancel_order(order_id)


def limit_style():
    return {'type': 'limit', 'price': wanted('LIMIT_PRICE', float)}


def cancelled_or_filled(broker, order_id):
    """Cancels an order; its final row. It may fill before the cancel arrives."""
    canceled = broker.cancel_order(order_id)
    row = broker.get_order_status(order_id)
    assert row['status'] in (('canceled', 'partly_canceled') if canceled else ('filled',)), row
    return row


def amount_held(broker, security):
    code = bq.normalize_code(security)
    return sum(row['amount'] for row in broker.get_positions() if row['security'] == code)


def test_the_account_is_readable(broker):
    info = broker.get_account_info()
    assert info['account_id'] and info['total_value'] >= info['available_cash'] >= 0
    assert isinstance(broker.get_positions(), list) and isinstance(broker.get_trades(), list)


def test_a_limit_order_is_listed_and_leaves_nothing_resting(broker):
    security, amount = wanted('LIMIT_SYMBOL'), wanted('LIMIT_AMOUNT', int)
    answer = broker.place_order(security, 'BUY', amount, limit_style(), remark='bullet e2e')
    order_id = answer['order_id']
    row, = broker.get_orders(order_id=order_id)
    assert (row['security'], row['amount'], row['side']) == (bq.normalize_code(security), amount, 'BUY')
    assert row['order_price'] == pytest.approx(limit_style()['price'])
    final = cancelled_or_filled(broker, order_id)
    assert sum(trade['amount'] for trade in broker.get_trades(order_id=order_id)) == final['filled']
    assert order_id not in [row['order_id'] for row in broker.get_open_orders()]


def test_the_same_key_places_one_order(broker):
    security, amount, key = wanted('LIMIT_SYMBOL'), wanted('LIMIT_AMOUNT', int), 'e2e-' + uuid.uuid4().hex
    before = {row['order_id'] for row in broker.get_orders()}
    answers = [broker.place_order(security, 'BUY', amount, limit_style(), idempotency_key=key) for _ in range(2)]
    ids = {answer['order_id'] for answer in answers}
    after = [row for row in broker.get_orders() if row['order_id'] not in before]
    assert len(ids) == 1 and [row['order_id'] for row in after if row['order_id'] in ids] == list(ids)
    with pytest.raises(bq.IdempotencyConflict):
        broker.place_order(security, 'BUY', amount * 2, limit_style(), idempotency_key=key)
    found = broker.resolve_submission(key)
    assert (found['submission_state'], {found['order_id']}) == ('accepted', ids)
    cancelled_or_filled(broker, ids.pop())


def test_a_market_order_trades(broker):
    security, amount = wanted('MARKET_SYMBOL'), wanted('MARKET_AMOUNT', int)
    held = amount_held(broker, security)
    answer = broker.place_order(security, 'BUY', amount, {'type': 'market'}, wait_timeout=WAIT_S)
    assert answer['status'] == 'filled', answer
    trades = broker.get_trades(order_id=answer['order_id'])
    assert sum(trade['amount'] for trade in trades) == amount
    assert all(trade['security'] == bq.normalize_code(security) and trade['price'] > 0 for trade in trades)
    assert amount_held(broker, security) == held + amount
    assert broker.cancel_order(answer['order_id']) is False
