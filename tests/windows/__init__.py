"""A Windows CPython under Wine: its DLLs out of a wheel, its Lib/ from a CPython of this machine.

python.org's own installers are no package of any registry. panda3d's Windows wheels carry, for its freezer, what they
install: python3XX.dll, every DLLs/*.pyd, OpenSSL, sqlite3. What is missing besides is pure Python, the same everywhere
(Lib/), or a call of Py_Main (python.exe).

What Wine 8 asks of whoever starts it: stdout and stderr must be pipes; Python finds no file handle in a Unix file.
"""
import contextlib
import glob
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple

from tests.environments import (OLD_PIP, ROOT, VENVS, EnvironmentFailed, find_interpreters, install_debian, make_once,
                                output, run_showing, text_of, version_text)

HERE = os.path.dirname(os.path.abspath(__file__))
# The interpreters, each with the newest msvc-runtime for it: vcruntime140.dll and its like, beside python.exe.
RUNTIMES = {(3, 6): '14.29.30133', (3, 8): '14.34.31931', (3, 11): '14.44.35112', (3, 13): '14.51.36231'}
TOOLS = ['wine', 'wineserver', 'x86_64-w64-mingw32-gcc', 'x86_64-w64-mingw32-objdump', 'localedef']
PACKAGES = ['wine', 'wine64', 'gcc-mingw-w64-x86-64-win32', 'locales']
# Windows' own libraries; _wmi calls what Wine lacks, and `platform` does without it.
LEFT_OUT = ('api-ms-', 'ucrtbase.', '_wmi.')
CERTIFICATES = '/etc/ssl/certs/ca-certificates.crt'
LOCALE = 'zh_CN.UTF-8'  # gives the code page 936, a Chinese Windows
# Files of Lib/ that Windows has no use for, and what belongs to the interpreter it is taken from.
NOT_OF_LIB = shutil.ignore_patterns('__pycache__', 'site-packages', 'dist-packages', 'lib-dynload', 'test', 'idlelib',
                                    'config-*', '_sysconfigdata*', '*.so')
SHOWS_ITSELF = ('import locale, cryptography.x509, pandas, ssl, sqlite3, sys; print("Windows CPython %s, %s, %s, '
                'sqlite %s, pandas %s" % (sys.version.split()[0], locale.getpreferredencoding(), ssl.OPENSSL_VERSION, '
                'sqlite3.sqlite_version, pandas.__version__))')

# command: what starts the interpreter; environment: what Wine needs in it; end(): whatever has been started is ended
Running = namedtuple('Running', 'command environment end')


class WindowsPython:
    """python.exe of .venvs/windows-3.11, and the Windows (Wine's prefix) that every run copies."""

    def __init__(self, version):
        self.version = version
        self.directory = os.path.join(VENVS, 'windows-' + version_text(version))
        self.home = os.path.join(self.directory, 'python')
        self.lib = os.path.join(self.home, 'Lib')
        self.packages = os.path.join(self.lib, 'site-packages')
        self.prefix = os.path.join(self.directory, 'prefix')
        self.dll = 'python%d%d.dll' % version

    def of_home(self, *parts):
        return os.path.join(self.home, *parts)

    def made(self, say):
        """Itself, when it has been made; at once where that has been done before. Raises EnvironmentFailed."""
        interpreter = find_interpreters().get(self.version)
        if interpreter is None:
            raise EnvironmentFailed('a Windows CPython %s takes its Lib/ from a CPython %s of this machine, which has '
                                    'none: install it, with pyenv for example' % ((version_text(self.version),) * 2))
        install_tools(say)
        make_once(self.directory, _parts(interpreter), lambda: self._make(interpreter, say), say)
        return self

    def _make(self, interpreter, say):
        say('making %s with %s' % (os.path.relpath(self.directory, ROOT), interpreter))
        pip = self._pip(interpreter, say)
        self._unpack_wheels(pip, say)
        self._copy_lib(interpreter)
        self._compile(say)
        say('  packages')
        run_showing(pip + ['install', '--no-deps', '--no-compile', '--target', self.packages] + self._for_windows()
                    + ['-r', os.path.join(HERE, 'requirements.txt')], say)
        self._make_prefix(say)
        with self.running() as running:
            run_showing(running.command + ['-c', SHOWS_ITSELF], say, dict(os.environ, **running.environment))

    def _pip(self, interpreter, say):
        """Of the same version as what it installs for: then pip's own markers of versions are right."""
        run_showing([interpreter, '-m', 'venv', os.path.join(self.directory, 'pip')], say)
        pip = [os.path.join(self.directory, 'pip', 'bin', 'python'), '-m', 'pip', '--disable-pip-version-check']
        if self.version == (3, 6):
            run_showing(pip + ['install', OLD_PIP], say)
        return pip

    def _for_windows(self):
        return ['--only-binary=:all:', '--platform', 'win_amd64', '--implementation', 'cp', '--python-version',
                version_text(self.version)]

    def _unpack_wheels(self, pip, say):
        folder = os.path.join(self.directory, 'wheels')
        run_showing(pip + ['download', '--no-deps', '-d', folder] + self._for_windows()
                    + ['panda3d==1.10.16', 'msvc-runtime==' + RUNTIMES[self.version]], say)
        for path in glob.glob(os.path.join(folder, '*.whl')):
            with zipfile.ZipFile(path) as wheel:
                for name in wheel.namelist():
                    if re.search(r'(^|/)deploy_libs/[^/]+$|/data/Scripts/[^/]+\.dll$', name):
                        self._place(wheel, name)
        shutil.rmtree(folder)

    def _place(self, wheel, name):
        """What Python loads by name lies beside python.exe, what it imports in DLLs/."""
        base = os.path.basename(name)
        if base.startswith(LEFT_OUT):
            return
        beside = base == self.dll or base.lower().startswith(('vcruntime', 'msvcp', 'concrt'))
        folder = self.home if beside else self.of_home('DLLs')
        os.makedirs(folder, exist_ok=True)
        with wheel.open(name) as source, open(os.path.join(folder, base), 'wb') as target:
            shutil.copyfileobj(source, target)

    def _copy_lib(self, interpreter):
        found = subprocess.check_output([interpreter, '-c', 'import sysconfig; print(sysconfig.get_path("stdlib"))'])
        shutil.copytree(found.decode().strip(), self.lib, ignore=NOT_OF_LIB)
        os.mkdir(self.packages)
        if self.version > (3, 6):
            _fill_empty_messages(os.path.join(self.lib, 'concurrent', 'futures', 'process.py'))

    def _compile(self, say):
        say('  python.exe')
        compiler = ['x86_64-w64-mingw32-gcc', '-O2', '-municode', '-DPYTHON_DLL=L"%s"' % self.dll]
        source, launchers = os.path.join(HERE, 'python.c'), os.path.join(self.lib, 'venv', 'scripts', 'nt')
        os.makedirs(launchers, exist_ok=True)
        for name, arguments in (('python', []), ('pythonw', ['-mwindows', '-DWINDOWED'])):
            run_showing(compiler + arguments + ['-o', self.of_home(name + '.exe'), source], say)
            shutil.copy(self.of_home(name + '.exe'), launchers)
        run_showing(['x86_64-w64-mingw32-gcc', '-O2', '-shared', '-o', self.of_home('bcryptprimitives.dll'),
                     os.path.join(HERE, 'bcryptprimitives.c'), '-ladvapi32'], say)
        self._compile_forwarder(say)

    def _compile_forwarder(self, say):
        """python3.dll, for packages built with the stable ABI: all of it is in the DLL of the version."""
        exports = subprocess.check_output(['x86_64-w64-mingw32-objdump', '-p', self.of_home(self.dll)]).decode('ascii')
        table = exports.split('[Ordinal/Name Pointer] Table', 1)[1].split('\n\n', 1)[0]
        names = [words[-1] for words in map(str.split, table.splitlines()) if words and words[0].startswith('[')]
        definition, source = os.path.join(self.directory, 'python3.def'), os.path.join(self.directory, 'python3.c')
        with open(definition, 'w') as file:
            file.write('LIBRARY python3.dll\nEXPORTS\n')
            file.writelines('  %s = %s.%s\n' % (name, self.dll[:-len('.dll')], name) for name in names)
        with open(source, 'w') as file:
            file.write('int __stdcall DllMain(void *a, unsigned b, void *c) { return 1; }\n')
        run_showing(['x86_64-w64-mingw32-gcc', '-shared', '-nostartfiles', '-Wl,-e,DllMain', '-o',
                     self.of_home('python3.dll'), source, definition], say)

    def _make_prefix(self, say):
        say("  Wine's Windows")
        environment = dict(os.environ, **_wine_environment(self.prefix))
        run_showing(['wineboot', '-i'], say, environment)
        _end_wine(self.prefix)

    @contextlib.contextmanager
    def running(self):
        """A Windows of its own, whose processes and files are gone afterwards; several may run at once."""
        self._remove_what_was_left()
        prefix = os.path.join(self.directory, 'run-%d-%d' % (os.getpid(), next(_NUMBERS)))
        _copy_prefix(self.prefix, prefix)
        try:
            yield Running(['wine', self.of_home('python.exe')], _wine_environment(prefix), lambda: _end_wine(prefix))
        finally:
            _remove_prefix(prefix)

    def _remove_what_was_left(self):
        """By runs that were killed."""
        for path in glob.glob(os.path.join(self.directory, 'run-*-*')):
            if not _is_alive(int(os.path.basename(path).split('-')[1])):
                _remove_prefix(path)


_NUMBERS = itertools.count()


def _parts(interpreter):
    """All that the making depends on."""
    files = [text_of(path) for path in sorted(glob.glob(os.path.join(HERE, '*.*'))) if not path.endswith('.pyc')]
    return [interpreter] + [output([program, '--version']) for program in (interpreter, 'wine')] + files


def install_tools(say):
    """Wine and a C compiler for Windows, where they are missing and this is a Debian whose root we are."""
    if platform.machine() != 'x86_64' or not sys.platform.startswith('linux'):
        raise EnvironmentFailed('a Windows CPython runs on Windows, or under Wine on Linux on x86_64; this is %s on %s'
                                % (sys.platform, platform.machine()))
    missing = [name for name in TOOLS if not shutil.which(name)]
    if missing and not (shutil.which('apt-get') and os.geteuid() == 0):
        raise EnvironmentFailed('%s missing: as root on Debian 12, apt-get install %s'
                                % (', '.join(missing), ' '.join(PACKAGES)))
    if missing:
        say('installing %s' % ' '.join(PACKAGES))
        install_debian(PACKAGES, say)
    if LOCALE.lower().replace('-', '') not in output(['locale', '-a']).lower().replace('-', ''):
        run_showing(['localedef', '-i', LOCALE.split('.')[0], '-f', 'UTF-8', LOCALE], say)


def _fill_empty_messages(path):
    """Wine 8 hangs in the read of an empty message of a pipe, with which a pool of processes wakes its manager."""
    text = text_of(path)
    empty, filled = "send_bytes(b\"\")", "send_bytes(b\"x\")"
    if text.count(empty) != 1:
        raise EnvironmentFailed('%s: %s stands there %d times' % (path, empty, text.count(empty)))
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text.replace(empty, filled))


def _wine_environment(prefix):
    return {'WINEPREFIX': prefix, 'WINEARCH': 'win64', 'WINEDEBUG': '-all', 'LC_ALL': LOCALE,
            'PYENV_ROOT': '',  # Wine would run its interpreters, which are Linux's
            'PIP_CERT': CERTIFICATES if os.path.exists(CERTIFICATES) else '',  # Windows' pip reads no /etc/pip.conf
            'WINEDLLOVERRIDES': 'mscoree,mshtml=;winemenubuilder.exe=d;winedbg.exe=d'}


def _copy_prefix(source, target):
    """All but the system's own files, which nobody writes: of those there are 700 MB."""
    windows = os.path.join('drive_c', 'windows')
    shutil.copytree(source, target, symlinks=True, ignore=lambda folder, names: [
        name for name in names if os.path.relpath(os.path.join(folder, name), source) == windows])
    os.symlink(os.path.join(source, windows), os.path.join(target, windows))


def _remove_prefix(prefix):
    _end_wine(prefix)
    shutil.rmtree(prefix, ignore_errors=True)


def _end_wine(prefix):
    """Every process of this Windows is gone afterwards; where there is none, wineserver says so by its exit code."""
    subprocess.call(['wineserver', '-k'], env=dict(os.environ, WINEPREFIX=prefix), stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL)


def _is_alive(process):
    return os.path.exists('/proc/%d' % process)
