"""At T no call gives what was not known at T: every data call, at many instants, on series whose future is poisoned."""
import itertools
import os
import random
from datetime import datetime

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import A, B, ETF, MadeMarket, day_row, days_from

DAYS = days_from('2024-01-02', 30)
TODAY = DAYS[20]
INSTANTS = ['00:00', '09:00', '09:27', '09:30', '09:31', '10:15', '11:30', '12:00', '13:00', '14:59', '15:00', '16:30']


def quiet_day(rng, level):
    """240 minutes as (open, close, high, low, volume) from a level on."""
    bars = []
    for _ in bq.BAR_MINUTES:
        close = round(level + rng.choice([-0.02, -0.01, 0, 0.01, 0.02]), 2)
        bars.append((level, close, max(level, close), min(level, close), rng.randrange(1, 50) * 100))
        level = close
    return bars


def poisoned(bar, factor):
    return tuple(round(value * factor, 2) for value in bar[:4]) + (bar[4] * 3,)


class History:
    """Three securities whose bars later than T are multiplied, suspended or went ex where `poison` says so."""

    def __init__(self, directory, moment, poison):
        self.market, self.moment, self.poison = MadeMarket(directory), moment, poison
        for number, code in enumerate((A, B, ETF)):
            self.write(code, random.Random(number), 10.0 + number)

    def write(self, code, rng, level):
        daily, minutes, before = [], [], level
        for day in DAYS:
            bars = quiet_day(rng, before)
            labels = ['%02d:%02d' % divmod(minute, 60) for minute in bq.BAR_MINUTES]
            late = [datetime.strptime('%s %s' % (day, label), '%Y-%m-%d %H:%M') > self.moment for label in labels]
            if self.poison and any(late):
                bars = [poisoned(bar, self.poison) if after else bar for bar, after in zip(bars, late)]
            if day >= DAYS[17]:
                minutes += self.market.minutes(code, day, dict(zip(labels, bars)))
            daily.append(self.day(day, bars, before))
            before = bars[-1][1]
        self.market.daily(code, daily)
        self.market.write_minutes(code, minutes)

    def day(self, day, bars, before):
        """The whole day; that it goes ex or is suspended is no secret from its morning on, but is before."""
        tomorrow = day > str(self.moment.date())
        pre_close = round(before * 0.9, 2) if self.poison and tomorrow and day == DAYS[23] else before
        opened = bars[0][0]
        if self.poison and datetime.strptime(day + ' 09:27', '%Y-%m-%d %H:%M') <= self.moment and not tomorrow:
            opened = before  # today's open is known from the auction on
        highest, lowest = max(bar[2] for bar in bars), min(bar[3] for bar in bars)
        return day_row(day, opened, bars[-1][1], max(opened, highest), min(opened, lowest),
                       sum(bar[4] for bar in bars), pre_close, int(bool(self.poison) and tomorrow and day == DAYS[24]))


def calls():
    """(name, arguments) of every data call, in many ways."""
    spans = [dict(count=3), dict(count=25, end_date=TODAY), dict(start_date=DAYS[15], end_date=DAYS[-1]),
             dict(start_date=DAYS[18]), dict(end_date=TODAY + ' 23:00', count=2)]
    fields = [None, ['close', 'factor', 'avg'], ['high_limit', 'low_limit', 'pre_close', 'paused']]
    for span, names, frequency, fq in itertools.product(spans, fields, ['1d', '1m', '5m', '1w', '2d'],
                                                        ['pre', None, 'post']):
        yield 'get_price', (A,), dict(span, fields=names, frequency=frequency, fq=fq)
    for span, panel, paused in itertools.product(spans, [True, False], [True, False]):
        if not (panel and paused):
            yield 'get_price', ([A, B, ETF],), dict(span, panel=panel, skip_paused=paused, fill_paused=not paused)
    for unit, df, paused in itertools.product(['1d', '1m', '15m', '1w'], [True, False], [True, False]):
        yield 'history', (4, unit, 'close', [A, B]), dict(df=df, skip_paused=paused)
        yield 'attribute_history', (A, 4, unit), dict(df=df, skip_paused=paused, fields=['open', 'close', 'volume'])
    for unit, now, df in itertools.product(['1m', '5m', '60m', '120m', '7m', '1d', '1w', '1M'], [True, False],
                                           [True, False]):
        for more in ({}, {'end_dt': DAYS[-1]}, {'fq_ref_date': None}, {'fq_ref_date': DAYS[-1]}):
            yield 'get_bars', (A, 4, unit, ['date', 'open', 'close', 'volume']), dict(more, include_now=now, df=df)
        yield 'get_bars', ([A, B], 2, unit), dict(include_now=now, df=df)


def answers(history):
    """What all calls say at T, as text."""
    with jq.opened_provider(history.market.source) as provider:
        first, last = (datetime.strptime(day, '%Y-%m-%d').date() for day in (DAYS[10], DAYS[-1]))
        options = jq.Options()
        options.use_real_price = True
        view = jq.DataView(jq.BarStore(provider, first, last, last), options, [].append)
        view.move(history.moment)
        said = [(name, arguments, how, plain(getattr(view, name)(*arguments, **how)))
                for name, arguments, how in calls()]
        for code, name in itertools.product((A, B, ETF), ('last_price', 'high_limit', 'low_limit', 'paused', 'day_open',
                                                          'is_st')):
            said.append(('get_current_data', code, name, repr(getattr(view.get_current_data()[code], name))))
        for unit, name in itertools.product(('1d', '1m'), ('close', 'volume', 'returns')):
            said.append(('data', unit, name, repr(getattr(jq.BarData(view, unit)[A], name))))
        for figure in ('mavg', 'vwap', 'stddev'):
            said.append((figure, repr(getattr(jq.BarData(view, '1m')[A], figure)(5))))
        said.append(('get_security_info', repr(sorted(view.get_security_info(A).items()))))
        said.append(('get_all_securities', view.get_all_securities().to_csv()))
        said.append(('get_trade_days', repr(view.get_trade_days(count=5))))
    return said


def plain(value):
    """Text that shows every digit of whatever a call gives."""
    if isinstance(value, dict):
        return repr([(key, plain(part)) for key, part in sorted(value.items())])
    if hasattr(value, 'to_frame') and not hasattr(value, 'to_csv'):  # the Panel of old pandas
        return value.to_frame(filter_observations=False).to_csv()
    return value.to_csv() if hasattr(value, 'to_csv') else repr(value.tolist())


@pytest.mark.parametrize('clock', INSTANTS)
def test_nothing_later_than_now_is_ever_told(tmp_path, clock):
    moment = datetime.strptime('%s %s' % (TODAY, clock), '%Y-%m-%d %H:%M')
    told = []
    for poison in (None, 0.93):
        directory = tmp_path / str(poison)
        os.makedirs(str(directory))
        told.append(answers(History(directory, moment, poison)))
    for true, other in zip(*told):
        assert true == other


def test_the_poison_is_seen_by_those_who_may(tmp_path):
    """The same histories a day later do differ: the test above would notice."""
    told = []
    for poison in (None, 1.05):
        directory = tmp_path / str(poison)
        os.makedirs(str(directory))
        history = History(directory, datetime.strptime(TODAY + ' 10:15', '%Y-%m-%d %H:%M'), poison)
        history.moment = datetime.strptime(DAYS[21] + ' 15:00', '%Y-%m-%d %H:%M')
        told.append(answers(history))
    assert sum(true != other for true, other in zip(*told)) > 300


@pytest.mark.parametrize('name, arguments, how', [
    ('get_price', (A,), dict(end_date=DAYS[21], count=2)),
    ('get_price', (A,), dict(end_date=TODAY + ' 10:16:00', count=2, frequency='1m')),
    ('get_price', (A,), dict(start_date=DAYS[21])),
    ('get_bars', (A, 2), dict(end_dt=TODAY + ' 10:16:00')),
    ('get_bars', (A, 2), dict(fq_ref_date=DAYS[21])),
    ('get_index_stocks', ('000300.XSHG',), dict(date=DAYS[22])),
    ('get_extras', ('is_st', [A]), dict(end_date=DAYS[22], count=2))])
def test_the_future_is_refused_where_the_strategy_wants_that(tmp_path, name, arguments, how):
    history = History(tmp_path, datetime.strptime(TODAY + ' 10:15', '%Y-%m-%d %H:%M'), None)
    with jq.opened_provider(history.market.source) as provider:
        last, options = datetime.strptime(DAYS[-1], '%Y-%m-%d').date(), jq.Options()
        options.avoid_future_data = options.use_real_price = True
        view = jq.DataView(jq.BarStore(provider, last, last, last), options, [].append)
        view.move(history.moment)
        with pytest.raises(jq.FutureDataError):
            getattr(view, name)(*arguments, **how)
        view.get_price(A, end_date=TODAY, count=1)
