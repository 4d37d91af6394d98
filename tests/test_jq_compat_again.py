"""install_jq_compat: a task that JoinQuant runs again, after its process died, orders nothing a second time."""
import copy
import os
import sys
from datetime import timedelta

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests import base
from tests.fakes import FakeClock
from tests.processes import run
from tests.test_jq_compat import CODE, MORNING, OTHER, ROOT, Strategy, last, nothing_stays, warnings  # noqa: F401

SOURCE = '''
from jqdata import *


def process_initialize(context):
    pass


def trade(context):
    return %s


def other(context):
    return %s
'''


class Simulation:
    """A strategy's tasks, each in a process of its own that JoinQuant gives what was kept; one may die in its end."""

    def __init__(self, address, body, other='None', account=None):
        self.address, self.source, self.kept = address, SOURCE % (body, other), {}
        self.options = {} if account is None else {'sub_account_id': account}

    def task(self, name='trade', now=MORNING, dies=False, body=None):
        """What the task returns. dies: before anything is kept. body: of an edited strategy."""
        source = self.source if body is None else SOURCE % (body, 'None')
        strategy = Strategy(self.address, source=source, **self.options)
        strategy.namespace.update(copy.deepcopy(self.kept))
        strategy.context.current_dt = now
        strategy.install()
        try:
            return strategy.namespace[name](strategy.context)
        finally:
            if not dies:
                self.kept = {key: copy.deepcopy(value) for key, value in strategy.namespace.items()
                             if key in (jq._JQ_ORDERS, jq._JQ_DOUBTS)}
            jq.uninstall_jq_compat()


@pytest.fixture
def address():
    with base.serving(FakeClock(MORNING)) as server:
        yield server.address


def orders(address):
    connection = bq.ShortConnection(address[0], address[1], base.TOKEN)
    rows = bq.RemoteQmtBroker(connection=connection).get_orders()
    connection.close()
    return [(row['security'], row['amount']) for row in sorted(rows, key=lambda row: int(row['order_id']))]


@pytest.mark.parametrize('first', [True, False])
def test_a_task_that_runs_again_has_the_orders_that_it_had(address, first):
    """In a simulation's first process, where nothing was kept yet, and later."""
    simulation = Simulation(address, '[order("%s", 100), order("%s", 100), order("%s", 200)]' % (CODE, CODE, OTHER))
    if not first:
        simulation.task('other', MORNING - timedelta(minutes=1))
    died = simulation.task(dies=True)
    again = simulation.task()
    assert [order.order_id for order in again] == [order.order_id for order in died]
    assert [order.status.name for order in again] == ['held'] * 3
    assert orders(address) == [(CODE, 100), (CODE, 100), (OTHER, 200)], 'two equal orders of a task are two'


def test_a_first_process_that_dies_in_a_later_task_has_the_orders_that_it_had(address):
    """It began when nothing was kept; what it dies in is run again with what it left after the task before."""
    simulation = Simulation(address, 'order("%s", 100)' % CODE, 'order("%s", 200)' % OTHER)
    strategy = Strategy(address, source=simulation.source)
    strategy.install()
    strategy.namespace['other'](strategy.context)
    simulation.kept = {jq._JQ_ORDERS: copy.deepcopy(strategy.namespace[jq._JQ_ORDERS])}
    strategy.context.current_dt = MORNING + timedelta(minutes=1)
    died = strategy.namespace['trade'](strategy.context)
    jq.uninstall_jq_compat()
    assert simulation.task(now=MORNING + timedelta(minutes=1)).order_id == died.order_id
    assert orders(address) == [(OTHER, 200), (CODE, 100)]


def test_what_the_second_run_lacks_is_ordered(address):
    simulation = Simulation(address, 'order("%s", 100)' % CODE)
    simulation.task(dies=True)
    simulation.task(body='[order("%s", 100), order("%s", 200)]' % (CODE, OTHER))
    assert orders(address) == [(CODE, 100), (OTHER, 200)]


@pytest.mark.parametrize('body, again', [
    ('order("%s", 100)', 'order("%s", 300)'), ('order_value("%s", 20000)', 'order_value("%s", 30000)'),
    ('order("%s", 100)', 'order("%s", 100, LimitOrderStyle(13.0))')])
def test_another_size_or_price_is_no_second_order(address, body, again):
    """The first run changed the account, so the second asks for something else; or the strategy was edited."""
    simulation = Simulation(address, body % CODE)
    died = simulation.task(dies=True)
    found = simulation.task(body=again % CODE)
    assert found.order_id == died.order_id and len(orders(address)) == 1
    assert len(warnings()) == 1 and died.order_id in warnings()[0] and '没有再下' in warnings()[0]


def test_instants_functions_and_sides_have_orders_of_their_own(address):
    simulation = Simulation(address, 'order("%s", 100)' % CODE, 'order("%s", 100)' % CODE)
    for minutes in range(3):
        simulation.task(now=MORNING + timedelta(minutes=minutes))
        simulation.task('other', now=MORNING + timedelta(minutes=minutes))
    assert orders(address) == [(CODE, 100)] * 6
    simulation.task(body='[order("%s", 100, LimitOrderStyle(12.9)), order("%s", -100)]' % (CODE, CODE),
                    now=MORNING + timedelta(minutes=9))
    assert len(orders(address)) == 7, 'today nothing can be sold'


def test_two_processes_of_one_task_s_instant_that_both_ended_are_two(address):
    """A task that JoinQuant has done with, and another of the same instant and name."""
    simulation = Simulation(address, 'order("%s", 100)' % CODE)
    simulation.task(), simulation.task()
    assert orders(address) == [(CODE, 100)] * 2


def test_two_simulations_of_one_strategy_are_two(address):
    """From the day after their first order on; before that nothing that is kept tells them apart."""
    for number in range(2):
        simulation = Simulation(address, 'order("%s", 100)' % CODE, 'order("%s", 200)' % OTHER)
        simulation.task('other', MORNING - timedelta(days=1, minutes=number))
        simulation.task()
    assert orders(address) == [(OTHER, 200), (CODE, 100)] * 2


def test_accounts_are_apart():
    subs = (bq.SubAccountSpec('one', 'default', None), bq.SubAccountSpec('two', 'default', None))
    with base.serving(FakeClock(MORNING), sub_accounts=subs) as server:
        for account in ('one', 'two'):
            Simulation(server.address, 'order("%s", 100)' % CODE, account=account).task()
        assert orders(server.address) == [(CODE, 100)] * 2


def test_what_was_refused_may_be_tried_again_in_the_task(address):
    simulation = Simulation(address, '[order("%s", 100, LimitOrderStyle(p)) for p in (99.0, 13.0)]' % CODE)
    for dies in (True, False):
        none, placed = simulation.task(dies=dies)
        assert none is None and placed is not None
    assert orders(address) == [(CODE, 100)]


def test_counts_of_yesterday_are_not_kept(address):
    simulation = Simulation(address, 'order("%s", 100)' % CODE)
    for days in range(3):
        simulation.task(now=MORNING + timedelta(days=days))
    assert list(simulation.kept[jq._JQ_ORDERS]['counts'].values()) == [1]


def test_keys_are_such_that_every_server_takes_them(address):
    simulation = Simulation(address, 'order("%s", 100)' % CODE)
    key = simulation.task().remote_status and jq.JqKeys({}, lambda: None, {})._key('某个', '什么', 1)
    assert bq.re.match(r'^[A-Za-z0-9][A-Za-z0-9._:@/+\-]{0,254}$', key)


DYING = '''
import os, sys
from tests import joinquant
import bullet_qmt as bq, jq_helper as jq
from tests.test_jq_compat import Strategy
strategy = Strategy(('127.0.0.1', int(sys.argv[1])), source=%r)
strategy.install()
if sys.argv[2] == 'dies':
    request = bq.ShortConnection.request

    def dying(self, action, *args, **how):
        answer = request(self, action, *args, **how)
        if action == 'broker.place_order':
            os._exit(9)
        return answer
    bq.ShortConnection.request = dying
print(strategy.namespace['trade'](strategy.context))
'''


def test_a_process_that_dies_with_the_order_at_the_broker(address):
    code = DYING % (SOURCE % ('order("%s", 100)' % CODE, 'None'))
    for how, expected in (('dies', 9), ('lives', 0)):
        ended = run([sys.executable, '-c', code, str(address[1]), how], env=dict(os.environ, PYTHONPATH=ROOT), cwd=ROOT)
        assert ended.returncode == expected
    assert orders(address) == [(CODE, 100)]


# -- the clocks of both machines ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('gap_s, said', [(3, None), (30, '慢'), (-30, '快'), (3600, None), (-3600, None)])
def test_clocks_that_differ_are_told_of_and_far_apart_nothing_is_ordered(monkeypatch, gap_s, said):
    with base.serving(FakeClock(MORNING + timedelta(seconds=gap_s))) as server:
        monkeypatch.setattr(jq, '_jq_now', lambda: MORNING)
        monkeypatch.setattr(jq.JqClock, 'monotonic', lambda clock: 0.0)
        strategy = Strategy(server.address, max_lag=300)
        strategy.context.current_dt = MORNING
        strategy.install()
        if abs(gap_s) > 60:
            with pytest.raises(bq.BadRequest, match='时钟比服务端'):
                strategy.order(CODE, 100)
        else:
            assert strategy.order(CODE, 100) and strategy.order(CODE, 100)
            assert [said is not None and said in line for line in warnings()] == [True] * (said is not None)
        assert len(orders(server.address)) == (0 if abs(gap_s) > 60 else 2)


def test_a_task_that_stands_still_while_it_reads_the_account_orders_nothing(monkeypatch, address):
    now = [MORNING]
    monkeypatch.setattr(jq, '_jq_now', lambda: now[0])
    monkeypatch.setattr(jq.JqClock, 'monotonic', lambda clock: (now[0] - MORNING).total_seconds())
    strategy = Strategy(address, max_lag=300)
    strategy.context.current_dt = MORNING
    strategy.install()
    get_account = jq.JqBroker.get_account

    def slow(broker):
        now[0] += timedelta(hours=1)
        return get_account(broker)
    monkeypatch.setattr(jq.JqBroker, 'get_account', slow)
    with pytest.raises(bq.BadRequest, match='current_dt'):
        strategy.order(CODE, 100)
    assert orders(address) == [] and last() > 0
