"""Long answers from server to client: packed or not, longer than a frame, and never in the way of short ones."""
import contextlib
import json
import struct
import threading
from array import array
from collections import OrderedDict

import pytest

import bullet_qmt as bq

from .base import TOKEN, ask_raw, login_raw, long_client, raw_socket, send_raw, serving, short_client

CODE = '000001.XSHE'
MINUTES = dict(count=2000, frequency='1m')


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def packed(monkeypatch):
    """Whether each table that left was packed, in order."""
    seen, encode = [], bq.encode_table_frame

    def noting(frame, table, compact=False):
        seen.append(compact)
        return encode(frame, table, compact)

    monkeypatch.setattr(bq, 'encode_table_frame', noting)
    return seen


def answering(monkeypatch, table):
    monkeypatch.setitem(bq.ACTIONS, 'data.history', bq.ACTIONS['data.history']._replace(
        run=lambda service, payload, caller: table))


def large_table(rows, columns=('open', 'high', 'low', 'close', 'volume', 'money')):
    """Of arrays whose every column is its own."""
    data = OrderedDict([('index', [60000 * i for i in range(rows)])])
    for number, name in enumerate(columns):
        data[name] = array('d', [number]) * rows
        data[name][rows // 2] = 0.1 + number
    return bq.Table(data, dict({name: 'float' for name in columns}, index='time'), ['index'])


def minutes(connection):
    return bq.RemoteQmtProvider(connection=connection).get_price(CODE, **MINUTES)


def rows_of(frame):
    """The values of a DataFrame or a Table."""
    return [list(frame[name]) for name in frame.columns]


@pytest.mark.parametrize('make', [long_client, None])
@pytest.mark.parametrize('compress, far, expected', [
    ('auto', False, False), ('auto', True, True), ('always', False, True), ('never', True, False)])
def test_bars_are_packed_off_the_loopback_or_as_told(server, packed, monkeypatch, make, compress, far, expected):
    monkeypatch.setattr(bq.Endpoint, '_is_far', staticmethod(lambda channel, round_trip_s: far))
    if make is None:
        client = short_client(server, compress=compress)
        minutes(client)
        client.close()
    else:
        with make(server, compress=compress) as client:
            minutes(client)
    assert packed == [expected]


def test_packed_bars_are_the_same(server):
    with long_client(server, compress='always') as packing, long_client(server, compress='never') as plain:
        assert rows_of(minutes(packing)) == rows_of(minutes(plain))


@pytest.mark.parametrize('value', ['', 'ALWAYS', 1, True, 'gzip'])
def test_another_compress_is_refused(value):
    with pytest.raises(bq.ConfigError) as caught:
        bq.RemoteQmtConnection('127.0.0.1', 1, 'token', compress=value)
    assert 'always' in caught.value.hint


@pytest.mark.parametrize('far, round_trip_s, expected', [
    ('127.0.0.1', 0.001, False), ('127.0.0.1', 1.0, True), ('::1', 0.001, False), ('10.0.0.5', 0.001, True),
    ('fe80::1%eth0', 0.001, True)])
def test_what_is_far(far, round_trip_s, expected):
    class Peer:
        sock = property(lambda self: self)

        def getpeername(self):
            return far, 1

    assert bq.Endpoint._is_far(Peer(), round_trip_s) is expected


@pytest.mark.parametrize('make', ['long', 'short'])
def test_a_result_longer_than_a_frame_arrives(server, monkeypatch, make):
    table = large_table(800000)
    assert 8 * len(table) * 6 > bq.FRAME_LIMIT
    answering(monkeypatch, table)
    if make == 'short':
        client = short_client(server)
        arrived = client.request('data.history', {'security': CODE})
        client.close()
    else:
        with long_client(server) as client:
            arrived = client.request('data.history', {'security': CODE})
    assert len(arrived) == len(table)
    for number, name in enumerate(table.columns):
        assert list(arrived.columns[name]) == list(table.columns[name]), name


def next_word(sock):
    """(is a part, body) of the next frame, by the layout itself."""
    word, = struct.unpack('>I', exactly(sock, 4))
    return bool(word & 1 << 30), exactly(sock, word & ~(3 << 30))


def exactly(sock, size):
    data = b''
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, 'the connection ended'
        data += chunk
    return data


def test_a_short_answer_goes_between_the_parts_of_a_long_one(server, monkeypatch):
    """The long answer, longer than the buffers of the sockets, is on its way when the short one is asked."""
    answering(monkeypatch, large_table(400000))
    with raw_socket(server) as sock:
        assert login_raw(sock, features=['binary1'])['type'] == 'handshake_ack'
        send_raw(sock, {'type': 'request', 'id': 'long', 'action': 'data.history', 'payload': {'security': CODE}})
        assert next_word(sock)[0]
        send_raw(sock, {'type': 'request', 'id': 'short', 'action': 'admin.health', 'payload': {}})
        parts_before, whole = 0, False
        while not whole:
            is_part, body = next_word(sock)
            whole = not is_part
            parts_before += is_part
        assert json.loads(body.decode('utf-8'))['id'] == 'short'
        assert next_word(sock)[0], 'the long answer was not over yet'


def test_a_client_that_knows_no_parts_gets_its_answers_whole(server, monkeypatch):
    answering(monkeypatch, large_table(1000))
    with raw_socket(server) as sock:
        assert login_raw(sock, features=['tick'])['type'] == 'handshake_ack'
        answer = ask_raw(sock, 'data.history', {'security': CODE})
        assert answer['payload']['dtype'] == 'dataframe' and len(answer['payload']['records']) == 1000


@pytest.mark.parametrize('features, name, limit', [(['binary1'], 'HISTORY_ROW_LIMIT', 5000000),
                                                   (['tick'], 'JSON_ROW_LIMIT', 500000)])
def test_how_many_bars_there_are_at_once(server, monkeypatch, features, name, limit):
    assert getattr(bq, name) == limit
    monkeypatch.setattr(bq, name, 10)
    with raw_socket(server) as sock:
        assert login_raw(sock, features=features)['type'] == 'handshake_ack'
        refused = ask_raw(sock, 'data.history', {'security': CODE, 'count': 11})
        assert refused['code'] == 'BAD_REQUEST' and '11' in refused['message'] and refused['hint']


# -- progress ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('make', ['long', 'short', 'local'])
def test_a_provider_hears_progress_only_of_its_call_and_all_of_it(server, monkeypatch, make):
    def downloading(query, download=True, progress=None):
        for number in (1, 2):
            progress({'finished': number, 'total': 2})
        return {'ok': True}

    monkeypatch.setattr(server.service.backend.data, 'ensure_cache', downloading)
    told = []
    with contextlib.closing(connection_to(server, make)) as client:
        provider = bq.RemoteQmtProvider(connection=client)
        provider.ensure_cache(CODE, count=5, on_progress=told.append)
        assert [figures['finished'] for figures in told] == [1, 2]
        provider.ensure_cache(CODE, count=5)
    assert len(told) == 2


def connection_to(server, make):
    if make == 'local':
        return bq.LocalConnection(server.service)
    if make == 'short':
        return short_client(server)
    return bq.RemoteQmtConnection(server.address[0], server.address[1], TOKEN).start()


def test_the_time_of_a_call_counts_from_its_last_progress():
    told = []
    call = bq._Call('data.ensure_cache', {}, told.append)
    assert call.later(100.0, 5.0) == 100.0 and told == []
    call.note_progress({'finished': 1})
    call.moved = 98.0
    assert call.later(100.0, 5.0) == 103.0 and told == [{'finished': 1}]
    call.note_progress({'finished': 2})
    call.moved = 90.0
    assert call.later(103.0, 5.0) == 103.0, 'never less than was promised'


@pytest.mark.parametrize('make', ['long', 'short'])
def test_a_client_waits_longer_for_what_makes_progress(server, monkeypatch, make):
    """Each step takes most of the client's time; together they take more than it."""
    def downloading(query, download=True, progress=None):
        for number in range(4):
            assert not step.wait(1.0)
            progress({'finished': number, 'total': 4})
        return {'ok': True}

    step = threading.Event()
    monkeypatch.setattr(server.service.backend.data, 'ensure_cache', downloading)
    with contextlib.closing(connection_to(server, make)) as client:
        assert client.request('data.ensure_cache', {'security': CODE, 'count': 1}, timeout=3.0)['value'] == {'ok': True}


def test_what_a_listener_of_progress_raises_ends_the_call(server, monkeypatch):
    def downloading(query, download=True, progress=None):
        progress({'finished': 1, 'total': 2})
        return {'ok': True}

    def enough(figures):
        raise KeyboardInterrupt

    monkeypatch.setattr(server.service.backend.data, 'ensure_cache', downloading)
    with long_client(server) as client:
        with pytest.raises(KeyboardInterrupt):
            client.request('data.ensure_cache', {'security': CODE, 'count': 1}, on_progress=enough)
        assert client.request('admin.health')
