"""The trading half of the qmt adapter, over a small vendor of the tests' own with the vendor's method names."""
import contextlib
import errno
import itertools
import ntpath
import os
import queue
import threading
from concurrent.futures import Future
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

import bullet_qmt as bq
from tests.fakes import FakeClock, Hours
from tests.processes import named
from tests.resources import becomes
from tests.terminal.scene import userdata_folder

NOW = datetime(2024, 1, 5, 10, 0)
EPOCH_10H = 1704420000  # 2024-01-05 10:00 in Beijing
TAG = 'bq0123456789abcdef012345'
SPEC = bq.AccountSpec('main', '55001234', 'stock', userdata_folder(), None, True)
PATIENCE_S = 20


# -- the vendor ------------------------------------------------------------------------------------------------------
class Callback:
    """The vendor's base class: every method there, doing nothing."""

    def on_connected(self):
        pass

    on_disconnected = on_connected

    def on_stock_order(self, record):
        pass

    on_stock_trade = on_order_error = on_cancel_error = on_account_status = on_stock_order


class StockAccount:
    def __new__(cls, account_id, account_type='STOCK'):
        return object.__new__(cls) if isinstance(account_id, str) and account_id else 'not a text'

    def __init__(self, account_id, account_type='STOCK'):
        self.account_id, self.account_type = account_id, {'STOCK': 2, 'CREDIT': 3}[account_type]


class Terminal:
    """What all traders see. answers: method -> value or function; hung: methods whose answer never comes."""

    def __init__(self):
        self.traders, self.calls, self.answers, self.hung = [], [], {}, set()
        self.stuck = set()  # methods that stand still in native code until `freed`
        self.freed, self.waiting = threading.Event(), threading.Event()
        self.asset = record(cash=1000.0, frozen_cash=0.0, market_value=500.0, total_asset=1500.0, fetch_balance=900.0)
        self.rows = {'positions': [], 'orders': [], 'trades': []}

    @property
    def trader(self):
        return self.traders[-1]

    @property
    def callback(self):
        return self.trader.callback

    def vendor(self):
        class Trader(FakeTrader):
            terminal = self

        return SimpleNamespace(xttype=SimpleNamespace(StockAccount=StockAccount),
                               xttrader=SimpleNamespace(XtQuantTrader=Trader, XtQuantTraderCallback=Callback))


class Loop:
    closed = False

    def close(self):
        self.closed = True


class FakeTrader:
    terminal = None

    def __init__(self, path, session, callback=None):
        self.path, self.session, self.callback = path, session, callback
        self.cbs, self.numbers, self.stopped, self.loop = {}, itertools.count(1), 0, Loop()
        self.relaxed, self.starts, self.connects, self.subscribes = False, 0, 0, 0
        self.terminal.traders.append(self)

    def set_relaxed_response_order_enabled(self, enabled):
        self.relaxed = enabled

    def start(self):
        self.starts += 1
        self._answer('start', None)

    def stop(self):
        self.stopped += 1
        self._answer('stop', None)

    def connect(self):
        self.connects += 1
        return self._answer('connect', 0)

    def subscribe(self, account):
        self.subscribes += 1
        return self._answer('subscribe', 0)

    def unsubscribe(self, account):
        return self._answer('unsubscribe', 0)

    def order_stock(self, account, *args):
        self.terminal.calls.append(args)
        return self._answer('order_stock', 77, *args)

    def cancel_order_stock(self, account, order_id):
        self.terminal.calls.append(order_id)
        return self._answer('cancel_order_stock', 0, order_id)

    def query_stock_asset(self, account):
        return self._answer('query_stock_asset', self.terminal.asset)

    def query_stock_positions(self, account):
        return self._answer('query_stock_positions', self.terminal.rows['positions'])

    def query_stock_orders(self, account):
        return self._answer('query_stock_orders', self.terminal.rows['orders'])

    def query_stock_order(self, account, order_id):
        rows = [row for row in self.terminal.rows['orders'] or () if row.order_id == order_id]
        return self._answer('query_stock_order', rows[0] if rows else None)

    def query_stock_trades(self, account):
        return self._answer('query_stock_trades', self.terminal.rows['trades'])

    def _answer(self, name, value, *args):
        if name in self.terminal.hung:
            future = Future()
            self.cbs[next(self.numbers)] = future.set_result
            self.terminal.waiting.set()
            return future.result().result
        if name in self.terminal.stuck:
            self.terminal.freed.wait(PATIENCE_S)
        value = self.terminal.answers.get(name, value)
        return value(*args) if callable(value) else value


def record(**fields):
    return SimpleNamespace(account_id='55001234', **fields)


def order_record(order_id=77, status=50, filled=0, **changes):
    fields = dict(stock_code='600000.SH', order_id=order_id, order_sysid='S1', order_time=EPOCH_10H, order_type=23,
                  order_volume=1000, price_type=50, price=10.5, traded_volume=filled, traded_price=10.4 * (filled > 0),
                  order_status=status, status_msg='', strategy_name='s', order_remark=TAG)
    return record(**dict(fields, **changes))


def position_record(**changes):
    fields = dict(stock_code='000001.SZ', volume=300, can_use_volume=200, frozen_volume=100, open_price=9.0,
                  avg_price=9.5, market_value=3000.0, last_price=10.0, instrument_name='平安银行')
    return record(**dict(fields, **changes))


def trade_record(**changes):
    fields = dict(stock_code='600000.SH', order_type=24, traded_id='T1', traded_time=EPOCH_10H, traded_price=10.0,
                  traded_volume=100, traded_amount=1000.0, order_id=77, order_remark=TAG, commission=5.0)
    return record(**dict(fields, **changes))


def error_record(**changes):
    fields = dict(order_id=-1, error_id=-61, error_msg='资金不足', order_remark=TAG, seq=1)
    return record(**dict(fields, **changes))


def without(item, *names):
    for name in names:
        delattr(item, name)
    return item


def old_spelling(kind, item):
    names = dict(bq._QMT_FIELDS[kind])
    return SimpleNamespace(**{names[name]: value for name, value in vars(item).items() if name in names})


# -- driving the keeper ----------------------------------------------------------------------------------------------
class Pauses:
    """Stands in for waiting: the keeper stops in each pause until the test lets it go on or it is woken."""

    def __init__(self):
        self._changed, self._event, self._granted, self.seen = threading.Condition(), None, False, []

    def __call__(self, event, seconds):
        with self._changed:
            self._event = event
            self.seen.append(seconds)
            self._changed.notify_all()
        assert event.wait(PATIENCE_S)
        with self._changed:
            self._event = None
            if self._granted:
                self._granted = False
                event.clear()

    def reached(self, count):
        """Waits until the keeper is in its `count`th pause; how long that one would have been."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count and self._event, PATIENCE_S), self.seen
            return self.seen[-1]

    def go(self):
        """Ends the present pause and waits for the next one; its length."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._event, PATIENCE_S)
            count = len(self.seen)
            self._granted = True
            self._event.set()
        return self.reached(count + 1)


class Bench:
    """A broker on a terminal of the tests' own. It is up when made, warm unless told otherwise."""

    def __init__(self, terminal, clock, **timing):
        self.terminal, self.clock, self.pauses, self.told = terminal, clock, Pauses(), queue.Queue()
        self.timing = bq.QmtTiming(**dict({'error_s': 0.05}, **timing))
        self.broker = bq.QmtBroker(terminal.vendor(), SPEC, clock, self.timing, lambda: 1.0, self.pauses)
        self.broker.set_listener(lambda kind, item: self.told.put((kind, item)))
        self.keeper = self.broker.keeper

    def next_told(self):
        return self.told.get(timeout=PATIENCE_S)

    def flush(self):
        """All told until now: what is told comes in the order in which it was pushed."""
        self.terminal.callback.on_stock_order(order_record(order_id=999999, order_remark='fence'))
        items = []
        while not items or items[-1][1].order_id != '999999':
            items.append(self.next_told())
        self.terminal.callback.on_stock_order(order_record(order_id=999999, status=57, order_remark='fence'))
        assert self.next_told()[1].status == 'rejected'
        self.broker._book._orders.pop('999999')
        self.broker._book._told.pop('999999')
        return items[:-1]


@contextlib.contextmanager
def running(terminal=None, warm=True, clock=None, **timing):
    bench = Bench(terminal or Terminal(), clock or FakeClock(NOW), **timing)
    before = set(threading.enumerate())
    bench.broker.start()
    try:
        if warm is not None:
            assert bench.pauses.reached(1) == bench.timing.warm_up_s
        if warm:
            assert bench.pauses.go() == bench.timing.probe_s
        yield bench
    finally:
        bench.terminal.freed.set()
        bench.broker.close()
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()] == []


def request(**changes):
    return bq.OrderRequest(**dict(dict(security='600000.XSHG', side='BUY', amount=1000, style='limit', price=10.5,
                                       tag=TAG, strategy_name='策略'), **changes))


def unavailable(function, *args):
    with pytest.raises(bq.QmtUnavailable) as caught:
        function(*args)
    return caught.value


# -- connecting ------------------------------------------------------------------------------------------------------
def test_it_connects_with_a_stable_session_and_relaxed_answers():
    with running() as bench:
        trader = bench.terminal.trader
        assert (trader.path, trader.relaxed, bench.keeper.state) == (SPEC.data_path, True, 'connected')
        assert trader.session == bq.qmt_session_id(SPEC) and 0 < trader.session < 2 ** 31
    assert bq.qmt_session_id(SPEC._replace(session_id=4711)) == 4711
    assert bq.qmt_session_id(SPEC) != bq.qmt_session_id(SPEC._replace(account_id='55001235'))


def test_an_account_that_the_vendor_refuses_is_told_before_anything_starts():
    vendor = Terminal().vendor()
    for spec in (SPEC._replace(account_id=''), SPEC._replace(account_type='future'), SPEC._replace(data_path=None)):
        with pytest.raises(bq.ConfigError):
            bq.QmtBroker(vendor, spec, FakeClock(NOW))


def test_start_returns_at_once_while_the_terminal_hangs_and_answers_unavailable():
    terminal = Terminal()
    terminal.stuck.add('connect')
    with running(terminal, warm=None) as bench:
        error = unavailable(bench.broker.account)
        assert error.broker_called is False and error.details['retry_after_s'] >= 1
        assert unavailable(bench.broker.submit, request(), 1).broker_called is False
        assert bench.broker.health()['state'] == 'connecting'
        terminal.stuck.clear()
        terminal.freed.set()


@pytest.mark.parametrize('step, code', [('connect', -1), ('connect', None), ('subscribe', -1)])
def test_it_backs_off_from_one_second_to_a_minute_and_says_when_it_tries_again(step, code):
    terminal = Terminal()
    terminal.answers[step] = code
    with running(terminal, warm=None) as bench:
        delays = [bench.pauses.reached(1)] + [bench.pauses.go() for _ in range(7)]
        assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
        health = bench.broker.health()
        assert health['state'] == 'down' and str(code) in health['last_error']
        assert health['next_attempt'] == '2024-01-05 10:01:00' and health['since'] == '2024-01-05 10:00:00'
        error = unavailable(bench.broker.account)
        assert error.details['retry_after_s'] == 60 and str(code) in error.message
        terminal.answers.clear()
        assert bench.pauses.go() == bench.timing.warm_up_s
        assert bench.keeper.state == 'connected' and bench.keeper.next_attempt is None
    assert all(trader.stopped and trader.loop.closed for trader in terminal.traders)


def test_the_random_part_of_the_pause_is_half():
    terminal = Terminal()
    terminal.answers['connect'] = -1
    pauses = Pauses()
    broker = bq.QmtBroker(terminal.vendor(), SPEC, FakeClock(NOW), None, lambda: 0.0, pauses)
    broker.start()
    assert pauses.reached(1) == 0.5
    broker.close()


def test_a_connect_that_hangs_is_given_up_and_the_next_one_works():
    terminal = Terminal()
    terminal.hung.add('subscribe')
    with running(terminal, warm=None, connect_s=0.3) as bench:
        bench.pauses.reached(1)
        assert 'subscribe' in bench.keeper.last_error and bench.keeper.state == 'down'
        terminal.hung.clear()
        assert bench.pauses.go() == bench.timing.warm_up_s
        assert [trader.stopped for trader in terminal.traders] == [1, 0]


def test_an_order_push_is_not_subscribed_where_the_account_does_not_want_it():
    terminal = Terminal()
    terminal.answers['subscribe'] = -1
    pauses = Pauses()
    spec = SPEC._replace(auto_subscribe=False)
    broker = bq.QmtBroker(terminal.vendor(), spec, FakeClock(NOW), None, lambda: 1.0, pauses)
    broker.start()
    pauses.reached(1)
    assert broker.keeper.state == 'connected'
    broker.close()


def test_a_disconnect_is_noticed_at_once_and_a_new_trader_takes_over():
    with running() as bench:
        first = bench.terminal.trader
        first.callback.on_disconnected()
        assert bench.keeper.state == 'down' and unavailable(bench.broker.account).broker_called is False
        bench.pauses.reached(3)
        assert first.stopped == 1 and first.loop.closed
        bench.pauses.go()
        assert bench.pauses.go() == bench.timing.probe_s
        assert bench.terminal.trader is not first and bench.terminal.trader.session == first.session
        assert bench.broker.health()['reconnects'] == 1 and bench.broker.health()['last_error'] == ''
        first.callback.on_disconnected()
        assert bench.keeper.state == 'connected', 'an old trader has no say in the new connection'
        assert bench.broker.account().total_value == 1500.0


@pytest.mark.parametrize('status, state', [(0, 'connected'), (5, 'connected'), (6, 'connected'), (3, 'down'),
                                           (1, 'down'), (-1, 'down')])
def test_the_account_status_counts(status, state):
    with running() as bench:
        bench.terminal.callback.on_account_status(record(account_type=2, status=status))
        assert bench.keeper.state == state


def test_the_status_of_another_account_does_not_count():
    with running() as bench:
        bench.terminal.callback.on_account_status(SimpleNamespace(account_id='1', account_type=2, status=3))
        bench.terminal.callback.on_account_status(record(account_type=3, status=3))
        assert bench.keeper.state == 'connected'


@pytest.mark.parametrize('fault', ['none', 'raises'])
def test_a_failing_probe_ends_the_connection(fault):
    with running(call_s=0.3) as bench:
        bench.terminal.answers.update({'none': {'query_stock_asset': None}, 'raises': {
            'query_stock_asset': lambda: 1 // 0}}[fault])
        assert bench.pauses.go() == 1
        assert bench.keeper.state == 'down' and bench.keeper.last_error


def test_probes_that_hang_end_the_connection_at_the_third_and_no_cancel_before():
    with running(call_s=0.3) as bench:
        bench.terminal.hung.update({'query_stock_asset', 'query_stock_order', 'query_stock_orders'})
        for number in (1, 2):
            assert bench.pauses.go() == bench.timing.probe_s
            assert bench.keeper.state == 'down' and bench.broker.health()['reason'] == 'hung'
            assert '没有回应' in unavailable(bench.broker.account).message
            with pytest.raises(bq.QmtUnavailable) as caught:
                bench.broker.submit(request(), PATIENCE_S)
            assert caught.value.broker_called is False
            bench.broker.cancel(str(number), PATIENCE_S)
            assert bench.terminal.calls == [1, 2][:number]
        assert bench.pauses.go() == 1
        assert len(bench.terminal.traders) == 1 and bench.keeper.state == 'down'


def test_a_silent_connection_is_one_again_when_a_probe_is_answered():
    with running(call_s=0.3) as bench:
        bench.terminal.hung.add('query_stock_asset')
        bench.pauses.go()
        assert bench.keeper.state == 'down'
        bench.terminal.hung.clear()
        assert bench.pauses.go() == bench.timing.probe_s
        assert bench.keeper.state == 'connected' and bench.keeper.last_error == '' and bench.broker.account()
        assert len(bench.terminal.traders) == 1 and bench.terminal.trader.connects == 1


@pytest.mark.parametrize('silent', [False, True])
def test_a_cancel_that_hangs_ends_the_connection(silent):
    with running(call_s=0.3) as bench:
        if silent:
            bench.terminal.hung.add('query_stock_asset')
            bench.pauses.go()
        bench.terminal.hung.add('cancel_order_stock')
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.cancel('77', 0.2)
        with pytest.raises(bq.QmtUnavailable):
            bench.broker.cancel('78', 0.2)
        assert bench.terminal.calls == [77]


def test_only_a_good_probe_makes_the_next_trouble_a_first_one_again():
    with running() as bench:
        for count, delay in ((3, 1), (6, 2)):
            bench.terminal.callback.on_disconnected()
            assert bench.pauses.reached(count) == delay
            bench.pauses.go()
            bench.pauses.go()
        bench.pauses.go()
        bench.terminal.callback.on_disconnected()
        assert bench.pauses.reached(10) == 1


def test_hooks_run_after_the_warm_up_of_each_connection_and_may_fail():
    calls = []
    with running(warm=False) as bench:
        bench.keeper.on_connected += [lambda: 1 // 0, lambda: calls.append(bench.broker.orders_known()[1])]
        assert calls == [] and bench.broker.health()['warm'] is False
        bench.pauses.go()
        assert calls == [True] and bench.broker.health()['warm'] is True
        bench.terminal.callback.on_disconnected()
        bench.pauses.reached(3)
        bench.pauses.go()
        bench.pauses.go()
        assert calls == [True, True]


def test_hung_calls_are_counted_and_freed_by_the_next_good_probe():
    """On the connection that is there: one question without an answer takes nothing else away."""
    with running(call_s=0.2) as bench:
        bench.terminal.hung.add('query_stock_positions')
        error = unavailable(bench.broker.positions)
        assert 'query_stock_positions' in error.message and 'timeout' not in error.message
        bench.pauses.reached(3)
        assert bench.keeper.state == 'connected' and bench.terminal.trader.cbs == {}
        assert becomes(lambda: bench.broker.health()['hung_calls'] == 0)
        bench.broker.cancel('77', PATIENCE_S)
        assert bench.terminal.calls == [77] and len(bench.terminal.traders) == 1


def hanging_order(bench):
    """(thread that waits for its answer, queue with the error that it gets)."""
    bench.terminal.hung.add('order_stock')
    caught = queue.Queue()

    def submit():
        with pytest.raises(bq.OrderStateUnknown) as error:
            bench.broker.submit(request(), PATIENCE_S)
        caught.put(error.value)
    thread = threading.Thread(target=submit)
    thread.start()
    assert bench.terminal.waiting.wait(PATIENCE_S)
    return thread, caught


def test_a_call_that_somebody_waits_for_is_not_freed_with_those_that_were_given_up():
    with running(call_s=0.2) as bench:
        thread, caught = hanging_order(bench)
        bench.terminal.hung.add('query_stock_positions')
        unavailable(bench.broker.positions)
        bench.pauses.reached(3)
        assert bench.keeper.state == 'connected' and len(bench.terminal.trader.cbs) == 2 and caught.empty()
        bench.terminal.callback.on_disconnected()
        assert caught.get(timeout=PATIENCE_S)
        thread.join()


def test_calls_stuck_in_native_code_use_up_a_fixed_number_of_threads():
    with running(call_s=0.05, close_s=0.2) as bench:
        bench.terminal.stuck.add('query_stock_trades')
        before = threading.active_count()
        link = bench.keeper.link()
        for _ in range(12):
            unavailable(bench.broker._ask, link, 'query_stock_trades')
        assert 1 <= bench.broker.health()['hung_calls'] <= 8
        assert threading.active_count() - before <= 8


def test_orders_that_stand_still_hold_up_no_cancel_and_no_look():
    """Eight of them would take every worker, and then nothing could be called off."""
    with running(call_s=PATIENCE_S) as bench:
        bench.terminal.rows['orders'] = [order_record()]
        bench.terminal.stuck.add('order_stock')
        ids = queue.Queue()
        threads = [threading.Thread(target=lambda: ids.put(bench.broker.submit(request(), PATIENCE_S)))
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        busy = bench.keeper._guard._guards['order']
        assert becomes(lambda: len(busy._out) == 8)
        error = unavailable(bench.broker.submit, request(), 0.05)
        assert '8 个调用卡住' in error.message and error.broker_called is False
        bench.broker.cancel('77', PATIENCE_S)
        assert bench.terminal.calls[-1] == 77 and bench.broker.order('77').order_id == '77'
        bench.keeper._probe(bench.keeper.link())
        assert bench.keeper.state == 'connected'
        bench.terminal.freed.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [ids.get() for _ in threads] == ['77'] * 8


# -- figures ---------------------------------------------------------------------------------------------------------
def test_account_and_positions():
    with running() as bench:
        bench.terminal.rows['positions'] = [position_record(), position_record(stock_code='510300.SH', volume=0)]
        assert bench.broker.account() == bq.Account(
            account_id='55001234', account_type='stock', available_cash=1000.0, transferable_cash=900.0,
            frozen_cash=0.0, market_value=500.0, total_value=1500.0)
        assert bench.broker.positions() == [bq.Position(
            security='000001.XSHE', name='平安银行', amount=300, closeable_amount=200, frozen_volume=100, avg_cost=9.5,
            last_price=10.0, market_value=3000.0)]


def test_fields_of_old_versions():
    with running() as bench:
        terminal = bench.terminal
        terminal.asset = without(terminal.asset, 'fetch_balance')
        assert bench.broker.account().transferable_cash == 1000.0
        terminal.rows['positions'] = [old_spelling('position', without(
            position_record(), 'last_price', 'instrument_name', 'frozen_volume'))]
        position, = bench.broker.positions()
        assert (position.security, position.name, position.last_price) == ('000001.XSHE', '', 10.0)
        terminal.rows['orders'] = [old_spelling('order', order_record(filled=100))]
        order, = bench.broker.orders()
        assert (order.order_id, order.filled, order.order_remark) == ('77', 100, TAG)
        terminal.rows['trades'] = [old_spelling('trade', without(trade_record(), 'commission'))]
        assert bench.broker.trades()[0].commission == 0.0


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 1.7976931348623157e308, None, 'x', True])
def test_figures_that_are_no_numbers_are_an_error(bad):
    with running() as bench:
        bench.terminal.asset.total_asset = bad
        unavailable(bench.broker.account)
        bench.terminal.rows['positions'] = [position_record(volume=bad)]
        unavailable(bench.broker.positions)


def test_no_asset_is_an_error():
    with running() as bench:
        bench.terminal.asset = None
        assert '资产' in unavailable(bench.broker.account).message


def zero_asset():
    return record(cash=0.0, frozen_cash=0.0, market_value=0.0, total_asset=0.0, fetch_balance=0.0)


def test_zeros_right_after_connecting_are_not_believed():
    with running(warm=False) as bench:
        bench.terminal.asset = zero_asset()
        assert 'QMT 刚连接，资产尚未到达' in unavailable(bench.broker.account).message
        for ask in (bench.broker.positions, bench.broker.orders, bench.broker.trades):
            assert '刚连接' in unavailable(ask).message
        assert bench.broker.orders_known() == ([], False)
        bench.pauses.go()
        assert bench.broker.account().total_value == 0.0
        assert (bench.broker.positions(), bench.broker.orders(), bench.broker.trades()) == ([], [], [])
        assert bench.broker.orders_known() == ([], True)


def test_zeros_after_the_warm_up_are_read_twice():
    with running() as bench:
        answers = [zero_asset(), bench.terminal.asset]
        bench.terminal.answers['query_stock_asset'] = lambda: answers.pop(0)
        assert bench.broker.account().total_value == 1500.0


def reconnected(bench):
    """Lost and connected again, warm."""
    bench.terminal.callback.on_disconnected()
    count = len(bench.pauses.seen)
    bench.pauses.reached(count + 1)
    bench.pauses.go()
    assert bench.pauses.go() == bench.timing.probe_s and bench.broker.health()['warm']


@pytest.mark.parametrize('arrives', ['nothing', 'cash alone'])
def test_what_an_account_had_is_not_gone_because_it_has_not_arrived_after_a_reconnect(arrives):
    """1000 shares minutes ago; warm and said twice is not enough for that. Sold, they would be cash."""
    with running() as bench:
        bench.terminal.rows['positions'] = [position_record()]
        full = bench.terminal.asset
        assert bench.broker.account().market_value == 500.0
        reconnected(bench)
        bench.terminal.asset = zero_asset() if arrives == 'nothing' else record(
            cash=1000.0, frozen_cash=0.0, market_value=0.0, total_asset=1000.0, fetch_balance=900.0)
        bench.terminal.rows['positions'] = []
        for _ in range(3):
            for ask in (bench.broker.account, bench.broker.positions):
                assert '尚未到达' in unavailable(ask).message
        bench.terminal.asset, bench.terminal.rows['positions'] = full, [position_record()]
        assert bench.broker.account().total_value == 1500.0 and len(bench.broker.positions()) == 1


def test_what_was_sold_before_the_reconnect_is_sold_and_what_stays_away_is_gone_in_the_end():
    with running() as bench:
        assert bench.broker.account().market_value == 500.0
        reconnected(bench)
        bench.terminal.asset = record(cash=1490.0, frozen_cash=0.0, market_value=0.0, total_asset=1490.0,
                                      fetch_balance=900.0)
        assert bench.broker.positions() == [] and bench.broker.account().available_cash == 1490.0
        reconnected(bench)
        bench.terminal.asset = zero_asset()  # all of it was taken out
        unavailable(bench.broker.account)
        bench.clock.advance(301)
        assert bench.broker.account().total_value == 0.0


@pytest.mark.parametrize('rows', [None, [], [position_record(volume=0)]])
def test_no_positions_are_believed_only_beside_an_asset_without_market_value(rows):
    with running() as bench:
        bench.terminal.rows['positions'] = rows
        assert '持仓' in unavailable(bench.broker.positions).message
        bench.terminal.asset.market_value = 0.0
        assert bench.broker.positions() == []
        bench.terminal.asset = None
        unavailable(bench.broker.positions)


def test_none_for_orders_is_no_proof_that_there_are_none():
    with running() as bench:
        bench.terminal.rows['orders'] = bench.terminal.rows['trades'] = None
        assert (bench.broker.orders(), bench.broker.trades()) == ([], [])
        assert bench.broker.orders_known() == ([], False)
        bench.terminal.asset = None
        for ask in (bench.broker.orders, bench.broker.trades):
            unavailable(ask)


def test_none_twice_is_an_empty_day_where_nobody_knows_of_an_order():
    """The vendor answers None for "none" as well as for "failed": the day's first order must be possible."""
    with running(warm=False) as bench:
        bench.terminal.rows['orders'] = bench.terminal.rows['trades'] = None
        known = []
        bench.broker.expects_orders(lambda: bool(known))
        assert bench.broker.orders_known() == ([], False)
        bench.pauses.go()
        assert bench.broker.orders_known() == ([], True)
        bench.terminal.answers['query_stock_orders'] = iter([None, [order_record()]]).__next__
        assert [order.order_id for order in bench.broker.orders_known()[0]] == ['77']
    with running() as bench:
        bench.terminal.rows['orders'] = bench.terminal.rows['trades'] = None
        bench.broker.expects_orders(lambda: bool(known))
        known.append('k')
        assert bench.broker.orders_known() == ([], False), 'the journal knows of one'
        known.clear()
        bench.terminal.rows['trades'] = [trade_record()]
        assert bench.broker.orders_known() == ([], False), 'something was filled'
        bench.terminal.rows['trades'] = None
        bench.terminal.asset = None
        unavailable(bench.broker.orders_known)


ODD = [1.7976931348623157e308, float('nan'), float('inf'), 1e15, 10 ** 400, 'x', [], {}, object(), True]


@pytest.mark.parametrize('odd', ODD, ids=[brief[:12] for brief in map(repr, ODD)])
@pytest.mark.parametrize('name', ['price', 'traded_price', 'order_volume', 'traded_volume', 'order_status',
                                  'price_type', 'order_time', 'order_type', 'stock_code', 'order_id'])
def test_one_odd_row_costs_the_other_orders_nothing(name, odd):
    with running() as bench:
        row = order_record(78, 55, 100, order_remark='')
        setattr(row, name, odd)
        bench.terminal.rows['orders'] = [row, order_record()]
        orders, complete = bench.broker.orders_known()
        assert orders[-1].order_id == '77' and orders[-1].amount == 1000 and complete
        assert bench.broker.order('77').order_price == 10.5 and len(bench.broker.orders()) == len(orders)
        if len(orders) == 2 and name in ('order_volume', 'traded_volume', 'order_status'):
            assert orders[0].status == 'submit_unknown' and name in orders[0].status_msg
        if name != 'order_time':
            assert len(bench.broker.health()['skipped']) == 1


@pytest.mark.parametrize('name', ['order_id', 'stock_code'])
def test_a_tagged_row_that_cannot_be_listed_leaves_the_list_incomplete(name):
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(**{name: float('nan'), 'order_remark': 'bq' + '0' * 18})]
        assert bench.broker.orders_known() == ([], False)


@pytest.mark.parametrize('odd', ODD, ids=[brief[:12] for brief in map(repr, ODD)])
@pytest.mark.parametrize('name', ['traded_price', 'traded_volume', 'traded_amount', 'commission', 'traded_time',
                                  'order_id', 'order_type', 'stock_code'])
def test_one_odd_row_costs_the_other_trades_nothing(name, odd):
    with running() as bench:
        bench.terminal.rows['trades'] = [trade_record(**dict({'traded_id': 'T0'}, **{name: odd})), trade_record()]
        assert [(trade.trade_id, trade.amount, trade.price) for trade in bench.broker.trades()][-1] == ('T1', 100, 10.0)


@pytest.mark.parametrize('odd', ODD, ids=[brief[:12] for brief in map(repr, ODD)])
@pytest.mark.parametrize('name, shown', [('can_use_volume', 'closeable_amount'), ('frozen_volume', 'frozen_volume'),
                                         ('avg_price', 'avg_cost'), ('last_price', 'last_price'),
                                         ('market_value', 'market_value')])
def test_an_odd_figure_of_a_holding_is_never_a_holding_less(name, shown, odd):
    expected = {'closeable_amount': 0, 'frozen_volume': 0, 'avg_cost': 9.0, 'last_price': 10.0, 'market_value': 3000.0}
    with running() as bench:
        bench.terminal.rows['positions'] = [position_record(**{name: odd})]
        row, = bench.broker.positions()
        assert (row.amount, getattr(row, shown)) == (300, expected[shown])
        assert name in bench.broker.health()['skipped'][0]
        bench.terminal.rows['positions'].append(position_record(volume=odd))
        unavailable(bench.broker.positions)
        bench.terminal.rows['positions'] = [position_record(), position_record(stock_code=None)]
        unavailable(bench.broker.positions)


def test_an_order_whose_figures_could_not_be_read_is_the_same_order_when_they_can():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(status=55, filled=300)]
        assert bench.broker.orders()[0].filled == 300
        bench.terminal.rows['orders'] = [order_record(order_volume=float('nan'), filled=float('nan'), status=55)]
        order, = bench.broker.orders()
        assert (order.amount, order.filled, order.status) == (1000, 300, 'filling')
        bench.terminal.rows['orders'] = [order_record(status=56, filled=1000)]
        assert bench.broker.orders()[0].status == 'filled'


def test_a_push_that_brings_the_remark_alone_is_told():
    with running() as bench:
        bench.terminal.callback.on_stock_order(order_record(order_remark=''))
        bench.terminal.callback.on_stock_order(order_record())
        assert [order.order_remark for _, order in bench.flush()] == ['', TAG]


def test_a_list_that_lacks_a_known_order_is_not_complete():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(), order_record(78, order_remark='other')]
        assert bench.broker.orders_known()[1] is True
        del bench.terminal.rows['orders'][0]
        assert bench.broker.orders_known()[1] is False


@pytest.mark.parametrize('nothing', [None, []])
def test_nothing_is_not_believed_where_there_was_something(nothing):
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(status=55, filled=100)]
        assert len(bench.broker.orders()) == 1
        bench.terminal.rows['orders'] = bench.terminal.rows['trades'] = nothing
        for ask in (bench.broker.orders, bench.broker.trades):
            unavailable(ask)
        assert bench.broker.orders_known() == ([], False)


def test_that_there_are_no_orders_has_to_be_said_twice():
    with running() as bench:
        answers = [[], [order_record()]]
        bench.terminal.answers['query_stock_orders'] = lambda: answers.pop(0)
        orders, complete = bench.broker.orders_known()
        assert [order.order_id for order in orders] == ['77'] and complete


def test_an_answer_that_is_no_list_is_an_error():
    with running() as bench:
        bench.terminal.rows['orders'] = 'x'
        unavailable(bench.broker.orders)


def test_an_order_row_in_full():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(status=55, filled=300, status_msg='部成')]
        row = bench.broker.order('77').to_wire()
    expected = dict(order_id='77', security='600000.XSHG', side='BUY', is_buy=True, amount=1000, filled=300,
                    remaining=700, order_price=10.5, price=10.4, avg_price=10.4, deal_balance=3120.0, status='filling',
                    raw_status=55, style='limit', order_type=23, price_type=50, order_remark=TAG, strategy_name='s',
                    order_sysid='S1', order_time=EPOCH_10H, status_msg='部成')
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize('raw, status, final', [
    (48, 'new', False), (49, 'submitted', False), (50, 'open', False), (51, 'canceling', False),
    (52, 'canceling', False), (53, 'partly_canceled', True), (54, 'canceled', True), (55, 'filling', False),
    (56, 'filled', True), (57, 'rejected', True), (255, 'submit_unknown', False), (91, 'submit_unknown', False)])
def test_the_status_numbers(raw, status, final):
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(status=raw)]
        order, = bench.broker.orders()
        assert (order.status, order.raw_status, order.final) == (status, raw, final)


def test_credit_orders_have_their_side_and_what_is_unknown_is_left_out_and_told():
    with running() as bench:
        bench.terminal.rows['orders'] = [
            order_record(1, order_type=27), order_record(2, order_type=31), order_record(3, order_type=32),
            order_record(4, stock_code='IF2401.IF'), order_record(5, price_type=88)]
        assert [(order.order_id, order.side, order.style) for order in bench.broker.orders()] == [
            ('1', 'BUY', 'limit'), ('2', 'SELL', 'limit'), ('5', 'BUY', 'market')]
        assert len(bench.broker.health()['skipped']) == 2
        assert bench.broker.orders_known()[1] is True


def test_rows_of_another_account_are_not_ours():
    with running() as bench:
        foreign = order_record(5)
        foreign.account_id = '1'
        bench.terminal.rows['orders'] = [order_record(), foreign]
        assert [order.order_id for order in bench.broker.orders()] == ['77']
        bench.terminal.callback.on_stock_order(foreign)
        assert [order.order_id for _, order in bench.flush()] == ['77']


def test_trades():
    with running() as bench:
        bench.terminal.rows['trades'] = [trade_record()]
        assert bench.broker.trades() == [bq.Trade(
            trade_id='T1', order_id='77', security='600000.XSHG', side='SELL', amount=100, price=10.0, time=NOW,
            commission=5.0, deal_balance=1000.0, order_remark=TAG)]


def test_one_order_is_not_taken_for_another():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(5)]
        bench.terminal.answers['query_stock_order'] = order_record(5)
        assert bench.broker.order('6') is None and bench.broker.order('x') is None
        assert bench.broker.order('5').order_id == '5'


def test_the_answer_of_a_trader_that_is_gone_is_not_nothing():
    with running(call_s=PATIENCE_S) as bench:
        bench.terminal.hung.add('query_stock_orders')
        caught = queue.Queue()
        thread = threading.Thread(target=lambda: caught.put(unavailable(bench.broker.orders)))
        thread.start()
        trader = bench.terminal.trader
        assert bench.terminal.waiting.wait(PATIENCE_S)
        trader.callback.on_disconnected()
        assert caught.get(timeout=PATIENCE_S).code == 'QMT_UNAVAILABLE'
        thread.join()
        bench.terminal.hung.clear()


# -- events ----------------------------------------------------------------------------------------------------------
def states(told):
    return [(item.status, item.filled) for _, item in told]


def test_events_out_of_order_repeated_and_late_never_go_backwards():
    with running() as bench:
        callback = bench.terminal.callback
        for status, filled in [(50, 0), (50, 0), (55, 300), (50, 0), (49, 0), (55, 100), (55, 600), (55, 300),
                               (56, 1000),
                               (55, 600), (56, 1000), (50, 0), (54, 600)]:
            callback.on_stock_order(order_record(status=status, filled=filled))
        told = bench.flush()
        assert states(told) == [('open', 0), ('filling', 300), ('filling', 600), ('filled', 1000)]
        bench.terminal.rows['orders'] = [order_record(status=55, filled=600)]
        assert states([('', order) for order in bench.broker.orders()]) == [('filled', 1000)]


def test_a_cancel_that_does_not_know_of_the_last_fill_keeps_it():
    with running() as bench:
        bench.terminal.callback.on_stock_order(order_record(status=55, filled=300))
        bench.terminal.callback.on_stock_order(order_record(status=54, filled=0))
        assert states(bench.flush()) == [('filling', 300), ('partly_canceled', 300)]


def test_more_filled_corrects_even_a_final_order():
    with running() as bench:
        bench.terminal.callback.on_stock_order(order_record(status=54))
        bench.terminal.callback.on_stock_order(order_record(status=53, filled=200))
        assert states(bench.flush()) == [('canceled', 0), ('partly_canceled', 200)]


def test_the_same_id_for_another_order_or_on_another_day_starts_afresh():
    with running() as bench:
        callback = bench.terminal.callback
        callback.on_stock_order(order_record(status=56, filled=1000))
        callback.on_stock_order(order_record(status=50, order_remark='bqother'))
        assert states(bench.flush()) == [('filled', 1000), ('open', 0)]
        bench.clock.advance(86400)
        callback.on_stock_order(order_record(status=49, order_remark='bqother'))
        assert states(bench.flush()) == [('submitted', 0)]


@pytest.mark.parametrize('pushes', [(), ((56, 1000),), ((50, 0), (56, 1000))])
def test_what_a_look_has_seen_before_its_push_is_told_once(pushes):
    """Whoever waits for the fill of an order waits for ever where the look of another client takes it away."""
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(status=56, filled=1000)]
        bench.terminal.rows['trades'] = [trade_record()]
        bench.broker.order('77')
        bench.broker.orders()
        bench.broker.trades()
        bench.broker.trades()
        for status, filled in pushes:
            bench.terminal.callback.on_stock_order(order_record(status=status, filled=filled))
        if pushes:
            bench.terminal.callback.on_stock_trade(trade_record())
        told = bench.flush()
        assert [(kind, item.order_id) for kind, item in told] == [('order', '77'), ('trade', '77')]
        assert told[0][1].status == 'filled'


def test_a_trade_is_told_once():
    with running() as bench:
        for changes in ({}, {}, {'traded_id': 'T2'}):
            bench.terminal.callback.on_stock_trade(trade_record(**changes))
        assert [(kind, item.trade_id) for kind, item in bench.flush()] == [('trade', 'T1'), ('trade', 'T2')]


def test_a_listener_or_a_record_that_fails_does_not_end_the_stream():
    with running() as bench:
        bench.broker.set_listener(lambda kind, item: 1 // 0)
        bench.terminal.callback.on_stock_order(order_record())
        bench.terminal.callback.on_stock_order(object())
        bench.terminal.callback.on_stock_order(order_record(78, price=float('nan')))
        bench.terminal.rows['orders'] = [order_record()]
        bench.broker.keeper.on_connected[0]()
        seen = queue.Queue()
        bench.broker.set_listener(lambda kind, item: seen.put(item.order_id))
        bench.terminal.callback.on_stock_order(order_record(79))
        while seen.get(timeout=PATIENCE_S) != '79':
            pass


def test_callbacks_never_call_the_vendor():
    with running() as bench:
        names = []
        bench.terminal.answers['query_stock_orders'] = lambda: names.append(threading.current_thread().name) or []
        bench.broker.orders()
        assert names[0].startswith('qmt-main-call')
        bench.terminal.callback.on_stock_order(order_record())
        bench.flush()
        assert len(names) == 1


def test_what_was_filled_while_disconnected_is_told_after_the_reconnect():
    with running() as bench:
        bench.terminal.callback.on_stock_order(order_record())
        bench.flush()
        bench.terminal.callback.on_disconnected()
        bench.terminal.rows['orders'] = [order_record(status=56, filled=1000), order_record(80, order_remark='x')]
        bench.pauses.reached(3)
        bench.pauses.go()
        bench.pauses.go()
        assert states([bench.next_told()]) == [('filled', 1000)]
        assert bench.flush() == [], 'what the first list after a connect holds is no news'


def test_a_reason_is_joined_to_the_order_that_it_belongs_to():
    with running() as bench:
        bench.broker.submit(request(), 5)
        callback = bench.terminal.callback
        callback.on_order_error(error_record(order_id=77))
        callback.on_order_error(error_record(order_id=-1, order_remark='manual', error_msg='foreign'))
        callback.on_stock_order(order_record(status=57, status_msg='废单'))
        callback.on_stock_order(order_record(78, order_remark='manual'))
        assert [item.status_msg for _, item in bench.flush()] == ['废单；资金不足', '']


# -- submitting ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('security, style, expected', [
    ('600000.XSHG', 'limit', ('600000.SH', 11)), ('000001.XSHE', 'limit', ('000001.SZ', 11)),
    ('600000.XSHG', 'market', ('600000.SH', 42)), ('510300.XSHG', 'market', ('510300.SH', 42)),
    ('688001.XSHG', 'market', ('688001.SH', 42)), ('920047.BJ', 'market', ('920047.BJ', 42)),
    ('000001.XSHE', 'market', ('000001.SZ', 47)), ('159915.XSHE', 'market', ('159915.SZ', 47)),
    ('113001.XSHG', 'market', ('113001.SH', 11)), ('123001.XSHE', 'market', ('123001.SZ', 11))])
def test_an_order_goes_out_with_exact_types_and_the_price_type_of_its_market(security, style, expected):
    with running() as bench:
        price = {'price': 10} if style == 'limit' else {'price': None, 'protect_price': 11}
        asked = request(security=security, style=style, side='SELL', amount=100.0, **price)
        assert bench.broker.submit(asked, 5) == '77'
        call = bench.terminal.calls[0]
        bound = 10.0 if style == 'limit' else 11.0
        assert call == (expected[0], 24, 100, expected[1], bound, '策略', TAG)
        assert [type(item) for item in call] == [str, int, int, int, float, str, str]


@pytest.mark.parametrize('security, kind, price_type', [
    ('600000.XSHG', 'opponent_best', 44), ('000001.XSHE', 'opponent_best', 44), ('600000.XSHG', 'home_best', 45),
    ('000001.XSHE', 'home_best', 45), ('600000.XSHG', 'five_level_ioc', 42), ('000001.XSHE', 'five_level_ioc', 47),
    ('600000.XSHG', 'five_level_to_limit', 43), ('000001.XSHE', 'immediate_or_cancel', 46),
    ('000001.XSHE', 'fill_or_kill', 48)])
def test_a_kind_of_market_order_goes_out_as_that(security, kind, price_type):
    asked = request(security=security, style='market', price=None, protect_price=10.5, market_type=kind)
    assert bq.qmt_order_arguments(asked)[3] == price_type


@pytest.mark.parametrize('security, kind', [
    ('000001.XSHE', 'five_level_to_limit'), ('600000.XSHG', 'fill_or_kill'), ('113001.XSHG', 'home_best'),
    ('600000.XSHG', 'best_effort')])
def test_a_kind_of_market_order_that_its_exchange_lacks_is_refused(security, kind):
    asked = request(security=security, style='market', price=None, protect_price=10.5, market_type=kind)
    with pytest.raises(bq.OrderRejected) as caught:
        bq.qmt_order_arguments(asked)
    assert caught.value.broker_called is False


@pytest.mark.parametrize('changes', [
    {'tag': ''}, {'tag': 'x' * 25}, {'tag': '标记'}, {'tag': None}, {'tag': 'a b'}, {'price': float('nan')},
    {'price': 0.0}, {'price': None}, {'amount': 0}, {'amount': 1.5}, {'side': 'X'}, {'security': '600000'}])
def test_what_is_no_order_is_refused_before_the_vendor_is_called(changes):
    with running() as bench:
        with pytest.raises(bq.OrderRejected) as caught:
            bench.broker.submit(request(**changes), 5)
        assert caught.value.broker_called is False and bench.terminal.calls == []


@pytest.mark.parametrize('result', [0, -2, None, True, '77', 7.0])
def test_an_odd_answer_leaves_the_order_unknown(result):
    with running() as bench:
        bench.terminal.answers['order_stock'] = result
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.submit(request(), 5)


def test_an_answer_that_does_not_come_leaves_the_order_unknown_and_the_terminal_is_probed():
    with running() as bench:
        bench.terminal.answers['query_stock_asset'] = None  # what the probe is answered ends the connection
        bench.terminal.hung.add('order_stock')
        with pytest.raises(bq.OrderStateUnknown) as caught:
            bench.broker.submit(request(), 0.2)
        assert 'timeout' not in str(caught.value.message) and bench.keeper.state == 'down'
        assert bench.pauses.reached(3) == 1 and len(bench.terminal.calls) == 1


def test_a_disconnect_in_the_middle_leaves_the_order_unknown_without_waiting():
    with running() as bench:
        def cut(*args):
            bench.terminal.callback.on_disconnected()
            raise OSError('pipe')
        bench.terminal.answers['order_stock'] = cut
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.submit(request(), PATIENCE_S)


def minus_one(bench, before):
    """order_stock answers -1 after `before()`."""
    def answer(*args):
        before()
        return -1
    bench.terminal.answers['order_stock'] = answer


def test_minus_one_with_our_error_and_no_such_order_is_a_refusal():
    with running(error_s=PATIENCE_S) as bench:
        minus_one(bench, lambda: bench.terminal.callback.on_order_error(error_record()))
        with pytest.raises(bq.OrderRejected) as caught:
            bench.broker.submit(request(), 5)
        assert '资金不足' in caught.value.message and caught.value.broker_called is True


@pytest.mark.parametrize('error', [None, error_record(order_remark='bqolder'), error_record(order_remark=''),
                                   without(error_record(), 'order_remark')])
def test_minus_one_alone_or_with_an_old_error_is_unknown(error):
    with running() as bench:
        minus_one(bench, lambda: error and bench.terminal.callback.on_order_error(error))
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.submit(request(), 5)


@pytest.mark.parametrize('error', [None, error_record()])
def test_minus_one_although_the_order_lives_gives_its_id(error):
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(81, order_remark='manual'), order_record(82)]
        minus_one(bench, lambda: error and bench.terminal.callback.on_order_error(error))
        assert bench.broker.submit(request(), 5) == '82'


@pytest.mark.parametrize('rows, asset', [(None, None), ('odd', 'good')])
def test_minus_one_and_a_list_that_cannot_be_read_is_unknown_even_with_our_error(rows, asset):
    with running() as bench:
        bench.terminal.rows['orders'] = rows
        bench.terminal.asset = asset
        minus_one(bench, lambda: bench.terminal.callback.on_order_error(error_record()))
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.submit(request(), 5)


def test_find_by_tag():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(81, order_remark='manual'), order_record(82)]
        assert bench.broker.find(TAG).order_id == '82' and bench.broker.find('bqnone') is None


# -- cancelling ------------------------------------------------------------------------------------------------------
def test_a_cancel_is_sent_as_a_number():
    with running() as bench:
        bench.broker.cancel('77', 5)
        assert bench.terminal.calls == [77]


@pytest.mark.parametrize('order_id', ['', 'x', '-1', '0', '7' * 30, 77, None])
def test_what_is_no_order_id_is_not_found(order_id):
    with running() as bench:
        with pytest.raises(bq.OrderNotFound):
            bench.broker.cancel(order_id, 5)
        assert bench.terminal.calls == []


def test_a_refused_cancel_tells_the_truth():
    with running() as bench:
        callback, terminal = bench.terminal.callback, bench.terminal
        terminal.answers['cancel_order_stock'] = -1
        with pytest.raises(bq.OrderNotFound):
            bench.broker.cancel('77', 5)
        terminal.rows['orders'] = [order_record()]
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.cancel('77', 5)
        callback.on_cancel_error(record(order_id=78, error_id=1, error_msg='other'))

        def refuse(order_id):
            callback.on_cancel_error(record(order_id=order_id, error_id=1, error_msg='不可撤'))
            return -1
        terminal.answers['cancel_order_stock'] = refuse
        bench.broker.timing.error_s = PATIENCE_S
        with pytest.raises(bq.OrderRejected) as caught:
            bench.broker.cancel('77', 5)
        assert '不可撤' in caught.value.message
        terminal.rows['orders'] = [order_record(status=56, filled=1000)]
        assert bench.broker.cancel('77', 5) is None


@pytest.mark.parametrize('result', [None, 1, True])
def test_an_odd_answer_to_a_cancel_is_unknown(result):
    with running() as bench:
        bench.terminal.answers['cancel_order_stock'] = result
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.cancel('77', 5)


def test_a_cancel_without_an_answer_is_unknown():
    with running() as bench:
        bench.terminal.hung.add('cancel_order_stock')
        with pytest.raises(bq.OrderStateUnknown):
            bench.broker.cancel('77', 0.2)


# -- closing ---------------------------------------------------------------------------------------------------------
def test_close_frees_a_call_that_waits_and_says_closed_afterwards():
    with running(call_s=PATIENCE_S) as bench:
        thread, caught = hanging_order(bench)
        bench.broker.close()
        assert caught.get(timeout=PATIENCE_S).code == 'REQUEST_TIMEOUT'
        thread.join()
        assert bench.broker.health()['state'] == 'closed'
        assert '已关闭' in unavailable(bench.broker.account).message


def test_close_before_start_is_harmless():
    broker = bq.QmtBroker(Terminal().vendor(), SPEC, FakeClock(NOW))
    broker.close()
    assert broker.health()['state'] == 'closed'


# -- beside a terminal that is off -------------------------------------------------------------------------------------
@contextlib.contextmanager
def hours_beside(vendor, attempts, spec=SPEC, **timing):
    """A broker after so many failed attempts."""
    clock = FakeClock(NOW)
    pauses = Hours(clock, attempts)
    broker = bq.QmtBroker(vendor, spec, clock, bq.QmtTiming(**timing), lambda: 1.0, pauses)
    broker.start()
    try:
        assert pauses.done.wait(60), pauses.seen
        assert clock.now() - NOW > timedelta(hours=2)
        yield broker
    finally:
        broker.close()


@pytest.mark.parametrize('fault', [{'connect': -1}, {'connect': -3}, {'connect': None}, {'subscribe': -1},
                                   {'connect': lambda: 1 // 0}, {'subscribe': lambda: 1 // 0}])
def test_three_hundred_failed_attempts_are_made_on_one_object(fault):
    terminal = Terminal()
    terminal.answers.update(fault)
    threads = threading.active_count()
    with hours_beside(terminal.vendor(), 300) as broker:
        trader, = terminal.traders
        assert (trader.connects, trader.starts, trader.stopped) == (300, 1, 0)
        assert broker.health()['traders'] == 1 and broker.health()['state'] == 'down'
        assert threading.active_count() - threads <= 4
        assert trader.cbs == {}
    assert trader.stopped == 1 and trader.loop.closed


def test_an_account_that_never_answers_costs_one_object_too():
    """connect() and subscribe() are good, the figures never come: each probe ends the connection."""
    terminal = Terminal()
    terminal.asset = None
    with hours_beside(terminal.vendor(), 600) as broker:
        assert len(terminal.traders) == 1 and broker.health()['reason'] in ('account', '')


def test_ends_that_a_connection_which_never_was_is_told_cost_nothing():
    terminal = Terminal()

    def refuse():
        terminal.callback.on_disconnected()
        return -1
    terminal.answers['connect'] = refuse
    with hours_beside(terminal.vendor(), 300) as broker:
        terminal.callback.on_disconnected()
        assert len(terminal.traders) == 1
        assert broker.health()['last_error'] == '连接 QMT 失败，返回 -1' and broker.health()['reason'] == 'connect'


class Over(threading.Event):
    """Of a call: whoever waits for its end is told as soon as it hangs, and not before, however slow the machine is."""

    def __init__(self):
        super().__init__()
        self.hangs = threading.Event()

    def set(self):
        super().set()
        self.hangs.set()

    def wait(self, timeout=None):
        assert self.hangs.wait(PATIENCE_S)
        return self.is_set()


class CallsThatHang:
    """In the place of Terminal.waiting: set by a call that hangs, in its thread."""

    def __init__(self, monkeypatch):
        here = self._here = threading.local()

        class Call(bq._GuardedCall):
            def __init__(self, function, args):
                super().__init__(function, args)
                self.done = Over()

            def run(self):
                here.call = self
                super().run()
        monkeypatch.setattr(bq, '_GuardedCall', Call)

    def set(self):
        self._here.call.done.hangs.set()


@pytest.mark.parametrize('call', ['connect', 'subscribe'])
def test_of_objects_whose_calls_only_hang_each_is_kept_twice_as_long_as_the_one_before(monkeypatch, call):
    terminal = Terminal()
    terminal.hung.add(call)
    terminal.waiting = CallsThatHang(monkeypatch)
    with hours_beside(terminal.vendor(), 140) as broker:
        assert len(terminal.traders) == 9 and broker.health()['reason'] == 'hung'  # 1 + 2 + 4 ... + 32 + 32 + 32 < 140
        assert sum(1 for trader in terminal.traders if not trader.stopped) == 1


def test_the_object_that_failed_connects_when_the_terminal_comes_up():
    terminal = Terminal()
    terminal.answers['connect'] = -1
    with running(terminal, warm=None) as bench:
        bench.pauses.reached(1)
        bench.pauses.go()
        terminal.answers['connect'] = 0
        terminal.answers['subscribe'] = -1
        bench.pauses.go()
        assert '订阅账户' in bench.keeper.last_error
        terminal.answers.clear()
        assert bench.pauses.go() == bench.timing.warm_up_s
        assert bench.keeper.state == 'connected' and len(terminal.traders) == 1
        assert bench.broker.account().total_value == 1500.0


def test_an_object_that_was_connected_and_is_told_of_its_end_in_the_pause_is_replaced():
    terminal = Terminal()
    terminal.answers['subscribe'] = -1
    with running(terminal, warm=None) as bench:
        bench.pauses.reached(1)
        terminal.callback.on_disconnected()
        assert len(bench.pauses.seen) == 1, 'the pause goes on'
        bench.pauses.go()
        assert [trader.stopped for trader in terminal.traders] == [1, 0]


def test_a_disconnect_during_connect_is_a_disconnect():
    terminal = Terminal()

    def break_at_once():
        terminal.answers.clear()
        terminal.callback.on_disconnected()
        return 0
    terminal.answers['connect'] = break_at_once
    with running(terminal, warm=None) as bench:
        bench.pauses.reached(1)
        assert bench.keeper.state == 'down' and '断开' in bench.keeper.last_error
        assert bench.pauses.go() == bench.timing.warm_up_s
        assert len(terminal.traders) == 2 and bench.keeper.state == 'connected'


def test_figures_of_an_object_that_was_given_up_are_not_told_its_orders_are():
    with running() as bench:
        old = bench.terminal.callback
        old.on_disconnected()
        bench.pauses.reached(3)
        bench.pauses.go()
        bench.pauses.go()
        assert len(bench.terminal.traders) == 2
        old.on_stock_asset(bench.terminal.asset)
        old.on_account_status(record(account_type=2, status=3))
        old.on_stock_order(order_record())
        kind, order = bench.next_told()
        assert (kind, order.order_id) == ('order', '77') and bench.keeper.state == 'connected'


def test_an_order_on_a_connection_that_was_just_lost_is_not_sent():
    with running() as bench:
        link = bench.keeper.link()
        bench.terminal.callback.on_account_status(record(account_type=2, status=3))
        with pytest.raises(bq.QmtUnavailable) as caught:
            link.call('order_stock', deadline_s=1)
        assert caught.value.broker_called is False and bench.terminal.calls == []


# -- the path ----------------------------------------------------------------------------------------------------------
def wrong_paths(folder):
    (folder / 'file').write_text('x')
    (folder / 'other').mkdir()
    (folder / 'other' / 'down_queue_17').write_text('left by a program that was given this path before')
    (folder / 'QMT' / 'userdata_mini').mkdir(parents=True)
    (folder / 'new' / 'userdata').mkdir(parents=True)
    (folder / 'made' / 'userdata_mini').mkdir(parents=True)
    (folder / 'made' / 'userdata_mini' / 'down_queue_17').write_text('all that a program left that made it by mistake')
    return [(folder / 'typo', 'missing', '没有目录'), (folder / 'file', 'file', '不是目录'),
            (folder / 'other', 'foreign', '不是 QMT 的 userdata'), (folder / 'QMT', 'foreign', '不是 QMT 的 userdata'),
            (folder / 'new' / 'userdata', 'empty', '没有 QMT 用过'),
            (folder / 'made' / 'userdata_mini', 'empty', '没有 QMT 用过')]


@pytest.mark.parametrize('number', range(6))
def test_a_wrong_path_is_told_and_the_vendor_is_not_called(tmp_path, number):
    path, reason, message = wrong_paths(tmp_path)[number]
    before = sorted(tmp_path.rglob('*'))
    terminal, pauses = Terminal(), Pauses()
    broker = bq.QmtBroker(terminal.vendor(), SPEC._replace(data_path=str(path)), FakeClock(NOW), None, lambda: 1.0,
                          pauses)
    broker.start()
    pauses.reached(1)
    pauses.go()
    error, health = unavailable(broker.account), broker.health()
    broker.close()
    assert terminal.traders == [] and sorted(tmp_path.rglob('*')) == before
    assert message in error.message and str(path) in error.message and health['reason'] == reason
    assert 'QMT_DATA_PATH' in error.hint and health['hint'] == error.hint
    if reason == 'foreign' and number == 3:
        assert str(path / 'userdata_mini') in error.hint


def test_a_path_that_cannot_be_written_is_told_and_the_vendor_is_not_called(monkeypatch):
    """As root may write anywhere, the refusal is the system's own, made here."""
    def refuse(path, *options, **named):
        raise PermissionError(errno.EACCES, 'Permission denied', path)
    monkeypatch.setattr(bq.io, 'open', refuse)
    terminal, pauses = Terminal(), Pauses()
    broker = bq.QmtBroker(terminal.vendor(), SPEC, FakeClock(NOW), None, lambda: 1.0, pauses)
    broker.start()
    pauses.reached(1)
    error = unavailable(broker.account)
    broker.close()
    assert terminal.traders == [] and '不能写' in error.message and '管理员' in error.hint


def test_a_path_that_is_mended_is_taken_without_a_restart(tmp_path):
    terminal, pauses, folder = Terminal(), Pauses(), tmp_path / 'userdata_mini'
    broker = bq.QmtBroker(terminal.vendor(), SPEC._replace(data_path=str(folder)), FakeClock(NOW), None, lambda: 1.0,
                          pauses)
    broker.start()
    pauses.reached(1)
    (folder / 'users').mkdir(parents=True)
    assert pauses.go() == broker.timing.warm_up_s
    broker.close()


@pytest.mark.parametrize('quoted', [
    '"%s"', "'%s'", '"%s', '%s"',
    pytest.param('“%s”', marks=pytest.mark.skipif(named('“') == 'x', reason='names of files are ASCII here'))])
def test_quotes_around_a_path_are_told(quoted):
    fault = bq.qmt_path_fault(quoted % SPEC.data_path)
    assert fault.kind == 'missing' and '不带引号' in fault.hint


def test_a_drive_that_is_not_there_is_told(monkeypatch):
    """Windows' paths, judged as Windows does, whatever system this is."""
    real = bq.os.path.exists
    monkeypatch.setattr(bq.os.path, 'splitdrive', ntpath.splitdrive)
    monkeypatch.setattr(bq.os.path, 'exists', lambda path: not str(path).startswith('Q:') and real(path))
    fault = bq.qmt_path_fault('Q:\\QMT\\userdata_mini')
    assert fault.kind == 'missing' and '没有盘 Q:' in fault.hint and '自己连上' in fault.hint


def test_the_folder_of_the_full_program_beside_that_of_the_small_one_is_told(tmp_path):
    for name in ('userdata', 'userdata_mini'):
        (tmp_path / name / 'users').mkdir(parents=True)
    hints = []
    for name in ('userdata', 'userdata_mini'):
        terminal, pauses = Terminal(), Pauses()
        terminal.answers['connect'] = -1
        broker = bq.QmtBroker(terminal.vendor(), SPEC._replace(data_path=str(tmp_path / name)), FakeClock(NOW), None,
                              lambda: 1.0, pauses)
        broker.start()
        pauses.reached(1)
        hints.append(broker.health()['hint'])
        broker.close()
    assert '旁边的 userdata_mini' in hints[0] and '旁边' not in hints[1]


def test_nothing_is_left_in_a_good_folder():
    assert bq.qmt_path_fault(SPEC.data_path) is None
    assert os.listdir(SPEC.data_path) == ['users']


# -- stopping while it starts ------------------------------------------------------------------------------------------
def test_a_stop_while_the_vendor_starts_waits_for_it_and_stops_then(caplog):
    terminal, begun = Terminal(), threading.Event()

    def start():
        begun.set()
        terminal.freed.wait(PATIENCE_S)
    terminal.answers['start'] = start
    broker = bq.QmtBroker(terminal.vendor(), SPEC, FakeClock(NOW), bq.QmtTiming(close_s=0.1), lambda: 1.0, Pauses())
    broker.start()
    assert begun.wait(PATIENCE_S)
    closing = threading.Thread(target=broker.close)
    closing.start()
    assert becomes(lambda: broker.keeper._trader.abandoned)
    assert terminal.trader.stopped == 0, 'the vendor fails in stop() before start() has returned'
    terminal.freed.set()
    closing.join(PATIENCE_S)
    assert becomes(lambda: terminal.trader.stopped == 1 and terminal.trader.loop.closed)
    assert [item for item in caplog.records if item.levelname != 'INFO'] == []


# -- pushes that dry up ------------------------------------------------------------------------------------------------
def test_orders_that_are_pushed_no_more_are_noticed_told_and_subscribed_anew():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record()]
        bench.terminal.callback.on_stock_order(order_record())
        assert bench.next_told()[1].status == 'open'
        bench.pauses.go()
        bench.terminal.rows['orders'] = [order_record(status=55, filled=300)]  # and nothing is pushed
        bench.pauses.go()
        kind, order = bench.next_told()
        assert (kind, order.filled) == ('order', 300), 'whoever follows hears of it from the look'
        assert bench.terminal.trader.subscribes == 1, 'the push may be on its way'
        bench.clock.advance(15)
        bench.pauses.go()
        assert bench.terminal.trader.subscribes == 2 and bench.broker.health()['pushes_renewed'] == 1
        bench.clock.advance(15)
        bench.pauses.go()
        assert bench.terminal.trader.subscribes == 2 and bench.keeper.state == 'connected'
        assert len(bench.terminal.traders) == 1


def test_an_order_that_only_a_look_ever_showed_is_one_that_was_not_pushed():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(status=56, filled=1000)]
        assert bench.broker.orders()[0].status == 'filled'
        bench.clock.advance(15)
        bench.pauses.go()
        assert bench.broker.health()['pushes_renewed'] == 1


def test_pushes_that_come_are_no_alarm_nor_are_orders_from_before_the_connection():
    terminal = Terminal()
    terminal.rows['orders'] = [order_record(70, status=56, filled=1000, order_remark='early')]
    with running(terminal) as bench:
        bench.terminal.rows['orders'] += [order_record(status=55, filled=300)]
        bench.terminal.callback.on_stock_order(order_record(status=55, filled=300))
        assert bench.next_told()[1].filled == 300
        for _ in range(3):
            bench.broker.orders()
            bench.clock.advance(15)
            bench.pauses.go()
        assert bench.broker.health()['pushes_renewed'] == 0 and bench.terminal.trader.subscribes == 1


def test_a_renewal_that_fails_is_a_lost_connection():
    with running() as bench:
        bench.terminal.rows['orders'] = [order_record(status=56, filled=1000)]
        bench.broker.orders()
        bench.clock.advance(15)
        bench.terminal.answers['subscribe'] = -1
        bench.pauses.go()
        assert bench.keeper.state == 'down' and '订阅账户' in bench.keeper.last_error
        bench.terminal.answers.clear()
        bench.pauses.go()
        assert bench.keeper.state == 'connected'
