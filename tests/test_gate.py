"""The gate: who may connect, how many, how often a wrong token may be tried, how long a silent peer stays."""
import contextlib
import ipaddress
import secrets
import socket
import ssl
import threading

import pytest

import bullet_qmt as bq

from .base import TOKEN, ask_raw, login_raw, raw_socket, read_raw, send_raw, server_settings, serving
from .certs import make_certificate
from .resources import becomes, thread_names


WEAK = '123456'


def make_gate(now=None, **changes):
    now = now or [0.0]
    return bq.Gate(server_settings(**changes), lambda: now[0])


def networks(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


# -- allowlist -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('allowed, address, admitted', [
    ((), '203.0.113.9', True), ((), '2001:db8::1', True),
    (('203.0.113.9/32',), '203.0.113.9', True), (('203.0.113.9/32',), '203.0.113.10', False),
    (('10.0.0.0/8', '192.168.1.0/24'), '192.168.1.77', True), (('10.0.0.0/8',), '11.0.0.1', False),
    (('10.0.0.0/8',), '::ffff:10.1.2.3', True), (('10.0.0.0/8',), '::ffff:11.1.2.3', False),
    (('10.0.0.0/8',), '2001:db8::1', False), (('2001:db8::/32',), '2001:db8:1::5', True),
    (('2001:db8::/32',), '2001:db9::5', False), (('2001:db8::/32',), '10.0.0.1', False),
    (('::1/128',), '::1', True), (('::1/128',), '127.0.0.1', False), (('fe80::/10',), 'fe80::1%eth0', True),
    (('0.0.0.0/0',), '203.0.113.9', True), (('0.0.0.0/0',), '2001:db8::1', False),
])
def test_allowlist(allowed, address, admitted):
    assert make_gate(allowlist=networks(*allowed)).admits(address) is admitted


def test_a_peer_that_is_not_allowed_is_closed_without_a_word():
    with serving(allowlist=networks('203.0.113.0/24')) as server:
        with raw_socket(server) as sock:
            assert sock.recv(1) == b''
        assert server.gate.connections == 0


def test_a_peer_that_is_allowed_gets_in():
    with serving(allowlist=networks('203.0.113.0/24', '127.0.0.0/8')) as server, raw_socket(server) as sock:
        assert login_raw(sock)['type'] == 'handshake_ack'


@pytest.fixture
def ipv6():
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(('::1', 0))
        except OSError:
            pytest.skip('this machine has no IPv6')


def test_ipv6_end_to_end(ipv6):
    with serving(listen='::1', allowlist=networks('::1/128')) as server, raw_socket(server) as sock:
        assert login_raw(sock)['type'] == 'handshake_ack'


# -- both families on one socket -----------------------------------------------------------------------------
def answers_at(server, host):
    """The type of what a login from there is answered with; None where the connection ends without a word."""
    with contextlib.closing(socket.create_connection((host, server.address[1]), 10)) as sock:
        try:
            answer = login_raw(sock)
        except ConnectionError:  # Windows: ended while the login was on its way
            answer = None
        return answer and answer['type']


def test_who_listens_everywhere_takes_ipv4_and_ipv6_on_every_system(ipv6, caplog):
    caplog.set_level('INFO', 'bullet_qmt')
    with serving(listen='::') as server:
        assert answers_at(server, '127.0.0.1') == answers_at(server, '::1') == 'handshake_ack'
    lines = [item.getMessage() for item in caplog.records]
    assert {line.split()[0] for line in lines if line.startswith('客户端登录')} == {'客户端登录：127.0.0.1', '客户端登录：::1'}


@pytest.mark.parametrize('allowed, ipv4, ipv6_too', [
    ('127.0.0.0/8', True, False), ('::ffff:127.0.0.1', True, False), ('::ffff:127.0.0.0/104', True, False),
    ('::1', False, True), ('::/0', False, True), ('0.0.0.0/0', True, False), ('10.0.0.0/8', False, False)])
def test_an_ipv4_client_is_judged_by_its_ipv4_address_wherever_it_comes_in(ipv6, allowed, ipv4, ipv6_too):
    with serving(listen='::', allowlist=bq.parse_allowlist(allowed)) as server:
        assert answers_at(server, '127.0.0.1') == ('handshake_ack' if ipv4 else None)
        assert answers_at(server, '::1') == ('handshake_ack' if ipv6_too else None)


@pytest.mark.parametrize('text, meant', [
    ('::ffff:192.0.2.7', '192.0.2.7/32'), ('::ffff:10.0.0.0/104', '10.0.0.0/8'), ('::ffff:0:0/96', '0.0.0.0/0'),
    ('::ffff:c000:207', '192.0.2.7/32'), ('::/0', '::/0'), ('::/80', '::/80'), ('2001:db8::/32', '2001:db8::/32')])
def test_an_allowlist_of_mapped_addresses_is_one_of_ipv4(text, meant):
    assert [str(network) for network in bq.parse_allowlist(text)] == [meant]


def addresses_of(name, *places):
    """getaddrinfo() of a machine where this name has these addresses."""
    asked = socket.getaddrinfo

    def answer(host, *args):
        if host != name:
            return asked(host, *args)
        return [(family, socket.SOCK_STREAM, 0, '', place) for family, place in places]
    return answer


def test_a_name_of_both_families_is_served_where_every_client_tries(monkeypatch):
    """As localhost is on Windows. Who asks for ::1 gets it."""
    monkeypatch.setattr(socket, 'getaddrinfo', addresses_of(
        'trader.example', (socket.AF_INET6, ('::1', 0, 0, 0)), (socket.AF_INET, ('127.0.0.1', 0))))
    with serving(listen='trader.example') as server:
        assert server.address[0] == '127.0.0.1' and answers_at(server, '127.0.0.1') == 'handshake_ack'


def test_where_one_cannot_listen_is_told_apart_from_a_port_that_is_taken():
    with pytest.raises(bq.ConfigError) as caught, serving(listen='203.0.113.7'):
        pass
    assert '不能监听 203.0.113.7:' in caught.value.message and '--listen' in caught.value.hint
    with serving() as server, pytest.raises(bq.ConfigError) as caught, serving(port=server.address[1]):
        pass
    assert '--port' in caught.value.hint and '--listen' not in caught.value.hint


def test_a_taken_port_of_ipv6_is_told_with_brackets(ipv6):
    with serving(listen='::1') as server, pytest.raises(bq.ConfigError) as caught:
        with serving(listen='::1', port=server.address[1]):
            pass
    assert caught.value.message.startswith('不能监听 [::1]:%d：' % server.address[1])


# -- a client and the addresses of a host ---------------------------------------------------------------------
@pytest.fixture
def listener():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(('127.0.0.1', 0))
        sock.listen(5)
        yield sock


@pytest.fixture
def closed_port():
    """Bound and not listened on: refused, and nobody else's."""
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(('127.0.0.1', 0))
        yield sock.getsockname()


class Unanswered:
    """A connection of which nothing is ever heard: it does not become writable, as one whose buffers are full."""

    def __init__(self):
        self._full, self._other = socket.socketpair()
        self._full.setblocking(False)
        self.closed = False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._full.send(bytes(65536))

    def setblocking(self, flag):
        pass

    def connect(self, place):
        raise BlockingIOError

    def fileno(self):
        return self._full.fileno()

    def close(self):
        self.closed = True
        self._full.close()
        self._other.close()


@pytest.fixture
def unanswered(monkeypatch):
    """The next socket that is made is one; the name trader.example has an address for it first."""
    made, real = Unanswered(), socket.socket

    def once(*args):
        monkeypatch.setattr(socket, 'socket', real)
        return made
    monkeypatch.setattr(socket, 'socket', once)
    return made


def name_with(monkeypatch, *places):
    monkeypatch.setattr(socket, 'getaddrinfo', addresses_of('trader.example', *[(socket.AF_INET, p) for p in places]))
    return bq.Endpoint('trader.example', 58620, TOKEN, connect_timeout=600)


def test_an_address_that_does_not_answer_keeps_no_other_waiting(monkeypatch, listener, unanswered):
    client = name_with(monkeypatch, ('203.0.113.7', 1), listener.getsockname())
    with contextlib.closing(client.open_socket()) as sock:
        assert sock.getpeername() == listener.getsockname() and sock.gettimeout() == 600
    assert unanswered.closed


def test_an_address_that_refuses_is_followed_by_the_next(monkeypatch, listener, closed_port):
    client = name_with(monkeypatch, closed_port, listener.getsockname())
    with contextlib.closing(client.open_socket()) as sock:
        assert sock.getpeername() == listener.getsockname()


def test_the_time_to_connect_is_for_all_addresses_together(monkeypatch, closed_port, unanswered):
    client = name_with(monkeypatch, ('203.0.113.7', 1), closed_port)
    with pytest.raises(bq.ConnectionLost) as caught:
        client.open_socket(0.6)
    assert 'timed out' in caught.value.message and unanswered.closed


def test_where_all_fail_a_refusal_is_told(monkeypatch, closed_port):
    """It says more than a family that the machine does not have."""
    places = [(socket.AF_INET, closed_port), (9999, ('::1', 1, 0, 0))]
    monkeypatch.setattr(socket, 'getaddrinfo', addresses_of('trader.example', *places))
    with pytest.raises(bq.ConnectionLost) as caught:
        bq.Endpoint('trader.example', 58620, TOKEN).open_socket()
    assert '拒绝连接' in caught.value.message and '服务端没有启动' in caught.value.hint


# -- number of connections -----------------------------------------------------------------------------------
def test_one_connection_too_many_is_told_so_and_gets_the_place_of_one_that_left():
    with serving(max_connections=2) as server, raw_socket(server) as first:
        with raw_socket(server) as second:
            assert [login_raw(first)['type'], login_raw(second)['type']] == ['handshake_ack'] * 2
            with raw_socket(server) as third:
                answer = login_raw(third)
                assert answer['type'] == 'error' and answer['code'] == 'SERVER_BUSY'
                assert answer['retryable'] and answer['retry_after_s'] > 0
                assert read_raw(third) is None
        assert becomes(lambda: server.gate.connections == 1)
        with raw_socket(server) as fourth:
            assert login_raw(fourth)['type'] == 'handshake_ack'


def test_connections_that_have_not_logged_in_take_no_place_of_those_that_do():
    with serving(max_connections=1) as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(raw_socket(server))
        assert becomes(lambda: server.gate.connections == 5)
        with raw_socket(server) as sock:
            assert login_raw(sock)['type'] == 'handshake_ack'


def test_a_crowd_without_room_holds_up_nobody():
    """Peers that say nothing are shown out in a thread of their own; those inside go on."""
    with serving(max_connections=1) as server, raw_socket(server) as inside, contextlib.ExitStack() as stack:
        assert login_raw(inside)['type'] == 'handshake_ack'
        for _ in range(30):
            stack.enter_context(raw_socket(server))
        assert ask_raw(inside, 'admin.health')['payload']['value']['sessions'] == 1


def test_every_way_to_leave_gives_the_place_back():
    with serving(max_connections=1) as server:
        for bad in (b'', b'\x00', b'\xff' * 4, b'\x00\x00\x00\x02[]'):
            with raw_socket(server) as sock:
                sock.sendall(bad)
                sock.shutdown(socket.SHUT_WR)
                while read_raw(sock) is not None:  # its session has seen it
                    continue
            assert becomes(lambda: server.gate.connections == 0)
        with raw_socket(server) as sock:
            assert login_raw(sock, token='wrong')['code'] == 'AUTH_FAILED'
        assert becomes(lambda: server.gate.connections == 0)


def test_a_machine_without_threads_left_gives_the_place_back(monkeypatch):
    with serving() as server:
        start = threading.Thread.start

        def refuse_sessions(thread):
            if thread.name.startswith('session-'):
                raise RuntimeError("can't start new thread")
            start(thread)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, 'start', refuse_sessions)
            with raw_socket(server) as sock:
                answer = login_raw(sock)
                assert answer['code'] == 'SERVER_BUSY' and answer['retryable']
                assert read_raw(sock) is None
        assert server.gate.connections == 0
        with raw_socket(server) as sock:
            assert login_raw(sock)['type'] == 'handshake_ack'


# -- login time ----------------------------------------------------------------------------------------------
def test_a_silent_peer_is_cut_off_after_the_login_time(monkeypatch):
    monkeypatch.setattr(bq, 'LOGIN_TIMEOUT_S', 0.15)
    with serving() as server, raw_socket(server) as sock:
        assert read_raw(sock)['code'] == 'REQUEST_TIMEOUT'
        assert read_raw(sock) is None


def test_bytes_that_trickle_in_do_not_stretch_the_login_time(monkeypatch):
    monkeypatch.setattr(bq, 'LOGIN_TIMEOUT_S', 0.3)
    with serving() as server, raw_socket(server) as sock:
        sock.sendall(b'\x00\x00\x0f\xff')
        answered, trickled = threading.Event(), []
        reader = threading.Thread(target=lambda: (trickled.append(read_raw(sock)), answered.set()), daemon=True)
        reader.start()
        with contextlib.suppress(OSError):
            for _ in range(400):
                if answered.wait(0.05):
                    break
                sock.sendall(b' ')
        assert answered.is_set() and trickled[0]['code'] == 'REQUEST_TIMEOUT'
        reader.join()


def test_the_login_time_ends_with_the_login(monkeypatch):
    """Driven by the keepalive below it: the session outlives the login time by far."""
    monkeypatch.setattr(bq, 'LOGIN_TIMEOUT_S', 0.2)
    monkeypatch.setattr(bq, 'KEEPALIVE_S', 0.2)
    with serving() as server, raw_socket(server) as sock:
        assert login_raw(sock)['type'] == 'handshake_ack'
        assert not threading.Event().wait(0.3)
        assert ask_raw(sock, 'admin.health')['type'] == 'response'


def test_a_login_frame_above_4_kib_is_refused():
    with serving() as server, raw_socket(server) as sock:
        sock.sendall(b'\x00\x00\x10\x01')
        answer = read_raw(sock)
        assert answer['code'] == 'FRAME_TOO_LARGE' and '4097' in answer['message']
        assert read_raw(sock) is None


def test_a_login_frame_of_exactly_4_kib_is_read():
    with serving() as server, raw_socket(server) as sock:
        body = b'{"type":"handshake","token":"%s"}' % TOKEN.encode()
        send_raw(sock, body + b' ' * (4096 - len(body)))
        assert read_raw(sock)['type'] == 'handshake_ack'
        send_raw(sock, {'action': 'admin.health', 'id': 'x' * 100, 'payload': {'more': 'x' * 10000}})
        assert read_raw(sock)['type'] == 'response', 'after the login frames may be larger'


# -- keepalive -----------------------------------------------------------------------------------------------
def test_a_session_silent_for_three_keepalives_is_closed(monkeypatch):
    monkeypatch.setattr(bq, 'KEEPALIVE_S', 0.05)
    with serving() as server, raw_socket(server) as sock:
        assert login_raw(sock)['keepalive'] == 0.05
        assert read_raw(sock) is None


def test_a_ping_keeps_a_session_alive(monkeypatch):
    monkeypatch.setattr(bq, 'KEEPALIVE_S', 0.3)
    with serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        for number in range(3):
            assert not threading.Event().wait(0.4)
            send_raw(sock, {'type': 'ping', 'id': number})
            assert read_raw(sock) == {'type': 'pong', 'id': number}


def test_a_large_request_on_a_slow_line_is_not_silence(monkeypatch):
    """It takes longer than three keepalives, but something comes in all the time."""
    monkeypatch.setattr(bq, 'KEEPALIVE_S', 0.2)
    with serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        body = b'{"id":1,"action":"admin.health"}'
        sock.sendall(b'\x00\x00\x00' + bytes([len(body) + 8]))
        for _ in range(8):
            sock.sendall(b' ')
            assert not threading.Event().wait(0.12)
        sock.sendall(body)
        assert read_raw(sock)['type'] == 'response'


# -- wrong tokens --------------------------------------------------------------------------------------------
def guess(gate, address, token='wrong'):
    try:
        gate.check_token(address, token)
    except bq.AuthFailed as error:
        return error.code
    return 'in'


def test_a_token_that_cannot_be_guessed_is_compared_whatever_was_tried_before():
    gate = make_gate()
    for _ in range(1000):
        assert guess(gate, '127.0.0.1') == 'AUTH_FAILED'
        assert guess(gate, '127.0.0.1', TOKEN) == 'in'


def test_only_the_answer_to_a_wrong_token_waits_and_not_to_the_first_ones():
    now = [0.0]
    gate, pauses = make_gate(now), []
    for _ in range(7):
        guess(gate, '203.0.113.9')
        pauses.append(gate.answer_pause_s('203.0.113.9'))
    assert pauses == [0] * 5 + [gate.ANSWER_PAUSE_S] * 2
    assert gate.ANSWER_PAUSE_S < bq.PATIENCE_S * bq.ANSWER_SHARE, 'who asks is told, not left to time out'
    assert gate.answer_pause_s('203.0.113.10') == 0
    now[0] = gate.WINDOW_S + 0.1
    assert gate.answer_pause_s('203.0.113.9') == 0


def test_the_owner_gets_in_while_guessers_behind_his_address_wait_for_their_answers():
    """None of them costs a thread."""
    with serving() as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            with raw_socket(server) as sock:
                assert login_raw(sock, token='wrong')['code'] == 'AUTH_FAILED'
        threads = thread_names()
        for _ in range(20):
            send_raw(stack.enter_context(raw_socket(server)), {'type': 'handshake', 'token': 'wrong'})
        assert becomes(lambda: len(server._door._settled) == 20)
        assert thread_names() == threads
        with raw_socket(server) as sock:
            assert login_raw(sock)['type'] == 'handshake_ack'
        assert len(server._door._settled) == 20, 'they still wait'


def test_the_answer_to_a_wrong_token_comes_after_its_pause(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'FAILURES', 0)
    monkeypatch.setattr(bq.Gate, 'PENALTY_S', 0.3)
    with serving() as server, raw_socket(server) as sock:
        assert login_raw(sock, token='wrong')['code'] == 'AUTH_FAILED'
        assert sock.recv(1) == b''


def test_a_server_that_stops_waits_for_nobody_at_the_door(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'FAILURES', 0)
    monkeypatch.setattr(bq.Gate, 'PENALTY_S', 3600.0)
    with serving() as server, raw_socket(server) as sock:
        send_raw(sock, {'type': 'handshake', 'token': 'wrong'})
        assert becomes(lambda: server._door._settled)
        server.close()
        assert server.gate.connections == 0


# -- a token that can be guessed
@pytest.mark.parametrize('token', [
    '', '1', '1234', 'abcdefg1234567', 'short-but-8f3a', 'aaaaaaaaaaaaaaaaaaaaaaaa', '0000000000000000',
    'abababababababababab', 'abcabcabcabcabcabc', '1234567890123456', '0123456789abcdefghij', 'abcdefghijklmnopqrst',
    'ABCDEFGHIJKLMNOPQRST', 'qwertyuiopasdfghjkl', '1qaz2wsx3edc4rfv', '9876543210987654', 'passwordpassword',
    'changeme-changeme', 'YOUR-LONG-RANDOM-TOKEN', 'my-secret-password', 'bullet-qmt-server-token',
    'your-long-random-token-12', 'Password-Password-1', '长的随机口令', '长的随机口令长的随机口令长的随机口令',
    '口口口口口口口口口口口口口口口口', '112233112233112233'])
def test_tokens_that_can_be_guessed(token):
    assert bq.is_guessable(token)


@pytest.mark.parametrize('token', [
    TOKEN, 'KH1_L88_iPhFPoF5bdPL9y5EIfv9cdgj', 'e3b0c44298fc1c14', '9f86d081-884c-7d65-9a2f',
    'correct horse battery staple', '7391840265530917', '一二三四五六七八九十天地玄黄宇宙'])
def test_tokens_that_cannot(token):
    assert not bq.is_guessable(token)


def test_random_tokens_cannot():
    makers = [lambda: secrets.token_urlsafe(24), lambda: secrets.token_hex(16)]
    assert not any(bq.is_guessable(make()) for make in makers * 500)


def test_a_token_that_can_be_guessed_is_compared_once_in_five_seconds_after_five_failures():
    now = [0.0]
    gate = make_gate(now, token=WEAK)
    for _ in range(5):
        assert guess(gate, '203.0.113.9') == 'AUTH_FAILED'
    assert guess(gate, '203.0.113.9') == 'AUTH_FAILED', 'the first look of the slow time'
    assert guess(gate, '203.0.113.9', WEAK) == 'AUTH_THROTTLED', 'what it costs'
    now[0] = 4.9
    with pytest.raises(bq.AuthThrottled) as caught:
        gate.check_token('203.0.113.9', WEAK)
    assert caught.value.retryable and caught.value.details['retry_after_s'] == 0.1
    now[0] = 5.0
    assert guess(gate, '203.0.113.9', WEAK) == 'in'


@pytest.mark.parametrize('guesser, same, other', [
    ('203.0.113.9', '203.0.113.9', '203.0.113.10'), ('203.0.113.9', '::ffff:203.0.113.9', '2001:db8::1'),
    ('2001:db8:0:1::1', '2001:db8:0:1:ffff::2', '2001:db8:0:2::1'), ('fe80::1%eth0', 'fe80::2%eth1', '127.0.0.1')])
def test_guesses_count_by_address_and_by_ipv6_network(guesser, same, other):
    gate = make_gate(token=WEAK)
    for _ in range(6):
        assert guess(gate, guesser) == 'AUTH_FAILED'
    assert guess(gate, other, WEAK) == 'in'
    assert guess(gate, same, WEAK) == 'AUTH_THROTTLED'


def test_guesses_from_many_addresses_have_a_budget_which_does_not_touch_those_that_are_known():
    now = [0.0]
    gate = make_gate(now, token=WEAK)
    assert guess(gate, '192.168.1.2', WEAK) == 'in'
    compared = 0
    for second in range(600):
        now[0] = float(second)
        for number in range(20):
            address = str(ipaddress.ip_address(0x0a000000 + second * 20 + number))
            compared += guess(gate, address) == 'AUTH_FAILED'
        assert guess(gate, '192.168.1.2', WEAK) == 'in'
    assert compared <= 11 * (gate.STRANGERS + gate.WINDOW_S / gate.PENALTY_S), 'of 12,000 in ten minutes'


def test_four_digits_outlast_a_day_of_guesses_from_everywhere():
    """At most a tenth of what there is; after an hour's rest a new address of the owner's waits for nothing."""
    now = [0.0]
    gate = make_gate(now, token='4711')
    compared = 0
    for second in range(0, 86400, 2):
        now[0] = float(second)
        compared += guess(gate, str(ipaddress.ip_address(0x0a000000 + second))) == 'AUTH_FAILED'
    assert 100 < compared < 1000, 'of 43,200'
    with pytest.raises(bq.AuthThrottled) as caught:
        gate.check_token('203.0.113.9', '4711')
    assert caught.value.details['retry_after_s'] <= gate.LONGEST_S
    now[0] += 3700
    assert guess(gate, '203.0.113.9', '4711') == 'in'


def test_failures_are_forgotten_after_a_minute():
    now = [0.0]
    gate = make_gate(now, token=WEAK)
    for _ in range(6):
        guess(gate, '203.0.113.9')
    now[0] = 4.0
    assert guess(gate, '203.0.113.9', WEAK) == 'AUTH_THROTTLED'
    now[0] = 60.1
    assert [guess(gate, '203.0.113.9') for _ in range(5)] == ['AUTH_FAILED'] * 5


def test_the_memory_of_failures_is_bounded(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'REMEMBERED', 50)
    gate = make_gate()
    for number in range(500):
        for token in ('wrong', TOKEN):
            guess(gate, str(ipaddress.ip_address(0x0a000000 + number)), token)
        for _ in range(8 if number == 499 else 0):
            guess(gate, '10.9.9.9')
    assert len(gate._guesses) == 50 and len(gate._known) == 50
    assert max(len(item.times) for item in gate._guesses.values()) == gate.FAILURES + 1


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(bq.hmac, 'compare_digest', lambda one, two: compared.append((type(one), type(two))) or True)
    assert guess(make_gate(), '10.0.0.1', 'anything') == 'in' and compared == [(bytes, bytes)]


# -- the wrong kind of port ----------------------------------------------------------------------------------
def test_a_tls_hello_on_a_plain_port_costs_its_connection_alone(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with serving() as server:
        with raw_socket(server) as sock, pytest.raises((ssl.SSLError, OSError)):
            context.wrap_socket(sock)
        with raw_socket(server) as sock:
            assert login_raw(sock)['type'] == 'handshake_ack'


def test_a_plain_login_on_a_tls_port_costs_its_connection_alone(tmp_path):
    cert, key = make_certificate(tmp_path)
    with serving(tls_cert=cert, tls_key=key) as server:
        with raw_socket(server) as sock:
            send_raw(sock, {'type': 'handshake', 'token': TOKEN})
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(100):  # an alert at most
                    continue
        with bq.RemoteQmtConnection('127.0.0.1', server.address[1], TOKEN, tls_cert=cert) as connection:
            assert connection.request('admin.health')['dtype'] == 'dict'
