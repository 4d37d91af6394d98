"""What ends a wait before its time: Ctrl-C in a program, close() in another thread. The waits are of minutes."""
import contextlib
import os
import socket
import sys
import threading

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, login_raw, raw_socket, read_raw, send_raw, server_settings, serving
from tests.environments import ROOT
from tests.processes import LineProcess
from tests.resources import becomes
from tests.test_clients import ack, refusal, reply, scripted

CODE = '000001.XSHE'
LONG = '600'


def ends(step):
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(30)
    return not thread.is_alive()


def mute(server, frame, number):
    return []


def unavailable(server, frame, number):
    return [refusal(frame, 'QMT_UNAVAILABLE', retryable=True, retry_after_s=300)]


def reconciling(server, frame, number):
    """Answered twice, so that it waits between two questions as well, then no more."""
    return [reply(frame, {'submission_state': 'reconciling'})] if number < 3 else []


@contextlib.contextmanager
def child(folder, *words):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('QMT_', 'BT_'))}
    paths = os.pathsep.join([os.path.dirname(os.path.abspath(bq.__file__)), ROOT])
    with LineProcess([sys.executable, '-m', 'tests.interrupted_child'] + list(words), cwd=str(folder), env=dict(
            environment, PYTHONPATH=paths, PYTHONIOENCODING='utf-8', QMT_SERVER_TOKEN=TOKEN)) as process:
        yield process


def assert_interrupted(process):
    process.send('')
    assert process.wait() == bq.Exit.INTERRUPTED, process.story()
    assert 'Traceback' not in process.story(), process.story()


# -- Ctrl-C ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('words', [
    ('account', '--patience', LONG), ('history', CODE, '--count', '5', '--patience', LONG),
    ('order', CODE, 'buy', '100', '--price', '9', '--wait', LONG),
    ('cancel', '1', '--rpc-timeout', LONG)], ids=' '.join)
def test_ctrl_c_ends_a_command_whose_server_is_mute(words, tmp_path):
    with scripted(mute) as server, child(tmp_path, 'command', *words, '--port', str(server.address[1])) as process:
        server.seen.get(timeout=30)
        assert_interrupted(process)
        assert len(server.requests) == 1, 'nothing is sent a second time'


def test_ctrl_c_ends_the_wait_for_an_order_and_leaves_it_where_it_is(tmp_path):
    with serving() as server:
        low = server.service.backend.data.quote(CODE).low_limit
        with child(tmp_path, 'command', 'order', CODE, 'buy', '100', '--price', str(low), '--wait', LONG,
                   '--rpc-timeout', LONG, '--port', str(server.address[1])) as process:
            assert becomes(lambda: server.service.desk._watch._watched)
            assert_interrupted(process)
            assert '不再等待，但委托可能已经提交' in process.story()
        orders = bq.RemoteQmtBroker(connection=bq.ShortConnection('127.0.0.1', server.address[1], TOKEN)).get_orders()
    assert [(row['amount'], row['status']) for row in orders] == [(100, 'open')]


@pytest.mark.parametrize('what, answer, asked', [
    ('leave_block', mute, 1), ('wait_order', reconciling, 3), ('wait_order', mute, 1), ('pause', unavailable, 1)])
def test_ctrl_c_ends_what_a_program_waits_for(what, answer, asked, tmp_path):
    with scripted(answer) as server, child(tmp_path, what, str(server.address[1])) as process:
        for _ in range(asked):
            server.seen.get(timeout=30)
        assert_interrupted(process)


def test_each_ctrl_c_ends_one_wait(tmp_path):
    with scripted(mute) as server, child(tmp_path, 'wait_twice', str(server.address[1])) as process:
        server.seen.get(timeout=30)
        process.send('')
        process.line_with('first')
        server.seen.get(timeout=30)
        assert_interrupted(process)


STRATEGY = '''
import time

N = 1

def initialize(context):
    pass

def handle_data(context, data):
    with open('point-%d' % N, 'w'):
        pass
    time.sleep(1)
'''


def test_ctrl_c_ends_the_wait_for_the_points_of_a_grid(tmp_path):
    """Each would take a second for every day of years."""
    (tmp_path / 'slow.py').write_bytes(STRATEGY.encode('ascii'))
    with child(tmp_path, 'command', 'backtest', 'slow.py', '--grid', 'N=1,2', '--start', '2018-01-02', '--end',
               '2024-12-31', '--data-provider', 'stub') as process:
        assert becomes(lambda: (tmp_path / 'point-1').exists() or (tmp_path / 'point-2').exists(), 60)
        assert_interrupted(process)
        assert [line for line in process.seen if '没有走完：2 组里一组也没有完成' in line], process.story()


# -- close() ---------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def client_of_the_mute():
    """(a connection, the socket of its server) that has answered the login, and of which nobody reads any more."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(1)
        client = bq.RemoteQmtConnection('127.0.0.1', listener.getsockname()[1], TOKEN, request_timeout=600.0,
                                        heartbeat_s=600.0)
        starting = threading.Thread(target=client.start, daemon=True)
        starting.start()
        with contextlib.closing(listener.accept()[0]) as sock:
            assert read_raw(sock)['type'] == 'handshake'
            send_raw(sock, ack())
            starting.join(30)
            yield client, sock


def test_a_connection_whose_server_is_mute_closes():
    with client_of_the_mute() as (client, _):
        assert ends(client.close)


def test_close_ends_a_call_that_another_thread_waits_in():
    failed = []

    def ask():
        try:
            client.request('broker.account')
        except bq.RequestTimeout as error:
            failed.append(error.message)
    with client_of_the_mute() as (client, sock):
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        assert read_raw(sock)['action'] == 'broker.account'
        assert ends(client.close) and ends(asking.join)
    assert len(failed) == 1 and failed[0].startswith('连接已关闭')


def test_a_server_ends_though_its_clients_stay(monkeypatch):
    monkeypatch.setattr(bq.BulletServer, 'DRAIN_S', 600.0)
    server = bq.serve(server_settings())
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            assert login_raw(stack.enter_context(raw_socket(server)))['type'] == 'handshake_ack'
        assert ends(server.close)
