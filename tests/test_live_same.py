"""One strategy, the same simulated days: what it is told and what it trades in a backtest and live."""
import pytest

import jq_helper as jq
from tests.live import stage


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jq.os, 'fsync', lambda descriptor: None)
    monkeypatch.setattr(jq, 'LIMIT_WAIT_S', 0.2)


def both(directory, text, frequency='day', first='2024-05-27 00:00', until='2024-06-05 23:00', **settings):
    """(backtest's log lines, live log lines, BacktestResult, trades, Stage), all of them over the same days."""
    with stage(directory, first, until, **settings) as it:
        path, lines = it.strategy(text), []
        result = jq.backtest(path, first[:10], until[:10], provider='stub', frequency=frequency, write=lines.append)
        run = it.make(path, frequency=frequency)
        trades = Trades(it)
        run.run()
    return [line for line in lines if ' - INFO - ' in line], it.said(' - INFO - '), result, trades.rows, it


class Trades:
    """Every trade of the paper exchange, noted once a minute: it forgets them over night."""

    def __init__(self, stage):
        self.rows, self._known, self._stage = [], set(), stage
        stage.clock.hooks.append(self._look)

    def _look(self):
        for row in self._stage.broker.get_trades():
            if row['trade_id'] not in self._known:
                self._known.add(row['trade_id'])
                self.rows.append(row)


ASKING = '''
A, B, ETF = '000001.XSHE', '600036.XSHG', '510300.XSHG'

def initialize(context):
    set_option('use_real_price', True)
    set_universe([A, B])
    log.set_level('order', 'error')
    for time in ('8:00', '9:00', '9:30', '9:31', '9:45', '11:30', '12:00', '13:01', '14:56', '15:00', '15:30'):
        run_daily(ask, time)

def show(name, value):
    text = repr(value.to_dict() if hasattr(value, 'to_dict') else value)
    log.info('%s: %s', name, text)

def ask(context):
    current = get_current_data()
    for code in (A, ETF):
        unit = current[code]
        limits = None if unit.paused else (unit.high_limit, unit.low_limit)  # bars of suspended days have none
        show('current', [unit.last_price, limits, unit.paused, unit.is_st, unit.name, round(unit.day_open, 3)])
    show('history', history(5, '1d', 'close', [A, B, ETF]))
    show('raw', attribute_history(A, 8, '1d', ('open', 'close', 'factor', 'paused', 'high_limit'), fq=None))
    show('minutes', attribute_history(A, 7, '1m', ('open', 'close', 'high', 'low', 'volume', 'money')))
    show('fives', get_bars(A, 4, '5m', ('date', 'open', 'close', 'high', 'low', 'volume'), include_now=True).tolist())
    show('days', get_price(A, count=3, fields=['open', 'close', 'pre_close', 'paused', 'factor']))
    show('yesterday', get_price([A, B], end_date=context.previous_date, count=3, panel=False))
    show('bars', get_bars(A, 6, '1d', ('date', 'close', 'volume')).tolist())
    show('weeks', get_bars(B, 3, '1w', ('date', 'close')).tolist())
    show('trade days', get_trade_days(count=3))
    show('info', get_security_info(A).display_name)
'''


@pytest.mark.parametrize('frequency', ['day', 'minute'])
def test_every_data_call_gives_the_same(tmp_path, frequency):
    until = '2024-06-05 23:00' if frequency == 'day' else '2024-05-28 23:00'
    past, live, _, _, _ = both(tmp_path, ASKING, frequency, until=until)
    assert len(past) == len(live) > 200
    for ours, theirs in zip(live, past):
        assert ours == theirs


# Market orders of a size that the first level of the paper exchange's book holds, limit orders that fill at once, that
# rest and fill as the price comes down by more than a few steps, and that rest until they are cancelled.
TRADING = '''
from jqdata import *
A, B, ETF = '000001.XSHE', '600036.XSHG', '510300.XSHG'

def initialize(context):
    set_option('use_real_price', True)
    set_slippage(FixedSlippage(0))
    g.days = 0
    run_daily(morning, '9:30')
    run_daily(bids, '10:00')
    run_weekly(rotate, 2, '13:30')
    run_daily(afternoon, '14:50')

def limit(code, ratio):
    return LimitOrderStyle(round(get_current_data()[code].last_price * ratio, 2))

def morning(context):
    g.days += 1
    order_target(A, 300 if g.days % 3 else 0)
    order(ETF, 1000)

def bids(context):
    order(B, 200, limit(B, 1.01))
    order(B, 100, limit(B, 0.997))
    order(A, 100, limit(A, 0.97))

def rotate(context):
    closes = history(10, '1d', 'close', [A, B])
    best = (closes.iloc[-1] / closes.iloc[0]).idxmax()
    order_target(best, 600)

def afternoon(context):
    for placed in get_open_orders().values():
        cancel_order(placed)
    for code, position in context.portfolio.positions.items():
        if code != A and position.closeable_amount:
            order(code, -position.closeable_amount)

def after_trading_end(context):
    held = sorted((code, p.total_amount, p.closeable_amount) for code, p in context.portfolio.positions.items())
    log.info('%s %s %s', held, len(get_orders()), sorted(str(o.status) for o in get_orders().values()))
'''


def in_short(rows):
    """{(day, security, side): shares}; a fill in parts counts as one."""
    total = {}
    for day, security, side, amount in rows:
        total[day, security, side] = total.get((day, security, side), 0) + amount
    return total


def test_the_same_strategy_trades_the_same(tmp_path):
    past, live, result, rows, _ = both(tmp_path, TRADING, until='2024-06-13 23:00')
    theirs = in_short((row['time'].strftime('%Y-%m-%d'), row['security'], row['side'], row['amount'])
                      for row in result.trades)
    ours = in_short((row['time'][:10], row['security'], row['side'], row['amount']) for row in rows)
    assert ours == theirs and len(ours) > 40
    assert {side for _, _, side in ours} == {'BUY', 'SELL'} and len({code for _, code, _ in ours}) == 3
    ends = [[line.split(' - INFO - ')[1] for line in lines if 'INFO - [' in line] for lines in (past, live)]
    assert ends[0] == ends[1] and len(ends[0]) == len(result.days) == 13  # 2024-06-10 was Dragon Boat


def test_prices_differ_by_no_more_than_the_spread(tmp_path):
    """A backtest fills at the last price, the paper exchange at the other side's: a step or two worse."""
    _, _, result, rows, _ = both(tmp_path, TRADING.replace('    run_daily(bids', '    #'), until='2024-05-31 23:00')
    assert len(rows) == len(result.trades) > 10
    for ours, theirs in zip(rows, result.trades):
        tick = 0.001 if ours['security'].startswith('51') else 0.01
        worse = (ours['price'] - theirs['price']) * (1 if ours['side'] == 'BUY' else -1)
        assert [ours[name] for name in ('security', 'side', 'amount')] == [
            theirs[name] for name in ('security', 'side', 'amount')]
        assert tick * 0.5 < worse < tick * 2.5 and ours['time'] == str(theirs['time'])
