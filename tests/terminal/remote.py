"""A terminal in another process: the gateway for native modules, and a client to control it.

    with TerminalProcess(now='2025-08-06 10:00:00') as process:
        terminal = process.client          the same calls as on a Terminal: terminal.faults.hang('order') ...
        install(process.gateway)           in this process, or `python -m tests.terminal.serve` in another
"""
import os
import socket
import sys
import threading

from tests.environments import ROOT
from tests.processes import LineProcess
from tests.terminal.exchange import Exchange
from tests.terminal.faults import Faults
from tests.terminal.market import Market
from tests.terminal.terminal import Terminal
from tests.terminal.wire import hang_up, read_frame, send_frame


class RemoteLink:
    """One socket; messages are delivered from its reader thread. The end of the connection is the message 'gone'."""

    def __init__(self, address, hello, deliver):
        self._sock = socket.create_connection(address, 10)
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock, self._deliver, self._closing, self._ended = threading.Lock(), deliver, False, False
        send_frame(self._sock, hello)
        self._reader = threading.Thread(target=self._read, name='terminal-link-%s' % hello['kind'], daemon=True)
        self._reader.start()

    def request(self, token, name, args):
        if self._ended:
            raise OSError('the terminal is gone')
        with self._lock:
            send_frame(self._sock, {'token': token, 'name': name, 'args': args})

    def _read(self):
        for message in iter(lambda: read_frame(self._sock), None):
            self._deliver(tuple(message))
        self._ended = True
        if not self._closing:
            self._deliver(('gone',))

    def close(self):
        self._closing = True
        hang_up(self._sock)
        if threading.current_thread() is not self._reader:
            self._reader.join()
        self._sock.close()


class Gateway:
    """What `install` takes, for the terminal at an address."""

    def __init__(self, address):
        self.address = address

    def open(self, kind, hello, deliver):
        return RemoteLink(self.address, dict(hello, kind=kind), deliver)


class TerminalError(Exception):
    """What went wrong over there."""


class _Part:
    """exchange, market or faults of a terminal in another process; calls, attributes and switches as there."""

    def __init__(self, client, target, kind):
        self.__dict__.update(_client=client, _target=target, _kind=kind)

    def __getattr__(self, name):
        if callable(getattr(self._kind, name, None)):
            return lambda *args, **options: self._client.run(self._target, 'call', name, args, options)
        return self._client.run(self._target, 'get', name)

    def __setattr__(self, name, value):
        self._client.run(self._target, 'set', name, [value])


class TerminalClient(_Part):
    """Controls a terminal in another process: the public methods of Terminal, and its exchange, market, faults."""

    def __init__(self, address):
        sock = socket.create_connection(address, 10)
        sock.settimeout(60)
        self.__dict__.update(_sock=sock, _lock=threading.Lock())
        _Part.__init__(self, self, 'terminal', Terminal)
        self.__dict__.update((name, _Part(self, name, kind)) for name, kind in
                             (('exchange', Exchange), ('market', Market), ('faults', Faults)))
        send_frame(sock, {'kind': 'control'})

    def run(self, target, do, name, args=(), options=None):
        with self._lock:
            send_frame(self._sock, {'target': target, 'do': do, 'name': name, 'args': list(args),
                                    'options': options or {}})
            answer = read_frame(self._sock)
        if answer is None or 'error' in answer:
            raise TerminalError(answer and answer['error'])
        return answer['value']

    def close(self):
        self._sock.close()


class TerminalProcess:
    """Starts and ends the process. Options: now, seed, path, stopped as `process` takes them; python: another one."""

    def __init__(self, now=None, seed=0, path=None, stopped=False, python=sys.executable):
        command = [python, '-m', 'tests.terminal.process', '--seed', str(seed)]
        for option, value in (('--now', now), ('--path', path)):
            command += [option, value] if value else []
        environment = dict(os.environ, PYTHONIOENCODING='utf-8')
        self.process = LineProcess(command + ['--stopped'] * stopped, env=environment, cwd=ROOT)
        port = int(self.process.line_with(r'terminal on 127\.0\.0\.1:(\d+)').group(1))
        self.address = ('127.0.0.1', port)
        self.gateway, self.client = Gateway(self.address), TerminalClient(self.address)

    def close(self):
        self.client.close()
        self.process.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
