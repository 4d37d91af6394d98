"""What keeps QMT from being connected: the table of findings, and each state through the stand-in terminal."""
import contextlib
import importlib.util
import os
import socket

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, server_settings
from tests.fakes import FakeClock
from tests.resources import becomes, nothing_left
from tests.terminal import native, scene
from tests.terminal.terminal import Terminal

NEEDS_VENDOR = pytest.mark.skipif(importlib.util.find_spec('xtquant') is None
                                  or importlib.util.find_spec('pandas') is None, reason='needs xtquant and pandas')
MINI, FULL = bq.QMT_PROGRAMS
REFUSED = {'state': 'down', 'reason': 'connect', 'data': 'disconnected'}  # connect() answered -1


# -- the table -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind, facts', [
    ('ok', dict(state='connected', data='connected')),
    ('switched_off', dict(REFUSED, programs=[FULL], port='closed', full_port='no_service')),
    ('switched_off', dict(REFUSED, programs=[FULL, MINI], port='closed', full_port='no_service')),
    ('switched_off', dict(REFUSED, programs=None, data='no_service')),
    ('switched_off', dict(programs=[FULL], port='closed', full_port='no_service')),
    ('not_running', dict(REFUSED, programs=[], port='closed', full_port='closed')),
    ('not_running', dict(programs=[], port='closed', full_port='closed')),
    ('full_only', dict(REFUSED, programs=[FULL], port='closed', full_port='open')),
    ('full_only', dict(REFUSED, programs=[FULL], port='closed', full_port='closed')),
    ('not_logged_in', dict(REFUSED, programs=[MINI], port='closed', full_port='closed')),
    ('not_logged_in', dict(REFUSED, programs=[MINI], port='closed', may_order=False)),
    ('not_ready', dict(REFUSED, programs=None, port='closed')),
    ('no_permission', dict(REFUSED, programs=[MINI], port='open', may_order=False)),
    ('session_taken', dict(REFUSED, programs=[MINI], port='open', may_order=True, data='connected')),
    ('session_taken', dict(REFUSED, programs=[FULL], port='open', full_port='no_service', may_order=True)),
    ('account', dict(state='down', reason='subscribe', programs=[MINI], port='open')),
    ('account', dict(state='down', reason='account', programs=None, port='open')),
    ('frozen', dict(state='down', reason='hung', programs=[MINI], port='open')),
    ('data', dict(state='connected', data='disconnected', programs=[MINI])),
    ('data', dict(state='connected', data='no_service', programs=[FULL])),
    ('unclear', dict(state='down', reason='error', message='RuntimeError: x')),
    ('unclear', dict(state='connecting')),
    ('nothing', dict(programs=[MINI], port='open', may_order=True)),
    ('nothing', dict(programs=None, port='open')),
] + [('path', dict(state='down', reason=reason, message='没有目录 C:\\x', hint='改路径', programs=[], full_port='no_service'))
     for reason in ('missing', 'file', 'foreign', 'empty', 'readonly')])
def test_the_findings(kind, facts):
    finding = bq.qmt_diagnosis(bq.QmtFacts(**facts))
    assert finding.kind == kind and finding.message
    assert bool(finding.hint) == (kind not in ('ok', 'nothing')), 'what is wrong has a remedy'
    if kind == 'path':
        assert finding.message == facts['message'] and finding.hint == facts['hint']


def test_the_words_are_for_a_trader():
    said = {kind: '%s%s' % (message, hint) for kind, _, message, hint in bq._QMT_FINDINGS if message}
    assert '券商' in said['switched_off'] and '200005' in said['switched_off'] and '-1' in said['switched_off']
    assert 'XtMiniQmt.exe' in said['not_running'] and '登录' in said['not_logged_in']
    assert 'QMT_SESSION_ID' in said['session_taken'] and 'up_queue_xtquant' in said['no_permission']


# -- what this machine shows -----------------------------------------------------------------------------------
class Kernel32:
    """The three functions of Windows that list its processes."""

    def __init__(self, names):
        self.names, self.closed = list(names), []
        self.CreateToolhelp32Snapshot = self._create  # takes a `restype`, as those of ctypes do
        self.Process32FirstW = self.Process32NextW = self._next

    @property
    def _create(self):
        def create(what, process):
            assert (what, process) == (2, 0)
            return 77
        return create

    def _next(self, snapshot, entry):
        assert snapshot.value == 77 and entry._obj.size >= 556
        if not self.names:
            return 0
        entry._obj.name = self.names.pop(0)
        return 1

    def CloseHandle(self, snapshot):
        self.closed.append(snapshot.value)


def test_programs_are_those_of_the_system_by_their_file_names():
    kernel32 = Kernel32(['System', 'XtMiniQmt.exe', '同花顺 XtItClient.exe', 'xtitclient.exe.bak'])
    assert bq.running_programs(bq.QMT_PROGRAMS, kernel32) == [MINI] and kernel32.closed == [77]
    assert bq.running_programs(bq.QMT_PROGRAMS, Kernel32(['System'])) == []
    assert bq.running_programs(bq.QMT_PROGRAMS, Kernel32([])) is None, 'a refused list is no list without them'
    if os.name != 'nt':
        assert bq.running_programs(bq.QMT_PROGRAMS) is None


def test_a_port_is_open_or_closed():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
        assert not bq.is_listening(port)
        listener.listen(1)
        assert bq.is_listening(port)


class Client:
    """What answers on the full terminal's port."""

    def __init__(self, refusing=()):
        self.refusing, self.closed = refusing, 0

    def get_full_tick(self, codes):
        return self._answer('get_full_tick')

    def get_trading_dates_by_market(self, *args):
        return self._answer('get_trading_dates_by_market')

    def _answer(self, name):
        if name in self.refusing:
            raise RuntimeError('ErrorID 200005 未找到订阅数据')
        return '{}'

    def shutdown(self):
        self.closed += 1


def machine_of(programs, ports, client=None):
    return bq.QmtMachine(FakeClock(bq.parse_moment(scene.NOW)[0]), lambda names: programs, lambda port: port in ports,
                         lambda address: client)


@pytest.mark.parametrize('refusing, found', [
    (('get_full_tick', 'get_trading_dates_by_market'), 'no_service'), (('get_full_tick',), 'open'), ((), 'open')])
def test_a_function_without_a_service_is_no_proof_all_of_them_are(refusing, found):
    client = Client(refusing)
    machine = machine_of([FULL], {58600}, client)
    machine.look()
    assert machine.facts() == {'programs': [FULL], 'port': 'closed', 'full_port': found, 'checked': scene.NOW}
    assert client.closed == 1
    machine.look()
    assert client.closed == 1, 'not again so soon'
    machine.close()


# -- through the stand-in terminal -------------------------------------------------------------------------------
@pytest.fixture
def terminal():
    terminal = scene.populate(Terminal(FakeClock(bq.parse_moment(scene.NOW)[0])))
    native.install(terminal)
    yield terminal
    terminal.faults.release()
    native.uninstall()


@contextlib.contextmanager
def served(terminal, monkeypatch, machine, path=None, connect_s=3.0):
    quick = {'call_s': 2.0, 'connect_s': connect_s, 'probe_s': 0.05, 'warm_up_s': 0.05, 'error_s': 0.3,
             'backoff_s': 0.05, 'backoff_max_s': 0.1}
    monkeypatch.setattr(bq.QmtTiming, 'FIELDS', tuple((name, quick.get(name, value))
                                                      for name, value in bq.QmtTiming.FIELDS))
    monkeypatch.setattr(bq, 'QmtMachine', lambda *args, **options: machine)
    monkeypatch.setattr(bq.QmtBackend, 'LOOK_S', 0.01)
    spec = bq.AccountSpec('main', scene.ACCOUNT, 'stock', path or scene.userdata_folder(), None, True)
    settings = server_settings(accounts=(spec,), server_type='qmt').replace(
        auto_download=True, quote_max_age=15.0, state=os.path.join(scene.userdata_folder(), 'orders.sqlite'))
    with contextlib.closing(bq.serve(settings, terminal.clock)) as server:
        yield server


def doctor(server, capsys):
    """(exit code, what it printed, the hint)."""
    code = bq.main(['doctor', '--port', str(server.address[1]), '--token', TOKEN])
    out, err = capsys.readouterr()
    return code, out, err


def seen(server, reason):
    qmt = server.service.backend.health()['qmt']
    account = qmt['accounts']['main']
    return (account['reason'] if account['state'] != 'connected' else 'connected') == reason and (
        qmt['machine']['checked'] or reason == 'connected')


def off(terminal):
    terminal.faults.connect_code = -1
    terminal.faults.no_service = True


def stopped(terminal):
    terminal.stop()


def taken(terminal):
    terminal.faults.connect_code = -1


def no_account(terminal):
    terminal.faults.fail_subscribe(times=10 ** 6)


def frozen(terminal):
    terminal.faults.hang('connect')


@NEEDS_VENDOR
@pytest.mark.parametrize('fault, machine, reason, told, hint', [
    (off, machine_of([FULL], {58600}, Client(('get_full_tick', 'get_trading_dates_by_market'))), 'connect',
     '已被券商停用', '向券商'),
    (stopped, machine_of([], ()), 'connect', '没有运行', '启动 QMT'),
    (stopped, machine_of([MINI], ()), 'connect', '没有登录', '登录'),
    (taken, machine_of([MINI], {58610}), 'connect', 'up_queue_xtquant', '券商'),
    (no_account, machine_of([MINI], {58610}), 'subscribe', '资金账号', '登录这个资金账号'),
    (frozen, machine_of([MINI], {58610}), 'hung', '没有回应', '卡死')])
def test_doctor_tells_them_apart(terminal, monkeypatch, capsys, fault, machine, reason, told, hint):
    fault(terminal)
    with served(terminal, monkeypatch, machine, connect_s=0.2 if fault is frozen else 3.0) as server:
        assert becomes(lambda: seen(server, reason)), server.service.backend.health()
        code, out, err = doctor(server, capsys)
        terminal.faults.release()
    assert code == bq.Exit.FAILED and '[失败] QMT：账户 main' in out and told in out and hint in err
    assert '[正常] 服务' in out


@NEEDS_VENDOR
def test_doctor_tells_a_taken_session(terminal, monkeypatch, capsys):
    path = scene.userdata_folder()
    open(os.path.join(path, 'up_queue_xtquant'), 'w').close()
    terminal.faults.connect_code = -1
    with served(terminal, monkeypatch, machine_of([MINI], {58610}), path) as server:
        assert becomes(lambda: seen(server, 'connect'))
        code, out, err = doctor(server, capsys)
    assert code == bq.Exit.FAILED and '会话号' in out and 'QMT_SESSION_ID' in err


@NEEDS_VENDOR
def test_doctor_tells_a_wrong_path(terminal, monkeypatch, capsys, tmp_path):
    with served(terminal, monkeypatch, machine_of([MINI], {58610}), str(tmp_path / 'typo')) as server:
        assert becomes(lambda: seen(server, 'missing'))
        code, out, err = doctor(server, capsys)
    assert code == bq.Exit.FAILED and '没有目录' in out and 'QMT_DATA_PATH' in err and os.listdir(str(tmp_path)) == []


@NEEDS_VENDOR
def test_doctor_finds_a_good_one_good(terminal, monkeypatch, capsys):
    with nothing_left():
        with served(terminal, monkeypatch, machine_of([MINI], {58610})) as server:
            assert becomes(lambda: seen(server, 'connected'))
            assert becomes(lambda: server.service.backend.data.health()['state'] == 'connected')
            code, out, err = doctor(server, capsys)
        assert code == bq.Exit.OK and '[正常] QMT：账户 main 已连接' in out and out.count('[正常]') == 7


@NEEDS_VENDOR
def test_questions_without_a_service_are_counted_by_function_and_forgotten_with_an_answer(terminal):
    data = bq.QmtData(bq.import_vendor(), terminal.clock, probe_s=0.02, backoff_s=(0.02,)).start()
    terminal.faults.no_service = True
    for question in (lambda: data.quote('600000.XSHG'), lambda: data.trade_days(count=1)):
        with pytest.raises(bq.QmtUnavailable) as caught:
            question()
        assert '200005' in caught.value.message
    health = {'accounts': {'main': {'state': 'down', 'reason': 'connect'}}, 'data': data.health()}
    assert bq.qmt_diagnosis(bq.qmt_facts(health, 'main')).kind == 'switched_off'
    terminal.faults.no_service = False
    data.quote('600000.XSHG')
    assert data.health()['unserved'] == ['get_trading_dates']
    data.close()


# -- where there is no server ----------------------------------------------------------------------------------
def test_doctor_on_the_trading_machine_tells_without_a_server(monkeypatch, capsys, tmp_path):
    machine = machine_of([], ())
    monkeypatch.setattr(bq, 'QmtMachine', lambda *args, **options: machine)
    monkeypatch.setattr(bq, 'qmt_client_opener', lambda: None)
    monkeypatch.setenv('QMT_ACCOUNT_ID', '55001234')
    monkeypatch.setenv('QMT_DATA_PATH', str(tmp_path / 'typo'))
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(('127.0.0.1', 0))
        command = ['doctor', '--port', str(unused.getsockname()[1]), '--token', TOKEN]
        assert bq.main(command) == bq.Exit.UNREACHABLE
        assert '[本机] QMT 账户 default：没有目录' in capsys.readouterr().out
        (tmp_path / 'userdata_mini').mkdir()
        monkeypatch.setenv('QMT_DATA_PATH', str(tmp_path / 'userdata_mini'))
        bq.main(command)
        assert '没有 QMT 用过它' in capsys.readouterr().out
        (tmp_path / 'userdata_mini' / 'users').mkdir()
        bq.main(command)
        out = capsys.readouterr().out
        assert '[本机] QMT 账户 default：QMT 没有运行' in out and '建议：启动 QMT' in out
        monkeypatch.delenv('QMT_DATA_PATH')
        bq.main(command)
        assert '[本机]' not in capsys.readouterr().out
