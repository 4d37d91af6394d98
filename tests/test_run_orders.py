"""While a strategy runs, its orders are its run's: jq_helper's own functions reach no account from inside."""
import importlib
import os
import subprocess
import sys
import threading

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN, serving, short_client
from tests.engine import A, MadeMarket, day_row, days_from, run, written
from tests.live import stage
from tests.test_jq_helper import wire  # noqa: F401 - a configured remote account

DAYS = days_from('2024-03-04', 3)
SETTINGS = "host='127.0.0.1', port=1, token='%s'" % TOKEN
START, END = '2025-03-03 09:00', '2025-03-03 10:00'
LIVE = '000001.XSHE'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)


@pytest.fixture(autouse=True)
def modules_are_put_back():
    before = sys.modules.get('jqdata')
    yield
    assert sys.modules.get('jqdata') is before


@pytest.fixture
def market(tmp_path):
    made = MadeMarket(tmp_path)
    made.daily(A, [day_row(day, 10.0) for day in DAYS])
    return made.source


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """helper(name, text): a module that strategies can import."""
    monkeypatch.setattr(sys, 'path', [str(tmp_path)] + sys.path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    names = []

    def write(name, text):
        names.append(name)
        (tmp_path / (name + '.py')).write_bytes(text.encode('utf-8'))
        sys.path_importer_cache.pop(str(tmp_path), None)  # it may have looked in the same tick of the clock
    yield write
    for name in names:
        sys.modules.pop(name.replace('/__init__', ''), None)


@pytest.fixture(autouse=True)
def no_connection_stays(monkeypatch):
    opened = []
    for kind in (bq.RemoteQmtConnection, bq.LocalConnection):
        monkeypatch.setattr(kind, '__init__', noting(kind.__init__, opened))
    yield
    for connection in opened:
        connection.close()


def noting(init, opened):
    def noted(self, *arguments, **named):
        init(self, *arguments, **named)
        opened.append(self)
    return noted


@pytest.fixture(autouse=True)
def no_copy_stays():
    yield
    sys.modules.pop('copied', None)


def play(tmp_path, market, text, **options):
    return run(tmp_path, text, market, DAYS[0], DAYS[-1], **options)[0]


def refused(tmp_path, market, text):
    """The ConfigError at which the strategy failed."""
    with pytest.raises(jq.StrategyError) as caught:
        play(tmp_path, market, text)
    cause = caught.value.__cause__
    assert isinstance(cause, bq.ConfigError) and cause.code == 'CONFIG_INVALID' and cause.broker_called is False
    assert '回测' in cause.message and 'configure' in cause.hint and caught.value.line
    return caught.value


def is_free(wire):
    """Whether the functions of the module reach the account as ever."""
    before = len(wire.sent)
    return jq.order(A, 100) and jq.get_data_client() and len(wire.sent) == before + 1


# -- a backtest ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('head', ['from jq_helper import *\nconfigure(%s)\n',
                                  'import jq_helper as helper\nhelper.configure(%s)\n'])
def test_a_strategy_that_configures_is_refused_at_once(tmp_path, market, wire, head):
    before = jq._clients
    text = head % SETTINGS + 'def initialize(context):\n    order("%s", 100)\n' % A
    assert refused(tmp_path, market, text).line == 2 and jq._clients is before and wire.sent == []
    assert is_free(wire)


@pytest.mark.parametrize('call', [
    'jq_helper.order(A, 100)', 'jq_helper.order_value(A, 5000)', 'jq_helper.order_percent(A, 0.1)',
    'jq_helper.order_target(A, 0)', 'jq_helper.order_target_value(A, 0)', 'jq_helper.order_target_percent(A, 0)',
    'jq_helper.cancel_order("7")', 'jq_helper.get_broker_client()', 'jq_helper.get_account()',
    'jq_helper.get_positions()', 'jq_helper.get_orders()', 'jq_helper.get_data_client()',
    'from jq_helper import order; order(A, 100)'])
def test_the_functions_of_the_remote_account_are_refused(tmp_path, market, wire, call):
    refused(tmp_path, market, 'import jq_helper\nA = "%s"\n\n\ndef initialize(context):\n    %s\n' % (A, call))
    assert wire.sent == [] and is_free(wire)


@pytest.mark.parametrize('head', ['from jqdata import *\nfrom jq_helper import *\n', 'from jq_helper import *\n',
                                  'from jq_helper import order, get_trades\n'])
def test_what_the_run_has_too_is_the_run_s_own(tmp_path, market, wire, head):
    result = play(tmp_path, market, head + '''
def initialize(context):
    run_daily(trade, '9:30')


def trade(context):
    order('%s', 100, LimitOrderStyle(10.5))
    assert get_trades()
''' % A)
    assert len(result.trades) == len(DAYS) and wire.sent == []


def test_percents_are_of_the_run_s_total_value(tmp_path, market, wire):
    result = play(tmp_path, market, '''
from jq_helper import *


def initialize(context):
    run_daily(trade, '9:30')


def trade(context):
    if not context.portfolio.positions:
        order_percent('%(code)s', 0.1, LimitOrderStyle(10.5))
        order_target_percent('%(code)s', 0.5)
''' % {'code': A})
    assert [row['amount'] for row in result.trades] == [9500, 40400] and wire.sent == []


@pytest.mark.parametrize('call, said', [
    ('order(A, 100, price=11.5, wait_timeout=10)', '没有参数 price、wait_timeout'),
    ('order_target_value(A, 100, price=11.5)', '没有参数 price'), ('order_percent(A, 0.1, price=11.5)', 'LimitOrderStyle'),
    ('order(A, 100, None, "SELL")', 'side 不认识'), ('order(A, 100, 10.5, 10)', 'side 不认识'),
    ('order_percent(A, 1.5)', 'percent')])
def test_what_only_scripts_write_is_refused_with_what_to_write(tmp_path, market, wire, call, said):
    text = 'from jq_helper import *\nA = "%s"\n\n\ndef initialize(context):\n    %s\n' % (A, call)
    with pytest.raises(jq.StrategyError, match=said) as caught:
        play(tmp_path, market, text)
    assert caught.value.__cause__.code == 'BAD_REQUEST' and wire.sent == []


def test_a_client_that_was_kept_from_before_orders_nothing(tmp_path, market, wire, helper):
    helper('kept', 'import jq_helper\nbroker = jq_helper.get_broker_client()\n')
    importlib.import_module('kept')
    for call in ('order("%s", 100)' % A, 'cancel_order("7")', 'place_order("%s", "BUY", 100)' % A):
        refused(tmp_path, market, 'import kept\n\n\ndef initialize(context):\n    kept.broker.%s\n' % call)
    assert wire.sent == []


# -- modules that a strategy imports ---------------------------------------------------------------------------------
def test_modules_that_it_imports_are_refused_too(tmp_path, market, wire, helper):
    helper('bought', 'from jq_helper import *\n\n\ndef buy(code):\n    return order(code, 100)\n')
    for _ in range(2):  # the second time it is there already
        refused(tmp_path, market, 'import bought\n\n\ndef initialize(context):\n    bought.buy("%s")\n' % A)
    helper('told', 'import jq_helper\njq_helper.configure(%s)\n' % SETTINGS)
    refused(tmp_path, market, 'import told\n')
    assert wire.sent == [] and is_free(wire)


def test_modules_order_in_the_run_that_imports_them(tmp_path, market, helper):
    """And not in the one before, whose functions they took."""
    helper('orders', 'from jqdata import *\n\n\ndef buy(code):\n    return order(code, 100)\n')
    helper('buyer', 'from orders import buy\n')
    (tmp_path / 'package').mkdir()
    helper('package/__init__', '')
    helper('package/more', 'import orders\n')
    importlib.import_module('package')
    text = ('import buyer\nfrom package import more\n\n\ndef initialize(context):\n    buyer.buy("%s")\n'
            '    more.orders.buy("%s")\n' % (A, A))
    assert [len(play(tmp_path, market, text).trades) for _ in range(3)] == [2, 2, 2]
    assert not {'orders', 'buyer', 'package.more'} & set(sys.modules) and not hasattr(sys.modules['package'], 'more')


# -- runs within runs, and beside each other -------------------------------------------------------------------------
def test_a_run_within_a_run(tmp_path, market, wire):
    inner = tmp_path / 'inner.py'
    inner.write_bytes(('def initialize(context):\n    order("%s", 100)\n    1 / g.zero\n' % A).encode('utf-8'))
    result = play(tmp_path, market, '''
import jq_helper


def initialize(context):
    for zero in (0, 1):
        try:
            jq_helper.backtest(%r, '%s', '%s', provider=%r, params={'zero': zero})
        except jq_helper.BulletError:
            raise
        except Exception as error:
            assert zero == 0 and 'ZeroDivisionError' in str(error)
    from jqdata import order
    order('%s', 200)
    try:
        jq_helper.order('%s', 100)
    except jq_helper.BulletError as error:
        log.info(error.code)
''' % (str(inner), DAYS[0], DAYS[-1], market, A, A))
    assert [row['amount'] for row in result.trades] == [200] and wire.sent == [] and is_free(wire)


@pytest.mark.parametrize('call', [
    'order("%s", 100)', 'order_value("%s", 5000)', 'order_target("%s", 0)', 'order_target_value("%s", 0)',
    'batch_submit_orders([dict(security="%s", amount=100)])', 'cancel_order(1) or "%s"'])
def test_a_module_that_two_runs_share_orders_in_neither_s_place(tmp_path, market, helper, call):
    helper('shared', 'from jqdata import *\nimport jqdata\n\n\ndef trade():\n    return %s\n\n\n'
                     'def own():\n    return jqdata.%s\n' % (call % A, call % A))
    inner = tmp_path / 'inner.py'
    inner.write_bytes(b'import shared\n\n\ndef initialize(context):\n    shared.own()\n    shared.trade()\n')
    result = play(tmp_path, market, '''
import jq_helper, shared


def initialize(context):
    shared.trade()
    order('%s', 300)
    look = lambda: [str(placed.status) for placed in get_orders().values()]
    before = look()
    try:
        jq_helper.backtest(%r, '%s', '%s', provider=%r)
    except jq_helper.BulletError:
        raise
    except Exception as error:
        g.said = str(error)
    assert '另一次运行' in g.said and look() == before
    shared.trade()
''' % (A, str(inner), DAYS[0], DAYS[-1], market))
    assert result.finished


BOTH = '''
import rendezvous


def initialize(context):
    rendezvous.both.wait(30)
    from jqdata import g as mine
    assert mine is g
    rendezvous.both.wait(30)
    if g.fails:
        raise ValueError('no luck')
    run_daily(trade, '9:30')


def trade(context):
    rendezvous.first_has_left.wait(30)
    import jqdata, jq_helper
    assert jqdata.g is g
    jq_helper.order('%s', 100)
''' % A


def test_runs_in_threads_have_their_own_names(tmp_path, market, wire, monkeypatch):
    meeting = type(sys)('rendezvous')
    meeting.both, meeting.first_has_left = threading.Barrier(2), threading.Event()
    monkeypatch.setitem(sys.modules, 'rendezvous', meeting)
    path, errors = written(tmp_path, BOTH), {}

    def go(fails):
        try:
            jq.backtest(path, DAYS[0], DAYS[-1], provider=market, params={'fails': fails})
        except jq.StrategyError as error:
            errors[fails] = error
        finally:
            meeting.first_has_left.set()
    threads = [threading.Thread(target=go, args=arguments) for arguments in ((True,), (False,))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [errors[True].__cause__.args, errors[False].__cause__.code] == [('no luck',), 'CONFIG_INVALID']
    assert wire.sent == [] and is_free(wire)


def test_a_thread_of_the_strategy_s_own_is_in_its_run(tmp_path, market, wire):
    result = play(tmp_path, market, '''
import threading


def trade():
    from jqdata import order as mine
    from jq_helper import order as remote
    mine('%s', 100)
    try:
        remote('%s', 100)
    except Exception as error:
        g.code = error.code


def initialize(context):
    thread = threading.Thread(target=trade)
    thread.start()
    thread.join(30)
    assert g.code == 'CONFIG_INVALID'
''' % (A, A))
    assert len(result.orders) == 1 and wire.sent == []


RELOADED = '''
import sys
import jq_helper
try:
    jq_helper.backtest(*sys.argv[1:4], provider=sys.argv[4])
except Exception as error:
    print(type(error.__cause__).__name__)
'''


def test_a_module_that_is_loaded_again_below_a_run_knows_of_it(tmp_path, market):
    """As dask does with the modules it is sent."""
    path = written(tmp_path, 'import importlib, jq_helper\nimportlib.reload(jq_helper)\n'
                             'jq_helper.configure(%s)\n' % SETTINGS)
    root = os.path.dirname(os.path.abspath(jq.__file__))
    output = subprocess.check_output([sys.executable, '-c', RELOADED, path, DAYS[0], DAYS[-1], market],
                                     env=dict(os.environ, PYTHONPATH=root))
    assert output.split() == [b'ConfigError']


# -- a grid ----------------------------------------------------------------------------------------------------------
def test_the_points_of_a_grid_are_refused_too(tmp_path, market, capsys, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    path = written(tmp_path, 'N = 1\nfrom jq_helper import *\nconfigure(%s)\n\n\ndef initialize(context):\n'
                             '    order("%s", N)\n' % (SETTINGS, A))
    assert bq.main(['backtest', path, '--start', DAYS[0], '--end', DAYS[-1], '--data-provider', market,
                    '--grid', 'N=100,200', '--output', 'here']) == 1
    text = (tmp_path / 'here' / 'grid.csv').read_bytes().decode('utf-8-sig')
    assert text.count('策略正在回测') == 2


# -- a live run ------------------------------------------------------------------------------------------------------
def live(tmp_path, body, **options):
    """(run, stage's lines, orders of the account) of a strategy with this initialize."""
    with stage(tmp_path, START, END) as it:
        text = 'import jq_helper\nADDRESS = dict(host="%s", port=%d, token="%s")\n\n\ndef initialize(context):\n' % (
            it.server.address[0], it.server.address[1], TOKEN)
        it.run(it.strategy(text + ''.join('    %s\n' % line for line in body.splitlines())), **options)
        return it.lines, it.broker.get_orders()


def test_a_dry_run_stays_one(tmp_path):
    lines, orders = live(tmp_path, '''from jq_helper import order as remote
for call in (lambda: jq_helper.configure(**ADDRESS), lambda: remote("%s", 100)):
    try:
        call()
    except jq_helper.BulletError as error:
        log.info(error.message)
order("%s", 100)''' % (LIVE, LIVE), dry_run=True)
    assert orders == [] and sum('策略正在实盘' in line for line in lines) == 2


def test_a_live_run_may_read_data(tmp_path, wire):
    lines, orders = live(tmp_path, 'log.info("%%s", jq_helper.get_data_client().get_last_price("%s"))' % LIVE)
    assert any(line.endswith('INFO - 10.0') for line in lines) and orders == []


TAKE_OVER = '''g.installed = jq_helper.install_jq_compat(globals(), context=context, **ADDRESS)
log.info("%%s", g.installed)
order("%s", 100)''' % LIVE


def test_in_a_live_run_the_account_is_not_taken_over(tmp_path):
    for name, options in (('dry', {'dry_run': True}), ('limited', {'limits': jq.RiskLimits(500, None, None, None)})):
        (tmp_path / name).mkdir()
        lines, orders = live(tmp_path / name, TAKE_OVER, **options)
        assert orders == [] and jq._jq_install is None and any(line.endswith('INFO - False') for line in lines)
        assert sum('install_jq_compat' in line for line in lines) == 1


def test_nor_in_a_backtest(tmp_path, market, wire):
    _, lines = run(tmp_path, '''
import jq_helper


def initialize(context):
    pass


def process_initialize(context):
    assert jq_helper.install_jq_compat(globals(), context=context, host='', token='') is False
    order('%s', 100)
''' % A, market, DAYS[0], DAYS[-1])
    assert sum('install_jq_compat' in line for line in lines) == 1 and wire.sent == [] and jq._jq_install is None


def test_nor_with_a_context_of_ours_that_is_kept(wire, capsys):
    context = jq.Context(jq.RunParams(None, None, 'sim_trade', 'day'), jq.Portfolio(1, None, None))
    assert jq.install_jq_compat({'__builtins__': {}}, context, host='127.0.0.1', token=TOKEN) is False
    assert jq._jq_install is None and 'install_jq_compat' in capsys.readouterr().out and wire.sent == []


def test_a_run_that_is_interrupted_is_over_too(tmp_path, market, wire):
    assert not play(tmp_path, market, 'def initialize(context):\n    raise KeyboardInterrupt\n').finished
    assert is_free(wire)


# -- bullet_qmt itself -----------------------------------------------------------------------------------------------
WAYS = ['bq.RemoteQmtBroker(config=ADDRESS).buy(A, 100)',
        'bq.RemoteQmtBroker(config=ADDRESS).sell(A, 100, 10.0)',
        'bq.RemoteQmtBroker(config=ADDRESS).cancel_order("1")',
        'bq.RemoteQmtBroker(config=ADDRESS).resolve_submission("some-key", abandon_unseen=True)',
        'bq.RemoteQmtBroker(connection=bq.connect(**ADDRESS)).buy(A, 100)',
        'bq.RemoteQmtBroker(connection=bq.ShortConnection(HOST, PORT, TOKEN)).buy(A, 100)',
        'bq.RemoteQmtConnection(HOST, PORT, TOKEN).start().request("broker.place_order", ORDER)',
        'bq.ShortConnection(HOST, PORT, TOKEN).request("broker.place_order", ORDER)',
        'bq.ShortConnection(HOST, PORT, TOKEN).request("broker.something_new", ORDER)',
        'bq.LocalConnection(bq.open_service(PAPER)).request("broker.place_order", ORDER)',
        'bq.open_service(REAL)', 'copied.ShortConnection(HOST, PORT, TOKEN).request("broker.place_order", ORDER)',
        'in_thread(lambda: bq.RemoteQmtBroker(config=ADDRESS).buy(A, 100))']
ROUND = '''
import importlib.util, sys, threading
import bullet_qmt as bq
HOST, PORT, TOKEN, A = '127.0.0.1', %d, '%s', '%s'
ADDRESS = dict(host=HOST, port=PORT, token=TOKEN)
ORDER = dict(security=A, side='BUY', amount=100, style={'type': 'market'})
PAPER = bq.load_settings(['server', 'stub'], dict(server_type='stub'), {}, None)
REAL = bq.load_settings(['server', 'stub'], dict(server_type='qmt', accounts='main=1:stock:/nowhere'), {}, None)
found = importlib.util.spec_from_file_location('copied', bq.__file__)
sys.modules['copied'] = copied = importlib.util.module_from_spec(found)
found.loader.exec_module(copied)


def in_thread(call):
    caught = []

    def go():
        try:
            call()
        except Exception as error:
            caught.append(error)
    thread = threading.Thread(target=go)
    thread.start()
    thread.join(30)
    raise caught[0]


def initialize(context):
    try:
        %s
    except Exception as error:
        assert type(error).__name__ == 'ConfigError', repr(error)
        log.info('%%s %%s %%s', error.code, error.broker_called, error.message)
'''


def round_text(server, way):
    return ROUND % (server.address[1], TOKEN, LIVE, way)


def orders_of(server):
    with short_client(server) as connection:
        return bq.RemoteQmtBroker(connection=connection).get_orders()


@pytest.mark.parametrize('way', WAYS)
def test_a_backtest_reaches_no_account_by_bullet_qmt_either(tmp_path, market, way):
    with serving() as server:
        _, lines = run(tmp_path, round_text(server, way), market, DAYS[0], DAYS[-1])
        assert orders_of(server) == [] and any('CONFIG_INVALID False 策略正在回测' in line for line in lines)
        with short_client(server) as connection:
            assert bq.RemoteQmtBroker(connection=connection).buy(LIVE, 100), 'afterwards all is as it was'


@pytest.mark.parametrize('way', [way for way in WAYS if 'PAPER' not in way])
@pytest.mark.parametrize('options', [{'dry_run': True}, {'limits': jq.RiskLimits(500, None, None, None)}, {}])
def test_nor_does_a_live_run_past_its_own_orders(tmp_path, way, options):
    with stage(tmp_path, START, END) as it:
        it.run(it.strategy(round_text(it.server, way)), **options)
        assert it.broker.get_orders() == [] and it.said('CONFIG_INVALID False 策略正在实盘')


def test_an_account_may_be_looked_at_and_the_run_s_own_orders_go_out(tmp_path):
    text = ROUND.replace('initialize', 'unused') + '''
def initialize(context):
    broker = bq.RemoteQmtBroker(config=ADDRESS)
    order(A, 100, LimitOrderStyle(1.0)) or order(A, 100)
    log.info('seen %%d', len(broker.get_orders()))
    broker.get_account_info(), broker.get_positions(), broker.get_trades(), broker.resolve_submission('some-key')
    broker.close()
'''
    with stage(tmp_path, '2025-03-03 09:35', END) as it:
        it.run(it.strategy(text % (it.server.address[1], TOKEN, LIVE, 'pass')))
        assert it.said('seen 1') and len(it.broker.get_orders()) == 1


def test_the_command_line_is_refused_from_inside(tmp_path, market, capsys):
    commands = [['order', LIVE, 'buy', '100', '--market'], ['cancel', '1'], ['resolve', 'some-key', '--abandon'],
                ['call', 'broker.place_order', '{"security": "%s", "side": "BUY", "amount": 100}' % LIVE]]
    with serving() as server:
        address = ['--host', '127.0.0.1', '--port', str(server.address[1]), '--token', TOKEN]
        text = 'import bullet_qmt\n\n\ndef initialize(context):\n    log.info("%%s", [int(bullet_qmt.main(c + %r)) ' \
               'for c in %r])\n' % (address, commands)
        _, lines = run(tmp_path, text, market, DAYS[0], DAYS[-1])
        assert any(line.endswith('[2, 2, 2, 2]') for line in lines) and orders_of(server) == []
    assert capsys.readouterr().err.count('错误 [CONFIG_INVALID] 策略正在回测') == len(commands)


LEFT_BEHIND = '''
import atexit, multiprocessing, subprocess, sys, threading
import bullet_qmt
ADDRESS = %r
COMMAND = ['order', '%s', 'buy', '100', '--market'] + ADDRESS


def buy():
    print('LATE', int(bullet_qmt.main(COMMAND)))


def initialize(context):
    atexit.register(buy)
    thread = threading.Thread(target=lambda: (threading.main_thread().join(), buy()))
    thread.start()
    child = multiprocessing.get_context().Process(target=bullet_qmt.main, args=(COMMAND,))
    child.start()
    child.join(60)
    print('CHILD', child.exitcode, subprocess.call([sys.executable, bullet_qmt.__file__] + COMMAND))
'''


def test_nothing_that_a_strategy_leaves_behind_reaches_an_account(tmp_path, market):
    """An exit handler, a thread that outlives the run, processes of its own."""
    with serving() as server:
        address = ['--host', '127.0.0.1', '--port', str(server.address[1]), '--token', TOKEN]
        path = written(tmp_path, LEFT_BEHIND % (address, LIVE))
        command = [sys.executable, bq.__file__, 'backtest', path, '--start', DAYS[0], '--end', DAYS[-1],
                   '--data-provider', market, '--output', str(tmp_path / 'out')]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=str(tmp_path))
        out, err = [text.decode('utf-8', 'replace') for text in process.communicate(timeout=120)]
        assert process.returncode == 0 and out.count('LATE 2') == 2 and 'CHILD 0 2' in out, out + err
        assert orders_of(server) == [] and err.count('CONFIG_INVALID') == 4


def test_a_live_run_that_a_strategy_starts_sends_nothing_and_one_of_its_own_does():
    connection = object()
    for environ, is_free in (({}, True), ({'BULLET_QMT_RUN': 'backtest'}, False), ({'BULLET_QMT_RUN': 'odd'}, False)):
        runs = bq.RunsAtWork(environ)
        with runs.added('实盘', connection):
            assert environ['BULLET_QMT_RUN'] and refuses(runs, object())
            assert refuses(runs, connection) is not is_free
        assert refuses(runs, connection) is not is_free and ('BULLET_QMT_RUN' in environ) is not is_free


def refuses(runs, connection):
    try:
        runs.refuse(connection=connection)
    except bq.ConfigError:
        return True
    return False


def test_the_points_of_a_grid_reach_no_account_either(tmp_path, market, monkeypatch, capsys):
    monkeypatch.chdir(str(tmp_path))
    with serving() as server:
        text = 'N = 1\n' + round_text(server, 'bq.RemoteQmtBroker(config=ADDRESS).buy(A, N)') + '        raise\n'
        path = written(tmp_path, text)
        assert bq.main(['backtest', path, '--start', DAYS[0], '--end', DAYS[-1], '--data-provider', market,
                        '--grid', 'N=100,200', '--output', 'here']) == 1
        assert orders_of(server) == []
    assert (tmp_path / 'here' / 'grid.csv').read_bytes().decode('utf-8-sig').count('策略正在回测') == 2
