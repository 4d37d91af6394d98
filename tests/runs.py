"""Results of runs that never were: what metrics and report are tested on. Python's own random numbers only."""
import math
import random
from collections import OrderedDict
from datetime import date, datetime, timedelta

from jq_helper import BacktestResult

NAMES = OrderedDict([
    ('000001.XSHE', '平安银行'), ('000333.XSHE', '美的集团'), ('000651.XSHE', '格力电器'), ('000858.XSHE', '五 粮 液'),
    ('002415.XSHE', '海康威视'), ('300750.XSHE', '宁德时代'), ('600036.XSHG', '招商银行'), ('600276.XSHG', '恒瑞医药'),
    ('600519.XSHG', '贵州茅台'), ('600887.XSHG', '伊利股份'), ('601318.XSHG', '中国平安'), ('510300.XSHG', '沪深300ETF')])
COSTS = 0.0003, 0.001  # commission, tax of sales


def weekdays(start, count):
    """That many dates from `start` on that are no Saturday or Sunday."""
    days, day = [], start
    while len(days) < count:
        if day.weekday() < 5:
            days.append(day)
        day += timedelta(1)
    return days


def curve_result(growth, benchmark=None, capital=1000000.0, start=date(2024, 1, 2), **more):
    """A run without trades whose equity is capital * growth."""
    equity = [capital * value for value in growth]
    return BacktestResult(name='curve.py', days=weekdays(start, len(equity)), equity=equity,
                          capital=[capital] * len(equity), cash=equity, positions_value=[0.0] * len(equity),
                          benchmark=benchmark, **more)


def sale(profit, **more):
    """A trade row of a sale with this profit."""
    return dict(dict(time=datetime(2024, 1, 3, 9, 30), order_id='1', security='000001.XSHE', name='平安银行', side='SELL',
                     amount=100, price=10.0, value=1000.0, commission=5.0, tax=1.0, profit=profit), **more)


class Market:
    """Closes of all securities and an index, by a common factor and a noise of each."""

    def __init__(self, days, codes, seed):
        self.random, self.days = random.Random(seed), days
        self.index, self.closes = [], OrderedDict((code, []) for code in codes)
        level, prices = 1.0, {code: self.random.uniform(5, 90) for code in codes}
        for number in range(len(days)):
            common = self.random.gauss(0.0002 + 0.0012 * math.sin(number / 180.0), 0.011)
            level *= math.exp(common)
            self.index.append(level)
            for code in codes:
                prices[code] *= math.exp(0.9 * common + self.random.gauss(0.0002, 0.013))
                self.closes[code].append(round(prices[code], 2))


class Walk:
    """A momentum strategy on a Market: every month into the four that rose most, a fifth of the money in each."""

    def __init__(self, market, cash, names):
        self.market, self.cash, self.names = market, cash, names
        self.held, self.costs, self.order_id = {}, {}, 0
        self.result = BacktestResult(name='动量轮动.py', benchmark=[])

    def run(self, capital):
        month = None
        for number, day in enumerate(self.market.days):
            if day.month != month and number >= 20:
                self.rebalance(number)
            month = day.month
            self.close(number, day, capital)
        return self.result

    def price(self, code, number):
        return self.market.closes[code][number]

    def rebalance(self, number):
        ranked = sorted(self.market.closes, key=lambda code: self.price(code, number) / self.price(code, number - 20))
        chosen = [code for code in ranked[-4:] if self.price(code, number) > self.price(code, number - 20)]
        for code in [code for code in self.held if code not in chosen]:
            self.trade(number, code, 'SELL', self.held[code])
        worth = self.cash + self.worth(number)
        for code in chosen:
            amount = int(worth / 5 / self.price(code, number) / 100) * 100
            if code not in self.held and 0 < amount * self.price(code, number) * 1.001 < self.cash:
                self.trade(number, code, 'BUY', amount)

    def trade(self, number, code, side, amount):
        price = self.price(code, number)
        value = price * amount
        commission, tax = max(5.0, value * COSTS[0]), value * COSTS[1] if side == 'SELL' else 0.0
        profit = None
        if side == 'BUY':
            self.cash -= value + commission
            self.held[code], self.costs[code] = amount, (value + commission) / amount
        else:
            self.cash += value - commission - tax
            profit = value - commission - tax - amount * self.costs[code]
            del self.held[code]
        self.order_id += 1
        time = datetime.combine(self.market.days[number], datetime.min.time()).replace(hour=9, minute=30)
        both = OrderedDict(order_id=str(self.order_id), security=code, name=self.names[code], side=side, amount=amount)
        self.result.trades.append(dict(both, time=time, price=price, value=value, commission=commission, tax=tax,
                                       profit=profit))
        self.result.orders.append(dict(both, add_time=time, filled=amount, order_price=None, avg_price=price,
                                       status='held', message=''))

    def worth(self, number):
        return sum(amount * self.price(code, number) for code, amount in self.held.items())

    def close(self, number, day, capital):
        result, worth = self.result, self.worth(number)
        for values, value in ((result.days, day), (result.equity, self.cash + worth), (result.capital, capital),
                              (result.cash, self.cash), (result.positions_value, worth),
                              (result.benchmark, self.market.index[number])):
            values.append(value)
        for code, amount in self.held.items():
            price = self.price(code, number)
            result.positions.append(OrderedDict(
                date=day, security=code, name=self.names[code], amount=amount, avg_cost=self.costs[code], price=price,
                value=price * amount, profit=(price - self.costs[code]) * amount,
                weight=price * amount / (self.cash + worth)))
        result.records.append((day, OrderedDict([('持股数', float(len(self.held))), ('仓位', worth / (self.cash + worth))])))


def long_run(days=2430, names=NAMES, seed=7, start=date(2015, 1, 5), **more):
    """A run over `days` trade days (2430 are ten years) with some hundred trades, whose figures agree."""
    market = Market(weekdays(start, days), list(names), seed)
    result = Walk(market, 1000000.0, names).run(1000000.0)
    result.params = OrderedDict([
        ('start', str(market.days[0])), ('end', str(market.days[-1])), ('cash', '1000000'), ('frequency', '日线'),
        ('benchmark', '000300.XSHG'), ('use_real_price', 'True'), ('滑点', 'PriceRelatedSlippage(0.00246)')])
    result.prices = OrderedDict((code, (market.days, closes)) for code, closes in market.closes.items())
    result.source = 'def initialize(context):\n    set_benchmark("000300.XSHG")\n    run_monthly(rebalance, 1)\n'
    for row in result.positions[::90]:
        result.dividends.append(dict(date=row['date'], security=row['security'], name=row['name'], amount=row['amount'],
                                     cash=row['amount'] * 0.4, tax=row['amount'] * 0.1, shares=0))
    for name, value in more.items():
        setattr(result, name, value)
    return result


EVIL = '</script><script>window.evil=1</script><img src=x onerror="window.evil=2">\'"&<!--\u202e\u2028\x00\ud800'


def evil_run():
    """A run in which every text that comes from a strategy or from data wants to be markup."""
    result = long_run(60, OrderedDict((code, EVIL) for code in list(NAMES)[:4]))
    result.name, result.source, result.messages = EVIL, EVIL, [EVIL + '\n' + EVIL]
    result.finished, result.params = False, OrderedDict([(EVIL, EVIL), ('frequency', EVIL), ('benchmark', EVIL)])
    result.prices = OrderedDict((EVIL + code, prices) for code, prices in result.prices.items())
    for row in result.trades + result.orders + result.positions + result.dividends:
        row.update(security=EVIL + row['security'], order_id=EVIL)
    for row in result.orders:
        row.update(status=EVIL, message=EVIL, side=EVIL)
    result.records = [(day, OrderedDict((EVIL + name, value) for name, value in values.items()))
                      for day, values in result.records]
    return result


def busy_run(securities=20, trades=20000, days=2430):
    """Ten years with so many securities and trades; its figures need not agree."""
    names = OrderedDict(('%06d.XSHE' % number, '证券%d' % number) for number in range(1, securities + 1))
    result, chance = long_run(days, names), random.Random(1)
    codes = list(names)
    for number in range(trades):
        code, day = chance.choice(codes), chance.randrange(days)
        price = result.prices[code][1][day]
        both = dict(order_id=str(number), security=code, name=names[code], side=chance.choice(['BUY', 'SELL']))
        time = datetime.combine(result.days[day], datetime.min.time()).replace(hour=10)
        result.trades.append(dict(both, time=time, amount=100, price=price, value=100 * price, commission=5.0, tax=0.0,
                                  profit=1.5 if both['side'] == 'SELL' else None))
        result.orders.append(dict(both, add_time=time, amount=100, filled=100, order_price=price, avg_price=price,
                                  status='held', message=''))
    return result
