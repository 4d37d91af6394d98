"""Strategies on real days, their results computed a second time by plain arithmetic on the files."""
import csv
import math
import os

import pytest

import jq_helper as jq
from tests.engine import DATA, REAL, strategy_path

MOUTAI, UNIS = '600519.XSHG', '000938.XSHE'


def real_days(code, start, end):
    """Rows of the file as dicts of floats, and all rows before `start` as well."""
    with open(os.path.join(DATA, code + '_1d.csv'), encoding='utf-8') as file:
        rows = [dict({key: float(value) for key, value in row.items() if key != 'date'}, date=row['date'])
                for row in csv.DictReader(file)]
    return [row for row in rows if row['date'] <= end], sum(row['date'] < start for row in rows)


def rounded(value):
    """Half up to the cent: the exact figures of these tests never lie on a half."""
    return math.floor(value * 100 + 0.5 + 1e-7) / 100


class Account:
    """Cash and one holding, at JoinQuant's default costs."""

    def __init__(self, cash, spread):
        self.cash, self.held, self.spread, self.trades = cash, 0, spread, []

    def buy(self, day, price, budget):
        amount = int(budget / (price * 1.0003) + 1e-6) // 100 * 100
        if amount:
            paid = rounded(price + self.spread)
            self.cash -= amount * paid + max(5, amount * paid * 0.0003)
            self.held += amount
            self.trades.append((day, 'BUY', amount, paid))

    def sell(self, day, price):
        paid = rounded(price - self.spread)
        value = self.held * paid
        self.cash += value - max(5, value * 0.0003) - value * 0.001
        self.trades.append((day, 'SELL', self.held, paid))
        self.held = 0

    def dividend(self, row, before):
        """The files know cash only: what the reference price fell by, less a flat fifth."""
        if self.held and abs(row['pre_close'] - before['close']) > 1e-6:
            self.cash += self.held * (before['close'] - row['pre_close']) * 0.8


def moving_average(start, end, fast=5, slow=20):
    """The same strategy by hand: closes adjusted to the day itself, each rounded to the cent."""
    rows, first = real_days(MOUTAI, start, end)
    account, equity = Account(1000000.0, 0.01), {}
    for number in range(first, len(rows)):
        row, window = rows[number], rows[number - slow:number]
        account.dividend(row, rows[number - 1])
        ratios, ratio = [], 1.0
        for later, earlier in zip(reversed(rows[number - slow + 1:number + 1]), reversed(window)):
            ratio *= later['pre_close'] / earlier['close']
            ratios.append(ratio)
        closes = [rounded(bar['close'] * ratio) for bar, ratio in zip(window, reversed(ratios))]
        high, low = sum(closes[-fast:]) / fast, sum(closes) / slow
        if high > low and not account.held:
            account.buy(row['date'], row['open'], account.cash)
        elif high < low and account.held:
            account.sell(row['date'], row['open'])
        equity[row['date']] = account.cash + account.held * row['close']
    return account, equity


def shown(trades):
    return [(str(row['time'].date()), row['side'], row['amount'], row['price']) for row in trades]


def test_moving_average_on_eight_years_of_moutai():
    start, end = '2012-01-04', '2019-12-31'
    result = jq.backtest(strategy_path('moving_average'), start, end, provider=REAL)
    account, equity = moving_average(start, end)
    assert shown(result.trades) == account.trades and len(account.trades) > 100
    ours = dict(zip(map(str, result.days), result.equity))  # suspended days have no row in the file
    assert {day: ours[day] for day in equity} == pytest.approx(equity, abs=0.01)
    assert result.finished and result.days[0].isoformat() == start and len(result.days) == 1945
    assert len(result.dividends) == 7
    assert result.cash[-1] == pytest.approx(account.cash, abs=0.01)
