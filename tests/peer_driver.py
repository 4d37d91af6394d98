"""Drives the real peer from tests: its clients in a subprocess, its server in another, and a proxy between the two."""
import contextlib
import json
import os
import socket
import struct
import tempfile
import threading

from tests.peer import require_peer
from tests.processes import LineProcess, run

HERE = os.path.dirname(os.path.abspath(__file__))
PEER_TOKEN = 'a-token-of-the-peer-0123456789'


class PeerError(Exception):
    """What the peer raised: types (names of its class and bases), code, message, idempotency_key, resolution."""

    def __init__(self, told):
        super().__init__('%s: %s' % (told['types'][0], told['message']))
        self.__dict__.update(told)


class Peer:
    """The peer's classes in a process of their own. peer('kept.method', ...) calls; keep() names a result."""

    def __init__(self, python, *path):
        self._number = 0
        self._directory = tempfile.TemporaryDirectory()  # the peer writes a log where it runs
        self._process = LineProcess([python, '-W', 'ignore', os.path.join(HERE, 'peer_client.py')] + list(path),
                                    cwd=self._directory.name)

    def __call__(self, call, *args, **kwargs):
        return self._run({'call': call, 'args': args, 'kwargs': kwargs})

    def keep(self, name, call, *args, **kwargs):
        self._run({'call': call, 'args': args, 'kwargs': kwargs, 'keep': name})
        return {'$kept': name}

    def _run(self, command):
        self._number += 1
        self._process.send(json.dumps(dict(command, number=self._number)))
        answer = {'number': 0}
        while answer['number'] < self._number:  # an earlier call may have been given up
            answer = json.loads(self._process.line(60))
        if 'error' in answer:
            raise PeerError(answer['error'])
        return answer['value']

    def close(self):
        self._process.close()
        self._directory.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def helper_directory():
    """Where the installed peer keeps its copy-and-paste helper for JoinQuant."""
    code = 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
    path = os.path.join(run([require_peer(), '-c', code]).stdout.strip(), 'helpers')
    assert os.path.isfile(os.path.join(path, 'bullet_trade_jq_remote_helper.py'))
    return path


@contextlib.contextmanager
def peer_serving():
    """The port of the peer's own stub server, whose token is PEER_TOKEN."""
    command = [require_peer(), '-W', 'ignore', os.path.join(HERE, 'peer_server.py'), PEER_TOKEN]
    environment = dict(os.environ, PYTHONIOENCODING='utf-8')
    with tempfile.TemporaryDirectory() as directory, LineProcess(command, environment, directory) as process:
        yield int(process.line_with(r'^listening (\d+)').group(1))


class Proxy:
    """Between a client and a server of this protocol: sees requests, loses answers, cuts connections.

    address: where clients connect. requests: every (action, payload) that came by, in order.
    """

    def __init__(self, host, port):
        self._upstream = (host, port)
        self._listener = _listen()
        self.address = self._listener.getsockname()
        self.requests, self._fates = [], {}
        self._lock = threading.Condition()
        self._sockets, self._threads = set(), []
        self._start(self._accept)

    def lose_next_answer(self, action, cut):
        """The next answer to this action does not arrive; with `cut` the connection ends instead."""
        with self._lock:
            self._fates[action] = cut

    def count(self, action):
        return sum(1 for name, _ in list(self.requests) if name == action)

    def wait_for(self, action, count):
        """Until so many requests of this action came by."""
        with self._lock:
            assert self._lock.wait_for(lambda: self.count(action) >= count, 30), 'no %s came' % action

    def cut(self):
        """Ends every connection that is open now."""
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            _end(sock)

    def close(self):
        _end(self._listener)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def _start(self, run_it, *args):
        thread = threading.Thread(target=run_it, args=args, name='proxy', daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server, actions = socket.create_connection(self._upstream, 10), {}
                server.settimeout(None)
                with self._lock:
                    self._sockets.update((client, server))
                self._start(self._pump, client, server, lambda frame: self._note(actions, frame))
                self._start(self._pump, server, client, lambda frame: self._judge(actions, frame))

    def _pump(self, source, target, passes):
        with contextlib.suppress(OSError, EOFError):
            while True:
                data = _read_frame(source)
                if passes(json.loads(data[4:].decode('utf-8'))):
                    target.sendall(data)
        for sock in (source, target):
            _end(sock)

    def _note(self, actions, frame):
        if 'action' in frame:
            actions[frame['id']] = frame['action']
            with self._lock:
                self.requests.append((frame['action'], frame['payload']))
                self._lock.notify_all()
        return True

    def _judge(self, actions, frame):
        """Whether the answer goes on to the client; EOFError ends the connection."""
        with self._lock:
            cut = self._fates.pop(actions.get(frame.get('id')), None)
        if cut:
            raise EOFError
        return cut is None


def _listen():
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    sock.listen(16)
    return sock


def _end(sock):
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _read_frame(sock):
    head = _read_exactly(sock, 4)
    return head + _read_exactly(sock, struct.unpack('>I', head)[0])


def _read_exactly(sock, size):
    data = b''
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data
