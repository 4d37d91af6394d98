"""Section 8, trading: ledger, matching, T+1, fees, the day's end, events. Exact figures are worked out beside them."""
import queue
import threading
from collections import defaultdict
from datetime import date, datetime, time, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bullet_qmt as b
from tests.fakes import FakeClock
from tests.terminal.calendar import opens

STOCK, OTHER, STAR = '000001.XSHE', '600000.XSHG', '688001.XSHG'
ETF, CASH_ETF, BOND, INDEX = '510300.XSHG', '511880.XSHG', '113050.XSHG', '000300.XSHG'
MORNING = datetime(2024, 3, 5, 10, 0)
SPEC = b.AccountSpec('main', '55001234', 'stock', None, None, True)
SPEC2 = SPEC._replace(key='hedge', account_id='55004321')


class FakeMarket:
    """What the exchange asks of StubData, with quotes that a test sets."""

    def __init__(self, clock, always_open=True):
        self.clock, self.always_open, self.quotes = clock, always_open, {}

    def set(self, code, bid=10.0, ask=10.0, bid_volume=10 ** 6, ask_volume=10 ** 6, **values):
        values = dict(dict(last_price=ask or bid, high_limit=None, low_limit=None), **values)
        self.quotes[code] = b.Tick(sid=code, b1_p=bid, b1_v=bid_volume, a1_p=ask, a1_v=ask_volume, **values)

    def quote(self, code):
        if code not in self.quotes:
            raise b.DataUnavailable('没有 %s 的行情' % code)
        return self.quotes[code].replace(dt=self.clock.now())

    def market_open(self, moment=None):
        moment = moment or self.clock.now()
        return self.always_open or (opens(moment.date()) and b.in_session(moment))

    def trade_day(self, moment):
        return moment.date()

    def security_info(self, code):
        if code.startswith('600999'):
            raise b.SecurityNotFound('没有 %s' % code)
        return {'code': code, 'display_name': '名称' + code[:6]}


class Bench:
    """An exchange without its thread, on a clock that stands still, with one or two accounts."""

    def __init__(self, cash=1000000.0, always_open=True, start=MORNING, specs=(SPEC, SPEC2)):
        self.clock = FakeClock(start)
        self.market = FakeMarket(self.clock, always_open)
        for code in (STOCK, OTHER):
            self.market.set(code)
        self.exchange = b.StubExchange(self.market, self.clock, 3.0)
        self.brokers = [b.StubBroker(self.exchange, spec, cash) for spec in specs]
        self.broker = self.brokers[0]
        self.ledger = self.broker._account.ledger
        self.events = []
        for broker in self.brokers:
            broker.set_listener(self.note)

    def note(self, kind, record):
        """Account figures follow whatever happens; a test that wants them listens itself."""
        if kind != 'account':
            self.events.append((kind, record))

    def send(self, side, amount, price, code=STOCK, market=False, broker=None, **more):
        bound = {'protect_price': price, 'style': 'market'} if market else {'price': price}
        request = b.OrderRequest(security=code, side=side, amount=amount, **dict(bound, **more))
        return (broker or self.broker).submit(request, 5)

    def trade(self, *args, **kwargs):
        """Sends and runs a round; the order's row."""
        order_id = self.send(*args, **kwargs)
        self.exchange.match_now()
        return (kwargs.get('broker') or self.broker).order(order_id)

    def refused(self, *args, **kwargs):
        with pytest.raises(b.OrderRejected) as caught:
            self.send(*args, **kwargs)
        assert caught.value.broker_called is True
        assert self.broker.orders() == [] and self.ledger.holds == {}
        return caught.value.message

    def next_day(self):
        self.clock.advance(86400)

    def hold_shares(self, amount=1000, code=STOCK):
        """Shares bought yesterday at 10.00."""
        self.trade('BUY', amount, 10.0, code)
        self.next_day()
        self.broker.orders()
        del self.events[:]

    def money(self):
        row = self.broker.account()
        return row.available_cash, row.frozen_cash


@pytest.fixture
def bench():
    return Bench()


# -- buying and selling -------------------------------------------------------------------------------------------
def test_a_resting_buy_freezes_its_limit_price_and_the_largest_fees(bench):
    bench.market.set(STOCK, bid=10.0, ask=10.01)
    order = bench.trade('BUY', 1000, 10.00)
    # 1000 x 10.00 = 10000, commission 3.00 -> 5.00, transfer 0.10
    assert bench.money() == (989994.90, 10005.10)
    assert (order.status, order.filled, order.avg_price, order.deal_balance) == ('open', 0, 0.0, 0.0)


def test_a_buy_fills_at_the_ask_below_its_limit_and_gets_the_difference_back(bench):
    bench.market.set(STOCK, bid=9.97, ask=9.98)
    order = bench.trade('BUY', 1000, 10.00)
    # 9980.00 + 5.00 + 0.10 (0.0998)
    assert bench.money() == (990014.90, 0.0)
    assert (order.status, order.filled, order.avg_price, order.deal_balance) == ('filled', 1000, 9.98, 9980.0)
    assert (order.commission, order.tax, order.order_price) == (5.10, 0.0, 10.0)


def test_a_sale_pays_commission_tax_and_transfer(bench):
    bench.market.set(STOCK, bid=20.0, ask=20.0)
    bench.trade('BUY', 10000, 20.0)
    assert bench.money() == (799938.0, 0.0)  # 200000 + 60.00 + 2.00
    bench.next_day()
    order = bench.trade('SELL', 10000, 19.5)
    assert bench.money() == (999776.0, 0.0)  # + 200000 - 60.00 - 2.00 - 100.00
    assert (order.avg_price, order.commission, order.tax) == (20.0, 62.0, 100.0)
    assert bench.broker.positions() == []


def test_the_tax_was_twice_as_high_before_the_cut():
    bench = Bench(start=datetime(2023, 8, 24, 10, 0))
    bench.hold_shares(10000)
    assert bench.trade('SELL', 10000, 10.0).tax == 100.0


def test_funds_pay_neither_tax_nor_transfer(bench):
    bench.market.set(ETF, bid=4.001, ask=4.001)
    bench.trade('BUY', 1000, 4.001, ETF)
    assert bench.money() == (995994.0, 0.0)  # 4001 + 5
    bench.next_day()
    order = bench.trade('SELL', 1000, 4.001, ETF)
    assert bench.money() == (999990.0, 0.0) and (order.commission, order.tax) == (5.0, 0.0)


def test_the_minimum_commission_falls_on_an_order_once(bench):
    bench.market.set(STOCK, ask_volume=400)
    first = bench.trade('BUY', 1000, 10.0)
    assert (first.status, first.filled, first.commission) == ('filling', 400, 5.04)
    assert bench.money() == (989994.90, 6000.06)  # still to pay: 6000 + the other 0.06 of transfer fee
    bench.market.set(STOCK, ask=9.99, ask_volume=600)
    bench.exchange.match_now()
    order, trades = bench.broker.order(first.order_id), bench.broker.trades()
    assert [(trade.amount, trade.price, trade.commission) for trade in trades] == [(400, 10.0, 5.04), (600, 9.99, 0.06)]
    assert (order.status, order.commission, order.deal_balance, order.avg_price) == ('filled', 5.10, 9994.0, 9.994)
    assert bench.money() == (990000.90, 0.0)


def test_a_sale_of_next_to_nothing_never_costs_money():
    bench = Bench(cash=1006.0)
    bench.trade('BUY', 100, 10.0)  # 1000 + 5 + 0.01: 0.99 left
    bench.next_day()
    bench.market.set(STOCK, bid=0.02, ask=0.03, bid_volume=30)
    order = bench.trade('SELL', 100, 0.01)
    assert bench.money() == (0.99, 0.0) and order.commission == 0.6  # 30 x 0.02, all of it taken
    bench.market.set(STOCK, bid=0.03, ask=0.04)
    bench.exchange.match_now()
    order = bench.broker.order(order.order_id)
    assert (order.status, order.deal_balance, order.commission) == ('filled', 2.7, 2.7)
    assert bench.money() == (0.99, 0.0)


def test_resting_orders_fill_when_the_market_comes_to_them(bench):
    bench.hold_shares()
    sale = bench.trade('SELL', 500, 10.5)
    buy = bench.trade('BUY', 100, 9.5)
    assert (sale.status, buy.status) == ('open', 'open')
    bench.market.set(STOCK, bid=10.6, ask=10.61)
    bench.exchange.match_now()
    assert bench.broker.order(sale.order_id).avg_price == 10.6
    bench.market.set(STOCK, bid=9.39, ask=9.4)
    bench.exchange.match_now()
    assert bench.broker.order(buy.order_id).avg_price == 9.4


def test_two_orders_share_the_volume_of_a_quote_in_the_order_of_arrival(bench):
    bench.market.set(STOCK, ask_volume=1500)
    first = bench.send('BUY', 1000, 10.0, broker=bench.brokers[1])
    second = bench.send('BUY', 1000, 10.2)
    for _ in range(3):
        bench.exchange.match_now()
    assert bench.brokers[1].order(first).filled == 1000
    assert bench.broker.order(second).filled == 500
    bench.clock.advance(3)
    bench.exchange.match_now()
    assert bench.broker.order(second).status == 'filled'


def test_a_round_tries_every_security(bench):
    first, second = bench.send('BUY', 100, 10.0), bench.send('BUY', 100, 10.0, OTHER)
    bench.exchange.match_now()
    assert [bench.broker.order(order_id).status for order_id in (first, second)] == ['filled', 'filled']


def test_the_two_sides_of_a_quote_are_separate(bench):
    bench.hold_shares()
    bench.market.set(STOCK, bid=10.0, ask=10.01, bid_volume=1000, ask_volume=1000)
    assert bench.trade('BUY', 1000, 10.01).status == 'filled'
    assert bench.trade('SELL', 1000, 10.0).status == 'filled'


@pytest.mark.parametrize('ask, ask_volume', [(0.0, 0), (10.0, 0), (None, None)])
def test_nothing_fills_against_an_empty_side(bench, ask, ask_volume):
    bench.market.set(STOCK, bid=10.0, ask=ask, ask_volume=ask_volume)
    assert bench.trade('BUY', 100, 11.0).status == 'open'
    assert bench.trade('BUY', 100, 11.0, market=True).status == 'canceled'


# -- market orders -------------------------------------------------------------------------------------------------
def test_a_market_order_fills_at_level_one_and_freezes_by_its_protect_price(bench):
    order_id = bench.send('BUY', 1000, 10.2, market=True)
    assert bench.money() == (989794.90, 10205.10)
    bench.exchange.match_now()
    order = bench.broker.order(order_id)
    assert (order.status, order.avg_price, order.style, order.price_type) == ('filled', 10.0, 'market', 88)
    assert bench.money() == (989994.90, 0.0)


def test_what_a_market_order_does_not_get_at_once_is_cancelled(bench):
    bench.market.set(STOCK, ask_volume=300)
    order = bench.trade('BUY', 1000, 10.2, market=True)
    assert (order.status, order.filled, order.deal_balance) == ('partly_canceled', 300, 3000.0)
    assert bench.money() == (996994.97, 0.0)  # 3000 + 5 + 0.03
    assert [kind for kind, _ in bench.events] == ['order', 'trade', 'order']


def test_a_market_order_never_fills_beyond_its_protection(bench):
    bench.hold_shares()
    bench.market.set(STOCK, bid=9.79, ask=10.21)
    assert bench.trade('BUY', 100, 10.2, market=True).status == 'canceled'
    assert bench.trade('SELL', 100, 9.8, market=True).status == 'canceled'
    assert bench.trade('SELL', 100, 9.79, market=True).status == 'filled'


# -- T+1, frozen shares, the day's end -----------------------------------------------------------------------------
def test_shares_bought_today_can_be_sold_on_the_next_day(bench):
    bench.trade('BUY', 1000, 10.0)
    position = bench.broker.positions()[0]
    assert (position.amount, position.closeable_amount) == (1000, 0)
    with pytest.raises(b.OrderRejected) as caught:
        bench.send('SELL', 1000, 10.0)
    assert '可卖数量不足：委托 1000，可卖 0' in str(caught.value)
    bench.next_day()
    assert bench.broker.positions()[0].closeable_amount == 1000
    assert bench.trade('SELL', 1000, 10.0).status == 'filled'


@pytest.mark.parametrize('code, amount', [(CASH_ETF, 100), (BOND, 10)])
def test_what_is_t0_can_be_sold_at_once(bench, code, amount):
    bench.market.set(code, bid=100.0, ask=100.0)
    bench.trade('BUY', amount, 100.0, code)
    assert bench.broker.positions()[0].closeable_amount == amount
    assert bench.trade('SELL', amount, 100.0, code).status == 'filled'
    assert bench.broker.positions() == []


def test_a_resting_sale_freezes_its_shares(bench):
    bench.hold_shares()
    order = bench.trade('SELL', 600, 11.0)
    position = bench.broker.positions()[0]
    assert (position.amount, position.closeable_amount, position.frozen_volume) == (1000, 400, 600)
    with pytest.raises(b.OrderRejected):
        bench.send('SELL', 500, 11.0)
    bench.broker.cancel(order.order_id, 5)
    assert bench.broker.positions()[0].closeable_amount == 1000


def test_a_new_day_ends_the_orders_of_the_old_one(bench):
    bench.hold_shares()
    bench.market.set(STOCK, bid=9.0, ask=10.0, ask_volume=300)
    buy, sale = bench.trade('BUY', 1000, 10.0), bench.trade('SELL', 500, 11.0)
    bench.next_day()
    assert bench.broker.orders() == [] and bench.broker.trades() == []
    assert bench.broker.account().frozen_cash == 0.0
    assert bench.broker.positions()[0].closeable_amount == 1300
    bench.exchange.match_now()
    last = {record.order_id: record.status for kind, record in bench.events if kind == 'order'}
    assert last == {buy.order_id: 'partly_canceled', sale.order_id: 'canceled'}
    with pytest.raises(b.OrderNotFound):
        bench.broker.cancel(buy.order_id, 5)
    assert bench.broker.order(buy.order_id) is None


def test_a_clock_set_back_makes_no_new_day(bench):
    bench.trade('BUY', 1000, 10.0)
    bench.clock.set(MORNING - timedelta(days=1))
    assert bench.broker.positions()[0].closeable_amount == 0 and len(bench.broker.orders()) == 1


# -- the account ---------------------------------------------------------------------------------------------------
def test_the_average_cost_holds_the_fees_and_moves_with_buys_only(bench):
    bench.hold_shares(1000)  # 10005.10
    assert bench.broker.positions()[0].avg_cost == pytest.approx(10.0051, abs=1e-9)
    bench.market.set(STOCK, bid=12.0, ask=12.0)
    bench.trade('SELL', 500, 12.0)
    assert bench.broker.positions()[0].avg_cost == pytest.approx(10.0051, abs=1e-9)
    bench.trade('BUY', 500, 12.0)  # (500 x 10.0051 + 6005.06) / 1000
    assert bench.broker.positions()[0].avg_cost == pytest.approx(11.00761, abs=1e-9)


def test_an_account_adds_up(bench):
    bench.hold_shares(1000)
    bench.market.set(STOCK, bid=12.0, ask=12.01, last_price=12.0)
    bench.trade('SELL', 500, 12.0)  # 6000 - 5 - 0.06 - 3.00 = 5991.94
    bench.trade('BUY', 100, 11.0)   # rests: 1100 + 5 + 0.01
    assert bench.broker.account() == b.Account(
        account_id='55001234', account_type='stock', available_cash=994881.83, frozen_cash=1105.01,
        transferable_cash=988889.89, market_value=6000.0, total_value=1001986.84)
    bench.next_day()
    assert bench.broker.account().transferable_cash == 995986.84
    position = bench.broker.positions()[0]
    assert (position.name, position.last_price, position.market_value) == ('名称000001', 12.0, 6000.0)


def test_what_sales_brought_and_buys_took_again_is_not_transferable():
    bench = Bench(cash=20000.0)
    bench.hold_shares(1000)
    bench.trade('SELL', 1000, 10.0)  # 9994.90, and + 9989.90
    bench.trade('BUY', 1500, 10.0)
    assert bench.broker.account().available_cash == 4979.65  # 19984.80 - 15005.15
    assert bench.broker.account().transferable_cash == 0.0


def test_without_a_price_the_last_one_known_counts(bench):
    bench.hold_shares(1000)
    bench.market.set(STOCK, bid=12.0, ask=12.0)
    assert bench.broker.account().market_value == 12000.0
    bench.market.set(STOCK, bid=0.0, ask=0.0, last_price=0.0, paused=True)
    assert bench.broker.account().market_value == 12000.0
    del bench.market.quotes[STOCK]
    assert bench.broker.positions()[0].last_price == 12.0


def test_accounts_do_not_see_each_other(bench):
    order = bench.trade('BUY', 100, 9.0)
    other = bench.brokers[1]
    assert other.orders() == [] and other.order(order.order_id) is None
    assert other.account().available_cash == 1000000.0
    with pytest.raises(b.OrderNotFound):
        other.cancel(order.order_id, 5)


# -- rows ----------------------------------------------------------------------------------------------------------
def test_rows_say_what_was_asked(bench):
    order = bench.trade('BUY', 100, 10.0, '000001.SZ', tag='tag-1', strategy_name='demo')
    trade = bench.broker.trades()[0]
    assert (order.security, order.style, order.price_type, order.time) == (STOCK, 'limit', 50, MORNING)
    assert (order.order_remark, order.strategy_name) == ('tag-1', 'demo') and order.order_sysid
    assert (trade.order_id, trade.security, trade.side, trade.time) == (order.order_id, STOCK, 'BUY', MORNING)
    assert (trade.deal_balance, trade.order_remark) == (1000.0, 'tag-1')
    assert bench.broker.find('tag-1') == order and bench.broker.find('tag-2') is None


def test_ids_are_decimal_unique_and_grow_over_a_restart(bench):
    ids = [bench.trade('BUY', 100, 10.0).order_id for _ in range(3)]
    ids += [trade.trade_id for trade in bench.broker.trades()]
    assert all(text.isdigit() for text in ids) and len(set(ids)) == 6
    restarted = Bench(start=MORNING + timedelta(seconds=1))
    assert int(restarted.trade('BUY', 100, 10.0).order_id) > max(map(int, ids))


def test_rows_given_out_are_copies(bench):
    bench.trade('BUY', 100, 9.0)
    bench.broker.orders()[0].status = 'filled'
    assert bench.broker.orders()[0].status == 'open'


# -- cancelling ----------------------------------------------------------------------------------------------------
def test_cancel_frees_what_was_frozen_and_tells(bench):
    bench.market.set(STOCK, ask_volume=300)
    order = bench.trade('BUY', 1000, 10.0)
    bench.broker.cancel(order.order_id, 5)
    assert bench.broker.order(order.order_id).status == 'partly_canceled'
    assert bench.money() == (996994.97, 0.0)
    bench.exchange.match_now()
    assert bench.events[-1][1].status == 'partly_canceled'
    untouched = bench.send('BUY', 100, 10.0)
    bench.broker.cancel(untouched, 5)
    assert bench.broker.order(untouched).status == 'canceled'


def test_cancel_of_what_is_over_changes_nothing(bench):
    order = bench.trade('BUY', 100, 10.0)
    before = list(bench.events)
    bench.broker.cancel(order.order_id, 5)
    bench.exchange.match_now()
    assert bench.broker.order(order.order_id) == order and bench.events == before


def test_cancel_of_an_unknown_order(bench):
    with pytest.raises(b.OrderNotFound):
        bench.broker.cancel('12345', 5)


# -- refusals ------------------------------------------------------------------------------------------------------
def test_not_enough_cash_says_need_and_available():
    bench = Bench(cash=10005.09)
    assert bench.refused('BUY', 1000, 10.0) == '可用资金不足：需要 10005.10 元（含费用），可用 10005.09 元'
    assert Bench(cash=10005.10).trade('BUY', 1000, 10.0).status == 'filled'


@pytest.mark.parametrize('side, amount, price, code, words', [
    ('BUY', 100, 11.01, STOCK, '高于涨停价'), ('BUY', 100, 8.99, STOCK, '低于跌停价'),
    ('BUY', 100, 10.001, STOCK, '最小价位'), ('BUY', 100, 0.0, STOCK, '应大于 0'),
    ('BUY', 150, 10.0, STOCK, '整数倍'), ('BUY', 50, 10.0, STOCK, '最小申报数量'),
    ('BUY', 100, 10.0, STAR, '最小申报数量'), ('BUY', 100, 10.0, INDEX, '不能交易'),
    ('BUY', 100, 10.0, '600999.XSHG', '不能交易'), ('BUY', 100, 10.0, '600998.XSHG', '没有 600998.XSHG 的行情'),
    ('BUY', 100, 10.0, '700000.XSHG', '不能交易'), ('BUY', 100, 10.0, '000001', '证券代码不认识'),
    ('BUY', 100, 10.0, OTHER, '停牌'), ('SELL', 100, 10.0, STOCK, '可卖数量不足'),
    ('BUY', 100, float('nan'), STOCK, '委托价格'), ('BUY', 100, float('inf'), STOCK, '委托价格'),
    ('BUY', 100, -10.0, STOCK, '委托价格'), ('BUY', 100, None, STOCK, '委托价格'), ('BUY', 100, '10', STOCK, '委托价格'),
    ('BUY', 100.5, 10.0, STOCK, '数量'), ('BUY', 0, 10.0, STOCK, '数量'), ('BUY', -100, 10.0, STOCK, '数量'),
    ('BUY', True, 10.0, STOCK, '数量'), ('BUY', 10 ** 30, 10.0, STOCK, '数量'), ('HOLD', 100, 10.0, STOCK, 'side')])
@pytest.mark.parametrize('market', [False, True])
def test_what_is_no_order_is_refused(bench, side, amount, price, code, words, market):
    bench.market.set(STOCK, high_limit=11.0, low_limit=9.0)
    bench.market.set(STAR)
    bench.market.set(INDEX)
    bench.market.set(OTHER, paused=True)
    expected = words.replace('委托价格', '保护价') if market else words
    assert expected in bench.refused(side, amount, price, code, market=market)


def test_prices_at_the_limits_are_fine(bench):
    bench.market.set(STOCK, high_limit=11.0, low_limit=9.0)
    assert bench.trade('BUY', 100, 11.0).status == 'filled'
    assert bench.trade('BUY', 100, 9.0).status == 'open'


def test_an_odd_rest_may_be_sold_whole(bench):
    bench.market.set(STOCK, ask_volume=150)
    order = bench.trade('BUY', 200, 10.0)
    bench.next_day()
    assert bench.broker.order(order.order_id) is None
    with pytest.raises(b.OrderRejected):
        bench.send('SELL', 20, 10.0)
    assert bench.trade('SELL', 150, 10.0).status == 'filled'


def test_an_order_in_a_suspended_security_rests(bench):
    order = bench.trade('BUY', 100, 9.0)
    bench.market.set(STOCK, bid=8.0, ask=8.0, paused=True)
    bench.exchange.match_now()
    assert bench.broker.order(order.order_id).status == 'open'
    del bench.market.quotes[STOCK]
    bench.exchange.match_now()
    assert bench.broker.order(order.order_id).status == 'open'


# -- hours of the market clock -------------------------------------------------------------------------------------
@pytest.mark.parametrize('moment', [datetime(2024, 3, 5, 15, 0), datetime(2024, 3, 5, 23, 0),
                                    datetime(2024, 3, 9, 10, 0), datetime(2024, 10, 1, 10, 0),
                                    datetime(2024, 4, 4, 10, 0), datetime(2026, 7, 6, 15, 30)])
def test_no_orders_when_the_day_is_over_or_none(moment):
    assert '非交易时间' in Bench(always_open=False, start=moment).refused('BUY', 100, 10.0)


@pytest.mark.parametrize('before, opening', [(datetime(2024, 3, 5, 8, 0), datetime(2024, 3, 5, 9, 30)),
                                             (datetime(2024, 3, 5, 12, 0), datetime(2024, 3, 5, 13, 0))])
def test_limit_orders_before_a_session_wait_for_it(before, opening):
    bench = Bench(always_open=False, start=before)
    order = bench.trade('BUY', 100, 10.0)
    assert (order.status, order.filled) == ('submitted', 0)
    bench.clock.set(opening)
    bench.exchange.match_now()
    assert bench.broker.order(order.order_id).status == 'filled'


# Market orders are for continuous trading alone: SSE trading rules 3.3.1 and 3.3.3, those of SZSE and BSE alike.
@pytest.mark.parametrize('clock', ['08:00', '09:10', '09:17', '09:22', '09:27', '09:29', '11:30', '11:45', '12:59',
                                   '14:57', '14:58', '14:59'])
def test_market_orders_are_refused_outside_continuous_trading(clock):
    bench = Bench(always_open=False, start=datetime(2024, 3, 5, *map(int, clock.split(':'))))
    assert '连续竞价' in bench.refused('BUY', 100, 10.0, market=True)
    assert bench.send('BUY', 100, 10.0)


@pytest.mark.parametrize('clock', ['09:30', '11:29', '13:00', '14:56'])
def test_market_orders_are_taken_in_continuous_trading(clock):
    bench = Bench(always_open=False, start=datetime(2024, 3, 5, *map(int, clock.split(':'))))
    assert bench.trade('BUY', 100, 10.0, market=True).status == 'filled'


@pytest.mark.parametrize('code, day, taken', [
    ('600036.XSHG', (2018, 8, 17), True), ('600036.XSHG', (2018, 8, 20), False), ('000001.XSHE', (2018, 8, 17), False),
    ('510300.XSHG', (2026, 7, 3), True), ('510300.XSHG', (2026, 7, 6), False), ('159915.XSHE', (2026, 7, 3), False),
    ('113050.XSHG', (2026, 7, 6), True), ('123001.XSHE', (2026, 7, 6), False), ('688001.XSHG', (2024, 3, 5), False)])
def test_the_closing_auction_has_a_date(code, day, taken):
    """Shanghai's stocks since 2018-08-20, its funds since 2026-07-06, its bonds never; Shenzhen since 2006."""
    bench = Bench(always_open=False, start=datetime(*day + (14, 58)))
    bench.market.set(code)
    if taken:
        assert bench.send('BUY', 200, 10.0, code, market=True)
    else:
        assert '连续竞价' in refusal(bench, 'BUY', 200, 10.0, code, market=True)


@pytest.mark.parametrize('code, day, clock, taken', [
    ('600036.XSHG', (2024, 3, 5), '09:19', True), ('600036.XSHG', (2024, 3, 5), '09:20', False),
    ('600036.XSHG', (2024, 3, 5), '09:22', False), ('000001.XSHE', (2024, 3, 5), '09:24', False),
    ('600036.XSHG', (2024, 3, 5), '09:25', True), ('600036.XSHG', (2024, 3, 5), '10:00', True),
    ('600036.XSHG', (2024, 3, 5), '12:00', True), ('600036.XSHG', (2024, 3, 5), '14:56', True),
    ('600036.XSHG', (2024, 3, 5), '14:57', False), ('000001.XSHE', (2024, 3, 5), '14:58', False),
    ('600036.XSHG', (2024, 3, 5), '14:59', False), ('600036.XSHG', (2024, 3, 5), '15:00', True),
    ('600036.XSHG', (2018, 8, 17), '14:58', True), ('510300.XSHG', (2026, 7, 3), '14:58', True),
    ('510300.XSHG', (2026, 7, 6), '14:58', False), ('113050.XSHG', (2026, 7, 6), '14:58', True),
    ('920002.BJ', (2026, 7, 6), '09:21', False), ('920002.BJ', (2026, 7, 6), '14:58', False)])
def test_cancels_are_refused_in_the_auctions(code, day, clock, taken):
    """9:20 to 9:25 and the closing auction: SSE trading rules 3.3.5, those of SZSE and BSE alike."""
    bench = Bench(always_open=False, start=datetime(*day + (9, 16)))
    bench.market.set(code, bid=11.0, ask=11.0)
    order_id = bench.send('BUY', 200, 10.0, code)
    bench.clock.set(datetime(*day + tuple(map(int, clock.split(':')))))
    if taken:
        bench.broker.cancel(order_id)
    else:
        with pytest.raises(b.OrderRejected, match='不接受撤单') as caught:
            bench.broker.cancel(order_id)
        assert caught.value.broker_called is True
    assert bench.broker.order(order_id).status == ('canceled' if taken else 'submitted')


# -- after-hours trading at the close, 15:05 to 15:30 ----------------------------------------------------------------
@pytest.mark.parametrize('code, day, taken', [
    ('688001.XSHG', (2019, 7, 22), True), ('688981.XSHG', (2024, 3, 5), True), ('300750.XSHE', (2020, 8, 24), True),
    ('300750.XSHE', (2020, 8, 21), False), ('600036.XSHG', (2026, 7, 3), False), ('600036.XSHG', (2026, 7, 6), True),
    ('000001.XSHE', (2026, 7, 6), True), ('510300.XSHG', (2026, 7, 3), False), ('510300.XSHG', (2026, 7, 6), True),
    ('161725.XSHE', (2026, 7, 6), True), ('159915.XSHE', (2024, 3, 5), False), ('113050.XSHG', (2026, 7, 6), False),
    ('920002.BJ', (2026, 7, 6), False)])
def test_who_is_traded_after_hours(code, day, taken):
    """STAR from its first day, ChiNext since 2020-08-24, all A shares and funds of both exchanges since 2026-07-06."""
    bench = Bench(always_open=False, start=datetime(*day + (15, 1)))
    bench.market.set(code, last_price=10.0)
    if taken:
        assert bench.trade('BUY', 200, 10.0, code).status == 'submitted'
    else:
        assert '非交易时间' in refusal(bench, 'BUY', 200, 10.0, code)


def test_an_order_after_hours_fills_at_the_close():
    bench = Bench(always_open=False, start=datetime(2026, 7, 6, 15, 2))
    bench.market.set(STOCK, bid=9.99, ask=10.01, ask_volume=1000, last_price=10.0)
    order = bench.trade('BUY', 1500, 10.2)
    assert (order.status, order.filled) == ('submitted', 0), 'taken, but not matched before 15:05'
    bench.clock.set(datetime(2026, 7, 6, 15, 5))
    bench.exchange.match_now()
    order = bench.broker.order(order.order_id)
    assert (order.status, order.filled, order.avg_price) == ('filling', 1000, 10.0)
    bench.clock.set(datetime(2026, 7, 6, 15, 29, 59))
    bench.exchange.match_now()
    assert bench.broker.order(order.order_id).avg_price == 10.0
    assert bench.broker.order(order.order_id).status == 'filled'


def test_after_hours_is_over_at_half_past_three():
    bench = Bench(always_open=False, start=datetime(2026, 7, 6, 15, 2))
    bench.market.set(STOCK, last_price=10.0)
    order_id = bench.send('BUY', 100, 10.0)
    bench.clock.set(datetime(2026, 7, 6, 15, 30))
    bench.exchange.match_now()
    assert bench.broker.order(order_id).filled == 0
    assert '非交易时间' in refusal(bench, 'BUY', 100, 10.0)


def refusal(bench, *args, **kwargs):
    with pytest.raises(b.OrderRejected) as caught:
        bench.send(*args, **kwargs)
    return caught.value.message


def test_an_order_after_hours_whose_price_does_not_allow_the_close_is_refused():
    bench = Bench(always_open=False, start=datetime(2026, 7, 6, 14, 0))
    bench.trade('BUY', 100, 10.0)
    bench.clock.set(datetime(2026, 7, 7, 15, 10))
    assert '低于收盘价' in refusal(bench, 'BUY', 100, 9.99)
    assert '高于收盘价' in refusal(bench, 'SELL', 100, 10.01)
    assert '市价' in refusal(bench, 'BUY', 100, 10.2, market=True)
    order = bench.trade('SELL', 100, 9.5)
    assert (order.status, order.avg_price) == ('filled', 10.0)


def test_an_order_of_the_day_is_not_one_of_after_hours():
    bench = Bench(always_open=False, start=datetime(2026, 7, 6, 14, 59))
    bench.market.set(STOCK, bid=10.4, ask=10.5, ask_volume=100, last_price=10.0)
    order = bench.trade('BUY', 300, 10.2)
    for minute in (0, 10, 20):
        bench.clock.set(datetime(2026, 7, 6, 15, minute))
        bench.exchange.match_now()
        assert bench.broker.order(order.order_id).filled == 100, 'what the closing auction gave'


# -- call auctions ---------------------------------------------------------------------------------------------------
# SSE trading rules 3.1.2, 3.5 and 3.6, those of SZSE and BSE alike: in a call auction orders are collected and trade
# at its end at one price, the opening or the closing price of the day.
def at(bench, *clock):
    bench.clock.set(datetime.combine(bench.clock.now().date(), time(*clock)))
    bench.exchange.match_now()


def deals(bench):
    return [(trade.side, trade.amount, trade.price) for trade in bench.broker.trades()]


@pytest.mark.parametrize('code, day, called', [
    ('600036.XSHG', (2024, 3, 5), True), ('600036.XSHG', (2018, 8, 20), True), ('600036.XSHG', (2018, 8, 17), False),
    ('000001.XSHE', (2018, 8, 17), True), ('688001.XSHG', (2024, 3, 5), True), ('300750.XSHE', (2024, 3, 5), True),
    ('920002.BJ', (2024, 3, 5), True), ('510300.XSHG', (2026, 7, 3), False), ('510300.XSHG', (2026, 7, 6), True),
    ('159915.XSHE', (2024, 3, 5), True), ('113050.XSHG', (2026, 7, 6), False), ('123001.XSHE', (2024, 3, 5), True)])
def test_orders_of_the_closing_auction_trade_at_the_close(code, day, called):
    bench = Bench(always_open=False, start=datetime(*day + (14, 58)))
    bench.market.set(code, bid=9.99, ask=10.01, last_price=10.0)
    order = bench.trade('BUY', 200, 10.2, code)
    if not called:
        assert (order.status, order.avg_price) == ('filled', 10.01)
        return
    assert (order.status, order.filled) == ('open', 0), 'rests until 15:00'
    at(bench, 14, 59, 59)
    assert deals(bench) == []
    bench.market.set(code, bid=10.09, ask=10.11, last_price=10.1)
    at(bench, 15, 0)
    assert deals(bench) == [('BUY', 200, 10.1)]


def test_a_resting_order_is_part_of_the_closing_auction_and_only_then():
    bench = Bench(always_open=False, start=datetime(2024, 3, 4, 10, 0))
    bench.hold_shares()
    buy, sale = bench.trade('BUY', 100, 9.5), bench.trade('SELL', 100, 10.5)
    at(bench, 14, 57)
    bench.market.set(STOCK, bid=9.3, ask=9.4, last_price=9.35)
    at(bench, 14, 58)
    assert (bench.broker.order(buy.order_id).filled, bench.broker.order(sale.order_id).filled) == (0, 0)
    at(bench, 15, 0)
    assert deals(bench) == [('BUY', 100, 9.35)]
    bench.market.set(STOCK, bid=10.5, ask=10.6, last_price=10.55)
    at(bench, 15, 1)
    assert deals(bench) == [('BUY', 100, 9.35)], 'there is one closing auction'


@pytest.mark.parametrize('side, price, traded', [('BUY', 10.0, True), ('BUY', 9.99, False), ('BUY', 10.5, True),
                                                 ('SELL', 10.0, True), ('SELL', 10.01, False), ('SELL', 9.5, True)])
@pytest.mark.parametrize('entered, end', [((9, 16), (9, 30)), ((9, 24, 59), (9, 30)), ((14, 57), (15, 0)),
                                          ((14, 59, 59), (15, 0))])
def test_an_auction_has_one_price_and_a_limit_worse_than_it_rests(side, price, traded, entered, end):
    bench = Bench(always_open=False, start=datetime(2024, 3, 4, 10, 0))
    bench.hold_shares()
    bench.clock.set(datetime(2024, 3, 5, *entered))
    bench.market.set(STOCK, bid=9.98, ask=10.02, last_price=10.0, open=10.0)
    order = bench.trade(side, 100, price)
    assert order.filled == 0
    at(bench, *end)
    assert deals(bench) == ([(side, 100, 10.0)] if traded else [])
    assert bench.broker.order(order.order_id).status == ('filled' if traded else 'open')


@pytest.mark.parametrize('clock, price', [((8, 30), 10.0), ((9, 15), 10.0), ((9, 24, 59), 10.0), ((9, 25), 10.4),
                                          ((9, 29, 59), 10.4), ((9, 30), 10.4), ((12, 0), 10.4)])
def test_orders_before_0925_trade_at_the_opening_price_and_later_ones_in_continuous_trading(clock, price):
    bench = Bench(always_open=False, start=datetime(2024, 3, 5, *clock))
    bench.market.set(STOCK, bid=10.3, ask=10.4, last_price=10.35, open=10.0)
    assert bench.trade('BUY', 100, 10.5).filled == (100 if clock == (9, 30) else 0)
    at(bench, *((13, 0) if clock == (12, 0) else (9, 30)))
    assert deals(bench) == [('BUY', 100, price)]


def test_the_better_price_goes_first_in_an_auction_and_nothing_trades_against_an_empty_side():
    bench = Bench(always_open=False, start=datetime(2024, 3, 5, 14, 58))
    bench.market.set(STOCK, bid=9.99, ask=10.01, ask_volume=300, last_price=10.0)
    first, second, third = [bench.send('BUY', 200, price) for price in (10.0, 10.1, 10.2)]
    bench.market.set(OTHER, bid=11.0, ask=0.0, ask_volume=0, last_price=11.0, high_limit=11.0)
    at_the_limit = bench.send('BUY', 200, 11.0, OTHER)
    at(bench, 15, 0)
    filled = [bench.broker.order(order_id).filled for order_id in (first, second, third, at_the_limit)]
    assert filled == [0, 100, 200, 0]


def test_a_quote_from_before_the_end_of_an_auction_ends_none(monkeypatch):
    bench = Bench(always_open=False, start=datetime(2024, 3, 5, 14, 58))
    bench.trade('BUY', 100, 10.2)
    quote, late = bench.market.quote, timedelta(seconds=2)
    monkeypatch.setattr(bench.market, 'quote', lambda code: quote(code).replace(dt=bench.clock.now() - late))
    at(bench, 15, 0)
    assert deals(bench) == []
    at(bench, 15, 0, 2)
    assert deals(bench) == [('BUY', 100, 10.0)]


def test_what_after_hours_has_not_filled_can_be_cancelled():
    bench = Bench(always_open=False, start=datetime(2026, 7, 6, 15, 10))
    bench.market.set(STOCK, ask=0.0, ask_volume=0, bid=10.0, last_price=10.0)
    order = bench.trade('BUY', 100, 10.0)
    assert order.status == 'open' and bench.exchange.open_orders == 1
    bench.broker.cancel(order.order_id)
    assert bench.broker.order(order.order_id).status == 'canceled' and bench.exchange.open_orders == 0


# -- what a round costs ----------------------------------------------------------------------------------------------
class Looks:
    """How often the exchange asks an order whether it accepts a price."""

    def __init__(self, monkeypatch):
        self.count, accepts = 0, b._Hold.accepts

        def counted(hold, price):
            self.count += 1
            return accepts(hold, price)
        monkeypatch.setattr(b._Hold, 'accepts', counted)

    def during(self, action):
        self.count = 0
        action()
        return self.count


@pytest.mark.parametrize('resting', [300, 5000])
def test_a_round_costs_what_trades_and_not_what_rests(monkeypatch, resting):
    bench = Bench(cash=1e9)
    bench.market.set(STOCK, bid=10.0, ask=10.01)
    for number in range(resting):
        bench.send('BUY', 100, round(8.0 + number % 150 / 100, 2))
    bench.exchange.match_now()
    looks = Looks(monkeypatch)
    assert looks.during(bench.exchange.match_now) == 1  # the best of the bids
    assert looks.during(lambda: bench.trade('BUY', 100, 10.01)) <= 4
    bench.market.set(STOCK, bid=9.47, ask=9.48, ask_volume=500)
    # 9.49 first: as many as the volume reaches, each of them once more to see whether its fill is inside its bound
    assert looks.during(bench.exchange.match_now) <= 12
    assert bench.exchange.open_orders == resting - (5 if resting == 5000 else 4)


def test_resting_orders_trade_by_price_then_time(bench):
    bench.market.set(STOCK, bid=10.0, ask=11.0)
    orders = [bench.send('BUY', 100, price, broker=broker)
              for price, broker in ((9.0, bench.brokers[0]), (9.5, bench.brokers[1]), (9.2, bench.brokers[0]),
                                    (9.5, bench.brokers[0]), (8.9, bench.brokers[1]))]
    bench.exchange.match_now()
    bench.market.set(STOCK, bid=8.8, ask=9.0, ask_volume=300)
    bench.exchange.match_now()
    assert [record.order_id for kind, record in bench.events if kind == 'trade'] == [orders[1], orders[3], orders[2]]
    bench.clock.advance(3)
    bench.exchange.match_now()
    assert [record.order_id for kind, record in bench.events if kind == 'trade'][3:] == [orders[0]]


def test_resting_sales_trade_by_price_then_time(bench):
    bench.hold_shares(500)
    bench.market.set(STOCK, bid=10.0, ask=10.1)
    orders = [bench.send('SELL', 100, price) for price in (10.5, 10.3, 10.4, 10.3, 10.6)]
    bench.exchange.match_now()
    bench.broker.cancel(orders[1])
    bench.market.set(STOCK, bid=10.5, ask=10.6)
    bench.exchange.match_now()
    assert [record.order_id for kind, record in bench.events if kind == 'trade'] == [orders[3], orders[2], orders[0]]
    assert bench.exchange.open_orders == 1


def test_frozen_cash_is_the_sum_of_what_open_orders_hold(bench):
    bench.market.set(STOCK, bid=9.0, ask=10.0, ask_volume=300)
    first, second = bench.send('BUY', 500, 10.0), bench.send('BUY', 200, 9.5)
    bench.exchange.match_now()
    assert bench.ledger.frozen_cash == sum(hold.cash for hold in bench.ledger.holds.values()) > 0
    bench.broker.cancel(first)
    assert bench.ledger.frozen_cash == sum(hold.cash for hold in bench.ledger.holds.values()) > 0
    bench.broker.cancel(second)
    assert bench.ledger.frozen_cash == 0 == bench.broker.account().frozen_cash


def test_the_calendars_next_day_is_a_trade_day():
    bench = Bench(always_open=False, start=datetime(2024, 3, 8, 10, 0))  # a Friday
    bench.trade('BUY', 100, 10.0)
    for moment in (datetime(2024, 3, 8, 23, 0), datetime(2024, 3, 9, 10, 0), datetime(2024, 3, 10, 10, 0)):
        bench.clock.set(moment)
        assert bench.broker.positions()[0].closeable_amount == 0 and len(bench.broker.orders()) == 1
    bench.clock.set(datetime(2024, 3, 11, 9, 0))
    assert bench.broker.positions()[0].closeable_amount == 100 and bench.broker.orders() == []


# -- events and the thread -----------------------------------------------------------------------------------------
def test_events_come_in_order_and_without_any_lock(bench):
    def listen(kind, record):
        seen.append((kind, getattr(record, 'status', None)))
        helper = threading.Thread(target=lambda: asked.append(bench.broker.orders()), daemon=True)
        helper.start()
        helper.join(10)

    seen, asked = [], []
    bench.broker.set_listener(listen)
    bench.market.set(STOCK, ask_volume=300)
    bench.trade('BUY', 500, 10.0)
    assert seen == [('order', 'submitted'), ('trade', None), ('order', 'filling'), ('account', None)]
    assert len(asked) == 4


def test_account_figures_follow_what_happened(bench):
    told = []
    bench.broker.set_listener(lambda kind, record: told.append(record) if kind == 'account' else None)
    bench.trade('BUY', 100, 10.0)
    assert told[-1] == bench.broker.account() and told[-1].available_cash == 998994.99
    count = len(told)
    bench.exchange.match_now()
    assert len(told) == count, 'nothing happened, nothing is told'


def test_account_figures_are_told_at_most_some_times_a_second_and_the_last_ones_always(bench):
    told = []
    bench.broker.set_listener(lambda kind, record: told.append(record) if kind == 'account' else None)
    for _ in range(3):
        bench.trade('BUY', 100, 10.0)
    assert len(told) == 1 and bench.exchange._next_due_s() == 0.2
    bench.clock.advance(0.2)
    bench.exchange.match_now()
    assert told[1:] == [bench.broker.account()] and bench.exchange._next_due_s() is None


def test_account_figures_that_could_not_be_told_are_due_again(bench, monkeypatch):
    def fail(account):
        raise RuntimeError('no price')

    told = []
    bench.broker.set_listener(lambda kind, record: told.append(record) if kind == 'account' else None)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(bench.exchange, 'overview', fail)
        bench.trade('BUY', 100, 10.0)
    assert not told and bench.exchange._next_due_s() == 0.2
    bench.clock.advance(0.2)
    bench.exchange.match_now()
    assert told == [bench.broker.account()]


def test_the_thread_tells_the_last_figures_by_itself(bench):
    told = queue.Queue()
    bench.broker.set_listener(lambda kind, record: told.put(record) if kind == 'account' else None)
    for _ in range(2):
        bench.trade('BUY', 100, 10.0)
    bench.clock.advance(0.2)
    bench.exchange.start()
    try:
        first, last = told.get(timeout=20), told.get(timeout=20)
    finally:
        bench.exchange.close()
    assert last == bench.broker.account() and first.available_cash > last.available_cash


def test_a_failing_listener_stops_nothing(bench, caplog):
    bench.broker.set_listener(lambda kind, record: 1 / 0)
    assert bench.trade('BUY', 100, 10.0).status == 'filled'
    assert 'ZeroDivisionError' in caplog.text


def test_a_listener_may_trade(bench):
    def listen(kind, record):
        seen.append((kind, record.order_id))
        if kind == 'trade' and len(seen) < 4:
            bench.trade('BUY', 100, 10.0)

    seen = []
    bench.broker.set_listener(listen)
    first = bench.trade('BUY', 100, 10.0).order_id
    second = bench.broker.orders()[1].order_id
    assert seen == [(kind, order_id) for order_id in (first, second) for kind in ('order', 'trade', 'order')]


def test_the_thread_matches_at_once_and_ends_with_close(bench):
    filled = threading.Event()
    bench.broker.set_listener(lambda kind, record: kind == 'order' and record.final and filled.set())
    bench.exchange.start()
    bench.send('BUY', 100, 10.0)
    assert filled.wait(20)
    bench.exchange.close()
    assert 'bullet-paper-exchange' not in [thread.name for thread in threading.enumerate()]


def test_the_thread_survives_a_round_that_fails(bench, caplog):
    def quote(code):
        if threading.current_thread().name == 'bullet-paper-exchange' and not failed.is_set():
            failed.set()
            raise KeyError('broken')
        return FakeMarket.quote(bench.market, code)

    failed, filled = threading.Event(), threading.Event()
    bench.market.quote = quote
    bench.broker.set_listener(lambda kind, record: kind == 'order' and record.final and filled.set())
    bench.exchange.tick_interval_s = 0.01
    bench.exchange.start()
    bench.send('BUY', 100, 10.0)
    assert filled.wait(20) and failed.is_set()
    bench.exchange.close()
    assert 'broken' in caplog.text


# -- the ledger alone ----------------------------------------------------------------------------------------------
def test_the_ledger_refuses_fills_outside_the_order():
    ledger = b.StubLedger(10 ** 9)
    ledger.hold('1', STOCK, 'BUY', 100, 10000, date(2024, 3, 5))
    for amount, price in ((101, 10000), (0, 10000), (-1, 10000), (100, 10001)):
        with pytest.raises(ValueError):
            ledger.fill('1', amount, price)
    assert ledger.fill('1', 100, 9000) == (5010, 0)
    assert ledger.cash == 10 ** 9 - 900000 - 5010 and ledger.holds == {}


# -- properties ----------------------------------------------------------------------------------------------------
FLOW_CODES = {STOCK: 100, STAR: 200, ETF: 100, CASH_ETF: 100}
PRICES = st.integers(1, 30)
VOLUMES = st.sampled_from([0, 1, 37, 100, 450, 10 ** 6])
CODES = st.sampled_from(sorted(FLOW_CODES))
STEPS = st.one_of(
    st.tuples(st.just('order'), st.integers(0, 1), CODES, st.sampled_from(['BUY', 'SELL']), st.integers(1, 12), PRICES,
              st.booleans()),
    st.tuples(st.just('cancel'), st.integers(0, 1), st.integers(0, 30)),
    st.tuples(st.just('quote'), CODES, PRICES, st.integers(0, 2), VOLUMES, VOLUMES),
    st.tuples(st.just('round'), st.sampled_from([0, 1, 3])),
    st.tuples(st.just('day')))


def mills(yuan):
    number = Decimal(repr(yuan)) * 1000
    assert number == int(number)
    return int(number)


class Flow:
    """Plays steps on a bench and keeps books of its own, out of the trades that listeners are told."""

    def __init__(self, cash):
        self.bench, self.cash = Bench(cash=cash), cash
        self.books = [defaultdict(int) for _ in self.bench.brokers]  # code -> shares
        self.flows, self.sold = [0, 0], [defaultdict(int), defaultdict(int)]
        for number, broker in enumerate(self.bench.brokers):
            broker.set_listener(lambda kind, record, number=number: kind == 'trade' and self.book(number, record))
        for code in FLOW_CODES:
            self.price(code, 10, 0, 10 ** 6, 10 ** 6)
            for broker in self.bench.brokers:
                self.bench.trade('BUY', 1000, 0.1, code, broker=broker)
        self.day()

    def price(self, code, cents, gap, bid_volume, ask_volume):
        bid = cents / 100.0
        self.bench.market.set(code, bid, round(bid + gap / 100.0, 2), bid_volume, ask_volume)

    def book(self, number, trade):
        sign = 1 if trade.side == 'BUY' else -1
        self.books[number][trade.security] += sign * trade.amount
        self.flows[number] -= sign * mills(trade.deal_balance) + mills(trade.commission) + mills(trade.tax)
        if sign < 0:
            self.sold[number][trade.security] += trade.amount
        assert trade.commission >= 0 and trade.tax >= 0

    def day(self):
        self.bench.clock.set(self.bench.clock.now() + timedelta(days=1))
        self.bench.exchange.match_now()
        self.at_open = [dict(book) for book in self.books]
        self.sold = [defaultdict(int), defaultdict(int)]

    def play(self, step):
        kind, args = step[0], step[1:]
        if kind == 'order':
            self.order(*args)
        elif kind == 'cancel':
            self.cancel(*args)
        elif kind == 'quote':
            self.price(*args)
        elif kind == 'day':
            self.day()
        else:
            self.bench.clock.advance(args[0])
            self.bench.exchange.match_now()
        self.check()

    def order(self, number, code, side, lots, cents, market):
        try:
            self.bench.send(side, lots * FLOW_CODES[code], cents / 100.0, code, market, self.bench.brokers[number])
        except b.OrderRejected:
            # Too little cash or too few shares. That nothing moved is checked after the step.
            return

    def cancel(self, number, which):
        orders = self.bench.brokers[number].orders()
        if orders:
            self.bench.brokers[number].cancel(orders[which % len(orders)].order_id, 5)

    def check(self):
        for number, broker in enumerate(self.bench.brokers):
            self.check_money(number, broker)
            self.check_shares(number, broker)
            self.check_orders(broker)

    def check_money(self, number, broker):
        row, orders = broker.account(), [order for order in broker.orders() if not order.final]
        cash, frozen = mills(row.available_cash), mills(row.frozen_cash)
        assert cash >= 0 and frozen >= 0 and cash + frozen == mills(self.cash) + self.flows[number]
        assert frozen == sum(self.frozen_by(order) for order in orders if order.side == 'BUY')
        assert 0 <= row.transferable_cash <= row.available_cash

    @staticmethod
    def frozen_by(order):
        """Worked out anew from the row: rest at its bound, plus what the whole order would cost, less what it paid."""
        rest = order.remaining * mills(order.order_price)
        value = Decimal(mills(order.deal_balance) + rest) / 1000
        commission, _, transfer = b.trade_fees(order.security, 'BUY', value, order.time.date())
        return rest + int((commission + transfer) * 1000) - mills(order.commission)

    def check_shares(self, number, broker):
        positions = {position.security: position for position in broker.positions()}
        assert {code: row.amount for code, row in positions.items()} == {
            code: amount for code, amount in self.books[number].items() if amount}
        frozen = defaultdict(int)
        for order in broker.orders():
            frozen[order.security] += 0 if order.final or order.side == 'BUY' else order.remaining
        for code, row in positions.items():
            assert row.frozen_volume == frozen[code] and row.closeable_amount >= 0 and row.avg_cost > 0
            assert row.closeable_amount <= row.amount - row.frozen_volume
        for code, sold in self.sold[number].items():
            assert b.instrument(code).t0 or sold + frozen[code] <= self.at_open[number].get(code, 0)

    @staticmethod
    def check_orders(broker):
        trades = defaultdict(list)
        for trade in broker.trades():
            trades[trade.order_id].append(trade)
        for order in broker.orders():
            rows = trades.pop(order.order_id, [])
            assert order.filled == sum(row.amount for row in rows) <= order.amount
            for name in ('deal_balance', 'commission', 'tax'):
                assert mills(getattr(order, name)) == sum(mills(getattr(row, name)) for row in rows)
            assert (order.status == 'filled') == (order.filled == order.amount)
        assert not trades


@settings(max_examples=120, deadline=None)
@given(st.integers(900, 3000), st.lists(STEPS, max_size=40))
def test_cash_and_shares_are_conserved(cash, steps):
    flow = Flow(float(cash))
    flow.check()
    for step in steps:
        flow.play(step)


SCRIPT = [('order', 0, STOCK, 'SELL', 5, 9, False), ('order', 1, STOCK, 'BUY', 12, 30, False), ('round', 3),
          ('quote', STOCK, 11, 1, 450, 37), ('order', 0, ETF, 'BUY', 4, 12, True), ('round', 1), ('cancel', 1, 0),
          ('order', 1, CASH_ETF, 'SELL', 2, 9, False), ('round', 3)]


def test_the_same_orders_at_the_same_times_give_the_same_rows():
    rows = []
    for _ in range(2):
        flow = Flow(1500.0)
        for step in SCRIPT:
            flow.play(step)
        rows.append([[broker.orders(), broker.trades(), broker.positions(), broker.account()]
                     for broker in flow.bench.brokers])
    assert rows[0] == rows[1] and all(len(trades) > 1 for _, trades, _, _ in rows[0])


# -- many threads --------------------------------------------------------------------------------------------------
class Crowd:
    """Threads that order and cancel while others run one round for each order."""

    def __init__(self, orders_a_thread=40):
        self.bench, self.orders_a_thread = Bench(cash=10 ** 7), orders_a_thread
        self.bench.market.set(STOCK, bid=9.99, ask=10.0, ask_volume=500)
        self.ids, self.errors, self.wanted = [], [], queue.Queue()

    def run(self):
        rounds = [threading.Thread(target=self.guard, args=(self.match, None), daemon=True) for _ in range(2)]
        workers = [threading.Thread(target=self.guard, args=(self.trade, number), daemon=True) for number in range(4)]
        for thread in rounds + workers:
            thread.start()
        for thread in workers:
            thread.join(60)
        for thread in rounds:
            self.wanted.put(False)
        for thread in rounds:
            thread.join(60)
        assert self.errors == [] and not any(thread.is_alive() for thread in rounds + workers)
        self.bench.exchange.match_now()

    def guard(self, target, argument):
        try:
            target(argument)
        except BaseException as error:
            self.errors.append(error)

    def trade(self, number):
        broker = self.bench.brokers[number % 2]
        for turn in range(self.orders_a_thread):
            order_id = self.bench.send('BUY', 100 + 100 * turn, 10.0, broker=broker, market=turn % 5 == 0)
            self.ids.append(order_id)
            self.wanted.put(True)
            if turn % 3 == 0:
                broker.cancel(order_id, 5)

    def match(self, _):
        while self.wanted.get(timeout=60):
            self.bench.clock.advance(3)
            self.bench.exchange.match_now()


def test_many_threads_break_nothing():
    crowd = Crowd()
    crowd.run()
    assert len(set(crowd.ids)) == 160
    last = {}
    for kind, row in crowd.bench.events:
        before = last.get(row.order_id)
        if kind == 'order':
            assert before is None or (not before.final and row.filled >= before.filled)
            last[row.order_id] = row
    for broker in crowd.bench.brokers:
        Flow.check_orders(broker)
        assert all(last[order.order_id] == order for order in broker.orders())
        account, trades = broker.account(), broker.trades()
        spent = sum(mills(row.deal_balance) + mills(row.commission) for row in trades)
        assert mills(account.available_cash) + mills(account.frozen_cash) + spent == 10 ** 10
        assert mills(account.frozen_cash) == sum(Flow.frozen_by(row) for row in broker.orders() if not row.final)
        assert sum(row.amount for row in broker.positions()) == sum(row.amount for row in trades)
    assert any(broker.trades() for broker in crowd.bench.brokers)


# -- the factory ---------------------------------------------------------------------------------------------------
def stub_settings(**given):
    return b.load_settings(['server', 'stub'], dict({'server_type': 'stub'}, **given), environ={}, dotenv=None)


def test_open_stub_gives_an_exchange_that_trades():
    backend = b.ADAPTERS['stub'](stub_settings(accounts='main=1,hedge=2', stub_cash='5000000'), FakeClock(MORNING))
    try:
        assert list(backend.brokers) == ['main', 'hedge']
        broker = backend.brokers['hedge']
        assert (broker.spec.account_id, broker.account().available_cash) == ('2', 5000000.0)
        assert backend.health() == {'backend_type': 'stub', 'stub_clock': 'always', 'stub_seed': 1, 'open_orders': 0}
        low = backend.data.quote(STOCK).low_limit
        order_id = broker.submit(b.OrderRequest(security=STOCK, side='BUY', amount=100, price=low), 5)
        assert broker.order(order_id).order_price == low
    finally:
        backend.close()
    assert 'bullet-paper-exchange' not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize('moment, taken', [
    (datetime(2024, 3, 8, 9, 0), True), (datetime(2024, 3, 8, 10, 0), True), (datetime(2024, 3, 8, 12, 0), True),
    (datetime(2024, 3, 8, 15, 0), False), (datetime(2024, 3, 9, 10, 0), False), (datetime(2024, 10, 1, 10, 0), False)])
def test_the_real_hours_hold_with_the_market_clock(moment, taken):
    backend = b.ADAPTERS['stub'](stub_settings(stub_clock='market'), FakeClock(moment))
    broker = backend.brokers['default']
    request = b.OrderRequest(security=ETF, side='BUY', amount=100, price=backend.data.quote(ETF).low_limit)
    try:
        broker.submit(request, 5)
    except b.OrderRejected as error:
        assert '非交易时间' in error.message
    finally:
        backend.close()
    assert len(broker.orders()) == taken


def test_the_paper_exchange_has_stock_accounts_only():
    with pytest.raises(b.ConfigError) as caught:
        b.ADAPTERS['stub'](stub_settings(accounts='main=1:credit'), FakeClock(MORNING))
    assert 'main' in caught.value.message and 'credit' in caught.value.message
