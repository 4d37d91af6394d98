"""Strategies on real days, their results computed a second time by plain arithmetic on the files."""
import csv
import math
import os
import random
from datetime import date

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import DATA, REAL, MadeMarket, strategy_path

MOUTAI, UNIS = '600519.XSHG', '000938.XSHE'


def rounded(value):
    """Half up to the cent: the exact figures of these tests never lie on a half."""
    return math.floor(value * 100 + 0.5 + 1e-7) / 100


class RealDays:
    """The rows of both files along all trade days; what a file lacks is a suspended day at the last close."""

    def __init__(self):
        files = {code: self.read(code) for code in (MOUTAI, UNIS)}
        self.dates = sorted(set(files[MOUTAI]) | set(files[UNIS]))
        self.rows = {code: list(self.filled(rows)) for code, rows in files.items()}

    @staticmethod
    def read(code):
        with open(os.path.join(DATA, code + '_1d.csv'), encoding='utf-8') as file:
            return {row['date']: {key: float(value) for key, value in row.items() if key != 'date'}
                    for row in csv.DictReader(file)}

    def filled(self, rows):
        last = None
        for day in self.dates:
            row = rows.get(day)
            if row is None:  # where it is there and suspended, it may have gone ex meanwhile
                row = dict.fromkeys(('open', 'close', 'high', 'low', 'pre_close'), last['close'])
                row = dict(row, volume=0.0, money=0.0, paused=1.0)
            last = row
            yield row

    def numbers(self, start, end):
        return [number for number, day in enumerate(self.dates) if start <= day <= end]

    def adjusted(self, code, number, count):
        """The closes of the `count` days before, on the price level of day `number`."""
        closes, ratio = [], 1.0
        for place in range(number, number - count, -1):
            ratio *= self.rows[code][place]['pre_close'] / self.rows[code][place - 1]['close']
            closes.append(rounded(self.rows[code][place - 1]['close'] * ratio))
        return closes[::-1]

    def first_of(self, start, end, period):
        """The numbers of the first days of each week or month in the span."""
        firsts = {}
        for number in self.numbers(start, end):
            day = date(*map(int, self.dates[number].split('-')))
            firsts.setdefault(period(day), number)
        return sorted(firsts.values())


REAL_DAYS = RealDays()
# New shares a share, as the companies told them.
BONUS = {(MOUTAI, '2011-07-01'): 0.1, (MOUTAI, '2014-06-25'): 0.1, (MOUTAI, '2015-07-17'): 0.1,
         (UNIS, '2018-07-05'): 0.4, (UNIS, '2019-05-27'): 0.4}


class Account:
    """Cash and holdings at given costs, by plain arithmetic. spread(price): what slippage adds."""

    def __init__(self, spread=lambda price: 0.0, rate=0.0003, cash=1000000.0):
        self.cash, self.held, self.trades = cash, {}, []
        self.spread, self.rate = spread, rate

    def fee(self, value):
        return max(5, value * self.rate)

    def buy(self, number, code, price, amount):
        """Cut to cash, then to lots; nothing at the upper price limit."""
        row = REAL_DAYS.rows[code][number]
        amount = min(amount, int(self.cash / (price * (1 + self.rate)) + 1e-6)) // 100 * 100
        paid = rounded(price + self.spread(price))
        if amount > 0 and not row['paused'] and paid < rounded(row['pre_close'] * 1.1):
            self.cash -= amount * paid + self.fee(amount * paid)
            self.held[code] = self.held.get(code, 0) + amount
            self.trades.append((REAL_DAYS.dates[number], code, 'BUY', amount, paid))

    def sell(self, number, code, price, amount):
        row = REAL_DAYS.rows[code][number]
        amount = amount if amount == self.held[code] else amount // 100 * 100
        paid = rounded(price - self.spread(price))
        if amount > 0 and not row['paused'] and paid > rounded(row['pre_close'] * 0.9):
            self.cash += amount * paid - self.fee(amount * paid) - amount * paid * 0.001
            self.held[code] -= amount
            self.trades.append((REAL_DAYS.dates[number], code, 'SELL', amount, paid))
            if not self.held[code]:
                del self.held[code]

    def target(self, number, code, price, shares):
        held = self.held.get(code, 0)
        if shares > held:
            self.buy(number, code, price, shares - held)
        elif shares < held:
            self.sell(number, code, price, held - shares)

    def dividends(self, number):
        """New shares by the plans of the time; what the reference price fell by besides is cash, less a flat fifth."""
        for code, amount in self.held.items():
            bonus = BONUS.get((code, REAL_DAYS.dates[number]), 0.0)
            paid = (REAL_DAYS.rows[code][number - 1]['close']
                    - REAL_DAYS.rows[code][number]['pre_close'] * (1 + bonus))
            self.cash += amount * paid * 0.8 if paid > 1e-6 else 0.0
            self.held[code] = int(amount * (1 + bonus) + 1e-6)

    def worth(self, number, field='close'):
        return self.cash + sum(amount * REAL_DAYS.rows[code][number][field] for code, amount in self.held.items())


def agree(result, account, equity):
    """Whether both did the same, to the cent."""
    shown = [(str(row['time'].date()), row['security'], row['side'], row['amount'], row['price'])
             for row in result.trades]
    assert shown == account.trades
    assert result.equity == pytest.approx(equity, abs=0.01)
    assert result.cash[-1] == pytest.approx(account.cash, abs=0.01) and result.finished
    assert [day.isoformat() for day in result.days] == [day for day in REAL_DAYS.dates
                                                        if str(result.days[0]) <= day <= str(result.days[-1])]


def backtest(name, start, end, **options):
    return jq.backtest(strategy_path(name), start, end, provider=REAL, **options)


def traded_closes(code, number, count):
    """attribute_history: without suspended days."""
    closes, back = [], number
    while len(closes) < count:
        back -= 1
        if not REAL_DAYS.rows[code][back]['paused']:
            closes.append(REAL_DAYS.adjusted(code, number, number - back)[0])
    return closes[::-1]


def test_moving_average_on_eight_years():
    start, end = '2012-01-04', '2019-12-31'
    result, account, equity = backtest('moving_average', start, end), Account(lambda price: 0.01), []
    for number in REAL_DAYS.numbers(start, end):
        account.dividends(number)
        closes, price = traded_closes(MOUTAI, number, 20), REAL_DAYS.rows[MOUTAI][number]['open']
        fast, slow = sum(closes[-5:]) / 5, sum(closes) / 20
        if fast > slow and MOUTAI not in account.held:
            account.buy(number, MOUTAI, price, int(account.cash / price))
        elif fast < slow and MOUTAI in account.held:
            account.sell(number, MOUTAI, price, account.held[MOUTAI])
        equity.append(account.worth(number))
    agree(result, account, equity)
    assert len(account.trades) > 100 and len(result.dividends) == 7


def test_parameters_replace_the_module_s_constants():
    usual = backtest('moving_average', '2012-01-04', '2012-12-31')
    changed = backtest('moving_average', '2012-01-04', '2012-12-31', params={'FAST': 10, 'SLOW': 30})
    assert changed.params['参数 FAST'] == '10' and len(changed.trades) != len(usual.trades)


def test_weekly_rotation_of_two_stocks():
    start, end = '2013-01-04', '2018-12-28'
    result, account, equity = backtest('weekly_rotation', start, end), Account(), []
    weeks = REAL_DAYS.first_of(start, end, lambda day: tuple(day.isocalendar())[:2])
    for number in REAL_DAYS.numbers(start, end):
        account.dividends(number)
        if number in weeks:
            rotate(account, number)
        equity.append(account.worth(number))
    agree(result, account, equity)
    assert len(account.trades) > 100


def rotate(account, number):
    gains, today = {}, {code: REAL_DAYS.rows[code][number] for code in (MOUTAI, UNIS)}
    for code in (MOUTAI, UNIS):
        closes = REAL_DAYS.adjusted(code, number, 21)
        gains[code] = closes[-1] / closes[0]
    best = max((MOUTAI, UNIS), key=gains.get)
    for code in list(account.held):
        if code != best:
            account.sell(number, code, today[code]['open'], account.held[code])
    if best not in account.held:
        account.buy(number, best, today[best]['open'], int(account.cash / today[best]['open']))


def test_target_values_each_month():
    start, end = '2014-01-02', '2018-12-28'
    result, account, equity = backtest('target_value', start, end), Account(lambda price: price * 0.001, 0.0002), []
    months = REAL_DAYS.first_of(start, end, lambda day: (day.year, day.month))
    for number in REAL_DAYS.numbers(start, end):
        account.dividends(number)
        if number in months:
            total = account.worth(number, 'open')
            prices = {code: REAL_DAYS.rows[code][number]['open'] for code in (MOUTAI, UNIS)}
            order = sorted((MOUTAI, UNIS), key=lambda code: -account.held.get(code, 0) * prices[code])
            for code in order:
                account.target(number, code, prices[code], int(total / 3 / prices[code]))
        equity.append(account.worth(number))
    agree(result, account, equity)
    assert len(account.trades) > 50


def test_bids_that_rest_and_are_cancelled():
    """Without minutes a bid of the open fills where the day's low lies below it, at the bid."""
    start, end = '2018-01-02', '2018-12-28'
    result, account, equity, bids = backtest('limit_orders', start, end), Account(), [], 0
    for number in REAL_DAYS.numbers(start, end):
        account.dividends(number)
        row = REAL_DAYS.rows[MOUTAI][number]
        if MOUTAI in account.held:
            account.sell(number, MOUTAI, row['open'], account.held[MOUTAI])
        bid = rounded(REAL_DAYS.adjusted(MOUTAI, number, 1)[0] * 0.99)
        if row['open'] <= bid:
            account.buy(number, MOUTAI, row['open'], 200)
        elif row['low'] < bid:
            account.buy(number, MOUTAI, bid, 200)
        else:
            bids += 1
        equity.append(account.worth(number))
    agree(result, account, equity)
    assert result.records[-1][1]['canceled'] == bids > 50 and len(account.trades) > 50
    canceled = [row for row in result.orders if row['status'] == 'canceled']
    assert sum(row['side'] == 'BUY' for row in canceled) == bids
    # The one sale that failed: Moutai opened at its lower limit.
    assert [str(row['add_time'].date()) for row in canceled if row['side'] == 'SELL'] == ['2018-10-29']


@pytest.fixture
def minutes_of_moutai(tmp_path):
    """Real days of Moutai with made up minutes that add up to them; {day: columns}."""
    made, days, lines = MadeMarket(tmp_path), {}, []
    numbers = REAL_DAYS.numbers('2018-03-01', '2018-04-13')
    rows = [[REAL_DAYS.dates[number]] + [REAL_DAYS.rows[MOUTAI][number][name] for name in (
        'open', 'close', 'high', 'low', 'volume', 'money', 'pre_close', 'paused')] for number in numbers]
    made.daily(MOUTAI, rows)
    for day, opened, close, high, low, volume, money, _, _ in rows:
        bar = bq._StubBar(None, opened, close, high, low, int(volume), money, 0, None, None, False)
        columns = bq._minutes_of(random.Random(day), bar, 100)
        days[day] = {name: [value / 100 for value in columns[name]] for name in ('open', 'close', 'high', 'low')}
        for number, minute in enumerate(bq.BAR_MINUTES):
            prices = [days[day][name][number] for name in ('open', 'close', 'high', 'low')]
            lines.append(['%s %02d:%02d' % ((day,) + divmod(minute, 60))] + prices + [
                columns['volume'][number], columns['money'][number]])
    made.write_minutes(MOUTAI, lines)
    return made.source, days


@pytest.mark.parametrize('frequency, bars', [('day', 1), ('minute', 240)])
def test_tasks_within_the_day(minutes_of_moutai, frequency, bars):
    source, days = minutes_of_moutai
    result = jq.backtest(strategy_path('minute_tasks'), '2018-03-05', '2018-04-13', provider=source,
                         frequency=frequency)
    trades, held, today = [], 0, 0
    for day in [day for day in sorted(days) if day >= '2018-03-05']:
        closes = days[day]['close']
        at_ten, late = closes[29], closes[229]  # the bars that end at 10:00 and at 14:50
        today = 100 if at_ten < days[day]['open'][0] else 0
        trades += [(day, '10:00:00', 'BUY', 100, at_ten)] if today else []
        trades += [(day, '14:50:00', 'SELL', held, late)] if held else []
        held = today
    shown = [(str(row['time'])[:10], str(row['time'])[11:], row['side'], row['amount'], row['price'])
             for row in result.trades]
    assert shown == trades and len(trades) > 20
    assert [values['bars'] for _, values in result.records] == [bars * n for n in range(1, len(result.days) + 1)]
    assert result.messages == []


def test_funds_within_the_day_and_beside_it():
    """On the paper exchange, whose bars the test reads on its own way."""
    start, end = '2022-03-01', '2022-03-31'
    with jq.opened_provider('stub') as provider:
        result = jq.backtest(strategy_path('etf_pair'), start, end, provider=provider)
        gold = provider.get_price('518880.XSHG', start, end, fields=['open'], fq=None)['open']
        late = {day: provider.get_price('518880.XSHG', end_date='%s 14:59:00' % day.date(), count=1, frequency='1m',
                                        fq=None)['close'].iloc[-1] for day in gold.index}
    cash = 1000000.0
    for number, (day, opened) in enumerate(gold.items()):
        amount, bought = int(100000 / opened) // 100 * 100, round(opened + 0.001, 3)
        sold = round(late[day] - 0.001, 3)
        cash -= amount * bought + max(0.1, amount * bought * 0.0001)
        cash += amount * sold - max(0.1, amount * sold * 0.0001)
        if not number:
            index = next(row for row in result.trades if row['security'] == '510300.XSHG')
            cash -= index['value'] + index['commission']
        assert result.cash[number] == pytest.approx(cash, abs=0.01)
    assert len(result.trades) == 2 * len(gold) + 1 and all(row['tax'] == 0 for row in result.trades)
    assert all(values['gold'] == 0 for _, values in result.records)


def test_a_dividend_of_moutai():
    """2018-06-15: 109.99 yuan for ten shares, the reference price fell by it."""
    result = backtest('dividends', '2018-06-13', '2018-06-20')
    only, = result.dividends
    assert str(only['date']) == '2018-06-15' and only['amount'] == 1000 and only['shares'] == 0
    rows = REAL_DAYS.rows[MOUTAI]
    number = REAL_DAYS.dates.index('2018-06-15')
    gross = 1000 * (rows[number - 1]['close'] - rows[number]['pre_close'])
    assert only['cash'] == pytest.approx(gross * 0.8, abs=0.01) and only['tax'] == pytest.approx(gross * 0.2, abs=0.01)
    assert [(str(day), values) for day, values in result.records] == [('2018-06-15', {'dividend': only['cash']})]
    bought, = result.trades
    after = result.positions[-1]
    assert after['avg_cost'] == pytest.approx((bought['value'] + bought['commission'] - only['cash']) / 1000)


HOLD = """
def initialize(context):
    set_option('use_real_price', True)


def handle_data(context, data):
    if not context.portfolio.positions:
        order('000938.XSHE', 1000)
"""


def test_new_shares_of_unisplendour(tmp_path):
    """2018-07-05: 4 new shares and 2 yuan for ten; the close before was 61.89, the reference price 44.06."""
    (tmp_path / 'hold.py').write_bytes(HOLD.encode('utf-8'))
    result = jq.backtest(str(tmp_path / 'hold.py'), '2018-07-03', '2018-07-05', provider=REAL)
    only, = result.dividends
    assert (only['amount'], only['shares']) == (1000, 400)
    assert only['cash'] + only['tax'] == pytest.approx(61.89 * 1000 - 44.06 * 1400)
    assert only['cash'] + only['tax'] == pytest.approx(200, abs=0.005 * 1400)
    assert [row['amount'] for row in result.positions] == [1000, 1000, 1400]
    bought, = result.trades
    assert result.positions[-1]['avg_cost'] == pytest.approx(
        (bought['value'] + bought['commission'] - only['cash']) / 1400)
    close = REAL_DAYS.rows[UNIS][REAL_DAYS.dates.index('2018-07-05')]['close']
    spent = bought['value'] + bought['commission']
    assert result.equity[-1] == pytest.approx(1000000 - spent + only['cash'] + 1400 * close)


def test_a_holding_that_is_suspended_for_months():
    result = backtest('suspended', '2014-12-01', '2015-06-12')
    sales = [str(row['time'].date()) for row in result.trades if row['side'] == 'SELL']
    paused = {str(day) for day, values in result.records if values['paused']}
    assert len(paused) == 102 and sales and not set(sales) & paused
    held = [row for row in result.positions if str(row['date']) in paused]
    assert len({row['price'] for row in held}) <= 1
