"""The terminal: exchange, market data and faults behind one lock, and the clients linked to it.

A client opens a link and sends requests (token, name, arguments); the terminal sends messages ('answer', token, value),
('failed', token, text), ('push', kind, value) and ('gone',). All values are plain: None, bool, int, float, str, lists
and dicts by str, so that a link may run through a socket. No thread is started here: what happens, happens in the
thread that asked for it, and `deliver` only has to queue the message.
"""
import copy
import itertools
import threading
from datetime import date

import bullet_qmt
from tests.terminal.desks import DataDesk, TradeDesk
from tests.terminal.exchange import Exchange
from tests.terminal.faults import Faults
from tests.terminal.market import Market


class Locked:
    """A part of the terminal as tests see it: every call under the lock, every value a copy."""

    def __init__(self, target, terminal):
        self.__dict__.update(_target=target, _terminal=terminal)

    def __getattr__(self, name):
        if name.startswith('_'):
            raise AttributeError(name)
        value = getattr(self._target, name)
        return self._terminal.locked(value) if callable(value) else self._terminal.locked(copy.deepcopy)(value)

    def __setattr__(self, name, value):
        getattr(self._target, name)  # a misspelt switch is an error
        self._terminal.locked(setattr)(self._target, name, value)


class Link:
    """One client. online: between a good connect and whatever ends it."""

    def __init__(self, terminal, number, kind, hello, deliver):
        self.terminal, self.number, self.kind, self.hello, self.deliver = terminal, number, kind, hello, deliver
        self.online, self.open, self.accounts, self.blanks = False, True, set(), {}

    def request(self, token, name, args):
        self.terminal.request(self, token, name, args)

    def answer(self, token, value):
        if self.open:
            self.deliver(('answer', token, value))

    def fail(self, token, text):
        if self.open:
            self.deliver(('failed', token, text))

    def push(self, kind, value):
        if self.open:
            self.deliver(('push', kind, value))

    def close(self):
        self.terminal.forget(self)


class Terminal:
    """A QMT terminal. exchange, market, faults: to set the scene, to break things, to look at what happened.

    path: what clients must give as userdata path, None for any. running: whether the program is up at first.
    first_day: from when on it has market data.
    """

    def __init__(self, clock=None, seed=0, path=None, running=True, first_day=date(2024, 1, 2)):
        self.clock = clock or bullet_qmt.Clock()
        self._exchange, self._faults = Exchange(self.clock), Faults(seed)
        self._market = Market(self.clock, first_day)
        self.exchange, self.market = Locked(self._exchange, self), Locked(self._market, self)
        self.faults = Locked(self._faults, self)
        self.path, self.running = path, running
        self._lock, self._links, self._numbers = threading.RLock(), [], itertools.count(1)
        self._calls, self._errors, self._problems = [], [], []
        self._changed = threading.Condition(self._lock)
        self._desks = {'trade': TradeDesk(self, self._exchange, self._faults),
                       'data': DataDesk(self, self._market, self._faults)}

    def locked(self, function):
        """The function under the lock, and what it causes delivered before the lock is given back."""
        def call(*args, **options):
            with self._lock:
                result = function(*args, **options)
                self._flush()
                return copy.deepcopy(result)
        return call

    # -- for tests -------------------------------------------------------------------------------------------------
    def calls(self):
        """[(link number, call)] of every request so far."""
        with self._lock:
            return list(self._calls)

    def links(self):
        """[{'number', 'kind', 'online', 'session'}] of the clients linked now."""
        with self._lock:
            return [{'number': link.number, 'kind': link.kind, 'online': link.online,
                     'session': link.hello.get('session')} for link in self._links]

    def problems(self):
        """Requests that the stand-in could not make sense of: an empty list, or a bug somewhere."""
        with self._lock:
            return list(self._problems)

    def wait_called(self, call, times=1, timeout_s=10):
        """Until the call has come in `times` times, whatever became of it."""
        self._wait(lambda: [name for _, name in self._calls].count(call) >= times, timeout_s)

    def wait_parked(self, calls, timeout_s=10):
        """Until exactly these calls are kept back by faults, oldest first."""
        self._wait(lambda: self._faults.parked() == list(calls), timeout_s)

    def wait_links(self, count, timeout_s=10):
        """Until so many clients are linked."""
        self._wait(lambda: len(self._links) == count, timeout_s)

    def _wait(self, condition, timeout_s):
        with self._lock:
            if not self._changed.wait_for(condition, timeout_s):
                raise AssertionError('not within %g s; parked: %r, links: %d' % (
                    timeout_s, self._faults.parked(), len(self._links)))

    def add_security(self, code, name, price=10.0, **options):
        """In the market data, and at the exchange unless it has expired.

        price: yesterday's close; options: those of Market.add_security.
        """
        with self._lock:
            self._market.add_security(code, name, price, **options)
            if not self._market.expired(code):
                self._exchange.list_security(code, name, price, *self._market.limits(code))

    def push(self, code, price, volume=0, **changes):
        """The price moves: the exchange matches at it, subscribers hear of it."""
        with self._lock:
            self._exchange.set_price(code, price)
            self._market.push(code, price, volume, **changes)
            self._flush()

    def suspend(self, code, suspended=True):
        with self._lock:
            self._exchange.set_suspended(code, suspended)
            self._market.set_suspended(code, suspended)

    def set_now(self, moment):
        """Beijing time of a clock that can be set, as text."""
        self.clock.set(bullet_qmt.parse_moment(moment)[0])

    def next_day(self, moment):
        """The clock goes to `moment` of a later day; orders expire, T+1 shares come free, limits are anew."""
        with self._lock:
            self.set_now(moment)
            self._exchange.next_day()
            self._market.next_day()
            for code in self._market.securities:
                self._exchange.set_limits(code, *self._market.limits(code))
            self._flush()

    def set_account_status(self, account_id, status):
        """Login state of an account, 0 is good; its subscribers are told."""
        with self._lock:
            self._exchange.set_account_status(account_id, status)
            row = {'account_type': self._exchange.accounts[account_id].account_type, 'account_id': account_id,
                   'status': status}
            self._push_to_account(account_id, 'status', row)

    def start(self):
        with self._lock:
            self.running = True

    def stop(self):
        """The program ends. Orders live on at the broker, clients lose their connection."""
        with self._lock:
            self.running = False
            self._cut('trade')
            self._cut('data')

    def restart(self):
        """Ends and starts again, today's orders kept; nobody is connected afterwards."""
        self.stop()
        self.start()

    def disconnect(self):
        """The trading connections break; clients hear on_disconnected."""
        with self._lock:
            self._cut('trade')

    def forget_quotes(self):
        """Quotes are pushed to nobody any more, who is connected stays so and hears nothing of it."""
        with self._lock:
            for link in self._links:
                self._market.drop_link(link.number)

    def forget_quote(self, code):
        """The same of one security alone, whichever subscription covers it."""
        with self._lock:
            self._market.drop_code(code)

    def forget_accounts(self):
        """The same of orders and trades."""
        with self._lock:
            for link in self._links:
                link.accounts.clear()

    def drop_data(self):
        """The data connections break, and their subscriptions are lost."""
        with self._lock:
            self._cut('data')

    def repeat_errors(self):
        """Every order error so far is told once more, as it was."""
        with self._lock:
            for row, origin in list(self._errors):
                self._push_to_account(row['account_id'], 'order_error', row, origin)

    # -- clients ---------------------------------------------------------------------------------------------------
    def open(self, kind, hello, deliver):
        """A new client of kind 'trade' (hello: path, session) or 'data'. deliver(message) must not block."""
        with self._lock:
            link = Link(self, next(self._numbers), kind, hello, deliver)
            self._links.append(link)
            return link

    def forget(self, link):
        with self._lock:
            link.open = link.online = False
            self._links = [other for other in self._links if other is not link]
            self._market.drop_link(link.number)
            self._changed.notify_all()

    def request(self, link, token, name, args):
        with self._lock:
            self._calls.append((link.number, name))
            self._take(link, token, name, args)
            self._flush()
            self._changed.notify_all()

    def _take(self, link, token, name, args):
        def go_on():
            if link.open:
                self._carry_out(link, token, name, args)
        if not self._faults.stops(name, go_on):
            self._carry_out(link, token, name, args)

    def _carry_out(self, link, token, name, args):
        desk = self._desks[link.kind]
        if link.online or name in ('connect', 'data_connect'):
            self._handle(desk, link, token, name, args)
        elif self._faults.after_disconnect == 'fail':
            desk.fail(link, token)

    def _handle(self, desk, link, token, name, args):
        try:
            desk.handle(link, token, name, args)
        except Exception as error:  # of the stand-in or of the question: it must not end a thread of the process
            self._problems.append('%s%r: %r' % (name, args, error))
            link.fail(token, self._problems[-1])

    def sessions(self):
        """Session ids of the connected trading clients."""
        return [link.hello['session'] for link in self._links if link.online and link.kind == 'trade']

    def _cut(self, kind):
        for link in [link for link in self._links if link.kind == kind and link.online]:
            link.online = False
            link.accounts.clear()
            self._market.drop_link(link.number)
            link.deliver(('gone',))

    # -- pushes ------------------------------------------------------------------------------------------------------
    def _flush(self):
        self.push_events(self._exchange.take_events())
        for number, key, payload in self._market.take_events():
            self.push_to(number, 'quote', [key, payload])

    def push_events(self, events):
        """What the exchange tells: to the account's subscribers, an order's error to its sender in any case."""
        for kind, row, origin in events:
            if kind == 'order_error':
                self._errors.append((dict(row), origin))
            self._push_to_account(row['account_id'], kind, row, origin)

    def _push_to_account(self, account_id, kind, row, origin=None):
        for link in [link for link in self._links if account_id in link.accounts or link.number == origin]:
            foreign = kind == 'order_error' and origin not in (None, link.number)
            self._push(link, kind, dict(row, seq=0) if foreign else row)

    def _push(self, link, kind, row):
        for _ in range(2 if self._faults.push_twice else 1):
            if not self._faults.keep_push(lambda: link.push(kind, row)):
                link.push(kind, row)

    def push_to(self, number, kind, value):
        for link in self._links:
            if link.number == number:
                link.push(kind, value)
