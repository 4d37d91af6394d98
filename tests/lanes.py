"""Runs of pytest side by side: their lines kept apart, and none outlives its deadline or leaves a process behind."""
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time

from tests.environments import ROOT

HEARTBEAT_S = 60
SILENCE_S = 600  # no test takes that long: who says nothing meanwhile hangs
PROGRESS = re.compile(r'\[ *\d+%\]$')
_LOCK = threading.Lock()


class Ended(Exception):
    """A run that was ended before its time; the text says why."""


def say(line=''):
    encoding = sys.stdout.encoding or 'ascii'
    with _LOCK:
        print(line.encode(encoding, 'backslashreplace').decode(encoding))
        sys.stdout.flush()


class Through:
    """The output of the only lane: every piece at once."""

    def piece(self, data):
        say_raw(data.decode('utf-8', 'replace'))

    def silent(self):
        """A heartbeat: nothing has come for a while."""

    def end(self):
        """Nothing has been kept back."""


def say_raw(text):
    encoding = sys.stdout.encoding or 'ascii'
    with _LOCK:
        sys.stdout.write(text.encode(encoding, 'backslashreplace').decode(encoding))
        sys.stdout.flush()


class Apart:
    """The output of one lane of several: progress line by line under its name, all else in one piece at the end."""

    def __init__(self, name):
        self._name, self._kept, self._line = name, [], b''

    def piece(self, data):
        lines = (self._line + data).split(b'\n')
        self._line = lines.pop()
        for line in lines:
            self._take(line.decode('utf-8', 'replace').rstrip())

    def _take(self, line):
        if PROGRESS.search(line):
            say('%s | %s' % (self._name, line))
        else:
            self._kept.append(line)

    def silent(self):
        say('%s | %s ...' % (self._name, self._line.decode('utf-8', 'replace')))

    def end(self):
        text = [line for line in self._kept + [self._line.decode('utf-8', 'replace')] if line]
        say('\n'.join(['', '-- %s --' % self._name] + text))
        self._kept, self._line = [], b''


class Lane:
    """One command with its output in a pipe.

    For the caller: run() gives the exit code or raises Ended; stop(why), from any thread, makes it do so. at_end() is
    called when nothing of it is to go on.
    """

    def __init__(self, command, environment, output, at_end, ends_at=None):
        self._output, self._at_end, self._ends_at = output, at_end, ends_at
        self._events, self._code, self._why, self._closed = queue.Queue(), None, None, False
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, cwd=ROOT, **OWN_GROUP)
        for work in (self._read, self._wait):
            threading.Thread(target=work, name='lane-%d' % self._process.pid, daemon=True).start()

    def _read(self):
        with self._process.stdout as stream:
            for data in iter(lambda: os.read(stream.fileno(), 65536), b''):
                self._events.put((self._output.piece, data))
        self._events.put((self._close, None))

    def _wait(self):
        self._events.put((self._finish, self._process.wait()))

    def stop(self, why):
        self._events.put((self._give_up, why))

    def _close(self, _):
        self._closed = True

    def _finish(self, code):
        self._code = code

    def _give_up(self, why):
        self._why = why

    def run(self):
        quiet_s = 0
        try:
            while self._code is None:
                quiet_s = 0 if self._event(self._patience_s()) else quiet_s + HEARTBEAT_S
                self._check(quiet_s)
            return self._code
        finally:
            self._end()

    def _event(self, timeout_s):
        """Whether there was one in time; it has been done."""
        try:
            do, argument = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return False
        do(argument)
        return True

    def _patience_s(self):
        if self._ends_at is None:
            return HEARTBEAT_S
        return max(0, min(HEARTBEAT_S, self._ends_at - time.monotonic()))

    def _check(self, quiet_s):
        if self._why:
            raise Ended(self._why)
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            raise Ended('its time was up')
        if quiet_s >= SILENCE_S:
            raise Ended('it said nothing for %d minutes' % (SILENCE_S // 60))
        if quiet_s:
            self._output.silent()

    def _end(self):
        """Whatever it has started ends with it; what that has said until then is taken up."""
        _kill_group(self._process)
        self._at_end()
        while not self._closed and self._event(10):
            continue
        self._output.end()


if os.name == 'nt':
    OWN_GROUP = {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP}

    def _kill_group(process):
        subprocess.call(['taskkill', '/F', '/T', '/PID', str(process.pid)], stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL)
        process.kill()
else:
    OWN_GROUP = {'start_new_session': True}

    def _kill_group(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # nobody was left
