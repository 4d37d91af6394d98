"""Money and shares of one account, exact to the cent.

T+1: shares bought today cannot be sold today, save where the market allows it (XTQUANT.md: can_use_volume,
on_road_volume, yesterday_volume). A resting buy freezes money, a resting sale freezes shares.
"""
from collections import OrderedDict
from decimal import Decimal

from tests.terminal.rules import rules_of


def money(value):
    """A float that came from outside -> the decimal that it was written as."""
    return Decimal(repr(float(value)))


class Holding:
    """Shares of one security. cost: yuan paid for them, fees included."""

    def __init__(self, volume=0, cost=Decimal(0)):
        self.volume, self.cost = volume, cost
        self.yesterday, self.bought_today, self.frozen = volume, 0, 0

    def usable(self, same_day):
        return self.volume - self.frozen - (0 if same_day else self.bought_today)

    def buy(self, volume, paid):
        self.volume += volume
        self.bought_today += volume
        self.cost += paid

    def sell(self, volume):
        self.cost -= self.cost * volume / self.volume
        self.volume -= volume
        self.bought_today = min(self.bought_today, self.volume)


class Account:
    """cash: what can be spent; frozen: held by resting buys. status: login state, 0 is logged in."""

    def __init__(self, account_id, cash, account_type=2):
        self.account_id, self.account_type, self.status = account_id, account_type, 0
        self.cash, self.frozen, self.holdings = money(cash), Decimal(0), OrderedDict()

    def holding(self, code):
        return self.holdings.setdefault(code, Holding())

    def freeze(self, amount):
        self.cash -= amount
        self.frozen += amount

    def usable(self, code):
        return self.holding(code).usable(rules_of(code).t0)

    def next_day(self):
        """Today's purchases become saleable; empty holdings disappear."""
        for code, holding in list(self.holdings.items()):
            holding.yesterday, holding.bought_today = holding.volume, 0
            if not holding.volume:
                del self.holdings[code]

    def asset_row(self, price_of):
        value = sum((holding.volume * money(price_of(code)) for code, holding in self.holdings.items()), Decimal(0))
        return {'account_type': self.account_type, 'account_id': self.account_id, 'cash': float(self.cash),
                'frozen_cash': float(self.frozen), 'market_value': float(value), 'fetch_balance': float(self.cash),
                'total_asset': float(self.cash + self.frozen + value)}

    def position_rows(self, price_of, name_of):
        """One row for each security held today, also one that was sold out today."""
        return [self._position_row(code, price_of(code), name_of(code)) for code, holding in self.holdings.items()
                if holding.volume or holding.yesterday]

    def _position_row(self, code, last, name):
        holding = self.holdings[code]
        average = float(holding.cost / holding.volume) if holding.volume else 0.0
        return {'account_type': self.account_type, 'account_id': self.account_id, 'stock_code': code,
                'volume': holding.volume, 'can_use_volume': self.usable(code), 'frozen_volume': holding.frozen,
                'on_road_volume': holding.bought_today, 'yesterday_volume': holding.yesterday, 'open_price': average,
                'avg_price': average, 'last_price': last, 'market_value': float(holding.volume * money(last)),
                'profit_rate': last / average - 1 if average else 0.0, 'instrument_name': name, 'direction': 48}
