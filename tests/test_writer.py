"""Lines for a console or a file: nobody waits for them, what is dropped is told, and the console is put back."""
import ctypes
import errno
import io
import logging
import os
import sys
import threading
import types

import pytest

import bullet_qmt as bq
from tests.resources import becomes, nothing_left

POSIX = pytest.mark.posix('Windows has no such modes, devices or pseudo-terminals')


class Place:
    """A sink: holds everything up until it is opened, fails with `error` while it has one, takes `at_once` bytes."""

    def __init__(self, is_open=True, at_once=1 << 30):
        self.gate, self.data, self.error, self.at_once = threading.Event(), b'', None, at_once
        self.tried = threading.Semaphore(0)
        if is_open:
            self.gate.set()

    def __call__(self, data):
        self.tried.release()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        taken = bytes(data[:self.at_once])
        self.data += taken
        return len(taken)

    @property
    def lines(self):
        return self.data.decode('utf-8').splitlines()


def writer_into(place, **options):
    return bq.LineWriter('a-writer', place, lambda count: 'lost %d' % count, **options)


def line(number):
    return b'line %d\n' % number


# -- the writer --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('at_once', [1, 7, 1 << 30])
def test_what_is_put_is_written_in_its_order_and_nothing_is_left(at_once):
    with nothing_left():
        place = Place(at_once=at_once)
        writer = writer_into(place)
        for number in range(100):
            writer.put(line(number))
        writer.close()
        assert place.data == b''.join(map(line, range(100)))


def test_a_stopped_place_holds_up_nobody_and_the_gap_is_told_where_it_is():
    place = Place(is_open=False)
    writer = writer_into(place, limit=1000)
    writer.put(line(0))
    assert place.tried.acquire(timeout=20)
    for number in range(1, 5000):
        writer.put(line(number))
    place.gate.set()
    assert becomes(lambda: place.lines[-1:] and place.lines[-1].startswith('lost'))
    writer.put(b'after\n')
    writer.close()
    kept = [text for text in place.lines if text.startswith('line')]
    assert kept == ['line %d' % number for number in range(len(kept))], 'the first that came'
    assert place.lines[len(kept):] == ['lost %d' % (5000 - len(kept)), 'after'] and 10 < len(kept) < 1000


def test_the_gap_is_told_before_what_comes_after_it():
    place = Place(is_open=False)
    writer = writer_into(place, limit=1000)
    writer.put(line(0))
    assert place.tried.acquire(timeout=20)  # from now on nothing that waits is taken
    for number in range(1, 100):
        writer.put(line(number))
    place.gate.set()
    assert becomes(lambda: 'lost' in place.data.decode())
    writer.close()
    assert place.lines[-1].startswith('lost ') and place.lines[-2].startswith('line ')


def test_what_is_put_at_once_is_counted_by_its_lines():
    place = Place(is_open=False)
    writer = writer_into(place, limit=100)
    writer.put(b'a\n')
    assert place.tried.acquire(timeout=20)
    writer.put(b'x' * 200 + b'\n')
    writer.put(b'b\nc\nd\n')
    writer.put(b'part')
    place.gate.set()
    writer.close()
    assert place.lines == ['a', 'x' * 200, 'lost 4']


def test_memory_is_bounded_by_what_may_wait():
    place = Place(is_open=False)
    writer = writer_into(place, limit=10000)
    for number in range(20000):
        writer.put(b'%0100d\n' % number)
    assert sum(map(len, writer._parts)) <= 10000 + 101 and len(writer._parts) < 200
    place.gate.set()
    writer.close()


def test_a_full_disk_is_tried_again_and_told_once(monkeypatch):
    monkeypatch.setattr(bq.LineWriter, 'RETRY_S', 0.01)
    place, told = Place(), []
    place.error = OSError(errno.ENOSPC, 'full')
    writer = writer_into(place, troubled=told.append)
    writer.put(b'one\n')
    assert all(place.tried.acquire(timeout=20) for _ in range(5)) and told == [place.error]
    writer.put(b'two\n')
    place.error = None
    assert becomes(lambda: place.lines == ['one', 'two'])
    place.error = OSError(errno.ENOSPC, 'full again')
    writer.put(b'three\n')
    assert becomes(lambda: len(told) == 2)
    place.error = None
    writer.close()
    assert place.lines == ['one', 'two', 'three']


def test_a_reader_that_has_gone_is_no_trouble():
    place = Place()
    place.error = BrokenPipeError()
    writer = writer_into(place, troubled=pytest.fail)
    writer.put(b'one\n')
    assert becomes(lambda: not writer._thread.is_alive())
    for number in range(1000):
        writer.put(line(number))
    assert not writer._parts
    writer.close()


@pytest.mark.parametrize('error', [None, OSError(errno.ENOSPC, 'full')])
def test_the_end_does_not_wait_for_what_takes_nothing(error, monkeypatch):
    monkeypatch.setattr(bq.LineWriter, 'PATIENCE_S', 0.05)
    place = Place(is_open=error is not None)
    place.error = error
    writer = writer_into(place)
    for number in range(1000):
        writer.put(line(number))
    closing = threading.Thread(target=lambda: (writer.close(), writer.close(), writer.put(b'late\n')))
    closing.start()
    closing.join(20)
    assert not closing.is_alive() and place.data == b''
    place.gate.set()


def test_a_slow_place_gets_all_of_it_at_the_end():
    place = Place(at_once=20)
    writer = writer_into(place)
    for number in range(300):
        writer.put(line(number))
    writer.close()
    assert place.lines == ['line %d' % number for number in range(300)]


def test_who_prints_while_it_prints_is_heard():
    """A destructor that runs in the middle of put() may print as well."""
    place = Place()
    writer = writer_into(place)
    with writer._changed:
        writer.put(b'inside\n')
    writer.close()
    assert place.lines == ['inside']


# -- log lines ---------------------------------------------------------------------------------------------------------
def test_a_log_line_is_made_where_it_is_logged(caplog):
    place, changing = Place(is_open=False), ['before']
    handler = bq.WriterHandler(writer_into(place))
    handler.setFormatter(logging.Formatter('%(levelname)s %(message)s'))
    handler.handle(logging.LogRecord('x', 30, 'x', 1, 'a %s \ud800', (changing,), None))
    changing[0] = 'after'
    place.gate.set()
    handler.close()
    assert place.lines == ["WARNING a ['before'] \\ud800"]


# -- files -------------------------------------------------------------------------------------------------------------
def content(path):
    return path.read_bytes() if path.exists() else None


def test_a_file_that_is_full_moves_and_the_oldest_goes(tmp_path):
    path = tmp_path / 'x.log'
    sink = bq.LogFile(str(path), limit=10, count=2)
    for number in range(4):
        assert sink(b'%d23456789\n' % number) == 10
    sink.close()
    assert [content(tmp_path / name)[:1] for name in ('x.log', 'x.log.1', 'x.log.2')] == [b'3', b'2', b'1']
    assert sorted(os.listdir(str(tmp_path))) == ['x.log', 'x.log.1', 'x.log.2']


def test_a_file_that_was_there_is_gone_on_with(tmp_path):
    path = tmp_path / 'x.log'
    path.write_bytes(b'before\n')
    sink = bq.LogFile(str(path), limit=10)
    sink(b'a\n')
    sink(b'more than fits\n')
    sink.close()
    assert content(path) == b'more than fits\n' and content(tmp_path / 'x.log.1') == b'before\na\n'


def held(path, sharing=3):
    """Opens a file as other programs do. sharing: what others may do meanwhile, 1 read, 2 write, 4 move and remove;
    Python's own open() says 3. Only Windows asks."""
    if os.name != 'nt':
        return open(str(path), 'rb')
    import _winapi
    import msvcrt
    return os.fdopen(msvcrt.open_osfhandle(_winapi.CreateFile(str(path), 0x80000000, sharing, 0, 3, 0, 0), 0), 'rb')


def told_in(folder, stem):
    """What the log and all its backups hold, the oldest first."""
    ages = {name: int(name.rpartition('.')[2]) if name[-1].isdigit() else 0 for name in os.listdir(str(folder))
            if name.startswith(stem)}
    return b''.join(content(folder / name) for name in sorted(ages, key=ages.get, reverse=True))


SHARINGS = pytest.mark.parametrize('sharing', [1, 3, 7])
LINES = b''.join(line(number) for number in range(60))


@SHARINGS
@pytest.mark.parametrize('which', ['x.log.1', 'x.log.2', 'x.log.5'])
def test_a_backup_that_another_program_reads_costs_neither_a_line_nor_a_backup(which, sharing, tmp_path):
    for number in range(1, 6):
        (tmp_path / ('x.log.%d' % number)).write_bytes(b'backup %d\n' % number)
    with held(tmp_path / which, sharing):
        sink = bq.LogFile(str(tmp_path / 'x.log'), limit=200)
        for number in range(60):
            sink(line(number))
        sink.close()
        told = told_in(tmp_path, 'x.log')
    lines = [text for text in told.splitlines() if text.startswith(b'line')]
    assert b'\n'.join(lines) + b'\n' == LINES
    if os.name == 'nt' and not sharing & 4:  # it had to stay, and so had all others
        assert [told.count(b'backup %d' % number) for number in range(1, 6)] == [1] * 5
    else:
        assert not (tmp_path / 'x.log.6').exists() and (tmp_path / 'x.log.1').read_bytes().startswith(b'line')


@pytest.mark.parametrize('sharing', [3, 7])
def test_a_log_that_another_program_reads_loses_neither_a_line_nor_a_backup(sharing, tmp_path):
    (tmp_path / 'x.log.1').write_bytes(b'backup 1\n')
    sink = bq.LogFile(str(tmp_path / 'x.log'), limit=200)
    sink(line(0))
    with held(tmp_path / 'x.log', sharing):
        for number in range(1, 60):
            sink(line(number))
    sink.close()
    assert told_in(tmp_path, 'x.log') == b'backup 1\n' + LINES


def test_a_holder_that_comes_and_goes_costs_nothing_and_the_log_moves_in_between(tmp_path):
    sink = bq.LogFile(str(tmp_path / 'x.log'), limit=100, count=40)
    sink(line(0))
    for number in range(1, 60):
        names = sorted(os.listdir(str(tmp_path)))
        if number % 16 < 8:
            with held(tmp_path / names[number % len(names)]):
                sink(line(number))
        else:
            sink(line(number))
    sink.close()
    assert told_in(tmp_path, 'x.log') == LINES and (tmp_path / 'x.log.1').exists()


def test_what_one_that_was_killed_had_put_aside_is_kept(tmp_path):
    (tmp_path / 'x.log.moving').write_bytes(b'before\n')
    sink = bq.LogFile(str(tmp_path / 'x.log'), limit=20)
    for number in range(6):
        sink(line(number))
    sink.close()
    assert told_in(tmp_path, 'x.log') == b'before\n' + b''.join(map(line, range(6)))
    assert not (tmp_path / 'x.log.moving').exists()


def test_two_programs_with_one_log_follow_each_other_where_it_moves(tmp_path):
    """What the other one writes is never in a file that falls off the end of the backups."""
    one, other = (bq.LogFile(str(tmp_path / 'x.log'), limit=100, count=3) for _ in range(2))
    other(b'other 0\n')
    for number in range(60):
        one(line(number))
    other(b'other 1\n')
    one.close()
    other.close()
    assert (tmp_path / 'x.log').read_bytes().endswith(b'other 1\n')
    assert sorted(os.listdir(str(tmp_path))) == ['x.log', 'x.log.1', 'x.log.2', 'x.log.3']
    assert LINES.endswith(told_in(tmp_path, 'x.log').replace(b'other 1\n', b''))


def test_a_log_that_was_taken_away_is_begun_anew(tmp_path):
    sink = bq.LogFile(str(tmp_path / 'x.log'), limit=100)
    sink(line(0))
    os.rename(str(tmp_path / 'x.log'), str(tmp_path / 'elsewhere'))
    sink(line(1))
    sink.close()
    assert content(tmp_path / 'elsewhere') == line(0) and content(tmp_path / 'x.log') == line(1)


def test_each_day_has_a_file_of_its_own(tmp_path, monkeypatch):
    seconds = [bq.epoch_seconds(bq.datetime(2024, 1, 5, 23, 59, 59))]
    monkeypatch.setattr(bq.time, 'time', lambda: seconds[0])
    sink = bq.DayFiles(str(tmp_path / 'x'))
    assert sink(b'friday\n') == 7
    seconds[0] += 1
    sink(b'saturday\n')
    sink(b'more\n')
    sink.close()
    again = bq.DayFiles(str(tmp_path / 'x'))
    again(b'again\n')
    again.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        'x-20240105.log': b'friday\n', 'x-20240106.log': b'saturday\nmore\nagain\n'}


@POSIX
def test_the_log_is_for_its_owner_alone_unless_its_owner_thinks_otherwise(tmp_path):
    before, path = os.umask(0o022), tmp_path / 'x.log'
    try:
        sink = bq.LogFile(str(path), limit=10)
        assert path.stat().st_mode & 0o777 == 0o600
        os.chmod(str(path), 0o640)
        sink(b'123456789\n')
        sink(b'x\n')
        assert path.stat().st_mode & 0o777 == 0o640 and (tmp_path / 'x.log.1').exists()
        sink.close()
    finally:
        os.umask(before)


@POSIX
def test_a_device_is_never_moved(monkeypatch):
    monkeypatch.setattr(os, 'replace', pytest.fail)
    sink = bq.LogFile(os.devnull, limit=10)
    for number in range(30):
        assert sink(line(number)) == len(line(number))
    sink.close()


# -- the console -------------------------------------------------------------------------------------------------------
class Raw(io.RawIOBase):
    def __init__(self, descriptor, place):
        self._descriptor, self.place = descriptor, place

    def writable(self):
        return True

    def fileno(self):
        return self._descriptor

    def write(self, data):
        return self.place(data)


@pytest.fixture
def console(monkeypatch):
    """console(stdout's Place, stderr's Place): both as texts over bare streams, of two files or of one."""
    files = []

    def put_in(out, err=None):
        read, write = os.pipe()
        files.extend([read, write] + (list(os.pipe()) if err is not None else []))
        for name, place, descriptor in (('stdout', out, write), ('stderr', err or out, files[-1])):
            stream = io.TextIOWrapper(io.BufferedWriter(Raw(descriptor, place)), 'gbk', line_buffering=True)
            monkeypatch.setattr(sys, name, stream)
        return sys.stdout, sys.stderr
    yield put_in
    for descriptor in files:
        os.close(descriptor)


def test_prints_go_beside_and_the_streams_are_put_back(console):
    place, errors = Place(), Place()
    before = console(place, errors)
    with nothing_left():
        with bq.console_beside():
            print('行', flush=True)
            print('unfinished', end='')
            print('\U0001F600', file=sys.stderr)
            assert (sys.stdout.encoding, sys.stdout.fileno(), sys.stdout.isatty()) == ('gbk', before[0].fileno(), False)
            assert sys.stdout is not before[0] and sys.stderr is not before[1]
    assert (sys.stdout, sys.stderr) == before
    end = os.linesep.encode()
    assert place.data == '行'.encode('gbk') + end + b'unfinished' and errors.data == b'\\U0001f600' + end


@POSIX  # Windows does not number pipes: two that are one are not known to be
def test_one_terminal_for_both_keeps_the_order_of_its_lines(console):
    place = Place()
    console(place)
    with bq.console_beside():
        for number in range(100):
            print(number, file=(sys.stdout, sys.stderr)[number % 2])
    assert place.lines == [str(number) for number in range(100)]


def test_stopped_stderr_does_not_hold_up_stdout_nor_the_end(console, monkeypatch):
    monkeypatch.setattr(bq.LineWriter, 'PATIENCE_S', 0.05)
    place, stopped = Place(), Place(is_open=False)
    console(place, stopped)
    with bq.console_beside():
        for number in range(1000):
            print(number, file=sys.stderr)
        print('done')
    assert place.lines == ['done'] and stopped.data == b''
    stopped.gate.set()


def test_what_is_no_console_stays(monkeypatch):
    notebook = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', notebook)
    monkeypatch.setattr(sys, 'stderr', None)
    with bq.console_beside():
        assert sys.stdout is notebook and sys.stderr is None
        print('here')
        assert notebook.getvalue() == 'here\n'


def test_an_unbuffered_stream_is_the_console_as_well(console, monkeypatch):
    place = Place()
    console(place)
    bare = io.TextIOWrapper(sys.stdout.buffer.raw, 'utf-8', write_through=True)
    monkeypatch.setattr(sys, 'stdout', bare)
    with bq.console_beside():
        assert sys.stdout is not bare
        print('x')
    assert place.lines == ['x']


# -- Windows' own way to stop a console --------------------------------------------------------------------------------
class Kernel32:
    """A console's mode. handle: None where there is no console."""

    def __init__(self, mode, handle=7):
        self.mode, self.modes, self.closed = mode, [], []
        self.CreateFileW = types.SimpleNamespace(restype=None)
        self.CreateFileW = type('Function', (), {'__call__': lambda _, name, *more: handle})()

    def GetConsoleMode(self, handle, pointer):
        if handle.value != 7:
            return 0
        pointer._obj.value = self.mode
        return 1

    def SetConsoleMode(self, handle, mode):
        self.modes.append(mode)
        return 1

    def CloseHandle(self, handle):
        self.closed.append(handle.value)


def test_quick_edit_is_off_while_it_lasts_and_then_as_it_was():
    kernel = Kernel32(0x1F7)
    with bq.mouse_pauses_nothing(kernel):
        assert kernel.modes == [0x1B7]  # Microsoft: ENABLE_QUICK_EDIT_MODE is 0x0040, ENABLE_EXTENDED_FLAGS 0x0080
    assert kernel.modes == [0x1B7, 0x1F7] and kernel.closed == [7]


@pytest.mark.parametrize('handle', [None, ctypes.c_void_p(-1).value, 8])
def test_where_no_console_is_nothing_is_set(handle):
    kernel = Kernel32(0x1F7, handle)
    with bq.mouse_pauses_nothing(kernel):
        assert kernel.modes == []
    assert kernel.modes == [] and kernel.closed == ([8] if handle == 8 else [])


@pytest.mark.posix('for every other system')
def test_elsewhere_there_is_no_such_thing():
    with bq.mouse_pauses_nothing():
        assert True
