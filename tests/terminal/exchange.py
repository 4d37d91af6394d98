"""The simulated exchange with the broker's counter before it: no threads, no native shapes, no clock of its own.

Every method changes the state and leaves what clients should hear in `take_events()`. Facts behind it (XTQUANT.md):
status numbers 48..57 with 52 still pending; the reason of a rejection comes in an error of its own, after the answer;
a cancel answered with 0 is only sent; a queried order shows the broker's price type, not the submitted one; a remark
keeps 24 bytes; today's orders outlive the terminal.
"""
import math
from collections import OrderedDict
from decimal import Decimal

import bullet_qmt
from tests.terminal import rules
from tests.terminal.book import Book
from tests.terminal.ledger import Account, money

BUY, SELL = 23, 24
NEW, SUBMITTED, OPEN, CANCELING, PARTLY_CANCELING, PARTLY_CANCELED, CANCELED, FILLING, FILLED, REJECTED = range(48, 58)
LIVE = (OPEN, CANCELING, PARTLY_CANCELING, FILLING)
CANCELABLE = (NEW, SUBMITTED, OPEN, FILLING)
FINAL = (PARTLY_CANCELED, CANCELED, FILLED, REJECTED)
LATEST, FIXED = 5, 11
PEER_BEST, OWN_BEST, ALL_OR_NONE = 44, 45, 48
IMMEDIATE = (42, 46, 47, ALL_OR_NONE)
# Submitted market price types: where each is taken, and the number that the broker shows in its place.
MARKET_TYPES = {42: ('SH', 'BJ'), 43: ('SH', 'BJ'), 44: ('SH', 'SZ', 'BJ'), 45: ('SH', 'SZ', 'BJ'), 46: ('SZ',),
                47: ('SZ',), 48: ('SZ',)}
SHOWN_TYPES = {42: 88, 43: 89, 44: 84, 45: 87, 46: 85, 47: 88, 48: 86}
SHOWN_LIMIT = 50
ERROR_ID = -61


class Rejected(Exception):
    """Why an order or a cancel is refused."""


class Order:
    """seq: of the request, 0 for an order that no client sent. origin: who sent it, None for the terminal's user."""

    def __init__(self, account, code, order_type, volume, price_type, price, remark, strategy, seq, origin):
        self.account, self.code, self.order_type, self.volume = account, code, order_type, volume
        self.price_type, self.price, self.remark, self.strategy = price_type, price, remark, strategy
        self.seq, self.origin = seq, origin
        self.order_id, self.sysid, self.time, self.status, self.message = -1, '', 0, NEW, ''
        self.limit, self.filled, self.value = None, 0, Decimal(0)
        self.fees = self.frozen = Decimal(0)

    @property
    def buy(self):
        return self.order_type == BUY

    @property
    def side(self):
        return 'BUY' if self.buy else 'SELL'

    @property
    def remaining(self):
        return self.volume - self.filled

    @property
    def market(self):
        return self.price_type in MARKET_TYPES

    def row(self):
        """As a query shows it."""
        return dict(self._common(), order_time=self.time, order_volume=self.volume,
                    price_type=SHOWN_TYPES.get(self.price_type, SHOWN_LIMIT), price=float(self.price),
                    traded_volume=self.filled, order_status=self.status, status_msg=self.message,
                    traded_price=float(self.value / self.filled) if self.filled else 0.0)

    def trade_row(self, number, volume, price, fee, moment):
        return dict(self._common(), traded_id='T%08d' % number, traded_time=moment, traded_price=price,
                    traded_volume=volume, traded_amount=float(money(price) * volume), commission=float(fee))

    def _common(self):
        return {'account_type': self.account.account_type, 'account_id': self.account.account_id,
                'stock_code': self.code, 'order_id': self.order_id, 'order_sysid': self.sysid,
                'order_type': self.order_type, 'strategy_name': self.strategy, 'order_remark': self.remark,
                'direction': 48, 'offset_flag': 48 if self.buy else 49}

    def error_row(self):
        return {'account_type': self.account.account_type, 'account_id': self.account.account_id,
                'order_id': self.order_id, 'error_id': ERROR_ID, 'error_msg': self.message, 'seq': self.seq,
                'strategy_name': self.strategy, 'order_remark': self.remark}

    def entry(self):
        """As the tests' bookkeeping shows it."""
        return {'order_id': self.order_id, 'remark': self.remark, 'account': self.account.account_id,
                'code': self.code, 'side': self.side, 'volume': self.volume, 'price': self.price,
                'price_type': self.price_type, 'strategy': self.strategy, 'reason': self.message}


class Exchange:
    """Accounts, orders and prices.

    Bookkeeping that survives everything: accepted (orders that became live), refused (orders that did not, with
    'reason'), cancels (each request, with 'result' and 'reason'). Lists of dicts, oldest first.
    Switches: cancel_mode 'at_once', 'held' (until confirm_cancels), 'race' (the order fills first) or 'refused';
    stop_at None, NEW or SUBMITTED (orders wait there until let_go); matching False leaves every fill to `fill`;
    market_orders False refuses them all; check_cage; remark_bytes.
    """

    def __init__(self, clock):
        self.clock = clock
        self.accounts, self.books, self.orders, self.trades = OrderedDict(), {}, OrderedDict(), []
        self.accepted, self.refused, self.cancels = [], [], []
        self.cancel_mode, self.stop_at, self.matching, self.market_orders = 'at_once', None, True, True
        self.check_cage, self.remark_bytes = True, 24
        self._next_rejections, self._next_order_id, self._events = [], 1082130433, []

    def take_events(self):
        """[(kind, row, origin)] since the last call; kinds: order, trade, order_error, cancel_error."""
        events, self._events = self._events, []
        return events

    def _tell(self, kind, row, origin=None):
        self._events.append((kind, row, origin))

    def _now(self):
        return bullet_qmt.epoch_seconds(self.clock.now())

    # -- the world -------------------------------------------------------------------------------------------
    def add_account(self, account_id, cash, account_type=2):
        self.accounts[account_id] = Account(account_id, cash, account_type)

    def add_position(self, account_id, code, volume, price):
        """Shares held since before today."""
        holding = self.accounts[account_id].holding(code)
        holding.volume = holding.yesterday = volume
        holding.cost = money(price) * volume

    def book(self, code):
        return self.books.setdefault(code, Book())

    def list_security(self, code, name, last, high=None, low=None, suspended=False):
        book = self.book(code)
        book.name, book.high, book.low, book.suspended = name, high, low, suspended
        book.set_price(last)

    def set_price(self, code, price, volume=None):
        """A new last price, with `volume` shares on offer and wanted at it; resting orders match against it."""
        self.book(code).set_price(price, volume)
        self._match_resting(code)

    def set_depth(self, code, bids, asks):
        """bids, asks: [(price, shares or None)], best first."""
        self.book(code).set_depth(bids, asks)
        self._match_resting(code)

    def set_limits(self, code, high, low):
        """The day's limits; None where there are none."""
        self.book(code).high, self.book(code).low = high, low

    def set_suspended(self, code, suspended=True):
        self.book(code).suspended = suspended

    def set_account_status(self, account_id, status):
        """0: logged in; others as the vendor's ACCOUNT_STATUS_*."""
        self.accounts[account_id].status = status

    def next_day(self):
        """Open orders expire, today's lists are emptied, yesterday's purchases can be sold."""
        for order in [order for order in self.orders.values() if order.status not in FINAL]:
            self._end(order, PARTLY_CANCELED if order.filled else CANCELED, '收盘撤单')
        self.orders, self.trades = OrderedDict(), []
        for account in self.accounts.values():
            account.next_day()

    # -- orders ------------------------------------------------------------------------------------------------
    def reject_next(self, reason, at='broker'):
        """at 'terminal': no order id comes into being; 'broker': the order is listed as 57."""
        self._next_rejections.append((reason, at))

    def submit(self, account_id, code, order_type, volume, price_type, price, remark='', strategy='', seq=0,
               origin=None):
        """An order from whomever. Returns (order id or -1, reason)."""
        account = self.accounts.get(account_id) or Account(account_id, 0)
        order = Order(account, code, order_type, volume, price_type, price, self._kept(remark), strategy, seq, origin)
        forced, at = self._next_rejections.pop(0) if self._next_rejections else (None, 'broker')
        reason = forced if at == 'terminal' else self._terminal_problem(order)
        if reason:
            return self._refuse(order, reason)
        self._register(order)
        self._to_broker(order, forced)
        return order.order_id, ''

    def _kept(self, remark):
        return remark.encode('gb18030')[:self.remark_bytes].decode('gb18030', 'ignore')

    def manual_order(self, account_id, code, side, volume, price, remark='', strategy=''):
        """By hand in the terminal, or with a remark and a strategy of its own: by another program."""
        return self.submit(account_id, code, BUY if side == 'BUY' else SELL, volume, FIXED, price, remark, strategy)[0]

    def let_go(self):
        """Orders that were stopped before the exchange reach it."""
        self.stop_at = None
        for order in [order for order in self.orders.values() if order.status in (NEW, SUBMITTED)]:
            self._open(order)

    def fill(self, order_id, volume=None, price=None):
        """A fill by decree: of `volume` shares (the rest) at `price` (its limit)."""
        order = self.orders[order_id]
        self._fill(order, order.limit if price is None else price, volume or order.remaining)

    def reject(self, order_id, reason):
        """The exchange throws a live order out."""
        order = self.orders[order_id]
        self._end(order, REJECTED, reason)
        self._tell('order_error', order.error_row(), order.origin)

    def _register(self, order):
        order.order_id, order.time = self._next_order_id, self._now()
        order.sysid = 'S%d' % order.order_id
        self._next_order_id += 1
        self.orders[order.order_id] = order

    def _refuse(self, order, reason):
        order.message = reason
        self.refused.append(order.entry())
        self._tell('order_error', order.error_row(), order.origin)
        return order.order_id, reason

    def _terminal_problem(self, order):
        """What the terminal itself does not even pass on."""
        if order.account.account_id not in self.accounts or order.account.status:
            return '账号未登录'
        if order.order_type not in (BUY, SELL) or order.volume <= 0 or not math.isfinite(order.price):
            return '委托参数错误'
        return None

    # -- exchange side -------------------------------------------------------------------------------------------
    def _open(self, order):
        order.status = OPEN
        self._tell('order', order.row())
        if self.matching:
            self._match(order)
            self._after_first_match(order)

    def _match_resting(self, code):
        for order in self.orders.values():
            if order.code == code and order.status in LIVE and self.matching:
                self._match(order)

    def _match(self, order):
        book = self.book(order.code)
        if book.suspended or (order.price_type == ALL_OR_NONE
                              and book.available(order.buy, order.limit) < order.remaining):
            return
        for price, volume in book.take(order.buy, order.limit, order.remaining):
            self._fill(order, price, volume)

    def _after_first_match(self, order):
        if order.price_type in IMMEDIATE and order.status in LIVE:
            self._end(order, PARTLY_CANCELED if order.filled else CANCELED, '剩余撤销')

    def _fill(self, order, price, volume):
        before = order.value
        order.filled += volume
        order.value += money(price) * volume
        fee = self._fees(order, order.value) - order.fees
        order.fees += fee
        self._settle(order, volume, order.value - before, fee)
        pending = order.status in (CANCELING, PARTLY_CANCELING)
        order.status = FILLED if not order.remaining else PARTLY_CANCELING if pending else FILLING
        trade = order.trade_row(len(self.trades) + 1, volume, price, fee, self._now())
        self.trades.append(trade)
        self._tell('trade', dict(trade))
        self._tell('order', order.row())

    def _fees(self, order, value):
        return rules.fees(order.code, order.side, value, self.clock.now().date())

    def _settle(self, order, volume, value, fee):
        account, holding = order.account, order.account.holding(order.code)
        if order.buy:
            self._freeze(order, 0)
            account.cash -= value + fee
            holding.buy(volume, value + fee)
            self._freeze(order, order.remaining)
        else:
            holding.frozen -= volume
            holding.sell(volume)
            account.cash += value - fee

    def _freeze(self, order, volume):
        """Holds what `volume` shares of the order may cost at worst."""
        amount = Decimal(0)
        if volume:
            value = money(order.limit) * volume
            amount = value + self._fees(order, value)
        order.account.freeze(amount - order.frozen)
        order.frozen = amount

    def _end(self, order, status, message=''):
        order.status, order.message = status, message
        if order.buy:
            self._freeze(order, 0)
        elif order.remaining:
            order.account.holding(order.code).frozen -= order.remaining
        self._tell('order', order.row())

    # -- broker's counter ----------------------------------------------------------------------------------------
    def _to_broker(self, order, forced):
        try:
            if forced:
                raise Rejected(forced)
            self._check(order)
        except Rejected as refusal:
            order.status, order.message = REJECTED, str(refusal)
            self.refused.append(order.entry())
            self._tell('order', order.row())
            self._tell('order_error', order.error_row(), order.origin)
        else:
            self._accept(order)

    def _accept(self, order):
        self.accepted.append(order.entry())
        order.status = self.stop_at or SUBMITTED
        self._tell('order', order.row())
        if self.stop_at is None:
            self._open(order)

    def _check(self, order):
        book = self.book(order.code)
        if not book.name or not rules.tradable(order.code):
            raise Rejected('证券代码不存在')
        if book.suspended:
            raise Rejected('证券停牌')
        self._check_type(order)
        order.limit = self._limit(order, book)
        self._check_price(order, book)
        self._check_amount(order)
        self._reserve(order)

    def _check_type(self, order):
        if order.market:
            if order.code[-2:] not in MARKET_TYPES[order.price_type] or not self.market_orders:
                raise Rejected('不支持的市价委托')
            if order.price <= 0:
                raise Rejected('市价委托缺少保护限价')
        elif order.price_type not in (LATEST, FIXED):
            raise Rejected('不支持的报价类型')

    def _limit(self, order, book):
        """The price that the order may trade at, at worst."""
        if order.price_type == LATEST:
            return book.last
        if order.price_type == PEER_BEST:
            return book.best(order.buy)
        if order.price_type == OWN_BEST:
            return book.best(not order.buy)
        return order.price

    def _check_price(self, order, book):
        tick = rules.rules_of(order.code).tick
        if order.limit <= 0 or not rules.on_tick(order.limit, tick):
            raise Rejected('价格不是最小价位的整数倍')
        if (book.high and order.limit > book.high) or (book.low and order.limit < book.low):
            raise Rejected('价格超出涨跌停限制')
        cage = rules.cage(order.code, order.side, book.reference(order.buy))
        if self.check_cage and cage and (order.limit > cage if order.buy else order.limit < cage):
            raise Rejected('价格超出有效申报范围')

    def _check_amount(self, order):
        usable = None if order.buy else order.account.usable(order.code)
        problem = rules.lot_problem(order.code, order.side, order.volume, usable)
        if problem:
            raise Rejected(problem)

    def _reserve(self, order):
        account = order.account
        if order.buy:
            self._freeze(order, order.volume)
            if account.cash < 0:
                self._freeze(order, 0)
                raise Rejected('可用资金不足')
        elif order.volume > account.usable(order.code):
            raise Rejected('可用股份不足')
        else:
            account.holding(order.code).frozen += order.volume

    # -- cancels -----------------------------------------------------------------------------------------------
    def cancel(self, account_id, order_id=0, sysid='', origin=None):
        """Returns (0 sent or -1, reason)."""
        order, mode = self._find(account_id, order_id, sysid), self.cancel_mode
        reason = '委托不存在' if order is None else '' if order.status in CANCELABLE else '委托已完成，不能撤单'
        reason = reason or ('柜台拒绝撤单' if mode == 'refused' else '')
        self.cancels.append({'account': account_id, 'order_id': order_id, 'result': -1 if reason else 0,
                             'reason': reason})
        if reason:
            self._cancel_error(account_id, order_id, sysid, reason, origin)
            return -1, reason
        self._cancel_sent(order, mode, origin)
        return 0, ''

    def manual_cancel(self, order_id):
        """By hand in the terminal."""
        self._cancel_sent(self.orders[order_id], 'at_once', None)

    def confirm_cancels(self):
        """Pending cancels come true."""
        for order in self.orders.values():
            if order.status in (CANCELING, PARTLY_CANCELING):
                self._end(order, PARTLY_CANCELED if order.filled else CANCELED)

    def _find(self, account_id, order_id, sysid):
        for order in self.orders.values():
            if order.account.account_id == account_id and (order_id == order.order_id or sysid == order.sysid):
                return order
        return None

    def _cancel_sent(self, order, mode, origin):
        if mode == 'race':
            self._fill(order, order.limit, order.remaining)
            return self._cancel_error(order.account.account_id, order.order_id, order.sysid, '委托已成交', origin)
        order.status = PARTLY_CANCELING if order.filled else CANCELING
        self._tell('order', order.row())
        if mode == 'at_once':
            self._end(order, PARTLY_CANCELED if order.filled else CANCELED)

    def _cancel_error(self, account_id, order_id, sysid, reason, origin):
        self._tell('cancel_error', {'account_type': 2, 'account_id': account_id, 'order_id': order_id,
                                    'order_sysid': sysid, 'error_id': ERROR_ID, 'error_msg': reason}, origin)

    # -- queries -----------------------------------------------------------------------------------------------
    def asset_row(self, account_id):
        return self.accounts[account_id].asset_row(self._last)

    def position_rows(self, account_id):
        return self.accounts[account_id].position_rows(self._last, self._name)

    def order_rows(self, account_id=None):
        """Today's orders, whoever sent them."""
        return [order.row() for order in self.orders.values() if account_id in (None, order.account.account_id)]

    def trade_rows(self, account_id=None):
        return [dict(trade) for trade in self.trades if account_id in (None, trade['account_id'])]

    def _last(self, code):
        return self.book(code).last

    def _name(self, code):
        return self.book(code).name
