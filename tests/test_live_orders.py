"""Orders of a live run: what the strategy sees, what the server has, and that nothing is ever sent twice."""
import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN, server_settings
from tests.live import Between, SimClock, Stage, moment, stage

START, END = '2025-03-03 09:00', '2025-03-03 15:30'
A, B = '000001.XSHE', '600000.XSHG'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)
    monkeypatch.setattr(jq, 'LIMIT_WAIT_S', 0.2)


def answer_lost(place, *args, **kwargs):
    """The order is at the broker; the answer never arrives."""
    place(*args, **kwargs)
    raise bq.OrderStateUnknown('没有回答', idempotency_key=kwargs['idempotency_key'])


def request_lost(place, *args, **kwargs):
    """Nobody knows, but the server never saw it."""
    raise bq.OrderStateUnknown('没有回答', idempotency_key=kwargs['idempotency_key'])


def still_unknown(ask, key, timeout_s=60):
    raise bq.OrderStateUnknown('还不知道', idempotency_key=key)


def tasks(**by_time):
    """A strategy with a task for each body: at_0935='order(...)'."""
    lines = ['def initialize(context):', '    g.out = []'] + [
        '    run_daily(%s, "%s:%s")' % (name, name[3:5], name[5:]) for name in by_time]
    for name, body in by_time.items():
        lines += ['def %s(context):' % name] + ['    ' + line for line in body.strip().splitlines()]
    return '\n'.join(lines) + '\n'


def out_of(run):
    return run.session.g.out


# -- what a strategy sees ------------------------------------------------------------------------------------------
def test_a_market_order_is_final_when_it_comes_back(tmp_path):
    text = tasks(at_0935='g.o = order("%s", 550)\np, held = context.portfolio, context.portfolio.positions["%s"]\n'
                         'g.out += [held.total_amount, held.closeable_amount, p.available_cash]' % (A, A),
                 at_1000='p = context.portfolio\nassert p.net_value == p.portfolio_value == p.total_value > 0\n'
                         'assert p.subportfolios == [p] and p.unsell_positions["%s"].amount == 500' % A,
                 at_1400='g.out += [list(get_orders()) == [g.o.order_id], get_open_orders(), len(get_trades())]\n'
                         'g.out += [order("%s", -500), order_target("%s", 0)]' % (A, A))
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text))
        (row,), order = it.broker.get_orders(), run.session.g.o
        assert (order.order_id, order.security, order.amount, order.filled) == (row['order_id'], A, 500, 500)
        assert order.status == jq.OrderStatus.held and str(order.status) == 'held' and order.is_buy
        assert order.price == row['avg_price'] and order.commission == 5.1
        assert row['idempotency_key'] == 'live-%s-20250303-1' % run.state.run_id
        assert out_of(run)[:2] == [500, 0] and 0 < out_of(run)[2] == it.broker.get_account_info()['available_cash']
        assert out_of(run)[3:] == [True, {}, 1, None, None], 'what was bought today cannot be sold today'
        assert run.state.own == {row['order_id']: row['idempotency_key']} and not run.state.keys


def test_the_price_of_a_market_order_binds_on_star_alone(tmp_path):
    """A price far from the market: JoinQuant gives it no effect on other boards, and the server bounds the order."""
    star = '688981.XSHG'
    text = tasks(at_0935='g.out += [order("%s", 100, MarketOrderStyle(1)), order("%s", 200, MarketOrderStyle(1))]' % (
        A, star))
    with stage(tmp_path, START, END) as it:
        sent, remote = [], Between(it.broker)
        remote.changes['place_order'] = lambda place, code, side, amount, style, *args, **more: (
            sent.append((code, style)) or place(code, side, amount, style, *args, **more))
        run = it.run(it.strategy(text), remote=remote)
        assert sent[0] == (A, {'type': 'market'})
        assert out_of(run)[0].status == jq.OrderStatus.held and out_of(run)[0].filled == 100
        assert out_of(run)[1] is None or out_of(run)[1].filled == 0
        assert [style for code, style in sent[1:]] in ([], [{'type': 'market', 'protect_price': 1.0}])


def test_a_limit_order_rests_and_is_cancelled(tmp_path):
    text = tasks(at_0935='price = round(get_current_data()["%s"].last_price * 0.985, 2)\n'
                         'g.o = order("%s", 1000, LimitOrderStyle(price))\n'
                         'g.out += [g.o.status, g.o.limit == price, context.portfolio.locked_cash > 0]' % (A, A),
                 at_0936='g.out += [cancel_order(g.o).status, cancel_order(g.o), context.portfolio.locked_cash]')
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text))
        assert out_of(run) == [jq.OrderStatus.open, True, True, jq.OrderStatus.canceled, None, 0.0]
        assert [row['status'] for row in it.broker.get_orders()] == ['canceled'] and run.state.cancels == 1


def test_a_target_takes_the_place_of_what_is_open(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='order_target("%s", 1000, %s)' % (A, low), at_0936='order_target("%s", 300)' % A)
    with stage(tmp_path, START, END) as it:
        it.run(it.strategy(text))
        assert [(row['amount'], row['status']) for row in it.broker.get_orders()] == [
            (1000, 'canceled'), (300, 'filled')]


def test_orders_of_others_are_left_alone(tmp_path):
    text = tasks(at_0935='g.out += [len(get_orders()), order_target("%s", 200).amount]' % A)
    with stage(tmp_path, START, END) as it:
        it.clock.set(moment('2025-03-03 09:31'))
        last = bq.RemoteQmtProvider(connection=it.connection).get_last_price(A)
        style = bq.order_style(round(last * 0.93, 2), False)
        own = it.broker.place_order(A, 'BUY', 100, style)['order_id']
        run = it.run(it.strategy(text))
        assert out_of(run) == [0, 200]
        assert it.broker.get_order_status(own)['status'] in ('open', 'canceled') and run.state.cancels == 0


def test_an_order_before_the_open_waits_for_it(tmp_path):
    """A limit order; market orders are for continuous trading alone."""
    style = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 1.05, 2))' % A
    text = tasks(at_0920='g.out.append(order("%s", 100))\ng.o = order("%s", 100, %s)' % (A, A, style),
                 at_0932='g.out += [o.status for o in get_orders().values()]')
    with stage(tmp_path, START, END) as it:
        assert out_of(it.run(it.strategy(text), wait_s=30.0)) == [None, jq.OrderStatus.held]
        assert it.said('市价委托只在连续竞价时段接受')


def test_buys_are_cut_to_what_the_cash_pays_for_at_worst(tmp_path):
    text = tasks(at_0935='g.o = order_value("%s", 2000000)' % A)
    with stage(tmp_path, START, END, stub_cash=20000.0) as it:
        order = it.run(it.strategy(text)).session.g.o
        last = order.price
        assert order.filled == order.amount == int(20000 / (last * 1.02) // 100 * 100)


@pytest.mark.parametrize('call, words', [
    ('order("%s", 50)' % A, '不到最小申报数量 100 股'), ('order("%s", -100)' % A, '可卖 0 股'),
    ('order("123456.XSHG", 100)', '没有成立'), ('order("688981.XSHG", 200)', '保护价'),
    ('order("%s", 100, LimitOrderStyle(0.5))' % A, '被拒绝')])
def test_what_comes_to_nothing_is_none_and_a_line(tmp_path, call, words):
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(tasks(at_0935='g.out.append(%s)' % call)))
        assert out_of(run) == [None] and it.said(words) and not run.state.keys
        assert it.broker.get_orders() == []


# -- outcomes that are not known -----------------------------------------------------------------------------------
def test_a_lost_answer_is_found_out_and_nothing_is_sent_again(tmp_path):
    text = tasks(at_0935='g.o = order("%s", 300)' % A)
    with stage(tmp_path, START, END) as it:
        remote = Between(it.broker, place_order=answer_lost)
        run = it.run(it.strategy(text), remote=remote)
        assert run.session.g.o.filled == 300 and remote.calls.count('place_order') == 1
        assert len(it.broker.get_orders()) == 1 and not run.state.keys and len(run.state.own) == 1
        assert it.said('结果未知，正在核对') and it.said('已核对：买入')


def test_a_lost_request_is_void_and_a_late_copy_is_refused(tmp_path):
    text, sent = tasks(at_0935='g.out.append(order("%s", 300))' % A), []

    def lost(place, *args, **kwargs):
        sent.append((args, kwargs))
        request_lost(place, *args, **kwargs)
    with stage(tmp_path, START, END, state=str(tmp_path / 'journal.sqlite')) as it:
        run = it.run(it.strategy(text), remote=Between(it.broker, place_order=lost))
        assert out_of(run) == [None] and not run.state.keys and run.state.orders == 1
        with pytest.raises(bq.OrderRejected, match='作废'):
            it.broker.place_order(*sent[0][0], **dict(sent[0][1], valid_until=None))
        assert it.broker.get_orders() == []


CAUGHT = 'try:\n    order("%s", 300)\nexcept Exception as error:\n    g.out.append(type(error).__name__)' % A
BLIND = dict(at_0935=CAUGHT, at_0936='g.out += [order("%s", 300), order("%s", 100).filled]' % (A, B),
             at_0940='g.out.append(order("%s", 100).filled)' % A)


def test_an_outcome_that_cannot_even_be_asked_about_is_unknown(tmp_path):
    def refused(ask, key, timeout_s=60):
        raise bq.AuthFailed('口令不对')
    text = tasks(at_0935=CAUGHT)
    with stage(tmp_path, START, '2025-03-03 09:35:05') as it:
        remote = Between(it.broker, place_order=answer_lost, wait_order=refused)
        with pytest.raises(bq.AuthFailed):
            it.run(it.strategy(text), remote=remote)
        remote.changes.clear()
        run = it.run(it.strategy(text), '2025-03-03 15:30', remote=remote)
        assert out_of(run) == ['OrderStateUnknown'] and not run.state.keys and len(it.broker.get_orders()) == 1


def test_while_an_outcome_is_unknown_nothing_is_ordered_blindly(tmp_path):
    with stage(tmp_path, START, END) as it:
        remote = Between(it.broker, place_order=answer_lost, wait_order=still_unknown)
        it.clock.at(moment('2025-03-03 09:35:30'), lambda: remote.changes.pop('place_order'))
        it.clock.at(moment('2025-03-03 09:38'), lambda: remote.changes.pop('wait_order'))
        run = it.run(it.strategy(tasks(**BLIND)), remote=remote)
        assert out_of(run) == ['OrderStateUnknown', None, 100, 100]
        assert it.said('还有一笔委托结果未知') and it.said('已核对：买入 000001.XSHE 300 股在柜台')
        assert sorted(row['amount'] for row in it.broker.get_orders()) == [100, 100, 300] and not run.state.keys


def test_an_unknown_outcome_ends_a_strategy_that_does_not_catch_it(tmp_path):
    with stage(tmp_path, START, END) as it:
        remote = Between(it.broker, place_order=answer_lost, wait_order=still_unknown)
        with pytest.raises(jq.StrategyError, match='OrderStateUnknown'):
            it.run(it.strategy(tasks(at_0935='order("%s", 300)' % A)), remote=remote)
        assert it.said('结果未知的委托 key=live-') and list(jq.LiveState.read(it.directory).keys)


def test_a_new_process_asks_about_open_keys_before_its_first_task(tmp_path):
    text = tasks(at_0935='order("%s", 300)' % A, at_0940='g.out.append(order("%s", 100).filled)' % A)
    with stage(tmp_path, START, END) as it:
        path = it.strategy(text)
        with pytest.raises(jq.StrategyError):
            it.run(path, remote=Between(it.broker, place_order=answer_lost, wait_order=still_unknown))
        remote = Between(it.broker)
        run = it.run(path, remote=remote)
        assert remote.calls.index('wait_order') < remote.calls.index('place_order')
        assert out_of(run) == [100] and sorted(row['amount'] for row in it.broker.get_orders()) == [100, 300]
        assert len(run.state.own) == 2


def test_open_keys_are_settled_before_process_initialize(tmp_path):
    text = tasks(at_0935='order("%s", 300)' % A) + (
        'def process_initialize(context):\n    if context.current_dt.minute == 35:\n'
        '        g.out.append(order("%s", 200).filled)\n' % A)
    with stage(tmp_path, START, END) as it:
        path = it.strategy(text)
        with pytest.raises(jq.StrategyError):
            it.run(path, remote=Between(it.broker, place_order=answer_lost, wait_order=still_unknown))
        assert out_of(it.run(path)) == [200]


def test_a_key_of_an_earlier_day_is_given_up_with_a_line(tmp_path):
    text = tasks(at_0935='try:\n    g.out.append(order("%s", 300))\nexcept Exception:\n    pass' % A)
    with stage(tmp_path, START, '2025-03-04 15:30') as it:
        remote = Between(it.broker, place_order=request_lost, wait_order=still_unknown)
        it.clock.at(moment('2025-03-03 12:00'), lambda: remote.changes.pop('place_order'))
        run = it.run(it.strategy(text), remote=remote)
        assert it.said('到收盘结果仍然未知') and not run.state.keys and out_of(run)[0].filled == 300


def test_a_key_of_the_evening_may_be_one_of_the_next_trade_day(tmp_path):
    text = tasks(at_2000=CAUGHT)
    with stage(tmp_path, '2025-03-07 19:00', '2025-03-10 15:30') as it:
        path, remote = it.strategy(text), Between(it.broker, place_order=request_lost, wait_order=still_unknown)
        it.clock.at(moment('2025-03-07 21:00'), lambda: remote.changes.pop('place_order'))
        assert len(it.run(path, remote=remote).state.keys) == 1, 'over the weekend and on Monday'
        assert not it.run(path, '2025-03-11 08:00', remote=remote).state.keys and it.said('到收盘结果仍然未知')


def test_what_was_certainly_not_sent_leaves_no_key(tmp_path):
    def not_sent(place, *args, **kwargs):
        raise bq.ConnectionLost('没有发出', broker_called=False)
    with stage(tmp_path, START, END) as it:
        with pytest.raises(jq.StrategyError, match='没有发出'):
            it.run(it.strategy(tasks(at_0935='order("%s", 300)' % A)), remote=Between(it.broker, place_order=not_sent))
        assert not jq.LiveState.read(it.directory).keys


def test_the_key_is_on_disk_before_the_order_leaves(tmp_path):
    found = []
    with stage(tmp_path, START, END) as it:
        def look(place, *args, **kwargs):
            state = jq.LiveState.read(it.directory)
            found.append((kwargs['idempotency_key'] in state.keys, state.orders, state.running))
            return place(*args, **kwargs)
        it.run(it.strategy(tasks(at_0935='order("%s", 300)' % A)), remote=Between(it.broker, place_order=look))
        assert found == [(True, 1, (575, 2, 0))]


def test_an_undecided_cancel_keeps_the_security_from_new_orders(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='g.o = order("%s", 1000, %s)' % (A, low),
                 at_0936='g.out += [cancel_order(g.o).status, order("%s", 100)]' % A,
                 at_0940='g.out += [order("%s", 100).filled]' % A)

    def undecided(cancel, order_id, **kwargs):
        it.clock.at(moment('2025-03-03 09:38'), lambda: cancel(order_id, **kwargs))
        raise bq.OrderStateUnknown('柜台还没有结果', **{'idempotency_key': kwargs['idempotency_key']})
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), remote=Between(it.broker, cancel_order=undecided))
        assert out_of(run) == [jq.OrderStatus.open, None, 100] and it.said('撤单还没有结果')


# -- what is at the broker never looks failed ----------------------------------------------------------------------
def blind_after(it, write, seconds=3, told=None):
    """RemoteQmtBroker after whose first call of `write` the account cannot be read for so long. told: of its answer."""
    sent_at = []

    def shaky(read):
        if sent_at and it.clock.monotonic() - sent_at[0] < seconds:
            raise bq.QmtUnavailable('QMT 没有登录')
        return read()

    def send(call, *args, **kwargs):
        sent_at.append(it.clock.monotonic())
        answer = call(*args, **kwargs)
        return answer if told is None else {name: answer[name] for name in told}
    return Between(it.broker, get_account_info=shaky, get_orders=shaky, **{write: send})


def test_an_order_after_which_the_account_cannot_be_read_is_the_order(tmp_path):
    text = tasks(at_0935='g.out += [order("%s", 300).filled]\ntry:\n    context.portfolio.available_cash\n'
                         'except Exception as error:\n    g.out.append(error.code)' % A,
                 at_0936='g.out += [order("%s", 100).filled, context.portfolio.positions["%s"].total_amount]' % (A, A))
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), remote=blind_after(it, 'place_order', 20), patience_s=5.0)
        assert out_of(run) == [300, 'QMT_UNAVAILABLE', 100, 400], 'old figures are never shown as those of now'
        assert it.said('账户暂时读不到') and len(it.broker.get_orders()) == 2


def test_a_target_after_an_unreadable_account_does_not_double(tmp_path):
    text = tasks(at_0935='order_target("%s", 300)\norder_target("%s", 300)' % (A, A))
    with stage(tmp_path, START, END) as it:
        it.run(it.strategy(text), remote=blind_after(it, 'place_order'), patience_s=2.0)
        assert [row['amount'] for row in it.broker.get_orders()] == [300]


def test_a_sale_after_which_the_account_cannot_be_read_is_the_order(tmp_path):
    text = tasks(at_0935='g.out += [order("%s", -300).avg_cost]' % A)
    with stage(tmp_path, '2025-03-03 13:00', '2025-03-04 15:30') as it:
        it.clock.set(moment('2025-03-03 13:01'))
        it.broker.buy(A, 300, market=True, wait_timeout=5)
        cost = it.broker.get_positions()[0]['avg_cost']
        assert out_of(it.run(it.strategy(text), remote=blind_after(it, 'place_order'), patience_s=2.0)) == [cost]


def test_a_cancel_after_which_the_account_cannot_be_read_is_no_error(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='g.o = order("%s", 300, %s)\ng.out += [cancel_order(g.o) is g.o]' % (A, low))
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), remote=blind_after(it, 'cancel_order', 60), patience_s=2.0)
        assert out_of(run) == [True] and [row['status'] for row in it.broker.get_orders()] == ['canceled']


@pytest.mark.parametrize('left', [('order_id', 'status'), ('order_id',)])
def test_an_answer_that_names_only_the_order_is_the_order(tmp_path, left):
    def sparse(place, *args, **kwargs):
        answer = place(*args, **kwargs)
        return dict({name: answer[name] for name in left}, price='?' if len(left) == 1 else 0.0)
    with stage(tmp_path, START, END) as it:
        text, remote = tasks(at_0935='g.o = order("%s", 300)' % A), Between(it.broker, place_order=sparse)
        run = it.run(it.strategy(text), remote=remote)
        order = run.session.g.o
        assert (order.security, order.amount, order.is_buy) == (A, 300, True) and len(it.broker.get_orders()) == 1
        assert order.status == jq.OrderStatus.held and order.filled == 300 and order.price > 0
        assert run.state.own == {order.order_id: 'live-%s-20250303-1' % run.state.run_id}
        assert bool(it.said('其余回答看不懂')) == (len(left) == 1)


@pytest.mark.parametrize('odd', [{'side': 'buy'}, {'side': None, 'order_type': 99}, {'side': 'SELL', 'is_buy': False}])
def test_which_side_was_ordered_is_known_whatever_the_answer_says(tmp_path, odd):
    def oddly(place, *args, **kwargs):
        return dict(dict(place(*args, **kwargs), is_buy=None), **odd)
    with stage(tmp_path, START, END) as it:
        text = tasks(at_0935='g.o = order("%s", 300)' % A)
        run = it.run(it.strategy(text), remote=Between(it.broker, place_order=oddly))
        assert run.session.g.o.is_buy and run.session.g.o.filled == 300


def test_an_answer_that_says_filled_is_filled(tmp_path):
    text = tasks(at_0935='g.o = order("%s", 300)' % A)
    with stage(tmp_path, START, END) as it:
        remote = blind_after(it, 'place_order', told=('order_id', 'status'))
        order = it.run(it.strategy(text), remote=remote, patience_s=0.0).session.g.o
        assert (order.status, order.filled) == (jq.OrderStatus.held, 300)


def test_a_disk_that_is_full_after_an_order_does_not_make_it_look_failed(tmp_path, monkeypatch):
    def full(state, key, order_id=None):
        del state.keys[key]
        raise bq.ConfigError('状态写不进')
    with stage(tmp_path, START, END) as it:
        monkeypatch.setattr(jq.LiveState, 'close_key', full)
        run = it.run(it.strategy(tasks(at_0935='g.o = order("%s", 300)' % A)))
        assert run.session.g.o.filled == 300 and it.said('没有记下')


def test_a_console_that_breaks_does_not_make_an_order_look_failed(tmp_path):
    text = tasks(at_0935='g.o = order("%s", 300)' % A, at_0936='log.info("again")')

    class Console(list):
        def append(self, line):
            if it.clock.now() == moment('2025-03-03 09:35'):
                raise BrokenPipeError(32, 'Broken pipe')
            super().append(line)
    with stage(tmp_path, START, END) as it:
        it.lines = Console()
        run = it.run(it.strategy(text))
        assert run.session.g.o.filled == 300 and it.said('（有 1 行没有写出来）')


def test_an_order_that_the_list_does_not_show_yet_is_there(tmp_path):
    """A second target cancels it first; without that the account would have both."""
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.93, 2))' % A
    text = tasks(at_0935='order_target("%s", 300, %s)\ng.out += [len(get_open_orders()), len(get_orders())]\n'
                         'order_target("%s", 500, %s)' % (A, low, A, low),
                 at_0940='g.out += [order("%s", 100), len(get_open_orders())]' % B)
    with stage(tmp_path, START, END) as it:
        late = Between(it.broker, get_orders=lambda read: [])
        it.clock.at(moment('2025-03-03 09:36'), late.changes.clear)
        run = it.run(it.strategy(text), remote=late, limits=limits(holdings=1))
        assert [(row['amount'], row['status']) for row in it.broker.get_orders()] == [(300, 'canceled'), (500, 'open')]
        assert out_of(run) == [1, 1, None, 1] and len(it.said('不在服务端的委托列表里')) == 1


def test_an_order_of_an_earlier_process_that_the_list_lacks_is_told_and_there(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='order("%s", 100)\norder("%s", 300, %s)' % (B, A, low),
                 at_1000='g.out += [repr(item) for item in get_open_orders().values()]\n'
                         'g.out.append(order_target("%s", 500))' % A)
    with stage(tmp_path, START, '2025-03-03 09:50') as it:
        run = it.run(it.strategy(text))
        order_id, = run.state.unfinished
        it.run(it.strategy(text), '2025-03-03 09:55')
        assert not it.said('不在服务端的委托列表里')
        forgetful = Between(it.broker, get_orders=lambda read: [])
        forgetful.changes['cancel_order'] = refusing(bq.OrderNotFound('没有'))
        run = it.run(it.strategy(text), '2025-03-03 10:10', remote=forgetful)
        told, = [line for line in it.said('不在服务端的委托列表里') if order_id in line]
        assert '买入 %s 300 股 限价' % A in told and it.lines.index(told) < it.lines.index(it.said('已就绪')[2])
        shown, none = out_of(run)
        assert order_id in shown and 'amount=300' in shown and none is None, 'bought beside it nothing is'
        assert len(it.broker.get_orders()) == 2
        assert it.run(it.strategy(text), '2025-03-04 09:00', remote=forgetful).state.unfinished == {}
        assert len(it.said('不在服务端的委托列表里')) == 2, 'of the day that it is of alone'


def refusing(error):
    def call(method, *args, **kwargs):
        raise error
    return call


def test_a_machine_that_sleeps_in_a_task_orders_nothing_on_another_day(tmp_path):
    text = tasks(at_0935='g.out += [order("%s", 100)]' % A)
    with stage(tmp_path, START, '2025-03-04 09:30') as it:
        def sleepy(read, security, *args, **kwargs):
            if it.clock.now() == moment('2025-03-03 09:35'):
                it.clock.step(23 * 3600)
            return read(security, *args, **kwargs)
        provider = Between(bq.RemoteQmtProvider(connection=it.connection), get_security_info=sleepy)
        run = it.run(it.strategy(text), provider=provider)
        assert out_of(run) == [None] and it.said('任务是 2025-03-03 的，现在是 2025-03-04') and it.broker.get_orders() == []


def test_an_accepted_key_without_an_order_id_stays_open(tmp_path):
    text = tasks(at_0935=CAUGHT, at_0940='g.out.append(order("%s", 300))' % A)
    with stage(tmp_path, START, END) as it:
        remote = Between(it.broker, place_order=answer_lost, wait_order=lambda ask, key, limit_s: {'status': 'open'})
        run = it.run(it.strategy(text), remote=remote)
        assert out_of(run) == ['OrderStateUnknown', None] and len(run.state.keys) == 1


# -- batches -------------------------------------------------------------------------------------------------------
BATCH = """price = round(get_current_data()['%s'].last_price * 0.985, 2)
g.out += batch_submit_orders([dict(security='%s', amount=100, style=LimitOrderStyle(price)),
                              dict(security='%%s', amount=100), dict(security='%s', amount=200)])
g.open = len(get_open_orders())""" % (A, A, B)


@pytest.mark.parametrize('second, options, number', [
    ('000300.XSHG', {}, 2), (B, {'limits': jq.RiskLimits(None, 2, None, None)}, 3)])
def test_of_a_batch_with_an_order_that_may_not_go_nothing_is_sent(tmp_path, second, options, number):
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(tasks(at_0935=BATCH % second)), **options)
        assert out_of(run) == [None] * 3 and it.broker.get_orders() == []
        assert it.said('批量委托的第 %d 笔没有成立' % number)


def test_a_batch_is_sent_in_its_order(tmp_path):
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(tasks(at_0935=BATCH % B)))
        assert [placed.amount for placed in out_of(run)] == [100, 100, 200] and run.session.g.open == 1


def test_a_batch_of_a_dry_run_is_shown_whole(tmp_path):
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(tasks(at_0935=BATCH % B)), dry_run=True)
        assert out_of(run) == [None] * 3 and it.broker.get_orders() == [] and len(it.said('演练，没有发出')) == 3


def test_a_batch_whose_order_the_broker_refuses_ends_there(tmp_path):
    """The ones before it are cancelled where they are open, the ones after it never sent."""
    def refuse(place, code, *args, **kwargs):
        if code == B:
            raise bq.OrderRejected('柜台拒绝')
        return place(code, *args, **kwargs)
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(tasks(at_0935=BATCH % B)), remote=Between(it.broker, place_order=refuse))
        first, second, third = out_of(run)
        assert (str(first.status), second, third, run.session.g.open) == ('canceled', None, None, 0)
        assert [row['status'] for row in it.broker.get_orders()] == ['canceled']


# -- what else an account holds ------------------------------------------------------------------------------------
def holding(code, amount=100, **more):
    return dict({'security': code, 'amount': amount, 'closeable_amount': amount, 'avg_cost': 10.0, 'last_price': 11.0,
                 'market_value': 11.0 * amount}, **more)


def with_rows(it, *rows, orders=(), **changes):
    """RemoteQmtBroker whose account has these rows of positions and orders beside its own."""
    return Between(it.broker, get_orders=lambda read: read() + list(orders),
                   get_account_info=lambda read: dict(read(), positions=read()['positions'] + list(rows)), **changes)


ODD = ['204001.XSHG', 'HK00700', '00700.HK', '港股 7', '900901.XSHG']


def test_codes_of_unfamiliar_kinds_are_shown_and_never_quoted_or_traded(tmp_path):
    text = tasks(at_0935='p = context.portfolio\ng.out += [sorted(p.positions), p.positions_value]\n'
                         'g.out += [order_target(code, 0) for code in list(p.positions)]\n'
                         'g.out += [order("%s", 100).filled]' % A)
    with stage(tmp_path, START, END) as it:
        provider, asked = Between(bq.RemoteQmtProvider(connection=it.connection)), []
        provider.changes['get_live_current'] = lambda read, code: asked.append(code) or read(code)
        provider.changes['get_live_currents'] = lambda read, codes: asked.extend(codes) or read(codes)
        foreign = [dict(order_id=str(number), security=code, status='open', order_type=99)
                   for number, code in enumerate(ODD)]
        run = it.run(it.strategy(text), provider=provider, limits=limits(holdings=6),
                     remote=with_rows(it, *map(holding, ODD), orders=foreign))
        assert out_of(run) == [sorted(ODD), 5500.0] + [None] * 5 + [100] and set(asked) <= {A}
        assert all(it.said(code) for code in ODD), 'in the overview'


def test_rows_of_one_security_are_one_holding(tmp_path):
    text = tasks(at_0935='p = context.portfolio.positions["%s"]\n'
                         'g.out += [p.total_amount, p.closeable_amount, p.avg_cost]\n'
                         'g.out.append(len(context.portfolio.positions))' % A)
    with stage(tmp_path, START, END) as it:
        rows = holding(A, 300, avg_cost=12.0), holding('000001.SZ', 100, avg_cost=8.0, closeable_amount=50)
        assert out_of(it.run(it.strategy(text), remote=with_rows(it, *rows))) == [400, 350, 11.0, 1]


@pytest.mark.parametrize('rows, words', [((holding(A), holding(A)), '相同的两行'), ((holding(A, -100),), '负数')])
def test_positions_that_cannot_be_true_are_an_error(tmp_path, rows, words):
    with stage(tmp_path, START, END) as it:
        with pytest.raises(bq.ProtocolError, match=words):
            it.run(it.strategy(tasks(at_0935='pass')), remote=with_rows(it, *rows))


def changed_order(it, **change):
    return Between(it.broker, get_orders=lambda read: [dict(row, **change) for row in read()])


def test_a_status_that_nobody_knows_is_not_final(tmp_path):
    text = tasks(at_0935='g.o = order("%s", 300)' % A,
                 at_0936='g.out += [o.status for o in get_orders().values()] + [len(get_open_orders())]')
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), remote=changed_order(it, status='strange'))
        assert out_of(run) == [jq.OrderStatus.filled, 1], 'some of it has filled, and it may still change'
        assert len(it.said("的状态不认识：'strange'")) == 1, 'said once'


def test_a_side_that_is_not_told_is_an_error_of_that_row(tmp_path):
    text = tasks(at_0935='g.out.append(order("%s", 300).is_buy)' % A,
                 at_0936='try:\n    get_orders()\nexcept Exception as error:\n    g.out.append(error.message)')
    with stage(tmp_path, START, END) as it:
        path, remote = it.strategy(text), changed_order(it, side='?', is_buy=None, order_type=99)
        it.run(path, '2025-03-03 09:35:30', remote=remote)
        run = it.run(path, '2025-03-03 15:30', remote=remote)
        assert out_of(run)[0] is True and '没有说明买卖方向' in out_of(run)[1]


def test_a_cancel_of_what_the_server_does_not_find_is_no_error(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='g.o = order("%s", 1000, %s)\n'
                         'g.out += [cancel_order(g.o).status, order("%s", 100)]' % (A, low, A))

    def lost(cancel, order_id, **kwargs):
        raise bq.OrderNotFound('没有委托')
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), remote=Between(it.broker, cancel_order=lost))
        assert out_of(run) == [jq.OrderStatus.open, None] and it.said('没有撤成：没有委托')


def test_an_undecided_cancel_is_remembered_by_the_next_process(tmp_path):
    """Also while the list does not show the order."""
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='g.o = order("%s", 1000, %s)\ng.out += [cancel_order(g.o).status]' % (A, low),
                 at_0940='g.out += [order("%s", 100)]' % A, at_1000='g.out += [order("%s", 100).filled]' % A)

    def undecided(cancel, order_id, **kwargs):
        it.clock.at(moment('2025-03-03 09:50'), lambda: cancel(order_id, **kwargs))
        raise bq.OrderStateUnknown('柜台还没有结果', idempotency_key=kwargs['idempotency_key'])
    with stage(tmp_path, START, '2025-03-03 09:38') as it:
        path, empty = it.strategy(text), Between(it.broker, get_orders=lambda read: [])
        it.run(path, remote=Between(it.broker, cancel_order=undecided))
        it.clock.at(moment('2025-03-03 09:41'), empty.changes.clear)
        run = it.run(path, '2025-03-03 15:30', remote=empty)
        assert out_of(run) == [jq.OrderStatus.open, None, 100] and it.said('有要撤而还没有撤掉的委托')


# -- limits --------------------------------------------------------------------------------------------------------
def limits(**given):
    return jq.RiskLimits(**dict(dict(order_value=None, orders=None, cancels=None, holdings=None), **given))


def test_an_order_larger_than_allowed_is_not_sent(tmp_path):
    text = tasks(at_0935='g.out += [order("%s", 1000), order("%s", 500).filled, '
                         'order("%s", 1000, LimitOrderStyle(19.0))]' % (A, A, A))
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), limits=limits(order_value=12000.0))
        assert out_of(run) == [None, 500, None] and len(it.said('超过每笔上限 12000.00')) == 2
        assert len(it.broker.get_orders()) == 1 and run.state.orders == 1


def test_a_value_that_cannot_be_told_does_not_pass(tmp_path):
    class Stale:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def get_live_current(self, security):
            return dict(self.real.get_live_current(security), stale=True)
    text = tasks(at_0935='g.out += [order("%s", 100)]\nprice = get_current_data()["%s"].last_price\n'
                         'g.out += [order("%s", 100, LimitOrderStyle(round(price * 0.99, 2))).amount]' % (A, A, A))
    with stage(tmp_path, START, END) as it:
        provider = Stale(bq.RemoteQmtProvider(connection=it.connection))
        run = it.run(it.strategy(text), limits=limits(order_value=1e6), provider=provider)
        assert out_of(run) == [None, 100] and it.said('算不出来')


@pytest.mark.parametrize('price', [None, 0.0, 'x', float('nan')])
def test_an_order_without_a_price_has_no_value_that_passes(tmp_path, price):
    text = tasks(at_0935='g.out += [order("%s", 100)]' % A)
    with stage(tmp_path, START, END) as it:
        provider = Between(bq.RemoteQmtProvider(connection=it.connection), get_live_current=lambda read, code: dict(
            read(code), last_price=price))
        remote = Between(it.broker)
        run = it.run(it.strategy(text), limits=limits(order_value=1e9), provider=provider, remote=remote)
        assert out_of(run) == [None] and it.said('没有成立') and 'place_order' not in remote.calls


@pytest.mark.parametrize('unread', ['get_account_info', 'get_orders'])
def test_holdings_that_cannot_be_counted_do_not_pass(tmp_path, unread):
    """Nor are they none: the strategy hears of it."""
    text = tasks(at_0935='order("%s", 100)\n%s' % (A, CAUGHT.replace(A, B)))
    with stage(tmp_path, START, END) as it:
        def read(ask):
            if 'place_order' in remote.calls:
                raise bq.QmtUnavailable('QMT 没有登录')
            return ask()
        remote = Between(it.broker, **{unread: read})
        run = it.run(it.strategy(text), '2025-03-03 09:36', limits=limits(holdings=5), remote=remote, patience_s=0.0)
        assert out_of(run) == ['QmtUnavailable'] and remote.calls.count('place_order') == 1


def test_orders_and_cancels_of_a_day_are_counted_over_restarts(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='g.o = order("%s", 100, %s)\ng.out.append(cancel_order(g.o).status)' % (A, low),
                 at_1000='g.o = order("%s", 100, %s)\ng.out.append(cancel_order(g.o))' % (A, low),
                 at_1001='g.out.append(order("%s", 100))' % B)
    with stage(tmp_path, START, '2025-03-03 09:50') as it:
        path, allowed = it.strategy(text), limits(orders=2, cancels=1)
        it.run(path, limits=allowed)
        run = it.run(path, '2025-03-04 09:36', limits=allowed)
        assert out_of(run) == [jq.OrderStatus.canceled, None, None, jq.OrderStatus.canceled]
        assert it.said('今天已撤 1 次，上限 1') and it.said('今天已下 2 笔委托，上限 2')
        assert (run.state.orders, run.state.cancels) == (1, 1), 'a new day counts anew'


def test_what_may_not_be_cancelled_is_not_ordered_beside(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='order("%s", 500, %s)\norder_target("%s", 300, %s)' % (A, low, A, low),
                 at_0936='g.out.append(order_target("%s", 200))' % A)
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), limits=limits(cancels=1))
        assert out_of(run) == [None] and it.said('有要撤而还没有撤掉的委托')
        assert [row['amount'] for row in it.broker.get_orders()] == [500, 300]


def test_the_number_of_holdings_is_limited(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    text = tasks(at_0935='g.out += [order("%s", 100, %s).status, order("%s", 100)]\n'
                         'g.out += [order("%s", 100).filled]' % (A, low, B, A))
    with stage(tmp_path, START, END) as it:
        run = it.run(it.strategy(text), limits=limits(holdings=1))
        assert out_of(run) == [jq.OrderStatus.open, None, 100] and it.said('已有 1 只持仓（含在途买入），上限 1')


def test_what_was_bought_today_counts_while_the_positions_do_not_show_it(tmp_path):
    text = tasks(at_0935='g.out += [order("%s", 100).filled, order("%s", 100)]' % (A, B))
    with stage(tmp_path, START, END) as it:
        remote = Between(it.broker, get_account_info=lambda read: dict(read(), positions=[]))
        assert out_of(it.run(it.strategy(text), remote=remote, limits=limits(holdings=1))) == [100, None]


def test_a_dry_run_sends_nothing(tmp_path):
    text = tasks(at_0935='g.out += [order("%s", 300), order_value("%s", 5000), order("%s", -100)]' % (A, B, A))
    with stage(tmp_path, START, END) as it:
        remote = Between(it.broker)
        run = it.run(it.strategy(text), remote=remote, dry_run=True)
        assert out_of(run) == [None, None, None] and len(it.said('演练，没有发出：买入')) == 2
        assert not {'place_order', 'cancel_order'} & set(remote.calls) and it.broker.get_orders() == []


# -- reading ---------------------------------------------------------------------------------------------------------
def run_unreadable(it, text, until):
    """The run of a day on which the account cannot be read from 09:34 until then."""
    def fail(read):
        raise bq.QmtUnavailable('QMT 没有登录')
    remote = Between(it.broker)
    it.clock.at(moment('2025-03-03 09:34'), lambda: remote.changes.update(get_account_info=fail))
    it.clock.at(moment('2025-03-03 ' + until), lambda: remote.changes.clear())
    return it.run(it.strategy(text), remote=remote, patience_s=10.0)


def test_an_account_that_cannot_be_read_is_never_empty(tmp_path):
    with stage(tmp_path, START, END) as it:
        run = run_unreadable(it, tasks(at_0935='g.out.append(context.portfolio.total_value)'), '09:37')
        assert out_of(run) == [1000000.0] and it.said('账户读不到，任务等着') and it.said('的 at_0935 晚了')


def test_a_task_that_waited_too_long_for_the_account_is_skipped(tmp_path):
    with stage(tmp_path, START, END) as it:
        run = run_unreadable(it, tasks(at_0935='g.out.append(1)', at_1000='g.out.append(2)'), '09:50')
        assert out_of(run) == [2] and it.said('跳过 09:35 的 at_0935')


@pytest.mark.parametrize('answer', [
    None, {}, {'available_cash': 1.0}, {'available_cash': 1.0, 'total_value': 1.0, 'positions': 'none'}])
def test_an_answer_that_is_no_account_is_an_error(tmp_path, answer):
    with stage(tmp_path, START, END) as it:
        with pytest.raises(bq.ProtocolError):
            it.run(it.strategy(tasks(at_0935='pass')), remote=Between(it.broker, get_account_info=lambda read: answer))


# -- the server goes and comes back --------------------------------------------------------------------------------
def test_a_server_that_restarts_is_found_again(tmp_path):
    """The paper exchange forgets its orders with it; the journal stays, and with it what was placed under which key."""
    text = tasks(at_0935='g.out.append(order("%s", 300).filled)' % A,
                 at_1005='g.out.append(order("%s", 200).filled)' % A)
    settings = server_settings(stub_clock='market', state=str(tmp_path / 'journal.sqlite'))
    clock, servers = SimClock(moment(START), moment(END)), []

    def serve(port):
        servers.append(bq.serve(settings.replace(port=port), clock))
        clock.hooks[:] = [servers[-1].service.backend.exchange.match_now]

    def restart():
        servers[-1].close()
        serve(servers[-1].address[1])
    serve(0)
    connection = bq.RemoteQmtConnection('127.0.0.1', servers[0].address[1], TOKEN, backoff_s=(0.05, 0.3)).start()
    try:
        it = Stage(servers[0], connection, clock, tmp_path)
        clock.at(moment('2025-03-03 10:00'), restart)
        run = it.run(it.strategy(text))
        assert out_of(run) == [300, 200] and len(servers) == 2
        assert len(run.state.own) == 2 and not run.state.keys
    finally:
        connection.close()
        servers[-1].close()


def test_a_stop_does_not_wait_for_a_line_that_is_down(tmp_path):
    low = 'LimitOrderStyle(round(get_current_data()["%s"].last_price * 0.985, 2))' % A
    with stage(tmp_path, START, '2025-03-03 09:50') as it:
        remote = Between(it.broker)
        run = it.make(it.strategy(tasks(at_0935='order("%s", 300, %s)' % (A, low))), remote=remote)
        run._is_linked = lambda: it.clock.now() < moment('2025-03-03 09:50')
        it.clock.at(moment('2025-03-03 09:49'), remote.calls.clear)
        run.run()
        order_id, = run.state.unfinished
        assert it.said('上次看到时没有完成的委托 %s：BUY %s 300 股' % (order_id, A)) and 'get_orders' not in remote.calls


def test_a_lost_line_and_its_return_are_told_once(tmp_path):
    with stage(tmp_path, START, '2025-03-03 16:00') as it:
        run = it.make(it.strategy(tasks(at_0935='pass')))
        lost, back = moment('2025-03-03 10:00'), moment('2025-03-03 10:01')
        for at in (lost, back):
            it.clock.at(at, lambda: None)
        run._is_linked = lambda: not lost <= it.clock.now() < back
        run.run()
        assert [line.split(' ', 1)[1] for line in it.said('与服务端的连接')] == [
            '10:00:00 与服务端的连接断了，正在自动重连', '10:01:00 与服务端的连接恢复了，断了约 60 秒']


def test_on_a_day_without_trading_an_order_is_the_broker_s_to_refuse(tmp_path):
    saturday = '2025-03-01'
    text = ('def initialize(context):\n'
            '    g.out = [order("%s", 100), order("%s", 100, LimitOrderStyle(10.0))]\n' % (A, A))
    with stage(tmp_path, saturday + ' 10:00', saturday + ' 10:05') as it:
        remote = Between(it.broker)
        run = it.run(it.strategy(text), remote=remote)
        assert out_of(run) == [None, None] and it.said('被拒绝') and not it.said('策略出错')
        assert remote.calls.count('place_order') == 2 and it.broker.get_orders() == []
