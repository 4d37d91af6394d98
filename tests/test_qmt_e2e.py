"""The server on the qmt adapter, end to end: a day's life, settling, a second server, and the real peer as client."""
import importlib.util
import io
import json
import os
import queue
import threading
import time

import pytest

import bullet_qmt as bq
from tests.base import TOKEN
from tests.environments import ROOT
from tests.processes import run
from tests.qmt_server import USERDATA, QmtServer, broker_of, terminal_process
from tests.resources import becomes, descriptors_of, threads_of
from tests.terminal import scene
from tests.terminal.serve import HURRY_MARGIN_S

if importlib.util.find_spec('xtquant') is None or importlib.util.find_spec('pandas') is None:
    pytest.skip('needs xtquant and pandas', allow_module_level=True)

CODE = '600000.XSHG'
LOW = {'type': 'limit', 'price': 9.5}
PATIENCE_S = 60
SETTLED_S = 5 + HURRY_MARGIN_S + 2  # the server's request timeout, and what an answered order would take beyond it


def until(question, told='not in time'):
    """The first answer that is no retryable error and not None; asked again while it is."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = question()
        except bq.BulletError as error:
            if not error.retryable:
                raise
            answer, told = None, str(error)
        if answer is not None:
            return answer
        assert time.monotonic() < deadline, told
        threading.Event().wait(0.05)


def state_of(broker, key='main'):
    return broker._connection.request('admin.health')['value']['qmt']['accounts'][key]['state']


@pytest.fixture
def process():
    with terminal_process() as process:
        yield process


@pytest.mark.parametrize('question', ['account', 'positions', 'orders', 'trades', 'quote ' + CODE, 'history ' + CODE])
def test_a_command_beside_a_terminal_that_is_off_says_why_and_does_not_wait(tmp_path, monkeypatch, capsys, question):
    told, real = [], bq.ShortConnection._attempt

    def attempt(*args):
        try:
            return real(*args)
        except bq.QmtUnavailable as error:
            told.append(error.details.get('retry_after_s', 0))
            raise
    with terminal_process(stopped=True) as process, QmtServer(process, tmp_path) as server:
        with broker_of(server) as broker:
            assert becomes(lambda: state_of(broker) == 'down')
        monkeypatch.setattr(bq.ShortConnection, '_attempt', attempt)
        name, *rest = question.split()
        rest += [] if name in ('quote', 'history') else ['--account-key', 'main']
        code = bq.main([name, '--port', str(server.port), '--token', TOKEN] + rest)
    said = capsys.readouterr().err
    assert code == bq.Exit.FAILED and 'QMT_UNAVAILABLE' in said and '建议' in said
    assert ('返回 -1' in said) != (name in ('quote', 'history')) and sum(told[:-1]) < 5


def test_a_good_start_looks_as_told(tmp_path):
    with io.open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        told = file.read().split('<!-- good-start:begin -->\n```text\n')[1].split('```')[0].splitlines()
    with terminal_process() as process, QmtServer(process, tmp_path, '--accounts', 'default=%s:stock:%s' % (
            scene.ACCOUNT, USERDATA)) as server:
        server.process.line_with('Ctrl-C')
        shown = [line.replace(str(server.port), '58620').replace(scene.ACCOUNT, '55001234')
                 for line in server.process.seen]
    assert shown == told


def test_a_start_with_a_wrong_folder_looks_as_told(tmp_path):
    """It listens all the same, and says which folder it is."""
    account = 'default=%s:stock:%s' % (scene.ACCOUNT, tmp_path / 'typo')
    with terminal_process() as process, QmtServer(process, tmp_path, '--accounts', account) as server:
        server.process.line_with('没有目录.*typo')
        server.process.line_with('Ctrl-C')
    with io.open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        assert '| `没有目录` |' in file.read()


def test_a_days_life(tmp_path):
    """Up before the terminal; overview, first download, ticks, orders of all kinds, restarts at noon, the close."""
    with terminal_process(stopped=True) as process, QmtServer(process, tmp_path) as server:
        terminal = process.client
        with broker_of(server) as broker:
            with pytest.raises(bq.QmtUnavailable) as caught:
                broker.get_account_info()
            assert caught.value.details['retry_after_s'] > 0
            terminal.start()
            assert until(broker.get_account_info)['available_cash'] == 1000000.0
            assert server.process.line_with('account_id=%s, type=stock' % scene.ACCOUNT)
            assert '总资产' in server.process.line()
            trade_the_morning(broker, terminal)
            terminal.restart()
            until(lambda: True if state_of(broker) == 'connected' and len(until(broker.get_orders)) == 4 else None)
            assert server.stop() == 0
            server.start()
            rows = until(lambda: broker.get_orders() or None)
            assert [row['order_remark'] for row in rows] == ['resting', 'crossing', 'market', '']
            assert {row['status'] for row in rows} == {'canceled', 'filled', 'open'}
            assert len(until(broker.get_trades)) == 2 and server.stop() == 0
        assert terminal.problems() == [] and terminal.links() == []


def trade_the_morning(broker, terminal):
    provider = bq.RemoteQmtProvider(connection=broker._connection)
    bars = until(lambda: provider.get_price(CODE, count=5, fields=['close']))
    assert len(bars) == 5 and terminal.market.downloads
    ticks, heard = [], threading.Event()
    provider.set_tick_callback(lambda tick: (ticks.append(tick), heard.set()))
    until(lambda: provider.subscribe_ticks([CODE]))
    terminal.push('600000.SH', 10.02, 300)
    assert heard.wait(PATIENCE_S) and ticks[-1]['sid'] == CODE and ticks[-1]['last_price'] == 10.02
    resting = until(lambda: broker.place_order(CODE, 'BUY', 100, LOW, remark='resting', idempotency_key='d1'))
    assert broker.cancel_order(resting['order_id']) is True
    limit = {'type': 'limit', 'price': 10.2}
    crossing = broker.place_order(CODE, 'BUY', 200, limit, 5, 'crossing', 'd2')
    market = broker.place_order('000001.XSHE', 'BUY', 100, {'type': 'market'}, 5, 'market', 'd3')
    assert (crossing['status'], market['status']) == ('filled', 'filled')
    terminal.exchange.manual_order(scene.ACCOUNT, '600000.SH', 'BUY', 100, 9.6)
    assert [row['order_remark'] for row in broker.get_orders()] == ['resting', 'crossing', 'market', '']


def is_warm(broker):
    """On its journal's first day the server takes orders once the broker's list of the day is complete."""
    accounts = broker._connection.request('admin.health')['value']['qmt']['accounts']
    return all(account['warm'] for account in accounts.values()) or None


def test_an_order_whose_answer_never_came_is_settled_by_its_tag(process, tmp_path):
    with QmtServer(process, tmp_path) as server, broker_of(server, request_timeout=30) as broker:
        until(lambda: is_warm(broker))
        settled = queue.Queue()
        broker._connection.add_event_listener('order_settled', settled.put)
        process.client.faults.silence('order')
        with pytest.raises(bq.OrderStateUnknown) as caught:
            broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='silent')
        assert caught.value.idempotency_key == 'silent'
        row = broker.wait_order('silent', PATIENCE_S)
        event = settled.get(timeout=PATIENCE_S)
        assert (event['idempotency_key'], event['submission_state']) == ('silent', 'accepted')
        assert event['order_id'] == row['order_id']
        assert [str(entry['order_id']) for entry in process.client.exchange.accepted] == [row['order_id']]
        again = broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='silent')
        assert again['order_id'] == row['order_id'] and len(process.client.exchange.accepted) == 1


def outcome_of(broker, key):
    """None as long as the server is at it."""
    state = broker.resolve_submission(key)['submission_state']
    return None if state == 'reconciling' else state


def test_an_order_that_nobody_answered_stays_unknown_whoever_was_restarted(process, tmp_path):
    """Whether the terminal that is back is another one is not to be seen from here; its day has to end."""
    with QmtServer(process, tmp_path) as server:
        with broker_of(server, request_timeout=3) as broker:
            until(lambda: is_warm(broker))
            process.client.faults.hang('order', times=1)
            with pytest.raises(bq.OrderStateUnknown):
                broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='lost')
            server.kill()
            server.start()
            assert until(lambda: outcome_of(broker, 'lost')) == 'submit_unknown'
            with pytest.raises(bq.OrderStateUnknown):
                broker.wait_order('lost', SETTLED_S)
            process.client.restart()
            until(lambda: is_warm(broker))
            with pytest.raises(bq.OrderStateUnknown) as caught:
                broker.wait_order('lost', SETTLED_S)
            assert '15:35' in caught.value.message
            with pytest.raises(bq.OrderStateUnknown):
                broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='lost')
            assert process.client.exchange.accepted == []


def test_the_first_order_of_a_day_goes_to_a_terminal_that_answers_nothing_for_no_orders(process, tmp_path):
    """Where an order is known of, nothing is no answer: the refusal says what helps."""
    process.client.faults.blank(queries=10 ** 6, calls=('orders',), none=True)
    with QmtServer(process, tmp_path) as server:
        with broker_of(server) as broker:
            until(lambda: is_warm(broker))
            first = until(lambda: broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='first'))['order_id']
            assert broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='first')['order_id'] == first
        server.kill()
        server.start()
        with broker_of(server) as broker:
            until(lambda: is_warm(broker))
            with pytest.raises(bq.QmtUnavailable) as caught:
                broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='second')
            assert caught.value.broker_called is False and '手工报一笔' in caught.value.hint
            assert len(process.client.exchange.accepted) == 1
            process.client.faults.blank(queries=0)
            until(lambda: broker.place_order(CODE, 'BUY', 100, LOW, idempotency_key='second'))
        assert len(process.client.exchange.accepted) == 2


def test_one_accounts_trouble_is_not_the_others(process, tmp_path):
    with QmtServer(process, tmp_path) as server, broker_of(server, 'main') as main, \
            broker_of(server, 'second') as second:
        until(main.get_account_info)
        until(second.get_account_info)
        process.client.set_account_status(scene.ACCOUNT, 3)
        until(lambda: True if state_of(main) == 'down' else None)
        assert second.place_order(CODE, 'BUY', 100, LOW)['status'] == 'open'
        assert state_of(second, 'second') == 'connected'
        process.client.set_account_status(scene.ACCOUNT, 0)
        assert until(main.get_account_info)['account_id'] == scene.ACCOUNT


def test_a_second_server_on_the_same_journal_is_told_who_has_it(process, tmp_path):
    with QmtServer(process, tmp_path) as server:
        done = run(server._command[:-1] + [server._command[-1]], cwd=None, env=dict(
            os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(os.path.abspath(bq.__file__)),
                                                    os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]),
            PYTHONIOENCODING='utf-8'))
        assert done.returncode == bq.Exit.USAGE, done.stdout
        assert '进程 %d' % server.process._process.pid in done.stdout and '--state' in done.stdout


PEER = '''
import json, sys
from bullet_trade.broker.qmt_remote import RemoteQmtBroker
import asyncio
config = json.loads(sys.argv[1])
broker = RemoteQmtBroker('x', config=config)
broker.connect()
seen = {'cash': broker.get_account_info()['available_cash']}
run = asyncio.new_event_loop().run_until_complete
resting = run(broker.buy('600000.XSHG', 100, 9.5))
seen['canceled'] = run(broker.cancel_order(resting))
crossing = run(broker.buy('600000.XSHG', 100, 10.2, wait_timeout=5))
seen['market'] = run(broker.sell('600000.XSHG', 100, wait_timeout=5)) != crossing
seen['statuses'] = [row['status'] for row in broker.get_orders()]
seen['trades'] = len(broker.get_trades())
try:
    run(broker.buy('600000.XSHG', 100, 9.5, extra={'idempotency_key': 'silent'}))
    seen['silent'] = 'answered'
except Exception as error:
    seen['silent'] = type(error).__name__
answer = broker.resolve_submission('silent', write_action='broker.place_order')
seen['resolved'] = answer.get('submission_state')
print('SEEN ' + json.dumps(seen))
sys.stdout.flush()
import os
os._exit(0)
'''


def test_the_real_peer_trades_through_the_terminal(process, tmp_path):
    """A real bullet-trade client, unchanged; its last order's answer never comes from the terminal."""
    from tests.peer import require_peer
    python = require_peer()
    with QmtServer(process, tmp_path) as server, broker_of(server) as broker:
        until(broker.get_positions)
        config = {'host': '127.0.0.1', 'port': server.port, 'token': bq_token(), 'account_key': 'main'}
        script = tmp_path / 'peer.py'
        script.write_text(PEER, encoding='utf-8')
        watch = threading.Thread(target=silence_the_fourth, args=(process.client,), name='silence', daemon=True)
        watch.start()
        done = run([python, '-W', 'ignore', str(script), json.dumps(config)], 120, cwd=str(tmp_path))
        watch.join(PATIENCE_S)
        line = [line for line in done.stdout.splitlines() if line.startswith('SEEN ')]
        assert line, done.stdout
        seen = json.loads(line[0][5:])
        assert seen['cash'] == 1000000.0 and seen['canceled'] is True and seen['market'] is True
        assert seen['statuses'] == ['canceled', 'filled', 'filled'] and seen['trades'] == 2
        assert len(process.client.exchange.accepted) == 4
        assert broker.wait_order('silent', PATIENCE_S)['status'] == 'open'


def bq_token():
    from tests.base import TOKEN
    return TOKEN


def silence_the_fourth(terminal):
    """The answer of the fourth order is lost; the order itself is not."""
    terminal.wait_called('order', 3, 60)
    terminal.faults.silence('order')


@pytest.mark.skipif(threads_of(os.getpid()) is None, reason='this system does not tell the threads of a process')
def test_restarts_of_the_terminal_leak_neither_threads_nor_descriptors(process, tmp_path):
    with QmtServer(process, tmp_path) as server, broker_of(server) as broker:
        def counted():
            return threads_of(server.process.pid), descriptors_of(server.process.pid) or 0

        def restarted():
            process.client.restart()
            until(lambda: True if state_of(broker) == state_of(broker, 'second') == 'connected' else None)
            until(broker.get_orders)
            until(lambda: broker._connection.request('data.snapshot', {'security': CODE}))
        for _ in range(3):
            restarted()
        threads, descriptors = counted()
        for _ in range(6):
            restarted()
        # Pools may still make a worker or two; a leak would be one for each restart and account at least.
        assert becomes(lambda: counted()[0] < threads + 6), (counted(), threads)
        assert becomes(lambda: counted()[1] < descriptors + 6), (counted(), descriptors)
