"""A server's desk and journal in a process of its own; at some instant it is gone.

python -m tests.desk_child JOURNAL BOOK NOW INSTANTS KEYS

It places an order under each of the KEYS, again if an earlier process has. BOOK: the broker's, a file that outlives it.
INSTANTS: after so many the process is gone; 0 for never. One lies before and after each statement of the journal, each
sync to the disk, each line of the file of tags, and before and after the order is in the book. At the end, after the
close, it tells what it knows as a line of JSON.
"""
import functools
import json
import os
import sqlite3
import sys
from datetime import datetime

import bullet_qmt as bq
from tests.fakes import FakeClock
from tests.live_child import Killer

CODE, FORMAT = '000001.XSHE', '%Y-%m-%d %H:%M:%S'


class Data:
    def __init__(self, clock):
        self.clock = clock

    def market_state(self, code):
        return bq.MarketState(bq.in_continuous_trading(code, self.clock.now()), False, True)

    def quote(self, code):
        return bq.Tick(sid=code, last_price=10.0, pre_close=10.0, high_limit=11.0, low_limit=9.0, a1_p=10.01, a1_v=1000,
                       b1_p=9.99, b1_v=1000)


class BookBroker(bq.BrokerAdapter):
    """Its orders are the lines of the book: the tag, and their place is the id."""

    def __init__(self, path, instant):
        self._path, self._instant = path, instant

    def submit(self, request, deadline_s):
        self._instant()
        with open(self._path, 'ab', buffering=0) as file:
            file.write(request.tag.encode('ascii') + b'\n')
        self._instant()
        return self.orders()[-1].order_id

    def orders(self):
        with open(self._path, 'rb') as file:
            tags = file.read().decode('ascii').split()
        return [bq.Order(order_id='o%d' % number, security=CODE, side='BUY', amount=100, order_price=10.0,
                         status='open', order_remark=tag) for number, tag in enumerate(tags, 1)]

    def orders_known(self):
        return self.orders(), True

    def positions(self):
        return []

    def trades(self):
        return []

    def set_listener(self, listener):
        pass


def watched(killer):
    class Watched(sqlite3.Connection):
        def execute(self, *args):
            killer.instant()
            cursor = super().execute(*args)
            killer.instant()
            return cursor
    return Watched


def main(path, book, now, instants, keys):
    killer = Killer(int(instants))
    sqlite3.connect = functools.partial(sqlite3.connect, factory=watched(killer))
    bq.SentTags._put = killer.around(bq.SentTags._put)
    os.fsync = killer.around(os.fsync)
    clock = FakeClock(datetime.strptime(now, FORMAT))
    journal = bq.Journal(path, clock)
    broker = BookBroker(book, killer.instant)
    desk = bq.OrderDesk(bq.AccountBook({'main': broker}, ()), Data(clock), journal, clock, deadline_s=5.0)
    desk.settle_open()
    answers = {key: place(desk, key) for key in keys.split(',')}
    clock.set(clock.now().replace(hour=15, minute=36))
    desk.settle_open()
    states = {key: (entry.state, entry.order_id) for key, entry in
              ((key, journal.find(bq.PLACE, key)) for key in answers)}
    desk.close()
    print(json.dumps({'answers': answers, 'states': states, 'losses': journal.losses, 'id': journal.id}))


def place(desk, key):
    """Its order's id, or the code of the error."""
    try:
        return desk.place({'account_key': 'main', 'security': CODE, 'side': 'BUY', 'amount': 100,
                           'idempotency_key': key, 'style': {'type': 'limit', 'price': 10.0}})['order_id']
    except bq.BulletError as error:
        return error.code


if __name__ == '__main__':
    main(*sys.argv[1:])
