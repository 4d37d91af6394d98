"""When tasks and hooks run, and in which order."""
from datetime import date, datetime

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import A, MadeMarket, day_row, days_from, run

DAYS = days_from('2024-01-02', 60)  # a Tuesday
DATES = [datetime.strptime(day, '%Y-%m-%d').date() for day in DAYS]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    made = MadeMarket(tmp_path_factory.mktemp('market'))
    made.daily(A, [day_row(day, 10.0) for day in DAYS])
    return made.source


def schedule(frequency='day', first=DATES[0]):
    return jq.Schedule(DATES, first, frequency)


def run_days(kind, number, first=DATES[0], **more):
    plan = schedule(first=first)
    plan.add(kind, 'task', '9:30', number, **more)
    return [day for day in DATES if day >= first and list(plan.walk(day))]


def each_day(source, tmp_path, body, frequency='day', days=2):
    """What a strategy wrote into g.seen, one run of `days` days."""
    text = 'from jqdata import *\n\ng.seen = []\n\n\ndef on_strategy_end(context):\n    log.info(repr(g.seen))\n' + body
    _, lines = run(tmp_path, text, source, DAYS[0], DAYS[days - 1], frequency=frequency)
    return eval(lines[-1].split(' - INFO - ')[1])


@pytest.mark.parametrize('time, minutes', [
    ('9:30', (570,)), ('09:30', (570,)), ('09:30:00', (570,)), ('01:00', (60,)), ('16:05', (965,)), ('open', (570,)),
    ('open+5m', (575,)), ('open-10m', (560,)), ('open+1h', (630,)), ('close', (900,)), ('close-30m', (870,)),
    ('before_open', (540,)), ('after_close', (930,)), ('every_bar', (570,))])
def test_times(time, minutes):
    assert jq.task_minutes(time, 'day') == minutes


@pytest.mark.parametrize('time', ['24:00', '9:60', '9', '', None, 930, 'opening', 'open+', '09:30:15', 'open-20h'])
def test_times_that_are_none(time):
    with pytest.raises(bq.BadRequest):
        jq.task_minutes(time, 'day')


def test_every_bar_of_minutes_is_240_times_and_of_no_weekly_task():
    minutes = jq.task_minutes('every_bar', 'minute')
    assert len(minutes) == 240 and (minutes[0], minutes[119], minutes[120], minutes[-1]) == (570, 689, 780, 899)
    with pytest.raises(bq.BadRequest):
        jq.task_minutes('every_bar', 'minute', 'weekly')


def test_weeks_count_trade_days_and_the_first_from_the_first_day():
    assert run_days('weekly', 1)[:3] == [date(2024, 1, 2), date(2024, 1, 8), date(2024, 1, 15)]
    assert run_days('weekly', 3)[:2] == [date(2024, 1, 4), date(2024, 1, 10)]
    assert run_days('weekly', -1)[:2] == [date(2024, 1, 5), date(2024, 1, 12)]


def test_too_short_a_week_has_its_nearest_day():
    assert run_days('weekly', 5)[:2] == [date(2024, 1, 5), date(2024, 1, 12)]
    assert run_days('weekly', -5)[:2] == [date(2024, 1, 2), date(2024, 1, 8)]


def test_months_count_trade_days():
    assert run_days('monthly', 1)[:3] == [date(2024, 1, 2), date(2024, 2, 1), date(2024, 3, 1)]
    assert run_days('monthly', -1)[:2] == [date(2024, 1, 31), date(2024, 2, 29)]
    assert run_days('monthly', 2, first=date(2024, 1, 10))[0] == date(2024, 1, 11)
    assert run_days('monthly', 31)[:2] == [date(2024, 1, 31), date(2024, 2, 29)]


def test_what_was_missed_before_its_registration_is_made_up_only_by_force():
    assert run_days('weekly', 1, registered=date(2024, 1, 10))[1] == date(2024, 1, 8)
    assert run_days('weekly', 1, registered=date(2024, 1, 10), force=True)[0] == date(2024, 1, 10)


def test_order_within_an_instant():
    plan = schedule('minute')
    plan.hooks = ['handle_data', 'before_trading_start']
    for kind, name, time, number in [('daily', 'd', '9:00', None), ('weekly', 'w', '9:00', 1),
                                     ('monthly', 'm', 'before_open', 1), ('daily', 'd2', '9:00', None),
                                     ('daily', 'bar', '9:30', None)]:
        plan.add(kind, name, time, number)
    runs = [(job.key[0], job.run) for job in plan.walk(DATES[0])]
    assert runs[:7] == [(540, 'm'), (540, 'w'), (540, 'd'), (540, 'd2'), (540, 'before_trading_start'), (570, 'bar'),
                        (570, 'handle_data')]
    assert len(runs) == 6 + 240


def test_tasks_may_come_and_go_while_the_day_is_on():
    plan, seen = schedule(), []
    plan.add('daily', 'first', '9:00')
    plan.add('daily', 'dropped', '10:00')
    for job in plan.walk(DATES[0]):
        seen.append(job.run)
        if job.run == 'first':
            plan.clear()
            plan.add('daily', 'late', '8:00')
            plan.add('daily', 'new', '11:00')
    assert seen == ['first', 'new']


@pytest.mark.parametrize('kind, more', [('daily', ''), ('weekly', '1, '), ('monthly', '1, ')])
def test_a_task_that_registers_itself_is_due_again_later(source, tmp_path, kind, more):
    seen = each_day(source, tmp_path, '''
def initialize(context):
    run_daily(task, '9:30')


def task(context):
    g.seen.append(str(context.current_dt))
    if len(g.seen) < 3:
        run_%s(task, %stime='9:30')
        run_daily(other, '9:31')


def other(context):
    g.seen.append('other')
''' % (kind, more), days=1)
    assert seen == [DAYS[0] + ' 09:30:00', 'other']


def test_saved_tasks_know_when_they_were_registered():
    plan, other = schedule(), schedule()
    plan.add('daily', run, '9:30', registered=DATES[1], after=570)
    other.restore(*plan.saved(), function_of=lambda name: run)
    assert [len(list(each.walk(day))) for each in (plan, other) for day in DATES[1:3]] == [0, 1, 0, 1]


def test_instants_of_a_daily_run(source, tmp_path):
    seen = each_day(source, tmp_path, '''
def note(name):
    def hook(context, *more):
        g.seen.append((name, str(context.current_dt), str(context.previous_date)))
    return hook


def initialize(context):
    note('initialize')(context)
    run_daily(note('night'), '01:00')
    run_daily(note('evening'), '16:05')
    run_daily(note('bar'), 'every_bar')


after_code_changed, process_initialize = note('changed'), note('process')
before_trading_start, after_trading_end, handle_data = note('before'), note('after'), note('handle')
''', days=1)
    assert [(name, moment) for name, moment, _ in seen] == [
        ('initialize', '2024-01-02 00:00:00'), ('changed', '2024-01-02 00:00:00'), ('process', '2024-01-02 00:00:00'),
        ('night', '2024-01-02 01:00:00'), ('before', '2024-01-02 09:00:00'), ('bar', '2024-01-02 09:30:00'),
        ('handle', '2024-01-02 09:30:00'), ('after', '2024-01-02 15:30:00'), ('evening', '2024-01-02 16:05:00')]


def test_instants_of_a_minute_run(source, tmp_path):
    seen = each_day(source, tmp_path, '''
def handle_data(context, data):
    g.seen.append(str(context.current_dt))
''', 'minute', 2)
    assert len(seen) == 480 and len(set(seen)) == 480
    assert (seen[0], seen[119], seen[120], seen[239]) == (
        '2024-01-02 09:30:00', '2024-01-02 11:29:00', '2024-01-02 13:00:00', '2024-01-02 14:59:00')


def test_a_start_on_a_day_off_has_its_initialize_then(source, tmp_path):
    _, lines = run(tmp_path, '''
def initialize(context):
    log.info(context.run_params.type + context.run_params.frequency)
    run_daily(lambda context: log.info('day'), '9:30')
''', source, '2024-01-06', '2024-01-08')
    assert lines == ['2024-01-06 00:00:00 - INFO - full_backtestday', '2024-01-08 09:30:00 - INFO - day']


@pytest.mark.parametrize('line', ["run_daily('name')", 'run_weekly(print, 0)', 'run_monthly(print, 32)',
                                  "run_daily(print, 'noon')", "run_weekly(print, 1, 'every_bar')"])
def test_tasks_that_cannot_be(source, tmp_path, line):
    with pytest.raises(jq.StrategyError) as caught:
        run(tmp_path, 'from jqdata import *\n\n\ndef initialize(context):\n    %s\n' % line, source, DAYS[0], DAYS[1])
    assert caught.value.line == 5 and line in caught.value.text and '建议' in caught.value.text
