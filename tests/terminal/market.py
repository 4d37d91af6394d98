"""Market data of the terminal: what the server has, what was fetched into the local cache, and what is pushed.

XTQUANT.md, Data: history is missing until it is downloaded; empty answers differ by call; limits may read 0;
subscribe_quote pushes lists of records, subscribe_whole_quote single records; volume in lots or in shares.
"""
from collections import OrderedDict
from datetime import date

from tests.terminal import bars, rules
from tests.terminal.calendar import opens

BASE_PERIODS = {'tick': 'tick', '1m': '1m', '5m': '5m', '15m': '5m', '30m': '5m', '60m': '5m', '1h': '5m', '1d': '1d',
                '1w': '1d', '1mon': '1d'}
SECTOR_TABLE = 2009  # download_sector_data asks for this table
# Sector -> markets, kind, boards (None: all).
SECTORS = OrderedDict([
    ('沪深A股', (('SH', 'SZ'), 'stock', None)), ('上证A股', (('SH',), 'stock', None)),
    ('深证A股', (('SZ',), 'stock', None)), ('京市A股', (('BJ',), 'stock', None)),
    ('科创板', (('SH',), 'stock', ('star',))), ('创业板', (('SZ',), 'stock', ('chinext',))),
    ('沪深ETF', (('SH', 'SZ'), 'etf', None)), ('沪市ETF', (('SH',), 'etf', None)), ('深市ETF', (('SZ',), 'etf', None)),
    ('沪深基金', (('SH', 'SZ'), 'fund', None)), ('沪市基金', (('SH',), 'fund', None)),
    ('深市基金', (('SZ',), 'fund', None)), ('沪深指数', (('SH', 'SZ'), 'index', None)),
    ('沪市指数', (('SH',), 'index', None)), ('深市指数', (('SZ',), 'index', None)),
    ('沪深转债', (('SH', 'SZ'), 'bond', None)), ('上证转债', (('SH',), 'bond', None)),
    ('深证转债', (('SZ',), 'bond', None))])
TICK_ZEROS = ('lastPrice', 'open', 'high', 'low', 'lastClose', 'amount')


class Security:
    """One instrument. minutes: {date: rows}; make_days() -> {date: day bar}, called when they are first needed."""

    def __init__(self, code, name, price, listed, expires):
        self.code, self.name, self.listed, self.expires = code, name, listed, expires
        self.rules = rules.rules_of(code)
        self.minutes, self.ticks, self.dividends, self.make_days, self._days = {}, [], {}, OrderedDict, None
        self.pre_close, self.suspended, self.tick = price, False, None

    @property
    def days(self):
        """{date: day bar} as the server has them."""
        if self._days is None:
            self._days = self.make_days()
        return self._days

    def set_day(self, day, row):
        self._days = OrderedDict(sorted(list(self.days.items()) + [(day, row)]))

    @property
    def factors(self):
        """{'YYYYMMDD': factor dict} of the ex-dates."""
        found, before = OrderedDict(), None
        for day, row in self.days.items():
            if day in self.dividends and before:
                found[day.strftime('%Y%m%d')] = _factor(row['time'], self.dividends[day], before / row['preClose'])
            before = row['close']
        return found

    @property
    def lot(self):
        """Shares in what data calls a lot."""
        return 10 if self.rules.kind == 'bond' else 100

    def in_sector(self, markets, kind, boards):
        kinds = ('etf', 'lof') if kind == 'fund' else (kind,)
        return (self.code[-2:] in markets and self.rules.kind in kinds
                and (boards is None or self.rules.board in boards))

    def minutes_of(self, day):
        if day not in self.minutes:
            self.minutes[day] = bars.minutes_of(self.code, self.days[day])
        return self.minutes[day]


class Subscription:
    """codes: what it covers, codes or market names; whole: payload {code: record} instead of {code: [records]}.

    key: how the client that subscribed tells its pushes apart.
    """

    def __init__(self, link, key, codes, period, whole):
        self.link, self.key, self.codes, self.period, self.whole = link, key, tuple(codes), period, whole

    def covers(self, code):
        return code in self.codes or code[-2:] in self.codes

    def payload(self, record, code):
        return {code: record if self.whole else [record]}


class Market:
    """Securities, calendar and subscriptions.

    Switches: everything_local (no download needed); volume_in_lots {'1d': True, '1m': True} by base period;
    limits_in_detail (False: UpStopPrice and DownStopPrice read 0); download_version (None, or 1 for the vendor's
    second path); sectors_local, weights_local (False: [] and {} until downloaded); subscription_limit of single
    subscriptions a client may have. downloads: what was asked for, as (codes, period, start, end).
    padding: how days look that are not local: None (they are left out), 'zeros', or 'close', the close before them with
    suspendFlag 1. download_brings: False where a download does nothing, and says that it is done.
    """

    def __init__(self, clock, first_day=date(2024, 1, 2)):
        self.clock, self.first_day = clock, first_day
        self.securities, self.custom_sectors, self.weights = OrderedDict(), OrderedDict(), {}
        self.everything_local, self.limits_in_detail, self.download_version = False, True, None
        self.volume_in_lots = {'1d': True, '1m': True}
        self.sectors_local, self.weights_local, self.holidays_local = True, False, False
        self.subscription_limit, self.downloads = 50, []
        self.padding, self.download_brings = None, True
        self._local, self._subscriptions, self._next_seq, self._events = {}, OrderedDict(), 1, []
        self._trade_days = None

    def take_events(self):
        """[(link, key, payload)] of pushes since the last call."""
        events, self._events = self._events, []
        return events

    def today(self):
        return self.clock.now().date()

    # -- the world -----------------------------------------------------------------------------------------------
    def add_security(self, code, name, price=10.0, listed='19991110', expires=None, dividends=None, suspended=(),
                     first_day=None):
        """A made-up security with day and minute bars up to yesterday, which closed at `price`.

        dividends: {'YYYYMMDD': {'interest': yuan, 'bonus': shares, 'gift': shares}} per share; suspended: days.
        """
        security = self.securities[code] = Security(code, name, price, listed, expires)
        security.dividends = {bars.parse_day(day): bars.Dividend(**what) for day, what in (dividends or {}).items()}
        first, last = max(self.first_day, bars.parse_day(first_day or listed)), bars.parse_day(expires or '99991231')
        days = [day for day in self.trade_days() if first <= day <= last and day < self.today()]
        security.make_days = lambda: OrderedDict(zip(days, bars.random_walk(
            code, days, price, security.rules.tick, security.dividends, set(map(bars.parse_day, suspended)))))

    def set_bars(self, code, period, rows):
        """Rows of 1d or 1m as `bars.bar` makes them, volume in shares, in place of the made-up ones of their days."""
        security, touched = self.securities[code], set()
        for row in rows:
            day = bars.beijing(row['time']).date()
            if period == '1d':
                security.set_day(day, row)
            else:
                security.minutes[day] = (security.minutes[day] if day in touched else []) + [row]
                touched.add(day)

    def set_sector(self, name, codes):
        self.custom_sectors[name] = list(codes)

    def set_weights(self, index, weights):
        self.weights[index] = dict(weights)

    def set_suspended(self, code, suspended=True):
        """Suspended today."""
        self.securities[code].suspended = suspended

    def set_pre_close(self, code, price):
        self.securities[code].pre_close = price

    # -- calendar ------------------------------------------------------------------------------------------------
    def trade_days(self):
        """From the first day up to today."""
        if not self._trade_days or self._trade_days[0] != self.today():
            self._trade_days = self.today(), self._rule_days()
        return self._trade_days[1]

    def _rule_days(self):
        return [day for day in map(date.fromordinal, range(self.first_day.toordinal(), self.today().toordinal() + 1))
                if opens(day)]

    def trading_dates(self, market, start, end, count):
        """Epoch ms at Beijing midnight; [] for a market that does not exist."""
        if market not in ('SH', 'SZ', 'BJ'):
            return []
        lower, upper = bars.window(start, end)
        found = [ms for ms in map(bars.epoch_ms, self.trade_days()) if lower <= ms <= upper]
        return bars.newest(found, count if count > 0 else -1)

    def holidays(self):
        """Weekdays of this and the next year without trading, as 20250101; [] before they were downloaded."""
        first = date(self.first_day.year, 1, 1).toordinal()
        days = map(date.fromordinal, range(first, date(self.today().year + 1, 12, 31).toordinal() + 1))
        return [int(day.strftime('%Y%m%d')) for day in days
                if self.holidays_local and day.weekday() < 5 and not opens(day)]

    # -- instruments ---------------------------------------------------------------------------------------------
    def detail(self, code):
        """Native dict of an instrument, None for an unknown one."""
        security = self.securities.get(code)
        if security is None:
            return None
        high, low = self.limits(code) if self.limits_in_detail else (0.0, 0.0)
        number, _, market = code.partition('.')
        return {'ExchangeID': market, 'InstrumentID': number, 'InstrumentName': security.name, 'ProductID': '',
                'ProductName': '', 'ExchangeCode': number, 'UniCode': number, 'CreateDate': 0,
                'OpenDate': int(security.listed), 'ExpireDate': int(security.expires or 99999999),
                'TradingDay': int(self.today().strftime('%Y%m%d')), 'PreClose': security.pre_close,
                'SettlementPrice': security.pre_close, 'UpStopPrice': high or 0.0, 'DownStopPrice': low or 0.0,
                'FloatVolumn': 1e9, 'TotalVolumn': 2e9, 'PriceTick': security.rules.tick, 'VolumeMultiple': 1,
                'LongMarginRatio': 1.0, 'ShortMarginRatio': 1.0, 'MainContract': 0, 'LastVolume': 0,
                'InstrumentStatus': int(security.suspended), 'IsTrading': not security.suspended, 'IsRecent': False,
                'ExtendInfo': {'OptionType': -1, 'MinLimitOrderVolume': security.rules.lot}}

    def limits(self, code):
        """(high, low) of today; (None, None) where the exchange sets none."""
        security = self.securities[code]
        return rules.limits(code, security.pre_close, self.today(), security.name)

    def expired(self, code):
        expires = self.securities[code].expires
        return expires is not None and bars.parse_day(expires) < self.today()

    def stock_type(self, code):
        """As get_instrument_type wants it: {kind: bool}."""
        security = self.securities.get(code)
        kind = security.rules.kind if security else ''
        return {name: name == kind or (name == 'fund' and kind in ('etf', 'lof'))
                for name in ('stock', 'index', 'etf', 'fund', 'bond')} if security else {}

    def sector_list(self):
        return list(SECTORS) + list(self.custom_sectors) if self.sectors_local else []

    def sector(self, name):
        if not self.sectors_local:
            return []
        if name in SECTORS:
            return [code for code, security in self.securities.items()
                    if security.in_sector(*SECTORS[name]) and not self.expired(code)]
        return list(self.custom_sectors.get(name, []))

    def index_weights(self, index):
        return dict(self.weights.get(index, {})) if self.weights_local else {}

    def dividend_factors(self, code, start, end):
        """{'YYYYMMDD': factor dict}, {} where there are none."""
        lower, upper = bars.window(start, end)
        factors = self.securities[code].factors if code in self.securities else {}
        return {day: dict(row) for day, row in factors.items() if lower <= row['time'] <= upper}

    # -- history -------------------------------------------------------------------------------------------------
    def download(self, codes, period, start='', end=''):
        """Brings server rows into the local cache."""
        self.downloads.append((list(codes), period, start, end))
        lower, upper = bars.window(start, end)
        for code in codes if self.download_brings else ():
            days = [day for day in self._server_days(code) if lower <= bars.epoch_ms(day) + 86399999
                    and bars.epoch_ms(day) <= upper]
            self._local.setdefault((code, BASE_PERIODS.get(period, period)), set()).update(days)

    def forget_cache(self):
        """As after a fresh installation."""
        self._local.clear()

    def _server_days(self, code):
        return self.securities[code].days if code in self.securities else ()

    def _local_days(self, code, period):
        """Days whose rows a query sees: downloaded ones, and today if the code is subscribed."""
        base, days = BASE_PERIODS[period], self._server_days(code)
        local = self._local.get((code, base), ())
        return [day for day in days if self.everything_local or day in local
                or (day == self.today() and self._watched(code, base))]

    def _watched(self, code, base):
        return any(item.covers(code) and BASE_PERIODS.get(item.period) == base
                   for item in self._subscriptions.values())

    def history(self, code, period, start='', end='', count=-1, dividend_type='none', fill=True):
        """Rows for get_market_data3, volume in the unit that the switch says."""
        if period == 'tick':
            return self._tick_history(code, start, end, count)
        lower, upper = bars.window(start, end)
        days = [day for day in self._local_days(code, period)
                if lower <= bars.epoch_ms(day) + 86399999 and bars.epoch_ms(day) <= upper]
        rows = self._rows(code, period, days, count)
        rows = [row for row in rows if lower <= row['time'] <= upper and (fill or not row['suspendFlag'])]
        if self.padding and period in ('1d', '1m'):
            rows = self._padded(code, period, rows, lower, upper)
        rows = bars.adjust(bars.newest(rows, count), self._factor_steps(code), dividend_type)
        return [self._in_units(self.securities[code], row, BASE_PERIODS[period]) for row in rows]

    def _rows(self, code, period, days, count):
        if not days:
            return []
        security = self.securities[code]
        if BASE_PERIODS[period] == '1d':
            rows = [security.days[day] for day in days]
        else:
            days = days if count <= 0 else days[-(count * bars.LONGER.get(period, 1) // 240 + 2):]
            rows = [row for day in days for row in security.minutes_of(day)]
        return rows if period in ('1d', '1m') else bars.merge(rows, period)

    def _padded(self, code, period, rows, lower, upper):
        """The rows, and made-up ones of the server's other days."""
        there, padded = {bars.beijing(row['time']).date() for row in rows}, []
        for day in self._server_days(code):
            if day not in there and lower <= bars.epoch_ms(day) + 86399999 and bars.epoch_ms(day) <= upper:
                starts = [0] if period == '1d' else [minute * 60000 for minute in bars.MINUTES]
                padded += [bars.bar(bars.epoch_ms(day) + start, [0.0] * 4, 0, 0.0, 0.0) for start in starts]
        joined, close = sorted(rows + padded, key=lambda row: row['time']), 0.0
        for row in joined if self.padding == 'close' else ():
            if not row['close']:
                row.update(dict.fromkeys(bars.PRICES, close), suspendFlag=1)
            close = row['close']
        return [row for row in joined if lower <= row['time'] <= upper]

    def _factor_steps(self, code):
        factors = self.securities[code].factors if code in self.securities else {}
        return [(row['time'], row['dr']) for row in factors.values()]

    def _in_units(self, security, row, base):
        lots = self.volume_in_lots['1d' if base == '1d' else '1m']
        return dict(row, volume=row['volume'] // security.lot) if lots else dict(row)

    def _tick_history(self, code, start, end, count):
        if code not in self.securities or not (self.everything_local or self._local.get((code, 'tick'))
                                               or self._watched(code, 'tick')):
            return []
        lower, upper = bars.window(start, end)
        return bars.newest([row for row in self.securities[code].ticks if lower <= row['time'] <= upper], count)

    # -- quotes --------------------------------------------------------------------------------------------------
    def full_tick(self, codes):
        """{code: tick} of codes and of whole markets; unknown codes are absent, untraded ones have zeros."""
        found = [code for code in self.securities if code in codes or code[-2:] in codes]
        return {code: dict(self._tick(self.securities[code]), timetag=bars.beijing(
            self._tick(self.securities[code])['time']).strftime('%Y%m%d %H:%M:%S')) for code in found}

    def _tick(self, security):
        if security.tick is None:
            security.tick = dict.fromkeys(TICK_ZEROS, 0.0)
            security.tick.update(time=bars.epoch_ms(self.today()), lastClose=security.pre_close, volume=0, pvolume=0,
                                 stockStatus=1 if security.suspended else 3, openInt=13, transactionNum=0,
                                 lastSettlementPrice=security.pre_close, settlementPrice=0.0, pe=0.0,
                                 askPrice=[0.0] * 5, bidPrice=[0.0] * 5, askVol=[0] * 5, bidVol=[0] * 5)
        return security.tick

    def subscribe(self, link, key, codes, period, whole):
        """Subscription number, or -1 for an unknown code and beyond the limit of single subscriptions."""
        single = sum(1 for item in self._subscriptions.values() if item.link == link and not item.whole)
        if not whole and (codes[0] not in self.securities or period not in BASE_PERIODS
                          or single >= self.subscription_limit):
            return -1
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._subscriptions[seq] = Subscription(link, key, codes, period, whole)
        return seq

    def unsubscribe(self, link, seq):
        if seq in self._subscriptions and self._subscriptions[seq].link == link:
            del self._subscriptions[seq]

    def subscriptions(self):
        """[(number, codes, period, whole)] of all clients."""
        return [(seq, list(item.codes), item.period, item.whole) for seq, item in self._subscriptions.items()]

    def drop_link(self, link):
        """A client is gone: so are its subscriptions."""
        for seq in [seq for seq, item in self._subscriptions.items() if item.link == link]:
            del self._subscriptions[seq]

    def drop_code(self, code):
        """No subscription covers it any more."""
        for item in self._subscriptions.values():
            item.codes = tuple(covered for covered in item.codes if covered != code)

    def push(self, code, price, volume=0, **changes):
        """A trade of `volume` shares at `price`, now: tick and running bars change, subscribers hear of it.

        changes: fields of the tick to overwrite, such as time, askPrice, bidPrice.
        """
        security = self.securities[code]
        minute, day = self._running_bars(security, price, volume)
        self._change_tick(security, price, volume, changes)
        records = {'tick': dict(security.tick), '1m': self._in_units(security, minute, '1m'),
                   '1d': self._in_units(security, day, '1d')}
        for item in self._subscriptions.values():
            if item.covers(code) and item.period in records:
                self._events.append((item.link, item.key, item.payload(records[item.period], code)))

    def _change_tick(self, security, price, volume, changes):
        tick, step = self._tick(security), security.rules.tick
        traded = tick['pvolume'] + volume
        asks = [rules.to_tick(price + step * i, step) for i in range(1, 6)]
        bids = [rules.to_tick(max(step, price - step * i), step) for i in range(1, 6)]
        tick.update(time=bars.epoch_ms(self.clock.now()), lastPrice=price, open=tick['open'] or price,
                    high=max(tick['high'], price), low=min(tick['low'] or price, price), pvolume=traded,
                    volume=traded // security.lot, amount=tick['amount'] + price * volume, askPrice=asks,
                    bidPrice=bids, askVol=[100] * 5, bidVol=[100] * 5, transactionNum=tick['transactionNum'] + 1)
        tick.update(changes)
        security.ticks.append(dict(tick))

    def _running_bars(self, security, price, volume):
        today = self.today()
        start = bars.epoch_ms(today)
        day = security.days.setdefault(today, bars.bar(start, [price] * 4, 0, 0.0, security.pre_close))
        label = start + self._minute_label() * 60000
        minutes = security.minutes.setdefault(today, [])
        if not minutes or minutes[-1]['time'] != label:
            minutes.append(bars.bar(label, [price] * 4, 0, 0.0, minutes[-1]['close'] if minutes else price))
        for row in (minutes[-1], day):
            row.update(high=max(row['high'], price), low=min(row['low'], price), close=price,
                       volume=row['volume'] + volume, amount=row['amount'] + price * volume)
        return minutes[-1], day

    def _minute_label(self):
        """Minute of the day at which the running bar ends; before the open, the auction's."""
        minute = rules.minute_of(self.clock.now())
        if minute < rules.AUCTION_BAR:
            return rules.AUCTION_BAR
        return next((label for label in bars.MINUTES if label > minute), bars.MINUTES[-1])

    def next_day(self):
        """Yesterday's close becomes the previous close; today's ticks are gone."""
        for security in self.securities.values():
            if security.days:
                security.pre_close = list(security.days.values())[-1]['close']
            security.tick, security.ticks = None, []


def _factor(ms, dividend, dr):
    return {'time': ms, 'interest': dividend.interest, 'stockBonus': dividend.bonus, 'stockGift': dividend.gift,
            'allotNum': 0.0, 'allotPrice': 0.0, 'gugai': 0.0, 'dr': dr}
