"""Prices of one security, and what an order takes from them."""


class Book:
    """last: last price. bids and asks: [[price, shares]], best first; shares None: as many as anybody wants.

    high, low: the day's limits, None where there are none. Levels are used up by fills.
    """

    def __init__(self):
        self.last, self.bids, self.asks = 0.0, [], []
        self.high = self.low = None
        self.suspended, self.name = False, ''

    def set_price(self, price, volume=None):
        """Everybody trades at this price, `volume` shares on each side."""
        self.last, self.bids, self.asks = price, [[price, volume]], [[price, volume]]

    def set_depth(self, bids, asks):
        self.bids, self.asks = [list(level) for level in bids], [list(level) for level in asks]

    def opposite(self, buy):
        return self.asks if buy else self.bids

    def best(self, buy):
        """Best price of the side that the order would trade against, or the last price."""
        levels = self.opposite(buy)
        return levels[0][0] if levels else self.last

    def reference(self, buy):
        """What the price cage is measured from."""
        return self.best(buy) or self.last

    def take(self, buy, limit, volume):
        """[(price, shares)] that an order gets now."""
        fills, levels = [], self.opposite(buy)
        while volume and levels and reaches(buy, limit, levels[0][0]):
            price, offered = levels[0]
            part = volume if offered is None else min(volume, offered)
            fills.append((price, part))
            volume -= part
            self._use_up(levels, part)
        return fills

    @staticmethod
    def _use_up(levels, part):
        if levels[0][1] is not None:
            levels[0][1] -= part
            if not levels[0][1]:
                del levels[0]

    def available(self, buy, limit):
        """Shares within the limit; infinite where a level has no end."""
        within = [offered for price, offered in self.opposite(buy) if reaches(buy, limit, price)]
        return float('inf') if None in within else sum(within)


def reaches(buy, limit, price):
    return price <= limit if buy else price >= limit
