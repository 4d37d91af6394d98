"""The terminal as a process that outlives its clients.

    python -m tests.terminal.process [--now '2025-08-06 10:00:00'] [--seed 1] [--stopped]

First line: `terminal on 127.0.0.1:PORT`. Ends when its stdin does. Each connection begins with a frame that says what
it is: {'kind': 'trade' | 'data' | 'control', ...}. A client that is killed is forgotten; its orders are not.
"""
import argparse
import socket
import sys
import threading

import bullet_qmt
from tests.fakes import FakeClock
from tests.terminal.terminal import Terminal
from tests.terminal.wire import Outbox, hang_up, read_frame

PARTS = ('terminal', 'exchange', 'market', 'faults')


class Control:
    """A test's connection: calls, reads and writes of the terminal's public names."""

    def __init__(self, terminal, outbox):
        self._targets = dict({part: getattr(terminal, part) for part in PARTS[1:]}, terminal=terminal)
        self._outbox = outbox

    def take(self, frame):
        try:
            answer = {'value': self._run(**frame)}
        except Exception as error:  # told to the test, whatever it is
            answer = {'error': '%s: %s' % (type(error).__name__, error)}
        self._outbox.put(answer)

    def _run(self, target, do, name, args=(), options=None):
        if name.startswith('_'):
            raise AttributeError(name)
        target = self._targets[target]
        if do == 'set':
            return setattr(target, name, args[0])
        value = getattr(target, name)
        return value(*args, **(options or {})) if do == 'call' else value

    def close(self):
        """The world stays as it is."""


class Client:
    """A native client's connection: its link to the terminal."""

    def __init__(self, terminal, outbox, hello):
        self._link = terminal.open(hello['kind'], hello, outbox.put)

    def take(self, frame):
        self._link.request(frame['token'], frame['name'], frame['args'])

    def close(self):
        self._link.close()


class Server:
    """Accepts connections on a loopback port; a reader and a writer thread each."""

    def __init__(self, terminal):
        self._terminal, self._lock, self._sockets, self._threads = terminal, threading.Lock(), [], []
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(64)
        self.address = self._listener.getsockname()
        self._start(self._accept, 'terminal-accept')

    def _start(self, target, name, *args):
        thread = threading.Thread(target=target, name=name, args=args, daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    def _accept(self):
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return  # closed
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets.append(sock)
            self._start(self._serve, 'terminal-client-%d' % sock.fileno(), sock)

    def _serve(self, sock):
        hello = read_frame(sock)
        if hello is not None:
            outbox = Outbox(sock, 'terminal-outbox-%d' % sock.fileno())
            control = hello['kind'] == 'control'
            peer = Control(self._terminal, outbox) if control else Client(self._terminal, outbox, hello)
            for frame in iter(lambda: read_frame(sock), None):
                peer.take(frame)
            peer.close()
            outbox.close()
        with self._lock:
            self._sockets.remove(sock)
        sock.close()

    def close(self):
        hang_up(self._listener)
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                hang_up(sock)
        for thread in self._threads:
            thread.join()


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m tests.terminal.process', allow_abbrev=False)
    parser.add_argument('--now', help='a clock that stands at this Beijing time')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--path', help='the userdata path that clients must give')
    parser.add_argument('--stopped', action='store_true', help='the program is not up yet')
    options = parser.parse_args(argv)
    clock = FakeClock(bullet_qmt.parse_moment(options.now)[0]) if options.now else bullet_qmt.Clock()
    server = Server(Terminal(clock, options.seed, options.path, not options.stopped))
    print('terminal on %s:%d' % server.address)
    sys.stdout.flush()
    sys.stdin.read()
    server.close()


if __name__ == '__main__':
    main()
