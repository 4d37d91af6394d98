"""The benchmark measures what it says it measures. No test here is about how fast anything is."""
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

import bullet_qmt as bq
from tests.bench import __main__ as command
from tests.bench import figures as f
from tests.bench import door, runner, stage, timing
from tests.bench.cases import CASES, Account, Case, TickBursts, Ticks, echo_port, exchange
from tests.bench.growth import GROWTH
from tests.environments import ROOT
from tests.peer import require_peer


@pytest.fixture(scope='module')
def scene():
    with stage.Stage() as made:
        yield made


def run(*arguments):
    """(exit code, stdout, stderr) of the benchmark as a user runs it."""
    process = subprocess.Popen([sys.executable, '-m', 'tests.bench'] + list(arguments), cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                               env=dict(os.environ, PYTHONIOENCODING='utf-8'))
    out, err = process.communicate(timeout=600)
    return process.returncode, out.decode('utf-8'), err.decode('utf-8')


# -- statistics ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('samples, share, expected', [
    (range(1, 101), 0.99, 99), (range(1, 101), 1.0, 100), (range(1, 101), 0.5, 50), (range(1, 1001), 0.99, 990),
    ([7], 0.99, 7), ([3, 1, 2], 0.99, 3), ([3, 1, 2], 0.01, 1), ([2, 1], 0.0, 1)])
def test_a_percentile_is_the_smallest_sample_that_so_many_do_not_exceed(samples, share, expected):
    assert f.percentile(list(samples), share) == expected


def test_there_is_no_percentile_of_nothing():
    with pytest.raises(ValueError):
        f.percentile([], 0.99)


def test_the_spread_is_in_the_unit_asked_for():
    assert f.spread_of([0.001, 0.003, 0.002, 0.004], 1e3) == {'p50': 2.5, 'p99': 4.0}


def test_each_figure_is_the_median_of_its_rounds():
    rounds = [{'p50': 5, 'p99': 50}, {'p50': 1, 'p99': 90}, {'p50': 3, 'p99': 10, 'late': 8}]
    assert f.medians(rounds) == {'p50': 3, 'p99': 50, 'late': 8}


# -- bars and rows -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('bar, ours, raw, peer, met', [
    (f.at_most(10), 10, None, None, True), (f.at_most(10), 10.1, None, None, False),
    (f.at_least(10), 10, None, None, True), (f.at_least(10), 9.9, None, None, False),
    (f.at_most_raw(1.5), 15, 10, None, True), (f.at_most_raw(1.5), 16, 10, None, False),
    (f.at_most_raw(1.5), 15, None, 1, None), (f.at_most_raw(1.4, 0.5), 1.9, 1, None, True),
    (f.at_most_raw(1.4, 0.5), 1.91, 1, None, False), (f.faster_than_peer(2), 5, None, 10, True),
    (f.faster_than_peer(2), 5.1, None, 10, False), (f.faster_than_peer(2), 5, 1, None, None),
    (f.more_than_peer(2), 20, None, 10, True), (f.more_than_peer(2), 19.9, None, 10, False),
    (f.more_than_peer(2), 20, 1, None, None)])
def test_a_bar_is_met_missed_or_not_judged(bar, ours, raw, peer, met):
    assert bar.met(ours, raw, peer) is met


class Sample(Case):
    name, title = 'sample', '样例：一个中文标题'
    figures = (f.figure('p50', 'p50', '微秒', f.at_most_raw(1.5), f.faster_than_peer(2)),
               f.Figure('p50', '对另一个极限', '微秒', 'plain', 'other', ()), f.figure('gone', '没有测成', '毫秒', f.at_most(1)))


SEEN = {'ours': {'p50': 120.0}, 'raw': {'p50': 100.0}, 'plain': {'other': 40.0}, 'peer': {'p50': 1300.5}}


def test_rows_take_each_figure_from_its_own_side():
    told = [f.as_dict(row) for row in f.rows_of(Sample, SEEN)]
    assert [(row['ours'], row['raw'], row['peer']) for row in told] == [
        (120.0, 100.0, 1300.5), (120.0, 40.0, 1300.5), (None, None, None)]
    assert [row['ours_to_raw'] for row in told] == [1.2, 3.0, None]
    assert told[0]['bars'] == [{'bar': '≤ 1.50×裸', 'met': True}, {'bar': '≤ 对手/2', 'met': True}]
    assert told[2]['bars'] == [{'bar': '≤ 1', 'met': None}]


def by_columns(line, rule):
    """The cells of a line, cut where the rule of dashes has its columns, by the width that a terminal gives a text."""
    parts, cells, place = rule.split('  '), [], 0
    shown = [(char, bq.text_width(char)) for char in line]
    for part in parts:
        text = ''
        while shown and place < len(part) + 2:
            char, width = shown.pop(0)
            text, place = text + char, place + width
        assert place == len(part) + 2 or not shown, 'a wide character lies across two columns'
        cells, place = cells + [text.strip()], 0
    return cells


def test_the_table_lines_up_in_a_terminal():
    rows = f.rows_of(Sample, SEEN)
    head, rule, *lines = f.table(rows).splitlines()
    assert by_columns(head, rule) == f.HEADERS
    assert [by_columns(line, rule) for line in lines] == [
        ['样例：一个中文标题', 'p50', '微秒', '120', '100', '1,300', '1.20', '0.09', '≤ 1.50×裸，≤ 对手/2', '达到，达到'],
        ['', '对另一个极限', '微秒', '120', '40', '1,300', '3', '0.09', '-', '-'],
        ['', '没有测成', '毫秒', '-', '-', '-', '-', '-', '≤ 1', '-']]


# -- rounds ----------------------------------------------------------------------------------------------------------
class Recorded(Case):
    """Tells its calls; the n-th round of a side takes n."""

    name, title, figures = 'recorded', '', (f.figure('n', 'n', '次'),)
    broken = None

    def __init__(self):
        self.calls = []

    def round(self, side):
        self.calls.append(side)
        if side == self.broken:
            raise stage.WorkerFailed('Traceback ...\nKeyError: 5')
        return {'n': self.calls.count(side)}


def test_sides_take_turns_and_the_warm_up_does_not_count():
    case, notes = Recorded(), []
    assert runner.measure(case, 3, notes) == {'ours': {'n': 3}, 'raw': {'n': 3}, 'peer': {'n': 3}}
    assert case.calls == ['ours', 'raw', 'peer', 'raw', 'peer', 'ours', 'peer', 'ours', 'raw', 'ours', 'raw', 'peer']
    assert notes == []


def test_a_side_that_fails_is_told_and_left_out():
    case, notes = Recorded(), []
    case.broken = 'peer'
    assert set(runner.measure(case, 2, notes)) == {'ours', 'raw'}
    assert notes == [('recorded', 'peer', 'Traceback ...\nKeyError: 5')] and case.calls.count('peer') == 1


def test_what_one_round_tells_is_asked_once():
    case = Recorded()
    case.once = True
    assert runner.measure(case, 5, [])['ours'] == {'n': 1} and len(case.calls) == 3


@pytest.mark.parametrize('cases', [CASES, GROWTH])
def test_names_are_unique_and_figures_belong_to_sides(cases):
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.title and case.figures and all(hasattr(case, side) for side in case.sides)


# -- command line ----------------------------------------------------------------------------------------------------
def test_a_name_that_is_not_there_is_refused_with_the_list():
    code, out, err = run('--only', 'account,nonsense')
    assert (code, out) == (2, '') and 'nonsense' in err
    assert all(case.name in err for case in CASES)


def test_each_name_is_in_the_readme():
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        readme = file.read()
    assert all('`%s`' % case.name in readme for case in CASES)


@pytest.mark.parametrize('rounds', ['0', '-1', 'x'])
def test_rounds_are_a_positive_number(rounds):
    assert run('--rounds=' + rounds)[0] == 2


def test_without_pandas_it_goes_on_in_the_environment_of_the_tests(monkeypatch):
    called = []
    monkeypatch.setattr(command, 'NEEDED', ('a_module_that_nobody_has',))
    monkeypatch.setattr(command, 'test_environment', lambda version, interpreter, say: 'its-python')
    monkeypatch.setattr(command.subprocess, 'call', lambda line, cwd: called.append((line, cwd)) or 7)
    assert command.main(['--quick']) == 7
    assert called == [(['its-python', '-m', 'tests.bench', '--quick'], ROOT)]


def test_the_account_rows_as_json():
    require_peer()
    code, out, err = run('--quick', '--only', 'account', '--json')
    told = json.loads(out)
    assert code == 0 and told['failures'] == [], err
    assert [(row['case'], row['figure']) for row in told['rows']] == [('account', item.key) for item in Account.figures]
    for row in told['rows']:
        assert min(row['ours'], row['raw'], row['peer']) > 0
        assert row['ours_to_raw'] == pytest.approx(row['ours'] / row['raw'])
        assert row['ours_to_peer'] == pytest.approx(row['ours'] / row['peer'])
    p50, p99 = told['rows'][:2]
    assert all(p50[side] <= p99[side] for side in ('ours', 'raw', 'peer'))
    first, second = [bar['met'] for bar in p50['bars']]
    assert first == (p50['ours_to_raw'] <= 1.5) and second == (p50['ours_to_peer'] <= 0.5)
    assert told['machine']['cores'] == os.cpu_count() and told['machine']['quick'] is True


# -- what is measured ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('with_json', [True, False])
def test_the_raw_echo_answers_with_as_many_bytes_as_our_server(scene, with_json):
    question, answer = exchange(scene)
    account = scene.main_server()
    with contextlib.closing(stage.CountingProxy(account.port)) as proxy:
        client = scene.worker('ours', 'ours', 'test')
        client('open_connections', proxy.port, stage.TOKEN)
        before = proxy.counts()
        assert client('account')['value']['total_value'] > 0
        assert [now - then for then, now in zip(before, proxy.counts())] == [question, answer]
        client('close_connections')
    client = scene.client('raw')
    client('open_connections', echo_port(scene, with_json))
    assert client('answer_bytes', question) == answer
    client('close_connections')


def test_the_raw_floats_fill_a_frame(scene):
    client, port = scene.client('raw'), scene.raw_server()('start_floats', 480)
    client('open_connections', port)
    assert client('bars_times', 480, 2)['rows'] == 480
    client('close_connections')


def test_an_answer_that_does_not_fit_is_refused(scene):
    with pytest.raises(stage.WorkerFailed, match='does not fit into 20 bytes'):
        scene.raw_server()('start_echo', 20, True)


def test_what_a_worker_raises_comes_back_with_its_traceback(scene):
    with pytest.raises(stage.WorkerFailed, match='ZeroDivisionError|AttributeError'):
        scene.client('raw')('no_such_function')


def test_ticks_of_our_server_are_counted_and_timed(scene):
    server, port = scene.tick_server('ours')
    client = scene.client('ours')
    client('subscribe', port, stage.TOKEN, ['600000.XSHG', '600001.XSHG'], 2)
    server('begin_ticks', ['600000.XSHG', '600001.XSHG'], 100, 1)
    deadline = time.perf_counter() + 30
    while len(client('arrived', 0, 1e9)) < 20:  # not the first twenty: a newer tick may take the place of an unsent one
        assert time.perf_counter() < deadline
        timing.wait_until(time.perf_counter() + 0.02)
    server('end_ticks')
    late = client('arrived', 0, 1e9)
    assert 20 <= len(late) <= 2 * server('made') and all(0 < seconds for seconds in late)
    assert client('arrived', server('made'), 1e9) == []
    client('close_connections')


class OneTickASecond(Ticks):
    symbols = 1


@pytest.mark.parametrize('kind', [OneTickASecond, TickBursts])
def test_ticks_that_are_rare_or_come_in_bursts_are_measured_too(scene, kind):
    measured = kind(scene, quick=True).round('raw')
    assert measured['delivered'] == 100 and 0 < measured['p50'] <= measured['p99']


@pytest.mark.skipif(stage.cores() is None, reason='nothing to pin to here')
def test_both_ends_have_a_core_of_their_own_meanwhile(scene):
    pids = scene.raw_server().pid, scene.client('raw').pid

    def allowed(pid):
        return {frozenset(os.sched_getaffinity(int(thread))) for thread in os.listdir('/proc/%d/task' % pid)}
    whole = frozenset(os.sched_getaffinity(0))
    with stage.pinned(*pids):
        assert [allowed(pid) for pid in pids] == [{frozenset([core])} for core in stage.cores()]
    assert [allowed(pid) for pid in pids] == [{whole}, {whole}]


# -- timing ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('burst, due', [(1, [0.0, 0.1, 0.2, 0.3, 0.4]), (2, [0.0, 0.0, 0.2, 0.2, 0.4])])
def test_ticks_fall_due_evenly_or_in_bursts(burst, due):
    pacer = timing.Pacer(['a', 'b'], 10, burst)
    assert [pacer.due(number) - pacer.start for number in range(5)] == pytest.approx(due)
    assert [pacer.symbol(number) for number in range(5)] == ['a', 'b', 'a', 'b', 'a']
    assert pacer.count(pacer.start - 1) == 0
    for number, moment in enumerate(due):
        assert pacer.count(pacer.start + moment + 0.05) == 1 + max(i for i in range(6) if (i // burst) * burst * 0.1
                                                                   <= moment + 0.05)


def test_the_newest_tick_of_a_symbol():
    pacer = timing.Pacer(['a', 'b'], 10, 1)
    assert pacer.newest('b', pacer.start + 0.05) is None
    assert [pacer.newest(symbol, pacer.start + 0.35)[0] for symbol in 'ab'] == [2, 3]
    number, stamp = pacer.newest('a', pacer.start + 0.35)
    assert stamp == pytest.approx(pacer.start + 0.2) and pacer.symbol(number) == 'a'


def test_the_pacer_makes_each_tick_not_before_it_is_due():
    pacer, stop, seen = timing.Pacer(['a', 'b', 'c'], 1000, 3), threading.Event(), []

    def make(symbol, number, stamp):
        seen.append((symbol, number))
        assert stamp >= pacer.due(number)
        if number == 6:
            stop.set()
    pacer.run(make, stop)
    assert seen == list(zip('abcabca', range(7)))


def test_a_tick_that_comes_twice_counts_once():
    arrivals = timing.Arrivals()
    for number in (1, 2, 2, 3):
        arrivals.note('a', number, time.perf_counter())
    arrivals.note('b', 2, time.perf_counter())
    assert len(arrivals.between(0, 10)) == 4 and len(arrivals.between(2, 3)) == 2


def test_calls_of_all_threads_are_counted_until_the_end():
    begin, late = time.perf_counter(), threading.Event()
    counts = [0, 0]

    def call(place):
        counts[place] += 1
        late.wait(0.001)
    total = timing.calls_between([lambda: call(0), lambda: call(1)], begin, begin + 0.2)
    assert total == sum(counts) - 2  # the last one of each ended too late


def test_what_a_call_raises_is_raised():
    with pytest.raises(KeyError):
        timing.calls_between([{}.popitem], time.perf_counter(), time.perf_counter() + 5)


def test_a_server_that_does_not_stop_is_told_of_with_what_was_measured(monkeypatch, capsys):
    class Stuck:
        def close(self):
            raise AssertionError('the server did not stop')

    class Quick(Recorded):
        def __init__(self, scene, quick):
            Recorded.__init__(self)
    monkeypatch.setattr(runner, 'Stage', Stuck)
    monkeypatch.setattr(runner, 'machine', lambda scene: {})
    monkeypatch.setattr(runner, 'CASES', [Quick])
    options = command.build_parser().parse_args(['--json', '--rounds', '1'])
    assert runner.bench(options, lambda line: None) == 1
    told = json.loads(capsys.readouterr().out)
    assert told['rows'][0]['ours'] == 2
    assert told['failures'] == [{'case': 'stop', 'side': 'ours', 'why': 'the server did not stop'}]


# -- the door ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind, tls', [('wrong', False), ('slow', True)])
def test_a_storm_at_the_door_lets_the_owner_in_and_ends_by_itself(capsys, kind, tls):
    door.storm(bq, kind, False, tls, 4, 20)
    out = capsys.readouterr().out
    visits, never = re.search(r'owner (\d+) visits, (\d+) never', out).groups()
    opened, log_kb = re.search(r'opened (\d+) \| log ([\d.]+) KB', out).groups()
    assert int(visits) > 0 and int(never) == 0 and int(opened) >= 20 and 0 < float(log_kb) < 100
