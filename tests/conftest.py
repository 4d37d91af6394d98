import os
import signal
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.bare import make_bare  # noqa: E402
from tests.processes import on_wine  # noqa: E402

make_bare()
if hasattr(time, 'tzset'):
    time.tzset()
for number, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, 'SIGHUP', None), signal.SIG_DFL)):
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:  # a shell's background job, nohup
        signal.signal(number, handler)

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the tests that need it say so
    pass
else:
    settings.register_profile('bare', deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile('bare')


def pytest_make_parametrize_id(val):
    """Windows holds 32767 characters of an environment variable, and pytest keeps the test's name in one."""
    if isinstance(val, (str, bytes)) and len(val) > 200:
        return '%s-of-%d' % (type(val).__name__, len(val))
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        for name in ('posix', 'wine'):
            mark = item.get_closest_marker(name)
            if mark is not None and _is_left_out(name):
                item.add_marker(pytest.mark.skip(reason='%s: %s' % (name, mark.args[0])))


def _is_left_out(name):
    return on_wine() if name == 'wine' else os.name == 'nt'
