"""What a system could make different of a backtest: its numbers, its clock, its locale, its processes, its editors."""
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from datetime import datetime

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import A, REAL, MadeMarket, day_row, days_from, run, strategy_path, written
from tests.processes import named

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SPAN = ['--start', '2018-01-02', '--end', '2018-01-12', '--data-provider', REAL]


def child(code, folder, *arguments, **options):
    """(exit code, what it printed and complained of) of a program of its own."""
    path = os.path.join(str(folder), 'child.py')
    with open(path, 'wb') as file:
        file.write(code.encode('utf-8'))
    environment = dict(os.environ, PYTHONIOENCODING='utf-8', PYTHONPATH=ROOT)
    process = subprocess.Popen([sys.executable, path] + list(arguments), cwd=str(folder), env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    return process.communicate()[0].decode('utf-8'), process.returncode


# -- moments -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('seconds, shown', [
    (0, datetime(1970, 1, 1, 8)), (-1, datetime(1970, 1, 1, 7, 59, 59)),
    (-86400.5, datetime(1969, 12, 31, 7, 59, 59, 500000)),
    (1800000000, datetime(2027, 1, 15, 16)), (32536850400, datetime(3001, 1, 20, 6))])
def test_any_unix_time_is_a_moment_on_any_system(seconds, shown):
    """Windows' C library has none before 1970 and none after the year 3000."""
    assert bq.beijing_moment(seconds) == shown
    order = jq.RemoteOrder({'order_id': '1', 'security': A, 'side': 'BUY', 'amount': 100, 'status': 'open',
                            'order_time': seconds})
    assert order.add_time == shown
    assert bq._clock_text(seconds) == (shown.strftime('%H:%M:%S') if seconds else '-')


@pytest.mark.parametrize('seconds', [1e300, -1e300, float('inf'), float('nan')])
def test_what_is_no_moment_is_one_clear_error(seconds):
    with pytest.raises(bq.ProtocolError):
        jq._moment(seconds)


# -- numbers of more than 32 bits ----------------------------------------------------------------------------------
@pytest.mark.parametrize('compact', [False, True])
@pytest.mark.parametrize('dtype', ['int32', 'int64'])
@pytest.mark.parametrize('pack', [bq.encode_table_frame, None], ids=['binary', 'json'])
def test_whole_numbers_of_any_width_arrive_as_they_are(dtype, compact, pack):
    """int32 is what numpy before 2 makes of whole numbers on Windows: their differences may need more."""
    numpy = pytest.importorskip('numpy')
    values = [2147483647, -2147483648, 0, 2147483647] * 100
    table = bq.Table([('volume', numpy.array(values, dtype)), ('money', numpy.array(values, dtype))],
                     {'volume': 'int', 'money': 'float'})
    if pack is None:
        told = bq.Table.from_wire(bq.decode_frame(bq.encode_frame(table.to_wire())[4:]))
    else:
        told = bq.decode_table_frame(bytearray(b''.join(map(bytes, pack({}, table, compact))))[4:])['payload']
    assert told['volume'] == values and told['money'] == values
    assert list(told.to_pandas()['volume'] * 2) == [2 * value for value in values]


HUGE = 3000000000  # shares in a minute: beyond 2 ** 31 by itself, beyond 2 ** 32 with the next


@pytest.fixture(scope='module')
def huge(tmp_path_factory):
    """Days and minutes of a security, whose volumes no 32 bits hold."""
    market, days = MadeMarket(tmp_path_factory.mktemp('huge')), days_from('2024-03-04', 10)
    market.daily(A, [day_row(day, 10.0, volume=240 * HUGE) for day in days])
    rows = [['%s %02d:%02d' % ((day,) + divmod(minute, 60)), 10.0, 10.0, 10.0, 10.0, HUGE, 10.0 * HUGE]
            for day in days for minute in bq.BAR_MINUTES]
    market.write_minutes(A, rows)
    return market


def test_volumes_and_money_beyond_32_bits_are_what_they_are(huge, tmp_path):
    """As daily, weekly and minute bars, as what is known of the running day, as sums of them and as a quote."""
    result, _ = run(tmp_path, """
    def told(frame):
        return [float(frame[name].sum()) for name in ('volume', 'money')]

    def handle_data(context, data):
        if str(context.current_dt) == '2024-03-15 10:00:00':
            code = '600000.XSHG'
            g.told = [told(get_price(code, count=2, fields=['volume', 'money'])),
                      told(attribute_history(code, 5, '1d', ['volume', 'money'])),
                      told(attribute_history(code, 3, '1m', ['volume', 'money'])),
                      told(get_bars(code, 1, '1w', ['volume', 'money'], include_now=True)),
                      told(get_bars(code, 1, '30m', ['volume', 'money']))]
            order(code, 1000000)
            record(days=g.told[0][0], history=g.told[1][0], minutes=g.told[2][1], week=g.told[3][0], bar=g.told[4][1])
    """, huge.source, '2024-03-13', '2024-03-15', frequency='minute', cash=1e8)
    (day, values), = result.records
    assert values == {'days': 240 * HUGE + 30 * HUGE, 'history': 5 * 240 * HUGE, 'minutes': 3 * 10 * HUGE,
                      'week': 4 * 240 * HUGE + 30 * HUGE, 'bar': 30 * 10 * HUGE}
    assert [trade['amount'] for trade in result.trades] == [1000000]


# -- the strategy's text -------------------------------------------------------------------------------------------
TEXT = '%s\nNAME = "双均线"\n\n\ndef initialize(context):\n    log.info(NAME + "开始")\n'


def test_whole_numbers_of_numpy_are_as_wide_as_the_manual_says():
    numpy = pytest.importorskip('numpy')
    narrow = os.name == 'nt' and int(numpy.__version__.split('.')[0]) < 2
    assert numpy.array([1.0]).astype(int).itemsize == (4 if narrow else 8)
    assert numpy.array([3e9]).astype('int64')[0] == 3000000000


@pytest.mark.parametrize('head, encoding', [
    ('# 策略', 'utf-8'), ('# 策略', 'utf-8-sig'), ('# coding: gbk', 'gbk'), ('# -*- coding: gb18030 -*-', 'gb18030'),
    ('# coding: gbk', 'utf-8'), ('#!/usr/bin/python\n# coding: gbk', 'gbk')])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_a_strategy_is_read_as_python_reads_it(tmp_path, head, encoding, newline):
    """One that says gbk and is UTF-8 is UTF-8, as editors make them."""
    folder = tmp_path / named('我的 策略')
    folder.mkdir()
    path, lines = folder / named('双 均线.py'), []
    path.write_bytes((TEXT % head).replace('\n', newline).encode(encoding))
    strategy = jq.StrategyFile(str(path))
    assert strategy.source == TEXT % head
    jq.backtest(str(path), '2018-01-02', '2018-01-03', provider=REAL, write=lines.append)
    assert any('双均线开始' in line for line in lines)


@pytest.mark.parametrize('data', [
    (TEXT % '').encode('gbk'), (TEXT % '').encode('utf-16'), (TEXT % '# coding: utf-8').encode('gbk'),
    (TEXT % '# coding: nothing').encode('gbk'), (TEXT % '# coding: ascii').encode('gbk')],
    ids=['gbk', 'utf-16', 'no utf-8', 'unknown', 'no ascii'])
def test_a_strategy_in_another_encoding_is_refused_with_the_way_to_save_it(tmp_path, data):
    path = tmp_path / 'strategy.py'
    path.write_bytes(data)
    with pytest.raises(bq.ConfigError) as caught:
        jq.StrategyFile(str(path))
    assert '不是 UTF-8' in str(caught.value) and '另存为' in caught.value.hint and 'coding: gbk' in caught.value.hint


# -- the C library -------------------------------------------------------------------------------------------------
IN_THE_C_LOCALE = '''
import locale
import sys
locale.setlocale(locale.LC_CTYPE, 'C')  # as Python has it before 3.8
import bullet_qmt as bq

if __name__ == '__main__':
    sys.exit(bq.main(['backtest'] + sys.argv[1:]))
'''


def test_days_are_told_in_chinese_whatever_the_c_library_stands_at(tmp_path):
    path = written(tmp_path, """
    def handle_data(context, data):
        log.info(context.current_dt.strftime('%Y年%m月'))
    """)
    output, code = child(IN_THE_C_LOCALE, tmp_path, path, '--no-html', '--no-csv', *SPAN)
    assert code == 0 and '2018年01月' in output, output


@pytest.mark.parametrize('problem, hint', [
    (ValueError('Invalid format string'), '日期.day'),
    (UnicodeEncodeError('locale', '%Y年', 2, 3, 'encoding error'), '日期.year')])
def test_what_windows_says_of_a_date_comes_with_what_to_write(tmp_path, problem, hint):
    """Both as CPython on Windows words them."""
    strategy = jq.StrategyFile(written(tmp_path, 'def handle_data(context, data): pass\n'))
    assert hint in strategy.error(problem).report
    assert '建议' not in strategy.error(ValueError('Invalid format')).report


# -- processes of a sweep ------------------------------------------------------------------------------------------
PRESSED = '''
import multiprocessing
import os
import signal
import sys

if __name__ == '__mp_main__':
    os.kill(os.getpid(), signal.SIGINT)  # a process of the pool that is starting up
import bullet_qmt as bq

if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    sys.exit(bq.main(['backtest'] + sys.argv[1:]))
'''


def grid_order(path):
    return dict(jq.BacktestOrder(path, '2018-01-02', '2018-01-12', 1e6, 'day', None, {}, REAL, None, 'stop', '', False,
                                 True)._asdict())


@pytest.mark.posix('Windows tells a process of Ctrl-C by its console, of which a test has none')
def test_ctrl_c_while_the_processes_of_a_sweep_start_up_tears_none_of_them(tmp_path):
    output, code = child(PRESSED, tmp_path, strategy_path('moving_average'), '--grid', 'FAST=3,5', '--output', 'here',
                         *SPAN)
    assert 'Traceback' not in output and code == 1, output
    with open(str(tmp_path / 'here' / 'grid.csv'), encoding='utf-8-sig') as file:
        assert '被打断' in file.read()  # of one point where one process had both


@contextlib.contextmanager
def interrupts_as_they_were():
    kept = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, kept)


def test_a_process_of_a_sweep_hears_ctrl_c_in_its_points_alone(tmp_path):
    path, going = written(tmp_path, """
    import signal

    def handle_data(context, data):
        if context.current_dt.day == 5:
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)
    """), tmp_path / 'going'
    going.write_bytes(b'')
    with interrupts_as_they_were():
        figures = jq.run_grid_point(grid_order(path), jq.StrategyFile(path).source, {}, str(going))
        assert figures['error'] == '被打断' and figures['days'] == 3
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_points_end_once_their_file_is_gone_however_that_came(tmp_path):
    """Also where a second Ctrl-C takes the whole folder away."""
    path = written(tmp_path, 'def handle_data(context, data): pass\n')
    with interrupts_as_they_were():
        figures = jq.run_grid_point(grid_order(path), jq.StrategyFile(path).source, {}, str(tmp_path / 'no' / 'going'))
    assert figures['error'] == '被打断'


def test_a_sweep_takes_no_more_processes_than_it_has_points_nor_than_windows_waits_for(monkeypatch):
    """WaitForMultipleObjects takes 63 handles at most; two of a pool's are no processes."""
    monkeypatch.setattr(os, 'cpu_count', lambda: 128)
    assert [bq.pool_size(jobs) for jobs in (1, 4, 61, 62, 5000)] == [1, 4, 61, 61, 61]
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert bq.pool_size(4) == 1


COMMAND = '''
import sys
import bullet_qmt as bq

if __name__ == '__main__':
    sys.exit(bq.main(['backtest'] + sys.argv[1:]))
'''


def test_a_sweep_runs_in_a_folder_whose_name_is_chinese_and_has_blanks(tmp_path):
    folder = tmp_path / named('我的 策略')
    folder.mkdir()
    text = '# coding: gbk\n# 策略\nimport helper\nN = 1\n\n\ndef initialize(context):\n    helper.note(N)\n'
    (folder / named('双 均线.py')).write_bytes(text.encode('gbk'))
    (folder / 'helper.py').write_bytes(b'def note(n):\n    1 / (n - 2)\n')
    output, code = child(COMMAND, folder, named('双 均线.py'), '--grid', 'N=1,2,3', '--output', named('结 果'), *SPAN)
    with open(str(folder / named('结 果') / 'grid.csv'), 'rb') as file:
        data = file.read()
    rows = data.decode('utf-8-sig').split('\r\n')
    assert code == 1 and 'ZeroDivisionError' in output and '3/3' in output, output
    assert len(rows) == 5 and rows[-1] == '' and not any('\r' in row or '\n' in row for row in rows)


# -- the same on each system ---------------------------------------------------------------------------------------
SAME = {'dividends': 'a8de69aee072ff89', 'limit_orders': '41b6df238d1f2202',
        'moving_average': '0b94ff73e8c9bb7e', 'suspended': 'aeac3bd042f737dd',
        'target_value': 'c052fa9bc16269ef', 'weekly_rotation': '95fdf3eecac79b4c'}


@pytest.mark.parametrize('name', sorted(SAME))
def test_figures_are_the_same_to_the_last_byte_on_each_system(tmp_path, name):
    """As Linux with 3.6 and with 3.13 and a Windows with 3.11 wrote them: all of it is plain arithmetic. Where other
    figures are wanted, these are written anew, from two systems.
    """
    folder = str(tmp_path / 'here')
    assert bq.main(['backtest', strategy_path(name), '--start', '2016-01-04', '--end', '2018-06-29', '--data-provider',
                    REAL, '--no-html', '--output', folder, '--log', str(tmp_path / 'log')]) == 0
    digest = hashlib.sha256()
    for each in ('trades.csv', 'daily_records.csv', 'positions.csv'):
        with open(os.path.join(folder, each), 'rb') as file:
            data = file.read()
        assert data.startswith(b'\xef\xbb\xbf') and data.count(b'\r\n') == data.count(b'\n') == data.count(b'\r')
        digest.update(data)
    assert digest.hexdigest()[:16] == SAME[name]
