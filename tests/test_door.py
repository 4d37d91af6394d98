"""The door: who gets in while a crowd is before it, who goes where places run out, and what the log says of that."""
import contextlib
import errno
import ipaddress
import logging
import socket
import sys
import threading

import pytest

import bullet_qmt as bq

from .base import TOKEN, ask_raw, login_raw, raw_socket, read_raw, send_raw, server_settings, serving
from .certs import make_certificate
from .resources import becomes, nothing_left, thread_names

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='elsewhere 127.0.0.2 is not there by itself')


class Rounds:
    """A door whose rounds are made by hand, so that it is known what has come before each."""

    def __init__(self, places=8, listener=None, **changes):
        self.listener = listener or socket.socket()
        self.listener.bind(('127.0.0.1', 0))
        self.listener.listen(200)
        self.gate, self.let_in = bq.Gate(server_settings(**changes), lambda: 0.0), []
        self.door = bq.Door(self.listener, self.gate, None, self._let_in, places)
        self.pause_s, self.door._pause_s, self.door.REST_S = self.door._pause_s, lambda: 0, 3600.0
        self._clients = []

    def _let_in(self, sock, address, hello):
        self.let_in.append((sock, address))

    def come(self, address='127.0.0.1', token=None, said=b''):
        client = socket.create_connection(self.listener.getsockname(), 10, (address, 0))
        self._clients.append(client)
        if token is not None:
            send_raw(client, {'type': 'handshake', 'token': token})
        client.sendall(said)
        return client

    def go_round(self, times=1):
        for _ in range(times):
            self.door._go_round()

    def waiting(self):
        return sorted(guest.address for guest in self.door._waiting)

    def close(self):
        self.door.close()
        for sock in self._clients + [sock for sock, _ in self.let_in]:
            sock.close()


@contextlib.contextmanager
def rounds(**options):
    with nothing_left(), contextlib.closing(Rounds(**options)) as made:
        yield made


def is_ended(client):
    client.setblocking(False)
    try:
        while client.recv(4096):
            continue
        return True
    except BlockingIOError:
        return False
    finally:
        client.settimeout(10)


# -- room -----------------------------------------------------------------------------------------------------------
@linux
def test_the_address_that_has_most_loses_first():
    with rounds(places=8) as door:
        for address, count in (('127.0.0.2', 5), ('127.0.0.3', 2), ('127.0.0.4', 1)):
            for _ in range(count):
                door.come(address)
        door.go_round()
        for number in range(3):
            door.come('127.0.1.%d' % (number + 1))
            door.go_round()
        newcomers = ['127.0.1.1', '127.0.1.2', '127.0.1.3']
        assert door.waiting() == ['127.0.0.2'] * 2 + ['127.0.0.3'] * 2 + ['127.0.0.4'] + newcomers


@linux
def test_no_address_has_more_than_its_share():
    with rounds(places=8) as door:
        for _ in range(20):
            door.come('127.0.0.2')
        door.go_round()
        assert door.waiting() == ['127.0.0.2'] * 6
        for number in range(2):
            door.come('127.0.1.%d' % (number + 1))
        door.go_round()
        assert len(door.waiting()) == 8, 'what is left is for others, and nobody has to go for them'


def test_of_those_that_have_equally_many_the_lot_decides():
    """Neither the oldest nor the newest can be sure of its place or of its loss."""
    gone = set()
    for _ in range(60):
        with contextlib.closing(Rounds(places=5)) as door:
            clients = [door.come() for _ in range(4)]
            door.go_round()
            door.come()
            door.go_round()
            gone |= {number for number, client in enumerate(clients) if is_ended(client)}
    assert gone == {0, 1, 2, 3}


def test_who_has_been_refused_goes_before_who_may_still_log_in():
    with rounds(places=6) as door:
        silent = [door.come() for _ in range(3)]
        wrong = [door.come(token='wrong') for _ in range(3)]
        door.go_round(2)
        assert len(door.door._settled) == 3 and len(door.waiting()) == 3
        silent.append(door.come())
        door.go_round()
        assert not any(map(is_ended, silent))
        assert [read_raw(sock)['code'] for sock in wrong] == ['AUTH_FAILED'] * 3


def test_a_right_token_that_is_there_already_is_seen_before_anybody_goes():
    with rounds(places=2) as door:
        owner = door.come()
        door.go_round()
        send_raw(owner, {'type': 'handshake', 'token': TOKEN})
        door.door._make_room(1)
        assert len(door.let_in) == 1 and door.waiting() == []


def test_who_goes_is_told_that_it_may_come_again():
    with rounds(places=4) as door:
        clients = [door.come() for _ in range(9)]
        door.go_round()
        answers = [read_raw(client) for client in clients if is_readable(client)]
        assert len(answers) == 6 and {answer['code'] for answer in answers} == {'SERVER_BUSY'}
        assert all(answer['retryable'] and answer['retry_after_s'] > 0 for answer in answers)


def is_readable(client):
    return bq.wait_for_socket(client, 0)


def test_a_crowd_of_any_size_holds_no_more_than_the_places():
    with rounds(places=10) as door:
        for _ in range(10):
            for _ in range(30):
                door.come()
            door.go_round()
            assert door.gate.waiting <= 10 and len(door.door._selector.get_map()) <= 12
        assert len(door.door._crowds) == 1
    assert door.gate.waiting == 0


CROWDS = {'silent': b'', 'half': b'\0\0', 'cut': b'\0\0\1\0{"type"', 'junk': b'GET / HTTP/1.1\r\n\r\n',
          'wrong': b'\0\0\0\x25{"type":"handshake","token":"guess-1"}', 'TLS': b'\x16\x03\x01\x02\0\x01\0\x01\xfc'}


@pytest.mark.parametrize('kind', sorted(CROWDS))
def test_the_owner_gets_in_at_once_whatever_a_crowd_on_his_address_does(kind):
    """On this machine his token is there when he is seen."""
    with rounds(places=16) as door:
        for visit in range(1, 11):
            for _ in range(40):
                door.come(said=CROWDS[kind])
            door.come(token=TOKEN)
            for _ in range(10):
                door.come(said=CROWDS[kind])
            door.go_round(3)
            assert len(door.let_in) == visit


def test_the_owner_whose_token_takes_a_while_keeps_his_place_mostly():
    """A round later, while a quarter of the places goes to others: the lot spares three of four, and he comes again."""
    came = 0
    with rounds(places=40) as door:
        for _ in range(100):
            owner = door.come()
            door.go_round()
            for _ in range(10):
                door.come()
            door.go_round()
            with contextlib.suppress(OSError):
                send_raw(owner, {'type': 'handshake', 'token': TOKEN})
            door.go_round()
        came = len(door.let_in)
    assert came > 40


def test_those_inside_lose_nothing_to_a_crowd(monkeypatch):
    monkeypatch.setattr(bq, 'most_waited_for', lambda: 16)
    with serving(max_connections=2) as server, contextlib.ExitStack() as stack:
        inside = [stack.enter_context(raw_socket(server)) for _ in range(2)]
        assert [login_raw(sock)['type'] for sock in inside] == ['handshake_ack'] * 2
        for _ in range(100):
            stack.enter_context(raw_socket(server))
        assert becomes(lambda: server.gate.waiting == 12)
        assert [ask_raw(sock, 'broker.account')['type'] for sock in inside] == ['response'] * 2
        with raw_socket(server) as third:
            assert login_raw(third)['code'] == 'SERVER_BUSY', 'who knows the token is told at once that it is full'
        assert server.gate.inside == 2


@pytest.mark.parametrize('tls', [False, True])
def test_a_short_connection_gets_in_through_a_crowd(tmp_path, monkeypatch, tls):
    monkeypatch.setattr(bq, 'most_waited_for', lambda: 16)
    cert, key = make_certificate(tmp_path) if tls else (None, None)
    with serving(tls_cert=cert, tls_key=key) as server, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(raw_socket(server))
        client = stack.enter_context(contextlib.closing(
            bq.ShortConnection('127.0.0.1', server.address[1], TOKEN, tls_cert=cert)))
        assert client.request('admin.health')['value']['sessions'] == 1


def test_nobody_at_the_door_has_a_thread():
    with serving() as server, contextlib.ExitStack() as stack:
        threads = thread_names()
        for said in list(CROWDS.values()) * 3:
            stack.enter_context(raw_socket(server)).sendall(said)
        assert becomes(lambda: server.gate.waiting >= 9)
        assert thread_names() == threads


# -- the system's own limits -----------------------------------------------------------------------------------------
class Exhausted(socket.socket):
    """accept() fails so many times as if no descriptor were left."""

    failures, tries = 0, 0

    def accept(self):
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, 'Too many open files')
        return super().accept()


def test_without_descriptors_one_that_waits_gives_up_its_own():
    listener = Exhausted()
    with rounds(listener=listener) as door:
        silent = door.come()
        door.go_round()
        listener.failures = 1
        door.come(token=TOKEN)
        door.go_round(2)
        assert len(door.let_in) == 1 and read_raw(silent)['code'] == 'SERVER_BUSY'


def test_without_descriptors_and_guests_the_listening_rests():
    listener = Exhausted()
    with rounds(listener=listener) as door:
        listener.failures, tries = 3, []
        door.come(token=TOKEN)
        for _ in range(3):
            door.go_round(4)
            tries.append(listener.tries)
            door.door._resting = door.door._looked = 0.001  # its time is over
            door.door._look_at_the_time()
        assert tries == [1, 2, 3], 'four rounds cost one try'
        door.go_round(2)
        assert len(door.let_in) == 1


def test_a_connection_that_is_gone_before_its_turn_holds_up_nobody():
    listener = Exhausted()
    with rounds(listener=listener) as door:
        def accept(real=listener.accept, gone=[ConnectionAbortedError()]):
            if gone:
                raise gone.pop()
            return real()
        Exhausted.accept, kept = lambda self: accept(), Exhausted.accept
        try:
            door.come(token=TOKEN)
            door.go_round()
        finally:
            Exhausted.accept = kept
        assert len(door.let_in) == 1


def test_a_system_that_allows_few_descriptors_is_told_at_the_start(monkeypatch, caplog):
    monkeypatch.setattr(bq.LOG, 'propagate', True)
    monkeypatch.setattr(bq, 'allowed_descriptors', lambda wanted: 100)
    with serving(max_connections=500) as server:
        assert server._door._places == bq.Door.FEWEST
    assert '100' in caplog.text and '500' in caplog.text and 'ulimit' in caplog.text
    caplog.clear()
    monkeypatch.setattr(bq, 'allowed_descriptors', lambda wanted: wanted)
    with serving(max_connections=500) as server:
        assert server._door._places == bq.most_waited_for()
    assert 'ulimit' not in caplog.text


def test_an_error_nobody_foresaw_costs_one_connection_and_one_line(monkeypatch, caplog):
    monkeypatch.setattr(bq.LOG, 'propagate', True)
    with rounds() as door:
        def fail(address, token):
            raise KeyError(token)
        door.gate.check_token = fail
        for _ in range(20):
            door.come(token='x')
        door.go_round(2)
        del door.gate.check_token
        door.come(token=TOKEN)
        door.go_round()
        assert len(door.let_in) == 1
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_round_that_fails_ends_no_door_and_fills_no_log(monkeypatch, caplog):
    monkeypatch.setattr(bq.LOG, 'propagate', True)
    monkeypatch.setattr(bq.Door, 'REST_S', 0.001)
    failed, real = threading.Semaphore(0), bq.Door._welcome

    def fail(door):
        failed.release()
        raise KeyError('welcome')
    with serving() as server:
        monkeypatch.setattr(bq.Door, '_welcome', fail)
        with raw_socket(server) as sock:
            assert all(failed.acquire(timeout=20) for _ in range(50))
            monkeypatch.setattr(bq.Door, '_welcome', real)
            assert login_raw(sock)['type'] == 'handshake_ack'
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_session_that_cannot_begin_gives_its_place_back(monkeypatch):
    def fail(*_):
        raise OSError('no buffer')
    with serving(max_connections=1) as server:
        with monkeypatch.context() as patch:
            patch.setattr(bq.Session, '__init__', fail)
            for _ in range(3):
                with raw_socket(server) as sock:
                    assert login_raw(sock)['code'] == 'SERVER_BUSY'
        with raw_socket(server) as sock:
            assert login_raw(sock)['type'] == 'handshake_ack'


def test_the_queue_before_the_door_is_long():
    assert bq.BulletServer.request_queue_size >= 1000


# -- what the log says ------------------------------------------------------------------------------------------------
@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(bq.LOG, 'propagate', True)
    caplog.set_level(logging.DEBUG, 'bullet_qmt')
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith('bullet_qmt')]


def refusals(now):
    return bq.Refusals(lambda: now[0])


def test_an_address_has_a_line_a_minute_whatever_their_number(lines):
    now = [0.0]
    kept = refusals(now)
    for second in range(180):
        now[0] = float(second)
        for _ in range(100):
            kept.note('203.0.113.9', 'AUTH_FAILED', '口令不匹配')
            kept.note('::ffff:203.0.113.9', 'NO_PLACE', '没有位置')
        kept.tell()
    kept.tell(all=True)
    assert len(lines()) == 4 and all('203.0.113.9' in line for line in lines())
    told = [line for line in lines() if '又有' in line]
    assert sum(int(line.split('又有 ')[1].split(' ')[0]) for line in told) == 180 * 200 - 1
    assert all('AUTH_FAILED' in line and 'NO_PLACE' in line for line in told)


def test_addresses_without_number_have_lines_in_number(lines):
    now = [0.0]
    kept = refusals(now)
    for minute in range(3):
        for number in range(5000):
            now[0] = minute * 60 + number / 100.0
            kept.note('10.%d.%d.%d' % (minute, number // 250, number % 250), 'NO_PLACE', 'x' * 10000)
            kept.tell()
    now[0] += 60
    kept.tell()
    assert len(lines()) <= 4 * (kept.ADDRESSES + 1)
    a_day = sum(len(line.encode('utf-8')) + 40 for line in lines()) / 3 * 1440  # 40: time and level before each
    assert a_day < 60 * 1024 * 1024 / 4, 'a quarter of what the log keeps: orders of the day stay'
    others = [line for line in lines() if '其余' in line]
    assert sum(int(line.split('：')[1].split(' ')[0]) for line in others) == 15000 - 3 * kept.ADDRESSES


def test_the_memory_of_refusals_is_bounded(monkeypatch):
    monkeypatch.setattr(bq.Refusals, 'REMEMBERED', 100)
    kept = refusals([0.0])
    for number in range(5000):
        kept.note('10.0.%d.%d' % (number // 250, number % 250), 'NO_PLACE', 'x')
    assert len(kept._tallies) == kept.ADDRESSES and len(kept._others.sources) == 100
    assert sum(kept._others.counts.values()) == 5000 - kept.ADDRESSES


def test_an_ipv6_network_is_one_address_in_the_log(lines):
    kept = refusals([0.0])
    for number in range(100):
        kept.note('2001:db8::%x' % number, 'AUTH_FAILED', 'x')
    assert len(lines()) == 1


def test_who_is_refused_once_has_one_line(lines):
    now = [0.0]
    kept = refusals(now)
    kept.note('203.0.113.9', 'AUTH_FAILED', '口令不匹配')
    now[0] = 100.0
    assert kept.wait_s() == 0
    kept.tell()
    assert len(lines()) == 1 and kept.wait_s() is None


def counted(server):
    """How many have been counted that had no line of their own."""
    return sum(sum(tally.counts.values()) for tally in list(server.refusals._tallies.values()))


STORM = {'wrong token': CROWDS['wrong'], 'not a login': b'\0\0\0\x0f{"type":"ping"}',
         'junk': b'GET / HTTP/1.1\r\n\r\n', 'half': b'\0\0', 'nothing': b''}


@pytest.mark.parametrize('kind', sorted(STORM))
def test_strangers_write_a_line_whatever_they_do(kind, lines, monkeypatch):
    monkeypatch.setattr(bq.Gate, 'PENALTY_S', 0)
    with serving() as server:
        for _ in range(60):
            with raw_socket(server) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(STORM[kind])
                    sock.shutdown(socket.SHUT_WR)
        silent = kind == 'nothing'
        assert becomes(lambda: counted(server) == (0 if silent else 59) and server.gate.waiting == 0)
        assert len(lines()) == (0 if silent else 1), lines()
    assert len(lines()) == (0 if silent else 2)


def test_those_that_are_not_allowed_write_a_line(lines):
    with serving(allowlist=(ipaddress.ip_network('203.0.113.0/24'),)) as server:
        for _ in range(60):
            with raw_socket(server) as sock:
                assert sock.recv(1) == b''
        assert becomes(lambda: counted(server) == 59)
        assert len(lines()) == 1 and 'allowlist' in lines()[0]
    assert '又有 59 次（NOT_ALLOWED 59）' in lines()[1]


def test_strangers_inside_tls_write_a_line(tmp_path, lines):
    cert, key = make_certificate(tmp_path)
    with serving(tls_cert=cert, tls_key=key) as server:
        for number in range(40):
            with raw_socket(server) as sock:
                sock.sendall(CROWDS['TLS'] if number % 2 else b'junk' * 10)
        assert becomes(lambda: counted(server) == 39)
        assert len(lines()) == 1
    assert '又有 39 次（TLS_FAILED 39）' in lines()[1]


def test_frames_that_are_refused_inside_write_a_line(lines):
    with serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        for _ in range(100):
            send_raw(sock, b'{"id":1,"x":%s}' % (b'9' * 60))
            assert read_raw(sock)['code'] == 'PROTOCOL_ERROR'
        assert len([line for line in lines() if 'PROTOCOL_ERROR' in line]) == 1


def test_a_door_waits_with_nothing_to_do():
    """It wakes up for nobody while nobody is there."""
    with rounds() as door:
        assert door.pause_s() is None
