"""What every adapter must keep: the shapes, units and errors of DataAdapter and BrokerAdapter.

A new adapter joins by an entry in ADAPTERS: a context manager that yields a Case.
"""
import contextlib
import importlib.util
import math
import os
import queue
import threading
from datetime import date, datetime

import pytest

import bullet_qmt as bq

from .base import server_settings
from .fakes import FakeClock
from .resources import becomes, nothing_left

NOW = datetime(2019, 6, 12, 10, 30)
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')


class Case:
    """A backend, its clock, and securities: `code` and `other` trade at NOW, `missing` it does not have.

    order_fees: whether the broker shows fees with its orders; some only do with trades.
    """

    def __init__(self, backend, clock, code, other, missing, order_fees=True):
        self.backend, self.clock, self.code, self.other, self.missing = backend, clock, code, other, missing
        self.order_fees = order_fees
        self.data, self.broker = backend.data, next(iter(backend.brokers.values()))

    def price(self, code=None):
        return self.data.quote(code or self.code)

    def history(self, **payload):
        return self.data.history(bq.parse_history(dict({'security': self.code}, **payload), self.clock.now()))

    def request(self, **changes):
        tick = self.price()
        return bq.OrderRequest(**dict(dict(security=self.code, side='BUY', amount=100, style='limit',
                                           price=tick.low_limit, tag='tag-1'), **changes))

    def buy(self, tag='tag-1', amount=100):
        """Id of a purchase that fills."""
        tick = self.price()
        bound = bq.protect_price(self.code, 'BUY', tick.last_price, tick.high_limit, tick.low_limit)
        return self.broker.submit(self.request(style='market', price=None, protect_price=bound, tag=tag,
                                               amount=amount), 10.0)

    def refuses(self, request):
        """Whether the broker refuses it, at once or by the order's final status."""
        try:
            return self.final(self.broker.submit(request, 10.0)).status == 'rejected'
        except bq.OrderRejected:
            return True

    def final(self, order_id):
        assert becomes(lambda: self.broker.order(order_id).final)
        return self.broker.order(order_id)


@contextlib.contextmanager
def stub(code, other, missing, **changes):
    clock = FakeClock(NOW)
    backend = bq.ADAPTERS['stub'](server_settings(**changes), clock)
    try:
        yield Case(backend, clock, code, other, missing)
    finally:
        backend.close()


class Prices:
    """Moves the prices of a stand-in terminal from a thread of its own."""

    def __init__(self, terminal):
        self._terminal, self._ending = terminal, threading.Event()
        self._thread = threading.Thread(target=self._run, name='prices', daemon=True)

    def _run(self):
        while not self._ending.wait(0.02):
            self.move()

    def move(self):
        for code, price in (('600000.SH', 10.0), ('300750.SZ', 260.0)):
            self._terminal.push(code, price, 100)

    def __enter__(self):
        self.move()
        self._thread.start()

    def __exit__(self, *exc_info):
        self._ending.set()
        self._thread.join()


@contextlib.contextmanager
def qmt():
    """The qmt adapter on a stand-in terminal, connected."""
    from .terminal import native, scene
    from .terminal.terminal import Terminal
    clock = FakeClock(NOW)
    terminal = scene.populate(Terminal(clock, first_day=date(2018, 1, 2)))
    native.install(terminal)
    account = bq.AccountSpec('main', scene.SECOND_ACCOUNT, 'stock', scene.userdata_folder(), None, True)
    settings = server_settings(accounts=(account,), server_type='qmt').replace(auto_download=True, quote_max_age=15.0)
    timing, bq.QmtTiming.FIELDS = bq.QmtTiming.FIELDS, tuple(
        (name, 0.1 if name == 'warm_up_s' else value) for name, value in bq.QmtTiming.FIELDS)
    backend = bq.ADAPTERS['qmt'](settings, clock)
    try:
        with Prices(terminal):
            case = Case(backend, clock, '600000.XSHG', '300750.XSHE', '999999.XSHE', order_fees=False)
            assert becomes(lambda: is_ready(case)), backend.health()
            yield case
    finally:
        backend.close()
        native.uninstall()
        bq.QmtTiming.FIELDS = timing


def is_ready(case):
    try:
        return case.broker.orders() == case.broker.positions() == [] and case.price().open is not None
    except bq.QmtUnavailable:
        return False


ADAPTERS = {
    'stub synthetic': lambda: stub('600519.XSHG', '000001.XSHE', '999999.XSHE'),
    'stub csv': lambda: stub('600519.XSHG', '000938.XSHE', '000001.XSHE', stub_data=DATA),
}


if importlib.util.find_spec('xtquant') is not None and importlib.util.find_spec('pandas') is not None:
    ADAPTERS['qmt'] = qmt


@pytest.fixture(params=sorted(ADAPTERS))
def case(request):
    with ADAPTERS[request.param]() as case:
        yield case


@pytest.mark.parametrize('name', sorted(ADAPTERS))
def test_close_ends_every_thread(name):
    with nothing_left(), ADAPTERS[name]() as case:
        case.data.set_tick_listener(lambda tick: None)
        case.data.subscribe([case.code])
        case.buy()


def test_health_names_the_backend(case):
    assert isinstance(case.backend.health()['backend_type'], str)


# -- data ----------------------------------------------------------------------------------------------------
def test_quote_is_plausible(case):
    tick = case.price()
    assert tick.sid == case.code and tick.dt <= NOW and tick.paused is False
    assert tick.low <= tick.last_price <= tick.high and tick.low <= tick.open <= tick.high
    assert tick.low_limit <= tick.low and tick.high <= tick.high_limit
    assert tick.low_limit < tick.pre_close < tick.high_limit
    assert tick.volume >= 0 and tick.money >= 0 and tick.volume == int(tick.volume)


def test_live_current_has_what_a_strategy_asks(case):
    row = case.data.live_current(case.code)
    assert {'last_price', 'high_limit', 'low_limit', 'paused', 'name', 'day_open'} <= set(row)
    assert row['low_limit'] <= row['last_price'] <= row['high_limit']


@pytest.mark.parametrize('ask', ['quote', 'live_current', 'security_info'])
def test_an_unknown_security_is_an_error_and_never_an_empty_answer(case, ask):
    with pytest.raises((bq.SecurityNotFound, bq.DataUnavailable)):
        getattr(case.data, ask)(case.missing)
    with pytest.raises((bq.SecurityNotFound, bq.DataUnavailable)):
        case.history(security=case.missing, count=3)


def test_trade_days_are_sorted_midnights_with_both_ends(case):
    days = case.data.trade_days()
    assert days == sorted(set(days)) and all(day % bq.DAY_MS == 0 for day in days)
    found = case.data.trade_days(bq.to_ms(datetime(2019, 5, 20)), bq.to_ms(datetime(2019, 5, 27)))
    assert [bq.from_ms(day).day for day in found] == [20, 21, 22, 23, 24, 27]
    assert case.data.trade_days(None, found[-1], 2) == found[-2:]
    assert case.data.trade_days(found[-1], found[0]) == []


def test_daily_bars(case):
    table = case.history(end='2019-05-24', count=5, fields=list(bq.HISTORY_FIELDS), fq=None)
    assert table.index == ['index'] and table.types['index'] == 'time' and table.fields == list(bq.HISTORY_FIELDS)
    assert [moment.date() for moment in table['index']] == [date(2019, 5, day) for day in range(20, 25)]
    for row in table.rows():
        assert row['low'] <= min(row['open'], row['close']) <= max(row['open'], row['close']) <= row['high']
        assert row['low_limit'] <= row['low'] and row['high'] <= row['high_limit'] and row['paused'] == 0
        assert row['volume'] >= 0 and row['volume'] == int(row['volume']) and row['factor'] == 1.0
        assert row['low'] - 0.01 <= row['money'] / row['volume'] <= row['high'] + 0.01, 'yuan and shares'
    rows = table.rows()
    assert all(after['pre_close'] == before['close'] for before, after in zip(rows, rows[1:])), 'no ex-date here'


def test_columns_come_in_the_order_asked_for(case):
    assert case.history(count=2, fields=['close', 'open']).fields == ['close', 'open']


def test_many_securities_wide_and_long(case):
    codes = [case.code, case.other]
    wide = case.history(security=codes, end='2019-06-11', count=3, fields=['open', 'close'])
    assert wide.wide == [(field, code) for field in ('open', 'close') for code in codes] and len(wide) == 3
    long = case.history(security=codes, end='2019-06-11', count=3, fields=['open', 'close'], panel=False)
    assert list(long.columns) == ['time', 'code', 'open', 'close'] and long.index == []
    assert long['code'] == [case.code] * 3 + [case.other] * 3
    assert long['close'][:3] == wide[repr(('close', case.code))]


def test_history_ends_now_whatever_is_asked(case):
    last = case.history(end='2030-01-01', count=1)['index'][-1]
    assert last.date() <= NOW.date()


def test_adjusted_prices_end_at_the_unadjusted(case):
    kwargs = dict(start='2019-01-02', end='2019-06-11', fields=['close', 'factor'])
    plain, pre = case.history(fq=None, **kwargs), case.history(fq='pre', pre_factor_ref_date='2019-06-11', **kwargs)
    assert len(plain) == len(pre) > 50
    assert plain['close'][-1] == pre['close'][-1] and pre['factor'][-1] == 1.0
    assert all(abs(adjusted - close * factor) <= 0.00501 for close, adjusted, factor in zip(
        plain['close'], pre['close'], pre['factor']))


def test_no_bars_is_an_empty_table_with_its_columns(case):
    table = case.history(start='2019-06-08', end='2019-06-09')
    assert len(table) == 0 and table.fields == list(bq.DEFAULT_FIELDS)


@pytest.mark.parametrize('span, refused', [
    (dict(start='2019-06-11', end='2019-06-10'), True), (dict(start='2019-06-11 10:00', end='2019-06-11 09:35'), False),
    (dict(start='2019-06-11 10:00', end='2019-06-11 09:35', frequency='5m'), True),
    (dict(start='2019-06-11 10:00', end='2019-06-11', frequency='1m'), True), (dict(end='2014-12-31'), True),
    (dict(start='2030-01-01'), False), (dict(start='2030-01-01', end='2030-01-02'), False),
    (dict(count=1, end='2014-12-31'), False), (dict(start='2019-06-10', end='2019-06-10'), False)])
def test_a_span_that_ends_before_it_starts_is_no_empty_answer(case, span, refused):
    if not refused:
        case.history(**span)
        return
    with pytest.raises(bq.BadRequest) as caught:
        case.history(**span)
    assert '晚于' in caught.value.message and 'start_date' in caught.value.hint


def test_security_info(case):
    info = case.data.security_info(case.code)
    assert {'code', 'display_name', 'name', 'type', 'subtype', 'qmt_code', 'start_date', 'end_date',
            'parent'} <= set(info)
    assert info['code'] == case.code and info['qmt_code'] == bq.qmt_code(case.code) and info['type'] == 'stock'
    assert date(1990, 1, 1) <= datetime.strptime(info['start_date'], '%Y-%m-%d').date() < NOW.date()
    assert datetime.strptime(info['end_date'], '%Y-%m-%d').date() > NOW.date()


def test_all_securities(case):
    table = case.data.all_securities(['stock'], NOW.date())
    assert table.index == ['code'] and case.code in table['code'] and set(table['type']) == {'stock'}
    assert all(start.date() <= NOW.date() <= end.date() for start, end in zip(table['start_date'], table['end_date']))
    assert case.code not in case.data.all_securities(['stock'], date(1985, 1, 1))['code']


def test_split_dividend_rows(case):
    for event in case.data.split_dividend(case.code, 0, bq.to_ms(NOW)):
        assert {'security', 'date', 'security_type', 'scale_factor', 'bonus_pre_tax', 'per_base'} <= set(event)
        assert event['security'] == case.code and len(event['date']) == 10 and event['scale_factor'] >= 1.0


def test_ensure_cache_answers(case):
    query = bq.parse_history({'security': case.code, 'count': 3, 'panel': False}, NOW)
    assert isinstance(case.data.ensure_cache(query), dict)


def test_ticks_come_until_unsubscribed(case):
    ticks = queue.Queue()
    case.data.set_tick_listener(ticks.put)
    case.data.subscribe([case.code, case.other])
    assert {ticks.get(timeout=20).sid for _ in range(6)} == {case.code, case.other}
    case.data.unsubscribe([case.other])
    for _ in range(4):  # those on the way may still come
        ticks.get(timeout=20)
    assert {ticks.get(timeout=20).sid for _ in range(4)} == {case.code}
    case.data.unsubscribe([case.code])


def test_subscribing_to_what_does_not_exist_is_an_error(case):
    with pytest.raises((bq.SecurityNotFound, bq.DataUnavailable)):
        case.data.subscribe([case.missing])


# -- broker --------------------------------------------------------------------------------------------------
def test_account_adds_up(case):
    case.final(case.buy())
    account = case.broker.account()
    assert account.account_id == case.broker.spec.account_id and account.account_type == 'stock'
    value = sum(position.market_value for position in case.broker.positions())
    assert account.market_value == pytest.approx(value)
    assert account.total_value == pytest.approx(account.available_cash + account.frozen_cash + value)
    assert 0 <= account.transferable_cash <= account.available_cash


def test_a_filled_order_shows_everywhere(case):
    order = case.final(case.buy())
    assert isinstance(order.order_id, str) and order.order_id
    assert (order.security, order.side, order.status) == (case.code, 'BUY', 'filled')
    assert order.amount == order.filled == 100
    assert order.order_remark == 'tag-1' and order.time == NOW and order.avg_price > 0
    assert order.deal_balance == pytest.approx(order.avg_price * 100) and order.tax == 0
    assert order.commission > 0 or not case.order_fees
    trades = [trade for trade in case.broker.trades() if trade.order_id == order.order_id]
    assert sum(trade.amount for trade in trades) == 100 and len({trade.trade_id for trade in trades}) == len(trades)
    assert sum(trade.deal_balance for trade in trades) == pytest.approx(order.deal_balance)
    position, = [item for item in case.broker.positions() if item.security == case.code]
    assert position.amount == 100 and position.closeable_amount == 0, 'bought today'
    assert position.market_value == pytest.approx(position.last_price * 100) and position.avg_cost >= order.avg_price


def test_a_resting_order_freezes_cash_and_gives_it_back(case):
    before = case.broker.account().available_cash
    order_id = case.broker.submit(case.request(), 10.0)
    order = case.broker.order(order_id)
    assert not order.final and order.order_price == case.price().low_limit and order.filled == 0
    frozen = case.broker.account().frozen_cash
    assert frozen >= order.order_price * 100 and case.broker.account().available_cash == pytest.approx(before - frozen)
    case.broker.cancel(order_id, 10.0)
    assert case.final(order_id).status == 'canceled'
    assert case.broker.account().available_cash == before and case.broker.account().frozen_cash == 0


def test_cancelling_what_is_final_changes_nothing(case):
    order = case.final(case.buy())
    with contextlib.suppress(bq.OrderRejected, bq.OrderNotFound):
        case.broker.cancel(order.order_id, 10.0)
    assert case.broker.order(order.order_id) == order


def test_an_order_is_found_by_its_tag(case):
    first, second = case.broker.submit(case.request(tag='t1'), 10.0), case.broker.submit(case.request(tag='t2'), 10.0)
    assert first != second
    assert case.broker.find('t2').order_id == second and case.broker.find('t1').order_id == first
    assert case.broker.find('t3') is None


def test_an_unknown_order(case):
    assert case.broker.order('no such id') is None
    with pytest.raises((bq.OrderNotFound, bq.OrderRejected)):
        case.broker.cancel('no such id', 10.0)


@pytest.mark.parametrize('changes', [
    {'side': 'SELL'}, {'amount': 10 ** 8}, {'amount': 1}, {'price': 0.0}, {'price': math.nan}, {'price': math.inf},
    {'price': 1e9}, {'amount': -100}, {'amount': 100.5}, {'side': 'HOLD'}, {'style': 'market', 'price': None}])
def test_what_the_broker_certainly_refuses_is_rejected_and_costs_nothing(case, changes):
    before = case.broker.account()
    assert case.refuses(case.request(**changes))
    assert case.broker.account() == before and not [order for order in case.broker.orders() if not order.final]


def test_orders_are_copies(case):
    order_id = case.broker.submit(case.request(), 10.0)
    case.broker.orders()[0].status = 'filled'
    assert case.broker.order(order_id).status != 'filled'


def test_listeners_hear_every_change_in_its_order(case):
    heard = queue.Queue()
    case.broker.set_listener(lambda kind, record: heard.put((kind, record)))
    order_id, events = case.buy(), []
    while not events or not (events[-1][0] == 'order' and events[-1][1].final):
        events.append(heard.get(timeout=20))
    assert {kind for kind, _ in events} == {'order', 'trade'}
    assert {record.order_id for _, record in events} == {order_id}
    orders = [record for kind, record in events if kind == 'order']
    assert [order.filled for order in orders] == sorted(order.filled for order in orders)
    assert [order.final for order in orders] == [False] * (len(orders) - 1) + [True]
    assert sum(record.amount for kind, record in events if kind == 'trade') == orders[-1].filled


def test_a_listener_may_ask_the_broker(case):
    seen = queue.Queue()
    case.broker.set_listener(lambda kind, record: seen.put(case.broker.order(record.order_id)))
    order_id = case.buy()
    assert seen.get(timeout=20).order_id == order_id


def test_a_listener_that_fails_stops_nothing(case):
    def fail(kind, record):
        raise ValueError('of the listener')
    case.broker.set_listener(fail)
    assert case.final(case.buy()).status == 'filled'
    assert case.final(case.buy('again')).status == 'filled'
