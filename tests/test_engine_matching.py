"""Orders in simulated hours, each on a market of a few bars whose outcome can be told by hand."""
import math
import re
from datetime import datetime

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import A, B, ETF, GOLD, STAR, MadeMarket, day_row, days_from, open_run, run

DAYS = days_from('2024-03-04', 5)
PLAIN = '''
    from jqdata import *

    def initialize(context):
        set_option('use_real_price', True)
        set_slippage(FixedSlippage(0.02))
        set_order_cost(OrderCost(0, 0.001, 0.0003, 0.0003, 0, 5), 'stock')
        g.seen = []
        begin(context)
'''


@pytest.fixture
def market(tmp_path):
    """Five quiet days at 10.00; A and B have minutes on the first three."""
    made = MadeMarket(tmp_path)
    for code in (A, B, STAR):
        made.daily(code, [day_row(day, 10.0, 10.0, 10.3, 9.7) for day in DAYS])
    for code in (ETF, GOLD):
        made.daily(code, [day_row(day, 4.0, 4.0, 4.1, 3.9) for day in DAYS])
    rows = []
    for day in DAYS[:3]:
        rows += made.minutes(A, day, {
            '09:31': (10.0, 10.0, 10.0, 10.0, 5000), '10:00': (10.0, 9.9, 10.0, 9.8, 300),
            '10:01': (9.9, 9.9, 10.0, 9.7, 1000), '14:00': (9.9, 10.2, 10.3, 9.9, 2000),
            '14:59': (10.2, 10, 10.2, 10, 0)})
    made.write_minutes(A, rows)
    return made


def play(market, tmp_path, body, days=2, **options):
    result, lines = run(tmp_path, PLAIN.replace('begin(context)', 'begin(context)\n') + body, market.source, DAYS[0],
                        DAYS[days - 1], **options)
    return result, lines


def only(rows):
    assert len(rows) == 1, rows
    return rows[0]


def test_a_market_order_is_final_when_order_returns(market, tmp_path):
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(buy, '9:30')

    def buy(context):
        if g.seen:
            return
        placed = order('%s', 1000)
        g.seen.append(placed)
        assert placed.status == OrderStatus.held and str(placed.status) == 'held' and placed.status.value == 4
        assert (placed.amount, placed.filled, placed.price) == (1000, 1000, 10.01)
        assert placed.is_buy and placed.action == 'open'
        assert list(get_orders()) == [placed.order_id] and not get_open_orders()
        assert list(get_orders(status=OrderStatus.held)) == [placed.order_id]
        assert not get_orders(status=OrderStatus.open)
        assert [trade.amount for trade in get_trades().values()] == [1000]
        position = context.portfolio.positions['%s']
        assert (position.total_amount, position.closeable_amount, position.today_amount) == (1000, 0, 1000)
        assert position.avg_cost == (1000 * 10.01 + 5) / 1000 and position.init_time == context.current_dt
        assert order('%s', -1000) is None
    ''' % (A, A, A))
    trade = only(result.trades)
    assert (trade['price'], trade['commission'], trade['tax'], trade['profit']) == (10.01, 5.0, 0.0, None)
    assert result.cash == [1000000 - 10010 - 5] * 2 and result.equity == pytest.approx([1000000 - 15] * 2)
    assert any('可卖 0 股' in line for line in lines)


def test_a_sale_pays_tax_and_realises_its_profit(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if order_target('%s', 0) is None:
            order('%s', 5000)
    ''' % (A, A))
    buy, sale = result.trades
    assert sale['side'] == 'SELL' and sale['price'] == 9.99 and sale['amount'] == 5000
    assert sale['commission'] == pytest.approx(14.985) and sale['tax'] == pytest.approx(49.95)
    assert buy['commission'] == pytest.approx(15.015)
    assert sale['profit'] == pytest.approx(5000 * (9.99 - 10.01) - 14.985 - 49.95 - 15.015)
    assert result.equity[-1] == pytest.approx(1000000 + sale['profit'])


@pytest.mark.parametrize('amount, cash, bought', [
    (1050, 1000000, 1000), (99, 1000000, None), (10 ** 6, 20000, 1900), (10 ** 6, 1005, 100), (10 ** 6, 1004.99, None)])
def test_buys_are_cut_to_cash_then_to_lots(market, tmp_path, amount, cash, bought):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(buy, '9:30')

    def buy(context):
        order('%s', %d)
    ''' % (A, amount), days=1, cash=cash)
    assert [row['amount'] for row in result.trades] == ([bought] if bought else [])


def test_what_came_to_nothing_tells_its_figures(market, tmp_path):
    """Cash of 1500 at 10: one lot is 100; of 100 shares bought today none can be sold; A trades 100000 a day."""
    market.daily(B, [day_row(DAYS[0], 11.0, pre_close=10.0)] + [day_row(day, 11.0) for day in DAYS[1:]])
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        order('%s', 50)
        order('%s', 100)
        order('%s', -200)
        order('%s', 100)
        order('{0}', 200, LimitOrderStyle(10))
        order('{1}', 200)
        order('{1}', -50)
    '''.format(STAR, GOLD) % (A, A, A, B), days=1, cash=2200)
    told = [line.split(' - WARNING - ')[1] for line in lines if 'WARNING' in line]
    assert told[0].endswith('下单 50 股没有成立：不到最小申报数量 100 股')
    assert told[1].endswith('下单 -200 股没有成立：可卖 0 股（持有 100，今天买入 100，挂单占用 0）')
    assert '涨停，买不到：成交价要 11.01，涨停价 11' in told[2] and '成交 0 / 100 股' in told[2]
    assert told[3].endswith('下单 200 股没有成立：资金不足：可用 1194.00 元，按 10 元和费用够买 118 股，最少申报 200 股')
    assert told[4].endswith('下单 -50 股没有成立：不到最小申报数量 100 股，零股只能在卖出全部可卖的 200 股时一并卖出')
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        order('%s', 2000000)
    ''' % A, days=1, cash=1e9)
    assert re.match(r'数量 2000000 大于当日成交量 \d+ 股的 1 倍', only(result.orders)['message'])


AMOUNTS = ["'100'", 'True', 'np.bool_(True)', "float('nan')", "float('inf')", "float('-inf')", '100.5',
           'np.float64(99.5)', '1e10', 'None', '[100]', 'np.array([100])']
VALUES = ["'5000'", 'True', 'np.bool_(True)', "float('nan')", "float('inf')", '1e13', 'None', 'np.array([5000.0])']


@pytest.mark.parametrize('name, wrong', [
    (name, wrong) for names, values in ((('order', 'order_target'), AMOUNTS),
                                        (('order_value', 'order_target_value'), VALUES))
    for name in names for wrong in values] + [('order_target', '-100'), ('order_target_value', '-0.01')])
def test_what_is_no_amount_or_value_is_refused(market, tmp_path, name, wrong):
    """And nothing is sold: a target of -100 shares was one of none."""
    with pytest.raises(jq.StrategyError) as caught:
        play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if not context.portfolio.positions:
            order('%s', 1000)
        else:
            %s('%s', %s)
    ''' % (A, name, A, wrong))
    assert isinstance(caught.value.__cause__, bq.BadRequest) and caught.value.__cause__.hint
    assert only(caught.value.result.trades)['amount'] == 1000


def test_numbers_of_any_kind_are_taken(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    from decimal import Decimal

    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        for amount in (100.0, np.int64(100), np.float32(100), Decimal(100)):
            order('%s', amount)
        for value in (1001, 1001.5, np.float32(1001), np.int64(1001), Decimal(1001)):
            order_value('%s', value)
        order_target('%s', np.int32(1000))
        order_target_value('%s', np.float64(11001))
    ''' % (A, A, A, A), days=1)
    assert [row['amount'] for row in result.trades] == [100] * 11


def test_cash_is_judged_before_slippage_and_may_go_below_zero(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        set_slippage(FixedSlippage(0.5))
        run_daily(lambda context: order('%s', 100000), '9:30')
    ''' % B, days=1, cash=1006)
    assert (only(result.trades)['amount'], only(result.trades)['price']) == (100, 10.25)
    assert result.cash == [pytest.approx(1006 - 1025 - 5)]


@pytest.mark.parametrize('price, filled_at', [(9.993, 9.993), (10.0123, 10.01), (999, 10.01)])
def test_a_limit_price_need_be_none_that_the_exchange_takes(market, tmp_path, price, filled_at):
    """JoinQuant matches them with what is traded; a broker refuses them."""
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(lambda context: order('%s', 100, LimitOrderStyle(%r)), '9:30')
    ''' % (A, price), days=1)
    assert only(result.orders)['status'] == 'held' and only(result.trades)['price'] == filled_at


@pytest.mark.parametrize('price', ['11', '11.0', 'np.float64(11)', 'np.float32(11)', 'np.int64(11)', 'Decimal(11)'])
def test_a_limit_price_may_be_of_any_kind_of_number(market, tmp_path, price):
    result, _ = play(market, tmp_path, '''
    from decimal import Decimal

    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        placed = [order('{0}', 100, {1}), order('{0}', 100, LimitOrderStyle({1})), order_target('{0}', 300, {1})]
        assert [(each.limit, type(each.limit), each.price) for each in placed] == [(11.0, float, 10.01)] * 3
    '''.format(A, price), days=1)
    assert len(result.trades) == 3


def test_types_of_orders_trades_and_positions(market, tmp_path):
    """As JoinQuant documents them: numbers of Python's own, naive times."""
    play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def kinds(item, names):
        return [type(getattr(item, name)).__name__ for name in names.split()]

    def trade(context):
        if g.seen:
            assert context.portfolio.unsell_positions == {}
            return
        placed = order('%s', 100)
        g.seen.append(placed)
        assert kinds(placed, 'order_id amount filled') == ['int'] * 3
        assert kinds(placed, 'price avg_cost commission') == ['float'] * 3
        assert kinds(placed, 'security side action is_buy add_time status') == [
            'str', 'str', 'str', 'bool', 'datetime', 'OrderStatus']
        done, = get_trades().values()
        assert kinds(done, 'trade_id order_id amount price time security') == [
            'int', 'int', 'int', 'float', 'datetime', 'str']
        held = context.portfolio.positions['%s']
        assert kinds(held, 'price avg_cost acc_avg_cost hold_cost value') == ['float'] * 5
        assert kinds(held, 'total_amount locked_amount closeable_amount today_amount pindex') == ['int'] * 5
        assert kinds(held, 'init_time transact_time') == ['datetime'] * 2
        unsold, = context.portfolio.unsell_positions.values()
        assert (unsold.security, unsold.amount, unsold.avg_cost, unsold.side) == ('%s', 100, held.avg_cost, 'long')
        assert kinds(context.portfolio, \'\'\'total_value available_cash transferable_cash locked_cash positions_value
            returns inout_cash starting_cash margin\'\'\') == ['float'] * 9
        assert kinds(context, 'current_dt previous_date') == ['datetime', 'NoneType']
        assert kinds(context.run_params, 'start_date end_date type frequency') == ['date', 'date', 'str', 'str']
    ''' % (A, A, A))


@pytest.mark.parametrize('code, first, second', [(A, 0, 1000), (ETF, 0, 1000), (GOLD, 1000, 0)])
def test_who_may_sell_the_same_day(market, tmp_path, code, first, second):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(buy, '9:30')
        run_daily(sell, '9:31')

    def buy(context):
        if not g.seen:
            g.seen.append(order('%s', 1000))

    def sell(context):
        order('%s', -1000)
    ''' % (code, code))
    sold = {str(row['time'].date()): row['amount'] for row in result.trades if row['side'] == 'SELL'}
    assert (sold.get(DAYS[0], 0), sold.get(DAYS[1], 0)) == (first, second)


def test_t0_mode_lifts_it(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        set_option('t0_mode', True)
        run_daily(trade, '9:30')

    def trade(context):
        order('%s', 1000)
        order('%s', -1000)
    ''' % (A, A), days=1)
    assert [row['side'] for row in result.trades] == ['BUY', 'SELL']


def test_star_needs_a_protection_price_and_two_hundred_shares(market, tmp_path):
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        assert order('%s', 300) is None
        assert order('%s', 199, MarketOrderStyle(11)) is None
        assert order('%s', 201, MarketOrderStyle(11)).filled == 201
    ''' % (STAR, STAR, STAR), days=1)
    assert any('例如 MarketOrderStyle(10)' in line for line in lines) and only(result.trades)['amount'] == 201


@pytest.mark.parametrize('price', [9.0, 10.0, 999])
@pytest.mark.parametrize('code', [A, ETF])
def test_elsewhere_the_price_of_a_market_order_has_no_effect(market, tmp_path, code, price):
    """JoinQuant: the protection price of a market order is that of STAR, and void for other securities."""
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        bought = [order('{0}', 100, MarketOrderStyle({1})), order_value('{0}', 1500, MarketOrderStyle({1})),
                  order_target('{0}', 900, MarketOrderStyle({1})),
                  order_target_value('{0}', 15000, MarketOrderStyle({1}))]
        bought += batch_submit_orders([dict(security='{0}', amount=100, style=MarketOrderStyle({1}))])
        assert all(str(each.status) == 'held' and each.style.limit_price is None for each in bought)
    '''.format(code, price), days=1)
    assert len(result.trades) == 5 and sum('只对科创板起作用' in line for line in lines) == 1


@pytest.mark.parametrize('price, amount, filled', [
    (10.01, 300, 300), (10.0, 300, 0), (9.99, -300, 300), (10.0, -300, 0)])
def test_on_star_it_is_the_worst_price(market, tmp_path, price, amount, filled):
    """With the slippage a buy fills at 10.01 and a sale at 9.99."""
    result, lines = play(market, tmp_path, '''
    def begin(context):
        set_option('t0_mode', True)
        run_daily(trade, '9:30')

    def trade(context):
        order('%s', 400, MarketOrderStyle(11))
        assert order('%s', %d, MarketOrderStyle(%r)).filled == %d
    ''' % (STAR, STAR, amount, price, filled), days=1)
    assert not [line for line in lines if '只对科创板起作用' in line]


def test_the_share_of_the_day_s_volume_is_the_most_at_once(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', 0.01)
        run_daily(trade, '9:30')

    def trade(context):
        assert order('%s', 10000).status == OrderStatus.held
        market, limit = order('%s', 10100), order('%s', 10100, LimitOrderStyle(10.5))
        assert (market.status, market.filled) == (OrderStatus.canceled, 10000)
        assert (limit.status, limit.filled, limit.price) == (OrderStatus.filled, 10000, 10.01)
        assert list(get_open_orders()) == [limit.order_id]
    ''' % (B, B, B), days=1)
    assert [(row['filled'], row['status']) for row in result.orders] == [
        (10000, 'held'), (10000, 'canceled'), (10100, 'held')]  # the rest of the last one comes with the day's bar


def limit_day(market, opened):
    rows = [day_row(DAYS[0], 10.0), day_row(DAYS[1], opened, opened, opened, opened, pre_close=10.0)]
    market.daily(B, rows)


@pytest.mark.parametrize('opened, amount, filled', [
    (11.0, 100, 0), (10.99, 100, 0), (10.98, 100, 100), (9.0, -100, 0), (9.01, -100, 0), (9.02, -100, 100)])
def test_at_the_price_limit_nothing_is_had(market, tmp_path, opened, amount, filled):
    limit_day(market, opened)
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if not g.seen:
            g.seen.append(order('%s', 1000))
        else:
            order('%s', %d)
    ''' % (B, B, amount))
    assert result.orders[1]['filled'] == filled and result.orders[1]['status'] == ('held' if filled else 'canceled')


def test_a_limit_order_fills_at_the_market_or_rests_until_bars_pass_it(market, tmp_path):
    """Bars at 10:00 (low 9.80, 300 shares) and 10:01 (low 9.70, 1000): a bid of 9.80 needs a bar below it."""
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(place, '9:31')
        run_daily(look, '10:01')
        run_daily(late, '15:30')

    def place(context):
        assert order('{0}', 100, LimitOrderStyle(10.5)).price == 10.01
        resting = order('{0}', 1500, LimitOrderStyle(9.8))
        early = order('{0}', 700, LimitOrderStyle(9.85))
        assert resting.status == early.status == OrderStatus.open and resting.filled == 0
        assert abs(context.portfolio.locked_cash - 1500 * 9.8 - 5 - 700 * 9.85 - 5) < 1e-6
        g.orders = resting, early

    def look(context):
        resting, early = g.orders
        assert (resting.filled, resting.status, early.filled, early.status) == (
            1000, OrderStatus.filled, 700, OrderStatus.held)
        assert list(get_open_orders()) == [resting.order_id]

    def late(context):
        assert g.orders[0].status == OrderStatus.filled
    '''.format(A), days=1)
    fills = [(str(row['time'])[11:16], row['amount'], row['price']) for row in result.trades]
    assert fills == [('09:31', 100, 10.01), ('10:00', 300, 9.85), ('10:01', 1000, 9.8), ('10:01', 400, 9.85)]
    last = result.orders[1]
    assert (last['status'], last['filled'], last['avg_price']) == ('canceled', 1000, 9.8)
    assert result.cash[-1] == pytest.approx(1000000 - 1001 - 5 - 700 * 9.85 - 5 - 9800 - 5)


def test_cancelling_gives_back_what_was_locked(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(place, '9:31')

    def place(context):
        resting = order('{0}', 1000, LimitOrderStyle(9.0))
        assert cancel_order(resting) is resting and resting.status == OrderStatus.canceled
        assert cancel_order(resting) is None and cancel_order(resting.order_id) is None and cancel_order(77) is None
        assert context.portfolio.available_cash == 1000000 and context.portfolio.locked_cash == 0
    '''.format(A), days=1)
    assert result.orders[0]['status'] == 'canceled'


def test_orders_before_the_open_wait_for_it(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(place, 'before_open')
        run_daily(look, '9:30')

    def place(context):
        placed = order('{0}', 1000)
        assert placed.status == OrderStatus.new and context.portfolio.locked_cash > 10000
        g.seen = [placed]

    def look(context):
        assert g.seen[0].status == OrderStatus.held and g.seen[0].price == 10.01
    '''.format(A), days=1)
    assert str(only(result.trades)['time']) == DAYS[0] + ' 09:30:00'


@pytest.mark.parametrize('cash, amount, filled, status, said', [
    (10100, 900, 900, 'held', '只够买 900 股'), (1010, 100, 0, 'canceled', '资金不足'), (11000, 1000, 1000, 'held', '')])
def test_an_order_before_the_open_is_cut_to_the_cash_at_the_open(market, tmp_path, cash, amount, filled, status, said):
    market.daily(B, [day_row(DAYS[0], 10.9, pre_close=10.0)])
    result, lines = play(market, tmp_path, '''
    def begin(context):
        set_slippage(FixedSlippage(0))
        run_daily(lambda context: order('%s', 1000), 'before_open')
    ''' % B, days=1, cash=cash)
    row = only(result.orders)
    assert (row['amount'], row['filled'], row['status']) == (amount, filled, status)
    assert result.cash == [pytest.approx(cash - filled * 10.9 - (5 if filled else 0))]
    assert any(said in line for line in lines) or not said and not lines


def test_a_day_without_minutes_among_those_that_have_them_is_matched_as_a_whole(market, tmp_path):
    """A has minutes on the first three of five days, the last two have none; they begin late the other way round."""
    text = '''
    def begin(context):
        run_daily(place, '9:30')

    def place(context):
        order('%s', 100, LimitOrderStyle(9.75))
    ''' % A
    result, _ = play(market, tmp_path, text, days=5)
    assert [row['filled'] for row in result.orders] == [100] * 5
    assert [str(row['time'])[11:16] for row in result.trades] == ['10:01'] * 3 + ['15:00'] * 2
    assert any('有些日子没有' in text for text in result.messages)


@pytest.mark.parametrize('placed, cancelled, filled', [
    ('9:30', '15:30', 100), ('9:30', '14:50', 0), ('9:31', '15:30', 0), ('9:31', '14:50', 0)])
def test_without_minutes_a_resting_order_is_matched_at_the_close_alone(market, tmp_path, placed, cancelled, filled):
    """The day goes down to 9.70 and closes at 10.00."""
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(lambda context: g.seen.append(order('%s', 100, LimitOrderStyle(9.8))), '%s')
        run_daily(lambda context: cancel_order(g.seen[-1]), '%s')
    ''' % (B, placed, cancelled), days=1)
    assert only(result.orders)['filled'] == filled
    assert any('只在收盘时撮合一次' in text for text in result.messages)


def test_a_day_without_minutes_is_matched_once(market, tmp_path):
    """One hundredth of 1000000 shares, and no more of them at 15:30 and 16:00."""
    result, _ = play(market, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', 0.01)
        run_daily(lambda context: order('%s', 25000, LimitOrderStyle(9.8)), '9:30')
        run_daily(print, '15:10')
        run_daily(print, '15:30')
    ''' % B, days=1)
    assert (only(result.trades)['amount'], only(result.orders)['filled']) == (10000, 10000)


def test_minutes_that_begin_during_the_run_are_used_from_then_on(market, tmp_path):
    days = days_from('2024-03-04', 130)
    market.daily(A, [day_row(day, 10.0, 10.0, 10.3, 9.7) for day in days])
    bars = {'09:31': (10, 10, 10, 10, 100), '10:00': (10, 10.2, 10.2, 10, 9)}
    market.write_minutes(A, market.minutes(A, days[125], bars))
    result, _ = run(tmp_path, PLAIN + '''
    def begin(context):
        run_daily(look, '10:00')

    def look(context):
        record(last=get_current_data()['%s'].last_price)
    ''' % A, market.source, days[0], days[129])
    assert [values['last'] for _, values in result.records] == [10.0] * 125 + [10.2] + [10.0] * 4


def test_a_suspended_security_gives_no_order(market, tmp_path):
    market.daily(B, [day_row(day, 10.0, paused=int(day == DAYS[1])) for day in DAYS])
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        g.seen.append(order('%s', 100) is not None)
        record(paused=get_current_data()['%s'].paused)
    ''' % (B, B), days=3)
    assert [values['paused'] for _, values in result.records] == [0.0, 1.0, 0.0]
    assert len(result.trades) == 2 and any('停牌' in line for line in lines)


SELL_ON_THE_SECOND_DAY = '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if context.current_dt.day == 4:
            order('{0}', 1000)
        elif context.current_dt.day == 5:
            g.seen += [order('{0}', -500), order('{0}', -500, LimitOrderStyle({1}))]
'''
_PRICES = ('open', 'close', 'high', 'low')


@pytest.mark.parametrize('changes, asked, said, filled', [
    (dict.fromkeys(_PRICES, math.nan), 9.9, '没有价格', 0),
    (dict.fromkeys(_PRICES + ('pre_close', 'high_limit', 'low_limit'), math.nan), 9.9, '没有价格', 0),
    (dict.fromkeys(('pre_close', 'high_limit', 'low_limit'), math.nan), 10.4, '涨跌停价算不出来', 0),
    (dict(high_limit=math.nan, low_limit=math.nan), 10.0, '', 1000),
    (dict(high_limit=math.nan, low_limit=math.nan, open=9.0, low=9.0, high=9.0, close=9.0), 9.0, '跌停', 0),
    (dict(volume=math.nan), 9.9, '成交量', 0)])
def test_what_a_day_does_not_tell_sells_nothing(tmp_path, market, changes, asked, said, filled):
    """With rules for the limits that the source leaves out."""
    text = PLAIN.replace('FixedSlippage(0.02)', 'FixedSlippage(0)') + SELL_ON_THE_SECOND_DAY.format(B, asked)
    lines = []
    with open_run(tmp_path, text, market.source, DAYS[0], DAYS[2]) as prepared:
        columns = prepared.store.daily(B).columns
        for name, value in changes.items():
            columns[name][prepared.store.row_of[prepared.days[1]]] = value
        prepared.session.log._write = lines.append
        prepared.run()
        sales = prepared.session.broker.all_orders[1:]
    assert [order.is_buy for order in sales] == [False, False] and sum(order.filled for order in sales) == filled
    assert all(order.status is (jq.OrderStatus.held if filled else jq.OrderStatus.canceled) for order in sales)
    assert any(said in order.message for order in sales) and (filled or any(said in line for line in lines))
    assert all(math.isfinite(row[3]) for row in prepared.day_rows)


def test_before_the_first_trade_day_no_option_fills_an_order(market, tmp_path):
    days = days_from(DAYS[0], 8)
    market.daily(B, [day_row(day, 10.0) for day in days])
    result, _ = run(tmp_path, PLAIN + '''
    def begin(context):
        set_option('always_match_market_order', True)
        set_option('match_by_signal', True)
        g.seen += [order('{0}', 100), order('{0}', 100, LimitOrderStyle(12.0))]
        assert not get_trades() and g.seen[0].status == OrderStatus.canceled and '交易日' in g.seen[0].message
    '''.format(B), market.source, '2024-03-09', days[6])
    assert only(result.trades)['time'].date() == result.days[0]


def test_a_security_whose_data_cannot_be_had_gives_no_order(market, tmp_path):
    with open_run(tmp_path, PLAIN + '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        g.seen.append(order('%s', 100))
    ''' % B, market.source, DAYS[0], DAYS[0]) as prepared:
        def fail(code, row=None):
            raise bq.DataUnavailable('没有 %s 的行情' % code)
        prepared.store.daily, lines = fail, []
        prepared.session.log._write = lines.append
        prepared.run()
        assert prepared.session.g.seen == [None] and any('没有 %s 的行情' % B in line for line in lines)


@pytest.mark.parametrize('security', ['000300.XSHG', '600001.XSHG', '600000', 'nothing'])
def test_what_cannot_be_traded_gives_no_order_and_a_line(market, tmp_path, security):
    market.daily('000300.XSHG', [day_row(day, 3000.0) for day in DAYS])
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        assert order('%s', 100) is None and order('%s', -100) is None
        assert order_value('%s', 1000000) is None and order_target('%s', 100) is None
    ''' % ((security,) * 4), days=1)
    assert result.orders == [] and len(lines) == 4


def test_targets_count_what_is_held_and_cancel_what_is_open(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:31')

    def trade(context):
        if not g.seen:
            g.seen.append(order('{0}', 5000, LimitOrderStyle(9.0)))
            order_target_value('{0}', 20050)
            assert g.seen[0].status == OrderStatus.canceled
        else:
            order_target('{0}', 1230)
            order_target_value('{1}', 8000)
            order_value('{1}', -8000)
    '''.format(A, ETF), days=2)
    traded = [(row['security'], row['side'], row['amount']) for row in result.trades]
    assert traded == [(A, 'BUY', 2000), (A, 'SELL', 700), (ETF, 'BUY', 2000)]


@pytest.mark.parametrize('orders, said', [
    ("[dict(security='{0}', amount=100), dict(security='{0}', amount='100')]", '第 2 笔'),
    ("[dict(security='{0}', amount=100), dict(security='{0}', amount=100.5)]", '第 2 笔'),
    ("[dict(security='{0}', amount=0)]", '第 1 笔'), ("[dict(security='{0}', amount=100), '{0}']", '第 2 笔'),
    ("[dict(security='{0}', amount=100), dict(security='{0}')]", "第 2 笔：order() missing"),
    ("[dict(security='{0}', amount=100), dict(security='{0}', amount=100, price=3)]", "'price'"),
    ("[dict(security='{0}', amount=100), dict(security='{0}', amount=100, style='x')]", '第 2 笔'),
    ("[dict(security='{0}', amount=100), dict(security='{0}', amount=100, side='short')]", '第 2 笔'),
    ("dict(security='{0}', amount=100)", '列表'), ("None", '列表')])
def test_a_batch_with_an_order_that_is_none_orders_nothing(market, tmp_path, orders, said):
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        try:
            batch_submit_orders(%s)
        except Exception as error:
            log.info('%%s %%s', getattr(error, 'code', ''), error)
        assert not get_orders()
    ''' % orders.format(A), days=1)
    assert result.orders == [] and said in only(lines)
    assert 'BAD_REQUEST' in lines[0] or '做空' in lines[0]


@pytest.mark.parametrize('last', ["dict(security='600001.XSHG', amount=100)", "dict(security='{1}', amount=-100)",
                                  "dict(security='{1}', amount=100000)", "dict(security='{2}', amount=100)"])
def test_of_a_batch_all_or_none_is_ordered(market, tmp_path, last):
    """Where the last of them comes to nothing; the one before it has taken the cash, or has bought what is sold."""
    market.daily(GOLD, [day_row(day, 4.0, paused=1) for day in DAYS])
    result, lines = play(market, tmp_path, '''
    def begin(context):
        set_slippage(FixedSlippage(0))
        run_daily(buy, '9:30')
        run_daily(trade, '10:00')

    def buy(context):
        if not context.portfolio.positions:
            order('{{0}}', 1000)
            order('{{0}}', 1000, LimitOrderStyle(9.5))

    def trade(context):
        if context.current_dt.day != 5:
            return
        portfolio = context.portfolio
        look = lambda: (portfolio.available_cash, portfolio.locked_cash, portfolio.transferable_cash,
                        [(code, vars(each)) for code, each in portfolio.positions.items()],
                        [(key, str(each)) for key, each in get_orders().items()], list(get_trades()))
        before = repr(look())
        orders = [dict(security='{{0}}', amount=-400), dict(security='{{1}}', amount=99300), {0}]
        assert batch_submit_orders(orders) == [None] * 3 and repr(look()) == before
        first, second = batch_submit_orders(orders[:2])
        assert (first.filled, second.amount) == (400, 99300) and portfolio.positions['{{0}}'].amount == 600
    '''.format(last).format(A, B, GOLD))
    assert [(row['security'], row['amount']) for row in result.trades] == [(A, 1000), (A, 400), (B, 99300)]
    assert [row['order_id'] for row in result.orders] == ['1', '2', '3', '4']
    assert any('第 3 笔没有成立' in line for line in lines)


def test_costs_of_a_holding(market, tmp_path):
    """JoinQuant: hold_cost is the previous close, then (hold_cost * amount -/+ value) / amount left, without fees."""
    market.daily(B, [day_row(DAYS[0], 10.0, 10.2), day_row(DAYS[1], 10.8, pre_close=10.2)])
    play(market, tmp_path, '''
    def begin(context):
        set_slippage(FixedSlippage(0))
        run_daily(trade, '9:30')

    def trade(context):
        held = context.portfolio.positions
        if '{0}' not in held:
            order('{0}', 1000)
            assert held['{0}'].hold_cost == 10.0 and held['{0}'].avg_cost == held['{0}'].acc_avg_cost == 10.005
            return
        assert held['{0}'].hold_cost == 10.2
        order('{0}', -600)
        assert abs(held['{0}'].hold_cost - (10.2 * 1000 - 10.8 * 600) / 400) < 1e-9
        assert abs(held['{0}'].acc_avg_cost - (10.005 * 1000 - 10.8 * 600 + 5 + 6.48) / 400) < 1e-9
        assert held['{0}'].avg_cost == 10.005
        order('{0}', 400)
        assert abs(held['{0}'].hold_cost - (10.2 * 1000 - 10.8 * 600 + 10.8 * 400) / 800) < 1e-9
    '''.format(B))


def test_dividends_and_shares_come_on_the_ex_date(market, tmp_path, monkeypatch):
    market.daily(B, [day_row(DAYS[0], 10.0), day_row(DAYS[1], 10.0), day_row(DAYS[2], 5.0, pre_close=4.75),
                     day_row(DAYS[3], 5.0)])
    events = [dict(security=B, date=DAYS[2], security_type='stock', scale_factor=2.0, bonus_pre_tax=5.0, per_base=10)]
    with jq.opened_provider(market.source) as provider:
        monkeypatch.setattr(type(provider), 'get_split_dividend', lambda self, code, start, end: events)
        result, lines = run(tmp_path, PLAIN + '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if not g.seen:
            g.seen.append(order('%s', 1000))

    def on_event(context, event):
        assert (event.amount, event.shares, event.cash) == (1000, 1000, 400.0)
        assert isinstance(event, DividendsEvent) and event.name == 'Dividends'
        assert (event.security, event.pindex, event.side) == ('%s', 0, 'long')
        given, = event.dividends
        assert given['date'] == context.current_dt.date()
        assert given['scale_factor'] == 2.0 and given['bonus_pre_tax'] == 5.0 and given['per_base'] == 10
        position = context.portfolio.positions['%s']
        assert position.total_amount == position.closeable_amount == 2000 and position.price == 4.75
        assert abs(position.avg_cost - (10.015 * 1000 - 400) / 2000) < 1e-9
        record(seen=1)
    ''' % (B, B, B), provider, DAYS[0], DAYS[3])
    assert only(result.dividends) == dict(date=result.days[2], security=B, name=only(result.dividends)['name'],
                                          amount=1000, cash=400.0, tax=100.0, shares=1000)
    assert len(result.records) == 1 and result.positions[-1]['amount'] == 2000
    assert result.equity[-1] == pytest.approx(1000000 - 10010 - 5 + 400 + 2000 * 5.0)


def test_a_holding_that_is_delisted_is_worth_nothing_and_said_so(market, tmp_path, monkeypatch):
    """1000 shares of B, whose last day is the second: no price, no sale, and the report tells where the money went."""
    info, last = bq._stub_info, datetime.strptime(DAYS[1], '%Y-%m-%d').date()
    monkeypatch.setattr(bq, '_stub_info', lambda profile, listed=None: dict(
        info(profile, listed), **({'end_date': last} if profile.code == B else {})))
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if context.current_dt.day == 4:
            order('%s', 1000)
        if context.current_dt.day > 5:
            assert order_target('%s', 0) is None
    ''' % (B, B), days=4)
    assert [row['price'] for row in result.positions] == [10, 10, 0, 0] and sum('退市' in line for line in lines) == 2
    assert result.equity[2:] == result.cash[2:] == [pytest.approx(1000000 - 10010 - 5)] * 2
    assert [text for text in result.messages if '按 0 元计' in text] == [
        '%s 从 %s 起没有价格（多半已经退市），持有的 1000 股按 0 元计' % (B, DAYS[2])]


def test_shares_that_are_merged_away(market, tmp_path):
    """1000 shares merged 2000 to 1 are none; the order of the evening before cannot sell what is no more."""
    market.daily(B, [day_row(DAYS[0], 10.0), day_row(DAYS[1], 10.0), day_row(DAYS[2], 20000.0, pre_close=20000.0),
                     day_row(DAYS[3], 20000.0)])
    result, lines = run(tmp_path, PLAIN + '''
    def begin(context):
        run_daily(buy, '9:30')
        run_daily(sell, '16:30')

    def buy(context):
        if not g.seen:
            g.seen.append(order('%s', 1000))

    def sell(context):
        if str(context.current_dt.date()) == '%s':
            g.seen.append(order('%s', -1000))
    ''' % (B, DAYS[1], B), market.source, DAYS[0], DAYS[3])
    assert [row['amount'] for row in result.positions] == [1000, 1000] and only(result.dividends)['shares'] == -1000
    assert [row['status'] for row in result.orders] == ['held', 'canceled'] and '只剩 0 股' in result.orders[1]['message']
    assert result.equity[-1] == pytest.approx(1000000 - 10010 - 5) and any('不足 1 股' in line for line in lines)


def test_what_is_merged_away_gets_nothing_of_a_second_plan_of_the_day(market, tmp_path, monkeypatch):
    market.daily(B, [day_row(DAYS[0], 10.0), day_row(DAYS[1], 10.0), day_row(DAYS[2], 20000.0, pre_close=20000.0)])
    events = [dict(security=B, date=DAYS[2], security_type='stock', scale_factor=scale, bonus_pre_tax=cash, per_base=10)
              for scale, cash in ((0.0005, 0.0), (1.0, 5.0))]
    with jq.opened_provider(market.source) as provider:
        monkeypatch.setattr(type(provider), 'get_split_dividend', lambda self, code, start, end: events)
        result, lines = run(tmp_path, PLAIN + '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if not g.seen:
            g.seen.append(order('%s', 1000))
    ''' % B, provider, DAYS[0], DAYS[2])
    assert [row['amount'] for row in result.positions] == [1000, 1000] and only(result.dividends)['shares'] == -1000
    assert result.equity[-1] == pytest.approx(1000000 - 10010 - 5) and any('不足 1 股' in line for line in lines)


def test_without_real_prices_the_account_lives_on_adjusted_ones(market, tmp_path):
    market.daily(B, [day_row(DAYS[0], 10.0), day_row(DAYS[1], 5.0, pre_close=5.0), day_row(DAYS[2], 5.0)])
    result, _ = run(tmp_path, '''
    from jqdata import *

    def initialize(context):
        set_slippage(FixedSlippage(0))
        run_daily(trade, '9:30')

    def trade(context):
        if not context.portfolio.positions:
            order('%s', 1000)
    ''' % B, market.source, DAYS[0], DAYS[2])
    assert only(result.trades)['price'] == 5.0 and result.dividends == []
    assert result.equity == pytest.approx([1000000 - 5] * 3) and not math.isnan(result.equity[0])


def test_a_rest_locks_no_minimum_commission_again(market, tmp_path):
    """5000 at 10: of 100000 a day 1000 fill at once for 5.00. All 5000 together cost 15.00, so 10.00 are left to pay.

    The bars of 10:00, 10:01 and 14:00 give 3, 10 and 20 more, their hundredth; the cash comes back at 16:00.
    """
    for code in (A, B):
        market.daily(code, [day_row(day, 10.0, 10.0, 10.3, 9.7, volume=100000) for day in DAYS])
    result, lines = play(market, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', 0.01)
        set_slippage(FixedSlippage(0))
        run_daily(buy, '9:30')
        run_daily(look, '15:10')
        run_daily(night, '16:30')

    def money(context):
        return context.portfolio.available_cash, context.portfolio.locked_cash

    def buy(context):
        g.placed = order_value('%s', 50000, LimitOrderStyle(10))
        assert (g.placed.amount, g.placed.filled, g.placed.commission) == (5000, 1000, 5)
        assert g.placed.status == OrderStatus.filled and list(get_open_orders()) == [g.placed.order_id]
        assert money(context) == (1000000 - 10005 - 40010, 40010)

    def look(context):
        assert (g.placed.filled, g.placed.commission) == (1033, 5)
        assert [round(each, 6) for each in money(context)] == [949985, 39680]
        g.seen.append(1)

    def night(context):
        assert g.placed.status == OrderStatus.canceled and get_open_orders() == {}
        assert [round(each, 6) for each in money(context)] == [1000000 - 10335, 0]
        g.seen.append(2)
        log.info('seen %%s' %% g.seen)
    ''' % A, days=1)
    assert [row['amount'] for row in result.trades] == [1000, 3, 10, 20]
    assert any('seen [1, 2]' in line for line in lines)


def test_a_sale_beyond_the_days_share_leaves_the_rest_closeable(market, tmp_path):
    """1100 of B: a ratio of 0.01 of 100000 sells 1000 of them; the odd rest of 100 goes the next time."""
    market.daily(B, [day_row(day, 10.0, 10.0, 10.3, 9.7, volume=100000) for day in DAYS])
    result, _ = play(market, tmp_path, '''
    def begin(context):
        set_slippage(FixedSlippage(0))
        run_daily(trade, '9:30')

    def trade(context):
        if not g.seen:
            g.seen.append(order('%s', 1100))
            return
        set_option('order_volume_ratio', 0.01)
        sale = order_target('%s', 0)
        position = context.portfolio.positions['%s']
        assert (str(sale.status), sale.amount, sale.filled, sale.price) == ('canceled', 1100, 1000, 10.0)
        assert sale.commission == 5 + 10 and sale.avg_cost == g.seen[0].price + 5 / 1100
        assert (position.total_amount, position.closeable_amount, position.locked_amount) == (100, 100, 0)
        assert str(order_target('%s', 0).status) == 'held' and '%s' not in context.portfolio.positions
    ''' % ((B,) * 5))
    assert [row['amount'] for row in result.trades] == [1100, 1000, 100]


def test_every_spelling_of_a_code_finds_the_holding_and_its_orders(market, tmp_path):
    """A holding that is not found by another spelling is bought once more."""
    result, lines = play(market, tmp_path, '''
    def begin(context):
        run_daily(buy, '9:30')

    def buy(context):
        placed, positions = order('600000.SH', 100), context.portfolio.positions
        for code in ('600000.SH', '600000.XSHG'):
            assert code in positions and positions[code].total_amount == 100
            assert positions.get(code) is positions[code]
            assert len(get_orders(security=code)) == len(get_trades(security=code)) == 1
        assert '000002.SZ' not in positions and positions.get('000002.SZ') is None
        assert positions['000002.SZ'].total_amount == 0 and positions.get(None, 1) == 1
        assert len(get_orders(placed)) == len(get_trades(placed)) == len(get_orders(status='held')) == 1
        for status in (OrderStatus.open, 'open', OrderStatus.canceled):
            assert not get_orders(status=status)
        for status in (4, 'done', [], True):
            try:
                get_orders(status=status)
            except Exception as error:
                assert 'status' in str(error)
            else:
                assert False, status
        log.info('to the end')
    ''', days=1)
    assert any('to the end' in line for line in lines)
    assert sum('没有持有' in line for line in lines) == 1


def test_open_orders_are_cancelled_as_they_come(market, tmp_path):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(buy, '9:30')

    def buy(context):
        for _ in range(2):
            order('%s', 100, LimitOrderStyle(9.1))
        assert [str(each.status) for each in batch_cancel_orders(get_open_orders().values())] == ['canceled'] * 2
        assert batch_cancel_orders(set()) == batch_submit_orders(()) == []
    ''' % A, days=1)
    assert [row['status'] for row in result.orders] == ['canceled'] * 2 and not result.trades


def test_an_order_is_found_by_its_id_as_number_or_text(market, tmp_path):
    """JoinQuant's ids are numbers, a broker's are texts: a strategy for both keeps either."""
    result, _ = play(market, tmp_path, '''
    def begin(context):
        run_daily(buy, '9:30')

    def buy(context):
        resting, filled = order('%s', 100, LimitOrderStyle(9.1)), order('%s', 100)
        for kind in (int, str):
            assert list(get_orders(kind(resting.order_id)).values()) == [resting]
            assert [trade.order_id for trade in get_trades(kind(filled.order_id)).values()] == [filled.order_id]
            assert not get_trades(kind(resting.order_id)) and not get_orders(kind(3))
        assert cancel_order('3') is cancel_order(None) is cancel_order([]) is None
        assert cancel_order(str(resting.order_id)) is resting and resting.status == OrderStatus.canceled
    ''' % (A, A), days=1)
    assert [row['status'] for row in result.orders] == ['canceled', 'held']
