"""python -m tests [--all-pythons | --pythons 3.6,3.13] [arguments of pytest]

Makes a virtual environment in .venvs/, installs what the tests need and runs pytest in it.
"""
import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import namedtuple

from tests.environments import (ROOT, SUPPORTED, VENVS, EnvironmentFailed, find_interpreters, parse_version,
                                test_environment, version_text)

Outcome = namedtuple('Outcome', 'passed failed skipped note')


def say(line=''):
    encoding = sys.stdout.encoding or 'ascii'
    print(line.encode(encoding, 'backslashreplace').decode(encoding))
    sys.stdout.flush()


def run_tests(version, interpreter, arguments):
    """Runs pytest on one interpreter; whatever prevents that counts as one failure."""
    try:
        python = test_environment(version, interpreter, say)
    except EnvironmentFailed as error:
        say(str(error))
        return Outcome(0, 1, 0, 'no environment')
    report = os.path.join(VENVS, 'report-%s.xml' % version_text(version))
    if os.path.exists(report):
        os.remove(report)
    code = subprocess.call([python, '-m', 'pytest'] + arguments + ['--junitxml=' + report], cwd=ROOT)
    return read_report(report, code)


def read_report(path, code):
    """The counts of pytest's report, and a failure of pytest itself where no test failed."""
    if not os.path.exists(path):
        return Outcome(0, 1, 0, 'pytest wrote no report, exit code %d' % code)
    counts = {'tests': 0, 'failures': 0, 'errors': 0, 'skipped': 0}
    for suite in ElementTree.parse(path).getroot().iter('testsuite'):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    failed = counts['failures'] + counts['errors']
    passed = max(0, counts['tests'] - failed - counts['skipped'])
    if code and not failed:
        return Outcome(passed, 1, counts['skipped'], 'no test ran' if code == 5 else 'pytest: exit code %d' % code)
    if not passed and not failed:
        return Outcome(0, 1, counts['skipped'], 'no test ran')
    return Outcome(passed, failed, counts['skipped'], '')


def summary(outcome):
    text = '%d passed, %d failed' % outcome[:2]
    return text + ', %d skipped' % outcome.skipped if outcome.skipped else text


def run_all(interpreters, arguments):
    """Every interpreter in turn; a line for each, their sum, and the exit code."""
    outcomes = []
    for version, interpreter in interpreters:
        say('== Python %s ==' % version_text(version))
        outcome = run_tests(version, interpreter, arguments) if interpreter else Outcome(0, 1, 0, 'not found')
        outcomes.append((version, outcome))
    say()
    for version, outcome in outcomes:
        say('Python %-5s %s%s' % (version_text(version), summary(outcome), outcome.note and ' (%s)' % outcome.note))
    total = Outcome(*[sum(outcome[i] for _, outcome in outcomes) for i in range(3)], note='')
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


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m tests', allow_abbrev=False,
                                     description='Runs the tests in an environment of their own. '
                                                 'Other arguments go to pytest.')
    parser.add_argument('--all-pythons', action='store_true', help='on every supported interpreter found')
    parser.add_argument('--pythons', type=version_list, metavar='3.6,3.13', help='on these interpreters')
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
    return run_all(interpreters, arguments)


if __name__ == '__main__':
    sys.exit(main())
