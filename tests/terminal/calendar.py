"""Days on which Shanghai traded, 2005 to 2026, as the package exchange_calendars has them: nothing of the product's.

tests/data/xshg_sessions.txt was made from that package; tests/test_calendar.py compares it where the package is there.
"""
import io
import os
from datetime import date

SESSIONS_FILE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'data', 'xshg_sessions.txt')
FIRST_YEAR, LAST_YEAR = 2005, 2026


def sessions():
    """Dates, ascending."""
    with io.open(SESSIONS_FILE, encoding='utf-8') as file:
        months = [line.split() for line in file if not line.startswith('#')]
    return [date(int(month[0][:4]), int(month[0][5:]), int(day)) for month in months for day in month[1:]]


SESSIONS = sessions()
_SESSIONS = frozenset(SESSIONS)


def opens(day):
    """Whether there was trading on that date; of other years the weekends are all that is known."""
    return day in _SESSIONS if FIRST_YEAR <= day.year <= LAST_YEAR else day.weekday() < 5
