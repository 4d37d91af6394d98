"""The real peer: bullet-trade from PyPI in an environment of its own."""
import sys
from functools import lru_cache

from tests.environments import find_interpreters, make_environment
from tests.processes import on_wine

# 3.11 is what the peer was observed on; its pandas<3 has wheels for each of these.
PEER_VERSIONS = [(3, 11), (3, 10), (3, 12), (3, 9), (3, 13), (3, 8)]
FRAMES = ['pandas<2.3', 'numpy<2'] if on_wine() else ['pandas<3', 'numpy']  # numpy 2 calls what Wine's C library lacks
PEER_INSTALLS = [['--no-deps', 'bullet-trade==0.10.0'], FRAMES + ['python-dotenv']]
NO_PEER = 'bullet-trade needs CPython 3.8 to 3.13, and this machine has none'


@lru_cache(maxsize=None)
def peer_interpreter():
    """An interpreter fit for the peer, or None. Only then may tests skip, with the reason NO_PEER."""
    found = find_interpreters()
    return next((found[version] for version in PEER_VERSIONS if version in found), None)


@lru_cache(maxsize=None)
def peer_python():
    """The python that has bullet-trade; made once in .venvs/peer. Raises EnvironmentFailed with pip's words."""
    return make_environment('peer', peer_interpreter(), PEER_INSTALLS, lambda line: print(line, file=sys.stderr))


def require_peer():
    """For tests: the peer's python, or a skip that says why. A failed installation is a failed test."""
    import pytest
    if peer_interpreter() is None:
        pytest.skip(NO_PEER)
    return peer_python()
