"""python -m tests [--all-pythons | --pythons 3.6,3.13] [--env NAME=VALUE] [arguments of pytest]

Makes a virtual environment in .venvs/, installs what the tests need and runs pytest in it, in a bare environment.
"""
import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, namedtuple

from tests.bare import KEPT, divided, make_bare
from tests.environments import (ROOT, SUPPORTED, VENVS, EnvironmentFailed, find_interpreters, parse_version,
                                test_environment, version_text)

# reasons: Counter of what skipped tests said.
Outcome = namedtuple('Outcome', 'passed failed skipped note reasons')
Outcome.__new__.__defaults__ = ('', Counter())


def say(line=''):
    encoding = sys.stdout.encoding or 'ascii'
    print(line.encode(encoding, 'backslashreplace').decode(encoding))
    sys.stdout.flush()


def run_tests(version, interpreter, arguments, environment):
    """Runs pytest on one interpreter; whatever prevents that counts as one failure."""
    try:
        python = test_environment(version, interpreter, say)
    except EnvironmentFailed as error:
        say(str(error))
        return Outcome(0, 1, 0, 'no environment')
    report = os.path.join(VENVS, 'report-%s.xml' % version_text(version))
    if os.path.exists(report):
        os.remove(report)
    command = [python, '-m', 'pytest'] + arguments + ['--junitxml=' + report]
    code = subprocess.call(command, cwd=ROOT, env=environment)
    return read_report(report, code)


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


def run_all(interpreters, arguments, environment):
    """Every interpreter in turn; a line for each, what was skipped and why, their sum, and the exit code."""
    outcomes = []
    for version, interpreter in interpreters:
        say('== Python %s ==' % version_text(version))
        outcome = Outcome(0, 1, 0, 'not found')
        if interpreter:
            outcome = run_tests(version, interpreter, arguments, environment)
        outcomes.append((version, outcome))
    say()
    for version, outcome in outcomes:
        say('Python %-5s %s%s' % (version_text(version), summary(outcome), outcome.note and ' (%s)' % outcome.note))
        for reason, count in sorted(outcome.reasons.items()):
            say('             %d skipped: %s' % (count, reason))
    total = Outcome(*[sum(outcome[i] for _, outcome in outcomes) for i in range(3)])
    say(summary(total))
    return 1 if total.failed or not total.passed else 0


def chosen_interpreters(options):
    """[(version, path)] to run on; the path is None for one that was asked for and is not there."""
    if not options.all_pythons and not options.pythons:
        return [(sys.version_info[:2], sys.executable)]
    found = find_interpreters()
    wanted = options.pythons or list(found)
    return [(version, found.get(version)) for version in wanted]


def version_list(text):
    versions = [parse_version(item) for item in text.split(',')]
    for version in versions:
        if version not in SUPPORTED:
            raise argparse.ArgumentTypeError('%s is not supported: 3.6 to 3.13' % version_text(version))
    return versions


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
    parser.add_argument('--env', type=setting, action='append', default=[], metavar='NAME=VALUE',
                        help='what the tests are to find in their environment, which is bare otherwise')
    parser.add_argument('--list-pythons', action='store_true', help='show the interpreters found and stop')
    options, arguments = parser.parse_known_args(argv)
    if options.list_pythons:
        for version in find_interpreters():
            say(version_text(version))
        return 0
    interpreters = chosen_interpreters(options)
    if not interpreters:
        say('no Python from 3.6 to 3.13 that can make virtual environments was found')
        return 1
    environment = run_environment(options.env)
    make_bare()
    return run_all(interpreters, arguments, environment)


if __name__ == '__main__':
    sys.exit(main())
