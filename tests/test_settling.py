"""Orders of unknown outcome: what settles them, what must not, and whose an order is."""
import hashlib
from datetime import timedelta

import pytest

import bullet_qmt as bq
from tests.resources import becomes
from tests.test_desk import CODE, OPEN_HOUR, Shop, ticket


@pytest.fixture
def shop():
    shop = Shop()
    yield shop
    shop.desk.close()


def lose(shop, key, arrived, answered=True):
    """An order whose outcome nobody knows; answered: the broker said something odd, but it did say something."""
    error = bq.OrderStateUnknown('odd')
    error.answered = answered
    shop.main.script.append(('after', error) if arrived else error)
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key=key)


def vouch(shop, complete=True):
    shop.main.orders_known = lambda: (shop.main.orders(), complete)


def over(shop):
    shop.clock.advance(shop.desk.deadline_s + bq.SETTLE_MARGIN_S + 1)


def after_close(shop):
    """It is after 15:35, and the time until then has gone by."""
    shop.clock.advance((OPEN_HOUR.replace(hour=15, minute=36) - shop.clock.now()).total_seconds())


def state(shop, key):
    return shop.journal.find(bq.PLACE, key).state


def test_a_tag_that_is_found_is_accepted(shop):
    lose(shop, 'k', arrived=True)
    assert shop.desk.settle_open() is False
    entry = shop.journal.find(bq.PLACE, 'k')
    assert (entry.state, entry.order_id) == (bq.ACCEPTED, 'o1')


@pytest.mark.parametrize('complete, late, settled', [(True, True, True), (False, True, False), (True, False, False)])
def test_absence_counts_only_from_a_complete_list_after_the_deadline(shop, complete, late, settled):
    lose(shop, 'k', arrived=False)
    vouch(shop, complete)
    if late:
        over(shop)
    assert shop.desk.settle_open() is not settled
    if not settled:
        assert state(shop, 'k') == bq.UNKNOWN
        with pytest.raises(bq.OrderStateUnknown):
            shop.place(idempotency_key='k')
    else:
        for _ in range(2):
            with pytest.raises(bq.OrderRejected) as caught:
                shop.place(idempotency_key='k')
            assert caught.value.broker_called is False
        assert shop.resolve('k')['submission_state'] == 'rejected'
    assert len(shop.main.submits) == 1


def test_an_order_of_yesterday_is_never_declared_absent(shop):
    lose(shop, 'k', arrived=False)
    vouch(shop)
    shop.clock.advance(24 * 3600)
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.UNKNOWN
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='k')


def test_one_being_worked_on_is_left_alone(shop):
    lose(shop, 'k', arrived=True)
    with shop.desk._keys.alone((bq.PLACE, 'k'), 1):
        assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
    assert shop.desk.settle_open() is False


def test_a_wall_clock_that_jumps_proves_nothing(shop):
    lose(shop, 'k', arrived=False)
    vouch(shop)
    shop.clock.step(3600)
    assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
    over(shop)
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.ABSENT


def test_what_nobody_answered_is_on_its_way_until_its_day_is_over(shop):
    """A terminal that stands still may pass an order on minutes later, and a connection that was lost and is back says
    nothing of it; who was told 'rejected' has sent another."""
    vouch(shop)
    hooks = []
    shop.main.on_connected = hooks.append
    shop.desk.start()
    lose(shop, 'k', arrived=False, answered=False)
    for _ in range(20):
        over(shop)
        for hook in hooks:
            hook()
        assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
        with pytest.raises(bq.OrderStateUnknown) as caught:
            shop.place(idempotency_key='k')
        assert '15:35' in caught.value.message and '重新启动' not in caught.value.message
    after_close(shop)
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.ABSENT
    assert len(shop.main.submits) == 1


@pytest.mark.parametrize('ahead_h', [5.7, 6, 13])
def test_a_wall_clock_hours_ahead_does_not_end_the_day(shop, ahead_h):
    vouch(shop)
    lose(shop, 'k', arrived=False, answered=False)
    over(shop)
    shop.clock.step(ahead_h * 3600)
    assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
    shop.clock.step(-ahead_h * 3600)
    assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
    after_close(shop)
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.ABSENT


@pytest.mark.parametrize('hour, minute, settled', [(15, 34, False), (15, 36, True)])
def test_what_nobody_answered_is_settled_when_its_day_is_over(shop, hour, minute, settled):
    lose(shop, 'k', arrived=False, answered=False)
    vouch(shop)
    shop.clock.advance((hour - 10) * 3600 + minute * 60)
    assert shop.desk.settle_open() is not settled
    assert state(shop, 'k') == (bq.ABSENT if settled else bq.UNKNOWN)


def test_what_could_be_the_order_without_its_tag_leaves_it_unknown(shop):
    """A terminal that keeps no remark lists the order all the same."""
    lose(shop, 'k', arrived=False)
    vouch(shop)
    foreign(shop, 'o7', '')
    over(shop)
    assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
    shop.place(idempotency_key='other', security='000002.XSHE')
    assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN, 'one that is whole vouches for no other'
    foreign(shop, 'o7', 'grid-7')
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.ABSENT, 'remarks are kept, and it has another'


@pytest.mark.parametrize('change', [dict(side='SELL'), dict(amount=200), dict(order_price=10.01),
                                    dict(security='000002.XSHE')])
def test_an_untagged_order_that_differs_is_not_the_lost_one(shop, change):
    lose(shop, 'k', arrived=False)
    vouch(shop)
    shop.main.rows['o7'] = foreign(shop, 'o7', '').replace(**change)
    over(shop)
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.ABSENT


@pytest.mark.parametrize('kept', [0, 7, 19])
@pytest.mark.parametrize('first', ['accepted', 'lost'])
def test_a_remark_that_does_not_come_back_whole_stops_the_account(shop, kept, first):
    submit = shop.main.submit

    def cut(request, deadline_s):
        try:
            return submit(request, deadline_s)
        finally:
            for order_id, row in shop.main.rows.items():
                shop.main.rows[order_id] = row.replace(order_remark=row.order_remark[:kept])
    shop.main.submit = cut
    vouch(shop)
    if first == 'lost':
        lose(shop, 'k', arrived=True)
        over(shop)
        assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
    mine = shop.place(idempotency_key='k2', sub_account_id='free', amount=200)['order_id']
    with pytest.raises(bq.OrderTagLost) as caught:
        shop.place(idempotency_key='k3', amount=300)
    assert (caught.value.code, caught.value.broker_called) == ('ORDER_TAG_LOST', False) and caught.value.hint
    assert shop.journal.find(bq.PLACE, 'k3') is None
    health = shop.desk.health()
    assert health['stopped_accounts'] == ['main'] and health['alarms'][-1]['code'] == 'ORDER_TAG_LOST'
    assert shop.desk.health('free')['alarms'] == [], 'the orders of others are named there'
    if first == 'lost':
        assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
        with pytest.raises(bq.OrderStateUnknown):
            shop.place(idempotency_key='k')
    assert shop.place(idempotency_key='k2', sub_account_id='free', amount=200)['order_id'] == mine
    assert shop.place(account_key='hedge', idempotency_key='h')['status'] == 'open', 'the other account goes on'
    assert [row['order_id'] for row in shop.desk.orders({'sub_account_id': 'free'})] == [mine]
    with pytest.raises(bq.OrderTagLost):
        shop.place(idempotency_key='k3', amount=300)
    assert shop.desk.cancel({'sub_account_id': 'free', 'order_id': mine})['value'] is True


@pytest.mark.parametrize('how', ['pushed', 'listed', 'asked for', 'nobody asked'])
def test_a_remark_that_is_whole_after_all_lets_the_account_go_on(shop, how):
    order_id = without_remark(shop, 'k')
    whole = shop.main.rows[order_id].replace(order_remark=shop.journal.find(bq.PLACE, 'k').tag)
    with pytest.raises(bq.OrderTagLost):
        shop.place(idempotency_key='k2')
    if how == 'pushed':
        shop.main.listener('order', whole)
        assert shop.desk.health()['stopped_accounts'] == []
    shop.main.rows[order_id] = whole
    if how == 'listed':
        shop.desk.orders({'account_key': 'main'})
        assert shop.desk.health()['stopped_accounts'] == []
    elif how == 'asked for':
        shop.desk.order_status({'account_key': 'main', 'order_id': order_id})
        assert shop.desk.health()['stopped_accounts'] == []
    assert shop.place(idempotency_key='k2')['status'] == 'open'


def without_remark(shop, key, **changes):
    """An order whose remark the broker drops."""
    submit = shop.main.submit
    shop.main.submit = lambda request, deadline_s: submit(request.replace(tag=''), deadline_s)
    try:
        return shop.place(idempotency_key=key, **changes)['order_id']
    finally:
        shop.main.submit = submit


def is_stopped(shop, key='next'):
    try:
        shop.place(idempotency_key=key)
    except bq.OrderTagLost:
        return True
    return False


def test_what_the_stop_tells_to_do_ends_it(tmp_path):
    """Remarks are switched on: the order without one is cancelled, or it was filled and the server is started again."""
    shop = Shop(path=str(tmp_path / 'j.sqlite'))
    order_id = without_remark(shop, 'one', amount=200)
    assert is_stopped(shop) and '撤掉' in shop.desk.alarms[-1]['hint']
    shop.desk.cancel({'account_key': 'main', 'order_id': order_id})
    assert not is_stopped(shop)
    order_id = without_remark(shop, 'two', amount=200)
    assert is_stopped(shop, 'next2')
    shop.main.become(order_id, 'filled')
    assert is_stopped(shop, 'next2'), 'it was sent, and nobody could have found it'
    shop.restart()
    assert not is_stopped(shop, 'next2')
    shop.desk.close()


def test_the_newest_order_shows_whether_remarks_are_kept(shop):
    shop.place(idempotency_key='whole')
    without_remark(shop, 'one', amount=200)
    assert is_stopped(shop)
    shop.main.rows['o1'] = shop.main.rows['o1'].replace(order_remark='')
    shop.desk.orders({'account_key': 'main'})
    assert is_stopped(shop)


def test_a_stop_ends_with_its_day(shop):
    without_remark(shop, 'one', amount=200)
    assert is_stopped(shop)
    shop.clock.advance(24 * 3600)
    shop.main.rows.clear()
    assert not is_stopped(shop)



def test_a_tag_of_an_earlier_version_is_known_by_its_beginning(shop):
    old = 'bq' + hashlib.sha256(b'broker.place_order k').hexdigest()[:22]
    for remark in (old, old[:20]):
        shop.main.rows.clear()
        foreign(shop, 'o9', remark)
        shop.open()
        assert shop.place(idempotency_key='k')['order_id'] == 'o9' and not shop.main.submits


SPACED = ('k free', None), ('k', 'free')  # as text with a space between, one and the same


@pytest.mark.parametrize('first, second', [SPACED, SPACED[::-1]])
@pytest.mark.parametrize('amount', [100, 200])
def test_a_key_and_that_of_a_sub_account_never_share_a_tag(tmp_path, first, second, amount):
    shop = Shop(path=str(tmp_path / 'j.sqlite'))

    def place(name, amount):
        return shop.place(idempotency_key=name[0], sub_account_id=name[1], amount=amount)['order_id']
    for _ in range(2):
        assert (place(first, 100), place(second, amount)) == ('o1', 'o2')
        shop.restart()
    assert len(shop.main.submits) == 2 and len({request.tag for request in shop.main.submits}) == 2
    assert [row['order_id'] for row in shop.desk.orders({'sub_account_id': 'free'})] == [
        {first: 'o1', second: 'o2'}[SPACED[1]]]
    shop.desk.close()


def test_an_earlier_versions_tag_of_a_sub_account_stays_its_own(tmp_path, monkeypatch):
    """It is read on, its key is not new, and the key of the account that would get the same is refused."""
    shop = Shop(path=str(tmp_path / 'j.sqlite'))
    with monkeypatch.context() as patch:
        patch.setattr(bq, 'make_tag', lambda action, key, sub=None: 'bq' + hashlib.sha256(
            ' '.join(filter(None, [action, key, sub])).encode()).hexdigest()[:18])
        assert shop.place(idempotency_key='k', sub_account_id='free')['order_id'] == 'o1'
    shop.restart()
    assert shop.place(idempotency_key='k', sub_account_id='free')['order_id'] == 'o1'
    for amount in (100, 200):
        with pytest.raises(bq.IdempotencyConflict):
            shop.place(idempotency_key='k free', amount=amount)
    assert shop.resolve('k free')['submission_state'] == 'submit_unknown'
    assert shop.place(idempotency_key='k', sub_account_id='free')['order_id'] == 'o1' and len(shop.main.submits) == 1
    shop.desk.close()


def test_an_order_under_an_earlier_versions_tag_is_found_without_the_journal(shop):
    foreign(shop, 'o9', 'bq' + hashlib.sha256(b'broker.place_order k free').hexdigest()[:18])
    assert shop.place(idempotency_key='k', sub_account_id='free')['order_id'] == 'o9' and not shop.main.submits


@pytest.mark.parametrize('key', ['k\0free', 'k\nfree', 'k\x1ffree', ' ', 'k\ud800'])
def test_a_key_is_visible_text(shop, key):
    with pytest.raises(bq.BadRequest):
        shop.place(idempotency_key=key)


def shows_up(shop, row, how):
    """The order that was thought absent is pushed, or its key is sent again; False: nobody but a look can find it."""
    if how == 'told':
        shop.desk.start()
        shop.main.listener('order', row)
        assert becomes(lambda: state(shop, 'k') == bq.ACCEPTED and shop.desk.alarms)
    elif how == 'asked':
        assert shop.place(idempotency_key='k')['order_id'] == 'late'
    return how in ('told', 'asked')


@pytest.mark.parametrize('how', ['told', 'asked', 'looked at'])
def test_an_order_that_was_declared_absent_and_shows_up_is_accepted(shop, how):
    told = []
    shop.desk.publish = lambda event, payload: told.append(payload['submission_state'])
    lose(shop, 'k', arrived=False)
    vouch(shop)
    over(shop)
    assert shop.desk.settle_open() is False and told == ['rejected']
    row = foreign(shop, 'late', shop.journal.find(bq.PLACE, 'k').tag)
    if not shows_up(shop, row, how):
        assert shop.desk.settle_open() is False and told == ['rejected', 'accepted']
    assert [(item['code'], item['account_key']) for item in shop.desk.health()['alarms']] == [
        ('ORDER_AFTER_ABSENT', 'main')]
    assert shop.resolve('k')['submission_state'] == 'accepted' and len(shop.main.submits) == 1


@pytest.mark.parametrize('how', ['told', 'asked', 'looked at'])
@pytest.mark.parametrize('before', [bq.ABSENT, bq.UNKNOWN])
@pytest.mark.parametrize('restart, days', [(False, 1), (True, 1), (True, 9)])
def test_an_order_that_is_passed_on_days_later_is_ours_and_an_alarm(tmp_path, how, before, restart, days):
    shop, told = Shop(path=str(tmp_path / 'j.sqlite')), []
    lose(shop, 'k', arrived=False, answered=before == bq.ABSENT)
    vouch(shop)
    over(shop)
    assert shop.desk.settle_open() is (before == bq.UNKNOWN) and state(shop, 'k') == before
    shop.clock.advance(days * 86400)
    if restart:
        shop.restart()
    shop.place(idempotency_key='of the new day')
    assert shop.desk.settle_open() is False, 'the list of a later day shows nothing by what it lacks'
    assert state(shop, 'k') == before
    shop.desk.publish = lambda event, payload: told.append((payload['submission_state'], payload['alarm']))
    row = foreign(shop, 'late', shop.journal.find(bq.PLACE, 'k').tag)
    if not shows_up(shop, row, how):
        shop.desk.settle_open()
    shop.desk.settle_open()
    alarm, = shop.desk.health()['alarms']
    assert alarm['code'] == 'ORDER_AFTER_ABSENT' and 'late' in alarm['message'] and len(shop.main.submits) == 2
    assert told == [('accepted', 'ORDER_AFTER_ABSENT')]
    shop.journal.close()
    shop.open()
    assert [row['idempotency_key'] for row in shop.desk.orders({'account_key': 'main'})] == ['of the new day', 'k']
    shop.main.blind = bq.QmtUnavailable('断开')
    assert shop.journal.by_id('main', 'late').idempotency_key == 'k', 'so that it can be cancelled'
    shop.journal.close()


def test_an_order_of_yesterday_that_is_listed_still_is_of_yesterday(tmp_path):
    """A terminal that was not closed lists them until the morning."""
    shop = Shop(path=str(tmp_path / 'j.sqlite'))
    lose(shop, 'k', arrived=True, answered=False)
    moment = shop.clock.now()
    shop.main.rows['o1'] = shop.main.rows['o1'].replace(time=moment)
    shop.clock.advance(86400)
    shop.restart()
    shop.desk.settle_open()
    entry = shop.journal.find(bq.PLACE, 'k')
    assert (entry.state, entry.day) == (bq.ACCEPTED, moment.date().isoformat()) and not shop.desk.alarms
    shop.journal.close()


def test_an_absent_order_stays_refused_while_the_broker_cannot_be_asked(shop):
    lose(shop, 'k', arrived=False)
    vouch(shop)
    over(shop)
    shop.desk.settle_open()
    shop.main.blind = bq.QmtUnavailable('断开')
    with pytest.raises(bq.OrderRejected):
        shop.place(idempotency_key='k')


def test_an_order_that_the_broker_knows_no_more_is_not_told_as_submitted(tmp_path):
    """A paper exchange that was started again, say."""
    shop = Shop(path=str(tmp_path / 'j.sqlite'))
    shop.place(idempotency_key='k')
    shop.main.rows.clear()
    assert shop.place(idempotency_key='k')['status'] == 'submitted'  # the list may lag behind
    shop.restart()
    answer = shop.place(idempotency_key='k')
    assert (answer['order_id'], answer['status']) == ('o1', 'submit_unknown') and answer['status_msg']
    shop.desk.close()


def test_a_broker_that_cannot_be_asked_is_asked_again(shop):
    lose(shop, 'k', arrived=True)
    shop.main.blind = bq.QmtUnavailable('断开')
    assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN
    shop.main.blind = None
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.ACCEPTED


def test_the_settler_looks_at_start_and_when_a_broker_is_back(tmp_path):
    shop = Shop(path=str(tmp_path / 'j.sqlite'))
    lose(shop, 'k', arrived=True)
    shop.restart()
    hooks = []
    shop.main.on_connected = hooks.append
    shop.main.blind = bq.QmtUnavailable('断开')
    shop.desk.start()
    assert len(hooks) == 2  # the stream of events looks again, too
    shop.main.blind = None
    hooks[0]()
    assert becomes(lambda: state(shop, 'k') == bq.ACCEPTED)
    shop.desk.close()


def test_a_killed_server_leaves_an_entry_that_the_next_one_settles(tmp_path):
    shop = Shop(path=str(tmp_path / 'j.sqlite'))
    shop.main.submit = lambda request, deadline_s: (_ for _ in ()).throw(SystemExit)  # nothing is recorded any more
    with pytest.raises(SystemExit):
        shop.place(idempotency_key='k')
    assert state(shop, 'k') == bq.SUBMITTING
    shop.restart()
    assert state(shop, 'k') == bq.UNKNOWN and shop.journal.find(bq.PLACE, 'k').deadline_ms is not None
    vouch(shop)
    over(shop)
    assert shop.desk.settle_open() is True and state(shop, 'k') == bq.UNKNOWN, 'the call may have begun'
    after_close(shop)
    assert shop.desk.settle_open() is False and state(shop, 'k') == bq.ABSENT
    shop.desk.close()


def test_valid_until(shop):
    soon = shop.clock.now() + timedelta(seconds=2)
    deadlines = []
    submit = shop.main.submit
    shop.main.submit = lambda request, deadline_s: deadlines.append(deadline_s) or submit(request, deadline_s)
    assert shop.place(idempotency_key='a', valid_until=soon.isoformat())['status'] == 'open'
    assert deadlines == [2.0]
    shop.clock.advance(2)
    with pytest.raises(bq.OrderRejected) as caught:
        shop.place(idempotency_key='b', valid_until=soon.isoformat())
    assert caught.value.broker_called is False and '有效时间' in caught.value.message and len(deadlines) == 1
    again = shop.place(idempotency_key='a', valid_until=soon.isoformat())
    assert again['order_id'] == 'o1', 'what was submitted in time is told however late one asks'
    with pytest.raises(bq.OrderRejected):
        shop.place(idempotency_key='b')  # a copy that comes later still is not submitted either
    assert len(deadlines) == 1


@pytest.mark.parametrize('value', ['2024-01-05', 'soon', 5, True, ['x']])
def test_valid_until_is_a_time(shop, value):
    with pytest.raises(bq.BadRequest):
        shop.place(valid_until=value)


def test_nothing_called_gives_the_key_back(shop):
    shop.main.script.append(bq.QmtUnavailable('断开', broker_called=False))
    with pytest.raises(bq.QmtUnavailable) as caught:
        shop.place(idempotency_key='k')
    assert caught.value.broker_called is False and shop.journal.find(bq.PLACE, 'k') is None
    assert shop.place(idempotency_key='k')['order_id'] == 'o1'


def foreign(shop, order_id, remark):
    row = shop.main.rows[order_id] = bq.Order(order_id=order_id, security=CODE, side='BUY', amount=100,
                                              order_price=10.0, status='open', order_remark=remark)
    return row.replace()


def test_orders_of_others_are_listed_and_never_taken_for_ours(shop):
    mine = shop.place(idempotency_key='k', sub_account_id='free', order_remark='note')['order_id']
    foreign(shop, 'm1', '')
    foreign(shop, 'm2', 'grid-7')
    rows = {row['order_id']: row for row in shop.desk.orders({'account_key': 'main'})}
    assert {key: row['order_remark'] for key, row in rows.items()} == {mine: 'note', 'm1': '', 'm2': 'grid-7'}
    assert [row['order_id'] for row in shop.desk.orders({'sub_account_id': 'free'})] == [mine]
    for order_id in ('m1', 'm2'):
        with pytest.raises(bq.OrderNotFound):
            shop.desk.cancel({'sub_account_id': 'free', 'order_id': order_id})


def test_an_id_used_again_on_another_day_is_not_our_order(shop):
    order_id = shop.place(idempotency_key='k', sub_account_id='free')['order_id']
    shop.clock.advance(24 * 3600)
    shop.main.rows.clear()
    foreign(shop, order_id, '')
    assert shop.desk.orders({'sub_account_id': 'free'}) == []
    again = shop.place(idempotency_key='k', sub_account_id='free')
    assert (again['order_id'], again['status']) == (order_id, 'submit_unknown')


def test_an_unknown_order_is_seen_by_its_sub_account(shop):
    shop.main.script.append(('after', RuntimeError('gone')))
    with pytest.raises(bq.OrderStateUnknown):
        shop.place(idempotency_key='k', sub_account_id='free')
    assert [row['order_id'] for row in shop.desk.orders({'sub_account_id': 'free'})] == ['o1']


def test_who_holds_the_journal(tmp_path):
    path = str(tmp_path / 'j.sqlite')
    shop = Shop(path=path)
    with pytest.raises(bq.ConfigError) as caught:
        bq.Journal(path, shop.clock)
    assert '进程' in caught.value.message and '--state' in caught.value.hint
    shop.desk.close()
    bq.Journal(path, shop.clock).close()


def test_where_the_journal_lies():
    base = bq.load_settings(['server', 'stub'], {}, environ={}, dotenv=None)
    assert bq.state_path(base.replace(server_type='stub')) is None
    assert bq.state_path(base) == 'bullet_qmt_orders.sqlite'
    beside = bq.state_path(base.replace(log_file='logs/server.log')).replace('\\', '/')
    assert beside == 'logs/bullet_qmt_orders.sqlite' and bq.state_path(base.replace(state='x.db')) == 'x.db'


class Scripted(bq.BaseConnection):
    """Answers of broker.resolve_submission, one after the other; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def request(self, action, payload=None, timeout=None):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def wait_order(timeout_s, *answers):
    return bq.RemoteQmtBroker(connection=Scripted(*answers)).wait_order('k', timeout_s)


def test_wait_order_asks_until_it_is_certain():
    row = {'order_id': '7', 'status': 'open'}
    accepted = {'submission_state': 'accepted', 'resolved_result': row}
    assert wait_order(10, {'submission_state': 'reconciling'}, bq.ConnectionLost('断开'), accepted) == row
    with pytest.raises(bq.OrderRejected) as caught:
        wait_order(10, {'submission_state': 'rejected', 'status_msg': '资金不足'})
    assert caught.value.message == '资金不足'
    with pytest.raises(bq.OrderStateUnknown) as caught:
        wait_order(0, {'submission_state': 'submit_unknown'})
    assert caught.value.idempotency_key == 'k'
    with pytest.raises(bq.AuthFailed):
        wait_order(10, bq.AuthFailed('口令不匹配'))


def test_the_fingerprint_does_not_hold_the_time():
    assert bq.parse_ticket(ticket(valid_until='2024-01-05 10:00:00')).fingerprint(bq.Route('main', None, None)) == \
        bq.parse_ticket(ticket()).fingerprint(bq.Route('main', None, None))


def test_a_cancel_that_was_not_sent_gives_the_key_back(shop):
    order_id = shop.place()['order_id']
    shop.main.cancel_script.append(bq.QmtUnavailable('断开', broker_called=False))
    with pytest.raises(bq.QmtUnavailable):
        shop.cancel(order_id, idempotency_key='c')
    assert shop.journal.find(bq.CANCEL, 'c') is None
    assert shop.cancel(order_id, idempotency_key='c')['status'] == 'canceled'


def test_a_wait_beyond_the_limit_is_answered_at_once(shop, monkeypatch):
    """Each wait holds a worker; too many would keep others from being served."""
    monkeypatch.setattr(bq.OrderWatch, 'LIMIT', 0)
    answer = shop.place(wait_timeout=600)
    assert (answer['status'], answer['timed_out'], answer['async_tracking']) == ('open', True, True)
