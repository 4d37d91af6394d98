"""A live run in a process of its own, on the clock of the test that started it; at some instant it is gone.

python -m tests.live_child PORT DIRECTORY STRATEGY NOW INSTANTS

INSTANTS: after so many the process is gone; 0 for never; -N: with the N-th order at the broker, before anybody is told.
An instant lies before and after each write to the disk (also between writing and renaming), each request that changes
or reads the account, and each task. The process tells the test on stdout what time it waits for and goes on when that
is confirmed on stdin.
"""
import os
import sys
from datetime import timedelta

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN
from tests.fakes import FakeClock
from tests.live import NO_LIMITS, moment

FORMAT = '%Y-%m-%d %H:%M:%S'


class Killer:
    """Ends the process at its count: no finally clause, no flush, nothing runs any more."""

    def __init__(self, instants):
        self._left, self._orders_left = max(instants, 0), max(-instants, 0)

    def instant(self):
        self._left -= 1
        if self._left == 0:
            self.end()

    @staticmethod
    def end():
        """SIGKILL; on Windows TerminateProcess with this exit code."""
        os.kill(os.getpid(), 9)

    def after_order(self, place):
        def call(*args, **kwargs):
            answer = place(*args, **kwargs)
            self._orders_left -= 1
            if self._orders_left == 0:
                self.end()
            return answer
        return call

    def around(self, function):
        def call(*args, **kwargs):
            self.instant()
            answer = function(*args, **kwargs)
            self.instant()
            return answer
        return call


class ToldClock(FakeClock):
    """Time goes on when the test says so."""

    def wait(self, seconds, event):
        target = self.now() + timedelta(seconds=max(seconds, 0.001))
        sys.stdout.write('T %s\n' % (target + timedelta(microseconds=999999)).strftime(FORMAT))
        sys.stdout.flush()
        self.set(moment(sys.stdin.readline().strip()))


def main(port, directory, strategy, now, instants):
    killer, clock = Killer(int(instants)), ToldClock(moment(now))
    jq.os.fsync = lambda descriptor: None  # the power does not fail here
    jq.write_atomically, jq.patiently = killer.around(jq.write_atomically), killer.around(jq.patiently)
    jq.LiveSession.fire = killer.around(jq.LiveSession.fire)
    jq.LiveSession.write_file = killer.around(jq.LiveSession.write_file)  # which is what a task of the test does first
    for name in ('get_account_info', 'place_order', 'cancel_order', 'wait_order'):
        setattr(bq.RemoteQmtBroker, name, killer.around(getattr(bq.RemoteQmtBroker, name)))
    bq.RemoteQmtBroker.place_order = killer.after_order(bq.RemoteQmtBroker.place_order)
    with bq.RemoteQmtConnection('127.0.0.1', int(port), TOKEN) as connection:
        plan = jq.LivePlan(strategy, 'day', {}, jq.LiveTerms(0.2, False, NO_LIMITS), 300.0, 0, 'stop', directory,
                           '10000001/', 60.0)
        end = clock.now().replace(hour=16, minute=0, second=0)
        jq.LiveRun(plan, bq.RemoteQmtProvider(connection=connection),
                   bq.RemoteQmtBroker(connection=connection), clock, lambda: clock.now() >= end, told, told).run()


def told(text):
    sys.stdout.buffer.write(('S %s\n' % text.replace('\n', ' ')).encode('utf-8'))
    sys.stdout.flush()


if __name__ == '__main__':
    main(*sys.argv[1:])
