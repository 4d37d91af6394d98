"""What JoinQuant's simulated trading gives a strategy besides its account: data, schedule and settings.

Bars come from files CODE_1d.csv and CODE_1m.csv of a folder, and none of them is later than the simulated time.
"""
import os
import types
from datetime import datetime, time, timedelta

NAMED_TIMES = {'every_bar': '9:30', 'open': '9:30', 'close': '15:00', 'before_open': '9:00', 'after_close': '15:30'}
HOOKS = (('before_trading_start', '9:00'), ('handle_data', '9:30'), ('after_trading_end', '15:30'))
FIELDS = ('open', 'close', 'high', 'low', 'volume', 'money')
PRICES = ('open', 'close', 'high', 'low', 'pre_close')


# -- schedule ------------------------------------------------------------------------------------------------------
TASKS = []  # [kind, n-th day, time, name of the function], which JoinQuant keeps with a strategy's state


def run_monthly(func, monthday, time='9:30', reference_security=None, force=False):
    TASKS.append(['monthly', monthday, time, func.__name__])


def run_weekly(func, weekday, time='9:30', reference_security=None, force=False):
    TASKS.append(['weekly', weekday, time, func.__name__])


def run_daily(func, time='9:30', reference_security=None):
    TASKS.append(['daily', 1, time, func.__name__])


def unschedule_all():
    del TASKS[:]


PERIODS = {'monthly': lambda day: (day.year, day.month), 'weekly': lambda day: day.isocalendar()[:2],
           'daily': lambda day: day}


def due(tasks, names, days, day):
    """[(datetime, name of the function)] of one of a simulation's trade days, in the order in which they run."""
    found = [(moment_of(day, text), list(PERIODS).index(kind), name) for kind, nth, text, name in tasks
             if is_nth(days, day, nth, PERIODS[kind])]
    found += [(moment_of(day, text), len(PERIODS), name) for name, text in HOOKS if name in names]
    return [(moment, name) for moment, _, name in sorted(found, key=lambda item: item[:2])]


def is_nth(days, day, nth, period):
    """Whether it is the n-th day of its period, from the end if negative; the nearest one where there are too few."""
    mine = [other for other in days if period(other) == period(day)]
    return mine[min(nth, len(mine)) - 1 if nth > 0 else max(nth + len(mine), 0)] == day


def moment_of(day, text):
    """'9:31', 'open', 'close-10m'."""
    for sign in '+-':
        base, _, minutes = text.partition(sign)
        if minutes:
            return moment_of(day, base) + timedelta(minutes=int(sign + minutes.rstrip('m')))
    return datetime.combine(day, time(*map(int, NAMED_TIMES.get(text, text).split(':'))))


# -- data ----------------------------------------------------------------------------------------------------------
class Market:
    """now: the simulated time."""

    def __init__(self, folder):
        import pandas
        self.now, self._frames, self._known = None, {}, {}
        for name in sorted(os.listdir(folder)):
            code, unit = name[:-len('.csv')].rsplit('_', 1)
            self._frames[code, unit] = pandas.read_csv(os.path.join(folder, name), index_col=0, parse_dates=True)

    @property
    def today(self):
        return datetime.combine(self.now.date(), time())

    def day(self, code):
        """Today's row, of which a caller may use what has happened."""
        return self._frames[code, '1d'].loc[self.today]

    def past(self, code):
        """Day bars up to yesterday, on today's price level: an ex-date's pre_close differs from the close before."""
        frame = self._frames[code, '1d'].loc[:self.today]
        step = (frame['pre_close'] / frame['close'].shift()).fillna(1.0)
        level = step[::-1].cumprod()[::-1].shift(-1).fillna(1.0)
        frame = frame.assign(**{name: frame[name] * level for name in PRICES})
        return frame[frame.index < self.today]

    def last_price(self, code):
        """Of the newest minute; without minutes the day's open until the day is over."""
        row, minutes = self.day(code), self._frames.get((code, '1m'))
        if self.now.time() < time(9, 30):
            return row['pre_close']
        told = None if minutes is None else minutes.loc[self.today:self.now]['close']
        if told is not None and len(told):
            return told.iloc[-1]
        return row['close'] if self.now.time() >= time(15) else row['open']


MARKET = None  # the Market of this process


def attribute_history(security, count, unit='1d', fields=FIELDS, skip_paused=True, df=True, fq='pre'):
    frame = MARKET.past(security)
    return (frame[frame['paused'] == 0] if skip_paused else frame)[list(fields)].tail(count)


def history(count, unit='1d', field='avg', security_list=None, df=True, skip_paused=False, fq='pre'):
    import pandas
    return pandas.DataFrame({code: MARKET.past(code)[field].tail(count) for code in security_list})


def get_price(security, start_date=None, end_date=None, frequency='daily', fields=FIELDS, count=None):
    frame = MARKET.past(security)[list(fields)].loc[start_date:end_date]
    return frame if count is None else frame.tail(count)


class CurrentData:
    def __getitem__(self, code):
        row = MARKET.day(code)
        return types.SimpleNamespace(last_price=MARKET.last_price(code), day_open=row['open'], name=code, is_st=False,
                                     paused=bool(row['paused']), high_limit=round(row['pre_close'] * 1.1, 2),
                                     low_limit=round(row['pre_close'] * 0.9, 2))


def get_current_data():
    return CurrentData()


# -- settings, which concern JoinQuant's own account and report ------------------------------------------------------
class Setting:
    def __init__(self, *args, **how):
        self.args = args, how


class FixedSlippage(Setting):
    pass


class PriceRelatedSlippage(Setting):
    pass


class OrderCost(Setting):
    pass


def set_option(name, value):
    pass


def set_slippage(slippage, type=None, ref=None):
    pass


def set_order_cost(cost, type, ref=None):
    pass


def set_benchmark(security):
    pass


RECORDED = {}


def record(**numbers):
    RECORDED.update((name, float(value)) for name, value in numbers.items())


NAMES = ('run_daily', 'run_weekly', 'run_monthly', 'unschedule_all', 'attribute_history', 'history', 'get_price',
         'get_current_data', 'FixedSlippage', 'PriceRelatedSlippage', 'OrderCost', 'set_option', 'set_slippage',
         'set_order_cost', 'set_benchmark', 'record')
