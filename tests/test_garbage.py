"""Whatever arrives on the wire costs at most its own connection."""
import contextlib
import json
import socket
import struct
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bullet_qmt as bq

from .base import TOKEN, ask_raw, login_raw, raw_socket, read_raw, send_raw, serving
from .resources import becomes, descriptors, thread_names


def framed(body):
    return struct.pack('>I', len(body)) + body


GARBAGE = {
    'nothing': b'',
    'half a length': b'\x00\x00',
    'length 0': framed(b''),
    'a huge length': b'\x7f\xff\xff\xff',
    'the binary bit': b'\x80\x00\x00\x10' + b'x' * 16,
    'all ones': b'\xff' * 64,
    'just above the cap': struct.pack('>I', bq.FRAME_LIMIT + 1),
    'a frame cut off': framed(b'{"type":"ping","id":1}')[:-5],
    'only a length': struct.pack('>I', 100),
    'not utf-8': framed(b'\xff\xfe{"type":"ping"}'),
    'utf-16': framed('{"type":"ping"}'.encode('utf-16')),
    'bom': framed('{"type":"ping"}'.encode('utf-8-sig')),
    'an encoded surrogate': framed(b'{"id":"\xed\xa0\x80"}'),
    'not json': framed(b'hello'),
    'two objects': framed(b'{} {}'),
    'trailing comma': framed(b'{"type":"ping",}'),
    'single quotes': framed(b"{'type':'ping'}"),
    'a list': framed(b'[]'),
    'a text': framed(b'"handshake"'),
    'a number': framed(b'17'),
    'null': framed(b'null'),
    'a very long number': framed(b'{"type":"ping","id":' + b'9' * 3000 + b'}'),
    'doubled keys': framed(b'{"type":"ping","type":"request"}'),
    '10000 brackets': framed(b'[' * 10000 + b']' * 10000),
    '10000 brackets inside': framed(b'{"type":"ping","id":' + b'[' * 10000 + b']' * 10000 + b'}'),
    '10000 open objects': framed(b'{"a":' * 10000),
    '500 brackets inside': framed(b'{"type":"ping","id":' + b'[' * 500 + b']' * 500 + b'}'),
    'a control character': framed(b'{"type":"pi\x00ng"}'),
    'http': b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n',
    'tls': bytes([22, 3, 1, 0, 200, 1, 0, 0, 196]) + bytes(200),
    'ssh': b'SSH-2.0-OpenSSH_9.6\r\n',
}


@pytest.fixture(scope='module')
def server():
    with serving() as server, raw_socket(server) as witness:
        assert login_raw(witness)['type'] == 'handshake_ack'
        server.witness = witness
        yield server


@pytest.fixture(autouse=True)
def no_throttle(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'FAILURES', 10 ** 9)


def check_unharmed(server):
    """The witness, connected all along, is answered, and so is a newcomer."""
    assert ask_raw(server.witness, 'admin.health')['type'] == 'response'
    with raw_socket(server) as sock:
        assert login_raw(sock)['type'] == 'handshake_ack'
        assert ask_raw(sock, 'broker.account')['type'] == 'response'


def read_to_the_end(sock):
    """All frames until the end; whatever the server says is a frame."""
    frames = []
    with contextlib.suppress(ConnectionResetError):
        for frame in iter(lambda: read_raw(sock), None):
            frames.append(frame)
    return frames


def throw(server, data, login):
    """Sends the bytes and no more; the server's last words."""
    with raw_socket(server) as sock:
        if login:
            assert login_raw(sock)['type'] == 'handshake_ack'
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        return read_to_the_end(sock)


@pytest.mark.parametrize('login', [False, True], ids=['before', 'after'])
@pytest.mark.parametrize('name', sorted(GARBAGE))
def test_garbage_costs_its_own_connection_alone(server, name, login, caplog):
    said = throw(server, GARBAGE[name], login)
    assert all(frame['type'] == 'error' for frame in said) and len(said) <= 1
    check_unharmed(server)
    assert not [record for record in caplog.records if record.exc_info], 'no traceback for what a stranger sends'


@pytest.mark.parametrize('name, code', [
    ('not utf-8', 'PROTOCOL_ERROR'), ('not json', 'PROTOCOL_ERROR'), ('a list', 'PROTOCOL_ERROR'),
    ('doubled keys', 'PROTOCOL_ERROR'), ('10000 brackets', 'PROTOCOL_ERROR'),
    ('500 brackets inside', 'PROTOCOL_ERROR'), ('a huge length', 'FRAME_TOO_LARGE'), ('all ones', 'FRAME_TOO_LARGE'),
    ('the binary bit', 'FRAME_TOO_LARGE')])
def test_the_server_says_what_was_wrong(server, name, code):
    assert [frame['code'] for frame in throw(server, GARBAGE[name], True)] == [code]


REFUSED = {
    'an integer of 60 digits': b'{"type":"request","id":"a 7","payload":{"action":1,"x":%s}}' % (b'9' * 60),
    'an integer of 5000 digits': b'{"payload":{"amount":%s},"action":"broker.account","id":"a 7"}' % (b'9' * 5000),
    'a comma too many': b'{"id":"a 7","action":"broker.account",}',
    'a bare control character': b'{"id":"a 7","action":"broker.\x00account"}',
    'no UTF-8': b'{"id":"a 7","action":"broker.account","payload":{"security":"\xc6\xbd\xb0\xb2"}}',
    'a key twice': b'{"id":"a 7","action":"broker.account","payload":{"price":1,"price":2}}',
    'an action twice': b'{"id":"a 7","action":"broker.account","action":"broker.place_order"}',
    'nesting': b'{"id":"a 7","action":"broker.account","payload":' + b'[' * 70 + b']' * 70 + b'}',
    'nesting without end': b'{"type":"request", "id" : "a 7","payload":{"id":"x","x":%s}}' % (
        b'[' * 90000 + b']' * 90000),
}


@pytest.mark.parametrize('name', sorted(REFUSED))
def test_a_frame_refused_for_its_content_is_answered_with_its_id_and_the_connection_lives(server, name):
    with raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, REFUSED[name])
        send_raw(sock, {'type': 'ping', 'id': 'next'})
        answer = read_raw(sock)
        assert (answer['type'], answer['code'], answer['id']) == ('error', 'PROTOCOL_ERROR', 'a 7')
        assert answer['broker_called'] is False and answer['retryable'] is False
        assert read_raw(sock) == {'type': 'pong', 'id': 'next'}


@pytest.mark.parametrize('frame, id', [
    (b'{"id":7,"x":%s}', 7), (b'{"id":1.5,"x":%s}', 1.5), (b'{"x":%s}', None), (b'{"id":null,"x":%s}', None),
    (b'{"id":[1],"x":%s}', None), (b'{"id":%s}', int('9' * 60)), (b'[%s]', None), (b'{"x":{"id":3},"y":%s}', None),
    (b'{"id":"\\u4e2d\\"","x":%s}', '中"'), (b'{"id":"' + b'x' * 200 + b'","x":%s}', None)])
@pytest.mark.parametrize('depth', [0, 100000])
def test_the_id_of_a_refused_frame(frame, id, depth):
    """Above a nesting that no parser takes the id is found by its place."""
    deep = b'[' * depth + b']' * depth if depth else b'9' * 60
    if depth and id == int('9' * 60):
        id = None  # it is the nesting itself
    with pytest.raises(bq.ProtocolError) as caught:
        bq.decode_request(frame % deep)
    assert caught.value.frame_id == id and type(caught.value.frame_id) is type(id)


@pytest.mark.parametrize('client', [bq.RemoteQmtConnection, bq.ShortConnection])
def test_our_clients_send_nothing_that_the_server_would_end_the_connection_for(server, client):
    with client(server.address[0], server.address[1], TOKEN) as connection:
        room = bq.REQUEST_LIMIT - 200
        assert connection.request('broker.account', {'more': 'x' * room})['dtype'] == 'dict'
        for action in ('broker.account', 'broker.place_order'):
            with pytest.raises(bq.FrameTooLarge) as caught:
                connection.request(action, {'more': 'x' * (room + 200)})
            assert caught.value.broker_called is False and not caught.value.retryable
        for value in (int('9' * 60), [[[[0] * 2] * 2] * 2], json.loads('[' * 70 + ']' * 70)):
            with contextlib.suppress(bq.ProtocolError):
                connection.request('broker.account', {'more': value}, timeout=20)
        assert connection.request('admin.health')['value']['sessions'] == 2, 'it is the same connection'


@pytest.mark.parametrize('bad, code', [('not json', 'PROTOCOL_ERROR'), ('a huge length', 'FRAME_TOO_LARGE')])
def test_what_was_asked_before_a_frame_that_ends_the_connection_is_answered_first(server, monkeypatch, bad, code):
    """Also where the peer goes on sending: bytes that nobody reads would take back what was sent."""
    entered, go = threading.Event(), threading.Event()

    def slow(service, payload, caller):
        entered.set()
        assert go.wait(20)
        return {'done': True}
    monkeypatch.setitem(bq.ACTIONS, 'data.history', bq.ACTIONS['data.history']._replace(run=slow))
    monkeypatch.setattr(bq, 'BREAK_OFF_S', 20.0)
    with raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, {'id': 'slow', 'action': 'data.history'})
        sock.sendall(b''.join(framed(b'{"id":%d,"action":"broker.account"}' % number) for number in range(30))
                     + GARBAGE[bad] + b'x' * 200000)
        assert entered.wait(20)
        said = [read_raw(sock) for _ in range(30)]
        go.set()
        assert [answer['id'] for answer in said] == list(range(30))
        assert read_raw(sock) == {'type': 'response', 'id': 'slow', 'payload': {'done': True}}
        assert read_raw(sock)['code'] == code
        assert sock.recv(1) == b'', 'an end, not a reset'


@pytest.mark.parametrize('start', [b'\x7f\xff\xff\xff', framed(b'hello')], ids=['a huge length', 'not json'])
def test_a_refusal_before_the_login_reaches_a_peer_that_goes_on_sending(server, start):
    with raw_socket(server) as sock:
        sock.sendall(start + b'x' * 30000)
        assert read_raw(sock)['type'] == 'error'
        assert sock.recv(1) == b'', 'an end, not a reset'


def test_garbage_between_requests_leaves_the_earlier_answer_whole(server):
    with raw_socket(server) as sock:
        login_raw(sock)
        assert ask_raw(sock, 'broker.account')['type'] == 'response'
        sock.sendall(GARBAGE['not json'])
        assert read_raw(sock)['code'] == 'PROTOCOL_ERROR'
        assert read_raw(sock) is None


@pytest.mark.parametrize('login', [False, True], ids=['before', 'after'])
def test_all_of_it_at_once_leaves_no_thread_and_no_descriptor(login):
    with serving() as server, raw_socket(server) as witness:
        assert login_raw(witness)['type'] == 'handshake_ack'
        server.witness = witness
        check_unharmed(server)
        assert becomes(lambda: server.gate.connections == 1)
        threads, fds = thread_names(), descriptors()
        with contextlib.ExitStack() as stack:
            for data in GARBAGE.values():
                sock = stack.enter_context(raw_socket(server))
                if login:
                    login_raw(sock)
                sock.sendall(data)
            check_unharmed(server)
        assert becomes(lambda: server.gate.connections == 1)
        assert becomes(lambda: thread_names() == threads), thread_names()
        assert becomes(lambda: descriptors() == fds)


def test_a_connection_reset_in_the_middle_of_anything(server):
    linger = struct.pack('ii', 1, 0)
    for data in (b'', b'\x00', framed(b'{"type":"handshake","token":"%s"}' % TOKEN.encode()), GARBAGE['only a length']):
        with raw_socket(server) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.sendall(data)
    check_unharmed(server)
    assert becomes(lambda: server.gate.connections == 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10 ** 28, 10 ** 28) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12)
FRAMES = st.dictionaries(
    st.sampled_from(['type', 'id', 'action', 'payload', 'token', 'features', 'account_key', 'other']),
    JSON | st.sampled_from(['request', 'ping', 'handshake', 'event', 'response', 'error'] + sorted(bq.ACTIONS))
    | st.dictionaries(st.sampled_from(['security', 'securities', 'count', 'start', 'end', 'frequency', 'fields', 'fq',
                                       'order_id', 'amount', 'side', 'style', 'price', 'account_key', 'types', 'date',
                                       'idempotency_key', 'write_action', 'request_payload', 'limit', 'status']),
                      JSON | st.sampled_from(['000001.XSHE', 'BUY', '1d', '2020-01-02', {'type': 'limit', 'price': 1}]),
                      max_size=6), max_size=7)
QUICK = settings(max_examples=60, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
                 + [check for check in HealthCheck if check.name == 'function_scoped_fixture'])


@QUICK
@given(data=st.binary(max_size=60), login=st.booleans())
def test_random_bytes(server, data, login):
    throw(server, data, login)
    assert ask_raw(server.witness, 'admin.health')['type'] == 'response'


@QUICK
@given(frame=FRAMES)
def test_random_first_frames_never_get_in(server, frame):
    assert all(said['type'] == 'error' for said in throw(server, framed(json.dumps(frame).encode()), False))
    assert ask_raw(server.witness, 'admin.health')['type'] == 'response'


@QUICK
@given(frame=FRAMES)
def test_random_frames_after_the_login_are_answered_once_each(server, frame):
    with raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, frame)
        answer = read_raw(sock)
        while answer.get('type') == 'event':
            answer = read_raw(sock)
        assert answer['type'] in ('response', 'error', 'pong')
        assert answer.get('code') != 'INTERNAL_ERROR', (frame, answer)
        send_raw(sock, {'type': 'ping', 'id': 'still here'})
        answer = read_raw(sock)
        while answer.get('type') == 'event':
            answer = read_raw(sock)
        assert answer == {'type': 'pong', 'id': 'still here'}


@settings(QUICK, max_examples=100)
@given(action=st.sampled_from(sorted(bq.ACTIONS)), payload=FRAMES.map(lambda frame: frame.get('payload')) | st.none()
       | st.dictionaries(st.sampled_from(['security', 'securities', 'symbols', 'count', 'start', 'end', 'frequency',
                                          'fields', 'fq', 'order_id', 'amount', 'side', 'style', 'price', 'types',
                                          'date', 'account_key', 'sub_account_id', 'idempotency_key', 'limit',
                                          'index_symbol', 'wait_timeout', 'market', 'panel', 'pre_factor_ref_date']),
                         JSON | st.sampled_from(['000001.XSHE', 'BUY', 'day', '2020-01-02', '1m', {'type': 'market'}]),
                         max_size=8))
def test_no_payload_is_an_internal_error(server, action, payload):
    with raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, {'type': 'request', 'id': 'q', 'action': action, 'payload': payload})
        answer = read_raw(sock)
        while answer.get('id') != 'q':
            answer = read_raw(sock)
        assert answer['type'] == 'response' or answer['code'] != 'INTERNAL_ERROR', answer
