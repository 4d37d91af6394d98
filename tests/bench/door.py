"""python -m tests.bench.door [--seconds S] [--only WORD]: how the owner gets in while a crowd is at the door.

A server, a crowd of 1,000 connections in a process of its own that opens again whatever is closed, an owner who comes
anew with a ShortConnection again and again, and a session that was in before. All on the loopback; a storm ends by
itself. Many addresses are 127.x.y.z, which Linux alone has without asking.
"""
import argparse
import contextlib
import itertools
import json
import math
import os
import random
import re
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.bench.__main__ import in_environment, is_here
from tests.bench.figures import percentile
from tests.environments import ROOT

TOKEN = 'owner-7f3a-91cc-5be2-0d64'
KINDS = ('silent', 'half', 'wrong', 'slow', 'cut', 'renewed')


# -- the crowd, a process of its own -------------------------------------------------------------------------------
def framed(body):
    return struct.pack('>I', len(body)) + body


WRONG = framed(json.dumps({'type': 'handshake', 'token': 'x' * 32, 'protocol': 1, 'features': ['tick']}).encode())


FIRST_WORDS = {'half': b'\0\0', 'cut': b'\0\0\1\0{"type"', 'slow': b'\0\0\x0f\xff', 'wrong': WRONG}


def client_hello():
    """A real beginning of TLS, which makes the server work."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


class Crowd:
    """`size` connections at a time, each of its kind; opens again what is closed."""

    def __init__(self, port, size, kind, many, tls):
        self.port, self.size, self.kind, self.many = port, size, kind, many
        self.first = FIRST_WORDS.get(kind, b'')
        self.first = client_hello() if tls and kind in ('wrong', 'slow') else self.first
        self.selector, self.born, self.opened, self.rng = selectors.DefaultSelector(), {}, 0, random.Random(5)

    def open(self):
        sock = socket.socket()
        sock.setblocking(False)
        if self.many:
            parts = self.rng.randrange(1, 250), self.rng.randrange(250), self.rng.randrange(1, 250)
            sock.bind(('127.%d.%d.%d' % parts, 0))
        sock.connect_ex(('127.0.0.1', self.port))
        self.selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, 'new')
        self.born[sock], self.opened = time.monotonic(), self.opened + 1

    def drop(self, sock):
        self.selector.unregister(sock)
        sock.close()
        del self.born[sock]

    def attend(self, sock, events, is_new):
        try:
            if events & selectors.EVENT_WRITE and is_new:
                self.selector.modify(sock, selectors.EVENT_READ, 'open')
                sock.send(self.first) if self.first else None
                if self.kind == 'cut':
                    return self.drop(sock)
            if events & selectors.EVENT_READ and not sock.recv(4096):
                self.drop(sock)
        except OSError:
            self.drop(sock)

    def grow_old(self):
        """Slow ones send a byte a second, renewed ones are given up."""
        now = time.monotonic()
        for sock, born in list(self.born.items()):
            if now - born > 1.5 and self.kind == 'renewed':
                self.drop(sock)
            elif now - born > 1 and self.kind == 'slow':
                self.born[sock] = now
                with contextlib.suppress(OSError):
                    sock.send(b'{')

    def run(self, seconds):
        end, next_look = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for _ in range(min(200, self.size - len(self.born))):
                with contextlib.suppress(OSError):
                    self.open()
            for key, events in self.selector.select(0.05):
                self.attend(key.fileobj, events, key.data == 'new')
            if time.monotonic() > next_look:
                next_look = time.monotonic() + 0.2
                self.grow_old()
        print(self.opened)


# -- those who are let in ------------------------------------------------------------------------------------------
def visit(bq, port, cert, refusals, limit_s=10.0):
    """Seconds until the owner, who comes again while he is sent away, has an answer; None: not in time."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit_s:
        with contextlib.closing(bq.ShortConnection('127.0.0.1', port, TOKEN, tls_cert=cert)) as client:
            try:
                client.request('admin.health', timeout=limit_s)
                return time.monotonic() - begun
            except bq.BulletError as error:
                refusals.append(error.code)


class Inside(threading.Thread):
    """A session that asks for its account without a pause."""

    def __init__(self, bq, port, cert):
        super().__init__(daemon=True)
        self.connection = bq.RemoteQmtConnection('127.0.0.1', port, TOKEN, tls_cert=cert).start()
        self.times, self.ended = [], False

    def run(self):
        while not self.ended:
            begun = time.perf_counter()
            self.connection.request('broker.account')
            self.times.append(time.perf_counter() - begun)
            time.sleep(0.002)

    def taken(self):
        times, self.times = self.times, []
        return times


@contextlib.contextmanager
def server(folder, tls):
    command = [sys.executable, os.path.join(ROOT, 'bullet_qmt.py'), 'server', '--server-type', 'stub', '--port', '0',
               '--token', TOKEN, '--log-file', os.path.join(folder, 'server.log'), '--no-access-log'] + tls
    with open(os.path.join(folder, 'out'), 'wb') as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder,
                                   env=dict(os.environ, PYTHONIOENCODING='utf-8'))
    try:
        yield process, wait_for_port(os.path.join(folder, 'out'))
    finally:
        process.terminate()
        process.wait(30)


def wait_for_port(path):
    for _ in range(600):
        with open(path, encoding='utf-8') as file:
            found = re.search(r'已启动：127\.0\.0\.1:(\d+)', file.read())
        if found:
            return int(found.group(1))
        time.sleep(0.05)
    raise RuntimeError('the server did not start')


def log_size(folder):
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder) if 'server.log' in name)


def storm(bq, kind, many, tls, seconds, size):
    """One line of figures."""
    from tests.certs import make_certificate
    with tempfile.TemporaryDirectory() as folder:
        cert, key = make_certificate(Path(folder)) if tls else (None, None)
        with server(folder, ['--tls-cert', cert, '--tls-key', key] if tls else []) as (_, port):
            inside = Inside(bq, port, cert)
            inside.start()
            time.sleep(1.5)
            calm = inside.taken()
            crowd = [sys.executable, '-m', 'tests.bench.door', '--crowd', str(port), kind, str(int(many)),
                     str(int(tls)), str(seconds), str(size)]
            crowd = subprocess.Popen(crowd, stdout=subprocess.PIPE, cwd=ROOT)
            time.sleep(1.5)
            inside.taken()
            visits, refusals, end = [], [], time.monotonic() + seconds - 3
            while time.monotonic() < end:
                visits.append(visit(bq, port, cert, refusals))
                time.sleep(0.02)
            stormy, opened = inside.taken(), int(crowd.communicate()[0])
            inside.ended = True
            inside.join()
            inside.connection.close()
        print(line('%s %s %s' % (kind, 'many' if many else 'one', 'tls' if tls else 'plain'), visits, refusals, calm,
                   stormy, seconds) + ' | opened %d | log %.1f KB' % (opened, log_size(folder) / 1024.0), flush=True)


def line(name, visits, refusals, calm, stormy, seconds):
    times = [value for value in visits if value is not None] or [math.nan]
    owner = 'owner %d visits, %d never, ms p50 %.0f p99 %.0f, sent away %d' % (
        len(visits), visits.count(None), percentile(times, .5) * 1e3, percentile(times, .99) * 1e3, len(refusals))
    inside = 'inside ms p50 %.2f -> %.2f p99 %.1f -> %.1f, a second %d -> %d' % (
        percentile(calm, .5) * 1e3, percentile(stormy, .5) * 1e3, percentile(calm, .99) * 1e3,
        percentile(stormy, .99) * 1e3, len(calm) / 1.5, len(stormy) / (seconds - 3))
    return '%-18s | %s | %s' % (name, owner, inside)


def build_parser():
    parser = argparse.ArgumentParser(prog='python -m tests.bench.door')
    parser.add_argument('--seconds', type=int, default=8, help='of each storm')
    parser.add_argument('--size', type=int, default=1000, help='connections of the crowd')
    parser.add_argument('--only', default='', metavar='WORD,...', help='storms whose names have all of these words')
    return parser


def main():
    if sys.argv[1:2] == ['--crowd']:
        port, kind, many, tls, seconds, size = sys.argv[2:]
        Crowd(int(port), int(size), kind, many == '1', tls == '1').run(float(seconds))
        return
    if not is_here():
        sys.exit(in_environment(sys.argv[1:], 'tests.bench.door'))
    options = build_parser().parse_args()
    import logging
    import bullet_qmt as bq
    logging.getLogger('bullet_qmt').setLevel(logging.CRITICAL)
    for tls, kind, many in itertools.product((False, True), KINDS, (False, True)):
        name = '%s %s %s' % (kind, 'many' if many else 'one', 'tls' if tls else 'plain')
        if all(word in name for word in options.only.split(',')):
            storm(bq, kind, many, tls, options.seconds, options.size)


if __name__ == '__main__':
    main()
