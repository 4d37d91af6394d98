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
"""
import contextlib
import sys
import uuid
from collections import OrderedDict
from datetime import datetime
from decimal import Decimal

from bullet_qmt import (
    BEIJING, FINAL_STATUSES, BadRequest, BulletError, ConfigError, DataUnavailable, OrderRejected,
    OrderStateUnknown, ProtocolError, RemoteQmtProvider, ShortConnection, brief, check_flag, check_number,
    check_text, check_whole, instrument, lot_problem, normalize_code, order_style, parse_bool, parse_host,
    parse_moment, parse_order_id, parse_text, parse_token, printable, qmt_code, real, round_lot, whole)

__all__ = [
    'configure', 'get_data_client', 'get_broker_client', 'order', 'order_value', 'order_target', 'order_target_value',
    'order_percent', 'order_target_percent', 'cancel_order', 'get_order_status', 'get_open_orders', 'get_orders',
    'get_trades', 'get_account', 'get_positions', 'MarketOrderStyle', 'LimitOrderStyle', 'RemoteAccount',
    'RemotePosition', 'RemoteOrder', 'RemoteTrade', 'BulletError', 'OrderRejected', 'OrderStateUnknown',
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
