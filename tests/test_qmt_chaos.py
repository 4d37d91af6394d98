"""Orders that survive everything: servers killed, connections cut, a terminal that hangs, lies, disconnects, restarts.

At the end each key has exactly one order at the exchange or a clean refusal, journal and exchange agree, and no client
was told otherwise. A seed repeats the choices. QMT_CHAOS_ORDERS and QMT_CHAOS_KILLS make it longer:

    QMT_CHAOS_ORDERS=1000 QMT_CHAOS_KILLS=100 python -m tests -s tests/test_qmt_chaos.py
"""
import collections
import importlib.util
import os
import random
import sqlite3
import threading
import time

import pytest

import bullet_qmt as bq
from tests.qmt_server import QmtServer, broker_of, terminal_process
from tests.terminal import scene

if importlib.util.find_spec('xtquant') is None or importlib.util.find_spec('pandas') is None:
    pytest.skip('needs xtquant and pandas', allow_module_level=True)

ORDERS, KILLS = int(os.environ.get('QMT_CHAOS_ORDERS', 120)), int(os.environ.get('QMT_CHAOS_KILLS', 8))
CLIENTS, SEED = 4, int(os.environ.get('QMT_CHAOS_SEED', 20240105))
PATIENCE_S = 120
CODE = '600000.XSHG'
CANCELED_ROWS = (53, 54)


class Trader(threading.Thread):
    """One client: places its share of the orders, cancels some. told: key -> what it was finally told."""

    def __init__(self, number, server, orders, turns):
        super().__init__(name='trader-%d' % number, daemon=True)
        self.random, self.server, self.turns = random.Random(SEED * 100 + number), server, turns
        self.keys = ['c%d-%d' % (number, i) for i in range(orders)]
        self.told, self.canceled, self.problem = collections.OrderedDict(), {}, None
        self.connection, self.begun = None, threading.Event()

    def run(self):
        try:
            with broker_of(self.server, request_timeout=8.0) as broker:
                self.connection = broker._connection
                self.begun.set()
                for key in self.keys:
                    self.turns.acquire()
                    self.told[key] = self.place(broker, key)
                    if self.told[key][0] == 'accepted' and self.random.random() < 0.3:
                        self.cancel(broker, self.told[key][1])
        except BaseException as error:  # shown by the test
            self.problem = error

    def place(self, broker, key):
        """('accepted', order id), ('rejected', None), or ('unknown', None) when it gives up asking."""
        side, style = self.choose()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                answer = broker.place_order(CODE, side, 100, style, idempotency_key=key)
                return 'accepted', answer['order_id']
            except bq.OrderRejected:
                return 'rejected', None
            except bq.OrderStateUnknown:
                if self.random.random() < 0.5:
                    return 'unknown', None
            except bq.BulletError as error:
                assert error.retryable or error.broker_called is False, error
                self.pause()
        raise AssertionError('%s found no end' % key)

    def choose(self):
        side = 'BUY' if self.random.random() < 0.9 else 'SELL'
        price = self.random.choice([9.9, 10.0, 10.1]) if side == 'BUY' else self.random.choice([9.9, 10.0, 10.5])
        return side, {'type': 'market'} if self.random.random() < 0.3 else {'type': 'limit', 'price': price}

    def cancel(self, broker, order_id):
        try:
            self.canceled[order_id] = broker.cancel_order(order_id, wait_timeout=1)
        except bq.BulletError:
            self.canceled[order_id] = None  # unknown, or not sent: nothing was promised

    def pause(self):
        """Until the server may be back; there is nothing to be woken by."""
        threading.Event().wait(self.random.uniform(0.05, 0.2))


class Trouble:
    """What goes wrong, one thing after another, out of a seed; with each the traders get turns for some orders."""

    KINDS = ['kill', 'kill', 'kill', 'cut', 'cut', 'disconnect', 'restart', 'silence', 'late', 'late', 'deny', 'hang',
             'reject', 'manual']

    def __init__(self, server, terminal, traders, turns):
        self.random = random.Random(SEED)
        self.server, self.terminal, self.traders, self.turns = server, terminal, traders, turns
        self.kills, self.count = 0, collections.Counter()

    def make(self, kills, orders):
        share = max(1, orders * self.KINDS.count('kill') // (kills * len(self.KINDS)))
        while self.kills < kills:
            self.give(min(share, orders))
            orders -= min(share, orders)
            name = self.random.choice(self.KINDS)
            self.count[name] += 1
            getattr(self, name)()
            self.breathe(0.02, 0.25)
        self.give(orders)

    def give(self, turns):
        for _ in range(turns):
            self.turns.release()

    def breathe(self, least, most):
        threading.Event().wait(self.random.uniform(least, most))

    def kill(self):
        """Often while an order is between its intent and its record."""
        if self.random.random() < 0.5:
            self.terminal.faults.accept_late(times=2)
            self.breathe(0.0, 0.1)
        self.server.kill()
        self.kills += 1
        self.terminal.faults.release()
        self.server.start()

    def cut(self):
        for trader in self.random.sample(self.traders, 2):
            channel = trader.connection._channel if trader.connection is not None else None
            if channel is not None:
                channel.abort()

    def disconnect(self):
        self.terminal.disconnect()

    def restart(self):
        self.terminal.restart()

    def silence(self):
        self.terminal.faults.silence('order')

    def late(self):
        self.terminal.faults.accept_late()
        self.breathe(0.05, 1.0)
        self.terminal.faults.release()

    def deny(self):
        self.terminal.faults.deny()

    def hang(self):
        self.terminal.faults.hang('order', times=1)
        self.breathe(0.05, 1.0)
        self.terminal.faults.release()

    def reject(self):
        self.terminal.exchange.reject_next('资金不足')

    def manual(self):
        """The terminal's user and another program trade as well."""
        remark = self.random.choice(['', 'grid-7'])
        self.terminal.exchange.manual_order(scene.ACCOUNT, '600000.SH', 'BUY', 100, 9.8, remark)


def find_out(server, traders):
    """The clients' unknown orders, once all is well, by asking. What nobody answered is unknown until its day ends."""
    patience_s = 20
    with broker_of(server) as broker:
        for trader in traders:
            for key in [key for key, told in trader.told.items() if told[0] == 'unknown']:
                try:
                    trader.told[key] = 'accepted', broker.wait_order(key, patience_s)['order_id']
                except bq.OrderRejected:
                    trader.told[key] = 'rejected', None
                except bq.OrderStateUnknown:
                    patience_s = 1  # all are settled together


def journal_of(path):
    """{key: (state, order id, tag)} of the orders."""
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT idempotency_key, state, order_id, tag FROM writes WHERE action='broker.place_order'")
        return {key: (state, order_id, tag) for key, state, order_id, tag in rows}


def check(told, journal, listed):
    """listed: tag -> list of the exchange's order ids, orders that it rejected later among them."""
    for key, (outcome, order_id) in told.items():
        state, known_id, tag = journal.get(key, ('absent', None, None))
        orders = listed.get(tag, [])
        if outcome == 'accepted':
            assert (state, known_id, orders) == ('accepted', order_id, [order_id]), key
        elif outcome == 'unknown':
            assert state == 'unknown' and not orders, key
        else:
            assert outcome == 'rejected' and state in ('rejected', 'absent'), (key, outcome, state)
            assert not orders, key
    ours = {tag: orders for tag, orders in listed.items() if tag.startswith('bq')}
    assert ours == {tag: [order_id] for state, order_id, tag in journal.values() if state == 'accepted'}


def test_each_order_is_at_the_exchange_once_or_cleanly_refused(tmp_path):
    with terminal_process() as process, QmtServer(process, tmp_path) as server:
        terminal = process.client
        terminal.exchange.add_account(scene.ACCOUNT, 1e9)
        terminal.exchange.add_position(scene.ACCOUNT, '600000.SH', 1000000, 9.5)
        turns = threading.Semaphore(0)
        traders = [Trader(number, server, ORDERS // CLIENTS, turns) for number in range(CLIENTS)]
        for trader in traders:
            trader.start()
        for trader in traders:  # a first connect that fails is an error at once: trouble begins when all are in
            assert trader.begun.wait(PATIENCE_S), trader.problem
        trouble = Trouble(server, terminal, traders, turns)
        trouble.make(KILLS, ORDERS // CLIENTS * CLIENTS)
        terminal.faults.release()
        for trader in traders:
            trader.join(PATIENCE_S)
            assert not trader.is_alive() and trader.problem is None, trader.problem
        terminal.restart()  # what it never answered does not arrive any more
        find_out(server, traders)
        listed, rows = collections.defaultdict(list), terminal.exchange.order_rows(scene.ACCOUNT)
        for row in rows:
            listed[row['order_remark']].append(str(row['order_id']))
        statuses = {str(row['order_id']): row['order_status'] for row in rows}
        accepted = terminal.exchange.accepted
        assert {str(entry['order_id']) for entry in accepted} <= set(statuses) and terminal.problems() == []
        assert server.stop() == 0
        told = {key: outcome for trader in traders for key, outcome in trader.told.items()}
        journal = journal_of(server.state)
        check(told, journal, listed)
        canceled = {order_id: sure for trader in traders for order_id, sure in trader.canceled.items()}
        for order_id, sure in canceled.items():
            assert sure is None or sure == (statuses[order_id] in CANCELED_ROWS), order_id
        assert len(told) == ORDERS // CLIENTS * CLIENTS
        outcomes = collections.Counter(outcome for outcome, _ in told.values())
        print('\n%d orders, %d kills, %s; told %s; cancels %d, of these certain %d; exchange accepted %d' % (
            len(told), trouble.kills, dict(trouble.count), dict(outcomes), len(canceled),
            sum(sure is not None for sure in canceled.values()), len(accepted)))
