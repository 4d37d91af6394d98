"""bullet_qmt's server in a process of its own, on a stand-in terminal in another: for tests that kill one of them."""
import contextlib
import os
import signal
import socket
import sys

import bullet_qmt as bq
from tests.base import TOKEN
from tests.environments import ROOT
from tests.processes import LISTENING, LineProcess
from tests.terminal import scene
from tests.terminal.remote import TerminalProcess

USERDATA = scene.userdata_folder()
ACCOUNTS = 'main=%s:stock:%s,second=%s:stock:%s' % (scene.ACCOUNT, USERDATA, scene.SECOND_ACCOUNT, USERDATA)


def free_port():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


class QmtServer:
    """start, kill (SIGKILL) and stop a server on the terminal's address; the port and the journal stay the same."""

    def __init__(self, terminal, folder, *options):
        self.port, self.state = free_port(), str(folder / 'orders.sqlite')
        self._command = [sys.executable, '-m', 'tests.terminal.serve', '%s:%d' % terminal.address, 'server',
                         '--server-type=qmt', '--port', str(self.port), '--token', TOKEN, '--accounts', ACCOUNTS,
                         '--state', self.state, '--no-access-log', '--request-timeout', '5'] + list(options)
        self.address, self.process = ('127.0.0.1', self.port), None

    def start(self):
        paths = os.pathsep.join([os.path.dirname(os.path.abspath(bq.__file__)), ROOT])
        environment = dict(os.environ, PYTHONPATH=paths, PYTHONIOENCODING='utf-8', QMT_TEST_HURRY='1')
        self.process = LineProcess(self._command, env=environment, cwd=ROOT)
        self.process.line_with(LISTENING)
        return self

    def kill(self):
        os.kill(self.process._process.pid, signal.SIGKILL if os.name != 'nt' else signal.SIGTERM)
        self.process.wait()
        self.process.close()

    def stop(self):
        """The exit code of an orderly end."""
        self.process.interrupt()
        code = self.process.wait()
        self.process.close()
        return code

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc_info):
        if self.process._process.poll() is None:
            self.kill()


@contextlib.contextmanager
def terminal_process(**options):
    with TerminalProcess(path=USERDATA, **options) as process:
        scene.populate(process.client)
        yield process


@contextlib.contextmanager
def broker_of(server, account_key='main', **options):
    connection = bq.RemoteQmtConnection('127.0.0.1', server.port, TOKEN, backoff_s=(0.05, 0.3), **options)
    try:
        yield bq.RemoteQmtBroker(connection=connection.start(), config={'account_key': account_key})
    finally:
        connection.close()
