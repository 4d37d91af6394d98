"""Interpreters of this machine, and virtual environments made from them. Runs on every supported Python."""
import contextlib
import glob
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections import OrderedDict, deque

from tests.bare import installing_environment

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Each system its own: under Wine, who deletes an environment of Linux deletes what its links lead to, the interpreter.
VENVS = os.path.join(ROOT, '.venvs', 'nt') if os.name == 'nt' else os.path.join(ROOT, '.venvs')
REQUIREMENTS = os.path.join(ROOT, 'tests', 'requirements.txt')
SUPPORTED = [(3, minor) for minor in range(6, 14)]
OLD_PIP = 'pip==21.3.1'  # the last for CPython 3.6; the one that comes with it does not know today's wheels
_PROBE = ('import sys, struct, venv, ensurepip; '
          'print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], sys.executable))')


class EnvironmentFailed(Exception):
    """A virtual environment could not be made; the text holds the last lines of what was tried."""


def version_text(version):
    return '%d.%d' % version


def parse_version(text):
    major, _, minor = text.strip().partition('.')
    return int(major), int(minor)


def find_interpreters():
    """OrderedDict (major, minor) -> path of an interpreter that can make environments; oldest first."""
    found = {}
    for candidate in map(os.path.realpath, _candidates()):  # one name for each, however it was reached
        version = _probe(candidate) if os.path.isfile(candidate) else None
        if version in SUPPORTED and version not in found:
            found[version] = candidate
    return OrderedDict(sorted(found.items()))


def _candidates():
    """Paths that may be interpreters, preferred ones first."""
    yield sys.executable
    pyenv = os.environ.get('PYENV_ROOT') or os.path.join(os.path.expanduser('~'), '.pyenv')
    for name in ('bin/python', 'python.exe'):
        for path in sorted(glob.glob(os.path.join(pyenv, 'versions', '*', *name.split('/'))), reverse=True):
            yield path
    for name in ['python3.%d' % minor for _, minor in SUPPORTED] + ['python3', 'python']:
        path = shutil.which(name)
        if path:
            yield path
    for path in _launcher_paths():
        yield path


def _launcher_paths():
    """What the `py` launcher of Windows lists."""
    launcher = shutil.which('py') if os.name == 'nt' else None
    if not launcher:
        return []
    lines = output([launcher, '-0p']).splitlines()
    return [line[line.index(':\\') - 1:].strip() for line in lines if ':\\' in line]


def _probe(path):
    """The (major, minor) of an interpreter; None if it does not run or cannot make environments."""
    words = output([path, '-c', _PROBE]).split()
    return parse_version(words[0]) if words else None


def output(command):
    """What it prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                              timeout=60, universal_newlines=True)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout if done.returncode == 0 else ''


def python_of(directory):
    parts = ('Scripts', 'python.exe') if os.name == 'nt' else ('bin', 'python')
    return os.path.join(directory, *parts)


def make_environment(name, interpreter, installs, say):
    """The python of .venvs/<name>; made anew unless it was made from the same things.

    installs: lists of arguments of `pip install`, in order; files among them count with their content.
    say(line) is called as it goes on. Raises EnvironmentFailed with the last lines of the step that failed.
    Two runs at once: the second waits, and finds it made.
    """
    directory = os.path.join(VENVS, name)
    parts = [interpreter, output([interpreter, '--version'])]
    for argument in [item for arguments in installs for item in arguments]:
        parts.append(text_of(argument) or argument)
    make_once(directory, parts, lambda: _make(directory, interpreter, installs, say), say)
    return python_of(directory)


def make_once(directory, parts, make, say):
    """The directory is there when this returns, made by make() from these parts (texts), anew if it was from others."""
    stamp, wanted = os.path.join(directory, 'made-from.txt'), _fingerprint([directory] + parts)
    if text_of(stamp) != wanted:
        with _alone(directory + '.lock', say):
            if text_of(stamp) != wanted:
                if os.path.exists(directory):
                    shutil.rmtree(directory)
                make()
                with open(stamp, 'w') as file:
                    file.write(wanted)


def _make(directory, interpreter, installs, say):
    say('making %s with %s' % (os.path.relpath(directory, ROOT), interpreter))
    run_showing([interpreter, '-m', 'venv', directory], say)
    for arguments in installs:
        run_showing(_pip(directory) + ['install'] + arguments, say)


@contextlib.contextmanager
def _alone(path, say):
    """A lock that no crash leaves behind."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'a') as file:
        if not _locks(file, waits=False):
            say('waiting for another run that makes %s' % os.path.basename(path)[:-len('.lock')])
            while not _locks(file, waits=True):
                continue
        yield


def _locks(file, waits):
    """Whether the file is ours now, until it is closed. Windows waits ten seconds at a time."""
    try:
        if os.name == 'nt':
            import msvcrt
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if waits else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _pip(directory):
    return [python_of(directory), '-m', 'pip', '--disable-pip-version-check']


def _fingerprint(parts):
    return hashlib.sha256('\0'.join(parts).encode('utf-8')).hexdigest()


def text_of(path):
    """A file's, None where there is none."""
    if not os.path.isfile(path):
        return None
    with io.open(path, encoding='utf-8') as file:
        return file.read()


# What pip says where nothing is wrong: shown only with a step that failed.
QUIET = ('Requirement already', '  Using cached', 'Ignoring ', 'WARNING: Location ', 'WARNING: Running pip as the',
         '[notice]', 'Looking in ')


def run_showing(command, say, environment=None):
    """Runs to the end, what matters shown as it comes; a failure carries the last lines, all of them."""
    last = deque(maxlen=60)
    environment = environment or installing_environment(PYTHONUNBUFFERED='1', PYTHONIOENCODING='utf-8')
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                                   stdin=subprocess.DEVNULL)
    except OSError as error:
        raise EnvironmentFailed('%s: %s' % (command[0], error))
    with process:
        for line in process.stdout:
            text = line.decode('utf-8', 'replace').rstrip()
            last.append(text)
            if text and not text.startswith(QUIET):
                say('  ' + text)
    if process.returncode:
        raise EnvironmentFailed('\n'.join(['%s failed:' % ' '.join(command)] + list(last)))


def install_debian(packages, say):
    """With apt-get, which two must not use at once. Raises EnvironmentFailed."""
    environment = installing_environment(DEBIAN_FRONTEND='noninteractive')
    with _alone(os.path.join(VENVS, 'apt.lock'), say):
        apt = ['apt-get', '-qq', '-o', 'Acquire::Retries=3', '-o', 'DPkg::Lock::Timeout=600']
        run_showing(apt + ['update'], say, environment)
        run_showing(apt + ['install', '-y', '--no-install-recommends'] + packages, say, environment)


def test_environment(version, interpreter, say):
    """The python that has what the tests need."""
    installs = [[OLD_PIP]] if version == (3, 6) else []
    return make_environment(version_text(version), interpreter,
                            installs + [['--prefer-binary', '-r', REQUIREMENTS]], say)


test_environment.__test__ = False  # its name is no test's
