"""The command line with little room for lines that wait, and on a clock of the test.

python -m tests.console_child LIMIT NOW COMMAND ...

LIMIT: bytes. NOW: Beijing time of a live run's start, which goes on from there, or - for the real one.
"""
import sys

import bullet_qmt as bq
import jq_helper as jq
from tests.live import moment


class ShiftedClock(jq.LiveClock):
    def __init__(self):
        self._shift = moment(sys.argv[2]) - super().now()

    def now(self):
        return super().now() + self._shift


if __name__ == '__main__':
    bq.LineWriter.LIMIT = int(sys.argv[1])
    if sys.argv[2] != '-':
        jq.LiveClock = ShiftedClock
    sys.exit(bq.main(sys.argv[3:]))
