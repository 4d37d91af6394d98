"""TLS with certificates made here: who gets in, what the refused are told, and that nothing gets mixed up inside."""
import contextlib
import queue
import socket
import ssl
import struct
import threading
import warnings

import pytest

import bullet_qmt as bq

from .base import TOKEN, login_raw, raw_socket, read_raw, send_raw, serving
from .certs import make_certificate
from .resources import becomes, nothing_left


@contextlib.contextmanager
def tls_serving(folder, **certificate):
    cert, key = make_certificate(folder, **certificate)
    with serving(tls_cert=cert, tls_key=key) as server:
        server.cert = cert
        yield server


def connect(server, host='127.0.0.1', cert=None, **options):
    return bq.RemoteQmtConnection(host, server.address[1], TOKEN, tls_cert=cert or server.cert, **options)


def refusal(server, expected=bq.ConnectionLost, **options):
    with pytest.raises(expected) as caught, connect(server, **options):
        raise AssertionError('got in')
    return caught.value


@pytest.mark.parametrize('host, names', [
    ('127.0.0.1', ('127.0.0.1',)), ('localhost', ('localhost',)), ('127.0.0.1', ('localhost', '127.0.0.1'))])
def test_the_right_certificate_connects(tmp_path, host, names):
    with tls_serving(tmp_path, hosts=names) as server, connect(server, host) as client:
        assert client.request('admin.health')['value']['process_alive'] is True
    assert server.tls is not None


def test_the_short_client_connects_too(tmp_path):
    with tls_serving(tmp_path) as server:
        client = bq.ShortConnection('localhost', server.address[1], TOKEN, tls_cert=server.cert)
        assert client.request('broker.account')['dtype'] == 'dict'


def test_another_certificate_is_not_trusted(tmp_path):
    other, _ = make_certificate(tmp_path, name='other')
    with tls_serving(tmp_path) as server:
        error = refusal(server, cert=other)
        assert isinstance(error, bq.TlsError) and not error.retryable and 'tls_cert' in error.hint


@pytest.mark.parametrize('host, names', [('127.0.0.1', ('localhost',)), ('localhost', ('127.0.0.1',)),
                                         ('localhost', ('example.com',)), ('127.0.0.1', ('192.0.2.1',))])
def test_a_certificate_of_another_host_is_refused(tmp_path, host, names):
    with tls_serving(tmp_path, hosts=names) as server:
        error = refusal(server, host=host)
        assert isinstance(error, bq.TlsError) and 'SAN' in error.hint


@pytest.mark.parametrize('days', [(-30, -1), (1, 30)])
def test_a_certificate_out_of_its_time_is_refused(tmp_path, days):
    with tls_serving(tmp_path, days=days) as server:
        error = refusal(server)
        assert isinstance(error, bq.TlsError) and '有效期' in error.hint


def test_a_plain_client_at_a_tls_server_is_told_what_is_missing(tmp_path):
    with tls_serving(tmp_path) as server:
        with pytest.raises(bq.ConnectionLost) as caught:
            bq.RemoteQmtConnection('127.0.0.1', server.address[1], TOKEN).start()
        assert 'TLS' in caught.value.hint or 'TLS' in caught.value.message


def test_a_tls_client_at_a_plain_server_is_told_what_is_missing(tmp_path):
    cert, _ = make_certificate(tmp_path)
    with serving() as server:
        error = refusal(server, cert=cert)
        assert isinstance(error, bq.TlsError) and '--tls-cert' in error.hint


def test_tls_below_1_2_is_refused_by_the_server(tmp_path):
    with tls_serving(tmp_path) as server:
        assert server.tls.options & ssl.OP_NO_SSLv3 or server.tls.minimum_version >= ssl.TLSVersion.TLSv1_2
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers('ALL:@SECLEVEL=0')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            context.options |= ssl.OP_NO_TLSv1_2 | getattr(ssl, 'OP_NO_TLSv1_3', 0)
            if hasattr(ssl, 'TLSVersion'):
                context.minimum_version = ssl.TLSVersion.TLSv1
        with raw_socket(server) as sock, pytest.raises((ssl.SSLError, ConnectionResetError)):
            context.wrap_socket(sock)


def test_a_client_refuses_tls_below_1_2(tmp_path):
    cert, key = make_certificate(tmp_path)
    context = bq.Endpoint('127.0.0.1', 1, TOKEN, cert)._tls
    if hasattr(ssl, 'TLSVersion'):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    else:
        assert context.options & ssl.OP_NO_TLSv1_1 and context.options & ssl.OP_NO_TLSv1
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize('spoil', ['missing', 'swapped', 'foreign key', 'encrypted'])
def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path, spoil):
    cert, key = make_certificate(tmp_path)
    if spoil == 'missing':
        key = str(tmp_path / 'nothing.key')
    elif spoil == 'swapped':
        cert, key = key, cert
    elif spoil == 'foreign key':
        key = make_certificate(tmp_path, name='foreign')[1]
    else:
        key = encrypt(key)
    with nothing_left(), pytest.raises(bq.ConfigError) as caught, serving(tls_cert=cert, tls_key=key):
        raise AssertionError('started')
    assert 'tls' in str(caught.value).lower()


def encrypt(path):
    """The same key behind a password: a server must say so rather than ask for it."""
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives import serialization
    with open(path, 'rb') as file:
        key = serialization.load_pem_private_key(file.read(), None, default_backend())
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.BestAvailableEncryption(b'secret'))
    with open(path, 'wb') as file:
        file.write(data)
    return path


def test_requests_and_ticks_of_many_threads_over_one_connection_stay_whole(tmp_path, monkeypatch):
    """Every answer belongs to its question, small and large, while ticks come in between."""
    monkeypatch.setitem(bq.ACTIONS, 'data.snapshot', bq.ACTIONS['data.snapshot']._replace(
        run=lambda service, payload, session: {'echo': payload['text'] * payload['times']}))
    ticks, failures = queue.Queue(), []
    with tls_serving(tmp_path) as server, connect(server) as client:
        client.add_event_listener('tick', ticks.put)
        client.subscribe('mine', ['000001.XSHE', '600000.XSHG'])

        def ask(name):
            for number in range(25):
                text, times = '%s-%d|' % (name, number), 1 if number % 5 else 30000
                answer = client.request('data.snapshot', {'text': text, 'times': times, 'padding': 'x' * 20000})
                if answer != {'echo': text * times}:
                    failures.append(text)
        threads = [threading.Thread(target=ask, args=(name,)) for name in 'abcdefgh']
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures and not any(thread.is_alive() for thread in threads)
        assert len(server._sessions) == 1, 'it was one connection all along'
        assert ticks.get(timeout=20)['sid'] in ('000001.XSHE', '600000.XSHG')


def test_peers_that_stall_in_the_handshake_hold_up_nobody(tmp_path):
    with tls_serving(tmp_path) as server, contextlib.ExitStack() as stack:
        for start in (b'', b'\x16\x03\x01', b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc'):
            stack.enter_context(raw_socket(server)).sendall(start)
        with connect(server) as client:
            assert client.request('admin.health')['value']['sessions'] == 1
            assert becomes(lambda: server.gate.waiting == 3)


def test_a_stalled_handshake_ends_with_the_login_time(tmp_path, monkeypatch):
    monkeypatch.setattr(bq, 'LOGIN_TIMEOUT_S', 0.2)
    with tls_serving(tmp_path) as server, raw_socket(server) as sock:
        sock.sendall(b'\x16\x03\x01')
        assert sock.recv(10) == b''


def test_a_silent_peer_inside_tls_ends_with_the_login_time(tmp_path, monkeypatch):
    monkeypatch.setattr(bq, 'LOGIN_TIMEOUT_S', 0.5)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with tls_serving(tmp_path) as server, raw_socket(server) as sock:
        context.load_verify_locations(server.cert)
        with contextlib.closing(context.wrap_socket(sock, server_hostname='localhost')) as inside:
            assert read_raw(inside)['code'] == 'REQUEST_TIMEOUT'


def test_tls_sessions_leave_nothing_behind(tmp_path):
    cert, key = make_certificate(tmp_path)
    with nothing_left():
        with serving(tls_cert=cert, tls_key=key) as server:
            server.cert = cert
            for _ in range(3):
                with connect(server) as client:
                    client.request('admin.health')
            with raw_socket(server) as sock:
                sock.sendall(b'garbage' * 10)
            raw = socket.create_connection(server.address)
            server.close()
            raw.close()


def test_no_room_on_a_tls_port_is_told_inside_tls(tmp_path):
    cert, key = make_certificate(tmp_path)
    with serving(tls_cert=cert, tls_key=key, max_connections=1) as server:
        server.cert = cert
        with connect(server):
            error = refusal(server, expected=bq.ServerBusy)
            assert error.retryable and error.details['retry_after_s'] > 0


def test_a_wrong_token_and_a_late_login_are_told_inside_tls(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with tls_serving(tmp_path) as server, raw_socket(server) as sock:
        context.load_verify_locations(server.cert)
        inside = context.wrap_socket(sock, server_hostname='localhost')
        assert login_raw(inside, token='wrong')['code'] == 'AUTH_FAILED'
        assert inside.recv(1) == b'', 'an end with the goodbye of TLS'


@contextlib.contextmanager
def cutting_server(read, reset):
    """Takes connections, reads so many bytes of each, and ends it."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(5)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    sock = listener.accept()[0]
                    sock.recv(read)
                    if reset:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    sock.close()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize('reset', [False, True])
def test_a_handshake_that_is_cut_off_is_a_lost_connection_worth_another_try(tmp_path, reset):
    cert, _ = make_certificate(tmp_path)
    with cutting_server(100000, reset) as port:
        client = bq.ShortConnection('127.0.0.1', port, TOKEN, tls_cert=cert, retries=0)
        with pytest.raises(bq.ConnectionLost) as caught:
            client.request('admin.health')
    assert not isinstance(caught.value, bq.TlsError) and caught.value.retryable
    assert 'TLS' in caught.value.message and 'tls_cert' in caught.value.hint


def test_a_handshake_that_nobody_answers_is_a_lost_connection(tmp_path):
    cert, _ = make_certificate(tmp_path)
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(1)
        endpoint = bq.Endpoint('127.0.0.1', listener.getsockname()[1], TOKEN, cert, connect_timeout=0.3)
        with pytest.raises(bq.ConnectionLost) as caught:
            endpoint.dial()
    assert caught.value.retryable


def test_a_plain_raw_login_still_speaks_the_protocol_inside_tls(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with tls_serving(tmp_path) as server, raw_socket(server) as sock:
        context.load_verify_locations(server.cert)
        with contextlib.closing(context.wrap_socket(sock, server_hostname='127.0.0.1')) as inside:
            assert login_raw(inside)['type'] == 'handshake_ack'
            send_raw(inside, {'type': 'ping', 'id': 1})
            assert read_raw(inside) == {'type': 'pong', 'id': 1}
