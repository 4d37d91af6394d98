"""Stopping, in this process and as a program; and what the access log says meanwhile."""
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

import bullet_qmt as bq

from .base import TOKEN, ask_raw, login_raw, raw_socket, read_raw, send_raw, server_settings, serving
from .resources import becomes, nothing_left

CODE = '000001.XSHE'
windows = pytest.mark.posix('signals of another kind')


@pytest.fixture(autouse=True)
def nobody_gives_up_by_himself(monkeypatch):
    """What would hold up an end holds it up for good."""
    monkeypatch.setattr(bq, 'LOGIN_TIMEOUT_S', 1000.0)


def assert_closes(server):
    closing = threading.Thread(target=server.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def resting_order(sock, **more):
    low = ask_raw(sock, 'data.live_current', {'security': CODE})['payload']['low_limit']
    send_raw(sock, {'id': 'order', 'action': 'broker.place_order', 'payload': dict(
        more, security=CODE, side='BUY', amount=100, style={'type': 'limit', 'price': low})})


# -- close() -------------------------------------------------------------------------------------------------
def test_a_server_nobody_came_to_closes_and_leaves_nothing():
    with nothing_left(), serving() as server:
        assert_closes(server)


def test_idle_silent_and_subscribed_sessions_end():
    with nothing_left(), serving() as server, contextlib.ExitStack() as stack:
        silent, idle, subscribed = [stack.enter_context(raw_socket(server)) for _ in range(3)]
        for sock in (idle, subscribed):
            assert login_raw(sock)['type'] == 'handshake_ack'
        ask_raw(subscribed, 'data.subscribe', {'securities': [CODE]})
        assert becomes(lambda: server.gate.connections == 3)
        assert_closes(server)
        assert read_raw(idle) is None
        while read_raw(subscribed) is not None:
            continue
        read_raw(silent)  # perhaps a word of refusal


def test_a_running_request_is_answered_before_the_end(monkeypatch):
    entered, go = threading.Event(), threading.Event()

    def slow(service, payload, session):
        entered.set()
        assert go.wait(30)
        return {'done': True}
    monkeypatch.setitem(bq.ACTIONS, 'data.history', bq.ACTIONS['data.history']._replace(run=slow))
    with nothing_left(), serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, {'id': 'slow', 'action': 'data.history'})
        assert entered.wait(20)
        closer = threading.Thread(target=server.close)
        closer.start()
        assert server.stopping.wait(20)
        go.set()
        assert read_raw(sock) == {'type': 'response', 'id': 'slow', 'payload': {'done': True}}
        assert sock.recv(1) == b'', 'an end, not a reset'
        closer.join(20)


def test_a_request_that_never_ends_does_not_keep_the_server(monkeypatch):
    monkeypatch.setattr(bq.BulletServer, 'DRAIN_S', 0.3)
    entered, go = threading.Event(), threading.Event()

    def stuck(service, payload, session):
        entered.set()
        go.wait(600)
        return {}
    monkeypatch.setitem(bq.ACTIONS, 'data.history', bq.ACTIONS['data.history']._replace(run=stuck))
    with nothing_left(), serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, {'id': 'stuck', 'action': 'data.history'})
        assert entered.wait(20)
        assert_closes(server)
        assert read_raw(sock) is None
        go.set()


def test_what_waited_behind_a_stuck_request_is_never_carried_out_after_the_end(monkeypatch):
    monkeypatch.setattr(bq.BulletServer, 'DRAIN_S', 0.2)
    monkeypatch.setattr(bq.BulletServer, 'POOLS', (('data', 1, 8, 1), ('history', 1, 8, 1), ('broker', 1, 8, 1)))
    entered, go, placed = threading.Event(), threading.Event(), []

    def stuck(service, payload, session):
        entered.set()
        go.wait(600)
        return {}
    monkeypatch.setitem(bq.ACTIONS, 'broker.account', bq.ACTIONS['broker.account']._replace(run=stuck, quick=bq._never))
    monkeypatch.setitem(bq.ACTIONS, 'broker.place_order', bq.ACTIONS['broker.place_order']._replace(
        run=lambda *_: placed.append(1) or {}, quick=bq._never))
    with nothing_left(), serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, {'id': 'stuck', 'action': 'broker.account'})
        assert entered.wait(20)
        send_raw(sock, {'id': 'order', 'action': 'broker.place_order', 'payload': {}})
        assert becomes(lambda: server._pools['broker']._jobs)
        assert_closes(server)
        go.set()
    assert placed == []


def test_an_order_that_waits_for_its_fill_is_answered_as_it_stands():
    with nothing_left(), serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        resting_order(sock, wait_timeout=300)
        assert becomes(lambda: server.service.desk._watch._watched)
        closer = threading.Thread(target=server.close)
        closer.start()
        answer = read_raw(sock)
        assert answer['id'] == 'order' and answer['payload']['async_tracking'] is True and answer['payload']['order_id']
        closer.join(10)
        assert not closer.is_alive()


def test_a_reader_that_stopped_reading_does_not_keep_the_server(monkeypatch):
    monkeypatch.setattr(bq.BulletServer, 'DRAIN_S', 0.5)
    monkeypatch.setitem(bq.ACTIONS, 'data.history', bq.ACTIONS['data.history']._replace(
        run=lambda *_: {'text': 'x' * (20 * 1024 * 1024)}))
    with nothing_left(), serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        send_raw(sock, {'id': 1, 'action': 'data.history'})
        assert becomes(lambda: [item for item in server._sessions if item._outbox and item._outbox._backlog])
        assert_closes(server)


def test_guests_without_room_do_not_keep_the_server():
    with nothing_left(), serving(max_connections=1) as server, contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(raw_socket(server))
        assert becomes(lambda: server.gate.connections == 12)
        assert_closes(server)


def test_nobody_gets_in_after_the_end():
    with serving() as server:
        server.close()
        with pytest.raises(OSError), raw_socket(server) as sock:
            assert read_raw(sock) is None
            raise OSError


def test_a_port_in_use_is_a_configuration_error_and_leaves_nothing():
    with serving() as server, nothing_left(), pytest.raises(bq.ConfigError) as caught, serving(port=server.address[1]):
        raise AssertionError('two servers on one port')
    assert str(server.address[1]) in caught.value.message and '--port' in caught.value.hint


# -- the program ---------------------------------------------------------------------------------------------
def start_program(*arguments):
    command = [sys.executable, bq.__file__, 'server', '--server-type=stub', '--listen=127.0.0.1', '--token', TOKEN]
    return subprocess.Popen(command + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=dict(os.environ, PYTHONIOENCODING='utf-8'))


@contextlib.contextmanager
def program(*arguments):
    """A started program that does not outlive the test."""
    process = start_program(*arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finish(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out.decode('utf-8'), err.decode('utf-8')


def read_port(process):
    for line in iter(process.stdout.readline, b''):
        match = re.search(r'服务端已启动：127\.0\.0\.1:(\d+)', line.decode('utf-8'))
        if match:
            return int(match.group(1))
    raise AssertionError('no start: %s' % process.stderr.read().decode('utf-8'))


def read_to_ready(process):
    for line in iter(process.stdout.readline, b''):
        if 'Ctrl-C' in line.decode('utf-8'):
            return
    raise AssertionError('never ready')


@windows
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_program_stops_cleanly_on_a_signal(number):
    with program('--port', '0') as process:
        port = read_port(process)
        read_to_ready(process)
        with bq.RemoteQmtConnection('127.0.0.1', port, TOKEN) as client:
            client.request('broker.account')
            process.send_signal(number)
            code, out, err = finish(process)
    assert code == 0 and '已停止' in out and 'Traceback' not in err
    assert TOKEN not in out and TOKEN not in err


@windows
def test_a_second_signal_in_the_same_breath_stops_it_all_the_same():
    """A handler that took a lock could meet itself."""
    with program('--port', '0') as process:
        read_to_ready(process)
        for number in [signal.SIGINT, signal.SIGTERM] * 5:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        code, out, err = finish(process)
    assert code == 0 and '已停止' in out and 'Traceback' not in err


@windows
def test_a_stop_signal_wakes_who_waits():
    script = ('import os, signal, threading, bullet_qmt as bq\n'
              'stop = bq.StopSignal().install()\n'
              'assert not stop.wait(0)\n'
              'threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n'
              'assert stop.wait(20) and stop.wait(0)\n')
    subprocess.check_call([sys.executable, '-c', script], env=dict(os.environ, PYTHONPATH=os.path.dirname(bq.__file__)))


@pytest.mark.parametrize('address', ['a..b', 'no.such.host.invalid', '203.0.113.77'])
def test_an_address_that_is_not_this_machines_is_a_configuration_error(address):
    with pytest.raises(bq.ConfigError) as caught:
        bq.serve(server_settings(listen=address))
    assert address in caught.value.message


def test_the_program_says_that_the_port_is_taken():
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        code, out, err = finish(start_program('--port', str(taken.getsockname()[1])))
    assert code == 2 and '--port' in err and 'Traceback' not in err


# -- the access log ------------------------------------------------------------------------------------------
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (?P<level>INFO|WARNING) "
                  r"(?P<peer>\S+) (?P<session>s\w{12}) id=(?P<id>.*) (?P<action>\S+|'.*') account=(?P<account>.*)"
                  r" (?P<status>[A-Z_]+)(?: \(client gone\))? (?P<ms>\d+\.\d)ms(?: \| (?P<order>.*))?", re.DOTALL)


@pytest.fixture
def lines(caplog, monkeypatch):
    """The access log's lines so far; waits until there are as many."""
    monkeypatch.setattr(bq.LOG, 'propagate', True)
    caplog.set_level(logging.INFO, 'bullet_qmt')

    def read(count):
        def found():
            return [line for record in caplog.records if record.name == 'bullet_qmt.access'
                    for line in record.getMessage().split('\n')]
        assert becomes(lambda: len(found()) >= count), found()
        assert len(found()) == count
        return [LINE.fullmatch(line) for line in found()]
    return read


def test_one_line_for_each_request(lines, caplog):
    with serving() as server, raw_socket(server) as sock:
        session_id = login_raw(sock)['session_id']
        ask_raw(sock, 'admin.health', id='one')
        ask_raw(sock, 'broker.account', {'account_key': 'default'}, id='two')
        ask_raw(sock, 'broker.account', {'account_key': 'nobody'}, id=3)
        ask_raw(sock, 'data.none', id='four')
        found = lines(4)
    assert all(found) and {line.group('peer') for line in found} == {'127.0.0.1'}
    assert {line.group('session') for line in found} == {session_id}
    found = sorted((line.group('id', 'action', 'account', 'status') for line in found))
    assert found == sorted([
        ("'one'", 'admin.health', '-', 'OK'), ("'two'", 'broker.account', 'default', 'OK'),
        ('3', 'broker.account', 'nobody', 'ACCOUNT_NOT_FOUND'), ("'four'", 'data.none', '-', 'UNKNOWN_ACTION')])
    assert TOKEN not in caplog.text


def test_lines_of_orders_say_what_was_ordered_and_what_became_of_it(lines, caplog):
    order = {'security': '000001.XSHE', 'side': 'BUY', 'amount': 100, 'idempotency_key': 'key-1'}
    secret = {'token': TOKEN, 'password': 'not-for-logs', 'account_id': '10000001'}
    with serving() as server, raw_socket(server) as sock:
        low = server.service.backend.data.quote('000001.XSHE').low_limit
        login_raw(sock)
        answer = ask_raw(sock, 'broker.place_order', dict(
            order, style={'type': 'limit', 'price': low}, order_remark='网格 一'))['payload']
        placed, status = answer['order_id'], answer['status']
        ask_raw(sock, 'broker.cancel_order', dict(order_id=placed, idempotency_key='key-2'))
        ask_raw(sock, 'broker.place_order', dict(order, amount=150, style={'type': 'market', 'protect_price': 12.5},
                                                 idempotency_key='key-3'))
        ask_raw(sock, 'broker.place_order', dict(secret, security='000001.XSHE', side='SELL', amount='x y', market=1))
        told = {line.group('order').partition(' -> ')[0]: line for line in lines(4)}
    bought, refused = "000001.XSHE BUY 100 限价 %r key=key-1 备注='网格 一'" % low, '000001.XSHE BUY 150 市价 12.5 key=key-3'
    outcomes = {asked: line.group('level') + line.group('order').partition(' -> ')[2] for asked, line in told.items()}
    assert outcomes.pop(bought) == 'INFO%s %s' % (placed, status)
    assert outcomes.pop('%s key=key-2' % placed) == 'INFO%s canceled' % placed
    assert outcomes.pop(refused) == 'WARNING-：000001.XSHE 数量 150 应为 100 起、100 的整数倍递增'
    assert outcomes.pop("000001.XSHE SELL 'x y' 市价").startswith('WARNING-：委托含有不认识的字段') and not outcomes
    assert TOKEN not in caplog.text and 'not-for-logs' not in caplog.text and '10000001' not in caplog.text


@pytest.mark.parametrize('style', [['market'], {'type': ['market']}, {'type': {}}, {'price': [1]}, 7, True])
def test_an_order_of_odd_style_has_its_line_and_so_have_those_after_it(lines, style):
    with serving() as server, raw_socket(server) as sock:
        login_raw(sock)
        ask_raw(sock, 'broker.place_order', {'security': '000001.XSHE', 'amount': 100, 'style': style})
        ask_raw(sock, 'broker.account')
        assert [line.group('action') for line in lines(2)] == ['broker.place_order', 'broker.account']


def test_orders_alone_have_lines_where_the_log_is_switched_off(lines):
    with serving(access_log=False) as server, raw_socket(server) as sock:
        login_raw(sock)
        assert ask_raw(sock, 'broker.account')['type'] == 'response'
        ask_raw(sock, 'broker.place_order', {'security': '000001.XSHE', 'side': 'BUY', 'amount': 3.5})
        ask_raw(sock, 'broker.cancel_order', {'order_id': 'none'})
        told = {line.group('action'): line for line in lines(2)}
    placed, cancelled = told['broker.place_order'], told['broker.cancel_order']
    assert (placed.group('level'), cancelled.group('level')) == ('WARNING', 'WARNING')
    assert '3.5' in placed.group('order') and '没有' in cancelled.group('order')


def test_an_order_that_the_broker_refuses_after_it_was_taken_has_its_reason_in_the_log(caplog, monkeypatch):
    monkeypatch.setattr(bq.LOG, 'propagate', True)
    row = bq.Order(order_id='7', security='000001.XSHE', side='BUY', amount=100, status='rejected', raw_status=57,
                   status_msg='[COUNTER] 可用资金不足')
    with serving(access_log=False) as server:
        server.service.desk.stream.tell('default', 'order', row)
        assert becomes(lambda: '委托 7 key=None 没有成立：[COUNTER] 可用资金不足' in caplog.text), caplog.text


class Guest:
    address, id = '127.0.0.1', 's123456789012'


def test_an_access_log_that_nobody_takes_is_bounded_and_orders_have_more_room(monkeypatch):
    monkeypatch.setattr(bq.AccessLog, 'LIMIT', 10)
    stopped, entered, written = threading.Event(), threading.Event(), []

    def info(pattern, text):
        entered.set()
        assert stopped.wait(60)
        written.extend(text.splitlines())
    monkeypatch.setattr(bq.ACCESS_LOG, 'info', info)
    log = bq.AccessLog()
    log.note(Guest, 'first', 'data.snapshot', '-', 'OK', 0.001)
    assert entered.wait(20)
    for number in range(100):
        log.note(Guest, number, 'data.snapshot', '-', 'OK', 0.001)
    for number in range(100):
        log.note(Guest, number, 'broker.place_order', '-', 'OK', 0.001, ({'security': '000001.XSHE'}, {}))
    stopped.set()
    log.close()
    counts = [sum(text in line for line in written) for text in ('data.snapshot', 'broker.place_order')]
    assert counts == [11, 30] and len(written) == 42 and '丢了 160 行' in written[-1]


@pytest.mark.parametrize('evil', ['x\n2024-01-01 forged', 'x\r\nforged', '\x1b[2J', '\u2028forged', '\ud800', 'a\x00b',
                                  '\u202egnp.exe'])
def test_nothing_a_client_sends_forges_a_line(lines, caplog, evil):
    with serving() as server, raw_socket(server) as sock, raw_socket(server) as refused:
        login_raw(sock)
        ask_raw(sock, evil, id='a')
        ask_raw(sock, 'broker.account', {'account_key': evil}, id='b')
        ask_raw(sock, 'broker.account', {'sub_account_id': [evil]}, id='c')
        ask_raw(sock, 'broker.account', id=evil)
        ask_raw(sock, 'broker.place_order', {'security': evil, 'idempotency_key': evil, 'style': evil, 'side': [evil],
                                             'order_remark': {evil: evil}, 'amount': evil}, id='d')
        assert login_raw(refused, account_key=evil)['type'] == 'error'
        lines(5)
        text = [line for record in caplog.records if record.name.startswith('bullet_qmt')
                for line in record.getMessage().split('\n')]
    assert len(text) > 5 and all(line.isprintable() for line in text), text


def test_the_token_is_in_no_line_however_the_login_goes(lines, caplog):
    secret = 'another-secret-token'
    with serving() as server:
        for frame in ({'type': 'handshake', 'token': secret}, {'type': 'handshake', 'token': [secret]},
                      {'type': 'request', 'token': secret}, {'type': 'handshake', 'token': secret, 'features': 7}):
            with raw_socket(server) as sock:
                send_raw(sock, frame)
                while read_raw(sock) is not None:
                    continue
        with raw_socket(server) as sock:
            login_raw(sock)
            ask_raw(sock, 'broker.account')
            lines(1)
    assert secret not in caplog.text and TOKEN not in caplog.text
