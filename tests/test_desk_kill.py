"""A server that is killed at any instant of its journal's life: no order twice, each one known, nothing called lost."""
import json
import os
import random
import sys
import threading

import pytest

import bullet_qmt as bq
from tests.environments import ROOT
from tests.fakes import FakeClock
from tests.live import moment
from tests.processes import named, run
from tests.test_live_kill import KILLED

KEYS = 'abcdef'
START = named('orders of 五月.sqlite')


class Life:
    """A journal, the broker's book, and the processes of a day, one after the other."""

    def __init__(self, directory):
        self.path, self.book, self.begun = str(directory / START), str(directory / 'book'), 0
        (directory / 'book').write_bytes(b'')

    def lives(self, instants, path=None, keys=KEYS):
        """(exit code, what it told)."""
        self.begun += 1
        now = '2024-05-15 10:%02d:00' % self.begun
        done = run([sys.executable, '-m', 'tests.desk_child', path or self.path, self.book, now, str(instants),
                    ','.join(keys)], cwd=ROOT, env=dict(os.environ, PYTHONPATH=ROOT, PYTHONIOENCODING='utf-8'))
        return done.returncode, done.stdout

    def assert_all_is_known(self, path=None, keys=KEYS):
        code, told = self.lives(0, path, keys)
        assert code == 0, told
        told = json.loads(told.splitlines()[-1])
        with open(self.book) as file:
            tags = file.read().split()
        assert len(tags) == len(set(tags)), 'no order is at the broker twice'
        assert told['losses'] == []
        for key in keys:
            tag = bq.make_tag(bq.PLACE, key)
            known = ['accepted', 'o%d' % (tags.index(tag) + 1)] if tag in tags else ['absent', None]
            assert told['states'][key] == known
        assert len(tags) + sum(state == 'absent' for state, _ in told['states'].values()) == len(keys)


@pytest.mark.parametrize('seed', [int(text) for text in os.environ.get('DESK_KILL_SEEDS', '1').split(',')])
def test_a_day_of_killed_servers(tmp_path, seed):
    life, chance = Life(tmp_path), random.Random(seed)
    for _ in range(8):
        assert life.lives(chance.randint(20, 130))[0] in (0, KILLED)
    life.assert_all_is_known()


# The first statements: the file is made, then its tables, then its name, then the file of tags.
@pytest.mark.parametrize('instants', [2, 9, 19, 22, 27, 40])
def test_a_first_start_that_was_killed_is_gone_on_with(tmp_path, instants):
    life = Life(tmp_path)
    assert life.lives(instants, keys='a')[0] == KILLED
    life.assert_all_is_known(keys='a')


def other_names(path):
    """Of the same file: on Windows in capitals and as DOS had it, elsewhere through a link."""
    if os.name != 'nt':
        os.symlink(os.path.dirname(path), os.path.dirname(path) + '-linked')
        return [os.path.join(os.path.dirname(path) + '-linked', os.path.basename(path))]
    import ctypes
    short = ctypes.create_unicode_buffer(1000)
    ctypes.WinDLL('kernel32').GetShortPathNameW(path, short, len(short))
    return [path.upper(), short.value]  # a disk may be without short names: then this is the path itself


def test_a_journal_that_is_called_by_another_name_has_lost_nothing(tmp_path):
    """What sqlite has not yet put into the file is in one beside it, named after what the file was called by."""
    life = Life(tmp_path)
    assert life.lives(110)[0] == KILLED and os.path.exists(life.path + '-wal')
    for path in other_names(life.path):
        code, told = life.lives(110, path)
        assert code == KILLED, told
    life.assert_all_is_known(other_names(life.path)[-1] if os.name == 'nt' else life.path)


def test_two_names_of_a_journal_have_one_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(bq.Journal, 'PATIENCE_S', 0.1, raising=False)
    clock, path = FakeClock(moment('2024-05-15 10:00')), str(tmp_path / START)
    journal = bq.Journal(path, clock)
    try:
        for name in [path] + other_names(path):
            with pytest.raises(bq.ConfigError, match='最近的使用者：进程 %d' % os.getpid()):
                bq.Journal(name, clock)
    finally:
        journal.close()


def test_a_journal_on_a_drive_that_tells_no_names_is_used_as_it_was_called(tmp_path, monkeypatch):
    """Some RAM disks: GetFinalPathNameByHandle fails with ERROR_INVALID_FUNCTION."""
    def realpath(path):
        raise OSError(22, 'Incorrect function')
    monkeypatch.setattr(os.path, 'realpath', realpath)
    bq.Journal(str(tmp_path / START), FakeClock(moment('2024-05-15 10:00'))).close()
    assert (tmp_path / START).exists() and (tmp_path / (START + '.mark')).exists()


def test_a_killed_server_s_lock_may_come_free_late(tmp_path, monkeypatch):
    """LockFile: what a process had locked as it ended is unlocked by the system, in a time that nobody promises."""
    monkeypatch.setattr(bq.Journal, 'PATIENCE_S', 60.0, raising=False)
    clock, path = FakeClock(moment('2024-05-15 10:00')), str(tmp_path / START)
    journal = bq.Journal(path, clock)
    timer = threading.Timer(1.6, journal.close)
    timer.start()
    bq.Journal(path, clock).close()
    timer.join()
