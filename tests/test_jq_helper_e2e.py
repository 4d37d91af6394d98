"""jq_helper against a real server on real sockets: bars, orders, money to the cent, targets, lost connections."""
import contextlib
import csv
import io
import os
import socket
import threading
from datetime import date, datetime
from decimal import Decimal

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests import base
from tests.fakes import FakeClock

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
CODE = '000001.XSHE'
MORNING = datetime(2024, 1, 8, 10, 0)


@pytest.fixture(autouse=True)
def forget_the_client(monkeypatch):
    monkeypatch.setattr(jq, '_clients', None)


@contextlib.contextmanager
def trading(clock=None, **changes):
    """A server with a clock that stands still, and the helper connected to it."""
    with base.serving(clock or FakeClock(MORNING), **changes) as server:
        connect(server.address)
        yield server


def connect(address, **options):
    jq.configure(address[0], base.TOKEN, address[1], **dict({'retry_interval': 0, 'rpc_timeout': 20}, **options))


def quote(code=CODE):
    return jq.get_data_client().get_snapshot(code)


def buy(amount, code=CODE):
    """Shares bought for sure, at market."""
    order = jq.get_broker_client().place_order(code, 'BUY', amount, wait_timeout=10)
    assert (order.status, order.filled) == ('filled', amount)
    return order


def resting_price(code=CODE):
    """A price inside cage and limits at which nobody sells now."""
    return bq.floor_to_tick(quote(code)['last_price'] * 0.97, 0.01)


def held(code=CODE):
    rows = {item.security: item.total_amount for item in jq.get_positions()}
    return rows.get(code, 0)


# -- data ----------------------------------------------------------------------------------------------------------
def file_rows(code, year):
    with io.open(os.path.join(DATA, '%s_1d.csv' % code), encoding='utf-8') as file:
        return [row for row in csv.DictReader(file) if row['date'].startswith(year)]


def test_the_bars_of_2019_equal_the_file_row_by_row():
    pandas = pytest.importorskip('pandas')
    rows, fields = file_rows('600519.XSHG', '2019'), ['open', 'close', 'high', 'low', 'volume', 'money']
    with trading(clock=FakeClock(datetime(2020, 6, 1, 10, 0)), stub_data=DATA):
        frame = jq.get_data_client().get_price('600519.XSHG', start='2019-01-01', end='2019-12-31', fq=None)
        asked = jq.get_data_client().get_price('600519.XSHG', start_date='2019-01-01', end_date='2019-12-31', fq=None,
                                               fields=['volume', 'close'])
    assert type(frame) is pandas.DataFrame and type(frame.index) is pandas.DatetimeIndex and frame.index.name is None
    assert [moment.strftime('%Y-%m-%d %H:%M') for moment in frame.index] == [row['date'] + ' 00:00' for row in rows]
    assert list(frame.columns) == fields and list(asked.columns) == ['volume', 'close'] and len(rows) == 244
    assert all(str(kind) in ('float64', 'int64') for kind in frame.dtypes)
    for field in fields:
        assert frame[field].tolist() == [float(row[field]) for row in rows], field


def test_many_securities_in_both_shapes():
    pandas = pytest.importorskip('pandas')
    codes = ['600519.XSHG', '000938.XSHE']
    with trading(clock=FakeClock(datetime(2019, 6, 3, 10, 0)), stub_data=DATA):
        client = jq.get_data_client()
        frame = client.get_price(codes, end='2019-05-31', count=2, fields=['close', 'open'], fq=None, panel=False)
        wide = client.get_price(codes, end='2019-05-31', count=2, fields=['close', 'open'], fq=None)
    assert list(frame.columns) == ['time', 'code', 'close', 'open'] and len(frame) == 4
    assert sorted(set(frame['code'])) == sorted(codes) and str(frame['time'].dtype).startswith('datetime64')
    if pandas.__version__.startswith('0.23'):
        assert type(wide) is pandas.Panel and sorted(wide.items) == ['close', 'open']
        assert list(wide['close'].columns) == codes and wide['close'].index[-1] == pandas.Timestamp('2019-05-31')
    else:
        assert list(wide.columns) == ['time', 'code', 'close', 'open'] and len(wide) == 4


def test_other_data():
    with trading():
        client = jq.get_data_client()
        assert client.get_trade_days(end='2024-01-08', count=2) == [date(2024, 1, 5), date(2024, 1, 8)]
        assert client.get_last_price(CODE) == quote()['last_price'] > 0
        assert client.get_live_current(CODE)['paused'] is False
        assert client.get_security_info(CODE).display_name == '平安银行'
        assert CODE in list(client.get_index_stocks('000300.XSHG')) and len(client.get_all_securities('stock')) > 5


# -- orders and money ----------------------------------------------------------------------------------------------
def cents(value):
    return Decimal(repr(value)).quantize(Decimal('0.01'))


def test_a_limit_order_rests_freezes_money_and_is_cancelled():
    with trading():
        price, before = resting_price(), jq.get_account()
        oid = jq.order(CODE, 200, jq.LimitOrderStyle(price), wait_timeout=0, remark='mine')
        frozen = cents(200 * price) + 5
        transfer = bq.trade_fees(CODE, 'BUY', Decimal(repr(price)) * 200, MORNING.date())[2]
        assert cents(jq.get_account().available_cash) == cents(before.available_cash) - frozen - transfer
        (order,) = jq.get_open_orders().values()
        assert (order.order_id, order.amount, order.filled, order.order_price) == (oid, 200, 0, price)
        assert order.add_time == MORNING and order.order_remark == 'mine' and order.is_buy
        result = jq.cancel_order(order)
        assert result and result['status'] == 'canceled'
        assert jq.get_open_orders() == {} and jq.get_order_status(oid)['status'] == 'canceled'
        assert jq.get_account().available_cash == before.available_cash
        again = jq.cancel_order(oid)
        assert again['status'] == 'canceled'


def test_a_market_order_and_what_it_costs():
    with trading():
        before = jq.get_account()
        oid = jq.order(CODE, 250, price=None, wait_timeout=10)
        (fill,) = jq.get_trades(order_id=oid).values()
        value = Decimal(repr(fill.price)) * fill.amount
        commission, tax, transfer = bq.trade_fees(CODE, 'BUY', value, MORNING.date())
        assert (fill.amount, fill.security, fill.time, fill.is_buy) == (200, CODE, MORNING, True)
        assert cents(fill.commission) == commission + transfer and tax == 0 == fill.tax
        after = jq.get_account()
        assert cents(after.available_cash) == cents(before.available_cash) - cents(float(value)) - commission - transfer
        order = jq.get_orders(order_id=oid)[oid]
        assert (order.status, order.filled, order.price, order.final) == ('filled', 200, fill.price, True)
        (position,) = jq.get_positions()
        assert (position.total_amount, position.closeable_amount, position.price) == (200, 0, quote()['last_price'])
        assert not jq.cancel_order(oid) and jq.cancel_order(oid)['status'] == 'filled'


def test_a_protection_price_bounds_a_market_order():
    with trading():
        low = resting_price()
        order = jq.get_broker_client().place_order(CODE, 'BUY', 100, style=jq.MarketOrderStyle(low), wait_timeout=10)
        assert (order.status, order.filled, order.order_price) == ('canceled', 0, low)
        assert jq.get_positions() == []


def test_refusals_of_the_server_arrive_as_what_they_are():
    with trading():
        with pytest.raises(bq.OrderRejected) as caught:
            jq.order(CODE, 100, 0.01)
        assert caught.value.broker_called is False
        with pytest.raises(bq.OrderRejected):
            jq.order(CODE, -100)
        with pytest.raises(bq.OrderRejected):
            jq.order(CODE, 10 ** 7, wait_timeout=5)  # no money
        with pytest.raises(bq.OrderNotFound):
            jq.cancel_order('12345')
        assert jq.get_order_status('12345') == {} and jq.get_orders() == {}


def test_values_and_percents():
    with trading():
        last = jq.get_data_client().get_last_price(CODE)
        oid = jq.order_value(CODE, last * 300 + 1, wait_timeout=10)
        assert jq.get_orders()[oid].filled == 300
        total = jq.get_account().total_value
        price = resting_price()
        oid = jq.order_percent(CODE, 0.05, price)
        assert jq.get_orders()[oid].amount == bq.round_lot(CODE, int(total * 0.05 / price))
        assert jq.order_value(CODE, last * 20) is None and len(jq.get_orders()) == 2


# -- targets -------------------------------------------------------------------------------------------------------
def test_targets_from_nothing_up_and_over_an_open_order():
    with trading():
        assert jq.order_target(CODE, 0) is None
        resting = jq.order(CODE, 500, resting_price())
        oid = jq.order_target(CODE, 330, wait_timeout=10)
        orders = jq.get_orders()
        assert (orders[resting].status, orders[oid].filled, held()) == ('canceled', 300, 300)
        assert jq.order_target(CODE, 300) is None and len(jq.get_orders()) == 2
        jq.order_target_value(CODE, quote()['last_price'] * 500 + 1, wait_timeout=10)
        assert held() == 500


def test_targets_down_to_nothing_on_the_next_day():
    clock = FakeClock(MORNING)
    with trading(clock):
        buy(500), buy(300, '600000.XSHG')
        assert jq.order_target(CODE, 0) is None and held() == 500  # bought today
        with pytest.raises(bq.OrderRejected):
            jq.order(CODE, -500)
        clock.set(datetime(2024, 1, 9, 10, 0))
        jq.order_target(CODE, 200, wait_timeout=10)
        assert held() == 200
        resting = jq.order(CODE, -200, bq.ceil_to_tick(quote()['last_price'] * 1.05, 0.01))
        assert jq.get_positions()[0].closeable_amount == 0
        clock.advance(60)
        oid = jq.order_target_percent(CODE, 0, wait_timeout=10)  # the frozen shares come free first
        assert jq.get_orders()[resting].status == 'canceled' and jq.get_orders()[oid].status == 'filled'
        assert (held(), held('600000.XSHG')) == (0, 300)


def test_of_shares_bought_yesterday_and_today_only_the_old_are_sold():
    clock = FakeClock(MORNING)
    with trading(clock):
        buy(300)
        clock.set(datetime(2024, 1, 9, 10, 0))
        buy(200)
        clock.advance(60)
        oid = jq.order_target(CODE, 0, wait_timeout=10)
        assert jq.get_orders()[oid].filled == 300 and held() == 200


def test_an_etf_bought_today_can_be_sold_today():
    clock, code = FakeClock(MORNING), '511880.XSHG'
    with trading(clock):
        buy(200, code)
        clock.advance(60)
        jq.order_target_value(code, 0, wait_timeout=10)
        assert held(code) == 0


# -- accounts ------------------------------------------------------------------------------------------------------
SUBS = bq.parse_sub_accounts('research@default:limit=5000,qa@default')


def test_sub_accounts_see_and_cancel_only_their_own():
    with trading(sub_accounts=SUBS) as server:
        price = resting_price()
        connect(server.address, sub_account_id='qa')
        theirs = jq.order(CODE, 100, price)
        connect(server.address, sub_account_id='research')
        mine = jq.order(CODE, 100, price)
        assert list(jq.get_open_orders()) == [mine]
        with pytest.raises(bq.OrderNotFound):
            jq.cancel_order(theirs)
        with pytest.raises(bq.OrderRejected):
            jq.order(CODE, 10000)
        oid = jq.order_target(CODE, 100, wait_timeout=10)
        connect(server.address, account_key='default')
        orders = jq.get_orders()
        assert (orders[mine].status, orders[oid].status) == ('canceled', 'filled')
        assert list(jq.get_open_orders()) == [theirs] and list(orders) == [theirs, mine, oid]


def test_an_unknown_account_is_refused():
    with trading() as server:
        connect(server.address, account_key='other')
        for call in (jq.get_account, lambda: jq.order(CODE, 100), lambda: jq.order_target(CODE, 100)):
            with pytest.raises(bq.AccountNotFound):
                call()
        connect(server.address)
        assert jq.get_orders() == {}


def test_wrong_token_and_no_server():
    with trading() as server:
        jq.configure(server.address[0], 'not-the-token', server.address[1], retries=0)
        with pytest.raises(bq.AuthFailed):
            jq.order(CODE, 100)
    with pytest.raises(bq.ConnectionLost):
        connect(server.address)
        jq.order(CODE, 100)


# -- lost connections ----------------------------------------------------------------------------------------------
class CuttingProxy:
    """Passes frames on until it has seen the answer to a write, and cuts instead of delivering it, `cuts` times.

    Then the order is certainly at the exchange and the client certainly does not know.
    """

    def __init__(self, target, cuts):
        self.target, self.cuts, self.seen = target, cuts, []
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(8)
        self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._run, name='cutting-proxy', daemon=True)
        self._thread.start()

    def close(self):
        self._listener.close()
        with contextlib.suppress(OSError):
            socket.create_connection(self.address, 1).close()
        self._thread.join(10)

    def _run(self):
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            with contextlib.closing(client), contextlib.closing(socket.create_connection(self.target, 10)) as server:
                client.settimeout(10)
                self._pass_on(client, server)

    def _pass_on(self, client, server):
        for _ in range(2):  # login, then the one request of a connection
            frame = base.read_raw(client)
            if frame is None:
                return
            frame.pop('features', None)  # so the server answers in JSON alone, which is read here
            base.send_raw(server, frame)
            answer = base.read_raw(server)
            if frame.get('action') in bq.WRITES:
                self.seen.append(frame['payload']['idempotency_key'])
                if len(self.seen) <= self.cuts:
                    return
            base.send_raw(client, answer)


@contextlib.contextmanager
def cutting(server, cuts, **options):
    proxy = CuttingProxy(server.address, cuts)
    try:
        connect(proxy.address, **options)
        yield proxy
    finally:
        proxy.close()


def test_a_lost_answer_is_fetched_with_the_same_key_and_there_is_one_order():
    with trading() as server, cutting(server, cuts=2) as proxy:
        oid = jq.order(CODE, 100, wait_timeout=10)
        assert list(jq.get_orders()) == [oid] and len(jq.get_trades()) == 1 and held() == 100
        assert len(proxy.seen) == 3 and len(set(proxy.seen)) == 1


def test_when_no_answer_ever_comes_the_key_tells_and_repeating_it_makes_no_second_order():
    with trading() as server, cutting(server, cuts=2, retries=1) as proxy:
        with pytest.raises(bq.OrderStateUnknown) as caught:
            jq.order(CODE, 100, wait_timeout=10)
        key = caught.value.idempotency_key
        assert set(proxy.seen) == {key}
        oid = jq.order(CODE, 100, wait_timeout=10, idempotency_key=key)
        assert list(jq.get_orders()) == [oid] and held() == 100
        with pytest.raises(bq.IdempotencyConflict):
            jq.order(CODE, 200, idempotency_key=key)
        assert held() == 100


def test_a_cancel_whose_answer_is_lost_still_cancels_once():
    with trading() as server:
        oid = jq.order(CODE, 100, resting_price())
        with cutting(server, cuts=1) as proxy:
            assert jq.cancel_order(oid) and len(set(proxy.seen)) == 1


def test_a_target_whose_cancel_is_lost_orders_nothing():
    with trading() as server:
        resting = jq.order(CODE, 500, resting_price())
        with cutting(server, cuts=1, retries=0):
            with pytest.raises(bq.OrderStateUnknown):
                jq.order_target(CODE, 300)
            assert list(jq.get_orders()) == [resting] and held() == 0
            jq.order_target(CODE, 300, wait_timeout=10)
            assert held() == 300
