"""Orders, trades and account figures as events: numbered, kept, told again from any number on."""
import os
import queue
import shutil
import sqlite3
import sys
import threading
from datetime import datetime, timedelta

import pytest

import bullet_qmt as bq
from tests.base import TOKEN, ask_raw, login_raw, long_client, raw_socket, read_raw, serving
from tests.fakes import FakeClock
from tests.processes import run
from tests.resources import becomes
from tests.test_desk import CODE, Shop

NOW = datetime(2026, 5, 13, 10, 0)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Heard:
    """A client that follows the stream; the rows that came, in order."""

    def __init__(self, client, after=None):
        self.rows = queue.Queue()
        for event in ('order', 'trade', 'account', 'stream_gap'):
            client.add_event_listener(event, lambda row, event=event: self.rows.put((event, row)))
        self.first = client.follow_orders(after)

    def next(self, *kinds):
        """The next row of one of these kinds."""
        while True:
            event, row = self.rows.get(timeout=20)
            if event in kinds:
                return row

    def until(self, status):
        rows = [self.next('order')]
        while rows[-1]['status'] != status:
            rows.append(self.next('order'))
        return rows

    def until_settled(self, placed):
        """The number of the last event of a market order that fills whole: the account's."""
        row = self.next('order')
        while (row['order_id'], row['status']) != (placed['order_id'], 'filled'):
            row = self.next('order')
        return self.next('account')['seq']


def buy(client, key, **more):
    return client.request('broker.place_order', dict({
        'security': '000001.XSHE', 'side': 'BUY', 'amount': 100, 'style': {'type': 'market'}, 'idempotency_key': key,
        'order_remark': 'note ' + key}, **more))


def resting(client, key, **more):
    low = client.request('data.live_current', {'security': '000001.XSHE'})['low_limit']
    return buy(client, key, style={'type': 'limit', 'price': low}, **more)


# -- end to end --------------------------------------------------------------------------------------------------
def test_what_happens_to_an_order_is_told_in_order_and_numbered():
    with serving(FakeClock(NOW)) as server, long_client(server) as client:
        heard = Heard(client)
        placed = buy(client, 'k')
        rows = heard.until('filled')
        assert {row['order_id'] for row in rows} == {placed['order_id']} and rows[-1]['filled'] == 100
        told = [rows[-1][name] for name in ('order_remark', 'idempotency_key', 'account_key')]
        assert told == ['note k', 'k', 'default']
        trade = client.request('broker.trades')[0]
        order_id = resting(client, 'r')['order_id']
        client.request('broker.cancel_order', {'order_id': order_id})
        rows = heard.until('canceled')
        everything = [heard_row['seq'] for heard_row in rows]
        assert everything == sorted(set(everything)) and everything[0] > heard.first
        assert trade['order_id'] == placed['order_id']


def test_trades_and_account_figures_are_told_too():
    with serving(FakeClock(NOW)) as server, long_client(server) as client:
        heard = Heard(client)
        placed = buy(client, 'k')
        trade, account = heard.next('trade'), heard.next('account')
        assert (trade['order_id'], trade['amount'], trade['order_remark']) == (placed['order_id'], 100, 'note k')
        assert account['available_cash'] < 1000000 and account['account_key'] == 'default'
        assert 'positions' not in account


def test_a_broker_facade_follows():
    with serving(FakeClock(NOW)) as server, long_client(server) as client:
        broker, rows = bq.RemoteQmtBroker(connection=client), queue.Queue()
        assert broker.follow(on_order=rows.put) == server.service.desk.journal.last_event()
        broker.buy('000001.XSHE', 100)
        assert rows.get(timeout=20)['security'] == '000001.XSHE'


def test_a_short_connection_cannot_follow():
    with pytest.raises(bq.NotSupported):
        bq.ShortConnection('127.0.0.1', 1, 'token').follow_orders()


def test_what_was_missed_is_told_after_a_reconnect():
    with serving(FakeClock(NOW)) as server, long_client(server, backoff_s=(0.05, 0.2)) as client, \
            long_client(server) as other:
        heard = Heard(client)
        first = buy(client, 'one')
        seen = heard.until('filled')
        client.endpoint.port, port = 1, client.endpoint.port  # nobody answers there
        with client._lock:
            client._channel.abort()
        assert becomes(lambda: not client.connected)
        missed = buy(other, 'two')
        client.endpoint.port = port
        rows = heard.until('filled')
        assert {row['order_id'] for row in rows} == {missed['order_id']} != {first['order_id']}
        assert min(row['seq'] for row in rows) > max(row['seq'] for row in seen), 'nothing twice'


def test_what_was_missed_is_told_after_the_server_came_back(tmp_path):
    state = str(tmp_path / 'orders.sqlite')
    with serving(FakeClock(NOW), state=state) as server, long_client(server) as client:
        start = client.follow_orders()
        order_id = buy(client, 'one')['order_id']
        assert becomes(lambda: client.last_seq and client.last_seq > start + 2)
        last = client.last_seq
    with serving(FakeClock(NOW), state=state) as server, long_client(server) as client:
        heard = Heard(client, after=start)
        rows = heard.until('filled')
        assert {row['order_id'] for row in rows} == {order_id} and rows[-1]['seq'] <= last + 1
        buy(client, 'two')
        assert heard.next('order')['seq'] > rows[-1]['seq'], 'the numbers go on'


def test_a_server_with_another_journal_is_a_gap():
    with serving(FakeClock(NOW)) as first, serving(FakeClock(NOW)) as second, \
            long_client(first, backoff_s=(0.05, 0.2)) as client:
        heard = Heard(client)
        last = heard.until_settled(buy(client, 'one'))
        client.endpoint.port = second.address[1]
        with client._lock:
            client._channel.abort()
        assert heard.next('stream_gap')['after'] >= last
        assert becomes(lambda: second.service.desk.stream._hearers)
        buy(client, 'two')
        assert heard.until('filled')


def test_numbers_of_another_journal_are_a_gap_for_a_new_process_too():
    with serving(FakeClock(NOW)) as first, long_client(first) as client:
        last = Heard(client).until_settled(buy(client, 'one'))
    with serving(FakeClock(NOW + timedelta(minutes=1))) as second, long_client(second) as client:
        missed = buy(client, 'two')
        heard = Heard(client, after=last)
        assert heard.next('stream_gap')['after'] == last
        assert heard.until('filled')[-1]['order_id'] == missed['order_id']


def test_numbers_that_began_anew_are_a_gap_and_what_comes_is_told():
    """The clock was set back, and there is a new journal."""
    with serving(FakeClock(NOW)) as server, long_client(server) as client:
        heard = Heard(client, after=1 << 50)
        assert heard.next('stream_gap')['after'] == 1 << 50
        assert heard.until_settled(buy(client, 'one')) < 1 << 50


def test_a_second_start_elsewhere_on_the_same_connection_is_refused():
    with serving(FakeClock(NOW)) as server, long_client(server) as client:
        newest = client.follow_orders()
        assert client.follow_orders() == newest
        with pytest.raises(bq.BadRequest):
            client.follow_orders(after=0)


def test_a_server_without_the_stream_says_so():
    with serving(FakeClock(NOW)) as server, long_client(server) as client:
        client.ack = dict(client.ack, features=['tick'])
        with pytest.raises(bq.NotSupported):
            client.follow_orders()


def test_a_stream_that_is_refused_for_now_is_asked_for_again(monkeypatch):
    refused = queue.Queue()

    def busy(service, payload, caller):
        refused.put(payload)
        raise bq.ServerBusy('忙', retry_after_s=0.01)

    monkeypatch.setattr(bq, 'RESUBSCRIBE_PAUSE_S', 0.05)
    with serving(FakeClock(NOW)) as server, long_client(server, backoff_s=(0.05, 0.2)) as client:
        heard = Heard(client)
        last = heard.until_settled(buy(client, 'one'))
        monkeypatch.setitem(bq.ACTIONS, 'broker.subscribe_events',
                            bq.ACTIONS['broker.subscribe_events']._replace(run=busy))
        with client._lock:
            client._channel.abort()
        assert refused.get(timeout=20) == {'after': last} == refused.get(timeout=20)
        monkeypatch.undo()
        placed = buy(client, 'two')
        assert heard.until('filled')[-1]['order_id'] == placed['order_id']


# -- whose events they are ---------------------------------------------------------------------------------------------
ROUTES = [{'account_key': 'main'}, {'account_key': 'hedge'}, {'account_key': 'main', 'sub_account_id': 'rich'},
          {'sub_account_id': 'research'}]


def accounts_serving(**more):
    accounts = tuple(bq.AccountSpec(key, number, 'stock', None, None, True)
                     for key, number in (('main', '11111111'), ('hedge', '22222222')))
    subs = tuple(bq.SubAccountSpec(*spec) for spec in (('research', 'main', None), ('rich', 'main', None),
                                                       ('qa', 'hedge', None)))
    return serving(FakeClock(NOW), accounts=accounts, sub_accounts=subs, **more)


class Follower:
    """What a broker of this account hears."""

    def __init__(self, config, connection=None):
        self.rows, self.broker = queue.Queue(), bq.RemoteQmtBroker(config=config, connection=connection)
        self.broker.follow(on_order=self.heard('order'), on_trade=self.heard('trade'),
                           on_account=self.heard('account'))

    def heard(self, event):
        return lambda row: self.rows.put((event, row))

    def until(self, order_id):
        """All that was heard up to the fill of this order, its own."""
        told = [self.rows.get(timeout=20)]
        while not (told[-1][0] == 'order' and told[-1][1]['order_id'] == order_id
                   and told[-1][1]['status'] == 'filled'):
            told.append(self.rows.get(timeout=20))
        return told


def buy_everywhere(client, mark):
    for number, named in enumerate(ROUTES):
        buy(client, '%s-%d' % (mark, number), wait_timeout=20, **named)


def heard_of(told):
    """(accounts of all rows, sub-accounts of orders and trades)."""
    return {row['account_key'] for _, row in told}, {row['sub_account_id'] for event, row in told if event != 'account'}


NAMED = pytest.mark.parametrize('named, account, subs', [
    ({'account_key': 'main'}, 'main', {None, 'rich', 'research'}), ({'account_key': 'hedge'}, 'hedge', {None}),
    ({'sub_account_id': 'research'}, 'main', {'research'}), ({'sub_account_id': 'research@main'}, 'main', {'research'}),
    ({'account_key': 'main', 'sub_account_id': 'rich'}, 'main', {'rich'})])


@pytest.mark.parametrize('connection', ['own', 'shared', 'followed by another'])
@NAMED
def test_a_follower_hears_its_account_alone(named, account, subs, connection):
    with accounts_serving() as server, long_client(server) as owner, long_client(server) as shared:
        if connection == 'followed by another':
            Follower({'account_key': 'hedge' if account == 'main' else 'main'}, shared)
        config = dict(zip(('host', 'port'), server.address[:2]), token=TOKEN, **named)
        follower = Follower(config, None if connection == 'own' else shared)
        try:
            buy_everywhere(owner, 'k')
            end = buy(owner, 'end', wait_timeout=20, **named)
            told = follower.until(end['order_id'])
            assert heard_of(told) == ({account}, subs) and 'account' in {event for event, _ in told}
        finally:
            follower.broker.close()


def test_who_names_its_account_s_number_alone_hears_that_one(monkeypatch):
    """Requests without a name go to the account called default, so the number can only be that one's."""
    made = bq.RemoteQmtBroker
    monkeypatch.setattr(bq, 'RemoteQmtBroker', lambda **given: made(account_id='11111111', **given))
    accounts = tuple(bq.AccountSpec(key, number, 'stock', None, None, True)
                     for key, number in (('default', '11111111'), ('hedge', '22222222')))
    with serving(FakeClock(NOW), accounts=accounts) as server, long_client(server) as owner:
        follower = Follower({}, owner)
        buy(owner, 'other', wait_timeout=20, account_key='hedge')
        end = buy(owner, 'end', wait_timeout=20)
        assert heard_of(follower.until(end['order_id'])) == ({'default'}, {None})


def test_who_names_no_account_hears_all_that_the_login_may():
    with accounts_serving() as server, long_client(server) as owner:
        follower = Follower({}, owner)
        buy_everywhere(owner, 'k')
        end = buy(owner, 'end', wait_timeout=20, account_key='hedge')
        assert heard_of(follower.until(end['order_id'])) == ({'main', 'hedge'}, {None, 'rich', 'research'})


@NAMED
def test_a_follower_hears_its_account_alone_after_a_reconnect(named, account, subs):
    with accounts_serving() as server, long_client(server) as owner, \
            long_client(server, backoff_s=(0.05, 0.2)) as shared:
        follower, follow = Follower(named, shared), queue.Queue()
        shared._events.emit, emit = lambda event, row: (follow.put(row), emit(event, row)), shared._events.emit
        first = buy(owner, 'first', wait_timeout=20, **named)
        follower.until(first['order_id'])
        with shared._lock:
            shared._channel.abort()
        buy_everywhere(owner, 'k')
        end = buy(owner, 'end', wait_timeout=20, **named)
        assert heard_of(follower.until(end['order_id'])) == ({account}, subs)
        crossed = [follow.get() for _ in range(follow.qsize())]
        assert {row['account_key'] for row in crossed} == {account}, 'nothing of others crosses the line'


@pytest.mark.parametrize('named', [{'account_key': 'nobody'}, {'sub_account_id': 'nobody'},
                                   {'account_key': 'hedge', 'sub_account_id': 'rich'}, {'account_key': 5}])
def test_nobody_follows_an_account_that_is_not_there(named):
    with accounts_serving() as server, long_client(server) as client:
        with pytest.raises(bq.AccountNotFound):
            client.follow_orders(**named)


@pytest.mark.parametrize('named', [{'account_key': 'hedge'}, {'sub_account_id': 'rich'}, {'account_key': 'main'}, {}])
def test_a_session_of_a_sub_account_hears_nothing_beyond_it(named):
    with accounts_serving() as server, long_client(server) as owner, raw_socket(server, 20) as sock:
        login_raw(sock, features=['order_stream1'], sub_account_id='research')
        answer = ask_raw(sock, 'broker.subscribe_events', named)
        if named.get('account_key') == 'hedge' or named.get('sub_account_id'):
            assert answer['code'] == 'ACCOUNT_NOT_FOUND'
            return
        buy_everywhere(owner, 'k')
        end, rows = buy(owner, 'end', wait_timeout=20, sub_account_id='research'), []
        while not rows or (rows[-1]['payload'].get('order_id'), rows[-1]['payload'].get('status')) != (
                end['order_id'], 'filled'):
            rows.append(read_raw(sock))
        assert {row['payload']['sub_account_id'] for row in rows if row['event'] != 'account'} == {'research'}


# -- listeners that are too slow -----------------------------------------------------------------------------------
def test_events_that_wait_are_bounded_and_what_gave_way_is_a_gap(monkeypatch):
    monkeypatch.setattr(bq.EventDispatcher, 'LIMIT', 3)
    dispatcher, told, go_on = bq.EventDispatcher('events-test'), queue.Queue(), threading.Event()
    for event in ('order', 'tick', 'closed', 'stream_gap'):
        dispatcher.add(event, lambda row, event=event: (told.put((event, row)), go_on.wait(20)))
    dispatcher.emit('order', {'seq': 1})
    assert told.get(timeout=20) == ('order', {'seq': 1})
    dispatcher.emit_ticks([{'sid': CODE, 'last_price': 1}])
    dispatcher.emit('closed', None)
    for seq in range(2, 8):
        dispatcher.emit('order', {'seq': seq})
        dispatcher.emit_ticks([{'sid': CODE, 'last_price': seq}])
    assert len(dispatcher._events) == 4 and len(dispatcher._waiting) == 3
    go_on.set()
    assert [told.get(timeout=20) for _ in range(5)] == [
        ('stream_gap', {'after': 1, 'seq': 4, 'dropped': 4}), ('tick', {'sid': CODE, 'last_price': 7})] + [
        ('order', {'seq': seq}) for seq in (5, 6, 7)]
    dispatcher.emit('order', {'seq': 8})
    assert told.get(timeout=20) == ('order', {'seq': 8}) and not dispatcher._waiting
    dispatcher.close()
    for _ in range(9):
        dispatcher.emit('order', {'seq': 9})
    assert not dispatcher._events and not dispatcher._waiting


def test_a_gap_that_gives_way_itself_reaches_as_far_back(monkeypatch):
    monkeypatch.setattr(bq.EventDispatcher, 'LIMIT', 0)
    dispatcher, told = bq.EventDispatcher('events-test'), queue.Queue()
    dispatcher.add('stream_gap', told.put)
    with dispatcher._changed:
        for event, row in (('stream_gap', {'after': 5, 'seq': 30}), ('order', {'seq': 31}), ('closed', None)):
            dispatcher._drop(event, row)
    dispatcher.emit('order', {'seq': 32})
    gaps = [told.get(timeout=20)]
    while gaps[-1]['seq'] != 32:
        gaps.append(told.get(timeout=20))
    dispatcher.close()
    assert gaps[0]['after'] == 5 and sum(gap['dropped'] for gap in gaps) == 4


def test_what_a_slow_listener_missed_is_told_again_to_who_follows_from_the_gap():
    go_on = threading.Event()
    with serving(FakeClock(NOW)) as server, long_client(server) as client, long_client(server) as other:
        client._events.LIMIT = 4
        client.add_event_listener('order', lambda row: go_on.wait(20))
        heard = Heard(client)
        for key in ('one', 'two', 'three'):
            buy(other, key)
        assert becomes(lambda: client._events._gap)
        go_on.set()
        gap = heard.next('stream_gap')
        again = Heard(other, after=gap['after'])
        seqs = [again.next('order', 'trade', 'account')['seq']]
        while seqs[-1] < gap['seq']:
            seqs.append(again.next('order', 'trade', 'account')['seq'])
    assert seqs[0] == gap['after'] + 1 and gap['seq'] in seqs and seqs == sorted(set(seqs))


def test_a_stream_that_is_refused_for_good_is_a_gap(monkeypatch):
    def off(service, payload, caller):
        raise bq.ServiceDisabled('关闭了')

    with serving(FakeClock(NOW)) as server, long_client(server, backoff_s=(0.05, 0.2)) as client:
        heard = Heard(client)
        monkeypatch.setitem(bq.ACTIONS, 'broker.subscribe_events',
                            bq.ACTIONS['broker.subscribe_events']._replace(run=off))
        with client._lock:
            client._channel.abort()
        assert heard.next('stream_gap')['error']['code'] == 'SERVICE_DISABLED'


def test_a_sub_account_hears_of_its_own_orders():
    subs = (bq.SubAccountSpec('mine', 'default', None), bq.SubAccountSpec('other', 'default', None))
    with serving(FakeClock(NOW), sub_accounts=subs) as server, long_client(server) as all_of_it, \
            raw_socket(server) as sock:
        login_raw(sock, sub_account_id='mine')
        ask_raw(sock, 'broker.subscribe_events')
        orders = [buy(all_of_it, name, sub_account_id=name)['order_id'] for name in ('other', 'mine')]
        while True:
            frame = read_raw(sock)
            if frame['event'] != 'account':
                break
        assert frame['payload']['order_id'] == orders[1] and frame['payload']['sub_account_id'] == 'mine'
        assert frame['seq'] > 0 and frame['payload']['account_key'] == 'default'


def test_a_sub_account_hears_of_its_own_unknown_orders_only():
    subs = (bq.SubAccountSpec('mine', 'default', None), bq.SubAccountSpec('other', 'default', None))
    with serving(FakeClock(NOW), sub_accounts=subs) as server, raw_socket(server) as mine, raw_socket(server) as whole:
        login_raw(mine, features=['order_settled'], sub_account_id='mine@default')
        login_raw(whole, features=['order_settled'])
        assert becomes(lambda: len(server.service._hearers) == 2)
        for sub in ('other', None, 'mine'):
            server.service.desk.publish('order_settled', {'account_key': 'default', 'sub_account_id': sub})
        assert read_raw(mine)['payload']['sub_account_id'] == 'mine'
        assert [read_raw(whole)['payload']['sub_account_id'] for _ in range(3)] == ['other', None, 'mine']


def test_after_unsubscribing_nothing_comes():
    with serving(FakeClock(NOW)) as server, long_client(server) as client, raw_socket(server) as sock:
        login_raw(sock)
        ask_raw(sock, 'broker.subscribe_events')
        assert becomes(lambda: server.service.desk.stream._hearers)
        ask_raw(sock, 'broker.unsubscribe_events')
        assert becomes(lambda: not server.service.desk.stream._hearers)
        Heard(client).until_settled(buy(client, 'k'))  # by now it would have been told to others as well
        assert ask_raw(sock, 'admin.health')['type'] == 'response'
    assert becomes(lambda: not server.service.desk.stream._hearers)


@pytest.mark.parametrize('after', [-1, 1.5, 'x', True])
def test_a_number_that_is_none_is_refused(after):
    with serving() as server, long_client(server) as client, pytest.raises(bq.BadRequest):
        client.request('broker.subscribe_events', {'after': after})


def test_one_that_does_not_read_is_cut_off(monkeypatch):
    monkeypatch.setattr(bq.Outbox, 'BACKLOG_LIMIT', 200)
    with serving(FakeClock(NOW)) as server, long_client(server) as client, raw_socket(server) as deaf:
        login_raw(deaf)
        ask_raw(deaf, 'broker.subscribe_events')
        session = next(item for item in server._sessions if item.id != client.ack['session_id'])
        monkeypatch.setattr(session._channel, 'try_write', lambda data: 0)
        abort, cut = session._channel.abort, threading.Event()
        monkeypatch.setattr(session._channel, 'write', lambda data: cut.wait(60))
        monkeypatch.setattr(session._channel, 'abort', lambda: (cut.set(), abort()))
        for number in range(10):
            buy(client, 'k%d' % number)
        assert becomes(lambda: session not in server._sessions)
        assert client.request('broker.account')['value']['account_id'] == '10000001', 'costs the others nothing'


# -- at the desk --------------------------------------------------------------------------------------------------
@pytest.fixture
def shop():
    shop = Shop()
    shop.desk.start()
    yield shop
    shop.desk.close()


def hear(shop, after=None):
    heard = queue.Queue()
    shop.desk.stream.hear('me', heard.put, after)
    return heard


def test_an_order_that_the_broker_refused_later_is_told_again_to_who_missed_it(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    shop.main.listener('order', shop.main.rows[order_id].replace(status='rejected', status_msg='资金不足'))
    assert heard.get(timeout=20).payload['status'] == 'rejected'
    kept = shop.journal.events_after(0)[-1]
    assert (kept.payload['order_id'], kept.payload['status']) == (order_id, 'rejected')
    assert kept.payload['status_msg'] == '资金不足' and not shop.journal.misses_after(kept.seq - 1)


REFUSED = '''
import bullet_qmt as bq
from tests.base import server_settings
with bq.contextlib.ExitStack() as stack:
    %s
    bq.OrderStream._note_rejected({'order_id': '7', 'status_msg': 'no money'})
'''


@pytest.mark.parametrize('begin', ['stack.enter_context(bq.logging_set_up(server_settings()))', 'pass'])
def test_a_refused_order_is_on_the_screen_once(begin):
    """Where there are no log files, and in a program that has set up no logging at all."""
    ended = run([sys.executable, '-c', REFUSED % begin], env=dict(os.environ, PYTHONPATH=ROOT), cwd=ROOT)
    assert ended.returncode == 0 and ended.stdout.count('no money') == 1


def test_the_same_told_twice_is_told_once(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    for _ in range(3):
        shop.main.become(order_id, 'open')
    shop.main.become(order_id, 'filled')
    assert [heard.get(timeout=20).payload['status'] for _ in range(2)] == ['open', 'filled'] and heard.empty()


def test_what_changed_while_the_broker_was_away_is_told_when_it_is_back(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    shop.main.rows[order_id] = shop.main.rows[order_id].replace(status='filled', filled=100)  # pushed to nobody
    shop.desk.stream.look_again('main')
    events = [heard.get(timeout=20) for _ in range(2)]
    assert [(event.event, event.payload['order_id']) for event in events] == [('order', order_id), ('trade', order_id)]
    shop.desk.stream.look_again('main')
    shop.main.become(order_id, 'filled')
    other = shop.place(idempotency_key='other')['order_id']
    shop.main.become(other, 'open')
    assert heard.get(timeout=20).payload['order_id'] == other, 'nothing twice'


def test_a_new_day_begins_with_nothing_told(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    shop.main.become(order_id, 'open')
    assert heard.get(timeout=20)
    shop.clock.advance(86400)
    shop.main.become(order_id, 'open')
    assert heard.get(timeout=20).payload['status'] == 'open'


def test_a_journal_that_cannot_be_read_as_the_day_begins_costs_no_news(shop, monkeypatch):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    shop.clock.advance(86400)

    def unreadable(seq):
        raise bq.JournalError('disk I/O error')
    monkeypatch.setattr(shop.journal, 'newest_after', unreadable)
    shop.main.become(order_id, 'open')
    assert heard.get(timeout=20).payload['status'] == 'open'


def test_a_clock_that_goes_astray_and_comes_back_tells_nothing_twice(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    shop.main.become(order_id, 'filled')
    assert heard.get(timeout=20)
    shop.clock.step(400 * 86400)
    other = bq.Order(order_id='x', security='000001.XSHE', amount=100, status='open')
    shop.main.listener('order', other)
    assert heard.get(timeout=20).payload['order_id'] == 'x'
    shop.clock.step(-400 * 86400)
    shop.main.become(order_id, 'filled')
    shop.main.listener('order', other.replace(order_id='y'))
    assert heard.get(timeout=20).payload['order_id'] == 'y'


def test_a_full_disk_costs_the_numbers_not_the_news(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    shop.journal.add_events = lambda found: (_ for _ in ()).throw(bq.JournalError('写不进去'))
    shop.main.become(order_id, 'filled')
    event = heard.get(timeout=20)
    assert (event.seq, event.payload['status']) == (None, 'filled')


def test_one_bad_record_costs_the_others_nothing(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    row = shop.main.rows[order_id]
    for bad in (None, row.replace(status_msg=object())):
        shop.desk.stream.tell('main', 'order', bad)
    shop.desk.stream.tell('nobody', 'order', row)
    late = hear(shop)
    shop.main.become(order_id, 'filled')
    assert late.get(timeout=20).payload['order_id'] == order_id and heard is not late


def test_many_or_old_events_are_a_gap(shop, monkeypatch):
    journal = shop.journal
    begin = journal.last_event()
    assert not journal.misses_after(begin) and journal.misses_after(begin - 1) and journal.misses_after(begin + 1)
    added = journal.add_events([('main', None, 'order', {'n': number}) for number in range(6)])
    assert not journal.misses_after(begin) and [event.payload['n'] for event in journal.events_after(begin)] == [
        0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(bq, 'EVENTS_AT_ONCE', 4)
    assert journal.misses_after(begin) and not journal.misses_after(added[1].seq)
    assert [event.payload['n'] for event in journal.events_after(journal.newest_after(begin))] == [2, 3, 4, 5]
    assert journal.newest_after(added[1].seq) == added[1].seq
    monkeypatch.setattr(bq, 'EVENTS_AT_ONCE', 100)
    newer = []
    for number in range(bq.EVENT_DAYS + 1):
        shop.clock.advance(86400)
        newer += journal.add_events([('main', None, 'order', {'n': 6 + number})])
    journal.prune()
    assert journal.misses_after(added[4].seq) and not journal.misses_after(added[5].seq)
    assert journal.events_after(0) == newer


def test_what_was_missed_is_told_in_slices_that_hold_up_nobody(shop, monkeypatch):
    monkeypatch.setattr(bq.OrderStream, 'SLICE', 3)
    begin = shop.journal.last_event()
    shop.journal.add_events([('main', None, 'order', {'n': number}) for number in range(10)])
    told, stream, middle, go = queue.Queue(), shop.desk.stream, threading.Event(), threading.Event()

    def slow(event):
        if event.payload.get('n') == 1:
            middle.set()
            assert go.wait(20)
        told.put(event)

    stream.hear('other', told.put)
    stream.hear('slow', slow, begin)
    assert middle.wait(20)
    shop.main.become(shop.place(idempotency_key='k')['order_id'], 'open')  # its news waits behind one slice
    go.set()
    events = [told.get(timeout=20) for _ in range(12)]
    news = [event for event in events if event.event == 'order' and 'n' not in event.payload]
    assert [event.payload['n'] for event in events if 'n' in event.payload] == list(range(10))
    assert len(news) == 2 and events.index(news[0]) == 3, 'after the first slice, and again at the end'
    assert events[-1] == news[1]


def test_one_who_leaves_or_asks_anew_hears_no_more_of_the_old_question(shop, monkeypatch):
    monkeypatch.setattr(bq.OrderStream, 'SLICE', 2)
    begin = shop.journal.last_event()
    shop.journal.add_events([('main', None, 'order', {'n': number}) for number in range(7)])
    first, second, stream = queue.Queue(), queue.Queue(), shop.desk.stream

    def hears_once(event):
        first.put(event.payload['n'])
        if event.payload['n'] == 0:
            stream.hear('me', lambda event: second.put(event.payload['n']), begin)

    stream.hear('me', hears_once, begin)
    assert [second.get(timeout=20) for _ in range(7)] == list(range(7))
    assert [first.get() for _ in range(first.qsize())] == [0, 1]


def test_a_push_that_waited_takes_no_order_back(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k', amount=200)['order_id']
    row = shop.main.rows[order_id]
    for status, filled in (('filling', 100), ('filled', 200), ('filling', 150), ('filled', 100), ('open', 200)):
        shop.desk.stream.tell('main', 'order', row.replace(status=status, filled=filled))
    shop.main.become(shop.place(idempotency_key='last')['order_id'], 'open')
    told = [heard.get(timeout=20).payload for _ in range(3)]
    assert [(item['status'], item['filled']) for item in told] == [('filling', 100), ('filled', 200), ('open', 0)]


def test_a_day_that_changes_lets_old_events_go(shop):
    heard = hear(shop)
    order_id = shop.place(idempotency_key='k')['order_id']
    shop.main.become(order_id, 'open')
    first = heard.get(timeout=20)
    for _ in range(bq.EVENT_DAYS + 1):  # the day that begins is not written yet when it lets the oldest go
        shop.clock.advance(86400)
        shop.main.become(order_id, 'open')
        assert heard.get(timeout=20).seq > first.seq
    assert len(shop.journal.events_after(0)) == bq.EVENT_DAYS + 1
    assert all(event.seq > first.seq for event in shop.journal.events_after(0))


def test_numbers_go_on_beyond_what_a_lost_disk_may_have_told(tmp_path):
    clock, path = FakeClock(NOW), str(tmp_path / 'orders.sqlite')
    journal = bq.Journal(path, clock)
    shutil.copy(path, path + '.before')
    told = journal.add_events([('main', None, 'order', {})] * 5)[-1].seq
    journal.close()
    for name in os.listdir(str(tmp_path)):
        if not name.endswith('.before'):
            os.remove(str(tmp_path / name))
    os.rename(path + '.before', path)
    clock.advance(1)
    journal = bq.Journal(path, clock)
    assert journal.add_events([('main', None, 'order', {})])[0].seq > told
    journal.close()


def test_a_session_that_has_ended_leaves_no_hearer():
    with serving(FakeClock(NOW)) as server:
        class Gone:
            ended, account = True, None
        caller = type('Caller', (), {'session': Gone(), 'with_defaults': lambda self, payload: payload})()
        server.service.call('broker.subscribe_events', {}, caller)
        with long_client(server) as client:
            Heard(client)
            assert becomes(lambda: len(server.service.desk.stream._hearers) == 1)


@pytest.mark.parametrize('failure', [ValueError('x'), sqlite3.OperationalError('disk full'), KeyboardInterrupt()])
def test_whatever_breaks_off_a_transaction_leaves_none_open(shop, failure):
    with pytest.raises((ValueError, bq.JournalError, KeyboardInterrupt)):
        with shop.journal._database(sync=True) as db:
            db.execute('BEGIN')
            db.execute('UPDATE floor SET seq=seq+7')
            raise failure
    assert not shop.journal._db.in_transaction
    assert shop.journal._db.execute('PRAGMA synchronous').fetchone()[0] in (1, 2)
    assert not shop.journal.misses_after(shop.journal.last_event())
    assert shop.place(idempotency_key='next')['order_id']


def test_a_hearer_that_fails_and_a_broker_that_cannot_be_asked_end_nothing(shop):
    shop.desk.stream.hear('bad', lambda event: 1 / 0)
    heard = hear(shop)
    shop.main.blind = bq.QmtUnavailable('断开')
    shop.desk.stream.look_again('main')
    shop.main.blind = None
    order_id = shop.place(idempotency_key='k', security=CODE)['order_id']
    shop.main.become(order_id, 'open')
    shop.desk.stream.leave('bad')
    shop.main.become(order_id, 'filled')
    statuses = [heard.get(timeout=20).payload['status']]
    while statuses[-1] != 'filled':
        statuses.append(heard.get(timeout=20).payload['status'])


def test_an_older_journal_is_taken_over(tmp_path):
    path = str(tmp_path / 'old.sqlite')
    shop = Shop(path=path)
    shop.place(idempotency_key='k')
    shop.journal._db.execute('DROP TABLE events')
    shop.journal._db.execute('PRAGMA user_version=1')
    shop.restart()
    assert shop.place(idempotency_key='k')['order_id'] == 'o1' and shop.journal.events_after(0) == []
    assert shop.journal._db.execute('PRAGMA user_version').fetchone()[0] == bq.JOURNAL_SCHEMA
    shop.desk.close()
