"""What several tests share: a real server on the loopback, raw frames, and settings for both."""
import contextlib
import json
import socket
import struct

import bullet_qmt as bq

TOKEN = 'a-token-of-the-tests-0123456789'


def server_settings(**changes):
    """Settings of a stub server on port 0, with a tick every 50 ms; `changes` are parsed values."""
    settings = bq.load_settings(['server', 'stub'], {'server_type': 'stub', 'port': '0', 'token': TOKEN}, environ={},
                                dotenv=None)
    return settings.replace(stub_tick_interval=0.05, **changes)


@contextlib.contextmanager
def serving(clock=None, **changes):
    """A running server; `changes` as in server_settings. Its host and port: server.address."""
    server = bq.serve(server_settings(**changes), clock)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def long_client(server, **options):
    connection = bq.RemoteQmtConnection(server.address[0], server.address[1], TOKEN, **options)
    try:
        yield connection.start()
    finally:
        connection.close()


def short_client(server, **options):
    return bq.ShortConnection(server.address[0], server.address[1], TOKEN, **options)


@contextlib.contextmanager
def raw_socket(server, timeout=10):
    with contextlib.closing(socket.create_connection(server.address, timeout)) as sock:
        yield sock


def send_raw(sock, frame):
    """A frame of any JSON value, or of bytes as they are, without help from the code under test."""
    body = frame if isinstance(frame, bytes) else json.dumps(frame).encode('utf-8')
    sock.sendall(struct.pack('>I', len(body)) + body)


def read_raw(sock):
    """The next frame, or None at the end of the connection."""
    head = _read_exactly(sock, 4)
    return None if head is None else json.loads(_read_exactly(sock, struct.unpack('>I', head)[0]).decode('utf-8'))


def _read_exactly(sock, size):
    data = b''
    while len(data) < size:
        try:
            chunk = sock.recv(size - len(data))
        except ConnectionResetError:
            chunk = b''
        if not chunk:
            assert not data, 'the connection ended inside a frame'
            return None
        data += chunk
    return data


def login_raw(sock, token=TOKEN, features=('tick', 'order_stream'), **more):
    send_raw(sock, dict(more, type='handshake', token=token, protocol=1, features=list(features)))
    return read_raw(sock)


def ask_raw(sock, action, payload=None, id='1'):
    send_raw(sock, {'type': 'request', 'id': id, 'action': action, 'payload': payload or {}})
    return read_raw(sock)
