"""jq_helper on a connection that only records: what is sent for every call, and what is refused before anything is."""
import json
import math
from collections import OrderedDict
from datetime import date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as bq
import jq_helper as jq

CODE = '000001.XSHE'
STAR = '688001.XSHG'
ACCOUNT = {'available_cash': 50000.0, 'total_value': 100000.0, 'frozen_cash': 10.0, 'market_value': 49990.0,
           'transferable_cash': 40000.0, 'account_id': '55001234'}


def position_row(security=CODE, amount=500, closeable=None):
    return {'security': security, 'amount': amount, 'closeable_amount': amount if closeable is None else closeable,
            'avg_cost': 9.5, 'last_price': 10.0, 'market_value': 10.0 * amount, 'name': '平安银行', 'frozen_volume': 0}


def order_row(order_id='7', status='open', **changes):
    row = {'order_id': order_id, 'security': CODE, 'side': 'BUY', 'is_buy': True, 'amount': 300, 'filled': 100,
           'order_price': 10.5, 'avg_price': 10.25, 'status': status, 'order_time': 1704679200, 'commission': 5.0,
           'tax': 1.0, 'order_remark': 'r', 'status_msg': ''}
    return dict(row, **changes)


class Recorder(bq.BaseConnection):
    """Answers from a dict: action -> value, exception, or function of the payload. `sent` holds (action, payload)."""

    ack = {'journal_id': 'j1'}

    def __init__(self):
        self.sent, self.timeouts, self.placed = [], [], 0
        self.answers = {'broker.place_order': self.place, 'broker.cancel_order': self.cancel,
                        'broker.positions': [], 'broker.orders': [], 'broker.trades': [], 'broker.order_status': {},
                        'broker.account': {'dtype': 'dict', 'value': ACCOUNT},
                        'data.snapshot': {'sid': CODE, 'last_price': 10.0}}

    def place(self, payload):
        self.placed += 1
        return order_row('o%d' % self.placed, 'submitted', security=payload['security'], side=payload['side'],
                         is_buy=payload['side'] == 'BUY', amount=payload['amount'], filled=0, avg_price=0.0)

    def cancel(self, payload):
        """What was open is not any more."""
        self.answers['broker.orders'] = [row for row in self.answers['broker.orders']
                                         if row['order_id'] != payload['order_id']]
        return {'dtype': 'dict', 'value': True, 'status': 'canceled', 'order_id': payload['order_id']}

    def request(self, action, payload=None, timeout=None):
        self.check_run(action, payload)
        self.sent.append((action, dict(payload or {})))
        self.timeouts.append(timeout)
        answer = self.answers[action]
        if isinstance(answer, Exception):
            raise answer
        return answer(payload) if callable(answer) else answer

    def payloads(self, action):
        return [payload for name, payload in self.sent if name == action]

    @property
    def orders(self):
        return self.payloads('broker.place_order')


@pytest.fixture
def wire(monkeypatch):
    connection = Recorder()
    data = jq.RemoteDataClient(connection=connection)
    monkeypatch.setattr(jq, '_clients', (data, jq.RemoteBrokerClient(connection, data)))
    return connection


class StopMarketOrderStyle:
    limit_price = 9.0


class StopLimitOrderStyle:
    limit_price = 9.0


class MyLimitOrderStyle:
    def __init__(self, price):
        self.price = price


# -- configure -----------------------------------------------------------------------------------------------------
def test_before_configure_every_call_says_what_to_do(monkeypatch):
    monkeypatch.setattr(jq, '_clients', None)
    for call in (jq.get_data_client, jq.get_broker_client, jq.get_account, lambda: jq.order(CODE, 100)):
        with pytest.raises(bq.ConfigError) as caught:
            call()
        assert 'configure(' in caught.value.hint


@pytest.mark.parametrize('changes', [
    {'host': ''}, {'host': None}, {'host': 'a b'}, {'token': ''}, {'token': None}, {'token': 5}, {'port': 0},
    {'port': 70000}, {'port': 'x'}, {'port': True}, {'port': 1.5}, {'retries': -1}, {'retries': 1.5}, {'retries': 99},
    {'retry_interval': -1}, {'retry_interval': math.nan}, {'rpc_timeout': 0}, {'rpc_timeout': math.inf},
    {'rpc_timeout': 'soon'}, {'debug': 'maybe'}, {'debug': None}, {'account_key': ''}, {'sub_account_id': ' '},
    {'tls_cert': '/no/such/file.pem'}, {'place_order_timeout_margin': -1}])
def test_configure_checks_every_value_and_keeps_what_was(monkeypatch, changes):
    monkeypatch.setattr(jq, '_clients', 'before')
    with pytest.raises(bq.ConfigError):
        jq.configure(**dict({'host': '127.0.0.1', 'token': 'some-secret-token'}, **changes))
    assert jq._clients == 'before'


def test_a_wrong_token_is_not_shown(monkeypatch):
    with pytest.raises(bq.ConfigError) as caught:
        jq.configure('127.0.0.1', 'secret\nword')
    assert 'secret' not in str(caught.value)


def test_configure_connects_to_nothing_and_keeps_one_client(monkeypatch):
    monkeypatch.setattr(jq, '_clients', None)
    monkeypatch.setattr(bq, 'connect_socket', lambda *args: pytest.fail('connected'))
    assert jq.configure('127.0.0.1', 'some-token', 58620, 'main', 'research', retries=0, retry_interval=0,
                        rpc_timeout=5, debug=False, place_order_timeout_margin=40) is None
    assert jq.get_broker_client() is jq.get_broker_client() and jq.get_data_client() is jq.get_data_client()


def test_unknown_keywords_are_type_errors(wire):
    for call in (lambda: jq.order(CODE, 100, limit=3), lambda: jq.order_target(CODE, 100, sides='BUY'),
                 lambda: jq.get_data_client().get_price(CODE, begin='2019-01-01'),
                 lambda: jq.configure('h', 'token', timeout=3)):
        with pytest.raises(TypeError):
            call()
    assert wire.sent == []


# -- styles and prices ---------------------------------------------------------------------------------------------
LIMIT, MARKET = {'type': 'limit', 'price': 10.5}, {'type': 'market'}
PROTECTED = {'type': 'market', 'protect_price': 10.5}


@pytest.mark.parametrize('args, how, style', [
    ((), {}, MARKET), ((None,), {}, MARKET), ((10.5,), {}, LIMIT), ((Decimal('10.5'),), {}, LIMIT),
    ((), {'price': 10.5}, LIMIT), ((jq.LimitOrderStyle(10.5),), {}, LIMIT), ((jq.MarketOrderStyle(),), {}, MARKET),
    ((jq.MarketOrderStyle(10.5),), {}, PROTECTED), ((), {'style': jq.LimitOrderStyle(10.5)}, LIMIT),
    ((), {'style': jq.MarketOrderStyle(limit_price=10.5)}, PROTECTED), ((MyLimitOrderStyle(10.5),), {}, LIMIT),
    ((10.5,), {'style': jq.LimitOrderStyle(10.5)}, LIMIT), ((10.5,), {'style': jq.MarketOrderStyle(10.5)}, PROTECTED),
    ((10.5,), {'market': True}, PROTECTED), ((), {'market': True}, MARKET), ((10.5,), {'market': False}, LIMIT),
    ((), {'protect_price': 10.5}, PROTECTED), ((), {'market': True, 'protect_price': 10.5}, PROTECTED),
    ((), {'side': 'long', 'pindex': 0, 'close_today': False}, MARKET)])
def test_what_price_and_style_become(wire, args, how, style):
    assert jq.order(CODE, 100, *args, **how) == 'o1'
    assert [payload['style'] for payload in wire.orders] == [style]


@pytest.mark.parametrize('args, how', [
    ((10.4,), {'style': jq.LimitOrderStyle(10.5)}), ((10.4,), {'style': jq.MarketOrderStyle(10.5)}),
    ((10.4,), {'style': jq.MarketOrderStyle()}), ((), {'market': False}), ((), {'market': 1}),
    ((jq.LimitOrderStyle(10.5),), {'market': True}), ((jq.MarketOrderStyle(),), {'market': False}),
    ((jq.LimitOrderStyle(10.5),), {'style': jq.LimitOrderStyle(10.5)}), ((jq.LimitOrderStyle(None),), {}),
    ((10.5,), {'protect_price': 11}), ((jq.MarketOrderStyle(10.5),), {'protect_price': 11}), ((0,), {}), ((-1,), {}),
    ((math.nan,), {}), ((math.inf,), {}), ((True,), {}), (('10.5',), {}), ((1e9,), {}), (({'type': 'market'},), {}),
    ((jq.MarketOrderStyle,), {}), ((), {'style': 10.5}), ((), {'style': object()}), ((), {'protect_price': math.nan}),
    ((jq.LimitOrderStyle('10'),), {}), ((), {'wait_timeout': -1}), ((), {'wait_timeout': True}),
    ((), {'wait_timeout': math.inf}), ((), {'wait_timeout': 601}), ((), {'wait_timeout': '5'}),
    ((), {'idempotency_key': ''}), ((), {'idempotency_key': 5}), ((), {'remark': 'a', 'order_remark': 'b'}),
    ((), {'remark': 5}), ((), {'side': 'SELL'}), ((), {'side': 'up'}), ((), {'side': 1})])
def test_what_contradicts_itself_or_is_no_number_is_refused(wire, args, how):
    with pytest.raises(bq.BadRequest):
        jq.order(CODE, 100, *args, **how)
    assert wire.sent == []


@pytest.mark.parametrize('call', [jq.order, jq.order_value, jq.order_target, jq.order_target_value])
@pytest.mark.parametrize('how', [{'side': 'short'}, {'pindex': 1}, {'close_today': True},
                                 {'price': StopMarketOrderStyle()}, {'style': StopLimitOrderStyle()}])
def test_futures_and_stops_are_not_implemented_and_send_nothing(wire, call, how):
    with pytest.raises(NotImplementedError):
        call(CODE, 1000, **how)
    assert wire.sent == []


def test_styles_tell_their_price():
    assert (jq.LimitOrderStyle(10.5).limit_price, jq.LimitOrderStyle(10.5).price) == (10.5, 10.5)
    assert (jq.MarketOrderStyle().limit_price, jq.MarketOrderStyle(3).limit_price) == (None, 3)
    assert repr(jq.LimitOrderStyle(10.5)) == 'LimitOrderStyle(10.5)'
    assert repr(jq.MarketOrderStyle()) == 'MarketOrderStyle()'


# -- order ---------------------------------------------------------------------------------------------------------
def test_the_payload_of_an_order(wire):
    jq.order('000001.sz', 100, 10.5, wait_timeout=10, remark='mine', idempotency_key='k1')
    assert wire.sent == [('broker.place_order', {
        'security': CODE, 'side': 'BUY', 'amount': 100, 'style': LIMIT, 'wait_timeout': 10.0, 'order_remark': 'mine',
        'idempotency_key': 'k1'})]
    assert wire.timeouts == [60.0]


def test_accounts_go_with_every_broker_request():
    connection = Recorder()
    client = jq.RemoteBrokerClient(connection, None, account_key='main', sub_account_id='research', debug=False)
    client.order(CODE, 100)
    client.cancel_order('7')
    client.get_account(), client.get_positions(), client.get_orders(), client.get_trades()
    client.get_order_status('7')
    assert {(payload['account_key'], payload['sub_account_id']) for _, payload in connection.sent} == {
        ('main', 'research')}


def test_every_write_has_a_key_of_its_own(wire):
    jq.order(CODE, 100), jq.order(CODE, 100), jq.cancel_order('1'), jq.cancel_order('1')
    keys = [payload['idempotency_key'] for _, payload in wire.sent]
    assert len(set(keys)) == 4 and all(keys)


def test_a_waiting_order_has_its_margin_and_others_the_plain_limit():
    connection = Recorder()
    client = jq.RemoteBrokerClient(connection, None, rpc_timeout=20.0, margin=45.0, debug=False)
    client.order(CODE, 100, wait_timeout=10), client.order(CODE, 100)
    assert connection.timeouts == [55.0, None]
    assert 'wait_timeout' not in connection.orders[1]


@pytest.mark.parametrize('security, asked, sent', [
    (CODE, 100, 100), (CODE, 199, 100), (CODE, 250, 200), (CODE, 100.0, 100), (STAR, 200, 200), (STAR, 333, 333),
    ('113050.XSHG', 17, 10), ('510300.XSHG', 120, 100)])
def test_buys_are_floored_to_lots(wire, security, asked, sent):
    assert jq.order(security, asked) == 'o1'
    assert (wire.orders[0]['side'], wire.orders[0]['amount']) == ('BUY', sent)


@pytest.mark.parametrize('security, held, closeable, asked, sent', [
    (CODE, 500, 500, 100, 100), (CODE, 500, 500, 150, 100), (CODE, 250, 250, 250, 250), (CODE, 250, 250, 150, 100),
    (CODE, 250, 150, 150, 150), (CODE, 50, 50, 50, 50), (CODE, 250, 250, 350, 300), (CODE, 250, 250, 351, 300),
    (STAR, 150, 150, 150, 150), (STAR, 500, 500, 201, 201)])
def test_sales_are_floored_unless_all_is_sold(wire, security, held, closeable, asked, sent):
    wire.answers['broker.positions'] = [position_row('600000.XSHG', 70), position_row(security, held, closeable)]
    assert jq.order(security, -asked) == 'o1'
    assert (wire.orders[0]['side'], wire.orders[0]['amount']) == ('SELL', sent)


@pytest.mark.parametrize('security, amount', [(CODE, 0), (CODE, 99), (CODE, -99), (STAR, 199), (STAR, -150)])
def test_an_amount_that_comes_to_nothing_sends_nothing_and_says_why(wire, capsys, security, amount):
    wire.answers['broker.positions'] = [position_row(STAR, 400), position_row(CODE, 120)]
    assert jq.order(security, amount) is None
    assert wire.orders == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and '没有下单' in lines[0] and str(abs(amount)) in lines[0]


@pytest.mark.parametrize('amount', [math.nan, math.inf, -math.inf, 1e10, 10 ** 40, True, '100', None, 100.5,
                                    Decimal('100.5'), [100], 1 + 2j])
def test_what_is_no_amount_is_refused(wire, amount):
    for call in (jq.order, jq.order_target):
        with pytest.raises(bq.BadRequest):
            call(CODE, amount)
    assert wire.sent == []


def test_numpy_numbers_are_numbers(wire):
    numpy = pytest.importorskip('numpy')
    jq.order(CODE, numpy.int64(100), numpy.float64(10.5))
    jq.order_value(CODE, numpy.float32(2000.0), numpy.float64(10.0))
    assert [(row['amount'], row['style']['price']) for row in wire.orders] == [(100, 10.5), (200, 10.0)]
    assert all(type(row['amount']) is int for row in wire.orders)
    with pytest.raises(bq.BadRequest):
        jq.order(CODE, numpy.bool_(True))


@pytest.mark.parametrize('code', ['000001', '', None, 5, 'XSHE.000001', '000001.XX'])
def test_what_is_no_security_is_refused(wire, code):
    for call in (jq.order, jq.order_value, jq.order_target, jq.order_percent, jq.order_target_percent,
                 jq.order_target_value):
        with pytest.raises(bq.SecurityNotFound):
            call(code, 1)
    assert wire.sent == []


def test_an_explicit_side_must_agree_with_the_sign(wire):
    jq.order(CODE, 100, side='BUY'), jq.order(CODE, -100, side='sell')
    assert [row['side'] for row in wire.orders] == ['BUY', 'SELL']
    with pytest.raises(bq.BadRequest):
        jq.order(CODE, -100, side='BUY')
    with pytest.raises(bq.BadRequest):
        jq.order_value(CODE, 1000, 10, side='SELL')
    with pytest.raises(bq.BadRequest):
        jq.order_percent(CODE, -0.5, 10, side='BUY')
    assert len(wire.sent) == 2


@pytest.mark.parametrize('side, amount', [('S', -100), ('s', -100), ('b', 100), ('B', 100), ('Buy', 100)])
def test_the_short_sides_of_bullet_trades_helper(wire, side, amount):
    jq.order(CODE, amount=amount, price=None, side=side)
    assert [(row['side'], row['amount']) for row in wire.orders] == [('SELL' if amount < 0 else 'BUY', 100)]


def test_a_cancel_takes_the_id_under_its_name(wire):
    assert jq.cancel_order(order_id='5') and jq.get_broker_client().cancel_order(order_id='6')
    assert [row['order_id'] for row in wire.payloads('broker.cancel_order')] == ['5', '6']
    for call in (jq.cancel_order, lambda: jq.cancel_order('5', order_id='6')):
        with pytest.raises(bq.BadRequest):
            call()


def test_place_order_sends_the_amount_as_it_is(wire):
    client = jq.get_broker_client()
    placed = client.place_order(CODE, side='SELL', amount=150, price=10.5, wait_timeout=3, remark='x')
    assert isinstance(placed, jq.RemoteOrder) and placed.order_id == 'o1' and placed.is_buy is False
    assert (wire.orders[0]['amount'], wire.orders[0]['side'], wire.orders[0]['style']) == (150, 'SELL', LIMIT)
    for bad in ({'side': None}, {'amount': None}, {'amount': 0}, {'amount': -100}, {'side': 'long'}):
        with pytest.raises(bq.BadRequest):
            client.place_order(CODE, **dict({'side': 'BUY', 'amount': 100}, **bad))
    assert len(wire.sent) == 1


# -- values and percents -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('value, price, side, amount', [
    (1050, 10.5, 'BUY', 100), (990.0, 3.3, 'BUY', 300), (300 * 3.3, 3.3, 'BUY', 300), (100 * 10.13, 10.13, 'BUY', 100),
    (1049.99, 5.25, 'BUY', 100), (-2100, 10.5, 'SELL', 200), (2500, None, 'BUY', 200), (-1000, None, 'SELL', 100)])
def test_values_become_shares(wire, value, price, side, amount):
    wire.answers['broker.positions'] = [position_row()]
    assert jq.order_value(CODE, value, price) == 'o1'
    assert (wire.orders[0]['side'], wire.orders[0]['amount']) == (side, amount)
    assert bool(wire.payloads('data.snapshot')) == (price is None)


@given(st.integers(1, 10 ** 6), st.integers(1, 10 ** 6))
def test_the_value_of_whole_shares_buys_just_these(amount, ticks):
    price = ticks / 100.0
    assert jq._shares(amount * price, price) == amount
    assert jq._shares(amount * price * (1 - 1e-10), price) == amount - 1


@pytest.mark.parametrize('last', [None, 0, -1.0, math.nan, 'x'])
def test_without_a_last_price_there_is_no_market_order_by_value(wire, last):
    wire.answers['data.snapshot'] = {'sid': CODE, 'last_price': last}
    for call in (lambda: jq.order_value(CODE, 5000), lambda: jq.order_target_value(CODE, 5000),
                 lambda: jq.order_percent(CODE, 0.5)):
        with pytest.raises(bq.DataUnavailable):
            call()
    assert {action for action, _ in wire.sent} == {'data.snapshot', 'broker.account'}


@pytest.mark.parametrize('value', [math.nan, math.inf, 1e13, True, '5', None])
def test_what_is_no_value_is_refused(wire, value):
    for call in (jq.order_value, jq.order_target_value, jq.order_percent, jq.order_target_percent):
        with pytest.raises(bq.BadRequest):
            call(CODE, value)
    assert wire.sent == []


def test_percents_are_fractions_of_the_total_value(wire):
    wire.answers['broker.positions'] = [position_row(amount=3000)]
    jq.order_percent(CODE, 0.1, 10)
    jq.order_percent(CODE, -0.2, 10)
    jq.order_target_percent(CODE, 0.5, 10)
    assert [(row['side'], row['amount']) for row in wire.orders] == [('BUY', 1000), ('SELL', 2000), ('BUY', 2000)]
    for call in (lambda: jq.order_percent(CODE, 10), lambda: jq.order_target_percent(CODE, -0.1)):
        with pytest.raises(bq.BadRequest) as caught:
            call()
        assert '10%' in caught.value.hint
    wire.answers['broker.account'] = {'value': dict(ACCOUNT, total_value=-5.0)}
    with pytest.raises(bq.BadRequest):
        jq.order_percent(CODE, 0.1, 10)
    assert len(wire.orders) == 3


# -- targets -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('held, closeable, target, sent', [
    (0, 0, 300, ('BUY', 300)), (0, 0, 350, ('BUY', 300)), (200, 200, 500, ('BUY', 300)), (50, 50, 300, ('BUY', 200)),
    (500, 500, 200, ('SELL', 300)), (500, 500, 0, ('SELL', 500)), (250, 250, 0, ('SELL', 250)),
    (250, 250, 100, ('SELL', 100)), (500, 200, 0, ('SELL', 200)), (250, 150, 0, ('SELL', 150)), (500, 0, 0, None),
    (500, 500, 500, None), (0, 0, 0, None), (500, 500, 450, None), (500, 500, 550, None)])
def test_targets_order_the_difference(wire, held, closeable, target, sent):
    wire.answers['broker.positions'] = [position_row('000001.SZ', held, closeable)] if held else []
    oid = jq.order_target(CODE, target)
    assert oid == ('o1' if sent else None)
    assert [(row['side'], row['amount']) for row in wire.orders] == ([sent] if sent else [])


def test_a_target_cancels_reads_and_orders_in_this_order(wire):
    wire.answers['broker.orders'] = [order_row('1'), order_row('2', 'filled'), order_row('3', security='000002.XSHE'),
                                     order_row('4', 'filling')]
    jq.order_target(CODE, 300)
    assert [action for action, _ in wire.sent] == [
        'broker.orders', 'broker.cancel_order', 'broker.cancel_order', 'broker.orders', 'broker.positions',
        'broker.place_order']
    assert [row['order_id'] for row in wire.payloads('broker.cancel_order')] == ['1', '4']
    assert wire.payloads('broker.orders')[0]['security'] == CODE


@pytest.mark.parametrize('answer', [
    {'value': False, 'status': 'canceling', 'order_id': '1', 'timed_out': True}, {'status': 'submit_unknown'}, {}, None,
    bq.OrderStateUnknown('?', idempotency_key='k')])
def test_an_order_that_may_still_fill_stops_a_target(wire, answer):
    wire.answers.update({'broker.orders': [order_row('1')], 'broker.cancel_order': answer})
    for call in (jq.order_target, lambda code, size: jq.order_target_value(code, size, 10)):
        with pytest.raises(bq.OrderStateUnknown):
            call(CODE, 3000)
    assert wire.orders == []


@pytest.mark.parametrize('refused', [False, True])
def test_an_order_that_only_vanished_from_the_list_stops_a_target(wire, refused):
    def cancel(payload):
        wire.answers['broker.orders'] = []
        if refused:
            raise bq.OrderRejected('不能撤')
        return {'value': False, 'status': 'canceling', 'order_id': '1', 'timed_out': True}
    wire.answers.update({'broker.orders': [order_row('1')], 'broker.cancel_order': cancel, 'broker.order_status': {}})
    with pytest.raises(bq.OrderStateUnknown):
        jq.order_target(CODE, 300)
    assert wire.orders == []


def test_an_order_that_stays_open_after_its_cancel_stops_a_target(wire):
    wire.answers.update({'broker.orders': [order_row('1')],
                         'broker.cancel_order': {'value': True, 'status': 'canceled', 'order_id': '1'}})
    with pytest.raises(bq.OrderStateUnknown):
        jq.order_target(CODE, 300)
    assert wire.orders == []


def test_an_order_that_filled_before_its_cancel_does_not_stop_a_target(wire):
    def too_late(payload):
        wire.answers.update({'broker.orders': [], 'broker.order_status': order_row('1', 'filled')})
        raise bq.OrderRejected('已成交')
    wire.answers.update({'broker.orders': [order_row('1')], 'broker.cancel_order': too_late})
    assert jq.order_target(CODE, 300) == 'o1'
    wire.answers.update({'broker.orders': [order_row('1')],
                         'broker.cancel_order': {'value': False, 'status': 'filled', 'order_id': '1'}})
    with pytest.raises(bq.OrderStateUnknown):  # the list still shows it open: not certain
        jq.order_target(CODE, 300)
    assert len(wire.orders) == 1


def test_a_refused_cancel_of_a_living_order_stops_a_target(wire):
    wire.answers.update({'broker.orders': [order_row('1')], 'broker.cancel_order': bq.OrderRejected('不能撤'),
                         'broker.order_status': order_row('1', 'open')})
    with pytest.raises(bq.OrderStateUnknown):
        jq.order_target(CODE, 300)
    assert wire.orders == []


@pytest.mark.parametrize('answer', [None, {}, {'value': []}, 'none', [None], [{'security': CODE}],
                                    [{'security': CODE, 'amount': None, 'closeable_amount': 0}],
                                    [{'security': CODE, 'amount': math.nan, 'closeable_amount': 0}],
                                    [{'amount': 100, 'closeable_amount': 100}],
                                    bq.QmtUnavailable('终端不在')])
def test_positions_that_cannot_be_read_are_never_none_held(wire, answer):
    wire.answers['broker.positions'] = answer
    for call in (lambda: jq.order_target(CODE, 300), lambda: jq.order_target_value(CODE, 0), jq.get_positions,
                 lambda: jq.order(CODE, -150)):
        with pytest.raises(bq.BulletError):
            call()
    assert wire.orders == []


@pytest.mark.parametrize('answer', [None, [], {}, {'value': None}, {'value': {'available_cash': 5.0}},
                                    {'value': {'available_cash': 5.0, 'total_value': None}}])
def test_an_account_that_cannot_be_read_is_an_error(wire, answer):
    wire.answers['broker.account'] = answer
    for call in (jq.get_account, lambda: jq.order_percent(CODE, 0.5, 10), lambda: jq.order_target_percent(CODE, 1, 10)):
        with pytest.raises(bq.ProtocolError):
            call()
    assert wire.orders == [] and wire.payloads('broker.cancel_order') == []


@pytest.mark.parametrize('answer', [None, {}, [None], [{'status': 'open'}]])
def test_orders_that_cannot_be_read_are_never_none_open(wire, answer):
    wire.answers['broker.orders'] = answer
    with pytest.raises(bq.ProtocolError):
        jq.order_target(CODE, 300)
    assert wire.orders == []


def test_a_target_takes_no_side_and_needs_no_price_for_nothing(wire):
    with pytest.raises(bq.BadRequest):
        jq.order_target(CODE, 300, side='BUY')
    for call in (jq.order_target, jq.order_target_value, jq.order_target_percent):
        with pytest.raises(bq.BadRequest):
            call(CODE, -100)
    with pytest.raises(bq.BadRequest):
        jq.order_target_value(CODE, 100, value=200)
    assert wire.sent == []
    wire.answers.update({'broker.positions': [position_row()], 'data.snapshot': {'last_price': None}})
    assert jq.order_target_value(CODE, value=0) == 'o1' and jq.order_target_percent(CODE, 0, side='long') == 'o2'
    assert [(row['side'], row['amount']) for row in wire.orders] == [('SELL', 500)] * 2


def test_target_values_are_counted_in_shares_first(wire):
    wire.answers['broker.positions'] = [position_row(amount=500)]
    jq.order_target_value(CODE, 8000), jq.order_target_value(CODE, 3000, 10), jq.order_target_value(CODE, value=5100)
    assert [(row['side'], row['amount']) for row in wire.orders] == [('BUY', 300), ('SELL', 200)]


def test_a_given_key_reaches_the_order_not_the_cancels_of_a_target(wire):
    wire.answers['broker.orders'] = [order_row('1')]
    jq.order_target(CODE, 300, idempotency_key='mine')
    assert wire.orders[0]['idempotency_key'] == 'mine'
    assert wire.payloads('broker.cancel_order')[0]['idempotency_key'] != 'mine'


# -- outcomes ------------------------------------------------------------------------------------------------------
def test_a_rejected_order_raises(wire):
    wire.answers['broker.place_order'] = order_row('9', 'rejected', status_msg='资金不足')
    with pytest.raises(bq.OrderRejected) as caught:
        jq.order(CODE, 100, wait_timeout=5)
    assert caught.value.message == '资金不足' and caught.value.details['order_id'] == '9'


@pytest.mark.parametrize('status, filled', [('canceled', 0), ('cancelled', 0), ('failed', 0), ('error', 0)])
def test_an_order_that_ended_with_nothing_filled_raises_as_a_runtime_error(wire, status, filled):
    """As bullet-trade's helper does; the order is over, so that ordering anew makes no second one."""
    wire.answers['broker.place_order'] = order_row('9', status, filled=filled)
    with pytest.raises(RuntimeError) as caught:
        jq.order(CODE, 100, wait_timeout=5, idempotency_key='k')
    assert type(caught.value) is bq.OrderRejected and caught.value.broker_called is True
    assert (caught.value.details['order_id'], caught.value.details['idempotency_key']) == ('9', 'k')


@pytest.mark.parametrize('status, filled', [('canceled', 100), ('partly_canceled', 100), ('partly_cancelled', 100)])
def test_an_order_that_filled_in_part_is_an_order(wire, status, filled):
    wire.answers['broker.place_order'] = order_row('9', status, filled=filled)
    assert jq.order(CODE, 300, wait_timeout=5) == '9'


@pytest.mark.parametrize('row, outcome', [({'filled': 0}, bq.OrderRejected), ({'filled': 100}, '9'),
                                          ({}, bq.OrderStateUnknown), (bq.ConnectionLost('x'), bq.OrderStateUnknown)])
def test_where_an_answer_does_not_say_what_was_filled_the_order_is_looked_at(wire, row, outcome):
    wire.answers.update({'broker.place_order': {'order_id': 9, 'status': 'canceled', 'amount': 300, 'price': 10.5},
                         'broker.order_status': row})
    if outcome == '9':
        assert jq.order(CODE, 300) == '9'
        return
    with pytest.raises(outcome):
        jq.order(CODE, 300)


def test_a_warning_of_the_server_is_told_and_kept(wire):
    wire.answers['broker.place_order'] = order_row('9', 'open', warning='停牌')
    with pytest.warns(bq.ServerWarning, match='停牌'):
        placed = jq.get_broker_client().place_order(CODE, 'BUY', 100, 10.5)
    assert placed.warning == '停牌' and placed.raw_response['warning'] == '停牌'
    assert jq.RemoteOrder(order_row('8')).warning == ''


@pytest.mark.parametrize('key', ['', ' ', '-a', '委托', 'a b', 'a' * 256, 5])
def test_a_key_that_not_every_server_takes_is_not_sent(wire, key):
    for call in (lambda: jq.order(CODE, 100, idempotency_key=key),
                 lambda: jq.get_broker_client().cancel_order('5', idempotency_key=key)):
        with pytest.raises(bq.BadRequest):
            call()
    assert wire.sent == []


@pytest.mark.parametrize('answer', [
    None, [], {}, {'order_id': None}, {'order_id': '-1', 'status': 'submitted'}, order_row(status='submit_unknown'),
    order_row(status='reconciling'), order_row(amount='many'), order_row(order_time='soon'),
    order_row('submit_unknown:0123456789abcdef01234567'), order_row({}), order_row([]), order_row(True), order_row(0)])
def test_an_answer_that_leaves_it_open_is_unknown_and_names_the_key(wire, answer):
    wire.answers['broker.place_order'] = answer
    with pytest.raises(bq.OrderStateUnknown) as caught:
        jq.order(CODE, 100, idempotency_key='k7')
    assert caught.value.idempotency_key == 'k7'


def test_errors_of_the_connection_come_through(wire):
    for error in (bq.OrderRejected('x'), bq.ConnectionLost('x'), bq.OrderStateUnknown('x', idempotency_key='k')):
        wire.answers['broker.place_order'] = error
        with pytest.raises(type(error)) as caught:
            jq.order(CODE, 100)
        assert caught.value is error


def test_a_legacy_answer_to_an_order_is_enough(wire):
    wire.answers['broker.place_order'] = {'order_id': 77, 'status': 'submitted', 'amount': 100, 'price': 10.5}
    placed = jq.get_broker_client().place_order(CODE, 'BUY', 100, 10.5)
    assert (placed.order_id, placed.amount, placed.order_price, placed.price) == ('77', 100, 10.5, 0.0)
    assert placed.is_buy is True and placed.add_time is None


def test_cancel_takes_ids_and_orders_and_is_true_only_when_cancelled(wire):
    first = jq.cancel_order(jq.RemoteOrder(order_row('5')))
    assert first and first['order_id'] == '5' and isinstance(first, dict) and json.loads(json.dumps(first)) == first
    assert jq.cancel_order(6)['order_id'] == '6'
    wire.answers['broker.cancel_order'] = {'dtype': 'dict', 'value': False, 'status': 'filled', 'order_id': '5'}
    assert not jq.cancel_order('5') and jq.cancel_order('5')['status'] == 'filled'
    assert not jq.CancelResult(value='yes', status='open')
    sent = len(wire.sent)
    for bad in (None, '', True, 1.5, object()):
        with pytest.raises(bq.BadRequest):
            jq.cancel_order(bad)
    assert len(wire.sent) == sent


def test_a_cancel_that_was_only_passed_on_is_not_true(wire):
    """bullet-trade 0.9 says value=True as soon as its broker took the request."""
    wire.answers['broker.cancel_order'] = {'value': True, 'status': 'open', 'timed_out': True, 'order_id': '5'}
    assert not jq.cancel_order('5')
    wire.answers['broker.cancel_order'] = {'value': True, 'status': 'cancelled', 'order_id': '5'}
    assert jq.cancel_order('5') and jq.cancel_order('5')['status'] == 'canceled'


def test_a_target_orders_nothing_beside_an_order_whose_cancel_was_refused(wire):
    """bullet-trade 0.10 gives that answer the status 'rejected', which an order that has ended bears, too."""
    refused = {'value': False, 'status': 'rejected', 'cancel_outcome': 'rejected', 'order_id': '5'}
    wire.answers.update({'broker.orders': [order_row('5')], 'broker.order_status': order_row('5'),
                         'broker.cancel_order': refused})
    with pytest.raises(bq.OrderStateUnknown):
        jq.order_target(CODE, 1000)
    assert wire.orders == []
    with pytest.raises(bq.OrderRejected) as caught:
        jq.cancel_order('5')
    assert caught.value.details['order_id'] == '5'


@pytest.mark.parametrize('answer', [None, [], {}, {'value': True}, {'status': 'submit_unknown'},
                                    {'value': True, 'status': 'canceled', 'order_id': 'another'},
                                    {'status': 'canceled', 'cancel_outcome': 'unknown'}, {'status': ['canceled']}])
def test_a_cancel_of_unknown_outcome_raises(wire, answer):
    wire.answers['broker.cancel_order'] = answer
    with pytest.raises(bq.OrderStateUnknown) as caught:
        jq.get_broker_client().cancel_order('5', idempotency_key='c1')
    assert caught.value.idempotency_key == 'c1'


# -- rows ----------------------------------------------------------------------------------------------------------
def test_an_order_as_an_object(wire):
    item = jq.RemoteOrder(order_row(last_snapshot={'a': 1}, timed_out=True, async_tracking=True, strategy_name='s'))
    assert (item.order_id, item.security, item.amount, item.filled, item.status) == ('7', CODE, 300, 100, 'open')
    assert (item.price, item.avg_cost, item.order_price, item.commission) == (10.25, 10.25, 10.5, 6.0)
    assert (item.actual_amount, item.actual_price, item.order_remark, item.strategy_name) == (300, 10.5, 'r', 's')
    assert item.timed_out and item.async_tracking and item.last_snapshot == {'a': 1} and not item.final
    assert item.add_time == datetime(2024, 1, 8, 10, 0) and item.add_time.tzinfo is None
    assert (item.is_buy, item.action, item.side) == (True, 'open', 'long')
    assert item.raw_response['order_id'] == '7'
    text = repr(item)
    assert text.startswith("RemoteOrder(order_id='7'") and '2024-01-08 10:00:00' in text and "'open'" in text


def test_rows_of_older_servers_are_read():
    item = jq.RemoteOrder({'order_id': 7, 'security': CODE, 'volume': 100, 'traded_volume': 50, 'state': 'filling',
                           'order_type': 24, 'order_time': '2024-01-08 10:00:00', 'remark': 'r', 'price': 9})
    assert (item.amount, item.filled, item.status, item.is_buy, item.action) == (100, 50, 'filling', False, 'close')
    assert item.add_time == datetime(2024, 1, 8, 10, 0) and item.order_remark == 'r' and item.order_price == 9
    fill = jq.RemoteTrade({'trade_no': 't', 'entrust_id': 7, 'security': CODE, 'volume': 5, 'price': 3.5,
                           'trade_time': 1704679200})
    assert (fill.trade_id, fill.order_id, fill.amount, fill.time) == ('t', '7', 5, datetime(2024, 1, 8, 10, 0))


def test_views_are_ordered_dictionaries_by_id(wire):
    wire.answers['broker.orders'] = [order_row('9'), order_row('8', 'filled'), order_row('7', 'submit_unknown')]
    wire.answers['broker.trades'] = [
        {'trade_id': 't2', 'order_id': '8', 'security': CODE, 'side': 'SELL', 'amount': 100, 'price': 10.25,
         'time': '2024-01-08 10:00:01', 'commission': 5.0, 'tax': 0.5}]
    assert isinstance(jq.get_orders(), OrderedDict) and list(jq.get_orders()) == ['9', '8', '7']
    assert list(jq.get_open_orders()) == ['9', '7']
    jq.get_orders(order_id=jq.RemoteOrder(order_row('9')), security=CODE, status='open', from_broker=True)
    assert wire.sent[-1] == ('broker.orders', {'order_id': '9', 'security': CODE, 'status': 'open',
                                               'from_broker': True})
    fill = jq.get_trades(order_id=8, security=CODE)['t2']
    assert wire.sent[-1] == ('broker.trades', {'order_id': '8', 'security': CODE})
    assert (fill.amount, fill.price, fill.commission, fill.tax, fill.is_buy) == (100, 10.25, 5.0, 0.5, False)
    assert fill.time == datetime(2024, 1, 8, 10, 0, 1) and 'RemoteTrade(' in repr(fill)
    assert jq.get_order_status('x') == {}


def test_money_and_positions_as_objects(wire):
    wire.answers['broker.positions'] = [position_row(amount=500, closeable=0)]
    money, (held,) = jq.get_account(), jq.get_positions()
    assert (money.available_cash, money.cash, money.total_value, money.portfolio_value) == (50000, 50000, 1e5, 1e5)
    assert (money.locked_cash, money.positions_value, money.transferable_cash) == (10, 49990, 40000)
    assert (held.amount, held.total_amount, held.available, held.closeable_amount, held.frozen) == (500, 500, 0, 0, 0)
    assert (held.avg_cost, held.price, held.value, held.market_value, held.name) == (9.5, 10, 5000, 5000, '平安银行')
    assert (held.side, held.pindex, held.sellable_amount) == ('long', 0, 0)
    assert 'closeable_amount=0' in repr(held) and 'total_value=100000.0' in repr(money)
    wire.answers['broker.account'] = ACCOUNT  # without the envelope
    assert jq.get_account().total_value == 100000.0


# -- data ----------------------------------------------------------------------------------------------------------
FRAME = {'dtype': 'dataframe', 'columns': ['index', 'close'], 'records': [['2024-01-05T00:00:00', 9.5]],
         'index_columns': ['index'], 'index_names': [None], 'index_type': 'DatetimeIndex'}


@pytest.mark.parametrize('args, how', [
    ((), {'start_date': '2024-01-02', 'end_date': date(2024, 1, 5)}),
    ((), {'start': '2024-01-02', 'end': date(2024, 1, 5)}), (('2024-01-02', date(2024, 1, 5)), {}),
    (('2024-01-02',), {'start': '2024-01-02', 'end': date(2024, 1, 5)})])
def test_get_price_takes_both_spellings_of_the_range(wire, args, how):
    wire.answers['data.history'] = FRAME
    jq.get_data_client().get_price(CODE, *args, frequency='1d', fields=('close',), fq=None, **how)
    payload = wire.sent[0][1]
    assert (payload['start'], payload['end']) == ('2024-01-02', date(2024, 1, 5))
    asked = [payload[name] for name in ('frequency', 'fields', 'fq')]
    assert asked == ['1d', ['close'], None] and payload.get('count') is None


def test_ranges_that_contradict_each_other_are_refused(wire):
    client = jq.get_data_client()
    for call in (client.get_price, lambda code, **how: client.get_trade_days(**how)):
        with pytest.raises(bq.BadRequest):
            call(CODE, start='2024-01-02', start_date='2024-01-03')
    assert wire.sent == []


def test_trade_days_and_prices(wire):
    wire.answers['data.trade_days'] = {'dtype': 'list', 'values': ['2024-01-04', '2024-01-05']}
    client = jq.get_data_client()
    assert client.get_trade_days(end='2024-01-05', count=2) == [date(2024, 1, 4), date(2024, 1, 5)]
    assert wire.sent[0] == ('data.trade_days', {'start': None, 'end': '2024-01-05', 'count': 2})
    assert client.get_last_price(CODE) == 10.0 and client.get_snapshot(CODE)['sid'] == CODE


# -- lines ---------------------------------------------------------------------------------------------------------
def test_one_line_for_each_write(wire, capsys):
    jq.order(CODE, 250, 10.5)
    jq.cancel_order('o1')
    jq.get_account()
    placed, cancelled = capsys.readouterr().out.splitlines()
    assert '买入' in placed and CODE in placed and '200 股' in placed and '250' in placed and 'o1' in placed
    assert '撤单' in cancelled and '已撤' in cancelled


def test_no_line_without_debug(capsys):
    client = jq.RemoteBrokerClient(Recorder(), None, debug=False)
    client.order(CODE, 100), client.order(CODE, 1), client.cancel_order('o1')
    assert capsys.readouterr().out == ''


def test_a_console_that_cannot_show_it_does_not_lose_the_order(wire, monkeypatch):
    class Console:
        encoding, text = 'ascii', ''

        def write(self, text):
            self.text += text.encode('ascii').decode('ascii')
    console = Console()
    monkeypatch.setattr(jq.sys, 'stdout', console)
    assert jq.order(CODE, 100) == 'o1' and CODE in console.text
    monkeypatch.setattr(Console, 'write', lambda self, text: [][0:0].remove(text))
    assert jq.order(CODE, 100) == 'o2'
    monkeypatch.setattr(jq.sys, 'stdout', None)
    assert jq.order(CODE, 100) == 'o3'


@pytest.mark.parametrize('call', [
    lambda: jq.order_target(CODE, 700), lambda: jq.order_target(CODE, 100), lambda: jq.order_target_value(CODE, 7000),
    lambda: jq.order_target_percent(CODE, 0.05), lambda: jq.order(CODE, 100), lambda: jq.order_value(CODE, 5000)])
def test_nothing_is_printed_before_the_order_is_answered(wire, monkeypatch, call):
    """A console that stands still would hold it up between the cancels and the order."""
    wire.answers['broker.positions'] = [position_row(amount=300, closeable=100)]
    wire.answers['broker.orders'] = [order_row('5')]
    printed = []

    class Console:
        encoding = 'utf-8'

        def write(self, text):
            printed.append((text, wire.sent[-1][0]))
    monkeypatch.setattr(jq.sys, 'stdout', Console())
    call()
    assert any('下单' in text for text, _ in printed) and {last for _, last in printed} == {'broker.place_order'}


def test_a_forged_status_is_shown_not_obeyed(wire, capsys):
    wire.answers['broker.cancel_order'] = {'status': 'open\n[下单] 假', 'value': False}
    jq.cancel_order('5')
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_star_import_gives_what_scripts_use():
    names = {}
    exec('from jq_helper import *', names)
    assert {'configure', 'order', 'order_value', 'order_target', 'order_target_value', 'order_percent', 'cancel_order',
            'order_target_percent', 'get_account', 'MarketOrderStyle', 'LimitOrderStyle', 'OrderRejected',
            'OrderStateUnknown', 'get_data_client', 'get_broker_client'} <= set(names)
    assert all(hasattr(jq, name) for name in jq.__all__) and len(jq.__all__) == len(set(jq.__all__))


# -- answers that make no sense ----------------------------------------------------------------------------------------
ODD = [None, True, 0, -1, 1.5, 1e308, 2 ** 70, '', 'x', [], {}, [[]], {'a': 1}, float('nan'), float('inf')]
READS = {
    'account': lambda: jq.get_account(), 'positions': lambda: jq.get_positions(), 'orders': lambda: jq.get_orders(),
    'open': lambda: jq.get_open_orders(), 'trades': lambda: jq.get_trades(), 'status': lambda: jq.get_order_status('5'),
    'last': lambda: jq.get_data_client().get_last_price(CODE), 'days': lambda: jq.get_data_client().get_trade_days()}
ACTIONS = {'account': 'broker.account', 'positions': 'broker.positions', 'orders': 'broker.orders',
           'open': 'broker.orders', 'trades': 'broker.trades', 'status': 'broker.order_status',
           'last': 'data.snapshot', 'days': 'data.trade_days'}


@pytest.mark.parametrize('name', sorted(READS))
def test_whatever_a_server_answers_is_an_answer_or_an_error_of_ours(wire, name):
    rows = [position_row(), order_row(), ACCOUNT, {'values': ['2024-01-05']}, {'last_price': 1.0}]
    answers = ODD + [[item] for item in ODD] + [{'value': item} for item in ODD]
    answers += [dict(row, **{field: item}) for row in rows for field in row for item in ODD]
    answers += [[row] for row in answers if isinstance(row, dict)]
    for answer in answers:
        wire.answers[ACTIONS[name]] = answer
        try:
            READS[name]()
        except bq.BulletError as error:
            assert error.message, answer


@pytest.mark.parametrize('order', [lambda: jq.order(CODE, 100, idempotency_key='k'),
                                   lambda: jq.get_broker_client().cancel_order('5', idempotency_key='k')])
def test_after_a_write_an_answer_that_makes_no_sense_is_unknown(wire, order):
    row = order_row('5', 'canceled', filled=100, value=True)
    answers = ODD + [dict(row, **{field: item}) for field in row for item in ODD]
    for answer in answers:
        wire.answers.update({'broker.place_order': answer, 'broker.cancel_order': answer})
        try:
            result = order()
        except bq.OrderStateUnknown as error:
            assert error.idempotency_key == 'k', answer
        except bq.OrderRejected:
            assert answer['filled'] == 0, answer
        else:
            assert isinstance(result, str) and not result.startswith('-') or (
                isinstance(result, dict) and (not result or result['status'] == 'canceled')), answer
