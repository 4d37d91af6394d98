"""Long, short and in-process connections, against our server and against servers that misbehave on purpose."""
import contextlib
import os
import queue
import socket
import struct
import threading
from datetime import datetime, timedelta

import pytest

import bullet_qmt as bq
from tests.base import (
    TOKEN, long_client, login_raw, raw_socket, read_raw, send_raw, serving, server_settings, short_client)
from tests.fakes import FakeClock
from tests.resources import becomes

ORDER = {'security': '000001.XSHE', 'side': 'BUY', 'amount': 100, 'style': {'type': 'market'}}
CUT = object()  # in a script: end the connection


class ScriptedServer:
    """Accepts connections and answers from a script; notes what it saw.

    acks: one handshake answer per connection, the last one for all later ones; None cuts the connection.
    answer(server, frame, number): called for each request, number counting from 1; gives a list of frames, of bytes,
    and CUT. Pings are answered unless `deaf`.
    """

    def __init__(self, answer=None, acks=None):
        self.answer, self.acks = answer or (lambda server, frame, number: [reply(frame)]), list(acks or [ack()])
        self.deaf, self.dropped, self._ended = False, threading.Event(), False
        self.requests, self.logins, self.seen, self.tokens, self.hellos = [], 0, queue.Queue(), [], []
        self._lock, self._socks = threading.Lock(), []
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(32)
        self.address = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self):
        self._ended = True
        with contextlib.closing(socket.create_connection(self.address)):  # accept() ends by nothing else on Windows
            self._threads[0].join(10)
        self._listener.close()
        self.drop()
        for sock in self._socks if os.name == 'nt' else ():  # where only that ends the recv() of another thread
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def drop(self):
        for sock in list(self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def emit(self, frame):
        send_raw(self._socks[-1], frame)

    def _accept(self):
        while True:
            sock, _ = self._listener.accept()
            if self._ended:
                sock.close()
                return
            self._socks.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock):
        with contextlib.closing(sock), contextlib.suppress(OSError, AssertionError):
            hello = read_raw(sock)
            if hello is None:
                return
            with self._lock:
                self.logins += 1
                self.tokens.append(hello['token'])
                self.hellos.append(hello)
                answer = self.acks.pop(0) if len(self.acks) > 1 else self.acks[0]
            if answer is None:
                return
            send_raw(sock, answer)
            while self._step(sock):
                pass

    def _step(self, sock):
        frame = read_raw(sock)
        if frame is None:
            self.dropped.set()
            return False
        if frame.get('type') == 'ping':
            return self.deaf or send_raw(sock, {'type': 'pong', 'id': frame['id']}) is None
        with self._lock:
            self.requests.append(frame)
            number = len(self.requests)
        answers = self.answer(self, frame, number)
        self.seen.put(frame)
        for item in answers:
            if item is CUT:
                return False
            sock.sendall(item) if isinstance(item, bytes) else send_raw(sock, item)
        return True


def ack(journal='j1', **more):
    frame = dict({'type': 'handshake_ack', 'session_id': 's', 'keepalive': 20, 'protocol': 1, 'features': []}, **more)
    return dict(frame, journal_id=journal) if journal else frame


def reply(frame, payload=None):
    return {'type': 'response', 'id': frame['id'], 'payload': {'order_id': 'o1'} if payload is None else payload}


def refusal(frame, code, **more):
    return dict(more, type='error', id=frame['id'], code=code, message='不行')


@contextlib.contextmanager
def scripted(answer=None, acks=None):
    with contextlib.closing(ScriptedServer(answer, acks)) as server:
        yield server


@contextlib.contextmanager
def scripted_client(server, **options):
    with long_client(server, **dict({'backoff_s': (0.01, 0.05), 'request_timeout': 10.0}, **options)) as client:
        yield client


def scripted_short(server, **options):
    return short_client(server, **dict({'retry_interval': 0.0, 'request_timeout': 10.0}, **options))


def first_cut(then=None):
    """Cuts the connection at the first request, answers the later ones."""
    def answer(server, frame, number):
        return [CUT] if number == 1 else [then(frame) if then else reply(frame)]
    return answer


KINDS = pytest.mark.parametrize('kind', ['long', 'short'])


@contextlib.contextmanager
def client_of(kind, server, **options):
    if kind == 'long':
        with scripted_client(server, **options) as client:
            yield client
    else:
        yield scripted_short(server, **options)


# -- the rule of writes, for both kinds -------------------------------------------------------------------------------
@KINDS
def test_reads_are_sent_again(kind):
    with scripted(first_cut(), [ack('j1'), ack(None)]) as server, client_of(kind, server) as client:
        assert client.request('data.snapshot', {'security': 'x'}) == {'order_id': 'o1'}
        assert len(server.requests) == 2 and server.logins == 2


@KINDS
@pytest.mark.parametrize('action', ['broker.place_order', 'broker.cancel_order'])
def test_writes_are_sent_again_to_the_same_journal_with_the_same_key(kind, action):
    with scripted(first_cut()) as server, client_of(kind, server) as client:
        assert client.request(action, dict(ORDER)) == {'order_id': 'o1'}
        keys = [frame['payload']['idempotency_key'] for frame in server.requests]
        assert len(keys) == 2 and len(set(keys)) == 1 and keys[0].startswith(bq.WRITES[action] + '-')


@KINDS
@pytest.mark.parametrize('acks', [[ack('j1'), ack('j2')], [ack('j1'), ack(None)], [ack(None)], [ack(None), ack('j1')]])
def test_writes_are_never_sent_again_to_another_journal(kind, acks):
    with scripted(first_cut(), acks) as server, client_of(kind, server) as client:
        with pytest.raises(bq.OrderStateUnknown) as caught:
            client.request('broker.place_order', dict(ORDER, idempotency_key='k'))
        assert caught.value.idempotency_key == 'k' and len(server.requests) == 1


@KINDS
@pytest.mark.parametrize('code, more, kind_of_error', [
    ('ORDER_REJECTED', {'broker_called': False}, bq.OrderRejected),
    ('ORDER_REJECTED', {'broker_called': True}, bq.OrderRejected),
    ('BAD_REQUEST', {}, bq.BadRequest), ('IDEMPOTENCY_CONFLICT', {}, bq.IdempotencyConflict),
    ('REQUEST_FAILED', {'broker_called': False}, bq.BulletError), ('JOURNAL_FAILED', {}, bq.JournalError),
    ('QMT_UNAVAILABLE', {'broker_called': False, 'retryable': False}, bq.QmtUnavailable),
    ('REQUEST_FAILED', {}, bq.OrderStateUnknown), ('REQUEST_FAILED', {'broker_called': True}, bq.OrderStateUnknown),
    ('REQUEST_TIMEOUT', {'retryable': False}, bq.OrderStateUnknown), ('INTERNAL_ERROR', {}, bq.OrderStateUnknown),
    ('BIG_QMT_GATEWAY_TIMEOUT', {'broker_called': True}, bq.OrderStateUnknown)])
def test_what_an_error_answer_means_for_a_write(kind, code, more, kind_of_error):
    with scripted(lambda server, frame, number: [refusal(frame, code, **more)]) as server:
        with client_of(kind, server) as client, pytest.raises(bq.BulletError) as caught:
            client.request('broker.place_order', dict(ORDER, idempotency_key='k'))
        assert type(caught.value) is kind_of_error and len(server.requests) == 1
        if kind_of_error is bq.OrderStateUnknown:
            assert caught.value.idempotency_key == 'k'


@KINDS
@pytest.mark.parametrize('code, certain', [('ORDER_REJECTED', True), ('IDEMPOTENCY_CONFLICT', True),
                                           ('SERVER_BUSY', False), ('BAD_REQUEST', False),
                                           ('ACCOUNT_NOT_FOUND', False), ('ORDER_NOT_FOUND', False),
                                           ('JOURNAL_FAILED', False), ('SERVICE_DISABLED', False)])
def test_a_refusal_of_the_repeat_may_know_nothing_of_the_first_attempt(kind, code, certain):
    with scripted(first_cut(lambda frame: refusal(frame, code))) as server, client_of(kind, server) as client:
        with pytest.raises(bq.BulletError) as caught:
            client.request('broker.place_order', dict(ORDER))
        assert isinstance(caught.value, bq.OrderStateUnknown) is not certain
        assert certain is (caught.value.code == code)


@KINDS
def test_nothing_that_cannot_be_sent_is_sent(kind):
    with scripted() as server, client_of(kind, server) as client:
        for value in (float('nan'), float('inf'), object(), {1, 2}):
            with pytest.raises(bq.BadRequest):
                client.request('broker.place_order', dict(ORDER, amount=value))
        assert client.request('data.snapshot') == {'order_id': 'o1'} and len(server.requests) == 1


@KINDS
def test_a_server_that_sends_nan_is_read_as_null(kind):
    def answer(server, frame, number):
        body = ('{"type":"response","id":"%s","payload":{"a":NaN,"b":-Infinity}}' % frame['id']).encode()
        return [struct.pack('>I', len(body)) + body]
    with scripted(answer, [ack(None)]) as server, client_of(kind, server) as client:
        assert client.request('data.snapshot') == {'a': None, 'b': None}


@KINDS
def test_answers_to_others_events_and_oddities_are_skipped(kind):
    def answer(server, frame, number):
        odd = [{'type': 'response', 'id': 'other', 'payload': 1}, {'type': 'event', 'event': [], 'payload': 1},
               {'type': 'event', 'event': 'tick', 'payload': 1}, {'type': 'error', 'id': 'other', 'code': 'X'},
               {'type': 'pong', 'id': frame['id']}, {'type': []}, {}, {'type': 'response', 'id': [], 'payload': 1}]
        return odd + [reply(frame, 'mine')]
    with scripted(answer) as server, client_of(kind, server) as client:
        assert client.request('data.snapshot') == 'mine' and server.logins == 1


@KINDS
def test_an_answer_cut_at_any_byte_is_asked_for_again(kind):
    whole = bq.encode_frame({'type': 'response', 'id': '0', 'payload': {'a': '中'}})  # no id is shorter
    for cut in range(len(whole)):
        def answer(server, frame, number):
            if number > 1:
                return [reply(frame, {'a': '中'})]
            return [bq.encode_frame(reply(frame, {'a': '中'}))[:cut], CUT]
        with scripted(answer) as server, client_of(kind, server) as client:
            assert client.request('data.snapshot') == {'a': '中'}
            assert len(server.requests) == 2


@KINDS
@pytest.mark.parametrize('acks', [[{'type': 'error', 'code': 'AUTH_FAILED', 'message': '口令不匹配'}]])
def test_a_wrong_token_is_said_at_once(kind, acks):
    with scripted(acks=acks) as server, pytest.raises(bq.AuthFailed):
        with client_of(kind, server) as client:
            client.request('data.snapshot')
    assert server.logins == 1 and server.tokens == [TOKEN]


@pytest.mark.parametrize('answer', [None, {'type': 'hello'}, b'not json', b'[]',
                                    {'type': 'error', 'code': 'SERVER_BUSY'}])
def test_logins_that_fail_say_what_to_do(answer):
    with scripted(acks=[answer]) as server, pytest.raises(bq.BulletError) as caught:
        with scripted_client(server):
            pass
    assert isinstance(caught.value, (bq.ConnectionLost, bq.ServerBusy))
    assert caught.value.hint or caught.value.code == 'SERVER_BUSY'


def test_where_nobody_listens():
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(('127.0.0.1', 0))
        port = taken.getsockname()[1]
        with pytest.raises(bq.ConnectionLost) as caught:
            bq.RemoteQmtConnection('127.0.0.1', port, TOKEN).start()
    assert '127.0.0.1:%d' % port in caught.value.message and caught.value.hint


def test_a_silent_port_is_given_up():
    with contextlib.closing(socket.socket()) as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen(1)
        with pytest.raises(bq.ConnectionLost) as caught:
            bq.RemoteQmtConnection('127.0.0.1', silent.getsockname()[1], TOKEN, connect_timeout=0.05).start()
    assert caught.value.hint


@pytest.mark.parametrize('token', [None, '', 5, b'bytes'])
def test_a_client_needs_a_token(token):
    with pytest.raises(bq.ConfigError):
        bq.Endpoint('127.0.0.1', 1, token)


def test_tls_needs_a_readable_certificate(tmp_path):
    with pytest.raises(bq.ConfigError):
        bq.RemoteQmtConnection('h', 1, TOKEN, tls_enabled=True)
    (tmp_path / 'x.pem').write_text('no certificate')
    for path in ('no such file', str(tmp_path / 'x.pem')):
        with pytest.raises(bq.ConfigError):
            bq.RemoteQmtConnection('h', 1, TOKEN, tls_cert=path)


# -- long connection ---------------------------------------------------------------------------------------------------
def test_many_requests_from_many_threads():
    with serving() as server, long_client(server) as client:
        wrong, codes = [], ['60%04d.XSHG' % number for number in range(8)]

        def ask(code):
            for _ in range(20):
                if client.request('data.snapshot', {'security': code})['sid'] != code:
                    wrong.append(code)
        threads = [threading.Thread(target=ask, args=(code,)) for code in codes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong and server.service.session_count() == 1 and not client._calls


def test_answers_may_overtake_each_other():
    held, both = [], threading.Barrier(3)

    def answer(server, frame, number):
        held.append(frame)
        return [reply(frame, frame['payload']) for frame in reversed(held)] if number == 2 else []
    with scripted(answer) as server, scripted_client(server) as client:
        results = {}

        def ask(name):
            results[name] = client.request('x', {'name': name})['name']
            both.wait(10)
        for name in 'ab':
            threading.Thread(target=ask, args=(name,), daemon=True).start()
        both.wait(10)
        assert results == {'a': 'a', 'b': 'b'}


def test_the_heartbeat_notices_a_peer_that_stopped_answering():
    with scripted() as server, scripted_client(server, heartbeat_s=0.02) as client:
        server.deaf = True
        assert server.dropped.wait(10)
        server.deaf = False
        assert client.request('data.snapshot') == {'order_id': 'o1'} and server.logins >= 2


def test_the_heartbeat_keeps_a_quiet_connection():
    pings = threading.Semaphore(0)

    class Counting(ScriptedServer):
        def _step(self, sock):
            pings.release()
            return super()._step(sock)
    with contextlib.closing(Counting()) as server, scripted_client(server, heartbeat_s=0.02):
        for _ in range(6):
            assert pings.acquire(timeout=10)
        assert server.logins == 1


def test_reconnects_to_a_restarted_server_and_subscribes_again():
    ticks = queue.Queue()
    with serving() as server, long_client(server, backoff_s=(0.01, 0.05)) as client:
        client.add_event_listener('tick', ticks.put)
        client.subscribe('a', ['000001.XSHE', '600000.XSHG'])
        assert ticks.get(timeout=10)['symbol'] in ('000001.XSHE', '600000.XSHG')
        port = server.address[1]
        server.close()
        again = bq.serve(server_settings().replace(port=port))
        try:
            assert client.request('admin.health')['value']['subscriptions'] in (0, 2)
            assert client.subscribe('b', ['000001.XSHE']) == {'count': 2}
            while not ticks.empty():
                ticks.get()
            assert ticks.get(timeout=10)['last_price'] > 0
        finally:
            again.close()


def test_waits_longer_each_time_it_cannot_reconnect(monkeypatch):
    pauses = []
    monkeypatch.setattr(bq.random, 'uniform', lambda low, high: high)
    with scripted(first_cut(), [ack(), None, None, None, ack()]) as server:
        client = bq.RemoteQmtConnection(server.address[0], server.address[1], TOKEN, backoff_s=(0.01, 0.03))
        plain = client._stop.wait
        client._stop.wait = lambda timeout: pauses.append(timeout) or plain(timeout)
        with client:
            assert client.request('data.snapshot') == {'order_id': 'o1'}
    assert pauses[:4] == [0.01, 0.02, 0.03, 0.03]


def test_a_token_that_becomes_wrong_ends_reconnecting():
    denied = {'type': 'error', 'code': 'AUTH_FAILED', 'message': '口令不匹配'}
    with scripted(first_cut(), [ack(), denied]) as server, scripted_client(server) as client:
        with pytest.raises(bq.AuthFailed):
            client.request('data.snapshot')
        client._thread.join(10)
        with pytest.raises(bq.AuthFailed):
            client.request('data.snapshot')
        assert server.logins == 2 and not client.connected


def test_a_write_in_flight_when_the_token_becomes_wrong_is_unknown():
    denied = {'type': 'error', 'code': 'AUTH_FAILED', 'message': '口令不匹配'}
    with scripted(first_cut(), [ack(), denied]) as server, scripted_client(server) as client:
        with pytest.raises(bq.OrderStateUnknown):
            client.request('broker.place_order', ORDER)
        assert len(server.requests) == 1


@pytest.mark.parametrize('passing', [{'type': 'error', 'code': 'SERVER_BUSY', 'retry_after_s': 0.01},
                                     {'type': 'error', 'code': 'AUTH_THROTTLED', 'retry_after_s': 'odd'},
                                     {'type': 'odd'}, None])
def test_passing_trouble_does_not_end_reconnecting(passing):
    with scripted(first_cut(), [ack(), passing, ack()]) as server, scripted_client(server) as client:
        assert client.request('data.snapshot') == {'order_id': 'o1'} and server.logins == 3


def test_a_write_that_never_left_fails_as_not_sent():
    with scripted(first_cut(), [ack(), None]) as server, scripted_client(server) as client:
        with pytest.raises(bq.RequestTimeout):
            client.request('data.snapshot', timeout=0.05)
        with pytest.raises(bq.ConnectionLost) as caught:
            client.request('broker.place_order', ORDER, timeout=0.05)
        assert caught.value.broker_called is False and len(server.requests) == 1


def test_no_answer_in_time():
    with scripted(lambda server, frame, number: []) as server, scripted_client(server) as client:
        with pytest.raises(bq.RequestTimeout) as caught:
            client.request('data.snapshot', timeout=0.02)
        assert not isinstance(caught.value, bq.OrderStateUnknown)
        with pytest.raises(bq.OrderStateUnknown):
            client.request('broker.place_order', ORDER, timeout=0.02)
        assert not client._calls


def test_timeouts_leave_room_for_what_the_server_may_take():
    assert bq._request_timeout('data.history', {}, None, 5) == 180
    assert bq._request_timeout('data.history', {}, 7, 5) == 7
    assert bq._request_timeout('broker.place_order', {'wait_timeout': 100}, None, 5) == 130
    assert bq._request_timeout('broker.place_order', {'wait_timeout': 100}, 3, 5) == 130
    assert bq._request_timeout('broker.place_order', {'wait_timeout': 'odd'}, None, 5) == 5
    assert bq._request_timeout('data.snapshot', {'wait_timeout': 100}, None, 5) == 5


@KINDS
@pytest.mark.parametrize('timeout', [1e10, float('nan'), float('inf'), -1, 'soon', True])
def test_a_timeout_that_is_none_is_refused_before_anything_is_sent(kind, timeout):
    with scripted() as server, client_of(kind, server) as client:
        with pytest.raises(bq.BadRequest):
            client.request('broker.place_order', dict(ORDER), timeout=timeout)
        assert not server.requests


def test_the_attempts_of_a_short_connection_share_its_timeout():
    with scripted(lambda server, frame, number: [refusal(frame, 'SERVER_BUSY', retry_after_s=5)]) as server:
        with pytest.raises(bq.ServerBusy):
            scripted_short(server, retries=3).request('data.snapshot', timeout=4)
        assert len(server.requests) == 1, 'a pause beyond the deadline is not begun'


@pytest.mark.parametrize('action, expected', [('data.snapshot', bq.RequestTimeout),
                                              ('broker.place_order', bq.OrderStateUnknown)])
def test_close_ends_waiting_calls(action, expected):
    with scripted(lambda server, frame, number: []) as server, scripted_client(server) as client:
        errors = queue.Queue()

        def ask():
            try:
                client.request(action, ORDER)
            except bq.BulletError as error:
                errors.put(error)
        threading.Thread(target=ask, daemon=True).start()
        server.seen.get(timeout=10)
        client.close()
        assert isinstance(errors.get(timeout=10), expected)
        with pytest.raises(bq.ConnectionLost):
            client.request(action, ORDER)
        with pytest.raises(bq.ConnectionLost):
            client.start()


def test_a_connection_that_was_not_started_says_so():
    with pytest.raises(bq.ConnectionLost) as caught:
        bq.RemoteQmtConnection('127.0.0.1', 1, TOKEN).request('data.snapshot')
    assert caught.value.broker_called is False


def test_no_thread_is_left_behind():
    before = set(threading.enumerate())
    with serving() as server, long_client(server) as client:
        client.add_event_listener('tick', lambda tick: None)
        client.subscribe('a', '000001.XSHE')
        client.request('admin.health')
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


# -- events and subscriptions --------------------------------------------------------------------------------
def tick_to(server, price):
    server.emit({'type': 'event', 'event': 'tick', 'payload': {'sid': 'x', 'last_price': price}})


def test_a_failing_listener_does_not_stop_the_others():
    got = queue.Queue()

    def fail(tick):
        raise RuntimeError('listener')
    with scripted() as server, scripted_client(server) as client:
        client.add_event_listener('tick', fail)
        client.add_event_listener('tick', got.put)
        client.request('x')
        for price in (1, 2):
            tick_to(server, price)
            assert got.get(timeout=10)['last_price'] == price
        client.remove_event_listener('tick', got.put)
        client.add_event_listener('tick', lambda tick: got.put('other'))
        tick_to(server, 3)
        assert got.get(timeout=10) == 'other'


def test_a_listener_may_make_requests_and_close():
    got = queue.Queue()
    with scripted() as server, scripted_client(server) as client:
        client.add_event_listener('tick', lambda tick: got.put(client.request('data.snapshot')) or client.close())
        client.request('x')
        tick_to(server, 1)
        assert got.get(timeout=10) == {'order_id': 'o1'}
        client._thread.join(10)
        assert not client._thread.is_alive()


def test_subscriptions_by_key_are_a_union():
    with scripted() as server, scripted_client(server) as client:
        client.subscribe('a', ['000001.sz ', '600000.SH', '600000.SH'])
        assert client.subscribe('b', '600000.sh') == {'count': 2}
        client.subscribe(('b', 1), ['600000.SH', '688001.SH'])
        assert client.unsubscribe('a', ['600000.SH', 'ODD']) == {'count': 3, 'removed': 0}
        client.unsubscribe('a')
        client.unsubscribe('b')
        client.unsubscribe(('b', 1))
        assert client.unsubscribe('nobody') == {'count': 0, 'removed': 0}
    assert [(frame['action'], frame['payload']['securities']) for frame in server.requests] == [
        ('data.subscribe', ['000001.SZ', '600000.SH']), ('data.subscribe', ['688001.SH']),
        ('data.unsubscribe', ['000001.SZ']), ('data.unsubscribe', ['600000.SH', '688001.SH'])]


def test_a_subscription_that_was_refused_is_not_kept():
    with scripted(lambda server, frame, number: [refusal(frame, 'SUBSCRIPTION_LIMIT')]) as server:
        with scripted_client(server) as client:
            for _ in range(2):
                with pytest.raises(bq.SubscriptionLimit):
                    client.subscribe('a', ['000001.SZ'])
    assert len(server.requests) == 2


def test_connections_without_push_say_so():
    client = bq.ShortConnection('127.0.0.1', 1, TOKEN)
    for call in (lambda: client.subscribe('a', 'x'), lambda: client.unsubscribe('a'),
                 lambda: client.add_event_listener('tick', print)):
        with pytest.raises(bq.NotSupported):
            call()


# -- what is said of a call holds --------------------------------------------------------------------------
def test_an_order_of_which_it_was_said_that_it_was_not_sent_never_is(monkeypatch):
    """Connected anew, the keeper sends one by one what waits; the order's time ends before its turn comes."""
    again, held, over, outcome = threading.Event(), threading.Event(), threading.Event(), queue.Queue()
    with scripted() as server, scripted_client(server) as client:
        send, open_ = client._send, client._open

        def slow_send(channel, call):
            held.set()
            assert over.wait(20)
            send(channel, call)

        monkeypatch.setattr(client, '_send', slow_send)
        monkeypatch.setattr(client, '_open', lambda: again.wait(20) and open_())
        server.drop()
        assert becomes(lambda: not client.connected)
        ordering = threading.Thread(target=lambda: outcome.put(error_of(
            lambda: client.request('broker.place_order', dict(ORDER), timeout=1.0))))
        ordering.start()
        assert becomes(lambda: len(client._calls) == 1)
        again.set()
        assert held.wait(20)
        error = outcome.get(timeout=20)
        assert isinstance(error, bq.ConnectionLost) and error.broker_called is False
        over.set()
        client.request('data.snapshot', {'security': 'x'})
        assert [frame['action'] for frame in server.requests] == ['data.snapshot']
        ordering.join()


def error_of(call):
    try:
        call()
    except bq.BulletError as error:
        return error


def test_an_order_does_not_wait_beyond_its_time_for_the_line():
    with scripted() as server, scripted_client(server) as client:
        with client._channel._write_lock:  # another's long frame
            error = error_of(lambda: client.request('broker.place_order', dict(ORDER), timeout=0.2))
        assert isinstance(error, bq.ConnectionLost) and error.broker_called is False
        assert client.request('data.snapshot', {'security': 'x'})
        assert [frame['action'] for frame in server.requests] == ['data.snapshot']


def test_a_call_answered_before_its_turn_while_the_connection_ends(monkeypatch):
    with scripted() as server, scripted_client(server) as client:
        take_turn, once = client._take_turn, []

        def late(call):
            if not once:
                once.append(call)
                assert becomes(lambda: call.finished)
                with client._lock:
                    client._channel.abort()
                assert becomes(lambda: server.logins == 2)
            return take_turn(call)

        monkeypatch.setattr(client, '_take_turn', late)
        assert client.request('broker.place_order', dict(ORDER)) == {'order_id': 'o1'}
        assert client.request('broker.place_order', dict(ORDER)) == {'order_id': 'o1'}
        assert becomes(lambda: client._reader in (None, bq._KEEPER))


@KINDS
@pytest.mark.parametrize('bad', [b'\xc0\0\0\x01x', struct.pack('>I', 4) + b'null', struct.pack('>I', 2) + b'[]',
                                 struct.pack('>I', 2) + b'{"'])
def test_an_answer_that_makes_no_sense_twice_fails_a_read_and_leaves_a_write_unknown(kind, bad):
    def answer(server, frame, number):
        return [reply(frame)] if frame['action'] == 'good' else [bad]

    with scripted(answer, [ack(features=['binary1'])]) as server, client_of(kind, server) as client:
        assert isinstance(error_of(lambda: client.request('data.snapshot', {}, timeout=5)), bq.BulletError)
        assert isinstance(error_of(lambda: client.request('broker.place_order', dict(ORDER), timeout=5)),
                          bq.OrderStateUnknown)
        assert len(server.requests) <= 6, 'not again and again'
        assert client.request('good') == {'order_id': 'o1'}


def test_ticks_that_make_no_sense_end_no_call():
    def answer(server, frame, number):
        bad = {'type': 'event', 'event': 'tick', 'payload': {'symbol': ['a'], 'sid': {}}}
        return [bad, reply(frame)] if number == 1 else [reply(frame)]

    with scripted(answer) as server, scripted_client(server) as client:
        assert client.request('broker.place_order', dict(ORDER)) == {'order_id': 'o1'}
        assert client.request('x') == {'order_id': 'o1'}


@pytest.mark.parametrize('features', [5, 'binary1', {'a': 1}, [1, None], None])
def test_features_of_another_type_are_none(features):
    with scripted(acks=[ack(features=features)]) as server, scripted_client(server) as client:
        assert client.request('x') == {'order_id': 'o1'}
        server.drop()
        assert client.request('y') == {'order_id': 'o1'}


def test_a_long_connection_says_whether_it_is_closed_or_not_open_yet():
    def hint(connection):
        with pytest.raises(bq.ConnectionLost) as caught:
            connection.request('admin.health')
        assert caught.value.broker_called is False and not caught.value.retryable
        return caught.value.hint

    with serving() as server:
        connection = bq.RemoteQmtConnection(server.address[0], server.address[1], TOKEN)
        assert 'start()' in hint(connection)
        assert connection.start().request('admin.health')
        connection.close()
        assert '新建' in hint(connection)


def test_a_closed_short_connection_sends_nothing():
    with serving() as server:
        connection = short_client(server)
        assert connection.request('admin.health')
        connection.close()
        for action, payload in (('admin.health', {}), ('broker.place_order', {'idempotency_key': 'k'})):
            with pytest.raises(bq.ConnectionLost) as caught:
                connection.request(action, payload)
            assert caught.value.broker_called is False and '新建' in caught.value.hint
        late = connection.endpoint.dial()
        connection._keep(*late)                           # an answer that comes after the close
        assert connection._kept is None and not late[0].alive


@pytest.mark.posix('Windows has no fork')
@KINDS
def test_a_forked_process_neither_uses_nor_ends_the_connection(kind):
    with scripted() as server, client_of(kind, server) as client:
        client.request('x')
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                error = error_of(lambda: client.request('y'))
                client.close()
                fine = isinstance(error, bq.ConnectionLost) if kind == 'long' else error is None
                os._exit(0 if fine else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert client.request('z') == {'order_id': 'o1'}
        assert server.logins == (1 if kind == 'long' else 2)


# -- short connection ----------------------------------------------------------------------------------------
def test_a_connection_is_kept_for_the_next_call(monkeypatch):
    with scripted() as server:
        client = scripted_short(server)
        assert [client.request('x') for _ in range(3)] == [{'order_id': 'o1'}] * 3
        assert server.logins == 1
        monkeypatch.setattr(bq.ShortConnection, 'KEEP_S', -1)
        assert [client.request('x') for _ in range(3)] == [{'order_id': 'o1'}] * 3
        assert server.logins in (3, 4)
        client.close()
        assert client._kept is None


def test_a_kept_connection_on_which_something_came_in_is_not_used_again():
    """Behind the last answer, or in part: it answers no later call."""
    with scripted() as server:
        client = scripted_short(server, retries=0)
        client.request('x')
        client._kept[0]._buffer += b'\0'
        assert client.request('x') == {'order_id': 'o1'} and server.logins == 2
        client._kept[0]._streams[1] = b'half a frame'
        assert client.request('x') == {'order_id': 'o1'} and server.logins == 3


@pytest.mark.parametrize('action', ['data.snapshot', 'broker.place_order'])
def test_a_kept_connection_that_has_died_costs_no_attempt(action):
    with scripted() as server:
        client = scripted_short(server, retries=0)
        client.request('x')
        server.drop()
        assert bq.wait_for_socket(client._kept[0].sock, 10)
        assert client.request(action, dict(ORDER)) == {'order_id': 'o1'} and server.logins == 2


def test_an_order_cut_off_on_a_kept_connection_is_sent_again_with_its_key():
    def answer(server, frame, number):
        return [CUT] if number == 2 else [reply(frame)]
    with scripted(answer) as server:
        client = scripted_short(server, retries=0)
        client.request('x')
        assert client.request('broker.place_order', dict(ORDER)) == {'order_id': 'o1'}
        keys = [frame['payload'].get('idempotency_key') for frame in server.requests[1:]]
        assert len(keys) == 2 and keys[0] == keys[1]


def test_calls_of_several_threads_have_connections_of_their_own():
    go = threading.Barrier(4)

    def answer(server, frame, number):
        go.wait(10)
        return [reply(frame)]
    with scripted(answer) as server:
        client, answers = scripted_short(server), queue.Queue()
        threads = [threading.Thread(target=lambda: answers.put(client.request('x'))) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert [answers.get(timeout=10) for _ in threads] == [{'order_id': 'o1'}] * 4 and server.logins == 4
        client.close()


# -- who reads ---------------------------------------------------------------------------------------------------
def test_many_threads_share_a_connection_and_each_gets_its_own_answer():
    def answer(server, frame, number):
        return [{'type': 'event', 'event': 'tick', 'payload': {'symbol': 's%d' % number}},
                reply(frame, {'echo': frame['payload']['n']})]
    with scripted(answer) as server, scripted_client(server) as client:
        wrong, ticks = queue.Queue(), queue.Queue()
        client.add_event_listener('tick', ticks.put)

        def ask(number):
            for turn in range(50):
                n = '%d-%d' % (number, turn)
                if client.request('x', {'n': n}) != {'echo': n}:
                    wrong.put(n)
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wrong.empty() and len(server.requests) == 400
        assert len({ticks.get(timeout=10)['symbol'] for _ in range(400)}) == 400


def test_answers_that_overtake_reach_their_callers():
    held = []

    def answer(server, frame, number):
        held.append(reply(frame, {'n': number}))
        return held[::-1] if len(held) == 5 else []
    with scripted(answer) as server, scripted_client(server) as client:
        answers = queue.Queue()
        threads = [threading.Thread(target=lambda: answers.put(client.request('x')['n'])) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert sorted(answers.get(timeout=10) for _ in threads) == [1, 2, 3, 4, 5]


def test_the_keeper_reads_again_when_nobody_asks():
    ticks = queue.Queue()
    with scripted() as server, scripted_client(server) as client:
        client.add_event_listener('tick', ticks.put)
        for number in range(20):
            client.request('x')
            tick_to(server, number)
            assert ticks.get(timeout=10)['last_price'] == number


def test_a_slow_call_that_gives_up_leaves_the_reading_to_others():
    release = threading.Event()

    def answer(server, frame, number):
        return [] if frame['action'] == 'slow' else [reply(frame, {'n': number})]
    with scripted(answer) as server, scripted_client(server) as client:
        errors = queue.Queue()

        def ask():
            try:
                client.request('slow', timeout=0.3)
            except bq.BulletError as error:
                errors.put(error)
        slow = threading.Thread(target=ask)
        slow.start()
        server.seen.get(timeout=10)
        assert client.request('x') == {'n': 2} and isinstance(errors.get(timeout=10), bq.RequestTimeout)
        assert client.request('x') == {'n': 3}
        release.set()


@pytest.mark.parametrize('retries, attempts', [(0, 1), (2, 3)])
def test_lost_connections_are_tried_again_so_many_times(retries, attempts):
    with scripted(lambda server, frame, number: [CUT]) as server:
        with pytest.raises(bq.ConnectionLost):
            scripted_short(server, retries=retries).request('data.snapshot')
        with pytest.raises(bq.OrderStateUnknown):
            scripted_short(server, retries=retries).request('broker.place_order', ORDER)
        assert len(server.requests) == 2 * attempts


def test_error_answers_are_repeated_only_if_the_server_says_so():
    def answer(server, frame, number):
        return [refusal(frame, 'SERVER_BUSY' if frame['action'] == 'busy' else 'DATA_UNAVAILABLE')]
    with scripted(answer) as server:
        with pytest.raises(bq.ServerBusy):
            scripted_short(server).request('busy')
        with pytest.raises(bq.DataUnavailable):
            scripted_short(server).request('no data')
    assert [frame['action'] for frame in server.requests] == ['busy'] * 3 + ['no data']


def test_a_write_that_a_busy_server_refused_is_not_in_doubt():
    def answer(server, frame, number):
        return [refusal(frame, 'SERVER_BUSY', broker_called=False)]
    with scripted(answer, [ack('j1'), ack('j2')]) as server:
        with pytest.raises(bq.ServerBusy):
            scripted_short(server).request('broker.place_order', ORDER)
        assert len(server.requests) == 3


@pytest.mark.parametrize('asked, pause', [(0.5, 0.5), (0.01, 0.1), ('odd', 0.1), (-5, 0.1), (10 ** 9, 60), (None, 0.1)])
def test_the_servers_wish_to_wait_is_honoured_within_reason(asked, pause, monkeypatch):
    with scripted(lambda server, frame, number: [refusal(frame, 'SERVER_BUSY', retry_after_s=asked)]) as server:
        client, pauses = scripted_short(server, retries=1, retry_interval=0.1), []
        monkeypatch.setattr(bq, 'wait_for_event', lambda event, seconds: pauses.append(seconds))
        with pytest.raises(bq.ServerBusy):
            client.request('x', timeout=100)
    assert pauses == [pause]


def test_an_error_without_an_id_is_about_the_only_request():
    error = {'type': 'error', 'code': 'PROTOCOL_ERROR', 'message': 'm'}
    with scripted(lambda server, frame, number: [error]) as server:
        with pytest.raises(bq.ProtocolError):
            scripted_short(server).request('data.snapshot')
        with pytest.raises(bq.OrderStateUnknown):
            scripted_short(server).request('broker.place_order', ORDER)


def test_a_short_connection_to_a_full_server():
    with serving(max_connections=1) as server, long_client(server):
        with pytest.raises(bq.ServerBusy) as caught:
            short_client(server, retries=0).request('admin.health')
    assert caught.value.broker_called is False


# -- in process ----------------------------------------------------------------------------------------------
READS = [
    ('data.history', {'security': '000001.XSHE', 'count': 3}),
    ('data.history', {'security': ['000001.XSHE', '600000.XSHG'], 'count': 2, 'panel': False}),
    ('data.history', {'security': ['000001.XSHE', '600000.XSHG'], 'count': 2}), ('data.trade_days', {'count': 3}),
    ('data.security_info', {'security': '000001.XSHE'}), ('data.ensure_cache', {'security': '000001.XSHE', 'count': 1}),
    ('data.get_all_securities', {'types': ['index']}), ('data.get_split_dividend', {'security': '000001.XSHE'}),
    ('data.get_index_stocks', {'index_symbol': '000300.XSHG'}), ('data.snapshot', {'security': '000001.XSHE'}),
    ('data.current_tick', {'security': '000001.XSHE'}), ('data.live_current', {'security': '000001.XSHE'}),
    ('data.subscribe', {'securities': ['000001.XSHE']}), ('data.unsubscribe', {'securities': ['000001.XSHE']}),
    ('data.unsubscribe_all', {}), ('broker.account', {}), ('broker.positions', {}), ('broker.orders', {}),
    ('broker.trades', {}), ('broker.order_status', {'order_id': 'x'}), ('admin.print_account', {'limit': 3}),
    ('broker.place_order', dict(ORDER, amount=150)), ('broker.cancel_order', {'order_id': 'x'}),
    ('broker.resolve_submission', {'write_action': 'broker.place_order', 'idempotency_key': 'k'}),
    ('broker.unsubscribe_events', {}),
    ('data.snapshot', {'security': 'odd'}), ('data.history', {'security': [], 'count': 1}), ('no.such', {}),
    ('broker.account', {'account_key': 'nobody'})]


@pytest.fixture(scope='module')
def both():
    """(long connection to a served stub, local one to a service of its own), the clock standing still."""
    clock = FakeClock(datetime(2024, 5, 15, 10, 30))
    settings = server_settings()
    with serving(clock) as server, long_client(server) as client:
        with bq.LocalConnection(bq.open_service(settings, clock)) as local:
            yield client, local


def outcome(connection, action, payload):
    try:
        answer = connection.request(action, dict(payload))
        return answer.to_wire() if isinstance(answer, bq.Table) else answer
    except bq.BulletError as error:
        return type(error), error.to_wire()


def test_every_action_is_compared():
    assert {action for action, _ in READS} | {'admin.health', 'broker.subscribe_events'} >= set(bq.ACTIONS)


@pytest.mark.parametrize('action, payload', READS, ids=lambda value: str(value)[:40])
def test_in_process_answers_are_those_of_the_socket(both, action, payload):
    client, local = both
    assert outcome(local, action, payload) == outcome(client, action, payload)


def test_in_process_ticks_orders_and_end():
    ticks = queue.Queue()
    local = bq.LocalConnection(bq.open_service(server_settings()))
    local.add_event_listener('tick', ticks.put)
    assert local.subscribe('a', '000001.sz') == {'count': 1}
    assert ticks.get(timeout=10)['symbol'] == '000001.SZ'
    answer = local.request('broker.place_order', dict(ORDER, wait_timeout=10, idempotency_key='k'))
    assert answer['status'] in ('filled', 'partly_canceled', 'canceled')
    assert local.request('admin.health')['value']['process_alive'] is True
    local.close()
    with pytest.raises(bq.ConnectionLost):
        local.request('admin.health')


# -- subscriptions after a reconnect -----------------------------------------------------------------------------
def test_subscriptions_that_are_refused_for_now_are_asked_for_again(monkeypatch):
    monkeypatch.setattr(bq, 'RESUBSCRIBE_PAUSE_S', 0.02)

    def answer(server, frame, number):
        if number == 2:
            return [CUT]
        early = number > 2 and frame['action'] == 'data.subscribe' and number < 6
        return [refusal(frame, 'QMT_UNAVAILABLE', retryable=True) if early else reply(frame, {'count': 1})]
    with scripted(answer) as server, scripted_client(server) as client:
        client.subscribe('a', ['000001.XSHE'])
        client.request('data.snapshot', {'security': '000001.XSHE'})  # cut, and sent again
        asked = [server.seen.get(timeout=10) for _ in range(6)]
        again = [frame for frame in asked if frame['action'] == 'data.subscribe']
        assert len(again) >= 3 and all(frame['payload'] == {'securities': ['000001.XSHE']} for frame in again)


def test_a_security_that_is_refused_for_good_does_not_cost_the_others():
    def answer(server, frame, number):
        codes = frame['payload'].get('securities', [])
        if number == 2:
            return [CUT]
        return [refusal(frame, 'SECURITY_NOT_FOUND') if number > 2 and '000002.XSHE' in codes else reply(frame, {})]
    with scripted(answer) as server, scripted_client(server) as client:
        client.subscribe('a', ['000001.XSHE', '000002.XSHE'])
        client.request('data.snapshot', {'security': '000001.XSHE'})
        asked = [server.seen.get(timeout=10) for _ in range(6)]
        singles = [frame['payload']['securities'] for frame in asked if frame['action'] == 'data.subscribe']
        assert singles[1:] == [['000001.XSHE', '000002.XSHE'], ['000001.XSHE'], ['000002.XSHE']]


def test_a_socket_that_fails_while_dialling_does_not_end_the_reconnecting(monkeypatch):
    with scripted(lambda server, frame, number: [CUT] if number == 1 else [reply(frame)]) as server:
        with scripted_client(server) as client:
            dial, failures = client.endpoint.dial, [OSError(22, 'Invalid argument')] * 2

            def failing(*args):
                if failures:
                    raise failures.pop()
                return dial(*args)
            monkeypatch.setattr(client.endpoint, 'dial', failing)
            assert client.request('data.snapshot') == {'order_id': 'o1'} and not failures


def test_each_caller_gets_an_error_of_its_own():
    acks = [ack(), dict(ack(), type='error', code='AUTH_FAILED', message='不行')]
    with scripted(lambda server, frame, number: [CUT], acks) as server, scripted_client(server) as client:
        errors = []
        for _ in range(3):
            with pytest.raises(bq.AuthFailed) as caught:
                client.request('data.snapshot')
            errors.append(caught.value)
        assert len(set(map(id, errors))) == 3


@pytest.mark.parametrize('value, beat', [(1e300, 300), (float('inf'), 300), (-1, 10), ('x', 10), (True, 10)])
def test_an_absurd_keepalive_of_the_server_is_bounded(value, beat):
    assert bq._keepalive({'keepalive': value}) / 2.0 == beat


# -- the clocks of both ends ------------------------------------------------------------------------------------------
@KINDS
@pytest.mark.parametrize('ahead_s', [0, 3, -200, 3600])
def test_a_client_measures_how_far_the_servers_clock_is_from_its_own(kind, ahead_s):
    noon = datetime(2026, 7, 20, 12, 0, 0)
    ours = FakeClock(noon)
    with serving(FakeClock(noon + timedelta(seconds=ahead_s))) as server, client_of(kind, server, clock=ours) as client:
        client.request('admin.health')
        assert abs(client.clock_skew_s - ahead_s) <= client.clock_skew_error_s + 0.001  # whole milliseconds travel


def test_each_login_measures_anew_and_nothing_is_known_before():
    theirs, ours = FakeClock(datetime(2026, 7, 20, 12)), FakeClock(datetime(2026, 7, 20, 12))
    with serving(theirs) as server, contextlib.closing(short_client(server, clock=ours)) as client:
        assert client.clock_skew_s is None and client.clock_skew_error_s is None
        client.request('admin.health')
        assert abs(client.clock_skew_s) <= client.clock_skew_error_s + 0.001
        ours.step(-90)  # somebody sets this machine's clock back
        client.endpoint.dial()[0].close()
        assert abs(client.clock_skew_s - 90) <= client.clock_skew_error_s + 0.001


def test_the_servers_time_is_unix_time():
    with serving(FakeClock(datetime(2026, 7, 20, 12))) as server, raw_socket(server) as sock:
        assert login_raw(sock)['server_time'] == 1784520000000  # date -u -d '2026-07-20 04:00' +%s


@KINDS
@pytest.mark.parametrize('time', [None, '1784520000000', True, 1.5, [], {}])
def test_a_server_that_does_not_tell_its_time_leaves_it_open(kind, time):
    with scripted(acks=[ack(server_time=time)]) as server, client_of(kind, server) as client:
        client.request('admin.health')
        assert client.clock_skew_s is None and client.clock_skew_error_s is None


def test_one_process_has_one_clock():
    with bq.LocalConnection(bq.open_service(server_settings())) as client:
        assert client.clock_skew_s == client.clock_skew_error_s == 0.0


# -- what a server of another kind would pass over ---------------------------------------------------------------------
PASSED_OVER = [{'valid_until': '2020-01-01 10:00:00'}, {'valid_until': '2099-01-01 10:00:00'}, {'market_type': 'x'},
               {'style': {'type': 'market', 'market_type': 'fill_or_kill'}}]


@KINDS
@pytest.mark.parametrize('words', PASSED_OVER)
def test_an_order_with_a_word_that_the_server_would_pass_over_is_not_sent(kind, words):
    """Its handshake names no journal: it is no server of ours, and takes a market order of any type for its own."""
    with scripted(acks=[ack(None)]) as server, client_of(kind, server) as client:
        with pytest.raises(bq.NotSupported) as caught:
            client.request('broker.place_order', dict(ORDER, **words))
        assert caught.value.broker_called is False and not caught.value.retryable
        assert client.request('broker.place_order', ORDER) == {'order_id': 'o1'}
        assert [frame['payload'].keys() & {'valid_until', 'market_type'} for frame in server.requests] == [set()]


@KINDS
@pytest.mark.parametrize('words', PASSED_OVER)
def test_a_server_of_ours_gets_it(kind, words):
    with scripted() as server, client_of(kind, server) as client:
        assert client.request('broker.place_order', dict(ORDER, **words)) == {'order_id': 'o1'}
        assert dict(server.requests[0]['payload'], **words) == server.requests[0]['payload']


@KINDS
def test_an_order_that_may_be_there_stays_unknown_where_the_next_server_is_of_another_kind(kind):
    with scripted(first_cut(), [ack('j1'), ack(None)]) as server, client_of(kind, server) as client:
        with pytest.raises(bq.OrderStateUnknown):
            client.request('broker.place_order', dict(ORDER, valid_until='2099-01-01 10:00:00'))
        assert len(server.requests) == 1


@KINDS
@pytest.mark.parametrize('journal, forgets', [('j1', False), (None, True)])
def test_who_may_forget_a_key_gets_no_second_copy_by_hand_either(kind, journal, forgets):
    with scripted(lambda server, frame, number: [CUT], [ack(journal), ack('j2')]) as server, \
            client_of(kind, server) as client:
        with pytest.raises(bq.OrderStateUnknown) as caught:
            client.request('broker.place_order', ORDER)
        assert ('不要用同一 key 重发' in caught.value.hint) is forgets


@KINDS
def test_a_full_memory_of_keys_is_a_definite_refusal(kind):
    """bullet-trade 0.10, before it calls its broker."""
    def full(server, frame, number):
        return [refusal(frame, 'IDEMPOTENCY_CACHE_FULL', broker_called=False)]
    with scripted(full, [ack(None)]) as server, client_of(kind, server) as client:
        with pytest.raises(bq.IdempotencyCacheFull) as caught:
            client.request('broker.place_order', ORDER)
        assert caught.value.broker_called is False and len(server.requests) == 1


# -- whose the session is ----------------------------------------------------------------------------------------------
@KINDS
@pytest.mark.parametrize('named', [{}, {'account_key': 'main'}, {'sub_account_id': 'qa@main'},
                                   {'account_key': 'main', 'sub_account_id': 'qa'}])
def test_a_login_names_its_account(kind, named):
    with scripted() as server, client_of(kind, server, **named) as client:
        client.request('admin.health')
        assert {name: value for name, value in server.hellos[0].items() if 'account' in name} == named


@KINDS
@pytest.mark.parametrize('named', [{'account_key': 'nobody'}, {'sub_account_id': 'nobody'},
                                   {'account_key': 'hedge', 'sub_account_id': 'research'}])
def test_a_login_for_an_account_that_is_not_there_is_refused(kind, named):
    with two_accounts() as server, pytest.raises(bq.AccountNotFound):
        with client_of(kind, server, **named) as client:
            client.request('admin.health')


@KINDS
def test_a_session_of_a_sub_account_stays_in_it(kind):
    with two_accounts() as server, client_of(kind, server, sub_account_id='research') as client:
        assert client.request('broker.account')['value']['account_id'] == '55001234'
        for other in ({'account_key': 'hedge'}, {'sub_account_id': 'qa'}):
            with pytest.raises(bq.AccountNotFound):
                client.request('broker.positions', other)


def two_accounts():
    accounts = tuple(bq.AccountSpec(key, number, 'stock', None, None, True)
                     for key, number in (('main', '55001234'), ('hedge', '55004321')))
    subs = tuple(bq.SubAccountSpec(*spec) for spec in (('research', 'main', None), ('qa', 'hedge', None)))
    return serving(FakeClock(datetime(2026, 5, 13, 10)), accounts=accounts, sub_accounts=subs)


# -- a token in clear --------------------------------------------------------------------------------------------------
class _Elsewhere:
    """The address of a peer on another machine."""

    is_loopback = False


@KINDS
def test_a_token_that_leaves_this_machine_in_clear_is_told_once(kind, monkeypatch, caplog):
    monkeypatch.setattr(bq, '_warned', set())
    with serving() as server:
        with client_of(kind, server) as client:
            client.request('admin.health')
        assert '没有加密' not in caplog.text, 'on this machine nobody listens'
        monkeypatch.setattr(bq, '_peer_address', lambda channel: _Elsewhere)
        for _ in range(2):
            with client_of(kind, server) as client:
                client.request('admin.health')
    assert caplog.text.count('没有加密') == 1 and TOKEN not in caplog.text


class Pauses(threading.Event):
    """Notes the pauses before new tries instead of making them; ends the connection after so many."""

    def __init__(self, most):
        super().__init__()
        self.most, self.noted, self.ended = most, [], threading.Event()

    def wait(self, timeout=None):
        self.noted.append(timeout)
        if len(self.noted) < self.most:
            return False
        self.ended.set()
        return True


@pytest.mark.parametrize('steady_s, growing', [(1000.0, True), (0.0, False)])
def test_a_server_that_ends_each_connection_after_the_login_is_asked_less_and_less(monkeypatch, steady_s, growing):
    monkeypatch.setattr(bq, 'STEADY_S', steady_s)
    monkeypatch.setattr(bq.Session, '_serve', lambda session: None)
    with serving() as server:
        client = bq.RemoteQmtConnection(server.address[0], server.address[1], TOKEN, backoff_s=(1.0, 100.0))
        client._stop = pauses = Pauses(10)
        client.start()
        assert pauses.ended.wait(20)
        client.close()
    expected = [min(100.0, 2.0 ** count) for count in range(10)] if growing else [1.0] * 10
    assert all(longest / 2 <= pause <= longest for pause, longest in zip(pauses.noted, expected)), pauses.noted


# -- what waits when a connection is closed ----------------------------------------------------------------------------
class Held:
    """A listener that stays in its first call until it is released."""

    def __init__(self):
        self.heard, self.begun, self.release = [], threading.Event(), threading.Event()

    def __call__(self, payload):
        self.heard.append(payload)
        self.begun.set()
        assert self.release.wait(30)


def closing_while_held(dispatcher, listener):
    """The thread that closes a dispatcher in whose listener five events wait."""
    dispatcher.add('order', listener)
    for number in range(5):
        dispatcher.emit('order', number)
    assert listener.begun.wait(30)
    thread = threading.Thread(target=dispatcher.close)
    thread.start()
    assert becomes(lambda: dispatcher._closed)
    return thread


def test_what_waits_is_told_before_a_connection_is_closed():
    dispatcher, listener = bq.EventDispatcher('events'), Held()
    thread = closing_while_held(dispatcher, listener)
    dispatcher.emit('order', 'too late')
    listener.release.set()
    thread.join(30)
    assert listener.heard == [0, 1, 2, 3, 4] and not thread.is_alive()


def test_a_listener_that_takes_too_long_does_not_keep_it_open(caplog, monkeypatch):
    monkeypatch.setattr(bq.EventDispatcher, 'CLOSING_S', 0.0)
    dispatcher, listener = bq.EventDispatcher('events'), Held()
    thread = closing_while_held(dispatcher, listener)
    listener.release.set()
    thread.join(30)
    assert listener.heard == [0] and '关闭时还有 4 个事件没有来得及告知' in caplog.text


def test_a_callback_that_closes_hears_the_rest():
    dispatcher, heard, over = bq.EventDispatcher('events'), [], threading.Event()

    def listener(number):
        heard.append(number)
        dispatcher.close()
        if number == 2:
            over.set()
    with dispatcher._changed:
        dispatcher._listeners['order'] = [listener]
        dispatcher._put([(number, 'order', number) for number in range(3)])
    assert over.wait(30) and heard == [0, 1, 2]
