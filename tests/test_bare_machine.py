"""A fresh machine with nothing but CPython: one file, no packages, no settings, another working directory."""
import os
import re
import shutil
import sys

import pytest

import bullet_qmt as bq
from tests.environments import find_interpreters, version_text
from tests.processes import LISTENING, LineProcess, run

INTERPRETERS = find_interpreters()
TOKEN = 'a-token-for-the-bare-machine-0123456789'


@pytest.fixture(params=list(INTERPRETERS), ids=version_text)
def bare(request, tmp_path):
    """Runs bullet_qmt.py there: bare(arguments) -> the whole command; bare.options: environment and directory."""
    return BareMachine(INTERPRETERS[request.param], tmp_path)


class BareMachine:
    def __init__(self, python, directory):
        self.home, self.elsewhere = directory / 'home', directory / 'elsewhere'
        self.home.mkdir()
        self.elsewhere.mkdir()
        self.file = str(self.home / 'bullet_qmt.py')
        shutil.copy(bq.__file__, self.file)
        self.python = [python, '-I', '-S']
        needed = ('PATH', 'SYSTEMROOT')  # without the second there are no sockets on Windows
        environment = {name: os.environ[name] for name in needed if name in os.environ}
        self.options = {'cwd': str(self.elsewhere), 'env': environment}

    def command(self, *arguments):
        return self.python + [self.file] + list(arguments)

    def run(self, *arguments):
        done = run(self.command(*arguments), **self.options)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def serving(self):
        return LineProcess(self.command('server', '--server-type=stub', '--listen', '127.0.0.1', '--port', '0',
                                        '--token', TOKEN), **self.options)


def test_it_serves_and_answers(bare):
    with bare.serving() as server:
        port = server.line_with(LISTENING).group(1)
        server.line_with(r'account_id=10000001, type=stock')
        server.line_with(r'1,000,000\.00')
        there = ['--port', port, '--token', TOKEN]
        assert '1,000,000.00' in bare.run('account', *there)
        placed = bare.run('order', '511880.XSHG', 'buy', '100', '--market', '--key', 'first', *there)
        order_id = re.search(r'^(\d+) .*511880\.XSHG', placed, re.MULTILINE).group(1)
        assert re.search(r'^%s .*511880\.XSHG' % order_id, bare.run('orders', *there), re.MULTILINE)
        assert re.search(r'^511880\.XSHG .* 100 ', bare.run('positions', *there), re.MULTILINE)
        history = bare.run('history', '600519.XSHG', '--end', '2024-01-05', '--count', '3', *there).splitlines()
        assert [line.split()[0] for line in history[2:]] == ['2024-01-03', '2024-01-04', '2024-01-05']
    assert [path.name for path in bare.home.iterdir()] == ['bullet_qmt.py'], 'it left files beside itself'
    assert list(bare.elsewhere.iterdir()) == [], 'it left files where it ran'


@pytest.mark.wine('its Ctrl-Break reaches no Python without site')
def test_it_stops_when_told(bare):
    with bare.serving() as server:
        server.line_with(LISTENING)
        server.interrupt()
        assert server.wait() == 0, server.story()
        assert 'Traceback' not in server.story()


IMPORT = '''
import sys
sys.path.insert(0, %r)
import socket
def refuse(*arguments, **options):
    raise SystemExit('a socket was made while importing')
real, socket.socket.__init__ = socket.socket.__init__, refuse
import bullet_qmt
socket.socket.__init__ = real
print(sorted({'pandas', 'numpy', 'xtquant'} & set(sys.modules)), bullet_qmt.__version__)
'''
HISTORY = '''
settings = bullet_qmt.load_settings(['server', 'stub'], {'server_type': 'stub', 'token': 't' * 20})
with bullet_qmt.LocalConnection(bullet_qmt.open_service(settings)) as connection:
    table = bullet_qmt.RemoteQmtProvider(connection=connection).get_price('600519.XSHG', end_date='2024-01-05', count=2)
print(type(table).__name__, [str(moment) for moment in table['index']], list(table.columns))
'''
IMPORTED = '[] %s' % bq.__version__


def test_importing_loads_nothing_and_history_is_a_table(bare):
    done = run(bare.python + ['-c', IMPORT % str(bare.home) + HISTORY], **bare.options)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines() == [IMPORTED, "Table ['2024-01-04 00:00:00', '2024-01-05 00:00:00'] "
                                        "['index', 'open', 'close', 'high', 'low', 'volume', 'money']"]


def test_importing_leaves_installed_pandas_alone(tmp_path):
    """Where pandas is installed, it is loaded with the first frame, not before."""
    pytest.importorskip('pandas')
    done = run([sys.executable, '-c', IMPORT % os.path.dirname(os.path.abspath(bq.__file__))], cwd=str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, IMPORTED)
