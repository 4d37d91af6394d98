"""What goes wrong, on command. Reached through a terminal, whose lock makes it safe from any thread.

Calls go by these names. Trading: connect subscribe unsubscribe order cancel asset positions orders trades infos
status. Data: data_connect history full_tick detail trading_dates sector sectors weights dividends holidays stock_type
control download subscribe_quote subscribe_whole unsubscribe_quote. '*' is every call.
"""
import random
from collections import OrderedDict

from tests.terminal.structs import LATER_FIELDS

FOR_EVER = -1


class Countdown:
    """Names that apply a number of times."""

    def __init__(self):
        self._left = {}

    def set(self, names, times):
        self._left.update((name, times) for name in names)

    def use(self, name):
        """Whether it applies to this call; counts it."""
        name = name if self._left.get(name) else '*'
        left = self._left.get(name, 0)
        if left > 0:
            self._left[name] = left - 1
        return left != 0

    def clear(self, names):
        for name in names or list(self._left):
            self._left.pop(name, None)


class Faults:
    """Switches, each off at first.

    connect_code: what trader.connect() answers, 0 is success. taken_sessions: ids that other programs hold.
    no_service: data connections are taken and each question is answered with 200005 (BIGQMT.md: switched off).
    after_disconnect: 'fail' (-1 and None) or 'hang'. hold_pushes: callbacks wait for release_pushes. push_twice: each
    callback comes twice. error_first: an order's error comes before its answer.
    """

    def __init__(self, seed=0):
        self._random = random.Random(seed)
        self.connect_code, self.taken_sessions, self.after_disconnect = 0, [], 'fail'
        self.hold_pushes = self.push_twice = self.error_first = False
        self.missing_fields, self.snake_names = (), True
        self.blanks, self.blank_is_none = {}, False
        self.download_error, self.download_stop, self.no_service = None, None, False
        self._hung, self._silent, self._late, self._denied = Countdown(), Countdown(), Countdown(), Countdown()
        self._failing = Countdown()
        self._parked, self._held = OrderedDict(), []

    # -- calls -------------------------------------------------------------------------------------------------
    def hang(self, *calls, **options):
        """These calls stand still before they do anything, `times` of them (default: all), until release.

        A client that goes away takes them along.
        """
        self._hung.set(calls, options.get('times', FOR_EVER))

    def silence(self, *calls, **options):
        """These calls do their work, and their answer does not come, `times` of them (default: one), until release."""
        self._silent.set(calls, options.get('times', 1))

    def accept_late(self, times=1):
        """Orders are taken but reach the exchange, and are answered, only at release; their sender may be dead."""
        self._late.set(['order'], times)

    def deny(self, times=1):
        """An order lives, and its answer says -1."""
        self._denied.set(['order'], times)

    def fail_subscribe(self, times=1):
        """trader.subscribe() answers -1."""
        self._failing.set(['subscribe'], times)

    def fail_quotes(self, times=1):
        """subscribe_quote and subscribe_whole_quote answer -1."""
        self._failing.set(['quotes'], times)

    def release(self, *calls):
        """Ends hang, silence and accept_late of these calls (of all), and lets what was kept go on, oldest first."""
        for rule in (self._hung, self._silent, self._late):
            rule.clear(calls)
        kept = [(number, job) for number, (name, job) in self._parked.items() if not calls or name in calls]
        for number, job in kept:
            del self._parked[number]
            job()

    def parked(self):
        """Names of the calls that are kept back, oldest first."""
        return [name for name, _ in self._parked.values()]

    def stops(self, name, job):
        """Whether this call stands still; if so, `job` runs at release."""
        return self._hung.use(name) and self._park(name, job)

    def silences(self, name, job):
        return self._silent.use(name) and self._park(name, job)

    def delays(self, name, job):
        return self._late.use(name) and self._park(name, job)

    def denies(self, name):
        return self._denied.use(name)

    def fails(self, name):
        return self._failing.use(name)

    def _park(self, name, job):
        self._parked[max(self._parked, default=0) + 1] = (name, job)
        return True

    # -- what queries show ---------------------------------------------------------------------------------------
    def blank(self, queries=1, calls=('asset', 'positions'), none=False):
        """After each connect the first `queries` of these calls read as zero and empty, or as None."""
        self.blanks, self.blank_is_none = dict.fromkeys(calls, queries), none

    def old_version(self, missing=LATER_FIELDS, snake=False):
        """Clients that connect from now on get records without these fields and with m_xxx spellings alone."""
        self.missing_fields, self.snake_names = tuple(missing), snake

    # -- callbacks -----------------------------------------------------------------------------------------------
    def keep_push(self, job):
        """Called for each callback: whether it waits."""
        if self.hold_pushes:
            self._held.append(job)
        return self.hold_pushes

    def held_pushes(self):
        return len(self._held)

    def release_pushes(self, order='same'):
        """Lets held callbacks go: in the 'same' order, 'reversed' or 'shuffled' (by the seed)."""
        self.hold_pushes, held, self._held = False, self._held, []
        if order == 'shuffled':
            self._random.shuffle(held)
        for job in held[::-1] if order == 'reversed' else held:
            job()

    # -- downloads -----------------------------------------------------------------------------------------------
    def fail_download(self, message='没有权限'):
        """Downloads end with this error; None: no more."""
        self.download_error = message

    def stall_download(self, after=0):
        """Progress stops after so many securities; None: no more."""
        self.download_stop = after
