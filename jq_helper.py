"""jq_helper: trade and read data through a bullet-qmt server the way JoinQuant does it.

Put this file and bullet_qmt.py side by side (on JoinQuant: into the root of the research files) and write

    from jq_helper import *
    configure(host='203.0.113.5', token='YOUR-LONG-RANDOM-TOKEN')

    oid = order('000001.XSHE', 100, price=None, wait_timeout=10)    # at market, waits for the outcome
    oid = order('000001.XSHE', 100, LimitOrderStyle(10.5))          # or price=10.5, or just 10.5
    cancel_order(oid)
    order_target_value('600519.XSHG', 200000)
    get_account().available_cash
    get_data_client().get_price('000001.XSHE', count=5)

Needs CPython 3.6 or newer and nothing else; data come as pandas frames where pandas is installed. No threads: each
call opens a connection of its own. Amounts in shares, prices and values in yuan, times naive Beijing time.

order() and its sisters return the order id, or None where the amount came to nothing: then nothing was sent. A
refusal raises OrderRejected. OrderStateUnknown means that an order or cancel may or may not be at the broker: look at
get_orders(), or call again with the same idempotency_key, but never order anew. Both are bullet_qmt's, as all errors.

Contents, each section using only those above it:

    1. VALUES       checks of what users and servers give
    2. STYLES       MarketOrderStyle, LimitOrderStyle, and what an order call says beside its amount
    3. ROWS         RemoteAccount, RemotePosition, RemoteOrder, RemoteTrade, CancelResult
    4. CLIENTS      RemoteDataClient, BrokerCalls: one request each
    5. SIZES        RemoteBrokerClient: from amounts, values, percents and targets to orders
    6. CONFIGURE    configure, get_data_client, get_broker_client
    7. MODULE LEVEL order and its sisters
   23. JOINQUANT    install_jq_compat: a strategy in JoinQuant's own simulated trading on the remote account
"""
import base64
import contextlib
import csv
import enum
import functools
import hashlib
import itertools
import json
import math
import operator
import os
import sys
import threading
import time
import types
import uuid
from collections import Counter, OrderedDict
from datetime import date, datetime
from decimal import Decimal

from bullet_qmt import (
    BEIJING, FINAL_STATUSES, BadRequest, BulletError, ConfigError, DataUnavailable, NotSupported, OrderNotFound,
    OrderRejected, OrderStateUnknown, ProtocolError, RemoteQmtProvider, SecurityNotFound, ShortConnection, brief,
    check_choice, check_flag, check_number, check_text, check_whole, format_table, instrument, lot_problem,
    normalize_code, order_style, parse_bool, parse_host, parse_moment, parse_order_id, parse_text, parse_token,
    printable, protect_price, qmt_code, real, round_lot, trade_fees, whole)

__all__ = [
    'configure', 'get_data_client', 'get_broker_client', 'order', 'order_value', 'order_target', 'order_target_value',
    'order_percent', 'order_target_percent', 'cancel_order', 'get_order_status', 'get_open_orders', 'get_orders',
    'get_trades', 'get_account', 'get_positions', 'MarketOrderStyle', 'LimitOrderStyle', 'RemoteAccount',
    'RemotePosition', 'RemoteOrder', 'RemoteTrade', 'BulletError', 'OrderRejected', 'OrderStateUnknown',
    'install_jq_compat', 'uninstall_jq_compat',
]

# ======================================================================================================
# 1. VALUES - checks of what users and servers give
# ======================================================================================================
MAX_AMOUNT = 10 ** 9   # shares
MAX_PRICE = 1e6        # yuan a share
MAX_VALUE = 1e12       # yuan


def _agreed(**named):
    """The one value given under any of these names, None for none. Two different ones are refused."""
    given = [value for value in named.values() if value is not None]
    if any(value != given[0] for value in given[1:]):
        raise BadRequest('%s 互相矛盾：%s' % ('、'.join(named), '、'.join(map(brief, given))), '只给出其中一个')
    return given[0] if given else None


def _price(value, name):
    """A positive price in yuan; None stays None."""
    if value is None:
        return None
    price = check_number(value, name, 0, MAX_PRICE)
    if price <= 0:
        raise BadRequest('%s 应大于 0' % name, '市价单不要给出价格')
    return price


def _shares(value, price):
    """Whole shares that `value` yuan buy. What binary fractions lack is forgiven: 300 * 3.3 yuan are 300 at 3.3."""
    return int(Decimal(repr(value)) / Decimal(repr(price)) * Decimal('1.000000000001'))


def _is_security(text, code):
    """Whether a row of any server means this canonical code."""
    return isinstance(text, str) and text.strip().upper() in (code, qmt_code(code))


def _order_id(order_or_id):
    return parse_order_id(getattr(order_or_id, 'order_id', order_or_id))


# -- of servers: what is missing is an error, never a zero -------------------------------------------------------
def _first(row, *names):
    """The first of these fields that is there: servers differ in names."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _figure(row, *names):
    """A number that must be there."""
    value = _first(row, *names)
    try:
        return check_number(value, names[0], maximum=1e15)
    except BadRequest:
        raise ProtocolError('服务端的回答里没有可用的 %s' % names[0], '核对服务端的版本和日志')


def _optional_figure(row, *names):
    return 0.0 if _first(row, *names) is None else _figure(row, *names)


def _count(row, *names):
    return int(_figure(row, *names))


def _optional_count(row, *names):
    return int(_optional_figure(row, *names))


def _text(row, *names):
    value = _first(row, *names)
    if value is None or value == '':
        raise ProtocolError('服务端的回答里没有 %s' % names[0], '核对服务端的版本和日志')
    return str(value)


def _moment(value):
    """Unix seconds or a text of Beijing time -> naive Beijing datetime; None stays None."""
    if value is None or value == '':
        return None
    try:
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, BEIJING).replace(tzinfo=None)
        return parse_moment(value)[0]
    except (ValueError, OverflowError, OSError):
        raise ProtocolError('服务端的回答里时间看不懂：%s' % brief(value), '核对服务端的版本')


def _rows(answer, what):
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise ProtocolError('服务端没有给出%s' % what, '不能当作没有%s；核对服务端的日志' % what)
    return answer


# ======================================================================================================
# 2. STYLES - MarketOrderStyle, LimitOrderStyle, and what an order call says beside its amount
# ======================================================================================================
class MarketOrderStyle:
    """At market. limit_price: the worst price to fill at; None leaves it to the server's rules."""

    def __init__(self, limit_price=None):
        self.limit_price = self.price = limit_price

    def __repr__(self):
        return 'MarketOrderStyle(%s)' % ('' if self.limit_price is None else self.limit_price)


class LimitOrderStyle:
    """At limit_price (yuan a share) or better."""

    def __init__(self, limit_price):
        self.limit_price = self.price = limit_price

    def __repr__(self):
        return 'LimitOrderStyle(%s)' % self.limit_price


def _style_kind(value):
    """'market' or 'limit' for an object of any class so named, JoinQuant's own among them; None for anything else."""
    name = type(value).__name__
    if name.endswith('OrderStyle') and 'Stop' in name:
        raise NotImplementedError('不支持止损委托 %s；请自己判断价格后再下单' % name)
    if name.endswith('MarketOrderStyle'):
        return 'market'
    return 'limit' if name.endswith('LimitOrderStyle') else None


def _split_third(price, style):
    """(price, style), where the third positional argument may have been either."""
    if _style_kind(price) is None:
        return price, style
    if style is not None:
        raise BadRequest('给出了两个下单方式', '只给出 style')
    return None, price


def _pricing(price, style, market, protect_price):
    """(limit price, protection price), both None for a plain market order. Whatever contradicts itself is refused."""
    price, style = _split_third(price, style)
    kind = _kind(price, style, market)
    if style is not None:
        inner = _style_price(style)
        if inner is None and price is not None:
            raise BadRequest('style 与 price 互相矛盾：市价与 %s' % brief(price), '只给出其中一个')
        price = _agreed(style=inner, price=price)
    if kind == 'market':
        return None, _agreed(price=_price(price, 'price'), protect_price=_price(protect_price, 'protect_price'))
    if protect_price is not None:
        raise BadRequest('限价委托没有保护价', '去掉 protect_price，或去掉价格改为市价')
    return _price(price, 'price'), None


def _kind(price, style, market):
    if market is not None:
        check_flag(market, 'market')
    kind = _implied_kind(price, market) if style is None else _style_kind(style)
    if kind is None:
        raise BadRequest('style 不认识：%s' % brief(style), '用 MarketOrderStyle() 或 LimitOrderStyle(价格)')
    if market is not None and market != (kind == 'market'):
        raise BadRequest('market=%s 与价格或 style 互相矛盾' % market, '限价给出 price，市价不给')
    return kind


def _implied_kind(price, market):
    """A price makes a limit order, unless market=True makes it the worst price."""
    return 'market' if price is None or market is True else 'limit'


def _style_price(style):
    price = _price(getattr(style, 'limit_price', getattr(style, 'price', None)), 'limit_price')
    if price is None and _style_kind(style) == 'limit':
        raise BadRequest('LimitOrderStyle 没有价格', '例如 LimitOrderStyle(10.5)')
    return price


class OrderTerms:
    """What an order call says beside security and amount, checked; nothing was sent yet.

    limit: limit price, None for a market order. protect: worst price of a market order, None for the server's rule.
    side: 'BUY', 'SELL' or None. wait_s: seconds to wait for the outcome. remark, key: texts.
    """

    def __init__(self, price=None, side=None, wait_timeout=0, style=None, pindex=0, close_today=False, market=None,
                 remark=None, order_remark=None, idempotency_key=None, protect_price=None):
        _refuse_futures(side, pindex, close_today)
        self.side = _explicit_side(side)
        self.limit, self.protect = _pricing(price, style, market, protect_price)
        self.wait_s = check_number(0 if wait_timeout is None else wait_timeout, 'wait_timeout', 0, 600)
        self.remark = _remark(_agreed(remark=remark, order_remark=order_remark))
        self.key = _new_key() if idempotency_key is None else check_text(idempotency_key, 'idempotency_key')

    def side_of(self, signed):
        """'BUY' for a positive amount or value, 'SELL' for a negative one; an explicit side must say the same."""
        side = 'BUY' if signed > 0 else 'SELL'
        if signed and self.side not in (None, side):
            raise BadRequest('side=%s 与正负号互相矛盾：%s' % (self.side, brief(signed)), '买入为正，卖出为负')
        return side

    def refuse_side(self):
        if self.side is not None:
            raise BadRequest('目标委托的方向由持仓决定，不能指定 side=%s' % self.side, '去掉 side')

    def wire_style(self):
        market = self.limit is None
        return order_style(self.protect if market else self.limit, market)

    def __str__(self):
        if self.limit is not None:
            return '限价 %s' % self.limit
        return '市价' if self.protect is None else '市价（保护价 %s）' % self.protect


def _refuse_futures(side, pindex, close_today):
    if side == 'short':
        raise NotImplementedError("不支持做空：side 只能是 'long'")
    if pindex not in (0, None):
        raise NotImplementedError('不支持多个子账户：pindex 只能是 0；用 configure(sub_account_id=...) 选子账户')
    if close_today:
        raise NotImplementedError('close_today 只用于期货')


def _explicit_side(side):
    """'long' is JoinQuant's default and means no more than that shares are held, not owed."""
    if side is None or side == 'long':
        return None
    if isinstance(side, str) and side.upper() in ('BUY', 'SELL'):
        return side.upper()
    raise BadRequest('side 不认识：%s' % brief(side), "应为 'BUY' 或 'SELL'，也可不写")


def _remark(value):
    return None if value in (None, '') else check_text(value, 'remark')


def _new_key():
    return 'jq-%s' % uuid.uuid4().hex


# ======================================================================================================
# 3. ROWS - RemoteAccount, RemotePosition, RemoteOrder, RemoteTrade, CancelResult
# ======================================================================================================
class RemoteRow:
    """A row of a server as an object. SHOWN: what its repr names. raw_response: the row as it came."""

    SHOWN = ()

    def __repr__(self):
        shown = ', '.join('%s=%s' % (name, _shown(getattr(self, name))) for name in self.SHOWN)
        return '%s(%s)' % (type(self).__name__, shown)


def _shown(value):
    return value.isoformat(sep=' ') if isinstance(value, datetime) else repr(value)


class RemoteAccount(RemoteRow):
    """Money in yuan. JoinQuant's names beside ours: cash, locked_cash, positions_value, portfolio_value."""

    SHOWN = ('account_id', 'available_cash', 'locked_cash', 'positions_value', 'total_value')

    def __init__(self, row):
        self.account_id = str(row.get('account_id') or '')
        self.available_cash = self.cash = _figure(row, 'available_cash')
        self.total_value = self.portfolio_value = _figure(row, 'total_value', 'total_asset')
        self.transferable_cash = _optional_figure(row, 'transferable_cash')
        self.locked_cash = self.frozen_cash = _optional_figure(row, 'frozen_cash')
        self.positions_value = self.market_value = _optional_figure(row, 'market_value')
        self.raw_response = row


class RemotePosition(RemoteRow):
    """A holding. total_amount = amount: all shares; closeable_amount = available: can be sold now; yuan a share."""

    SHOWN = ('security', 'total_amount', 'closeable_amount', 'avg_cost', 'price', 'value')
    side, pindex = 'long', 0

    def __init__(self, row):
        self.security, self.name = _text(row, 'security'), str(row.get('name') or '')
        self.amount = self.total_amount = _count(row, 'amount', 'volume')
        self.available = self.closeable_amount = self.sellable_amount = _count(
            row, 'closeable_amount', 'available_amount', 'can_use_volume', 'available')
        self.frozen = self.locked_amount = _optional_count(row, 'frozen_volume', 'frozen')
        self.avg_cost = _optional_figure(row, 'avg_cost')
        self.price = _optional_figure(row, 'last_price', 'current_price')
        self.value = self.market_value = _optional_figure(row, 'market_value', 'position_value')
        self.market, self.raw_response = row.get('market'), row


class RemoteOrder(RemoteRow):
    """An order as the server showed it last.

    amount, filled in shares; price: average fill, 0.0 if none; order_price: its limit or protection price; status:
    new submitted open filling canceling partly_canceled filled canceled rejected submit_unknown (text); add_time:
    datetime. actual_amount and actual_price: what the server took it in with.
    """

    SHOWN = ('order_id', 'security', 'action', 'amount', 'filled', 'price', 'order_price', 'status', 'add_time')
    side, pindex = 'long', 0

    def __init__(self, row):
        self.order_id, self.security = _text(row, 'order_id'), _text(row, 'security')
        self.status = str(_first(row, 'status', 'state') or 'submit_unknown')
        self.is_buy = _is_buy(row)
        self.action = 'open' if self.is_buy else 'close'
        self._read_figures(row)
        self.add_time = _moment(_first(row, 'order_time', 'add_time'))
        self.order_remark = str(_first(row, 'order_remark', 'remark') or '')
        self.strategy_name = str(row.get('strategy_name') or '')
        self.status_msg = str(row.get('status_msg') or '')
        self.timed_out, self.async_tracking = bool(row.get('timed_out')), bool(row.get('async_tracking'))
        self.idempotency_key = row.get('idempotency_key')
        self.last_snapshot, self.raw_response = row.get('last_snapshot'), row

    def _read_figures(self, row):
        self.amount = self.actual_amount = _count(row, 'amount', 'volume')
        self.filled = _optional_count(row, 'filled', 'traded_volume')
        self.price = self.avg_cost = _optional_figure(row, 'avg_price', 'traded_price')
        self.order_price = self.actual_price = _optional_figure(row, 'order_price', 'price')
        self.commission = _optional_figure(row, 'commission') + _optional_figure(row, 'tax')

    @property
    def final(self):
        return self.status in FINAL_STATUSES


def _is_buy(row):
    """None where the server does not say."""
    if isinstance(row.get('is_buy'), bool):
        return row['is_buy']
    side = {'BUY': True, 'SELL': False, 23: True, 24: False}
    return side.get(_first(row, 'side', 'order_type'))


class RemoteTrade(RemoteRow):
    """A fill. amount in shares, price in yuan a share, commission and tax in yuan, time: datetime."""

    SHOWN = ('trade_id', 'order_id', 'security', 'is_buy', 'amount', 'price', 'time')

    def __init__(self, row):
        self.trade_id, self.order_id = _text(row, 'trade_id', 'id', 'trade_no'), _text(row, 'order_id', 'entrust_id')
        self.security, self.is_buy = _text(row, 'security'), _is_buy(row)
        self.amount, self.price = _count(row, 'amount', 'volume'), _figure(row, 'price', 'traded_price')
        self.time = _moment(_first(row, 'time', 'trade_time'))
        self.commission, self.tax = _optional_figure(row, 'commission'), _optional_figure(row, 'tax')
        self.raw_response = row


class CancelResult(dict):
    """The server's answer to a cancel: value, status, order_id, ... True only if certainly cancelled."""

    def __bool__(self):
        return self.get('value') is True


def _by_id(name, objects):
    return OrderedDict((getattr(item, name), item) for item in objects)


# ======================================================================================================
# 4. CLIENTS - RemoteDataClient, BrokerCalls: one request each
# ======================================================================================================
class RemoteDataClient(RemoteQmtProvider):
    """Market data; beside these get_snapshot, get_last_price, get_live_current, get_security_info, ..."""

    def get_price(self, security, start_date=None, end_date=None, frequency='daily', fields=None, skip_paused=False,
                  fq='pre', count=None, panel=True, fill_paused=True, pre_factor_ref_date=None, start=None, end=None):
        """JoinQuant's get_price; start and end are other names of start_date and end_date."""
        return super().get_price(
            security, _agreed(start_date=start_date, start=start), _agreed(end_date=end_date, end=end), frequency,
            fields, skip_paused, fq, count, panel, fill_paused, pre_factor_ref_date)

    def get_trade_days(self, start_date=None, end_date=None, count=None, start=None, end=None):
        """List of datetime.date, both ends included."""
        return super().get_trade_days(_agreed(start_date=start_date, start=start),
                                      _agreed(end_date=end_date, end=end), count)

    def get_last_price(self, security):
        """Yuan. Raises DataUnavailable where there is none: a missing price is no price of 0."""
        price = self.get_snapshot(security).get('last_price')
        if not isinstance(price, (int, float)) or not 0 < price <= MAX_PRICE:
            raise DataUnavailable('%s 没有最新价' % printable(security), '给出限价，或等有行情时再下单',
                                  broker_called=False)
        return float(price)


class BrokerCalls:
    """Trading, one request a call. debug: a line for each order and cancel.

    Raises OrderRejected (not at the broker, or refused by it), OrderStateUnknown (may be there; its idempotency_key
    says which), BadRequest, ConnectionLost (certainly not sent), ...
    """

    def __init__(self, connection, account_key=None, sub_account_id=None, rpc_timeout=60.0, margin=30.0, debug=True):
        self._connection, self._rpc_timeout, self._margin, self._debug = connection, rpc_timeout, margin, debug
        self._account = _given(account_key=account_key, sub_account_id=sub_account_id)

    def _ask(self, action, timeout=None, **payload):
        return self._connection.request(action, dict(_given(**payload), **self._account), timeout)

    def _say(self, line, *values):
        """The one place that prints. An order must not look failed because the console lacks a character."""
        if self._debug:
            encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
            with contextlib.suppress(OSError, ValueError):  # a closed console
                print((line % tuple(map(printable, values))).encode(encoding, 'backslashreplace').decode(encoding))

    # -- views ---------------------------------------------------------------------------------------------------
    def get_account(self):
        answer = self._ask('broker.account')
        row = answer.get('value', answer) if isinstance(answer, dict) else None
        if not isinstance(row, dict):
            raise ProtocolError('服务端没有给出账户资金', '核对服务端的日志')
        return RemoteAccount(row)

    def get_positions(self):
        return [RemotePosition(row) for row in _rows(self._ask('broker.positions'), '持仓')]

    def get_orders(self, order_id=None, security=None, status=None, from_broker=False):
        """OrderedDict order id -> RemoteOrder of today."""
        order_id = None if order_id is None else _order_id(order_id)
        rows = self._ask('broker.orders', order_id=order_id, security=security, status=status,
                         from_broker=from_broker or None)
        return _by_id('order_id', map(RemoteOrder, _rows(rows, '委托')))

    def get_open_orders(self, security=None):
        """Those of get_orders that may still change."""
        orders = self.get_orders(security=security)
        return OrderedDict((key, item) for key, item in orders.items() if not item.final)

    def get_trades(self, order_id=None, security=None):
        """OrderedDict trade id -> RemoteTrade of today."""
        order_id = None if order_id is None else _order_id(order_id)
        rows = self._ask('broker.trades', order_id=order_id, security=security)
        return _by_id('trade_id', map(RemoteTrade, _rows(rows, '成交')))

    def get_order_status(self, order_id):
        """The order's row as a dict, {} if the account has none of that id."""
        return dict(self._ask('broker.order_status', order_id=_order_id(order_id)) or {})

    # -- writes --------------------------------------------------------------------------------------------------
    def place_order(self, security, side=None, amount=None, price=None, style=None, wait_timeout=0, remark=None,
                    idempotency_key=None, market=None, protect_price=None, order_remark=None):
        """RemoteOrder. amount > 0, sent exactly as it is; side 'BUY' or 'SELL'; no price: at market."""
        terms = OrderTerms(price, side, wait_timeout, style=style, remark=remark, order_remark=order_remark,
                           idempotency_key=idempotency_key, market=market, protect_price=protect_price)
        if terms.side is None:
            raise BadRequest('没有说明买卖方向', "side 应为 'BUY' 或 'SELL'")
        return self._place(normalize_code(security), terms.side, check_whole(amount, 'amount', 1, MAX_AMOUNT), terms)

    def cancel_order(self, order_or_id, idempotency_key=None):
        """CancelResult: true if certainly cancelled; else its status says whether the order is final or pending."""
        order_id = _order_id(order_or_id)
        key = _new_key() if idempotency_key is None else check_text(idempotency_key, 'idempotency_key')
        result = CancelResult(self._write('broker.cancel_order', key, None, order_id=order_id))
        self._say('[撤单] %s：%s（状态 %s）', order_id, '已撤' if result else '没有撤成', result.get('status'))
        return result

    def _place(self, code, side, amount, terms, note=''):
        answer = self._write('broker.place_order', terms.key, self._timeout(terms.wait_s), security=code, side=side,
                             amount=amount, style=terms.wire_style(), wait_timeout=terms.wait_s or None,
                             order_remark=terms.remark)
        placed = _placed(dict({'security': code, 'side': side, 'amount': amount}, **answer), terms.key)
        self._say('[下单] %s %s %s 股 %s：委托号 %s，状态 %s，成交 %s%s', '买入' if side == 'BUY' else '卖出', code, amount,
                  terms, placed.order_id, placed.status, placed.filled, note)
        return placed

    def _timeout(self, wait_s):
        return max(self._rpc_timeout, wait_s + self._margin) if wait_s else None

    def _write(self, action, key, timeout, **payload):
        """The answer, a dict that leaves nothing open: all else is OrderStateUnknown."""
        answer = self._ask(action, timeout, idempotency_key=key, **payload)
        if not isinstance(answer, dict) or _first(answer, 'status', 'state') in ('submit_unknown', 'reconciling'):
            raise _unknown('服务端说结果未知', key)
        return answer


def _given(**values):
    return {name: value for name, value in values.items() if value is not None}


def _unknown(message, key):
    return OrderStateUnknown(message, '不要换 key 重下；先看 get_orders()，或用同一 idempotency_key 再调用一次',
                             idempotency_key=key)


def _placed(row, key):
    """The RemoteOrder of an answer to place_order."""
    if str(row.get('order_id') or '-1').startswith('-'):
        raise _unknown('服务端没有给出委托号', key)
    if row.get('status') in ('rejected', 'failed', 'error'):
        raise OrderRejected(row.get('status_msg') or '委托被拒绝', order_id=str(row['order_id']), broker_called=True,
                            idempotency_key=key)
    try:
        return RemoteOrder(dict({'status': 'submitted'}, **row))
    except ProtocolError as error:
        raise _unknown('委托号 %s，其余回答看不懂：%s' % (printable(row['order_id']), error.message), key) from error


# ======================================================================================================
# 5. SIZES - RemoteBrokerClient: from amounts, values, percents and targets to orders
# ======================================================================================================
class RemoteBrokerClient(BrokerCalls):
    """BrokerCalls and JoinQuant's ways to say how much. Their rules stand at the module's functions of these names.

    data: a RemoteDataClient, asked for last prices.
    """

    def __init__(self, connection, data, **options):
        super().__init__(connection, **options)
        self._data = data

    def order(self, security, amount, price=None, side=None, wait_timeout=0, **how):
        terms, code = OrderTerms(price, side, wait_timeout, **how), normalize_code(security)
        amount = check_whole(amount, 'amount', -MAX_AMOUNT, MAX_AMOUNT)
        return self._send(code, terms.side_of(amount), abs(amount), terms)

    def order_value(self, security, value, price=None, wait_timeout=0, **how):
        terms, code = OrderTerms(price, wait_timeout=wait_timeout, **how), normalize_code(security)
        return self._send_value(code, check_number(value, 'value', -MAX_VALUE, MAX_VALUE), terms)

    def order_percent(self, security, percent, price=None, wait_timeout=0, **how):
        terms, code = OrderTerms(price, wait_timeout=wait_timeout, **how), normalize_code(security)
        percent = _fraction(percent, -1)
        terms.side_of(percent)
        return self._send_value(code, self._portion(percent), terms)

    def order_target(self, security, target, price=None, wait_timeout=0, **how):
        terms, code = _target_terms(price, wait_timeout, how), normalize_code(security)
        return self._send_target(code, check_whole(target, 'target', 0, MAX_AMOUNT), terms)

    def order_target_value(self, security, target_value=None, price=None, wait_timeout=0, value=None, **how):
        terms, code = _target_terms(price, wait_timeout, how), normalize_code(security)
        value = check_number(_agreed(target_value=target_value, value=value), 'target_value', 0, MAX_VALUE)
        return self._send_target(code, self._amount_for(code, value, terms), terms)

    def order_target_percent(self, security, percent, price=None, wait_timeout=0, **how):
        terms, code = _target_terms(price, wait_timeout, how), normalize_code(security)
        percent = _fraction(percent, 0)
        return self._send_target(code, self._amount_for(code, self._portion(percent), terms), terms)

    # -- values --------------------------------------------------------------------------------------------------
    def _send_value(self, code, value, terms):
        side = terms.side_of(value)
        return self._send(code, side, self._amount_for(code, abs(value), terms), terms)

    def _portion(self, percent):
        """That part of the account's total value, in yuan; the account is not asked for nothing."""
        total = self.get_account().total_value if percent else 0.0
        if total < 0:
            raise BadRequest('总资产是负数 %s，不能按比例下单' % total)
        return percent * total

    def _amount_for(self, code, value, terms):
        """Shares worth `value` at the limit price, else at the last price; no price is needed for nothing."""
        if not value:
            return 0
        price = self._data.get_last_price(code) if terms.limit is None else terms.limit
        return check_whole(_shares(value, price), 'amount', 0, MAX_AMOUNT)

    # -- targets -------------------------------------------------------------------------------------------------
    def _send_target(self, code, target, terms):
        """The order that is left once nothing else is under way and the position is known."""
        self._clear(code)
        held, closeable = self._holding(code)
        if target >= held:
            return self._send(code, 'BUY', target - held, terms)
        if held - target > closeable:
            self._say('[下单] %s 要卖 %s 股，现在可卖 %s 股，只卖可卖的', code, held - target, closeable)
        return self._send(code, 'SELL', min(held - target, closeable), terms)

    def _clear(self, code):
        """Cancels the account's open orders of this security. Raises OrderStateUnknown unless all of them ended."""
        ours = self._open_orders_of(code)
        for item in ours:
            self._end(item.order_id)
        if ours and self._open_orders_of(code):
            raise _unknown('%s 还有未完结的委托，没有下新单' % code, None)

    def _open_orders_of(self, code):
        return [item for item in self.get_open_orders(code).values() if _is_security(item.security, code)]

    def _end(self, order_id):
        key = _new_key()
        try:
            status = self.cancel_order(order_id, key).get('status')
        except OrderRejected:  # too late to cancel, perhaps; what became of it decides
            status = self.get_order_status(order_id).get('status')
        if status not in FINAL_STATUSES:
            raise _unknown('委托 %s 还没有撤掉（状态 %s），没有下新单' % (order_id, printable(status)), key)

    def _holding(self, code):
        """(all shares, those that can be sold now) of this security; an unreadable answer is an error."""
        rows = [item for item in self.get_positions() if _is_security(item.security, code)]
        return sum(item.total_amount for item in rows), sum(item.closeable_amount for item in rows)

    # -- lots ----------------------------------------------------------------------------------------------------
    def _send(self, code, side, amount, terms):
        """Order id, or None with a line that says why nothing was sent."""
        lots = self._lots(code, side, amount)
        if not lots:
            self._say('[下单] %s 没有下单：%s 股，最小申报数量是 %s', code, amount, instrument(code).lot)
            return None
        note = '' if lots == amount else '（%d 股按交易单位取整）' % amount
        return self._place(code, side, lots, terms, note).order_id

    def _lots(self, code, side, amount):
        """Down to whole lots, except that a sale of all that can be sold takes the odd rest along."""
        lots = round_lot(code, amount)
        if side == 'BUY' or lots == amount:
            return lots
        closeable = self._holding(code)[1]
        return amount if amount == closeable and not lot_problem(code, side, amount, closeable) else lots


def _target_terms(price, wait_timeout, how):
    terms = OrderTerms(price, wait_timeout=wait_timeout, **how)
    terms.refuse_side()
    return terms


def _fraction(percent, minimum):
    try:
        return check_number(percent, 'percent', minimum, 1)
    except BadRequest as error:
        raise BadRequest(error.message, '应为 %d 到 1 的小数，0.1 表示总资产的 10%%' % minimum)


# ======================================================================================================
# 6. CONFIGURE - configure, get_data_client, get_broker_client
# ======================================================================================================
_clients = None  # (RemoteDataClient, RemoteBrokerClient)


def configure(host, token, port=58620, account_key=None, sub_account_id=None, tls_cert=None, retries=2,
              retry_interval=0.5, rpc_timeout=60, debug=True, place_order_timeout_margin=30):
    """Says which server to use from now on. Checks every value (ConfigError); connects with the first call.

    account_key, sub_account_id: None leaves the choice to the server. tls_cert: the server's certificate (PEM file);
    None means a plain connection. retries: further attempts of a call, retry_interval seconds apart; an order is only
    repeated where the server is sure to know it again. rpc_timeout: seconds for one call; an order that waits has
    place_order_timeout_margin seconds beside. debug: print a line for each order and cancel.
    """
    global _clients
    rpc_timeout = _setting('rpc_timeout', rpc_timeout, real(0.1, 3600))
    connection = ShortConnection(
        _setting('host', host, parse_host), _setting('port', port, whole(1, 65535)), _secret(token),
        tls_cert=_optional('tls_cert', tls_cert), request_timeout=rpc_timeout,
        retries=_setting('retries', retries, whole(0, 20)),
        retry_interval=_setting('retry_interval', retry_interval, real(0, 60)))
    data = RemoteDataClient(connection=connection)
    _clients = data, RemoteBrokerClient(
        connection, data, account_key=_optional('account_key', account_key), rpc_timeout=rpc_timeout,
        sub_account_id=_optional('sub_account_id', sub_account_id), debug=_setting('debug', debug, parse_bool),
        margin=_setting('place_order_timeout_margin', place_order_timeout_margin, real(0, 3600)))


def _setting(name, value, parse):
    try:
        return parse('' if value is None else str(value))
    except ValueError as error:
        raise ConfigError('configure 的 %s=%s 无效：%s' % (name, brief(value), error))


def _optional(name, value):
    return None if value is None else _setting(name, value, parse_text)


def _secret(token):
    """A wrong token is not shown either."""
    try:
        return parse_token(token if isinstance(token, str) else '')
    except ValueError as error:
        raise ConfigError('configure 的 token 无效：%s' % error, '与服务端的 --token 相同的文本')


def _configured():
    if _clients is None:
        raise ConfigError('还不知道连接哪个服务端', "先调用 configure(host='服务端地址', token='口令')")
    return _clients


def get_data_client():
    """The RemoteDataClient: get_price, get_trade_days, get_snapshot, get_last_price, get_all_securities, ..."""
    return _configured()[0]


def get_broker_client():
    """The RemoteBrokerClient: what the functions below call, and place_order."""
    return _configured()[1]


# ======================================================================================================
# 7. MODULE LEVEL - order and its sisters
# ======================================================================================================
# `how`, everywhere: style, pindex, close_today, market, remark, order_remark, idempotency_key, protect_price, and
# side where it is not in the signature. Anything else is a TypeError.
def order(security, amount, price=None, side=None, wait_timeout=0, **how):
    """Buys `amount` shares, sells them if negative. Order id (text), or None if nothing was sent.

    price: limit price, or an order style; None: at market with the server's protection price. Buys are floored to
    lots (100; 200 and then any for 688), sales too unless all that can be sold is sold. wait_timeout: seconds to wait
    for the outcome. idempotency_key: a call repeated with the same key never makes a second order.
    """
    return get_broker_client().order(security, amount, price, side, wait_timeout, **how)


def order_value(security, value, price=None, wait_timeout=0, **how):
    """Like order(), for as many shares as `value` yuan buy at the limit price, at market at the last price."""
    return get_broker_client().order_value(security, value, price, wait_timeout, **how)


def order_percent(security, percent, price=None, wait_timeout=0, **how):
    """order_value() of a fraction (-1 to 1) of the account's total value."""
    return get_broker_client().order_percent(security, percent, price, wait_timeout, **how)


def order_target(security, target, price=None, wait_timeout=0, **how):
    """Orders what is missing to hold `target` shares, after the security's open orders are cancelled.

    Raises OrderStateUnknown, with nothing ordered, while one of those may still fill. Of shares bought today only what
    can be sold is sold. Order id, or None if nothing was sent.
    """
    return get_broker_client().order_target(security, target, price, wait_timeout, **how)


def order_target_value(security, target_value=None, price=None, wait_timeout=0, **how):
    """order_target() for as many shares as `target_value` (or value=) yuan buy; counted as in order_value()."""
    return get_broker_client().order_target_value(security, target_value, price, wait_timeout, **how)


def order_target_percent(security, percent, price=None, wait_timeout=0, **how):
    """order_target_value() of a fraction (0 to 1) of the account's total value."""
    return get_broker_client().order_target_percent(security, percent, price, wait_timeout, **how)


def cancel_order(order_or_id):
    """The server's answer (dict: value, status, order_id, ...), which is true only if certainly cancelled."""
    return get_broker_client().cancel_order(order_or_id)


def get_order_status(order_id):
    """The order's row as a dict, {} if there is none of that id."""
    return get_broker_client().get_order_status(order_id)


def get_open_orders():
    """OrderedDict order id -> RemoteOrder of those that may still change."""
    return get_broker_client().get_open_orders()


def get_orders(order_id=None, security=None, status=None, from_broker=False):
    """OrderedDict order id -> RemoteOrder of today."""
    return get_broker_client().get_orders(order_id, security, status, from_broker)


def get_trades(order_id=None, security=None):
    """OrderedDict trade id -> RemoteTrade of today."""
    return get_broker_client().get_trades(order_id, security)


def get_account():
    """RemoteAccount: available_cash, total_value, ..."""
    return get_broker_client().get_account()


def get_positions():
    """List of RemotePosition: security, total_amount, closeable_amount, avg_cost, price, value, ..."""
    return get_broker_client().get_positions()


# ======================================================================================================
# 20. METRICS - what a run earned and risked, by JoinQuant's formulas
# ======================================================================================================
YEAR_DAYS = 250    # trade days that count as a year
RISK_FREE = 0.04   # a year
_NO_SPREAD = 1e-12  # a deviation below this is rounding noise: nothing is divided by it

# Group, then (name, label, kind). Kinds: gain (fraction, coloured by its sign), percent, number, count, money, date.
METRIC_GROUPS = OrderedDict([
    ('收益', (
        ('returns', '策略收益', 'gain'), ('annual_returns', '策略年化收益', 'gain'),
        ('benchmark_returns', '基准收益', 'gain'), ('benchmark_annual_returns', '基准年化收益', 'gain'),
        ('excess_returns', '超额收益', 'gain'), ('daily_excess_returns', '日均超额收益', 'gain'),
        ('alpha', '阿尔法', 'number'), ('beta', '贝塔', 'number'))),
    ('风险', (
        ('max_drawdown', '最大回撤', 'percent'), ('max_drawdown_start', '回撤开始', 'date'),
        ('max_drawdown_end', '回撤最深', 'date'), ('excess_max_drawdown', '超额最大回撤', 'percent'),
        ('volatility', '策略波动率', 'percent'), ('benchmark_volatility', '基准波动率', 'percent'),
        ('sharpe', '夏普比率', 'number'), ('sortino', '索提诺比率', 'number'), ('information_ratio', '信息比率', 'number'))),
    ('交易', (
        ('days', '交易日数', 'count'), ('daily_win_rate', '日胜率', 'percent'), ('win_rate', '胜率', 'percent'),
        ('profit_loss_ratio', '盈亏比', 'number'), ('winning_sales', '盈利卖出', 'count'),
        ('losing_sales', '亏损卖出', 'count'), ('trade_count', '成交笔数', 'count'),
        ('turnover', '年化换手率', 'percent'), ('fees', '佣金与税', 'money'))),
])


class BacktestResult:
    """What a run leaves behind: all that metrics and report are made of. Yuan, shares, naive Beijing time.

    name: the strategy's file. source: its text, may be ''. params: OrderedDict text -> text, shown as it is.
    finished: False where Ctrl-C or an error ended the run early. messages: [text], shown as warnings.
    days: [date], ascending, one per trade day; beside it lists of floats of the same length: equity (total value at
    the close), capital (starting cash and inout_cash so far), cash, positions_value, and benchmark (cumulative value,
    1.0 at its close before the start; None without a benchmark).

    Lists of dicts, oldest first; the first four have security and name (of the security) besides what is named here:
    trades: time, order_id, side ('BUY', 'SELL'), amount, price, value, commission, tax, profit (yuan realised against
        average cost; None for buys).
    orders: add_time, order_id, side, amount, filled, order_price, avg_price, status, message.
    positions: date, amount, avg_cost, price, value, profit, weight (of the equity): a row per day and holding.
    dividends: date, amount (shares held), cash (net), tax, shares (bonus shares).
    records: [(date, OrderedDict name -> float)]. prices: OrderedDict security -> (dates, closes).
    """

    def __init__(self, name='', params=(), source='', days=(), equity=(), capital=(), cash=(), positions_value=(),
                 benchmark=None, trades=(), orders=(), positions=(), dividends=(), records=(), prices=(), messages=(),
                 finished=True):
        self.name, self.source, self.finished = name, source, finished
        self.params, self.prices = OrderedDict(params), OrderedDict(prices)
        self.days, self.equity, self.capital, self.cash = list(days), list(equity), list(capital), list(cash)
        self.positions_value = list(positions_value)
        self.benchmark = None if benchmark is None else list(benchmark)
        self.trades, self.orders, self.positions = list(trades), list(orders), list(positions)
        self.dividends, self.records, self.messages = list(dividends), list(records), list(messages)

    def check(self):
        """Raises ValueError unless the daily lists lie side by side."""
        for name in ('equity', 'capital', 'cash', 'positions_value', 'benchmark'):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.days):
                raise ValueError('%s has %d values for %d days' % (name, len(values), len(self.days)))
        if any(day >= later for day, later in zip(self.days, self.days[1:])):
            raise ValueError('days are not in ascending order')


class Metrics:
    """What is computed of a run; made by compute_metrics().

    values: OrderedDict name (METRIC_GROUPS) -> float, int or date; None where it cannot be computed.
    own, benchmark: GrowthCurve (the benchmark's is empty without one). excess: their ratio, a GrowthCurve.
    exposure: [positions_value / equity or None]. monthly, annual: [dict period ('2024-05', '2024'), returns,
    benchmark_returns, excess_returns].
    """

    def __init__(self, result):
        self.days = result.days
        self.own = GrowthCurve(list(map(_quotient, result.equity, result.capital)))
        self.benchmark = GrowthCurve([_quotient(value, 1.0) for value in result.benchmark or ()])
        self.excess = GrowthCurve(list(map(_quotient, self.own.growth, self.benchmark.growth)))
        self.exposure = list(map(_quotient, result.positions_value, result.equity))
        self.monthly, self.annual = self._periods('%Y-%m'), self._periods('%Y')
        self.values = OrderedDict((name, None) for rows in METRIC_GROUPS.values() for name, _, _ in rows)
        for part in (self._gains(), self._risks(), _trade_metrics(result)):
            self.values.update(part)

    def _gains(self):
        own, market = self.own, self.benchmark
        beta = _beta(_complete(own.returns), _complete(market.returns), market.volatility)
        return {'returns': own.total, 'annual_returns': own.annual, 'benchmark_returns': market.total,
                'benchmark_annual_returns': market.annual, 'excess_returns': self.excess.total, 'beta': beta,
                'daily_excess_returns': _mean(_complete(self.excess.returns)),
                'alpha': _alpha(own.annual, market.annual, beta)}

    def _risks(self):
        own, market = self.own, self.benchmark
        depth, start, end = own.max_drawdown()
        differences = _differences(_complete(own.returns), _complete(market.returns))
        premium = _difference(own.annual, RISK_FREE)
        return {'max_drawdown': depth, 'max_drawdown_start': None if start is None else self.days[max(start, 0)],
                'max_drawdown_end': None if end is None else self.days[end],
                'excess_max_drawdown': self.excess.max_drawdown()[0], 'volatility': own.volatility,
                'benchmark_volatility': market.volatility, 'sharpe': _over_spread(premium, own.volatility),
                'sortino': _over_spread(premium, _downside(_complete(own.returns))),
                'information_ratio': _over_spread(_difference(own.annual, market.annual), _deviation(differences)),
                'daily_win_rate': _share_above_zero(differences), 'days': len(self.days)}

    def _periods(self, pattern):
        own, market, excess = (curve.by_period(self.days, pattern) for curve in (self.own, self.benchmark, self.excess))
        return [OrderedDict([('period', period), ('returns', own[period]), ('benchmark_returns', market.get(period)),
                             ('excess_returns', excess.get(period))]) for period in own]


def compute_metrics(result):
    """The Metrics of a BacktestResult. Raises ValueError if its daily lists do not lie side by side."""
    result.check()
    return Metrics(result)


class GrowthCurve:
    """What became of one yuan, day by day: growth = [float, or None where there is no telling]; 1.0 stands before it.

    returns: of each day, None after a day that left nothing. total, annual: fractions. volatility: a year's.
    drawdowns: at most 0, of the highest value so far.
    """

    def __init__(self, growth):
        self.growth = growth
        self.returns = [_change(*pair) for pair in zip([1.0] + growth, growth)]
        self.total = _difference(growth[-1], 1.0) if growth else None
        self.annual = _annualised(growth[-1], len(growth)) if growth else None
        self.volatility = _deviation(_complete(self.returns))
        self._peaks = _peaks(growth)
        self.drawdowns = [_change(highest, value) for (_, highest), value in zip(self._peaks, growth)]

    def max_drawdown(self):
        """(depth as a positive fraction, day of the peak, day of the bottom). The start is -1; no fall, no days."""
        if _complete(self.drawdowns) is None:
            return None, None, None
        depth = min(self.drawdowns)
        end = self.drawdowns.index(depth)
        return (-depth, self._peaks[end][0], end) if depth < 0 else (0.0, None, None)

    def by_period(self, days, pattern):
        """OrderedDict period -> return over it; the period of a day is its strftime(pattern)."""
        last = OrderedDict((day.strftime(pattern), value) for day, value in zip(days, self.growth))
        return OrderedDict((period, _change(before, value))
                           for (period, value), before in zip(last.items(), [1.0] + list(last.values())))


def _peaks(growth):
    """For each day (number of a day, value) of the highest so far, the latest of equals; the start is (-1, 1.0)."""
    peaks, peak, highest = [], -1, 1.0
    for number, value in enumerate(growth):
        if value is not None and value >= highest:
            peak, highest = number, value
        peaks.append((peak, highest))
    return peaks


def _trade_metrics(result):
    profits = [row['profit'] for row in result.trades if row['side'] == 'SELL' and row['profit'] is not None]
    wins, losses = [value for value in profits if value > 0], [-value for value in profits if value < 0]
    return {'win_rate': _quotient(float(len(wins)), float(len(profits))), 'winning_sales': len(wins),
            'losing_sales': len(losses), 'trade_count': len(result.trades), 'turnover': _turnover(result),
            'profit_loss_ratio': _quotient(math.fsum(wins), math.fsum(losses)),
            'fees': math.fsum(row['commission'] + row['tax'] for row in result.trades)}


def _turnover(result):
    """Half of all that was bought and sold, by the mean equity, for a year."""
    traded = math.fsum(row['value'] for row in result.trades)
    part = _quotient(traded / 2, _mean(result.equity or None))
    return None if part is None else part * YEAR_DAYS / len(result.days)


# -- arithmetic in which None means: cannot be computed ------------------------------------------------------------
def _computable(function):
    """The function, with None for its value where an argument is None or the value is no finite real number."""
    @functools.wraps(function)
    def call(*arguments):
        if any(argument is None for argument in arguments):
            return None
        try:
            value = function(*arguments)
        except (ArithmeticError, ValueError):  # division by zero, overflow, infinity less infinity
            return None
        return value if value is not None and math.isfinite(value) else None
    return call


def _complete(values):
    """The list, or None where it is empty or something in it is missing."""
    return values if values and None not in values else None


@_computable
def _quotient(value, base):
    return value / base if base > 0 else None


@_computable
def _change(before, value):
    return value / before - 1 if before > 0 else None


@_computable
def _difference(value, other):
    return value - other


@_computable
def _mean(values):
    return math.fsum(values) / len(values)


@_computable
def _annualised(growth, days):
    return growth ** (YEAR_DAYS / float(days)) - 1 if growth >= 0 else None


@_computable
def _deviation(returns):
    """Standard deviation of a sample of daily returns, for a year."""
    mean = _mean(returns)
    return math.sqrt(YEAR_DAYS * math.fsum((value - mean) ** 2 for value in returns) / (len(returns) - 1))


@_computable
def _downside(returns):
    """Deviation of the days below the mean of the days so far, for a year."""
    means = [total / number for number, total in enumerate(itertools.accumulate(returns), 1)]
    return math.sqrt(YEAR_DAYS * math.fsum((value - mean) ** 2 for value, mean in zip(returns, means) if value < mean)
                     / len(returns))


@_computable
def _over_spread(value, spread):
    return value / spread if spread > _NO_SPREAD else None


@_computable
def _beta(own, market, spread):
    """Covariance by variance; `spread`: the market's volatility."""
    mean, market_mean = _mean(own), _mean(market)
    together = math.fsum((a - mean) * (b - market_mean) for a, b in zip(own, market))
    return together / math.fsum((b - market_mean) ** 2 for b in market) if spread > _NO_SPREAD else None


@_computable
def _alpha(annual, market_annual, beta):
    return annual - (RISK_FREE + beta * (market_annual - RISK_FREE))


@_computable
def _share_above_zero(values):
    return sum(value > 0 for value in values) / float(len(values))


def _differences(values, others):
    """The list of differences, or None where one of the lists is."""
    return None if values is None or others is None else [a - b for a, b in zip(values, others)]


# ======================================================================================================
# 21. REPORT - the run as lines for the terminal, as CSV files and as one HTML page
# ======================================================================================================
TABLE_ROWS = 500       # of a table in the page; the CSV file has them all
CURVE_POINTS = 3000    # of a curve over the run: more than pixels
PRICE_POINTS = 200000  # of all price charts together
PRICE_CHARTS = 300     # securities with a chart, those with the most traded first
SOURCE_CHARS = 200000
MESSAGES = 50          # in the page and the terminal

# Columns as (name, label, kind). Kinds as in METRIC_GROUPS, and text, time, price, profit (coloured), side, status.
_SECURITY = (('security', '代码', 'text'), ('name', '名称', 'text'))
REPORT_TABLES = OrderedDict([
    ('trades', (('time', '时间', 'time'), ('order_id', '委托号', 'text')) + _SECURITY + (
        ('side', '方向', 'side'), ('amount', '数量', 'count'), ('price', '成交价', 'price'), ('value', '成交额', 'money'),
        ('commission', '佣金', 'money'), ('tax', '税', 'money'), ('profit', '平仓盈亏', 'profit'))),
    ('orders', (('add_time', '时间', 'time'), ('order_id', '委托号', 'text')) + _SECURITY + (
        ('side', '方向', 'side'), ('amount', '数量', 'count'), ('filled', '成交', 'count'),
        ('order_price', '委托价', 'price'), ('avg_price', '成交均价', 'price'), ('status', '状态', 'status'),
        ('message', '说明', 'text'))),
    ('positions', (('date', '日期', 'date'),) + _SECURITY + (
        ('amount', '数量', 'count'), ('avg_cost', '成本价', 'price'), ('price', '现价', 'price'), ('value', '市值', 'money'),
        ('profit', '浮动盈亏', 'profit'), ('weight', '仓位', 'percent'))),
    ('dividends', (('date', '日期', 'date'),) + _SECURITY + (
        ('amount', '持股', 'count'), ('cash', '税后现金', 'money'), ('tax', '税', 'money'), ('shares', '送转股', 'count'))),
    ('monthly_returns', (('period', '月份', 'text'), ('returns', '策略', 'gain'), ('benchmark_returns', '基准', 'gain'),
                         ('excess_returns', '超额', 'gain'))),
    ('annual_returns', (('period', '年份', 'text'), ('returns', '策略', 'gain'), ('benchmark_returns', '基准', 'gain'),
                        ('excess_returns', '超额', 'gain'))),
])
DAILY_COLUMNS = ('date', 'equity', 'cash', 'positions_value', 'capital', 'returns', 'cumulative_returns', 'drawdown',
                 'exposure', 'benchmark', 'benchmark_returns', 'excess_cumulative_returns')


# -- values as text ------------------------------------------------------------------------------------------------
def _plain(value):
    """One line of text without control characters; '' for None."""
    return '' if value is None else printable(str(value).replace('\u3000', '  '))


def _digits(value, digits, sign=''):
    """A figure with thousands separators; what rounds to zero has no sign."""
    text = ('{:%s,.%df}' % (sign, digits)).format(value)
    return text if text.strip('+-0.,') else text.lstrip('+-')


def _moment_text(value):
    return value.strftime('%Y-%m-%d %H:%M:%S') if isinstance(value, datetime) else str(value)


def _price_text(value):
    """At least two decimals; the third, which funds have, where it is not zero."""
    text = _digits(value, 3)
    return text[:-1] if text.endswith('0') else text


_AS_TEXT = {
    'text': _plain, 'time': _moment_text, 'date': lambda value: str(_day_of(value)), 'price': _price_text,
    'count': lambda value: _digits(value, 0), 'money': lambda value: _digits(value, 2),
    'profit': lambda value: _digits(value, 2, '+'), 'number': lambda value: _digits(value, 3),
    'percent': lambda value: _digits(value * 100, 2) + '%', 'gain': lambda value: _digits(value * 100, 2, '+') + '%',
    'side': lambda value: {'BUY': '买入', 'SELL': '卖出'}.get(value, _plain(value)),
    'status': lambda value: _ORDER_STATUS.get(str(value), _plain(value)),
}
# JoinQuant's name of all filled is held, that of partly filled is filled: the row's figures tell, see _status_of.
_ORDER_STATUS = {'new': '未报', 'submitted': '已报', 'open': '已报', 'filling': '部成', 'filled': '已成', 'held': '已成',
                 'canceling': '待撤', 'partly_canceled': '部撤', 'canceled': '已撤', 'rejected': '废单',
                 'submit_unknown': '未知'}


def _day_of(value):
    return value.date() if isinstance(value, datetime) else value


def _missing(value):
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def shown_value(value, kind):
    """Text of a value of this kind; '-' where there is none."""
    return '-' if _missing(value) else _AS_TEXT[kind](value)


# -- terminal ------------------------------------------------------------------------------------------------------
def summary_lines(result, metrics):
    """Lines that tell a trader how the run went; `metrics` of compute_metrics()."""
    return _head_lines(result) + [''] + _metric_lines(metrics) + [
        '注意：' + _plain(text) for text in _some_messages(result)]


def _some_messages(result):
    more = len(result.messages) - MESSAGES
    return result.messages[:MESSAGES] + (['另有 %d 条提醒没有列出' % more] if more > 0 else [])


def _head_lines(result):
    lines = ['策略 %s：%s' % (_plain(result.name), _span_text(result))]
    if result.days:
        lines.append('投入 %s，期末总资产 %s，可用资金 %s' % tuple(
            shown_value(values[-1], 'money') for values in (result.capital, result.equity, result.cash)))
    return lines if result.finished else lines + ['回测没有走完：以下只到最后一个完整的交易日']


def _span_text(result):
    if not result.days:
        return '没有走完一个交易日'
    return '%s 至 %s，%d 个交易日' % (result.days[0], result.days[-1], len(result.days))


def _metric_lines(metrics):
    """The groups of metrics side by side."""
    columns = [[(label, shown_value(metrics.values[name], kind)) for name, label, kind in rows]
               for rows in METRIC_GROUPS.values()]
    rows = [sum(pairs, ()) for pairs in itertools.zip_longest(*columns, fillvalue=('', ''))]
    return format_table(sum(((group, '') for group in METRIC_GROUPS), ()), rows, '<>' * len(columns))


# -- CSV files -----------------------------------------------------------------------------------------------------
def write_csvs(result, metrics, directory):
    """Writes the run's tables into the directory, which is made if need be. The list of paths written.

    UTF-8 with a mark that spreadsheets know, lines end with \\r\\n, plain decimals, empty where there is no value; a
    text that a spreadsheet would take for a formula has an apostrophe before it. Raises ConfigError.
    """
    _make_directory(directory)
    tables = _csv_tables(result, metrics)
    paths = [_write_csv(os.path.join(directory, name + '.csv'), *tables[name]) for name in tables]
    if 'records' not in tables:
        _remove_file(os.path.join(directory, 'records.csv'))  # an earlier run's would pass for this one's
    return paths


def _csv_tables(result, metrics):
    """OrderedDict file name -> (names of the columns, rows)."""
    rows = {'trades': result.trades, 'orders': result.orders, 'positions': result.positions,
            'dividends': result.dividends, 'monthly_returns': metrics.monthly, 'annual_returns': metrics.annual}
    tables = OrderedDict([('daily_records', (DAILY_COLUMNS, _daily_rows(result, metrics))),
                          ('metrics', (('metric', 'label', 'value'), _metric_rows(metrics)))])
    for name, columns in REPORT_TABLES.items():
        tables[name] = _picked(rows[name], [column[0] for column in columns])
    if result.records:
        tables['records'] = _picked([dict(values, date=day) for day, values in result.records],
                                    ['date'] + _record_names(result))
    return tables


def _picked(rows, names):
    return names, ([row.get(name) for name in names] for row in rows)


def _daily_rows(result, metrics):
    own, market, excess = metrics.own, metrics.benchmark, metrics.excess
    nothing = [None] * len(result.days)
    return zip(result.days, result.equity, result.cash, result.positions_value, result.capital, own.returns,
               map(_gain_of, own.growth), own.drawdowns, metrics.exposure, result.benchmark or nothing,
               market.returns or nothing, map(_gain_of, excess.growth or nothing))


def _gain_of(growth):
    return _difference(growth, 1.0)


def _metric_rows(metrics):
    return [(name, label, metrics.values[name]) for rows in METRIC_GROUPS.values() for name, label, _ in rows]


def _record_names(result):
    """Names given to record(), in the order of their first use."""
    return list(OrderedDict((name, None) for _, values in result.records for name in values))


def _csv_cell(value):
    if _missing(value):
        return ''
    if isinstance(value, float):
        return format(Decimal('%.15g' % value), 'f')
    if isinstance(value, (int, date)):
        return _moment_text(value)
    return _harmless(_plain(value))


def _harmless(text):
    """Text that no spreadsheet takes for a formula."""
    return "'" + text if text.lstrip()[:1] in tuple('=+-@') else text


def _write_csv(path, names, rows):
    with _whole_file(path, 'utf-8-sig') as file:
        writer = csv.writer(file, lineterminator='\r\n')
        writer.writerow([_csv_cell(name) for name in names])
        for row in rows:
            writer.writerow([_csv_cell(value) for value in row])
    return path


@contextlib.contextmanager
def _whole_file(path, encoding):
    """A text file to write, which stands at `path` once all is in it and on disk; on an error nothing changes there."""
    temporary = '%s.%s.tmp' % (path, uuid.uuid4().hex)
    try:
        with open(temporary, 'x', encoding=encoding, newline='') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _make_directory(path):
    try:
        os.makedirs(path or os.curdir, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error)


def _remove_file(path):
    try:
        if os.path.exists(path):
            os.remove(path)
    except OSError as error:
        raise _cannot_write(path, error)


def _cannot_write(path, error):
    return ConfigError('写不了 %s：%s' % (path, error.strerror or error), '检查目录能不能写、磁盘有没有空间；'
                       '如果正用 Excel 打开着，请先关闭')


# -- HTML: all text is escaped unless it is Markup already ---------------------------------------------------------
_ESCAPES = str.maketrans({'&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;'})


class Markup(str):
    """Text that is HTML already."""


def _markup(value):
    return value if isinstance(value, Markup) else Markup(_plain(value).translate(_ESCAPES))


def _joined(parts):
    return Markup(''.join(map(_markup, parts)))


def _tag(name, *content, **attributes):
    """<name key="value">content</name>. In a key _ stands for -, and one at its end falls away (class_)."""
    given = ''.join(' %s="%s"' % (key.rstrip('_').replace('_', '-'), _markup(value))
                    for key, value in attributes.items() if value is not None)
    return Markup('<%s%s>%s</%s>' % (name, given, _joined(content), name))


def _lines_of(text):
    """Text of several lines, for an element that keeps them."""
    return Markup('\n'.join(_markup(line.expandtabs(4)) for line in str(text).replace('\r\n', '\n').split('\n')))


def write_html(result, metrics, path):
    """Writes the report, one page that needs nothing else. The path. Raises ConfigError."""
    _make_directory(os.path.dirname(path))
    with _whole_file(path, 'utf-8') as file:
        file.write(report_html(result, metrics))
    return path


def report_html(result, metrics):
    """The page as text."""
    return '<!DOCTYPE html>\n' + _tag('html', _page_head(result), _page_body(result, metrics), lang='zh-CN') + '\n'


def _page_head(result):
    """Nothing but this page's own script may run, and nothing may be fetched: the browser sees to it."""
    digest = base64.b64encode(hashlib.sha256(REPORT_SCRIPT.encode('utf-8')).digest()).decode('ascii')
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; " \
             "script-src 'sha256-%s'" % digest
    return _tag('head', Markup(
        '<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="%s">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">' % policy),
        _tag('title', '%s 回测报告' % _plain(result.name)), _tag('style', Markup(REPORT_STYLE)))


def _page_body(result, metrics):
    parts = [_page_top(result), _message_box(result), _tiles(result, metrics), _curve_section(result, metrics),
             _month_section(metrics), _metric_section(metrics), _price_section(result), _record_section(result),
             _table_section(result), _setting_section(result), _page_foot()]
    data = Markup(_json_text(_chart_data(result, metrics)))
    return _tag('body', _tag('main', *parts), _tag('script', data, type='application/json', id='data'),
                _tag('script', Markup(REPORT_SCRIPT)))


def _json_text(data):
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
    for char in '<>&\u2028\u2029':
        text = text.replace(char, '\\u%04x' % ord(char))
    return text


def _section(title, *content, **attributes):
    tools = attributes.pop('tools', '')
    return _tag('section', _tag('header', _tag('h2', title), tools), *content, **attributes)


# -- top of the page -----------------------------------------------------------------------------------------------
def _page_top(result):
    badge = '' if result.finished else _tag('span', '未走完', class_='badge')
    known = [result.params[key] for key in ('frequency', 'benchmark') if result.params.get(key)]
    return _tag('header', _tag('h1', result.name or '未命名策略', badge),
                _tag('p', ' · '.join([_span_text(result)] + list(map(str, known))), class_='quiet'), class_='top')


def _message_box(result):
    texts = _some_messages(result)
    if not result.finished:
        texts.insert(0, '回测没有走完（被中断或出错），下面的数字只到最后一个完整的交易日。')
    items = [_tag('li', _lines_of(text)) for text in texts]
    return _tag('ul', *items, class_='messages', role='note', aria_label='提示') if items else ''


def _tiles(result, metrics):
    values = metrics.values
    equity, capital = ((list_[-1] if list_ else None) for list_ in (result.equity, result.capital))
    return _tag('div', *[
        _tile('策略收益', values['returns'], 'gain', '年化 ' + shown_value(values['annual_returns'], 'gain')),
        _tile('基准收益', values['benchmark_returns'], 'gain',
              '年化 ' + shown_value(values['benchmark_annual_returns'], 'gain')),
        _tile('超额收益', values['excess_returns'], 'gain', '阿尔法 ' + shown_value(values['alpha'], 'number')),
        _tile('最大回撤', values['max_drawdown'], 'percent', _drawdown_span(values)),
        _tile('夏普比率', values['sharpe'], 'number', '波动率 ' + shown_value(values['volatility'], 'percent')),
        _tile('胜率', values['win_rate'], 'percent', '盈亏比 ' + shown_value(values['profit_loss_ratio'], 'number')),
        _tile('期末总资产', equity, 'money', '投入 ' + shown_value(capital, 'money')),
        _tile('成交笔数', values['trade_count'], 'count', '佣金与税 ' + shown_value(values['fees'], 'money')),
    ], class_='tiles')


def _tile(label, value, kind, below):
    return _tag('div', _tag('span', label, class_='label'),
                _tag('strong', shown_value(value, kind), class_=_tone(value, kind)), _tag('small', below),
                class_='tile')


def _tone(value, kind):
    """The class that colours gains red and losses green; None for anything else."""
    if kind not in ('gain', 'profit') or _missing(value) or not value:
        return None
    return 'up' if value > 0 else 'down'


def _drawdown_span(values):
    start, end = values['max_drawdown_start'], values['max_drawdown_end']
    return '%s 至 %s' % (start, end) if end else '没有回撤' if values['max_drawdown'] == 0 else '-'


# -- charts: empty frames here, filled by the script from _chart_data ----------------------------------------------
def _chart(name, title, description, tools='', note=''):
    """A frame for the script to draw in; title and description are for those who cannot see it."""
    drawing = _tag('svg', _tag('title', title, id=name + '-title'), _tag('desc', description, id=name + '-desc'),
                   role='img', aria_labelledby='%s-title %s-desc' % (name, name))
    plot = _tag('div', drawing, class_='plot', tabindex='0', role='group', aria_label=title + '，左右方向键移动光标')
    return _tag('figure', _tag('figcaption', _tag('h3', title), _tag('div', class_='legend'), tools), plot,
                _tag('p', note, class_='note'), id=name, class_='chart')


def _curve_section(result, metrics):
    if not result.days:
        return _section('收益', _tag('p', '没有走完一个交易日，没有曲线可画。', class_='quiet'))
    values = metrics.values
    charts = [
        _chart('equity', '累计收益', '%s。策略 %s，基准 %s。' % (
            _span_text(result), shown_value(values['returns'], 'gain'),
            shown_value(values['benchmark_returns'], 'gain')), _scale_switch(),
            '浅绿底：最大回撤的起止' if values['max_drawdown_end'] else ''),
        _chart('drawdown', '回撤', '最大回撤 %s，%s。' % (
            shown_value(values['max_drawdown'], 'percent'), _drawdown_span(values))),
        _chart('exposure', '仓位', '持仓市值占总资产的比例，期末 %s。' % shown_value(metrics.exposure[-1], 'percent'))]
    return _section('收益', _tag('noscript', _tag('p', '图由页面里的脚本绘制，请允许脚本运行。')), *charts,
                    tools=_range_list(result))


def _scale_switch():
    return _tag('div', _tag('button', '线性', type='button', data_scale='linear', aria_pressed='true'),
                _tag('button', '对数', type='button', data_scale='log', aria_pressed='false'),
                class_='switch', role='group', aria_label='纵轴')


def _range_list(result):
    """The list of years to look at; nothing for a run within one year."""
    years = sorted({day.year for day in result.days})
    if len(years) < 2:
        return ''
    options = [_tag('option', '全部', value='')] + [_tag('option', '%d 年' % year, value=year) for year in years]
    return _tag('label', '区间 ', _tag('select', *options, class_='range'), class_='pick')


def _price_section(result):
    codes = _charted_codes(result)
    if not codes:
        return ''
    names, counts = _names_of(result), _trade_counts(result)
    options = [_tag('option', '%s %s（%d 笔）' % (code, names.get(code, ''), counts.get(code, 0)), value=number)
               for number, code in enumerate(codes)]
    return _section('买卖点', _tag('label', '证券 ', _tag('select', *options, id='security'), class_='pick'),
                    _chart('price', '收盘价与成交', '所选证券的收盘价，以及买入、卖出的位置。',
                           note='▲ 买入、▼ 卖出，尖端在当日成交均价；光标移到那里可看明细。'),
                    _tag('p', _price_remark(result, codes), class_='note'), tools=_range_list(result))


def _price_remark(result, codes):
    """What the price charts leave out; '' if nothing."""
    dropped, longest = len(result.prices) - len(codes), max(len(result.prices[code][0]) for code in codes)
    return ''.join(['图只收成交额最大的 %d 只，另有 %d 只没有画出。' % (len(codes), dropped) if dropped else '',
                    '证券多，曲线只画了各段的最高、最低和有成交的日子。' if longest > _price_limit(codes) else ''])


def _price_limit(codes):
    return max(100, PRICE_POINTS // len(codes))


def _record_section(result):
    if not result.records:
        return ''
    names = _record_names(result)
    return _section('record 曲线', _chart('records', '策略记录的数值', '、'.join(map(_plain, names))),
                    tools=_range_list(result))


def _names_of(result):
    return {row['security']: row['name'] for rows in (result.positions, result.trades) for row in rows if row['name']}


def _trade_counts(result):
    return Counter(row['security'] for row in result.trades)


def _charted_codes(result):
    """Securities that get a price chart, the most traded first."""
    traded = Counter()
    for row in result.trades:
        traded[row['security']] += row['value']
    return sorted(result.prices, key=lambda code: -traded[code])[:PRICE_CHARTS]


# -- data of the charts --------------------------------------------------------------------------------------------
def _chart_data(result, metrics):
    """What the script draws. Curves are {at: [places in dates], series: [{y: [number or null], ...}]}."""
    calendar = _calendar(result)
    place = {day: number for number, day in enumerate(calendar)}
    span = [place[result.days[0]], place[result.days[-1]]] if result.days else [0, max(0, len(calendar) - 1)]
    charts = _run_charts(result, metrics, place) if result.days else []
    if result.records:
        charts.append(_record_chart(result, place))
    return {'dates': [str(day) for day in calendar], 'span': span, 'charts': charts,
            'prices': _price_charts(result, place)}


def _calendar(result):
    days = set(result.days).union(*[map(_day_of, dates) for dates, _ in result.prices.values()])
    days.update(_day_of(day) for day, _ in result.records)
    days.update(_day_of(row['time']) for row in result.trades)
    return sorted(days)


def _run_charts(result, metrics, place):
    own, market, excess = metrics.own, metrics.benchmark, metrics.excess
    kept = _extremes([curve for curve in (own.growth, market.growth, own.drawdowns, metrics.exposure) if curve],
                     CURVE_POINTS)
    at = [place[result.days[number]] for number in kept]

    def series(name, values, color='own', draw='line', **more):
        return dict(more, name=name, color=color, draw=draw, y=[_short(values[number]) for number in kept])

    growth = [series('策略', own.growth)]
    if market.growth:
        growth += [series('基准', market.growth, 'market'), series('超额', excess.growth, draw='none')]
    growth.append(dict(series('总资产', [None] * len(result.days), draw='none', format='money'),
                       y=[_short(result.equity[number], 15) for number in kept]))
    return [{'id': 'equity', 'at': at, 'axis': 'growth', 'series': growth, 'include': [0],
             'band': _drawdown_band(metrics, place)},
            {'id': 'drawdown', 'at': at, 'axis': 'percent', 'include': [0],
             'series': [series('回撤', own.drawdowns, 'down', 'area')]},
            {'id': 'exposure', 'at': at, 'axis': 'percent', 'include': [0, 1],
             'series': [series('仓位', metrics.exposure, 'quiet', 'area')]}]


def _drawdown_band(metrics, place):
    start, end = metrics.values['max_drawdown_start'], metrics.values['max_drawdown_end']
    return [place[start], place[end]] if end else None


def _record_chart(result, place):
    by_day = OrderedDict()
    for day, values in result.records:
        by_day.setdefault(_day_of(day), {}).update(values)
    days, names = sorted(by_day), _record_names(result)
    curves = [[by_day[day].get(name) for day in days] for name in names]
    kept = _extremes(curves, CURVE_POINTS)
    return {'id': 'records', 'at': [place[days[number]] for number in kept], 'axis': 'number', 'series': [
        {'name': _plain(name), 'color': 'pen%d' % (number % 8), 'draw': 'line',
         'y': [_short(curve[day]) for day in kept]} for number, (name, curve) in enumerate(zip(names, curves))]}


def _price_charts(result, place):
    codes, marks = _charted_codes(result), _trade_marks(result, place)
    return [_price_chart(result.prices[code], marks.get(code, []), place, _price_limit(codes)) for code in codes]


def _price_chart(prices, marks, place, limit):
    at, closes = [place[_day_of(day)] for day in prices[0]], prices[1]
    traded = {mark[0] for mark in marks}
    kept = sorted(set(_extremes([closes], limit)).union(n for n, number in enumerate(at) if number in traded))
    return {'id': 'price', 'at': [at[n] for n in kept], 'axis': 'price', 'marks': marks, 'series': [
        {'name': '收盘', 'color': 'own', 'draw': 'line', 'y': [_short(closes[n]) for n in kept]}]}


def _trade_marks(result, place):
    """dict security -> [[place of the day, 1 bought or -1 sold, shares, average price, profit]]."""
    sums = OrderedDict()
    for row in result.trades:
        key = row['security'], place[_day_of(row['time'])], 1 if row['side'] == 'BUY' else -1
        amount, value, profit = sums.get(key, (0, 0.0, 0.0))
        sums[key] = amount + row['amount'], value + row['amount'] * row['price'], profit + (row['profit'] or 0.0)
    marks = {}
    for (code, day, side), (amount, value, profit) in sums.items():
        marks.setdefault(code, []).append([day, side, amount, _short(_quotient(value, amount)), _short(profit, 12)])
    return marks


def _short(value, digits=8):
    """The figure in that many digits, an int where it is whole; None for what is no number."""
    if _missing(value):
        return None
    rounded = float('%.*g' % (digits, value))
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _extremes(curves, limit):
    """Places to keep of curves of one length, about `limit` at most: the ends, and each stretch's highs and lows."""
    size = len(curves[0])
    if size <= limit:
        return list(range(size))
    stretches, kept = max(1, limit // (2 * len(curves))), {0, size - 1}
    for stretch in range(stretches):
        places = range(stretch * size // stretches, (stretch + 1) * size // stretches)
        for curve in curves:
            there = [place for place in places if not _missing(curve[place])]
            kept.update([min(there, key=curve.__getitem__), max(there, key=curve.__getitem__)] if there else [])
    return sorted(kept)


# -- months and metrics --------------------------------------------------------------------------------------------
def _month_section(metrics):
    if not metrics.monthly:
        return ''
    months = {row['period']: row for row in metrics.monthly}
    titles = ['年份', '全年', '基准', '超额'] + ['%d月' % month for month in range(1, 13)]
    heat = _tag('table', _tag('caption', '策略每年与每月的收益，百分比'),
                _tag('thead', _tag('tr', *[_tag('th', title, scope='col') for title in titles])),
                _tag('tbody', *[_year_row(year, months) for year in metrics.annual]), class_='heat')
    return _section('年度与月度收益（%）', _scroll('年度与月度收益', heat),
                    _folded('各月与基准', 'monthly_returns', metrics.monthly))


def _year_row(year, months):
    cells = [months.get('%s-%02d' % (year['period'], month)) for month in range(1, 13)]
    return _tag('tr', _tag('th', year['period'], scope='row'), _heat_cell(year, (0.05, 0.1, 0.2, 0.4)),
                *[_percent_cell(year[name]) for name in ('benchmark_returns', 'excess_returns')]
                + [_heat_cell(row, (0.01, 0.03, 0.06, 0.1)) for row in cells])


def _percent_cell(value):
    return _tag('td', '-' if _missing(value) else _digits(value * 100, 1, '+'), class_=_tone(value, 'gain'))


def _heat_cell(row, limits):
    """A cell the stronger coloured the more of the limits its return exceeds."""
    value = row and row['returns']
    if _missing(value):
        return _tag('td')
    level = 1 + sum(abs(value) > limit for limit in limits)
    hint = '%s 策略 %s 基准 %s' % (row['period'], shown_value(value, 'gain'),
                               shown_value(row['benchmark_returns'], 'gain'))
    tone = _tone(value, 'gain')
    return _tag('td', _digits(value * 100, 1, '+'), class_='%s%d' % (tone, level) if tone else None, title=hint)


def _metric_section(metrics):
    tables = [_tag('table', _tag('caption', group), _tag('tbody', *[
        _tag('tr', _tag('th', label, scope='row'), _cell(metrics.values[name], kind)) for name, label, kind in rows]))
        for group, rows in METRIC_GROUPS.items()]
    return _section('指标', _tag('div', *tables, class_='columns'))


# -- tables --------------------------------------------------------------------------------------------------------
def _table_section(result):
    last = [row for row in result.positions if result.days and _day_of(row['date']) == result.days[-1]]
    held = _folded('期末持仓', 'positions', last, is_open=True, columns=REPORT_TABLES['positions'][1:])
    return _section('明细', held, _folded('成交', 'trades', result.trades), _folded('委托', 'orders', result.orders),
                    _folded('分红送转', 'dividends', result.dividends))


def _folded(title, name, rows, is_open=False, columns=None):
    """A table that opens on a click; of many rows the last ones."""
    shown = rows[-TABLE_ROWS:]
    count = '%s 行' % _digits(len(rows), 0)
    if len(rows) > len(shown):
        count = '最后 %d 行，共 %s；全部在 %s.csv' % (len(shown), count, name)
    table = _table(title, columns or REPORT_TABLES[name], shown)
    body = _scroll(title, table) if rows else _tag('p', '没有', class_='quiet')
    return _tag('details', _tag('summary', title, ' ', _tag('small', count)), body, open='open' if is_open else None)


def _scroll(title, table):
    """A box that scrolls by itself, so that the page need not; reachable by keyboard."""
    return _tag('div', table, class_='scroll', tabindex='0', role='region', aria_label=title)


def _table(title, columns, rows):
    head = [_tag('th', label, scope='col', class_=_alignment(kind)) for _, label, kind in columns]
    body = [_tag('tr', *[_cell(_value_of(row, name), kind) for name, _, kind in columns]) for row in rows]
    return _tag('table', _tag('caption', title), _tag('thead', _tag('tr', *head)), _tag('tbody', *body))


def _value_of(row, name):
    """A JoinQuant order that is `filled` is filled in part."""
    value = row.get(name)
    return 'filling' if name == 'status' and str(value) == 'filled' and row['filled'] < row['amount'] else value


def _cell(value, kind):
    tone = {'BUY': 'up', 'SELL': 'down'}.get(value) if kind == 'side' else _tone(value, kind)
    classes = ' '.join(filter(None, [_alignment(kind), tone]))
    return _tag('td', shown_value(value, kind), class_=classes or None)


def _alignment(kind):
    return None if kind in ('text', 'side', 'status', 'time', 'date') else 'figure'


def _setting_section(result):
    rows = [_tag('tr', _tag('th', name, scope='row'), _tag('td', value)) for name, value in result.params.items()]
    parts = []
    if rows:
        parts.append(_tag('details', _tag('summary', '参数'), _scroll('参数', _tag(
            'table', _tag('caption', '参数'), _tag('tbody', *rows), class_='settings'))))
    if result.source:
        cut = '（只显示前 %d 个字符）' % SOURCE_CHARS if len(result.source) > SOURCE_CHARS else ''
        parts.append(_tag('details', _tag('summary', '策略源码' + cut), _tag(
            'pre', _lines_of(result.source[:SOURCE_CHARS]), tabindex='0', role='region', aria_label='策略源码')))
    return _section('设置', *parts) if parts else ''


def _page_foot():
    return _tag('footer', *[_tag('p', text) for text in _FOOTNOTES])


_FOOTNOTES = (
    '颜色按 A 股习惯：红色为涨、盈利、买入，绿色为跌、亏损、卖出；正负号同时写明。',
    '口径：累计收益 = 总资产 / 投入资金 - 1（投入资金含中途 inout_cash）；一年按 %d 个交易日，无风险利率 %d%%；回撤从历史最高的净值算起；'
    '胜率与盈亏比按卖出成交逐笔计；换手率 = 买卖成交额之和的一半 / 平均总资产，折成一年；算不出的指标显示为 -。'
    % (YEAR_DAYS, RISK_FREE * 100),
    '完整数据在同一次回测写出的 CSV 文件里：daily_records、trades、orders、positions、metrics 等。')


# -- look and behaviour of the page --------------------------------------------------------------------------------
REPORT_STYLE = '''
:root {
  --page: #f5f6f8; --panel: #ffffff; --text: #1b2430; --quiet: #566171; --rule: #dfe3e9; --grid: #e9ecf0;
  --focus: #1f5fd6; --own: #1f5fd6; --market: #b26a00; --up: #c4302b; --down: #0f7a53; --warn: #fff4d6;
  --up1: #fdecea; --up2: #fad2ce; --up3: #f4b1ab; --up4: #ec8f87; --up5: #e37067;
  --down1: #e5f4ec; --down2: #c6e7d6; --down3: #9ed5b9; --down4: #74c19b; --down5: #4dab7f;
  --pen0: #1f5fd6; --pen1: #b26a00; --pen2: #7b3fb5; --pen3: #0b7f8c; --pen4: #b0307a; --pen5: #5c6b1a;
  --pen6: #6b4a35; --pen7: #4a5564;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11151b; --panel: #191f27; --text: #e7ebf0; --quiet: #9ba7b6; --rule: #2c3542; --grid: #252d38;
    --focus: #78aeff; --own: #78aeff; --market: #e6b35a; --up: #ff837a; --down: #4fc78e; --warn: #3a3116;
    --up1: #33211f; --up2: #4d2825; --up3: #6b302c; --up4: #8b3732; --up5: #ad3f38;
    --down1: #17291f; --down2: #183828; --down3: #194a33; --down4: #1a5e3f; --down5: #1b744c;
    --pen0: #78aeff; --pen1: #e6b35a; --pen2: #c79bf2; --pen3: #5cc8d4; --pen4: #f08cc0; --pen5: #b9c96b;
    --pen6: #cfa88c; --pen7: #a9b5c4;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text); font-variant-numeric: tabular-nums;
  font: 14px/1.5 -apple-system, "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 40px; }
h1, h2, h3, p, ul, figure { margin: 0; }
h1 { font-size: 22px; line-height: 1.3; overflow-wrap: anywhere; }
h2 { font-size: 15px; }
h3 { font-size: 13px; font-weight: 600; }
.quiet, small, footer, caption { color: var(--quiet); }
.up { color: var(--up); }
.down { color: var(--down); }
.badge { margin-left: 10px; padding: 1px 8px; border: 1px solid; border-radius: 9px; color: var(--up);
  font-size: 12px; font-weight: 400; vertical-align: middle; white-space: nowrap; }
.messages { margin-top: 12px; padding: 8px 12px 8px 28px; border-radius: 8px; background: var(--warn);
  white-space: pre-wrap; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 1px; }

.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; margin-top: 16px; overflow: hidden;
  border: 1px solid var(--rule); border-radius: 8px; background: var(--rule); }
.tile { min-width: 0; padding: 10px 14px; background: var(--panel); }
.tile > * { display: block; }
.tile .label { color: var(--quiet); font-size: 12px; }
.tile strong { font-size: 21px; font-weight: 600; line-height: 1.35; letter-spacing: -0.01em; overflow-wrap: anywhere; }
.tile small { font-size: 12px; }

section { margin-top: 16px; padding: 12px 16px 14px; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--panel); }
section > header, figcaption { display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between;
  gap: 4px 12px; min-height: 28px; }
select, button { padding: 3px 8px; border: 1px solid var(--rule); border-radius: 6px; background: var(--panel);
  color: inherit; font: inherit; font-size: 13px; }
select { max-width: 100%; }
button { cursor: pointer; }
.pick { display: inline-flex; gap: 6px; align-items: center; max-width: 100%; color: var(--quiet); font-size: 13px;
  white-space: nowrap; }
.pick select { min-width: 0; color: var(--text); }
.switch { display: flex; }
.switch button { border-radius: 0; color: var(--quiet); }
.switch button:first-child { border-radius: 6px 0 0 6px; }
.switch button:last-child { border-left: 0; border-radius: 0 6px 6px 0; }
.switch [aria-pressed=true] { background: var(--grid); color: var(--text); font-weight: 600; }

.chart { margin-top: 6px; }
.legend { display: flex; flex: 1; flex-wrap: wrap; gap: 0 14px; align-items: center; min-height: 24px;
  font-size: 12px; }
.legend time { min-width: 10ch; color: var(--quiet); }
.legend .series { display: inline-flex; gap: 5px; align-items: center; padding: 2px 0; border: 0; background: none;
  font-size: 12px; }
.legend .series::before { content: ""; width: 12px; height: 3px; border-radius: 2px; background: var(--ink); }
.legend .bare::before { display: none; }
.legend [aria-pressed=false] { opacity: 0.5; text-decoration: line-through; }
.legend output { min-width: 7ch; font-weight: 600; text-align: left; }
.note { color: var(--quiet); font-size: 12px; }
#price .plot + .note { min-height: 18px; }
.plot { position: relative; touch-action: pan-y; cursor: crosshair; border-radius: 4px; }
.plot svg { display: block; width: 100%; height: 110px; pointer-events: none; }
#equity svg, #price svg { height: 300px; }
#records svg { height: 220px; }
svg text { fill: var(--quiet); font-size: 11px; }
.grid { stroke: var(--grid); }
.zero { stroke: var(--quiet); stroke-opacity: 0.5; }
.curve { fill: none; stroke: var(--ink); stroke-width: 1.5; stroke-linejoin: round; }
.area { fill: var(--ink); fill-opacity: 0.22; }
.band { fill: var(--down); fill-opacity: 0.08; }
.cross { stroke: var(--quiet); stroke-dasharray: 3 3; }
.dot { fill: var(--ink); stroke: var(--panel); }
.bought { fill: var(--up); stroke: var(--panel); stroke-width: 0.5; }
.sold { fill: var(--down); stroke: var(--panel); stroke-width: 0.5; }

.scroll { position: relative; max-height: 420px; margin-top: 6px; overflow: auto; }
table { width: 100%; border-collapse: collapse; font-size: 13px; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--grid); text-align: left; white-space: nowrap; }
th { color: var(--quiet); font-weight: 400; }
thead th { position: sticky; top: 0; z-index: 1; background: var(--panel); }
.figure { text-align: right; }
.columns { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 28px; align-items: start; }
.columns caption { position: static; width: auto; height: auto; clip-path: none; padding: 4px 0; font-size: 13px;
  font-weight: 600; text-align: left; }
.columns th, .columns td { padding: 4px 0; }
.columns td { text-align: right; }
.heat { border-spacing: 2px; border-collapse: separate; }
.heat th, .heat td { padding: 4px 6px; border: 0; border-radius: 3px; text-align: right; }
.heat th:first-child { position: sticky; left: 0; z-index: 2; background: var(--panel); text-align: left; }
.heat td:nth-child(2) { font-weight: 600; }
.settings td { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: 8px; }
summary { padding: 3px 0; cursor: pointer; font-weight: 600; }
summary small { font-weight: 400; }
pre { max-height: 480px; margin: 6px 0 0; padding: 10px 12px; overflow: auto; border-radius: 6px;
  background: var(--page); font: 12px/1.55 ui-monospace, Consolas, Menlo, monospace; tab-size: 4; }
footer { margin-top: 20px; font-size: 12px; }
footer p + p { margin-top: 4px; }
@media (max-width: 760px) {
  main { padding: 14px 10px 28px; }
  section { padding: 10px 12px 12px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tile { padding: 8px 10px; }
  .tile strong { font-size: 18px; }
  .columns { grid-template-columns: 1fr; gap: 10px; }
  .legend { flex-basis: 100%; order: 1; }
  #price .plot + .note { min-height: 36px; }
  #equity svg, #price svg { height: 230px; }
  .plot svg { height: 90px; }
  select, button { padding: 6px 10px; }
}
@media print {
  .pick, .switch { display: none; }
  .scroll, pre { max-height: none; }
  section { break-inside: avoid; }
}
''' + '\n'.join(
    ['.heat .%s%d { background: var(--%s%d); }' % (tone, level, tone, level)
     for tone in ('up', 'down') for level in range(1, 6)]
    + ['.ink-%s { --ink: var(--%s); }' % (name, name)
       for name in ['own', 'market', 'down', 'quiet'] + ['pen%d' % number for number in range(8)]]) + '\n'

REPORT_SCRIPT = '''
'use strict';
(() => {
const DATA = JSON.parse(document.getElementById('data').textContent);
const SVG = 'http://www.w3.org/2000/svg';
const EDGE = {left: 54, right: 8, top: 8, bottom: 20};   // pixels around the drawing
const charts = [];
const view = {from: DATA.span[0], to: DATA.span[1]};     // places in DATA.dates, as is the cursor
let cursor = null;

// -- figures as text
const figure = (value, most, least = 0) =>
  value.toLocaleString('zh-CN', {maximumFractionDigits: most, minimumFractionDigits: least});
const signed = (value, most, least) => (value > 0 ? '+' : '') + figure(value + 0, most, least);
const FORMATS = {
  growth: value => signed(value * 100, 2, 2) + '%',
  percent: value => figure(value * 100, 2, 2) + '%',
  money: value => figure(value, 2, 2),
  price: value => figure(value, 3, 2),
  number: value => value.toLocaleString('zh-CN', {maximumSignificantDigits: 6}),
};
const SHORT_FORMATS = {
  growth: value => figure(value * 100, 2) + '%',
  percent: value => figure(value * 100, 2) + '%',
  price: value => figure(value, 3),
  number: value => value.toLocaleString('zh-CN', {notation: 'compact', maximumSignificantDigits: 4}),
};

// -- small tools
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function draw(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function element(parent, name, className, text = '') {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return parent.appendChild(node);
}

// The first position whose place is not before `place`; `at` ascends.
function firstFrom(at, place) {
  let low = 0, high = at.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at[middle] < place) low = middle + 1; else high = middle;
  }
  return low;
}

function nearest(at, place, low, high) {
  const next = clamp(firstFrom(at, place), low, high), before = Math.max(low, next - 1);
  return place - at[before] < at[next] - place ? before : next;
}

// -- ticks
function niceStep(span, count) {
  const power = 10 ** Math.floor(Math.log10(span / count));
  return [1, 2, 2.5, 5, 10].find(factor => factor * power >= span / count * 0.999) * power;
}

function linearTicks(low, high, count) {
  const step = niceStep(high - low, count), ticks = [];
  for (let number = Math.ceil(low / step); number * step <= high; number++) ticks.push(number * step);
  return ticks;
}

// Returns at which one yuan became 1, 2 or 5 times a power of ten; for a narrow range even steps.
function logTicks(low, high, count) {
  if ((1 + high) / (1 + low) < 6) return linearTicks(low, high, count);
  const ticks = [];
  for (let power = Math.floor(Math.log10(1 + low)); 10 ** power <= 1 + high; power++)
    for (const factor of [1, 2, 5]) ticks.push(factor * 10 ** power - 1);
  return ticks.filter(tick => tick >= low && tick <= high);
}

// Places where a year, month or day begins, as many as there is room for; dates are cut to `length` characters.
function dateTicks(from, to, room) {
  const length = to - from > 600 ? 4 : to - from > 40 ? 7 : 10, found = [];
  const opens = place => place === 0 || DATA.dates[place].slice(0, length) !== DATA.dates[place - 1].slice(0, length);
  for (let place = from; place <= to; place++) if (opens(place)) found.push(place);
  const unit = place => Number(length === 4 ? DATA.dates[place].slice(0, 4) : DATA.dates[place].slice(5, 7) - 1);
  const wanted = found.length / room;
  if (length === 10) return found.filter((_, number) => number % Math.ceil(wanted) === 0);
  const step = [1, 2, 3, 6, 12, 24].find(size => size >= wanted) || 60;
  return found.filter(place => unit(place) % step === 0);
}

function dateLabel(place, from, to) {
  const text = DATA.dates[place];
  return to - from > 600 ? text.slice(0, 4) : to - from > 40 ? text.slice(0, 7) : text.slice(5);
}

// -- a chart: curves over dates, a legend that reads them out at the cursor
class Chart {
  constructor(spec) {
    this.root = document.getElementById(spec.id);
    this.plot = this.root.querySelector('.plot');
    this.legend = this.root.querySelector('.legend');
    this.note = this.root.querySelector('.note');
    this.hint = this.note.textContent;
    this.svg = this.root.querySelector('svg');
    this.layer = draw(this.svg, 'g', {});
    this.hidden = new Set();
    this.log = false;
    this.listen();
    this.show(spec);
  }

  show(spec) {
    this.spec = spec;
    this.buildLegend();
    this.draw();
  }

  // Legend: the date, and a button for each curve that can be switched off.
  buildLegend() {
    this.legend.textContent = '';
    this.time = element(this.legend, 'time', '');
    const switchable = this.spec.series.filter(series => series.draw === 'line').length > 1;
    this.outputs = this.spec.series.map(series => this.legendItem(series, switchable && series.draw === 'line'));
  }

  legendItem(series, switchable) {
    const look = series.draw === 'none' ? 'series bare' : 'series ink-' + series.color;
    const item = element(this.legend, switchable ? 'button' : 'span', look, series.name);
    if (switchable) {
      item.type = 'button';
      item.setAttribute('aria-pressed', String(!this.hidden.has(series.name)));
      item.addEventListener('click', () => this.toggle(series.name, item));
    }
    return element(item, 'output', '');
  }

  toggle(name, button) {
    if (!this.hidden.delete(name)) this.hidden.add(name);
    button.setAttribute('aria-pressed', String(!this.hidden.has(name)));
    this.draw();
  }

  // -- geometry
  draw() {
    const at = this.spec.at;
    this.low = firstFrom(at, view.from);
    this.high = firstFrom(at, view.to + 1) - 1;
    this.layer.textContent = '';
    this.overlay = null;
    this.width = this.svg.clientWidth;
    this.height = this.svg.clientHeight;
    this.empty = this.low > this.high || this.width <= EDGE.left + EDGE.right;
    if (!this.empty) {
      this.measure();
      this.drawGrid();
      this.spec.series.forEach((series, number) => this.drawCurve(series, number));
      this.drawMarks();
    }
    this.readOut();
  }

  measure() {
    const at = this.spec.at, byRun = this.spec.id !== 'price';
    this.from = byRun ? view.from : at[this.low];
    this.to = byRun ? view.to : at[this.high];
    this.values = this.spec.series.map(series => this.valuesOf(series));
    this.scaleValues();
  }

  // What the curve shows between low and high; growth counts from what stood before the view.
  valuesOf(series) {
    const cut = series.y.slice(this.low, this.high + 1);
    if (this.spec.axis !== 'growth' || series.format) return cut;
    const before = this.low ? series.y[this.low - 1] : 1;
    return cut.map(value => value === null || !(before > 0) ? null : value / before - 1);
  }

  isDrawn(number) {
    const series = this.spec.series[number];
    return series.draw !== 'none' && !this.hidden.has(series.name);
  }

  scaleValues() {
    const shown = this.values.filter((_, number) => this.isDrawn(number));
    const all = [].concat(...shown, this.spec.include || []).filter(value => value !== null);
    let low = all.length ? all.reduce((a, b) => Math.min(a, b)) : 0;
    let high = all.length ? all.reduce((a, b) => Math.max(a, b)) : 1;
    if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.05, high + Math.abs(high || 1) * 0.05];
    this.logged = this.log && low > -1;
    const ends = [this.onScale(low), this.onScale(high)], room = (ends[1] - ends[0]) * 0.03;
    this.bottom = this.spec.include && low === 0 ? ends[0] : ends[0] - room;
    this.top = this.spec.include && high === 0 ? ends[1] : ends[1] + room;
    this.range = [low, high];
  }

  onScale(value) {
    return this.logged ? Math.log1p(value) : value;
  }

  x(place) {
    const room = this.width - EDGE.left - EDGE.right;
    return EDGE.left + (this.to > this.from ? (place - this.from) / (this.to - this.from) : 0.5) * room;
  }

  y(value) {
    const room = this.height - EDGE.top - EDGE.bottom;
    return EDGE.top + (this.top - this.onScale(value)) / (this.top - this.bottom) * room;
  }

  // -- drawing
  drawGrid() {
    const [low, high] = this.range, count = Math.max(2, Math.round(this.height / 55));
    for (const tick of (this.logged ? logTicks : linearTicks)(low, high, count)) {
      const y = this.y(tick), zero = Math.abs(tick) < 1e-12, look = zero ? 'zero' : 'grid';
      draw(this.layer, 'line', {x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y, class: look});
      draw(this.layer, 'text', {x: EDGE.left - 6, y: y + 4, 'text-anchor': 'end'},
        SHORT_FORMATS[this.spec.axis](zero ? 0 : tick));
    }
    for (const place of dateTicks(this.from, this.to, (this.width - EDGE.left) / 70)) this.drawDate(place);
    if (this.spec.band) this.drawBand(...this.spec.band.map(place => clamp(place, this.from, this.to)));
  }

  drawDate(place) {
    const x = this.x(place), bottom = this.height - EDGE.bottom;
    draw(this.layer, 'line', {x1: x, x2: x, y1: EDGE.top, y2: bottom, class: 'grid'});
    draw(this.layer, 'text', {x: clamp(x, EDGE.left, this.width - 24), y: this.height - 5, 'text-anchor': 'middle'},
      dateLabel(place, this.from, this.to));
  }

  drawBand(from, to) {
    if (to > from) draw(this.layer, 'rect', {x: this.x(from), width: this.x(to) - this.x(from), y: EDGE.top,
      height: this.height - EDGE.top - EDGE.bottom, class: 'band'});
  }

  drawCurve(series, number) {
    if (!this.isDrawn(number)) return;
    const points = [];
    this.values[number].forEach((value, position) => {
      if (value !== null)
        points.push([this.x(this.spec.at[this.low + position]).toFixed(1), this.y(value).toFixed(1)]);
    });
    if (points.length === 1) this.drawDot(this.layer, number, points[0]);
    if (points.length < 2) return;
    const path = 'M' + points.map(point => point.join(' ')).join('L'), floor = this.y(0).toFixed(1);
    if (series.draw === 'area')
      draw(this.layer, 'path', {d: path + 'L' + points[points.length - 1][0] + ' ' + floor + 'L' + points[0][0] + ' '
        + floor + 'Z', class: 'area ink-' + series.color});
    draw(this.layer, 'path', {d: path, class: 'curve ink-' + series.color});
  }

  drawDot(parent, number, [x, y]) {
    draw(parent, 'circle', {cx: x, cy: y, r: 3.5, class: 'dot ink-' + this.spec.series[number].color});
  }

  // Triangles that point at the price: bought from below, sold from above.
  drawMarks() {
    for (const side of [1, -1]) {
      const path = (this.spec.marks || [])
        .filter(mark => mark[1] === side && mark[0] >= this.from && mark[0] <= this.to)
        .map(mark => `M${this.x(mark[0]).toFixed(1)} ${this.y(mark[3]).toFixed(1)}l-4.5 ${8 * side}h9z`).join('');
      if (path) draw(this.layer, 'path', {d: path, class: side === 1 ? 'bought' : 'sold'});
    }
  }

  // -- cursor
  readOut() {
    if (this.overlay) this.overlay.remove();
    this.overlay = draw(this.layer, 'g', {});
    if (this.empty) return this.sayNothing();
    const place = cursor === null ? this.spec.at[this.high] : cursor;
    const position = nearest(this.spec.at, place, this.low, this.high);
    this.time.textContent = DATA.dates[this.spec.at[position]];
    this.outputs.forEach((output, number) => this.readCurve(output, number, position));
    if (this.spec.marks) this.note.textContent = this.tradesAt(this.spec.at[position]) || this.hint;
    if (cursor !== null) this.drawCursor(position);
  }

  sayNothing() {
    this.time.textContent = '这个区间没有数据';
    for (const output of this.outputs) output.textContent = '';
    this.note.textContent = this.hint;
  }

  readCurve(output, number, position) {
    const value = this.values[number][position - this.low];
    const format = FORMATS[this.spec.series[number].format || this.spec.axis];
    output.textContent = value === null ? '-' : format(value);
  }

  tradesAt(place) {
    return this.spec.marks.filter(mark => mark[0] === place).map(([, side, amount, price, profit]) =>
      (side === 1 ? '▲ 买入 ' : '▼ 卖出 ') + figure(amount, 0) + ' 股，均价 ' + FORMATS.price(price)
      + (side === 1 ? '' : '，盈亏 ' + signed(profit, 2, 2))).join('；');
  }

  drawCursor(position) {
    const x = this.x(this.spec.at[position]);
    draw(this.overlay, 'line', {x1: x, x2: x, y1: EDGE.top, y2: this.height - EDGE.bottom, class: 'cross'});
    this.values.forEach((values, number) => {
      const value = values[position - this.low];
      if (value !== null && this.isDrawn(number)) this.drawDot(this.overlay, number, [x, this.y(value)]);
    });
  }

  // -- pointer and keys
  listen() {
    const follow = event => this.moveTo(event.clientX);
    this.plot.addEventListener('pointermove', follow);
    this.plot.addEventListener('pointerdown', follow);
    this.plot.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') setCursor(null); });
    this.plot.addEventListener('keydown', event => this.onKey(event));
    for (const button of this.root.querySelectorAll('[data-scale]'))
      button.addEventListener('click', () => this.setScale(button.dataset.scale));
  }

  moveTo(clientX) {
    if (this.empty) return;
    const part = (clientX - this.svg.getBoundingClientRect().left - EDGE.left) / (this.width - EDGE.left - EDGE.right);
    const place = this.from + clamp(part, 0, 1) * (this.to - this.from);
    const mark = this.markNear(place);
    setCursor(mark === null ? this.spec.at[nearest(this.spec.at, place, this.low, this.high)] : mark);
  }

  // The day of a trade at most 4 pixels away: a pixel may stand for several days.
  markNear(place) {
    const days = (this.spec.marks || []).map(mark => mark[0]).filter(day => day >= this.from && day <= this.to);
    const near = days.filter(day => Math.abs(this.x(day) - this.x(place)) <= 4);
    return near.length ? near.reduce((best, day) => Math.abs(day - place) < Math.abs(best - place) ? day : best) : null;
  }

  onKey(event) {
    if (event.key === 'Escape') return setCursor(null);
    const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity}[event.key];
    if (step === undefined || this.empty) return;
    event.preventDefault();
    const at = this.spec.at, here = nearest(at, cursor === null ? at[this.high] : cursor, this.low, this.high);
    setCursor(at[clamp(here + step, this.low, this.high)]);
  }

  setScale(name) {
    this.log = name === 'log';
    for (const button of this.root.querySelectorAll('[data-scale]'))
      button.setAttribute('aria-pressed', String(button.dataset.scale === name));
    this.draw();
    this.note.textContent = this.log && !this.logged ? '有曲线到了零或以下，只能用线性轴。' : this.hint;
  }
}

// -- the page
function setCursor(place) {
  if (place === cursor) return;
  cursor = place;
  for (const chart of charts) chart.readOut();
}

function drawAll() {
  for (const chart of charts) chart.draw();
}

// A year, or the whole run for ''. Every list shows the same.
function setRange(year) {
  const years = DATA.dates.map(day => day.slice(0, 4));
  view.from = year ? Math.max(DATA.span[0], years.indexOf(year)) : DATA.span[0];
  view.to = year ? Math.min(DATA.span[1], years.lastIndexOf(year)) : DATA.span[1];
  cursor = null;
  for (const list of document.querySelectorAll('.range')) list.value = year;
  drawAll();
}

for (const spec of DATA.charts) charts.push(new Chart(spec));
for (const list of document.querySelectorAll('.range')) list.addEventListener('change', () => setRange(list.value));
if (DATA.prices.length) {
  const chart = new Chart(DATA.prices[0]), list = document.getElementById('security');
  charts.push(chart);
  list.addEventListener('change', () => chart.show(DATA.prices[Number(list.value)]));
}
let width = document.body.clientWidth;
new ResizeObserver(() => {
  if (document.body.clientWidth !== width) requestAnimationFrame(drawAll);
  width = document.body.clientWidth;
}).observe(document.body);
})();
'''


# ======================================================================================================
# 23. JOINQUANT - a strategy in JoinQuant's own simulated trading works on the remote account
# ======================================================================================================
# JoinQuant starts a process for each task that is due, reruns the strategy's module and puts back what it pickled
# after the last one: g, the context's own attributes, the module's globals. Nothing of ours may stand in such a
# pickle, as it is read before process_initialize comes to install us again. Hence every __reduce__ of this section.
_JQ_NAMES = ('order', 'order_value', 'order_target', 'order_target_value', 'cancel_order', 'get_open_orders',
             'get_orders', 'get_trades')
_FOREIGN_SUFFIXES = ('.CCFX', '.XSGE', '.XDCE', '.XZCE', '.XINE', '.GFEX', '.OF')  # futures, funds off the exchange
_JQ_REFUSED = ('batch_submit_orders', 'inout_cash', 'transfer_cash', 'set_subportfolios', 'margincash_open',
               'margincash_close', 'margincash_direct_refund', 'marginsec_open', 'marginsec_close',
               'marginsec_direct_refund', 'purchase', 'redeem')
_MISSING = object()
_jq_install = None  # the JqInstall of this process


class JqNotSupported(NotSupported, NotImplementedError):
    """What the remote account cannot do for a JoinQuant strategy; nothing was sent. Code NOT_SUPPORTED."""


class JqOrderStatus(enum.Enum):
    """JoinQuant's OrderStatus, where the strategy has none of its own. Equal to its name and to members so named."""

    new, open, filled, canceled, rejected, held = 8, 0, 1, 2, 3, 4

    def __str__(self):
        return self.name

    def __eq__(self, other):
        return getattr(other, 'name', other) == self.name

    def __hash__(self):
        return hash(self.name)

    def __reduce_ex__(self, protocol):
        return str, (self.name,)


def install_jq_compat(namespace, context=None, host=None, token=None, port=58620, account_key=None,
                      sub_account_id=None, tls_cert=None, wait_timeout=16, starting_cash=None, cache_seconds=1.0,
                      max_lag=None, **connection):
    """In process_initialize: install_jq_compat(globals(), context=context, host=..., token=...).

    In a backtest it does nothing and returns False. In simulated trading it returns True, and from then on order,
    order_value, order_target, order_target_value, cancel_order, get_open_orders, get_orders and get_trades in
    `namespace`, context.portfolio and context.subportfolios are the remote account's, with JoinQuant's signatures and
    results. Nothing is sent yet. wait_timeout: seconds that an order waits for its outcome. starting_cash (yuan):
    what portfolio.returns is measured from. cache_seconds: how old a reading of the account may be; orders end it.
    max_lag: seconds between context.current_dt and now beyond which nothing is ordered, as a task that JoinQuant makes
    up for later would trade on yesterday's reasons; None: not looked at.
    connection: retries, retry_interval, rpc_timeout, debug, place_order_timeout_margin as in configure(), which is
    called too.

    An order gives None where it came to nothing or was refused, with a warning that says why; OrderStateUnknown where
    it may be at the broker; any other failure is raised as what it is. Nothing is sent twice. Calling it again with
    the same values is harmless, with others a ConfigError; so is a namespace whose own functions have these names.
    """
    if not _in_simulation(context):
        return False
    _check_namespace(namespace)
    settings = dict(connection, host=host, token=token, port=port, account_key=account_key,
                    sub_account_id=sub_account_id, tls_cert=tls_cert)
    own = {'wait_timeout': wait_timeout, 'starting_cash': starting_cash, 'cache_seconds': cache_seconds,
           'max_lag': max_lag}
    install = _installed(settings, own, namespace, context)
    install.trading.context = context
    install.take_over(namespace, context)
    return True


def uninstall_jq_compat(namespace=None):
    """Gives a namespace (None: all of them) its own functions back; with the last one context too. False: none was."""
    global _jq_install
    install = _jq_install
    if install is None or not install.give_back(namespace):
        return False
    if not install.namespaces:
        _jq_install = None
        install.close()
    return True


def _in_simulation(context):
    """Whether real orders are wanted. A context that cannot be asked is an error: a backtest must never trade."""
    try:
        return context.run_params.type == 'sim_trade'
    except AttributeError:
        raise ConfigError('install_jq_compat 没有得到聚宽的 context，分不清是回测还是模拟交易',
                          '在 process_initialize(context) 里写 install_jq_compat(globals(), context=context, ...)')


def _check_namespace(namespace):
    if not isinstance(namespace, dict) or '__builtins__' not in namespace:
        raise ConfigError('install_jq_compat 的第一个参数应为策略的 globals()', 'locals() 里的函数策略用不到')
    code = getattr(namespace.get('process_initialize'), '__code__', None)
    own = [name for name in _JQ_NAMES + _JQ_REFUSED if _is_own(namespace.get(name), namespace, code)]
    if own:
        raise ConfigError('策略自己定义了 %s，不能再接管' % '、'.join(own), '给自己的函数换个名字')


def _is_own(function, namespace, code):
    """Whether the strategy's own file defines this function."""
    return (code is not None and getattr(function, '__globals__', None) is namespace
            and function.__code__.co_filename == code.co_filename)


def _installed(settings, own, namespace, context):
    """The JqInstall of this process with these settings, made if there is none. Connects to nothing."""
    global _jq_install
    if _jq_install is None:
        if len(getattr(context, 'subportfolios', ())) > 1:
            raise JqNotSupported('不支持多个子账户（subportfolios）', '去掉 set_subportfolios，只用一个股票账户')
        _jq_install = JqInstall(settings, own, namespace)
    elif not _jq_install.has(settings, own):
        raise ConfigError('install_jq_compat 已用别的设置安装过', '先调用 uninstall_jq_compat()')
    return _jq_install


class JqInstall:
    """What was changed in this process, so that all of it can be taken back.

    namespaces: list of (namespace, {name: (ours, what was there)}).
    """

    def __init__(self, settings, own, namespace):
        global _clients
        before = _clients
        configure(**settings)
        try:
            self.trading = JqTrading(get_broker_client(), get_data_client(), namespace, **_own_settings(**own))
        except ConfigError:
            _clients = before
            raise
        self._settings, self._clients_before, self.namespaces, self._patches = (settings, own), before, [], []

    def has(self, settings, own):
        return self._settings == (settings, own)

    def take_over(self, namespace, context):
        """All or nothing: without the context no function is changed."""
        try:
            self._patch(context)
        except JqNotSupported:
            if not self.namespaces:
                self.close()
            raise
        known = [kept for there, kept in self.namespaces if there is namespace]
        if not known:
            known = [{}]
            self.namespaces.append((namespace, known[0]))
        for name, value in self.trading.names().items():
            self._replace(namespace, name, value, known[0])

    @staticmethod
    def _replace(namespace, name, value, kept):
        """A name that JoinQuant has set again meanwhile is replaced again; ours stays."""
        current = namespace.get(name, _MISSING)
        if name in kept and current is kept[name][0]:
            return
        original = current.original if isinstance(current, JqFunction) else current
        namespace[name] = value if isinstance(value, type) else JqFunction(name, value, original)
        kept[name] = namespace[name], original

    def _patch(self, context):
        if not any(patch.cls is type(context) for patch in self._patches):
            patch = JqContextPatch(type(context), self.trading)
            patch.apply(context)
            self._patches.append(patch)

    def give_back(self, namespace):
        """Whether there was anything to give back."""
        back = [item for item in self.namespaces if namespace is None or item[0] is namespace]
        self.namespaces = [item for item in self.namespaces if not any(item is other for other in back)]
        for there, kept in back:
            for name, (ours, original) in kept.items():
                _restore(there, name, ours, original)
        return bool(back)

    def close(self):
        global _clients, _jq_install
        for patch in self._patches:
            patch.remove()
        if _jq_install is self:
            _jq_install = None
        _clients = self._clients_before
        self.trading.close()


def _restore(namespace, name, ours, original):
    """What somebody else has put there meanwhile stays."""
    if namespace.get(name) is not ours:
        return
    if original is _MISSING:
        del namespace[name]
    else:
        namespace[name] = original


def _own_settings(wait_timeout, starting_cash, cache_seconds, max_lag):
    return {'wait_s': _own_setting('wait_timeout', wait_timeout, 0, 600),
            'cache_s': _own_setting('cache_seconds', cache_seconds, 0, 60),
            'lag_s': _own_setting('max_lag', max_lag, 1, 86400, optional=True),
            'starting_cash': _own_setting('starting_cash', starting_cash, 1, MAX_VALUE, optional=True)}


def _own_setting(name, value, minimum, maximum, optional=False):
    if optional and value is None:
        return None
    try:
        return check_number(value, name, minimum, maximum)
    except BadRequest as error:
        raise ConfigError('install_jq_compat 的 %s' % error.message, error.hint)


class JqFunction:
    """A function of the strategy's namespace that is ours now. Pickled it is the one that was there before."""

    def __init__(self, name, call, original):
        self.__name__, self.__doc__, self.__wrapped__, self.original = name, call.__doc__, call, original

    def __call__(self, *args, **how):
        return self.__wrapped__(*args, **how)

    def __reduce__(self):
        if self.original is _MISSING:
            raise TypeError('cannot pickle %s: it is installed anew in every process' % self.__name__)
        return operator.getitem, ([self.original], 0)


class JqContextPatch:
    """The class of JoinQuant's context while its portfolio and subportfolios are the remote account's.

    Its class, because another task may be given another object, and because the object's own state, which is what
    gets pickled, stays as it is. Contexts that are no simulated trading keep their own account.
    """

    NAMES = ('__getattribute__', '__reduce_ex__')

    def __init__(self, cls, trading):
        self.cls, self._saving = cls, threading.local()
        self._shown = {'portfolio': trading.portfolio, 'subportfolios': [trading.subportfolio]}
        self._get, self._reduce = cls.__getattribute__, cls.__reduce_ex__
        self._before = {name: vars(cls)[name] for name in self.NAMES if name in vars(cls)}

    def _functions(self):
        def __getattribute__(context, name):
            if name in self._shown and not vars(self._saving) and self._trades(context):
                return self._value(name)
            return self._get(context, name)

        def __reduce_ex__(context, protocol):
            self._saving.on = True  # what reads the attributes for a pickle shall find JoinQuant's own
            try:
                return self._reduce(context, protocol)
            finally:
                vars(self._saving).clear()
        return zip(self.NAMES, (__getattribute__, __reduce_ex__))

    def _trades(self, context):
        """A context that is still being built has no run_params."""
        try:
            return self._get(context, 'run_params').type == 'sim_trade'
        except AttributeError:
            return False

    def _value(self, name):
        value = self._shown[name]
        return list(value) if isinstance(value, list) else value

    def apply(self, context):
        """Raises JqNotSupported, with nothing changed, where the class does not let us."""
        try:
            for name, function in self._functions():
                type.__setattr__(self.cls, name, function)
        except TypeError as error:
            raise JqNotSupported('不能接管 %s 对象的账户：%s' % (self.cls.__name__, error)) from error
        if context.portfolio is not self._shown['portfolio']:
            self.remove()
            raise JqNotSupported('不能接管 %s 对象的账户' % self.cls.__name__)

    def remove(self):
        for name in self.NAMES:
            if name in self._before:
                type.__setattr__(self.cls, name, self._before[name])
            else:
                type.__delattr__(self.cls, name)


# -- rows as JoinQuant names them ----------------------------------------------------------------------------------
class JqRow(RemoteRow):
    """A row that is kept by strategies: pickled it is a types.SimpleNamespace of its fields.

    UNTOLD: fields of JoinQuant that the remote account does not tell; reading one raises JqNotSupported.
    """

    UNTOLD = ()

    def __getattr__(self, name):
        raise _unreadable(self, name)

    def __reduce__(self):
        return types.SimpleNamespace, (), vars(self)


def _unreadable(thing, name):
    if name in thing.UNTOLD:
        return JqNotSupported('远程账户不提供 %s.%s' % (type(thing).__name__[2:], name),
                              'returns、starting_cash 可用 install_jq_compat(starting_cash=...) 给出；其余请策略自己记在 g 里')
    return AttributeError('%s has no attribute %s' % (type(thing).__name__, name))


class JqPosition(JqRow):
    """total_amount: without locked_amount, which resting sales hold. today_amount: what cannot be sold before tomorrow.

    avg_cost and acc_avg_cost are the broker's cost.
    """

    SHOWN = ('security', 'total_amount', 'closeable_amount', 'locked_amount', 'avg_cost', 'price', 'value')
    UNTOLD = ('hold_cost', 'init_time', 'transact_time')

    def __init__(self, security, held=0, closeable=0, frozen=0, cost=0.0, price=0.0, value=0.0):
        self.security, self.price, self.value, self.side, self.pindex = security, price, value, 'long', 0
        self.avg_cost = self.acc_avg_cost = cost
        self.locked_amount = max(0, min(frozen, held - closeable))
        self.total_amount = held - self.locked_amount
        self.closeable_amount = self.sellable_amount = self.amount = closeable
        self.today_amount = max(0, self.total_amount - closeable)


def _jq_positions(rows):
    """OrderedDict code -> JqPosition of RemotePositions; what was sold out is none, two rows of a code are one."""
    groups = OrderedDict()
    for item in rows:
        if item.total_amount:
            groups.setdefault(_any_code(item.security), []).append(item)
    return OrderedDict((code, _jq_position(code, items)) for code, items in groups.items())


def _jq_position(code, items):
    held = sum(item.total_amount for item in items)
    rows = [item.raw_response for item in items]
    cost = sum(_figure(row, 'avg_cost') * item.total_amount for row, item in zip(rows, items)) / held
    return JqPosition(code, held, sum(item.closeable_amount for item in items), sum(item.frozen for item in items),
                      _figure(rows[0], 'avg_cost') if len(rows) == 1 else cost,
                      _figure(rows[0], 'last_price', 'current_price'),
                      sum(_figure(row, 'market_value', 'position_value') for row in rows))


def _any_code(security):
    """Canonical where we know the market; an account may hold others too."""
    try:
        return normalize_code(security)
    except BadRequest:
        return security


class JqOrder(JqRow):
    """order_id: text. price: average fill, 0.0 if none; avg_cost: of a sale the holding's cost, where it is known.

    status: a member of the strategy's OrderStatus. order_price: its limit or protection price; remote_status: the
    server's own word.
    """

    SHOWN = ('order_id', 'security', 'action', 'amount', 'filled', 'price', 'status', 'add_time')
    UNTOLD = ('avg_cost',)

    def __init__(self, order, statuses, cost=None):
        if order.is_buy is None:
            raise ProtocolError('服务端没有说明委托 %s 的方向' % printable(order.order_id), '核对服务端的版本和日志')
        self.order_id, self.security, self.is_buy = order.order_id, _any_code(order.security), order.is_buy
        self.amount, self.filled, self.price = order.amount, order.filled, order.price
        self.action, self.side, self.pindex, self.commission = order.action, 'long', 0, order.commission
        self.add_time, self.order_price, self.status_msg = order.add_time, order.order_price, order.status_msg
        self.status, self.remote_status = statuses[_jq_status(order)], order.status
        if order.is_buy or cost is not None:
            self.avg_cost = order.price if order.is_buy else cost


# An order of unknown outcome may still fill, so it counts as open.
_JQ_STATUSES = {'new': 'new', 'submitted': 'open', 'open': 'open', 'filling': 'open', 'canceling': 'open',
                'submit_unknown': 'open', 'partly_canceled': 'canceled', 'canceled': 'canceled', 'filled': 'held',
                'rejected': 'rejected'}


def _jq_status(order):
    """JoinQuant's `filled` is filled in part, its `held` is done."""
    status = _JQ_STATUSES.get(order.status)
    if status is None:
        raise ProtocolError('委托 %s 的状态看不懂：%s' % (printable(order.order_id), brief(order.status)), '核对服务端的版本')
    return 'filled' if status in ('new', 'open') and order.filled else status


class JqTrade(JqRow):
    """A fill; amount in shares, price in yuan a share."""

    SHOWN = ('trade_id', 'order_id', 'security', 'amount', 'price', 'time')

    def __init__(self, trade):
        self.trade_id, self.order_id, self.security = trade.trade_id, trade.order_id, _any_code(trade.security)
        self.time, self.amount, self.price = trade.time, trade.amount, trade.price


def _jq_statuses(namespace):
    """(name -> member, whether they are the strategy's own): its OrderStatus, if that tells all six apart."""
    theirs = namespace.get('OrderStatus')
    found = {name: getattr(theirs, name, None) for name in JqOrderStatus.__members__}
    told_apart = None not in found.values() and len(set(map(str, found.values()))) == len(found)
    return (found, True) if told_apart else (dict(JqOrderStatus.__members__), False)


# -- the account ---------------------------------------------------------------------------------------------------
class JqReading:
    """The account's money (a row) and positions (code -> JqPosition), read in one go where the server gives both."""

    def __init__(self, broker):
        self.money = broker.get_account().raw_response
        rows = self.money.get('positions')
        listed = isinstance(rows, list)
        self.positions = _jq_positions(map(RemotePosition, _rows(rows, '持仓')) if listed else broker.get_positions())


class JqLedger:
    """The newest JqReading, at most cache_s seconds old and from after the last order. A failure to read is raised.

    last: the one that was read last, whatever its age; None at first.
    """

    def __init__(self, read, cache_s):
        self._read, self._cache_s, self._until, self.last = read, cache_s, None, None

    def read(self):
        if self._until is None or time.monotonic() >= self._until:
            self._until = None
            self.last = self._read()
            self._until = time.monotonic() + self._cache_s
        return self.last

    def forget(self):
        self._until = None


class JqPositions:
    """code -> JqPosition, as they are at each use. What is not held is an empty JqPosition, with a warning."""

    def __init__(self, read, warn):
        self._read, self._warn, self._seen = read, warn, None
        self._rows()

    def _rows(self):
        self._seen = self._read()
        return self._seen

    def __getitem__(self, security):
        code = _any_code(security)
        if code in self._rows():
            return self._seen[code]
        self._warn('没有持有 %s，返回空的持仓' % brief(security))
        return JqPosition(code)

    def get(self, security, default=None):
        return self._rows().get(_any_code(security), default)

    def __contains__(self, security):
        return _any_code(security) in self._rows()

    def __iter__(self):
        return iter(self._rows())

    def __len__(self):
        return len(self._rows())

    def keys(self):
        return self._rows().keys()

    def values(self):
        return self._rows().values()

    def items(self):
        return self._rows().items()

    def copy(self):
        return dict(self._rows())

    def __eq__(self, other):
        return self.copy() == (other.copy() if isinstance(other, JqPositions) else other)

    __hash__ = None

    def __repr__(self):
        return repr(self.copy())

    def __reduce__(self):
        return dict, (dict(self._seen),)


class JqPortfolio:
    """JoinQuant's portfolio, read from the remote account with each use. returns: of now, not of yesterday."""

    MONEY = {'total_value': ('total_value', 'total_asset'), 'portfolio_value': ('total_value', 'total_asset'),
             'available_cash': ('available_cash',), 'cash': ('available_cash',),
             'transferable_cash': ('transferable_cash',), 'locked_cash': ('frozen_cash',),
             'positions_value': ('market_value',)}
    UNTOLD = ('margin', 'returns', 'starting_cash', 'inout_cash')

    def __init__(self, ledger, warn, starting_cash=None):
        self._ledger, self._warn = ledger, warn
        if starting_cash is not None:
            self.starting_cash = self.inout_cash = starting_cash

    def __getattr__(self, name):
        if name in self.MONEY:
            return _figure(self._ledger.read().money, *self.MONEY[name])
        if name == 'returns' and 'starting_cash' in vars(self):
            return self.total_value / self.starting_cash - 1
        raise _unreadable(self, name)

    @property
    def positions(self):
        return JqPositions(lambda: self._ledger.read().positions, self._warn)

    long_positions = positions

    @property
    def short_positions(self):
        return JqPositions(OrderedDict, self._warn)

    def __repr__(self):
        shown = ['%s=%s' % (name, getattr(self, name)) for name in ('total_value', 'available_cash', 'locked_cash')]
        return '%s(%s, positions=%r)' % (type(self).__name__, ', '.join(shown), self.positions)

    def __reduce__(self):
        """What was read last, and nothing if nothing was: a pickle must not ask the network."""
        reading, fields = self._ledger.last, {}
        if reading is not None:
            fields = {name: _first(reading.money, *names) for name, names in self.MONEY.items()}
            fields['positions'] = fields['long_positions'] = dict(reading.positions)
        return types.SimpleNamespace, (), fields


class JqSubPortfolio(JqPortfolio):
    """The one there is."""

    type = 'stock'


# -- orders --------------------------------------------------------------------------------------------------------
class JqBroker(RemoteBrokerClient):
    """Orders cut to what there is, as JoinQuant does: buys to the cash, sales to what can be sold now.

    The functions of the parent class that order give a RemoteOrder, or None with a warning. warn(text): says so.
    """

    def __init__(self, plain, data, warn):
        super().__init__(plain._connection, data, rpc_timeout=plain._rpc_timeout, margin=plain._margin,
                         debug=plain._debug, **plain._account)
        self._warn = warn

    def _send(self, code, side, amount, terms):
        if not amount:
            return None
        lots, cost = self._affordable(code, amount, terms) if side == 'BUY' else self._sellable(code, amount)
        if not lots:
            self._warn('%s 没有%s：要 %d 股，按交易单位和%s是 0 股' % (
                code, '买入' if side == 'BUY' else '卖出', amount, '可用资金' if side == 'BUY' else '可卖数量'))
            return None
        placed = self._place(code, side, lots, terms, '' if lots == amount else '（要 %d 股）' % amount)
        placed.holding_cost, placed.idempotency_key = cost, terms.key
        return placed

    def _affordable(self, code, amount, terms):
        """(whole lots whose worst price and fees the cash covers, None). Without a worst price the server judges."""
        lots = round_lot(code, amount)
        bound = self._worst_price(code, terms) if lots else None
        return (lots if bound is None else self._within_cash(code, lots, Decimal(repr(bound)))), None

    def _within_cash(self, code, lots, bound):
        cash = Decimal(repr(self.get_account().available_cash))
        today = datetime.now(BEIJING).date()
        while lots:
            missing = bound * lots + sum(trade_fees(code, 'BUY', bound * lots, today)) - cash
            if missing <= 0:
                return lots
            lots = round_lot(code, max(0, lots - max(1, int(missing / bound * Decimal('0.999')))))
        return 0

    def _worst_price(self, code, terms):
        """What a buy is charged with until it fills: its limit, at market what the server bounds it with."""
        if terms.limit is not None:
            return terms.limit
        tick = self._data.get_snapshot(code)
        reference = _known_price(tick, 'a1_p', 'b1_p', 'last_price', 'pre_close')
        bounds = [terms.protect, protect_price(code, 'BUY', reference, _known_price(tick, 'high_limit'), None)]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _sellable(self, code, amount):
        """(shares, the holding's cost a share or None); an odd rest goes only with all that can be sold."""
        rows = [item for item in self.get_positions() if _is_security(item.security, code)]
        closeable = sum(item.closeable_amount for item in rows)
        amount = min(amount, closeable)
        whole_rest = amount == closeable and not lot_problem(code, 'SELL', amount, closeable)
        cost = _first(rows[0].raw_response, 'avg_cost') if len(rows) == 1 else None
        return (amount if whole_rest else round_lot(code, amount)), cost


def _known_price(tick, *names):
    """The first of these that is a price; None, 0 and NaN are none."""
    prices = (tick.get(name) for name in names)
    return next((price for price in prices if isinstance(price, (int, float)) and 0 < price <= MAX_PRICE), None)


def _toward_zero(amount):
    """Whole shares; what binary fractions lack is forgiven: 2999.9999999999995 are 3000."""
    return int(check_number(amount, 'amount', -MAX_AMOUNT, MAX_AMOUNT) * (1 + 1e-12))


def _jq_order_code(security, style, side, pindex, close_today):
    """The canonical code of an order that the remote account knows how to place. Nothing was sent yet."""
    try:
        _refuse_futures(side, pindex, close_today)
        _style_kind(style)
    except NotImplementedError as error:
        raise JqNotSupported(str(error))
    if side not in (None, 'long'):
        raise BadRequest('side 不认识：%s' % brief(side), "只能是 'long'；卖出给出负的数量")
    if isinstance(security, str) and security.strip().upper().endswith(_FOREIGN_SUFFIXES):
        raise JqNotSupported('远程账户不交易期货和场外基金：%s' % brief(security), '只支持股票、场内基金和可转债')
    return normalize_code(security)


def _refuse_call(name, *args, **how):
    raise JqNotSupported('远程账户不支持 %s()' % name, '没有发出任何委托；用 order、order_value、order_target、order_target_value')


class JqTrading:
    """JoinQuant's functions on the remote account. No thread, nothing sent twice. context: the newest one."""

    def __init__(self, plain, data, namespace, wait_s, cache_s, starting_cash, lag_s):
        self.context, self._lag_s, self._closed = None, lag_s, False
        self._plain, self._data, self._namespace, self._wait_s = plain, data, namespace, wait_s
        self._broker, self._process = JqBroker(plain, data, self.warn), os.getpid()
        self._statuses, self._own_statuses = _jq_statuses(namespace)
        self._ledger = JqLedger(lambda: JqReading(self.broker), cache_s)
        self.portfolio = JqPortfolio(self._ledger, self.warn, starting_cash)
        self.subportfolio = JqSubPortfolio(self._ledger, self.warn, starting_cash)

    @property
    def broker(self):
        """For whoever kept a function of ours, nothing is done after uninstall_jq_compat.

        A connection that a parent process opened is not ours to use: two would read each other's answers.
        """
        if self._closed:
            raise ConfigError('已经 uninstall_jq_compat，远程账户不再可用', '重新调用 install_jq_compat(...)')
        if os.getpid() != self._process:
            self._plain._connection._kept, self._process = None, os.getpid()
        return self._broker

    def close(self):
        self.broker._connection.close()
        self._closed = True

    def names(self):
        """What the strategy's namespace gets: name -> function, or class."""
        names = {name: getattr(self, name) for name in _JQ_NAMES}
        names.update((name, functools.partial(_refuse_call, name)) for name in _JQ_REFUSED)
        if not self._own_statuses:
            names['OrderStatus'] = JqOrderStatus
        return names

    def warn(self, text):
        """Through JoinQuant's log; a console that lacks a character makes no order fail."""
        warn = getattr(self._namespace.get('log'), 'warn', None)
        if warn is None:
            BrokerCalls(None)._say('[警告] %s', text)
        else:
            warn('[远程账户] %s' % printable(text))

    # -- orders --------------------------------------------------------------------------------------------------
    def order(self, security, amount, style=None, side='long', pindex=0, close_today=False):
        """Order, or None. amount: shares to buy, to sell if negative; parts of a share are dropped."""
        return self._order('order', security, _toward_zero(amount), style, side, pindex, close_today)

    def order_value(self, security, value, style=None, side='long', pindex=0, close_today=False):
        """Order, or None. value: yuan, at the limit price, at market at the last price."""
        return self._order('order_value', security, value, style, side, pindex, close_today)

    def order_target(self, security, amount, style=None, side='long', pindex=0, close_today=False):
        """Order, or None. The security's open orders are cancelled first."""
        return self._order('order_target', security, _toward_zero(amount), style, side, pindex, close_today)

    def order_target_value(self, security, value, style=None, side='long', pindex=0, close_today=False):
        """Order, or None."""
        return self._order('order_target_value', security, value, style, side, pindex, close_today)

    def _order(self, name, security, how_much, style, side, pindex, close_today):
        code = _jq_order_code(security, style, side, pindex, close_today)
        self._check_lag()
        with self._writing():
            try:
                placed = getattr(self.broker, name)(code, how_much, style=style, wait_timeout=self._wait_s)
            except (OrderRejected, SecurityNotFound) as error:
                self.warn('%s 没有下单：%s' % (code, error))
                return None
            return None if placed is None else self._placed(placed)

    def _check_lag(self):
        """Raises BadRequest, before anything is sent, where the task is not of now."""
        if self._lag_s is None:
            return
        lag_s = abs((datetime.now(BEIJING).replace(tzinfo=None) - self.context.current_dt).total_seconds())
        if lag_s > self._lag_s:
            raise BadRequest('context.current_dt 是 %s，与现在相差 %d 秒，没有下单' % (self.context.current_dt, lag_s),
                             '这是补跑的任务，或任务运行得太久；上限是 install_jq_compat 的 max_lag=%g' % self._lag_s)

    def _placed(self, placed):
        """It is at the broker: what cannot be told of it now is unknown, not failed."""
        row = placed.raw_response
        try:
            if _first(row, 'filled', 'traded_volume') is None:
                row = self.broker.get_order_status(placed.order_id)
            return JqOrder(RemoteOrder(row), self._statuses, placed.holding_cost)
        except BulletError as error:
            raise _unknown('委托 %s 已在柜台，但读不到它的状态：%s' % (printable(placed.order_id), error.message),
                           placed.idempotency_key) from error

    @contextlib.contextmanager
    def _writing(self):
        """What was read of the account before a write is not true any more, however that ended."""
        try:
            yield
        except OrderStateUnknown as error:
            key = '；key=%s' % error.idempotency_key if error.idempotency_key else ''
            raise OrderStateUnknown(error.message, '不要重下：先看 get_orders() 和持仓%s' % key,
                                    broker_called=error.broker_called, **error.details) from error
        finally:
            self._ledger.forget()

    def cancel_order(self, order_or_id):
        """The Order as it is after that, or None if the account has none of that id."""
        order_id = _order_id(order_or_id)
        with self._writing():
            try:
                row, reason = self.broker.cancel_order(order_id).get('last_snapshot'), ''
            except OrderNotFound as error:
                self.warn('没有撤单：%s' % error)
                return None
            except OrderRejected as error:  # too late, perhaps: what became of it tells
                row, reason = None, '：%s' % error
            return self._after_cancel(order_id, row, reason)

    def _after_cancel(self, order_id, row, reason):
        row = row if isinstance(row, dict) and row else self.broker.get_order_status(order_id)
        if not row:
            raise _unknown('撤单之后读不到委托 %s' % order_id, None)
        order = JqOrder(RemoteOrder(row), self._statuses)
        if order.remote_status not in ('canceled', 'partly_canceled'):
            self.warn('委托 %s 没有撤成，状态 %s%s' % (order_id, order.status, reason))
        return order

    # -- views ---------------------------------------------------------------------------------------------------
    def get_open_orders(self):
        """dict order id -> Order of those that may still change."""
        return self._as_orders(self.broker.get_open_orders())

    def get_orders(self, order_id=None, security=None, status=None):
        """dict order id -> Order of today. status: a member of OrderStatus, or its name."""
        security = None if security is None else normalize_code(security)
        wanted = None if status is None else check_choice(getattr(status, 'name', status), 'status', self._statuses)
        found = self._as_orders(self.broker.get_orders(order_id, security))
        return {key: order for key, order in found.items()
                if wanted is None or order.status == self._statuses[wanted]}

    def get_trades(self):
        """dict trade id -> Trade of today."""
        return {key: JqTrade(trade) for key, trade in self.broker.get_trades().items()}

    def _as_orders(self, orders):
        return {key: JqOrder(order, self._statuses) for key, order in orders.items()}
