"""Section METRICS of jq_helper, each figure against the same computed another way, with numpy and pandas."""
import math
from datetime import date

import numpy
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jq_helper as jq
from tests.runs import curve_result, long_run, sale, weekdays

SMALL = 1e-12
CHANGES = st.lists(st.integers(-2000, 2000).map(lambda number: number / 1e4), min_size=1, max_size=300)


def values_of(result):
    return jq.compute_metrics(result).values


def grown(changes):
    return list(numpy.cumprod(1.0 + numpy.array(changes)))


def ratio(value, spread):
    return None if value is None or spread is None or not spread > SMALL else value / spread


def expected(equity, capital, benchmark):
    """What JOINQUANT's formulas give, with numpy, for a curve that never falls to nothing."""
    total, days = numpy.array(equity) / numpy.array(capital), len(equity)
    own = pandas.Series(numpy.append(1.0, total)).pct_change().values[1:]
    market = pandas.Series(numpy.append(1.0, benchmark)).pct_change().values[1:]
    annual, market_annual = total[-1] ** (250.0 / days) - 1, benchmark[-1] ** (250.0 / days) - 1
    several = days > 1
    spread = own.std(ddof=1) * math.sqrt(250) if several else None
    market_spread = market.std(ddof=1) * math.sqrt(250) if several else None
    means = pandas.Series(own).expanding().mean().values
    below = numpy.where(own < means, own - means, 0.0)
    beta = numpy.cov(own, market)[0, 1] / market.var(ddof=1) if several and market_spread > SMALL else None
    highest = numpy.maximum.accumulate(numpy.append(1.0, total))
    relative = numpy.append(1.0, total) / numpy.append(1.0, benchmark)
    return {
        'returns': total[-1] - 1, 'annual_returns': annual, 'benchmark_returns': benchmark[-1] - 1,
        'benchmark_annual_returns': market_annual, 'excess_returns': total[-1] / benchmark[-1] - 1,
        'daily_excess_returns': ((1 + own) / (1 + market) - 1).mean(), 'volatility': spread,
        'benchmark_volatility': market_spread, 'sharpe': ratio(annual - 0.04, spread),
        'sortino': ratio(annual - 0.04, math.sqrt(250.0 / days * (below ** 2).sum())), 'beta': beta,
        'alpha': None if beta is None else annual - (0.04 + beta * (market_annual - 0.04)),
        'information_ratio': ratio(annual - market_annual,
                                   (own - market).std(ddof=1) * math.sqrt(250) if several else None),
        'max_drawdown': (1 - numpy.append(1.0, total) / highest).max(),
        'excess_max_drawdown': (1 - relative / numpy.maximum.accumulate(relative)).max(),
        'daily_win_rate': (own > market).mean(), 'days': days}


def assert_same(found, wanted):
    for name, value in wanted.items():
        assert (found[name] is None) == (value is None), (name, found[name], value)
        assert value is None or found[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name


@settings(deadline=None)
@given(CHANGES, st.data())
def test_curve_metrics_are_those_of_numpy(changes, data):
    market = data.draw(st.lists(st.integers(-2000, 2000).map(lambda number: number / 1e4 + 1e-7),
                                min_size=len(changes), max_size=len(changes)))
    result = curve_result(grown(changes), grown(market))
    assert_same(values_of(result), expected(result.equity, result.capital, result.benchmark))


@settings(deadline=None)
@given(CHANGES, st.data())
def test_money_put_in_counts_as_capital_from_that_day_on(changes, data):
    added = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.0, 5e5, 2e6, -1e5]), min_size=len(changes),
                               max_size=len(changes)))
    result = curve_result(grown(changes), grown([0.001] * len(changes)))
    result.capital = list(5e6 + numpy.cumsum(added))
    result.equity = [value / 1e6 * capital for value, capital in zip(result.equity, result.capital)]
    assert_same(values_of(result), expected(result.equity, result.capital, result.benchmark))


def test_a_deposit_is_no_gain():
    result = curve_result([1.0, 2.0, 2.0])
    result.capital = [1e6, 2e6, 2e6]
    assert values_of(result)['returns'] == 0 and jq.compute_metrics(result).own.returns == [0, 0, 0]


def test_figures_of_a_known_run():
    found = values_of(curve_result([1.1, 0.99, 1.21], [1.0, 1.1, 1.1]))
    assert found['returns'] == pytest.approx(0.21) and found['benchmark_returns'] == pytest.approx(0.1)
    assert found['annual_returns'] == pytest.approx(1.21 ** (250 / 3.0) - 1)
    assert found['excess_returns'] == pytest.approx(0.1)
    assert found['max_drawdown'] == pytest.approx(0.1)
    assert (found['max_drawdown_start'], found['max_drawdown_end']) == (date(2024, 1, 2), date(2024, 1, 3))
    assert found['daily_win_rate'] == pytest.approx(2 / 3.0) and found['days'] == 3
    returns = numpy.array([0.1, -0.1, 0.99 ** -1 * 1.21 - 1])
    assert found['volatility'] == pytest.approx(returns.std(ddof=1) * math.sqrt(250))


# -- drawdown --------------------------------------------------------------------------------------------------
def deepest(growth):
    """Every pair of a day and a later one, the start before all."""
    points = [1.0] + growth
    falls = [(1 - points[later] / points[day], day - 1, later - 1)
             for day in range(len(points)) for later in range(day + 1, len(points))]
    return max(falls, key=lambda fall: fall[0])


@settings(deadline=None)
@given(st.lists(st.integers(-500, 500).map(lambda number: number / 1e3), min_size=1, max_size=40))
def test_the_drawdown_is_the_deepest_of_all_pairs(changes):
    growth = grown(changes)
    result, (depth, _, _) = curve_result(growth), deepest(growth)
    found = values_of(result)
    assert found['max_drawdown'] == pytest.approx(max(depth, 0.0), abs=1e-12)
    if found['max_drawdown_end']:
        start, end = (result.days.index(found['max_drawdown_' + name]) for name in ('start', 'end'))
        before = 1.0 if depth and 1.0 > max(growth[:end + 1]) else growth[start]
        assert 1 - growth[end] / before == pytest.approx(depth) and start <= end


def test_a_fall_from_the_start_counts_from_the_first_day():
    found = values_of(curve_result([0.9, 0.8, 0.85]))
    assert found['max_drawdown'] == pytest.approx(0.2)
    assert (found['max_drawdown_start'], found['max_drawdown_end']) == (date(2024, 1, 2), date(2024, 1, 3))


def test_the_drawdown_starts_at_the_last_of_equal_peaks_and_ends_at_the_first_of_equal_bottoms():
    found = values_of(curve_result([1.5, 1.2, 1.5, 1.2, 1.2]))
    assert (found['max_drawdown_start'], found['max_drawdown_end']) == (date(2024, 1, 2), date(2024, 1, 3))
    found = values_of(curve_result([1.5, 1.5, 1.2, 1.2]))
    assert (found['max_drawdown_start'], found['max_drawdown_end']) == (date(2024, 1, 3), date(2024, 1, 4))


def test_a_curve_that_only_rises_has_no_drawdown():
    found = values_of(curve_result([1.0, 1.1, 1.1, 1.2]))
    assert found['max_drawdown'] == 0 and found['max_drawdown_start'] is found['max_drawdown_end'] is None


# -- what cannot be computed ---------------------------------------------------------------------------------
OF_BENCHMARK = ['benchmark_returns', 'benchmark_annual_returns', 'excess_returns', 'daily_excess_returns', 'alpha',
                'beta', 'information_ratio', 'benchmark_volatility', 'excess_max_drawdown', 'daily_win_rate']
OF_SPREAD = ['volatility', 'sharpe', 'alpha', 'beta', 'information_ratio', 'benchmark_volatility']
OF_SALES = ['win_rate', 'profit_loss_ratio']


def missing(result):
    return {name for name, value in values_of(result).items() if value is None}


def test_nothing_is_known_of_no_days():
    known = {'days': 0, 'trade_count': 0, 'winning_sales': 0, 'losing_sales': 0, 'fees': 0.0}
    found = values_of(jq.BacktestResult())
    assert {name: value for name, value in found.items() if value is not None} == known


def test_one_day():
    assert missing(curve_result([0.99], [1.02])) == set(OF_SPREAD + OF_SALES + ['sortino'])


def test_without_benchmark():
    assert missing(curve_result([1.01, 1.0, 1.02])) == set(OF_BENCHMARK + OF_SALES)


def test_without_spread():
    found = values_of(curve_result([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]))
    assert [found[name] for name in ('volatility', 'returns', 'annual_returns', 'max_drawdown', 'turnover')] == [0] * 5
    assert {name for name, value in found.items() if value is None} == set(
        OF_SALES + ['sharpe', 'sortino', 'alpha', 'beta', 'information_ratio', 'max_drawdown_start',
                    'max_drawdown_end'])


def test_the_noise_of_even_growth_is_no_spread():
    found = values_of(curve_result(grown([0.001] * 250), grown([0.002] * 250)))
    assert [found[name] for name in ('sharpe', 'sortino', 'beta', 'information_ratio')] == [None] * 4
    assert found['returns'] == pytest.approx(1.001 ** 250 - 1) and found['daily_win_rate'] == 0


@pytest.mark.parametrize('growth', [[1.0, 0.0, 0.0], [1.0, -0.5, -0.5], [1.0, -0.5, 0.5], [0.0], [-1.0, 2.0]])
def test_ruin(growth):
    found = values_of(curve_result(growth, [1.0] * len(growth)))
    assert found['returns'] == pytest.approx(growth[-1] - 1)
    assert found['max_drawdown'] == pytest.approx(1 - min(growth))
    assert found['annual_returns'] == (pytest.approx(growth[-1] ** (250.0 / len(growth)) - 1)
                                       if growth[-1] >= 0 else None)
    if len(growth) > 1:  # there is no return on nothing, so there is no spread of returns either
        assert found['volatility'] is found['sharpe'] is found['sortino'] is found['beta'] is None


def test_ruin_on_the_last_day_leaves_every_return_known():
    found = values_of(curve_result([1.0, 1.1, 0.0], [1.0, 1.01, 1.0]))
    assert found['annual_returns'] == -1 and found['volatility'] == pytest.approx(
        numpy.array([0.0, 0.1, -1.0]).std(ddof=1) * math.sqrt(250))


@settings(deadline=None)
@given(st.data())
def test_whatever_the_figures_nothing_is_nan_or_infinite(data):
    size = data.draw(st.integers(0, 12))
    odd = st.sampled_from([0.0, 1e-308] + list(map(float, ['nan', 'inf', '-inf'])))
    figures = st.lists(st.floats(-1e300, 1e300) | odd, min_size=size, max_size=size)
    result = curve_result([1.0] * size, data.draw(figures))
    result.equity, result.capital = data.draw(figures), data.draw(figures)
    metrics = jq.compute_metrics(result)
    rows = [value for row in metrics.monthly + metrics.annual for value in row.values()]
    for value in list(metrics.values.values()) + metrics.own.returns + metrics.own.drawdowns + metrics.exposure + rows:
        assert not isinstance(value, (float, complex)) or math.isfinite(value)


def test_annualised_beyond_numbers_is_none():
    assert values_of(curve_result([1e6]))['annual_returns'] is None


# -- trades --------------------------------------------------------------------------------------------------------
def test_sales_are_won_or_lost():
    profits = [100.0, -50.0, 0.0, 25.0]
    buy = sale(None, side='BUY', tax=0.0, value=3000.0)
    found = values_of(curve_result([1.0, 1.0], trades=[sale(profit) for profit in profits] + [buy]))
    assert found['win_rate'] == 0.5 and found['profit_loss_ratio'] == 2.5 and found['trade_count'] == 5
    assert (found['winning_sales'], found['losing_sales'], found['fees']) == (2, 1, 29.0)
    assert found['turnover'] == pytest.approx(7000.0 / 2 / 1e6 * 250 / 2)


def test_without_losses_there_is_no_profit_loss_ratio():
    found = values_of(curve_result([1.0], trades=[sale(100.0)]))
    assert found['win_rate'] == 1 and found['profit_loss_ratio'] is None


def test_buys_alone_are_neither_won_nor_lost():
    found = values_of(curve_result([1.0], trades=[sale(None, side='BUY')]))
    assert found['win_rate'] is found['profit_loss_ratio'] is None and found['trade_count'] == 1


def test_a_long_run_against_pandas():
    result = long_run(600)
    found = values_of(result)
    assert_same(found, expected(result.equity, result.capital, numpy.array(result.benchmark)))
    trades = pandas.DataFrame(result.trades)
    profits = trades[trades.side == 'SELL'].profit.astype(float)
    assert found['win_rate'] == pytest.approx((profits > 0).mean())
    assert found['profit_loss_ratio'] == pytest.approx(profits[profits > 0].sum() / -profits[profits < 0].sum())
    assert found['fees'] == pytest.approx((trades.commission + trades.tax).sum())
    assert found['turnover'] == pytest.approx(trades.value.sum() / 2 / numpy.mean(result.equity) * 250 / 600)


# -- months and years ----------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(0, 1000))
def test_months_and_years_are_those_of_pandas(size, seed):
    random = numpy.random.RandomState(seed)
    growth, market = grown(random.normal(0, 0.01, size)), grown(random.normal(0, 0.01, size))
    result = curve_result(growth, market, start=date(2019, 11, 20))
    metrics = jq.compute_metrics(result)
    frame = pandas.DataFrame({'own': growth, 'market': market}, index=pandas.DatetimeIndex(result.days))
    for rows, unit in ((metrics.monthly, 'M'), (metrics.annual, 'Y')):
        last = frame.groupby(frame.index.to_period(unit)).last()
        change = last / last.shift(1).fillna(1.0) - 1
        assert [row['period'] for row in rows] == [str(period) for period in change.index]
        assert [row['returns'] for row in rows] == pytest.approx(list(change.own))
        assert [row['benchmark_returns'] for row in rows] == pytest.approx(list(change.market))
        assert [row['excess_returns'] for row in rows] == pytest.approx(
            list((1 + change.own) / (1 + change.market) - 1))


def test_periods_without_benchmark():
    rows = jq.compute_metrics(curve_result([1.1, 1.2])).monthly
    assert [dict(row) for row in rows] == [{'period': '2024-01', 'returns': pytest.approx(0.2),
                                            'benchmark_returns': None, 'excess_returns': None}]


# -- input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['equity', 'capital', 'cash', 'positions_value', 'benchmark'])
def test_lists_of_other_lengths_are_refused(name):
    result = curve_result([1.0, 1.0], [1.0, 1.0])
    setattr(result, name, [1.0])
    with pytest.raises(ValueError, match='%s has 1 values for 2 days' % name):
        jq.compute_metrics(result)


def test_days_out_of_order_are_refused():
    result = curve_result([1.0, 1.0])
    result.days = weekdays(date(2024, 1, 2), 2)[::-1]
    with pytest.raises(ValueError, match='ascending'):
        jq.compute_metrics(result)


def test_every_metric_has_a_value_and_a_label():
    names = [name for rows in jq.METRIC_GROUPS.values() for name, _, _ in rows]
    assert names == list(values_of(jq.BacktestResult())) and len(set(names)) == len(names)
