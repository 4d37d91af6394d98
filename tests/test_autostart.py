"""install-task and uninstall-task: what they write, what they refuse, and that they take back what they gave."""
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

import bullet_qmt as bq
from tests import schtasks
from tests.processes import LISTENING, LineProcess, named, run

MODULE = os.path.abspath(bq.__file__)
TOKEN = 'a-token-of-the-tests-0123456789'
SETTINGS = 'QMT_SERVER_TYPE=stub\nQMT_SERVER_TOKEN=%s\nQMT_SERVER_PORT=0\n' % TOKEN
SPACE = {'t': schtasks.SPACE[1:-1]}
ODD_FOLDER = named('国金 QMT & 量化' if os.name == 'nt' else '国金 QMT & "量化" $HOME 100%')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, whose name needs care everywhere, with a .env."""
    path = tmp_path / ODD_FOLDER
    path.mkdir()
    (path / '.env').write_text(SETTINGS, encoding='utf-8')
    os.chmod(str(path / '.env'), 0o600)
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A Windows with a stand-in for schtasks, whose tasks are in this folder."""
    store = tmp_path / 'tasks'
    store.mkdir()
    monkeypatch.setattr(bq, 'autostart_kind', lambda: 'task')
    monkeypatch.setattr(bq, 'system_program', lambda name: [sys.executable, schtasks.__file__, str(store)])
    monkeypatch.setattr(bq, 'program_text', lambda data: data.decode(schtasks.CODE_PAGE))
    monkeypatch.setenv('USERDOMAIN', 'DESK')
    monkeypatch.setenv('USERNAME', named('张 & 三'))
    monkeypatch.setattr(bq, 'python_without_window', lambda: str(tmp_path / 'pythonw.exe'))
    return store


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A folder that a task can have; the other one has a percent sign."""
    path = tmp_path / named('国金 & QMT')
    path.mkdir()
    (path / '.env').write_text(SETTINGS, encoding='utf-8')
    os.chmod(str(path / '.env'), 0o600)
    monkeypatch.chdir(path)
    return path


def texts(root, *paths):
    return [root.find('/'.join('t:' + part for part in path.split('/')), SPACE).text for path in paths]


# -- Windows -----------------------------------------------------------------------------------------------------------
def test_the_task_is_as_documented_and_has_what_a_server_needs(tasks, plain, capsys):
    assert bq.main(['install-task']) == bq.Exit.OK
    root = schtasks.read_task((tasks / 'bullet-qmt').read_bytes())
    assert texts(root, 'Settings/ExecutionTimeLimit', 'Settings/DisallowStartIfOnBatteries',
                 'Settings/StopIfGoingOnBatteries', 'Settings/MultipleInstancesPolicy',
                 'Settings/RestartOnFailure/Interval', 'Settings/RestartOnFailure/Count', 'Settings/RunOnlyIfIdle',
                 'Settings/IdleSettings/StopOnIdleEnd', 'Settings/Priority') == [
        'PT0S', 'false', 'false', 'IgnoreNew', 'PT1M', '255', 'false', 'false', '5']
    assert texts(root, 'Triggers/LogonTrigger/UserId', 'Principals/Principal/UserId', 'Principals/Principal/LogonType',
                 'Principals/Principal/RunLevel') == [
        'DESK\\' + named('张 & 三')] * 2 + ['InteractiveToken', 'LeastPrivilege']
    command, arguments, where = texts(root, 'Actions/Exec/Command', 'Actions/Exec/Arguments',
                                      'Actions/Exec/WorkingDirectory')
    log = os.path.join(os.getcwd(), 'bullet.log')
    assert command.endswith('pythonw.exe') and where == os.getcwd()
    assert words_of(arguments) == [MODULE, 'server', '--log-file', log]
    out, err = capsys.readouterr()
    assert '已登记 bullet-qmt' in out and log in out and err == ''
    assert all(part in out for part in ('schtasks /Run /TN bullet-qmt', '/End /TN', 'doctor', 'uninstall-task'))


def words_of(line):
    """The words of a command line by the documented rule of Microsoft's C runtime, of which no \\" is here."""
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', line)]


def test_print_shows_it_and_changes_nothing(tasks, plain, capsys):
    assert bq.main(['install-task', '--print']) == bq.Exit.OK
    out = capsys.readouterr().out
    schtasks.read_task(b'\xff\xfe' + out.encode('utf-16-le'))
    assert os.listdir(str(tasks)) == [] and sorted(os.listdir(str(plain))) == ['.env'] and TOKEN not in out


def test_a_second_one_replaces_the_first_and_both_are_taken_back(tasks, plain, capsys):
    assert bq.main(['install-task', '--name', 'other']) == bq.main(['install-task', '--name', 'other']) == bq.Exit.OK
    out = capsys.readouterr().out
    assert '已登记 other' in out and '已替换 other' in out and os.listdir(str(tasks)) == ['other']
    assert 'uninstall-task --name other' in out
    assert bq.main(['uninstall-task', '--name', 'other']) == bq.Exit.OK and os.listdir(str(tasks)) == []
    assert bq.main(['uninstall-task', '--name', 'other']) == bq.Exit.OK
    assert capsys.readouterr().out.splitlines()[-1] == '没有登记过 other，什么也没有做'


@pytest.mark.parametrize('command', ['install-task', 'uninstall-task'])
def test_a_task_of_somebody_else_stays(tasks, plain, capsys, command):
    (tasks / 'bullet-qmt').write_bytes('<Task>别人的</Task>'.encode('utf-16'))
    assert bq.main([command]) == bq.Exit.USAGE
    assert '不是 install-task 登记的' in capsys.readouterr().err
    assert '别人的' in (tasks / 'bullet-qmt').read_bytes().decode('utf-16')


def test_what_schtasks_says_is_readable_and_what_to_do_is_told(tasks, plain, capsys, monkeypatch):
    monkeypatch.setattr(bq.WindowsTask, 'text', lambda self, plan: '<Task/>')
    assert bq.main(['install-task']) == bq.Exit.USAGE
    err = capsys.readouterr().err
    assert 'schtasks /Create /TN 失败（退出码 1）：错误: 任务 XML 的格式不正确。' in err and '导入任务' in err


@pytest.mark.parametrize('program', [['no-such-program'], [sys.executable, '-c', 'input()']])
def test_a_schtasks_that_is_missing_or_asks_something_is_told(tasks, plain, capsys, monkeypatch, program):
    monkeypatch.setattr(bq, 'system_program', lambda name: program)
    if len(program) == 1:
        assert bq.main(['install-task']) == bq.Exit.USAGE
        assert '错误 [CONFIG_INVALID] schtasks 不能运行：' in capsys.readouterr().err
    else:
        assert bq.run_tool('schtasks', [])[0] != 0  # the end of its stdin, at once


def test_a_schtasks_that_does_not_end_is_not_waited_for(tasks, plain, capsys, monkeypatch):
    monkeypatch.setattr(bq, 'TOOL_TIMEOUT_S', 0.2)
    monkeypatch.setattr(bq, 'system_program',
                        lambda name: [sys.executable, '-c', 'import threading; threading.Event().wait(60)'])
    assert bq.main(['install-task']) == bq.Exit.USAGE
    assert 'schtasks /Query 在' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['100%PATH%', '$(Arg0)'])
def test_what_the_scheduler_would_put_in_is_refused(tasks, tmp_path, monkeypatch, capsys, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / '.env').write_text(SETTINGS, encoding='utf-8')
    monkeypatch.chdir(tmp_path / name)
    assert bq.main(['install-task']) == bq.Exit.USAGE
    assert '任务计划程序会把它换成别的' in capsys.readouterr().err and os.listdir(str(tasks)) == []


def test_without_pythonw_a_window_is_announced(tasks, plain, monkeypatch, capsys):
    monkeypatch.setattr(bq, 'python_without_window', lambda: sys.executable)
    assert bq.main(['install-task']) == bq.Exit.OK
    assert '会有一个窗口' in capsys.readouterr().out


def test_without_a_user_there_is_no_task(tasks, plain, monkeypatch, capsys):
    monkeypatch.setattr(bq, 'windows_user', lambda: '')
    assert bq.main(['install-task']) == bq.Exit.USAGE and 'USERNAME' in capsys.readouterr().err


@pytest.mark.parametrize('page, data, text', [(936, '错误'.encode('gbk'), '错误'), (65001, '错误'.encode('utf-8'), '错误'),
                                              (936, b'\xff', '\\xff'), (437, b'\x81', 'ü'),
                                              (54936, '错误'.encode('gb18030'), '错误'), (99999, b'ok', 'ok')])
def test_what_a_program_prints_is_in_the_code_page_of_the_console(page, data, text):
    class Kernel:
        GetConsoleOutputCP = staticmethod(lambda: page)
    assert bq.program_text(data, Kernel) == text

    class WithoutConsole:
        GetConsoleOutputCP, GetOEMCP = staticmethod(lambda: 0), staticmethod(lambda: page)
    assert bq.program_text(data, WithoutConsole) == text


@pytest.mark.skipif(os.name != 'nt', reason='of Windows: pythonw.exe, and where its own programs are')
def test_a_real_windows_has_what_a_task_needs():
    assert os.path.basename(bq.python_without_window()).lower() == 'pythonw.exe'
    assert os.path.isfile(bq.python_without_window())
    program, = bq.system_program('schtasks')
    assert os.path.isabs(program) and os.path.isfile(program) and bq.windows_user()
    assert bq.program_text('错误'.encode('gbk')) == '错误' and bq.autostart_kind() == 'task'


# -- systemd -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def units(tmp_path, monkeypatch):
    """A Linux with a systemd that notes what it is asked (calls) and answers as told (answer)."""
    class Units:
        folder, calls, answer = tmp_path / 'config' / 'systemd' / 'user', [], (0, '')

    def answer(name, arguments, hint=''):
        Units.calls.append([name] + arguments)
        return Units.answer
    Units.calls = []
    monkeypatch.setattr(bq, 'autostart_kind', lambda: 'unit')
    monkeypatch.setattr(bq, 'run_tool', answer)
    monkeypatch.setattr(bq, 'python_without_window', lambda: '/usr/bin/python3')
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    return Units


def test_the_unit_is_written_enabled_and_taken_back(units, plain, capsys):
    assert bq.main(['install-task']) == bq.Exit.OK
    text = (units.folder / 'bullet-qmt.service').read_bytes().decode('utf-8')
    lines = text.splitlines()
    assert {'Restart=on-failure', 'RestartSec=10', 'RestartPreventExitStatus=2', 'WantedBy=default.target'} < set(lines)
    assert 'WorkingDirectory=' + os.getcwd() in lines and TOKEN not in text
    assert units.calls == [['systemctl', '--user', 'daemon-reload'],
                           ['systemctl', '--user', 'enable', 'bullet-qmt.service']]
    out = capsys.readouterr().out
    assert '已登记' in out and 'loginctl enable-linger' in out and 'systemctl --user status bullet-qmt' in out
    assert bq.main(['install-task']) == bq.Exit.OK and '已替换' in capsys.readouterr().out
    assert bq.main(['uninstall-task']) == bq.Exit.OK and os.listdir(str(units.folder)) == []
    assert units.calls[-2] == ['systemctl', '--user', 'disable', '--now', 'bullet-qmt.service']
    assert bq.main(['uninstall-task']) == bq.Exit.OK
    assert capsys.readouterr().out.splitlines()[-1] == '没有登记过 bullet-qmt，什么也没有做'


def test_without_a_bus_the_unit_is_written_and_what_to_do_is_told(units, plain, capsys):
    units.answer = (1, 'Failed to connect to bus: No medium found')
    assert bq.main(['install-task']) == bq.Exit.USAGE
    err = capsys.readouterr().err
    assert 'Failed to connect to bus' in err and '已写好' in err and 'systemctl --user enable bullet-qmt' in err
    assert (units.folder / 'bullet-qmt.service').exists()
    assert bq.main(['uninstall-task']) == bq.Exit.USAGE and '已删除' in capsys.readouterr().err
    assert os.listdir(str(units.folder)) == []


@pytest.mark.parametrize('command', ['install-task', 'uninstall-task'])
def test_a_unit_of_somebody_else_stays(units, plain, capsys, command):
    units.folder.mkdir(parents=True)
    (units.folder / 'bullet-qmt.service').write_text('[Service]\n')
    assert bq.main([command]) == bq.Exit.USAGE and '不是 install-task 写的' in capsys.readouterr().err
    assert (units.folder / 'bullet-qmt.service').read_text() == '[Service]\n' and units.calls == []


def test_words_of_a_unit_are_quoted_as_systemd_reads_them():
    """systemd.syntax, systemd.service: C escapes in quotes, %% and $$ for themselves; no variable in the program."""
    plan = bq.Autostart('x', ['/a $b/100%/py', 'c\\d "3"', '$HOME', '50%', "it's"], '/量化 100%', '')
    text = bq.SystemdUnit().text(plan)
    assert r'ExecStart="/a $b/100%%/py" "c\\d \"3\"" "$$HOME" "50%%" "it' + "'s\"" in text
    assert 'WorkingDirectory=/量化 100%%\n' in text


@pytest.mark.parametrize('where', ['/ends with a blank ', '/ends with\\'])
def test_a_folder_that_a_unit_cannot_name_is_refused(where):
    with pytest.raises(bq.ConfigError, match='以空格或反斜杠结尾'):
        bq.SystemdUnit().text(bq.Autostart('x', ['/python'], where, ''))


@pytest.mark.parametrize('program', ['/py"3"', "/it's", '/a\\b'])
def test_a_program_that_a_unit_cannot_name_is_refused(program):
    """systemd: Executable name contains special characters."""
    with pytest.raises(bq.ConfigError, match='引号或反斜杠'):
        bq.SystemdUnit().text(bq.Autostart('x', [program], '/', ''))


@pytest.mark.posix('systemd is of Linux alone')
@pytest.mark.skipif(shutil.which('systemd-analyze') is None, reason='no systemd-analyze here')
def test_systemd_itself_takes_the_unit(folder, tmp_path):
    program = tmp_path / 'python 3 $X 100%'
    program.symlink_to(sys.executable)
    plan = bq.Autostart('x', [str(program), MODULE, 'server', '--state=$a %b\\c'], str(folder), '')
    (tmp_path / 'bullet-qmt.service').write_text(bq.SystemdUnit().text(plan), encoding='utf-8')
    done = run(['systemd-analyze', '--user', 'verify', str(tmp_path / 'bullet-qmt.service')],
               env=dict(os.environ, XDG_RUNTIME_DIR=str(tmp_path), LC_ALL='C.UTF-8'))
    assert (done.returncode, done.stdout) == (0, '')


@pytest.mark.posix('systemd is of Linux alone')
def test_the_command_itself_with_a_systemctl_on_the_path(folder, tmp_path):
    """A whole process, as a user starts it."""
    tool = tmp_path / 'bin' / 'systemctl'
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" >> "%s"\n' % (tmp_path / 'calls'), encoding='utf-8')
    tool.chmod(0o755)
    environment = dict(os.environ, PATH='%s:%s' % (tool.parent, os.environ['PATH']), PYTHONIOENCODING='utf-8',
                       XDG_CONFIG_HOME=str(tmp_path / 'config'))
    done = run([sys.executable, MODULE, 'install-task'], env=environment)
    assert done.returncode == 0 and '已登记 bullet-qmt' in done.stdout, done.stdout
    assert run([sys.executable, MODULE, 'uninstall-task'], env=environment).returncode == 0
    assert (tmp_path / 'calls').read_text().splitlines() == [
        '--user daemon-reload', '--user enable bullet-qmt.service', '--user disable --now bullet-qmt.service',
        '--user daemon-reload']


# -- elsewhere ---------------------------------------------------------------------------------------------------------
def test_where_there_is_neither_what_to_do_is_told(plain, monkeypatch, capsys):
    monkeypatch.setattr(bq, 'autostart_kind', lambda: '')
    assert bq.main(['install-task']) == bq.main(['uninstall-task']) == bq.Exit.USAGE
    assert 'LaunchAgents' in capsys.readouterr().err


# -- what is refused, on both ------------------------------------------------------------------------------------------
@pytest.fixture(params=['tasks', 'units'])
def system(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize('line, flags, told', [
    ('QMT_SERVER_PORT=x', [], ["port（", "的值 'x' 无效"]),
    ('QMT_SERVER_TYPE=qmt', [], ['没有配置账户']),
    ('QMT_SERVER_TOKEN=', [], ['没有口令', 'QMT_SERVER_TOKEN=']),
    ('', ['--token', TOKEN], ['口令不能写在命令行上', '.env', '--token-file']),
    ('', ['--token-file', 'missing.txt'], ['口令文件 missing.txt 读不出来']),
    ('', ['--tls-cert', 'a.pem'], ['要同时给出']),
    ('QMT_SERVER_TLS_CERT=a.pem\nQMT_SERVER_TLS_KEY=b.pem', [], ['TLS 证书或私钥读不出来']),
    ('', ['--quote-max-age', '3'], ['只用于 --server-type qmt']),
    ('', ['--env-file', 'missing.env'], ['找不到配置文件 missing.env']),
])
def test_what_a_server_would_refuse_is_refused_at_once(system, plain, capsys, line, flags, told):
    (plain / '.env').write_text(SETTINGS + line + '\n', encoding='utf-8')
    assert bq.main(['install-task'] + flags) == bq.Exit.USAGE
    out, err = capsys.readouterr()
    assert out == '' and all(text in err for text in told) and TOKEN not in err
    assert (os.listdir(str(system)) if hasattr(system, 'iterdir') else system.calls) == []


@pytest.mark.parametrize('name', ['QMT_SERVER_LISTEN', 'BT_ENV_FILE'])
def test_settings_of_this_window_alone_are_refused(system, plain, monkeypatch, capsys, name):
    (plain / 'mine.env').write_text(SETTINGS, encoding='utf-8')
    monkeypatch.setenv(name, '127.0.0.1' if name == 'QMT_SERVER_LISTEN' else 'mine.env')
    assert bq.main(['install-task', '--print']) == bq.Exit.USAGE
    err = capsys.readouterr().err
    assert '%s 是这个窗口的环境变量' % name in err and '.env' in err


@pytest.mark.parametrize('name', ['', 'a b', '../x', '名', 'a.b', '-x', 'x' * 101, 'a\n'])
def test_a_name_is_one_for_both_systems(capsys, name):
    with pytest.raises(SystemExit) as caught:
        bq.main(['install-task', '--name=' + name])
    assert caught.value.code == bq.Exit.USAGE and '--name 的值' in capsys.readouterr().err


def test_options_are_handed_on_and_the_log_of_the_settings_is_kept(system, plain, capsys):
    (plain / 'token.txt').write_text(TOKEN)
    os.chmod(str(plain / 'token.txt'), 0o600)
    (plain / 'my.env').write_text('QMT_SERVER_TYPE=stub\nQMT_SERVER_LOG_FILE=logs.txt\n', encoding='utf-8')
    (plain / '.env').unlink()
    args = ['--env-file', 'my.env', '--token-file', 'token.txt', '--port', '58621', '--no-access-log', '--enable-data']
    plan = bq._checked_autostart(bq.build_parser().parse_args(['install-task'] + args))
    assert plan.words[1:] == [MODULE, 'server', '--env-file', str(plain / 'my.env'), '--port=58621',
                              '--token-file=token.txt', '--enable-data', '--no-access-log',
                              '--log-file', str(plain / 'logs.txt')]
    settings = bq.settings_from(bq.build_parser().parse_args(plan.words[2:]))  # as the task will read them
    assert (settings.port, settings.token, settings.access_log, settings.server_type) == (58621, TOKEN, False, 'stub')


def test_characters_that_no_file_holds_are_refused(plain):
    for text in ('a\nb', '\udcff', '\x00') + (('\uffff',) if named('\uffff') != 'x' else ()):
        with pytest.raises(bq.ConfigError, match='不能写进文件的字符'):
            bq.autostart_of('x', ['server', text], '')
    good = named('国金\u3000QMT')
    assert bq.autostart_of('x', [good], '').words[-1] == good


# -- a server whose screen nobody sees ---------------------------------------------------------------------------------
def test_the_log_tells_why_a_task_did_not_start(plain):
    (plain / '.env').write_text(SETTINGS + 'QMT_SERVER_PORT=x\n', encoding='utf-8')
    done = run([sys.executable, MODULE, 'server', '--log-file', named('日志.log')], cwd=str(plain))
    assert done.returncode == bq.Exit.USAGE
    line, = (plain / named('日志.log')).read_bytes().decode('utf-8').splitlines()
    assert re.match(r'2\d{3}-\d\d-\d\d [\d:.]+ ERROR 没有启动：\[CONFIG_INVALID\] port（.*无效（来自.env）', line)


@pytest.mark.parametrize('named_as', ['%s', ' %s ', pytest.param('"%s"', marks=pytest.mark.skipif(
    os.name != 'nt', reason='elsewhere quotes are part of a name'))])
@pytest.mark.parametrize('name, content', [
    ('orders.sqlite', b'SQLite format 3\0 and more'), ('.env', (SETTINGS + 'QMT_SERVER_PORT=x\n').encode('utf-8')),
    ('token.txt', b'a-token-of-sixteen'), ('strategy.py', b'def initialize(context):\n')])
def test_nothing_of_it_goes_into_what_is_no_log(plain, named_as, name, content):
    (plain / '.env').write_bytes((SETTINGS + 'QMT_SERVER_PORT=x\n').encode('utf-8'))
    (plain / name).write_bytes(content)
    assert bq.main(['server', '--log-file', named_as % name]) == bq.Exit.USAGE
    assert (plain / name).read_bytes() == content


@pytest.mark.parametrize('other, content', [('--state', b'SQLite format 3\0 and more'), ('--state', None),
                                            ('--tls-key', b'a key')])
def test_a_log_that_is_another_file_as_well_is_refused_without_a_line_in_it(plain, capsys, other, content):
    if content is not None:
        (plain / 'x').write_bytes(content)
    options = ['--tls-cert', 'cert.pem'] if other == '--tls-key' else []
    assert bq.main(['server', '--log-file', 'x', other, 'x'] + options) == bq.Exit.USAGE
    assert '是同一个文件' in capsys.readouterr().err
    assert (plain / 'x').read_bytes() == content if content is not None else not (plain / 'x').exists()


def test_the_command_that_is_installed_serves_and_its_log_tells_why_it_does_not(tmp_path, monkeypatch):
    """pythonw.exe on Windows, whose end nothing but a kill brings here: it has no console."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / '.env').write_text(SETTINGS)
    os.chmod('.env', 0o600)
    plan = bq._checked_autostart(bq.build_parser().parse_args(['install-task', '--no-access-log']))
    environment = dict(os.environ, PYTHONIOENCODING='utf-8')
    with LineProcess(plan.words, env=environment, cwd=plan.folder) as server:
        port = int(server.line_with(LISTENING).group(1))
        with bq.RemoteQmtConnection('127.0.0.1', port, TOKEN) as connection:
            assert connection.request('admin.health')['value']['accounts'] == ['default']
        server.kill()
    with open('.env', 'a') as file:
        file.write('QMT_SERVER_PORT=x\n')
    assert run(plan.words, env=environment, cwd=plan.folder).returncode == bq.Exit.USAGE
    with open(plan.log, encoding='utf-8') as file:
        assert 'ERROR 没有启动：[CONFIG_INVALID] port（' in file.read()


def test_the_readme_says_what_a_task_and_a_unit_do():
    with open(os.path.join(os.path.dirname(MODULE), 'README.md'), encoding='utf-8') as file:
        readme = file.read()
    task, unit = bq._TASK_XML, bq._UNIT.format(mark='', folder='', command='', restart_s=bq.RESTART_S)
    for told, is_so in [('每分钟再启动一次，最多 255 次', '<Interval>PT1M</Interval>\n      <Count>255</Count>' in task),
                        ('每 5 分钟另看一次', '<Interval>PT5M</Interval>' in task), ('没有三天的时限', 'Limit>PT0S<' in task),
                        ('已在运行的不会有第二个', 'IgnoreNew' in task), ('在你登录 Windows 时启动', '<LogonTrigger>' in task),
                        ('用电池也运行', 'OnBatteries>false<' in task and 'OnBatteries>true<' not in task),
                        ('没有设置时是 `bullet.log`', bq.AUTOSTART_LOG == 'bullet.log'),
                        ('出错 10 秒后再启动', 'Restart=on-failure\nRestartSec=10\n' in unit),
                        ('设置写错时不再启动', 'RestartPreventExitStatus=%d' % bq.Exit.USAGE in unit)]:
        assert told in readme and is_so, told


# -- any text ----------------------------------------------------------------------------------------------------------
def test_any_path_comes_back_from_the_xml(monkeypatch):
    hypothesis = pytest.importorskip('hypothesis')
    from hypothesis import strategies as st
    words = st.text(st.characters(blacklist_categories=('Cc', 'Cs', 'Cn'), blacklist_characters='%"'), min_size=1)
    monkeypatch.setattr(bq, 'windows_user', lambda: 'DESK\\<"&\'>')

    @hypothesis.given(words, words, words)
    def holds(command, word, where):
        hypothesis.assume(not any('$(' in text or text != text.strip() for text in (command, word, where)))
        text = bq.WindowsTask().text(bq.Autostart('x', [command, 'a b', word], where, ''))
        root = schtasks.read_task(b'\xff\xfe' + text.encode('utf-16-le'))
        found = texts(root, 'Actions/Exec/Command', 'Actions/Exec/Arguments', 'Actions/Exec/WorkingDirectory',
                      'Principals/Principal/UserId')
        assert found == [command, subprocess.list2cmdline(['a b', word]), where, 'DESK\\<"&\'>']
    holds()


@pytest.mark.parametrize('change, told', [
    (('PT1M', 'PT30S'), 'Interval'), (('255', '999'), 'Count'), (('IgnoreNew', 'Never'), 'MultipleInstancesPolicy'),
    (('<Hidden>false</Hidden>', '<Shown>true</Shown>'), 'children of Settings'), (('Context="Owner"', ''), 'Context'),
    (('<UserId>u</UserId>\n    </LogonTrigger>', '<UserId>u</UserId>\n<Enabled>true</Enabled></LogonTrigger>'),
     'LogonTrigger')])
def test_the_stand_in_refuses_what_the_schema_does(monkeypatch, change, told):
    monkeypatch.setattr(bq, 'windows_user', lambda: 'u')
    text = bq.WindowsTask().text(bq.Autostart('x', ['c', 'a'], 'w', ''))
    schtasks.read_task(b'\xff\xfe' + text.encode('utf-16-le'))
    assert change[0] in text
    with pytest.raises((ValueError, ET.ParseError), match=told):
        schtasks.read_task(b'\xff\xfe' + text.replace(*change).encode('utf-16-le'))
