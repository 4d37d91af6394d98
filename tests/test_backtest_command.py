"""The backtest command: what it prints, what it writes, what it returns; the README's chapter; sweeps."""
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import _thread

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN, serving
from tests.engine import REAL, strategy_path, written

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULE = os.path.abspath(bq.__file__)
SPAN = ['--start', '2018-01-02', '--end', '2018-03-30', '--data-provider', REAL]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(str(tmp_path))
    for name in [name for name in os.environ if name.startswith(('QMT_', 'BT_', 'DEFAULT_'))]:
        monkeypatch.delenv(name)


def run(capsys, *arguments):
    code = bq.main(['backtest'] + list(arguments))
    return (code,) + tuple(capsys.readouterr())


def rows_of(path):
    with open(str(path), encoding='utf-8-sig', newline='') as file:
        return list(csv.DictReader(file))


def test_summary_and_files(capsys, tmp_path):
    code, out, err = run(capsys, strategy_path('moving_average'), *SPAN)
    assert code == 0 and err == ''
    assert '策略 moving_average.py：2018-01-02 至 2018-03-30' in out and '夏普比率' in out and '100%' in out
    directory = tmp_path / 'backtests' / 'moving_average_2018-01-02_2018-03-30'
    assert {'report.html', 'trades.csv', 'daily_records.csv', 'metrics.csv', 'positions.csv', 'orders.csv',
            'dividends.csv', 'monthly_returns.csv', 'annual_returns.csv', 'records.csv'} == set(
                os.listdir(str(directory)))
    days = rows_of(directory / 'daily_records.csv')
    result = jq.backtest(strategy_path('moving_average'), '2018-01-02', '2018-03-30', provider=REAL)
    assert [float(row['equity']) for row in days] == pytest.approx(result.equity, abs=1e-6)
    with open(str(directory / 'report.html'), encoding='utf-8') as file:
        assert 'moving_average.py' in file.read()


def test_what_is_not_wanted_is_not_written(capsys, tmp_path):
    code, out, _ = run(capsys, strategy_path('moving_average'), '--no-html', '--no-csv', '--log', 'run.log', *SPAN)
    assert code == 0 and os.listdir(str(tmp_path)) == ['run.log'] and '已写入' not in out
    code, _, _ = run(capsys, strategy_path('moving_average'), '--no-html', '--output', 'here', *SPAN)
    assert code == 0 and not os.path.exists('here/report.html') and os.path.exists('here/trades.csv')


def test_a_strategy_that_does_not_load_shows_no_table(capsys, tmp_path):
    for text in ('def initialize(context)\n    pass\n', 'import talib_is_missing\n'):
        code, out, _ = run(capsys, written(tmp_path, text), '--output', 'here', *SPAN)
        assert code == 1 and out.lstrip().startswith('策略出错') and 'Error' in out and not os.path.exists('here')


def test_what_an_output_directory_had_is_replaced_and_that_is_said(capsys, tmp_path):
    path = written(tmp_path, 'def handle_data(context, data): pass\n')
    assert '将被这次的替换' not in run(capsys, path, '--output', 'here', '--no-html', *SPAN)[1]
    assert run(capsys, path, '--output', 'here', '--no-html', *SPAN)[1].startswith('结果目录 here 里已有结果，将被这次的替换')


def test_a_sweep_that_ends_before_its_first_point_says_so(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt
        yield
    monkeypatch.setattr(jq, '_grid_figures', interrupted)
    code, out, _ = run(capsys, strategy_path('moving_average'), '--grid', 'FAST=3,5', *SPAN)
    assert code == bq.Exit.INTERRUPTED and '参数扫描：2 组' in out and '2 组里一组也没有完成' in out


def test_members_of_an_index_are_in_no_file_and_that_has_a_way_out(capsys, tmp_path):
    path = written(tmp_path, 'def handle_data(context, data):\n    get_index_stocks("000300.XSHG")\n')
    assert '写明代码的列表' in run(capsys, path, '--no-html', '--no-csv', *SPAN)[1]


def test_parameters_cash_benchmark(capsys, tmp_path):
    code, out, _ = run(capsys, strategy_path('moving_average'), '--param', 'FAST=3', '--param', 'SLOW=9', '--cash',
                       '500000', '--benchmark', '000938.XSHE', '--output', 'here', *SPAN)
    assert code == 0 and '投入 500,000.00' in out
    with open('here/report.html', encoding='utf-8') as file:
        page = file.read()
    assert '参数 FAST' in page and '000938.XSHE' in page


def test_a_failing_strategy_says_where_and_leaves_its_days(capsys, tmp_path):
    path = written(tmp_path, '''
    def handle_data(context, data):
        if context.current_dt.day > 10:
            raise ValueError('no luck')
    ''')
    code, out, _ = run(capsys, path, '--output', 'here', *SPAN)
    assert code == 1 and 'ValueError: no luck' in out and '第 4 行' in out and '没有走完' in out
    assert len(rows_of('here/daily_records.csv')) == 7
    code, out, _ = run(capsys, path, '--keep-going', '--no-csv', '--no-html', *SPAN)
    assert code == 0 and out.count('ValueError: no luck') > 5


@pytest.mark.parametrize('arguments, word', [
    (['missing.py'] + SPAN, 'missing.py'), ([strategy_path('moving_average'), '--param', 'FASTER=1'] + SPAN, 'FAST、'),
    ([strategy_path('moving_average'), '--param', 'FAST=1', '--param', 'FAST=2'] + SPAN, '重复'),
    ([strategy_path('moving_average'), '--grid', 'FAST=1,2', '--grid', 'SLOWER=1,2'] + SPAN, 'SLOWER'),
    ([strategy_path('moving_average'), '--grid', 'FAST=1,2', '--param', 'FAST=2'] + SPAN, '--param 与 --grid'),
    ([strategy_path('moving_average'), '--benchmark', '300'] + SPAN, '300'),
    ([strategy_path('moving_average'), '--cash', '0'] + SPAN, 'cash'),
    ([strategy_path('moving_average'), '--cash', 'nan'] + SPAN, 'cash'),
    ([strategy_path('moving_average'), '--start', '2018-02-30'] + SPAN[2:], '2018-02-30'),
    ([strategy_path('moving_average'), '--start', '2018-04-02'] + SPAN[2:], '开始不晚于结束'),
    ([strategy_path('moving_average'), '--start', '2018-01-06', '--end', '2018-01-07'] + SPAN[4:],
     '最近的交易日是 2018-01-05、2018-01-08'),
    ([strategy_path('moving_average'), '--output', strategy_path('moving_average')] + SPAN, '不是目录'),
    ([strategy_path('moving_average'), '--grid', 'FAST=5,'] + SPAN, '空的或重复'),
    ([strategy_path('moving_average'), '--grid', 'FAST=5,5'] + SPAN, '空的或重复'),
    ([strategy_path('moving_average'), '--start', '2030-01-01', '--end', '2030-01-07'] + SPAN[4:], '到 2020-04-10 为止'),
    ([strategy_path('moving_average'), '--start', '1990-01-01', '--end', '1990-02-02'] + SPAN[4:], '1990-02-03 之前没有'),
    ([strategy_path('moving_average'), '--benchmark', 'foo:bar'] + SPAN, 'foo:bar'),
    ([strategy_path('moving_average'), '--benchmark', 'foo:bar', '--grid', 'FAST=1,2'] + SPAN, 'foo:bar'),
    ([strategy_path('moving_average'), '--benchmark', '000905.XSHG'] + SPAN, '000905.XSHG'),
    ([strategy_path('moving_average'), '--param', 'FAST'] + SPAN, '--param'),
    ([strategy_path('moving_average'), '--grid', 'FAST'] + SPAN, '--grid'),
    ([strategy_path('moving_average')] + SPAN[:-1] + ['csv:nowhere'], 'nowhere'),
    ([strategy_path('moving_average'), '--grid', 'FAST=1,2'] + SPAN[:-1] + ['csv:nowhere'], 'nowhere'),
    ([strategy_path('moving_average')] + SPAN[:-1] + ['paper'], 'csv:')])
def test_what_cannot_be_run_is_a_usage_error(capsys, arguments, word):
    code, _, err = run(capsys, *arguments)
    assert code == bq.Exit.USAGE and word in err


def test_the_source_may_come_from_the_environment(capsys, monkeypatch):
    """The command line goes before it; what is no source is refused by its name."""
    monkeypatch.setenv('DEFAULT_DATA_PROVIDER', REAL)
    code, out, _ = run(capsys, strategy_path('moving_average'), '--no-html', *SPAN[:4])
    assert code == 0 and '59 个交易日' in out
    monkeypatch.setenv('DEFAULT_DATA_PROVIDER', 'csv:nowhere')
    assert run(capsys, strategy_path('moving_average'), '--no-html', *SPAN)[0] == 0
    monkeypatch.setenv('DEFAULT_DATA_PROVIDER', 'tushare')
    code, _, err = run(capsys, strategy_path('moving_average'), *SPAN)
    assert code == bq.Exit.USAGE and 'DEFAULT_DATA_PROVIDER' in err and 'csv:目录' in err


@pytest.fixture
def unrun(monkeypatch):
    """No run is begun."""
    monkeypatch.setattr(jq.BacktestRun, 'run', lambda self: pytest.fail('a run was begun'))


@pytest.mark.parametrize('option', ['--benchmark', '--output', '--param'])
def test_what_would_lose_a_run_is_found_before_it(option, unrun, capsys, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    value = {'--benchmark': '300', '--output': 'file', '--param': 'FASTER=1'}[option]
    code, _, err = run(capsys, strategy_path('moving_average'), option, value, *SPAN)
    assert code == bq.Exit.USAGE and value[:6] in err and not os.path.exists('backtests')


def test_a_file_that_cannot_be_replaced_is_found_before_the_run(unrun, capsys, tmp_path):
    os.makedirs('here/trades.csv')
    code, _, err = run(capsys, strategy_path('moving_average'), '--output', 'here', *SPAN)
    assert code == bq.Exit.USAGE and 'trades.csv' in err and os.listdir('here') == ['trades.csv']


def test_what_cannot_be_written_is_told_and_the_rest_is_there(capsys, monkeypatch):
    write = jq._write_csv

    def fail(path, names, rows):
        if path.endswith('trades.csv'):
            raise jq._cannot_write(path, OSError(28, 'No space left on device'))
        return write(path, names, rows)
    monkeypatch.setattr(jq, '_write_csv', fail)
    code, out, err = run(capsys, strategy_path('moving_average'), '--output', 'here', *SPAN)
    assert code == 1 and '夏普比率' in out and err == ''
    assert re.search('写入失败：.*trades.csv：No space', out) and '（8 个 CSV 文件）' in out
    assert os.path.exists('here/report.html') and os.path.exists('here/orders.csv')


def test_every_run_has_a_directory_of_its_own(capsys):
    for _ in range(2):
        assert run(capsys, strategy_path('moving_average'), '--no-html', *SPAN)[0] == 0
    name = 'moving_average_2018-01-02_2018-03-30'
    assert sorted(os.listdir('backtests')) == [name, name + '_2']
    span = ['--start', '2018/1/2'] + SPAN[2:]
    assert run(capsys, strategy_path('moving_average'), '--no-html', *span)[0] == 0
    assert sorted(os.listdir('backtests')) == [name, name + '_2', name + '_3']


def test_a_source_that_fails_on_the_way_leaves_the_days_before(capsys, tmp_path, monkeypatch):
    ask, lost = bq.RemoteQmtProvider.get_split_dividend, bq.ConnectionLost('断了', '再连')

    def fail(self, code, start, end):
        raise lost
    monkeypatch.setattr(bq.RemoteQmtProvider, 'get_split_dividend', fail)
    path = written(tmp_path, '''
    def initialize(context):
        set_option('use_real_price', True)

    def handle_data(context, data):
        order('600519.XSHG', 100)
    ''')
    span = ['--start', '2018-06-01', '--end', '2018-06-29'] + SPAN[4:]
    code, out, err = run(capsys, path, '--output', 'here', *span)
    assert code == bq.Exit.UNREACHABLE and '断了' in err and '没有走完' in out
    assert rows_of('here/daily_records.csv')[-1]['date'] == '2018-06-14' and ask is not fail


# -- parameters ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('text, refused', [
    ('N = 1\ndef initialize(context): pass', False), ('def initialize(context):\n    g.N', False),
    ('def initialize(context):\n    getattr(g, "N", 1)', False), ('def initialize(context):\n    N = 1', True),
    ('def initialize(context):\n    g.M', True), ('def N(context): pass', True),
    ('for N in (1, 2):\n    pass', False), ('def initialize(context):\n    vars(g)', None),
    ('import strategy', None), ('from strategy import M', None), ('import math', True),
    ('def initialize(context):\n    getattr(g, context)', None)])
def test_parameters_that_nobody_reads(tmp_path, text, refused):
    strategy = jq.StrategyFile(written(tmp_path, text))
    if refused:
        with pytest.raises(bq.ConfigError) as caught:
            strategy.check_params(['N'])
        assert 'N' in caught.value.message
    else:
        assert bool(strategy.check_params(['N'])) == (refused is None)


def test_names_of_the_api_are_no_parameters(tmp_path):
    """Or the function that orders would be a number."""
    result = jq.backtest(written(tmp_path, '''
    from jqdata import *

    def handle_data(context, data):
        assert g.order == 5 and callable(order)
    '''), '2018-01-02', '2018-01-03', provider=REAL, params={'order': 5})
    assert result.finished


def test_a_parameter_that_the_strategy_overwrites_is_told(capsys, tmp_path):
    path = written(tmp_path, 'def initialize(context):\n    g.N = 5\n')
    code, out, _ = run(capsys, path, '--param', 'N=6', *SPAN)
    assert code == 0 and '参数 N 没有起作用' in out
    code, out, err = run(capsys, path, '--grid', 'N=6,7', *SPAN)
    assert code == bq.Exit.USAGE and '参数 N 不起作用' in err and not out
    code, _, err = run(capsys, path, '--grid', 'M=6,7', *SPAN)
    assert code == bq.Exit.USAGE and err.rstrip().endswith('可用：没有')


@pytest.mark.parametrize('body, refused', [
    ('g.N = 5', True), ('g.M, g.N = 4, 5', True), ('set_params()\ndef set_params():\n    g.N = 5', True),
    ("g.N = getattr(g, 'N', 5)", False), ("if not hasattr(g, 'N'):\n        g.N = 5", False), ('g.N = int(g.N)', False),
    ('g.N += 1', False), ('g.N = N\nN = 5', False), ('pass\ndef trade(context):\n    g.N = 5', False)])
def test_a_grid_over_what_initialize_gives_is_refused(tmp_path, body, refused):
    strategy = jq.StrategyFile(written(tmp_path, 'def initialize(context):\n    %s\n' % body))
    if refused:
        with pytest.raises(bq.ConfigError):
            strategy.refuse_overwritten(['N'])
    else:
        strategy.refuse_overwritten(['N'])


def test_ctrl_c_leaves_a_report(capsys, tmp_path):
    path = written(tmp_path, '''
    def handle_data(context, data):
        if context.current_dt.month == 2:
            raise KeyboardInterrupt
    ''')
    code, out, _ = run(capsys, path, '--output', 'here', *SPAN)
    assert code == bq.Exit.INTERRUPTED and 'Ctrl-C' in out and os.path.exists('here/report.html')
    assert rows_of('here/daily_records.csv')[-1]['date'] == '2018-01-31'


@pytest.mark.parametrize('moment, names', [('compute_metrics', ()), ('write_html', ()), ('_benchmark_of', ()),
                                           ('_show_grid', ('--grid', 'N=1,2'))])
def test_ctrl_c_after_the_run_leaves_the_results_whole(capsys, tmp_path, monkeypatch, moment, names):
    """Whatever is computed or written then; all days are there and the exit code is that of a whole run."""
    path, real = written(tmp_path, 'N = 1\ndef handle_data(context, data):\n    pass\n'), getattr(jq, moment)

    def interrupted(*args, **how):
        _thread.interrupt_main()
        return real(*args, **how)
    monkeypatch.setattr(jq, moment, interrupted)
    code, out, _ = run(capsys, path, '--output', 'here', *(SPAN + list(names)))
    assert code == 0 and '没有打断它' in out and '被打断' not in out
    if names:
        assert sorted(row['N'] for row in rows_of('here/grid.csv')) == ['1', '2']
    else:
        assert rows_of('here/daily_records.csv')[-1]['date'] == '2018-03-30' and os.path.exists('here/report.html')
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_after_the_run_ends_the_command(capsys, tmp_path, monkeypatch):
    def interrupted(*args):
        _thread.interrupt_main()
        _thread.interrupt_main()
    path = written(tmp_path, 'def handle_data(context, data):\n    pass\n')
    monkeypatch.setattr(jq, 'compute_metrics', lambda result: [interrupted() for _ in range(1000)])
    assert run(capsys, path, '--output', 'here', *SPAN)[0] == bq.Exit.INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- progress ------------------------------------------------------------------------------------------------------
class Ticking:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def bar_after(seconds, done, total, columns=120):
    """What a terminal shows: the first day was over after 3 s, `done` of them `seconds` later."""
    clock, out = Ticking(), []
    screen = jq.Screen(out.append, True, clock=clock, columns=lambda: columns)
    clock.now = 3.0
    screen.progress(1, total, '2018-01-02', 1000000.0)
    clock.now += seconds
    screen.progress(done, total, '2018-01-03', 1000000.0)
    return out[-1].split('\r')[-1]


def test_what_takes_long_after_the_last_day_is_named_on_a_terminal():
    for interactive in (True, False):
        out = []
        screen = jq.Screen(out.append, interactive, columns=lambda: 120)
        with screen.doing('正在写'):
            screen.say('a line')
        assert ''.join(out).replace('\r', '|').replace(' ' * 6, '~') == (
            '正在写|~|a line\n正在写|~|' if interactive else 'a line\n')


def test_a_terminal_has_one_bar_below_the_lines():
    clock, out = Ticking(), []
    screen = jq.Screen(out.append, True, clock=clock, columns=lambda: 120)
    clock.now = 2.0
    screen.progress(1, 100, '2018-01-02', 1000000.0)
    assert '日/秒' not in out[-1]
    clock.now = 4.0
    screen.progress(25, 100, '2018-01-03', 1000000.0)
    assert '[######..................]  25.0%' in out[-1] and '12 日/秒' in out[-1] and '剩余 0:06' in out[-1]
    assert '1,000,000.00' in out[-1] and '\n' not in out[-1]
    drawn = len(out)
    screen.progress(26, 100, '2018-01-04', 1.0)
    assert len(out) == drawn  # too soon to draw again
    screen.line('a line')
    assert re.match(r'\r +\ra line\n\[#', out[-1])
    screen.finish()
    assert re.fullmatch(r'\r +\r', out[-1])


@pytest.mark.parametrize('seconds, done, rate, left', [
    (10.0, 501, '50 日/秒', '0:30'), (240.0, 5, '0.017 日/秒', '33:15:00'), (5.0, 11, '2 日/秒', '16:35')])
def test_the_rate_and_the_time_left_of_fast_and_slow_runs(seconds, done, rate, left):
    """Of days that take a minute each, as with minute bars, too; loading is no part of it."""
    text = bar_after(seconds, done, 2000 + (done == 2001))
    assert rate in text and '剩余 %s ' % left in text


@pytest.mark.parametrize('seconds', [0.0, 1 / 64])
def test_a_clock_that_has_hardly_moved_tells_no_rate(seconds):
    """That of Windows goes in steps of a 64th second."""
    assert '日/秒' not in bar_after(seconds, 2001, 2001) and '100.0%' in bar_after(seconds, 2001, 2001)


@pytest.mark.parametrize('columns', [200, 80, 60, 40, 20, 10])
def test_the_bar_fits_the_terminal(columns):
    text = bar_after(10.0, 100, 200, columns)
    assert bq.text_width(text) < columns and ' 50.0%' in text
    assert ('总资产' in text) == (columns >= 60) and ('日/秒' in text) == (columns >= 80)
    assert ('[' in text) == (columns >= 20)


def test_elsewhere_there_is_a_line_for_each_tenth():
    out = []
    screen = jq.Screen(out.append, False, clock=Ticking())
    for done in range(1, 251):
        screen.progress(done, 250, '2018-01-02', 5.0)
    assert len(out) == 10 and out[0].startswith(' 10%') and all(line.endswith('\n') for line in out)


def test_and_for_each_minute_of_a_slow_run():
    clock, out = Ticking(), []
    screen = jq.Screen(out.append, False, clock=clock)
    for done in range(1, 10):
        clock.now += 31
        screen.progress(done, 1000, '2018-01-02', 5.0)
    assert len(out) == 4 and '0.032 日/秒' in out[-1] and '\r' not in ''.join(out)


def test_log_lines_cannot_move_the_cursor():
    out = []
    jq.Screen(out.append, False).line('a\x1b[2Jb\nc')
    assert '\x1b' not in ''.join(out) and ''.join(out).count('\n') == 2


# -- sweeps --------------------------------------------------------------------------------------------------------
def test_a_grid_runs_all_combinations(capsys, tmp_path):
    code, out, _ = run(capsys, strategy_path('moving_average'), '--grid', 'FAST=3,5', '--grid', 'SLOW=10,20',
                       '--output', 'here', *SPAN)
    assert code == 0
    rows = rows_of('here/grid.csv')
    assert sorted((row['FAST'], row['SLOW']) for row in rows) == [('3', '10'), ('3', '20'), ('5', '10'), ('5', '20')]
    returns = [float(row['returns']) for row in rows]
    assert returns == sorted(returns, reverse=True) and len(set(returns)) > 1
    for row in rows[:2]:
        params = {'FAST': int(row['FAST']), 'SLOW': int(row['SLOW'])}
        alone = jq.backtest(strategy_path('moving_average'), '2018-01-02', '2018-03-30', provider=REAL, params=params)
        assert float(row['returns']) == pytest.approx(jq.compute_metrics(alone).values['returns'])
    assert '4/4' in out and '策略收益' in out


def test_a_point_that_fails_is_in_the_table(capsys, tmp_path):
    path = written(tmp_path, 'N = 1\n\n\ndef initialize(context):\n    1 / N\n')
    code, out, _ = run(capsys, path, '--grid', 'N=0,1', '--output', 'here', *SPAN)
    assert code == 1 and 'ZeroDivisionError' in out
    assert [(row['N'], bool(row['error'])) for row in rows_of('here/grid.csv')] == [('1', False), ('0', True)]


def test_a_point_whose_engine_or_process_fails_is_in_the_table(capsys, tmp_path):
    path = written(tmp_path, '''
    import os

    N = 1

    def initialize(context):
        if N == 2:
            os._exit(1)
        if N == 1:
            set_benchmark({})
    ''')
    code, out, _ = run(capsys, path, '--grid', 'N=0,1', '--output', 'here', *SPAN)
    assert code == 1 and [row['N'] for row in rows_of('here/grid.csv')] == ['0', '1']
    assert '第 10 行 BadRequest' in rows_of('here/grid.csv')[1]['error']
    code, out, _ = run(capsys, path, '--grid', 'N=2', '--output', 'here', *SPAN)
    assert code == 1 and 'BrokenProcessPool' in rows_of('here/grid.csv')[0]['error']


def test_a_failure_of_the_engine_is_that_of_one_point(monkeypatch):
    monkeypatch.setattr(jq, 'compute_metrics', lambda result: 1 / 0)
    order = jq.BacktestOrder(strategy_path('moving_average'), '2018-01-02', '2018-01-09', 1e6, 'day', None, {}, REAL,
                             None, 'stop', None, False, True)
    assert jq.run_grid_point(dict(order._asdict()), 'def initialize(context): pass', {}) == {
        'error': 'ZeroDivisionError: division by zero'}


INTERRUPTED = '''
import sys
import bullet_qmt as bq
import jq_helper as jq

if __name__ == '__main__':
    say = jq.Screen.say

    def interrupt(screen, text):
        say(screen, text)
        if text.startswith('1/3'):
            raise KeyboardInterrupt
    jq.Screen.say = interrupt
    sys.exit(bq.main(['backtest'] + sys.argv[1:]))
'''


def test_ctrl_c_leaves_the_points_that_are_done(tmp_path):
    """The others would sleep for minutes: 60 days of 2 and 3 seconds."""
    path = written(tmp_path, '''
    import time

    N = 1

    def initialize(context):
        set_benchmark('600519.XSHG')

    def handle_data(context, data):
        time.sleep(N)
    ''')
    (tmp_path / 'interrupted.py').write_bytes(INTERRUPTED.encode('utf-8'))
    process = subprocess.Popen(
        [sys.executable, 'interrupted.py', path, '--grid', 'N=0,2,3', '--output', 'here'] + SPAN, cwd=str(tmp_path),
        env=dict(os.environ, PYTHONIOENCODING='utf-8', PYTHONPATH=os.path.dirname(MODULE)), stdout=subprocess.PIPE)
    output = process.communicate(timeout=60)[0].decode('utf-8')
    assert process.returncode == bq.Exit.INTERRUPTED and '3 组里完成了 1 组' in output
    assert [row['N'] for row in rows_of(tmp_path / 'here' / 'grid.csv')] == ['0']


CLUSTER = '''
import sys
import distributed
import bullet_qmt as bq

if __name__ == '__main__':
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        sys.exit(bq.main(['backtest'] + sys.argv[1:] + ['--dask', cluster.scheduler_address]))
'''


def test_a_cluster_runs_them_too(tmp_path):
    """In a process of its own: the scheduler takes the modules that it is sent in place of those it has."""
    pytest.importorskip('distributed')
    (tmp_path / 'cluster.py').write_bytes(CLUSTER.encode('utf-8'))
    command = [sys.executable, 'cluster.py', strategy_path('moving_average'), '--grid', 'FAST=3,5', '--output', 'here']
    output = subprocess.check_output(
        command + SPAN,
        env=dict(os.environ, PYTHONIOENCODING='utf-8', PYTHONPATH=os.path.dirname(MODULE)), cwd=str(tmp_path))
    rows = rows_of(tmp_path / 'here' / 'grid.csv')
    assert len(rows) == 2 and not any(row['error'] for row in rows) and '2/2' in output.decode('utf-8')


def test_without_dask_it_is_said_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(jq, 'optional_import', lambda name: None)
    order = jq.BacktestOrder(strategy_path('moving_average'), '2018-01-02', '2018-03-30', 1e6, 'day', None, {}, REAL,
                             None, 'stop', None, False, True)
    with pytest.raises(bq.ConfigError) as caught:
        jq.run_grid_command(order, [{}], jq.Screen(lambda text: None, False), 'tcp://127.0.0.1:1')
    assert 'distributed' in caught.value.hint


# -- the README ----------------------------------------------------------------------------------------------------
with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as _file:
    CHAPTER = _file.read().split('## 回测\n')[1].split('\n## ')[0]
COMMANDS = [line for line in re.findall(r'```sh\n(.*?)```', CHAPTER, re.DOTALL)[0].splitlines() if line]


@pytest.fixture(scope='module')
def server():
    with serving() as server:
        yield server


@pytest.mark.parametrize('number', range(len(COMMANDS)))
def test_the_readme_s_commands_run_its_strategy(number, server, tmp_path):
    """As a script of its own, which is not the module that jq_helper imports by name."""
    with open('my_strategy.py', 'w', encoding='utf-8') as file:
        file.write(re.search(r'```py\n(.*?)```', CHAPTER, re.DOTALL).group(1))
    for name in ('bullet_qmt.py', 'jq_helper.py'):
        shutil.copy(os.path.join(os.path.dirname(MODULE), name), name)
    environment = dict(os.environ, QMT_SERVER_HOST='127.0.0.1', QMT_SERVER_PORT=str(server.address[1]),
                       QMT_SERVER_TOKEN=TOKEN, PYTHONIOENCODING='utf-8')
    process = subprocess.Popen([sys.executable] + COMMANDS[number].split()[1:], env=environment, cwd=str(tmp_path),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.communicate(timeout=300)[0].decode('utf-8')
    assert process.returncode == 0, output
    assert '已写入' in output


def test_the_readme_s_options_are_those_of_the_command():
    text = subprocess.check_output([sys.executable, MODULE, 'backtest', '--help'],
                                   env=dict(os.environ, PYTHONIOENCODING='utf-8')).decode('utf-8')
    for option in set(re.findall(r'--[a-z][a-z-]+', CHAPTER)):
        assert option in text, option
