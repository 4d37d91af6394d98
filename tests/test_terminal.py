"""The stand-in QMT terminal, below the vendor's own XtQuantTrader and xtdata."""
import os
import queue
import sys
import threading
from datetime import datetime

import pytest

pytest.importorskip('pandas')

import bullet_qmt  # noqa: E402
from tests.environments import ROOT  # noqa: E402
from tests.fakes import FakeClock, Hours  # noqa: E402
from tests.processes import LineProcess  # noqa: E402
from tests.resources import becomes, descriptors, nothing_left  # noqa: E402
from tests.terminal import bars, native  # noqa: E402
from tests.terminal.remote import TerminalError, TerminalProcess  # noqa: E402
from tests.terminal.scene import (ACCOUNT, DIVIDEND_DAY, NOW, SECOND_ACCOUNT, SUSPENDED_DAY,  # noqa: E402
                                  populate, userdata_folder)
from tests.terminal.structs import LATER_FIELDS, REQUESTS, Structs  # noqa: E402
from tests.terminal.terminal import Terminal  # noqa: E402

WAIT = 10
USERDATA = userdata_folder()
BUY, SELL, FIXED = 23, 24, 11


def new_terminal(**options):
    return populate(Terminal(FakeClock(datetime(2025, 8, 6, 10, 0)), **options))


@pytest.fixture
def terminal():
    terminal = new_terminal()
    native.install(terminal)
    yield terminal
    terminal.faults.release()
    native.install(terminal)  # disconnects xtdata


class Heard:
    """What a trader's callback heard, in order; each wait has a deadline."""

    def __init__(self):
        self._queue = queue.Queue()

    def __getattr__(self, name):
        if not name.startswith('on_'):
            raise AttributeError(name)
        return lambda *args: self._queue.put((name[3:],) + args)

    def next(self):
        return self._queue.get(timeout=WAIT)

    def until(self, name):
        """The next message of this name, skipping others."""
        while True:
            message = self.next()
            if message[0] == name:
                return message[1] if len(message) > 1 else None

    def names(self, last):
        """Names up to and including the first `last`."""
        names = []
        while last not in names:
            names.append(self.next()[0])
        return names

    def empty(self):
        return self._queue.empty()


class Trading:
    """A vendor's trader with its account; every blocking call runs in a thread of its own."""

    def __init__(self, session=123, path=USERDATA, account=ACCOUNT):
        from xtquant.xttrader import XtQuantTrader
        from xtquant.xttype import StockAccount
        self.heard, self.account = Heard(), StockAccount(account)
        self.trader = XtQuantTrader(path, session, self.heard)
        self.trader.start()
        self._threads = []

    def connect(self):
        assert self.ask('connect') == 0
        assert self.of('subscribe') == 0
        return self

    def start_asking(self, name, *args):
        """A queue for the answer of the trader's call."""
        box = queue.Queue()
        thread = threading.Thread(target=lambda: box.put(getattr(self.trader, name)(*args)), name='asking-' + name,
                                  daemon=True)
        thread.start()
        self._threads.append(thread)
        return box

    def ask(self, name, *args):
        return self.start_asking(name, *args).get(timeout=WAIT)

    def of(self, name, *args):
        return self.ask(name, self.account, *args)

    def buy(self, code='600000.SH', volume=100, price=9.9, remark='r', kind=FIXED):
        return self.of('order_stock', code, BUY, volume, kind, price, 's', remark)

    def sell(self, code='600000.SH', volume=100, price=10.1, remark='r'):
        return self.of('order_stock', code, SELL, volume, FIXED, price, 's', remark)

    def order(self, order_id):
        return self.of('query_stock_order', order_id)

    def close(self):
        if self.trader.loop.is_closed():
            return
        self.trader.stop()
        self.trader.loop.close()  # the vendor's layer never does
        for thread in self._threads:
            thread.join(WAIT)


@pytest.fixture
def trading(terminal):
    trading = Trading().connect()
    yield trading
    trading.close()


@pytest.fixture
def xtdata(terminal):
    from xtquant import xtdata
    xtdata.enable_hello = False
    xtdata.connect()
    yield xtdata
    xtdata.disconnect()


# -- records --------------------------------------------------------------------------------------------------
def test_both_spellings_are_the_same_member():
    order = Structs().make('XtOrder', {'order_id': 7})
    order.m_strOrderRemark = 'a'
    assert (order.m_nOrderID, order.order_remark, order.price, order.stock_code) == (7, 'a', 0.0, '')


@pytest.mark.parametrize('field, value', [
    ('m_strStockCode', None), ('m_strStockCode', 6), ('m_nOrderVolume', 1.0), ('m_nOrderVolume', '1'),
    ('m_nOrderVolume', None), ('m_nOrderVolume', 2 ** 63), ('m_dPrice', '1.0'), ('m_dPrice', None)])
def test_setters_are_strict(field, value):
    request = Structs().classes['OrderStockReq']()
    with pytest.raises(TypeError):
        setattr(request, field, value)


def test_setters_take_what_the_real_ones_take():
    request = Structs().classes['OrderStockReq'](price=10, stock_code=b'600000.SH')
    assert type(request.m_dPrice) is float and request.m_strStockCode == '600000.SH'
    with pytest.raises(TypeError):
        Structs().classes['QueryStockOrdersReq']().m_bCanCancel = 1
    with pytest.raises(AttributeError):
        request.anything = 1


def test_old_records_lack_fields_and_spellings():
    old = Structs(LATER_FIELDS, snake=False).make('XtPosition', {'volume': 5, 'last_price': 1.0})
    assert old.m_nVolume == 5 and not hasattr(old, 'volume') and not hasattr(old, 'm_dLastPrice')
    assert set(Structs().classes) >= set(REQUESTS)


# -- trading, call by call ------------------------------------------------------------------------------------
def test_importing_the_vendor_asks_nobody(terminal, capsys):
    native.uninstall()
    native.install(terminal)
    before = native.trap.attempts
    from xtquant import xttrader
    assert native.trap.attempts == before + 1 and xttrader.XtQuantTrader
    assert capsys.readouterr().out == ''


def test_a_limit_order_fills_and_is_told(terminal, trading):
    order_id = trading.buy(volume=200, price=10.0, remark='tag')
    seen = [trading.heard.next() for _ in range(4)]
    assert [name for name, _ in seen] == ['stock_order', 'stock_order', 'stock_trade', 'stock_order']
    assert [record.order_status for name, record in seen if name == 'stock_order'] == [49, 50, 56]
    trade = seen[2][1]
    assert (trade.order_id, trade.traded_volume, trade.traded_price, trade.order_remark) == (order_id, 200, 10.0, 'tag')
    assert trade.commission == 5.02 and trade.traded_id and trade.order_sysid
    order = trading.order(order_id)
    assert (order.price_type, order.traded_volume, order.order_time) == (50, 200, 1754445600)
    assert [entry['remark'] for entry in terminal.exchange.accepted] == ['tag']


def test_queries(terminal, trading):
    trading.buy(volume=200, price=10.0)
    asset = trading.of('query_stock_asset')
    assert (asset.cash, asset.frozen_cash, asset.market_value) == (997994.98, 0.0, 12000.0)
    assert asset.total_asset == pytest.approx(1009994.98)
    [position] = trading.of('query_stock_positions')
    assert (position.volume, position.can_use_volume, position.on_road_volume, position.yesterday_volume) \
        == (1200, 1000, 200, 1000)
    assert trading.of('query_stock_position', '000001.SZ') is None
    assert len(trading.of('query_stock_trades')) == 1 and trading.order(5) is None
    assert trading.of('query_stock_orders', True) == []
    assert [info.account_id for info in trading.ask('query_account_infos')] == [ACCOUNT, SECOND_ACCOUNT]
    assert {status.status for status in trading.ask('query_account_status')} == {0}


def test_unknown_accounts_have_nothing(terminal, trading):
    from xtquant.xttype import StockAccount
    stranger = StockAccount('x')
    assert trading.ask('query_stock_asset', stranger) is None
    assert trading.ask('subscribe', stranger) == -1
    assert trading.ask('order_stock', stranger, '600000.SH', BUY, 100, FIXED, 10.0) == -1
    assert isinstance(StockAccount(123), str)


def test_frozen_money_and_shares(terminal, trading):
    order_id = trading.buy(volume=1000)
    asset = trading.of('query_stock_asset')
    assert asset.frozen_cash == 9905.1 and asset.cash == 990094.9
    trading.sell(volume=300)
    assert trading.of('query_stock_positions')[0].can_use_volume == 700
    assert trading.of('cancel_order_stock', order_id) == 0
    assert trading.of('query_stock_asset').frozen_cash == 0.0


def test_partial_fills_against_the_book(terminal, trading):
    terminal.exchange.set_depth('600000.SH', [[9.9, 100]], [[10.0, 300], [10.01, 100]])
    order_id = trading.buy(volume=1000, price=10.01)
    order = trading.order(order_id)
    assert (order.order_status, order.traded_volume) == (55, 400) and order.traded_price == pytest.approx(10.0025)
    terminal.exchange.fill(order_id, 100)
    assert trading.of('cancel_order_stock', order_id) == 0
    assert trading.order(order_id).order_status == 53
    assert trading.of('query_stock_asset').frozen_cash == 0.0


def test_a_price_change_fills_resting_orders(terminal, trading):
    order_id = trading.sell(price=10.5)
    assert trading.order(order_id).order_status == 50
    terminal.push('600000.SH', 10.5)
    assert trading.order(order_id).order_status == 56


def test_money_is_conserved(terminal, trading):
    """Round trips at one price cost exactly their fees."""
    trading.buy(volume=500, price=10.0)
    trading.sell(volume=700, price=10.0)
    fees = sum(trade['commission'] for trade in terminal.exchange.trade_rows())
    asset = terminal.exchange.asset_row(ACCOUNT)
    assert asset['total_asset'] == pytest.approx(1010000.0 - fees, abs=1e-9) and fees > 10


def test_t_plus_one(terminal, trading):
    trading.buy(code='000001.SZ', price=12.0)
    trading.sell(code='000001.SZ', price=12.0)
    assert trading.heard.until('order_error').error_msg == '可用股份不足'
    trading.buy(code='113052.SH', volume=10, price=110.0)
    assert trading.order(trading.sell(code='113052.SH', volume=10, price=110.0)).order_status == 56
    terminal.next_day('2025-08-07 10:00:00')
    assert trading.of('query_stock_orders') == []
    assert trading.order(trading.sell(code='000001.SZ', price=12.0)).order_status == 56


@pytest.mark.parametrize('code, volume, price, kind, reason', [
    ('600000.SH', 100, 11.01, FIXED, '涨跌停'), ('600000.SH', 100, 10.5, FIXED, '有效申报范围'),
    ('600000.SH', 150, 10.0, FIXED, '150'), ('600000.SH', 100, 9.995, FIXED, '最小价位'),
    ('600000.SH', 200000, 10.0, FIXED, '资金不足'), ('688981.SH', 100, 90.0, FIXED, '最小申报数量'),
    ('999999.SH', 100, 10.0, FIXED, '不存在'), ('123001.SZ', 10, 120.0, FIXED, '不存在'),
    ('600000.SH', 100, 10.0, 47, '市价'), ('600000.SH', 100, -1.0, 42, '保护限价'), ('600000.SH', 100, 10.0, 7, '报价类型')])
def test_the_broker_rejects(terminal, trading, code, volume, price, kind, reason):
    order_id = trading.buy(code, volume, price, 'bad', kind)
    assert trading.heard.names('order_error') == ['stock_order', 'order_error']
    order = trading.order(order_id)
    assert order.order_status == 57 and reason in order.status_msg
    assert terminal.exchange.accepted == [] and terminal.exchange.refused[0]['remark'] == 'bad'
    assert trading.of('query_stock_asset').cash == 1000000.0


def test_suspended_securities_do_not_trade(terminal, trading):
    terminal.suspend('600000.SH')
    trading.buy()
    assert trading.heard.until('order_error').error_msg == '证券停牌'


def test_the_reason_of_a_refusal_comes_after_the_answer(terminal, trading):
    terminal.exchange.reject_next('资金不足', 'terminal')
    assert trading.buy(remark='bad') == -1
    error = trading.heard.until('order_error')
    assert (error.order_id, error.error_msg, error.order_remark, error.seq) == (-1, '资金不足', 'bad', 2)
    assert trading.of('query_stock_orders') == []


def test_a_live_order_is_thrown_out_late(terminal, trading):
    order_id = trading.buy()
    terminal.exchange.reject(order_id, '交易所拒绝')
    assert trading.heard.until('order_error').error_msg == '交易所拒绝'
    assert trading.order(order_id).order_status == 57


@pytest.mark.parametrize('code, kind, shown', [('600000.SH', 42, 88), ('600000.SH', 43, 89), ('000001.SZ', 44, 84),
                                               ('920047.BJ', 42, 88), ('000001.SZ', 46, 85), ('000001.SZ', 47, 88)])
def test_market_orders_show_the_brokers_price_type(terminal, trading, code, kind, shown):
    price = {'600000.SH': 10.0, '000001.SZ': 12.0, '920047.BJ': 15.0}[code]
    order = trading.order(trading.buy(code, 100, price, kind=kind))
    assert (order.order_status, order.price_type) == (56, shown)


def test_immediate_orders_give_the_rest_back(terminal, trading):
    terminal.exchange.set_depth('000001.SZ', [], [[12.0, 200]])
    assert trading.order(trading.buy('000001.SZ', 500, 12.0, kind=48)).order_status == 54
    assert trading.order(trading.buy('000001.SZ', 500, 12.0, kind=47)).order_status == 53
    assert trading.of('query_stock_asset').frozen_cash == 0.0


def test_simulation_terminals_refuse_market_orders(terminal, trading):
    terminal.exchange.market_orders = False
    assert trading.order(trading.buy(price=10.0, kind=42)).order_status == 57


def test_orders_wait_before_the_exchange(terminal, trading):
    terminal.exchange.stop_at = 48
    order_id = trading.buy(price=10.0)
    assert trading.order(order_id).order_status == 48
    terminal.exchange.let_go()
    assert trading.order(order_id).order_status == 56


def test_asynchronous_orders_and_cancels(terminal, trading):
    seq = trading.of('order_stock_async', '600000.SH', BUY, 100, FIXED, 9.9, 's', 'r')
    response = trading.heard.until('order_stock_async_response')
    assert response.seq == seq and response.order_id > 0
    seq = trading.of('cancel_order_stock_async', response.order_id)
    answer = trading.heard.until('cancel_order_stock_async_response')
    assert (answer.seq, answer.cancel_result, answer.order_id) == (seq, 0, response.order_id)


def test_a_cancel_is_only_sent(terminal, trading):
    terminal.exchange.cancel_mode = 'held'
    order_id = trading.buy(volume=300)
    assert trading.of('cancel_order_stock', order_id) == 0
    assert trading.order(order_id).order_status == 51
    terminal.exchange.fill(order_id, 100)
    assert trading.order(order_id).order_status == 52
    terminal.exchange.confirm_cancels()
    assert trading.order(order_id).order_status == 53


def test_a_cancel_loses_the_race(terminal, trading):
    terminal.exchange.cancel_mode = 'race'
    order_id = trading.buy()
    assert trading.of('cancel_order_stock', order_id) == 0
    assert trading.heard.until('cancel_error').order_id == order_id
    assert trading.order(order_id).order_status == 56


def test_impossible_cancels_are_refused(terminal, trading):
    done, live = trading.buy(price=10.0), trading.buy()
    terminal.exchange.cancel_mode = 'refused'
    assert [trading.of('cancel_order_stock', order_id) for order_id in (42, done, live)] == [-1, -1, -1]
    reasons = [trading.heard.until('cancel_error').error_msg for _ in range(3)]
    assert reasons == [entry['reason'] for entry in terminal.exchange.cancels] and all(reasons)
    assert trading.order(live).order_status == 50


def test_a_cancel_by_the_brokers_number(terminal, trading):
    order = trading.order(trading.buy())
    assert trading.of('cancel_order_stock_sysid', 0, order.order_sysid) == 0
    assert trading.order(order.order_id).order_status == 54


def test_manual_orders_and_other_programs_are_seen(terminal, trading):
    by_hand = terminal.exchange.manual_order(ACCOUNT, '600000.SH', 'BUY', 100, 9.9)
    other = terminal.exchange.manual_order(ACCOUNT, '600000.SH', 'SELL', 100, 10.2, 'other:17', 'grid')
    terminal.exchange.manual_order(SECOND_ACCOUNT, '600000.SH', 'BUY', 100, 9.9)
    rows = trading.of('query_stock_orders')
    assert [(row.order_id, row.order_remark, row.strategy_name) for row in rows] \
        == [(by_hand, '', ''), (other, 'other:17', 'grid')]
    terminal.exchange.manual_cancel(by_hand)
    assert trading.order(by_hand).order_status == 54


def test_a_remark_keeps_24_bytes(terminal, trading):
    trading.buy(remark='中文备注' * 4)
    trading.buy(remark='x' + '中' * 12)
    assert [row.order_remark for row in trading.of('query_stock_orders')] == ['中文备注' * 3, 'x' + '中' * 11]


def test_wrong_argument_types_raise_at_once(terminal, trading):
    from xtquant.xttype import StockAccount
    for args in (('600000.SH', 23, 200, 11, None), ('600000.SH', 23, 200, 11, 10.0, None, None),
                 ('600000.SH', 23.0, 200, 11, 10.0), (None, 23, 200, 11, 10.0)):
        with pytest.raises(TypeError):
            trading.trader.order_stock(trading.account, *args)
    with pytest.raises(AttributeError):
        trading.trader.order_stock(StockAccount(1), '600000.SH', 23, 200, 11, 10.0)
    assert terminal.exchange.accepted == [] and terminal.exchange.refused == []


@pytest.mark.parametrize('price', [float('nan'), float('inf')])
def test_no_number_is_no_price(terminal, trading, price):
    assert trading.buy(price=price) == -1


# -- connection -----------------------------------------------------------------------------------------------
def test_no_connection_without_a_running_terminal(terminal):
    terminal.stop()
    trading = Trading()
    assert trading.ask('connect') == -1
    assert trading.of('query_stock_asset') is None
    trading.close()


def test_a_session_id_serves_one_client(terminal, trading):
    second = Trading(session=123)
    assert second.ask('connect') == -1
    trading.close()
    third = Trading(session=123).connect()
    assert [link['session'] for link in terminal.links() if link['online']] == [123]
    second.close()
    third.close()


def test_the_path_must_be_right():
    terminal = new_terminal(path=USERDATA)
    native.install(terminal)
    wrong, right = Trading(1, userdata_folder()), Trading(2)
    assert (wrong.ask('connect'), right.ask('connect')) == (-1, 0)
    wrong.close()
    right.close()


def test_connect_codes_and_taken_sessions(terminal):
    terminal.faults.connect_code = 7
    terminal.faults.taken_sessions = [123]
    trading = Trading()
    assert trading.ask('connect') == 7
    terminal.faults.connect_code = 0
    assert trading.ask('connect') == -1
    terminal.faults.taken_sessions = []
    assert trading.ask('connect') == 0
    trading.close()


def test_disconnection_is_told_once_and_calls_fail(terminal, trading):
    terminal.disconnect()
    assert trading.heard.next() == ('disconnected',)
    assert trading.trader.connected is True  # the vendor's flag says nothing
    assert trading.buy() == -1
    assert trading.of('query_stock_asset') is None and trading.of('query_stock_positions') is None
    assert trading.of('cancel_order_stock', 1) == -1 and trading.of('subscribe') == -1
    assert trading.heard.empty()


def test_calls_may_hang_after_a_disconnection(terminal, trading):
    terminal.faults.after_disconnect = 'hang'
    terminal.disconnect()
    trading.heard.until('disconnected')
    answer = trading.start_asking('query_stock_asset', trading.account)
    terminal.wait_called('asset')
    for resolve in list(trading.trader.cbs.values()):
        assert answer.empty()
        resolve(None)  # nothing else ends it
    assert answer.get(timeout=WAIT) is None


def test_a_restart_keeps_todays_orders(terminal, trading):
    order_id = trading.buy()
    terminal.restart()
    assert trading.heard.until('disconnected') is None
    again = Trading().connect()
    assert again.order(order_id).order_status == 50
    terminal.push('600000.SH', 9.9)
    assert again.heard.until('stock_trade').order_id == order_id
    again.close()


def test_account_status_is_pushed(terminal, trading):
    terminal.set_account_status(ACCOUNT, 3)
    status = trading.heard.until('account_status')
    assert (status.account_id, status.status) == (ACCOUNT, 3)
    assert trading.buy() == -1


def test_nobody_hears_of_accounts_not_subscribed(terminal, trading):
    second = Trading(session=5, account=SECOND_ACCOUNT).connect()
    trading.buy()
    trading.heard.until('stock_order')
    assert second.heard.empty()
    second.close()


# -- faults ---------------------------------------------------------------------------------------------------
def test_a_hanging_order_is_carried_out_at_release(terminal, trading):
    terminal.faults.hang('order')
    answer = trading.start_asking('order_stock', trading.account, '600000.SH', BUY, 100, FIXED, 9.9, 's', 'r')
    terminal.wait_parked(['order'])
    assert answer.empty() and terminal.exchange.accepted == []
    terminal.faults.release('order')
    assert answer.get(timeout=WAIT) == terminal.exchange.accepted[0]['order_id']


def test_a_hanging_connect(terminal):
    terminal.faults.hang('connect')
    trading = Trading()
    answer = trading.start_asking('connect')
    terminal.wait_parked(['connect'])
    trading.close()
    assert answer.get(timeout=WAIT) == -1


def test_a_hang_of_a_number_of_calls(terminal, trading):
    terminal.faults.hang('asset', times=1)
    first = trading.start_asking('query_stock_asset', trading.account)
    terminal.wait_parked(['asset'])
    assert trading.of('query_stock_asset').cash == 1000000.0 and first.empty()
    terminal.faults.release()
    assert first.get(timeout=WAIT).cash == 1000000.0


def test_an_answer_gets_lost(terminal, trading):
    terminal.faults.silence('order')
    answer = trading.start_asking('order_stock', trading.account, '600000.SH', BUY, 100, FIXED, 9.9, 's', 'r')
    order = trading.heard.until('stock_order')
    assert answer.empty() and order.order_remark == 'r'
    terminal.faults.release('order')
    assert answer.get(timeout=WAIT) == order.order_id


def test_minus_one_although_the_order_lives(terminal, trading):
    terminal.faults.deny()
    assert trading.buy(remark='ghost') == -1
    assert [(row.order_remark, row.order_status) for row in trading.of('query_stock_orders')] == [('ghost', 50)]
    assert trading.buy() > 0


def test_an_order_accepted_late_outlives_its_sender(terminal, trading):
    terminal.faults.accept_late()
    trading.start_asking('order_stock', trading.account, '600000.SH', BUY, 100, FIXED, 9.9, 's', 'late')
    terminal.wait_parked(['order'])
    assert trading.of('query_stock_orders') == []
    terminal.disconnect()
    terminal.faults.release()
    assert [entry['remark'] for entry in terminal.exchange.accepted] == ['late']


def test_subscribe_fails(terminal):
    terminal.faults.fail_subscribe()
    trading = Trading()
    assert trading.ask('connect') == 0
    assert [trading.of('subscribe'), trading.of('subscribe')] == [-1, 0]
    trading.close()


@pytest.mark.parametrize('none', [False, True])
def test_figures_are_missing_right_after_connecting(terminal, none):
    terminal.faults.blank(2, ('asset', 'positions', 'orders'), none=none)
    terminal.exchange.manual_order(ACCOUNT, '600000.SH', 'BUY', 100, 9.9)
    trading = Trading().connect()
    for _ in range(2):
        asset = trading.of('query_stock_asset')
        assert asset is None if none else asset.total_asset == 0.0
        assert trading.of('query_stock_positions') == trading.of('query_stock_orders') == (None if none else [])
    assert trading.of('query_stock_asset').total_asset > 1e6
    assert len(trading.of('query_stock_positions')) == len(trading.of('query_stock_orders')) == 1
    trading.close()


@pytest.mark.parametrize('order', ['same', 'reversed', 'shuffled'])
def test_callbacks_are_held_and_come_out_of_order(terminal, trading, order):
    terminal.faults.hold_pushes = True
    trading.buy(price=10.0)
    assert terminal.faults.held_pushes() == 4 and trading.heard.empty()
    terminal.faults.release_pushes(order)
    seen = [trading.heard.next() for _ in range(4)]
    names = [(name, getattr(record, 'order_status', 0)) for name, record in seen]
    told = [('stock_order', 49), ('stock_order', 50), ('stock_trade', 0), ('stock_order', 56)]
    assert {'same': names == told, 'reversed': names == told[::-1], 'shuffled': sorted(names) == sorted(told)}[order]


def test_callbacks_come_twice(terminal, trading):
    terminal.faults.push_twice = True
    trading.buy(price=10.0)
    names = [trading.heard.next()[0] for _ in range(8)]
    assert names == ['stock_order'] * 4 + ['stock_trade'] * 2 + ['stock_order'] * 2


def test_an_error_comes_before_its_answer_and_again_later(terminal, trading):
    """The vendor's layer keeps an early error until the answer, then delivers it with the next -1 once more."""
    terminal.faults.error_first = True
    terminal.exchange.reject_next('first', 'terminal')
    assert trading.buy(remark='one') == -1
    assert trading.heard.until('order_error').error_msg == 'first'
    terminal.faults.error_first = False
    terminal.exchange.reject_next('second', 'terminal')
    assert trading.buy(remark='two') == -1
    messages = {trading.heard.until('order_error').error_msg for _ in range(2)}
    assert messages == {'first', 'second'}


def test_old_errors_are_repeated(terminal, trading):
    terminal.exchange.reject_next('old', 'terminal')
    trading.buy(remark='one')
    trading.heard.until('order_error')
    terminal.repeat_errors()
    assert trading.heard.until('order_error').order_remark == 'one'


def test_an_old_version_of_the_records(terminal):
    terminal.faults.old_version()
    trading = Trading().connect()
    [position] = trading.of('query_stock_positions')
    assert position.m_nVolume == 1000
    assert not hasattr(position, 'volume') and not hasattr(position, 'm_dLastPrice')
    trading.buy(price=10.0)
    assert not hasattr(trading.heard.until('stock_trade'), 'm_dCommission')
    trading.close()


def test_a_misspelt_switch_is_an_error(terminal):
    with pytest.raises(AttributeError):
        terminal.faults.push_twise = True


# -- data -----------------------------------------------------------------------------------------------------
def test_history_is_missing_until_it_is_downloaded(terminal, xtdata):
    assert len(xtdata.get_market_data_ex([], ['600000.SH'], '1d')['600000.SH']) == 0
    xtdata.download_history_data('600000.SH', '1d', '20250701', '20250731')
    frame = xtdata.get_market_data_ex([], ['600000.SH'], '1d')['600000.SH']
    assert list(frame.index[[0, -1]]) == ['20250701', '20250731'] and len(frame) == 23
    assert terminal.market.downloads[-1] == (['600000.SH'], '1d', '20250701', '20250731')


def test_bounds_counts_and_fields(terminal, xtdata):
    terminal.market.everything_local = True

    def days(**options):
        return list(xtdata.get_market_data_ex(['close'], ['600000.SH'], '1d', **options)['600000.SH'].index)
    assert days(start_time='20250804', end_time='20250805') == ['20250804', '20250805']
    assert days(count=2) == ['20250804', '20250805'] and days(count=0) == []
    assert days(end_time='20250801', count=1) == ['20250801']
    frame = xtdata.get_market_data_ex(['close', 'time'], ['600000.SH'], '1d', count=1)['600000.SH']
    assert sorted(frame.columns) == ['close', 'time'] and frame['close'].tolist() == [10.0]
    assert len(xtdata.get_market_data_ex([], ['999999.SH'], '1d')['999999.SH']) == 0


def test_minute_lines_begin_with_the_auction(terminal, xtdata):
    terminal.market.everything_local = True
    frame = xtdata.get_market_data_ex([], ['600000.SH'], '1m', '20250805', '20250805')['600000.SH']
    assert len(frame) == 241 and list(frame.index[:2]) == ['20250805093000', '20250805093100']
    assert frame['time'].iloc[0] == 1754357400000
    day = xtdata.get_market_data_ex([], ['600000.SH'], '1d', count=1)['600000.SH'].iloc[0]
    assert frame['volume'].sum() == day['volume'] and frame['amount'].sum() == pytest.approx(day['amount'])
    assert (frame['high'].max(), frame['low'].min()) == (day['high'], day['low'])
    assert (frame['open'].iloc[0], frame['close'].iloc[-1]) == (day['open'], day['close'])


@pytest.mark.parametrize('period, bars_a_day', [('5m', 48), ('15m', 16), ('30m', 8), ('60m', 4)])
def test_longer_minute_periods(terminal, xtdata, period, bars_a_day):
    terminal.market.everything_local = True
    frame = xtdata.get_market_data_ex([], ['600000.SH'], period, '20250805', '20250805')['600000.SH']
    assert len(frame) == bars_a_day and frame.index[-1] == '20250805150000'


def test_weeks_and_adjusted_prices(terminal, xtdata):
    terminal.market.everything_local = True
    weeks = xtdata.get_market_data_ex([], ['600000.SH'], '1w', '20250728', '20250805')['600000.SH']
    assert list(weeks.index) == ['20250801', '20250805']
    plain, front = [xtdata.get_market_data_ex([], ['600000.SH'], '1d', '20250715', '20250716', dividend_type=kind)
                    ['600000.SH']['close'].tolist() for kind in ('none', 'front_ratio')]
    dr = xtdata.get_divid_factors('600000.SH')['dr'].iloc[0]
    assert front == pytest.approx([plain[0] / dr, plain[1]])
    with pytest.raises(RuntimeError, match='front'):
        xtdata.get_market_data_ex([], ['600000.SH'], '1d', dividend_type='front')
    assert len(terminal.problems()) == 1


def test_volume_in_lots_or_shares(terminal, xtdata):
    terminal.market.everything_local = True

    def shares_a_unit():
        row = xtdata.get_market_data_ex([], ['600000.SH'], '1d', count=1)['600000.SH'].iloc[0]
        return round(row['amount'] / row['volume'] / row['close'])
    assert 90 < shares_a_unit() < 110
    terminal.market.volume_in_lots = {'1d': False, '1m': False}
    assert shares_a_unit() == 1


def test_suspended_days(terminal, xtdata):
    terminal.market.everything_local = True
    frame = xtdata.get_market_data_ex([], ['000001.SZ'], '1d', SUSPENDED_DAY, SUSPENDED_DAY)['000001.SZ']
    assert (frame['suspendFlag'].iloc[0], frame['volume'].iloc[0]) == (1, 0)
    assert len(xtdata.get_market_data_ex([], ['000001.SZ'], '1d', SUSPENDED_DAY, SUSPENDED_DAY,
                                         fill_data=False)['000001.SZ']) == 0


def test_dividend_factors(terminal, xtdata):
    factors = xtdata.get_divid_factors('600000.SH', '20250101', '20251231')
    row, terminal.market.everything_local = factors.loc[DIVIDEND_DAY], True
    days = xtdata.get_market_data_ex([], ['600000.SH'], '1d', '20250715', '20250716')['600000.SH']
    assert (row['interest'], row['stockBonus']) == (0.41, 0.1)
    assert row['dr'] == pytest.approx(days['close'].iloc[0] / days['preClose'].iloc[1])
    assert len(xtdata.get_divid_factors('000001.SZ')) == 0


def test_bars_of_the_tests_own(terminal, xtdata):
    terminal.market.everything_local = True
    moment = bars.epoch_ms(datetime(2025, 8, 5, 9, 31))
    terminal.market.set_bars('600000.SH', '1m', [bars.bar(moment, (1.0, 2.0, 0.5, 1.5), 1000, 1500.0, 1.0)])
    frame = xtdata.get_market_data_ex([], ['600000.SH'], '1m', '20250805', '20250805')['600000.SH']
    assert frame[['open', 'high', 'low', 'close', 'volume']].values.tolist() == [[1.0, 2.0, 0.5, 1.5, 10.0]]


def test_instrument_details(terminal, xtdata):
    detail = xtdata.get_instrument_detail('600000.SH')
    assert (detail['InstrumentName'], detail['OpenDate'], detail['PreClose']) == ('浦发银行', '19991110', 10.0)
    assert (detail['UpStopPrice'], detail['DownStopPrice']) == (11.0, 9.0)
    terminal.market.limits_in_detail = False
    assert xtdata.get_instrument_detail('600000.SH', True)['UpStopPrice'] == 0.0
    assert xtdata.get_instrument_detail('1.SH') is None
    assert xtdata.get_instrument_type('510300.SH') == {'etf': True, 'fund': True}
    assert xtdata.get_instrument_detail('123001.SZ')['ExpireDate'] == '20250331'


def test_sectors_and_weights_come_with_a_download(terminal, xtdata):
    terminal.market.sectors_local = False
    assert xtdata.get_sector_list() == [] and xtdata.get_stock_list_in_sector('沪深A股') == []
    xtdata.download_sector_data()
    assert '920047.BJ' in xtdata.get_stock_list_in_sector('京市A股')
    assert xtdata.get_stock_list_in_sector('沪深转债') == ['113052.SH']
    assert xtdata.get_stock_list_in_sector('nope') == []
    assert xtdata.get_index_weight('000300.SH') == {}
    xtdata.download_index_weight()
    assert xtdata.get_index_weight('000300.SH') == {'600000.SH': 60.5, '000001.SZ': 39.5}
    terminal.market.set_sector('我的', ['600000.SH'])
    assert '我的' in xtdata.get_sector_list() and xtdata.get_stock_list_in_sector('我的') == ['600000.SH']


def test_trading_days(terminal, xtdata):
    days = xtdata.get_trading_dates('SH', '20250804', '20250806')
    assert days == [1754236800000, 1754323200000, 1754409600000]
    assert xtdata.get_trading_dates('SH', count=1) == days[-1:] and xtdata.get_trading_dates('XX') == []
    assert '20251001' not in xtdata.get_trading_calendar('SH', '20250929', '20251010')
    with pytest.raises(Exception):
        xtdata.get_trading_calendar('BJ')


def test_full_ticks(terminal, xtdata):
    terminal.push('600000.SH', 10.1, 500, askPrice=[10.2] * 5)
    ticks = xtdata.get_full_tick(['600000.SH', 'SZ', 'nope'])
    assert set(ticks) == {'600000.SH', '000001.SZ', '300750.SZ', '123001.SZ', '399001.SZ'}
    tick = ticks['600000.SH']
    assert (tick['lastPrice'], tick['volume'], tick['pvolume'], tick['askPrice'][0]) == (10.1, 5, 500, 10.2)
    assert tick['time'] == 1754445600000 and ticks['000001.SZ']['lastPrice'] == 0.0


def test_ticks_are_pushed(terminal, xtdata):
    single, whole = queue.Queue(), queue.Queue()
    first = xtdata.subscribe_quote('600000.SH', 'tick', callback=single.put)
    assert first > 0 and xtdata.subscribe_whole_quote(['SZ', '600000.SH'], callback=whole.put) > first
    terminal.push('600000.SH', 10.1, 500)
    assert single.get(timeout=WAIT)['600000.SH'][0]['lastPrice'] == 10.1
    assert whole.get(timeout=WAIT)['600000.SH']['lastPrice'] == 10.1
    xtdata.unsubscribe_quote(first)
    terminal.push('600000.SH', 10.2)
    assert whole.get(timeout=WAIT)['600000.SH']['lastPrice'] == 10.2 and single.empty()
    with pytest.raises(TypeError):
        xtdata.unsubscribe_quote(['600000.SH'])


def test_running_bars_are_seen_while_subscribed(terminal, xtdata):
    pushed = queue.Queue()
    xtdata.subscribe_quote('600000.SH', '1m', callback=pushed.put)
    terminal.push('600000.SH', 10.1, 500)
    terminal.push('600000.SH', 10.0, 200)
    assert [pushed.get(timeout=WAIT)['600000.SH'][0]['volume'] for _ in range(2)] == [5, 7]
    frame = xtdata.get_market_data_ex([], ['600000.SH'], '1m')['600000.SH']
    assert list(frame.index) == ['20250806100100'] and frame['high'].iloc[0] == 10.1
    assert len(xtdata.get_market_data_ex([], ['600000.SH'], '1d')['600000.SH']) == 0


def test_tick_history(terminal, xtdata):
    with pytest.raises(KeyError):
        xtdata.get_market_data_ex([], ['600000.SH'], 'tick')
    xtdata.subscribe_quote('600000.SH', 'tick')
    terminal.push('600000.SH', 10.1, 500)
    frame = xtdata.get_market_data_ex(['lastPrice'], ['600000.SH'], 'tick')['600000.SH']
    assert frame['lastPrice'].tolist() == [10.1]


def test_subscriptions_fail(terminal, xtdata):
    assert xtdata.subscribe_quote('1.SH', 'tick') == -1
    terminal.faults.fail_quotes(2)
    assert xtdata.subscribe_quote('600000.SH', 'tick') == xtdata.subscribe_whole_quote(['SH']) == -1
    terminal.market.subscription_limit = 1
    assert xtdata.subscribe_quote('600000.SH', 'tick') > 0 > xtdata.subscribe_quote('000001.SZ', 'tick')


def test_a_dropped_connection_loses_subscriptions(terminal, xtdata):
    ticks = queue.Queue()
    xtdata.subscribe_quote('600000.SH', 'tick', callback=ticks.put)
    client = xtdata.get_client()
    terminal.drop_data()
    assert not client.is_connected() and terminal.market.subscriptions() == []
    assert xtdata.get_client() is not client  # the vendor's layer reconnects by itself
    terminal.push('600000.SH', 10.1)
    xtdata.subscribe_quote('600000.SH', 'tick', callback=ticks.put)
    terminal.push('600000.SH', 10.2)
    assert ticks.get(timeout=WAIT)['600000.SH'][0]['lastPrice'] == 10.2 and ticks.empty()


def test_no_data_without_a_terminal(terminal, xtdata):
    terminal.stop()
    with pytest.raises(Exception, match='xtquant'):
        xtdata.get_full_tick(['600000.SH'])
    terminal.start()
    assert xtdata.get_full_tick(['600000.SH'])


def test_downloads_report_progress(terminal, xtdata):
    steps = []
    xtdata.download_history_data2(['600000.SH', '000001.SZ'], '1d', '20250801', callback=steps.append)
    assert [(step['finished'], step['total'], step['stockcode']) for step in steps] \
        == [(1, 2, '600000.SH'), (2, 2, '000001.SZ')]


def test_downloads_fail(terminal, xtdata):
    terminal.faults.fail_download('没有权限')
    with pytest.raises(Exception, match='没有权限'):
        xtdata.download_history_data2(['600000.SH'], '1d')


def test_the_vendors_second_download_path(terminal, xtdata):
    terminal.market.download_version = 1
    xtdata.reconnect()
    xtdata.download_history_data('600000.SH', '1d')
    assert len(xtdata.get_market_data_ex([], ['600000.SH'], '1d', count=3)['600000.SH']) == 3
    terminal.market.download_version = None
    xtdata.reconnect()


@pytest.mark.parametrize('call', ['download_history_data', 'download_history_data2'])
def test_a_download_that_never_progresses(terminal, xtdata, call):
    """Only the end of the connection ends it."""
    terminal.faults.stall_download()
    outcome, codes = queue.Queue(), ['600000.SH'] if call.endswith('2') else '600000.SH'

    def run():
        try:
            outcome.put(getattr(xtdata, call)(codes, '1d'))
        except Exception as error:
            outcome.put(error)
    thread = threading.Thread(target=run, name='download', daemon=True)
    thread.start()
    name = 'download2' if call.endswith('2') else 'download'
    terminal.wait_called(name)
    assert outcome.empty()
    terminal.drop_data()
    assert isinstance(outcome.get(timeout=WAIT), Exception)
    thread.join(WAIT)


def test_a_hanging_data_call(terminal, xtdata):
    terminal.faults.hang('detail')
    answer = queue.Queue()
    thread = threading.Thread(target=lambda: answer.put(xtdata.get_instrument_detail('600000.SH')), name='detail',
                              daemon=True)
    thread.start()
    terminal.wait_parked(['detail'])
    assert answer.empty()
    terminal.faults.release()
    assert answer.get(timeout=WAIT)['InstrumentID'] == '600000'
    thread.join(WAIT)


def test_data_calls_refuse_wrong_types(terminal, xtdata):
    for call in (lambda: xtdata.get_instrument_detail(600000), lambda: xtdata.get_full_tick('600000.SH'),
                 lambda: xtdata.get_market_data_ex([], [None], '1d'),
                 lambda: xtdata.get_market_data_ex([], ['600000.SH'], '1d', None)):
        with pytest.raises(TypeError):
            call()


def test_no_thread_is_left(terminal):
    before = set(threading.enumerate())
    from xtquant import xtdata
    trading = Trading().connect()
    xtdata.enable_hello = False
    xtdata.subscribe_quote('600000.SH', 'tick')
    trading.buy()
    trading.close()
    xtdata.disconnect()
    assert set(threading.enumerate()) <= before and terminal.links() == []


# -- in a process of its own ----------------------------------------------------------------------------------
@pytest.fixture
def process():
    with TerminalProcess(NOW, path=USERDATA) as process:
        populate(process.client)
        native.install(process.gateway)
        yield process
    native.install(new_terminal())


def test_the_vendors_layer_reaches_another_process(process):
    trading = Trading().connect()
    order_id = trading.buy(price=10.0, remark='远')
    assert trading.heard.until('stock_trade').order_id == order_id
    assert [entry['remark'] for entry in process.client.exchange.accepted] == ['远']
    assert trading.of('query_stock_asset').cash == 998999.99 - 5
    process.client.disconnect()
    assert trading.heard.until('disconnected') is None
    trading.close()


def test_data_reach_another_process(process):
    from xtquant import xtdata
    xtdata.enable_hello = False
    ticks = queue.Queue()
    xtdata.download_history_data2(['600000.SH'], '1m', '20250805')
    assert len(xtdata.get_market_data_ex([], ['600000.SH'], '1m')['600000.SH']) == 241
    xtdata.subscribe_whole_quote(['SH'], callback=ticks.put)
    process.client.push('600000.SH', 10.1, 500)
    assert ticks.get(timeout=WAIT)['600000.SH']['lastPrice'] == 10.1
    assert 'InstrumentName' in xtdata.get_instrument_detail('600000.SH')
    xtdata.disconnect()


def test_controls_reach_another_process(process):
    client = process.client
    client.set_now('2025-08-06 10:30:00')
    client.exchange.cancel_mode = 'held'
    client.faults.hang('asset', times=1)
    assert client.exchange.cancel_mode == 'held' and client.running is True and client.faults.parked() == []
    with pytest.raises(TerminalError, match='AttributeError'):
        client.faults.push_twise = True
    with pytest.raises(TerminalError, match='KeyError'):
        client.push('nope', 1.0)


CLIENT = '''
import sys
from tests.terminal.native import install
from tests.terminal.remote import Gateway
install(Gateway(('127.0.0.1', int(sys.argv[1]))))
from xtquant.xttrader import XtQuantTrader, XtQuantTraderCallback
from xtquant.xttype import StockAccount
trader = XtQuantTrader(sys.argv[3], 123, XtQuantTraderCallback())
trader.start()
account = StockAccount(sys.argv[2])
print('connected', trader.connect(), trader.subscribe(account))
sys.stdout.flush()
for line in sys.stdin:
    print('order', trader.order_stock(account, '600000.SH', 23, 100, 11, 9.9, 's', line.strip()))
    sys.stdout.flush()
'''


def start_client(process):
    environment = dict(os.environ, PYTHONIOENCODING='utf-8')
    client = LineProcess([sys.executable, '-c', CLIENT, str(process.address[1]), ACCOUNT, USERDATA], environment, ROOT)
    assert client.line_with('connected (.*)').group(1) == '0 0'
    return client


def test_orders_outlive_a_killed_client(process):
    with start_client(process) as client:
        client.send('first')
        first = int(client.line_with(r'order (\d+)').group(1))
        process.client.faults.accept_late()
        client.send('second')
        process.client.wait_parked(['order'])
        client._process.kill()
        client.wait()
    process.client.wait_links(0)
    process.client.faults.release()
    with start_client(process) as client:  # with the same session id
        client.send('third')
        client.line_with(r'order (\d+)')
    assert [entry['remark'] for entry in process.client.exchange.accepted] == ['first', 'second', 'third']
    assert process.client.exchange.order_rows(ACCOUNT)[0]['order_id'] == first


def test_the_terminal_goes_away_for_good():
    process = TerminalProcess(NOW)
    populate(process.client)
    native.install(process.gateway)
    trading = Trading().connect()
    process.close()
    assert trading.heard.until('disconnected') is None
    assert trading.buy() == -1
    trading.close()
    again = Trading()
    assert again.ask('connect') == -1
    again.close()
    native.install(new_terminal())


def test_the_toolkits_own_command_line_runs_on_it(process):
    """Without an error of its own: the command line answers."""
    command = [sys.executable, '-m', 'tests.terminal.serve', '127.0.0.1:%d' % process.address[1], '--version']
    with LineProcess(command, env=dict(os.environ, PYTHONIOENCODING='utf-8'), cwd=ROOT) as server:
        assert bullet_qmt.__version__ in server.line()


# -- bullet_qmt beside a terminal that is off --------------------------------------------------------------------------
@pytest.mark.parametrize('fault', ['off', 'code', 'subscribe'])
def test_two_hours_beside_a_terminal_that_is_off_cost_one_object(fault):
    terminal = new_terminal()
    native.install(terminal)
    if fault == 'off':
        terminal.stop()
    elif fault == 'code':
        terminal.faults.connect_code = -1
    else:
        terminal.faults.fail_subscribe(times=10 ** 6)
    vendor, pauses = bullet_qmt.import_vendor(), Hours(terminal.clock, 20)
    spec = bullet_qmt.AccountSpec('main', ACCOUNT, 'stock', userdata_folder(), None, True)
    native.made.clear()
    with nothing_left():
        broker = bullet_qmt.QmtBroker(vendor, spec, terminal.clock, None, lambda: 1.0, pauses)
        broker.start()
        assert pauses.done.wait(60)
        early = len(threading.enumerate()), descriptors(), len(terminal.links())
        pauses.done.clear()
        pauses.attempts, began = 300, terminal.clock.now()
        broker.keeper._wake.set()  # the pause that it stands in
        assert pauses.done.wait(60) and (terminal.clock.now() - began).total_seconds() > 7200
        assert (len(threading.enumerate()), descriptors(), len(terminal.links())) == early
        assert (native.made['clients'], native.made['started'], native.made['stopped']) == (1, 1, 0)
        assert native.made['connects'] >= 299 and broker.health()['traders'] == 1
        assert os.listdir(spec.data_path).count('down_queue_%d' % bullet_qmt.qmt_session_id(spec)) == 1
        broker.close()
        assert native.made['stopped'] == 1


def test_a_path_that_is_not_there_is_not_made_by_the_vendor(tmp_path):
    terminal = new_terminal()
    native.install(terminal)
    vendor, path = bullet_qmt.import_vendor(), str(tmp_path / 'userdata_min')
    native.made.clear()
    broker = bullet_qmt.QmtBroker(vendor, bullet_qmt.AccountSpec('main', ACCOUNT, 'stock', path, None, True),
                                  terminal.clock, None, lambda: 1.0, Hours(terminal.clock, 5))
    broker.start()
    assert becomes(lambda: broker.health()['reason'] == 'missing')
    broker.close()
    assert os.listdir(str(tmp_path)) == [] and not native.made
