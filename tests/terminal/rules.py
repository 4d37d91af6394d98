"""What this exchange and its counters go by: kinds, lots, price steps, limits, cage, fees and hours, written from the
rules of SSE, SZSE and BSE (2023 and 2026) for the few securities that tests use. Nothing here is the product's: the one
that judges must not ask the accused. Codes end in SH, SZ, BJ. Prices are floats outside and decimals within.
"""
from collections import namedtuple
from datetime import date
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal

Rules = namedtuple('Rules', 'kind board tick lot step t0')
STOCKS = (('60', 'SH', 'main'), ('00', 'SZ', 'main'), ('688', 'SH', 'star'), ('30', 'SZ', 'chinext'),
          ('43', 'BJ', 'bse'), ('83', 'BJ', 'bse'), ('87', 'BJ', 'bse'), ('92', 'BJ', 'bse'))
OTHERS = (('000', 'SH', 'index'), ('399', 'SZ', 'index'), ('899', 'BJ', 'index'), ('51', 'SH', 'etf'),
          ('52', 'SH', 'etf'), ('56', 'SH', 'etf'), ('588', 'SH', 'etf'), ('159', 'SZ', 'etf'),
          ('50', 'SH', 'lof'), ('16', 'SZ', 'lof'),
          ('11', 'SH', 'bond'), ('12', 'SZ', 'bond'))
LOTS = {'star': (200, 1), 'bse': (100, 1), 'bond': (10, 10)}
SAME_DAY = ('511', '513', '518', '520', '551', '159920', '159934', '159941')
# STAR ETFs; of Shenzhen the largest ChiNext ones.
WIDE_FUNDS = ('588', '159915', '159949', '159952')
WIDE_FROM, RISK_WARNING_TEN_FROM = date(2020, 8, 24), date(2026, 7, 6)
BOND_LIMITS_FROM, HALF_STAMP_FROM = date(2022, 8, 1), date(2023, 8, 28)
# Minutes of the day at which the 240 bars of a day end; the auction's bar, 9:30, comes before them.
AUCTION_BAR = 570
BAR_ENDS = tuple(range(571, 691)) + tuple(range(781, 901))


def rules_of(code):
    """Rules of a code such as 600000.SH; kind 'other' for what is not known here."""
    number, market = code.split('.')
    board = next((board for start, where, board in STOCKS if where == market and number.startswith(start)), '')
    kind = 'stock' if board else next(
        (kind for start, where, kind in OTHERS if where == market and number.startswith(start)), 'other')
    lot, step = LOTS.get(board or kind, (100, 100))
    tick = 0.001 if kind in ('etf', 'lof', 'bond') else 0.01
    return Rules(kind, board, tick, lot, step, kind == 'bond' or number.startswith(SAME_DAY))


def tradable(code):
    return rules_of(code).kind in ('stock', 'etf', 'lof', 'bond')


def _decimal(value):
    return Decimal(repr(float(value)))


def to_tick(price, tick, rounding=ROUND_HALF_UP):
    step = _decimal(tick)
    return float((_decimal(price) / step).quantize(Decimal(1), rounding) * step)


def on_tick(price, tick):
    return _decimal(price) % _decimal(tick) == 0


def _percent(code, day, name):
    rules = rules_of(code)
    if rules.kind == 'bond':
        return 20 if day >= BOND_LIMITS_FROM else None
    if rules.kind not in ('stock', 'etf', 'lof'):
        return None
    wide = rules.board in ('star', 'chinext') or (rules.kind != 'stock' and code.startswith(WIDE_FUNDS))
    if rules.board == 'bse' or wide:
        return 30 if rules.board == 'bse' else 20 if rules.board == 'star' or day >= WIDE_FROM else 10
    return 5 if rules.board == 'main' and 'ST' in name and day < RISK_WARNING_TEN_FROM else 10


def limits(code, pre_close, day, name):
    """(high, low) of an ordinary day; (None, None) where the exchange sets none."""
    percent, tick = _percent(code, day, name), rules_of(code).tick
    if percent is None:
        return None, None
    inward = code.endswith('.BJ')
    part = _decimal(pre_close) * percent / 100
    return (to_tick(_decimal(pre_close) + part, tick, ROUND_FLOOR if inward else ROUND_HALF_UP),
            to_tick(_decimal(pre_close) - part, tick, ROUND_CEILING if inward else ROUND_HALF_UP))


def cage(code, side, reference):
    """Worst price against the reference in continuous trading, None without a cage."""
    rules = rules_of(code)
    percent = {'stock': 5 if rules.board == 'bse' else 2, 'bond': 10}.get(rules.kind)
    if percent is None or not reference > 0:
        return None
    base = _decimal(reference)
    room = base * percent / 100
    if rules.kind == 'stock':
        room = max(room, 10 * _decimal(rules.tick))
    if side == 'BUY':
        return to_tick(base + room, rules.tick, ROUND_FLOOR)
    return max(rules.tick, to_tick(base - room, rules.tick, ROUND_CEILING))


def lot_problem(code, side, volume, usable):
    """Why the counter refuses the volume, or None. What is left of a holding below a lot goes as a whole."""
    rules = rules_of(code)
    if side == 'SELL' and usable is not None and volume <= usable:
        rest = usable % rules.step if rules.step > 1 else 0
        if volume == usable or (rest and volume % rules.step == rest):
            return None
    fine = volume >= rules.lot and (volume - rules.lot) % rules.step == 0
    return None if fine else '委托数量 %d 不合法，最小申报数量 %d' % (volume, rules.lot)


def fees(code, side, value, day):
    """Commission of 0.03 %, 5 yuan at least; stamp tax of stocks sold; transfer fee of stocks. Decimal yuan."""
    stock, cent = rules_of(code).kind == 'stock', Decimal('0.01')
    stamp = Decimal('0.0005') if day >= HALF_STAMP_FROM else Decimal('0.001')
    parts = [max(Decimal(5), value * Decimal('0.0003')), value * stamp if stock and side == 'SELL' else Decimal(0),
             value * Decimal('0.00001') if stock else Decimal(0)]
    return sum((part.quantize(cent, ROUND_HALF_UP) for part in parts), Decimal(0))


def minute_of(moment):
    return moment.hour * 60 + moment.minute


def bars_over(moment):
    """How many of the day's 240 bars have ended."""
    return sum(1 for end in BAR_ENDS if end <= minute_of(moment))
