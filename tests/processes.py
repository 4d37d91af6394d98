"""Subprocesses that tests talk to: lines out with a deadline, lines in, an end that always comes."""
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading

LISTENING = re.compile(r'127\.0\.0\.1:(\d+)')
# What asks a program for its end, as a test can send it: Windows' Ctrl-C is for all processes of a console.
ENDS = [signal.CTRL_BREAK_EVENT] if os.name == 'nt' else [signal.SIGINT, signal.SIGTERM]
OWN_GROUP = {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == 'nt' else {}


def on_wine():
    """Whether this Windows is Wine's, by the name that Wine alone gives its kernel library."""
    import ctypes
    return os.name == 'nt' and hasattr(ctypes.WinDLL('ntdll'), 'wine_get_version')


def named(text):
    """As a file's name or a variable's text here: in the C locale, in which tests run, CPython 3.6 has but ASCII."""
    try:
        return os.fsencode(text) and text
    except UnicodeEncodeError:
        return ''.join(character if character < '\x80' else 'x' for character in text)


class LineProcess:
    """A program whose output is read line by line. Every wait has a deadline; a failure shows what it wrote."""

    def __init__(self, command, env=None, cwd=None):
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                                         env=env, cwd=cwd, **OWN_GROUP)
        self._lines, self.seen = queue.Queue(), []
        self._reader = threading.Thread(target=self._read, name='reader-%d' % self._process.pid, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._lines.put(line.decode('utf-8', 'replace').rstrip())
        self._lines.put(None)

    @property
    def pid(self):
        return self._process.pid

    def line(self, timeout_s=30):
        """The next line; an AssertionError with everything written so far if there is none in time."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError('no line within %g s\n%s' % (timeout_s, self.story()))
        if line is None:
            raise AssertionError('it ended\n%s' % self.story())
        self.seen.append(line)
        return line

    def line_with(self, pattern):
        """The match of the first line that has the pattern."""
        while True:
            match = re.search(pattern, self.line())
            if match:
                return match

    def story(self):
        self._errors.seek(0)
        return '\n'.join(self.seen + [self._errors.read().decode('utf-8', 'replace')[-3000:]])

    def send(self, text):
        self._process.stdin.write(text.encode('utf-8') + b'\n')
        self._process.stdin.flush()

    def interrupt(self):
        """What Ctrl-C or a service manager sends."""
        self.give(ENDS[-1])

    def give(self, number):
        """A signal, unless it has ended."""
        try:
            self._process.send_signal(number)
        except OSError:
            self._process.wait(30)

    def kill(self):
        """SIGKILL, TerminateProcess: nothing of it runs any more."""
        self._process.kill()
        return self.wait()

    def wait(self, timeout_s=30):
        """Its exit code, with the rest of its lines in `seen`."""
        code = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        while not self._lines.empty():
            self.seen.append(self._lines.get() or '')
        return code

    def close(self):
        """Ends it for certain: stdin first, which is enough for those that read it."""
        self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def run(command, timeout_s=60, **options):
    """subprocess.run with text out: a CompletedProcess with stdout and stderr together."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=timeout_s, **options)
    done.stdout = done.stdout.decode('utf-8', 'replace')
    return done
