"""What the tests of the strategy runtime share: strategies from text, markets made up bar by bar, real days."""
import contextlib
import os
import textwrap
from datetime import datetime, timedelta

import bullet_qmt as bq
import jq_helper as jq

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, 'data')
STRATEGIES = os.path.join(HERE, 'strategies')
REAL = 'csv:' + DATA
A, B, ETF, GOLD, STAR = '600000.XSHG', '000002.XSHE', '510300.XSHG', '518880.XSHG', '688981.XSHG'


def strategy_path(name):
    return os.path.join(STRATEGIES, name + '.py')


def days_from(first, count):
    """That many weekdays as ISO texts."""
    day, days = datetime.strptime(first, '%Y-%m-%d').date(), []
    while len(days) < count:
        if day.weekday() < 5:
            days.append(day.isoformat())
        day += timedelta(1)
    return days


def day_row(day, open, close=None, high=None, low=None, volume=1000000, pre_close=None, paused=0):
    """A line of a daily file; the money is that of the mean price."""
    close = open if close is None else close
    high, low = max(open, close) if high is None else high, min(open, close) if low is None else low
    pre_close = open if pre_close is None else pre_close
    return [day, open, close, high, low, volume, round((high + low) / 2 * volume, 2), pre_close, paused]


class MadeMarket:
    """A directory of files for csv:DIR."""

    def __init__(self, directory):
        self.directory = str(directory)

    def daily(self, code, rows):
        return self._write(code + '_1d.csv', 'date,open,close,high,low,volume,money,pre_close,paused', rows)

    def minutes(self, code, day, bars):
        """bars: {'09:31': (open, close, high, low, volume)}; all other minutes repeat the close before them."""
        rows, last = [], None
        for minute in bq.BAR_MINUTES:
            label = '%02d:%02d' % divmod(minute, 60)
            bar = bars.get(label) or (last, last, last, last, 0)
            last = bar[1]
            rows.append(['%s %s' % (day, label)] + list(bar) + [round(bar[1] * bar[4], 2)])
        return rows

    def write_minutes(self, code, rows):
        return self._write(code + '_1m.csv', 'time,open,close,high,low,volume,money', rows)

    def _write(self, name, header, rows):
        lines = [header] + [','.join(map(str, row)) for row in rows]
        with open(os.path.join(self.directory, name), 'w', encoding='utf-8') as file:
            file.write('\n'.join(lines) + '\n')

    @property
    def source(self):
        return 'csv:' + self.directory


def written(directory, text):
    """The path of a strategy with this text."""
    path = os.path.join(str(directory), 'strategy.py')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(textwrap.dedent(text))
    return path


def run(directory, text, provider, start, end, **options):
    """(BacktestResult, lines of the log) of a strategy given as text."""
    lines = []
    result = jq.backtest(written(directory, text), start, end, provider=provider, write=lines.append, **options)
    return result, lines


@contextlib.contextmanager
def open_run(directory, text, provider, start, end, frequency='day', cash=1000000, params=None):
    """A BacktestRun whose session a test drives itself."""
    with jq.opened_provider(provider) as source:
        first, last = (datetime.strptime(text, '%Y-%m-%d').date() for text in (start, end))
        strategy = jq.StrategyFile(written(directory, text))
        yield jq.BacktestRun(strategy, source, first, last, cash, frequency, params, last)
