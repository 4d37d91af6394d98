"""Servers and clients of all sides: processes on the loopback, started when first wanted, pinned where that helps."""
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from tests.bench.timing import wait_until
from tests.certs import make_certificate
from tests.environments import ROOT, VENVS
from tests.peer import NO_PEER, peer_interpreter, peer_python
from tests.processes import LISTENING, LineProcess

TOKEN = 'a-token-of-the-benchmark-0123456789'
WORKER = os.path.join(ROOT, 'tests', 'bench', 'worker.py')
SERVER = os.path.join(ROOT, 'bullet_qmt.py')
LOAD_PROCESSES = 4


class WorkerFailed(Exception):
    """A function of a worker raised; the text is its traceback."""


class NotHere(Exception):
    """A side cannot take part on this machine; the text says why."""


def clean_environment(**more):
    """Without the settings of whoever runs this, so that each side runs as it comes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('QMT_', 'DEFAULT_'))}
    for name in ('PYTHONPATH', 'PYTHONDONTWRITEBYTECODE', 'PYTHONOPTIMIZE', 'PYTHONDEVMODE'):
        kept.pop(name, None)
    return dict(kept, PYTHONIOENCODING='utf-8', **more)


# -- cores ---------------------------------------------------------------------------------------------------------
def cores():
    """[core of the server, core of the client]; None where the system pins no process or there is one core only."""
    if not hasattr(os, 'sched_setaffinity') or not os.path.isdir('/proc/self/task'):
        return None
    mine = sorted(os.sched_getaffinity(0))
    return [mine[0], mine[1]] if len(mine) > 1 else None


def pin(pid, allowed):
    """All threads of a process; those that it starts later follow the one that starts them."""
    for thread in os.listdir('/proc/%d/task' % pid):
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile
            os.sched_setaffinity(int(thread), allowed)


@contextlib.contextmanager
def pinned(server_pid, client_pid):
    """Each of the two on a core of its own meanwhile."""
    chosen = cores()
    if chosen is None:
        yield
        return
    whole = os.sched_getaffinity(0)
    for pid, core in zip((server_pid, client_pid), chosen):
        pin(pid, {core})
    try:
        yield
    finally:
        for pid in (server_pid, client_pid):
            pin(pid, whole)


# -- workers -------------------------------------------------------------------------------------------------------
class Worker:
    """A process of tests/bench/worker.py. worker('function', ...) calls; begin() and result() are its two halves."""

    def __init__(self, python, module, directory):
        self._process = LineProcess([python, '-W', 'ignore', WORKER, module], clean_environment(), directory)
        self.pid = self._process.pid

    def __call__(self, call, *args):
        self.begin(call, *args)
        return self.result()

    def begin(self, call, *args):
        self._process.send(json.dumps({'call': call, 'args': args}))

    def result(self, timeout_s=300):
        answer = json.loads(self._process.line(timeout_s))
        self._process.seen.clear()  # long lists of samples
        if 'error' in answer:
            raise WorkerFailed(answer['error'])
        return answer['value']

    def close(self):
        self._process.close()


class OurServer:
    """`python bullet_qmt.py server` over its stub, as a user starts it, its log in a file."""

    def __init__(self, directory, *options, program=(sys.executable, SERVER)):
        command = list(program) + ['server', '--server-type=stub', '--port=0', '--token=' + TOKEN,
                                   '--stub-cash=100000000000', '--max-connections=256'] + list(options)
        self._process = LineProcess(command, clean_environment(PYTHONPATH=ROOT), directory)
        self.pid = self._process.pid
        self.port = int(self._process.line_with(LISTENING).group(1))

    def close(self):
        """As a service manager does it; one that does not end is killed, and that is a failure."""
        self._process.interrupt()
        try:
            self._process.wait()
        except subprocess.TimeoutExpired:
            raise AssertionError('the server did not stop within 30 s\n%s' % self._process.story()[-2000:])
        finally:
            self._process.close()


class Stage:
    """All of it. Attributes are made when first asked for and end with the stage.

    servers and clients: 'ours', 'peer', 'raw'. directory: on the disk of the project, for journals.
    """

    def __init__(self):
        self._stack = contextlib.ExitStack()
        os.makedirs(VENVS, exist_ok=True)
        self.directory = tempfile.mkdtemp(prefix='bench-', dir=VENVS)  # a disk, where /tmp may be none
        self._stack.callback(shutil.rmtree, self.directory, True)
        self._made = {}

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        self._stack.close()

    def once(self, key, make):
        """What make() gave the first time; it is closed at the end."""
        if key not in self._made:
            self._made[key] = made = make()
            if hasattr(made, 'close'):
                self._stack.callback(made.close)
        return self._made[key]

    def path(self, name):
        return os.path.join(self.directory, name)

    def python(self, side):
        if side != 'peer':
            return sys.executable
        if peer_interpreter() is None:
            raise NotHere(NO_PEER)
        return peer_python()

    def worker(self, side, module, number=0):
        return self.once(('worker', module, number), lambda: Worker(
            self.python(side), 'tests.bench.' + module, self.directory))

    def client(self, side, number=0):
        return self.worker(side, side, 'client-%d' % number)

    def load(self, side):
        """Clients in several processes."""
        return [self.client(side, number) for number in range(1, 1 + LOAD_PROCESSES)]

    def raw_server(self):
        return self.worker('raw', 'raw', 'server')

    def our_server(self, *options):
        return self.once(('server', options), lambda: OurServer(self.directory, *options))

    def main_server(self):
        """Orders in a file, everything else as it comes."""
        return self.our_server('--state=' + self.path('journal.sqlite'))

    def peer_server(self, tls=False):
        """(worker, port)"""
        number = 'tls' if tls else 'plain'
        worker = self.worker('peer', 'peer_server', number)
        files = self.certificate() if tls else ()
        return worker, self.once(('peer port', number), lambda: worker('start', TOKEN, 10000, *files))

    def certificate(self):
        """Paths of a certificate and its key."""
        return self.once('certificate', lambda: make_certificate(pathlib.Path(self.directory)))

    def server_of(self, side, tls=False):
        """(pid, port) of a whole server."""
        if side == 'peer':
            worker, port = self.peer_server(tls)
            return worker.pid, port
        options = ['--tls-cert=%s', '--tls-key=%s']
        server = self.our_server(*[option % path for option, path in zip(options, self.certificate())]
                                 ) if tls else self.main_server()
        return server.pid, server.port

    def tick_server(self, side):
        """(worker, port) of a server whose ticks the benchmark makes."""
        if side == 'peer':
            return self.peer_server()
        worker = self.worker(side, 'ours_server' if side == 'ours' else 'raw', 'server')
        return worker, self.once(('tick port', side), lambda: worker('start', TOKEN, 10000))


# -- counting --------------------------------------------------------------------------------------------------------
class CountingProxy:
    """Between clients and a server: counts the bytes of both directions, of all connections together."""

    def __init__(self, port):
        self._upstream, self._lock = ('127.0.0.1', port), threading.Lock()
        self.up = self.down = 0
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name='counting', daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._upstream, 10)
                server.settimeout(None)
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for name, source, target in (('up', client, server), ('down', server, client)):
                    threading.Thread(target=self._pump, args=(name, source, target), name=name, daemon=True).start()

    def _pump(self, name, source, target):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(262144)
                if not data:
                    break
                with self._lock:  # before anybody can have the answer
                    setattr(self, name, getattr(self, name) + len(data))
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def counts(self):
        with self._lock:
            return self.up, self.down

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def resident_kb(pid):
    """Resident memory of a process in KB; NotHere where the system does not tell."""
    path = '/proc/%d/status' % pid
    if not os.path.exists(path):
        raise NotHere('no /proc here')
    with open(path) as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmRSS:'))


def until_listening(port, give_up_at):
    """Until somebody listens there; AssertionError when that has not come by then (perf_counter)."""
    while True:
        with contextlib.closing(socket.socket()) as sock:
            if sock.connect_ex(('127.0.0.1', port)) == 0:
                return
        assert time.perf_counter() < give_up_at, 'nobody listens on port %d' % port
        wait_until(time.perf_counter() + 0.001)
