"""A live task orders at its time or not at all: machines that stand still, clocks that are set or differ."""
import functools
import sys
import types
from datetime import timedelta

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN, serving
from tests.fakes import FakeClock
from tests.live import Between, SimClock, Stage, moment, stage

START, END = '2025-03-03 09:00', '2025-03-03 16:00'
A = '510300.XSHG'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)


@pytest.fixture
def world(monkeypatch):
    """What a strategy can do to the world: world.stall(), put there by a test."""
    module = types.ModuleType('world')
    monkeypatch.setitem(sys.modules, 'world', module)
    return module


STALLING = '''
import world

def initialize(context):
    g.out = []
    run_daily(trade, '9:35')
    run_daily(later, '14:00')

def trade(context):
    world.stall()
    g.out.append(order('%(A)s', 100))

def later(context):
    g.out.append(order('%(A)s', 200).amount)
''' % {'A': A}


@pytest.mark.parametrize('name, seconds', [('advance', 4 * 3600), ('step', 3600), ('step', -3600), ('advance', 301)])
def test_a_task_that_stood_still_orders_nothing(tmp_path, world, name, seconds):
    """advance: a suspended machine, SIGSTOP, a long download; step: somebody sets the clock, no time has gone by."""
    with stage(tmp_path, START, END) as it:
        def stall():
            getattr(it.clock, name)(seconds)
        world.stall = stall
        run = it.run(it.strategy(STALLING))
        assert run.session.g.out[0] is None and it.said('任务是 09:35 的') and it.said('--late-limit')
        assert it.said('没有发出')
        assert [row['amount'] for row in it.broker.get_orders()] == [200] * (len(run.session.g.out) - 1)


def test_within_the_limit_it_orders(tmp_path, world):
    with stage(tmp_path, START, END) as it:
        world.stall = lambda: it.clock.advance(290)
        it.run(it.strategy(STALLING))
        assert [row['amount'] for row in it.broker.get_orders()] == [100, 200]


@pytest.mark.parametrize('seconds, amounts', [(50, [100, 200]), (70, [200])])
def test_without_making_up_a_task_has_a_minute(tmp_path, world, seconds, amounts):
    with stage(tmp_path, START, END) as it:
        world.stall = lambda: it.clock.advance(seconds)
        it.run(it.strategy(STALLING), late_limit_s=0.0)
        assert [row['amount'] for row in it.broker.get_orders()] == amounts


def test_a_machine_that_stops_between_the_decision_and_the_sending_is_caught_by_the_server(tmp_path, world):
    """The server does not submit what reaches it later than the task may order."""
    with stage(tmp_path, START, END) as it:
        world.stall = lambda: it.clock.advance(280)
        asked = []

        def slow(place, *args, **kwargs):
            if not asked:
                it.clock.advance(30)
            asked.append(kwargs['valid_until'])
            return place(*args, **kwargs)
        run = it.run(it.strategy(STALLING), remote=Between(it.broker, place_order=slow))
        assert asked[0] == moment('2025-03-03 09:40') and run.session.g.out == [None, 200]
        assert it.said('已过有效时间') and [row['amount'] for row in it.broker.get_orders()] == [200]


def test_what_is_made_up_for_counts_from_its_beginning(tmp_path):
    text = 'def initialize(context):\n    pass\ndef before_trading_start(context):\n    order("%s", 100)\n' % A
    with stage(tmp_path, '2025-03-03 11:00', END) as it:
        it.run(it.strategy(text))
        assert len(it.broker.get_orders()) == 1


def test_a_hook_of_the_start_that_stood_still_orders_nothing(tmp_path, world):
    text = ('import world\ndef initialize(context):\n    world.stall()\n    order("%s", 100)\n'
            'def handle_data(context, data):\n    pass\n')
    with stage(tmp_path, '2025-03-03 09:35', END) as it:
        world.stall = lambda: it.clock.advance(3600)
        it.run(it.strategy(text % A))
        assert it.broker.get_orders() == [] and it.said('任务是 09:35 的')


def test_a_tick_that_was_handled_too_long_orders_nothing(tmp_path, world):
    text = ('import world\ndef initialize(context):\n    subscribe("%s", "tick")\n    g.n = 0\n'
            'def handle_tick(context, tick):\n    g.n += 1\n    if g.n == 1:\n        world.stall()\n'
            '    if g.n < 3:\n        order("%s", 100 * g.n)\n' % (A, A))
    with stage(tmp_path, '2025-03-03 09:35', END) as it:
        world.stall = lambda: it.clock.advance(3600)
        run = it.make(it.strategy(text))
        for minute in (40, 50):
            at = moment('2025-03-03 09:%d' % minute)
            it.clock.at(at, lambda: run.inbox.put({'sid': A, 'last_price': 4.0, 'dt': None}))
        it.clock.at(moment('2025-03-03 11:00'), lambda: run.inbox.put({'sid': A, 'last_price': 4.0, 'dt': None}))
        run.run()
        assert [row['amount'] for row in it.broker.get_orders()] == [200]


# -- the clocks of both machines ---------------------------------------------------------------------------------------
TRADING = 'def initialize(context):\n    run_daily(trade, "9:35")\n    run_daily(trade, "10:35")\n' \
          'def trade(context):\n    order("%s", 100)\n' % A


class Elsewhere:
    """The clock of the other machine: this one's, and so many seconds."""

    def __init__(self, clock, ahead_s):
        self.clock, self.ahead_s = clock, ahead_s

    def now(self):
        return self.clock.now() + timedelta(seconds=self.ahead_s)

    def monotonic(self):
        return self.clock.monotonic()


def skewed(directory, ahead_s, *steps):
    """(lines, orders, error) of a live run whose server's clock is that much ahead.

    steps: (at, by how many seconds its own is set then, after how many it is set back).
    """
    clock, error = SimClock(moment(START), moment('2025-03-03 11:00')), None
    theirs = Elsewhere(clock, ahead_s)

    def step(seconds, back_s=None):
        theirs.ahead_s -= seconds
        clock.until += timedelta(seconds=seconds)
        clock.step(seconds)
        if back_s is not None:
            clock.at(clock.now() + timedelta(seconds=back_s), lambda: step(-seconds))
    for at, seconds, back_s in steps:
        clock.at(moment('2025-03-03 ' + at), functools.partial(step, seconds, back_s))
    with serving(theirs, stub_clock='market') as server:
        with bq.RemoteQmtConnection('127.0.0.1', server.address[1], TOKEN, clock=clock) as connection:
            it = Stage(server, connection, clock, directory)
            run = it.make(it.strategy(TRADING))
            run._clock_gap = lambda: jq.clock_gap_s(connection)
            try:
                run.run()
            except bq.ConfigError as caught:
                error = caught
            return it.lines, it.broker.get_orders(), error


@pytest.mark.parametrize('ahead_s, word', [(3600, '慢'), (-3600, '快'), (70, '慢')])
def test_clocks_that_are_far_apart_start_no_run(tmp_path, ahead_s, word):
    lines, orders, error = skewed(tmp_path, ahead_s)
    assert orders == [] and '本机的时钟比服务端%s约' % word in error.message and '校准' in error.hint


def test_clocks_that_differ_a_little_are_told_of_once(tmp_path):
    (tmp_path / 'more').mkdir()
    lines, orders, error = skewed(tmp_path, -20)
    assert error is None and len(orders) == 2 and len([line for line in lines if '时钟比服务端快约' in line]) == 1
    lines, orders, error = skewed(tmp_path / 'more', 2)
    assert error is None and not [line for line in lines if '时钟比服务端' in line]


@pytest.mark.parametrize('at, by, back_s, left', [
    ('09:30', 240, 1800, 1), ('09:34', 3600, 600, 1), ('09:50', -900, 600, 2)])
def test_while_a_clock_is_wrong_no_task_runs(tmp_path, at, by, back_s, left):
    lines, orders, error = skewed(tmp_path, 0, (at, by, back_s))
    assert error is None and len(orders) == left, lines
    assert [line for line in lines if '时钟比服务端%s约 %d 秒' % ('快' if by > 0 else '慢', abs(by)) in line]
    assert [line for line in lines if '又一致了' in line]


@pytest.mark.parametrize('by', [3600, 86400, -3600, -86400])
def test_a_clock_that_jumps_and_is_set_back_loses_no_task(tmp_path, by):
    """Neither those that were due by the wrong clock nor those of the day."""
    lines, orders, error = skewed(tmp_path, 0, ('09:50', by, 60))
    assert error is None and len(orders) == 2, lines


def test_a_task_that_sees_its_clock_set_orders_nothing(tmp_path, world):
    with stage(tmp_path, START, END) as it:
        gap, problem = [0.0], '本机的时钟比服务端快约 240 秒'
        run = it.make(it.strategy(STALLING))
        run._clock_gap = lambda: gap[0]
        world.stall = lambda: gap.__setitem__(0, -240.0)
        it.clock.at(moment('2025-03-03 10:00'), lambda: gap.__setitem__(0, 0.0))
        run.run()
        assert run.session.g.out == [None, 200] and [line for line in it.said('没有成立') if problem in line]


@pytest.mark.parametrize('ahead_s', [3600, -3600])
def test_the_command_starts_no_run_beside_a_server_of_another_time(tmp_path, capsys, monkeypatch, ahead_s):
    monkeypatch.setattr(bq.StopSignal, 'install', lambda self: self)
    (tmp_path / 's.py').write_text(TRADING)
    with serving(FakeClock(bq.Clock().now() + timedelta(seconds=ahead_s))) as server:
        code = bq.main(['live', str(tmp_path / 's.py'), '--runtime-dir', str(tmp_path / 'run'), '--host', '127.0.0.1',
                        '--port', str(server.address[1]), '--token', TOKEN])
    assert code == bq.Exit.USAGE and '本机的时钟比服务端' in capsys.readouterr().err


def test_a_gap_that_is_not_known_hinders_nothing(tmp_path):
    connection = types.SimpleNamespace(clock_skew_s=None, clock_skew_error_s=None)
    assert jq.clock_gap_s(connection) is None and jq.clock_text(None, 5) is None
    connection = types.SimpleNamespace(clock_skew_s=-70.0, clock_skew_error_s=15.0)
    assert jq.clock_gap_s(connection) == -55.0, 'what is certain of it'


def test_a_clock_that_is_set_after_the_login_is_a_gap():
    clock = FakeClock(moment(START))
    with serving(FakeClock(moment(START))) as server:
        with bq.RemoteQmtConnection('127.0.0.1', server.address[1], TOKEN, clock=clock) as connection:
            clock.advance(5000)
            assert abs(connection.clock_skew_s) <= connection.clock_skew_error_s + 0.001
            clock.step(-90)
            assert abs(connection.clock_skew_s - 90) <= connection.clock_skew_error_s + 0.001
