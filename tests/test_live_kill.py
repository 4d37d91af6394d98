"""A live process that is killed again and again during a day: no task twice, no order doubled, every order known."""
import os
import random
import sys
from datetime import timedelta

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import serving
from tests.environments import ROOT
from tests.live import SimClock, moment, written
from tests.processes import LineProcess

KILLED = 9 if os.name == 'nt' else -9
# A task every five minutes, each with an order whose number of shares nobody else has; each leaves a line in a file.
STRATEGY = '''
def initialize(context):
    g.orders, g.before = 0, None
    for minute in range(%d):
        run_daily(trade, '%%d:%%02d' %% divmod(%d + 5 * minute, 60))

def before_trading_start(context):
    note('before')

def after_trading_end(context):
    note('after')

def trade(context):
    now = context.current_dt
    number = (now.hour * 60 + now.minute) // 5
    note('trade %%d' %% number)
    if g.before is not None:
        cancel_order(g.before)
    g.orders += 1
    price = round(get_current_data()['600519.XSHG'].last_price * 0.985, 2)
    g.before = order('600519.XSHG', 100 * number, LimitOrderStyle(price)).order_id if number %% 3 == 0 else None
    order('000001.XSHE', 100 * number)

def note(text):
    write_file('ran.txt', text + '\\n', append=True)
'''
FIRST, TASKS = 13 * 60, 24


class Day:
    """The server's side of a day, and the processes that live through it."""

    def __init__(self, server, clock, directory, seed):
        self.server, self.clock, self.directory = server, clock, str(directory)
        self.random, self.kills, self.said = random.Random(seed), 0, []
        self.path = written(directory, STRATEGY % (TASKS, FIRST))
        paths = os.pathsep.join([os.path.dirname(os.path.abspath(bq.__file__)), ROOT])
        self._environment = dict(os.environ, PYTHONPATH=paths, PYTHONIOENCODING='utf-8')

    def live_through(self, kills):
        """Processes one after the other until one comes to the day's end. One dies with an order on its way."""
        while self._one(self._instants(kills)) == KILLED:
            self.kills += 1
            self.clock.move(self.clock.now() + timedelta(seconds=self.random.randint(1, 40)))

    def _instants(self, kills):
        if self.kills == kills // 2:
            return -self.random.randint(1, 3)
        return self.random.randint(12, 90) if self.kills < kills else 0

    def _one(self, instants):
        """The exit code of a process."""
        command = [sys.executable, '-m', 'tests.live_child', str(self.server.address[1]), self.directory, self.path,
                   self.clock.now().strftime('%Y-%m-%d %H:%M:%S'), str(instants)]
        with LineProcess(command, env=self._environment, cwd=ROOT) as process:
            while True:
                line = self._line(process)
                if line is None:
                    code = process.wait()
                    assert code in (0, KILLED), process.story()
                    return code
                if line.startswith('T '):
                    self.clock.move(moment(line[2:]))
                    self._answer(process)
                else:
                    self.said.append(line[2:])

    @staticmethod
    def _line(process):
        """None once it has ended."""
        line = process._lines.get(timeout=60)
        process.seen.append(line or '')
        return line

    def _answer(self, process):
        try:
            process.send(self.clock.now().strftime('%Y-%m-%d %H:%M:%S'))
        except OSError:  # of a pipe that is gone: EPIPE, on Windows EINVAL
            pass  # it was killed while it waited; its end is read next

    def ran(self):
        with open(os.path.join(self.directory, 'ran.txt')) as file:
            return file.read().split('\n')[:-1]


@pytest.mark.parametrize('seed', [int(text) for text in os.environ.get('LIVE_KILL_SEEDS', '1').split(',')])
def test_a_day_of_crashes(tmp_path, seed):
    clock = SimClock(moment('2025-03-03 12:50'), moment('2025-03-03 23:00'))
    with serving(clock, stub_clock='market', stub_cash=1e9, state=str(tmp_path / 'journal.sqlite')) as server:
        clock.hooks.append(server.service.backend.exchange.match_now)
        day = Day(server, clock, tmp_path, seed)
        day.live_through(kills=10)
        ran, orders = day.ran(), server.service.backend.brokers['default'].orders()
    state = jq.LiveState.read(str(tmp_path))
    assert day.kills == 10
    assert len(ran) == len(set(ran)), 'no task runs twice'
    missing = {'trade %d' % (FIRST // 5 + number) for number in range(TASKS)} - set(ran)
    unfinished = [line for line in day.said if '不再重做' in line]
    assert len(missing) <= len(unfinished) <= day.kills, 'what did not run had begun when its process died'
    placed = [(order.security, order.amount) for order in orders]
    assert len(placed) == len(set(placed)) > TASKS // 2, 'no order is at the broker twice'
    assert set(state.own) == {order.order_id for order in orders}, 'every order is known to the run'
    assert [line for line in day.said if '已核对' in line or '作废' in line], 'some died with an order on its way'
    assert not state.keys and state.orders >= len(orders)
    assert {'trade %d' % (amount // 100) for _, amount in placed} <= set(ran)
