"""The command line at the console: Chinese usage and errors, an early Ctrl-C, encodings that lack Chinese."""
import json
import os
import re
import subprocess
import sys
import threading

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, serving
from tests.environments import ROOT
from tests.live import written
from tests.processes import LineProcess, run

MODULE = os.path.abspath(bq.__file__)
ENGLISH = re.compile(r'(?i)\b(usage|positional|optional|arguments?|options?:|required|invalid|choose|expected|'
                     r'unrecognized|error:|allowed|ignored|show|exit|following|value:|unknown|ambiguous)\b')
WRONG = [
    ([], '用法：bullet_qmt.py [', '缺少 命令'),
    (['backtset', 'x.py'], '用法：bullet_qmt.py [', '没有命令 backtset', '是不是 backtest'),
    (['--nonsense', 'server'], '用法：bullet_qmt.py [', '不认识的选项 --nonsense'),
    (['backtest', 'x.py', '--strat', '2024-01-02'], '用法：bullet_qmt.py backtest', '选项 --strat', '是不是 --start'),
    (['live', 'x.py', '--dryrun'], '用法：bullet_qmt.py live', '选项 --dryrun', '是不是 --dry-run'),
    (['live', '-d', 'x.py'], '用法：bullet_qmt.py live', '选项 -d'),
    (['backtest'], '用法：bullet_qmt.py backtest', '缺少 FILE, --start, --end'),
    (['backtest', 'x.py', '--start'], '用法：bullet_qmt.py backtest', '选项 --start 后面缺少值', '--start DATE'),
    (['backtest', 'x.py', '--start', '--end', '2024-01-02'], '选项 --start 后面缺少值', '--start=值'),
    (['account', 'more', 'words'], '用法：bullet_qmt.py account', '多余的参数 more words'),
    (['quote'], '用法：bullet_qmt.py quote', '缺少 CODE'),
    (['orders', '--open=1'], '用法：bullet_qmt.py orders', '选项 --open 是开关', '只写 --open'),
    (['server', '--enable-data', '--disable-data'], '--enable-data 与 --disable-data 互相矛盾', '只给出其中一个'),
    (['order', 'A', 'hold', '100'], "buy|sell 的值 'hold' 无效", 'buy、sell'),
    (['order', 'A', 'buy', '1.5'], "AMOUNT 的值 '1.5' 无效", '应为整数'),
    (['order', 'A', 'buy', '100', '--price', 'x'], "--price 的值 'x' 无效", '应为数字'),
    (['order', 'A', 'buy', '100', '--price'], '选项 --price 后面缺少值'),
    (['history', 'A', '--fq', 'odd'], "--fq 的值 'odd' 无效", 'pre、post、none'),
    (['backtest', 'x.py', '--frequency', 'week'], "--frequency 的值 'week' 无效", 'day、minute'),
    (['live', 'x.py', '--order-wait', '-inf'], "--order-wait 的值 '-inf' 无效", '应为 0 到 600 的数'),
    (['account', '--limit', '0'], "--limit 的值 '0' 无效", '应为 1 到 10000000 的整数'),
]


# -- usage and errors ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('arguments, told', [(case[0], case[1:]) for case in WRONG], ids=lambda item: ' '.join(item))
def test_a_wrong_call_is_told_in_chinese_with_the_usage_of_its_command(arguments, told, capsys):
    with pytest.raises(SystemExit) as caught:
        bq.main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == bq.Exit.USAGE and out == ''
    assert all(text in err for text in told) and err.count('错误 [CONFIG_INVALID]') == 1
    usage = 'bullet_qmt.py ' + arguments[0] if arguments and arguments[0] in bq.COMMANDS else 'bullet_qmt.py'
    assert err.startswith('用法：%s [' % usage) and '%s --help' % usage in err.splitlines()[-1]
    assert ENGLISH.findall(err) == []


@pytest.mark.parametrize('arguments', [[]] + [[name] for name in bq.COMMANDS], ids=' '.join)
def test_help_is_chinese(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        bq.main(arguments + ['--help'])
    out, err = capsys.readouterr()
    assert caught.value.code == 0 and err == ''
    assert out.startswith('用法：%s [-h]' % ' '.join(['bullet_qmt.py'] + arguments)) and '显示这份帮助' in out
    assert ENGLISH.findall(out) == []


def test_values_that_look_like_options_are_taken_as_values():
    parser = bq.build_parser()
    args = parser.parse_args(['order', 'A', 'buy', '-100', '--price', '-1e5', '--wait', '-5', '--remark=-x',
                              '--key', '-1'])
    assert (args.amount, args.price, args.wait, args.remark, args.key) == (-100, -1e5, -5.0, '-x', '-1')
    args = parser.parse_args(['backtest', 'x.py', '--start', 'a', '--end=b', '--param', 'N=1', '--param', 'M=- 2'])
    assert (args.start, args.end, args.param) == ('a', 'b', ['N=1', 'M=- 2'])
    assert parser.parse_args(['server', '--allowlist', '']).allowlist == ''
    assert parser.parse_args(['quote', '--', 'A', 'B']).security == ['A', 'B']
    assert parser.parse_args(['server', '--no-access-log']).access_log == '0'


def test_a_misspelt_option_does_not_show_its_value(capsys):
    with pytest.raises(SystemExit):
        bq.main(['account', '--tokne=' + TOKEN])
    assert TOKEN not in capsys.readouterr().err


# -- Ctrl-C --------------------------------------------------------------------------------------------------------
def interrupted_at(module, tmp_path, *arguments):
    """A command that is interrupted in the middle of its imports: exactly when it imports this module."""
    (tmp_path / (module + '.py')).write_text('raise KeyboardInterrupt', encoding='utf-8')
    environment = dict(os.environ, PYTHONPATH=str(tmp_path), PYTHONIOENCODING='utf-8')
    return run([sys.executable, '-S', MODULE] + list(arguments), env=environment, cwd=str(tmp_path))  # site imports too


@pytest.mark.parametrize('module', ['json', 'logging', 'socketserver', 'argparse'])
def test_ctrl_c_while_modules_load_is_a_line(module, tmp_path):
    done = interrupted_at(module, tmp_path, 'server')
    assert (done.returncode, done.stdout.strip()) == (bq.Exit.INTERRUPTED, bq.INTERRUPTED)


def test_any_other_failure_of_an_import_is_shown(tmp_path):
    (tmp_path / 'logging.py').write_text('raise OSError("broken")', encoding='utf-8')
    done = run([sys.executable, MODULE, 'account'], env=dict(os.environ, PYTHONPATH=str(tmp_path)), cwd=str(tmp_path))
    assert done.returncode == 1 and 'Traceback' in done.stdout and 'OSError: broken' in done.stdout


# -- encodings -----------------------------------------------------------------------------------------------------
ASCII = {'PYTHONIOENCODING': 'ascii'}
C_LOCALE = pytest.param({'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}, id='C',
                        marks=pytest.mark.posix('Windows asks no LC_ALL for its code page'))
POOR = [ASCII, C_LOCALE, {'PYTHONIOENCODING': 'cp437'}, {'PYTHONIOENCODING': 'cp1252'}]
STRATEGY = '''
X = 1

def initialize(context):
    log.info('初始化 \U0001F600')
    print('打印')
    g.placed = order('000001.XSHE', 100)
    log.info('就绪')
'''


@pytest.fixture(scope='module')
def server():
    with serving() as server:
        yield server


def environment(server, console):
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(('QMT_', 'PYTHONIO', 'LC_', 'LANG'))}
    return dict(kept, QMT_SERVER_PORT=str(server.address[1]), QMT_SERVER_TOKEN=TOKEN,
                PYTHONPATH=os.pathsep.join([os.path.dirname(MODULE), ROOT]), **console)


@pytest.fixture
def call(server, tmp_path):
    """call(console, command, ...) -> its lines; it must end well."""
    def call(console, *arguments):
        done = run([sys.executable, MODULE] + list(arguments), env=environment(server, console), cwd=str(tmp_path))
        assert done.returncode == 0 and 'Traceback' not in done.stdout, done.stdout
        assert max(done.stdout) < '\x80' and '\\u' in done.stdout
        return done.stdout.splitlines()
    return call


def assert_lines_up(lines):
    """The columns under the dashes are cut nowhere in the middle; whatever stands here is one column wide."""
    at = next(number for number, line in enumerate(lines) if re.fullmatch(r'-+(  -+)+', line))
    gaps = [match.start() for match in re.finditer(' ', lines[at])]
    for line in lines[at - 1:]:
        assert all(line[gap] == ' ' for gap in gaps if gap < len(line)), line


@pytest.mark.parametrize('console', POOR, ids=lambda console: '-'.join(console.values()))
def test_tables_line_up_on_a_console_without_chinese(console, call):
    call(console, 'order', '000001.XSHE', 'buy', '100', '--market', '--wait', '10')
    assert_lines_up(call(console, 'account'))
    assert_lines_up(call(console, 'orders'))


@pytest.mark.parametrize('command', [
    ['positions'], ['trades'], ['quote', '600519.XSHG', '000001.XSHE'], ['doctor'], ['env'], ['--help'],
    ['server', '--help']], ids=' '.join)
def test_each_command_survives_a_console_without_chinese(command, call):
    call(ASCII, *command)


def test_json_stays_json_on_a_console_without_chinese(call):
    lines = call(ASCII, 'call', 'data.security_info', '{"security": "000001.XSHE"}')
    assert '平安银行' in json.dumps(json.loads('\n'.join(lines)), ensure_ascii=False)


@pytest.mark.parametrize('console', [pytest.param(ASCII, id='ascii'), C_LOCALE])
@pytest.mark.parametrize('name', ['plain', '策略'])
def test_backtests_survive_a_console_without_chinese(console, name, call, tmp_path):
    path = written(tmp_path, STRATEGY, name + '.py')
    lines = call(console, 'backtest', path, '--start', '2026-05-11', '--end', '2026-05-13', '--grid', 'X=1,2')
    assert_lines_up(lines[:-1])
    call(console, 'backtest', path, '--start', '2026-05-11', '--end', '2026-05-13')


@pytest.mark.parametrize('console', [pytest.param(ASCII, id='ascii'), C_LOCALE])
def test_live_runs_and_servers_survive_a_console_without_chinese(console, server, tmp_path):
    def ends_well(arguments, last):
        command = [sys.executable, MODULE] + arguments
        with LineProcess(command, env=environment(server, console), cwd=str(tmp_path)) as process:
            process.line_with(last)
            process.interrupt()
            assert process.wait() == 0 and 'Traceback' not in process.story(), process.story()
    name = os.path.basename(written(tmp_path, STRATEGY, '策略.py'))
    ends_well(['live', name, '--dry-run'], '就绪'.encode('ascii', 'backslashreplace').decode().replace('\\', '\\\\'))
    ends_well(['server', '--server-type', 'stub', '--port', '0', '--token', TOKEN, '--log-file', 'x.log'], 'Ctrl-C')


FORKING = """
import os, sys, threading
import bullet_qmt as bq
with bq.console_beside():
    writer = sys.stdout.buffer._writer
    with writer._changed:  # as one of the parent's threads may hold it
        for number in range(3):
            child = os.fork()
            if not child:
                print('child %d' % number)
                sys.stdout.flush()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    print('parent')
"""


@pytest.mark.posix('Windows has no fork')
def test_a_forked_child_prints_by_itself(tmp_path):
    env = dict(os.environ, PYTHONPATH=os.path.dirname(bq.__file__))
    out = subprocess.check_output([sys.executable, '-c', FORKING], env=env, timeout=60).decode()
    assert sorted(out.split('\n')) == ['', 'child 0', 'child 1', 'child 2', 'parent']


def test_a_log_that_cannot_be_opened_again_as_it_moves_goes_on_later(tmp_path):
    """Its folder is away for a moment, or all descriptors are in use."""
    folder, away = tmp_path / 'logs', tmp_path / 'away'
    folder.mkdir()
    sink = bq.LogFile(str(folder / 'log'), limit=100)
    assert sink(b'a' * 99 + b'\n') == 100
    sink.close()  # no folder of Windows can be renamed while one of its files is open
    folder.rename(away)
    with pytest.raises(OSError):
        sink(b'lost?\n')
    away.rename(folder)
    assert sink(b'kept\n') == 5
    assert [(folder / name).read_bytes() for name in ('log.1', 'log')] == [b'a' * 99 + b'\n', b'kept\n']
    sink.close()


def test_whatever_a_sink_raises_its_thread_lives_on():
    wrong, taken, done = [ValueError('closed'), MemoryError()], [], threading.Event()

    def sink(data):
        if wrong:
            raise wrong.pop()
        taken.append(bytes(data))
        done.set()
        return len(data)
    writer = bq.LineWriter('w', sink, bq.lost_lines)
    writer.RETRY_S = 0
    writer.put(b'line\n')
    assert done.wait(30) and taken == [b'line\n']
    writer.close()
