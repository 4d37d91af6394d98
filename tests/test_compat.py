"""Section 1: times in any spelling, time zones, text that lines up, sockets that wait."""
import os
import socket
import struct
import subprocess
import sys
import types
from array import array
from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as b
from tests.processes import named

MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1))


@pytest.mark.parametrize('text, expected, has_clock', [
    ('2024-01-05', datetime(2024, 1, 5), False),
    ('2024-1-5', datetime(2024, 1, 5), False),
    ('2024/01/05', datetime(2024, 1, 5), False),
    ('2024/1/5 9:31', datetime(2024, 1, 5, 9, 31), True),
    ('20240105', datetime(2024, 1, 5), False),
    ('20240105093100', datetime(2024, 1, 5, 9, 31), True),
    ('20240105 09:31:00', datetime(2024, 1, 5, 9, 31), True),
    ('20240105 0931', datetime(2024, 1, 5, 9, 31), True),
    ('  2024-01-05 09:31:00 ', datetime(2024, 1, 5, 9, 31), True),
    ('2024-01-05T09:31', datetime(2024, 1, 5, 9, 31), True),
    ('2024-01-05 00:00:00', datetime(2024, 1, 5), True),
    ('2024-01-05T09:31:02.5', datetime(2024, 1, 5, 9, 31, 2, 500000), True),
    ('2024-01-05T09:31:02.123456', datetime(2024, 1, 5, 9, 31, 2, 123456), True),
    ('2024-01-05T09:31:02.123456789', datetime(2024, 1, 5, 9, 31, 2, 123456), True),
    ('2024-01-05T01:31:00Z', datetime(2024, 1, 5, 9, 31), True),
    ('2024-01-05T09:31:00+08:00', datetime(2024, 1, 5, 9, 31), True),
    ('2024-01-04T20:31:00-05:00', datetime(2024, 1, 5, 9, 31), True),
    ('2024-01-05T07:01:00+0530', datetime(2024, 1, 5, 9, 31), True),
])
def test_parse_moment_takes_many_spellings(text, expected, has_clock):
    assert b.parse_moment(text) == (expected, has_clock)


def test_parse_moment_takes_dates_and_datetimes():
    assert b.parse_moment(date(2024, 1, 5)) == (datetime(2024, 1, 5), False)
    assert b.parse_moment(datetime(2024, 1, 5)) == (datetime(2024, 1, 5), True)
    assert b.parse_moment(datetime(2024, 1, 5, 1, 31, tzinfo=timezone.utc)) == (datetime(2024, 1, 5, 9, 31), True)


def test_parse_moment_takes_pandas_and_gives_plain_datetimes():
    pandas = pytest.importorskip('pandas')
    moment, has_clock = b.parse_moment(pandas.Timestamp('2024-01-05 09:31:00.000001'))
    assert type(moment) is datetime and moment == datetime(2024, 1, 5, 9, 31, 0, 1) and has_clock
    aware = pandas.Timestamp('2024-01-05 01:31:00', tz='UTC')
    assert b.parse_moment(aware)[0] == datetime(2024, 1, 5, 9, 31)
    with pytest.raises(ValueError):
        b.parse_moment(pandas.NaT)


@pytest.mark.parametrize('value', [
    '', ' ', 'today', '2024', '2024-01', '202401', '2024-13-01', '2024-02-30', '2024-01-05 25:00', '2024-01-05 09:60',
    '2024-01-05 09', '2024-01/05', '2024-01-05x', 'x2024-01-05', '2024-01-05 09:31:00 09:31', '٢٠٢٤-01-05',
    '2024-01-05T09:31:00+25:00', 20240105, 20240105.0, None, True, [], {}, b'2024-01-05', float('nan')])
def test_parse_moment_refuses_the_rest(value):
    with pytest.raises(ValueError):
        b.parse_moment(value)


def test_an_aware_time_at_the_end_of_the_calendar_is_refused_by_field():
    with pytest.raises(b.BadRequest) as caught:
        b.check_moment('9999-12-31T23:00:00Z', 'end')
    assert 'end' in str(caught.value)


@given(MOMENTS)
def test_moments_survive_their_own_text(moment):
    assert b.parse_moment(moment.isoformat()) == (moment, True)
    assert b.parse_moment(moment.isoformat(sep=' ')) == (moment, True)


@given(MOMENTS)
def test_milliseconds_are_there_and_back(moment):
    whole = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert b.from_ms(b.to_ms(moment)) == whole
    assert b.parse_moment(b.iso_ms(b.to_ms(whole)))[0] == whole


def test_milliseconds_of_a_date_are_midnight():
    assert b.to_ms(date(1970, 1, 2)) == b.DAY_MS
    assert b.to_ms(datetime(1969, 12, 31, 23, 59, 59, 999000)) == -1
    assert b.iso_ms(b.to_ms(datetime(2024, 1, 5))) == '2024-01-05T00:00:00'


def test_epoch_seconds_are_those_of_beijing():
    assert b.epoch_seconds(datetime(1970, 1, 1, 8)) == 0
    assert b.epoch_seconds(datetime(2024, 1, 5, 9, 31)) == 1704418260


ZONE_SCRIPT = '''
import sys, time
sys.path[:0] = sys.argv[1:]
import bullet_qmt as b
from datetime import datetime, timezone
gap = b.Clock().now() - datetime.now(timezone.utc).replace(tzinfo=None)
print(round(gap.total_seconds() / 60), b.epoch_seconds(datetime(2024, 3, 31, 2, 30)), b.to_ms(datetime(2024, 3, 31)),
      b.parse_moment('2024-03-31T02:30:00Z')[0], b.parse_moment(datetime(2024, 3, 31, 2, 30))[0])
'''


@pytest.mark.parametrize('zone', ['UTC', 'Asia/Shanghai', 'America/New_York', 'Europe/Berlin', 'Pacific/Apia',
                                  'XYZ-14'])
def test_nothing_depends_on_the_zone_of_the_machine(zone):
    environment = dict(os.environ, TZ=zone)
    out = subprocess.check_output([sys.executable, '-c', ZONE_SCRIPT, os.path.dirname(b.__file__)], env=environment)
    assert out.decode().split() == ['480', '1711823400', '1711843200000', '2024-03-31', '10:30:00', '2024-03-31',
                                    '02:30:00']


def test_width_counts_chinese_twice_and_combining_marks_not_at_all():
    assert b.text_width('贵州茅台') == 8
    assert b.text_width('abc') == 3
    assert b.text_width('e\u0301') == 1
    assert b.text_width('ＡＢ') == 4
    assert b.text_width('') == 0


def test_pad_fills_to_columns_and_cuts_nothing():
    assert b.pad('茅台', 6) == '茅台  '
    assert b.pad('茅台', 6, '>') == '  茅台'
    assert b.pad('贵州茅台', 6) == '贵州茅台'


def test_a_table_with_chinese_lines_up():
    lines = b.format_table(['代码', '名称', '持仓'], [['600519.XSHG', '贵州茅台', 100], ['1', 'x', 12345]], '<<>')
    assert lines == ['代码         名称       持仓',
                     '-----------  --------  -----',
                     '600519.XSHG  贵州茅台    100',
                     '1            x         12345']
    assert {b.text_width(line) for line in lines} == {28}


def test_a_table_without_rows_is_its_head():
    assert b.format_table(['代码', 'x'], []) == ['代码  x', '----  -']


@given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_a_row_of_a_table_is_one_line_whatever_it_holds(rows):
    lines = b.format_table(['a', 'b'], rows)
    assert len(lines) == len(rows) + 2
    assert all(line.isprintable() for line in lines)


def test_control_characters_are_shown_not_obeyed():
    assert b.printable('a\nb\x1b[0m') == 'a\\x0ab\\x1b[0m'


def test_a_lazy_module_is_the_module_from_its_first_use_on(monkeypatch):
    monkeypatch.delitem(sys.modules, 'colorsys', raising=False)
    space = {}
    space['colorsys'] = lazy = b.LazyModule('colorsys', space)
    assert 'colorsys' not in sys.modules
    lazy.ONE_THIRD = 5
    assert lazy.ONE_THIRD == 5 and space['colorsys'] is sys.modules['colorsys']
    with pytest.raises(AttributeError):
        lazy.nothing


@pytest.mark.parametrize('order', ['little', 'big'])
def test_the_bytes_of_numbers_are_little_endian_on_any_machine(order, monkeypatch):
    numbers = array('q', [1, 2])
    monkeypatch.setattr(sys, 'byteorder', order)
    swapped = b.little_endian(numbers)
    assert list(numbers) == [1, 2] and swapped.tobytes() == (
        numbers.tobytes() if order == 'little' else struct.pack('>2q', 1, 2))


def test_panels_are_of_old_pandas_only(monkeypatch):
    for version, there in (('0.23.4', True), ('0.24.2', True), ('0.25.0', False), ('3.0.0', False), ('10.1', False)):
        monkeypatch.setitem(sys.modules, 'pandas', types.SimpleNamespace(__version__=version))
        assert b.has_panel() is there
    monkeypatch.setitem(sys.modules, 'pandas', None)
    assert not b.has_panel()


def test_optional_import_gives_none_for_what_is_not_there():
    assert b.optional_import('no_such_module_at_all') is None
    assert b.optional_import('json').dumps([]) == '[]'


def test_a_console_of_another_encoding_does_not_break():
    script = ('import sys; sys.path.insert(0, sys.argv[1]); import bullet_qmt as b; '
              'b.make_console_safe(); print("\\u8305\\U0001F600")')
    environment = dict(os.environ, PYTHONIOENCODING='gbk')
    out = subprocess.check_output([sys.executable, '-c', script, os.path.dirname(b.__file__)], env=environment)
    assert out.strip() == '茅'.encode('gbk') + b'\\U0001f600'


def test_waiting_for_a_socket_has_an_end():
    left, right = socket.socketpair()
    with left, right:
        assert b.wait_for_socket(left, 0) is False
        assert b.wait_for_socket(left, -1) is False
        assert b.wait_for_socket(left, 0, writing=True) is True
        right.send(b'x')
        assert b.wait_for_socket(left, 5) is True


def test_the_clock_moves_on():
    clock = b.Clock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.now().tzinfo is None
    beijing = datetime.now(timezone(timedelta(hours=8))).replace(tzinfo=None)
    assert abs(clock.now() - beijing) < timedelta(minutes=1)


# -- paths -------------------------------------------------------------------------------------------------------------
# Microsoft, "Naming Files, Paths, and Namespaces": reserved characters, names and endings, drives, \\?\ and \\.\.
@pytest.mark.parametrize('path', [
    'NUL', 'nul', 'C:\\logs\\aux.log', 'con.py', 'COM1', 'com9.sqlite', 'LPT1 .txt', 'prn/x.log', 'CONIN$', 'COM\u00b2',
    'C:x.log', 'd:logs\\x.log', '\\\\.\\COM1', '\\\\.\\PhysicalDrive0', 'x.log.', 'logs.\\x.log', 'logs \\x.log',
    'x.sqlite:stream', 'D:\\qmt" --port 1', 'a?b.log', 'a*.log', '<x>', 'a|b', ':memory:', 'x\n.log', '\\\\?\\C:x'])
def test_what_windows_would_take_for_something_else_is_no_path(path):
    assert b.path_problem(path, True) and b.path_problem(path, False) is None


@pytest.mark.parametrize('path', [
    'x.log', 'C:\\logs\\x.log', 'c:/logs/x.log', '\\logs\\x.log', '..\\x.log', './x.log', '.env', 'C:', 'D:\\', '..',
    '\\\\server\\share\\x.log', '\\\\?\\C:\\logs\\x.log', '\\\\?\\UNC\\server\\share\\x', 'D:\\国金交易端\\userdata_mini',
    'con1.log', 'nulls', 'console.py', 'COM10', 'my com1.log', 'a.b.c', 'x y\\z.log', 'C:\\a\\\\b', 'logs\\'])
def test_what_windows_takes_as_it_stands_is_a_path(path):
    assert b.path_problem(path, True) is None


def test_a_path_as_the_explorer_copies_it_loses_its_quotes_on_windows_alone():
    assert b.unquoted('"D:\\a b\\userdata_mini"', True) == 'D:\\a b\\userdata_mini'
    assert b.unquoted('"D:\\a b"', False) == '"D:\\a b"'
    for text in ('""', '"', '" "', 'D:\\a"', '"D:\\a'):
        assert b.unquoted(text, True) == text


def test_a_file_far_below_is_written_and_read(tmp_path):
    """Beyond the 260 characters that Windows takes without being asked for more."""
    name = named('日志 x.log')
    folder = b.long_path(os.path.join(str(tmp_path), *['d' * 90] * 3))
    path = b.long_path(os.path.join(folder, name))
    os.makedirs(folder)
    sink = b.LogFile(path, limit=10, count=2)
    for number in range(3):
        sink(b'%d23456789\n' % number)
    sink.close()
    assert sorted(os.listdir(folder)) == [name, name + '.1', name + '.2']
    b.Journal(os.path.join(folder, 'x.sqlite'), b.Clock()).close()
    assert (path != os.path.join(folder, name) or path.startswith('\\\\?\\')) == (os.name == 'nt')
    assert b.long_path(path) == path and b.long_path('x.log') == 'x.log'


@pytest.mark.skipif(os.name != 'nt', reason='names without case are those of Windows')
def test_a_journal_by_another_spelling_is_the_same_journal(tmp_path):
    (tmp_path / 'Folder').mkdir()
    journal = b.Journal(str(tmp_path / 'Folder' / 'x.sqlite'), b.Clock())
    try:
        for path in (tmp_path / 'FOLDER' / 'X.SQLITE', tmp_path / 'Folder' / '..' / 'folder' / 'x.sqlite'):
            with pytest.raises(b.ConfigError) as caught:
                b.Journal(str(path), b.Clock())
            assert '进程 %d' % os.getpid() in str(caught.value)
    finally:
        journal.close()


@pytest.mark.parametrize('path', [os.devnull, os.curdir])
def test_what_is_no_file_is_no_journal(path):
    with pytest.raises(b.ConfigError) as caught:
        b.Journal(path, b.Clock())
    assert '--state' in caught.value.hint


def test_a_journal_named_as_one_in_memory_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    if os.name == 'nt':
        with pytest.raises(ValueError):
            b.parse_path(':memory:')
    else:
        b.Journal(b.parse_path(':memory:'), b.Clock()).close()
        assert os.path.isfile(str(tmp_path / ':memory:'))


# -- files that others hold for a moment -------------------------------------------------------------------------------
def test_a_file_that_is_held_for_a_moment_is_replaced_when_it_is_free(tmp_path):
    """As by a virus scanner that looks at what was just written."""
    path, fresh = tmp_path / 'state', tmp_path / 'state.new'
    path.write_bytes(b'old')
    fresh.write_bytes(b'new')
    holder, pauses = open(str(path), 'rb'), []

    def pause():
        pauses.append(path.read_bytes())
        if len(pauses) == 3:
            holder.close()
    b.patiently(os.replace, str(fresh), str(path), pause=pause)
    holder.close()
    assert path.read_bytes() == b'new' and not fresh.exists()
    assert pauses == ([b'old'] * 3 if os.name == 'nt' else [])


def test_a_file_that_stays_held_is_an_error_and_nothing_is_lost(tmp_path):
    path, pauses = tmp_path / 'a_folder', []
    fresh = tmp_path / 'state.new'
    path.mkdir()
    fresh.write_bytes(b'new')
    with pytest.raises(OSError):
        b.patiently(os.replace, str(fresh), str(path), pause=lambda: pauses.append(1))
    assert fresh.read_bytes() == b'new' and path.is_dir()
    assert len(pauses) == (b.PATIENCE_STEPS if os.name == 'nt' else 0)


# -- texts by their encoding -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('data, told', [
    ('口令=1\n'.encode('utf-16'), 'UTF-16'), ('a=1\n'.encode('utf-16-le'), 'UTF-16'),
    ('a=1\n'.encode('utf-16-be'), 'UTF-16'), ('QMT_SERVER_LOG_FILE=D:\\日志.log\n'.encode('gbk'), 'GBK'),
    (b'a=\xff\xff\xff', 'utf-8')])
def test_a_text_in_another_encoding_is_told_by_its_name(data, told, tmp_path):
    (tmp_path / '.env').write_bytes(data)
    with pytest.raises(UnicodeError) as caught:
        b.read_text(str(tmp_path / '.env'))
    assert told in str(caught.value)
    for read in (lambda path: b.read_dotenv(path, True), b.read_token_file):
        with pytest.raises(b.ConfigError) as caught:
            read(str(tmp_path / '.env'))
        assert told in caught.value.message and 'UTF-8' in caught.value.hint


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_a_utf8_text_is_read_with_any_line_ends_and_with_a_mark(end, tmp_path):
    for encoding in ('utf-8', 'utf-8-sig'):
        (tmp_path / 'x').write_bytes(('甲' + end + 'b' + end).encode(encoding))
        assert b.read_text(str(tmp_path / 'x')) == '甲\nb\n'


# -- whose window ------------------------------------------------------------------------------------------------------
class Machine:
    """Windows' list of programs, by process: (parent, name)."""

    def __init__(self, programs):
        self._programs, self._left = programs, []
        self.CreateToolhelp32Snapshot = types.SimpleNamespace()
        self.CreateToolhelp32Snapshot = type('Function', (), {'__call__': lambda *ignored: 7})()
        self.Process32FirstW = self.Process32NextW = self._next

    def _next(self, snapshot, entry):
        if not self._left:
            self._left = list(self._programs.items()) + [None]
        one = self._left.pop(0)
        if one is None:
            return 0
        entry._obj.process, (entry._obj.parent, entry._obj.name) = one
        return 1

    def CloseHandle(self, snapshot):
        pass


OWN = os.getpid()
CONSOLE = types.SimpleNamespace(isatty=lambda: True)


@pytest.mark.parametrize('above, owns', [
    ({OWN: (91, 'python.exe'), 91: (90, 'explorer.exe'), 90: (0, 'userinit.exe')}, True),
    ({OWN: (92, 'python.exe'), 92: (91, 'py.exe'), 91: (90, 'Explorer.EXE')}, True),
    ({OWN: (93, 'python3.11.exe'), 93: (92, 'python.exe'), 92: (91, 'py.exe'), 91: (90, 'explorer.exe')}, True),
    ({OWN: (91, 'python.exe'), 91: (90, 'cmd.exe'), 90: (1, 'explorer.exe')}, False),
    ({OWN: (91, 'python.exe'), 91: (90, 'powershell.exe'), 90: (1, 'explorer.exe')}, False),
    ({OWN: (91, 'python.exe'), 91: (90, 'svchost.exe')}, False),
    ({OWN: (91, 'python.exe'), 91: (OWN, 'python.exe')}, False), ({OWN: (91, 'python.exe')}, False), ({}, False)])
def test_the_window_of_a_double_click_is_the_programs_own(above, owns):
    assert b.owns_window(Machine(above), CONSOLE) is owns
    assert b.owns_window(Machine(above), types.SimpleNamespace(isatty=lambda: False)) is False


def test_these_tests_run_in_no_window_of_their_own():
    assert b.owns_window(stdin=CONSOLE) is False
