"""bullet-trade's copy-and-paste helper for JoinQuant, unchanged, on our server: in its own environment and in ours."""
import os
import sys
from datetime import datetime

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, serving
from tests.fakes import FakeClock
from tests.peer import require_peer
from tests.peer_driver import Peer, PeerError, helper_directory

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
MOUTAI, UNIS = '600519.XSHG', '000938.XSHE'
HELPER = 'bullet_trade_jq_remote_helper:'


@pytest.fixture(scope='module', params=['its python', 'this python'])
def helper(request):
    """The helper's module, called as helper(HELPER + name, ...). This python has the pandas of the tests."""
    if request.param == 'this python':
        pytest.importorskip('pandas')
    python = require_peer() if request.param == 'its python' else sys.executable
    with Peer(python, helper_directory()) as driver:
        yield driver


@pytest.fixture
def server(helper):
    """A fresh paper exchange that the helper is configured for, with account `main`."""
    accounts = bq.parse_accounts('main=55001234,hedge=55004321')
    with serving(FakeClock(datetime(2026, 3, 17, 10, 0)), stub_data=DATA, accounts=accounts) as running:
        helper(HELPER + 'configure', running.address[0], TOKEN, port=running.address[1], account_key='main',
               retry_interval=0.01, debug=False)
        helper.keep('data', HELPER + 'get_data_client')
        yield running


def quote(server, security):
    return server.service.backend.data.quote(security)


# -- data ----------------------------------------------------------------------------------------------------------
def test_one_security_has_its_time_as_a_column(helper, server):
    frame = helper('data.get_price', MOUTAI, start_date='2019-01-02', end_date='2019-01-03', fq=None,
                   fields=['open', 'close'])
    assert frame['columns'] == ['index', 'open', 'close']
    assert frame['rows'] == [['2019-01-02T00:00:00', 609.98, 598.98], ['2019-01-03T00:00:00', 599.97, 590.0]]


def test_many_securities_come_as_a_panel_with_the_time_among_its_columns(helper, server):
    frame = helper('data.get_price', [MOUTAI, UNIS], end_date='2019-01-03', count=2, fq=None, fields=['close'],
                   panel=True)
    assert frame['columns'] == [['time', ''], ['close', MOUTAI], ['close', UNIS]]
    assert frame['columns_names'] == ['field', 'code']
    assert [row[:2] for row in frame['rows']] == [['2019-01-02T00:00:00', 598.98], ['2019-01-03T00:00:00', 590.0]]


def test_many_securities_come_in_long_form(helper, server):
    frame = helper('data.get_price', [MOUTAI, UNIS], end_date='2019-01-03', count=2, fq=None, fields=['close'],
                   panel=False)
    assert frame['columns'] == ['time', 'code', 'close']
    assert [row[1] for row in frame['rows']] == [MOUTAI] * 2 + [UNIS] * 2


def test_snapshot_last_price_and_trade_days(helper, server):
    last = quote(server, UNIS).last_price
    snapshot = helper('data.get_snapshot', UNIS)
    assert (snapshot['sid'], snapshot['last_price'], snapshot['dt']) == (UNIS, last, '2026-03-17 10:00:00')
    assert helper('data.get_last_price', UNIS) == last
    assert helper('data.get_trade_days', '2019-01-01', '2019-01-04') == [
        '2019-01-%02dT00:00:00' % day for day in (2, 3, 4)]


# -- trading -------------------------------------------------------------------------------------------------------
def test_the_account_is_read(helper, server):
    account = helper(HELPER + 'get_account')
    assert (account['available_cash'], account['total_value']) == (1000000.0, 1000000.0)
    assert helper(HELPER + 'get_positions') == [] and helper(HELPER + 'get_orders') == {}


def test_a_resting_order_is_cancelled_without_a_key(helper, server):
    bottom = quote(server, UNIS).low_limit
    order_id = helper(HELPER + 'order', UNIS, 100, price=bottom, remark='mine')
    order = helper(HELPER + 'get_open_orders')[order_id]
    assert (order['security'], order['amount'], order['filled'], order['is_buy']) == (UNIS, 100, 0, True)
    assert order['order_remark'] == 'mine'
    answer = helper(HELPER + 'cancel_order', order_id)
    assert (answer['value'], answer['status'], answer['order_id']) == (True, 'canceled', order_id)
    assert helper(HELPER + 'get_order_status', order_id)['status'] == 'canceled'
    assert helper(HELPER + 'get_account')['available_cash'] == 1000000.0


def test_a_market_order_fills_while_it_is_waited_for(helper, server):
    order_id = helper(HELPER + 'order', UNIS, 200, wait_timeout=10)
    trade, = helper(HELPER + 'get_trades', order_id).values()
    assert (trade['amount'], trade['time'], trade['order_id']) == (200, '2026-03-17T10:00:00', order_id)
    position, = helper(HELPER + 'get_positions')
    assert (position['security'], position['amount'], position['available']) == (UNIS, 200, 0)
    cash = helper(HELPER + 'get_account')['available_cash']
    assert cash == pytest.approx(1000000 - trade['amount'] * trade['price'] - trade['commission'], abs=1e-6)


def test_orders_by_value_and_to_a_target_value(helper, server):
    last = quote(server, UNIS).last_price
    helper(HELPER + 'order_value', UNIS, 200 * last + 0.01, wait_timeout=10)
    assert [row['amount'] for row in helper(HELPER + 'get_positions')] == [200]
    helper(HELPER + 'order_target_value', UNIS, 500 * last + 0.01, wait_timeout=10)
    assert [row['amount'] for row in helper(HELPER + 'get_positions')] == [500]
    assert helper(HELPER + 'order_target_value', UNIS, 500 * last + 0.01) == ''


def test_a_value_that_makes_no_whole_lots_is_rounded_down(helper, server):
    """The helper divides value by price, sends what comes out and leaves whole lots to the server."""
    order_id = helper(HELPER + 'order_value', UNIS, 250 * quote(server, UNIS).last_price + 0.01)
    orders = helper(HELPER + 'get_orders')
    assert list(orders) == [order_id] and orders[order_id]['amount'] == 200


def test_a_value_below_a_lot_is_refused(helper, server):
    with pytest.raises(PeerError) as caught:
        helper(HELPER + 'order_value', UNIS, 50 * quote(server, UNIS).last_price + 0.01)
    assert '数量 50 小于最小申报数量 100' in caught.value.message
    assert helper(HELPER + 'get_orders') == {}


def test_a_refusal_is_no_unknown_order(helper, server):
    with pytest.raises(PeerError) as caught:
        helper(HELPER + 'order', UNIS, 100, price=99999)
    assert caught.value.types[0] == 'RuntimeError'
    assert 'submit_unknown' not in caught.value.message and '涨停价' in caught.value.message
    assert helper(HELPER + 'get_orders') == {}


def test_a_repeated_key_is_one_order(helper, server):
    bottom = quote(server, UNIS).low_limit
    ids = {helper(HELPER + 'order', UNIS, 100, price=bottom, idempotency_key='k-1') for _ in range(2)}
    assert set(helper(HELPER + 'get_orders')) == ids and len(ids) == 1
