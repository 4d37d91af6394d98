"""Server and live run whose terminal is stopped, whose pipe nobody reads, whose log disk is full: all goes on."""
import contextlib
import os
import re
import subprocess
import sys
import threading

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, login_raw, raw_socket, serving, short_client
from tests.console_child import shifted
from tests.environments import ROOT
from tests.live import moment, written
from tests.processes import ENDS, OWN_GROUP
from tests.qmt_server import free_port
from tests.resources import becomes, memory_of

try:
    import pty
    import resource
    import termios
except ImportError:  # Windows: the tests that need them are marked
    pass
ENDED = '正在停止（%s）' % ('Ctrl-Break' if os.name == 'nt' else 'SIGTERM')
LIMIT = 20000  # bytes of lines that may wait in these tests: some two hundred lines
LOGINS, ORDERS = 1000, 1000
LINES = r' s\w{12} id=|客户端登录'  # of requests and of logins
LOST = re.compile(r'WARNING 丢了 (\d+) 行')


class Terminal:
    """A pseudo-terminal that is stopped (Ctrl-S) until resume()."""

    def __init__(self):
        self._master, self.end = pty.openpty()
        termios.tcflow(self.end, termios.TCOOFF)

    def resume(self):
        termios.tcflow(self.end, termios.TCOON)
        return self._master

    def close(self):
        os.close(self._master)


class Pipe:
    """A pipe that nobody reads until resume()."""

    def __init__(self):
        self._read, self.end = os.pipe()

    def resume(self):
        return self._read

    def close(self):
        os.close(self._read)


class Program:
    """The command line whose stdout and stderr go to a place that takes nothing until resume()."""

    def __init__(self, place, directory, *arguments, shift_s=0.0, environment=(), **options):
        self._place, self._data, self._reader = place, b'', None
        command = [sys.executable, '-m', 'tests.console_child', str(LIMIT), repr(shift_s)] + list(arguments)
        paths = os.pathsep.join([os.path.dirname(os.path.abspath(bq.__file__)), ROOT])
        environment = dict(os.environ, PYTHONPATH=paths, PYTHONIOENCODING='utf-8', **dict(environment))
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=place.end, stderr=place.end,
                                        env=environment, cwd=str(directory), **dict(OWN_GROUP, **options))

    def resume(self):
        """Everything that was written is read from now on."""
        descriptor = self._place.resume()
        os.close(self._place.end)

        def read():
            with contextlib.suppress(OSError):  # a terminal whose program has ended
                for data in iter(lambda: os.read(descriptor, 65536), b''):
                    self._data += data
        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    @property
    def text(self):
        return self._data.decode('utf-8', 'replace')

    def stop(self):
        """The exit code after what a service manager sends."""
        self.process.send_signal(ENDS[-1])
        code = self.process.wait(60)
        if self._reader is not None:
            self._reader.join(20)
        return code

    def story(self):
        """What became of it, for a failure."""
        self.resume()
        return self.stop(), self.text

    def memory(self):
        """Bytes in use."""
        return memory_of(self.process)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)
        self._place.close()


class Served:
    """A stub server in a Program, by its address."""

    def __init__(self, place, directory, *options, **more):
        self.address = '127.0.0.1', free_port()
        self.program = Program(place, directory, 'server', '--server-type=stub', '--port', str(self.address[1]),
                               '--token', TOKEN, '--stub-cash', '1000000000', *options, **more)

    def __enter__(self):
        assert becomes(self._listens, 60)
        return self

    def __exit__(self, *exc_info):
        self.program.close()

    def _listens(self):
        assert self.program.process.poll() is None
        try:
            with raw_socket(self):
                return True
        except OSError:
            return False

    def work(self, logins=LOGINS, orders=ORDERS):
        """Logs in and trades; each of it must be answered."""
        for _ in range(logins):
            with raw_socket(self) as sock:
                assert login_raw(sock)['type'] == 'handshake_ack'
        with contextlib.closing(short_client(self)) as connection:
            broker = bq.RemoteQmtBroker(connection=connection)
            for number in range(orders):
                row = broker.place_order('000001.XSHE', 'BUY', 100, {'type': 'market'}, remark=str(number))
                assert row['order_id']


@pytest.fixture(params=[pytest.param(Terminal, marks=pytest.mark.posix('a pseudo-terminal')), Pipe])
def place(request):
    return request.param()


def lines_and_lost(text, pattern):
    """How many lines have the pattern, and how many are told as lost."""
    return len(re.findall(pattern, text)), sum(map(int, LOST.findall(text)))


@pytest.fixture
def served(place, tmp_path):
    with Served(place, tmp_path) as server:
        yield server


def test_requests_and_logins_go_on_and_what_was_lost_is_told(served):
    served.work()
    before = served.program.memory()
    served.work()
    # A day's orders are kept, 1,000 take 5 to 10 MB where all is read, too; what waits to be printed has 4 MB.
    assert served.program.memory() - before < 16 * 1024 * 1024, 'a thousand orders and logins, and no lines'
    served.program.resume()
    assert becomes(lambda: LOST.search(served.program.text))
    served.work(1, 1)
    assert served.program.stop() == 0
    told, lost = lines_and_lost(served.program.text, LINES)
    assert lost > 1000 and told > 100 and '已停止' in served.program.text
    logins, requests = 2 * (LOGINS + 1) + 2, 2 * ORDERS + 1
    assert told + lost == logins + requests, 'each line is there or counted'


def test_the_end_is_not_held_up(served):
    served.work(300, 0)
    assert served.program.stop() == 0


# -- the log file ------------------------------------------------------------------------------------------------------
@pytest.mark.posix('no limit for a file of one program on Windows')
def test_a_full_log_disk_costs_lines_alone_and_they_are_told(tmp_path):
    log, unlimited = tmp_path / 'server.log', resource.RLIM_INFINITY
    with Served(Pipe(), tmp_path, '--log-file', str(log), preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (5000, unlimited))) as server:
        server.work(500, 500)
        program = server.program
        assert log.stat().st_size == 5000
        program.resume()
        assert becomes(lambda: '写不下（' in program.text)
        resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        assert becomes(lambda: LOST.search(log.read_text(encoding='utf-8', errors='replace')))
        server.work(1, 1)
        assert program.stop() == 0
    assert program.text.count('%s 写不下（' % log) == 1
    told, lost = lines_and_lost(log.read_text(encoding='utf-8'), LINES)
    assert told + lost == 501 + 500 + 2 + 1 and lost > 100


@pytest.mark.posix('no /dev/full on Windows')
def test_a_disk_that_stays_full_holds_up_nothing_nor_the_end(tmp_path):
    with Served(Pipe(), tmp_path, '--log-file', '/dev/full') as server:
        server.work(300, 300)
        assert server.program.stop() == 0


# -- live --------------------------------------------------------------------------------------------------------------
STRATEGY = '''
import logging
import sys

def initialize(context):
    run_daily(trade, '13:31')

def trade(context):
    for number in range(3000):
        log.info('line of the strategy')
        print('print of the strategy', file=sys.stderr)
    order('000001.XSHE', 100)
    logging.getLogger('bullet_qmt').warning('of the connection')
    log.info('ordered')
'''


@contextlib.contextmanager
def live_run(place, directory, *options):
    """(a live run that begins twelve seconds before its task, the broker of the account that it trades on)."""
    shift_s = (moment('2025-03-03 13:30:48') - bq.Clock().now()).total_seconds()
    clock = type('Shifted', (bq.Clock,), {'now': shifted(shift_s)})()
    written(directory, STRATEGY)
    with serving(clock, stub_clock='market') as server:
        program = Program(place, directory, 'live', 'strategy.py', *options, shift_s=shift_s, environment={
            'QMT_SERVER_PORT': str(server.address[1]), 'QMT_SERVER_TOKEN': TOKEN})
        with contextlib.closing(program), contextlib.closing(short_client(server)) as connection:
            yield program, bq.RemoteQmtBroker(connection=connection)


def test_a_live_run_whose_console_is_stopped_trades_and_tells_what_was_lost(place, tmp_path):
    with live_run(place, tmp_path) as (program, broker):
        assert becomes(broker.get_orders, 60), program.story()
        program.resume()
        assert becomes(lambda: LOST.search(program.text))
        assert program.stop() == 0
    told, lost = lines_and_lost(program.text, 'of the strategy')
    assert told > 100 and 6000 <= told + lost <= 6000 + 20, 'beside them what the run itself says'
    assert '晚了' not in program.text and ENDED in program.text and '已停止' in program.text


@pytest.mark.posix('no /dev/full on Windows')
def test_a_live_run_whose_console_and_log_take_nothing_trades_and_ends(place, tmp_path):
    with live_run(place, tmp_path, '--log', '/dev/full') as (program, broker):
        assert becomes(broker.get_orders, 60), program.story()
        assert program.stop() == 0


def test_the_log_of_a_live_run_tells_its_whole_story(tmp_path):
    log = tmp_path / 'live.log'
    with live_run(Pipe(), tmp_path, '--log', str(log), '--max-orders', '5') as (program, broker):
        assert becomes(lambda: log.exists() and 'ordered' in log.read_text(encoding='utf-8'), 60)
        assert program.stop() == 0
    lines = log.read_text(encoding='utf-8').splitlines()
    assert bq.__version__ in lines[0] and 'max_orders=5' in lines[0] and 'strategy=strategy.py' in lines[0]
    story = ['账户（启动）', '已就绪', '000001.XSHE', 'WARNING of the connection', 'ordered', ENDED, '已停止']
    found = [next(number for number, line in enumerate(lines) if text in line) for text in story]
    assert found == sorted(found) and TOKEN not in '\n'.join(lines)
