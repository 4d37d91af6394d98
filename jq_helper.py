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

Needs CPython 3.6 or newer and nothing else; data come as pandas frames where pandas is installed. No threads: a call
opens a connection, which is kept half a minute for the next one. Amounts in shares, prices and values in yuan, times
naive Beijing time.

order() and its sisters return the order id, or None where the amount came to nothing: then nothing was sent. A
refusal raises OrderRejected, and so does an order that ended with nothing filled. OrderStateUnknown means that an
order or cancel may or may not be at the broker: look at get_orders(), but never order anew; with a server of
bullet_qmt one may call again with the same idempotency_key. Both are bullet_qmt's and RuntimeErrors, as all errors.

Contents, each section using only those above it:

    1. VALUES       checks of what users and servers give
    2. STYLES       MarketOrderStyle, LimitOrderStyle, and what an order call says beside its amount
    3. ROWS         RemoteAccount, RemotePosition, RemoteOrder, RemoteTrade, CancelResult
    4. CLIENTS      RemoteDataClient, BrokerCalls: one request each
    5. SIZES        RemoteBrokerClient: from amounts, values, percents and targets to orders
    6. CONFIGURE    configure, get_data_client, get_broker_client
    7. MODULE LEVEL order and its sisters
    8. OBJECTS      what a strategy sees of its account: OrderStatus, Order, Position, Portfolio, Context
    9. COSTS        slippage, commission and tax of simulated trades
   10. SCHEDULE     what is due on a trade day, in which order
   11. BARS         bars of a provider in large blocks, on any price level
   12. DATA API     get_price and its sisters: what is known at the strategy's time, and no more
   13. MARKET       the simulated broker: matching, ledger, corporate actions
   14. STRATEGY     a strategy's file: its names, the modules it imports, its log, its errors
   15. SESSION      a strategy at work: tasks, data and broker under one clock
   16. RUN          a session through the trade days of a backtest
   17. LIVE ACCOUNT the remote account as a strategy's broker: keys, limits, outcomes
   18. LIVE DATA    bars of the past in blocks, today from quotes
   19. LIVE RUN     what is kept on disk, the wall clock, the loop; the command
   20. METRICS      what a run earned and risked
   21. REPORT       the run as lines, CSV files and one HTML page
   22. BACKTEST     from a strategy's file to its result; the command
   23. JOINQUANT    install_jq_compat: a strategy in JoinQuant's own simulated trading on the remote account
"""
import bisect
import contextlib
import enum
import errno
import functools
import itertools
import json
import math
import numbers
import operator
import os
import re
import shutil
import sys
import threading
import traceback
import types
import warnings
from array import array
from collections import Counter, OrderedDict, deque, namedtuple
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from time import monotonic, perf_counter

from bullet_qmt import (
    BAR_MINUTES, BEIJING, CANCELED_STATUSES, FINAL_STATUSES, RUNS, BadRequest, BulletError, Clock, ConfigError,
    ConnectionLost, DataUnavailable, IdempotencyConflict, Interrupts, LazyModule, LocalConnection, NotSupported,
    OrderNotFound, OrderRejected, OrderStateUnknown, ProtocolError, RemoteQmtBroker, RemoteQmtProvider,
    SecurityNotFound, ShortConnection, account_overview, as_shown, bars_elapsed, beijing_moment, brief,
    calendar_groups, cancel_status, check_choice, check_flag, check_moment, check_number, check_span, check_text,
    check_whole, check_write_key, combine, connect, deaf_children, dict_of, exchange_opens, factor_at, factor_ranges,
    foreign, format_table, from_ms, has_panel, hearing, inside_limits, instrument, interruptible, let_dates_be_chinese,
    listed_rows, load_settings, lot_problem, normalize_code, normalize_codes, numbers_are_labels, open_own,
    open_service, optional_import, order_number, order_style, parse_bool, parse_data_source, parse_frequency,
    parse_host, parse_moment, parse_order_id, parse_text, parse_token, patiently, plain_status, pool_size,
    price_limits, printable, protect_price, qmt_code, real, refuse_nothing_filled, refuse_rejected, restrict_to_owner,
    round_lot, round_to_tick, rows_of, scale, surely_closed, sync_directory, tell_warning, text_width, to_ms, tradable,
    trade_fees, value_of, wait_for_event, warning_in, ways, whole, windows_from_end)
from bullet_qmt import Account as AccountRow
from bullet_qmt import Position as PositionRow

__all__ = [
    'configure', 'get_data_client', 'get_broker_client', 'order', 'order_value', 'order_target', 'order_target_value',
    'order_percent', 'order_target_percent', 'cancel_order', 'get_order_status', 'get_open_orders', 'get_orders',
    'get_trades', 'get_account', 'get_positions', 'MarketOrderStyle', 'LimitOrderStyle', 'RemoteAccount',
    'RemotePosition', 'RemoteOrder', 'RemoteTrade', 'RemoteDataClient', 'RemoteBrokerClient',
    'BulletError', 'OrderRejected', 'OrderStateUnknown', 'backtest',
    'install_jq_compat', 'uninstall_jq_compat',
]

ast = LazyModule('ast', globals())
base64 = LazyModule('base64', globals())
csv = LazyModule('csv', globals())
futures = LazyModule('concurrent.futures', globals())
hashlib = LazyModule('hashlib', globals())
pickle = LazyModule('pickle', globals())
tempfile = LazyModule('tempfile', globals())
uuid = LazyModule('uuid', globals())

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
    """A positive price in yuan; None stays None. What binary fractions add goes: 10.02 + 0.01 is 10.03."""
    if value is None:
        return None
    price = round(check_number(value, name, 0, MAX_PRICE), 6)
    if price <= 0:
        raise BadRequest('%s 应大于 0' % name, '市价单不要给出价格')
    return price


def _shares(value, price):
    """Whole shares that `value` yuan buy. What binary fractions lack is forgiven: 300 * 3.3 yuan are 300 at 3.3."""
    return int(Decimal(repr(value)) / Decimal(repr(price)) * Decimal('1.000000000001'))


def _hinted(hint, check, *arguments):
    """check(*arguments), whose complaint comes with this hint."""
    try:
        return check(*arguments)
    except BadRequest as error:
        raise BadRequest(error.message, hint)


def _is_security(text, code):
    """Whether a row of any server means this canonical code."""
    return isinstance(text, str) and text.strip().upper() in (code, qmt_code(code))


def _canonical(security):
    """The code as it is known here; what is none stays, and the broker says so."""
    try:
        return normalize_code(security)
    except SecurityNotFound:
        return security


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
            return beijing_moment(value)
        return parse_moment(value)[0]
    except (ValueError, OverflowError):
        raise ProtocolError('服务端的回答里时间看不懂：%s' % brief(value), '核对服务端的版本')


# ======================================================================================================
# 2. STYLES - MarketOrderStyle, LimitOrderStyle, and what an order call says beside its amount
# ======================================================================================================
class MarketOrderStyle:
    """At market. limit_price: the worst price to fill at; None leaves it to the server's rules.

    In strategies it counts on STAR alone, as on JoinQuant: counted_style().
    """

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
        self.key = _new_key() if idempotency_key is None else check_write_key(idempotency_key)

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
    if isinstance(side, str) and side.upper() in ('BUY', 'SELL', 'B', 'S'):
        return 'BUY' if side[0] in 'bB' else 'SELL'
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
    datetime. actual_amount and actual_price: what the server took it in with. warning: what it said besides, or ''.
    """

    SHOWN = ('order_id', 'security', 'action', 'amount', 'filled', 'price', 'order_price', 'status', 'add_time')
    side, pindex = 'long', 0

    def __init__(self, row):
        self.order_id, self.security = _text(row, 'order_id'), _text(row, 'security')
        self.status = plain_status(_first(row, 'status', 'state')) or 'submit_unknown'
        self.is_buy = _is_buy(row)
        self.action = 'open' if self.is_buy else 'close'
        self._read_figures(row)
        self.add_time = _moment(_first(row, 'order_time', 'add_time'))
        self.order_remark = str(_first(row, 'order_remark', 'remark') or '')
        self.strategy_name = str(row.get('strategy_name') or '')
        self.status_msg = str(row.get('status_msg') or '')
        self.timed_out, self.async_tracking = bool(row.get('timed_out')), bool(row.get('async_tracking'))
        self.idempotency_key, self.warning = row.get('idempotency_key'), warning_in(row)
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
    told = _first(row, 'side', 'order_type')
    side = {'BUY': True, 'SELL': False, 23: True, 24: False}
    return side.get(told) if isinstance(told, (str, int)) and not isinstance(told, bool) else None


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
    """The server's answer to a cancel: value, status, order_id, ... True only if certainly cancelled.

    Some servers say value=True of a cancel that they have only passed on: there the status decides.
    """

    def __bool__(self):
        return self.get('value') is True and self.get('status') in CANCELED_STATUSES


def _by_id(name, objects):
    return OrderedDict((getattr(item, name), item) for item in objects)


# ======================================================================================================
# 4. CLIENTS - RemoteDataClient, BrokerCalls: one request each
# ======================================================================================================
class RunAtWork:
    """A strategy's run in this process: kind ('回测' or '实盘'), its thread, the names that the strategy finds.

    connection: the one whose orders and cancels are the run's own; None for a run that sends none.
    """

    def __init__(self, kind, names, connection=None):
        self.kind, self.names, self.connection, self.thread = kind, names, connection, threading.get_ident()


class RunNames:
    """The runs of this process, as to the names that JoinQuant's modules have in each of them."""

    def __init__(self):
        self._lock, self._runs, self._stage = threading.Lock(), [], contextlib.ExitStack()

    @contextlib.contextmanager
    def added(self, run, stage):
        """stage(): a context in which all runs are, entered by the first and left by the last of them."""
        with self._lock:
            if not self._runs:
                self._stage.enter_context(stage())
            self._runs = self._runs + [run]
        try:
            with RUNS.added(run.kind, run.connection):
                yield
        finally:
            with self._lock:
                self._runs = [other for other in self._runs if other is not run]
                if not self._runs:
                    self._stage.close()

    def __bool__(self):
        return bool(self._runs)

    def names(self):
        """Those of this thread's run; a thread that a strategy started has the run, if only one thread has any."""
        runs, here = self._runs, threading.get_ident()
        mine = [run for run in runs if run.thread == here or len({other.thread for other in runs}) == 1]
        return mine[-1].names if mine else {}


_runs = globals().get('_runs') or RunNames()  # dask loads this module again below the runs that are at work


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
        self._lines = threading.local()  # kept: those of this thread that wait for the end of what they tell of

    def _ask(self, action, timeout=None, **payload):
        self._connection.check_account(**self._account)
        return self._connection.request(action, dict(_given(**payload), **self._account), timeout)

    def _say(self, line, *values):
        """The one place that prints. An order must not look failed because the console lacks a character."""
        text, kept = line % tuple(map(printable, values)), getattr(self._lines, 'kept', None)
        if kept is not None:
            kept.append(text)
        elif self._debug:
            with contextlib.suppress(OSError, ValueError):  # a closed console
                print(as_shown(text))

    @contextlib.contextmanager
    def _lines_after(self):
        """A console that stands still holds up nothing between the first step and the last: the lines come after."""
        self._lines.kept = []
        try:
            yield
        finally:
            lines, self._lines.kept = self._lines.kept, None
            for line in lines:
                self._say('%s', line)

    # -- views ---------------------------------------------------------------------------------------------------
    def get_account(self):
        answer = self._ask('broker.account')
        return RemoteAccount(value_of(answer, '账户资金'))

    def get_positions(self):
        return [RemotePosition(row) for row in rows_of(self._ask('broker.positions'), '持仓')]

    def get_orders(self, order_id=None, security=None, status=None, from_broker=False):
        """OrderedDict order id -> RemoteOrder of today."""
        order_id = None if order_id is None else _order_id(order_id)
        return self._orders(_given(order_id=order_id, security=security, status=status,
                                   from_broker=from_broker or None))

    def _orders(self, payload, **extension):
        return _by_id('order_id', map(RemoteOrder, self._rows('broker.orders', payload, '委托', **extension)))

    def _rows(self, action, payload, told, **extension):
        return listed_rows(self._connection, lambda action, payload: self._ask(action, **payload), action, payload,
                           told, **extension)

    def get_open_orders(self, security=None):
        """Those of get_orders that may still change."""
        orders = self._orders(_given(security=security), open=True)
        return OrderedDict((key, item) for key, item in orders.items() if not item.final)

    def get_trades(self, order_id=None, security=None):
        """OrderedDict trade id -> RemoteTrade of today."""
        order_id = None if order_id is None else _order_id(order_id)
        rows = self._rows('broker.trades', _given(order_id=order_id, security=security), '成交')
        return _by_id('trade_id', map(RemoteTrade, rows))

    def get_order_status(self, order_id):
        """The order's row as a dict, {} if the account has none of that id."""
        answer = self._ask('broker.order_status', order_id=_order_id(order_id))
        return {} if answer is None else dict(dict_of(answer, '委托'))

    # -- writes --------------------------------------------------------------------------------------------------
    def place_order(self, security, side=None, amount=None, price=None, style=None, wait_timeout=0, remark=None,
                    idempotency_key=None, market=None, protect_price=None, order_remark=None):
        """RemoteOrder. amount > 0, sent exactly as it is; side 'BUY' or 'SELL'; no price: at market."""
        terms = OrderTerms(price, side, wait_timeout, style=style, remark=remark, order_remark=order_remark,
                           idempotency_key=idempotency_key, market=market, protect_price=protect_price)
        if terms.side is None:
            raise BadRequest('没有说明买卖方向', "side 应为 'BUY' 或 'SELL'")
        return self._place(normalize_code(security), terms.side, check_whole(amount, 'amount', 1, MAX_AMOUNT), terms)

    def cancel_order(self, order_or_id=None, idempotency_key=None, order_id=None):
        """CancelResult: true if certainly cancelled; else its status says whether the order is final or pending."""
        order_id = _order_id(_agreed(order_or_id=order_or_id, order_id=order_id))
        key = _new_key() if idempotency_key is None else check_write_key(idempotency_key)
        answer = self._write('broker.cancel_order', key, None, order_id=order_id)
        result = CancelResult(answer, status=cancel_status(answer, order_id, key))
        if not result['status']:
            raise _unknown('服务端没有说委托 %s 撤成了没有' % printable(order_id), key)
        self._say('[撤单] %s：%s（状态 %s）', order_id, '已撤' if result else '没有撤成', result.get('status'))
        return result

    def _place(self, code, side, amount, terms, note=''):
        answer = self._write('broker.place_order', terms.key, self._timeout(terms.wait_s), security=code, side=side,
                             amount=amount, style=terms.wire_style(), wait_timeout=terms.wait_s or None,
                             order_remark=terms.remark)
        self._tell(answer)
        placed = _placed(dict({'security': code, 'side': side, 'amount': amount}, **answer), terms.key)
        self._say('[下单] %s %s %s 股 %s：委托号 %s，状态 %s，成交 %s%s', '买入' if side == 'BUY' else '卖出', code, amount,
                  terms, placed.order_id, placed.status, placed.filled, note)
        return placed

    def _tell(self, answer):
        """What the server has to say of an order that it took."""
        tell_warning(answer)

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
    return OrderStateUnknown(message, '不要换 key 重下；先看 get_orders()，或（服务端是 bullet-qmt 时）用同一 idempotency_key 再调用一次',
                             idempotency_key=key)


def _placed(row, key):
    """The RemoteOrder of an answer to place_order."""
    row = dict(row, order_id=order_number(row))
    if row['order_id'] is None:
        raise _unknown('服务端没有给出委托号', key)
    refuse_rejected(row, key)
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
        with self._lines_after():
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
        placed = self._place(code, side, lots, terms, note)
        refuse_nothing_filled(placed.raw_response, terms.key, self.get_order_status)
        return placed.order_id

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
    return _hinted('应为 %d 到 1 的小数，0.1 表示总资产的 10%%' % minimum, check_number, percent, 'percent', minimum, 1)


# ======================================================================================================
# 6. CONFIGURE - configure, get_data_client, get_broker_client
# ======================================================================================================
_clients = None  # (RemoteDataClient, RemoteBrokerClient)


def configure(host, token, port=58620, account_key=None, sub_account_id=None, tls_cert=None, retries=2,
              retry_interval=0.5, rpc_timeout=60, debug=True, place_order_timeout_margin=30, clock=None):
    """Says which server to use from now on. Checks every value (ConfigError); connects with the first call.

    account_key, sub_account_id: None leaves the choice to the server. tls_cert: the server's certificate (PEM file);
    None means a plain connection. retries: further attempts of a call, retry_interval seconds apart; an order is only
    repeated where the server is sure to know it again. rpc_timeout: seconds for one call; an order that waits has
    place_order_timeout_margin seconds beside. debug: print a line for each order and cancel. clock: whose time is
    compared with the server's; the machine's if not given.
    While a strategy is in a backtest or live run of this process, this and all below are a ConfigError.
    """
    global _clients
    RUNS.refuse()
    rpc_timeout = _setting('rpc_timeout', rpc_timeout, real(0.1, 3600))
    account = {'account_key': _optional('account_key', account_key),
               'sub_account_id': _optional('sub_account_id', sub_account_id)}
    connection = ShortConnection(
        _setting('host', host, parse_host), _setting('port', port, whole(1, 65535)), _secret(token),
        tls_cert=_optional('tls_cert', tls_cert), request_timeout=rpc_timeout,
        retries=_setting('retries', retries, whole(0, 20)),
        retry_interval=_setting('retry_interval', retry_interval, real(0, 60)), clock=clock, **account)
    data = RemoteDataClient(connection=connection)
    _clients = data, RemoteBrokerClient(
        connection, data, rpc_timeout=rpc_timeout, debug=_setting('debug', debug, parse_bool),
        margin=_setting('place_order_timeout_margin', place_order_timeout_margin, real(0, 3600)), **account)


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
        raise ConfigError('configure 的 token 无效：%s' % error, '与服务端的 %s相同的文本' % ways('token'))


def _configured(but=None):
    RUNS.refuse(but)
    if _clients is None:
        raise ConfigError('还不知道连接哪个服务端', "先调用 configure(host='服务端地址', token='口令')")
    return _clients


def get_data_client():
    """The RemoteDataClient: get_price, get_trade_days, get_snapshot, get_last_price, get_all_securities, ...

    Not in a backtest, as it knows what comes; a live run may read.
    """
    return _configured('实盘')[0]


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


def cancel_order(order_or_id=None, order_id=None):
    """The server's answer (dict: value, status, order_id, ...), which is true only if certainly cancelled."""
    return get_broker_client().cancel_order(_agreed(order_or_id=order_or_id, order_id=order_id))


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
# 8. OBJECTS - what a strategy sees of its account: OrderStatus, Order, Trade, Position, Portfolio, Context
# ======================================================================================================
class OrderStatus(enum.Enum):
    """JoinQuant's: `filled` is filled in part, `held` is all filled, `new` waits for the open. str() gives the name."""

    open = 0
    filled = 1
    canceled = 2
    rejected = 3
    held = 4
    new = 8

    def __str__(self):
        return self.name


_ORDER_STATUSES = tuple(OrderStatus.__members__)
ALIVE = (OrderStatus.new, OrderStatus.open, OrderStatus.filled)
_STATUS_NAMES = {'new': 'new', 'submitted': 'open', 'open': 'open', 'filling': 'open', 'canceling': 'open',
                 'submit_unknown': 'open', 'partly_canceled': 'canceled', 'canceled': 'canceled', 'filled': 'held',
                 'rejected': 'rejected'}


def status_name(word, filled):
    """JoinQuant's name of a server's status word, of an order that has filled so many shares.

    A word that nobody knows does not say that the order is over: it counts as open, which lets nothing be ordered in
    its place and lets it be cancelled.
    """
    name = _STATUS_NAMES.get(word, 'open')
    return 'filled' if filled and name in ('new', 'open') else name


def odd_status(row):
    """What to say of a RemoteOrder whose status word nobody knows, else None."""
    if row.status not in _STATUS_NAMES:
        return '委托 %s 的状态不认识：%s，当作没有结束；请在 QMT 里核对' % (printable(row.order_id), brief(row.status))


class Order:
    """An order. amount > 0 and filled in shares; price: average fill, 0.0 if none; limit: its limit price or None.

    avg_cost: what the holding cost a share for a sale, the price for a buy. commission: with tax. message: why it
    ended unfilled.
    """

    side, pindex = 'long', 0

    def __init__(self, order_id, security, is_buy, amount, style, add_time):
        self.order_id, self.security, self.is_buy, self.amount = order_id, security, is_buy, amount
        self.action, self.style, self.add_time = 'open' if is_buy else 'close', style, add_time
        self.limit = style.limit_price if _style_kind(style) == 'limit' else None
        self.filled, self.price, self.avg_cost, self.commission = 0, 0.0, 0.0, 0.0
        self.status, self.message, self.finish_time = OrderStatus.open, '', None
        self.locked_cash, self.locked_amount, self.resting_since = 0.0, 0, None

    @property
    def remaining(self):
        return self.amount - self.filled

    def __repr__(self):
        return 'Order(order_id=%s, security=%r, action=%r, amount=%s, filled=%s, price=%s, status=%s)' % (
            self.order_id, self.security, self.action, self.amount, self.filled, self.price, self.status)


class Trade:
    """A fill. amount in shares, price in yuan a share, commission and tax in yuan, time: datetime."""

    def __init__(self, trade_id, order, time, amount, price, commission, tax):
        self.trade_id, self.order_id = trade_id, order.order_id
        self.security, self.is_buy = order.security, order.is_buy
        self.time, self.amount, self.price, self.commission, self.tax = time, amount, price, commission, tax

    def __repr__(self):
        return 'Trade(trade_id=%s, order_id=%s, security=%r, amount=%s, price=%s, time=%s)' % (
            self.trade_id, self.order_id, self.security, self.amount, self.price, self.time)


class Position:
    """A holding; of a security not held all figures are zero. quote(security): its price now.

    held_amount: all shares. total_amount: without those locked by orders to sell. today_amount: bought today. frees:
    whether these can be sold today. closeable_amount: what can be sold now, of which amount and sellable_amount are
    JoinQuant's old names. avg_cost is moved by buys alone, acc_avg_cost and hold_cost (which has no fees) by sales
    too; hold_cost starts each day at the previous close.
    """

    side, pindex = 'long', 0

    def __init__(self, security, quote, frees=False):
        self.security, self._quote, self._frees = security, quote, frees
        self.held_amount = self.locked_amount = self.today_amount = 0
        self.avg_cost = self.acc_avg_cost = self.hold_cost = 0.0
        self.init_time = self.transact_time = None

    @property
    def total_amount(self):
        return self.held_amount - self.locked_amount

    @property
    def closeable_amount(self):
        return self.total_amount if self._frees else max(0, self.total_amount - self.today_amount)

    amount = sellable_amount = closeable_amount

    @property
    def price(self):
        return self._quote(self.security) if self.held_amount else 0.0

    @property
    def value(self):
        return self.price * self.held_amount

    def buy(self, amount, price, commission, moment):
        cost, total = amount * price, self.held_amount + amount
        self.avg_cost = (self.avg_cost * self.held_amount + cost + commission) / total
        self.acc_avg_cost = (self.acc_avg_cost * self.held_amount + cost + commission) / total
        self.hold_cost = (self.hold_cost * self.held_amount + cost) / total
        self.init_time = self.init_time or moment
        self.transact_time, self.held_amount, self.today_amount = moment, total, self.today_amount + amount

    def sell(self, amount, price, fees, moment):
        left = self.held_amount - amount
        if left:
            self.acc_avg_cost = (self.acc_avg_cost * self.held_amount - amount * price + fees) / left
            self.hold_cost = (self.hold_cost * self.held_amount - amount * price) / left
        self.today_amount = min(self.today_amount, left)
        self.transact_time, self.held_amount = moment, left

    def __repr__(self):
        return 'Position(security=%r, total_amount=%s, closeable_amount=%s, avg_cost=%s, price=%s)' % (
            self.security, self.total_amount, self.closeable_amount, self.avg_cost, self.price)


class Positions(dict):
    """Dict security -> Position of what is held. Another security gives an empty Position and a warning.

    Found by any spelling of a code: who asks by another one is not told that nothing is held. A loop over it goes over
    what was held when it began: strategies sell in it.
    """

    def __init__(self, quote, warn):
        super().__init__()
        self._quote, self._warn = quote, warn

    def __iter__(self):
        return iter(self.keys())

    def keys(self):
        return dict(super().items()).keys()

    def values(self):
        return dict(super().items()).values()

    def items(self):
        return dict(super().items()).items()

    def __contains__(self, security):
        return super().__contains__(security) or super().__contains__(_canonical(security))

    def get(self, security, default=None):
        return super().get(security if super().__contains__(security) else _canonical(security), default)

    def __missing__(self, security):
        code = _canonical(security)
        if super().__contains__(code):
            return super().__getitem__(code)
        self._warn('没有持有 %s，给出的是空仓位' % printable(str(security)))
        return Position(code, self._quote)


UnsellPosition = namedtuple('UnsellPosition', 'security amount avg_cost price side')


class Portfolio:
    """The account in yuan, and its only sub-portfolio. returns: of the capital, up to yesterday's close."""

    type, margin = 'stock', 0.0
    total_liability = cash_liability = sec_liability = interest = 0.0  # nothing is ever borrowed

    def __init__(self, cash, quote, warn):
        self.available_cash = self.inout_cash = float(cash)
        self.locked_cash, self.sales_today, self.returns = 0.0, 0.0, 0.0
        self.positions = self.long_positions = Positions(quote, warn)
        self.short_positions = Positions(quote, warn)

    @property
    def starting_cash(self):
        return self.inout_cash

    @property
    def cash(self):
        return self.available_cash

    @property
    def transferable_cash(self):
        return max(0.0, self.available_cash - self.sales_today)

    @property
    def positions_value(self):
        return math.fsum(position.value for position in self.positions.values())

    @property
    def total_value(self):
        return self.available_cash + self.locked_cash + self.positions_value

    @property
    def net_value(self):
        return self.total_value

    portfolio_value = net_value

    @property
    def subportfolios(self):
        return [self]

    @property
    def unsell_positions(self):
        """JoinQuant's old name for what was bought today: dict security -> UnsellPosition."""
        rest = ((each, each.total_amount - each.closeable_amount) for each in self.positions.values())
        return {each.security: UnsellPosition(each.security, amount, each.avg_cost, each.price, each.side)
                for each, amount in rest if amount}

    def __repr__(self):
        return 'Portfolio(total_value=%.2f, available_cash=%.2f, positions=%s)' % (
            self.total_value, self.available_cash, list(self.positions.values()))


class RunParams:
    """start_date, end_date (date), type 'simple_backtest' 'full_backtest' 'sim_trade', frequency 'day' 'minute'."""

    def __init__(self, start_date, end_date, type, frequency):
        self.start_date, self.end_date, self.type, self.frequency = start_date, end_date, type, frequency


class Context:
    """What a strategy's functions are given. current_dt: now, naive Beijing time; previous_date: the last trade day."""

    def __init__(self, run_params, portfolio):
        self.run_params, self.portfolio, self.subportfolios = run_params, portfolio, [portfolio]
        self.current_dt, self.previous_date, self.universe = None, None, []


class GlobalVariables:
    """The strategy's `g`: whatever it puts there."""


class DividendsEvent:
    """A held security went ex today. amount: shares held; cash: received, after tax; shares: received.

    dividends: what was given, as JoinQuant has it: [dict of date, scale_factor and bonus_pre_tax, yuan per per_base
    shares].
    """

    name, pindex, side = 'Dividends', 0, 'long'

    def __init__(self, security, amount, cash, tax, shares, dividends=()):
        self.security, self.amount, self.cash, self.tax, self.shares = security, amount, cash, tax, shares
        self.dividends = list(dividends)

    def __repr__(self):
        return 'DividendsEvent(security=%r, amount=%s, cash=%.2f, shares=%s)' % (
            self.security, self.amount, self.cash, self.shares)


class ForcedLiquidationEvent:
    """JoinQuant's event of margin trading, which never comes here; strategies compare with it."""

    name = 'ForcedLiquidation'


# ======================================================================================================
# 9. COSTS - slippage, commission and tax of simulated trades, as a strategy sets them
# ======================================================================================================
class OrderCost:
    """Fractions of a trade's value; min_commission in yuan an order, without tax."""

    def __init__(self, open_tax=0, close_tax=0, open_commission=0, close_commission=0, close_today_commission=0,
                 min_commission=0):
        given = dict(open_tax=open_tax, close_tax=close_tax, open_commission=open_commission,
                     close_commission=close_commission, close_today_commission=close_today_commission)
        for name, value in given.items():
            setattr(self, name, check_number(value, name, 0, 1))
        self.min_commission = check_number(min_commission, 'min_commission', 0)

    def commission(self, is_buy, value):
        """Yuan for all fills of an order, worth `value`."""
        return max(self.min_commission, value * (self.open_commission if is_buy else self.close_commission))

    def tax(self, is_buy, value):
        return value * (self.open_tax if is_buy else self.close_tax)

    def __repr__(self):
        return 'OrderCost(%s)' % ', '.join('%s=%g' % pair for pair in sorted(vars(self).items()))


class PerTrade(OrderCost):
    """JoinQuant's older way: one rate each for buys and sells, tax included."""

    def __init__(self, buy_cost=0.0003, sell_cost=0.0013, min_cost=5):
        super().__init__(0, 0, buy_cost, sell_cost, 0, min_cost)


class PriceRelatedSlippage:
    """Half of this fraction of the price, to the worse."""

    def __init__(self, value=0.00246):
        self.value = check_number(value, 'slippage', 0, 1)

    def move(self, price, tick):
        return price * self.value / 2

    def __repr__(self):
        return '%s(%g)' % (type(self).__name__, self.value)


class FixedSlippage(PriceRelatedSlippage):
    """Half of this many yuan, to the worse."""

    def __init__(self, value=0.02):
        self.value = check_number(value, 'slippage', 0, MAX_PRICE)

    def move(self, price, tick):
        return self.value / 2


class StepRelatedSlippage(PriceRelatedSlippage):
    """Half of this many price steps, rounded down, to the worse."""

    def __init__(self, value=2):
        self.value = check_whole(value, 'slippage', 0, 10000)

    def move(self, price, tick):
        return self.value // 2 * tick


_COST_TYPES = {'stock': 'stock', 'etf': 'fund', 'lof': 'fund', 'fund': 'fund', 'bond': 'bond', 'mmf': 'mmf',
               'money_market_fund': 'mmf', 'index': 'index'}
# Types of JoinQuant that nothing here can be bought of.
_OTHER_COST_TYPES = ('fja', 'fjb', 'fjm', 'index_futures', 'futures', 'options', 'open_fund', 'bond_fund', 'stock_fund',
                     'QDII_fund', 'mixture_fund')
_MONEY_FUND = ('5116', '5117', '5118', '5119', '15900')  # first digits of the codes of money funds


def cost_type(code):
    """'stock', 'fund', 'mmf' (money fund), 'bond', ..."""
    return 'mmf' if code.startswith(_MONEY_FUND) else _COST_TYPES.get(instrument(code).kind, 'other')


class TradingCosts:
    """What trades cost: what is set for a security goes before its type's, that before what is set for all."""

    def __init__(self):
        fund = OrderCost(open_commission=0.0003, close_commission=0.0003, min_commission=5)
        stock = OrderCost(0, 0.001, 0.0003, 0.0003, 0, 5)
        self._costs = {None: fund, 'stock': stock, 'mmf': OrderCost()}
        self._slippages = {None: PriceRelatedSlippage(), 'mmf': FixedSlippage(0)}
        self._chosen = {}

    def set_cost(self, cost, type, ref=None):
        if not isinstance(cost, OrderCost):
            raise BadRequest('set_order_cost 的第一个参数应为 OrderCost(...)', '得到的是 %s' % brief(cost))
        if type is None and ref is None:
            raise BadRequest('set_order_cost 没有说明 type', "例如 type='stock'")
        self._set(self._costs, cost, type, ref)

    def set_slippage(self, slippage, type=None, ref=None):
        if not isinstance(slippage, PriceRelatedSlippage):
            raise BadRequest('set_slippage 的第一个参数应为 PriceRelatedSlippage、FixedSlippage 或 StepRelatedSlippage',
                             '得到的是 %s' % brief(slippage))
        if type is None and ref is None:  # all types, but never money funds
            for key in [key for key in self._slippages if key not in (None, 'mmf')]:
                del self._slippages[key]
        self._set(self._slippages, slippage, type, ref)

    def set_commission(self, cost):
        for type in ('stock', 'fund'):
            self.set_cost(cost, type)

    def cost(self, code):
        return self._of(self._costs, code, 'cost')

    def slipped(self, code, price, is_buy):
        """The price that a market order fills at when the last one is `price`."""
        tick = instrument(code).tick
        move = self._of(self._slippages, code, 'slippage').move(price, tick)
        return round_to_tick(max(tick, price + move if is_buy else price - move), tick)

    def _set(self, table, value, type, ref):
        if type is not None:
            _hinted("可用：stock、fund、mmf、bond、etf、lof；聚宽的其余类型（如 'futures'）不起作用", check_choice, type, 'type',
                    tuple(_COST_TYPES) + _OTHER_COST_TYPES)
        if self.uses(type):
            table[_COST_TYPES.get(type) if ref is None else normalize_code(ref)] = value
            self._chosen.clear()

    @staticmethod
    def uses(type):
        """Whether anything that can be traded here is of this type (None: all of them)."""
        return type not in _OTHER_COST_TYPES

    def _of(self, table, code, name):
        chosen = self._chosen.get((name, code))
        if chosen is None:
            chosen = next(table[key] for key in (code, cost_type(code), None) if key in table)
            self._chosen[name, code] = chosen
        return chosen


# ======================================================================================================
# 10. SCHEDULE - what is due on a trade day, in which order; it does not know how time passes
# ======================================================================================================
HANDLE_DATA_MINUTES = tuple(range(9 * 60 + 30, 11 * 60 + 30)) + tuple(range(13 * 60, 15 * 60))
_OPEN_MINUTE, _CLOSE_MINUTE = 9 * 60 + 30, 15 * 60
_NAMED_TIMES = {'before_open': 9 * 60, 'open': _OPEN_MINUTE, 'close': _CLOSE_MINUTE, 'after_close': 15 * 60 + 30}
_CLOCK_TIME = re.compile(r'(\d{1,2}):(\d{2})(?::00)?', re.ASCII)
_OFFSET_TIME = re.compile(r'(open|close)\s*([+-])\s*(\d{1,4})\s*([mh])', re.ASCII)
# Hook, minutes of a daily run, of a minute run.
_HOOKS = (('before_trading_start', (9 * 60,), (9 * 60,)), ('handle_data', (_OPEN_MINUTE,), HANDLE_DATA_MINUTES),
          ('after_trading_end', (15 * 60 + 30,), (15 * 60 + 30,)))
_TASK_RANKS = {'monthly': 0, 'weekly': 1, 'daily': 2}

# key: (minute of the day, rank among those of a minute, number); run: the function, or a hook's name.
Job = namedtuple('Job', 'key run')


def task_minutes(time, frequency, kind='daily'):
    """The minutes of the day that a task's time means. Raises BadRequest."""
    text = time.strip().lower() if isinstance(time, str) else ''
    if text in ('every_bar', 'every_minute'):
        if kind != 'daily':
            raise BadRequest('every_bar 只用于 run_daily', "例如 time='9:30'")
        return (_OPEN_MINUTE,) if frequency == 'day' else HANDLE_DATA_MINUTES
    clock, offset = _CLOCK_TIME.fullmatch(text), _OFFSET_TIME.fullmatch(text)
    if text in _NAMED_TIMES:
        minute = _NAMED_TIMES[text]
    elif clock:
        minute = int(clock.group(1)) * 60 + int(clock.group(2)) if int(clock.group(2)) < 60 else -1
    elif offset:
        step = int(offset.group(3)) * (60 if offset.group(4) == 'h' else 1)
        minute = _NAMED_TIMES[offset.group(1)] + (step if offset.group(2) == '+' else -step)
    else:
        minute = -1
    if not 0 <= minute < 24 * 60:
        raise BadRequest('运行时间不认识：%s' % brief(time), "例如 '9:30'、'14:50'、'open'、'open+5m'、'before_open'、'every_bar'")
    return (minute,)


class ScheduledTask:
    """A function at the same minutes of each day, or of the number-th trade day of each week or month.

    registered: the day; after: of that day only the minutes after this one count, those of the job that registered it
    do not: a task that registers itself would never end.
    """

    def __init__(self, kind, func, minutes, number, force, registered, order, after=-1):
        self.kind, self.func, self.minutes, self.number = kind, func, minutes, number
        self.force, self.registered, self.order, self.after = force, registered, order, after

    def minutes_of(self, day):
        return [minute for minute in self.minutes if day != self.registered or minute > self.after]

    def is_due(self, days, day):
        """days: the trade days of the week or month of `day` from the run's first day on."""
        if self.kind == 'daily':
            return True
        if self.force:  # what was missed before it was registered is made up
            days = [other for other in days if other >= self.registered]
        place = self.number - 1 if self.number > 0 else len(days) + self.number
        return bool(days) and days[max(0, min(place, len(days) - 1))] == day


class Schedule:
    """The tasks of a run and the strategy's hooks. days: trade days (date, ascending), those to come included.

    first_day: the run's; a week or month counts from it on. A time that only a clock can tell never enters here.
    """

    def __init__(self, days, first_day, frequency):
        self.frequency, self._days, self._first_day = frequency, days, first_day
        self._tasks, self._version, self._numbers, self.hooks = [], 0, itertools.count(), ()

    def add(self, kind, func, time, number=None, force=False, registered=None, after=-1):
        minutes = task_minutes(time, self.frequency, kind)
        self._tasks.append(ScheduledTask(kind, func, minutes, number, force, registered or self._first_day,
                                         next(self._numbers), after))
        self._version += 1

    @property
    def has_tasks(self):
        return bool(self._tasks)

    def clear(self):
        self._tasks, self._version = [], self._version + 1

    def saved(self):
        """(tasks as rows of plain values, the next number): what another process needs to go on with them."""
        following = next(self._numbers)
        self._numbers = itertools.count(following)
        return [(task.kind, task.func.__name__, task.minutes, task.number, task.force, task.registered, task.order,
                 task.after) for task in self._tasks], following

    def restore(self, rows, following, function_of):
        """Takes such rows; function_of(name) -> the function, or None for one that is gone."""
        found = [(function_of(row[1]), row) for row in rows]
        self._tasks = [ScheduledTask(row[0], func, *row[2:]) for func, row in found if func is not None]
        self._numbers, self._version = itertools.count(following), self._version + 1

    def jobs(self, day):
        """All Jobs of a trade day, in their order."""
        periods = {kind: self._period(kind, day) for kind in {task.kind for task in self._tasks}}
        due = [task for task in self._tasks if task.is_due(periods[task.kind], day)]
        jobs = [Job((minute, _TASK_RANKS[task.kind], task.order), task.func)
                for task in due for minute in task.minutes_of(day)]
        for rank, (name, of_days, of_minutes) in enumerate(_HOOKS, len(_TASK_RANKS)):
            if name in self.hooks:
                minutes = of_days if self.frequency == 'day' else of_minutes
                jobs += [Job((minute, rank, 0), name) for minute in minutes]
        return sorted(jobs, key=lambda job: job.key)

    def walk(self, day, after=(-1,)):
        """The Jobs of a day one by one, later than the key `after`. Tasks may be added and dropped meanwhile."""
        version = None
        while True:
            if version != self._version:
                version, queue = self._version, deque(job for job in self.jobs(day) if job.key > after)
            if not queue:
                return
            job = queue.popleft()
            after = job.key
            yield job

    def _period(self, kind, day):
        """The trade days of the week or month of `day` that count."""
        if kind == 'daily':
            return [day]
        key = _week_of if kind == 'weekly' else _month_of
        around = bisect.bisect_left(self._days, day)
        near = self._days[max(0, around - 31):around + 32]
        return [other for other in near if key(other) == key(day) and other >= self._first_day]


def _week_of(day):
    return tuple(day.isocalendar())[:2]


def _month_of(day):
    return day.year, day.month


# ======================================================================================================
# 11. BARS - unadjusted bars of a provider in large blocks, kept in arrays and put on any price level
# ======================================================================================================
_DAY_FIELDS = ('open', 'close', 'high', 'low', 'volume', 'money', 'pre_close', 'high_limit', 'low_limit', 'paused')
_MINUTE_FIELDS = ('open', 'close', 'high', 'low', 'volume', 'money', 'paused')
_DAY_MS = 86400000
BLOCK_SECURITIES = 50   # asked for at once
BLOCK_DAYS = 60         # trade days of minutes fetched at once
WARM_UP_DAYS = 500      # trade days before the run's start fetched at first


def need_pandas():
    """(pandas, numpy). Raises ConfigError where they are not installed."""
    pandas, numpy = optional_import('pandas'), optional_import('numpy')
    if pandas is None or numpy is None:
        raise ConfigError('运行策略需要 pandas', '先运行 pip install pandas')
    return pandas, numpy


# A base factor whose prices are not rounded to cents.
Exact = namedtuple('Exact', 'base')


@functools.lru_cache(maxsize=None)
def placed_types():
    """(DataFrame, Series) of what strategies are given: closes[-1] is the last one, as it is on JoinQuant.

    pandas 3 alone takes the number for a label, of which there is none.
    """
    pandas, _ = need_pandas()
    if not numbers_are_labels():
        return pandas.DataFrame, pandas.Series

    class Series(pandas.Series):
        _constructor = property(lambda self: Series)
        _constructor_expanddim = property(lambda self: DataFrame)

        def __getitem__(self, key):
            return self.iloc[key] if _is_place(self.index, key) else super().__getitem__(key)

        def __setitem__(self, key, value):
            if _is_place(self.index, key):
                self.iloc[key] = value
            else:
                super().__setitem__(key, value)

        def __reduce_ex__(self, protocol):
            return placed, (pandas.Series(self),)

    class DataFrame(pandas.DataFrame):
        _constructor = property(lambda self: DataFrame)
        _constructor_sliced = property(lambda self: Series)

        def __reduce_ex__(self, protocol):
            return placed, (pandas.DataFrame(self),)

    return DataFrame, Series


def placed(data):
    """A frame or Series, as strategies are given it."""
    return placed_types()[data.ndim == 1](data)


def _is_place(index, key):
    """Whether a key is a number while the labels are none."""
    return (isinstance(key, numbers.Integral) and not isinstance(key, bool) and index.nlevels == 1
            and index.inferred_type not in ('integer', 'mixed-integer', 'floating', 'mixed-integer-float', 'boolean'))


class BarBlock:
    """Bars of one security, oldest first. times: ms (array); columns: name -> array of floats, unadjusted.

    steps: [(ms of a day, cumulative factor from that day on)], ascending. A level is a base factor: prices are
    multiplied by the factor of their day and divided by the base; None leaves them as they were traded.
    """

    LEVELS_KEPT = 40

    def __init__(self, code, times, columns, steps):
        self.code, self.times, self.columns, self.steps = code, times, columns, steps
        self.numpy = optional_import('numpy')
        self.moments = self.numpy.array(times, dtype='int64')
        self._levels, self._index, self._live, self._live_before = OrderedDict(), None, None, None

    def live_rows(self, start, stop, count=None):
        """The rows from start to stop that traded, the last `count` of them: a slice, or an array with gaps."""
        if self._live is None:
            traded = self.numpy.array(self.columns['paused']) == 0
            self._live = self.numpy.flatnonzero(traded)
            self._live_before = [0] + self.numpy.cumsum(traded).tolist()
        first, end = self._live_before[start], self._live_before[stop]
        rows = self._live[first if count is None else max(first, end - count):end]
        whole = len(rows) and rows[-1] - rows[0] == len(rows) - 1
        return slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows

    @property
    def index(self):
        """The times as pandas has them."""
        if self._index is None:
            self._index = optional_import('pandas').DatetimeIndex(self.moments.astype('datetime64[ms]').astype(
                'datetime64[ns]'))
        return self._index

    def level(self, name, base):
        """The whole column as a numpy array that nobody may write to."""
        values = self._levels.get((name, base))
        if values is None:
            values = self._levels[name, base] = self._column(name, base)
            if len(self._levels) > self.LEVELS_KEPT:
                self._levels.popitem(last=False)
        return values

    def _column(self, name, base):
        if name in ('avg', 'price'):
            money, volume, close = (self.level(each, base) for each in ('money', 'volume', 'close'))
            return self.numpy.where(volume > 0, money / self.numpy.where(volume > 0, volume, 1), close)
        if name == 'factor':
            return self._factors(base.base if isinstance(base, Exact) else base)
        if base is None or name in ('money', 'paused'):
            return self.numpy.array(self.columns[name])
        if isinstance(base, Exact):
            values, factors = self.numpy.array(self.columns[name]), self._factors(base.base)
            return values / factors if name == 'volume' else values * factors
        digits = 3 if instrument(self.code).tick < 0.01 else 2
        ranges = factor_ranges(self.times, self.steps, base)
        return self.numpy.array(scale({name: self.columns[name]}, ranges, digits)[name])

    def _factors(self, base):
        factors = self.numpy.ones(len(self.times))
        for start, stop, ratio in factor_ranges(self.times, self.steps, base) if base is not None else ():
            factors[start:stop] = ratio
        return factors


class DayBlock(BarBlock):
    """A row for each trade day from the calendar's row `first` on. complete: whether there is nothing before it."""

    def __init__(self, code, times, columns, steps, first, complete):
        super().__init__(code, times, columns, steps)
        self.first, self.complete = first, complete


class BarStore:
    """All bars of a run. calendar: ms of all trade days the provider knows around the run; days: the same as date.

    Raises ConfigError without pandas and BulletError where the provider fails.
    """

    def __init__(self, provider, start, end, today):
        self.pandas, self.numpy = need_pandas()
        self.provider, self._today = provider, today
        self.days = provider.get_trade_days(start_date='1990-01-01', end_date=end + timedelta(days=40))
        self.calendar = array('q', [to_ms(day) for day in self.days])
        self.row_of = {day: row for row, day in enumerate(self.days)}
        self.start_row = bisect.bisect_left(self.days, start)
        self.last_row = bisect.bisect_right(self.days, end) - 1
        self._days, self._minutes, self._infos, self._today_factors, self._lacking = {}, {}, {}, {}, {}
        self.without_minutes = OrderedDict()  # codes, in the order in which it was noticed

    def info(self, code):
        """SecurityInfo. Raises SecurityNotFound."""
        if code not in self._infos:
            self._infos[code] = self.provider.get_security_info(code)
        return self._infos[code]

    # -- days ----------------------------------------------------------------------------------------------------
    def daily(self, code, row=None):
        """The DayBlock of a security; row: of the calendar, from which on it is wanted if there is anything."""
        block = self._days.get(code)
        if block is None:
            self.load([code])
            block = self._days[code]
        if row is not None and row < block.first and not block.complete:
            self._load_days([code], 0)
            block = self._days[code]
        return block

    def load(self, codes):
        """Fetches what is missing of these, many at a time."""
        missing = [code for code in codes if code not in self._days]
        for start in range(0, len(missing), BLOCK_SECURITIES):
            self._load_days(missing[start:start + BLOCK_SECURITIES], max(0, self.start_row - WARM_UP_DAYS))

    def _load_days(self, codes, first):
        if self.last_row < first:
            raise DataUnavailable('%s 在 %s 之前没有交易日' % (codes[0], self.days[first] if self.days else '现在'))
        span = dict(start_date=self.days[first], end_date=self.days[self.last_row], frequency='daily', panel=False)
        bars = self.provider.get_price(codes, fields=list(_DAY_FIELDS), fq=None, **span)
        factors = self.provider.get_price(codes, fields=['factor'], fq='post', **span)
        both = zip(codes, self._parts(bars, codes, _DAY_FIELDS), self._parts(factors, codes, ('factor',)))
        for code, (times, columns), (days, factor) in both:
            steps = _factor_steps_of(days, factor['factor'])
            if any(not 0 < step < math.inf for _, step in steps):
                raise DataUnavailable('%s 的复权因子不能用' % code, '检查行情来源的除权数据')
            times, columns = self._aligned(times, columns, first)
            self._days[code] = DayBlock(code, times, columns, steps, first, first == 0)

    def _parts(self, frame, codes, names):
        """(times, columns as arrays) of each code of a long frame."""
        owner = frame['code'].values
        moments = frame['time'].values.astype('datetime64[ms]').astype('int64')
        for code in codes:
            mine = self.numpy.flatnonzero(owner == code)
            columns = {name: array('d', frame[name].values[mine].astype('float64').tobytes()) for name in names}
            yield array('q', moments[mine].tobytes()), columns

    def _aligned(self, times, columns, first):
        """A row for each trade day, also where the source left out the suspended ones."""
        wanted = self.calendar[first:self.last_row + 1]
        if times == wanted:
            return times, columns
        filled = {name: array('d') for name in columns}
        for day in wanted:
            row = bisect.bisect_right(times, day) - 1
            here = row >= 0 and times[row] == day
            for name in columns:
                filled[name].append(columns[name][row] if here else _missing_day_value(columns, name, row))
        return wanted, filled

    def todays_factor(self, code):
        """The factor of the real today: what prices are adjusted to where the strategy wants no real prices."""
        if code not in self._today_factors:
            frame = self.provider.get_price(code, count=1, end_date=self._today, fields=['factor'], fq='post')
            factor = float(frame['factor'].values[-1]) if len(frame) else math.nan
            if not 0 < factor < math.inf:
                raise DataUnavailable('%s 在 %s 的复权因子没有或不能用' % (code, self._today),
                                      "检查行情来源，或 set_option('use_real_price', True)")
            self._today_factors[code] = factor
        return self._today_factors[code]

    # -- minutes -------------------------------------------------------------------------------------------------
    def minutes(self, code, first, last):
        """BarBlock of minutes that has all days of these rows of the calendar; None where the source lacks one."""
        known = self._minutes.get(code)
        if known is None or not (known[1] <= first and last < known[2]):
            known = self._extended(code, known, first, last)
        return known[0]

    def _extended(self, code, known, first, last):
        """What is known of minutes, (block, first row, row after the last), with these days.

        Whole blocks of days are asked for, and where the source lacks a day of the block these days alone. It may have
        those of the last years alone: where it lacked a single day, it is not asked for earlier ones.
        """
        lacking = self._lacking.get(code, -1)
        if first <= lacking:
            return None, first, last + 1
        low = max(lacking + 1, first - first % BLOCK_DAYS)
        high = min(self.last_row + 1, max(known[2] if known else 0, last - last % BLOCK_DAYS + BLOCK_DAYS))
        for span in ((low, high), (first, high), (first, last + 1)):
            found = self._spanned(code, known, *span)
            if found[0] is not None or found[2] == math.inf:
                self._minutes[code] = found
                return found
        if first == last:
            self._lacking[code] = first
        return found

    def _spanned(self, code, known, low, high):
        """The known block made to reach from one row to the other, or a new one; its block is None without them."""
        old = known[0] if known and known[1] <= low <= known[2] <= high else None
        try:
            times, columns = _appended(old, self._minute_part(code, low if old is None else known[2], high))
        except DataUnavailable as error:
            return (None, 0, math.inf) if error.details.get('lasting') else (None, low, high)
        start = low if old is None else known[1]
        return BarBlock(code, times, columns, self.daily(code, start).steps), start, high

    def _minute_part(self, code, first, stop):
        """(times, columns) of the days of these rows. Raises DataUnavailable where the source lacks one of them."""
        end = datetime.combine(self.days[stop - 1], time(15))
        frame = self.provider.get_price(code, start_date=datetime.combine(self.days[first], time(9)), end_date=end,
                                        frequency='1m', fields=list(_MINUTE_FIELDS), fq=None)
        moments = frame.index.values.astype('datetime64[ms]').astype('int64')
        columns = {name: array('d', frame[name].values.astype('float64').tobytes()) for name in _MINUTE_FIELDS}
        return array('q', moments.tobytes()), columns


def _factor_steps_of(times, factors):
    """[(ms, factor)] where the factor changes; the first is that of the first day."""
    return [(times[row], factors[row]) for row in range(len(times))
            if factors[row] == factors[row] and (not row or factors[row] != factors[row - 1])]


def _missing_day_value(columns, name, row):
    """What a day shows that the source left out: the last close while suspended, nothing before the first bar."""
    if row < 0:
        return math.nan
    if name in ('volume', 'money'):
        return 0.0
    return 1.0 if name == 'paused' else columns['close'][row]


def _appended(block, part):
    if block is None:
        return part
    if part is None:
        return block.times, block.columns
    return block.times + part[0], {name: block.columns[name] + part[1][name] for name in block.columns}


# ======================================================================================================
# 12. DATA API - what a strategy may know at its time T; nothing later than T ever leaves
# ======================================================================================================
class FutureDataError(Exception):
    """A time later than the strategy's own was asked for, with set_option('avoid_future_data', True)."""


_OPENING = 9 * 60 + 30
_KNOWN_EARLY = frozenset(['pre_close', 'high_limit', 'low_limit', 'paused', 'factor'])  # of today, before the open
_SIX = ('open', 'close', 'high', 'low', 'volume', 'money')
_CHART_FIELDS = ('date', 'open', 'high', 'low', 'close')
_FIELDS = frozenset(_DAY_FIELDS) | {'factor', 'avg', 'price'}
_TODAY = object()  # fq_ref_date was not given
LABELS_KEPT = 50


class Window:
    """Rows of one security: times (ms), columns name -> numpy array, index: the times as pandas has them."""

    def __init__(self, times, columns, index_of):
        self.times, self.columns, self._index_of = times, columns, index_of

    @property
    def index(self):
        """Made when it is asked for: where many windows become one frame, one index will do."""
        return self._index_of()


class DataView:
    """Market data at the time T. options: of the strategy (use_real_price, avoid_future_data).

    move(moment) sets T; before_row, done_row: the calendar's row of the day before T's and of the last complete day.
    The engine asks last_price, day_value, limits, bars_between; strategies the calls below.
    """

    day = None

    def __init__(self, store, options, warn):
        self.store, self.options, self._warn = store, options, warn
        self.numpy, self.pandas = store.numpy, store.pandas
        self._frame_type = placed_types()[0]
        self.universe, self._label_cache, self._told_of_panel = [], {}, False

    def move(self, moment):
        self.now, self.minute, day = moment, moment.hour * 60 + moment.minute, moment.date()
        self.now_ms = to_ms(moment)
        self.today_row = self.store.row_of.get(day)
        if self.day != day:
            self.day, self.before_row = day, bisect.bisect_left(self.store.days, day) - 1
        closed = self.today_row is not None and self.minute >= _CLOSE_MINUTE
        self.done_row = self.today_row if closed else self.before_row

    # -- what the engine asks ------------------------------------------------------------------------------------
    def base(self, code, block):
        """The factor that prices are anchored at: T's, or the real today's."""
        if not self.options.use_real_price:
            return self.store.todays_factor(code)
        return factor_at(block.steps, self.now_ms)

    def day_value(self, code, name, row=None):
        """A figure of a day (default: T's), on T's price level; NaN where the security, or T, had no trading."""
        asked = self.today_row if row is None else row
        if asked is None:
            return math.nan
        block = self.store.daily(code)
        place = asked - block.first
        if not 0 <= place < len(block.times):
            return math.nan
        if self.options.use_real_price and row is None or name == 'paused':
            return block.columns[name][place]
        return float(block.level(name, self.base(code, block))[place])

    def last_price(self, code):
        """Yuan. Before the open the day's reference price; after it the last minute's; 0.0 where there is none."""
        if self.today_row is None:
            price = self.day_value(code, 'close', self.done_row)
        elif self.minute < _OPENING:
            price = self.day_value(code, 'pre_close')
        elif self.minute >= _CLOSE_MINUTE:
            price = self.day_value(code, 'close')
        else:
            price = self._price_within(code)
        return price if price == price else 0.0

    def _price_within(self, code):
        """During the day: the close of the last minute that is over, before the first of them the day's open."""
        if self.minute > _OPENING and not self.is_paused(code):
            block, base = self._todays_minutes(code)
            place = bisect.bisect_right(block.times, self.now_ms) - 1 if block else -1
            if place >= 0 and block.times[place] >= self.now_ms - self.now_ms % _DAY_MS:
                return float(block.level('close', base)[place])
        return self.day_value(code, 'open')

    def _todays_minutes(self, code):
        """(block, base), (None, None) without minutes of today; base None where the day's own prices are wanted."""
        block, today = self.store.minutes(code, self.today_row, self.today_row), self.store.calendar[self.today_row]
        if block is None or bisect.bisect(block.times, today) == bisect.bisect(block.times, today + _DAY_MS - 1):
            if not self.is_paused(code):
                self.store.without_minutes[code] = None
            return None, None
        return block, None if self.options.use_real_price else self.base(code, block)

    def has_minutes(self, code):
        return self._todays_minutes(code)[0] is not None

    def is_paused(self, code):
        """Today suspended, not listed yet, delisted, or no trade day."""
        return self.today_row is None or self.day_value(code, 'paused') != 0

    def limits(self, code):
        """(high, low) of today, infinities where there are none; NaN where the source does not tell, nor the rules.

        What the source tells does not count where the day's trades lie beyond it: it was derived without knowing
        what the security is.
        """
        seen = self.day_value(code, 'low'), self.day_value(code, 'high')
        told = self.day_value(code, 'high_limit'), self.day_value(code, 'low_limit')
        refuted = not inside_limits(told, *seen)
        if refuted:
            told = math.nan, math.nan
        if told[0] == told[0] and told[1] == told[1]:
            return told
        return self._limits_by_rule(told, refuted, seen, self.day_value(code, 'pre_close'), code)

    def _limits_by_rule(self, told, refuted, seen, before, code):
        none = (math.inf, -math.inf)
        if not before > 0:
            return none if refuted else (math.nan, math.nan)
        rules = price_limits(code, before, self.now.date(), seen=seen)
        return tuple(own if own == own else none[side] if rules[side] is None else rules[side]
                     for side, own in enumerate(told))

    def bars_between(self, code, after_ms, until_ms):
        """[(ms, high, low, volume)] of today's minutes with after < label <= until; None without minutes."""
        block, base = self._todays_minutes(code)
        if block is None:
            return None
        start, stop = bisect.bisect_right(block.times, after_ms), bisect.bisect_right(block.times, until_ms)
        columns = [block.level(name, base)[start:stop].tolist() for name in ('high', 'low', 'volume')]
        return list(zip(block.times[start:stop], *columns))

    # -- windows of bars -----------------------------------------------------------------------------------------
    def day_window(self, code, fields, first, last, count, skip_paused, fill_paused, fq, base=None):
        """Days up to the calendar's row `last`: the last `count`, or those from row `first` on."""
        wanted = max(0, last + 1 - count) if first is None else first
        block = self.store.daily(code, wanted)
        rows = self._day_rows(block, wanted, last, count, skip_paused)
        if skip_paused and count is not None and _length(rows) < count and not block.complete:
            block = self.store.daily(code, 0)
            rows = self._day_rows(block, wanted, last, count, skip_paused)
        level = self._level(code, block, fq) if base is None else base
        columns = OrderedDict((name, block.level(name, level)[rows]) for name in fields)
        window = Window(block.moments[rows], columns, lambda: block.index[rows])
        if not skip_paused and not fill_paused:
            _blank_paused(window.columns, block.level('paused', None)[rows])
        if last == self.today_row and last != self.done_row and len(window.times):
            self._patch_today(code, window, fields, level)
        return window

    @staticmethod
    def _day_rows(block, first, last, count, skip_paused):
        start, stop = max(0, first - block.first), max(0, last + 1 - block.first)
        if not skip_paused:
            return slice(start, stop)
        return block.live_rows(min(start, stop), stop) if count is None else block.live_rows(0, stop, count)

    def _level(self, code, block, fq):
        if fq is None:
            return None
        base = 1.0 if fq.endswith('post') else self.base(code, block)
        return Exact(base) if fq.startswith('exact') else base

    def _patch_today(self, code, window, fields, level):
        """The running day shows what is known of it. The columns are copied: they were views of what is kept."""
        if window.times[-1] != self.store.calendar[self.today_row]:
            return
        running = self._running_day(code, level)
        for name in set(fields) - _KNOWN_EARLY:
            values = self.numpy.array(window.columns[name])
            values[-1] = running[name]
            window.columns[name] = values

    def _running_day(self, code, level):
        """Dict of today's bar so far; nothing of it before the open."""
        if self.minute < _OPENING:
            return dict.fromkeys(_FIELDS, math.nan)
        day = self.store.daily(code)
        row = self.today_row - day.first
        first = float(day.level('open', level)[row])
        bar = dict(open=first, close=first, high=first, low=first, volume=0.0, money=0.0)
        block = self._todays_minutes(code)[0] if self.minute > _OPENING else None
        start = bisect.bisect_right(block.times, self.store.calendar[self.today_row]) if block else 0
        stop = bisect.bisect_right(block.times, self.now_ms) if block else 0
        if stop > start:
            part = {name: block.level(name, level)[start:stop] for name in _SIX}
            bar.update(close=part['close'][-1], high=max(first, part['high'].max()), low=min(first, part['low'].min()),
                       volume=part['volume'].sum(), money=part['money'].sum())
        average = bar['money'] / bar['volume'] if bar['volume'] else bar['close']
        return dict(bar, avg=average, price=average)

    def minute_window(self, code, fields, start_ms, end_ms, count, skip_paused, fill_paused, fq, base=None):
        """Minutes with start <= label <= end <= T: the last `count` of them if start is None."""
        end_ms = min(end_ms, self.now_ms)
        last = min(bisect.bisect_right(self.store.calendar, end_ms) - 1, self.store.last_row)
        if last < 0:
            return self._empty(fields)
        first, back = self._first_minute_row(last, start_ms, count), BLOCK_DAYS
        while True:
            block = self.store.minutes(code, first, last)
            if block is None:
                raise DataUnavailable('%s 没有分钟线' % code, '换一个有分钟线的 provider（命令行 --data-provider），或只用日线')
            rows = self._minute_rows(block, start_ms, end_ms, count, skip_paused)
            if count is None or _length(rows) >= count or first == 0 or self._is_before_listing(code, first):
                break
            first, back = max(0, first - back), back * 2  # all is read anew each time: in few, growing steps
        level = self._level(code, block, fq) if base is None else base
        return self._minute_columns(code, block, rows, fields, fill_paused, level)

    def _first_minute_row(self, last, start_ms, count):
        if start_ms is not None:
            return max(0, min(last, bisect.bisect_right(self.store.calendar, start_ms) - 1))
        return max(0, last - -(-count // 240))

    @staticmethod
    def _minute_rows(block, start_ms, end_ms, count, skip_paused):
        start = 0 if start_ms is None else bisect.bisect_left(block.times, start_ms)
        stop = max(start, bisect.bisect_right(block.times, end_ms))
        if skip_paused:
            return block.live_rows(start, stop, count)
        return slice(start if count is None else max(start, stop - count), stop)

    def _is_before_listing(self, code, row):
        return self.store.days[row] < self.store.info(code)['start_date']

    def _minute_columns(self, code, block, rows, fields, fill_paused, level):
        columns = OrderedDict()
        for name in fields:
            if name in ('high_limit', 'low_limit'):
                columns[name] = self._of_days(code, name, block.moments[rows], level)
            else:
                columns[name] = block.level('open' if name == 'pre_close' else name, level)[rows]
        if not fill_paused:
            _blank_paused(columns, block.level('paused', None)[rows])
        return Window(block.moments[rows], columns, lambda: block.index[rows])

    def _of_days(self, code, name, moments, level):
        """The figure of the day of each of these moments."""
        if not len(moments):
            return self.numpy.empty(0)
        block = self.store.daily(code, bisect.bisect_right(self.store.calendar, int(moments[0])) - 1)
        places = self.numpy.searchsorted(block.moments, moments, side='right') - 1
        return block.level(name, level)[places]

    def _empty(self, fields):
        nothing, times = self.numpy.empty(0), self.numpy.empty(0, 'int64')
        return Window(times, OrderedDict((name, nothing) for name in fields), lambda: self._index_of(times))

    # -- questions -----------------------------------------------------------------------------------------------
    def _end(self, end, unit):
        """ms up to which bars are asked for, cut at T; a later one is refused if the strategy wants that."""
        if end is None:
            return self.now_ms
        moment = _asked_moment(end, 'end_date')
        asked = to_ms(moment) if unit == 'm' else to_ms(moment.date())
        self._refuse_future(asked, unit, end)
        return min(asked, self.now_ms)

    def _refuse_future(self, asked, unit, shown):
        known = self.now_ms if unit == 'm' else to_ms(self.now.date())
        if self.options.avoid_future_data and asked > known:
            raise FutureDataError('要了 %s 的数据，现在是 %s；set_option(\'avoid_future_data\', True) 时不允许' % (
                brief(shown), self.now))

    def last_day_row(self, end_ms, fields):
        """The last day that counts: today only once all that is asked of it is known."""
        last = bisect.bisect_right(self.store.calendar, end_ms) - 1
        early = self.minute < _OPENING and not set(fields) <= _KNOWN_EARLY
        if last == self.today_row and early:
            last -= 1
        return min(last, self.store.last_row)

    def window(self, code, unit, step, start, end_ms, count, fields, skip_paused, fill_paused, fq):
        """Bars of any period: of 'Xd' and 'Xm' as many as go back from the end, of weeks and months the calendar's."""
        code = normalize_code(code)
        self.store.info(code)
        if unit == 'm':
            rows = self.minute_window(code, fields, start, end_ms, count and count * step, skip_paused, fill_paused, fq)
        else:
            days = count and count * {'d': step, 'w': 7, 'M': 31}[unit]
            first = None if start is None else bisect.bisect_left(self.store.calendar, start)
            last = self.last_day_row(end_ms, fields)
            if last < 0 or (first is not None and last < first):
                return self._empty(fields)
            rows = self.day_window(code, fields, first, last, days, skip_paused, fill_paused, fq)
        return self._merged(rows, unit, step, count)

    def _merged(self, rows, unit, step, count):
        if unit in ('w', 'M'):
            groups = calendar_groups(rows.times.tolist(), unit)
        elif step > 1:
            groups = windows_from_end(len(rows.times), step)
        else:
            return rows
        return self._combined(rows, groups[-count:] if count else groups)

    def _combined(self, rows, groups):
        plain = {'avg': 'close', 'price': 'close'}
        columns = OrderedDict()
        for name, values in rows.columns.items():
            merged = combine({plain.get(name, name): array('d', values.tobytes())}, groups)
            columns[name] = self.numpy.array(next(iter(merged.values())))
        if {'avg', 'price'} & set(columns) and {'money', 'volume'} <= set(columns):
            for name in {'avg', 'price'} & set(columns):
                columns[name] = columns['money'] / self.numpy.where(columns['volume'] > 0, columns['volume'], 1)
        times = self.numpy.array([rows.times[stop - 1] for _, stop in groups], dtype='int64')
        return Window(times, columns, lambda: self._index_of(times))

    def _index_of(self, times):
        return self.pandas.DatetimeIndex(times.astype('datetime64[ms]').astype('datetime64[ns]'))

    # -- calls of a strategy: bars -------------------------------------------------------------------------------
    def get_price(self, security, start_date=None, end_date=None, frequency='daily', fields=None, skip_paused=False,
                  fq='pre', count=None, panel=True, fill_paused=True, round=True):
        """JoinQuant's get_price, up to T: without end_date up to T; the running day shows what is known of it.

        round=False: adjusted prices and volumes as they come out, not rounded to cents and shares.
        """
        step, unit = parse_frequency(frequency)
        names, fq = _asked_fields(fields), _asked_fq(fq)
        fq = fq if fq is None or check_flag(round, 'round') else 'exact ' + fq
        start, count = self._start(start_date, count, unit)
        end_ms = self._end(end_date, unit)
        _refuse_reversed(start_date, end_date, unit)
        ask = functools.partial(self.window, unit=unit, step=step, start=start, end_ms=end_ms, count=count,
                                skip_paused=skip_paused, fill_paused=fill_paused, fq=fq)
        if isinstance(security, str):
            return self._frame(ask(security, fields=names))
        codes = _asked_codes(security, 'security')
        if skip_paused and panel and len(codes) > 1:
            raise BadRequest('多个证券且 skip_paused=True 时各证券的日期不同，不能用 panel=True', '加上 panel=False')
        self.store.load(codes)
        return self._many([(code, ask(code, fields=names)) for code in codes], names, panel)

    def _start(self, start, count, unit):
        """(ms or None, count)"""
        _refuse_both(start, count)
        if count is not None:
            return None, check_whole(count, 'count', 1, 10 ** 7)
        moment = _asked_moment('2015-01-01' if start is None else start, 'start_date')
        asked = to_ms(moment) if unit == 'm' else to_ms(moment.date())
        if start is not None:
            self._refuse_future(asked, unit, start)
        return asked, None

    def _frame(self, window):
        """Times x fields, of a copy."""
        matrix = self.numpy.array(list(window.columns.values())).T
        labels = self._labels(tuple(window.columns))
        return self._frame_type(matrix, index=window.index, columns=labels, copy=False)

    def _labels(self, names):
        """The pandas index of these column names; to make one takes longer than all the rest of a frame."""
        if names not in self._label_cache:
            if len(self._label_cache) >= LABELS_KEPT:  # pools of thousands that change every day
                self._label_cache.clear()
            self._label_cache[names] = self.pandas.Index(names)
        return self._label_cache[names]

    def _many(self, windows, names, panel):
        if panel and has_panel():
            return self._panel(windows, names)
        if panel:
            self._tell_of_panel()
        columns = OrderedDict([('time', self._joined([each.index.values for _, each in windows], 'datetime64[ns]'))])
        codes = [code for code, each in windows for _ in range(len(each.times))]
        columns['code'] = self.pandas.Series(codes, dtype=object)  # text of its own kind on pandas 3 alone
        for name in names:
            columns[name] = self._joined([each.columns[name] for _, each in windows], 'float64')
        return self._frame_type(columns, columns=list(columns))

    def _joined(self, parts, kind):
        return self.numpy.concatenate(parts) if parts else self.numpy.empty(0, kind)

    def _tell_of_panel(self):
        """Once a run: a shape that changes without a word makes other numbers, not errors."""
        if not self._told_of_panel:
            self._told_of_panel = True
            self._warn('get_price 取多个证券：聚宽（pandas 0.23）给 Panel，这里的 pandas 没有 Panel，给的是 time、code 和各字段的长表；'
                       "按证券取值写 frame.pivot(index='time', columns='code', values='close')，写上 panel=False 不再提示")

    def _panel(self, windows, names):
        frames = OrderedDict((name, self.pandas.DataFrame(OrderedDict(
            (code, self.pandas.Series(each.columns[name], each.index)) for code, each in windows))) for name in names)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', FutureWarning)  # that Panel goes away is no news to its users
            return self.pandas.Panel(frames)

    def history(self, count, unit='1d', field='avg', security_list=None, df=True, skip_paused=False, fq='pre'):
        """One field of many: days end yesterday, minutes with the last that is over."""
        codes = _asked_codes(self.universe if security_list is None else security_list, 'security_list')
        self.store.load(codes)
        name = _asked_fields([field])[0]
        _recent_terms(count, unit, fq)
        windows = OrderedDict((code, self._recent(code, count, unit, [name], skip_paused, fq)) for code in codes)
        if not df:
            return {code: self.numpy.array(window.columns[name]) for code, window in windows.items()}
        if skip_paused:
            return self._frame_type(OrderedDict(
                (code, self.pandas.Series(window.columns[name])) for code, window in windows.items()))
        if not windows:
            return self._frame_type(index=self._empty(()).index)
        first = next(iter(windows.values()))
        if all(len(window.times) == len(first.times) for window in windows.values()):
            matrix = self.numpy.array([window.columns[name] for window in windows.values()]).T
            return self._frame_type(matrix, index=first.index, columns=self._labels(tuple(windows)))
        return self._frame_type(OrderedDict(
            (code, self.pandas.Series(window.columns[name], window.index)) for code, window in windows.items()))

    def attribute_history(self, security, count, unit='1d', fields=_SIX, skip_paused=True, df=True, fq='pre'):
        """Some fields of one security: days end yesterday, minutes with the last that is over."""
        window = self._recent(normalize_code(security), count, unit, _asked_fields(fields), skip_paused, fq)
        if df:
            return self._frame(window)
        return {name: self.numpy.array(values) for name, values in window.columns.items()}

    def _recent(self, code, count, unit, names, skip_paused, fq):
        step, unit, count, fq = _recent_terms(count, unit, fq)
        self.store.info(code)
        if unit == 'm':
            return self.window(code, unit, step, None, self.now_ms, count, names, skip_paused, True, fq)
        days = count * {'d': step, 'w': 7, 'M': 31}[unit]
        last = min(self.before_row, self.store.last_row)
        rows = self.day_window(code, names, None, last, days, skip_paused, True, fq)
        return self._merged(rows, unit, step, count)

    def get_bars(self, security, count, unit='1d', fields=_CHART_FIELDS, include_now=False, end_dt=None,
                 fq_ref_date=_TODAY, df=False):
        """Bars that are over at end_dt (a date is its 00:00) as charts have them, without suspended days.

        include_now: with the one that runs then.
        """
        single, codes = isinstance(security, str), _asked_codes(security, 'security')
        fields = _asked_fields(fields, _CHART_FIELDS, ('date',))
        names = [name for name in fields if name != 'date']
        count, _ = check_whole(count, 'count', 1, 10 ** 7), parse_frequency(unit)
        charts = OrderedDict((code, self._chart(code, count, unit, names, include_now, end_dt, fq_ref_date))
                             for code in codes)
        if not df:
            arrays = OrderedDict((code, self._records(window, fields)) for code, window in charts.items())
            return arrays[codes[0]] if single else arrays
        frames = OrderedDict((code, self._dated_frame(window, fields)) for code, window in charts.items())
        if not frames:
            nothing = self.pandas.MultiIndex.from_arrays([[], []])
            return self._dated_frame(self._empty(names), fields).set_index(nothing)
        return frames[codes[0]] if single else self.pandas.concat(list(frames.values()), keys=codes)

    def _chart(self, code, count, unit, names, include_now, end_dt, fq_ref_date):
        step, unit = parse_frequency(unit)
        end_ms = self._end(end_dt, 'm')
        self.store.info(code)
        base = self._chart_base(code, fq_ref_date)
        more = sorted(set(names) | {'money', 'volume', 'close'})
        if unit == 'm':
            rows = self.minute_window(code, more, None, end_ms, (count + 1) * step, True, True, None, base)
            groups = _chart_groups(rows.times.tolist(), step)
            running = bool(groups) and end_ms < _chart_end(int(rows.times[groups[-1][0]]), step)
        else:
            rows, running = self._chart_days(code, more, end_ms, (count + 1) * {'d': step, 'w': 7, 'M': 31}[unit], base)
            days = rows.times.tolist()
            groups = calendar_groups(days, unit) if unit in ('w', 'M') else windows_from_end(len(days), step)
            running = running or unit in ('w', 'M') and self._goes_on(days, unit, end_ms)
        groups = groups[:-1] if running and not include_now else groups
        chart = self._combined(rows, groups[-count:])
        if 'factor' in names:
            chart.columns['factor'] = self._cumulative_factors(code, chart.times)
        return chart

    def _cumulative_factors(self, code, times):
        """Since the listing, whatever fq_ref_date the prices of a chart have."""
        if not len(times):
            return self.numpy.empty(0)
        steps = self.store.daily(code, bisect.bisect_right(self.store.calendar, int(times[0])) - 1).steps
        return self.numpy.array([factor_at(steps, int(moment)) for moment in times])

    def _chart_base(self, code, ref):
        if ref is None:
            return None
        if ref is _TODAY:
            return self.base(code, self.store.daily(code))
        asked = to_ms(_asked_moment(ref, 'fq_ref_date').date())
        self._refuse_future(asked, 'd', ref)
        return factor_at(self.store.daily(code, 0).steps, min(asked, self.now_ms))

    def _chart_days(self, code, names, end_ms, count, base):
        """(Window of the days that have begun at end, whether the last one is still running then)."""
        last = self.last_day_row(end_ms, names)
        if last >= 0 and end_ms < self.store.calendar[last] + _OPENING * 60000:
            last -= 1
        if last < 0:
            return self._empty(names), False
        rows = self.day_window(code, names, None, last, count, True, True, None, base)
        day = self.store.calendar[last]
        running = last == self.today_row != self.done_row or end_ms < day + _CLOSE_MINUTE * 60000
        return rows, running and len(rows.times) > 0 and rows.times[-1] == day

    def _goes_on(self, days, unit, end_ms):
        """Whether the week or month of the last day has a trade day that is not over at `end_ms`."""
        after = bisect.bisect_right(self.store.calendar, end_ms - _CLOSE_MINUTE * 60000)
        if not days or after >= len(self.store.calendar):
            return False
        return len(calendar_groups([days[-1], self.store.calendar[after]], unit)) == 1

    def _records(self, window, fields):
        kinds = [(name, 'O' if name == 'date' else 'f8') for name in fields]
        records = self.numpy.empty(len(window.times), dtype=kinds)
        for name in fields:
            records[name] = _dates_of(window.times) if name == 'date' else window.columns[name]
        return records

    def _dated_frame(self, window, fields):
        columns = OrderedDict((name, window.index.values if name == 'date' else window.columns[name])
                              for name in fields)
        return self._frame_type(columns, columns=list(fields))

    # -- calls of a strategy: the rest ---------------------------------------------------------------------------
    def get_current_data(self, security_list=None):
        return CurrentData(self)

    def get_trade_days(self, start_date=None, end_date=None, count=None):
        """Array of date, both ends in; up to T if no end is given."""
        end = self.now.date() if end_date is None else _asked_moment(end_date, 'end_date').date()
        _refuse_reversed(start_date, end_date, 'd')
        stop = bisect.bisect_right(self.store.days, end)
        _refuse_both(start_date, count)
        if count is not None:
            return self._array_of(self.store.days[max(0, stop - check_whole(count, 'count', 1)):stop])
        start = date.min if start_date is None else _asked_moment(start_date, 'start_date').date()
        return self._array_of(self.store.days[bisect.bisect_left(self.store.days, start):stop])

    def get_all_trade_days(self):
        return self._array_of(self.store.days)

    def get_trade_day(self, security, query_dt):
        """{code: the trade day of that moment, or the one before it}."""
        days = self.get_trade_days(end_date=query_dt, count=1)
        return {code: days[-1] if len(days) else None for code in _asked_codes(security, 'security')}

    def _array_of(self, items):
        array_of_objects = self.numpy.empty(len(items), dtype=object)
        array_of_objects[:] = items
        return array_of_objects

    def get_all_securities(self, types=(), date=None):
        """Frame by code. What is listed only after T is not in it; an end after T is not known yet."""
        kinds = [] if types is None else _listed_values(types)
        if isinstance(types, dict) or not all(isinstance(kind, str) for kind in kinds):
            raise BadRequest('types 应为类型名或它们的列表，收到 %s' % brief(types), "例如 types=['stock', 'etf']")
        kinds = list(map(str, kinds)) or ['stock']
        frame = self.store.provider.get_all_securities(kinds, None if date is None else self._known_day(date))
        now = self.pandas.Timestamp(self.now)
        frame = frame[frame['start_date'] <= now].copy()
        frame.loc[frame['end_date'] > now, 'end_date'] = self.pandas.Timestamp(2200, 1, 1)
        for name in ('start_date', 'end_date'):
            moments = frame[name].values.astype('datetime64[ms]').astype('int64').tolist()
            frame[name] = self._array_of([listing_date(ms) for ms in moments])
        return placed(frame)

    def get_security_info(self, code, date=None):
        """Of what is not listed yet, too: its start_date is then later than T."""
        info = self.store.info(normalize_code(code))
        known = type(info)(info)
        if known['end_date'] > self.now.date():
            known['end_date'] = datetime(2200, 1, 1).date()
        return known

    def get_index_stocks(self, index_symbol, date=None):
        return self.store.provider.get_index_stocks(index_symbol, self._known_day(date))

    def get_extras(self, info, security_list, start_date=None, end_date=None, df=True, count=None):
        """is_st alone, by the name that the security has now: no source keeps its earlier ones."""
        if info != 'is_st':
            raise NotImplementedError('get_extras 只支持 is_st；基金净值等数据 QMT 没有，请自备并用 read_file 读入')
        days = self.get_trade_days(start_date, self._known_day(end_date), count)
        codes = _asked_codes(security_list, 'security_list')
        flags = OrderedDict((code, [self.is_st(code)] * len(days)) for code in codes)
        if not df:
            return {code: self.numpy.array(values, dtype=bool) for code, values in flags.items()}
        times = self.numpy.array([to_ms(day) for day in days], dtype='int64')
        return self._frame_type(flags, index=self._index_of(times), columns=codes)

    def is_st(self, code):
        return 'ST' in str(self.store.info(code).get('display_name') or '').upper()

    def _known_day(self, day):
        """A date at most T's."""
        if day is None:
            return self.now.date()
        asked = _asked_moment(day, 'date').date()
        self._refuse_future(to_ms(asked), 'd', day)
        return min(asked, self.now.date())


def _asked_moment(value, name):
    """A date, datetime, text, Timestamp or numpy datetime64 as datetime."""
    if hasattr(value, 'to_pydatetime'):
        value = value.to_pydatetime()
    elif hasattr(value, 'astype') and not isinstance(value, str):
        value = value.astype('datetime64[us]').astype(object)
    moment = check_moment(value, name)
    if moment is None:  # numpy's NaT
        raise BadRequest('%s 不是日期或时间' % name, '例如 2024-01-05')
    return moment[0]


def _refuse_reversed(start, end, unit):
    if start is not None and end is not None:
        moments = _asked_moment(start, 'start_date'), _asked_moment(end, 'end_date')
        check_span(*[to_ms(moment if unit == 'm' else moment.date()) for moment in moments])


def _refuse_both(start, count):
    if start is not None and count is not None:
        raise BadRequest('start_date 与 count 只能给一个', '去掉其中一个')


def _asked_fields(fields, default=_SIX, more=()):
    """List of the names, each once; `more`: what there is besides the fields of bars."""
    names = _listed_values(default if fields is None else fields)
    unknown = [name for name in names if not (isinstance(name, str) and (name in _FIELDS or name in more))]
    if unknown or not names:
        raise BadRequest('行情没有字段 %s' % brief(unknown), '可用：%s' % '、'.join(sorted(_FIELDS.union(more))))
    return list(OrderedDict.fromkeys(map(str, names)))


def _asked_codes(securities, name):
    """Codes of whatever holds some: a text, a list, an Index, a Series, an array, the positions."""
    return normalize_codes(_listed_values(securities), name)


def _listed_values(given):
    """A list of what is given, be it one value or many; what has no order is sorted."""
    if isinstance(given, str) or not hasattr(given, '__iter__'):
        return [given]
    return sorted(given, key=str) if isinstance(given, (set, frozenset)) else list(given)


def _recent_terms(count, unit, fq):
    """(step, unit, count, fq), checked."""
    return parse_frequency(unit) + (check_whole(count, 'count', 1, 10 ** 7), _asked_fq(fq))


def _asked_fq(fq):
    return None if fq in (None, 'none', '') else check_choice(fq, 'fq', ('pre', 'post'))


def _length(rows):
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _blank_paused(columns, paused):
    for name in columns:
        if name != 'factor' and (paused != 0).any():
            columns[name] = columns[name].copy()
            columns[name][paused != 0] = math.nan


def _dates_of(times):
    """date for days, datetime for minutes."""
    moments = [from_ms(ms) for ms in times.tolist()]
    return [moment.date() if moment.time() == time(0) else moment for moment in moments]


def _trading_minute(ms):
    """How many minutes of trading are over at a bar's label, 1 to 240."""
    return bisect.bisect_right(BAR_MINUTES, ms % _DAY_MS // 60000)


def _chart_groups(times, step):
    """Ranges of rows of the same day and the same `step` minutes of trading from the open."""
    keys = [(ms // _DAY_MS, (_trading_minute(ms) - 1) // step) for ms in times]
    starts = [i for i, key in enumerate(keys) if not i or keys[i - 1] != key]
    return list(zip(starts, starts[1:] + [len(keys)]))


def _chart_end(ms, step):
    """The label of the last minute of the group that this minute belongs to."""
    last = min(240, ((_trading_minute(ms) - 1) // step + 1) * step)
    return ms - ms % _DAY_MS + BAR_MINUTES[last - 1] * 60000


class ListingDate(date):
    """The date of a frame of securities. JoinQuant's compares with dates, with texts and with times."""

    def _against(self, other, compare):
        if isinstance(other, str):
            other = check_moment(other, 'date')[0]
        if isinstance(other, datetime):
            return compare(datetime.combine(self, time()), other)
        return NotImplemented if not isinstance(other, date) else compare(self.toordinal(), other.toordinal())

    def __lt__(self, other):
        return self._against(other, operator.lt)

    def __le__(self, other):
        return self._against(other, operator.le)

    def __gt__(self, other):
        return self._against(other, operator.gt)

    def __ge__(self, other):
        return self._against(other, operator.ge)

    def __rsub__(self, other):
        return other - datetime.combine(self, time()) if isinstance(other, datetime) else date.__rsub__(self, other)

    def __repr__(self):
        return repr(date(self.year, self.month, self.day))


@functools.lru_cache(maxsize=16384)
def listing_date(ms):
    day = from_ms(ms)
    return ListingDate(day.year, day.month, day.day)


def _holds_at_once(data, code):
    """Whether data[code] would give something: what is looked up when it is asked is in there before, too."""
    try:
        data._view.store.info(normalize_code(code))
    except SecurityNotFound:
        return False
    return True


class CurrentData(dict):
    """get_current_data(): code -> what is known of it now, looked up when it is asked."""

    def __init__(self, view):
        super().__init__()
        self._view = view

    def __missing__(self, code):
        self[code] = unit = CurrentUnit(self._view, normalize_code(code))
        return unit

    def __contains__(self, code):
        return _holds_at_once(self, code)

    def get(self, code, default=None):
        return self[code] if code in self else default


class CurrentUnit:
    """One security now: last_price, high_limit, low_limit, paused, is_st, day_open (NaN before 09:25), name."""

    industry_code = None

    def __init__(self, view, security):
        self._view, self.security = view, security
        view.store.info(security)

    @property
    def last_price(self):
        return self._view.last_price(self.security)

    @property
    def high_limit(self):
        return self._today('high_limit')

    @property
    def low_limit(self):
        return self._today('low_limit')

    @property
    def paused(self):
        return self._view.is_paused(self.security)

    @property
    def is_st(self):
        return self._view.is_st(self.security)

    @property
    def day_open(self):
        return self._today('open') if self._view.minute >= _OPENING - 3 else math.nan

    @property
    def name(self):
        return self._view.store.info(self.security)['display_name']

    def _today(self, name):
        return self._view.day_value(self.security, name)


class BarData(dict):
    """`data` of handle_data: code -> SecurityUnitData of the last unit that is over."""

    def __init__(self, view, unit):
        super().__init__()
        self._view, self._unit = view, unit

    def __missing__(self, code):
        self[code] = bar = SecurityUnitData(self._view, normalize_code(code), self._unit)
        return bar

    def __contains__(self, code):
        return _holds_at_once(self, code)

    def get(self, code, default=None):
        return self[code] if code in self else default


class SecurityUnitData:
    """The last bar of a security, its fields as attributes; mavg, stddev, vwap of the last n days that traded."""

    def __init__(self, view, security, unit):
        self.security, self._view, self._unit = security, view, unit

    def __getattr__(self, name):
        if name.startswith('_') or name not in _FIELDS:
            raise AttributeError(name)
        return float(([math.nan] + list(self._values(1, name, False)))[-1])

    @property
    def returns(self):
        closes = self._values(2, 'close', False)
        return float(closes[-1] / closes[0] - 1) if len(closes) == 2 else math.nan

    def isnan(self):
        return math.isnan(self.close)

    def mavg(self, n, field='close'):
        return self._over(n, field, lambda values: values.mean())

    def stddev(self, n):
        return self._over(n, 'close', lambda values: values.std())

    def vwap(self, n):
        if math.isnan(self._over(n, 'money', lambda values: values.sum())):
            return math.nan
        money, volume = (self._of_days(n, name).sum() for name in ('money', 'volume'))
        return float(money / volume) if volume else math.nan

    def _over(self, n, field, figure):
        """NaN where there are less than n days."""
        values = self._of_days(n, field)
        return float(figure(values)) if len(values) == n else math.nan

    def _of_days(self, count, field):
        return self._view.attribute_history(self.security, count, '1d', [field], True, df=False)[field]

    def _values(self, count, field, skip_paused):
        window = self._view.attribute_history(self.security, count, self._unit, [field], skip_paused, df=False)
        return window[field]


# ======================================================================================================
# 13. MARKET - the simulated broker: orders, matching, ledger, corporate actions
# ======================================================================================================
class BrokerInterface:
    """What a strategy's session needs of whoever carries its orders out; the simulation and a real account alike.

    portfolio: Portfolio. place(security, amount, style) -> Order, or None where nothing was ordered (amount negative to
    sell). place_all([(security, amount, style)]) -> Orders, or all None. cancel(order_id) -> Order or None.
    open_orders(), orders(), trades(): OrderedDicts by id, of today. begin_day(moment) -> [DividendsEvent].
    advance(moment): all that happens up to then; end_day(moment).
    """

    portfolio = None

    def place(self, security, amount, style):
        raise NotImplementedError

    def place_all(self, orders):
        raise NotImplementedError

    def cancel(self, order_id):
        raise NotImplementedError

    def orders(self):
        raise NotImplementedError

    def trades(self):
        raise NotImplementedError

    def open_orders(self):
        return OrderedDict((key, item) for key, item in self.orders().items() if item.status in ALIVE)

    def begin_day(self, moment):
        return []

    def advance(self, moment):
        """The clock alone moves a real account."""

    def end_day(self, moment):
        """Nothing is left to do for a real account."""


class _Void(Exception):
    """Why an order comes to nothing."""


_LEFTOVERS = 16 * 60  # the minute at which what is still open is cancelled
_PAUSE_END = 13 * 60
DIVIDEND_TAX = 0.2    # flat, of stocks' dividends; funds pay none


def in_trading(minute):
    return _OPEN_MINUTE <= minute < 11 * 60 + 30 or _PAUSE_END <= minute < _CLOSE_MINUTE


class SimulatedBroker(BrokerInterface):
    """JoinQuant's matching of backtests on a DataView, whose clock it moves.

    At order time: the last price, with slippage, up to the day's volume times order_volume_ratio; what cannot be filled
    is cancelled at market, at a limit it rests and fills as minute bars pass it. Out of hours orders wait as `new` for
    09:30 or 13:00. What is open at 16:00 is cancelled. Bought shares can be sold the next day, T+0 funds at once.
    all_orders, all_trades, dividends: of the whole run.
    """

    def __init__(self, view, costs, options, cash, log):
        self.view, self.costs, self.options, self._log = view, costs, options, log
        self.portfolio = Portfolio(cash, view.last_price, lambda text: log('warning', text))
        self.all_orders, self.all_trades, self.dividends = [], [], []
        self._orders, self._trades, self._open = OrderedDict(), OrderedDict(), OrderedDict()

    # -- views ---------------------------------------------------------------------------------------------------
    def orders(self):
        return OrderedDict(self._orders)

    def trades(self):
        return OrderedDict(self._trades)

    def open_orders(self):
        return OrderedDict(self._open)

    # -- orders --------------------------------------------------------------------------------------------------
    def place(self, security, amount, style):
        try:
            code = self._known(security)
            amount = self._sized(code, amount, style)
        except (_Void, DataUnavailable) as reason:
            self._log('warning', '%s 下单 %s 股没有成立：%s' % (printable(str(security)), amount, reason))
            return None
        order = Order(len(self.all_orders) + 1, code, amount > 0, abs(amount), style, self.view.now)
        self.all_orders.append(order)
        self._orders[order.order_id] = self._open[order.order_id] = order
        order.avg_cost = 0.0 if order.is_buy else self.portfolio.positions[code].avg_cost
        if in_trading(self.view.minute) and self.view.today_row is not None or self.options.always_match_market_order:
            self._try(order)
        else:
            order.status = OrderStatus.new
            self._lock(order)
        return order

    def place_all(self, orders):
        """Where one of them comes to nothing, what those before it did is undone."""
        undo, placed = self._snapshot(), []
        for number, each in enumerate(orders, 1):
            placed.append(self.place(*each))
            if placed[-1] is None:
                undo()
                self._log('warning', '批量委托的第 %d 笔没有成立，%d 笔都不下' % (number, len(orders)))
                return [None] * len(orders)
        return placed

    def _snapshot(self):
        """A function that makes the account what it is now, whatever was placed meanwhile."""
        states = [(item, dict(vars(item))) for item in [self.portfolio] + list(self.portfolio.positions.values())]
        tables = [(table, list(table.items()))
                  for table in (self.portfolio.positions, self._orders, self._trades, self._open)]
        counts = [(rows, len(rows)) for rows in (self.all_orders, self.all_trades)]

        def undo():
            for item, fields in states:
                vars(item).update(fields)
            for table, items in tables:
                table.clear()
                table.update(items)
            for rows, count in counts:
                del rows[count:]
        return undo

    def cancel(self, order_id):
        order = next((each for key, each in self._open.items() if str(key) == str(order_id)), None)
        if order is None:
            return None
        self._finish(order, OrderStatus.canceled, '已撤单')
        return order

    def _known(self, security):
        """The code of a security that trades today. Raises _Void."""
        try:
            code = normalize_code(security)
            info = self.view.store.info(code)
        except SecurityNotFound as error:
            raise _Void(error.message)
        if not info['start_date'] <= self.view.now.date() <= info['end_date']:
            raise _Void('没有上市或已经退市（%s 至 %s）' % (info['start_date'], info['end_date']))
        if not tradable(code):
            raise _Void('指数等不能买卖')
        if self.view.today_row is not None and self.view.is_paused(code):
            raise _Void('停牌')
        return code

    def _sized(self, code, amount, style):
        """Whole shares that can be had: cut to cash or to what can be sold, then to lots. Negative to sell."""
        self._check_style(code, style)
        if amount > 0:
            return self._bought(code, amount, style)
        held = self.portfolio.positions[code] if code in self.portfolio.positions else None
        closeable = held.closeable_amount if held else 0
        wanted = min(-amount, closeable)
        lots = wanted if wanted == closeable else round_lot(code, wanted)
        if not closeable:
            raise _Void('可卖 0 股（持有 %d，今天买入 %d，挂单占用 %d）' % (
                (held.held_amount, held.today_amount, held.locked_amount) if held else (0, 0, 0)))
        if not lots:
            raise _Void('不到最小申报数量 %d 股，零股只能在卖出全部可卖的 %d 股时一并卖出' % (
                instrument(code).lot, closeable))
        return -lots

    def _bought(self, code, amount, style):
        """Whole lots of at most so many shares that the cash pays for. Raises _Void where that is none."""
        lot = instrument(code).lot
        if amount < lot:
            raise _Void('不到最小申报数量 %d 股' % lot)
        affordable = self._affordable(code, style)
        if affordable < lot:
            raise _Void('资金不足：可用 %.2f 元，按 %g 元和费用够买 %d 股，最少申报 %d 股' % (
                self.portfolio.available_cash, self._reference(code, style), affordable, lot))
        return round_lot(code, min(amount, affordable))

    def _check_style(self, code, style):
        if instrument(code).board == 'star' and _style_kind(style) == 'market' and style.limit_price is None:
            raise _Void('科创板的市价委托要给出保护价（买入的最高价、卖出的最低价），例如 MarketOrderStyle(%g)' % (
                self.view.last_price(code) or 50))

    def _reference(self, code, style):
        """The price that cash is judged at: before slippage, as JoinQuant does it, so that cash may end below 0."""
        return style.limit_price if _style_kind(style) == 'limit' else self.view.last_price(code)

    def _affordable(self, code, style):
        """Shares that the available cash pays for, commission included."""
        price, cash, cost = self._reference(code, style), self.portfolio.available_cash, self.costs.cost(code)
        if price <= 0:
            raise _Void('没有价格')
        rate = 1 + cost.open_commission + cost.open_tax
        by_rate, by_minimum = cash / (price * rate), (cash - cost.min_commission) / (price * (1 + cost.open_tax))
        return max(0, int(min(by_rate, by_minimum) + 1e-6))

    def _try(self, order):
        """At once, what can be had: the rest is cancelled at market and rests at a limit."""
        problem = self._fill_at_once(order)
        if not order.remaining:
            return
        if order.limit is None:
            self._finish(order, OrderStatus.canceled, problem)
            return
        order.message, order.resting_since = problem, self.view.now_ms
        if not order.filled:
            order.status = OrderStatus.open
            self._lock(order)

    def _fill_at_once(self, order):
        """What stands in the way of the rest, or None. Each order has a share of the day's volume of its own."""
        code = order.security
        problem = self._unpriced(code)
        if problem is not None:
            return problem
        if self.options.match_by_signal and order.limit is not None:
            return self._fill(order, order.amount, order.limit, self.view.now)
        price = self.costs.slipped(code, self.view.last_price(code), order.is_buy)
        problem = self._problem(order, price)
        return self._fill_share(order, price) if problem is None else problem

    def _fill_share(self, order, price):
        """Why there is a rest, or None. Not rounded to lots, as JoinQuant has it."""
        volume = self.view.day_value(order.security, 'volume')
        amount = min(order.amount, self._share_of(volume))
        if amount:
            self._fill(order, amount, price, self.view.now)
        return None if amount == order.amount else '数量 %d 大于当日成交量 %.0f 股的 %g 倍' % (
            order.amount, volume, self.options.order_volume_ratio)

    def _unpriced(self, code):
        """Why there is nothing to fill at, or None."""
        if self.view.is_paused(code):
            return '停牌，或不是交易日'
        return None if self.view.last_price(code) > 0 else '没有价格'

    def _problem(self, order, price):
        """Why nothing of an order fills at this price, or None."""
        worst = order.limit if order.limit is not None else order.style.limit_price
        if worst is not None and (price > worst + 1e-9 if order.is_buy else price < worst - 1e-9):
            return '价格 %g 不在委托价 %g 以内' % (price, worst)
        high, low = self.view.limits(order.security)
        if high != high or low != low:
            return '涨跌停价算不出来'
        if price >= high - 1e-9 if order.is_buy else price <= low + 1e-9:
            return '涨停，买不到：成交价要 %g，涨停价 %g' % (price, high) if order.is_buy else (
                '跌停，卖不掉：成交价要 %g，跌停价 %g' % (price, low))
        return None

    def _share_of(self, volume):
        """Shares that an order may have of what was traded; of a volume that is not known none."""
        return int(volume * self.options.order_volume_ratio + 1e-6) if volume == volume else 0

    # -- ledger --------------------------------------------------------------------------------------------------
    def _lock(self, order):
        """Sets aside what the rest of an order needs."""
        if order.is_buy:
            value = order.remaining * self._reference(order.security, order.style)
            order.locked_cash = value + self._commission_of(order, value) + self.costs.cost(order.security).tax(
                True, value)
            self.portfolio.available_cash -= order.locked_cash
            self.portfolio.locked_cash += order.locked_cash
        else:
            order.locked_amount = order.remaining
            self.portfolio.positions[order.security].locked_amount += order.locked_amount

    def _commission_of(self, order, value):
        """What a further fill of so many yuan adds: the minimum counts once an order."""
        cost, before = self.costs.cost(order.security), order.filled * order.price
        paid = cost.commission(order.is_buy, before) if order.filled else 0.0
        return cost.commission(order.is_buy, before + value) - paid

    def _unlock(self, order):
        self.portfolio.available_cash += order.locked_cash
        self.portfolio.locked_cash -= order.locked_cash
        if order.locked_amount:
            self.portfolio.positions[order.security].locked_amount -= order.locked_amount
        order.locked_cash, order.locked_amount = 0.0, 0

    def _fill(self, order, amount, price, moment):
        """One fill; the commission of an order is that of all its fills together."""
        self._unlock(order)
        cost, value = self.costs.cost(order.security), amount * price
        total = order.filled * order.price + value
        tax, commission = cost.tax(order.is_buy, value), self._commission_of(order, value)
        order.filled += amount
        order.price, order.commission = total / order.filled, order.commission + commission + tax
        self._book(order, amount, price, commission, tax, moment)
        if order.remaining:
            order.status = OrderStatus.filled
            self._lock(order)
        else:
            self._finish(order, OrderStatus.held, '', moment)

    def _book(self, order, amount, price, commission, tax, moment):
        portfolio, value = self.portfolio, amount * price
        position = self._position(order.security)
        profit = None
        if order.is_buy:
            portfolio.available_cash -= value + commission + tax
            position.buy(amount, price, commission + tax, moment)
            order.avg_cost = order.price
        else:
            profit = value - commission - tax - amount * position.avg_cost
            portfolio.available_cash += value - commission - tax
            portfolio.sales_today += value - commission - tax
            position.sell(amount, price, commission + tax, moment)
        if not position.held_amount:
            del portfolio.positions[order.security]
        trade = Trade(len(self.all_trades) + 1, order, moment, amount, price, commission, tax)
        trade.profit = profit
        self.all_trades.append(trade)
        self._trades[trade.trade_id] = trade
        self._log('debug', '%s %s %d 股，成交价 %g，费用 %.2f' % (
            '买入' if order.is_buy else '卖出', order.security, amount, price, commission + tax))

    def _position(self, code):
        positions = self.portfolio.positions
        if code not in positions:
            positions[code] = Position(code, self.view.last_price, self.options.t0_mode or instrument(code).t0)
        return positions[code]

    def _finish(self, order, status, message, moment=None):
        self._unlock(order)
        order.status, order.message, order.finish_time = status, message, moment or self.view.now
        self._open.pop(order.order_id, None)
        if status is OrderStatus.canceled:
            self._log('warning', '%s 的委托 %d 撤销：%s，成交 %d / %d 股' % (
                order.security, order.order_id, message, order.filled, order.amount))

    # -- time ----------------------------------------------------------------------------------------------------
    def begin_day(self, moment):
        """A new trade day: yesterday's orders are history, shares can be sold, what went ex changes the account."""
        capital = self.portfolio.inout_cash
        self.portfolio.returns = self.portfolio.total_value / capital - 1 if capital > 0 else 0.0
        self._orders, self._trades = OrderedDict(self._open), OrderedDict()
        self.portfolio.sales_today = 0.0
        self.view.move(moment)
        events = self._corporate_actions() if self.options.use_real_price else []
        for position in self.portfolio.positions.values():
            position.today_amount, position.hold_cost = 0, position.price
        return events

    def advance(self, moment):
        """Lets all happen that happens to open orders up to this moment of the same day."""
        if self._open:
            day = datetime.combine(moment.date(), time())
            for minute in (_OPEN_MINUTE, _PAUSE_END, _LEFTOVERS):
                stop = day + timedelta(minutes=minute)
                if self.view.now < stop <= moment and self._open:
                    self._match_bars(stop)
                    self.view.move(stop)
                    self._at_stop(minute)
            self._match_bars(moment)
        self.view.move(moment)

    def _at_stop(self, minute):
        for order in list(self._open.values()):
            if minute == _LEFTOVERS:
                self._finish(order, OrderStatus.canceled, order.message or '到收盘没有成交')
            elif order.status is OrderStatus.new:
                self._unlock(order)
                if self.view.is_paused(order.security):
                    self._finish(order, OrderStatus.canceled, '停牌')
                elif self._affords(order):
                    self._try(order)

    def _affords(self, order):
        """A buy that waited is cut to the cash at the price of now: it was judged at that of the day before."""
        if order.is_buy and order.limit is None and self.view.last_price(order.security) > 0:
            lots = round_lot(order.security, min(order.amount, self._affordable(order.security, order.style)))
            if not lots:
                self._finish(order, OrderStatus.canceled, '资金不足：可用 %.2f 元，开盘时的价格 %g 元，要买 %d 股' % (
                    self.portfolio.available_cash, self._reference(order.security, order.style), order.amount))
            elif lots < order.amount:
                self._log('warning', '%s 的委托 %d 按开盘的价格只够买 %d 股' % (order.security, order.order_id, lots))
                order.amount = lots
        return order.status is OrderStatus.new

    def _match_bars(self, until):
        """Resting orders against the minute bars that end in between, in their order."""
        until_ms = to_ms(until)
        resting = [order for order in self._open.values() if order.resting_since is not None]
        hits = sorted(((ms, order.order_id, order, volume) for order in resting
                       for ms, volume in self._hits(order, until_ms)), key=lambda hit: hit[:2])
        for ms, _, order, volume in hits:
            if order.status in ALIVE:
                self._fill_at_limit(order, volume, from_ms(ms))
        for order in resting:
            # Without minutes the day as a whole is matched, once, at its end.
            if until_ms % _DAY_MS >= _CLOSE_MINUTE * 60000 or self.view.has_minutes(order.security):
                order.resting_since = max(order.resting_since, until_ms)

    def _fill_at_limit(self, order, volume, moment):
        """Of a bar that went through the limit: the order's share of it."""
        amount = min(order.remaining, self._share_of(volume))
        if amount < order.remaining:
            order.message = '%s 的 K 线成交 %.0f 股，它的 %g 倍不够成交剩余的 %d 股' % (
                moment.strftime('%H:%M'), volume, self.options.order_volume_ratio, order.remaining)
        if amount:
            self._fill(order, amount, order.limit, moment)

    def _hits(self, order, until_ms):
        """[(ms, volume)] of the bars that go through the order's limit."""
        if until_ms <= order.resting_since:
            return []
        bars = self.view.bars_between(order.security, order.resting_since, until_ms)
        if bars is None:
            bars = self._day_as_bar(order, until_ms)
        return [(ms, volume) for ms, high, low, volume in bars
                if (order.limit > low if order.is_buy else order.limit < high)]

    def _day_as_bar(self, order, until_ms):
        """Where there are no minutes: the whole day for an order of the open or before, else the close alone."""
        close_ms = until_ms - until_ms % _DAY_MS + _CLOSE_MINUTE * 60000
        if not order.resting_since < close_ms <= until_ms:
            return []
        high, low, close, volume = (self.view.day_value(order.security, name)
                                    for name in ('high', 'low', 'close', 'volume'))
        from_open = order.resting_since % _DAY_MS <= _OPEN_MINUTE * 60000
        return [(close_ms, high if from_open else close, low if from_open else close, volume)]

    # -- corporate actions ---------------------------------------------------------------------------------------
    def _corporate_actions(self):
        """Dividends and new shares of what is held, on the ex-date."""
        events = []
        for code in sorted(self.portfolio.positions):
            if self._goes_ex(code):
                day = self.view.now.date()
                for row in self.view.store.provider.get_split_dividend(code, day, day):
                    if code in self.portfolio.positions:  # an earlier row may have merged all of it away
                        events.append(self._pay(self.portfolio.positions[code], row))
        return events

    def _goes_ex(self, code):
        """Whether today's reference price is not the last close: only then is anybody asked."""
        block = self.view.store.daily(code)
        row = self.view.today_row - block.first
        return row < 1 or factor_at(block.steps, block.times[row]) != factor_at(block.steps, block.times[row - 1])

    def _pay(self, position, row):
        """Shares are floored, dividends of stocks taxed; the cost of the holding falls by what was received."""
        before = position.held_amount
        gross = before / float(row['per_base']) * row['bonus_pre_tax']
        tax = gross * DIVIDEND_TAX if cost_type(position.security) == 'stock' else 0.0
        after = int(math.floor(before * row['scale_factor'] + 1e-9))
        self.portfolio.available_cash += gross - tax
        self._resize(position, after, gross - tax)
        today = self.view.now.date()
        event = DividendsEvent(position.security, before, gross - tax, tax, after - before, [
            dict(date=today, **{name: row[name] for name in ('scale_factor', 'bonus_pre_tax', 'per_base')})])
        self.dividends.append((today, event))
        self._log('info', '%s 除权除息：持有 %d 股，现金 %.2f（税 %.2f），送转 %d 股' % (
            position.security, before, event.cash, tax, event.shares))
        return event

    def _resize(self, position, amount, received):
        """A holding becomes `amount` shares, or vanishes. Orders to sell more than these are cancelled."""
        for order in [each for each in self._open.values() if each.security == position.security and not each.is_buy]:
            if position.locked_amount > amount:
                self._finish(order, OrderStatus.canceled, '合并后只剩 %d 股' % amount)
        if not amount:
            del self.portfolio.positions[position.security]
            self._log('warning', '%s 合并后不足 1 股，持仓归零' % position.security)
        else:
            for name in ('avg_cost', 'acc_avg_cost'):
                setattr(position, name, (getattr(position, name) * position.held_amount - received) / amount)
        position.held_amount = amount


# ======================================================================================================
# 14. STRATEGY - a strategy's file: its names, the modules it may import, its log, its errors
# ======================================================================================================
def printable_lines(text):
    """Text whose lines are kept and whose control characters are not."""
    return '\n'.join(map(printable, str(text).splitlines()))


class StrategyError(Exception):
    """A strategy failed. text: its own traceback; line: of its file, or None; result: of the run so far, or None.

    summary: all of it in one line.
    """

    def __init__(self, text, line=None, problem=''):
        super().__init__(text)
        self.text, self.line, self.result = text, line, None
        self.summary = problem if line is None else '第 %d 行 %s' % (line, problem)

    @property
    def report(self):
        """What a terminal shows of it."""
        where = '没有行号' if self.line is None else '第 %d 行' % self.line
        return '\n策略出错（%s）：\n%s' % (where, printable_lines(self.text))


class Options:
    """What set_option() sets, at JoinQuant's defaults."""

    use_real_price = avoid_future_data = match_with_order_book = t0_mode = False
    always_match_market_order = match_by_signal = False
    order_volume_ratio = 1.0

    def set(self, name, value):
        """Raises BadRequest for an unknown name, and for a value of another kind: 'False' is not False."""
        if not isinstance(name, str) or name.startswith('_') or not hasattr(type(self), name) or name == 'set':
            raise BadRequest('set_option 没有选项 %s' % brief(name), '可用：%s' % '、'.join(
                sorted(each for each in vars(Options) if not each.startswith('_') and each != 'set')))
        if name == 'order_volume_ratio':
            value = _hinted('应为 0 到 1 的小数，例如 0.25', check_number, value, name, 0, 1)
        else:
            _hinted('写 True 或 False，不加引号', check_flag, value, name)
        setattr(self, name, value)


_LEVELS = {'debug': 10, 'info': 20, 'warn': 30, 'warning': 30, 'error': 40, 'critical': 50}


class StrategyLog:
    """`log`: lines of the strategy with its time. write(text): where they go. Sources have levels of their own."""

    def __init__(self, write, now):
        self._write, self._now = write, now
        self.levels = {'order': 20, 'history': 20, 'strategy': 10, 'system': 20}

    def debug(self, message, *args):
        self.add('strategy', 'debug', message, *args)

    def info(self, message, *args):
        self.add('strategy', 'info', message, *args)

    def warn(self, message, *args):
        self.add('strategy', 'warning', message, *args)

    warning = warn

    def error(self, message, *args):
        self.add('strategy', 'error', message, *args)

    def critical(self, message, *args):
        self.add('strategy', 'critical', message, *args)

    def set_level(self, source, level):
        if source not in self.levels or level not in _LEVELS:
            raise BadRequest('log.set_level 不认识 %s、%s' % (brief(source), brief(level)),
                             "例如 log.set_level('order', 'error')")
        self.levels[source] = _LEVELS[level]

    def add(self, source, level, message, *args):
        if _LEVELS[level] >= self.levels[source]:
            self._write('%s - %s - %s' % (self._now(), level.upper(), _log_text(message, args)))

    def print(self, *values, **options):
        """print() in a strategy; into a file it prints as ever."""
        if options.get('file') is not None:
            print(*values, **options)
        else:
            self.info(options.get('sep', ' ').join(map(str, values)))


def _log_text(message, args):
    """A message with its arguments, if they fit; else one after the other."""
    try:
        return str(message) % args if args else str(message)
    except (TypeError, ValueError):
        return ' '.join(map(str, (message,) + args))


# Name -> the way out.
_LEFT_OUT = {
    '财务数据': ('QMT 远程服务没有财务数据；自备一份，用 read_file 读入',
             'get_fundamentals get_fundamentals_continuously query run_query get_valuation get_history_fundamentals '
             'get_factor_values get_all_factors'),
    '宏观等数据库': ('QMT 远程服务没有这些数据；自备一份，用 read_file 读入', 'get_fund_info get_macro get_index_weights'),
    '资金与龙虎榜': ('QMT 远程服务没有这些数据；自备一份，用 read_file 读入',
               'get_money_flow get_money_flow_pro get_billboard_list get_mtss get_call_auction get_locked_shares '
               'get_ticks get_current_tick get_preopen_infos'),
    '行业与概念': ('QMT 远程服务没有历史的行业与概念；自备一份，用 read_file 读入',
              'get_industry get_industry_stocks get_concept_stocks get_concept get_concepts get_industries'),
    '融资融券与期货': ('只支持股票、基金、可转债的普通买卖', 'margincash_open margincash_close margincash_direct_refund '
                'marginsec_open marginsec_close marginsec_direct_refund get_margincash_stocks get_marginsec_stocks '
                'get_dominant_future get_future_contracts set_subportfolios transfer_cash SubPortfolioConfig purchase '
                'redeem set_margincash_limit set_margincash_interest_rate set_marginsec_limit '
                'set_marginsec_interest_rate'),
    '止损委托': ('自己判断价格后再下单', 'StopMarketOrderStyle StopLimitOrderStyle'),
    '优化与回测管理': ('参数扫描用 backtest --grid', 'portfolio_optimizer create_backtest get_backtest'),
}
# Tables that strategies ask by attribute, mostly inside query().
_LEFT_OUT_TABLES = ('valuation indicator balance income cash_flow bank_indicator security_indicator '
                    'insurance_indicator finance macro opt bond jy gta sup')
_MISSING_MODULES = {'jqlib': '技术指标请用 pandas/numpy 自己计算', 'jqfactor': '因子请用 pandas/numpy 自己计算',
                    'jqdatasdk': '行情用 get_price 等函数取，数据来自 provider（命令行 --data-provider）'}


def _left_out(name, group, way_out):
    def call(*args, **kwargs):
        raise NotImplementedError('%s（%s）不支持：%s' % (name, group, way_out))
    call.__name__ = name
    return call


class _LeftOutTable:
    """A table of a database that is not here: whoever asks for a column is told so."""

    def __init__(self, name, way_out):
        self.__name__, self._way_out = name, way_out

    def __getattr__(self, column):
        if column.startswith('_'):
            raise AttributeError(column)
        raise NotImplementedError('%s.%s（财务等数据表）不支持：%s' % (self.__name__, column, self._way_out))

    def __call__(self, *args, **kwargs):
        raise NotImplementedError('%s（财务等数据表）不支持：%s' % (self.__name__, self._way_out))


LEFT_OUT = {name: _left_out(name, group, way_out) for group, (way_out, names) in _LEFT_OUT.items()
            for name in names.split()}
LEFT_OUT.update({name: _LeftOutTable(name, _LEFT_OUT['财务数据'][0]) for name in _LEFT_OUT_TABLES.split()})


class _NoSuchModules:
    """A finder that says what to do instead where a strategy imports what is not there."""

    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if top in _MISSING_MODULES:
            raise NotImplementedError('不支持 import %s：%s' % (name, _MISSING_MODULES[top]))
        return None


PROVIDED_MODULES = ('jqdata', 'kuanke', 'kuanke.user_space_api', 'kuanke.wizard')


class _RunModule(types.ModuleType):
    """A module whose names are those of the run that asks."""

    def __getattr__(self, name):
        names = _runs.names()
        if name == '__all__':
            return sorted(names)
        if name not in names:
            raise AttributeError('module %r has no attribute %r' % (self.__name__, name))
        return names[name]

    def __dir__(self):
        return sorted(_runs.names())


@contextlib.contextmanager
def provided_modules(run):
    """While it lasts `from jqdata import *` and its like give the run's names; afterwards all is as it was."""
    before = set(sys.modules)
    with _runs.added(run, _replaced_modules):
        try:
            yield
        finally:
            _forget_modules_of(run, before)


@contextlib.contextmanager
def _replaced_modules():
    before = {name: sys.modules.get(name) for name in PROVIDED_MODULES}
    finder = _NoSuchModules()
    sys.modules.update((name, _RunModule(name)) for name in PROVIDED_MODULES)
    sys.modules['kuanke'].user_space_api = sys.modules['kuanke.user_space_api']
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in before.items():
            sys.modules.pop(name, None) if module is None else sys.modules.__setitem__(name, module)


def _forget_modules_of(run, before):
    """What took this run's functions would order in it for ever: the next run imports such modules anew."""
    new = {name: module for name, module in list(sys.modules.items())
           if name not in before and type(module) is types.ModuleType}
    for name in _users_of(run.names, new):
        parent, _, child = name.rpartition('.')
        if parent in sys.modules and vars(sys.modules[parent]).get(child) is new[name]:
            delattr(sys.modules[parent], child)
        sys.modules.pop(name, None)


def _users_of(names, modules):
    """Those of these modules (name -> module) that took what belongs to a run, or took something of such a module."""
    own = {id(value) for value in names.values() if isinstance(value, (types.MethodType, StrategyLog))}
    users, found = [], modules
    while found:
        found = [name for name in modules
                 if name not in users and not own.isdisjoint(map(id, list(vars(modules[name]).values())))]
        users += found
        own.update(id(modules[name]) for name in found)
        own.update(id(value) for name in found for value in vars(modules[name]).values()
                   if getattr(value, '__module__', None) == name)
    return users


class StrategyFile:
    """A strategy as its author wrote it. source: its text, read from the path if not given. Raises ConfigError."""

    def __init__(self, path, source=None):
        self.path, self.name, self.namespace = os.path.abspath(path), os.path.basename(path), {}
        self.source = self._read() if source is None else source

    def _read(self):
        try:
            return self._text('utf-8-sig')
        except UnicodeDecodeError:  # which wins over what a file says of itself: most that say gbk are UTF-8 by now
            return self._text(self._declared())

    def _text(self, encoding):
        try:
            with open(self.path, encoding=encoding) as file:
                return file.read()
        except OSError as error:
            raise ConfigError('策略文件 %s 读不出来：%s' % (self.path, error), '检查路径')

    def _declared(self):
        """The encoding that the first two lines name, as Python has it."""
        try:
            with open(self.path, 'rb') as file:
                encoding = optional_import('tokenize').detect_encoding(file.readline)[0]
                file.seek(0)
                file.read().decode(encoding)
            return encoding
        except (SyntaxError, UnicodeDecodeError) as error:
            raise ConfigError('策略文件 %s 读不出来：不是 UTF-8（%s）' % (self.path, error),
                              '用记事本打开，另存为，编码选 UTF-8；或者在第一行写明编码，例如 # coding: gbk')

    def load(self, names, params=None):
        """Runs the module's code with these names; params then replace its constants of the same names."""
        let_dates_be_chinese()
        self.namespace = dict(names, __name__='__strategy__', __file__=self.path)
        exec(compile(self.source, self.path, 'exec'), self.namespace)
        self.namespace.update({name: value for name, value in names.items() if self._is_remote(name)})
        self.namespace.update({name: value for name, value in (params or {}).items()
                               if name in self.namespace and (name not in names or name in self._constants())})

    def check_syntax(self):
        """Raises StrategyError. Nothing of it runs."""
        try:
            compile(self.source, self.path, 'exec')
        except (SyntaxError, ValueError) as error:  # ValueError: a NUL
            raise self.error(error) from error

    def _constants(self):
        """Names that the module itself gives a value."""
        return {node.id for node in _module_level(_parsed(self.source))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}

    def check_params(self, names):
        """Refuses parameters that nobody reads; a text about those of which that cannot be told. Raises ConfigError."""
        try:
            known, open_ended = _readable_params(_parsed(self.source), os.path.dirname(self.path))
            known |= self._constants()
            useful = known - self._overwritten()
        except (SyntaxError, ValueError):  # load() will say where
            return []
        unread = '、'.join(name for name in names if name not in known)
        if not unread:
            return []
        if open_ended:
            return ['参数 %s 没有出现在策略文件里，可能没有人读它：核对名称' % unread]
        raise ConfigError('策略 %s 没有用到参数 %s' % (self.name, unread),
                          '参数是策略文件里的模块级常量或 g.名称；可用：%s' % ('、'.join(sorted(useful)) or '没有'))

    def refuse_overwritten(self, names):
        """Raises ConfigError for parameters whose place initialize takes: all their values would be one."""
        with contextlib.suppress(SyntaxError, ValueError):  # load() will say where
            lost = '、'.join(name for name in names if name in self._overwritten())
            if lost:
                raise ConfigError('参数 %s 不起作用：策略的 initialize 自己给了 g.%s' % (lost, lost.split('、')[0]),
                                  "改用模块级常量，或写 g.名称 = getattr(g, '名称', 默认值)")

    def _overwritten(self):
        return _given_by_initialize(_parsed(self.source)) - self._constants()

    def _is_remote(self, name):
        """Whether the strategy took this name from here, where it means the remote account."""
        return name in globals() and self.namespace.get(name) is globals()[name]

    def hook(self, name):
        hook = self.namespace.get(name)
        return hook if callable(hook) else None

    def error(self, error):
        """The StrategyError of an exception that came out of the strategy's code."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if os.path.basename(frame.filename) not in _ENGINE_FILES]
        line = next((frame.lineno for frame in reversed(own) if frame.filename == self.path), None)
        if isinstance(error, SyntaxError) and error.filename == self.path:
            line = error.lineno
        described = traceback.format_exception_only(type(error), error)
        text = ''.join(traceback.format_list(own) + described).rstrip()
        problem = next(line for line in described if not line.startswith(' ')).splitlines()[0]
        module = type(error).__module__ + '.'
        problem = problem[len(module):] if problem.startswith(module) else problem
        hint = getattr(error, 'hint', '') or _windows_hint(problem) or _old_pandas_hint(error, problem, frames)
        return StrategyError('Traceback (most recent call last):\n%s%s' % (text, hint and '\n建议：%s' % hint), line,
                             problem)


_ENGINE_FILES = ('jq_helper.py', 'bullet_qmt.py')
# What pandas no longer has -> what to write instead.
_GONE_FROM_PANDAS = {'append': 'pd.concat([a, b])', 'ix': 'loc 或 iloc', 'iteritems': 'items()', 'as_matrix': 'values',
                     'get_value': 'at', 'Panel': "panel=False 的长表", 'lookup': 'loc', 'mad': '自己计算',
                     'minor_axis': "长表的 code 列", 'major_axis': "长表的 time 列", 'applymap': 'map', 'sort': 'sort_values',
                     'to_panel': '长表', 'rolling_mean': 'series.rolling(n).mean()',
                     'rolling_std': 'series.rolling(n).std()',
                     'ewma': 'series.ewm(span=n).mean()', 'rolling_max': 'series.rolling(n).max()',
                     'rolling_min': 'series.rolling(n).min()', 'rolling_sum': 'series.rolling(n).sum()'}
# What Windows says of a strftime() that JoinQuant's Linux takes -> what to write instead.
_OF_WINDOWS = [(re.compile(pattern), hint) for pattern, hint in (
    (r'^ValueError: Invalid format string$', "Windows 的 strftime 没有 %-d、%-m 之类：写 '%d' % 日期.day"),
    (r"^UnicodeEncodeError: 'locale' codec", "这台 Windows 的 strftime 不认识中文：写 '%d年%d月' % (日期.year, 日期.month)"))]
# What pandas or numpy says where it takes no longer what it took -> what to write instead.
_CHANGED = [(re.compile(pattern), hint) for pattern, hint in (
    (r'Can only use .dt accessor', '日期一列不是 pandas 的时间：先写 pd.to_datetime(列)'),
    (r"module 'numpy' has no attribute '(float|int|bool|object|str|complex)'", r"np.\1 没有了：写 \1"),
    (r"`np\.(\w+)` was removed in the NumPy 2.0 release. Use `([\w.]+)`", r"np.\1 没有了：写 \2"),
    (r"fillna\(\) got an unexpected keyword argument 'method'", "fillna 没有 method 了：写 ffill() 或 bfill()"),
    (r"(\w+)\(\) got an unexpected keyword argument 'axis'", r"\1 没有 axis 了：先转置，例如 df.T.rolling(n).mean().T"),
    (r"(\w+)\(\) got an unexpected keyword argument 'level'", r"\1 没有 level 了：写 groupby(level=0).\1()"),
    (r"concat\(\) got an unexpected keyword argument 'join_axes'", 'concat 没有 join_axes 了：在结果后面写 .reindex(...)'),
    (r"'(\w+)' is no longer supported for offsets. Please use '(\w+)'", r"频率 '\1' 改名了：写 '\2'"),
    (r"Invalid frequency: (\w+).*Did you mean (\w+)\?", r"频率 '\1' 改名了：写 '\2'"),
    (r"(?:DataFrame|Series|NDFrame)\.(\w+)\(\) takes .*positional arguments?", r"\1 的参数要写出名称，例如 axis=1"),
    (r"Invalid comparison between dtype=datetime64\[\w+\] and date|Cannot compare .*Timestamp.*date|"
     r"unsupported operand .*(?:date' and 'Timestamp|Timestamp' and 'datetime.date)",
     'date 与 pandas 的时间不再能直接比较和相减：写 pd.Timestamp(日期)，或者对 pandas 的时间用 .date()'))]
_NO_PANEL = ("若这是 get_price 取多个证券的结果：聚宽给 Panel，新的 pandas 没有，这里给 time、code 和各字段的长表；"
             "按证券取值写 frame.pivot(index='time', columns='code', values='close')")


def _windows_hint(problem):
    return next((hint for pattern, hint in _OF_WINDOWS if pattern.search(problem)), '')


def _old_pandas_hint(error, problem, frames):
    """What to write instead of what JoinQuant's pandas 0.23 took and the one here does not; '' if that was not it."""
    inside = frames and 'pandas' in re.split(r'[\\/]', frames[-1].filename)
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    if inside and isinstance(key, int):
        return '新的 pandas 里 series[%d] 是按标签取，按位置取要写 series.iloc[%d]' % (key, key)
    if not has_panel() and (type(error).__name__ in ('IndexingError', 'InvalidIndexError')
                            or inside and _names_a_security(key)):
        return _NO_PANEL
    gone = re.search(r"(?:Series|DataFrame|Index|pandas)' (?:object )?has no attribute '(\w+)'", problem)
    if isinstance(error, AttributeError) and gone and gone.group(1) in _GONE_FROM_PANDAS:
        return '新的 pandas 里没有 %s，改用 %s' % (gone.group(1), _GONE_FROM_PANDAS[gone.group(1)])
    changed = ((pattern.search(problem), hint) for pattern, hint in _CHANGED)
    return next(('新的版本里 ' + found.expand(hint) for found, hint in changed if found), '')


def _names_a_security(key):
    """Whether a key is a code, or has one in it."""
    for part in key if isinstance(key, tuple) else (key,):
        with contextlib.suppress(SecurityNotFound):
            return bool(normalize_code(part))
    return False


@functools.lru_cache(maxsize=4)
def _parsed(source):
    """The tree of a strategy's text, to be looked at only. Raises SyntaxError, ValueError."""
    return ast.parse(source)


def _readable_params(tree, directory):
    """(names that the strategy imports or reads from g, whether there may be more of them than the text shows)."""
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    of_g = [node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_g(node.value)]
    told = [name for name in map(_name_asked_of_g, nodes) if name is not None]
    imported = [alias.asname or alias.name for node in _module_level(tree) if isinstance(node, ast.ImportFrom)
                for alias in node.names]
    passed_on = sum(map(_is_g, nodes)) > len(of_g) + len(told)
    beside = any(_is_beside(node, directory) for node in imports)
    return set(of_g + told + imported) - {'*'}, passed_on or beside or '__dict__' in of_g


def _given_by_initialize(tree):
    """Names of g that initialize, or a function that it calls, gives a value whatever they were before."""
    functions = {node.name: node.body for node in tree.body if isinstance(node, ast.FunctionDef)}
    given, names = set(), ['initialize']
    for name in names:
        for node in functions.pop(name, ()):
            if isinstance(node, ast.Assign):
                given |= _given_anew(node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                names.append(getattr(node.value.func, 'id', None))
    return given - set(map(_name_asked_of_g, ast.walk(tree)))


def _given_anew(node):
    """Names of g that an assignment gives a value in which they do not stand."""
    targets = [part for target in node.targets for part in getattr(target, 'elts', [target])]
    given, read = ({part.attr for part in parts if isinstance(part, ast.Attribute) and _is_g(part.value)}
                   for parts in (targets, ast.walk(node.value)))
    return given - read


def _module_level(node):
    """The nodes that run as the module is loaded."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield child
            yield from _module_level(child)


def _is_g(node):
    return isinstance(node, ast.Name) and node.id == 'g'


def _name_asked_of_g(node):
    """The name in getattr(g, 'name', ...) and its like, or None."""
    if not isinstance(node, ast.Call) or len(node.args) < 2 or not _is_g(node.args[0]):
        return None
    try:
        name = ast.literal_eval(node.args[1])
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _is_beside(node, directory):
    """Whether a module of the strategy's own is imported."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or '']
    return any(os.path.exists(os.path.join(directory, name.split('.')[0] + end))
               for name in names for end in ('.py', ''))


# ======================================================================================================
# 15. SESSION - a strategy at work: its names, its tasks, its data and its broker under one clock
# ======================================================================================================
class Session:
    """One run of one strategy. Whoever owns time calls start, begin_day, fire for each Job of schedule.walk, end_day.

    store: BarStore; params: name -> value; write(line): where log lines go; on_error 'stop' or 'continue'.
    broker_of(session) makes its BrokerInterface, once options, costs and view are there.
    messages: what a reader of the results should know. records: [(date, OrderedDict)]. VIEW: the class of its view.
    """

    VIEW = DataView

    def __init__(self, strategy, store, run_params, broker_of, params=None, write=lambda line: None, on_error='stop'):
        self.strategy, self.store, self.run_params, self.params = strategy, store, run_params, dict(params or {})
        self.on_error, self.messages, self.records = on_error, [], []
        self.g, self.options, self.costs = GlobalVariables(), Options(), TradingCosts()
        self.log = StrategyLog(write, self._log_time)
        self.view = self.VIEW(store, self.options, lambda text: self.log.add('history', 'warning', text))
        self.view.move(datetime.combine(run_params.start_date, time()))
        self.broker = broker_of(self)
        self.context = Context(run_params, self.broker.portfolio)
        self.schedule = Schedule(store.days, run_params.start_date, run_params.frequency)
        self.benchmark, self._at = None, -1  # the minute of the job that runs
        self._told_of_price = False
        self._unit = '1d' if run_params.frequency == 'day' else '1m'
        self._sync()

    # -- life ----------------------------------------------------------------------------------------------------
    def start(self, hooks=('initialize', 'after_code_changed', 'process_initialize'), restore=lambda: None):
        """Module code, restore() of what an earlier process kept, then these hooks."""
        vars(self.g).update(self.params)
        self._guarded(lambda: self.strategy.load(self.names(), self.params), always_stop=True)
        self.schedule.hooks = [name for name, _, _ in _HOOKS if self.strategy.hook(name)]
        restore()
        for name in hooks:
            self._hook(name, always_stop=True)
        self._note_lost_params()

    def _note_lost_params(self):
        """What the strategy puts into g by itself, or put there in an earlier process, takes a parameter's place."""
        lost = [name for name, value in self.params.items() if repr(vars(self.g).get(name, value)) != repr(value)]
        halves = [name for name in lost if repr(self.strategy.namespace.get(name)) == repr(self.params[name])]
        for name in halves:
            self._note('参数 %s：模块里的 %s 已是 %s，但 g.%s 仍是策略自己给的（或上次运行留下的）%s' % (
                name, name, brief(self.params[name]), name, brief(vars(self.g)[name])))
        nothing = [name for name in lost if name not in halves]
        if nothing:
            self._note("参数 %s 没有起作用：g 里是策略自己给的（或上次运行留下的）值；改用模块级常量，或写 "
                       "g.名称 = getattr(g, '名称', 默认值)" % '、'.join(nothing))

    def _note(self, text):
        self.messages.append(text)
        self.log.add('system', 'warning', '%s', text)

    def missing_hooks(self):
        """Texts about what a strategy lacks that most have. Raises ConfigError where nothing of it would ever run."""
        if not self.strategy.hook('initialize'):
            if self._is_idle():
                raise ConfigError('策略文件 %s 里没有 initialize，也没有 handle_data 等函数' % self.strategy.path,
                                  '核对文件和函数名；定时任务在 initialize(context) 里用 run_daily 等登记')
            return ['策略文件里没有 initialize：按默认设置运行']
        return ['策略没有登记定时任务，也没有 handle_data 等函数：initialize 之后什么也不会运行'] if self._is_idle() else []

    def _is_idle(self):
        return not self.schedule.hooks and not self.schedule.has_tasks

    def begin_day(self, day):
        """What happens before a trade day's first task."""
        moment = datetime.combine(day, time())
        events = self.broker.begin_day(moment)
        self._sync()
        for event in events:
            self._hook('on_event', event)

    def fire(self, job, moment):
        """One Job at its moment: a task, or a hook by its name."""
        self.broker.advance(moment)
        self._sync()
        self._at = job.key[0]
        try:
            self._run(job)
        finally:
            self._at = -1

    def _run(self, job):
        if job.run == 'handle_data':
            self._hook('handle_data', BarData(self.view, self._unit))
        elif isinstance(job.run, str):
            self._hook(job.run)
        else:
            self._guarded(lambda: job.run(self.context))

    def end_day(self, day):
        moment = datetime.combine(day, time(23, 59, 59))
        self.broker.advance(moment)
        self.broker.end_day(moment)
        self._sync()

    def end(self):
        self._hook('on_strategy_end')

    def _log_time(self):
        return self.view.now

    def _sync(self):
        context, view = self.context, self.view
        context.current_dt, context.universe = view.now, view.universe
        context.previous_date = self.store.days[view.before_row] if view.before_row >= 0 else None

    def _hook(self, name, *more, **options):
        hook = self.strategy.hook(name)
        if hook is not None:
            self._guarded(lambda: hook(self.context, *more), **options)

    def _guarded(self, call, always_stop=False):
        """Runs code of the strategy. Its failure ends the run, or is logged and counted where that was asked for."""
        try:
            call()
        except (KeyboardInterrupt, StrategyError):
            raise
        except BaseException as error:  # SystemExit, too: a strategy that leaves by exit() has failed
            failure = self.strategy.error(error)
            if always_stop or self.on_error != 'continue' or not isinstance(error, Exception):
                raise failure from error
            self.log.add('system', 'error', failure.text)
            self.messages.append('%s 策略出错，继续运行：%s' % (self.view.now, failure.summary))

    # -- names of the strategy -----------------------------------------------------------------------------------
    def names(self):
        """Dict of all names that a strategy finds, but for those of Python."""
        names = dict(LEFT_OUT, **PLAIN_NAMES)
        names.update({name: getattr(self.view, name) for name in VIEW_NAMES})
        names.update({name: getattr(self, name) for name in SESSION_NAMES})
        pandas, numpy = self.store.pandas, self.store.numpy
        return dict(names, g=self.g, log=self.log, print=self.log.print, pd=pandas, np=numpy, math=math)

    def run_daily(self, func, time='9:30', reference_security='000001.XSHG'):
        self._add_task('daily', func, time)

    def run_weekly(self, func, weekday, time='9:30', reference_security='000001.XSHG', force=False):
        self._add_task('weekly', func, time, weekday, force)

    def run_monthly(self, func, monthday, time='9:30', reference_security='000001.XSHG', force=False):
        self._add_task('monthly', func, time, monthday, force)

    def unschedule_all(self):
        self.schedule.clear()

    def _add_task(self, kind, func, time, number=None, force=False):
        if not callable(func):
            raise BadRequest('run_%s 的第一个参数应为函数，得到 %s' % (kind, brief(func)), '写函数名，不要加括号')
        if kind != 'daily' and check_whole(number, 'weekday' if kind == 'weekly' else 'monthday', -31, 31) == 0:
            raise BadRequest('run_%s 的第几个交易日不能是 0' % kind, '1 是第一个，-1 是最后一个')
        self.schedule.add(kind, func, time, number, force, self.view.now.date(), self._at)

    def set_option(self, name, value):
        self.options.set(name, value)

    def set_benchmark(self, security):
        """A code, or a dict code -> weight."""
        self.benchmark = benchmark_weights(security)

    def set_universe(self, security_list):
        self.view.universe = self.context.universe = _asked_codes(security_list, 'security_list')

    def set_slippage(self, object, type=None, ref=None):
        self.costs.set_slippage(object, type, ref)
        self._note_unused('set_slippage', type)

    def set_order_cost(self, cost, type, ref=None):
        self.costs.set_cost(cost, type, ref)
        self._note_unused('set_order_cost', type)

    def _note_unused(self, name, type):
        if not self.costs.uses(type):
            self.log.add('system', 'warning', "%s(type='%s') 不起作用：这里只交易股票、场内基金和可转债", name, type)

    def set_commission(self, object):
        self.costs.set_commission(object)

    def record(self, **values):
        """The day's last value of each name counts; after 16:00 it is the next day's. NaN is a gap."""
        numbers = {name: _recorded(value, name) for name, value in values.items()}
        values = {name: number for name, number in numbers.items() if number == number}
        day = self.view.now.date()
        if self.view.minute >= _LEFTOVERS or self.view.today_row is None:
            after = bisect.bisect_right(self.store.days, day)
            day = self.store.days[after] if after < len(self.store.days) else day
        if values and (not self.records or self.records[-1][0] != day):
            self.records.append((day, OrderedDict()))
        if values:
            self.records[-1][1].update(values)

    def inout_cash(self, cash, pindex=0):
        """Money in (or out, negative), which counts as capital from today on."""
        portfolio, cash = self.context.portfolio, check_number(cash, 'cash', -1e12)
        if portfolio.available_cash + cash < 0:
            raise BadRequest('转出 %.2f 元大于可用资金 %.2f' % (-cash, portfolio.available_cash))
        portfolio.available_cash += cash
        portfolio.inout_cash += cash

    def subscribe(self, security, frequency='tick'):
        """Ticks come in live runs alone; see BacktestRun, which says so."""

    unsubscribe = subscribe

    def unsubscribe_all(self):
        """Nothing was subscribed."""

    def send_message(self, message, channel='weixin'):
        """JoinQuant sends it to the phone in simulations only; here it is a line of the log."""
        self.log.add('system', 'info', '消息：%s', str(message)[:200])

    def read_file(self, path):
        """bytes of a file, relative to the strategy's."""
        with open(self._beside(path), 'rb') as file:
            return file.read()

    def write_file(self, path, content, append=False):
        data = content if isinstance(content, bytes) else str(content).encode('utf-8')
        with open(self._beside(path), 'ab' if append else 'wb') as file:
            file.write(data)

    def _beside(self, path):
        return os.path.join(os.path.dirname(self.strategy.path), path)

    # -- orders --------------------------------------------------------------------------------------------------
    # `script`: what orders of scripts have and those of a strategy do not; refused with what to write instead.
    def order(self, security, amount, style=None, side='long', pindex=0, close_today=False, **script):
        """An Order, filled or not; None where it came to nothing. amount negative to sell."""
        _refuse_script_arguments(script)
        return self._place(*_order_arguments(security, amount, style, side, pindex, close_today))

    def order_value(self, security, value, style=None, side='long', pindex=0, close_today=False, **script):
        _refuse_script_arguments(script)
        style = _order_style_of(style, side, pindex, close_today)
        value = _yuan(value)
        shares = self._shares_for(security, abs(value), style)
        return None if shares is None else self._place(security, shares if value > 0 else -shares, style)

    def order_percent(self, security, percent, *how, **more):
        """order_value() of a fraction (-1 to 1) of the total value."""
        return self.order_value(security, _fraction(percent, -1) * self.context.portfolio.total_value, *how, **more)

    def order_target(self, security, amount, style=None, side='long', pindex=0, close_today=False, **script):
        _refuse_script_arguments(script)
        style = _order_style_of(style, side, pindex, close_today)
        return self._target(security, _no_short(_whole_shares(amount)), style)

    def order_target_value(self, security, value, style=None, side='long', pindex=0, close_today=False, **script):
        _refuse_script_arguments(script)
        style = _order_style_of(style, side, pindex, close_today)
        value = _no_short(_yuan(value))
        shares = self._shares_for(security, value, style)
        return None if shares is None else self._target(security, shares, style)

    def order_target_percent(self, security, percent, *how, **more):
        """order_target_value() of a fraction (0 to 1) of the total value."""
        value = _fraction(percent, 0) * self.context.portfolio.total_value
        return self.order_target_value(security, value, *how, **more)

    def batch_submit_orders(self, orders):
        """[dict of order()'s arguments]: all or none, if it is known beforehand. List of Orders, or of Nones."""
        _refuse_no_list(orders, 'batch_submit_orders', _BATCH_HINT)
        self._check_run()
        checked = [_batch_element(number, each) for number, each in enumerate(orders, 1)]
        return self.broker.place_all([(code, amount, self._style_for(code, style)) for code, amount, style in checked])

    def cancel_order(self, order):
        """The Order, or None if it is not open."""
        self._check_run()
        return self.broker.cancel(getattr(order, 'order_id', order))

    def batch_cancel_orders(self, orders):
        """cancel_order() of each; a list of what it gave."""
        _refuse_no_list(orders, 'batch_cancel_orders', '例如 batch_cancel_orders(get_open_orders().values())')
        return [self.cancel_order(order) for order in list(orders)]

    def get_open_orders(self):
        return self.broker.open_orders()

    def get_orders(self, order_id=None, security=None, status=None):
        """OrderedDict order id -> Order of today. status: a member of OrderStatus, or its name."""
        order_id, security = getattr(order_id, 'order_id', order_id), _asked_code(security)
        name = None if status is None else check_choice(getattr(status, 'name', status), 'status', _ORDER_STATUSES)
        return OrderedDict((key, item) for key, item in self.broker.orders().items()
                           if (order_id is None or str(order_id) == str(key)) and security in (None, item.security)
                           and name in (None, item.status.name))

    def get_trades(self, order_id=None, security=None):
        order_id, security = getattr(order_id, 'order_id', order_id), _asked_code(security)
        return OrderedDict((key, item) for key, item in self.broker.trades().items()
                           if (order_id is None or str(order_id) == str(item.order_id))
                           and security in (None, item.security))

    def _check_run(self):
        """A module that two runs share at the same time has the functions of the one that imported it first."""
        names = _runs.names()
        if names and names['g'] is not self.g:
            raise ConfigError('这个委托函数属于同时进行的另一次运行，没有下单',
                              '策略导入的模块里不写 from jqdata import *，改为 import jqdata，再用 jqdata.order(...)',
                              broker_called=False)

    def _place(self, security, amount, style):
        """0 shares are no order, and no fault worth a line."""
        self._check_run()
        return self.broker.place(security, amount, self._style_for(security, style)) if amount else None

    def _style_for(self, security, style):
        """The price of a market order counts on STAR alone, as JoinQuant has it; elsewhere it is said once not to."""
        counted = counted_style(security, style)
        if counted is not style and not self._told_of_price:
            self._told_of_price = True
            self.log.add('order', 'warning', PRICE_WITHOUT_EFFECT, security)
        return counted

    def _shares_for(self, security, value, style):
        """Shares worth so much at the limit, at market at the last price; None without a price."""
        if not value:
            return 0
        try:
            is_limit = _style_kind(style) == 'limit'
            price = style.limit_price if is_limit else self.view.last_price(normalize_code(security))
        except SecurityNotFound:
            price = 0.0
        if price <= 0:
            self.log.add('order', 'warning', '%s 没有价格，没有下单', security)
            return None
        return _shares(value, price)

    def _target(self, security, shares, style):
        """Whatever is open of the security is cancelled first."""
        self._check_run()
        code = _canonical(security)
        for item in list(self.broker.open_orders().values()):
            if item.security == code:
                self.broker.cancel(item.order_id)
        positions = self.context.portfolio.positions
        held = positions[code].held_amount if isinstance(code, str) and code in positions else 0
        return self._place(code, shares - held, style)


def _asked_code(security):
    return None if security is None else normalize_code(security)


def _refuse_no_list(orders, name, hint):
    if isinstance(orders, (str, bytes, dict)) or not hasattr(orders, '__iter__'):
        raise BadRequest('%s 的参数应为委托的列表，收到 %s' % (name, brief(orders)), hint)


def benchmark_weights(security):
    """OrderedDict code -> weight of a code, or of a dict of them; without those of weight 0: empty for no benchmark."""
    if not isinstance(security, (str, dict)):
        raise BadRequest('基准应为一个代码，或代码和权重的 dict，收到 %s' % brief(security),
                         "例如 '000300.XSHG'；不要基准写 {'000300.XSHG': 0}")
    given = security if isinstance(security, dict) else {security: 1.0}
    if not given:
        raise BadRequest('基准里没有证券', "例如 {'000300.XSHG': 0.5, '000905.XSHG': 0.5}；不要基准写 {'000300.XSHG': 0}")
    weights = OrderedDict((normalize_code(code), check_number(weight, 'weight', 0, 1e6))
                          for code, weight in given.items())
    return OrderedDict((code, weight) for code, weight in weights.items() if weight)


PRICE_WITHOUT_EFFECT = '%s 是市价委托，MarketOrderStyle 里的价格只对科创板起作用，这里不起作用；要限定价格写 LimitOrderStyle(价格)'


def counted_style(security, style):
    """`style`, or a market order without its price where JoinQuant gives that price no effect: all but STAR."""
    if _style_kind(style) != 'market' or getattr(style, 'limit_price', None) is None:
        return style
    try:
        return style if instrument(normalize_code(security)).board == 'star' else MarketOrderStyle()
    except SecurityNotFound:
        return style


def _order_style_of(style, side, pindex, close_today):
    """An order style object; a bare number is a limit price."""
    _refuse_futures(side, pindex, close_today)
    if side not in (None, 'long'):
        raise BadRequest('side 不认识：%s' % brief(side), "只做多头，side 是 'long' 或不写；卖出的数量、金额为负")
    if style is None:
        return MarketOrderStyle()
    if isinstance(style, (numbers.Real, Decimal)) and not isinstance(style, bool):
        style = LimitOrderStyle(style)
    kind = _style_kind(style)
    if kind is None:
        raise BadRequest('style 不认识：%s' % brief(style), '用 MarketOrderStyle() 或 LimitOrderStyle(价格)')
    price = _style_price(style)
    return MarketOrderStyle(price) if kind == 'market' else LimitOrderStyle(float(price))


def _refuse_script_arguments(given):
    if given:
        raise BadRequest('策略里的委托没有参数 %s' % '、'.join(sorted(given)), '限价写 LimitOrderStyle(价格) 或直接写价格作第三个'
                         '参数；等结果不用写：回测当场撮合，实盘见 --order-wait')


def _recorded(value, name):
    """The float of whatever number it is, of numpy or a bool, too, or of the only one in a container."""
    try:
        single = _only_one(value)
        number = math.inf if hasattr(single, '__len__') else float(single)  # texts, too
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise BadRequest('record 的 %s 应为数字，得到 %s' % (name, brief(value)), '没有值的日子用 float(\'nan\')，或不记')
    return number if number != number else check_number(number, name, -1e15, 1e15)


def _only_one(value):
    """What a list, array, Series, Index or frame holds if it holds one thing; anything else is itself."""
    if isinstance(value, (list, tuple)):
        return _only_one(value[0]) if len(value) == 1 else value
    values = getattr(value, 'values', value)
    if getattr(values, 'size', 0) != 1 or values.dtype.kind not in 'biufO':
        return value
    return values.item() if hasattr(values, 'item') else values[0]


def _order_arguments(security, amount, style=None, side='long', pindex=0, close_today=False):
    return security, _whole_shares(amount), _order_style_of(style, side, pindex, close_today)


_BATCH_HINT = "例如 batch_submit_orders([{'security': '000001.XSHE', 'amount': 100}])，一笔也没有下"


def _batch_element(number, each):
    """What place() is given for one order of a batch. Raises BadRequest, NotImplementedError, which name it."""
    try:
        if not isinstance(each, dict):
            raise BadRequest('应为 dict，收到 %s' % brief(each))
        arguments = _order_arguments(**each)
        if not arguments[1]:
            raise BadRequest('amount 不能是 0')
        return arguments
    except NotImplementedError as error:
        raise NotImplementedError('批量委托的第 %d 笔：%s' % (number, error))
    except (BadRequest, TypeError) as error:  # of another argument than order() has, or of one too few
        text = str(getattr(error, 'message', error)).replace(_order_arguments.__name__, 'order')
        raise BadRequest('批量委托的第 %d 笔：%s' % (number, text), _BATCH_HINT)


def _whole_shares(value):
    """Shares as strategies give them: 300.0 and what numpy counts are whole too."""
    return _hinted('应为整数股数，例如 100；小数先取整：int(股数)', check_whole, value, 'amount', -MAX_AMOUNT, MAX_AMOUNT)


def _yuan(value):
    return _hinted('应为金额（元），例如 20000', check_number, value, 'value', -MAX_VALUE, MAX_VALUE)


def _no_short(target):
    if target < 0:
        raise BadRequest('目标不能是负数：%s' % brief(target), '只做多头，不能卖空；清仓的目标是 0')
    return target


VIEW_NAMES = ('get_price', 'history', 'attribute_history', 'get_bars', 'get_current_data', 'get_trade_days',
              'get_trade_day', 'get_all_trade_days', 'get_all_securities', 'get_security_info', 'get_index_stocks',
              'get_extras')
SESSION_NAMES = ('run_daily', 'run_weekly', 'run_monthly', 'unschedule_all', 'set_option', 'set_benchmark',
                 'set_universe', 'set_slippage', 'set_order_cost', 'set_commission', 'record', 'inout_cash',
                 'subscribe', 'unsubscribe', 'unsubscribe_all', 'send_message', 'read_file', 'write_file', 'order',
                 'order_value', 'order_percent', 'order_target', 'order_target_value', 'order_target_percent',
                 'batch_submit_orders', 'cancel_order', 'batch_cancel_orders', 'get_open_orders', 'get_orders',
                 'get_trades')


def enable_profile():
    """JoinQuant times the lines of a strategy that says so; here it runs without."""


def disable_cache():
    """There is nothing here that a strategy could want to switch off."""


PLAIN_NAMES = {item.__name__: item for item in (
    enable_profile, disable_cache,
    OrderCost, PerTrade, PriceRelatedSlippage, FixedSlippage, StepRelatedSlippage, MarketOrderStyle, LimitOrderStyle,
    OrderStatus, FutureDataError, DividendsEvent, ForcedLiquidationEvent, Order, Trade, Position, Portfolio,
    normalize_code)}


# ======================================================================================================
# 16. RUN - a session through the trade days of a backtest, and what is kept of each day
# ======================================================================================================
class BacktestRun:
    """A strategy through a span of trade days. run() may be ended by Ctrl-C: then finished is False.

    day_rows: [(date, equity, capital, cash, positions value)]. position_rows: [(date, security, amount, avg_cost,
    price)]. progress(done, total, day, equity) is called after each day, ended() when nothing is left to interrupt.
    begun: no day after this date is run.
    """

    def __init__(self, strategy, provider, start, end, cash, frequency, params=None, today=None, on_error='stop',
                 write=lambda line: None, progress=lambda *figures: None, ended=lambda: None, begun=None):
        store = BarStore(provider, start, min(end, begun or end), today or end)
        self.store, self._cash, self._progress, self._ended = store, cash, progress, ended
        self.days = self.store.days[self.store.start_row:self.store.last_row + 1]
        if not self.days:
            raise ConfigError('%s 到 %s 没有交易日的行情' % (start, end), _nearest_days(self.store.days, start, end))
        run_params = RunParams(start, end, 'full_backtest', frequency)
        self.session = Session(strategy, self.store, run_params, self._broker, params, write, on_error)
        self.day_rows, self.position_rows, self._worthless, self.finished = [], [], set(), False
        if _ends_early(self.days, end):
            self.session.messages.append('行情到 %s 为止，之后的日期没有回测' % self.days[-1])

    def _broker(self, session):
        return SimulatedBroker(session.view, session.costs, session.options, self._cash,
                               functools.partial(session.log.add, 'order'))

    def run(self):
        """To the end, or as far as it goes. Raises StrategyError; Ctrl-C only ends it."""
        with provided_modules(RunAtWork('回测', self.session.names())):
            try:
                self.session.start()
                self._note_hooks()
                for number, day in enumerate(self.days, 1):
                    self._run_day(day)
                    self._progress(number, len(self.days), day, self.day_rows[-1][1])
                self.session.end()
                self._ended()
                self.finished = True
            except KeyboardInterrupt:
                self.session.messages.append('回测被 Ctrl-C 打断')
            finally:
                self._ended()
        self._note_missing_minutes()

    def _run_day(self, day):
        session = self.session
        session.begin_day(day)
        midnight = datetime.combine(day, time())
        for job in session.schedule.walk(day):
            session.fire(job, midnight + timedelta(minutes=job.key[0]))
        session.end_day(day)
        self._keep(day)

    def _keep(self, day):
        """The account as it stands at the day's end."""
        portfolio, worth = self.session.context.portfolio, 0.0
        for code, position in portfolio.positions.items():
            price = position.price
            if not price and code not in self._worthless:
                self._worthless.add(code)
                self.session.messages.append('%s 从 %s 起没有价格（多半已经退市），持有的 %d 股按 0 元计' % (
                    code, day, position.held_amount))
            worth += price * position.held_amount
            self.position_rows.append((day, code, position.held_amount, position.avg_cost, price))
        cash = portfolio.available_cash + portfolio.locked_cash
        self.day_rows.append((day, cash + worth, portfolio.inout_cash, cash, worth))

    def _note_hooks(self):
        """What of the strategy never runs here. Raises ConfigError where that is all of it."""
        if self.session.strategy.hook('handle_tick'):
            self.session.messages.append('回测里没有逐笔行情：handle_tick 不会运行，subscribe 不起作用')
        self.session.messages += self.session.missing_hooks()

    def _note_missing_minutes(self):
        codes = list(self.store.without_minutes)
        if codes:
            self.session.messages.append('%s 等 %d 个证券没有分钟线，或有些日子没有：那时盘中的最新价按当日开盘价，挂着的限价单只在收盘时撮合一次，之前撤掉的没有成交' % (
                codes[0], len(codes)))

    def closes(self, code):
        """Closes of the days that were run, on the strategy's price level."""
        block = self.store.daily(code)
        base = None if self.session.options.use_real_price else self.store.todays_factor(code)
        return self._of_days(block, block.level('close', base))

    def _of_days(self, block, values):
        rows = [self.store.row_of[row[0]] - block.first for row in self.day_rows]
        return [float(values[row]) for row in rows]

    def benchmark(self):
        """Growth of the benchmark over the days that were run, dividends included; None where there is none."""
        weights, total = self.session.benchmark, [0.0] * len(self.day_rows)
        if not weights or not self.day_rows:
            return None
        for code, weight in weights.items():
            block = self.store.daily(code)
            closes = block.level('close', 1.0)
            before = float(block.level('pre_close', 1.0)[self.store.start_row - block.first])
            if not before > 0:
                return [math.nan] * len(total)
            share = weight / math.fsum(weights.values())
            total = [value + share * close / before for value, close in zip(total, self._of_days(block, closes))]
        return total


def _ends_early(days, end):
    """Whether the last day that is run is before the last one that was asked for."""
    later = (days[-1] + timedelta(number) for number in range(1, (end - days[-1]).days + 1))
    return any(map(exchange_opens, later)) or (end - days[-1]).days > 15


def _nearest_days(days, start, end):
    """What could have been asked for instead."""
    if not days:
        return '行情来源在 %s 之前没有交易日' % (end + timedelta(1))
    if start > days[-1] or end < days[0]:
        return '行情%s' % ('到 %s 为止' % days[-1] if start > days[-1] else '从 %s 开始' % days[0])
    place = bisect.bisect_left(days, start)
    return '最近的交易日是 %s' % '、'.join(map(str, days[max(0, place - 1):place + 1]))


# ======================================================================================================
# 17. LIVE ACCOUNT - the remote account as a strategy's broker: keys, limits, what became of each order
# ======================================================================================================
# order_value: yuan an order; orders, cancels: a day; holdings: securities held at once. None: no limit.
RiskLimits = namedtuple('RiskLimits', 'order_value orders cancels holdings')
# wait_s: how long an order waits for its outcome; dry_run: nothing is sent.
LiveTerms = namedtuple('LiveTerms', 'wait_s dry_run limits')
LIMIT_WAIT_S = 2.0     # a limit order that has not filled by then rests
VALID_S = 120          # an order that reaches the server later than this is not submitted any more
FIND_OUT_S = 30.0      # how long an unknown outcome is asked about before the strategy is told
SKEW_TOLD_S, SKEW_LIMIT_S = 5, 60  # two clocks that differ by more are told of, and nothing is ordered
AT_ONCE_S = 60.0       # how long after its instant a task that is never made up for may order


def clock_gap_s(connection):
    """Seconds by which the server's clock is certainly ahead of ours, negative if behind; None where nobody told."""
    gap_s, error_s = connection.clock_skew_s, connection.clock_skew_error_s
    return None if gap_s is None else math.copysign(max(0.0, abs(gap_s) - (error_s or 0.0)), gap_s)


def clock_text(gap_s, limit_s):
    """What to say of clocks that differ by more than the limit, else None."""
    if gap_s is not None and abs(gap_s) > limit_s:
        return '本机的时钟比服务端%s约 %.0f 秒' % ('慢' if gap_s > 0 else '快', abs(gap_s))


CLOCK_HINT = '校准两台机器的时钟（打开系统的自动对时），任务才会按交易所的时间执行'


class Patience:
    """Reads that may be repeated are, as long as the server calls the failure passing and limit_s is not over."""

    PAUSE_S = 1.0

    def __init__(self, clock, limit_s, stopping=lambda: False):
        self.clock, self.limit_s, self.stopping, self._never = clock, limit_s, stopping, threading.Event()

    def ask(self, call, *args, **kwargs):
        deadline = self.clock.monotonic() + self.limit_s
        while True:
            try:
                return call(*args, **kwargs)
            except BulletError as error:
                if not error.retryable or self.clock.monotonic() >= deadline or self.stopping():
                    raise
            self.clock.wait(self.PAUSE_S, self._never)


class PatientProvider:
    """A provider whose reads are asked with patience; all else is the provider's own."""

    def __init__(self, provider, patience):
        self._provider, self._patience = provider, patience

    def __getattr__(self, name):
        found = getattr(self._provider, name)
        return functools.partial(self._patience.ask, found) if name.startswith('get_') else found


def _is_tradable(security):
    """Not a repo, a code of another market or an odd text: an account may hold these, and has no quotes of them."""
    try:
        return tradable(normalize_code(security))
    except SecurityNotFound:
        return False


def _by_security(rows):
    """RemotePositions -> OrderedDict code -> RemotePosition of what is held; a code that is none stays as it is."""
    found = OrderedDict()
    for row in rows:
        if row.total_amount < 0:
            raise ProtocolError('服务端给出的持仓是负数：%r' % row, '只认多头持仓；核对服务端的账户')
        if row.total_amount:
            found.setdefault(_canonical(row.security), []).append(row)
    return OrderedDict((code, _together(code, same)) for code, same in found.items())


def _together(code, rows):
    """One RemotePosition of the rows of a security, as two shareholder accounts have them."""
    if len(rows) == 1:
        return rows[0]
    if any(row.raw_response == other.raw_response for row, other in itertools.combinations(rows, 2)):
        raise ProtocolError('服务端的持仓里 %s 有相同的两行，不知道是一份还是两份' % printable(code), '核对服务端的持仓')
    amount = sum(row.total_amount for row in rows)
    return RemotePosition(dict(
        security=code, name=rows[0].name, amount=amount, closeable_amount=sum(row.closeable_amount for row in rows),
        frozen_volume=sum(row.locked_amount for row in rows), last_price=max(row.price for row in rows),
        avg_cost=math.fsum(row.avg_cost * row.total_amount for row in rows) / amount,
        market_value=math.fsum(row.value for row in rows)))


def _up_to_date(name):
    """An attribute that makes sure of the account before it is read."""
    def get(portfolio):
        portfolio.make_sure()
        return vars(portfolio)[name]

    def put(portfolio, value):
        vars(portfolio)[name] = value
    return property(get, put)


class RemotePortfolio(Portfolio):
    """The account as the server showed it last; its own figures, but for prices, which are those of now.

    outdated: whether something was sent since then; then the next look reads the account by reread(), or fails.
    """

    available_cash, locked_cash, positions, long_positions, _total, _transferable = map(_up_to_date, (
        'available_cash', 'locked_cash', 'positions', 'long_positions', '_total', '_transferable'))

    def __init__(self, quote, warn, reread):
        self.outdated, self._reread = False, reread
        super().__init__(0.0, quote, warn)
        self._quote, self._total, self._transferable, self._prices = quote, 0.0, 0.0, {}

    def make_sure(self):
        if self.outdated:
            self._reread()

    def quoted(self):
        """Codes of what was held at the last reading and has quotes."""
        return [code for code in vars(self)['positions'] if _is_tradable(code)]

    def seen(self, code):
        """The Position as it was read last, or None; never reads."""
        return vars(self)['positions'].get(code)

    def show(self, account, held):
        """account: RemoteAccount; held: code -> RemotePosition."""
        self.outdated = False
        self.available_cash, self.locked_cash = account.available_cash, account.locked_cash
        self._total, self._transferable = account.total_value, account.transferable_cash
        self._prices = {code: row.price for code, row in held.items()}
        self.positions.clear()
        self.positions.update((code, self._position(code, row)) for code, row in held.items())

    def _position(self, code, row):
        """Whatever cannot be sold and is not locked counts as bought today."""
        position = Position(code, self._price)
        position.held_amount, position.locked_amount = row.total_amount, min(row.locked_amount, row.total_amount)
        position.today_amount = max(0, position.total_amount - row.closeable_amount)
        position.avg_cost = position.acc_avg_cost = position.hold_cost = row.avg_cost
        return position

    def _price(self, code):
        """A holding that has no quote is shown at the price that the account has for it."""
        if not _is_tradable(code):
            return self._prices.get(code, 0.0)
        try:
            return self._quote(code) or self._prices.get(code, 0.0)
        except (SecurityNotFound, DataUnavailable):
            return self._prices.get(code, 0.0)

    @property
    def total_value(self):
        return self._total

    @property
    def transferable_cash(self):
        return self._transferable


class RemoteBroker(BrokerInterface):
    """Orders of a strategy at the remote account.

    book: what must not be forgotten: new_key(what) -> key, on disk when it returns; close_key(key, order_id=None);
    count_cancel(order_id, security) -> key; want_gone(order_id, security); undecided: order id -> security of what was
    to be cancelled and may still be there; count_order(); day: whose tasks run; keys: key -> dict security, side, ...;
    own: order id -> key, of today; unfinished: of these order id -> dict security, side, ... until finish(order_id);
    is_own_key(key); orders, cancels: counts of today. remote: RemoteQmtBroker. log(level, text). late_limit_s: how
    long after its instant a task may order; clock_problem(): why this machine's clock forbids to order, or None.
    overview: (RemoteAccount, RemotePositions) as read last. A failing read is an error, never an empty
    account; an order whose outcome is unknown is never sent again.
    """

    def __init__(self, view, costs, options, log, remote, book, patience, terms, late_limit_s=300.0,
                 clock_problem=lambda: None):
        self.view, self.costs, self.options, self._log = view, costs, options, log
        self._late_limit_s, self._clock_problem = late_limit_s or AT_ONCE_S, clock_problem
        self._instant, self._begun_s = None, None  # of the task at work, and when it began by the clock nobody sets
        self._remote, self._book, self._patience, self._terms = remote, book, patience, terms
        self.portfolio = RemotePortfolio(view.last_price, lambda text: log('warning', text), self.refresh)
        self.overview, self._fresh, self._puzzled = None, False, set()
        self._seen = {}  # order id -> Order of today

    # -- what it looks like ----------------------------------------------------------------------------------------
    def refresh(self):
        """Reads the account."""
        info = self._patience.ask(self._remote.get_account_info)
        if not isinstance(info, dict):
            raise ProtocolError('服务端没有给出账户资金', '核对服务端的日志')
        rows = info.get('positions')
        rows = rows_of(self._patience.ask(self._remote.get_positions) if rows is None else rows, '持仓')
        account, positions = RemoteAccount(info), [RemotePosition(row) for row in rows]
        self.portfolio.show(account, _by_security(positions))
        self.overview, self._fresh = (account, positions), True

    def _look_again(self):
        """After something was sent. A read that fails does not make it look failed: the account is read when needed."""
        try:
            self.refresh()
        except BulletError as error:
            self._log('warning', '账户暂时读不到，用到之前再读：%s' % error.message)

    def begin_day(self, moment):
        self.view.move(moment)
        self._seen = {}
        return []

    def advance(self, moment):
        """What was read for this job already is not read again."""
        self.view.move(moment)
        if not self._fresh:
            self.refresh()
        self._fresh = False

    def orders(self):
        """Those of this run; whatever else the account holds is somebody else's."""
        return self._own_of(self._rows_of_orders())

    def _own_of(self, rows):
        """An order that the broker's list lacks (yet) is what was seen of it last, and never gone."""
        found = [RemoteOrder(row) for row in rows if self._is_own(row)]
        orders = OrderedDict((row.order_id, self._order_of(row)) for row in found)
        for order_id, what in self._book.unfinished.items():
            if order_id not in orders and order_id not in self._seen:  # an earlier process placed it
                row = RemoteOrder(dict(what, order_id=order_id, order_time=what.get('time'), status='submitted'))
                self._order_of(row, _style_kept(what))
        for order_id in [order_id for order_id in self._seen if order_id not in orders]:
            order = orders[order_id] = self._seen[order_id]
            self._puzzle(order_id, None, '委托 %s（%s）不在服务端的委托列表里，按上次看到的算；请在 QMT 里核对' % (
                order_id, _text_of_order(order)))
        return orders

    def trades(self):
        orders = self.orders()
        rows = rows_of(self._patience.ask(self._remote.get_trades), '成交')
        found = [RemoteTrade(row) for row in rows if str(_first(row, 'order_id', 'entrust_id')) in orders]
        return OrderedDict((row.trade_id, Trade(row.trade_id, orders[row.order_id], row.time, row.amount, row.price,
                                                row.commission, row.tax)) for row in found)

    def _rows_of_orders(self):
        return rows_of(self._patience.ask(self._remote.get_orders), '委托')

    def _is_own(self, row):
        return str(row.get('order_id')) in self._book.own or self._book.is_own_key(row.get('idempotency_key'))

    def _order_of(self, row, style=None):
        """The same Order object for the same order, as it is now."""
        order = self._seen.get(row.order_id)
        if order is None:
            order = self._seen[row.order_id] = self._new_order(row, style)
        order.filled = row.filled or (row.amount if row.status == 'filled' else 0)
        order.price, order.commission = row.price, row.commission
        order.status, order.message = OrderStatus[status_name(row.status, order.filled)], row.status_msg
        if odd_status(row):
            self._puzzle(row.order_id, row.status, odd_status(row))
        if order.is_buy:
            order.avg_cost = row.price
        if row.final:
            self._book.finish(row.order_id)
        return order

    def _puzzle(self, order_id, what, text):
        """Said once of an order."""
        if (order_id, what) not in self._puzzled:
            self._puzzled.add((order_id, what))
            self._log('warning', text)

    def _new_order(self, row, style):
        code = _canonical(row.security)
        if row.is_buy is None:
            raise ProtocolError('委托 %s（%s）没有说明买卖方向' % (printable(row.order_id), printable(code)), '在 QMT 里核对这笔委托')
        if style is None:
            is_market = row.raw_response.get('style') == 'market'
            style = MarketOrderStyle(row.order_price or None) if is_market else LimitOrderStyle(row.order_price)
        order = Order(row.order_id, code, row.is_buy, row.amount, style, row.add_time or self._patience.clock.now())
        held = self.portfolio.seen(code)
        if held is not None and not row.is_buy:
            order.avg_cost = held.avg_cost
        return order

    # -- orders ------------------------------------------------------------------------------------------------------
    def place(self, security, amount, style):
        checked = self._checked(security, amount, style)
        if checked is None:
            return None
        code, amount = checked
        if self._terms.dry_run:
            self._log('info', '演练，没有发出：%s' % _order_text(code, amount, style))
            self._book.count_order()
            return None
        return self._send(code, amount, style)

    def _checked(self, security, amount, style, before=0):
        """(code, shares that can be had), or None with a line that says why. before: orders that go first."""
        try:
            code = self._known(security)
            shares = self._sized(code, amount, style)
            self._check_open_keys(code, shares)
            self._check_limits(code, shares, style, before)
            self._check_time()
        except (_Void, DataUnavailable, SecurityNotFound) as reason:
            self._log('warning', '%s 下单 %s 股没有成立：%s' % (printable(str(security)), amount, reason))
            return None
        return code, shares

    def place_all(self, orders):
        """Each is checked before the first is sent. What comes of them then cannot be undone, but ends what is open."""
        for number, each in enumerate(orders):
            if self._checked(*each, before=number) is None:
                self._log('warning', '批量委托的第 %d 笔没有成立，%d 笔都不下' % (number + 1, len(orders)))
                return [None] * len(orders)
        placed = []
        for number, each in enumerate(orders, 1):
            placed.append(self.place(*each))
            if placed[-1] is None and not self._terms.dry_run:
                self._log('error', '批量委托的第 %d 笔没有成立：后面的不再下，前面没有成交的撤掉' % number)
                placed = [order and (self.cancel(order.order_id) or order) for order in placed]
                return placed + [None] * (len(orders) - number)
        return placed

    _known, _sized, _check_style = SimulatedBroker._known, SimulatedBroker._sized, SimulatedBroker._check_style
    _bought, _affordable = SimulatedBroker._bought, SimulatedBroker._affordable

    def _reference(self, code, style):
        """What a buy keeps of the cash: at market the worst price that it may fill at."""
        return style.limit_price if _style_kind(style) == 'limit' else self._bound(code, style)

    def _bound(self, code, style):
        high, low = self.view.limits(code)
        last = self.view.last_price(code)
        bound = protect_price(code, 'BUY', last, high if high < math.inf else None, low if low > 0 else None)
        own = style.limit_price
        return min(filter(None, (bound or last, own)), default=0.0)

    def begin_task(self, instant):
        """What is ordered from now on was decided for this instant."""
        self._instant, self._begun_s = instant, self._patience.clock.monotonic()

    def _check_time(self):
        """A machine that stood still in the middle of a task must not order later what was decided for then."""
        now = self._patience.clock.now()
        if now.date() != self._book.day:
            raise _Void('任务是 %s 的，现在是 %s' % (self._book.day, now.date()))
        if self._instant is not None:
            self._check_lateness((now - self._instant).total_seconds())
        problem = self._clock_problem()
        if problem:
            raise _Void(problem)

    def _check_lateness(self, late_s):
        """late_s: by the wall clock, which somebody may have set back meanwhile."""
        worked_s = self._patience.clock.monotonic() - self._begun_s
        if not -self._late_limit_s <= late_s <= self._late_limit_s or worked_s > self._late_limit_s:
            raise _Void('任务是 %s 的，现在是 %s，相差 %d 秒，超过 --late-limit 的 %g 秒，没有发出' % (
                self._instant.strftime('%H:%M'), self._patience.clock.now().strftime('%H:%M:%S'),
                max(late_s, worked_s, key=abs), self._late_limit_s))

    def _valid_until(self, now):
        """The server must not submit it later, wherever it waits on its way."""
        latest = now + timedelta(seconds=VALID_S)
        if self._instant is not None:
            latest = min(latest, self._instant + timedelta(seconds=self._late_limit_s))
        return latest.replace(microsecond=0)

    def _check_open_keys(self, code, amount):
        side = 'BUY' if amount > 0 else 'SELL'
        if any((item['security'], item['side']) == (code, side) for item in self._book.keys.values()):
            raise _Void('同一证券同一方向还有一笔委托结果未知，核对出来之前不再下单')
        if code in self._book.undecided.values() and self._still_undecided(code):
            raise _Void('这只证券有要撤而还没有撤掉的委托，之前不再下单')

    def _still_undecided(self, code):
        orders = self.orders()  # what the list does not show is not gone
        self._book.undecided = {key: item for key, item in self._book.undecided.items()
                                if key not in orders or orders[key].status in ALIVE}
        return code in self._book.undecided.values()

    # -- limits: what cannot be computed does not pass -------------------------------------------------------------
    def _check_limits(self, code, amount, style, before):
        limits = self._terms.limits
        if limits.orders is not None and self._book.orders + before >= limits.orders:
            raise _Void('今天已下 %d 笔委托，上限 %d' % (self._book.orders + before, limits.orders))
        if limits.order_value is not None:
            worth = self._worth(code, amount, style)
            if not 0 < worth <= limits.order_value:
                raise _Void('委托金额 %s 超过每笔上限 %.2f' % ('%.2f' % worth if worth > 0 else '算不出来，视为', limits.order_value))
        if limits.holdings is not None and amount > 0:
            self._check_holdings(code, limits.holdings)

    def _worth(self, code, amount, style):
        """Yuan at the highest price that it may fill at; 0 where that is not known."""
        if amount > 0 and _style_kind(style) == 'limit':
            return amount * style.limit_price
        last = self.view.last_price(code)
        if self.view.is_stale(code) or last <= 0:
            return 0.0
        if amount > 0:
            return amount * self._reference(code, style)
        return -amount * max(last, style.limit_price or 0.0)

    def _check_holdings(self, code, limit):
        """Held, being bought, or perhaps being bought."""
        codes = set(self.portfolio.positions)
        rows = self._rows_of_orders()
        codes.update(_canonical(_text(row, 'security')) for row in rows if _may_add_a_holding(row))
        codes.update(item.security for item in self._own_of(rows).values() if item.is_buy and item.status in ALIVE)
        codes.update(item['security'] for item in self._book.keys.values() if item['side'] == 'BUY')
        if code not in codes and len(codes) >= limit:
            raise _Void('已有 %d 只持仓（含在途买入），上限 %d' % (len(codes), limit))

    # -- sending -----------------------------------------------------------------------------------------------------
    def _send(self, code, amount, style):
        """The key is on disk before the order leaves; only what is certain takes it away again."""
        side, is_market = 'BUY' if amount > 0 else 'SELL', _style_kind(style) == 'market'
        now = self._patience.clock.now()
        what = OrderedDict(security=code, side=side, amount=abs(amount))
        key = self._book.new_key(OrderedDict(what, time=now, style=_style_kind(style), order_price=style.limit_price))
        self.portfolio.outdated = True
        try:
            row = self._remote.place_order(
                code, side, abs(amount), order_style(style.limit_price, is_market), self._wait_s(is_market, now),
                idempotency_key=key, valid_until=self._valid_until(now))
        except OrderStateUnknown as error:
            self._log('error', '%s 结果未知，正在核对（key=%s）：%s' % (_order_text(code, amount, style), key, error.message))
            row = self._found_out(key)
        except OrderRejected as error:
            row = self._void(key, error)
        except BulletError:  # certainly not sent
            self._book.close_key(key)
            raise
        else:
            self._close(key, row['order_id'])
            if warning_in(row):
                self._log('warning', '服务端警告：%s' % warning_in(row))
        self._look_again()
        return None if row is None else self._placed(self._accepted(row, what), style)

    def _found_out(self, key):
        """settle(), of which every failure leaves the order unknown."""
        try:
            return self.settle(key, FIND_OUT_S)
        except OrderStateUnknown:
            raise
        except BulletError as error:
            raise OrderStateUnknown('委托结果未知，查询也没有成功：%s' % error.message, '不要重下；后台会继续核对',
                                    idempotency_key=key) from error

    def _close(self, key, order_id):
        """The order is there. A disk that is full now does not make it look failed: there the key stays open."""
        try:
            self._book.close_key(key, str(order_id))
        except ConfigError as error:
            self._log('error', '委托 %s 已报，没有记下：%s' % (order_id, error.message))

    def _accepted(self, row, what):
        """The RemoteOrder of an answer that leaves out what was ordered, or of which only the order id is clear."""
        what = dict(what, is_buy=what['side'] == 'BUY')
        told = {name: value for name, value in row.items() if value is not None and name != 'is_buy'}
        try:
            return RemoteOrder(dict(what, **told))
        except ProtocolError as error:
            self._log('error', '委托 %s 已报，其余回答看不懂：%s' % (printable(row['order_id']), error.message))
            return RemoteOrder(dict(what, order_id=row['order_id'], status='submitted'))

    def _wait_s(self, is_market, now):
        """Nobody waits for an order that only the open can fill."""
        if not in_trading(now.hour * 60 + now.minute):
            return 0
        return self._terms.wait_s if is_market else min(self._terms.wait_s, LIMIT_WAIT_S)

    def _placed(self, row, style):
        """What an answer leaves out of its fills stands in the list."""
        order = self._order_of(row, style)
        if _first(row.raw_response, 'filled', 'traded_volume') is None:
            order = self._seen_again(order)
        level = 'warning' if order.status in (OrderStatus.rejected, OrderStatus.canceled) else 'info'
        self._log(level, '%s：委托号 %s，状态 %s，成交 %d 股，均价 %g%s' % (
            _text_of_order(order), order.order_id, order.status, order.filled, order.price,
            row.status_msg and '（%s）' % printable(row.status_msg)))
        return order

    def _void(self, key, error):
        what = self._book.keys[key]
        self._book.close_key(key)
        self._log('warning', '%s %s %d 股被拒绝：%s' % (
            '买入' if what['side'] == 'BUY' else '卖出', what['security'], what['amount'], error.message))
        return None

    def settle(self, key, limit_s):
        """The row of the order of an open key, None if it is certainly not at the broker. Raises OrderStateUnknown."""
        try:
            row = self._remote.wait_order(key, limit_s)
        except OrderRejected as error:
            return self._void(key, error)
        what = self._book.keys[key]
        if not row.get('order_id'):
            raise OrderStateUnknown('服务端说委托已报，没有给出委托号', '在 QMT 里核对', idempotency_key=key)
        self._close(key, row['order_id'])
        self._log('warning', '已核对：%s %s %d 股在柜台，委托号 %s' % (
            '买入' if what['side'] == 'BUY' else '卖出', what['security'], what['amount'], row['order_id']))
        return row

    # -- cancels -----------------------------------------------------------------------------------------------------
    def cancel(self, order_id):
        order = self.open_orders().get(str(order_id))
        if order is None:
            return None
        limit = self._terms.limits.cancels
        if limit is not None and self._book.cancels >= limit:
            self._log('warning', '没有撤委托 %s：今天已撤 %d 次，上限 %d' % (order_id, self._book.cancels, limit))
            self._book.want_gone(order.order_id, order.security)
            return None
        key = self._book.count_cancel(order.order_id, order.security)
        if self._terms.dry_run:
            self._log('info', '演练，没有发出：撤委托 %s' % order_id)
            return None
        return self._cancel(order, key)

    def _cancel(self, order, key):
        """Until it is seen to be gone nothing new is ordered of its security."""
        self.portfolio.outdated = True
        try:
            done = self._remote.cancel_order(order.order_id, idempotency_key=key)
            text = '已撤' if done else '没有撤成，已是最终状态'
            if done:
                order.status = OrderStatus.canceled
                self._book.finish(order.order_id)
        except (OrderRejected, OrderNotFound) as error:
            text = '没有撤成：%s' % error.message
        except OrderStateUnknown as error:
            text = '撤单还没有结果：%s' % error.message
        self._log('info', '%s 的委托 %s：%s' % (order.security, order.order_id, text))
        self._look_again()
        return self._seen_again(order)

    def _seen_again(self, order):
        """As it was before where it cannot be read; whatever comes of it, the cancel was sent."""
        try:
            return self.orders().get(order.order_id, order)
        except BulletError as error:
            self._log('warning', '委托 %s 暂时读不到：%s' % (order.order_id, error.message))
            return order


def _may_add_a_holding(row):
    """Of an order's row. What it bought today is held, also while the positions do not show it yet."""
    if _is_buy(row) is False:
        return False
    held = _is_tradable(row.get('security')) and not instrument(row['security']).t0
    return _first(row, 'status', 'state') not in FINAL_STATUSES or bool(held and _first(row, 'filled', 'traded_volume'))


def _style_text(style):
    price = style.limit_price
    if _style_kind(style) == 'limit':
        return '限价 %g' % price
    return '市价' if price is None else '市价（保护价 %g）' % price


def _style_kept(what):
    """Of what a book has of an order; an older program wrote no price."""
    if what.get('style') == 'limit':
        return LimitOrderStyle(what['order_price'])
    return MarketOrderStyle(what.get('order_price'))


def _text_of_order(order):
    return _order_text(order.security, order.amount if order.is_buy else -order.amount, order.style)


def _order_text(code, amount, style):
    return '%s %s %d 股 %s' % ('买入' if amount > 0 else '卖出', code, abs(amount), _style_text(style))


# ======================================================================================================
# 18. LIVE DATA - bars of the past in blocks, today from quotes; the calls are those of a backtest
# ======================================================================================================
QUOTE_S = 1.0          # how long a quote is taken for that of now
DAYS_AHEAD = 40        # days after today that weeks and months are counted with
_QUOTED = ('open', 'high', 'low', 'volume', 'money')


class LiveStore(BarStore):
    """A BarStore whose last day is today. provider: asked for all; clock: of the run; watched(): codes whose quotes are
    asked for together.

    begin_day(today) makes it anew. live_row: today's row of the calendar, None if today is no trade day. Days before
    today come from the provider; today's row from the quote, and from the provider once the day is over.
    """

    def __init__(self, provider, clock):
        self.pandas, self.numpy = need_pandas()
        self.provider, self._clock, self.days, self.watched = provider, clock, [], lambda: ()
        self.begin_day(clock.now().date())

    def begin_day(self, today):
        """Raises BulletError where the provider cannot be asked; then all is as it was before."""
        days = self.provider.get_trade_days(start_date='1990-01-01', end_date=today)
        if not days:
            raise DataUnavailable('行情来源没有交易日', '核对服务端的行情')
        ahead = [today + timedelta(days=number) for number in range(1, DAYS_AHEAD + 1)]
        self.days[:] = days + [day for day in ahead if exchange_opens(day)]  # in place: others hold this list
        self.calendar = array('q', [to_ms(day) for day in self.days])
        self.row_of = {day: row for row, day in enumerate(self.days)}
        self._today = today
        self.last_row = self.start_row = len(days) - 1
        self.live_row = self.row_of.get(today)
        self.closed, self.without_minutes = False, OrderedDict()
        self._days, self._minutes, self._infos, self._today_factors, self._lacking = {}, {}, {}, {}, {}
        self._quotes, self._todays, self._joined, self._read_at = {}, {}, {}, {}

    def wall_time(self):
        return self._clock.now()

    # -- quotes ------------------------------------------------------------------------------------------------------
    def quote(self, code):
        """Row of the quote of now, at most a second old."""
        if not self._has_quote(code) and self.provider.gives_many_quotes:
            watched = self.watched()
            if code in watched:
                self.read_quotes(watched)
        if not self._has_quote(code):
            self._quotes[code] = self._clock.monotonic(), self.provider.get_live_current(code)
        return self._quotes[code][1]

    def _has_quote(self, code):
        return code in self._quotes and self._clock.monotonic() - self._quotes[code][0] < QUOTE_S

    def read_quotes(self, codes):
        """Those that are not of now, in one request. Who has none is not there, and says why when asked for alone."""
        old, now_s = [code for code in codes if not self._has_quote(code)], self._clock.monotonic()
        if len(old) > 1:
            rows = self.provider.get_live_currents(old)
            self._quotes.update((code, (now_s, row)) for code, row in rows.items())

    def is_of_today(self, quote):
        moment = _moment(quote.get('dt'))
        return moment is None or moment.date() == self._today

    def today_of(self, code):
        """Dict of today's figures as they are now; NaN for what is not known (yet), the last close while suspended."""
        quote = self.quote(code)
        fresh = self.is_of_today(quote)
        row = {name: _number_of(quote.get(name) if fresh else None) for name in _QUOTED}
        row.update(self._reference(code, quote, fresh), close=_number_of(quote.get('last_price')),
                   paused=float(bool(quote.get('paused'))))
        if row['paused']:
            row.update(dict.fromkeys(('open', 'high', 'low', 'close'), row['pre_close']), volume=0.0, money=0.0)
        return row

    def _reference(self, code, quote, fresh):
        """Before there is a quote of today the last close and the rules tell what is known of it."""
        names = ('pre_close', 'high_limit', 'low_limit')
        if fresh:
            return {name: _number_of(quote.get(name)) for name in names}
        last = _number_of(quote.get('last_price'))
        high, low = price_limits(code, last, self._today)
        return dict(zip(names, map(_number_of, (last, high, low))))

    # -- days --------------------------------------------------------------------------------------------------------
    def turn(self, closed):
        """closed: whether today is over for the strategy."""
        self.closed = closed

    def daily(self, code, row=None):
        """A block that was read before the close is no good after it; for some minutes it may still be completed."""
        read = self._read_at.get(code)
        if self.closed and read is not None and (not read[0] or self._may_have_changed(read[1])):
            self._days.pop(code, None)
        return super().daily(code, row)

    def _may_have_changed(self, read):
        settled = datetime.combine(self._today, time(15, 5))
        return read < settled and (self._clock.now() - read).total_seconds() > 60

    def _load_days(self, codes, first):
        """All of it or nothing: bars without today's would be taken for all that there are."""
        try:
            with self._until(self.live_row if self.closed or self.live_row is None else self.live_row - 1):
                super()._load_days(codes, first)
            if self.live_row is not None:
                self.read_quotes(codes)
            for code in codes:
                self._read_at[code] = self.closed, self._clock.now()
                if self.live_row is not None:
                    self._days[code] = self._with_today(self._days[code])
        except BaseException:
            for code in codes:
                self._days.pop(code, None)
            raise

    @contextlib.contextmanager
    def _until(self, row):
        """What is read meanwhile ends with this row."""
        shown, self.last_row = self.last_row, self.last_row if row is None else row
        try:
            yield
        finally:
            self.last_row = shown

    def _with_today(self, block):
        """The block with today's row: its reference prices, and all of it where the provider lacks the day."""
        today = self.calendar[self.live_row]
        has_today = len(block.times) and block.times[-1] == today
        row = self.today_of(block.code)
        if has_today and block.columns['paused'][-1] == row['paused']:
            return block
        times = block.times if has_today else block.times + array('q', [today])
        columns = {name: values[:-1] if has_today else values for name, values in block.columns.items()}
        columns = {name: values + array('d', [row[name] if self._shows(name) else math.nan])
                   for name, values in columns.items()}
        return DayBlock(block.code, times, columns, self._steps(block, columns, today), block.first, block.complete)

    def _shows(self, name):
        """The running day's prices are never read from here: LiveView has those of now."""
        return self.closed or name in ('pre_close', 'high_limit', 'low_limit', 'paused')

    def _steps(self, block, columns, today):
        """What goes ex today shows in the reference price alone."""
        before, reference = columns['close'][-2] if len(columns['close']) > 1 else math.nan, columns['pre_close'][-1]
        if columns['paused'][-1] or not (reference > 0 and abs(before - reference) > 1e-6):
            return block.steps
        return [step for step in block.steps if step[0] < today] + [
            (today, factor_at(block.steps, today - 1) * before / reference)]

    # -- minutes -----------------------------------------------------------------------------------------------------
    def minutes(self, code, first, last):
        if self.live_row is None:
            return super().minutes(code, first, last)
        past = None
        if first < self.live_row:
            with self._until(self.live_row - 1):
                past = super().minutes(code, first, min(last, self.live_row - 1))
            if past is None or last < self.live_row:
                return past
        return self._join(code, past, self._minutes_today(code))

    def _minutes_today(self, code):
        """(times, columns) of today's complete minutes, or None; read again when one more should be there."""
        now, now_s = self._clock.now(), self._clock.monotonic()
        count = bars_elapsed(now)
        expected = self.calendar[self.live_row] + BAR_MINUTES[count - 1] * 60000 if count else None
        known = self._todays.get(code)
        if known is None or (not self._has(known[1], expected) and (now_s - known[0] >= QUOTE_S or known[2] != count)):
            part = self._minute_part(code, self.live_row, self.live_row + 1)
            known = self._todays[code] = now_s, part, count
        return known[1]

    @staticmethod
    def _has(part, expected):
        return expected is None or (part is not None and len(part[0]) > 0 and part[0][-1] >= expected)

    def _join(self, code, past, today):
        known = self._joined.get(code)
        if known is not None and known[0] is past and known[1] is today:
            return known[2]
        block = past
        if today is not None and len(today[0]):
            block = BarBlock(code, *(_appended(past, today) + (self.daily(code).steps,)))
        self._joined[code] = past, today, block
        return block


def _number_of(value):
    return math.nan if value is None or isinstance(value, str) else float(value)


class LiveView(DataView):
    """A DataView whose today is what quotes say; prices are anchored at today, so they are those of orders."""

    def move(self, moment):
        super().move(moment)
        self.store.turn(self.today_row is not None and self.done_row == self.today_row)

    def base(self, code, block):
        return factor_at(block.steps, self.now_ms)

    def day_value(self, code, name, row=None):
        row = self.today_row if row is None else row
        if row is None or row != self.store.live_row:
            return super().day_value(code, name, row)
        return self.store.today_of(code)[name]

    def last_price(self, code):
        """Yuan of now; before the open the reference price; 0.0 where there is none."""
        if self.today_row is None:
            price = self.day_value(code, 'close', self.done_row)
        else:
            price = self.day_value(code, 'pre_close' if self.minute < _OPENING else 'close')
        return price if price == price else 0.0

    def is_stale(self, code):
        """Whether the source itself says that its quote is too old, or does not say of when it is."""
        quote = self.store.quote(code)
        return bool(quote.get('stale')) or not quote.get('dt') or not self.store.is_of_today(quote)

    def _running_day(self, code, level):
        """Dict of today's bar so far; nothing of it before the open, the reference price until the first trade."""
        if self.minute < _OPENING:
            return dict.fromkeys(_FIELDS, math.nan)
        bar = self.store.today_of(code)
        if bar['open'] != bar['open']:
            bar.update(dict.fromkeys(('open', 'high', 'low', 'close'), bar['pre_close']), volume=0.0, money=0.0)
        bar = self._on_level(code, bar, level)
        average = bar['money'] / bar['volume'] if bar['volume'] else bar['close']
        return dict(bar, avg=average, price=average)

    def _on_level(self, code, bar, level):
        base = level.base if isinstance(level, Exact) else level
        ratio = 1.0 if base is None else self.base(code, self.store.daily(code)) / base
        if ratio == 1.0:
            return bar
        digits = 3 if instrument(code).tick < 0.01 else 2
        prices, volume = {name: bar[name] * ratio for name in ('open', 'high', 'low', 'close')}, bar['volume'] / ratio
        if base is level:
            prices, volume = {name: round(price, digits) for name, price in prices.items()}, float(round(volume))
        return dict(bar, volume=volume, **prices)


# ======================================================================================================
# 19. LIVE RUN - what is kept on disk, the wall clock, and the loop that fires what is due
# ======================================================================================================
STATE_FILE, LOCK_FILE, STOP_FILE = 'state.bin', 'lock', 'stop'
STATE_MAGIC = b'bullet-qmt live state\n'
STATE_VERSION = 1
POLL_S = 1.0            # how soon a stop file is noticed
HEAR_S = 0.4            # how soon a signal is
RETRY_S = 15.0          # between attempts to begin a day or to read the account
RESOLVE_S = 10.0        # between looks at orders whose outcome is unknown
CALENDAR_S = 600.0      # between looks whether a weekday has become a trade day after all
START_PATIENCE_S = 180.0  # how long a new process asks about open keys before its first task


class LiveClock(Clock):
    """Beijing's wall clock. wait(seconds, event): until then or the event, but never long: signals are to be seen."""

    def wait(self, seconds, event):
        event.wait(max(0.0, min(seconds, HEAR_S)))


class DirectoryLock:
    """One process for a directory: a lock of the operating system, which no crash leaves behind."""

    def __init__(self, directory):
        self._path, self._file = os.path.join(directory, LOCK_FILE), None

    def __enter__(self):
        try:
            self._file = open_own(self._path, 'a+', encoding='utf-8')
        except OSError as error:
            raise ConfigError('锁文件 %s 打不开：%s' % (self._path, error), '检查 --runtime-dir 的权限')
        try:
            self._acquire_in_time()
        except OSError as error:
            problem = self._problem(error)
            self._file.close()
            raise problem
        try:
            self._name_holder()
        except OSError as error:
            self._file.close()
            raise ConfigError('锁文件 %s 写不进去：%s' % (self._path, error), '检查磁盘空间，或换一个 --runtime-dir')
        return self

    def _name_holder(self):
        """Past the file's buffer, whose rest a full disk would make it try again when it is closed."""
        text = '进程 %d，自 %s' % (os.getpid(), datetime.now(BEIJING).strftime('%Y-%m-%d %H:%M:%S'))
        self._file.seek(0)
        self._file.truncate()
        os.write(self._file.fileno(), text.encode('utf-8'))

    def __exit__(self, *exc_info):
        self._file.close()

    PATIENCE_S = 2.0  # Windows gives back what a killed process had locked when it gets round to it

    def _acquire_in_time(self):
        deadline = monotonic() + self.PATIENCE_S
        while True:
            try:
                return self._acquire()
            except OSError as error:
                if not self._is_held(error) or monotonic() >= deadline:
                    raise
            threading.Event().wait(0.05)

    @staticmethod
    def _is_held(error):
        """By what the systems say of a lock that another process has; Wine's C library says nothing: 0."""
        return error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK, 0)

    def _acquire(self):
        """On Windows a byte far behind the text, which stays readable so."""
        fcntl = optional_import('fcntl')
        if fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        os.lseek(self._file.fileno(), 1 << 30, os.SEEK_SET)
        msvcrt = optional_import('msvcrt')
        msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)

    def _problem(self, error):
        directory = os.path.dirname(self._path)
        if self._is_held(error):
            return ConfigError('运行目录 %s 已有一个实盘进程在用%s' % (directory, self._holder()), '先停掉它，或换一个 --runtime-dir')
        return ConfigError('运行目录 %s 不能上锁：%s' % (directory, error), '网络盘往往不能，换一个本机的 --runtime-dir')

    def _holder(self):
        try:
            self._file.seek(0)
            return '（%s）' % printable(self._file.read(200))
        except (OSError, UnicodeDecodeError):
            return ''


# -- what is kept --------------------------------------------------------------------------------------------------
def write_atomically(path, data):
    """The file holds either what it held or all of this, on disk when it returns."""
    fresh = path + '.new'
    with successor(path, fresh, 'wb') as file:
        restrict_to_owner(fresh)
        file.write(data)
    sync_directory(os.path.dirname(path) or '.')


@contextlib.contextmanager
def successor(path, fresh, mode, **how):
    """The file `fresh` to write, which takes the place of `path` once all is in it and on disk."""
    with open_own(fresh, mode, **how) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    patiently(os.replace, fresh, path)


class LiveState:
    """What a live run must not forget, in one file of its runtime directory.

    A job's key is on disk as begun before it runs; cursor is the last one begun, and all before it are done with.
    running: the one that has begun and not ended. keys: idempotency keys of orders whose outcome is not known.
    kept: g and other things of the strategy, as LiveSession packs them.
    """

    FIELDS = OrderedDict([
        ('version', STATE_VERSION), ('strategy', ''), ('source', ''), ('account', ''), ('dry_run', False),
        ('frequency', 'day'), ('run_id', ''), ('born', None), ('capital', None), ('returns', 0.0),
        ('returns_day', None), ('day', None), ('cursor', (-1,)), ('running', None), ('number', 0), ('orders', 0),
        ('cancels', 0), ('keys', {}), ('own', {}), ('kept', {}), ('undecided', {}), ('unfinished', {})])
    # without these something could be done twice or be forgotten; what else an older file lacks has its default
    ESSENTIAL = ('version', 'strategy', 'account', 'dry_run', 'frequency', 'run_id', 'born', 'day', 'cursor', 'running',
                 'number', 'orders', 'cancels', 'keys', 'own', 'kept')

    def __init__(self, directory, values):
        self._path = os.path.join(directory, STATE_FILE)
        self.__dict__.update(self.FIELDS, keys=OrderedDict(), own={}, kept={}, undecided={}, unfinished={})
        self.__dict__.update(values)

    @classmethod
    def read(cls, directory):
        """The state, or None where there is none yet. Raises ConfigError for a file that is damaged or foreign.

        Whoever could write it could have any code run here: a checksum proves nothing, its owner and mode do.
        """
        path = os.path.join(directory, STATE_FILE)
        try:
            cls._refuse_foreign('运行目录', directory, os.stat(directory))
            with open_own(path, 'rb') as file:
                cls._refuse_foreign('状态文件', path, os.fstat(file.fileno()))
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError('状态文件 %s 读不出来：%s' % (path, error), '检查 --runtime-dir 的权限')
        return cls(directory, cls._unpacked(data, path))

    @staticmethod
    def _refuse_foreign(what, path, status):
        problem = foreign(status)
        if problem:
            raise ConfigError('%s %s %s，没有读' % (what, path, problem),
                              '换一个自己的 --runtime-dir；确认内容可信时 chown 给自己，再 chmod go-w')

    WAY_OUT = '不会当作没有状态从头开始。先核对账户和委托；确认要从头开始时，换一个 --runtime-dir'

    @classmethod
    def _unpacked(cls, data, path):
        head, digest, body = data[:len(STATE_MAGIC)], data[len(STATE_MAGIC):][:32], data[len(STATE_MAGIC) + 32:]
        if head != STATE_MAGIC:
            raise ConfigError('%s 不是实盘的状态文件' % path, cls.WAY_OUT)
        if hashlib.sha256(body).digest() != digest:
            raise ConfigError('状态文件 %s 已损坏' % path, cls.WAY_OUT)
        try:
            values = pickle.loads(body)
        except Exception as error:  # of classes that are not here, say
            raise ConfigError('状态文件 %s 读不懂：%s' % (path, printable(str(error))), cls.WAY_OUT) from error
        if not isinstance(values, dict) or not isinstance(values.get('kept', {}), dict):
            raise ConfigError('状态文件 %s 里不是实盘的状态' % path, cls.WAY_OUT)
        return cls._checked(values, path)

    @classmethod
    def _checked(cls, values, path):
        if values.get('version') != STATE_VERSION:
            raise ConfigError('状态文件 %s 的版本 %s 不认识' % (path, brief(values.get('version'))), '用写它的那个版本的程序')
        unknown = sorted(set(values) - set(cls.FIELDS))
        if unknown:
            raise ConfigError('状态文件 %s 里有不认识的 %s' % (path, '、'.join(unknown)), '它是更新的版本写的，用那个版本的程序')
        lacking = [name for name in cls.ESSENTIAL if name not in values]
        lacking = lacking or [name for name in ('g', 'tasks') if values['kept'] and name not in values['kept']]
        if lacking:
            raise ConfigError('状态文件 %s 里没有 %s' % (path, '、'.join(lacking)), cls.WAY_OUT)
        return values

    def save(self):
        body = pickle.dumps({name: getattr(self, name) for name in self.FIELDS}, protocol=4)
        try:
            write_atomically(self._path, STATE_MAGIC + hashlib.sha256(body).digest() + body)
        except OSError as error:
            raise ConfigError('状态写不进 %s：%s' % (self._path, error), '检查磁盘空间和权限；没有写下的不会执行')

    # -- days and jobs -----------------------------------------------------------------------------------------------
    def begin_day(self, day):
        self.day, self.cursor, self.running = day, (-1,), None
        self.orders, self.cancels, self.own, self.undecided, self.unfinished = 0, 0, {}, {}, {}
        self.save()

    def begin_job(self, key):
        self.cursor = self.running = key
        self.save()

    CHANGING, STARTING = -1, -2  # instead of a job's minute: after_code_changed, process_initialize

    def begin_hook(self, which):
        """What it orders is counted from this number on."""
        self.running = which, self.number
        self.save()

    def has_ordered_in(self, which):
        """Whether the last process ended in this hook, after it had ordered something."""
        return self.running is not None and self.running[0] == which and self.number > self.running[1]

    def end_job(self, kept):
        self.running, self.kept = None, kept
        self.save()

    # -- orders: the book of RemoteBroker ----------------------------------------------------------------------------
    @property
    def _prefix(self):
        return 'live-%s-' % self.run_id

    def is_own_key(self, key):
        return isinstance(key, str) and key.startswith(self._prefix)

    def _next_key(self, kind=''):
        self.number += 1
        return '%s%s-%s%d' % (self._prefix, self.day.strftime('%Y%m%d'), kind, self.number)

    def new_key(self, what):
        """A key for an order, on disk with what it is."""
        key = self._next_key()
        self.keys[key] = dict(what, day=self.day)
        self.count_order()
        return key

    def count_order(self):
        self.orders += 1
        self.save()

    def close_key(self, key, order_id=None):
        """Its outcome is certain; order_id: of the order that it made."""
        what = self.keys.pop(key)
        if order_id is not None:
            self.own[order_id], self.unfinished[order_id] = key, what
        self.save()

    def finish(self, order_id):
        """It has a final status; written with what comes next, as the broker's list shows it again until then."""
        self.unfinished.pop(order_id, None)

    def count_cancel(self, order_id, security):
        self.cancels += 1
        key = self._next_key('c')
        self.want_gone(order_id, security)
        return key

    def want_gone(self, order_id, security):
        """An order that was to be cancelled; forgotten as soon as it is seen to be final."""
        self.undecided[order_id] = security
        self.save()


def _packed(values, lost):
    """name -> pickle of each value that has one; lost(name, error) for the others. Names with __ are left out."""
    packed = OrderedDict()
    for name, value in values.items():
        if name.startswith('__'):
            continue
        try:
            packed[name] = pickle.dumps(value, protocol=4)
        except Exception as error:  # whatever a strategy's object raises
            lost(name, error)
    return packed


def _unpacked(packed, lost):
    values = OrderedDict()
    for name, data in packed.items():
        try:
            values[name] = pickle.loads(data)
        except Exception as error:  # a class that the new code does not have any more, say
            lost(name, error)
    return values


# -- the strategy ----------------------------------------------------------------------------------------------------
_CONTEXT_NAMES = ('run_params', 'portfolio', 'subportfolios', 'current_dt', 'previous_date', 'universe')


class LiveTick:
    """What handle_tick is given: code, datetime, current, high, low, volume, money, a1_p, a1_v, b1_p, b1_v, ..."""

    def __init__(self, row):
        self.code = self.security = row['sid']
        self.datetime, self.current = _moment(row.get('dt')), row.get('last_price')
        for name in ('open', 'high', 'low', 'pre_close', 'volume', 'money', 'a1_p', 'a1_v', 'b1_p', 'b1_v'):
            setattr(self, name, row.get(name))

    def __repr__(self):
        return 'Tick(code=%r, datetime=%s, current=%s)' % (self.code, self.datetime, self.current)


class LiveSession(Session):
    """A Session on the wall clock: its state can be packed and given to another process."""

    VIEW = LiveView

    def __init__(self, *args, **options):
        self.subscribed, self._restored, self._lost_names, self._told_of_size = set(), (), set(), False
        super().__init__(*args, **options)
        self.store.watched = self._watched

    LARGE = 10 * 1024 * 1024  # bytes that are written to the disk twice with each order
    WATCHED = 100  # a universe larger than this is no list of what is looked at together

    def _watched(self):
        universe = self.view.universe if len(self.view.universe) <= self.WATCHED else []
        return list(OrderedDict.fromkeys(self.broker.portfolio.quoted() + universe))

    def move(self, moment):
        """To a time at which no job runs."""
        self.view.move(moment)
        self._sync()

    def hook(self, name):
        """A hook of the start; its failure ends the run."""
        self._hook(name, always_stop=True)

    def _log_time(self):
        """What the clock says, whatever the time is that the task was meant for."""
        return self.store.wall_time().replace(microsecond=0)

    def _is_idle(self):
        return super()._is_idle() and not self.strategy.hook('handle_tick')

    def load(self, hooks, restore=lambda: None):
        """Session.start; what the module defines can be pickled, as it is found under the module's name."""
        def found():
            sys.modules['__strategy__'] = module = types.ModuleType('__strategy__')
            module.__dict__.update(self.strategy.namespace)
            restore()
        self.start(hooks, found)

    # -- ticks -------------------------------------------------------------------------------------------------------
    def subscribe(self, security, frequency='tick'):
        self._check_tick(frequency)
        codes = _asked_codes(security, 'security')
        if codes:
            self.store.provider.subscribe_ticks(codes)
        self.subscribed.update(codes)

    def unsubscribe(self, security, frequency='tick'):
        self._check_tick(frequency)
        codes = _asked_codes(security, 'security')
        if codes:
            self.store.provider.unsubscribe_ticks(codes)
        self.subscribed.difference_update(codes)

    def unsubscribe_all(self):
        if self.subscribed:
            self.unsubscribe(sorted(self.subscribed))

    @staticmethod
    def _check_tick(frequency):
        if frequency != 'tick':
            raise BadRequest('subscribe 只支持 tick，得到 %s' % brief(frequency), "写 subscribe(证券代码, 'tick')")

    def fire_tick(self, row, moment):
        self.move(moment)
        self._hook('handle_tick', LiveTick(row))

    def inout_cash(self, cash, pindex=0):
        raise NotImplementedError('实盘的资金由账户决定，inout_cash 只用于回测')

    # -- what is kept ------------------------------------------------------------------------------------------------
    def packed(self):
        """All of the strategy that another process needs, of plain values and pickles."""
        context = {name: value for name, value in vars(self.context).items() if name not in _CONTEXT_NAMES}
        settings = dict(options=vars(self.options), costs=vars(self.costs), levels=self.log.levels,
                        benchmark=self.benchmark, universe=self.view.universe)
        kept = _packed(vars(self.g), self._lose)
        self._tell_of_size(kept)
        return dict(g=kept, context=_packed(context, self._lose), settings=_packed(settings, self._lose),
                    tasks=self.schedule.saved(), subscribed=sorted(self.subscribed))

    def _tell_of_size(self, kept):
        """Said once: from then on each order takes seconds."""
        total = sum(map(len, kept.values()))
        if total > self.LARGE and not self._told_of_size:
            self._told_of_size = True
            largest = max(kept, key=lambda name: len(kept[name]))
            self.log.add('system', 'warning', 'g 里的数据有 %d MB（最大的是 g.%s）：每笔委托前后都要整个写到磁盘，下单会慢；'
                         '大的数据放到模块变量或文件里', total // 1048576, largest)

    def unpack(self, kept):
        """Puts back what packed() gave; the module's code has run."""
        vars(self.g).update(_unpacked(kept['g'], self._miss))
        vars(self.context).update(_unpacked(kept.get('context', {}), self._miss))
        settings = _unpacked(kept.get('settings', {}), self._miss)
        for name, values in (('options', vars(self.options)), ('costs', vars(self.costs)), ('levels', self.log.levels)):
            values.update(settings.get(name, {}))
        self.benchmark = settings.get('benchmark', self.benchmark)
        self.view.universe = settings.get('universe', self.view.universe)
        self.schedule.restore(*kept['tasks'], function_of=self._function_of)
        self._restored = {row[:4] for row in kept['tasks'][0]}
        if kept.get('subscribed'):
            self.subscribe(kept['subscribed'])

    def _function_of(self, name):
        function = self.strategy.hook(name)
        if function is None:
            self.log.add('system', 'error', '策略里没有函数 %s 了，它的定时任务取消', name)
        return function

    def _lose(self, name, error):
        if name not in self._lost_names:
            self._lost_names.add(name)
            self.log.add('system', 'warning', '%s 不能保存，重启后会丢失：%s', name, printable(str(error)))

    def _miss(self, name, error):
        self.log.add('system', 'warning', '上次保存的 %s 读不回来：%s', name, printable(str(error)))

    def unschedule_all(self):
        """What was there before the restart is gone as well."""
        self._restored = ()
        super().unschedule_all()

    def _add_task(self, kind, func, time, number=None, force=False):
        """A task that a restarted process registers again, in process_initialize, is there already."""
        if self._restored and callable(func):
            row = kind, func.__name__, task_minutes(time, self.run_params.frequency, kind), number
            if row in self._restored:
                return
        super()._add_task(kind, func, time, number, force)

    def settled(self):
        """From now on each call of run_daily and its sisters adds a task again."""
        self._restored = ()


# -- what is due -----------------------------------------------------------------------------------------------------
class Agenda:
    """Which job comes next, and whether it is too late for it. Reads the schedule and the state, changes nothing.

    Up to late_limit_s a job is run late. Of overdue instants of the same function only the newest counts.
    before_trading_start is made up until 15:00.
    """

    def __init__(self, schedule, late_limit_s):
        self._schedule, self._late_limit_s = schedule, late_limit_s

    def next(self, day, cursor):
        """(Job, its instant), or None."""
        job = next(self._schedule.walk(day, after=cursor), None)
        return None if job is None else (job, instant_of(job, day))

    def reason_to_skip(self, job, day, now):
        """Text, or None where it is to run."""
        late_s = int((now - instant_of(job, day)).total_seconds())
        if job.run == 'before_trading_start':
            return '已过 15:00' if now >= datetime.combine(day, time(15)) else None
        if late_s > self._late_limit_s:
            return '晚了 %d 秒，超过 %g 秒' % (late_s, self._late_limit_s)
        if late_s >= 60 and self._has_newer(job, day, now):
            return '有更近的一次'
        return None

    def _has_newer(self, job, day, now):
        return any(other.key[1:] == job.key[1:] and instant_of(other, day) <= now
                   for other in self._schedule.walk(day, after=job.key))


def instant_of(job, day):
    return datetime.combine(day, time()) + timedelta(minutes=job.key[0])


def _name_of(job):
    return job.run if isinstance(job.run, str) else job.run.__name__


class TickInbox:
    """Ticks from the connection's thread: of each security the newest that was not taken yet."""

    def __init__(self, event):
        self._lock, self._ticks, self._event = threading.Lock(), OrderedDict(), event

    def put(self, row):
        with self._lock:
            self._ticks[row['sid']] = row
        self._event.set()

    def take(self):
        with self._lock:
            ticks, self._ticks = list(self._ticks.values()), OrderedDict()
        return ticks


class SteadyLines:
    """write(line) that never fails: an order must not look failed because the console is closed or the disk is full.

    What could not be written is counted and told with the next line that can be.
    """

    def __init__(self, write):
        self._write, self._lost = write, 0

    def __call__(self, line):
        try:
            if self._lost:
                self._write('（有 %d 行没有写出来）' % self._lost)
                self._lost = 0
            self._write(line)
        except (OSError, ValueError):  # ValueError: of a closed file
            self._lost += 1


# What a live run is told. path: strategy; frequency 'day' or 'minute'; terms: LiveTerms; late_limit_s;
# overview_minutes: between overviews, 0 for none; on_error 'stop' or 'continue'; runtime_dir; account: whose it is.
LivePlan = namedtuple('LivePlan', 'path frequency params terms late_limit_s overview_minutes on_error runtime_dir '
                                  'account patience_s')


_RUN_MODES = {True: '演练（--dry-run）', False: '真实委托'}


class LiveRun:
    """A strategy on the wall clock, from its start or from where an earlier process left it, until it is stopped.

    provider: RemoteQmtProvider; remote: RemoteQmtBroker; clock: now(), monotonic(), wait(seconds, event).
    stopping(): whether somebody wants the end, or the reason. say(text): lines of the engine; write(line): the
    strategy's log.
    is_linked(): whether the connection stands. clock_gap(): as clock_gap_s.
    """

    def __init__(self, plan, provider, remote, clock, stopping=lambda: False, write=lambda line: None,
                 say=lambda text: None, is_linked=lambda: True, clock_gap=lambda: None):
        self.plan, self.clock, self._write, self._say = plan, clock, SteadyLines(write), SteadyLines(say)
        self._stop_path, self._asked_to_stop = os.path.join(plan.runtime_dir, STOP_FILE), stopping
        self._event = threading.Event()
        self._patience = Patience(clock, plan.patience_s, self.stopping)
        self._provider, self._remote = PatientProvider(provider, self._patience), remote
        self.inbox = TickInbox(self._event)
        provider.set_tick_callback(self.inbox.put)
        # when something comes again, by the clock that nobody sets
        self._resolve_at = self._calendar_at = self._retry_at = self._account_at = self._overview_at = -math.inf
        self._close_shown, self._worried, self._idle_s = None, None, 0.0
        self._is_linked, self._lost_at = is_linked, None  # the latter: since when the connection is lost
        self._clock_gap, self._gap_told = clock_gap, None

    def stopping(self):
        """What asks for the end; nothing as long as nobody does."""
        return self._asked_to_stop() or (os.path.exists(self._stop_path) and '停止文件 %s' % self._stop_path)

    # -- life --------------------------------------------------------------------------------------------------------
    def run(self):
        """Until it is to stop. Raises StrategyError; ConfigError and other BulletErrors where it cannot go on."""
        if os.path.exists(self._stop_path):
            raise ConfigError('停止文件 %s 还在' % self._stop_path, '删掉它再启动')
        with DirectoryLock(self.plan.runtime_dir):
            self._open()
            with provided_modules(RunAtWork('实盘', self.session.names(), self._own_connection())):
                try:
                    self._begin()
                    while not self.stopping():
                        self._step()
                finally:
                    self._end()

    def _own_connection(self):
        """A dry run writes by none."""
        return None if self.plan.terms.dry_run else self._remote.connection

    def _open(self):
        """The state and a session, nothing of the strategy has run."""
        plan, strategy = self.plan, StrategyFile(self.plan.path)
        for text in strategy.check_params(plan.params):
            self._say(text)
        found = LiveState.read(plan.runtime_dir)
        self.state = self._new_state(strategy) if found is None else self._own(found, strategy)
        self._is_new = not self.state.kept
        self._code_changed = self.state.source != _digest(strategy.source)
        store = LiveStore(self._provider, self.clock)
        params = RunParams(self.state.born, self.clock.now().date(), 'sim_trade', plan.frequency)
        self.session = LiveSession(strategy, store, params, self._broker, plan.params, self._write, plan.on_error)
        self._agenda = Agenda(self.session.schedule, plan.late_limit_s)

    def _new_state(self, strategy):
        today = self.clock.now().date()
        return LiveState(self.plan.runtime_dir, dict(
            strategy=strategy.path, source=_digest(strategy.source), account=self.plan.account,
            dry_run=self.plan.terms.dry_run, frequency=self.plan.frequency, run_id=uuid.uuid4().hex[:12], born=today,
            day=today))

    def _own(self, state, strategy):
        """The state, if it is that of this run: another strategy's or account's would order what is not meant."""
        for name, ours, what in (('strategy', strategy.path, '策略'), ('account', self.plan.account, '账户'),
                                 ('dry_run', self.plan.terms.dry_run, '方式'), ('frequency', self.plan.frequency, '频率')):
            if getattr(state, name) != ours:
                theirs, ours = (_RUN_MODES.get(value, brief(value)) for value in (getattr(state, name), ours))
                raise ConfigError('运行目录 %s 属于另一次运行：%s是 %s，不是 %s' % (
                    self.plan.runtime_dir, what, theirs, ours), '换一个 --runtime-dir')
        if not state.kept and state.number:
            raise ConfigError('上次 initialize 没有做完就结束了，而它已经下过单：不会重做一遍', '核对账户和委托，再换一个 --runtime-dir')
        if state.has_ordered_in(state.STARTING) and state.source == _digest(strategy.source):
            raise ConfigError('上次 process_initialize 没有做完就结束了，而它已经下过单：不会重做一遍', '核对账户和委托，改好策略再启动，或换一个 --runtime-dir')
        return state

    def _broker(self, session):
        return RemoteBroker(session.view, session.costs, session.options, functools.partial(session.log.add, 'order'),
                            self._remote, self.state, self._patience, self.plan.terms, self.plan.late_limit_s,
                            self._clock_problem)

    def _begin(self):
        """The account first, then what was left open, then the strategy's own beginning."""
        session, state, now = self.session, self.state, self.clock.now()
        problem = clock_text(self._clock_gap(), SKEW_LIMIT_S)
        if problem:
            raise ConfigError(problem + '，没有启动', CLOCK_HINT)
        session.move(now.replace(second=0, microsecond=0))
        session.broker.refresh()
        if state.capital is None:
            state.capital = session.broker.portfolio.total_value
        session.broker.portfolio.inout_cash = state.capital
        self._overview('启动')
        self._resume()
        if state.day <= now.date():
            self._begin_day(now.date(), now)
        if state.unfinished:
            session.broker.orders()  # says which of them the broker's list lacks
        if not self.stopping():
            self._begin_strategy()

    def _begin_strategy(self):
        """A new one is initialized; another goes on with what was kept of it."""
        session, state = self.session, self.state
        session.broker.begin_task(self.clock.now())
        if self._is_new:
            session.load(('initialize', 'process_initialize'))
        else:
            session.load((), lambda: session.unpack(state.kept))
            self._tell_of_changed_code()
            state.begin_hook(state.STARTING)
            session.hook('process_initialize')
        for text in session.missing_hooks():
            self.tell(text)
        session.settled()
        state.source = _digest(session.strategy.source)
        state.end_job(session.packed())
        self.tell('已就绪；%s；要停止：Ctrl-C，或在 %s 里放一个名为 stop 的文件' % (self._coming(), self.plan.runtime_dir))

    def _coming(self):
        """When the next task runs."""
        now, schedule, today = self.clock.now(), self.session.schedule, self.state.day
        for day in self.session.store.days[bisect.bisect_left(self.session.store.days, today):]:
            for job in schedule.walk(day, after=self.state.cursor if day == today else (-1,)):
                if day > today or self._agenda.reason_to_skip(job, day, now) is None:
                    return '下一个任务：%s %s %s' % (day, _clock_time(job.key), _name_of(job))
        return '%d 天之内没有定时任务' % DAYS_AHEAD

    def _tell_of_changed_code(self):
        """after_code_changed, which is done with on disk before what comes next."""
        if self._code_changed and not self.session.strategy.hook('after_code_changed'):
            self.tell('代码改过，但没有 after_code_changed：initialize 不重做，定时任务、g 和各项设置都还是原来的；'
                      '要换，写 after_code_changed(context)，或换一个 --runtime-dir 从头开始')
        if self._code_changed:
            self.state.begin_hook(self.state.CHANGING)
            self.session.hook('after_code_changed')
            self.state.source = _digest(self.session.strategy.source)
            self.state.end_job(self.session.packed())

    def _note_cut_short(self):
        """What the last process had begun is not done again; but an after_code_changed that had ordered nothing is."""
        running = self.state.running
        if running is not None and running[0] >= 0:
            self.tell('上次的进程在任务 %s 执行中结束：这个任务不再重做，请核对委托' % _clock_time(running))
        elif self.state.has_ordered_in(self.state.CHANGING):
            self._code_changed = False
            self.state.source = _digest(self.session.strategy.source)  # on disk with whatever is begun next
            self.tell('上次 after_code_changed 没有做完就结束了，而它已经下过单：不再重做，请核对委托')

    def _resume(self):
        """What an earlier process has left: a job that will not be repeated, orders that are asked about."""
        state = self.state
        self._note_cut_short()
        if not self._is_new:
            self.tell('接着上次运行：%s 已执行到 %s%s' % (
                state.day, _clock_time(state.cursor), '，策略代码已修改' if self._code_changed else ''))
        deadline = self.clock.monotonic() + START_PATIENCE_S
        while state.keys and not self.stopping() and self.clock.monotonic() < deadline:
            self._resolve_open(10.0)
            if state.keys:
                self.clock.wait(1.0, self._event)
        if state.keys:
            self.tell('还有 %d 笔委托结果未知，核对出来之前不在这些证券上同方向下单' % len(state.keys))

    def _end(self):
        """Open orders are left as they are, and listed."""
        failure, asked = sys.exc_info()[1], self.stopping()
        reason = '出错，%s' % type(failure).__name__ if failure else asked if isinstance(asked, str) else ''
        self.tell('正在停止%s' % (reason and '（%s）' % reason))
        try:
            if not self._is_linked():  # who stops it does not wait for a line that is down
                raise ConnectionLost('与服务端的连接断了')
            for order in self.session.broker.open_orders().values():
                self.tell('未完成的委托，没有撤：%r' % order)
        except BulletError as error:
            self.tell('未完成的委托读不到：%s' % error.message)
            for order_id, what in self.state.unfinished.items():
                self.tell('上次看到时没有完成的委托 %s：%s %s %s 股' % (
                    order_id, what['side'], what['security'], what['amount']))
        for key, what in self.state.keys.items():
            self.tell('结果未知的委托 key=%s：%s %s %s 股' % (key, what['side'], what['security'], what['amount']))
        self.tell('已停止，状态在 %s' % self.plan.runtime_dir)

    def tell(self, text):
        self._say('%s %s' % (self.clock.now().strftime('%Y-%m-%d %H:%M:%S'), text))

    # -- the loop ----------------------------------------------------------------------------------------------------
    def _step(self):
        """One thing that is due, or the wait for the next one."""
        self._watch_link()
        self._watch_clocks()
        if clock_text(self._clock_gap(), SKEW_LIMIT_S):  # no task at a wrong time, nor lost when the clock is set back
            return self._wait(POLL_S)
        now = self.clock.now()
        if not self._is_day_begun(now):
            return self._wait(self._idle_s)
        self._look_around(now)
        ticks = self.inbox.take()
        if ticks:
            self._handle_ticks(ticks, now)
        found = self._agenda.next(self.state.day, self.state.cursor) if self._trades_today else None
        if found is None or found[1] > now:
            until_s = (found[1] - self.clock.now()).total_seconds() if found else math.inf
            return self._wait(min(until_s, self._next_look_s(now)))
        return self._handle(found[0], now)

    def _wait(self, seconds):
        if seconds > 0:
            self.clock.wait(seconds, self._event)
        self._event.clear()

    def _clock_problem(self):
        problem = clock_text(self._clock_gap(), SKEW_LIMIT_S)
        return problem and '%s，超过 %d 秒，没有发出；%s' % (problem, SKEW_LIMIT_S, CLOCK_HINT)

    def _watch_clocks(self):
        """A difference is told once, and again when it is more than twice of that or has gone."""
        gap_s = self._clock_gap()
        if gap_s is None:
            return
        text = clock_text(gap_s, SKEW_TOLD_S)
        if text and (self._gap_told is None or abs(gap_s) > 2 * self._gap_told):
            self._gap_told = abs(gap_s)
            self.tell('%s：超过 %d 秒就不运行任务、不下单；%s' % (text, SKEW_LIMIT_S, CLOCK_HINT))
        elif not text and self._gap_told is not None:
            self._gap_told = None
            self.tell('本机与服务端的时钟又一致了')

    def _watch_link(self):
        """Who watches is told, also while there is nothing to ask the server."""
        is_linked, now_s = self._is_linked(), self.clock.monotonic()
        if not is_linked and self._lost_at is None:
            self._lost_at = now_s
            self.tell('与服务端的连接断了，正在自动重连')
        elif is_linked and self._lost_at is not None:
            self.tell('与服务端的连接恢复了，断了约 %d 秒' % math.ceil(now_s - self._lost_at))
            self._lost_at = None

    def _look_around(self, now):
        """What is no job of the strategy."""
        now_s = self.clock.monotonic()
        if self.state.keys and now_s >= self._resolve_at:
            self._resolve_at = now_s + RESOLVE_S
            self._resolve_open(0.0)
        if self.plan.overview_minutes and now_s >= self._overview_at:
            self._overview('定时')
        if self._shows_close(now) and now_s >= self._account_at and self._overview('收盘'):
            self._close_shown = now.date()

    def _shows_close(self, now):
        """Whether the overview of the close is still to come; it is tried again while it fails."""
        return self._trades_today and now.hour == 15 and self._close_shown != now.date()

    def _next_look_s(self, now):
        """Seconds until _look_around has something to do; a new day at the latest."""
        midnight = datetime.combine(now.date(), time())
        closing = timedelta(hours=15) if self._trades_today and now.hour < 15 else timedelta(days=1)
        again = [(self._resolve_at, self.state.keys), (self._overview_at, self.plan.overview_minutes),
                 (self._calendar_at, not self._trades_today), (self._account_at, self._shows_close(now))]
        return min([(midnight + closing - now).total_seconds()] +
                   [moment - self.clock.monotonic() for moment, wanted in again if wanted])

    # -- days --------------------------------------------------------------------------------------------------------
    _trades_today, _day_of_store = False, None

    def _is_day_begun(self, now):
        """Whether the clock's day is the state's and its calendar is known. Sets _idle_s otherwise."""
        today, now_s = now.date(), self.clock.monotonic()
        if today < self.state.day:
            self._worry('时钟退到了 %s，%s 之前不再运行任何任务' % (now, self.state.day))
            self._idle_s = (datetime.combine(self.state.day, time()) - now).total_seconds()
            return False
        if self._day_of_store == today and (self._trades_today or now_s < self._calendar_at):
            return True
        self._idle_s = self._retry_at - now_s
        return self._idle_s <= 0 and self._has_begun_day(today, now)

    def _has_begun_day(self, today, now):
        try:
            self._begin_day(today, now)
        except BulletError as error:
            if not (error.retryable or isinstance(error, DataUnavailable)):
                raise
            self._worry('%s 的交易日历读不到，继续重试：%s' % (today, error.message))
            self._idle_s, self._retry_at = RETRY_S, self.clock.monotonic() + RETRY_S
            return False
        self._worried = None
        return True

    def _begin_day(self, today, now):
        session, state, before = self.session, self.state, (self._day_of_store, self._trades_today)
        session.store.begin_day(today)
        self._day_of_store, self._trades_today = today, session.store.live_row is not None
        self._calendar_at = math.inf if surely_closed(today) else self.clock.monotonic() + CALENDAR_S
        if state.day != today:
            self._note_undone(before)
            self._drop_old_keys(today)
            state.begin_day(today)
        if before != (self._day_of_store, self._trades_today):
            session.begin_day(today)
            session.move(now.replace(second=0, microsecond=0))
            self.tell('%s %s' % (today, '交易日' if self._trades_today else '不是交易日'))

    def _note_undone(self, before):
        """The machine slept, or the account could not be read until the day was over."""
        if before == (self.state.day, True):
            undone = [_name_of(job) for job in self.session.schedule.walk(self.state.day, after=self.state.cursor)]
            if undone:
                self.tell('%s 还有 %d 个任务没有做，过了当天不再补做：%s' % (
                    self.state.day, len(undone), '、'.join(OrderedDict.fromkeys(undone))))

    def _drop_old_keys(self, today):
        """Orders are of a day: what is still unknown of an earlier one cannot fill any more."""
        for key, what in list(self.state.keys.items()):
            if self._last_day_of(what) < today:
                self.tell('%s 的委托 key=%s（%s %s %s 股）到收盘结果仍然未知，不再核对；请与交割单核对' % (
                    what['day'], key, what['side'], what['security'], what['amount']))
                del self.state.keys[key]

    def _last_day_of(self, what):
        """The day on which an order may still fill: some brokers take one after the close for the next trade day."""
        days, moment = self.session.store.days, what.get('time')
        if moment is None or moment.hour < 15:
            return what['day']
        return days[bisect.bisect_right(days, what['day'])]

    def _worry(self, text):
        """Said once for each reason."""
        if text != self._worried:
            self._worried = text
            self.tell(text)

    # -- jobs --------------------------------------------------------------------------------------------------------
    def _handle(self, job, now):
        day = self.state.day
        if self._agenda.reason_to_skip(job, day, now) is not None:
            return self._skip(day, now)
        if not self._prepare():
            return
        instant, now = instant_of(job, day), self.clock.now()
        if now.date() != day or now < instant or self._agenda.reason_to_skip(job, day, now) is not None:
            return  # reading took long, the machine slept, or the clock was set: the next step looks anew
        minute = now.replace(second=0, microsecond=0)
        if minute > instant:
            self.tell('%s 的 %s 晚了 %d 秒' % (_clock_time(job.key), _name_of(job), (now - instant).total_seconds()))
        self.state.begin_job(job.key)
        made_up = job.run == 'before_trading_start'  # until 15:00, so it counts from its beginning
        self.session.broker.begin_task(now if made_up else instant)
        self._fire(lambda: self.session.fire(job, max(instant, minute)))

    def _skip(self, day, now):
        """All that is too late up to the next job that is not; one line for each function and kind of reason."""
        skipped = OrderedDict()
        for job in self.session.schedule.walk(day, after=self.state.cursor):
            reason = self._agenda.reason_to_skip(job, day, now)
            if reason is None:
                break
            skipped.setdefault((_name_of(job), reason.partition(' ')[0]), []).append((job.key, reason))
            self.state.cursor = job.key
        for (name, _), items in skipped.items():
            (first, reason), (last, _) = items[0], items[-1]
            if len(items) > 1:
                self.tell('跳过 %s 到 %s 的 %s，共 %d 次：%s' % (
                    _clock_time(first), _clock_time(last), name, len(items), reason))
            else:
                self.tell('跳过 %s 的 %s：%s' % (_clock_time(first), name, reason))

    def _fire(self, call):
        """Whatever happens in it, what the strategy has become is kept."""
        try:
            call()
        finally:
            self.state.end_job(self.session.packed())

    def _prepare(self):
        """Reads the account before a job begins; one that cannot be read leaves the job for later."""
        state, broker, pause_s = self.state, self.session.broker, self._account_at - self.clock.monotonic()
        if pause_s > 0:
            self._wait(pause_s)
            return False
        try:
            broker.refresh()
        except BulletError as error:
            if not error.retryable:
                raise
            self._worry('账户读不到，任务等着：%s' % error.message)
            self._account_at = self.clock.monotonic() + RETRY_S
            return False
        self._worried = None
        if state.returns_day != state.day:
            state.returns_day = state.day
            state.returns = broker.portfolio.total_value / state.capital - 1 if state.capital else 0.0
        broker.portfolio.returns = state.returns
        return True

    def _handle_ticks(self, ticks, now):
        """Those of another day waited while the machine slept."""
        ticks = [row for row in ticks if row['sid'] in self.session.subscribed and self._is_of(now.date(), row)]
        if not ticks or not self._trades_today or not self._prepare() or self.clock.now().date() != now.date():
            return
        for row in ticks:
            if row['sid'] in self.session.subscribed:
                self.session.broker.begin_task(self.clock.now())
                self._fire(lambda: self.session.fire_tick(row, self.clock.now().replace(microsecond=0)))

    def _is_of(self, day, tick):
        try:
            moment = _moment(tick.get('dt'))
        except ProtocolError as error:
            self._worry('%s 的推送行情没有用：%s' % (printable(tick['sid']), error.message))
            return False
        return moment is None or moment.date() == day

    # -- orders whose outcome is not known ---------------------------------------------------------------------------
    def _resolve_open(self, limit_s):
        for key in list(self.state.keys):
            if self.stopping():
                return
            try:
                self.session.broker.settle(key, limit_s)
            except OrderStateUnknown as error:
                self._worry('委托 key=%s 的结果仍然未知：%s' % (key, error.message))
            except BulletError as error:
                if not error.retryable:
                    raise
                self._worry('委托 key=%s 暂时不能核对：%s' % (key, error.message))

    def _overview(self, title):
        """What the account holds, for the one who watches. Whether it could be read."""
        self._overview_at = self.clock.monotonic() + 60 * (self.plan.overview_minutes or 0)
        broker = self.session.broker
        try:
            broker.refresh()
            self.tell('账户（%s）\n%s' % (title, _overview_text(*broker.overview)))
            return True
        except BulletError as error:
            self._account_at = self.clock.monotonic() + RETRY_S
            self._worry('账户读不到：%s' % error.message)
            return False


def _overview_text(account, positions):
    """RemoteAccount and RemotePositions, whose figures have been looked at, as a trader reads them."""
    rows = [PositionRow(security=row.security, name=row.name, amount=row.amount, closeable_amount=row.closeable_amount,
                        avg_cost=row.avg_cost, last_price=row.price, market_value=row.value) for row in positions]
    kind = printable(account.raw_response.get('account_type') or '')
    return account_overview(AccountRow(
        account_id=account.account_id, account_type=kind, available_cash=account.available_cash,
        market_value=account.market_value, total_value=account.total_value), rows)


def _clock_time(key):
    """'09:30' of a job's key."""
    return '%02d:%02d' % divmod(key[0], 60) if key[0] >= 0 else '开始之前'


def _digest(text):
    return hashlib.sha256(text.encode('utf-8')).hexdigest()


# -- the command -----------------------------------------------------------------------------------------------------
# What the command was told. config: host, port, token, tls_cert, rpc_timeout, account_key, sub_account.
class LiveOrder(namedtuple('LiveOrder', 'path frequency params config runtime_dir dry_run order_wait_s limits '
                                        'late_limit_s overview_minutes on_error')):
    __slots__ = ()

    def __repr__(self):
        """Without the token: what is shown may end in a log."""
        fields = self._replace(config={name: value for name, value in self.config.items() if name != 'token'})
        return 'LiveOrder%r' % (tuple(fields),)


def run_live_command(order, screen, stopping):
    """Runs a strategy on the account until stopping(); the exit code: 0, 1 where the strategy failed."""
    make_private_directory(order.runtime_dir)
    try:
        StrategyFile(order.path).check_syntax()
        _run_live(order, screen, stopping)
    except StrategyError as error:
        screen.tell(error.report)
        return 1
    except BulletError as error:
        screen.note('不能继续：%s' % error)
        raise
    return 0


def _run_live(order, screen, stopping):
    config, account = dict(order.config), {}
    for name in ('account_key', 'sub_account'):
        account[name] = config.pop(name, None)
    with contextlib.closing(connect(**config)) as connection:
        if not order.dry_run:
            refuse_foreign_server(connection)
        remote = RemoteQmtBroker(connection=connection, config=account, on_warning=lambda text: None)  # the log has it
        terms = LiveTerms(order.order_wait_s, order.dry_run, order.limits)
        plan = LivePlan(order.path, order.frequency, order.params, terms, order.late_limit_s,
                        order.overview_minutes, order.on_error, order.runtime_dir, _account_name(remote), 60.0)
        screen.tell('%s %s' % (LiveClock().now().strftime('%Y-%m-%d %H:%M:%S'), _run_told(plan, connection.endpoint)))
        LiveRun(plan, RemoteQmtProvider(connection=connection), remote, LiveClock(), stopping, screen.line, screen.tell,
                lambda: connection.connected, lambda: clock_gap_s(connection)).run()


def _run_told(plan, server):
    """Whether money is at stake, whose, where, and within which limits: before anything else is said or done."""
    number, _, sub = plan.account.partition('/')
    return '%s账户 %s%s，服务端 %s；%s' % (
        '演练：不发出任何委托；' if plan.terms.dry_run else '真实委托：', number, sub and '，子账户 %s' % sub, server,
        _limits_told(plan.terms.limits))


def _limits_told(limits):
    named = zip(('每笔委托 %.15g 元', '每天委托 %d 笔', '每天撤单 %d 次', '同时持有 %d 只'), limits)
    told = [text % limit for text, limit in named if limit is not None]
    return '上限：%s' % '，'.join(told) if told else '没有设上限（--max-order-value、--max-orders 等）'


def refuse_foreign_server(connection):
    """Each order of a live run is for its own time: a server that knows no valid_until would submit it later, too."""
    if connection.ack.get('journal_id') is None:
        raise ConfigError('这个服务端不是 bullet-qmt 的：它不认识委托的有效时间，也记不住 key，实盘不能用它', '在交易机上运行 bullet_qmt.py server')


def _account_name(remote):
    """Which account it is, whatever its key is called: a state belongs to it."""
    number = remote.get_account_info().get('account_id')
    if number in (None, ''):
        raise ProtocolError('服务端没有说是哪个账户', '实盘的状态属于一个账户；核对服务端的版本和日志')
    return '%s/%s' % (number, remote.sub_account_id or '')


def make_private_directory(path):
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError('运行目录 %s 建不了：%s' % (path, error), '检查 --runtime-dir')


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
CSV_NAMES = tuple(['daily_records', 'metrics', 'records'] + list(REPORT_TABLES))


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
    return [path for path, job in csv_jobs(result, metrics, directory) if job(path)]


def csv_jobs(result, metrics, directory):
    """[(path, function of it)] that write the run's tables, each by itself."""
    tables = _csv_tables(result, metrics)
    jobs = [(os.path.join(directory, name + '.csv'), lambda path, table=table: _write_csv(path, *table))
            for name, table in tables.items()]
    if 'records' not in tables:  # an earlier run's would pass for this one's
        jobs.append((os.path.join(directory, 'records.csv'), _remove_file))
    return jobs


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
        with successor(path, temporary, 'x', encoding=encoding, newline='') as file:
            yield file
    except OSError as error:
        raise _cannot_write(path, error)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _make_directory(path):
    try:
        os.makedirs(path or os.curdir, exist_ok=True)
    except FileExistsError:
        raise ConfigError('写不了 %s：是一个文件，不是目录' % path, '换一个目录，或先移开这个文件')
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
# 22. BACKTEST - from a strategy's file to its BacktestResult, and the command that shows it
# ======================================================================================================
DEFAULT_BENCHMARK = '000300.XSHG'


@contextlib.contextmanager
def opened_provider(source='qmt-remote', config=None):
    """The provider that `source` names: qmt-remote, stub, csv:DIR; or a provider as it is.

    config: host, port, token, tls_cert, rpc_timeout of qmt-remote; what is missing comes from QMT_SERVER_*.
    """
    if not isinstance(source, str):
        yield source
        return
    try:
        kind, _, directory = parse_data_source(source).partition(':')
    except ValueError as error:
        raise ConfigError('不认识的行情来源 %s' % brief(source), str(error))
    if kind == 'qmt-remote':
        with contextlib.closing(RemoteQmtProvider(config)) as provider:
            yield provider
        return
    given = {'server_type': 'stub', 'token': uuid.uuid4().hex, 'stub_data': directory or None}
    settings = load_settings(['server', 'stub'], given, environ={}, dotenv=None)
    with contextlib.closing(LocalConnection(open_service(settings))) as connection:
        yield RemoteQmtProvider(connection=connection)


def backtest(path, start, end, cash=1000000, frequency='day', benchmark=None, provider='qmt-remote', params=None,
             on_error='stop', write=None, progress=lambda *figures: None, config=None, ended=lambda: None):
    """Runs a JoinQuant strategy over past trade days; a BacktestResult.

    path: the strategy's file, or a StrategyFile. start, end: dates, both included. frequency 'day' or 'minute'.
    benchmark: a code, before the strategy's own choice. provider, config: see opened_provider(). params: dict, put into
    `g` before initialize and in place of the module's constants of the same names. on_error 'stop' or 'continue'.
    write(line): the log's lines. progress(done, total, day, equity): after each day. Ctrl-C ends the run early:
    finished is False then. ended(): the run is over, and what it came to is gathered from now on.
    Raises StrategyError; ConfigError where nothing was started; other BulletErrors. What ended a run that was under way
    has a `result`, that of the days before.
    """
    start, end, cash, chosen = _checked_settings(start, end, cash, frequency, benchmark, on_error)
    strategy = path if isinstance(path, StrategyFile) else StrategyFile(path)
    params = OrderedDict(params or {})
    doubts = strategy.check_params(params)
    with opened_provider(provider, config) as source:
        now = _beijing_now()
        run = BacktestRun(strategy, source, start, end, cash, frequency, params, now.date(), on_error,
                          write or (lambda line: None), progress, ended, _last_begun(now))
        run.session.messages += doubts
        _load_benchmark(run, chosen)
        try:
            run.run()
        except (StrategyError, BulletError) as error:
            run.session.messages.append('回测中止：%s' % getattr(error, 'summary', error))
            if run.day_rows or isinstance(error, StrategyError):
                error.result = _result_of(run, strategy, params, chosen)
            raise
        return _result_of(run, strategy, params, chosen)


def _checked_settings(start, end, cash, frequency, benchmark, on_error):
    """(start, end, cash, weights of the chosen benchmark or None). Raises ConfigError."""
    try:
        check_choice(frequency, 'frequency', ('day', 'minute'))
        check_choice(on_error, 'on_error', ('stop', 'continue'))
        chosen = None if benchmark is None else benchmark_weights(benchmark)
        return _run_span(start, end) + (check_number(cash, 'cash', 1, MAX_VALUE), chosen)
    except SecurityNotFound as error:
        raise ConfigError('基准 %s 不认识：%s' % (brief(benchmark), error.message), '例如 000300.XSHG、600519.XSHG')
    except BadRequest as error:
        raise ConfigError(error.message, error.hint)


def _load_benchmark(run, chosen):
    """What was chosen must be there before the run begins."""
    try:
        for code in chosen or ():
            run.store.daily(code)
    except (SecurityNotFound, DataUnavailable) as error:
        raise ConfigError('没有基准 %s 的行情：%s' % (code, error.message), '换一个基准，或换一个有它的行情来源')


def _run_span(start, end):
    try:
        first, last = (check_moment(value, name) for value, name in ((start, 'start'), (end, 'end')))
    except BadRequest as error:
        raise ConfigError(error.message, error.hint)
    if first is None or last is None or first[0].date() > last[0].date():
        raise ConfigError('开始日期 %s 与结束日期 %s 不对：都要给出，开始不晚于结束' % (brief(start), brief(end)),
                          "例如 start='2023-01-01', end='2023-12-31'（命令行 --start 2023-01-01 --end 2023-12-31）")
    return first[0].date(), last[0].date()


def _beijing_now():
    return datetime.now(BEIJING).replace(tzinfo=None)


def _last_begun(now):
    """The last date whose trading can have begun: before the open a day has no prices, whatever its calendar says."""
    return (now - timedelta(hours=9, minutes=30)).date()


def _result_of(run, strategy, params, benchmark):
    """The BacktestResult of a run that has ended, one way or another."""
    session, names = run.session, _Names(run.store)
    curve = _benchmark_of(run, benchmark)
    days, equity, capital, cash, worth = ([row[place] for row in run.day_rows] for place in range(5))
    last = days[-1] if days else date.min
    trades = [_trade_row(trade, names) for trade in session.broker.all_trades if trade.time.date() <= last]
    prices = OrderedDict((code, (days, run.closes(code))) for code in OrderedDict.fromkeys(
        row['security'] for row in trades))
    return BacktestResult(
        strategy.name, _shown_params(run, params), strategy.source, days, equity, capital, cash, worth, curve, trades,
        [_order_row(order, names) for order in session.broker.all_orders if order.add_time.date() <= last],
        _position_rows(run, names), [_dividend_row(day, event, names) for day, event in session.broker.dividends
                                     if day <= last],
        [(day, values) for day, values in session.records if day <= last], prices, session.messages, run.finished)


class _Names(dict):
    """Names of securities, looked up once."""

    def __init__(self, store):
        super().__init__()
        self._store = store

    def __missing__(self, code):
        self[code] = name = str(self._store.info(code)['display_name'] or code)
        return name


def _benchmark_of(run, chosen):
    """Growth of the benchmark, or None with a message where there are no data of it."""
    session = run.session
    if chosen is not None:
        session.benchmark = chosen
    elif session.benchmark is None:
        session.set_benchmark(DEFAULT_BENCHMARK)
    try:
        curve = run.benchmark()
    except BulletError as error:
        session.messages.append('没有基准 %s 的行情：%s' % ('、'.join(session.benchmark), error.message))
        return None
    if curve is not None and not all(map(math.isfinite, curve)):
        session.messages.append('基准 %s 在这段时间里不全，没有画出' % '、'.join(session.benchmark))
        return None
    return curve


def _shown_params(run, params):
    session = run.session
    shown = [('start', run.days[0]), ('end', run.days[-1]), ('cash', '%.2f' % session.context.portfolio.inout_cash),
             ('frequency', {'day': '日线', 'minute': '分钟线'}[session.run_params.frequency]),
             ('benchmark', '、'.join(session.benchmark or ())), ('use_real_price', session.options.use_real_price)]
    return [(name, str(value)) for name, value in shown + [('参数 %s' % name, value) for name, value in params.items()]]


def _trade_row(trade, names):
    return OrderedDict(time=trade.time, order_id=str(trade.order_id), security=trade.security,
                       name=names[trade.security], side='BUY' if trade.is_buy else 'SELL', amount=trade.amount,
                       price=trade.price, value=trade.amount * trade.price, commission=trade.commission, tax=trade.tax,
                       profit=trade.profit)


def _order_row(order, names):
    return OrderedDict(add_time=order.add_time, order_id=str(order.order_id), security=order.security,
                       name=names[order.security], side='BUY' if order.is_buy else 'SELL', amount=order.amount,
                       filled=order.filled, order_price=order.limit, avg_price=order.price if order.filled else None,
                       status=str(order.status), message=order.message)


def _position_rows(run, names):
    equities = {row[0]: row[1] for row in run.day_rows}
    return [OrderedDict(date=day, security=code, name=names[code], amount=amount, avg_cost=avg_cost, price=price,
                        value=price * amount, profit=(price - avg_cost) * amount,
                        weight=_quotient(price * amount, equities[day]))
            for day, code, amount, avg_cost, price in run.position_rows if day in equities]


def _dividend_row(day, event, names):
    return OrderedDict(date=day, security=event.security, name=names[event.security], amount=event.amount,
                       cash=event.cash, tax=event.tax, shares=event.shares)


# -- the command ---------------------------------------------------------------------------------------------------
class Screen:
    """Where a run shows itself: a bar that stays in place on a terminal; otherwise a line for each tenth or minute.

    write(text): to the console. interactive: whether it is a terminal, columns() wide. log: an open file for the
    strategy's lines, or None to show them.
    """

    WIDTH, LEAST_WIDTH, REFRESH_S, LINE_S = 24, 5, 0.1, 60

    def __init__(self, write, interactive, log=None, clock=perf_counter, columns=lambda: shutil.get_terminal_size()[0]):
        self._write, self._interactive, self._log, self._clock, self._columns = write, interactive, log, clock, columns
        self._first, self._shown_at, self._tenths, self._bar = None, clock(), 0, ''

    def line(self, text):
        """A line of the strategy's log."""
        if self._log is not None:
            self._log.write(text + '\n')
        else:
            self.say(printable_lines(text))

    def note(self, text):
        """A line for the log alone, if there is one."""
        if self._log is not None:
            self._log.write(printable_lines(text) + '\n')

    def tell(self, text):
        """What belongs to the story of a run: on the console, and in the log if there is one."""
        self.note(text)
        self.say(text)

    def say(self, text):
        """Above the bar, which is drawn again below."""
        self._write('%s%s\n%s' % (self._cleared(), text, self._bar))

    def progress(self, done, total, day, equity):
        now = self._clock()
        is_first, self._first = self._first is None, self._first or (now, done)
        waited, tenths = now - self._shown_at, done * 10 // total
        if self._interactive and (is_first or waited >= self.REFRESH_S or done == total):
            cleared = self._cleared()
            self._bar = self._fitted(done, total, self._figures(now, done, total, day, equity))
            self._write(cleared + self._bar)
        elif not self._interactive and (tenths > self._tenths or waited >= self.LINE_S):
            self._write('%3d%%  %s\n' % (done * 100 // total, '  '.join(self._figures(now, done, total, day, equity))))
        else:
            return
        self._shown_at, self._tenths = now, tenths

    def _fitted(self, done, total, figures):
        """The bar and as many figures as the terminal's width holds: a line that wraps cannot be cleared."""
        parts, room = ['%5.1f%%' % (done * 100 / total)], self._columns() - 1
        for part in figures:
            if text_width('  '.join(parts + [part])) <= room - self.LEAST_WIDTH - 3:
                parts.append(part)
        text = '  '.join(parts)
        width = min(self.WIDTH, room - text_width(text) - 3)
        full = width * done // total
        return text if width < self.LEAST_WIDTH else '[%s%s] %s' % ('#' * full, '.' * (width - full), text)

    @contextlib.contextmanager
    def doing(self, text):
        """On a terminal a line below all others for as long as it takes."""
        if self._interactive:
            self._bar = text
            self._write(text)
        try:
            yield
        finally:
            self.finish()

    def finish(self):
        """The bar gives way to what comes next."""
        cleared, self._bar = self._cleared(), ''
        self._write(cleared)

    def _cleared(self):
        return '\r%s\r' % (' ' * text_width(self._bar)) if self._bar else ''

    def _figures(self, now, done, total, day, equity):
        """The rate is that since the first day was over: before it everything is loaded."""
        passed, days = now - self._first[0], done - self._first[1]
        if not days or passed < self.REFRESH_S:
            return [str(day), '总资产 %s' % shown_value(equity, 'money')]
        rate = days / passed
        return [str(day), '剩余 %s' % _span_of_seconds((total - done) / rate),
                '总资产 %s' % shown_value(equity, 'money'), ('%.0f 日/秒' if rate >= 10 else '%.2g 日/秒') % rate]


def _span_of_seconds(seconds):
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return '%d:%02d' % (minutes, seconds) if minutes < 60 else '%d:%02d:%02d' % (minutes // 60, minutes % 60, seconds)


def parse_params(texts):
    """['fast=5', 'name=abc'] -> OrderedDict; numbers, True, False and None as such. Raises ConfigError."""
    params = OrderedDict()
    for text in texts or ():
        name, equals, value = text.partition('=')
        if not equals or not name.strip().isidentifier() or name.strip() in params:
            raise ConfigError('参数 %s 不是 名称=值 的形式，或名称重复' % brief(text), '例如 --param fast=5')
        params[name.strip()] = _literal(value.strip())
    return params


def _literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# What the command was told. path, start, end, cash, frequency, benchmark, params, provider, config, on_error: as in
# backtest(). output: directory or None for one named after the strategy. html, csv: whether to write them.
BacktestOrder = namedtuple('BacktestOrder', 'path start end cash frequency benchmark params provider config on_error '
                                            'output html csv')


def run_backtest_command(order, screen):
    """Runs a backtest and shows it; the exit code: 0, 1 where the strategy or writing failed, 130 after Ctrl-C.

    Raises BulletError: before the run, or once what was run of it is shown and written.
    """
    names, failure = [name + '.csv' for name in CSV_NAMES] * order.csv + ['report.html'] * order.html, None
    with _output_directory(order, names, screen.say) as directory, _whole_results(screen.say) as interrupts:
        try:
            result = backtest(order.path, order.start, order.end, order.cash, order.frequency, order.benchmark,
                              order.provider, order.params, order.on_error, screen.line, screen.progress, order.config,
                              interrupts.hold)
        except (StrategyError, BulletError) as error:
            failure, result = error, getattr(error, 'result', None)
            if result is None:
                raise
        finally:
            screen.finish()
        with screen.doing('正在计算指标、写结果'):
            written = _shown_and_written(order, directory, result, failure, screen.say)
    if isinstance(failure, BulletError):
        raise failure
    return 1 if failure is not None or not written else 0 if result.finished else 130


def _shown_and_written(order, directory, result, failure, say):
    """Whether all that was to be written is."""
    metrics = compute_metrics(result)
    for line in summary_lines(result, metrics) if result.days or failure is None else ():
        say(line)
    if isinstance(failure, StrategyError):
        say(failure.report)
    return _write_results(order, directory, result, metrics, say) if directory and result.days else True


@contextlib.contextmanager
def _whole_results(say):
    """From hold() on the first Ctrl-C does not keep anything from being written, and is told then."""
    with Interrupts() as interrupts:
        yield interrupts
        if interrupts.kept:
            say('写结果时按的 Ctrl-C 没有打断它：结果是写全了的')


# -- grid ----------------------------------------------------------------------------------------------------------
GRID_COLUMNS = ('returns', 'annual_returns', 'max_drawdown', 'sharpe', 'win_rate', 'trade_count')
GRID_ROWS = 30  # shown in the terminal; the CSV file has them all


def parse_grid(texts):
    """['fast=5,10', 'slow=20,60'] -> [OrderedDict of one value each]: all combinations. Raises ConfigError."""
    axes = OrderedDict()
    for text in texts:
        name, _, values = text.partition('=')
        if not values or not name.strip().isidentifier() or name.strip() in axes:
            raise ConfigError('--grid %s 不是 名称=值,值 的形式，或名称重复' % brief(text), '例如 --grid fast=5,10')
        given = [value.strip() for value in values.split(',')]
        if '' in given or len(set(given)) < len(given):
            raise ConfigError('--grid %s 里有空的或重复的值' % brief(text), '例如 --grid fast=5,10')
        axes[name.strip()] = [_literal(value) for value in given]
    return [OrderedDict(zip(axes, values)) for values in itertools.product(*axes.values())]


def run_grid_point(order, source, params, going=None):
    """One backtest of a grid, wherever it runs: dict of metrics, or of `error`; notes: what to know of parameters.

    order: a BacktestOrder as a dict; source: the strategy's text, whose file need not be there. going: in a process of
    a pool, a file; the run ends once it is gone.
    """
    if going is None:
        return _grid_point(order, source, params)
    try:
        with hearing():
            return _grid_point(order, source, params, lambda: not os.path.exists(going))
    except KeyboardInterrupt:  # before or after the backtest, which makes a result of it
        return {'error': '被打断'}


def _grid_point(order, source, params, is_over=lambda: False):
    order = BacktestOrder(**order)

    def progress(*figures):
        if is_over():
            raise KeyboardInterrupt
    try:
        result = backtest(StrategyFile(order.path, source), order.start, order.end, order.cash, order.frequency,
                          order.benchmark, order.provider, dict(order.params, **params), order.on_error,
                          progress=progress, config=order.config)
        values = compute_metrics(result).values
    except Exception as error:  # whatever it is, the other points go on
        return {'error': _problem_of(error)}
    return dict(values, error=None if result.finished else '被打断',
                notes=[text for text in result.messages if text.startswith('参数 ')])


def _problem_of(error):
    return getattr(error, 'summary', None) or '%s: %s' % (type(error).__name__, error)


def run_grid_command(order, points, screen, dask=None):
    """Runs all points at once and shows them, the best returns first; the exit code. Ctrl-C keeps what is done."""
    strategy = StrategyFile(order.path)
    _check_grid(order, points, strategy, dask)
    names = ['grid.csv'] * order.csv
    with _output_directory(order, names, screen.say) as directory, \
            _grid_executor(dask, len(points)) as (executor, going), _whole_results(screen.say) as interrupts:
        done, code = OrderedDict(), 0
        screen.say('参数扫描：%d 组，每完成一组显示一行' % len(points))
        try:
            for number, figures in _grid_figures(executor, order, strategy.source, points, going):
                done[number] = figures
                screen.say('%d/%d  %s' % (len(done), len(points), _point_text(points[number])))
        except KeyboardInterrupt:
            code = 130
            _end_points(going)
        interrupts.hold()
        rows = [(points[number], done[number]) for number in sorted(done, key=lambda number: _grid_rank(done[number]))]
        if not rows:
            screen.say('没有走完：%d 组里一组也没有完成' % len(points))
        written = _show_grid(order, directory, rows, len(points), screen) if rows else True
    return code or int(not written or any(figures['error'] for _, figures in rows))


def _check_grid(order, points, strategy, dask):
    """Refuses before the first point what would fail at each of them. What a cluster reaches is not known here."""
    _checked_settings(order.start, order.end, order.cash, order.frequency, order.benchmark, order.on_error)
    twice = [name for name in points[0] if name in order.params]
    if twice:
        raise ConfigError('--param 与 --grid 都给出了 %s' % '、'.join(twice), '只留其中一个')
    strategy.check_params(list(order.params) + list(points[0]))
    strategy.refuse_overwritten(points[0])
    if dask is None:
        with opened_provider(order.provider, order.config) as source:
            source.get_trade_days(count=1)


def _grid_figures(executor, order, source, points, going):
    """(number of a point, what run_grid_point() gave), as they are done. What fails outside it is told the same way."""
    with deaf_children():
        waiting = {executor.submit(run_grid_point, dict(order._asdict()), source, dict(point), going): number
                   for number, point in enumerate(points)}
    try:
        for future in _as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except Exception as error:  # its process died
                yield waiting[future], {'error': _problem_of(error)}
    finally:
        for future in waiting:
            future.cancel()


def _as_completed(left):
    """As futures.as_completed(), whose one long wait no Ctrl-C ends on Windows."""
    left = set(left)
    while left:
        interruptible(lambda seconds: futures.wait(left, seconds, futures.FIRST_COMPLETED).done, None)
        done = {future for future in left if future.done()}
        left -= done
        yield from done


def _show_grid(order, directory, rows, total, screen):
    """Table, notes and file; whether all that was wanted could be written."""
    if len(rows) < total:
        screen.say('没有走完：%d 组里完成了 %d 组' % (total, len(rows)))
    for line in _grid_lines(rows):
        screen.say(line)
    for text in OrderedDict.fromkeys(text for _, figures in rows for text in figures.get('notes', ())):
        screen.say('注意：' + _plain(text))
    if not order.csv:
        return True
    path = os.path.join(directory, 'grid.csv')
    written = _write_all([(path, lambda path: _write_csv(path, *_grid_table(rows)))], screen.say)
    for path in written:
        screen.say('已写入 %s' % path)
    return bool(written)


@contextlib.contextmanager
def _grid_executor(dask, jobs):
    """(executor, `going` of its points or None): this machine's cores, or a dask cluster that is given these modules.

    Workers are never killed: one that holds a lock of the pool would take it along.
    """
    if dask is None:
        with tempfile.TemporaryDirectory() as directory, futures.ProcessPoolExecutor(pool_size(jobs)) as executor:
            going = os.path.join(directory, 'going')
            with open(going, 'x'):
                pass
            yield executor, going
        return
    distributed = optional_import('distributed')
    if distributed is None:
        raise ConfigError('--dask 需要 dask.distributed', '先运行 pip install distributed')
    with contextlib.closing(_dask_client(distributed, dask)) as client:
        for module in (sys.modules['bullet_qmt'], sys.modules[__name__]):
            client.upload_file(module.__file__)
        yield client.get_executor(pure=False), None


def _end_points(going):
    """Lets what still runs here come to its end."""
    if going is not None:
        os.remove(going)


def _dask_client(distributed, address):
    try:
        return distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:  # no scheduler there, or no address
        raise ConfigError('连不上 dask 调度器 %s：%s' % (brief(address), error), '例如 --dask tcp://192.0.2.1:8786')


def _point_text(point):
    return '  '.join('%s=%s' % pair for pair in point.items())


def _grid_rank(figures):
    """Best returns first, failures last."""
    returns = figures.get('returns')
    return (returns is None, -(returns or 0.0))


def _grid_lines(rows):
    kinds = {name: (label, kind) for group in METRIC_GROUPS.values() for name, label, kind in group}
    headers = list(rows[0][0]) + [kinds[name][0] for name in GRID_COLUMNS]
    cells = [[_plain(value) for value in point.values()] + _grid_cells(figures, kinds)
             for point, figures in rows[:GRID_ROWS]]
    more = ['另有 %d 组没有列出' % (len(rows) - GRID_ROWS)] if len(rows) > GRID_ROWS else []
    return format_table(headers, cells, '>' * len(headers)) + more


def _grid_cells(figures, kinds):
    if figures['error']:
        return [_plain(figures['error'])] + ['-'] * (len(GRID_COLUMNS) - 1)
    return [shown_value(figures[name], kinds[name][1]) for name in GRID_COLUMNS]


def _grid_table(rows):
    """Columns and rows of grid.csv: the parameters, all metrics and the error of each point."""
    metrics = [name for group in METRIC_GROUPS.values() for name, _, _ in group]
    cells = [list(point.values()) + [figures.get(name) for name in metrics + ['error']] for point, figures in rows]
    return list(rows[0][0]) + metrics + ['error'], cells


# -- what is left behind -------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _output_directory(order, names, say):
    """Where these files will be written, there and tried out before the run; None for no files. Removed if left empty.

    Without --output a new one for each run; says where earlier results will be replaced. Raises ConfigError.
    """
    if not names:
        yield None
        return
    is_new = not order.output or not os.path.exists(order.output)
    directory = order.output or _new_directory(_default_directory(order))
    _make_directory(directory)
    _try_to_write(directory, names)
    if any(os.path.exists(os.path.join(directory, name)) for name in names):
        say('结果目录 %s 里已有结果，将被这次的替换（要留下就换一个 --output）' % directory)
    try:
        yield directory
    finally:
        if is_new and not os.listdir(directory):
            (os.rmdir if order.output else os.removedirs)(directory)


def _default_directory(order):
    """Beside where the command was given, named after the strategy and its span."""
    stem = os.path.splitext(os.path.basename(order.path))[0]
    return os.path.join('backtests', '%s_%s_%s' % ((stem,) + _run_span(order.start, order.end)))


def _new_directory(path):
    """Makes the path, or the first of path_2, path_3, ... that is not there."""
    for number in itertools.count(1):
        name = path if number == 1 else '%s_%d' % (path, number)
        try:
            os.makedirs(name)
            return name
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_write(name, error)


def _try_to_write(directory, names):
    """Raises ConfigError where a new file, or one of these that is there already, cannot be written."""
    path = os.path.join(directory, uuid.uuid4().hex + '.tmp')
    try:
        with open(path, 'xb'):
            pass
        os.remove(path)
        for path in filter(os.path.exists, [os.path.join(directory, name) for name in names]):
            with open(path, 'ab'):
                pass
    except OSError as error:
        raise _cannot_write(path, error)


def _write_results(order, directory, result, metrics, say):
    """Writes the tables and the page and says so; whether all of it could be written."""
    tables = csv_jobs(result, metrics, directory) if order.csv else []
    page = [(os.path.join(directory, 'report.html'), lambda path: write_html(result, metrics, path))] * order.html
    written = _write_all(tables + page, say)
    count = sum(path.endswith('.csv') and os.path.exists(path) for path in written)
    if count:
        say('已写入 %s（%d 个 CSV 文件）' % (directory, count))
    for path in [path for path, _ in page if path in written]:
        say('已写入 %s' % path)
    return len(written) == len(tables + page)


def _write_all(jobs, say):
    """Does jobs (path, function of it); the paths that went well. What fails is said and keeps no other from it."""
    written = []
    for path, job in jobs:
        try:
            job(path)
            written.append(path)
        except ConfigError as error:
            say('写入失败：%s。%s' % (error.message, error.hint))
    return written


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
_JQ_MODULES = ('jqdata', 'kuanke', 'kuanke.user_space_api')  # where strategies and their modules have these from
_JQ_DOUBTS = 'jq_helper_doubts'  # the strategy's global for orders in doubt, which JoinQuant keeps for the next task
_JQ_ORDERS = 'remote_account_orders'  # and for which simulation it is, and the orders that its tasks have placed today
JQ_TRY_S = 5.0  # what a start spends on finding out whether the account is there
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
                      max_lag=300, default_wait_timeout=None, mirror_jq_orders=False, simulation=None, **connection):
    """In process_initialize: install_jq_compat(globals(), context=context, host=..., token=...).

    In a backtest, and in runs of our own, it does nothing and returns False. In simulated trading it returns True, and
    from then on order, order_value, order_target, order_target_value, cancel_order, get_open_orders, get_orders and
    get_trades in `namespace`, context.portfolio and context.subportfolios are the remote account's, with JoinQuant's
    signatures and results. The account is asked for once: a wrong token or account is an error, a line that is down a
    warning. wait_timeout (or default_wait_timeout): seconds that an order waits for its outcome. mirror_jq_orders: must
    be False, JoinQuant's own simulated account gets no orders.
    starting_cash (yuan): what portfolio.returns is measured from. cache_seconds: how old a reading of the account may
    be; orders end it. max_lag: seconds between context.current_dt and now beyond which nothing is ordered, as a task
    that JoinQuant makes up for later would trade on yesterday's reasons; within them an order waits for that time, as
    JoinQuant begins a task of 9:30 up to three minutes before. None: not looked at.
    simulation: tells it from others of the same code and account, as nothing else does on the day of the first order.
    connection: retries, retry_interval, rpc_timeout, debug, place_order_timeout_margin as in configure(), which is
    called too.

    An order gives None where it came to nothing or was refused, with a warning that says why; OrderStateUnknown where
    it may be at the broker; any other failure is raised as what it is. Nothing is sent twice. Calling it again with
    the same values is harmless, with others a ConfigError; so is a namespace whose own functions have these names.
    """
    if _runs or isinstance(context, Context):
        _jq_warn(namespace, 'install_jq_compat 什么也没有做：策略在自己的回测或实盘里，委托归它管')
        return False
    if not _in_simulation(context):
        return False
    _refuse_mirror(mirror_jq_orders)
    wait_timeout = _one_wait(wait_timeout, default_wait_timeout)
    _check_namespace(namespace)
    settings = dict(connection, host=host, token=token, port=port, account_key=account_key,
                    sub_account_id=sub_account_id, tls_cert=tls_cert)
    own = {'wait_timeout': wait_timeout, 'starting_cash': starting_cash, 'cache_seconds': cache_seconds,
           'max_lag': max_lag, 'simulation': simulation}
    install = _installed(settings, own, namespace, context)
    install.trading.context = context
    install.take_over(namespace, context)
    install.trading.keys.keep()
    return True


def _refuse_mirror(mirror):
    if mirror is not False:
        raise JqNotSupported('不支持 mirror_jq_orders=%s：聚宽自己的模拟账户不会跟着下单' % brief(mirror),
                             '去掉它，或给 False；没有接管')


def _one_wait(wait_timeout, default_wait_timeout):
    """Both names mean the same; 16 is what nobody chose."""
    if default_wait_timeout is None or wait_timeout == default_wait_timeout:
        return wait_timeout
    if wait_timeout != 16:
        raise ConfigError('wait_timeout=%s 与 default_wait_timeout=%s 互相矛盾' % (
            brief(wait_timeout), brief(default_wait_timeout)), '只给出其中一个')
    return default_wait_timeout


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


def _jq_now():
    """Naive Beijing time."""
    return datetime.now(BEIJING).replace(tzinfo=None)


class JqClock(Clock):
    """The one that context.current_dt is compared with."""

    def now(self):
        return _jq_now()


def _jq_wait(seconds):
    wait_for_event(threading.Event(), seconds)


def _jq_warn(namespace, text):
    """Through JoinQuant's log; a console that lacks a character makes no order fail."""
    warn = getattr(namespace.get('log'), 'warn', None) if isinstance(namespace, dict) else None
    if warn is None:
        BrokerCalls(None)._say('[警告] %s', text)
    else:
        warn('[远程账户] %s' % printable(text))


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
    """The JqInstall of this process with these settings, made and tried if there is none."""
    global _jq_install
    if _jq_install is None:
        if len(getattr(context, 'subportfolios', ())) > 1:
            raise JqNotSupported('不支持多个子账户（subportfolios）', '去掉 set_subportfolios，只用一个股票账户')
        _jq_install = JqInstall(settings, own, namespace)
        _jq_install.try_line()
    elif not _jq_install.has(settings, own):
        raise ConfigError('install_jq_compat 已用别的设置安装过', '先调用 uninstall_jq_compat()')
    return _jq_install


class JqInstall:
    """What was changed in this process, so that all of it can be taken back.

    namespaces: those that were given. Each JqNames belongs to one of them, or is a module's, which all of them share.
    """

    def __init__(self, settings, own, namespace):
        global _clients
        before = _clients
        configure(clock=JqClock(), **settings)
        try:
            self.trading = JqTrading(get_broker_client(), get_data_client(), namespace, **_own_settings(**own))
        except ConfigError:
            _clients = before
            raise
        self._settings, self._clients_before, self._patches = (settings, own), before, []
        self.namespaces, self._names, self._functions = [], [], {}

    def has(self, settings, own):
        return self._settings == (settings, own)

    def try_line(self):
        """What no later attempt would mend is told now. A line that is down may be back when something is ordered."""
        try:
            self.trading.broker._ask('broker.account', JQ_TRY_S)
        except BulletError as error:
            if not error.retryable:
                self.close()
                raise
            self.trading.warn('远程账户现在读不到，用到时再试：%s' % error.message)

    def take_over(self, namespace, context):
        """All or nothing: without the context, or where a function of JoinQuant's hides, none is changed."""
        try:
            _refuse_hidden(namespace, _jq_originals(namespace))
            self._patch(context)
        except (JqNotSupported, ConfigError):
            if not self.namespaces:
                self.close()
            raise
        if not any(there is namespace for there in self.namespaces):
            self.namespaces.append(namespace)
        self._take_names(namespace)
        self._take_aliases(namespace)

    def _take_names(self, namespace):
        for name, value in self.trading.names().items():
            self._replace(namespace, name, value, namespace)
            for module in _jq_modules():
                if name in module:
                    self._replace(module, name, value)

    def _take_aliases(self, namespace):
        """`buy = order`, `g.buy = order`, and modules of the strategy's own that have JoinQuant's functions."""
        attributes = getattr(namespace.get('g'), '__dict__', {})
        spaces = [(namespace, namespace), (attributes, namespace)]
        spaces += [(module, None) for module in _modules_of(namespace, list(self._functions))]
        for names, owner in spaces:
            for name, value in list(names.items()):
                known = self._functions.get(_Same(value))
                if known is not None:
                    self._names_in(names, owner).replace(name, known)

    def _replace(self, names, name, value, owner=None):
        """By one JqFunction for each function of JoinQuant's, wherever that stands; a class replaces a class."""
        original = _original(names.get(name, _MISSING))
        if not isinstance(value, type):
            function = self._functions.get(_Same(original)) or JqFunction(name, value, original)
            if callable(original):
                self._functions[_Same(original)] = function
            value = function
        self._names_in(names, owner).replace(name, value)

    def _names_in(self, names, owner):
        known = [item for item in self._names if item.names is names]
        if not known:
            known = [JqNames(names, owner)]
            self._names += known
        return known[0]

    def _patch(self, context):
        if not any(patch.cls is type(context) for patch in self._patches):
            patch = JqContextPatch(type(context), self.trading)
            patch.apply(context)
            self._patches.append(patch)

    def give_back(self, namespace):
        """Whether there was anything to give back."""
        back = [there for there in self.namespaces if namespace is None or there is namespace]
        self.namespaces = [there for there in self.namespaces if not any(there is other for other in back)]
        self._restore(lambda names: any(names.owner is there for there in back))
        return bool(back)

    def _restore(self, which):
        for names in filter(which, self._names):
            names.give_back()
        self._names = [names for names in self._names if not which(names)]

    def close(self):
        global _clients, _jq_install
        self._restore(lambda names: True)
        for patch in self._patches:
            patch.remove()
        if _jq_install is self:
            _jq_install = None
        _clients = self._clients_before
        self.trading.close()


class JqNames:
    """Names of a namespace, a module or g that are ours now. owner: the namespace that they go back with, or None."""

    def __init__(self, names, owner):
        self.names, self.owner, self._kept = names, owner, {}

    def replace(self, name, ours):
        """What JoinQuant has set again meanwhile is replaced again."""
        current = self.names.get(name, _MISSING)
        if current is not ours or name not in self._kept:
            self._kept[name] = ours, _original(current)
            self.names[name] = ours

    def give_back(self):
        """What somebody else has put there meanwhile stays."""
        for name, (ours, original) in self._kept.items():
            if self.names.get(name) is ours and original is _MISSING:
                del self.names[name]
            elif self.names.get(name) is ours:
                self.names[name] = original


class _Same:
    """A key that is equal to itself alone: of functions, their identity counts."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value is other.value

    def __hash__(self):
        return id(self.value)


def _original(value):
    return value.original if isinstance(value, JqFunction) else value


def _jq_modules():
    """The names of JoinQuant's modules, as far as they are imported."""
    return [vars(sys.modules[name]) for name in _JQ_MODULES if isinstance(sys.modules.get(name), types.ModuleType)]


def _jq_originals(namespace):
    """{_Same} of JoinQuant's own functions that order or tell of orders."""
    values = (_original(names.get(name)) for names in [namespace] + _jq_modules() for name in _JQ_NAMES + _JQ_REFUSED)
    return {_Same(value) for value in values if callable(value)}


def _modules_of(namespace, originals):
    """Names of the modules that the strategy's globals are or come from, JoinQuant's inner ones left alone."""
    inner = {str(getattr(item.value, '__module__', '')).partition('.')[0] for item in originals}
    found = {str(value.__name__ if isinstance(value, types.ModuleType) else value.__module__)
             for value in namespace.values() if isinstance(value, (types.ModuleType, types.FunctionType, type))}
    modules = [vars(sys.modules[name]) for name in sorted(found)
               if isinstance(sys.modules.get(name), types.ModuleType) and name.partition('.')[0] not in inner]
    return [names for names in modules if names is not namespace]


def _refuse_hidden(namespace, originals):
    """Raises ConfigError where a function of JoinQuant's would trade on its account behind our back."""
    values = list(namespace.items()) + list(getattr(namespace.get('g'), '__dict__', {}).items())
    hidden = [name for name, value in values if not name.startswith('__')
              and _hides(value, originals, namespace)]
    if hidden:
        raise ConfigError('策略的 %s 里存着聚宽自己的下单函数，接管不了' % '、'.join(sorted(set(hidden))),
                          '改成在函数里直接写 order(...)，不要放进容器、默认参数、闭包、partial、类或对象里')


def _hides(value, originals, namespace):
    """Whether one of these functions is inside a value, however deep. g's own attributes can be replaced."""
    seen, waiting = {id(namespace.get('g'))}, [value]
    while waiting:
        outer = waiting.pop()
        if id(outer) not in seen:
            seen.add(id(outer))
            parts = [part for part in _parts(outer, namespace) if not isinstance(part, (str, int, float))]
            if any(_Same(part) in originals for part in parts):
                return True
            waiting += parts
    return False


def _parts(value, namespace):
    """What a value of the strategy's own keeps inside, where nobody can put anything else."""
    if isinstance(value, functools.partial):
        return (value.func,) + value.args + tuple(value.keywords.values())
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value) if value.__globals__ is namespace else ()
    if (value if isinstance(value, type) else type(value)).__module__ == namespace.get('__name__'):
        return getattr(value, '__dict__', {}).values()
    if isinstance(value, dict) and value is not namespace:
        return dict.values(value)  # a class of its own may fetch data there
    return value if isinstance(value, (list, tuple, set)) else ()


def _parts_of_function(function):
    """Defaults, and what it has from the function that it was defined in."""
    parts = list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            parts.append(cell.cell_contents)
    return parts


def _own_settings(wait_timeout, starting_cash, cache_seconds, max_lag, simulation):
    if simulation is not None and (not isinstance(simulation, str) or not simulation.strip()):
        raise ConfigError('install_jq_compat 的 simulation 应为文字，收到 %s' % brief(simulation), "例如 simulation='双均线一号'")
    return {'simulation': simulation, 'wait_s': _own_setting('wait_timeout', wait_timeout, 0, 600),
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
    """Ours in the place of a function of JoinQuant's. Pickled it is the one that was there before."""

    def __init__(self, name, call, original):
        self.__name__, self.__doc__, self.__wrapped__, self.original = name, call.__doc__, call, original
        self.__module__ = getattr(original, '__module__', None)

    def __call__(self, *args, **how):
        return self.__wrapped__(*args, **how)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        if self.original is _MISSING:
            raise TypeError('cannot pickle %s: it is installed anew in every process' % self.__name__)
        if getattr(sys.modules.get(self.__module__), self.__name__, None) is self:
            return self.__name__  # of that module, where the process that reads it finds JoinQuant's own
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
    """OrderedDict code -> JqPosition of RemotePositions, whose figures must be there."""
    return OrderedDict((code, _jq_position(code, item)) for code, item in _by_security(map(_told_all, rows)).items())


def _told_all(item):
    for names in (('avg_cost',), ('last_price', 'current_price'), ('market_value', 'position_value')):
        if item.total_amount:
            _figure(item.raw_response, *names)
    return item


def _jq_position(code, item):
    return JqPosition(code, item.total_amount, item.closeable_amount, item.frozen, item.avg_cost, item.price,
                      item.value)


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
        self.order_id, self.security, self.is_buy = order.order_id, _canonical(order.security), order.is_buy
        self.amount, self.filled, self.price = order.amount, order.filled, order.price
        self.action, self.side, self.pindex, self.commission = order.action, 'long', 0, order.commission
        self.add_time, self.order_price, self.status_msg = order.add_time, order.order_price, order.status_msg
        self.status, self.remote_status = statuses[status_name(order.status, order.filled)], order.status
        if order.is_buy or cost is not None:
            self.avg_cost = order.price if order.is_buy else cost


class JqTrade(JqRow):
    """A fill; amount in shares, price in yuan a share."""

    SHOWN = ('trade_id', 'order_id', 'security', 'amount', 'price', 'time')

    def __init__(self, trade):
        self.trade_id, self.order_id, self.security = trade.trade_id, trade.order_id, _canonical(trade.security)
        self.time, self.amount, self.price = trade.time, trade.amount, trade.price


def _jq_statuses(namespace):
    """(name -> member, whether they are the strategy's own): its OrderStatus, if that tells all six apart.

    Where it has none, that of JoinQuant's modules.
    """
    theirs = next((names['OrderStatus'] for names in [namespace] + _jq_modules() if 'OrderStatus' in names), None)
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
        self.positions = _jq_positions(map(RemotePosition, rows_of(rows, '持仓')) if listed else broker.get_positions())


class JqLedger:
    """The newest JqReading, at most cache_s seconds old and from after the last order. A failure to read is raised.

    last: the one that was read last, whatever its age; None at first.
    """

    def __init__(self, read, cache_s):
        self._read, self._cache_s, self._until, self.last = read, cache_s, None, None

    def read(self):
        if self._until is None or monotonic() >= self._until:
            self._until = None
            self.last = self._read()
            self._until = monotonic() + self._cache_s
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
        code = _canonical(security)
        if code in self._rows():
            return self._seen[code]
        self._warn('没有持有 %s，返回空的持仓' % brief(security))
        return JqPosition(code)

    def get(self, security, default=None):
        return self._rows().get(_canonical(security), default)

    def __contains__(self, security):
        return _canonical(security) in self._rows()

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
    keys: JqKeys. check_time(): raises where it is not the time to order any more.
    """

    def __init__(self, plain, data, warn, keys, check_time):
        super().__init__(plain._connection, data, rpc_timeout=plain._rpc_timeout, margin=plain._margin,
                         debug=plain._debug, **plain._account)
        self._warn, self._keys, self._check_time, self.last_key = warn, keys, check_time, None

    def _tell(self, answer):
        if warning_in(answer):
            self._warn('服务端警告：%s' % warning_in(answer))
        if answer.get('repeated'):
            self._warn('%s：服务端已经有这笔委托（委托号 %s），没有再下，用的是它的结果：任务重跑、断线重发，或是代码相同的另一个模拟'
                       '（那就用 install_jq_compat(simulation=...) 给它们不同的名字）' % (
                           printable(answer.get('security')), printable(answer.get('order_id'))))

    def _send(self, code, side, amount, terms):
        if not amount:
            return None
        lots, cost = self._affordable(code, amount, terms) if side == 'BUY' else self._sellable(code, amount)
        if not lots:
            self._warn('%s 没有%s：要 %d 股，按交易单位和%s是 0 股' % (
                code, '买入' if side == 'BUY' else '卖出', amount, '可用资金' if side == 'BUY' else '可卖数量'))
            return None
        self._check_time()
        placed = self._once(code, side, lots, terms, '' if lots == amount else '（要 %d 股）' % amount)
        if placed is not None:
            placed.holding_cost, placed.idempotency_key = cost, terms.key
        return placed

    def _once(self, code, side, lots, terms, note, again=False):
        """The order under the next key of this task, or the one that an earlier process of it has placed under it."""
        try:
            with self._keys.next(code, side) as key:
                terms.key = self.last_key = key
                return self._place(code, side, lots, terms, note)
        except IdempotencyConflict:
            if again:
                raise
        order_id = self.settled(terms.key)
        if order_id is None:  # it came to nothing
            return self._once(code, side, lots, terms, note, again=True)
        self._warn('%s：这个任务在重跑之前已经%s过（委托号 %s），这次要的 %d 股没有再下' % (
            code, '买' if side == 'BUY' else '卖', printable(order_id), lots))
        return _placed(dict({'security': code, 'side': side, 'amount': lots}, **self.get_order_status(order_id)),
                       terms.key)

    def get_positions(self):
        """One RemotePosition a security; what is owed, or told twice, is an error."""
        return list(_by_security(super().get_positions()).values())

    def settled(self, key):
        """The id of the order of this key, None if it is certainly not at the broker. Raises OrderStateUnknown.

        A key that the server has not seen is void from now on: what comes later is refused.
        """
        answer = self._ask('broker.resolve_submission', idempotency_key=key, write_action='broker.place_order',
                           request_payload={}, abandon_unseen=True)
        answer = answer if isinstance(answer, dict) else {}
        if answer.get('submission_state') == 'rejected':
            return None
        result = answer.get('resolved_result')
        order_id = _first(result if isinstance(result, dict) else answer, 'order_id')
        if answer.get('submission_state') != 'accepted' or order_id is None:
            raise _unknown('之前的委托还没有查清，没有下新单', key)
        return order_id

    def _affordable(self, code, amount, terms):
        """(whole lots whose worst price and fees the cash covers, None). Without a worst price the server judges."""
        lots = round_lot(code, amount)
        bound = self._worst_price(code, terms) if lots else None
        return (lots if bound is None else self._within_cash(code, lots, Decimal(repr(bound)))), None

    def _within_cash(self, code, lots, bound):
        cash = Decimal(repr(self.get_account().available_cash))
        today = _jq_now().date()
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


class JqKeys:
    """Idempotency keys of which a task that JoinQuant runs again, after its process died, gives the same.

    The server then knows the order and answers with it. A key says which simulation, instant and function of the
    strategy's it is, the account, what is bought or sold, and the how manieth order of that it is; not how much, which
    is another number once the first run has changed the account. What tells simulations apart and what is counted
    stands in the strategy's globals, which JoinQuant keeps once a task is done: both runs find the same there. On the
    day of a simulation's first order it is the strategy's code and what the user calls the simulation: the run that
    died may have found nothing kept yet, or have begun before anything was.
    """

    def __init__(self, namespace, context_of, account, simulation=None):
        self._namespace, self._context_of, self._account = namespace, context_of, account
        self._code = '%s %s' % (_digest_of_code(namespace), simulation or '')

    def keep(self):
        """From now on there is something for JoinQuant to keep."""
        self._namespace.setdefault(_JQ_ORDERS, {'simulation': uuid.uuid4().hex, 'first': None, 'counts': {}})

    @contextlib.contextmanager
    def next(self, code, side):
        """The key to order under. One that no server has heard of is given again."""
        now = str(getattr(self._context_of(), 'current_dt', None))
        simulation, counts = self._simulation_on(now[:10]), self._namespace[_JQ_ORDERS]['counts']
        for old in [each for each in counts if each[:10] != now[:10]]:
            del counts[old]
        what = ' '.join((now, _task_of(self._namespace), code, side))
        counts[what] = counts.get(what, 0) + 1
        try:
            yield self._key(simulation, what, counts[what])
        except BulletError as error:
            if not isinstance(error, (OrderStateUnknown, OrderRejected, IdempotencyConflict)):
                counts[what] -= 1  # no server has it
            raise

    def _simulation_on(self, day):
        kept = self._namespace[_JQ_ORDERS]
        kept['first'] = kept.get('first') or day
        return self._code if kept['first'] == day else kept['simulation']

    def _key(self, simulation, what, number):
        text = '\n'.join((simulation, repr(sorted(self._account.items())), what, str(number)))
        return 'jqt-%s' % hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:40]


def _own_functions(namespace):
    return {name for name, value in namespace.items()
            if isinstance(value, types.FunctionType) and value.__globals__ is namespace}


def _digest_of_code(namespace):
    """The same in every process of a strategy: its functions as compiled, the text of its file where there is one."""
    codes = [(name, namespace[name].__code__) for name in sorted(_own_functions(namespace))]
    files = sorted({code.co_filename for _, code in codes})
    texts = ['%s %s' % (name, _code_text(code)) for name, code in codes] + [
        _text_of(path) for path in files if os.path.isfile(path)]
    return hashlib.sha256('\n'.join(texts).encode('utf-8', 'backslashreplace')).hexdigest()


def _text_of(path):
    with open(path, encoding='utf-8', errors='backslashreplace') as file:
        return file.read()


def _code_text(value):
    """Of a code object or a constant of one; nothing in it depends on the process."""
    if isinstance(value, types.CodeType):
        return '(%s %r %r %s)' % (value.co_code.hex(), value.co_names, value.co_varnames, _code_text(value.co_consts))
    if isinstance(value, (tuple, frozenset)):
        texts = [_code_text(item) for item in value]
        return '[%s]' % ', '.join(texts if isinstance(value, tuple) else sorted(texts))
    return repr(value)


def _task_of(namespace):
    """The name of the strategy's function that JoinQuant has called: two tasks of one instant are not one."""
    frame, name = sys._getframe(1), ''
    while frame is not None:
        if frame.f_globals is namespace:
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


def _known_price(tick, *names):
    """The first of these that is a price; None, 0 and NaN are none."""
    prices = (tick.get(name) for name in names)
    return next((price for price in prices if isinstance(price, (int, float)) and 0 < price <= MAX_PRICE), None)


def _number_of_shares(amount):
    return _hinted('应为股数，例如 100', check_number, amount, 'amount', -MAX_AMOUNT, MAX_AMOUNT)


def _toward_zero(amount):
    """Whole shares; what binary fractions lack is forgiven: 2999.9999999999995 are 3000."""
    return int(amount * (1 + 1e-12))


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


# What bullet-trade's install_jq_compat takes beside JoinQuant's own words; it means the same here. No idempotency_key:
# JqKeys gives them, so that a task that is run again finds its orders.
_JQ_MORE = ('price', 'wait_timeout', 'market', 'remark', 'order_remark')


def _jq_more(name, more):
    unknown = sorted(set(more) - set(_JQ_MORE))
    if unknown:
        raise TypeError("%s() got an unexpected keyword argument '%s'" % (name, unknown[0]))
    return _given(**more)


def _refuse_call(name, *args, **how):
    raise JqNotSupported('远程账户不支持 %s()' % name, '没有发出任何委托；用 order、order_value、order_target、order_target_value')


class JqTrading:
    """JoinQuant's functions on the remote account. No thread, nothing sent twice. context: the newest one."""

    def __init__(self, plain, data, namespace, wait_s, cache_s, starting_cash, lag_s, simulation=None):
        self.context, self._lag_s, self._closed, self._told_of_price = None, lag_s, False, False
        self._plain, self._data, self._namespace, self._wait_s = plain, data, namespace, wait_s
        self.keys = JqKeys(namespace, lambda: self.context, plain._account, simulation)
        self._broker, self._process = JqBroker(plain, data, self.warn, self.keys, self._check_time), os.getpid()
        self._clocks_told = False
        self._statuses, self._own_statuses = _jq_statuses(namespace)
        self._odd = set()  # what was said of odd statuses
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
        _jq_warn(self._namespace, text)

    # -- orders --------------------------------------------------------------------------------------------------
    def order(self, security, amount, style=None, side='long', pindex=0, close_today=False, **more):
        """Order, or None. amount: shares to buy, to sell if negative; parts of a share are dropped."""
        return self._order('order', security, _toward_zero(_number_of_shares(amount)), style, side, pindex, close_today,
                           more)

    def order_value(self, security, value, style=None, side='long', pindex=0, close_today=False, **more):
        """Order, or None. value: yuan, at the limit price, at market at the last price."""
        return self._order('order_value', security, _yuan(value), style, side, pindex, close_today, more)

    def order_target(self, security, amount, style=None, side='long', pindex=0, close_today=False, **more):
        """Order, or None. The security's open orders are cancelled first."""
        target = _toward_zero(_no_short(_number_of_shares(amount)))
        return self._order('order_target', security, target, style, side, pindex, close_today, more)

    def order_target_value(self, security, value, style=None, side='long', pindex=0, close_today=False, **more):
        """Order, or None."""
        return self._order('order_target_value', security, _no_short(_yuan(value)), style, side, pindex,
                           close_today, more)

    def _order(self, name, security, how_much, style, side, pindex, close_today, more):
        more = _jq_more(name, more)
        code = _jq_order_code(security, style, side, pindex, close_today)
        self._await_time()
        call = name, how_much, _style_kind(style), getattr(style, 'limit_price', None), str(self.context.current_dt)
        call += tuple(sorted(more.items()))
        style = self._counted_style(code, style)
        with self._writing(), self._noting_doubt(code, call):
            try:
                return self._tried_before(code, call) or self._placed(getattr(self.broker, name)(
                    code, how_much, style=style, **dict({'wait_timeout': self._wait_for(style, more)}, **more)))
            except (OrderRejected, SecurityNotFound) as error:
                self.warn('%s 没有下单：%s' % (code, error))
                return None

    def _counted_style(self, code, style):
        counted = counted_style(code, style)
        if counted is not style and not self._told_of_price:
            self._told_of_price = True
            self.warn(PRICE_WITHOUT_EFFECT % code)
        return counted

    @contextlib.contextmanager
    def _noting_doubt(self, code, call):
        """Of an order that may be at the broker: code -> (key, call, day), all of it plain enough for any pickle."""
        try:
            yield
        except OrderStateUnknown as error:
            if error.idempotency_key is not None and error.idempotency_key == self._broker.last_key:
                doubts = self._namespace.setdefault(_JQ_DOUBTS, {})
                doubts.setdefault(code, (error.idempotency_key, call, str(_jq_now().date())))  # or the one from before
            raise

    def _tried_before(self, code, call):
        """What an order in doubt turned out to be, where this call only tries it again; None where it came to nothing.

        Raises OrderStateUnknown, with nothing ordered, as long as there is a doubt.
        """
        doubts = self._namespace.get(_JQ_DOUBTS, {})
        if code not in doubts:
            return None
        key, doubted, day = doubts[code]
        order = self._found(key, doubted == call) if day == str(_jq_now().date()) else self._out_of_date(code, key, day)
        del doubts[code]
        if not doubts:
            del self._namespace[_JQ_DOUBTS]
        return order

    def _found(self, key, wanted):
        order_id = self.broker.settled(key)
        if order_id is None or not wanted:
            return None
        return self._as_order(self.broker.get_order_status(order_id), key)

    def _out_of_date(self, code, key, day):
        """An order ends with its day."""
        self.warn('%s 在 %s 的一笔委托没有查清（key=%s），请与交割单核对' % (code, day, key))

    def _wait_for(self, style, more):
        """Seconds for the outcome; a limit order that has not filled soon rests."""
        rests = _style_kind(style) == 'limit' or ('price' in more and not more.get('market'))
        return min(self._wait_s, LIMIT_WAIT_S) if rests else self._wait_s

    def _await_time(self):
        """Until context.current_dt is now. Raises BadRequest, before anything is sent, where the task is not of now."""
        while self._lag_s is not None:
            lag_s = self._lag()
            self._check_time()
            if lag_s >= 0:
                return
            _jq_wait(-lag_s)

    def _check_time(self):
        """Raises BadRequest where the task is not of now, or the clock here is not the server's."""
        if self._lag_s is None:
            return
        lag_s = self._lag()
        if abs(lag_s) > self._lag_s:
            raise BadRequest('context.current_dt 是 %s，与现在相差 %d 秒，没有下单' % (self.context.current_dt, lag_s),
                             '这是补跑的任务，或任务运行得太久；上限是 install_jq_compat 的 max_lag=%g' % self._lag_s)
        gap_s = clock_gap_s(self._plain._connection)
        if clock_text(gap_s, SKEW_LIMIT_S):
            raise BadRequest(clock_text(gap_s, SKEW_LIMIT_S) + '，没有下单', CLOCK_HINT)
        if clock_text(gap_s, SKEW_TOLD_S) and not self._clocks_told:
            self._clocks_told = True
            self.warn('%s：超过 %d 秒就不再下单；%s' % (clock_text(gap_s, SKEW_TOLD_S), SKEW_LIMIT_S, CLOCK_HINT))

    def _lag(self):
        """Seconds since context.current_dt."""
        moment = getattr(self.context, 'current_dt', None)
        if not isinstance(moment, datetime):
            raise ConfigError('context.current_dt 应为时间，收到 %s，没有下单' % brief(moment), '不要改动 context.current_dt')
        return (_jq_now() - moment.replace(tzinfo=None)).total_seconds()

    def _placed(self, placed):
        """It is at the broker: what cannot be told of it now is unknown, not failed."""
        if placed is None:
            return None
        row = placed.raw_response
        if _first(row, 'filled', 'traded_volume') is None:
            try:
                row = self.broker.get_order_status(placed.order_id)
            except BulletError as error:
                raise self._untold(placed.order_id, placed.idempotency_key, error) from error
        return self._as_order(row, placed.idempotency_key, placed.holding_cost)

    def _as_order(self, row, key, cost=None):
        try:
            return self._shown(RemoteOrder(row), cost)
        except BulletError as error:
            raise self._untold(row.get('order_id'), key, error) from error

    @staticmethod
    def _untold(order_id, key, error):
        return _unknown('委托 %s 已在柜台，但读不到它的状态：%s' % (printable(order_id), error.message), key)

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
        order = self._shown(RemoteOrder(row))
        if order.remote_status not in CANCELED_STATUSES:
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

    def get_trades(self, order_id=None, security=None):
        """dict trade id -> Trade of today."""
        security = None if security is None else normalize_code(security)
        return {key: JqTrade(trade) for key, trade in self.broker.get_trades(order_id, security).items()}

    def _as_orders(self, orders):
        return {key: self._shown(order) for key, order in orders.items()}

    def _shown(self, order, cost=None):
        """The Order of a RemoteOrder; a status that nobody knows is said once."""
        odd = odd_status(order)
        if odd and odd not in self._odd:
            self._odd.add(odd)
            self.warn(odd)
        return JqOrder(order, self._statuses, cost)
