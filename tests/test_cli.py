"""The command line: what it prints, what it returns, and the server command as a process of its own."""
import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from datetime import datetime

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, read_raw, send_raw, server_settings
from tests.fakes import FakeClock
from tests.processes import ENDS, OWN_GROUP
from tests.resources import becomes

CODE = '000001.XSHE'
SUBS = (bq.SubAccountSpec('demo', 'default', 5000.0),)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(str(tmp_path))
    for name in [name for name in os.environ if name.startswith(('QMT_', 'BT_', 'DEFAULT_'))]:
        monkeypatch.delenv(name)


@pytest.fixture
def served_here(monkeypatch):
    """The server command in this process: without its signals, and with this process's logging put back."""
    monkeypatch.setattr(bq.StopSignal, 'install', lambda self: self)
    log, kept = bq.LOG, (bq.LOG.handlers[:], bq.LOG.level, bq.LOG.propagate)
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers[:], log.propagate = kept[0], kept[2]
    log.setLevel(kept[1])


@pytest.fixture(scope='module')
def server():
    server = bq.serve(server_settings(sub_accounts=SUBS), FakeClock(datetime(2026, 5, 13, 14, 0)))
    yield server
    server.close()


@pytest.fixture
def run(server, capsys):
    """run(command, ...) against the server -> (exit code, stdout, stderr)."""
    def call(command, *arguments, **changes):
        to = dict({'host': server.address[0], 'port': server.address[1], 'token': TOKEN}, **changes)
        flags = [text for name, value in to.items() if value is not None for text in ('--' + name, str(value))]
        code = bq.main([command] + flags + list(arguments))
        return (code,) + tuple(capsys.readouterr())
    return call


def bought(run, code=CODE, *more):
    exit_code, out, _ = run('order', code, 'buy', '100', '--market', '--wait', '10', *more)
    assert exit_code == bq.Exit.OK
    return out


def assert_lines_up(lines):
    """A table's lines: the columns under the dashes, counted in terminal columns, are cut nowhere in the middle."""
    headers, dashes, rows = lines[0], lines[1], lines[2:]
    assert re.fullmatch(r'-+(  -+)*', dashes) and rows
    gaps = [match.start() for match in re.finditer(' ', dashes)]
    for line in [headers] + rows:
        cells = ''.join(char * bq.text_width(char) for char in line)
        assert all(cells[gap] == ' ' for gap in gaps if gap < len(cells))


# -- tables ------------------------------------------------------------------------------------------------------
def test_account_and_positions(run):
    bought(run, '510300.XSHG')
    bought(run)
    code, out, _ = run('account')
    lines = out.splitlines()
    assert code == bq.Exit.OK and lines[0] == 'QMT 连接建立: account_id=10000001, type=stock'
    assert re.match(r'总资产 [\d,]+\.\d\d，可用资金 [\d,]+\.\d\d，持仓市值 [\d,]+\.\d\d，仓位 \d+\.\d\d%', lines[1])
    assert lines[2].split() == ['股票代码', '名称', '持仓', '可用', '成本价', '现价', '市值', '盈亏', '盈亏%', '占比%']
    assert_lines_up(lines[2:])
    assert '平安银行' in out and '华泰柏瑞沪深300ETF' in out
    code, out, _ = run('account', '--limit', '1')
    assert '另有 1 只' in out
    code, out, _ = run('positions')
    assert code == bq.Exit.OK and '平安银行' in out
    assert_lines_up(out.splitlines())


def test_orders_and_trades(run):
    bought(run, CODE, '--remark', '测试备注')
    code, out, _ = run('orders')
    assert code == bq.Exit.OK and '测试备注' in out and '已成' in out
    assert_lines_up(out.splitlines())
    assert run('orders', '--open')[1].strip() == '（没有记录）'
    assert run('orders', '--security', '600519.XSHG')[1].strip() == '（没有记录）'
    code, out, _ = run('trades', '--security', CODE)
    assert code == bq.Exit.OK and '佣金' in out
    assert_lines_up(out.splitlines())


def test_quotes_and_history(run):
    code, out, _ = run('quote', CODE, '600519.XSHG')
    assert code == bq.Exit.OK and '贵州茅台' in out and len(out.splitlines()) == 4
    assert_lines_up(out.splitlines())
    code, out, _ = run('history', CODE)
    assert code == bq.Exit.OK and len(out.splitlines()) == 22
    assert_lines_up(out.splitlines())
    code, out, _ = run('history', CODE, '--start', '2024-05-08', '--end', '2024-05-10', '--fields', 'close,volume',
                       '--fq', 'none')
    assert code == bq.Exit.OK and len(out.splitlines()) == 5 and out.split()[1:3] == ['close', 'volume']
    assert run('history', CODE, '--count', '3', '--frequency', '1m')[0] == bq.Exit.OK
    for command in (['history', CODE, '--count', '0'], ['account', '--limit', '-1']):
        with pytest.raises(SystemExit) as caught:
            run(*command)
        assert caught.value.code == bq.Exit.USAGE


def test_open_orders_of_a_security(run, server):
    low = server.service.backend.data.quote(CODE).low_limit
    run('order', CODE, 'buy', '100', '--price', str(low), '--wait', '0')
    bought(run, CODE)
    out = run('orders', '--open', '--security', CODE)[1]
    assert out.count(CODE) == 1 and '已成' not in out
    assert run('orders', '--open', '--security', '600519.XSHG')[1].strip() == '（没有记录）'
    run('cancel', out.splitlines()[-1].split()[0])


def test_what_became_of_a_key(run, server):
    run('order', CODE, 'buy', '100', '--market', '--key', 'asked-about')
    code, out, _ = run('resolve', 'asked-about')
    assert code == bq.Exit.OK and '已到柜台' in out and CODE in out
    code, out, err = run('resolve', 'never-used')
    assert code == bq.Exit.UNKNOWN and '没有收到' in out and '拼写' in err and '--abandon' in err
    err = run('resolve', 'never-used', '--cancel')[2]
    assert '再撤一次' in err and '--abandon' not in err
    assert run('resolve', 'never-used', '--cancel', '--abandon')[0] == bq.Exit.USAGE
    code, out, _ = run('resolve', 'never-used', '--abandon')
    assert code == bq.Exit.FAILED and '已作废' in out
    assert run('order', CODE, 'buy', '100', '--market', '--key', 'never-used')[0] == bq.Exit.FAILED
    run('order', CODE, 'buy', '150', '--market', '--key', 'refused')
    assert run('resolve', 'refused')[0] == bq.Exit.FAILED
    assert run('resolve', 'asked-about', '--cancel')[0] == bq.Exit.UNKNOWN


def test_ctrl_c_while_an_order_waits_says_how_to_ask_about_it(run, monkeypatch):
    def interrupted(*args, **more):
        raise KeyboardInterrupt
    monkeypatch.setattr(bq.RemoteQmtBroker, 'place_order', interrupted)
    monkeypatch.setattr(bq.RemoteQmtBroker, 'cancel_order', interrupted)
    for command in (['order', CODE, 'buy', '100', '--market'], ['cancel', '7']):
        code, _, err = run(*command, **{})
        assert code == bq.Exit.INTERRUPTED and 'resolve cli-' in err


def test_prices_line_up_by_their_decimals():
    assert [bq._cell(value) for value in (11.0, 3.9051, 3.905, 12.5, None, float('nan'), 7)] == [
        '11.00', '3.9051', '3.905', '12.50', '-', '-', 7]


# -- orders --------------------------------------------------------------------------------------------------------
def test_order_and_cancel(run, server):
    low = server.service.backend.data.quote(CODE).low_limit
    code, out, _ = run('order', CODE, 'buy', '100', '--price', str(low), '--wait', '0', '--key', 'cli-test')
    assert code == bq.Exit.OK and 'idempotency_key=cli-test' in out and '已报' in out
    order_id = out.splitlines()[-1].split()[0]
    again = run('order', CODE, 'buy', '100', '--price', str(low), '--wait', '0', '--key', 'cli-test')[1]
    assert again.splitlines()[-1].split()[0] == order_id
    assert run('order', CODE, 'buy', '200', '--price', str(low), '--key', 'cli-test')[0] == bq.Exit.FAILED
    code, out, _ = run('cancel', order_id)
    assert code == bq.Exit.OK and order_id in out
    filled = bought(run).splitlines()[-1].split()[0]
    code, out, _ = run('cancel', filled)
    assert code == bq.Exit.FAILED and '最终状态' in out
    code, _, err = run('cancel', 'nothing')
    assert code == bq.Exit.FAILED and 'ORDER_NOT_FOUND' in err


@pytest.mark.parametrize('arguments', [
    ['100'], ['100', '--price', '10', '--market'], ['100', '--price', '10', '--protect-price', '9']])
def test_an_order_says_limit_or_market(run, arguments):
    code, out, err = run('order', CODE, 'buy', *arguments)
    assert code == bq.Exit.USAGE and '--price' in err and 'idempotency_key' not in out


@pytest.mark.parametrize('arguments', [['100', '--price', 'nan'], ['100', '--market', '--wait', 'inf'],
                                       ['150', '--market'],
                                       ['-100', '--market']])
def test_orders_that_are_refused(run, arguments):
    assert run('order', CODE, 'buy', *arguments)[0] == bq.Exit.FAILED


def test_a_sub_account_stays_in_its_limit_whatever_the_command(run):
    wanted = {'sub-account': 'demo'}
    assert run('order', '600519.XSHG', 'buy', '100', '--market', **wanted)[0] == bq.Exit.FAILED
    payload = {'security': '600519.XSHG', 'side': 'BUY', 'amount': 100, 'style': {'type': 'market'}}
    for more in ({}, {'sub_account_id': None}):
        code, _, err = run('call', 'broker.place_order', json.dumps(dict(payload, **more)), **wanted)
        assert code == bq.Exit.FAILED and '上限' in err
    assert json.loads(run('call', 'broker.orders', **wanted)[1]) == []


def test_an_unknown_outcome_has_an_exit_code_of_its_own(run, monkeypatch):
    def lost(self, action, payload=None, timeout=None):
        raise bq.OrderStateUnknown('未知', '查询', idempotency_key='k')
    monkeypatch.setattr(bq.ShortConnection, 'request', lost)
    code, _, err = run('order', CODE, 'buy', '100', '--market')
    assert code == bq.Exit.UNKNOWN and '建议：查询' in err


# -- what was sent and what could be printed --------------------------------------------------------------------------
def piped(server, out, *arguments):
    """(exit code, stderr) of a command as a process of its own, whose stdout is this file."""
    env = dict(os.environ, PYTHONIOENCODING='utf-8')
    env.pop('PYTHONUNBUFFERED', None)
    done = subprocess.run([sys.executable, bq.__file__] + list(arguments) + [
        '--port', str(server.address[1]), '--token', TOKEN], stdout=out, stderr=subprocess.PIPE, env=env, timeout=60)
    return done.returncode, done.stderr.decode('utf-8')


class NobodyReads(io.StringIO):
    """A stdout whose reader has gone, from its `after`th write on."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def write(self, text):
        self.after -= 1
        if self.after < 0:
            raise BrokenPipeError(32, 'Broken pipe')
        return super().write(text)


def order_of(server, key):
    return [order for order in server.service.desk.orders({}) if order['idempotency_key'] == key]


@pytest.mark.parametrize('arguments, code', [
    (['order', CODE, 'buy', '100', '--market', '--key', 'unread'], bq.Exit.OK), (['resolve', 'unread'], bq.Exit.OK),
    (['resolve', 'unread-unseen'], bq.Exit.UNKNOWN), (['call', 'admin.health'], bq.Exit.OK)])
def test_trouble_with_printing_is_no_failure_of_what_was_sent(run, monkeypatch, arguments, code):
    run('order', CODE, 'buy', '100', '--market', '--key', 'unread')
    monkeypatch.setattr(sys, 'stdout', NobodyReads(2 if arguments[0] == 'order' else 0))  # the key has been read
    found, _, err = run(*arguments)
    assert found == code and '没有能打印出来' in err and 'Traceback' not in err


def test_a_cancel_that_cannot_be_printed_has_its_exit_code(run, server, monkeypatch):
    low = server.service.backend.data.quote(CODE).low_limit
    order_id = run('order', CODE, 'buy', '100', '--price', str(low), '--wait', '0')[1].splitlines()[-1].split()[0]
    monkeypatch.setattr(sys, 'stdout', NobodyReads(0))
    code, _, err = run('cancel', order_id)
    assert code == bq.Exit.OK and '已撤单 %s' % order_id in err


def test_an_unknown_order_is_unknown_though_nobody_reads_about_it(run, monkeypatch):
    def lost(self, action, payload=None, timeout=None):
        raise bq.OrderStateUnknown('未知', '查询', idempotency_key='k')
    monkeypatch.setattr(bq.ShortConnection, 'request', lost)
    monkeypatch.setattr(sys, 'stderr', NobodyReads(0))
    assert run('order', CODE, 'buy', '100', '--market')[0] == bq.Exit.UNKNOWN


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a device of Linux')
def test_an_order_whose_key_cannot_be_printed_is_not_sent(server):
    with open('/dev/full', 'wb') as full:
        code, err = piped(server, full, 'order', CODE, 'buy', '100', '--market', '--key', 'untold')
        assert code == bq.Exit.USAGE and '没有发出任何委托' in err and 'Traceback' not in err
        assert not order_of(server, 'untold')
        code, err = piped(server, full, 'orders')
        assert code == bq.Exit.FAILED and len(err.splitlines()) == 1 and '写不下' in err


def without_streams(*arguments, **options):
    """The exit code of a command that has neither stdout nor stderr, as a service manager or pythonw.exe starts it."""
    env = dict({name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'})
    command = [sys.executable, bq.__file__] + list(arguments)
    if os.name == 'nt':
        command[0] = os.path.join(os.path.dirname(sys.executable), 'pythonw.exe')
        options['startupinfo'] = subprocess.STARTUPINFO()
        options['startupinfo'].dwFlags = subprocess.STARTF_USESTDHANDLES  # none of them, as from the desktop
    else:
        command = ['sh', '-c', 'exec "$0" "$@" >&- 2>&-'] + command
    return subprocess.call(command, env=env, timeout=60, **options)


def test_an_order_without_a_stdout_is_an_order(server):
    code = without_streams('order', CODE, 'buy', '100', '--market', '--key', 'silent', '--port',
                           str(server.address[1]), '--token', TOKEN)
    assert code == bq.Exit.OK and len(order_of(server, 'silent')) == 1
    for question in (['account'], ['doctor'], ['call', 'admin.health']):
        code = without_streams(*(question + ['--port', str(server.address[1]), '--token', TOKEN]))
        assert code == bq.Exit.OK, question


@pytest.mark.parametrize('arguments, told', [
    (['server', '--port', 'x'], '应为 0 到 65535 的整数'), (['server', '--prot', '1'], '不认识的选项 --prot'),
    (['server', '--server-type', 'stub', '--port', '0'], '随机生成的没有地方显示'),
    (['account', '--port', '1', '--token', TOKEN], '没有启动')])
def test_what_is_wrong_where_nothing_can_be_shown_is_in_a_file(arguments, told, tmp_path):
    code = without_streams(*arguments, cwd=str(tmp_path))
    note = (tmp_path / 'bullet_qmt_error.txt').read_bytes().decode('utf-8')
    assert code in (bq.Exit.USAGE, bq.Exit.UNREACHABLE) and told in note and TOKEN not in note
    assert re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ', note)


def unread(server, *arguments):
    """piped() into a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    with open(write, 'wb') as out:
        return piped(server, out, *arguments)


@pytest.mark.parametrize('question', [['orders'], ['history', CODE, '--count', '800'], ['call', 'admin.health']])
def test_a_question_whose_reader_has_gone_ends_quietly(server, question):
    code, err = unread(server, *question)
    assert 'Traceback' not in err and (code, err) == (
        (bq.Exit.FAILED, '') if question[0] != 'call' else (bq.Exit.OK, err)) and len(err.splitlines()) <= 1


def test_an_order_whose_reader_has_gone_is_not_sent(server):
    code, err = unread(server, 'order', CODE, 'buy', '100', '--market', '--key', 'gone')
    assert code == bq.Exit.USAGE and '没有发出任何委托' in err and not order_of(server, 'gone')


@pytest.mark.parametrize('arguments', [['--help'], ['server', '--help'], ['env'], ['--version']], ids=' '.join)
def test_help_whose_reader_has_gone_ends_quietly(arguments):
    read, write = os.pipe()
    os.close(read)
    env = dict(os.environ, PYTHONIOENCODING='utf-8')
    env.pop('PYTHONUNBUFFERED', None)
    with open(write, 'wb') as out:
        done = subprocess.run([sys.executable, bq.__file__] + arguments, stdout=out, stderr=subprocess.PIPE, env=env,
                              timeout=60)
    assert (done.returncode, done.stderr) == (bq.Exit.FAILED, b'')


def test_a_server_whose_reader_has_gone_serves_and_stops(tmp_path):
    """Its account is told into a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    log = tmp_path / 'x.log'
    with open(write, 'wb') as out:
        process = subprocess.Popen(
            [sys.executable, bq.__file__, 'server', '--server-type', 'stub', '--port', '0', '--token', TOKEN,
             '--log-file', str(log)], stdout=out, stderr=out, **OWN_GROUP)
    try:
        assert becomes(lambda: log.exists() and '监听' in log.read_text(encoding='utf-8'))
        port = re.search(r'127\.0\.0\.1:(\d+)', log.read_text(encoding='utf-8')).group(1)
        done = subprocess.run([sys.executable, bq.__file__, 'account', '--port', port, '--token', TOKEN],
                              stdout=subprocess.PIPE, timeout=60)
        assert done.returncode == bq.Exit.OK and b'1,000,000.00' in done.stdout
        process.send_signal(signal.CTRL_BREAK_EVENT if os.name == 'nt' else signal.SIGTERM)
        assert process.wait(60) == bq.Exit.OK and 'Traceback' not in log.read_text(encoding='utf-8')
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(60)


def test_an_order_to_who_never_answers_a_login_was_not_sent(run):
    with contextlib.closing(socket.socket()) as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen(5)
        for command in (['order', CODE, 'buy', '100', '--market'], ['cancel', '7']):
            code, _, err = run(*command, **{'port': silent.getsockname()[1], 'rpc-timeout': '0.5'})
            assert code == bq.Exit.UNREACHABLE and '没有发出任何' in err and 'resolve' not in err


# -- the command that asks again --------------------------------------------------------------------------------------
def test_who_asks_again_asks_the_same_server_for_the_same_account(run, server, monkeypatch, tmp_path):
    """The printed command, run as it stands with the token; it shows no token."""
    def lost(self, action, payload=None, timeout=None):
        raise bq.OrderStateUnknown('未知', '查询', idempotency_key='k 1')
    where = {'sub-account': 'demo', 'account-key': 'default', 'rpc-timeout': '7'}
    with monkeypatch.context() as patch:
        patch.setattr(bq.ShortConnection, 'request', lost)
        for command in (['order', CODE, 'buy', '100', '--market'], ['cancel', '7'],
                        ['call', 'broker.cancel_order', '{}'], ['resolve', 'k', '--cancel']):
            code, _, err = run(*command, **where)
            line = next(line for line in err.splitlines() if 'bullet_qmt.py resolve' in line)
            words = shlex.split(line.partition('：python ')[2])
            assert code == bq.Exit.UNKNOWN and TOKEN not in err and '口令照旧' in line
            assert ('--cancel' in words) == (command[0] != 'order') and words[1:3] == ['resolve', 'k 1']
            flags = [word for word in words[3:] if word != '--cancel']
            flags = dict(zip(flags[::2], flags[1::2]))
            assert flags == {'--host': '127.0.0.1', '--port': str(server.address[1]), '--sub-account': 'demo',
                             '--account-key': 'default', '--rpc-timeout': '7'}


def test_a_token_file_is_named_again(run, monkeypatch, tmp_path):
    (tmp_path / 'my token').write_text(TOKEN)
    monkeypatch.setattr(bq.RemoteQmtBroker, 'place_order', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    err = run('order', CODE, 'buy', '100', '--market', '--key=-1', token=None, **{'token-file': 'my token'})[2]
    line = next(line for line in err.splitlines() if 'bullet_qmt.py resolve' in line)
    words = shlex.split(line.partition('：python ')[2])
    assert words[words.index('--token-file') + 1] == 'my token' and words[-2:] == ['--', '-1']
    assert '口令照旧' not in line


def test_a_cancel_s_key_is_known_for_one(run, server):
    """Not taken for an order that never came, for which a new one would be the advice."""
    low = server.service.backend.data.quote(CODE).low_limit
    order_id = run('order', CODE, 'buy', '100', '--price', str(low), '--wait', '0')[1].splitlines()[-1].split()[0]
    assert run('cancel', order_id, '--key', 'of-a-cancel')[0] == bq.Exit.OK
    code, out, err = run('resolve', 'of-a-cancel')
    assert code == bq.Exit.OK and '撤单' in out and order_id in out and '--abandon' not in err
    code, out, err = run('resolve', 'of-a-cancel', '--abandon')
    assert code == bq.Exit.USAGE and '撤单' in err and '作废' not in out


def test_call(run):
    code, out, _ = run('call', 'data.snapshot', '{"security": "000001.XSHE"}')
    assert code == bq.Exit.OK and json.loads(out)['sid'] == CODE
    assert json.loads(run('call', 'admin.health')[1])['value']['process_alive'] is True
    table = json.loads(run('call', 'data.history', '{"security": "000001.XSHE", "count": 2}')[1])
    assert table['dtype'] == 'dataframe' and len(table['records']) == 2
    for wrong in ('{', '[]', '5', 'null'):
        code, _, err = run('call', 'data.snapshot', wrong)
        assert code == bq.Exit.USAGE and 'PAYLOAD' in err
    assert run('call', 'no.such')[0] == bq.Exit.FAILED


# -- exit codes, options ----------------------------------------------------------------------------------------------
def free_port():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def test_exit_codes_of_connections(run):
    code, _, err = run('account', token='wrong-token-wrong-token')
    assert code == bq.Exit.DENIED and 'AUTH_FAILED' in err and '建议' in err
    code, _, err = run('account', port=free_port())
    assert code == bq.Exit.UNREACHABLE and '建议' in err
    assert run('account', token=None)[0] == bq.Exit.USAGE
    assert run('account', **{'account-key': 'nobody'})[0] == bq.Exit.FAILED


@pytest.mark.parametrize('arguments', [[], ['nonsense'], ['server', '--nonsense'], ['account', '--tok', 'x'],
                                       ['order', CODE, 'hold', '100'], ['order', CODE, 'buy', '1.5'], ['quote'],
                                       ['account', '--listen', '::']])
def test_unknown_flags_and_missing_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        bq.main(arguments)
    assert caught.value.code == bq.Exit.USAGE
    assert '用法' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, item', [
    (['--port', 'x'], '--port'), (['--port', '70000'], '--port'), (['--allowlist', '10.0.0.1/8'], '--allowlist'),
    (['--accounts', 'a=1,a=2'], '--accounts'), (['--sub-accounts', 'x@nobody'], '--sub-accounts'),
    (['--tls-cert', 'x.pem'], '--tls-cert'), (['--tls-cert', 'x.pem', '--tls-key', 'y.pem'], '--tls-cert'),
    (['--stub-data', 'no such folder'], 'no such folder'), (['--env-file', 'missing.env'], 'missing.env'),
    (['--log-file', 'no/such/folder/log'], '--log-file'), (['--state', 'no/such/folder/j.db'], '--state'),
    (['--server-type', 'odd'], '--server-type'), (['--token', ' '], '--token')])
def test_a_broken_option_is_named_and_nothing_starts(arguments, item, capsys, served_here):
    assert bq.main(['server', '--server-type', 'stub', '--port', '0'] + arguments) == bq.Exit.USAGE
    assert item in capsys.readouterr().err


NUMBERS = {'port', 'max-connections', 'max-subscriptions', 'request-timeout', 'quote-max-age', 'stub-cash', 'stub-seed',
           'stub-tick-interval'}


def test_these_are_the_numbers_that_the_server_command_takes():
    assert NUMBERS == {option.name.replace('_', '-') for option in bq.options_of('server', 'stub')
                       if option.flags and option.metavar in ('PORT', 'N', 'SECONDS', 'YUAN')}


@pytest.mark.parametrize('name', sorted(NUMBERS))
@pytest.mark.parametrize('value', ['nan', 'inf', '-inf', '-5', '1e11', '1' * 30, '1,000', '0x10', 'many', '', '１２',
                                   '1_0'])
def test_a_number_that_is_none_gets_one_error(name, value, capsys, served_here):
    assert bq.main(['server', '--server-type', 'stub', '--' + name, value]) == bq.Exit.USAGE
    out, err = capsys.readouterr()
    option = next(option for option in bq.OPTIONS if option.flags == ('--' + name,))
    assert out == '' and err.count('错误') == 1 and err.count('\n') == 1
    assert option.flags[0] in err and option.env in err and bq.brief(value) in err
    assert re.search(r'应为 [\d.]+ 到 [\d.]+ 的(整数，只用数字|数，写成普通小数，如 12.5)\n$', err)


def test_a_taken_port_is_named(server, capsys, served_here):
    port = str(server.address[1])
    assert bq.main(['server', '--server-type', 'stub', '--port', port, '--token', TOKEN]) == bq.Exit.USAGE
    assert port in capsys.readouterr().err


def test_the_real_terminal_needs_its_folder_and_its_package(monkeypatch, capsys, tmp_path, served_here):
    """Absent or broken, one message says what to set or install; nothing is started."""
    assert bq.main(['server', '--server-type', 'qmt', '--port', '0', '--accounts', 'a=1']) == bq.Exit.USAGE
    assert 'QMT_DATA_PATH' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'xtquant.xtdata', None)
    accounts = 'a=1:stock:%s' % (tmp_path / 'userdata_mini')
    assert bq.main(['server', '--server-type', 'qmt', '--port', '0', '--accounts', accounts]) == bq.Exit.USAGE
    said = capsys.readouterr().err
    assert 'pip install xtquant' in said and '3.6' in said and 'userdata_mini' in said


def test_the_template_loads_back(capsys, tmp_path):
    assert bq.main(['env']) == bq.Exit.OK
    text = capsys.readouterr().out
    live = re.sub(r'(?m)^#(?=[A-Z_]+=\S)', '', text)
    (tmp_path / 'all.env').write_text(live, encoding='utf-8')
    for groups in (['server', 'stub'], ['client']):
        plain = bq.load_settings(groups, environ={}, dotenv=None)
        loaded = bq.load_settings(groups, {'env_file': str(tmp_path / 'all.env')}, environ={}, dotenv=None)
        assert {name: value for name, value in vars(loaded).items() if name not in ('sources', 'warnings')} == {
            name: value for name, value in vars(plain).items() if name not in ('sources', 'warnings')}
    assert all('%s=' % option.env in text for option in bq.OPTIONS)


@pytest.mark.parametrize('command', sorted(bq.COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        bq.main([command, '--help'])
    assert caught.value.code == 0 and bq.COMMANDS[command][1] in capsys.readouterr().out


def test_chinese_paths_of_an_env_file_work_in_the_c_locale(tmp_path):
    """3.6 names files in ASCII there, and its sqlite in UTF-8."""
    folder = bytes(tmp_path) + '/日志 目录'.encode('utf-8')
    os.mkdir(folder)
    text = 'QMT_SERVER_STATE={0}/委托.db\nQMT_SERVER_LOG_FILE={0}/服务.log\n'.format(folder.decode('utf-8'))
    (tmp_path / '.env').write_bytes(text.encode('utf-8'))
    code = ('import bullet_qmt as bq\nsettings = bq.load_settings(["server"])\n'
            'bq.Journal(settings.state, bq.Clock()).close()\nopen(settings.log_file, "a").close()\n')
    environment = {'PATH': os.environ['PATH'], 'LC_ALL': 'C', 'PYTHONPATH': os.path.dirname(bq.__file__)}
    subprocess.check_call([sys.executable, '-c', code], cwd=str(tmp_path), env=environment)
    assert {'委托.db'.encode('utf-8'), '服务.log'.encode('utf-8')} <= set(os.listdir(folder))


# -- questions without an answer -----------------------------------------------------------------------------
QUESTIONS = [('account',), ('positions',), ('orders',), ('trades',), ('quote', CODE), ('history', CODE)]


@pytest.mark.parametrize('question', QUESTIONS)
def test_a_question_waits_no_longer_for_a_terminal_that_is_down_than_its_patience(run, monkeypatch, question):
    """The server says when it may be back: that is waited for only where it lies within the patience."""
    answers = []

    def down(self, call, deadline):
        answers.append(self.patience_s)
        raise bq.QmtUnavailable('QMT 未连接：连接 QMT 失败，返回 -1', '确认 QMT 已登录', retry_after_s=6)
    monkeypatch.setattr(bq.ShortConnection, '_attempt', down)
    waits = []
    monkeypatch.setattr(bq, 'wait_for_event', lambda event, seconds=None: waits.append(seconds))
    code, out, err = run(*question)
    assert code == bq.Exit.FAILED and '返回 -1' in err and '建议：' in err
    assert answers == [5.0] and waits == []
    run(*question + ('--patience', '20'))
    assert answers[1:] == [20.0] * 3 and waits == [6, 6]


@pytest.mark.parametrize('question', QUESTIONS[1:5])
def test_a_question_that_is_not_answered_says_why(run, server, monkeypatch, question):
    """The server is well, its terminal stands still: health tells it."""
    held = threading.Event()
    backend = server.service.backend
    for owner, name in ((backend.brokers['default'], 'account'), (backend.brokers['default'], 'orders'),
                        (backend.brokers['default'], 'positions'), (backend.brokers['default'], 'trades'),
                        (backend.data, 'quote'), (backend.data, 'live_current')):
        monkeypatch.setattr(owner, name, lambda *args, **options: held.wait(20), raising=False)
    monkeypatch.setattr(type(backend), 'health', lambda self: {'backend_type': 'qmt', 'qmt': {
        'accounts': {'default': {'state': 'connected', 'hung_calls': 2}},
        'data': {'state': 'disconnected', 'last_error': 'QMT 行情没有在 10 秒内回应'}}})
    monkeypatch.setattr(bq, 'ANSWER_SHARE', 0.05)  # a slow machine has time to ask for the health
    code, out, err = run(*question + ('--patience', '10'))
    held.set()
    assert code == bq.Exit.UNREACHABLE and '10 秒内没有回答' in err and '--patience' in err
    assert '2 个调用卡在 QMT 里' in err and 'QMT 行情没有在 10 秒内回应' in err


WELL = {'state': 'connected', 'hung': 0, 'waiting_s': 0}
SERVED = {'backend_type': 'qmt', 'qmt': {'accounts': {'default': WELL}, 'data': WELL}}
NOT_BACK = {'backend_type': 'qmt', 'qmt': {'accounts': {'default': WELL}, 'data': dict(WELL, waiting_s=4)}}
LONG_QUESTIONS = [('history', CODE), ('call', 'data.history', '{"security": "000001.XSHE"}'),
                  ('call', 'data.get_index_stocks', '{"index_symbol": "000300.XSHG"}')]


def after(event, function):
    def call(*args, **options):
        event.wait(30)
        return function(*args, **options)
    return call


def held_up(monkeypatch, server, health, until):
    """What answers long questions waits; health() is what the server says meanwhile, for which there is time."""
    monkeypatch.setattr(bq, 'ANSWER_SHARE', 0.05)
    data = server.service.backend.data
    for name in ('history', 'index_stocks'):
        monkeypatch.setattr(data, name, after(until, getattr(data, name)))
    monkeypatch.setattr(type(server.service.backend), 'health', lambda self: health())


@pytest.mark.parametrize('question', LONG_QUESTIONS)
def test_a_long_question_ends_when_the_terminal_stands_still(run, server, monkeypatch, question):
    """A frozen terminal is known to be down only when its calls have run out of time; one that is out tells it."""
    held = threading.Event()
    held_up(monkeypatch, server, lambda: NOT_BACK, held)
    code, out, err = run(*question + ('--patience', '10'))
    held.set()
    assert code == bq.Exit.UNREACHABLE and out == ''
    assert '10 秒内没有回答' in err and '行情 的一个调用 QMT 已经 4 秒没有回应' in err and '--patience' in err


@pytest.mark.parametrize('question', LONG_QUESTIONS)
def test_a_long_question_goes_on_while_all_is_well(run, server, monkeypatch, question):
    """A download, or a thin line: the third look at the server's health lets the answer come."""
    held, looks = threading.Event(), []

    def health():
        looks.append(1)
        if len(looks) == 3:
            held.set()
        return SERVED
    held_up(monkeypatch, server, health, held)
    code, out, err = run(*question + ('--patience', '10'))
    assert code == bq.Exit.OK and out and len(looks) >= 3


def test_patience_is_for_questions(run):
    code, _, err = run('call', 'broker.cancel_order', '{"order_id": "1"}', '--patience', '3')
    assert code == bq.Exit.USAGE and '--patience' in err


def test_an_order_has_its_own_rules(run, capsys):
    """How long it is waited for is --wait, and what has no answer is unknown: there is no patience to run out."""
    with pytest.raises(SystemExit):
        run('order', CODE, 'buy', '100', '--market', '--patience', '1')
    assert '--patience' in capsys.readouterr().err


REFUSED = dict(code='QMT_UNAVAILABLE', message='QMT 未连接', hint='启动 QMT', retryable=True, broker_called=False)
COMMANDS_THAT_WRITE = [
    ('order', CODE, 'buy', '100', '--price', '10'), ('cancel', '123'),
    ('call', 'broker.cancel_order', '{"order_id": "123"}')]


def answered(monkeypatch, *answers):
    """(frames sent, pauses) of a command whose attempts end so: an error frame's fields, or an exception."""
    sent, pauses, coming = [], [], iter(answers)

    def attempt(self, call, deadline):
        assert call.about_to_send('journal') is None
        sent.append(call.data)
        answer = next(coming)
        if isinstance(answer, Exception):
            raise answer
        call.take(dict(answer, type='error', id=call.id))
        return call.result()
    monkeypatch.setattr(bq.ShortConnection, '_attempt', attempt)
    monkeypatch.setattr(bq, 'wait_for_event', lambda event, seconds=None: pauses.append(seconds))
    return sent, pauses


@pytest.mark.parametrize('command', COMMANDS_THAT_WRITE)
def test_a_write_that_the_server_refused_is_told_and_not_waited_for(run, monkeypatch, command):
    """Nothing reached the broker; the terminal may be back in half a minute, which nobody has asked to wait for."""
    sent, pauses = answered(monkeypatch, dict(REFUSED, retry_after_s=30))
    code, _, err = run(*command)
    assert code == bq.Exit.FAILED and 'QMT 未连接' in err and '建议：启动 QMT' in err
    assert len(sent) == 1 and pauses == []


@pytest.mark.parametrize('command', COMMANDS_THAT_WRITE)
def test_a_write_that_may_have_arrived_is_asked_after_and_stays_unknown(run, monkeypatch, command):
    """Its refusal the second time says nothing of the first: the same frame goes to the same journal, as before."""
    lost = bq.ConnectionLost('连接中断')
    sent, pauses = answered(monkeypatch, lost, dict(REFUSED, retry_after_s=30), dict(REFUSED, retry_after_s=30))
    code, _, err = run(*command)
    assert code == bq.Exit.UNKNOWN and '已中断' not in err
    assert len(set(sent)) == 1 and len(sent) == 3 and pauses == [0.5, 30]


# -- doctor --------------------------------------------------------------------------------------------------
def test_a_healthy_server(run):
    code, out, _ = run('doctor')
    assert code == bq.Exit.OK and out.count('[正常]') == 6 and '[失败]' not in out and '毫秒' in out


def test_doctor_names_the_first_failure_and_its_remedy(run, tmp_path):
    code, out, err = run('doctor', port=free_port())
    assert code == bq.Exit.UNREACHABLE and '[失败] 端口可达' in out and '没有启动' in err
    code, out, err = run('doctor', token='wrong-token-wrong-token')
    assert code == bq.Exit.DENIED and '[失败] 口令与协议' in out and 'QMT_SERVER_TOKEN' in err
    code, out, err = run('doctor', **{'account-key': 'nobody'})
    assert code == bq.Exit.FAILED and '[失败] 账户' in out and 'default' in err


def test_doctor_tells_tls_mismatches_apart(run, tmp_path, capsys):
    certs = pytest.importorskip('tests.certs')
    cert, key = certs.make_certificate(tmp_path)
    other, _ = certs.make_certificate(tmp_path, name='other')
    code, out, err = run('doctor', **{'tls-cert': cert})          # the server has no TLS
    assert code == bq.Exit.UNREACHABLE and '[失败] TLS' in out and '没有开 TLS' in err
    with contextlib.closing(bq.serve(server_settings(tls_cert=cert, tls_key=key))) as secure:
        port = secure.address[1]
        code, out, err = run('doctor', port=port)                  # the client has none
        assert code == bq.Exit.UNREACHABLE and '[失败] 口令与协议' in out and 'tls_cert' in err
        code, out, err = run('doctor', port=port, **{'tls-cert': other})
        assert code == bq.Exit.UNREACHABLE and '[失败] TLS' in out and '证书' in err
        code, out, err = run('doctor', port=port, **{'tls-cert': cert})
        assert code == bq.Exit.OK and 'TLSv1' in out
    assert run('doctor', **{'tls-cert': 'missing.pem'})[0] == bq.Exit.USAGE


def test_doctor_without_a_broker(capsys):
    with contextlib.closing(bq.serve(server_settings(enable_broker=False))) as server:
        code = bq.main(['doctor', '--port', str(server.address[1]), '--token', TOKEN])
    out, err = capsys.readouterr()
    assert code == bq.Exit.FAILED and '[失败] 账户' in out and '--disable-broker' in err


@contextlib.contextmanager
def mute_server(logs_in):
    """A port that takes every connection and says nothing, or nothing after the login."""
    ended, held = threading.Event(), []

    def serve():
        while not ended.is_set():
            sock, _ = listener.accept()
            held.append(sock)
            if logs_in and read_raw(sock) is not None:
                send_raw(sock, {'type': 'handshake_ack', 'protocol': 1, 'features': []})
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(16)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        with contextlib.closing(socket.create_connection(listener.getsockname())) as last:
            last.shutdown(socket.SHUT_WR)
            thread.join(20)
    for sock in held:
        sock.close()


@pytest.mark.parametrize('logs_in, step, told', [(False, '口令与协议', '检查端口'), (True, '服务', 'Ctrl-Q')])
def test_doctor_does_not_wait_for_a_server_that_says_nothing(run, monkeypatch, logs_in, step, told):
    monkeypatch.setattr(bq, 'DOCTOR_S', 3.0)
    with mute_server(logs_in) as port:
        code, out, err = run('doctor', port=port)
    assert code == bq.Exit.UNREACHABLE and '[失败] ' + step in out and '建议：' in err and told in err


def test_all_that_doctor_may_wait_for_is_fifteen_seconds(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(bq.time, 'monotonic', lambda: now[0])
    left_s = bq._time_left(bq.DOCTOR_S)
    for most in [bq.STEP_S, bq.STEP_S, bq.LOGIN_STEP_S] + 11 * [bq.STEP_S]:
        now[0] += left_s(most)
    assert now[0] - 1000.0 < 15


# -- the server command --------------------------------------------------------------------------------------
class Process:
    """`bullet_qmt.py server` of its own; lines of its output as they come."""

    def __init__(self, *arguments):
        environ = dict({name: value for name, value in os.environ.items() if not name.startswith('QMT_')},
                       PYTHONIOENCODING='utf-8')
        self.process = subprocess.Popen(
            [sys.executable, bq.__file__, 'server', '--server-type=stub', '--port', '0'] + list(arguments), env=environ,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **OWN_GROUP)
        self.watchdog = threading.Timer(120, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()
        self.lines = []
        while not self.lines or 'Ctrl-C' not in self.lines[-1]:
            line = self.process.stdout.readline().decode('utf-8')
            assert line, self.process.stderr.read().decode('utf-8')
            self.lines.append(line.rstrip('\r\n'))

    @property
    def port(self):
        return int(re.search(r':(\d+)（', self.lines[0]).group(1))

    def stop(self, number=ENDS[-1]):
        """(exit code, the rest of stdout, stderr)."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        self.watchdog.cancel()
        return self.process.returncode, out.decode('utf-8'), err.decode('utf-8')


@pytest.mark.parametrize('number', ENDS)
def test_the_server_says_where_and_as_whom_and_stops_cleanly(number, tmp_path, capsys):
    log = tmp_path / 'server.log'
    process = Process('--token', TOKEN, '--log-file', str(log), '--sub-accounts', 'demo@default', '--stub-cash', '5000')
    text = '\n'.join(process.lines)
    assert '127.0.0.1:%d' % process.port in text and 'stub' in text and '明文' in text and 'demo@default' in text
    assert 'QMT 连接建立: account_id=10000001, type=stock' in process.lines
    assert '总资产 5,000.00，可用资金 5,000.00，持仓市值 0.00，仓位 0.00%' in text and '（没有持仓）' in text
    assert bq.main(['account', '--port', str(process.port), '--token', TOKEN]) == bq.Exit.OK
    assert 'account_id=10000001' in capsys.readouterr().out
    code, out, err = process.stop(number)
    assert code == 0 and '已停止' in out and 'Traceback' not in err and '!!!' not in err
    logged = log.read_text(encoding='utf-8')
    assert 'broker.account' in logged and TOKEN not in logged + text + out + err


def test_the_log_begins_with_how_it_was_started_and_ends_with_why_it_stopped(tmp_path):
    log = tmp_path / 'server.log'
    process = Process('--token', TOKEN, '--log-file', str(log), '--sub-accounts', 'demo@default:limit=5000',
                      '--no-access-log', '--request-timeout', '45')
    process.stop()
    first, last = log.read_text(encoding='utf-8').splitlines()
    for told in ('启动：bullet-qmt %s' % bq.__version__, '127.0.0.1:%d' % process.port, 'sub_accounts=demo/default/5000.0',
                 'access_log=False', 'request_timeout=45.0', 'token=（来自命令行）'):
        assert told in first
    assert last.endswith('停止：Ctrl-Break' if os.name == 'nt' else '停止：SIGTERM')


def test_orders_have_files_of_their_own_that_no_other_line_drives_out(tmp_path):
    process = Process('--token', TOKEN, '--log-file', str(tmp_path / 'server.log'), '--no-access-log')
    with contextlib.closing(bq.ShortConnection('127.0.0.1', process.port, TOKEN)) as connection:
        broker = bq.RemoteQmtBroker(connection=connection)
        broker.get_account_info()
        placed = broker.place_order(CODE, 'BUY', 100, {'type': 'market'}, idempotency_key='one')
        with pytest.raises(bq.OrderRejected):
            broker.place_order(CODE, 'BUY', 150, {'type': 'market'}, idempotency_key='two')
    process.stop()
    path, = tmp_path.glob('server_orders-*.log')
    first, second = path.read_text(encoding='utf-8').splitlines()
    assert 'key=one' in first and placed['order_id'] in first and 'key=two' in second and '100 的整数倍' in second
    assert path.name == 'server_orders-%s.log' % first[:10].replace('-', '')


def test_the_log_tells_why_a_server_did_not_start(served_here, tmp_path):
    log = tmp_path / 'server.log'
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        code = bq.main(['server', '--server-type', 'stub', '--port', port, '--token', TOKEN, '--log-file', str(log)])
    line, = log.read_text(encoding='utf-8').splitlines()
    assert code == bq.Exit.USAGE and 'ERROR 没有启动' in line and port in line


def test_a_random_token_is_shown_once_and_never_logged(tmp_path):
    log = tmp_path / 'server.log'
    process = Process('--log-file', str(log))
    token, = [line.rpartition('：')[2] for line in process.lines if '随机生成' in line]
    assert len(token) >= 32
    with contextlib.closing(bq.RemoteQmtConnection('127.0.0.1', process.port, token)) as client:
        assert client.start().request('admin.health')
    code, out, err = process.stop()
    assert code == 0 and token not in out + err + log.read_text(encoding='utf-8')
    assert '\n'.join(process.lines).count(token) == 1


def warnings_of(**changes):
    return bq.safety_warnings(server_settings(**changes))


def test_what_is_dangerous_is_said_with_its_remedy():
    assert warnings_of() == [] and warnings_of(listen='localhost') == [] and warnings_of(listen='::1') == []
    for token in ('stub', 'passwordpassword', '1234567890123456'):
        weak, = warnings_of(token=token)
        assert '16' in weak and '每 5 秒' in weak and '登不进来' in weak
    open_door = '\n'.join(warnings_of(listen='0.0.0.0'))
    assert '--tls-cert' in open_door and '--allowlist' in open_door
    assert '明文' not in '\n'.join(warnings_of(listen='::', tls_cert='x', tls_key='y'))


def test_warnings_are_loud(tmp_path):
    process = Process('--token', 'stub', '--listen', '0.0.0.0')
    err = process.stop()[2]
    assert err.count('!!! 警告') == 3


def test_the_log_file_moves_at_ten_megabytes(tmp_path):
    path = tmp_path / 'x.log'
    path.write_bytes(b'x' * (10 * 1024 * 1024 - 3))
    with contextlib.closing(bq._log_file(str(path))) as handler:
        handler.emit(bq.logging.LogRecord('bullet_qmt', 20, 'x', 1, '行', (), None))
    assert path.read_text(encoding='utf-8') == '行\n' and (tmp_path / 'x.log.1').stat().st_size == 10 * 1024 * 1024 - 3


def test_log_lines_are_in_beijing_time_on_any_machine():
    record = bq.logging.LogRecord('bullet_qmt', 20, 'x', 1, 'text', (), None)
    record.created, record.msecs = 1715738400.25, 250
    assert bq._LogFormatter('%(asctime)s').format(record) == '2024-05-15 10:00:00.250'


def test_the_exit_codes_are_stable():
    assert {code.name: int(code) for code in bq.Exit} == {
        'OK': 0, 'FAILED': 1, 'USAGE': 2, 'UNREACHABLE': 3, 'DENIED': 4, 'UNKNOWN': 5, 'INTERRUPTED': 130}


def test_ctrl_c_has_its_own(run, monkeypatch):
    def interrupt(self, *arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(bq.ShortConnection, 'request', interrupt)
    code, out, err = run('account')
    assert (code, out, err) == (bq.Exit.INTERRUPTED, '', bq.INTERRUPTED + '\n')


def test_the_template_is_written_to_a_new_file_only(tmp_path, capsys):
    path = tmp_path / 'my.env'
    assert bq.main(['env', '--write', str(path)]) == bq.Exit.OK
    assert path.read_bytes().decode('utf-8').replace('\r\n', '\n') == bq.dotenv_template()
    assert bq.main(['env', '--write', str(path)]) == bq.Exit.USAGE
    assert '不会被覆盖' in capsys.readouterr().err


# -- what the start shows of accounts ---------------------------------------------------------------------------
class LateDesk:
    """Accounts that cannot be read until they are there. brokers: of the backend that it stands for as well."""

    def __init__(self, *keys):
        self.brokers, self.there, self.backend, self.desk = dict.fromkeys(keys), set(), self, self

    def overview(self, payload):
        if payload['account_key'] not in self.there:
            raise bq.QmtUnavailable('QMT 没有连接', retryable=True)
        return 'overview of %s' % payload['account_key'], None


class Looks:
    """A stop signal that is given after so many waits; before each of them something happens."""

    def __init__(self, *happenings):
        self._happenings = list(happenings)

    def wait(self, timeout_s):
        if self._happenings:
            self._happenings.pop(0)()
            return False
        return True


def test_an_account_that_comes_late_is_shown_when_it_comes(capsys):
    desk = LateDesk('one', 'two')
    bq.tell_late_accounts(desk, ['one', 'two'], Looks(lambda: None, lambda: desk.there.add('two'), lambda: None,
                                                      lambda: desk.there.add('one'), lambda: None))
    assert capsys.readouterr().out == '\n账户 two\noverview of two\n\n账户 one\noverview of one\n'


def test_who_starts_without_its_terminal_is_told_at_once_and_once(capsys):
    desk = LateDesk('default')
    assert not bq._show_account(desk, 'default', -1, Looks())
    assert not bq._show_account(desk, 'default', -1, Looks(), tells_reason=False)
    assert capsys.readouterr().out.count('读到后再显示') == 1


@pytest.mark.posix('Windows has no SIGHUP')
@pytest.mark.parametrize('ignored', [False, True])
def test_a_closed_terminal_ends_the_program_in_order_unless_nohup_says_otherwise(ignored):
    script = ('import os, signal, bullet_qmt as bq\n'
              'signal.signal(signal.SIGHUP, signal.%s)\n'
              'stop = bq.StopSignal().install()\n'
              'os.kill(os.getpid(), signal.SIGHUP)\n'
              'print(stop.wait(0), stop.reason)\n') % ('SIG_IGN' if ignored else 'SIG_DFL')
    told = subprocess.check_output([sys.executable, '-c', script], env=dict(
        os.environ, PYTHONPATH=os.path.dirname(bq.__file__), PYTHONIOENCODING='utf-8'))
    assert told.decode('utf-8').strip() == ('False None' if ignored else 'True SIGHUP，终端已关闭')
