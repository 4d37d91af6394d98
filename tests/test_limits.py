"""Market rules: the exchanges' daily price limits by board, kind and date. Every figure is written out, none computed.

Sources: SSE and SZSE trading rules 2026, in force from 2026-07-06 (risk warning 10 %); SZSE's ChiNext rules of 2020,
2.9 (stocks and funds 20 % from 2020-08-24); the rules on convertible bonds of 2022-07-29 (57.3 and 43.3 % on the first
day, 20 % later); those on infrastructure funds of 2021 (30 %, later 10 %); notices of 2013-12-13 on new stocks (64 to
144 % of the issue price); BSE's trading rules (30 %, an order beyond them is void: rounded towards the last close).
"""
import math
from datetime import date

import pytest

import bullet_qmt as b


def day_of(text):
    return date(*map(int, text.split('-')))


@pytest.mark.parametrize('code, pre_close, day, is_st, high, low', [
    # risk warning on the main boards: 5 % up to Friday 2026-07-03, 10 % from Monday 2026-07-06
    ('600000.XSHG', 10.00, '2026-07-03', True, 10.50, 9.50), ('600000.XSHG', 10.00, '2026-07-06', True, 11.00, 9.00),
    ('000001.XSHE', 4.11, '2026-08-05', True, 4.52, 3.70), ('000001.XSHE', 4.11, '2026-07-03', True, 4.32, 3.90),
    ('002001.XSHE', 1.02, '2026-07-03', True, 1.07, 0.97), ('002001.XSHE', 1.02, '2026-07-06', True, 1.12, 0.92),
    # of ChiNext and STAR it never was 5 %
    ('300001.XSHE', 10.00, '2020-08-21', True, 11.00, 9.00), ('300001.XSHE', 10.00, '2020-08-24', True, 12.00, 8.00),
    ('688001.XSHG', 10.00, '2026-07-03', True, 12.00, 8.00), ('301001.XSHE', 10.00, '2026-07-03', True, 12.00, 8.00),
    # ChiNext funds with the reform, STAR and double innovation from their first day, all others 10 %
    ('159915.XSHE', 2.500, '2020-08-21', False, 2.750, 2.250),
    ('159915.XSHE', 2.500, '2020-08-24', False, 3.000, 2.000),
    ('159949.XSHE', 1.000, '2020-08-24', False, 1.200, 0.800),
    ('159952.XSHE', 1.000, '2020-08-24', False, 1.200, 0.800),
    ('159977.XSHE', 1.000, '2021-01-04', False, 1.200, 0.800),
    ('159781.XSHE', 1.000, '2021-07-05', False, 1.200, 0.800),
    ('159967.XSHE', 1.000, '2020-08-21', False, 1.100, 0.900),
    ('159682.XSHE', 1.000, '2023-01-03', False, 1.200, 0.800),
    ('159367.XSHE', 1.000, '2025-02-14', False, 1.200, 0.800),
    ('160637.XSHE', 1.000, '2021-01-04', False, 1.200, 0.800),
    ('506002.XSHG', 1.000, '2021-01-04', False, 1.200, 0.800),
    ('588000.XSHG', 1.000, '2020-11-16', False, 1.200, 0.800),
    ('588300.XSHG', 1.000, '2021-07-05', False, 1.200, 0.800),
    ('589000.XSHG', 1.000, '2025-06-03', False, 1.200, 0.800),
    ('159919.XSHE', 4.000, '2024-06-03', False, 4.400, 3.600),
    ('159845.XSHE', 2.500, '2024-06-03', False, 2.750, 2.250),
    ('510300.XSHG', 4.000, '2026-08-05', False, 4.400, 3.600),
    ('513100.XSHG', 1.500, '2024-06-03', False, 1.650, 1.350),
    ('508000.XSHG', 3.000, '2024-06-03', False, 3.300, 2.700),
    ('180101.XSHE', 3.000, '2024-06-03', False, 3.300, 2.700),
    # bonds: none before August 2022, 20 % from then on
    ('113050.XSHG', 120.000, '2022-07-29', False, None, None),
    ('128136.XSHE', 120.000, '2022-08-01', False, 144.0, 96.0),
    # Beijing never gives more than its 30 %: 84.63 * 1.3 = 110.019, 2.85 * 1.3 = 3.705, 2.85 * 0.7 = 1.995
    ('920002.BJ', 84.63, '2026-08-05', False, 110.01, 59.25), ('920090.BJ', 2.85, '2026-08-05', False, 3.70, 2.00),
    ('920006.BJ', 17.09, '2026-08-05', False, 22.21, 11.97), ('920083.BJ', 31.46, '2026-08-05', False, 40.89, 22.03),
    # below one yuan: half up, and at least one step of the price away from the previous close
    ('600000.XSHG', 0.95, '2024-05-06', False, 1.05, 0.86), ('600000.XSHG', 0.95, '2024-05-06', True, 1.00, 0.90),
    ('600000.XSHG', 0.09, '2024-05-06', True, 0.10, 0.08), ('000004.XSHE', 1.50, '2024-05-06', True, 1.58, 1.43),
    ('600000.XSHG', 0.02, '2024-05-06', False, 0.03, 0.01), ('510300.XSHG', 0.005, '2024-05-06', False, 0.006, 0.004),
    # ChiNext has 302 too, STAR 689; older numbers of Beijing; exchangeable bonds are no convertible ones
    ('302132.XSHE', 10.00, '2025-05-06', False, 12.00, 8.00), ('689009.XSHG', 33.33, '2024-05-06', False, 40.00, 26.66),
    ('430047.BJ', 10.01, '2024-05-06', False, 13.01, 7.01), ('871981.BJ', 10.01, '2024-05-06', False, 13.01, 7.01),
    ('132018.XSHG', 100.0, '2024-05-06', False, None, None),
    ('600000.XSHG', 10.00, '1996-12-13', False, None, None),
    ('600000.XSHG', 10.00, '1996-12-16', False, 11.00, 9.00)])
def test_limits_of_an_ordinary_day(code, pre_close, day, is_st, high, low):
    assert b.price_limits(code, pre_close, day_of(day), is_st) == (high, low)


@pytest.mark.parametrize('code, pre_close, listed, number, high, low', [
    ('113690.XSHG', 100.0, '2024-06-03', 1, 157.3, 56.7), ('113690.XSHG', 100.0, '2024-06-03', 2, 120.0, 80.0),
    ('123245.XSHE', 100.0, '2022-08-01', 1, 157.3, 56.7), ('123245.XSHE', 100.0, '2022-07-29', 1, 120.0, 80.0),
    ('508099.XSHG', 3.000, '2024-06-03', 1, 3.900, 2.100), ('180801.XSHE', 3.000, '2024-06-03', 2, 3.300, 2.700),
    ('510300.XSHG', 3.000, '2024-06-03', 1, 3.300, 2.700), ('159915.XSHE', 3.000, '2024-06-03', 1, 3.600, 2.400),
    ('688001.XSHG', 10.00, '2019-07-22', 5, None, None), ('688001.XSHG', 10.00, '2024-06-03', 6, 12.00, 8.00),
    ('300999.XSHE', 10.00, '2020-08-24', 5, None, None), ('300999.XSHE', 10.00, '2020-08-21', 1, 14.40, 6.40),
    ('603999.XSHG', 10.00, '2023-04-10', 5, None, None), ('603999.XSHG', 10.00, '2023-04-07', 1, 14.40, 6.40),
    ('603999.XSHG', 10.00, '2023-04-07', 2, 11.00, 9.00), ('002999.XSHE', 10.00, '2013-06-03', 1, None, None),
    ('920001.BJ', 10.00, '2024-06-03', 1, None, None), ('920001.BJ', 10.00, '2024-06-03', 2, 13.00, 7.00)])
def test_limits_of_the_first_days(code, pre_close, listed, number, high, low):
    day = date(2024, 6, 3) if number != 1 else max(day_of(listed), date(2022, 8, 1)) if code[:2] == '12' \
        else day_of(listed)
    assert b.price_limits(code, pre_close, day, False, day_of(listed), number) == (high, low)


@pytest.mark.parametrize('code, is_st, day, low, high, limits', [
    ('159999.XSHE', False, '2024-06-03', 0.95, 1.05, (1.1, 0.9)),
    ('159999.XSHE', False, '2024-06-03', 0.95, 1.101, (1.2, 0.8)),    # whatever it is, it is none with 10 %
    ('159999.XSHE', False, '2024-06-03', 0.899, 1.05, (1.2, 0.8)),
    ('159999.XSHE', False, '2024-06-03', 0.95, 1.201, (None, None)),
    ('159999.XSHE', False, '2020-08-21', 0.95, 1.101, (None, None)),  # no fund had 20 % before the reform
    ('508000.XSHG', False, '2024-06-03', 0.95, 1.299, (1.3, 0.7)),
    ('600000.XSHG', True, '2024-06-03', 0.96, 1.04, (1.05, 0.95)),
    ('600000.XSHG', True, '2024-06-03', 0.96, 1.06, (1.10, 0.90)),
    ('600000.XSHG', False, '2024-06-03', 0.9, 1.11, (None, None)),
    ('600000.XSHG', True, '2026-07-06', 0.96, 1.11, (None, None)),
    ('600000.XSHG', False, '2024-06-03', 0, 0, (1.1, 0.9)),
    ('600000.XSHG', False, '2024-06-03', math.nan, math.nan, (1.1, 0.9)),
    ('600000.XSHG', False, '2024-06-03', None, None, (1.1, 0.9)),
    ('688001.XSHG', False, '2024-06-03', 0.79, 1.0, (None, None)),
    ('113050.XSHG', False, '2024-06-03', 0.9, 1.573, (1.573, 0.567))])
def test_a_trade_beyond_a_limit_proves_it_wrong(code, is_st, day, low, high, limits):
    assert b.price_limits(code, 1.0, day_of(day), is_st, seen=(low, high)) == limits


def test_every_row_of_the_tables_names_its_source():
    assert all(len(row.source) > 8 for row in b._BANDS + b._FIRST_DAYS)
    keys = [row[:4] for row in b._BANDS]
    assert len(set(keys)) == len(keys) and len({row[:4] for row in b._FIRST_DAYS}) == len(b._FIRST_DAYS)


@pytest.mark.parametrize('code, same_day', [
    # SSE by the first digits: money and bond 511, cross-border 513 and 520, gold 518, bond 551
    ('511880.XSHG', True), ('511010.XSHG', True), ('513100.XSHG', True), ('518880.XSHG', True), ('520830.XSHG', True),
    ('551500.XSHG', True), ('510300.XSHG', False), ('517520.XSHG', False), ('588000.XSHG', False),
    ('515220.XSHG', False), ('562500.XSHG', False), ('510900.XSHG', True), ('526000.XSHG', True),
    # SZSE: Hang Seng, gold, gold, Nasdaq, soy meal, non-ferrous metals, energy, 5 years of local bonds, money
    ('159920.XSHE', True), ('159934.XSHE', True), ('159937.XSHE', True), ('159941.XSHE', True), ('159985.XSHE', True),
    ('159980.XSHE', True), ('159981.XSHE', True), ('159972.XSHE', True), ('159001.XSHE', True), ('159003.XSHE', True),
    ('159005.XSHE', True), ('159742.XSHE', True), ('159605.XSHE', True), ('159655.XSHE', True), ('159866.XSHE', True),
    ('159649.XSHE', True), ('159812.XSHE', True), ('159816.XSHE', True), ('159632.XSHE', True), ('159822.XSHE', True),
    # Chinese stocks, ChiNext, gold stocks
    ('159915.XSHE', False), ('159919.XSHE', False), ('159995.XSHE', False), ('159562.XSHE', False),
    # QDII LOFs: oil and gas, S&P 500, India, US bonds, crude oil; a LOF of Chinese stocks
    ('162411.XSHE', True), ('161125.XSHE', True), ('164824.XSHE', True), ('501300.XSHG', True), ('501018.XSHG', True),
    ('161725.XSHE', False), ('163402.XSHE', False), ('501050.XSHG', False), ('508000.XSHG', False),
    ('113050.XSHG', True), ('128136.XSHE', True), ('600519.XSHG', False), ('920002.BJ', False),
    ('688001.XSHG', False)])
def test_what_can_be_sold_on_the_day_it_was_bought(code, same_day):
    assert b.instrument(code).t0 is same_day
