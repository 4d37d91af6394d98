"""The present of a live run: quotes as old as a second, bars that come late, calendars that are not there yet."""
import math

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.live import Between, moment, stage

A = '000001.XSHE'


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)


def provider_of(stage, **changes):
    return Between(bq.RemoteQmtProvider(connection=stage.connection), **changes)


def view_at(stage, provider, clock):
    stage.clock.set(moment(clock))
    view = jq.LiveView(jq.LiveStore(provider, stage.clock), jq.Options(), lambda text: None)
    view.options.use_real_price = True
    view.move(moment(clock))
    return view


def test_a_quote_is_asked_again_after_a_second(tmp_path):
    with stage(tmp_path, '2025-03-03 10:00') as it:
        provider = provider_of(it)
        view = view_at(it, provider, '2025-03-03 10:00')
        first = [view.last_price(A), view.limits(A), view.is_paused(A)]
        assert provider.calls.count('get_live_current') == 1 and first[0] > 0
        it.clock.advance(0.9)
        view.last_price(A)
        assert provider.calls.count('get_live_current') == 1
        it.clock.advance(0.2)
        view.last_price(A)
        assert provider.calls.count('get_live_current') == 2


def test_a_quote_of_yesterday_tells_only_the_last_close(tmp_path):
    """As terminals show it in the morning: the figures of the day before, its own reference price among them."""
    def yesterdays(read, security):
        return dict(read(security), dt='2025-02-28 15:00:00', last_price=18.05, pre_close=17.0, open=17.1, high=18.2,
                    low=17.0, volume=1e6, high_limit=18.7, low_limit=15.3)
    with stage(tmp_path, '2025-03-03 09:00') as it:
        view = view_at(it, provider_of(it, get_live_current=yesterdays), '2025-03-03 09:00')
        assert view.last_price(A) == 18.05 and view.limits(A) == (19.86, 16.25) and view.is_stale(A)
        assert math.isnan(view.day_value(A, 'open')) and math.isnan(view.day_value(A, 'volume'))
        closes = view.attribute_history(A, 2, '1d', ['close'], df=False)['close']
        assert closes[-1] == 18.05, 'no ex-date is seen in the reference price of another day'


def test_minutes_of_today_that_cannot_be_had_are_not_left_out(tmp_path):
    """An answer that ended yesterday would pass for that of now."""
    def refusing(read, *args, **kwargs):
        if kwargs.get('frequency') == '1m' and kwargs['end_date'] == moment('2025-03-03 15:00'):
            raise bq.DataUnavailable('incomplete')
        return read(*args, **kwargs)
    with stage(tmp_path, '2025-03-03 10:00') as it:
        view = view_at(it, provider_of(it, get_price=refusing), '2025-03-03 10:00')
        with pytest.raises(bq.DataUnavailable):
            view.get_bars(A, 60, '1m')


def test_a_minute_that_comes_late_is_asked_for_again(tmp_path):
    late = []

    def lagging(read, *args, **kwargs):
        frame = read(*args, **kwargs)
        return frame[:-1] if late and kwargs.get('frequency') == '1m' else frame
    with stage(tmp_path, '2025-03-03 10:00') as it:
        provider = provider_of(it, get_price=lagging)
        view = view_at(it, provider, '2025-03-03 10:00')
        late.append(True)
        assert view.get_bars(A, 1, '1m')['date'][0] == moment('2025-03-03 09:59')
        late.clear()
        assert view.get_bars(A, 1, '1m')['date'][0] == moment('2025-03-03 09:59'), 'within a second it is not'
        it.clock.advance(1.1)
        assert view.get_bars(A, 1, '1m')['date'][0] == moment('2025-03-03 10:00')
        asked = provider.calls.count('get_price')
        it.clock.advance(30)
        view.get_bars(A, 1, '1m')
        assert provider.calls.count('get_price') == asked, 'complete until a minute has passed'
        it.clock.advance(30)
        view.move(moment('2025-03-03 10:01'))
        assert view.get_bars(A, 1, '1m')['date'][0] == moment('2025-03-03 10:01')


def test_a_day_without_its_bar_after_the_close_is_the_quotes(tmp_path):
    def lagging(read, *args, **kwargs):
        frame = read(*args, **kwargs)
        return frame[frame['time'] < '2025-03-03'] if kwargs.get('frequency') == 'daily' else frame
    with stage(tmp_path, '2025-03-03 15:00') as it:
        late = view_at(it, provider_of(it, get_price=lagging), '2025-03-03 15:00')
        there = view_at(it, provider_of(it), '2025-03-03 15:00')
        fields = ['open', 'close', 'high', 'low', 'volume', 'paused', 'pre_close']
        assert late.get_price(A, count=2, fields=fields).equals(there.get_price(A, count=2, fields=fields))


def test_bars_read_before_the_close_are_read_again_after_it(tmp_path):
    with stage(tmp_path, '2025-03-03 14:59') as it:
        provider = provider_of(it)
        view = view_at(it, provider, '2025-03-03 14:59')
        before = view.get_price(A, count=1)
        it.clock.set(moment('2025-03-03 15:10'))
        view.move(moment('2025-03-03 15:10'))
        after = view.get_price(A, count=1)
        assert after.index[0] == before.index[0] and after['volume'].iloc[0] > before['volume'].iloc[0]
        asked = provider.calls.count('get_price')
        it.clock.set(moment('2025-03-03 16:00'))
        view.get_price(A, count=1)
        assert provider.calls.count('get_price') == asked


B, C = '000002.XSHE', '600000.XSHG'


@pytest.mark.parametrize('failing', [A, B, C])
def test_bars_are_there_with_today_s_or_not_at_all(tmp_path, failing):
    fails = [True]

    def shaky(read, code):
        if fails and code == failing:
            raise bq.DataUnavailable('没有行情')
        return read(code)

    def shaky_together(read, codes):
        return {code: row for code, row in read(codes).items() if not fails or code != failing}
    with stage(tmp_path, '2025-03-03 10:00') as it:
        provider = provider_of(it, get_live_current=shaky, get_live_currents=shaky_together)
        view = view_at(it, provider, '2025-03-03 10:00')
        with pytest.raises(bq.DataUnavailable):
            view.store.load([A, B, C])
        fails.clear()
        today = view.store.calendar[view.store.live_row]
        assert [view.store.daily(code).times[-1] for code in (A, B, C)] == [today] * 3


def test_a_day_that_could_not_be_read_after_the_close_is_asked_for_again(tmp_path):
    with stage(tmp_path, '2025-03-03 14:59') as it:
        provider = provider_of(it)
        view = view_at(it, provider, '2025-03-03 14:59')
        view.get_price(A, count=1)
        provider.changes['get_price'] = lambda read, *args, **kwargs: read('x')
        it.clock.set(moment('2025-03-03 15:01'))
        view.move(moment('2025-03-03 15:01'))
        for _ in range(2):
            with pytest.raises(bq.SecurityNotFound):
                view.store.daily(A)
        provider.changes.clear()
        assert view.store.daily(A).times[-1] == view.store.calendar[view.store.live_row]


def test_quotes_of_what_is_held_and_watched_are_one_request(tmp_path):
    text = '''
        def initialize(context):
            set_universe(['600036.XSHG'])
            for code in ('000001.XSHE', '000002.XSHE', '600000.XSHG'):
                order(code, 100)
            run_daily(look, '10:00')

        def look(context):
            g.value = context.portfolio.positions_value
            g.price = get_current_data()['600036.XSHG'].last_price
    '''
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 10:01') as it:
        provider = provider_of(it)
        it.clock.at(moment('2025-03-03 09:59'), provider.calls.clear)
        session = it.run(it.strategy(text), provider=provider).session
        assert session.g.value == pytest.approx(it.broker.get_account_info()['market_value'], rel=0.01)
        assert session.g.price > 0
        assert [name for name in provider.calls if 'live' in name] == ['get_live_currents']


def test_a_server_that_gives_one_quote_at_a_time_is_asked_for_what_is_wanted_alone(tmp_path):
    """Whoever orders would wait for all that is watched, each time that a second is over."""
    with stage(tmp_path, '2025-03-03 10:00') as it:
        provider = provider_of(it)
        provider.gives_many_quotes = False
        view = view_at(it, provider, '2025-03-03 10:00')
        view.store.watched = lambda: [A, B, C]
        assert view.store.quote(A)['sid'] == A
        assert [name for name in provider.calls if 'live' in name] == ['get_live_current']


def test_a_large_universe_is_not_asked_for_each_second(tmp_path):
    text = """
        def initialize(context):
            set_universe(['%06d.XSHE' % number for number in range(1, 102)])
            g.price = get_current_data()['000001.XSHE'].last_price
    """
    with stage(tmp_path, '2025-03-03 09:40', '2025-03-03 09:41') as it:
        provider = provider_of(it)
        it.run(it.strategy(text), provider=provider)
        assert [name for name in provider.calls if 'live' in name] == ['get_live_current']


def test_many_bars_ask_for_their_quotes_at_once(tmp_path):
    with stage(tmp_path, '2025-03-03 10:00') as it:
        provider = provider_of(it)
        view_at(it, provider, '2025-03-03 10:00').store.load([A, B, C])
        assert [name for name in provider.calls if 'live' in name] == ['get_live_currents']


def test_today_s_minutes_alone_do_not_pass_for_all_that_were_asked_for(tmp_path):
    def without_history(read, *args, **kwargs):
        if kwargs.get('frequency') == '1m' and kwargs['start_date'] < moment('2025-03-03 00:00'):
            raise bq.DataUnavailable('没有下载')
        return read(*args, **kwargs)
    with stage(tmp_path, '2025-03-03 10:00') as it:
        view = view_at(it, provider_of(it, get_price=without_history), '2025-03-03 10:00')
        assert len(view.get_price(A, start_date='2025-03-03 09:30', frequency='1m')) == 30
        for ask in (lambda: view.get_price(A, count=100, frequency='1m'), lambda: view.history(100, '1m', 'close', [A]),
                    lambda: view.get_price(A, start_date='2025-02-28 14:00', frequency='1m')):
            with pytest.raises(bq.DataUnavailable, match='没有分钟线'):
                ask()


@pytest.mark.parametrize('dt', [None, ''])
def test_a_quote_that_does_not_say_of_when_it_is_is_stale(tmp_path, dt):
    with stage(tmp_path, '2025-03-03 10:00') as it:
        timeless = provider_of(it, get_live_current=lambda read, code: dict(read(code), dt=dt))
        assert not view_at(it, provider_of(it), '2025-03-03 10:00').is_stale(A)
        assert view_at(it, timeless, '2025-03-03 10:00').is_stale(A)


def test_days_to_come_are_those_that_the_exchanges_announced(tmp_path):
    with stage(tmp_path, '2025-09-29 09:00') as it:
        store = view_at(it, provider_of(it), '2025-09-29 09:00').store
        ahead = store.days[store.live_row + 1:]
        assert [day.isoformat() for day in ahead[:3]] == ['2025-09-30', '2025-10-09', '2025-10-10']


ONE = '''
def initialize(context):
    g.out = []
    run_daily(work, '10:00')

def before_trading_start(context):
    g.out.append(context.current_dt.strftime('%d %H:%M'))

def work(context):
    g.out.append(get_current_data()['000001.XSHE'].last_price > 0)
'''


def test_a_server_that_is_away_over_night_is_waited_for(tmp_path):
    def away(read, *args, **kwargs):
        raise bq.QmtUnavailable('QMT 没有登录')
    with stage(tmp_path, '2025-03-03 20:00', '2025-03-04 15:30') as it:
        provider = provider_of(it)
        it.clock.at(moment('2025-03-03 23:00'), lambda: provider.changes.update(get_trade_days=away))
        it.clock.at(moment('2025-03-04 09:20'), provider.changes.clear)
        run = it.run(it.strategy(ONE), provider=provider)
        assert run.session.g.out[-2][:6] == '04 09:' and run.session.g.out[-1] is True
        assert len(it.said('交易日历读不到')) == 1


def test_a_weekday_may_turn_out_to_be_a_trade_day(tmp_path):
    def slow(read, *args, **kwargs):
        days = read(*args, **kwargs)
        return days if it.clock.now() > moment('2025-03-03 09:05') else days[:-1]
    with stage(tmp_path, '2025-03-03 08:00', '2025-03-03 15:30') as it:
        run = it.run(it.strategy(ONE), provider=provider_of(it, get_trade_days=slow))
        assert run.session.g.out == ['03 09:10', True]
        assert it.said('2025-03-03 不是交易日') and it.said('2025-03-03 交易日')


def test_reads_of_a_strategy_are_asked_again(tmp_path):
    failures = [0, 0, 0]

    def shaky(read, *args, **kwargs):
        if failures and it.clock.now() >= moment('2025-03-03 10:00'):
            failures.pop()
            raise bq.RequestTimeout('没有回答')
        return read(*args, **kwargs)
    with stage(tmp_path, '2025-03-03 08:00', '2025-03-03 15:30') as it:
        run = it.run(it.strategy(ONE), provider=provider_of(it, get_live_current=shaky))
        assert run.session.g.out[-1] is True and not failures


def test_reads_that_keep_failing_are_the_strategys_error(tmp_path):
    def away(read, *args, **kwargs):
        raise bq.RequestTimeout('没有回答')
    with stage(tmp_path, '2025-03-03 08:00', '2025-03-03 15:30') as it:
        with pytest.raises(jq.StrategyError, match='没有回答'):
            it.run(it.strategy(ONE), provider=provider_of(it, get_live_current=away), patience_s=20.0)
        assert moment('2025-03-03 10:00:20') <= it.clock.now() <= moment('2025-03-03 10:00:40')
