"""What a test must not leave behind: threads and descriptors."""
import contextlib
import gc
import os
import threading
import time

import pytest


def thread_names():
    return sorted(thread.name for thread in threading.enumerate())


def descriptors():
    """Number of open descriptors, or None where the system does not tell."""
    return len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else None


def becomes(condition, timeout_s=20):
    """Whether the condition holds soon: for what another thread does last, after anything that could be waited for."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.005)
    return True


@contextlib.contextmanager
def nothing_left():
    """Fails if the body leaves a thread or a descriptor behind."""
    gc.collect()  # what earlier tests left to it is closed now, not in between
    threads, fds = thread_names(), descriptors()
    yield
    if not becomes(lambda: thread_names() == threads):
        pytest.fail('threads left: %s, before: %s' % (thread_names(), threads))
    if not becomes(lambda: fds is None or descriptors() <= fds):
        pytest.fail('descriptors left: %s, before: %s' % (descriptors(), fds))
