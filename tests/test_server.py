"""The server over real sockets: handshake, requests of every action, answers that overtake, limits, time limits."""
import contextlib
import logging
import math
import queue
import struct
import threading
import time
from datetime import datetime

import pytest

import bullet_qmt as bq
import jq_helper

from .base import TOKEN, ask_raw, login_raw, long_client, raw_socket, read_raw, send_raw, serving
from .fakes import FakeClock
from .resources import becomes

CODE = '000001.XSHE'


@pytest.fixture(scope='module')
def server():
    with serving() as server:
        yield server


@contextlib.contextmanager
def session(server, **login):
    with raw_socket(server) as sock:
        assert login_raw(sock, **login)['type'] == 'handshake_ack'
        yield sock


def ask_error(sock, action, payload=None, **more):
    answer = ask_raw(sock, action, payload, **more)
    assert answer['type'] == 'error', answer
    return answer


def send_request(sock, id, action, payload=None):
    send_raw(sock, {'type': 'request', 'id': id, 'action': action, 'payload': payload or {}})


def read_until(sock, id):
    """The answer with that id, and all that came before it."""
    seen = []
    while True:
        frame = read_raw(sock)
        assert frame is not None, 'connection ended, %r seen' % seen
        if frame.get('id') == id:
            return frame, seen
        seen.append(frame)


class Blocker:
    """A handler of an action that tells when it was entered and waits to be let go."""

    def __init__(self, answer=None, inner=None):
        self.answer, self.inner = answer or {}, inner
        self.entered, self.go, self.left = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)

    def __call__(self, service, payload, session):
        self.entered.release()
        assert self.go.wait(30)
        try:
            return self.inner(service, payload, session) if self.inner else self.answer
        finally:
            self.left.release()

    def wait_entered(self, times=1):
        for _ in range(times):
            assert self.entered.acquire(timeout=20)


class Watched:
    """What the timekeeper knows of a job."""

    def __init__(self):
        self.answered, self.moved = False, time.monotonic()

    def wait_s(self):
        return 0.0


@contextlib.contextmanager
def blocked(monkeypatch, name, keep=False, lane=None):
    """Replaces the handler of the action; lets it go at the end, whatever happens."""
    action = bq.ACTIONS[name]
    blocker = Blocker(inner=action.run if keep else None)
    monkeypatch.setitem(bq.ACTIONS, name, action._replace(run=blocker, lane=lane or action.lane, quick=bq._never))
    try:
        yield blocker
    finally:
        blocker.go.set()


def answering(monkeypatch, name, handler):
    monkeypatch.setitem(bq.ACTIONS, name, bq.ACTIONS[name]._replace(run=handler))


def order_payload(**more):
    return dict({'security': CODE, 'side': 'BUY', 'amount': 100, 'style': {'type': 'market'}}, **more)


# -- handshake -----------------------------------------------------------------------------------------------
class TestHandshake:
    def test_fields_of_the_ack(self, server):
        with raw_socket(server) as sock:
            ack = login_raw(sock)
        assert ack['type'] == 'handshake_ack' and ack['protocol'] == 1 and ack['keepalive'] == 20
        assert ack['features'] == ['data', 'broker']
        assert isinstance(ack['session_id'], str) and ack['session_id']
        assert ack['journal_id'] == server.service.desk.journal.id

    def test_sessions_have_ids_of_their_own(self, server):
        with raw_socket(server) as one, raw_socket(server) as two:
            assert login_raw(one)['session_id'] != login_raw(two)['session_id']

    @pytest.mark.parametrize('features', [[], ['tick', 'order_stream'], ['binary', 'zlib', 'other'], [1, None, {}]])
    def test_no_extension_is_promised_whatever_is_asked(self, server, features):
        with raw_socket(server) as sock:
            assert login_raw(sock, features=features)['features'] == ['data', 'broker']

    @pytest.mark.parametrize('features', [None, 'tick', 7, {'tick': 1}])
    def test_features_of_another_type_are_none(self, server, features):
        with raw_socket(server) as sock:
            send_raw(sock, {'type': 'handshake', 'token': TOKEN, 'protocol': 1, 'features': features})
            assert read_raw(sock)['type'] == 'handshake_ack'

    def test_a_handshake_needs_only_the_token(self, server):
        with raw_socket(server) as sock:
            send_raw(sock, {'type': 'handshake', 'token': TOKEN})
            assert read_raw(sock)['type'] == 'handshake_ack'

    def test_a_switched_off_service_is_not_on_offer(self):
        with serving(enable_broker=False) as server, raw_socket(server) as sock:
            assert login_raw(sock)['features'] == ['data']

    @pytest.mark.parametrize('token', ['wrong', '', TOKEN + 'x', TOKEN[:-1], TOKEN.upper(), None, 5, True, [TOKEN],
                                       {'token': TOKEN}, '口令', '\ud800', TOKEN + '\x00', 'x' * 3000])
    def test_a_wrong_token_is_refused_and_the_connection_closed(self, monkeypatch, token):
        with serving() as server, raw_socket(server) as sock:
            answer = login_raw(sock, token=token)
            assert answer['type'] == 'error' and answer['code'] == 'AUTH_FAILED' and not answer['retryable']
            assert answer['message'] and TOKEN not in str(answer)
            assert read_raw(sock) is None

    def test_a_missing_token_is_refused(self):
        with serving() as server, raw_socket(server) as sock:
            send_raw(sock, {'type': 'handshake', 'protocol': 1})
            assert read_raw(sock)['code'] == 'AUTH_FAILED'
            assert read_raw(sock) is None

    def test_a_token_of_chinese_characters_works(self):
        with serving(token='口令口令口令口令😀') as server:
            with raw_socket(server) as sock:
                assert login_raw(sock, token='口令口令口令口令😀')['type'] == 'handshake_ack'
            with raw_socket(server) as sock:
                assert login_raw(sock, token='口令口令口令口令')['code'] == 'AUTH_FAILED'

    @pytest.mark.parametrize('frame', [{'type': 'request', 'id': 1, 'action': 'admin.health'}, {'type': 'ping'},
                                       {'token': TOKEN}, {'type': 'handshake_ack'}, {'type': None, 'token': TOKEN}, {}])
    def test_another_first_frame_ends_the_connection_without_a_word(self, server, frame):
        with raw_socket(server) as sock:
            send_raw(sock, frame)
            assert read_raw(sock) is None

    def test_an_account_of_the_login_that_does_not_exist_is_refused(self, server):
        with raw_socket(server) as sock:
            assert login_raw(sock, account_key='nobody')['code'] == 'ACCOUNT_NOT_FOUND'
            assert read_raw(sock) is None

    def test_the_account_of_the_login_stands_in_for_one_not_named(self):
        accounts = (bq.AccountSpec('main', '1', 'stock', None, None, True),
                    bq.AccountSpec('hedge', '2', 'stock', None, None, True))
        with serving(accounts=accounts) as server, session(server, account_key='hedge') as sock:
            assert ask_raw(sock, 'broker.account')['payload']['value']['account_id'] == '2'
            named = ask_raw(sock, 'broker.account', {'account_key': 'main', 'sub_account_id': None})
            assert named['payload']['value']['account_id'] == '1'

    def test_a_deeply_nested_account_of_the_login_costs_only_that_connection(self, server, caplog):
        nested = b'[' * 900 + b']' * 900
        with raw_socket(server) as sock:
            send_raw(sock, b'{"type":"handshake","token":"%s","account_key":%s}' % (TOKEN.encode(), nested))
            assert read_raw(sock)['code'] == 'PROTOCOL_ERROR'
            assert read_raw(sock) is None


# -- every action --------------------------------------------------------------------------------------------
ORDER_ROW = {'order_id', 'security', 'side', 'is_buy', 'amount', 'filled', 'traded_volume', 'remaining', 'price',
             'order_price', 'avg_price', 'traded_price', 'deal_balance', 'status', 'raw_status', 'style', 'style_type',
             'order_type', 'price_type', 'order_remark', 'strategy_name', 'order_sysid', 'order_time', 'status_msg',
             'commission', 'tax'}
POSITION_ROW = {'security', 'name', 'amount', 'available_amount', 'closeable_amount', 'can_use_volume', 'frozen_volume',
                'avg_cost', 'current_price', 'last_price', 'market_value', 'position_value'}
TRADE_ROW = {'trade_id', 'order_id', 'security', 'amount', 'price', 'traded_price', 'trade_price', 'time', 'commission',
             'commission_fee', 'tax', 'deal_balance'}
ACCOUNT_ROW = {'account_id', 'account_type', 'available_cash', 'transferable_cash', 'frozen_cash', 'market_value',
               'total_value', 'total_asset', 'positions'}


def is_dict_of(names):
    return lambda payload: payload['dtype'] == 'dict' and names <= set(payload['value'])


def is_table(*index):
    def check(payload):
        names = payload['columns']
        return (payload['dtype'] == 'dataframe' and payload.get('index_columns', []) == list(index)
                and payload['records'] and all(len(row) == len(names) for row in payload['records']))
    return check


SHAPES = [
    ('admin.health', {}, is_dict_of({'process_alive', 'uptime_seconds', 'sessions', 'accounts', 'features'})),
    ('admin.print_account', {'limit': 3}, lambda payload: payload['dtype'] == 'text' and '总资产' in payload['value']
        and payload['account_key'] == 'default'),
    ('data.history', {'security': CODE, 'count': 3}, is_table('index')),
    ('data.history', {'security': [CODE, '600000.XSHG'], 'count': 3, 'panel': False}, is_table()),
    ('data.snapshot', {'security': CODE}, lambda payload: {'sid', 'last_price', 'dt'} <= set(payload)),
    ('data.current_tick', {'security': CODE}, lambda payload: payload['sid'] == CODE and payload['last_price'] > 0),
    ('data.live_current', {'security': CODE},
     lambda payload: {'last_price', 'high_limit', 'low_limit', 'paused'} <= set(payload)),
    ('data.trade_days', {'count': 2}, lambda payload: payload['dtype'] == 'list' and len(payload['values']) == 2
        and all(len(day) == 10 for day in payload['values'])),
    ('data.security_info', {'security': CODE}, lambda payload: is_dict_of(
        {'code', 'display_name', 'name', 'type', 'subtype', 'qmt_code', 'start_date', 'end_date', 'parent'})(payload)
        and dict(payload['value'], dtype='dict', value=payload['value']) == payload),
    ('data.ensure_cache', {'security': CODE, 'count': 3, 'auto_download': True}, is_dict_of(set())),
    ('data.get_all_securities', {'types': ['stock', 'etf']}, is_table('code')),
    ('data.get_index_stocks', {'index_symbol': '000300.XSHG'}, lambda payload: payload['values']),
    ('data.get_split_dividend', {'security': CODE, 'start': '2015-01-01'}, lambda payload: isinstance(
        payload['events'], list)),
    ('data.subscribe', {'securities': [CODE]}, lambda payload: payload == {'count': 1}),
    ('data.unsubscribe', {'securities': [CODE]}, lambda payload: payload == {'count': 0, 'removed': 0}),
    ('data.unsubscribe_all', {}, lambda payload: payload == {'count': 0, 'removed': 0}),
    ('broker.account', {}, is_dict_of(ACCOUNT_ROW)),
    ('broker.subscribe_events', {}, lambda payload: set(payload) == {'seq', 'gap'} and payload['seq'] >= 0),
    ('broker.unsubscribe_events', {}, lambda payload: payload == {}),
]


@pytest.mark.parametrize('action, payload, is_right', SHAPES)
def test_the_shape_of_each_answer(server, action, payload, is_right):
    with session(server) as sock:
        send_request(sock, 'x', action, payload)
        answer, _ = read_until(sock, 'x')
        assert answer['type'] == 'response' and set(answer) == {'type', 'id', 'payload'}
        assert is_right(answer['payload']), answer['payload']


def test_a_round_of_trading_has_the_shapes_of_the_protocol(server):
    with session(server) as sock:
        placed = ask_raw(sock, 'broker.place_order', order_payload(
            wait_timeout=20, idempotency_key='shape-1', order_remark='备注'))['payload']
        assert {'order_id', 'status', 'amount', 'price', 'order_price', 'timed_out', 'async_tracking', 'last_snapshot',
                'idempotency_key'} <= set(placed)
        assert placed['status'] == 'filled' and placed['idempotency_key'] == 'shape-1'
        order_id = placed['order_id']
        row = ask_raw(sock, 'broker.order_status', {'order_id': order_id})['payload']
        assert ORDER_ROW <= set(row) and row['order_remark'] == '备注' and row['raw_status'] == 56
        assert ask_raw(sock, 'broker.orders', {'order_id': order_id})['payload'] == [row]
        trades = ask_raw(sock, 'broker.trades', {'order_id': order_id})['payload']
        assert trades and all(TRADE_ROW <= set(trade) for trade in trades)
        positions = ask_raw(sock, 'broker.positions')['payload']
        assert [p['amount'] for p in positions if p['security'] == CODE and POSITION_ROW <= set(p)] == [100]
        assert ask_raw(sock, 'broker.order_status', {'order_id': 'none'})['payload'] == {}


def test_a_cancel_and_its_resolution(server):
    with session(server) as sock:
        low = ask_raw(sock, 'data.live_current', {'security': CODE})['payload']['low_limit']
        placed = ask_raw(sock, 'broker.place_order', order_payload(style={'type': 'limit', 'price': low}))['payload']
        request = {'order_id': placed['order_id'], 'idempotency_key': 'cancel-1'}
        answer = ask_raw(sock, 'broker.cancel_order', request)['payload']
        assert answer['dtype'] == 'dict' and answer['value'] is True and answer['status'] == 'canceled'
        assert answer['raw_status'] == 54 and answer['timed_out'] is False and ORDER_ROW <= set(answer['last_snapshot'])
        question = dict(idempotency_key='cancel-1', write_action='broker.cancel_order', request_payload=request)
        resolved = ask_raw(sock, 'broker.resolve_submission', question)['payload']
        assert resolved['submission_state'] == 'accepted' and resolved['status'] == 'canceled'
        assert resolved['order_id'] == resolved['resolved_result']['order_id'] == placed['order_id']


def test_no_action_is_left_out_of_these_shapes():
    tested = {action for action, _, _ in SHAPES} | {
        'broker.place_order', 'broker.order_status', 'broker.orders', 'broker.trades', 'broker.positions',
        'broker.cancel_order', 'broker.resolve_submission'}
    assert tested == set(bq.ACTIONS)


def test_a_table_for_a_client_without_features_names_every_column(server):
    ask = {'security': [CODE, '600000.XSHG'], 'count': 2, 'fields': ['open', 'close']}
    with session(server, features=[]) as sock:
        payload = ask_raw(sock, 'data.history', ask)['payload']
    assert len(payload['column_tuples']) == len(payload['columns']) == 5 and 'index_columns' not in payload


# -- requests that are wrong ---------------------------------------------------------------------------------
@pytest.mark.parametrize('action', ['data.nothing', '', None, 7, ['data.history'], {'a': 1}, 'DATA.HISTORY', 'run'])
def test_an_unknown_action_is_an_error_and_the_connection_lives(server, action):
    with session(server) as sock:
        error = ask_error(sock, action)
        assert error['code'] == 'UNKNOWN_ACTION' and error['broker_called'] is False and error['id'] == '1'
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


@pytest.mark.parametrize('off, refused, allowed', [
    ('enable_data', 'data.snapshot', 'broker.account'), ('enable_broker', 'broker.account', 'data.snapshot'),
    ('enable_broker', 'broker.place_order', 'data.snapshot'),
    ('enable_broker', 'admin.print_account', 'data.snapshot')])
def test_a_switched_off_scope_is_refused(off, refused, allowed):
    with serving(**{off: False}) as server, session(server) as sock:
        error = ask_error(sock, refused, {'security': CODE})
        assert error['code'] == 'SERVICE_DISABLED' and error['broker_called'] is False
        assert ask_raw(sock, allowed, {'security': CODE})['type'] == 'response'
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


@pytest.mark.parametrize('payload', [[], [1], 'text', 5, True, 0])
@pytest.mark.parametrize('action', ['admin.health', 'data.snapshot', 'broker.place_order'])
def test_a_payload_that_is_no_object_is_an_error(server, action, payload):
    with session(server) as sock:
        send_raw(sock, {'type': 'request', 'id': 'p', 'action': action, 'payload': payload})
        answer = read_raw(sock)
        assert (answer['type'], answer['code'], answer['id']) == ('error', 'BAD_REQUEST', 'p')
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


def test_a_payload_may_be_missing_or_null_and_so_may_the_type(server):
    with session(server) as sock:
        send_raw(sock, {'type': 'request', 'id': 1, 'action': 'admin.health'})
        assert read_raw(sock)['type'] == 'response'
        send_raw(sock, {'id': 2, 'action': 'admin.health', 'payload': None})
        assert read_raw(sock)['id'] == 2


@pytest.mark.parametrize('sent', [{'a': [1]}, [1, 2], 'x' * 129, float('inf')])
def test_what_could_not_be_answered_by_its_id_is_not_done(server, sent):
    with session(server) as sock:
        before = ask_raw(sock, 'broker.orders')['payload']
        send_raw(sock, {'type': 'request', 'id': sent, 'action': 'broker.place_order', 'payload': {
            'security': '000001.XSHE', 'side': 'BUY', 'amount': 100, 'style': {'type': 'market'}}})
        answer = read_raw(sock)
        assert (answer['code'], answer.get('id'), answer['broker_called']) == ('BAD_REQUEST', None, False)
        assert ask_raw(sock, 'broker.orders')['payload'] == before


@pytest.mark.parametrize('sent, returned', [
    ('text', 'text'), ('编号', '编号'), (7, 7), (1.5, 1.5), (10 ** 29, 10 ** 29), (None, None), ({'a': [1]}, None),
    ([1, 2], None), ('x' * 128, 'x' * 128), ('x' * 129, None), ('\ud800', '\ud800'), ('a\nb', 'a\nb')])
@pytest.mark.parametrize('frame', [{'action': 'admin.health'}, {'action': 'broker.account'}, {'action': 'none'},
                                   {'type': 'ping'}, {'type': 'strange'}])
def test_an_id_comes_back_as_it_was_unless_it_is_no_plain_value(server, frame, sent, returned):
    with session(server) as sock:
        send_raw(sock, dict(frame, id=sent))
        assert read_raw(sock)['id'] == returned


def test_a_request_without_id_is_answered(server):
    with session(server) as sock:
        send_raw(sock, {'type': 'request', 'action': 'admin.health'})
        answer = read_raw(sock)
        assert answer['type'] == 'response' and answer['id'] is None


@pytest.mark.parametrize('kind', ['event', 'response', 'handshake', 'handshake_ack', 7, [1], None, {}])
def test_a_frame_of_another_type_is_an_error_and_the_connection_lives(server, kind):
    with session(server) as sock:
        send_raw(sock, {'type': kind, 'id': 'k', 'token': 'wrong'})
        answer = read_raw(sock)
        assert (answer['type'], answer['code'], answer['id']) == ('error', 'UNSUPPORTED', 'k')
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


def test_a_failing_handler_is_an_internal_error_and_the_connection_lives(server, monkeypatch):
    answering(monkeypatch, 'data.snapshot', lambda *_: 1 // 0)
    with session(server) as sock:
        error = ask_error(sock, 'data.snapshot')
        assert error['code'] == 'INTERNAL_ERROR' and error['broker_called'] is False
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


def test_a_failing_order_may_have_reached_the_broker(server, monkeypatch):
    answering(monkeypatch, 'broker.place_order', lambda *_: 1 // 0)
    with session(server) as sock:
        error = ask_error(sock, 'broker.place_order')
        assert error['code'] == 'INTERNAL_ERROR' and 'broker_called' not in error


# -- answers that overtake -----------------------------------------------------------------------------------
def test_a_slow_history_holds_up_neither_ping_nor_order_behind_it(server, monkeypatch):
    with blocked(monkeypatch, 'data.history') as history, session(server) as sock:
        send_request(sock, 'slow', 'data.history')
        history.wait_entered()
        send_raw(sock, {'type': 'ping', 'id': 'p'})
        assert read_raw(sock) == {'type': 'pong', 'id': 'p'}
        placed = ask_raw(sock, 'broker.place_order', order_payload(wait_timeout=20), id='order')
        assert placed['id'] == 'order' and placed['payload']['status'] == 'filled'
        history.go.set()
        assert read_raw(sock) == {'type': 'response', 'id': 'slow', 'payload': {}}


def test_every_data_worker_busy_holds_up_no_order(server, monkeypatch):
    share = {pool[0]: pool[3] for pool in bq.BulletServer.POOLS}['history']
    with blocked(monkeypatch, 'data.history') as history, session(server) as sock:
        for number in range(share + 3):
            send_request(sock, number, 'data.history')
        history.wait_entered(share)
        assert ask_raw(sock, 'broker.account', id='account')['id'] == 'account'
        history.go.set()
        assert sorted(read_raw(sock)['id'] for _ in range(share + 3)) == list(range(share + 3))


def test_one_session_does_not_hold_all_data_workers(server, monkeypatch):
    with blocked(monkeypatch, 'data.history') as history, session(server) as greedy, session(server) as modest:
        for number in range(30):
            send_request(greedy, number, 'data.history')
        assert ask_raw(modest, 'data.snapshot', {'security': CODE})['type'] == 'response'
        history.go.set()
        assert sorted(read_raw(greedy)['id'] for _ in range(30)) == list(range(30))


@pytest.mark.parametrize('end', ['hangs up', 'too late'])
def test_a_history_that_nobody_waits_for_any_more_is_not_gone_on_with(monkeypatch, end):
    with serving(request_timeout=0.2 if end == 'too late' else 60.0) as server:
        data, seen, go = server.service.backend.data, queue.Queue(), threading.Event()
        series = data._series
        monkeypatch.setattr(data, '_series', lambda code, query: (
            seen.put(code), go.wait(20), series(code, query))[2])
        with session(server) as sock:
            send_request(sock, 'h', 'data.history', {'security': ['000001.XSHE', '000002.XSHE', '600000.XSHG'],
                                                     'count': 1, 'panel': False})
            assert seen.get(timeout=20) == '000001.XSHE'
            if end == 'too late':
                assert read_raw(sock)['code'] == 'REQUEST_TIMEOUT'
        assert end == 'too late' or becomes(lambda: not server._sessions)
        go.set()
        assert server._pools['history'].close(20) and seen.empty()


def test_a_request_has_a_limit_of_its_own(server):
    with session(server) as sock:
        sock.sendall(struct.pack('>I', bq.REQUEST_LIMIT + 1))
        assert read_raw(sock)['code'] == 'FRAME_TOO_LARGE' and read_raw(sock) is None


# -- a login for a sub-account --------------------------------------------------------------------------------
def test_no_payload_leaves_the_sub_account_of_the_login():
    accounts = tuple(bq.AccountSpec(key, key * 8, 'stock', None, None, True) for key in ('1', '2'))
    subs = (bq.SubAccountSpec('small', '1', 100.0), bq.SubAccountSpec('free', '1', None))
    with serving(accounts=accounts, sub_accounts=subs) as server, raw_socket(server) as sock:
        assert login_raw(sock, account_key='1', sub_account_id='small')['type'] == 'handshake_ack'
        for named in ({}, {'account_key': '1'}, {'sub_account_id': 'small'}, {'sub_account_id': 'small@1'},
                      {'account_key': None, 'sub_account_id': None}):
            error = ask_error(sock, 'broker.place_order', order_payload(**named))
            assert error['code'] == 'ORDER_REJECTED' and 'small' in error['message'], named
        for named in ({'account_key': '2'}, {'sub_account_id': 'free'}, {'sub_account_id': 'free@1'},
                      {'account_key': '2', 'sub_account_id': 'small'}):
            assert ask_error(sock, 'broker.place_order', order_payload(**named))['code'] == 'ACCOUNT_NOT_FOUND', named
            assert ask_error(sock, 'broker.positions', named)['code'] == 'ACCOUNT_NOT_FOUND', named


# -- limits --------------------------------------------------------------------------------------------------
def test_requests_in_flight_of_one_connection_are_limited(server, monkeypatch):
    monkeypatch.setattr(bq, 'IN_FLIGHT_LIMIT', 3)
    with blocked(monkeypatch, 'data.history') as history, session(server) as sock, session(server) as other:
        for number in range(3):
            send_request(sock, number, 'data.history')
        error = ask_error(sock, 'data.trade_days', id='one too many')
        assert error['code'] == 'SERVER_BUSY' and error['retryable'] and error['retry_after_s'] > 0
        assert error['broker_called'] is False
        assert ask_raw(sock, 'admin.health', id='h')['id'] == 'h', 'what cannot block is not counted'
        assert ask_raw(other, 'broker.account')['type'] == 'response', 'others have a count of their own'
        history.go.set()
        assert sorted(read_raw(sock)['id'] for _ in range(3)) == [0, 1, 2]
        assert ask_raw(sock, 'broker.account')['type'] == 'response', 'places are given back'


def test_orders_that_wait_keep_no_cancel_and_no_question_about_them_out(server, monkeypatch):
    """Neither by the places of the session nor by the workers that it may hold."""
    monkeypatch.setattr(bq, 'IN_FLIGHT_LIMIT', 3)
    with blocked(monkeypatch, 'broker.place_order') as place, session(server) as sock:
        for number in range(3):
            send_request(sock, number, 'broker.place_order', {'wait_timeout': 600})
        assert ask_error(sock, 'data.trade_days', id='full')['code'] == 'SERVER_BUSY'
        assert ask_error(sock, 'broker.cancel_order', {'order_id': '99'}, id='c')['code'] == 'ORDER_NOT_FOUND'
        answer = ask_raw(sock, 'broker.resolve_submission', {'idempotency_key': 'k'}, id='r')
        assert answer['payload']['submission_state'] == 'submit_unknown'
        place.go.set()
        assert sorted(read_raw(sock)['id'] for _ in range(3)) == [0, 1, 2]


def test_cancels_that_wait_for_their_outcome_keep_no_other_cancel_out(server, monkeypatch):
    """Two sessions with a hundred each, none of them confirmed: all were sent, and so is a third session's."""
    sent, broker = [], server.service.desk.accounts.brokers['default']
    monkeypatch.setattr(broker, 'order', lambda order_id: bq.Order(order_id=order_id, status='open', security=CODE))
    monkeypatch.setattr(broker, 'cancel', lambda order_id, deadline_s=None: sent.append(order_id))
    with session(server) as first, session(server) as second, session(server) as third:
        for number in range(200):
            send_request(second if number % 2 else first, number, 'broker.cancel_order',
                         {'order_id': 'w%d' % number, 'wait_timeout': 600})
        assert becomes(lambda: len(sent) == 200)
        answer = ask_raw(third, 'broker.cancel_order', {'order_id': 'own', 'wait_timeout': 0})
        assert answer['payload']['timed_out'] is True and sent[200:] == ['own']
        for number in range(200):
            server.service.desk._watch.notice('default', bq.Order(order_id='w%d' % number, status='canceled'))
        answers = [read_raw(sock) for sock in (first, second) for _ in range(100)]
        assert sorted(answer['id'] for answer in answers) == list(range(200))
        assert all(answer['payload']['value'] is True for answer in answers)


def test_cancels_beyond_what_may_wait_are_sent_and_answered_at_once(server, monkeypatch):
    """Each wait holds a worker; the threads have an end."""
    sent, broker = [], server.service.desk.accounts.brokers['default']
    monkeypatch.setattr(bq.OrderWatch, 'CANCEL_LIMIT', 0)
    monkeypatch.setattr(broker, 'order', lambda order_id: bq.Order(order_id=order_id, status='open', security=CODE))
    monkeypatch.setattr(broker, 'cancel', lambda order_id, deadline_s=None: sent.append(order_id))
    with session(server) as sock:
        answer = ask_raw(sock, 'broker.cancel_order', {'order_id': 'w', 'wait_timeout': 600})
        assert answer['payload']['timed_out'] is True and sent == ['w']


def many_orders(server, monkeypatch, count=100000):
    """The stub's orders, one in a thousand open, and half as many more trades."""
    stub, moment = server.service.desk.accounts.brokers['default'], datetime(2024, 5, 15, 10, 0, 1)
    orders = [bq.Order(order_id=str(number), security=CODE, amount=100, filled=number % 3, order_price=10.5,
                       time=moment, order_remark='手工 %d' % number, status='canceled' if number % 1000 else 'open')
              for number in range(count)]
    trades = [bq.Trade(trade_id='t%d' % number, order_id=str(number), security=CODE, amount=100, price=10.5,
                       time=moment) for number in range(count * 3 // 2)]
    monkeypatch.setattr(stub, 'orders', lambda: orders)
    monkeypatch.setattr(stub, 'trades', lambda: trades)
    return orders, trades


def test_a_hundred_thousand_orders_and_trades_are_listed(server, monkeypatch):
    """A frame of JSON holds some 75,000: old clients get a part or a clear error, the product's own all of them."""
    orders, trades = many_orders(server, monkeypatch)
    with session(server) as sock, long_client(server) as client:
        broker = bq.RemoteQmtBroker(connection=client)
        listed = broker.get_orders()
        assert listed == [order.to_wire() for order in orders]
        assert broker.get_trades() == [trade.to_wire() for trade in trades]
        assert broker.get_open_orders() == listed[::1000] == broker.get_orders(status='open')
        for action in ('broker.orders', 'broker.trades'):
            error = ask_error(sock, action)
            assert error['code'] == 'FRAME_TOO_LARGE' and 'security' in error['hint']
        assert ask_raw(sock, 'broker.orders', {'status': 'open'})['payload'] == listed[::1000]
        assert ask_raw(sock, 'broker.orders', {'open': True})['payload'] == listed[::1000]
        assert ask_error(sock, 'broker.orders', {'open': 'yes'})['code'] == 'BAD_REQUEST'


def test_scripts_and_commands_list_more_orders_than_a_frame_of_json_holds(server, monkeypatch, capsys):
    """Their connections know nothing of the server before the first answer."""
    orders, trades = many_orders(server, monkeypatch, 3000)
    monkeypatch.setattr(bq, 'FRAME_LIMIT', 500000)
    for asked, expected in (('get_orders', orders), ('get_open_orders', orders[::1000])):
        with contextlib.closing(bq.ShortConnection(*server.address[:2], token=TOKEN)) as connection:
            client = jq_helper.RemoteBrokerClient(connection, None, debug=False)
            found = getattr(client, asked)()
            assert list(found) == [order.order_id for order in expected]
            assert found['2000'].status == 'open' and found['2000'].amount == 100
            assert not client.get_open_orders('000002.XSHE') and len(client.get_open_orders(CODE)) == 3
    with contextlib.closing(bq.ShortConnection(*server.address[:2], token=TOKEN)) as connection:
        assert len(jq_helper.RemoteBrokerClient(connection, None, debug=False).get_trades()) == len(trades)
    way = ['--host', server.address[0], '--port', str(server.address[1]), '--token', TOKEN]
    shown = []
    for command in (['orders', '--open'], ['orders']):
        assert bq.main(command + way) == bq.Exit.OK
        shown.append(len(capsys.readouterr().out.splitlines()))
    assert shown[1] - shown[0] == len(orders) - 3


def test_rows_in_a_table_are_the_rows_of_a_list():
    with serving(FakeClock(datetime(2024, 5, 15, 14, 0))) as server, session(server) as sock, \
            long_client(server) as client:
        broker = bq.RemoteQmtBroker(connection=client)
        low = client.request('data.live_current', {'security': CODE})['low_limit']
        broker.place_order(CODE, 'BUY', 100, {'type': 'limit', 'price': low}, idempotency_key='in-a-table')
        broker.place_order(CODE, 'BUY', 100, {'type': 'market'}, remark='备注')
        assert broker.get_orders() == ask_raw(sock, 'broker.orders')['payload'] != []
        assert broker.get_trades() == ask_raw(sock, 'broker.trades')['payload'] != []
        assert broker.get_trades(order_id='99999') == []
        without = bq.Order(order_id='1', status='open', security=CODE).to_wire()
        assert without['order_time'] is None
        assert bq.table_rows(bq.row_table([without], bq.ORDER_COLUMNS)) == [without]


def test_a_full_queue_is_server_busy(monkeypatch):
    monkeypatch.setattr(bq.BulletServer, 'POOLS', (('data', 1, 2, 1), ('history', 1, 2, 1), ('broker', 2, 4, 2)))
    with serving() as server, blocked(monkeypatch, 'data.history') as history, session(server) as sock:
        send_request(sock, 0, 'data.history')
        history.wait_entered()
        for number in (1, 2):
            send_request(sock, number, 'data.history')
        error = ask_error(sock, 'data.get_all_securities', id=3)
        assert error['code'] == 'SERVER_BUSY' and error['retryable'] and error['retry_after_s'] > 0
        assert ask_raw(sock, 'broker.account', id='b')['type'] == 'response', 'others have room'
        history.go.set()
        assert [read_raw(sock)['id'] for _ in range(3)] == [0, 1, 2]


# -- time limits ---------------------------------------------------------------------------------------------
def test_a_data_request_that_takes_too_long_is_answered(monkeypatch):
    with serving(request_timeout=0.2) as server, blocked(monkeypatch, 'data.history') as history:
        with session(server) as sock:
            error = ask_error(sock, 'data.history', id='late')
            assert error['code'] == 'REQUEST_TIMEOUT' and error['id'] == 'late' and error['retryable']
            history.go.set()
            assert history.left.acquire(timeout=20)
            assert ask_raw(sock, 'admin.health', id='next')['id'] == 'next', 'the late answer is dropped'


def test_progress_gives_a_request_more_time_and_is_told_to_those_who_want_it(monkeypatch):
    steps, go = queue.Queue(), threading.Semaphore(0)

    def slow(service, payload, caller):
        for step in range(1, 4):
            steps.put(step)
            assert go.acquire(timeout=20)
            caller.progress({'finished': step, 'total': 3})
        return {'ok': True}

    answering(monkeypatch, 'data.ensure_cache', slow)
    with serving(request_timeout=1.0) as server, session(server, features=['progress1']) as sock:
        send_request(sock, 'slow', 'data.ensure_cache', {})
        for step in range(1, 4):
            assert steps.get(timeout=20) == step
            go.release()
            told = read_raw(sock)
            assert (told['event'], told['id'], told['payload']) == (
                'progress', 'slow', {'finished': step, 'total': 3, 'action': 'data.ensure_cache'})
        assert read_raw(sock)['payload'] == {'ok': True}


def test_the_time_of_a_request_counts_from_its_last_progress():
    keeper, job = bq.Timekeeper(60.0), Watched()
    try:
        keeper.watch(job)
        job.moved += 100.0
        keeper._due[0] = (time.monotonic() - 1.0,) + keeper._due[0][1:]
        assert keeper._late() == [] and keeper._due[0][0] == job.moved + 60.0
        job.moved -= 200.0
        keeper._due[0] = (time.monotonic() - 1.0,) + keeper._due[0][1:]
        assert keeper._late() == [(job, 60.0)] and not keeper._due
    finally:
        keeper.close()


def test_what_is_answered_leaves_the_timekeeper_whenever_it_looks():
    keeper, job = bq.Timekeeper(60.0), Watched()
    try:
        keeper.watch(job)
        job.answered = True
        assert keeper._late() == [] and keeper._due == []
    finally:
        keeper.close()


def test_an_order_that_takes_too_long_is_unknown_and_exists_once(monkeypatch):
    ask = order_payload(idempotency_key='late-order')
    with serving(request_timeout=0.2) as server, blocked(monkeypatch, 'broker.place_order', keep=True) as place:
        with session(server) as sock:
            error = ask_error(sock, 'broker.place_order', ask)
            assert error['code'] == 'REQUEST_TIMEOUT' and error['idempotency_key'] == 'late-order'
            assert error['retryable'] is False and error.get('broker_called') is not False
            place.go.set()
            assert place.left.acquire(timeout=20)
            again = ask_raw(sock, 'broker.place_order', ask)['payload']
            orders = ask_raw(sock, 'broker.orders')['payload']
            assert [order['order_id'] for order in orders] == [again['order_id']]


def test_an_order_whose_turn_never_came_is_not_carried_out_later(monkeypatch):
    monkeypatch.setattr(bq.BulletServer, 'POOLS', (('data', 1, 8, 1), ('history', 1, 8, 1), ('broker', 1, 8, 1)))
    monkeypatch.setitem(bq.ACTIONS, 'broker.place_order', bq.ACTIONS['broker.place_order']._replace(quick=bq._never))
    with serving(request_timeout=0.2) as server, blocked(monkeypatch, 'broker.account') as account:
        with session(server) as sock:
            send_request(sock, 'slow', 'broker.account')
            account.wait_entered()
            order = order_payload(idempotency_key='queued')
            send_request(sock, 'order', 'broker.place_order', order)
            error = read_until(sock, 'order')[0]
            assert error['code'] == 'SERVER_BUSY' and error['broker_called'] is False and error['retryable']
            account.go.set()
            assert becomes(lambda: ask_raw(sock, 'broker.orders', id='orders')['payload'] == [])


def test_waiting_for_a_fill_is_not_taking_too_long():
    with serving(request_timeout=1.0) as server, session(server) as sock:
        low = ask_raw(sock, 'data.live_current', {'security': CODE})['payload']['low_limit']
        answer = ask_raw(sock, 'broker.place_order', order_payload(style={'type': 'limit', 'price': low},
                                                                   wait_timeout=1.2))
        assert answer['payload']['timed_out'] is True and answer['payload']['async_tracking'] is True


# -- answers that cannot be sent -----------------------------------------------------------------------------
def test_too_large_an_answer_is_an_error_and_the_connection_lives(server, monkeypatch):
    answering(monkeypatch, 'data.snapshot', lambda *_: {'text': 'x' * 5000})
    with session(server) as sock:
        monkeypatch.setattr(bq, 'FRAME_LIMIT', 4000)
        error = ask_error(sock, 'data.snapshot')
        assert error['code'] == 'FRAME_TOO_LARGE' and error['hint']
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


@pytest.mark.parametrize('value', [math.nan, math.inf, [1.0, math.nan], object(), {'set': {1}}])
def test_an_answer_that_is_no_json_is_an_error_and_the_connection_lives(server, monkeypatch, value):
    answering(monkeypatch, 'data.snapshot', lambda *_: {'value': value})
    with session(server) as sock:
        assert ask_error(sock, 'data.snapshot')['code'] == 'INTERNAL_ERROR'
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


def test_half_a_character_in_an_answer_is_sent_as_its_escape(server, monkeypatch):
    answering(monkeypatch, 'data.snapshot', lambda *_: {'text': 'a\udc80"b'})
    with session(server) as sock:
        assert ask_raw(sock, 'data.snapshot')['payload'] == {'text': 'a\udc80"b'}


def test_large_answers_that_nobody_reads_occupy_no_worker(monkeypatch):
    """One client asks for more than its line takes and reads nothing; another is served meanwhile."""
    monkeypatch.setattr(bq.BulletServer, 'POOLS', (('data', 1, 64, 1), ('history', 1, 64, 1), ('broker', 1, 8, 1)))
    answering(monkeypatch, 'data.history', lambda *_: {'text': 'x' * (8 * 1024 * 1024)})
    with serving() as server, session(server) as deaf, session(server) as other:
        for number in range(4):
            send_request(deaf, number, 'data.history')
        assert ask_raw(other, 'data.snapshot', {'security': CODE})['type'] == 'response'
        assert [read_raw(deaf)['id'] for _ in range(4)] == [0, 1, 2, 3], 'a reader that wakes up loses nothing'


def test_a_backlog_of_large_answers_is_bounded(monkeypatch):
    monkeypatch.setattr(bq.Outbox, 'BACKLOG_LIMIT', 21 * 1024 * 1024)
    monkeypatch.setattr(bq.BulletServer, 'POOLS', (('data', 1, 64, 1), ('history', 1, 64, 1), ('broker', 1, 8, 1)))
    begun = threading.Semaphore(0)
    answering(monkeypatch, 'data.history', lambda *_: begun.release() or {'text': 'x' * (20 * 1024 * 1024)})
    with serving() as server, session(server) as deaf, session(server) as other:
        for number in range(3):
            send_request(deaf, number, 'data.history')
        send_request(deaf, 'last', 'data.snapshot', {'security': CODE})
        assert all(begun.acquire(timeout=20) for _ in range(3))
        assert ask_raw(other, 'data.snapshot', {'security': CODE})['type'] == 'response', 'all before it are done'
        answers = {answer['id']: answer for answer in (read_raw(deaf) for _ in range(4))}
        # The small one is answered by another thread, when it is read: it may overtake the refusals.
        assert [number for number in answers if number != 'last'] == [0, 1, 2]
        codes = [answers[number].get('code') for number in (0, 1, 2, 'last')]
        assert codes == [None, 'SERVER_BUSY', 'SERVER_BUSY', None]


# -- the access log ------------------------------------------------------------------------------------------
def test_the_status_in_the_access_log_is_what_the_client_got(server, monkeypatch, caplog):
    answering(monkeypatch, 'data.snapshot', lambda *_: {'value': math.nan})
    monkeypatch.setattr(bq.LOG, 'propagate', True)
    with caplog.at_level(logging.INFO, 'bullet_qmt'), session(server) as sock:
        ask_raw(sock, 'data.snapshot', id='nan')

        def logged():
            return [line for message in caplog.messages for line in message.splitlines() if "id='nan'" in line]
        assert becomes(logged) and ' INTERNAL_ERROR ' in logged()[0]


@pytest.mark.parametrize('number', [b'NaN', b'Infinity', b'-Infinity', b'1e999'])
def test_a_number_that_is_none_is_a_bad_value_not_a_bad_frame(server, number):
    """Legacy clients write NaN; cutting their connection would leave them with an order of unknown state."""
    with session(server) as sock:
        send_raw(sock, b'{"type":"request","id":"7","action":"broker.place_order","payload":{"security":"000001.XSHE",'
                       b'"side":"BUY","amount":100,"style":{"type":"limit","price":' + number + b'}}}')
        answer = read_raw(sock)
        assert (answer['id'], answer['code'], answer['broker_called']) == ('7', 'BAD_REQUEST', False)
        send_raw(sock, b'{"type":"ping","id":' + number + b'}')
        assert read_raw(sock) == {'type': 'pong', 'id': None}


# -- in the words of bullet-trade --------------------------------------------------------------------------------------
NOON = datetime(2026, 5, 13, 10, 0, 0)


def test_a_quote_tells_where_and_when_it_comes_from():
    """bullet-trade 0.10 reads these of data.live_current; its times bear their zone, as its clients are anywhere."""
    with serving(FakeClock(NOON)) as server, session(server) as sock:
        for action in ('data.live_current', 'data.snapshot', 'data.current_tick'):
            row = ask_raw(sock, action, {'security': '000001.XSHE'})['payload']
            assert row['source'] == 'stub' and row['feed_health'] == {'status': 'healthy', 'query_succeeded': True}
            assert row['source_time'] == row['dt'].replace(' ', 'T') + '+08:00'
            assert row['received_time'] == row['query_completed_time'] == '2026-05-13T10:00:00.000+08:00'
            source = datetime.strptime(row['dt'][:19], '%Y-%m-%d %H:%M:%S')
            assert abs(row['age_seconds'] - (NOON - source).total_seconds()) < 1 and row['age_seconds'] >= 0
            assert row['event_stale'] is False
            assert (row['bid_price1'], row['ask_price1']) == (row['b1_p'], row['a1_p'])
            assert 0 < row['bid_price1'] < row['ask_price1']


@pytest.mark.parametrize('features, batch', [(['tick'], False), ([], False), (['batch_tick1'], True)])
def test_pushed_ticks_of_legacy_clients_tell_it_too(features, batch):
    with serving(FakeClock(NOON)) as server, session(server, features=features) as sock:
        ask_raw(sock, 'data.subscribe', {'securities': ['000001.XSHE']})
        tick = read_raw(sock)
        while tick['type'] != 'event':
            tick = read_raw(sock)
        if batch:
            assert tick['event'] == 'ticks' and 'feed_health' not in tick['payload']['fields']
        else:
            assert tick['payload']['feed_health']['status'] == 'healthy' and tick['payload']['source'] == 'stub'


def test_health_says_what_can_be_done():
    with serving(FakeClock(NOON)) as server, session(server) as sock:
        value = ask_raw(sock, 'admin.health')['payload']['value']
        assert (value['backend_type'], value['ready'], value['state'], value['reason']) == ('stub', True, 'ready', None)
        assert value['accounts'] == ['default'], 'a list, as bullet-trade 0.9 and 0.10 have it'
        assert value['actions']['broker.place_order'] == {'status': 'ready', 'reason': ''}
        assert value['modules']['data'] == {'ready': True, 'state': 'ready', 'reason': None}
        assert value['server_time'] == 1778637600000  # date -u -d '2026-05-13 02:00' +%s


def test_health_of_a_server_without_trading():
    with serving(FakeClock(NOON), enable_broker=False) as server, session(server) as sock:
        value = ask_raw(sock, 'admin.health')['payload']['value']
        assert (value['ready'], value['state']) == (True, 'ready'), 'what is on offer is there'
        assert value['actions']['broker.place_order']['status'] == 'unavailable'
        assert value['actions']['broker.place_order']['reason']
        assert value['actions']['data.history']['status'] == 'ready'


@pytest.mark.parametrize('troubles, state, place, history', [
    ({'broker': (False, 'x')}, 'degraded', 'unavailable', 'ready'),
    ({'broker': (True, 'x')}, 'degraded', 'degraded', 'ready'),
    ({'data': (False, 'y')}, 'degraded', 'ready', 'unavailable'),
    ({'broker': (False, 'x'), 'data': (False, 'y')}, 'unavailable', 'unavailable', 'unavailable')])
def test_health_of_a_server_of_which_a_part_is_away(monkeypatch, troubles, state, place, history):
    with serving(FakeClock(NOON)) as server, session(server) as sock:
        monkeypatch.setattr(server.service.backend, 'troubles', lambda: troubles)
        value = ask_raw(sock, 'admin.health')['payload']['value']
        assert (value['ready'], value['state']) == (False, state)
        assert all(reason in value['reason'] for _, reason in troubles.values())
        statuses = [value['actions'][name]['status'] for name in ('broker.place_order', 'data.history')]
        assert statuses == [place, history]


def test_a_history_has_longer_than_other_requests():
    """bullet-trade's server gives it 150 s where others have 60, and its clients wait 180."""
    assert 60 * bq.HISTORY_SHARE == 150
    job, keeper = Watched(), bq.Timekeeper(60.0)
    try:
        keeper.watch(job, bq.HISTORY_SHARE)
        keeper.watch(Watched(), 1.0)
        assert sorted(limit for _, _, _, limit in keeper._due) == [60.0, 150.0]
    finally:
        keeper.close()
