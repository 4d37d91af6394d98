"""The clients of a real bullet-trade 0.10.0, unchanged, on our server: data, ticks, trading, lost answers."""
import csv
import os
import uuid
from contextlib import ExitStack
from datetime import datetime
from decimal import Decimal

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, long_client, serving
from tests.certs import make_certificate
from tests.fakes import FakeClock
from tests.peer import require_peer
from tests.peer_driver import Peer, PeerError, Proxy

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
MOUTAI, UNIS, PINGAN, SPDB = '600519.XSHG', '000938.XSHE', '000001.XSHE', '600000.XSHG'
NOW = datetime(2026, 3, 17, 10, 0)  # a Tuesday
PROVIDER = 'bullet_trade.data.providers.remote_qmt:RemoteQmtProvider'
BROKER = 'bullet_trade.broker.qmt_remote:RemoteQmtBroker'
CONNECTION = 'bullet_trade.remote.connection:RemoteQmtConnection'
BOOK = dict(accounts=bq.parse_accounts('main=55001234,hedge=55004321'),
            sub_accounts=bq.parse_sub_accounts('small@main:limit=20000,wide@main'))


@pytest.fixture(scope='module')
def peer():
    with Peer(require_peer()) as driver:
        yield driver


@pytest.fixture(scope='module')
def files():
    """A server on the CSV files; of a day long after them, which it draws from their last close."""
    with serving(FakeClock(NOW), stub_data=DATA, **BOOK) as server:
        yield server


@pytest.fixture(scope='module')
def synthetic():
    with serving(FakeClock(NOW)) as server:
        yield server


@pytest.fixture
def exchange():
    """A fresh paper exchange on the CSV files: nothing traded yet."""
    with serving(FakeClock(NOW), stub_data=DATA, **BOOK) as server:
        yield server


@pytest.fixture
def opened(peer):
    """opened(path, ..., address=, **config) -> name of a peer's object; all of them are closed afterwards."""
    with ExitStack() as stack:
        def open_one(path, *args, **kwargs):
            name = 'it' + uuid.uuid4().hex
            peer.keep(name, path, *args, **kwargs)
            stack.callback(peer, name + _CLOSERS[path])
            return name
        yield open_one


_CLOSERS = {PROVIDER: '._connection.close', BROKER: '.disconnect', CONNECTION: '.close'}


def config_of(address, **more):
    return dict(more, host=address[0], port=address[1], token=TOKEN)


@pytest.fixture
def provider_on(opened):
    return lambda server: opened(PROVIDER, config_of(server.address))


@pytest.fixture
def broker_on(peer, opened):
    """broker_on(server or proxy, **config) -> name of a connected RemoteQmtBroker on account `main`."""
    def make(server, **more):
        name = opened(BROKER, '55001234', config=config_of(server.address, **dict({'account_key': 'main'}, **more)))
        assert peer(name + '.connect') is True
        return name
    return make


def price_of(server, security, name='last_price'):
    return server.service.backend.data.live_current(security)[name]


# -- data ----------------------------------------------------------------------------------------------------------
def file_rows(security, year):
    with open(os.path.join(DATA, security + '_1d.csv'), encoding='utf-8') as file:
        return [row for row in csv.DictReader(file) if row['date'].startswith(year)]


def test_a_year_of_bars_is_that_of_the_file_row_by_row(peer, files, provider_on):
    provider, rows = provider_on(files), file_rows(MOUTAI, '2019')
    fields = ['close', 'open', 'volume', 'high', 'low', 'money', 'pre_close']
    frame = peer(provider + '.get_price', MOUTAI, '2019-01-01', '2019-12-31', fields=fields, fq=None)
    assert len(rows) == 244
    assert frame['index'] == [row['date'] + 'T00:00:00' for row in rows]
    assert (frame['index_type'], frame['index_names']) == ('DatetimeIndex', [None])
    assert frame['columns'] == fields
    assert frame['rows'] == [[float(row[name]) for name in fields] for row in rows]
    assert set(frame['dtypes']) == {'float64'}


def test_the_default_columns_are_those_of_joinquant(peer, files, provider_on):
    frame = peer(provider_on(files) + '.get_price', MOUTAI, end_date={'$time': '2019-03-01 09:31:00'}, count=2, fq=None)
    assert frame['columns'] == ['open', 'close', 'high', 'low', 'volume', 'money']
    assert frame['index'] == ['2019-02-28T00:00:00', '2019-03-01T00:00:00']


def test_forward_adjusted_prices_are_scaled_by_what_went_ex_later(peer, files, provider_on):
    frame = peer(provider_on(files) + '.get_price', MOUTAI, start_date='2019-06-25', end_date='2019-07-03', fq='pre',
                 fields=['close'])
    rows = file_rows(MOUTAI, '20')
    for text, (close,) in zip(frame['index'], frame['rows']):
        place = next(i for i, row in enumerate(rows) if row['date'] == text[:10])
        assert close == pytest.approx(float(rows[place]['close']) * later_steps(rows, place), abs=0.00501)
    raw = [float(row['close']) for row in rows if '2019-06-25' <= row['date'] <= '2019-07-03']
    assert [close < value for (close,), value in zip(frame['rows'], raw)] == [True] * 3 + [False] * 4


def later_steps(rows, place):
    factor = 1.0
    for before, row in zip(rows[place:], rows[place + 1:]):
        factor *= float(row['pre_close']) / float(before['close'])
    return factor


def test_minutes_keep_their_times(peer, synthetic, provider_on):
    provider = provider_on(synthetic)
    frame = peer(provider + '.get_price', PINGAN, end_date={'$time': '2026-03-16 09:33:00'}, count=4, frequency='1m')
    assert frame['index'] == ['2026-03-13T15:00:00'] + ['2026-03-16T09:3%d:00' % minute for minute in (1, 2, 3)]
    assert frame['index_type'] == 'DatetimeIndex'
    assert frame['rows'] == [[row[name] for name in frame['columns']] for row in our_rows(
        synthetic, security=PINGAN, end='2026-03-16 09:33:00', count=4, frequency='1m')]


def our_rows(server, **payload):
    with long_client(server) as connection:
        return bq.Table.from_wire(connection.request('data.history', payload)).rows()


def test_many_securities_come_as_a_panel(peer, synthetic, provider_on):
    frame = peer(provider_on(synthetic) + '.get_price', [PINGAN, SPDB], end_date='2026-03-16', count=3,
                 fields=['open', 'close'])
    assert frame['columns'] == [[field, code] for field in ('open', 'close') for code in (PINGAN, SPDB)]
    assert (frame['columns_type'], frame['columns_names']) == ('MultiIndex', ['field', 'code'])
    assert (frame['index_type'], frame['index'][-1]) == ('DatetimeIndex', '2026-03-16T00:00:00')
    single = our_rows(synthetic, security=SPDB, end='2026-03-16', count=3)
    assert [row[3] for row in frame['rows']] == [row['close'] for row in single]


def test_many_securities_come_in_long_form(peer, synthetic, provider_on):
    frame = peer(provider_on(synthetic) + '.get_price', [PINGAN, SPDB], end_date='2026-03-16', count=2, panel=False,
                 fields=['open', 'close'])
    assert frame['columns'] == ['time', 'code', 'open', 'close']
    assert [row[:2] for row in frame['rows']] == [
        [time, code] for code in (PINGAN, SPDB) for time in ('2026-03-13T00:00:00', '2026-03-16T00:00:00')]
    assert frame['index_type'] == 'RangeIndex'


def test_trade_days(peer, synthetic, provider_on):
    provider = provider_on(synthetic)
    wanted = ['2026-03-%02dT00:00:00' % day for day in (12, 13, 16)]
    assert peer(provider + '.get_trade_days', '2026-03-12', '2026-03-16') == wanted
    times = {'$time': '2026-03-12 00:00:00'}, {'$time': '2026-03-16 15:00:00'}
    assert peer(provider + '.get_trade_days', *times) == wanted
    assert peer(provider + '.get_trade_days', end_date='2026-03-16', count=3) == wanted
    assert peer(provider + '.get_trade_day', [PINGAN], {'$time': '2026-03-15 10:00:00'}) == {PINGAN: '2026-03-13'}


def test_what_securities_there_are(peer, synthetic, provider_on):
    provider = provider_on(synthetic)
    info = peer(provider + '.get_security_info', '600519.SH')
    assert (info['code'], info['display_name'], info['type']) == (MOUTAI, '贵州茅台', 'stock')
    assert (info['qmt_code'], info['start_date']) == ('600519.SH', '2001-08-27')
    stocks = peer(provider + '.get_all_securities', 'stock')
    assert stocks['columns'] == ['display_name', 'name', 'start_date', 'end_date', 'type']
    assert (stocks['index_type'], stocks['index_names']) == ('Index', ['code'])
    assert MOUTAI in stocks['index'] and '510300.XSHG' not in stocks['index']
    assert '510300.XSHG' in peer(provider + '.get_all_securities', ['etf'], {'$time': '2020-01-02 00:00:00'})['index']
    assert MOUTAI in peer(provider + '.get_index_stocks', '000300.XSHG')


def test_dividends(peer, files, provider_on):
    events = peer(provider_on(files) + '.get_split_dividend', MOUTAI, start_date='2019-01-01', end_date='2019-12-31')
    assert [(event['security'], event['date'], event['security_type'], event['per_base']) for event in events] == [
        (MOUTAI, '2019-06-28', 'stock', 10)]
    before, ex = [row for row in file_rows(MOUTAI, '2019-06') if row['date'] >= '2019-06-27'][:2]
    assert events[0]['bonus_pre_tax'] == pytest.approx(10 * (float(before['close']) - float(ex['pre_close'])), abs=1e-6)


def test_the_market_of_now(peer, synthetic, provider_on):
    provider = provider_on(synthetic)
    tick = peer(provider + '.get_current_tick', PINGAN)
    assert (tick['sid'], tick['dt']) == (PINGAN, '2026-03-17 10:00:00')
    live = peer(provider + '.get_live_current', PINGAN)
    assert live['last_price'] == tick['last_price'] == price_of(synthetic, PINGAN)
    assert live['low_limit'] < live['last_price'] < live['high_limit'] and live['paused'] is False


def test_an_unknown_security_is_an_error_with_its_code(peer, files, provider_on):
    with pytest.raises(PeerError) as caught:
        peer(provider_on(files) + '.get_price', PINGAN, count=1)
    assert caught.value.types[0] == 'RemoteServerError' and caught.value.code == 'SECURITY_NOT_FOUND'


# -- ticks ---------------------------------------------------------------------------------------------------------
def subscribed(peer, provider, symbols):
    """Name of the Ticks that get what the provider's subscription brings."""
    ticks = 'ticks' + uuid.uuid4().hex
    peer(provider + '.set_tick_callback', peer.keep(ticks, 'peer_client:Ticks'))
    assert peer(provider + '.subscribe_ticks', symbols) == {'count': len(symbols)}
    return ticks


def test_ticks_come_under_canonical_codes_until_unsubscribed(peer, synthetic, provider_on):
    provider = provider_on(synthetic)
    ticks = subscribed(peer, provider, ['000001.sz', SPDB])
    seen = {}
    while len(seen) < 2:
        (tick,) = peer(ticks + '.next', 20)
        seen[tick['sid']] = tick
    assert seen[PINGAN] == {'sid': PINGAN, 'last_price': price_of(synthetic, PINGAN), 'dt': '2026-03-17 10:00:00'}
    assert seen[SPDB]['last_price'] == price_of(synthetic, SPDB)
    assert peer(provider + '.unsubscribe_ticks', ['000001.SZ']) == {'count': 1, 'removed': 1}
    peer(ticks + '.drop_all')
    assert [peer(ticks + '.next', 20)[0]['sid'] for _ in range(4)] == [SPDB] * 4
    assert peer(provider + '.unsubscribe_ticks') == {'count': 0, 'removed': 1}
    assert synthetic.service.hub.count() == 0


def test_a_cut_connection_comes_back_with_its_subscriptions(peer, synthetic, opened):
    with Proxy(*synthetic.address) as proxy:
        provider = opened(PROVIDER, config_of(proxy.address))
        ticks = subscribed(peer, provider, [PINGAN])
        peer(ticks + '.next', 20)
        proxy.cut()
        proxy.wait_for('data.subscribe', 2)
        peer(ticks + '.drop_all')
        assert peer(ticks + '.next', 20)[0]['sid'] == PINGAN


# -- trading -------------------------------------------------------------------------------------------------------
def cents(value):
    """Exact: what the paper exchange counts in thousandths comes as the nearest float."""
    return Decimal(repr(value)).quantize(Decimal('0.001'))


def spent(trades):
    return sum(cents(row['deal_balance']) + cents(row['commission']) + cents(row['tax']) for row in trades)


def test_orders_trades_positions_and_cash_agree(peer, exchange, broker_on):
    broker = broker_on(exchange)
    before = peer(broker + '.get_account_info')
    assert (before['account_id'], before['available_cash'], before['positions']) == ('55001234', 1000000.0, [])
    bottom = price_of(exchange, UNIS, 'low_limit')
    resting = peer(broker + '.buy', UNIS, 200, bottom, remark='waits')
    filled = peer(broker + '.buy', MOUTAI, 100, wait_timeout=10)

    orders = {row['order_id']: row for row in peer(broker + '.get_orders')}
    assert (orders[resting]['status'], orders[resting]['filled'], orders[resting]['order_price']) == ('open', 0, bottom)
    assert (orders[resting]['security'], orders[resting]['order_remark']) == (UNIS, 'waits')
    assert (orders[filled]['status'], orders[filled]['filled'], orders[filled]['side']) == ('filled', 100, 'BUY')
    assert [row['order_id'] for row in peer(broker + '.get_open_orders')] == [resting]
    assert [row['order_id'] for row in peer(broker + '.get_orders', security='600519.SH')] == [filled]

    trades = peer(broker + '.get_trades')
    assert {row['order_id'] for row in trades} == {filled} and sum(row['amount'] for row in trades) == 100
    position, = peer(broker + '.get_positions')
    assert (position['security'], position['amount'], position['closeable_amount']) == (MOUTAI, 100, 0)  # T+1

    held = peer(broker + '.get_account_info')
    assert cents(held['available_cash']) + cents(held['frozen_cash']) == 1000000 - spent(trades)
    assert cents(held['frozen_cash']) >= cents(bottom) * 200
    assert peer(broker + '.cancel_order', resting) is True
    after = peer(broker + '.sync_account')
    assert cents(after['available_cash']) == 1000000 - spent(trades) and after['frozen_cash'] == 0
    assert peer(broker + '.get_order_status', resting)['status'] == 'canceled'
    assert peer(broker + '.get_open_orders') == []


def test_a_limit_order_through_the_price_fills_no_worse(peer, exchange, broker_on):
    broker, ask = broker_on(exchange), exchange.service.backend.data.quote(UNIS).a1_p
    order_id = peer(broker + '.buy', UNIS, 100, ask, wait_timeout=10)
    answer = peer(broker + '.get_last_order_response', order_id)
    assert (answer['status'], answer['timed_out'], answer['async_tracking']) == ('filled', False, False)
    assert peer(broker + '.get_trades', order_id)[0]['price'] <= ask


def test_a_filled_order_cannot_be_cancelled_and_that_is_certain(peer, exchange, broker_on):
    broker = broker_on(exchange)
    order_id = peer(broker + '.buy', UNIS, 100, wait_timeout=10)
    with pytest.raises(PeerError) as caught:
        peer(broker + '.cancel_order', order_id)
    assert caught.value.types[0] == 'RuntimeError' and caught.value.code is None


def test_cancelling_what_does_not_exist_is_a_refusal(peer, exchange, broker_on):
    with pytest.raises(PeerError) as caught:
        peer(broker_on(exchange) + '.cancel_order', 'no-such-order')
    assert (caught.value.types[0], caught.value.code) == ('RemoteServerError', 'ORDER_NOT_FOUND')


def test_a_wait_that_ends_too_early_gives_the_living_order(peer, exchange, broker_on):
    broker = broker_on(exchange)
    order_id = peer(broker + '.buy', UNIS, 100, price_of(exchange, UNIS, 'low_limit'), wait_timeout=0.2)
    answer = peer(broker + '.get_last_order_response', order_id)
    assert (answer['status'], answer['timed_out'], answer['async_tracking']) == ('open', True, True)
    status = peer(broker + '.get_order_status', order_id)
    assert (status['order_id'], status['status'], status['remaining']) == (order_id, 'open', 100)
    assert peer(broker + '.get_order_status', 'no-such-order') == {}


def test_what_is_bought_today_is_sold_tomorrow(peer, broker_on):
    clock = FakeClock(NOW)
    with serving(clock, stub_data=DATA, **BOOK) as server:
        broker = broker_on(server)
        peer(broker + '.buy', UNIS, 300, wait_timeout=10)
        with pytest.raises(PeerError) as caught:
            peer(broker + '.sell', UNIS, 300, wait_timeout=10)
        assert caught.value.code == 'ORDER_REJECTED'
        clock.set(datetime(2026, 3, 18, 10, 0))
        cash = cents(peer(broker + '.get_account_info')['available_cash'])
        peer(broker + '.sell', UNIS, 300, wait_timeout=10)
        trade, = peer(broker + '.get_trades')
        gained = cents(trade['deal_balance']) - cents(trade['commission']) - cents(trade['tax'])
        assert trade['tax'] > 0
        assert cents(peer(broker + '.get_account_info')['available_cash']) == cash + gained
        assert peer(broker + '.get_positions') == []


@pytest.mark.parametrize('security, amount, price, code', [
    (UNIS, 150, 'last_price', 'ORDER_REJECTED'),            # no whole lot
    (UNIS, 100, 0.01, 'ORDER_REJECTED'),                    # below the low limit
    (UNIS, 100, 99999, 'ORDER_REJECTED'),                   # above the high limit
    (MOUTAI, 100000, 'last_price', 'ORDER_REJECTED'),       # more than the cash
    ('000002.XSHE', 100, 10.0, 'SECURITY_NOT_FOUND'),
    ('nonsense', 100, 10.0, 'SECURITY_NOT_FOUND'),
    (UNIS, 0, 'last_price', 'BAD_REQUEST'),
], ids=['lot', 'low limit', 'high limit', 'cash', 'unknown security', 'no code', 'no amount'])
def test_refusals_are_errors_with_a_code_and_never_unknown(peer, files, broker_on, security, amount, price, code):
    broker = broker_on(files)
    price = price_of(files, security) if price == 'last_price' else price
    count = len(peer(broker + '.get_orders'))
    with pytest.raises(PeerError) as caught:
        peer(broker + '.buy', security, amount, price)
    assert (caught.value.types[0], caught.value.code) == ('RemoteServerError', code)
    assert len(peer(broker + '.get_orders')) == count


def test_sub_accounts_see_their_own_and_keep_their_limit(peer, exchange, broker_on):
    small, wide, whole = [broker_on(exchange, sub_account_id=name) for name in ('small', 'wide@main', None)]
    bottom = price_of(exchange, UNIS, 'low_limit')
    mine = peer(small + '.buy', UNIS, 100, bottom)
    other = peer(wide + '.buy', UNIS, 1000, bottom)
    with pytest.raises(PeerError) as caught:
        peer(small + '.buy', UNIS, 1000, bottom)
    assert caught.value.code == 'ORDER_REJECTED'
    assert [row['order_id'] for row in peer(small + '.get_orders')] == [mine]
    assert [row['order_id'] for row in peer(whole + '.get_orders')] == [mine, other]
    with pytest.raises(PeerError) as caught:
        peer(small + '.cancel_order', other)
    assert caught.value.code == 'ORDER_NOT_FOUND'
    assert peer(wide + '.cancel_order', other) is True


def test_accounts_are_separate_and_unknown_ones_refused(peer, exchange, broker_on):
    peer(broker_on(exchange) + '.buy', UNIS, 100, wait_timeout=10)
    hedge = broker_on(exchange, account_key='hedge')
    assert peer(hedge + '.get_positions') == [] and peer(hedge + '.get_account_info')['account_id'] == '55004321'
    for config in ({'account_key': 'nobody'}, {'sub_account_id': 'small@hedge'}, {'account_key': None}):
        with pytest.raises(PeerError) as caught:
            peer(broker_on(exchange, **config) + '.get_account_info')
        assert caught.value.code == 'ACCOUNT_NOT_FOUND'


# -- keys, lost answers --------------------------------------------------------------------------------------------
def order_payload(server, **changes):
    price = price_of(server, UNIS, 'low_limit')
    return dict({'account_key': 'main', 'security': UNIS, 'side': 'BUY', 'amount': 100,
                 'style': {'type': 'limit', 'price': price}, 'idempotency_key': 'key-1'}, **changes)


@pytest.fixture
def connection_to(peer, opened):
    """connection_to(server or proxy, **options) -> name of a started RemoteQmtConnection."""
    def make(server, **options):
        name = opened(CONNECTION, *server.address + (TOKEN,), **options)
        peer(name + '.start')
        return name
    return make


def test_one_key_is_one_order(peer, exchange, connection_to):
    connection = connection_to(exchange)
    ids = [peer(connection + '.request', 'broker.place_order', order_payload(exchange))['order_id'] for _ in range(3)]
    assert len(set(ids)) == 1
    assert len(peer(connection + '.request', 'broker.orders', {'account_key': 'main'})) == 1
    with pytest.raises(PeerError) as caught:
        peer(connection + '.request', 'broker.place_order', order_payload(exchange, amount=200))
    assert (caught.value.types[0], caught.value.code) == ('RemoteServerError', 'IDEMPOTENCY_CONFLICT')


def test_an_order_whose_answer_was_lost_is_found_again(peer, exchange, broker_on):
    with Proxy(*exchange.address) as proxy:
        broker = broker_on(proxy)
        proxy.lose_next_answer('broker.place_order', cut=True)
        order_id = peer(broker + '.buy', '000938.SZ', 100, price_of(exchange, UNIS, 'low_limit'))
        assert [row['order_id'] for row in peer(broker + '.get_orders')] == [order_id]
        assert (proxy.count('broker.place_order'), proxy.count('broker.resolve_submission')) == (1, 1)
        proxy.lose_next_answer('broker.cancel_order', cut=True)
        assert peer(broker + '.cancel_order', order_id) is True
        assert proxy.count('broker.cancel_order') == 1


@pytest.mark.parametrize('cut', [True, False], ids=['connection cut', 'no answer'])
def test_a_connection_leaves_the_unknown_order_to_its_user(peer, exchange, connection_to, cut):
    with Proxy(*exchange.address) as proxy:
        connection, payload = connection_to(proxy), order_payload(exchange)
        proxy.lose_next_answer('broker.place_order', cut)
        with pytest.raises(PeerError) as caught:
            peer(connection + '.request', 'broker.place_order', payload, timeout=10.0 if cut else 0.5)
        assert (caught.value.types[0], caught.value.idempotency_key) == ('RemoteSubmissionUnknownError', 'key-1')
        answer = peer(connection + '.resolve_submission', 'key-1', write_action='broker.place_order',
                      request_payload=payload, context={'account_key': 'main'})
        assert (answer['submission_state'], answer['idempotency_key']) == ('accepted', 'key-1')
        order, = peer(connection + '.request', 'broker.orders', {'account_key': 'main'})
        assert answer['order_id'] == answer['resolved_result']['order_id'] == order['order_id']


def test_a_key_that_never_arrived_stays_unknown(peer, exchange, broker_on):
    answer = peer(broker_on(exchange) + '.resolve_submission', 'never-seen', write_action='broker.place_order',
                  request_payload=order_payload(exchange))
    assert answer['submission_state'] == 'submit_unknown'


# -- the rest ------------------------------------------------------------------------------------------------------
def test_a_wrong_token_opens_nothing(peer, synthetic, opened):
    name = opened(CONNECTION, synthetic.address[0], synthetic.address[1], 'wrong', connect_timeout=1.0)
    with pytest.raises(PeerError) as caught:
        peer(name + '.start')
    assert caught.value.types[0] == 'RuntimeError'
    with long_client(synthetic) as connection:  # the owner at the same address still gets in
        assert connection.request('admin.health')['value']['process_alive'] is True


def test_inside_tls(peer, opened, tmp_path):
    certificate, key = make_certificate(tmp_path)
    with serving(FakeClock(NOW), stub_data=DATA, tls_cert=certificate, tls_key=key) as server:
        provider = opened(PROVIDER, config_of(server.address, tls_cert=certificate))
        assert peer(provider + '.get_current_tick', UNIS)['last_price'] == price_of(server, UNIS)


def test_health_and_account_overview(peer, exchange, connection_to, broker_on):
    peer(broker_on(exchange) + '.buy', UNIS, 100, wait_timeout=10)
    connection = connection_to(exchange)
    health = peer(connection + '.request', 'admin.health')['value']
    assert health['accounts'] == ['main', 'hedge'] and health['features'] == ['data', 'broker']
    assert (health['process_alive'], health['backend_type'], health['sessions']) == (True, 'stub', 2)
    shown = peer(connection + '.request', 'admin.print_account', {'account_key': 'main', 'limit': 5})
    assert (shown['dtype'], shown['account_key']) == ('text', 'main')
    assert 'account_id=55001234' in shown['value'] and UNIS in shown['value']


def test_many_peers_share_one_connection_each(peer, synthetic, connection_to):
    names = [connection_to(synthetic) for _ in range(3)]
    assert len({peer(name + '._session_id') for name in names}) == 3
    assert {peer(name + '._keepalive') for name in names} == {20}
