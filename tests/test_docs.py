"""A claim in the README is a claim that holds: its options, actions, codes and commands are checked here."""
import os
import re
import shlex
import subprocess
import sys
from datetime import date, timedelta

import pytest

import bullet_qmt as bq
import jq_helper
from tests.base import TOKEN, serving

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULE = os.path.abspath(bq.__file__)
with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as _file:
    README = _file.read()


def blocks(language):
    return re.findall(r'```%s\n(.*?)```' % language, README, re.DOTALL)


def commands():
    """Every `python bullet_qmt.py ...` line of the shell blocks, as arguments."""
    lines = [line.split('#')[0].strip() for block in blocks('bash') for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith('python bullet_qmt.py')]


def options_table():
    """The README's table of options, as it must stand there."""
    lines = ['| 选项 | 环境变量 | 默认 | 说明 |', '|---|---|---|---|']
    for option in bq.OPTIONS:
        flags = ' / '.join('`%s`' % flag for flag in option.flags) or '-'
        default = '`%s`' % option.default if option.default else '-'
        lines.append('| %s | `%s` | %s | %s |' % (flags, option.env, default, option.help.replace('|', r'\|')))
    return '\n'.join(lines)


def test_options_table_is_the_one_of_the_program():
    shown = README.split('<!-- options:begin -->')[1].split('<!-- options:end -->')[0].strip()
    assert shown == options_table(), 'put this into the README:\n' + options_table()


@pytest.mark.parametrize('action', sorted(bq.ACTIONS))
def test_each_action_is_in_the_readme(action):
    assert '`%s`' % action in README


@pytest.mark.parametrize('code', sorted(bq.ERRORS_BY_CODE))
def test_each_error_code_is_in_the_readme(code):
    assert '`%s`' % code in README


@pytest.mark.parametrize('name', sorted(bq.COMMANDS))
def test_each_command_is_in_the_readme(name):
    assert re.search(r'python bullet_qmt\.py %s\b' % name, README)


@pytest.mark.parametrize('command, title', [('backtest', '回测'), ('live', '实盘')])
def test_the_options_of_a_chapter_are_those_of_its_command(command, title):
    """Its table, in both directions; those of the connection are in the big table."""
    chapter = README.split('\n## %s\n' % title)[1].split('\n## ')[0]
    rows = chapter.split('| 选项 | 说明 |\n')[1].split('\n\n')[0].splitlines()
    shown = [flag for row in rows for flag in re.findall(r'--[a-z][a-z-]+', row.split(' | ')[0])]
    own = [flag for flags, _ in bq.COMMANDS[command][3] for flag in flags if flag.startswith('--')]
    assert sorted(shown) == sorted(own)
    client = [flag for option in bq.OPTIONS if option.group == 'client' for flag in option.flags]
    named = set(re.findall(r'--[a-z][a-z-]+', chapter))
    assert named <= set(own + client + ['--port', '--token'] + [flags[0] for flags, _ in bq.COMMANDS['backtest'][3]])


def test_the_calendar_is_as_told():
    """What is closed by rule alone is closed in a year that no notice reaches, such as 2030."""
    first, last = bq.CALENDAR_YEARS
    assert '%d 到 %d 年是交易所公布的' % (first, last) in README
    told = '周一至周五，除去 1 月 1 日、除夕到初七、清明、5 月 1 至 5 日、端午、中秋、10 月 1 至 7 日'
    assert told in README
    closed = [date(2030, 1, 1), date(2030, 4, 5), date(2030, 6, 5), date(2030, 9, 12)] + [
        date(2030, 2, day) for day in range(2, 10)] + [date(2030, 5, day) for day in range(1, 6)] + [
        date(2030, 10, day) for day in range(1, 8)]
    for number in range(365):
        day = date(2030, 1, 1) + timedelta(number)
        assert bq.exchange_opens(day) == (day.weekday() < 5 and day not in closed), day


def test_the_costs_of_a_backtest_are_as_told():
    assert '万三、最低 5 元' in README and '千一印花税' in README and '价格的 0.246%，买卖各偏一半' in README
    costs = jq_helper.TradingCosts()
    assert [costs.slipped('600519.XSHG', 1000.0, is_buy) for is_buy in (True, False)] == [1001.23, 998.77]
    assert costs.slipped('511880.XSHG', 100.0, True) == 100.0
    stock = costs.cost('600519.XSHG')
    assert (stock.commission(True, 100000), stock.commission(False, 100)) == (pytest.approx(30), 5)
    assert (stock.tax(True, 1000), stock.tax(False, 1000)) == (0, 1)


@pytest.fixture(scope='module')
def environment():
    """Environment of a user who followed the README, with a server on another port than the README's."""
    with serving() as server:
        yield dict(os.environ, QMT_SERVER_HOST='127.0.0.1', QMT_SERVER_PORT=str(server.address[1]),
                   QMT_SERVER_TOKEN=TOKEN, PYTHONIOENCODING='utf-8',
                   PYTHONPATH=os.pathsep.join([os.path.dirname(MODULE), ROOT]))


def run(arguments, environment, cwd):
    """(exit code, output) of a Python subprocess."""
    process = subprocess.Popen([sys.executable] + arguments, env=environment, cwd=str(cwd), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    output = process.communicate(timeout=60)[0].decode('utf-8').replace(os.linesep, '\n')
    return process.returncode, output


# What each Python sample of the README prints, among other things, in their order.
SHOWN = [
    [r'^2\d{3}-\d\d-\d\d', r'^filled 100 \d+\.\d+$'], [],
    [r'^(new|submitted|open|filling|filled)$', r'^True$', r'^000001\.XSHE \d+\.\d+$'], [],
    [r'^成交 \d+ \d+\.\d+ 100$'], [r'^\d+\.\d+ \d+\.\d+$', r'^000001\.XSHE \d+ 0$'], []]


def here(text, environment):
    """README text with its port and token replaced by the test server's."""
    return text.replace('58630', environment['QMT_SERVER_PORT']).replace("'stub'", repr(TOKEN))


@pytest.mark.parametrize('arguments', [line for line in commands() if line[0] != 'server'], ids=' '.join)
def test_client_commands_run(arguments, environment, tmp_path):
    arguments = [here(part, environment) for part in arguments]
    arguments = [TOKEN if before == '--token' else part for before, part in zip([''] + arguments, arguments)]
    code, output = run([MODULE] + arguments, environment, tmp_path)
    assert code == 0, output


@pytest.mark.parametrize('arguments', [line for line in commands() if line[0] == 'server'], ids=' '.join)
def test_server_commands_are_accepted(arguments):
    settings = bq.settings_from(bq.build_parser().parse_args(arguments))
    assert settings.server_type == 'stub' and settings.port == 58630 and settings.token == 'stub'


def test_what_each_sample_prints_is_told():
    assert len(SHOWN) == len(blocks('python'))


@pytest.mark.parametrize('number', range(len(blocks('python'))))
def test_python_examples_run(number, environment, tmp_path):
    script = tmp_path / 'example.py'
    script.write_bytes(here(blocks('python')[number], environment).encode('utf-8'))
    code, output = run([str(script)], environment, tmp_path)
    assert code == 0, output
    shown = [line for line in SHOWN[number] if re.search(line, output, re.MULTILINE) is None]
    assert shown == [], output


# -- Windows ---------------------------------------------------------------------------------------------------
SERVER_ENV, LISTENING_ENV, CLIENT_ENV = blocks('ini')


def settings_of(text, tmp_path, monkeypatch, *arguments):
    """What these lines of a .env in the current folder say."""
    for name in [name for name in os.environ if name.startswith(('QMT_', 'BT_', 'DEFAULT_'))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / '.env').write_bytes(text.encode('utf-8'))
    os.chmod(str(tmp_path / '.env'), 0o600)
    return bq.settings_from(bq.build_parser().parse_args(list(arguments)))


def test_the_settings_of_the_windows_chapter_say_what_it_says(tmp_path, monkeypatch):
    pasted = settings_of(SERVER_ENV, tmp_path, monkeypatch, 'server')
    assert '口令容易被猜中' in bq.safety_warnings(pasted)[0], 'a token that every reader knows'
    own = SERVER_ENV.replace(pasted.token, bq.secrets.token_urlsafe(24))
    settings = settings_of(own + LISTENING_ENV, tmp_path, monkeypatch, 'server')
    account, = bq.account_specs(bq.check_server_settings(settings))
    folder = os.fsdecode('C:\\国金QMT交易端\\userdata_mini'.encode('utf-8'))
    assert (account.account_id, account.data_path) == ('55001234', folder)
    assert settings.listen == '0.0.0.0' and settings.tls_cert == 'cert.pem' and settings.tls_key == 'key.pem'
    assert bq.safety_warnings(settings) == [], 'what is told to be typed is not warned of'
    client = settings_of(CLIENT_ENV, tmp_path, monkeypatch, 'doctor')
    assert (client.host, client.tls_cert, client.token) == ('192.168.1.10', 'cert.pem', pasted.token)


def bad_start(tmp_path, text, *arguments):
    """(exit code, output) of a server in a folder with this .env."""
    (tmp_path / '.env').write_bytes(text)
    bare = {name: value for name, value in os.environ.items() if not name.startswith(('QMT_', 'BT_', 'DEFAULT_'))}
    return run([MODULE, 'server'] + list(arguments), dict(bare, PYTHONIOENCODING='utf-8'), tmp_path)


@pytest.mark.parametrize('text, shown', [
    (b'', '没有配置账户'), ('\n'.join('#' + line for line in SERVER_ENV.splitlines()).encode('utf-8'), '没有配置账户'),
    (SERVER_ENV.encode('gbk'), '像是 GBK 编码（记事本的“ANSI”这样写）')])
def test_a_bad_start_looks_as_told(tmp_path, text, shown):
    code, output = bad_start(tmp_path, text)
    assert code == bq.Exit.USAGE and shown in output and '建议：' in output and '| `%s` |' % shown in README


def test_a_server_without_xtquant_looks_as_told(tmp_path, monkeypatch):
    (tmp_path / 'xtquant.py').write_bytes(b'raise ImportError')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    code, output = bad_start(tmp_path, SERVER_ENV.encode('utf-8'), '--port', '0')
    assert code == bq.Exit.USAGE and 'xtquant 不能使用' in output and '| `xtquant 不能使用` |' in README


def test_how_a_task_is_looked_after_is_as_the_command_tells_it():
    plan = bq.Autostart(bq.AUTOSTART_NAME, [sys.executable], ROOT, bq.AUTOSTART_LOG)
    typed = [line for _, text in bq.WindowsTask().advice(plan) for line in re.findall(r'schtasks(?: [/\w-]+)+', text)]
    assert len(typed) == 6 and all('`%s`' % line in README for line in typed)
    assert bq.NOTE_FILE in README


def test_a_taken_port_looks_as_told(environment, tmp_path):
    port = environment['QMT_SERVER_PORT']
    code, output = bad_start(tmp_path, b'', '--server-type', 'stub', '--port', port, '--token', TOKEN)
    assert code == bq.Exit.USAGE and '换一个 port' in output and '| `换一个 port` |' in README


def test_env_template_has_each_option():
    template = bq.dotenv_template()
    assert all(re.search(r'^#%s=' % option.env, template, re.MULTILINE) for option in bq.OPTIONS)


def test_the_paths_that_windows_refuses_are_those_of_the_readme():
    told = README.split('Windows 上的路径，')[1].split('\n\n')[0]
    refused = ['NUL', 'COM1', 'C:x'] + ['a%sb' % sign for sign in '<>:"|?*']
    assert all('`%s`' % name in told for name in ('NUL', 'COM1', 'C:x', '<>:"|?*', '\\\\服务器\\共享\\'))
    assert all(bq.path_problem(path, True) for path in refused + ['x.', 'x '])
    assert bq.path_problem('\\\\服务器\\共享\\' + 'x' * 260, True) is None and bq.unquoted('"D:\\a b"', True) == 'D:\\a b'
