"""Runs of pytest side by side: what they print stays apart, none outlives its deadline or leaves a process."""
import operator
import os
import re
import sys
import threading
import time

import pytest

from tests import lanes, windows
from tests.environments import EnvironmentFailed


def lane(script, output, at_end=lambda: None, ends_at=None):
    return lanes.Lane([sys.executable, '-u', '-c', script], None, output, at_end, ends_at)


class Kept:
    """An output that is looked at."""

    def __init__(self):
        self.text, self.has_come, self.beats, self.ended = '', threading.Event(), 0, False

    def piece(self, data):
        self.text += data.decode()
        self.has_come.set()

    def silent(self):
        self.beats += 1

    def end(self):
        self.ended = True


def test_a_lane_gives_what_was_printed_and_the_exit_code():
    kept, ends = Kept(), []
    assert lane('import sys; print(1); sys.stderr.write("2"); sys.exit(3)', kept, lambda: ends.append(1)).run() == 3
    assert kept.text.split() == ['1', '2'] and kept.ended and ends == [1]


WAITS = 'import sys, threading; print("waits"); threading.Event().wait()'


def test_a_lane_whose_time_is_up_ends_and_says_so():
    kept, ends = Kept(), []
    with pytest.raises(lanes.Ended, match='its time was up'):
        lane(WAITS, kept, lambda: ends.append(1), time.monotonic() + 1).run()
    assert kept.ended and ends == [1]


def test_a_lane_that_says_nothing_ends_and_says_so(monkeypatch):
    monkeypatch.setattr(lanes, 'HEARTBEAT_S', 0.5)
    monkeypatch.setattr(lanes, 'SILENCE_S', 120 / 60)
    kept = Kept()
    with pytest.raises(lanes.Ended, match='it said nothing'):
        lane('import threading; threading.Event().wait()', kept).run()
    assert kept.beats == 3 and kept.ended


@pytest.mark.wine('its taskkill leaves the children of what it ends')
def test_a_lane_that_is_stopped_ends_with_all_that_it_has_started():
    """The child holds the pipe: the lane would be open if it lived on."""
    child = 'import subprocess, sys; subprocess.call([sys.executable, "-u", "-c", %r])' % WAITS
    kept = Kept()
    running = lane(child, kept)
    told = []

    def run():
        try:
            running.run()
        except lanes.Ended as ended:
            told.append(str(ended))
    thread = threading.Thread(target=run)
    thread.start()
    assert kept.has_come.wait(60)
    running.stop('interrupted')
    thread.join(60)
    assert told == ['interrupted'] and kept.ended and running._closed


def test_what_lanes_print_stays_apart(capsys):
    """Progress as it comes, line by line, under the lane's name; all else in one piece."""
    one, other = lanes.Apart('Windows 3.11, part 1'), lanes.Apart('Python 3.6')
    one.piece(b'collected 2 items\r\n\r\ntests/test_a.py ..')
    other.piece(b'tests/test_b.py F  [100%]\n== FAILURES ==\nit fai')
    one.piece(b'..   [ 50%]\r\ntests/test_c.py .')
    one.silent()
    other.piece(b'led: \xe8\x82\xa1\n1 failed')
    other.end()
    assert capsys.readouterr().out.splitlines() == [
        'Python 3.6 | tests/test_b.py F  [100%]', 'Windows 3.11, part 1 | tests/test_a.py ....   [ 50%]',
        'Windows 3.11, part 1 | tests/test_c.py . ...', '', '-- Python 3.6 --', '== FAILURES ==', 'it failed: 股',
        '1 failed']
    one.end()
    assert capsys.readouterr().out.splitlines() == ['', '-- Windows 3.11, part 1 --', 'collected 2 items',
                                                    'tests/test_c.py .']


def test_what_a_windows_python_lacks_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(windows.platform, 'machine', lambda: 'x86_64')
    monkeypatch.setattr(windows.sys, 'platform', 'linux')
    monkeypatch.setattr(windows.shutil, 'which', lambda name: None)
    with pytest.raises(EnvironmentFailed) as caught:
        windows.install_tools(print)
    assert str(caught.value) == (
        'wine, wineserver, x86_64-w64-mingw32-gcc, x86_64-w64-mingw32-objdump, localedef missing: as root on Debian '
        '12, apt-get install wine wine64 gcc-mingw-w64-x86-64-win32 locales')
    monkeypatch.setattr(windows, 'find_interpreters', dict)
    with pytest.raises(EnvironmentFailed, match=r'takes its Lib/ from a CPython 3\.11 of this machine, which has none'):
        windows.WindowsPython((3, 11)).made(print)


def test_no_windows_python_is_made_elsewhere(monkeypatch):
    monkeypatch.setattr(windows.sys, 'platform', 'darwin')
    monkeypatch.setattr(windows.platform, 'machine', lambda: 'arm64')
    with pytest.raises(EnvironmentFailed, match='under Wine on Linux on x86_64; this is darwin on arm64'):
        windows.install_tools(print)


def test_every_windows_python_has_its_packages():
    """Each package is named once for each interpreter."""
    lines = windows.text_of(os.path.join(windows.HERE, 'requirements.txt')).splitlines()
    for version in windows.RUNTIMES:
        names = [line.split('==')[0] for line in lines if line[:1] not in ('', '#') and applies(line, version)]
        assert {'numpy', 'pandas', 'pytest', 'hypothesis', 'cryptography', 'xtquant'} <= set(names)
        assert len(names) == len(set(names)) and all('==' in line for line in lines if line[:1] not in ('', '#'))


def applies(line, version):
    return all(COMPARED[sign](version, tuple(map(int, text.split('.'))))
               for sign, text in re.findall(r'python_version (\S+) "([\d.]+)"', line))


COMPARED = {'<': operator.lt, '==': operator.eq, '>=': operator.ge}
