"""A program that waits, with a Ctrl-C for each line that it is sent.

python -m tests.interrupted_child WHAT ARGUMENT ...

WHAT: `command`, with the words of one; or the name of a function below, with a server's port.
"""
import _thread
import os
import signal
import sys
import threading

import bullet_qmt as bq
from tests.base import TOKEN

LONG_S = 600.0


def interrupt():
    """As the system does it. Windows runs CPython's handler in a thread of its own: that is interrupt_main()."""
    if os.name == 'nt':
        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def listen():
    """Without sys.stdin, whose lock would still be held at the end of the program."""
    while os.read(0, 1):
        interrupt()


def connection(port):
    return bq.RemoteQmtConnection('127.0.0.1', int(port), TOKEN, request_timeout=LONG_S, heartbeat_s=LONG_S)


def leave_block(port):
    with connection(port) as client:
        client.request('data.snapshot', {'security': '000001.XSHE'})


def wait_twice(port):
    with connection(port) as client:
        try:
            client.request('data.snapshot', {'security': '000001.XSHE'})
        except KeyboardInterrupt:
            print('first', flush=True)
        client.request('data.snapshot', {'security': '000001.XSHE'})


def wait_order(port):
    with connection(port) as client:
        bq.RemoteQmtBroker(connection=client).wait_order('a-key', LONG_S)


def pause(port):
    bq.ShortConnection('127.0.0.1', int(port), TOKEN, request_timeout=LONG_S).request('broker.account')


def main(what, *arguments):
    threading.Thread(target=listen, daemon=True).start()
    if what == 'command':
        return bq.main(list(arguments))
    try:
        globals()[what](*arguments)
    except KeyboardInterrupt:
        return bq.Exit.INTERRUPTED


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
