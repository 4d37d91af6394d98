"""The product's calendar against what exchange_calendars says of Shanghai, and against announced dates."""
from datetime import date, timedelta

import pytest

import bullet_qmt as b
from tests.terminal.calendar import FIRST_YEAR, LAST_YEAR, SESSIONS


def day_of(text):
    return date(*map(int, text.split('-')))


def days_of(first, last):
    return [first + timedelta(number) for number in range((last - first).days + 1)]


def test_the_calendar_is_that_of_exchange_calendars_day_by_day():
    assert b.CALENDAR_YEARS == (FIRST_YEAR, LAST_YEAR) and len(SESSIONS) == 5343
    everything = days_of(date(FIRST_YEAR, 1, 1), date(LAST_YEAR, 12, 31))
    assert [day for day in everything if b.exchange_opens(day)] == SESSIONS
    assert [day for day in everything if not b.surely_closed(day)] == SESSIONS


def test_the_stored_sessions_are_those_of_the_package():
    """The package needs CPython 3.10; the stored file stands for it on older ones."""
    calendars = pytest.importorskip('exchange_calendars', reason='exchange_calendars is installed on 3.13 alone')
    shanghai = calendars.get_calendar('XSHG', start='1990-12-19', end='%d-12-31' % LAST_YEAR)
    assert [day.date() for day in shanghai.sessions if day.year >= FIRST_YEAR] == SESSIONS


@pytest.mark.parametrize('year, days', [(2005, 242), (2013, 238), (2020, 243), (2024, 242), (2025, 243), (2026, 242)])
def test_trade_days_of_a_year(year, days):
    """As the exchanges count them, such as 243 in 2025."""
    assert sum(map(b.exchange_opens, days_of(date(year, 1, 1), date(year, 12, 31)))) == days


@pytest.mark.parametrize('text, opens', [
    # SSE's notice of 2025-12-22 on the holidays of 2026
    ('2026-01-01', False), ('2026-01-02', False), ('2026-01-05', True), ('2026-02-13', True), ('2026-02-16', False),
    ('2026-02-23', False), ('2026-02-24', True), ('2026-04-06', False), ('2026-04-07', True), ('2026-05-04', False),
    ('2026-05-05', False), ('2026-05-06', True), ('2026-06-19', False), ('2026-06-22', True), ('2026-09-25', False),
    ('2026-09-28', True), ('2026-10-07', False), ('2026-10-08', True), ('2026-10-10', False), ('2026-02-28', False),
    # one of a kind: the parade of 2015, the longer Spring Festival of 2020, the eve given in 2024
    ('2015-09-03', False), ('2015-09-04', False), ('2020-01-31', False), ('2020-02-03', True), ('2024-02-09', False)])
def test_announced_days(text, opens):
    assert b.exchange_opens(day_of(text)) is opens


@pytest.mark.parametrize('text, opens', [
    ('2027-01-01', False), ('2027-02-08', False), ('2027-02-12', False), ('2027-02-15', True), ('2027-04-05', False),
    ('2027-05-03', False), ('2027-06-09', False), ('2027-09-15', False), ('2027-10-07', False), ('2027-10-08', True),
    ('2028-04-04', False), ('2040-02-13', True), ('2040-10-01', False), ('2040-10-05', False)])
def test_years_without_a_notice_go_by_the_rule(text, opens):
    """Qingming, Dragon Boat (fifth of the fifth month) and Mid-Autumn (15th of the eighth) by the lunar calendar."""
    assert b.exchange_opens(day_of(text)) is opens
    assert not b.surely_closed(day_of(text))  # weekdays all: a source may know better
