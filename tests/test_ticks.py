"""Subscriptions and pushed ticks: counts, sharing, the newest tick, slow and dying subscribers, reconnects."""
import contextlib
import queue
import socket
import threading
from datetime import datetime

import pytest

import bullet_qmt as bq

from .base import ask_raw, long_client, login_raw, raw_socket, read_raw, send_raw, serving
from .resources import becomes

ONE, TWO, THREE = '000001.XSHE', '600000.XSHG', '600519.XSHG'


class Source:
    """Stands before the adapter's subscribe and unsubscribe and notes them; ticks come only by hand."""

    def __init__(self, server, monkeypatch):
        self.hub, self.calls, self.held = server.service.hub, [], set()
        data = server.service.backend.data
        monkeypatch.setattr(data, 'subscribe', self.subscribe)
        monkeypatch.setattr(data, 'unsubscribe', self.unsubscribe)
        self.hold, self.entered = None, threading.Event()

    def subscribe(self, codes):
        self.entered.set()
        if self.hold is not None:
            assert self.hold.wait(30)
        assert not self.held & set(codes), 'subscribed twice'
        self.calls.append(('+', sorted(codes)))
        self.held |= set(codes)

    def unsubscribe(self, codes):
        assert self.held >= set(codes), 'unsubscribed twice'
        self.calls.append(('-', sorted(codes)))
        self.held -= set(codes)

    def tick(self, code, price):
        self.hub.deliver(bq.Tick(sid=code, last_price=price, dt=datetime(2024, 1, 5, 10, 0)))


@pytest.fixture
def server():
    with serving(max_subscriptions=3) as server:
        yield server


@pytest.fixture
def source(server, monkeypatch):
    return Source(server, monkeypatch)


@contextlib.contextmanager
def session(server):
    with raw_socket(server) as sock:
        assert login_raw(sock)['type'] == 'handshake_ack'
        yield sock


def change(sock, action, *codes):
    """The answer to a (un)subscription; ticks on the way are skipped."""
    send_raw(sock, {'type': 'request', 'id': 'c', 'action': 'data.' + action, 'payload': {'securities': list(codes)}})
    answer = read_raw(sock)
    while answer['type'] == 'event':
        answer = read_raw(sock)
    return answer.get('payload') or answer


# -- counts --------------------------------------------------------------------------------------------------
def test_counts_of_subscribing_and_unsubscribing(server, source):
    with session(server) as sock:
        assert change(sock, 'subscribe', ONE) == {'count': 1}
        assert change(sock, 'subscribe', ONE, TWO, TWO) == {'count': 2}
        assert change(sock, 'unsubscribe', THREE) == {'count': 2, 'removed': 0}
        assert change(sock, 'unsubscribe', ONE, THREE) == {'count': 1, 'removed': 1}
        assert change(sock, 'subscribe', ONE, THREE) == {'count': 3}
        assert ask_raw(sock, 'data.unsubscribe_all')['payload'] == {'count': 0, 'removed': 3}
        assert ask_raw(sock, 'data.unsubscribe_all')['payload'] == {'count': 0, 'removed': 0}
    assert source.calls == [('+', [ONE]), ('+', [TWO]), ('-', [ONE]), ('+', sorted([ONE, THREE])),
                            ('-', sorted([ONE, TWO, THREE]))]


def test_unsubscribing_nothing_in_particular_is_everything(server, source):
    with session(server) as sock:
        change(sock, 'subscribe', ONE, TWO)
        assert ask_raw(sock, 'data.unsubscribe')['payload'] == {'count': 0, 'removed': 2}
    assert source.held == set()


@pytest.mark.parametrize('asked', [None, [], [''], 'nonsense', [5], {'a': 1}, ['000001.XSHE', None]])
def test_a_subscription_of_nonsense_is_refused_whole(server, source, asked):
    with session(server) as sock:
        answer = ask_raw(sock, 'data.subscribe', {'securities': asked})
        assert answer['type'] == 'error' and answer['code'] in ('BAD_REQUEST', 'SECURITY_NOT_FOUND')
    assert source.calls == [] and server.service.hub.count() == 0


def test_too_many_subscriptions_are_refused_whole(server, source):
    with session(server) as sock, session(server) as other:
        assert change(sock, 'subscribe', ONE, TWO) == {'count': 2}
        refused = change(sock, 'subscribe', THREE, '510050.XSHG')
        assert refused['code'] == 'SUBSCRIPTION_LIMIT' and refused['hint']
        assert change(sock, 'subscribe', ONE, TWO, THREE) == {'count': 3}, 'what one has already does not count twice'
        assert change(other, 'subscribe', '510050.XSHG') == {'count': 1}, 'the limit is for each session'
    assert '510050.XSHG' not in source.calls[1][1]


def test_a_source_that_refuses_leaves_no_subscription(server, source, monkeypatch):
    def refuse(codes):
        raise bq.DataUnavailable('行情源不可用')
    with session(server) as sock:
        with monkeypatch.context() as patch:
            patch.setattr(server.service.backend.data, 'subscribe', refuse)
            assert change(sock, 'subscribe', ONE)['code'] == 'DATA_UNAVAILABLE'
        assert server.service.hub.count() == 0
        assert change(sock, 'subscribe', ONE) == {'count': 1} and source.held == {ONE}


# -- ticks ---------------------------------------------------------------------------------------------------
def test_a_tick_has_the_symbol_as_the_client_spelled_it(server, source):
    with session(server) as sock, session(server) as other:
        change(sock, 'subscribe', '000001.SZ')
        change(other, 'subscribe', ONE)
        source.tick(ONE, 10.5)
        frame = read_raw(sock)
        assert frame['type'] == 'event' and frame['event'] == 'tick'
        assert {name: frame['payload'][name] for name in ('symbol', 'sid', 'last_price', 'dt')} == {
            'symbol': '000001.SZ', 'sid': ONE, 'last_price': 10.5, 'dt': '2024-01-05 10:00:00'}
        assert read_raw(other)['payload']['symbol'] == ONE
        change(sock, 'subscribe', '000001.XSHE')
        source.tick(ONE, 10.6)
        assert read_raw(sock)['payload']['symbol'] == '000001.XSHE', 'the last spelling counts'


def test_ticks_go_only_to_those_who_asked(server, source):
    with session(server) as sock, session(server) as other:
        change(sock, 'subscribe', ONE)
        change(other, 'subscribe', TWO)
        source.tick(ONE, 1.0)
        source.tick(THREE, 2.0)
        source.tick(TWO, 3.0)
        assert read_raw(sock)['payload']['last_price'] == 1.0
        assert read_raw(other)['payload']['last_price'] == 3.0
        assert change(sock, 'unsubscribe', ONE) == {'count': 0, 'removed': 1}
        source.tick(ONE, 4.0)
        send_raw(sock, {'type': 'ping', 'id': 1})
        assert read_raw(sock)['type'] == 'pong'


def test_sessions_share_a_subscription_and_the_last_releases_it(server, source):
    with session(server) as first:
        with session(server) as second:
            change(first, 'subscribe', ONE, TWO)
            change(second, 'subscribe', TWO, THREE)
            assert source.calls == [('+', [ONE, TWO]), ('+', [THREE])]
            change(first, 'unsubscribe', TWO)
            assert source.held == {ONE, TWO, THREE}, 'another still wants it'
        assert becomes(lambda: source.held == {ONE})
    assert becomes(lambda: source.held == set()) and server.service.hub.count() == 0


def test_who_subscribes_what_is_subscribed_makes_the_source_ask_anew(server, source, monkeypatch):
    """Its own subscription may be lost without a word; the wish must reach where the ticks come from."""
    renewed = []
    monkeypatch.setattr(server.service.backend.data, 'renew', renewed.append)
    with session(server) as first, session(server) as second:
        change(first, 'subscribe', ONE)
        assert renewed == []
        assert change(first, 'subscribe', ONE) == {'count': 1} and renewed == [[ONE]]
        assert change(second, 'subscribe', ONE, TWO) == {'count': 2} and renewed == [[ONE], [ONE]]
        assert source.calls == [('+', [ONE]), ('+', [TWO])]


def test_the_stub_pushes_at_its_interval(server):
    with session(server) as sock:
        ask_raw(sock, 'data.subscribe', {'securities': [ONE, TWO]})
        seen = [read_raw(sock)['payload'] for _ in range(6)]
        assert {tick['sid'] for tick in seen} == {ONE, TWO} and all(tick['last_price'] > 0 for tick in seen)


# -- whole markets -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('asked', ['*', 'SH', ['XSHG'], ['sz', ONE]])
def test_whole_markets_are_refused_where_the_server_does_not_allow_them(server, source, asked):
    with session(server) as sock:
        refused = ask_raw(sock, 'data.subscribe', {'securities': asked})
        assert refused['code'] == 'SUBSCRIPTION_LIMIT' and '--allow-full-market' in refused['hint']
    assert source.calls == [] and server.service.hub.count() == 0


def test_a_whole_market_is_one_subscription_and_pushes_all_of_it(monkeypatch):
    with serving(max_subscriptions=3, allow_full_market=True) as server:
        source = Source(server, monkeypatch)
        with session(server) as sock, session(server) as other:
            assert change(sock, 'subscribe', 'SH') == {'count': 1}
            assert change(sock, 'subscribe', 'XSHG', '600519.SH') == {'count': 2}
            assert change(other, 'subscribe', TWO) == {'count': 1}
            for code, price in ((ONE, 1.0), (TWO, 2.0), (THREE, 3.0)):
                source.tick(code, price)
            told = [read_raw(sock)['payload'] for _ in range(2)]
            assert [(tick['symbol'], tick['last_price']) for tick in told] == [(TWO, 2.0), ('600519.SH', 3.0)]
            assert read_raw(other)['payload']['last_price'] == 2.0
            assert change(sock, 'unsubscribe', 'SH') == {'count': 1, 'removed': 1}
            source.tick(TWO, 4.0)
            assert read_raw(other)['payload']['last_price'] == 4.0
            assert ask_raw(sock, 'data.unsubscribe_all')['payload'] == {'count': 0, 'removed': 1}


def test_all_markets_at_once(monkeypatch):
    with serving(allow_full_market=True) as server:
        source = Source(server, monkeypatch)
        with session(server) as sock:
            assert change(sock, 'subscribe', '*') == {'count': 3}
            assert source.held == set(bq.MARKETS)
            source.tick('920047.BJ', 5.0)
            assert read_raw(sock)['payload']['sid'] == '920047.BJ'
        assert becomes(lambda: source.held == set())


def test_the_stub_pushes_whole_markets():
    with serving(allow_full_market=True) as server, session(server) as sock:
        listed = {code for code in server.service.backend.data.source.codes() if code.endswith('.XSHE')}
        change(sock, 'subscribe', 'SZ')
        seen = set()
        while seen != listed:
            seen.add(read_raw(sock)['payload']['sid'])
            assert seen <= listed


def test_a_tick_that_is_no_json_silences_no_other(server, source):
    with session(server) as sock:
        change(sock, 'subscribe', ONE)
        source.tick(ONE, float('nan'))
        assert becomes(lambda: not next(iter(server._sessions))._outbox._ticks)
        source.tick(ONE, 5.0)
        assert read_raw(sock)['payload']['last_price'] == 5.0


# -- what waits to be sent -------------------------------------------------------------------------------------
class HeldChannel:
    """A channel that takes nothing at once, and whose patient writes wait to be let go."""

    alive = True

    def __init__(self):
        self.entered, self.go, self.sent = threading.Semaphore(0), threading.Semaphore(0), queue.Queue()

    def try_write(self, data):
        return 0

    def write(self, data):
        self.entered.release()
        assert self.go.acquire(timeout=30)
        self.sent.put(bytes(data))

    def next(self):
        self.go.release()
        return self.sent.get(timeout=20)


def frame_of(values):
    return bq.encode_frame({'n': values if len(values) > 1 else values[0]})


def held_outbox(part_size=None, batch=False):
    """(channel, outbox) that is busy with a first frame."""
    channel = HeldChannel()
    outbox = bq.Outbox('test', channel, part_size, frame_of, batch)
    outbox.put([bq.encode_frame({'n': 'first'})])
    assert channel.entered.acquire(timeout=20)
    return channel, outbox


def sent(channel, count):
    return [bq.decode_frame(channel.next()[4:])['n'] for _ in range(count)]


def test_a_newer_tick_replaces_an_unsent_one_of_its_symbol():
    channel, outbox = held_outbox()
    for price in (2, 3, 4):
        outbox.put_tick('a', price)
        outbox.put_tick('b', price * 10)
    assert sent(channel, 3) == ['first', 4, 40]
    outbox.close()
    assert channel.sent.empty()


def test_ticks_that_wait_leave_in_one_frame_for_a_client_that_takes_many():
    channel, outbox = held_outbox(batch=True)
    for number, symbol in enumerate('abcda'):
        outbox.put_tick(symbol, number)
    assert sent(channel, 2) == ['first', [4, 1, 2, 3]]
    outbox.close()


def test_frames_leave_in_order_and_before_ticks():
    channel, outbox = held_outbox()
    outbox.put_tick('x', 'tick')
    for number in range(3):
        outbox.put([bq.encode_frame({'n': number})])
    assert sent(channel, 5) == ['first', 0, 1, 2, 'tick']
    outbox.close()


def test_long_frames_leave_in_parts_and_the_others_between_them():
    channel, outbox = held_outbox(part_size=50000)
    long = [bq.encode_frame({'n': letter * 120000}) for letter in 'xy']
    for frame in long:
        outbox.put([frame[:100], frame[100:]])
    outbox.put_tick('t', 'tick')
    assert sent(channel, 1) == ['first']
    parts, between = {1: b'', 2: b''}, []
    order = []
    for number in range(8):
        if number == 3:
            outbox.put([bq.encode_frame({'n': 'urgent'})])
        data = channel.next()
        word = int.from_bytes(data[:4], 'big')
        if word & bq._PART_BIT:
            stream = int.from_bytes(data[4:8], 'big')
            assert word & bq._LENGTH_MASK == len(data) - 4 <= 50004
            parts[stream] += data[8:]
            order.append(stream)
        else:
            between.append((number, bq.decode_frame(data[4:])['n']))
    assert [parts[1], parts[2]] == long, 'whole again'
    assert order == [1, 2, 1, 2, 1, 2], 'long frames take turns too'
    assert dict(map(reversed, between))['urgent'] <= 4 and 'tick' in dict(map(reversed, between))
    outbox.close()


class EagerChannel:
    """A channel whose socket takes a few bytes at a time."""

    alive = True

    def __init__(self, room):
        self.room, self.data, self.threads = room, b'', []

    def try_write(self, data):
        taken = bytes(data[:self.room])
        self.data += taken
        self.threads.append(threading.current_thread())
        return len(taken)

    def write(self, data):
        self.data += bytes(data)
        self.threads.append(threading.current_thread())


def test_who_lets_small_answers_wait_is_cut_off(monkeypatch):
    monkeypatch.setattr(bq.Outbox, 'SMALL_LIMIT', 5000)
    channel, outbox = held_outbox()
    cut = []
    channel.abort = lambda: cut.append(True)
    with pytest.raises(bq.ConnectionLost):
        for _ in range(100):
            outbox.put([bq.encode_frame({'n': 'x' * 500})])
    assert cut == [True] and len(sent(channel, 10)) == 10
    outbox.close()


def test_a_free_line_needs_no_thread():
    channel = EagerChannel(10 ** 6)
    outbox = bq.Outbox('test', channel, None, frame_of)
    frames = [bq.encode_frame({'n': number}) for number in range(20)]
    for frame in frames:
        outbox.put([frame])
    outbox.put_tick('a', 'tick')
    assert channel.data == b''.join(frames) + bq.encode_frame({'n': 'tick'})
    assert set(channel.threads) == {threading.current_thread()} and outbox._thread is None
    outbox.close()


def test_what_the_line_does_not_take_follows_in_order():
    channel = EagerChannel(3)
    outbox = bq.Outbox('test', channel, None, frame_of)
    frames = [bq.encode_frame({'n': number}) for number in range(50)]
    for frame in frames:
        outbox.put([frame])
    outbox.flush(20)
    assert channel.data == b''.join(frames) and outbox._backlog == 0
    outbox.close()


def test_a_subscriber_that_stops_reading_is_cut_off_and_costs_the_others_nothing(monkeypatch):
    monkeypatch.setattr(bq.Channel, 'WRITE_TIMEOUT_S', 0.5)
    with serving() as server:
        source = Source(server, monkeypatch)
        with session(server) as deaf, session(server) as other:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            change(deaf, 'subscribe', ONE)
            change(other, 'subscribe', ONE)
            dying = [item for item in server._sessions if ONE in server.service.hub._spelling.get(item, ())]
            assert len(dying) == 2
            received = 0
            big = bq.Tick(sid=ONE, last_price=1.0, a1_v=['x' * 60000])
            while server.gate.connections == 2:
                server.service.hub.deliver(big)
                assert read_raw(other)['payload']['sid'] == ONE
                received += 1
            assert received > 1
            server.service.hub.deliver(big)
            assert read_raw(other)['type'] == 'event', 'the one that reads is still served'
            assert source.held == {ONE} and len(server.service.hub._spelling) == 1
        assert becomes(lambda: source.held == set())


def test_a_slow_reader_of_a_large_answer_is_not_cut_off(monkeypatch):
    """It takes several write timeouts for all of it, but never one for a piece."""
    monkeypatch.setattr(bq.Channel, 'WRITE_TIMEOUT_S', 0.5)
    size = 12 * 1024 * 1024
    monkeypatch.setitem(bq.ACTIONS, 'data.history', bq.ACTIONS['data.history']._replace(
        run=lambda *_: {'text': 'x' * size}))
    with serving() as server, session(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        send_raw(sock, {'id': 1, 'action': 'data.history'})
        total, pause = 0, threading.Event()
        while total < size:
            chunk = sock.recv(1024 * 1024)
            assert chunk, 'cut off after %d bytes' % total
            if total // 2 ** 20 < (total + len(chunk)) // 2 ** 20:
                assert not pause.wait(0.1)
            total += len(chunk)


# -- dying sessions ------------------------------------------------------------------------------------------
def test_a_session_that_dies_while_it_subscribes_leaks_nothing(server, source):
    source.hold = threading.Event()
    with session(server) as sock:
        send_raw(sock, {'id': 1, 'action': 'data.subscribe', 'payload': {'securities': [ONE]}})
        assert source.entered.wait(20)
        dying = next(iter(server._sessions))
    assert becomes(lambda: dying.ended)
    source.hold.set()
    assert becomes(lambda: server.gate.connections == 0)
    assert becomes(lambda: source.held == set()) and server.service.hub._spelling == {}


def test_a_subscription_that_comes_after_the_end_of_its_session_is_refused(server, source):
    with session(server):
        ended = next(iter(server._sessions))
    assert becomes(lambda: server.gate.connections == 0)
    with pytest.raises(bq.ConnectionLost):
        server.service.hub.subscribe(ended, {ONE: ONE})
    assert source.calls == []


def test_a_source_that_fails_to_unsubscribe_keeps_no_socket_open(server, source, monkeypatch):
    def fail(codes):
        raise OSError('gone')
    monkeypatch.setattr(server.service.backend.data, 'unsubscribe', fail)
    with session(server) as sock:
        change(sock, 'subscribe', ONE)
        ended = next(iter(server._sessions))
        sock.shutdown(socket.SHUT_WR)
        assert read_raw(sock) is None
    assert becomes(lambda: server.gate.connections == 0) and ended._sock.fileno() == -1


# -- the long client -----------------------------------------------------------------------------------------
def test_the_long_client_subscribes_again_after_the_server_cut_its_connection(server, source):
    ticks = queue.Queue()
    with long_client(server, backoff_s=(0.01, 0.05)) as client:
        client.add_event_listener('tick', ticks.put)
        assert client.subscribe('mine', ['000001.sz', TWO]) == {'count': 2}
        source.tick(ONE, 1.0)
        assert ticks.get(timeout=20)['symbol'] == '000001.SZ'
        first = next(iter(server._sessions))
        first.abort()
        assert becomes(lambda: source.calls[-1:] == [('+', [ONE, TWO])] and len(source.calls) == 3)
        assert source.calls[1] == ('-', [ONE, TWO])
        assert becomes(lambda: server.service.hub.count() == 2)
        source.tick(ONE, 2.0)
        assert ticks.get(timeout=20)['last_price'] == 2.0
        assert client.unsubscribe('mine', ['000001.SZ']) == {'count': 1, 'removed': 1} and source.held == {TWO}


def test_a_listener_may_make_requests(server, source):
    answers = queue.Queue()
    with long_client(server) as client:
        client.add_event_listener('tick', lambda tick: answers.put(client.request('admin.health')))
        client.subscribe('mine', [ONE])
        source.tick(ONE, 1.0)
        assert answers.get(timeout=20)['dtype'] == 'dict'
