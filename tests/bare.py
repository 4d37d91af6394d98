"""The environment in which tests run: what hides a fault on one machine, or makes one on another, is cleared.

KEPT names, by a blank between them, what stays as it is; `python -m tests --env NAME=VALUE` sets it.
"""
import fnmatch
import os

KEPT = 'TESTS_KEEP'
CLEARED = ['PYTHON*', 'LANG', 'LANGUAGE', 'LC_*', 'TZ', 'COLUMNS', 'LINES', 'NO_COLOR', 'FORCE_COLOR', 'CLICOLOR*',
           'PY_COLORS', 'PYTEST_ADDOPTS', 'PYTEST_PLUGINS', 'HYPOTHESIS_*', 'QMT_*', 'BT_*', 'DEFAULT_DATA_PROVIDER',
           'DEFAULT_BROKER', 'CI']
# What a machine needs in order to install packages is for that alone.
FOR_INSTALLING = ['PIP_*', 'SSL_*', '*_CA_BUNDLE', '*_proxy', 'UV_*']
OF_TESTS = ['QMT_CHAOS_*', 'QMT_TEST_*']  # read by tests themselves
SMOKE = 'REMOTE_QMT_TEST_ENABLED'  # a server of somebody's own is tested: its settings are meant


def divided(environ):
    """(environment of the tests, what is set aside for installing packages)."""
    kept = environ.get(KEPT, '').split() + OF_TESTS + (['QMT_*'] if environ.get(SMOKE) == '1' else [])
    bare = {name: value for name, value in environ.items() if _is_one_of(name, kept) or not _is_one_of(name, CLEARED)}
    aside = {name: value for name, value in bare.items()
             if _is_one_of(name.lower(), map(str.lower, FOR_INSTALLING)) and not _is_one_of(name, kept)}
    return {name: value for name, value in bare.items() if name not in aside}, aside


def _is_one_of(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def make_bare():
    """For this process and what it starts. What is set aside, the second time what was the first."""
    bare, aside = divided(dict(os.environ))
    for name in set(os.environ) - set(bare):
        del os.environ[name]
    _ASIDE.update(aside)
    return _ASIDE


_ASIDE = {}


def installing_environment(**more):
    """For pip and its like."""
    return dict(os.environ, **dict(_ASIDE, **more))
