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

    def __init__(self, address, body, other='None', account=None, **options):
        self.address, self.source, self.kept = address, SOURCE % (body, other), {}
        self.options = dict(options, **{} if account is None else {'sub_account_id': account})

    def task(self, name='trade', now=MORNING, dies=False, body=None, **given):
        """What the task returns. dies: before anything is kept. body: of an edited strategy. given: globals of it."""
        source = self.source if body is None else SOURCE % (body, 'None')
        strategy = Strategy(self.address, source=source, **self.options)
        strategy.namespace.update(copy.deepcopy(self.kept), **given)
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
    simulation = Simulation(address, '[order(code, amount) for code, amount in wanted]')
    simulation.task(dies=True, wanted=[(CODE, 100)])
    simulation.task(wanted=[(CODE, 100), (OTHER, 200)])
    assert orders(address) == [(CODE, 100), (OTHER, 200)]
    assert len(warnings()) == 1 and '没有再下' in warnings()[0], 'also where the amounts are equal'


@pytest.mark.parametrize('body, first, again', [
    ('order("%s", size)', 100, 300), ('order_value("%s", size)', 20000, 30000),
    ('order("%s", 100, LimitOrderStyle(size))', 12.9, 13.0)])
def test_another_size_or_price_is_no_second_order(address, body, first, again):
    """The first run changed the account, so the second asks for something else."""
    simulation = Simulation(address, body % CODE)
    died = simulation.task(dies=True, size=first)
    found = simulation.task(size=again)
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


def test_simulations_of_other_code_are_two_from_the_first_order_on(address):
    """JoinQuant's own template gives everybody's functions the same names."""
    for body in ('order("%s", 100)', '[order("%s", 100)]', 'order("%s", amount=100)', 'order("%s", 100)'):
        Simulation(address, body % CODE).task()
    assert len(orders(address)) == 3, 'the last is the first one'
    assert len([line for line in warnings() if '没有再下' in line and 'simulation=' in line]) == 1


def test_simulations_of_one_code_are_told_apart_by_their_names(address):
    for name in ('one', 'two', 'one'):
        Simulation(address, 'order("%s", 100)' % CODE, simulation=name).task()
    assert orders(address) == [(CODE, 100)] * 2


@pytest.mark.parametrize('name', ['', ' ', 7])
def test_a_simulation_s_name_is_a_text(address, name):
    with pytest.raises(bq.ConfigError, match='simulation'):
        Strategy(address, simulation=name).install()


def test_code_has_one_digest_in_every_process():
    code = ("import jq_helper as jq; ns = {}; exec('def f(x): return x in {\"a\", \"b\", \"c\"} or (lambda: 1)', ns); "
            "print(jq._digest_of_code(ns))")
    told = {run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=ROOT, PYTHONHASHSEED=seed)).stdout
            for seed in '123'}
    assert len(told) == 1 and len(told.pop().strip()) == 64


def test_what_stands_beside_the_functions_tells_strategies_apart(tmp_path):
    """Where JoinQuant runs a file."""
    path, digests = tmp_path / 'user_code.py', []
    for amount in (100, 300, 100):
        path.write_text('# 策略\nAMOUNT = %d\n\n\ndef trade(context):\n    return AMOUNT\n' % amount, encoding='utf-8')
        namespace = {}
        exec(compile(path.read_text(encoding='utf-8'), str(path), 'exec'), namespace)
        digests.append(jq._digest_of_code(namespace))
    assert digests[0] == digests[2] != digests[1]


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
        ended = run([sys.executable, '-c', code, str(address[1]), how], cwd=ROOT,
                    env=dict(os.environ, PYTHONPATH=ROOT, PYTHONIOENCODING='utf-8'))
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
