"""Each strategy of the tests in JoinQuant's simulated trading, a process a task, its account on the paper exchange."""
import json
import os
import re
import sys
from collections import OrderedDict
from datetime import datetime, time

import pytest

import jq_helper as jq
from tests import joinquant, joinquant_market
from tests.base import TOKEN
from tests.engine import DATA, REAL, strategy_path
from tests.live import stage
from tests.processes import LineProcess
from tests.test_live_same import Trades

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MOUTAI, UNIS, GOLD, INDEX = '600519.XSHG', '000938.XSHE', '518880.XSHG', '510300.XSHG'


def lines_of_the_readme(port):
    """What it tells users to add to a strategy."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        text = re.search(r'```python\n(def process_initialize.*?)```', file.read(), re.DOTALL).group(1)
    assert "port=58630, token='stub')" in text
    return '\n\n' + text.replace('58630', str(port)).replace("'stub'", repr(TOKEN))


def written_bars(folder, codes, first, last):
    """The paper exchange's own bars as files; days from a year before."""
    start, fields = '%d-%s' % (int(first[:4]) - 1, first[5:]), list(joinquant_market.FIELDS)
    with jq.opened_provider('stub') as provider:
        for code in codes:
            days = provider.get_price(code, start, last, '1d', fields + ['pre_close', 'paused'], fq=None)
            days.to_csv(os.path.join(folder, code + '_1d.csv'))
            minutes = provider.get_price(code, first, last + ' 15:00', '1m', fields, fq=None)
            minutes.to_csv(os.path.join(folder, code + '_1m.csv'))


class Simulation:
    """One strategy, unchanged but for the lines of the README, over simulated days.

    results: what each task's process told, with the account before it and its orders; orders and trades: rows of the
    paper exchange.
    """

    def __init__(self, there, name, market, days):
        self.there, self.market, self.days = there, market, days
        self.trades, self.orders, self.results = Trades(there), [], []
        with open(strategy_path(name), encoding='utf-8') as file:
            there.strategy(file.read() + lines_of_the_readme(there.server.address[1]), joinquant.STRATEGY)
        code = 'import sys; from tests import joinquant; joinquant.serve(*sys.argv[1:])'
        environment = dict(os.environ, PYTHONIOENCODING='utf-8', PYTHONPATH=ROOT)
        self.process = LineProcess([sys.executable, '-c', code, there.directory, market], env=environment, cwd=ROOT)

    def run(self):
        with self.process:
            first = self.task(datetime.combine(self.days[0], time()), None)
            for day in self.days:
                for now, name in joinquant_market.due(first['tasks'], first['names'], self.days, day):
                    self.there.clock.move(now)
                    self.results.append(self.task(now, name))
        return self

    def task(self, now, name):
        """What the process told, which is held against the account as it is now."""
        before = self.there.broker.get_account_info()
        self.process.send(json.dumps([str(now), name]))
        line = self.process.line_with('^(RESULT |FAILED )').string
        assert line.startswith('RESULT '), self.process.story()
        result = json.loads(line[len('RESULT '):])
        row = self.there.broker.get_account_info()
        assert result['account'] == ['JqPortfolio', row['total_value'], row['available_cash'], held_of(row)]
        assert result['own'] == [77.0, {}, []]
        self.trades._look()
        return dict(result, now=now, before=before, orders=self._new_orders(now))

    def _new_orders(self, now):
        known = {row['order_id'] for row in self.orders}
        new = [row for row in self.there.broker.get_orders() if row['order_id'] not in known]
        self.orders += new
        return [dict(row, time=now) for row in new]

    @property
    def warnings(self):
        return [line for result in self.results for line in result['log']]


def held_of(row):
    return {each['security']: [each['amount'], each['closeable_amount']] for each in row['positions']}


def simulated(tmp_path, name, first, last, codes=None):
    """(BacktestResult, Simulation that has run), both over the same days. codes: of made-up bars, else real days."""
    source, market = REAL, DATA
    if codes:
        source, market = 'stub', str(tmp_path.joinpath('market'))
        os.mkdir(market)
        written_bars(market, codes, first, last)
    result = jq.backtest(strategy_path(name), first, last, provider=source)
    with stage(tmp_path, first + ' 00:00', last + ' 23:00', stub_data=None if codes else DATA) as there:
        return result, Simulation(there, name, market, result.days).run()


def in_short(rows):
    """[(day and minute, security, side, shares)]."""
    return [(str(row['time'])[:16], row['security'], row['side'], row['amount']) for row in rows]


def assert_near(ours, theirs):
    """A backtest fills at the last price and the slippage, the paper exchange at the other side's price."""
    assert len(ours) == len(theirs)
    for row, other in zip(ours, theirs):
        assert abs(row['price'] - other['price']) < row['price'] * 0.002


def recorded(done):
    """[(day, {name: value})], as a BacktestResult has it."""
    found = OrderedDict()
    for result in done.results:
        found.setdefault(result['now'].date(), {}).update(result['recorded'])
    return [(day, pytest.approx(values)) for day, values in found.items() if values]


@pytest.mark.parametrize('name, first, last, trades', [
    ('moving_average', '2018-01-02', '2018-02-12', [
        ('2018-01-02 09:30', MOUTAI, 'BUY', 1400), ('2018-01-31 09:30', MOUTAI, 'SELL', 1400)]),
    ('suspended', '2018-10-15', '2018-10-30', [
        ('2018-10-15 09:30', UNIS, 'BUY', 1000), ('2018-10-26 09:30', UNIS, 'SELL', 1000)]),
    ('dividends', '2018-06-11', '2018-06-20', [('2018-06-11 09:30', MOUTAI, 'BUY', 1000)])])
def test_on_real_days_it_trades_as_in_its_backtest(tmp_path, name, first, last, trades):
    """But for the dividend, which the paper exchange does not pay, and of which JoinQuant, where nothing is held,
    tells nothing."""
    result, done = simulated(tmp_path, name, first, last)
    assert in_short(done.trades.rows) == in_short(result.trades) == trades
    assert in_short(row for task in done.results for row in task['orders']) == trades
    assert_near(done.trades.rows, result.trades)
    assert len(done.results) == len(result.days)
    assert recorded(done) == [each for each in result.records if name != 'dividends']
    assert len(done.warnings) == (5 if name == 'suspended' else 0) and all('停牌' in line for line in done.warnings)


@pytest.mark.parametrize('name, last, count', [('minute_tasks', '2024-03-15', 12), ('limit_orders', '2024-03-13', 6)])
def test_within_the_day_it_trades_as_in_its_backtest(tmp_path, name, last, count):
    result, done = simulated(tmp_path, name, '2024-03-04', last, [MOUTAI])
    assert in_short(done.trades.rows) == in_short(result.trades) and len(done.trades.rows) == count
    assert_near(done.trades.rows, result.trades)
    assert recorded(done) == result.records and done.warnings == []
    if name == 'limit_orders':
        orders = [(str(row['add_time'])[:16], row['security'], row['side'], row['amount']) for row in result.orders]
        assert in_short(row for task in done.results for row in task['orders']) == orders
        assert result.records[-1][1]['canceled'] == 5


def lots(shares):
    return int(shares) // 100 * 100


def affordable(cash, price):
    """The most lots whose value and fees at this price the cash covers."""
    shares = lots(cash / price)
    while shares * price + max(5, shares * price * 0.0003) + shares * price * 1e-5 > cash:
        shares -= 100
    return shares


def left_of(rows, cash):
    """The cash after these trades."""
    for row in rows:
        value = row['price'] * row['amount']
        cash += (value if row['side'] == 'SELL' else -value) - row['commission'] - row['tax']
    return cash


def test_a_rotation_buys_for_what_its_sale_brought(tmp_path):
    """The paper exchange's book holds less than a backtest's whole day: the rest of a sale is cancelled."""
    result, done = simulated(tmp_path, 'weekly_rotation', '2018-01-02', '2018-03-06')
    rows, (sale, buy) = done.trades.rows, [task['orders'] for task in done.results if task['orders']][-1]
    assert [row[:3] for row in in_short(rows)] == [row[:3] for row in in_short(result.trades)]
    assert in_short(rows)[0] == in_short(result.trades)[0] and sale['amount'] == result.trades[1]['amount']
    price = result.trades[2]['price']  # without slippage
    cash = left_of([row for row in rows if row['order_id'] != buy['order_id']], 1000000.0)
    assert (sale['filled'], buy['filled']) == (1300, 9000)
    assert buy['amount'] == min(lots(cash / price), affordable(cash, buy['order_price'])) == 14200
    assert len(done.results) == 10


def last_price(done, security, now):
    market = joinquant_market.Market(done.market)
    market.now = now
    return market.last_price(security)


def expected(done, task, values):
    """[(security, side, amount)] that are due for [(security, value to hold)]."""
    held, found = held_of(task['before']), []
    for security, value in values:
        missing = int(value / last_price(done, security, task['now'])) - held.get(security, [0])[0]
        if lots(abs(missing)):
            found.append((security, 'BUY' if missing > 0 else 'SELL', lots(abs(missing))))
    return found


def ordered(task):
    return [(row['security'], row['side'], row['amount']) for row in task['orders']]


def test_the_months_targets_are_those_of_the_remote_account(tmp_path):
    result, done = simulated(tmp_path, 'target_value', '2018-01-29', '2018-05-10')
    assert len(done.results) == 5
    for task in done.results:
        worth = {row['security']: row['market_value'] for row in task['before']['positions']}
        third = task['before']['total_value'] / 3
        pool = sorted([MOUTAI, UNIS], key=lambda code: -worth.get(code, 0))
        assert ordered(task) == expected(done, task, [(code, third) for code in pool])
    assert done.results[0]['now'] == result.trades[0]['time']
    assert [ordered(task) for task in done.results[:2]] == [
        [(MOUTAI, 'BUY', 400), (UNIS, 'BUY', 5100)], [(UNIS, 'BUY', 3800)]]
    assert [row['amount'] for row in result.trades[:2]] == [400, 5100]


def test_a_fund_is_bought_and_sold_within_the_day(tmp_path):
    result, done = simulated(tmp_path, 'etf_pair', '2024-03-04', '2024-03-08', [GOLD, INDEX])
    mornings, evenings = ([task for task in done.results if task['now'].time() == at]
                          for at in (time(9, 30), time(14, 59)))
    assert len(mornings) == len(evenings) == 5 and len(done.results) == 15
    for number, task in enumerate(mornings):
        assert ordered(task) == expected(done, task, [(GOLD, 100000)] + [(INDEX, 200000)] * (number == 0))
    for task in evenings:
        assert ordered(task) == [(GOLD, 'SELL', held_of(task['before'])[GOLD][1])]
    assert in_short(mornings[0]['orders']) == in_short(result.trades[:2])
    assert [row[:3] for row in in_short(done.trades.rows)] == [row[:3] for row in in_short(result.trades)]
