"""Frames between processes: 4 bytes of length, big-endian, then UTF-8 JSON. Loopback only."""
import json
import queue
import socket
import struct
import threading


def send_frame(sock, value):
    body = json.dumps(value).encode('utf-8')
    sock.sendall(struct.pack('>I', len(body)) + body)


def read_frame(sock):
    """The next value, None at the end of the connection, however it ended."""
    head = _exactly(sock, 4)
    body = head and _exactly(sock, struct.unpack('>I', head)[0])
    return json.loads(body.decode('utf-8')) if body else None


def _exactly(sock, size):
    data = b''
    while len(data) < size:
        try:
            chunk = sock.recv(size - len(data))
        except OSError:
            chunk = b''
        if not chunk:
            return None
        data += chunk
    return data


def hang_up(sock):
    """Wakes whoever reads from it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was first


class Outbox:
    """Frames sent by a thread of its own, so that who has something to say never waits for a slow reader."""

    def __init__(self, sock, name):
        self._sock, self._frames = sock, queue.Queue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, value):
        self._frames.put(value)

    def _run(self):
        for value in iter(self._frames.get, None):
            try:
                send_frame(self._sock, value)
            except OSError:
                return  # the reader of this connection sees the end as well

    def close(self):
        self._frames.put(None)
        self._thread.join()
