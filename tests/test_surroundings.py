"""How tests are run: a bare environment, a lock for what two runs make, skips that are explained, no bar of time."""
import ast
import glob
import io
import os
import subprocess
import sys
import textwrap
from collections import Counter
from types import SimpleNamespace

import pytest

from tests import __main__ as command
from tests import bare, environments, selection

HIDES = {'PYTHONUNBUFFERED': '1', 'PYTHONPATH': '/x', 'LANG': 'zh_CN.UTF-8', 'LC_ALL': 'C', 'TZ': 'Asia/Shanghai',
         'COLUMNS': '200', 'NO_COLOR': '1', 'QMT_SERVER_TOKEN': 't', 'BT_ENV_FILE': 'x', 'DEFAULT_BROKER': 'x',
         'PYTEST_ADDOPTS': '-q', 'HYPOTHESIS_PROFILE': 'x', 'CI': 'true'}
INSTALLS = {'PIP_INDEX_URL': 'https://example.com/simple', 'SSL_CERT_FILE': '/c', 'REQUESTS_CA_BUNDLE': '/c',
            'HTTPS_PROXY': 'http://p', 'http_proxy': 'http://p', 'no_proxy': 'x'}
STAYS = {'PATH': '/bin', 'HOME': '/home/x', 'TMPDIR': '/tmp', 'QMT_CHAOS_SEED': '1', 'SYSTEMROOT': 'C:\\Windows'}


def test_what_hides_a_fault_is_cleared_and_what_installs_is_set_aside():
    assert bare.divided(dict(HIDES, **dict(INSTALLS, **STAYS))) == (STAYS, INSTALLS)


def test_what_is_named_stays():
    kept = dict(HIDES, TESTS_KEEP='TZ LC_ALL')
    assert set(bare.divided(kept)[0]) == {'TZ', 'LC_ALL', 'TESTS_KEEP'}
    assert bare.divided({'TESTS_KEEP': 'https_proxy', 'https_proxy': 'p'}) == (
        {'TESTS_KEEP': 'https_proxy', 'https_proxy': 'p'}, {})


def test_a_server_of_somebodys_own_is_tested_with_its_settings():
    meant = {'REMOTE_QMT_TEST_ENABLED': '1', 'QMT_SERVER_HOST': 'h', 'QMT_SERVER_TOKEN': 't'}
    assert bare.divided(dict(meant, TZ='x')) == (meant, {})


def test_this_run_is_bare():
    kept = os.environ.get(bare.KEPT, '').split()
    cleared, aside = bare.divided({name: value for name, value in os.environ.items() if name not in kept})
    assert aside == {} and set(os.environ) - set(cleared) == set(kept) & set(os.environ)


def as_named_here(name):
    """Names of variables have no case on Windows."""
    return name.upper() if os.name == 'nt' else name


def test_the_command_gives_what_it_was_told_and_nothing_else(monkeypatch):
    for name, value in dict(HIDES, **INSTALLS).items():
        monkeypatch.setenv(name, value)
    environment = command.run_environment([('TZ', 'Pacific/Apia'), ('LC_ALL', 'C')])
    assert environment['TZ'] == 'Pacific/Apia' and environment['LC_ALL'] == 'C' and 'LANG' not in environment
    installs = {as_named_here(name): value for name, value in INSTALLS.items()}
    assert installs.items() <= environment.items() and 'PYTHONUNBUFFERED' not in environment
    assert not set(bare.divided(environment)[0]) & (set(HIDES) - {'TZ', 'LC_ALL'}), 'conftest leaves them'


CLOCKS = {'monotonic', 'perf_counter', 'time', 'process_time'}
TEST_FILES = sorted(glob.glob(os.path.join(environments.ROOT, 'tests', '*.py')))


def bars_of_time(tree):
    """Lines of assertions that compare what has passed with so many seconds: a machine at work breaks them."""
    spans = {name.id for node in ast.walk(tree) if isinstance(node, ast.Assign) and is_span(node.value)
             for name in node.targets if isinstance(name, ast.Name)}
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)
            for part in ast.walk(node.test) if isinstance(part, ast.Compare)
            for side in [part.left] + part.comparators
            if is_span(side) or (isinstance(side, ast.Name) and side.id in spans)]


def is_span(node):
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and any(
        isinstance(part, ast.Call) and getattr(part.func, 'attr', None) in CLOCKS
        and getattr(part.func.value, 'id', None) == 'time' for part in ast.walk(node.left))


def test_a_bar_of_time_is_found_and_patience_is_none():
    assert bars_of_time(ast.parse('assert time.monotonic() - before < 5')) == [1]
    assert bars_of_time(ast.parse('took = time.time() - before\nassert took < 5')) == [2]
    assert bars_of_time(ast.parse('assert time.monotonic() < deadline, told')) == []


@pytest.mark.parametrize('path', TEST_FILES, ids=os.path.basename)
def test_no_test_has_a_bar_of_time_or_a_deadline(path):
    with io.open(path, encoding='utf-8') as file:
        tree = ast.parse(file.read())
    deadlines = [node.value.lineno for node in ast.walk(tree) if isinstance(node, ast.keyword)
                 and node.arg == 'deadline' and 'None' not in ast.dump(node.value)]
    assert bars_of_time(tree) == [] and deadlines == []


IGNORING_SIGNALS = 'import signal, pytest, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.exit(pytest.main())'


def pytest_on(directory, text, *arguments, **environ):
    """The exit code of pytest on a file of its own beside this project's conftest."""
    (directory / 'test_one.py').write_text(textwrap.dedent(text), encoding='utf-8')
    conftest = 'import sys\nsys.path.insert(0, %r)\nexec(open(%r).read())\n' % (
        environments.ROOT, os.path.join(environments.ROOT, 'tests', 'conftest.py'))
    (directory / 'conftest.py').write_text(conftest, encoding='utf-8')
    pytest_here = [sys.executable, '-c', IGNORING_SIGNALS, '-q', '-p', 'no:cacheprovider', str(directory)]
    return subprocess.call(pytest_here + list(arguments), env=dict(os.environ, **environ), cwd=str(directory),
                           stdout=subprocess.DEVNULL)


@pytest.mark.posix('Windows has its zone elsewhere')
def test_pytest_itself_runs_bare_and_without_deadlines(tmp_path):
    pytest.importorskip('hypothesis')
    code = pytest_on(tmp_path, '''
        import os, signal, time
        from hypothesis import HealthCheck, settings

        def test_bare():
            assert not {'PYTHONUNBUFFERED', 'LANG', 'NO_COLOR', 'PIP_INDEX_URL'} & set(os.environ)
            assert os.environ['TZ'] == 'Pacific/Apia' and time.localtime(0).tm_gmtoff == -11 * 3600
            assert settings().deadline is None and HealthCheck.too_slow in settings().suppress_health_check
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            from tests.bare import installing_environment
            assert installing_environment(A='1')['PIP_INDEX_URL'] == 'x' and installing_environment(A='1')['A'] == '1'
        ''', PYTHONUNBUFFERED='1', LANG='C.UTF-8', NO_COLOR='1', PIP_INDEX_URL='x', TZ='Pacific/Apia', TESTS_KEEP='TZ')
    assert code == 0


def test_skips_are_explained(tmp_path, capsys):
    report = tmp_path / 'report.xml'
    pytest_on(tmp_path, '''
        import pytest

        @pytest.mark.parametrize('number', range(3))
        def test_skipped(number):
            pytest.skip('no such thing here' if number else 'another')

        def test_passes():
            pass
        ''', '--junitxml=%s' % report)
    outcome = command.read_report(str(report), 0)
    assert outcome[:3] == (1, 0, 3) and outcome.reasons == {'no such thing here': 2, 'another': 1}
    assert command.report([(part('Python 3.9'), outcome)]) == 0
    told = capsys.readouterr().out
    assert '1 passed, 0 failed, 3 skipped' in told and '1 skipped: another\n' in told
    assert '2 skipped: no such thing here\n' in told


def part(title):
    return command.Part(SimpleNamespace(title=title), [])


def test_the_parts_of_a_suite_are_told_about_as_one(capsys):
    outcomes = [command.Outcome(3, 0, 2, '', Counter({'posix: x': 2})), command.Outcome(4, 1, 1, 'why', Counter(y=1))]
    suites = [part('Windows 3.11'), part('Python 3.13'), part('Windows 3.11')]
    told = command.report(list(zip(suites, [outcomes[0], command.Outcome(5, 0, 0), outcomes[1]])))
    assert told == 1 and capsys.readouterr().out.splitlines() == [
        '', 'Windows 3.11  7 passed, 1 failed, 3 skipped (why)', '              2 skipped: posix: x',
        '              1 skipped: y', 'Python 3.13   5 passed, 0 failed', '12 passed, 1 failed, 3 skipped']


def test_the_heaps_hold_every_file_once_and_weigh_about_the_same():
    heaps = selection.dealt(selection.TEST_FILES, 4)
    assert sorted(file for heap in heaps for file in heap) == selection.TEST_FILES
    weights = [sum(os.path.getsize(os.path.join(environments.ROOT, file)) for file in heap) for heap in heaps]
    assert len(heaps) == 4 and max(weights) < 1.2 * min(weights)
    assert selection.dealt(selection.TEST_FILES[:1], 4) == [selection.TEST_FILES[:1]]


def test_the_fast_run_has_every_file_but_the_slow_ones_which_are_there():
    slow = [selection.file_of(name) for name in selection.SLOW]
    assert slow == sorted(set(slow)) and sorted(slow + selection.fast_files()) == selection.TEST_FILES


def test_the_core_is_there():
    assert selection.CORE == sorted(set(selection.CORE)) and set(selection.core_files()) <= set(selection.TEST_FILES)


def test_the_core_is_for_wine_alone():
    options = SimpleNamespace(fast=False, core=True, jobs=1)
    under_wine, = command.parts_of(command.WindowsSuite((3, 11)), options, [])
    here, = command.parts_of(command.PythonSuite((3, 11), 'python'), options, [])
    assert under_wine.arguments == selection.core_files() and here.arguments == selection.TEST_FILES


def test_a_run_without_arguments_is_shared_among_its_jobs():
    suite, alone = SimpleNamespace(title='Python 3.9'), SimpleNamespace(fast=True, core=False, jobs=1)
    assert [one.arguments for one in command.parts_of(suite, alone, [])] == [selection.fast_files()]
    assert [one.arguments for one in command.parts_of(suite, alone, ['-x', 'a.py'])] == [['-x', 'a.py']]
    shared = command.parts_of(suite, SimpleNamespace(fast=False, core=False, jobs=2), [])
    assert sorted(file for one in shared for file in one.arguments) == selection.TEST_FILES
    assert [one.name for one in shared] == ['Python 3.9, part %d' % number for number in (1, 2, 3, 4)]


def test_what_follows_windows_is_its_version_or_pytests():
    assert command.with_version(['--windows', 'tests/test_gate.py']) == ['--windows=3.11', 'tests/test_gate.py']
    assert command.with_version(['--windows', '3.8,3.13', '-x']) == ['--windows', '3.8,3.13', '-x']
    assert command.with_version(['-x', '--windows']) == ['-x', '--windows=3.11']


MAKES = '''
import sys
sys.path.insert(0, %r)
from tests import environments
environments.VENVS = %r

def make(directory, interpreter, installs, say):
    import os
    os.mkdir(directory)  # fails where it is there
    print('makes', flush=True)
    sys.stdin.readline()
environments._make = make
environments._fingerprint = lambda *_: 'same'
environments.make_environment('x', sys.executable, [], lambda line: print(line, flush=True))
print('done', flush=True)
'''


def test_two_runs_make_an_environment_once(tmp_path):
    def start():
        return subprocess.Popen([sys.executable, '-c', MAKES % (environments.ROOT, str(tmp_path))],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
    first = start()
    assert first.stdout.readline() == 'makes\n'
    second = start()
    assert second.stdout.readline() == 'waiting for another run that makes x\n'
    assert first.communicate('\n', timeout=60)[0] == 'done\n'
    assert second.communicate('\n', timeout=60)[0] == 'done\n'


def test_what_pip_says_where_nothing_is_wrong_is_shown_with_a_failure_alone():
    lines = []
    script = "import sys; print('Ignoring pandas: markers'); print('WARNING: Location x is ignored'); print('good')"
    environments.run_showing([sys.executable, '-c', script], lines.append)
    assert lines == ['  good']
    with pytest.raises(environments.EnvironmentFailed) as caught:
        environments.run_showing([sys.executable, '-c', script + '; sys.exit(1)'], lines.append)
    assert 'Ignoring pandas' in str(caught.value) and 'Location x' in str(caught.value)
