"""Whole days of live runs on a simulated clock and a paper exchange: what runs when, once, and what restarts keep."""
import contextlib
import os
import types
from datetime import timedelta

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.live import Between, moment, stage

MONDAY = '2025-03-03 08:00'


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is synced matters when the power fails; here only that it is written."""
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)


HOOKS = '''
def note(name):
    def run(context):
        log.info('%s at %s, yesterday %s', name, context.current_dt, context.previous_date)
    return run

def initialize(context):
    g.count = 0
    run_daily(at_open, '9:30')
    run_daily(at_noon, '13:00')
    log.info('initialize')

def process_initialize(context):
    log.info('process_initialize')

def before_trading_start(context):
    log.info('before at %s', context.current_dt)

def at_open(context):
    g.count += 1
    log.info('open %d at %s, yesterday %s', g.count, context.current_dt, context.previous_date)

def at_noon(context):
    g.count += 1
    log.info('noon %d at %s', g.count, context.current_dt)

def handle_data(context, data):
    log.info('data at %s: %s', context.current_dt, data['000001.XSHE'].close)

def after_trading_end(context):
    log.info('after at %s', context.current_dt)
'''


def strategy_lines(stage):
    return [line.split(' - INFO - ', 1)[1] for line in stage.lines if ' - INFO - ' in line]


def test_two_days_in_their_order(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-05 08:00') as it:
        it.run(it.strategy(HOOKS))
        lines = strategy_lines(it)
        assert lines[:2] == ['initialize', 'process_initialize']
        assert [line.partition(':')[0].partition(',')[0] for line in lines[2:8]] == [
            'before at 2025-03-03 09', 'open 1 at 2025-03-03 09', 'data at 2025-03-03 09', 'noon 2 at 2025-03-03 13',
            'after at 2025-03-03 15', 'before at 2025-03-04 09']
        assert 'open 1 at 2025-03-03 09:30:00, yesterday 2025-02-28' in lines
        assert 'open 3 at 2025-03-04 09:30:00, yesterday 2025-03-03' in lines and len(lines) == 12
        assert len(it.said('（启动）')) == 1 and len(it.said('（收盘）')) == 2


def test_nothing_runs_on_days_without_trading(tmp_path):
    with stage(tmp_path, '2025-03-01 08:00', '2025-03-03 08:00') as it:
        it.run(it.strategy(HOOKS))
        assert strategy_lines(it) == ['initialize', 'process_initialize']
        assert len(it.said('不是交易日')) == 2


def test_a_restart_goes_on_where_it_was(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 12:00') as it:
        it.run(it.strategy(HOOKS))
        it.run(it.strategy(HOOKS), '2025-03-03 18:00')
        lines = strategy_lines(it)
        assert lines.count('initialize') == 1 and lines.count('process_initialize') == 2
        assert [line for line in lines if line.startswith(('open', 'noon'))] == [
            'open 1 at 2025-03-03 09:30:00, yesterday 2025-02-28', 'noon 2 at 2025-03-03 13:00:00']
        assert it.said('接着上次运行：2025-03-03 已执行到 09:30')


def test_a_late_start_skips_what_is_too_late(tmp_path):
    with stage(tmp_path, '2025-03-03 09:34', '2025-03-03 18:00') as it:
        it.run(it.strategy(HOOKS))
        lines = strategy_lines(it)
        assert 'before at 2025-03-03 09:34:00' in lines
        assert 'open 1 at 2025-03-03 09:34:00, yesterday 2025-02-28' in lines
    with stage(tmp_path, '2025-03-03 09:36', '2025-03-03 18:00') as it:
        it.directory = str(tmp_path / 'second')
        os.mkdir(it.directory)
        it.run(it.strategy(HOOKS))
        lines = strategy_lines(it)
        assert 'before at 2025-03-03 09:36:00' in lines and not [line for line in lines if line.startswith('open')]
        assert it.said('跳过 09:30 的 at_open：晚了 360 秒')


def test_minutes_that_are_too_late_are_told_in_one_line(tmp_path):
    text = """
    def initialize(context):
        run_daily(each, 'every_bar')
        run_daily(other, '10:00')

    def each(context):
        log.info('each at %s', context.current_dt)

    def other(context):
        pass
    """
    with stage(tmp_path, '2025-03-03 10:09:30', '2025-03-03 10:10:30') as it:
        it.run(it.strategy(text), frequency='minute')
        assert [line.split(' ', 2)[2] for line in it.said('跳过')] == [
            '跳过 09:30 到 10:04 的 each，共 35 次：晚了 2370 秒，超过 300 秒',
            '跳过 10:00 的 other：晚了 570 秒，超过 300 秒', '跳过 10:05 到 10:08 的 each，共 4 次：有更近的一次']
        assert strategy_lines(it) == ['each at 2025-03-03 10:09:00', 'each at 2025-03-03 10:10:00']


@pytest.mark.parametrize('start, task, coming', [
    ('2025-03-02 12:00', '9:30', '2025-03-03 09:30 trade'), ('2025-03-03 08:00', '9:30', '2025-03-03 09:30 trade'),
    ('2025-03-03 09:36', '9:30', '2025-03-04 09:30 trade'), ('2025-03-07 20:00', '14:50', '2025-03-10 14:50 trade')])
def test_when_it_is_ready_it_tells_what_comes_next(tmp_path, start, task, coming):
    text = 'def initialize(context):\n    run_daily(trade, %r)\n\ndef trade(context):\n    pass\n' % task
    with stage(tmp_path, start, start[:-2] + '55') as it:
        it.run(it.strategy(text))
        assert it.said('已就绪；下一个任务：%s；' % coming)


def test_when_nothing_comes_next_that_is_told(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 08:10') as it:
        it.run(it.strategy('def initialize(context):\n    pass\n'))
        assert it.said('已就绪；40 天之内没有定时任务；')


def test_lines_of_the_log_bear_the_time_of_the_clock(tmp_path):
    text = HOOKS + """
def at_open(context):
    order('000001.XSHE', 100)
    log.info('at_open %s', context.current_dt)
"""
    with stage(tmp_path, MONDAY, '2025-03-03 09:35') as it:
        def slow(method, *args, **kwargs):
            it.clock.set(it.clock.now() + timedelta(seconds=75))
            return method(*args, **kwargs)
        it.run(it.strategy(text), remote=Between(it.broker, place_order=slow))
        assert it.said('at_open 2025-03-03 09:30:00')[0].startswith('2025-03-03 09:31:15 - INFO')
        assert it.said('委托号')[0].startswith('2025-03-03 09:31:15 - INFO')


def test_a_clock_that_goes_back_repeats_nothing(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 18:00') as it:
        it.clock.at(moment('2025-03-03 10:00'), lambda: it.clock.step(-3600))
        it.clock.at(moment('2025-03-03 14:00'), lambda: it.clock.step(-30 * 3600))
        it.run(it.strategy(HOOKS), '2025-03-03 18:00')
        lines = strategy_lines(it)
        assert [line.split(' at ')[0] for line in lines[2:]] == ['before', 'open 1', 'data', 'noon 2', 'after']
        assert it.said('时钟退到了 2025-03-02 08:00')


def test_a_job_is_on_disk_before_it_runs_and_after(tmp_path, monkeypatch):
    fire, seen = jq.LiveSession.fire, []

    def look(session, job, now):
        seen.append((jq.LiveState.read(str(tmp_path)).running, job.key))
        fire(session, job, now)
    monkeypatch.setattr(jq.LiveSession, 'fire', look)
    with stage(tmp_path, MONDAY, '2025-03-03 18:00') as it:
        it.run(it.strategy(HOOKS))
        assert len(seen) == 5 and all(running == key for running, key in seen)
        state = jq.LiveState.read(str(tmp_path))
        assert state.running is None and state.cursor == seen[-1][1]


def test_a_failing_strategy_ends_with_its_own_line(tmp_path):
    text = HOOKS.replace('    g.count += 1\n    log.info(\'noon', '    g.count += 1\n    1 / 0\n    log.info(\'noon')
    with stage(tmp_path, MONDAY, '2025-03-03 18:00') as it:
        with pytest.raises(jq.StrategyError, match='ZeroDivisionError') as caught:
            it.run(it.strategy(text))
        assert caught.value.line is not None and '1 / 0' in caught.value.text
        it.run(it.strategy(HOOKS), '2025-03-03 18:00')
        lines = strategy_lines(it)
        assert not [line for line in lines if line.startswith('noon')], 'a job that had begun is not repeated'
        assert lines[-1].startswith('after')


def test_a_failing_strategy_may_go_on(tmp_path):
    text = HOOKS.replace('    log.info(\'noon', '    1 / 0\n    log.info(\'noon')
    with stage(tmp_path, MONDAY, '2025-03-03 18:00') as it:
        it.run(it.strategy(text), on_error='continue')
        assert [line for line in it.lines if 'ZeroDivisionError' in line]
        assert strategy_lines(it)[-1].startswith('after')


KEEPING = '''
class Memory:
    def __init__(self, n):
        self.n = n

def initialize(context):
    set_option('use_real_price', True)
    set_order_cost(OrderCost(open_commission=0.0001, min_commission=1), 'stock')
    set_benchmark('000300.XSHG')
    set_universe(['000001.XSHE'])
    log.set_level('strategy', 'info')
    g.memory, g.queue, g.open = Memory(5), [1, 2], open
    g.stream = open(__file__)
    context.own = {'a': 1}

def process_initialize(context):
    run_daily(late, '14:00')
    log.info('%s %s %s %s', g.memory.n, g.queue, context.own, hasattr(g, 'stream'))

def late(context):
    g.memory.n += 1
'''


def test_g_and_context_and_settings_outlive_a_process(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 15:00') as it:
        it.run(it.strategy(KEEPING))
        run = it.run(it.strategy(KEEPING), '2025-03-04 18:00')
        assert strategy_lines(it) == ["5 [1, 2] {'a': 1} True", "6 [1, 2] {'a': 1} False"]
        session = run.session
        assert len(session.schedule.saved()[0]) == 1, 'a task of process_initialize is there once'
        assert session.options.use_real_price and session.costs.cost('000001.XSHE').min_commission == 1
        assert list(session.benchmark) == ['000300.XSHG'] and session.view.universe == ['000001.XSHE']
        assert session.log.levels['strategy'] == 20 and session.g.memory.n == 7
        assert len(it.said('stream 不能保存')) == 1, 'said once, not with every save'


def test_changed_code_is_told(tmp_path):
    more = HOOKS + '\ndef after_code_changed(context):\n    log.info("changed")\n'
    with stage(tmp_path, MONDAY, '2025-03-03 12:00') as it:
        it.run(it.strategy(HOOKS))
        it.run(it.strategy(more), '2025-03-03 14:00')
        it.run(it.strategy(more), '2025-03-03 18:00')
        lines = strategy_lines(it)
        assert [line.split(' at ')[0] for line in lines[2:]] == [
            'before', 'open 1', 'data', 'changed', 'process_initialize', 'noon 2', 'process_initialize', 'after']
        assert not it.said('没有 after_code_changed')


def test_changed_code_that_starts_nothing_anew_is_told_once(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 12:00') as it:
        it.run(it.strategy(HOOKS))
        it.run(it.strategy(HOOKS.replace("'13:00'", "'14:00'")), '2025-03-03 12:10')
        assert it.said('没有 after_code_changed：initialize 不重做')
        it.run(it.strategy(HOOKS.replace("'13:00'", "'14:00'")), '2025-03-03 18:00')
        assert len(it.said('没有 after_code_changed')) == 1
        assert 'noon 2 at 2025-03-03 13:00:00' in strategy_lines(it)


def rewritten(stage, change):
    """Changes what the state keeps of the strategy, as an older or another program would have left it."""
    state = jq.LiveState.read(stage.directory)
    change(state.kept)
    state.save()


@pytest.mark.parametrize('change', [
    lambda kept: kept['settings'].pop('costs'), lambda kept: kept['settings'].update(costs=b'gone'),
    lambda kept: kept['settings'].clear(),
    lambda kept: [kept.pop(name) for name in ('settings', 'context', 'subscribed')]])
def test_settings_that_a_state_lacks_are_the_defaults(tmp_path, change):
    text = KEEPING.replace("context.own)", "getattr(context, 'own', None))").replace(', context.own, ', ', 0, ')
    with stage(tmp_path, MONDAY, '2025-03-03 15:00') as it:
        it.run(it.strategy(text))
        rewritten(it, change)
        session = it.run(it.strategy(text), '2025-03-04 18:00').session
        assert session.g.memory.n == 7 and session.costs.cost('000001.XSHE').min_commission == 5


def test_what_cannot_be_read_back_is_told(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 15:00') as it:
        it.run(it.strategy(KEEPING))
        rewritten(it, lambda kept: kept['settings'].update(costs=b'gone'))
        it.run(it.strategy(KEEPING), '2025-03-03 15:10')
        assert len(it.said('上次保存的 costs 读不回来')) == 1


RENEWING = HOOKS + '''
def after_code_changed(context):
    unschedule_all()
    run_daily(at_noon, '13:00')
'''


def test_tasks_that_changed_code_makes_anew_are_there(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 12:00') as it:
        it.run(it.strategy(HOOKS))
        run = it.run(it.strategy(RENEWING), '2025-03-03 18:00')
        assert [row[1] for row in run.session.schedule.saved()[0]] == ['at_noon']
        assert [line for line in strategy_lines(it) if line.startswith('noon')]


BUYS_ON_CHANGE = HOOKS + """
def after_code_changed(context):
    order('000001.XSHE', 100)
"""


def test_changed_code_that_ordered_is_done_with_before_what_follows_fails(tmp_path):
    failing = BUYS_ON_CHANGE + 'def process_initialize(context):\n    1 / 0\n'
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 10:00') as it:
        it.run(it.strategy(HOOKS))
        for _ in range(3):
            with pytest.raises(jq.StrategyError):
                it.run(it.strategy(failing), '2025-03-03 12:00')
        assert len(it.broker.get_orders()) == 1


def test_changed_code_that_ordered_and_was_cut_short_is_not_repeated(tmp_path):
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 10:00') as it:
        it.run(it.strategy(HOOKS))
        text = BUYS_ON_CHANGE + '    1 / 0\n'
        with pytest.raises(jq.StrategyError):
            it.run(it.strategy(text), '2025-03-03 12:00')
        it.run(it.strategy(text), '2025-03-03 12:00')
        assert len(it.broker.get_orders()) == 1 and it.said('after_code_changed 没有做完就结束了')


@pytest.mark.parametrize('day', ['2025-03-03 12:00', '2025-03-04 12:00'])
def test_changed_code_that_ordered_and_was_cut_short_stays_done_however_the_starts_after_it_end(tmp_path, day):
    text = BUYS_ON_CHANGE + '    1 / 0\n\ndef process_initialize(context):\n    1 / 0\n'
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 10:00') as it:
        it.run(it.strategy(HOOKS))
        for now in ('2025-03-03 10:00', day, day):
            it.clock.step((moment(now) - it.clock.now()).total_seconds())
            with pytest.raises(jq.StrategyError):
                it.run(it.strategy(text), '2025-03-04 15:00')
        assert jq.LiveState.read(it.directory).number == 1


STARTING = 'def initialize(context):\n    pass\n\ndef process_initialize(context):\n    %s\n'


def test_a_start_that_ordered_and_failed_is_not_repeated_until_the_strategy_is_mended(tmp_path):
    """Else whoever restarts it each minute orders each minute."""
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 10:00') as it:
        it.run(it.strategy(STARTING % 'pass'))
        it.clock.until = moment('2025-03-03 12:00')
        failing = it.strategy(STARTING % "order('000001.XSHE', 100)\n    1 / 0")
        with pytest.raises(jq.StrategyError):
            it.run(failing)
        with pytest.raises(bq.ConfigError, match='process_initialize 没有做完'):
            it.run(failing)
        it.run(it.strategy(STARTING % "order('000001.XSHE', 200)"), '2025-03-03 10:10')
        it.run(it.strategy(STARTING % "order('000001.XSHE', 200)"), '2025-03-03 10:20')
        assert [row['amount'] for row in it.broker.get_orders()] == [100, 200, 200], 'each start that goes well orders'


def test_changed_code_that_failed_without_orders_runs_again(tmp_path):
    text = HOOKS + 'def after_code_changed(context):\n    log.info("changed")\n    1 / NUMBER\n'
    with stage(tmp_path, MONDAY, '2025-03-03 09:10') as it:
        it.run(it.strategy(HOOKS))
        for number in (0, 0, 1):
            with contextlib.suppress(jq.StrategyError):
                it.run(it.strategy(text.replace('NUMBER', str(number))), '2025-03-03 09:20')
        assert strategy_lines(it).count('changed') == 3


def test_of_a_job_that_was_cut_short_g_is_what_it_was_before(tmp_path, monkeypatch):
    """What the strategy itself remembers is kept with the end of a job: it says so, and looks at its orders."""
    class Gone(BaseException):
        pass
    end_job = jq.LiveState.end_job

    def end(state, kept):
        if state.cursor[0] == 570:
            raise Gone
        end_job(state, kept)
    with stage(tmp_path, MONDAY, '2025-03-03 09:20') as it:
        path = it.strategy(HOOKS)
        it.run(path)
        with monkeypatch.context() as dying:
            dying.setattr(jq.LiveState, 'end_job', end)
            with pytest.raises(Gone):
                it.run(path, '2025-03-03 18:00')
        run = it.run(path, '2025-03-03 18:00')
        assert run.session.g.count == 1 and len([line for line in strategy_lines(it) if 'open 1' in line]) == 1
        assert it.said('任务 09:30 执行中结束')


# -- the wall clock and its owner ----------------------------------------------------------------------------------
def test_a_machine_that_sleeps_over_a_day_s_end_makes_nothing_up(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-04 12:00') as it:
        it.clock.at(moment('2025-03-03 10:00'), lambda: it.clock.step(23 * 3600))
        it.run(it.strategy(HOOKS))
        assert [line.split(',')[0].split(': ')[0] for line in strategy_lines(it)[2:]] == [
            'before at 2025-03-03 09:00:00', 'open 1 at 2025-03-03 09:30:00', 'data at 2025-03-03 09:30:00',
            'before at 2025-03-04 09:00:00', 'open 2 at 2025-03-04 09:30:00', 'data at 2025-03-04 09:30:00']
        assert it.said('2025-03-03 还有 2 个任务没有做，过了当天不再补做：at_noon、after_trading_end')


@pytest.mark.parametrize('hours, words', [(20, '过了当天不再补做'), (1, '跳过 13:00 的 at_noon：晚了 3600 秒')])
def test_a_machine_that_sleeps_while_the_account_is_read_runs_nothing_late(tmp_path, hours, words):
    def sleepy(read):
        if it.clock.now() == moment('2025-03-03 13:00'):
            it.clock.step(hours * 3600)
        return read()
    with stage(tmp_path, MONDAY, '2025-03-04 12:00') as it:
        it.run(it.strategy(HOOKS), remote=Between(it.broker, get_account_info=sleepy))
        assert not [line for line in strategy_lines(it) if line.startswith('noon')] and it.said(words)


def test_ticks_of_another_day_are_not_told(tmp_path):
    with stage(tmp_path, '2025-03-03 09:50', '2025-03-03 10:30') as it:
        run = it.make(it.strategy(TICKS.replace("subscribe(['000001.XSHE', '510300.XSHG'], 'tick')", 'pass')))

        def push():
            run.session.subscribed.update(['000001.XSHE', '000002.XSHE', '600000.XSHG'])
            for code, dt in (('000001.XSHE', '2025-02-28 14:59:57'), ('000002.XSHE', 'x'),
                             ('600000.XSHG', '2025-03-03 10:00:00')):
                run.inbox.put({'sid': code, 'last_price': 10.0, 'dt': dt})
        it.clock.at(moment('2025-03-03 10:00'), push)
        run.run()
        assert [row[0] for row in run.session.g.seen] == ['600000.XSHG'] and it.said('000002.XSHE 的推送行情没有用')


class ShortWaits:
    """As on the real clock: no wait is longer than a second, and whoever is woken up by ticks does not wait at all."""

    def __init__(self, clock):
        self.clock = clock

    def __getattr__(self, name):
        return getattr(self.clock, name)

    def wait(self, seconds, event):
        self.clock.wait(min(seconds, jq.POLL_S), event)


def test_what_cannot_be_read_is_asked_again_every_fifteen_seconds(tmp_path):
    asked = []

    def away(read, *args, **kwargs):
        if it.clock.now() >= moment('2025-03-03 09:30'):
            asked.append(it.clock.now())
            raise bq.QmtUnavailable('QMT 没有登录')
        return read(*args, **kwargs)
    with stage(tmp_path, '2025-03-03 09:20', '2025-03-03 09:32') as it:
        run = it.make(it.strategy(HOOKS), remote=Between(it.broker, get_account_info=away), patience_s=0.0)
        run.clock = ShortWaits(it.clock)
        run.run()
        pauses = [(after - before).total_seconds() for before, after in zip(asked, asked[1:])]
        assert len(asked) == 8 and set(pauses) == {jq.RETRY_S}


def test_a_calendar_that_cannot_be_read_is_asked_again_every_fifteen_seconds(tmp_path):
    asked = []

    def away(read, *args, **kwargs):
        if it.clock.now() >= moment('2025-03-04 00:00'):
            asked.append(it.clock.now())
            raise bq.DataUnavailable('没有日历')
        return read(*args, **kwargs)
    with stage(tmp_path, '2025-03-03 23:50', '2025-03-04 00:02') as it:
        provider = Between(bq.RemoteQmtProvider(connection=it.connection), get_trade_days=away)
        run = it.make(it.strategy(HOOKS), provider=provider)
        run.clock = ShortWaits(it.clock)
        run.run()
        pauses = [(after - before).total_seconds() for before, after in zip(asked, asked[1:])]
        assert len(asked) == 8 and set(pauses) == {jq.RETRY_S}


def test_a_clock_that_goes_back_keeps_the_overviews(tmp_path):
    with stage(tmp_path, '2025-03-03 09:00', '2025-03-03 10:59') as it:
        it.clock.at(moment('2025-03-03 10:10'), lambda: it.clock.step(-3600))
        it.run(it.strategy(HOOKS), overview_minutes=30)
        assert [line.split()[1] for line in it.said('（定时）')] == [
            '09:30:00', '10:00:00', '09:30:00', '10:00:00', '10:30:00']


@pytest.mark.parametrize('other', [dict(account='99/'), dict(dry_run=True), dict(frequency='minute')])
def test_a_directory_belongs_to_one_run(tmp_path, other):
    with stage(tmp_path, MONDAY, '2025-03-03 09:10') as it:
        it.run(it.strategy(HOOKS))
        with pytest.raises(bq.ConfigError, match='属于另一次运行') as caught:
            it.run(it.strategy(HOOKS), **other)
        assert 'dry_run' not in other or '方式是 真实委托，不是 演练（--dry-run）' in caught.value.message
        with pytest.raises(bq.ConfigError, match='属于另一次运行'):
            it.run(it.strategy(HOOKS, 'other.py'))


def test_a_stop_file_ends_it_and_keeps_it_from_starting(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 18:00') as it:
        path = tmp_path / 'stop'
        it.clock.at(moment('2025-03-03 11:00'), lambda: path.write_text(''))
        it.run(it.strategy(HOOKS))
        assert it.clock.now() == moment('2025-03-03 11:00') and it.said('已停止')
        with pytest.raises(bq.ConfigError, match='停止文件'):
            it.run(it.strategy(HOOKS))


def test_the_overview_comes_on_its_schedule(tmp_path):
    with stage(tmp_path, '2025-03-03 09:00', '2025-03-03 10:59') as it:
        it.run(it.strategy(HOOKS), overview_minutes=30)
        assert [line.split()[1] for line in it.said('（定时）')] == ['09:30:00', '10:00:00', '10:30:00']


def test_the_overview_of_the_close_is_tried_until_the_account_can_be_read(tmp_path):
    asked = []

    def away(read):
        if moment('2025-03-03 15:00') <= it.clock.now() < moment('2025-03-03 15:10'):
            asked.append(it.clock.now())
            raise bq.QmtUnavailable('QMT 没有登录')
        return read()
    with stage(tmp_path, '2025-03-03 14:00', '2025-03-03 18:00') as it:
        it.run(it.strategy(HOOKS), remote=Between(it.broker, get_account_info=away), patience_s=0.0)
        assert [line.split()[1] for line in it.said('（收盘）')] == ['15:10:00']
        assert len(it.said('账户读不到')) == 1 and len(asked) == 40 and strategy_lines(it)[-1].startswith('after')


def test_a_server_that_does_not_name_the_account_is_refused(tmp_path):
    for answer in ({}, {'account_id': None}, {'account_id': ''}):
        with pytest.raises(bq.ProtocolError, match='哪个账户'):
            jq._account_name(types.SimpleNamespace(get_account_info=lambda: answer, sub_account_id=None))


def test_the_overview_is_a_table(tmp_path):
    """Its columns line up where a Chinese character takes two places."""
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 10:00') as it:
        it.run(it.strategy("def initialize(context):\n    order('000001.XSHE', 100)\n    order('510300.XSHG', 2000)\n"))
        it.run(it.strategy(HOOKS, 'strategy.py'), '2025-03-03 10:10')
        table = it.said('（启动）')[-1].split('\n')[3:]
        assert len(table) == 4 and '平安银行' in '\n'.join(table) and len({bq.text_width(line) for line in table}) == 1


def test_an_initialize_that_ordered_and_failed_is_not_repeated(tmp_path):
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 18:00') as it:
        with pytest.raises(jq.StrategyError):
            it.run(it.strategy("def initialize(context):\n    order('000001.XSHE', 100)\n    1 / 0\n"))
        with pytest.raises(bq.ConfigError, match='initialize 没有做完'):
            it.run(it.strategy("def initialize(context):\n    order('000001.XSHE', 100)\n"))
        assert len(it.broker.get_orders()) == 1


def test_an_initialize_that_failed_without_orders_runs_again(tmp_path):
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 09:45') as it:
        with pytest.raises(jq.StrategyError):
            it.run(it.strategy('def initialize(context):\n    1 / 0\n'))
        assert it.run(it.strategy('def initialize(context):\n    g.n = 1\n')).session.g.n == 1


# -- ticks -----------------------------------------------------------------------------------------------------------
TICKS = '''
def initialize(context):
    g.seen = []
    subscribe(['000001.XSHE', '510300.XSHG'], 'tick')

def handle_tick(context, tick):
    g.seen.append((tick.code, tick.current, tick.datetime, context.current_dt, context.portfolio.available_cash))
    if len(g.seen) == 1:
        unsubscribe('510300.XSHG', 'tick')

def process_initialize(context):
    log.info('subscribed')
'''


class PatientClock:
    """Lets real ticks arrive before it moves on."""

    def __init__(self, clock):
        self.clock = clock

    def __getattr__(self, name):
        return getattr(self.clock, name)

    def wait(self, seconds, event):
        if not event.wait(1.0):
            self.clock.wait(seconds, event)


def test_pushed_ticks_reach_the_strategy_between_jobs(tmp_path):
    with stage(tmp_path, '2025-03-03 10:00', '2025-03-03 23:00') as it:
        run = it.make(it.strategy(TICKS), stopping=lambda: len(vars(run.session.g).get('seen', ())) >= 5)
        run.clock = PatientClock(it.clock)
        run.run()
        codes = [row[0] for row in run.session.g.seen]
        assert codes[-3:] == ['000001.XSHE'] * 3 and run.session.subscribed == {'000001.XSHE'}
        code, current, told, now, cash = run.session.g.seen[-1]
        assert current > 0 and told == now == moment('2025-03-03 10:00') and cash == 1000000.0
        again = it.make(it.strategy(TICKS), stopping=lambda: len(vars(again.session.g).get('seen', ())) >= 7)
        again.clock = PatientClock(it.clock)
        again.run()
        assert again.session.subscribed == {'000001.XSHE'} and len(again.session.g.seen) >= 7


def test_of_ticks_that_wait_the_newest_of_each_security_is_told(tmp_path):
    with stage(tmp_path, '2025-03-03 09:50', '2025-03-03 10:30') as it:
        run = it.make(it.strategy(TICKS.replace("subscribe(['000001.XSHE', '510300.XSHG'], 'tick')", 'pass')))

        def push():
            run.session.subscribed.add('000001.XSHE')
            for price in (10.0, 10.1, 10.2):
                run.inbox.put({'sid': '000001.XSHE', 'last_price': price, 'dt': '2025-03-03 10:00:00'})
                run.inbox.put({'sid': '600000.XSHG', 'last_price': price, 'dt': '2025-03-03 10:00:00'})
        it.clock.at(moment('2025-03-03 10:00'), push)
        run.run()
        assert [row[:2] for row in run.session.g.seen] == [('000001.XSHE', 10.2)]


def test_only_ticks_can_be_subscribed(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 09:10') as it:
        with pytest.raises(jq.StrategyError, match='subscribe 只支持 tick'):
            it.run(it.strategy("def initialize(context):\n    subscribe('000001.XSHE', '1m')\n"))


def test_what_only_a_backtest_can_do_says_so(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 09:10') as it:
        with pytest.raises(jq.StrategyError, match='inout_cash 只用于回测'):
            it.run(it.strategy('def initialize(context):\n    inout_cash(1000)\n'))


def test_parameters_that_nobody_reads_start_nothing(tmp_path):
    with stage(tmp_path, MONDAY, '2025-03-03 10:00') as it:
        path = it.strategy('N = 1\ndef initialize(context):\n    g.M = 1\n    log.info("N %d", N)\n')
        with pytest.raises(bq.ConfigError) as caught:
            it.run(path, params={'P': 2})
        assert 'P' in caught.value.message and '可用：N' == caught.value.hint[-4:] and not it.said('initialize')
        it.run(path, params={'N': 2, 'M': 3})
        assert strategy_lines(it) == ['N 2'] and it.said('参数 M 没有起作用')


def test_a_parameter_that_changes_with_a_restart_is_told_as_it_is(tmp_path):
    text = """
    N = 1

    def initialize(context):
        g.K = g.K

    def process_initialize(context):
        log.info('%s %s %s', N, g.N, g.K)

    def handle_data(context, data):
        pass
    """
    with stage(tmp_path, '2025-03-03 16:00', '2025-03-03 16:10') as it:
        it.run(it.strategy(text), params={'N': 2, 'K': 5})
        it.run(it.strategy(text), '2025-03-03 16:20', params={'N': 3, 'K': 6})
        assert strategy_lines(it) == ['2 2 5', '3 2 5']
        assert it.said('参数 N：模块里的 N 已是 3，但 g.N 仍是策略自己给的（或上次运行留下的）2')
        assert it.said('参数 K 没有起作用') and not it.said('参数 N 没有起作用') and not it.said('N、')


def test_a_file_in_which_nothing_can_run_is_refused(tmp_path):
    with stage(tmp_path, MONDAY) as it:
        path = it.strategy('def initialise(context):\n    run_daily(initialise, "9:30")\n')
        for _ in range(2):
            with pytest.raises(bq.ConfigError) as caught:
                it.run(path, '2025-03-03 16:00')
            assert '没有 initialize，也没有 handle_data' in caught.value.message
        it.run(it.strategy(HOOKS), '2025-03-03 18:00')
        assert strategy_lines(it)[:1] == ['initialize'], 'what was refused counts as no start'


@pytest.mark.parametrize('text, words', [
    ('def initialise(context): pass\n\ndef handle_tick(context, tick): pass\n', '没有 initialize：按默认设置运行'),
    ('def initialize(context): pass\n', '什么也不会运行'),
    ('def initialize(context): pass\n\ndef handle_tick(context, tick): pass\n', '')])
def test_hooks_that_are_missing_are_told(tmp_path, text, words):
    with stage(tmp_path, MONDAY, '2025-03-03 08:10') as it:
        it.run(it.strategy(text))
        told = [line for line in it.lines if 'initialize' in line]
        assert len(told) == bool(words) and all(words in line for line in told)


def test_a_stop_before_the_beginning_starts_nothing(tmp_path):
    with stage(tmp_path, MONDAY) as it:
        it.run(it.strategy(HOOKS))
        assert strategy_lines(it) == [] and it.said('已停止')
        it.run(it.strategy(HOOKS), '2025-03-03 09:10')
        assert strategy_lines(it)[0] == 'initialize'
