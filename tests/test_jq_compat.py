"""install_jq_compat: a strategy in JoinQuant's simulated trading works on the remote account, or says why not."""
import builtins
import contextlib
import copy
import json
import math
import os
import pickle
import random
import sys
import types
from datetime import datetime, timedelta

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests import base, joinquant
from tests.fakes import FakeClock
from tests.processes import run
from tests.test_jq_helper_e2e import CuttingProxy

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CODE, OTHER, STAR = '000001.XSHE', '600000.XSHG', '688001.XSHG'
MORNING = datetime(2024, 1, 8, 10, 0)
ORDERS = ('order', 'order_value', 'order_target', 'order_target_value')
SOURCE = 'from jqdata import *\ndef process_initialize(context):\n    pass\n'


class Strategy:
    """What a strategy sees: its globals and its context, installed. Names are looked up as its functions would."""

    def __init__(self, address, context=None, source=SOURCE, **options):
        self.namespace, self.context = joinquant.fresh_namespace(source), context or joinquant.Context()
        self.address = address
        self.options = dict({'retry_interval': 0, 'rpc_timeout': 20, 'wait_timeout': 1, 'max_lag': None},
                            **options)

    def install(self, **changes):
        return jq.install_jq_compat(self.namespace, context=self.context, **dict(
            {'host': self.address[0], 'port': self.address[1], 'token': base.TOKEN}, **dict(self.options, **changes)))

    def __getattr__(self, name):
        return self.namespace[name]

    @property
    def positions(self):
        return self.context.portfolio.positions


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    """Every test leaves the module and JoinQuant's classes as they were."""
    monkeypatch.setattr(jq, '_clients', None)
    monkeypatch.setattr(joinquant.Log, 'lines', [])
    joinquant.api_modules()
    yield
    jq.uninstall_jq_compat()
    for cls in joinquant.CONTEXTS.values():
        assert '__getattribute__' not in vars(cls) and '__reduce_ex__' not in vars(cls)
    for module in joinquant.api_modules():
        assert all(getattr(module, name) is getattr(joinquant, name) for name in joinquant.__all__)
    joinquant.forget_modules()


@pytest.fixture
def sent(monkeypatch):
    """(action, payload) of every request, but for the one that an install tries the line with."""
    requests, request = [], bq.ShortConnection.request

    def recorded(self, action, payload=None, timeout=None):
        if timeout != jq.JQ_TRY_S:
            requests.append((action, payload))
        return request(self, action, payload, timeout)
    monkeypatch.setattr(bq.ShortConnection, 'request', recorded)
    return requests


def actions(sent):
    return [action for action, _ in sent]


def writes(sent):
    return [payload for action, payload in sent if action in bq.WRITES]


@contextlib.contextmanager
def answering(monkeypatch, answers):
    """Requests of these actions get this answer, or raise it, instead of the server's."""
    request = bq.ShortConnection.request

    def answered(self, action, payload=None, timeout=None):
        if action not in answers:
            return request(self, action, payload, timeout)
        if isinstance(answers[action], Exception):
            raise answers[action]
        return answers[action](request(self, action, payload, timeout))
    with monkeypatch.context() as patch:
        patch.setattr(bq.ShortConnection, 'request', answered)
        yield


@contextlib.contextmanager
def trading(clock=None, context=None, stub=(), **options):
    with base.serving(clock or FakeClock(MORNING), **dict(stub)) as server:
        strategy = Strategy(server.address, context, **options)
        assert strategy.install() is True
        yield strategy
        jq.uninstall_jq_compat()


def last(code=CODE):
    return jq.get_data_client().get_last_price(code)


def resting(code=CODE):
    return joinquant.LimitOrderStyle(bq.floor_to_tick(last(code) * 0.97, 0.01))


def warnings():
    return [line for line in joinquant.Log.lines if line.startswith('[远程账户]')]


# -- backtests and what is no simulation ---------------------------------------------------------------------------
@pytest.mark.parametrize('run_type', ['simple_backtest', 'full_backtest', None, 'SIM_TRADE'])
def test_in_a_backtest_nothing_happens_at_all(run_type, sent):
    context = joinquant.Context(run_type)
    namespace = joinquant.fresh_namespace(SOURCE)
    before, cls = dict(namespace), dict(vars(joinquant.Context))
    assert jq.install_jq_compat(namespace, context=context, host='', token='', nonsense=1) is False
    assert namespace == before and dict(vars(joinquant.Context)) == cls and jq._clients is None and sent == []
    assert jq.uninstall_jq_compat() is False and jq.uninstall_jq_compat(namespace) is False


@pytest.mark.parametrize('context', [None, object(), 5])
def test_who_cannot_tell_a_backtest_from_trading_gets_an_error(context):
    namespace = joinquant.fresh_namespace(SOURCE)
    with pytest.raises(bq.ConfigError):
        jq.install_jq_compat(namespace, context, host='127.0.0.1', token=base.TOKEN)
    assert not isinstance(namespace['order'], jq.JqFunction)


@pytest.mark.parametrize('changes', [
    {'host': None}, {'token': None}, {'port': 0}, {'wait_timeout': -1}, {'wait_timeout': 601}, {'wait_timeout': '16'},
    {'wait_timeout': math.nan}, {'wait_timeout': None},
    {'starting_cash': 0}, {'starting_cash': True},
    {'cache_seconds': -1}, {'cache_seconds': 61}, {'max_lag': 0}, {'max_lag': '1800'}, {'retries': -1},
    {'account_key': ''}])
def test_a_wrong_setting_installs_nothing(changes):
    strategy = Strategy(('127.0.0.1', 1))
    with pytest.raises(bq.ConfigError):
        strategy.install(**changes)
    assert jq._jq_install is None and jq._clients is None
    assert strategy.context.portfolio.total_value == 77 and not isinstance(strategy.order, jq.JqFunction)


@pytest.mark.parametrize('changes, error', [({'token': 'another'}, bq.AuthFailed),
                                            ({'account_key': 'other'}, bq.AccountNotFound)])
def test_what_no_later_attempt_would_mend_is_an_error_at_once(changes, error):
    with base.serving(FakeClock(MORNING)) as server:
        strategy = Strategy(server.address)
        before = dict(strategy.namespace)
        with pytest.raises(error):
            strategy.install(**changes)
        assert strategy.namespace == before and jq._clients is None and jq._jq_install is None
        assert strategy.install() is True and warnings() == []


def test_a_line_that_is_down_is_a_warning_and_tried_again_when_needed():
    with base.serving(FakeClock(MORNING)) as server:
        address = server.address
    strategy = Strategy(address, retries=0)
    assert strategy.install() is True and strategy.install() is True
    assert len(warnings()) == 1 and '用到时再试' in warnings()[0]
    with base.serving(FakeClock(MORNING), port=address[1]):
        assert strategy.context.portfolio.total_value == 1000000


@pytest.mark.parametrize('given, waits', [({'default_wait_timeout': 3}, 3.0), ({'default_wait_timeout': 16}, 16.0),
                                          ({'wait_timeout': 3, 'default_wait_timeout': 3}, 3.0)])
def test_the_spelling_of_bullet_trades_helper(sent, given, waits):
    """Its install_jq_compat has mirror_jq_orders=False, default_wait_timeout=16.0, place_order_timeout_margin=30.0."""
    with base.serving(FakeClock(MORNING)) as server:
        strategy = Strategy(server.address)
        del strategy.options['wait_timeout']
        more = {'mirror_jq_orders': False, 'place_order_timeout_margin': 30.0, 'retries': 2, 'debug': True,
                'account_key': None, 'sub_account_id': None, 'tls_cert': None}
        assert strategy.install(**dict(more, **given)) is True
        strategy.order('000001.XSHE', 100)
        assert [payload['wait_timeout'] for payload in writes(sent)] == [waits]


@pytest.mark.parametrize('given, error', [
    ({'mirror_jq_orders': True}, jq.JqNotSupported), ({'mirror_jq_orders': 1}, jq.JqNotSupported),
    ({'mirror_jq_orders': None}, jq.JqNotSupported), ({'wait_timeout': 3, 'default_wait_timeout': 4}, bq.ConfigError),
    ({'wait_timeout': 16, 'default_wait_timeout': 601}, bq.ConfigError)])
def test_what_the_spelling_asks_for_and_is_not_done_is_refused_by_name(given, error):
    strategy = Strategy(('127.0.0.1', 1))
    with pytest.raises(error) as caught:
        strategy.install(**given)
    assert any(name in str(caught.value) for name in given) and jq._jq_install is None
    assert not isinstance(strategy.order, jq.JqFunction)


def test_an_order_takes_the_words_of_bullet_trades_helper(sent):
    with trading(wait_timeout=7) as strategy:
        low = resting().limit_price
        strategy.order(CODE, 100, price=low, remark='mine', wait_timeout=0)
        strategy.order_value(CODE, 2000, price=low, market=False, order_remark='yours')
        strategy.order(CODE, 100, market=True, price=None)
        first, second, third = writes(sent)
        assert (first['style'], first['order_remark'], 'wait_timeout' in first) == (
            {'type': 'limit', 'price': low}, 'mine', False)
        assert (second['style'], second['order_remark'], second['wait_timeout']) == (
            {'type': 'limit', 'price': low}, 'yours', jq.LIMIT_WAIT_S)
        assert third['style'] == {'type': 'market'} and third['wait_timeout'] == 7


@pytest.mark.parametrize('more', [{'wait': 3}, {'valid_until': 'x'}, {'protect': 1},
                                  {'idempotency_key': 'own-key'}])
def test_a_word_that_an_order_does_not_know_is_refused_by_name(sent, more):
    with trading() as strategy:
        for name in ORDERS:
            with pytest.raises(TypeError) as caught:
                strategy.namespace[name](CODE, 100, **more)
            assert list(more)[0] in str(caught.value)
        assert writes(sent) == []


def test_unknown_settings_are_type_errors():
    with pytest.raises(TypeError):
        Strategy(('127.0.0.1', 1)).install(wait=3)
    assert jq._jq_install is None


def test_local_names_are_no_namespace():
    for namespace in ({}, None, {'context': 1}):
        with pytest.raises(bq.ConfigError):
            jq.install_jq_compat(namespace, joinquant.Context(), host='127.0.0.1', token=base.TOKEN)


def test_a_function_of_the_strategys_own_is_not_replaced_behind_its_back():
    source = SOURCE + 'def order_value(security, value):\n    return 5\n'
    strategy = Strategy(('127.0.0.1', 1), source=source)
    with pytest.raises(bq.ConfigError) as caught:
        strategy.install()
    assert 'order_value' in str(caught.value) and strategy.order_value(CODE, 1) == 5


def test_a_second_subportfolio_is_refused():
    class Two(joinquant.Context):
        subportfolios = [joinquant.Portfolio(), joinquant.Portfolio()]
    strategy = Strategy(('127.0.0.1', 1), Two())
    with pytest.raises(jq.JqNotSupported):
        strategy.install()
    assert jq._jq_install is None and not isinstance(strategy.order, jq.JqFunction)


def test_a_context_that_cannot_be_taken_over_leaves_the_functions_alone():
    context = types.SimpleNamespace(run_params=joinquant.RunParams('sim_trade'), portfolio=1, subportfolios=[1])
    strategy = Strategy(('127.0.0.1', 1), context)
    with pytest.raises(jq.JqNotSupported):
        strategy.install()
    assert jq._jq_install is None and jq._clients is None and not isinstance(strategy.order, jq.JqFunction)


@pytest.mark.parametrize('code, style', [
    (CODE, {'type': 'market'}), (STAR, {'type': 'market', 'protect_price': 9999.0})])
def test_the_price_of_a_market_order_is_that_of_star_alone(code, style, sent):
    with trading() as strategy:
        for _ in range(2):
            strategy.order(code, 200, joinquant.MarketOrderStyle(9999.0))
    assert [payload['style'] for payload in writes(sent)] == [style] * 2
    assert sum('只对科创板起作用' in line for line in warnings()) == (code != STAR)


# -- what is not supported -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ORDERS)
@pytest.mark.parametrize('how', [
    {'side': 'short'}, {'pindex': 1}, {'close_today': True}, {'style': joinquant.StopMarketOrderStyle(1, 9.0)},
    {'security': 'IF2401.CCFX'}, {'security': 'RB2405.XSGE'}, {'security': '000001.OF'}])
def test_what_the_account_cannot_do_is_refused_before_anything_is_sent(sent, name, how):
    with trading() as strategy:
        arguments = dict({'security': CODE}, **how)
        with pytest.raises(NotImplementedError) as caught:
            strategy.namespace[name](arguments.pop('security'), 1000, **arguments)
    assert caught.value.code == 'NOT_SUPPORTED' and caught.value.broker_called is False and sent == []


@pytest.mark.parametrize('name', ['batch_submit_orders', 'inout_cash', 'transfer_cash', 'margincash_open'])
def test_functions_that_would_only_move_the_simulation_are_refused(sent, name):
    with trading() as strategy:
        with pytest.raises(NotImplementedError) as caught:
            strategy.namespace[name](1, 2, x=3)
    assert caught.value.code == 'NOT_SUPPORTED' and name in str(caught.value) and sent == []


@pytest.mark.parametrize('arguments', [
    (CODE, math.nan), (CODE, math.inf), (CODE, '100'), (CODE, None), (CODE, True), (CODE, [100]), (CODE, 100, 10.5),
    (CODE, 100, 'market'), (CODE, 100, joinquant.LimitOrderStyle(math.nan)), (CODE, 100, joinquant.LimitOrderStyle(-1)),
    (CODE, 100, joinquant.LimitOrderStyle('10')), (CODE, 100, joinquant.LimitOrderStyle(None)),
    (CODE, 100, joinquant.LimitOrderStyle), (CODE, 100, None, 'BUY'), ('000001', 100), (None, 100), (CODE, 1e13)])
def test_what_makes_no_sense_is_an_error_and_sends_nothing(sent, arguments):
    with trading() as strategy:
        for name in ORDERS:
            with pytest.raises(bq.BadRequest):
                strategy.namespace[name](*arguments)
    assert sent == []


# -- orders --------------------------------------------------------------------------------------------------------
def test_a_market_order_gives_the_order_as_joinquant_does():
    with trading() as strategy:
        order = strategy.order(CODE, 250)
        assert order.status == strategy.OrderStatus.held and order.status is joinquant.OrderStatus.held
        assert (str(order.status), order.status.name, order.status.value) == ('held', 'held', 4)
        assert (order.security, order.amount, order.filled, order.is_buy) == (CODE, 200, 200, True)
        assert (order.side, order.action, order.pindex, order.add_time) == ('long', 'open', 0, MORNING)
        (fill,) = strategy.get_trades().values()
        assert (fill.order_id, fill.amount, fill.price, fill.time) == (order.order_id, 200, order.price, MORNING)
        assert order.avg_cost == order.price > 0 and order.commission >= 5
        assert list(strategy.get_trades()) == [fill.trade_id] and 'JqTrade(' in repr(fill)


def test_orders_wait_sixteen_seconds_unless_told_otherwise(sent):
    with base.serving(FakeClock(MORNING)) as server:
        strategy = Strategy(server.address)
        del strategy.options['wait_timeout']
        strategy.install()
        strategy.order(CODE, 100)
        strategy.order(CODE, 100, resting())
        assert [payload['wait_timeout'] for payload in writes(sent)] == [16.0, jq.LIMIT_WAIT_S]
        jq.uninstall_jq_compat()
    with trading(wait_timeout=0) as strategy:
        strategy.order(CODE, 100)
        assert 'wait_timeout' not in writes(sent)[2]


def test_a_limit_order_rests_and_is_cancelled():
    with trading(wait_timeout=0) as strategy:
        order = strategy.order(CODE, 200, resting())
        assert order.status == joinquant.OrderStatus.open and order.filled == 0 and order.price == 0
        assert list(strategy.get_open_orders()) == [order.order_id]
        assert strategy.get_orders(order_id=order.order_id)[order.order_id].amount == 200
        assert list(strategy.get_orders(security='000001.SZ', status=joinquant.OrderStatus.open)) == [order.order_id]
        assert strategy.get_orders(status='held') == {} == strategy.get_orders(security=OTHER)
        gone = strategy.cancel_order(order)
        assert (gone.order_id, gone.status) == (order.order_id, joinquant.OrderStatus.canceled)
        assert strategy.get_open_orders() == {} and warnings() == []
        assert strategy.cancel_order(order.order_id).status.name == 'canceled'
        with pytest.raises(bq.BadRequest):
            strategy.get_orders(status='done')


def test_a_cancel_that_comes_too_late_gives_the_order_and_a_warning():
    with trading() as strategy:
        order = strategy.order(CODE, 100)
        assert strategy.cancel_order(order).status.name == 'held' and len(warnings()) == 1
        assert strategy.cancel_order('12345') is None and len(warnings()) == 2


def test_a_refusal_is_none_with_a_warning():
    with trading() as strategy:
        assert strategy.order(CODE, 100, joinquant.LimitOrderStyle(0.01)) is None
        assert strategy.order(CODE, 50) is None
        assert strategy.order(CODE, -100) is None
        assert len(warnings()) == 3 and all(CODE in line for line in warnings())
        assert strategy.order_target(CODE, 0) is None and len(warnings()) == 3
        assert strategy.get_orders() == {} and strategy.positions == {}


def test_parts_of_a_share_are_dropped_towards_nothing():
    with trading() as strategy:
        assert strategy.order(CODE, 299.99).amount == 200
        assert strategy.order(CODE, 299.99999999999994).amount == 300
        assert strategy.order_target(CODE, 700.5).amount == 200


@pytest.mark.parametrize('name, target', [('order_target', -100), ('order_target', -0.5), ('order_target_value', -1.0)])
def test_a_negative_target_sells_nothing(sent, name, target):
    with trading() as strategy:
        with pytest.raises(bq.BadRequest) as caught:
            strategy.namespace[name](CODE, target)
        assert '目标不能是负数' in str(caught.value)
    assert sent == []


def test_buys_are_cut_to_the_cash():
    with trading(stub={'stub_cash': 10000}) as strategy:
        price = resting().limit_price
        order = strategy.order(CODE, 100000, joinquant.LimitOrderStyle(price))
        assert order.amount == bq.round_lot(CODE, int(9994 / price)) > 0 and order.status.name == 'open'
        assert strategy.order(CODE, 10000) is None and '可用资金' in warnings()[0]
        strategy.cancel_order(order)
        order = strategy.order_value(CODE, 10000.0)
        assert order.status.name == 'held' and order.amount * last() * 1.021 + 100 * last() > 9990
        assert strategy.context.portfolio.cash >= 0


@pytest.mark.parametrize('price', [1.07, 3.33, 10.0, 99.99])
@pytest.mark.parametrize('cash', [0.0, 5.0, 1005.31, 10005.31, 33333.33])
@pytest.mark.parametrize('code', [CODE, STAR])
def test_the_largest_affordable_lot(price, cash, code):
    class Plain:
        _connection, _rpc_timeout, _margin, _debug, _account = None, 1, 1, False, {}
    broker = jq.JqBroker(Plain, None, None, None, None)
    broker.get_account = lambda: jq.RemoteAccount({'available_cash': cash, 'total_value': cash})
    lots = broker._affordable(code, 500000, jq.OrderTerms(price))[0]
    valid = [n for n in range(0, int(cash / price) + 300) if n == bq.round_lot(code, n) and n <= 500000]
    best = max(n for n in valid if n == 0 or cost(code, n, price) <= bq.Decimal(repr(cash)))
    assert lots == best


def cost(code, shares, price):
    value = bq.Decimal(repr(price)) * shares
    return value + sum(bq.trade_fees(code, 'BUY', value, MORNING.date()))


def test_sales_are_cut_to_what_can_be_sold_and_know_the_cost():
    clock = FakeClock(MORNING)
    with trading(clock) as strategy:
        bought = strategy.order(CODE, 300)
        clock.set(datetime(2024, 1, 9, 10, 0))
        strategy.order(CODE, 200)
        clock.advance(60)
        held = strategy.positions[CODE]
        assert (held.total_amount, held.closeable_amount, held.today_amount, held.locked_amount) == (500, 300, 200, 0)
        assert (held.sellable_amount, held.side, held.pindex, held.security) == (300, 'long', 0, CODE)
        sold = strategy.order(CODE, -1000)
        assert (sold.amount, sold.filled, sold.is_buy, sold.action) == (300, 300, False, 'close')
        assert sold.avg_cost == pytest.approx(held.avg_cost) and bought.amount == 300
        with pytest.raises(jq.JqNotSupported):
            strategy.get_orders()[sold.order_id].avg_cost
        assert strategy.order(CODE, -100) is None
        clock.set(datetime(2024, 1, 10, 10, 0))
        assert strategy.order_value(CODE, -100 * last() - 1).amount == 100
        assert strategy.order_target_value(CODE, 0).amount == 100 and strategy.positions == {}


def test_targets_cancel_what_is_open_first():
    with trading() as strategy:
        open_order = strategy.order(CODE, 500, resting())
        order = strategy.order_target(CODE, 300)
        assert strategy.get_orders()[open_order.order_id].status.name == 'canceled' and order.filled == 300
        order = strategy.order_target_value(CODE, last() * 500 + 1)
        assert order.amount == 200 and strategy.positions[CODE].total_amount == 500


def test_each_status_of_a_server_is_one_of_joinquants():
    names = {'new': ('new', 'filled'), 'submitted': ('open', 'filled'), 'open': ('open', 'filled'),
             'filling': ('open', 'filled'), 'canceling': ('open', 'filled'), 'submit_unknown': ('open', 'filled'),
             'partly_canceled': ('canceled', 'canceled'), 'canceled': ('canceled', 'canceled'),
             'filled': ('held', 'held'), 'rejected': ('rejected', 'rejected')}
    assert set(names) == set(bq.STATUS_RAW)
    statuses = dict(jq.JqOrderStatus.__members__)
    for status, expected in names.items():
        for filled, name in zip((0, 100), expected):
            row = {'order_id': '1', 'security': CODE, 'amount': 300, 'filled': filled, 'status': status, 'side': 'BUY'}
            assert jq.JqOrder(jq.RemoteOrder(row), statuses).status.name == name
    with pytest.raises(bq.ProtocolError):
        jq.JqOrder(jq.RemoteOrder(dict(row, side=None)), statuses)


def test_a_status_that_nobody_knows_is_not_final_and_said_once(monkeypatch):
    with trading() as strategy:
        strategy.order(CODE, 100)
        rows = jq._jq_install.trading.broker._ask('broker.orders')
        rows = [dict(row, status='strange') for row in (rows.rows() if isinstance(rows, bq.Table) else rows)]
        with answering(monkeypatch, {'broker.orders': lambda answer: rows}):
            for _ in range(2):
                order, = strategy.get_open_orders().values()
                assert (order.status.name, order.remote_status) == ('filled', 'strange')
    assert sum("的状态不认识：'strange'" in line for line in joinquant.Log.lines) == 1


def test_a_strategy_without_a_sound_order_status_gets_ours():
    class Alias:
        new, open, filled, held, canceled, rejected = 'new', 'open', 'filled', 'filled', 'canceled', 'rejected'
    with base.serving(FakeClock(MORNING)) as server:
        for theirs in (None, Alias):
            strategy = Strategy(server.address)
            strategy.namespace['OrderStatus'] = theirs
            strategy.install()
            status = strategy.order(CODE, 100).status
            assert status is strategy.OrderStatus.held and status == 'held' and status != strategy.OrderStatus.filled
            assert status == joinquant.OrderStatus.held and joinquant.OrderStatus.held == status
            assert status in {joinquant.OrderStatus.held} and '%s' % status == 'held' and status.value == 4
            assert pickle.loads(pickle.dumps(status)) == strategy.OrderStatus.held
            jq.uninstall_jq_compat()
            assert strategy.OrderStatus is theirs


# -- doubts --------------------------------------------------------------------------------------------------------
UNKNOWN = [bq.OrderStateUnknown('?', idempotency_key='k'), bq.ConnectionLost('?'), bq.RequestTimeout('?'),
           bq.InternalError('?'), bq.QmtUnavailable('?'), bq.ServerBusy('?'), bq.ProtocolError('?'),
           bq.AuthFailed('?'), bq.JournalError('?'), bq.IdempotencyConflict('?'), bq.AccountNotFound('?')]


@pytest.mark.parametrize('error', UNKNOWN, ids=lambda error: type(error).__name__)
def test_only_a_refusal_is_none(monkeypatch, error):
    with trading() as strategy, answering(monkeypatch, {'broker.place_order': error}):
        for call in (strategy.order, strategy.order_target):
            with pytest.raises(type(error)) as caught:
                call(CODE, 100)
            assert caught.value.code == error.code
            if isinstance(error, bq.OrderStateUnknown):
                assert caught.value.idempotency_key == 'k' and 'k' in caught.value.hint
                assert '不要重下' in caught.value.hint
        assert warnings() == []


@pytest.mark.parametrize('change', [
    {'status': 'submit_unknown'}, {'status': 'reconciling'}, {'order_id': None}, {'order_id': '-1'},
    {'filled': 'x'}, {'amount': None, 'volume': None}, {'order_time': 'soon'}])
def test_an_answer_that_tells_too_little_is_unknown_and_nothing_is_sent_again(monkeypatch, sent, change):
    with trading() as strategy:
        with answering(monkeypatch, {'broker.place_order': lambda answer: dict(answer, **change)}):
            with pytest.raises(bq.OrderStateUnknown) as caught:
                strategy.order(CODE, 100)
        assert caught.value.idempotency_key == writes(sent)[0]['idempotency_key'] and len(writes(sent)) == 1


def test_an_answer_without_fills_is_completed_by_asking(monkeypatch):
    def bare(answer):
        names = ('order_id', 'status', 'amount', 'price', 'order_price', 'timed_out')
        return {name: answer[name] for name in names}
    with trading() as strategy, answering(monkeypatch, {'broker.place_order': bare}):
        assert strategy.order(CODE, 100).filled == 100
        with answering(monkeypatch, {'broker.order_status': bq.ConnectionLost('?')}):
            with pytest.raises(bq.OrderStateUnknown) as caught:
                strategy.order(CODE, 100)
            assert caught.value.idempotency_key
        for told in ({}, {'order_id': '1'}):
            with answering(monkeypatch, {'broker.order_status': lambda answer: told}):
                with pytest.raises(bq.OrderStateUnknown) as caught:
                    strategy.order(CODE, 100)
                assert caught.value.idempotency_key in caught.value.hint


def test_a_cancel_in_doubt_is_raised(monkeypatch):
    with trading(wait_timeout=0) as strategy:
        order = strategy.order(CODE, 100, resting())
        for error in (bq.OrderStateUnknown('?', idempotency_key='k'), bq.ConnectionLost('?'), bq.InternalError('?')):
            with answering(monkeypatch, {'broker.cancel_order': error}):
                with pytest.raises(type(error)):
                    strategy.cancel_order(order)
                with pytest.raises(type(error)):
                    strategy.order_target(CODE, 0)
        with answering(monkeypatch, {'broker.cancel_order': bq.OrderRejected('late'),
                                     'broker.order_status': lambda answer: {}}):
            with pytest.raises(bq.OrderStateUnknown):
                strategy.cancel_order(order)
        with answering(monkeypatch, {'broker.cancel_order': bq.OrderRejected('late')}):
            assert strategy.cancel_order(order).status.name == 'open' and len(warnings()) == 1


def test_every_order_has_a_key_of_its_own(sent):
    with trading(wait_timeout=0) as strategy:
        orders = [strategy.order(CODE, 100, resting()) for _ in range(3)]
        strategy.cancel_order(orders[0])
        strategy.order_target(CODE, 0)
        keys = [payload['idempotency_key'] for payload in writes(sent)]
        assert len(keys) == len(set(keys)) == 6


@contextlib.contextmanager
def cutting(server, cuts, **options):
    """A strategy installed behind a line that breaks before the answers to its first `cuts` writes."""
    proxy = CuttingProxy(server.address, cuts)
    try:
        strategy = Strategy(proxy.address, **options)
        strategy.install()
        yield strategy, proxy
        jq.uninstall_jq_compat()
    finally:
        proxy.close()


def test_a_lost_answer_is_fetched_with_the_same_key():
    with base.serving(FakeClock(MORNING)) as server, cutting(server, 2, retries=2) as (strategy, proxy):
        assert strategy.order(CODE, 100).filled == 100
        assert len(proxy.seen) == 3 and len(set(proxy.seen)) == 1
        assert len(strategy.get_orders()) == 1 and strategy.positions[CODE].total_amount == 100


def test_an_order_whose_answer_never_comes_is_unknown_and_a_target_makes_no_second_one():
    with base.serving(FakeClock(MORNING)) as server, cutting(server, 1, retries=0) as (strategy, proxy):
        assert strategy.context.portfolio.positions == {}
        with pytest.raises(bq.OrderStateUnknown) as caught:
            strategy.order_target(CODE, 300)
        assert proxy.seen == [caught.value.idempotency_key] and proxy.seen[0] in caught.value.hint
        assert strategy.order_target(CODE, 300).filled == 300 and strategy.order_target(CODE, 300) is None
        assert strategy.positions[CODE].total_amount == 300 and len(strategy.get_orders()) == 1


def test_a_strategy_that_tries_an_order_in_doubt_again_gets_that_order():
    """`try: order(...) except: order(...)` is what strategies do."""
    with base.serving(FakeClock(MORNING)) as server, cutting(server, 2, retries=0) as (strategy, proxy):
        for _ in range(2):
            with pytest.raises(bq.OrderStateUnknown):
                strategy.order(CODE, 300)
            again = strategy.order(CODE, 300)
            assert (again.amount, again.filled, again.status.name) == (300, 300, 'held')
        assert len(proxy.seen) == 2 and set(strategy.get_orders()) > {again.order_id}
        strategy.order(CODE, 300)
        assert [order.amount for order in strategy.get_orders().values()] == [300] * 3


def test_another_order_goes_on_once_the_doubt_is_over():
    with base.serving(FakeClock(MORNING)) as server, cutting(server, 1, retries=0) as (strategy, proxy):
        with pytest.raises(bq.OrderStateUnknown):
            strategy.order(CODE, 300)
        assert strategy.order(OTHER, 100).filled == 100 and strategy.order(CODE, 200).filled == 200
        assert strategy.positions[CODE].total_amount == 500 and len(proxy.seen) == 3


@pytest.mark.parametrize('told', [{'submission_state': 'reconciling'}, {'submission_state': 'submit_unknown'},
                                  {'submission_state': 'accepted'}, {}, None, bq.ConnectionLost('?')])
def test_while_there_is_a_doubt_nothing_more_is_ordered_of_that_security(monkeypatch, sent, told):
    outcome = told if isinstance(told, Exception) else lambda answer: told
    with trading() as strategy:
        with answering(monkeypatch, {'broker.place_order': lambda answer: dict(answer, order_id=None)}):
            with pytest.raises(bq.OrderStateUnknown):
                strategy.order(CODE, 100)
        done = len(writes(sent))
        with answering(monkeypatch, {'broker.resolve_submission': outcome}):
            for name in ORDERS:
                with pytest.raises(bq.BulletError):
                    strategy.namespace[name](CODE, 100)
            assert len(writes(sent)) == done and strategy.order(OTHER, 100).filled == 100
        assert strategy.order_target(CODE, 0) is None and len(writes(sent)) == done + 1


def test_a_doubt_goes_on_in_the_next_task_and_ends_with_the_day(monkeypatch, sent):
    with base.serving(FakeClock(MORNING)) as server:
        first, later = Strategy(server.address), Strategy(server.address)
        first.install()
        with answering(monkeypatch, {'broker.place_order': lambda answer: dict(answer, order_id=None)}):
            with pytest.raises(bq.OrderStateUnknown):
                first.order(CODE, 100)
        jq.uninstall_jq_compat()
        kept = pickle.dumps(first.namespace[jq._JQ_DOUBTS])
        assert b'jq_helper' not in kept
        later.namespace[jq._JQ_DOUBTS] = pickle.loads(kept)
        later.install()
        later.context.current_dt += timedelta(minutes=30)
        with answering(monkeypatch, {'broker.resolve_submission': lambda answer: {'submission_state': 'reconciling'}}):
            with pytest.raises(bq.OrderStateUnknown):
                later.order(CODE, 100)
            assert len(writes(sent)) == 1
            tomorrow = jq._jq_now() + timedelta(days=1)
            monkeypatch.setattr(jq, '_jq_now', lambda: tomorrow)
            assert later.order(CODE, 100).filled == 100 and len(writes(sent)) == 2
        (warning,) = warnings()
        assert writes(sent)[0]['idempotency_key'] in warning and jq._JQ_DOUBTS not in later.namespace


def test_the_same_order_of_a_later_task_is_another_one(sent):
    with base.serving(FakeClock(MORNING)) as server, cutting(server, 1, retries=0) as (strategy, proxy):
        with pytest.raises(bq.OrderStateUnknown):
            strategy.order(CODE, 300)
        strategy.context.current_dt += timedelta(minutes=30)
        assert strategy.order(CODE, 300).filled == 300 and len(strategy.get_orders()) == 2
        assert jq._JQ_DOUBTS not in strategy.namespace


@pytest.mark.parametrize('other', [-100, 300])
def test_another_order_that_a_doubt_refuses_is_not_taken_for_the_one_in_doubt(monkeypatch, sent, other):
    with trading() as strategy:
        with answering(monkeypatch, {'broker.place_order': lambda answer: dict(answer, order_id=None),
                                     'broker.resolve_submission': lambda answer: {'submission_state': 'reconciling'}}):
            for amount in (100, other):
                with pytest.raises(bq.OrderStateUnknown):
                    strategy.order(CODE, amount)
        assert strategy.order(CODE, 100).amount == 100 and len(writes(sent)) == 1
        assert strategy.order(CODE, 300).amount == 300 and len(writes(sent)) == 2


def test_an_order_that_never_came_is_ordered_when_it_is_tried_again(monkeypatch):
    with trading() as strategy:
        with monkeypatch.context() as patch:
            request = bq.ShortConnection.request

            def lost(self, action, payload=None, timeout=None):
                if action == 'broker.place_order':
                    raise bq.OrderStateUnknown('?', idempotency_key=payload['idempotency_key'])
                return request(self, action, payload, timeout)
            patch.setattr(bq.ShortConnection, 'request', lost)
            with pytest.raises(bq.OrderStateUnknown):
                strategy.order(CODE, 100)
        assert strategy.get_orders() == {}
        assert strategy.order(CODE, 100).filled == 100 and len(strategy.get_orders()) == 1


def test_a_cancel_whose_answer_is_lost_is_unknown_and_no_target_follows():
    with base.serving(FakeClock(MORNING)) as server:
        with cutting(server, 2, retries=0, wait_timeout=0) as (strategy, _):
            with pytest.raises(bq.OrderStateUnknown):
                strategy.order(CODE, 500, resting())
            with pytest.raises(bq.OrderStateUnknown):
                strategy.order_target(CODE, 300)
            (order,) = strategy.get_orders().values()
            assert (order.status.name, order.amount) == ('canceled', 500)


@pytest.mark.parametrize('seed', range(4))
def test_whatever_breaks_none_and_errors_left_no_order_and_orders_are_there_once(monkeypatch, seed):
    """Lines break before and after the server has got a request, at random; then the exchange is asked by key."""
    chance, wait, write, sent = random.Random(seed), bq.ShortConnection._await, bq.Channel.write, []

    def breaking_write(channel, data):
        if chance.random() < 0.1:
            raise bq.ConnectionLost('before')
        write(channel, data)

    def breaking_wait(self, channel, call, deadline):
        sent.append(call.payload.get('idempotency_key') if call.action == 'broker.place_order' else None)
        if chance.random() < 0.25:
            raise bq.ConnectionLost('after')
        wait(self, channel, call, deadline)

    calls = []
    with trading(wait_timeout=0, retries=seed % 3) as strategy:
        prices = [resting(), resting(OTHER), None, joinquant.LimitOrderStyle(0.01)]
        with monkeypatch.context() as patch:
            patch.setattr(bq.Channel, 'write', breaking_write)
            patch.setattr(bq.ShortConnection, '_await', breaking_wait)
            for _ in range(40):
                del sent[:]
                name, amount = chance.choice([('order', 200), ('order', 150), ('order_target', 300), ('order', -100)])
                try:
                    result = strategy.namespace[name](chance.choice([CODE, OTHER]), amount, chance.choice(prices))
                except bq.BulletError as error:
                    result = error
                calls.append((result, set(sent) - {None}))
        found = [order.idempotency_key for order in jq.get_broker_client().get_orders().values()]
        ids = set(strategy.get_orders())
    assert len(found) == len(set(found)) and {type(result) for result, _ in calls} >= {jq.JqOrder, type(None)}
    assert seed % 3 or any(isinstance(result, bq.OrderStateUnknown) for result, _ in calls)
    for result, keys in calls:
        there = keys.intersection(found)
        if isinstance(result, jq.JqOrder):
            assert len(there) == len(keys) <= 1 and result.order_id in ids
        else:
            assert len(there) <= (1 if isinstance(result, bq.OrderStateUnknown) else 0), result


@pytest.mark.parametrize('options, limit_s', [({}, 300), ({'max_lag': 600}, 600)])
def test_a_task_of_another_time_orders_nothing(sent, options, limit_s):
    """Unless told otherwise, it may be five minutes late."""
    with base.serving(FakeClock(jq._jq_now())) as server:
        strategy = Strategy(server.address)
        del strategy.options['max_lag']
        strategy.install(**options)
        for lag_s in (-86400, -limit_s - 5, limit_s + 5, 86400):
            strategy.context.current_dt = jq._jq_now() - timedelta(seconds=lag_s)
            for name in ORDERS:
                with pytest.raises(bq.BadRequest) as caught:
                    strategy.namespace[name](CODE, 5000)
                assert 'max_lag=%d' % limit_s in caught.value.hint
        assert sent == [] and strategy.get_open_orders() == {}
        strategy.context.current_dt = jq._jq_now() - timedelta(seconds=limit_s - 60)
        assert strategy.order(CODE, 100).filled == 100


@pytest.mark.parametrize('name', ORDERS)
def test_an_order_of_a_task_that_began_early_waits_for_its_time(sent, monkeypatch, name):
    """JoinQuant begins tasks of 9:30 from 9:27 on."""
    begun, slept = datetime(2024, 1, 8, 9, 27), []

    def wait(seconds):
        assert not writes(sent)
        slept.append(seconds)
    monkeypatch.setattr(jq, '_jq_now', lambda: begun + timedelta(seconds=0.75 * sum(slept)))
    monkeypatch.setattr(jq.JqClock, 'monotonic', lambda clock: (clock.now() - begun).total_seconds())
    monkeypatch.setattr(jq, '_jq_wait', wait)
    with trading(FakeClock(begun), max_lag=300) as strategy:
        strategy.context.current_dt = datetime(2024, 1, 8, 9, 30)
        strategy.namespace[name](CODE, 5000)
        assert jq._jq_now() >= strategy.context.current_dt and slept[0] == 180 and len(writes(sent)) == 1
        done = len(slept)
        strategy.namespace[name](OTHER, 5000)
        assert len(slept) == done and len(writes(sent)) == 2


def test_a_clock_that_is_set_back_while_an_order_waits_ends_the_wait(sent, monkeypatch):
    now = [datetime(2024, 1, 8, 9, 29)]
    monkeypatch.setattr(jq, '_jq_now', lambda: now[0])
    monkeypatch.setattr(jq, '_jq_wait', lambda seconds: now.insert(0, datetime(2024, 1, 8, 8, 0)))
    with trading(max_lag=300) as strategy:
        strategy.context.current_dt = datetime(2024, 1, 8, 9, 30)
        with pytest.raises(bq.BadRequest):
            strategy.order(CODE, 100)
        assert sent == []


@pytest.mark.parametrize('moment', [None, '2024-01-08', 5])
def test_a_context_without_a_time_orders_nothing(sent, moment):
    with trading(max_lag=300) as strategy:
        strategy.context.current_dt = moment
        with pytest.raises(bq.ConfigError):
            strategy.order(CODE, 100)
        assert sent == []


# -- the account ---------------------------------------------------------------------------------------------------
def test_portfolio_and_subportfolios_are_the_remote_account():
    with trading(starting_cash=1000000) as strategy:
        strategy.order(CODE, 200), strategy.order(OTHER, 100)
        money, portfolio = jq.get_account(), strategy.context.portfolio
        (sub,) = strategy.context.subportfolios
        for account in (portfolio, sub):
            assert (account.total_value, account.portfolio_value) == (money.total_value, money.total_value)
            assert (account.available_cash, account.cash) == (money.available_cash, money.available_cash)
            assert (account.locked_cash, account.positions_value) == (money.frozen_cash, money.market_value)
            assert account.transferable_cash == money.transferable_cash
            assert set(account.positions) == {CODE, OTHER} == set(account.long_positions)
            assert account.short_positions == {} and len(account.positions) == 2
            assert account.returns == account.total_value / 1000000 - 1 and account.inout_cash == 1000000
        assert sub.type == 'stock' and CODE in repr(portfolio) and str(money.total_value) in repr(portfolio)
        with pytest.raises(jq.JqNotSupported):
            portfolio.margin
        with pytest.raises(AttributeError):
            portfolio.total


def test_without_starting_cash_returns_are_not_made_up():
    with trading() as strategy:
        for name in ('returns', 'starting_cash', 'inout_cash'):
            with pytest.raises(jq.JqNotSupported):
                getattr(strategy.context.portfolio, name)


def test_positions_work_like_a_dictionary():
    with trading() as strategy:
        held = strategy.positions
        assert not held and list(held) == [] and CODE not in held
        strategy.order(CODE, 200)
        assert CODE in held and '000001.SZ' in held and list(held.keys()) == [CODE] and len(held) == 1
        assert held['000001.SZ'].total_amount == 200 == held.get(CODE).total_amount and held.get(OTHER) is None
        assert [item.security for item in held.values()] == [CODE] == [code for code, _ in held.items()]
        assert held != {} and held == strategy.positions and held != {CODE: None}
        assert held.copy().keys() == {CODE} and 'total_amount=200' in repr(held) and warnings() == []
        for name in ('init_time', 'hold_cost', 'transact_time'):
            with pytest.raises(jq.JqNotSupported):
                getattr(held[CODE], name)
        assert not hasattr(held[CODE], 'nonsense')


def test_what_is_not_held_is_empty_with_a_warning():
    with trading() as strategy:
        empty = strategy.positions[OTHER]
        assert (empty.security, empty.total_amount, empty.closeable_amount, empty.value) == (OTHER, 0, 0, 0)
        assert (empty.avg_cost, empty.acc_avg_cost, empty.price, empty.locked_amount) == (0, 0, 0, 0)
        assert len(warnings()) == 1 and OTHER in warnings()[0] and OTHER not in strategy.positions
        assert strategy.context.portfolio.short_positions[CODE].total_amount == 0


def test_locked_shares_are_not_in_the_total():
    rows = [{'security': '000001.SZ', 'amount': 500, 'closeable_amount': 100, 'frozen_volume': 300, 'avg_cost': 2.0,
             'last_price': 3.0, 'market_value': 1500.0},
            {'security': CODE, 'amount': 100, 'closeable_amount': 100, 'avg_cost': 8.0, 'last_price': 3.0,
             'market_value': 300.0},
            {'security': OTHER, 'amount': 0, 'closeable_amount': 0},
            {'security': 'XYZ', 'amount': 7, 'closeable_amount': 7, 'avg_cost': 1.0, 'last_price': 1.0,
             'market_value': 7.0}]
    found = jq._jq_positions(map(jq.RemotePosition, rows))
    held = found[CODE]
    assert list(found) == [CODE, 'XYZ'] and (held.total_amount, held.locked_amount) == (300, 300)
    assert (held.closeable_amount, held.today_amount, held.avg_cost, held.value) == (200, 100, 3.0, 1800.0)
    with pytest.raises(bq.ProtocolError):
        jq._jq_positions([jq.RemotePosition({'security': CODE, 'amount': 5, 'closeable_amount': 5})])


@pytest.mark.parametrize('change', [
    lambda row: [dict(row, amount=-row['amount'])], lambda row: [row, row], lambda row: [row, dict(row)]])
def test_holdings_that_are_owed_or_told_twice_are_an_error_and_nothing_is_ordered(monkeypatch, sent, change):
    def account(answer):
        return {'value': dict(answer['value'], positions=change(answer['value']['positions'][0]))}
    with trading() as strategy:
        strategy.order(CODE, 200)
        done = len(writes(sent))
        with answering(monkeypatch, {'broker.account': account, 'broker.positions': lambda rows: change(rows[0])}):
            for call in (lambda: strategy.positions, lambda: strategy.order_target(CODE, 0),
                         lambda: strategy.order_target(CODE, 500), lambda: strategy.order(CODE, -100)):
                with pytest.raises(bq.ProtocolError):
                    call()
        assert len(writes(sent)) == done


def test_one_reading_serves_a_task_for_a_moment_and_ends_with_an_order(sent, monkeypatch):
    now = [100.0]
    with trading() as strategy:
        monkeypatch.setattr(jq, 'monotonic', lambda: now[0])
        portfolio = strategy.context.portfolio
        portfolio.total_value, portfolio.cash, CODE in portfolio.positions, strategy.context.subportfolios[0].cash
        assert actions(sent) == ['broker.account']
        now[0] += 0.9
        portfolio.cash
        assert len(sent) == 1
        now[0] += 0.2
        before = portfolio.cash
        assert len(sent) == 2
        strategy.order(CODE, 100)
        assert portfolio.cash < before and CODE in portfolio.positions
        order = strategy.order(CODE, 100, resting())
        locked = portfolio.locked_cash
        strategy.cancel_order(order)
        assert portfolio.locked_cash == 0 < locked


@pytest.mark.parametrize('failure', [bq.ConnectionLost('?'), bq.QmtUnavailable('?'), bq.RequestTimeout('?')])
def test_an_account_that_cannot_be_read_is_an_error_and_no_zero(monkeypatch, failure):
    with trading(cache_seconds=60) as strategy:
        strategy.order(CODE, 100)
        held = strategy.positions
        assert held[CODE].total_amount == 100
        strategy.order(CODE, 100)
        with answering(monkeypatch, {'broker.account': failure}):
            for read in (lambda: strategy.context.portfolio.total_value, lambda: strategy.positions,
                         lambda: CODE in held,
                         lambda: held[CODE], lambda: held.get(CODE), lambda: len(held), lambda: list(held),
                         lambda: strategy.context.subportfolios[0].cash, lambda: held.items(), lambda: bool(held),
                         lambda: getattr(strategy.context.portfolio, 'cash', 0)):
                with pytest.raises(type(failure)):
                    read()
        assert held[CODE].total_amount == 200


@pytest.mark.parametrize('name, field', [('total_value', 'total_value'), ('locked_cash', 'frozen_cash'),
                                         ('positions_value', 'market_value'), ('cash', 'available_cash')])
def test_a_missing_figure_is_an_error_and_no_zero(monkeypatch, name, field):
    def without(answer):
        return {'value': {key: value for key, value in answer['value'].items() if key not in (field, 'total_asset')}}
    with trading() as strategy, answering(monkeypatch, {'broker.account': without}):
        with pytest.raises(bq.ProtocolError):
            getattr(strategy.context.portfolio, name)


def test_a_server_that_lists_no_positions_with_the_account_is_asked_for_them(monkeypatch, sent):
    def money_only(answer):
        return {key: value for key, value in answer['value'].items() if key != 'positions'}
    with trading() as strategy, answering(monkeypatch, {'broker.account': money_only}):
        strategy.order(CODE, 100)
        assert strategy.positions[CODE].total_amount == 100 and 'broker.positions' in actions(sent)
        with answering(monkeypatch, {'broker.positions': lambda answer: None}):
            strategy.order(CODE, 100)
            with pytest.raises(bq.ProtocolError):
                strategy.positions


# -- installing and taking back ------------------------------------------------------------------------------------
def test_uninstall_gives_everything_back():
    with base.serving(FakeClock(MORNING)) as server:
        strategy = Strategy(server.address)
        strategy.namespace.pop('inout_cash')
        before, own = dict(strategy.namespace), strategy.context.portfolio
        for _ in range(2):
            assert strategy.install() and strategy.install()
            assert strategy.order(CODE, 100).filled == 100 and strategy.context.portfolio is not own
            assert jq.uninstall_jq_compat(dict(strategy.namespace)) is False
            assert jq.uninstall_jq_compat(strategy.namespace) is True
            assert strategy.namespace.pop(jq._JQ_ORDERS)['counts'], 'whoever installs again goes on counting'
            assert dict(strategy.namespace) == before and strategy.context.portfolio is own
            assert strategy.context.subportfolios == [own] and jq._clients is None and jq._jq_install is None
        assert jq.uninstall_jq_compat() is False


def test_what_somebody_else_put_there_meanwhile_stays():
    with trading() as strategy:
        mine = strategy.namespace['order'] = lambda *args: None
        native = joinquant.order_value
        strategy.namespace['order_value'] = native
        strategy.install()
        assert isinstance(strategy.order, jq.JqFunction) and isinstance(strategy.order_value, jq.JqFunction)
        strategy.namespace['cancel_order'] = mine
        jq.uninstall_jq_compat()
        assert strategy.order is mine and strategy.order_value is native and strategy.cancel_order is mine


def test_another_module_of_the_strategy_can_be_installed_too():
    with trading() as strategy:
        module = joinquant.fresh_namespace('from jqdata import *\n')
        jq.install_jq_compat(module, strategy.context, host=strategy.address[0], port=strategy.address[1],
                             token=base.TOKEN, **strategy.options)
        assert module['order'](CODE, 100).filled == 100
        assert jq.uninstall_jq_compat(module) and module['order'] is joinquant.order
        assert strategy.order(CODE, 100).filled == 100
        with pytest.raises(bq.ConfigError):
            strategy.install(account_key='other')
        assert strategy.order(CODE, 100).filled == 100


@pytest.mark.parametrize('text', [
    'import jqdata\nbuy = lambda: jqdata.order', 'import kuanke.user_space_api as api\nbuy = lambda: api.order',
    'buy_ = order\nbuy = lambda: buy_', 'g.buy_ = order\nbuy = lambda: g.buy_',
    'def buy():\n    from jqdata import order\n    return order'])
def test_joinquants_functions_are_taken_over_by_whatever_name_the_strategy_has_them(text):
    with base.serving(FakeClock(MORNING)) as server:
        strategy = Strategy(server.address, source='from kuanke.user_space_api import *\n' + text)
        strategy.install()
        ours = strategy.buy()
        assert ours is strategy.order and ours(CODE, 100).filled == 100
        jq.uninstall_jq_compat()
        assert strategy.buy() is joinquant.order is strategy.order


def test_modules_of_the_strategys_own_are_taken_over_too(monkeypatch):
    own = types.ModuleType('my_library')
    exec('from kuanke.user_space_api import *\ndef sell_all():\n    return order_target\nclass Trader:\n    pass',
         vars(own))
    monkeypatch.setitem(sys.modules, 'my_library', own)
    for text in ('import my_library', 'from my_library import sell_all', 'from my_library import Trader'):
        with base.serving(FakeClock(MORNING)) as server:
            strategy = Strategy(server.address, source=SOURCE + text + '\n')
            strategy.install()
            assert own.sell_all() is strategy.order_target is not joinquant.order_target
            jq.uninstall_jq_compat()
            assert own.sell_all() is joinquant.order_target


def test_a_copy_of_ours_is_not_joinquants_own():
    with trading() as strategy:
        strategy.g.buy = strategy.order
        for copied in (copy.copy(strategy.order), copy.deepcopy(vars(strategy.g))['buy']):
            assert copied is strategy.order


def test_what_joinquant_itself_is_made_of_is_left_alone():
    with trading() as strategy:
        assert strategy.log is joinquant.log and joinquant.order is not strategy.order


@pytest.mark.parametrize('text', [
    'hidden = [order]', 'hidden = {"buy": order_value}', 'import functools\nhidden = functools.partial(order, CODE)',
    'def hidden(send=order_target):\n    pass', 'def hidden(*, send=cancel_order):\n    pass',
    'class hidden:\n    send = get_trades', 'hidden = {1: (order,)}[1]', 'g.hidden = [inout_cash]',
    'make = lambda send: lambda: send(CODE, 100)\nhidden = make(order)', 'hidden = {"buy": [(CODE, order)]}',
    'class hidden:\n    send = staticmethod(order)', 'class hidden:\n    def go(self, send=order):\n        pass',
    'class Trader:\n    def __init__(self, send):\n        self.send = send\nhidden = Trader(order)'])
def test_a_function_that_hides_where_it_cannot_be_replaced_is_refused(text, sent):
    strategy = Strategy(('127.0.0.1', 1), source=SOURCE + 'CODE = %r\n' % CODE + text)
    before = dict(strategy.namespace)
    with pytest.raises(bq.ConfigError) as caught:
        strategy.install()
    assert 'hidden' in str(caught.value) and dict(strategy.namespace) == before and jq._jq_install is None


def test_what_only_looks_like_hiding_is_not_refused():
    class Lazy(dict):
        def values(self):
            raise AssertionError
    source = SOURCE + """
import functools
EVERYTHING = globals()
one = functools.partial(max, 1)
def empty(send=None):
    def inner():
        return late
    if send is not None:
        late = send
    return inner
inner = empty()
"""
    with base.serving(FakeClock(MORNING)) as server:
        strategy = Strategy(server.address, source=source)
        strategy.namespace['lazy'] = Lazy(a=1)
        strategy.namespace['__builtins__'] = dict(vars(builtins), order=joinquant.order)
        assert strategy.install() and strategy.order(CODE, 100).filled == 100
        jq.uninstall_jq_compat()


def test_what_is_made_of_itself_or_of_much_hides_nothing():
    source = SOURCE + """
kept = [1]
g.kept = {'itself': kept}
kept.append(g.kept)
class Node:
    pass
first = last = Node()
for _ in range(5000):
    last.next = last = Node()
"""
    with base.serving(FakeClock(MORNING)) as server:
        assert Strategy(server.address, source=source).install()


def test_trades_can_be_chosen():
    with trading() as strategy:
        first, second = strategy.order(CODE, 100), strategy.order(OTHER, 100)
        for chosen in (strategy.get_trades(order_id=first.order_id), strategy.get_trades(security='000001.SZ')):
            assert [trade.security for trade in chosen.values()] == [CODE]
        assert len(strategy.get_trades()) == 2 and strategy.get_trades(second.order_id, CODE) == {}


def test_what_is_ours_is_pickled_as_joinquants_own(monkeypatch):
    """Whether or not the name that it has in its own module is ours as well."""
    def order(security, amount):
        raise AssertionError
    module = sys.modules['jqdata']
    monkeypatch.setattr(order, '__module__', 'jqdata')
    order.__qualname__ = 'order'
    monkeypatch.setattr(module, 'order', order)
    with trading(context=joinquant.Context()) as strategy:
        kept = [pickle.dumps(value, 4) for value in (strategy.order, strategy.order_value, module.order)]
        assert strategy.order is module.order is not order
        jq.uninstall_jq_compat()
        assert [pickle.loads(value) for value in kept] == [order, joinquant.order_value, order]
        monkeypatch.undo()


def test_a_strategy_without_order_status_gets_joinquants():
    with base.serving(FakeClock(MORNING)) as server:
        strategy = Strategy(server.address, source='import jqdata\n')
        strategy.install()
        assert strategy.order(CODE, 100).status is joinquant.OrderStatus.held
        assert 'OrderStatus' not in strategy.namespace and strategy.jqdata.OrderStatus is joinquant.OrderStatus


def test_another_context_of_the_class_shows_the_remote_account_too_but_not_a_backtests():
    with trading(context=joinquant.SlotsContext()) as strategy:
        other, past = joinquant.SlotsContext(), joinquant.SlotsContext('full_backtest')
        assert other.portfolio is strategy.context.portfolio and past.portfolio.total_value == 77
        other.name = 'x'
        assert other.name == 'x'


def test_the_helpers_own_functions_know_the_server_too():
    jq.configure('127.0.0.1', 'another-token')
    before = jq._clients
    with trading(account_key='default') as strategy:
        assert jq.get_account().total_value == strategy.context.portfolio.total_value
        jq.uninstall_jq_compat()
        assert jq._clients is before


def test_a_child_process_uses_no_connection_of_its_parent():
    with trading() as strategy:
        strategy.context.portfolio.total_value
        kept = jq._clients[1]._connection._kept
        jq._jq_install.trading._process = -1  # as it is in a child
        strategy.order(CODE, 100)
        assert jq._clients[1]._connection._kept[0] is not kept[0]


def test_who_kept_a_function_of_ours_orders_nothing_after_uninstall(sent):
    with trading() as strategy:
        order, portfolio = strategy.order, strategy.context.portfolio
        jq.uninstall_jq_compat()
        for call in (lambda: order(CODE, 100), lambda: portfolio.cash):
            with pytest.raises(bq.ConfigError):
                call()
        assert sent == []


# -- JoinQuant's own processes -------------------------------------------------------------------------------------
TASKS = '''
from jqdata import *
CODE = '000001.XSHE'

def initialize(context):
    g.days, context.name = 0, 'mine'

def process_initialize(context):
    from jq_helper import install_jq_compat
    g.installed = install_jq_compat(globals(), context=context, host='127.0.0.1', port=%(port)d, token=%(token)r,
                                    retry_interval=0, wait_timeout=%(wait)s, max_lag=None)

def buy(context):
    g.days += 1
    g.order = order(CODE, 300)
    g.portfolio, g.positions = context.portfolio, context.portfolio.positions
    g.position = g.positions[CODE]
    context.kept = g.positions[CODE]
    g.trades = get_trades()
    global last_order, alias
    last_order, alias = g.order, order
    return [g.days, str(g.order.status), context.portfolio.positions[CODE].total_amount]

def look(context):
    g.days += 1
    before = [type(value).__module__ for value in (g.order, g.portfolio, g.position, context.kept, last_order)]
    found = get_orders(order_id=g.order.order_id)[g.order.order_id]
    return [g.days, context.name, before, g.order.status == OrderStatus.held, found.filled, alias is order,
            g.positions[CODE].total_amount, context.kept.total_amount, g.portfolio.total_value > 0,
            last_order.filled, context.portfolio.positions[CODE].total_amount, len(g.trades)]

def more(context):
    g.days += 1
    order_target(CODE, 500)
    return [g.days, context.portfolio.positions[CODE].total_amount, len(get_orders())]

def rest(context):
    from jqdata import LimitOrderStyle
    from jq_helper import get_data_client
    g.resting = order(CODE, 100, LimitOrderStyle(round(get_data_client().get_last_price(CODE) * 0.97, 2)))
    return str(g.resting.status)

def cancel(context):
    return [str(order.status) for order in map(cancel_order, list(get_open_orders().values()))]

def wrong(context):
    try:
        order('000001.XSHE', 100, side='short')
    except NotImplementedError as error:
        return error.code

def back(context):
    from jq_helper import uninstall_jq_compat
    from tests import joinquant
    uninstall_jq_compat()
    return [order is joinquant.order, cancel_order is joinquant.cancel_order, context.portfolio.total_value]

def backtest(context):
    from tests import joinquant
    return [g.installed, order is joinquant.order, context.portfolio.total_value]
'''


class Simulation:
    """A strategy at JoinQuant: each task is run by a process of its own."""

    def __init__(self, folder, server, kind='Context', run_type='sim_trade', wait=1):
        self.folder, self.kind, self.run_type = folder, kind, run_type
        source = TASKS % {'port': server.address[1], 'token': base.TOKEN, 'wait': wait}
        (folder / joinquant.STRATEGY).write_bytes(source.encode('utf-8'))

    def run(self, task):
        code = 'import sys; from tests import joinquant; joinquant.main(*sys.argv[1:])'
        done = run([sys.executable, '-c', code, str(self.folder), task, self.kind, self.run_type], cwd=ROOT,
                   env=dict(os.environ, PYTHONIOENCODING='utf-8', PYTHONPATH=ROOT))
        assert done.returncode == 0, done.stdout
        (line,) = [line for line in done.stdout.splitlines() if line.startswith('RESULT ')]
        return json.loads(line[len('RESULT '):])


@pytest.mark.parametrize('kind', sorted(joinquant.CONTEXTS))
def test_a_strategy_over_several_processes(tmp_path, kind):
    with base.serving(FakeClock(MORNING)) as server:
        simulation = Simulation(tmp_path, server, kind)
        assert simulation.run('buy') == [1, 'held', 300]
        state = (tmp_path / 'state').read_bytes()
        assert b'jq_helper' not in state and b'bullet_qmt' not in state and base.TOKEN.encode() not in state
        assert simulation.run('look') == [2, 'mine', ['types'] * 5, True, 300, True, 300, 300, True, 300, 300, 1]
        assert simulation.run('more') == [3, 500, 2]
        assert simulation.run('rest') == 'open'
        assert simulation.run('cancel') == ['canceled'] and simulation.run('cancel') == []
        assert simulation.run('wrong') == 'NOT_SUPPORTED'
        assert simulation.run('back') == [True, True, 77.0]
        assert simulation.run('more') == [4, 500, 3]


def test_a_backtest_in_its_process_keeps_joinquants_account(tmp_path):
    with base.serving(FakeClock(MORNING)) as server:
        assert Simulation(tmp_path, server, run_type='full_backtest').run('backtest') == [False, True, 77.0]
