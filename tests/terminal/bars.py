"""K lines as QMT keeps them: rows of a dict, `time` in epoch ms, labelled with the Beijing time at which a bar ends.

XTQUANT.md, Data 12, 15-17: minute lines begin with a bar at 09:30 that holds the opening auction; volume is in lots
or in shares; suspendFlag 1 marks a suspended day.
"""
import random
from datetime import date, datetime, timedelta

import bullet_qmt
from tests.terminal import rules

MINUTES = (rules.AUCTION_BAR,) + rules.BAR_ENDS  # 241: the auction's bar comes first
LONGER = {'5m': 5, '15m': 15, '30m': 30, '60m': 60, '1h': 60}
PRICES = ('open', 'high', 'low', 'close', 'preClose')


def epoch_ms(moment):
    """Naive Beijing datetime or date -> ms since the epoch, as QMT counts."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return bullet_qmt.epoch_seconds(moment) * 1000


def beijing(ms):
    return bullet_qmt.EPOCH + timedelta(milliseconds=ms + 8 * 3600 * 1000)


def stamp(ms, daily=False):
    """'YYYYMMDDHHMMSS', or 'YYYYMMDD' for day bars and longer ones."""
    return beijing(ms).strftime('%Y%m%d' if daily else '%Y%m%d%H%M%S')


def parse_day(text):
    return date(int(text[:4]), int(text[4:6]), int(text[6:8]))


def bar(ms, prices, volume, amount, pre_close, suspended=0):
    """prices: open, high, low, close. volume in shares; lots are counted on the way out."""
    opened, high, low, close = prices
    return {'time': ms, 'open': opened, 'high': high, 'low': low, 'close': close, 'volume': volume, 'amount': amount,
            'settelementPrice': 0.0, 'openInterest': 0, 'preClose': pre_close, 'suspendFlag': suspended}


class Dividend:
    """Per share: interest in yuan before tax, bonus and gift in shares."""

    def __init__(self, interest=0.0, bonus=0.0, gift=0.0):
        self.interest, self.shares = interest, 1 + bonus + gift
        self.bonus, self.gift = bonus, gift

    def ex_price(self, close):
        return (close - self.interest) / self.shares

    def close_before(self, ex_price):
        return ex_price * self.shares + self.interest


def random_walk(code, days, last_close, tick, dividends=None, suspended=()):
    """Day bars of a made-up security that end at `last_close`, the same for the same code.

    dividends: {ex-date: Dividend}. Made backwards: each day's previous close follows from its own.
    """
    source, rows, close = random.Random('day %s' % code), [], last_close
    for day in reversed(days):
        dividend = (dividends or {}).get(day, Dividend())
        pre_close = close if day in suspended else close / (1 + source.uniform(-0.03, 0.03))
        before = rules.to_tick(dividend.close_before(pre_close), tick)
        pre_close = rules.to_tick(dividend.ex_price(before), tick)
        if day in suspended:
            rows.append(bar(epoch_ms(day), [close] * 4, 0, 0.0, pre_close, 1))
        else:
            rows.append(_random_day(source, day, pre_close, close, tick))
        close = before
    return rows[::-1]


def _random_day(source, day, pre_close, close, tick):
    path = [rules.to_tick(pre_close * (1 + source.uniform(-0.03, 0.03)), tick) for _ in range(3)] + [close]
    volume = source.randrange(1000, 90000) * 100
    typical = (max(path) + min(path)) / 2
    return bar(epoch_ms(day), [path[0], max(path), min(path), close], volume, round(volume * typical, 2), pre_close)


def minutes_of(code, daily):
    """The 241 minute bars that add up to a day bar; none for a suspended day. The day's volume in whole lots."""
    if daily['suspendFlag']:
        return []
    source = random.Random('minute %s %d' % (code, daily['time']))
    path, typical = _path(source, daily), daily['amount'] / daily['volume']
    lots, rest = divmod(daily['volume'] // 100, len(MINUTES))
    volumes = [100 * (lots + rest)] + [100 * lots] * (len(MINUTES) - 1)
    return [bar(daily['time'] + minute * 60000,
                (path[i], max(path[i:i + 2]), min(path[i:i + 2]), path[i + 1]),
                volumes[i], volumes[i] * typical, path[i]) for i, minute in enumerate(MINUTES)]


def _path(source, daily):
    """242 prices from the open to the close that touch the high and the low."""
    path = [round(source.uniform(daily['low'], daily['high']), 2) for _ in range(len(MINUTES) + 1)]
    path = [min(max(price, daily['low']), daily['high']) for price in path]
    path[0], path[60], path[180], path[-1] = daily['open'], daily['high'], daily['low'], daily['close']
    return path


def merge(rows, period):
    """Rows of 1m or 1d -> rows of a longer period, each labelled by its last one."""
    groups = []
    for row in rows:
        key = _group(row['time'], period)
        if not groups or groups[-1][0] != key:
            groups.append((key, []))
        groups[-1][1].append(row)
    return [_merged(part) for _, part in groups]


def _group(ms, period):
    moment = beijing(ms)
    if period in LONGER:
        return moment.date(), (_trading_minute(moment) - 1) // LONGER[period]
    return moment.isocalendar()[:2] if period == '1w' else (moment.year, moment.month)


def _trading_minute(moment):
    """1..240; the auction's bar belongs to the first."""
    return max(1, rules.bars_over(moment))


def _merged(part):
    return bar(part[-1]['time'], (part[0]['open'], max(row['high'] for row in part), min(row['low'] for row in part),
                                  part[-1]['close']),
               sum(row['volume'] for row in part), sum(row['amount'] for row in part), part[0]['preClose'],
               min(row['suspendFlag'] for row in part))


def adjust(rows, factors, mode):
    """dividend_type front_ratio or back_ratio; factors: [(ms of the ex-date, dr)] ascending."""
    if mode == 'none':
        return rows
    if mode not in ('front_ratio', 'back_ratio'):
        raise ValueError('the stand-in does not adjust by %r' % mode)
    return [_scaled(row, _ratio(row['time'], factors, mode)) for row in rows]


def _ratio(ms, factors, mode):
    ratio = 1.0
    for day, dr in factors:
        if mode == 'front_ratio' and ms < day:
            ratio /= dr
        elif mode == 'back_ratio' and ms >= day:
            ratio *= dr
    return ratio


def _scaled(row, ratio):
    return dict(row, **{name: row[name] * ratio for name in PRICES})


def window(start, end):
    """Bounds as the vendor takes them ('', 'YYYYMMDD', 'YYYYMMDDHHMMSS' or epoch ms) -> inclusive (ms, ms)."""
    lower = start if isinstance(start, int) else _moment_ms(start, '000000') if start else -1 << 60
    upper = end if isinstance(end, int) else _moment_ms(end, '235959') + 999 if end else 1 << 60
    return lower, upper


def _moment_ms(text, clock):
    text = text if len(text) > 8 else text + clock
    return epoch_ms(datetime.strptime(text, '%Y%m%d%H%M%S'))


def newest(rows, count):
    """count > 0: the last n, 0: none, -1: all."""
    return rows[-count:] if count > 0 else rows if count < 0 else []
