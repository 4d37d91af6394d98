"""What the tests of live runs share: a clock that jumps, a paper exchange on it, and runs of a strategy as text."""
import contextlib
import os
import textwrap
from datetime import datetime, timedelta

import bullet_qmt as bq
import jq_helper as jq
from tests.base import long_client, serving
from tests.fakes import FakeClock

NO_LIMITS = jq.RiskLimits(None, None, None, None)


class SimClock(FakeClock):
    """A clock for live runs: to wait is to move it; hooks hear of each step, which is a minute while busy() in the day.

    at(moment, action): action() once that moment is reached, which ends a wait. until: the run is told to stop then.
    """

    def __init__(self, start, until):
        super().__init__(start)
        self.until, self.hooks, self.busy, self._planned = until, [], lambda: True, []

    def at(self, moment, action):
        self._planned.append((moment, action))
        self._planned.sort(key=lambda item: item[0])

    def wait(self, seconds, event):
        if not event.is_set():
            self.move(self.now() + timedelta(seconds=seconds))

    def move(self, target):
        target = min(target, self.until)
        while self.now() < target:
            planned = [moment for moment, _ in self._planned if moment > self.now()]
            self.set(min([self._step(), target] + planned))
            for hook in self.hooks:
                hook()
            if self._planned and self._planned[0][0] <= self.now():
                return self._planned.pop(0)[1]()

    def _step(self):
        now = self.now()
        if 9 <= now.hour < 15 and self.busy():
            return now.replace(second=0, microsecond=0) + timedelta(minutes=1)
        nine = now.replace(hour=9, minute=0, second=0, microsecond=0)
        return nine if now < nine else nine + timedelta(days=1)

    def over(self):
        return self.now() >= self.until


def moment(text):
    return datetime.strptime(text, '%Y-%m-%d %H:%M' + (':%S' if text.count(':') == 2 else ''))


def written(directory, text, name='strategy.py'):
    path = os.path.join(str(directory), os.fsdecode(name.encode('utf-8')))  # 3.6 in the C locale names files in ASCII
    with open(path, 'w', encoding='utf-8') as file:
        file.write(textwrap.dedent(text))
    return path


class Between:
    """Before a real object: counts its calls, and a test puts changes there: name -> function(real method, *args)."""

    def __init__(self, real, **changes):
        self.real, self.changes, self.calls = real, changes, []

    def __getattr__(self, name):
        method, change = getattr(self.real, name), self.changes.get(name)

        def call(*args, **kwargs):
            self.calls.append(name)
            return method(*args, **kwargs) if change is None else change(method, *args, **kwargs)
        return call if callable(method) else method


class Stage:
    """A paper exchange on a simulated clock, and live runs on it.

    lines: what the engine said and the strategy logged, in their order. broker: a RemoteQmtBroker of its own.
    """

    def __init__(self, server, connection, clock, directory):
        self.server, self.connection, self.clock, self.directory = server, connection, clock, str(directory)
        self.exchange = server.service.backend.exchange
        clock.hooks.append(self.exchange.match_now)
        clock.busy = lambda: self.exchange.open_orders > 0
        self.broker, self.lines = bq.RemoteQmtBroker(connection=connection), []

    def run(self, path, until=None, stopping=None, remote=None, provider=None, **options):
        """A LiveRun that has ended; its state is in `state`."""
        run = self.make(path, until, stopping, remote, provider, **options)
        run.run()
        return run

    def make(self, path, until=None, stopping=None, remote=None, provider=None, frequency='day', params=None,
             wait_s=2.0, dry_run=False, limits=NO_LIMITS, late_limit_s=300.0, overview_minutes=0, on_error='stop',
             account='10000001/', patience_s=60.0):
        self.clock.until = self.clock.until if until is None else moment(until)
        plan = jq.LivePlan(path, frequency, params or {}, jq.LiveTerms(wait_s, dry_run, limits), late_limit_s,
                           overview_minutes, on_error, self.directory, account, patience_s)
        return jq.LiveRun(plan, provider or bq.RemoteQmtProvider(connection=self.connection), remote or self.broker,
                          self.clock, stopping or self.clock.over, self.lines.append, self.lines.append)

    def said(self, text):
        return [line for line in self.lines if text in line]

    def strategy(self, text, name='strategy.py'):
        return written(self.directory, text, name)


@contextlib.contextmanager
def stage(directory, start, until=None, **settings):
    clock = SimClock(moment(start), moment(until or start))
    with serving(clock, stub_clock='market', **settings) as server, long_client(server) as connection:
        yield Stage(server, connection, clock, directory)
