"""RemoteQmtProvider, RemoteQmtBroker and the functions at module level, against a stub server."""
import os
import queue
import subprocess
import sys
import textwrap
import warnings
from datetime import date, datetime

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, long_client, server_settings, serving
from tests.fakes import FakeClock

pandas = pytest.importorskip('pandas')
NOW = datetime(2024, 5, 15, 14, 0)  # a Wednesday, in session
CODE, OTHER = '000001.XSHE', '600000.XSHG'
HAS_PANEL = bq.has_panel()


@pytest.fixture(scope='module')
def server():
    server = bq.serve(server_settings(sub_accounts=(bq.SubAccountSpec('demo', 'default', 5000.0),)), FakeClock(NOW))
    yield server
    server.close()


@pytest.fixture(scope='module')
def connection(server):
    with long_client(server) as client:
        yield client


@pytest.fixture(scope='module')
def provider(connection):
    return bq.RemoteQmtProvider(connection=connection)


@pytest.fixture
def broker(connection):
    return bq.RemoteQmtBroker(connection=connection)


@pytest.fixture
def environment(server, monkeypatch, tmp_path):
    """QMT_SERVER_* name the server; no provider is set, before or after."""
    monkeypatch.chdir(str(tmp_path))
    for name in [name for name in os.environ if name.startswith('QMT_')]:
        monkeypatch.delenv(name)
    for name, value in zip(('HOST', 'PORT', 'TOKEN'), (server.address[0], str(server.address[1]), TOKEN)):
        monkeypatch.setenv('QMT_SERVER_' + name, value)
    monkeypatch.setattr(bq, '_provider', None)
    yield monkeypatch
    if bq._provider is not None:
        bq._provider.close()


class Canned(bq.BaseConnection):
    """A connection that gives one answer and remembers the question."""

    ack = {'journal_id': 'j1'}

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def request(self, action, payload=None, timeout=None):
        self.asked.append((action, payload))
        return self.answer


# -- data, with pandas --------------------------------------------------------------------------------------------
def test_bars_of_one_security(provider):
    frame = provider.get_price(CODE, end_date='2024-05-10', count=3, fields=['close', 'open', 'volume'])
    assert list(frame.columns) == ['close', 'open', 'volume']
    assert isinstance(frame.index, pandas.DatetimeIndex) and frame.index.name is None
    assert list(frame.index) == [pandas.Timestamp(day) for day in ('2024-05-08', '2024-05-09', '2024-05-10')]
    assert [str(kind) for kind in frame.dtypes] == ['float64'] * 3 and frame['close'].min() > 0


def test_default_fields_and_minutes(provider):
    frame = provider.get_price(CODE, start_date='2024-05-10 09:31:00', end_date=datetime(2024, 5, 10, 9, 33),
                               frequency='1m')
    assert list(frame.columns) == ['open', 'close', 'high', 'low', 'volume', 'money']
    assert [str(moment) for moment in frame.index] == ['2024-05-10 09:3%d:00' % minute for minute in (1, 2, 3)]


def test_bars_of_many_securities_long(provider):
    frame = provider.get_price([CODE, OTHER], end_date=date(2024, 5, 10), count=2, fields='close', panel=False)
    assert list(frame.columns) == ['time', 'code', 'close']
    assert list(frame['code']) == [CODE, CODE, OTHER, OTHER]
    assert str(frame['time'].dtype).startswith('datetime64[') and list(frame.index) == [0, 1, 2, 3]


def test_bars_of_many_securities_as_joinquant_gives_them(provider):
    result = provider.get_price((CODE, OTHER), end_date='2024-05-10', count=2, fields=('close', 'open'))
    if HAS_PANEL:
        assert type(result).__name__ == 'Panel'
        assert list(result.items) == ['close', 'open'] and list(result.minor_axis) == [CODE, OTHER]
        assert list(result['close'].index) == [pandas.Timestamp('2024-05-09'), pandas.Timestamp('2024-05-10')]
        single = provider.get_price(CODE, end_date='2024-05-10', count=2, fields=['close'])
        assert list(result['close'][CODE]) == list(single['close'])
    else:
        assert list(result.columns) == ['time', 'code', 'close', 'open'] and len(result) == 4


def test_dates_of_every_type_mean_the_same(provider):
    spellings = ['2024-05-10', '20240510', date(2024, 5, 10), datetime(2024, 5, 10), pandas.Timestamp('2024-05-10')]
    frames = [provider.get_price(CODE, start_date=day, end_date=day) for day in spellings]
    assert all(frame.equals(frames[0]) and len(frame) == 1 for frame in frames)


def test_numpy_numbers_may_be_given(provider):
    numpy = pytest.importorskip('numpy')
    assert len(provider.get_price(CODE, end_date='2024-05-10', count=numpy.int64(2))) == 2


def test_nothing_there_is_an_empty_frame(provider):
    frame = provider.get_price(CODE, start_date='2024-05-11', end_date='2024-05-12')
    assert len(frame) == 0 and list(frame.columns)[0] == 'open'


@pytest.mark.parametrize('none', [[], (), set(), pandas.Index([])])
def test_of_no_securities_there_is_an_empty_answer(provider, none):
    for how in (dict(count=3), dict(count=3, panel=False), dict(start_date='2024-05-01', frequency='1m')):
        frame = provider.get_price(none, fields=['close', 'paused'], **how)
        assert len(frame) == 0 and list(frame.columns) == ['time', 'code', 'close', 'paused']
        assert [str(kind) for kind in frame.dtypes] == ['datetime64[ns]', 'object', 'float64', 'float64']
    assert provider.get_live_currents(list(none)) == provider.get_trade_day(none, '2024-05-10') == {}
    assert provider.ensure_cache(list(none))['downloaded'] == 0


@pytest.mark.parametrize('ask', [
    lambda provider: provider.get_price(None, count=1), lambda provider: provider.get_price(5, count=1),
    lambda provider: provider.get_price('', count=1), lambda provider: provider.get_price([''], count=1),
    lambda provider: provider.get_price([], count=1, fields=['odd']), lambda provider: provider.get_price([], count=0),
    lambda provider: provider.get_security_info([]), lambda provider: provider.get_current_tick([])])
def test_what_names_no_security_is_refused(provider, ask):
    with pytest.raises((bq.BadRequest, bq.SecurityNotFound)):
        ask(provider)


@pytest.mark.parametrize('wrong', [dict(count=0), dict(count=1, start_date='2024-01-01'), dict(fields=['odd']),
                                   dict(frequency='7x'), dict(fq='odd'), dict(end_date='yesterday'),
                                   dict(skip_paused=1)])
def test_wrong_questions_are_refused(provider, wrong):
    with pytest.raises(bq.BadRequest):
        provider.get_price(CODE, **wrong)


def test_trade_days(provider):
    assert provider.get_trade_days('2024-05-08', '2024-05-10') == [date(2024, 5, 8), date(2024, 5, 9),
                                                                   date(2024, 5, 10)]
    assert provider.get_trade_days(end_date=date(2024, 5, 12), count=1) == [date(2024, 5, 10)]
    assert provider.get_trade_day([CODE, OTHER], '2024-05-12') == {CODE: date(2024, 5, 10), OTHER: date(2024, 5, 10)}
    assert provider.get_trade_day(CODE, '1980-01-01') == {CODE: None}
    days = provider.get_all_trade_days()
    assert days == sorted(days) and days[-1] == date(2024, 5, 15) and len(days) > 4000


def test_securities(provider):
    frame = provider.get_all_securities(['index', 'etf'])
    assert list(frame.columns) == ['display_name', 'name', 'start_date', 'end_date', 'type']
    assert frame.loc['510300.XSHG', 'type'] == 'etf' and frame.index.name == 'code'
    assert frame.loc['510300.XSHG', 'start_date'] == pandas.Timestamp('2012-05-28')
    info = provider.get_security_info(CODE)
    assert (info.display_name, info['type'], info.start_date) == ('平安银行', 'stock', date(1991, 4, 3))
    with pytest.raises(AttributeError):
        info.nothing
    assert CODE in provider.get_index_stocks('000300.XSHG')
    for event in provider.get_split_dividend(CODE, '2020-01-01', '2024-01-01'):
        assert {'security', 'date', 'scale_factor', 'bonus_pre_tax', 'per_base'} <= set(event)


class Answering:
    """A connection that answers each request by a function and keeps them."""

    def __init__(self, features, answer):
        self.ack, self.answer, self.asked = {'features': features}, answer, []

    def request(self, action, payload, timeout=None):
        self.asked.append((action, payload))
        return self.answer(payload)


def test_many_quotes_are_one_request(provider):
    codes = [CODE, '123456.XSHG', '600000.SH']
    rows = provider.get_live_currents(codes)
    assert list(rows) == [CODE, '600000.XSHG'] and rows[CODE]['sid'] == CODE, 'who has none is left out'
    new = Answering(['quotes1'], lambda payload: {'quotes': {code: {'sid': code} for code in payload['securities']}})
    many = ['%06d.XSHE' % number for number in range(1, 302)]
    assert list(bq.RemoteQmtProvider(connection=new).get_live_currents(many)) == many
    assert [len(payload['securities']) for _, payload in new.asked] == [200, 101]
    with pytest.raises(bq.BadRequest, match='最多 200'):
        provider._connection.request('data.live_current', {'securities': many})


def test_many_quotes_of_a_server_that_gives_one_at_a_time():
    def answer(payload):
        if payload['security'] != CODE:
            raise bq.SecurityNotFound('没有')
        return {'last_price': 1.0}
    old = Answering([], answer)
    assert not bq.RemoteQmtProvider(connection=old).gives_many_quotes
    assert bq.RemoteQmtProvider(connection=old).get_live_currents([CODE, '123456.XSHG']) == {CODE: {'last_price': 1.0}}
    assert [payload for _, payload in old.asked] == [{'security': CODE}, {'security': '123456.XSHG'}]


@pytest.mark.parametrize('answer', [None, {}, {'quotes': []}, {'quotes': {CODE: 1.0}}])
def test_an_answer_that_holds_no_quotes_is_an_error(answer):
    with pytest.raises(bq.ProtocolError):
        bq.RemoteQmtProvider(connection=Answering(['quotes1'], lambda payload: answer)).get_live_currents([CODE])


def test_quotes(provider):
    tick = provider.get_current_tick(CODE)
    assert tick['sid'] == CODE and tick['last_price'] == provider.get_last_price(CODE)
    current = provider.get_live_current(CODE)
    assert current['low_limit'] <= current['last_price'] <= current['high_limit'] and current['paused'] is False
    with pytest.raises(bq.NotSupported):
        provider.get_current_tick(CODE, df=True)
    assert provider.get_snapshot(CODE)['sid'] == CODE
    assert 'ok' in provider.ensure_cache(CODE, count=1)
    with pytest.raises(bq.SecurityNotFound):
        provider.ensure_cache('999999.XSHE', count=1)


@pytest.mark.parametrize('symbol', ['000001.SZ', '000001.XSHE'])
def test_ticks_reach_the_callback_with_its_context(server, symbol):
    got = queue.Queue()
    provider = bq.RemoteQmtProvider({'host': server.address[0], 'port': server.address[1], 'token': TOKEN})
    try:
        provider.set_tick_callback(got.put)
        provider.set_tick_callback(lambda context, tick: got.put((context, tick)), 'context')
        provider.subscribe_ticks(symbol)
        context, tick = got.get(timeout=10)
        assert (context, tick['sid'], tick['symbol']) == ('context', CODE, symbol) and tick['last_price'] > 0
        assert provider.unsubscribe_ticks()['count'] == 0
    finally:
        provider.close()
    assert not provider._connection.connected


@pytest.mark.parametrize('answer', [None, {}, {'dtype': 'dict'}, {'dtype': 'dataframe', 'columns': ['a'],
                                                                  'records': [[1, 2]]}])
def test_an_answer_that_is_no_table_is_an_error(answer):
    with pytest.raises(bq.ProtocolError):
        bq.RemoteQmtProvider(connection=Canned(answer)).get_price(CODE)


# -- without pandas -------------------------------------------------------------------------------------------------
def test_without_pandas_there_are_tables(server):
    script = textwrap.dedent('''
        import datetime, sys
        sys.modules['pandas'] = sys.modules['numpy'] = None
        import bullet_qmt as bq
        provider = bq.set_data_provider('qmt-remote', host=%r, port=%d, token=%r)
        table = bq.get_price('000001.XSHE', end_date='2024-05-10', count=2, fields=['close'])
        assert isinstance(table, bq.Table) and list(table.columns) == ['index', 'close'] and len(table) == 2
        assert table['index'][-1] == datetime.datetime(2024, 5, 10) and '2024-05-10' in repr(table)
        many = bq.get_price(['000001.XSHE', '600000.XSHG'], end_date='2024-05-10', count=1)
        assert many.rows()[1]['code'] == '600000.XSHG' and list(many.columns)[:2] == ['time', 'code']
        assert '000300.XSHG' in bq.get_all_securities('index')['code']
        provider.close()
        print('fine')
    ''') % (server.address[0], server.address[1], TOKEN)
    done = subprocess.run([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))))
    assert done.stdout.decode().strip() == 'fine'


# -- module level ---------------------------------------------------------------------------------------------------
def test_functions_at_module_level_take_the_server_from_the_environment(environment):
    assert len(bq.get_price(CODE, count=2)) == 2
    assert bq.get_data_provider() is bq.get_data_provider()
    assert bq.get_trade_days(end_date='2024-05-12', count=1) == [date(2024, 5, 10)]
    assert bq.get_security_info(CODE).display_name == '平安银行' and len(bq.get_all_trade_days()) > 4000
    assert CODE in bq.get_index_stocks('000300.XSHG') and CODE in bq.get_all_securities().index
    assert bq.get_current_tick(CODE)['sid'] == CODE and bq.get_live_current(CODE)['last_price'] > 0
    assert isinstance(bq.get_split_dividend(CODE), list)
    assert bq.get_price.__doc__ == bq.RemoteQmtProvider.get_price.__doc__


def test_and_from_a_dotenv_file(environment, tmp_path):
    lines = ['%s=%s' % (name, os.environ[name]) for name in ('QMT_SERVER_HOST', 'QMT_SERVER_PORT', 'QMT_SERVER_TOKEN')]
    for name in ('QMT_SERVER_HOST', 'QMT_SERVER_PORT', 'QMT_SERVER_TOKEN'):
        environment.delenv(name)
    (tmp_path / '.env').write_text('\n'.join(lines))
    assert bq.get_current_tick(CODE)['sid'] == CODE


def test_a_new_provider_replaces_and_closes_the_old_one(environment, server):
    old = bq.set_data_provider('qmt-remote')
    new = bq.set_data_provider(host=server.address[0], port=server.address[1], token=TOKEN)
    assert bq.get_data_provider() is new
    new.close()
    with pytest.raises(bq.ConnectionLost) as caught:
        bq.get_price(CODE, count=1)
    assert 'set_data_provider' in caught.value.hint
    with pytest.raises(bq.ConnectionLost):
        old.get_last_price(CODE)


def test_a_provider_that_cannot_connect_leaves_the_old_one(environment, server):
    old = bq.set_data_provider('qmt-remote')
    with pytest.raises(bq.AuthFailed):
        bq.set_data_provider(token='wrong')
    assert bq.get_data_provider() is old and old.get_last_price(CODE) > 0


@pytest.mark.parametrize('call', [
    lambda: bq.set_data_provider('tushare'), lambda: bq.set_data_provider('qmt-remote', hots='x'),
    lambda: bq.RemoteQmtProvider({'tls_cer': 'x'}), lambda: bq.RemoteQmtBroker(config={'acount_key': 'x'}),
    lambda: bq.connect(port='x'), lambda: bq.connect(port=70000), lambda: bq.connect(rpc_timeout=float('nan')),
    lambda: bq.connect(host='a b'), lambda: bq.connect(tls_cert='no such file')])
def test_options_that_are_unknown_or_wrong_are_refused(environment, call):
    with pytest.raises(bq.ConfigError):
        call()


def test_a_token_is_needed(environment):
    environment.delenv('QMT_SERVER_TOKEN')
    with pytest.raises(bq.ConfigError) as caught:
        bq.get_price(CODE, count=1)
    assert 'QMT_SERVER_TOKEN' in caught.value.hint


# -- broker ---------------------------------------------------------------------------------------------------------
def test_the_account(broker):
    info = broker.get_account_info()
    assert info['total_value'] == info['total_asset'] > 0 and info['available_cash'] > 0
    assert isinstance(info['positions'], list) and broker.sync_account()['account_id'] == info['account_id']


def test_buy_and_see_it_everywhere(broker):
    order_id = broker.buy(CODE, 100, wait_timeout=10, remark='r', idempotency_key='facade-1')
    assert broker.buy(CODE, 100, wait_timeout=10, remark='r', idempotency_key='facade-1') == order_id
    row = broker.get_order_status(order_id)
    assert (row['status'], row['order_remark'], row['side'], row['filled']) == ('filled', 'r', 'BUY', 100)
    assert [item['order_id'] for item in broker.get_orders(order_id=order_id)] == [order_id]
    assert sum(trade['amount'] for trade in broker.get_trades(order_id=order_id)) == 100
    assert [item['amount'] for item in broker.get_positions() if item['security'] == CODE] == [100]
    assert order_id in [item['order_id'] for item in broker.sync_orders()]
    assert broker.resolve_submission('facade-1')['submission_state'] == 'accepted'
    with pytest.raises(bq.OrderRejected):  # bought today
        broker.sell(CODE, 100)


def low_price(broker, code=CODE):
    return broker._connection.request('data.live_current', {'security': code})['low_limit']


def test_a_resting_order_is_cancelled_once(broker):
    order_id = broker.buy(CODE, 100, price=low_price(broker))
    assert order_id in [row['order_id'] for row in broker.get_open_orders()]
    assert broker.cancel_order(order_id) is True and broker.cancel_order(order_id) is True
    assert order_id not in [row['order_id'] for row in broker.get_open_orders()]
    assert broker.get_order_status('zz') == {}
    with pytest.raises(bq.OrderNotFound):
        broker.cancel_order('zz')


def test_what_was_filled_is_not_cancelled(broker):
    assert broker.cancel_order(broker.buy(OTHER, 100, wait_timeout=10)) is False


@pytest.mark.parametrize('arguments, error', [
    (dict(amount=150), bq.OrderRejected), (dict(amount=0), bq.BadRequest),
    (dict(amount=100, price=0.001), bq.OrderRejected),
    (dict(amount=100, price=float('nan')), bq.BadRequest), (dict(amount=float('inf')), bq.BadRequest),
    (dict(amount='100'), bq.BadRequest), (dict(amount=100, price=-1), bq.BadRequest),
    (dict(amount=10 ** 8), bq.OrderRejected)])
def test_orders_that_are_refused(broker, arguments, error):
    with pytest.raises(error):
        broker.buy(CODE, **arguments)


def test_a_sub_account_has_its_limit_and_its_own_orders(server, broker):
    config = {'host': server.address[0], 'port': server.address[1], 'token': TOKEN, 'sub_account_id': 'demo@default'}
    sub = bq.RemoteQmtBroker(config=config)
    try:
        assert sub.connect() is True and sub.get_orders() == []
        with pytest.raises(bq.OrderRejected):
            sub.buy('600519.XSHG', 100)
        order_id = sub.buy('510300.XSHG', 100, price=low_price(broker, '510300.XSHG'))
        assert [row['order_id'] for row in sub.get_orders()] == [order_id] and sub.cancel_order(order_id)
    finally:
        assert sub.disconnect() is True and sub.disconnect() is True
    wrong = bq.RemoteQmtBroker(connection=broker._connection, config={'account_key': 'nobody'})
    with pytest.raises(bq.AccountNotFound):
        wrong.get_account_info()
    assert wrong.disconnect() and broker._connection.connected  # not its own


def test_a_reversed_span_is_refused_by_each_call(connection):
    provider, span = bq.RemoteQmtProvider(connection=connection), ('2024-05-10', '2024-05-08')
    for call in (lambda: provider.get_price(CODE, *span), lambda: provider.get_trade_days(*span),
                 lambda: provider.get_split_dividend(CODE, *span),
                 lambda: provider.ensure_cache(CODE, start_date=span[0], end_date=span[1])):
        with pytest.raises(bq.BadRequest) as caught:
            call()
        assert '2024-05-10' in caught.value.message and '2024-05-08' in caught.value.message


def test_nothing_leaves_after_a_disconnect_until_connect(server, connection):
    config = {'host': server.address[0], 'port': server.address[1], 'token': TOKEN}
    for broker in (bq.RemoteQmtBroker(config=config), bq.RemoteQmtBroker(connection=connection)):
        before = len(broker.get_orders())                 # the first call connects
        assert broker.disconnect() is True
        for call in (broker.get_orders, lambda: broker.buy(CODE, 100), lambda: broker.cancel_order('1'), broker.follow):
            with pytest.raises(bq.ConnectionLost) as caught:
                call()
            assert 'connect()' in caught.value.hint and caught.value.broker_called is False
            assert not caught.value.retryable
        assert broker.connect() is True and len(broker.get_orders()) == before
        broker.close()
        with pytest.raises(bq.ConnectionLost):
            broker.get_positions()


def test_the_payload_of_an_order():
    connection = Canned({'order_id': 7, 'status': 'open'})
    broker = bq.RemoteQmtBroker(connection=connection, config={'account_key': 'main', 'sub_account': 'demo'})
    assert broker.sell(CODE, 100, 10.5, remark='r', market=True, wait_timeout=0) == '7'
    (action, payload), = connection.asked
    key = payload.pop('idempotency_key')
    assert action == 'broker.place_order' and key.startswith('place-')
    assert payload == {'account_key': 'main', 'sub_account_id': 'demo', 'security': CODE, 'side': 'SELL', 'amount': 100,
                       'style': {'type': 'market', 'protect_price': 10.5}, 'order_remark': 'r', 'wait_timeout': 0}


@pytest.mark.parametrize('answer', [None, [], 'x', {}, {'order_id': None}, {'order_id': '', 'status': 'open'},
                                    {'order_id': 'o', 'status': 'submit_unknown'},
                                    {'status': 'reconciling', 'order_id': 'o'}])
def test_an_answer_without_a_certain_order_is_unknown_and_names_the_key(answer):
    broker = bq.RemoteQmtBroker(connection=Canned(answer))
    for key in ('k', None):
        with pytest.raises(bq.OrderStateUnknown) as caught:
            broker.buy(CODE, 100, idempotency_key=key)
        assert caught.value.idempotency_key == broker._connection.asked[-1][1]['idempotency_key']


def test_an_order_that_the_broker_rejected_raises():
    broker = bq.RemoteQmtBroker(connection=Canned({'order_id': 'o', 'status': 'rejected', 'status_msg': '资金不足'}))
    with pytest.raises(bq.OrderRejected) as caught:
        broker.buy(CODE, 100)
    assert caught.value.message == '资金不足'


@pytest.mark.parametrize('answer', [{'order_id': '-1', 'status': 'open'}, {'order_id': -1}, {'order_id': 0}, {}, None,
                                    {'order_id': '', 'status': 'open'}, {'order_id': '7', 'status': 'submit_unknown'}])
def test_an_answer_without_a_good_order_id_is_unknown(answer):
    with pytest.raises(bq.OrderStateUnknown) as caught:
        bq.RemoteQmtBroker(connection=Canned(answer)).place_order(CODE, 'BUY', 100, {'type': 'market'},
                                                                  idempotency_key='k')
    assert caught.value.idempotency_key == 'k'


def test_an_answer_without_a_status_is_an_order_all_the_same():
    assert bq.RemoteQmtBroker(connection=Canned({'order_id': 7})).buy(CODE, 100) == '7'


def test_the_account_is_the_one_that_was_meant(connection):
    for account_id in ('10000001', 10000001, 'remote', 'main', None):
        assert bq.RemoteQmtBroker(account_id, connection=connection).get_account_info()['account_id'] == '10000001'
    for call in ('connect', 'get_positions', 'disconnect'):
        broker = bq.RemoteQmtBroker('10000002', connection=connection)
        if call == 'disconnect':
            assert broker.disconnect()
            continue
        with pytest.raises(bq.AccountNotFound):
            getattr(broker, call)()
    with pytest.raises(bq.AccountNotFound):
        bq.RemoteQmtBroker('10000002', connection=connection).buy(CODE, 100)


def test_a_name_that_means_another_account_is_refused():
    accounts = tuple(bq.AccountSpec(key, number, 'stock', None, None, True)
                     for key, number in (('main', '55001234'), ('hedge', '55004321')))
    subs = (bq.SubAccountSpec('qa', 'hedge', None),)
    with serving(FakeClock(NOW), accounts=accounts, sub_accounts=subs) as server, long_client(server) as connection:
        config = {'account_key': 'main'}
        for good in ('main', '55001234', 'remote', 'whatever'):
            assert bq.RemoteQmtBroker(good, config=config, connection=connection).connect()
        for bad in ('hedge', 'qa', '55004321', '999'):
            with pytest.raises(bq.AccountNotFound):
                bq.RemoteQmtBroker(bad, config=config, connection=connection).buy(CODE, 100)
        assert connection.request('broker.orders', {'account_key': 'main'}) == []


@pytest.mark.parametrize('asked', ['credit', 'CREDIT', 'future'])
def test_an_account_of_another_type_is_refused(connection, asked):
    with pytest.raises(bq.AccountNotFound) as caught:
        bq.RemoteQmtBroker('10000001', asked, connection=connection).buy(CODE, 100)
    assert asked.lower() in caught.value.message and 'stock' in caught.value.message
    assert bq.RemoteQmtBroker('10000001', 'STOCK', connection=connection).connect()


def test_a_type_that_no_account_has_is_refused():
    with pytest.raises(bq.ConfigError) as caught:
        bq.RemoteQmtBroker('10000001', 'stok', config={'host': '127.0.0.1', 'token': TOKEN})
    assert 'account_type' in caught.value.message


@pytest.mark.parametrize('make', [bq.RemoteQmtBroker, bq.RemoteQmtProvider])
@pytest.mark.parametrize('idle', [{'host': 'other'}, {'port': 1}, {'compress': 'always'},
                                  {'rpc_timeout': 3}, {'tls_cert': 'x.pem'}, {'env_file': 'x.env'}])
def test_a_config_beside_a_connection_names_no_server(connection, make, idle):
    """It would have no effect: orders go where the connection leads."""
    with pytest.raises(bq.ConfigError) as caught:
        make(config=idle, connection=connection)
    assert list(idle)[0] in caught.value.message
    endpoint = connection.endpoint
    assert make(config={'host': endpoint.host, 'port': endpoint.port, 'token': TOKEN}, connection=connection)


@pytest.mark.parametrize('make', [bq.RemoteQmtBroker, bq.RemoteQmtProvider,
                                  lambda config: bq.set_data_provider('qmt-remote', **config)])
@pytest.mark.parametrize('name', ['data_provider', 'broker'])
def test_a_config_chooses_nothing_that_is_chosen_already(make, name):
    with pytest.raises(bq.ConfigError) as caught:
        make(config={'host': '127.0.0.1', 'token': TOKEN, name: 'qmt-remote'})
    assert name in caught.value.message


@pytest.mark.parametrize('key', ['', '  '])
def test_an_empty_key_is_refused_before_anything_is_sent(broker, key):
    before = len(broker.get_orders())
    with pytest.raises(bq.BadRequest) as caught:
        broker.place_order(CODE, 'BUY', 100, {'type': 'market'}, idempotency_key=key)
    assert caught.value.broker_called is False
    with pytest.raises(bq.BadRequest):
        broker.cancel_order('1', idempotency_key=key)
    assert len(broker.get_orders()) == before


def test_a_key_that_was_never_used_is_told_apart_and_void(broker, monkeypatch):
    monkeypatch.setattr(bq, 'UNSEEN_S', 0.0)
    with pytest.raises(bq.OrderRejected) as caught:
        broker.wait_order('never-used', 10)
    assert 'key' in caught.value.message
    with pytest.raises(bq.OrderRejected):
        broker.place_order(CODE, 'BUY', 100, {'type': 'market'}, idempotency_key='never-used')


@pytest.mark.parametrize('status, expected', [('canceled', True), ('partly_canceled', True), ('filled', False),
                                              ('rejected', False)])
def test_what_a_cancel_says(status, expected):
    assert bq.RemoteQmtBroker(connection=Canned({'status': status})).cancel_order('o') is expected


@pytest.mark.parametrize('answer', [{'status': 'open'}, {'status': 'canceling'}, {'status': 'submit_unknown'}, {},
                                    None, [], {'status': 'canceled', 'order_id': 'another'}])
def test_a_cancel_that_is_not_decided_raises(answer):
    with pytest.raises(bq.OrderStateUnknown) as caught:
        bq.RemoteQmtBroker(connection=Canned(answer)).cancel_order('o', idempotency_key='c')
    assert caught.value.idempotency_key == 'c'


# -- servers of another kind ---------------------------------------------------------------------------------------
class Foreign(bq.BaseConnection):
    """A server without a journal, that knows the accounts main and hedge and the sub-account demo of main."""

    ack = {'session_id': 's', 'features': ['data', 'broker']}

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def request(self, action, payload=None, timeout=None):
        self.asked.append((action, payload))
        if action == 'admin.health':
            return {'dtype': 'dict', 'value': {'accounts': ['main', 'hedge']}}
        if action == 'broker.account':
            return self._account(**payload)
        return self.answers[action]

    @staticmethod
    def _account(account_key=None, sub_account_id=None):
        """As bullet-trade routes: what it does not know is its first account; a sub-account decides."""
        demo = (sub_account_id or '').partition('@')[0] == 'demo'
        number = '2' if account_key == 'hedge' and not demo else '1'
        answer = {'dtype': 'dict', 'value': {'account_id': number, 'total_value': 1.0}}
        return dict(answer, sub_account_id='demo') if demo else answer

    def count(self, action):
        return [name for name, _ in self.asked].count(action)


OPEN = {'order_id': 'o', 'status': 'open', 'filled': 0}


@pytest.mark.parametrize('named', [
    {'account_key': 'mian'}, {'sub_account_id': 'demmo'}, {'account_key': 'main', 'sub_account_id': 'x'},
    {'account_key': 'hedge', 'sub_account_id': 'demo'}, {'sub_account_id': 'demo@hedge'},
    {'sub_account_id': 'demo@nobody'}])
def test_a_server_that_would_take_its_first_account_for_an_unknown_one_gets_no_order(named):
    connection = Foreign(**{'broker.place_order': OPEN, 'broker.cancel_order': {'status': 'canceled'}})
    broker = bq.RemoteQmtBroker(connection=connection, config=named)
    for call in (lambda: broker.buy(CODE, 100, 10.5), lambda: broker.cancel_order('o'), broker.get_positions):
        with pytest.raises(bq.AccountNotFound) as caught:
            call()
        assert caught.value.broker_called is False
    assert {name for name, _ in connection.asked} <= {'admin.health', 'broker.account'}


@pytest.mark.parametrize('named', [{}, {'account_key': 'main'}, {'account_key': 'hedge'}, {'account_key': 'default'},
                                   {'sub_account_id': 'demo'}, {'sub_account_id': 'demo@main'},
                                   {'account_key': 'main', 'sub_account_id': 'demo'}])
def test_accounts_that_it_knows_are_asked_for_once(named):
    connection = Foreign(**{'broker.place_order': OPEN, 'broker.positions': []})
    broker = bq.RemoteQmtBroker(connection=connection, config=named)
    assert broker.buy(CODE, 100, 10.5) == 'o'
    asked = len(connection.asked)
    assert broker.buy(CODE, 100, 10.5) == 'o' and broker.get_positions() == []
    assert len(connection.asked) == asked + 2


@pytest.mark.parametrize('style', [
    None, 'limit', [], {}, {'type': 'limit'}, {'type': 'limit', 'price': None}, {'type': 'limit', 'price': 0},
    {'type': 'limit', 'price': -1}, {'type': 'limit', 'price': float('nan')}, {'type': 'limit', 'price': float('inf')},
    {'type': 'limit', 'price': '10'}, {'type': 'limit', 'price': True}, {'type': 'stop', 'price': 10.0},
    {'type': 'market', 'price': 10.0}, {'type': 'market', 'protect_price': 0}, {'type': ['limit'], 'price': 1},
    {'type': 'limit', 'price': 10.0, 'protect_price': 9.0}, {'type': 'market', 'pr_type': 11}, {'price': 10.0}])
def test_a_style_that_does_not_say_all_of_itself_is_not_sent(style):
    """bullet-trade takes {'type': 'limit'} for a limit order at its last price, and an unknown type for a limit."""
    connection = Foreign(**{'broker.place_order': OPEN})
    with pytest.raises(bq.BadRequest) as caught:
        bq.RemoteQmtBroker(connection=connection).place_order(CODE, 'BUY', 100, style)
    assert caught.value.broker_called is False and connection.asked == []


@pytest.mark.parametrize('side, amount', [('buy', 100), ('LONG', 100), (None, 100), ('BUY', 0), ('BUY', -100),
                                          ('BUY', 1.5), ('BUY', '100'), ('BUY', None), ('BUY', 10 ** 10)])
def test_a_side_or_an_amount_that_is_none_is_not_sent(side, amount):
    connection = Foreign(**{'broker.place_order': OPEN})
    with pytest.raises(bq.BadRequest):
        bq.RemoteQmtBroker(connection=connection).place_order(CODE, side, amount, {'type': 'market'})
    assert connection.asked == []


GOOD_KEYS = ['a', '0', 'A' * 255, 'bt-helper-0f', 'a.b_c:d@e/f+g-h', bq.new_key('place'), bq.new_key('cancel')]
BAD_KEYS = ['', ' ', '-a', '.a', '_a', 'a b', 'a\n', 'ключ', '委托', 'a' * 256, 'a\u0660', 'a#b', 5, True, b'a', ['a']]


@pytest.mark.parametrize('key', GOOD_KEYS + BAD_KEYS)
def test_only_keys_that_every_server_takes_are_sent(key):
    """^[A-Za-z0-9][A-Za-z0-9._:@/+\\-]{0,254}$ is what bullet-trade 0.10 takes."""
    connection = Foreign(**{'broker.place_order': OPEN, 'broker.cancel_order': {'status': 'canceled'}})
    broker, good = bq.RemoteQmtBroker(connection=connection), key in GOOD_KEYS
    for call in (lambda: broker.place_order(CODE, 'BUY', 100, {'type': 'market'}, idempotency_key=key),
                 lambda: broker.cancel_order('o', idempotency_key=key)):
        if good:
            assert call()
            continue
        with pytest.raises(bq.BadRequest) as caught:
            call()
        assert caught.value.broker_called is False
    assert len(connection.asked) == (2 if good else 0)


def test_a_server_that_forgets_is_asked_with_all_that_was_said_of_the_order():
    row = {'order_id': 'o', 'security': CODE}
    found = {'submission_state': 'accepted', 'order_id': 'o', 'resolved_result': row}
    connection = Foreign(**{'broker.place_order': None, 'broker.resolve_submission': found})
    broker = bq.RemoteQmtBroker(connection=connection, config={'account_key': 'main'})
    with pytest.raises(bq.OrderStateUnknown):
        broker.buy(CODE, 100, 10.5, idempotency_key='k')
    assert broker.wait_order('k', 5) == row
    (_, placed), (_, asked) = [item for item in connection.asked if item[0].startswith('broker.') and
                               item[0] != 'broker.account']
    assert asked['request_payload'] == placed


# -- what came of it -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('answer', [
    {'status': 'canceled', 'filled': 0}, {'status': 'cancelled', 'traded_volume': 0},
    {'status': 'canceled', 'last_snapshot': {'filled': 0}}, {'status': 'failed'}, {'status': 'error'},
    {'status': 'rejected'}])
def test_an_order_that_ended_with_nothing_filled_raises_with_its_id(answer):
    broker = bq.RemoteQmtBroker(connection=Canned(dict(answer, order_id='o')))
    with pytest.raises(RuntimeError) as caught:
        broker.buy(CODE, 100, idempotency_key='k')
    assert type(caught.value) is bq.OrderRejected and caught.value.broker_called is True
    assert (caught.value.details['order_id'], caught.value.details['idempotency_key']) == ('o', 'k')


@pytest.mark.parametrize('answer', [
    {'status': 'canceled', 'filled': 100}, {'status': 'partly_canceled', 'filled': 100}, {'status': 'partly_cancelled'},
    {'status': 'canceled', 'last_snapshot': {'traded_volume': 100}}, {'status': 'filled'}, {'status': 'open'}, {}])
def test_an_order_that_filled_in_part_is_an_order(answer):
    assert bq.RemoteQmtBroker(connection=Canned(dict(answer, order_id='o'))).buy(CODE, 200) == 'o'


@pytest.mark.parametrize('row, outcome', [
    ({'filled': 0}, bq.OrderRejected), ({'filled': 300}, 'o'), ({}, bq.OrderStateUnknown),
    (None, bq.OrderStateUnknown), ([], bq.OrderStateUnknown)])
def test_where_an_answer_does_not_say_what_was_filled_the_order_is_looked_at(row, outcome):
    connection = Foreign(**{'broker.place_order': {'order_id': 'o', 'status': 'canceled'}, 'broker.order_status': row})
    broker = bq.RemoteQmtBroker(connection=connection)
    if outcome == 'o':
        assert broker.buy(CODE, 500) == 'o'
        return
    with pytest.raises(outcome) as caught:
        broker.buy(CODE, 500, idempotency_key='k')
    assert caught.value.details['idempotency_key'] == 'k'


def test_a_cancel_that_the_broker_refused_leaves_the_order_as_it_was():
    """bullet-trade 0.10 gives such an answer the status 'rejected': that is the cancel's, the order lives."""
    answer = {'value': False, 'status': 'rejected', 'cancel_outcome': 'rejected', 'order_id': 'o'}
    with pytest.raises(bq.OrderRejected) as caught:
        bq.RemoteQmtBroker(connection=Canned(answer)).cancel_order('o')
    assert caught.value.details['order_id'] == 'o'


@pytest.mark.parametrize('answer, expected', [
    ({'status': 'cancelled', 'cancel_outcome': 'cancelled'}, True), ({'status': 'partly_cancelled'}, True),
    ({'status': 'failed', 'cancel_outcome': 'not_canceled_already_terminal'}, False),
    ({'status': 'filled', 'cancel_outcome': 'not_canceled_already_terminal'}, False)])
def test_what_a_cancel_of_bullet_trade_says(answer, expected):
    assert bq.RemoteQmtBroker(connection=Canned(dict(answer, order_id='o'))).cancel_order('o') is expected


def test_a_warning_reaches_who_orders():
    broker = bq.RemoteQmtBroker(connection=Canned(dict(OPEN, warning='000001.XSHE 停牌')))
    with pytest.warns(bq.ServerWarning, match='停牌'):
        assert broker.buy(CODE, 100, 10.5) == 'o'
    with pytest.warns(bq.ServerWarning):  # each time
        assert broker.place_order(CODE, 'BUY', 100, {'type': 'market'})['warning'] == '000001.XSHE 停牌'


def test_a_warning_goes_to_who_asked_for_it(recwarn):
    told = []
    broker = bq.RemoteQmtBroker(connection=Canned(dict(OPEN, warning='停牌')), on_warning=told.append)
    assert broker.buy(CODE, 100, 10.5) == 'o' and told == ['停牌'] and not recwarn.list


def test_where_warnings_are_errors_the_order_is_there_all_the_same(caplog):
    broker = bq.RemoteQmtBroker(connection=Canned(dict(OPEN, warning='停牌')))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert broker.buy(CODE, 100, 10.5) == 'o'
    assert '停牌' in caplog.text


# -- answers that make no sense ------------------------------------------------------------------------------------
ODD = [None, True, 0, -1, 1.5, 1e308, 2 ** 70, '', 'x', [], {}, [[]], [1], {'a': 1}, [None] * 5, {'value': []},
       {'value': 5}, {'values': {}}, {'values': [5]}, {'values': ['x']}, {'order_id': {}}, {'order_id': []},
       {'order_id': True, 'status': 'open'}, {'order_id': 'o', 'status': []}, {'order_id': 'o', 'status': {}},
       {'order_id': 'o', 'status': 5, 'filled': 'x', 'last_snapshot': []}, {'status': ['canceled']},
       {'status': 'canceled', 'filled': [], 'order_id': 'o'}, {'submission_state': {}},
       {'submission_state': 'accepted'},
       {'submission_state': 'accepted', 'resolved_result': {'order_id': []}}, {'quotes': []}, {'events': [1]},
       {'quotes': {'000001.XSHE': 5}}, {'events': 5}, {'value': {'start_date': []}}, {'value': {'start_date': 'x'}},
       {'seq': None}, {'seq': 'x'}, {'last_price': 'x'}, {'last_price': -1.0}, {'last_price': True}, {'warning': {}}]
READS = {
    'price': lambda p, b: p.get_price(CODE, count=5), 'days': lambda p, b: p.get_trade_days(count=3),
    'info': lambda p, b: p.get_security_info(CODE), 'all': lambda p, b: p.get_all_securities(),
    'index': lambda p, b: p.get_index_stocks('000300.XSHG'), 'split': lambda p, b: p.get_split_dividend(CODE),
    'tick': lambda p, b: p.get_current_tick(CODE), 'live': lambda p, b: p.get_live_current(CODE),
    'many': lambda p, b: p.get_live_currents([CODE]), 'last': lambda p, b: p.get_last_price(CODE),
    'cache': lambda p, b: p.ensure_cache(CODE), 'day': lambda p, b: p.get_trade_day(CODE, '2024-01-05'),
    'account': lambda p, b: b.get_account_info(), 'positions': lambda p, b: b.get_positions(),
    'orders': lambda p, b: b.get_orders(), 'open': lambda p, b: b.get_open_orders(),
    'trades': lambda p, b: b.get_trades(), 'status': lambda p, b: b.get_order_status('o'),
    'resolve': lambda p, b: b.resolve_submission('k'), 'number': lambda p, b: bq.RemoteQmtBroker(
        '123', connection=p._connection).connect(), 'wait': lambda p, b: b.wait_order('k', 0)}
WRITES = {'buy': lambda b: b.buy(CODE, 100), 'cancel': lambda b: b.cancel_order('o'),
          'place': lambda b: b.place_order(CODE, 'BUY', 100, {'type': 'market'})}


@pytest.mark.parametrize('name', sorted(READS))
@pytest.mark.parametrize('quotes', [True, False])
def test_whatever_a_server_answers_is_an_answer_or_an_error_of_ours(name, quotes):
    for answer in ODD:
        connection = Canned(answer)
        connection.ack = {'journal_id': 'j', 'features': ['quotes1'] if quotes else []}
        provider, broker = bq.RemoteQmtProvider(connection=connection), bq.RemoteQmtBroker(connection=connection)
        try:
            READS[name](provider, broker)
        except bq.BulletError as error:
            assert error.message, answer


@pytest.mark.parametrize('name', sorted(WRITES))
def test_after_a_write_an_answer_that_makes_no_sense_is_unknown(name):
    for answer in ODD:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', bq.ServerWarning)
            try:
                WRITES[name](bq.RemoteQmtBroker(connection=Canned(answer)))
            except bq.OrderStateUnknown as error:
                assert error.idempotency_key, answer
            else:
                assert isinstance(answer, dict) and isinstance(answer['order_id'], str), answer


@pytest.mark.parametrize('answer', [None, {}, [], {'values': None}, {'values': {}}, {'value': 'x'}])
def test_an_answer_without_a_list_is_no_empty_list(answer):
    provider = bq.RemoteQmtProvider(connection=Canned(answer))
    for call in (lambda: provider.get_index_stocks('000300.XSHG'), provider.get_trade_days,
                 lambda: provider.get_split_dividend(CODE)):
        with pytest.raises(bq.ProtocolError):
            call()


@pytest.mark.parametrize('answer', [None, {}, 'x', [1], {'rows': []}])
def test_an_answer_without_rows_is_no_empty_account(answer):
    broker = bq.RemoteQmtBroker(connection=Canned(answer))
    for call in (broker.get_positions, broker.get_orders, broker.get_open_orders, broker.get_trades):
        with pytest.raises(bq.ProtocolError):
            call()


def test_what_bullet_trades_stub_says_of_a_download():
    assert bq.RemoteQmtProvider(connection=Canned({'ok': True})).ensure_cache(CODE, count=1) == {'ok': True}


@pytest.mark.parametrize('answer, nothing', [
    ({'status': 'rejected'}, True), ({'status': 'failed'}, True), ({'status': 'canceled', 'filled': 0}, True),
    ({'status': 'cancelled', 'last_snapshot': {'filled': 0}}, True), ({'status': 'canceled', 'filled': 100}, False),
    ({'status': 'canceled'}, False), ({'status': 'partly_canceled', 'filled': 100}, False), ({'status': 'open'}, False),
    ({'status': 'filled', 'filled': 100}, False), ({}, False)])
def test_what_the_command_line_calls_a_failed_order(answer, nothing):
    assert bq.came_to_nothing(answer) is nothing
