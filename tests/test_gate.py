"""The gate: who may connect, how many, how often a wrong token may be tried, how long a silent peer stays."""
import contextlib
import ipaddress
import random
import socket
import ssl
import threading
from collections import Counter

import pytest

import bullet_qmt as bq

from .base import TOKEN, ask_raw, login_raw, raw_socket, read_raw, send_raw, server_settings, serving
from .certs import make_certificate
from .resources import becomes


class PatientGate(bq.Gate):
    """Notes how long logins wait instead of waiting."""

    def __init__(self, settings, now, **options):
        super().__init__(settings, lambda: now[0], **options)
        self.now, self.waited = now, []

    def _pause(self, seconds):
        self.waited.append(seconds)
        self.now[0] += seconds


def make_gate(now=None, chance=lambda: 0.0, **changes):
    return PatientGate(server_settings(**changes), now or [0.0], chance=chance)


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


def test_ipv6_end_to_end():
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(('::1', 0))
        except OSError:
            pytest.skip('this machine has no IPv6')
    with serving(listen='::1', allowlist=networks('::1/128')) as server, raw_socket(server) as sock:
        assert login_raw(sock)['type'] == 'handshake_ack'


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


def test_connections_that_have_not_logged_in_count():
    with serving(max_connections=1) as server, raw_socket(server):
        assert becomes(lambda: server.gate.connections == 1)
        with raw_socket(server) as sock:
            assert login_raw(sock)['code'] == 'SERVER_BUSY'


def test_connections_that_never_log_in_lose_their_places_to_newcomers(monkeypatch):
    monkeypatch.setattr(bq, 'LOGIN_GRACE_S', 0.0)
    with serving(max_connections=3) as server, contextlib.ExitStack() as stack:
        inside = stack.enter_context(raw_socket(server))
        assert login_raw(inside)['type'] == 'handshake_ack'
        silent = [stack.enter_context(raw_socket(server)) for _ in range(2)]
        assert becomes(lambda: server.gate.connections == 3)
        for _ in range(4):
            with raw_socket(server) as sock:
                assert login_raw(sock)['type'] == 'handshake_ack'
            assert becomes(lambda: server.gate.connections < 3)
            silent.append(stack.enter_context(raw_socket(server)))
            assert becomes(lambda: server.gate.connections == 3)
        assert silent[0].recv(1) == b'', 'the oldest went first'
        assert ask_raw(inside, 'admin.health')['type'] == 'response', 'nobody who is in is touched'


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
def fail_five_times(server):
    for _ in range(5):
        with raw_socket(server) as sock:
            assert login_raw(sock, token='wrong')['code'] == 'AUTH_FAILED'


def test_after_five_wrong_tokens_the_right_one_waits_and_a_second_is_refused(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'PENALTY_S', 1.0)
    with serving() as server:
        server.gate.chance = lambda: 0.99
        fail_five_times(server)
        with raw_socket(server) as first, raw_socket(server) as second:
            send_raw(first, {'type': 'handshake', 'token': TOKEN})
            assert becomes(lambda: server.gate._lots)
            refused = login_raw(second)
            assert refused['code'] == 'AUTH_THROTTLED' and refused['retryable']
            assert 0 < refused['retry_after_s'] <= bq.Gate.PENALTY_S
            assert server.gate._lots, 'refused at once, while the first still waits'
            assert read_raw(first)['type'] == 'handshake_ack'
        with raw_socket(server) as third:
            assert login_raw(third)['type'] == 'handshake_ack', 'the place of the one that waits is free again'


def test_four_wrong_tokens_are_not_punished(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'PENALTY_S', 3600.0)
    with serving() as server:
        for _ in range(4):
            with raw_socket(server) as sock:
                assert login_raw(sock, token='wrong')['code'] == 'AUTH_FAILED'
        with raw_socket(server) as sock:
            assert login_raw(sock)['type'] == 'handshake_ack'


def test_a_server_that_stops_lets_a_waiting_login_go(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'PENALTY_S', 3600.0)
    with serving() as server:
        fail_five_times(server)
        with raw_socket(server) as sock:
            send_raw(sock, {'type': 'handshake', 'token': TOKEN})
            assert becomes(lambda: server.gate._lots)
            server.close()
            assert not server.gate._lots


def guess(gate, address, token='wrong'):
    try:
        gate.check_token(address, token)
    except bq.AuthFailed as error:
        return error.code
    return 'in'


@pytest.mark.parametrize('guesser, same, other', [
    ('203.0.113.9', '203.0.113.9', '203.0.113.10'), ('203.0.113.9', '::ffff:203.0.113.9', '2001:db8::1'),
    ('2001:db8:0:1::1', '2001:db8:0:1:ffff::2', '2001:db8:0:2::1'), ('fe80::1%eth0', 'fe80::2%eth1', '127.0.0.1')])
def test_guesses_count_by_address_and_by_ipv6_network(guesser, same, other):
    gate = make_gate()
    for _ in range(5):
        assert guess(gate, guesser) == 'AUTH_FAILED'
    assert gate.waited == []
    assert guess(gate, other, TOKEN) == 'in' and gate.waited == []
    assert guess(gate, same, TOKEN) == 'in' and gate.waited == [bq.Gate.PENALTY_S]


def test_failures_are_forgotten_after_a_minute():
    now = [0.0]
    gate = make_gate(now)
    for _ in range(5):
        guess(gate, '203.0.113.9')
    now[0] = 54.9
    assert guess(gate, '203.0.113.9', TOKEN) == 'in' and len(gate.waited) == 1
    now[0] = 60.1
    assert guess(gate, '203.0.113.9', TOKEN) == 'in' and len(gate.waited) == 1


def test_wrong_guesses_while_punished_go_on_counting():
    gate = make_gate()
    for _ in range(60):
        guess(gate, '203.0.113.9')
    assert len(gate.waited) == 55, 'all but the first five waited'


class CrowdedGate(PatientGate):
    """While one login waits, others come from the same address."""

    def __init__(self, crowd, **options):
        super().__init__(server_settings(), [0.0], **options)
        self.crowd, self.answers = crowd, []

    def _pause(self, seconds):
        self.crowd, crowd = 0, self.crowd
        for _ in range(crowd):
            self.answers.append(guess(self, '203.0.113.9'))
        super()._pause(seconds)


def test_of_a_crowd_one_login_at_a_time_waits_and_the_others_are_refused_at_once():
    gate = CrowdedGate(3, chance=lambda: 0.99)  # nobody who comes later draws the lot
    for _ in range(5):
        guess(gate, '203.0.113.9')
    assert guess(gate, '203.0.113.9', TOKEN) == 'in'
    assert gate.answers == ['AUTH_THROTTLED'] * 3 and gate.waited == [bq.Gate.PENALTY_S]


def test_the_one_whose_token_is_looked_at_is_drawn_by_lot():
    """With the same chance for each: whoever shares an address with a guesser is not shut out."""
    draws, rng = Counter(), random.Random(7)
    for _ in range(3000):
        lot, holders = bq._Lot(5.0), {}
        for number in range(5):
            holders[lot.draw(rng.random)] = number
        draws[holders[lot.holder]] += 1
    assert set(draws) == set(range(5)) and min(draws.values()) > 450


def test_one_that_lost_its_turn_to_another_is_refused():
    with serving() as server:
        server.gate.PENALTY_S, server.gate.chance = 3600.0, lambda: 0.0  # whoever comes last draws the lot
        fail_five_times(server)
        with raw_socket(server) as first, raw_socket(server) as second:
            send_raw(first, {'type': 'handshake', 'token': TOKEN})
            assert becomes(lambda: server.gate._lots)
            send_raw(second, {'type': 'handshake', 'token': TOKEN})
            assert read_raw(first)['code'] == 'AUTH_THROTTLED'
            server.gate.close()
            assert read_raw(second)['code'] == 'AUTH_THROTTLED'


def test_the_memory_of_failures_is_bounded(monkeypatch):
    monkeypatch.setattr(bq.Gate, 'REMEMBERED', 50)
    gate = make_gate()
    for number in range(500):
        guess(gate, str(ipaddress.ip_address(0x0a000000 + number)))
        for _ in range(8 if number == 499 else 0):
            guess(gate, '10.9.9.9')
    assert len(gate._failures) == 50 and max(map(len, gate._failures.values())) == bq.Gate.FAILURES


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
