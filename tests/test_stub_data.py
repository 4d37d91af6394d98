"""The paper exchange's market data: synthetic bars, CSV files, the running day, quotes, pushed ticks, history."""
import csv
import hashlib
import io
import math
import os
import shutil
import threading
from datetime import date, datetime, timedelta
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bullet_qmt as bq
from tests.fakes import FakeClock
from tests.terminal.calendar import opens

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
MARKET = bq._SyntheticMarket(1)
CODES = MARKET.codes() + ['600111.XSHG', '128010.XSHE', '501018.XSHG', '920799.BJ', '204001.XSHG']
STOCK, ETF, INDEX = '000001.XSHE', '510300.XSHG', '000300.XSHG'
MONDAY = date(2024, 6, 3)
TODAY = date(2024, 6, 14)


def data_at(moment, source=MARKET, always_open=False, interval=0.01):
    return bq.StubData(source, FakeClock(moment), always_open, interval)


def clock_at(day, hour, minute=0, second=0):
    return datetime(day.year, day.month, day.day, hour, minute, second)


EVENING = data_at(clock_at(TODAY, 16))


def ask(data, security=STOCK, **payload):
    return data.history(bq.parse_history(dict(payload, security=security), data.clock.now()))


def rows_of(table):
    return [tuple(row.values()) for row in table.rows()]


@lru_cache(maxsize=None)
def whole(code, day=TODAY):
    """Daily columns up to a day, as a list of dicts."""
    columns = bq.slice_columns(MARKET.daily(code, day), 0, bq.to_ms(day))
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


# -- synthetic days ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('code', CODES)
def test_days_are_sound(code):
    tick, lots = bq.instrument(code).tick, 100
    bars, listed = whole(code), MARKET.info(code)['start_date']
    assert len(bars) > 50
    for bar in bars:
        day = bq.from_ms(bar['time']).date()
        assert opens(day) and day >= max(listed, date(2005, 1, 4))
        assert bar['low'] <= min(bar['open'], bar['close']) <= max(bar['open'], bar['close']) <= bar['high']
        assert bar['low'] > 0 and bq.on_tick(bar['close'], tick) and bq.on_tick(bar['pre_close'], tick)
        assert bar['volume'] % lots == 0 and (bar['volume'] > 0) != (bar['paused'] == 1)


@pytest.mark.parametrize('code', ['000001.XSHE', '300750.XSHE', '688001.XSHG', '510300.XSHG', '113050.XSHG',
                                  '920799.BJ', '000300.XSHG', '600519.XSHG'])
def test_days_stay_within_the_limits_of_the_rules(code):
    listed = MARKET.info(code)['start_date']
    for number, bar in enumerate(whole(code), 1):
        young = (listed, number) if listed >= date(2005, 1, 4) else (None, None)
        high, low = bq.price_limits(code, bar['pre_close'], bq.from_ms(bar['time']).date(), False, *young)
        if high is None:
            assert math.isnan(bar['high_limit']) and math.isnan(bar['low_limit'])
        else:
            assert (bar['high_limit'], bar['low_limit']) == (high, low)
            assert low <= bar['low'] <= bar['high'] <= high


def test_some_days_end_at_their_limit():
    assert any(bar['close'] == bar['high_limit'] for bar in whole(STOCK))


@pytest.mark.parametrize('code', CODES)
def test_prices_stay_in_a_sane_band(code):
    closes = [bar['close'] for bar in whole(code)]
    assert max(closes) < 12 * min(closes)


def test_every_trade_day_has_a_bar_and_no_other():
    assert [bar['time'] for bar in whole(STOCK)] == MARKET.calendar(TODAY)


def test_suspensions_are_few_and_none_after_2025():
    bars = whole(STOCK, date(2027, 12, 31))
    paused = [bq.from_ms(bar['time']).year for bar in bars if bar['paused']]
    assert 20 < len(paused) < 300 and max(paused) <= 2025
    assert not any(bar['paused'] for bar in whole(ETF) + whole(INDEX))


def test_a_suspended_day_stands_at_the_last_close():
    bars = whole(STOCK)
    for before, bar in zip(bars, bars[1:]):
        if bar['paused']:
            assert bar['open'] == bar['high'] == bar['low'] == bar['close'] == bar['pre_close'] == before['close']


def test_ex_dates_agree_with_the_events():
    bars = whole(STOCK)
    events = {event['date']: event for event in MARKET.dividends(STOCK, TODAY) if event['date'] <= bq.to_ms(TODAY)}
    assert 15 < len(events) < 22 and any(event['scale_factor'] > 1 for event in events.values())
    for before, bar in zip(bars, bars[1:]):
        event = events.pop(bar['time'], None)
        if event is None:
            assert bar['pre_close'] == before['close']
        else:
            cash = event['bonus_pre_tax'] / event['per_base']
            assert bar['pre_close'] == pytest.approx((before['close'] - cash) / event['scale_factor'], abs=0.00501)
            assert not bar['paused'] and bar['pre_close'] < before['close']
    assert not events


@pytest.mark.parametrize('code', [ETF, INDEX, '113050.XSHG'])
def test_what_has_no_ex_dates(code):
    bars = whole(code)
    assert all(bar['pre_close'] == before['close'] for before, bar in zip(bars, bars[1:]))
    assert MARKET.dividends(code, TODAY) == []


def test_split_dividend_through_the_contract():
    events = EVENING.split_dividend(STOCK, bq.to_ms(date(2020, 1, 1)), bq.to_ms(date(2021, 12, 31)))
    assert [event['date'][:4] for event in events] == ['2020', '2021']
    assert set(events[0]) == {'security', 'date', 'security_type', 'scale_factor', 'bonus_pre_tax', 'per_base'}


# -- determinism --------------------------------------------------------------------------------------------------
def test_order_and_range_of_the_questions_do_not_matter():
    other = bq._SyntheticMarket(1)
    other.daily(INDEX, TODAY)
    for day in (date(2010, 1, 5), date(2007, 3, 1), TODAY):
        columns = bq.slice_columns(other.daily(STOCK, day), 0, bq.to_ms(day))
        assert columns == bq.slice_columns(MARKET.daily(STOCK, TODAY), 0, bq.to_ms(day))
    day = bq.to_ms(MONDAY)
    alone = other.minutes(STOCK, day, day)
    assert alone == bq.slice_columns(MARKET.minutes(STOCK, day - 9 * bq.DAY_MS, day), day, day + bq.DAY_MS)


def test_seeds_differ():
    assert bq._SyntheticMarket(2).daily(STOCK, TODAY)['close'][:99] != MARKET.daily(STOCK, TODAY)['close'][:99]


def checksum(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


# Computed once; the same on every version and platform.
@pytest.mark.parametrize('code, days, minutes, quote', [
    ('000001.XSHE', 'c301580f3d528542', 'fb0d661b2b47ccff', 'f10d6156c9ffee07'),
    ('510300.XSHG', 'd9d7991aca60558d', 'e6e472d4d960dc12', '131321900b8796cd'),
    ('000300.XSHG', 'ef94dae79483d0c0', 'afead4cbaf0c9054', '30db486b38fd2546'),
    ('600111.XSHG', '0a2b69bdd82b24a5', '860fa6cb65f1e413', 'd7f213d3b6dd2af5'),
])
def test_checksums(code, days, minutes, quote):
    columns = bq.slice_columns(MARKET.daily(code, TODAY), 0, bq.to_ms(TODAY))
    assert checksum([list(columns[name]) for name in bq.DAILY_COLUMNS]) == days
    day = bq.to_ms(MONDAY)
    columns = MARKET.minutes(code, day, day)
    assert checksum([list(columns[name]) for name in bq.MINUTE_COLUMNS]) == minutes
    tick = data_at(clock_at(MONDAY, 10, 31, 17)).quote(code)
    assert checksum(list(tick.to_wire().items())) == quote


# -- minutes ------------------------------------------------------------------------------------------------------
@settings(max_examples=120, deadline=None)
@given(st.sampled_from(CODES), st.integers(0, 10 ** 6))
def test_240_minutes_aggregate_to_their_day(code, pick):
    bars = whole(code)
    bar = bars[pick % len(bars)]
    columns = MARKET.minutes(code, bar['time'], bar['time'])
    if bar['paused']:
        assert not len(columns['time'])
        return
    assert list(columns['time']) == [bar['time'] + minute * 60000 for minute in bq.BAR_MINUTES]
    assert columns['open'][0] == bar['open'] and columns['close'][-1] == bar['close']
    assert max(columns['high']) == bar['high'] and min(columns['low']) == bar['low']
    assert sum(columns['volume']) == bar['volume'] and min(columns['volume']) >= 0
    assert math.fsum(columns['money']) == pytest.approx(bar['money'], rel=1e-6)
    for opened, close, high, low in zip(*[columns[name] for name in ('open', 'close', 'high', 'low')]):
        assert low <= min(opened, close) <= max(opened, close) <= high
        assert bq.on_tick(high, bq.instrument(code).tick) and bq.on_tick(low, bq.instrument(code).tick)


def test_no_minutes_on_a_suspended_day():
    paused = [bar['time'] for bar in whole(STOCK) if bar['paused']]
    assert not len(MARKET.minutes(STOCK, paused[0], paused[0])['time'])


# -- securities ---------------------------------------------------------------------------------------------------
def test_securities():
    assert EVENING.security_info('600519.XSHG')['display_name'] == '贵州茅台'
    assert EVENING.security_info('600519.XSHG')['start_date'] == '2001-08-27'
    types = {code: MARKET.info(code)['type'] for code in CODES}
    assert set(types.values()) == {'stock', 'etf', 'lof', 'index', 'bond'}
    indexes = EVENING.all_securities(['index']).columns['code']
    assert indexes == [code for code in MARKET.codes() if types[code] == 'index'] and '399006.XSHE' in indexes


def test_listed_then():
    early = EVENING.all_securities(['stock'], date(2010, 1, 1)).columns['code']
    assert '300750.XSHE' not in early and '600519.XSHG' in early


def test_unknown_kinds_are_not_found():
    with pytest.raises(bq.SecurityNotFound):
        EVENING.security_info('999999.XSHG')


def test_index_stocks_are_listed_stocks():
    stocks = EVENING.index_stocks(INDEX)
    assert len(stocks) > 15 and all(MARKET.info(code)['type'] == 'stock' for code in stocks)
    assert '300750.XSHE' not in EVENING.index_stocks(INDEX, date(2015, 1, 5))
    with pytest.raises(bq.DataUnavailable):
        EVENING.index_stocks(STOCK)


def test_trade_days():
    days = EVENING.trade_days(count=3)
    assert [bq.from_ms(day).date() for day in days] == [date(2024, 6, 12), date(2024, 6, 13), TODAY]


# -- history ------------------------------------------------------------------------------------------------------
def merged(rows):
    """Bars merged by hand: (open, close, high, low, volume)."""
    return (rows[0]['open'], rows[-1]['close'], max(row['high'] for row in rows), min(row['low'] for row in rows),
            sum(row['volume'] for row in rows))


def merged_rows(table):
    return list(zip(table['open'], table['close'], table['high'], table['low'], table['volume']))


@pytest.mark.parametrize('frequency', ['1d', 'daily', 'day'])
def test_days_by_count_and_by_dates(frequency):
    bars = whole(ETF)[-5:]
    by_count = ask(EVENING, ETF, count=5, frequency=frequency)
    by_dates = ask(EVENING, ETF, start=bq.from_ms(bars[0]['time']), end='2024-06-14', frequency=frequency)
    assert rows_of(by_count) == rows_of(by_dates)
    assert by_count['index'] == [bq.from_ms(bar['time']) for bar in bars]
    assert merged_rows(by_count) == [merged([bar]) for bar in bars]
    assert list(by_count.columns) == ['index', 'open', 'close', 'high', 'low', 'volume', 'money']


@pytest.mark.parametrize('step', [1, 5, 7, 15, 30, 60, 120])
def test_minutes_are_windows_from_the_end(step):
    days = MARKET.calendar(TODAY)[-2:]
    columns = MARKET.minutes(ETF, days[0], days[1])
    minutes = [dict(zip(columns, values)) for values in zip(*columns.values())]
    table = ask(EVENING, ETF, count=4, frequency='%dm' % step)
    windows = [minutes[len(minutes) - step * (4 - i):len(minutes) - step * (3 - i)] for i in range(4)]
    assert table['index'] == [bq.from_ms(window[-1]['time']) for window in windows]
    assert merged_rows(table) == [merged(window) for window in windows]


def test_minutes_by_dates_and_a_bare_end_date_leaves_that_day_out():
    table = ask(EVENING, ETF, start='2024-06-12', end='2024-06-13', frequency='1m')
    assert len(table) == 240
    assert (table['index'][0], table['index'][-1]) == (datetime(2024, 6, 12, 9, 31), datetime(2024, 6, 12, 15))
    table = ask(EVENING, ETF, start='2024-06-12 14:59', end='2024-06-13 09:32', frequency='1m')
    assert [moment.strftime('%H:%M') for moment in table['index']] == ['14:59', '15:00', '09:31', '09:32']


@pytest.mark.parametrize('unit, key', [('1w', lambda day: day.isocalendar()[:2]),
                                       ('1M', lambda day: (day.year, day.month))])
def test_weeks_and_months(unit, key):
    groups = []
    for bar in whole(ETF):
        if groups and key(bq.from_ms(groups[-1][-1]['time'])) == key(bq.from_ms(bar['time'])):
            groups[-1].append(bar)
        else:
            groups.append([bar])
    table = ask(EVENING, ETF, count=14, frequency=unit)
    assert merged_rows(table) == [merged(group) for group in groups[-14:]]
    assert table['index'] == [bq.from_ms(group[-1]['time']) for group in groups[-14:]]


def test_three_day_bars():
    bars = whole(ETF)
    table = ask(EVENING, ETF, count=2, frequency='3d')
    assert merged_rows(table) == [merged(bars[-6:-3]), merged(bars[-3:])]


def test_all_fields_in_the_asked_order():
    fields = ['paused', 'close', 'avg', 'high_limit', 'low_limit', 'pre_close', 'factor', 'open', 'price']
    table, bar = ask(EVENING, STOCK, count=1, fields=fields, fq=None), whole(STOCK)[-1]
    assert list(table.columns) == ['index'] + fields
    assert table['avg'][0] == table['price'][0] == pytest.approx(bar['money'] / bar['volume'])
    assert [table[name][0] for name in ('close', 'high_limit', 'low_limit', 'pre_close', 'factor', 'paused')] == [
        bar['close'], bar['high_limit'], bar['low_limit'], bar['pre_close'], 1.0, 0.0]


def test_a_row_before_the_listing_is_nan_in_every_field():
    listed = MARKET.info('688001.XSHG')['start_date']
    table = ask(EVENING, '688001.XSHG', start=listed - timedelta(days=7), end=listed, fields=['paused', 'close'],
                fq=None)
    assert len(table) > 3 and table['paused'][-1] == 0.0
    assert all(value != value for name in ('paused', 'close') for value in table[name][:-1])
    week = ask(EVENING, '688001.XSHG', start=listed - timedelta(days=listed.weekday()), end=listed, frequency='1w',
               fields=['paused'], fq=None)
    assert week['paused'] == [0.0]


def test_caches_are_bounded_and_what_was_dropped_comes_back_the_same(monkeypatch):
    monkeypatch.setattr(bq._SyntheticMarket, 'KEPT', 3)
    monkeypatch.setattr(bq.StubData, 'PLANS_KEPT', 2)
    market = bq._SyntheticMarket(1)
    data = data_at(EVENING.clock.now(), market)
    first = rows_of(ask(data, STOCK, count=5))
    quotes = {code: data.quote(code).as_dict() for code in (STOCK, ETF)}
    for number in range(8):
        ask(data, '60%04d.XSHG' % (100 + number), count=1)
        data.quote('60%04d.XSHG' % (100 + number))
        assert len(market._series) <= 3 and len(data._plans) <= 2
    assert rows_of(ask(data, STOCK, count=5)) == first
    assert {code: data.quote(code).as_dict() for code in (STOCK, ETF)} == quotes


def test_a_security_that_was_not_listed_then_has_no_info():
    listed = MARKET.info('688001.XSHG')['start_date']
    assert EVENING.security_info('688001.XSHG', listed)['start_date'] == listed.isoformat()
    with pytest.raises(bq.SecurityNotFound):
        EVENING.security_info('688001.XSHG', listed - timedelta(days=1))


@pytest.mark.parametrize('always_open, moment, continuous', [
    (True, (20, 0), True), (True, (14, 58), True), (False, (20, 0), False), (False, (14, 58), False),
    (False, (10, 0), True)])
def test_the_cage_is_asked_of_the_market_not_of_the_wall_clock(always_open, moment, continuous):
    data = data_at(clock_at(TODAY, *moment), always_open=always_open)
    assert data.market_state(STOCK).continuous is continuous


def test_minute_fields():
    table = ask(EVENING, STOCK, count=3, frequency='1m', fields=['open', 'pre_close', 'high_limit'], fq=None)
    assert table['pre_close'] == table['open']
    assert table['high_limit'] == [whole(STOCK)[-1]['high_limit']] * 3


def ex_rows(code=STOCK):
    """(row before, row of the ex-date) for each ex-date."""
    bars = whole(code)
    return [pair for pair in zip(bars, bars[1:]) if pair[0]['close'] != pair[1]['pre_close']]


@pytest.mark.parametrize('fq', ['pre', 'post'])
def test_adjusted_returns_go_on_across_ex_dates(fq):
    for before, bar in ex_rows():
        table = ask(EVENING, STOCK, fq=fq, start=bq.from_ms(before['time']), end=bq.from_ms(bar['time']),
                    fields=['close', 'pre_close', 'factor', 'volume'])
        first, second = table['close']
        rounding = 0.011 / first
        assert second / first == pytest.approx(bar['close'] / bar['pre_close'], abs=2 * rounding)
        assert table['pre_close'][1] == pytest.approx(first, abs=0.011)
        assert second == pytest.approx(bar['close'] * table['factor'][1], abs=0.00501)
        assert table['volume'][1] == round(bar['volume'] / table['factor'][1])
        step = before['close'] / bar['pre_close']
        assert table['factor'][1] / table['factor'][0] == pytest.approx(step, rel=1e-9)


def test_anchors_of_the_adjustment():
    assert ask(EVENING, STOCK, count=1, fields=['factor'])['factor'] == [1.0]
    first = ask(EVENING, STOCK, fq='post', start='2005-01-04', end='2005-01-10', fields=['factor'])
    assert set(first['factor']) == {1.0}
    bar = ex_rows()[5][1]
    table = ask(EVENING, STOCK, start=bq.from_ms(bar['time']), end=bq.from_ms(bar['time']),
                pre_factor_ref_date=bq.from_ms(bar['time']).date(), fields=['close', 'factor'])
    assert rows_of(table) == [(bq.from_ms(bar['time']), bar['close'], 1.0)]


def test_minutes_are_adjusted_like_their_day():
    before = ex_rows()[-2][0]
    day = bq.from_ms(before['time'])
    daily = ask(EVENING, STOCK, start=day, end=day, fields=['close', 'factor'])
    minute = ask(EVENING, STOCK, start=day, end=day.replace(hour=15), frequency='1m', fields=['close', 'factor'])
    assert minute['factor'] == daily['factor'] * 240 and daily['factor'][0] < 1
    assert minute['close'][-1] == daily['close'][0]


def first_suspension():
    bars = whole(STOCK)
    row = next(i for i, bar in enumerate(bars) if bar['paused'] and i > 10)
    return bars[row - 1], bars[row], bq.from_ms(bars[row - 1]['time']), bq.from_ms(bars[row]['time'])


@pytest.mark.parametrize('frequency, rows', [('1d', 1), ('1m', 240)])
def test_suspended_time(frequency, rows):
    before, paused, _, day = first_suspension()
    asked = dict(start=day, end=day.replace(hour=15), frequency=frequency, fq=None,
                 fields=['close', 'open', 'volume', 'money', 'paused', 'avg'])
    filled = ask(EVENING, STOCK, **asked)
    assert [row[1:] for row in rows_of(filled)] == [(before['close'],) * 2 + (0.0, 0.0, 1.0, before['close'])] * rows
    asked['fields'] += ['high_limit', 'low_limit', 'pre_close']
    bare = ask(EVENING, STOCK, fill_paused=False, **asked)
    assert len(bare) == rows
    assert all(math.isnan(value) for name in asked['fields'] for value in bare[name])
    assert len(ask(EVENING, STOCK, skip_paused=True, **asked)) == 0


def test_skip_paused_counts_trading_days_alone():
    bars = [bar for bar in whole(STOCK) if not bar['paused']]
    table = ask(EVENING, STOCK, count=400, skip_paused=True, fq=None)
    assert table['close'] == [bar['close'] for bar in bars[-400:]]
    assert len(ask(EVENING, STOCK, count=400, fq=None)) == 400


def test_days_before_listing_are_unknown():
    table = ask(EVENING, '300750.XSHE', start='2018-06-08', end='2018-06-11', fields=['close', 'volume'])
    assert math.isnan(table['close'][0]) and math.isnan(table['volume'][0]) and table['close'][1] > 0
    assert len(ask(EVENING, '300750.XSHE', start='2018-06-08', end='2018-06-11', skip_paused=True)) == 1


def test_many_securities_wide_and_long():
    codes, fields = [STOCK, ETF], ['close', 'volume']
    single = {code: ask(EVENING, code, count=3, fields=fields) for code in codes}
    wide = ask(EVENING, codes, count=3, fields=fields)
    assert wide.wide == [('close', STOCK), ('close', ETF), ('volume', STOCK), ('volume', ETF)]
    assert wide[repr(('volume', ETF))] == single[ETF]['volume'] and wide['index'] == single[ETF]['index']
    long = ask(EVENING, codes, count=3, fields=fields, panel=False)
    assert list(long.columns) == ['time', 'code', 'close', 'volume'] and long['code'] == [STOCK] * 3 + [ETF] * 3
    assert long['close'] == single[STOCK]['close'] + single[ETF]['close']
    with pytest.raises(bq.BadRequest):
        ask(EVENING, codes, count=3, skip_paused=True)


def test_a_list_of_one_is_no_single():
    assert ask(EVENING, [STOCK], count=1).wide == [(name, STOCK) for name in bq.DEFAULT_FIELDS]


def test_nothing_in_the_range():
    assert len(ask(EVENING, STOCK, start='2024-06-08', end='2024-06-09')) == 0
    assert len(ask(EVENING, STOCK, start='2024-06-08', end='2024-06-09', frequency='5m')) == 0


# -- the running day ----------------------------------------------------------------------------------------------
def test_today_has_no_bar_before_the_open():
    data = data_at(clock_at(TODAY, 9, 29, 59))
    assert ask(data, count=1)['index'] == [datetime(2024, 6, 13)]
    assert ask(data, count=1, frequency='1m')['index'] == [datetime(2024, 6, 13, 15)]
    assert data.trade_days(count=1) == [bq.to_ms(TODAY)]


def test_at_the_open_the_bar_is_the_open_alone():
    table = ask(data_at(clock_at(TODAY, 9, 30)), count=1)
    bar = whole(STOCK)[-1]
    assert merged_rows(table) == [(bar['open'],) * 4 + (0.0,)] and table['index'] == [datetime(2024, 6, 14)]


@pytest.mark.parametrize('always_open', [False, True])
def test_today_never_shows_the_future(always_open):
    data = data_at(clock_at(TODAY, 9, 0), always_open=always_open)
    minutes, earlier, final = [], None, whole(STOCK)[-1]
    for step in range(0, 400, 7):
        now = clock_at(TODAY, 9, 0) + timedelta(minutes=step, seconds=20)
        data.clock.set(now)
        shown = rows_of(ask(data, frequency='1m', start=bq.from_ms(bq.to_ms(TODAY))))
        assert shown[:len(minutes)] == minutes and all(row[0] <= now for row in shown)
        minutes = shown
        if always_open and minutes:  # six minutes of clock are one of the day
            assert len(minutes) <= (bq.minute_of_day(now) * 60 + now.second) / 360
        past = rows_of(ask(data, count=4, end=TODAY - timedelta(days=1)))
        assert earlier is None or past == earlier
        earlier, today = past, rows_of(ask(data, start=TODAY, fq=None))
        if bq.minute_of_day(now) < 570:
            assert not today
        elif not minutes:
            assert today[0][1:6] == (final['open'],) * 4 + (0.0,)
        else:
            assert today[0][1:6] == (minutes[0][1], minutes[-1][2], max(row[3] for row in minutes),
                                     min(row[4] for row in minutes), sum(row[5] for row in minutes))
    if always_open:
        assert len(minutes) == (bq.minute_of_day(now)) // 6 < 240
        quote = data.quote(STOCK)
        assert today[0][5] <= quote.volume and minutes[-1][2] != final['close']
        data.clock.set(clock_at(TODAY, 0, 0) + timedelta(days=1))
        assert len(rows_of(ask(data, frequency='1m', start=bq.from_ms(bq.to_ms(TODAY))))) == 240
    else:
        assert len(minutes) == 240
    assert merged_rows(ask(data, count=1, end=TODAY)) == [merged([final])]


def test_the_running_week():
    data = data_at(clock_at(TODAY, 10, 0))
    table, today = ask(data, count=1, frequency='1w', fq=None), ask(data, count=1, fq=None)
    assert table['index'] == [datetime(2024, 6, 14)] and table['close'] == today['close']


def test_a_weekend_adds_nothing_to_history():
    assert ask(data_at(datetime(2024, 6, 15, 11), always_open=True), count=1)['index'] == [datetime(2024, 6, 14)]


# -- quotes -------------------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CODES), st.integers(0, 86399), st.integers(0, 20), st.booleans())
def test_quotes_are_sound(code, second, day, always_open):
    data = data_at(datetime(2024, 6, 1) + timedelta(days=day, seconds=second), always_open=always_open)
    tick, item = data.quote(code), bq.instrument(code)
    assert tick == data_at(data.clock.now(), bq._SyntheticMarket(1) if day == 0 else MARKET, always_open).quote(code)
    assert bq.on_tick(tick.last_price, item.tick) and tick.sid == code and tick.dt == data.clock.now()
    if tick.open is not None:
        assert tick.low <= min(tick.open, tick.last_price) <= max(tick.open, tick.last_price) <= tick.high
        assert tick.low > 0 and tick.volume >= 0 and tick.money >= 0
    if item.kind == 'index':
        assert (tick.a1_p, tick.a1_v, tick.b1_p, tick.b1_v) == (None,) * 4
        return
    if tick.a1_p:
        assert tick.a1_p > tick.last_price or tick.last_price == tick.low_limit
        assert tick.a1_v % 100 == 0 and tick.a1_v > 0 and bq.on_tick(tick.a1_p, item.tick)
    if tick.b1_p:
        assert tick.b1_p < tick.last_price or tick.last_price == tick.high_limit
        assert tick.b1_v % 100 == 0 and tick.b1_v > 0 and bq.on_tick(tick.b1_p, item.tick)
    if tick.high_limit:
        assert tick.low_limit <= tick.last_price <= tick.high_limit
        assert tick.a1_p <= tick.high_limit and (not tick.b1_p or tick.b1_p >= tick.low_limit)


@pytest.mark.parametrize('always_open', [False, True])
def test_a_day_of_quotes_agrees_with_itself(always_open):
    start = datetime(2024, 6, 14) if always_open else clock_at(TODAY, 9, 30)
    data, seen = data_at(start, always_open=always_open), []
    for _ in range(1500):
        tick = data.quote(STOCK)
        if seen:
            assert tick.high >= max(seen[-1].high, tick.last_price) and tick.low <= min(seen[-1].low, tick.last_price)
            assert tick.volume >= seen[-1].volume and tick.money >= seen[-1].money
        seen.append(tick)
        data.clock.advance(7)
    moved = sum(a.last_price != b.last_price for a, b in zip(seen, seen[1:]))
    assert moved > 300


def test_quotes_meet_the_minute_bars():
    data = data_at(clock_at(TODAY, 10, 0))
    bar = ask(data, count=1, fq=None)
    tick = data.quote(STOCK)
    assert (tick.last_price, tick.high, tick.low, tick.volume) == tuple(
        bar[name][0] for name in ('close', 'high', 'low', 'volume'))
    assert tick.money == pytest.approx(bar['money'][0])


def test_quotes_by_the_clock_of_the_market():
    data, bar = data_at(clock_at(TODAY, 9, 0)), whole(STOCK)[-1]
    tick = data.quote(STOCK)
    assert (tick.last_price, tick.open, tick.volume, tick.a1_p, tick.b1_p) == (bar['pre_close'], None, 0, 0.0, 0.0)
    data.clock.set(clock_at(TODAY, 11, 30))
    noon = data.quote(STOCK)
    data.clock.set(clock_at(TODAY, 12, 59, 59))
    assert data.quote(STOCK).replace(dt=None) == noon.replace(dt=None)
    for moment in (clock_at(TODAY, 15), datetime(2024, 6, 16, 12)):
        data.clock.set(moment)
        tick = data.quote(STOCK)
        assert (tick.last_price, tick.high, tick.low, tick.volume) == (
            bar['close'], bar['high'], bar['low'], bar['volume'])


def test_always_open_walks_through_the_plan_of_the_calendar_day():
    data, bar = data_at(datetime(2024, 6, 14), always_open=True), whole(STOCK)[-1]
    assert data.quote(STOCK).last_price == bar['open']
    columns = MARKET.minutes(STOCK, bar['time'], bar['time'])
    data.clock.set(datetime(2024, 6, 14, 12))
    assert data.quote(STOCK).last_price == columns['close'][119]
    data.clock.set(datetime(2024, 6, 16, 3))
    sunday = data.quote(STOCK)
    assert sunday.pre_close == bar['close'] and not sunday.paused and sunday.a1_p > 0


def test_a_suspended_security_has_a_quote_without_a_book():
    before, _, _, day = first_suspension()
    tick = data_at(day.replace(hour=10)).quote(STOCK)
    assert tick.paused and tick.last_price == before['close'] and (tick.a1_v, tick.b1_v) == (0, 0)
    assert data_at(day.replace(hour=10)).live_current(STOCK)['paused'] is True


@pytest.mark.parametrize('last, side', [(1100, 'ask'), (900, 'bid')])
def test_at_a_limit_one_side_is_empty(last, side):
    ask_price, ask_volume, bid, bid_volume = bq._level_one(bq.random.Random('x'), last, 1100, 900)
    assert (ask_price, ask_volume) == (0, 0) if side == 'ask' else (bid, bid_volume) == (0, 0)
    assert bid == 1100 if side == 'ask' else ask_price == 900


def test_live_current():
    current = EVENING.live_current(STOCK)
    bar = whole(STOCK)[-1]
    assert (current['last_price'], current['high_limit'], current['paused'], current['name'], current['day_open']) == (
        bar['close'], bar['high_limit'], False, '平安银行', bar['open'])


def test_no_quote_before_the_listing():
    with pytest.raises(bq.DataUnavailable):
        data_at(datetime(2018, 6, 8, 10)).quote('300750.XSHE')


def test_market_open_trade_day_last_close():
    market, always = data_at(clock_at(TODAY, 9, 29)), data_at(datetime(2024, 6, 16, 3), always_open=True)
    assert not market.market_open() and market.market_open(clock_at(TODAY, 9, 30)) and always.market_open()
    assert not market.market_open(clock_at(TODAY, 12)) and not market.market_open(datetime(2024, 6, 15, 10))
    assert always.trade_day(datetime(2024, 6, 16, 3)) == date(2024, 6, 16)
    assert market.last_close(STOCK) == whole(STOCK)[-1]['pre_close']
    assert always.last_close(STOCK) == whole(STOCK)[-1]['close']


# -- pushed ticks -------------------------------------------------------------------------------------------------
class Collector:
    def __init__(self, wanted, fail_on=None):
        self.wanted, self.fail_on, self.ticks, self.done = wanted, fail_on, [], threading.Event()

    def __call__(self, tick):
        self.ticks.append(tick)
        if len(self.ticks) >= self.wanted:
            self.done.set()
        if tick.sid == self.fail_on:
            raise ValueError('listener broke')


def test_ticks_are_pushed_until_close():
    data, got = data_at(clock_at(TODAY, 10, 0)), Collector(6)
    data.set_tick_listener(got)
    assert data._thread is None
    data.subscribe([STOCK, INDEX])
    assert got.done.wait(10) and data._thread.daemon and data._thread.name == 'stub-ticks'
    data.close()
    assert not data._thread.is_alive() and {tick.sid for tick in got.ticks} == {STOCK, INDEX}
    assert got.ticks[0] == data.quote(got.ticks[0].sid)


def test_unsubscribed_codes_are_silent():
    data, got = data_at(clock_at(TODAY, 10, 0)), Collector(3)
    data.set_tick_listener(got)
    data.subscribe([ETF])
    data.unsubscribe([ETF])
    data.subscribe([STOCK])
    assert got.done.wait(10)
    data.close()
    assert {tick.sid for tick in got.ticks[1:]} == {STOCK}


def test_a_failing_listener_is_logged_and_the_others_go_on(caplog):
    data, got = data_at(clock_at(TODAY, 10, 0)), Collector(8, fail_on=STOCK)
    data.set_tick_listener(got)
    with caplog.at_level('ERROR', 'bullet_qmt'):
        data.subscribe([STOCK, ETF, '300750.XSHE'])
        assert got.done.wait(10)
        data.close()
    assert {tick.sid for tick in got.ticks} == {STOCK, ETF, '300750.XSHE'}
    assert any('listener broke' in (record.exc_text or '') for record in caplog.records)


def test_a_security_without_a_quote_does_not_stop_the_push():
    data, got = data_at(datetime(2018, 6, 8, 10)), Collector(3)
    data.set_tick_listener(got)
    data.subscribe(['300750.XSHE', STOCK])
    assert got.done.wait(10)
    data.close()
    assert {tick.sid for tick in got.ticks} == {STOCK}


def test_subscribing_to_what_is_none_is_refused():
    data = data_at(clock_at(TODAY, 10, 0))
    with pytest.raises(bq.SecurityNotFound):
        data.subscribe(['999999.XSHG'])
    assert data._thread is None
    data.close()


# -- CSV files ----------------------------------------------------------------------------------------------------
MOUTAI, UNIS = '600519.XSHG', '000938.XSHE'


def csv_rows(code):
    with io.open(os.path.join(DATA, '%s_1d.csv' % code), newline='') as file:
        return [{name: value if name == 'date' else float(value) for name, value in row.items()}
                for row in csv.DictReader(file)]


@pytest.fixture(scope='module')
def real():
    return data_at(datetime(2020, 4, 13, 10), bq._CsvMarket(DATA))


@pytest.mark.parametrize('code', [MOUTAI, UNIS])
def test_csv_equals_its_file_row_by_row(real, code):
    fields = ['open', 'close', 'high', 'low', 'volume', 'money', 'pre_close']
    table = ask(real, code, start='2010-01-01', fq=None, skip_paused=True, fields=fields)
    rows = [row for row in csv_rows(code) if not row['paused']]
    assert [moment.strftime('%Y-%m-%d') for moment in table['index']] == [row['date'] for row in rows]
    for name in fields:
        assert table[name] == [row[name] for row in rows]


@pytest.mark.parametrize('code', [MOUTAI, UNIS])
@pytest.mark.parametrize('fq', ['pre', 'post'])
def test_csv_adjusted_by_hand(real, code, fq):
    rows, factors = csv_rows(code), [1.0]
    for before, row in zip(rows, rows[1:]):
        factors.append(factors[-1] * (before['close'] / row['pre_close']))
    base = factors[-1] if fq == 'pre' else 1.0
    table = ask(real, code, start='2010-01-01', fq=fq, skip_paused=True, fields=['close', 'volume', 'factor'])
    traded = [(row, factor / base) for row, factor in zip(rows, factors) if not row['paused']]
    assert table['factor'] == pytest.approx([factor for _, factor in traded], rel=1e-9)
    assert table['close'] == pytest.approx([row['close'] * factor for row, factor in traded], abs=0.00501)
    assert table['volume'] == pytest.approx([row['volume'] / factor for row, factor in traded], abs=0.501)
    assert table['close'][-1] == rows[-1]['close'] or fq == 'post'


def test_csv_missing_days_are_suspensions(real):
    have, days = {row['date'] for row in csv_rows(MOUTAI)}, real.trade_days()
    missing = [bq.from_ms(day) for day in days if bq.iso_ms(day)[:10] not in have]
    assert len(missing) >= 5
    row = ask(real, MOUTAI, start=missing[0], end=missing[0], fq=None, fields=['close', 'volume', 'paused'])
    before = ask(real, MOUTAI, count=1, end=missing[0] - timedelta(days=1), fq=None, fields=['close'])
    assert rows_of(row) == [(missing[0], before['close'][0], 0.0, 1.0)]
    assert data_at(missing[0].replace(hour=10), real.source).quote(MOUTAI).paused


def test_csv_dividends_are_the_steps_of_pre_close(real):
    events = real.split_dividend(MOUTAI, 0, bq.to_ms(date(2020, 12, 31)))
    assert len(events) == 10 and events[-1] == {
        'security': MOUTAI, 'date': '2019-06-28', 'security_type': 'stock', 'scale_factor': 1.0,
        'bonus_pre_tax': pytest.approx(145.4), 'per_base': 10}


def test_csv_new_shares_are_told_from_cash(real):
    """Moutai gave 1 share and 23, 43.74, 43.74 yuan for ten, Unisplendour 4 and 2, 4 and 1.5."""
    end = bq.to_ms(date(2020, 12, 31))
    shares = {(code, event['date']): (event['scale_factor'], event['bonus_pre_tax']) for code in (MOUTAI, UNIS)
              for event in real.split_dividend(code, 0, end) if event['scale_factor'] != 1}
    assert {key: scale for key, (scale, _) in shares.items()} == {
        (MOUTAI, '2011-07-01'): 1.1, (MOUTAI, '2014-06-25'): 1.1, (MOUTAI, '2015-07-17'): 1.1,
        (UNIS, '2018-07-05'): 1.4, (UNIS, '2019-05-27'): 1.4}
    assert [cash for _, cash in shares.values()] == pytest.approx([23, 43.74, 43.74, 2, 1.5], abs=0.07)


@pytest.mark.parametrize('code, before, reference, plan', [
    (STOCK, 10.0, 9.2, (0.0, 0.8)), (STOCK, 11.0, 10.0, (0.1, 0.0)), (STOCK, 10.03, 9.12, (0.1, 0.0)),
    (STOCK, 20.0, 9.75, (1.0, 0.5)), (ETF, 2.001, 1.001, (1.0, 0.0)), (ETF, 3.0, 2.0, (0.0, 1.0)),
    ('113050.XSHG', 110.0, 55.0, (0.0, 55.0))])
def test_the_plan_that_a_fall_of_the_reference_price_means(code, before, reference, plan):
    assert bq.guessed_plan(code, before, reference) == pytest.approx(plan, abs=1e-9)


def test_csv_calendar_is_the_union(real):
    dates = {row['date'] for code in (MOUTAI, UNIS) for row in csv_rows(code)}
    assert [bq.iso_ms(day)[:10] for day in real.trade_days()] == sorted(dates)


def test_csv_quotes_start_from_the_last_close(real):
    tick = real.quote(MOUTAI)
    assert tick.pre_close == 1165.0 and tick.high_limit == 1281.5 and tick.low_limit <= tick.last_price <= 1281.5
    assert ask(real, MOUTAI, count=1)['index'] == [datetime(2020, 4, 10)]
    assert real.market_open() and not real.market_open(datetime(2020, 4, 6, 10))  # a holiday, by the files


def test_csv_running_day_hides_the_rest_of_its_row(real):
    data = data_at(datetime(2019, 6, 3, 10), real.source)
    row = next(row for row in csv_rows(UNIS) if row['date'] == '2019-06-03')
    shown = ask(data, UNIS, count=1, fq=None)
    assert shown['index'] == [datetime(2019, 6, 3)] and shown['open'] == [row['open']]
    assert 0 < shown['volume'][0] < row['volume'] and row['low'] <= shown['close'][0] <= row['high']
    data.clock.set(datetime(2019, 6, 3, 15))
    assert merged_rows(ask(data, UNIS, count=1, fq=None)) == [merged([row])]


def test_csv_knows_only_its_files(real):
    with pytest.raises(bq.SecurityNotFound) as caught:
        ask(real, STOCK, count=1)
    assert DATA in caught.value.hint
    with pytest.raises(bq.DataUnavailable) as caught:
        ask(real, MOUTAI, count=1, frequency='1m')
    assert '600519.XSHG_1m.csv' in caught.value.hint
    assert real.all_securities(['stock']).columns['code'] == [UNIS, MOUTAI]


GOOD = 'date,open,close,high,low,volume,money\n' \
    '2024-06-03,10,10.5,11,9.5,1000,10200\n2024-06-04,10.5,10,11,10,500,5100\n'
MINUTES = 'time,open,close,high,low,volume,money\n' \
    '2024-06-03 09:31:00,10,10.5,11,10,100,1050\n2024-06-03 15:00:00,10.5,9,10.5,9,50,500\n' \
    '2024-06-04 09:31:00,9,9.5,9.5,9,10,93\n'


def write(folder, name, text, encoding='utf-8'):
    with io.open(os.path.join(str(folder), name), 'w', encoding=encoding, newline='') as file:
        file.write(text)
    return bq._CsvMarket(str(folder), today=date(2026, 1, 5))


@pytest.mark.parametrize('text, encoding', [(GOOD, 'utf-8'), (GOOD.replace('\n', '\r\n'), 'utf-8-sig'),
                                            (GOOD.rstrip('\n'), 'utf-8')])
def test_csv_spellings(tmpdir, text, encoding):
    columns = write(tmpdir, '600000.XSHG_1d.csv', text, encoding).daily('600000.XSHG', TODAY)
    columns = {name: list(values) for name, values in columns.items()}
    assert columns['close'] == [10.5, 10.0] and columns['pre_close'] == [10.0, 10.5]
    assert columns['paused'] == [0.0, 0.0]
    assert columns['high_limit'] == [11.0, 11.55] and columns['low_limit'][1] == 9.45


def test_csv_columns_are_found_by_name(tmpdir):
    text = 'low,money,x,date,high,close,volume,open,high_limit\n9,1,?,2024-06-03,10.4,10,7,9.5,12\n'
    columns = write(tmpdir, '600000.SH_1d.csv', text).daily('600000.XSHG', TODAY)
    assert [list(columns[name]) for name in ('open', 'high_limit', 'low_limit')] == [[9.5], [12.0], [8.55]]


def test_csv_plans_that_the_file_tells(tmpdir):
    """15 yuan and 2 shares for ten: that fall alone would pass for 4 new shares. The limits follow the reference."""
    text = 'date,open,close,high,low,volume,money,bonus_shares,cash_dividend\n' \
        '2024-06-03,10,10,10,10,9,90,0,0\n2024-06-04,7,7.2,7.5,7,9,64,2,15\n2024-06-05,7.2,7.2,7.3,7,9,64,0,0\n'
    market = write(tmpdir, '600000.XSHG_1d.csv', text)
    assert market.dividends('600000.XSHG', TODAY) == [{
        'security': '600000.XSHG', 'date': bq.to_ms(date(2024, 6, 4)), 'security_type': 'stock', 'scale_factor': 1.2,
        'bonus_pre_tax': 15.0, 'per_base': 10}]
    columns = market.daily('600000.XSHG', TODAY)
    assert list(columns['pre_close']) == [10.0, 7.08, 7.2] and columns['high_limit'][1] == 7.79
    assert set(columns) == {'time'} | set(bq.DAILY_COLUMNS)


def test_csv_rights_issues_pay_nothing_where_the_file_tells(tmpdir):
    text = 'date,open,close,high,low,volume,money,pre_close,cash_dividend\n' \
        '2024-06-03,10,10,10,10,9,90,10,0\n2024-06-04,8,8,8,8,9,64,8,0\n'
    assert write(tmpdir, '600000.XSHG_1d.csv', text).dividends('600000.XSHG', TODAY) == []


@pytest.mark.parametrize('paid', ['20,15', '2,150', '0.2,1.5'])
def test_csv_plans_that_are_not_for_ten_shares(tmpdir, paid):
    text = 'date,open,close,high,low,volume,money,pre_close,bonus_shares,cash_dividend\n' \
        '2024-06-03,10,10,10,10,9,90,10,0,0\n2024-06-04,7,7.2,7.5,7,9,64,7.08,%s\n' % paid
    with pytest.raises(bq.ConfigError) as caught:
        write(tmpdir, '600000.XSHG_1d.csv', text)
    assert '第 3 行' in str(caught.value) and '每 10 股' in caught.value.hint


@pytest.mark.parametrize('pre_close', ['0', '-9.5'])
def test_csv_references_are_prices(tmpdir, pre_close):
    """In the first row it does not matter; later it would be a dividend of all that the share is worth."""
    text = 'date,open,close,high,low,volume,money,pre_close\n2024-06-03,10,10,10,10,9,90,0\n' \
        '2024-06-04,9,9,9,9,9,81,%s\n'
    assert write(tmpdir, '600000.XSHG_1d.csv', text % '9').dividends('600000.XSHG', TODAY)
    with pytest.raises(bq.ConfigError) as caught:
        write(tmpdir, '600000.XSHG_1d.csv', text % pre_close)
    assert '第 3 行' in str(caught.value)


@pytest.mark.parametrize('reference', [0.001, 0.004, 0.005, 0.01])
def test_plans_of_the_smallest_prices(reference):
    bonus, cash = bq.guessed_plan('600000.XSHG', 0.02, reference)
    assert 0 <= bonus <= 0.02 / (reference / 2) and 0 <= cash <= 0.02


def test_csv_minutes_alone_make_days(tmpdir):
    data = data_at(datetime(2024, 6, 5, 10), write(tmpdir, '600000.XSHG_1m.csv', MINUTES))
    table = ask(data, '600000.XSHG', count=2, fq=None, fields=['open', 'close', 'high', 'low', 'volume', 'pre_close'])
    assert [row[1:] for row in rows_of(table)] == [(10.0, 9.0, 11.0, 9.0, 150.0, 10.0), (9.0, 9.5, 9.5, 9.0, 10.0, 9.0)]
    minutes = ask(data, '600000.XSHG', count=2, frequency='1m', fields=['close'])
    assert rows_of(minutes) == [(datetime(2024, 6, 3, 15), 9.0), (datetime(2024, 6, 4, 9, 31), 9.5)]


def row(text):
    return GOOD + text + '\n'


@pytest.mark.parametrize('text, line', [
    ('', 1), ('date,open,close,high,low,volume\n', 1), ('date,open,open,close,high,low,volume,money\n', 1),
    (GOOD.split('\n')[0] + '\n', 1), (row('2024-06-05,1,1,1,1,1'), 4), (row('2024-06-05,1,1,1,1,1,1,1'), 4),
    (row(''), 4), (row('2024-06-05,x,1,1,1,1,1'), 4), (row('2024-06-05,nan,1,1,1,1,1'), 4),
    (row('2024-06-05,1,1,inf,1,1,1'), 4), (row('2024-06-05,1,1,1,1,-1,1'), 4), (row('2024-06-05,1,1,1,1,1_0,1'), 4),
    (row('2024-06-05,1,1,1e999,1,1,1'), 4), (row('2024-06-05,1,1,1,2,1,1'), 4), (row('2024-06-05,3,1,2,1,1,1'), 4),
    (row('2024-06-05,0,0,0,0,0,0'), 4), (row('2024-06-04,1,1,1,1,1,1'), 4), (row('2024-06-03,1,1,1,1,1,1'), 4),
    (row('2024-06-08,1,1,1,1,1,1'), 4), (row('2199-01-04,1,1,1,1,1,1'), 4),
    (row('2024-02-30,1,1,1,1,1,1'), 4), (row('2024-06-05 09:31,1,1,1,1,1,1'), 4), (row('2024-06-05,,1,1,1,1,1'), 4),
])
def test_csv_broken_days_name_the_line(tmpdir, text, line):
    with pytest.raises(bq.ConfigError) as caught:
        write(tmpdir, '600000.XSHG_1d.csv', text)
    assert '600000.XSHG_1d.csv 第 %d 行' % line in caught.value.message


@pytest.mark.parametrize('moment', ['2024-06-05', '2024-06-05 09:30', '2024-06-05 12:00', '2024-06-05 09:31:30',
                                    '2024-06-03 09:32', '2024-06-08 10:00', '2026-01-06 10:00'])
def test_csv_broken_minutes_name_the_line(tmpdir, moment):
    with pytest.raises(bq.ConfigError) as caught:
        write(tmpdir, '600000.XSHG_1m.csv', MINUTES + moment + ',1,1,1,1,1,1\n')
    assert '600000.XSHG_1m.csv 第 5 行' in caught.value.message


def test_csv_paused_is_a_flag(tmpdir):
    with pytest.raises(bq.ConfigError) as caught:
        write(tmpdir, '600000.XSHG_1d.csv', 'date,open,close,high,low,volume,money,paused\n2024-06-03,1,1,1,1,1,1,2\n')
    assert '第 2 行' in caught.value.message


def test_csv_not_utf8(tmpdir):
    with pytest.raises(bq.ConfigError) as caught:
        write(tmpdir, '600000.XSHG_1d.csv', GOOD + '2024-06-05,1,1,1,1,1,中\n', 'gbk')
    assert '第 4 行' in caught.value.message and 'UTF-8' in caught.value.message


@pytest.mark.parametrize('name', ['600000_1d.csv', '999999.XSHG_1d.csv', '600000.XSHG_5m.csv', 'notes.csv'])
def test_csv_names_without_a_code(tmpdir, name):
    with pytest.raises(bq.ConfigError) as caught:
        write(tmpdir, name, GOOD)
    assert name in caught.value.message


def test_csv_same_security_twice(tmpdir):
    write(tmpdir, '600000.XSHG_1d.csv', GOOD)
    with pytest.raises(bq.ConfigError):
        write(tmpdir, '600000.SH_1d.csv', GOOD)


def test_csv_directories(tmpdir):
    for path in (str(tmpdir), str(tmpdir.join('absent'))):
        with pytest.raises(bq.ConfigError) as caught:
            bq._CsvMarket(path)
        assert path in caught.value.message
    shutil.copy(os.path.join(DATA, '600519.XSHG_1d.csv'), str(tmpdir))
    assert bq._CsvMarket(str(tmpdir)).codes() == [MOUTAI]


def test_csv_quotes_go_through_the_files_own_minutes(tmpdir):
    day = whole(ETF)[-1]['time']
    columns = MARKET.minutes(ETF, day, day)
    lines = [','.join([str(bq.from_ms(values[0]))] + [repr(value) for value in values[1:]])
             for values in zip(*[columns[name] for name in bq.MINUTE_COLUMNS])]
    source = write(tmpdir, '510300.XSHG_1m.csv', '\n'.join(['time,open,close,high,low,volume,money'] + lines))
    data = data_at(clock_at(TODAY, 10, 0), source)
    assert data.quote(ETF).last_price == columns['close'][29]
    same = ask(data_at(data.clock.now()), ETF, count=1, fq=None)
    assert merged_rows(ask(data, ETF, count=1, fq=None)) == merged_rows(same)
    assert ask(data, ETF, count=9, frequency='1m')['index'][-1] == clock_at(TODAY, 10, 0)


@pytest.mark.parametrize('question, rows', [
    ({'count': 11}, 11), ({'count': 6, 'security': ['000001.XSHE', '510300.XSHG'], 'panel': False}, 12),
    ({'start': '2024-05-06'}, 21), ({'start': '2024-05-31', 'frequency': '1m'}, 480),
    ({'count': 3, 'frequency': '5m'}, 15),
    ({'start': '2024-05-06', 'skip_paused': True}, None)])
def test_an_answer_beyond_all_measure_is_refused_before_it_is_read(monkeypatch, question, rows):
    data = data_at(clock_at(MONDAY, 16))

    def limited(limit):
        return data.history(bq.parse_history(dict({'security': '000001.XSHE'}, **question),
                                             data.clock.now()).replace(row_limit=limit))
    rows = rows or len(limited(1000))
    assert len(limited(rows))
    with monkeypatch.context() as patch:
        if not question.get('skip_paused'):
            patch.setattr(data, '_daily', None)  # nothing is read
        with pytest.raises(bq.BadRequest) as caught:
            limited(rows - 1)
    assert '%d 行' % (rows - 1) in caught.value.message
