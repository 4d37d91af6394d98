"""Section 6: frames, and the channel that carries them over plain and TLS sockets."""
import contextlib
import itertools
import json
import select
import socket
import ssl
import struct
import threading
import types
from datetime import date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as b
from tests.certs import make_certificate

JOIN_S = 20
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2 ** 63, 2 ** 63),
                    st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(blacklist_categories=('Cs',
                                                                                                                  ))))
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.text('abc中', max_size=3), inner, max_size=4)), max_leaves=12)
FRAMES = st.dictionaries(st.text('abc中', max_size=3), VALUES, max_size=4)


def pack(body):
    return struct.pack('>I', len(body)) + body


@contextlib.contextmanager
def pair(**options):
    """(channel, raw socket at its other end)."""
    left, right = socket.socketpair()
    channel = b.Channel(left, **options)
    try:
        yield channel, right
    finally:
        channel.close()
        right.close()


def started(target, *args):
    """A running daemon thread; `outcome` of it is what target returned or raised."""
    def run():
        try:
            thread.outcome = target(*args)
        except Exception as error:
            thread.outcome = error
    thread = threading.Thread(target=run, daemon=True, name='test-%s' % getattr(target, '__name__', 'call'))
    thread.start()
    return thread


def joined(thread):
    thread.join(JOIN_S)
    assert not thread.is_alive(), '%s hangs' % thread.name
    return thread.outcome


# -- frames ---------------------------------------------------------------------------------------------
@given(FRAMES)
def test_a_frame_survives(frame):
    data = b.encode_frame(frame)
    assert struct.unpack('>I', data[:4])[0] == len(data) - 4
    assert b.decode_frame(data[4:]) == frame
    assert b.decode_frame(data[4:], lenient=True) == frame


def test_a_frame_is_compact_utf8():
    assert b.encode_frame({'名': [1, None, True]}) == pack('{"名":[1,null,true]}'.encode('utf-8'))


def test_times_and_decimals_travel_as_legacy_servers_read_them():
    frame = {'a': date(2024, 1, 5), 'b': datetime(2024, 1, 5, 9, 31), 'c': datetime(2024, 1, 5, 9, 31, 0, 500),
             'd': Decimal('10.01')}
    assert json.loads(b.encode_frame(frame)[4:].decode()) == {
        'a': '2024-01-05', 'b': '2024-01-05 09:31:00', 'c': '2024-01-05 09:31:00.000500', 'd': 10.01}


def test_numbers_of_numpy_travel_as_numbers():
    numpy = pytest.importorskip('numpy')
    frame = {'a': numpy.int64(5), 'b': numpy.float32(0.5), 'c': numpy.float64(1.5)}
    assert json.loads(b.encode_frame(frame)[4:].decode()) == {'a': 5, 'b': 0.5, 'c': 1.5}


@pytest.mark.parametrize('value', [float('nan'), float('inf'), Decimal('nan'), Decimal('inf')])
def test_what_json_does_not_know_is_not_sent(value):
    with pytest.raises(ValueError):
        b.encode_frame({'a': [value]})


@pytest.mark.parametrize('value', [object(), {1, 2}, b'x', 1j])
def test_what_has_no_json_is_refused(value):
    with pytest.raises(TypeError):
        b.encode_frame({'a': value})


def test_a_frame_above_the_limit_is_not_sent(monkeypatch):
    monkeypatch.setattr(b, 'FRAME_LIMIT', 10)
    assert b.encode_frame({'a': 'xx'})
    with pytest.raises(b.FrameTooLarge):
        b.encode_frame({'a': 'xxx'})


GARBAGE = {
    'empty': b'', 'space': b' ', 'not utf-8': b'{"a":"\xff"}', 'utf-16': '{"a":1}'.encode('utf-16'), 'text': b'hello',
    'cut': b'{"a":', 'two': b'{} {}', 'list': b'[]', 'number': b'5', 'string': b'"x"', 'null': b'null',
    'nul': b'{"a":1}\x00',
    'nested': b'[' * 10000, 'nested and closed': b'[' * 10000 + b']' * 10000, 'nested object': b'{"a":' * 10000,
    'nested in an object': b'{"a":' + b'[' * 10000 + b']' * 10000 + b'}', 'control': b'{"a":"\n"}',
    'single quotes': b"{'a':1}",
    'http': b'GET / HTTP/1.1\r\n\r\n'}
STRICT_GARBAGE = {'doubles': b'{"a":1,"a":2}', 'inner doubles': b'{"x":{"a":1,"a":1}}',
                  'huge int': b'{"a":' + b'9' * 5000 + b'}', 'long int': b'{"a":' + b'1' * 31 + b'}'}


@pytest.mark.parametrize('body', [GARBAGE[key] for key in sorted(GARBAGE)], ids=sorted(GARBAGE))
@pytest.mark.parametrize('lenient', [False, True])
def test_garbage_is_a_protocol_error(body, lenient):
    try:
        frame = b.decode_frame(body, lenient)
    except b.ProtocolError as error:
        assert len(str(error)) < 300 and str(error).isprintable()
    else:  # a parser that takes such nesting leaves it to check_depth
        with pytest.raises(b.ProtocolError):
            b.check_depth(frame)


@pytest.mark.parametrize('body', [STRICT_GARBAGE[key] for key in sorted(STRICT_GARBAGE)], ids=sorted(STRICT_GARBAGE))
def test_a_server_is_stricter(body):
    with pytest.raises(b.ProtocolError):
        b.decode_frame(body)


def test_a_number_without_end_is_refused_by_both_sides():
    with pytest.raises(b.ProtocolError):
        b.decode_frame(b'{"a":' + b'9' * 100000 + b'}', lenient=True)


def test_a_client_takes_the_nan_of_legacy_servers_as_null():
    assert b.decode_frame(b'{"a":[NaN,Infinity,-Infinity,1]}', lenient=True) == {'a': [None, None, None, 1]}


@given(st.binary(max_size=60))
def test_any_bytes_are_a_frame_or_a_protocol_error(body):
    for lenient in (False, True):
        try:
            assert isinstance(b.decode_frame(body, lenient), dict)
        except b.ProtocolError:
            pass


def test_depth_is_limited():
    fine = deep = 1
    for _ in range(b.DEPTH_LIMIT - 1):
        fine = [fine]
    b.check_depth(fine)
    for _ in range(b.DEPTH_LIMIT + 1):
        deep = {'a': deep}
    with pytest.raises(b.ProtocolError):
        b.check_depth(deep)


def send_in_pieces(raw, data, size):
    for start in range(0, len(data), size):
        raw.sendall(data[start:start + size])


# -- the channel ----------------------------------------------------------------------------------------
def test_frames_arrive_however_they_are_cut():
    frames = [{'id': 1, 'a': '中文' * 20}, {}, {'id': 2, 'b': list(range(50))}]
    data = b''.join(map(b.encode_frame, frames))
    with pair() as (channel, raw):
        for size in (1, 2, 3, 5, 7, 64, len(data)):
            thread = started(send_in_pieces, raw, data, size)
            assert [channel.read_frame(timeout_s=5) for _ in frames] == frames
            assert joined(thread) is None


def test_a_frame_cut_at_any_byte_waits_for_the_rest():
    data = b.encode_frame({'a': '中'})
    with pair() as (channel, raw):
        for cut in range(1, len(data)):
            raw.sendall(data[:cut])
            with pytest.raises(b.RequestTimeout):
                channel.read_frame(timeout_s=0)
            raw.sendall(data[cut:])
            assert channel.read_frame(timeout_s=5) == {'a': '中'}


def test_a_close_between_frames_is_clean_and_inside_is_not():
    data = b.encode_frame({'a': 1})
    for cut in range(len(data) + 1):
        with pair() as (channel, raw):
            raw.sendall(data[:cut])
            raw.close()
            if cut in (0, len(data)):
                assert channel.read_frame(timeout_s=5) == (None if cut == 0 else {'a': 1})
                assert channel.read_frame(timeout_s=5) is None
            else:
                with pytest.raises(b.ConnectionLost):
                    channel.read_frame(timeout_s=5)


@pytest.mark.parametrize('body', [GARBAGE[key] for key in sorted(GARBAGE) if 'nested in' not in key])
def test_garbage_on_the_wire_is_a_protocol_error(body):
    with pair() as (channel, raw):
        raw.sendall(pack(body))
        with pytest.raises(b.ProtocolError):
            channel.read_frame(timeout_s=5)


@pytest.mark.parametrize('length', [b.FRAME_LIMIT + 1, 2 ** 31, 2 ** 32 - 1, struct.unpack('>I', b'GET ')[0],
                                    struct.unpack('>I', b'\x16\x03\x01\x02')[0]])
def test_a_wrong_length_is_refused_before_anything_is_read(length):
    with pair() as (channel, raw):
        raw.sendall(struct.pack('>I', length))
        with pytest.raises(b.FrameTooLarge):
            channel.read_frame(timeout_s=5)


def test_the_login_has_a_limit_of_its_own():
    frame = {'a': 'x' * b.LOGIN_LIMIT}
    with pair() as (channel, raw):
        raw.sendall(b.encode_frame(frame))
        with pytest.raises(b.FrameTooLarge):
            channel.read_frame(limit=b.LOGIN_LIMIT, timeout_s=5)
        assert channel.read_frame(timeout_s=5) == frame


def test_a_silent_peer_is_a_timeout_and_reading_may_go_on():
    with pair() as (channel, raw):
        with pytest.raises(b.RequestTimeout):
            channel.read_frame(timeout_s=0.01)
        raw.sendall(b.encode_frame({'a': 1}))
        assert channel.read_frame(timeout_s=5) == {'a': 1}


def test_a_peer_that_drips_does_not_stretch_the_deadline():
    with pair() as (channel, raw):
        stop = threading.Event()

        def drip():
            raw.sendall(struct.pack('>I', 1000))
            while not stop.wait(0.02):
                raw.sendall(b' ')
        thread = started(drip)
        with pytest.raises(b.RequestTimeout):  # the frame whole would be no frame
            channel.read_frame(timeout_s=0.3)
        stop.set()
        assert joined(thread) is None


def test_abort_wakes_a_reader():
    with pair() as (channel, raw):
        raw.sendall(b'\x00')
        with pytest.raises(b.RequestTimeout):
            channel.read_frame(timeout_s=0.2)  # it is inside a frame now
        thread = started(channel.read_frame)
        channel.abort()
        assert isinstance(joined(thread), b.ConnectionLost)


@pytest.fixture
def selects(monkeypatch):
    """What select() is called with, on a system that has no poll()."""
    calls, hearing = [], threading.Event()

    def watched(*arguments):
        calls.append(arguments)
        if len(arguments[0]) == 2:
            hearing.set()
        return select.select(*arguments)
    monkeypatch.setattr(b, 'select', types.SimpleNamespace(select=watched))
    return calls, hearing


def test_a_thread_that_waits_long_sleeps_all_the_time(selects):
    with pair() as (channel, raw):
        thread = started(lambda: channel.read_frame(timeout_s=3.0))
        assert isinstance(joined(thread), b.RequestTimeout)
    assert len([arguments for arguments in selects[0] if arguments[3]]) <= 4  # a look every 0.2 s would be fifteen


def test_abort_wakes_one_who_has_slept_for_long(selects):
    with pair() as (channel, raw):
        thread = started(channel.read_frame)
        assert selects[1].wait(JOIN_S)
        channel.abort()
        assert isinstance(joined(thread), (b.ConnectionLost, type(None)))


def test_abort_wakes_a_reader_that_got_no_more_sockets(selects, monkeypatch):
    with pair() as (channel, raw):
        def none_left(*arguments):
            refused.set()
            raise OSError('no sockets left')
        refused = threading.Event()
        monkeypatch.setattr(b.socket, 'socketpair', none_left)
        thread = started(channel.read_frame)
        assert refused.wait(JOIN_S)
        channel.abort()
        assert isinstance(joined(thread), (b.ConnectionLost, type(None)))


def test_an_alarm_that_another_program_cuts_is_no_news(selects):
    with pair() as (channel, raw):
        thread = started(lambda: channel.read_frame(timeout_s=1.5))
        assert selects[1].wait(JOIN_S)
        channel._alarm._bell.close()
        assert isinstance(joined(thread), b.RequestTimeout)
    assert len([arguments for arguments in selects[0] if arguments[3]]) < 20


def test_abort_between_frames_ends_like_a_close():
    with pair() as (channel, _):
        thread = started(channel.read_frame)
        channel.abort()
        assert joined(thread) is None
        assert channel.alive is False
        with pytest.raises(b.ConnectionLost):
            channel.write_frame({})


def test_abort_and_close_may_be_called_again():
    with pair() as (channel, _):
        for _ in range(3):
            channel.abort()
        for _ in range(3):
            channel.close()


def test_abort_wakes_a_writer():
    with pair(write_timeout_s=600) as (channel, raw):
        thread = started(channel.write, b'x' * 20000000)
        assert raw.recv(1)  # it has begun, and nobody reads on
        channel.abort()
        assert isinstance(joined(thread), b.ConnectionLost)


def test_a_peer_that_never_reads_is_given_up():
    with pair(write_timeout_s=0.05) as (channel, _):
        with pytest.raises(b.ConnectionLost):
            channel.write_frame({'a': 'x' * 20000000})
        assert channel.alive is False
        with pytest.raises(b.ConnectionLost):  # at once: half a frame is out, nothing may follow it
            channel.write_frame({})


def test_a_vanished_peer_is_a_lost_connection():
    with pair() as (channel, raw):
        raw.close()
        with pytest.raises(b.ConnectionLost):
            for _ in range(100):
                channel.write_frame({'a': 'x' * 100000})


def test_writers_at_the_same_time_keep_frames_whole():
    with pair() as (channel, raw):
        reader = b.Channel(raw)
        frames = [{'writer': writer, 'n': n, 'fill': chr(97 + writer) * (n * 997 % 40000)}
                  for writer in range(4) for n in range(40)]

        def write(writer):
            for frame in frames:
                if frame['writer'] == writer:
                    channel.write_frame(frame)
        threads = [started(write, writer) for writer in range(4)]
        got = [reader.read_frame(timeout_s=JOIN_S) for _ in frames]
        assert [joined(thread) for thread in threads] == [None] * 4
        for writer in range(4):
            assert [f for f in got if f['writer'] == writer] == [f for f in frames if f['writer'] == writer]


def test_a_lenient_channel_reads_nan():
    with pair(decode=b.decode_lenient) as (channel, raw):
        raw.sendall(pack(b'{"a":NaN}'))
        assert channel.read_frame(timeout_s=5) == {'a': None}


# -- TLS ------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp('certs'))


@pytest.fixture
def tls_pair(certificate):
    """Two channels that talk TLS to each other."""
    server_context = b.require_tls12(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if hasattr(ssl, 'PROTOCOL_TLS_SERVER')
                                                    else ssl.PROTOCOL_TLS))
    server_context.load_cert_chain(*certificate)
    client_context = ssl.create_default_context(cafile=certificate[0])
    left, right = socket.socketpair()
    left.settimeout(JOIN_S)
    right.settimeout(JOIN_S)
    thread = started(lambda: server_context.wrap_socket(left, server_side=True))
    client = client_context.wrap_socket(right, server_hostname='localhost')
    channels = b.Channel(joined(thread)), b.Channel(client)
    yield channels
    for channel in channels:
        channel.close()


def test_tls_two_threads_read_and_write_at_once(tls_pair):
    frames = [{'n': n, 'fill': 'x' * (n * 997 % 60000)} for n in range(150)]

    def write(channel):
        for frame in frames:
            channel.write_frame(frame)

    def read(channel):
        return [channel.read_frame(timeout_s=JOIN_S) for _ in frames]
    readers = [started(read, channel) for channel in tls_pair]
    writers = [started(write, channel) for channel in tls_pair]
    assert [joined(thread) for thread in writers] == [None, None]
    assert [joined(thread) == frames for thread in readers] == [True, True]


def test_tls_several_frames_in_one_record_are_all_read(tls_pair):
    server, client = tls_pair
    server.write(b''.join(b.encode_frame({'n': n}) for n in range(500)))
    assert [client.read_frame(timeout_s=5)['n'] for _ in range(500)] == list(range(500))
    with pytest.raises(b.RequestTimeout):
        client.read_frame(timeout_s=0)


def test_tls_a_waiting_reader_does_not_hold_up_a_writer(tls_pair):
    server, client = tls_pair
    thread = started(client.read_frame)
    client.write_frame({'a': 1})
    assert server.read_frame(timeout_s=5) == {'a': 1}
    server.write_frame({'b': 2})
    assert joined(thread) == {'b': 2}


def test_tls_abort_wakes_a_reader(tls_pair):
    thread = started(tls_pair[0].read_frame)
    tls_pair[0].abort()
    assert joined(thread) is None


def test_tls_a_peer_that_leaves_without_goodbye_ends_cleanly_between_frames(tls_pair):
    server, client = tls_pair
    server.write_frame({'a': 1})
    server.close()
    assert client.read_frame(timeout_s=5) == {'a': 1}
    assert client.read_frame(timeout_s=5) is None


def test_tls_a_peer_that_never_reads_is_given_up(tls_pair):
    tls_pair[0].write_timeout_s = 0.05
    with pytest.raises(b.ConnectionLost):
        tls_pair[0].write_frame({'a': 'x' * 20000000})


# -- looking before sleeping -----------------------------------------------------------------------------------
def test_a_look_that_misses_makes_the_next_ones_rarer_and_a_hit_makes_them_usual(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(b.time, 'perf_counter', lambda: next(clock) * 0.00005)
    monkeypatch.setattr(b.os, 'cpu_count', lambda: 2)
    spin, looks = b._Spin(), []
    never = lambda timeout_s: looks.append(timeout_s)  # noqa: E731
    assert not spin.sees(never) and 0 < len(looks) <= 5 and set(looks) == {0}
    del looks[:]
    assert [spin.sees(never) for _ in range(2)] == [False, False] and looks == [], 'it rests'
    assert not spin.sees(never) and looks
    del looks[:]
    assert [spin.sees(never) for _ in range(4)] == [False] * 4 and looks == []
    assert spin.sees(lambda timeout_s: True) and spin.sees(lambda timeout_s: True)


def test_one_core_never_looks(monkeypatch):
    monkeypatch.setattr(b.os, 'cpu_count', lambda: 1)
    spin = b._Spin()
    assert not any(spin.sees(lambda timeout_s: True) for _ in range(5000))
