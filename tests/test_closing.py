"""The window, or the session, in which a server or a live run works is closed: an orderly end in the time there is."""
import os
import socket
import sys

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN, serving, short_client
from tests.closable import ENDED_BY_SYSTEM
from tests.environments import ROOT
from tests.live import written
from tests.processes import LineProcess

CLOSED, LOGGED_OFF, SHUT_DOWN = 2, 5, 6  # HandlerRoutine's dwCtrlType
LONG_S = 120.0  # nothing is proved by how fast a loaded machine is
SAID = {CLOSED: '窗口被关闭', LOGGED_OFF: '用户注销', SHUT_DOWN: '系统关机'}
STRATEGY = '''
import time

def initialize(context):
    order('000001.XSHE', 100, LimitOrderStyle(get_current_data()['000001.XSHE'].low_limit))
    log.info('begins')
    time.sleep(%g)
    g.done = True
    log.info('done')
'''


class Closable(LineProcess):
    """tests.closable as a process."""

    def __init__(self, event, seconds, words, cwd, **more):
        self._window = socket.socket()
        self._window.bind(('127.0.0.1', 0))
        self._window.listen(1)
        port = self._window.getsockname()[1]
        super().__init__([sys.executable, '-m', 'tests.closable', str(port), str(event), str(seconds)] + words,
                         dict(os.environ, PYTHONIOENCODING='utf-8', PYTHONPATH=ROOT, **more), str(cwd))

    def close_window(self):
        self._window.accept()[0].close()

    def close(self):
        super().close()
        self._window.close()


def said(event):
    return SAID[event] if os.name == 'nt' else 'SIGHUP，终端已关闭'


@pytest.mark.parametrize('event', [CLOSED, LOGGED_OFF, SHUT_DOWN])
def test_a_server_ends_in_order(tmp_path, event):
    words = ['server', '--server-type=stub', '--listen=127.0.0.1', '--port=0', '--token', TOKEN, '--state',
             str(tmp_path / 'orders.sqlite'), '--log-file', str(tmp_path / 'own.log')]
    with Closable(event, LONG_S, words, tmp_path) as process:
        process.line_with('Ctrl-C')
        process.close_window()
        assert process.wait(60) == 0, process.story()
        story = process.story()
    assert '正在停止（%s）' % said(event) in story and '已停止。' in story and 'Traceback' not in story
    assert (tmp_path / 'own.log').read_bytes().decode('utf-8').rstrip().endswith('停止：%s' % said(event))
    assert not (tmp_path / 'orders.sqlite-wal').exists(), 'the journal was closed'


@pytest.fixture(scope='module')
def server():
    with serving() as server:
        yield server


def live(server, tmp_path, seconds, slow_s):
    written(tmp_path, STRATEGY % slow_s)
    return Closable(CLOSED, seconds, ['live', 'strategy.py', '--runtime-dir', 'here'], tmp_path,
                    QMT_SERVER_HOST='127.0.0.1', QMT_SERVER_PORT=str(server.address[1]), QMT_SERVER_TOKEN=TOKEN)


def orders_of(server):
    return bq.RemoteQmtBroker(connection=short_client(server)).get_orders()


def test_what_a_live_run_has_under_way_is_done_and_kept(server, tmp_path):
    with live(server, tmp_path, LONG_S, slow_s=0.5) as process:
        process.line_with('begins')
        process.close_window()
        assert process.wait(60) == 0, process.story()
        story = process.story()
    assert '正在停止（%s）' % said(CLOSED) in story and '未完成的委托，没有撤' in story and '已停止，状态在' in story
    state = jq.LiveState.read(str(tmp_path / 'here'))
    assert state.running is None and 'done' in jq._unpacked(state.kept['g'], None)


def test_what_takes_longer_than_there_is_time_is_cut_short_and_not_done_again(server, tmp_path):
    """No handler holds up the end of the process, and what has ordered is not repeated."""
    before = len(orders_of(server))
    with live(server, tmp_path, 0.5, slow_s=LONG_S) as process:
        process.line_with('begins')
        process.close_window()
        if os.name == 'nt':
            assert process.wait(60) == ENDED_BY_SYSTEM, process.story()
        else:
            process.kill()
        assert '已停止' not in process.story()
    with live(server, tmp_path, LONG_S, slow_s=0) as process:
        assert process.wait(60) == bq.Exit.USAGE, process.story()
        assert 'initialize 没有做完就结束了' in process.story()
    assert len(orders_of(server)) == before + 1
