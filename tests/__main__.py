"""python -m tests [--fast] [--all-pythons | --pythons 3.6,3.13] [--windows] [--jobs N] [--minutes N] [...]

Makes a virtual environment in .venvs/, installs what the tests need and runs pytest in it, in a bare environment.
"""
import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor

from tests import windows
from tests.bare import KEPT, divided, make_bare
from tests.environments import (ROOT, SUPPORTED, VENVS, EnvironmentFailed, find_interpreters, parse_version,
                                test_environment, version_text)
from tests.lanes import Apart, Ended, Lane, Through, say
from tests.selection import TEST_FILES, core_files, dealt, fast_files

# reasons: Counter of what skipped tests said.
Outcome = namedtuple('Outcome', 'passed failed skipped note reasons')
Outcome.__new__.__defaults__ = ('', Counter())


class PythonSuite:
    """The tests on one of this machine's interpreters."""
    piped = False

    def __init__(self, version, interpreter):
        self.title, self._version, self._interpreter = 'Python ' + version_text(version), version, interpreter

    @contextlib.contextmanager
    def running(self, tell):
        """The command and the environment, when all that it takes is there."""
        if self._interpreter is None:
            raise EnvironmentFailed('not found')
        python = test_environment(self._version, self._interpreter, tell)
        yield windows.Running([python], {}, lambda: None)


class WindowsSuite:
    """The tests on a Windows CPython under Wine."""
    piped = True  # as Wine wants it

    def __init__(self, version):
        self.title, self._python = 'Windows ' + version_text(version), windows.WindowsPython(version)

    def running(self, tell):
        return self._python.made(tell).running()


class Part:
    """Some files of a suite, or all of them, in one run of pytest."""

    def __init__(self, suite, arguments, number=None):
        self.suite, self.arguments = suite, arguments
        self.name = suite.title if number is None else '%s, part %d' % (suite.title, number)
        self._report = os.path.join(VENVS, 'report-%s.xml' % self.name.replace('Python ', '').replace(', part ', '-')
                                    .replace(' ', '-').lower())

    def run(self, run):
        """Its Outcome. Whatever prevents that counts as one failure."""
        say('== %s ==' % self.name)
        tell = say if run.alone else lambda line: say('%s | %s' % (self.name, line))
        try:
            with self.suite.running(tell) as running:
                return self._run_pytest(running, run)
        except EnvironmentFailed as error:
            say('%s: %s' % (self.name, error))
            return Outcome(0, 1, 0, 'no environment')
        except Ended as ended:
            return Outcome(0, 1, 0, str(ended))

    def _run_pytest(self, running, run):
        if os.path.exists(self._report):
            os.remove(self._report)
        command = running.command + ['-m', 'pytest'] + self.arguments + ['--junitxml=' + self._report]
        environment = dict(run.environment, **running.environment)
        if run.alone and not self.suite.piped:
            code = subprocess.call(command, cwd=ROOT, env=environment)
        else:
            output = Through() if run.alone else Apart(self.name)
            code = run.follow(Lane(command + TELLS_WHERE_IT_HANGS, environment, output, running.end, run.ends_at))
        return read_report(self._report, code)


TELLS_WHERE_IT_HANGS = ['-o', 'faulthandler_timeout=300']


def read_report(path, code):
    """The counts of pytest's report, and a failure of pytest itself where no test failed."""
    if not os.path.exists(path):
        return Outcome(0, 1, 0, 'pytest wrote no report, exit code %d' % code)
    counts, root = {'tests': 0, 'failures': 0, 'errors': 0, 'skipped': 0}, ElementTree.parse(path).getroot()
    for suite in root.iter('testsuite'):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    reasons = Counter(skip.get('message', '') for skip in root.iter('skipped'))
    failed = counts['failures'] + counts['errors']
    passed = max(0, counts['tests'] - failed - counts['skipped'])
    if code and not failed:
        note = 'no test ran' if code == 5 else 'pytest: exit code %d' % code
        return Outcome(passed, 1, counts['skipped'], note, reasons)
    if not passed and not failed:
        return Outcome(0, 1, counts['skipped'], 'no test ran', reasons)
    return Outcome(passed, failed, counts['skipped'], '', reasons)


def summary(outcome):
    text = '%d passed, %d failed' % outcome[:2]
    return text + ', %d skipped' % outcome.skipped if outcome.skipped else text


class Run:
    """What all parts share; run() is the whole of it."""

    def __init__(self, parts, environment, jobs=1, minutes=None):
        self._parts, self.environment, self._jobs = parts, environment, jobs
        self.alone = len(parts) == 1  # the terminal is its own
        self.ends_at = minutes and time.monotonic() + 60 * minutes
        self._lanes, self._why = set(), None

    def follow(self, lane):
        """The exit code of a lane, that ends when all have to end."""
        self._lanes.add(lane)
        try:
            if self._why:
                lane.stop(self._why)
            return lane.run()
        finally:
            self._lanes.discard(lane)

    def run(self):
        """[(part, Outcome)], some parts at a time."""
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                return list(zip(self._parts, pool.map(lambda part: part.run(self), self._parts)))
            except KeyboardInterrupt:
                self._stop('interrupted')
                raise

    def _stop(self, why):
        self._why = why
        for lane in list(self._lanes):
            lane.stop(why)


def report(outcomes):
    """A line for each suite, what was skipped and why, their sum, and the exit code."""
    by_title = OrderedDict()
    for part, outcome in outcomes:
        by_title.setdefault(part.suite.title, []).append((part, outcome))
    say()
    sums = [(title, sum_of([outcome for _, outcome in of_one])) for title, of_one in by_title.items()]
    for title, outcome in sums:
        say('%-14s%s%s' % (title, summary(outcome), outcome.note and ' (%s)' % outcome.note))
        for reason, count in sorted(outcome.reasons.items()):
            say('              %d skipped: %s' % (count, reason))
    total = sum_of([outcome for _, outcome in sums])
    say(summary(total))
    return 1 if total.failed or not total.passed else 0


def sum_of(outcomes):
    counts = [sum(outcome[i] for outcome in outcomes) for i in range(3)]
    notes = '; '.join(outcome.note for outcome in outcomes if outcome.note)
    return Outcome(*counts, note=notes, reasons=sum((outcome.reasons for outcome in outcomes), Counter()))


def chosen_suites(options):
    """The suites to run, in the order in which they are told about."""
    suites = []
    if options.all_pythons or options.pythons:
        found = find_interpreters()
        suites = [PythonSuite(version, found.get(version)) for version in options.pythons or found]
    elif not options.windows or os.name == 'nt':
        suites = [PythonSuite(sys.version_info[:2], sys.executable)]
    return suites + ([] if os.name == 'nt' else [WindowsSuite(version) for version in options.windows])


def parts_of(suite, options, arguments):
    """All of a suite at once, if pytest's arguments say what to run or nothing runs beside; else some files each."""
    if arguments:
        return [Part(suite, arguments)]
    files = fast_files() if options.fast else TEST_FILES
    if options.core and isinstance(suite, WindowsSuite):
        files = [file for file in files if file in core_files()]
    if options.jobs == 1:
        return [Part(suite, files)]
    return [Part(suite, heap, number + 1) for number, heap in enumerate(dealt(files, 2 * options.jobs))]


def version_list(text):
    versions = [parse_version(item) for item in text.split(',')]
    for version in versions:
        if version not in SUPPORTED:
            raise argparse.ArgumentTypeError('%s is not supported: 3.6 to 3.13' % version_text(version))
    return versions


def windows_versions(text):
    versions = version_list(text)
    for version in versions:
        if version not in windows.RUNTIMES and os.name != 'nt':
            raise argparse.ArgumentTypeError('no Windows CPython %s is known how to make: %s' % (
                version_text(version), ', '.join(map(version_text, sorted(windows.RUNTIMES)))))
    return versions


def with_version(argv):
    """`--windows` alone has its version: what follows is pytest's."""
    alone = '--windows=3.11'
    return [alone if item == '--windows' and not re.match(r'3\.\d', following) else item
            for item, following in zip(argv, argv[1:] + [''])]


def count(text):
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def setting(text):
    name, equals, value = text.partition('=')
    if not name or not equals:
        raise argparse.ArgumentTypeError('%s is not NAME=VALUE' % text)
    return name, value


def run_environment(settings):
    """A bare one, with these settings, and with what installing a package takes: tests set that aside."""
    bare, aside = divided(dict(os.environ))
    kept = bare.get(KEPT, '').split() + [name for name, _ in settings]
    return dict(dict(bare, **aside), **dict(settings, **{KEPT: ' '.join(kept)}))


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m tests', allow_abbrev=False,
                                     description='Runs the tests in an environment of their own. '
                                                 'Other arguments go to pytest.')
    parser.add_argument('--all-pythons', action='store_true', help='on every supported interpreter found')
    parser.add_argument('--pythons', type=version_list, metavar='3.6,3.13', help='on these interpreters')
    parser.add_argument('--windows', type=windows_versions, default=[], metavar='3.11',
                        help='on a Windows CPython: this one on Windows, elsewhere those of these versions under Wine')
    parser.add_argument('--fast', action='store_true', help='without the files that take long: for a commit')
    parser.add_argument('--core', action='store_true', help='under Wine only what a server stands and falls with')
    parser.add_argument('--jobs', type=count, default=min(2, os.cpu_count() or 1), metavar='N',
                        help='how many runs of pytest at a time, default %(default)s; one suite is shared among them')
    parser.add_argument('--minutes', type=count, metavar='N', help='what still runs then is ended and has failed')
    parser.add_argument('--env', type=setting, action='append', default=[], metavar='NAME=VALUE',
                        help='what the tests are to find in their environment, which is bare otherwise')
    parser.add_argument('--list-pythons', action='store_true', help='show the interpreters found and stop')
    options, arguments = parser.parse_known_args(with_version(sys.argv[1:] if argv is None else argv))
    if options.list_pythons:
        for version in find_interpreters():
            say(version_text(version))
        return 0
    suites = chosen_suites(options)
    if not suites:
        say('no Python from 3.6 to 3.13 that can make virtual environments was found')
        return 1
    environment = run_environment(options.env)
    make_bare()
    parts = [part for suite in suites for part in parts_of(suite, options, arguments)]
    return report(Run(parts, environment, options.jobs, options.minutes).run())


if __name__ == '__main__':
    sys.exit(main())
