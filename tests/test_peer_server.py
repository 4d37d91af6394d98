"""Our clients on the server of a real bullet-trade 0.10.0 with its own stub exchange."""
import queue
import uuid

import pytest

import bullet_qmt as bq
from tests.peer_driver import PEER_TOKEN, Proxy, peer_serving

PINGAN, SPDB = '000001.XSHE', '600000.XSHG'


@pytest.fixture(scope='module')
def port():
    with peer_serving() as number:
        yield number


@pytest.fixture
def proxy(port):
    with Proxy('127.0.0.1', port) as between:
        yield between


@pytest.fixture(params=['long', 'short'])
def connection(request, port):
    cls = bq.RemoteQmtConnection if request.param == 'long' else bq.ShortConnection
    with cls('127.0.0.1', port, PEER_TOKEN) as opened:
        yield opened


@pytest.fixture
def long_connection(port):
    with bq.RemoteQmtConnection('127.0.0.1', port, PEER_TOKEN) as opened:
        yield opened


def broker_over(connection, **config):
    return bq.RemoteQmtBroker('remote', config=dict({'account_key': 'main'}, **config), connection=connection)


def near(value):
    return pytest.approx(value, nan_ok=True)


# -- data ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('frequency, first', [('daily', '2026-04-01 00:00:00'), ('1m', '2026-04-01 09:31:00')])
def test_bars_with_a_gap_become_a_table(connection, frequency, first):
    """Its encoder writes NaN as a bare word, which is no JSON."""
    payload = {'security': PINGAN, 'frequency': frequency, 'fields': ['open', 'close']}
    table = bq.Table.from_wire(connection.request('data.history', payload))
    assert (list(table.columns), table.index) == (['index', 'open', 'close'], ['index'])
    assert str(table['index'][0]) == first
    assert table['open'] == near([10.5, float('nan'), 10.7]) and table['close'] == near([10.6, 10.7, 10.8])


def test_bars_become_a_frame(connection):
    pandas = pytest.importorskip('pandas')
    frame = bq.RemoteQmtProvider(connection=connection).get_price(PINGAN, fields=['close', 'volume'])
    assert type(frame.index) is pandas.DatetimeIndex and frame.index.name is None
    assert list(frame.columns) == ['close', 'volume'] and list(frame['close']) == [10.6, 10.7, 10.8]
    assert str(frame.index[1]) == '2026-04-02 00:00:00'


def test_many_securities_become_a_long_frame(connection):
    pandas = pytest.importorskip('pandas')
    frame = bq.RemoteQmtProvider(connection=connection).get_price([PINGAN, SPDB], fields=['close'], panel=False)
    assert list(frame.columns) == ['time', 'code', 'close'] and list(frame['code']) == [PINGAN] * 3 + [SPDB] * 3
    assert frame['time'].iloc[0] == pandas.Timestamp('2026-04-01') and frame['close'].iloc[4] == 11.7


def test_a_panel_keeps_its_pairs(connection):
    answer = connection.request('data.history', {'security': [PINGAN, SPDB], 'fields': ['close'], 'panel': True})
    table = bq.Table.from_wire(answer)
    assert table.wide == [('close', PINGAN), ('close', SPDB)]
    assert [table[name] for name in table.fields] == [[10.6, 10.7, 10.8], [10.6, 11.7, 10.8]]


def test_the_other_data_calls(connection):
    provider = bq.RemoteQmtProvider(connection=connection)
    assert [str(day) for day in provider.get_trade_days(count=2)] == ['2026-03-31', '2026-04-01']
    info = provider.get_security_info(PINGAN)
    assert (info.display_name, str(info.start_date)) == ('平安银行', '2005-04-08')
    assert provider.get_current_tick(PINGAN) == {'sid': PINGAN, 'last_price': 10.0, 'dt': '2026-04-01 09:30:00'}
    assert provider.get_live_current(PINGAN) == {'last_price': 10.0, 'high_limit': 11.0, 'low_limit': 9.0,
                                                 'paused': False}


def test_what_it_cannot_do_is_an_error(connection):
    with pytest.raises(bq.BulletError) as caught:
        bq.RemoteQmtProvider(connection=connection).get_index_stocks('000300.XSHG')
    assert caught.value.code == 'REQUEST_FAILED'
    with pytest.raises(bq.BulletError):
        connection.request('no.such.action')


def test_ticks_arrive_until_unsubscribed(long_connection):
    ticks, provider = queue.Queue(), bq.RemoteQmtProvider(connection=long_connection)
    provider.set_tick_callback(ticks.put)
    assert provider.subscribe_ticks(['600000.sh', PINGAN])['count'] == 2
    seen = {}
    while len(seen) < 2:
        tick = ticks.get(timeout=20)
        seen[tick['sid']] = tick
    assert seen[SPDB]['last_price'] == 10.0 and set(seen) == {PINGAN, SPDB}
    assert provider.unsubscribe_ticks() == {'count': 0, 'removed': 2}


def test_a_cut_connection_resubscribes(proxy):
    ticks = queue.Queue()
    with bq.RemoteQmtConnection(proxy.address[0], proxy.address[1], PEER_TOKEN, backoff_s=(0.05, 1.0)) as connection:
        provider = bq.RemoteQmtProvider(connection=connection)
        provider.set_tick_callback(ticks.put)
        provider.subscribe_ticks([PINGAN])
        proxy.cut()
        proxy.wait_for('data.subscribe', 2)
        assert ticks.get(timeout=20)['sid'] == PINGAN


# -- trading -------------------------------------------------------------------------------------------------------
def test_account_and_overview(connection):
    broker = broker_over(connection)
    info = broker.get_account_info()
    assert (info['account_id'], info['total_value']) == ('123456', 1000000.0)
    assert bq.Account.from_wire(info).available_cash == info['available_cash']
    assert broker.get_positions() == info['positions']
    assert connection.request('admin.health')['value']['accounts'] == ['main', 'hedge']


def test_an_order_rests_and_is_cancelled(connection):
    broker = broker_over(connection)
    order_id = broker.buy(PINGAN, 100, 9.5, remark='ours')
    row, = broker.get_orders(order_id=order_id)
    assert (row['security'], row['amount'], row['order_price'], row['status']) == (PINGAN, 100, 9.5, 'open')
    assert order_id in [row['order_id'] for row in broker.get_open_orders()]
    assert broker.get_order_status(order_id)['order_remark'] == 'ours'
    assert broker.cancel_order(order_id) is True
    assert broker.get_order_status(order_id)['status'] == 'canceled'


def filled_order(connection):
    """Id of an order that its stub fills at once when told so."""
    payload = {'account_key': 'hedge', 'security': PINGAN, 'side': 'BUY', 'amount': 200, 'stub_scenario': 'filled',
               'style': {'type': 'limit', 'price': 10.5}}
    return connection.request('broker.place_order', payload)['order_id']


def test_trades_and_positions_of_a_filled_order(connection):
    broker, order_id = broker_over(connection, account_key='hedge'), filled_order(connection)
    assert [(row['amount'], row['price']) for row in broker.get_trades(order_id=order_id)] == [(200, 10.5)]
    position, = broker.get_positions()
    assert bq.Position.from_wire(position).amount == position['amount'] >= 200
    assert bq.Trade.from_wire(broker.get_trades(order_id=order_id)[0]).deal_balance == 2100.0
    assert broker.cancel_order(order_id) is False


def test_a_market_order_goes_out_as_one(connection):
    broker = broker_over(connection)
    order_id = broker.buy(PINGAN, 100, 10.9, market=True)
    row = broker.get_order_status(order_id)
    assert (row['style'], row['order_price']) == ('market', 10.9)
    assert broker.cancel_order(order_id) is True


def test_cancelling_an_unknown_order_stays_unknown(connection):
    """It proves nothing about such an order, and says so."""
    with pytest.raises(bq.OrderStateUnknown):
        broker_over(connection).cancel_order('no-such-order')


def test_one_key_is_one_order(connection):
    broker, key = broker_over(connection), 'once-%s' % uuid.uuid4()
    assert broker.buy(PINGAN, 100, 9.6, idempotency_key=key) == broker.buy(PINGAN, 100, 9.6, idempotency_key=key)
    assert len([row for row in broker.get_orders() if row['idempotency_key'] == key]) == 1
    with pytest.raises(bq.IdempotencyConflict):
        broker.buy(PINGAN, 200, 9.6, idempotency_key=key)


def test_a_sub_accounts_limit_is_a_refusal(connection):
    with pytest.raises(bq.BulletError) as caught:
        broker_over(connection, sub_account_id='demo').buy(PINGAN, 1000, 9.9)
    assert caught.value.broker_called is False and not isinstance(caught.value, bq.OrderStateUnknown)


@pytest.mark.parametrize('make', [
    lambda *address: bq.RemoteQmtConnection(*address, backoff_s=(0.05, 1.0)),
    lambda *address: bq.ShortConnection(*address, retry_interval=0.01)], ids=['long', 'short'])
def test_an_order_cut_off_is_unknown_and_not_sent_again(proxy, make):
    """Its handshake names no journal, so nobody knows whether a second server would see the key."""
    with make(proxy.address[0], proxy.address[1], PEER_TOKEN) as connection:
        broker, key = broker_over(connection), 'cut-%s' % uuid.uuid4()
        proxy.lose_next_answer('broker.place_order', cut=True)
        with pytest.raises(bq.OrderStateUnknown) as caught:
            broker.buy(PINGAN, 100, 9.7, idempotency_key=key)
        assert caught.value.idempotency_key == key
        answer = broker.resolve_submission(key, request_payload=proxy.requests[0][1])
        assert (answer['submission_state'], answer['idempotency_key']) == ('accepted', key)
        assert proxy.count('broker.place_order') == 1
        row, = [row for row in broker.get_orders() if row['idempotency_key'] == key]
        assert row['order_id'] == answer['order_id']


def test_a_read_cut_off_is_asked_again(proxy):
    with bq.RemoteQmtConnection(proxy.address[0], proxy.address[1], PEER_TOKEN, backoff_s=(0.05, 1.0)) as connection:
        proxy.lose_next_answer('broker.account', cut=True)
        assert broker_over(connection).get_account_info()['account_id'] == '123456'
        assert proxy.count('broker.account') == 2


def test_our_helper_trades_there(port, monkeypatch):
    pytest.importorskip('pandas')
    import jq_helper
    monkeypatch.setattr(jq_helper, '_clients', None)
    jq_helper.configure('127.0.0.1', PEER_TOKEN, port=port, account_key='main', debug=False)
    order_id = jq_helper.order(PINGAN, 100, price=9.8)
    order = jq_helper.get_open_orders()[order_id]
    assert (order.security, order.amount, order.filled, order.is_buy) == (PINGAN, 100, 0, True)
    assert jq_helper.cancel_order(order_id)
    assert order_id not in jq_helper.get_open_orders() and jq_helper.get_orders()[order_id].status == 'canceled'
    assert jq_helper.get_account().total_value == 1000000.0
    assert jq_helper.get_data_client().get_last_price(PINGAN) == 10.0


# -- what it would pass over ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('until', ['2020-01-01 10:00:00', '2099-01-01 10:00:00'])
def test_an_order_with_a_deadline_is_not_sent(connection, until):
    """Its stub took the one of 2020 for an order."""
    broker = broker_over(connection)
    before = len(broker.get_orders())
    with pytest.raises(bq.NotSupported) as caught:
        broker.place_order(PINGAN, 'BUY', 100, {'type': 'limit', 'price': 9.5}, valid_until=until)
    assert caught.value.broker_called is False and len(broker.get_orders()) == before


def test_a_type_of_market_order_is_not_sent(connection):
    broker = broker_over(connection)
    before = len(broker.get_orders())
    with pytest.raises(bq.NotSupported):
        broker.place_order(PINGAN, 'BUY', 100, {'type': 'market', 'market_type': 'fill_or_kill'})
    assert len(broker.get_orders()) == before


@pytest.mark.parametrize('named', [{'account_key': 'mian'}, {'sub_account_id': 'demmo'},
                                   {'sub_account_id': 'demo@hedge'},
                                   {'account_key': 'hedge', 'sub_account_id': 'demo'}])
def test_an_account_that_it_would_answer_with_another_one_is_refused(connection, named):
    broker = bq.RemoteQmtBroker(connection=connection, config=named)
    for call in (broker.get_positions, lambda: broker.buy(PINGAN, 100, 9.5)):
        with pytest.raises(bq.AccountNotFound):
            call()


def test_a_download_and_a_waited_key(connection):
    assert bq.RemoteQmtProvider(connection=connection).ensure_cache(PINGAN, count=1) == {'ok': True}
    broker, key = broker_over(connection), 'wait-%s' % uuid.uuid4()
    order_id = broker.buy(PINGAN, 100, 9.4, idempotency_key=key)
    assert broker.wait_order(key, 5)['order_id'] == order_id


def test_a_session_of_an_account_is_taken(port):
    with bq.RemoteQmtConnection('127.0.0.1', port, PEER_TOKEN, account_key='hedge') as connection:
        value = connection.request('broker.account')['value']
        assert value['account_id'] == '654321' and connection.clock_skew_s is None


def test_a_live_run_does_not_begin_there(long_connection):
    import jq_helper
    with pytest.raises(bq.ConfigError):
        jq_helper.refuse_foreign_server(long_connection)


# -- login ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('cls', [bq.RemoteQmtConnection, bq.ShortConnection])
def test_a_wrong_token_is_told_as_such(port, cls):
    with pytest.raises(bq.AuthFailed):
        with cls('127.0.0.1', port, 'wrong') as connection:
            connection.request('admin.health')
