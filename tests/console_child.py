"""The command line with little room for lines that wait, and on a clock of the test.

python -m tests.console_child LIMIT SHIFT COMMAND ...

LIMIT: bytes. SHIFT: seconds by which its clock is ahead of the machine's.
"""
import sys
from datetime import timedelta

import bullet_qmt as bq


def shifted(shift_s):
    """A method now() of a clock that is so many seconds ahead."""
    real = bq.Clock.now
    return lambda self: real(self) + timedelta(seconds=shift_s)


if __name__ == '__main__':
    bq.LineWriter.LIMIT = int(sys.argv[1])
    bq.Clock.now = shifted(float(sys.argv[2]))
    sys.exit(bq.main(sys.argv[3:]))
