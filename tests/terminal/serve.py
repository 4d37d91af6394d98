"""bullet_qmt's command line on a terminal in another process:

    python -m tests.terminal.serve 127.0.0.1:PORT server --server-type=qmt ...

QMT_TEST_HURRY=1 shortens what a test would only wait for: reconnects, warm-up, and the time after which an order that
the terminal does not list is known not to have reached it (HURRY_MARGIN_S after the request's own timeout).
"""
import os
import sys

import bullet_qmt
from tests.terminal.native import install
from tests.terminal.remote import Gateway

HURRY_MARGIN_S = 3.0


def hurry():
    bullet_qmt.SETTLE_MARGIN_S, bullet_qmt.Settler.INTERVAL_S = HURRY_MARGIN_S, 0.2
    quick = {'call_s': 2.0, 'connect_s': 3.0, 'probe_s': 0.5, 'warm_up_s': 0.1, 'error_s': 0.3, 'backoff_s': 0.1,
             'backoff_max_s': 0.3}
    bullet_qmt.QmtTiming.FIELDS = tuple((name, quick.get(name, value)) for name, value in bullet_qmt.QmtTiming.FIELDS)


def main(argv):
    host, _, port = argv[0].partition(':')
    if os.environ.get('QMT_TEST_HURRY'):
        hurry()
    install(Gateway((host, int(port))))
    return bullet_qmt.main(argv[1:])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
