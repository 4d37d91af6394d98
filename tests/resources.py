"""What a test must not leave behind: threads and descriptors."""
import contextlib
import ctypes
import gc
import os
import threading
import time

import pytest


def thread_names():
    return sorted(thread.name for thread in threading.enumerate())


def descriptors():
    """Number of open descriptors, or None where the system does not tell.

    Windows counts handles, of which it makes and keeps some for itself. Wine shows a /proc that is not the process's.
    """
    return len(os.listdir('/proc/self/fd')) if os.name != 'nt' and os.path.isdir('/proc/self/fd') else None


def threads_of(pid):
    """Number of threads of another process, or None where the system does not tell."""
    if os.name == 'nt':
        return _windows_threads_of(pid)
    return len(os.listdir('/proc/%d/task' % pid)) if os.path.isdir('/proc/self/task') else None


def descriptors_of(pid):
    return len(os.listdir('/proc/%d/fd' % pid)) if descriptors() is not None else None


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = [('size', ctypes.c_uint32), ('faults', ctypes.c_uint32)] + [
        (name, ctypes.c_size_t) for name in ('most', 'used', 'a', 'b', 'c', 'd', 'page_file', 'most_page_file')]


def memory_of(process):
    """Bytes that a subprocess.Popen has in use, where /proc or Windows tells."""
    if os.name == 'nt':
        counters = _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
        assert ctypes.WinDLL('kernel32').K32GetProcessMemoryInfo(
            ctypes.c_void_p(int(process._handle)), ctypes.byref(counters), counters.size)
        return counters.used
    with open('/proc/%d/statm' % process.pid) as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


class _ProcessEntry(ctypes.Structure):
    """PROCESSENTRY32 of tlhelp32.h."""

    _fields_ = [('size', ctypes.c_uint32), ('usage', ctypes.c_uint32), ('pid', ctypes.c_uint32),
                ('heap', ctypes.c_size_t), ('module', ctypes.c_uint32), ('threads', ctypes.c_uint32),
                ('parent', ctypes.c_uint32), ('priority', ctypes.c_int32), ('flags', ctypes.c_uint32),
                ('name', ctypes.c_char * 260)]


def _windows_threads_of(pid):
    kernel32 = ctypes.WinDLL('kernel32')
    kernel32.CreateToolhelp32Snapshot.restype = ctypes.c_void_p
    snapshot = ctypes.c_void_p(kernel32.CreateToolhelp32Snapshot(2, 0))  # TH32CS_SNAPPROCESS
    entry = _ProcessEntry(size=ctypes.sizeof(_ProcessEntry))
    try:
        more = kernel32.Process32First(snapshot, ctypes.byref(entry))
        while more and entry.pid != pid:
            more = kernel32.Process32Next(snapshot, ctypes.byref(entry))
        assert more, 'no process %d' % pid
        return entry.threads
    finally:
        kernel32.CloseHandle(snapshot)


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
