"""A bullet_qmt program whose window is closed when the test closes a connection.

python -m tests.closable PORT EVENT SECONDS WORDS...

PORT: where the test listens; not stdin, as on Windows nobody can look at what another thread reads from. EVENT: of
Windows' console events; elsewhere it is the terminal's SIGHUP. SECONDS: what the program believes to have left.
Windows runs CtrlRoutine in a thread of the process and ends the process as soon as that returns: ENDED_BY_SYSTEM.
"""
import os
import signal
import socket
import sys
import threading

import bullet_qmt as bq

ENDED_BY_SYSTEM = 77


def close_window(port, event):
    with socket.create_connection(('127.0.0.1', port)) as sock:
        sock.recv(1)
    if os.name == 'nt':
        import ctypes
        kernel32 = ctypes.WinDLL('kernel32')
        kernel32.SetConsoleCtrlHandler(None, 0)  # who is begun in a group of its own is deaf to some
        kernel32.CtrlRoutine(ctypes.c_void_p(event))
        os._exit(ENDED_BY_SYSTEM)
    os.kill(os.getpid(), signal.SIGHUP)


if __name__ == '__main__':
    bq.CLOSING_S = float(sys.argv[3])
    threading.Thread(target=close_window, args=(int(sys.argv[1]), int(sys.argv[2])), daemon=True).start()
    sys.exit(bq.main(sys.argv[4:]))
