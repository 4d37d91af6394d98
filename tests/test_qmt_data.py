"""The qmt adapter's market data: on the stand-in terminal below the vendor's own layer, and on a fake xtdata."""
import ctypes
import importlib.util
import math
import os
import sys
import threading
import time
from collections import namedtuple
from datetime import date, datetime

import pytest

import bullet_qmt as bq
from tests.fakes import FakeClock
from tests.resources import becomes, nothing_left
from tests.terminal import bars, native, scene
from tests.terminal.terminal import Terminal

pandas = pytest.importorskip('pandas')
if importlib.util.find_spec('xtquant') is None:
    pytest.skip('xtquant is not installed', allow_module_level=True)
STOCK, SUSPENDED, ETF, BOND, INDEX = '600000.XSHG', '000001.XSHE', '510300.XSHG', '113052.XSHG', '000300.XSHG'
FAST = dict(stall_s=0.2, probe_s=0.02, backoff_s=(0.02,), call_timeout_s=5.0)
ALL = list(bq.HISTORY_FIELDS)


def take_zone():
    """The C library looks at TZ again. On Windows Python has no name for that."""
    if os.name == 'nt':
        ctypes.cdll.LoadLibrary('ucrtbase')._tzset()
    else:
        time.tzset()


@pytest.fixture(params=['CST-8', 'EST5EDT'], ids=['Shanghai', 'New York'])  # spelled as every C library takes it
def zone(request):
    """The machine is somewhere else; nothing may depend on it."""
    before = os.environ.get('TZ')
    os.environ['TZ'] = request.param
    take_zone()
    assert time.localtime(1735696800)[2:4] == {'CST-8': (1, 10), 'EST5EDT': (31, 21)}[request.param]  # 2 o'clock UTC
    yield
    os.environ.pop('TZ')
    os.environ.update({'TZ': before} if before else {})
    take_zone()


@pytest.fixture
def terminal():
    terminal = scene.populate(Terminal(FakeClock(bq.parse_moment(scene.NOW)[0])))
    native.install(terminal)
    yield terminal
    terminal.faults.release()
    native.uninstall()


@pytest.fixture
def data(terminal):
    with_data = open_data(terminal)
    yield with_data
    with_data.close()


def open_data(terminal, **options):
    return bq.QmtData(bq.import_vendor(), terminal.clock, **dict(FAST, **options)).start()


def ask(data, security=STOCK, **payload):
    return data.history(bq.parse_history(dict(payload, security=security), data.clock.now()))


def query(data, security, **payload):
    return bq.parse_history(dict(payload, security=security, panel=False), data.clock.now())


def ms(text):
    return bq.to_ms(bq.parse_moment(text)[0])


def health_is(data, state):
    return becomes(lambda: data.health()['state'] == state)


# -- bars ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('lots', [True, False])
@pytest.mark.parametrize('code', [STOCK, ETF, BOND, '688981.XSHG', '920047.BJ'])
def test_day_bars_are_the_terminals_with_volume_in_shares(zone, terminal, data, code, lots):
    terminal.market.volume_in_lots = {'1d': lots, '1m': lots}
    rows = list(terminal.market.securities[bq.qmt_code(code)].days.values())[-5:]
    table = ask(data, code, end_date='2025-08-05', count=5, fq=None, fields=ALL)
    for row, bar in zip(table.rows(), rows):
        assert bq.to_ms(row['index']) == bar['time'] + 8 * 3600000
        assert [row[name] for name in ('open', 'high', 'low', 'close')] == [bar[name] for name in
                                                                            ('open', 'high', 'low', 'close')]
        assert row['volume'] == bar['volume'] and row['money'] == bar['amount']
        assert (row['high_limit'], row['low_limit']) == bq.price_limits(code, row['pre_close'], row['index'].date())
    assert len(table) == 5


def test_minute_bars_have_the_labels_of_joinquant_and_add_up(zone, terminal, data):
    table = ask(data, start_date='2025-08-05', end_date='2025-08-05 15:00:00', frequency='1m', fq=None)
    assert [bq.minute_of_day(moment) for moment in table['index']] == list(bq.BAR_MINUTES)
    day = terminal.market.securities['600000.SH'].days[date(2025, 8, 5)]
    assert abs(sum(table['volume']) - day['volume']) <= 241 * 100  # whole lots a minute
    assert sum(table['money']) == pytest.approx(day['amount'])
    assert (table['open'][0], table['close'][-1]) == (day['open'], day['close'])
    assert (max(table['high']), min(table['low'])) == (day['high'], day['low'])


def test_suspended_days(data):
    table = ask(data, SUSPENDED, start_date='2025-07-18', end_date='2025-07-22', fq=None,
                fields=['close', 'volume', 'paused'])
    before, day, _ = table.rows()
    assert (day['close'], day['volume'], day['paused']) == (before['close'], 0, 1)
    assert len(ask(data, SUSPENDED, start_date='2025-07-21', end_date='2025-07-22', frequency='1m')) == 240


def test_adjusted_across_a_dividend(data):
    raw = ask(data, start_date='2025-07-15', end_date='2025-07-16', fq=None, fields=['close', 'pre_close']).rows()
    pre = ask(data, start_date='2025-07-15', end_date='2025-07-16', fields=['close', 'factor']).rows()
    assert pre[0]['close'] == pytest.approx(raw[1]['pre_close'], abs=0.01) and pre[1]['close'] == raw[1]['close']
    anchored = ask(data, start_date='2025-07-15', end_date='2025-07-16', pre_factor_ref_date='2025-07-15')
    assert anchored['close'][0] == raw[0]['close']
    assert data.split_dividend(STOCK, 0, ms('2025-08-06')) == [
        {'security': STOCK, 'date': '2025-07-16', 'security_type': 'stock', 'scale_factor': 1.1, 'bonus_pre_tax': 4.1,
         'per_base': 10}]
    assert data.split_dividend(STOCK, 0, ms('2025-07-15')) == []


def test_the_running_day(zone, terminal, data):
    terminal.push('600000.SH', 10.2, 3000)
    terminal.push('600000.SH', 10.1, 2000)
    last = ask(data, count=1, fq=None, fields=ALL).rows()[0]
    assert (last['open'], last['high'], last['low'], last['close'], last['volume']) == (10.2, 10.2, 10.1, 10.1, 5000)
    assert (last['money'], last['paused']) == (50800.0, 0)
    terminal.set_now('2025-08-06 09:29:00')
    assert ask(data, count=1)['index'] == [datetime(2025, 8, 5)]


def test_only_complete_minutes_of_the_running_day(terminal, data):
    terminal.push('600000.SH', 10.1, 1000)  # 10:00, in the bar labelled 10:01
    terminal.set_now('2025-08-06 10:01:30')
    terminal.push('600000.SH', 10.2, 2000)
    table = ask(data, count=1, frequency='1m', fq=None)
    assert (table['index'], table['volume']) == ([datetime(2025, 8, 6, 10, 1)], [1000])
    terminal.push('600000.SH', 10.3, 4000)
    terminal.set_now('2025-08-06 10:02:00')
    table = ask(data, count=1, frequency='1m', fq=None)
    assert (table['index'], table['volume']) == ([datetime(2025, 8, 6, 10, 2)], [6000])


def test_a_source_without_todays_minutes_is_an_error_once_shares_were_traded(terminal, data):
    terminal.push('600000.SH', 10.2, 3000)
    read = data._store.read
    data._store.read = lambda *args: [bar for bar in read(*args) if bar.time < ms('2025-08-06')]
    with pytest.raises(bq.DataUnavailable) as info:
        ask(data, count=2, frequency='1m')
    assert '分钟线' in str(info.value) and '2025-08-06' in str(info.value)


def test_history_before_the_sources_first_day_is_refused(terminal, data):
    real = bq.QmtData._calendar
    data._calendar = lambda: [ms('2023-12-28'), ms('2023-12-29')] + real(data)
    with pytest.raises(bq.DataUnavailable) as info:
        ask(data, start_date='2023-12-29', end_date='2024-01-05')
    assert '2024-01-02' in str(info.value)
    assert len(ask(data, start_date='2024-01-02', end_date='2024-01-05')) == 4


# -- rows that the terminal made up ----------------------------------------------------------------------------
def only_until(terminal, code, day, period='1d'):
    """Local up to this day; later downloads say that they are done and bring nothing."""
    terminal.market.download([code], period, '', day)
    terminal.market.download_brings = False


@pytest.mark.parametrize('padding', ['zeros', 'close', None])
@pytest.mark.parametrize('payload', [dict(count=3), dict(start_date='2025-07-25', end_date='2025-08-05'),
                                     dict(count=30, frequency='1m')])
def test_what_a_silent_failure_left_out_is_no_suspension(terminal, data, padding, payload):
    """The local data end some days ago, the security trades today."""
    terminal.market.padding = padding
    only_until(terminal, '600000.SH', '20250730')
    only_until(terminal, '600000.SH', '20250730', '1m')
    terminal.push('600000.SH', 10.05, 100000)
    for _ in range(2):
        with pytest.raises(bq.DataUnavailable) as info:
            ask(data, **payload)
        assert '600000.XSHG' in info.value.message and '2025-08-05' in info.value.message and info.value.hint
    terminal.market.download_brings = True
    rows = ask(data, **payload).rows()
    assert all(row['volume'] > 0 for row in rows[-3:-1])


def test_without_auto_download_made_up_rows_are_not_there(terminal):
    data = open_data(terminal, auto_download=False)
    try:
        terminal.market.padding = 'close'
        only_until(terminal, '600000.SH', '20250730')
        terminal.push('600000.SH', 10.05, 100)
        with pytest.raises(bq.DataUnavailable) as info:
            ask(data, start_date='2025-07-25', end_date='2025-08-05')
        assert '缺 4 个交易日' in info.value.message
    finally:
        data.close()


def test_a_warm_up_of_the_cache_names_what_was_not_downloaded(terminal, data):
    terminal.market.padding = 'close'
    only_until(terminal, '600000.SH', '20250730')
    only_until(terminal, '510300.SH', '20250805')
    for code in ('600000.SH', '510300.SH'):
        terminal.push(code, terminal.market.securities[code].pre_close + 0.01, 100)
    answer = data.ensure_cache(query(data, [STOCK, ETF], count=3))
    assert answer['ok'] is False and answer['failed'] == [STOCK]


@pytest.mark.parametrize('traded', [False, True])
def test_a_true_suspension_stays_one_also_on_the_day_it_ends(terminal, data, traded):
    """Suspended for a week up to yesterday; today it is still, or it trades again from the close that it stood at."""
    days = ['202508%02d' % day for day in (1, 4, 5)] + ['202507%02d' % day for day in (30, 31)]
    terminal.add_security('600001.SH', '停牌', 8.0, suspended=days)
    if traded:
        terminal.push('600001.SH', 8.3, 100)
    else:
        terminal.suspend('600001.SH')
    rows = ask(data, '600001.XSHG', start_date='2025-07-28', end_date='2025-08-05', fields=['close', 'paused']).rows()
    assert [row['paused'] for row in rows] == [0, 0, 1, 1, 1, 1, 1] and rows[-1]['close'] == 8.0


def test_a_suspension_that_ends_on_an_ex_day_stays_one(terminal, data):
    dividends = {'20250806': {'interest': 0.5, 'bonus': 0.0}}
    terminal.add_security('600001.SH', '停牌', 8.0, suspended=['20250804', '20250805'], dividends=dividends)
    terminal.market.set_bars('600001.SH', '1d', [bars.bar(bars.epoch_ms(date(2025, 8, 6)), [7.5] * 4, 0, 0.0, 7.5)])
    terminal.market.set_pre_close('600001.SH', 7.5)
    terminal.push('600001.SH', 7.6, 100)
    rows = ask(data, '600001.XSHG', start_date='2025-08-01', end_date='2025-08-05', fq=None, fields=['paused']).rows()
    assert [row['paused'] for row in rows] == [0, 1, 1]


def test_a_suspension_that_ended_long_ago_is_asked_about_without_today(terminal, data):
    """The range ends in the middle of it; that today's quote comes from another close says nothing of then."""
    terminal.push('000001.SZ', 12.5, 100)
    day = '2025-07-21'
    assert scene.SUSPENDED_DAY == day.replace('-', '')
    rows = ask(data, SUSPENDED, start_date='2025-07-18', end_date=day, fields=['paused']).rows()
    assert [row['paused'] for row in rows] == [0, 1]


@pytest.mark.parametrize('padding', ['zeros', 'close'])
def test_a_hole_in_the_middle_is_downloaded(terminal, data, padding):
    terminal.market.padding = padding
    for first, last in (('20240102', '20250620'), ('20250714', '20250805')):
        terminal.market.download(['600000.SH'], '1d', first, last)
    rows = ask(data, start_date='2025-06-16', end_date='2025-07-18', fields=['volume', 'paused']).rows()
    assert len(rows) == 25 and all(row['volume'] > 0 and not row['paused'] for row in rows)


def test_days_that_the_source_lacked_are_taken_once_somebody_has_downloaded_them_in_the_terminal(terminal, data):
    terminal.market.download(['600000.SH'], '1d')
    only_until(terminal, '600000.SH', '20250730', '1m')
    minutes = dict(start_date='2025-07-29 09:31:00', end_date='2025-08-01 15:00:00', frequency='1m')
    for _ in range(2):
        with pytest.raises(bq.DataUnavailable) as info:
            ask(data, **minutes)
        assert '缺 2 个交易日' in info.value.message and '数据管理' in info.value.hint
    asked = len(terminal.market.downloads)
    terminal.market.download_brings = True
    terminal.market.download(['600000.SH'], '1m')
    assert len(ask(data, **minutes)) == 4 * 240 and len(terminal.market.downloads) == asked + 1


def test_minutes_of_today_that_stand_still_while_it_trades(terminal, data):
    terminal.market.padding = 'close'
    terminal.push('600000.SH', 10.0, 100000)
    terminal.set_now('2025-08-06 10:40:00')
    terminal.push('600000.SH', 10.1, 900000)
    only_until(terminal, '600000.SH', '20250805', '1m')
    with pytest.raises(bq.DataUnavailable) as info:
        ask(data, start_date='2025-08-05 09:31:00', end_date='2025-08-06 10:40:00', frequency='1m')
    assert '没有下载到' in info.value.message and '2025-08-06' in info.value.message


# -- downloads -----------------------------------------------------------------------------------------------
def test_history_is_downloaded_once_a_day_and_only_what_is_missing(terminal, data):
    ask(data, count=3)
    ask(data, count=300)
    assert terminal.market.downloads == [(['600000.SH'], '1d', '20240102', '20250805')]
    terminal.next_day('2025-08-07 10:00:00')
    terminal.push('600000.SH', 10.0, 100)
    ask(data, count=3)
    assert terminal.market.downloads[1:] == [(['600000.SH'], '1d', '20250806', '20250806')]


def test_minutes_are_downloaded_for_the_days_asked(terminal, data):
    ask(data, start_date='2025-07-01', end_date='2025-07-03', frequency='1m')
    assert terminal.market.downloads[-1] == (['600000.SH'], '1m', '20250701000000', '20250702235959')
    asked = len(terminal.market.downloads)
    ask(data, start_date='2025-07-01', end_date='2025-07-02', frequency='5m')
    assert len(terminal.market.downloads) == asked


def test_without_auto_download_short_history_is_an_error(terminal):
    data = open_data(terminal, auto_download=False)
    try:
        with pytest.raises(bq.DataUnavailable) as info:
            ask(data, count=3)
        assert '缺 385 个交易日' in str(info.value) and terminal.market.downloads == []
        terminal.market.everything_local = True
        assert len(ask(data, SUSPENDED, start_date='2025-07-18', end_date='2025-07-22')) == 3
        assert len(ask(data, count=10, frequency='1m', end_date='2025-08-05 15:00:00')) == 10
    finally:
        data.close()


def test_a_failed_download_is_an_error_unless_all_is_local(terminal, data):
    terminal.faults.fail_download('没有权限')
    with pytest.raises(bq.QmtUnavailable) as info:
        ask(data, count=3)
    assert '没有权限' in str(info.value) and '缺' in str(info.value)
    terminal.market.everything_local = True
    assert len(ask(data, count=3)) == 3


def test_a_download_that_stalls_is_given_up_and_the_next_one_works(terminal, data):
    terminal.faults.stall_download(0)
    data.subscribe([STOCK])
    with pytest.raises(bq.QmtUnavailable) as info:
        ask(data, count=3)
    assert '没有进展' in str(info.value) and info.value.details['retry_after_s'] >= 1
    terminal.faults.stall_download(None)
    assert becomes(lambda: data.health()['downloads'] == {'active': 0, 'hung': 0}) and health_is(data, 'connected')
    assert len(ask(data, count=3)) == 3
    assert becomes(lambda: [item[1] for item in terminal.market.subscriptions()] == [['600000.SH']])


def test_quotes_go_on_during_a_download(terminal, data):
    data.trade_days(count=1)
    terminal.faults.hang('download')
    failed = []
    worker = threading.Thread(target=lambda: failed.append(pytest.raises(bq.QmtUnavailable, ask, data, count=3)))
    worker.start()
    assert becomes(lambda: terminal.faults.parked() == ['download'])
    assert data.quote(STOCK).last_price == 10.0
    worker.join()
    assert failed


def test_ensure_cache(terminal, data):
    wanted = query(data, [STOCK, SUSPENDED, BOND], count=240, frequency='1m')
    figures = data.ensure_cache(wanted)
    assert figures.pop('seconds') >= 0
    assert figures == {'ok': True, 'total': 3, 'finished': 3, 'downloaded': 3, 'failed': []}
    assert [(len(codes), period) for codes, period, _, _ in terminal.market.downloads[::3]] == [(1, '1d'), (1, '1m')]
    assert data.ensure_cache(wanted)['downloaded'] == 0
    asked = len(terminal.market.downloads)
    data.history(wanted)
    assert len(terminal.market.downloads) == asked


def test_ensure_cache_tells_how_far_it_is(terminal, data):
    told = []
    data.ensure_cache(query(data, [STOCK, SUSPENDED, BOND], count=5), progress=told.append)
    assert told[-1] == {'finished': 3, 'total': 3}
    assert [figures['finished'] for figures in told] == sorted(figures['finished'] for figures in told)


def test_ensure_cache_can_only_look(terminal, data):
    wanted = query(data, [STOCK, SUSPENDED], count=5)
    figures = data.ensure_cache(wanted, download=False)
    assert (figures['ok'], figures['downloaded'], len(figures['failed'])) == (False, 0, 2)
    assert not terminal.market.downloads
    data.ensure_cache(wanted)
    assert data.ensure_cache(wanted, download=False)['ok'] is True


def test_ensure_cache_names_what_failed(terminal, data):
    terminal.faults.stall_download(1)
    figures = data.ensure_cache(query(data, [STOCK, SUSPENDED, BOND], count=5))
    assert (figures['ok'], figures['finished'], figures['downloaded'], len(figures['failed'])) == (False, 1, 1, 2)


# -- lists and quotes ----------------------------------------------------------------------------------------
def test_calendar(zone, terminal, data):
    days = data.trade_days(ms('2025-07-31'), ms('2025-08-31'))
    assert [bq.iso_ms(day)[:10] for day in days] == ['2025-07-31', '2025-08-01', '2025-08-04', '2025-08-05',
                                                     '2025-08-06']
    terminal.clock.set(datetime(2025, 8, 7, 0, 1))
    assert bq.iso_ms(data.trade_days(count=1)[0])[:10] == '2025-08-07'


def test_securities(data):
    table = data.all_securities(['stock'])
    assert len(table) == 6 and set(table['type']) == {'stock'}
    assert data.all_securities(['bond'])['code'] == [BOND]
    info = data.security_info('123001.XSHE')
    assert (info['start_date'], info['end_date'], info['type']) == ('2016-01-08', '2025-03-31', 'bond')
    with pytest.raises(bq.SecurityNotFound):
        data.security_info('600999.XSHG')


def test_members(terminal, data):
    assert data.index_stocks(INDEX) == ['000001.XSHE', '600000.XSHG']
    terminal.market.set_sector('深证成指', ['300750.SZ'])
    assert data.index_stocks('399001.XSHE') == ['300750.XSHE']
    with pytest.raises(bq.DataUnavailable):
        data.index_stocks(INDEX, date(2020, 1, 2))


def test_quote(zone, terminal, data):
    terminal.push('600000.SH', 10.05, 1200)
    row = data.quote(STOCK).to_wire()
    assert (row['last_price'], row['volume'], row['a1_v'], row['dt']) == (10.05, 1200, 10000, '2025-08-06 10:00:00')
    assert (row['high_limit'], row['low_limit'], row['paused']) == (11.0, 9.0, False)
    assert (row['age_s'], row['stale']) == (0, False)
    terminal.clock.advance(16)
    assert (data.quote(STOCK).age_s, data.quote(STOCK).stale) == (16, True)
    terminal.set_now('2025-08-06 12:00:00')
    assert data.quote(STOCK).stale is False
    with pytest.raises(bq.SecurityNotFound):
        data.quote('600999.XSHG')


def test_many_quotes_are_one_question(terminal, data, monkeypatch):
    asked, ask = [], data._xtdata.get_full_tick
    monkeypatch.setattr(data._xtdata, 'get_full_tick', lambda codes: asked.append(codes) or ask(codes))
    rows = data.live_currents([STOCK, '600999.XSHG', ETF])
    assert list(rows) == [STOCK, ETF] and rows[STOCK] == data.live_current(STOCK)
    assert asked == [['600000.SH', '600999.SH', bq.qmt_code(ETF)], ['600000.SH']]


def day_bar(day, pre_close, low, high, paused=False):
    return bq._QmtBar(ms(day), pre_close, high, low, pre_close, 100.0, 100.0 * pre_close, pre_close, paused)


@pytest.mark.parametrize('code, is_st, bar, limits', [
    # 4.11 * 1.1 = 4.521, * 0.9 = 3.699; * 1.05 = 4.3155, * 0.95 = 3.9045
    ('600234.XSHG', True, ('2026-08-05', 4.11, 4.00, 4.30), (4.52, 3.70)),
    ('600234.XSHG', True, ('2026-07-06', 4.11, 4.00, 4.30), (4.52, 3.70)),
    ('600234.XSHG', True, ('2026-07-03', 4.11, 4.00, 4.30), (4.32, 3.90)),
    ('600234.XSHG', True, ('2026-07-03', 4.11, 4.00, 4.40), (4.52, 3.70)),  # beyond 5 %: not ST on that day
    ('159915.XSHE', False, ('2020-08-21', 2.5, 2.4, 2.6), (2.75, 2.25)),
    ('159915.XSHE', False, ('2020-08-24', 2.5, 2.4, 2.6), (3.0, 2.0)),
    ('159999.XSHE', False, ('2024-06-03', 1.0, 0.95, 1.15), (1.2, 0.8)),    # no list has it, its trades tell
    ('159999.XSHE', False, ('2024-06-03', 1.0, 1.15, 1.15, True), (1.1, 0.9)),
    ('600234.XSHG', False, ('2024-06-03', 4.0, 3.0, 4.0), None)])
def test_limits_of_a_past_day_are_those_of_its_date(code, is_st, bar, limits):
    columns = bq._qmt_daily(code, [day_bar(*bar)], is_st)
    high, low = columns['high_limit'][0], columns['low_limit'][0]
    assert math.isnan(high) and math.isnan(low) if limits is None else (high, low) == limits


@pytest.mark.parametrize('code, listed, days', [
    ('113690.XSHG', date(2024, 6, 3), [(157.3, 56.7), (120.0, 80.0)]),   # bonds: +57.3 and -43.3 %, then 20 %
    ('508099.XSHG', date(2024, 6, 3), [(130.0, 70.0), (110.0, 90.0)]),   # REITs: 30 %, then 10 %
    ('159999.XSHE', date(2024, 6, 3), [(110.0, 90.0), (110.0, 90.0)]),
    ('113690.XSHG', date(2024, 5, 31), [(120.0, 80.0), (120.0, 80.0)])])
def test_limits_of_the_first_days_after_listing(code, listed, days):
    bars = [day_bar('2024-06-03', 100.0, 99.0, 101.0), day_bar('2024-06-04', 100.0, 99.0, 101.0)]
    columns = bq._qmt_daily(code, bars, False, listed)
    assert list(zip(columns['high_limit'], columns['low_limit'])) == days


def test_limits_are_derived_where_the_detail_has_none(terminal, data):
    terminal.market.limits_in_detail = False
    assert (data.quote(STOCK).high_limit, data.quote(STOCK).low_limit) == (11.0, 9.0)
    st = data.quote('600234.XSHG')
    assert (st.high_limit, st.low_limit) == bq.price_limits('600234.XSHG', st.pre_close, date(2025, 8, 6), True)
    assert data.quote(INDEX).high_limit is None


def test_a_suspended_security(terminal, data):
    terminal.suspend('600000.SH')
    assert data.quote(STOCK).paused and data.live_current(STOCK)['paused']


# -- push ----------------------------------------------------------------------------------------------------
class Listener:
    def __init__(self):
        self.ticks = []

    def __call__(self, tick):
        self.ticks.append(tick)
        if tick.last_price == 9.99:
            raise ValueError('a listener that fails')

    def heard(self, code, price):
        return becomes(lambda: any((tick.sid, tick.last_price) == (code, price) for tick in self.ticks))


def test_ticks_are_pushed_and_survive_a_failing_listener(zone, terminal, data):
    listener = Listener()
    data.set_tick_listener(listener)
    data.subscribe([STOCK, SUSPENDED])
    terminal.push('600000.SH', 9.99, 100)
    assert listener.heard(STOCK, 9.99)
    terminal.push('000001.SZ', 12.1, 100)
    assert listener.heard(SUSPENDED, 12.1) and listener.ticks[-1].dt == datetime(2025, 8, 6, 10)
    data.unsubscribe([STOCK, SUSPENDED])
    assert terminal.market.subscriptions() == [] and data.health()['subscriptions'] == 0


def test_a_whole_market_is_one_subscription_beside_codes_of_others(terminal, data):
    listener = Listener()
    data.set_tick_listener(listener)
    data.subscribe(['XSHG', STOCK, SUSPENDED])
    assert [(sorted(item[1]), item[3]) for item in terminal.market.subscriptions()] == [(['000001.SZ', 'SH'], True)]
    terminal.push('510300.SH', 4.02, 100)
    terminal.push('000001.SZ', 12.3, 100)
    assert listener.heard(ETF, 4.02) and listener.heard(SUSPENDED, 12.3)
    data.unsubscribe(['XSHG'])
    assert sorted(sorted(item[1]) for item in terminal.market.subscriptions()) == [['000001.SZ'], ['600000.SH']]
    terminal.push('510300.SH', 4.03, 100)
    terminal.push('600000.SH', 9.98, 100)
    assert listener.heard(STOCK, 9.98) and not any(tick.last_price == 4.03 for tick in listener.ticks)


def test_many_are_covered_by_one_subscription_and_few_again_by_their_own(terminal, data):
    codes = ['6010%02d.XSHG' % i for i in range(49)]
    for code in codes:
        terminal.add_security(bq.qmt_code(code), '测试', 10.0, first_day='20250801')
    listener = Listener()
    data.set_tick_listener(listener)
    data.subscribe(codes + [STOCK])
    assert len(terminal.market.subscriptions()) == 50
    data.subscribe([ETF])
    assert [(len(item[1]), item[3]) for item in terminal.market.subscriptions()] == [(51, True)]
    terminal.push('510300.SH', 4.01, 100)
    assert listener.heard(ETF, 4.01)
    data.unsubscribe([STOCK])
    assert [item[3] for item in terminal.market.subscriptions()] == [False] * 50
    terminal.push('510300.SH', 4.02, 100)
    assert listener.heard(ETF, 4.02)


def test_a_refused_subscription_leaves_nothing_behind(terminal, data):
    data.subscribe([ETF])
    terminal.faults.fail_quotes()
    with pytest.raises(bq.QmtUnavailable):
        data.subscribe([SUSPENDED, STOCK])
    assert [item[1] for item in terminal.market.subscriptions()] == [['510300.SH']]
    assert data.health()['subscriptions'] == 1
    with pytest.raises(bq.SecurityNotFound):
        data.subscribe(['600999.XSHG'])


def test_subscriptions_are_restored_after_xtdata_reconnected_by_itself(terminal, data):
    listener = Listener()
    data.set_tick_listener(listener)
    data.subscribe([STOCK, ETF])
    terminal.drop_data()
    assert becomes(lambda: len(terminal.market.subscriptions()) == 2)
    terminal.push('600000.SH', 10.3, 100)
    assert listener.heard(STOCK, 10.3)


# -- subscriptions that are lost without a word ---------------------------------------------------------------
@pytest.fixture
def trading(terminal):
    """Data that looks at its ticks at every turn."""
    data = open_data(terminal, look_s=0.0)
    data.trade_days(count=1)
    yield data
    data.close()


def trade_on(terminal, seconds, *codes):
    """Trades every 3 s of the market's time, each seen by a look at the snapshots."""
    for _ in range(seconds // 3):
        terminal.clock.advance(3)
        for code in codes:
            terminal.push(code, 10.0, 100)
        looks = [name for _, name in terminal.calls()].count('full_tick')
        terminal.wait_called('full_tick', looks + 2)


def ticks_of(data):
    return data.health()['ticks']


@pytest.mark.parametrize('wanted, pushed, kinds', [
    ([STOCK], ['600000.SH'], [False]), ([STOCK, ETF], ['600000.SH', '510300.SH'], [False, False]),
    (['XSHG'], ['600000.SH'], [True])])
def test_ticks_that_dry_up_are_noticed_within_15_s_of_trading(terminal, trading, wanted, pushed, kinds):
    listener = Listener()
    trading.set_tick_listener(listener)
    trading.subscribe(wanted)
    terminal.push(pushed[0], 10.2, 100)
    assert listener.heard(STOCK, 10.2)
    trade_on(terminal, 30, *pushed)
    assert ticks_of(trading) == {'renewed': 0, 'last_renewed': None}
    terminal.forget_quotes()
    trade_on(terminal, 15, *pushed)
    assert [item[3] for item in terminal.market.subscriptions()] == kinds
    assert ticks_of(trading)['renewed'] >= 1
    assert '2025-08-06 10:00:30' < ticks_of(trading)['last_renewed'] <= '2025-08-06 10:00:45'
    assert health_is(trading, 'connected')
    terminal.push(pushed[0], 10.3, 100)
    assert listener.heard(STOCK, 10.3)


def test_one_that_dries_up_among_others_is_noticed(terminal, trading):
    trading.subscribe([STOCK, ETF])
    trade_on(terminal, 3, '600000.SH', '510300.SH')
    number, = [seq for seq, codes, _, _ in terminal.market.subscriptions() if codes == ['600000.SH']]
    link, = [link['number'] for link in terminal.links() if link['kind'] == 'data']
    terminal.market.unsubscribe(link, number)
    trade_on(terminal, 15, '600000.SH', '510300.SH')
    assert sorted(item[1] for item in terminal.market.subscriptions()) == [['510300.SH'], ['600000.SH']]
    assert ticks_of(trading)['renewed'] == 1


def test_a_quiet_one_that_dries_up_among_many_is_noticed(terminal, trading, monkeypatch):
    """One subscription covers 60; ten are busy, and of the others the next four are looked at in turn."""
    monkeypatch.setattr(bq._QmtFeed, 'LOOK_AT', 5)
    monkeypatch.setattr(bq._QmtFeed, 'IN_TURN', 4)
    symbols = ['6010%02d.SH' % i for i in range(60)]
    for symbol in symbols:
        terminal.add_security(symbol, '测试', 10.0, first_day='20250801')
    listener = Listener()
    trading.set_tick_listener(listener)
    trading.subscribe([bq.normalize_code(symbol) for symbol in symbols])
    quiet, busy = symbols[30], symbols[:10]
    trade_on(terminal, 30, quiet, *busy)
    assert ticks_of(trading)['renewed'] == 0
    terminal.forget_quote(quiet)
    terminal.clock.advance(1)
    terminal.push(quiet, 10.0, 100)
    trade_on(terminal, 90, *busy)
    assert ticks_of(trading)['renewed'] == 1
    assert [len(item[1]) for item in terminal.market.subscriptions()] == [60]
    terminal.push(quiet, 10.4, 100)
    assert listener.heard(bq.normalize_code(quiet), 10.4)


def test_what_is_not_traded_is_no_alarm(terminal, trading):
    trading.subscribe([STOCK, ETF])
    trade_on(terminal, 3, '600000.SH', '510300.SH')
    terminal.forget_quotes()
    trade_on(terminal, 60)
    assert terminal.market.subscriptions() == [] and ticks_of(trading)['renewed'] == 0
    trade_on(terminal, 9, '600000.SH')
    assert [item[1] for item in terminal.market.subscriptions()] == [['600000.SH']]


@pytest.mark.parametrize('moment', ['2025-08-06 09:20:00', '2025-08-06 11:45:00', '2025-08-06 15:20:00',
                                    '2025-08-09 10:00:00'])
def test_nothing_is_asked_while_nothing_is_traded(terminal, moment):
    """A Saturday among them."""
    data = open_data(terminal, look_s=0.0, probe_s=60.0)
    terminal.set_now(moment)
    data.trade_days(count=1)
    data.subscribe([STOCK])
    for _ in range(3):
        data._feed.look()
    assert 'full_tick' not in [name for _, name in terminal.calls()]
    data.close()


@pytest.mark.parametrize('wanted', [[STOCK], [STOCK, SUSPENDED], ['XSHG', STOCK]])
def test_who_subscribes_again_is_subscribed_anew(terminal, data, wanted):
    """Whatever the adapter believes: once more at the terminal, once in it, and heard once."""
    listener = Listener()
    data.set_tick_listener(listener)
    data.subscribe(wanted)
    before = terminal.market.subscriptions()
    terminal.forget_quotes()
    data.subscribe([STOCK])
    assert any(set(item[1]) & {'600000.SH', 'SH'} for item in terminal.market.subscriptions())
    data.subscribe(wanted)
    after = terminal.market.subscriptions()
    assert [item[1:] for item in after] == [item[1:] for item in before] and after[0][0] > before[-1][0]
    for price in (10.4, 10.5):
        terminal.push('600000.SH', price, 100)
        assert listener.heard(STOCK, price)
    assert [tick.last_price for tick in listener.ticks].count(10.4) == 1


def test_fifty_single_subscriptions_can_be_asked_for_again(terminal, data):
    """The terminal takes no more than these at a time."""
    codes = ['6010%02d.XSHG' % i for i in range(50)]
    for code in codes:
        terminal.add_security(bq.qmt_code(code), '测试', 10.0, first_day='20250801')
    data.subscribe(codes)
    terminal.forget_quotes()
    data.subscribe(codes)
    data.subscribe(codes[:7])
    assert sorted(item[1][0] for item in terminal.market.subscriptions()) == [bq.qmt_code(code) for code in codes]


def test_a_renewal_that_the_terminal_refuses_is_told_and_made_up_for(terminal, trading):
    trading.subscribe([STOCK])
    terminal.faults.fail_quotes()
    with pytest.raises(bq.QmtUnavailable):
        trading.subscribe([STOCK])
    assert becomes(lambda: [item[1] for item in terminal.market.subscriptions()] == [['600000.SH']])
    assert trading.health()['subscriptions'] == 1


# -- the connection ------------------------------------------------------------------------------------------
def test_the_server_starts_before_the_terminal(terminal):
    terminal.stop()
    with nothing_left():
        data = open_data(terminal)
        with pytest.raises(bq.QmtUnavailable) as info:
            data.quote(STOCK)
        assert info.value.details['retry_after_s'] >= 1 and info.value.retryable
        health = data.health()
        assert health['state'] == 'disconnected' and '无法连接xtquant服务' in health['last_error']
        terminal.start()
        assert health_is(data, 'connected') and data.quote(STOCK).last_price == 10.0
        data.close()


def test_hundreds_of_attempts_beside_a_terminal_that_is_off_leave_nothing_behind(terminal):
    terminal.stop()
    with nothing_left():
        data = open_data(terminal, backoff_s=(0.001,), probe_s=0.001)
        terminal.wait_called('data_connect', 20)
        early = threading.active_count(), len(terminal.links())
        terminal.wait_called('data_connect', 320, timeout_s=60)
        assert threading.active_count() <= early[0] + 1 and len(terminal.links()) <= early[1] + 1
        data.close()


def test_a_restarted_terminal_is_noticed_without_any_call(terminal, data):
    data.subscribe([STOCK])
    terminal.stop()
    assert health_is(data, 'disconnected')
    assert becomes(lambda: data.health()['next_attempt'] is not None)
    data.unsubscribe([])
    terminal.start()
    assert health_is(data, 'connected') and becomes(lambda: len(terminal.market.subscriptions()) == 1)


def test_a_call_that_hangs_is_counted_and_does_not_end_the_service(terminal):
    data = open_data(terminal, call_timeout_s=0.2)
    data.quote(STOCK)
    terminal.faults.hang('full_tick', times=1)
    with pytest.raises(bq.QmtUnavailable) as info:
        data.quote(STOCK)
    assert '超时' not in str(info.value) and info.value.details['retry_after_s'] >= 1
    assert becomes(lambda: data.health()['state'] == 'connected' and data.health()['hung'] == 0)
    assert data.quote(STOCK).last_price == 10.0
    data.close()


def test_closing_during_a_download_leaves_nothing(terminal):
    with nothing_left():
        data = open_data(terminal, stall_s=30.0)
        data.trade_days(count=1)
        terminal.faults.hang('download')
        failed = []
        worker = threading.Thread(target=lambda: failed.append(pytest.raises(bq.BulletError, ask, data, count=3)))
        worker.start()
        assert becomes(lambda: terminal.faults.parked() == ['download'])
        data.close()
        worker.join()
        assert failed


# -- without a terminal: what the vendor's answers may look like ---------------------------------------------
FakeVendor = namedtuple('FakeVendor', 'xtdata')
EPOCH_DAY = bars.epoch_ms(date(2025, 8, 5))


class FakeXtdata:
    """xtdata's function names and shapes; `frames` by (code, period), `detail` and `tick` of every code."""

    def __init__(self):
        self.frames, self.divid, self.calls = {}, pandas.DataFrame(), []
        self.days = [bars.epoch_ms(date(2025, 8, day)) for day in (1, 4, 5)]
        self.detail = {'InstrumentName': '测试', 'OpenDate': 20250801, 'ExpireDate': 0, 'PreClose': 10.0,
                       'UpStopPrice': 0.0, 'DownStopPrice': 0.0, 'InstrumentStatus': 0}
        self.tick, self.calendar = {}, None

    def get_client(self):
        return self

    def is_connected(self):
        return True

    def get_trading_dates(self, market):
        return self.days

    def get_trading_calendar(self, market, start):
        if self.calendar is None:
            raise Exception('节假日数据为空')
        return self.calendar

    def get_instrument_detail(self, code):
        return dict(self.detail) if self.detail else None

    def get_full_tick(self, codes):
        return {code: self.tick for code in codes if self.tick}

    def get_divid_factors(self, code):
        return self.divid

    def get_stock_list_in_sector(self, name, *moment):
        return []

    def get_index_weight(self, code):
        return {}

    def get_market_data_ex(self, fields, codes, period, start, end, count, dividend, fill):
        return {code: self.frames.get(period, pandas.DataFrame()) for code in codes}

    def download_history_data(self, code, period, start, end):
        self.calls.append((code, period, start, end))


@pytest.fixture
def fake():
    return FakeXtdata()


@pytest.fixture
def faked(fake):
    data = bq.QmtData(FakeVendor(fake), FakeClock(datetime(2025, 8, 6, 10)), **FAST).start()
    yield data
    data.close()


def frame_of(*rows, **more):
    names = ('time', 'open', 'high', 'low', 'close', 'volume', 'amount') + tuple(more)
    return pandas.DataFrame([row + tuple(more.values()) for row in rows], columns=names)


def at(hour, minute, day=EPOCH_DAY):
    return day + (hour * 60 + minute) * 60000


def minutes(fake, data, *rows):
    closing = () if rows[-1][0] >= at(15, 0) else ((at(15, 0), 10, 10, 10, 10, 1, 1000),)
    fake.frames = {'1m': frame_of(*(rows + closing)), '1d': frame_of((EPOCH_DAY, 10, 10, 10, 10, 1, 1000))}
    return data._minutes(STOCK, ms('2025-08-05'), ms('2025-08-05'))


def test_the_auction_is_part_of_the_first_minute(zone, fake, faked):
    bars_of = minutes(fake, faked, (at(9, 30), 10.0, 10.0, 10.0, 10.0, 5, 5000.0),
                      (at(9, 31), 10.1, 10.4, 9.9, 10.2, 3, 3060.0),
                      (at(13, 0), 10.0, 10.0, 10.0, 10.0, 0, 0.0), (at(13, 1), 10.3, 10.3, 10.3, 10.3, 1, 1030.0),
                      (at(15, 0), 10.0, 10.0, 10.0, 10.0, 1, 1000.0), (at(15, 5), 10.0, 10.0, 10.0, 10.0, 1, 1000.0))
    assert [bq.iso_ms(moment)[11:16] for moment in bars_of['time']] == ['09:31', '13:01', '15:00']
    assert [bars_of[name][0] for name in ('open', 'high', 'low', 'close', 'volume', 'money')] == [
        10.0, 10.4, 9.9, 10.2, 800, 8060.0]
    assert bars_of['open'][1] == 10.3  # nothing was traded at 13:00, so its price does not count


def test_an_auction_alone_becomes_the_first_minute(fake, faked):
    assert bq.from_ms(minutes(fake, faked, (at(9, 30), 10.0, 10.0, 10.0, 10.0, 5, 5000.0))['time'][0]).minute == 31


@pytest.mark.parametrize('code, rows, unit', [
    (STOCK, [(10.0, 0, 0.0), (10.0, 5, 5000.0)], 100), (STOCK, [(10.0, 500, 5000.0), (11.0, 0, 0.0)], 1),
    (STOCK, [(10.0, 0, 0.0)], 1), (STOCK, [], 1), (BOND, [(110.0, 3, 3300.0)], 10), (BOND, [(110.0, 30, 3300.0)], 1),
    (INDEX, [(4000.0, 1000000, 1.2e9)], 100), (INDEX, [(4000.0, 1e8, 1.2e9)], 1), (ETF, [(4.0, 7, 2800.0)], 100)])
def test_units_of_volume(code, rows, unit):
    assert bq._qmt_unit(code, rows) == unit


def test_day_bars_of_an_old_version(fake, faked):
    """No preClose, no suspendFlag, a day that is none of trading, NaN where nothing was traded."""
    fake.detail['OpenDate'] = 20200803
    fake.frames = {'1d': frame_of((EPOCH_DAY - 4 * bq.DAY_MS, 9.0, 10.0, 9.0, 10.0, 5, 5000.0),
                                  (EPOCH_DAY - 3 * bq.DAY_MS, 1.0, 1.0, 1.0, 1.0, 5, 500.0),
                                  (EPOCH_DAY - bq.DAY_MS, math.nan, math.nan, math.nan, math.nan, 0, 0.0),
                                  (EPOCH_DAY, 10.1, 10.5, 10.0, 10.2, 3, 3060.0))}
    columns = faked._daily(STOCK, -1 << 60, ms('2025-08-05'))
    assert [bq.iso_ms(day)[:10] for day in columns['time']] == ['2025-08-01', '2025-08-04', '2025-08-05']
    columns = {name: list(values) for name, values in columns.items()}
    assert columns['close'] == [10.0, 10.0, 10.2] and columns['pre_close'] == [9.0, 10.0, 10.0]
    assert columns['volume'] == [500, 0, 300] and set(columns['paused']) == {0.0}
    assert math.isnan(columns['high_limit'][0])  # rose by more than any limit: there was none
    assert (columns['high_limit'][2], columns['low_limit'][2]) == (11.0, 9.0)
    assert fake.calls == [('600000.SH', '1d', '20250805', '20250805')]


def test_minutes_that_the_source_lacks_are_an_error(fake, faked):
    fake.frames = {'1d': frame_of((EPOCH_DAY, 10, 10, 10, 10, 1, 1000.0))}
    with pytest.raises(bq.DataUnavailable) as info:
        faked._minutes(STOCK, ms('2025-08-05'), ms('2025-08-05'))
    assert '分钟线' in str(info.value)


@pytest.mark.parametrize('calendar, today', [(['20250806', '20250807'], True), (['20250807'], False), ([], False),
                                             (None, False)])
def test_today_by_the_exchanges_holidays(fake, faked, calendar, today):
    fake.calendar = calendar
    assert (ms('2025-08-06') in faked.trade_days()) is today


def test_factors_are_computed_where_the_vendor_has_none(fake, faked):
    fake.frames = {'1d': frame_of((EPOCH_DAY - bq.DAY_MS, 10, 10, 10, 10, 1, 1000.0),
                                  (EPOCH_DAY, 7, 7, 7, 7, 1, 700.0))}
    fake.divid = pandas.DataFrame({'20250805': dict(time=EPOCH_DAY, interest=0.5, stockBonus=0.1, stockGift=0.2,
                                                    allotNum=0.1, allotPrice=5.0, gugai=0.0, dr=0.0)}).T
    assert faked._factor_steps(STOCK) == [(ms('2025-08-05'), pytest.approx(10 / ((10 - 0.5 + 0.5) / 1.4)))]
    assert faked.split_dividend(STOCK, 0, ms('2025-08-06'))[0]['scale_factor'] == 1.3
    fake.divid['dr'] = 1.25
    assert faked._factor_steps(STOCK) == [(ms('2025-08-05'), 1.25)]


@pytest.mark.parametrize('opened, expires, start, end', [
    (0, 0, date(1990, 1, 1), date(2200, 1, 1)), ('19991110', '99999999', date(1999, 11, 10), date(2200, 1, 1)),
    (19991110, 20250331, date(1999, 11, 10), date(2025, 3, 31)), (None, '', date(1990, 1, 1), date(2200, 1, 1))])
def test_dates_of_a_security(fake, faked, opened, expires, start, end):
    fake.detail.update(OpenDate=opened, ExpireDate=expires)
    info = faked._info(STOCK)
    assert (info['start_date'], info['end_date']) == (start, end)


def test_a_quote_without_original_volume(fake, faked):
    fake.detail['OpenDate'] = 20200801
    fake.tick = {'time': at(9, 59, EPOCH_DAY + bq.DAY_MS), 'lastPrice': 10.0, 'lastClose': 9.8, 'amount': 50000.0,
                 'volume': 50, 'askPrice': [10.01], 'askVol': [3], 'bidPrice': [], 'bidVol': None}
    tick = faked.quote(STOCK)
    assert (tick.volume, tick.a1_v, tick.b1_p, tick.pre_close, tick.age_s, tick.stale) == (5000, 300, 0, 9.8, 60, True)
    assert (tick.high_limit, tick.low_limit) == (10.78, 8.82)


@pytest.mark.parametrize('opened, limits', [(20250801, (None, None)), (20250701, (11.0, 9.0)), (0, (11.0, 9.0)),
                                            (20250806, (11.0, 9.0))])
def test_limits_that_the_detail_lacks(fake, faked, opened, limits):
    """None in the first five days of a stock; else by the rules. The sixth of August is a day to come."""
    fake.tick = {'time': at(9, 59, EPOCH_DAY), 'lastPrice': 10.0, 'lastClose': 10.0, 'amount': 0.0, 'volume': 0}
    fake.detail['OpenDate'] = opened
    tick = faked.quote(STOCK)
    assert (tick.high_limit, tick.low_limit) == limits
    assert faked.market_state(STOCK).unlimited is (limits == (None, None))


@pytest.mark.parametrize('high, low, told', [(0.0, 0.0, False), (11.0, 9.0, True), (11.0, 0.0, False)])
def test_whether_limits_are_the_terminals_own(fake, faked, high, low, told):
    fake.detail.update(UpStopPrice=high, DownStopPrice=low, OpenDate=20000103)
    assert faked.market_state(STOCK).told is told


@pytest.mark.parametrize('high, limits', [(10.9, (11.0, 9.0)), (11.01, (None, None))])
def test_a_trade_beyond_derived_limits_widens_those_of_the_quote(fake, faked, high, limits):
    fake.detail['OpenDate'] = 20000103
    fake.tick = {'time': at(9, 59, EPOCH_DAY), 'lastPrice': 10.5, 'lastClose': 10.0, 'amount': 105000.0, 'volume': 100,
                 'high': high, 'low': 10.0, 'open': 10.0}
    tick = faked.quote(STOCK)
    assert (tick.high_limit, tick.low_limit) == limits


@pytest.mark.parametrize('tick', [{}, {'lastPrice': 0.0, 'lastClose': 0.0}])
def test_no_quote(fake, faked, tick):
    fake.tick, fake.detail['PreClose'] = tick, 0.0
    with pytest.raises(bq.DataUnavailable):
        faked.quote(STOCK)


def test_no_sectors_and_no_members(faked):
    with pytest.raises(bq.DataUnavailable):
        faked.all_securities(['stock'])
    with pytest.raises(bq.DataUnavailable):
        faked.index_stocks(INDEX)


def test_a_vendors_exception_is_told_and_noted(fake, faked):
    def broken(code):
        raise ValueError('坏了')
    faked.trade_days()
    fake.get_instrument_detail = broken
    with pytest.raises(bq.QmtUnavailable) as info:
        faked.quote(STOCK)
    assert '坏了' in str(info.value) and '坏了' in faked.health()['last_error']


def test_a_connection_given_up_while_it_is_looked_at_is_made_anew(fake):
    made, alive = [], threading.Event()

    def reconnect():
        made.append(threading.current_thread().name)
        return fake

    def given_up_meanwhile():
        if len(made) == 1:
            data._link.reset('下载卡住')
        alive.set()
        return True

    fake.reconnect, fake.is_connected = reconnect, given_up_meanwhile
    data = bq.QmtData(FakeVendor(fake), FakeClock(datetime(2025, 8, 6, 10)), **FAST).start()
    assert alive.wait(20) and becomes(lambda: len(made) == 2) and health_is(data, 'connected')
    data.close()


class LinkWithoutTerminal(bq._QmtDataLink):
    """The keeper in the test's own thread: each pause moves the clock, and over(seconds) ends it."""

    def __init__(self, over, **options):
        self.attempts, self.is_up, self._over = [], False, over
        super().__init__(self, FakeClock(datetime(2025, 8, 6, 10)), 20.0, **options)

    def reconnect(self):
        self.attempts.append(self.clock.monotonic())
        if not self.is_up:
            raise RuntimeError('无法连接xtquant服务')
        return self

    get_client = reconnect

    def is_connected(self):
        return True

    def _pause(self, seconds, good):
        self.clock.advance(seconds)
        if self._over(self.clock.monotonic()):
            self._stop.set()

    def keep(self):
        self._keep()
        self._guard.close()
        return self


def test_where_nothing_listens_the_vendor_is_asked_a_few_times_and_then_every_ten_minutes():
    """Each attempt that fails costs memory for good: in two hours that is three, and twelve."""
    link = LinkWithoutTerminal(lambda now_s: now_s >= 7200, listening=lambda: False).keep()
    assert link.attempts[:3] == [0, 1, 3]  # the pauses are 1 and 2 s
    assert 3 + 11 <= len(link.attempts) <= 3 + 12
    gaps = [after - before for before, after in zip(link.attempts[2:], link.attempts[3:])]
    assert all(600 <= gap <= 630 for gap in gaps)  # ten minutes, at the next look
    assert '无法连接xtquant服务' in link._last_error and link._state == 'disconnected'


def test_what_begins_to_listen_is_connected_to_at_the_next_look():
    looks = []

    def listening():
        looks.append(link.clock.monotonic())
        link.is_up = len(looks) == 8
        return link.is_up
    link = LinkWithoutTerminal(lambda now_s: link.connected, listening=listening)
    link.keep()
    assert link.attempts == [0, 1, 3, looks[7]] and link._state == 'connected'
    assert max(after - before for before, after in zip(looks, looks[1:])) == 30


def test_the_ports_of_the_vendor_are_looked_at(terminal, monkeypatch):
    """What its own xtconn lists, where a full installation tells its port in a file, and 58610 as xtdata adds it."""
    conn, asked, listening = bq.importlib.import_module('xtquant.xtconn'), [], native.real_listening()
    monkeypatch.setattr(conn, 'scan_available_server_addr', lambda: ['0.0.0.0:58615', '192.0.2.7:58620'])
    monkeypatch.setattr(bq, 'is_listening', lambda port, host: asked.append((host, port)) or port == 58610)
    assert listening()
    assert asked == [('127.0.0.1', 58615), ('192.0.2.7', 58620), ('127.0.0.1', 58610)]
    monkeypatch.setattr(bq, 'is_listening', lambda port, host: False)
    assert not listening()
    monkeypatch.setattr(conn, 'scan_available_server_addr', lambda: ['no address'])
    assert listening()  # the vendor may know better
    monkeypatch.delattr(conn, 'scan_available_server_addr')
    assert listening()  # an xtquant that does not tell them is asked as ever
    monkeypatch.setitem(sys.modules, 'xtquant.xtconn', None)
    assert listening()


# -- the backend ---------------------------------------------------------------------------------------------
def qmt_settings(**changes):
    settings = bq.load_settings(['server', 'stub'], {'server_type': 'qmt'}, environ={}, dotenv=None)
    return settings.replace(**dict(dict(auto_download=True, quote_max_age=15.0), **changes))


def test_an_account_needs_its_path():
    with pytest.raises(bq.ConfigError) as info:
        bq.open_qmt(qmt_settings(accounts=bq.parse_accounts('main=1000000365')), FakeClock(datetime(2025, 8, 6)))
    assert 'main' in str(info.value) and 'QMT_DATA_PATH' in str(info.value)


def test_open_and_close(terminal):
    with nothing_left():
        accounts = bq.parse_accounts('main=1000000365:stock:' + scene.userdata_folder())
        backend = bq.open_qmt(qmt_settings(accounts=accounts), terminal.clock)
        health = backend.health()
        assert health['backend_type'] == 'qmt' and list(health['qmt']['accounts']) == ['main']
        assert becomes(lambda: backend.health()['qmt']['accounts']['main']['state'] == 'connected')
        assert health_is(backend.data, 'connected') and backend.data.quote(STOCK).last_price == 10.0
        assert backend.troubles() == {}
        backend.close()
        (broker_partly, broker_reason), (data_partly, _) = backend.troubles()['broker'], backend.troubles()['data']
        assert not broker_partly and not data_partly and 'main' in broker_reason
