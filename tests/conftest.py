import os
import signal
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.bare import make_bare  # noqa: E402

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
