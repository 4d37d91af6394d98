"""The two native modules of xtquant, `xtpythonclient` and `datacenter`, replaced: the vendor's Python layer above them
is its own, unmodified.

`install(gateway)` before the first import of xtquant; again to move to another terminal. A gateway has
open(kind, hello, deliver) -> link with request(token, name, args) and close(): a Terminal, or one in another process.
`made` counts the clients that were made, started and stopped, and their connects: each client made costs handles,
sockets and shared memory that its stop() does not give back (XTQUANT.md, Trading 3).
Whatever tries to import `requests` (XTQUANT.md, Data 11: the vendor asks a package registry on import) is refused and
counted in `trap.attempts`.
"""
import importlib.abc
import itertools
import json
import os
import queue
import struct
import sys
import threading
import types
from collections import Counter

import bullet_qmt
from tests.terminal.bars import stamp
from tests.terminal.structs import Structs, request_row

TRADE_MODULE, DATA_MODULE = 'xtquant.xtpythonclient', 'xtquant.datacenter'


class RequestsTrap(importlib.abc.MetaPathFinder):
    """Refuses `import requests` and counts the attempts."""

    def __init__(self):
        self.attempts = 0

    def find_spec(self, name, path=None, target=None):
        if name == 'requests':
            self.attempts += 1
            raise ImportError('no request may leave the tests')


trap, made = RequestsTrap(), Counter()


class _Binding:
    gateway = listening = None


def install(gateway):
    """Native modules in place, speaking to this gateway; a client of xtdata that is still open is disconnected."""
    _Binding.gateway = gateway
    if TRADE_MODULE not in sys.modules:
        assert 'xtquant' not in sys.modules, 'xtquant was imported before the stand-in'
        sys.meta_path.insert(0, trap)
        sys.modules[TRADE_MODULE], sys.modules[DATA_MODULE] = _trade_module(), _data_module()
        _Binding.listening = staticmethod(bullet_qmt.qmt_listening)
        bullet_qmt.qmt_listening = lambda: True  # the stand-in has no port of the vendor's
    if 'xtquant.xtdata' in sys.modules:
        sys.modules['xtquant.xtdata'].disconnect()


def uninstall():
    """xtquant as if it had never been imported."""
    if 'xtquant.xtdata' in sys.modules:
        sys.modules['xtquant.xtdata'].disconnect()
    for name in [name for name in sys.modules if name.split('.')[0] == 'xtquant']:
        del sys.modules[name]
    if trap in sys.meta_path:
        sys.meta_path.remove(trap)
        bullet_qmt.qmt_listening = _Binding.listening


def real_listening():
    """bullet_qmt's look at the vendor's ports, which the stand-in replaces."""
    return _Binding.listening


def _trade_module():
    module = types.ModuleType(TRADE_MODULE)
    module.__dict__.update(Structs().classes, XtQuantAsyncClient=XtQuantAsyncClient)
    return module


def _data_module():
    module = types.ModuleType(DATA_MODULE)
    module.__dict__.update(IPythonApiClient=IPythonApiClient, rpc_init=lambda directory: 0,
                           register_create_nparray=lambda function: True, get_local_server_port=lambda: 0)
    return module


class Dispatcher:
    """A thread that runs callbacks one after the other."""

    def __init__(self, name):
        self._jobs = queue.Queue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, job, *args):
        self._jobs.put((job, args))

    def _run(self):
        for job, args in iter(self._jobs.get, None):
            job(*args)

    def close(self):
        """Callbacks already posted are run; joins, unless a callback itself asks."""
        self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()


class Port:
    """The client's end of a link: blocking questions, and messages handed to a dispatcher.

    handler(message) runs in the dispatcher's thread, for answers to `send` and for pushes. online turns False with
    the connection, before the handler hears of it, and never True again.
    """

    # A connection that never came about can be tried again; one that was there and is lost cannot.

    def __init__(self, name, kind, hello, handler):
        self.online, self._lost, self._closed, self._handler = False, False, False, handler
        self._dispatcher, self._lock = Dispatcher(name), threading.Lock()
        self._waiting, self._tokens = {}, itertools.count(-1, -1)
        self._admitted, self._what = False, (kind, hello)
        self._open()

    def _open(self):
        try:
            self._link = _Binding.gateway.open(self._what[0], self._what[1], self._receive)
        except OSError:
            self._link = None

    def renew(self):
        """Before another attempt: a link that broke before the terminal let us in is made anew."""
        if not self._admitted and (self._lost or self._link is None):
            if self._link is not None:
                self._link.close()
            self._lost = False
            self._open()

    def connected(self):
        """The terminal has let us in."""
        with self._lock:
            self.online, self._admitted = not self._lost, True

    def ask(self, name, *args):
        """The answer. Blocks for as long as the terminal does not answer; RuntimeError where it cannot."""
        token, box = next(self._tokens), queue.Queue()
        with self._lock:
            self._waiting[token] = box
        self.send(token, name, args)
        value = box.get()
        if isinstance(value, Exception):
            raise value
        return value

    def send(self, token, name, args):
        """A question whose answer comes to the handler, or never."""
        try:
            if self._link is None:
                raise OSError('no terminal')
            self._link.request(token, name, args)
        except OSError as error:
            self._receive(('failed', token, str(error)))

    def _receive(self, message):
        if message[0] == 'gone':
            if self._lose('the connection is gone'):
                return
        box = self._waiting.pop(message[1], None) if message[0] in ('answer', 'failed') else None
        if box is not None:
            box.put(message[2] if message[0] == 'answer' else RuntimeError(message[2]))
        elif not self._closed:
            self._dispatcher.post(self._handler, message)

    def _lose(self, text):
        """Blocking questions end. True: it was lost before."""
        with self._lock:
            before, self._lost, self.online = self._lost, True, False
            waiting, self._waiting = self._waiting, {}
        for box in waiting.values():
            box.put(RuntimeError(text))
        return before

    def close(self):
        self._closed = True
        if self._link is not None:
            self._link.close()
        self._lose('closed')
        self._dispatcher.close()


# -- xtpythonclient -----------------------------------------------------------------------------------------------
# WithSeq call -> request, and the callback that hears the answer with the struct of its rows.
_CALLS = {
    'subscribeWithSeq': ('subscribe', 'SubscribeReq', 'OnSubscribeRespCallback', None),
    'unsubscribeWithSeq': ('unsubscribe', 'UnsubscribeReq', 'OnUnsubscribeRespCallback', None),
    'orderStockWithSeq': ('order', 'OrderStockReq', 'OnOrderStockRespCallback', 'OrderStockResp'),
    'cancelOrderStockWithSeq': ('cancel', 'CancelOrderStockReq', 'OnCancelOrderStockRespCallback',
                                'CancelOrderStockResp'),
    'queryStockAssetWithSeq': ('asset', 'QueryStockAssetReq', 'OnQueryStockAssetCallback', 'XtAsset'),
    'queryStockOrdersWithSeq': ('orders', 'QueryStockOrdersReq', 'OnQueryStockOrdersCallback', 'XtOrder'),
    'queryStockTradesWithSeq': ('trades', 'QueryStockTradesReq', 'OnQueryStockTradesCallback', 'XtTrade'),
    'queryStockPositionsWithSeq': ('positions', 'QueryStockPositionsReq', 'OnQueryStockPositionsCallback',
                                   'XtPosition'),
    'queryAccountInfosWithSeq': ('infos', 'QueryAccountInfosReq', 'OnQueryAccountInfosCallback', 'XtAccountInfo'),
    'queryAccountStatusWithSeq': ('status', 'QueryAccountStatusReq', 'OnQueryAccountStatusCallback',
                                  'XtAccountStatus'),
}
# What the callbacks hear without a connection: -1 for what acts, None for what asks.
_FAILED = {'subscribeWithSeq': -1, 'unsubscribeWithSeq': -1, 'orderStockWithSeq': {'order_id': -1},
           'cancelOrderStockWithSeq': {'cancel_result': -1}}
_PUSHES = {'order': ('OnStockOrderCallback', 'XtOrder'), 'trade': ('OnStockTradeCallback', 'XtTrade'),
           'order_error': ('OnOrderErrorCallback', 'XtOrderError'),
           'cancel_error': ('OnCancelErrorCallback', 'XtCancelError'),
           'status': ('OnUpdateAccountStatusCallback', 'XtAccountStatus')}


class XtQuantAsyncClient:
    """xtpythonclient.XtQuantAsyncClient(path, name, session). One connection in its life; a lost one stays lost."""

    def __init__(self, path, name, session):
        if not isinstance(path, (bytes, str)) or not isinstance(name, str) or not hasattr(session, '__index__'):
            raise TypeError('__init__(): incompatible constructor arguments')
        path = path.decode('gb18030') if isinstance(path, bytes) else path
        self._hello = {'path': path, 'session': session.__index__()}
        self._callbacks, self._sent, self._seq = {}, {}, itertools.count(1)
        self._structs, self._port = Structs(), None
        made['clients'] += 1

    def __getattr__(self, name):
        if name.startswith('bindOn'):
            return lambda function: self._callbacks.__setitem__(name[4:], function)
        if name in _CALLS:
            return lambda seq, request: self._call(name, seq, request)
        raise AttributeError(name)

    def init(self):
        """Nothing to prepare."""

    def setTimeout(self, seconds):
        """The real one takes it as well, and its calls hang all the same."""

    def nextSeq(self):
        return next(self._seq)

    def start(self):
        made['started'] += 1
        self._port = Port('native-trade-%d' % self._hello['session'], 'trade', self._hello, self._hear)

    def stop(self):
        made['stopped'] += 1
        if self._port is not None:
            self._port.close()

    def connect(self):
        """0, or another number; blocks with a terminal that hangs. A path that is not there is made."""
        made['connects'] += 1
        self._leave_queue()
        self._port.renew()
        try:
            answer = self._port.ask('connect')
        except RuntimeError:
            return -1
        self._structs = Structs(answer['missing'], answer['snake'])
        if answer['code'] == 0:
            self._port.connected()
        return answer['code']

    def _leave_queue(self):
        """A file for each session, of 75 MB in reality; the paths of another system are left alone."""
        if os.path.isabs(self._hello['path']):
            os.makedirs(self._hello['path'], exist_ok=True)
            open(os.path.join(self._hello['path'], 'down_queue_%d' % self._hello['session']), 'ab').close()

    def _call(self, name, seq, request):
        call, kind, _, _ = _CALLS[name]
        if type(request).__name__ != kind or not hasattr(seq, '__index__'):
            raise TypeError('%s(): incompatible function arguments' % name)
        self._sent[seq] = name
        self._port.send(seq, call, request_row(request))

    def _hear(self, message):
        """In the thread of the callbacks."""
        if message[0] == 'answer':
            self._hear_answer(*message[1:])
        elif message[0] == 'failed':
            self._hear_answer(message[1], _FAILED.get(self._sent[message[1]]))
        elif message[0] == 'push':
            callback, kind = _PUSHES[message[1]]
            self._callbacks[callback](self._structs.make(kind, message[2]))
        elif message[0] == 'gone':
            self._callbacks['OnDisconnectedCallback']()

    def _hear_answer(self, seq, value):
        _, _, callback, kind = _CALLS[self._sent.pop(seq)]
        if kind and isinstance(value, dict):
            value = self._structs.make(kind, value)
        elif kind and value is not None:
            value = [self._structs.make(kind, row) for row in value]
        self._callbacks[callback](seq, value)


# -- datacenter ---------------------------------------------------------------------------------------------------
_COLUMNS = [('time', '<i8', 'q'), ('open', '<f8', 'd'), ('high', '<f8', 'd'), ('low', '<f8', 'd'),
            ('close', '<f8', 'd'), ('volume', '<i8', 'q'), ('amount', '<f8', 'd'), ('settelementPrice', '<f8', 'd'),
            ('openInterest', '<i8', 'q'), ('preClose', '<f8', 'd'), ('suspendFlag', '<i4', 'i')]
_DAILY = ('1d', '1w', '1mon', '1q', '1hy', '1y')


def _to_bson(value):
    """Exactly bytes: the vendor's layer tests for the type."""
    from xtquant import xtbson
    return bytes(xtbson.BSON.encode(value))


def _from_bson(data):
    from xtquant import xtbson
    if not isinstance(data, bytes):
        raise TypeError('incompatible function arguments: %r is no BSON' % (data,))
    return xtbson.BSON.decode(data)


def _checked(value, kind):
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError('incompatible function arguments: %r' % (value,))
    return value


def _checked_list(values):
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise TypeError('incompatible function arguments: %r' % (values,))
    return list(values)


def _pack(code, rows, fields, daily):
    """One entry of the 'v4' form: (code, index of str, [(field, dtype, little-endian bytes)])."""
    columns = [(name, dtype, struct.pack('<%d%s' % (len(rows), letter), *[row[name] for row in rows]))
               for name, dtype, letter in _COLUMNS if not fields or name in fields]
    return code, [stamp(row['time'], daily) for row in rows], columns


class IPythonApiClient:
    """datacenter.IPythonApiClient(), what xtdata calls of it."""

    def __init__(self):
        self._address, self._port, self._callbacks, self._keys = '', None, {}, itertools.count(1)
        self._lock, self._key_of_seq = threading.Lock(), {}

    # connection
    def init(self):
        return 0

    def load_config(self, path, section):
        return 0

    def set_config_addr(self, address):
        self._address = address

    def get_config_addr(self):
        return self._address

    get_peer_addr = get_config_addr

    def connect(self):
        self._port = Port('native-data', 'data', {}, self._hear)
        try:
            code, text = self._port.ask('data_connect')
        except RuntimeError as error:
            code, text = -1, str(error)
        if code == 0:
            self._port.connected()
        else:
            self._port.close()
        return code, text

    def is_connected(self):
        return self._port is not None and self._port.online

    def shutdown(self):
        if self._port is not None:
            self._port.close()

    def get_data_dir(self):
        return 'datadir'

    def get_app_dir(self):
        return '.'

    def get_server_tag(self):
        return _to_bson({'tag': 'sp3', 'version': '1.0'})

    def registerCommonControlCallback(self, name, callback):
        return True

    def commonControl(self, function, param):
        return _to_bson(self._port.ask('control', _checked(function, str), _from_bson(param)))

    # reading
    def get_market_data3(self, fields, codes, period, start, end, count, dividend, fill, version, from_local,
                         from_server, debug, data_dir):
        for value in (start, end):
            _checked(value, (str, int))
        history = self._port.ask('history', _checked_list(codes), _checked(period, str), start, end,
                                 _checked(count, int), _checked(dividend, str), bool(fill))
        fields = _checked_list(fields)
        if version == 'v4':
            return [_pack(code, history[code], fields, period in _DAILY) for code in codes]
        return {code: [_selected(row, fields) for row in history[code]] for code in codes}

    def get_full_tick(self, codes):
        return json.dumps(self._port.ask('full_tick', _checked_list(codes)))

    def get_trading_dates_by_market(self, market, start, end, count):
        return self._port.ask('trading_dates', _checked(market, str), _checked(start, str), _checked(end, str),
                              _checked(count, int))

    def get_holidays(self):
        return self._port.ask('holidays')

    def get_instrument_detail(self, code):
        detail = self._port.ask('detail', _checked(code, str))
        return b'' if detail is None else _to_bson(detail)

    def get_stock_type(self, code):
        return self._port.ask('stock_type', _checked(code, str))

    def get_stock_list_in_sector(self, name, moment):
        _checked(moment, int)
        return self._port.ask('sector', _checked(name, str))

    def get_sector_list(self):
        return self._port.ask('sectors')

    def get_weight_in_index(self, code):
        return self._port.ask('weights', _checked(code, str))

    def down_index_weight(self):
        self._port.ask('fetch_weights')

    def get_divid_factors(self, code, start, end):
        return self._port.ask('dividends', _checked(code, str), _checked(start, str), _checked(end, str))

    # downloads
    def supply_history_data(self, code, period, start, end):
        return self._port.ask('download', _checked(code, str), _checked(period, str), _checked(start, str),
                              _checked(end, str))

    def supply_history_data2(self, codes, period, start, end, param, on_progress):
        key = self._keep(on_progress)
        return self._port.ask('download2', key, _checked_list(codes), _checked(period, str), _checked(start, str),
                              _checked(end, str), _from_bson(param).get('metaid', -1))

    def stop_supply_history_data2(self):
        return True

    # quotes
    def subscribe_quote(self, meta, region, param, callback):
        meta = _from_bson(meta)
        _from_bson(region), _from_bson(param)
        return self._subscribe('subscribe_quote', callback, meta['stockCode'], meta['period'])

    def subscribe_whole_quote(self, codes, param, callback):
        _from_bson(param)
        return self._subscribe('subscribe_whole', callback, _checked_list(codes))

    def _subscribe(self, call, callback, *what):
        key = self._keep(callback)
        seq = self._port.ask(call, key, *what)
        with self._lock:
            self._key_of_seq[seq] = key
        return seq

    def unsubscribe_quote(self, seq):
        if not hasattr(seq, '__index__'):
            raise TypeError('unsubscribe_quote(): incompatible function arguments')
        with self._lock:
            self._callbacks.pop(self._key_of_seq.pop(seq, None), None)
        self._port.ask('unsubscribe_quote', seq.__index__())

    def _keep(self, callback):
        key = next(self._keys)
        with self._lock:
            self._callbacks[key] = callback
        return key

    def _hear(self, message):
        """In the thread of the callbacks."""
        if message[0] != 'push':
            return
        key, value = message[2]
        with self._lock:
            callback = self._callbacks.get(key)
        if callback:
            callback(_to_bson(value) if message[1] == 'quote' else _progress(value))


def _progress(step):
    return dict(step, result=_to_bson(step['result'])) if 'result' in step else step


def _selected(row, fields):
    return {name: row[name] for name in fields if name in row} if fields else row
