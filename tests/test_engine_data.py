"""The shapes of the data calls, and their figures against those of the provider's own history."""
import copy
import itertools
import math
import pickle
from array import array
from collections import OrderedDict
from datetime import date, datetime

import numpy
import pandas
import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import A, REAL, MadeMarket, day_row, days_from

MOUTAI, UNIS, CODE = '600519.XSHG', '000938.XSHE', '000001.XSHE'
OLD = hasattr(pandas, 'Panel') and pandas.__version__ < '0.25'
FIELDS = ['open', 'close', 'high', 'low', 'volume', 'money', 'avg', 'factor', 'pre_close', 'high_limit', 'paused']


@pytest.fixture(scope='module')
def real():
    with jq.opened_provider(REAL) as provider:
        yield provider


@pytest.fixture(scope='module')
def paper():
    with jq.opened_provider('stub') as provider:
        yield provider


def view_at(provider, moment, start=None, real_price=True, told=None):
    moment = datetime.strptime(moment, '%Y-%m-%d %H:%M')
    options = jq.Options()
    options.use_real_price = real_price
    store = jq.BarStore(provider, start or moment.date(), moment.date(), date(2020, 4, 10))
    view = jq.DataView(store, options, [].append if told is None else told.append)
    view.move(moment)
    return view


def same(ours, theirs):
    assert list(ours.columns) == list(theirs.columns) and list(ours.index) == list(theirs.index)
    for name in ours.columns:
        for own, other in zip(ours[name], theirs[name]):
            assert own == other or (own != own and other != other) or own == pytest.approx(other, rel=1e-12), name


@pytest.mark.parametrize('how', [
    dict(count=30), dict(start_date='2014-12-01', end_date='2015-06-30'), dict(count=300, skip_paused=True),
    dict(start_date='2015-01-05', fill_paused=False), dict(count=5, frequency='1w'), dict(count=7, frequency='3d'),
    dict(start_date='2014-01-01', frequency='1M')])
@pytest.mark.parametrize('fq', ['pre', 'post', None])
def test_days_are_those_of_the_provider(real, how, fq):
    view = view_at(real, '2015-07-24 15:30')
    span = dict(dict(end_date='2015-07-24'), **how)
    fields = FIELDS if 'frequency' not in how else FIELDS[:6]
    same(view.get_price(UNIS, fields=fields, fq=fq, **how),
         real.get_price(UNIS, fields=fields, fq=fq, pre_factor_ref_date='2015-07-24', **span))


@pytest.mark.parametrize('how', [
    dict(count=10), dict(count=500), dict(start_date='2024-05-08 14:00:00', end_date='2024-05-09 10:00:00'),
    dict(count=6, frequency='5m'), dict(start_date='2024-05-07', end_date='2024-05-08')])
@pytest.mark.parametrize('fq', ['pre', None])
def test_minutes_are_those_of_the_provider(paper, how, fq):
    view = view_at(paper, '2024-05-10 14:33')
    fields = None if 'frequency' in how else FIELDS[:7] + ['high_limit', 'pre_close']
    how = dict(dict(frequency='1m', fields=fields), **how)
    same(view.get_price('000001.XSHE', fq=fq, **how),
         paper.get_price('000001.XSHE', fq=fq, pre_factor_ref_date='2024-05-10',
                         **dict(dict(end_date='2024-05-10 14:33:00'), **how)))


SUSPENDED = [['2026-06-12', 9.3, 9.48, 9.69, 9.27, 1851700, 17477199.0, 9.31, 0],
             ['2026-06-15', 9.48, 9.48, 9.48, 9.48, 0, 0.0, 9.48, 1],
             ['2026-06-16', 9.95, 10.04, 10.43, 9.89, 12223955, 123311359.65, 9.48, 0]]


@pytest.mark.parametrize('how, middle', [
    (dict(), [9.48, 9.48, 9.48, 9.48, 0, 0, 1]), (dict(fill_paused=False), [math.nan] * 7),
    (dict(skip_paused=True), None), (dict(skip_paused=True, fill_paused=False), None)])
@pytest.mark.parametrize('inside', [True, False])
def test_a_suspended_day_as_joinquant_answers_it(tmp_path, how, middle, inside):
    """000929 around 2026-06-15, raw prices, as read from JoinQuant; inside a run and outside."""
    made, fields = MadeMarket(tmp_path), ['open', 'high', 'low', 'close', 'volume', 'money', 'paused']
    made.daily('000929.XSHE', SUSPENDED)
    with jq.opened_provider(made.source) as provider:
        source = view_at(provider, '2026-06-16 15:30') if inside else provider
        frame = source.get_price('000929.XSHE', start_date='2026-06-12', end_date='2026-06-16', fields=fields, fq=None,
                                 **how)
    rows = [[9.3, 9.69, 9.27, 9.48, 1851700, 17477199.0, 0], middle,
            [9.95, 10.43, 9.89, 10.04, 12223955, 123311359.65, 0]]
    assert repr(frame.values.tolist()) == repr([list(map(float, row)) for row in rows if row])
    assert [str(day.date()) for day in frame.index] == [row[0] for row, shown in zip(SUSPENDED, rows) if shown]


@pytest.mark.parametrize('ref', [
    {}, {'fq_ref_date': None}, {'fq_ref_date': '2024-03-12'}, {'fq_ref_date': '2024-03-05'}])
@pytest.mark.parametrize('df', [True, False])
@pytest.mark.parametrize('unit, expected', [('1d', [1, 1, 1, 1, 2, 2]), ('1w', [1, 2])])
def test_the_factor_of_charts_is_the_one_since_the_listing(tmp_path, ref, df, unit, expected):
    """Shares double on the fifth of six days, a Monday; JoinQuant: fq_ref_date changes the prices, not the factor."""
    made, days = MadeMarket(tmp_path), days_from('2024-03-05', 6)
    made.daily(A, [day_row(day, 10.0 if row < 4 else 5.0, pre_close=10.0 if row < 4 else 5.0)
                   for row, day in enumerate(days)])
    with jq.opened_provider(made.source) as provider:
        view = view_at(provider, '2024-03-12 15:30', date(2024, 3, 5))
        bars = view.get_bars(A, 6, unit, ['close', 'factor'], df=df, **ref)
    assert list(bars['factor']) == expected


def test_before_the_listing_there_is_nothing_to_see(paper):
    view = view_at(paper, '2018-06-20 15:30')
    frame = view.get_price('300750.XSHE', count=20)
    assert len(frame) == 20 and frame['close'].isnull().sum() > 5 and not math.isnan(frame['close'].iloc[-1])
    assert len(view.attribute_history('300750.XSHE', 20)) < 20
    assert len(view.get_bars('300750.XSHE', 20)) < 20


def test_a_pool_may_hold_what_is_not_listed_yet(paper):
    new, old = '300750.XSHE', '000001.XSHE'
    view = view_at(paper, '2018-05-03 10:30')
    assert view.get_price(new, count=20)['close'].isnull().all() and len(view.attribute_history(new, 5)) == 0
    table = view.history(5, '1d', 'close', [new, old])
    assert table[new].isnull().all() and not table[old].isnull().any()
    assert len(view.get_bars(new, 5)) == 0 and view.get_price([new, old], count=2, panel=False)['close'].count() == 2
    bar = jq.BarData(view, '1d')[new]
    assert bar.isnan() and math.isnan(bar.returns) and math.isnan(bar.mavg(2))
    assert view.get_current_data()[new].paused and view.get_current_data()[new].last_price == 0
    info = view.get_security_info(new)
    assert info.start_date == date(2018, 6, 11) > view.now.date() and info.end_date == date(2200, 1, 1)
    assert view.get_extras('is_st', [new], count=1)[new].tolist() == [False]
    with pytest.raises(bq.SecurityNotFound):
        view.get_security_info('999999.XSHE')


def test_more_minutes_than_there_are_take_few_questions(tmp_path, monkeypatch):
    days, asked = days_from('2020-01-02', 1000), []
    made = MadeMarket(tmp_path)
    made.daily(A, [day_row(day, 10.0) for day in days])
    made.write_minutes(A, made.minutes(A, days[-1], {'09:31': (10, 10, 10, 10, 100)}))
    with jq.opened_provider(made.source) as provider:
        view = view_at(provider, days[-1] + ' 10:30')
        get_price = type(provider).get_price
        monkeypatch.setattr(type(provider), 'get_price',
                            lambda self, *some, **how: asked.append(how) or get_price(self, *some, **how))
        assert len(view.attribute_history(A, 500, '1m', ['close'])) == 60
    assert len([how for how in asked if how.get('frequency') == '1m']) <= 6


def test_labels_of_pools_that_change_every_day_are_not_kept_for_ever(real):
    view = view_at(real, '2018-03-15 09:30')
    fields = ['open', 'close', 'high', 'low', 'volume', 'money']
    for names in itertools.islice(itertools.permutations(fields), 3 * jq.LABELS_KEPT):
        assert list(view.get_price(MOUTAI, count=1, fields=names).columns) == list(names)
    assert len(view._label_cache) <= jq.LABELS_KEPT


def test_days_before_the_listing_cause_no_warning(recwarn):
    nan = float('nan')
    assert bq.scale({'close': array('d', [nan, 1.234])}, [(0, 2, 0.5)], 2)['close'].tolist()[1] == 0.62
    assert not recwarn.list


def test_a_bar_before_the_first_day_is_none(real):
    first = real.get_trade_days(count=100000)[0]
    bar = jq.BarData(view_at(real, '%s 09:30' % first), '1d')[MOUTAI]
    assert bar.isnan() and math.isnan(bar.volume)


@pytest.mark.parametrize('shape', [list, tuple, pandas.Index, pandas.Series, numpy.array, dict.fromkeys, set,
                                   lambda codes: dict.fromkeys(codes).keys()])
def test_securities_come_in_many_shapes(real, shape):
    view, codes = view_at(real, '2018-03-15 09:30'), sorted([MOUTAI, UNIS])
    given = shape(codes)
    assert list(view.history(2, '1d', 'close', given).columns) == codes
    assert view.get_price(given, count=1, panel=False)['code'].tolist() == codes
    assert list(view.get_bars(given, 2)) == list(view.get_extras('is_st', given, count=1, df=False)) == codes


@pytest.mark.parametrize('end, plain, now', [
    ('2018-03-13', '2018-03-12', '2018-03-12'), ('2018-03-13 09:29:59', '2018-03-12', '2018-03-12'),
    ('2018-03-13 10:00', '2018-03-12', '2018-03-13'), ('2018-03-13 15:00', '2018-03-13', '2018-03-13'),
    ('2018-03-11', '2018-03-09', '2018-03-09'), ('2018-03-15', '2018-03-14', '2018-03-14'),
    (None, '2018-03-14', '2018-03-15'), ('2018-03-16', '2018-03-14', '2018-03-15')])
def test_bars_are_those_that_are_over_at_their_end(real, end, plain, now):
    view = view_at(real, '2018-03-15 10:30')
    for include_now, last in ((False, plain), (True, now)):
        bars = view.get_bars(MOUTAI, 2, end_dt=end, include_now=include_now)
        assert len(bars) == 2 and str(bars['date'][-1]) == last
    after = view_at(real, '2018-03-15 15:00')
    assert str(after.get_bars(MOUTAI, 1, end_dt='2018-03-15')['date'][0]) == '2018-03-14'
    assert str(after.get_bars(MOUTAI, 1)['date'][0]) == '2018-03-15'
    assert str(view.get_bars(MOUTAI, 1, '1w', end_dt='2018-03-09')['date'][0]) == '2018-03-02'
    assert str(view.get_bars(MOUTAI, 1, '1w', end_dt='2018-03-09 15:00')['date'][0]) == '2018-03-09'


def test_a_week_is_over_though_its_last_days_were_suspended(tmp_path):
    days = days_from('2024-03-04', 15)
    made = MadeMarket(tmp_path)
    made.daily(A, [day_row(day, 10.0, paused=int(day in days[8:12])) for day in days])
    with jq.opened_provider(made.source) as provider:
        for clock, last in (('2024-03-15 14:59', '2024-03-08'), ('2024-03-15 15:00', '2024-03-13'),
                            ('2024-03-18 09:30', '2024-03-13'), ('2024-03-21 15:00', '2024-03-13')):
            assert str(view_at(provider, clock).get_bars(A, 2, '1w')['date'][-1]) == last


def test_fields_are_given_once(real):
    view = view_at(real, '2018-03-15 09:30')
    assert view.get_bars(MOUTAI, 1, fields=numpy.array(['close', 'close', 'open'])).dtype.names == ('close', 'open')
    assert view.get_bars(MOUTAI, 1, fields=None).dtype.names == ('date', 'open', 'high', 'low', 'close')
    assert list(view.get_price(MOUTAI, count=1, fields=('open', 'close', 'open')).columns) == ['open', 'close']


def test_shapes(real):
    view = view_at(real, '2018-03-15 09:30')
    both, last = [MOUTAI, UNIS], pandas.Timestamp('2018-03-14')
    frame = view.attribute_history(MOUTAI, 3, '1d', ['open', 'close'])
    assert frame.shape == (3, 2) and list(frame.columns) == ['open', 'close'] and frame.index[-1] == last
    arrays = view.attribute_history(MOUTAI, 3, '1d', ['open', 'close'], df=False)
    assert sorted(arrays) == ['close', 'open'] and (arrays['close'] == frame['close'].values).all()
    table = view.history(4, '1d', 'close', both)
    assert table.shape == (4, 2) and list(table.columns) == both and table.index[-1] == last
    assert view.history(4, '1d', 'close', both, df=False)[UNIS].tolist() == table[UNIS].tolist()
    assert view.history(4, '1d', 'close', both, skip_paused=True).index.tolist() == [0, 1, 2, 3]
    long = view.get_price(both, count=2, panel=False)
    assert list(long.columns) == ['time', 'code', 'open', 'close', 'high', 'low', 'volume', 'money'] and len(long) == 4
    assert long.index.tolist() == [0, 1, 2, 3] and long['code'].tolist() == [MOUTAI] * 2 + [UNIS] * 2
    panel = view.get_price(both, count=2)
    assert list(panel.items) == list(long.columns[2:]) and panel['close'].shape == (2, 2) if OLD else len(panel) == 4
    bars = view.get_bars(MOUTAI, 3)
    assert bars.dtype.names == ('date', 'open', 'high', 'low', 'close') and bars['date'][-1] == date(2018, 3, 14)
    assert view.get_bars(MOUTAI, 3, include_now=True)['date'][-1] == date(2018, 3, 15)
    now = view.get_bars(MOUTAI, 1, '1d', ['open', 'close', 'volume'], include_now=True)
    assert now['open'][0] == now['close'][0] and now['volume'][0] == 0
    assert view.get_bars(MOUTAI, 3, df=True).index.tolist() == [0, 1, 2]
    assert sorted(view.get_bars(both, 3)) == sorted(both)
    many = view.get_bars(both, 3, df=True)
    assert many.index.nlevels == 2 and len(many) == 6
    assert many.index.get_level_values(0).tolist() == [MOUTAI] * 3 + [UNIS] * 3  # as asked for: old pandas sorts


def test_numbers_are_places_where_labels_are_none(real):
    """As with the pandas that JoinQuant has; where labels are numbers they stay labels."""
    view = view_at(real, '2018-03-15 09:30')
    frame = view.attribute_history(MOUTAI, 30, '1d', ['close', 'open'])
    closes, last = frame['close'], float(frame['close'].values[-1])
    assert closes[-1] == closes[numpy.int64(29)] == closes[frame.index[-1]] == frame.iloc[-1][0] == last
    assert closes[0] == frame.close[0] == closes.values[0] and closes[-2:].tolist() == closes.values[-2:].tolist()
    assert closes.rolling(5).mean()[-1] == closes.rolling(5).mean().iloc[-1] and frame.mean()[0] == closes.mean()
    table = view.history(5, '1d', 'close', [MOUTAI, UNIS])
    assert table[UNIS][-1] == table.iloc[-1][1] == view.get_bars(UNIS, 1)['close'][0]
    long = view.get_price([MOUTAI, UNIS], count=3, panel=False)
    wide = long.pivot(index='time', columns='code', values='close')
    assert wide[UNIS][-1] == long['close'][5] == long['close'].iloc[5]
    with pytest.raises(KeyError):
        long['close'][-1]
    changed = closes.copy()
    changed[-1] = 5.0
    assert changed[-1] == 5.0 and len(changed) == 30 and closes[-1] == last


@pytest.mark.parametrize('again', [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data, 4))])
def test_what_a_strategy_keeps_stays_what_it_is(real, again):
    frame = view_at(real, '2018-03-15 09:30').attribute_history(MOUTAI, 3, '1d', ['close', 'open'])
    assert again(frame).equals(frame) and again(frame)['open'][-1] == frame['open'][-1] == again(frame['open'])[-1]
    assert again(frame['open']).name == 'open' and isinstance(again(frame), pandas.DataFrame)


def test_charts_of_minutes_keep_to_the_clock(paper):
    view = view_at(paper, '2024-05-10 10:33')
    dates = [str(moment)[11:16] for moment in view.get_bars('000001.XSHE', 3, '30m', include_now=True)['date']]
    assert dates == ['10:00', '10:30', '10:33']
    dates = [str(moment)[11:16] for moment in view.get_bars('000001.XSHE', 3, '60m')['date']]
    assert dates == ['14:00', '15:00', '10:30']
    weeks = view.get_bars('000001.XSHE', 2, '1w')['date'].tolist()
    assert weeks == [date(2024, 4, 30), date(2024, 5, 6)] or weeks[-1] < date(2024, 5, 10)


def test_what_is_known_of_today_in_its_course(paper):
    whole = paper.get_price('000001.XSHE', '2024-05-10', '2024-05-10', fq=None).iloc[0]
    for clock, close in (('09:30', whole['open']), ('15:00', whole['close'])):
        row = view_at(paper, '2024-05-10 ' + clock).get_price('000001.XSHE', count=1, fq=None).iloc[0]
        assert (row['open'], row['close']) == (whole['open'], close)
    minutes = paper.get_price('000001.XSHE', '2024-05-10 09:00:00', '2024-05-10 10:15:00', '1m', fq=None)
    row = view_at(paper, '2024-05-10 10:15').get_price('000001.XSHE', count=1, fq=None).iloc[0]
    assert row['close'] == minutes['close'].iloc[-1] and row['high'] == minutes['high'].max()
    assert row['volume'] == minutes['volume'].sum()
    before = view_at(paper, '2024-05-10 09:00')
    assert before.get_price('000001.XSHE', count=1).index[-1] == pandas.Timestamp('2024-05-09')
    assert before.get_price('000001.XSHE', count=1, fields=['paused']).index[-1] == pandas.Timestamp('2024-05-10')


def test_prices_of_the_day_the_run_was_made_on(real):
    """Without real prices all is on the level of today, which for these files is their end."""
    view = view_at(real, '2015-07-24 15:30', real_price=False)
    theirs = real.get_price(UNIS, count=10, end_date='2015-07-24', pre_factor_ref_date='2020-04-10')
    same(view.get_price(UNIS, count=10), theirs)
    assert view.last_price(UNIS) == theirs['close'].iloc[-1]


def test_securities_and_days(real):
    view = view_at(real, '2018-03-15 09:30')
    assert list(view.get_trade_days(count=2)) == [date(2018, 3, 14), date(2018, 3, 15)]
    assert list(view.get_trade_days('2018-03-10', '2018-03-13')) == [date(2018, 3, 12), date(2018, 3, 13)]
    assert view.get_all_trade_days()[0] == date(2010, 1, 4)
    info = view.get_security_info(MOUTAI)
    assert info.display_name == '贵州茅台' and info.start_date == date(2010, 1, 4) and info.end_date == date(2200, 1, 1)
    frame = view.get_all_securities()
    assert sorted(frame.index) == [UNIS, MOUTAI] and list(view.get_all_securities(['etf']).index) == []
    assert view.get_extras('is_st', [MOUTAI], count=2)[MOUTAI].tolist() == [False, False]
    unit = view.get_current_data()[MOUTAI]
    assert unit.name == '贵州茅台' and unit.is_st is False and unit.paused is False and unit.security == MOUTAI


@pytest.mark.parametrize('name, arguments, how', [
    ('get_price', (MOUTAI,), dict(start_date='2018-01-01', count=3)), ('get_price', (MOUTAI,), dict(fields=['last'])),
    ('get_price', (MOUTAI,), dict(count=0)), ('get_price', ([MOUTAI, UNIS],), dict(count=2, skip_paused=True)),
    ('history', (3, '1y'), {}), ('history', (3, '1y', 'close', []), {}), ('history', (0, '1d', 'close', []), {}),
    ('get_bars', ([], 3, '1y'), {}), ('get_price', ([],), dict(count=0)), ('get_price', ([],), dict(fields=['last'])),
    ('get_extras', ('nav', []), {}), ('attribute_history', ([], 3), {}), ('get_security_info', ([],), {}),
    ('history', (3, '1d', 'none', []), {}), ('attribute_history', (MOUTAI, 3), dict(fq='after')),
    ('get_bars', ('600519', 3), {}), ('get_price', (MOUTAI,), dict(end_date='soon')),
    ('get_price', (MOUTAI,), dict(end_date=numpy.datetime64('NaT', 's'))), ('get_bars', (MOUTAI, 3, '1d', []), {}),
    ('get_bars', (MOUTAI, 3, '1d', 5), {}), ('history', (3, '1d', ['close'], [MOUTAI]), {}),
    ('history', (3, '1d', 'close', [MOUTAI, None]), {}),
    ('get_price', (5,), dict(count=1)), ('get_all_securities', (5,), {}),
    ('get_trade_days', ('2018-01-02',), dict(count=2)),
    ('get_extras', ('is_st', [MOUTAI], '2018-01-02'), dict(count=2)),
    ('get_bars', (MOUTAI, 3), dict(fq_ref_date='soon')),
    ('get_price', (MOUTAI,), dict(start_date='2018-03-02', end_date='2018-03-01')),
    ('get_trade_days', ('2018-03-02', '2018-03-01'), {}),
    ('get_extras', ('is_st', [MOUTAI], '2018-03-02', '2018-03-01'), {})])
def test_questions_that_make_no_sense(real, name, arguments, how):
    with pytest.raises((bq.BadRequest, bq.SecurityNotFound, NotImplementedError)):
        getattr(view_at(real, '2018-03-15 09:30'), name)(*arguments, **how)


@pytest.mark.parametrize('none', [
    [], (), set(), {}, numpy.array([]), pandas.Series([], dtype=object), pandas.Index([])])
def test_of_no_securities_there_is_an_empty_answer(real, none):
    """A pool that a filter left empty is no fault of the strategy."""
    view, six = view_at(real, '2018-03-15 09:30'), ['open', 'close', 'high', 'low', 'volume', 'money']
    for frame in (view.get_price(none, count=3, panel=False),
                  view.get_price(none, count=3, skip_paused=True, panel=False),
                  view.get_price(none, start_date='2018-01-01', frequency='1m', panel=False)):
        assert list(frame.columns) == ['time', 'code'] + six and len(frame) == 0
        assert [str(frame[name].dtype) for name in six] == ['float64'] * 6 and 'datetime64' in str(frame['time'].dtype)
    for panel in (view.get_price(none, count=3), view.get_price(none, count=3, fields=['close'])):
        assert len(panel['close']) == 0
    for skip in (True, False):
        frame = view.history(3, '1d', 'close', none, skip_paused=skip)
        assert frame.shape == (0, 0) and frame.empty and (skip or str(frame.index.dtype) == 'datetime64[ns]')
        assert view.history(3, '1m', 'close', none, df=False, skip_paused=skip) == {}
    assert view.get_bars(none, 3) == view.get_bars(none, 3, '1m', include_now=True) == {}
    frame = view.get_bars(none, 3, fields=['date', 'close'], df=True)
    assert list(frame.columns) == ['date', 'close'] and len(frame) == 0 and frame.index.nlevels == 2
    frame = view.get_extras('is_st', none, count=3)
    assert list(frame.columns) == [] and len(frame.index) == 3
    assert view.get_extras('is_st', none, count=3, df=False) == view.get_trade_day(none, '2018-03-10') == {}
    assert view.get_current_data(none)[MOUTAI].paused is False


def test_without_a_universe_history_is_empty(real):
    view = view_at(real, '2018-03-15 09:30')
    assert view.history(3, '1d', 'close').empty and view.history(3, df=False) == {}
    view.universe = [MOUTAI]
    assert list(view.history(3, '1d', 'close').columns) == [MOUTAI]


def test_a_long_table_in_the_place_of_a_panel_is_told_once(real):
    told = []
    view = view_at(real, '2018-03-15 09:30', told=told)
    view.get_price(MOUTAI, count=2)
    view.get_price([MOUTAI, UNIS], count=2, panel=False)
    assert told == []
    for _ in range(3):
        view.get_price([MOUTAI, UNIS], count=2)
    assert [('长表' in text, 'pivot' in text) for text in told] == ([] if OLD else [(True, True)])


def kinds(frame):
    """dtype by column; what is in columns of objects by the class of its first one."""
    return OrderedDict((name, type(column.iloc[0]).__name__ if column.dtype == object else str(column.dtype))
                       for name, column in ((name, frame[name]) for name in frame.columns))


def test_texts_of_a_long_table_are_objects_on_every_pandas(paper):
    view, codes = view_at(paper, '2024-05-10 10:30'), ['000001.XSHE', '510300.XSHG']
    for frame in (view.get_price(codes, count=2, panel=False), view.get_price([], count=2, panel=False),
                  paper.get_price(codes, count=2, panel=False)):
        assert frame['code'].dtype == object and list(frame.index) == list(range(len(frame)))


def test_types_of_what_is_returned_are_joinquants(paper):
    """Documented there: numpy arrays of date for days, lists of text for members, frames by time in nanoseconds."""
    view, code, etf = view_at(paper, '2024-05-10 10:30'), '000001.XSHE', '510300.XSHG'
    six, times = ['open', 'close', 'high', 'low', 'volume', 'money'], 'datetime64[ns]'
    for days in (view.get_trade_days(count=3), view.get_trade_days('2024-05-01', '2024-05-10'),
                 view.get_all_trade_days()):
        assert isinstance(days, numpy.ndarray) and days.dtype == object and {type(day) for day in days} == {date}
    assert view.get_trade_days('2024-05-04', '2024-05-05').shape == (0,)
    assert view.get_trade_day([code, etf], '2024-05-12') == {code: date(2024, 5, 10), etf: date(2024, 5, 10)}
    for frame in (view.get_price(code, count=2), view.attribute_history(code, 2),
                  view.history(2, '1d', 'close', [code, etf]), view.get_price(code, count=2, frequency='1m'),
                  view.attribute_history(code, 2, '1m')):
        assert str(frame.index.dtype) == times and set(kinds(frame).values()) == {'float64'}
    assert list(view.get_price(code, count=2).columns) == list(view.attribute_history(code, 2).columns) == six
    assert kinds(view.get_price([code, etf], count=2, panel=False)) == OrderedDict(
        [('time', times), ('code', 'str')] + [(name, 'float64') for name in six])
    assert list(view.history(2, '1d', 'close', [code], skip_paused=True).index) == [0, 1]
    arrays = view.history(2, '1d', 'close', [code, etf], df=False), view.attribute_history(code, 2, df=False)
    assert [list(each) for each in arrays] == [[code, etf], six] and {type(each) for each in arrays} == {dict}
    assert {(type(values), str(values.dtype)) for each in arrays for values in each.values()} == {
        (numpy.ndarray, 'float64')}


def test_types_of_charts_are_joinquants(paper):
    view, code, etf = view_at(paper, '2024-05-10 10:30'), '000001.XSHE', '510300.XSHG'
    for unit, kind in (('1d', date), ('1w', date), ('1m', datetime), ('30m', datetime)):
        bars = view.get_bars(code, 2, unit)
        assert isinstance(bars, numpy.ndarray) and bars.dtype.names == ('date', 'open', 'high', 'low', 'close')
        assert {type(moment) for moment in bars['date']} == {kind} and bars['close'].dtype == 'float64'
        frame = view.get_bars(code, 2, unit, df=True)
        assert list(frame.index) == [0, 1] and list(frame.columns) == list(bars.dtype.names)
    both = view.get_bars([code, etf], 2)
    assert isinstance(both, dict) and list(both) == [code, etf] and isinstance(both[etf], numpy.ndarray)
    assert view.get_bars([code, etf], 2, df=True).index.nlevels == 2


def test_types_of_securities_are_joinquants(paper):
    view, code = view_at(paper, '2024-05-10 10:30'), '000001.XSHE'
    frame, info = view.get_all_securities(['stock', 'etf']), view.get_security_info(code)
    assert list(frame.columns) == ['display_name', 'name', 'start_date', 'end_date', 'type'] and code in frame.index
    assert type(info.start_date) is type(info.end_date) is date and info.end_date == date(2200, 1, 1)
    row, day = frame.loc[code], view.now.date()
    assert repr(row.start_date) == repr(info.start_date) and str(row.start_date) == str(info.start_date)
    assert isinstance(row.start_date, date) and not isinstance(row.start_date, datetime)
    assert row.start_date == info.start_date and row.start_date <= day < row['end_date']
    assert (day - row.start_date).days == (day - info.start_date).days > 0
    assert (view.now - row.start_date).days == (day - info.start_date).days
    for early in ('2000-01-01', date(2000, 1, 1), datetime(2000, 1, 1), pandas.Timestamp(2000, 1, 1)):
        assert list(frame[frame['start_date'] < early].index) == [
            each for each in frame.index if view.get_security_info(each).start_date < date(2000, 1, 1)] != []
    assert list(pandas.to_datetime(frame['end_date']).dt.year.unique()) == [2200]
    assert copy.deepcopy(frame).equals(frame) and pickle.loads(pickle.dumps(row.start_date)) == row.start_date
    members = view.get_index_stocks('000300.XSHG')
    assert type(members) is list and {type(each) for each in members} == {str}
    flags = view.get_extras('is_st', [code], count=2)
    assert dict(kinds(flags)) == {code: 'bool'} and str(flags.index.dtype) == 'datetime64[ns]'
    assert view.get_extras('is_st', [code], count=2, df=False)[code].dtype == bool
    unit = view.get_current_data()[code]
    assert [type(getattr(unit, name)) for name in ('last_price', 'high_limit', 'low_limit', 'day_open')] == [float] * 4
    assert [type(getattr(unit, name)) for name in ('paused', 'is_st', 'name')] == [bool, bool, str]


def test_what_a_strategy_does_to_its_frames_stays_with_it(real):
    view = view_at(real, '2018-03-15 09:30')
    for call in (lambda: view.attribute_history(MOUTAI, 3, '1d', ['close']), lambda: view.get_price(MOUTAI, count=3),
                 lambda: view.history(3, '1d', 'close', [MOUTAI]),
                 lambda: view.get_price(MOUTAI, count=3, panel=False)):
        before = call().values.tolist()
        frame = call()
        frame.iloc[:, :] = -1.0
        assert call().values.tolist() == before
    array = view.history(3, '1d', 'close', [MOUTAI], df=False)[MOUTAI]
    array[:] = -1
    assert view.history(3, '1d', 'close', [MOUTAI], df=False)[MOUTAI][0] > 0


@pytest.mark.parametrize('fq', ['pre', 'post'])
def test_prices_that_are_not_rounded(real, fq):
    """By hand: the traded figures times the factor of their day by that of the level."""
    view = view_at(real, '2018-07-24 15:30')
    how = dict(start_date='2018-06-29', end_date='2018-07-24')
    exact = view.get_price(UNIS, fields=FIELDS, fq=fq, round=False, **how)
    plain = view.get_price(UNIS, fields=FIELDS, fq=None, **how)
    ratio = view.get_price(UNIS, fields=['factor'], fq=fq, **how)['factor']
    assert len(set(ratio)) == 2
    for name in ('open', 'close', 'high', 'low', 'pre_close', 'high_limit', 'avg'):
        assert list(exact[name]) == pytest.approx(list(plain[name] * ratio), rel=1e-12), name
    assert list(exact['volume']) == pytest.approx(list(plain['volume'] / ratio), rel=1e-12)
    assert list(exact['money']) == list(plain['money']) and list(exact['factor']) == list(ratio)
    rounded = view.get_price(UNIS, fields=['close'], fq=fq, **how)['close']
    assert list(rounded) == pytest.approx(list(exact['close']), abs=0.00501) and list(rounded) != list(exact['close'])


# -- what a source lacks -------------------------------------------------------------------------------------------
class Lacking:
    """A provider before another: refuse(code, given) may raise; asked: the spans of minutes that were asked for."""

    def __init__(self, real, refuse):
        self._real, self._refuse, self.asked = real, refuse, []

    def __getattr__(self, name):
        return getattr(self._real, name)

    def get_price(self, security, **given):
        if given.get('frequency') == '1m':
            self.asked.append((given['start_date'].date(), given['end_date'].date()))
        self._refuse(security, given)
        return self._real.get_price(security, **given)


def minutes_from(first):
    """Refuses minutes of earlier days."""
    def refuse(security, given):
        if given.get('frequency') == '1m' and given['start_date'].date() < first:
            raise bq.DataUnavailable('incomplete')
    return refuse


def moved(view, text):
    view.move(datetime.strptime(text, '%Y-%m-%d %H:%M'))
    return view


def test_minutes_of_the_last_days_alone_are_used_where_they_are(paper):
    source = Lacking(paper, minutes_from(date(2024, 5, 15)))
    view = view_at(source, '2024-05-31 10:00', start=date(2024, 5, 6))
    whole_view = view_at(paper, '2024-05-31 10:00', start=date(2024, 5, 6))
    for text in ('2024-05-13 10:00', '2024-05-14 14:00', '2024-05-15 10:00', '2024-05-20 14:50'):
        there = text >= '2024-05-15'
        assert moved(view, text).has_minutes(CODE) == there
        expected = moved(whole_view, text).last_price(CODE)
        assert view.last_price(CODE) == (expected if there else view.day_value(CODE, 'open'))
    with pytest.raises(bq.DataUnavailable):
        view.get_price(CODE, start_date='2024-05-14 10:00:00', end_date='2024-05-15 10:00:00', frequency='1m')
    asked = len(source.asked)
    for text in ('2024-05-13 11:00', '2024-05-14 10:00', '2024-05-21 10:00'):
        moved(view, text).last_price(CODE)
    assert len(source.asked) == asked


def test_minutes_that_failed_once_are_asked_for_again(paper):
    failures = [None] * 3

    def refuse(security, given):
        if given.get('frequency') == '1m' and failures and not failures.pop():
            raise bq.DataUnavailable('not now')
    source = Lacking(paper, refuse)
    view = view_at(source, '2024-05-31 10:00', start=date(2024, 5, 6))
    assert not moved(view, '2024-05-13 10:00').has_minutes(CODE) and moved(view, '2024-05-14 10:00').has_minutes(CODE)
    assert list(view.store.without_minutes) == [CODE]


def test_a_source_without_any_minutes_is_asked_once(real):
    source = Lacking(real, lambda security, given: None)
    view = view_at(source, '2018-05-31 10:00', start=date(2018, 1, 2))
    for text in ('2018-01-03 10:00', '2018-04-27 10:00', '2018-05-31 10:00'):
        assert not moved(view, text).has_minutes(MOUTAI)
    assert len(source.asked) == 1


@pytest.mark.parametrize('factors', [[], [0.0], [math.nan]])
def test_a_factor_that_is_missing_is_no_factor_of_one(real, factors):
    class Factors(Lacking):
        def get_price(self, security, **given):
            if given.get('fields') == ['factor'] and given.get('count') == 1:
                return pandas.DataFrame({'factor': factors})
            return super().get_price(security, **given)
    view = view_at(Factors(real, None), '2018-05-31 10:00', real_price=False)
    with pytest.raises(bq.DataUnavailable) as caught:
        view.base(MOUTAI, view.store)
    assert '复权因子' in caught.value.message


def test_days_of_a_factor_of_zero_are_refused(real):
    class Zeros(Lacking):
        def get_price(self, security, **given):
            frame = super().get_price(security, **given)
            return frame.assign(factor=0.0) if 'factor' in frame else frame
    view = view_at(Zeros(real, lambda security, given: None), '2018-05-31 10:00')
    with pytest.raises(bq.DataUnavailable):
        view.last_price(MOUTAI)


def test_what_is_looked_up_when_it_is_asked_is_there_before(real):
    view = view_at(real, '2015-07-24 10:00')
    for data in (view.get_current_data(), jq.BarData(view, '1d')):
        assert MOUTAI in data and '600519.SH' in data and '999999.XSHG' not in data and None not in data
        assert data.get('999999.XSHG') is None and data.get('999999.XSHG', 1) == 1
        assert data.get(MOUTAI) is data[MOUTAI]
    bar = jq.BarData(view, '1d')[MOUTAI]
    assert {type(figure) for figure in (bar.close, bar.returns, bar.vwap(2), bar.mavg(2), bar.stddev(2))} == {float}


@pytest.mark.parametrize('kind', [list, tuple, set, iter, pandas.Index, numpy.array, pandas.Series])
def test_kinds_of_securities_come_in_any_container(paper, kind):
    view = view_at(paper, '2026-03-02 10:00')
    funds, stocks = view.get_all_securities('etf'), view.get_all_securities()
    assert list(view.get_all_securities(kind(['etf'])).index) == list(funds.index) != []
    empty = pandas.Series([], dtype=object) if kind is pandas.Series else kind([])
    assert list(view.get_all_securities(empty).index) == list(stocks.index)


@pytest.mark.parametrize('benchmark', [None, [], ['000300.XSHG'], ('000300.XSHG',), 1, pandas.Series({MOUTAI: 1.0})])
def test_a_benchmark_is_a_code_or_a_dict(benchmark):
    with pytest.raises(bq.BadRequest, match='基准'):
        jq.benchmark_weights(benchmark)
