"""python bullet_qmt.py live, as a process, on the real clock: start, orders, signals, stop file, lock, exit codes."""
import os
import re
import subprocess
import sys

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN, serving, short_client
from tests.environments import ROOT
from tests.live import stage, written
from tests.processes import ENDS, LineProcess, run

MODULE = os.path.abspath(bq.__file__)
BUYING = '''
LOTS = 1

def initialize(context):
    g.placed = order('000001.XSHE', 100 * LOTS)
    log.info('placed %s', g.placed)

def process_initialize(context):
    log.info('ready, %s', run_params_type(context))

def run_params_type(context):
    return context.run_params.type
'''


@pytest.fixture(scope='module')
def server():
    with serving() as server:
        yield server


def command(directory, *options):
    return [sys.executable, MODULE, 'live', os.path.join(str(directory), 'strategy.py')] + list(options)


def environment(server, **more):
    return dict(os.environ, QMT_SERVER_HOST='127.0.0.1', QMT_SERVER_PORT=str(server.address[1]),
                QMT_SERVER_TOKEN=TOKEN, PYTHONIOENCODING='utf-8',
                PYTHONPATH=os.pathsep.join([os.path.dirname(MODULE), ROOT]), **more)


def live(server, directory, text, *options):
    written(directory, text)
    return LineProcess(command(directory, *options), env=environment(server), cwd=str(directory))


def orders_of(server):
    return bq.RemoteQmtBroker(connection=short_client(server)).get_orders()


def test_live_quotes_come_from_the_server_alone(server, tmp_path):
    process = subprocess.Popen(command(tmp_path), env=environment(server, DEFAULT_DATA_PROVIDER='stub'),
                               cwd=str(tmp_path), stderr=subprocess.PIPE)
    error = process.communicate(timeout=60)[1].decode('utf-8')
    assert process.returncode == bq.Exit.USAGE and 'DEFAULT_DATA_PROVIDER' in error and '--data-provider' in error


def test_it_trades_and_ends_in_order(server, tmp_path):
    before = len(orders_of(server))
    with live(server, tmp_path, BUYING, '--broker', 'qmt-remote', '--param', 'LOTS=3') as process:
        process.line_with('账户（启动）')
        process.line_with('placed Order')
        process.line_with('ready, sim_trade')
        process.interrupt()
        assert process.wait() == 0, process.story()
        assert [line for line in process.seen if '已停止，状态在 live' in line]
    placed = orders_of(server)[before:]
    assert [(row['security'], row['amount']) for row in placed] == [('000001.XSHE', 300)]
    state = jq.LiveState.read(os.path.join(str(tmp_path), 'live', 'strategy'))
    assert state.own == {placed[0]['order_id']: placed[0]['idempotency_key']} and not state.keys


@pytest.mark.parametrize('options, said, limits', [
    ((), '真实委托：账户 10000001', '没有设上限'), (('--dry-run',), '演练：不发出任何委托；账户 10000001', '没有设上限'),
    (('--max-order-value', '50000', '--max-orders', '7'), '真实委托：账户 10000001', '上限：每笔委托 50000 元，每天委托 7 笔')])
def test_a_run_says_first_whether_it_is_real(server, tmp_path, options, said, limits):
    """Also whose account it is, where, and what bounds it; before the strategy has done anything."""
    with live(server, tmp_path, BUYING, *options) as process:
        line = process.line_with('账户 10000001').string
        assert said in line and '服务端 127.0.0.1:%d' % server.address[1] in line and limits in line
        assert re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d', line) and not orders_like(process.seen[:-1])
        process.line_with('ready')
        process.interrupt()
        assert process.wait() == 0, process.story()


def orders_like(lines):
    return [line for line in lines if 'placed' in line or '没有发出' in line]


def test_a_second_start_orders_nothing_again(server, tmp_path):
    before = len(orders_of(server))
    for _ in range(2):
        with live(server, tmp_path, BUYING, '--runtime-dir', 'here') as process:
            process.line_with('ready')
            process.interrupt()
            assert process.wait() == 0, process.story()
    assert len(orders_of(server)) == before + 1


def test_ctrl_c_is_an_orderly_end(server, tmp_path):
    with live(server, tmp_path, BUYING, '--dry-run') as process:
        process.line_with('演练，没有发出：买入 000001.XSHE 100 股 市价')
        process.line_with('ready')
        process.give(ENDS[0])
        assert process.wait() == 0, process.story()


# What is under way when somebody wants the end: what the strategy says as it begins, and what it does then.
# The low limit rests at any hour: last_price is yesterday's close before a day has begun, the paper market's is not.
LOW = 'LimitOrderStyle(get_current_data()["000001.XSHE"].low_limit)'
UNDER_WAY = {
    'initialize': 'import time\n    log.info("begins")\n    time.sleep(1.0)\n    log.info("done")',
    'an order': 'log.info("begins")\n    order("000001.XSHE", 100, %s)\n    log.info("done")' % LOW,
    'the wait': 'log.info("begins")\n    log.info("done")'}


@pytest.mark.parametrize('number', ENDS)
@pytest.mark.parametrize('what', list(UNDER_WAY))
def test_whatever_is_under_way_ends_in_order_however_often_it_is_asked_to(server, tmp_path, what, number):
    with live(server, tmp_path, 'def initialize(context):\n    ' + UNDER_WAY[what]) as process:
        process.line_with('已就绪' if what == 'the wait' else 'begins')
        for _ in range(3):
            process.give(number)
        assert process.wait() == 0, process.story()
        story = process.story()
        assert 'done' in story and '已停止' in story and 'Traceback' not in story
        assert ('未完成的委托，没有撤：Order(order_id=' in story) == (what == 'an order')
    assert jq.LiveState.read(os.path.join(str(tmp_path), 'live', 'strategy')).running is None


@pytest.mark.parametrize('encoding', ['ascii', 'gbk'])
def test_a_console_that_lacks_characters_breaks_nothing(server, tmp_path, encoding):
    text = BUYING.replace("'ready, %s'", "'\U0001f600 ready, %s'")
    written(tmp_path, text)
    with LineProcess(command(tmp_path), cwd=str(tmp_path),
                     env=dict(environment(server), PYTHONIOENCODING=encoding)) as process:
        process.line_with(r'\\U0001f600 ready')
        process.interrupt()
        assert process.wait() == 0, process.story()
        assert ('\\u5df2\\u505c\\u6b62' in process.story()) == (encoding == 'ascii')


def test_one_process_for_a_directory_and_a_stop_file(server, tmp_path):
    with live(server, tmp_path, BUYING, '--dry-run', '--runtime-dir', 'one') as process:
        process.line_with('ready')
        second = run(command(tmp_path, '--dry-run', '--runtime-dir', 'one'), env=environment(server),
                     cwd=str(tmp_path))
        assert second.returncode == 2 and '已有一个实盘进程在用' in second.stdout
        (tmp_path / 'one' / 'stop').write_bytes(b'')
        assert process.wait() == 0, process.story()
    third = run(command(tmp_path, '--dry-run', '--runtime-dir', 'one'), env=environment(server), cwd=str(tmp_path))
    assert third.returncode == 2 and '停止文件' in third.stdout


def test_a_killed_process_leaves_no_lock(server, tmp_path):
    with live(server, tmp_path, BUYING, '--dry-run') as process:
        process.line_with('ready')
        process.kill()
    with live(server, tmp_path, BUYING, '--dry-run') as process:
        process.line_with('ready')
        process.interrupt()
        assert process.wait() == 0, process.story()


def test_a_failing_strategy_shows_its_line(server, tmp_path):
    written(tmp_path, 'def initialize(context):\n    g.x = 1\n    1 / 0\n')
    done = run(command(tmp_path), env=environment(server), cwd=str(tmp_path))
    assert done.returncode == 1 and '策略出错（第 3 行）' in done.stdout and 'ZeroDivisionError' in done.stdout
    assert 'jq_helper.py' not in done.stdout


def test_a_file_that_is_no_python_connects_to_nothing(server, tmp_path):
    written(tmp_path, 'def initialize(context):\n    g.x = = 1\n')
    done = run(command(tmp_path, '--port', '9'), env=environment(server), cwd=str(tmp_path))
    assert done.returncode == 1 and '策略出错（第 2 行）' in done.stdout and 'SyntaxError' in done.stdout
    assert '账户' not in done.stdout and '拒绝连接' not in done.stdout


def test_a_server_that_goes_and_comes_back_is_told_to_who_watches(tmp_path):
    with serving() as first, live(first, tmp_path, BUYING, '--dry-run') as process:
        process.line_with('已就绪')
        first.close()
        process.line_with('与服务端的连接断了，正在自动重连')
        with serving(port=first.address[1]):
            process.line_with('与服务端的连接恢复了，断了约 [1-9][0-9]* 秒')
            process.interrupt()
            assert process.wait() == 0, process.story()


def test_the_log_goes_to_a_file_and_on(server, tmp_path):
    for _ in range(2):
        with live(server, tmp_path, BUYING, '--dry-run', '--log', 'own.log') as process:
            process.line_with('已就绪')
            process.interrupt()
            process.wait()
    text = (tmp_path / 'own.log').read_bytes().decode('utf-8')
    assert text.count('ready') == 2 and not [line for line in process.seen if 'ready' in line]


@pytest.mark.parametrize('options, words', [
    (['--max-orders', '0'], '应为 1 到'), (['--max-order-value', 'much'], '应为 0.01 到'), (['--broker', 'other'], 'other'),
    (['--late-limit', '-1'], '应为 0 到'), (['--param', 'x'], '不是 名称=值 的形式')])
def test_wrong_options_start_nothing(server, tmp_path, options, words):
    written(tmp_path, BUYING)
    done = run(command(tmp_path, *options), env=environment(server), cwd=str(tmp_path))
    assert done.returncode == 2 and words in done.stdout and not (tmp_path / 'live').exists()


def test_a_strategy_that_is_not_there(server, tmp_path):
    done = run(command(tmp_path), env=environment(server), cwd=str(tmp_path))
    assert done.returncode == 2 and '策略文件' in done.stdout


def test_no_server_is_exit_3(server, tmp_path):
    written(tmp_path, BUYING)
    done = run(command(tmp_path, '--port', '9'), env=environment(server), cwd=str(tmp_path))
    assert done.returncode == 3 and '拒绝连接' in done.stdout


def test_the_help_names_every_limit():
    done = subprocess.run([sys.executable, MODULE, 'live', '--help'], stdout=subprocess.PIPE,
                          env=dict(os.environ, PYTHONIOENCODING='utf-8'), timeout=60)
    text = done.stdout.decode('utf-8')
    for option in ('--broker', '--runtime-dir', '--dry-run', '--max-order-value', '--max-orders', '--max-cancels',
                   '--max-holdings', '--order-wait', '--late-limit', '--overview-every', '--keep-going'):
        assert option in text


# -- the README ----------------------------------------------------------------------------------------------------
with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as _file:
    CHAPTER = _file.read().split('## 实盘\n')[1].split('\n## ')[0]
COMMANDS = [line for line in re.findall(r'```sh\n(.*?)```', CHAPTER, re.DOTALL)[0].splitlines() if line]
SHOWCASE = re.search(r'```py\n(.*?)```', CHAPTER, re.DOTALL).group(1)


@pytest.mark.parametrize('number', range(len(COMMANDS)))
def test_the_commands_of_the_readme_run(server, tmp_path, number):
    written(tmp_path, SHOWCASE, 'live_order_showcase.py')
    words = COMMANDS[number].split()
    assert words[:2] == ['python', 'bullet_qmt.py']
    with LineProcess([sys.executable, MODULE] + words[2:], env=environment(server), cwd=str(tmp_path)) as process:
        process.line_with('已就绪')
        process.interrupt()
        assert process.wait() == 0, process.story()


def test_the_strategy_of_the_readme_trades(tmp_path):
    with stage(tmp_path, '2025-03-06 08:00', '2025-03-07 16:00') as it:
        it.run(it.strategy(SHOWCASE))
        placed = [(row['side'], row['amount'], row['style']) for row in it.broker.get_orders()]
        assert placed == [('BUY', 1000, 'market'), ('BUY', 1000, 'limit'), ('SELL', 1000, 'market')]
        assert it.said('第 2 天') and not it.said('跳过')


def test_each_option_is_in_the_readme():
    options = [flags[-1] for flags, _ in bq.COMMANDS['live'][3] if flags[-1].startswith('--')]
    assert len(options) > 12 and [name for name in options if name not in CHAPTER + '--data-provider'] == []


def test_what_the_command_was_told_shows_no_token():
    config = {'host': 'h', 'port': 1, 'token': 'a-secret-of-the-tests'}
    order = jq.LiveOrder('p', 'day', {}, config, 'd', True, 1, None, 1, 1, 'stop')
    for text in (repr(order), str(order), '%s' % (order,), '{}'.format(order)):
        assert 'a-secret-of-the-tests' not in text and "'host': 'h'" in text
