"""Section 4: codes, lots, price limits, cage, fees, sessions; figures computed by hand from the exchanges' rules."""
from datetime import date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as b

TODAY = date(2024, 6, 3)


@pytest.mark.parametrize('text, code', [
    ('600519.SH', '600519.XSHG'), ('600519.XSHG', '600519.XSHG'), ('600519.sh', '600519.XSHG'),
    (' 000001.SZ ', '000001.XSHE'), ('000001.xshe', '000001.XSHE'), ('920002.BJ', '920002.BJ')])
def test_codes_have_one_spelling(text, code):
    assert b.normalize_code(text) == code
    assert b.normalize_code(b.qmt_code(code)) == code


@pytest.mark.parametrize('text', ['000001', '', '600519', '600519.', '600519.XX', '60051.SH', '6005190.SH', 'SH600519',
                                  '600519,SH', '６００５１９.SH', '600519.SH\n600000.SH', None, 600519, 600519.0, [], {},
                                  True])
def test_what_is_no_code_is_refused(text):
    with pytest.raises(b.SecurityNotFound):
        b.normalize_code(text)


def test_lists_of_codes():
    assert b.normalize_codes('600519.SH') == ['600519.XSHG']
    assert b.normalize_codes(['600519.SH', '000001.SZ', '600519.XSHG']) == ['600519.XSHG', '000001.XSHE']
    assert b.normalize_codes([]) == b.normalize_codes(()) == []
    for wrong in (None, 5, '', {'600519.SH': 1}, ['600519.SH'] * 3):
        with pytest.raises((b.BadRequest, b.SecurityNotFound)):
            b.normalize_codes(wrong, maximum=2)


@pytest.mark.parametrize('code, kind, board, tick, lot, step, t0', [
    ('600519.XSHG', 'stock', 'main', 0.01, 100, 100, False), ('000001.XSHE', 'stock', 'main', 0.01, 100, 100, False),
    ('300750.XSHE', 'stock', 'chinext', 0.01, 100, 100, False), ('688001.XSHG', 'stock', 'star', 0.01, 200, 1, False),
    ('920002.BJ', 'stock', 'bse', 0.01, 100, 1, False), ('000001.XSHG', 'index', '', 0.01, 100, 100, False),
    ('000300.XSHG', 'index', '', 0.01, 100, 100, False), ('399001.XSHE', 'index', '', 0.01, 100, 100, False),
    ('510050.XSHG', 'etf', '', 0.001, 100, 100, False), ('159915.XSHE', 'etf', '', 0.001, 100, 100, False),
    ('518880.XSHG', 'etf', '', 0.001, 100, 100, True), ('511880.XSHG', 'etf', '', 0.001, 100, 100, True),
    ('113050.XSHG', 'bond', '', 0.001, 10, 10, True), ('128136.XSHE', 'bond', '', 0.001, 10, 10, True)])
def test_instruments(code, kind, board, tick, lot, step, t0):
    assert b.instrument(code) == (code, kind, board, tick, lot, step, t0)
    assert b.tradable(code) is (kind != 'index')


# -- lots -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('code, side, amount, closeable, fine', [
    ('600519.XSHG', 'BUY', 100, None, True), ('600519.XSHG', 'BUY', 150, None, False),
    ('600519.XSHG', 'BUY', 99, None, False), ('600519.XSHG', 'BUY', 0, None, False),
    ('688001.XSHG', 'BUY', 200, None, True), ('688001.XSHG', 'BUY', 201, None, True),
    ('688001.XSHG', 'BUY', 199, None, False), ('920002.BJ', 'BUY', 101, None, True),
    ('113050.XSHG', 'BUY', 10, None, True), ('113050.XSHG', 'BUY', 15, None, False),
    ('600519.XSHG', 'SELL', 150, 150, True), ('600519.XSHG', 'SELL', 50, 150, True),
    ('600519.XSHG', 'SELL', 100, 150, True), ('600519.XSHG', 'SELL', 30, 150, False),
    ('600519.XSHG', 'SELL', 50, 100, False), ('600519.XSHG', 'SELL', 250, 150, False),
    ('688001.XSHG', 'SELL', 150, 150, True), ('688001.XSHG', 'SELL', 100, 150, False),
    ('688001.XSHG', 'SELL', 250, 1000, True), ('600519.XSHG', 'BUY', 150, 150, False)])
def test_lots(code, side, amount, closeable, fine):
    problem = b.lot_problem(code, side, amount, closeable)
    assert (problem is None) is fine
    assert fine or str(amount) in problem


@given(st.sampled_from(['600519.XSHG', '688001.XSHG', '920002.BJ', '113050.XSHG']), st.integers(0, 10 ** 6))
def test_round_lot_is_the_largest_order_not_above(code, amount):
    rounded, item = b.round_lot(code, amount), b.instrument(code)
    assert 0 <= rounded <= amount
    too_many = b.largest_order(code, 'limit') is not None and rounded > b.largest_order(code, 'limit')
    assert rounded == 0 or (b.lot_problem(code, 'BUY', rounded) is None) is not too_many
    assert amount - rounded < (item.step if rounded else item.lot)


@pytest.mark.parametrize('code, limit, market', [
    ('600519.XSHG', 1000000, 1000000), ('000001.XSHE', 1000000, 1000000), ('688001.XSHG', 100000, 50000),
    ('300750.XSHE', 300000, 150000), ('920002.BJ', 1000000, 1000000), ('510300.XSHG', 1000000, 1000000)])
def test_the_largest_order(code, limit, market):
    for style, most in (('limit', limit), ('market', market)):
        assert b.lot_problem(code, 'BUY', most, style=style) is None
        assert str(most) in b.lot_problem(code, 'BUY', most + 100, style=style)
        assert str(most) in b.lot_problem(code, 'SELL', most + 100, most + 100, style)
    assert b.lot_problem('113050.XSHG', 'BUY', 10 ** 8) is None


@pytest.mark.parametrize('code, listed, days, free', [
    ('688001.XSHG', date(2019, 7, 22), 1, True), ('688001.XSHG', date(2019, 7, 22), 5, True),
    ('688001.XSHG', date(2019, 7, 22), 6, False), ('688001.XSHG', date(2019, 7, 22), 0, False),
    ('300999.XSHE', date(2020, 8, 21), 1, False), ('300999.XSHE', date(2020, 8, 24), 5, True),
    ('601061.XSHG', date(2023, 4, 7), 1, False), ('601061.XSHG', date(2023, 4, 10), 5, True),
    ('920001.BJ', date(2024, 1, 5), 1, True), ('920001.BJ', date(2024, 1, 5), 2, False),
    ('510300.XSHG', date(2024, 1, 5), 1, False), ('113050.XSHG', date(2024, 1, 5), 1, False)])
def test_first_days_without_limits(code, listed, days, free):
    assert b.starts_without_limits(code, listed, days) is free


@pytest.mark.parametrize('code, ends', [('600519.XSHG', (14, 57)), ('000001.XSHE', (14, 57)), ('920002.BJ', (14, 57)),
                                        ('123001.XSHE', (14, 57)), ('113050.XSHG', (15, 0))])
def test_continuous_trading(code, ends):
    def open_at(hour, minute, second=0):
        return b.in_continuous_trading(code, datetime(2024, 5, 15, hour, minute, second))
    before = [(9, 29, 59), (11, 30), (12, 59, 59), ends, (15, 0), (20, 0)]
    assert not any(open_at(*moment) for moment in before)
    assert all(open_at(*moment) for moment in [(9, 30), (11, 29, 59), (13, 0), (14, 56, 59)])
    assert open_at(14, 59) is (ends == (15, 0))


# -- prices ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('price, tick, expected', [(2.675, 0.01, 2.68), (2.665, 0.01, 2.67), (10.0, 0.01, 10.0),
                                                   (1.0005, 0.001, 1.001), (10.004999, 0.01, 10.0)])
def test_rounding_is_half_up_in_decimal(price, tick, expected):
    assert b.round_to_tick(price, tick) == expected


@given(st.integers(1, 10 ** 7), st.sampled_from([0.01, 0.001]))
def test_prices_on_the_tick_stay_where_they_are(steps, tick):
    price = float(Decimal(steps) * Decimal(str(tick)))
    assert b.on_tick(price, tick)
    assert b.round_to_tick(price, tick) == b.floor_to_tick(price, tick) == b.ceil_to_tick(price, tick) == price


@pytest.mark.parametrize('price, tick', [(10.005, 0.01), (10.0001, 0.01), (1.0005, 0.001), (0.1 + 0.2, 0.01)])
def test_prices_off_the_tick(price, tick):
    assert not b.on_tick(price, tick)


@pytest.mark.parametrize('code, pre_close, day, is_st, high, low', [
    ('600519.XSHG', 10.00, TODAY, False, 11.00, 9.00),
    ('600519.XSHG', 10.01, TODAY, False, 11.01, 9.01),     # 11.011, 9.009
    ('600519.XSHG', 10.05, TODAY, False, 11.06, 9.05),     # 11.055, 9.045 half up
    ('600519.XSHG', 0.05, TODAY, False, 0.06, 0.04),       # 0.055, 0.045: at least a tick
    ('600519.XSHG', 0.01, TODAY, False, 0.02, 0.01),       # but no price below one
    ('510050.XSHG', 0.0045, TODAY, False, 0.006, 0.003),
    ('000001.XSHE', 10.00, TODAY, True, 10.50, 9.50),
    ('300750.XSHE', 10.00, date(2020, 8, 21), False, 11.00, 9.00),
    ('300750.XSHE', 10.00, date(2020, 8, 24), False, 12.00, 8.00),
    ('688001.XSHG', 33.33, TODAY, False, 40.00, 26.66),    # 39.996, 26.664
    ('688001.XSHG', 10.00, TODAY, True, 12.00, 8.00),
    ('920002.BJ', 10.00, TODAY, False, 13.00, 7.00),
    ('510050.XSHG', 2.345, TODAY, False, 2.580, 2.111),    # 2.5795, 2.1105 half up
    ('588000.XSHG', 1.000, TODAY, False, 1.200, 0.800),
    ('589010.XSHG', 1.000, TODAY, False, 1.200, 0.800),
    ('113050.XSHG', 100.0, date(2022, 8, 1), False, 120.0, 80.0),
    ('113050.XSHG', 100.0, date(2022, 7, 29), False, None, None),
    ('000001.XSHG', 3000.0, TODAY, False, None, None)])
def test_price_limits(code, pre_close, day, is_st, high, low):
    assert b.price_limits(code, pre_close, day, is_st) == (high, low)


@pytest.mark.parametrize('pre_close', [None, 0, 0.0, -1.0, float('nan'), float('inf')])
def test_no_limits_without_a_previous_close(pre_close):
    assert b.price_limits('600519.XSHG', pre_close, TODAY) == (None, None)


@given(st.integers(1, 10 ** 6))
def test_limits_lie_around_the_previous_close_on_the_tick(cents):
    pre_close = cents / 100.0
    high, low = b.price_limits('600519.XSHG', pre_close, TODAY)
    assert 0 < low <= pre_close <= high
    assert b.on_tick(high, 0.01) and b.on_tick(low, 0.01)


@pytest.mark.parametrize('code, side, reference, worst', [
    ('600519.XSHG', 'BUY', 10.00, 10.20), ('600519.XSHG', 'SELL', 10.00, 9.80),
    ('600519.XSHG', 'BUY', 100.00, 102.00), ('600519.XSHG', 'SELL', 100.00, 98.00),
    ('600519.XSHG', 'BUY', 3.00, 3.10), ('600519.XSHG', 'SELL', 3.00, 2.90),      # ten ticks are more than 2 %
    # the cage ends at 33.9966, down to the tick, and 32.6634, up to it
    ('600519.XSHG', 'BUY', 33.33, 33.99), ('600519.XSHG', 'SELL', 33.33, 32.67),
    ('600519.XSHG', 'SELL', 0.05, 0.01), ('920002.BJ', 'BUY', 10.00, 10.50), ('920002.BJ', 'SELL', 10.00, 9.50),
    ('113050.XSHG', 'BUY', 100.0, 110.0), ('113050.XSHG', 'SELL', 100.0, 90.0),
    ('510050.XSHG', 'BUY', 2.5, None), ('600519.XSHG', 'BUY', None, None), ('600519.XSHG', 'BUY', 0, None),
    ('600519.XSHG', 'BUY', float('nan'), None)])
def test_price_cage(code, side, reference, worst):
    assert b.price_cage(code, side, reference) == worst


@pytest.mark.parametrize('code, day, worst', [
    ('600519.XSHG', date(2023, 4, 7), None), ('600519.XSHG', date(2023, 4, 10), 10.2),
    ('300750.XSHE', date(2020, 8, 21), None), ('300750.XSHE', date(2020, 8, 24), 10.2),
    ('688001.XSHG', date(2019, 7, 22), 10.2), ('920002.BJ', date(2021, 11, 15), 10.5),
    ('113050.XSHG', date(2022, 7, 29), None), ('113050.XSHG', date(2022, 8, 1), 11.0)])
def test_the_price_cage_has_a_date(code, day, worst):
    """STAR and ChiNext with their reforms, main boards with the rules of 2023, bonds with those of 2022."""
    assert b.price_cage(code, 'BUY', 10.0, day) == worst


@pytest.mark.parametrize('side, reference, high, low, worst', [
    ('BUY', 10.00, 11.00, 9.00, 10.20), ('SELL', 10.00, 11.00, 9.00, 9.80), ('BUY', 10.95, 11.00, 9.00, 11.00),
    ('SELL', 9.05, 11.00, 9.00, 9.00), ('BUY', None, 11.00, 9.00, 11.00), ('SELL', None, 11.00, 9.00, 9.00),
    ('BUY', 10.00, None, None, 10.20), ('BUY', None, None, None, None), ('SELL', None, None, None, None)])
def test_protect_price_is_inside_cage_and_limits(side, reference, high, low, worst):
    assert b.protect_price('600519.XSHG', side, reference, high, low) == worst


# -- fees -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('code, side, value, day, fees', [
    ('600519.XSHG', 'BUY', '1000', TODAY, ('5', '0', '0.01')),
    ('600519.XSHG', 'BUY', '100000', TODAY, ('30.00', '0', '1.00')),
    ('600519.XSHG', 'SELL', '100000', TODAY, ('30.00', '50.00', '1.00')),
    ('600519.XSHG', 'SELL', '100000', date(2023, 8, 28), ('30.00', '50.00', '1.00')),
    ('600519.XSHG', 'SELL', '100000', date(2023, 8, 27), ('30.00', '100.00', '1.00')),
    ('600519.XSHG', 'BUY', '100000', date(2022, 4, 28), ('30.00', '0', '2.00')),        # transfer fee halved
    ('600519.XSHG', 'BUY', '100000', date(2022, 4, 29), ('30.00', '0', '1.00')),        # on 2022-04-29
    ('600519.XSHG', 'BUY', '100000', date(2008, 9, 18), ('30.00', '100.00', '2.00')),   # stamp duty of both sides
    ('600519.XSHG', 'BUY', '100000', date(2008, 9, 19), ('30.00', '0', '2.00')),        # up to 2008-09-18
    ('600519.XSHG', 'SELL', '100000', date(2007, 5, 29), ('30.00', '100.00', '2.00')),
    ('600519.XSHG', 'SELL', '100000', date(2007, 5, 30), ('30.00', '300.00', '2.00')),
    ('600519.XSHG', 'BUY', '100000', date(2008, 4, 24), ('30.00', '100.00', '2.00')),
    ('510050.XSHG', 'BUY', '100000', date(2007, 5, 30), ('30.00', '0', '0')),
    ('000001.XSHE', 'SELL', '12345.67', TODAY, ('5', '6.17', '0.12')),      # 3.70, 6.172835, 0.1234567
    ('000001.XSHE', 'SELL', '16666.67', TODAY, ('5.00', '8.33', '0.17')),   # 5.000001, 8.333335, 0.1666667
    ('000001.XSHE', 'SELL', '16683.33', TODAY, ('5.00', '8.34', '0.17')),   # 5.004999, 8.341665, 0.1668333
    ('000001.XSHE', 'BUY', '16683.34', TODAY, ('5.01', '0', '0.17')),       # 5.005002
    ('510050.XSHG', 'SELL', '100000', TODAY, ('30.00', '0', '0')), ('113050.XSHG', 'SELL', '100000', TODAY, ('30.00',
                                                                                                             '0',
                                                                                                             '0'))])
def test_fees(code, side, value, day, fees):
    assert b.trade_fees(code, side, Decimal(value), day) == tuple(map(Decimal, fees))


@given(st.decimals('0.01', '1000000000', places=2), st.sampled_from(['BUY', 'SELL']))
def test_fees_are_whole_cents_and_never_negative(value, side):
    for fee in b.trade_fees('600519.XSHG', side, value, TODAY):
        assert fee >= 0 and fee == fee.quantize(Decimal('0.01'))


# -- sessions and days ----------------------------------------------------------------------------------
@pytest.mark.parametrize('hour, minute, open_now, bars', [
    (9, 29, False, 0), (9, 30, True, 0), (9, 31, True, 1), (11, 29, True, 119), (11, 30, False, 120), (12, 59, False,
                                                                                                       120),
    (13, 0, True, 120), (13, 1, True, 121), (14, 59, True, 239), (15, 0, False, 240), (23, 59, False, 240), (0, 0,
                                                                                                             False, 0)])
def test_sessions(hour, minute, open_now, bars):
    moment = datetime(2024, 6, 3, hour, minute)
    assert b.in_session(moment) is open_now
    assert b.bars_elapsed(moment) == bars


def test_a_day_has_240_bars_labelled_by_their_end():
    assert len(b.BAR_MINUTES) == b.MINUTES_A_DAY == 240 == len(set(b.BAR_MINUTES))
    assert [b.BAR_MINUTES[i] for i in (0, 119, 120, 239)] == [571, 690, 781, 900]


@pytest.mark.parametrize('code', ['600000.XSHG', '510300.XSHG', '300750.XSHE', '920002.BJ', '113052.XSHG'])
@pytest.mark.parametrize('st', [False, True])
def test_limits_counted_in_ticks_are_those_of_decimals(code, st):
    day, per_yuan = date(2025, 8, 5), b.ticks_per_yuan(code)
    band = b.limit_band(code, day, st)
    for pre_close in (0.01, 0.12, 2.67, 3.33, 9.99, 10.0, 123.45):
        counted = b.limit_ticks(code, int(round(pre_close * per_yuan)), band)
        assert tuple(limit / per_yuan for limit in counted) == b._limits_off_tick(code, pre_close, band)
