"""The order desk: shape, routing, rules, idempotency, journal, waiting, cancelling, resolving."""
import collections
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import threading
from datetime import datetime

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import bullet_qmt as bq
from tests.fakes import FakeClock

OPEN_HOUR = datetime(2024, 5, 15, 10, 0)   # a Wednesday
NIGHT = datetime(2024, 5, 15, 20, 0)
CODE = '000001.XSHE'


class FakeData:
    """Quotes by code; the default one trades at 10.00, limits 11.00 and 9.00, ask 10.01, bid 9.99."""

    def __init__(self):
        self.changes, self.error, self.state = {}, None, None

    def market_state(self, code):
        return self.state or bq.MarketState(bq.in_continuous_trading(code, self.clock.now()), False, True)

    def quote(self, code):
        if self.error is not None:
            raise self.error
        values = dict(sid=code, last_price=10.0, pre_close=10.0, high_limit=11.0, low_limit=9.0, a1_p=10.01, a1_v=1000,
                      b1_p=9.99, b1_v=1000)
        return bq.Tick(**dict(values, **self.changes))


class FakeBroker(bq.BrokerAdapter):
    """Orders rest until told otherwise. `script` holds what the next submits do; see submit."""

    def __init__(self):
        self.rows, self.held, self.submits, self.cancels = collections.OrderedDict(), [], [], []
        self.script, self.cancel_script = collections.deque(), collections.deque()
        self.listener, self.numbers, self.blind = None, itertools.count(1), None
        self.on_read = lambda order_id: None

    def orders_known(self):
        return self.orders(), True

    def set_listener(self, listener):
        self.listener = listener

    def account(self):
        return bq.Account(account_id='55', available_cash=1000.0, total_value=1000.0)

    def positions(self):
        self._look()
        return self.held

    def orders(self):
        self._look()
        return [row.replace() for row in self.rows.values()]

    def trades(self):
        self._look()
        return [bq.Trade(trade_id='t' + row.order_id, order_id=row.order_id, security=row.security, amount=row.filled,
                         price=row.order_price, order_remark=row.order_remark)
                for row in self.rows.values() if row.filled]

    def order(self, order_id):
        self.on_read(order_id)
        return super().order(order_id)

    def _look(self):
        if self.blind is not None:
            raise self.blind

    def submit(self, request, deadline_s):
        """Script entries: an error raised before the order exists, or ('after', error), or None."""
        self.submits.append(request)
        step = self.script.popleft() if self.script else None
        if isinstance(step, Exception):
            raise step
        order_id = 'o%d' % next(self.numbers)
        self.rows[order_id] = bq.Order(order_id=order_id, security=request.security, side=request.side,
                                       amount=request.amount, order_price=request.bound, style=request.style,
                                       status='open', order_remark=request.tag)
        if step is not None:
            raise step[1]
        return order_id

    def cancel(self, order_id, deadline_s):
        self.cancels.append(order_id)
        step = self.cancel_script.popleft() if self.cancel_script else None
        if isinstance(step, Exception):
            raise step
        if order_id not in self.rows:
            raise bq.OrderNotFound('没有')
        if step != 'pending' and not self.rows[order_id].final:
            self.become(order_id, 'canceled')

    def become(self, order_id, status, **changes):
        if status == 'filled':
            changes['filled'] = self.rows[order_id].amount
        self.rows[order_id] = self.rows[order_id].replace(status=status, **changes)
        if self.listener is not None:
            self.listener('order', self.rows[order_id].replace())


class Shop:
    """A desk over fakes. main has sub-accounts demo (50,000 yuan an order) and free; hedge has other."""

    SUBS = (bq.SubAccountSpec('demo', 'main', 50000.0), bq.SubAccountSpec('free', 'main', None),
            bq.SubAccountSpec('other', 'hedge', None))

    def __init__(self, now=OPEN_HOUR, path=None, keys=('main', 'hedge'), subs=SUBS):
        self.clock, self.data, self.path = FakeClock(now), FakeData(), path
        self.data.clock = self.clock
        self.brokers = collections.OrderedDict((key, FakeBroker()) for key in keys)
        self.subs, self.main = subs, self.brokers[keys[0]]
        self.open()

    def open(self):
        self.journal = bq.Journal(self.path, self.clock)
        accounts = bq.AccountBook(self.brokers, self.subs)
        self.desk = bq.OrderDesk(accounts, self.data, self.journal, self.clock, deadline_s=5.0)

    def restart(self):
        self.journal.close()
        self.open()

    def place(self, **changes):
        return self.desk.place(ticket(**changes))

    def cancel(self, order_id, **more):
        return self.desk.cancel(dict({'account_key': 'main', 'order_id': order_id, 'wait_timeout': 0}, **more))

    def resolve(self, key, action=bq.PLACE, **more):
        return self.desk.resolve(dict({'account_key': 'main', 'write_action': action, 'idempotency_key': key}, **more))


def ticket(**changes):
    payload = dict({'account_key': 'main', 'security': CODE, 'side': 'BUY', 'amount': 100,
                    'style': {'type': 'limit', 'price': 10.0}}, **changes)
    return {name: value for name, value in payload.items() if value is not NotImplemented}


@pytest.fixture
def shop():
    shop = Shop()
    yield shop
    shop.journal.close()


@pytest.fixture
def on_disk(tmp_path):
    shop = Shop(path=str(tmp_path / 'journal.db'))
    yield shop
    shop.journal.close()


# -- shape -----------------------------------------------------------------------------------------------------
NOT_NUMBERS = [float('nan'), float('inf'), -float('inf'), True, False, '100', '', [], {}, [100]]


@pytest.mark.parametrize('amount', NOT_NUMBERS + [0, -100, 100.5, 10 ** 10, 1e300, 10 ** 400, None])
def test_amount_must_be_a_positive_whole_number(amount):
    with pytest.raises(bq.BadRequest):
        bq.parse_ticket(ticket(amount=amount))


@pytest.mark.parametrize('price', NOT_NUMBERS + [0, -1, 1e7, 10 ** 400, None])
def test_limit_price_must_be_a_positive_finite_number(price):
    with pytest.raises(bq.BadRequest):
        bq.parse_ticket(ticket(style={'type': 'limit', 'price': price}))


@pytest.mark.parametrize('asked, meant', [(10.8 - 0.2, 10.6), (13.26 - 0.05, 13.21), (0.1 + 0.2, 0.3),
                                          (round(1.113 / 0.001) * 0.001, 1.113), (13.1274, 13.1274)])
def test_a_limit_price_is_without_what_binary_fractions_add(asked, meant):
    for given in (dict(style={'type': 'limit', 'price': asked}), dict(style=NotImplemented, price=asked)):
        assert bq.parse_ticket(ticket(**given)).price == meant
    assert bq.parse_ticket(ticket(style={'type': 'market', 'protect_price': asked})).price == meant


@pytest.mark.parametrize('changes', [dict(style={'type': 'limit', 'price': float('nan')}), dict(amount=float('nan'))])
def test_no_number_is_told_as_what_it_is(changes):
    with pytest.raises(bq.BadRequest) as caught:
        bq.parse_ticket(ticket(**changes))
    assert '互相矛盾' not in caught.value.message and 'nan' in caught.value.message
    for other in (dict(changes, price=10.0, volume=100), dict(changes, price=float('nan'), volume=float('nan'))):
        with pytest.raises(bq.BadRequest):
            bq.parse_ticket(ticket(**other))


@pytest.mark.parametrize('price', NOT_NUMBERS + [0, -1, 1e7])
def test_protection_price_must_be_positive_if_given(price):
    with pytest.raises(bq.BadRequest):
        bq.parse_ticket(ticket(style={'type': 'market', 'protect_price': price}))


@pytest.mark.parametrize('wait', NOT_NUMBERS + [-1, 601])
def test_wait_timeout_must_be_seconds_up_to_the_limit(wait):
    with pytest.raises(bq.BadRequest):
        bq.parse_ticket(ticket(wait_timeout=wait))


@pytest.mark.parametrize('changes', [
    {'side': 'buy'}, {'side': None}, {'side': 1}, {'side': 'SHORT'}, {'side': ['BUY']},
    {'security': '000001'}, {'security': None}, {'security': ['000001.XSHE']}, {'security': '000001.NYSE'},
    {'style': 'limit'}, {'style': {'type': 'stop', 'price': 1}}, {'style': {}}, {'style': []},
    {'style': {'type': None}},
    {'style': {'type': 'limit', 'price': 10, 'stop': 9}}, {'style': {'type': 'market', 'price': 10}},
    {'style': {'type': 'limit', 'protect_price': 10}}, {'style': NotImplemented},
    {'market': True}, {'market': 'true'}, {'market': 1}, {'style': {'type': 'market'}, 'market': False},
    {'style': NotImplemented, 'market': 1}, {'price': 10.01}, {'price': '10'}, {'volume': 200}, {'pindex': 1},
    {'closeToday': True}, {'remark': 'a', 'order_remark': 'b'}, {'remark': 5}, {'order_remark': 'x' * 201},
    {'order_remark': 'a\nb'}, {'strategy_name': 7}])
def test_whatever_is_no_order_is_refused(changes):
    with pytest.raises(bq.BadRequest) as caught:
        bq.parse_ticket(ticket(**changes))
    assert caught.value.broker_called is False


def test_a_ticket_says_what_was_asked():
    asked = bq.parse_ticket(ticket(security='000001.SZ', amount=NotImplemented, volume=200.0, remark='note',
                                   strategy_name='s', wait_timeout=3))
    assert (asked.security, asked.asked_security, asked.side, asked.amount) == (CODE, '000001.SZ', 'BUY', 200)
    assert (asked.style, asked.price, asked.remark, asked.strategy_name) == ('limit', 10.0, 'note', 's')
    assert asked.wait_s == 3 and isinstance(asked.amount, int)


@pytest.mark.parametrize('changes, style, price', [
    ({'style': NotImplemented, 'price': 10}, 'limit', 10.0),
    ({'style': NotImplemented, 'market': True}, 'market', None),
    ({'style': NotImplemented, 'market': True, 'price': 10}, 'market', 10.0),
    ({'style': {'type': 'market'}, 'market': True}, 'market', None),
    ({'style': {'type': 'market', 'protect_price': 9.5}}, 'market', 9.5),
    ({'style': {'type': 'limit', 'price': 10}, 'market': False, 'price': 10.0}, 'limit', 10.0),
    ({'style': {'type': 'limit'}, 'price': 10.0}, 'limit', 10.0)])
def test_the_ways_to_say_limit_and_market(changes, style, price):
    asked = bq.parse_ticket(ticket(**changes))
    assert (asked.style, asked.price) == (style, price)


def test_what_legacy_clients_add_is_taken():
    assert bq.parse_ticket(ticket(signal_batch_id='b', client_id='c', request_id='r', binding_version=3)).amount == 100


@pytest.mark.parametrize('key', [5, True, ['k'], ' ', 'a\nb', 'x' * 256])
def test_a_key_must_be_text(shop, key):
    with pytest.raises(bq.BadRequest):
        shop.place(idempotency_key=key)
    assert not shop.main.submits


def test_a_key_may_have_255_characters(shop):
    assert shop.place(idempotency_key='x' * 255)['idempotency_key'] == 'x' * 255


# -- routing ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('account, sub, key, name', [
    ('main', None, 'main', None), ('hedge', '', 'hedge', None), (None, 'demo', 'main', 'demo'),
    ('main', 'demo', 'main', 'demo'), ('main', 'demo@main', 'main', 'demo'), ('', 'demo@main', 'main', 'demo'),
    (None, 'other@hedge', 'hedge', 'other')])
def test_routes(shop, account, sub, key, name):
    route = shop.desk.accounts.route(account, sub)
    assert (route.key, route.broker, route.sub and route.sub.name) == (key, shop.brokers[key], name)


@pytest.mark.parametrize('account, sub', [
    ('main', 'other'), ('main', 'demo@hedge'), ('hedge', 'demo'), (None, 'demo@hedge'), (None, 'demo@'),
    (None, '@main'),
    (None, 'Demo'), (None, ' demo'), (None, 'demo@main@main'), ('nobody', None), (5, None), ([], None), ('Main', None),
    (None, 5), (None, ['demo']), ('nobody', 'demo')])
def test_an_unknown_account_or_sub_account_is_never_guessed(shop, account, sub):
    with pytest.raises(bq.AccountNotFound):
        shop.desk.accounts.route(account, sub)


def test_no_account_named_means_default_or_the_only_one_or_an_error_that_lists_them(shop):
    assert bq.AccountBook({'a': 1, 'default': 2}).route().key == 'default'
    assert bq.AccountBook({'a': 1}).route(None, None).key == 'a'
    with pytest.raises(bq.AccountNotFound) as caught:
        shop.desk.accounts.route()
    assert 'main' in caught.value.hint and 'hedge' in caught.value.hint


# -- rules, computed by hand ------------------------------------------------------------------------------------
def approve(security=CODE, side='BUY', amount=100, price=None, style='limit', closeable=0, sub=None, now=OPEN_HOUR,
            unlimited=False, told=True, **quote):
    data = FakeData()
    data.changes = quote
    asked = bq.OrderTicket(security=security, side=side, amount=amount, style=style, price=price)
    state = bq.MarketState(bq.in_continuous_trading(security, now), unlimited, told)
    return bq.approve_order(asked, bq.Route('main', None, sub), data.quote(security), closeable, now, state)


def refused(**arguments):
    with pytest.raises(bq.OrderRejected) as caught:
        approve(**arguments)
    assert caught.value.broker_called is False
    assert '超时' not in caught.value.message and 'timeout' not in caught.value.message
    return caught.value.message


STAR = dict(security='688001.XSHG')


@pytest.mark.parametrize('good', [
    dict(price=10.0), dict(price=10.21), dict(price=9.0), dict(amount=300, price=10.0),
    dict(STAR, amount=200, price=10.0), dict(STAR, amount=201, price=10.0),
    dict(side='SELL', amount=100, closeable=250, price=10.0), dict(side='SELL', amount=250, closeable=250, price=10.0),
    dict(side='SELL', amount=50, closeable=250, price=10.0), dict(side='SELL', amount=150, closeable=250, price=10.0),
    dict(STAR, side='SELL', amount=30, closeable=30, price=10.0),
    dict(price=10.99, now=NIGHT), dict(side='SELL', price=9.8, closeable=100),  # 9.99 * 0.98 = 9.7902
    dict(security='510300.XSHG', price=10.999), dict(security='113050.XSHG', amount=10, price=10.001)])
def test_orders_within_the_rules_pass(good):
    request = approve(**good)
    assert (request.price, request.style, request.protect_price) == (good['price'], 'limit', None)


@pytest.mark.parametrize('bad', [
    dict(price=10.0, amount=50), dict(price=10.0, amount=150), dict(STAR, price=10.0, amount=199),
    dict(side='SELL', amount=100, closeable=99, price=10.0), dict(side='SELL', amount=100, closeable=0, price=10.0),
    dict(side='SELL', amount=60, closeable=250, price=10.0), dict(STAR, side='SELL', amount=30, closeable=31,
                                                                  price=10.0),
    dict(price=10.005), dict(price=10.0001, security='510300.XSHG'), dict(price=11.01), dict(price=8.99),
    dict(price=10.22), dict(side='SELL', price=9.79, closeable=100), dict(price=10.0, paused=True),
    dict(security='000300.XSHG', price=10.0), dict(security='204001.XSHG', price=10.0),
    dict(price=11.01, now=NIGHT), dict(price=10.0, amount=55, security='113050.XSHG')])
def test_orders_outside_the_rules_do_not_pass(bad):
    refused(**bad)


def test_the_price_cage_is_two_percent_or_ten_ticks_from_the_other_side():
    assert approve(price=10.71, a1_p=10.5).price == 10.71            # 10.5 * 1.02
    refused(price=10.72, a1_p=10.5)
    assert approve(price=2.1, a1_p=2.0, high_limit=2.2, low_limit=1.8).price == 2.1  # ten ticks are more than 2 %
    refused(price=2.11, a1_p=2.0, high_limit=2.2, low_limit=1.8)
    assert approve(price=10.18, a1_p=None).price == 10.18            # no ask: from the bid, 9.99
    refused(price=10.19, a1_p=0)
    assert approve(price=10.2, a1_p=None, b1_p=0).price == 10.2      # neither: from the last price
    refused(price=10.21, a1_p=0, b1_p=None)


@pytest.mark.parametrize('moment, caged', [((14, 56), True), ((14, 57), False), ((9, 29), False), ((12, 0), False)])
def test_the_cage_holds_in_continuous_trading(moment, caged):
    now = datetime(2024, 5, 15, *moment)
    if caged:
        refused(price=10.5, now=now)
    else:
        assert approve(price=10.5, now=now).price == 10.5


def test_first_days_without_limits():
    new = dict(now=NIGHT, high_limit=None, low_limit=None)
    refused(price=30.0, **new)
    assert approve(price=30.0, unlimited=True, **new).price == 30.0
    assert approve(style='market', unlimited=True, **new).protect_price == 10.21, 'a protection price all the same'


def test_trades_beyond_derived_limits_prove_them_wrong():
    """A stock on a day without limits, which no quote tells; a fund with 20 % that no list has."""
    none = dict(high_limit=None, low_limit=None, pre_close=10.0, a1_p=11.5, b1_p=11.49)
    assert approve(price=11.7, high=11.6, low=10.0, **none).price == 11.7
    assert '涨停价 11.0' in refused(price=11.7, high=11.0, low=10.0, **none)
    fund = dict(none, security='159999.XSHE', high=11.5, low=10.0)
    assert approve(price=11.9, **fund).price == 11.9 and '涨停价 12.0' in refused(price=12.1, **fund)
    request = approve(style='market', high=11.6, low=10.0, **none)
    assert request.protect_price == 11.73  # the cage alone: 11.5 * 1.02


@pytest.mark.parametrize('code, told, price, passes', [
    ('159999.XSHE', False, 11.5, True), ('159999.XSHE', False, 12.0, True), ('159999.XSHE', False, 12.001, False),
    ('159999.XSHE', False, 8.0, True), ('159999.XSHE', False, 7.999, False), ('159999.XSHE', True, 11.001, False),
    ('159999.XSHE', True, 8.999, False), ('159915.XSHE', False, 12.001, False), ('508000.XSHG', False, 11.001, False),
    ('600000.XSHG', False, 11.01, False)])
def test_no_order_of_a_fund_is_refused_on_a_limit_that_is_only_derived(code, told, price, passes):
    """Funds have 10 % or 20 %, and which of them 20 % no rule tells by its code; infrastructure funds have 10 %."""
    top, bottom = (12.0, 8.0) if code == '159915.XSHE' else (11.0, 9.0)
    order = dict(security=code, price=price, now=NIGHT, told=told, high=10.0, low=10.0, pre_close=10.0)
    for quoted in [(top, bottom)] + ([] if told else [(None, None)]):
        if passes:
            assert approve(high_limit=quoted[0], low_limit=quoted[1], **order).price == price
        else:
            refused(high_limit=quoted[0], low_limit=quoted[1], **order)


def test_limits_come_from_the_previous_close_where_the_quote_has_none():
    for unknown in (None, 0, float('nan')):
        assert approve(price=11.0, now=NIGHT, high_limit=unknown, low_limit=9.0).price == 11.0
        refused(price=11.01, now=NIGHT, high_limit=unknown, low_limit=9.0)


@pytest.mark.parametrize('quote', [
    dict(high_limit=None, low_limit=None, pre_close=None), dict(high_limit=0, low_limit=0, pre_close=0),
    dict(high_limit=float('nan'), low_limit=float('nan'), pre_close=float('nan')),
    dict(high_limit=float('inf'), pre_close=None), dict(low_limit=None, pre_close=float('nan'))])
@pytest.mark.parametrize('style', ['limit', 'market'])
def test_a_limit_that_nobody_knows_does_not_pass(quote, style):
    refused(price=10.0, style=style, now=NIGHT, **quote)


def test_a_cage_that_cannot_be_computed_does_not_pass():
    nothing = dict(a1_p=None, b1_p=float('nan'), last_price=None, pre_close=None)
    refused(price=10.0, **nothing)
    refused(style='market', **nothing)


@pytest.mark.parametrize('arguments, bound', [
    (dict(), 10.21), (dict(a1_p=10.9), 11.0), (dict(price=10.1), 10.1), (dict(price=10.109), 10.1),
    (dict(price=50.0), 10.21), (dict(side='SELL', closeable=100), 9.80),
    (dict(side='SELL', closeable=100, b1_p=9.1), 9.0),
    (dict(side='SELL', closeable=100, price=9.901), 9.91), (dict(side='SELL', closeable=100, price=1.0), 9.80)])
def test_a_market_order_gets_a_protection_price_inside_the_rules(arguments, bound):
    request = approve(style='market', **arguments)
    assert (request.protect_price, request.price) == (bound, None)


def test_a_market_order_without_room_is_refused():
    refused(style='market', price=0.001)
    refused(style='market', price=8.5)                              # a buy below the lower limit
    refused(style='market', side='SELL', closeable=100, price=12.0)  # a sale above the upper one


LIMITED = bq.SubAccountSpec('demo', 'main', 1000.0)


@pytest.mark.parametrize('good', [
    dict(price=10.0, amount=100), dict(price=5.0, amount=200, high_limit=5.5, low_limit=4.5, a1_p=5.0, pre_close=5.0),
    dict(side='SELL', price=10.0, closeable=100), dict(style='market', price=10.0)])
def test_within_the_limit_of_a_sub_account(good):
    assert approve(sub=LIMITED, **good)


@pytest.mark.parametrize('bad', [
    dict(price=10.01), dict(style='market'), dict(style='market', price=50.0), dict(price=10.0, amount=200),
    dict(side='SELL', closeable=100, price=9.9, b1_p=10.01), dict(side='SELL', closeable=100, style='market',
                                                                  b1_p=10.01),
    dict(side='SELL', closeable=100, price=9.0, b1_p=None, last_price=10.5, now=NIGHT),
    dict(side='SELL', closeable=100, price=9.0, b1_p=None, last_price=None, pre_close=None, now=NIGHT)])
def test_no_way_round_the_limit_of_a_sub_account(bad):
    message = refused(sub=LIMITED, **bad)
    assert 'demo' in message or '行情' in message


@pytest.mark.parametrize('spelling', [{'sub_account_id': 'demo'}, {'sub_account_id': 'demo@main'},
                                      {'sub_account_id': 'demo', 'account_key': None}])
def test_every_spelling_of_a_sub_account_has_its_limit(shop, spelling):
    with pytest.raises(bq.OrderRejected):
        shop.place(amount=5100, **spelling)                          # 51,000 yuan
    with pytest.raises(bq.OrderRejected):
        shop.place(amount=5000, style={'type': 'market'}, **spelling)
    assert shop.place(amount=5000, **spelling)['order_id'] == 'o1'
    assert len(shop.main.submits) == 1


# -- failures before the broker is called ------------------------------------------------------------------------
@pytest.mark.parametrize('error, code', [
    (bq.QmtUnavailable('断开'), 'QMT_UNAVAILABLE'), (bq.RequestTimeout('没有回答'), 'QMT_UNAVAILABLE'),
    (bq.BulletError('不行'), 'QMT_UNAVAILABLE'), (RuntimeError('boom'), 'INTERNAL_ERROR'),
    (bq.DataUnavailable('没有'), 'DATA_UNAVAILABLE')])
def test_positions_or_quotes_that_cannot_be_read_refuse_the_order(shop, error, code):
    shop.main.held = [bq.Position(security=CODE, amount=100, closeable_amount=100)]
    shop.main.blind = error
    for _ in range(2):
        with pytest.raises(bq.BulletError) as caught:
            shop.place(side='SELL', idempotency_key='k')
        assert (caught.value.code, caught.value.broker_called) == (code, False)
    shop.main.blind, shop.data.error = None, error
    with pytest.raises(bq.BulletError) as caught:
        shop.place(side='SELL', idempotency_key='k')
    assert (caught.value.code, caught.value.broker_called) == (code, False)
    shop.data.error = None
    assert shop.place(side='SELL', idempotency_key='k')['order_id'] == 'o1'
    assert len(shop.main.submits) == 1


def test_a_refusal_is_the_answer_to_its_key_for_good(shop):
    """A copy of the order that was on its way still must not pass where the market has changed meanwhile."""
    shop.data.changes = {'paused': True}
    for _ in range(2):
        with pytest.raises(bq.OrderRejected) as caught:
            shop.place(idempotency_key='k')
        assert caught.value.broker_called is False
        shop.data.changes = {}
    assert shop.resolve('k')['submission_state'] == 'rejected' and not shop.main.submits
    with pytest.raises(bq.IdempotencyConflict):
        shop.place(amount=200, idempotency_key='k')


@pytest.mark.parametrize('trouble', [bq.DataUnavailable('没有行情'), bq.QmtUnavailable('断开'), RuntimeError('boom')])
def test_any_other_failure_before_the_submission_leaves_the_key_as_if_never_used(shop, trouble):
    shop.data.error = trouble
    with pytest.raises(bq.BulletError) as caught:
        shop.place(amount=200, idempotency_key='k')
    assert caught.value.broker_called is False and shop.journal.find(bq.PLACE, 'k') is None
    shop.data.error = None
    assert shop.place(amount=100, idempotency_key='k')['order_id'] == 'o1'


# -- a journal that knows nothing of the day ---------------------------------------------------------------------
def test_an_order_is_found_by_its_key_though_its_journal_is_gone(shop):
    shop.place(idempotency_key='k')
    shop.open()
    assert shop.resolve('k')['submission_state'] == 'accepted'
    assert shop.place(idempotency_key='k')['order_id'] == 'o1' and len(shop.main.submits) == 1
    with pytest.raises(bq.IdempotencyConflict):
        shop.place(idempotency_key='k', amount=200)
    shop.open()
    with pytest.raises(bq.IdempotencyConflict):
        shop.place(idempotency_key='k', security='000002.XSHE')
    assert shop.place(idempotency_key='other')['order_id'] == 'o2'


def test_a_start_sends_nothing_before_it_has_seen_what_the_broker_has(shop):
    shop.main.blind = bq.QmtUnavailable('断开')
    with pytest.raises(bq.QmtUnavailable) as caught:
        shop.place(idempotency_key='k')
    assert caught.value.broker_called is False and not shop.main.submits
    shop.main.blind = None
    assert shop.place(idempotency_key='k')['order_id'] == 'o1'


@pytest.mark.parametrize('complete, state', [(True, 'rejected'), (False, 'submit_unknown')])
def test_a_key_that_never_came_can_be_declared_void(shop, complete, state):
    shop.main.orders_known = lambda: (shop.main.orders(), complete)
    first = shop.resolve('k')
    assert (first['submission_state'], first['seen']) == ('submit_unknown', False)
    assert shop.resolve('k', abandon_unseen=True)['submission_state'] == state
    if state == 'rejected':
        with pytest.raises(bq.OrderRejected):
            shop.place(idempotency_key='k')
        assert not shop.main.submits
    else:
        with pytest.raises(bq.QmtUnavailable) as caught:
            shop.place(idempotency_key='k')
        assert caught.value.broker_called is False and caught.value.retryable and not shop.main.submits
        complete = True
        assert shop.place(idempotency_key='k')['order_id'] == 'o1'


def test_a_sub_account_cannot_void_what_its_broker_has(shop):
    shop.place(idempotency_key='k', sub_account_id='free')
    shop.open()
    answer = shop.resolve('k', sub_account_id='free', abandon_unseen=True)
    assert (answer['submission_state'], answer['order_id']) == ('accepted', 'o1')
    assert shop.place(idempotency_key='k', sub_account_id='free')['order_id'] == 'o1' and len(shop.main.submits) == 1


def test_a_key_is_not_void_before_that_is_on_disk(shop, monkeypatch):
    def full(*args, **kwargs):
        raise bq.JournalError('磁盘满')

    monkeypatch.setattr(shop.journal, 'record', full)
    with pytest.raises(bq.JournalError):
        shop.resolve('k', abandon_unseen=True)
    monkeypatch.undo()
    assert shop.place(idempotency_key='k')['order_id'] == 'o1'


@pytest.mark.parametrize('change', [dict(amount=700), dict(amount=200), dict(style={'type': 'limit', 'price': 9.9}),
                                    dict(side='SELL')])
def test_a_key_of_a_lost_journal_is_good_for_the_same_order_only(shop, change):
    first = dict(idempotency_key='k', style={'type': 'limit', 'price': 9.8})
    shop.place(**first)
    shop.open()
    with pytest.raises(bq.IdempotencyConflict):
        shop.place(**dict(first, **change))
    assert shop.place(**first)['order_id'] == 'o1' and len(shop.main.submits) == 1


def test_an_account_in_trouble_keeps_no_other_from_being_settled(shop):
    entries = []
    for name, account in (('a', 'main'), ('b', 'hedge')):
        broker = shop.main if account == 'main' else shop.brokers['hedge']
        broker.script.append(bq.OrderStateUnknown('没有回应'))
        with pytest.raises(bq.OrderStateUnknown):
            shop.place(idempotency_key=name, account_key=account)
        entries.append(shop.journal.find(bq.PLACE, name))
    shop.main.orders_known = lambda: 1 // 0
    order = bq.Order(order_id='o9', security=CODE, amount=100, status='open', order_remark=entries[1].tag)
    shop.brokers['hedge'].rows['o9'] = order
    shop.desk.settle_open()
    assert [shop.journal.find(bq.PLACE, name).state for name in 'ab'] == [bq.UNKNOWN, bq.ACCEPTED]


def test_a_first_start_that_was_interrupted_is_gone_on_with(tmp_path):
    path = str(tmp_path / 'orders.sqlite')
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in ('PRAGMA user_version=2', 'PRAGMA application_id=%d' % bq.JOURNAL_APPLICATION,
                          bq._JOURNAL_TABLE):
            db.execute(statement)
        db.commit()
    bq.Journal(path, FakeClock(OPEN_HOUR)).close()


def test_a_key_that_came_cannot_be_declared_void(shop):
    shop.place(idempotency_key='k')
    assert shop.resolve('k', abandon_unseen=True)['submission_state'] == 'accepted'


# -- a journal that lost something ---------------------------------------------------------------------------------
def lose_end(path, how):
    """What becomes of the files of a process that was killed; `how` the end of its journal gets lost."""
    wal = path + '-wal'
    if how == 'no wal':
        os.remove(wal)
    elif how == 'half a wal':
        os.truncate(wal, os.path.getsize(wal) // 2)
    elif how == 'a bit of the wal':
        with open(wal, 'r+b') as file:
            file.seek(60)
            byte = file.read(1)[0] ^ 1
            file.seek(60)
            file.write(bytes([byte]))


@pytest.fixture
def killed(tmp_path):
    """killed(how): a shop of yesterday with orders 1 to 5 of today, its process killed, its journal's end lost."""
    shops = []

    def make(how):
        before, after = str(tmp_path / 'before.sqlite'), str(tmp_path / 'after.sqlite')
        shop = Shop(path=before)
        shop.journal.close()
        shutil.copy(before, after)
        shop.open()
        for number in range(1, 6):
            shop.place(idempotency_key=str(number), sub_account_id=('free' if number == 5 else None))
        for suffix in ('', '-wal', '.mark'):
            if not (how == 'yesterday' and suffix != '.mark'):
                shutil.copy(before + suffix, after + suffix)
        shop.journal.close()
        lose_end(after, how)
        shop.before, shop.path = shop.journal.id, after
        shop.open()
        shops.append(shop)
        return shop
    yield make
    for shop in shops:
        shop.journal.close()


@pytest.mark.parametrize('how', ['no wal', 'half a wal', 'a bit of the wal', 'yesterday'])
def test_a_journal_that_lost_its_end_sends_nothing_again_and_says_so(killed, how, caplog):
    shop = killed(how)
    assert shop.journal.losses and '不见了' in caplog.text
    assert shop.journal.id != shop.before, 'a long client must not repeat its writes by itself'
    assert shop.resolve('4', abandon_unseen=True)['submission_state'] == 'accepted', 'nothing is void that is listed'
    for number in range(1, 6):
        key, sub = str(number), 'free' if number == 5 else None
        assert shop.place(idempotency_key=key, sub_account_id=sub)['order_id'] == 'o' + key
    assert len(shop.main.submits) == 5 and shop.place(idempotency_key='new')['order_id'] == 'o6'
    shop.journal.close()
    shop.open()
    assert not shop.journal.losses, 'told once'


def test_a_whole_journal_has_lost_nothing(killed):
    shop = killed('nothing')
    assert shop.journal.losses == [] and shop.journal.id == shop.before
    assert shop.place(idempotency_key='3')['order_id'] == 'o3' and shop.desk.health()['alarms'] == []


def test_while_a_loss_is_known_each_new_key_is_looked_for_anew(killed):
    """What was on its way when the journal lost it may arrive after the first look."""
    shop = killed('no wal')
    late = shop.main.rows.pop('o5')
    assert shop.place(idempotency_key='new')['order_id'] == 'o6'
    shop.main.rows['o5'] = late
    assert shop.place(idempotency_key='5', sub_account_id='free')['order_id'] == 'o5'


def test_orders_that_no_journal_knows_are_told_at_the_first_look(killed, caplog):
    shop = killed('yesterday')
    shop.desk.settle_open()
    alarm, = shop.desk.health()['alarms']
    assert alarm['code'] == 'ORDER_NOT_IN_JOURNAL' and 'o1' in alarm['message'] and alarm['code'] in caplog.text


def other_server(shop):
    """Another desk on the same brokers, with a journal of its own, whose orders are pushed to nobody here."""
    listeners = {key: broker.listener for key, broker in shop.brokers.items()}
    other = Shop()
    other.brokers, other.main = shop.brokers, shop.main
    other.journal.close()
    other.open()
    for key, broker in shop.brokers.items():
        broker.listener = listeners[key]
    return other


@pytest.mark.parametrize('when', ['just started', 'seen before'])
def test_a_key_that_another_server_has_placed_is_not_placed_again_without_pushes(shop, when):
    shop.place(idempotency_key='own')
    other = other_server(shop)
    if when == 'seen before':
        other.place(idempotency_key='first')
        shop.clock.advance(2)
        shop.place(idempotency_key='own 2')  # this look shows it
        shop.clock.advance(shop.desk.TAKEN_OVER_S)
    else:
        shop.clock.advance(2)
    answer, sent = other.place(idempotency_key='k'), len(shop.main.submits)
    assert shop.place(idempotency_key='k')['order_id'] == answer['order_id']
    assert len(shop.main.submits) == sent
    other.journal.close()


@pytest.mark.parametrize('how', ['pushed', 'listed'])
def test_two_orders_under_one_tag_are_an_alarm(tmp_path, how):
    shop = Shop(path=str(tmp_path / 'orders.sqlite'))
    shop.place(idempotency_key='k')
    shop.main.rows['twin'] = shop.main.rows['o1'].replace(order_id='twin')
    for _ in range(2):
        if how == 'pushed':
            shop.main.listener('order', shop.main.rows['twin'])
        else:
            shop.restart()
            shop.desk.settle_open()
    shop.journal.close()
    alarm, = shop.desk.health()['alarms']
    assert alarm['code'] == 'ORDER_DOUBLED' and 'twin' in alarm['message'] and 'o1' in alarm['message']


def test_what_is_taken_back_is_no_loss(tmp_path):
    shop = Shop(path=str(tmp_path / 'orders.sqlite'))
    shop.place(idempotency_key='a')
    shop.main.script.append(bq.QmtUnavailable('断开', broker_called=False))
    with pytest.raises(bq.QmtUnavailable):
        shop.place(idempotency_key='b')
    mend = break_journal(shop, changes_to('submitting'))
    with pytest.raises(bq.JournalError):
        shop.place(idempotency_key='c')
    mend()
    shop.restart()
    assert shop.journal.losses == []
    shop.journal.close()


def test_a_kill_beside_the_mark_loses_nothing(tmp_path):
    shop = Shop(path=str(tmp_path / 'orders.sqlite'))
    shop.desk.settle_open()

    def killed(number, tag):
        raise SystemExit
    shop.journal._sent.add = killed
    with pytest.raises(SystemExit):
        shop.place(idempotency_key='a')
    shop.restart()
    assert shop.journal.losses == [] and not shop.journal.lost and not shop.main.submits
    assert shop.resolve('a')['submission_state'] == 'submit_unknown', 'it is not known that nothing was sent'

    def full(number, tag):
        raise OSError(28, 'No space left on device')
    shop.journal._sent.add = full
    with pytest.raises(bq.JournalError) as caught:
        shop.place(idempotency_key='b')
    assert caught.value.broker_called is False and not shop.main.submits
    shop.restart()
    assert shop.place(idempotency_key='b')['order_id'] == 'o1'
    shop.journal.close()


class AlmostFull:
    """A file on a disk that has room for so many bytes more, which says so by what it took, as Linux does first."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        return self._file.write(data[:self._room])

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_mark_that_is_written_in_part_keeps_the_order_back(on_disk):
    on_disk.place(idempotency_key='a')
    whole = on_disk.journal._sent._file
    on_disk.journal._sent._file = AlmostFull(whole, 20)
    with pytest.raises(bq.JournalError) as caught:
        on_disk.place(idempotency_key='b')
    assert caught.value.broker_called is False and len(on_disk.main.submits) == 1
    on_disk.journal._sent._file = whole
    assert on_disk.place(idempotency_key='b')['order_id'] == 'o2'
    on_disk.restart()
    assert not on_disk.journal.losses and not on_disk.journal.lost


@pytest.mark.parametrize('change, loss', [
    (lambda text: b'', False), (lambda text: b'x' * len(text), True), (lambda text: text[:-1], False),
    (lambda text: b'journal %d' % (text[8:9] == b'0') + text[9:], True),
    (lambda text: text[:-20] + b'#' + text[-19:], True),
    (lambda text: text[:-40] + b'#' + text[-39:], True)])
def test_a_mark_that_is_odd_or_of_another_journal_is_a_loss(tmp_path, change, loss):
    path = str(tmp_path / 'orders.sqlite')
    shop = Shop(path=path)
    shop.place(idempotency_key='a')
    shop.journal.close()
    with open(path + '.mark', 'rb') as file:
        text = file.read()
    with open(path + '.mark', 'wb') as file:
        file.write(change(text))
    shop.open()
    assert bool(shop.journal.losses) is loss
    assert shop.place(idempotency_key='a')['order_id'] == 'o1'
    assert shop.place(idempotency_key='b')['order_id'] == 'o2'
    shop.journal.close()
    shop.open()
    assert not shop.journal.losses and not shop.journal.lost
    shop.journal.close()


@pytest.mark.parametrize('how', ['no wal', 'half a wal', 'yesterday', 'all'])
def test_what_is_lost_and_not_listed_is_never_sent_again(killed, how):
    """An order of an earlier day, or of a paper exchange that was started again."""
    shop = killed(how)
    if how == 'all':
        shop.journal.close()
        for suffix in ('', '-wal', '-shm'):
            with contextlib.suppress(FileNotFoundError):
                os.remove(shop.path + suffix)
        shop.open()
    shop.main.rows.clear()
    for _ in range(2):
        for number in range(1, 6):
            key, sub = str(number), 'free' if number == 5 else None
            with contextlib.suppress(bq.JournalError, bq.OrderStateUnknown):
                assert shop.place(idempotency_key=key, sub_account_id=sub)['order_id'] == 'o' + key
            assert shop.resolve(key, sub_account_id=sub, abandon_unseen=True)['submission_state'] == 'submit_unknown'
        assert len(shop.main.submits) == 5
        assert shop.place()['status'] == 'open', 'new keys are good'
        del shop.main.submits[5:]
        shop.main.rows.clear()
        shop.journal.close()
        shop.open()


def test_a_dropped_table_is_told(tmp_path, caplog):
    path = str(tmp_path / 'orders.sqlite')
    shop = Shop(path=path)
    shop.place(idempotency_key='a')
    last, known = shop.journal.add_events([('main', None, 'order', {})])[0].seq, shop.journal.id
    shop.journal.close()
    shop.clock.advance(1)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute('DROP TABLE writes')
        db.execute('DROP TABLE events')
        db.commit()
    shop.open()
    assert shop.journal.id != known and 'writes' in caplog.text and 'events' in caplog.text
    assert shop.journal.misses_after(last) and shop.place(idempotency_key='a')['order_id'] == 'o1'
    shop.journal.close()


# -- rows that are damaged -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('change', [
    "request='{bad'", "request=replace(request, '100', '900')", "request='5'", "request=NULL", "answer='{bad'",
    "tag='bq000000000000000000'", "state='acceptee'", "state='rejected', answer='null'", "account_key='hedge'",
    "idempotency_key='j'", "day='2024-05-16'", "checksum=''", "request=x'00'", "order_id='o1'", "deadline_ms=1",
    "unanswered=0", "state='unknown'"])
def test_a_damaged_row_is_named_and_its_key_stays_refused(tmp_path, change, caplog):
    path = str(tmp_path / 'orders.sqlite')
    shop = Shop(path=path)
    for key in 'akz':
        shop.place(idempotency_key=key)
    shop.journal.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        if 'NULL' in change:
            db.execute('PRAGMA writable_schema=ON')
            db.execute("UPDATE sqlite_master SET sql=replace(sql, 'request TEXT NOT NULL', 'request TEXT')")
            db.commit()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE writes SET %s WHERE idempotency_key='k'" % change)
        db.commit()
    shop.open()
    assert [place for place, _ in shop.journal.damaged] == [2] == shop.desk.health()['journal']['damaged_rows']
    assert '第 2 行' in caplog.text
    for _ in range(2):
        with pytest.raises(bq.JournalError) as caught:
            shop.place(idempotency_key='k')
        assert '第 2 行' in caught.value.message and caught.value.hint and caught.value.broker_called is False
    with pytest.raises(bq.JournalError):
        shop.resolve('k', abandon_unseen=True)
    assert [shop.place(idempotency_key=key)['order_id'] for key in ('a', 'z', 'new')] == ['o1', 'o3', 'o4']
    shop.desk.settle_open()
    shop.journal.close()


def test_an_index_that_is_damaged_hides_no_key(tmp_path, caplog):
    path = str(tmp_path / 'orders.sqlite')
    shop = Shop(path=path)
    for number in range(40):
        shop.place(idempotency_key='key-%04d' % number)
    shop.journal.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        pages = [db.execute('SELECT rootpage FROM sqlite_master WHERE name=?', (name,)).fetchone()[0]
                 for name in ('writes_by_key', 'sqlite_autoindex_writes_1')]
        size = db.execute('PRAGMA page_size').fetchone()[0]
        tag, = db.execute("SELECT tag FROM writes WHERE idempotency_key='key-0007'").fetchone()
    with open(path, 'rb') as file:
        data = bytearray(file.read())
    for page, text in zip(pages, (b'key-0007', tag.encode())):
        at = data.index(text, (page - 1) * size, page * size)
        data[at + len(text) - 1] ^= 1
    with open(path, 'wb') as file:
        file.write(data)
    shop.main.rows.clear()
    shop.open()
    assert '已重建' in caplog.text and shop.place(idempotency_key='key-0007')['order_id'] == 'o8'
    assert len(shop.main.submits) == 40
    shop.journal.close()


@pytest.mark.parametrize('payload', ["'{bad'", "'5'", "x'ff00'"])
def test_a_damaged_event_costs_a_gap(tmp_path, payload):
    path = str(tmp_path / 'orders.sqlite')
    shop = Shop(path=path)
    begin = shop.journal.last_event()
    added = shop.journal.add_events([('main', None, 'order', {'n': number}) for number in range(3)])
    shop.journal.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute('UPDATE events SET payload=%s WHERE seq=?' % payload, (added[1].seq,))
        db.commit()
    shop.open()
    shop.desk.start()  # what is sound and yet no order's row ends nothing either
    assert [event.payload['n'] for event in shop.journal.events_after(begin)] == [0, 2]
    assert shop.journal.misses_after(added[0].seq) and not shop.journal.misses_after(added[1].seq)
    shop.desk.close()


def pages_of_events(path):
    """{offset: size} of the pages of the table: those that hold its payloads, and the root."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        size, = db.execute('PRAGMA page_size').fetchone()
        root, = db.execute("SELECT rootpage FROM sqlite_master WHERE name='events'").fetchone()
    with open(path, 'rb') as file:
        data = file.read()
    return size, sorted({(root - 1) * size} | {at for at in range(0, len(data), size)
                                               if b'an event' in data[at:at + size]})


@pytest.fixture
def with_events(tmp_path):
    """A shop, closed, whose journal knows 40 orders and 300 events; the number before its first event."""
    shop = Shop(path=str(tmp_path / 'orders.sqlite'))
    for number in range(40):
        shop.place(idempotency_key=str(number))
    begin = shop.journal.last_event()
    shop.journal.add_events([('main', None, 'order', {'is': 'an event %d' % number}) for number in range(300)])
    shop.journal.close()
    shop.clock.advance(1)
    return shop, begin


def keep_their_word(shop):
    for number in range(40):
        assert shop.place(idempotency_key=str(number))['order_id'] == 'o%d' % (number + 1)
    assert len(shop.main.submits) == 40


@pytest.mark.parametrize('which', [0, 1, -1])
def test_a_damaged_page_of_events_costs_a_gap_and_no_start(with_events, which, caplog):
    shop, begin = with_events
    size, pages = pages_of_events(shop.path)
    assert len(pages) > 3
    with open(shop.path, 'r+b') as file:
        file.seek(pages[which])
        file.write(b'\xff' * (size // 2))
    shop.open()
    warned, = [record for record in caplog.records if 'stream_gap' in record.getMessage()]
    assert warned.levelname == 'WARNING' and not shop.journal.losses and not shop.journal.damaged
    last = shop.journal.last_event()
    assert shop.journal.misses_after(begin) and shop.journal.misses_after(begin + 299) and last > begin + 300
    keep_their_word(shop)
    event, = shop.journal.add_events([('main', None, 'order', {'n': 1})])
    assert event.seq == last + 1 and shop.journal.events_after(last) == [event]
    known = shop.journal.id
    shop.restart()
    assert shop.journal.id == known and not shop.journal.losses and not shop.journal.misses_after(last)
    assert len([record for record in caplog.records if 'stream_gap' in record.getMessage()]) == 1, 'told once'
    shop.journal.close()


def test_whatever_bit_of_the_events_is_flipped_the_start_goes_on(with_events):
    shop, begin = with_events
    chance, (size, pages) = random.Random(5), pages_of_events(shop.path)
    with open(shop.path, 'rb') as file:
        whole = file.read()
    gaps = 0
    for trial in range(120):
        damaged = bytearray(whole)
        within = 16 if trial % 2 else size  # the head of a page decides how all of it is read
        damaged[chance.choice(pages) + chance.randrange(within)] ^= 1 << chance.randrange(8)
        with open(shop.path, 'wb') as file:
            file.write(damaged)
        shop.open()
        gaps += shop.journal.misses_after(begin)
        keep_their_word(shop)
        shop.journal.close()
    assert gaps > 30


def test_events_that_are_damaged_beside_an_entry_are_no_reason_to_go_on(with_events):
    shop, _ = with_events
    size, pages = pages_of_events(shop.path)
    with open(shop.path, 'r+b') as file:
        data = file.read()
        for at in (pages[-1], data.index(b'"amount"') // size * size):
            file.seek(at)
            file.write(b'\xff' * 100)
    with pytest.raises(bq.ConfigError) as caught:
        shop.open()
    assert '已损坏' in caught.value.message and caught.value.hint


def test_whatever_bit_is_flipped_no_order_goes_out_twice_and_no_start_ends_in_a_traceback(tmp_path):
    """A closed file; each flip is a start of its own: it is refused with a clear error, or every key keeps its word."""
    path, chance = str(tmp_path / 'orders.sqlite'), random.Random(11)
    shop = Shop(path=path)
    for number in range(40):
        shop.place(idempotency_key=str(number), remark='备注 %d' % number)
    shop.journal.close()
    with open(path, 'rb') as file:
        whole = file.read()
    outcomes = collections.Counter()
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        with open(path, 'wb') as file:
            file.write(damaged)
        try:
            shop.open()
        except bq.ConfigError as error:
            assert error.hint
            outcomes['refused'] += 1
            continue
        try:
            for number in range(40):
                with contextlib.suppress(bq.JournalError, bq.IdempotencyConflict):
                    assert shop.place(idempotency_key=str(number))['order_id'] == 'o%d' % (number + 1)
        finally:
            shop.journal.close()
        assert len(shop.main.submits) == 40
        outcomes['started'] += 1
    assert outcomes['started'] and outcomes['refused']


def test_a_journal_of_the_version_before_is_taken_over(tmp_path):
    path = str(tmp_path / 'orders.sqlite')
    old = 'bq' + hashlib.sha256(b'broker.place_order k').hexdigest()[:22]
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("""CREATE TABLE writes (
            action TEXT NOT NULL, idempotency_key TEXT NOT NULL, account_key TEXT NOT NULL, sub_account_id TEXT,
            fingerprint TEXT NOT NULL, tag TEXT NOT NULL UNIQUE, state TEXT NOT NULL, order_id TEXT,
            request TEXT NOT NULL, answer TEXT, day TEXT NOT NULL, deadline_ms INTEGER,
            PRIMARY KEY (action, idempotency_key))""")
        db.execute('CREATE TABLE identity (id TEXT NOT NULL, made TEXT NOT NULL)')
        db.execute("INSERT INTO identity VALUES ('old', '2024-05-14')")
        route = bq.Route('main', None, None)
        request = bq.parse_ticket(ticket())
        db.execute('INSERT INTO writes VALUES (?,?,?,?,?,?,?,?,?,?,?,?)', (
            bq.PLACE, 'k', 'main', None, request.fingerprint(route), old, 'accepted', 'o7',
            json.dumps(request.journaled()), 'null', '2024-05-15', 1))
        db.execute('PRAGMA user_version=1')
        db.execute('PRAGMA application_id=%d' % bq.JOURNAL_APPLICATION)
        db.commit()
    shop = Shop(path=path)
    assert shop.journal.id == 'old' and not shop.journal.damaged
    shop.main.rows['o7'] = bq.Order(order_id='o7', security=CODE, side='BUY', amount=100, order_price=10.0,
                                    status='open', order_remark=old)
    assert shop.place(idempotency_key='k')['status'] == 'open' and not shop.main.submits
    row, = shop.desk.orders({'account_key': 'main'})
    assert row['idempotency_key'] == 'k'
    shop.journal.close()


# -- whose a key is ------------------------------------------------------------------------------------------------
def test_a_sub_account_neither_voids_nor_takes_the_key_of_another(shop):
    assert shop.resolve('k', sub_account_id='free', abandon_unseen=True)['submission_state'] == 'rejected'
    mine = shop.place(idempotency_key='k', sub_account_id='demo')['order_id']
    with pytest.raises(bq.OrderRejected):
        shop.place(idempotency_key='k', sub_account_id='free')
    first = shop.place(idempotency_key='j', sub_account_id='demo')['order_id']
    second = shop.place(idempotency_key='j', sub_account_id='free')['order_id']
    assert len({mine, first, second}) == 3
    for sub, order_id in (('demo', first), ('free', second)):
        assert shop.place(idempotency_key='j', sub_account_id=sub)['order_id'] == order_id
        assert shop.resolve('j', sub_account_id=sub)['order_id'] == order_id
    with pytest.raises(bq.IdempotencyConflict):
        shop.place(idempotency_key='j')  # the account itself sees them all


# -- idempotency -------------------------------------------------------------------------------------------------
def test_same_key_same_order_is_one_submission(shop):
    first = shop.place(idempotency_key='k', remark='one')
    again = shop.place(idempotency_key='k', remark='two', security='000001.SZ')
    assert first['order_id'] == again['order_id'] and len(shop.main.submits) == 1
    assert (first['security'], again['security'], again['order_remark']) == (CODE, '000001.SZ', 'one')


def test_same_key_from_twenty_threads_is_one_submission(shop):
    go, answers = threading.Barrier(20), []

    def place():
        go.wait(10)
        answers.append(shop.place(idempotency_key='k')['order_id'])
    threads = [threading.Thread(target=place) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == ['o1'] * 20 and len(shop.main.submits) == 1


@pytest.mark.parametrize('change', [
    {'amount': 200}, {'side': 'SELL'}, {'security': '000002.XSHE'}, {'style': {'type': 'limit', 'price': 9.99}},
    {'style': {'type': 'market'}}, {'account_key': 'hedge'}, {'sub_account_id': 'free'}])
def test_same_key_other_order_is_a_conflict(shop, change):
    shop.place(idempotency_key='k')
    with pytest.raises(bq.IdempotencyConflict):
        shop.place(idempotency_key='k', **change)
    assert len(shop.main.submits) == 1 and not shop.brokers['hedge'].submits


def test_the_same_key_may_name_an_order_and_a_cancel(shop):
    order_id = shop.place(idempotency_key='k')['order_id']
    assert shop.cancel(order_id, idempotency_key='k')['value'] is True


def test_without_a_key_each_order_is_its_own(shop):
    keys = {shop.place()['idempotency_key'] for _ in range(3)}
    assert len(keys) == 3 and len(shop.main.submits) == 3


def test_a_rejected_order_answers_the_same_again(shop):
    shop.main.script.append(bq.OrderRejected('资金不足', '入金'))
    for _ in range(2):
        with pytest.raises(bq.OrderRejected) as caught:
            shop.place(idempotency_key='k')
        assert (caught.value.message, caught.value.hint, caught.value.broker_called) == ('资金不足', '入金', True)
    assert len(shop.main.submits) == 1


@pytest.mark.parametrize('error', [RuntimeError('boom'), bq.RequestTimeout('没有回答'), bq.QmtUnavailable('断开'),
                                   ValueError(),
                                   bq.OrderStateUnknown('未知'), KeyError('x'), bq.BadRequest('odd')])
@pytest.mark.parametrize('arrived', [True, False])
def test_an_unexpected_failure_of_submit_is_unknown_and_never_sent_again(shop, error, arrived):
    shop.main.script.append(('after', error) if arrived else error)
    with pytest.raises(bq.OrderStateUnknown) as caught:
        shop.place(idempotency_key='k')
    assert (caught.value.idempotency_key, caught.value.broker_called) == ('k', True)
    if arrived:
        assert shop.place(idempotency_key='k')['order_id'] == 'o1'
    else:
        with pytest.raises(bq.OrderStateUnknown):
            shop.place(idempotency_key='k')
    assert len(shop.main.submits) == 1


@pytest.mark.parametrize('blind', [bq.QmtUnavailable('断开'), RuntimeError('boom'), bq.RequestTimeout('没有回答')])
def test_an_unknown_order_stays_unknown_while_the_broker_cannot_be_asked(shop, blind):
    shop.main.script.append(('after', RuntimeError('boom')))
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='k')
    shop.main.blind = blind
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='k')
    assert shop.resolve('k')['submission_state'] == 'submit_unknown'
    shop.main.blind = None
    assert shop.place(idempotency_key='k')['order_id'] == 'o1'


@pytest.mark.parametrize('blind', [bq.QmtUnavailable('断开'), RuntimeError('boom')])
def test_an_accepted_order_is_accepted_even_if_it_cannot_be_read(shop, blind):
    shop.desk.settle_open()
    shop.main.blind = blind
    answer = shop.place(idempotency_key='k', wait_timeout=1)
    assert (answer['order_id'], answer['status'], answer['amount'], answer['price']) == ('o1', 'submitted', 100, 10.0)
    assert answer['async_tracking'] is True and answer['timed_out'] is True
    resolved = shop.resolve('k')
    assert (resolved['submission_state'], resolved['resolved_result']['side']) == ('accepted', 'BUY')


# -- journal -------------------------------------------------------------------------------------------------------
class FailingDb:
    """The journal's connection, failing at statements that `fails(sql, parameters)` picks."""

    def __init__(self, db, fails):
        self.db, self.fails, self.in_transaction = db, fails, False

    def execute(self, sql, parameters=()):
        if self.fails(sql, parameters):
            raise sqlite3.OperationalError('database or disk is full')
        return self.db.execute(sql, parameters)

    def close(self):
        self.db.close()


def break_journal(shop, fails):
    intact = shop.journal._db
    shop.journal._db = FailingDb(intact, fails)

    def mend():
        shop.journal._db = intact
    return mend


def changes_to(*states):
    return lambda sql, parameters: sql.startswith(('INSERT', 'UPDATE')) and not set(states).isdisjoint(parameters)


@pytest.mark.parametrize('fails', [lambda sql, parameters: sql.startswith('SELECT'), changes_to('submitting')])
def test_a_journal_that_fails_before_the_submission_sends_nothing(shop, fails):
    mend = break_journal(shop, fails)
    with pytest.raises(bq.JournalError) as caught:
        shop.place(idempotency_key='k')
    assert caught.value.broker_called is False and not shop.main.submits
    mend()
    assert shop.place(idempotency_key='k')['order_id'] == 'o1'


def test_an_order_is_told_as_accepted_even_if_the_journal_cannot_keep_it(shop):
    mend = break_journal(shop, changes_to('accepted'))
    for _ in range(2):
        assert shop.place(idempotency_key='k', sub_account_id='free')['order_id'] == 'o1'
        assert [row['order_id'] for row in shop.desk.orders({'sub_account_id': 'free'})] == ['o1']
    mend()
    assert shop.place(idempotency_key='k', sub_account_id='free')['order_id'] == 'o1'
    assert len(shop.main.submits) == 1


@pytest.mark.parametrize('fails', [lambda sql, parameters: True, changes_to('submitting', 'accepted')])
def test_a_cancel_goes_out_even_if_the_journal_cannot_keep_it(shop, fails):
    order_id = shop.place()['order_id']
    mend = break_journal(shop, fails)
    assert shop.cancel(order_id, idempotency_key='c')['value'] is True
    mend()
    assert shop.cancel(order_id, idempotency_key='c')['value'] is True


def test_a_rejection_is_told_even_if_the_journal_cannot_keep_it(shop):
    shop.main.script.append(bq.OrderRejected('资金不足'))
    mend = break_journal(shop, changes_to('rejected'))
    with pytest.raises(bq.OrderRejected):
        shop.place(idempotency_key='k')
    mend()
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='k')
    assert len(shop.main.submits) == 1


def states_of(shop):
    return dict(shop.journal._db.execute('SELECT idempotency_key, state FROM writes').fetchall())


def test_a_restart_doubts_submissions_and_keeps_answers(on_disk):
    shop = on_disk
    shop.place(idempotency_key='done', remark='mine', sub_account_id='demo')
    shop.main.script.append(bq.OrderRejected('资金不足'))
    with pytest.raises(bq.OrderRejected):
        shop.place(idempotency_key='no')
    shop.main.script.append(('after', RuntimeError('power cut')))
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='lost')
    shop.journal._db.execute(
        "UPDATE writes SET state='submitting', order_id=NULL, checksum=substr(checksum, 1, 8) "  # as schema 3 had it
        "WHERE idempotency_key='lost'")
    identity = shop.journal.id
    shop.restart()
    assert shop.journal.id == identity
    assert states_of(shop) == {'done': 'accepted', 'no': 'rejected', 'lost': 'unknown'}
    assert shop.place(idempotency_key='done', sub_account_id='demo')['order_id'] == 'o1'
    with pytest.raises(bq.OrderRejected):
        shop.place(idempotency_key='no')
    assert shop.place(idempotency_key='lost')['order_id'] == 'o2'
    assert len(shop.main.submits) == 3
    row, = shop.desk.orders({'sub_account_id': 'demo'})
    assert (row['order_id'], row['order_remark'], row['idempotency_key']) == ('o1', 'mine', 'done')


def test_one_server_at_a_time_may_hold_a_journal(on_disk):
    with pytest.raises(bq.ConfigError) as caught:
        bq.Journal(on_disk.path, on_disk.clock)
    assert on_disk.path in caught.value.message
    on_disk.restart()
    assert on_disk.place()['order_id'] == 'o1'


@pytest.mark.posix('links need a right on Windows, and there is no way to open one unfollowed')
@pytest.mark.parametrize('name', ['.holder', '.mark'])
def test_a_link_beside_a_journal_is_not_followed(tmp_path, name):
    (tmp_path / 'precious').write_bytes(b'precious')
    (tmp_path / ('j.sqlite' + name)).symlink_to(tmp_path / 'precious')
    with pytest.raises(bq.ConfigError):
        bq.Journal(str(tmp_path / 'j.sqlite'), FakeClock(OPEN_HOUR))
    assert (tmp_path / 'precious').read_bytes() == b'precious'


def test_files_that_are_no_journal_are_refused(tmp_path):
    clock = FakeClock(OPEN_HOUR)
    (tmp_path / 'text').write_bytes(b'this is certainly no database' * 100)
    newer = sqlite3.connect(str(tmp_path / 'newer'))
    newer.execute('PRAGMA user_version=99')
    newer.close()
    strange = sqlite3.connect(str(tmp_path / 'strange'))
    strange.execute('CREATE TABLE bookmarks (url TEXT)')
    strange.commit()
    strange.close()
    os.chmod(str(tmp_path / 'strange'), 0o644)
    for name in ('text', 'newer', 'strange', 'no/such/folder'):
        with pytest.raises(bq.ConfigError):
            bq.Journal(str(tmp_path / name), clock)
    assert os.stat(str(tmp_path / 'strange')).st_mode & 0o777 == 0o644 or os.name == 'nt'


def test_entries_are_kept_for_a_month_of_days_with_orders(on_disk):
    """By the days that occur: a clock that is years ahead for a moment makes nothing too old."""
    on_disk.place(idempotency_key='0')
    on_disk.clock.step(3000 * 86400)
    on_disk.restart()
    assert list(states_of(on_disk)) == ['0']
    on_disk.clock.step(-3000 * 86400)
    assert on_disk.place(idempotency_key='0')['order_id'] == 'o1'
    for number in range(1, 33):
        on_disk.clock.advance(86400)
        on_disk.place(idempotency_key=str(number))
    on_disk.restart()
    assert list(states_of(on_disk)) == [str(number) for number in range(2, 33)]


def test_a_clock_that_goes_astray_and_comes_back_loses_no_order_of_the_day(shop):
    first = shop.place(idempotency_key='k', sub_account_id='demo')['order_id']
    shop.clock.step(400 * 86400)
    shop.place(idempotency_key='astray')
    shop.clock.step(-400 * 86400)
    shop.place(idempotency_key='back')
    assert [row['order_id'] for row in shop.desk.orders({'sub_account_id': 'demo'})] == [first]
    assert shop.place(idempotency_key='k', sub_account_id='demo')['order_id'] == first


def test_an_accepted_order_of_an_earlier_day_is_told_as_unknown(on_disk):
    on_disk.place(idempotency_key='k')
    on_disk.main.rows.clear()
    assert on_disk.place(idempotency_key='k')['status'] == 'submitted'
    on_disk.clock.advance(86400)
    answer = on_disk.place(idempotency_key='k')
    assert (answer['order_id'], answer['status'], len(on_disk.main.submits)) == ('o1', 'submit_unknown', 1)


def test_tags_are_short_ascii_unique_and_hidden_from_the_client(shop):
    for _ in range(50):
        shop.place(remark='我的备注')
    tags = [request.tag for request in shop.main.submits]
    assert len(set(tags)) == 50
    assert all(len(tag.encode('ascii')) == 20 for tag in tags)
    assert {row['order_remark'] for row in shop.desk.orders({'account_key': 'main'})} == {'我的备注'}


# -- waiting -------------------------------------------------------------------------------------------------------
def test_no_wait_returns_at_once(shop):
    answer = shop.place(wait_timeout=0)
    assert (answer['status'], answer['timed_out'], answer['async_tracking']) == ('open', False, True)
    assert 'last_snapshot' not in answer


def test_a_wait_that_ends_without_a_result_says_so(shop):
    answer = shop.place(wait_timeout=0.01)
    assert (answer['status'], answer['timed_out'], answer['async_tracking']) == ('open', True, True)
    assert answer['last_snapshot']['status'] == 'open'


@pytest.mark.parametrize('status', ['filled', 'rejected', 'canceled', 'partly_canceled'])
def test_an_event_wakes_the_waiting_request(shop, status):
    told = []

    def later(order_id):
        if not told:
            told.append(threading.Thread(target=shop.main.become, args=(order_id, status)))
            told[0].start()
    shop.main.on_read = later
    answer = shop.place(wait_timeout=60)
    told[0].join(10)
    assert (answer['status'], answer['timed_out'], answer['async_tracking']) == (status, False, False)
    assert answer['price'] == 10.0


def test_events_that_are_not_final_do_not_wake(shop):
    watch, seen = bq.OrderWatch(), []
    open_order = bq.Order(order_id='o', status='open')

    def read():
        watch.notice('main', bq.Order(order_id='o', status='filling'))
        watch.notice('main', bq.Order(order_id='other', status='filled'))
        watch.notice('hedge', bq.Order(order_id='o', status='filled'))
        seen.append(1)
        return open_order
    assert watch.wait_final('main', 'o', read, 0.01).status == 'filling'
    assert seen == [1] and not watch._watched


# -- cancelling ------------------------------------------------------------------------------------------------------
def test_cancelled(shop):
    order_id = shop.place()['order_id']
    answer = shop.cancel(order_id, idempotency_key='c')
    assert (answer['value'], answer['status'], answer['order_id'], answer['raw_status']) == (True, 'canceled',
                                                                                             order_id, 54)
    assert answer['last_snapshot']['status'] == 'canceled' and answer['timed_out'] is False
    assert shop.cancel(order_id, idempotency_key='c')['value'] is True and shop.main.cancels == [order_id]


def test_filled_meanwhile_is_not_cancelled(shop):
    order_id = shop.place()['order_id']
    shop.main.become(order_id, 'filled')
    answer = shop.cancel(order_id)
    assert (answer['value'], answer['status'], answer['timed_out']) == (False, 'filled', False)


def test_a_cancel_pending_at_the_deadline_says_so(shop):
    order_id = shop.place()['order_id']
    shop.main.cancel_script.append('pending')
    answer = shop.cancel(order_id, wait_timeout=0.01)
    assert (answer['value'], answer['status'], answer['timed_out']) == (False, 'open', True)


@pytest.mark.parametrize('others', [0, 64])
def test_a_cancel_waits_for_its_event_however_many_orders_wait(shop, monkeypatch, others):
    monkeypatch.setattr(bq.OrderWatch, 'LIMIT', 64 - others)
    order_id, told = shop.place()['order_id'], []
    shop.main.cancel_script.append('pending')

    def later(order_id):
        if shop.main.cancels and not told:
            told.append(threading.Thread(target=shop.main.become, args=(order_id, 'partly_canceled')))
            told[0].start()
    shop.main.on_read = later
    assert shop.cancel(order_id, wait_timeout=60)['value'] is True
    told[0].join(10)


def test_unknown_orders_and_those_of_others_cannot_be_cancelled(shop):
    mine = shop.place(sub_account_id='demo')['order_id']
    account_wide = shop.place()['order_id']
    for order_id, more in [('zz', {}), (mine, {'sub_account_id': 'free'}), (account_wide, {'sub_account_id': 'demo'}),
                           (mine, {'account_key': 'hedge'})]:
        with pytest.raises(bq.OrderNotFound):
            shop.cancel(order_id, **more)
    assert not shop.main.cancels
    assert shop.cancel(mine)['value'] is True  # the account itself may


@pytest.mark.parametrize('order_id', [None, '', True, 1.5, [], 'x' * 65])
def test_an_order_id_is_a_text(shop, order_id):
    with pytest.raises(bq.BadRequest):
        shop.cancel(order_id)


def test_a_cancel_without_a_key_works_each_time(shop):
    order_id = shop.place()['order_id']
    shop.main.cancel_script.extend(['pending', None])
    assert [shop.cancel(order_id)['value'] for _ in range(2)] == [False, True]
    assert shop.main.cancels == [order_id, order_id]


def test_a_refused_cancel_answers_the_same_again(shop):
    order_id = shop.place()['order_id']
    shop.main.cancel_script.append(bq.OrderRejected('集合竞价不可撤单'))
    for _ in range(2):
        with pytest.raises(bq.OrderRejected) as caught:
            shop.cancel(order_id, idempotency_key='c')
        assert caught.value.message == '集合竞价不可撤单'
    assert shop.main.cancels == [order_id]
    assert shop.resolve('c', bq.CANCEL)['submission_state'] == 'rejected'


def test_a_failing_cancel_is_unknown(shop):
    order_id = shop.place()['order_id']
    shop.main.cancel_script.append(RuntimeError('boom'))
    with pytest.raises(bq.OrderStateUnknown):
        shop.cancel(order_id, idempotency_key='c')
    assert shop.resolve('c', bq.CANCEL)['submission_state'] == 'reconciling'
    shop.main.become(order_id, 'canceled')
    assert shop.resolve('c', bq.CANCEL)['submission_state'] == 'accepted'


@pytest.mark.parametrize('error', [RuntimeError('boom'), bq.RequestTimeout('没有回答')])
def test_a_cancel_of_what_cannot_be_read(shop, error):
    """Nobody looks before an order of this run is cancelled; one that the journal does not know is looked at."""
    order_id = shop.place()['order_id']
    shop.main.blind = error
    with pytest.raises(bq.BulletError) as caught:
        shop.cancel('manual')
    assert caught.value.broker_called is False and caught.value.code != 'REQUEST_TIMEOUT'
    assert not shop.main.cancels
    with pytest.raises(bq.OrderStateUnknown):
        shop.cancel(order_id)
    assert shop.main.cancels == [order_id]


def test_a_cancel_goes_out_although_no_order_can_be_read(shop):
    """The journal knows whose it is; a terminal that answers no question may still take a cancel."""
    shop.desk.settle_open()
    mine = shop.place(sub_account_id='free')['order_id']
    other = shop.place(sub_account_id='demo')['order_id']
    shop.main.blind = bq.QmtUnavailable('没有回应')
    with pytest.raises(bq.OrderStateUnknown):
        shop.cancel(mine, sub_account_id='free')
    assert shop.main.cancels == [mine]
    for order_id in (other, 'manual'):
        with pytest.raises(bq.QmtUnavailable) as caught:
            shop.cancel(order_id, sub_account_id='free')
        assert caught.value.broker_called is False
    assert shop.main.cancels == [mine]


def test_an_order_that_vanishes_after_its_cancel_is_unknown(shop):
    order_id = shop.place()['order_id']
    shop.main.on_read = lambda order_id: shop.main.cancels and shop.main.rows.clear()
    with pytest.raises(bq.OrderStateUnknown):
        shop.cancel(order_id)


# -- resolving, in the form that the legacy client accepts -------------------------------------------------------------
def legacy_accepts_place(answer, request):
    """What the 0.10 client checks before it believes that an order was accepted."""
    row = answer.get('resolved_result')
    return (answer['submission_state'] == 'accepted' and answer['write_action'] == 'broker.place_order'
            and answer['idempotency_key'] == request['idempotency_key'] and row['order_id'] == answer['order_id']
            and row['idempotency_key'] == request['idempotency_key'] and row['security'] == request['security']
            and row['side'] == request['side'] and int(row['amount']) == request['amount'])


@pytest.mark.parametrize('readable', [True, False])
def test_an_accepted_order_resolves_as_it_was_asked_for(shop, readable):
    request = ticket(security='000001.SZ', idempotency_key='k')
    shop.desk.place(request)
    shop.main.blind = None if readable else bq.QmtUnavailable('断开')
    assert legacy_accepts_place(shop.resolve('k', request_payload=request), request)


def test_a_lost_order_resolves_by_its_tag(shop):
    shop.main.script.append(('after', RuntimeError('boom')))
    request = ticket(idempotency_key='k')
    with pytest.raises(bq.OrderStateUnknown):
        shop.desk.place(request)
    assert legacy_accepts_place(shop.resolve('k', request_payload=request), request)
    assert len(shop.main.submits) == 1


def test_what_else_may_have_become_of_an_order(shop):
    shop.main.script.extend([bq.OrderRejected('资金不足'), RuntimeError('boom')])
    with pytest.raises(bq.OrderRejected):
        shop.place(idempotency_key='no')
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='lost')
    answer = shop.resolve('no', request_payload='odd')
    assert (answer['submission_state'], answer['status'], answer['status_msg']) == ('rejected', 'rejected', '资金不足')
    for key in ('lost', 'never seen'):
        answer = shop.resolve(key)
        assert (answer['submission_state'], answer['status']) == ('submit_unknown', 'submit_unknown')
        assert 'resolved_result' not in answer and answer['order_id'] is None


def test_an_order_under_way_is_reconciling(shop):
    seen = []
    shop.main.submit = lambda request, deadline_s: seen.append(shop.resolve('k')) or 'o9'
    shop.place(idempotency_key='k')
    assert [answer['submission_state'] for answer in seen] == ['reconciling']


def test_an_entry_that_the_disk_lost_track_of_is_asked_about_not_reconciling_for_ever(shop):
    shop.main.script.append(('after', RuntimeError('boom')))
    mend = break_journal(shop, changes_to('unknown'))
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='k')
    mend()
    assert states_of(shop) == {'k': 'submitting'}
    assert shop.resolve('k')['submission_state'] == 'accepted'


def test_cancels_resolve(shop):
    order_id = shop.place()['order_id']
    shop.main.cancel_script.append('pending')
    shop.cancel(order_id, idempotency_key='c')
    assert shop.resolve('c', bq.CANCEL)['submission_state'] == 'reconciling'
    shop.main.become(order_id, 'canceled')
    answer = shop.resolve('c', bq.CANCEL, order_id=order_id)
    assert (answer['submission_state'], answer['status'], answer['order_id']) == ('accepted', 'canceled', order_id)
    assert (answer['resolved_result']['order_id'], answer['write_action']) == (order_id, bq.CANCEL)
    shop.main.become(order_id, 'filled')
    assert shop.resolve('c', bq.CANCEL)['submission_state'] == 'rejected'
    shop.main.rows.clear()
    assert shop.resolve('c', bq.CANCEL)['submission_state'] == 'submit_unknown'


def test_answers_in_the_words_of_other_servers(shop):
    """What bullet-trade 0.10 answers to a cancel and to a question about a write: see its server's app.py."""
    order_id = shop.place(idempotency_key='k')['order_id']
    placed = shop.resolve('k')
    assert (placed['stable_local_order_id'], placed['evidence']) == (order_id, {'source': 'broker_order_query'})
    assert 'reason' not in placed and 'cancel_outcome' not in placed
    shop.main.cancel_script.append('pending')
    answer = shop.cancel(order_id, idempotency_key='c')
    assert [answer[name] for name in ('value', 'success', 'cancel_outcome', 'submission_state')] == [
        False, False, 'unknown', 'reconciling']
    assert shop.resolve('c', bq.CANCEL)['cancel_outcome'] == 'unknown'
    answer = shop.cancel(order_id, idempotency_key='d')
    assert [answer[name] for name in ('value', 'success', 'cancel_outcome', 'submission_state')] == [
        True, True, 'cancelled', 'canceled']
    assert shop.resolve('d', bq.CANCEL)['cancel_outcome'] == 'cancelled'
    shop.main.become(order_id, 'filled')
    answer = shop.cancel(order_id, idempotency_key='e')
    assert [answer[name] for name in ('value', 'success', 'cancel_outcome', 'submission_state')] == [
        False, False, 'not_canceled_already_terminal', 'filled']
    assert shop.resolve('e', bq.CANCEL)['cancel_outcome'] == 'not_canceled_already_terminal'
    other = shop.place(idempotency_key='other')['order_id']
    shop.main.cancel_script.append(bq.OrderRejected('已报盘'))
    with pytest.raises(bq.OrderRejected) as caught:
        shop.cancel(other, idempotency_key='f')
    assert caught.value.details['cancel_outcome'] == 'rejected'
    assert shop.resolve('f', bq.CANCEL)['cancel_outcome'] == 'rejected'
    unseen = shop.resolve('never')
    digest = hashlib.sha256(b'never').hexdigest()[:24]
    assert (unseen['stable_local_order_id'], unseen['order_id']) == ('submit_unknown:' + digest, None)
    assert (unseen['reason'], unseen['evidence']) == ('no_strong_order_evidence', {'source': 'idempotency_journal'})
    shop.main.blind = bq.QmtUnavailable('断开')
    assert shop.resolve('k')['evidence'] == {'source': 'idempotency_journal'}, 'nobody has asked the broker'


@pytest.mark.parametrize('security, known', [
    ('600000.XSHG', {'opponent_best', 'home_best', 'five_level_ioc', 'five_level_to_limit'}),
    ('000001.XSHE', {'opponent_best', 'home_best', 'five_level_ioc', 'immediate_or_cancel', 'fill_or_kill'}),
    ('123001.XSHE', set())])
@pytest.mark.parametrize('place', ['style', 'beside'])
def test_a_kind_of_market_order_is_done_as_asked_or_refused(shop, security, known, place):
    shop.data.changes = {'sid': security}
    kinds = {'opponent_best', 'home_best', 'five_level_ioc', 'five_level_to_limit', 'immediate_or_cancel',
             'fill_or_kill'}
    for kind in sorted(kinds | {'best_effort', 5}, key=str):
        style = dict({'type': 'market'}, **({'market_type': kind} if place == 'style' else {}))
        more = {} if place == 'style' else {'market_type': kind}
        if kind not in known:
            with pytest.raises(bq.BadRequest):
                shop.place(security=security, style=style, **more)
            continue
        shop.place(security=security, style=style, idempotency_key=kind, **more)
        assert shop.main.submits[-1].market_type == kind
        with pytest.raises(bq.IdempotencyConflict):
            shop.place(security=security, style={'type': 'market'}, idempotency_key=kind)
    assert len(shop.main.submits) == len(known)


@pytest.mark.parametrize('changes', [
    {'market_type': 'fill_or_kill'},
    {'style': {'type': 'market', 'market_type': 'home_best'}, 'market_type': 'opponent_best'},
    {'style': {'type': 'limit', 'price': 10.0, 'market_type': 'home_best'}}])
def test_a_kind_of_market_order_beside_something_else_is_refused(shop, changes):
    with pytest.raises(bq.BadRequest):
        shop.place(**changes)


def test_others_learn_nothing_about_a_key(shop):
    shop.place(idempotency_key='k', sub_account_id='demo')
    assert shop.resolve('k', sub_account_id='free')['submission_state'] == 'submit_unknown'
    assert shop.resolve('k', account_key='hedge')['submission_state'] == 'submit_unknown'
    assert shop.resolve('k', sub_account_id='demo@main')['submission_state'] == 'accepted'
    assert shop.resolve('k')['submission_state'] == 'accepted'


@pytest.mark.parametrize('action, key', [('broker.orders', 'k'), (bq.PLACE, None), (bq.PLACE, 5), (['x'], 'k')])
def test_resolve_needs_a_key_and_no_strange_action(shop, action, key):
    with pytest.raises(bq.BadRequest):
        shop.resolve(key, action)


def test_resolve_is_about_orders_unless_told_otherwise(shop):
    shop.place(idempotency_key='k')
    assert shop.resolve('k', None)['submission_state'] == 'accepted'


# -- views -----------------------------------------------------------------------------------------------------------
def test_sub_accounts_see_their_own_orders_and_trades(shop):
    mine = shop.place(sub_account_id='demo', remark='m')['order_id']
    other = shop.place(sub_account_id='free', security='000002.XSHE')['order_id']
    for order_id in (mine, other):
        shop.main.become(order_id, 'filled')
    demo, main = {'sub_account_id': 'demo'}, {'account_key': 'main'}
    assert [row['order_id'] for row in shop.desk.orders(demo)] == [mine]
    assert [(row['order_id'], row['order_remark']) for row in shop.desk.trades(demo)] == [(mine, 'm')]
    assert [row['order_id'] for row in shop.desk.orders(main)] == [mine, other]
    assert shop.desk.order_status(dict(demo, order_id=other)) == {}
    assert shop.desk.order_status(dict(demo, order_id=mine))['sub_account_id'] == 'demo'
    assert shop.desk.order_status(dict(main, order_id='zz')) == {}


def test_filters_of_orders_and_trades(shop):
    first, second = shop.place()['order_id'], shop.place(security='000002.XSHE')['order_id']
    shop.main.become(second, 'filled')

    def ids(view, **wanted):
        return [row['order_id'] for row in getattr(shop.desk, view)(dict(wanted, account_key='main'))]
    assert ids('orders', order_id=first) == [first] and ids('orders', security='000002.SZ') == [second]
    assert ids('orders', status='filled') == [second] and ids('orders', status='open') == [first]
    assert ids('trades', order_id=first) == [] and ids('trades', security='000002.SZ') == [second]
    for wanted in ({'status': 'odd'}, {'security': 'odd'}, {'order_id': []}):
        with pytest.raises(bq.BadRequest):
            ids('orders', **wanted)


# -- a machine that does everything in any order -----------------------------------------------------------------------
KEYS = st.sampled_from(['a', 'b', 'c'])
FAULTS = st.sampled_from([None, None, 'rejected', 'lost before', 'lost after', 'disk before', 'disk after',
                          'blind after'])


class DeskMachine(RuleBasedStateMachine):
    """Each key leads to at most one order at the broker, and no answer contradicts the broker."""

    @initialize()
    def open(self):
        self.shop = Shop()
        self.shop.restart = self.power_cut
        self.ids = {}  # key -> order id that an answer named

    def teardown(self):
        if hasattr(self, 'shop'):
            self.shop.journal.close()

    def power_cut(self):
        """The journal of a new process: what this one wrote, and nothing that it had in memory."""
        dump = list(self.shop.journal._db.execute('SELECT * FROM writes'))
        self.shop.journal.close()
        self.shop.open()
        db = self.shop.journal._db
        db.executemany('INSERT INTO writes VALUES (%s)' % ','.join('?' * len(bq.JournalEntry._fields)), dump)
        self.shop.journal._settle_at_start(db)

    @rule(key=KEYS, fault=FAULTS, amount=st.sampled_from([100, 100, 200, 150]),
          sub=st.sampled_from([None, None, 'demo']))
    def place(self, key, fault, amount, sub):
        broker = self.shop.main
        del broker.submits[:]
        mend = self.inject(fault)
        try:
            answer = self.shop.place(idempotency_key=key, amount=amount, sub_account_id=sub)
        except (bq.OrderRejected, bq.BadRequest, bq.JournalError, bq.QmtUnavailable) as error:
            if error.broker_called is False:
                assert not broker.submits
            if not isinstance(error, (bq.BadRequest, bq.QmtUnavailable)):
                assert not self.orders_of(key)
        except bq.OrderStateUnknown:
            pass
        else:
            self.agree(key, answer)
        finally:
            mend()

    def inject(self, fault):
        broker, mend = self.shop.main, lambda: None
        broker.script.clear()
        steps = {'rejected': bq.OrderRejected('no'), 'lost before': RuntimeError(),
                 'lost after': ('after', RuntimeError())}
        if fault in steps:
            broker.script.append(steps[fault])
        elif fault == 'disk before':
            mend = break_journal(self.shop, changes_to('submitting'))
        elif fault == 'disk after':
            mend = break_journal(self.shop, changes_to('accepted', 'unknown', 'rejected'))
        elif fault == 'blind after':
            broker.blind = bq.QmtUnavailable('断开')
        return lambda: (mend(), broker.script.clear(), setattr(broker, 'blind', None))

    def orders_of(self, key):
        tags = {row[0] for row in self.shop.journal._db.execute(
            'SELECT tag FROM writes WHERE idempotency_key=? AND action=?', (key, bq.PLACE))}
        return [row for row in self.shop.main.rows.values() if row.order_remark in tags]

    def agree(self, key, answer):
        row = self.shop.main.rows[answer['order_id']]
        assert answer['amount'] == row.amount and answer['side'] == row.side
        assert answer['status'] in (row.status, 'submitted')
        assert self.ids.setdefault(key, answer['order_id']) == answer['order_id']

    @rule(key=KEYS)
    def resolve(self, key):
        del self.shop.main.submits[:]
        answer = self.shop.resolve(key)
        assert not self.shop.main.submits
        if answer['submission_state'] == 'accepted':
            self.agree(key, answer['resolved_result'])
        if answer['submission_state'] == 'rejected':
            assert not self.orders_of(key)

    @rule(key=KEYS, cancel_key=st.sampled_from([None, 'x', 'y']),
          step=st.sampled_from([None, 'pending', RuntimeError()]))
    def cancel(self, key, cancel_key, step):
        order_id = self.ids.get(key, 'zz')
        self.shop.main.cancel_script.clear()
        self.shop.main.cancel_script.append(step)
        try:
            answer = self.shop.cancel(order_id, idempotency_key=cancel_key)
        except (bq.OrderNotFound, bq.IdempotencyConflict, bq.OrderStateUnknown):
            return
        row = self.shop.main.rows[order_id]
        assert answer['status'] == row.status and answer['value'] is (row.status == 'canceled')

    @rule(key=KEYS)
    def fill(self, key):
        order_id = self.ids.get(key)
        if order_id and not self.shop.main.rows[order_id].final:
            self.shop.main.become(order_id, 'filled')

    @rule()
    def restart(self):
        self.shop.restart()

    @invariant()
    def one_order_a_key(self):
        if hasattr(self, 'shop'):
            tags = [row.order_remark for row in self.shop.main.rows.values()]
            assert len(tags) == len(set(tags))
            assert all(len(self.orders_of(key)) <= 1 for key in 'abc')
            assert set(self.ids.values()) <= set(self.shop.main.rows)
            assert len(self.shop.main.rows) == sum(len(self.orders_of(key)) for key in 'abc')


TestDeskMachine = DeskMachine.TestCase
TestDeskMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True,
                                    suppress_health_check=list(HealthCheck))


def test_the_answers_can_travel(shop):
    for answer in (shop.place(idempotency_key='k', wait_timeout=0.01), shop.resolve('k'), shop.cancel('o1')):
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
