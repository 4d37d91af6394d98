"""How much of an order a day's volume lets through: what JoinQuant itself filled on 2026-09-29, and what it documents.

The figures are real: raw minutes, day volumes and fills of two funds, read from JoinQuant's backtests.
"""
import pytest

from tests.engine import A, MadeMarket, day_row, days_from, run

DAY, DAYS = '2026-09-29', ['2026-09-28', '2026-09-29', '2026-09-30']
GOLD, NASDAQ = '518880.XSHG', '513100.XSHG'
VOLUME = {GOLD: 377557858, NASDAQ: 135532268}
# minute, low, volume; and what an order for 20000 at 8.5 got of it with order_volume_ratio 0.00001.
BARS = [line.split() for line in '''
    09:41 8.484 2611700 26, 09:42 8.487 2739400 27, 09:43 8.493 3135800 31, 09:44 8.496 2695800 26,
    09:45 8.498 4759600 47, 09:46 8.502 2652700 0, 09:52 8.499 2959000 29, 09:53 8.498 1493200 14,
    10:04 8.499 1783900 17, 10:05 8.497 1667000 16, 10:06 8.498 1371000 13, 10:07 8.497 2437300 24,
    10:08 8.493 1586600 15, 10:09 8.492 2097200 20, 10:10 8.493 1908000 19, 10:11 8.493 1781500 17,
    10:12 8.497 1084600 10, 10:13 8.498 1811600 18, 10:14 8.499 1299600 12, 10:15 8.5 924600 0,
    10:16 8.5 760300 0, 10:17 8.497 1122300 11, 10:18 8.498 684000 6, 10:19 8.499 1028800 10,
    10:22 8.499 1324600 13, 10:23 8.5 1240900 0, 10:24 8.5 951900 0, 13:01 8.497 10291100 102,
    13:02 8.497 2141400 21, 13:03 8.499 2689700 26, 13:04 8.499 789400 7, 13:05 8.497 1782400 17,
    13:06 8.497 2638400 26, 13:07 8.495 1093900 10, 13:08 8.494 2314500 23, 13:09 8.495 1067800 10,
    13:10 8.497 1071700 10, 13:11 8.496 1050100 10, 13:12 8.496 989900 9, 13:13 8.496 1077600 10,
    13:14 8.497 336500 3, 13:15 8.496 860800 8, 13:16 8.494 1577000 15, 13:17 8.493 932500 9,
    13:18 8.495 630900 6, 13:19 8.498 1220600 12, 13:20 8.499 590100 5, 13:21 8.499 818000 8,
    13:22 8.499 933500 9, 13:23 8.5 1457200 0, 13:27 8.5 974600 0, 13:28 8.5 678000 0, 13:29 8.497 1805800 18,
    13:30 8.498 675500 6, 13:31 8.492 5469800 54, 13:32 8.491 1103000 11, 13:33 8.488 3519300 35,
    13:34 8.485 2748300 27, 13:35 8.485 2366100 23, 13:36 8.488 2202800 22, 13:37 8.486 5380700 53,
    13:38 8.489 977500 9, 13:39 8.49 1971600 19, 13:40 8.497 3455900 34, 13:41 8.505 2526600 0'''.split(',')]
EARLY = {'09:31': (8.5, 8.488, 8.502, 8.488, 17367700), '09:40': (8.488, 8.485, 8.488, 8.484, 2636400)}


@pytest.fixture
def market(tmp_path):
    """The two funds; minutes in which nobody asks for less than 8.5 stand for those that are left out."""
    made, bars = MadeMarket(tmp_path), dict(EARLY)
    bars.update((minute, (8.51, 8.51, 8.51, float(low), int(volume))) for minute, low, volume, _ in BARS)
    made.daily(GOLD, [day_row(day, 8.5, 8.519, 8.534, 8.484, VOLUME[GOLD]) for day in DAYS])
    made.write_minutes(GOLD, made.minutes(GOLD, DAY, bars))
    made.daily(NASDAQ, [day_row(day, 2.304, 2.304, 2.31, 2.28, VOLUME[NASDAQ]) for day in DAYS])
    return made


def play(market, tmp_path, body, days=(DAY, DAY)):
    return run(tmp_path, '''
    from jqdata import *

    def initialize(context):
        set_option('use_real_price', True)
        set_slippage(FixedSlippage(0))
        set_order_cost(OrderCost(0, 0, 0.0003, 0.0003, 0, 5), 'fund')
        begin(context)
''' + body, market.source, *days, cash=2e9)


def rows_of(result):
    return [(row['security'], row['filled'], row['status'], row['avg_price']) for row in result.orders]


@pytest.mark.parametrize('ratio, gold, nasdaq, fees', [(0.00001, 3775, 1355, (9.61, 5.0)),
                                                       (0.0001, 37755, 13553, (96.11, 9.37))])
def test_market_orders_get_the_share_of_the_day(market, tmp_path, ratio, gold, nasdaq, fees):
    result, _ = play(market, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', %r)
        run_daily(buy, '9:40')

    def buy(context):
        order('%s', 500000)
        order('%s', 500000)
    ''' % (ratio, GOLD, NASDAQ))
    assert rows_of(result) == [(GOLD, gold, 'canceled', 8.485), (NASDAQ, nasdaq, 'canceled', 2.304)]
    assert [round(row['commission'], 2) for row in result.trades] == list(fees)


@pytest.mark.parametrize('ratio, filled', [(0.00001, 52), (0.00002, 104), (0.0001, 524)])
def test_resting_orders_get_their_share_of_each_minute_each_for_itself(market, tmp_path, ratio, filled):
    """At 8.485 the bars of 09:40 and 09:41 alone pass the limit, until the afternoon, when it is cancelled here."""
    result, lines = play(market, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', %r)
        run_daily(buy, '9:39')
        run_daily(stop, '11:00')

    def buy(context):
        g.orders = [order('%s', 20000, LimitOrderStyle(8.485)) for _ in range(2)]

    def stop(context):
        for each in g.orders:
            cancel_order(each)
    ''' % (ratio, GOLD))
    assert rows_of(result) == [(GOLD, filled, 'canceled', 8.485)] * 2


def test_a_whole_day_of_fills(market, tmp_path):
    """At once the share of the day at the last price, then that of each minute that passes the limit, at the limit."""
    result, lines = play(market, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', 0.00001)
        run_daily(buy, '9:40')

    def buy(context):
        order('%s', 20000, LimitOrderStyle(8.5))
    ''' % GOLD)
    fills = [(str(row['time'])[11:16], row['amount'], row['price']) for row in result.trades]
    assert fills == [('09:40', 3775, 8.485)] + [(minute, int(got), 8.5) for minute, _, _, got in BARS if got != '0']
    assert len(fills) == 57 and rows_of(result)[0][1:3] == (4863, 'canceled')
    assert [line for line in lines if line.startswith(DAY + ' 16:00:00') and '成交 4863 / 20000 股' in line
            and '13:40 的 K 线成交 3455900 股' in line]


@pytest.fixture
def small(tmp_path):
    """120000 shares a day at 10."""
    made = MadeMarket(tmp_path)
    made.daily(A, [day_row(day, 10.0, 10.0, 10.3, 9.7, 120000) for day in days_from('2024-03-04', 3)])
    return made


@pytest.mark.parametrize('ratio, amount, filled, status', [
    (1, 300000, 120000, 'canceled'), (1, 120000, 120000, 'held'), (0.25, 50000, 30000, 'canceled'),
    (0.25, 30000, 30000, 'held'), (0.00033, 100, 39, 'canceled'), (0.000001, 100, 0, 'canceled')])
def test_what_goes_beyond_the_share_is_cancelled_at_market(small, tmp_path, ratio, amount, filled, status):
    result, lines = play(small, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', %r)
        run_daily(buy, '9:30')

    def buy(context):
        placed = order('%s', %d)
        assert (placed.amount, placed.filled, str(placed.status)) == (%d, %d, '%s')
        assert context.portfolio.locked_cash == 0 and not get_open_orders()
    ''' % (ratio, A, amount, amount, filled, status), ('2024-03-04', '2024-03-04'))
    assert rows_of(result)[0][1:3] == (filled, status)
    assert any('大于当日成交量 120000 股的 %g 倍' % ratio in line for line in lines) == (status == 'canceled')


def test_a_sale_is_filled_alike_and_what_is_left_can_be_sold_later(small, tmp_path):
    result, _ = play(small, tmp_path, '''
    def begin(context):
        run_daily(trade, '9:30')

    def trade(context):
        if not context.portfolio.positions:
            order('%s', 120000)
        else:
            set_option('order_volume_ratio', 0.1000083)
            placed = order_target('%s', 0)
            assert (placed.filled, str(placed.status)) == (12000, 'canceled')
            assert context.portfolio.positions['%s'].total_amount == 108000
            assert context.portfolio.positions['%s'].closeable_amount == 108000
    ''' % (A, A, A, A), ('2024-03-04', '2024-03-05'))
    assert [row['filled'] for row in result.orders] == [120000, 12000]


@pytest.mark.parametrize('limit, told', [
    (10.5, '15:00 的 K 线成交 120000 股，它的 0.5 倍不够成交剩余的 240000 股'),
    (10.0, '15:00 的 K 线成交 120000 股，它的 0.5 倍不够成交剩余的 300000 股'), (9.7, '价格 10 不在委托价 9.7 以内')])
def test_the_end_of_a_resting_order_names_what_was_in_its_way(small, tmp_path, limit, told):
    """At 10.5 60000 fill at once and 60000 by the close; a bid of 9.7 needs a price below it."""
    result, lines = play(small, tmp_path, '''
    def begin(context):
        set_option('order_volume_ratio', 0.5)
        set_slippage(FixedSlippage(0.02 if %r == 10.0 else 0))
        run_daily(buy, '9:30')

    def buy(context):
        order('%s', 300000, LimitOrderStyle(%r))
    ''' % (limit, A, limit), ('2024-03-04', '2024-03-04'))
    assert told in result.orders[0]['message'] and any(told in line for line in lines)
