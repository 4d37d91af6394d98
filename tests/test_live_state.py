"""What a live run keeps on disk, who may use the directory, and which job is due when."""
import errno
import hashlib
import os
import pickle
import types
from collections import OrderedDict
from datetime import date, datetime, timedelta

import pytest

import bullet_qmt
import jq_helper as jq
from bullet_qmt import ConfigError
from tests.live import moment, stage

DAY = date(2025, 3, 3)
needs_owners = pytest.mark.posix('owners and modes of files; on Windows the folder\'s access list decides')
needs_links = pytest.mark.posix('links need a right on Windows, and there is no way to open one unfollowed')


def state_in(directory, **values):
    return jq.LiveState(str(directory), dict(dict(run_id='abc', born=DAY, day=DAY, strategy='s.py'), **values))


# -- the file --------------------------------------------------------------------------------------------------------
def test_a_directory_without_a_state_has_none(tmp_path):
    assert jq.LiveState.read(str(tmp_path)) is None


def test_what_is_saved_is_read_again(tmp_path):
    state = state_in(tmp_path, kept={'g': OrderedDict(n=pickle.dumps(3)), 'tasks': ([], 0)})
    key = state.new_key(OrderedDict(security='000001.XSHE', side='BUY', amount=100))
    state.begin_job((570, 2, 0))
    again = jq.LiveState.read(str(tmp_path))
    assert all(getattr(again, name) == getattr(state, name) for name in again.FIELDS)
    assert again.running == again.cursor == (570, 2, 0) and list(again.keys) == [key] and again.orders == 1


@pytest.mark.parametrize('harm', [lambda data: data[:-1], lambda data: data[:80] + b'\0' + data[81:],
                                  lambda data: data + b'x', lambda data: data[:len(jq.STATE_MAGIC) + 5]])
def test_a_damaged_state_stops_the_start(tmp_path, harm):
    state_in(tmp_path).save()
    path = tmp_path / jq.STATE_FILE
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ConfigError, match='已损坏'):
        jq.LiveState.read(str(tmp_path))


@pytest.mark.parametrize('data', [b'', b'hello', pickle.dumps({'version': 1})])
def test_a_foreign_file_is_never_unpickled(tmp_path, data):
    (tmp_path / jq.STATE_FILE).write_bytes(data)
    with pytest.raises(ConfigError, match='不是实盘的状态文件'):
        jq.LiveState.read(str(tmp_path))


def test_another_version_is_refused(tmp_path):
    state_in(tmp_path, version=99).save()
    with pytest.raises(ConfigError, match='版本 99'):
        jq.LiveState.read(str(tmp_path))


def test_what_an_older_file_lacks_has_its_default(tmp_path, monkeypatch):
    state_in(tmp_path, number=7).save()
    monkeypatch.setattr(jq.LiveState, 'FIELDS', OrderedDict(jq.LiveState.FIELDS, newer='default'))
    again = jq.LiveState.read(str(tmp_path))
    assert (again.number, again.newer) == (7, 'default')


def test_a_state_without_the_cancels_that_are_open_has_none(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(jq.LiveState, 'FIELDS', OrderedDict(
            item for item in jq.LiveState.FIELDS.items() if item[0] != 'undecided'))
        state_in(tmp_path).save()
    assert jq.LiveState.read(str(tmp_path)).undecided == {}


def test_what_a_newer_program_wrote_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(jq.LiveState, 'FIELDS', OrderedDict(jq.LiveState.FIELDS, newer='default'))
        state_in(tmp_path).save()
    with pytest.raises(ConfigError, match='不认识的 newer'):
        jq.LiveState.read(str(tmp_path))


@pytest.mark.parametrize('name', ['keys', 'cursor', 'number', 'kept'])
def test_a_file_without_what_must_not_be_forgotten_is_refused(tmp_path, monkeypatch, name):
    with monkeypatch.context() as other:
        other.setattr(jq.LiveState, 'FIELDS', OrderedDict(
            (each, value) for each, value in jq.LiveState.FIELDS.items() if each != name))
        state_in(tmp_path).save()
    with pytest.raises(ConfigError, match='里没有 ' + name) as caught:
        jq.LiveState.read(str(tmp_path))
    assert '--runtime-dir' in caught.value.hint


@pytest.mark.parametrize('name', ['g', 'tasks'])
def test_a_strategy_s_own_state_without_its_tasks_is_refused(tmp_path, name):
    state_in(tmp_path, kept={each: {} for each in ('g', 'tasks') if each != name}).save()
    with pytest.raises(ConfigError, match='里没有 ' + name):
        jq.LiveState.read(str(tmp_path))


def test_a_write_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    state = state_in(tmp_path, number=1)
    state.save()

    def full(descriptor):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(jq.os, 'fsync', full)
    state.number = 2
    with pytest.raises(ConfigError, match='状态写不进'):
        state.save()
    monkeypatch.undo()
    assert jq.LiveState.read(str(tmp_path)).number == 1


@needs_owners
def test_the_state_is_for_its_owner_alone(tmp_path):
    state_in(tmp_path).save()
    assert os.stat(str(tmp_path / jq.STATE_FILE)).st_mode & 0o077 == 0


class Evil:
    """Whoever unpickles it runs what it wants."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_state(directory, value):
    body = pickle.dumps(value, protocol=4)
    (directory / jq.STATE_FILE).write_bytes(jq.STATE_MAGIC + hashlib.sha256(body).digest() + body)
    (directory / jq.STATE_FILE).chmod(0o600)


def linked(path, elsewhere):
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@needs_owners
@pytest.mark.parametrize('harm, word', [
    (lambda folder: folder.chmod(0o777), '别人也能写'), (lambda folder: folder.chmod(0o720), '别人也能写'),
    (lambda folder: (folder / jq.STATE_FILE).chmod(0o606), '别人也能写'),
    (lambda folder: linked(folder / jq.STATE_FILE, folder.parent / 'elsewhere'), '读不出来')])
def test_what_others_can_write_is_never_unpickled(tmp_path, harm, word):
    folder = tmp_path / 'run'
    folder.mkdir(0o700)
    write_state(folder, Evil(str(tmp_path / 'executed')))
    harm(folder)
    with pytest.raises(ConfigError, match=word):
        jq.LiveState.read(str(folder))
    assert not (tmp_path / 'executed').exists()


@needs_owners
def test_a_directory_that_others_can_write_is_refused_before_there_is_a_state(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match='chmod go-w'):
        jq.LiveState.read(str(tmp_path))


@needs_owners
@pytest.mark.parametrize('uid, mode, whose', [
    (1000, 0o40700, None), (0, 0o40755, None), (1001, 0o40700, 'uid 1001'), (1000, 0o40775, '775'),
    (1000, 0o100602, '602')])
def test_only_we_and_root_may_have_written_it(monkeypatch, uid, mode, whose):
    monkeypatch.setattr(bullet_qmt.os, 'geteuid', lambda: 1000)
    found = bullet_qmt.foreign(types.SimpleNamespace(st_uid=uid, st_mode=mode))
    assert found is None if whose is None else whose in found


def test_on_windows_the_folder_decides(monkeypatch):
    monkeypatch.setattr(bullet_qmt, 'IS_WINDOWS', True)
    monkeypatch.delattr(bullet_qmt.os, 'geteuid', raising=False)
    assert bullet_qmt.foreign(types.SimpleNamespace(st_uid=5, st_mode=0o100777)) is None


@needs_links
@pytest.mark.parametrize('name', [jq.LOCK_FILE, jq.STATE_FILE + '.new'])
def test_a_link_in_the_directory_is_not_followed(tmp_path, name):
    (tmp_path / 'precious').write_text('precious')
    (tmp_path / name).symlink_to(tmp_path / 'precious')
    with pytest.raises(ConfigError):
        with jq.DirectoryLock(str(tmp_path)):
            state_in(tmp_path).save()
    assert (tmp_path / 'precious').read_text() == 'precious'


@pytest.mark.parametrize('value', [[], 5, None, 'x', {'kept': 3}])
def test_a_sound_file_that_holds_no_state_is_refused(tmp_path, value):
    write_state(tmp_path, value)
    with pytest.raises(ConfigError, match='不是实盘的状态'):
        jq.LiveState.read(str(tmp_path))


def test_a_state_of_classes_that_are_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jq, 'Gone', type('Gone', (), {'__module__': 'jq_helper'}), raising=False)
    write_state(tmp_path, jq.Gone())
    monkeypatch.delattr(jq, 'Gone')
    with pytest.raises(ConfigError, match='读不懂'):
        jq.LiveState.read(str(tmp_path))


def test_a_large_g_is_told_of_once(tmp_path):
    text = 'def initialize(context):\n    g.small, g.big = 1, bytes(11 * 1024 * 1024)\n    run_daily(trade, "9:35")\n' \
           'def trade(context):\n    order("510300.XSHG", 100)\n'
    with stage(tmp_path, '2025-03-03 09:30', '2025-03-03 09:40') as it:
        it.run(it.strategy(text))
        assert len(it.said('g 里的数据有 11 MB（最大的是 g.big）')) == 1 and len(it.broker.get_orders()) == 1


def test_keys_are_never_given_out_twice(tmp_path):
    state, keys = state_in(tmp_path), set()
    for number in range(3):
        for _ in range(3):
            keys.add(state.new_key({}))
            keys.add(state.count_cancel('1', '000001.XSHE'))
        state = jq.LiveState.read(str(tmp_path))
        state.begin_day(DAY + timedelta(days=number + 1))
    assert len(keys) == 18 and all(state.is_own_key(key) for key in keys)
    assert not state.is_own_key('live-other-20250303-1') and not state.is_own_key(None)


def test_a_key_is_kept_until_its_outcome_is_certain(tmp_path):
    state = state_in(tmp_path)
    first, second = state.new_key({'n': 1}), state.new_key({'n': 2})
    state.close_key(first, '77')
    again = jq.LiveState.read(str(tmp_path))
    assert list(again.keys) == [second] and again.own == {'77': first}


def test_a_full_disk_under_the_lock_is_one_clear_error(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(jq.os, 'write', full)
    with pytest.raises(bullet_qmt.ConfigError) as caught:
        jq.DirectoryLock(str(tmp_path)).__enter__()
    assert 'No space left' in caught.value.message and '磁盘空间' in caught.value.hint
    monkeypatch.undo()
    with jq.DirectoryLock(str(tmp_path)):
        assert str(os.getpid()) in (tmp_path / jq.LOCK_FILE).read_text(encoding='utf-8')


# -- one process -----------------------------------------------------------------------------------------------------
def test_a_directory_has_one_process(tmp_path):
    with jq.DirectoryLock(str(tmp_path)):
        with pytest.raises(ConfigError, match='进程 %d' % os.getpid()):
            jq.DirectoryLock(str(tmp_path)).__enter__()
    with jq.DirectoryLock(str(tmp_path)):
        pass


class ByteLocks:
    """msvcrt's locking: of the bytes from the descriptor's place on; gone when the descriptor is closed."""

    LK_NBLCK = 2

    def __init__(self):
        self.held = {}

    def locking(self, descriptor, mode, count):
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        holder = self.held.get(place)
        if holder not in (None, descriptor) and self._is_open(holder):
            raise PermissionError(13, 'Permission denied')
        assert mode == self.LK_NBLCK and count == 1 and place[1] > 1 << 20, 'the text stays readable for others'
        self.held[place] = descriptor

    @staticmethod
    def _is_open(descriptor):
        try:
            os.fstat(descriptor)
            return True
        except OSError:
            return False


def test_a_directory_has_one_process_on_windows_too(tmp_path, monkeypatch):
    locks = ByteLocks()
    monkeypatch.setattr(jq, 'optional_import', {'msvcrt': locks}.get)
    with jq.DirectoryLock(str(tmp_path)):
        with pytest.raises(ConfigError, match='已有一个实盘进程在用（进程 %d' % os.getpid()):
            jq.DirectoryLock(str(tmp_path)).__enter__()
    with jq.DirectoryLock(str(tmp_path)):
        assert (tmp_path / jq.LOCK_FILE).read_text('utf-8').count('进程') == 1


class LateLocks(ByteLocks):
    """Held by a process that was killed, until it has been asked for the n-th time; errno: as the C library says."""

    def __init__(self, errno, times):
        super().__init__()
        self.errno, self.left = errno, times

    def locking(self, descriptor, mode, count):
        self.left -= 1
        if self.left > 0:
            raise OSError(self.errno, 'held')
        super().locking(descriptor, mode, count)


@pytest.mark.parametrize('number', [errno.EACCES, errno.EDEADLK, 0])
def test_a_killed_process_s_lock_may_come_free_late(tmp_path, monkeypatch, number):
    """LockFile: what a process had locked as it ended is unlocked by the system, in a time that nobody promises."""
    monkeypatch.setattr(jq, 'optional_import', {'msvcrt': LateLocks(number, times=3)}.get)
    monkeypatch.setattr(jq.DirectoryLock, 'PATIENCE_S', 60.0, raising=False)
    with jq.DirectoryLock(str(tmp_path)):
        assert str(os.getpid()) in (tmp_path / jq.LOCK_FILE).read_text('utf-8')
    monkeypatch.setattr(jq, 'optional_import', {'msvcrt': LateLocks(number, times=1000)}.get)
    monkeypatch.setattr(jq.DirectoryLock, 'PATIENCE_S', 0.2, raising=False)
    with pytest.raises(ConfigError, match='已有一个实盘进程在用'):
        jq.DirectoryLock(str(tmp_path)).__enter__()


def test_a_lock_that_cannot_be_had_is_not_called_held(tmp_path, monkeypatch):
    def no_locks(descriptor, mode):
        raise OSError(errno.ENOLCK, 'No locks available')
    fcntl = types.SimpleNamespace(flock=no_locks, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(jq, 'optional_import', {'fcntl': fcntl}.get)
    with pytest.raises(ConfigError, match='不能上锁'):
        jq.DirectoryLock(str(tmp_path)).__enter__()
    (tmp_path / 'folder' / jq.LOCK_FILE).mkdir(parents=True)
    with pytest.raises(ConfigError, match='打不开'):
        jq.DirectoryLock(str(tmp_path / 'folder')).__enter__()


# -- packing ---------------------------------------------------------------------------------------------------------
def test_what_cannot_be_pickled_is_named_and_the_rest_is_kept():
    lost = []
    values = {'n': 1, '__hidden': 2, 'f': lambda: 0, 'x': [1, {2: 3}]}
    packed = jq._packed(values, lambda name, error: lost.append(name))
    assert lost == ['f']
    assert jq._unpacked(packed, None) == OrderedDict([('n', 1), ('x', [1, {2: 3}])])


# -- what is due -----------------------------------------------------------------------------------------------------
def noon(context):
    """A task."""


def agenda(late_limit_s=300, frequency='minute', hooks=(), tasks=(('every_bar', noon),)):
    days = [DAY + timedelta(days=number) for number in range(5)]
    schedule = jq.Schedule(days, DAY, frequency)
    schedule.hooks = hooks
    for time, func in tasks:
        schedule.add('daily', func, time)
    return jq.Agenda(schedule, late_limit_s)


def run_through(agenda, start, stop, step_s=60):
    """[(time of the job, time it ran)] for a process that looks every step_s seconds."""
    now, cursor, ran = moment(start), (-1,), []
    while now <= moment(stop):
        found = agenda.next(DAY, cursor)
        if found is None or found[1] > now:
            now += timedelta(seconds=step_s)
            continue
        cursor = found[0].key
        if agenda.reason_to_skip(found[0], DAY, now) is None:
            ran.append((found[1], now))
    return ran


def test_every_minute_runs_once_and_on_time():
    ran = run_through(agenda(), '2025-03-03 09:00', '2025-03-03 15:10')
    assert len(ran) == 240 and all(planned == now for planned, now in ran)


def test_of_overdue_minutes_only_the_newest_runs():
    ran = run_through(agenda(), '2025-03-03 10:03:20', '2025-03-03 10:04:30', step_s=10)
    assert [planned.strftime('%H:%M') for planned, _ in ran] == ['10:03', '10:04']


def test_two_functions_that_are_late_both_run():
    tasks = (('10:00', noon), ('10:01', noon))
    ran = run_through(agenda(tasks=tasks), '2025-03-03 10:03', '2025-03-03 10:04')
    assert [planned.strftime('%H:%M') for planned, _ in ran] == ['10:00', '10:01']


@pytest.mark.parametrize('late_s, runs', [(0, True), (59, True), (300, True), (301, False)])
def test_a_task_may_be_late_by_the_limit(late_s, runs):
    one = agenda(tasks=(('10:00', noon),))
    job, instant = one.next(DAY, (-1,))
    reason = one.reason_to_skip(job, DAY, instant + timedelta(seconds=late_s))
    assert (reason is None) == runs and (runs or '301 秒' in reason)


def test_what_runs_within_its_second_is_not_late():
    one = agenda(late_limit_s=0, tasks=(('10:00', noon),))
    job, instant = one.next(DAY, (-1,))
    reasons = [one.reason_to_skip(job, DAY, instant + timedelta(seconds=late_s)) for late_s in (0.0, 0.9, 1.0)]
    assert reasons[:2] == [None, None] and '晚了 1 秒' in reasons[2]


@pytest.mark.parametrize('clock, runs', [('14:59', True), ('15:00', False)])
def test_before_trading_start_is_made_up_until_the_close(clock, runs):
    one = agenda(hooks=['before_trading_start'], tasks=())
    job, _ = one.next(DAY, (-1,))
    assert (one.reason_to_skip(job, DAY, moment('2025-03-03 ' + clock)) is None) == runs


# -- tasks go from process to process ----------------------------------------------------------------------------------
def test_tasks_keep_their_place_and_numbers():
    schedule = jq.Schedule([DAY], DAY, 'day')
    schedule.add('daily', noon, '10:00')
    schedule.clear()
    schedule.add('weekly', noon, '9:30', 2, True, DAY)
    rows, following = schedule.saved()
    again = jq.Schedule([DAY], DAY, 'day')
    again.restore(rows, following, {'noon': noon}.get)
    again.add('daily', noon, '9:31')
    schedule.add('daily', noon, '9:31')
    assert again.saved() == schedule.saved() and [row[6] for row in again.saved()[0]] == [1, 2]


def test_a_task_whose_function_is_gone_is_dropped():
    schedule = jq.Schedule([DAY], DAY, 'day')
    schedule.restore([('daily', 'gone', (570,), None, False, DAY, 0)], 1, {}.get)
    assert schedule.saved() == ([], 1)


def test_the_wall_clock_is_beijing_time_and_never_waits_long(monkeypatch):
    waited = []
    clock = jq.LiveClock()
    event = type('Event', (), {'wait': lambda self, seconds: waited.append(seconds)})()
    clock.wait(3600, event)
    clock.wait(-5, event)
    assert waited == [jq.HEAR_S, 0.0] and jq.HEAR_S < 0.5
    before = datetime.now(jq.BEIJING).replace(tzinfo=None)
    assert before <= clock.now() <= datetime.now(jq.BEIJING).replace(tzinfo=None)
