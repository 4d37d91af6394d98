"""The limits: what the machine and Python give to anybody, as a worker. Blocking sockets, no protocol worth the name.

One such worker serves, each service in a thread for each connection; another one is the client of it.
"""
import contextlib
import json
import os
import socket
import sqlite3
import ssl
import struct
import threading
from array import array

from tests.bench.timing import Arrivals, Pacer, Ticker, arrived_of, calls_between, rate, timed

HEAD = struct.Struct('>I')
OPEN, ARRIVALS, SERVING, TICKER = [], [], {'subscribers': []}, Ticker()


# -- frames --------------------------------------------------------------------------------------------------------
def read_exactly(sock, size):
    data = bytearray(size)
    read_into(sock, data)
    return data


def read_into(sock, data):
    view, place = memoryview(data), 0
    while place < len(view):
        count = sock.recv_into(view[place:])
        if not count:
            raise EOFError
        place += count


def read_frame(sock):
    return read_exactly(sock, HEAD.unpack(read_exactly(sock, HEAD.size))[0])


def frame(body):
    return HEAD.pack(len(body)) + body


def json_frame(value):
    return frame(json.dumps(value, ensure_ascii=False, separators=(',', ':')).encode('utf-8'))


def padded(value, size):
    """The frame of a dict that a filler makes `size` bytes long. ValueError if it is longer already."""
    missing = size - len(json_frame(dict(value, filler='')))
    if missing < 0:
        raise ValueError('%r does not fit into %d bytes' % (value, size))
    return json_frame(dict(value, filler='.' * missing))


# -- the server ----------------------------------------------------------------------------------------------------
def listen(serve, context=None):
    """The port of a listener that runs serve(sock) for each connection."""
    listener = socket.socket()
    listener.bind(('127.0.0.1', 0))
    listener.listen(128)

    def one(sock):
        try:
            with (context.wrap_socket(sock, server_side=True) if context else sock) as wrapped:
                wrapped.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serve(wrapped)
        except (EOFError, ConnectionError, ssl.SSLError):
            pass  # that is how a client of this goes

    def accept():
        while True:
            threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()
    threading.Thread(target=accept, name='raw-accept', daemon=True).start()
    return listener.getsockname()[1]


def start_echo(answer_bytes, with_json):
    """Answers each frame with one of `answer_bytes` on the line, head included."""
    account = {'type': 'response', 'id': '000000', 'payload': {'dtype': 'dict', 'value': {
        'account_id': '10000001', 'available_cash': 1000000.0, 'total_value': 1000000.0, 'positions': []}}}
    answer = padded(account, answer_bytes)
    filled = json.loads(answer[HEAD.size:].decode('utf-8'))

    def serve(sock):
        while True:
            body = read_frame(sock)
            sock.sendall(json_frame(dict(filled, id=json.loads(body.decode('utf-8'))['id'])) if with_json else answer)
    return listen(serve)


def start_floats(rows):
    """Sends eight-byte numbers for each byte that comes: a column of times and six of floats."""
    columns = [array('q', range(0, 60000 * rows, 60000))] + [
        array('d', [(1000 + (row * 7 + number) % 300) / 100 for row in range(rows)]) for number in range(6)]
    data = b''.join(column.tobytes() for column in columns)

    def serve(sock):
        while read_exactly(sock, 1):
            sock.sendall(data)
    return listen(serve)


def start_visits(tls_cert=None, tls_key=None):
    """Takes connections and waits for their end."""
    context = None
    if tls_cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls_cert, tls_key)
    return listen(lambda sock: sock.recv(1), context)


def start(token, max_subscriptions):
    """A server of ticks: who connects is a subscriber."""
    def serve(sock):
        SERVING['subscribers'].append(sock)
        sock.recv(1)
        SERVING['subscribers'].remove(sock)
    return listen(serve)


def begin_ticks(symbols, per_second, burst):
    """Each tick is encoded once and sent to every subscriber."""
    def make(symbol, number, stamp):
        data = json_frame({'sid': symbol, 'last_price': 12.34, 'dt': '2026-11-26 10:00:00', 'open': 12.3, 'high': 12.4,
                           'low': 12.2, 'pre_close': 12.31, 'volume': number, 'money': stamp, 'symbol': symbol,
                           'high_limit': 13.54, 'low_limit': 11.08, 'paused': False, 'a1_p': 12.35, 'a1_v': 1200,
                           'b1_p': 12.34, 'b1_v': 800})
        for sock in list(SERVING['subscribers']):
            sock.sendall(data)
    TICKER.begin(Pacer(symbols, per_second, burst), make)


def made():
    return TICKER.made


def end_ticks():
    TICKER.end()


# -- the client ----------------------------------------------------------------------------------------------------
def open_connections(port, token=None, count=1, compress='auto'):
    for _ in range(count):
        sock = socket.create_connection(('127.0.0.1', port), 30)
        sock.settimeout(None)  # a blocking socket, without a call that waits for it first
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        OPEN.append(sock)


def close_connections():
    while OPEN:
        sock = OPEN.pop()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
        sock.close()
    del ARRIVALS[:]


def ask(sock, request_bytes):
    """A request of so many bytes through JSON, and its answer."""
    sock.sendall(padded({'id': '000001'}, request_bytes))
    return json.loads(read_frame(sock).decode('utf-8'))


def account_times(request_bytes, with_json, count):
    sock, request = OPEN[-1], bytes(padded({'id': '000001'}, request_bytes))

    def echo():
        sock.sendall(request)
        read_frame(sock)
    value = json.loads(request[HEAD.size:].decode('utf-8'))

    def echo_json():
        sock.sendall(json_frame(value))
        if json.loads(read_frame(sock).decode('utf-8'))['id'] != '000001':
            raise AssertionError('the echo answers another request')
    return timed(echo_json if with_json else echo, count)


def answer_bytes(request_bytes):
    """How many bytes the echo answers with."""
    OPEN[-1].sendall(padded({'id': '000001'}, request_bytes))
    return HEAD.size + len(read_frame(OPEN[-1]))


def account_calls(request_bytes, begin, end):
    return calls_between([lambda sock=sock: ask(sock, request_bytes) for sock in OPEN], begin, end)


def bars_times(rows, count):
    """Seconds from the question to the DataFrame, whose columns lie in what was received."""
    import numpy
    import pandas
    shapes = []

    def ask_bars():
        data = bytearray(7 * 8 * rows)
        OPEN[-1].sendall(b'.')
        read_into(OPEN[-1], data)
        times = numpy.frombuffer(data, 'M8[ms]', rows).astype('M8[ns]')
        floats = numpy.frombuffer(data, 'f8', 6 * rows, 8 * rows).reshape(6, rows)
        names = ['open', 'close', 'high', 'low', 'volume', 'money']
        shapes.append(pandas.DataFrame(floats.T, pandas.DatetimeIndex(times), names, copy=False).shape)
    return {'times': timed(ask_bars, count), 'rows': shapes[-1][0]}


def visit_times(port, token, tls_cert, count):
    """Seconds to connect, and for the handshake where there is a certificate."""
    context = ssl.create_default_context(cafile=tls_cert) if tls_cert else None

    def visit():
        sock = socket.create_connection(('127.0.0.1', port), 30)
        with (context.wrap_socket(sock, server_hostname='127.0.0.1') if context else sock):
            pass
    return timed(visit, count)


def exchange_times(port, request_bytes, count):
    """Seconds to connect, for two questions through JSON one after the other, and to close."""
    def visit():
        open_connections(port)
        ask(OPEN[-1], request_bytes)
        ask(OPEN[-1], request_bytes)
        OPEN.pop().close()
    return timed(visit, count)


def orders_rate(path, count):
    """Rows a second, each one synced to the disk by a commit of its own."""
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ('locking_mode=EXCLUSIVE', 'journal_mode=WAL', 'synchronous=FULL'):
        db.execute('PRAGMA ' + pragma).fetchall()
    db.execute('CREATE TABLE IF NOT EXISTS orders (key TEXT PRIMARY KEY, request TEXT)')
    request = json.dumps({'security': '000001.XSHE', 'side': 'BUY', 'amount': 100, 'style': {'type': 'market'}})

    def write():
        db.execute('INSERT INTO orders VALUES (?, ?)', (os.urandom(16).hex(), request))
    try:
        return rate(write, count)
    finally:
        db.close()


def subscribe(port, token, symbols, count):
    """Subscribers that read in a thread each."""
    open_connections(port, None, count)
    for sock in OPEN[-count:]:
        arrivals = Arrivals()
        ARRIVALS.append(arrivals)
        threading.Thread(target=read_ticks, args=(sock, arrivals), name='raw-ticks', daemon=True).start()


def read_ticks(sock, arrivals):
    try:
        while True:
            tick = json.loads(read_frame(sock).decode('utf-8'))
            arrivals.note(tick['symbol'], tick['volume'], tick['money'])
    except (EOFError, OSError):
        pass  # closed


def arrived(first, last):
    return arrived_of(ARRIVALS, first, last)
