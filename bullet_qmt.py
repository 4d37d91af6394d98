#!/usr/bin/env python3
"""bullet-qmt: a remote service for QMT / MiniQMT, in one file that needs nothing but CPython 3.6 or newer.

Serve on the trading machine (here with the built-in paper exchange):

    export QMT_SERVER_TOKEN=YOUR-LONG-RANDOM-TOKEN    # or --token-file FILE; what --token says is seen by others here
    python bullet_qmt.py server --server-type=stub --listen 127.0.0.1 --port 58620

Ask from anywhere, on the command line or in Python:

    python bullet_qmt.py account --host 127.0.0.1

    import bullet_qmt
    bullet_qmt.set_data_provider('qmt-remote', host='127.0.0.1', token='...')
    bullet_qmt.get_price('600519.XSHG', count=5)

Trade:

    broker = bullet_qmt.RemoteQmtBroker(config={'host': '127.0.0.1', 'token': '...'})
    order_id = broker.buy('000001.XSHE', 100, price=10.5)

Contents, each section using only those above it:

     1. COMPAT              version and platform branches, Beijing time, text that lines up
     2. TOOLS               threads and queues: pools, mailboxes, signals, lines for a console or a file
     3. ERRORS              one tree, stable codes, checks of values
     4. OPTIONS             each declared once; .env files; accounts
     5. MARKET RULES        codes, lots, price steps, limits, cage, fees, sessions
     6. RECORDS             Account Position Order Trade Tick, Table, account overview
     7. WIRE                framing, JSON, binary tables, Channel
     8. ADAPTER CONTRACT    DataAdapter, BrokerAdapter; history in JoinQuant's semantics
     9. STUB ADAPTER        a paper exchange
    10. QMT ADAPTER         xtquant at arm's length
    11. ORDER DESK          journal, idempotency, sub-accounts, limits, waiting
    12. SERVER              gate, sessions, action table, tick hub
    13. CLIENTS             RemoteQmtConnection, ShortConnection, LocalConnection
    14. FACADES             RemoteQmtProvider, RemoteQmtBroker, get_price and its sisters
    15. AUTOSTART           a task of Windows, a user unit of systemd
    16. COMMAND LINE        main(argv)

Errors, all BulletError with code, message, hint, retryable:

    ConfigError
    BadRequest              UnknownAction SecurityNotFound AccountNotFound OrderNotFound IdempotencyConflict
                            SubscriptionLimit
    NotSupported            ServiceDisabled
    DataUnavailable, OrderRejected, QmtUnavailable, JournalError, OrderTagLost, InternalError
    ServerBusy              IdempotencyCacheFull
    AuthFailed              AuthThrottled
    ProtocolError           FrameTooLarge
    ConnectionLost          TlsError
    RequestTimeout          OrderStateUnknown
"""
import bisect  # before sys: on 3.6 a Ctrl-C during the compilation is lost where a module is there already
import sys

INTERRUPTED = '已中断'


def _end_quietly(kind, error, trace):
    """Ctrl-C while the modules below load: main() is not there yet to catch it."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    if sys.stderr is not None:
        sys.stderr.write(INTERRUPTED + '\n')
    raise SystemExit(130)


if __name__ == '__main__':
    sys.excepthook = _end_quietly

import contextlib
import enum
import errno
import heapq
import importlib
import io
import itertools
import json
import logging
import math
import numbers
import os
import re
import select
import selectors
import signal
import socket
import socketserver
import struct
import threading
import time
import unicodedata
import warnings
from array import array
from collections import Counter, OrderedDict, deque, namedtuple
from datetime import date, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache

__version__ = '1.0.0'
__all__ = [
    'BulletError', 'ConfigError', 'BadRequest', 'OrderRejected', 'OrderStateUnknown', 'ConnectionLost', 'AuthFailed',
    'RemoteQmtConnection', 'ShortConnection', 'LocalConnection', 'RemoteQmtProvider', 'RemoteQmtBroker', 'Table',
    'connect', 'set_data_provider', 'get_data_provider', 'get_price', 'get_trade_days', 'get_all_trade_days',
    'get_all_securities', 'get_security_info', 'get_index_stocks', 'get_split_dividend', 'get_current_tick',
    'get_live_current', 'main',
]

# The running script and an imported copy are one module: an exception class exists once.
sys.modules.setdefault('bullet_qmt', sys.modules[__name__])

# ======================================================================================================
# 1. COMPAT - every version and platform branch, Beijing time, text that lines up
# ======================================================================================================
LOG = logging.getLogger('bullet_qmt')
ORDER_LOG = logging.getLogger('bullet_qmt.orders')  # what is in other logs as well, in files that nothing else fills
ORDER_LOG.propagate = False
ORDER_LOG.addHandler(logging.NullHandler())  # or else Python shows its warnings a second time where there are no files
IS_WINDOWS = os.name == 'nt'
BEIJING = timezone(timedelta(hours=8), 'CST')
EPOCH = datetime(1970, 1, 1)
DAY_MS = 86400000


class LazyModule:
    """Stands for a module until its first use loads it. Most programs use few of the modules that stand below."""

    def __init__(self, name, namespace):
        self.__dict__.update(_name=name, _namespace=namespace)

    def _load(self):
        module = importlib.import_module(self._name)
        self._namespace[self._name.rpartition('.')[2]] = module
        return module

    def __getattr__(self, name):
        return getattr(self._load(), name)

    def __setattr__(self, name, value):
        setattr(self._load(), name, value)


argparse = LazyModule('argparse', globals())
difflib = LazyModule('difflib', globals())
hashlib = LazyModule('hashlib', globals())
hmac = LazyModule('hmac', globals())
ipaddress = LazyModule('ipaddress', globals())
locale = LazyModule('locale', globals())
random = LazyModule('random', globals())
secrets = LazyModule('secrets', globals())
shlex = LazyModule('shlex', globals())
sqlite3 = LazyModule('sqlite3', globals())
ssl = LazyModule('ssl', globals())
subprocess = LazyModule('subprocess', globals())
tempfile = LazyModule('tempfile', globals())
uuid = LazyModule('uuid', globals())
zlib = LazyModule('zlib', globals())


def chance():
    """Evenly from 0 to 1."""
    return random.random()


class Clock:
    """Beijing wall time (naive) and a monotonic counter in seconds. Tests pass one of their own."""

    def now(self):
        return datetime.now(BEIJING).replace(tzinfo=None)

    def monotonic(self):
        return time.monotonic()


def to_ms(moment):
    """Naive Beijing datetime (or date) -> whole milliseconds since 1970-01-01 on the same wall clock."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return (moment - EPOCH) // timedelta(milliseconds=1)


def from_ms(ms):
    return EPOCH + timedelta(milliseconds=ms)


def iso_ms(ms):
    """Milliseconds -> 'YYYY-MM-DDTHH:MM:SS', with microseconds only where there are any."""
    return from_ms(ms).isoformat()


def beijing_moment(seconds):
    """Unix time -> naive Beijing datetime. Not by fromtimestamp(), which on Windows refuses what is before 1970.

    OverflowError or ValueError for what is no moment.
    """
    return _BEIJING_EPOCH + timedelta(seconds=seconds)


@lru_cache(maxsize=8)
def _log_second(seconds):
    return beijing_moment(seconds).strftime('%Y-%m-%d %H:%M:%S')


def log_time(seconds):
    """Unix time -> Beijing time with milliseconds, as log lines have it."""
    return '%s.%03d' % (_log_second(int(seconds)), seconds % 1 * 1000)


_BEIJING_EPOCH, _SECOND, _MILLISECOND = datetime(1970, 1, 1, 8), timedelta(seconds=1), timedelta(milliseconds=1)


def epoch_seconds(moment):
    """Naive Beijing datetime -> Unix time, whatever the machine's zone."""
    return (moment - _BEIJING_EPOCH) // _SECOND


def unix_ms(moment):
    """Naive Beijing datetime -> Unix time in whole milliseconds, as the two ends of a line compare their clocks."""
    return (moment - _BEIJING_EPOCH) // _MILLISECOND


_MOMENT = re.compile(
    r'(\d{4})(?:-(\d{1,2})-(\d{1,2})|/(\d{1,2})/(\d{1,2})|(\d\d)(\d\d))'
    r'(?:[ T]?(\d{1,2}):?(\d\d)(?::?(\d\d)(?:\.(\d{1,9}))?)?)?\s*(Z|[+-]\d\d:?\d\d)?', re.ASCII)


def parse_moment(value):
    """A time in any spelling that users send -> (naive Beijing datetime, whether it had a clock part).

    Takes date, datetime (an aware one is converted), pandas.Timestamp, or text such as '2024-01-05',
    '20240105', '2024-01-05 09:31:00', '2024-01-05T09:31'. Raises ValueError for anything else.
    """
    if isinstance(value, datetime):
        return _naive_beijing(value), True
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day), False
    if not isinstance(value, str):
        raise ValueError('not a time: %r' % (value,))
    return _parse_moment_text(value.strip())


def _naive_beijing(moment):
    if moment != moment:  # pandas.NaT
        raise ValueError('not a time: NaT')
    if moment.tzinfo is not None:
        moment = moment.astimezone(BEIJING)
    return datetime(moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second,
                    moment.microsecond)


def _parse_moment_text(text):
    match = _MOMENT.fullmatch(text)
    if not match:
        raise ValueError('not a time: %r' % text[:40])
    year, hour, minute, second, fraction, zone = match.group(1, 8, 9, 10, 11, 12)
    month, day = [part for part in match.groups()[1:7] if part]
    micro = int((fraction or '0')[:6].ljust(6, '0'))
    moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), micro)
    if zone:
        moment = _naive_beijing(moment.replace(tzinfo=_parse_zone(zone)))
    return moment, hour is not None


def _parse_zone(text):
    if text == 'Z':
        return timezone.utc
    digits = text[1:].replace(':', '')
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == '-' else offset)


def optional_import(name):
    """The module, or None where it is not installed. pandas and numpy are only ever reached through this."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def has_panel():
    """pandas dropped Panel after 0.24; its 0.25 still has the name, without the use."""
    pandas = optional_import('pandas')
    return pandas is not None and tuple(int(part) for part in pandas.__version__.split('.')[:2]) < (0, 25)


def numbers_are_labels():
    """Whether this pandas takes series[-1] for a label where the labels are no numbers: 3 does."""
    pandas = optional_import('pandas')
    return pandas is not None and int(pandas.__version__.split('.')[0]) >= 3


def has_many_cores():
    return (os.cpu_count() or 1) > 1


def little_endian(values):
    """An array of numbers with the bytes of each in the other order, where the machine's is not this one."""
    if sys.byteorder == 'big':
        values = array(values.typecode, values)
        values.byteswap()
    return values


def text_width(text):
    """Columns that the text takes in the terminal: Chinese characters take two, combining marks none."""
    return sum(_char_width(char) for char in as_shown(text))


def as_shown(text):
    """As the console shows it: a character that its encoding lacks is an escape there."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    return text.encode(encoding, 'backslashreplace').decode(encoding)


def _char_width(char):
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in 'WF' else 1


def pad(text, width, align='<'):
    fill = ' ' * max(0, width - text_width(text))
    return fill + text if align == '>' else text + fill


def format_table(headers, rows, aligns=None):
    """Lines of a plain table whose columns line up in a terminal. `aligns`: one of '<' '>' per column."""
    rows = [[printable(cell) for cell in row] for row in rows]
    aligns = aligns or '<' * len(headers)
    widths = [max(text_width(row[i]) for row in [headers] + rows) for i in range(len(headers))]
    lines = ['  '.join(map(pad, row, widths, aligns)).rstrip() for row in [headers] + rows]
    lines.insert(1, '  '.join('-' * width for width in widths))
    return lines


def printable(value):
    """Text for a table or a log line: control characters (a forged line, a terminal escape) are shown, not obeyed."""
    return ''.join(char if char.isprintable() else '\\x%02x' % ord(char) for char in str(value))


def make_console_safe():
    """No console or pipe breaks on a character that its encoding lacks."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is not getattr(sys, '__%s__' % name):
            continue  # not the console: a notebook's, a test's, or what an earlier call put here
        if hasattr(stream, 'reconfigure'):  # 3.7
            stream.reconfigure(errors='backslashreplace')
        elif hasattr(stream, 'buffer'):
            setattr(sys, name, io.TextIOWrapper(stream.buffer, stream.encoding, 'backslashreplace',
                                                line_buffering=True))


def is_closed_pipe(error):
    """Whether it says that whoever read what is printed has gone; to Windows that is a wrong argument."""
    return isinstance(error, BrokenPipeError) or (
        IS_WINDOWS and isinstance(error, OSError) and error.errno == errno.EINVAL)


def written_to(place):
    """place.write of a bare stream, where a reader that has gone is a BrokenPipeError on every system."""
    def write(data):
        try:
            return place.write(data)
        except OSError as error:
            if is_closed_pipe(error):
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
            raise
    return write


def is_terminal(stream):
    """pythonw.exe has no streams at all."""
    return stream is not None and stream.isatty()


def shell_line(words):
    """The words as the shell of this system takes them."""
    if IS_WINDOWS:
        return ' '.join('"%s"' % word if re.search(r'[^\w.:\\/=@-]', word) else word for word in words)
    return ' '.join(map(shlex.quote, words))


LOOK_UP_S = 0.2


def interruptible(wait, timeout_s, is_over=None):
    """wait(seconds) -> whether it came; as one wait of timeout_s (None: for ever) that a Ctrl-C or is_over() ends.

    On Windows a Ctrl-C ends neither select() nor the wait for a lock, and a socket that another thread shuts down ends
    no select(). There the main thread, which alone sees a Ctrl-C, looks up now and then, and any that has an is_over:
    hundreds of threads that wait for sockets have an Alarm instead.
    """
    if not IS_WINDOWS or (is_over is None and threading.current_thread() is not threading.main_thread()):
        return wait(timeout_s)
    end = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left_s = end - time.monotonic()
        came = wait(max(0, min(LOOK_UP_S, left_s)))
        if came or left_s <= LOOK_UP_S or (is_over is not None and is_over()):
            return came


def wait_for_event(event, timeout_s=None):
    return interruptible(event.wait, timeout_s)


def wait_for_condition(condition, predicate, timeout_s=None):
    """With its lock held. What the predicate gave last."""
    return interruptible(lambda seconds: condition.wait_for(predicate, seconds), timeout_s)


def wait_for_lock(lock, timeout_s=None):
    """Whether it is ours now."""
    return interruptible(lambda seconds: lock.acquire(timeout=-1 if seconds is None else seconds), timeout_s)


def wait_for_thread(thread, timeout_s=None):
    """Whether it has ended."""
    def ended(seconds):
        thread.join(seconds)
        return not thread.is_alive()
    return interruptible(ended, timeout_s)


class Alarm:
    """Ends whatever wait_for_socket() was given it. Only where the end of a socket ends no select(): on Windows.

    Two more sockets, made for a wait that turns out to be long: most are short, and need none.
    """

    def __init__(self):
        self._lock, self._ears, self._bell, self._mute, self.rung = threading.Lock(), None, None, False, False

    def ring(self):
        """From any thread, any number of times."""
        with self._lock:
            self.rung = True
            if self._bell is not None:
                self._bell.close()

    def set_up(self):
        with self._lock, contextlib.suppress(OSError):  # no sockets left: whoever waits looks up now and then
            if self._ears is None and not self.rung and not self._mute:
                self._ears, self._bell = socket.socketpair()

    @property
    def ears(self):
        """What is readable once it was rung."""
        ears = self._ears  # close() may come meanwhile
        return [] if ears is None or self._mute else [ears]

    def mistrust(self):
        """Another program has cut the pair: it would be heard for ever."""
        self._mute = True

    def close(self):
        """Once nobody waits with it."""
        with self._lock:
            for end in filter(None, (self._ears, self._bell)):
                end.close()
            self._ears, self._bell, self._mute = None, None, True


def input_waiter(sock, alarm=None):
    """wait(timeout_s) -> whether the socket became readable in time, for one that is waited for again and again."""
    if not hasattr(select, 'poll'):
        return lambda timeout_s: wait_for_socket(sock, timeout_s, alarm=alarm)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return lambda timeout_s: bool(poller.poll(None if timeout_s is None else max(0, timeout_s * 1000)))


def wait_for_socket(sock, timeout_s, writing=False, alarm=None):
    """Whether the socket became readable (or writable) in time, or the alarm was rung. Any descriptor number."""
    if hasattr(select, 'poll'):
        poller = select.poll()
        poller.register(sock, select.POLLOUT if writing else select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else max(0, timeout_s * 1000)))
    timeout_s = None if timeout_s is None else max(0, timeout_s)
    if alarm is None:
        return interruptible(lambda seconds: any(_selected(sock, writing, [], seconds)), timeout_s)
    return _alarmed_wait(sock, timeout_s, writing, alarm)


def _selected(sock, writing, ears, seconds):
    watched = [sock]
    return select.select(ears if writing else watched + ears, watched if writing else [], watched, seconds)


def _alarmed_wait(sock, timeout_s, writing, alarm):
    """At first the socket alone, which is quicker and mostly enough."""
    end = math.inf if timeout_s is None else time.monotonic() + timeout_s
    if interruptible(lambda seconds: alarm.rung or any(_selected(sock, writing, [], seconds)),
                     min(LOOK_UP_S, max(0, end - time.monotonic()))):
        return True
    alarm.set_up()

    def is_ready(seconds):
        ears = alarm.ears
        ready = _selected(sock, writing, ears, seconds)
        if ready[0] == ears != [] and not alarm.rung:
            alarm.mistrust()
        return alarm.rung or any(ready)
    left_s = end - time.monotonic()
    return left_s > 0 and interruptible(is_ready, None if left_s == math.inf else left_s,
                                        None if alarm.ears else lambda: alarm.rung)


def most_waited_for():
    """How many sockets one thread waits for: select(), the only way on Windows, takes 512."""
    return 1024 if hasattr(select, 'poll') else 480


_NOTSENT_LOWAT = {'linux': 25, 'darwin': 0x201}
UNSENT_BYTES = 131072


def keep_send_queue_short(sock):
    """What the system has queued to send can be overtaken by nothing: let it queue little beyond what is on its way."""
    option = getattr(socket, 'TCP_NOTSENT_LOWAT', _NOTSENT_LOWAT.get(sys.platform))
    with contextlib.suppress(OSError):
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)
        elif IS_WINDOWS:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * UNSENT_BYTES)


def plain_address(address):
    """An IPv4 client on an IPv6 socket is an IPv4 client; a zone index is not part of an address."""
    ip = ipaddress.ip_address(address.partition('%')[0])
    return getattr(ip, 'ipv4_mapped', None) or ip


def plain_network(network):
    """As plain_address: a network of IPv4-mapped addresses is one of IPv4 clients."""
    first = getattr(network.network_address, 'ipv4_mapped', None)
    if first is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network('%s/%d' % (first, network.prefixlen - 96))


def host_and_port(host, port):
    """'127.0.0.1:58620', '[::1]:58620'."""
    return ('[%s]:%s' if ':' in host else '%s:%s') % (host, port)


def allowed_descriptors(wanted):
    """How many descriptors the process may open, after asking the system for so many; None where it sets no limit."""
    resource = optional_import('resource')
    if resource is None:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS takes less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (
                wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def own_port_exclusively(sock):
    """Windows lets a second program steal a port bound with SO_REUSEADDR; elsewhere it only skips TIME_WAIT."""
    if hasattr(socket, 'SO_EXCLUSIVEADDRUSE'):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def take_ipv4_too(sock):
    """An IPv6 socket that listens on :: takes IPv4 as well, by IPv4-mapped addresses. Windows does not by itself."""
    option = getattr(socket, 'IPV6_V6ONLY', 27)  # both names: Windows lacks some before 3.8
    with contextlib.suppress(OSError):  # OpenBSD keeps the two apart whatever is asked
        sock.setsockopt(getattr(socket, 'IPPROTO_IPV6', 41), option, 0)


def listening_place(host, port):
    """Family and address to listen on. A name that has several is served at its IPv4 one: clients try them all."""
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    family, _, _, _, place = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, place


def socket_error(code):
    """The system's error of this number, with its text."""
    text = importlib.import_module('ctypes').FormatError(code).strip() if IS_WINDOWS else os.strerror(code)
    return OSError(code, text)


def connect_socket(host, port, timeout_s):
    """A connected socket, of the first address of the host that takes it; timeout_s is for all of them together.

    Raises as socket.create_connection does, and does not wait as it does for one address before it tries the next:
    localhost is ::1 first on Windows, which takes 2 s to say that nobody listens there.
    """
    with contextlib.closing(_Connecting(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))) as connecting:
        sock = connecting.first(time.monotonic() + timeout_s)
    sock.settimeout(timeout_s)
    return sock


class _Connecting:
    """Attempts at several addresses; the next begins when one has failed, or has not answered for SLICE_S."""

    SLICE_S = 0.25  # Ctrl-C is heard between two of them: Windows does not interrupt select()

    def __init__(self, found):
        self._left, self._errors, self._selector = deque(found), [], selectors.DefaultSelector()

    def first(self, deadline):
        """The first that is connected. Raises OSError: a refusal if there was one, else the last error."""
        while self._left or self._selector.get_map():
            if self._left:
                self._begin(*self._left.popleft())
            sock = self._connected(deadline - time.monotonic())
            if sock is not None:
                return sock
            if time.monotonic() >= deadline:
                raise socket.timeout('timed out')
        raise next((error for error in self._errors if isinstance(error, ConnectionRefusedError)), self._errors[-1])

    def _begin(self, family, kind, protocol, _, place):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine does not have
            self._errors.append(error)
            return
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_WRITE)
        try:
            sock.connect(place)
        except BlockingIOError:
            pass
        except OSError as error:
            self._failed(sock, error)

    def _connected(self, left_s):
        if self._selector.get_map():  # Windows' select() takes no empty lists
            for key, _ in self._selector.select(max(0, min(self.SLICE_S, left_s))):
                code = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    self._selector.unregister(key.fileobj)
                    return key.fileobj
                self._failed(key.fileobj, socket_error(code))
        return None

    def _failed(self, sock, error):
        self._errors.append(error)
        self._selector.unregister(sock)
        sock.close()

    def close(self):
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()


def require_tls12(context):
    if hasattr(ssl, 'TLSVersion'):  # 3.7
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.options |= ssl.OP_NO_SSLv2 | ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    context.options |= getattr(ssl, 'OP_NO_RENEGOTIATION', 0)  # 3.7: a new handshake costs us more than who asks for it
    return context


def trust_certificate(context, path):
    """Verify against this file alone: the server's own certificate or the authority that issued it."""
    context.load_verify_locations(cafile=path)
    context.verify_flags |= getattr(ssl, 'VERIFY_X509_PARTIAL_CHAIN', 0)  # 3.10
    return context


def is_tls_eof(error):
    """Whether a TLS peer left without a goodbye. 3.6 with OpenSSL 3 tells it only in the text."""
    return isinstance(error, ssl.SSLError) and (
        isinstance(error, ssl.SSLEOFError) or 'unexpected eof' in str(error).lower())


def is_cut_handshake(error):
    """Whether the peer ended, or said nothing in, a TLS handshake, which tells nothing of what it thinks of ours.

    An end without an alert is OSError 0 on older Pythons.
    """
    return is_tls_eof(error) or isinstance(error, (ConnectionError, socket.timeout)) or (
        isinstance(error, OSError) and error.errno == 0)


def running_programs(names, kernel32=None):
    """Those of these .exe names (lower case) that run on this machine; None where the system does not tell."""
    if IS_WINDOWS and kernel32 is None:
        kernel32 = importlib.import_module('ctypes').WinDLL('kernel32')
    if kernel32 is None:
        return None
    running = {name.lower() for _, _, name in _programs(kernel32)}
    return [name for name in names if name in running] if running else None


_SNAP_PROCESSES = 2  # of CreateToolhelp32Snapshot


def _programs(kernel32):
    """(process, parent, file name) of all programs, out of a snapshot of Windows; [] where it refuses one."""
    ctypes = importlib.import_module('ctypes')
    entry = _process_entry(ctypes)()
    entry.size = ctypes.sizeof(entry)
    kernel32.CreateToolhelp32Snapshot.restype = ctypes.c_void_p
    snapshot, found = ctypes.c_void_p(kernel32.CreateToolhelp32Snapshot(_SNAP_PROCESSES, 0)), []
    more = kernel32.Process32FirstW(snapshot, ctypes.byref(entry))
    while more:
        found.append((entry.process, entry.parent, entry.name))
        more = kernel32.Process32NextW(snapshot, ctypes.byref(entry))
    kernel32.CloseHandle(snapshot)
    return found


_PYTHON = re.compile(r'pyw?\.exe|python[\w.]*\.exe', re.IGNORECASE)


def owns_window(kernel32=None, stdin=None):
    """Whether the console's window closes with this program: who double-clicked it sees nothing of what it said last.

    The first program above it that is no Python, nor the launcher of one, is the desktop then: no shell, no service.
    """
    if not (IS_WINDOWS or kernel32) or not is_terminal(stdin or sys.stdin):
        return False
    kernel32 = kernel32 or importlib.import_module('ctypes').WinDLL('kernel32')
    programs = {process: (parent, name) for process, parent, name in _programs(kernel32)}
    process, name = programs.get(os.getpid(), (0, ''))
    for _ in range(8):
        process, name = programs.get(process, (0, ''))
        if not _PYTHON.fullmatch(name):
            break
    return name.lower() == 'explorer.exe'


def _process_entry(ctypes):
    """PROCESSENTRY32W."""
    u32 = ctypes.c_uint32
    fields = [('size', u32), ('usage', u32), ('process', u32), ('heap', ctypes.c_size_t), ('module', u32),
              ('threads', u32), ('parent', u32), ('priority', ctypes.c_int32), ('flags', u32)]
    return type('ProcessEntry', (ctypes.Structure,), {'_fields_': fields + [('name', ctypes.c_wchar * 260)]})


def file_name(text):
    """A path that stands in a file: in the C locale 3.6 knows names of files in ASCII and escapes alone."""
    try:
        os.fsencode(text)
        return text
    except UnicodeEncodeError:
        return os.fsdecode(text.encode('utf-8', 'surrogateescape'))


_RESERVED = re.compile(r'(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]) *(?:[.:].*)?', re.IGNORECASE)
_VERBATIM = '\\\\?\\'  # before a path that Windows takes as it stands, however long


def path_problem(text, is_windows=IS_WINDOWS):
    """Why Windows would take the path for another file than was meant, or for none; None where it is fine."""
    if not is_windows:
        return None
    if text.startswith('\\\\.\\'):
        return '以 \\\\.\\ 开头的是设备，不是文件'
    drive, rest = _split_drive(text[4:] if text.startswith(_VERBATIM) else text)
    if re.fullmatch(r'[A-Za-z]:', drive) and rest and rest[0] not in '\\/':
        return '%s 后面缺少 \\：那是这个盘当前目录里的文件，写成 %s\\%s' % (drive, drive, rest)
    return next((problem for problem in map(_name_problem, re.split(r'[\\/]', rest)) if problem), None)


def _split_drive(text):
    match = re.match(r'[A-Za-z]:', text)
    return (match.group(), text[2:]) if match else ('', text)


def _name_problem(name):
    odd = re.search('[<>"|?*:\x00-\x1f]', name)
    if odd:
        return '文件名里不能有 %s%s' % (printable(odd.group()), '；路径以 \\ 结尾时不要加引号' * (odd.group() == '"'))
    if _RESERVED.fullmatch(name):
        return '%s 是 Windows 的设备名，写进去的全部丢失' % name
    if name.strip('.') and name[-1] in ' .':
        return 'Windows 会去掉 %s 末尾的空格和点，那是另一个文件' % ascii(name)


def unquoted(text, is_windows=IS_WINDOWS):
    """A path as the explorer of Windows copies it is in quotes, which are no part of any name there."""
    return text[1:-1].strip() if is_windows and re.fullmatch('".*[^ ].*"', text) else text


def long_path(path):
    """The path, in the spelling that has no limit of 260 where it or a file beside it comes near to that."""
    whole = os.path.abspath(path) if IS_WINDOWS else ''
    if len(whole) < 220 or whole.startswith(_VERBATIM):
        return path
    return _VERBATIM + ('UNC' + whole[1:] if whole.startswith('\\\\') else whole)


PATIENCE_STEPS = 20  # of 0.05 s


def patiently(action, *arguments, pause=lambda: threading.Event().wait(0.05)):
    """What the action returns. A scanner or an indexer has a file of Windows for a moment after it was written."""
    for _ in range(PATIENCE_STEPS if IS_WINDOWS else 0):
        try:
            return action(*arguments)
        except PermissionError:
            pause()
    return action(*arguments)


def read_text(path, most=-1):
    """A UTF-8 file. Raises OSError; UnicodeError in Chinese that says what it looks like instead."""
    with io.open(path, 'rb') as file:
        data = file.read(most)
    if data[:2] in (b'\xff\xfe', b'\xfe\xff') or b'\0' in data[:200]:
        raise UnicodeError('是 UTF-16 编码（PowerShell 的 > 和记事本的“Unicode”这样写）')
    try:
        return io.StringIO(data.decode('utf-8-sig'), newline=None).read()
    except UnicodeDecodeError as error:
        raise UnicodeError('像是 GBK 编码（记事本的“ANSI”这样写）' if _is_gbk(data) else str(error)) from error


def _is_gbk(data):
    try:
        return bool(data.decode('gb18030'))
    except UnicodeDecodeError:
        return False


def sqlite_name(path):
    """The path as sqlite takes it: before 3.7 in UTF-8, whatever the locale says of names."""
    return path if sys.version_info >= (3, 7) else os.fsencode(path).decode('utf-8', 'surrogateescape')


def real_path(path):
    """The file's own path, behind links; not on every drive does Windows tell it."""
    try:
        return os.path.realpath(path)
    except OSError:
        return os.path.abspath(path)


def true_path(path):
    """The path by the names that the files have themselves: on Windows 'ORDERS~1.SQL' is one of 'orders of may.sqlite'.

    What a program puts beside a file is found again under that one alone.
    """
    path = real_path(path)
    if IS_WINDOWS and sys.version_info < (3, 8):  # whose realpath() asks nobody
        path = _long_path(path, importlib.import_module('ctypes')) or path
    return path


def _long_path(path, ctypes):
    """'' for one that is not there."""
    buffer = ctypes.create_unicode_buffer(32768)
    ctypes.WinDLL('kernel32').GetLongPathNameW(path, buffer, len(buffer))
    return buffer.value


def is_listening(port, timeout_s=0.5, host='127.0.0.1'):
    """Whether a program takes connections on the port; Windows would take 2 s to say that none of this machine does."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError:
        return False
    return True


def restrict_to_owner(path):
    """A file with account data is for its owner alone. Windows keeps the folder's access list."""
    if not IS_WINDOWS:
        os.chmod(path, 0o600)


def foreign(status):
    """Why somebody else may have written what has this os.stat_result; None where nobody could, as ssh sees it.

    Windows: None, as the folder's access list decides.
    """
    if IS_WINDOWS:
        return None
    if status.st_uid not in (os.geteuid(), 0):
        return '属于另一个用户（uid %d）' % status.st_uid
    if status.st_mode & 0o022:
        return '别人也能写（权限 %o）' % (status.st_mode & 0o777)


def open_own(path, mode, **how):
    """open() of a file of ours, for its owner alone if made now. A link in its place is an OSError, not followed."""
    def opener(name, flags):
        return patiently(os.open, name, flags | getattr(os, 'O_NOFOLLOW', 0), 0o600)
    return io.open(path, mode, opener=opener, **how)


def open_appending(path):
    """A bare file that is only appended to, for its owner alone if made now. Others may move it while it is open."""
    return io.open(path, 'ab', buffering=0, opener=_append_shared if IS_WINDOWS else _append)


def _append(name, flags):
    return os.open(name, flags, 0o600)


_APPEND, _SHARE_ALL, _OPEN_ALWAYS, _NORMAL = 0x100084, 7, 4, 0x80  # FILE_APPEND_DATA, FILE_READ_ATTRIBUTES, SYNCHRONIZE


def _append_shared(name, flags):
    """Two programs that write to one file do not write over each other: Windows itself looks for the end."""
    winapi, msvcrt = optional_import('_winapi'), optional_import('msvcrt')
    try:
        handle = winapi.CreateFile(name, _APPEND, _SHARE_ALL, 0, _OPEN_ALWAYS, _NORMAL, 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name, error.winerror)
    return msvcrt.open_osfhandle(handle, flags)


def others_can_read(path):
    """Whether accounts of this machine beside the owner's may. Not told on Windows, where the folder decides."""
    return not IS_WINDOWS and bool(os.stat(path).st_mode & 0o077)


def sync_directory(path):
    """A file's new name is on disk when this returns. Windows keeps names by itself."""
    if not IS_WINDOWS:
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def mouse_pauses_nothing(kernel32=None):
    """On Windows a click into the console's window holds up whatever prints (QuickEdit): not while this lasts."""
    if IS_WINDOWS and kernel32 is None:
        kernel32 = importlib.import_module('ctypes').WinDLL('kernel32')
    with _console_input(kernel32) as handle:
        before = None if handle is None else _console_mode(kernel32, handle)
        if before is not None:
            kernel32.SetConsoleMode(handle, (before | _EXTENDED_FLAGS) & ~_QUICK_EDIT)
        try:
            yield
        finally:
            if before is not None:
                kernel32.SetConsoleMode(handle, before | _EXTENDED_FLAGS)


_QUICK_EDIT, _EXTENDED_FLAGS = 0x40, 0x80  # of SetConsoleMode; the first is heeded only together with the second
_READ_WRITE, _SHARED, _OPEN_EXISTING = 0xC0000000, 3, 3


@contextlib.contextmanager
def _console_input(kernel32):
    """A handle of the console's input, wherever stdin comes from; None where there is no console."""
    if kernel32 is None:
        yield None
        return
    ctypes = importlib.import_module('ctypes')
    kernel32.CreateFileW.restype = ctypes.c_void_p
    handle = kernel32.CreateFileW('CONIN$', _READ_WRITE, _SHARED, None, _OPEN_EXISTING, 0, None)
    if handle in (None, ctypes.c_void_p(-1).value):
        yield None
        return
    try:
        yield ctypes.c_void_p(handle)
    finally:
        kernel32.CloseHandle(ctypes.c_void_p(handle))


def _console_mode(kernel32, handle):
    ctypes = importlib.import_module('ctypes')
    mode = ctypes.c_uint32()
    return mode.value if kernel32.GetConsoleMode(handle, ctypes.byref(mode)) else None


@contextlib.contextmanager
def deaf_children():
    """Processes that begin meanwhile do not hear Ctrl-C until they are hearing(): one that starts up dies of it loudly.

    On POSIX one that comes meanwhile is heard afterwards, by them and here. Windows loses it here.
    """
    if IS_WINDOWS:
        _ignore_ctrl_c(True)
    else:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        if IS_WINDOWS:
            _ignore_ctrl_c(False)
        else:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def hearing():
    """In the main thread of a deaf child: Ctrl-C is a KeyboardInterrupt here, and nothing from the end of it on."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if IS_WINDOWS:
            _ignore_ctrl_c(False)
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # what came meanwhile is raised here
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ignore_ctrl_c(ignored):
    """Of this process and those that it begins meanwhile."""
    importlib.import_module('ctypes').WinDLL('kernel32').SetConsoleCtrlHandler(None, ignored)


def pool_size(jobs):
    """Processes for so many jobs. On Windows a pool of more than 61 cannot be waited for."""
    return max(1, min(jobs, os.cpu_count() or 1, 61))


def let_dates_be_chinese():
    """strftime('%Y年') works on a Chinese Windows before Python 3.8 too, whose C library stands at the locale 'C' there
    and takes no such pattern.
    """
    try:
        date(2000, 1, 1).strftime('年')
    except UnicodeEncodeError:
        locale.setlocale(locale.LC_CTYPE, '')


def autostart_kind():
    """What starts a program with its owner's session here: 'task' of Windows, 'unit' of systemd; '' of others."""
    return 'task' if IS_WINDOWS else 'unit' if sys.platform.startswith('linux') else ''


def python_without_window():
    """This Python; on Windows its twin that opens no window, which somebody would close, if it is there."""
    twin = re.sub(r'python(\.exe)?$', r'pythonw\1', sys.executable, flags=re.IGNORECASE)
    return twin if IS_WINDOWS and os.path.isfile(twin) else sys.executable


def system_program(name):
    """[a program of the system]; on Windows not by its name alone, which the current folder could have as well."""
    if not IS_WINDOWS:
        return [name]
    return [os.path.join(os.environ.get('SystemRoot', r'C:\Windows'), 'System32', name + '.exe')]


def windows_user():
    """DOMAIN\\name of whoever runs this, as the system's tools write it; '' where Windows does not tell."""
    return '\\'.join(filter(None, [os.environ.get('USERDOMAIN'), os.environ.get('USERNAME')]))


def program_text(data, kernel32=None):
    """What a program of the system printed: on Windows in the code page of the console, or of the machine."""
    if IS_WINDOWS and kernel32 is None:
        kernel32 = importlib.import_module('ctypes').WinDLL('kernel32')
    page = kernel32 and (kernel32.GetConsoleOutputCP() or kernel32.GetOEMCP())
    try:
        return data.decode(_CODE_PAGES.get(page) or 'cp%d' % page, 'backslashreplace')
    except LookupError:
        return data.decode('utf-8', 'backslashreplace')


_CODE_PAGES = {None: 'utf-8', 65001: 'utf-8', 54936: 'gb18030'}  # the others are cp936 and the like


# Of a console's events those after which Windows ends the process: as soon as the last handler returns, and 5 s later.
_CONSOLE_ENDS = {2: '窗口被关闭', 5: '用户注销', 6: '系统关机'}
CLOSING_S = 4.0
_console_handlers = []  # Windows calls them as long as the process lives


def when_console_ends(tell, kernel32=None):
    """tell(reason), in a thread of Windows, before it ends this process; which has CLOSING_S from then to do so itself.

    Nobody is waited for and no lock is taken, so nothing can wait for the one who waits here. A handler is never taken
    back: that would wait for one that runs.
    """
    if IS_WINDOWS and kernel32 is None:
        kernel32 = importlib.import_module('ctypes').WinDLL('kernel32')
    if kernel32 is not None:
        _console_handlers.append(_console_handler(tell, kernel32))
        kernel32.SetConsoleCtrlHandler(_console_handlers[-1], 1)


def _console_handler(tell, kernel32):
    ctypes = importlib.import_module('ctypes')

    def handle(event):
        if event not in _CONSOLE_ENDS:
            return 0
        tell(_CONSOLE_ENDS[event])
        kernel32.Sleep(int(CLOSING_S * 1000))
        return 1
    return getattr(ctypes, 'WINFUNCTYPE', ctypes.CFUNCTYPE)(ctypes.c_int, ctypes.c_uint32)(handle)


SIGNAL_NAMES = ('SIGINT', 'SIGTERM', 'SIGBREAK', 'SIGHUP')


def stop_signals():
    """Names of the signals that end a program: of the keyboard, of a service manager, of a window that is closed."""
    names = [name for name in SIGNAL_NAMES if hasattr(signal, name)]
    return [name for name in names if name != 'SIGHUP' or signal.getsignal(signal.SIGHUP) == signal.SIG_DFL]  # nohup


# ======================================================================================================
# 2. TOOLS - threads and queues: pools, mailboxes, signals, lines for a console or a file
# ======================================================================================================
class JobThreads:
    """Daemon threads made as needed, at most `limit`, that take jobs from one queue.

    To override: _carry_out(job), in a worker; with the lock held _next_job(), the queued job whose turn it is, and
    _taken(job), when a worker takes it. `_changed` guards everything. DRAIN: whether jobs still queued are carried out
    after closing.
    """

    DRAIN = True

    def __init__(self, name, limit):
        self.name, self.limit = name, limit
        self._changed = threading.Condition()
        self._jobs, self._threads, self._idle, self._closed = deque(), [], 0, False

    def _carry_out(self, job):
        raise NotImplementedError

    def _next_job(self):
        return self._jobs[0] if self._jobs else None

    def _taken(self, job):
        """Nothing more happens here."""

    def _enqueue(self, job):
        """With the lock held."""
        self._jobs.append(job)
        if self._idle < len(self._jobs) and len(self._threads) < self.limit:
            self._start_thread()
        self._changed.notify()

    def _start_thread(self):
        thread = threading.Thread(target=self._run, name='%s-%d' % (self.name, len(self._threads) + 1), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self):
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(self._has_turn)
                self._idle -= 1
                if not self._jobs or (self._closed and not self.DRAIN):
                    return
                job = self._next_job()
                self._jobs.remove(job)
                self._taken(job)
            self._carry_out(job)

    def _has_turn(self):
        return self._next_job() is not None or (self._closed and not (self.DRAIN and self._jobs))

    def _end(self, timeout_s):
        """No more jobs; whether every thread has ended in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            wait_for_thread(thread, max(0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


class Mailbox:
    """A queue and the thread that empties it into handle(items): a deque of all that came since, batch after batch.

    handle guards itself: what it raises ends the thread. What was put in before close() is still handled.
    pause_s: after a batch the next one gathers for this long, so that many small ones cost less.
    """

    def __init__(self, name, handle, pause_s=0):
        self._handle, self._pause_s, self._changed = handle, pause_s, threading.Condition()
        self._items, self._closing = deque(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def closed(self):
        return self._closing.is_set()

    def start(self):
        self._thread.start()

    def put(self, *item):
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def close(self):
        with self._changed:
            self._closing.set()
            self._changed.notify()
        if self._thread.ident is not None:
            wait_for_thread(self._thread)

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self.closed)
                if not self._items:
                    return
                items, self._items = self._items, deque()
            self._handle(items)
            if self._pause_s:
                self._closing.wait(self._pause_s)


class LineWriter:
    """Lines for one place that may be slow, full or stopped, written by a thread of its own: put() never waits for it.

    sink(data): takes some of the bytes and says how many; it may block, say None for not now, or raise, after
    which the same is tried again: a disk has room again one day. One that will never take anything more raises
    BrokenPipeError.
    What comes while `limit` bytes wait is dropped and counted: told(count) is the text that takes the place of the gap.
    troubled(error): the sink begins to fail; once until it works again.
    """

    LIMIT, BATCH, OVERHEAD = 4 * 1024 * 1024, 65536, 64  # bytes; the last: what a line costs beside its own
    RETRY_S = 1.0
    PATIENCE_S, CLOSE_S = 1.0, 5.0  # close() waits while something is taken, at most so long

    def __init__(self, name, sink, told, troubled=lambda error: None, limit=None):
        self._name, self._sink, self._told, self._troubled = name, sink, told, troubled
        self._limit = self.LIMIT if limit is None else limit
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._parts, self._size, self._lost, self._is_full = deque(), 0, 0, False
        self._thread, self._taken, self._gone, self._process = None, 0, False, os.getpid()

    def _renew(self):
        """After a fork: the thread is the parent's, as is what waits, and the lock may have been held by one of its."""
        self._changed, self._closing, self._process = threading.Condition(), threading.Event(), os.getpid()
        self._parts, self._size, self._lost, self._thread = deque(), 0, 0, None

    def put(self, data):
        """Bytes of whole lines, as a rule."""
        if self._process != os.getpid():
            self._renew()
        with self._changed:
            if self._gone or self._closing.is_set() or not data:
                return
            self._is_full = self._size > (self._limit // 2 if self._is_full else self._limit)
            if self._is_full:
                self._lost += data.count(b'\n') or 1
                return
            self._tell_loss()
            self._append(data)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def close(self):
        """Writes what waits, unless nothing is taken: who ends a program does not wait for a stopped terminal."""
        if self._process != os.getpid():
            self._renew()
        with self._changed:
            if self._closing.is_set():
                return
            self._closing.set()
            self._changed.notify()
        deadline, taken = time.monotonic() + self.CLOSE_S, -1
        while self._thread is not None and self._taken != taken and time.monotonic() < deadline:
            taken = self._taken
            wait_for_thread(self._thread, self.PATIENCE_S)

    def _append(self, data):
        self._parts.append(data)
        self._size += len(data) + self.OVERHEAD

    def _tell_loss(self):
        """With the lock held, where there is room again."""
        if self._lost:
            self._append(self._told(self._lost).encode('utf-8', 'backslashreplace') + b'\n')
            self._lost = 0

    def _run(self):
        while True:
            batch = self._next_batch()
            if not batch:
                return
            self._write(batch)

    def _next_batch(self):
        """The next lines; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._parts or self._lost or self._gone or self._closing.is_set())
            if not self._parts:
                self._tell_loss()
            parts, size = [], 0
            while self._parts and size < self.BATCH:
                parts.append(self._parts.popleft())
                size += len(parts[-1])
            self._size -= size + len(parts) * self.OVERHEAD
            return b''.join(parts)

    def _write(self, batch):
        view, fails = memoryview(batch), False
        while view:
            is_last = self._closing.is_set()
            try:
                taken, fails = self._sink(view), False
            except Exception as error:
                if isinstance(error, BrokenPipeError):
                    return self._end()
                taken, fails = None, self._note_trouble(error, fails)
            self._taken += taken or 0
            view = view[taken or 0:]
            if not taken and is_last:
                return self._end()
            if not taken:
                self._closing.wait(self.RETRY_S if fails else self.RETRY_S / 20)

    def _note_trouble(self, error, is_known):
        if not is_known:
            self._troubled(error)
        return True

    def _end(self):
        """Nothing will be taken any more."""
        with self._changed:
            self._gone, self._size, self._lost = True, 0, 0
            self._parts.clear()


class WriterHandler(logging.Handler):
    """Log lines are made where they come from and written by the LineWriter's thread."""

    def __init__(self, writer):
        super().__init__()
        self.writer = writer

    def emit(self, record):
        try:
            self.writer.put(self.format(record).encode('utf-8', 'backslashreplace') + b'\n')
        except Exception:
            self.handleError(record)

    def close(self):
        self.writer.close()
        super().close()


class LogFile:
    """A sink that appends to a file, which beyond `limit` bytes moves to path.1, the older ones to .2 up to .count.

    Where one of them cannot be moved (a program that reads it forbids that on Windows) all of them stay, the file goes
    on growing, and it is tried again after as much as an eighth of that. What somebody else has moved away or removed
    is begun anew. limit None: it never moves. Raises OSError where it cannot be opened.
    """

    def __init__(self, path, limit=None, count=5):
        self.path, self.limit, self.count, self._extra = path, limit, count, 0
        self._aside = path + '.moving'
        self._is_left = os.path.exists(self._aside)  # by one that ended half way
        self._open()

    def _open(self):
        """A new one is for its owner alone."""
        self._file = open_appending(self.path)
        self._size = os.fstat(self._file.fileno()).st_size
        self._is_file = os.path.isfile(self.path)  # a device is none

    def __call__(self, data):
        if self._file.closed:  # it could not be opened again where the last one was moved
            self._open()
        if self._is_file:
            self._look()
        if self._is_file and self._is_full(len(data)):
            self._move()
        taken = self._file.write(data)
        self._size += taken or 0
        return taken

    def _look(self):
        """Another program that writes to the same file moves it, too."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return self._begin_anew()
        if status.st_ino != os.fstat(self._file.fileno()).st_ino:
            return self._begin_anew()
        self._size = status.st_size

    def _begin_anew(self):
        self._file.close()
        self._open()
        self._extra = 0

    def _is_full(self, more):
        return self.limit is not None and self._size and self._size + more > self.limit + self._extra

    def _move(self):
        """The file itself first: where it has to stay, no older one is touched."""
        mode = os.fstat(self._file.fileno()).st_mode
        self._file.close()
        try:
            self._put_aside()
            self._shift()
            self._extra, self._is_left = 0, False
        except OSError:
            self._extra += self.limit // 8
        self._open()
        os.chmod(self.path, mode & 0o777)

    def _put_aside(self):
        """What is there already is brought to its end first; if it is not ours, its owner does that just now."""
        if not os.path.exists(self._aside):
            os.rename(self.path, self._aside)
        elif not self._is_left:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._aside)

    def _shift(self):
        """All of them by one, up to the first gap; all go back where one cannot."""
        names = [self._aside] + ['%s.%d' % (self.path, number) for number in range(1, self.count + 2)]
        gap = next((number for number in range(1, self.count + 1) if not os.path.exists(names[number])), self.count + 1)
        moved = []
        try:
            for pair in [(names[number - 1], names[number]) for number in range(gap, 0, -1)]:
                os.replace(*pair)
                moved.append(pair)
        except OSError:
            self._put_back(moved)
            raise
        if gap > self.count:
            os.remove(names[-1])

    def _put_back(self, moved):
        self._is_left = True
        for source, target in reversed(moved):
            os.replace(target, source)
        if not os.path.exists(self.path):
            os.replace(self._aside, self.path)
            self._is_left = False

    def close(self):
        self._file.close()


class DayFiles:
    """A sink that appends to a file for each Beijing day, stem-20240105.log. None is moved or removed."""

    def __init__(self, stem):
        self._stem, self._day, self._file = stem, None, None

    def __call__(self, data):
        day = log_time(time.time())[:10].replace('-', '')
        if day != self._day:
            self.close()
            self._file, self._day = LogFile('%s-%s.log' % (self._stem, day)), day
        return self._file(data)

    def close(self):
        if self._file is not None:
            self._file.close()


class WriterStream(io.RawIOBase):
    """What a text stream writes goes to a LineWriter. place: what that one writes to, where it is a stream itself."""

    def __init__(self, writer, place=None):
        self._writer, self._place, self._process = writer, place, os.getpid()

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        if self._place is not None and self._process != os.getpid():  # a child may end before any thread has written
            self._write_through(memoryview(data))
        else:
            self._writer.put(data)
        return len(data)

    def _write_through(self, view):
        while view:
            view = view[self._place.write(view) or 0:]

    def isatty(self):
        return self._place is not None and self._place.isatty()

    def fileno(self):
        return super().fileno() if self._place is None else self._place.fileno()


def lost_lines(count):
    """The line of a console or a log file in the place of those that were dropped."""
    return '%s WARNING 丢了 %d 行：写得太慢，或暂时写不下' % (log_time(time.time()), count)


@contextlib.contextmanager
def console_beside():
    """While it lasts, nothing that prints waits for the terminal or pipe behind stdout and stderr.

    What is not the console itself (a notebook's or a test's) stays as it is.
    """
    kept, places = [], []
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        raw = getattr(stream, 'buffer', None)
        raw = getattr(raw, 'raw', raw)
        if isinstance(raw, io.RawIOBase):
            stream.flush()
            beside = io.TextIOWrapper(WriterStream(_writer_for(raw, name, places), raw), stream.encoding,
                                      'backslashreplace', line_buffering=True)
            kept.append((name, stream, beside))
            setattr(sys, name, beside)
    try:
        yield
    finally:
        for name, stream, beside in kept:
            beside.flush()
            setattr(sys, name, stream)
        for _, writer in places:
            writer.close()


def _writer_for(raw, name, places):
    """One for both, where both are the same terminal or file: its lines keep their order."""
    for other, writer in places:
        if _is_same_place(raw, other):
            return writer
    places.append((raw, LineWriter('console-' + name, written_to(raw), lost_lines)))
    return places[-1][1]


def _is_same_place(one, other):
    """Windows does not number its pipes."""
    if one.isatty() and other.isatty():
        return True
    mine, others = os.fstat(one.fileno()), os.fstat(other.fileno())
    return mine.st_ino != 0 and (mine.st_dev, mine.st_ino) == (others.st_dev, others.st_ino)


class StopSignal:
    """What ends a program from outside, as something to wait for. reason: what was given, None while nothing was.

    A handler runs between any two steps of the main thread, so it may take no lock: it sets a flag, and the
    interpreter itself writes to the socket on which wait() sleeps. Windows wakes up from that as well.
    """

    SPOKEN = {'SIGINT': 'Ctrl-C', 'SIGBREAK': 'Ctrl-Break', 'SIGHUP': 'SIGHUP，终端已关闭'}

    def __init__(self):
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self.reason = None

    def install(self):
        """In the main thread."""
        signal.set_wakeup_fd(self._write.fileno())
        for name in stop_signals():
            signal.signal(getattr(signal, name), self._handle)
        when_console_ends(self._end)
        return self

    def _end(self, reason):
        """In a thread of Windows."""
        self.reason = self.reason or reason
        with contextlib.suppress(BlockingIOError):  # whoever waits is awake as long as it is full
            self._write.send(b'\0')

    def _handle(self, number, frame):
        name = next(name for name in SIGNAL_NAMES if getattr(signal, name, None) == number)
        self.reason = self.reason or self.SPOKEN.get(name, name)

    def wait(self, timeout_s=None):
        """Whether it was given in time. In any thread."""
        return self.reason is not None or wait_for_socket(self._read, timeout_s) or self.reason is not None


class Interrupts:
    """Ctrl-C in a `with`: from hold() on the first one is only `kept`, the next one interrupts as ever.

    Outside the main thread, and where somebody else has taken Ctrl-C, all stays as it is.
    """

    def __init__(self):
        self.kept, self._held, self._taken = False, False, False

    def hold(self):
        """What comes now must not be cut short."""
        self._held = True

    def __enter__(self):
        is_main = threading.current_thread() is threading.main_thread()
        self._taken = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._taken:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number, frame):
        """Between any two steps of the main thread: it may neither print nor wait."""
        if self.kept or not self._held:
            raise KeyboardInterrupt
        self.kept = True

    def __exit__(self, *error):
        if self._taken:
            signal.signal(signal.SIGINT, signal.default_int_handler)


# ======================================================================================================
# 3. ERRORS - one tree; a stable English code, a Chinese message, a remedy
# ======================================================================================================
class BulletError(RuntimeError):
    """Base of every error of this toolkit; a RuntimeError, which is what programs for other remote brokers catch.

    code:        stable English identifier, the same on the wire and in Python.
    message:     what was wrong and what was expected, in Chinese.
    hint:        what to do about it, in Chinese; may be empty.
    retryable:   whether the same call may succeed later without any change.
    broker_called: False where the broker certainly saw nothing, None where that is not the question.
    details:     further fields of the error frame (`retry_after_s`, `idempotency_key`, ...). `lasting`, of
                 DataUnavailable: the source has none of it at all, whatever span is asked for.
    """

    code = 'REQUEST_FAILED'
    retryable = False
    broker_called = None

    def __init__(self, message, hint='', **details):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.broker_called = details.pop('broker_called', self.broker_called)
        self.retryable = details.pop('retryable', self.retryable)
        self.details = details

    def __str__(self):
        return '[%s] %s%s' % (self.code, self.message, '（%s）' % self.hint if self.hint else '')

    def __reduce__(self):
        return _revive_error, (type(self), self.to_wire())

    def to_wire(self):
        """The fields of an error frame, without `type` and `id`."""
        fields = dict(self.details, code=self.code, message=self.message, retryable=self.retryable)
        if self.hint:
            fields['hint'] = self.hint
        if self.broker_called is not None:
            fields['broker_called'] = self.broker_called
        return fields


def _error(name, code, doc, base=BulletError, **attributes):
    return type(name, (base,), dict(attributes, code=code, __doc__=doc, __module__=__name__))


ConfigError = _error('ConfigError', 'CONFIG_INVALID', 'An option, a file or an environment variable is wrong.')
BadRequest = _error('BadRequest', 'BAD_REQUEST', 'The request has a wrong shape or value; nothing was done.',
                    broker_called=False)
UnknownAction = _error('UnknownAction', 'UNKNOWN_ACTION', 'The server has no such action.', BadRequest)
SecurityNotFound = _error('SecurityNotFound', 'SECURITY_NOT_FOUND', 'No such security.', BadRequest)
AccountNotFound = _error('AccountNotFound', 'ACCOUNT_NOT_FOUND', 'No such account or sub-account.', BadRequest)
OrderNotFound = _error('OrderNotFound', 'ORDER_NOT_FOUND', 'No such order in this account.', BadRequest)
NotSupported = _error('NotSupported', 'NOT_SUPPORTED', 'This version or adapter cannot do that.',
                      broker_called=False)
SubscriptionLimit = _error('SubscriptionLimit', 'SUBSCRIPTION_LIMIT', 'More subscriptions than a session may have.',
                           BadRequest)
ServiceDisabled = _error('ServiceDisabled', 'SERVICE_DISABLED', 'Switched off on this server.', NotSupported)
DataUnavailable = _error('DataUnavailable', 'DATA_UNAVAILABLE', 'The data source has no such data.')
OrderRejected = _error('OrderRejected', 'ORDER_REJECTED', 'The order was refused and is not at the broker.')
IdempotencyConflict = _error('IdempotencyConflict', 'IDEMPOTENCY_CONFLICT',
                             'The key was used for another order.', BadRequest)
QmtUnavailable = _error('QmtUnavailable', 'QMT_UNAVAILABLE', 'The terminal cannot be reached now.', retryable=True)
ServerBusy = _error('ServerBusy', 'SERVER_BUSY', 'A limit of the server is reached; nothing was done.',
                    retryable=True, broker_called=False)
AuthFailed = _error('AuthFailed', 'AUTH_FAILED', 'The token is wrong.')
AuthThrottled = _error('AuthThrottled', 'AUTH_THROTTLED', 'Too many failed logins from this address.', AuthFailed,
                       retryable=True)
ProtocolError = _error('ProtocolError', 'PROTOCOL_ERROR', 'The peer sent what the protocol does not allow.')
FrameTooLarge = _error('FrameTooLarge', 'FRAME_TOO_LARGE', 'A frame is above the limit.', ProtocolError)
ConnectionLost = _error('ConnectionLost', 'CONNECTION_LOST', 'The connection failed or was closed.', retryable=True)
TlsError = _error('TlsError', 'TLS_FAILED', 'The TLS handshake failed.', ConnectionLost, retryable=False)
RequestTimeout = _error('RequestTimeout', 'REQUEST_TIMEOUT', 'No answer in time.', retryable=True)
IdempotencyCacheFull = _error('IdempotencyCacheFull', 'IDEMPOTENCY_CACHE_FULL',
                              'A server of another kind can remember no more keys; nothing was done.', ServerBusy,
                              retryable=False)
JournalError = _error('JournalError', 'JOURNAL_FAILED', 'The journal cannot be written; nothing was sent.',
                      broker_called=False)
OrderTagLost = _error('OrderTagLost', 'ORDER_TAG_LOST', 'Remarks, which mark orders as ours, do not come back whole; '
                      'nothing more is sent to that account.', broker_called=False)
InternalError = _error('InternalError', 'INTERNAL_ERROR', 'An unexpected failure; the log has the details.')


class OrderStateUnknown(RequestTimeout):
    """An order or cancel may or may not have reached the broker. `idempotency_key` says which one.

    Never send it again under another key; ask by the key instead. The code is REQUEST_TIMEOUT, one of the
    two that legacy clients understand as 'may have reached the broker'.
    answered: of an adapter's submit: whether the broker has answered, if only with something odd; what nobody has
    answered may be on its way for long.
    """

    retryable = False
    answered = False

    @property
    def idempotency_key(self):
        return self.details.get('idempotency_key')


def _error_classes(base):
    yield base
    for child in base.__subclasses__():
        yield from _error_classes(child)


ERRORS_BY_CODE = {cls.code: cls for cls in _error_classes(BulletError) if cls is not OrderStateUnknown}


_NO_DETAILS = ('type', 'id', 'code', 'message', 'hint', 'self')


def error_from_wire(frame):
    """An error frame -> the exception of that code; an unknown code keeps its name."""
    details = {key: value for key, value in frame.items() if key not in _NO_DETAILS}
    code = str(frame.get('code') or 'REQUEST_FAILED')
    unknown = details.get('idempotency_key') and code == RequestTimeout.code
    cls = OrderStateUnknown if unknown else ERRORS_BY_CODE.get(code, BulletError)
    error = cls(str(frame.get('message') or code), str(frame.get('hint') or ''), **details)
    error.code = code
    return error


def _revive_error(cls, fields):
    error = error_from_wire(fields)
    return error if type(error) is cls else cls(error.message, error.hint, **error.details)


# -- checks of values: each returns the plain value or raises BadRequest naming the field ------------------
def check_number(value, name, minimum=None, maximum=1e12):
    """A finite real number; bool, text, NaN and infinities are refused."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
        raise BadRequest('%s 应为数字，收到 %s' % (name, brief(value)))
    try:
        number = float(value)
    except (OverflowError, ValueError):  # too large, or Decimal's signalling NaN
        number = math.inf
    if not math.isfinite(number) or abs(number) > maximum or (minimum is not None and number < minimum):
        least = -maximum if minimum is None else minimum
        raise BadRequest('%s 超出范围：%s' % (name, brief(value)), '应为 %.15g 到 %.15g 之间的有限数' % (least, maximum))
    return number


def check_whole(value, name, minimum=0, maximum=10 ** 9):
    """A whole number; 100.0 is one, 100.5, '100' and True are not."""
    number = check_number(value, name, minimum, maximum)
    if number != int(number):
        raise BadRequest('%s 应为整数，收到 %s' % (name, brief(value)))
    return int(number)


def check_text(value, name, maximum=200):
    if not isinstance(value, str) or not value.strip() or len(value) > maximum or not value.isprintable():
        raise BadRequest('%s 应为 1 到 %d 个可见字符的文本，收到 %s' % (name, maximum, brief(value)))
    return value


def check_choice(value, name, allowed):
    if not isinstance(value, str) or value not in allowed:
        raise BadRequest('%s 不认识：%s' % (name, brief(value)), '可用的值：%s' % '、'.join(sorted(allowed)))
    return value


def check_flag(value, name):
    if not isinstance(value, bool):
        raise BadRequest('%s 应为 true 或 false，收到 %s' % (name, brief(value)))
    return value


def check_moment(value, name):
    """None stays None; otherwise (naive Beijing datetime, whether it had a clock part)."""
    if value is None:
        return None
    try:
        return parse_moment(value)
    except (ValueError, OverflowError):
        raise BadRequest('%s 不是日期或时间：%s' % (name, brief(value)), '例如 2024-01-05 或 2024-01-05 09:31:00')


def check_span(start_ms, end_ms):
    """Refuses a span of time that ends before it starts: no data would look like a fact. None: open."""
    if start_ms is not None and end_ms is not None and start_ms > end_ms:
        raise BadRequest('开始 %s 晚于结束 %s' % tuple(iso_ms(ms).replace('T', ' ') for ms in (start_ms, end_ms)),
                         '核对 start_date 与 end_date：没有给出的 start_date 是 2015-01-01，没有钟点的日期在分钟行情里是 00:00')


def brief(value, maximum=60):
    """A short, harmless repr for error messages."""
    text = repr(value) if not isinstance(value, (list, dict)) or len(value) < 20 else type(value).__name__
    return printable(text if len(text) <= maximum else text[:maximum] + '...')


# -- strategies at work in this process ---------------------------------------------------------------------------
class RunsAtWork:
    """The backtests and live runs of this process, and of the one that started it.

    While there is one, an order placed by another way than the run's own would pass its limits, its dry run or its
    being a backtest: it is refused. for_good: whether that lasts until the process ends, whatever a strategy leaves
    behind. A child process knows of it by MARK in its environment.
    """

    MARK, WORDS = 'BULLET_QMT_RUN', {'backtest': '回测', 'live': '实盘'}

    def __init__(self, environ=os.environ):
        self._lock, self._environ, self.for_good = threading.Lock(), environ, False
        inherited = environ.get(self.MARK)
        self._is_child = inherited is not None  # of a strategy: it has no orders of its own either
        self._runs = [(self.WORDS.get(inherited, '回测'), None)] if self._is_child else []

    @contextlib.contextmanager
    def added(self, kind, connection=None):
        """kind: '回测' or '实盘'; connection: the one whose writes are this run's own."""
        run = kind, connection
        with self._lock:
            self._runs = self._runs + [run]
            self._mark()
        try:
            yield
        finally:
            with self._lock:
                if len(self._runs) > 1 or not self.for_good:
                    self._runs = [other for other in self._runs if other is not run]
                self._mark()

    def _mark(self):
        words = [word for word, kind in self.WORDS.items() if any(kind == run[0] for run in self._runs)]
        self._environ.pop(self.MARK, None)
        self._environ.update({self.MARK: word for word in words[:1]})

    def refuse(self, but=None, connection=None):
        """Raises ConfigError while a run is at work, unless all are of the kind `but`, or the connection is its own."""
        kinds = [kind for kind, _ in self._runs if kind != but]
        if kinds and (self._is_child or not any(own is not None and own is connection for _, own in self._runs)):
            raise ConfigError(
                '策略正在%s，configure、bullet_qmt 和 jq_helper 的委托、撤单和账户函数不能用：委托归这次%s管，什么也没有发出' % (
                    kinds[0], kinds[0]),
                '删掉策略和它导入的模块里的 configure(...)、import bullet_qmt 和 from jq_helper import ...，直接用 order、'
                'cancel_order、context.portfolio（模块里写 from jqdata import *）；手工委托请在策略之外的进程里',
                broker_called=False)


# One for the process, however often and under whatever names this file is loaded.
RUNS = vars(sys).setdefault('_bullet_qmt_runs', RunsAtWork())


# ======================================================================================================
# 4. OPTIONS - each declared once: flag, environment name, default, parser, help
# ======================================================================================================
AccountSpec = namedtuple('AccountSpec', 'key account_id account_type data_path session_id auto_subscribe')
SubAccountSpec = namedtuple('SubAccountSpec', 'name account_key limit')
ACCOUNT_TYPES = ('stock', 'credit', 'future', 'future_option', 'stock_option', 'hugangtong', 'shengangtong')
_KEY = re.compile(r'[\w-]{1,64}')


class Option:
    """One setting. `flags` of a switch are (on, off); of a value, (name,). No flags: environment only.

    parse(text) -> value, raising ValueError with what was expected. `default` is text too, or None.
    """

    def __init__(self, name, env, default, parse, help, group, flags=None, metavar=None, secret=False):
        self.name, self.env, self.default, self.parse, self.help = name, env, default, parse, help
        self.group, self.metavar, self.secret = group, metavar, secret
        self.flags = ('--' + name.replace('_', '-'),) if flags is None else flags

    @property
    def is_switch(self):
        return self.parse is parse_bool


def parse_bool(text):
    word = text.strip().lower()
    if word in ('1', 'true', 'yes', 'on'):
        return True
    if word in ('0', 'false', 'no', 'off'):
        return False
    raise ValueError('应为 1/0、true/false、yes/no 或 on/off')


def parse_text(text):
    if not text.strip():
        raise ValueError('不能为空')
    return text.strip()


def parse_path(text):
    """Of a file of ours, or a folder with such."""
    return long_path(parse_folder(text))


def parse_folder(text):
    """A path as it is pasted, on Windows perhaps in quotes."""
    text = unquoted(parse_text(text))
    problem = path_problem(text)
    if problem:
        raise ValueError(problem)
    return file_name(text)


def one_of(*allowed):
    def parse(text):
        if text.strip() not in allowed:
            raise ValueError('应为 %s 之一' % '、'.join(allowed))
        return text.strip()
    return parse


def parse_data_source(text):
    """Where a backtest's bars come from: 'qmt-remote', 'stub' or 'csv:DIR'."""
    kind, _, directory = text.strip().partition(':')
    if kind not in ('qmt-remote', 'stub', 'csv') or bool(directory) != (kind == 'csv'):
        raise ValueError('应为 qmt-remote、stub 或 csv:目录')
    return kind if kind != 'csv' else 'csv:' + parse_path(directory)


def whole(minimum, maximum):
    def parse(text):
        if not re.fullmatch(r'\s*\d{1,12}\s*', text, re.ASCII) or not minimum <= int(text) <= maximum:
            raise ValueError('应为 %d 到 %d 的整数，只用数字' % (minimum, maximum))
        return int(text)
    return parse


def real(minimum, maximum):
    def parse(text):
        if not re.fullmatch(r'\s*\d{1,15}(\.\d+)?\s*', text, re.ASCII) or not minimum <= float(text) <= maximum:
            raise ValueError('应为 %.15g 到 %.15g 的数，写成普通小数，如 12.5' % (minimum, maximum))
        return float(text)
    return parse


def parse_host(text):
    if not re.fullmatch(r'[0-9A-Za-z.:_%-]{1,255}', text.strip()):
        raise ValueError('应为主机名或 IP 地址')
    return text.strip()


def parse_token(text):
    if not text.strip() or not text.isprintable():
        raise ValueError('应为非空的可见字符')
    return text.strip()


def parse_allowlist(text):
    """'127.0.0.1, 10.0.0.0/8, ::1' -> networks."""
    items = [item.strip() for item in text.split(',') if item.strip()]
    if text.strip() and not items:
        raise ValueError('没有地址；不限地址时整项留空')
    return tuple(_parse_network(item) for item in items)


def _parse_network(item):
    try:
        return plain_network(ipaddress.ip_network(item))
    except ValueError:
        raise ValueError('%s 不是地址或网段，例如 192.168.1.20、10.0.0.0/8、::1' % printable(item))


def parse_accounts(text):
    """'main=55001234:stock:C:\\Qmt\\userdata_mini,hedge=55004321' -> AccountSpecs, keys and ids unique."""
    specs = tuple(_parse_account(item) for item in re.split(r',(?=\s*[\w-]+\s*=)', text))
    _refuse_twice('账户', [spec.key for spec in specs])
    _refuse_twice('资金账号', [(spec.account_id, spec.account_type) for spec in specs])
    return specs


def _parse_account(item):
    key, equals, rest = item.strip().partition('=')
    account_id, kind, path = _split_account(rest.strip())
    if not equals or not _KEY.fullmatch(key.strip()) or not _KEY.fullmatch(account_id):
        raise ValueError('%s 应写成 名称=资金账号[:类型[:userdata 路径]]' % printable(item.strip()))
    return AccountSpec(key.strip(), account_id, parse_account_type(kind), path and parse_folder(path), None, True)


def _split_account(rest):
    """The colon after a drive letter belongs to the path, even where the type is left out."""
    account_id, _, tail = rest.partition(':')
    if re.match(r'"?(?:[A-Za-z]:?[\\/]|\\\\)', tail):
        return account_id.strip(), 'stock', tail.strip()
    kind, _, path = tail.partition(':')
    return account_id.strip(), kind.strip() or 'stock', path.strip() or None


def parse_account_type(text):
    kind = text.strip().lower()
    if kind not in ACCOUNT_TYPES:
        raise ValueError('账户类型 %s 不认识，应为 %s 之一' % (printable(kind), '、'.join(ACCOUNT_TYPES)))
    return kind


def parse_sub_accounts(text):
    """'research@main:limit=200000,qa@hedge' -> SubAccountSpecs; limit in yuan per order."""
    specs = tuple(_parse_sub_account(item.strip()) for item in text.split(',') if item.strip())
    _refuse_twice('子账户', [spec.name for spec in specs])
    return specs


def _parse_sub_account(item):
    match = re.fullmatch(r'([\w-]{1,64})@([\w-]{1,64})(?::limit=(\d{1,12}(?:\.\d+)?))?', item)
    if not match:
        raise ValueError('%s 应写成 名称@账户 或 名称@账户:limit=每笔金额上限(元)' % printable(item))
    limit = None if match.group(3) is None else float(match.group(3))
    if limit == 0:
        raise ValueError('%s 的 limit 应大于 0' % printable(item))
    return SubAccountSpec(match.group(1), match.group(2), limit)


def _refuse_twice(what, names):
    for name in names:
        if names.count(name) > 1:
            raise ValueError('%s %s 出现了两次' % (what, name))


OPTIONS = [
    # -- server ---------------------------------------------------------------------------------------
    Option('server_type', 'QMT_SERVER_TYPE', 'qmt', one_of('qmt', 'stub'),
           '后端：qmt 接本机 QMT/MiniQMT 终端，stub 是自带的模拟交易所', 'server', metavar='qmt|stub'),
    Option('listen', 'QMT_SERVER_LISTEN', '127.0.0.1', parse_host, '监听地址', 'server', metavar='ADDRESS'),
    Option('port', 'QMT_SERVER_PORT', '58620', whole(0, 65535), '端口（服务端监听、客户端连接；0 = 由系统选择）',
           'server client', metavar='PORT'),
    Option('token', 'QMT_SERVER_TOKEN', None, parse_token,
           '口令，至少 16 个字符；服务端没有给出时随机生成并显示一次', 'server client', metavar='TOKEN', secret=True),
    Option('token_file', 'QMT_SERVER_TOKEN_FILE', None, parse_path, '口令文件（只有一行）；命令行上的口令本机别人看得到，文件里的看不到',
           'server client', metavar='FILE'),
    Option('enable_data', 'QMT_SERVER_ENABLE_DATA', '1', parse_bool, '是否提供行情服务', 'server',
           ('--enable-data', '--disable-data')),
    Option('enable_broker', 'QMT_SERVER_ENABLE_BROKER', '1', parse_bool, '是否提供交易服务', 'server',
           ('--enable-broker', '--disable-broker')),
    Option('allowlist', 'QMT_SERVER_ALLOWLIST', '', parse_allowlist,
           '允许连接的地址与网段（IPv4/IPv6，逗号分隔）；空 = 不限', 'server', metavar='NET,...'),
    Option('tls_cert', 'QMT_SERVER_TLS_CERT', None, parse_path,
           'TLS 证书（PEM）：服务端的证书链；客户端用它核对服务端', 'server client', metavar='FILE'),
    Option('tls_key', 'QMT_SERVER_TLS_KEY', None, parse_path, 'TLS 私钥（PEM），与证书一起给出', 'server',
           metavar='FILE'),
    Option('max_connections', 'QMT_SERVER_MAX_CONNECTIONS', '64', whole(1, 4096), '同时登录的连接数上限',
           'server', metavar='N'),
    Option('max_subscriptions', 'QMT_SERVER_MAX_SUBSCRIPTIONS', '200', whole(1, 100000), '每个会话的订阅数上限',
           'server', metavar='N'),
    Option('allow_full_market', 'QMT_SERVER_ALLOW_FULL_MARKET', '0', parse_bool, '是否允许订阅全市场的行情推送', 'server',
           ('--allow-full-market', '--no-full-market')),
    Option('log_file', 'QMT_SERVER_LOG_FILE', None, parse_path, '日志文件（10 MB 一个，保留 5 个）', 'server',
           metavar='FILE'),
    Option('access_log', 'QMT_SERVER_ACCESS_LOG', '1', parse_bool, '每个请求记一行日志；委托和撤单无论如何都记，写明内容、结果与被拒绝的原因', 'server',
           ('--access-log', '--no-access-log')),
    Option('log_account', 'QMT_SERVER_LOG_ACCOUNT', '0', parse_bool, '客户端要求打印账户时，是否也写入日志', 'server',
           ('--log-account', '--no-log-account')),
    Option('request_timeout', 'QMT_SERVER_REQUEST_TIMEOUT', '60', real(1, 3600), '单个请求的最长处理时间（秒）', 'server',
           metavar='SECONDS'),
    Option('state', 'QMT_SERVER_STATE', None, parse_path, '委托日志（sqlite 文件）；qmt 默认在日志文件旁边，stub 默认只在内存', 'server',
           metavar='FILE'),
    Option('accounts', 'QMT_SERVER_ACCOUNTS', None, parse_accounts,
           '账户：名称=资金账号[:类型[:userdata 路径]]，逗号分隔', 'server', metavar='SPEC,...'),
    Option('sub_accounts', 'QMT_SERVER_SUB_ACCOUNTS', '', parse_sub_accounts,
           '子账户：名称@账户[:limit=每笔金额上限(元)]，逗号分隔', 'server', metavar='SPEC,...'),
    Option('account_id', 'QMT_ACCOUNT_ID', None, parse_text, '没有 --accounts 时账户 default 的资金账号', 'server', ()),
    Option('account_type', 'QMT_ACCOUNT_TYPE', 'stock', parse_account_type, '账户 default 的类型', 'server', ()),
    Option('data_path', 'QMT_DATA_PATH', None, parse_folder, '账户 default 的 userdata 或 userdata_mini 路径', 'server', ()),
    Option('session_id', 'QMT_SESSION_ID', None, whole(1, 2 ** 31 - 1), '账户 default 的 QMT 会话号', 'server', ()),
    Option('auto_subscribe', 'QMT_AUTO_SUBSCRIBE', '1', parse_bool, '账户 default 是否订阅回报', 'server', ()),
    Option('auto_download', 'QMT_SERVER_AUTO_DOWNLOAD', '1', parse_bool, 'qmt：本地缺少的历史行情先下载再回答', 'server',
           ('--auto-download', '--no-auto-download')),
    Option('quote_max_age', 'QMT_SERVER_QUOTE_MAX_AGE', '15', real(1, 3600), 'qmt：交易时段内超过这么多秒的行情标为 stale',
           'server', metavar='SECONDS'),
    # -- paper exchange -------------------------------------------------------------------------------
    Option('stub_data', 'QMT_STUB_DATA', None, parse_path,
           '模拟行情改用这个目录里的 代码_1d.csv、代码_1m.csv', 'stub', metavar='DIR'),
    Option('stub_cash', 'QMT_STUB_CASH', '1000000', real(0, 1e12), '模拟账户的初始资金（元）', 'stub', metavar='YUAN'),
    Option('stub_seed', 'QMT_STUB_SEED', '1', whole(0, 2 ** 31 - 1), '模拟行情的随机种子', 'stub', metavar='N'),
    Option('stub_tick_interval', 'QMT_STUB_TICK_INTERVAL', '3', real(0.01, 3600), '模拟行情推送间隔（秒）', 'stub',
           metavar='SECONDS'),
    Option('stub_clock', 'QMT_STUB_CLOCK', 'always', one_of('always', 'market'),
           '模拟市场的时间：always 任何时候都在交易，market 按真实交易时段', 'stub', metavar='always|market'),
    # -- client ---------------------------------------------------------------------------------------
    Option('host', 'QMT_SERVER_HOST', '127.0.0.1', parse_host, '服务端地址', 'client', metavar='HOST'),
    Option('account_key', 'QMT_SERVER_ACCOUNT_KEY', None, parse_text, '使用的账户', 'client', metavar='KEY'),
    Option('sub_account', 'QMT_SERVER_SUB_ACCOUNT', None, parse_text, '使用的子账户', 'client', metavar='NAME'),
    Option('rpc_timeout', 'QMT_SERVER_RPC_TIMEOUT', '60', real(0.1, 3600), '一次请求最多等待的时间（秒）', 'client',
           metavar='SECONDS'),
    Option('compress', 'QMT_SERVER_COMPRESS', 'auto', one_of('auto', 'always', 'never'),
           '行情是否压缩传送：auto 不在本机时压缩，always，never', 'client', metavar='WHEN'),
    Option('data_provider', 'DEFAULT_DATA_PROVIDER', 'qmt-remote', parse_data_source,
           '默认行情来源：qmt-remote，只用于回测的 stub 或 csv:目录', 'client', ()),
    Option('broker', 'DEFAULT_BROKER', 'qmt-remote', one_of('qmt-remote'), '默认交易通道', 'client', ()),
]


def ways(name):
    """How an option is given, whoever asks: 'port（命令行 --port，环境变量 QMT_SERVER_PORT）'."""
    option = next(option for option in OPTIONS if option.name == name)
    flags = '命令行 %s，' % '/'.join(option.flags) if option.flags else ''
    return '%s（%s环境变量 %s）' % (option.name, flags, option.env)


class Settings:
    """Parsed options as attributes, with `sources` (name -> where it came from) and `warnings` (lines)."""

    def __init__(self, values, sources, warnings=()):
        self.__dict__.update(values)
        self.sources, self.warnings = dict(sources), list(warnings)

    def replace(self, **changes):
        known = {name: value for name, value in vars(self).items() if name not in ('sources', 'warnings')}
        return Settings(dict(known, **changes), self.sources, self.warnings)


ACCOUNT_OPTIONS = ('account_key', 'sub_account')


def options_of(*groups):
    return [option for option in OPTIONS if set(groups) & set(option.group.split())]


def load_settings(groups, given=None, environ=None, dotenv='.env'):
    """Command line > file of --env-file or BT_ENV_FILE > process environment > ./.env > default.

    given:   {option name or 'env_file': text} from the command line. Raises ConfigError naming the item.
    """
    given = {name: text for name, text in (given or {}).items() if text is not None}
    environ = os.environ if environ is None else environ
    chosen = given.get('env_file') or environ.get('BT_ENV_FILE')
    layers = [('环境变量', environ), (dotenv, read_dotenv(dotenv, must_exist=False) if dotenv else {})]
    if chosen:
        chosen = env_file_path(chosen)
        layers.insert(0, (chosen, read_dotenv(chosen, must_exist=True)))
    found = [_find_value(option, given, layers) for option in options_of(*groups)]
    values = {option.name: _parse_option(option, text, source) for option, text, source in found}
    sources = {option.name: source for option, text, source in found}
    _take_token_file(values, sources, ['命令行'] + [name for name, _ in layers])
    _refuse_foreign_host(values, sources, dotenv)
    return Settings(values, sources, _misspelt(layers) + _open_secrets(layers, values.get('token_file')))


def env_file_path(text):
    """The file of --env-file or BT_ENV_FILE, its path read as that of any other option."""
    try:
        return parse_path(text)
    except ValueError as error:
        raise ConfigError('配置文件的路径 %s 无效：%s' % (brief(text), error), '检查 --env-file 或环境变量 BT_ENV_FILE')


def _take_token_file(values, sources, order):
    """The token that the file holds, unless one was given nearer to the command line."""
    path = values.get('token_file')
    if path is None:
        return
    here, there = (order.index(sources[name]) if sources[name] in order else len(order)
                   for name in ('token_file', 'token'))
    if here == there:
        raise ConfigError('%s与 %s同时给出（来自%s）' % (ways('token'), ways('token_file'), sources['token']), '只给其中一个')
    if here < there:
        values['token'], sources['token'] = read_token_file(path), sources['token_file']


def read_token_file(path):
    """The token in a file of one line. Raises ConfigError, which never shows it."""
    try:
        return parse_token(read_text(path, 4096).strip())
    except (OSError, UnicodeError) as error:
        raise ConfigError('口令文件 %s 读不出来：%s' % (path, error), '应为 UTF-8 文本，只有一行；用记事本另存为 UTF-8')
    except ValueError as error:
        raise ConfigError('口令文件 %s 里的口令无效：%s' % (path, error), '应只有一行')


def _refuse_foreign_host(values, sources, dotenv):
    """A directory of somebody else may hold a .env that names his machine: no token from elsewhere is sent there."""
    foreign = dotenv and sources.get('host') == dotenv and sources.get('token') not in (dotenv, '默认值')
    if foreign and not names_this_machine(values['host']):
        raise ConfigError('%s 里的 %s 是 %s，口令却来自%s：当前目录的配置可能是别人的，口令没有发出' % (
            dotenv, 'QMT_SERVER_HOST', printable(values['host']), sources['token']),
            '把两者写在同一处，或用 %s、env_file 说明要连哪里' % ways('host'))


def names_this_machine(host):
    """Whether that is surely here, whoever wrote it: of names localhost alone, no address with a zone behind it."""
    try:
        return '%' not in host and plain_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _open_secrets(layers, token_file):
    """Files with a token that others on this machine can read."""
    paths = [name for name, layer in layers
             if name != '环境变量' and layer.get('QMT_SERVER_TOKEN', '').strip() and os.path.isfile(name)]
    return ['%s 里有口令，而本机别的用户有权限读它；用 chmod 600 收回' % printable(path)
            for path in paths + [token_file] * (token_file is not None) if others_can_read(path)]


def _find_value(option, given, layers):
    if option.name in given:
        return option, given[option.name], '命令行'
    for source, layer in layers:
        if layer.get(option.env, '').strip():
            return option, layer[option.env], source
    return option, option.default, '默认值'


def _parse_option(option, text, source):
    if text is None:
        return None
    try:
        return option.parse(text)
    except ValueError as error:
        shown = '（内容不显示）' if option.secret else brief(text)
        raise ConfigError('%s的值 %s 无效（来自%s）：%s' % (ways(option.name), shown, source, error))


def _misspelt(layers):
    """A setting with a misspelt name would silently not hold: the allowlist, say."""
    known = {option.env for option in OPTIONS}
    names = sorted({name for _, layer in layers for name in layer if name.startswith('QMT_SERVER_')} - known)
    return ['不认识的设置 %s，没有起作用；请核对拼写' % printable(name) for name in names]


def read_dotenv(path, must_exist):
    """The names and values of a .env file. Raises ConfigError naming file and line."""
    if not os.path.isfile(path):
        if must_exist:
            raise ConfigError('找不到配置文件 %s' % path, '检查 env_file（命令行 --env-file，环境变量 BT_ENV_FILE）')
        return {}
    try:
        return parse_dotenv(read_text(path), path)
    except (OSError, UnicodeError) as error:
        raise ConfigError('配置文件 %s 读不出来：%s' % (path, error), '应为 UTF-8 文本：用记事本另存为 UTF-8，或用 env --write 新建')


_DOTENV_LINE = re.compile(r'(?:export\s+)?([A-Za-z_]\w*)\s*=(.*)', re.ASCII)
_DOTENV_SPACE = ' \t\n\r\f\v'


def parse_dotenv(text, path='.env'):
    """NAME=value lines. Backslashes are plain characters everywhere, so that Windows paths stay as they are."""
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith('#'):
            name, value = _parse_dotenv_line(line, '%s 第 %d 行' % (path, number))
            values[name] = value
    return values


def _parse_dotenv_line(line, where):
    match = _DOTENV_LINE.fullmatch(line)
    value = None if match is None else _dotenv_value(match.group(2))
    if value is None:
        raise ConfigError('%s 不是 名称=值 的形式' % where, '带空格或 # 的值请用引号括起来')
    return match.group(1), value


def _dotenv_value(text):
    """"value", 'value' or value, and a comment after white space; None for anything else."""
    quote = text.lstrip(_DOTENV_SPACE)[:1]
    if quote in ('"', "'"):
        value, closed, rest = text.lstrip(_DOTENV_SPACE)[1:].partition(quote)
        return value if closed and _strip_comment(rest) == '' else None
    value = _strip_comment(text)
    return None if value.startswith('#') else value


def _strip_comment(text):
    comment = re.search(r'\s#', text, re.ASCII)
    return (text[:comment.start()] if comment else text).strip(_DOTENV_SPACE)


def dotenv_template():
    """A commented .env with every option at its default."""
    lines = ['# bullet-qmt 的配置。去掉行首的 # 并改值即生效；命令行参数优先于本文件。']
    for title, group in (('服务端', 'server'), ('模拟交易所', 'stub'), ('客户端', 'client')):
        lines += ['', '# ---- %s ----' % title]
        for option in OPTIONS:
            if option.group.split()[0] == group:
                lines += ['# %s' % option.help, '#%s=%s' % (option.env, option.default or '')]
    return '\n'.join(lines) + '\n'


def account_specs(settings):
    """The accounts that the settings describe; with none, the stub has `default` of its own."""
    if settings.accounts:
        return settings.accounts
    if settings.account_id or settings.server_type == 'stub':
        return (AccountSpec('default', settings.account_id or '10000001', settings.account_type,
                            settings.data_path, settings.session_id, settings.auto_subscribe),)
    raise ConfigError('没有配置账户', '给出 %s，如 名称=资金账号:类型:userdata路径；或 QMT_ACCOUNT_ID 和 QMT_DATA_PATH' % ways('accounts'))


def state_path(settings):
    """The journal's file. Real orders are always written down: beside the log file, if not told otherwise."""
    if settings.state or settings.server_type == 'stub':
        return settings.state
    return os.path.join(os.path.dirname(settings.log_file or ''), 'bullet_qmt_orders.sqlite')


def refuse_same_file(settings):
    """A log written into the journal would destroy it."""
    used = {}
    for name, path in (('state', state_path(settings)), ('log_file', settings.log_file),
                       ('tls_cert', settings.tls_cert), ('tls_key', settings.tls_key)):
        real = path and os.path.normcase(real_path(path))
        if real in used and {name, used[real]} != {'tls_cert', 'tls_key'}:
            raise ConfigError('%s与 %s是同一个文件 %s' % (ways(used[real]), ways(name), path), '各用一个文件')
        if real:
            used[real] = name


def check_server_settings(settings):
    """What concerns several options at once. Raises ConfigError; returns the settings."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise ConfigError('%s与 %s要同时给出' % (ways('tls_cert'), ways('tls_key')), '只给了其中一个')
    refuse_same_file(settings)
    keys = [spec.key for spec in account_specs(settings)]
    for sub in settings.sub_accounts:
        if sub.account_key not in keys:
            raise ConfigError('%s里 %s 的账户 %s 不存在' % (ways('sub_accounts'), sub.name, sub.account_key),
                              '现有账户：%s' % '、'.join(keys))
    return settings


# ======================================================================================================
# 5. MARKET RULES - codes, lots, price steps, limits, cage, fees, sessions. Pure functions
# ======================================================================================================
# code:    canonical JoinQuant code.          kind: stock etf lof index bond (convertible) repo other.
# board:   main star chinext bse, '' for what is not a stock.
# tick:    price step in yuan.                lot: smallest order in shares. step: multiples beyond it.
# t0:      bought shares can be sold the same day.
Instrument = namedtuple('Instrument', 'code kind board tick lot step t0')

_SUFFIXES = {'XSHE': 'XSHE', 'SZ': 'XSHE', 'XSHG': 'XSHG', 'SH': 'XSHG', 'BJ': 'BJ', 'BJSE': 'BJ'}
_QMT_SUFFIX = {'XSHE': 'SZ', 'XSHG': 'SH', 'BJ': 'BJ'}
_CODE = re.compile(r'(\d{6})\.([A-Za-z]{2,4})', re.ASCII)

# (market, pattern of the number, kind, board); the first match decides.
_KINDS = [(market, re.compile(pattern), kind, board) for market, pattern, kind, board in (
    ('XSHG', r'000|88', 'index', ''), ('XSHG', r'68[89]', 'stock', 'star'), ('XSHG', r'60', 'stock', 'main'),
    ('XSHG', r'5[123568]', 'etf', ''), ('XSHG', r'50', 'lof', ''), ('XSHG', r'11[01378]', 'bond', ''),
    ('XSHG', r'204', 'repo', ''), ('XSHE', r'39', 'index', ''), ('XSHE', r'30', 'stock', 'chinext'),
    ('XSHE', r'00', 'stock', 'main'), ('XSHE', r'159', 'etf', ''), ('XSHE', r'1[68]', 'lof', ''),
    ('XSHE', r'12[378]', 'bond', ''), ('XSHE', r'131', 'repo', ''), ('BJ', r'899', 'index', ''),
    ('BJ', r'[489]', 'stock', 'bse'))]


def normalize_code(security):
    """'600519.SH', '600519.XSHG', '600519.sh' -> '600519.XSHG'. A bare number is refused: 000001 is two things."""
    code = _code_of(security) if isinstance(security, str) and len(security) <= 32 else None
    if code is None:
        raise SecurityNotFound('证券代码不认识：%s' % brief(security),
                               '写成 000001.XSHE / 000001.SZ、600000.XSHG / 600000.SH 或 920002.BJ')
    return code


@lru_cache(maxsize=16384)
def _code_of(text):
    """The canonical code, or None."""
    match = _CODE.fullmatch(text.strip())
    suffix = _SUFFIXES.get(match.group(2).upper()) if match else None
    return None if suffix is None else '%s.%s' % (match.group(1), suffix)


def normalize_codes(securities, name='security', maximum=6000):
    """One code or a list of codes, maybe none -> list of canonical codes, doubles dropped, order kept."""
    items = [securities] if isinstance(securities, str) else securities
    if not isinstance(items, (list, tuple)) or len(items) > maximum:
        raise BadRequest('%s 应为证券代码或最多 %d 个代码的列表' % (name, maximum))
    return list(OrderedDict((normalize_code(item), None) for item in items))


def qmt_code(code):
    """'600519.XSHG' -> '600519.SH'; a whole market 'XSHG' -> 'SH'."""
    number, dot, market = code.rpartition('.')
    return number + dot + _QMT_SUFFIX[market]


MARKETS = tuple(_QMT_SUFFIX)


def market_of(code):
    return code.rpartition('.')[2]


def as_markets(text):
    """The markets that '*', 'SH', 'XSHG', ... name, for subscriptions; () for anything else."""
    if not isinstance(text, str):
        return ()
    name = text.strip().upper()
    return MARKETS if name == '*' else (_SUFFIXES[name],) if name in _SUFFIXES else ()


# Funds whose purchases can be sold the same day: money, bond, gold, commodity and cross-border ETFs and cross-border
# LOFs. Source: SSE trading rules 3.1.4 (2023; 2026 alike), SZSE trading rules 3.1.4. In Shanghai the first digits tell
# (511 money and bond, 513 and 520 cross-border, 518 gold, 551 bond); what else has it must be listed, as of 2026-08.
_T0_FUND = re.compile(r'(?:51[138]|520|551)\d{3}\.XSHG')
_T0_LISTED = {'XSHG': frozenset("""
501018 501021 501025 501225 501300 501301 501302 501303 501305 501306 501311 501312 510900 526000 526010 526050 526070
""".split()), 'XSHE': frozenset("""
159001 159003 159005 159010 159015 159028 159100 159101 159102 159105 159109 159110 159111 159112 159113 159115 159116
159117 159118 159120 159121 159125 159126 159127 159128 159130 159131 159132 159135 159137 159143 159152 159167 159169
159170 159179 159185 159186 159191 159196 159198 159200 159202 159210 159217 159220 159237 159239 159245 159251 159262
159265 159266 159268 159269 159271 159277 159280 159281 159285 159286 159297 159302 159303 159312 159316 159318 159323
159329 159331 159333 159365 159366 159395 159396 159397 159398 159400 159501 159502 159506 159509 159513 159518 159519
159529 159545 159557 159561 159567 159568 159569 159570 159577 159600 159605 159607 159612 159615 159632 159636 159649
159650 159651 159655 159659 159660 159687 159688 159691 159696 159699 159700 159711 159712 159718 159726 159735 159740
159741 159742 159747 159750 159751 159776 159788 159792 159812 159816 159822 159830 159831 159834 159850 159866 159892
159920 159934 159937 159941 159954 159960 159972 159980 159981 159985
160125 160140 160216 160322 160416 160644 160717 160719 160723 160924 161116 161124 161125 161126 161127 161128 161129
161130 161815 161831 162411 162415 162719 163208 164701 164705 164824 164906 165513""".split())}


def _trades_same_day(code, kind):
    number, _, market = code.partition('.')
    return kind == 'bond' or bool(_T0_FUND.fullmatch(code)) or number in _T0_LISTED.get(market, ())


@lru_cache(maxsize=16384)
def instrument(security):
    """What the exchange's rules make of a code. Source: trading rules of SSE, SZSE and BSE."""
    code = normalize_code(security)
    kind, board = _kind_of(code)
    tick = 0.01 if kind in ('stock', 'index', 'other') else 0.001
    lot, step = _lot_of(kind, board)
    return Instrument(code, kind, board, tick, lot, step, _trades_same_day(code, kind))


def _kind_of(code):
    for market, pattern, kind, board in _KINDS:
        if code.endswith(market) and pattern.match(code):
            return kind, board
    return 'other', ''


def _lot_of(kind, board):
    if board == 'star':
        return 200, 1
    if board == 'bse':
        return 100, 1
    return (10, 10) if kind in ('bond', 'repo') else (100, 100)


def tradable(security):
    return instrument(security).kind in ('stock', 'etf', 'lof', 'bond')


def round_to_tick(price, tick):
    """Half up, in decimal: 2.675 to 0.01 is 2.68."""
    step = Decimal(str(tick))
    return float((Decimal(repr(price)) / step).quantize(Decimal(1), ROUND_HALF_UP) * step)


def on_tick(price, tick):
    return Decimal(repr(price)) % Decimal(str(tick)) == 0


# -- limits of a day: how far up and down from the previous close, in thousandths; no band: no limits ----------------
# group: 'st' risk warning, 'wide' funds that hold only stocks with 20 % (or whose contract says 80 % of them), 'reit',
# '' all others. The newest row with since <= day holds.
_Band = namedtuple('_Band', 'kind board group since band source')
_SSE_2026 = '上证发〔2026〕41号 上交所交易规则（2026 年修订），深证上〔2026〕551号 深交所交易规则（2026 年修订）'
_CHINEXT_RULES = '深证上〔2020〕515号 深交所创业板交易特别规定 2.1、2.9'
_BANDS = [_Band(kind, board, group, date(*since), band and (band, band), source)
          for kind, board, group, since, band, source in (
    ('stock', 'main', '', (1996, 12, 16), 100, '证监会 1996-12-13 通知，沪深交易所交易规则'),
    ('stock', 'main', 'st', (1998, 4, 22), 50, '沪深交易所 1998-04-22 起特别处理'),
    ('stock', 'main', 'st', (2026, 7, 6), 100, _SSE_2026),
    ('stock', 'chinext', '', (2009, 10, 30), 100, '深交所交易规则（2009 年时）'),
    ('stock', 'chinext', '', (2020, 8, 24), 200, _CHINEXT_RULES),
    ('stock', 'star', '', (2019, 7, 22), 200, '上证发〔2019〕23号 科创板股票交易特别规定 第十八条'),
    ('stock', 'bse', '', (2020, 7, 27), 300, '精选层交易规则；2021-11-15 起北交所交易规则'),
    ('fund', '', '', (1996, 12, 16), 100, '沪深交易所交易规则'),
    ('fund', '', 'wide', (2020, 8, 24), 200, _CHINEXT_RULES + '；上交所科创板相关基金同'),
    ('fund', '', 'reit', (2021, 6, 21), 100, '沪深交易所公开募集基础设施基金业务办法（试行），2021-01-29'),
    ('bond', '', '', (2022, 8, 1), 200, '沪深交易所可转换公司债券交易实施细则，2022-07-29'))]
# The first days of what was listed from `since` on: (number of days, band; None: without limits).
_FirstDays = namedtuple('_FirstDays', 'kind board group since days band source')
_FIRST_DAYS = [_FirstDays(kind, board, group, date(*since), days, band, source)
               for kind, board, group, since, days, band, source in (
    ('stock', 'main', '', (1990, 12, 19), 1, None, '沪深交易所交易规则'),
    ('stock', 'main', '', (2014, 1, 1), 1, (440, 360), '沪深交易所 2013-12-13 关于新股上市初期交易监管的通知：发行价的 64% 到 144%'),
    ('stock', 'main', '', (2023, 4, 10), 5, None, '沪深交易所交易规则（2023 年修订），首批主板注册制股票上市'),
    ('stock', 'chinext', '', (2009, 10, 30), 1, None, '深交所交易规则（2009 年时）'),
    ('stock', 'chinext', '', (2014, 1, 1), 1, (440, 360), '深交所 2013-12-13 关于首次公开发行股票上市首日交易监控的通知'),
    ('stock', 'chinext', '', (2020, 8, 24), 5, None, _CHINEXT_RULES),
    ('stock', 'star', '', (2019, 7, 22), 5, None, '上证发〔2019〕23号 科创板股票交易特别规定 第十八条'),
    ('stock', 'bse', '', (2020, 7, 27), 1, None, '精选层交易规则；2021-11-15 起北交所交易规则'),
    ('fund', '', 'reit', (2021, 6, 21), 1, (300, 300), '沪深交易所公开募集基础设施基金业务办法（试行），2021-01-29'),
    ('bond', '', '', (2022, 8, 1), 1, (573, 433), '沪深交易所可转换公司债券交易实施细则，2022-07-29'))]

_REIT = re.compile(r'508\d{3}\.XSHG|180\d{3}\.XSHE')
# STAR ETFs and STAR funds of Shanghai have numbers of their own, ETFs and LOFs of Shenzhen must be listed: those of
# ChiNext, STAR and both together, by name of the index or contract, as of 2026-08. The newest will be missing here.
_WIDE_FUND = re.compile(r'(?:58[89]|506)\d{3}\.XSHG')
_WIDE_LISTED = frozenset("""
159009 159012 159022 159069 159076 159107 159122 159139 159140 159141 159142 159149 159187 159190 159205 159242 159243
159246 159247 159256 159261 159270 159279 159287 159288 159289 159290 159291 159292 159293 159295 159298 159363 159367
159368 159369 159370 159371 159372 159373 159375 159377 159381 159382 159383 159387 159388 159541 159563 159571 159572
159573 159575 159597 159603 159675 159676 159681 159682 159773 159777 159780 159781 159782 159783 159804 159808 159810
159814 159821 159836 159908 159915 159948 159949 159952 159955 159956 159957 159958 159964 159966 159967 159971 159977
159991 160143 160223 160325 160529 160637 160926 161040 161914 162720 166027 168207""".split())


@lru_cache(maxsize=16384)
def _band_key(security):
    """(kind, board, group) of the tables; kind None: never any limits."""
    item = instrument(security)
    if item.kind in ('etf', 'lof'):
        number, _, market = item.code.partition('.')
        wide = _WIDE_FUND.fullmatch(item.code) or (market == 'XSHE' and number in _WIDE_LISTED)
        return 'fund', '', 'reit' if _REIT.fullmatch(item.code) else 'wide' if wide else ''
    return (item.kind if item.kind in ('stock', 'bond') else None), item.board, ''


def _newest(rows, kind, board, groups, day):
    found = [row for row in rows if (row.kind, row.board) == (kind, board) and row.group in groups and row.since <= day]
    return max(found, key=lambda row: (groups.index(row.group), row.since), default=None)


@lru_cache(maxsize=65536)
def limit_band(security, day, is_st=False, listed=None, number=None):
    """(up, down) in thousandths of the previous close; None where the exchange sets no limits.

    listed, number: day of listing, and which trade day since then it is (1: the first); None: long ago.
    """
    kind, board, group = _band_key(security)
    groups = ['', 'st'] if is_st and board == 'main' else ['', group] if group else ['']
    if listed is not None and number is not None:
        first = _newest(_FIRST_DAYS, kind, board, groups, listed)
        if first is not None and 1 <= number <= first.days:
            return first.band
    row = _newest(_BANDS, kind, board, groups, day)
    return None if row is None else row.band


@lru_cache(maxsize=4096)
def _bands_of_kind(security, day):
    """Every band that anything of this kind may have on that day, narrow ones first."""
    kind, board, group = _band_key(security)
    groups = ('', group) if group == 'reit' else ('', 'st', 'wide')
    rows = [_newest(table, kind, board, [name], day) for table in (_BANDS, _FIRST_DAYS) for name in groups]
    return sorted({row.band for row in rows if row is not None and row.band})


def may_be_wider(security):
    """A fund that no list has: its limits by rule are those of most funds, perhaps not its own."""
    kind, _, group = _band_key(security)
    return kind == 'fund' and not group


def widest_limits(security, pre_close, day):
    """(high_limit, low_limit) of the widest band that anything of its kind may have."""
    return _limits_of_band(security, pre_close, _bands_of_kind(security, day)[-1])


def limit_ratio(security, day, is_st=False):
    """Largest rise of an ordinary day as a fraction of the previous close; None where the exchange sets none."""
    band = limit_band(security, day, is_st)
    return None if band is None else band[0] / 1000


def starts_without_limits(security, listed, days):
    """Whether a stock listed on that date has no price limits on its `days`-th trade day (1: the first)."""
    kind, board, _ = _band_key(security)
    first = _newest(_FIRST_DAYS, kind, board, [''], listed)
    return first is not None and first.band is None and 1 <= days <= first.days


def limit_ticks(security, pre, band):
    """Limits in whole ticks of a previous close in ticks, at least a tick away from it. (None, None): without.

    Half up; Beijing refuses whatever is beyond the ratio, so that its limits are rounded towards the previous close.
    """
    if band is None:
        return None, None
    up, down = pre * (1000 + band[0]), pre * (1000 - band[1])
    if market_of(security) in _ROUNDED_INWARD:
        top, bottom = up // 1000, -(-down // 1000)
    else:
        top, bottom = (up + 500) // 1000, (down + 500) // 1000
    return max(pre + 1, top), max(1, min(pre - 1, bottom))


_ROUNDED_INWARD = ('BJ',)  # 北交所交易规则：超过涨跌幅限制的申报无效；84.63 -> 110.01, 2.85 -> 3.70


def ticks_per_yuan(security):
    return int(round(1 / instrument(security).tick))


def price_limits(security, pre_close, day, is_st=False, listed=None, number=None, seen=None):
    """(high_limit, low_limit) in yuan, or (None, None) where there is none.

    seen: lowest and highest trade of that day. One beyond the limits proves that the security has others, such as a
    fund that is not listed here: then they are the next wider ones of its kind, or none.
    """
    if not pre_close or not 0 < pre_close < math.inf:
        return None, None
    band = limit_band(security, day, is_st, listed, number)
    limits = _limits_of_band(security, pre_close, band)
    if seen is None or inside_limits(limits, *seen):
        return limits
    wider = (_limits_of_band(security, pre_close, other) for other in _bands_of_kind(security, day) if other > band)
    return next((limits for limits in wider if inside_limits(limits, *seen)), (None, None))


def inside_limits(limits, low, high):
    """Whether the day's trades lie inside (high_limit, low_limit). What is None, NaN or 0 proves nothing."""
    top, bottom = limits
    return top is None or not (_is_more(high, top) or _is_more(bottom, low))


def _is_more(value, bound):
    return value is not None and bound is not None and 0 < bound < value - 1e-6


def _limits_of_band(security, pre_close, band):
    """A previous close on a tick is counted in ticks: a history has thousands of days, and decimals take longer."""
    if band is None:
        return None, None
    per_yuan = ticks_per_yuan(security)
    ticks = int(round(pre_close * per_yuan))
    if ticks and abs(ticks - pre_close * per_yuan) <= 1e-6:
        return tuple(limit / per_yuan for limit in limit_ticks(security, ticks, band))
    return _limits_off_tick(security, pre_close, band)


def _limits_off_tick(security, pre_close, band):
    tick, base = instrument(security).tick, Decimal(repr(pre_close))
    up, down = (float(base * (1000 + change) / 1000) for change in (band[0], -band[1]))
    if market_of(security) in _ROUNDED_INWARD:
        high, low = floor_to_tick(up, tick), ceil_to_tick(down, tick)
    else:
        high, low = round_to_tick(up, tick), round_to_tick(down, tick)
    return (max(high, ceil_to_tick(pre_close + tick, tick)),
            max(tick, min(low, floor_to_tick(pre_close - tick, tick))))


# How far a price may be from the reference in continuous trading: percent, and price steps if those are more.
_Cage = namedtuple('_Cage', 'kind board since percent steps source')
_SSE_2023, _SZSE_2023 = '上证发〔2023〕32号 上交所交易规则（2023 年修订）', '深证上〔2023〕97号 深交所交易规则（2023 年修订）'
_CAGES = [_Cage(kind, board, date(*since), percent, steps, source) for kind, board, since, percent, steps, source in (
    ('stock', 'main', (2023, 4, 10), 2, 10, _SSE_2023 + '，' + _SZSE_2023),
    ('stock', 'star', (2019, 7, 22), 2, 0, '上证发〔2019〕23号 科创板股票交易特别规定 第二十条'),
    ('stock', 'star', (2023, 4, 10), 2, 10, _SSE_2023), ('stock', 'chinext', (2020, 8, 24), 2, 0, _CHINEXT_RULES),
    ('stock', 'chinext', (2023, 4, 10), 2, 10, _SZSE_2023),
    ('stock', 'bse', (2021, 11, 15), 5, 10, '北交所交易规则（试行）'),
    ('bond', '', (2022, 8, 1), 10, 0, '沪深交易所可转换公司债券交易实施细则，2022-07-29'))]


@lru_cache(maxsize=16384)
def _cage_of(security, day):
    kind, board, _ = _band_key(security)
    rows = [row for row in _CAGES if (row.kind, row.board) == (kind, board) and row.since <= day]
    return max(rows, key=lambda row: row.since, default=None)


def price_cage(security, side, reference, day=date.max):
    """Worst price that the exchange takes in continuous trading against the reference price; None without a cage.

    A buy's is rounded down to the step and a sale's up: what an exchange that rounds otherwise takes as well.
    """
    row = _cage_of(security, day)
    if row is None or not reference or not reference > 0:
        return None
    tick = instrument(security).tick
    room = max(reference * row.percent / 100, row.steps * tick)
    if side == 'BUY':
        return floor_to_tick(reference + room, tick)
    return max(tick, ceil_to_tick(reference - room, tick))


def floor_to_tick(price, tick):
    """Down to the tick; the small addition keeps 10.2 * 1.0 from becoming 10.19."""
    return round_to_tick(math.floor(price / tick + 1e-6) * tick, tick)


def ceil_to_tick(price, tick):
    return round_to_tick(math.ceil(price / tick - 1e-6) * tick, tick)


def protect_price(security, side, reference, high_limit, low_limit):
    """Worst price a market order may fill at: inside the cage and the day's limits. None if neither is known.

    The cage of the newest rules on every date: a market order should not run further where the exchange would let it.
    """
    bounds = [price_cage(security, side, reference), high_limit if side == 'BUY' else low_limit]
    known = [bound for bound in bounds if bound]
    if not known:
        return None
    return min(known) if side == 'BUY' else max(known)


def lot_problem(security, side, amount, closeable=None, style='limit'):
    """Why the amount is no order of this security, or None. A sale may take an odd rest along, whole."""
    item, largest = instrument(security), largest_order(security, style)
    if largest is not None and amount > largest:
        return '数量 %d 大于单笔申报上限 %d，请分几笔委托' % (amount, largest)
    if side == 'SELL' and closeable is not None and _odd_rest_sold(item, amount, closeable):
        return None
    if amount < item.lot:
        return '数量 %d 小于最小申报数量 %d' % (amount, item.lot)
    if (amount - item.lot) % item.step:
        return '数量 %d 应为 %d 起、%d 的整数倍递增' % (amount, item.lot, item.step)
    return None


def _odd_rest_sold(item, amount, closeable):
    if item.step == 1:
        return amount == closeable
    return amount <= closeable and closeable % item.step and amount % item.step == closeable % item.step


# Most shares of one order, at a limit and at market. Source: trading rules of SSE, SZSE and BSE.
_LARGEST = {'star': (100000, 50000), 'chinext': (300000, 150000)}


def largest_order(security, style):
    """Most shares (a fund's units) that one order may have; None where the rules set it by other means."""
    item = instrument(security)
    if item.kind not in ('stock', 'etf', 'lof'):
        return None
    limit, market = _LARGEST.get(item.board, (1000000, 1000000))
    return market if style == 'market' else limit


def round_lot(security, amount):
    """The largest valid order of at most `amount` shares; 0 if there is none."""
    item = instrument(security)
    return 0 if amount < item.lot else int(item.lot + (amount - item.lot) // item.step * item.step)


COMMISSION_RATE, COMMISSION_MINIMUM = Decimal('0.0003'), Decimal(5)
_CENT = Decimal('0.01')
# Of stocks alone, as fractions of the value; the newest row with since <= day holds.
_StampDuty = namedtuple('_StampDuty', 'since buy sell source')
_STAMP_DUTIES = [_StampDuty(date(*since), Decimal(buy), Decimal(sell), source) for since, buy, sell, source in (
    ((2001, 11, 16), '0.002', '0.002', '财政部、国家税务总局 2001-11-15'),
    ((2005, 1, 24), '0.001', '0.001', '财税〔2005〕11号'), ((2007, 5, 30), '0.003', '0.003', '财税〔2007〕84号'),
    ((2008, 4, 24), '0.001', '0.001', '财政部 2008-04-23'), ((2008, 9, 19), '0', '0.001', '财政部 2008-09-18：单边征收'),
    ((2023, 8, 28), '0', '0.0005', '财政部、税务总局公告 2023 年第 39 号'))]
# Before 2015-08-01 Shanghai counted by face value; the rate of then stands for it.
_TransferFee = namedtuple('_TransferFee', 'since rate source')
_TRANSFER_FEES = [_TransferFee(date(*since), Decimal(rate), source) for since, rate, source in (
    ((1990, 12, 19), '0.00002', '中国结算 2015-07-01 通知，2015-08-01 起'),
    ((2022, 4, 29), '0.00001', '中国结算 2022-04-28 通知'))]


def _in_force(rows, day):
    return max((row for row in rows if row.since <= day), key=lambda row: row.since, default=rows[0])


def stamp_tax_rate(security, side, day):
    if instrument(security).kind != 'stock':
        return Decimal(0)
    row = _in_force(_STAMP_DUTIES, day)
    return row.sell if side == 'SELL' else row.buy


def transfer_rate(security, day):
    return _in_force(_TRANSFER_FEES, day).rate if instrument(security).kind == 'stock' else Decimal(0)


def trade_fees(security, side, value, day):
    """(commission, stamp tax, transfer fee) of an order's fills worth `value` (Decimal yuan), in whole cents."""
    commission = max(COMMISSION_MINIMUM, (value * COMMISSION_RATE).quantize(_CENT, ROUND_HALF_UP))
    tax = (value * stamp_tax_rate(security, side, day)).quantize(_CENT, ROUND_HALF_UP)
    return commission, tax, (value * transfer_rate(security, day)).quantize(_CENT, ROUND_HALF_UP)


MORNING_OPEN, MORNING_CLOSE = 9 * 60 + 30, 11 * 60 + 30
AFTERNOON_OPEN, AFTERNOON_CLOSE = 13 * 60, 15 * 60
MINUTES_A_DAY = 240
# Minutes after midnight that label the 240 bars of a day, each by its end: 09:31-11:30, 13:01-15:00.
BAR_MINUTES = tuple(range(MORNING_OPEN + 1, MORNING_CLOSE + 1)) + tuple(range(AFTERNOON_OPEN + 1, AFTERNOON_CLOSE + 1))


def minute_of_day(moment):
    return moment.hour * 60 + moment.minute


CLOSING_CALL = 14 * 60 + 57  # the closing auction begins
FIXED_PRICE_OPEN, FIXED_PRICE_CLOSE = 15 * 60 + 5, 15 * 60 + 30  # after-hours trading at the day's close
OPENING_CALL_END = 9 * 60 + 25  # what came before trades at the opening price, what comes later waits for 9:30
OPENING_NO_CANCEL = 9 * 60 + 20, OPENING_CALL_END
# Which have a closing auction, and since when; all others trade continuously up to the close.
_ClosingCall = namedtuple('_ClosingCall', 'market kinds since source')
_CLOSING_CALLS = (
    _ClosingCall('XSHE', ('stock', 'etf', 'lof', 'bond'), date(2006, 7, 1), '深交所交易规则（2006 年）'),
    _ClosingCall('XSHG', ('stock',), date(2018, 8, 20), '上交所 2018-08-06 关于股票收盘集合竞价的通知'),
    _ClosingCall('XSHG', ('etf', 'lof'), date(2026, 7, 6), _SSE_2026),
    _ClosingCall('BJ', ('stock',), date(2020, 7, 27), '精选层交易规则；2021-11-15 起北交所交易规则'))
# Which are traded at the close after it, and since when. board '': all stocks; none in Beijing.
_AfterHours = namedtuple('_AfterHours', 'kinds board since source')
_AFTER_HOURS = (
    _AfterHours(('stock',), 'star', date(2019, 7, 22), '上证发〔2019〕38号 科创板股票盘后固定价格交易指引'),
    _AfterHours(('stock',), 'chinext', date(2020, 8, 24), _CHINEXT_RULES),
    _AfterHours(('stock', 'etf', 'lof'), '', date(2026, 7, 6), _SSE_2026))


def in_session(moment):
    """Between the open and the close at this clock time, on whatever day."""
    minute = minute_of_day(moment)
    return MORNING_OPEN <= minute < MORNING_CLOSE or AFTERNOON_OPEN <= minute < AFTERNOON_CLOSE


def closing_call(security, day):
    """Minute of the day at which continuous trading ends: 14:57 with a closing auction, 15:00 without."""
    item = instrument(security)
    called = any(item.kind in row.kinds and row.market == market_of(item.code) and row.since <= day
                 for row in _CLOSING_CALLS)
    return CLOSING_CALL if called else AFTERNOON_CLOSE


def in_continuous_trading(security, moment):
    return in_session(moment) and minute_of_day(moment) < closing_call(security, moment.date())


def takes_fixed_price(security, moment):
    """Whether this is the time, on a trade day, of orders that trade at the day's close: from 15:00 to 15:30."""
    return AFTERNOON_CLOSE <= minute_of_day(moment) < FIXED_PRICE_CLOSE and _has_after_hours(security, moment.date())


def _has_after_hours(security, day):
    item = instrument(security)
    return market_of(item.code) != 'BJ' and any(
        item.kind in row.kinds and row.board in ('', item.board) and row.since <= day for row in _AFTER_HOURS)


def session_problem(security, style, moment):
    """(why, what to do) where no such order is taken at this time of a trade day, or None. Before the open and at
    noon limit orders wait at the broker's; market orders are for continuous trading alone."""
    if minute_of_day(moment) >= AFTERNOON_CLOSE:
        if not takes_fixed_price(security, moment):
            return '非交易时间，不接受委托', '交易日 15:00 前委托；有盘后固定价格交易的证券到 15:30'
        if style == 'market':
            return '盘后固定价格交易不接受市价委托', '用限价委托：买入价不低于、卖出价不高于收盘价，15:05 起按收盘价成交'
    elif style == 'market' and not in_continuous_trading(security, moment):
        return '市价委托只在连续竞价时段接受', '在 9:30 到 11:30、13:00 到收盘集合竞价（14:57）之间委托，或用限价委托'
    return None


def fixed_price_problem(side, price, close):
    """Why an order at this price cannot trade at the close, or None. Source: as _AFTER_HOURS."""
    if price < close if side == 'BUY' else price > close:
        words = ('买入', '低于') if side == 'BUY' else ('卖出', '高于')
        return '盘后固定价格交易：%s价 %s %s收盘价 %s' % (words[0], price, words[1], close)
    return None


def cancel_problem(security, moment):
    """Why the exchanges take no cancel at this time of a trade day, or None. Source: trading rules of SSE (3.3.5),
    SZSE and BSE: none from 9:20 to 9:25, nor in the closing auction."""
    minute = minute_of_day(moment)
    if OPENING_NO_CANCEL[0] <= minute < OPENING_NO_CANCEL[1]:
        return '9:20 到 9:25 不接受撤单'
    if closing_call(security, moment.date()) <= minute < AFTERNOON_CLOSE:
        return '14:57 到 15:00 不接受撤单'
    return None


def bars_elapsed(moment):
    """How many of the day's 240 minute bars are complete at this clock time."""
    return bisect.bisect_right(BAR_MINUTES, minute_of_day(moment))


# Weekdays without trading as the exchanges announced them, a year a line: month and day. Source: yearly notices of SSE,
# SZSE and BSE, such as 2026: https://www.sse.com.cn/disclosure/announcement/general/c/c_20251222_10802507.shtml;
# taken from the package exchange_calendars (XSHG). The notice for a year comes in December of the one before.
_CLOSED_WEEKDAYS = {int(line[:4]): frozenset(line[5:].split()) for line in """\
2005 0103 0207 0208 0209 0210 0211 0214 0215 0502 0503 0504 0505 0506 1003 1004 1005 1006 1007
2006 0102 0103 0126 0127 0130 0131 0201 0202 0203 0501 0502 0503 0504 0505 1002 1003 1004 1005 1006
2007 0101 0102 0103 0219 0220 0221 0222 0223 0501 0502 0503 0504 0507 1001 1002 1003 1004 1005 1231
2008 0101 0206 0207 0208 0211 0212 0404 0501 0502 0609 0915 0929 0930 1001 1002 1003
2009 0101 0102 0126 0127 0128 0129 0130 0406 0501 0528 0529 1001 1002 1005 1006 1007 1008
2010 0101 0215 0216 0217 0218 0219 0405 0503 0614 0615 0616 0922 0923 0924 1001 1004 1005 1006 1007
2011 0103 0202 0203 0204 0207 0208 0404 0405 0502 0606 0912 1003 1004 1005 1006 1007
2012 0102 0103 0123 0124 0125 0126 0127 0402 0403 0404 0430 0501 0622 1001 1002 1003 1004 1005
2013 0101 0102 0103 0211 0212 0213 0214 0215 0404 0405 0429 0430 0501 0610 0611 0612 0919 0920 1001 1002 1003 1004 1007
2014 0101 0131 0203 0204 0205 0206 0407 0501 0502 0602 0908 1001 1002 1003 1006 1007
2015 0101 0102 0218 0219 0220 0223 0224 0406 0501 0622 0903 0904 1001 1002 1005 1006 1007
2016 0101 0208 0209 0210 0211 0212 0404 0502 0609 0610 0915 0916 1003 1004 1005 1006 1007
2017 0102 0127 0130 0131 0201 0202 0403 0404 0501 0529 0530 1002 1003 1004 1005 1006
2018 0101 0215 0216 0219 0220 0221 0405 0406 0430 0501 0618 0924 1001 1002 1003 1004 1005 1231
2019 0101 0204 0205 0206 0207 0208 0405 0501 0502 0503 0607 0913 1001 1002 1003 1004 1007
2020 0101 0124 0127 0128 0129 0130 0131 0406 0501 0504 0505 0625 0626 1001 1002 1005 1006 1007 1008
2021 0101 0211 0212 0215 0216 0217 0405 0503 0504 0505 0614 0920 0921 1001 1004 1005 1006 1007
2022 0103 0131 0201 0202 0203 0204 0404 0405 0502 0503 0504 0603 0912 1003 1004 1005 1006 1007
2023 0102 0123 0124 0125 0126 0127 0405 0501 0502 0503 0622 0623 0929 1002 1003 1004 1005 1006
2024 0101 0209 0212 0213 0214 0215 0216 0404 0405 0501 0502 0503 0610 0916 0917 1001 1002 1003 1004 1007
2025 0101 0128 0129 0130 0131 0203 0204 0404 0501 0502 0505 0602 1001 1002 1003 1006 1007 1008
2026 0101 0102 0216 0217 0218 0219 0220 0223 0406 0501 0504 0505 0619 0925 1001 1002 1005 1006 1007
""".splitlines()}
# For years without a notice yet: first day of Spring Festival, Dragon Boat and Mid-Autumn, month and day.
_LUNAR_FESTIVALS = {
    2027: ('0207', '0609', '0915'), 2028: ('0127', '0528', '1003'), 2029: ('0213', '0616', '0922'),
    2030: ('0203', '0605', '0912'), 2031: ('0123', '0624', '1001'), 2032: ('0211', '0612', '0919'),
    2033: ('0131', '0601', '0908'), 2034: ('0219', '0620', '0927'), 2035: ('0208', '0610', '0916')}
_FIXED_HOLIDAYS = frozenset(['0101'] + ['050%d' % number for number in range(1, 6)]
                            + ['100%d' % number for number in range(1, 8)])
CALENDAR_YEARS = min(_CLOSED_WEEKDAYS), max(_CLOSED_WEEKDAYS)


def surely_closed(day):
    """Whether no source is needed to know that the exchanges do not trade on that date."""
    return day.weekday() >= 5 or day.strftime('%m%d') in _CLOSED_WEEKDAYS.get(day.year, ())


def exchange_opens(day):
    """Whether the exchanges trade on that date: from CALENDAR_YEARS as announced, in other years by rule.

    The rule: weekdays less New Year, Spring Festival from its eve to the seventh day, Qingming, 1 to 5 May, Dragon
    Boat, Mid-Autumn and 1 to 7 October. Announced calendars differ from it by single days, mostly bridges.
    """
    if day.weekday() >= 5 or day.year in _CLOSED_WEEKDAYS:
        return not surely_closed(day)
    text = day.strftime('%m%d')
    return text not in _FIXED_HOLIDAYS and text != _qingming(day.year) and not _lunar_holiday(day, text)


def _qingming(year):
    """Month and day of the solar term; the formula holds from 2001 to 2099."""
    return '04%02d' % (int(year % 100 * 0.2422 + 4.81) - year % 100 // 4)


def _lunar_holiday(day, text):
    spring, boat, autumn = _LUNAR_FESTIVALS.get(day.year, ('',) * 3)
    if not spring:
        return False
    return text in (boat, autumn) or -1 <= (day - date(day.year, int(spring[:2]), int(spring[2:]))).days <= 6


# ======================================================================================================
# 6. RECORDS - what travels: account, position, order, trade, tick; and Table, columns of arrays
# ======================================================================================================
RAW_STATUS = {48: 'new', 49: 'submitted', 50: 'open', 51: 'canceling', 52: 'canceling', 53: 'partly_canceled',
              54: 'canceled', 55: 'filling', 56: 'filled', 57: 'rejected', 255: 'submit_unknown'}
STATUS_RAW = {'new': 48, 'submitted': 49, 'open': 50, 'canceling': 51, 'partly_canceled': 53, 'canceled': 54,
              'filling': 55, 'filled': 56, 'rejected': 57, 'submit_unknown': 255}
CANCELED_STATUSES = frozenset(['partly_canceled', 'canceled'])
FINAL_STATUSES = CANCELED_STATUSES | {'filled', 'rejected'}
SIDES = {'BUY': 23, 'SELL': 24}
# Names of other servers for the same.
_STATUS_SPELLINGS = {'cancelled': 'canceled', 'partly_cancelled': 'partly_canceled', 'partly_filled': 'filling',
                     'partly_canceling': 'canceling', 'failed': 'rejected', 'error': 'rejected'}


def plain_status(value):
    """An order's status under our name; what is no text gives ''."""
    return _STATUS_SPELLINGS.get(value, value) if isinstance(value, str) else ''


class Record:
    """A row with named fields. FIELDS: ((name, default), ...). Unknown names are refused."""

    FIELDS = ()

    def __init__(self, **values):
        self.__dict__.update(self.FIELDS)
        self.__dict__.update(values)
        self._check_names(values)

    def _check_names(self, values):
        if len(self.__dict__) != len(self.FIELDS):
            raise TypeError('%s has no field %s' % (type(self).__name__, sorted(set(values) - set(dict(self.FIELDS)))))

    def replace(self, **changes):
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.__dict__.update(changes)
        new._check_names(changes)
        return new

    def as_dict(self):
        """In the order of FIELDS."""
        return dict(self.__dict__)

    @classmethod
    def from_wire(cls, row):
        """Takes what it knows of a row, so that a newer peer may send more."""
        return cls(**{name: row[name] for name, _ in cls.FIELDS if row.get(name) is not None})

    def __eq__(self, other):
        return type(other) is type(self) and self.as_dict() == other.as_dict()

    __hash__ = None

    def __repr__(self):
        return '%s(%s)' % (type(self).__name__, ', '.join('%s=%r' % item for item in self.as_dict().items()))


class Account(Record):
    """Money of an account, in yuan. frozen_cash is held by resting buys; total = cash + frozen + market value."""

    FIELDS = (('account_id', ''), ('account_type', 'stock'), ('available_cash', 0.0), ('transferable_cash', 0.0),
              ('frozen_cash', 0.0), ('market_value', 0.0), ('total_value', 0.0))

    def to_wire(self, positions=()):
        row = self.as_dict()
        row.update(total_asset=self.total_value, positions=[position.to_wire() for position in positions])
        return row


class Position(Record):
    """A holding. amount: all shares; closeable_amount: can be sold now; frozen: held by resting sales. Yuan a share."""

    FIELDS = (('security', ''), ('name', ''), ('amount', 0), ('closeable_amount', 0), ('frozen_volume', 0),
              ('avg_cost', 0.0), ('last_price', 0.0), ('market_value', 0.0))

    def to_wire(self):
        row = self.as_dict()
        row.update(available_amount=self.closeable_amount, can_use_volume=self.closeable_amount,
                   current_price=self.last_price, position_value=self.market_value)
        return row


class Order(Record):
    """An order as the broker shows it. order_price: its limit; avg_price: average fill or 0; time: naive Beijing."""

    FIELDS = (('order_id', ''), ('security', ''), ('side', 'BUY'), ('amount', 0), ('filled', 0), ('order_price', 0.0),
              ('avg_price', 0.0), ('deal_balance', 0.0), ('status', 'new'), ('raw_status', None), ('style', 'limit'),
              ('price_type', 50), ('order_remark', ''), ('strategy_name', ''), ('order_sysid', ''), ('time', None),
              ('status_msg', ''), ('commission', 0.0), ('tax', 0.0), ('idempotency_key', None),
              ('sub_account_id', None))

    @property
    def final(self):
        return self.status in FINAL_STATUSES

    @property
    def remaining(self):
        return self.amount - self.filled

    def to_wire(self):
        row = self.as_dict()
        moment = row.pop('time')
        row.update(is_buy=self.side == 'BUY', remaining=self.remaining, traded_volume=self.filled,
                   price=self.avg_price, traded_price=self.avg_price, style_type=self.style,
                   order_type=SIDES[self.side], raw_status=self._raw_status(),
                   order_time=epoch_seconds(moment) if moment else None)
        for name in ('idempotency_key', 'sub_account_id'):
            if row[name] is None:
                del row[name]
        return row

    def _raw_status(self):
        return STATUS_RAW[self.status] if self.raw_status is None else self.raw_status


class Trade(Record):
    """One fill. price in yuan a share, commission with transfer fee, time naive Beijing."""

    FIELDS = (('trade_id', ''), ('order_id', ''), ('security', ''), ('side', 'BUY'), ('amount', 0), ('price', 0.0),
              ('time', None), ('commission', 0.0), ('tax', 0.0), ('deal_balance', 0.0), ('order_remark', ''))

    def to_wire(self):
        row = self.as_dict()
        row.update(traded_price=self.price, trade_price=self.price, commission_fee=self.commission,
                   time=self.time.isoformat(sep=' ', timespec='seconds') if self.time else None)
        return row


_CELLS = {str: ('text', ''), int: ('int', 0), float: ('float', 0.0), bool: ('bool', False)}


def _row_columns(record):
    """What a Table of such rows has: name -> (Python type, column type, what stands for None)."""
    return OrderedDict((name, (type(value),) + _CELLS[type(value)]) for name, value in record.to_wire().items())


_A_MOMENT = datetime(2024, 1, 1)
ORDER_COLUMNS = _row_columns(Order(idempotency_key='', sub_account_id='', time=_A_MOMENT))
TRADE_COLUMNS = _row_columns(Trade(time=_A_MOMENT))


def row_table(rows, columns):
    """Order or trade rows of the wire as Table: a hundred thousand are too long for a frame of JSON."""
    def column(name, plain, empty):
        return [empty if value is None else plain(value) for value in (row.get(name) for row in rows)]
    return Table(OrderedDict((name, column(name, plain, empty)) for name, (plain, _, empty) in columns.items()),
                 {name: kind for name, (_, kind, _) in columns.items()})


def table_rows(table):
    """The rows of a row_table: no time is None again, no key and no sub-account are left out."""
    rows = table.rows()
    for row in rows:
        for name in ('order_time', 'time'):
            if name in row:
                row[name] = row[name] or None
        for name in ('idempotency_key', 'sub_account_id'):
            if row.get(name) == '':
                del row[name]
    return rows


class Tick(Record):
    """A quote. Prices in yuan, volume in shares and money in yuan since the open, dt naive Beijing.

    age_s: seconds since dt when it was read; stale: too old for trading hours; both None where the source cannot tell.
    """

    FIELDS = (('sid', ''), ('last_price', None), ('dt', None), ('open', None), ('high', None), ('low', None),
              ('pre_close', None), ('volume', 0), ('money', 0.0), ('high_limit', None), ('low_limit', None),
              ('paused', False), ('a1_p', None), ('a1_v', None), ('b1_p', None), ('b1_v', None), ('age_s', None),
              ('stale', None))

    def to_wire(self):
        row = self.as_dict()
        row.update(symbol=self.sid, dt=self.dt.isoformat(sep=' ') if self.dt else None)
        return {name: value for name, value in row.items() if value is not None or name not in ('age_s', 'stale')}


class OrderRequest(Record):
    """What is asked of a broker. style 'limit' has a price; 'market' has a protect_price, never left out.

    tag: at most 24 ASCII bytes, travels as the order's remark and is how an order is found again.
    market_type: '' or one of MARKET_TYPES of its exchange, which an adapter does as it says or refuses.
    """

    FIELDS = (('security', ''), ('side', 'BUY'), ('amount', 0), ('style', 'limit'), ('price', None),
              ('protect_price', None), ('tag', ''), ('strategy_name', ''), ('market_type', ''))

    @property
    def bound(self):
        """The worst price that it can fill at."""
        return self.price if self.style == 'limit' else self.protect_price


# Column types of a Table. 'time' holds whole milliseconds of Beijing wall time since 1970; None and NAT are no time.
COLUMN_TYPES = ('float', 'int', 'bool', 'time', 'text')
NAT = -1 << 63


class Table:
    """Named columns of equal length, each an array, list or numpy array of a type out of COLUMN_TYPES; index columns.

    columns: OrderedDict name -> values.   types: dict name -> type.   index: names of index columns, in order.
    wide:    None, or the list of (field, code) pairs that the data columns stand for (legacy panel form).
    index_names: what the index levels are called, None for no name.
    """

    def __init__(self, columns, types, index=(), index_names=None, wide=None):
        self.columns, self.types, self.index, self.wide = OrderedDict(columns), dict(types), list(index), wide
        self.index_names = [None] * len(self.index) if index_names is None else list(index_names)

    def __len__(self):
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name):
        """One column as a list of plain values; times as datetime."""
        return _plain_list(self.columns[name], self.types[name])

    @property
    def fields(self):
        return [name for name in self.columns if name not in self.index]

    def rows(self):
        """Dicts name -> plain value, in order."""
        plain = [self[name] for name in self.columns]
        return [dict(zip(self.columns, values)) for values in zip(*plain)]

    def slice(self, start, stop):
        return self.with_columns((name, values[start:stop]) for name, values in self.columns.items())

    def take(self, positions):
        columns = self.columns.items()
        return self.with_columns((name, _listed([values[i] for i in positions])) for name, values in columns)

    def with_columns(self, columns):
        columns = OrderedDict(columns)
        return Table(columns, {name: self.types[name] for name in columns}, self.index, self.index_names, self.wide)

    def __repr__(self):
        """The first and the last rows."""
        ends = range(len(self)) if len(self) <= 10 else list(range(5)) + list(range(len(self) - 5, len(self)))
        shown = [[_shown(value) for value in row.values()] for row in self.take(ends).rows()]
        if len(shown) < len(self):
            shown.insert(5, ['...'] * len(self.columns))
        lines = format_table(list(self.columns), shown, '>' * len(self.columns)) if self.columns else []
        return '\n'.join(lines + ['[%d rows x %d columns]' % (len(self), len(self.columns))])

    # -- legacy wire form: rows of JSON values -----------------------------------------------------------
    def to_wire(self):
        encoded = [_encode_column(values, self.types[name]) for name, values in self.columns.items()]
        payload = {'dtype': 'dataframe', 'columns': list(self.columns), 'records': [list(row) for row in zip(*encoded)]}
        return dict(payload, **self.shape_to_wire())

    def shape_to_wire(self):
        """What is to be said of index and column labels, in both forms."""
        said = {}
        if self.index:
            said.update(index_columns=self.index, index_names=self.index_names, index_type=self._index_type(),
                        index_dtypes=[_PANDAS_TYPES[self.types[name]] for name in self.index])
        if self.wide:
            said.update(column_tuples=[list(pair) for pair in self.wide], column_index_names=['field', 'code'])
        return said

    def _index_type(self):
        if len(self.index) > 1:
            return 'MultiIndex'
        return 'DatetimeIndex' if self.types[self.index[0]] == 'time' else 'Index'

    @classmethod
    def from_wire(cls, payload):
        """Reads what any server of this protocol sends; a binary table is one already. Else ProtocolError."""
        if isinstance(payload, Table):
            return payload
        if not _is_table(payload):
            raise ProtocolError('服务端的回答不是表格')
        names, records, index = payload['columns'], payload['records'], payload.get('index_columns') or []
        values = zip(*records) if records else [()] * len(names)
        typed = [_decode_column(name, list(column), name in index) for name, column in zip(names, values)]
        columns = OrderedDict((name, column) for name, column, _ in typed)
        return cls._shaped(payload, columns, {name: kind for name, _, kind in typed})

    @classmethod
    def from_columns(cls, payload, columns, types):
        """The table of a binary frame; payload: what shape_to_wire said. Raises ProtocolError."""
        pairs, index = payload.get('column_tuples') or [], payload.get('index_columns') or []
        if not (set(types.values()) <= set(COLUMN_TYPES) and _are_names(list(columns)) and _are_pairs(pairs)
                and _is_index(columns, index, payload.get('index_names'))):
            raise ProtocolError('服务端的回答不是表格')
        return cls._shaped(payload, columns, types)

    @classmethod
    def _shaped(cls, payload, columns, types):
        pairs = [tuple(pair) for pair in payload.get('column_tuples') or []] or None
        return cls(columns, types, payload.get('index_columns') or [], payload.get('index_names'), pairs)

    # -- pandas ------------------------------------------------------------------------------------------
    def to_pandas(self):
        """DataFrame with the index and column order of this table."""
        pandas, numpy = optional_import('pandas'), optional_import('numpy')
        frame = self._frame_of_floats(pandas, numpy) if self._is_matrix() else self._frame(pandas, numpy)
        if self.wide:
            frame.columns = pandas.MultiIndex.from_tuples(self.wide, names=['field', 'code'])
        return frame

    def _is_matrix(self):
        """Floats by one index column: most histories."""
        floats = all(self.types[name] == 'float' for name in self.fields)
        return len(self.index) == 1 and len(self.columns) > 1 and floats

    def _frame_of_floats(self, pandas, numpy):
        """All columns in one block, which is where they lie already if they came so."""
        columns = [_as_numpy(numpy, self.columns[name], 'float') for name in self.fields]
        name = self.index[0]
        labels = _pandas_column(pandas, numpy, self.columns[name], self.types[name])
        index = pandas.Index(labels, name=self.index_names[0])
        return pandas.DataFrame(_stacked(numpy, columns).T, index=index, columns=self.fields, copy=False)

    def _frame(self, pandas, numpy):
        data = OrderedDict((name, pandas.Series(_pandas_column(pandas, numpy, values, self.types[name])))
                           for name, values in self.columns.items())
        frame = pandas.DataFrame(data, columns=list(data))
        if self.index:
            frame = frame.set_index(self.index)
            frame.index.names = self.index_names
        return frame


def _is_table(payload):
    """Rows of unequal length, say, would be cut without a word: the shape is looked at before anything is read."""
    if not isinstance(payload, dict) or payload.get('dtype') != 'dataframe':
        return False
    names, records, pairs = payload.get('columns'), payload.get('records'), payload.get('column_tuples') or []
    if not _are_names(names) or not isinstance(records, list) or not isinstance(pairs, list):
        return False
    return (all(isinstance(row, list) and len(row) == len(names) for row in records) and _are_pairs(pairs)
            and _is_index(names, payload.get('index_columns') or [], payload.get('index_names')))


def _are_pairs(pairs):
    return isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)


def _is_index(names, index, index_names):
    named = index_names is None or (isinstance(index_names, list) and len(index_names) == len(index))
    return _are_names(index) and set(index) <= set(names) and named


def _are_names(value):
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


_PANDAS_TYPES = {'time': 'datetime64[ns]', 'text': 'object', 'int': 'int64', 'float': 'float64', 'bool': 'bool'}


def _listed(values):
    """Plain Python values, whatever holds them."""
    if hasattr(values, 'tolist'):
        return values.tolist()
    return [value.item() if hasattr(value, 'item') else value for value in values]


def _plain_list(values, kind):
    values = _listed(values)
    if kind != 'time':
        return values
    return [None if value is None or value == NAT else from_ms(value) for value in values]


def _shown(value):
    return '%.10g' % value if isinstance(value, float) else value


def _encode_column(values, kind):
    """NaN and infinities have no JSON; both travel as null."""
    values = _listed(values)
    if kind == 'float':
        return [value if value - value == 0 else None for value in values]
    if kind == 'time':
        return [None if value is None or value == NAT else iso_ms(value) for value in values]
    return values


def _decode_column(name, values, indexed):
    """(name, column, type) of JSON values. Only an index column or one named like a time holds times."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
        if len(known) == len(values) and all(isinstance(value, int) for value in known):
            return name, values, 'int'
        return name, array('d', [math.nan if value is None else value for value in values]), 'float'
    if known and all(isinstance(value, bool) for value in known) and len(known) == len(values):
        return name, values, 'bool'
    if known and (indexed or name in _TIME_COLUMNS):
        return _decode_times(name, values)
    return (name, values, 'text') if known or not values else (name, array('d', [math.nan] * len(values)), 'float')


_TIME_COLUMNS = ('time', 'datetime', 'date', 'start_date', 'end_date')


def _decode_times(name, values):
    try:
        return name, [None if value is None else to_ms(parse_moment(value)[0]) for value in values], 'time'
    except ValueError:
        return name, values, 'text'


def _as_numpy(numpy, values, kind):
    """A numpy array of a column of numbers; an array or numpy array of them is not copied."""
    dtype = {'float': 'f8', 'bool': 'bool'}.get(kind, 'i8')
    if kind == 'time' and isinstance(values, list):
        values = [NAT if value is None else value for value in values]
    if isinstance(values, array) and len(values):
        return numpy.frombuffer(values, dtype)
    return numpy.asarray(values, dtype)


def _pandas_column(pandas, numpy, values, kind):
    """What pandas makes a column of: datetime64[ns] for times."""
    if kind == 'text':
        return pandas.Series(_listed(values), dtype='object')
    if kind == 'int' and isinstance(values, list) and any(abs(value) >= 1 << 63 for value in values):
        return pandas.Series(values, dtype='object')
    column = _as_numpy(numpy, values, kind)
    return column.view('M8[ms]').astype('M8[ns]') if kind == 'time' else column


def _stacked(numpy, columns):
    """A matrix with a row for each column; a view where they lie one behind the other, as in a binary frame."""
    first, rows = columns[0], len(columns[0])
    places = [column.__array_interface__['data'][0] for column in columns]
    together = all(column.flags.c_contiguous and column.flags.writeable for column in columns) and rows > 0
    if together and _have_one_owner(columns) and places == [places[0] + 8 * rows * i for i in range(len(columns))]:
        return numpy.lib.stride_tricks.as_strided(first, (len(columns), rows), (8 * rows, 8))
    return numpy.array(columns) if rows else numpy.empty((len(columns), 0))


def _have_one_owner(columns):
    """Whether one object holds the memory of all, so that a view of the first keeps all of it alive.

    Small arrays of their own may lie side by side as well, and each is gone when its owner is.
    """
    owner = _owner(columns[0])
    return owner is not None and all(_owner(column) is owner for column in columns)


def _owner(column):
    base = column.base
    while hasattr(base, 'base'):
        base = base.base
    return base.obj if isinstance(base, memoryview) else None


OVERVIEW_HEADERS = ('股票代码', '名称', '持仓', '可用', '成本价', '现价', '市值', '盈亏', '盈亏%', '占比%')


def account_overview(account, positions, limit=20):
    """Text that a trader reads: who, the money, and a table of the largest positions, `limit` rows at most."""
    held = sorted(positions, key=lambda position: -position.market_value)
    total = account.total_value
    lines = ['QMT 连接建立: account_id=%s, type=%s' % (printable(account.account_id), account.account_type),
             '总资产 %s，可用资金 %s，持仓市值 %s，仓位 %s' % (
                 _yuan(total), _yuan(account.available_cash), _yuan(account.market_value),
                 _percent(account.market_value, total))]
    if not held:
        return '\n'.join(lines + ['（没有持仓）'])
    rows = [_overview_row(position, total) for position in held[:limit]]
    lines += format_table(OVERVIEW_HEADERS, rows, '<<' + '>' * 8)
    if len(held) > limit:
        rest = held[limit:]
        lines.append('... 另有 %d 只，市值合计 %s' % (len(rest), _yuan(sum(item.market_value for item in rest))))
    return '\n'.join(lines)


def _overview_row(position, total):
    cost = position.avg_cost * position.amount
    profit = position.market_value - cost
    return (position.security, position.name, position.amount, position.closeable_amount, '%.3f' % position.avg_cost,
            '%.3f' % position.last_price, _yuan(position.market_value), _yuan(profit), _percent(profit, cost),
            _percent(position.market_value, total))


def _yuan(value):
    return '{:,.2f}'.format(value)


def _percent(part, whole_value):
    return '%.2f%%' % (100.0 * part / whole_value) if whole_value else '-'


# ======================================================================================================
# 7. WIRE - framing, JSON, binary tables; one codec and one channel for both sides
# ======================================================================================================
# A frame is a 4-byte big-endian word and a body. The low 30 bits of the word are the length of the body; a plain frame
# has no other bit set, its body is UTF-8 JSON, one object, at most 32 MiB, and at most 4 KiB until the login is done.
# The rest of this page is only sent between peers that both named the feature `binary1` in the handshake.
#
# Bit 31, BINARY: a table beside the JSON. The body is
#     4 bytes big-endian: length of the JSON | the JSON | zeros up to a multiple of 8 | blocks
# The JSON is an ordinary frame whose payload, with dtype "columns", describes the table: rows, index_columns,
# index_names, column_tuples as in the JSON form, and columns, a list of [name, type, codec, size] or
# [name, type, codec, size, parameters]. The blocks are those of the columns, in their order, `size` bytes each, each
# filled up with zeros to a multiple of 8, so that a reader may use the plain ones where they lie. All little-endian:
#     codec    types           block
#     plain    float int time  rows numbers of 8 bytes: IEEE 754 doubles, or signed integers; time in ms of the Beijing
#                              wall clock since 1970, NaT is the smallest integer
#     bytes    bool            rows bytes, 0 or 1
#     text     text            4 bytes big-endian: length of a JSON list of the distinct values (null among them where a
#                              text is missing) | the list | rows codes into it, {"width"} bytes each, unsigned
#     json     int             a JSON list: integers that 8 bytes do not hold
#     zlib     any of these    a deflated block of the codec {"of"}, whose inflated length is {"length"}; the bytes of
#                              its numbers stand in planes: first the lowest byte of each number, then the next
#     delta    float int time  deflated planes of the {"width"} lowest bytes of rows signed integers. The integers are
#                              the differences of the wanted ones, the first of which is {"first"}; with {"order": 0}
#                              they are those wanted less {"first"}. A float is such an integer divided by
#                              10 ** {"digits"}. {"nulls"}, if any: so many bytes before them are a deflated byte for
#                              each row, 1 where the float is NaN (the integers go on with that before)
# zlib and delta are sent only where the request asked for "compact". A sender proves bit by bit that delta gives each
# value back, and sends another codec where it does not.
#
# Bit 30, PART: a frame too long to let others wait is sent in parts. The body is 4 bytes, the number of the stream, and
# bytes. The bytes of all parts of a stream, one after the other, are a whole frame with its own word, which may be
# longer than 32 MiB; the stream ends with that frame. Between parts any other frames may come.
FRAME_LIMIT = 32 * 1024 * 1024
REQUEST_LIMIT = 4 * 1024 * 1024  # bytes of a request: the largest holds some thousand codes
PARTED_LIMIT = 512 * 1024 * 1024  # a frame in parts
LOGIN_LIMIT = 4096
PROTOCOL = 1
KEEPALIVE_S = 20
DEPTH_LIMIT = 64
SLOWEST_BYTES_S = 4096  # a peer that reads a large frame more slowly than this is given up
BINARY_FEATURE, BATCH_TICK_FEATURE, ORDER_STREAM_FEATURE = 'binary1', 'batch_tick1', 'order_stream1'
PROGRESS_FEATURE = 'progress1'
ORDERS_FEATURE = 'orders1'  # broker.orders takes `open`: those that may still fill; it and broker.trades `table`
QUOTES_FEATURE = 'quotes1'  # data.live_current takes `securities`, and answers with `quotes` of those that have one
QUOTES_AT_ONCE = 200
SETTLED_FEATURE = 'order_settled'  # what became of an order whose outcome was unknown; its event has the same name
_BINARY_BIT, _PART_BIT, _LENGTH_MASK = 1 << 31, 1 << 30, (1 << 30) - 1
_LENGTH = struct.Struct('>I')
_PART_HEAD = struct.Struct('>II')


def encode_frame(frame):
    """Dict -> bytes. Raises FrameTooLarge, and ValueError for NaN: whoever builds a payload sends None for it."""
    data = _encode_json(frame)
    if len(data) > FRAME_LIMIT:
        raise FrameTooLarge('数据 %d 字节，超过一帧的上限 %d' % (len(data), FRAME_LIMIT),
                            '缩小时间范围、字段或证券数量；委托、成交按 security、status、order_id 分次要')
    return _LENGTH.pack(len(data)) + data


def _encode_json(value):
    text = _ENCODER.encode(value)
    return text.encode('utf-8', 'backslashreplace')  # half a surrogate pair, echoed, has no UTF-8 but a JSON escape


def _encode_other(value):
    """What requests may hold beside JSON's own types: times, numpy numbers, decimals."""
    if isinstance(value, (datetime, date)):
        return _wire_moment(value)
    if isinstance(value, (numbers.Real, Decimal)):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    raise TypeError('cannot be sent: %r' % type(value).__name__)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(',', ':'), default=_encode_other)


def _wire_moment(value):
    moment, has_clock = parse_moment(value)
    return moment.isoformat(sep=' ') if has_clock else moment.date().isoformat()


class UnsoundFrame(ProtocolError):
    """A frame that ends where it should, of JSON that is refused: the connection may go on. frame_id: what it named."""

    def __init__(self, message, frame_id=None):
        super().__init__(message)
        self.frame_id = frame_id


class _Refused(ValueError):
    """JSON, but not what a frame may hold."""


def decode_frame(data, lenient=False):
    """Bytes -> dict. Raises ProtocolError for anything that is no sound JSON object.

    lenient: NaN and Infinity become None, which legacy servers send where the protocol says null.
    """
    try:
        text = str(data, 'utf-8')
        frame = (_LENIENT if lenient else _STRICT).decode(text)
    except UnicodeDecodeError:
        raise _no_frame('帧不是 UTF-8', str(data, 'utf-8', 'replace'))
    except (_Refused, RecursionError) as error:
        raise UnsoundFrame('帧的内容不能接受：%s' % brief(str(error)), _id_in(text))
    except ValueError as error:
        raise _no_frame('帧不是合法的 JSON：%s' % brief(str(error)), text)
    if not isinstance(frame, dict):
        raise UnsoundFrame('帧应为 JSON 对象')
    return frame


def _no_frame(message, text):
    """Who names an id speaks this protocol, if badly; with anybody else it is over."""
    frame_id = _id_at_the_head(text[:_HEAD_CHARS])
    return ProtocolError(message) if frame_id is None else UnsoundFrame(message, frame_id)


def decode_sound(data):
    """decode_frame of what a server of this kind sends: read by the interpreter's own parser alone."""
    try:
        frame = json.loads(str(data, 'utf-8'))
    except (ValueError, RecursionError) as error:
        raise ProtocolError('帧不是合法的 JSON：%s' % brief(str(error)))
    if not isinstance(frame, dict):
        raise ProtocolError('帧应为 JSON 对象')
    return frame


def _no_doubles(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Refused('有重复的键')
    return result


def _short_int(digits):
    if len(digits) > 30:
        raise _Refused('整数超过 30 位')
    return int(digits)


def _echoed_int(digits):
    return int(digits) if len(digits) <= 128 else None


def plain_id(value):
    """The id to answer with: a short text or finite number, exactly as it came."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float)) and len(str(value)) <= 128 else None


# NaN and infinities are no JSON, but legacy clients write them: a frame may hold them, and no check of a value passes
# them, so that the request is answered instead of the connection being cut.
_STRICT = json.JSONDecoder(object_pairs_hook=_no_doubles, parse_constant=float, parse_int=_short_int)
_LENIENT = json.JSONDecoder(parse_constant=lambda name: None, parse_int=_short_int)
_ANYTHING = json.JSONDecoder(parse_int=_echoed_int)
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{},:]|[^][{},:"\s]+')
_HEAD_CHARS = 1024  # of a frame too deep to be parsed: its id stands before what is deep, or is not found


def _id_in(text):
    """The id of a frame whose content is refused, or None."""
    try:
        frame = _ANYTHING.decode(text)
        return plain_id(frame.get('id')) if isinstance(frame, dict) else None
    except (ValueError, RecursionError):
        return _id_at_the_head(text[:_HEAD_CHARS])


def _id_at_the_head(text):
    tokens, depth = _TOKEN.findall(text), 0
    for place, token in enumerate(tokens):
        depth += (token in ('{', '[')) - (token in ('}', ']'))
        if depth == 1 and token == '"id"' and tokens[place + 1:place + 2] == [':'] and place + 3 < len(tokens):
            return _scalar(tokens[place + 2])


def _scalar(token):
    try:
        return plain_id(_ANYTHING.decode(token))
    except ValueError:
        return None


def decode_request(data):
    """decode_frame for what a client sends. Few frames hold enough brackets for their depth to need a look."""
    frame = decode_frame(data)
    if data.count(b'[') + data.count(b'{') > DEPTH_LIMIT:
        check_depth(frame, frame.get('id'))
    return frame


def decode_lenient(data):
    return decode_frame(data, lenient=True)


def check_depth(value, frame_id=None):
    """Refuses nesting that no request has, before anybody walks it recursively."""
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [child for item in level if isinstance(item, (dict, list))
                 for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise UnsoundFrame('嵌套超过 %d 层' % DEPTH_LIMIT, plain_id(frame_id))


# -- blocks of columns ---------------------------------------------------------------------------------------------
# Numbers come as array, list or numpy array and leave as numpy arrays where `numpy` is given, otherwise as arrays and
# lists. Whatever one way has packed, either unpacks.
_MAX_EXACT = 1 << 53  # integers below are floats without loss
_MAX_DIGITS = 4
_ZLIB_LEVEL = 1  # prices are mostly small differences by then: higher levels take their time for a few per cent


def _little(numbers_in_order):
    """The bytes of an array, little-endian, without a copy where the machine is."""
    return memoryview(little_endian(numbers_in_order)).cast('B') if len(numbers_in_order) else b''


def _native(typecode, data, numpy=None):
    """Numbers out of little-endian bytes; with numpy a view of them."""
    if numpy is not None:
        return numpy.frombuffer(data, {'d': '<f8', 'q': '<i8', 'B': 'u1', 'H': '<u2', 'I': '<u4'}[typecode])
    values = array(typecode)
    values.frombytes(data)
    return little_endian(values)


def _doubles(values, numpy=None):
    """Any floats as an array('d') or numpy array."""
    if hasattr(values, 'dtype') or numpy is not None:
        return (numpy or optional_import('numpy')).ascontiguousarray(values, dtype='<f8')
    return values if isinstance(values, array) and values.typecode == 'd' else array('d', values)


def _integers(values, numpy=None):
    """Any integers as an array('q') or numpy array; None is NaT. OverflowError where 8 bytes do not hold one."""
    if hasattr(values, 'dtype'):
        return values.astype('<i8')
    if not isinstance(values, array):
        values = [NAT if value is None else value for value in values] if None in values else values
        values = array('q', values)
    return _native('q', _little(values), numpy) if numpy is not None else values


def _raw(values):
    """Little-endian bytes of what _doubles or _integers gave."""
    return _little(values) if isinstance(values, array) else memoryview(values).cast('B') if len(values) else b''


def _planes(data, width, size=8):
    """The `width` lowest bytes of numbers of `size` bytes, plane by plane."""
    data = bytes(data)
    return b''.join(data[place::size] for place in range(width))


_SIGNS = bytes(0 if byte < 128 else 255 for byte in range(256))


def _from_planes(data, rows, width, signed):
    """The bytes of numbers of 8 bytes; signed: the missing high bytes repeat the sign."""
    numbers_in_order = bytearray(8 * rows)
    for place in range(width):
        numbers_in_order[place::8] = data[place * rows:(place + 1) * rows]
    if signed and width < 8:
        signs = bytes(data[(width - 1) * rows:]).translate(_SIGNS)
        for place in range(width, 8):
            numbers_in_order[place::8] = signs
    return numbers_in_order


def inflate(data, length):
    """Exactly `length` bytes; never makes more. Raises ProtocolError for anything else."""
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(bytes(data), length + 1)
    except zlib.error as error:
        raise ProtocolError('压缩的数据损坏：%s' % error)
    if len(result) != length or not inflater.eof:
        raise ProtocolError('压缩的数据长度不符')
    return result


def _plain_block(kind, values, numpy):
    """(codec, bytes, parameters) of a column as it is."""
    if kind == 'float':
        return 'plain', _raw(_doubles(values, numpy)), {}
    if kind == 'bool':
        return 'bytes', bytes(bytearray(map(bool, values))), {}
    if kind == 'text':
        return _text_block(values)
    try:
        return 'plain', _raw(_integers(values, numpy)), {}
    except OverflowError:
        return 'json', _encode_json(list(values)), {}


def _text_block(values):
    places = {value: place for place, value in enumerate(OrderedDict.fromkeys(values))}
    width = 1 if len(places) <= 256 else 2 if len(places) <= 65536 else 4
    codes = array({1: 'B', 2: 'H', 4: 'I'}[width], [places[value] for value in values])
    names = _encode_json(list(places))
    return 'text', _LENGTH.pack(len(names)) + names + bytes(_little(codes)), {'width': width}


def _compact_block(kind, values, numpy):
    if kind in ('float', 'int', 'time') and len(values):
        block = _delta_block(kind, values, numpy)
        if block is not None:
            return block
    codec, data, parameters = _plain_block(kind, values, numpy)
    planes = _planes(data, 8) if codec == 'plain' else bytes(data)
    return 'zlib', zlib.compress(planes, _ZLIB_LEVEL), dict(parameters, of=codec, length=len(data))


def _delta_block(kind, values, numpy):
    """The column as differences of integers, or None where that would not give each value back."""
    tools = _PlainTools if numpy is None else _NumpyTools(numpy)
    parameters, nulls = {}, b''
    if kind == 'float':
        found = _as_decimals(tools, _doubles(values, numpy))
        if found is None:
            return None
        integers, parameters['digits'], mask = found
        nulls = zlib.compress(mask, _ZLIB_LEVEL) if mask else b''
    else:
        try:
            integers = _integers(values, numpy)
        except OverflowError:
            return None
    if not tools.fits(integers):
        return None
    order, first, steps = _steps(tools, integers)
    width = _width(tools.extremes(steps))
    parameters.update(first=first, width=width, **({} if order else {'order': 0}))
    if nulls:
        parameters['nulls'] = len(nulls)
    return 'delta', nulls + zlib.compress(_planes(_raw(steps), width), _ZLIB_LEVEL), parameters


def _as_decimals(tools, values):
    """(integers, digits, mask of NaN or b'') so that integer / 10 ** digits is each value to the bit; or None."""
    mask, filled = tools.without_nans(values)
    if not tools.same_nans(values, mask):
        return None
    for digits in range(_MAX_DIGITS + 1):
        scale = 10.0 ** digits
        if tools.is_exact(tools.sample(filled), scale) and tools.is_exact(filled, scale):
            return tools.scaled(filled, scale), digits, mask
    return None


def _steps(tools, integers):
    """(order, first, integers to be packed): differences, or where these are larger the values less the first."""
    first = int(integers[0])
    steps, level = tools.differences(integers), tools.less(integers, first)
    if tools.weight(level) < tools.weight(steps):
        return 0, first, level
    return 1, first, steps


def _width(extremes):
    return next(width for width in range(1, 9) if -1 << (8 * width - 1) <= min(extremes) and
                max(extremes) < 1 << (8 * width - 1))


class _PlainTools:
    """What packing asks of a column, on arrays. The same names stand in _NumpyTools."""

    @staticmethod
    def without_nans(values):
        """(a byte for each row, 1 where it is NaN, or b''; the values, with the one before in its place, or 0.0)."""
        mask = bytes(bytearray(value != value for value in values))
        if 1 not in mask:
            return b'', values
        filled, last = array('d'), 0.0
        for value in values:
            last = value if value == value else last
            filled.append(last)
        return mask, filled

    @staticmethod
    def same_nans(values, mask):
        """Whether each NaN is the ordinary one: only that comes back."""
        bits = _native('q', _little(values))
        return all(bits[i] == _NAN_BITS for i, is_null in enumerate(mask) if is_null)

    @staticmethod
    def sample(values):
        return values[::max(1, len(values) // 64)]

    @staticmethod
    def scaled(values, scale):
        return array('q', [round(value * scale) for value in values])

    @classmethod
    def is_exact(cls, values, scale):
        limit = _MAX_EXACT / scale
        if not all(-limit < value < limit for value in (min(values), max(values))):
            return False
        return bytes(_little(array('d', [number / scale for number in cls.scaled(values, scale)]))) == _little(values)

    @staticmethod
    def fits(integers):
        """Whether no difference of two overflows."""
        return -_MAX_EXACT < min(integers) and max(integers) < _MAX_EXACT

    @staticmethod
    def differences(integers):
        return array('q', [0] + [after - before for before, after in zip(integers, integers[1:])])

    @staticmethod
    def less(integers, first):
        return array('q', [number - first for number in integers])

    @staticmethod
    def weight(integers):
        return sum(map(abs, integers))

    @staticmethod
    def extremes(integers):
        return min(integers), max(integers)


_NAN_BITS = struct.unpack('<q', struct.pack('<d', math.nan))[0]


class _NumpyTools:
    """_PlainTools on numpy arrays."""

    def __init__(self, numpy):
        self.numpy = numpy

    def without_nans(self, values):
        numpy = self.numpy
        is_null = numpy.isnan(values)
        if not is_null.any():
            return b'', values
        places = numpy.maximum.accumulate(numpy.where(is_null, -1, numpy.arange(len(values))))
        return is_null.astype('u1').tobytes(), numpy.where(places < 0, 0.0, values[places])

    def same_nans(self, values, mask):
        is_null = self.numpy.frombuffer(mask, 'u1').astype(bool) if mask else slice(0)
        return bool((values.view('<i8')[is_null] == _NAN_BITS).all())

    sample = staticmethod(_PlainTools.sample)

    def scaled(self, values, scale):
        return self.numpy.rint(values * scale).astype('<i8')

    def is_exact(self, values, scale):
        limit = _MAX_EXACT / scale
        if not all(-limit < value < limit for value in (values.min(), values.max())):
            return False
        return bool(((self.scaled(values, scale) / scale).view('<i8')
                     == self.numpy.ascontiguousarray(values).view('<i8')).all())

    def fits(self, integers):
        return bool(-_MAX_EXACT < integers.min() and integers.max() < _MAX_EXACT)

    def differences(self, integers):
        return self.numpy.concatenate((integers[:1] - integers[:1], self.numpy.diff(integers)))

    def less(self, integers, first):
        return integers - first

    def weight(self, integers):
        return int(self.numpy.abs(integers).sum(dtype='f8'))

    def extremes(self, integers):
        return int(integers.min()), int(integers.max())


# -- blocks back into columns: nothing is believed that the peer says of lengths ---------------------------------------
def _read_block(kind, codec, data, rows, parameters, numpy):
    """A column. Raises ProtocolError, or ValueError, TypeError, KeyError, IndexError for what makes no sense."""
    if codec == 'zlib':
        inflated = inflate(data, _bounded(parameters['length'], 8 * rows + 8 * len(data) + 4096))
        codec = parameters['of']
        data = _from_planes(inflated, rows, 8, False) if codec == 'plain' else inflated
    if codec == 'delta' and kind in ('float', 'int', 'time'):
        return _read_delta(kind, data, rows, parameters, numpy)
    return _BLOCK_READERS[kind, codec](data, rows, parameters, numpy)


def _bounded(value, maximum):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
        raise ProtocolError('表格的描述不合理：%s' % brief(value))
    return value


def _read_plain(typecode):
    def read(data, rows, parameters, numpy):
        if len(data) != 8 * rows:
            raise ProtocolError('表格的列长度不符')
        return _native(typecode, data, numpy)
    return read


def _read_bytes(data, rows, parameters, numpy):
    if len(data) != rows:
        raise ProtocolError('表格的列长度不符')
    return list(map(bool, bytes(data)))


def _read_text(data, rows, parameters, numpy):
    length = _bounded(_LENGTH.unpack_from(data)[0], len(data))
    names, width = json.loads(str(data[4:4 + length], 'utf-8')), parameters['width']
    codes = data[4 + length:]
    if len(codes) != width * rows or not all(name is None or isinstance(name, str) for name in names):
        raise ProtocolError('表格的列长度不符')
    return [names[code] for code in _native({1: 'B', 2: 'H', 4: 'I'}[width], bytes(codes))]


def _read_json(data, rows, parameters, numpy):
    values = json.loads(str(data, 'utf-8'))
    if not isinstance(values, list) or len(values) != rows or not all(type(value) is int for value in values):
        raise ProtocolError('表格的列长度不符')
    return values


_BLOCK_READERS = {('float', 'plain'): _read_plain('d'), ('int', 'plain'): _read_plain('q'),
                  ('time', 'plain'): _read_plain('q'), ('bool', 'bytes'): _read_bytes, ('text', 'text'): _read_text,
                  ('int', 'json'): _read_json}


def _read_delta(kind, data, rows, parameters, numpy):
    nulls = _bounded(parameters.get('nulls', 0), len(data))
    width, first = _bounded(parameters['width'], 8), parameters['first']
    if not width or not isinstance(first, int) or abs(first) >= _MAX_EXACT:
        raise ProtocolError('表格的描述不合理')
    steps = _native('q', _from_planes(inflate(data[nulls:], width * rows), rows, width, True), numpy)
    integers = _summed(steps, first, parameters.get('order', 1), numpy)
    if kind != 'float':
        return integers
    values = _divided(integers, 10.0 ** _bounded(parameters['digits'], _MAX_DIGITS), numpy)
    return _with_nans(values, inflate(data[:nulls], rows), numpy) if nulls else values


def _summed(steps, first, order, numpy):
    if numpy is not None:
        return (steps.cumsum() if order else steps) + first
    return array('q', [number + first for number in (itertools.accumulate(steps) if order else steps)])


def _divided(integers, scale, numpy):
    return integers / scale if numpy is not None else array('d', [number / scale for number in integers])


def _with_nans(values, mask, numpy):
    if numpy is not None:
        values[numpy.frombuffer(mask, 'u1') != 0] = math.nan
        return values
    return array('d', [math.nan if is_null else value for value, is_null in zip(values, mask)])


# -- ticks: one in a frame for legacy clients, many for those that named the feature -----------------------------------
def encode_ticks(ticks):
    """The frame of ticks; each is (Tick, the spelling of its security that the client used)."""
    rows = [dict(tick.to_wire(), symbol=symbol) for tick, symbol in ticks]
    fields = list(OrderedDict.fromkeys(name for row in rows for name in row))
    payload = {'fields': fields, 'rows': [[row.get(name) for name in fields] for row in rows]}
    return encode_frame({'type': 'event', 'event': 'ticks', 'payload': payload})


def decode_ticks(payload):
    """Dicts of the ticks of a batch. Raises ProtocolError."""
    known = isinstance(payload, dict) and _are_names(payload.get('fields')) and isinstance(payload.get('rows'), list)
    if not known:
        raise ProtocolError('行情推送的格式不对')
    return [dict(zip(payload['fields'], row)) for row in payload['rows'] if isinstance(row, list)]


def feature_names(value):
    """Those that a peer names in its handshake; of another type they are none."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


# -- tables ------------------------------------------------------------------------------------------------------------
def encode_table_frame(frame, table, compact=False):
    """The pieces of a binary frame whose payload is the table; together they are the frame."""
    numpy = optional_import('numpy') if compact else None
    pack, described, blocks, size = _compact_block if compact else _plain_block, [], [], 0
    for name, values in table.columns.items():
        codec, data, parameters = pack(table.types[name], values, numpy)
        described.append([name, table.types[name], codec, len(data)] + ([parameters] if parameters else []))
        blocks += [data, bytes(-len(data) % 8)]
        size += len(data) + -len(data) % 8
    head = _table_head(frame, table, described)
    if len(head) + size > PARTED_LIMIT:
        raise FrameTooLarge('数据 %d 字节，超过上限 %d' % (size, PARTED_LIMIT), '缩小时间范围、字段或证券数量')
    return [_LENGTH.pack(_BINARY_BIT | (len(head) + size)), head] + [block for block in blocks if len(block)]


def _table_head(frame, table, described):
    payload = {'dtype': 'columns', 'rows': len(table), 'columns': described}
    text = _encode_json(dict(frame, payload=dict(payload, **table.shape_to_wire())))
    return _LENGTH.pack(len(text)) + text + bytes(-(4 + len(text)) % 8)


def decode_table_frame(body):
    """The body of a binary frame -> dict whose payload is a Table. Raises ProtocolError."""
    body = memoryview(body)
    if len(body) < 4:
        raise ProtocolError('二进制帧太短')
    length = _bounded(_LENGTH.unpack_from(body)[0], len(body) - 4)
    frame = decode_frame(body[4:4 + length], lenient=True)
    try:
        return dict(frame, payload=_decode_table(frame['payload'], body[4 + length + -(4 + length) % 8:]))
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise ProtocolError('二进制表格损坏：%s' % brief(str(error)))


def _decode_table(payload, raw):
    numpy = optional_import('numpy') if optional_import('pandas') is not None else None
    rows, described = _bounded(payload['rows'], PARTED_LIMIT), payload['columns']
    _bounded(8 * rows * max(1, len(described)), PARTED_LIMIT)
    if rows and not described:
        raise ProtocolError('表格没有列')
    columns, types, place = OrderedDict(), {}, 0
    for name, kind, codec, size, *parameters in described:
        _bounded(size, len(raw) - place)
        if len(parameters) > 1 or not all(isinstance(item, dict) for item in parameters):
            raise ProtocolError('表格的描述不合理')
        if name in columns:
            raise ProtocolError('表格的列 %s 出现了两次' % brief(name))
        columns[name] = _read_block(kind, codec, raw[place:place + size], rows, (parameters or [{}])[0], numpy)
        types[name] = kind
        place += size + -size % 8
    return Table.from_columns(payload, columns, types)


def part_head(number, size):
    """What goes before `size` bytes of the stream of that number."""
    return _PART_HEAD.pack(_PART_BIT | (4 + size), number & 0xffffffff)


# -- channel -----------------------------------------------------------------------------------------------------------
class _Arriving:
    """A body on its way: `data` is filled from the front."""

    def __init__(self, word, length):
        self.word, self.data, self.filled = word, bytearray(length), 0

    @property
    def missing(self):
        return len(self.data) - self.filled

    def take(self, chunk):
        self.data[self.filled:self.filled + len(chunk)] = chunk
        self.filled += len(chunk)


class _Spin:
    """Looks for input again and again for a moment before its thread sleeps: to be woken takes longer than an answer.

    Only where it paid off lately: each miss makes it rest for twice as many waits.
    """

    MOMENT_S, LONGEST_REST = 0.0002, 1024

    def __init__(self):
        self._rest, self._misses = 0 if has_many_cores() else math.inf, 0

    def sees(self, is_there):
        """is_there(0) -> whether there is input. Whether some came in this moment."""
        if self._rest:
            self._rest -= 1
            return False
        end = time.perf_counter() + self.MOMENT_S  # monotonic() moves in steps of 16 ms on older Pythons of Windows
        while time.perf_counter() < end:
            if is_there(0):
                self._misses = 0
                return True
        self._misses += 1
        self._rest = min(self.LONGEST_REST, 2 ** self._misses)
        return False


class Channel:
    """Frames over a connected socket, plain or TLS, for one reading and many writing threads.

    For the caller: read_frame, write_frame, write, try_write, abort (from any thread), close (by its one reader).
    decode(bytes) -> frame, for plain frames. binary: whether the peer may send binary frames and parts. The socket
    never blocks; every wait has a deadline.
    OpenSSL allows one thread at a time in a session, so TLS calls take `_tls_lock`, which is never held while waiting.
    """

    WRITE_TIMEOUT_S = 10.0
    CHUNK = 65536
    MAX_STREAMS = 64

    def __init__(self, sock, write_timeout_s=None, decode=decode_frame, binary=False):
        sock.setblocking(False)
        self.sock, self.decode, self.binary = sock, decode, binary
        self.write_timeout_s = self.WRITE_TIMEOUT_S if write_timeout_s is None else write_timeout_s
        self._buffer, self._body, self._streams = bytearray(), None, {}
        self.alive = True
        self._alarm = Alarm()
        self._wait_for_input, self._spin = input_waiter(sock, self._alarm), _Spin()
        self._write_lock = threading.Lock()
        self._tls_lock = threading.Lock() if isinstance(sock, ssl.SSLSocket) else None
        self.last_read = time.monotonic()  # when bytes last came in

    # -- reading -----------------------------------------------------------------------------------------------------
    def read_frame(self, limit=FRAME_LIMIT, timeout_s=None):
        """The next frame, or None at a clean end. Raises RequestTimeout, ProtocolError, ConnectionLost.

        timeout_s counts from the call to the frame's last byte. After a timeout reading may go on where it was.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._body is None and not self._begin(limit, deadline):
                return None
            self._fill_body(deadline)
            body, self._body = self._body, None
            if body.word & _PART_BIT and self.binary:
                body = self._ended_stream(body)
            if body is not None:
                return self._decode(body)

    def is_quiet(self):
        """Whether nothing has come in, in whole or in part, that was not asked for yet."""
        behind = self._buffer or self._body or self._streams or (self._tls_lock is not None and self.sock.pending())
        return not behind and not self._wait_for_input(0)

    def _begin(self, limit, deadline):
        """Reads the word of the next frame. False at a clean end."""
        if self._tls_lock is None and len(self._buffer) < 4 and not self._spin.sees(self._wait_for_input):
            self._wait(deadline, False)  # mostly nothing is there yet: no need to try
        if not self._fill(4, deadline, ends_here=True):
            return False
        word = _LENGTH.unpack_from(self._buffer)[0]
        length = word & _LENGTH_MASK if self.binary else word
        self._body = _Arriving(word, check_length(length, limit))
        del self._buffer[:4]
        return True

    def _fill_body(self, deadline):
        body, buffer = self._body, self._buffer
        if len(buffer) == body.missing and not body.filled:  # a small frame, as it came
            body.data, body.filled, self._buffer = buffer, len(buffer), bytearray()
            return
        if buffer:
            chunk = buffer[:body.missing]
            body.take(chunk)
            del buffer[:len(chunk)]
        while body.missing >= self.CHUNK:
            self._receive_into(memoryview(body.data)[body.filled:], deadline)
        if body.missing:
            self._fill(body.missing, deadline, ends_here=False)
            self._fill_body(deadline)

    def _receive_into(self, view, deadline):
        count = self._receive(deadline, view)
        if not count:
            raise ConnectionLost('对方在一帧中间断开了连接')
        self._body.filled += count
        self.last_read = time.monotonic()

    def _ended_stream(self, part):
        """Adds a part to its stream; the whole frame when it is complete, else None."""
        if len(part.data) < 4:
            raise ProtocolError('分段太短')
        number, data = _LENGTH.unpack_from(part.data)[0], memoryview(part.data)[4:]
        stream = self._streams.get(number)
        if stream is None:
            stream, data = self._new_stream(number, data), data[4:]
        if len(data) > stream.missing:
            raise ProtocolError('分段比整帧还长')
        stream.take(data)
        if stream.missing:
            return None
        return self._streams.pop(number)

    def _new_stream(self, number, data):
        if len(data) < 4 or len(self._streams) >= self.MAX_STREAMS:
            raise ProtocolError('分段不合理')
        word = _LENGTH.unpack_from(data)[0]
        total = sum(len(stream.data) for stream in self._streams.values()) + (word & _LENGTH_MASK)
        if word & _PART_BIT or total > PARTED_LIMIT:
            raise FrameTooLarge('帧长 %d 超过上限 %d' % (total, PARTED_LIMIT))
        self._streams[number] = _Arriving(word, word & _LENGTH_MASK)
        return self._streams[number]

    def _decode(self, body):
        if self.binary and body.word & _BINARY_BIT:
            return decode_table_frame(body.data)
        return self.decode(body.data)

    def _fill(self, size, deadline, ends_here):
        """Buffers at least `size` bytes. False at an end of file before the first byte where that is clean."""
        while len(self._buffer) < size:
            chunk = self._receive(deadline)
            if not chunk:
                if ends_here and not self._buffer:
                    return False
                raise ConnectionLost('对方在一帧中间断开了连接')
            self._buffer += chunk
            self.last_read = time.monotonic()
        return True

    def _receive(self, deadline, view=None):
        """Bytes, or with a view how many came into it; nothing at the end of the connection."""
        while True:
            writing = False
            try:
                return self._locked(self.sock.recv, self.CHUNK) if view is None else self._locked(
                    self.sock.recv_into, view)
            except (BlockingIOError, ssl.SSLWantReadError):
                pass
            except ssl.SSLWantWriteError:
                writing = True
            except OSError as error:
                return self._end_of_read(error)
            self._wait(deadline, writing)

    def _end_of_read(self, error):
        """Our own abort, and a TLS peer that leaves without a goodbye, end like a closed connection."""
        if not self.alive or is_tls_eof(error):
            return b''
        raise ConnectionLost('连接中断：%s' % error)

    # -- writing -----------------------------------------------------------------------------------------------------
    def write_frame(self, frame):
        self.write(encode_frame(frame))

    def write(self, data, wait_s=-1):
        """All of data, or ConnectionLost: a peer that takes nothing for write_timeout_s is given up.

        wait_s: for another's long frame to be out; RequestTimeout, and nothing was sent, if it takes longer.
        """
        if not wait_for_lock(self._write_lock, None if wait_s < 0 else wait_s):
            raise RequestTimeout('线路被别的请求占用')
        try:
            sent = self._send_some(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])
        finally:
            self._write_lock.release()

    def try_write(self, data):
        """How much of data the socket took at once. What is left must be the next that is written."""
        with self._write_lock:
            return self._send_some(data)

    def _send_some(self, data):
        if not self.alive:
            raise ConnectionLost('连接已关闭')
        try:
            return self.sock.send(data) if self._tls_lock is None else self._locked(self.sock.send, data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except OSError as error:
            self.abort()
            raise ConnectionLost('连接中断：%s' % error)

    def _send_rest(self, view):
        try:
            self._send_all(view)
        except ConnectionLost:
            self.abort()
            raise

    def abort(self):
        """Ends the connection and wakes whoever waits on it. Any thread, any number of times."""
        self.alive = False
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        self._alarm.ring()

    def close(self):
        """Waits for a writer to notice: were the descriptor reused, its bytes would reach a stranger."""
        self.abort()
        with self._write_lock, contextlib.suppress(OSError):
            self._alarm.close()
            self.sock.close()

    def finish(self, patience_s=2.0, most=1 << 24):
        """Ends it so that the peer gets all that was written: who closes over bytes that nobody read takes that back.

        By its one reader. Waits for the peer to end it as well, so long and for so many bytes; close() comes after.
        """
        if self.end_writing(patience_s):
            drain(self.sock, time.monotonic() + patience_s, most)
        self.abort()

    def end_writing(self, patience_s):
        """From any thread: the peer gets what was written and then the end; reading goes on. Whether it was done."""
        if not self.alive or not wait_for_lock(self._write_lock, patience_s):
            return False
        try:
            self._locked(end_sending, self.sock)
        finally:
            self._write_lock.release()
        return True

    def _send_all(self, view):
        """A slow line may take long for a large frame as long as it takes something; `last` is the end even so."""
        deadline = time.monotonic() + self.write_timeout_s
        last = deadline + len(view) / SLOWEST_BYTES_S
        while len(view):
            try:
                view = view[self._locked(self.sock.send, view):]
                deadline = min(last, time.monotonic() + self.write_timeout_s)
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait_to_write(deadline, True)
            except ssl.SSLWantReadError:
                self._wait_to_write(deadline, False)
            except OSError as error:
                raise ConnectionLost('连接中断：%s' % error)

    def _wait_to_write(self, deadline, writing):
        """Up to a second: systems call a socket writable when much of its buffer is free, but it takes less before."""
        now = time.monotonic()
        if now >= deadline:
            raise ConnectionLost('对方 %g 秒没有读取数据' % self.write_timeout_s)
        with contextlib.suppress(RequestTimeout):
            self._wait(min(deadline, now + 1.0), writing)

    def _wait(self, deadline, writing):
        timeout_s = None if deadline is None else deadline - time.monotonic()
        try:
            ready = (wait_for_socket(self.sock, timeout_s, True, self._alarm) if writing
                     else self._wait_for_input(timeout_s))
        except (OSError, ValueError) as error:
            raise ConnectionLost('连接已关闭：%s' % error)
        if not ready and self.alive:
            raise RequestTimeout('等待对方数据超时')

    def _locked(self, call, argument):
        if self._tls_lock is None:
            return call(argument)
        with self._tls_lock:
            return call(argument)


def check_length(length, limit):
    if length > limit:
        raise FrameTooLarge('帧长 %d 超过上限 %d' % (length, limit), '对方可能不是本协议（例如把 TLS 发到了明文端口）')
    return length


def end_sending(sock):
    """The peer reads what was sent before and then the end; what it sends may still be read, raw."""
    with contextlib.suppress(OSError, ValueError):  # the goodbye of TLS does not wait for the peer's
        if isinstance(sock, ssl.SSLSocket):
            sock.unwrap()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)


def drain(sock, deadline, most):
    """Reads a socket that does not block to its end and drops all, until the deadline and up to so many bytes."""
    with contextlib.suppress(OSError, ValueError):
        while most > 0 and wait_for_socket(sock, deadline - time.monotonic()):
            chunk = socket.socket.recv(sock, 65536)
            if not chunk:
                return
            most -= len(chunk)


def tls_handshake(sock, timeout_s):
    """Completes the handshake of a wrapped socket by a deadline that a slow peer cannot stretch."""
    deadline = time.monotonic() + timeout_s
    sock.setblocking(False)
    while True:
        try:
            return sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            writing = isinstance(error, ssl.SSLWantWriteError)
        if not wait_for_socket(sock, deadline - time.monotonic(), writing):
            raise socket.timeout('TLS handshake')


# ======================================================================================================
# 8. ADAPTER CONTRACT - what a source of data and a broker must provide; history in JoinQuant's semantics
# ======================================================================================================
ADAPTERS = {}  # name -> factory(settings, clock) -> Backend

PRICE_FIELDS = ('open', 'close', 'high', 'low', 'pre_close', 'high_limit', 'low_limit')
DEFAULT_FIELDS = ('open', 'close', 'high', 'low', 'volume', 'money')
DAILY_COLUMNS = ('time', 'open', 'close', 'high', 'low', 'volume', 'money', 'pre_close', 'high_limit', 'low_limit',
                 'paused')
MINUTE_COLUMNS = ('time', 'open', 'close', 'high', 'low', 'volume', 'money')
HISTORY_FIELDS = DAILY_COLUMNS[1:] + ('avg', 'price', 'factor')
HISTORY_ROW_LIMIT = 5000000  # before bars are merged; some 300 MB: refused before memory is spent on it
JSON_ROW_LIMIT = 500000      # some 32 MB of JSON, what a frame holds, for clients that know no binary tables
SECURITY_TYPES = ('stock', 'fund', 'etf', 'lof', 'index', 'bond')


# What an order has to know of the market at this moment. continuous: continuous trading, where the price cage holds.
# unlimited: a first day without price limits. told: the quote's limits are the source's own, not derived by rule.
MarketState = namedtuple('MarketState', 'continuous unlimited told')


# Kinds of market orders that an exchange knows, by the ending of its codes: to the other side's or the own side's best
# price, through five levels with the rest cancelled or left as a limit order, all that is there now, all or nothing.
_SH_MARKET_TYPES = frozenset(('opponent_best', 'home_best', 'five_level_ioc', 'five_level_to_limit'))
MARKET_TYPES = {'SH': _SH_MARKET_TYPES, 'BJ': _SH_MARKET_TYPES, 'SZ': frozenset((
    'opponent_best', 'home_best', 'five_level_ioc', 'immediate_or_cancel', 'fill_or_kill'))}
TAG_BYTES = 20  # what every terminal and counter keeps of a remark; 24 survive in most


class Backend:
    """What a factory in ADAPTERS returns. data: DataAdapter; brokers: OrderedDict account key -> BrokerAdapter.

    close() stops every thread of the adapters; health() is merged into admin.health. blocking: whether quotes, account
    views and orders may have to wait for somebody else.
    """

    blocking = True

    def __init__(self, name, data, brokers):
        self.name, self.data, self.brokers = name, data, brokers

    def health(self):
        return {'backend_type': self.name}

    def troubles(self):
        """{'data' or 'broker': (whether some of it works, what does not)} of the parts that do not work whole now."""
        return {}

    def close(self):
        """Stop; called once, from the thread that built it."""


class BrokerAdapter:
    """One account at a broker. Every method may block and be called from any thread.

    To provide: account, positions, orders, trades, submit, cancel. Yuan, shares, canonical codes.
    Raises QmtUnavailable where the broker cannot be asked; never answers "nothing" for "unknown".

    submit(request, deadline_s) -> order id (text). Raises OrderRejected if the broker certainly refused,
    OrderStateUnknown if nobody can tell, its `answered` True where the broker gave some answer. cancel(order_id,
    deadline_s) asks for it; what became of it shows in the order. find(tag) -> the order submitted with this tag today,
    or None.
    set_listener(listener): listener(kind, record) for each change, kind 'order', 'trade' or 'account', in their order,
    from a thread that holds no lock of the adapter. orders_known() -> (today's orders, whether these certainly are all
    of them); on_connected(hook): hook() after each connect, from a thread of the adapter. expects_orders(ask): ask()
    tells whether an order of today is known of, for an adapter whose broker says "none" and "failed" in the same way.
    """

    spec = None  # AccountSpec

    def account(self):
        raise NotImplementedError

    def positions(self):
        raise NotImplementedError

    def orders(self):
        raise NotImplementedError

    def trades(self):
        raise NotImplementedError

    def submit(self, request, deadline_s):
        raise NotImplementedError

    def cancel(self, order_id, deadline_s):
        raise NotImplementedError

    def set_listener(self, listener):
        raise NotImplementedError

    def account_and_positions(self):
        return self.account(), self.positions()

    def order(self, order_id):
        """The order, or None if this account has none of that id."""
        return next((order for order in self.orders() if order.order_id == order_id), None)

    def orders_known(self):
        return self.orders(), False

    def expects_orders(self, ask):
        """An adapter that can tell none from failed never asks it."""

    def on_connected(self, hook):
        """An adapter that never loses its broker never calls it."""

    def find(self, tag):
        return next((order for order in self.orders() if order.order_remark[:TAG_BYTES] == tag[:TAG_BYTES]), None)


# -- a question about bars ------------------------------------------------------------------------------------
class HistoryQuery(Record):
    """data.history, checked. unit 'm' 'd' 'w' 'M'; start, end, ref in ms of Beijing wall time; fields never empty.

    row_limit: the most rows of bars to look at. wanted(): whether anybody still waits for the answer.
    """

    FIELDS = (('securities', ()), ('single', True), ('unit', 'd'), ('step', 1), ('start', None), ('end', 0),
              ('count', None), ('fields', DEFAULT_FIELDS), ('fq', 'pre'), ('ref', None), ('skip_paused', False),
              ('fill_paused', True), ('panel', True), ('row_limit', HISTORY_ROW_LIMIT), ('wanted', lambda: True))

    @property
    def intraday(self):
        return self.unit == 'm'


_UNITS = {'daily': (1, 'd'), 'day': (1, 'd'), 'd': (1, 'd'), 'minute': (1, 'm'), 'min': (1, 'm'), 'm': (1, 'm'),
          'week': (1, 'w'), 'weekly': (1, 'w'), 'w': (1, 'w'), 'month': (1, 'M'), 'monthly': (1, 'M'), 'M': (1, 'M'),
          'mon': (1, 'M')}
_PERIOD = re.compile(r'([1-9]\d{0,3})(m|min|h|d|w|M|mon)', re.ASCII)
_PERIOD_UNITS = {'m': (1, 'm'), 'min': (1, 'm'), 'h': (60, 'm'), 'd': (1, 'd'), 'w': (1, 'w'), 'M': (1, 'M'),
                 'mon': (1, 'M')}
_DEFAULT_START = datetime(2015, 1, 1)


def parse_frequency(value):
    """'daily', '1d', '5m', '1h', '1w', '1M' ... -> (number, unit)."""
    period = _period_of(value) if isinstance(value, str) and len(value) <= 32 else None
    if period is not None:
        return period
    raise BadRequest('frequency 不认识：%s' % brief(value), '例如 daily、minute、1d、1m、5m、60m、1w、1M')


@lru_cache(maxsize=256)
def _period_of(text):
    """(number, unit), or None."""
    name = text.strip()
    if name in _UNITS:
        return _UNITS[name]
    match = _PERIOD.fullmatch(name)
    if not match or (match.group(2) in ('w', 'M', 'mon') and match.group(1) != '1'):
        return None
    number, unit = _PERIOD_UNITS[match.group(2)]
    return int(match.group(1)) * number, unit


def parse_history(payload, now):
    """Payload of data.history -> HistoryQuery. Raises BadRequest naming the field."""
    security = payload.get('security')
    step, unit = parse_frequency(_first(payload, 'frequency', 'period') or 'daily')
    start, count = _check_range(payload)
    end = check_moment(_first(payload, 'end', 'end_date'), 'end')
    query = HistoryQuery(
        securities=normalize_codes(security), single=isinstance(security, str), unit=unit, step=step, count=count,
        start=_bound(start, unit), end=to_ms(now) if end is None else min(_bound(end, unit), to_ms(now)),
        fields=_check_fields(payload.get('fields')), fq=_check_fq(payload.get('fq', 'pre')),
        ref=_bound(check_moment(payload.get('pre_factor_ref_date'), 'pre_factor_ref_date'), 'd'),
        skip_paused=_flag(payload, 'skip_paused', False), fill_paused=_flag(payload, 'fill_paused', True),
        panel=_flag(payload, 'panel', True))
    if end is not None:
        check_span(query.start, _bound(end, unit))
    if query.skip_paused and query.panel and len(query.securities) > 1:
        raise BadRequest('多个证券且 skip_paused=True 时各证券的日期不同，不能用 panel=True', '加上 panel=False')
    return query


def _first(payload, *names):
    return next((payload[name] for name in names if payload.get(name) is not None), None)


def _flag(payload, name, default):
    value = payload.get(name)
    return default if value is None else check_flag(value, name)


def _check_range(payload):
    start, count = check_moment(_first(payload, 'start', 'start_date'), 'start'), payload.get('count')
    if count is not None and start is not None:
        raise BadRequest('start_date 与 count 只能给一个')
    if count is None:
        return start or (_DEFAULT_START, False), None
    return None, check_whole(count, 'count', 1, 10 ** 7)


def _bound(moment, unit):
    """Days ignore clock parts; for minutes a bare date is 00:00, so an end on it leaves that day out."""
    if moment is None:
        return None
    ms = to_ms(moment[0])
    return ms if unit == 'm' else ms - ms % DAY_MS


def _check_fields(fields):
    if fields is None:
        return DEFAULT_FIELDS
    fields = [fields] if isinstance(fields, str) else fields
    if not isinstance(fields, (list, tuple)) or not fields:
        raise BadRequest('fields 应为字段名的列表', '可用：%s' % '、'.join(HISTORY_FIELDS))
    return tuple(OrderedDict((check_choice(field, 'fields', HISTORY_FIELDS), None) for field in fields))


def _check_fq(fq):
    return None if fq in (None, 'none', '') else check_choice(fq, 'fq', ('pre', 'post'))


# -- bars: dicts of columns, and pure functions over them -----------------------------------------------------
# Columns are arrays, `time` of ms, all others of floats. Which rows an answer has is said in runs, so that thousands
# of rows are copied at once: (first row, row after the last, None) of the source, or (times, None, value) for times of
# which the source has no bar: value is the last close while suspended, NaN before listing or after delisting.
def empty_columns(names):
    return OrderedDict((name, array('q' if name == 'time' else 'd')) for name in names)


def slice_columns(columns, first, last):
    """Rows with first <= time <= last. Safe while another thread appends: `time` grows last."""
    start, stop = bisect.bisect_left(columns['time'], first), bisect.bisect_right(columns['time'], last)
    return {name: values[start:stop] for name, values in columns.items()}


def day_runs(bars, days, listed, delisted):
    """Runs of daily bars along trade days; bars: daily columns, days: ms."""
    days, times = array('q', days), bars['time']
    if not len(days):
        return []
    start, stop = bisect.bisect_left(times, days[0]), bisect.bisect_right(times, days[-1])
    if listed <= days[0] and days[-1] <= delisted and times[start:stop] == days and not any(bars['paused'][start:stop]):
        return [(start, stop, None)]
    return _joined_runs(_day_run(bars, day, listed, delisted) for day in days)


def _day_run(bars, day, listed, delisted):
    row = bisect.bisect_right(bars['time'], day) - 1
    if row < 0 or not listed <= day <= delisted:
        return [day], None, math.nan
    if bars['time'][row] == day and not bars['paused'][row]:
        return row, row + 1, None
    return [day], None, bars['close'][row]


def _joined_runs(runs):
    joined = []
    for run in runs:
        last = joined[-1] if joined else None
        if last and last[1] is not None and last[1] == run[0]:
            joined[-1] = (last[0], run[1], None)
        elif last and last[1] is None and run[1] is None and repr(last[2]) == repr(run[2]):  # NaN and NaN, too
            last[0].extend(run[0])
        else:
            joined.append(run)
    return joined


def run_length(run):
    return len(run[0]) if run[1] is None else run[1] - run[0]


def last_of_runs(runs, count):
    """The runs of the last `count` rows; all of them for None."""
    kept = []
    for run in reversed(runs):
        if count is not None and sum(map(run_length, kept)) + run_length(run) > count:
            run = _last_of_run(run, count - sum(map(run_length, kept)))
        if run_length(run):
            kept.append(run)
    return kept[::-1]


def _last_of_run(run, count):
    if run[1] is None:
        return run[0][len(run[0]) - count:], None, run[2]
    return run[1] - count, run[1], None


def first_time(runs, bars):
    start, stop, _ = runs[0]
    return start[0] if stop is None else bars['time'][start]


def minute_runs(bars, daily, runs, start, end):
    """Runs of minute bars; runs: of the days in `daily`. Suspended and unlisted days get their 240 minutes too."""
    times, found = bars['time'], []
    for first, stop, value in runs:
        if stop is None:
            labels = [day + minute * 60000 for day in first for minute in BAR_MINUTES]
            found.append(([label for label in labels if start <= label <= end], None, value))
        else:
            opened, closed = max(daily['time'][first], start), min(daily['time'][stop - 1] + DAY_MS - 1, end)
            found.append((bisect.bisect_left(times, opened), bisect.bisect_right(times, closed), None))
    return [run for run in found if run_length(run) > 0]


def gather(bars, runs, fill, names):
    """Columns along the runs. fill: suspended rows get the last close and no turnover; otherwise NaN."""
    if len(runs) == 1 and runs[0][1] is not None:
        start, stop, _ = runs[0]
        columns = {name: bars[name][start:stop] for name in names if name in bars}
        return dict(columns, paused=array('d', bytes(8 * (stop - start))))
    names = [name for name in names if name in bars and name != 'paused']
    columns = {name: _gather_column(name, bars[name], runs, fill) for name in names}
    return dict(columns, paused=_gather_paused(runs, fill))


def _gather_column(name, values, runs, fill):
    column, share = array(values.typecode), 0.0 if name in ('volume', 'money') else 1.0
    for start, stop, value in runs:
        if stop is not None:
            column.extend(values[start:stop])
        elif name == 'time':
            column.extend(start)
        else:
            column.extend(array('d', [share * value if fill else math.nan]) * len(start))
    return column


def _gather_paused(runs, fill):
    """0 or 1; NaN where the rest of the row is NaN, as JoinQuant answers it."""
    column = array('d')
    for run in runs:
        flag = 0.0 if run[1] is not None else 1.0 if fill and run[2] == run[2] else math.nan
        column.extend(array('d', [flag]) * run_length(run))
    return column


def scale(columns, ranges, digits):
    """Multiplies prices by the ratio of each range (start, stop, ratio) of rows, rounded to `digits`; volumes go the
    other way, money stays."""
    scaled = dict(columns)
    for name in PRICE_FIELDS + ('volume',):
        if name in columns:
            scaled[name] = array('d')
            for start, stop, ratio in ranges:
                part = columns[name][start:stop]
                scaled[name].extend(_scaled(part, ratio, None if name == 'volume' else digits))
    return scaled


def _scaled(values, ratio, digits):
    """digits None: volumes, divided by the ratio. With numpy the same to the last bit, only sooner."""
    if ratio == 1.0:
        return values
    numpy = optional_import('numpy') if len(values) > 2000 else None
    if numpy is not None:
        return _scaled_by_numpy(numpy, numpy.frombuffer(values), ratio, digits)
    if digits is None:
        return array('d', [value if value != value else float(round(value / ratio)) for value in values])
    return array('d', [round(value * ratio, digits) for value in values])


def _scaled_by_numpy(numpy, values, ratio, digits):
    """round() decides by the exact binary value: where that is nearly half way between two decimals, it is asked."""
    if digits is None:
        return array('d', numpy.rint(values / ratio).tobytes())
    exact, unit = values * ratio, 10.0 ** digits
    steps = numpy.rint(exact * unit)
    scaled = steps / unit
    with numpy.errstate(invalid='ignore'):  # older ones warn of NaN, which is what days before the listing have
        doubtful = numpy.flatnonzero(abs(abs(exact * unit - steps) - 0.5) < 1e-6)
    for row in doubtful.tolist():
        scaled[row] = round(float(exact[row]), digits)
    return array('d', scaled.tobytes())


_COMBINE = {'time': lambda part: part[-1], 'open': lambda part: _known(part)[0], 'close': lambda part: _known(part)[-1],
            'high': lambda part: max(_known(part)), 'low': lambda part: min(_known(part)),
            'volume': lambda part: math.fsum(_known(part)), 'money': lambda part: math.fsum(_known(part)),
            'pre_close': lambda part: _known(part)[0], 'high_limit': lambda part: _known(part)[-1],
            'low_limit': lambda part: _known(part)[-1], 'paused': lambda part: min(_known(part)),
            'factor': lambda part: part[-1]}


def _known(part):
    """NaN rows (unlisted, or suspended and not filled) do not count, unless there is nothing else."""
    return [value for value in part if value == value] or [math.nan]


def combine(columns, groups):
    """Merges row ranges [(start, stop), ...] into one bar each, labelled by its last row."""
    return {name: array(values.typecode, [_COMBINE[name](values[start:stop]) for start, stop in groups])
            for name, values in columns.items()}


def windows_from_end(length, step):
    """Ranges of `step` rows counted back from the end; the first may be short."""
    stops = range(length, 0, -step)
    return [(max(0, stop - step), stop) for stop in stops][::-1]


def calendar_groups(times, unit):
    """Ranges of rows in the same week or month."""
    keys = [_week_or_month(from_ms(ms), unit) for ms in times]
    starts = [i for i, key in enumerate(keys) if not i or keys[i - 1] != key]
    return list(zip(starts, starts[1:] + [len(keys)]))


def _week_or_month(moment, unit):
    return moment.isocalendar()[:2] if unit == 'w' else (moment.year, moment.month)


def factor_steps(bars):
    """Cumulative adjustment factors of daily bars: [(day, factor)], a step where pre_close is not the last close."""
    steps, factor = [], 1.0
    for i in range(1, len(bars['time'])):
        before, reference = bars['close'][i - 1], bars['pre_close'][i]
        if reference > 0 and abs(before - reference) > 1e-6:
            factor *= before / reference
            steps.append((bars['time'][i], factor))
    return steps


def factor_at(steps, day):
    row = bisect.bisect_right(steps, (day, math.inf)) - 1
    return steps[row][1] if row >= 0 else 1.0


def factor_ranges(times, steps, base):
    """[(start, stop, ratio), ...]: the rows between two ex-dates have one ratio."""
    starts = sorted({0} | {bisect.bisect_left(times, day) for day, _ in steps} - {len(times)})
    return [(start, stop, factor_at(steps, times[start]) / base)
            for start, stop in zip(starts, starts[1:] + [len(times)]) if start < stop]


class DataAdapter:
    """A source of market data. Public methods check, lock nothing, and speak canonical codes and `Table`s.

    For the caller: history, trade_days, security_info, all_securities, index_stocks, split_dividend, quote,
    live_current, subscribe, unsubscribe, ensure_cache, set_tick_listener.
    To provide: _calendar, _info, _codes, _daily, _minutes, quote, and where the source has them _members,
    _dividends, _factor_steps, subscribe, unsubscribe. They may block and be called from any thread.
    Bars are unadjusted, in arrays; volume in shares, money in yuan, day bars labelled 00:00, minute bars by their end.
    """

    def __init__(self, clock):
        self.clock = clock
        self._tick_listener = None

    # -- to provide -----------------------------------------------------------------------------------------
    def _calendar(self):
        """All trade days known, up to today: sorted list of ms."""
        raise NotImplementedError

    def _info(self, code):
        """Dict code display_name name type subtype start_date end_date parent (dates as date). SecurityNotFound."""
        raise NotImplementedError

    def _codes(self):
        """Every security that the source lists."""
        raise NotImplementedError

    def _daily(self, code, first, last):
        """Dict of DAILY_COLUMNS, rows in [first, last] ms ascending. A running day counts up to now."""
        raise NotImplementedError

    def _minutes(self, code, first, last):
        """Dict of MINUTE_COLUMNS, complete bars only, of the days in [first, last] ms."""
        raise NotImplementedError

    def quote(self, code):
        """Tick of now. Raises DataUnavailable where there is no price."""
        raise NotImplementedError

    def _members(self, code, day):
        raise DataUnavailable('没有指数 %s 的成份股' % code)

    def _dividends(self, code, first, last):
        """Dicts security, date, security_type, scale_factor, bonus_pre_tax (yuan per per_base), per_base."""
        return []

    def _factor_steps(self, code):
        return factor_steps(self._daily(code, -1 << 60, 1 << 60))

    def subscribe(self, codes):
        """Ticks of these codes go to the tick listener until unsubscribe. Only called for codes not yet subscribed.

        A code may also be one of MARKETS: all that is traded there.
        """
        raise NotSupported('这个行情源不推送')

    def renew(self, codes):
        """Somebody subscribes what is subscribed: a source whose own subscription can be lost asks for it anew."""

    def unsubscribe(self, codes):
        raise NotSupported('这个行情源不推送')

    def ensure_cache(self, query, download=True, progress=lambda figures: None):
        """Fetches what history(query) needs, or only looks for it, without `download`. Dict of figures.

        progress: called meanwhile with a dict of `finished` and `total`.
        """
        for code in query.securities:
            self.security_info(code)
        return {'ok': True, 'downloaded': 0}

    # -- for the caller -------------------------------------------------------------------------------------
    def set_tick_listener(self, listener):
        """listener(tick) is called from the adapter's own thread."""
        self._tick_listener = listener

    def trade_days(self, start=None, end=None, count=None):
        """Days in ms, both ends included; the last `count` of them if given."""
        days = self._calendar()
        first = 0 if start is None else bisect.bisect_left(days, start)
        stop = len(days) if end is None else bisect.bisect_right(days, end)
        return days[first:stop] if count is None else days[first:stop][-count:]

    def market_state(self, code):
        now = self.clock.now()
        return MarketState(self._is_continuous(code, now), self._is_unlimited(code, now.date()),
                           self._tells_limits(code))

    def _tells_limits(self, code):
        return True

    def _is_continuous(self, code, moment):
        return in_continuous_trading(code, moment)

    def _is_unlimited(self, code, day):
        listed, number = self._trade_day_number(code, day)
        return number is not None and starts_without_limits(code, listed, number)

    def _trade_day_number(self, code, day):
        """(day of listing, which trade day since then it is or None for long ago); a young one asks the calendar."""
        listed = self._info(code)['start_date']
        if not timedelta(0) <= day - listed <= timedelta(days=30):
            return listed, None
        return listed, len(self.trade_days(to_ms(listed), to_ms(day)))

    def security_info(self, code, day=None):
        """Raises SecurityNotFound also for one that was not listed on `day`."""
        info = self._info(code)
        if day is not None and not info['start_date'] <= day <= info['end_date']:
            raise SecurityNotFound('%s 在 %s 没有上市' % (code, day), '上市 %s，退市 %s' % (info['start_date'], info['end_date']))
        return dict(info, qmt_code=qmt_code(code), start_date=info['start_date'].isoformat(),
                    end_date=info['end_date'].isoformat())

    def all_securities(self, types, day=None):
        """Table by code: display_name name start_date end_date type. `day`: only what was listed then."""
        rows = [self._info(code) for code in self._codes()]
        rows = [row for row in rows
                if _has_type(row, types) and (day is None or row['start_date'] <= day <= row['end_date'])]
        columns = OrderedDict((name, [row[name] for row in rows]) for name in ('code', 'display_name', 'name'))
        for name in ('start_date', 'end_date'):
            columns[name] = [to_ms(row[name]) for row in rows]
        columns['type'] = [row['type'] for row in rows]
        kinds = {name: 'time' if name.endswith('_date') else 'text' for name in columns}
        return Table(columns, kinds, ['code'], ['code'])

    def index_stocks(self, code, day=None):
        return self._members(code, day)

    def split_dividend(self, code, first, last):
        self._info(code)
        return [dict(event, date=iso_ms(event['date'])[:10]) for event in self._dividends(code, first, last)]

    def live_current(self, code):
        """What a strategy asks before it orders: last price, limits, suspension."""
        return self._current(self.quote(code))

    def _current(self, tick):
        return dict(tick.to_wire(), name=self._info(tick.sid)['display_name'], day_open=tick.open)

    def live_currents(self, codes):
        """{code: live_current} of those that have a quote."""
        found, quote = OrderedDict(), self._quote_of(codes)
        for code in codes:
            with contextlib.suppress(SecurityNotFound, DataUnavailable):
                found[code] = self._current(quote(code))
        return found

    def _quote_of(self, codes):
        """quote(), of these alone; a source that gives many at once asks here."""
        return self.quote

    def history(self, query):
        """Table of bars: one security by time, many in wide (panel) or long form."""
        self._check_size(query)
        series, rows = [], 0
        for code in query.securities:
            if not query.wanted():
                raise RequestTimeout('没有人再等待这个结果')
            series.append((code, self._series(code, query)))
            rows += len(series[-1][1]['time'])
            _refuse_rows(rows, query)
        if query.single:
            return _single_table(series[0][1], query.fields)
        return (_wide_table if query.panel else _long_table)(series, query.fields)

    # -- history, step by step --------------------------------------------------------------------------------
    def _check_size(self, query):
        """Before anything is read. Suspended days, if they are left out, may make an answer smaller than this."""
        if query.skip_paused:
            return
        if query.count is not None:
            rows = query.count * _rows_a_bar(query)
        else:
            day = query.start - query.start % DAY_MS
            rows = len(self.trade_days(day, query.end)) * (MINUTES_A_DAY if query.intraday else 1)
        _refuse_rows(rows * len(query.securities), query)

    def _series(self, code, query):
        """Columns of one security: select, adjust, merge into the asked period, cut to count."""
        info, names = self._info(code), _needed(query)
        columns = (self._intraday if query.intraday else self._days)(code, info, query, names)
        columns = self._adjust(code, columns, query)
        columns = _resample(columns, query)
        if query.count is not None:
            columns = {name: values[-query.count:] for name, values in columns.items()}
        return _with_averages(columns, query.fields)

    def _days(self, code, info, query, names):
        bars, runs = self._day_runs(code, info, query, query.start, query.end, _rows_a_bar(query))
        return gather(bars, runs, query.fill_paused, names)

    def _day_runs(self, code, info, query, start, end, days_a_bar, spare=0):
        """(daily columns, runs of the days that the answer needs)."""
        bars = self._daily(code, -1 << 60, end)
        need = None if query.count is None else int(math.ceil(query.count * days_a_bar)) + spare
        days = self.trade_days(start, self._opened(end), None if query.skip_paused else need)
        runs = day_runs(bars, days, to_ms(info['start_date']), to_ms(info['end_date']))
        return bars, _cut(runs, query, need)

    def _opened(self, end):
        """Today counts only once it has opened: before, its missing bar would read as a suspension."""
        now = self.clock.now()
        return end if minute_of_day(now) >= MORNING_OPEN else min(end, to_ms(now.date()) - 1)

    def _intraday(self, code, info, query, names):
        """Whole days first, so that the source reads only what is needed, then minutes."""
        start, last = query.start, query.end - 1  # no bar is labelled 00:00: an end there leaves that day out
        midnight = last - last % DAY_MS
        first = None if start is None else start - start % DAY_MS
        daily, runs = self._day_runs(code, info, query, first, midnight, query.step / MINUTES_A_DAY, spare=2)
        bars = self._minutes(code, first_time(runs, daily) if runs else midnight, midnight)
        runs = minute_runs(bars, daily, runs, -1 << 60 if start is None else start, query.end)
        runs = _cut(runs, query, query.count and query.count * query.step)
        columns = _with_day_columns(gather(bars, runs, query.fill_paused, names), daily, names)
        return columns if query.fill_paused else _without_limits_of_pauses(columns)

    def _adjust(self, code, columns, query):
        times = columns['time']
        ranges = [(0, len(times), 1.0)]
        if query.fq is not None:
            steps = self._factor_steps(code)
            anchor = to_ms(self.clock.now()) if query.ref is None else query.ref
            ranges = factor_ranges(times, steps, factor_at(steps, anchor) if query.fq == 'pre' else 1.0)
            if any(ratio != 1.0 for _, _, ratio in ranges):
                columns = scale(columns, ranges, 3 if instrument(code).tick < 0.01 else 2)
        if 'factor' not in query.fields:
            return columns
        factors = array('d')
        for start, stop, ratio in ranges:
            factors.extend(array('d', [ratio]) * (stop - start))
        return dict(columns, factor=factors)


def _refuse_rows(rows, query):
    if rows > query.row_limit:
        raise BadRequest('结果有 %d 行，超过 %d 行' % (rows, query.row_limit), '缩小时间范围或证券数量，分几次取')


def _needed(query):
    """Columns to read for the fields asked for."""
    names = set(query.fields) - {'avg', 'price', 'factor'} | {'time', 'paused'}
    if {'avg', 'price'} & set(query.fields):
        names |= {'money', 'volume', 'close'}
    if query.intraday and 'pre_close' in names:
        names.add('open')
    return sorted(names)


def _has_type(row, types):
    return row['type'] in types or ('fund' in types and row['type'] in ('etf', 'lof'))


def _rows_a_bar(query):
    return {'d': query.step, 'w': 7, 'M': 31}.get(query.unit, query.step)


def _cut(runs, query, need):
    """Drops suspended rows if asked, and all but the last `need`."""
    runs = [run for run in runs if run[1] is not None] if query.skip_paused else runs
    return last_of_runs(runs, need)


def _with_day_columns(columns, daily, names):
    """Minute bars take limits from their day; their pre_close is their open."""
    times, asked = columns['time'], [name for name in ('high_limit', 'low_limit') if name in names]
    starts = [bisect.bisect_left(times, day) for day in daily['time']] if asked else []
    for name in asked:
        columns[name] = array('d', [math.nan]) * (starts[0] if starts else len(times))
        for row, stop in enumerate(starts[1:] + [len(times)]):
            columns[name].extend(array('d', [daily[name][row]]) * (stop - starts[row]) if starts else ())
    return dict(columns, pre_close=columns['open'][:]) if 'pre_close' in names else columns


def _without_limits_of_pauses(columns):
    """Where a row is NaN its day's limits are, too."""
    paused = columns['paused']
    blank = {name: array('d', [value if flag == flag else flag for value, flag in zip(columns[name], paused)])
             for name in ('high_limit', 'low_limit') if name in columns}
    return dict(columns, **blank)


def _resample(columns, query):
    if query.unit in ('w', 'M'):
        return combine(columns, calendar_groups(columns['time'], query.unit))
    return columns if query.step == 1 else combine(columns, windows_from_end(len(columns['time']), query.step))


def _with_averages(columns, fields):
    if not {'avg', 'price'} & set(fields):
        return columns
    triples = zip(columns['money'], columns['volume'], columns['close'])
    average = array('d', [money / volume if volume else close for money, volume, close in triples])
    return dict(columns, avg=average, price=average)


def _single_table(columns, fields):
    named = [('index', columns['time'])] + [(name, columns[name]) for name in fields]
    return Table(named, dict({name: 'float' for name in fields}, index='time'), ['index'])


def _long_table(series, fields):
    """Rows code by code: time, code, fields."""
    named = OrderedDict([('time', array('q')), ('code', [])] + [(name, array('d')) for name in fields])
    for code, columns in series:
        named['time'].extend(columns['time'])
        named['code'] += [code] * len(columns['time'])
        for name in fields:
            named[name].extend(columns[name])
    return Table(named, dict({name: 'float' for name in fields}, time='time', code='text'))


def _wide_table(series, fields):
    """One row a time, one column a (field, code) pair; NaN where a security has no bar then."""
    times = array('q', sorted(set().union(*(columns['time'] for _, columns in series))))
    pairs = [(name, code) for name in fields for code, _ in series]
    aligned = {code: _align(columns, times, fields) for code, columns in series}
    named = [('index', times)] + [(repr(pair), aligned[pair[1]][pair[0]]) for pair in pairs]
    return Table(named, dict({repr(pair): 'float' for pair in pairs}, index='time'), ['index'], wide=pairs)


def _align(columns, times, fields):
    if columns['time'] == times:
        return {name: columns[name] for name in fields}
    rows = {moment: i for i, moment in enumerate(columns['time'])}
    places = [rows.get(moment) for moment in times]
    return {name: array('d', [math.nan if i is None else columns[name][i] for i in places]) for name in fields}


# ======================================================================================================
# 9. STUB ADAPTER - a paper exchange: market data (synthetic or CSV), clock, matching, ledger
# ======================================================================================================
# Two sources of bars, `_SyntheticMarket` and `_CsvMarket`, stand behind one `StubData`. Each knows whole days; only
# StubData knows what time it is, and shows of the running day what has happened. Prices are counted in whole ticks
# (integers) wherever they are made, with + - * / alone, so that every platform and version makes the same ones.
_STUB_START = date(2005, 1, 4)
_STUB_FOREVER = date(2200, 1, 1)
# Later days are never suspended: whoever tries the paper exchange today finds everything trading.
_STUB_LAST_SUSPENSION = date(2025, 12, 31)

# base: price in yuan that the walk is drawn to. sigma: daily volatility. lots: an ordinary day's volume in lots of 100.
_StubProfile = namedtuple('_StubProfile', 'code display_name name listed base sigma lots')
# One whole day, in yuan, shares; limits are None where there are none. day: date.
_StubBar = namedtuple('_StubBar', 'day open close high low volume money pre_close high_limit low_limit paused')

_STUB_CATALOGUE = [line.split() for line in '''
000001.XSHE 平安银行 PAYH 1991-04-03 12     1000000
000002.XSHE 万科A WKA 1991-01-29 15          800000
000333.XSHE 美的集团 MDJT 2013-09-18 55      250000
000651.XSHE 格力电器 GLDQ 1996-11-18 38      400000
000858.XSHE 五粮液 WLY 1998-04-27 140        150000
000938.XSHE 紫光股份 ZGGF 1999-11-04 24      300000
002415.XSHE 海康威视 HKWS 2010-05-28 32      300000
002594.XSHE 比亚迪 BYD 2011-06-30 220        120000
300059.XSHE 东方财富 DFCF 2010-03-19 18     2000000
300750.XSHE 宁德时代 NDSD 2018-06-11 210     150000
600000.XSHG 浦发银行 PFYH 1999-11-10 9       400000
600030.XSHG 中信证券 ZXZQ 2003-01-06 22      900000
600036.XSHG 招商银行 ZSYH 2002-04-09 36      500000
600276.XSHG 恒瑞医药 HRYY 2000-10-18 46      250000
600519.XSHG 贵州茅台 GZMT 2001-08-27 1500     30000
600900.XSHG 长江电力 CJDL 2003-11-18 22      500000
601166.XSHG 兴业银行 XYYH 2007-02-05 17      500000
601318.XSHG 中国平安 ZGPA 2007-03-01 48      600000
601398.XSHG 工商银行 GSYH 2006-10-27 5      2000000
601988.XSHG 中国银行 ZGYH 2006-07-05 4      1800000
688001.XSHG 华兴源创 HXYC 2019-07-22 30       40000
688981.XSHG 中芯国际 ZXGJ 2020-07-16 55      400000
510050.XSHG 华夏上证50ETF SZ50ETF 2005-02-23 2.6        6000000
510300.XSHG 华泰柏瑞沪深300ETF HS300ETF 2012-05-28 3.9   5000000
510500.XSHG 南方中证500ETF ZZ500ETF 2013-03-15 6        1500000
159915.XSHE 易方达创业板ETF CYBETF 2011-12-09 2.1         6000000
518880.XSHG 华安黄金ETF HJETF 2013-07-29 4.6            1000000
511880.XSHG 银华日利ETF YHRL 2013-04-18 100              1500000
113050.XSHG 南银转债 NYZZ 2021-07-01 112                  100000
000001.XSHG 上证指数 SZZS 1991-07-15 3100              300000000
000016.XSHG 上证50 SZ50 2004-01-02 2600                40000000
000300.XSHG 沪深300 HS300 2005-04-08 3900             150000000
000688.XSHG 科创50 KC50 2020-07-23 980                  8000000
000852.XSHG 中证1000 ZZ1000 2014-10-17 6200           180000000
000905.XSHG 中证500 ZZ500 2007-01-15 6000             140000000
399001.XSHE 深证成指 SZCZ 1995-01-23 10500             400000000
399006.XSHE 创业板指 CYBZ 2010-06-01 2100               120000000
'''.strip().splitlines()]

_STUB_SIGMA = {'stock': 0.02, 'etf': 0.012, 'lof': 0.012, 'index': 0.011, 'bond': 0.009, 'repo': 0.02}
# (earliest listing, lowest and highest base price) of securities that are in no list.
_STUB_UNLISTED = {'stock': (date(1996, 1, 2), 5, 60), 'star': (date(2019, 7, 22), 15, 120),
                  'chinext': (date(2009, 10, 30), 8, 80), 'bse': (date(2021, 11, 15), 6, 40),
                  'etf': (date(2012, 1, 4), 0.8, 5), 'lof': (date(2008, 1, 2), 0.7, 3),
                  'index': (date(2005, 1, 4), 900, 6000), 'bond': (date(2018, 1, 2), 95, 140),
                  'repo': (date(2006, 5, 8), 1.5, 3)}
_STUB_TYPES = {'repo': 'bond'}  # a repo is listed among the bonds


@lru_cache(maxsize=16384)
def _stub_profile(code):
    """Profile of a listed code, or one made from the code itself: the same on every machine and for every seed."""
    row = next((row for row in _STUB_CATALOGUE if row[0] == code), None)
    if row is None:
        return _made_up_profile(code)
    listed = parse_moment(row[3])[0].date()
    return _StubProfile(code, row[1], row[2], listed, float(row[4]), _stub_sigma(code), int(row[5]))


def _made_up_profile(code):
    item, rng = instrument(code), random.Random('profile/%s' % code)
    if item.kind == 'other':
        raise SecurityNotFound('模拟交易所没有证券 %s' % code, '可用股票、ETF、LOF、指数、可转债的代码，例如 000001.XSHE')
    earliest, low, high = _STUB_UNLISTED.get(item.board) or _STUB_UNLISTED[item.kind]
    listed = earliest + timedelta(days=int(rng.random() * 600))
    base = low + (high - low) * rng.random()
    return _StubProfile(code, '模拟' + code[:6], 'MN' + code[2:6], listed, base, _stub_sigma(code),
                        20000 + int(rng.random() * 200000))


def _stub_sigma(code):
    """Money funds hardly move."""
    return 0.00004 if code.startswith(('5118', '5119', '15900')) else _STUB_SIGMA[instrument(code).kind]


def _stub_info(profile, listed=None):
    kind = instrument(profile.code).kind
    return {'code': profile.code, 'display_name': profile.display_name, 'name': profile.name,
            'type': _STUB_TYPES.get(kind, kind), 'subtype': None, 'start_date': listed or profile.listed,
            'end_date': _STUB_FOREVER, 'parent': None}


# -- a day, and its 240 minutes -------------------------------------------------------------------------------
_STUB_PULL = 0.004  # share of the way back to the base price that a day goes: keeps 20 years in a sane band


def _draw_day(rng, profile, base, pre, band):
    """(open, close, high, low, lots, high limit, low limit) after a previous close of `pre` ticks; ten draws."""
    top, bottom = limit_ticks(profile.code, pre, band)
    highest, lowest = top or pre * 2, bottom or max(1, pre // 2)
    sigma, draw = profile.sigma, rng.random
    move = sigma * 2 * (draw() + draw() + draw() - 1.5) * (3 if draw() < 0.02 else 1) + _STUB_PULL * (base / pre - 1)
    close = min(highest, max(lowest, int(pre * (1 + move) + 0.5)))
    opened = min(highest, max(lowest, int(pre * (1 + move * draw() * 0.5 + sigma * (draw() - 0.5) * 0.5) + 0.5)))
    reach = sigma * pre * 0.7
    high = min(highest, max(opened, close) + int(draw() * reach + 0.5))
    low = max(lowest, min(opened, close) - int(draw() * reach + 0.5))
    lots = int(profile.lots * (0.4 + draw() + 8 * abs(move))) + 2400
    return opened, close, high, low, lots, top, bottom


def _money_of(profile, volume, typical):
    """Yuan for `volume` shares at a typical price. An index counts shares of its members, some 12 yuan each."""
    if instrument(profile.code).kind == 'index':
        typical = typical / profile.base * 12
    return round(volume * typical, 2)


def _minute_path(rng, first, last, low, high):
    """240 closes in ticks: a bridge from the day's open to its close, kept between low and high."""
    draw, total, walk = rng.random, 0.0, []
    for _ in range(MINUTES_A_DAY):
        total += draw() - 0.5
        walk.append(total)
    scale, slope = (high - low) / 5.6, (last - first) / MINUTES_A_DAY
    path = [first + slope * i + scale * (value - total * i / MINUTES_A_DAY) for i, value in enumerate(walk, 1)]
    return [min(high, max(low, int(value + 0.5))) for value in path[:-1]] + [last]


def _minute_shares(rng, volume):
    """240 volumes that add up exactly; more at the open and the close, whole lots but for the last."""
    weights = [(1 + abs(i - 120) / 60) * (0.5 + rng.random()) for i in range(MINUTES_A_DAY)]
    total, running, reached, shares = math.fsum(weights), 0.0, 0, []  # sum() rounds otherwise from 3.12 on
    for weight in weights[:-1]:
        running += weight
        upto = int(volume * running / total) // 100 * 100
        shares.append(upto - reached)
        reached = upto
    return shares + [int(volume) - reached]


def _minute_money(columns, money):
    """240 sums of money that add up to the day's: what the typical prices make, scaled."""
    prices = zip(columns['open'], columns['close'], columns['high'], columns['low'], columns['volume'])
    raw = [sum(parts[:4]) * parts[4] for parts in prices]
    total = math.fsum(raw)
    sums = [round(money * value / total, 2) if total else 0.0 for value in raw[:-1]]
    return sums + [max(0.0, round(money - math.fsum(sums), 2))]


def _minutes_of(rng, bar, per_yuan):
    """The 240 minutes of a day: dict of columns, prices in ticks, that aggregate to `bar`."""
    first, last, high, low = [int(round(price * per_yuan)) for price in (bar.open, bar.close, bar.high, bar.low)]
    closes = _minute_path(rng, first, last, low, high)
    opens, reach = [first] + closes[:-1], (high - low) / 60 + 1.5
    highs = [min(high, max(pair) + int(rng.random() * reach)) for pair in zip(opens, closes)]
    lows = [max(low, min(pair) - int(rng.random() * reach)) for pair in zip(opens, closes)]
    highs[highs.index(max(highs))] = high
    lows[lows.index(min(lows))] = low
    columns = {'open': opens, 'close': closes, 'high': highs, 'low': lows, 'volume': _minute_shares(rng, bar.volume)}
    return dict(columns, money=_minute_money(columns, bar.money))


def _minute_labels(day):
    """Milliseconds of the 240 bar ends of a day given in ms."""
    return [day + minute * 60000 for minute in BAR_MINUTES]


def _bar_at(columns, row, day):
    values = {name: columns[name][row] for name in _StubBar._fields[1:]}
    for name in ('high_limit', 'low_limit'):
        values[name] = values[name] if values[name] == values[name] else None
    return _StubBar(day=day, **dict(values, paused=bool(values['paused'])))


def _columns_of(bar, day):
    """A bar as daily columns of one row."""
    values = dict(bar._asdict(), time=day, paused=float(bar.paused))
    return {name: array('q' if name == 'time' else 'd', [math.nan if values[name] is None else values[name]])
            for name in DAILY_COLUMNS}


def _paused_bar(day, close, high_limit=None, low_limit=None):
    return _StubBar(day, close, close, close, close, 0.0, 0.0, close, high_limit, low_limit, True)


class _StubMarket:
    """Whole days of a set of securities, without regard to the time of day.

    To provide: codes, info, members, is_trade_day, calendar, daily, minutes, dividends.
    plan(code, day) is the whole bar that quotes of that calendar day move through.
    """

    def __init__(self, seed):
        self.seed = seed

    def codes(self):
        raise NotImplementedError

    def info(self, code):
        raise NotImplementedError

    def members(self, code, day):
        raise NotImplementedError

    def is_trade_day(self, day):
        raise NotImplementedError

    def calendar(self, today):
        """Sorted ms of the trade days up to and including `today`."""
        raise NotImplementedError

    def daily(self, code, today):
        """Daily columns of whole days, reaching at least to `today` (later rows may follow)."""
        raise NotImplementedError

    def minutes(self, code, first, last):
        """Minute columns of whole days, first and last in ms."""
        raise NotImplementedError

    def dividends(self, code, today):
        """Events in the contract's form, ascending."""
        raise NotImplementedError

    def plan(self, code, day):
        columns, ms = self.daily(code, day), to_ms(day)
        row = bisect.bisect_right(columns['time'], ms) - 1
        if row < 0:
            raise DataUnavailable('%s 在 %s 还没有行情' % (code, day), '上市日期或行情文件的第一天在这之后')
        if columns['time'][row] == ms:
            return _bar_at(columns, row, day)
        return self._missing_day(code, day, columns['close'][row])

    def _missing_day(self, code, day, pre_close):
        """A day that is not in the history, such as a Sunday of the exchange that is always open."""
        profile, per_yuan = _stub_profile(code), ticks_per_yuan(code)
        pre, rng = max(1, int(round(pre_close * per_yuan))), random.Random('%s/%s/%s' % (self.seed, code, day))
        prices = _draw_day(rng, profile, pre, pre, limit_band(code, day))
        return _bar_from_ticks(profile, day, pre, prices, per_yuan)

    def plan_minutes(self, code, bar):
        """The minutes of a plan: columns with prices in ticks."""
        rng = random.Random('%s/%s/%s/minutes' % (self.seed, code, bar.day))
        return _minutes_of(rng, bar, ticks_per_yuan(code))


def _bar_from_ticks(profile, day, pre, prices, per_yuan):
    opened, close, high, low, lots, top, bottom = prices
    volume = lots * 100.0
    money = _money_of(profile, volume, (opened + close + high + low) / (4 * per_yuan))
    limits = [None if value is None else value / per_yuan for value in (top, bottom)]
    return _StubBar(day, opened / per_yuan, close / per_yuan, high / per_yuan, low / per_yuan, volume, money,
                    pre / per_yuan, limits[0], limits[1], False)


# -- synthetic market -----------------------------------------------------------------------------------------
class _SyntheticSeries:
    """The daily bars of one security from its first day on, made in order and kept. `until` may come from any thread.

    columns: DAILY_COLUMNS as lists. dividends: events in the contract's form.
    """

    def __init__(self, seed, profile):
        self.seed, self.profile = seed, profile
        self.per_yuan = ticks_per_yuan(profile.code)
        self.columns, self.dividends = empty_columns(DAILY_COLUMNS), []
        self._is_stock = instrument(profile.code).kind == 'stock'
        self._rng = random.Random('%s/%s' % (seed, profile.code))
        self._base = profile.base * self.per_yuan
        spread = min(0.3, 15 * profile.sigma)
        self._close = max(1, int(self._base * (1 + spread * (2 * self._rng.random() - 1))))
        self._next, self._year, self._lock = max(_STUB_START, profile.listed), None, threading.Lock()

    def until(self, day):
        with self._lock:
            while self._next <= day:
                if exchange_opens(self._next):
                    self._append(self._next)
                self._next += timedelta(days=1)
        return self.columns

    def _append(self, day):
        if day.year != self._year:
            self._year = day.year
            self._plan_year(day.year)
        bar = self._paused_day(day) if self._is_paused(day) else self._trading_day(day)
        for name, value in zip(_StubBar._fields[1:-1], bar[1:-1]):
            self.columns[name].append(math.nan if value is None else value)
        self.columns['paused'].append(float(bar.paused))
        self.columns['time'].append(to_ms(day))

    def _plan_year(self, year):
        """Suspensions: one to three blocks of one to five days. Ex-date: May to July."""
        rng, new_year = random.Random('%s/%s/%d' % (self.seed, self.profile.code, year)), date(year, 1, 1)
        starts = [new_year + timedelta(days=int(rng.random() * 350)) for _ in range(1 + int(rng.random() * 3))]
        self._blocks = [(start, min(_STUB_LAST_SUSPENSION, start + timedelta(days=int(rng.random() * 7))))
                        for start in starts]
        self._ex_date = date(year, 5, 8) + timedelta(days=int(rng.random() * 80))
        self._yield = 0.008 + 0.025 * rng.random()
        self._bonus = (1 + int(rng.random() * 5)) / 10 if rng.random() < 0.25 else 0.0

    def _is_paused(self, day):
        first_day = not self.columns['time']
        return self._is_stock and not first_day and any(start <= day <= end for start, end in self._blocks)

    def _paused_day(self, day):
        limits = limit_ticks(self.profile.code, self._close, self._band(day))
        return _paused_bar(day, self._close / self.per_yuan, *[limit and limit / self.per_yuan for limit in limits])

    def _trading_day(self, day):
        if self._is_stock and self.columns['time'] and self._ex_date and day >= self._ex_date:
            self._ex_date = None
            self._pay(day)
        pre = self._close
        prices = _draw_day(self._rng, self.profile, self._base, pre, self._band(day))
        self._close = prices[1]
        return _bar_from_ticks(self.profile, day, pre, prices, self.per_yuan)

    def _band(self, day):
        """The series begins with the listing, or with the paper exchange long after it."""
        listed = self.profile.listed
        number = len(self.columns['time']) + 1 if listed >= _STUB_START else None
        return limit_band(self.profile.code, day, False, listed, number)

    def _pay(self, day):
        """The reference price of an ex-date: (close - cash) / (1 + bonus), to the tick."""
        cents = int(self._close * self._yield)
        self._close = max(1, int((self._close - cents) / (1 + self._bonus) + 0.5))
        self.dividends.append({'security': self.profile.code, 'date': to_ms(day), 'security_type': 'stock',
                               'scale_factor': 1 + self._bonus, 'bonus_pre_tax': cents * 10 / self.per_yuan,
                               'per_base': 10})


class _SyntheticMarket(_StubMarket):
    """Random walks, the same for a seed and a code whatever is asked, and in whatever order.

    Dividends fall on stocks alone. Days after 2025 are never suspended. The calendar is `exchange_opens`.
    KEPT, MONTHS_KEPT: how many series and months of minutes are kept, some 0.4 and 0.3 MB each.
    """

    KEPT, MONTHS_KEPT = 32, 40

    def __init__(self, seed):
        super().__init__(seed)
        self._series, self._months, self._days, self._lock = OrderedDict(), OrderedDict(), [], threading.Lock()

    def codes(self):
        return [row[0] for row in _STUB_CATALOGUE]

    def info(self, code):
        return _stub_info(_stub_profile(code))

    def members(self, code, day):
        """Every index holds the stocks of the list that were listed on the day."""
        if instrument(code).kind != 'index':
            raise DataUnavailable('%s 不是指数，没有成份股' % code, '指数例如 000300.XSHG')
        stocks = [_stub_profile(item) for item in self.codes() if instrument(item).kind == 'stock']
        return [profile.code for profile in stocks if profile.listed <= day]

    def is_trade_day(self, day):
        return day >= _STUB_START and exchange_opens(day)

    def calendar(self, today):
        with self._lock:
            day = from_ms(self._days[-1]).date() + timedelta(days=1) if self._days else _STUB_START
            while day <= today:
                if exchange_opens(day):
                    self._days.append(to_ms(day))
                day += timedelta(days=1)
            return self._days[:bisect.bisect_right(self._days, to_ms(today))]

    def daily(self, code, today):
        return self._series_of(code).until(today)

    def minutes(self, code, first, last):
        """Month by month, as far as the calendar goes."""
        first, last = max(first, to_ms(_STUB_START)), min(last, to_ms(_STUB_FOREVER))
        columns, day = empty_columns(MINUTE_COLUMNS), from_ms(first).date().replace(day=1)
        while to_ms(day) <= last:
            for name, values in slice_columns(self._month(code, day), first, last + DAY_MS - 1).items():
                columns[name].extend(values)
            day = (day + timedelta(days=31)).replace(day=1)
        return columns

    def _month(self, code, day):
        """All minutes of the month that begins on `day`."""
        with self._lock:
            columns = self._months.pop((code, day), None)
        columns = self._make_month(code, day) if columns is None else columns
        with self._lock:
            self._months[code, day] = columns
            if len(self._months) > self.MONTHS_KEPT:
                self._months.popitem(last=False)
        return columns

    def _make_month(self, code, day):
        end = (day + timedelta(days=31)).replace(day=1)
        days = slice_columns(self.daily(code, end), to_ms(day), to_ms(end) - 1)
        columns, per_yuan = empty_columns(MINUTE_COLUMNS), ticks_per_yuan(code)
        for row, moment in enumerate(days['time']):
            if not days['paused'][row]:
                bar = _bar_at(days, row, from_ms(moment).date())
                _extend_minutes(columns, self.plan_minutes(code, bar), moment, per_yuan)
        return columns

    def dividends(self, code, today):
        series = self._series_of(code)
        series.until(today)
        return series.dividends

    def _series_of(self, code):
        """The least recently used one goes where there are too many: it can be made again."""
        with self._lock:
            series = self._series.pop(code, None) or _SyntheticSeries(self.seed, _stub_profile(code))
            self._series[code] = series
            if len(self._series) > self.KEPT:
                self._series.popitem(last=False)
            return series


def _extend_minutes(columns, minutes, day, per_yuan):
    """Appends the minutes of a day, ticks turned into yuan."""
    columns['time'].extend(_minute_labels(day))
    for name in ('open', 'close', 'high', 'low'):
        columns[name].extend([ticks / per_yuan for ticks in minutes[name]])
    columns['volume'].extend(minutes['volume'])
    columns['money'].extend(minutes['money'])


# -- CSV market -----------------------------------------------------------------------------------------------
_CSV_NAME = re.compile(r'(.+)_(1d|1m)\.csv', re.ASCII)
_CSV_NUMBERS = ('open', 'close', 'high', 'low', 'volume', 'money')
_CSV_OPTIONAL = ('pre_close', 'paused', 'high_limit', 'low_limit')
_CSV_PAID = ('bonus_shares', 'cash_dividend')  # new shares and yuan before tax, each for ten shares
_BONUS_STEPS = {'stock': 0.1, 'etf': 1.0, 'lof': 1.0}  # new shares a share come in multiples of these


class _CsvMarket(_StubMarket):
    """Bars out of CODE_1d.csv and CODE_1m.csv, as they are. Raises ConfigError naming file and line.

    What was paid on an ex-date stands in bonus_shares and cash_dividend; where a file has neither, the fall from a
    close to the next pre_close tells, see guessed_plan(). Where the reference price rose, shares were merged. Days
    after the files have quotes (a plan drawn from the last close) but no bars. A day that only other securities have
    is a suspension.
    """

    def __init__(self, directory, seed=1, today=date.max):
        super().__init__(seed)
        self.directory, self._today = directory, today
        self._minutes, self._paid = {}, {}
        self._daily = self._load(_csv_files(directory))
        self._days = sorted(set().union(*(columns['time'] for columns in self._daily.values())))
        self._day_set = frozenset(self._days)

    def codes(self):
        return sorted(self._daily)

    def info(self, code):
        return _stub_info(_stub_profile(code), from_ms(self._columns(code)['time'][0]).date())

    def members(self, code, day):
        raise DataUnavailable('目录 %s 里没有指数 %s 的成份股' % (self.directory, code),
                              '行情文件里没有成份股：策略里自己写明代码的列表，或用 qmt-remote 的行情')

    def is_trade_day(self, day):
        """The files decide as far as they reach, the exchanges' calendar beyond."""
        ms = to_ms(day)
        return ms in self._day_set or (ms > self._days[-1] and exchange_opens(day))

    def calendar(self, today):
        return self._days[:bisect.bisect_right(self._days, to_ms(today))]

    def daily(self, code, today):
        return self._columns(code)

    def minutes(self, code, first, last):
        self._columns(code)
        if code not in self._minutes:
            raise DataUnavailable('%s 没有分钟线' % code, '在 %s 放入 %s_1m.csv' % (self.directory, code), lasting=True)
        return slice_columns(self._minutes[code], first, last + DAY_MS - 1)

    def dividends(self, code, today):
        columns, paid = self._columns(code), self._paid.get(code)
        steps = [row for row in range(1, len(columns['time']))
                 if abs(columns['close'][row - 1] - columns['pre_close'][row]) > 1e-6]
        events = [_csv_dividend(code, columns, row, paid) for row in steps]
        return [event for event in events if event['bonus_pre_tax'] or event['scale_factor'] != 1]

    def _missing_day(self, code, day, pre_close):
        if to_ms(day) in self._day_set:
            return _paused_bar(day, pre_close, *price_limits(code, pre_close, day))
        return super()._missing_day(code, day, pre_close)

    def plan_minutes(self, code, bar):
        """The file's own minutes where it has all of the day's, so that quotes agree with them."""
        day, per_yuan = to_ms(bar.day), ticks_per_yuan(code)
        own = slice_columns(self._minutes.get(code) or empty_columns(MINUTE_COLUMNS), day, day + DAY_MS - 1)
        if len(own['time']) != MINUTES_A_DAY:
            return super().plan_minutes(code, bar)
        for name in ('open', 'close', 'high', 'low'):
            own[name] = [int(round(price * per_yuan)) for price in own[name]]
        return own

    def _load(self, files):
        daily = {}
        for (code, period), path in files.items():
            if period == '1d':
                daily[code], self._paid[code] = _read_daily(path, code, self._today)
        for (code, period), path in files.items():
            if period == '1m':
                self._minutes[code] = _read_minutes(path, self._today)
                daily.setdefault(code, _days_of_minutes(code, self._minutes[code]))
        return daily

    def _columns(self, code):
        if code not in self._daily:
            raise SecurityNotFound('没有证券 %s 的行情' % code,
                                   '模拟行情来自目录 %s，放入 %s_1d.csv 并重启即可' % (self.directory, code))
        return self._daily[code]


def _csv_dividend(code, columns, row, paid):
    """One step of the reference price: new shares, and cash for each ten shares (a fund: one). paid: as in the file."""
    before, reference = columns['close'][row - 1], columns['pre_close'][row]
    if before < reference:
        bonus, cash = before / reference - 1, 0.0
    elif paid:
        bonus, cash = (values[row] / 10 for values in paid)
    else:
        bonus, cash = guessed_plan(code, before, reference)
    fund = instrument(code).kind in ('etf', 'lof')
    base = 1 if fund else 10
    return {'security': code, 'date': columns['time'][row], 'security_type': 'fund' if fund else 'stock',
            'scale_factor': 1 + bonus, 'bonus_pre_tax': round(cash * base, 6), 'per_base': base}


def guessed_plan(code, before, reference):
    """(new shares, yuan) a share that a fall of the reference price means: as many new ones as fit, the rest is cash.

    Stocks give tenths of a share, a tenth at the least; funds are split into whole ones. A smaller fall is all cash.
    """
    rounding, step = min(instrument(code).tick, reference) / 2, _BONUS_STEPS.get(instrument(code).kind)
    bonus = round(int((before / (reference - rounding) - 1) / step + 1e-9) * step, 6) if step else 0.0
    cash = before - reference * (1 + bonus)
    return bonus, 0.0 if bonus and cash <= rounding * (1 + bonus) + 1e-9 else cash


_CSV_HINT = '检查 %s；回测是 --data-provider csv:目录' % ways('stub_data')


def _csv_files(directory):
    """OrderedDict (code, '1d' or '1m') -> path."""
    if not os.path.isdir(directory):
        raise ConfigError('行情目录 %s 不存在' % directory, _CSV_HINT)
    files = OrderedDict()
    for name in sorted(os.listdir(directory)):
        if name.lower().endswith('.csv'):
            path = os.path.join(directory, name)
            key = _csv_key(path, name)
            if key in files:
                raise ConfigError('%s 与 %s 是同一证券的同一周期' % (path, files[key]), '只保留其中一个')
            files[key] = path
    if not files:
        raise ConfigError('行情目录 %s 里没有 代码_1d.csv 或 代码_1m.csv' % directory, _CSV_HINT)
    return files


def _csv_key(path, name):
    match = _CSV_NAME.fullmatch(name)
    try:
        code = normalize_code(match.group(1)) if match else None
    except SecurityNotFound:
        code = None
    if code is None or instrument(code).kind == 'other':
        raise ConfigError('%s：文件名里没有认识的证券代码和周期' % path, '应为 600519.XSHG_1d.csv 或 600519.XSHG_1m.csv 的形式')
    return code, match.group(2)


_csv_number = re.compile(r'\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?\s*', re.ASCII).fullmatch
_csv_moment = lru_cache(maxsize=8192)(parse_moment)  # files share their dates


class _CsvReader:
    """The rows of one file as columns. Every complaint names the file and the line."""

    def __init__(self, path, time_column, optional=(), today=date.max):
        self.path, self.line, self.today = path, 1, today
        lines = self._lines()
        self._header = [name.strip() for name in lines[0].split(',')]
        missing = [name for name in (time_column,) + _CSV_NUMBERS if self._header.count(name) != 1]
        if missing:
            self.fail('表头缺少或重复了列 %s' % '、'.join(missing), '需要 %s' % ','.join((time_column,) + _CSV_NUMBERS))
        self._names = _CSV_NUMBERS + tuple(name for name in optional if name in self._header)
        self._places = [self._header.index(name) for name in self._names]
        self._time_place = self._header.index(time_column)
        self.columns = empty_columns(('time',) + self._names)
        for self.line, text in enumerate(lines[1:], 2):
            self._add(text)
        if not self.columns['time']:
            self.fail('没有数据行')

    def fail(self, problem, hint='更正这一行，或去掉这个文件'):
        raise ConfigError('%s 第 %d 行：%s' % (self.path, self.line, problem), hint)

    def check_time(self, moment, has_clock):
        """Why this is no label of a bar, or None."""
        raise NotImplementedError

    def _lines(self):
        try:
            with open(self.path, 'rb') as file:
                data = file.read()
        except OSError as error:
            raise ConfigError('行情文件 %s 读不出来：%s' % (self.path, error))
        try:
            lines = data.decode('utf-8-sig').replace('\r\n', '\n').split('\n')
        except UnicodeDecodeError as error:
            self.line = data.count(b'\n', 0, error.start) + 1
            self.fail('不是 UTF-8 文本', '另存为 UTF-8 编码的 CSV')
        return lines[:-1] if len(lines) > 1 and not lines[-1] else lines

    def _add(self, text):
        cells = text.split(',')
        if len(cells) != len(self._header):
            self.fail('应有 %d 列，实有 %d 列' % (len(self._header), len(cells)))
        moment = self._moment(cells[self._time_place])
        values = self._numbers([cells[place] for place in self._places])
        self._check_prices(dict(zip(self._names, values)))
        for name, value in zip(self._names, values):
            self.columns[name].append(value)
        self.columns['time'].append(moment)

    def _moment(self, text):
        try:
            moment, has_clock = _csv_moment(text)
        except ValueError:
            self.fail('时间 %s 不认识' % brief(text))
        problem = self.check_time(moment, has_clock) or self._day_problem(moment)
        if problem:
            self.fail('时间 %s：%s' % (brief(text), problem))
        ms = to_ms(moment)
        if self.columns['time'] and ms <= self.columns['time'][-1]:
            self.fail('时间 %s 重复或没有按升序排列' % brief(text))
        return ms

    def _day_problem(self, moment):
        if moment.weekday() >= 5:
            return '周末没有行情'
        return '在今天之后' if moment.date() > self.today else None

    def _numbers(self, cells):
        """The pattern comes first: float() alone would take 1_000, nan and inf."""
        for name, cell in zip(self._names, cells):
            if not _csv_number(cell):
                self.fail('%s 的值 %s 不是非负的数' % (name, brief(cell)))
        return [float(cell) for cell in cells]

    def _check_prices(self, row):
        if row['high'] < row['low']:
            self.fail('最高价 %g 低于最低价 %g' % (row['high'], row['low']))
        if row.get('paused', 0.0) not in (0.0, 1.0):
            self.fail('paused 的值 %g 应为 0 或 1' % row['paused'])
        if row['close'] <= 0 or (not row.get('paused') and not self._inside(row)):
            self.fail('开盘价 %g、收盘价 %g 不在最低价与最高价之间' % (row['open'], row['close']))

    @staticmethod
    def _inside(row):
        return 0 < row['low'] <= min(row['open'], row['close']) and max(row['open'], row['close']) <= row['high']


class _CsvDays(_CsvReader):
    PLAN_TOLERANCE = 0.02  # of the reference price: plans are rounded, and some shares get nothing

    def _check_prices(self, row):
        super()._check_prices(row)
        if row.get('pre_close', 1.0) <= 0 and self.columns['close']:  # it would pass for a dividend
            self.fail('pre_close 的值 %g 不是价格' % row['pre_close'], '写除权参考价，没有除权时是前收盘价')
        bonus, cash = (row.get(name, 0.0) for name in _CSV_PAID)
        if (bonus or cash) and self.columns['close']:
            expected = ex_reference(self.columns['close'][-1], bonus, cash)
            if abs(row.get('pre_close', expected) - expected) > self.PLAN_TOLERANCE * expected + 0.01 or expected <= 0:
                self.fail('每 10 股送转 %g 股、派现 %g 元与 pre_close 不符：除权参考价应约为 %.3f' % (bonus, cash, expected),
                          'bonus_shares、cash_dividend 都是每 10 股的数，写在除权除息日那一行')

    def check_time(self, moment, has_clock):
        return '日线只写日期' if (moment.hour, moment.minute, moment.second) != (0, 0, 0) else None


class _CsvMinutes(_CsvReader):
    def check_time(self, moment, has_clock):
        labels_bar = has_clock and minute_of_day(moment) in _BAR_MINUTE_SET and not moment.second
        return None if labels_bar else '分钟线写结束时刻，09:31 到 11:30、13:01 到 15:00'


_BAR_MINUTE_SET = frozenset(BAR_MINUTES)


def ex_reference(close, bonus, cash):
    """The reference price after so many new shares and yuan for each ten shares."""
    return (close - cash / 10) / (1 + bonus / 10)


def _read_daily(path, code, today):
    """(complete columns, what was paid: two columns, or None where the file does not tell)."""
    columns = _CsvDays(path, 'date', _CSV_OPTIONAL + _CSV_PAID, today).columns
    told = [columns.pop(name, None) for name in _CSV_PAID]
    if told == [None, None]:
        return _complete_days(code, columns), None
    paid = [array('d', bytes(8 * len(columns['time']))) if values is None else values for values in told]
    if 'pre_close' not in columns:
        closes, tick = columns['close'], instrument(code).tick
        columns['pre_close'] = columns['open'][:1] + array('d', [
            round_to_tick(ex_reference(*figures), tick) for figures in zip(closes, paid[0][1:], paid[1][1:])])
    return _complete_days(code, columns), paid


def _read_minutes(path, today):
    return _CsvMinutes(path, 'time', today=today).columns


def _complete_days(code, columns):
    """Adds pre_close (the previous close; the open on the first day), paused and the limits where the file has none."""
    columns = dict(columns)
    columns.setdefault('paused', array('d', bytes(8 * len(columns['time']))))
    columns.setdefault('pre_close', columns['open'][:1] + columns['close'][:-1])
    names = ('time', 'pre_close', 'low', 'high', 'paused')
    limits = [_limits_of(code, *row) for row in zip(*(columns[name] for name in names))]
    columns.setdefault('high_limit', array('d', [pair[0] for pair in limits]))
    columns.setdefault('low_limit', array('d', [pair[1] for pair in limits]))
    return columns


def _limits_of(code, day, pre_close, low, high, paused):
    seen = None if paused else (low, high)
    return [math.nan if limit is None else limit
            for limit in price_limits(code, pre_close, from_ms(day).date(), seen=seen)]


def _days_of_minutes(code, minutes):
    """Daily columns of a security that has minutes only."""
    days = [moment - moment % DAY_MS for moment in minutes['time']]
    starts = [i for i, day in enumerate(days) if not i or days[i - 1] != day]
    columns = combine(minutes, list(zip(starts, starts[1:] + [len(days)])))
    return _complete_days(code, dict(columns, time=array('q', [days[i] for i in starts])))


# -- the running day ------------------------------------------------------------------------------------------
class _StubPlan:
    """A day that quotes move through. position: minutes of trading so far, 0.0 to 240.0.

    Inside a minute the price goes from the open over one extreme and the other to the close, a tick off at random.
    """

    def __init__(self, bar, minutes, per_yuan):
        self.bar, self.minutes, self.per_yuan = bar, minutes, per_yuan
        self._highs, self._lows = _running(max, minutes['high']), _running(min, minutes['low'])
        self._volumes = _running(lambda a, b: a + b, minutes['volume'])
        self._money = _running(lambda a, b: a + b, minutes['money'])

    def state(self, position, wobble):
        """(last, high, low in ticks, volume, money) so far; wobble: -1, 0 or 1 ticks."""
        row = min(int(position), MINUTES_A_DAY - 1)
        path, part = self._path(row), position - row
        passed = [_along(path, 0)] + path[1:int(part * 3) + 1] + [_along(path, part)]
        low, high = min(path), max(path)
        last = passed[-1] + (wobble if 0 < part < 1 else 0)
        above, below = min(high, max(passed) + 1), max(low, min(passed) - 1)
        if row or part == 1:
            above, below = self._with_past(row, part, above, below)
        return min(max(last, below), above), above, below, self._sum(self._volumes, row, part, 100), \
            self._sum(self._money, row, part, 0.01)

    def day_so_far(self, count):
        """The bar of the first `count` complete minutes; before the first, the open alone."""
        if not count:
            return self.bar._replace(close=self.bar.open, high=self.bar.open, low=self.bar.open, volume=0.0, money=0.0)
        return self.bar._replace(
            close=self.minutes['close'][count - 1] / self.per_yuan, high=self._highs[count - 1] / self.per_yuan,
            low=self._lows[count - 1] / self.per_yuan, volume=float(self._volumes[count - 1]),
            money=round(self._money[count - 1], 2))

    def _path(self, row):
        opened, close, high, low = [self.minutes[name][row] for name in ('open', 'close', 'high', 'low')]
        return [opened, low, high, close] if close >= opened else [opened, high, low, close]

    def _with_past(self, row, part, above, below):
        past = row if part == 1 else row - 1
        return max(above, self._highs[past]), min(below, self._lows[past])

    @staticmethod
    def _sum(sums, row, part, unit):
        """Grows with the part of the minute in whole units; complete at its end."""
        before = sums[row - 1] if row else 0
        gone = sums[row] - before if part == 1 else int((sums[row] - before) * part / unit) * unit
        return round(float(before + gone), 2)


def _running(merge, values):
    merged = [values[0]]
    for value in values[1:]:
        merged.append(merge(merged[-1], value))
    return merged


def _along(path, part):
    """The price at this part of a minute: three equal legs between four prices, in whole ticks."""
    leg = min(int(part * 3), 2)
    return int(path[leg] + (path[leg + 1] - path[leg]) * (part * 3 - leg) + 0.5)


def _level_one(rng, last, top, bottom):
    """(a1_p, a1_v, b1_p, b1_v), prices in ticks, a tick or two around the last; at a limit one side is empty (0, 0)."""
    ask, bid = last + 1 + int(rng.random() * 2), max(1, last - 1 - int(rng.random() * 2))
    ask_volume, bid_volume = [100 * (10 + int(rng.random() * 90)) for _ in range(2)]
    ask, bid = min(ask, top or ask), max(bid, bottom or bid)
    if top and last >= top:
        return 0, 0, top, bid_volume
    if (bottom and last <= bottom) or bid >= last:
        return bottom or ask, ask_volume, 0, 0
    return ask, ask_volume, bid, bid_volume


class StubData(DataAdapter):
    """Market data of the paper exchange. source: `_SyntheticMarket` or `_CsvMarket`.

    always_open=False: quotes follow the real sessions of trade days; outside them they stand still at the last close.
    always_open=True: every moment of every calendar day is trading time for quotes. The 24 hours of the day are
    scaled to the 240 minutes of its plan, six minutes of clock to one of plan: 00:00 is the open, 12:00 noon half
    time, and at midnight a new day begins. A Sunday gets a plan of its own from the last close, which never enters
    the history: that keeps to trade days. Today's bars are never ahead of the quotes, nor of the clock: a minute is
    there once both have passed it, and the day is complete at midnight.
    For the exchange: quote, market_open, trade_day, last_close. close() ends the pushing thread.
    """

    PLANS_KEPT = 256  # some 40 KB each

    def __init__(self, source, clock, always_open, tick_interval_s):
        super().__init__(clock)
        self.source, self.always_open, self.tick_interval_s = source, always_open, tick_interval_s
        self._last_quotes = {}  # code -> Tick, good for its second
        self._plans, self._subscribed, self._thread = {}, set(), None
        self._lock, self._stop = threading.Lock(), threading.Event()

    # -- what the exchange asks -----------------------------------------------------------------------------
    def market_open(self, moment=None):
        """Whether orders can match at this moment (default: now)."""
        moment = self.clock.now() if moment is None else moment
        return self.always_open or (self.source.is_trade_day(moment.date()) and in_session(moment))

    def trade_day(self, moment):
        """The exchange's day of a moment: the calendar date, in both modes (always open: each one is a trading day)."""
        return moment.date()

    def _is_continuous(self, code, moment):
        return self.always_open or super()._is_continuous(code, moment)

    def last_close(self, code):
        """The reference price of the current day in yuan: the last close, less what went ex today."""
        return self._plan(code, self._quote_day(self.clock.now())).bar.pre_close

    def quote(self, code):
        """Tick of now, to the second; the same for a seed, a code and a moment.

        Before the open: last_price is the previous close, no open, high, low. An index has no level 1 (None);
        a side without orders has price 0.0 and volume 0.
        """
        now = self.clock.now().replace(microsecond=0)
        known = self._last_quotes.get(code)
        if known is None or known.dt != now:
            known = self._last_quotes[code] = self._quote_at(code, now)
        return known

    def _quote_at(self, code, now):
        self._info(code)
        day = self._quote_day(now)
        plan, position = self._plan(code, day), self._position(now, day)
        if position is None or plan.bar.paused:
            return self._still_tick(code, now, plan.bar)
        return self._moving_tick(code, now, plan, position)

    # -- hooks of the contract ------------------------------------------------------------------------------
    def _calendar(self):
        return self.source.calendar(self.clock.now().date())

    def _info(self, code):
        return self.source.info(code)

    def _codes(self):
        return self.source.codes()

    def _members(self, code, day):
        return self.source.members(code, self.clock.now().date() if day is None else day)

    def _dividends(self, code, first, last):
        today = self.clock.now().date()
        last = to_ms(today) if last is None else min(last, to_ms(today))
        return [dict(event) for event in self.source.dividends(code, today)
                if (first is None or first <= event['date']) and event['date'] <= last]

    def _daily(self, code, first, last):
        now = self.clock.now()
        today = to_ms(now.date())
        columns = slice_columns(self.source.daily(code, now.date()), first, min(last, today - 1))
        running = self._running_day(code, now) if first <= today <= last else None
        for name, values in (_columns_of(running, today) if running else {}).items():
            columns[name].extend(values)
        return columns

    def _minutes(self, code, first, last):
        """Complete bars: of the running day only those whose end has come."""
        now = self.clock.now()
        columns = self.source.minutes(code, first, min(last, to_ms(now.date())))
        return slice_columns(columns, first, self._shown_until(now))

    def _shown_until(self, now):
        """The label of the newest minute bar that may be seen, in ms; none of today before the first."""
        count, today = self._minutes_passed(now), to_ms(now.date())
        return today + BAR_MINUTES[count - 1] * 60000 if count else today

    def _minutes_passed(self, now):
        """How many of today's 240 minute bars are complete, for the clock and for the quotes."""
        shown = int(self._position(now, now.date()) or 0) if self.always_open else MINUTES_A_DAY
        return min(bars_elapsed(now), shown)

    def _running_day(self, code, now):
        """What today's bar shows at this moment: nothing before 09:30, all of it after the last minute."""
        today, times = now.date(), self.source.daily(code, now.date())['time']
        row = bisect.bisect_left(times, to_ms(today))
        if row == len(times) or times[row] != to_ms(today) or minute_of_day(now) < MORNING_OPEN:
            return None
        plan, count = self._plan(code, today), self._minutes_passed(now)
        return plan.bar if plan.bar.paused or count == MINUTES_A_DAY else plan.day_so_far(count)

    # -- the running day --------------------------------------------------------------------------------------
    def _quote_day(self, now):
        """The day whose plan is shown: today, or the last trade day where today is none."""
        day = now.date()
        while not self.always_open and day > _STUB_START and not self.source.is_trade_day(day):
            day -= timedelta(days=1)
        return day

    def _position(self, now, day):
        """Minutes of the plan gone by; None before the open."""
        minutes = minute_of_day(now) + now.second / 60
        if self.always_open:
            return (minute_of_day(now) * 60 + now.second) / 360
        if day != now.date() or minutes >= AFTERNOON_CLOSE:
            return float(MINUTES_A_DAY)
        if minutes < MORNING_OPEN:
            return None
        return min(minutes - MORNING_OPEN, 120.0) + max(0.0, minutes - AFTERNOON_OPEN)

    def _plan(self, code, day):
        """One plan a code is kept: all but midnight asks for the same day again and again."""
        plan = self._plans.get(code)
        if plan is None or plan.bar.day != day:
            bar = self.source.plan(code, day)
            plan = _StubPlan(bar, self.source.plan_minutes(code, bar), ticks_per_yuan(code))
            with self._lock:
                if len(self._plans) >= self.PLANS_KEPT and code not in self._plans:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[code] = plan
        return plan

    def _still_tick(self, code, now, bar):
        """Suspended, or not open yet: the previous close and an empty book."""
        book = {} if instrument(code).kind == 'index' else dict(a1_p=0.0, a1_v=0, b1_p=0.0, b1_v=0)
        return Tick(sid=code, last_price=bar.pre_close, dt=now, pre_close=bar.pre_close, high_limit=bar.high_limit,
                    low_limit=bar.low_limit, paused=bar.paused, volume=0.0, **book)

    def _moving_tick(self, code, now, plan, position):
        bar, per_yuan = plan.bar, plan.per_yuan
        rng = random.Random('%s/%s/%s/%d' % (self.source.seed, code, bar.day, int(position * 360 + 0.5)))
        last, high, low, volume, money = plan.state(position, int(rng.random() * 3) - 1)
        tick = Tick(sid=code, last_price=last / per_yuan, dt=now, open=bar.open, high=high / per_yuan,
                    low=low / per_yuan, pre_close=bar.pre_close, volume=volume, money=money,
                    high_limit=bar.high_limit, low_limit=bar.low_limit)
        return tick if instrument(code).kind == 'index' else self._with_book(tick, rng, last, per_yuan)

    @staticmethod
    def _with_book(tick, rng, last, per_yuan):
        limits = [limit and int(round(limit * per_yuan)) for limit in (tick.high_limit, tick.low_limit)]
        ask, ask_volume, bid, bid_volume = _level_one(rng, last, *limits)
        return tick.replace(a1_p=ask / per_yuan, a1_v=ask_volume, b1_p=bid / per_yuan, b1_v=bid_volume)

    # -- push -------------------------------------------------------------------------------------------------
    def subscribe(self, codes):
        for code in codes:
            if code not in MARKETS:
                self._info(code)
        with self._lock:
            self._subscribed.update(codes)
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._push_loop, name='stub-ticks', daemon=True)
                self._thread.start()

    def unsubscribe(self, codes):
        with self._lock:
            self._subscribed.difference_update(codes)

    def close(self):
        """Ends the pushing thread and waits for it."""
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            wait_for_thread(thread)

    def _push_loop(self):
        while not self._stop.is_set():
            for code in self._pushed():
                if self._stop.is_set():
                    return
                self._push(code)
            self._stop.wait(self.tick_interval_s)

    def _pushed(self):
        """Codes of which ticks are due; of a whole market those that are listed here."""
        with self._lock:
            wanted = set(self._subscribed)
        if not wanted.isdisjoint(MARKETS):
            wanted.update(code for code in self.source.codes() if market_of(code) in wanted)
        return sorted(wanted.difference(MARKETS))

    def _push(self, code):
        """Whatever fails for one security, in the listener most likely, must not silence the others."""
        try:
            tick = self._quote_if_listed(code)
            if tick is not None and self._tick_listener is not None and not self._stop.is_set():
                self._tick_listener(tick)
        except Exception:
            logging.getLogger('bullet_qmt').exception('行情回调失败：%s', code)

    def _quote_if_listed(self, code):
        try:
            return self.quote(code)
        except DataUnavailable:  # no price yet, no tick
            return None


# -- ledger of the paper exchange: whole 1/1000 yuan ("mills") and whole shares, so that no rounding loses any --
def _to_mills(yuan):
    return int((Decimal(repr(yuan)) * 1000).to_integral_value(ROUND_HALF_UP))


def _to_yuan(mills):
    return mills / 1000.0


def _fees_in_mills(security, side, value, day):
    """(commission with transfer fee, tax) of an order whose fills are worth `value`."""
    commission, tax, transfer = trade_fees(security, side, Decimal(value) / 1000, day)
    return int((commission + transfer) * 1000), int(tax * 1000)


class _Hold:
    """What an open order keeps from other use, and what its fills have come to so far.

    left: shares not filled yet.  bound: worst price in mills.  cash: mills that it freezes (buys only).
    value, commission (with transfer fee), tax: sums over the fills, in mills.
    """

    def __init__(self, security, side, amount, bound, day):
        self.security, self.side, self.bound, self.day = security, side, bound, day
        self.left, self.cash = amount, 0
        self.value = self.commission = self.tax = 0

    def accepts(self, price):
        return price <= self.bound if self.side == 'BUY' else price >= self.bound

    def cash_needed(self):
        """The rest at its bound and the fees still to come; as fees grow with the value, no fill can need more."""
        if self.side == 'SELL':
            return 0
        rest = self.left * self.bound
        return rest + _fees_in_mills(self.security, self.side, self.value + rest, self.day)[0] - self.commission

    def charge(self, amount, price):
        """Books a fill; the (commission, tax) that it adds. A sale never costs more than it brings."""
        value = amount * price
        self.left, self.value = self.left - amount, self.value + value
        commission, tax = _fees_in_mills(self.security, self.side, self.value, self.day)
        commission, tax = commission - self.commission, min(tax - self.tax, value)
        if self.side == 'SELL':
            commission = min(commission, value - tax)
        self.commission, self.tax = self.commission + commission, self.tax + tax
        return commission, tax


class _Holding:
    """Shares of one security. today: bought today and not for sale yet; avg_cost in yuan a share, fees included."""

    def __init__(self):
        self.total = self.today = self.frozen = 0
        self.avg_cost = 0.0

    @property
    def closeable(self):
        return self.total - self.today - self.frozen

    def add(self, amount, cost, t0):
        self.avg_cost = (self.avg_cost * self.total + _to_yuan(cost)) / (self.total + amount)
        self.total += amount
        self.today += 0 if t0 else amount


class StubLedger:
    """Cash and shares of one account. Knows neither time nor threads; every figure is an int.

    cash: mills free to use.  frozen_cash: mills that resting buys hold, counted as they come and go.
    sale_income: mills that today's sales brought.  holds: order id -> _Hold.
    holdings: code -> _Holding, only where there are shares.
    """

    def __init__(self, cash):
        self.cash, self.sale_income = cash, 0
        self.holds, self.holdings, self.frozen_cash = OrderedDict(), OrderedDict(), 0

    @property
    def transferable_cash(self):
        return max(0, self.cash - self.sale_income)

    def closeable(self, security):
        holding = self.holdings.get(security)
        return holding.closeable if holding else 0

    def hold(self, order_id, security, side, amount, bound, day):
        """Freezes what the order may use up and returns its _Hold. Raises OrderRejected if there is not enough."""
        hold = _Hold(security, side, amount, bound, day)
        if side == 'BUY':
            self._freeze_cash(hold)
        else:
            self._freeze_shares(hold)
        self.holds[order_id] = hold
        return hold

    def fill(self, order_id, amount, price):
        """Books a fill at `price` mills; (commission, tax) of this fill in mills. ValueError: outside the order."""
        hold = self.holds[order_id]
        if not 0 < amount <= hold.left or not hold.accepts(price):
            raise ValueError('fill of %d at %d is outside order %s' % (amount, price, order_id))
        commission, tax = hold.charge(amount, price)
        if hold.side == 'BUY':
            self._bought(hold, amount, amount * price + commission)
        else:
            self._sold(hold, amount, amount * price - commission - tax)
        if not hold.left:
            del self.holds[order_id]
        return commission, tax

    def release(self, order_id):
        """The order is over: what it still froze is free again."""
        hold = self.holds.pop(order_id)
        self._set_frozen(hold, 0)
        if hold.side == 'SELL':
            self.holdings[hold.security].frozen -= hold.left

    def roll(self):
        """A new trading day: nothing frozen, all shares closeable."""
        for order_id in list(self.holds):
            self.release(order_id)
        for holding in self.holdings.values():
            holding.today = 0
        self.sale_income = 0

    def _freeze_cash(self, hold):
        need = hold.cash_needed()
        if need > self.cash:
            raise _refusal('可用资金不足：需要 %.2f 元（含费用），可用 %.2f 元' % (_to_yuan(need), _to_yuan(self.cash)),
                           '减少数量，或先撤销占用资金的委托')
        self._set_frozen(hold, need)

    def _set_frozen(self, hold, mills):
        self.cash += hold.cash - mills
        self.frozen_cash += mills - hold.cash
        hold.cash = mills

    def _freeze_shares(self, hold):
        closeable = self.closeable(hold.security)
        if hold.left > closeable:
            raise _refusal('可卖数量不足：委托 %d，可卖 %d' % (hold.left, closeable), '当日买入的股票下一交易日才能卖出')
        self.holdings[hold.security].frozen += hold.left

    def _bought(self, hold, amount, cost):
        self._set_frozen(hold, hold.cash_needed())
        self.cash -= cost
        self.holdings.setdefault(hold.security, _Holding()).add(amount, cost, instrument(hold.security).t0)

    def _sold(self, hold, amount, income):
        holding = self.holdings[hold.security]
        holding.total, holding.frozen = holding.total - amount, holding.frozen - amount
        self.cash, self.sale_income = self.cash + income, self.sale_income + income
        if not holding.total:
            del self.holdings[hold.security]


# -- what the exchange refuses; it does not rely on anybody having checked before --------------------------------
def _refusal(message, hint=''):
    return OrderRejected(message, hint, broker_called=True)


def _checked_order(request):
    """The request with a canonical code and plain numbers. Raises OrderRejected for a shape that is no order."""
    try:
        check_choice(request.side, 'side', SIDES)
        check_choice(request.style, 'style', ('limit', 'market'))
        if request.market_type not in _PAPER_MARKET_TYPES:
            raise BadRequest('模拟交易所没有 %s 的市价委托' % brief(request.market_type), '它的市价委托即时成交，剩余撤销')
        amount = check_whole(request.amount, '数量', 1)
        bound = check_number(request.bound, '委托价格' if request.style == 'limit' else '保护价', 0, 1e7)
        changes = {'price' if request.style == 'limit' else 'protect_price': bound}
        return request.replace(security=normalize_code(request.security), amount=amount, **changes)
    except BadRequest as error:
        raise _refusal(error.message, error.hint) from error


def _check_quote(request, quote):
    if quote.paused:
        raise _refusal('%s 停牌，不接受委托' % request.security)
    price, tick = request.bound, instrument(request.security).tick
    if not price > 0:
        raise _refusal('委托价格应大于 0')
    if not on_tick(price, tick):
        raise _refusal('价格 %s 不是最小价位 %s 的整数倍' % (price, tick))
    if quote.high_limit and price > quote.high_limit:
        raise _refusal('价格 %s 高于涨停价 %s' % (price, quote.high_limit))
    if quote.low_limit and price < quote.low_limit:
        raise _refusal('价格 %s 低于跌停价 %s' % (price, quote.low_limit))


def _check_lot(request, closeable):
    problem = lot_problem(request.security, request.side, request.amount, closeable, request.style)
    if problem:
        raise _refusal(problem)


# -- matching ---------------------------------------------------------------------------------------------------
_paper_log = logging.getLogger('bullet_qmt.stub')
_PAPER_PRICE_TYPES = {'limit': 50, 'market': 88}
_PAPER_MARKET_TYPES = ('', 'five_level_ioc', 'immediate_or_cancel')  # fills at the best price, the rest is cancelled


class _PaperAccount:
    """One account's ledger and the rows of its day. No lock of its own: the exchange's holds for it."""

    def __init__(self, spec, cash):
        self.spec, self.ledger, self.listener = spec, StubLedger(cash), None
        self.orders, self.trades = OrderedDict(), []
        self.figures_stale, self.figures_told = False, -math.inf  # told: when, by the monotonic clock


class _PaperOrder:
    """An accepted order: its row and its hold, which goes on counting when the ledger is done with it.

    fixed: one that trades at the close, after hours. place: in its side of the book, the larger the sooner it trades.
    """

    def __init__(self, account, hold, row, number, fixed):
        self.account, self.hold, self.row, self.fixed = account, hold, row, fixed
        self.place = (hold.bound if hold.side == 'BUY' else -hold.bound), -number

    def update(self, status, message=''):
        row, hold = self.row, self.hold
        row.status, row.status_msg, row.filled = status, message, row.amount - hold.left
        row.deal_balance = _to_yuan(hold.value)
        row.avg_price = hold.value / (1000.0 * row.filled) if row.filled else 0.0
        row.commission, row.tax = _to_yuan(hold.commission), _to_yuan(hold.tax)


class _Depth:
    """Level 1 of one quote: what its two sides still offer. Orders take from it, so no share is sold twice."""

    def __init__(self, key, quote, tick):
        self.key = key
        # A buyer meets the ask, a seller the bid.
        prices = {'BUY': quote.a1_p, 'SELL': quote.b1_p}
        self._prices = {side: _to_mills(round_to_tick(price, tick)) if price and price > 0 else None
                        for side, price in prices.items()}
        self._left = {'BUY': int(quote.a1_v or 0), 'SELL': int(quote.b1_v or 0)}

    def price(self, side):
        """In mills; None for an empty side."""
        return self._prices[side] if self._left[side] > 0 else None

    def take(self, side, wanted):
        amount = min(wanted, self._left[side])
        self._left[side] -= amount
        return amount


class _PaperBook:
    """Open orders of one security. fresh: id -> those that no round has tried yet, in the order of arrival; fixed: the
    same of after-hours orders. All others rest on their side by price, then time: a round looks at those that trade
    and at one more. closed: the closing auction is over."""

    def __init__(self):
        self.closed = False
        self._sides = {'BUY': [], 'SELL': []}  # [(place, order)], ascending: the next to trade is the last
        self.fresh, self.fixed = OrderedDict(), OrderedDict()

    def __len__(self):
        return len(self.fresh) + len(self.fixed) + sum(map(len, self._sides.values()))

    def add(self, paper):
        (self.fixed if paper.fixed else self.fresh)[paper.row.order_id] = paper

    def rest(self, paper):
        """A fresh order has been tried."""
        del self.fresh[paper.row.order_id]
        bisect.insort(self._sides[paper.hold.side], (paper.place, paper))  # no two places are equal

    def remove(self, paper):
        waiting = next((held for held in (self.fresh, self.fixed) if paper.row.order_id in held), None)
        if waiting is not None:
            del waiting[paper.row.order_id]
        else:
            side = self._sides[paper.hold.side]
            del side[bisect.bisect_left(side, (paper.place,))]

    def first(self, side):
        """The next resting order to trade, or None."""
        return self._sides[side][-1][1] if self._sides[side] else None


class StubExchange:
    """The paper exchange: all accounts, their orders, and the thread that matches them. Time only from the clock.

    For the caller: open_account, start, close, match_now, open_orders; the rest is for StubBroker.
    Orders trade over all accounts against level 1 of the quote: resting ones by price, then time, new ones after them
    in the order of arrival. A quote offers its volume once; the offer is new when the level changes or the next tick
    interval begins. In a call auction orders rest; at its end those whose price allows it trade at its price, as many
    shares as the first quote after it offers: at the open what came before 9:25, at the close what is left by then.
    An order that came after the close, where the rules have after-hours trading, trades at the close
    from 15:05 to 15:30.

    Order and trade ids are decimal texts out of one counter that starts at the clock's Unix time in ms. As long as
    fewer than a thousand are given out per second on average, a restarted exchange cannot repeat one.

    `_lock` guards everything here; quotes are asked for without it, as they may take a while, and `_round` lets only
    one round at a time do so. Listeners are never called from submit, cancel or a query, but by whoever
    runs a round (the thread, or the caller of match_now), as with a terminal's push thread: a caller may hold locks
    of its own that its listener wants, too. Only the holder of `_delivery` takes events off the queue, hence they
    are told one after the other in the order in which they happened.
    """

    FIGURES_INTERVAL_S = 0.2  # an account's figures are told at once, then again when this time is over

    def __init__(self, data, clock, tick_interval_s):
        self.data, self.clock, self.tick_interval_s = data, clock, tick_interval_s
        self._lock, self._round, self._delivery = threading.Condition(), threading.Lock(), threading.Lock()
        self._accounts, self._resting, self._books, self._events = [], OrderedDict(), {}, deque()
        self._depths, self._last_prices = {}, {}
        now = clock.now()
        self._day, self._last_id = data.trade_day(now), epoch_seconds(now) * 1000 + now.microsecond // 1000
        self._woken = self._stopping = False
        self._thread = None

    def open_account(self, spec, cash):
        """cash in yuan. Returns what the other methods call `account`."""
        account = _PaperAccount(spec, _to_mills(cash))
        with self._lock:
            self._accounts.append(account)
        return account

    def start(self):
        self._thread = threading.Thread(target=self._run, name='bullet-paper-exchange', daemon=True)
        self._thread.start()

    def close(self):
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        if self._thread is not None:
            wait_for_thread(self._thread)

    @property
    def open_orders(self):
        with self._lock:
            self._turn_day()
            return len(self._resting)

    def match_now(self):
        """One round: tries what may trade, then tells the listeners all that happened so far."""
        try:
            with self._round:
                self._run_round()
        finally:
            for account in self._accounts_to_tell():
                self._tell_account(account)
            self._deliver()

    def _accounts_to_tell(self):
        """Those whose figures have changed, and were not told a moment ago."""
        with self._lock:
            return [account for account in self._accounts
                    if account.figures_stale and self._figures_wait(account) <= 0]

    def _figures_wait(self, account):
        return account.figures_told + self.FIGURES_INTERVAL_S - self.clock.monotonic()

    # -- for StubBroker ------------------------------------------------------------------------------------------
    def submit(self, account, request):
        """Order id. Raises OrderRejected. The order is tried in the next round, which begins at once."""
        request = _checked_order(request)
        quote = self._quote_to_trade(request.security)
        with self._lock:
            now = self._turn_day()
            fixed = self._check_session(request, quote, now)
            _check_quote(request, quote)
            _check_lot(request, account.ledger.closeable(request.security))
            return self._accept(account, request, now, fixed)

    def cancel(self, account, order_id):
        with self._lock:
            self._turn_day()
            if order_id not in account.orders:
                raise OrderNotFound('没有委托 %s' % brief(order_id), '只能撤当日本账户的委托')
            if order_id in self._resting:
                self._check_cancel(self._resting[order_id].row.security)
                self._finish(self._resting[order_id], '已撤单')

    def orders(self, account):
        with self._lock:
            self._turn_day()
            return [paper.row.replace() for paper in account.orders.values()]

    def order(self, account, order_id):
        with self._lock:
            self._turn_day()
            return account.orders[order_id].row.replace() if order_id in account.orders else None

    def trades(self, account):
        with self._lock:
            self._turn_day()
            return [trade.replace() for trade in account.trades]

    def set_listener(self, account, listener):
        with self._lock:
            account.listener = listener

    def positions(self, account):
        return self.overview(account)[1]

    def overview(self, account):
        """(Account, [Position]) of one moment."""
        with self._lock:
            self._turn_day()
            rows, ledger = self._position_rows(account), account.ledger
            cash, frozen, transferable = ledger.cash, ledger.frozen_cash, ledger.transferable_cash
        rows = [self._valued(row) for row in rows]
        value = sum([_to_mills(row.last_price) * row.amount for row in rows])
        return Account(account_id=account.spec.account_id, account_type=account.spec.account_type,
                       available_cash=_to_yuan(cash), transferable_cash=_to_yuan(transferable),
                       frozen_cash=_to_yuan(frozen), market_value=_to_yuan(value),
                       total_value=_to_yuan(cash + frozen + value)), rows

    # -- the day -------------------------------------------------------------------------------------------------
    def _turn_day(self):
        """With the lock held: makes the day the clock's; gives the time of the clock."""
        now = self.clock.now()
        day = self.data.trade_day(now)
        # Only forward: a clock set back does not make an earlier day a new one, nor does a weekend.
        if day > self._day and self._is_trade_day(now):
            self._roll(day)
        return now

    def _roll(self, day):
        for paper in list(self._resting.values()):
            self._finish(paper, '收市未成交，已撤销')
        for account in self._accounts:
            account.ledger.roll()
            account.orders.clear()
            del account.trades[:]
        self._day = day

    def _is_trade_day(self, now):
        """A day on which the market opens at all; a calendar need not reach as far as today."""
        return self.data.market_open(now.replace(hour=10, minute=0))

    def _check_session(self, request, quote, now):
        """Whether this is an order for after-hours trading. Raises OrderRejected at a time that takes no such order."""
        if self.data.always_open:
            return False
        if not self._is_trade_day(now):
            raise _refusal('非交易时间，不接受委托', '今天不是交易日；模拟市场的 %s可设为 always' % ways('stub_clock'))
        problem = session_problem(request.security, request.style, now)
        if problem:
            raise _refusal(problem[0], '%s；模拟市场的 %s可设为 always' % (problem[1], ways('stub_clock')))
        fixed = takes_fixed_price(request.security, now)
        problem = fixed_price_problem(request.side, request.bound, quote.last_price) if fixed else None
        if problem:
            raise _refusal(problem, '15:05 到 15:30 只按收盘价成交')
        return fixed

    def _check_cancel(self, security):
        now = self.clock.now()
        problem = None if self.data.always_open or not self._is_trade_day(now) else cancel_problem(security, now)
        if problem:
            raise _refusal('%s，没有撤' % problem, '委托仍然有效，过了这段时间再撤')

    # -- orders --------------------------------------------------------------------------------------------------
    def _quote_to_trade(self, code):
        if not tradable(code):
            raise _refusal('%s 不能交易' % code, '可交易：股票、ETF、LOF、可转债')
        try:
            self.data.security_info(code)
            return self.data.quote(code)
        except (SecurityNotFound, DataUnavailable) as error:
            raise _refusal('%s 不能交易：%s' % (code, error.message), error.hint) from error

    def _accept(self, account, request, now, fixed):
        order_id = self._new_id()
        hold = account.ledger.hold(order_id, request.security, request.side, request.amount,
                                   _to_mills(request.bound), self._day)
        row = Order(order_id=order_id, security=request.security, side=request.side, amount=request.amount,
                    order_price=request.bound, status='submitted', style=request.style, order_sysid='S' + order_id,
                    price_type=_PAPER_PRICE_TYPES[request.style], order_remark=request.tag, time=now,
                    strategy_name=request.strategy_name)
        paper = _PaperOrder(account, hold, row, int(order_id), fixed)
        account.orders[order_id] = self._resting[order_id] = paper
        self._books.setdefault(request.security, _PaperBook()).add(paper)
        self._tell_later(account, 'order', row)
        return order_id

    def _new_id(self):
        self._last_id += 1
        return str(self._last_id)

    def _finish(self, paper, message):
        """Ends an open order by cancelling what is left of it."""
        self._take_off(paper)
        paper.account.ledger.release(paper.row.order_id)
        paper.update('partly_canceled' if paper.row.filled else 'canceled', message)
        self._tell_later(paper.account, 'order', paper.row)

    def _take_off(self, paper):
        book = self._books[paper.row.security]
        del self._resting[paper.row.order_id]
        book.remove(paper)
        if not book:
            del self._books[paper.row.security]

    # -- one round -----------------------------------------------------------------------------------------------
    def _run_round(self):
        quotes = self._quotes_of_resting()
        with self._lock:
            now, woken = self._turn_day(), self._woken
            if self.data.market_open(now):
                self._match(quotes, now)
            elif self._is_trade_day(now):
                self._match_closed(quotes, now)
            self._woken = woken  # what this round has to tell it tells itself

    def _quotes_of_resting(self):
        with self._lock:
            self._turn_day()
            codes = sorted(self._books)
        return {code: self._quote_or_none(code) for code in codes}

    def _quote_or_none(self, code):
        """None where there is no price now: the orders rest."""
        try:
            return self.data.quote(code)
        except DataUnavailable:
            return None

    def _match(self, quotes, now):
        for code, book, quote in self._traded(quotes):
            if not self.data.market_open(quote.dt):
                continue  # asked for a moment before the open
            if not self.data.always_open and not in_continuous_trading(code, now):
                self._rest(book, list(book.fresh.values()))
                continue
            depth = self._depth(code, quote, now)
            self._open_call(book, quote, depth, now)
            self._sweep_both(book, depth, now)
            for paper in list(book.fresh.values()):
                self._try(paper, book, depth, now)

    def _open_call(self, book, quote, depth, now):
        """What came before 9:25 and was never tried trades at the opening price, where there was one."""
        if self.data.always_open or not quote.open:
            return
        called = [paper for paper in book.fresh.values() if minute_of_day(paper.row.time) < OPENING_CALL_END]
        if called:
            self._rest(book, called)
            self._sweep_both(book, depth, now, _to_mills(quote.open))

    def _close_call(self, code, book, quote, now):
        """Once a day: what came before 15:00 trades at the closing price."""
        if book.closed or minute_of_day(quote.dt) < AFTERNOON_CLOSE:
            return
        book.closed = True
        self._rest(book, list(book.fresh.values()))
        if closing_call(code, now.date()) < AFTERNOON_CLOSE:
            self._sweep_both(book, self._depth(code, quote, now), now, _to_mills(quote.last_price))

    def _rest(self, book, papers):
        for paper in papers:
            book.rest(paper)
            self._now_open(paper)

    def _sweep_both(self, book, depth, now, call_price=None):
        for side in SIDES:
            self._sweep(book, side, depth, now, call_price)

    def _traded(self, quotes):
        """[(code, book, quote)]; a security whose orders came after the quotes is for the next round."""
        return [(code, self._books[code], quote) for code, quote in quotes.items()
                if code in self._books and quote is not None and not quote.paused]

    def _sweep(self, book, side, depth, now, call_price):
        """The orders that level 1 reaches, or the price of a call, as far as the volume of level 1 goes. Costs what
        trades, whatever rests."""
        while depth.price(side) is not None:
            paper, price = book.first(side), call_price or depth.price(side)
            if paper is None or not paper.hold.accepts(price):
                return
            self._fill(paper, depth.take(side, paper.hold.left), price, now)

    def _try(self, paper, book, depth, now):
        """A new limit order takes what it gets and rests; a market order's rest is cancelled at once."""
        hold, price = paper.hold, depth.price(paper.hold.side)
        if price is not None and hold.accepts(price):
            self._fill(paper, depth.take(hold.side, hold.left), price, now)
        if not hold.left:
            return
        if paper.row.style == 'market':
            self._finish(paper, '最优价即时成交，剩余撤销')
        else:
            self._rest(book, [paper])

    def _now_open(self, paper):
        if paper.row.status == 'submitted':
            paper.update('open')
            self._tell_later(paper.account, 'order', paper.row)

    def _match_closed(self, quotes, now):
        """From 15:00 on: the closing auction, then after-hours trading. Before the open and at noon: nothing."""
        if minute_of_day(now) < AFTERNOON_CLOSE:
            return
        for code, book, quote in self._traded(quotes):
            self._close_call(code, book, quote, now)
        if FIXED_PRICE_OPEN <= minute_of_day(now) < FIXED_PRICE_CLOSE:
            self._match_after_hours(quotes, now)

    def _match_after_hours(self, quotes, now):
        """At the close, against what the last level 1 offers, in the order of arrival."""
        for code, book, quote in self._traded(quotes):
            depth, close = self._depth(code, quote, now), _to_mills(quote.last_price)
            for paper in list(book.fixed.values()):
                if depth.price(paper.hold.side) is not None:
                    self._fill(paper, depth.take(paper.hold.side, paper.hold.left), close, now)
                self._now_open(paper)

    def _depth(self, code, quote, now):
        interval_ms = max(1, int(self.tick_interval_s * 1000))
        key = (to_ms(now) // interval_ms, quote.a1_p, quote.a1_v, quote.b1_p, quote.b1_v)
        if code not in self._depths or self._depths[code].key != key:
            self._depths[code] = _Depth(key, quote, instrument(code).tick)
        return self._depths[code]

    def _fill(self, paper, amount, price, now):
        row, account = paper.row, paper.account
        commission, tax = account.ledger.fill(row.order_id, amount, price)
        self._last_prices[row.security] = _to_yuan(price)
        trade = Trade(trade_id=self._new_id(), order_id=row.order_id, security=row.security, side=row.side,
                      amount=amount, price=_to_yuan(price), time=now, commission=_to_yuan(commission),
                      tax=_to_yuan(tax), deal_balance=_to_yuan(amount * price), order_remark=row.order_remark)
        account.trades.append(trade)
        self._tell_later(account, 'trade', trade)
        self._after_fill(paper)

    def _after_fill(self, paper):
        paper.update('filling' if paper.hold.left else 'filled')
        if not paper.hold.left:
            self._take_off(paper)
        if not paper.hold.left or paper.row.style == 'limit':  # a market order's end follows in the same breath
            self._tell_later(paper.account, 'order', paper.row)

    # -- values --------------------------------------------------------------------------------------------------
    def _position_rows(self, account):
        return [Position(security=code, amount=holding.total, closeable_amount=holding.closeable,
                         frozen_volume=holding.frozen, avg_cost=round(holding.avg_cost, 6))
                for code, holding in account.ledger.holdings.items()]

    def _valued(self, row):
        price = self._price_of(row.security)
        return row.replace(name=self.data.security_info(row.security)['display_name'], last_price=price,
                           market_value=_to_yuan(_to_mills(price) * row.amount))

    def _price_of(self, code):
        """Last price in yuan; while there is none, the last one known."""
        quote = self._quote_or_none(code)
        if quote is not None and quote.last_price and quote.last_price > 0:
            self._last_prices[code] = quote.last_price
        return self._last_prices[code]

    # -- thread and events ---------------------------------------------------------------------------------------
    def _run(self):
        while self._wait_for_work():
            try:
                self.match_now()
            except Exception:  # the exchange outlives a bad round; the next one tries again
                _paper_log.exception('模拟撮合出错')

    def _wait_for_work(self):
        """Until something happened or is due. False when closing."""
        with self._lock:
            self._lock.wait_for(lambda: self._woken or self._stopping, self._next_due_s())
            self._woken = False
            return not self._stopping

    def _next_due_s(self):
        """Resting orders are tried again at each tick; None: nothing is due."""
        waits = [max(0, self._figures_wait(account)) for account in self._accounts if account.figures_stale]
        if self._resting:
            waits.append(self.tick_interval_s)
        return min(waits, default=None)

    def _tell_later(self, account, kind, record):
        self._events.append((account, kind, record.replace()))
        account.figures_stale = self._woken = True
        self._lock.notify_all()

    def _tell_account(self, account):
        """With no lock held: what the account is worth after its orders have changed. What fails is due again."""
        with self._lock:
            account.figures_stale, account.figures_told = False, self.clock.monotonic()
        try:
            self._events.append((account, 'account', self.overview(account)[0]))
        except BaseException:
            account.figures_stale = True
            raise

    def _deliver(self):
        """Looks again after letting go: what was queued meanwhile by one who could not get in is not left behind."""
        while self._events and self._delivery.acquire(False):
            try:
                while self._events:
                    _tell_listener(*self._events.popleft())
            finally:
                self._delivery.release()


def _tell_listener(account, kind, record):
    if account.listener is None:
        return
    try:
        account.listener(kind, record)
    except Exception:  # a listener's mistake must not stop the market
        _paper_log.exception('处理回报出错：%s', kind)


class StubBroker(BrokerAdapter):
    """One account of the paper exchange. Never blocks for long, so deadlines do not matter."""

    def __init__(self, exchange, spec, cash):
        self.spec, self._exchange = spec, exchange
        self._account = exchange.open_account(spec, cash)

    def account(self):
        return self._exchange.overview(self._account)[0]

    def positions(self):
        return self._exchange.positions(self._account)

    def account_and_positions(self):
        return self._exchange.overview(self._account)

    def orders(self):
        return self._exchange.orders(self._account)

    def trades(self):
        return self._exchange.trades(self._account)

    def order(self, order_id):
        return self._exchange.order(self._account, order_id)

    def orders_known(self):
        return self.orders(), True

    def submit(self, request, deadline_s=None):
        return self._exchange.submit(self._account, request)

    def cancel(self, order_id, deadline_s=None):
        self._exchange.cancel(self._account, order_id)

    def set_listener(self, listener):
        self._exchange.set_listener(self._account, listener)


class StubBackend(Backend):
    """The paper exchange with its market data."""

    blocking = False

    def __init__(self, data, brokers, exchange, settings):
        super().__init__('stub', data, brokers)
        self.exchange, self._settings = exchange, settings

    def health(self):
        source = {'stub_data': self._settings.stub_data} if self._settings.stub_data else {
            'stub_seed': self._settings.stub_seed}
        return dict(super().health(), stub_clock=self._settings.stub_clock, open_orders=self.exchange.open_orders,
                    **source)

    def close(self):
        self.exchange.close()
        self.data.close()


def open_stub(settings, clock):
    """Backend of the paper exchange. Raises ConfigError for other than stock accounts and for broken data files."""
    specs = account_specs(settings)
    for spec in specs:
        if spec.account_type != 'stock':
            raise ConfigError('账户 %s 的类型 %s 在模拟交易所里没有' % (spec.key, spec.account_type), '模拟交易所只有 stock 账户')
    source = _SyntheticMarket(settings.stub_seed)
    if settings.stub_data:
        source = _CsvMarket(settings.stub_data, today=Clock().now().date())  # whatever time is played
    data = StubData(source, clock, settings.stub_clock == 'always', settings.stub_tick_interval)
    exchange = StubExchange(data, clock, settings.stub_tick_interval)
    brokers = OrderedDict((spec.key, StubBroker(exchange, spec, settings.stub_cash)) for spec in specs)
    exchange.start()
    return StubBackend(data, brokers, exchange, settings)


ADAPTERS['stub'] = open_stub


# ======================================================================================================
# 10. QMT ADAPTER - xtquant at arm's length: guarded calls with deadlines, connection keeper, code and status maps
# ======================================================================================================
Vendor = namedtuple('Vendor', 'xtdata xttrader xttype')
_VENDOR_HINT = ('在装有 QMT 的 Windows 上用 64 位 CPython 3.6 到 3.13 运行：pip install xtquant，或用 QMT 自带的 Python；'
                'QMT/MiniQMT 要已登录（极简或独立交易模式），QMT_DATA_PATH 指向它的 userdata_mini')


def import_vendor():
    """The vendor's modules, imported without the web request and the prints of their own. Raises ConfigError."""
    with _without_requests(), contextlib.redirect_stdout(io.StringIO()):
        try:
            vendor = Vendor(*(importlib.import_module('xtquant.' + name) for name in Vendor._fields))
        except Exception as error:  # a broken native module raises anything
            raise ConfigError('xtquant 不能使用：%s: %s' % (type(error).__name__, error), _VENDOR_HINT) from error
    vendor.xtdata.enable_hello = False
    return vendor


@contextlib.contextmanager
def _without_requests():
    """For the time of the import there is no `requests`, so that nothing can be asked with it."""
    before = sys.modules.get('requests', _without_requests)
    sys.modules['requests'] = None
    try:
        yield
    finally:
        del sys.modules['requests']
        if before is not _without_requests:
            sys.modules['requests'] = before


# -- guard: no caller ever waits for the vendor longer than it wants to --------------------------------------------
class VendorTimeout(Exception):
    """A vendor call was begun and did not return in time: what it did is unknown."""


class _GuardedCall:
    """One call on its way through a guard."""

    def __init__(self, function, args):
        self.function, self.args = function, args
        self.begun = self.given_up = False
        self.done = threading.Event()
        self.result = self.error = None

    def run(self):
        try:
            self.result = self.function(*self.args)
        except Exception as error:
            self.error = error
        self.done.set()

    def outcome(self):
        if self.error is not None:
            raise self.error
        return self.result


class CallGuard(JobThreads):
    """Runs vendor calls in worker threads of its own, at most `limit` at a time, each with a deadline.

    call(function, *args, deadline_s=...) -> its result, or its exception. Raises QmtUnavailable if no worker was free
    in time (then nothing was called) and VendorTimeout if the call was begun and has not returned; its thread stays
    occupied until it does, so a dead terminal costs `limit` threads and not one more.
    """

    DRAIN = False

    def __init__(self, name, limit=4):
        super().__init__(name, limit)
        self._hung, self._out = 0, {}  # out: job -> when it was begun, of those that have not returned

    @property
    def hung(self):
        """How many begun calls nobody waits for any more."""
        with self._changed:
            return self._hung

    @property
    def waiting_s(self):
        """For how long the oldest call that was begun has not returned."""
        with self._changed:
            return time.monotonic() - min(self._out.values()) if self._out else 0.0

    def only_hung(self):
        with self._changed:
            return all(job.given_up for job in self._out)

    def call(self, function, *args, deadline_s):
        job = _GuardedCall(function, args)
        self._enter(job)
        if not wait_for_event(job.done, deadline_s):
            self._give_up(job)
        return job.outcome()

    def close(self, timeout_s=2.0):
        """Ends the idle workers; those stuck in the vendor's code are daemons and end with the process."""
        self._end(timeout_s)

    def _enter(self, job):
        with self._changed:
            if self._closed:
                raise QmtUnavailable('QMT 连接正在关闭', broker_called=False)
            self._enqueue(job)

    def _give_up(self, job):
        """Called when the deadline has passed; returns only if the call is done after all."""
        with self._changed:
            if job.done.is_set():
                return
            job.given_up = True
            if job.begun:
                self._hung += 1
                raise VendorTimeout(getattr(job.function, '__name__', 'call'))
            self._jobs.remove(job)
            running = len(self._out)
        raise QmtUnavailable('QMT 没有回应（%s 有 %d 个调用卡住）' % (self.name, running), '检查 QMT 是否卡死、是否已登录',
                             broker_called=False, retry_after_s=5)

    def _taken(self, job):
        job.begun, self._out[job] = True, time.monotonic()

    def _carry_out(self, job):
        job.run()
        with self._changed:
            del self._out[job]
            self._hung -= job.given_up


class CallLanes:
    """Guards by kind of call, so that a cancel gets through however many orders stand still, and so does a look."""

    LIMITS = (('', 8), ('order', 8), ('cancel', 4), ('look', 4))
    LANES = {'order_stock': 'order', 'cancel_order_stock': 'cancel', 'query_stock_order': 'look',
             'query_stock_orders': 'look'}

    def __init__(self, name):
        self._guards = {lane: CallGuard('-'.join(filter(None, (name, lane))), limit) for lane, limit in self.LIMITS}

    @property
    def hung(self):
        return sum(guard.hung for guard in self._guards.values())

    def only_hung(self):
        """Whether somebody waits for none of the calls that were begun."""
        return all([guard.only_hung() for guard in self._guards.values()])

    @property
    def waiting_s(self):
        return max(guard.waiting_s for guard in self._guards.values())

    def call(self, function, *args, lane='', deadline_s):
        """As CallGuard.call. lane: the vendor's name of the call."""
        return self._guards[self.LANES.get(lane, '')].call(function, *args, deadline_s=deadline_s)

    def close(self, timeout_s):
        deadline = time.monotonic() + timeout_s
        for guard in self._guards.values():
            guard.close(max(0, deadline - time.monotonic()))


def native(record, *names):
    """A field of a vendor record under the first name that it has: snake case first, then m_xxx of old versions."""
    return next((value for value in (getattr(record, name, None) for name in names) if value is not None), None)


# -- records of the terminal: copied into plain values at once, read by either spelling -----------------------------
_QMT_OWNER = (('account_id', 'm_strAccountID'),)
_QMT_FIELDS = {
    'asset': _QMT_OWNER + (
        ('cash', 'm_dCash'), ('frozen_cash', 'm_dFrozenCash'), ('market_value', 'm_dMarketValue'),
        ('total_asset', 'm_dTotalAsset'), ('fetch_balance', 'm_dFetchBalance')),
    'position': _QMT_OWNER + (
        ('stock_code', 'm_strStockCode'), ('volume', 'm_nVolume'), ('can_use_volume', 'm_nCanUseVolume'),
        ('frozen_volume', 'm_nFrozenVolume'), ('open_price', 'm_dOpenPrice'), ('avg_price', 'm_dAvgPrice'),
        ('market_value', 'm_dMarketValue'), ('last_price', 'm_dLastPrice'),
        ('instrument_name', 'm_strInstrumentName')),
    'order': _QMT_OWNER + (
        ('stock_code', 'm_strStockCode'), ('order_id', 'm_nOrderID'), ('order_sysid', 'm_strOrderSysID'),
        ('order_time', 'm_nOrderTime'), ('order_type', 'm_nOrderType'), ('order_volume', 'm_nOrderVolume'),
        ('price_type', 'm_nPriceType'), ('price', 'm_dPrice'), ('traded_volume', 'm_nTradedVolume'),
        ('traded_price', 'm_dTradedPrice'), ('order_status', 'm_nOrderStatus'), ('status_msg', 'm_strStatusMsg'),
        ('strategy_name', 'm_strStrategyName'), ('order_remark', 'm_strOrderRemark')),
    'trade': _QMT_OWNER + (
        ('stock_code', 'm_strStockCode'), ('order_type', 'm_nOrderType'), ('traded_id', 'm_strTradedID'),
        ('traded_time', 'm_nTradedTime'), ('traded_price', 'm_dTradedPrice'), ('traded_volume', 'm_nTradedVolume'),
        ('traded_amount', 'm_dTradedAmount'), ('order_id', 'm_nOrderID'), ('order_remark', 'm_strOrderRemark'),
        ('commission', 'm_dCommission')),
    'order_error': _QMT_OWNER + (
        ('order_id', 'm_nOrderID'), ('error_id', 'm_nErrorID'), ('error_msg', 'm_strErrorMsg'),
        ('order_remark', 'm_strOrderRemark')),
    'cancel_error': _QMT_OWNER + (
        ('order_id', 'm_nOrderID'), ('error_id', 'm_nErrorID'), ('error_msg', 'm_strErrorMsg')),
    'account_status': _QMT_OWNER + (('account_type', 'm_nAccountType'), ('status', 'm_nStatus')),
}
_QMT_SIDES = {23: 'BUY', 24: 'SELL', 27: 'BUY', 28: 'SELL', 29: 'BUY', 31: 'SELL', 40: 'BUY', 41: 'SELL', 42: 'BUY',
              44: 'SELL'}  # 27 to 44: the credit kinds; repayments in cash or shares (30, 32, 43, 45) are no trades
_QMT_FIX_PRICE = 11
_QMT_MARKET_PRICE = {'SH': {'': 42, 'five_level_ioc': 42, 'five_level_to_limit': 43, 'opponent_best': 44,
                            'home_best': 45},
                     'SZ': {'': 47, 'five_level_ioc': 47, 'opponent_best': 44, 'home_best': 45,
                            'immediate_or_cancel': 46, 'fill_or_kill': 48}}
_QMT_MARKET_PRICE['BJ'] = _QMT_MARKET_PRICE['SH']
# What a listed order shows is the broker's own enumeration: 50 limit, 84 to 89 market. Simulations echo what was sent.
_QMT_MARKET_KINDS = frozenset(range(42, 49)) | frozenset(range(84, 90))
_QMT_TAG_BYTES = 24  # what order_stock takes
_qmt_log = logging.getLogger('bullet_qmt.qmt')


def _qmt_plain(kind, record):
    """Vendor record -> dict of plain values under the snake case names; None for what this version lacks."""
    return {names[0]: native(record, *names) for names in _QMT_FIELDS[kind]}


_QMT_ODD = '不是有效数字'  # key of what a plain row holds that is none


def _qmt_number(row, name, default=None):
    """A finite float. Raises QmtUnavailable for NaN, infinity and what stands for "not set" (1.8e308)."""
    value = row[name] if row[name] is not None else default
    if not _qmt_is_finite(value):
        raise QmtUnavailable('QMT 给出的 %s %s：%s' % (name, _QMT_ODD, brief(value)), retry_after_s=3)
    return float(value)


def _qmt_is_finite(value):
    """Below 1e15; a whole number may be too long for a float."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and abs(value) < 1e15


def _qmt_whole(row, name, default=None):
    return int(_qmt_number(row, name, default))


def _qmt_figure(row, name, default=0.0):
    """As _qmt_number, for what a row is worth listing without: an odd one is the default, and noted in the row."""
    if row[name] is not None and not _qmt_is_finite(row[name]):
        row.setdefault(_QMT_ODD, OrderedDict())[name] = row[name]
        return default
    return float(default if row[name] is None else row[name])


def _qmt_odd_told(row):
    """What _qmt_figure noted, or ''."""
    return '、'.join('QMT 给出的 %s %s：%s' % (name, _QMT_ODD, brief(value))
                    for name, value in row.get(_QMT_ODD, {}).items())


def _qmt_text(row, name):
    return '' if row[name] is None else str(row[name])


def _qmt_moment(seconds):
    """Unix time -> naive Beijing datetime, whatever the machine's zone; None where there is none yet."""
    return from_ms(int(seconds) * 1000 + 8 * 3600000) if _qmt_is_finite(seconds) and 0 < seconds < 1e10 else None


def qmt_account_row(row, spec):
    """Plain asset -> Account. Old versions do not tell what can be transferred: what is free to use, then."""
    cash = _qmt_number(row, 'cash')  # this and the totals are what orders are made of: odd ones are no answer
    return Account(account_id=spec.account_id, account_type=spec.account_type, available_cash=cash,
                   transferable_cash=_qmt_figure(row, 'fetch_balance', cash),
                   frozen_cash=_qmt_figure(row, 'frozen_cash'), market_value=_qmt_number(row, 'market_value'),
                   total_value=_qmt_number(row, 'total_asset'))


def qmt_position_row(row):
    """Plain position -> Position. Raises SecurityNotFound for a market that we do not know."""
    if not isinstance(row['stock_code'], str) or not row['stock_code'].strip():
        raise QmtUnavailable('QMT 给出的一笔持仓没有证券代码', retry_after_s=3)
    amount = _qmt_whole(row, 'volume')
    value = _qmt_figure(row, 'market_value', amount * _qmt_figure(row, 'last_price'))
    return Position(security=normalize_code(row['stock_code']), name=_qmt_text(row, 'instrument_name'), amount=amount,
                    closeable_amount=int(_qmt_figure(row, 'can_use_volume')),
                    frozen_volume=int(_qmt_figure(row, 'frozen_volume')),
                    avg_cost=_qmt_figure(row, 'avg_price', _qmt_figure(row, 'open_price')),
                    last_price=_qmt_figure(row, 'last_price', value / amount if amount else 0.0), market_value=value)


def qmt_order_row(row):
    """Plain order -> Order. Raises SecurityNotFound for what is no buy or sale on a market that we know.

    Id and remark tell whose it is: an odd figure beside them is 0, and the order then is not known to be over.
    """
    amount, filled, status = (int(_qmt_figure(row, name)) for name in ('order_volume', 'traded_volume', 'order_status'))
    unknown = _QMT_ODD in row or None in (row['order_volume'], row['traded_volume'], row['order_status'])
    kind = int(_qmt_figure(row, 'price_type', 50))
    average = _qmt_figure(row, 'traded_price') if filled else 0.0
    return Order(order_id=str(_qmt_whole(row, 'order_id')), security=normalize_code(row['stock_code']),
                 side=_qmt_side(row), amount=amount, filled=filled, order_price=_qmt_figure(row, 'price'),
                 avg_price=average, deal_balance=round(average * filled, 3),
                 status='submit_unknown' if unknown else RAW_STATUS.get(status, 'submit_unknown'), raw_status=status,
                 style='market' if kind in _QMT_MARKET_KINDS else 'limit', price_type=kind,
                 time=_qmt_moment(row['order_time']),
                 order_remark=_qmt_text(row, 'order_remark'), strategy_name=_qmt_text(row, 'strategy_name'),
                 order_sysid=_qmt_text(row, 'order_sysid'),
                 status_msg='；'.join(filter(None, (_qmt_text(row, 'status_msg'), _qmt_odd_told(row)))))


def _qmt_side(row):
    if not _qmt_is_finite(row['order_type']) or row['order_type'] not in _QMT_SIDES:
        raise SecurityNotFound('委托类型 %s 不是买卖' % brief(row['order_type']))
    return _QMT_SIDES[row['order_type']]


def qmt_trade_row(row):
    """Plain trade -> Trade."""
    amount, price = _qmt_whole(row, 'traded_volume'), _qmt_number(row, 'traded_price')
    return Trade(trade_id=_qmt_text(row, 'traded_id'), order_id=str(_qmt_whole(row, 'order_id')), amount=amount,
                 security=normalize_code(row['stock_code']), side=_qmt_side(row), price=price,
                 time=_qmt_moment(row['traded_time']), commission=_qmt_figure(row, 'commission'),
                 deal_balance=_qmt_figure(row, 'traded_amount', round(amount * price, 3)),
                 order_remark=_qmt_text(row, 'order_remark'))


def qmt_price_type(request):
    """The submit constant. Convertible bonds know no market orders: there it is a limit order at the bound."""
    plain = request.style == 'limit' or instrument(request.security).kind == 'bond'
    kinds = {'': _QMT_FIX_PRICE} if plain else _QMT_MARKET_PRICE[qmt_code(request.security)[-2:]]
    return kinds[check_choice(request.market_type, 'market_type', kinds)]


def qmt_order_arguments(request):
    """OrderRequest -> what order_stock takes after the account: exact types, as the native layer refuses any other."""
    tag, bound = request.tag, request.bound
    if not isinstance(tag, str) or not tag or len(tag) > _QMT_TAG_BYTES or not all('!' <= char <= '~' for char in tag):
        raise OrderRejected('委托标记应为 1 到 %d 个 ASCII 字符：%s' % (_QMT_TAG_BYTES, brief(tag)), broker_called=False)
    try:
        amount, bound = check_whole(request.amount, '数量', 1), check_number(bound, '价格', 0, 1e7)
        side, code = SIDES[check_choice(request.side, 'side', SIDES)], qmt_code(normalize_code(request.security))
        price_type = qmt_price_type(request)
    except BadRequest as error:
        raise OrderRejected(error.message, error.hint, broker_called=False) from error
    if not bound > 0:
        raise OrderRejected('价格应大于 0：%s' % brief(bound), broker_called=False)
    return code, side, amount, price_type, bound, str(request.strategy_name or ''), tag


# -- one connection of one account ----------------------------------------------------------------------------------
class QmtTiming(Record):
    """How long things may take, in seconds. warm_up_s: how long figures may still be arriving after a connect."""

    FIELDS = (('call_s', 10.0), ('connect_s', 15.0), ('close_s', 3.0), ('probe_s', 15.0), ('warm_up_s', 3.0),
              ('error_s', 2.0), ('backoff_s', 1.0), ('backoff_max_s', 60.0))


class _QmtNoAnswer:
    """Given to calls that still wait on a trader that is gone: whatever they look at in it raises."""

    def __getattr__(self, name):
        raise ConnectionError('连接已断开，没有回应')

    def __bool__(self):
        raise ConnectionError('连接已断开，没有回应')


def _qmt_callback(vendor, put):
    """The vendor's callback object. put(kind, vendor record or None) must neither block nor raise."""
    class Callback(vendor.xttrader.XtQuantTraderCallback):
        def on_disconnected(self):
            put('disconnected', None)

        def on_account_status(self, status):
            put('account_status', status)

        def on_stock_order(self, order):
            put('order', order)

        def on_stock_trade(self, trade):
            put('trade', trade)

        def on_stock_asset(self, asset):
            put('asset', asset)

        def on_order_error(self, order_error):
            put('order_error', order_error)

        def on_cancel_error(self, cancel_error):
            put('cancel_error', cancel_error)
    return Callback()


def _qmt_trader_class(vendor):
    """The vendor's class without its __del__, which fails in a thread other than the one that built the object."""
    return type('QmtTrader', (vendor.xttrader.XtQuantTrader,), {'__del__': lambda self: None})


def qmt_stock_account(vendor, spec):
    """The vendor's account object; its class returns a text instead of raising."""
    try:
        account = vendor.xttype.StockAccount(str(spec.account_id), spec.account_type.upper())
    except Exception as error:  # an account type that this version does not have
        account = str(error)
    if isinstance(account, str):
        raise ConfigError('账户 %s 不能用：%s' % (spec.key, account), '核对资金账号和账户类型')
    return account


def qmt_session_id(spec):
    """The configured session, or one that stays the same: each new one leaves a file of tens of MB in userdata."""
    if spec.session_id is not None:
        return int(spec.session_id)
    name = '%s:%s:%s' % (spec.account_id, spec.account_type, spec.key)
    return 1 + int(hashlib.sha256(name.encode('utf-8')).hexdigest()[:7], 16)


# -- the userdata folder: looked at before the vendor is, whose connect() makes what is not there -------------------
_QMT_USERDATA = ('userdata_mini', 'userdata')
_QMT_USERDATA_PARTS = ('users', 'log', 'datadir', 'cfg', 'up_queue_xtquant')
_QMT_PATH_FAULTS = ('missing', 'file', 'foreign', 'empty', 'readonly')
_QmtPathFault = namedtuple('_QmtPathFault', 'kind message hint')


def qmt_path_fault(path):
    """What is wrong with a path given as userdata folder, or None. It asks the disk, which can take its time.

    kind: one of _QMT_PATH_FAULTS.
    """
    shown = printable(path)
    if not os.path.exists(path):
        return _QmtPathFault('missing', '没有目录 %s' % shown, _qmt_missing_hint(path))
    if not os.path.isdir(path):
        return _QmtPathFault('file', '%s 是文件，不是目录' % shown, _qmt_right_path(os.path.dirname(path)))
    if not _is_userdata(path):
        return _QmtPathFault('foreign', '%s 不是 QMT 的 userdata 目录' % shown, _qmt_right_path(path))
    if _is_unused(path):
        return _QmtPathFault('empty', '%s 是空的：没有 QMT 用过它' % shown,
                             _qmt_right_path(path) + '；是新装的 QMT 就先登录一次，服务端会自己连上')
    problem = _write_problem(path)
    return problem and _QmtPathFault(
        'readonly', '目录 %s 不能写：%s' % (shown, problem),
        '以能写这个目录的用户（装在系统盘时以管理员身份）运行服务端，或把 QMT 装到非系统盘')


def _is_userdata(path):
    """By its name, or by what a terminal keeps in it; a queue file alone may be what a wrong path was given before."""
    name = os.path.basename(os.path.normpath(path)).lower()
    return name.startswith('userdata') or any(os.path.exists(os.path.join(path, part)) for part in _QMT_USERDATA_PARTS)


def _is_unused(path):
    """Nothing in it but what the vendor's connect() leaves. One that cannot be listed may be in use."""
    try:
        return all(name.startswith('down_queue_') for name in os.listdir(path))
    except OSError:
        return False


def _qmt_missing_hint(path):
    """What may be wrong beside the name."""
    drive = os.path.splitdrive(path)[0]
    if path[:1] in _QUOTES or path[-1:] in _QUOTES:
        return '路径两头不带引号；' + _qmt_right_path(path)
    if drive and not os.path.exists(drive + os.sep):
        return '没有盘 %s：接上以后服务端会自己连上（网络盘要由运行服务端的用户连接）；盘符不对就%s' % (
            printable(drive), _qmt_right_path(path))
    return _qmt_right_path(path)


_QUOTES = ('"', "'", '“', '”', '‘', '’')


def _qmt_right_path(path):
    """Names the folder that was probably meant: inside of the one given, or beside it."""
    near = [os.path.join(base, name) for base in (path, os.path.dirname(os.path.normpath(path)))
            for name in _QMT_USERDATA]
    found = next((folder for folder in near if folder != os.path.normpath(path) and os.path.isdir(folder)), None)
    where = '改成 %s' % printable(found) if found else '改成 QMT 安装目录下的 userdata_mini，例如 D:\\国金QMT交易端\\userdata_mini'
    return '把 QMT_DATA_PATH（或 %s 里的路径）%s' % (ways('accounts'), where)


def _write_problem(path):
    """Not by tempfile: on Windows that takes a folder that refuses every name for one whose names are taken."""
    probe = os.path.join(path, 'bullet_qmt_%d_%d.tmp' % (os.getpid(), threading.get_ident()))
    try:
        io.open(probe, 'wb').close()
        os.remove(probe)
    except OSError as error:
        return error.strerror or str(error)
    return None


_QMT_CONNECT_HINT = '确认 QMT/MiniQMT 已启动并以极简（独立交易）模式登录；在这台机器上运行 doctor 查原因'


class _QmtTrader:
    """One trader object of the vendor, through as many attempts to connect as it takes.

    Each object costs handles, sockets and shared memory that its stop() does not give back, so that a failed attempt
    keeps the one that is there.  linked: connect() was good once.  broken: told to be disconnected.  proven: it has
    answered for the account.  hung: a call did not come back in time.  receive(trader, kind, plain row or None).
    """

    def __init__(self, vendor, spec, guard, timing, receive):
        self._vendor, self._spec, self._guard, self._timing = vendor, spec, guard, timing
        self._receiver, self._trader, self._phase, self._finishing = receive, None, 'new', threading.Lock()
        self._step_under_way = None
        self.account = qmt_stock_account(vendor, spec)
        self.linked = self.broken = self.proven = self.hung = self.abandoned = False

    @property
    def made(self):
        return self._trader is not None

    @property
    def gone(self):
        """Whether it can never be used again."""
        return self.abandoned or (self.linked and self.broken)

    def open(self):
        """Connects and subscribes. Raises QmtUnavailable, VendorTimeout or whatever the vendor raises."""
        if self._step_under_way is not None:  # of an earlier attempt: it must come back before anything else is asked
            self.hung = True
            raise VendorTimeout(self._step_under_way)
        if not self.linked:
            self._step(self._check_path)
        if not self.made:
            self._step(self._build)
        if self._phase == 'new':
            self._step(self._start)
        self._connect()
        if self._spec.auto_subscribe:
            self._subscribe()

    def _check_path(self):
        fault = qmt_path_fault(self._spec.data_path)
        if fault is not None:
            raise QmtUnavailable(fault.message, fault.hint, reason=fault.kind)

    def _connect(self):
        """An object that was connected once, and was told of no loss, may refuse to do it again: it still is."""
        result = self._step(self._trader.connect)
        if result == 0:
            self.linked = True
        elif not (self.linked and self._spec.auto_subscribe):
            self.broken = self.linked  # what a connection that never was is told of its end counts for nothing
            raise QmtUnavailable('连接 QMT 失败，返回 %s' % brief(result), self._connect_hint(), reason='connect')

    def _connect_hint(self):
        folder, name = os.path.split(os.path.normpath(self._spec.data_path))
        if name.lower() == _QMT_USERDATA[1] and os.path.isdir(os.path.join(folder, _QMT_USERDATA[0])):
            return _QMT_CONNECT_HINT + '；路径是完整版 QMT 的 userdata，MiniQMT 用它旁边的 userdata_mini'
        return _QMT_CONNECT_HINT

    def _subscribe(self):
        result = self._step(self._trader.subscribe, self.account)
        if result != 0:
            raise QmtUnavailable('订阅账户 %s 失败，返回 %s' % (self._spec.account_id, brief(result)),
                                 '确认 QMT 里登录的就是这个资金账号，账户类型也对', reason='subscribe')

    def subscribe_anew(self):
        unsubscribe = getattr(self._trader, 'unsubscribe', None)
        if unsubscribe is not None:
            self._step(unsubscribe, self.account)
        self._subscribe()

    def _step(self, function, *args):
        try:
            return self._guard.call(self._run_step, function, *args, deadline_s=self._timing.connect_s)
        except VendorTimeout:
            self.hung = True
            raise VendorTimeout(function.__name__.strip('_'))

    def _run_step(self, function, *args):
        """In a worker. A step that returns after everybody gave up on it clears away what it made."""
        if self.abandoned:
            raise _qmt_gone()
        self._step_under_way = function.__name__.strip('_')
        try:
            return function(*args)
        finally:
            self._step_under_way = None
            if self.abandoned:
                self._finish()

    def _build(self):
        callback = _qmt_callback(self._vendor, self._receive)
        self._trader = _qmt_trader_class(self._vendor)(str(self._spec.data_path), qmt_session_id(self._spec), callback)
        relaxed = getattr(self._trader, 'set_relaxed_response_order_enabled', None)
        if relaxed is not None:
            relaxed(True)

    def _start(self):
        """While the vendor's start() runs, its stop() would fail: whoever wants to stop leaves that to this step."""
        self._phase = 'starting'
        try:
            self._trader.start()
        except BaseException:
            self._phase = 'new'
            raise
        self._phase = 'started'

    def _receive(self, kind, record):
        """In the vendor's push thread, where an exception would vanish without a word."""
        try:
            if kind == 'disconnected':
                self.broken = True
            self._receiver(self, kind, None if record is None else _qmt_plain(kind, record))
        except Exception:
            _qmt_log.exception('处理 QMT 回调出错：%s', kind)

    def call(self, is_good, name, *args, **options):
        """A synchronous method of the trader, begun only if is_good(). Raises as CallGuard.call and the vendor do."""
        try:
            return self._guard.call(self._invoke, is_good, name, args, lane=name, deadline_s=options['deadline_s'])
        except VendorTimeout:
            self.hung = True
            if self.abandoned:
                self._release()
            raise VendorTimeout(name)

    def _invoke(self, is_good, name, args):
        if self.abandoned or not is_good():
            raise _qmt_gone()
        return getattr(self._trader, name)(self.account, *args)

    def give_another_chance(self):
        """After a call that hung: the threads that wait for an answer are freed, the object stays."""
        self._release()
        self.hung = False

    def free_given_up(self):
        """The same beside calls that go on: only while no other call is under way, or its answer would be taken."""
        numbers = list(getattr(self._trader, 'cbs', None) or ())
        if self._guard.only_hung():
            self._release(numbers)

    def abandon(self):
        """Stops the trader and frees the threads that still wait for its answers. Never raises."""
        self.abandoned = True
        begun = self._try_to_finish()
        self._release()
        if not begun:  # all workers were stuck in calls that are free now
            self._try_to_finish()

    def _try_to_finish(self):
        """Whether a worker at least began."""
        try:
            self._guard.call(self._finish, deadline_s=self._timing.close_s)
        except VendorTimeout:
            _qmt_log.warning('账户 %s 的旧 QMT 连接停不下来', self._spec.key)
        except QmtUnavailable:
            return False
        return True

    def _finish(self):
        """Stops the vendor's threads and closes the event loop that each trader object opens and never uses."""
        with self._finishing:
            if self._phase == 'starting':
                return
            started, self._phase = self._phase == 'started', 'stopped'
            if started:
                self._stop()
            loop = getattr(self._trader, 'loop', None)
            if loop is not None:
                loop.close()

    def _stop(self):
        try:
            self._trader.stop()
        except Exception:
            _qmt_log.warning('停止账户 %s 的 QMT 连接出错', self._spec.key, exc_info=True)

    def _release(self, numbers=None):
        waiting = getattr(self._trader, 'cbs', None) or {}
        for sequence in list(waiting) if numbers is None else numbers:
            answer = waiting.pop(sequence, None)
            if answer is not None:
                answer(_QmtNoAnswer())


class _QmtLink:
    """One connection of a trader, from the attempt to make it to its loss.

    lost: None, or why it is no good any more.  warm: whether figures have had time to arrive.  silent: a call that was
    no cancel hung, and no probe has been answered since; unanswered: how many of them were not.
    """

    def __init__(self, trader):
        self.trader, self.lost, self.warm, self.silent, self.unanswered = trader, None, False, False, 0

    def call(self, name, *args, **options):
        """As _QmtTrader.call; nothing is begun any more once the connection is lost."""
        return self.trader.call(lambda: self.lost is None, name, *args, **options)


def _qmt_gone():
    return QmtUnavailable('QMT 连接已断开', broker_called=False, retry_after_s=1)


def _qmt_pause(woken, seconds):
    woken.wait(seconds)


class QmtKeeper:
    """Keeps one account connected to its terminal, from a thread of its own.

    For the caller: start, close, link, lost, health, `on_connected`: functions without arguments, called from the
    keeper's thread after each connect, once the warm-up is over; `on_probed`: the same, after each good probe.
    Attributes: state 'connecting' (first try) 'connected' 'down' 'closed'; since and next_attempt: naive Beijing;
    last_error: text or '', with hint and reason, a word for it; reconnects: how often it connected again; hung: calls
    that nobody waits for any more; traders: how many objects of the vendor were made.
    A trader object is kept until a connection that worked is lost. Of those that only hang, the first is given up at
    once, each later one after twice as many attempts: some hang for ever, and each new one costs.
    put(kind, row) gets what the terminal pushes and must not block. pause(event, seconds) waits for either.
    """

    HANGS_LOG2, DISCONNECTED = 5, ('QMT 断开了连接', 'disconnected')
    UNANSWERED = 3  # probes in a row that hang, until the connection is taken for lost

    def __init__(self, vendor, spec, clock, put, timing=None, jitter=chance, pause=_qmt_pause):
        if not spec.data_path:
            raise ConfigError('账户 %s 没有 userdata 路径' % spec.key,
                              '设置 QMT_DATA_PATH，或写进 %s：名称=账号:类型:路径' % ways('accounts'))
        self._vendor, self.spec, self._clock, self._put = vendor, spec, clock, put
        self.timing, self._jitter, self._pause = timing or QmtTiming(), jitter, pause
        self._guard = CallLanes('qmt-%s-call' % spec.key)
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._link, self._closing, self._failures, self._connects = None, False, 0, 0
        self._hangs, self._given_up, self.traders, self._connected_at_s = 0, 0, 0, -math.inf
        self.state, self.since, self.last_error, self.next_attempt = 'connecting', clock.now(), '', None
        self.hint, self.reason = '', ''
        self.on_connected, self.on_probed, self.renewed = [], [], 0
        self._thread = threading.Thread(target=self._run, name='qmt-%s' % spec.key, daemon=True)
        self._trader = self._new_trader()  # a wrong account is told at once

    def start(self):
        self._thread.start()

    def close(self):
        """Ends the connection and every thread. What waits in a call gets no answer any more."""
        with self._lock:
            self._closing, trader = True, self._trader
        self._wake.set()
        trader.abandon()
        if self._thread.ident is not None:
            wait_for_thread(self._thread)
        self._guard.close(self.timing.close_s)
        with self._lock:
            self._enter_state('closed')

    def link(self, cancels=False):
        """The live connection, for cancels a silent one too. Raises QmtUnavailable at once while there is none."""
        with self._lock:
            if self.state == 'connected' or cancels and self._is_silent():
                return self._link
            told = {'connecting': '正在连接 QMT', 'closed': 'QMT 连接已关闭'}.get(self.state, 'QMT 未连接')
            reason = '：%s' % self.last_error if self.last_error else ''
            raise QmtUnavailable('账户 %s %s%s' % (self.spec.key, told, reason), self.hint or '检查 QMT 是否运行、是否已登录',
                                 broker_called=False, retry_after_s=self._seconds_left())

    def lost(self, link, message, reason, hint=''):
        """The connection is no good any more. Never blocks; only the first tell of the present one counts."""
        with self._lock:
            first, link.lost = link.lost is None, link.lost or message
            if not first or link is not self._link or self._closing:
                return
            self._go_down(message, reason, hint)
        self._wake.set()

    def silent(self, link, message):
        """A call hung that was no cancel: only cancels go this way until a probe is answered. Never blocks."""
        if not link.warm:
            return self.lost(link, message, 'hung')
        with self._lock:
            if link.silent or link.lost is not None or link is not self._link or self._closing:
                return
            link.silent = True
            self._go_down(message, 'hung')
        self._wake.set()

    def _is_silent(self):
        return self._link is not None and self._link.silent and self._link.lost is None and not self._closing

    def _go_down(self, message, reason, hint=''):
        """With the lock held."""
        self.last_error, self.reason, self.hint = message, reason, hint
        if self.state == 'connected':
            self._enter_state('down')
            _qmt_log.warning('账户 %s 的 QMT 连接断开：%s', self.spec.key, printable(message))

    def connected_s(self):
        """Seconds since the last connect."""
        return self._clock.monotonic() - self._connected_at_s

    @property
    def reconnects(self):
        return max(0, self._connects - 1)

    @property
    def hung(self):
        return self._guard.hung

    def health(self):
        with self._lock:
            after, warm = self.next_attempt, self._link is not None and self._link.warm
            return {'state': self.state, 'since': _qmt_shown(self.since), 'last_error': self.last_error,
                    'reason': self.reason, 'hint': self.hint, 'next_attempt': _qmt_shown(after),
                    'reconnects': self.reconnects, 'hung_calls': self._guard.hung,
                    'waiting_s': int(self._guard.waiting_s), 'traders': self.traders,
                    'pushes_renewed': self.renewed,
                    'warm': self.state == 'connected' and warm, 'session_id': qmt_session_id(self.spec)}

    def _seconds_left(self):
        if self.next_attempt is None:
            return 1
        return max(1, int(math.ceil((self.next_attempt - self._clock.now()).total_seconds())))

    def _enter_state(self, state):
        """With the lock held."""
        if state != self.state:
            self.state, self.since = state, self._clock.now()

    # -- the keeper's thread -----------------------------------------------------------------------------------------
    def _run(self):
        while not self._closing:
            self._wake.clear()
            self._renew_trader()
            self._keep(_QmtLink(self._trader))
            self._rest()
        self._trader.abandon()

    def _new_trader(self):
        return _QmtTrader(self._vendor, self.spec, self._guard, self.timing, self._receive)

    def _renew_trader(self):
        """A new object in the place of one whose connection is gone; it may have been told so in the pause."""
        if self._trader.gone:
            self._trader.abandon()
            with self._lock:
                self._trader = self._new_trader()

    def _keep(self, link):
        """One connection from its first step to its end."""
        with self._lock:
            if self._closing:
                return
            self._link, self.next_attempt = link, None
        try:
            self._open(link.trader)
            self._attend(link)
        except Exception as error:  # the vendor raises anything
            self.lost(link, *self._explain(error))
        finally:
            if not self._may_try_again(link.trader):
                link.trader.abandon()

    def _open(self, trader):
        made = trader.made
        try:
            trader.open()
        finally:
            self.traders += trader.made and not made

    def _may_try_again(self, trader):
        """Whether the next attempt is this object's. One that hung is given fewer chances than the next that will."""
        if trader.proven or trader.gone or self._closing:
            return False
        if trader.hung:
            self._hangs += 1
            if self._hangs >= 2 ** min(self._given_up, self.HANGS_LOG2):
                self._hangs, self._given_up = 0, self._given_up + 1
                return False
            trader.give_another_chance()
        return True

    def _explain(self, error):
        """(message, reason, hint) of a failed attempt."""
        if isinstance(error, VendorTimeout):
            return 'QMT 没有回应（%s）' % error, 'hung', '检查 QMT 是否卡死；卡死时重新启动 QMT'
        if isinstance(error, BulletError):
            return error.message, error.details.get('reason', 'error'), error.hint
        return '%s: %s' % (type(error).__name__, error), 'error', ''

    def _attend(self, link):
        """While the connection lives: wait for the figures, tell who asked to know, then look after it."""
        if link.trader.gone:
            self.lost(link, *self.DISCONNECTED)
        if not self._connected(link):
            return
        self._pause(self._wake, self.timing.warm_up_s)
        if self._alive(link):
            link.warm = True
            self._tell(self.on_connected)
        while self._alive(link):
            self._await_probe(link)
            if self._alive(link):
                self._probe(link)

    def _await_probe(self, link):
        """One that just fell silent is probed at once."""
        self._wake.clear()
        if self._alive(link) and (link.unanswered or not link.silent):
            self._pause(self._wake, self.timing.probe_s)

    def _alive(self, link):
        return link.lost is None and not self._closing

    def _connected(self, link):
        """Whether it still was good when it was declared connected."""
        with self._lock:
            if not self._alive(link):
                return False
            self._connects, self._connected_at_s = self._connects + 1, self._clock.monotonic()
            self._enter_state('connected')
            self.last_error = self.reason = self.hint = ''
        _qmt_log.info('账户 %s 已连接 QMT', self.spec.key)
        return True

    def _tell(self, hooks):
        for hook in list(hooks):
            try:
                hook()
            except Exception:
                _qmt_log.exception('账户 %s 连接后的处理出错', self.spec.key)

    def renew(self):
        """Asks anew for what the terminal pushes of the account; in a hook of on_probed. Without it, all is lost."""
        self.renewed += 1
        link = self._link
        try:
            link.trader.subscribe_anew()
        except Exception as error:
            self.lost(link, *self._explain(error))
            raise

    def _probe(self, link):
        """Only an answer proves that the connection is good, and only then the next trouble is a first one again."""
        try:
            answer = link.call('query_stock_asset', deadline_s=self.timing.call_s)
        except (VendorTimeout, QmtUnavailable):  # the latter: all workers are in calls that hang
            return self._unanswered(link)
        if answer is None:
            return self.lost(link, '资产查询没有结果', 'account', '确认 QMT 里登录的就是这个资金账号')
        self._failures = self._hangs = self._given_up = link.unanswered = 0
        link.trader.proven = True
        link.trader.free_given_up()
        if self._speaks_again(link):
            self._tell(self.on_connected)
        self._tell(self.on_probed)

    def _unanswered(self, link):
        """Cancels may get through where no question does: the connection is kept for them as long as it may recover."""
        link.unanswered += 1
        if link.unanswered >= self.UNANSWERED:
            self.lost(link, 'QMT 没有回应（资产查询）', 'hung')
        else:
            self.silent(link, 'QMT 没有回应（资产查询）')

    def _speaks_again(self, link):
        """Whether a probe ended the silence of this connection."""
        with self._lock:
            if not self._is_silent() or link is not self._link:
                return False
            link.silent = False
            self._enter_state('connected')
            self.last_error = self.reason = self.hint = ''
        _qmt_log.info('账户 %s 的 QMT 又有回应', self.spec.key)
        return True

    def _rest(self):
        """Before the next attempt: 1 s doubling to 60 s, half of it at random, so that accounts do not go in step."""
        delay = min(self.timing.backoff_max_s, self.timing.backoff_s * 2 ** min(self._failures, 16))
        delay *= 0.5 + 0.5 * self._jitter()
        self._failures += 1
        with self._lock:
            if self._closing:
                return
            self._enter_state('down')
            self.next_attempt = self._clock.now() + timedelta(seconds=delay)
            self._wake.clear()
        self._pause(self._wake, delay)

    # -- the vendor's push thread ------------------------------------------------------------------------------------
    def _receive(self, trader, kind, row):
        """Orders and trades are facts whoever tells them; an object that was given up has no say in anything else."""
        with self._lock:
            link = self._link if self._link is not None and self._link.trader is trader else None
        if kind == 'disconnected':
            if link is not None and trader.gone:
                self.lost(link, *self.DISCONNECTED)
        elif row['account_id'] in (None, '', self.spec.account_id):
            if kind not in ('account_status', 'asset'):
                self._put(kind, row)
            elif link is not None:
                self._of_the_present(link, kind, row)

    def _of_the_present(self, link, kind, row):
        """0 is fine, 5 refreshing, 6 after the close; all others mean that the account is not logged in."""
        if kind == 'asset':
            self._put(kind, row)
        elif row['account_type'] in (None, link.trader.account.account_type) and row['status'] not in (None, 0, 5, 6):
            self.lost(link, 'QMT 里的账户状态为 %s，未登录' % brief(row['status']), 'account', '在 QMT 里重新登录这个资金账号')


def _qmt_shown(moment):
    return moment.isoformat(sep=' ', timespec='seconds') if moment else None


# -- what is known of the day's orders ------------------------------------------------------------------------------
class _QmtDayBook:
    """The newest known state of each of the day's orders, out of pushes and queries that may be stale or repeated.

    An order never goes back: what is filled stays filled, and a final status only gives way to a final one with more
    filled. An id that shows up with another order (a new day, a new terminal) starts afresh.
    """

    def __init__(self, clock):
        self._clock, self._lock = clock, threading.Lock()
        self._day, self._orders, self._told, self._trades = None, {}, {}, set()

    def merge(self, order, tell=True):
        """(the order as it stands now, whether that is news). tell=False: one seen for the first time is none."""
        with self._today():
            known = self._orders.get(order.order_id)
            if known is not None and not _qmt_same_order(known, order):
                known = None
                self._told.pop(order.order_id, None)
            merged = self._orders[order.order_id] = order if known is None else _qmt_newer(known, order)
            if known is None and not tell:
                self._told[order.order_id] = _qmt_essence(merged)
            return merged.replace(), self._told.get(order.order_id) != _qmt_essence(merged)

    def news(self, order_id):
        """The order if it has changed since it was last asked for here, else None."""
        with self._today():
            order = self._orders.get(order_id)
            if order is None or self._told.get(order_id) == _qmt_essence(order):
                return None
            self._told[order_id] = _qmt_essence(order)
            return order.replace()

    def fresh_trade(self, trade):
        """Whether this trade was not told before."""
        with self._today():
            fresh = _qmt_trade_key(trade) not in self._trades
            self._trades.add(_qmt_trade_key(trade))
            return fresh

    def untold(self, trades):
        """Those that were not told before."""
        with self._today():
            return [trade for trade in trades if _qmt_trade_key(trade) not in self._trades]

    def missing_from(self, orders):
        """Whether the list lacks an order that the day is known to have."""
        with self._today():
            return not set(self._orders) <= {order.order_id for order in orders}

    def newest_open(self, count):
        """Ids of the newest of the orders that are not final yet."""
        with self._today():
            return heapq.nlargest(count, (key for key, order in self._orders.items() if not order.final), key=int)

    def has_fills(self):
        """Whether anything is known to have been filled today."""
        with self._today():
            return bool(self._trades) or any(order.filled for order in self._orders.values())

    @contextlib.contextmanager
    def _today(self):
        """The lock; a new day begins with nothing, as terminals use their ids again."""
        with self._lock:
            today = self._clock.now().date()
            if today != self._day:
                self._day, self._orders, self._told, self._trades = today, {}, {}, set()
            yield


def _qmt_trade_key(trade):
    return trade.trade_id, trade.order_id, trade.security


class _QmtPushWatch:
    """Whether orders are still pushed: what a look shows of one must have been pushed, or be so within WAIT_S.

    looked(order), pushed(order): as either shows it.  overdue(): whether it was not.  settle(): what was looked at so
    far counts as pushed.
    """

    WAIT_S = 8.0

    def __init__(self, clock):
        self._clock, self._lock = clock, threading.Lock()
        self._day, self._pushed, self._seen, self._owed = None, {}, {}, {}

    def pushed(self, order):
        with self._lock:
            self._pushed[order.order_id] = self._state(order)
            self._owed.pop(order.order_id, None)

    def looked(self, order):
        with self._lock:
            state = self._seen[order.order_id] = self._state(order)
            if self._pushed.get(order.order_id) != state:
                self._owed.setdefault(order.order_id, self._clock.monotonic())

    def overdue(self):
        with self._lock:
            return any(self._clock.monotonic() - since >= self.WAIT_S for since in self._owed.values())

    def settle(self):
        with self._lock:
            today = self._clock.now().date()
            if today != self._day:  # ids are used again
                self._day, self._pushed = today, {}
            self._pushed.update(self._seen)
            self._seen, self._owed = {}, {}

    @staticmethod
    def _state(order):
        return order.status, order.filled


def _qmt_same_order(known, order):
    same = (known.security, known.side) == (order.security, order.side) and (
        known.amount == order.amount or not (known.amount and order.amount))  # 0: it could not be read
    remarks = {known.order_remark, order.order_remark} - {''}
    return same and len(remarks) < 2


def _qmt_essence(order):
    """What makes a change of an order worth telling."""
    return order.status, order.raw_status, order.filled, order.avg_price, order.order_remark


_QMT_STAGES = {'submit_unknown': 0, 'new': 1, 'submitted': 2}  # open, filling and canceling may follow each other


def _qmt_newer(known, order):
    """Of two states of one order the one that is further on, with all that either knows filled."""
    if _qmt_progress(order) < _qmt_progress(known) or (known.final and order.filled <= known.filled):
        known, order = order, known
    if order.filled < known.filled:
        order = order.replace(filled=known.filled, avg_price=known.avg_price, deal_balance=known.deal_balance)
        if order.status == 'canceled':
            order = order.replace(status='partly_canceled', raw_status=STATUS_RAW['partly_canceled'])
    return order.replace(**{name: getattr(order, name) or getattr(known, name)
                            for name in ('order_remark', 'order_sysid', 'status_msg', 'time', 'strategy_name')})


def _qmt_progress(order):
    if order.final:
        return 2, 0, order.filled
    stage = 3 if order.filled else _QMT_STAGES.get(order.status, 3)
    return 1, stage, order.filled


class _QmtFaults:
    """Reasons of refusals as the terminal pushed them: by the tag of our own order, or by an order's id.

    An error that only says -1 could be anybody's, an old one may come again, and others may give many orders the same
    remark: none of these is ever taken for ours.
    """

    LIMIT = 2000

    def __init__(self):
        self._changed = threading.Condition()
        self._reasons = OrderedDict()  # (kind, tag or id) -> text, or None where one of ours is awaited

    def expect(self, kind, name):
        """From now on an error of this order counts; an earlier one does not."""
        with self._changed:
            self._keep((kind, name), None)

    def note(self, kind, row):
        number = row['order_id'] if _qmt_is_number(row['order_id']) else 0
        reason = _qmt_text(row, 'error_msg') or '错误 %s' % brief(row['error_id'])
        with self._changed:
            if ('tag', row.get('order_remark')) in self._reasons:
                self._keep(('tag', row['order_remark']), reason)
            if number > 0:
                self._keep((kind, str(number)), reason)
            self._changed.notify_all()

    def _keep(self, key, reason):
        self._reasons.pop(key, None)
        self._reasons[key] = reason
        while len(self._reasons) > self.LIMIT:
            self._reasons.popitem(last=False)

    def wait(self, kind, name, seconds):
        """The reason, or None if none comes in time."""
        with self._changed:
            return wait_for_condition(self._changed, lambda: self._reasons.get((kind, name)), seconds)

    def explain(self, order):
        """The order with the reason in its status_msg."""
        with self._changed:
            reason = (self._reasons.get(('order_error', order.order_id))
                      or self._reasons.get(('tag', order.order_remark)))
        if not reason or reason in order.status_msg:
            return order
        return order.replace(status_msg='；'.join(filter(None, (order.status_msg, reason))))


# -- the broker -----------------------------------------------------------------------------------------------------
def _qmt_unreadable(error):
    if isinstance(error, BulletError):
        return error
    return QmtUnavailable('QMT 给出的一行读不懂：%s: %s' % (type(error).__name__, error), retry_after_s=3)


class QmtBroker(BrokerAdapter):
    """One account of a QMT terminal. start() begins to connect and returns at once; close() ends every thread.

    keeper: its QmtKeeper, with `on_connected`. Besides the contract: orders_known, health.
    """

    WATCHED = 5        # open orders that are looked at after each probe
    ARRIVAL_S = 300.0  # after a connect: how long it is not believed that an account lost what it had

    def __init__(self, vendor, spec, clock, timing=None, jitter=chance, pause=_qmt_pause):
        self.spec, self._listener = spec, None
        self._book, self._faults, self._skipped = _QmtDayBook(clock), _QmtFaults(), set()
        self._mailbox = Mailbox('qmt-%s-events' % spec.key, self._handle_all)
        self.keeper = QmtKeeper(vendor, spec, clock, self._mailbox.put, timing, jitter, pause)
        self.timing = self.keeper.timing
        self._pushes, self._last_asset = _QmtPushWatch(clock), None
        self._expects = lambda: True
        self.keeper.on_connected.append(self._catch_up)
        self.keeper.on_probed.append(self._watch_pushes)

    def start(self):
        self._mailbox.start()
        self.keeper.start()

    def close(self):
        self.keeper.close()
        self._mailbox.close()

    def health(self):
        return dict(self.keeper.health(), account_type=self.spec.account_type, skipped=sorted(self._skipped)[:20],
                    may_order=qmt_may_order(self.spec.data_path))

    def set_listener(self, listener):
        self._listener = listener

    def on_connected(self, hook):
        self.keeper.on_connected.append(hook)

    # -- queries -----------------------------------------------------------------------------------------------------
    def account(self):
        return self._sure_asset(self.keeper.link())

    def _sure_asset(self, link):
        """An account without anything is believed only after the warm-up, and when it says so twice.

        One that had something before the connection was lost has longer to show it again.
        """
        warm, row = link.warm, self._asset(link)
        if _qmt_all_zero(row):
            if not warm:
                raise _qmt_early('资产')
            row = self._asset(link)
        if self._lacks_much(row) and self.keeper.connected_s() < self.ARRIVAL_S:
            raise _qmt_early('资产')
        self._last_asset = row
        return row

    def _lacks_much(self, row):
        """Whether half of what was held is gone without money for it: a sale leaves the total as it is."""
        last = self._last_asset
        return last is not None and not _qmt_all_zero(last) and (
            _qmt_all_zero(row) or row.total_value < last.total_value - last.market_value / 2 and not row.market_value)

    def positions(self):
        link = self.keeper.link()
        warm, records = link.warm, self._ask(link, 'query_stock_positions')
        rows = self._rows('position', records, '持仓')
        held = [row for row in rows if _qmt_whole(row, 'volume') > 0]
        if not held:
            self._check_empty(link, warm)
        return self._converted(held, qmt_position_row, odd=False)

    def _check_empty(self, link, warm):
        """That there are no positions needs a good asset query beside it that says the same."""
        if self._sure_asset(link).market_value > 0:
            raise QmtUnavailable('QMT 给出的持仓为空，但持仓市值不为 0', '稍后再查', retry_after_s=3)
        if not warm:
            raise _qmt_early('持仓')

    def orders(self):
        link = self.keeper.link()
        warm, records = link.warm, self._ask(link, 'query_stock_orders')
        orders = self._known(records)
        if records is None:
            self._asset(link)
        if self._book.missing_from(orders) and not (warm and orders) or not (warm or orders):
            raise _qmt_early('委托')
        return orders

    def orders_known(self):
        """(today's orders, whether that is certainly all of them). Raises QmtUnavailable if it cannot ask."""
        orders, complete = self._list_orders()
        return self._list_orders() if complete and not orders else (orders, complete)  # "none" has to be said twice

    def expects_orders(self, ask):
        self._expects = ask

    def _list_orders(self):
        link = self.keeper.link()
        warm, records = link.warm, self._ask(link, 'query_stock_orders')
        orders = self._known(records)
        complete = (warm and link.lost is None and not self._book.missing_from(orders)
                    and not self._hides_tagged(records, orders))
        return orders, complete and (records is not None or self._is_idle(link))

    def _hides_tagged(self, records, orders):
        """Whether a row that cannot be listed may be an order of this toolkit."""
        if len(records or ()) == len(orders):
            return False
        shown = {order.order_remark for order in orders}
        return any(remark.startswith('bq') and len(remark) >= TAG_BYTES and remark not in shown
                   for remark in (_qmt_text(row, 'order_remark') for row in self._rows('order', records, '委托')))

    def _is_idle(self, link):
        """Whether no orders is what None means: nobody knows of one today, and all else is answered."""
        if self._expects():
            return False
        self._sure_asset(link)
        return not self._ask(link, 'query_stock_trades') and link.lost is None

    def trades(self):
        link = self.keeper.link()
        warm, records = link.warm, self._ask(link, 'query_stock_trades')
        trades = self._converted(self._rows('trade', records, '成交'), qmt_trade_row)
        for trade in self._book.untold(trades):
            self._mailbox.put('seen_trade', trade)
        if records is None:
            self._asset(link)
        if not trades and (not warm or self._book.has_fills()):
            raise _qmt_early('成交')
        return trades

    def order(self, order_id):
        """Asked for alone first. An answer with another id, or none, is no proof: then out of the whole list."""
        if not _qmt_is_order_id(order_id):
            return None
        record = self._ask(self.keeper.link(), 'query_stock_order', int(order_id))
        found = self._known(None if record is None else [record])
        return next((order for order in found if order.order_id == order_id), None) or super().order(order_id)

    def _ask(self, link, name, *args):
        """A query; whatever goes wrong with it is QmtUnavailable. The trader's own None is handed on."""
        try:
            return link.call(name, *args, deadline_s=self.timing.call_s)
        except VendorTimeout:
            self.keeper.silent(link, 'QMT 没有回应（%s）' % name)
            raise QmtUnavailable('QMT 没有回应（%s）' % name, '检查 QMT 是否卡死', retry_after_s=3)
        except QmtUnavailable:
            raise
        except Exception as error:
            raise QmtUnavailable('QMT 查询出错（%s）：%s' % (name, error), retry_after_s=3) from error

    def _asset(self, link):
        record = self._ask(link, 'query_stock_asset')
        if record is None:
            raise QmtUnavailable('QMT 没有给出资产', '检查 QMT 里该账户是否已登录', retry_after_s=3)
        return qmt_account_row(_qmt_plain('asset', record), self.spec)

    def _rows(self, kind, records, told):
        """Plain rows of this account; [] for None, which the caller must not take for an answer by itself."""
        if records is not None and not isinstance(records, (list, tuple)):
            raise QmtUnavailable('QMT 给出的%s不是列表' % told, retry_after_s=3)
        rows = [_qmt_plain(kind, record) for record in records or ()]
        return [row for row in rows if row['account_id'] in (None, '', self.spec.account_id)]

    def _converted(self, rows, convert, odd=True):
        converted = [self._convert(row, convert, odd) for row in rows]
        return [record for record in converted if record is not None]

    def _convert(self, row, convert, odd=True):
        """None for a security or a business that this toolkit does not know; each is logged once.

        odd: whether a row that cannot be read may be left out as well. Not where that would be a holding less.
        """
        try:
            record = convert(row)
        except SecurityNotFound as error:
            return self._say_once('有一行没有列出：%s' % error.message)
        except Exception as error:  # the vendor's fields hold anything
            if not odd:
                raise _qmt_unreadable(error) from error
            return self._say_once('有一行读不懂，没有列出：%s' % (_qmt_unreadable(error).message))
        if _QMT_ODD in row:
            self._say_once('%s 的一行不全：%s' % (record.security, _qmt_odd_told(row)))
        return record

    def _say_once(self, text):
        if text not in self._skipped:
            self._skipped.add(text)
            _qmt_log.warning('账户 %s %s', self.spec.key, printable(text))

    def _known(self, records, tell=True):
        """Orders of a query, each as far on as anything has told; what they bring is told to the listener.

        Seen is not told: the push of an order may come later than the look at it, or never. tell=False: what is seen
        for the first time is no news.
        """
        found = self._converted(self._rows('order', records, '委托'), qmt_order_row)
        return [self._faults.explain(self._learn(order, tell)) for order in found]

    def _learn(self, order, tell):
        self._pushes.looked(order)
        order, news = self._book.merge(order, tell)
        if news:
            self._mailbox.put('news', order.order_id)
        return order

    def _catch_up(self):
        """After a reconnect: what happened meanwhile was pushed to nobody. Who keeps a stream asks for the rest."""
        self._known(self._ask(self.keeper.link(), 'query_stock_orders'), tell=False)
        self._pushes.settle()

    def _watch_pushes(self):
        """A terminal can stop pushing without a word: what a few open orders show must have been told as well."""
        if not self.spec.auto_subscribe:
            return
        for order_id in self._book.newest_open(self.WATCHED):
            self.order(order_id)
        if self._pushes.overdue():
            _qmt_log.warning('账户 %s：QMT 不再推送委托的变化，已重新订阅', self.spec.key)
            self.keeper.renew()
            self.orders_known()
            self._pushes.settle()

    # -- writes ------------------------------------------------------------------------------------------------------
    def submit(self, request, deadline_s=None):
        """Order id. QmtUnavailable: nothing was sent. OrderRejected: certainly refused. OrderStateUnknown: the rest."""
        arguments, link = qmt_order_arguments(request), self.keeper.link()
        self._faults.expect('tag', request.tag)
        result = self._send(link, 'order_stock', arguments, deadline_s, '委托')
        if _qmt_is_number(result) and result > 0:
            return str(result)
        if not _qmt_is_number(result) or result != -1:
            raise _qmt_answered('QMT 的回答是 %s' % brief(result))
        return self._after_minus_one(request.tag)

    def _send(self, link, name, args, deadline_s, told):
        """A write. QmtUnavailable only if nothing was called; else OrderStateUnknown for all but an answer."""
        try:
            return link.call(name, *args, deadline_s=deadline_s or self.timing.call_s)
        except QmtUnavailable as error:
            error.broker_called = False
            raise
        except VendorTimeout:
            self._note_hang(link, name)
            raise _qmt_unknown(told, 'QMT 没有回应')
        except Exception as error:
            raise _qmt_unknown(told, '%s: %s' % (type(error).__name__, error)) from error

    def _note_hang(self, link, name):
        """Only a cancel that hangs proves that no other will get through."""
        told = 'QMT 没有回应（%s）' % name
        if name == 'cancel_order_stock':
            self.keeper.lost(link, told, 'hung')
        else:
            self.keeper.silent(link, told)

    def _after_minus_one(self, tag):
        """-1 is not certain: the order may live. Only its own error, and its absence from the list, prove a refusal."""
        reason = self._faults.wait('tag', tag, self.timing.error_s)
        try:
            found = self.find(tag)
        except QmtUnavailable as error:
            raise _qmt_answered('QMT 返回 -1，委托列表又读不到：%s' % error.message) from error
        if found is not None:
            return found.order_id
        if reason is None:
            raise _qmt_answered('QMT 返回 -1，没有说明原因')
        raise OrderRejected('柜台拒绝委托：%s' % reason, broker_called=True)

    def cancel(self, order_id, deadline_s=None):
        """Sends it, or finds the order over. OrderNotFound, OrderRejected (not cancelled), OrderStateUnknown."""
        if not _qmt_is_order_id(order_id):
            raise OrderNotFound('没有委托 %s' % brief(order_id))
        link = self.keeper.link(cancels=True)
        self._faults.expect('cancel_error', order_id)
        result = self._send(link, 'cancel_order_stock', (int(order_id),), deadline_s, '撤单')
        if not _qmt_is_number(result) or result not in (0, -1):
            raise _qmt_unknown('撤单', 'QMT 的回答是 %s' % brief(result))
        if result == -1 and not self._after_cancel(order_id).final:
            self._cancel_failed(order_id)

    def _cancel_failed(self, order_id):
        reason = self._faults.wait('cancel_error', order_id, self.timing.error_s)
        if self._after_cancel(order_id).final:
            return
        if reason is None:
            raise _qmt_unknown('撤单', 'QMT 返回 -1，没有说明原因')
        raise OrderRejected('撤单被拒：%s' % reason, broker_called=True)

    def _after_cancel(self, order_id):
        try:
            order = self.order(order_id)
        except QmtUnavailable as error:
            raise _qmt_unknown('撤单', 'QMT 返回 -1，委托又读不到：%s' % error.message) from error
        if order is None:
            raise OrderNotFound('账户 %s 没有委托 %s' % (self.spec.key, brief(order_id)))
        return order

    # -- events: in the mailbox's thread -----------------------------------------------------------------------------
    def _handle_all(self, items):
        for kind, row in items:
            try:
                getattr(self, '_on_' + kind)(row)
            except Exception:  # one bad record must not end the stream
                _qmt_log.exception('处理 QMT 回报出错：%s', kind)

    def _on_order(self, row):
        order = self._convert(row, qmt_order_row)
        if order is not None:
            self._pushes.pushed(order)
            self._book.merge(order)
            self._on_news(order.order_id)

    def _on_news(self, order_id):
        order = self._book.news(order_id)
        if order is not None:
            self._tell('order', self._faults.explain(order))

    def _on_trade(self, row):
        trade = self._convert(row, qmt_trade_row)
        if trade is not None:
            self._on_seen_trade(trade)

    def _on_seen_trade(self, trade):
        if self._book.fresh_trade(trade):
            self._tell('trade', trade)

    def _on_asset(self, row):
        account = qmt_account_row(row, self.spec)
        if not _qmt_all_zero(account):  # right after a connect figures read as zero
            self._tell('account', account)

    def _on_order_error(self, row):
        self._faults.note('order_error', row)

    def _on_cancel_error(self, row):
        self._faults.note('cancel_error', row)

    def _tell(self, kind, record):
        if self._listener is not None:
            self._listener(kind, record)


def _qmt_all_zero(account):
    return not (account.available_cash or account.frozen_cash or account.market_value or account.total_value)


def _qmt_early(what):
    return QmtUnavailable('QMT 刚连接，%s尚未到达' % what, '稍后再查', retry_after_s=1)


def _qmt_unknown(told, reason):
    return OrderStateUnknown('%s已交给 QMT，结果未知：%s' % (told, reason), '不要重发；按标记查询委托', broker_called=True)


def _qmt_answered(reason):
    """An order's answer came, and settles nothing."""
    error = _qmt_unknown('委托', reason)
    error.answered = True
    return error


def _qmt_is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _qmt_is_order_id(value):
    return isinstance(value, str) and re.fullmatch(r'[1-9]\d{0,17}', value, re.ASCII) is not None


# -- market data: the vendor's units and labels, as plain functions --------------------------------------------------
_QMT_ZONE_MS = 8 * 3600 * 1000  # epoch -> Beijing wall clock, whatever zone the machine is in
_QMT_DAY_DONE = 15 * 60 + 30    # minute of the day from which a day bar is final: fixed-price trading ends then
_QMT_FOREVER, _QMT_LONG_AGO = date(2200, 1, 1), date(1990, 1, 1)
_QMT_SECTORS = ('沪深A股', '京市A股', '沪深ETF', '沪深基金', '沪深指数', '沪深转债')


def _qmt_wall_ms(epoch_ms):
    return int(epoch_ms) + _QMT_ZONE_MS


def _qmt_day_of(ms):
    return ms - ms % DAY_MS


def _qmt_day_text(ms):
    return iso_ms(ms)[:10].replace('-', '')


def _qmt_bounds(period, first, last):
    """(start, end) texts of a vendor's range: whole days, both ends included."""
    start, end = _qmt_day_text(first), _qmt_day_text(last)
    return (start, end) if period == '1d' else (start + '000000', end + '235959')


def _qmt_finite(value):
    """A finite float; None, text and NaN are 0.0: the vendor has all three for 'nothing'."""
    number = float(value) if isinstance(value, numbers.Real) else 0.0
    return number if math.isfinite(number) else 0.0


def _qmt_date(value, default):
    """A date out of 19991110 or '19991110'; 0, 99999999 and what is none mean `default`."""
    try:
        return parse_moment(str(value))[0].date()
    except ValueError:
        return default


def _qmt_lots(code):
    """How many shares a vendor's lot has."""
    return 10 if instrument(code).kind == 'bond' else 100


def _qmt_unit(code, rows):
    """Shares in one unit of volume, decided by all of (price, volume, amount): 1, or the lot of the security.

    An index has no price in yuan: there the average price of its shares decides, which is far below 100 yuan.
    """
    kind = instrument(code).kind
    rows = [row for row in rows if min(row) > 0]
    if not rows or kind in ('repo', 'other'):
        return 1
    if kind == 'index':
        lots = [amount / volume > 100 for _, volume, amount in rows]
    else:
        middle = math.sqrt(_qmt_lots(code))
        lots = [amount / volume / price > middle for price, volume, amount in rows]
    return _qmt_lots(code) if 2 * sum(lots) > len(lots) else 1


def _qmt_columns(frame):
    """A vendor's frame as lists of plain numbers; `time` in ms of the Beijing clock, rows ascending.

    The frame is a read-only view of the vendor's buffer, so that nothing of it is kept.
    """
    if frame is None or not len(frame):
        return {'time': []}
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    return dict(columns, time=[_qmt_wall_ms(moment) for moment in columns['time']])


def _qmt_rows_of(columns, days):
    """The rows of these days; what stands between them must not count as anybody's previous close."""
    kept = [i for i, moment in enumerate(columns['time']) if _qmt_day_of(moment) in days]
    return {name: [values[i] for i in kept] for name, values in columns.items()}


_QmtBar = namedtuple('_QmtBar', 'time open high low close volume money pre_close paused')


def _qmt_bars(code, columns):
    """Columns of a frame -> list of _QmtBar with volume in shares. A row without any price is left out."""
    length, unit = len(columns['time']), _qmt_unit_of(code, columns)
    empty, bars, before = [None] * length, [], 0.0
    series = [columns.get(name, empty) for name in ('time', 'open', 'high', 'low', 'close', 'volume', 'amount',
                                                    'preClose', 'suspendFlag')]
    for row in zip(*series):
        bar = _qmt_bar(row, unit, before)
        if bar is not None:
            bars.append(bar)
            before = bar.close
    return bars


def _qmt_unit_of(code, columns):
    names = ('close', 'volume', 'amount')
    if not all(name in columns for name in names):
        return 1
    return _qmt_unit(code, [tuple(map(_qmt_finite, row)) for row in zip(*(columns[name] for name in names))])


def _qmt_bar(row, unit, before):
    """A suspended row, or one whose prices are 0, stands at its close or at what was before it. All zeros: no row."""
    opened, high, low, close, volume, money, pre_close = map(_qmt_finite, row[1:8])
    paused = row[8] == 1
    if row[8] == 0 and max(opened, high, low, close, volume, pre_close) <= 0:
        return None  # the terminal fills with such rows what it could not download
    pre_close = pre_close or before
    close = close or pre_close
    if close <= 0:
        return None
    if paused or min(opened, high, low) <= 0:
        opened = high = low = close
    if paused:
        volume = money = 0.0
    return _QmtBar(row[0], opened, high, low, close, volume * unit, money, pre_close or opened, paused)


def _qmt_is_idle(bar):
    """Nothing was traded: so looks a suspension, and so looks what the terminal makes up where it has no data."""
    return not bar.volume and bar.high == bar.low


def _qmt_daily(code, bars, is_st, listed=None):
    """DAILY_COLUMNS of day bars. listed: day of listing, if the first bar may be of that day."""
    columns = {name: [getattr(bar, name) for bar in bars]
               for name in ('open', 'close', 'high', 'low', 'volume', 'money', 'pre_close')}
    begins = bool(bars) and listed is not None and from_ms(bars[0].time).date() == listed
    limits = [_qmt_day_limits(code, bar, is_st, listed, number if begins else None)
              for number, bar in enumerate(bars, 1)]
    return _qmt_arrays(dict(
        columns, time=[_qmt_day_of(bar.time) for bar in bars], paused=[float(bar.paused) for bar in bars],
        high_limit=[pair[0] for pair in limits], low_limit=[pair[1] for pair in limits]))


def _qmt_arrays(columns):
    return {name: array('q' if name == 'time' else 'd', values) for name, values in columns.items()}


def _qmt_day_limits(code, bar, is_st, listed=None, number=None):
    """Limits by the rules, NaN without. Only today's name says ST: a day that went beyond 5 % was none of ST,
    and one that went beyond every limit, such as the first after a long suspension, had none."""
    seen = None if bar.paused else (bar.low, bar.high)
    high, low = price_limits(code, bar.pre_close, from_ms(bar.time).date(), is_st, listed, number, seen)
    return (math.nan, math.nan) if high is None else (high, low)


def _qmt_minute_label(ms):
    """The bar of JoinQuant's that a vendor's minute belongs to; None after the close.

    The vendor has bars of their own for the opening auction, 09:30, and for 13:00; here 09:31 and 13:01 hold them.
    """
    minute = ms % DAY_MS // 60000
    if minute > AFTERNOON_CLOSE:
        return None
    if minute <= MORNING_OPEN:
        minute = MORNING_OPEN + 1
    elif MORNING_CLOSE < minute <= AFTERNOON_OPEN:
        minute = AFTERNOON_OPEN + 1
    return _qmt_day_of(ms) + minute * 60000


def _qmt_minutes(bars):
    """Vendor's minute bars -> bars with JoinQuant's labels."""
    merged = []
    for bar in bars:
        label = _qmt_minute_label(bar.time)
        if label is None:
            continue
        bar = bar._replace(time=label)
        if merged and merged[-1].time == label:
            bar = _qmt_joined(merged.pop(), bar)
        merged.append(bar)
    return merged


def _qmt_joined(first, second):
    """One bar of two; the prices of one in which nothing was traded are made up and do not count."""
    if not first.volume:
        return second
    if not second.volume:
        return first
    return second._replace(open=first.open, high=max(first.high, second.high), low=min(first.low, second.low),
                           volume=first.volume + second.volume, money=first.money + second.money)


def _qmt_event_ratio(event, before):
    """By how much a day's dividend divides the price: the vendor's own factor, or computed from the plan."""
    ratio = _qmt_finite(event.get('dr'))
    if ratio > 0:
        return ratio
    interest, bonus, gift, allotted, price = [_qmt_finite(event.get(name)) for name in (
        'interest', 'stockBonus', 'stockGift', 'allotNum', 'allotPrice')]
    reference = (before - interest + allotted * price) / (1 + bonus + gift + allotted)
    if reference <= 0:
        raise DataUnavailable('除权数据不能用：前收盘价 %g，每股派息 %g' % (before, interest), '在 QMT 里重新下载该证券的日线')
    return before / reference


def _qmt_events(frame):
    """Rows of the vendor's dividend frame as dicts with `day` in ms, ascending."""
    if frame is None or not len(frame):
        return []
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    events = [dict(zip(columns, row)) for row in zip(*columns.values())]
    days = [_qmt_event_day(label, event) for label, event in zip(frame.index.tolist(), events)]
    return sorted((dict(event, day=day) for day, event in zip(days, events)), key=lambda event: event['day'])


def _qmt_event_day(label, event):
    """The index says 'YYYYMMDD'; some versions have ms there, as in the column `time`."""
    try:
        return to_ms(parse_moment(str(label)[:10])[0].date())
    except ValueError:
        return _qmt_day_of(_qmt_wall_ms(event.get('time') or label))


def _qmt_level(record, name):
    """The first of five levels; a list, or nothing."""
    values = record.get(name)
    return _qmt_finite(values[0]) if isinstance(values, (list, tuple)) and values else 0.0


def _qmt_is_st(name):
    return 'ST' in name.upper()


# -- the connection to xtdata ---------------------------------------------------------------------------------------
class _QmtDataLink:
    """xtdata, one call at a time, each with a deadline; and the thread `qmt-data` that keeps it connected.

    call(function, *args) -> result. Raises QmtUnavailable where it cannot be had now.
    on_connect(client): called in the keeper's thread after every new connection, and again until it raises nothing.
    on_turn(): called there at each look at a connection that is good; what it raises is logged.
    xtdata connects by itself, in any call, and then forgets all subscriptions without a word; so a client that is
    another one than before counts as a new connection as well.
    listening(): whether a program listens where xtdata would connect. Each attempt of xtdata that fails costs memory
    for good: after the first few it is made where something listens, and every VENDOR_S whatever the ports say.
    """

    STUCK_LIMIT, NO_SERVICE = 3, '200005'  # the number of the terminal's "no such service"
    BLIND_ATTEMPTS, VENDOR_S = 3, 600.0

    def __init__(self, xtdata, clock, deadline_s, probe_s=3.0, backoff_s=(1.0, 2.0, 5.0, 10.0, 30.0),
                 listening=lambda: True):
        self.xtdata, self.clock, self.deadline_s = xtdata, clock, deadline_s
        self.on_connect, self.on_turn, self._unserved = lambda client: None, lambda: None, set()
        self._probe_s, self._backoff_s, self._listening = probe_s, backoff_s, listening
        self._failures, self._attempted_s = 0, -math.inf
        self._guard, self._stuck = CallGuard('qmt-xtdata', 1), []
        self._lock = threading.Lock()
        self._wake, self._settled, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._client, self._restored = None, False
        self._state, self._since, self._last_error, self._next = 'connecting', clock.now(), None, None
        self._thread = threading.Thread(target=self._keep, name='qmt-data', daemon=True)

    @property
    def connected(self):
        return self._state == 'connected'

    def start(self):
        self._thread.start()

    def call(self, function, *args, **options):
        """options: deadline_s."""
        deadline_s = options.get('deadline_s', self.deadline_s)
        wait_for_event(self._settled, deadline_s)  # the first attempt is on its way
        if not self.connected:
            raise self.unavailable('QMT 行情没有连接：%s' % (self._last_error or '正在连接'))
        return self._ask(function, args, deadline_s)

    def aside(self, function, *args):
        """In the thread of the calls, whether there is a connection or not; raises as it does, or as the guard."""
        return self._guard.call(function, *args, deadline_s=self.deadline_s)

    def unavailable(self, message):
        with self._lock:
            wait_s = 1.0 if self._next is None else max(1.0, self._next - time.monotonic())
        return QmtUnavailable(message, '确认 QMT/MiniQMT 已启动并登录、行情已连接', retry_after_s=int(math.ceil(wait_s)))

    def doubt(self, error):
        """A call failed: remember why, and look at the connection now rather than at the next turn."""
        with self._lock:
            self._last_error = printable(error)
        self._wake.set()

    def reset(self, reason):
        """Gives the connection up; what hangs in it ends, the keeper makes a new one."""
        self._lose(reason)
        self._wake.set()

    def health(self):
        with self._lock:
            pause = None if self._next is None else self._next - time.monotonic()
            soon = None if pause is None else self.clock.now() + timedelta(seconds=max(0.0, pause))
            hung = self._guard.hung + sum(guard.hung for guard in self._stuck)
            return {'state': self._state, 'since': self._since.isoformat(sep=' ', timespec='seconds'),
                    'last_error': self._last_error, 'hung': hung, 'waiting_s': int(self._guard.waiting_s),
                    'unserved': sorted(self._unserved),
                    'next_attempt': soon and soon.isoformat(sep=' ', timespec='seconds')}

    def close(self):
        self._stop.set()
        self._wake.set()
        self._settled.set()
        if self._thread.ident is not None:
            wait_for_thread(self._thread, 2 * self.deadline_s)

    def disconnect(self):
        """The last call: it also ends a download that waits for progress. Nothing is asked after it."""
        self._state = 'closed'
        try:
            self._guard.call(getattr(self.xtdata, 'disconnect', lambda: None), deadline_s=2.0)
        except Exception as error:
            LOG.info('断开 QMT 行情：%s', printable(error))
        for guard in self._stuck + [self._guard]:
            guard.close()

    # -- calls ----------------------------------------------------------------------------------------------
    def _ask(self, function, args, deadline_s):
        """The one place where the vendor's errors become ours."""
        name = getattr(function, '__name__', 'call')
        try:
            answer = self._guard.call(function, *args, deadline_s=deadline_s)
            self._unserved.discard(name)
            return answer
        except VendorTimeout:
            message = 'QMT 行情没有在 %g 秒内回应 %s' % (deadline_s, name)
        except BulletError as error:
            self.doubt(error)
            raise
        except Exception as error:
            message = 'QMT 行情调用 %s 失败：%s' % (name, printable(error) or type(error).__name__)
            if self.NO_SERVICE in str(error):
                self._unserved.add(name)
        self.doubt(message)
        raise self.unavailable(message)

    # -- keeper ---------------------------------------------------------------------------------------------
    def _keep(self):
        while not self._stop.is_set():
            good = self._turn()
            self._failures = 0 if good else self._failures + 1
            self._settled.set()
            pause_s = self._probe_s if good else self._backoff_s[min(self._failures, len(self._backoff_s)) - 1]
            self._pause(pause_s, good)

    def _turn(self):
        """Whether the connection is up after one look at it, or one attempt to make it."""
        try:
            if self.connected:
                self._look()
            else:
                self._connect()
        except Exception as error:  # one bad turn must not end the keeper
            if self._guard.hung or not self._is_busy(error):
                self._lose(error)
        if self.connected and not self._restored:
            self._restore()
        elif self.connected:
            self._take_turn()
        return self.connected

    def _take_turn(self):
        try:
            self.on_turn()
        except Exception as error:
            LOG.info('QMT 行情推送这次没有检查成：%s', printable(error))

    def _restore(self):
        """What fails here is tried again in the next turn: the connection itself is good."""
        try:
            self.on_connect(self._client)
            self._restored = True
        except Exception as error:
            LOG.warning('QMT 行情的订阅还没有恢复：%s', printable(error))

    @staticmethod
    def _is_busy(error):
        """The guard had no worker free: a long call is running, which says nothing about the connection."""
        return isinstance(error, QmtUnavailable) and error.broker_called is False

    def _pause(self, seconds, good):
        with self._lock:
            self._next = None if good else time.monotonic() + seconds
        self._wake.clear()
        if not self._stop.is_set() and self.connected == good:
            self._wake.wait(seconds)

    def _look(self):
        client, alive = self._ask(self._probe, (), self.deadline_s)
        if not alive:
            raise self.unavailable('QMT 行情连接断开')
        if client is not self._client:  # the same one says nothing new: it may have been given up just now
            self._adopt(client)

    def _probe(self):
        client = self.xtdata.get_client()
        return client, client.is_connected()

    def _connect(self):
        self._replace_stuck_guard()
        if self._is_worth_it():
            self._attempted_s = self.clock.monotonic()
            self._adopt(self._ask(getattr(self.xtdata, 'reconnect', self.xtdata.get_client), (), self.deadline_s))

    def _is_worth_it(self):
        if self._failures < self.BLIND_ATTEMPTS or self.clock.monotonic() - self._attempted_s >= self.VENDOR_S:
            return True
        return self._guard.call(self._listening, deadline_s=self.deadline_s)

    def _replace_stuck_guard(self):
        """A call that never returns must not end the service: a few may be left behind, and no more than that.

        They hold the old client, which reconnect() shuts down; two threads never make a client at the same time.
        """
        with self._lock:
            self._stuck = [guard for guard in self._stuck if guard.hung or guard.close()]
            if self._guard.hung and len(self._stuck) < self.STUCK_LIMIT:
                self._stuck.append(self._guard)
                self._guard = CallGuard('qmt-xtdata', 1)

    def _adopt(self, client):
        if client is None:
            raise self.unavailable('QMT 行情没有连接')
        LOG.info('QMT 行情已连接')
        with self._lock:
            self._client, self._restored = client, False
            self._state, self._since, self._next = 'connected', self.clock.now(), None

    def _lose(self, reason):
        with self._lock:
            self._last_error = printable(reason)
            if self._state == 'closed':
                return
            if self._state != 'disconnected':
                self._state, self._since = 'disconnected', self.clock.now()
                LOG.warning('QMT 行情不可用：%s', self._last_error)


# -- what keeps it from being connected ------------------------------------------------------------------------------
QMT_PROGRAMS = ('xtminiqmt.exe', 'xtitclient.exe')  # the light form, and the full terminal
_QMT_PORT, _QMT_FULL_PORT = 58610, 58600  # market data of MiniQMT; what a full terminal listens on


def qmt_listening():
    """Whether a program listens at any address that xtdata would try; True where this xtquant does not tell them."""
    scan = getattr(optional_import('xtquant.xtconn'), 'scan_available_server_addr', None)
    return scan is None or any(_takes_connections(address) for address in scan() + ['127.0.0.1:%d' % _QMT_PORT])


def _takes_connections(address):
    """True for what is no address: the vendor may know better."""
    host, _, port = address.rpartition(':')
    return not port.isdigit() or is_listening(int(port), host='127.0.0.1' if host in ('', '0.0.0.0') else host)


class QmtMachine:
    """What this machine shows of its terminal, beside the connections. look() asks, at most every EVERY_S.

    facts(): programs: those of QMT_PROGRAMS that run, None where that cannot be told; port, full_port: 'closed' or
    'open', of the latter also 'no_service' (it answers each question with 200005); checked: Beijing time or None.
    """

    EVERY_S, DEADLINE_S = 30.0, 5.0

    def __init__(self, clock, programs=running_programs, listening=is_listening, open_client=None):
        self._clock, self._programs, self._listening, self._open_client = clock, programs, listening, open_client
        self._guard, self._next_s = CallGuard('qmt-machine', 1), -math.inf
        self._facts = {'programs': None, 'port': None, 'full_port': None, 'checked': None}

    def facts(self):
        return dict(self._facts)

    def look(self):
        """Raises what CallGuard.call raises."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + self.EVERY_S
            self._guard.call(self._collect, deadline_s=self.DEADLINE_S)

    def close(self):
        self._guard.close()

    def _collect(self):
        self._facts = {
            'programs': self._programs(QMT_PROGRAMS), 'port': 'open' if self._listening(_QMT_PORT) else 'closed',
            'full_port': self._full_port(), 'checked': _qmt_shown(self._clock.now())}

    def _full_port(self):
        """One function without a service is no proof; those of snapshots and the calendar are there wherever any is."""
        if not self._listening(_QMT_FULL_PORT):
            return 'closed'
        client = self._open_client and self._open_client('127.0.0.1:%d' % _QMT_FULL_PORT)
        if client is None:
            return 'open'
        try:
            unserved = [_is_unserved(client.get_full_tick, ['000001.SH']),
                        _is_unserved(client.get_trading_dates_by_market, 'SH', '', '', 1)]
        finally:
            client.shutdown()
        return 'no_service' if all(unserved) else 'open'


def _is_unserved(function, *args):
    try:
        function(*args)
    except Exception as error:  # the vendor raises anything
        return _QmtDataLink.NO_SERVICE in str(error)
    return False


def _qmt_open_client(address):
    """A client of its own, as xtdata makes them, beside the one that xtdata keeps; None if it cannot be had."""
    return importlib.import_module('xtquant.xtconn').create_connection(address)


def qmt_client_opener():
    """That function where xtquant can be used, else None."""
    try:
        import_vendor()
    except ConfigError:
        return None
    return _qmt_open_client


class QmtFacts(Record):
    """What a diagnosis goes by. state, reason, message, hint: of the account, '' where no server was asked.

    data: 'connected', 'no_service' or another state; programs, port, full_port: as of QmtMachine; may_order: whether
    the terminal made the queue that programs order through, None where there is no folder to look into.
    """

    FIELDS = (('state', ''), ('reason', ''), ('message', ''), ('hint', ''), ('data', ''), ('data_message', ''),
              ('programs', None), ('port', None), ('full_port', None), ('may_order', None))

    @property
    def down(self):
        return self.state != 'connected'

    @property
    def refused(self):
        """connect() answered with something other than 0, or nobody has asked it."""
        return self.down and self.reason in ('connect', '')

    @property
    def unserved(self):
        """A full terminal's port is no service of MiniQMT's, so that it counts only where that has none."""
        return self.data == 'no_service' or (self.full_port == 'no_service' and self.port != 'open')

    @property
    def only_full(self):
        return self.programs is not None and list(self.programs) == [QMT_PROGRAMS[1]]


QmtFinding = namedtuple('QmtFinding', 'kind message hint')
# kind, whether it is that, what it is, what to do. The first that holds counts; None: as the facts have it themselves.
_QMT_FINDINGS = (
    ('path', lambda facts: facts.reason in _QMT_PATH_FAULTS, None, None),
    ('ok', lambda facts: not facts.down and facts.data == 'connected', 'QMT 已连接', ''),
    ('switched_off', lambda facts: facts.refused and facts.unserved,
     'MiniQMT（程序接口）已被券商停用：终端在运行，端口 58600 对每个问题只回答 200005，交易连接返回 -1',
     '重启、换路径、换会话号都没有用。向券商确认这个账户是否还有 MiniQMT/极简模式的权限；没有就要申请，或换仍提供它的券商'),
    ('not_running', lambda facts: facts.refused and facts.programs == [] and facts.port != 'open',
     'QMT 没有运行：没有 XtMiniQmt.exe，也没有 XtItClient.exe', '启动 QMT，以极简模式（MiniQMT）或勾选独立交易登录'),
    ('frozen', lambda facts: facts.down and facts.reason == 'hung', 'QMT 在运行但没有回应',
     '看 QMT 窗口是不是卡死、有没有等人点的对话框；卡死就在任务管理器里结束它再启动，服务端不必重启'),
    ('account', lambda facts: facts.down and facts.reason in ('subscribe', 'account'),
     'QMT 连上了，但这个资金账号没有登录好', '在 QMT 里登录这个资金账号；核对资金账号和账户类型（stock、credit）'),
    ('full_only', lambda facts: facts.refused and facts.only_full and facts.port != 'open',
     '只有完整版 QMT（XtItClient.exe）在运行，没有极简模式的服务',
     '退出后在登录窗口勾选独立交易（极简模式）再登录；登录窗口里没有这个选项，就是券商没有开通或已停用 MiniQMT，问券商'),
    ('not_logged_in', lambda facts: facts.refused and facts.programs and facts.port == 'closed',
     'QMT 已启动但没有登录：行情服务（端口 58610）还没有开', '在 QMT 的登录窗口里登录；登录后等几秒会自动连上'),
    ('not_ready', lambda facts: facts.refused and facts.programs is None and facts.port == 'closed',
     'QMT 没有运行或没有登录：行情服务（端口 58610）没有开', '启动 QMT，以极简模式（MiniQMT）或勾选独立交易登录'),
    ('no_permission', lambda facts: facts.refused and facts.may_order is False,
     'QMT 已登录，但 userdata 里没有 up_queue_xtquant：这个账户没有程序下单的权限，或路径是另一套 QMT 的',
     '核对 QMT_DATA_PATH 是不是正在登录的这套 QMT 的 userdata_mini；是的话请券商开通 MiniQMT 的函数下单'),
    ('session_taken', lambda facts: facts.down and facts.reason == 'connect' and facts.port == 'open',
     'QMT 已登录、路径可用，连接仍返回 -1：会话号被另一个程序占着，或刚刚断开不到 3 秒',
     '关掉连着同一个 userdata 的其它程序（另一个服务端、别的策略）；关不掉就用 QMT_SESSION_ID 换一个固定的整数'),
    ('data', lambda facts: not facts.down, None, None),
    ('nothing', lambda facts: not facts.state, '没有发现 QMT 的问题', ''),
    ('unclear', lambda facts: True, None, None))


def qmt_diagnosis(facts):
    """QmtFacts -> QmtFinding, in words for the trader. A pure function."""
    kind, _, message, hint = next(row for row in _QMT_FINDINGS if row[1](facts))
    if message is not None:
        return QmtFinding(kind, message, hint)
    if kind == 'data':
        told = '端口只回答 200005' if facts.unserved else facts.data_message or facts.data
        return QmtFinding(kind, '交易已连接，行情没有：%s' % told, '在 QMT 里看行情是否已连接；重新登录 QMT')
    return QmtFinding(kind, facts.message or 'QMT 没有连上', facts.hint or '查看服务端日志；确认 QMT 已登录')


def qmt_facts(health, key):
    """Facts about an account out of the `qmt` of a server's health; an older server tells less."""
    account, data, machine = health['accounts'][key], health.get('data') or {}, health.get('machine') or {}
    served = data.get('state') == 'connected' and len(data.get('unserved') or ()) > 1
    return QmtFacts(
        state=account.get('state') or 'unknown', reason=account.get('reason') or '',
        message=account.get('last_error') or '', hint=account.get('hint') or '', may_order=account.get('may_order'),
        data='no_service' if served else data.get('state') or '', data_message=data.get('last_error') or '',
        **{name: machine.get(name) for name in ('programs', 'port', 'full_port')})


def qmt_local_facts(spec, machine):
    """Facts about an account of this machine, without a server: whoever connects would take the server's session."""
    fault = qmt_path_fault(spec.data_path)
    machine.look()
    facts = {name: value for name, value in machine.facts().items() if name != 'checked'}
    if fault is not None:
        facts.update(reason=fault.kind, message=fault.message, hint=fault.hint)
    return QmtFacts(may_order=qmt_may_order(spec.data_path), **facts)


def qmt_may_order(path):
    """Whether the terminal of this folder takes orders from programs; None where there is no such folder."""
    return os.path.exists(os.path.join(path, 'up_queue_xtquant')) if os.path.isdir(path) else None


# -- downloads ------------------------------------------------------------------------------------------------------
class _QmtDownloads(CallGuard):
    """Downloads, one at a time, each as long as it makes progress.

    They have a worker of their own, so that quotes go on meanwhile. That is safe although xtdata is called by two
    threads then: what races in xtdata is making its client, and that exists by now, made under the other guard;
    the client itself takes calls from any thread.
    """

    WAITERS = 4  # callers kept waiting for their turn or their data; more would use up the server's workers

    def __init__(self, stall_s):
        super().__init__('qmt-download', 1)
        self.stall_s, self._moves, self._inside = stall_s, 0, 0

    @property
    def active(self):
        return self._inside

    def progress(self, figures=None):
        self._moves += 1

    def fetch(self, function, *args):
        """Raises VendorTimeout if nothing moved for stall_s seconds, QmtUnavailable if it cannot begin."""
        job = _GuardedCall(function, args)
        self._admit()
        try:
            self._enter(job)
            self._await(job)
        finally:
            with self._changed:
                self._inside -= 1
            self.progress()
        return job.outcome()

    def _admit(self):
        with self._changed:
            if self._hung:
                raise QmtUnavailable('上一次下载卡住了，还没有结束', '检查 QMT 的网络和行情站点', retry_after_s=10)
            if self._inside >= self.WAITERS:
                raise QmtUnavailable('正在下载别的历史数据', '稍后再试，或先用 data.ensure_cache 一次下载', retry_after_s=10)
            self._inside += 1

    def _await(self, job):
        seen = self._moves
        while not wait_for_event(job.done, self.stall_s):
            if self._moves == seen:
                self._give_up(job)
                return
            seen = self._moves


# days: trade days that must be there, in ms, ascending, never empty. until: the last label or day wanted.
# latest: whether the last of the days may have been running still when its bars were stored.
_QmtNeed = namedtuple('_QmtNeed', 'code period days until latest')
# What is certain of a code and period today: all from first to until, but for the days that the source lacks.
_QmtKnown = namedtuple('_QmtKnown', 'today first until absent')


class _QmtStore:
    """The terminal's local K lines: reads them, knows what is certainly there, downloads the rest.

    Short history is never answered silently: what cannot be had is an error. A day counts as there by its bars, but
    the latest one is downloaded once a day in any case: its bars may date from the middle of the day.
    A download can fail without a word; the terminal then fills with rows like those of a suspension. Such days are
    taken for not there where something else proves that the security was traded on them.
    quote(code) -> Tick: what the security does today.  ex_days(code) -> days, in ms, that change the previous close.
    """

    BATCH, QUIET_MINUTES = 50, 30

    def __init__(self, link, clock, quote, ex_days, stall_s):
        self.link, self.clock, self.downloads = link, clock, _QmtDownloads(stall_s)
        self._quote, self._ex_days = quote, ex_days
        self._known, self._lock, self._once = {}, threading.Lock(), {}

    def read(self, code, period, first, last, days=None):
        """List of _QmtBar, minutes with JoinQuant's labels; only of these days, if given."""
        start, end = _qmt_bounds(period, first, last)
        symbol = qmt_code(code)
        frames = self.link.call(self.link.xtdata.get_market_data_ex, [], [symbol], period, start, end, -1, 'none',
                                False, deadline_s=3 * self.link.deadline_s)
        columns = _qmt_columns((frames or {}).get(symbol))
        bars = _qmt_bars(code, columns if days is None else _qmt_rows_of(columns, days))
        return bars if period == '1d' else _qmt_minutes(bars)

    def require(self, need, download):
        """Returns once the need can be answered from what is local. Raises DataUnavailable or QmtUnavailable."""
        if not self.is_known(need):
            lacking = self.lacking(need, certain=download)
            if lacking and not download:
                raise self._too_short(need, lacking, '打开 %s，或在 QMT 里下载这段数据' % ways('auto_download'))
            if lacking:
                self._download_or_check(need, lacking[0])
            elif download:
                self._remember(need)
        self._refuse_absent(need)

    def is_known(self, need):
        known = self._entry(need)
        return known is not None and known.first <= need.days[0] and need.until <= known.until

    def lacking(self, need, certain):
        """Days that are not there. certain: nor those of which only a look at the source can tell that they are whole.

        Otherwise day bars may begin late: whether the answer needs what is before them is judged with the answer.
        """
        there = self._days_there(need, certain)
        days = [day for day in need.days if day not in there]
        if days and need.period == '1m':
            days = self._traded(need.code, days)
        if certain and need.latest and need.days[-1] not in days:
            days.append(need.days[-1])
        return days

    def download(self, needs, first, progress=None):
        """One batch of the same period. Raises VendorTimeout, QmtUnavailable or what the vendor raises."""
        start, end = _qmt_bounds(needs[0].period, first, max(need.until for need in needs))
        symbols, xtdata = [qmt_code(need.code) for need in needs], self.link.xtdata
        self.link.call(xtdata.get_client)  # made here if it was lost, never in the download's thread

        def report(figures=None):
            self.downloads.progress()
            if progress is not None:
                progress(figures)

        if hasattr(xtdata, 'download_history_data2'):
            self._fetch(xtdata.download_history_data2, symbols, needs[0].period, start, end, report)
        else:  # versions before 2021
            for symbol in symbols:
                self._fetch(xtdata.download_history_data, symbol, needs[0].period, start, end)
                report()

    def settle(self, need):
        """After a download: what is not there now, the source does not have. Raises DataUnavailable for padding."""
        bars, absent = self.read(need.code, need.period, need.days[0], need.days[-1]), frozenset()
        padded = self._padded(need, bars)
        if padded:
            raise self._made_up(need, sorted(padded))
        if need.period == '1m':
            there = {_qmt_day_of(bar.time) for bar in bars}
            days = [day for day in need.days if day not in there]
            absent = frozenset(self._traded(need.code, days) if days else ())
        self._remember(need, absent)

    # -- padding ----------------------------------------------------------------------------------------------
    @staticmethod
    def _made_up(need, days):
        what = '日线' if need.period == '1d' else '分钟线'
        return DataUnavailable('%s 的%s没有下载到：%s 到 %s 的 %d 个交易日 QMT 给的是没有成交的行，而它那几天在交易' % (
            need.code, what, iso_ms(days[0])[:10], iso_ms(days[-1])[:10], len(days)),
            '在 QMT 的数据管理里补充这段数据；补不到时检查行情站点的登录和权限')

    def _padded(self, need, bars):
        """Days of the need whose rows, or whose lack of rows, is proven to be no suspension."""
        if not bars:
            return set()
        return self._padded_days(need, bars) if need.period == '1d' else self._padded_minutes(need, bars)

    def _padded_days(self, need, bars):
        """The quiet end of the newest days: the quote was traded on one of them, or comes from another close.

        A security that comes back from a suspension starts from the close that it stood at; where a dividend lies
        between, its close proves nothing.
        """
        real = [bar.time for bar in bars if not _qmt_is_idle(bar)]
        quiet = [day for day in need.days if not real or day > real[-1]]
        tick = self._traded_quote(need.code) if quiet and need.latest else None
        if tick is None or tick.paused:
            return set()
        day = to_ms(tick.dt.date())
        if abs(tick.pre_close - bars[-1].close) > 1e-6 and not self._is_ex(need.code, quiet[0], day):
            return set(quiet)
        return {day}.intersection(quiet)

    def _is_ex(self, code, first, last):
        return any(first <= day <= last for day in self._ex_days(code))

    def _traded_quote(self, code):
        """The quote, if anything was traded on its day, else None."""
        try:
            tick = self._quote(code)
        except DataUnavailable:
            return None
        return tick if tick.dt is not None and tick.volume > 0 and tick.pre_close else None

    def _padded_minutes(self, need, bars):
        """Days that end in quiet minutes, and in whose minutes not half of the money of their day changed hands."""
        days = {}
        for bar in bars:
            days.setdefault(_qmt_day_of(bar.time), []).append(bar)
        quiet = {day: sum(bar.money for bar in rows) for day, rows in days.items()
                 if day in need.days and all(map(_qmt_is_idle, rows[-self.QUIET_MINUTES:]))}
        money = self._money_of_days(need.code, sorted(quiet)) if quiet else {}
        return {day for day, moved in quiet.items() if 2 * moved < money.get(day, 0)}

    def _money_of_days(self, code, days):
        """{day: yuan} as the day bars say, and of the quote's day as the quote does."""
        money = {_qmt_day_of(bar.time): bar.money for bar in self.read(code, '1d', days[0], days[-1])}
        if days[-1] == to_ms(self.clock.now().date()):
            tick = self._traded_quote(code)
            money[days[-1]] = tick.money if tick is not None and to_ms(tick.dt.date()) == days[-1] else 0
        return money

    def _doubtful(self, need, bars):
        """Quiet days after which trade went on from another close, without a dividend: worth another download."""
        found, quiet, before = set(), [], None
        for bar in bars:
            if _qmt_is_idle(bar):
                quiet.append(_qmt_day_of(bar.time))
            else:
                if quiet and abs(bar.pre_close - before.close) > 1e-6:
                    found.update([] if self._is_ex(need.code, quiet[0], bar.time) else quiet)
                quiet = []
            before = bar
        return found

    def fetch_once(self, name, function):
        """A download of tables (sectors, index weights), at most once a day."""
        today = self.clock.now().date()
        if self._once.get(name) == today:
            return
        self.link.call(self.link.xtdata.get_client)
        self._fetch(function)
        self._once[name] = today

    def heal(self):
        """A download that hangs ends with its connection; the keeper makes a new one and restores what was in it."""
        if self.downloads.hung:
            self.link.reset('历史数据下载没有进展')

    # -- steps ------------------------------------------------------------------------------------------------
    def _download_or_check(self, need, first):
        """A failed download is no harm where everything is there all the same."""
        try:
            self.download([need], first)
        except BulletError as error:
            self._check_local(need, error)
        else:
            self.settle(need)
        finally:
            self.heal()

    def _check_local(self, need, error):
        lacking = self.lacking(need, certain=False)
        if lacking:
            raise type(error)('%s；下载没有成功：%s' % (self._too_short(need, lacking).message, error.message), error.hint,
                              **error.details)
        LOG.warning('%s 的 %s 没有更新（%s），用本机已有的数据', need.code, need.period, printable(error.message))

    def _fetch(self, function, *args):
        try:
            return self.downloads.fetch(function, *args)
        except VendorTimeout:
            raise self.link.unavailable('历史数据下载 %g 秒没有进展，已放弃' % self.downloads.stall_s)
        except BulletError:
            raise
        except Exception as error:
            message = '历史数据下载失败：%s' % (printable(error) or type(error).__name__)
            self.link.doubt(message)
            raise self.link.unavailable(message)

    def absent_days(self, need):
        """Those of its days that the source was found to lack."""
        known = self._entry(need)
        return sorted(set(need.days) & known.absent) if known else []

    def _refuse_absent(self, need):
        """They may have come meanwhile: somebody can download them in the terminal itself."""
        absent = self.absent_days(need)
        if absent:
            absent = sorted(set(absent).intersection(self.lacking(need, certain=False)))
            if absent:
                raise self._too_short(need, absent, '行情源没有这些天的数据：在 QMT 的数据管理里补充，或缩短时间范围')
            self._remember(need)

    @staticmethod
    def _too_short(need, days, hint=''):
        what = '日线' if need.period == '1d' else '分钟线'
        return DataUnavailable('%s 的%s不完整：%s 到 %s 之间缺 %d 个交易日' % (
            need.code, what, iso_ms(days[0])[:10], iso_ms(days[-1])[:10], len(days)), hint)

    def _days_there(self, need, certain):
        bars = self.read(need.code, need.period, need.days[0], need.days[-1])
        if need.period == '1d':
            return self._day_bars_there(need, bars, certain)
        spans = {}
        for bar in bars:
            spans.setdefault(_qmt_day_of(bar.time), [bar.time, bar.time])[1] = bar.time
        whole = {day for day, span in spans.items() if self._is_whole(day, span, need.until)}
        return whole - self._padded(need, bars)

    def _day_bars_there(self, need, bars, certain):
        doubtful = self._doubtful(need, bars) if certain else set()
        return self._seen_days(need, bars, certain) - doubtful - self._padded(need, bars)

    def _seen_days(self, need, bars, certain):
        """Days with a bar, and those of a suspension: the bar after it starts from the close of the one before."""
        there = {_qmt_day_of(bar.time) for bar in bars}
        for before, after in zip(bars, bars[1:]):
            if abs(before.close - after.pre_close) < 1e-6:
                there.update(self._between(need.days, before.time, after.time))
        if bars and not certain:
            there.update(self._between(need.days, -1, bars[0].time))
            if self._ask_quote(need.code, lambda tick: tick.paused):
                there.update(self._between(need.days, bars[-1].time, need.until + 1))
        return there

    @staticmethod
    def _between(days, after, before):
        return days[bisect.bisect_right(days, after):bisect.bisect_left(days, before)]

    @staticmethod
    def _is_whole(day, span, until):
        """From 09:31 to 15:00; the running day to the minute before the wanted one, whose bar may be on its way."""
        last = min(day + AFTERNOON_CLOSE * 60000, until - 60000)
        return span[0] <= day + (MORNING_OPEN + 1) * 60000 and span[1] >= last

    def _traded(self, code, days):
        """Those of the days on which the security was traded, as its day bars say, which are complete by now."""
        traded = {_qmt_day_of(bar.time) for bar in self.read(code, '1d', days[0], days[-1]) if not bar.paused}
        today = self.clock.now().date()
        if days[-1] == to_ms(today) and self._ask_quote(code, lambda tick: tick.volume > 0 and tick.dt.date() == today):
            traded.add(days[-1])
        return [day for day in days if day in traded]

    def _ask_quote(self, code, question):
        try:
            tick = self._quote(code)
        except DataUnavailable:
            return False
        return tick.dt is not None and question(tick)

    def _entry(self, need):
        with self._lock:
            known = self._known.get((need.code, need.period))
        return known if known and known.today == self.clock.now().date() else None

    def _remember(self, need, absent=frozenset()):
        """Joins what was known today, where the two overlap."""
        first, until, known = need.days[0], need.until, self._entry(need)
        if known and first <= known.until and known.first <= until:
            first, until = min(first, known.first), max(until, known.until)
            absent |= known.absent - set(need.days)
        with self._lock:
            self._known[(need.code, need.period)] = _QmtKnown(self.clock.now().date(), first, until, absent)


# -- pushed quotes --------------------------------------------------------------------------------------------------
class _QmtTickWatch:
    """Tells which securities are pushed no more although they are traded: their snapshots move, their ticks do not.

    note(symbol, record): a tick was pushed.  dried(records): symbols of these snapshots whose ticks lag BEHIND_S or
    more, in the market's time or in ours, and have since an earlier look, so that a tick on its way is no alarm. Each
    alarm that brought no tick doubles the lag that makes the next.
    """

    BEHIND_S, PATIENCE_S = 6.0, 300.0

    def __init__(self, clock):
        self._clock, self._lock = clock, threading.Lock()
        self._pushed, self._ahead, self._allowed_s, self._arrived = {}, {}, {}, set()
        self._turn = ''  # the symbol whose turn was last

    def note(self, symbol, record):
        with self._lock:
            self._pushed[symbol] = self._mark(record)
            self._arrived.add(symbol)
            self._ahead.pop(symbol, None)
            self._allowed_s.pop(symbol, None)

    def dried(self, records):
        """(those of the symbols that are pushed no more, how many of them were pushed since the last look)."""
        with self._lock:
            arrived, self._arrived = self._arrived, set()
            dry = [symbol for symbol, record in records.items() if self._is_dry(symbol, self._mark(record))]
            return dry, len(arrived.intersection(records))

    def sample(self, symbols, busy, more):
        """The busiest, what lags by now, and the next in turn: each symbol is looked at within a bounded time."""
        with self._lock:
            busiest = heapq.nlargest(busy, symbols, key=lambda symbol: self._pushed.get(symbol, (0, 0)))
            behind = [symbol for symbol in self._ahead if symbol in symbols][:more]
            return sorted(set(busiest + behind + self._in_turn(sorted(symbols), more)))

    def _in_turn(self, symbols, count):
        first = bisect.bisect_right(symbols, self._turn)
        chosen = (symbols[first:] + symbols[:first])[:count]
        self._turn = chosen[-1] if chosen else ''
        return chosen

    def pushed(self):
        with self._lock:
            return list(self._pushed)

    def rest(self):
        """Nothing is traded now: what was seen ahead of the ticks says nothing later."""
        with self._lock:
            self._ahead.clear()

    def _is_dry(self, symbol, shown):
        known = self._pushed.setdefault(symbol, shown)
        if shown <= known:
            return False
        now = time.monotonic(), self._clock.monotonic()
        seen = self._ahead.setdefault(symbol, now)
        lag_s = max([(shown[0] - known[0]) / 1000.0] + [after - before for before, after in zip(seen, now)])
        allowed_s = self._allowed_s.get(symbol, self.BEHIND_S)
        if seen is now or lag_s < allowed_s:
            return False
        self._pushed[symbol] = shown
        del self._ahead[symbol]
        self._allowed_s[symbol] = min(2 * allowed_s, self.PATIENCE_S)
        return True

    @staticmethod
    def _mark(record):
        return _qmt_finite(record.get('time')), _qmt_finite(record.get('volume'))


class _QmtFeed:
    """Subscriptions at the terminal and the thread `qmt-ticks` that hands on what is pushed.

    Up to SINGLES codes have a subscription each; beyond that, and for whole markets, one covers them all.
    deliver(code, record): called in that thread for codes that are wanted. A newer record of a code replaces one that
    was not handed on yet.  is_open(): whether anything is traded now.
    A terminal can stop pushing without a word: look() notices it, and whoever subscribes again is subscribed anew.
    """

    SINGLES, LOOK_AT, IN_TURN = 50, 50, 200
    LONE_S = 60.0  # one security that dries up alone renews what covers all of them at most as often as that
    LIQUID = ('000001.SH', '510300.SH', '600519.SH', '399001.SZ', '159915.SZ', '000001.SZ')  # until a market pushes

    def __init__(self, link, deliver, is_open, look_s):
        self.link, self._deliver, self._is_open, self._look_s = link, deliver, is_open, look_s
        self._watch, self._looked_s = _QmtTickWatch(link.clock), -math.inf
        self._renewed, self._renewed_at, self._lone_s = 0, None, -math.inf
        self._change = threading.Lock()  # one change of subscriptions at a time
        self._wanted, self._singles, self._whole, self._client = frozenset(), {}, None, None
        self._arrived, self._inbox, self._closed = threading.Condition(), OrderedDict(), False
        self._thread = None

    def count(self):
        return len(self._wanted)

    def health(self):
        last = self._renewed_at
        return {'renewed': self._renewed, 'last_renewed': last and last.isoformat(sep=' ', timespec='seconds')}

    def add(self, codes):
        """All of them or none. What is there already is subscribed anew. Raises QmtUnavailable."""
        with self._change:
            before = self._wanted
            self._wanted = before | set(codes)
            try:
                self._let_go(before.intersection(codes))
                self._apply()
            except BaseException:
                self._wanted = before
                self._drop_singles(set(self._singles) - before)
                raise
            self._start()

    def remove(self, codes):
        """What cannot be undone at the terminal now is undone with the connection."""
        with self._change:
            self._wanted -= set(codes)
            try:
                self._apply()
            except BulletError as error:
                LOG.info('退订没有送达 QMT：%s', printable(error))

    def restore(self, client):
        """Subscribes anew at a new client, which knows of nothing."""
        with self._change:
            if client is not self._client:
                self._client, self._singles, self._whole = client, {}, None
            self._apply()

    def look(self):
        """In the link's thread: whether what was asked for still comes. One question at most, and not at every turn."""
        if not self._wanted or time.monotonic() - self._looked_s < self._look_s:
            return
        self._looked_s = time.monotonic()
        dry = self._dry_codes()
        with self._change:
            if dry:
                self._let_go(dry)
                self._count_renewal(dry)
            self._apply()  # also what an earlier attempt had to leave open

    def _dry_codes(self):
        if not self._is_open():
            self._watch.rest()
            return []
        records = self.link.call(self.link.xtdata.get_full_tick, self._sample()) or {}
        dry, arrived = self._watch.dried({symbol: record for symbol, record in records.items() if record})
        if dry and self._whole is not None and len(dry) <= arrived and not self._may_renew_alone():
            return []  # one subscription covers them: it lives
        return [normalize_code(symbol) for symbol in dry]

    def _may_renew_alone(self):
        now_s = self.link.clock.monotonic()
        may = now_s - self._lone_s >= self.LONE_S
        self._lone_s = now_s if may else self._lone_s
        return may

    def _sample(self):
        codes = {qmt_code(code) for code in self._wanted if code not in MARKETS}
        if not self._wanted.isdisjoint(MARKETS):
            codes.update(self.LIQUID, self._watch.pushed())
        return self._watch.sample(codes, self.LOOK_AT, self.IN_TURN)

    def _count_renewal(self, codes):
        self._renewed, self._renewed_at = self._renewed + 1, self.link.clock.now()
        LOG.warning('QMT 不再推送 %s 的行情（快照在变，推送没有），已重新订阅', printable('、'.join(sorted(codes)[:5])))

    def close(self):
        if self.link.connected:
            self.remove(self._wanted)
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        if self._thread is not None:
            wait_for_thread(self._thread)

    # -- subscriptions ----------------------------------------------------------------------------------------
    def _apply(self):
        """Brings what is subscribed in line with what is wanted; the new before the old, so that nothing is missed."""
        if len(self._wanted) > self.SINGLES or not self._wanted.isdisjoint(MARKETS):
            self._cover()
            self._drop_singles(list(self._singles))
            return
        for code in sorted(self._wanted - set(self._singles)):
            self._singles[code] = self._subscribe(self.link.xtdata.subscribe_quote, qmt_code(code), 'tick', '', '', 0,
                                                  self._receive)
        self._drop_singles(set(self._singles) - self._wanted)
        self._replace_whole(None)

    def _let_go(self, codes):
        """Undoes the subscriptions of these codes, whatever the terminal says to it: _apply asks for them anew."""
        self._drop_singles(set(self._singles).intersection(codes))
        if codes:
            self._replace_whole(None)

    def _cover(self):
        if self._whole is None or self._whole[1] != self._wanted:
            symbols = [qmt_code(code) for code in sorted(self._wanted) if code in MARKETS or not self._covers(code)]
            seq = self._subscribe(self.link.xtdata.subscribe_whole_quote, symbols, self._receive)
            self._replace_whole((seq, self._wanted))

    def _covers(self, code):
        return market_of(code) in self._wanted

    def _replace_whole(self, new):
        old, self._whole = self._whole, new
        if old is not None:
            self._drop(old[0])

    def _subscribe(self, function, *args):
        seq = self.link.call(function, *args)
        if not isinstance(seq, int) or seq < 0:
            raise self.link.unavailable('QMT 没有接受行情订阅（%s）' % brief(args[0]))
        return seq

    def _drop_singles(self, codes):
        for code in codes:
            self._drop(self._singles.pop(code))

    def _drop(self, seq):
        try:
            self.link.call(self.link.xtdata.unsubscribe_quote, seq)
        except BulletError as error:
            LOG.info('退订没有送达 QMT：%s', printable(error))

    # -- what is pushed -----------------------------------------------------------------------------------------
    def _receive(self, datas):
        """The vendor's thread: {code: [records]} of one security, {code: record} of the whole market."""
        with self._arrived:
            for symbol, records in datas.items():
                record = records[-1] if isinstance(records, (list, tuple)) and records else records
                if isinstance(record, dict):
                    self._inbox[symbol] = record
                    self._watch.note(symbol, record)
            self._arrived.notify()

    def _start(self):
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name='qmt-ticks', daemon=True)
            self._thread.start()

    def _run(self):
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._inbox or self._closed)
                if self._closed:
                    return
                batch, self._inbox = self._inbox, OrderedDict()
            for symbol, record in batch.items():
                self._hand_on(symbol, record)

    def _hand_on(self, symbol, record):
        """Whatever fails for one security must not silence the others."""
        try:
            code = normalize_code(symbol)
            if (code in self._wanted or self._covers(code)) and not self._closed:
                self._deliver(code, record)
        except Exception:
            LOG.exception('行情回调失败：%s', printable(symbol))


# -- the adapter ----------------------------------------------------------------------------------------------------
class QmtData(DataAdapter):
    """Market data of a QMT terminal. start() begins to connect and returns at once; close() ends every thread.

    auto_download: history that is missing locally is fetched first. call_timeout_s: for one call of xtdata.
    quote_max_age_s: a quote older than this in trading hours is stale. stall_s: a download without progress for this
    long is given up. probe_s, backoff_s: how often the connection is looked at, and the pauses between attempts.
    look_s: how often at most the pushed ticks are compared with snapshots. listening: as of _QmtDataLink.
    """

    DETAIL_S, CALENDAR_S, CHUNK = 30.0, 60.0, 200
    PUSH_DETAIL_S = 300.0  # of pushed ticks: a whole market's would be hundreds of questions a second

    def __init__(self, vendor, clock, auto_download=True, call_timeout_s=10.0, quote_max_age_s=15.0, stall_s=60.0,
                 probe_s=3.0, backoff_s=(1.0, 2.0, 5.0, 10.0, 30.0), look_s=2.5, listening=lambda: True):
        super().__init__(clock)
        self.auto_download, self.quote_max_age_s = auto_download, quote_max_age_s
        self._xtdata = vendor.xtdata
        self._link = _QmtDataLink(vendor.xtdata, clock, call_timeout_s, probe_s, backoff_s, listening)
        self._store = _QmtStore(self._link, clock, self.quote, self._ex_days, stall_s)
        self._feed = _QmtFeed(self._link, self._push, lambda: self._is_open(clock.now()), look_s)
        self._link.on_connect, self._link.on_turn = self._feed.restore, self._feed.look
        self._lock = threading.Lock()  # guards the caches below; never held while anything blocks
        self._details, self._units, self._calendar_days, self._calendar_until = {}, {}, None, None

    def start(self):
        self._link.start()
        return self

    def open_client(self, address):
        """Another client of the vendor's, made where xtdata's is: two that are made at a time race."""
        return self._link.aside(_qmt_open_client, address)

    def close(self):
        """The connection is given up last: that also ends a download that is under way."""
        self._feed.close()
        self._link.close()
        self._link.disconnect()
        self._store.downloads.close()

    def health(self):
        downloads = self._store.downloads
        return dict(self._link.health(), subscriptions=self._feed.count(), ticks=self._feed.health(),
                    downloads={'active': downloads.active, 'hung': downloads.hung})

    # -- calendar ---------------------------------------------------------------------------------------------
    def _calendar(self):
        today, now_s = self.clock.now().date(), self.clock.monotonic()
        with self._lock:
            known, until = self._calendar_days, self._calendar_until
        if known is None or known[0] != today or (until is not None and now_s >= until):
            known, settled = self._ask_calendar(today)
            with self._lock:
                self._calendar_days, self._calendar_until = known, None if settled else now_s + self.CALENDAR_S
        return known[1]

    def _ask_calendar(self, today):
        """((day asked, trade days up to it), whether that is certain for the rest of the day)."""
        moments = self._link.call(self._xtdata.get_trading_dates, 'SH')
        days = sorted({_qmt_day_of(_qmt_wall_ms(moment)) for moment in moments or ()})
        days = days[:bisect.bisect_right(days, to_ms(today))]
        if not days:
            raise DataUnavailable('QMT 没有交易日历', '确认 QMT 的行情已连接，稍后再试')
        opens = not surely_closed(today) and (days[-1] == to_ms(today) or self._opens(today))
        if opens and days[-1] != to_ms(today):
            days.append(to_ms(today))
        return (today, days), opens is not None

    def _opens(self, today):
        """Whether the exchange's holidays make today a trade day; None if the source cannot tell."""
        text = today.strftime('%Y%m%d')
        try:
            listed = self._link.call(self._xtdata.get_trading_calendar, 'SH', text)
        except BulletError as error:
            LOG.info('QMT 没有今天的交易日历：%s', printable(error))
            return None
        return text in listed if listed and max(listed) >= text else None

    def _is_open(self, moment):
        """Continuous trading now, as far as is known without asking anybody."""
        with self._lock:
            days = self._calendar_days
        known = days is not None and days[0] == moment.date()
        trades = days[1][-1] == to_ms(moment.date()) if known else not surely_closed(moment.date())
        return trades and in_session(moment)

    # -- securities -------------------------------------------------------------------------------------------
    def _detail(self, code, max_age_s=None):
        """What the terminal knows of a security today; None: any age. Raises SecurityNotFound."""
        today, now_s = self.clock.now().date(), self.clock.monotonic()
        with self._lock:
            day, asked_s, detail = self._details.get(code, (None, 0.0, None))
        if day != today or (max_age_s is not None and now_s - asked_s > max_age_s):
            detail = self._link.call(self._xtdata.get_instrument_detail, qmt_code(code))
            if not detail:
                raise SecurityNotFound('QMT 里没有证券 %s' % code, '核对代码和交易所后缀；新登录的终端要等合约数据到齐')
            self._keep_detail(code, detail)
        return detail

    def _keep_detail(self, code, detail):
        with self._lock:
            self._details[code] = (self.clock.now().date(), self.clock.monotonic(), detail)

    def _info(self, code):
        detail, kind = self._detail(code), instrument(code).kind
        name = str(detail.get('InstrumentName') or '')
        return {'code': code, 'display_name': name, 'name': name, 'type': 'bond' if kind == 'repo' else kind,
                'subtype': None, 'start_date': _qmt_date(detail.get('OpenDate'), _QMT_LONG_AGO),
                'end_date': _qmt_date(detail.get('ExpireDate'), _QMT_FOREVER), 'parent': None}

    def _codes(self):
        codes = self._listed()
        if not codes and self.auto_download and hasattr(self._xtdata, 'download_sector_data'):
            self._store.fetch_once('sectors', self._xtdata.download_sector_data)
            codes = self._listed()
        if not codes:
            raise DataUnavailable('QMT 没有板块数据', '在 QMT 里下载板块数据，或打开 ' + ways('auto_download'))
        self._ask_details(codes)
        return [code for code in codes if code in self._details]

    def _listed(self):
        codes = OrderedDict()
        for sector in _QMT_SECTORS:
            codes.update((code, None) for code in self._sector(sector))
        return list(codes)

    def _sector(self, name, *moment):
        """Canonical codes of a sector; [] for one that does not exist."""
        symbols = self._link.call(self._xtdata.get_stock_list_in_sector, name, *moment) or ()
        return [normalize_code(symbol) for symbol in symbols if _CODE.fullmatch(symbol)
                and symbol.rpartition('.')[2].upper() in _SUFFIXES]

    def _ask_details(self, codes):
        """Thousands of them, a few hundred in a call."""
        today = self.clock.now().date()
        unknown = [code for code in codes if self._details.get(code, (None,))[0] != today]
        for i in range(0, len(unknown), self.CHUNK):
            details = self._link.call(self._details_of, unknown[i:i + self.CHUNK], deadline_s=3 * self._link.deadline_s)
            for code, detail in details:
                self._keep_detail(code, detail)

    def _details_of(self, codes):
        asked = [(code, self._xtdata.get_instrument_detail(qmt_code(code))) for code in codes]
        return [(code, detail) for code, detail in asked if detail]

    def _members(self, code, day):
        today = self.clock.now().date()
        if day is not None and day < today:
            moment = epoch_seconds(datetime(day.year, day.month, day.day)) * 1000
            members = self._sector(self._info(code)['display_name'], moment)
            when = '%s 的' % day
        else:
            members, when = self._members_now(code), ''
        if not members:
            raise DataUnavailable('QMT 没有指数 %s %s成份股' % (code, when), '在 QMT 里下载板块和指数权重数据；历史成份要有历史板块数据')
        return sorted(members)

    def _members_now(self, code):
        name, symbol = self._info(code)['display_name'], qmt_code(code)
        weights = self._link.call(self._xtdata.get_index_weight, symbol)
        if not weights and self.auto_download and hasattr(self._xtdata, 'download_index_weight'):
            self._store.fetch_once('weights', self._xtdata.download_index_weight)
            weights = self._link.call(self._xtdata.get_index_weight, symbol)
        return [normalize_code(item) for item in weights] if weights else self._sector(name)

    # -- bars -------------------------------------------------------------------------------------------------
    def _daily(self, code, first, last):
        info = self._info(code)
        first, last = self._within(info, first, last)
        days = self.trade_days(first, last)
        if not days:
            return empty_columns(DAILY_COLUMNS)
        need = self._daily_need(code, days)
        if need is not None:
            self._store.require(need, self.auto_download)
        bars = self._store.read(code, '1d', first, last, set(days))
        return _qmt_daily(code, self._with_running_day(code, bars, days), _qmt_is_st(info['display_name']),
                          info['start_date'])

    def _day_runs(self, code, info, query, start, end, days_a_bar, spare=0):
        """Beyond the contract's: refuses an answer that would need bars from before the source's first."""
        bars, runs = super()._day_runs(code, info, query, start, end, days_a_bar, spare)
        if info['start_date'] > _QMT_LONG_AGO and self._begins_late(info, bars, end):
            first, length = bars['time'][0] if bars['time'] else math.inf, sum(map(run_length, runs))
            short = query.count is not None and query.skip_paused and length < query.count * days_a_bar
            needed = last_of_runs(runs, length - spare) if length > spare else []
            gaps = [day for days, stop, _ in needed if stop is None for day in days]
            if short or any(to_ms(info['start_date']) <= day < first for day in gaps):
                raise DataUnavailable('%s 的日线不完整：%s 上市，行情源的日线从 %s 开始' % (
                    code, info['start_date'], iso_ms(first)[:10] if bars['time'] else '无'),
                    '缩短时间范围，或在 QMT 里补充数据')
        return bars, runs

    def _begins_late(self, info, bars, end):
        listed = self.trade_days(*self._within(info, -1 << 60, end))
        return bool(listed) and (not bars['time'] or bars['time'][0] > listed[0])

    def _within(self, info, first, last):
        """Not before the listing, not after the end, not in the future."""
        today = to_ms(self.clock.now().date())
        return max(first, to_ms(info['start_date'])), min(last, to_ms(info['end_date']), today)

    def _daily_need(self, code, days):
        """The days that are over; the running one comes from the quote."""
        now = self.clock.now()
        today = to_ms(now.date())
        final = days if minute_of_day(now) >= _QMT_DAY_DONE else [day for day in days if day < today]
        return _QmtNeed(code, '1d', final, final[-1], self._is_latest(final[-1])) if final else None

    def _is_latest(self, day):
        """Whether no trade day that is over lies after it."""
        days, today = self._calendar(), to_ms(self.clock.now().date())
        return day >= [other for other in days[-2:] if other < today or len(days) == 1][-1]

    def _with_running_day(self, code, bars, days):
        """The bar of today as the terminal has it, or as the quote says where that has seen more; none before 09:30."""
        now = self.clock.now()
        today = to_ms(now.date())
        if days[-1] != today:
            return bars
        if minute_of_day(now) < MORNING_OPEN:
            return [bar for bar in bars if _qmt_day_of(bar.time) < today]
        running = self._running_bar(code, today)
        if running is None or bars and _qmt_day_of(bars[-1].time) == today and bars[-1].volume >= running.volume:
            return bars
        return [bar for bar in bars if _qmt_day_of(bar.time) < today] + [running]

    def _running_bar(self, code, today):
        try:
            tick = self.quote(code)
        except DataUnavailable:
            return None
        if tick.paused or tick.dt is None or to_ms(tick.dt.date()) != today:
            return None
        last = tick.last_price  # the previous close where nothing was traded yet
        return _QmtBar(today, tick.open or last, tick.high or last, tick.low or last, last, float(tick.volume),
                       tick.money, tick.pre_close or last, False)

    def _minutes(self, code, first, last):
        first, last = self._within(self._info(code), first, last)
        days = self.trade_days(first, last)
        need = self._minute_need(code, days)
        if need is None:
            return empty_columns(MINUTE_COLUMNS)
        self._store.require(need, self.auto_download)
        now = to_ms(self.clock.now())
        bars = [bar for bar in self._store.read(code, '1m', need.days[0], need.days[-1], set(need.days))
                if bar.time <= now]
        return _qmt_arrays({name: [getattr(bar, name) for bar in bars] for name in MINUTE_COLUMNS})

    def _minute_need(self, code, days):
        """Up to the last complete minute; nothing of today before 09:31."""
        now = self.clock.now()
        today, elapsed = to_ms(now.date()), bars_elapsed(now)
        days = [day for day in days if day < today or elapsed]
        if not days:
            return None
        label = BAR_MINUTES[elapsed - 1] if days[-1] == today else AFTERNOON_CLOSE
        return _QmtNeed(code, '1m', days, days[-1] + label * 60000, self._is_latest(days[-1]))

    # -- downloads --------------------------------------------------------------------------------------------
    def ensure_cache(self, query, download=True, progress=lambda figures: None):
        """Downloads what history(query) needs and is not local. An explicit wish: it holds without auto_download too.

        Without `download` it only looks: what is missing counts as failed.

        Dict: ok; total: securities asked for; finished: of these ready; downloaded: of these fetched now;
        failed: codes; seconds.
        """
        began, codes = time.perf_counter(), list(query.securities)
        fetched, failed = set(), OrderedDict()
        for period in ('1d', '1m') if query.intraday else ('1d',):
            needs = [self._need_of(code, period, query) for code in codes if code not in failed]
            needs = [need for need in needs if need is not None]
            if download:
                self._fetch_all(needs, fetched, failed, progress)
            else:
                failed.update((need.code, None) for need in needs if self._store.lacking(need, certain=False))
        return {'ok': not failed, 'total': len(codes), 'finished': len(codes) - len(failed),
                'downloaded': len(fetched), 'failed': list(failed), 'seconds': round(time.perf_counter() - began, 3)}

    def _need_of(self, code, period, query):
        first, last = self._within(self._info(code), -1 << 60, query.end)
        if period == '1d':
            days = self.trade_days(first, last)
            return self._daily_need(code, days) if days else None
        if query.start is not None:
            first = max(first, _qmt_day_of(query.start))
        count = None if query.count is None else int(math.ceil(query.count * query.step / MINUTES_A_DAY)) + 2
        return self._minute_need(code, self.trade_days(first, last, count))

    def _fetch_all(self, needs, fetched, failed, progress):
        lacking = [(days[0], need) for need, days in ((need, self._lacking(need)) for need in needs) if days]
        lacking.sort(key=lambda item: (item[0], item[1].code))
        for i in range(0, len(lacking), self._store.BATCH):
            batch = lacking[i:i + self._store.BATCH]
            self._fetch_batch([need for _, need in batch], batch[0][0], fetched, failed)
            progress({'finished': i + len(batch), 'total': len(lacking)})
            LOG.info('历史数据下载 %d / %d', i + len(batch), len(lacking))
        self._store.heal()

    def _lacking(self, need):
        return [] if self._store.is_known(need) else self._store.lacking(need, certain=True)

    def _fetch_batch(self, needs, first, fetched, failed):
        """One that fails does not end the others: what came in counts, the rest is named."""
        done = set()
        try:
            self._store.download(needs, first, lambda figures: done.add((figures or {}).get('stockcode')))
            done.update(qmt_code(need.code) for need in needs)
        except BulletError as error:
            LOG.warning('历史数据下载没有成功：%s', printable(error))
        for need in needs:
            if qmt_code(need.code) in done and self._settled(need):
                fetched.add(need.code)
            else:
                failed[need.code] = None

    def _settled(self, need):
        try:
            self._store.settle(need)
        except BulletError as error:
            LOG.warning('%s 下载后读不出来：%s', need.code, printable(error))
            return False
        return not self._store.absent_days(need)

    # -- dividends --------------------------------------------------------------------------------------------
    def _events(self, code):
        """Dividends and splits up to today, ascending."""
        frame = self._link.call(self._xtdata.get_divid_factors, qmt_code(code))
        today = to_ms(self.clock.now().date())
        return [event for event in _qmt_events(frame) if event['day'] <= today]

    def _ex_days(self, code):
        return [event['day'] for event in self._events(code)]

    def _factor_steps(self, code):
        steps, factor, events = [], 1.0, self._events(code)
        closes = {} if all(_qmt_finite(event.get('dr')) > 0 for event in events) else self._closes(code)
        for event in events:
            factor *= _qmt_event_ratio(event, closes.get(event['day'], 0.0))
            steps.append((event['day'], factor))
        return steps

    def _closes(self, code):
        """Day -> the close of the bar before it."""
        bars = self._daily(code, -1 << 60, to_ms(self.clock.now().date()))
        return dict(zip(bars['time'][1:], bars['close']))

    def _dividends(self, code, first, last):
        kind = 'fund' if instrument(code).kind in ('etf', 'lof') else 'stock'
        rows = [self._dividend(code, kind, event) for event in self._events(code) if first <= event['day'] <= last]
        return [row for row in rows if row['bonus_pre_tax'] or row['scale_factor'] != 1]

    @staticmethod
    def _dividend(code, kind, event):
        scale = 1 + _qmt_finite(event.get('stockBonus')) + _qmt_finite(event.get('stockGift'))
        return {'security': code, 'date': event['day'], 'security_type': kind, 'scale_factor': round(scale, 9),
                'bonus_pre_tax': round(_qmt_finite(event.get('interest')) * 10, 9), 'per_base': 10}

    # -- quotes -----------------------------------------------------------------------------------------------
    def quote(self, code):
        return self._quote_of([code])(code)

    def _quote_of(self, codes):
        records = self._link.call(self._xtdata.get_full_tick, [qmt_code(code) for code in codes]) or {}

        def quote(code):
            detail, record = self._detail(code, self.DETAIL_S), records.get(qmt_code(code))
            tick = self._tick(code, record, detail) if record else None
            if tick is None:
                raise DataUnavailable('QMT 没有 %s 的行情' % code, '确认 QMT 的行情已连接，且该证券在交易')
            return tick
        return quote

    def subscribe(self, codes):
        for code in codes:
            if code not in MARKETS:
                self._detail(code)
        self._feed.add(codes)

    def renew(self, codes):
        self._feed.add(codes)

    def unsubscribe(self, codes):
        self._feed.remove(codes)

    def _push(self, code, record):
        try:
            detail = self._detail(code, self.PUSH_DETAIL_S)
        except BulletError as error:  # the quote itself is good; the day's limits come from its previous close then
            LOG.info('没有 %s 的合约信息：%s', code, printable(error))
            detail = {}
        tick = self._tick(code, record, detail)
        if tick is not None and self._tick_listener is not None:
            self._tick_listener(tick)

    def _tick(self, code, record, detail):
        """A vendor's record as Tick; None where it has no price. Before the open it stands at the previous close."""
        numbers_of = {name: _qmt_finite(record.get(name)) for name in (
            'lastPrice', 'open', 'high', 'low', 'lastClose', 'amount', 'volume', 'pvolume', 'time')}
        pre_close = numbers_of['lastClose'] or _qmt_finite(detail.get('PreClose'))
        last = numbers_of['lastPrice'] or pre_close
        if last <= 0:
            return None
        unit = self._tick_unit(code, numbers_of, last)
        high_limit, low_limit = self._limits(code, pre_close, detail, (numbers_of['low'], numbers_of['high']))
        dt = from_ms(_qmt_wall_ms(numbers_of['time'])) if numbers_of['time'] > 0 else None
        age_s, stale = self._age(dt)
        book = {} if instrument(code).kind == 'index' else self._book(record, unit)
        return Tick(sid=code, last_price=last, dt=dt, open=numbers_of['open'] or None, high=numbers_of['high'] or None,
                    low=numbers_of['low'] or None, pre_close=pre_close or None, money=numbers_of['amount'],
                    volume=numbers_of['pvolume'] or numbers_of['volume'] * unit, high_limit=high_limit,
                    low_limit=low_limit, paused=self._is_paused(detail), age_s=age_s, stale=stale, **book)

    @staticmethod
    def _is_paused(detail):
        """InstrumentStatus: 0 and below (-1: first day back) is trading, from 1 on it counts the days suspended."""
        return _qmt_finite(detail.get('InstrumentStatus')) >= 1

    @staticmethod
    def _book(record, unit):
        return {'a1_p': _qmt_level(record, 'askPrice'), 'a1_v': int(_qmt_level(record, 'askVol') * unit),
                'b1_p': _qmt_level(record, 'bidPrice'), 'b1_v': int(_qmt_level(record, 'bidVol') * unit)}

    def _tick_unit(self, code, values, last):
        """Shares in a unit of `volume` and of the book; before the first trade of a day as it was decided before."""
        if values['volume'] > 0 and (values['pvolume'] > 0 or values['amount'] > 0):
            if values['pvolume'] > 0:
                lots = values['pvolume'] / values['volume'] > math.sqrt(_qmt_lots(code))
                self._units[code] = _qmt_lots(code) if lots else 1
            else:
                self._units[code] = _qmt_unit(code, [(last, values['volume'], values['amount'])])
        return self._units.get(code, _qmt_lots(code))

    def _limits(self, code, pre_close, detail, seen):
        """The detail's, if they are of the quote's day; otherwise by the rules. (None, None): there is none.

        seen: the day's lowest and highest trade.
        """
        high, low = self._told_limits(detail)
        before = _qmt_finite(detail.get('PreClose'))
        if high > 0 and low > 0 and (not before or not pre_close or abs(before - pre_close) < 1e-6):
            return high, low
        is_st = _qmt_is_st(str(detail.get('InstrumentName') or ''))
        listed, number = self._listing(code, detail)
        return price_limits(code, pre_close, self.clock.now().date(), is_st, listed, number, seen)

    @staticmethod
    def _told_limits(detail):
        return _qmt_finite(detail.get('UpStopPrice')), _qmt_finite(detail.get('DownStopPrice'))

    def _tells_limits(self, code):
        return min(self._told_limits(self._detail(code, self.DETAIL_S))) > 0

    def _listing(self, code, detail):
        """_trade_day_number, or (None, None) where it cannot be told: then limits are those of an ordinary day."""
        if not _qmt_date(detail.get('OpenDate'), None):
            return None, None
        try:
            return self._trade_day_number(code, self.clock.now().date())
        except BulletError as error:
            LOG.info('%s 是否在上市首日无法判断：%s', code, printable(error))
            return None, None

    def _age(self, dt):
        """(age in seconds, whether that is too old). Only time in a session counts: nothing is quoted at noon."""
        now = self.clock.now()
        if dt is None:
            return None, self._is_open(now)
        age_s = (now - dt).total_seconds()
        waited = self._is_open(now) and self._is_open(now - timedelta(seconds=self.quote_max_age_s))
        return round(age_s, 3), age_s > self.quote_max_age_s and waited


# -- the backend ----------------------------------------------------------------------------------------------------
class QmtBackend(Backend):
    """The terminal's market data and its accounts, and in `machine` what tells why they are not connected.

    The machine is looked at by the thread `qmt-look`, while something is not connected.
    """

    LOOK_S = 2.0

    def __init__(self, name, data, brokers, machine):
        super().__init__(name, data, brokers)
        self.machine, self._ending = machine, threading.Event()
        self._thread = threading.Thread(target=self._watch, name='qmt-look', daemon=True)
        self._thread.start()

    def health(self):
        accounts = {key: broker.health() for key, broker in self.brokers.items()}
        return dict(super().health(), qmt={'accounts': accounts, 'data': self.data.health(),
                                           'machine': self.machine.facts()})

    def _watch(self):
        while not self._ending.wait(self.LOOK_S):
            try:
                if self._is_troubled():
                    self.machine.look()
            except Exception as error:  # the vendor's client raises anything, and a diagnosis is no reason to end
                LOG.info('QMT 的状况这次没有查成：%s', printable(error) or type(error).__name__)

    def _is_troubled(self):
        states = [broker.keeper.state for broker in self.brokers.values()] + [self.data.health()['state']]
        return any(state not in ('connected', 'closed') for state in states)

    def troubles(self):
        found = {}
        away = [key for key, broker in self.brokers.items() if broker.keeper.state != 'connected']
        if away:
            found['broker'] = len(away) < len(self.brokers), '账户 %s 没有连上 QMT' % '、'.join(away)
        if self.data.health()['state'] != 'connected':
            found['data'] = False, 'QMT 行情没有连上'
        return found

    def close(self):
        """All of them, even if one fails."""
        self._ending.set()
        wait_for_thread(self._thread)
        for part in list(self.brokers.values()) + [self.data, self.machine]:
            try:
                part.close()
            except Exception:
                LOG.exception('关闭 QMT 连接时出错')


def open_qmt(settings, clock):
    """Backend of the QMT terminal on this machine; it connects in the background. Raises ConfigError."""
    specs = account_specs(settings)
    for spec in specs:
        if not spec.data_path:
            raise ConfigError('账户 %s 没有给出 userdata_mini 的路径' % spec.key,
                              '设置 QMT_DATA_PATH，或写进 %s：%s=资金账号:类型:路径' % (ways('accounts'), spec.key))
    vendor = import_vendor()
    data = QmtData(vendor, clock, settings.auto_download, quote_max_age_s=settings.quote_max_age,
                   listening=qmt_listening)
    brokers = OrderedDict((spec.key, QmtBroker(vendor, spec, clock)) for spec in specs)
    for part in [data] + list(brokers.values()):
        part.start()
    return QmtBackend('qmt', data, brokers, QmtMachine(clock, open_client=data.open_client))


ADAPTERS['qmt'] = open_qmt


# ======================================================================================================
# 11. ORDER DESK - the journal, idempotency, sub-accounts, limits, waiting. The one way to the broker
# ======================================================================================================
Route = namedtuple('Route', 'key broker sub')  # account key, BrokerAdapter, SubAccountSpec or None


def concerns(route, account_key, sub_account_id):
    """Whether one who logged in for this Route (None: for all) may know of an order of that account and sub-account."""
    return route is None or (route.key == account_key and (route.sub is None or route.sub.name == sub_account_id))


class AccountBook:
    """Which account and sub-account a payload means. Anything unknown is refused, nothing is guessed."""

    def __init__(self, brokers, sub_accounts=()):
        self.brokers = brokers
        self.subs = {spec.name: spec for spec in sub_accounts}

    def route(self, account_key=None, sub_account_id=None):
        sub = None if sub_account_id in (None, '') else self._sub(sub_account_id)
        if account_key in (None, ''):
            account_key = sub.account_key if sub else self._only()
        if not isinstance(account_key, str) or account_key not in self.brokers:
            raise AccountNotFound('没有账户 %s' % brief(account_key), '现有账户：%s' % '、'.join(self.brokers))
        if sub and sub.account_key != account_key:
            raise AccountNotFound('子账户 %s 不属于账户 %s' % (sub.name, account_key))
        return Route(account_key, self.brokers[account_key], sub)

    def _sub(self, text):
        name, at, account_key = text.partition('@') if isinstance(text, str) else (None, '', '')
        spec = self.subs.get(name)
        if spec is None or (at and account_key != spec.account_key):
            raise AccountNotFound('没有子账户 %s' % brief(text),
                                  '现有子账户：%s' % ('、'.join(sorted(self.subs)) or '（无）'))
        return spec

    def _only(self):
        if 'default' in self.brokers:
            return 'default'
        if len(self.brokers) == 1:
            return next(iter(self.brokers))
        raise AccountNotFound('没有指明账户', '用 account_key 指明其中一个：%s' % '、'.join(self.brokers))


# -- journal ---------------------------------------------------------------------------------------------------
PLACE, CANCEL = 'broker.place_order', 'broker.cancel_order'
JOURNAL_SCHEMA = 4  # 1 had no events, 2 no checksums, 3 none of what changes
JOURNAL_APPLICATION = 0x62716d74  # 'bqmt': marks the file as ours
JOURNAL_DAYS = 30  # days on which something was written
# new: in memory only, nothing is sent. submitting: on disk before the broker is called. The rest: what came of it;
# absent is a refusal that nobody told but that a complete list of the broker proved.
NEW, SUBMITTING, ACCEPTED, REJECTED, UNKNOWN, ABSENT = (
    'new', 'submitting', 'accepted', 'rejected', 'unknown', 'absent')
OPEN_STATES = (SUBMITTING, UNKNOWN)
UNSEEN_STATES = OPEN_STATES + (ABSENT,)  # no broker has shown it
JOURNAL_STATES = UNSEEN_STATES + (ACCEPTED, REJECTED)
SETTLED_EVENT = 'order_settled'

JournalEntry = namedtuple('JournalEntry', 'action idempotency_key account_key sub_account_id fingerprint tag state '
                                          'order_id request answer day deadline_ms unanswered number checksum')
_JOURNAL_TABLE = '''CREATE TABLE IF NOT EXISTS writes (
    action TEXT NOT NULL, idempotency_key TEXT NOT NULL, account_key TEXT NOT NULL, sub_account_id TEXT,
    fingerprint TEXT NOT NULL, tag TEXT NOT NULL UNIQUE, state TEXT NOT NULL, order_id TEXT, request TEXT NOT NULL,
    answer TEXT, day TEXT NOT NULL, deadline_ms INTEGER, unanswered INTEGER NOT NULL DEFAULT 0,
    number INTEGER NOT NULL DEFAULT 0, checksum TEXT NOT NULL DEFAULT '')'''
_PRUNED_TABLE = 'CREATE TABLE IF NOT EXISTS pruned (number INTEGER NOT NULL)'  # entries up to there were let go
_JOURNAL_INDEX = 'CREATE INDEX IF NOT EXISTS writes_by_key ON writes (idempotency_key, action)'
_EVENT_TABLE = '''CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT NOT NULL, account_key TEXT NOT NULL, sub_account_id TEXT,
    event TEXT NOT NULL, payload TEXT NOT NULL)'''
# An order, trade or account event; payload: its row. seq grows with each, over restarts and over journals.
JournalEvent = namedtuple('JournalEvent', 'seq account_key sub_account_id event payload')
EVENT_DAYS, EVENTS_AT_ONCE = 10, 10000  # how long they are kept, how many are told again: what is beyond is a gap
_JOURNAL_COLUMNS = ','.join(JournalEntry._fields)
_JOURNAL_WRITE = 'INSERT INTO writes (%s) VALUES (%s)' % (
    _JOURNAL_COLUMNS, ','.join('?' * len(JournalEntry._fields)))
_JOURNAL_CHANGING = ('state', 'order_id', 'answer', 'deadline_ms', 'unanswered')
_JOURNAL_CHANGE = 'UPDATE writes SET %s, day=?, checksum=? WHERE tag=?' % ', '.join(
    map('%s=?'.__mod__, _JOURNAL_CHANGING))
_JOURNAL_FIXED = ('action', 'idempotency_key', 'account_key', 'sub_account_id', 'fingerprint', 'tag', 'request', 'day',
                  'number')
_SEAL = 8  # characters of a checksum
# What the journal answers to copies of an order that come after it was declared never to have come.
ANY_FINGERPRINT = ''


def _journal_seal(row):
    """Checksums of a row of `writes`, of what is fixed and of what changes: a disk may change a digit of an amount or
    of an order's id and leave all else in order."""
    values = dict(zip(JournalEntry._fields, row))
    return ''.join(_seal_of(values[name] for name in names) for names in (_JOURNAL_FIXED, _JOURNAL_CHANGING))


def _seal_of(values):
    return '%0*x' % (_SEAL, zlib.crc32(ascii(list(values)).encode('ascii')))


def _journal_entry(row):
    """A row of `writes` as JournalEntry; None for one that is damaged."""
    entry = JournalEntry(*row)
    try:
        entry = entry._replace(request=json.loads(entry.request), answer=json.loads(entry.answer or 'null'))
    except (ValueError, TypeError):
        return None
    answered = isinstance(entry.answer, dict) or (entry.answer is None and entry.state not in (REJECTED, ABSENT))
    seal = _journal_seal(row)  # rows of schema 3 have the first half
    sound = entry.checksum in (seal, seal[:_SEAL]) and entry.state in JOURNAL_STATES and isinstance(entry.request, dict)
    return entry if sound and answered else None


class SentTags:
    """Number and tag of each order that was about to be sent, in a file beside the journal.

    A journal that lost its end, or an old copy of it, does not know what it lost; this tells. Lines of one length: the
    journal's id, then the orders. Number 0: the one of this tag was not sent after all.
    """

    LINE, KEPT = 48, 20000

    def __init__(self, path):
        self._file = open_own(path, 'r+b' if os.path.exists(path) else 'w+b', buffering=0)
        self._end = 0
        restrict_to_owner(path)

    def read(self):
        """(journal id or '', {tag: number}, how many lines cannot be read). A line that was never finished is none."""
        self._file.seek(0)
        data = self._file.read()
        lines = [data[at:at + self.LINE] for at in range(0, len(data) - self.LINE + 1, self.LINE)]
        self._end = len(lines) * self.LINE
        found = [self._parsed(line) for line in lines]
        sent = OrderedDict((tag, int(number)) for number, tag in filter(None, found[1:]) if number.isdigit())
        named = found[0][1] if found and found[0] and found[0][0] == 'journal' else ''
        return named, OrderedDict(pair for pair in sent.items() if pair[1]), found.count(None)

    @staticmethod
    def _parsed(line):
        words = line.decode('ascii', 'replace').split()
        return tuple(words) if len(words) == 2 and (words[0] == 'journal' or is_tag(words[1])) else None

    def begin(self, journal_id, sent):
        """Everything anew; the newest KEPT of them stay."""
        kept = list(sent.items())[-self.KEPT:]
        data = b''.join([self._line('journal', journal_id)] + [self._line(number, tag) for tag, number in kept])
        self._put(0, data)
        self._file.truncate(len(data))

    def add(self, number, tag):
        """On disk when it returns."""
        self._put(self._end, self._line(number, tag[:TAG_BYTES]))

    def _line(self, first, second):
        return ('%s %s' % (first, second)).ljust(self.LINE - 1).encode('ascii') + b'\n'

    def _put(self, place, data):
        self._file.seek(place)
        if self._file.write(data) != len(data):
            raise OSError('只写下了一部分，磁盘可能满了')
        os.fsync(self._file.fileno())
        self._end = place + len(data)

    def close(self):
        self._file.close()


class Journal:
    """Every order and cancel that may have left, and every refusal, by key. One connection, one lock.

    path None: memory only. One server at a time may hold a file. record(sync=True) is on disk when it returns; what is
    not synced survives the end of the process, but perhaps not that of the machine.
    `id` names the journal; a client repeats a write only to the journal that it knows. losses: texts about what this
    one is known to have lost; it has got a new id then. lost: tags of orders that it may have sent and knows nothing
    of. damaged: (row number, key) of entries that cannot be trusted.
    `tag` is TAG_BYTES ASCII bytes, travels with the order and follows from the key: even without its journal an order
    can be found.
    deadline_ms: Beijing wall time from which a submission can no longer be on its way; unanswered: it may be for
    longer, as nobody has answered the call.
    """

    PATIENCE_S = 2.0  # Windows gives back what a killed process had locked when it gets round to it

    def __init__(self, path, clock):
        self.clock = clock
        self.losses, self.lost, self.damaged, self._sent, self._number = [], frozenset(), [], None, 0
        self._lock = threading.Lock()
        self._indexed_day, self._by_tag, self._by_order = None, {}, {}  # of orders that are, or may be, at a broker
        try:
            path = path and self._place(path)  # also below: who holds it is told beside the file itself
            self._open(path)
        except BulletError:
            raise
        except Exception as error:  # whatever a damaged file leads to
            raise ConfigError('委托日志 %s 打不开：%s%s' % (path, error, self._holder(path)),
                              '检查 %s：目录要存在、可写，且没有另一个服务端在使用它；文件若已损坏，%s' % (ways('state'), _MOVE_JOURNAL))

    @staticmethod
    def _place(path):
        """Where it is, by its file's own names; a device would lose what is written."""
        if os.path.exists(path) and not os.path.isfile(path):
            raise ConfigError('委托日志 %s 不是文件，写进去的委托会丢失' % path, '换一个 ' + ways('state'))
        return true_path(path)

    def _open(self, path):
        self._db = sqlite3.connect(sqlite_name(path or ':memory:'), timeout=self.PATIENCE_S, isolation_level=None,
                                   check_same_thread=False)
        try:
            self._db.text_factory = lambda data: data.decode('utf-8', 'surrogateescape')  # damage is judged by the row
            self._prepare(self._db, path)
        except BaseException:
            self._close()
            raise

    def _close(self):
        self._db.close()
        if self._sent is not None:
            self._sent.close()

    def _prepare(self, db, path):
        if path:
            db.execute('PRAGMA locking_mode=EXCLUSIVE').fetchall()
        tables = self._check_schema(db, path)
        if path:
            restrict_to_owner(path)
            for pragma in ('journal_mode=WAL', 'synchronous=NORMAL'):
                db.execute('PRAGMA ' + pragma).fetchall()
            self._check_pages(db, path)
        self._make_tables(db, tables)
        self.id = self._identity(db)
        self._number_on(db)
        self._count_on(db, path)
        for text in self.losses:
            LOG.error('委托日志%s：%s。先看柜台当日的委托，同一个 key 不会重复提交；长连接不会自动重发', ' ' + path if path else '', text)
        self._settle_at_start(db)
        if path:
            self._sign(path)

    @classmethod
    def _check_pages(cls, db, path):
        """An index alone that is damaged hides keys, which would count as new; it can be made anew. Events alone can be
        missed. Whether the entries are whole is seen before anything is changed."""
        problem = cls._problem_of(db)
        if problem is None:
            return
        whole = cls._reads_whole(db)
        if cls._is_mended(db, cls._remake_indexes):
            LOG.error('委托日志 %s 的索引损坏，已重建：%s', path, printable(problem))
        elif whole and cls._is_mended(db, cls._drop_events):
            LOG.warning('委托日志 %s 里的回报（events）损坏，已清空，委托记录完整、照常使用；客户端要补发这以前的回报会得到 '
                        'stream_gap，用 get_orders、get_trades 核对：%s', path, printable(problem))
        else:
            raise ConfigError('委托日志 %s 已损坏：%s' % (path, printable(problem)), _MOVE_JOURNAL)

    @classmethod
    def _is_mended(cls, db, mend):
        with contextlib.suppress(sqlite3.DatabaseError):
            mend(db)
        return cls._problem_of(db) is None

    @staticmethod
    def _remake_indexes(db):
        db.execute('REINDEX')

    @staticmethod
    def _drop_events(db):
        """A damaged table cannot be dropped, but forgotten: VACUUM copies what the list of tables names. It is made
        anew like one that never was."""
        db.execute('PRAGMA writable_schema=ON')
        try:
            db.execute("DELETE FROM sqlite_master WHERE tbl_name IN ('events', 'sqlite_sequence', 'floor')")
        finally:
            db.execute('PRAGMA writable_schema=OFF')
        db.execute('VACUUM')

    @staticmethod
    def _reads_whole(db):
        """Whether each entry is there and sound: table and both indexes, on pages of their own, name the same."""
        try:
            rows = db.execute('SELECT rowid, %s FROM writes NOT INDEXED' % _JOURNAL_COLUMNS).fetchall()
            keys, tags = [sorted(db.execute('SELECT rowid, %s FROM writes INDEXED BY %s' % index)) for index in (
                ('idempotency_key, action', 'writes_by_key'), ('tag', 'sqlite_autoindex_writes_1'))]
        except (sqlite3.DatabaseError, TypeError):  # TypeError: a value of another kind is damage too
            return False
        named = {name: 1 + place for place, name in enumerate(JournalEntry._fields)}
        return (all(_journal_entry(row[1:]) for row in rows)
                and keys == sorted((row[0], row[named['idempotency_key']], row[named['action']]) for row in rows)
                and tags == sorted((row[0], row[named['tag']]) for row in rows))

    @staticmethod
    def _problem_of(db):
        """What the check of the whole file finds first, or None."""
        try:
            found = db.execute('PRAGMA integrity_check(1)').fetchone()[0]
        except sqlite3.DatabaseError as error:
            return str(error)
        return None if found == 'ok' else found

    def _make_tables(self, db, before):
        """before: the tables that were there. What is missing of a journal that was in use is a loss."""
        version = db.execute('PRAGMA user_version').fetchone()[0]
        if 'identity' in before and version > 1:
            self.losses += ['表 %s 不见了' % name for name in ('writes', 'events') if name not in before]
        if 'writes' in before and 'checksum' not in {row[1] for row in db.execute('PRAGMA table_info(writes)')}:
            self._take_over(db)
        for statement in ('BEGIN', _JOURNAL_TABLE, _JOURNAL_INDEX, _PRUNED_TABLE, _EVENT_TABLE,
                          'PRAGMA user_version=%d' % JOURNAL_SCHEMA,
                          'PRAGMA application_id=%d' % JOURNAL_APPLICATION, 'COMMIT'):
            db.execute(statement)  # all or none: tables without our mark are taken for somebody else's

    @staticmethod
    def _take_over(db):
        """The entries of an older schema; what there is of them counts as it stands."""
        old = JournalEntry._fields[:12]
        db.execute('BEGIN')
        db.execute('ALTER TABLE writes RENAME TO writes_before')
        db.execute(_JOURNAL_TABLE)
        for number, row in enumerate(db.execute('SELECT %s FROM writes_before ORDER BY rowid' % ','.join(old)), 1):
            row = tuple(row) + (0, number, '')
            db.execute(_JOURNAL_WRITE, row[:-1] + (_journal_seal(row),))
        db.execute('DROP TABLE writes_before')
        db.execute('COMMIT')

    def _count_on(self, db, path):
        """Numbers go on after the last one that was ever given. One that is missing here means: the end is lost."""
        self._number = db.execute('SELECT coalesce(max(number), 0) FROM writes').fetchone()[0]
        sent = OrderedDict()
        if path:
            self._sent = SentTags(path + '.mark')
            named, sent, odd = self._sent.read()
            self._compare(db, named, sent, odd)
        if self.losses:
            self.id = uuid.uuid4().hex
            db.execute('UPDATE identity SET id=?', (self.id,))
        if path:
            self._sent.begin(self.id, sent)

    def _compare(self, db, named, sent, odd):
        """What was sent and is not here, but for what was let go as too old, is lost."""
        known = {tag[:TAG_BYTES] for tag, in db.execute('SELECT tag FROM writes').fetchall()}
        let_go = db.execute('SELECT coalesce(max(number), 0) FROM pruned').fetchone()[0]
        lost = {tag: number for tag, number in sent.items() if tag not in known and number > let_go}
        newly = [number for number in lost.values() if number > self._number]
        if odd or (sent and not named):
            self.losses.append('记着已提交委托的文件（.mark）有 %d 行损坏' % max(1, odd))
        if named not in ('', self.id):
            self.losses.append('这不是上次使用的那一本')
        if newly:
            self.losses.append('最后 %d 笔委托的记录不见了（-wal 丢失、截断，或放回了旧的副本）' % len(newly))
        self.lost, self._number = frozenset(lost), max([self._number] + list(sent.values()))

    def _sign(self, path):
        """Beside the file, as nobody else can read what is locked."""
        with open_own(path + '.holder', 'w', encoding='utf-8') as file:
            file.write('进程 %d，主机 %s，自 %s' % (os.getpid(), socket.gethostname(),
                                             self.clock.now().isoformat(sep=' ', timespec='seconds')))

    @staticmethod
    def _holder(path):
        try:
            with io.open('%s.holder' % path, encoding='utf-8') as file:
                return '（最近的使用者：%s）' % printable(file.read(200))
        except (OSError, UnicodeDecodeError):
            return ''

    @staticmethod
    def _check_schema(db, path):
        """The names of its tables. Somebody else's database is left as it is."""
        version, marked = [db.execute('PRAGMA %s' % name).fetchone()[0] for name in ('user_version', 'application_id')]
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        begun = marked == JOURNAL_APPLICATION  # perhaps the first start was interrupted
        if marked not in (0, JOURNAL_APPLICATION) or (tables and not begun and not {'writes', 'identity'} <= tables):
            raise ConfigError('%s 是别的程序的数据库，不是委托日志' % path, '换一个 ' + ways('state'))
        if version not in range(JOURNAL_SCHEMA + 1):
            raise ConfigError('委托日志 %s 的版本 %d 不认识' % (path, version), '用写它的那个版本的程序，或换一个 ' + ways('state'))
        return tables

    def _identity(self, db):
        """Kept as long as the entries are: a client repeats a write only to a journal it knows."""
        db.execute('CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL, made TEXT NOT NULL)')
        if db.execute('SELECT count(*) FROM identity').fetchone()[0] == 0:
            db.execute('INSERT INTO identity VALUES (?, ?)', (uuid.uuid4().hex, self.today()))
        return db.execute('SELECT id FROM identity').fetchone()[0]

    def _number_on(self, db):
        """The next event gets a number that none has had, in this journal or in an earlier one.

        What was not synced may be lost with the machine and its numbers with it, though clients have seen them. So
        numbers go on from the time, a thousand for each millisecond.
        """
        db.execute('CREATE TABLE IF NOT EXISTS floor (seq INTEGER NOT NULL)')  # all up to there may be missing here
        last, begin = self._last_event(db), max(0, to_ms(self.clock.now()) - _EVENT_EPOCH_MS) * 1000
        if begin > last:
            db.execute("DELETE FROM sqlite_sequence WHERE name='events'")
            db.execute("INSERT INTO sqlite_sequence VALUES ('events', ?)", (begin,))
        if db.execute('SELECT count(*) FROM floor').fetchone()[0] == 0:
            db.execute('INSERT INTO floor VALUES (0)')
        if not last:
            db.execute('UPDATE floor SET seq=max(seq, ?)', (begin,))

    @staticmethod
    def _last_event(db):
        row = db.execute("SELECT seq FROM sqlite_sequence WHERE name='events'").fetchone()
        return row[0] if row else 0

    def _settle_at_start(self, db):
        """What was being submitted may be at the broker, or still on its way: nobody has heard an answer."""
        self._prune(db)
        self._find_damage(db)
        for entry in self._select(db, 'state=?', (SUBMITTING,)):
            self._change(db, entry._replace(state=UNKNOWN))
        self._load_day(db, self.today())
        self._earlier = frozenset(self._by_tag)

    def _find_damage(self, db):
        rows = db.execute('SELECT rowid, %s FROM writes' % _JOURNAL_COLUMNS)
        self.damaged = [(row[0], row[2]) for row in rows if _journal_entry(row[1:]) is None]
        for place, key in self.damaged[:20]:
            LOG.error('%s', printable(_damage_told(place, key)))
        if len(self.damaged) > 20:
            LOG.error('委托日志共有 %d 行损坏', len(self.damaged))

    def _load_day(self, db, day):
        """With the lock held. The day's, as brokers list no others and use their ids again; and those of earlier days
        that nobody has seen: they may still be passed on."""
        self._indexed_day, self._by_tag, self._by_order = day, {}, {}
        wanted = 'action=? AND (day=? AND state!=? OR state IN (?, ?, ?)) ORDER BY rowid'
        for entry in self._select(db, wanted, (PLACE, day, REJECTED) + UNSEEN_STATES):
            self._index(entry)

    def _prune(self, db):
        since = self._kept_since(db, 'writes', JOURNAL_DAYS)
        gone = db.execute('SELECT max(number) FROM writes WHERE day<?', (since,)).fetchone()[0]
        if gone is not None:
            db.execute('INSERT INTO pruned VALUES (?)', (gone,))
            db.execute('DELETE FROM writes WHERE day<?', (since,))
        gone = db.execute('SELECT max(seq) FROM events WHERE day<?',
                          (self._kept_since(db, 'events', EVENT_DAYS),)).fetchone()[0]
        if gone is not None:
            db.execute('UPDATE floor SET seq=max(seq, ?)', (gone,))
            db.execute('DELETE FROM events WHERE seq<=?', (gone,))

    def _kept_since(self, db, table, days):
        """The day whose rows and all later ones stay: the last `days` days that occur, however long ago they were.

        A clock that is a year ahead for a moment would make all that is known too old.
        """
        newest = db.execute('SELECT DISTINCT day FROM %s ORDER BY day DESC LIMIT ?' % table, (days,)).fetchall()
        return min([day for day, in newest] + [(self.clock.now() - timedelta(days=days)).date().isoformat()])

    def _index(self, entry):
        self._by_tag[entry.tag[:TAG_BYTES]] = entry
        if entry.order_id:
            self._by_order[entry.account_key, entry.order_id] = entry

    @staticmethod
    def _select(db, where, values):
        """Those entries that are sound."""
        rows = db.execute('SELECT %s FROM writes WHERE %s' % (_JOURNAL_COLUMNS, where), values).fetchall()
        return list(filter(None, map(_journal_entry, rows)))

    def close(self):
        with self._lock:
            self._close()

    @contextlib.contextmanager
    def _database(self, sync=False):
        """The connection, for one thread. sync: a statement inside is on disk when it has been executed."""
        with self._lock:
            try:
                if sync:
                    self._db.execute('PRAGMA synchronous=FULL')
                try:
                    yield self._db
                finally:
                    if self._db.in_transaction:  # whatever broke it off
                        self._db.rollback()
                    if sync:
                        self._db.execute('PRAGMA synchronous=NORMAL')
            except (sqlite3.Error, OSError) as error:
                raise JournalError('委托日志不能读写：%s' % error, '检查磁盘空间和 %s的文件' % ways('state'))

    def entry(self, action, key, route, fingerprint, request):
        """A new entry, in memory only until it is recorded."""
        sub = route.sub.name if route.sub else None
        return JournalEntry(action, key, route.key, sub, fingerprint, make_tag(action, key, sub), NEW, None, request,
                            None, self.today(), None, 0, 0, '')

    def today(self):
        return self.clock.now().date().isoformat()

    def record(self, entry, state, order_id=None, answer=None, deadline_ms=None, sync=False):
        """The entry in its new state."""
        changed = entry._replace(state=state, order_id=order_id or entry.order_id, answer=answer or entry.answer,
                                 deadline_ms=deadline_ms or entry.deadline_ms)
        with self._database(sync) as db:
            self._check_tag(db, entry)
            if entry.action == PLACE and entry.day == self.today():  # whose order it is holds even if the disk fails
                self._index_today(db, changed)
            elif entry.tag[:TAG_BYTES] in self._by_tag:
                self._index(changed)
            if entry.state == NEW or not self._change(db, changed):
                changed = self._insert(db, changed, sync)
        return changed

    @staticmethod
    def _check_tag(db, entry):
        """Earlier versions gave some keys of an account and of a sub-account one tag: the first that came has it."""
        with contextlib.suppress(sqlite3.Error):  # on a failing disk an order ends below, and a cancel goes on
            first = entry.tag[:TAG_BYTES]
            rows = db.execute('SELECT idempotency_key FROM writes WHERE tag>=? AND tag<?',
                              (first, first + 'g')).fetchall()
            if any(key != entry.idempotency_key for key, in rows):
                raise IdempotencyConflict('idempotency_key %s 的标记已属于另一个 key' % brief(entry.idempotency_key),
                                          '没有提交；换一个 key', broker_called=False)

    def _index_today(self, db, entry):
        if self._indexed_day != entry.day:
            with contextlib.suppress(sqlite3.Error):
                self._load_day(db, entry.day)
        self._index(entry)

    def _insert(self, db, entry, sync):
        """The tag goes to its file after the entry and before the order: a kill between the two loses nothing.

        Neither of the two syncs can go. Without the journal's a power cut leaves a tag whose order nobody can tell any
        more; without the file's a journal that loses its end takes with it all that knows that a key was used.
        """
        self._number += 1
        row = entry._replace(request=json.dumps(entry.request), answer=json.dumps(entry.answer), number=self._number)
        seal = _journal_seal(row)
        db.execute(_JOURNAL_WRITE, row._replace(checksum=seal))
        if sync and self._sent is not None:
            self._keep_tag(db, row)
        return entry._replace(number=self._number, checksum=seal)

    def _keep_tag(self, db, row):
        try:
            self._sent.add(row.number, row.tag)
        except OSError:
            with contextlib.suppress(sqlite3.Error):  # or else it counts as one whose outcome nobody knows
                db.execute('DELETE FROM writes WHERE tag=?', (row.tag,))
            raise

    @staticmethod
    def _change(db, entry):
        """Whether the entry was there to be changed; the disk may have failed before."""
        row = entry._replace(request=json.dumps(entry.request), answer=json.dumps(entry.answer))
        values = tuple(getattr(row, name) for name in _JOURNAL_CHANGING)
        return db.execute(_JOURNAL_CHANGE, values + (row.day, _journal_seal(row), row.tag)).rowcount

    def forget(self, entry):
        """An entry of which nothing was sent after all, so that the key can be used again."""
        with self._database() as db:
            self._by_tag.pop(entry.tag[:TAG_BYTES], None)
            if self._sent is not None:
                self._sent.add(0, entry.tag)
            db.execute('DELETE FROM writes WHERE tag=? AND state=?', (entry.tag, SUBMITTING))

    def find(self, action, key, sub=None):
        """The entry of the key, as an account (sub None) or a sub-account may know of it, or None.

        Raises JournalError for one that is damaged: its key is neither new nor can its answer be told.
        """
        tags = tags_of(action, key, sub)
        with self._database() as db:
            rows = db.execute('SELECT rowid, %s FROM writes WHERE action=? AND idempotency_key=? OR tag IN (%s) '
                              'ORDER BY rowid' % (_JOURNAL_COLUMNS, ','.join('?' * len(tags))),
                              (action, key) + tags).fetchall()
        found = [(row[0], row[2], _journal_entry(row[1:])) for row in rows]
        for place, stored_key, entry in found:
            if entry is None:
                raise JournalError(_damage_told(place, stored_key), _DAMAGE_REMEDY)
        entries = [entry for _, _, entry in found if entry.idempotency_key == key]
        own = [entry for entry in entries if entry.sub_account_id == sub]
        others = [entry for entry in entries if sub is None or entry.sub_account_id is None]
        return next(iter(own + others), None)

    def tags(self):
        """The compared part of every tag, of whatever day."""
        with self._database() as db:
            rows = db.execute('SELECT tag FROM writes WHERE action=?', (PLACE,)).fetchall()
        return {tag[:TAG_BYTES] for tag, in rows}

    def has_places(self, account_key):
        """Whether an order of today reached the broker of this account, or may have."""
        with self._database() as db:
            found = db.execute('SELECT count(*) FROM writes WHERE action=? AND day=? AND account_key=? '
                               'AND state NOT IN (?, ?)', (PLACE, self.today(), account_key, REJECTED, ABSENT))
            return found.fetchone()[0] > 0

    def open_places(self):
        """Today's open orders. Brokers list a day's orders: of an earlier day's nothing can be learnt by waiting."""
        today = self.today()
        return [entry for entry in self.unseen_places() if entry.day == today and entry.state in OPEN_STATES]

    def unseen_places(self):
        """Orders of whatever day that no broker has shown: one may be passed on days later."""
        with self._database() as db:
            return self._select(db, 'action=? AND state IN (?, ?, ?)', (PLACE,) + UNSEEN_STATES)

    # -- events --------------------------------------------------------------------------------------------------
    def add_events(self, found):
        """Writes (account key, sub-account, event, payload[, its JSON]) in their order; gives them as JournalEvents."""
        day, added = self.today(), []
        rows = [(day,) + item[:3] + (item[4] if len(item) > 4 else json.dumps(item[3]),) for item in found]
        with self._database() as db:
            db.execute('BEGIN')
            for item, row in zip(found, rows):
                cursor = db.execute('INSERT INTO events (day, account_key, sub_account_id, event, payload) '
                                    'VALUES (?, ?, ?, ?, ?)', row)
                added.append(JournalEvent(cursor.lastrowid, *item[:4]))
            db.execute('COMMIT')
        return added

    def events_after(self, seq, limit=-1, today=False):
        """The first `limit` (-1: all) JournalEvents with larger numbers; today: only those of this day."""
        columns = ','.join(JournalEvent._fields)
        with self._database() as db:
            rows = db.execute('SELECT %s FROM events WHERE seq>? AND day>=? ORDER BY seq LIMIT ?' % columns,
                              (seq, self.today() if today else '', limit)).fetchall()
        return list(filter(None, map(_journal_event, rows)))

    def newest_after(self, seq):
        """The number after which at most EVENTS_AT_ONCE of those after `seq` come."""
        with self._database() as db:
            row = db.execute('SELECT seq FROM events WHERE seq>? ORDER BY seq DESC LIMIT 1 OFFSET ?',
                             (seq, EVENTS_AT_ONCE)).fetchone()
        return row[0] if row else seq

    def last_event(self):
        with self._database() as db:
            return self._last_event(db)

    def misses_after(self, seq):
        """Whether events with larger numbers may have been that are not kept, or are too many to be told again."""
        with self._database() as db:
            floor, last = db.execute('SELECT seq FROM floor').fetchone()[0], self._last_event(db)
        return seq < floor or seq > last or self.newest_after(seq) != seq or self._is_damaged_after(seq)

    def _is_damaged_after(self, seq):
        columns = ','.join(JournalEvent._fields)
        with self._database() as db:
            rows = db.execute('SELECT %s FROM events WHERE seq>?' % columns, (seq,)).fetchall()
        bad = [row[0] for row in rows if _journal_event(row) is None]
        if bad:
            LOG.error('委托日志里的回报 %s 已损坏，不再补发', bad[:20])
        return bool(bad)

    def prune(self):
        """Lets go what is too old."""
        with self._database() as db:
            self._prune(db)

    def of_order(self, account_key, row):
        """The entry that placed this order (or made this trade), or None for one of somebody else.

        The tag decides. An id alone does only with no remark or the beginning of the tag, and on its own day: brokers
        use ids again.
        """
        entry = self._by_tag.get(row.order_remark[:TAG_BYTES])
        if entry is None:
            entry = self.by_id(account_key, row.order_id)
            entry = entry if entry is not None and entry.tag.startswith(row.order_remark) else None
        return entry if entry is not None and entry.account_key == account_key else None

    def has_lost(self, entry):
        """Whether an order of the key was about to be sent, and nothing is known of it any more."""
        return not self.lost.isdisjoint(tags_of(entry.action, entry.idempotency_key, entry.sub_account_id))

    def by_id(self, account_key, order_id):
        """The entry of today whose order has this id."""
        entry = self._by_order.get((account_key, order_id))
        return entry if entry is not None and entry.day == self.today() else None

    def is_earlier(self, entry):
        """Whether the order was placed before this journal was opened: a paper exchange knows nothing of it then."""
        return entry.tag[:TAG_BYTES] in self._earlier or entry.day != self.today()


_EVENT_EPOCH_MS = to_ms(datetime(2024, 1, 1))


_MOVE_JOURNAL = ('把它连同 -wal、-shm 一起移走（保留备查）再启动：新日志先看柜台当日的委托，当日的 key 不会重复提交；'
                 '更早的 key 不要再用')
_DAMAGE_REMEDY = '这个 key 不再可用，不会提交；在 QMT 里核对这笔委托，确认没有成立再用新的 key。要清除坏行：收盘后移走日志文件，启动一本新的'


_LOSS_REMEDY = '这个 key 不再可用，不会提交；在 QMT 和交割单里核对这笔委托，确认没有成立再用新的 key'


def _loss_told(key):
    return '委托日志丢失了 key=%s 的记录，柜台当日的委托里也没有它：它可能没有成立，也可能在别的日子成立了' % brief(key)


def _damage_told(place, key):
    return '委托日志第 %d 行（key=%s）已损坏，不能确定它的委托' % (place, brief(key))


def _journal_event(row):
    """A row of `events` as JournalEvent; None for one that is damaged."""
    try:
        row[4].encode('utf-8')
        event = JournalEvent(*row)._replace(payload=json.loads(row[4]))
    except (ValueError, TypeError, AttributeError):
        return None
    return event if isinstance(event.payload, dict) and isinstance(event.account_key, str) else None


def make_tag(action, key, sub=None):
    """TAG_BYTES ASCII characters, which an order_remark is sure to keep; the same for the same key of a (sub-)account.

    Earlier versions' were four longer and no different up to there, so the first TAG_BYTES alone are compared.
    """
    return _tag('%s %s' % (action, key) + ('' if sub is None else '\0%s' % sub))  # no key has a NUL in it


def _tag(text):
    return 'bq' + hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:TAG_BYTES - 2]


def tags_of(action, key, sub):
    """The tags that an order of this key may carry; earlier versions told sub-accounts apart by a space, or not."""
    earlier = make_tag(action, key) if sub is None else _tag('%s %s %s' % (action, key, sub))
    return tuple(OrderedDict.fromkeys((make_tag(action, key, sub), earlier, make_tag(action, key))))


def is_tag(remark):
    return re.match(r'bq[0-9a-f]{%d}' % (TAG_BYTES - 2), remark) is not None


# -- a request to trade, checked for shape -----------------------------------------------------------------------
_ORDER_KEYS = frozenset((
    'account_key sub_account_id security side amount volume style price market wait_timeout order_remark remark '
    'strategy_name idempotency_key valid_until').split())
# Bookkeeping that legacy clients may add; it changes nothing about the order.
_LEGACY_ORDER_KEYS = frozenset((
    'signal_batch_id execution_batch_id client_id request_id market_type execution_claim_token provider '
    'execution_claim_generation gateway_id_snapshot sub_account_binding_id_snapshot backend_provider '
    'binding_version').split())
_STYLE_KEYS = {'limit': {'type', 'price'}, 'market': {'type', 'protect_price', 'market_type'}}
WAIT_LIMIT_S = 600


class OrderTicket(Record):
    """What a client asks for: shape checked, market rules not yet."""

    FIELDS = (('security', ''), ('asked_security', ''), ('side', 'BUY'), ('amount', 0), ('style', 'limit'),
              ('price', None), ('remark', ''), ('strategy_name', ''), ('wait_s', 0.0), ('valid_until', None),
              ('market_type', ''))

    def fingerprint(self, route):
        return _fingerprint([route.key, route.sub and route.sub.name, self.security, self.side, self.amount,
                             self.style, self.price] + list(filter(None, [self.market_type])))

    def journaled(self):
        """What the journal keeps of it: enough to tell the order again when the broker cannot be asked."""
        return {'remark': self.remark, 'security': self.security, 'side': self.side, 'amount': self.amount,
                'style': self.style, 'price': self.price, 'market_type': self.market_type}


def _fingerprint(parts):
    return hashlib.sha256(json.dumps(parts).encode('utf-8')).hexdigest()


def parse_ticket(payload):
    """Payload of broker.place_order -> OrderTicket. An unknown field is refused: it may have meant something."""
    unknown = set(payload) - _ORDER_KEYS - _LEGACY_ORDER_KEYS
    if unknown:
        raise BadRequest('委托含有不认识的字段：%s' % '、'.join(map(brief, sorted(unknown))))
    style, price = _parse_style(payload)
    security = normalize_code(payload.get('security'))
    return OrderTicket(
        security=security, market_type=_parse_market_type(payload, style, security),
        asked_security=payload.get('security'),
        side=check_choice(payload.get('side'), 'side', SIDES), style=style, price=price,
        amount=check_whole(_agreed(payload, 'amount', 'volume'), 'amount', 1),
        remark=_optional_text(_agreed(payload, 'order_remark', 'remark'), 'order_remark'),
        strategy_name=_optional_text(payload.get('strategy_name'), 'strategy_name'), wait_s=parse_wait(payload),
        valid_until=_instant(payload.get('valid_until'), 'valid_until'))


def _agreed(payload, *names):
    """The one value under any of these names; two different ones are refused."""
    values = [payload[name] for name in names if payload.get(name) is not None]
    if any(_differ(value, values[0]) for value in values):
        raise BadRequest('%s 互相矛盾' % '、'.join(names))
    return values[0] if values else None


def _differ(one, other):
    """NaN does not differ from NaN: what is wrong with it is for the check of its range to say."""
    return one != other and (one == one or other == other)


def _instant(value, name):
    """A Beijing time with a clock part, or None. A bare date would be its midnight, which nobody means."""
    moment, has_clock = check_moment(value, name) or (None, True)
    if not has_clock:
        raise BadRequest('%s 应包含时间' % name, '例如 2024-01-05 09:31:00')
    return moment


def _optional_text(value, name):
    return '' if value is None or value == '' else check_text(value, name)


def _parse_style(payload):
    """('limit', price) or ('market', protect price or None)."""
    style = payload.get('style')
    if style is None:
        style = {'type': _implied_style(payload)}
    if not isinstance(style, dict):
        raise BadRequest('style 应为 {"type": "limit", "price": ...} 或 {"type": "market"}，收到 %s' % brief(style))
    kind = check_choice(style.get('type'), 'style.type', ('limit', 'market'))
    if set(style) - _STYLE_KEYS[kind]:
        raise BadRequest('%s 委托的 style 含有不认识的字段：%s' % (
            kind, '、'.join(map(brief, sorted(set(style) - _STYLE_KEYS[kind])))))
    if bool(_flag(payload, 'market', kind == 'market')) != (kind == 'market'):
        raise BadRequest('market 与 style 互相矛盾')
    return kind, _style_price(kind, style, payload)


def _parse_market_type(payload, style, security):
    """'' where none is asked for. What the exchange does not know is refused: another kind is another order."""
    asked = payload.get('style') if isinstance(payload.get('style'), dict) else {}
    values = {name: value.strip().lower() if isinstance(value, str) else value for name, value in (
        ('style.market_type', asked.get('market_type')), ('market_type', payload.get('market_type')))}
    kind = _agreed({name: None if value == '' else value for name, value in values.items()}, *values)
    if kind is None:
        return ''
    if style != 'market':
        raise BadRequest('market_type 只用于市价委托，这是限价委托')
    known = () if instrument(security).kind == 'bond' else MARKET_TYPES.get(qmt_code(security)[-2:], ())
    return check_choice(kind, '%s 的 market_type' % security, known)


def _implied_style(payload):
    if payload.get('market') is True:
        return 'market'
    if payload.get('price') is None:
        raise BadRequest('没有说明是限价还是市价', '给出 style，或给出 price（限价），或 market=true（市价）')
    return 'limit'


def _style_price(kind, style, payload):
    inner = style.get('price' if kind == 'limit' else 'protect_price')
    price = _agreed({'style.price': inner, 'price': payload.get('price')}, 'style.price', 'price')
    if price is None and kind == 'market':
        return None
    price = round(check_number(price, 'price', 0, 1e6), 6)  # what binary fractions add goes: 10.8 - 0.2 is 10.6
    if price <= 0:
        raise BadRequest('price 应大于 0')
    return price


def parse_wait(payload, default=0):
    value = payload.get('wait_timeout')
    return check_number(default if value is None else value, 'wait_timeout', 0, WAIT_LIMIT_S)


def parse_key(payload, prefix):
    """The client's idempotency key; a client that sends none gets one made, and with it no protection."""
    key = payload.get('idempotency_key')
    return '%s-%s' % (prefix, uuid.uuid4().hex) if key in (None, '') else check_key(key)


def check_key(value):
    return check_text(value, 'idempotency_key', 255)


def parse_order_id(value):
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return check_text(value, 'order_id', 64)


# -- market rules on a ticket ------------------------------------------------------------------------------------
def approve_order(ticket, route, quote, closeable, now, state=MarketState(True, False, True)):
    """OrderTicket -> OrderRequest within every rule, or OrderRejected with the reason. Nothing was sent yet.

    quote: Tick; closeable: shares that can be sold now; state: MarketState. What cannot be computed does not pass.
    """
    _refuse_if(not tradable(ticket.security), '%s 不是可以买卖的证券' % ticket.security)
    _refuse_if(quote.paused, '%s 停牌' % ticket.security)
    problem = lot_problem(ticket.security, ticket.side, ticket.amount, closeable, ticket.style)
    _refuse_if(problem, '%s %s' % (ticket.security, problem))
    _refuse_if(ticket.side == 'SELL' and ticket.amount > closeable,
               '%s 可卖数量 %d，不足 %d' % (ticket.security, closeable, ticket.amount))
    price = (_limit_price if ticket.style == 'limit' else _market_bound)(ticket, quote, now, state)
    _check_sub_limit(ticket, route, price, quote)
    bound = {'price': price} if ticket.style == 'limit' else {'protect_price': price}
    return OrderRequest(security=ticket.security, side=ticket.side, amount=ticket.amount, style=ticket.style,
                        strategy_name=ticket.strategy_name, market_type=ticket.market_type, **bound)


def _whole_lots(ticket, closeable):
    """The largest order of at most the asked amount, where the asked one is none."""
    if not lot_problem(ticket.security, ticket.side, ticket.amount, closeable):
        return ticket
    amount = round_lot(ticket.security, ticket.amount)
    return ticket.replace(amount=amount) if amount else ticket


def _refuse_if(problem, message):
    if problem:
        raise OrderRejected(message, broker_called=False)


def _limit_price(ticket, quote, now, state):
    price, tick = ticket.price, instrument(ticket.security).tick
    _refuse_if(not on_tick(price, tick), '价格 %s 不是最小变动价位 %s 的整数倍' % (price, tick))
    high, low = _outer_limits(ticket.security, quote, now, state)
    _refuse_if(high and price > high, '价格 %s 高于涨停价 %s' % (price, high))
    _refuse_if(low and price < low, '价格 %s 低于跌停价 %s' % (price, low))
    cage = price_cage(ticket.security, ticket.side, _reference(ticket, quote), now.date()) if state.continuous else None
    _refuse_if(cage and (price > cage if ticket.side == 'BUY' else price < cage),
               '价格 %s 超出价格笼子（%s 不能劣于 %s）' % (price, ticket.side, cage))
    return price


def _day_limits(security, quote, now, state):
    """(high, low); refused where the security has limits but nobody knows them."""
    if state.unlimited or limit_ratio(security, now.date()) is None:
        return None, None
    high, low = quote.high_limit, quote.low_limit
    if not (_is_price(high) and _is_price(low)):
        high, low = price_limits(security, quote.pre_close, now.date())
        if not inside_limits((high, low), quote.low, quote.high):  # then they are wider, or there are none
            return price_limits(security, quote.pre_close, now.date(), seen=(quote.low, quote.high))
    _refuse_if(not (_is_price(high) and _is_price(low)), '%s 的涨跌停价未知' % security)
    return high, low


def _outer_limits(security, quote, now, state):
    """As _day_limits, but of a fund the widest that its kind may have, where its own are only derived: the newest
    funds with 20 % are missing in any list. Orders between the two are for the exchange to judge."""
    high, low = _day_limits(security, quote, now, state)
    derived = not state.told or not (_is_price(quote.high_limit) and _is_price(quote.low_limit))
    if high is None or not derived or not may_be_wider(security):
        return high, low
    return widest_limits(security, quote.pre_close, now.date())


def _is_price(value):
    """None, 0 and NaN stand for unknown."""
    return value is not None and 0 < value < math.inf


def _reference(ticket, quote):
    """What cage and value are measured from: the other side's best price, else the own side's, the last, the close."""
    best = (quote.a1_p, quote.b1_p) if ticket.side == 'BUY' else (quote.b1_p, quote.a1_p)
    price = next(filter(_is_price, best + (quote.last_price, quote.pre_close)), None)
    _refuse_if(price is None, '%s 没有行情，无法核对价格' % ticket.security)
    return price


def _market_bound(ticket, quote, now, state):
    """The stricter of the rules' bound and the client's own, rounded to the safe side."""
    high, low = _day_limits(ticket.security, quote, now, state)
    bound = protect_price(ticket.security, ticket.side, _reference(ticket, quote), high, low)
    _refuse_if(bound is None, '%s 无法确定市价委托的保护价' % ticket.security)
    bound = bound if ticket.price is None else _stricter(ticket, bound)
    _refuse_if(high and not low <= bound <= high, '保护价 %s 不在跌停价 %s 与涨停价 %s 之间' % (bound, low, high))
    return bound


def _stricter(ticket, bound):
    tick = instrument(ticket.security).tick
    if ticket.side == 'SELL':
        return max(bound, ceil_to_tick(ticket.price, tick))
    own = floor_to_tick(ticket.price, tick)
    _refuse_if(own <= 0, '保护价 %s 小于最小变动价位 %s' % (ticket.price, tick))
    return min(bound, own)


def _check_sub_limit(ticket, route, price, quote):
    """A sale fills at the market's price where that is better: it is worth the highest of what is known."""
    limit = route.sub.limit if route.sub else None
    if limit is not None:
        worth = price
        if ticket.side == 'SELL':
            worth = max([price, _reference(ticket, quote)] + list(filter(_is_price, (quote.b1_p, quote.last_price))))
        value = Decimal(repr(worth)) * ticket.amount
        _refuse_if(value > Decimal(repr(limit)),
                   '委托金额 %s 元超过子账户 %s 的每笔上限 %s 元' % (value, route.sub.name, limit))


# -- waiting -----------------------------------------------------------------------------------------------------
class OrderWatch:
    """Wakes those who wait for an order to become final. Fed by the brokers' listeners, never polls.

    A wait holds a worker: beyond LIMIT waiters an order is answered at once, as it stands, so that others are served.
    So is a cancel beyond CANCEL_LIMIT: it was sent, and those of others need the workers that are left.
    """

    LIMIT, CANCEL_LIMIT = 64, 256

    def __init__(self):
        self._changed, self._stopped, self._waiting = threading.Condition(), False, Counter()
        self._watched = {}  # (account key, order id) -> [number of waiters, newest Order]

    def notice(self, account_key, order):
        with self._changed:
            watched = self._watched.get((account_key, order.order_id))
            if watched is not None:
                watched[1] = order
                self._changed.notify_all()

    def stop(self):
        """Everybody who waits gets the order as it stands, now and from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait_final(self, account_key, order_id, read, timeout_s, urgent=False):
        """The order when final, or as it stands when the time is over. `read()` asks the broker once, first.

        urgent: a cancel, which waits however many orders do.
        """
        watched = self._enter(account_key, order_id)
        try:
            order = read()
            if order is None or order.final or timeout_s <= 0:
                return order
            with self._changed:
                self._wait(watched, timeout_s, urgent)
            return watched[1] or order
        finally:
            self._leave(account_key, order_id)

    def _wait(self, watched, timeout_s, urgent):
        if self._waiting[urgent] >= (self.CANCEL_LIMIT if urgent else self.LIMIT):
            return
        self._waiting[urgent] += 1
        try:
            wait_for_condition(self._changed, lambda: self._stopped or self._is_final(watched[1]), timeout_s)
        finally:
            self._waiting[urgent] -= 1

    @staticmethod
    def _is_final(order):
        return order is not None and order.final

    def _enter(self, account_key, order_id):
        with self._changed:
            watched = self._watched.setdefault((account_key, order_id), [0, None])
            watched[0] += 1
            return watched

    def _leave(self, account_key, order_id):
        with self._changed:
            watched = self._watched[account_key, order_id]
            watched[0] -= 1
            if not watched[0]:
                del self._watched[account_key, order_id]


class KeyLocks:
    """One thread at a time for each key: a retry waits for the attempt that is still under way."""

    def __init__(self):
        self._lock = threading.Lock()
        self._held = {}  # key -> [threads that hold or want it, its lock]

    @contextlib.contextmanager
    def alone(self, key, timeout_s):
        """Yields whether the key could be had in time."""
        with self._lock:
            slot = self._held.setdefault(key, [0, threading.Lock()])
            slot[0] += 1
        got = wait_for_lock(slot[1], timeout_s)
        try:
            yield got
        finally:
            if got:
                slot[1].release()
            self._forget(key, slot)

    def _forget(self, key, slot):
        with self._lock:
            slot[0] -= 1
            if not slot[0]:
                del self._held[key]


class Settler:
    """A thread that calls work() when woken, and again every interval while work() says that something is left."""

    INTERVAL_S = 10.0

    def __init__(self, work):
        self._work, self._changed = work, threading.Condition()
        self._woken, self._closed = True, False
        self._thread = threading.Thread(target=self._run, name='settler', daemon=True)

    def start(self):
        self._thread.start()

    def wake(self):
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            wait_for_thread(self._thread)

    def _run(self):
        left = False
        while self._wait(left):
            try:
                left = self._work()
            except Exception:  # a journal or broker in trouble is asked again
                LOG.exception('核对未知委托时出错')
                left = True

    def _wait(self, left):
        """False when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._closed, self.INTERVAL_S if left else None)
            self._woken = False
            return not self._closed


# -- the stream of orders, trades and account figures ------------------------------------------------------------
class OrderStream:
    """Numbers what the brokers tell, keeps it in the journal and hands it on, all in one order, from one thread.

    For the caller: tell (by the brokers' listeners, never blocks), look_again (an account was away: what it tells now
    may be news), hear and leave. hearer(event): called for each JournalEvent that comes after `after`, first those of
    the journal; it must not block. describe(account key, kind, record) -> (sub-account or None, row).
    """

    SLICE = 200  # events of the journal that are told at once
    PAUSE_S = 0.005  # a burst is kept in few transactions; what comes alone waits for nothing

    def __init__(self, journal, describe, snapshot):
        self._journal, self._describe, self._snapshot = journal, describe, snapshot
        self._hearers, self._joining = {}, {}
        self._told, self._day = {}, None  # (account key, kind, id) -> what was last told of it on that day
        self._mailbox = Mailbox('order-stream', self._work, self.PAUSE_S)

    def start(self):
        self._begin_day()
        self._mailbox.start()

    def close(self):
        """What was told before is still kept."""
        self._mailbox.close()

    def tell(self, account_key, kind, record):
        self._put('tell', account_key, kind, record)

    def look_again(self, account_key):
        self._put('look', account_key, None, None)

    def hear(self, owner, hearer, after=None):
        """(the newest number, whether events after `after` are missing here). None for `after`: from now on."""
        last = self._journal.last_event()
        gap = after is not None and self._journal.misses_after(after)
        self._put('hear', owner, hearer, last if after is None else self._journal.newest_after(after))
        return last, gap

    def leave(self, owner):
        self._put('leave', owner, None, None)

    def _put(self, *job):
        if not self._mailbox.closed:  # a replay that goes on would hold up the end
            self._mailbox.put(*job)

    # -- the stream's thread ---------------------------------------------------------------------------------------
    def _begin_day(self):
        """Brokers use their ids again. What was told today, by an earlier run or before the clock went astray, is no
        news."""
        self._day, self._told = self._journal.today(), {}
        self._let_go()
        for event in self._kept_today():
            try:
                self._is_change(event.account_key, event.event, event.payload)
            except (KeyError, TypeError) as error:  # a row that lacks something: what it told may be told again
                LOG.error('委托日志里的回报 %s 缺少内容：%s', event.seq, printable(error))

    def _kept_today(self):
        """A disk that cannot be read has something told twice, rather than the news of the moment not at all."""
        try:
            return self._journal.events_after(self._journal.newest_after(0), today=True)
        except JournalError as error:
            LOG.error('%s', printable(error))
            return []

    def _work(self, jobs):
        found = []
        for job in jobs:
            try:
                found = self._do(found, *job)
            except Exception:  # one bad record costs the others nothing
                LOG.exception('处理委托事件出错')
        self._hand_on(found)

    def _do(self, found, name, first, second, third):
        """What is found and not handed on yet."""
        if name == 'tell':
            return found + self._news(first, second, third)
        if name == 'look':
            return found + self._look(first)
        found = self._hand_on(found)
        if name == 'on' and self._joining.get(first) is not second:
            return found  # it has left, or asked anew
        self._hearers.pop(first, None)
        self._joining.pop(first, None)
        if name != 'leave':
            self._begin(first, second, third)
        return found

    def _news(self, account_key, kind, record):
        sub, row = self._describe(account_key, kind, record)
        text = json.dumps(row)  # what cannot be kept fails here, alone
        if not self._is_news(account_key, kind, row):
            return []
        if kind == 'order' and row['status'] == 'rejected':  # often after its submission was answered
            self._note_rejected(row)
        return [(account_key, sub, kind, row, text)]

    @staticmethod
    def _note_rejected(row):
        told = '委托 %s key=%s 没有成立：%s' % tuple(map(printable, (
            row['order_id'], row.get('idempotency_key'), row['status_msg'] or '柜台没有说明原因')))
        LOG.warning('%s', told)
        ORDER_LOG.warning('%s WARNING %s', log_time(time.time()), told)

    def _is_news(self, account_key, kind, row):
        """A broker tells some things twice, and after a reconnect much that was told before."""
        if self._day != self._journal.today():
            self._begin_day()
        return self._is_change(account_key, kind, row)

    def _is_change(self, account_key, kind, row):
        key, said = _essence_of(kind, row)
        before = self._told.get((account_key, kind, key))
        if before == said or (kind == 'order' and before is not None and _goes_back(before, said)):
            return False
        self._told[account_key, kind, key] = said
        return True

    def _let_go(self):
        try:
            self._journal.prune()
        except JournalError as error:
            LOG.error('%s', printable(error))

    def _look(self, account_key):
        try:
            records = self._snapshot(account_key)
        except BulletError as error:
            LOG.info('账户 %s 的委托暂时不能核对：%s', account_key, printable(error))
            return []
        found = []
        for kind, record in records:
            try:
                found += self._news(account_key, kind, record)
            except Exception:
                LOG.exception('处理委托事件出错')
        return found

    def _hand_on(self, found):
        """Kept first, told then."""
        for event in self._kept(found) if found else ():
            for hearer in list(self._hearers.values()):
                self._tell_one(hearer, event)
        return []

    @staticmethod
    def _tell_one(hearer, event):
        """One that fails costs the others nothing."""
        try:
            hearer(event)
        except Exception:
            LOG.exception('委托事件没有送出')

    def _kept(self, found):
        """A disk that is full costs the numbers, not the news."""
        try:
            return self._journal.add_events(found)
        except JournalError as error:
            LOG.error('%s', printable(error))
            return [JournalEvent(None, *item[:4]) for item in found]

    def _begin(self, owner, hearer, after):
        """Some at a time, so that it holds up nobody's news; once it knows all that is kept it hears the rest live."""
        missed = self._journal.events_after(after, limit=self.SLICE)
        for event in missed:
            self._tell_one(hearer, event)
        if len(missed) < self.SLICE:
            self._hearers[owner] = hearer
        else:
            self._joining[owner] = hearer
            self._put('on', owner, hearer, missed[-1].seq)


def _essence_of(kind, row):
    """(what it is about, what makes a change of it worth telling)."""
    if kind == 'order':
        said = row['security'], row['status'], row['filled'], row['status_msg']
        return (row['order_id'], row.get('idempotency_key')), said
    if kind == 'trade':
        return (row['trade_id'], row['order_id']), True
    return '', tuple(sorted((name, value) for name, value in row.items() if name != 'positions'))


def _goes_back(before, said):
    """A push that waited while the orders were read is older than what was read."""
    return said[2] < before[2] or (before[1] in FINAL_STATUSES and said[1] not in FINAL_STATUSES)


# -- the desk ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _nothing_sent():
    """A failure inside comes before the broker is called, and says so."""
    try:
        yield
    except Exception as error:
        raise _as_not_sent(error)


def _is_order_of(order, ticket):
    """Whether a broker's order is what the ticket asks for; legacy clients' amounts were rounded down to lots."""
    same_price = ticket.style != 'limit' or ticket.price is None or abs(order.order_price - ticket.price) < 1e-6
    return ((order.security, order.side) == (ticket.security, ticket.side) and same_price
            and 0 <= ticket.amount - order.amount < instrument(ticket.security).lot)


def _could_be(order, ticket):
    """As _is_order_of, where a figure that could not be read (0) may be any."""
    return _is_order_of(order.replace(amount=order.amount or ticket.amount,
                                      order_price=order.order_price or ticket.price or 0.0), ticket)


def _as_not_sent(error):
    """The error under a code that no client reads as 'may have reached the broker'."""
    if not isinstance(error, BulletError):
        LOG.error('委托前的检查出错', exc_info=error)
        return InternalError('委托前的检查出错，没有提交：%s' % printable(error), '详情见服务端日志', broker_called=False)
    if error.code in (BulletError.code, RequestTimeout.code):
        return QmtUnavailable('委托前的检查没有完成，没有提交', '稍后重试', broker_called=False)
    error.broker_called = False
    return error


CANCEL_WAIT_S = 5.0
SETTLE_MARGIN_S = 30.0  # how much longer than its deadline a submission may have been on its way


_INCOMPLETE_REMEDY = '几秒后用同一 key 重试；一直如此时，看 QMT 的当日委托是否列得出来，空着就手工报一笔远离市价的委托再撤掉'
_TAG_REMEDY = ('这个终端或柜台没有带回完整的 20 字节备注：备注晚些到了会自动恢复；否则请券商打开备注（投资备注）或换一个终端，'
               '撤掉没有备注的委托（已成交的，重启服务端）后再试一笔')


class _SeenRemarks:
    """Of a day: number of the newest order that came back with its tag; number -> id of those that came back without.

    What came back whole once counts as whole.
    """

    def __init__(self, day):
        self.day, self.whole, self.missing = day, -1, {}


def _ticket_of(entry):
    """What the journal keeps of an order, as ticket."""
    return OrderTicket(**entry.request)


def _sub_name(route):
    return route.sub.name if route.sub else None


class OrderDesk:
    """Orders, cancels and account views of all accounts, from payloads to wire rows.

    place, cancel and resolve are the only way to a broker's submit and cancel. deadline_s bounds a broker call.
    """

    TAKEN_OVER_S = 90.0  # after the start: how long the orders of a server before this one may still come

    def __init__(self, accounts, data, journal, clock, deadline_s=60.0):
        self.accounts, self.data, self.journal, self.clock = accounts, data, journal, clock
        self.deadline_s = deadline_s
        self._watch, self._keys = OrderWatch(), KeyLocks()
        self._settler = Settler(self.settle_open)
        self.stream = OrderStream(journal, self._event_of, self._snapshot)
        # When each submission of this run began, by _moment; earlier ones began before the desk.
        self._started, self._begun = self._moment(), {}
        self._strangers = {}  # account key -> tag -> order: what it held when this run looked at all of it
        self._others, self._looked_at_s = set(), {}  # account keys with tags of another journal; key -> last such look
        self._doubled, self.alarms = set(), deque(maxlen=100)
        self._remarks = {}  # account key -> _SeenRemarks
        self.publish = lambda event, payload: None  # the server sends it to whoever wants to hear of it
        for key, broker in accounts.brokers.items():
            broker.set_listener(self._listener(key))
            broker.expects_orders(lambda key=key: self.journal.has_places(key))

    def _moment(self):
        """Now, by the clock that nobody can set, in seconds, and by the wall's, in ms."""
        return self.clock.monotonic(), to_ms(self.clock.now())

    def _listener(self, account_key):
        def listen(kind, record):
            if kind == 'order':
                self._watch.notice(account_key, record)
                self._look_at_push(account_key, record)
            self.stream.tell(account_key, kind, record)
        return listen

    def _event_of(self, account_key, kind, record):
        """(sub-account or None, row) of what a broker told."""
        if kind == 'account':
            row, entry = record.to_wire(), None
            del row['positions']
        else:
            entry = self.journal.of_order(account_key, record)
            row = (self._dress(account_key, record) if kind == 'order' else record.replace(
                order_remark=self._remark(account_key, record))).to_wire()
        sub = entry.sub_account_id if entry else None
        return sub, dict(row, account_key=account_key, sub_account_id=sub)

    def _snapshot(self, account_key):
        """[(kind, record)] of the day, as the broker shows it."""
        broker = self.accounts.brokers[account_key]
        return [('order', order) for order in broker.orders()] + [('trade', trade) for trade in broker.trades()]

    def _look_at_push(self, account_key, order):
        """A tag that is not whole; an order that was declared absent and shows up after all; one that nobody knows."""
        entry = self.journal.of_order(account_key, order)
        if entry is not None:
            self._compare_tag(entry, order)
            if entry.state == ABSENT or (entry.state == UNKNOWN and entry.day != self.journal.today()):
                self._settler.wake()
            elif entry.order_id not in (None, order.order_id) and is_tag(order.order_remark):
                self._tell_doubled(account_key, order, entry.order_id)
        elif is_tag(order.order_remark):
            self._others.add(account_key)
            self._strangers.get(account_key, {}).setdefault(order.order_remark[:TAG_BYTES], order)

    def health(self, sub_account_id=None):
        """What the desk has to say in admin.health; a sub-account learns nothing of the orders of others."""
        return {'alarms': [] if sub_account_id else list(self.alarms), 'journal': {
            'id': self.journal.id, 'losses': list(self.journal.losses),
            'damaged_rows': [place for place, _ in self.journal.damaged[:100]]},
            'stopped_accounts': sorted(filter(self._untagged, list(self._remarks)))}

    def stop_waiting(self):
        """Ends every wait for an outcome, so that the server can stop; the answers say that the order goes on."""
        self._watch.stop()

    def close(self):
        self._settler.close()
        self.stream.close()
        self.journal.close()

    def _route(self, payload):
        return self.accounts.route(payload.get('account_key'), payload.get('sub_account_id'))

    # -- placing -------------------------------------------------------------------------------------------------
    def place(self, payload, floor_lots=False):
        """floor_lots: for a client that leaves whole lots to the server; the answer then carries a warning.

        repeated in the answer: the order was there before this request.
        """
        ticket, route = parse_ticket(payload), self._route(payload)
        key = parse_key(payload, 'place')
        with self._claimed(PLACE, key, route, ticket.fingerprint(route), ticket.journaled()) as entry:
            found = self._left_behind(entry, route, ticket) if entry.state == NEW else entry
            placed = found or self._place_new(entry, route, ticket, floor_lots)
        entry = self._settle(placed, route)
        answer = _place_wire(self._outcome(entry, route, ticket.wait_s), entry, ticket)
        return dict(answer, repeated=True) if found else answer

    def _place_new(self, entry, route, ticket, floor_lots):
        if self._untagged(route.key):
            with _nothing_sent():
                self._listed(route)  # a remark may come later than the order
        untagged = self._untagged(route.key)
        if untagged:
            raise OrderTagLost('账户 %s 已停止下单：委托 %s 的备注没有完整返回，收不到回答的委托将无法核对' % (
                route.key, '、'.join(untagged[:5])), _TAG_REMEDY)
        return self._submit(entry, self._approve(entry, ticket, route, floor_lots), route, ticket.valid_until)

    def _seen_today(self, account_key):
        seen = self._remarks.get(account_key)
        if seen is None or seen.day != self.journal.today():
            seen = self._remarks[account_key] = _SeenRemarks(self.journal.today())
        return seen

    def _untagged(self, account_key):
        """Ids of the orders that came back without their tags after the newest that came back with it. They stop all
        others: only the remark shows later whether an order arrived."""
        seen = self._seen_today(account_key)
        return [order_id for number, order_id in sorted(list(seen.missing.items())) if number > seen.whole]

    def _compare_tag(self, entry, order):
        """Takes down whether the remark came back whole. What is over and came to nothing, or is over since an earlier
        run, does not count against: the next order shows how it is now."""
        if order is None or order.order_id != entry.order_id or not _is_order_of(order, _ticket_of(entry)):
            return
        seen = self._seen_today(entry.account_key)
        if entry.day != seen.day:
            return
        if order.order_remark[:TAG_BYTES] == entry.tag[:TAG_BYTES]:
            seen.whole = max(seen.whole, entry.number)
            seen.missing.pop(entry.number, None)
        elif order.final and (not order.filled or self.journal.is_earlier(entry)):
            seen.missing.pop(entry.number, None)
        elif entry.number > seen.whole and entry.number not in seen.missing:
            seen.missing[entry.number] = order.order_id
            self._alarm(OrderTagLost.code, entry.account_key, '委托 %s 的备注是 %s，报出时是 %s；停止下单，撤单照常' % (
                order.order_id, brief(order.order_remark), entry.tag), _TAG_REMEDY)

    @contextlib.contextmanager
    def _claimed(self, action, key, route, fingerprint, request):
        """Yields the entry of the key, a NEW one if there is none, while no other thread works on the key."""
        with self._keys.alone((action, key), self.deadline_s) as alone:
            if not alone:
                raise self._unknown(key, '同一委托仍在提交中')
            entry = self._earlier(action, key, route) or self.journal.entry(action, key, route, fingerprint, request)
            if entry.fingerprint not in (fingerprint, ANY_FINGERPRINT):
                raise IdempotencyConflict('idempotency_key %s 已用于另一笔委托' % brief(key),
                                          '每笔新委托用新的 key；重试同一笔时各字段保持不变')
            yield entry

    def _earlier(self, action, key, route):
        """What the journal knows of the key. A cancel does no harm twice: it goes on even where the disk fails."""
        try:
            return self.journal.find(action, key, _sub_name(route))
        except JournalError as error:
            if action != CANCEL:
                raise
            LOG.error('%s', printable(error))

    def _left_behind(self, entry, route, ticket):
        """The entry, accepted, if the broker has the order though this journal has never seen its key.

        A journal cannot tell that it lost its end, is an old copy or the first one after another.
        """
        with _nothing_sent():
            strange, complete = self._strange_orders(route)
            order = self._under_tag(entry, strange)
            if order is None and not complete:
                raise QmtUnavailable('当日委托还没有到齐，不能确定这个 key 是否已经用过，没有提交', _INCOMPLETE_REMEDY,
                                     retry_after_s=2)
        if order is None:
            if self.journal.has_lost(entry):
                raise JournalError(_loss_told(entry.idempotency_key), _LOSS_REMEDY)
            return None
        if not _is_order_of(order, ticket):
            raise IdempotencyConflict('idempotency_key %s 已用于另一笔委托' % brief(entry.idempotency_key), '每笔新委托用新的 key')
        return self.journal.record(entry, ACCEPTED, order.order_id)

    def _under_tag(self, entry, orders):
        """The one of {tag: order} that a tag of the entry's key marks, or None; an earlier tag may be another key's."""
        for tag in tags_of(PLACE, entry.idempotency_key, entry.sub_account_id):
            order = orders.get(tag)
            known = order and self.journal.of_order(entry.account_key, order)
            if order and (known is None or known.idempotency_key == entry.idempotency_key):
                return order
        return None

    def _strange_orders(self, route):
        """(tag -> order of what the account held when this run looked, whether that is certainly all).

        One look a run is enough, unless the journal is known to have lost something: then an order of the time before
        may be on its way still.
        """
        known = self._strangers.get(route.key)
        if known is not None and not self.journal.losses:
            if self._is_shared(route.key):
                known.update(self._look_for_tags(route)[0])
            return known, True
        found, complete = self._look_for_tags(route)
        if complete:
            if known is None:
                self._tell_strangers(route.key, found.values())
            self._strangers[route.key] = found
        return found, complete

    def _is_shared(self, account_key):
        """Whether another server may place under the same keys: one was seen, or this one may have just taken over.

        Pushes tell of its orders, but a terminal can stop pushing. After the start a look a second is enough.
        """
        now = self.clock.monotonic()
        return account_key in self._others or (now - self._started[0] < self.TAKEN_OVER_S
                                               and now - self._looked_at_s.get(account_key, -math.inf) >= 1)

    def _look_for_tags(self, route):
        self._looked_at_s[route.key] = self.clock.monotonic()
        orders, complete = self._listed(route)
        found = {order.order_remark[:TAG_BYTES]: order for order in orders if is_tag(order.order_remark)}
        if self._strange_ids(route.key, found.values()):
            self._others.add(route.key)
        return found, complete

    def _strange_ids(self, account_key, orders):
        strange = [order for order in orders if self.journal.of_order(account_key, order) is None]
        known = self.journal.tags() if strange else ()
        return [order.order_id for order in strange if order.order_remark[:TAG_BYTES] not in known]

    def _tell_strangers(self, account_key, orders):
        strange = self._strange_ids(account_key, orders)
        if strange:
            self._alarm('ORDER_NOT_IN_JOURNAL', account_key, '柜台有 %d 笔带标记的委托不在委托日志里：%s%s' % (
                len(strange), '、'.join(strange[:10]), ' 等' if len(strange) > 10 else ''),
                '日志丢过记录，或另一个服务端也在用这个账户；它们的 key 再来时得到原来的委托，不会重复提交', logging.WARNING)

    def _listed(self, route):
        """orders_known of the broker. Two orders under one tag are an alarm: one of them was sent twice."""
        orders, complete = route.broker.orders_known()
        self._compare_tags(route, orders)
        seen = {}
        for order in orders:
            if is_tag(order.order_remark):
                first = seen.setdefault(order.order_remark[:TAG_BYTES], order.order_id)
                if first != order.order_id:
                    self._tell_doubled(route.key, order, first)
        return orders, complete

    def _compare_tags(self, route, orders):
        for order in orders:
            entry = self.journal.of_order(route.key, order)
            if entry is not None:
                self._compare_tag(entry, order)
        return orders

    def _tell_doubled(self, account_key, order, first):
        if (account_key, order.order_id) not in self._doubled:
            self._doubled.add((account_key, order.order_id))
            self._alarm('ORDER_DOUBLED', account_key, '委托 %s 与 %s 的标记相同（%s）' % (
                order.order_id, first, order.order_remark), '在 QMT 里核对这两笔，多余的手工撤掉')

    def _alarm(self, code, account_key, message, hint, level=logging.ERROR):
        """Something that somebody has to look at: in the log now, in health until the server ends."""
        LOG.log(level, '[%s] 账户 %s：%s（%s）', code, account_key, printable(message), hint)
        self.alarms.append({'code': code, 'account_key': account_key, 'message': message, 'hint': hint,
                            'time': self.clock.now().isoformat(sep=' ', timespec='seconds')})

    def _approve(self, entry, ticket, route, floor_lots):
        """A refusal is the answer to this key for good; any other failure leaves the key as if never used."""
        try:
            with _nothing_sent():
                closeable = self._closeable(route, ticket.security) if ticket.side == 'SELL' else 0
                quote, state = self.data.quote(ticket.security), self.data.market_state(ticket.security)
                ticket = _whole_lots(ticket, closeable) if floor_lots else ticket
                return approve_order(ticket, route, quote, closeable, self.clock.now(), state).replace(tag=entry.tag)
        except OrderRejected as error:
            raise self._refused(entry, error)

    def _closeable(self, route, security):
        return sum(item.closeable_amount for item in route.broker.positions() if item.security == security)

    def _submit(self, entry, request, route, valid_until):
        """The journal knows of it, on disk, before the broker does."""
        now = self.clock.now()
        deadline_s = self._time_left(entry, now, valid_until)
        over = to_ms(now) + int((deadline_s + SETTLE_MARGIN_S) * 1000)
        self._begun[entry.tag] = self._moment()
        entry = self.journal.record(entry._replace(unanswered=1), SUBMITTING, deadline_ms=over, sync=True)
        try:
            order_id = route.broker.submit(request, deadline_s)
        except OrderRejected as error:
            error.broker_called = True
            raise self._refused(entry, error)
        except Exception as error:
            if isinstance(error, QmtUnavailable) and error.broker_called is False:
                self.journal.forget(entry)  # the adapter says so itself: it never got as far as the broker
                raise
            answered = isinstance(error, OrderStateUnknown) and error.answered
            self._note(entry._replace(unanswered=int(not answered)), UNKNOWN)
            self._settler.wake()
            raise self._unknown(entry.idempotency_key, '委托的结果未知：%s' % printable(error))
        return self._note(entry, ACCEPTED, order_id)

    def _time_left(self, entry, now, valid_until):
        if valid_until is None:
            return self.deadline_s
        left_s = (valid_until - now).total_seconds()
        if left_s <= 0:
            raise self._refused(entry, OrderRejected('委托已过有效时间 %s，没有提交' % valid_until.isoformat(sep=' '),
                                                     broker_called=False))
        return min(self.deadline_s, left_s)

    def _refused(self, entry, error):
        """The error, once the journal holds it: every copy of the order that is still to come gets the same answer."""
        self._note(entry, REJECTED, answer=error.to_wire())
        return error

    def _note(self, entry, state, order_id=None, answer=None):
        """Records what is already a fact. Where the disk fails, the entry on it stays open, and is asked about."""
        if state not in OPEN_STATES:
            self._begun.pop(entry.tag, None)
        try:
            return self.journal.record(entry, state, order_id, answer)
        except JournalError as error:
            LOG.error('%s', printable(error))
            return entry._replace(state=state, order_id=order_id or entry.order_id, answer=answer or entry.answer)

    def _unknown(self, key, message):
        return OrderStateUnknown(message, '不要换 key 重发；用同一 idempotency_key 重试或查询，不会重复下单',
                                 idempotency_key=key, broker_called=True)

    def _settle(self, entry, route):
        """The entry once accepted; rejections and unknown outcomes are raised. Never submits."""
        if entry.state in UNSEEN_STATES:
            entry = self._looked_up(entry, route)
        if entry.state in OPEN_STATES:
            raise self._unknown(entry.idempotency_key, '委托的结果仍然未知' + (
                '：终端没有回答，它可能还会报出；收盘（15:35）之后、当日委托里又没有无备注的相同委托，才能确定没有报出' if entry.unanswered else ''))
        if entry.state in (REJECTED, ABSENT):
            raise error_from_wire(entry.answer)
        return entry

    def _looked_up(self, entry, route):
        """A broker that cannot be asked leaves it as it was."""
        try:
            looked_up = self._concluded(entry, *self._listed(route))
            self._report(entry, looked_up)
            return looked_up
        except Exception as error:
            if entry.state == ABSENT:
                return entry
            raise self._unknown(entry.idempotency_key, '委托的结果仍然未知：%s' % printable(error))

    def _concluded(self, entry, orders, complete):
        """What the broker's list says of an open entry. Absent counts only from a list known to be complete, that holds
        nothing which could be it, and after the time in which the submission could still have been on its way."""
        found = next((order for order in orders if order.order_remark[:TAG_BYTES] == entry.tag[:TAG_BYTES]), None)
        if found is not None:
            return self._note(entry._replace(day=self._came_on(entry, found)), ACCEPTED, found.order_id)
        if entry.state == ABSENT or not complete or not self._is_over(entry) or self._may_be_among(entry, orders):
            return entry
        error = OrderRejected('委托没有到达柜台', '确认无误后可用新的 key 重新委托', broker_called=False)
        return self._note(entry, ABSENT, answer=error.to_wire())

    def _came_on(self, entry, order):
        """The day of its entry: an order that was passed on days later is of the day on which the broker got it."""
        same = order.time is not None and order.time.date().isoformat() == entry.day
        return entry.day if same else self.journal.today()

    def _may_be_among(self, entry, orders):
        """Whether one of the orders could be this one without its tag, whatever others came back with."""
        ticket = _ticket_of(entry)
        sure = self._seen_today(entry.account_key).whole >= 0 and not self._untagged(entry.account_key)
        return any(_could_be(order, ticket) and self.journal.of_order(entry.account_key, order) is None
                   and (not sure or entry.tag.startswith(order.order_remark)) for order in orders)

    def _is_over(self, entry):
        """By both clocks: the wall clock may have been set, and the other one only counts within a run.

        What nobody answered may be passed on however late, until the day is over: a terminal that was away and is back
        may be the same one, with all that it held back.
        """
        now, least = self.clock.now(), self._longest()
        waited = self._since_begun(entry)[0] > least and entry.day == now.date().isoformat()
        if not waited or entry.deadline_ms is None or to_ms(now) <= entry.deadline_ms:
            return False
        return not entry.unanswered or self._is_after_close(entry, now)

    def _longest(self):
        return self.deadline_s + SETTLE_MARGIN_S

    def _since_begun(self, entry):
        """(seconds since it was submitted, or else since this run began; what the wall clock was then, in ms)."""
        begun, wall_ms = self._begun.get(entry.tag, self._started)
        return self.clock.monotonic() - begun, wall_ms

    def _is_after_close(self, entry, now):
        """The last way to trade, at the closing price, ends at 15:30. What is sent after that is of no day yet.

        By both clocks: one glance at a wall clock that was set hours ahead proves nothing.
        """
        closed_ms = to_ms(now.replace(hour=15, minute=35, second=0, microsecond=0))
        passed_s, wall_ms = self._since_begun(entry)
        return entry.deadline_ms <= closed_ms <= min(to_ms(now), wall_ms + passed_s * 1000)

    # -- settling in the background --------------------------------------------------------------------------------
    def start(self):
        """Settles what an earlier run or a lost connection left open, now and whenever a broker is back."""
        for key, broker in self.accounts.brokers.items():
            broker.on_connected(self._settler.wake)
            broker.on_connected(lambda key=key: self.stream.look_again(key))
        self.stream.start()
        self._settler.start()

    def settle_open(self):
        """One look at every open entry; whether any is left. In-flight ones belong to those who work on them."""
        found, unseen = self.journal.unseen_places(), False
        for account_key, broker in self.accounts.brokers.items():
            entries = [entry for entry in found if entry.account_key == account_key]
            route = Route(account_key, broker, None)
            try:
                unseen |= not self._is_looked_at(route)
                if entries:
                    self._settle_account(entries, route)
            except Exception:  # the other accounts are settled all the same
                LOG.exception('核对账户 %s 的未知委托时出错', account_key)
        return unseen or bool(self.journal.open_places())

    def _is_looked_at(self, route):
        """Whether this run knows what the account held; before that it sends nothing new."""
        try:
            return route.key in self._strangers or self._strange_orders(route)[1]
        except QmtUnavailable as error:  # it is woken when the broker is back
            LOG.debug('账户 %s 的委托暂时不能查询：%s', route.key, printable(error))
            return True

    def _settle_account(self, entries, route):
        try:
            orders, complete = self._listed(route)
        except QmtUnavailable as error:
            LOG.info('账户 %s 有 %d 笔委托结果未知，暂时不能核对：%s', route.key, len(entries), printable(error))
            return
        for entry in entries:
            with self._keys.alone((PLACE, entry.idempotency_key), 0) as alone:
                entry = self.journal.find(PLACE, entry.idempotency_key, entry.sub_account_id) if alone else None
                if entry is not None and entry.state in UNSEEN_STATES:
                    self._report(entry, self._concluded(entry, orders, complete))

    def _report(self, before, entry):
        if entry.state == before.state or entry.state in OPEN_STATES:
            return
        told = {'idempotency_key': entry.idempotency_key, 'write_action': PLACE, 'order_id': entry.order_id,
                'submission_state': ACCEPTED if entry.state == ACCEPTED else REJECTED, 'account_key': entry.account_key,
                'sub_account_id': entry.sub_account_id}
        if before.state == ABSENT or entry.day > before.day:
            told['alarm'] = 'ORDER_AFTER_ABSENT'
            self._alarm(told['alarm'], entry.account_key, '%s 的委托 key=%s %s，现在柜台有它：委托号 %s' % (
                before.day, entry.idempotency_key, '曾判为没有到达' if before.state == ABSENT else '当日没有结果',
                entry.order_id), '核对是否因此重复下单；不需要就撤掉它')
        elif entry.state == ACCEPTED:
            LOG.warning('委托 key=%s 已核对：在柜台，委托号 %s', printable(entry.idempotency_key), entry.order_id)
        else:
            LOG.warning('委托 key=%s 已核对：没有到达柜台', printable(entry.idempotency_key))
        self.publish(SETTLED_EVENT, told)

    def _outcome(self, entry, route, wait_s):
        """The accepted order as the broker shows it, or as the journal knows it: no failure to read it is a refusal."""
        order, gone = self._read_outcome(entry, route, wait_s)
        return self._dress(route.key, order or self._remembered(entry, gone))

    def _read_outcome(self, entry, route, wait_s):
        """(the order as the broker shows it, or None; whether it will not be shown any more)."""
        try:
            order = self._wait(route, entry.order_id, wait_s)
            self._compare_tag(entry, order)
            order = order if order is None or self._is_of(entry, order) else None
            return order, order is None and self.journal.is_earlier(entry)
        except Exception as error:
            LOG.warning('委托 %s 已被接受，但状态读不到：%s', printable(entry.order_id), printable(error))
            return None, entry.day != self.clock.now().date().isoformat()

    def _wait(self, route, order_id, timeout_s, urgent=False):
        return self._watch.wait_final(route.key, order_id, lambda: route.broker.order(order_id), timeout_s, urgent)

    def _is_of(self, entry, order):
        """Whether it is this entry's order, and not one of a later day that was given its id."""
        known = self.journal.of_order(entry.account_key, order)
        return known is not None and known.tag == entry.tag

    def _remembered(self, entry, gone):
        """An accepted order that the broker does not list: not yet, or (gone) not any more."""
        asked = entry.request
        return Order(order_id=entry.order_id, security=asked['security'], side=asked['side'], amount=asked['amount'],
                     order_price=asked['price'] or 0.0, style=asked['style'],
                     status='submit_unknown' if gone else 'submitted',
                     status_msg='柜台曾接受，现在不再列出' if gone else '')

    # -- cancelling ----------------------------------------------------------------------------------------------
    def cancel(self, payload):
        route, order_id = self._route(payload), parse_order_id(payload.get('order_id'))
        wait_s, key = parse_wait(payload, CANCEL_WAIT_S), parse_key(payload, 'cancel')
        fingerprint = _fingerprint([route.key, route.sub and route.sub.name, order_id])
        with self._claimed(CANCEL, key, route, fingerprint, {}) as entry:
            if entry.state == NEW:
                entry = self._send_cancel(entry, route, order_id)
        if entry.state == REJECTED:
            raise error_from_wire(entry.answer)
        return _cancel_wire(self._after_cancel(entry, route, order_id, wait_s), entry)

    def _after_cancel(self, entry, route, order_id, wait_s):
        try:
            order = self._wait(route, order_id, wait_s, urgent=True)
        except Exception as error:
            raise self._unknown(entry.idempotency_key, '撤单已提交，但委托状态读不到：%s' % printable(error))
        if order is None:
            raise self._unknown(entry.idempotency_key, '撤单已提交，但柜台不再列出委托 %s' % printable(order_id))
        return self._dress(route.key, order)

    def _check_own(self, route, order_id):
        """The journal's word is enough; of this run's orders without a look, which could hang before the cancel."""
        entry = self.journal.by_id(route.key, order_id)
        own = entry is not None and self._same_owner(entry, route)
        if own and not self.journal.is_earlier(entry):
            return
        try:
            order = route.broker.order(order_id)
        except QmtUnavailable:
            if own or route.sub is None:  # the account may cancel whatever it holds
                return
            raise
        if order is None or not self._visible(route, order):
            raise OrderNotFound('账户 %s 没有委托 %s' % (route.sub.name if route.sub else route.key, brief(order_id)))

    def _send_cancel(self, entry, route, order_id):
        """No failure of the journal keeps a cancel back: the order would go on, and a second cancel does no harm."""
        with _nothing_sent():
            self._check_own(route, order_id)
        entry = self._note(entry, SUBMITTING, order_id)
        try:
            route.broker.cancel(order_id, self.deadline_s)
        except (OrderNotFound, OrderRejected) as error:
            error.broker_called = True
            if isinstance(error, OrderRejected):
                error.details['cancel_outcome'] = 'rejected'
            raise self._refused(entry, error)
        except Exception as error:
            if isinstance(error, QmtUnavailable) and error.broker_called is False:
                self._forget_cancel(entry)  # as for orders: nothing was sent
                raise
            self._note(entry, UNKNOWN)
            raise self._unknown(entry.idempotency_key, '撤单的结果未知：%s' % printable(error))
        return self._note(entry, ACCEPTED)

    def _forget_cancel(self, entry):
        with contextlib.suppress(JournalError):
            self.journal.forget(entry)

    # -- what became of a write ----------------------------------------------------------------------------------
    def resolve(self, payload):
        """broker.resolve_submission: what the journal and the broker know of a key. Asks, never submits.

        abandon_unseen: a key that never came is declared void; a copy that comes later is refused.
        """
        action = check_choice(payload.get('write_action') or PLACE, 'write_action', (PLACE, CANCEL))
        key, route = check_key(payload.get('idempotency_key')), self._route(payload)
        abandon = _flag(payload, 'abandon_unseen', False)
        with self._keys.alone((action, key), 0) as alone:
            if not alone:
                return self._resolution(action, key, None, 'reconciling')
            entry = self.journal.find(action, key, _sub_name(route))
            if entry is None:
                return self._resolve_unseen(action, key, route, abandon)
        if not self._same_owner(entry, route):
            return self._resolution(action, key, None, 'submit_unknown', status_msg='这个 key 属于别的账户或子账户，在那里查询')
        return (self._resolve_place if action == PLACE else self._resolve_cancel)(entry, route, payload)

    def _same_owner(self, entry, route):
        return entry.account_key == route.key and (route.sub is None or entry.sub_account_id == route.sub.name)

    def _resolve_unseen(self, action, key, route, abandon):
        """The journal never saw the key, or has lost it: the broker may have the order all the same."""
        entry = self.journal.entry(action, key, route, ANY_FINGERPRINT, {})
        absent = False
        if action == PLACE:
            orders, absent = self._listed(route)
            order = self._under_tag(entry, {order.order_remark[:TAG_BYTES]: order for order in orders})
            if order is not None:  # the tag follows from the key: who has the key may know
                return self._resolution(PLACE, key, order.replace(order_remark='').to_wire(), 'accepted')
            if self.journal.has_lost(entry):
                return self._resolution(action, key, None, 'submit_unknown', status_msg=_loss_told(key))
        told = '服务端没有收到过这个 key 的请求'
        if abandon and absent:
            error = OrderRejected('%s；它已作废，迟到的副本不会被提交' % told, '确认无误后可用新的 key 重新委托', broker_called=False)
            self.journal.record(entry, REJECTED, answer=error.to_wire(), sync=True)  # or else it is not void
            return self._resolution(action, key, None, 'rejected', status_msg=error.message)
        return self._resolution(action, key, None, 'submit_unknown', seen=False, status_msg=told)

    def _resolve_place(self, entry, route, payload):
        try:
            entry = self._settle(entry, route)
        except OrderStateUnknown as error:
            return self._resolution(PLACE, entry.idempotency_key, None, 'submit_unknown', status_msg=error.message)
        except BulletError as error:
            return self._resolution(PLACE, entry.idempotency_key, None, 'rejected', status_msg=error.message)
        order, gone = self._read_outcome(entry, route, 0)
        row = self._dress(route.key, order or self._remembered(entry, gone)).to_wire()
        gone = row['status'] == 'submit_unknown'  # it was accepted, and the broker lists it no more
        return self._resolution(PLACE, entry.idempotency_key, _as_asked(row, payload.get('request_payload')),
                                'submit_unknown' if gone else 'accepted', listed=order is not None)

    def _resolve_cancel(self, entry, route, payload):
        order = route.broker.order(entry.order_id) if entry.order_id else None
        if order is None:
            return self._resolution(CANCEL, entry.idempotency_key, None, 'submit_unknown')
        refused = entry.state == REJECTED
        done, over = order.status in CANCELED_STATUSES, order.final or refused
        state = 'accepted' if done else 'rejected' if over else 'reconciling'
        row = dict(self._dress(route.key, order).to_wire(), idempotency_key=entry.idempotency_key)
        return self._resolution(CANCEL, entry.idempotency_key, row, state,
                                cancel_outcome=_cancel_outcome(order, refused))

    def _resolution(self, action, key, row, state, listed=True, **more):
        """listed: whether the row is what the broker shows."""
        order_id = row['order_id'] if row else None
        answer = dict(more, submission_state=state, status=row['status'] if row else state, write_action=action,
                      idempotency_key=key, order_id=order_id, stable_local_order_id=order_id or _stable_id(key),
                      evidence={'source': 'broker_order_query' if row and listed else 'idempotency_journal'})
        if action == CANCEL:
            answer.setdefault('cancel_outcome', 'unknown')
        return dict(answer, resolved_result=row) if row else dict(answer, reason=_NO_ROW[state])

    # -- views ---------------------------------------------------------------------------------------------------
    def account(self, payload):
        route = self._route(payload)
        account, positions = route.broker.account_and_positions()
        row = account.to_wire(positions)
        return dict(row, sub_account_id=route.sub.name) if route.sub else row

    def positions(self, payload):
        return [position.to_wire() for position in self._route(payload).broker.positions()]

    def orders(self, payload):
        route = self._route(payload)
        wanted, order_id = _order_filter(payload), payload.get('order_id')
        orders = route.broker.orders() if order_id is None else self._one_order(route, parse_order_id(order_id))
        return [self._row(route.key, order) for order in self._compare_tags(route, orders)
                if wanted(order) and self._visible(route, order)]

    @staticmethod
    def _one_order(route, order_id):
        order = route.broker.order(order_id)
        return [] if order is None else [order]

    def trades(self, payload):
        route = self._route(payload)
        wanted = _order_filter(payload, ('order_id', 'security'))
        return [dict(trade.to_wire(), order_remark=self._remark(route.key, trade))
                for trade in route.broker.trades() if wanted(trade) and self._visible(route, trade)]

    def order_status(self, payload):
        """The order's row, or {} if this account (or sub-account) has none of that id."""
        route, order_id = self._route(payload), parse_order_id(payload.get('order_id'))
        order = next(iter(self._compare_tags(route, self._one_order(route, order_id))), None)
        return self._dress(route.key, order).to_wire() if order and self._visible(route, order) else {}

    def overview(self, payload):
        """Text of account_overview; `limit` positions at most."""
        limit = payload.get('limit')
        limit = 20 if limit is None else check_whole(limit, 'limit', 1, 10000)
        route = self._route(payload)
        return account_overview(*route.broker.account_and_positions(), limit=limit), route

    def _visible(self, route, row):
        """A sub-account sees what it placed itself; the account sees all of it."""
        if route.sub is None:
            return True
        entry = self.journal.of_order(route.key, row)
        return entry is not None and entry.sub_account_id == route.sub.name

    def _row(self, account_key, order):
        """As _dress, for the wire: of many orders at once each copy counts."""
        row, entry = order.to_wire(), self.journal.of_order(account_key, order)
        if entry is not None:
            row.update(order_remark=entry.request.get('remark', ''), idempotency_key=entry.idempotency_key)
            if entry.sub_account_id is not None:
                row['sub_account_id'] = entry.sub_account_id
        return row

    def _dress(self, account_key, order):
        """The order with the client's own remark instead of our tag, and whose it is."""
        entry = self.journal.of_order(account_key, order)
        if entry is None:
            return order
        return order.replace(order_remark=entry.request.get('remark', ''), idempotency_key=entry.idempotency_key,
                             sub_account_id=entry.sub_account_id)

    def _remark(self, account_key, row):
        entry = self.journal.of_order(account_key, row)
        return row.order_remark if entry is None else entry.request.get('remark', '')


def _wanted_status(value):
    """JoinQuant's `held` is our `filled`."""
    value = check_choice(value, 'status', set(STATUS_RAW).union(_STATUS_SPELLINGS, ['held']))
    return 'filled' if value == 'held' else plain_status(value)


def _order_filter(payload, names=('order_id', 'security', 'status')):
    """A test of order or trade rows by what the payload asks for."""
    wanted = {}
    if payload.get('order_id') is not None:
        wanted['order_id'] = parse_order_id(payload['order_id'])
    if payload.get('security') is not None:
        wanted['security'] = normalize_code(payload['security'])
    if payload.get('status') is not None and 'status' in names:
        wanted['status'] = _wanted_status(payload['status'])
    only_open = 'status' in names and _flag(payload, 'open', False)
    tests = list(wanted.items())
    return lambda row: not (only_open and row.final) and all(getattr(row, name) == value for name, value in tests)


def _as_asked(row, request):
    """Legacy clients compare the security letter by letter with what they sent."""
    asked = request.get('security') if isinstance(request, dict) else None
    try:
        same = asked is not None and normalize_code(asked) == row['security']
    except SecurityNotFound:
        same = False
    return dict(row, security=asked) if same else row


def _place_wire(order, entry, ticket):
    """`price` is the price of the order, as QMT servers answer; the average fill is avg_price."""
    row = order.to_wire()
    pending = not order.final
    if ticket.wait_s > 0:
        row['last_snapshot'] = dict(row)
    if order.amount != ticket.amount:
        row['warning'] = '数量 %d 不是整手，已按 %d 委托' % (ticket.amount, order.amount)
    return dict(row, security=ticket.asked_security, price=order.order_price, timed_out=pending and ticket.wait_s > 0,
                async_tracking=pending, idempotency_key=entry.idempotency_key)


def _cancel_wire(order, entry):
    """value: whether it is certainly cancelled. An order that filled meanwhile, or is pending, says so."""
    row, done = order.to_wire(), order.status in CANCELED_STATUSES
    return {'dtype': 'dict', 'value': done, 'success': done, 'order_id': order.order_id,
            'status': order.status, 'raw_status': row['raw_status'], 'last_snapshot': row,
            'submission_state': order.status if order.final else 'reconciling',
            'cancel_outcome': _cancel_outcome(order), 'timed_out': not order.final,
            'idempotency_key': entry.idempotency_key}


def _cancel_outcome(order, refused=False):
    """In the words of other servers. refused: the broker refused to cancel it."""
    if order.status in CANCELED_STATUSES:
        return 'cancelled'
    return 'not_canceled_already_terminal' if order.final else 'rejected' if refused else 'unknown'


def _stable_id(key):
    """What stands for an order that has no id, or not yet: it follows from the key and does not show it."""
    return 'submit_unknown:' + hashlib.sha256(key.encode('utf-8', 'backslashreplace')).hexdigest()[:24]


# Why a write has no row of the broker's: a word for programs beside the Chinese status_msg.
_NO_ROW = {'reconciling': 'submission_in_flight', 'submit_unknown': 'no_strong_order_evidence',
           'rejected': 'order_rejected'}


# ======================================================================================================
# 12. SERVER - gate, sessions, action table, event hub
# ======================================================================================================
ACCESS_LOG = logging.getLogger('bullet_qmt.access')
LOGIN_TIMEOUT_S = 10.0
BREAK_OFF_S = 2.0       # for requests before a frame that breaks the protocol, and again for their answers to leave
IN_FLIGHT_LIMIT = 64    # of a session; as many again for cancels and questions about orders that hang or wait
HISTORY_SHARE = 2.5    # of a request's time; clients of every kind wait 180 s for a history, of which 60 s are a third
ORDER_MARGIN_S = 30.0  # what an order may take beside waiting for its outcome
# Extensions, for clients that name them in their handshake.
SERVER_FEATURES = frozenset([SETTLED_EVENT, BINARY_FEATURE, BATCH_TICK_FEATURE, ORDER_STREAM_FEATURE,
                             PROGRESS_FEATURE, QUOTES_FEATURE, ORDERS_FEATURE])


class AccessLog:
    """A line for each request, written by a thread of its own, many at a time: no request waits for it.

    Each line has its time before it, so that a batch is one record of the logger. close() writes what is left.
    order: (payload, answer) of an order or a cancel, whose line says what it was and what became of it; these have
    their lines even where all_requests is off. Beyond LIMIT that wait, what comes is counted and told; orders have
    four times as much room.
    """

    PAUSE_S, LIMIT = 0.05, 10000

    def __init__(self, all_requests=True):
        self._all_requests = all_requests
        self._entries, self._changed = deque(), threading.Condition()
        self._idle, self._closed, self._thread, self._lost = True, threading.Event(), None, 0

    def note(self, session, job_id, action, account, status, seconds, order=None):
        if order is None and not self._all_requests:
            return
        if len(self._entries) >= (self.LIMIT if order is None else 4 * self.LIMIT):
            with self._changed:
                self._lost += 1
            return
        self._entries.append((time.time(), session.address, session.id, job_id, action, account, status, seconds,
                              order))
        if self._idle:
            self._wake()

    def close(self):
        self._closed.set()
        with self._changed:
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            wait_for_thread(thread)
        self._write()

    def _wake(self):
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name='access-log', daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self):
        while not self._closed.is_set():
            with self._changed:
                self._idle = True
                self._changed.wait_for(lambda: self._entries or self._closed.is_set())
                self._idle = False
            self._write()
            self._closed.wait(self.PAUSE_S)

    def _write(self):
        lines, orders = [], []
        while self._entries:
            entry = self._entries.popleft()
            lines.append(self._line(*entry))
            orders += lines[-1:] if entry[-1] is not None else []
        with self._changed:
            lost, self._lost = self._lost, 0
        if lost:
            lines.append(lost_lines(lost))
        for log, told in ((ACCESS_LOG, lines), (ORDER_LOG, orders)):
            if told:
                log.info('%s', '\n'.join(told))

    @staticmethod
    def _line(moment, address, session, id, action, account, status, seconds, order):
        level = 'WARNING' if order and not status.startswith('OK') else 'INFO'
        line = '%s %s %s %s id=%r %s account=%s %s %.1fms%s' % (
            log_time(moment), level, address, session, id, _short(action), _short(account), status, seconds * 1000,
            _order_text(*order) if order else '')
        return line if line.isprintable() else printable(line)


REASON_LIMIT = 300  # characters of a refusal


def _short(value):
    return value if isinstance(value, str) and len(value) <= 60 else brief(value)


def _order_text(asked, answer):
    """These fields of a payload alone: whatever else it holds may be a secret."""
    told = [_word(asked[name]) for name in ('order_id', 'security', 'side', 'amount') if asked.get(name) is not None]
    told += _style_words(asked)
    key = asked.get('idempotency_key') or answer.get('idempotency_key')
    for name, value in (('key', key), ('备注', asked.get('order_remark') or asked.get('remark'))):
        told += ['%s=%s' % (name, _word(value))] if value not in (None, '') else []
    outcome = [_word(answer[name]) for name in ('order_id', 'status') if answer.get(name) not in (None, '')]
    reason = next((answer[name] for name in ('message', 'status_msg') if answer.get(name)), '')
    return ' | %s -> %s%s' % (' '.join(told), ' '.join(outcome) or '-', reason and '：%s' % str(reason)[:REASON_LIMIT])


def _style_words(asked):
    """As the payload has it, right or wrong."""
    style = asked.get('style')
    style = style if isinstance(style, dict) else {'type': style or ('market' if asked.get('market') else 'limit')}
    price = next((source[name] for source, name in ((style, 'price'), (style, 'protect_price'), (asked, 'price'))
                  if source.get(name) is not None), None)
    kind = _word(style.get('type'))
    kind = {'market': '市价', 'limit': '限价'}.get(kind, '方式 ' + kind)
    return [] if asked.get('security') is None else [kind] + ([] if price is None else [_word(price)])


def _word(value):
    """As it is, where it could not be taken for several fields."""
    return value if isinstance(value, str) and re.fullmatch(r'[\w.@:/-]{1,64}', value) else brief(value, 40)


# -- service: every action, without sockets --------------------------------------------------------------------
class Service:
    """Adapters, order desk and event hub behind one call(action, payload, caller). No sockets."""

    def __init__(self, settings, backend, desk, clock):
        self.settings, self.backend, self.desk, self.clock = settings, backend, desk, clock
        self.hub = TickHub(backend.data, settings.max_subscriptions, settings.allow_full_market)
        self.scopes = [name for name, on in (('data', settings.enable_data), ('broker', settings.enable_broker)) if on]
        self.started = clock.monotonic()
        self._lock, self._hearers = threading.Lock(), {}  # session that named SETTLED_EVENT -> Route of its login
        self.access_log = AccessLog(settings.access_log)
        desk.publish = self._publish
        self.session_count = lambda: 0

    def find(self, name):
        """The Action of that name, if it exists and is switched on."""
        action = ACTIONS.get(name) if isinstance(name, str) else None
        if action is None:
            raise UnknownAction('没有 action %s' % brief(name), '检查拼写和服务端版本')
        if action.scope != 'admin' and action.scope not in self.scopes:
            raise ServiceDisabled('服务端关闭了 %s 服务' % action.scope, '由服务端打开 ' + ways('enable_' + action.scope))
        return action

    def lane(self, action, payload):
        """Where the action is to run: 'inline', or a worker pool."""
        return 'inline' if not self.backend.blocking and action.quick(payload) else action.lane

    def call(self, name, payload, caller):
        return self.run(self.find(name), payload, caller)

    def run(self, action, payload, caller):
        payload = {} if payload is None else payload
        if not isinstance(payload, dict):
            raise BadRequest('payload 应为 JSON 对象，收到 %s' % brief(payload))
        return action.run(self, payload, caller)

    def hear(self, session, named):
        """From now on the session hears what became of unknown orders; named: account and sub-account of its login."""
        route = self.desk.accounts.route(**named) if named else None
        with self._lock:
            self._hearers[session] = route

    def leave(self, session):
        """It hears no orders any more, of neither kind."""
        with self._lock:
            self._hearers.pop(session, None)
        self.desk.stream.leave(session)

    def _publish(self, event, payload):
        with self._lock:
            sessions = [session for session, route in self._hearers.items()
                        if concerns(route, payload['account_key'], payload['sub_account_id'])]
        for session in sessions:
            session.post_event(event, payload)

    def close(self):
        self.hub.close()
        self.backend.close()
        self.desk.close()
        self.access_log.close()


def open_service(settings, clock=None):
    """The service that the settings describe. Raises ConfigError; nothing is left running then."""
    clock = clock or Clock()
    check_server_settings(settings)
    if settings.server_type != 'stub':
        RUNS.refuse()
    with contextlib.ExitStack() as undo:
        backend = ADAPTERS[settings.server_type](settings, clock)
        undo.callback(backend.close)
        journal = Journal(state_path(settings), clock)
        undo.callback(journal.close)
        accounts = AccountBook(backend.brokers, settings.sub_accounts)
        desk = OrderDesk(accounts, backend.data, journal, clock, settings.request_timeout)
        undo.callback(desk.close)
        service = Service(settings, backend, desk, clock)
        desk.start()
        undo.pop_all()
        return service


# -- actions: handler(service, payload, caller) -> payload of the response ---------------------------------------
# caller: the request on its way, see Job; in-process a _LocalCaller.
# lane: 'inline' never blocks and runs in the session's thread; the others run on the worker pool of that name.
# quick(payload): whether it is short work where the backend never blocks, and then runs in the session's thread too.
Action = namedtuple('Action', 'scope lane run quick')


def _never(payload):
    return False


def _always(payload):
    return True


def _unless_waiting(payload):
    return not (isinstance(payload, dict) and payload.get('wait_timeout'))


def _action(scope, lane, run, quick=_never):
    return Action(scope, lane, run, quick)


def _as_dict(value):
    return {'dtype': 'dict', 'value': value}


def _health(service, payload, caller):
    value = {'process_alive': True, 'uptime_seconds': round(service.clock.monotonic() - service.started, 3),
             'sessions': service.session_count(), 'accounts': list(service.backend.brokers),
             'features': service.scopes, 'version': __version__, 'subscriptions': service.hub.count()}
    value.update(_readiness(service), server_time=unix_ms(service.clock.now()))
    value['orders'] = service.desk.health(caller.with_defaults({}).get('sub_account_id'))
    return _as_dict(dict(value, **service.backend.health()))


def _readiness(service):
    """What can be done now, in the words of bullet-trade's backends: ready, state, reason, modules, actions."""
    troubles, modules = service.backend.troubles(), OrderedDict()
    for name in ('data', 'broker'):
        some, reason = troubles.get(name, (True, None)) if name in service.scopes else (False, '服务端关闭了它')
        state = 'ready' if reason is None else 'degraded' if some else 'unavailable'
        modules[name] = {'ready': reason is None, 'state': state, 'reason': reason}
    wanted = [modules[name] for name in service.scopes]
    ready = bool(wanted) and all(module['ready'] for module in wanted)
    some = any(module['state'] != 'unavailable' for module in wanted)
    actions = OrderedDict((name, {'status': modules[action.scope]['state'] if action.scope in modules else 'ready',
                                  'reason': (modules.get(action.scope) or {}).get('reason') or ''})
                          for name, action in ACTIONS.items())
    return {'ready': ready, 'state': 'ready' if ready else 'degraded' if some else 'unavailable',
            'reason': None if ready else '；'.join(module['reason'] for module in wanted if module['reason']),
            'modules': modules, 'actions': actions}


def _print_account(service, payload, caller):
    text, route = service.desk.overview(payload)
    if service.settings.log_account:
        LOG.info('%s', text)
    answer = {'dtype': 'text', 'value': text, 'account_key': route.key}
    return dict(answer, sub_account_id=route.sub.name) if route.sub else answer


def _history(service, payload, caller):
    query = parse_history(payload, service.clock.now()).replace(
        wanted=caller.wanted, row_limit=HISTORY_ROW_LIMIT if caller.binary else JSON_ROW_LIMIT)
    table = service.backend.data.history(query)
    return _flat_wide(table) if caller.legacy_helper and table.wide else table


def _flat_wide(table):
    """For clients that know no index columns: a tuple for every column, the time's as well."""
    payload = Table(table.columns, table.types).to_wire()
    return dict(payload, column_tuples=[['time', '']] + [list(pair) for pair in table.wide],
                column_index_names=['field', 'code'])


def _one_code(payload):
    return normalize_code(payload.get('security'))


def _snapshot(service, payload, caller):
    return _with_feed(service.backend.data.quote(_one_code(payload)).to_wire(), service.backend.name,
                      service.clock.now())


def _live_current(service, payload, caller):
    if 'securities' not in payload:
        return _with_feed(service.backend.data.live_current(_one_code(payload)), service.backend.name,
                          service.clock.now())
    codes = normalize_codes(payload['securities'], 'securities', QUOTES_AT_ONCE)
    return {'quotes': service.backend.data.live_currents(codes)}


def _with_feed(row, source, now):
    """A tick's row, and in the words of bullet-trade's clients where and when it comes from and what is bid and asked.

    Times with their zone, as those clients are anywhere; age_seconds counts from the source's time.
    """
    dt, age_s, stale = row.get('dt'), row.get('age_s'), row.get('stale') is True
    told = '%s+08:00' % now.isoformat(timespec='milliseconds')
    if age_s is None and dt is not None:
        age_s = (now - parse_moment(dt)[0]).total_seconds()
    more = {'source': source, 'source_time': None if dt is None else dt.replace(' ', 'T') + '+08:00',
            'received_time': told, 'query_completed_time': told, 'event_stale': stale,
            'age_seconds': None if age_s is None else max(0.0, round(age_s, 3)),
            'feed_health': {'status': 'stale' if stale else 'healthy', 'query_succeeded': True}}
    levels = (('bid_price1', 'b1_p'), ('ask_price1', 'a1_p'), ('bid_volume1', 'b1_v'), ('ask_volume1', 'a1_v'))
    return dict(row, **dict(more, **{name: row[own] for name, own in levels if row.get(own)}))


def _asks_of_one(payload):
    return not (isinstance(payload, dict) and 'securities' in payload)


def _day_ms(payload, *names):
    moment = check_moment(_first(payload, *names), names[0])
    return None if moment is None else to_ms(moment[0].date())


def _days_asked(payload):
    """(start, end) in ms, None where none was given."""
    start, end = _day_ms(payload, 'start', 'start_date'), _day_ms(payload, 'end', 'end_date')
    check_span(start, end)
    return start, end


def _trade_days(service, payload, caller):
    count = payload.get('count')
    start, end = _days_asked(payload)
    if count is not None:
        count = check_whole(count, 'count', 1, 10 ** 5)
        if start is not None:
            raise BadRequest('start_date 与 count 只能给一个')
    days = service.backend.data.trade_days(start, to_ms(service.clock.now()) if end is None else end, count)
    return {'dtype': 'list', 'values': [iso_ms(day)[:10] for day in days]}


def _security_info(service, payload, caller):
    moment = check_moment(payload.get('date'), 'date')
    info = service.backend.data.security_info(_one_code(payload), moment and moment[0].date())
    return dict(info, **_as_dict(info))


def _ensure_cache(service, payload, caller):
    known = {name: value for name, value in payload.items() if name != 'auto_download'}
    query = parse_history(dict(known, panel=False), service.clock.now())
    return _as_dict(service.backend.data.ensure_cache(query, _flag(payload, 'auto_download', True), caller.progress))


def _all_securities(service, payload, caller):
    types = payload.get('types')
    types = [types] if isinstance(types, str) else types or ['stock']
    if not isinstance(types, list):
        raise BadRequest('types 应为类型或类型的列表', '可用：%s' % '、'.join(SECURITY_TYPES))
    types = [check_choice(name, 'types', SECURITY_TYPES) for name in types]
    moment = check_moment(payload.get('date'), 'date')
    return service.backend.data.all_securities(types, moment and moment[0].date())


def _index_stocks(service, payload, caller):
    moment = check_moment(payload.get('date'), 'date')
    code = normalize_code(payload.get('index_symbol'))
    return {'values': service.backend.data.index_stocks(code, moment and moment[0].date())}


def _split_dividend(service, payload, caller):
    first, last = _days_asked(payload)
    last = to_ms(service.clock.now()) if last is None else last
    return {'events': service.backend.data.split_dividend(_one_code(payload), 0 if first is None else first, last)}


def _subscribe(service, payload, caller):
    return service.hub.subscribe(caller.session, _asked_codes(payload))


def _unsubscribe(service, payload, caller):
    if _first(payload, 'securities', 'symbols') is None:
        return service.hub.unsubscribe_all(caller.session)
    return service.hub.unsubscribe(caller.session, list(_asked_codes(payload)))


def _subscribe_events(service, payload, caller):
    """The session hears orders, trades and account figures; first those after `after`. gap: not all of these.

    Those of the account and sub-account that the payload names, or else the login; of all, where neither names any.
    """
    named = {name: payload[name] for name in ('account_key', 'sub_account_id') if payload.get(name) is not None}
    named, session = caller.with_defaults(named), caller.session
    route = service.desk.accounts.route(**named) if named else None
    after = payload.get('after')
    if after is not None:
        after = check_whole(after, 'after', 0, 1 << 60)
    stream = service.desk.stream
    seq, gap = stream.hear(session, lambda event: _post_order_event(session, route, event), after)
    if session.ended:  # it may have left before it came
        stream.leave(session)
    return {'seq': seq, 'gap': gap}


def _post_order_event(session, route, event):
    """The account's figures are for its sub-accounts, too."""
    sub = route.sub.name if route is not None and route.sub and event.event == 'account' else event.sub_account_id
    if concerns(route, event.account_key, sub):
        session.post_event(event.event, event.payload, seq=event.seq)


def _unsubscribe_events(service, payload, caller):
    service.desk.stream.leave(caller.session)
    return {}


def _unsubscribe_all(service, payload, caller):
    return service.hub.unsubscribe_all(caller.session)


def _asked_codes(payload):
    """{canonical code: the spelling that the client used and will look for in ticks}; whole markets by their names."""
    asked = _first(payload, 'securities', 'symbols')
    items = [asked] if isinstance(asked, str) else asked
    if not items or not isinstance(items, list):
        raise BadRequest('securities 应为证券代码、市场或它们的列表')
    markets = OrderedDict((market, market) for text in items for market in as_markets(text))
    texts = [text for text in items if not as_markets(text)]
    codes = normalize_codes(texts, 'securities')
    spelling = {normalize_code(text): text for text in texts}
    return OrderedDict(list(markets.items()) + [(code, spelling[code]) for code in codes])


def _place(service, payload, caller):
    return service.desk.place(caller.with_defaults(payload), floor_lots=caller.legacy_helper)


def _desk_call(method, wrap=None):
    def run(service, payload, caller):
        payload = caller.with_defaults(payload)
        answer = getattr(service.desk, method)(payload)
        return wrap(answer) if wrap else answer
    return run


def _rows_call(method, columns):
    """A list of the desk's, as a Table where that is asked for."""
    def run(service, payload, caller):
        rows = getattr(service.desk, method)(caller.with_defaults(payload))
        return row_table(rows, columns) if caller.binary and _flag(payload, 'table', False) else rows
    return run


ACTIONS = {
    'admin.health': _action('admin', 'inline', _health),
    'admin.print_account': _action('broker', 'broker', lambda service, payload, caller: _print_account(
        service, caller.with_defaults(payload), caller)),
    'data.history': _action('data', 'history', _history),
    'data.snapshot': _action('data', 'data', _snapshot, _always),
    'data.current_tick': _action('data', 'data', _snapshot, _always),
    'data.live_current': _action('data', 'data', _live_current, _asks_of_one),
    'data.trade_days': _action('data', 'data', _trade_days),
    'data.security_info': _action('data', 'data', _security_info, _always),
    'data.ensure_cache': _action('data', 'history', _ensure_cache),
    'data.get_all_securities': _action('data', 'history', _all_securities),
    'data.get_index_stocks': _action('data', 'data', _index_stocks),
    'data.get_split_dividend': _action('data', 'history', _split_dividend),
    'data.subscribe': _action('data', 'data', _subscribe),
    'data.unsubscribe': _action('data', 'data', _unsubscribe),
    'data.unsubscribe_all': _action('data', 'data', _unsubscribe_all),
    'broker.account': _action('broker', 'broker', _desk_call('account', _as_dict), _always),
    'broker.positions': _action('broker', 'broker', _desk_call('positions'), _always),
    'broker.orders': _action('broker', 'broker', _rows_call('orders', ORDER_COLUMNS), _always),
    'broker.trades': _action('broker', 'broker', _rows_call('trades', TRADE_COLUMNS), _always),
    'broker.order_status': _action('broker', 'broker', _desk_call('order_status'), _always),
    'broker.place_order': _action('broker', 'broker', _place, _unless_waiting),
    'broker.cancel_order': _action('broker', 'control', _desk_call('cancel')),
    'broker.resolve_submission': _action('broker', 'control', _desk_call('resolve')),
    'broker.subscribe_events': _action('broker', 'broker', _subscribe_events),
    'broker.unsubscribe_events': _action('broker', 'broker', _unsubscribe_events),
}


# -- ticks: newest per symbol, an outbox per session --------------------------------------------------------------
class TickHub:
    """Who wants ticks of what. The source is subscribed once for all sessions and released with the last.

    What is wanted are codes, and whole markets where the server allows that.
    """

    def __init__(self, data, limit, whole_markets=False):
        self.data, self.limit, self.whole_markets = data, limit, whole_markets
        self._lock = threading.Lock()          # guards the two dicts; never held while anything blocks
        self._source_lock = threading.Lock()   # one change at a time at the source
        self._wanted = {}                      # code -> set of sessions
        self._spelling = {}                    # session -> OrderedDict code -> the client's spelling
        data.set_tick_listener(self.deliver)

    def count(self):
        with self._lock:
            return len(self._wanted)

    def subscribe(self, session, spelling):
        with self._source_lock:
            if session.ended:
                raise ConnectionLost('会话已结束')
            new = self._check_new(session, spelling)
            if new:
                self.data.subscribe(new)
            if len(new) < len(spelling):
                self.data.renew([code for code in spelling if code not in new])
            with self._lock:
                mine = self._spelling.setdefault(session, OrderedDict())
                mine.update(spelling)
                for code in spelling:
                    self._wanted.setdefault(code, set()).add(session)
                return {'count': len(mine)}

    def _check_new(self, session, spelling):
        """Codes that nobody had yet; refused as a whole when the session would have too many."""
        if not self.whole_markets and not set(spelling).isdisjoint(MARKETS):
            raise SubscriptionLimit('服务端没有开放全市场行情', '列出要订阅的证券，或由服务端打开 ' + ways('allow_full_market'))
        with self._lock:
            total = len(set(self._spelling.get(session, ())) | set(spelling))
            if total > self.limit:
                raise SubscriptionLimit('订阅数 %d 超过每个会话的上限 %d' % (total, self.limit),
                                        '先退订，或由服务端调大 ' + ways('max_subscriptions'))
            return [code for code in spelling if code not in self._wanted]

    def unsubscribe(self, session, codes):
        """codes: None for all that the session has."""
        with self._source_lock:
            removed, unwanted, left = self._remove(session, codes)
            if unwanted:
                self.data.unsubscribe(unwanted)
            return {'count': left, 'removed': removed}

    def unsubscribe_all(self, session):
        return self.unsubscribe(session, None)

    def _remove(self, session, codes):
        """(how many the session gave up, codes that nobody wants any more, how many the session keeps)."""
        with self._lock:
            mine = self._spelling.get(session, {})
            codes = list(mine) if codes is None else codes
            gone = [code for code in codes if mine.pop(code, None) is not None]
            for code in gone:
                self._wanted[code].discard(session)
            unwanted = [code for code in gone if not self._wanted[code]]
            for code in unwanted:
                del self._wanted[code]
            if not mine:
                self._spelling.pop(session, None)
            return len(gone), unwanted, len(mine)

    def deliver(self, tick):
        """Called by the source; never blocks."""
        with self._lock:
            sessions = {session: tick.sid for session in self._wanted.get(market_of(tick.sid), ())}
            sessions.update((session, self._spelling[session][tick.sid]) for session in self._wanted.get(tick.sid, ()))
        for session, symbol in sessions.items():
            session.post(tick, symbol)

    def close(self):
        self.data.set_tick_listener(lambda tick: None)


class _Bulk:
    """A frame too long to let others wait, sent in parts."""

    def __init__(self, number, pieces):
        self.number, self._pieces = number, deque(memoryview(piece).cast('B') for piece in pieces)
        self.left = sum(map(len, self._pieces))

    def next_part(self, size):
        """A part frame with the next `size` bytes, or what is left."""
        taken, room = [], size
        while self._pieces and room:
            piece = self._pieces.popleft()
            taken.append(piece[:room])
            if len(piece) > room:
                self._pieces.appendleft(piece[room:])
            room -= len(taken[-1])
        self.left -= size - room
        return part_head(self.number, size - room) + b''.join(taken)


class Outbox:
    """What a session has yet to send: frames in order, ticks newest per symbol, long frames in parts between others.

    Whoever has something to send sends it, if the line is free and takes it at once; otherwise it is left to a thread,
    and nobody but this thread ever waits for a client that reads slowly. part_size: None for a client that knows no
    parts. frame_of_ticks(ticks): the frame of some ticks, of one alone without `batch`. A large answer is refused while
    too much waits.
    """

    LARGE, BACKLOG_LIMIT, TICKS_A_FRAME = 65536, 64 * 1024 * 1024, 500
    SMALL_LIMIT = 8 * 1024 * 1024  # of answers that are not large: who lets that wait is cut off

    def __init__(self, name, channel, part_size, frame_of_ticks, batch=False):
        self.name, self._channel, self._part_size, self._frame_of_ticks = name, channel, part_size, frame_of_ticks
        self._tick_share = self.TICKS_A_FRAME if batch else 1
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._rest, self._frames, self._bulk, self._ticks = None, deque(), deque(), OrderedDict()
        self._backlog, self._small = 0, 0  # bytes of answers that wait, and those of them that are not large
        self._streams, self._bulk_next = 0, False
        self._busy, self._closed, self._thread = False, False, None

    def put(self, pieces):
        """One frame, as a list of its pieces."""
        size = sum(map(len, pieces))
        with self._lock:
            self._admit(size)
            if size > self.LARGE or self._busy or self._waiting():
                self._queue(pieces, size)
                return
            self._busy = True
        self._send_at_once(pieces[0] if len(pieces) == 1 else b''.join(pieces))

    def put_tick(self, symbol, tick):
        with self._lock:
            self._ticks[symbol] = tick
            if self._busy or self._closed or self._rest is not None or self._frames:
                self._wake()
                return
            self._busy, data = True, self._next_ticks()
        with contextlib.suppress(ConnectionLost):  # its session will notice
            self._send_at_once(data)

    def overflows(self):
        return self._backlog > self.BACKLOG_LIMIT

    def flush(self, timeout_s):
        """Waits until the answers are out, or the connection is over."""
        with self._lock:
            self._changed.wait_for(lambda: self._closed or not self._channel.alive or not (
                self._backlog or self._busy), timeout_s)

    def close(self):
        """The channel has been aborted before, so that the thread is not kept by it."""
        with self._lock:
            self._closed, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None:
            wait_for_thread(thread)

    # -- with the lock held ------------------------------------------------------------------------------------------
    def _admit(self, size):
        if self._closed or not self._channel.alive:
            raise ConnectionLost('连接已关闭')
        if size <= self.LARGE and self._small + size > self.SMALL_LIMIT:
            self._channel.abort()
            raise ConnectionLost('对方不读回答，连接已断开')
        if self._backlog and size > self.LARGE and self._backlog + size > self.BACKLOG_LIMIT:
            raise ServerBusy('前面的回答还没有读走', '读完前面的回答再请求', retry_after_s=5)

    def _waiting(self):
        return self._rest is not None or self._frames or self._bulk or self._ticks

    def _queue(self, pieces, size):
        if self._part_size and size > self._part_size:
            self._streams += 1
            self._bulk.append(_Bulk(self._streams, pieces))
        else:
            self._frames.append(b''.join(pieces))
            self._small += size if size <= self.LARGE else 0
        self._backlog += size
        self._wake()

    def _wake(self):
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _next_ticks(self):
        """The frame of the next ticks: all that wait, for a client that takes many at once."""
        share = min(self._tick_share, len(self._ticks))
        return self._frame_of_ticks([self._ticks.popitem(last=False)[1] for _ in range(share)])

    def _next(self):
        """(data, bytes of the backlog in it). Small frames first; ticks and parts of long frames by turns."""
        if self._rest is not None:
            data, self._rest = self._rest, None
            return data, len(data)
        if self._frames:
            data = self._frames.popleft()
            self._small -= len(data) if len(data) <= self.LARGE else 0
            return data, len(data)
        self._bulk_next = bool(self._bulk) and (self._bulk_next or not self._ticks)
        if not self._bulk_next:
            self._bulk_next = True
            return self._next_ticks(), 0
        self._bulk_next = False
        return self._next_part()

    def _next_part(self):
        """Long frames take turns as well."""
        bulk = self._bulk.popleft()
        before = bulk.left
        data = bulk.next_part(self._part_size)
        if bulk.left:
            self._bulk.append(bulk)
        return data, before - bulk.left

    # -- sending: whoever has set _busy ------------------------------------------------------------------------------
    def _send_at_once(self, data):
        sent = len(data)
        try:
            sent = self._channel.try_write(data)
        finally:
            with self._lock:
                self._busy = False
                if sent < len(data):
                    self._rest = memoryview(data)[sent:]
                    self._backlog += len(self._rest)
                if self._waiting():
                    self._wake()
                else:
                    self._changed.notify_all()  # for flush()

    def _run(self):
        with contextlib.suppress(ConnectionLost):
            while True:
                with self._lock:
                    self._changed.wait_for(lambda: self._closed or (self._waiting() and not self._busy))
                    if self._closed:
                        return
                    self._busy, (data, counted) = True, self._next()
                self._send_patiently(data, counted)

    def _send_patiently(self, data, counted):
        try:
            self._channel.write(data)
        finally:
            with self._lock:
                self._busy = False
                self._backlog -= counted
                self._changed.notify_all()


# -- workers -----------------------------------------------------------------------------------------------------
class WorkerPool(JobThreads):
    """Threads made as needed, up to a limit, for actions that may block. Jobs beyond the queue are refused.

    share: how many of the threads one owner may hold at a time; its further jobs let those of others pass.
    A job is callable and has an `owner`.
    """

    def __init__(self, name, threads, queue, share):
        super().__init__(name, threads)
        self.queue_limit, self.share = queue, share
        self._held = Counter()  # owner -> threads

    def submit(self, job):
        with self._changed:
            if self._closed or len(self._jobs) >= self.queue_limit:
                raise ServerBusy('服务端正忙（%s 队列已满）' % self.name, '稍后重试', retry_after_s=1)
            self._enqueue(job)

    def _next_job(self):
        """The first whose owner has threads left."""
        return next((job for job in self._jobs if self._held[job.owner] < self.share), None)

    def _taken(self, job):
        self._held[job.owner] += 1

    def _carry_out(self, job):
        try:
            job()
        except Exception:  # a job answers for itself; whatever escapes must not cost the pool a thread
            LOG.exception('%s 的任务出错', self.name)
        finally:
            self._give_back(job.owner)

    def _give_back(self, owner):
        with self._changed:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
            self._changed.notify()

    def close(self, timeout_s):
        """Lets queued and running jobs finish; returns whether they did in time. What still waits then is dropped."""
        ended = self._end(timeout_s)
        with self._changed:
            self._jobs.clear()
        return ended


# -- gate --------------------------------------------------------------------------------------------------------
STRONG_CHARS = 16
_WALKS = tuple(2 * keys for keys in ('qwertyuiopasdfghjklzxcvbnm', '1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p',
                                     'abcdefghijklmnopqrstuvwxyz0123456789'))
_COMMON_WORDS = re.compile('|'.join(
    'passphrase password passwd change admin random secret server client bullet remote account broker trading trader '
    'trade default example sample token login stock quant miniqmt long your test user root this that here with some '
    'qmt key the my me is a 长的随机口令 随机 口令 密码 长的'.split()))


def is_guessable(token):
    """Whether trying may find it: short, few characters, a repetition, a walk over the keys, or common words."""
    low = token.lower()
    walk = len({ord(after) - ord(before) for before, after in zip(low, low[1:])}) < 3 or any(
        low in keys or low[::-1] in keys for keys in _WALKS)
    repeated = any(low[period:] == low[:-period] for period in range(1, len(low) // 2 + 1))
    rest = re.sub(r'[\W_]', '', _COMMON_WORDS.sub('', low))
    return len(token) < STRONG_CHARS or walk or repeated or len(set(low)) < 6 or len(rest) < 6


class _Guesses:
    """When the last `limit` wrong tokens came, how many without an hour's rest, and when one was compared last."""

    REST_S = 3600.0

    def __init__(self, limit):
        self.times, self.looked, self.last, self.in_a_row = deque(maxlen=limit), -math.inf, -math.inf, 0

    def note(self, now):
        self.in_a_row = self.in_a_row + 1 if now < self.last + self.REST_S else 1
        self.last = now
        self.times.append(now)

    def recent(self, since):
        while self.times and self.times[0] < since:
            self.times.popleft()
        return len(self.times)


class Gate:
    """Who may connect, how many may be in, and how often a wrong token may be tried.

    A token that nobody can guess is compared at once, whoever asks and however often: who knows it gets in, and only
    the answer to a wrong one waits. Of a token that can be guessed an address that was wrong FAILURES times in WINDOW_S
    has one compared in PENALTY_S, and so have, after STRANGERS wrong ones, all addresses together from which nobody
    has logged in yet; for these the pause doubles with every HUNDRED, up to LONGEST_S.
    """

    FAILURES, STRANGERS, WINDOW_S, PENALTY_S, REMEMBERED = 5, 20, 60.0, 5.0, 10000
    ANSWER_PAUSE_S = 2.0  # less than a command waits for its login: who waits too short takes it for a dead port
    HUNDRED, LONGEST_S = 100, 300.0

    def __init__(self, settings, monotonic):
        self.allowed, self.limit = settings.allowlist, settings.max_connections
        self.token, self.guessable = settings.token.encode('utf-8'), is_guessable(settings.token)
        self.monotonic, self._lock = monotonic, threading.Lock()
        self.inside, self.waiting = 0, 0  # connections that have logged in, and those that have not
        self._guesses, self._known = OrderedDict(), OrderedDict()  # by source_of(address)
        self._strangers = _Guesses(self.STRANGERS)

    @property
    def connections(self):
        return self.inside + self.waiting

    def admits(self, address):
        return not self.allowed or any(_in_network(address, network) for network in self.allowed)

    def enter(self):
        """Takes a place inside; False if there is none."""
        with self._lock:
            free = self.inside < self.limit
            self.inside += free
            return free

    def leave(self):
        with self._lock:
            self.inside -= 1

    def check_token(self, address, token):
        """Raises AuthFailed, or AuthThrottled where the token was not even looked at."""
        source = source_of(address)
        with self._lock:
            if self.guessable:
                self._take_turn(source)
            given = token.encode('utf-8', 'surrogatepass') if isinstance(token, str) else b''
            if hmac.compare_digest(given, self.token):
                self._remember(self._known, source, True)
                return
            self._note_failure(source)
        raise AuthFailed('口令不匹配', '检查两端的 QMT_SERVER_TOKEN 是否一致')

    def answer_pause_s(self, address):
        """How long the answer to a wrong token waits: the first ones of an address are mistakes of somebody's."""
        with self._lock:
            is_late = self._recent(self._guesses.get(source_of(address))) > self.FAILURES
            return min(self.PENALTY_S, self.ANSWER_PAUSE_S) if is_late else 0

    def _recent(self, guesses):
        return guesses.recent(self.monotonic() - self.WINDOW_S) if guesses else 0

    def _take_turn(self, source):
        own, now = self._guesses.get(source), self.monotonic()
        pauses = [(own, self.PENALTY_S)] if self._recent(own) >= self.FAILURES else []
        if source not in self._known and self._many_strangers():
            pauses.append((self._strangers, self._strangers_pause_s()))
        left_s = max([guesses.looked + pause_s - now for guesses, pause_s in pauses] or [0])
        if left_s > 0:
            left_s = max(0.1, round(left_s, 1))
            raise AuthThrottled('登录失败次数过多，这次没有核对', '%g 秒后再试；换成长的随机口令就不再限制' % left_s,
                                retry_after_s=left_s)
        for guesses, _ in pauses:
            guesses.looked = now

    def _many_strangers(self):
        resting = self.monotonic() >= self._strangers.last + self._strangers.REST_S
        return self._recent(self._strangers) >= self.STRANGERS or (
            self._strangers.in_a_row >= self.HUNDRED and not resting)

    def _strangers_pause_s(self):
        return min(self.LONGEST_S, self.PENALTY_S * 2 ** min(10, self._strangers.in_a_row // self.HUNDRED))

    def _note_failure(self, source):
        guesses = self._guesses.get(source) or _Guesses(self.FAILURES + 1)
        self._remember(self._guesses, source, guesses)
        guesses.note(self.monotonic())
        if source not in self._known:
            self._strangers.note(self.monotonic())

    def _remember(self, memory, source, value):
        memory[source] = value
        memory.move_to_end(source)
        if len(memory) > self.REMEMBERED:
            memory.popitem(last=False)


def _in_network(address, network):
    ip = plain_address(address)
    return ip.version == network.version and ip in network


@lru_cache(maxsize=4096)
def source_of(address):
    """What counts as one: an IPv4 address, or an IPv6 /64, which one machine has whole."""
    ip = plain_address(address)
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network('%s/64' % ip, strict=False))


class _Tally:
    """What one line of the log has to count. due: when it may be written."""

    def __init__(self, due):
        self.due, self.counts, self.sources = due, Counter(), set()

    def __str__(self):
        return '%d 次（%s）' % (sum(self.counts.values()), '、'.join(
            '%s %d' % pair for pair in self.counts.most_common()))


class Refusals:
    """Whom the server turned away, in the log: a line a minute and address, however many they are. Any thread.

    The first of an address is told at once, those after it are counted. At most ADDRESSES have lines of their own at a
    time, the others one for all. tell() writes what is due.
    """

    PAUSE_S, ADDRESSES, REMEMBERED = 60.0, 20, 10000

    def __init__(self, monotonic):
        self.monotonic, self._lock = monotonic, threading.Lock()
        self._tallies, self._others = OrderedDict(), None  # source -> _Tally, the next that is due first

    def note(self, address, code, text):
        """code: one of few. text: for the first of the address. address: None for the machine itself.

        Whether that was written at once.
        """
        source = '本机' if address is None else source_of(address)
        with self._lock:
            tally = self._tallies.get(source) or self._tally_of_others(source)
            if tally is None:
                self._tallies[source] = _Tally(self.monotonic() + self.PAUSE_S)
            else:
                tally.counts[code] += 1
                return False
        LOG.warning('拒绝 %s：%s', source, printable(text)[:200])
        return True

    def _tally_of_others(self, source):
        """None where the address may have its own."""
        if len(self._tallies) < self.ADDRESSES:
            return None
        if self._others is None:
            self._others = _Tally(self.monotonic() + self.PAUSE_S)
        if len(self._others.sources) < self.REMEMBERED:
            self._others.sources.add(source)
        return self._others

    def wait_s(self):
        """How long until tell() has something to do; None: until somebody is refused."""
        with self._lock:
            dues = [tally.due for tally in itertools.islice(self._tallies.values(), 1)]
            dues += [self._others.due] if self._others else []
        return max(0.0, min(dues) - self.monotonic()) if dues else None

    def tell(self, all=False):
        for line in self._due_lines(math.inf if all else self.monotonic()):
            LOG.warning('%s', line)

    def _due_lines(self, now):
        lines = []
        with self._lock:
            for source in [source for source, tally in self._tallies.items() if tally.due <= now]:
                tally = self._tallies.pop(source)
                if tally.counts:
                    lines.append('拒绝 %s：又有 %s' % (source, tally))
                    self._tallies[source] = _Tally(now + self.PAUSE_S)
            if self._others is not None and self._others.due <= now:
                others, self._others = self._others, None
                lines.append('拒绝其余 %d%s 个地址：%s' % (
                    len(others.sources), '+' if len(others.sources) >= self.REMEMBERED else '', others))
        return lines


# -- the door: all that comes before a login, in one thread --------------------------------------------------------
class Guest:
    """A connection that has not logged in; the door's thread alone touches it.

    step(guest): goes on with it when its socket is ready. late(guest): what happens at `due`. place: where it stands
    among those that may still log in, None for one whose fate is settled. events: what it waits for.
    """

    def __init__(self, sock, address, step, late, due):
        self.sock, self.address, self.source = sock, address, source_of(address)
        self.step, self.late, self.due = step, late, due
        self.place, self.gone, self.events, self.speaks, self.farewell = None, False, 0, True, None
        self._data, self._size = bytearray(), None

    def read_hello(self):
        """The body of its first frame. Raises ConnectionLost, FrameTooLarge, and what its socket does without input."""
        while self._size is None or len(self._data) < self._size:
            chunk = self.sock.recv((4 if self._size is None else self._size) - len(self._data))
            if not chunk:
                raise ConnectionLost('没有登录就断开了连接')
            self._data += chunk
            if self._size is None and len(self._data) == 4:
                self._size = check_length(_LENGTH.unpack(self._data)[0], LOGIN_LIMIT)
                self._data.clear()
        return self._data

    @property
    def said_something(self):
        return self._size is not None or bool(self._data)

    def say(self, error):
        """What fits at once: it is little, and nothing was sent before."""
        if self.speaks:
            with contextlib.suppress(OSError):
                self.sock.send(encode_frame(dict(error.to_wire(), type='error')))


class Door:
    """Takes connections from the listening socket and lets those in who know the token; one thread, nothing blocks.

    Places here are apart from those inside. Where they run out, somebody goes: whose fate is settled, else one of the
    address that has most, by lot; what it has sent is looked at before, so that nobody goes with the right token under
    way. No address has more than SHARE of them. let_in(sock, address, hello): starts a session; raises if the machine
    cannot.
    """

    FEWEST, SHARE, SAMPLE, AT_ONCE = 16, 0.75, 16, 64
    LOOK_S, REST_S, LEAVE_S = 0.1, 0.2, 2.0

    def __init__(self, listener, gate, tls, let_in, places):
        self._listener, self._gate, self._tls, self._let_in, self._places = listener, gate, tls, let_in, places
        self.refusals = Refusals(time.monotonic)
        self._waiting, self._settled, self._crowds = [], OrderedDict(), Counter()
        self._selector, self._closing, self._resting = selectors.DefaultSelector(), threading.Event(), None
        self._bell, self._ring = socket.socketpair()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._looked, self._thread = 0.0, threading.Thread(target=self._run, name='door', daemon=True)

    def start(self):
        self._thread.start()

    def close(self):
        """Nobody comes any more, and who waits is sent away."""
        self._closing.set()
        self._ring.close()  # which wakes the thread
        if self._thread.ident is not None:
            wait_for_thread(self._thread)
        for guest in self._guests():
            self._drop(guest)
        self._listener.close()
        self._bell.close()
        self._selector.close()
        self.refusals.tell(all=True)

    def _run(self):
        while not self._closing.is_set():
            try:
                self._go_round()
            except Exception as error:  # whatever it is, the others are to get in
                self._unforeseen(None, error)
                self._closing.wait(self.REST_S)

    def _go_round(self):
        ready = [key for key, _ in self._selector.select(self._pause_s())]
        for guest in [key.data for key in ready if key.data is not None]:
            self._attend(guest)
        if any(key.fileobj is self._listener for key in ready):
            self._welcome()
        self._look_at_the_time()

    def _unforeseen(self, address, error):
        """A line a minute, whatever strangers can cause."""
        if self.refusals.note(address, 'INTERNAL_ERROR', '出错：%r' % error):
            LOG.error('登录前的连接出错', exc_info=error)

    def _rest(self):
        if not self._resting:
            self._selector.unregister(self._listener)
        self._resting = time.monotonic() + self.REST_S

    def _pause_s(self):
        if self._waiting or self._settled or self._resting:
            return self.LOOK_S
        return self.refusals.wait_s()

    def _guests(self):
        return self._waiting + list(self._settled)

    # -- coming --------------------------------------------------------------------------------------------------
    def _welcome(self):
        for _ in range(self.AT_ONCE):
            try:
                sock, place = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone before it was its turn
                continue
            except OSError as error:
                self._no_descriptor(error)
                return
            self._receive(sock, str(plain_address(place[0])))

    def _no_descriptor(self, error):
        """One that waits gives up its own for the next; without such a one the listening rests for a moment."""
        self.refusals.note(None, 'NO_DESCRIPTOR', '不能再接受连接：%s' % error)
        if self._settled or self._waiting:
            self._make_room(1)
        else:
            self._rest()

    def _receive(self, sock, address):
        if not self._gate.admits(address):
            self.refusals.note(address, 'NOT_ALLOWED', '不在 %s内' % ways('allowlist'))
            sock.close()
            return
        sock.setblocking(False)
        guest = Guest(sock, address, self._begin_tls if self._tls else self._hear, self._too_late,
                      time.monotonic() + LOGIN_TIMEOUT_S)
        guest.speaks = not self._tls
        self._share_out(guest.source)
        self._add(guest)
        self._attend(guest)  # mostly its first words are there already

    def _add(self, guest):
        guest.place = len(self._waiting)
        self._waiting.append(guest)
        self._crowds[guest.source] += 1
        self._count()

    def _count(self):
        self._gate.waiting = len(self._waiting) + len(self._settled)

    # -- room ----------------------------------------------------------------------------------------------------
    def _share_out(self, source):
        if self._crowds[source] >= self._places * self.SHARE:
            self._make_room(1, source)
        self._make_room(len(self._waiting) + len(self._settled) + 1 - self._places)

    def _make_room(self, wanted, source=None):
        for _ in range(wanted):
            loser = self._loser(source)
            if loser is None:
                return
            if loser.place is not None:
                self._attend(loser)
            if not loser.gone:
                self._push_out(loser)

    def _loser(self, source):
        """source: one of this address, if a look at some finds any."""
        if self._settled and source is None:
            return next(iter(self._settled))
        some = self._waiting if len(self._waiting) <= self.SAMPLE else [
            self._waiting[random.randrange(len(self._waiting))] for _ in range(self.SAMPLE)]
        some = [guest for guest in some if source in (None, guest.source)]
        most = max((self._crowds[guest.source] for guest in some), default=0)
        some = [guest for guest in some if self._crowds[guest.source] == most]
        return some[random.randrange(len(some))] if some else None

    def _push_out(self, guest):
        if guest.place is not None:
            guest.farewell = ServerBusy('等待登录的连接太多', '稍后重试', retry_after_s=0.5)
            self.refusals.note(guest.address, 'NO_PLACE', '等待登录的连接太多，没有登录的让位')
        if guest.farewell is not None:
            guest.say(guest.farewell)
        self._drop(guest)

    # -- one guest -----------------------------------------------------------------------------------------------
    def _attend(self, guest):
        """Goes on with it as far as what it has sent allows."""
        if guest.gone:
            return
        try:
            guest.step(guest)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._watch(guest, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(guest, selectors.EVENT_WRITE)
        except BulletError as error:
            self._dismiss(guest, error)
        except OSError as error:
            self._lose(guest, error)
        except Exception as error:
            self._unforeseen(guest.address, error)
            self._drop(guest)

    def _begin_tls(self, guest):
        """Only once something comes: who says nothing costs no more than with plain text."""
        if not guest.sock.recv(1, socket.MSG_PEEK):
            raise ConnectionLost('没有登录就断开了连接')
        self._watch(guest, 0)
        guest.sock = self._tls.wrap_socket(guest.sock, server_side=True, do_handshake_on_connect=False)
        guest.step = self._shake_hands
        self._shake_hands(guest)

    def _shake_hands(self, guest):
        guest.sock.do_handshake()
        guest.step, guest.speaks = self._hear, True
        self._hear(guest)

    def _hear(self, guest):
        hello = decode_request(guest.read_hello())
        if hello.get('type') != 'handshake':
            guest.speaks = False  # whatever that is, it is not for us
            raise ProtocolError('第一帧不是登录')
        try:
            self._gate.check_token(guest.address, hello.get('token'))
        except AuthThrottled:
            raise
        except AuthFailed as error:
            self._dismiss(guest, error, self._gate.answer_pause_s(guest.address))
            return
        self._show_in(guest, hello)

    def _show_in(self, guest, hello):
        if not self._gate.enter():
            raise ServerBusy('连接数已满', '关闭不用的客户端，或由服务端调大 ' + ways('max_connections'), retry_after_s=5)
        self._forget(guest)
        try:
            self._let_in(guest.sock, guest.address, hello)
        except Exception as error:  # mostly the machine has no thread left
            self._gate.leave()
            self.refusals.note(guest.address, 'NO_SESSION', '会话不能开始：%r' % error)
            guest.say(ServerBusy('服务端没有资源开始会话', '稍后重试', retry_after_s=5))
            guest.sock.close()

    # -- leaving -------------------------------------------------------------------------------------------------
    def _dismiss(self, guest, error, pause_s=0):
        """It is told why, now or later, and goes."""
        if isinstance(error, ConnectionLost) and not guest.said_something:
            self._drop(guest)  # somebody looked whether there is a server
            return
        self.refusals.note(guest.address, error.code, error)
        self._settle(guest, self._tell, pause_s)
        guest.farewell = error
        if not pause_s:
            self._tell(guest)

    def _tell(self, guest):
        guest.say(guest.farewell)
        guest.farewell = None
        end_sending(guest.sock)
        self._settle(guest, self._drop, self.LEAVE_S)
        guest.step = self._drain
        self._attend(guest)

    def _drain(self, guest):
        """To its end: who closes over bytes that nobody read takes back what was said."""
        for _ in range(2):  # at a time
            if not socket.socket.recv(guest.sock, 65536):
                self._drop(guest)
                return
        self._watch(guest, selectors.EVENT_READ)

    def _settle(self, guest, late, wait_s):
        """It is not among those any more that may log in."""
        self._watch(guest, 0)
        self._leave_place(guest)
        self._settled[guest] = True
        guest.late, guest.due = late, time.monotonic() + wait_s

    def _lose(self, guest, error):
        if guest.place is not None:
            code = 'TLS_FAILED' if isinstance(error, ssl.SSLError) else 'CONNECTION_LOST'
            self.refusals.note(guest.address, code, '登录前连接失败：%s' % error)
        self._drop(guest)

    def _too_late(self, guest):
        self._dismiss(guest, RequestTimeout('%g 秒内没有登录' % LOGIN_TIMEOUT_S))

    def _drop(self, guest):
        self._forget(guest)
        with contextlib.suppress(OSError):
            guest.sock.close()

    def _forget(self, guest):
        guest.gone = True
        self._watch(guest, 0)
        self._leave_place(guest)
        self._settled.pop(guest, None)
        self._count()

    def _leave_place(self, guest):
        if guest.place is None:
            return
        last = self._waiting.pop()
        if last is not guest:
            self._waiting[guest.place], last.place = last, guest.place
        guest.place = None
        self._crowds[guest.source] -= 1
        if not self._crowds[guest.source]:
            del self._crowds[guest.source]

    def _watch(self, guest, events):
        if events == guest.events:
            return
        if not events:
            self._selector.unregister(guest.sock)
        elif guest.events:
            self._selector.modify(guest.sock, events, guest)
        else:
            self._selector.register(guest.sock, events, guest)
        guest.events = events

    def _look_at_the_time(self):
        now = time.monotonic()
        if now < self._looked + self.LOOK_S:
            return
        self._looked = now
        if self._resting and self._resting <= now:
            self._resting = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        for guest in self._guests():
            if guest.due <= now and not guest.gone:
                guest.late(guest)
        self.refusals.tell()


# -- session -----------------------------------------------------------------------------------------------------
class Session:
    """One connection: handshake, login, then requests until either side ends it. Runs in a thread of its own."""

    def __init__(self, server, sock, address):
        self.server, self.service, self.address = server, server.service, address
        self.id = 's' + uuid.uuid4().hex[:12]
        self.features, self.legacy_helper, self._defaults = frozenset(), False, {}
        self._sock, self._channel, self._outbox = sock, Channel(sock, decode=decode_request), None
        self._landing = threading.Condition()  # guards _in_flight
        self._in_flight, self.ended = 0, False

    def run(self, hello):
        """hello: the first frame, which had the right token."""
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_send_queue_short(self._sock)
            if self._login(hello):
                self._serve()
        except (BulletError, OSError) as error:
            LOG.info('连接 %s 结束：%s', self.address, printable(error))
        except Exception:
            LOG.exception('连接 %s 出错', self.address)
        finally:
            self._end()

    def abort(self):
        """From any thread: makes run() return soon."""
        self._channel.abort()

    def flush(self, timeout_s):
        """Gives answers that wait to be sent this much time."""
        if self._outbox is not None:
            self._outbox.flush(timeout_s)

    def end_writing(self):
        """From any thread: the client gets the answers that are out, and then the end."""
        self._channel.end_writing(0.1)

    def _end(self):
        """The socket goes whatever the source says to the end of its subscriptions."""
        self.ended = True
        self.abort()
        self.service.leave(self)
        try:
            self.service.hub.unsubscribe_all(self)
        except Exception:
            LOG.exception('退订失败')
        finally:
            if self._outbox is not None:
                self._outbox.close()
            with contextlib.suppress(OSError):
                self._channel.close()

    # -- login -------------------------------------------------------------------------------------------------
    def _login(self, hello):
        """Whether the peer is in."""
        try:
            self._accept(hello)
        except BulletError as error:
            self._refuse(error)
            return False
        return True

    def _accept(self, hello):
        asked = feature_names(hello.get('features'))
        self._defaults = {name: hello[name] for name in ('account_key', 'sub_account_id') if hello.get(name)}
        if self._defaults:
            self.service.desk.accounts.route(**self._defaults)
        self.features, self.legacy_helper = SERVER_FEATURES.intersection(asked), not asked
        self._outbox = Outbox('sender-%s' % self.id, self._channel, self._part_size(), self._frame_of_ticks,
                              BATCH_TICK_FEATURE in self.features)
        self.send({'type': 'handshake_ack', 'session_id': self.id, 'keepalive': KEEPALIVE_S, 'protocol': PROTOCOL,
                   'features': self.service.scopes + sorted(self.features),
                   'journal_id': self.service.desk.journal.id, 'server_time': unix_ms(self.service.clock.now())})
        if SETTLED_EVENT in self.features:
            self.service.hear(self, self._defaults)
        LOG.info('客户端登录：%s 会话 %s', self.address, self.id)

    def _part_size(self):
        """A part is what another frame may have to wait for: a second on the thinnest line, little on this machine."""
        if BINARY_FEATURE not in self.features:
            return None
        return 4 * 1024 * 1024 if plain_address(self.address).is_loopback else 65536

    def _frame_of_ticks(self, ticks):
        """A tick that cannot be encoded costs no other."""
        try:
            if BATCH_TICK_FEATURE in self.features:
                return encode_ticks(ticks)
            (tick, symbol), = ticks
            row = _with_feed(tick.to_wire(), self.service.backend.name, self.service.clock.now())
            return encode_frame({'type': 'event', 'event': 'tick', 'payload': dict(row, symbol=symbol)})
        except (ValueError, TypeError):
            if len(ticks) > 1:
                return b''.join(self._frame_of_ticks([tick]) for tick in ticks)
            LOG.exception('行情 %s 不能编码', printable(ticks[0][1]))
            return b''

    def _refuse(self, error):
        self.server.refusals.note(self.address, error.code, error)
        with contextlib.suppress(ConnectionLost):
            self.send(dict(error.to_wire(), type='error'))
            self._channel.finish()

    # -- requests ------------------------------------------------------------------------------------------------
    def _serve(self):
        while True:
            try:
                frame = self._read()
                if frame is None:
                    return
                self._take(frame)
            except UnsoundFrame as error:
                self.server.refusals.note(self.address, error.code, error)
                self.send(dict(error.to_wire(), type='error', id=error.frame_id, broker_called=False))
            except ProtocolError as error:
                self._break_off(error)
                return

    def _break_off(self, error):
        """What was asked before is answered, and then it is told why nothing after it is."""
        self.server.refusals.note(self.address, error.code, error)
        with self._landing:
            self._landing.wait_for(lambda: not self._in_flight, BREAK_OFF_S)
        self.send(dict(error.to_wire(), type='error'))
        self._outbox.flush(BREAK_OFF_S)
        self._channel.finish()

    def _read(self):
        """A large request on a slow line may take its time; one that sends nothing is over."""
        while True:
            try:
                return self._channel.read_frame(REQUEST_LIMIT, 3 * KEEPALIVE_S)
            except RequestTimeout:
                silent_s = time.monotonic() - self._channel.last_read
                if silent_s >= 3 * KEEPALIVE_S:
                    raise ConnectionLost('对方 %d 秒没有声音' % silent_s)

    def _take(self, frame):
        kind = frame.get('type', 'request')
        if kind == 'ping':
            self.send({'type': 'pong', 'id': plain_id(frame.get('id'))})
        elif kind == 'request':
            self._request(frame)
        else:
            error = BadRequest('不支持的消息类型 %s' % brief(kind))
            self.send(dict(error.to_wire(), type='error', id=plain_id(frame.get('id')), code='UNSUPPORTED'))

    def _request(self, frame):
        compact = frame.get('compact') is True
        job = Job(self, plain_id(frame.get('id')), frame.get('action'), frame.get('payload'), compact)
        try:
            if job.id is None and frame.get('id') is not None:  # nobody would know whose answer it is
                raise BadRequest('请求的 id 应为不超过 128 个字符的文字或有限的数字', '什么也没有做；换一个 id')
            job.what = self.service.find(job.action)
            lane = self.service.lane(job.what, job.payload)
            if lane == 'inline':
                job()
                return
            self._take_off(job)
            self.server.run_later(lane, job)
        except BulletError as error:
            job.fail(error)

    def _take_off(self, job):
        with self._landing:
            if self._in_flight >= IN_FLIGHT_LIMIT * (2 if job.what.lane == 'control' else 1):
                raise ServerBusy('本连接有 %d 个请求还没有回答' % self._in_flight, '等前面的请求回来', retry_after_s=1)
            self._in_flight += 1
            job.airborne = True

    def landed(self):
        with self._landing:
            self._in_flight -= 1
            self._landing.notify()

    def send(self, frame):
        """From the session's own thread, also before there is an outbox."""
        data = encode_frame(frame)
        if self._outbox is None:
            self._channel.write(data)
        else:
            self._outbox.put([data])

    def put_answer(self, pieces):
        self._outbox.put(pieces)

    def with_defaults(self, payload):
        """The account of the login stands in for one that the payload does not name.

        A sub-account of the login holds for the whole session: no payload leaves it, and with it its limit.
        """
        if not self._defaults:
            return payload
        if self._defaults.get('sub_account_id'):
            return self._inside_sub_account(payload)
        if payload.get('account_key') or payload.get('sub_account_id'):
            return payload
        return dict(payload, **self._defaults)

    def _inside_sub_account(self, payload):
        route = self.service.desk.accounts.route
        own = route(**self._defaults)
        asked = route(payload.get('account_key') or own.key, payload.get('sub_account_id') or own.sub.name)
        if asked.sub is not own.sub:
            raise AccountNotFound('本次登录是子账户 %s，不能操作 %s' % (own.sub.name, asked.sub.name), '用另一个连接登录那个子账户')
        return dict(payload, account_key=own.key, sub_account_id=own.sub.name)

    @property
    def account(self):
        """What the login named, for the log."""
        return self._defaults.get('sub_account_id') or self._defaults.get('account_key')

    def post_event(self, event, payload, **more):
        """Never blocks. A client that reads so slowly that too much waits is cut off: it can ask for what it missed."""
        if self._outbox.overflows():
            self.abort()
        with contextlib.suppress(ConnectionLost):
            self.put_answer([encode_frame(dict(more, type='event', event=event, payload=payload))])

    def post(self, tick, symbol):
        """A tick for this session, under the client's spelling of its security; never blocks."""
        self._outbox.put_tick(tick.sid, (tick, symbol))


class Job:
    """One request: runs its action, answers exactly once, writes the access log. Callable, for a worker.

    For the action, as its caller: session, legacy_helper, binary, with_defaults(payload), wanted(), progress(figures).
    moved: when it last made progress.
    """

    def __init__(self, session, id, action, payload, compact=False):
        self.session, self.id, self.action, self.payload, self._compact = session, id, action, payload, compact
        self.owner, self.legacy_helper, self.what = session, session.legacy_helper, None  # what: the Action
        self.airborne = False  # counted among the session's requests in flight
        self._started, self.moved = time.perf_counter(), time.monotonic()
        self._lock, self.answered, self._begun = threading.Lock(), False, False

    def __call__(self):
        with self._lock:
            if self._begun or self.answered:  # its time was over before its turn came
                return
            self._begun, payload = True, self.payload
        try:
            self._answer({'type': 'response', 'id': self.id,
                          'payload': self.session.service.run(self.what, payload, self)}, 'OK')
        except BulletError as error:
            self.fail(error)
        except Exception as error:
            LOG.exception('%s 失败', printable(self.action))
            self.fail(InternalError('服务端内部错误：%s' % printable(error), '详情见服务端日志', **self._doubt()))

    @property
    def binary(self):
        return BINARY_FEATURE in self.session.features

    def with_defaults(self, payload):
        return self.session.with_defaults(payload)

    def wanted(self):
        """Whether anybody still waits for the answer."""
        return not (self.answered or self.session.ended)

    def progress(self, figures):
        """Tells a client that wants to hear it; the request's time counts from here again."""
        self.moved = time.monotonic()
        if PROGRESS_FEATURE in self.session.features and self.wanted():
            self.session.post_event('progress', dict(figures, action=self.action), id=self.id)

    def _doubt(self):
        """An unforeseen failure of a write may have come after the broker was called."""
        return {'broker_called': None if self.action in (PLACE, CANCEL) else False}

    def wait_s(self):
        """How long a write may wait for its outcome, beside being carried out."""
        wait = self._given('wait_timeout')
        return min(wait, WAIT_LIMIT_S) if isinstance(wait, (int, float)) and wait > 0 else 0

    def _given(self, name):
        payload = self.payload  # once: another thread may finish the job meanwhile
        return payload.get(name) if isinstance(payload, dict) else None

    def fail(self, error):
        self._answer(dict(error.to_wire(), type='error', id=self.id), error.code)

    def expire(self, limit_s):
        """Called when the request has taken too long. A late result is dropped; what has not begun never will."""
        with self._lock:
            waiting, self._begun = not self._begun, True
        if self.action in (PLACE, CANCEL) and waiting:
            self.fail(ServerBusy('排队 %g 秒仍未轮到，没有提交' % limit_s, '稍后用同一 idempotency_key 重试', retry_after_s=1))
        elif self.action in (PLACE, CANCEL):
            self.fail(OrderStateUnknown('%g 秒内没有结果，状态未知' % limit_s, '用同一 idempotency_key 重试或查询',
                                        idempotency_key=self._given('idempotency_key')))
        else:
            self.fail(RequestTimeout('%s 超过 %g 秒没有完成' % (self.action, limit_s),
                                     '缩小请求，或由服务端调大 ' + ways('request_timeout')))

    def _answer(self, frame, status):
        with self._lock:
            if self.answered:
                return
            self.answered = True
        try:
            status = self._send(frame, status)
        except ConnectionLost:
            status += ' (client gone)'
        finally:
            self._finish(status, frame if frame['type'] == 'error' else frame.get('payload'))

    def _send(self, frame, status):
        """The status that the client gets: an answer that cannot be sent becomes an error; the connection lives."""
        try:
            self.session.put_answer(self._encoded(frame))
            return status
        except (FrameTooLarge, ServerBusy) as error:
            failure = error
        except (ValueError, TypeError):
            LOG.exception('%s 的结果不能编码', printable(self.action))
            failure = InternalError('结果含有 NaN 或不能编码的值', '详情见服务端日志')
        self.session.put_answer([encode_frame(dict(failure.to_wire(), type='error', id=self.id))])
        return failure.code

    def _encoded(self, frame):
        """The pieces of the frame; a table goes in the form that the client knows."""
        table = frame.get('payload')
        if not isinstance(table, Table):
            return [encode_frame(frame)]
        if self.binary:
            return encode_table_frame(frame, table, self._compact)
        return [encode_frame(dict(frame, payload=table.to_wire()))]

    def _finish(self, status, answer):
        if self.airborne:
            self.session.landed()
        self.session.service.access_log.note(self.session, self.id, self.action, self._account(), status,
                                             time.perf_counter() - self._started, self._order(answer))
        self.payload = None  # the timekeeper may remember the job for a while

    def _order(self, answer):
        """(payload, answer) of an order or a cancel; None of any other request."""
        if self.action in (PLACE, CANCEL) and isinstance(self.payload, dict):
            return self.payload, answer if isinstance(answer, dict) else {}

    def _account(self):
        return self._given('sub_account_id') or self._given('account_key') or self.session.account or '-'


class Timekeeper:
    """One thread that expires jobs whose time is over."""

    def __init__(self, limit_s):
        self.limit_s = limit_s
        self._changed = threading.Condition()
        self._due, self._count, self._closed = [], 0, False  # heap of (time, number, job, limit)
        self._thread = threading.Thread(target=self._run, name='timekeeper', daemon=True)
        self._thread.start()

    def watch(self, job, share=1.0):
        """share: of a request's time that this one has."""
        limit_s = self.limit_s * share
        limit_s = max(limit_s, job.wait_s() + ORDER_MARGIN_S) if job.wait_s() else limit_s
        with self._changed:
            self._count += 1
            if self._count % 1024 == 0:
                self._forget_answered()
            heapq.heappush(self._due, (time.monotonic() + limit_s, self._count, job, limit_s))
            if self._due[0][2] is job:  # otherwise the thread wakes up early enough by itself
                self._changed.notify()

    def _forget_answered(self):
        """Jobs that are over must not be kept until they would have been late."""
        self._due = [item for item in self._due if not item[2].answered]
        heapq.heapify(self._due)

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify()
        wait_for_thread(self._thread)

    def _run(self):
        while True:
            with self._changed:
                if self._closed:
                    return
                self._changed.wait(self._pause())
                late = self._late()
            for job, limit_s in late:
                self._expire(job, limit_s)

    @staticmethod
    def _expire(job, limit_s):
        try:
            job.expire(limit_s)
        except Exception:  # the others are still to be told
            LOG.exception('超时的请求没有答复')

    def _pause(self):
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def _late(self):
        late = []
        while self._due and (self._due[0][2].answered or self._due[0][0] <= time.monotonic()):
            _, number, job, limit_s = heapq.heappop(self._due)
            if job.answered:
                continue
            if job.moved + limit_s > time.monotonic():  # it made progress since
                heapq.heappush(self._due, (job.moved + limit_s, number, job, limit_s))
            else:
                late.append((job, limit_s))
        return late


# -- the listening socket ------------------------------------------------------------------------------------------
def _listen_advice(error):
    if isinstance(error, (socket.gaierror, UnicodeError)) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return '%s 应是本机的地址：只给本机用 127.0.0.1，给别的机器用 0.0.0.0（只有 IPv4）或 ::（IPv4 和 IPv6）' % ways('listen')
    return '换一个 %s，或先停掉占用它的程序' % ways('port')


def server_tls(settings):
    """SSLContext of the server's certificate, or None without one."""
    if not settings.tls_cert:
        return None
    context = require_tls12(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    try:
        # No password: an encrypted key must not make the server wait at a prompt.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password='')
    except (OSError, ssl.SSLError) as error:
        raise ConfigError('TLS 证书或私钥读不出来：%s' % error, '检查 %s %s 与 %s %s 是否配对的 PEM 文件' % (
            ways('tls_cert'), settings.tls_cert, ways('tls_key'), settings.tls_key))
    return context


class BulletServer(socketserver.TCPServer):
    """The listening socket, its sessions and their workers. start() serves; close() ends everything in order.

    Attributes: address (host, port), service, gate, tls, refusals.
    """

    request_queue_size = max(1024, socket.SOMAXCONN)
    DRAIN_S, LEAVE_S = 5.0, 0.5  # for requests and answers to end; for clients to end the connection themselves
    OTHER_DESCRIPTORS = 64  # journal, log, terminal
    # name, threads, queue, threads of one session; a waiting order holds a thread, and so does a waiting cancel:
    # there are more than may wait, and a session has all that its requests in flight can need
    POOLS = (('data', 8, 256, 4), ('history', 4, 256, 2), ('broker', 128, 256, 64),
             ('control', OrderWatch.CANCEL_LIMIT + 64, 256, 2 * IN_FLIGHT_LIMIT))

    def __init__(self, settings, service):
        self.settings, self.service, self.tls = settings, service, server_tls(settings)
        self.stopping = threading.Event()
        self.gate = Gate(settings, time.monotonic)
        self._sessions, self._lock = {}, threading.Lock()
        self._bind(settings.listen, settings.port)
        self.address = self.socket.getsockname()[:2]
        self._pools = {pool[0]: WorkerPool(*pool) for pool in self.POOLS}
        self._timekeeper = Timekeeper(settings.request_timeout)
        self._door = Door(self.socket, self.gate, self.tls, self._begin_session, self._places())
        self.refusals = self._door.refusals
        service.session_count = lambda: len(self._sessions)

    def _places(self):
        """At the door: fewer where the system gives the process few descriptors."""
        inside = self.gate.limit + self.OTHER_DESCRIPTORS
        most = allowed_descriptors(inside + most_waited_for())
        if most is not None and most < inside + Door.FEWEST:
            LOG.warning('系统只允许本程序打开 %d 个描述符，%s %d 需要 %d 个：连接太多时会有请求失败；请放宽 ulimit -n 或调小它',
                        most, ways('max_connections'), self.gate.limit, inside + Door.FEWEST)
        return most_waited_for() if most is None else min(most_waited_for(), max(Door.FEWEST, most - inside))

    def _bind(self, host, port):
        try:
            self.address_family, place = listening_place(host, port)
            super().__init__(place, None, bind_and_activate=False)
            own_port_exclusively(self.socket)
            if self.address_family == socket.AF_INET6:
                take_ipv4_too(self.socket)
            self.server_bind()
            self.server_activate()
        except (OSError, UnicodeError) as error:
            if hasattr(self, 'socket'):
                self.socket.close()
            raise ConfigError('不能监听 %s：%s' % (host_and_port(host, port), error), _listen_advice(error))

    def start(self):
        self._door.start()

    def close(self):
        """No new connections; running requests get DRAIN_S to finish; then sessions, adapters and journal end."""
        self.stopping.set()
        self._door.close()
        self.service.desk.stop_waiting()
        if not all([pool.close(self.DRAIN_S) for pool in self._pools.values()]):
            LOG.warning('有请求没有在 %g 秒内结束，已放弃等待', self.DRAIN_S)
        self._end_sessions()
        self._timekeeper.close()
        self.service.close()

    def _end_sessions(self):
        with self._lock:
            sessions = list(self._sessions.items())
        deadline = time.monotonic() + self.DRAIN_S
        for session, _ in sessions:
            session.flush(deadline - time.monotonic())
            session.end_writing()
        leave = time.monotonic() + self.LEAVE_S
        for _, thread in sessions:
            wait_for_thread(thread, max(0, leave - time.monotonic()))
        for session, _ in sessions:
            session.abort()
        for _, thread in sessions:
            wait_for_thread(thread, max(0.1, deadline - time.monotonic()))

    def run_later(self, lane, job):
        self._pools[lane].submit(job)
        self._timekeeper.watch(job, HISTORY_SHARE if job.action == 'data.history' else 1.0)

    def _begin_session(self, sock, address, hello):
        """In the door's thread, with a place taken. Raises RuntimeError where the machine has no thread left."""
        session = Session(self, sock, address)
        thread = threading.Thread(target=self._run_session, args=(session, hello), name='session-' + session.id,
                                  daemon=True)
        with self._lock:
            self._sessions[session] = thread
        try:
            thread.start()
        except BaseException:
            self._forget(session)
            raise

    def _run_session(self, session, hello):
        try:
            session.run(hello)
        finally:
            self._forget(session)
            self.gate.leave()

    def _forget(self, session):
        with self._lock:
            del self._sessions[session]


def serve(settings, clock=None):
    """A running BulletServer for checked settings. Raises ConfigError; the caller closes it."""
    service = open_service(settings, clock)
    try:
        server = BulletServer(settings, service)
    except BaseException:
        service.close()
        raise
    server.start()
    return server


# ======================================================================================================
# 13. CLIENTS - RemoteQmtConnection (long, reconnecting, pushing), ShortConnection (per call), LocalConnection
# ======================================================================================================
WRITES = {'broker.place_order': 'place', 'broker.cancel_order': 'cancel'}
READS = ('admin.health', 'admin.print_account', 'broker.account', 'broker.positions', 'broker.orders', 'broker.trades',
         'broker.order_status', 'broker.subscribe_events', 'broker.unsubscribe_events')
# An empty list would mark the peer's copy-and-paste helper, which reads tables differently.
CLIENT_FEATURES = ['tick', SETTLED_FEATURE, BINARY_FEATURE, BATCH_TICK_FEATURE, ORDER_STREAM_FEATURE,
                   PROGRESS_FEATURE, QUOTES_FEATURE, ORDERS_FEATURE]
COMPRESS_CHOICES = ('auto', 'always', 'never')
FAR_ROUND_TRIP_S = 0.005    # a login that took longer did not stay on this machine: a tunnel, if it looks like it
STEADY_S = 5.0              # a connection that ended sooner after its login counts as a failed try
HISTORY_TIMEOUT_S = 180.0   # where the caller names no timeout of its own
LONGEST_TIMEOUT_S = 86400.0
WRITE_MARGIN_S = 30.0       # what a write may take beside waiting for its outcome


_warned = set()


def warn_once(text):
    """A line in the log, once in this process."""
    if text not in _warned:
        _warned.add(text)
        LOG.warning('%s', text)


class Endpoint:
    """Where a server is and how to get in: dial() gives a logged-in channel.

    account_key, sub_account_id: whose the session is, None for nobody's. clock_skew_s: see BaseConnection; measured by
    each login.
    """

    def __init__(self, host, port, token, tls_cert=None, connect_timeout=10.0, clock=None, account_key=None,
                 sub_account_id=None):
        if not isinstance(token, str) or not token:
            raise ConfigError('缺少口令', '给出 ' + ways('token'))
        self.host, self.port, self.tls_cert, self.connect_timeout = host, int(port), tls_cert, connect_timeout
        self._token, self.is_far = token, False
        self._clock, self._compared = clock or Clock(), None  # compared: gap, half a round trip, both clocks then
        self._named = _given_values(account_key=account_key, sub_account_id=sub_account_id)
        self._tls = self._tls_context() if tls_cert else None

    def __repr__(self):
        return host_and_port(self.host, self.port) + (' (TLS)' if self._tls else '')

    def _tls_context(self):
        try:
            return trust_certificate(require_tls12(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)), self.tls_cert)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError('TLS 证书 %s 读不出来：%s' % (self.tls_cert, error), '应为服务端证书的 PEM 文件')

    def dial(self, timeout_s=None):
        """(Channel, handshake_ack). Raises ConnectionLost, TlsError, AuthFailed, ServerBusy, ..."""
        timeout_s = self.connect_timeout if timeout_s is None else min(self.connect_timeout, timeout_s)
        channel = Channel(self.secure(self.open_socket(timeout_s), timeout_s), decode=decode_lenient)
        try:
            self._say_in_clear(channel)
            begun = time.perf_counter()
            channel.write_frame(dict(self._named, type='handshake', token=self._token, protocol=PROTOCOL,
                                     features=CLIENT_FEATURES))
            ack = self._read_ack(channel, timeout_s)
            round_trip_s = time.perf_counter() - begun
            self._compare_clocks(ack.get('server_time'), round_trip_s)
            ack['features'] = feature_names(ack.get('features'))
            channel.binary = BINARY_FEATURE in ack['features']
            channel.decode = decode_sound if channel.binary else decode_lenient  # a server of this kind sends no NaN
            self.is_far = self._is_far(channel, round_trip_s)
            return channel, ack
        except BaseException:
            channel.close()
            raise

    def _compare_clocks(self, server_ms, round_trip_s):
        """The server told its time between question and answer: the middle is wrong by half of that at most."""
        if not isinstance(server_ms, int) or isinstance(server_ms, bool):  # an older server, or one of another kind
            self._compared = None
            return
        now, counter_s = self._clock.now(), self._clock.monotonic()
        self._compared = (server_ms - unix_ms(now)) / 1000.0 + round_trip_s / 2, round_trip_s / 2, now, counter_s

    STEPS_S = 2 / 64  # Windows tells the time in steps of a 64th second, at either end
    DRIFT = 1e-4  # by how much a machine's counter may run faster or slower than its clock, which is set by others

    @property
    def clock_skew_s(self):
        """Whoever has set this machine's clock since then, or let it sleep, has changed that by as much."""
        compared = self._compared
        if compared is None:
            return None
        skew_s, _, now, counter_s = compared
        passed_s = (self._clock.now() - now).total_seconds()
        return skew_s - (passed_s - (self._clock.monotonic() - counter_s))

    @property
    def clock_skew_error_s(self):
        compared = self._compared
        if compared is None:
            return None
        _, error_s, _, counter_s = compared
        return error_s + self.STEPS_S + self.DRIFT * (self._clock.monotonic() - counter_s)

    def _say_in_clear(self, channel):
        if self._tls is None and not _peer_address(channel).is_loopback:
            warn_once('到 %s 的连接没有加密，口令和委托在网络上可被窃听：用 TLS（%s），或经 SSH 隧道连接' % (self, ways('tls_cert')))

    def packs(self, compress):
        """Whether long answers are worth packing on the way from there."""
        return compress == 'always' or (compress == 'auto' and self.is_far)

    @staticmethod
    def _is_far(channel, round_trip_s):
        """Whether bytes are dearer than the time to pack them."""
        return not _peer_address(channel).is_loopback or round_trip_s > FAR_ROUND_TRIP_S

    def open_socket(self, timeout_s=None):
        try:
            sock = connect_socket(self.host, self.port, timeout_s or self.connect_timeout)
        except socket.gaierror:
            raise ConnectionLost('找不到主机 %s' % self.host, '检查地址拼写和 DNS')
        except ConnectionRefusedError:
            raise ConnectionLost('%s 拒绝连接' % self, '服务端没有启动，或端口不对、防火墙没有放行')
        except (OSError, UnicodeError) as error:
            raise ConnectionLost('连不上 %s：%s' % (self, error), '检查网络、地址、端口与防火墙')
        with contextlib.suppress(OSError):  # already cut again: whoever reads or writes first is told
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def secure(self, sock, timeout_s=None):
        if self._tls is None:
            return sock
        try:
            sock = self._tls.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
            tls_handshake(sock, timeout_s or self.connect_timeout)
            return sock
        except (OSError, ssl.CertificateError) as error:
            sock.close()
            if is_cut_handshake(error):
                raise ConnectionLost('与 %s 的 TLS 握手中断：%s' % (self, error), '服务端可能正忙，稍后重试；总是这样时：' + _no_tls_advice())
            raise TlsError('与 %s 的 TLS 握手失败：%s' % (self, error), _tls_advice(str(error)))

    def _read_ack(self, channel, timeout_s):
        try:
            ack = channel.read_frame(timeout_s=timeout_s)
        except ProtocolError:
            raise ConnectionLost('%s 的回答不是本协议' % self, '服务端可能要求 TLS：给出 %s；或端口不对' % ways('tls_cert'),
                                 retryable=False)
        except RequestTimeout:
            raise ConnectionLost('%s 没有应答登录' % self, '检查端口是不是本服务，以及服务端是否正常')
        except ConnectionLost:
            ack = None
        if ack is None:
            raise ConnectionLost('%s 关闭了连接' % self, '服务端可能要求 TLS：给出 %s；或本机地址不在它的 %s内' % (
                ways('tls_cert'), ways('allowlist')))
        if ack.get('type') == 'error':
            raise error_from_wire(ack)
        if ack.get('type') != 'handshake_ack':
            raise ConnectionLost('%s 的回答不是本协议' % self, '检查端口', retryable=False)
        return ack


def _peer_address(channel):
    try:
        return plain_address(channel.sock.getpeername()[0])
    except OSError as error:
        raise ConnectionLost('连接中断：%s' % error)


def _tls_advice(text):
    low = text.lower()
    if 'hostname' in low or 'ip address mismatch' in low or "doesn't match" in low:
        return '连接用的主机名或 IP 不在证书里：用证书上的名字连接，或重做带这个名字（SAN）的证书'
    if 'expired' in low or 'not yet valid' in low:
        return '证书不在有效期内，或本机时间不对'
    if 'verify failed' in low:
        return '证书与 tls_cert 不符：把服务端的证书文件原样拷到本机，用 tls_cert 指向它；证书不在有效期内也会这样'
    if 'wrong version' in low or 'record layer' in low:
        return _no_tls_advice()
    return '检查证书、主机名和网络'


def _no_tls_advice():
    return '服务端这个端口可能没有开 TLS：服务端给出 %s和 %s，或客户端去掉 tls_cert' % (ways('tls_cert'), ways('tls_key'))


def _request_timeout(action, payload, given, default_s):
    """Seconds that a call may take. A history on a thin line has longer, a write as long as the server may take."""
    if given is None:
        timeout_s = max(default_s, HISTORY_TIMEOUT_S) if action == 'data.history' else default_s
    else:
        timeout_s = check_number(given, 'timeout', 0, LONGEST_TIMEOUT_S)
    wait = payload.get('wait_timeout') if action in WRITES else None
    return max(timeout_s, min(wait, LONGEST_TIMEOUT_S) + WRITE_MARGIN_S) if _is_positive(wait) else timeout_s


def _is_positive(value):
    """A number above 0; whatever else stands there is for somebody else to refuse."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def new_key(prefix):
    """A key that nobody else has: 128 random bits, in few characters, as each byte counts on the way to the server."""
    return '%s-%s' % (prefix, secrets.token_urlsafe(16))


_WRITE_KEY = re.compile(r'[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}')


def check_write_key(key):
    """A key that servers of every kind keep as it is. An empty one is somebody's mistake."""
    if not isinstance(key, str) or not _WRITE_KEY.fullmatch(key):
        raise BadRequest('idempotency_key 不能用：%s，没有发出' % brief(key),
                         '1 到 255 个英文字母、数字和 . _ : @ / + -，以字母或数字开头；或完全不给，由程序生成', broker_called=False)
    return key


def _with_key(action, payload):
    """A write always carries a key: without one it could never be asked about."""
    if action not in WRITES:
        return payload
    if payload.get('idempotency_key') is None:
        return dict(payload, idempotency_key=new_key(WRITES[action]))
    check_write_key(payload['idempotency_key'])
    return payload


# What changes an order's meaning and is passed over in silence by servers of other kinds.
_OWN_ORDER_WORDS = ('valid_until', 'market_type')


def _unknown_words(payload):
    style = payload.get('style')
    places = [payload, style if isinstance(style, dict) else {}]
    return [word for word in _OWN_ORDER_WORDS if any(place.get(word) is not None for place in places)]


def _given_values(**values):
    return {name: value for name, value in values.items() if value is not None}


def check_compress(value):
    if value not in COMPRESS_CHOICES:
        raise ConfigError('compress 不认识：%s' % brief(value), '可用：%s' % '、'.join(COMPRESS_CHOICES))
    return value


_call_numbers = itertools.count(1)


class _Call:
    """A request on its way.

    sent:    a server may have a copy of it that got no answer, or the answer did not say that nothing was done.
    doubt:   that was so already when the newest copy went out; its answer may know nothing of the earlier one.
    journal: the journal that may have seen it: the only one that may see it again.
    moved:   when the server last told of progress, until the waiting thread has seen that.
    """

    def __init__(self, action, payload, on_progress=None, timeout_s=None):
        self.timeout_s, self.deadline = timeout_s, math.inf
        self.id = '%x' % next(_call_numbers)
        self.action, self.payload = action, _with_key(action, payload)
        self.sent, self.doubt, self.journal, self.channel = False, False, None, None
        self.finished, self._event, self.moved = False, None, None
        self._on_progress, self._told, self.poisoned = on_progress, deque(), 0
        self._answer, self._error = None, None
        self.encode()

    def encode(self, compact=False):
        """The frame to send; a missing type means request. compact: whether the answer may be packed."""
        frame = {'id': self.id, 'action': self.action, 'payload': self.payload}
        try:
            self.data = encode_frame(dict(frame, compact=True) if compact else frame)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise BadRequest('请求里有不能发送的值：%s' % brief(str(error)), '数值不能是 NaN 或无穷大')
        if len(self.data) - _LENGTH.size > REQUEST_LIMIT:  # the server would end the connection, again and again
            raise FrameTooLarge('请求 %d 字节，超过一个请求的上限 %d，没有发出' % (len(self.data), REQUEST_LIMIT), '分成几次请求',
                                broker_called=False)

    def about_to_send(self, journal):
        """The error if it must not be sent to a server with this journal, else None. Call before each attempt.

        A write is repeated only to the journal that keeps its key; another server, one that restarted without
        its journal, or one that has none could carry it out twice. One that has none is no server of this kind, and
        gets no order with a word that it would pass over.
        """
        if self.action in WRITES and self.sent and (journal is None or journal != self.journal):
            return self.lost('连接中断')
        words = _unknown_words(self.payload) if self.action == 'broker.place_order' and journal is None else ()
        if words:
            return NotSupported('这个服务端不是 bullet-qmt 的，不认识 %s，会不理会它照样下单；没有发出' % '、'.join(words),
                                '去掉它，或换成 bullet-qmt 的服务端')
        self.sent, self.doubt, self.journal = True, self.sent, journal  # see not_sent
        return None

    def not_sent(self):
        """After about_to_send: it was not sent after all."""
        self.sent, self.doubt = self.doubt, False

    def take(self, frame):
        if frame.get('type') == 'error':
            self._error = error_from_wire(frame)
            self.sent = self.doubt or self._error.broker_called is not False
        else:
            self._answer = frame.get('payload')
        self._finish()

    def fail(self, error):
        self._error = error
        self._finish()

    def _finish(self):
        self.finished = True
        self.wake()

    def note_progress(self, figures):
        self._told.append(figures)
        self.moved = time.monotonic()
        self.wake()

    def tell_progress(self):
        """To its caller, by the caller's own thread."""
        while self._told:
            figures = self._told.popleft()
            if self._on_progress is not None:
                self._on_progress(figures)

    def later(self, deadline, timeout_s):
        """The deadline, counted anew from the last progress; what was told of that is passed on."""
        if self.moved is not None:
            deadline, self.moved = max(deadline, self.moved + timeout_s), None
        self.tell_progress()
        return deadline

    def prepare_to_wait(self):
        """By its own thread, with the lock held under which it is finished: from now on wake() ends wait()."""
        if self._event is None:
            self._event = threading.Event()
        self._event.clear()

    def wake(self):
        """Its thread looks again: it is finished, or it may read for itself."""
        if self._event is not None:
            self._event.set()

    @property
    def waits(self):
        return self._event is not None and not self.finished

    def wait(self, timeout_s):
        wait_for_event(self._event, timeout_s)

    def lost(self, reason):
        """The error for a call that got no answer: a write that was sent is unknown, anything else just failed."""
        if self.action not in WRITES:
            return RequestTimeout('%s：%s 没有得到回答' % (reason, self.action), '检查网络与服务端')
        if not self.sent:
            return ConnectionLost('%s：%s 没有发出' % (reason, self.action), '检查网络与服务端', broker_called=False)
        hint = '不要换 key 重发；用同一 idempotency_key 查询'
        if self.journal is None:
            hint += '，也不要用同一 key 重发：这个服务端可能已经忘了它'
        return OrderStateUnknown('%s：没有确定的结果，状态未知' % reason, hint, idempotency_key=self.payload['idempotency_key'])

    def verdict(self, error):
        """What an error means to the caller: of a write that may have been done, only a refusal of it is final.

        A repeated write may be refused for what has nothing to do with the order (an account that the server does not
        have any more), while the first copy lives: there only the verdict on the key itself counts.
        """
        final = isinstance(error, (OrderRejected, IdempotencyConflict, OrderStateUnknown)) or (
            isinstance(error, BadRequest) and not self.doubt)
        if self.action not in WRITES or not self.sent or final:
            return error
        return self.lost(printable(error.message))

    def result(self):
        """Once it is finished."""
        self.tell_progress()
        if self._error is not None:
            raise self._error
        return self._answer


class EventDispatcher:
    """Calls listeners of events in a thread of its own, so that they may make requests themselves.

    Events are told in their order; of ticks that wait, a newer one replaces an older one of the same security. Of the
    rest at most LIMIT wait: where a listener is slower than that the oldest give way to one event 'stream_gap' with
    after, seq: follow_orders(after) of a new connection tells those in between again; dropped: how many there were.
    What waits when it is closed is still told, for CLOSING_S at most.
    """

    LIMIT = 20000  # twice of what the server tells again at once
    CLOSING_S = 10.0

    def __init__(self, name):
        self.name, self._changed = name, threading.Condition()
        self._listeners, self._events, self._closed = {}, OrderedDict(), False  # events: key -> (event, payload)
        self._end_at = math.inf  # when it tells no more
        self._numbers, self._thread = itertools.count(), None
        self._waiting, self._gap = deque(), None  # keys of events that are no ticks; the gap before them

    def add(self, event, listener):
        with self._changed:
            self._listeners.setdefault(event, []).append(listener)

    def remove(self, event, listener):
        with self._changed:
            self._listeners[event].remove(listener)

    def emit(self, event, payload):
        with self._changed:
            if self._closed:
                return
            key = next(self._numbers)
            self._waiting.append(key)
            self._put([(key, event, payload)])
            if len(self._waiting) > self.LIMIT:
                self._drop(*self._events.pop(self._waiting.popleft()))

    def _drop(self, event, payload):
        """With the lock held."""
        if self._gap is None:
            LOG.warning('%s：回调太慢，较早的事件不再逐个告知，用 stream_gap 事件的 after 重新 follow 可以补上', self.name)
            self._gap = {'after': None, 'seq': None, 'dropped': 0}
        seq = payload.get('seq') if isinstance(payload, dict) else None
        if seq is not None:
            after = payload.get('after') if event == 'stream_gap' else seq - 1
            self._gap.update(seq=seq, after=after if self._gap['after'] is None else self._gap['after'])
        self._gap['dropped'] += 1

    def emit_ticks(self, ticks):
        """ticks: dicts, each with its `sid` or `symbol`."""
        with self._changed:
            self._put([(tick.get('symbol') or tick.get('sid'), 'tick', tick) for tick in ticks])

    def _put(self, items):
        """With the lock held."""
        if self._closed:
            return
        for key, event, payload in items:
            self._events[key] = event, payload
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        self._changed.notify()

    def close(self):
        with self._changed:
            self._closed, thread = True, self._thread
            self._end_at = min(self._end_at, time.monotonic() + self.CLOSING_S)
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            wait_for_thread(thread)

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._gap or self._closed)
                if not (self._events or self._gap):
                    return
                if time.monotonic() >= self._end_at:
                    LOG.warning('%s：关闭时还有 %d 个事件没有来得及告知', self.name, len(self._events))
                    return
                event, payload = self._next()
                listeners = list(self._listeners.get(event, ()))
            for listener in listeners:
                self._call(listener, event, payload)

    def _next(self):
        """With the lock held: a gap comes before all that is newer."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            return 'stream_gap', gap
        key, event_and_payload = self._events.popitem(last=False)
        if self._waiting and key == self._waiting[0]:
            self._waiting.popleft()
        return event_and_payload

    def _call(self, listener, event, payload):
        try:
            listener(payload)
        except Exception:
            LOG.exception('%s 事件的回调出错', event)


def changes_account(action, payload):
    """Whether a request may change what is at the broker: whatever is not known to read."""
    if action == 'broker.resolve_submission':
        return bool((payload or {}).get('abandon_unseen'))
    return action not in READS and not str(action).startswith('data.')


class BaseConnection:
    """What the facades need of a connection. Subclasses provide request(); the pushing ones more.

    request(action, payload=None, timeout=None, on_progress=None) -> payload of the answer, or a BulletError. It begins
    with check_run(action, payload).
    on_progress(figures): what a long task tells of itself meanwhile; its time counts anew from there.
    clock_skew_s: the server's clock minus this machine's at the newest login, in seconds, right to clock_skew_error_s;
    both None before the first login and with servers that do not tell their time.
    """

    endpoint = None
    ack = {}  # what the server said of itself at the newest login
    _vouched = frozenset()

    @property
    def clock_skew_s(self):
        return self.endpoint and self.endpoint.clock_skew_s

    @property
    def clock_skew_error_s(self):
        return self.endpoint and self.endpoint.clock_skew_error_s

    def start(self):
        return self

    def close(self):
        """Ends it; waiting calls fail."""

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc_info):
        self.close()

    def request(self, action, payload=None, timeout=None, on_progress=None):
        raise NotImplementedError

    def check_run(self, action, payload):
        """Raises ConfigError where a strategy at work would reach an account past its run."""
        if changes_account(action, payload):
            RUNS.refuse(connection=self)

    def login(self):
        """Makes sure that `ack` is known."""

    def check_account(self, account_key=None, sub_account_id=None):
        """Raises AccountNotFound where the server would take an account that it does not know for its first one.

        A server of this kind refuses that by itself. Others are asked once for each name.
        """
        named = _given_values(account_key=account_key, sub_account_id=sub_account_id)
        if not named or self.ack.get('journal_id') is not None or (account_key, sub_account_id) in self._vouched:
            return
        self.login()
        if self.ack.get('journal_id') is None:
            self._check_foreign_account(named)
        self._vouched = self._vouched | {(account_key, sub_account_id)}

    def _check_foreign_account(self, named):
        sub, _, parent = named.get('sub_account_id', '').partition('@')
        for key in filter(None, [named.get('account_key'), parent]):
            known = value_of(self.request('admin.health'), '服务端状态').get('accounts')
            if key not in (known if isinstance(known, list) else []) and key != 'default':
                raise _no_such_account('账户', key)
        if not sub:
            return
        answer = dict_of(self.request('broker.account', named), '账户资金')
        if answer.get('sub_account_id') != sub:
            raise _no_such_account('子账户', sub)
        for key in filter(None, [named.get('account_key'), parent]):
            whole = self.request('broker.account', {'account_key': key})
            if value_of(whole, '账户资金').get('account_id') != value_of(answer, '账户资金').get('account_id'):
                raise AccountNotFound('子账户 %s 不属于账户 %s' % (brief(sub), brief(key)), '没有发出任何委托；核对服务端的配置')

    def subscribe(self, key, symbols):
        raise NotSupported('这种连接不接收推送', '用 RemoteQmtConnection')

    def unsubscribe(self, key, symbols=None):
        raise NotSupported('这种连接不接收推送', '用 RemoteQmtConnection')

    def add_event_listener(self, event, listener):
        raise NotSupported('这种连接不接收推送', '用 RemoteQmtConnection')

    def follow_orders(self, after=None, account_key=None, sub_account_id=None):
        raise NotSupported('这种连接不接收推送', '用 RemoteQmtConnection')


def _no_such_account(what, name):
    return AccountNotFound('服务端没有%s %s，会用它的第一个账户代替' % (what, brief(name)), '没有发出任何委托；核对名称和服务端的配置')


# -- answers: what another program says may be anything ------------------------------------------------------------
def odd_answer(what):
    return ProtocolError('服务端没有给出%s' % what, '不能当作没有%s；核对服务端的版本和日志' % what)


def dict_of(answer, what):
    """The answer, which must be a dict."""
    if not isinstance(answer, dict):
        raise odd_answer(what)
    return answer


def value_of(answer, what):
    """The dict that an answer holds as `value`, or is itself."""
    answer = dict_of(answer, what)
    return dict_of(answer['value'], what) if answer.get('value') is not None else answer


def rows_of(answer, what):
    """The answer, which must be a list of dicts."""
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise odd_answer(what)
    return answer


def list_in(answer, what, *names):
    """The list that an answer holds under the first of these names that is there."""
    answer = dict_of(answer, what)
    values = next((answer[name] for name in names if answer.get(name) is not None), None)
    if not isinstance(values, list):
        raise odd_answer(what)
    return values


class PushingConnection(BaseConnection):
    """Subscriptions by key: what several users of one connection asked for is the union of it."""

    def __init__(self, name):
        self._events = EventDispatcher('events-' + name)
        self._subscriptions = {}  # key -> {canonical code: spelling to send}
        self._subscription_lock = threading.Lock()

    def add_event_listener(self, event, listener):
        """listener(payload) for each event of that name ('tick', 'order', ...), in the dispatcher's thread."""
        self._events.add(event, listener)

    def remove_event_listener(self, event, listener):
        self._events.remove(event, listener)

    def subscribe(self, key, symbols):
        with self._subscription_lock:
            asked, wanted = _symbols(symbols), self._wanted()
            new = [text for code, text in asked.items() if code not in wanted]
            answer = self.request('data.subscribe', {'securities': new}) if new else {'count': len(wanted)}
            self._keep_symbols(key, OrderedDict(asked, **self._subscriptions.get(key, {})))
            return answer

    def unsubscribe(self, key, symbols=None):
        with self._subscription_lock:
            mine = self._subscriptions.get(key, {})
            going = mine if symbols is None else {code: mine[code] for code in _symbols(symbols) if code in mine}
            self._keep_symbols(key, {code: text for code, text in mine.items() if code not in going})
            wanted = self._wanted()
            gone = [text for code, text in going.items() if code not in wanted]
            if not gone:
                return {'count': len(wanted), 'removed': 0}
            return self.request('data.unsubscribe', {'securities': gone})

    def _keep_symbols(self, key, symbols):
        """A new dict each time: a reconnecting thread reads the old one meanwhile."""
        changed = dict(self._subscriptions)
        changed[key] = symbols
        self._subscriptions = changed

    def _wanted(self):
        """OrderedDict code -> spelling of what any key subscribed."""
        return OrderedDict(item for mine in self._subscriptions.values() for item in mine.items())


def _symbols(symbols):
    """OrderedDict canonical code -> spelling to send. What is no code is left to the server to refuse."""
    items = [symbols] if isinstance(symbols, str) else list(symbols)
    texts = [item.strip().upper() if isinstance(item, str) else item for item in items]
    return OrderedDict((_code_or_text(text), text) for text in texts)


def _code_or_text(text):
    try:
        return normalize_code(text)
    except SecurityNotFound:
        return text


_KEEPER = object()  # reads where no caller does


class RemoteQmtConnection(PushingConnection):
    """One long connection: many requests in flight from any thread, heartbeat, reconnect with back-off.

    start() connects or raises; afterwards a lost connection is made again, subscriptions with it, and calls that
    wait are sent again: reads always, writes only to the server whose journal knows their key. A call fails when
    its own timeout is over. Events go to listeners in a thread of their own. compress: whether long answers are packed:
    'auto' off this machine, 'always', 'never'. account_key, sub_account_id: whose the session is. Calls that name no
    account are that one's; with a sub-account none can leave it.

    One thread reads at a time: the first of the callers that wait, which then needs nobody to wake it, and passes the
    turn to the next; where none waits, the keeper's thread, which leaves the turn to callers as long as they are busy.
    """

    PARK_S = 0.002  # how long after a call the keeper leaves the reading to the next one

    def __init__(self, host, port, token, tls_cert=None, request_timeout=60.0, connect_timeout=10.0,
                 heartbeat_s=None, backoff_s=(0.2, 30.0), tls_enabled=None, compress='auto', clock=None,
                 account_key=None, sub_account_id=None):
        super().__init__('%s:%s' % (host, port))
        if tls_enabled and not tls_cert:
            raise ConfigError('TLS 需要 tls_cert', '把服务端的证书文件拷到本机，用 tls_cert 指向它')
        self.endpoint = Endpoint(host, port, token, tls_cert, connect_timeout, clock, account_key, sub_account_id)
        self.compress = check_compress(compress)
        self.request_timeout, self._heartbeat_s, self._backoff = request_timeout, heartbeat_s, backoff_s
        self.ack = {}
        self._lock = threading.Lock()  # guards all of the next two lines
        self._changed = threading.Condition(self._lock)
        self._channel, self._calls, self._fatal = None, OrderedDict(), None
        self._reader, self._last_active, self._keeper_waits = None, 0.0, False
        self._stop, self._thread, self._starting = threading.Event(), None, threading.Lock()
        self._retry_at = None  # when the subscriptions are to be asked for again; the keeper's own
        self._follows, self._followed_names, self.last_seq, self._pid = False, {}, None, os.getpid()
        self._refollow_at, self._refollows_after, self._next_ping = None, None, 0.0  # the keeper's own

    # -- for the caller ------------------------------------------------------------------------------------------
    def start(self):
        """Connects once; raises what prevents it. Later losses are repaired in the background."""
        with self._starting:
            if self._stop.is_set():
                raise ConnectionLost('连接已关闭', '新建一个 RemoteQmtConnection', retryable=False)
            if self._thread is None:
                self._begin(self._open())
        return self

    def _begin(self, channel):
        self._thread = threading.Thread(target=self._keep, args=(channel,), daemon=True,
                                        name='bullet-%s:%s' % (self.endpoint.host, self.endpoint.port))
        self._thread.start()

    def close(self):
        if os.getpid() != self._pid:  # the other process goes on with it
            return
        self._stop.set()
        with self._lock:
            if self._channel is not None:
                self._channel.abort()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            wait_for_thread(self._thread)
        self._fail_all('连接已关闭')
        self._events.close()

    @property
    def connected(self):
        with self._lock:
            return self._channel is not None

    def request(self, action, payload=None, timeout=None, on_progress=None):
        """The payload of the answer, a Table for tables. timeout: seconds. Raises BulletErrors."""
        self.check_run(action, payload)
        call = _Call(action, dict(payload or {}), on_progress)
        timeout_s = _request_timeout(action, call.payload, timeout, self.request_timeout)
        deadline = call.deadline = time.monotonic() + timeout_s
        if action == 'data.history' and self.endpoint.packs(self.compress):
            call.encode(compact=True)
        self._enter(call)
        try:
            self._await(call, deadline, timeout_s)
            return call.result()
        except BulletError as error:
            raise call.verdict(error)
        finally:
            with self._lock:
                self._calls.pop(call.id, None)

    def follow_orders(self, after=None, account_key=None, sub_account_id=None):
        """From now on orders, trades and account figures come as events 'order', 'trade', 'account', with `seq`.

        after: the number after which what was missed comes first; BadRequest for one who follows already. After a
        reconnect this goes on where it was. Where something may be missing (another journal, too long ago, too much),
        an event 'stream_gap' tells so. Gives the number after which they come.
        account_key, sub_account_id: whose events; of all accounts that the login may see, if none is named, or if this
        connection already follows another one: then whoever listens looks whose they are.
        """
        if ORDER_STREAM_FEATURE not in self.ack.get('features', ()):
            raise NotSupported('服务端没有回报流', '换成新的服务端，或轮询 get_orders')
        if self._follows and after is not None:
            raise BadRequest('这个连接已经在接收回报，不能再给 after', '新建一个连接，或不给 after')
        named = _given_values(account_key=account_key, sub_account_id=sub_account_id)
        if not self._follows or (self._followed_names and named != self._followed_names):
            self._follow(named if not self._follows else {}, after)
        return self.last_seq

    def _follow(self, named, after):
        answer = self.request('broker.subscribe_events', _given_values(after=after, **named))
        if not _is_count(dict_of(answer, '回报流的序号').get('seq')):
            raise odd_answer('回报流的序号')
        self._followed_names = named
        self._followed(answer, after)

    def _followed(self, answer, after):
        """What the server says to one who follows from now on."""
        newest, gap = answer['seq'], answer.get('gap')
        if gap:
            self._events.emit('stream_gap', {'after': after, 'seq': newest})
        with self._lock:
            self._follows, self._refollow_at = True, None
            if self.last_seq is None or (after is not None and newest < after):  # the latter: numbers began anew
                self.last_seq = newest if after is None else min(newest, after)

    # -- calls ---------------------------------------------------------------------------------------------------
    def _enter(self, call):
        if os.getpid() != self._pid:  # its threads are there, and two readers would take each other's answers
            raise ConnectionLost('连接属于另一个进程', '在子进程里新建连接', retryable=False, broker_called=False)
        with self._lock:
            if self._fatal is not None:
                raise error_from_wire(self._fatal.to_wire())  # a new one for each: tracebacks are not shared
            if self._stop.is_set():
                raise ConnectionLost('连接已关闭', '新建一个连接；模块的 get_price 等先再调用 set_data_provider()',
                                     retryable=False, broker_called=False)
            if self._thread is None:
                raise ConnectionLost('连接没有打开', '先调用 start()', retryable=False, broker_called=False)
            self._calls[call.id] = call
            channel, allowed = self._channel, self._about_to_send(self._channel, call)
        if allowed:
            self._write(channel, call)

    def _send(self, channel, call):
        with self._lock:
            allowed = self._about_to_send(channel, call)
        if allowed:
            self._write(channel, call)

    def _about_to_send(self, channel, call):
        """With the lock held: whether the call, which somebody waits for, is to be sent on this channel; only once."""
        waited_for = self._calls.get(call.id) is call and not call.finished
        if channel is None or channel is not self._channel or call.channel is channel or not waited_for:
            return False
        call.channel, error = channel, call.about_to_send(self.ack.get('journal_id'))
        if error is not None:
            call.fail(error)
        return error is None

    def _write(self, channel, call):
        """A failed send only ends the channel: the keeper sends again on the next what may be."""
        try:
            channel.write(call.data, max(0.0, min(call.deadline - time.monotonic(), threading.TIMEOUT_MAX)))
        except ConnectionLost as error:
            LOG.debug('没有发出：%s', printable(error))
        except RequestTimeout as error:
            call.not_sent()
            self._withdraw(call, error.message)

    def _fail_all(self, reason, error=None):
        with self._lock:
            self._fatal = error
            for call in self._calls.values():
                call.fail(call.lost(reason) if error is None else call.verdict(error_from_wire(error.to_wire())))

    # -- reading by turns ------------------------------------------------------------------------------------------
    def _await(self, call, deadline, timeout_s):
        while not call.finished:
            deadline = call.later(deadline, timeout_s)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._withdraw(call, '等待 %g 秒' % timeout_s)
                return
            channel = self._take_turn(call)
            if channel is not None:
                self._read_for(call, channel, deadline)
            elif not call.finished:
                call.wait(left_s)

    def _withdraw(self, call, reason):
        """Ends a call whose time is over, for good: what is said of it now, sent or not, holds."""
        with self._lock:
            self._calls.pop(call.id, None)
            if not call.finished:
                call.fail(call.lost(reason))

    def _take_turn(self, call):
        """The channel, if the call's thread is to read now."""
        with self._lock:
            if not call.finished and self._reader is None and self._channel is not None:
                self._reader = call
                return self._channel
            call.prepare_to_wait()
            return None

    def _read_for(self, call, channel, deadline):
        try:
            while not call.finished and call.moved is None:
                frame = _next_frame(channel, deadline - time.monotonic())
                if frame is None:
                    return
                self._handle(channel, frame)
        except Exception as error:
            self._spoilt(channel, error)
        finally:
            self._leave_turn(call)

    def _spoilt(self, channel, error):
        """The connection has ended, or something came that makes no sense: perhaps the answer to one that waits."""
        channel.abort()
        if isinstance(error, ConnectionLost):
            LOG.info('与 %s 的连接中断：%s', self.endpoint, printable(error))
            return
        LOG.error('%s 发来的内容不能识别，重新连接', self.endpoint, exc_info=not isinstance(error, BulletError) and error)
        with self._lock:
            for call in list(self._calls.values()):
                if call.channel is channel:
                    call.poisoned += 1
                    if call.poisoned > 1:  # once may be chance
                        self._calls.pop(call.id)
                        call.fail(call.verdict(error_from_wire(ProtocolError('服务端的回答不能识别').to_wire())))

    def _leave_turn(self, reader, answered=True):
        """To the next call that waits, else to the keeper."""
        with self._lock:
            if self._reader is not reader:
                return
            self._reader, self._last_active = None, time.monotonic() if answered else 0.0
            for call in self._calls.values():
                if call.waits:
                    call.wake()
                    break
            if self._keeper_waits or not (self._channel and self._channel.alive):
                self._changed.notify_all()

    # -- the keeper's thread ---------------------------------------------------------------------------------------
    def _keep(self, channel):
        brief_ones = 0  # connections in a row that ended soon: whoever ends them is not to be pressed
        while channel is not None:
            begun = time.monotonic()
            try:
                self._attend(channel)
            except Exception as error:
                self._spoilt(channel, error)
            self._retire(channel)
            brief_ones = brief_ones + 1 if time.monotonic() - begun < STEADY_S else 0
            channel = self._reopen(min(brief_ones, 32))

    def _retire(self, channel):
        """Nobody reads it any more when it is closed."""
        channel.abort()
        with self._lock:
            self._channel = None
            self._changed.wait_for(lambda: self._reader is None)
        channel.close()

    def _open(self):
        channel, ack = self.endpoint.dial()
        with self._lock:
            self._channel, self.ack = channel, ack
        return channel

    def _reopen(self, brief_ones):
        """A new channel with everything sent again, or None when the end is final."""
        pause, longest = self._backoff
        pause = min(longest, pause * 2 ** max(0, brief_ones - 1))
        while not self._stop.wait(pause * random.uniform(0.5, 1.0)):
            pause = min(pause * 2, longest)
            try:
                return self._resume()
            except OSError as error:
                LOG.info('重连 %s 失败：%s', self.endpoint, printable(error))
            except BulletError as error:
                if not error.retryable and not isinstance(error, ConnectionLost):
                    self._give_up(error)
                    return None
                pause = max(pause, _retry_after(error))
                LOG.info('重连 %s 失败：%s', self.endpoint, printable(error))
            except Exception:  # whatever the other side said: as long as it is not final, this goes on
                LOG.exception('重连 %s 失败', self.endpoint)
        return None

    def _give_up(self, error):
        LOG.error('不再重连 %s：%s', self.endpoint, printable(error))
        self._fail_all('连接中断', error)

    def _resume(self):
        channel = self._open()
        try:
            self._resubscribe(channel, list(self._wanted().values()))
            self._refollow(channel)
        except ConnectionLost:
            self._retire(channel)
            raise
        with self._lock:
            waiting = list(self._calls.values())
        for call in waiting:
            self._send(channel, call)
        return channel

    def _attend(self, channel):
        """Until the connection ends. A peer that is silent for three heartbeats is dead."""
        beat = self._heartbeat_s or max(_keepalive(self.ack) / 2.0, 5.0)
        next_ping = self._next_ping = time.monotonic() + beat
        while not self._stop.is_set():
            if self._take_keepers_turn(channel):
                self._read_between(channel)
            if not channel.alive:
                raise ConnectionLost('连接中断')
            if self._retry_at is not None and time.monotonic() >= self._retry_at:
                self._resubscribe(channel, list(self._wanted().values()))
            if self._refollow_at is not None and time.monotonic() >= self._refollow_at:
                self._refollow(channel)
            if time.monotonic() >= next_ping:
                if time.monotonic() - channel.last_read > 3 * beat:
                    raise ConnectionLost('对方 %g 秒没有声音' % (3 * beat))
                channel.write_frame({'type': 'ping', 'id': '%x' % next(_call_numbers)})
                next_ping = self._next_ping = time.monotonic() + beat

    def _idle_s(self):
        """How long the keeper has nothing to send; what a caller reads may change that."""
        due = min(at for at in (self._next_ping, self._retry_at, self._refollow_at) if at is not None)
        return due - time.monotonic()

    def _take_keepers_turn(self, channel):
        """Whether the keeper is to read now. Callers that follow each other closely read for themselves meanwhile."""
        with self._lock:
            while channel.alive and not self._stop.is_set() and self._idle_s() > 0:
                if self._reader is not None:
                    self._keeper_waits = True
                    self._changed.wait(self._idle_s())
                    self._keeper_waits = False
                elif time.monotonic() - self._last_active >= self.PARK_S:
                    self._reader = _KEEPER
                    return True
                else:
                    self._changed.wait(self.PARK_S)
            return False

    def _read_between(self, channel):
        """Until somebody got an answer: he may read the next one himself."""
        answered = False
        try:
            while not answered and not self._stop.is_set():
                frame = _next_frame(channel, self._idle_s())
                if frame is None:
                    return
                answered = self._handle(channel, frame)
        finally:
            self._leave_turn(_KEEPER, answered)

    def _handle(self, channel, frame):
        """Whether it was the answer to a call."""
        kind = frame.get('type')
        if kind == 'event' and frame.get('event') == 'ticks':
            self._events.emit_ticks(decode_ticks(frame.get('payload')))
        elif kind == 'event' and isinstance(frame.get('event'), str):
            self._emit(frame)
        elif kind in ('response', 'error'):
            return self._answered(channel, kind, str(frame.get('id')), frame)
        return False

    def _emit(self, frame):
        event, payload, seq = frame['event'], frame.get('payload'), frame.get('seq')
        if event == 'progress':
            self._note_progress(str(frame.get('id')), payload)
        elif event == 'tick' and isinstance(payload, dict):
            self._events.emit_ticks([payload])
        elif _is_count(seq) and isinstance(payload, dict):
            if self.last_seq is None or seq > self.last_seq:  # what was told already is not told again
                self.last_seq = seq
                self._events.emit(event, dict(payload, seq=seq))
        else:
            self._events.emit(event, payload)

    def _note_progress(self, id, figures):
        with self._lock:
            call = self._calls.get(id)
            if call is not None:
                call.note_progress(figures)

    def _answered(self, channel, kind, id, frame):
        with self._lock:
            call = self._calls.pop(id, None)
            if call is not None:
                call.take(frame)
                return True
        if id == _REFOLLOW:
            self._refollowed(kind, frame)
        elif id.startswith(_RESUBSCRIBE) and kind == 'error':
            self._not_resubscribed(channel, id[len(_RESUBSCRIBE):], error_from_wire(frame))
        elif kind == 'error':
            LOG.warning('服务端报告：%s', printable(error_from_wire(frame)))
        return False

    # -- subscriptions after a reconnect: what is refused for now is asked for again, in the keeper's thread -----------
    def _resubscribe(self, channel, symbols, name=''):
        self._retry_at = None
        if symbols:
            channel.write_frame({'type': 'request', 'id': _RESUBSCRIBE + name, 'action': 'data.subscribe',
                                 'payload': {'securities': symbols}})

    def _refollow(self, channel):
        """The stream goes on after the last event that came."""
        self._refollow_at, self._refollows_after = None, self.last_seq
        if self._follows:
            channel.write_frame({'id': _REFOLLOW, 'action': 'broker.subscribe_events',
                                 'payload': dict(self._followed_names, after=self._refollows_after)})

    def _refollowed(self, kind, frame):
        """The answer to that: asked again if the server cannot now, told if it never will."""
        answer = frame.get('payload')
        if kind == 'response' and isinstance(answer, dict) and _is_count(answer.get('seq')):
            self._followed(answer, self._refollows_after)
            return
        error = error_from_wire(frame)
        if error.retryable:
            LOG.warning('回报流还没有恢复，稍后再试：%s', printable(error))
            self._refollow_at = time.monotonic() + max(RESUBSCRIBE_PAUSE_S, _retry_after(error))
        else:
            LOG.error('回报流没有恢复：%s', printable(error))
            self._events.emit('stream_gap', {'after': self.last_seq, 'error': error.to_wire()})

    def _not_resubscribed(self, channel, name, error):
        """QMT that still logs in is asked again; a security that is refused for good does not cost the others."""
        if error.retryable:
            LOG.warning('订阅还没有恢复，稍后再试：%s', printable(error))
            self._retry_at = time.monotonic() + max(RESUBSCRIBE_PAUSE_S, _retry_after(error))
        elif name:
            LOG.error('%s 的订阅没有恢复：%s', name, printable(error))
        else:
            for symbol in self._wanted().values():
                self._resubscribe(channel, [symbol], str(symbol))


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_RESUBSCRIBE, _REFOLLOW = 'resubscribe:', 'refollow'
RESUBSCRIBE_PAUSE_S = 2.0


def _retry_after(error):
    """Seconds that the server asked for, within reason; 0 if it did not."""
    value = error.details.get('retry_after_s')
    return min(value, 60) if _is_positive(value) else 0


def _keepalive(ack):
    value = ack.get('keepalive')
    return min(value, 600) if _is_positive(value) else KEEPALIVE_S


def _next_frame(channel, timeout_s):
    """A frame, or None when none was complete in time. The end of the connection is an error here."""
    try:
        frame = channel.read_frame(timeout_s=timeout_s)
    except RequestTimeout:
        return None
    if frame is None:
        raise ConnectionLost('服务端关闭了连接')
    return frame


class ShortConnection(BaseConnection):
    """Connections without a thread, for sandboxes that allow none or change their address.

    A connection is kept for the next call, for KEEP_S: to log in costs more bytes and time than most calls do. A
    failed attempt is repeated up to `retries` times: reads always, writes only with their key to the server whose
    journal knows it, error answers only if the server calls them retryable. patience_s: for how long, where that is
    less than the request's own time; refused_s: the same for a write of which the server says that nothing of it
    reached the broker, and for what asks after one. on_silence(): called whenever nothing came for silence_s; what it
    raises ends the request. account_key, sub_account_id: as of RemoteQmtConnection.
    """

    KEEP_S = 30.0  # the server gives up who is silent for twice as long

    def __init__(self, host, port, token, tls_cert=None, request_timeout=60.0, connect_timeout=10.0, retries=2,
                 retry_interval=0.5, compress='auto', clock=None, account_key=None, sub_account_id=None,
                 patience_s=math.inf, silence_s=math.inf, on_silence=lambda: None, refused_s=math.inf):
        self.endpoint = Endpoint(host, port, token, tls_cert, connect_timeout, clock, account_key, sub_account_id)
        self.compress = check_compress(compress)
        self.request_timeout, self.retries, self.retry_interval = request_timeout, retries, retry_interval
        self.patience_s, self._silence_s, self._on_silence = patience_s, silence_s, on_silence
        self.refused_s = refused_s
        self._pause, self._lock = threading.Event(), threading.Lock()
        self._kept, self._closed = None, False  # kept: (channel, handshake_ack, until when, process) of the last call

    def close(self):
        """For good: nothing leaves any more."""
        with self._lock:
            self._closed = True
        kept = self._take_kept()
        if kept is not None:
            kept[0].close()

    def request(self, action, payload=None, timeout=None, on_progress=None):
        """timeout: for all attempts together, connecting included."""
        self.check_run(action, payload)
        call = _Call(action, dict(payload or {}), on_progress)
        timeout_s = _request_timeout(action, call.payload, timeout, self.request_timeout)
        deadline, call.timeout_s = time.monotonic() + timeout_s, timeout_s
        begun = time.monotonic()
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(call, deadline)
            except BulletError as error:
                pause_s = max(self.retry_interval, _retry_after(error))
                last_try = begun + min(timeout_s, self.patience_s if self._is_out(call) else self.refused_s)
                if not error.retryable or attempt == self.retries or time.monotonic() + pause_s >= last_try:
                    raise call.verdict(error)
                wait_for_event(self._pause, pause_s)

    @staticmethod
    def _is_out(call):
        """A write that may have reached the broker: what is tried again only tells what became of it."""
        return call.action in WRITES and call.sent

    def _attempt(self, call, deadline):
        """On the kept connection first; one that has died meanwhile costs no attempt."""
        if self._closed:
            raise ConnectionLost('连接已关闭', '新建一个 ShortConnection', retryable=False, broker_called=False)
        kept = self._take_kept()
        if kept is not None:
            try:
                return self._ask(kept[0], kept[1], call, deadline)
            except ConnectionLost as error:
                LOG.info('与 %s 的连接已断开，重新连接：%s', self.endpoint, printable(error))
        channel, self.ack = self.endpoint.dial(max(0.001, deadline - time.monotonic()))
        return self._ask(channel, self.ack, call, deadline)

    def login(self):
        """One more round trip, before the first call."""
        if not self.ack:
            self.request('admin.health')

    def _ask(self, channel, ack, call, deadline):
        try:
            self._exchange(channel, ack, call, deadline)
        except BaseException:
            channel.close()
            raise
        self._keep(channel, ack)
        return call.result()

    def _exchange(self, channel, ack, call, deadline):
        error = call.about_to_send(ack.get('journal_id'))
        if error is not None:
            raise error
        if call.action == 'data.history' and self.endpoint.packs(self.compress):
            call.encode(compact=True)
        channel.write(call.data)
        self._await(channel, call, deadline)

    def _take_kept(self):
        """The kept connection, if it is good still: whatever came in on it meanwhile is its end, or nobody's answer."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is None or kept[3] != os.getpid():  # after a fork the other process goes on with it
            return None
        if time.monotonic() > kept[2] or not kept[0].is_quiet():
            kept[0].close()
            return None
        return kept

    def _keep(self, channel, ack):
        fresh = (channel, ack, time.monotonic() + self.KEEP_S, os.getpid())
        with self._lock:
            old, self._kept = (fresh, None) if self._closed else (self._kept, fresh)
        if old is not None and old[3] == os.getpid():
            old[0].close()

    def _await(self, channel, call, deadline):
        frame = None
        while frame is None or not _answers(frame, call):
            frame = _next_frame(channel, min(deadline - time.monotonic(), self._silence_s))
            if frame is None:
                self._endure(deadline)
            elif frame.get('event') == 'progress' and frame.get('id') == call.id:
                call.note_progress(frame.get('payload'))
                deadline = call.later(deadline, call.timeout_s)
        call.take(frame)

    def _endure(self, deadline):
        if time.monotonic() >= deadline:
            raise RequestTimeout('%s 没有在限定时间内回答' % self.endpoint)
        self._on_silence()


def _answers(frame, call):
    """An error without an id is about the one request that the connection had."""
    kind, id = frame.get('type'), frame.get('id')
    return id == call.id and kind in ('response', 'error') or (id is None and kind == 'error')


class _LocalCaller:
    """What an action of the service sees of a call in the same process."""

    legacy_helper, binary = False, True

    def __init__(self, session, on_progress):
        self.session, self.progress = session, on_progress or (lambda figures: None)

    def with_defaults(self, payload):
        return payload

    def wanted(self):
        return not self.session.ended


class LocalConnection(PushingConnection):
    """The same calls without a socket, in the same process. Payloads pass through the codec, so types are the wire's;
    tables are handed over as they are. timeout is not looked at: the caller's own thread does the work.

    `service` has call(action, payload, caller) and close(); it sees this object as its session.
    """

    ended = False
    clock_skew_s = clock_skew_error_s = 0.0  # one machine

    def __init__(self, service):
        super().__init__('local')
        self._service, self.ack = service, {'journal_id': service.desk.journal.id}
        service.hear(self, {})

    def request(self, action, payload=None, timeout=None, on_progress=None):
        if self.ended:
            raise ConnectionLost('连接已关闭', '新建一个连接', retryable=False, broker_called=False)
        self.check_run(action, payload)
        call = _Call(action, dict(payload or {}))
        frame = decode_frame(call.data[_LENGTH.size:])
        answer = self._service.call(action, frame['payload'], _LocalCaller(self, on_progress))
        if isinstance(answer, Table):
            return answer
        return decode_frame(encode_frame({'payload': answer})[_LENGTH.size:])['payload']

    def close(self):
        self.ended = True
        self._service.hub.unsubscribe_all(self)
        self._events.close()
        self._service.close()

    # -- as a session of the service ---------------------------------------------------------------------------------
    def post(self, tick, symbol):
        self._events.emit_ticks([dict(tick.to_wire(), symbol=symbol)])

    def post_event(self, event, payload, seq=None):
        self._events.emit(event, payload if seq is None else dict(payload, seq=seq))

    def follow_orders(self, after=None, account_key=None, sub_account_id=None):
        named = _given_values(after=after, account_key=account_key, sub_account_id=sub_account_id)
        return self.request('broker.subscribe_events', named)['seq']


# ======================================================================================================
# 14. FACADES - RemoteQmtProvider, RemoteQmtBroker, connect(), set_data_provider, get_price
# ======================================================================================================
def client_settings(config=None, **given):
    """Client options: arguments > config > environment and .env > defaults. Unknown names are refused."""
    merged = dict(config or {}, **{name: value for name, value in given.items() if value is not None})
    merged = {_CONFIG_NAMES.get(name, name): value for name, value in merged.items() if value is not None}
    unknown = set(merged) - {option.name for option in options_of('client')} - {'env_file'}
    if unknown:
        raise ConfigError('不认识的连接参数：%s' % '、'.join(sorted(unknown)))
    settings = load_settings(['client'], {name: str(value) for name, value in merged.items()})
    for warning in settings.warnings:
        warn_once(warning)
    return settings


_CONFIG_NAMES = {'sub_account_id': 'sub_account'}
_CHOICES = ('data_provider', 'broker')  # which object is made: decided where it is made


def _refuse_idle_config(config, names, why):
    """What a config says must have an effect: an order for another server would go where nobody meant it to."""
    idle = sorted(name for name in names if (config or {}).get(name) is not None)
    if idle:
        raise ConfigError('config 的 %s 没有作用：%s' % ('、'.join(idle), why), '去掉它')


def _refuse_other_server(config, connection):
    """A config beside a connection may say again what the connection is, and nothing else of it."""
    endpoint = getattr(connection, 'endpoint', None)
    made_of = dict({name: getattr(endpoint, name, None) for name in ('host', 'port', 'tls_cert')},
                   rpc_timeout=getattr(connection, 'request_timeout', None),
                   compress=getattr(connection, 'compress', None), env_file=None)
    others = [name for name, value in made_of.items() if str((config or {}).get(name)) != str(value)]
    _refuse_idle_config(config, others, '用的是给出的 connection，它不是这样的')


def connect(host=None, port=None, token=None, tls_cert=None, rpc_timeout=None, compress=None, **options):
    """A started RemoteQmtConnection; what is not given comes from QMT_SERVER_* in the environment or .env.

    options: clock, account_key, sub_account_id as of RemoteQmtConnection; nobody's session, if no account is given.
    """
    return _connected(client_settings(host=host, port=port, token=token, tls_cert=tls_cert, rpc_timeout=rpc_timeout,
                                      compress=compress), **options)


def _connected(settings, **options):
    return RemoteQmtConnection(settings.host, settings.port, settings.token, settings.tls_cert,
                               request_timeout=settings.rpc_timeout, compress=settings.compress, **options).start()


class SecurityInfo(dict):
    """A security as JoinQuant gives it: info.display_name, info.start_date (date); also a dict of the same."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name)


class RemoteQmtProvider:
    """Market data of a remote server, in JoinQuant's shapes: DataFrames with pandas, `Table`s without.

    config: host, port, token, tls_cert, rpc_timeout, compress; or give a connection (then close it yourself).
    Every method raises BulletError: BadRequest, SecurityNotFound, DataUnavailable, RequestTimeout, ...
    """

    name = 'qmt-remote'

    def __init__(self, config=None, connection=None):
        self._owned = connection is None
        if not self._owned:
            _refuse_other_server(config, connection)
        _refuse_idle_config(config, _CHOICES, '行情来源已经是 qmt-remote')
        self._connection = _connected(client_settings(config)) if connection is None else connection
        self._tick_callback, self._tick_context, self._listening = None, None, False

    def close(self):
        if self._owned:
            self._connection.close()

    def get_price(self, security, start_date=None, end_date=None, frequency='daily', fields=None, skip_paused=False,
                  fq='pre', count=None, panel=True, fill_paused=True, pre_factor_ref_date=None):
        """Bars. Prices in yuan, volume in shares, money in yuan; bars are labelled by their end, Beijing time.

        One code: frame by time with the fields as columns. A list: Panel where pandas still has it and panel=True,
        otherwise a long frame time, code, fields. fq 'pre', 'post' or None; 'pre' is anchored at
        pre_factor_ref_date or today. start_date and count exclude each other.
        """
        many = hasattr(security, '__iter__') and not isinstance(security, str)
        security = list(security) if many else security
        as_panel = many and panel and has_panel() and len(security) > 0
        payload = _given_values(
            security=security, start=start_date, end=end_date, frequency=frequency,
            fields=list(fields) if isinstance(fields, tuple) else fields, skip_paused=skip_paused or None, count=count,
            panel=as_panel, fill_paused=None if fill_paused is True else fill_paused,
            pre_factor_ref_date=pre_factor_ref_date)
        payload['fq'] = fq  # None means unadjusted, and says so
        table = Table.from_wire(self._connection.request('data.history', payload))
        return _to_panel(table) if as_panel else _to_frame(table)

    def get_trade_days(self, start_date=None, end_date=None, count=None):
        """List of datetime.date, both ends included."""
        answer = self._connection.request('data.trade_days', {'start': start_date, 'end': end_date, 'count': count})
        return [_day_of(text, '交易日') for text in list_in(answer, '交易日', 'values', 'value')]

    def get_all_trade_days(self):
        return self.get_trade_days(start_date='1990-01-01')

    def get_trade_day(self, security, query_dt):
        """{code: last trade day at or before query_dt, or None}."""
        days = self.get_trade_days(end_date=query_dt, count=1)
        codes = [security] if isinstance(security, str) else list(security)
        return {code: days[-1] if days else None for code in codes}

    def get_all_securities(self, types='stock', date=None):
        """Frame by code: display_name, name, start_date, end_date (2200-01-01 = still listed), type."""
        answer = self._connection.request('data.get_all_securities', {'types': types, 'date': date})
        return _to_frame(Table.from_wire(answer))

    def get_security_info(self, security, date=None):
        answer = self._connection.request('data.security_info', {'security': security, 'date': date})
        info = SecurityInfo(value_of(answer, '证券信息'))
        for name in ('start_date', 'end_date'):
            if info.get(name):
                info[name] = _day_of(info[name], '证券信息')
        return info

    def get_index_stocks(self, index_symbol, date=None):
        answer = self._connection.request('data.get_index_stocks', {'index_symbol': index_symbol, 'date': date})
        return list_in(answer, '成分股', 'values', 'value')

    def get_split_dividend(self, security, start_date=None, end_date=None):
        """List of dicts security, date, security_type, scale_factor, bonus_pre_tax (yuan per per_base), per_base."""
        payload = {'security': security, 'start': start_date, 'end': end_date}
        answer = self._connection.request('data.get_split_dividend', payload)
        return rows_of(list_in(answer, '分红送股', 'events', 'value'), '分红送股')

    def get_current_tick(self, security, dt=None, df=False):
        """Dict sid, last_price, dt, ... of now; dt and df are taken for compatibility and must stay unset."""
        if dt is not None or df:
            raise NotSupported('get_current_tick 只提供当前行情', '不要给出 dt 和 df')
        return dict_of(self._connection.request('data.snapshot', {'security': security}), '行情')

    get_snapshot = get_current_tick

    def get_live_current(self, security):
        """Dict last_price, high_limit, low_limit, paused, ... of now."""
        return dict_of(self._connection.request('data.live_current', {'security': security}), '行情')

    @property
    def gives_many_quotes(self):
        """Whether the server can do get_live_currents in one request. Older ones cannot."""
        return QUOTES_FEATURE in self._connection.ack.get('features', ())

    def get_live_currents(self, securities):
        """{code: get_live_current} of those that have a quote; in one request where the server can do that."""
        codes, found = normalize_codes(securities), OrderedDict()
        if self.gives_many_quotes:
            for start in range(0, len(codes), QUOTES_AT_ONCE):
                found.update(self._quotes(codes[start:start + QUOTES_AT_ONCE]))
            return found
        for code in codes:
            with contextlib.suppress(SecurityNotFound, DataUnavailable):
                found[code] = self.get_live_current(code)
        return found

    def _quotes(self, codes):
        answer = self._connection.request('data.live_current', {'securities': codes})
        quotes = dict_of(dict_of(answer, '行情').get('quotes'), '行情')
        rows_of(list(quotes.values()), '行情')
        return quotes

    def get_last_price(self, security):
        """Yuan. Raises SecurityNotFound, DataUnavailable."""
        price = self.get_current_tick(security).get('last_price')
        if not _is_positive(price) or price == math.inf:
            raise DataUnavailable('%s 没有最新价' % printable(security), '等有行情时再试')
        return price

    def ensure_cache(self, security, frequency='daily', start_date=None, end_date=None, count=None, auto_download=True,
                     on_progress=None):
        """Has the server fetch what get_price of the same arguments needs. Dict of figures.

        on_progress: called meanwhile with dicts of `finished` and `total`.
        """
        payload = _given_values(security=security, frequency=frequency, start=start_date, end=end_date, count=count,
                                auto_download=auto_download)
        more = {} if on_progress is None else {'on_progress': on_progress}
        return value_of(self._connection.request('data.ensure_cache', payload, **more), '下载的结果')

    # -- ticks -----------------------------------------------------------------------------------------------------
    def set_tick_callback(self, callback, context=None):
        """callback(tick), or callback(context, tick) with a context, in the connection's event thread."""
        self._tick_callback, self._tick_context = callback, context
        if not self._listening:
            self._connection.add_event_listener('tick', self._on_tick)
            self._listening = True

    def subscribe_ticks(self, symbols):
        """Ticks of a code, of a list of them, or of whole markets ('*', 'SH', 'SZ', 'BJ') to the tick callback.

        A dict with the `count` of what is subscribed. Raises SubscriptionLimit, SecurityNotFound, NotSupported.
        """
        return self._connection.subscribe(self.name, symbols)

    def unsubscribe_ticks(self, symbols=None):
        """None: all of them. A dict of `count` and `removed`."""
        return self._connection.unsubscribe(self.name, symbols)

    def _on_tick(self, payload):
        tick = dict(payload, sid=normalize_code(payload.get('sid') or payload.get('symbol')))
        if self._tick_context is None:
            self._tick_callback(tick)
        else:
            self._tick_callback(self._tick_context, tick)


def _day_of(text, what):
    try:
        return parse_moment(text)[0].date()
    except (ValueError, OverflowError):
        raise odd_answer(what)


def _to_frame(table):
    return table if optional_import('pandas') is None else table.to_pandas()


def _to_panel(table):
    """Wide table -> Panel: items fields, major axis time, minor axis codes."""
    pandas = optional_import('pandas')
    frame = table.to_pandas()
    fields = list(OrderedDict((field, None) for field, _ in table.wide))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # that Panel goes away is no news to its users
        return pandas.Panel(OrderedDict((field, frame[field]) for field in fields))


def listed_rows(connection, ask, action, payload, told, **extension):
    """Order or trade rows of ask(action, payload). extension: what goes along to a server that knows it.

    What a server knows it says when it is first met: a list that is too long for that question is asked for again.
    """
    def knows():
        return ORDERS_FEATURE in getattr(connection, 'ack', {}).get('features', ())

    def rows(known):
        answer = ask(action, dict(payload, table=True, **extension) if known else payload)
        return table_rows(answer) if isinstance(answer, Table) else rows_of(answer, told)
    known = knows()
    try:
        return rows(known)
    except FrameTooLarge:
        if known or not knows():
            raise
        return rows(True)


class RemoteQmtBroker:
    """Trading through a remote server; synchronous, in rows (dicts) as RECORDS' to_wire names them.

    config: as of the provider, account_key, sub_account_id; or give a connection of your own. Every order
    and cancel carries an idempotency key. Raises OrderRejected (certainly not at the broker, or refused by it),
    OrderStateUnknown (may be there: ask with resolve_submission(key), never order again), BadRequest, ...
    The first call connects. After disconnect() nothing leaves until connect(): calls raise ConnectionLost.
    on_warning(text): gets what a server has to say of an order that it took, instead of a Python ServerWarning.
    """

    def __init__(self, account_id=None, account_type='stock', config=None, connection=None, on_warning=None):
        if connection is not None:
            _refuse_other_server(config, connection)
        _refuse_idle_config(config, _CHOICES, '交易通道已经是 qmt-remote')
        self.account_id, self.account_type, self._on_warning = account_id, _type_asked(account_type), on_warning
        self._settings = client_settings(config)
        self.account_key, self.sub_account_id = self._settings.account_key, self._settings.sub_account
        self._connection, self._owned = connection, connection is None
        self._connecting, self._checked = threading.Lock(), False
        self._sent = _SentOrders()
        self._disconnected = False

    def connect(self):
        """Also makes sure, where account_id is a number, that the server trades for that account. AccountNotFound.

        Programs written for other remote brokers give a word like 'remote' there, which says nothing; but one that
        names another account of the server does.
        """
        with self._connecting:
            self._open()
            self._disconnected = False
        return True

    def _open(self):
        """With the lock held."""
        if self._connection is None:
            self._connection = _connected(self._settings, **self._account())
        if not self._checked:
            self._check_account()
        return self._connection

    def _ready(self):
        """The connection that a call goes through."""
        with self._connecting:
            if self._disconnected:
                raise ConnectionLost('已经 disconnect()，请求没有发出', '要继续，先调用 connect()', retryable=False,
                                     broker_called=False)
            return self._open()

    @property
    def connection(self):
        """The one that its calls go through."""
        return self._ready()

    def _check_account(self):
        if self.account_type != 'stock':  # which is also what stands there where nobody thought of it
            self._check_account_type()
        if self.account_id not in (None, ''):
            self._check_account_id()
        self._checked = True

    def _check_account_type(self):
        served = self._asked_for(self._account()).get('account_type')
        if str(served).lower() != self.account_type:
            raise AccountNotFound('服务端的账户是 %s 类型，不是 %s' % (brief(served), self.account_type),
                                  '核对 account_type、account_key 和服务端的 ' + ways('accounts'))

    def _check_account_id(self):
        given = str(self.account_id)
        wanted = self._named_account(given)
        if wanted is None and not _is_account_number(given):
            return
        served = self._served(self._account())
        if served != (wanted or given) and served != given:
            raise AccountNotFound('服务端的账户是 %s，不是 %s' % (brief(served), brief(self.account_id)),
                                  '核对 account_id、account_key 和服务端的 ' + ways('accounts'))

    def _served(self, named):
        """The number of the account that the server trades for under these names."""
        return str(self._asked_for(named).get('account_id'))

    def _asked_for(self, named):
        return value_of(self._connection.request('broker.account', named), '账户资金')

    def _named_account(self, name):
        """The number of the account whose key or sub-account this is; None if it is none of either.

        Only a server of this kind (it names its journal) refuses what it does not know: others are not asked.
        """
        self._connection.login()
        if not self._connection.ack.get('journal_id'):
            return None
        for field in ('account_key', 'sub_account_id'):
            with contextlib.suppress(AccountNotFound):
                return self._served({field: name})

    def disconnect(self):
        with self._connecting:
            self._disconnected = True
            if self._owned and self._connection is not None:
                self._connection.close()
                self._connection = None
        return True

    close = disconnect

    def _ask(self, action, payload=None, timeout=None):
        connection, named = self._ready(), self._account()
        connection.check_account(**named)
        return connection.request(action, dict(payload or {}, **named), timeout)

    def _account(self):
        named = (('account_key', self.account_key), ('sub_account_id', self.sub_account_id))
        return {name: value for name, value in named if value is not None}

    # -- views -----------------------------------------------------------------------------------------------------
    def get_account_info(self):
        """Dict account_id, available_cash, frozen_cash, market_value, total_value, positions, ... in yuan."""
        return value_of(self._ask('broker.account'), '账户资金')

    sync_account = get_account_info

    def get_positions(self):
        """Rows of what is held: security, amount, closeable_amount (shares), avg_cost, last_price (yuan), ..."""
        return rows_of(self._ask('broker.positions'), '持仓')

    def get_orders(self, order_id=None, security=None, status=None, from_broker=False):
        """Today's order rows: order_id, security, side, amount, filled, order_price, avg_price, status, time, ..."""
        payload = {'order_id': order_id, 'security': security, 'status': status, 'from_broker': from_broker or None}
        return self._rows('broker.orders', _given_values(**payload), '委托')

    def _rows(self, action, payload, told, **extension):
        return listed_rows(self._ready(), self._ask, action, payload, told, **extension)

    def sync_orders(self):
        return self.get_orders(from_broker=True)

    def get_open_orders(self, security=None):
        """Order rows that may still fill."""
        return [row for row in self._rows('broker.orders', _given_values(security=security), '委托', open=True)
                if plain_status(row.get('status')) not in FINAL_STATUSES]

    def get_trades(self, order_id=None, security=None):
        """Today's fills: trade_id, order_id, security, side, amount in shares, price in yuan, time, ..."""
        return self._rows('broker.trades', _given_values(order_id=order_id, security=security), '成交')

    def get_order_status(self, order_id):
        """The order's row, {} if the account has none of that id."""
        answer = self._ask('broker.order_status', {'order_id': order_id})
        return {} if answer is None else dict_of(answer, '委托')

    def follow(self, on_order=None, on_trade=None, on_account=None, after=None):
        """Callbacks for orders, trades and account figures as they change, rows with `seq`; needs a long connection.

        Those of this broker's account and sub-account alone; where it names none, all that the login may see.
        after: a `seq` seen earlier; what came since is told first, also what came while nobody was connected, or the
        server was down. Callbacks run in the connection's event thread. Gives the number after which they come. Errors
        as of RemoteQmtConnection.follow_orders.
        """
        connection = self._ready()
        listeners = [(event, self._of_mine(event, callback)) for event, callback in (
            ('order', on_order), ('trade', on_trade), ('account', on_account)) if callback is not None]
        for event, callback in listeners:
            connection.add_event_listener(event, callback)
        try:
            return connection.follow_orders(after, **self._account())
        except BaseException:
            for event, callback in listeners:
                connection.remove_event_listener(event, callback)
            raise

    def _of_mine(self, event, callback):
        """The callback for rows of this account: somebody else of the same connection may follow another one."""
        sub, _, parent = (self.sub_account_id or '').partition('@')
        wanted = _given_values(account_key=self.account_key or parent or None)
        if not wanted and not sub and self.account_id not in (None, ''):
            wanted = _given_values(account_key=self._key_of_own())
        if event != 'account':
            wanted.update(_given_values(sub_account_id=sub or None))
        elif sub and not wanted:  # figures of an account bear no name of a sub-account
            wanted.update(account_id=self._served(self._account()))

        def listener(row):
            if all(row.get(name) == value for name, value in wanted.items()):
                callback(row)
        return listener

    def _key_of_own(self):
        """The key of the account that requests without a name are about; None where there is no other one."""
        keys = (self._connection.request('admin.health').get('value') or {}).get('accounts') or []
        if len(keys) < 2:
            return None
        own = self._served(self._account())
        return next((key for key in keys if self._served({'account_key': key}) == own), None)

    # -- writes ----------------------------------------------------------------------------------------------------
    def buy(self, security, amount, price=None, wait_timeout=None, remark=None, market=False, idempotency_key=None):
        """Order id. price None or market=True: at market, then price is the protection price.

        Raises OrderRejected also for an order that the broker took and ended with nothing filled.
        """
        return self._trade('BUY', security, amount, price, wait_timeout, remark, market, idempotency_key)

    def sell(self, security, amount, price=None, wait_timeout=None, remark=None, market=False, idempotency_key=None):
        """As buy."""
        return self._trade('SELL', security, amount, price, wait_timeout, remark, market, idempotency_key)

    def _trade(self, side, security, amount, price, wait_timeout, remark, market, key):
        style = order_style(price, market or price is None)
        answer = self.place_order(security, side, amount, style, wait_timeout, remark, key)
        refuse_nothing_filled(answer, answer['idempotency_key'], self.get_order_status)
        return answer['order_id']

    def place_order(self, security, side, amount, style, wait_timeout=None, remark=None, idempotency_key=None,
                    valid_until=None):
        """The whole answer: order_id, status, filled, timed_out, async_tracking, idempotency_key, ...

        style: {'type': 'limit', 'price': p} or {'type': 'market', 'protect_price': p}. valid_until: Beijing time after
        which the server must not submit it any more; NotSupported, and nothing sent, where it does not know that.
        A `warning` of the server stands in the answer and is told as a ServerWarning.
        """
        key = check_write_key(new_key('place') if idempotency_key is None else idempotency_key)
        payload = _given_values(
            security=security, side=check_choice(side, 'side', SIDES), amount=check_whole(amount, 'amount', 1),
            style=check_style(style), wait_timeout=wait_timeout, order_remark=remark, idempotency_key=key,
            valid_until=valid_until)
        self._sent.put(key, dict(payload, **self._account()))
        answer = self._ask('broker.place_order', payload)
        if self._on_warning is None:
            tell_warning(answer)
        elif warning_in(answer):
            self._on_warning(warning_in(answer))
        order_id = order_number(answer)
        if order_id is None or answer.get('status') in _UNSETTLED:
            raise OrderStateUnknown('服务端没有给出确定的结果，委托状态未知', '用同一 idempotency_key 查询', idempotency_key=key)
        return dict(answer, order_id=order_id, status=plain_status(answer.get('status')), idempotency_key=key)

    def cancel_order(self, order_id, wait_timeout=None, idempotency_key=None):
        """True: certainly cancelled. False: certainly not, it was final already (filled, rejected).

        Raises OrderStateUnknown while the broker has not decided, OrderRejected where it refused to cancel: then the
        order is as it was.
        """
        key = check_write_key(new_key('cancel') if idempotency_key is None else idempotency_key)
        payload = {'order_id': order_id, 'wait_timeout': wait_timeout, 'idempotency_key': key}
        answer = self._ask('broker.cancel_order', _given_values(**payload))
        status = cancel_status(answer, order_id, key)
        if status not in FINAL_STATUSES:
            raise OrderStateUnknown('撤单已提交，柜台还没有结果（当前状态 %s）' % brief(status), '稍后用 get_order_status 查询',
                                    idempotency_key=key)
        return status in CANCELED_STATUSES

    def resolve_submission(self, idempotency_key, write_action='broker.place_order', request_payload=None,
                           order_id=None, abandon_unseen=None):
        """What became of a write: dict with submission_state accepted, rejected, reconciling or submit_unknown.

        abandon_unseen=True: an order's key that never came is void from now on.
        """
        payload = {'idempotency_key': idempotency_key, 'write_action': write_action,
                   'request_payload': request_payload or {}, 'order_id': order_id, 'abandon_unseen': abandon_unseen}
        return dict_of(self._ask('broker.resolve_submission', _given_values(**payload)), '委托的下落')

    def wait_order(self, idempotency_key, timeout_s=60.0):
        """The row of the order placed under this key, once that is certain; nothing is sent again.

        A key that the server has not seen within UNSEEN_S is declared void there: what comes later is refused. Raises
        OrderRejected if the order is certainly not at the broker, OrderStateUnknown after timeout_s.
        """
        begun, pause = time.monotonic(), threading.Event()
        while True:
            waited_s = time.monotonic() - begun
            answer = self._ask_what_became(idempotency_key, waited_s >= min(UNSEEN_S, timeout_s))
            state = answer.get('submission_state')
            if state == 'accepted' and order_number(answer.get('resolved_result') or answer) is not None:
                return answer.get('resolved_result') or answer
            if state == 'rejected':
                raise OrderRejected(answer.get('status_msg') or '委托没有成立', idempotency_key=idempotency_key)
            if waited_s >= timeout_s:
                raise OrderStateUnknown('%g 秒后委托状态仍然未知%s' % (timeout_s, _told(answer)),
                                        '稍后再用同一 key 查询，或在 QMT 里核对', idempotency_key=idempotency_key)
            wait_for_event(pause, 0.5)

    def _ask_what_became(self, key, abandon):
        """A server that cannot be asked now, or says what makes no sense, has told nothing."""
        payload = {'idempotency_key': key, 'write_action': 'broker.place_order', 'request_payload': {}}
        if self._ready().ack.get('journal_id') is None:  # it knows an order again only with all that was said of it
            payload['request_payload'] = self._sent.get(key)
        try:
            answer = self._ask('broker.resolve_submission', dict(payload, abandon_unseen=True) if abandon else payload)
            return answer if isinstance(answer, dict) else {}
        except BulletError as error:
            if not error.retryable:
                raise
            return {'status_msg': error.message}


class _SentOrders:
    """What was said of the newest orders, by their keys."""

    KEPT = 1000

    def __init__(self):
        self._lock, self._payloads = threading.Lock(), OrderedDict()

    def put(self, key, payload):
        with self._lock:
            self._payloads[key] = payload
            if len(self._payloads) > self.KEPT:
                self._payloads.popitem(last=False)

    def get(self, key):
        with self._lock:
            return dict(self._payloads.get(key, {}))


class ServerWarning(UserWarning):
    """What a server has to say of an order that it took all the same."""


def warning_in(answer):
    """The text of a server's warning, '' for none."""
    text = answer.get('warning') if isinstance(answer, dict) else None
    return printable(text) if text else ''


def tell_warning(answer):
    """As a Python warning, each time. Where those are errors the order must not look failed: it is there."""
    text = warning_in(answer)
    if not text:
        return
    try:
        warnings.warn_explicit('服务端警告：' + text, ServerWarning, 'bullet_qmt', 0)
    except ServerWarning:
        LOG.warning('服务端警告：%s', text)


_STYLE_WORDS = {'limit': ('price',), 'market': ('protect_price', 'market_type')}  # the price is the first of them


def check_style(style):
    """A style that says all of itself: a server of another kind would fill in a limit price that is missing."""
    kind = style.get('type') if isinstance(style, dict) else None
    words = _STYLE_WORDS.get(kind, ()) if isinstance(kind, str) else ()
    if not words or not set(style) <= set(words) | {'type'}:
        raise BadRequest('style 不认识：%s' % brief(style),
                         "应为 {'type': 'limit', 'price': 10.5} 或 {'type': 'market'}，市价可加 protect_price")
    price = style.get(words[0])
    if (kind == 'limit' or price is not None) and check_number(price, words[0], 0, 1e6) <= 0:
        raise BadRequest('%s 应大于 0，收到 %s' % (words[0], brief(price)))
    return style


def refuse_rejected(answer, key):
    """Raises OrderRejected for an answer to broker.place_order that says so."""
    if plain_status(answer.get('status')) == 'rejected':
        raise _over(answer, key, answer.get('status_msg') or '委托被拒绝')


def refuse_nothing_filled(answer, key, ask_status):
    """Raises OrderRejected for an order that has ended with nothing filled, OrderStateUnknown where nobody says that.

    answer: of broker.place_order. ask_status(order_id): the order's row, asked where the answer does not tell.
    """
    refuse_rejected(answer, key)
    if plain_status(answer.get('status')) != 'canceled':
        return
    filled, order_id = filled_of(answer), answer['order_id']
    if not (_asked_for_filled(order_id, key, ask_status) if filled is None else filled):
        reason = '委托 %s 已撤销，一股也没有成交' % printable(order_id)
        raise _over(answer, key, '%s：%s' % (reason, answer['status_msg']) if answer.get('status_msg') else reason)


def came_to_nothing(answer):
    """Whether an answer to broker.place_order says that the order has ended with nothing filled."""
    status = plain_status(answer.get('status'))
    return status == 'rejected' or (status == 'canceled' and filled_of(answer) == 0)


def _over(answer, key, message):
    return OrderRejected(message, order_id=answer['order_id'], broker_called=True, idempotency_key=key,
                         status=plain_status(answer.get('status')))


def filled_of(row):
    """Shares that a row says are filled, itself or in its last_snapshot; None where it does not say."""
    snapshot = row.get('last_snapshot')
    for place in (row, snapshot if isinstance(snapshot, dict) else {}):
        for name in ('filled', 'traded_volume'):
            if _is_count(place.get(name)) or _is_positive(place.get(name)):
                return place[name]
    return None


def _asked_for_filled(order_id, key, ask_status):
    try:
        filled = filled_of(ask_status(order_id))
    except BulletError as error:
        filled, reason = None, '：%s' % error.message
    else:
        reason = ''
    if filled is None:
        raise OrderStateUnknown('委托 %s 已撤销，读不到成交了多少%s' % (printable(order_id), reason),
                                '不要重下：先看 get_orders() 和持仓', idempotency_key=key, broker_called=True)
    return filled


def cancel_status(answer, order_id, key):
    """The order's status by an answer to its cancel, '' if it tells none. OrderRejected where the broker refused."""
    if not isinstance(answer, dict) or not _is_about(answer, order_id):
        return ''
    if answer.get('cancel_outcome') == 'rejected':  # its status is the cancel's, not the order's
        raise OrderRejected('柜台拒绝撤单%s，委托还是原来的样子' % _told(answer), '用 get_order_status 查看', order_id=str(order_id),
                            broker_called=True, idempotency_key=key)
    return '' if answer.get('cancel_outcome') == 'unknown' else plain_status(answer.get('status'))


def _type_asked(account_type):
    try:
        return 'stock' if account_type is None else parse_account_type(str(account_type))
    except ValueError as error:
        raise ConfigError('account_type=%s 无效：%s' % (brief(account_type), error))


def _is_account_number(account_id):
    return re.fullmatch(r'\d+', account_id, re.ASCII) is not None


UNSEEN_S = 3.0


def _told(answer):
    return '：%s' % answer['status_msg'] if answer.get('status_msg') else ''


def _is_about(answer, order_id):
    """Whether an answer is about this order: one that names another proves nothing."""
    return answer.get('order_id') is None or str(answer['order_id']) == str(order_id)


def order_number(answer):
    """The order id of an answer as text; None where it holds none: -1 and 0 stand for failure, some for doubt."""
    number = answer.get('order_id') if isinstance(answer, dict) else None
    number = str(number) if isinstance(number, (str, int)) and not isinstance(number, bool) else ''
    hopeless = not number.strip() or number == '0' or number.startswith(('-', 'submit_unknown:'))
    return None if hopeless or len(number) > 200 or not number.isprintable() else number


_UNSETTLED = ('submit_unknown', 'reconciling')


def order_style(price, market):
    """The wire's style of a limit price, or of a market order with an optional protection price."""
    if market:
        return {'type': 'market'} if price is None else {'type': 'market', 'protect_price': price}
    return {'type': 'limit', 'price': price}


# -- module level: one provider for scripts and notebooks ------------------------------------------------------------
_provider_lock = threading.RLock()
_provider = None


def set_data_provider(name='qmt-remote', **config):
    """Where get_price and its sisters read from. config: as of RemoteQmtProvider. Connects at once."""
    global _provider
    if name != 'qmt-remote':
        raise ConfigError('不认识的行情来源 %s' % brief(name), '可用：qmt-remote；stub、csv:目录 只用于回测')
    fresh = RemoteQmtProvider(config)
    with _provider_lock:
        old, _provider = _provider, fresh
    if old is not None:
        old.close()
    return fresh


def get_data_provider():
    """The provider set before, or one made from the environment."""
    with _provider_lock:
        return _provider if _provider is not None else set_data_provider(client_settings().data_provider)


def _provider_call(name):
    method = getattr(RemoteQmtProvider, name)

    def call(*args, **kwargs):
        return getattr(get_data_provider(), name)(*args, **kwargs)
    call.__name__, call.__doc__ = name, method.__doc__
    return call


get_price = _provider_call('get_price')
get_trade_days = _provider_call('get_trade_days')
get_all_trade_days = _provider_call('get_all_trade_days')
get_all_securities = _provider_call('get_all_securities')
get_security_info = _provider_call('get_security_info')
get_index_stocks = _provider_call('get_index_stocks')
get_split_dividend = _provider_call('get_split_dividend')
get_current_tick = _provider_call('get_current_tick')
get_live_current = _provider_call('get_live_current')


# ======================================================================================================
# 15. AUTOSTART - a task of Windows, a user unit of systemd: a server that starts with its owner's session
# ======================================================================================================
AUTOSTART_MARK = 'made-by-bullet-qmt'    # in whatever we install: of others nothing is replaced or removed
AUTOSTART_NAME, AUTOSTART_LOG = 'bullet-qmt', 'bullet.log'
RESTART_S = 10                           # systemd: from the end of one server to the next
TOOL_TIMEOUT_S = 60
_TASK_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,99}', re.ASCII)


# What starts a server: its name there, the words of its command, the folder it runs in, its log.
Autostart = namedtuple('Autostart', 'name words folder log')


def parse_task_name(text):
    """A name that is one for a file of Windows and for a unit of systemd."""
    if not _TASK_NAME.fullmatch(text):
        raise ValueError('应为英文字母、数字、- 和 _，最多 100 个，以字母或数字开头')
    return text


def autostart_of(name, arguments, log):
    """The Autostart of this program with these arguments, which is to run in this folder. Raises ConfigError."""
    if not sys.executable:
        raise ConfigError('不知道正在运行的是哪个 Python', '用 python.exe 的完整路径运行')
    words = [python_without_window(), os.path.abspath(__file__)] + arguments
    plan = Autostart(name, list(map(_written, words)), _written(os.getcwd()), _written(log))
    for text in plan.words + [plan.folder]:
        if any(unicodedata.category(char) in ('Cc', 'Cs', 'Cn') for char in text):  # XML holds no such
            raise ConfigError('%s 里有不能写进文件的字符' % printable(text), '换一个目录或文件名')
    return plan


def _written(path):
    """As UTF-8 has it: in the C locale 3.6 knows names of files in ASCII and escapes alone."""
    return os.fsencode(path).decode('utf-8', 'surrogateescape')


def run_tool(name, arguments, hint=''):
    """(exit code, what it printed) of a program of the system. Raises ConfigError where it cannot run or does not end.

    It has no stdin: nothing may wait for an answer there.
    """
    try:
        done = subprocess.run(system_program(name) + arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=TOOL_TIMEOUT_S)
    except OSError as error:
        raise ConfigError('%s 不能运行：%s' % (name, error), hint)
    except subprocess.TimeoutExpired:
        raise ConfigError('%s %s 在 %d 秒内没有结束' % (name, arguments[0], TOOL_TIMEOUT_S), hint)
    return done.returncode, program_text(done.stdout).strip()


def _require_tool(name, arguments, hint=''):
    """It has to succeed. Raises ConfigError with its own words."""
    code, told = run_tool(name, arguments, hint)
    if code:
        raise ConfigError('%s %s 失败（退出码 %d）：%s' % (
            name, ' '.join(arguments[:2]), code, printable(' '.join(told.split()))), hint)


# -- Windows ---------------------------------------------------------------------------------------------------------
# RestartOnFailure is there for a crash; the repetition, for whatever end the scheduler takes for none, changes nothing
# while the server runs (IgnoreNew). Priority 7, the default, would be below other programs.
_TASK_XML = '''<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Source>{mark}</Source>
    <Description>bullet-qmt server</Description>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
      <Repetition>
        <Interval>PT5M</Interval>
      </Repetition>
      <UserId>{user}</UserId>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Owner">
      <UserId>{user}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowHardTerminate>true</AllowHardTerminate>
    <RunOnlyIfNetworkAvailable>false</RunOnlyIfNetworkAvailable>
    <IdleSettings>
      <StopOnIdleEnd>false</StopOnIdleEnd>
      <RestartOnIdle>false</RestartOnIdle>
    </IdleSettings>
    <AllowStartOnDemand>true</AllowStartOnDemand>
    <Enabled>true</Enabled>
    <Hidden>false</Hidden>
    <RunOnlyIfIdle>false</RunOnlyIfIdle>
    <WakeToRun>false</WakeToRun>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>5</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>255</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Owner">
    <Exec>
      <Command>{command}</Command>
      <Arguments>{arguments}</Arguments>
      <WorkingDirectory>{folder}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
'''
_XML_ESCAPES = {ord(char): '&#%d;' % ord(char) for char in '&<>"\''}


class WindowsTask:
    """A task of the Task Scheduler. No rights of an administrator: it is for its owner's log-on alone."""

    HINT = '用 --print 看要登记的内容，存成文件，在任务计划程序里“导入任务”'

    def text(self, plan):
        """Its definition. Raises ConfigError for what the scheduler would put something else in place of."""
        for word in plan.words + [plan.folder]:
            if '%' in word or '$(' in word:
                raise ConfigError('%s 里有 %% 或 $(，任务计划程序会把它换成别的' % printable(word), '换一个目录或文件名')
        user = windows_user()
        if not user:
            raise ConfigError('不知道你的 Windows 用户名：环境变量 USERNAME 是空的', '在你自己登录的窗口里运行')
        values = dict(mark=AUTOSTART_MARK, user=user, command=plan.words[0],
                      arguments=subprocess.list2cmdline(plan.words[1:]), folder=plan.folder)
        return _TASK_XML.format(**{name: value.translate(_XML_ESCAPES) for name, value in values.items()})

    def install(self, plan):
        """Whether one was there before, which this one replaces."""
        text, before = self.text(plan), self._is_there(plan.name)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, plan.name + '.xml')
            with io.open(path, 'w', encoding='utf-16') as file:  # begins with a mark of the byte order
                file.write(text)
            _require_tool('schtasks', ['/Create', '/TN', plan.name, '/XML', path, '/F'], self.HINT)
        return before

    def remove(self, name):
        """Whether there was one. A server that it has started ends."""
        if not self._is_there(name):
            return False
        run_tool('schtasks', ['/End', '/TN', name])  # which fails where none runs
        _require_tool('schtasks', ['/Delete', '/TN', name, '/F'], '在任务计划程序里删除它')
        return True

    def _is_there(self, name):
        code, told = run_tool('schtasks', ['/Query', '/TN', name, '/XML'], self.HINT)
        if not code and AUTOSTART_MARK not in told.replace('\0', ''):
            raise ConfigError('已有一个叫 %s 的任务，不是 install-task 登记的' % name, '用 --name 换一个名称')
        return not code

    def advice(self, plan):
        """(title, what to type or to know) of what comes next."""
        name, by_window = plan.name, '' if plan.words[0] != sys.executable else '（没有 pythonw.exe：会有一个窗口，不要关）'
        return [('何时启动', '你登录 Windows 时%s；QMT 在你的桌面里运行，没有人登录就没有 QMT，所以不是开机时' % by_window),
                ('现在启动', 'schtasks /Run /TN %s' % name),
                ('查看', 'schtasks /Query /TN %s /V /FO LIST' % name),
                ('停止', 'schtasks /Change /TN %s /DISABLE，再 schtasks /End /TN %s（不禁用，5 分钟内会再启动）' % (name, name)),
                ('恢复', 'schtasks /Change /TN %s /ENABLE，再 schtasks /Run /TN %s' % (name, name))]


# -- systemd ---------------------------------------------------------------------------------------------------------
# What a wrong setting ends with (2) is not tried again: it would fail in the same way.
_UNIT = '''# {mark}
[Unit]
Description=bullet-qmt server

[Service]
WorkingDirectory={folder}
ExecStart={command}
Restart=on-failure
RestartSec={restart_s}
RestartPreventExitStatus=2
TimeoutStopSec=30

[Install]
WantedBy=default.target
'''


class SystemdUnit:
    """A unit of the user's own systemd. No rights of root."""

    def text(self, plan):
        """Its definition. Raises ConfigError for what a unit cannot name."""
        if plan.folder != plan.folder.strip() or plan.folder.endswith('\\'):
            raise ConfigError('目录 %s 以空格或反斜杠结尾' % printable(plan.folder), '换一个目录')
        if set(plan.words[0]) & set('"\'\\'):
            raise ConfigError('Python 的路径 %s 里有引号或反斜杠，systemd 不运行它' % printable(plan.words[0]), '换一个 Python')
        command = [self._quoted(word, is_program=not number) for number, word in enumerate(plan.words)]
        return _UNIT.format(mark=AUTOSTART_MARK, folder=plan.folder.replace('%', '%%'), command=' '.join(command),
                            restart_s=RESTART_S)

    @staticmethod
    def _quoted(word, is_program):
        """In systemd's quotes. Variables are put in everywhere but in the path of the program."""
        word = word.replace('\\', '\\\\').replace('"', '\\"').replace('%', '%%')
        return '"%s"' % (word if is_program else word.replace('$', '$$'))

    def install(self, plan):
        """Whether one was there before, which this one replaces. It is written even where systemd cannot be asked."""
        text, path, before = self.text(plan), self.path(plan.name), self._is_there(plan.name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with io.open(path, 'w', encoding='utf-8') as file:
                file.write(text)
        except OSError as error:
            raise ConfigError('不能写 %s：%s' % (path, error), '用 --print 看内容，自己放到别处')
        for arguments in (['daemon-reload'], ['enable', plan.name + '.service']):
            _require_tool('systemctl', ['--user'] + arguments, '已写好 %s，但没有启用：在自己登录的会话里（不是容器、su、sudo）运行 '
                          'systemctl --user daemon-reload，再 systemctl --user enable %s' % (path, plan.name))
        return before

    def remove(self, name):
        """Whether there was one. A server that it has started ends, if systemd can be asked; the file goes anyway."""
        if not self._is_there(name):
            return False
        path = self.path(name)
        try:
            _require_tool('systemctl', ['--user', 'disable', '--now', name + '.service'],
                          '%s 已删除；它启动的服务端要是还在运行，自己停止它' % path)
        finally:
            for left in (path, os.path.join(os.path.dirname(path), 'default.target.wants', name + '.service')):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(left)
        _require_tool('systemctl', ['--user', 'daemon-reload'], '%s 已删除' % path)
        return True

    @staticmethod
    def path(name):
        base = os.environ.get('XDG_CONFIG_HOME') or os.path.join(os.path.expanduser('~'), '.config')
        return os.path.join(base, 'systemd', 'user', name + '.service')

    def _is_there(self, name):
        try:
            with io.open(self.path(name), encoding='utf-8', errors='replace') as file:
                is_ours = AUTOSTART_MARK in file.read()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError('%s 读不出来：%s' % (self.path(name), error), '检查它的权限')
        if not is_ours:
            raise ConfigError('%s 已存在，不是 install-task 写的' % self.path(name), '用 --name 换一个名称')
        return True

    def advice(self, plan):
        """(title, what to type or to know) of what comes next."""
        return [('何时启动', '你登录时；没有人登录也要运行：loginctl enable-linger'),
                ('现在启动', 'systemctl --user restart %s' % plan.name),
                ('查看', 'systemctl --user status %s' % plan.name),
                ('停止', 'systemctl --user stop %s' % plan.name)]


def autostart_system():
    """What installs an Autostart here. Raises ConfigError where there is nothing that we know."""
    kind = autostart_kind()
    if not kind:
        raise ConfigError('这里没有任务计划程序，也没有 systemd', 'macOS 上自己写一个 launchd 的 plist：'
                          'ProgramArguments 是 python、bullet_qmt.py 的完整路径和 server，WorkingDirectory 是 .env 所在的目录，'
                          '加上 RunAtLoad 和 KeepAlive，放进 ~/Library/LaunchAgents，再 launchctl load 它')
    return WindowsTask() if kind == 'task' else SystemdUnit()


# ======================================================================================================
# 16. COMMAND LINE - main(argv). Only here is anything printed or exited
# ======================================================================================================
class Exit(enum.IntEnum):
    """Exit codes of the command line."""

    OK = 0
    FAILED = 1          # the server or broker refused, or something unexpected
    USAGE = 2           # wrong option, file or value; nothing was started
    UNREACHABLE = 3     # no connection
    DENIED = 4          # wrong token
    UNKNOWN = 5         # an order or cancel may or may not have reached the broker
    INTERRUPTED = 130   # Ctrl-C


_EXIT_OF = [(OrderStateUnknown, Exit.UNKNOWN), (ConfigError, Exit.USAGE), (AuthFailed, Exit.DENIED),
            (ConnectionLost, Exit.UNREACHABLE), (RequestTimeout, Exit.UNREACHABLE), (BulletError, Exit.FAILED)]


def main(argv=None):
    """Runs a command; returns an Exit. Errors go to stderr with what to do about them."""
    try:
        make_console_safe()
        args = build_parser().parse_args(argv)
        with console_beside() if args.run in UNHINDERED else contextlib.ExitStack():
            return _run(args)
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and _can_print():
            raise
        if not is_closed_pipe(error):  # else: whoever read it has seen enough
            _say('错误：标准输出写不下：%s' % error)
        _silence('stdout')
        return Exit.FAILED


def _run(args):
    try:
        outcome = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return outcome
    except BulletError as error:
        _show_error(error, args)
        return next(code for cls, code in _EXIT_OF if isinstance(error, cls))
    except KeyboardInterrupt:
        _say(INTERRUPTED)
        return Exit.INTERRUPTED


def _show_error(error, args=None):
    _say('错误 [%s] %s' % (error.code, error.message))
    if error.hint:
        _say('建议：%s' % error.hint)
    if isinstance(error, OrderStateUnknown) and error.idempotency_key:
        _say(_how_to_ask(error.idempotency_key, args))


def _how_to_ask(key, args):
    """The command that asks the same server for the same account; the token is given again by whoever has it."""
    words = ['--cancel'] * _is_about_cancel(args) + _connection_words(args)
    words = words + ['--', key] if key.startswith('-') else [key] + words
    return '查询这笔%s的结果%s：python bullet_qmt.py resolve %s' % (
        '撤单' if _is_about_cancel(args) else '委托', '（口令照旧给出）' if args.token is not None else '',
        printable(shell_line(words)))


def _is_about_cancel(args):
    return args.run is run_cancel or getattr(args, 'cancel', False) or getattr(args, 'action', None) == CANCEL


def _connection_words(args):
    """What the command line said of server and account, as it is said to another command; no secret."""
    words = []
    for option in [None] + offered_options(_OF_ACCOUNT):
        name, flags = ('env_file', ('--env-file',)) if option is None else (option.name, option.flags)
        value = getattr(args, name, None)
        if value is None or (option is not None and option.secret):
            continue
        words += ['%s=%s' % (flags[0], value)] if value.startswith('-') else [flags[0], value]
    return words


# -- what can be told, and what where it cannot ----------------------------------------------------------------------
def _say(text):
    """A line on stderr. Where that takes nothing there is nobody left to tell."""
    if sys.stderr is None:
        return _leave_note(text)
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _silence('stderr')


NOTE_FILE = 'bullet_qmt_error.txt'


def _leave_note(text):
    """pythonw.exe has no stderr: for whoever looks why it does not run, where it ran or else among temporary files."""
    line = ('%s %s\n' % (log_time(time.time()), text)).encode('utf-8', 'backslashreplace')
    for folder in (os.curdir, tempfile.gettempdir()):
        with contextlib.suppress(OSError), open_own(os.path.join(folder, NOTE_FILE), 'ab') as file:
            file.write(line)
            return


def _can_print():
    """Whether stdout takes anything."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _silence(name):
    """Nothing more goes to this stream: the interpreter's end would fail with what is left in it."""
    with contextlib.suppress(OSError, AttributeError), open(os.devnull, 'wb') as nothing:  # without one: no such end
        os.dup2(nothing.fileno(), getattr(sys, name).fileno())


def _tell_before_sending(text):
    """Who does not get the key could not ask for the order later. Raises ConfigError: nothing was sent."""
    try:
        print(text, flush=True)
    except OSError as error:
        _silence('stdout')
        raise ConfigError('标准输出写不下（%s），没有发出任何委托' % error, '让它写得下（磁盘、管道）再下单')


@contextlib.contextmanager
def _telling_what_came(known):
    """What was sent is sent, whatever becomes of the printing: known, and why the rest is not shown, go to stderr."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except Exception as error:
        _silence('stdout')
        _say('请求已经完成，结果没有能打印出来（%s）：%s' % (brief(error), known))


# -- parser --------------------------------------------------------------------------------------------------------
class _ChineseHelp:
    """For a HelpFormatter. Switches and values of the options table read as one line each."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=110)

    def add_usage(self, usage, actions, groups, prefix=None):
        super().add_usage(usage, actions, groups, '用法：' if prefix is None else prefix)


class _ChineseParser:
    """For an ArgumentParser, in Chinese. What its own checks would say in English is found before they run.

    A value is handed over as --option=value, so that a negative number is none of the options.
    """

    def __init__(self, **options):
        super().__init__(formatter_class=_with_base(_ChineseHelp, argparse.HelpFormatter), allow_abbrev=False,
                         add_help=False, **options)
        self._places, self._options = self.add_argument_group('参数'), self.add_argument_group('选项')
        self._commands = None
        self.add('-h', '--help', action='help', help='显示这份帮助')

    def add(self, *flags, **options):
        (self._options if flags[0].startswith('-') else self._places).add_argument(*flags, **options)

    def add_switch(self, on, off, name, help):
        pair = self._options.add_mutually_exclusive_group()
        pair.add_argument(on, dest=name, action='store_const', const='1', help=help)
        pair.add_argument(off, dest=name, action='store_const', const='0', help='与上一项相反')

    def add_command(self, name, help):
        if self._commands is None:
            self._commands = self.add_subparsers(title='命令', metavar='命令', dest='command')
            self._commands.required = True
        return self._commands.add_parser(name, help=help, description=help)

    def parse_known_args(self, args=None, namespace=None):
        texts = self._checked(deque(sys.argv[1:] if args is None else args))
        namespace, surplus = super().parse_known_args(texts, namespace)
        if surplus:
            self.refuse('多余的参数 %s' % ' '.join(map(printable, surplus)), '带空格的值请用引号括起来')
        return namespace, surplus

    def _checked(self, pending):
        """The same arguments, where each option is known and has its value."""
        checked, given = [], {}
        while pending and pending[0] != '--':
            text = pending.popleft()
            if _looks_like_option(text):
                text = self._checked_option(text, pending, given)
            elif self._commands is not None:
                return checked + [self._checked_command(text)] + list(pending)
            checked.append(text)
        return checked + list(pending)

    def _checked_option(self, text, pending, given):
        flag, equals, _ = text.partition('=')
        action = self._option_string_actions.get(flag)
        if action is None:
            self.refuse('不认识的选项 %s' % printable(flag), _nearest(flag, self._option_string_actions))
        if action.nargs == 0:
            return self._checked_switch(flag, equals, given.setdefault(action.dest, flag))
        if equals:
            return text
        if not pending or _looks_like_option(pending[0]):
            self.refuse('选项 %s 后面缺少值' % flag, '写成 %s %s；以 - 开头的值写成 %s=值' % (flag, action.metavar, flag))
        return '%s=%s' % (flag, pending.popleft())

    def _checked_switch(self, flag, equals, before):
        if equals:
            self.refuse('选项 %s 是开关，后面不带值' % flag, '只写 %s' % flag)
        if before != flag:
            self.refuse('选项 %s 与 %s 互相矛盾' % (before, flag), '只给出其中一个')
        return flag

    def _checked_command(self, name):
        if name not in self._commands.choices:
            self.refuse('没有命令 %s' % printable(name), _nearest(name, self._commands.choices))
        return name

    def _print_message(self, message, file=None):
        """Also to who has gone: that is seen here, not when all is over."""
        if file is sys.stdout and file is not None:
            print(message, end='', flush=True)
        else:
            _say(message.rstrip('\n'))

    def error(self, message):
        """Where argparse itself refuses: a value that our own check of it does not take, or something left out."""
        problem = sys.exc_info()[1]
        name = getattr(problem, 'argument_name', None)
        if name is not None:
            self.refuse('%s %s' % (name, problem.message))
        self.refuse('缺少 %s' % message.rpartition(': ')[2], '按上面的用法补上')

    def refuse(self, message, hint=''):
        """Ends the program with this parser's usage, what was wrong and what to do."""
        self.print_usage(sys.stderr)
        _show_error(ConfigError(message, '%s%s全部写法见 %s --help' % (hint, '；' if hint else '', self.prog)))
        self.exit(Exit.USAGE)


def _looks_like_option(text):
    """As argparse sees it, except that numbers are values however they are written."""
    return len(text) > 1 and text[0] == '-' and ' ' not in text and not _is_number(text)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _nearest(name, known):
    near = difflib.get_close_matches(name, known, 1)
    return '是不是 %s' % near[0] if near else ''


def _with_base(cls, base):
    """The class on a base that is loaded only where a command runs."""
    return type(base.__name__, (cls, base), {})


def build_parser():
    parser = _with_base(_ChineseParser, argparse.ArgumentParser)(
        prog='bullet_qmt.py', description='QMT/MiniQMT 远程行情与交易服务：服务端、客户端、模拟交易所在一个文件里')
    parser.add('--version', action='version', version='bullet-qmt ' + __version__, help='显示版本')
    for name, (run, help, groups, arguments) in COMMANDS.items():
        sub = parser.add_command(name, help)
        sub.set_defaults(run=run, groups=groups)
        for flags, options in arguments:
            sub.add(*flags, **options)
        _add_options(sub, groups)
    return parser


def offered_options(groups):
    """Those that have an effect on a command of these groups: market data are of no account."""
    return [option for option in options_of(*groups) if option.name not in ACCOUNT_OPTIONS or 'account' in groups]


def _add_options(parser, groups):
    if groups:
        parser.add('--env-file', metavar='FILE', help='配置文件（.env 格式），也可用环境变量 BT_ENV_FILE')
    for option in offered_options(groups):
        default = '' if option.default in (None, '') or option.is_switch else '（默认 %s）' % option.default
        help = '%s%s [%s]' % (option.help, default, option.env)
        if option.is_switch and option.flags:
            parser.add_switch(*option.flags, name=option.name, help=help)
        elif option.flags:
            parser.add(*option.flags, dest=option.name, metavar=option.metavar, help=help)


def settings_from(args):
    """Settings of the command's groups, with warnings shown."""
    names = [option.name for option in options_of(*args.groups)] + ['env_file']
    settings = load_settings(args.groups, {name: getattr(args, name, None) for name in names})
    for warning in settings.warnings:
        _say('警告：%s' % warning)
    return settings


# -- server --------------------------------------------------------------------------------------------------------
_QMT_ALONE = ('auto_download', 'quote_max_age')


def refuse_idle_options(settings):
    """Who writes --stub-cash means paper money: what only the other kind of server heeds is an error there."""
    for option in options_of('server', 'stub'):
        kind = 'stub' if option.group == 'stub' else 'qmt' if option.name in _QMT_ALONE else settings.server_type
        if kind != settings.server_type and settings.sources.get(option.name) == '命令行':
            raise ConfigError('%s 只用于 --server-type %s，现在是 %s' % (
                '/'.join(option.flags), kind, settings.server_type), '去掉它，或加上 --server-type %s' % kind)


def _server_settings(args):
    """(settings with a token, whether it was made here)."""
    with _told_in_log(args.log_file):
        settings = settings_from(args)
        refuse_idle_options(settings)
    refuse_same_file(settings)  # before there is a log: what it says of this would be in the other file
    if settings.token is not None:
        return settings, False
    if sys.stdout is None:
        raise ConfigError('没有给出口令，而随机生成的没有地方显示', '给出 %s' % ways('token'))
    return settings.replace(token=secrets.token_urlsafe(24)), True


def run_server(args):
    """Serves until Ctrl-C or SIGTERM."""
    settings, made_token = _server_settings(args)
    with mouse_pauses_nothing(), logging_set_up(settings):
        stop = StopSignal().install()
        server = serve(settings)
        try:
            LOG.info('%s，监听 %s（%s）；%s', told_version(), host_and_port(*server.address),
                     'TLS' if server.tls else '明文', told_options(settings, args))
            late = announce(server, settings, made_token, stop)
            threading.Thread(target=tell_late_accounts, args=(server.service, late, stop), name='overviews',
                             daemon=True).start()
            stop.wait()
        finally:
            reason = stop.reason or '出错：%s' % brief(sys.exc_info()[1])
            print('正在停止（%s）...' % reason, flush=True)
            server.close()
            LOG.info('停止：%s', reason)
        print('已停止。', flush=True)
    return Exit.OK


@contextlib.contextmanager
def _told_in_log(path):
    """What is wrong with the settings also goes to the log of the command line: a task's screen is seen by nobody."""
    try:
        yield
    except ConfigError as error:
        with contextlib.suppress(ConfigError, OSError, ValueError):  # main() tells on the screen, if there is one
            _note_in_log(parse_path(path or ''), error)
        raise


def _note_in_log(path, error):
    """Only if it is new, empty or begins as our logs do: nothing is written into what was named by mistake."""
    if os.path.exists(path):
        with io.open(path, 'rb') as file:
            head = file.read(19)
        if head and not re.match(rb'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d', head):
            return
    with open_appending(path) as file:
        file.write(('%s ERROR 没有启动：%s\n' % (log_time(time.time()), printable(error))).encode(
            'utf-8', 'backslashreplace'))


def told_version():
    return '启动：bullet-qmt %s，Python %s，进程 %d' % (__version__, sys.version.split()[0], os.getpid())


def told_options(settings, args):
    """'name=value ...' of a command's options for its log; never a secret one."""
    known = options_of(*args.groups)
    beside = set(vars(args)) - {option.name for option in known} - {'run', 'groups', 'command', 'env_file'}
    told = ['%s=%s' % (name, printable(_option_text(getattr(args, name)))) for name in sorted(beside)
            if getattr(args, name) not in (None, False)]
    for option in known:
        value, source = getattr(settings, option.name), settings.sources.get(option.name)
        if option.secret:
            told.append('%s=（%s）' % (option.name, '随机生成' if source == '默认值' else '来自%s%s' % (
                printable(source), '给出的文件' if _is_token_from_file(settings) else '')))
        elif source != '默认值':
            told.append('%s=%s' % (option.name, printable(_option_text(value))))
    return '选项（其余为默认）：' + ' '.join(told)


def _is_token_from_file(settings):
    """Both in one place is an error; so where their sources are one it was the file."""
    return settings.sources['token'] == settings.sources['token_file'] != '默认值'


def _option_text(value):
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return '/'.join(str(part) for part in value if part is not None)
    return ','.join(map(_option_text, value)) if isinstance(value, (tuple, list)) else str(value)


@contextlib.contextmanager
def logging_set_up(settings):
    """Log lines on stderr, and in a rotating file if one is named, none of which anybody waits for; never a token."""
    handlers, orders = [logging.StreamHandler() if sys.stderr else logging.NullHandler()], []
    if settings.log_file:
        handlers.append(_log_file(settings.log_file))
        orders += [_order_files(settings.log_file)] * os.path.isfile(settings.log_file)  # nothing beside a device
    for handler in handlers:
        handler.setFormatter(_LogFormatter('%(asctime)s %(levelname)s %(message)s'))
    LOG.handlers[:] = handlers
    for handler in orders:
        ORDER_LOG.addHandler(handler)
    for log in (LOG, ORDER_LOG):
        log.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    except BulletError as error:
        LOG.handlers[:] = handlers[1:]  # the screen is told by main()
        LOG.error('没有启动，或不能继续：%s', printable(error))
        raise
    finally:
        for handler in handlers + orders:
            ORDER_LOG.removeHandler(handler)
            handler.close()


def _order_files(path):
    """Orders and cancels, whose lines have their time already, beside the log: nobody else's lines drive them out."""
    return WriterHandler(_writer(DayFiles(os.path.splitext(path)[0] + '_orders'), path + ' 旁边的委托记录'))


def _log_file(path, limit=10 * 1024 * 1024):
    return WriterHandler(_file_writer(path, '--log-file', limit))


def _file_writer(path, flag, limit=None):
    """A LineWriter into a file. Raises ConfigError where it cannot be opened."""
    try:
        return _writer(LogFile(path, limit), path)
    except OSError as error:
        raise ConfigError('日志文件 %s 打不开：%s' % (path, error), '检查 %s' % flag)


def _writer(sink, name):
    def troubled(error):
        _say('警告：%s 写不下（%s），照常运行；写得下时再补上' % (name, error))
    return LineWriter('log-writer', sink, lost_lines, troubled)


class _LogFormatter(logging.Formatter):
    """Beijing time, whatever the machine's zone. Lines of the access log have theirs already."""

    def format(self, record):
        return record.getMessage() if record.name == ACCESS_LOG.name else super().format(record)

    def formatTime(self, record, datefmt=None):
        return log_time(record.created)


def announce(server, settings, made_token, stop):
    """Where it serves and as whom, what is dangerous about it, what the accounts hold; those that do not tell yet.

    Whoever reads a pipe sees each part when it is so.
    """
    print('bullet-qmt %s 服务端已启动：%s（%s，%s）' % (
        __version__, host_and_port(*server.address), settings.server_type, 'TLS' if server.tls else '明文'))
    print('服务：%s；账户：%s%s' % (
        '、'.join(server.service.scopes) or '（全部关闭）', '、'.join(server.service.backend.brokers),
        _sub_account_list(settings)), flush=True)
    if made_token:
        print('口令（随机生成，只显示这一次）：%s' % settings.token, flush=True)
    for line in safety_warnings(settings):
        print('\n!!! 警告：%s\n' % line, file=sys.stderr, flush=True)
    deadline, keys = time.monotonic() + OVERVIEW_WAIT_S, list(server.service.backend.brokers)
    late = [key for key in keys if not _show_account(server.service, key, deadline, stop)]
    print('按 Ctrl-C 停止。', flush=True)
    return late


def _show_account(service, key, deadline, stop, tells_reason=True):
    """Whether there is nothing more to wait for: its overview is shown, or the reason why there will be none."""
    text, is_final = _overview_or_reason(service, key, deadline, stop)
    title = '' if list(service.backend.brokers) == ['default'] else '\n账户 %s\n' % key
    if is_final or tells_reason:
        print('%s%s' % (title, text), flush=True)
    return is_final


LATE_LOOK_S = 2.0  # between looks at accounts that could not be read at the start


def tell_late_accounts(service, keys, stop):
    """Shows each of them once it can be read."""
    while keys and not stop.wait(LATE_LOOK_S):
        keys = [key for key in keys if not _show_account(service, key, -math.inf, stop, tells_reason=False)]


def _sub_account_list(settings):
    names = ['%s@%s' % (spec.name, spec.account_key) for spec in settings.sub_accounts]
    return '；子账户：%s' % '、'.join(names) if names else ''


OVERVIEW_WAIT_S = 10.0  # for figures that are still on their way; the server serves meanwhile


def _overview_or_reason(service, key, deadline, stop):
    """(text, whether it is the last word)."""
    while True:
        try:
            return service.desk.overview({'account_key': key})[0], True
        except BulletError as error:
            if not error.retryable:
                return '账户 %s 读不到：%s' % (key, error), True
            if time.monotonic() > deadline or stop.wait(0.5):
                return '账户 %s 暂时读不到，读到后再显示：%s' % (key, error), False


def safety_warnings(settings):
    """What an owner of real money should change, loudly."""
    warnings = []
    if not names_this_machine(settings.listen) and not settings.tls_cert:
        warnings.append('正在 %s 上明文监听，口令和委托在网络上可被窃听。请用 --tls-cert/--tls-key 启用 TLS，'
                        '或改回 --listen 127.0.0.1 并经 SSH 隧道访问' % settings.listen)
    if settings.sources.get('token') == '命令行' != settings.sources.get('token_file') and settings.server_type == 'qmt':
        warnings.append('口令写在命令行上，本机别的用户看得到（ps、任务管理器）。请改用 --token-file、环境变量或 .env')
    if is_guessable(settings.token):
        warnings.append('口令容易被猜中（少于 16 个字符，或是重复、连续的字符、常见的词）。为了拖住猜口令的人，输错几次的地址每 5 秒只核对'
                        '一次登录：有人在猜时，你自己也可能登不进来。请换成长的随机口令，例如 %s' % secrets.token_urlsafe(24))
    if settings.allowlist == () and not names_this_machine(settings.listen):
        warnings.append('没有设置 --allowlist，任何地址都可以尝试登录。地址固定的客户端请列入 --allowlist')
    return warnings


# -- client commands -----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _client(args):
    """(settings, a connection that opens on the first request). A question has the time that its --patience gives."""
    settings = settings_from(args)
    patience = _Patience(settings, _patience_of(args, settings))
    connection = ShortConnection(settings.host, settings.port, settings.token, settings.tls_cert,
                                 request_timeout=min(settings.rpc_timeout, patience.answer_s),
                                 compress=settings.compress, patience_s=patience.seconds,
                                 silence_s=patience.answer_s, on_silence=patience.look,
                                 refused_s=PATIENCE_S if patience.seconds == math.inf else patience.seconds)
    with contextlib.closing(connection):
        try:
            yield settings, connection
        except RequestTimeout as error:
            raise patience.over(error)


PATIENCE_S = 5.0    # where neither --patience nor a time for a request was given
ANSWER_SHARE = 0.8  # of a question's patience: the rest is for asking what keeps the server
STANDS_STILL_S = 3  # a call into the terminal that is out for as long as that keeps a question waiting


def _patience_of(args, settings):
    """Seconds that a command waits for its answer; who says how long a request may take means that."""
    given = getattr(args, 'patience', math.inf)
    if given is not None:
        return given
    return PATIENCE_S if settings.sources['rpc_timeout'] == '默认值' else settings.rpc_timeout / ANSWER_SHARE


class _Patience:
    """How long a question waits for its answer, and why it had none.

    An answer that may take long, such as a history that is downloaded first, is waited for as long as the server's
    health has nothing against it.
    """

    def __init__(self, settings, seconds):
        self.seconds, self.answer_s = seconds, seconds * ANSWER_SHARE
        self._settings, self._error = settings, None

    def look(self):
        """Nothing came for a while. Raises RequestTimeout where the server or its terminal stands still."""
        told = self._troubles()
        if told:
            self._error = self._silent(told)
            raise self._error

    def over(self, error):
        """The error of a question without an answer, with what is known of the reason."""
        if self.seconds == math.inf:
            return error
        return self._error or self._silent(self._troubles())

    def _silent(self, told):
        message = '%g 秒内没有回答%s' % (self.seconds, '：' + '；'.join(told) if told else '')
        return RequestTimeout(message, '等得更久：--patience 60；%s' % SILENCE_REMEDY, retryable=False)

    def _troubles(self):
        settings = self._settings
        connection = ShortConnection(settings.host, settings.port, settings.token, settings.tls_cert, retries=0,
                                     request_timeout=max(0.1, self.seconds * (1 - ANSWER_SHARE)))
        try:
            with contextlib.closing(connection):
                return qmt_troubles(connection.request('admin.health')['value'])
        except BulletError as error:
            return ['服务端也没有说自己的状态（%s）' % printable(error.message)]


def qmt_troubles(health):
    """What is wrong between a server and its terminal, by its health: Chinese lines, none where all is well."""
    qmt = health.get('qmt') or {}
    parts = [('行情', qmt.get('data') or {})]
    parts += [('账户 %s' % key, account) for key, account in (qmt.get('accounts') or {}).items()]
    return ['%s %s' % (name, trouble) for name, part in parts for trouble in [_trouble_of(part)] if part and trouble]


def _trouble_of(part):
    stuck, waiting_s = part.get('hung_calls') or part.get('hung') or 0, part.get('waiting_s') or 0
    if part.get('state') != 'connected':
        return '没有连上 QMT（%s）' % (part.get('last_error') or part.get('state'))
    if stuck:
        return '有 %d 个调用卡在 QMT 里' % stuck
    return '的一个调用 QMT 已经 %d 秒没有回应' % waiting_s if waiting_s >= STANDS_STILL_S else None


@contextlib.contextmanager
def _broker(args):
    with _client(args) as (settings, connection):
        yield RemoteQmtBroker(connection=connection, config={'account_key': settings.account_key,
                                                             'sub_account_id': settings.sub_account})


def _print_rows(rows, columns):
    """columns: (title, field or function of the row, '<' or '>')."""
    if not rows:
        print('（没有记录）')
        return
    fields = [field for _, field, _ in columns]
    cells = [[_cell(row.get(field) if isinstance(field, str) else field(row)) for field in fields] for row in rows]
    print('\n'.join(format_table([title for title, _, _ in columns], cells, [align for _, _, align in columns])))


def _cell(value):
    """Prices keep their two decimals, so that they line up; more are shown where there are more."""
    if value is None or value != value:
        return '-'
    return re.sub(r'(\.\d\d)(\d*?)0+$', r'\1\2', '%.4f' % value) if isinstance(value, float) else value


def _shares_of(name):
    """Whole shares: some sources count them in floats."""
    return lambda row: int(row[name]) if isinstance(row.get(name), float) and row[name] == row[name] else row.get(name)


def run_account(args):
    with _broker(args) as broker:
        info = broker.get_account_info()
    positions = [Position.from_wire(row) for row in info.pop('positions', None) or []]
    print(account_overview(Account.from_wire(info), positions, args.limit))
    return Exit.OK


def run_positions(args):
    with _broker(args) as broker:
        _print_rows(broker.get_positions(), [
            ('股票代码', 'security', '<'), ('名称', 'name', '<'), ('持仓', 'amount', '>'), ('可用', 'closeable_amount', '>'),
            ('成本价', 'avg_cost', '>'), ('现价', 'last_price', '>'), ('市值', 'market_value', '>')])
    return Exit.OK


_SIDE_NAMES = {'BUY': '买', 'SELL': '卖'}
_STATUS_NAMES = {'new': '未报', 'submitted': '已报', 'open': '已报', 'filling': '部成', 'canceling': '待撤', 'filled': '已成',
                 'partly_canceled': '部撤', 'canceled': '已撤', 'rejected': '废单', 'submit_unknown': '未知'}
_ORDER_COLUMNS = [
    ('委托号', 'order_id', '<'), ('时间', lambda row: _clock_text(row.get('order_time')), '<'), ('股票代码', 'security', '<'),
    ('方向', lambda row: _SIDE_NAMES.get(row.get('side'), row.get('side')), '<'), ('数量', 'amount', '>'),
    ('委托价', 'order_price', '>'), ('成交', 'filled', '>'), ('均价', 'avg_price', '>'),
    ('状态', lambda row: _status_name(row), '<'), ('备注', 'order_remark', '<'), ('说明', 'status_msg', '<')]


def _status_name(row):
    return _STATUS_NAMES.get(row.get('status'), row.get('status'))


def _clock_text(seconds):
    return '-' if not seconds else beijing_moment(seconds).strftime('%H:%M:%S')


def run_orders(args):
    with _broker(args) as broker:
        rows = (broker.get_open_orders if args.open else broker.get_orders)(security=args.security)
    _print_rows(rows, _ORDER_COLUMNS)
    return Exit.OK


def run_trades(args):
    with _broker(args) as broker:
        _print_rows(broker.get_trades(security=args.security), [
            ('成交号', 'trade_id', '<'), ('时间', 'time', '<'), ('委托号', 'order_id', '<'), ('股票代码', 'security', '<'),
            ('方向', lambda row: _SIDE_NAMES.get(row.get('side'), row.get('side')), '<'), ('数量', 'amount', '>'),
            ('价格', 'price', '>'), ('金额', 'deal_balance', '>'), ('佣金(含过户费)', 'commission', '>'), ('印花税', 'tax', '>')])
    return Exit.OK


def run_quote(args):
    with _client(args) as (_, connection):
        provider = RemoteQmtProvider(connection=connection)
        rows = [dict(provider.get_live_current(code), security=code) for code in args.security]
    _print_rows(rows, [
        ('股票代码', 'security', '<'), ('名称', 'name', '<'), ('现价', 'last_price', '>'), ('昨收', 'pre_close', '>'),
        ('今开', 'open', '>'), ('最高', 'high', '>'), ('最低', 'low', '>'), ('涨停', 'high_limit', '>'),
        ('跌停', 'low_limit', '>'), ('成交量', _shares_of('volume'), '>'),
        ('停牌', lambda row: '是' if row.get('paused') else '', '<'), ('时间', 'dt', '<')])
    return Exit.OK


def run_history(args):
    fields = args.fields.split(',') if args.fields else None
    count = 20 if args.count is None and not args.start else args.count
    payload = {'security': args.security, 'start': args.start, 'end': args.end, 'count': count, 'fields': fields,
               'frequency': args.frequency, 'fq': None if args.fq == 'none' else args.fq}
    with _client(args) as (_, connection):
        table = Table.from_wire(connection.request('data.history', payload))
    _print_rows(table.rows(), [(name, _shares_of(name) if name == 'volume' else name, '>') for name in table.columns])
    return Exit.OK


def run_order(args):
    if args.market == (args.price is not None):
        raise ConfigError('要么给出 --price（限价），要么给出 --market（市价）', '市价委托可以用 --protect-price 限定最差价格')
    if args.protect_price is not None and not args.market:
        raise ConfigError('--protect-price 只用于市价委托', '限价委托的最差价格就是 --price')
    style = order_style(args.protect_price if args.market else args.price, args.market)
    key = new_key('cli') if args.key is None else args.key
    with _broker(args) as broker, _key_in_mind(key, args):
        _tell_before_sending('提交委托，idempotency_key=%s' % key)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ServerWarning)  # told below
            answer = broker.place_order(args.security, args.side.upper(), args.amount, style, args.wait, args.remark,
                                        key)
    with _telling_what_came('委托 %s，%s' % (answer.get('order_id'), _status_name(answer))):
        _print_rows([answer], _ORDER_COLUMNS)
    if warning_in(answer):
        _say('服务端警告：%s' % warning_in(answer))
    return Exit.FAILED if came_to_nothing(answer) else Exit.OK


@contextlib.contextmanager
def _key_in_mind(key, args):
    """Ctrl-C ends the waiting, not the order. Where no login came about nothing was sent: all else is unknown."""
    try:
        yield
    except ConnectionLost:
        _say('没有登录成功，没有发出任何%s。' % ('撤单' if _is_about_cancel(args) else '委托'))
        raise
    except KeyboardInterrupt:
        _say('不再等待，但%s可能已经提交。%s' % ('撤单' if _is_about_cancel(args) else '委托', _how_to_ask(key, args)))
        raise


def run_cancel(args):
    key = new_key('cli') if args.key is None else args.key
    with _broker(args) as broker, _key_in_mind(key, args):
        canceled = broker.cancel_order(args.order_id, idempotency_key=key)
    outcome = ('已撤单 %s' if canceled else '没有撤成：委托 %s 已经是最终状态，用 orders 命令查看') % args.order_id
    with _telling_what_came(outcome):
        print(outcome)
    return Exit.OK if canceled else Exit.FAILED


_OUTCOMES = {'accepted': '已到柜台', 'rejected': '没有成立', 'reconciling': '正在核对，稍后再查', 'submit_unknown': '仍然未知'}


def run_resolve(args):
    """What became of an order or a cancel: OK, FAILED or UNKNOWN."""
    if args.cancel and args.abandon:
        raise ConfigError('撤单的 key 不能作废', '去掉 --cancel 或 --abandon；撤单用同一个 key 重发不会撤两次')
    with _broker(args) as broker:
        answer, is_cancel = _find_submission(broker, args)
    state, message = answer.get('submission_state'), answer.get('status_msg')
    outcome = '%s%s%s' % ('这个 key 是撤单的。' if is_cancel and not args.cancel else '', _OUTCOMES.get(state, state),
                          '：%s' % message if message else '')
    with _telling_what_came(outcome):
        print(outcome)
        if answer.get('resolved_result'):
            _print_rows([answer['resolved_result']], _ORDER_COLUMNS)
    if answer.get('seen') is False:
        _say('建议：%s' % _about_unseen(args))
    return {'accepted': Exit.OK, 'rejected': Exit.FAILED}.get(state, Exit.UNKNOWN)


def _find_submission(broker, args):
    """(the server's answer, whether it is about a cancel): a key that no order came with may be a cancel's."""
    placed = None if args.cancel else broker.resolve_submission(args.key, PLACE)
    if placed is not None and placed.get('seen') is not False:
        return placed, False
    canceled = broker.resolve_submission(args.key, CANCEL)
    if args.cancel or canceled.get('seen') is not False:
        if args.abandon:
            raise ConfigError('这个 key 是撤单的，不能作废', '去掉 --abandon；撤单用同一个 key 重发不会撤两次')
        return canceled, True
    return (broker.resolve_submission(args.key, PLACE, abandon_unseen=True) if args.abandon else placed), False


def _about_unseen(args):
    spelling = '检查 key 的拼写（下单、撤单时打印的那个）和服务端、账户是不是当时的'
    if args.cancel:
        return spelling + '；确认没有发出过，就再撤一次'
    if args.abandon:
        return spelling + '；还不能作废：柜台当日的委托没有到齐，稍后再试'
    return spelling + '；确认没有发出过，加上 --abandon 让它作废，再用新的 key 下单'


def run_call(args):
    try:
        payload = json.loads(args.payload)
    except ValueError as error:
        raise ConfigError('PAYLOAD 不是合法的 JSON：%s' % error, '例如 \'{"security": "000001.XSHE"}\'')
    if not isinstance(payload, dict):
        raise ConfigError('PAYLOAD 应为 JSON 对象', '例如 \'{"security": "000001.XSHE"}\'')
    with _client(_with_patience(args)) as (settings, connection):
        payload = _with_account(args.action, payload, settings)
        long_s = settings.rpc_timeout if args.action in QUESTIONS and args.action != 'data.history' else None
        answer = connection.request(args.action, payload, long_s)
    with _telling_what_came(args.action):
        print(_json_text(answer.to_wire() if isinstance(answer, Table) else answer))
    return Exit.OK


QUESTIONS = {'broker.account', 'broker.positions', 'broker.orders', 'broker.trades', 'broker.order_status'} | {
    action for action in ACTIONS if action.startswith('data.')}


def _with_patience(args):
    """A question ends when QMT stands still; whatever else is called has the time that the server takes for it."""
    if args.action in QUESTIONS:
        return args
    if args.patience is not None:
        raise ConfigError('--patience 只用于查询，%s 不是' % brief(args.action), '它最多等 --rpc-timeout')
    return argparse.Namespace(**dict(vars(args), patience=math.inf))


def _json_text(value):
    """Where the console lacks a character, the escape is JSON's own."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return text if as_shown(text) == text else json.dumps(value, indent=2)


def _with_account(action, payload, settings):
    """An order meant for a sub-account must not go to the account because the payload leaves it out."""
    if not action.startswith('broker.') and action != 'admin.print_account':
        return payload
    named = {'account_key': settings.account_key, 'sub_account_id': settings.sub_account}
    return dict(payload, **{name: value for name, value in _given_values(**named).items() if payload.get(name) is None})


def run_env(args):
    """The template on stdout, or in a new UTF-8 file: a Windows shell would redirect it in another encoding."""
    if args.write is None:
        print(dotenv_template(), end='')
        return Exit.OK
    try:
        with io.open(args.write, 'x', encoding='utf-8') as file:
            file.write(dotenv_template())
        restrict_to_owner(args.write)
    except OSError as error:
        raise ConfigError('不能写 %s：%s' % (args.write, error), '已有的文件不会被覆盖，换一个文件名')
    print('已写入 %s' % args.write)
    return Exit.OK


# -- autostart -----------------------------------------------------------------------------------------------------
def run_install_task(args):
    """The server of these settings starts by itself from now on; with --print only what would be installed is shown."""
    system = autostart_system()
    plan = _checked_autostart(args)
    if args.print:
        print(system.text(plan), end='')
        return Exit.OK
    before = system.install(plan)
    print('%s %s：%s' % ('已替换' if before else '已登记', plan.name, shell_line(plan.words)))
    for title, text in [('工作目录', plan.folder), ('日志', plan.log)] + system.advice(plan) + [
            ('检查', 'python bullet_qmt.py doctor（启动之后）'),
            ('取消', 'python bullet_qmt.py uninstall-task%s' % _unless_default(plan.name))]:
        print('  %s  %s' % (pad(title, 8), text))
    return Exit.OK


def run_uninstall_task(args):
    if autostart_system().remove(args.name):
        print('已取消 %s，它启动的服务端已停止；设置、日志和委托日志都还在' % args.name)
    else:
        print('没有登记过 %s，什么也没有做' % args.name)
    return Exit.OK


def _unless_default(name):
    return '' if name == AUTOSTART_NAME else ' --name ' + name


def _checked_autostart(args):
    """The Autostart of the command. What `server` would refuse is refused now: at log-on nobody sees it."""
    settings = settings_from(args)
    refuse_idle_options(settings)
    _refuse_what_is_not_there_at_log_on(settings, args)
    server_tls(check_server_settings(settings))
    arguments, log = ['server'], os.path.abspath(settings.log_file or AUTOSTART_LOG)
    if args.env_file:
        arguments += ['--env-file', os.path.abspath(env_file_path(args.env_file))]
    for option in options_of(*args.groups):
        text = getattr(args, option.name, None)
        if text is not None and option.name != 'log_file':
            arguments.append(option.flags[text == '0'] if option.is_switch else '%s=%s' % (option.flags[0], text))
    return autostart_of(args.name, arguments + ['--log-file', log], log)


def _refuse_what_is_not_there_at_log_on(settings, args):
    if settings.sources['token'] == '命令行' != settings.sources['token_file']:
        raise ConfigError('口令不能写在命令行上：登记的内容本机别人看得到',
                          '写进当前目录的 .env（QMT_SERVER_TOKEN=...），或放进文件，用 --token-file')
    here = [option.env for option in options_of(*args.groups) if settings.sources.get(option.name) == '环境变量']
    here += ['BT_ENV_FILE'] * (not args.env_file and bool(os.environ.get('BT_ENV_FILE')))
    if here:
        raise ConfigError('%s 是这个窗口的环境变量，自动启动的服务端看不到' % '、'.join(here),
                          '写进当前目录的 .env（python bullet_qmt.py env --write .env 给出模板）；BT_ENV_FILE 改用 --env-file')
    if settings.token is None:
        raise ConfigError('没有口令：每次随机生成的口令没有人看得到',
                          '在当前目录的 .env 里写一行，例如 QMT_SERVER_TOKEN=%s' % secrets.token_urlsafe(24))


# -- doctor --------------------------------------------------------------------------------------------------------
def run_doctor(args):
    """Each step that a connection takes, with the remedy for the first that fails."""
    with _client(args) as (settings, connection):
        left_s, health = _time_left(DOCTOR_S), {}
        steps = [('端口可达', lambda: _check_port(connection.endpoint, left_s())),
                 ('TLS' if settings.tls_cert else '明文连接', lambda: _check_tls(connection.endpoint, left_s())),
                 ('口令与协议', lambda: _check_login(connection.endpoint, left_s(LOGIN_STEP_S))),
                 ('服务', lambda: _check_health(connection, left_s(), health)),
                 ('QMT', lambda: _check_qmt(health.get('qmt'), settings.account_key)),
                 ('账户', lambda: _check_account(settings, connection, left_s())),
                 ('延迟', lambda: _check_latency(settings, left_s))]
        print('检查 %s' % connection.endpoint)
        for title, check in steps:
            try:
                found = check()
                if found is not None:
                    print('  [正常] %s：%s' % (title, found))
            except BulletError as error:
                print('  [失败] %s：%s' % (title, error.message))
                error.hint = error.hint or SILENCE_REMEDY
                if not health:
                    _show_local_terminal(args, settings)
                raise
    return Exit.OK


# All steps together, and each of them; the login, where a wrong token may have to wait. Silence is a finding, too.
DOCTOR_S, STEP_S, LOGIN_STEP_S = 14.0, 5.0, 8.0
SILENCE_REMEDY = ('服务端接受了登录却不回答：看运行它的窗口是不是停住了（按过 Ctrl-S 就按 Ctrl-Q；Windows 上点过窗口就按回车），'
                  'QMT 终端是不是没有响应或在等人点对话框；看它的日志停在哪里，仍没有回答就重启服务端')


def _time_left(total_s):
    """(most seconds) -> seconds for the next step."""
    end = time.monotonic() + total_s
    return lambda most_s=STEP_S: max(0.05, min(most_s, end - time.monotonic()))


def _check_port(endpoint, timeout_s):
    endpoint.open_socket(timeout_s).close()
    return '%s:%s 已连通' % (endpoint.host, endpoint.port)


def _check_tls(endpoint, timeout_s):
    sock = endpoint.secure(endpoint.open_socket(timeout_s), timeout_s)
    name = sock.version() if isinstance(sock, ssl.SSLSocket) else '没有加密；只应在本机或隧道内使用'
    sock.close()
    return name


def _check_login(endpoint, timeout_s):
    channel, ack = endpoint.dial(timeout_s)
    channel.close()
    return '登录成功，协议 %s，特性 %s' % (ack.get('protocol'), '、'.join(ack.get('features') or []))


def _check_health(connection, timeout_s, seen):
    """Fills `seen` with the answer."""
    value = connection.request('admin.health', timeout=timeout_s)['value']
    seen.update(value)
    return '后端 %s，账户 %s，已运行 %d 秒' % (value.get('backend_type', '?'), '、'.join(value.get('accounts', [])),
                                     value.get('uptime_seconds', 0))


def _check_qmt(qmt, account_key):
    """What a server says of its terminal; None of one that has none."""
    if not qmt:
        return None
    asked = [account_key] if account_key in qmt['accounts'] else list(qmt['accounts'])
    for key in asked:
        finding = qmt_diagnosis(qmt_facts(qmt, key))
        if finding.kind != 'ok':
            raise QmtUnavailable('账户 %s：%s' % (key, finding.message), finding.hint)
    return '账户 %s 已连接，行情已连接' % '、'.join(asked)


def _show_local_terminal(args, settings):
    """Where no server tells: what this machine shows of the terminals that its own settings name."""
    specs = _local_accounts(args) if names_this_machine(settings.host) else []
    if not specs:
        return
    machine = QmtMachine(Clock(), open_client=qmt_client_opener())
    for spec in specs:
        finding = qmt_diagnosis(qmt_local_facts(spec, machine))
        print('  [本机] QMT 账户 %s：%s%s' % (spec.key, finding.message, finding.hint and '\n         建议：' + finding.hint))
    machine.close()


def _local_accounts(args):
    """Accounts with a folder, by the settings of a server on this machine; none where there are no such settings."""
    try:
        server = load_settings(['server'], {'env_file': getattr(args, 'env_file', None)})
        return [spec for spec in account_specs(server) if spec.data_path] if server.server_type == 'qmt' else []
    except ConfigError:
        return []


def _check_account(settings, connection, timeout_s):
    connection.request_timeout = timeout_s
    broker = RemoteQmtBroker(connection=connection, config={'account_key': settings.account_key,
                                                            'sub_account_id': settings.sub_account})
    info = broker.get_account_info()
    return '%s 总资产 %s' % (info['account_id'], '{:,.2f}'.format(info['total_value']))


def _check_latency(settings, left_s):
    with RemoteQmtConnection(settings.host, settings.port, settings.token, settings.tls_cert,
                             connect_timeout=left_s()) as connection:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            connection.request('admin.health', timeout=left_s())
            times.append(time.perf_counter() - start)
    return '一次请求 %.2f 毫秒（9 次的中位数）' % (sorted(times)[4] * 1000)


_CONNECT_NAMES = ('host', 'port', 'token', 'tls_cert', 'rpc_timeout', 'compress')  # what connect() takes


# -- backtest ------------------------------------------------------------------------------------------------------
def run_backtest(args):
    """What jq_helper's strategy runtime makes of the command."""
    helper, settings = importlib.import_module('jq_helper'), settings_from(args)
    if args.dask and not args.grid:
        raise ConfigError('--dask 只用于参数扫描', '加上 --grid 名称=值,值，或去掉 --dask')
    if args.log and args.grid:
        raise ConfigError('参数扫描不写策略的日志，--log 不起作用', '去掉 --log；要看某一组的日志，用 --param 单独回测它')
    config = {name: getattr(settings, name) for name in _CONNECT_NAMES}
    order = helper.BacktestOrder(
        args.strategy, args.start, args.end, args.cash, args.frequency, args.benchmark,
        helper.parse_params(args.param), args.provider or settings.data_provider, _given_values(**config),
        'continue' if args.keep_going else 'stop', args.output, not args.no_html, not args.no_csv)
    with _strategy_log(args.log) as log:
        screen = helper.Screen(_write_out, is_terminal(sys.stdout), log)
        with RUNS.added('回测'):  # the processes of a grid know it from the start
            if args.grid:
                return Exit(helper.run_grid_command(order, helper.parse_grid(args.grid), screen, args.dask))
            return Exit(helper.run_backtest_command(order, screen))


def _write_out(text):
    print(text, end='', flush=True)


@contextlib.contextmanager
def _strategy_log(path):
    """Lines of a backtest: it waits for its file, and loses none of them."""
    if path is None:
        yield None
        return
    try:
        file = io.open(path, 'w', buffering=1, encoding='utf-8')
    except OSError as error:
        raise ConfigError('日志文件 %s 打不开：%s' % (path, error), '检查 --log')
    with file:
        yield file


# -- live ----------------------------------------------------------------------------------------------------------
def run_live(args):
    """What jq_helper's strategy runtime makes of the command. Ctrl-C and SIGTERM let the current job finish."""
    helper, settings = importlib.import_module('jq_helper'), settings_from(args)
    config = {name: getattr(settings, name) for name in _CONNECT_NAMES + ACCOUNT_OPTIONS}
    source = args.data_provider or settings.data_provider
    if source != 'qmt-remote':
        raise ConfigError('实盘的行情只能来自 qmt-remote，DEFAULT_DATA_PROVIDER 是 %s' % brief(source),
                          '加上 --data-provider qmt-remote')
    stem = os.path.splitext(os.path.basename(args.strategy))[0]
    limits = helper.RiskLimits(args.max_order_value, args.max_orders, args.max_cancels, args.max_holdings)
    order = helper.LiveOrder(
        args.strategy, args.frequency, helper.parse_params(args.param), _given_values(**config),
        args.runtime_dir or os.path.join('live', stem), args.dry_run, args.order_wait, limits, args.late_limit,
        args.overview_every, 'continue' if args.keep_going else 'stop')
    stop = StopSignal().install()
    with mouse_pauses_nothing(), _live_log(args.log) as log:
        screen = helper.Screen(_write_out, False, log)
        screen.note('%s %s；%s' % (log_time(time.time()), told_version(), told_options(settings, args)))
        with _warnings_told(screen.tell):
            return Exit(helper.run_live_command(order, screen, lambda: stop.wait(0) and stop.reason))


@contextlib.contextmanager
def _warnings_told(tell):
    """What the connection warns of belongs to the story of a run."""
    kept, handler = (LOG.handlers[:], LOG.propagate), _TellingHandler(tell)
    LOG.handlers[:], LOG.propagate = [handler], False
    try:
        yield
    finally:
        LOG.handlers[:], LOG.propagate = kept


class _TellingHandler(logging.Handler):
    def __init__(self, tell):
        super().__init__(logging.WARNING)
        self._tell = tell
        self.setFormatter(_LogFormatter('%(asctime)s %(levelname)s %(message)s'))

    def emit(self, record):
        try:
            self._tell(self.format(record))
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def _live_log(path):
    """A text file that nobody waits for; None without a path."""
    if path is None:
        yield None
        return
    writer = _file_writer(path, '--log')
    with contextlib.closing(writer):
        yield io.TextIOWrapper(WriterStream(writer), 'utf-8', 'backslashreplace', line_buffering=True)


# -- the commands: name -> (function, help, option groups, arguments) ------------------------------------------------
def _argument(*flags, **options):
    return flags, options


def _parsed(parse, expected=None):
    """A type for argparse of a parser that says what it expects."""
    def convert(text):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError('的值 %s 无效：%s' % (brief(text), expected or error))
    return convert


def _choice(*allowed):
    return {'type': _parsed(one_of(*allowed)), 'metavar': '|'.join(allowed)}


_positive, _minutes = _parsed(whole(1, 10 ** 7)), _parsed(whole(0, 1440))
_positive_yuan, _seconds = _parsed(real(0.01, 1e12)), _parsed(real(0, 600))
_shares, _number = _parsed(int, '应为整数，例如 100'), _parsed(float, '应为数字，例如 10.5')
_SECURITY = _argument('security', metavar='CODE', help='证券代码，如 000001.XSHE')
_OF_SECURITY = _argument('--security', metavar='CODE', help='只看这个证券')
_path = _parsed(parse_path)
_PATIENCE = _argument('--patience', type=_parsed(real(0.1, 3600)), metavar='SECONDS',
                      help='没有回答，或 QMT 没有连上时，最多等几秒（默认 5；设了 --rpc-timeout 就按它）')
_AUTOSTART_NAME = _argument('--name', type=_parsed(parse_task_name), default=AUTOSTART_NAME, metavar='NAME',
                            help='任务或服务的名称（默认 %s）' % AUTOSTART_NAME)
_IDEMPOTENCY = _argument('--key', metavar='KEY', help='idempotency_key；重试同一笔时用同一个')

_OF_ACCOUNT = ('client', 'account')  # the option groups of commands that concern an account

COMMANDS = OrderedDict([
    ('server', (run_server, '启动服务端', ('server', 'stub'), [])),
    ('env', (run_env, '打印带注释的 .env 模板', (), [
        _argument('--write', type=_path, metavar='FILE', help='写进这个新文件（UTF-8），而不是打印')])),
    ('install-task', (run_install_task, '让服务端自动启动：Windows 任务计划程序的任务，Linux 的 systemd 用户服务', ('server', 'stub'), [
        _AUTOSTART_NAME, _argument('--print', action='store_true', help='只显示要登记的内容')])),
    ('uninstall-task', (run_uninstall_task, '取消 install-task 登记的，停止它启动的服务端', (), [_AUTOSTART_NAME])),
    ('doctor', (run_doctor, '检查与服务端的连接，指出问题和解决办法', _OF_ACCOUNT, [])),
    ('account', (run_account, '账户总览：资金与持仓', _OF_ACCOUNT, [
        _argument('--limit', type=_positive, default=20, metavar='N', help='最多显示几只持仓（默认 20）'), _PATIENCE])),
    ('positions', (run_positions, '持仓', _OF_ACCOUNT, [_PATIENCE])),
    ('orders', (run_orders, '当日委托', _OF_ACCOUNT, [
        _OF_SECURITY, _argument('--open', action='store_true', help='只看未完成的'), _PATIENCE])),
    ('trades', (run_trades, '当日成交', _OF_ACCOUNT, [_OF_SECURITY, _PATIENCE])),
    ('quote', (run_quote, '实时行情', ('client',), [
        _argument('security', nargs='+', metavar='CODE', help='证券代码'), _PATIENCE])),
    ('history', (run_history, '历史行情', ('client',), [
        _SECURITY, _argument('--start', metavar='DATE', help='开始日期或时间'),
        _argument('--end', metavar='DATE', help='结束日期或时间（默认现在）'),
        _argument('--count', type=_positive, metavar='N', help='最后 N 条（默认 20）'),
        _argument('--frequency', default='1d', metavar='F', help='1d、1m、5m、60m、1w、1M ...（默认 1d）'),
        _argument('--fields', metavar='F,...', help='字段（默认 open,close,high,low,volume,money）'),
        _argument('--fq', default='pre', help='复权（默认 pre）', **_choice('pre', 'post', 'none')), _PATIENCE])),
    ('order', (run_order, '下单', _OF_ACCOUNT, [
        _SECURITY, _argument('side', help='buy 买，sell 卖', **_choice('buy', 'sell')),
        _argument('amount', type=_shares, metavar='AMOUNT', help='数量（股）'),
        _argument('--price', type=_number, metavar='YUAN', help='限价'),
        _argument('--market', action='store_true', help='市价'),
        _argument('--protect-price', type=_number, metavar='YUAN', help='市价委托的最差成交价'),
        _argument('--wait', type=_number, default=5.0, metavar='SECONDS', help='等待结果的秒数（默认 5）'),
        _argument('--remark', metavar='TEXT', help='备注'), _IDEMPOTENCY])),
    ('cancel', (run_cancel, '撤单', _OF_ACCOUNT, [_argument('order_id', metavar='ORDER_ID', help='委托号'), _IDEMPOTENCY])),
    ('resolve', (run_resolve, '查询一个 idempotency_key 的委托或撤单的结果', _OF_ACCOUNT, [
        _argument('key', metavar='KEY', help='下单时打印的 idempotency_key'),
        _argument('--cancel', action='store_true', help='这个 key 是撤单的'),
        _argument('--abandon', action='store_true', help='服务端没有收到过的委托就此作废，迟到的也不会提交')])),
    ('backtest', (run_backtest, '回测一个聚宽策略', ('client',), [
        _argument('strategy', type=_path, metavar='FILE', help='策略文件'),
        _argument('--start', required=True, metavar='DATE', help='开始日期'),
        _argument('--end', required=True, metavar='DATE', help='结束日期（包含）'),
        _argument('--cash', type=_number, default=1000000.0, metavar='YUAN', help='初始资金（默认 1000000）'),
        _argument('--frequency', default='day', help='按日或按分钟运行（默认 day）', **_choice('day', 'minute')),
        _argument('--benchmark', metavar='CODE', help='基准（默认由策略设置，没有设置时为 000300.XSHG）'),
        _argument('--param', action='append', metavar='NAME=VALUE', help='策略参数，可多次给出：g.NAME 以及同名的模块常量'),
        _argument('--grid', action='append', metavar='NAME=V,V', help='参数扫描，可多次给出：所有组合各回测一次'),
        _argument('--dask', metavar='ADDRESS', help='参数扫描改在 dask 集群上运行，如 tcp://host:8786'),
        _argument('--output', type=_path, metavar='DIR', help='结果目录（默认 backtests/策略_开始_结束）'),
        _argument('--log', type=_path, metavar='FILE', help='策略的日志写进这个文件，而不是屏幕'),
        _argument('--no-html', action='store_true', help='不写 report.html'),
        _argument('--no-csv', action='store_true', help='不写 CSV 文件'),
        _argument('--keep-going', action='store_true', help='策略出错后继续运行（默认中止）'),
        _argument('--data-provider', dest='provider', metavar='qmt-remote|stub|csv:DIR',
                  help='行情来源（默认 DEFAULT_DATA_PROVIDER）')])),
    ('live', (run_live, '实盘运行一个聚宽策略', _OF_ACCOUNT, [
        _argument('strategy', type=_path, metavar='FILE', help='策略文件'),
        _argument('--broker', help='交易通道（默认 DEFAULT_BROKER）', **_choice('qmt-remote')),
        _argument('--data-provider', help='行情来源（默认 DEFAULT_DATA_PROVIDER）', **_choice('qmt-remote')),
        _argument('--runtime-dir', type=_path, metavar='DIR', help='运行目录：状态、锁、停止文件（默认 live/策略名）'),
        _argument('--frequency', default='day', help='按日或按分钟运行（默认 day）', **_choice('day', 'minute')),
        _argument('--param', action='append', metavar='NAME=VALUE', help='策略参数，可多次给出：g.NAME 以及同名的模块常量'),
        _argument('--dry-run', action='store_true', help='演练：什么都照做，只是不发出委托和撤单'),
        _argument('--max-order-value', type=_positive_yuan, metavar='YUAN', help='每笔委托的金额上限'),
        _argument('--max-orders', type=_positive, metavar='N', help='每天的委托笔数上限'),
        _argument('--max-cancels', type=_positive, metavar='N', help='每天的撤单次数上限'),
        _argument('--max-holdings', type=_positive, metavar='N', help='同时持有的证券数上限'),
        _argument('--order-wait', type=_seconds, default=16.0, metavar='SECONDS', help='下单后等结果的秒数（默认 16）'),
        _argument('--late-limit', type=_seconds, default=300.0, metavar='SECONDS',
                  help='任务最多晚多少秒还补做、还能下单（默认 300）'),
        _argument('--overview-every', type=_minutes, default=0, metavar='MINUTES', help='每隔多少分钟显示账户总览（默认不）'),
        _argument('--log', type=_path, metavar='FILE', help='策略的日志写进这个文件（接在后面），而不是屏幕'),
        _argument('--keep-going', action='store_true', help='策略出错后继续运行（默认停止）')])),
    ('call', (run_call, '直接调用一个 action，打印 JSON', _OF_ACCOUNT, [
        _argument('action', metavar='ACTION', help='例如 data.snapshot'),
        _argument('payload', nargs='?', default='{}', metavar='PAYLOAD', help='JSON 对象（默认 {}）'), _PATIENCE])),
])


UNHINDERED = (run_server, run_live)  # what prints there holds up nobody's money


def program():
    """main() as a program of its own: the window of a double click stays until what went wrong was read."""
    try:
        code = main()
        is_told = code not in (Exit.OK, Exit.INTERRUPTED)
    except SystemExit as error:  # help, or a wrong call
        code, is_told = error.code, True
    if is_told and owns_window():
        _wait_for_enter()
    sys.exit(code)


def _wait_for_enter():
    with contextlib.suppress(OSError, KeyboardInterrupt):
        print('\n这个程序要在命令行窗口里运行。按回车键关闭窗口 ...', flush=True)
        sys.stdin.readline()


if __name__ == '__main__':
    RUNS.for_good = True  # also timers and exit handlers of a strategy reach no account
    program()
