"""The peer's own server over its own stub exchange, as a worker in its environment, with as many bars as are asked for.

Bars go through its own encoder for QMT, ticks through its own poller. What the bars are made of is not on its bill.
"""
import asyncio
import functools
import threading
import time
import warnings

warnings.simplefilter('ignore')

import numpy  # noqa: E402
import pandas  # noqa: E402
from bullet_trade.server.adapters.base import AccountRouter  # noqa: E402
from bullet_trade.server.adapters.qmt import dataframe_to_payload  # noqa: E402
from bullet_trade.server.adapters.stub import build_stub_bundle  # noqa: E402
from bullet_trade.server.app import ServerApplication  # noqa: E402
from bullet_trade.server.config import AccountConfig, ServerConfig, TLSConfig  # noqa: E402

from tests.bench.timing import Pacer  # noqa: E402

RUNNING = {'pacer': None}


@functools.lru_cache(maxsize=8)
def bars(rows):
    """A random walk in cents, volumes in lots."""
    draw = numpy.random.default_rng(7)
    close = (2000 + numpy.cumsum(draw.integers(-1, 2, rows))) / 100
    volume = draw.integers(1, 9000, rows) * 100.0
    columns = {'open': close, 'close': close, 'high': close + 0.01, 'low': close - 0.01, 'volume': volume,
               'money': (close * volume).round(2)}
    return pandas.DataFrame(columns, index=pandas.date_range('2020-01-01 09:31', periods=rows, freq='min'))


@functools.lru_cache(maxsize=8)
def long_bars(codes, rows):
    parts = [bars(rows).rename_axis('time').reset_index() for _ in codes]
    for code, part in zip(codes, parts):
        part.insert(1, 'code', code)
    return pandas.concat(parts, ignore_index=True)


async def get_history(payload):
    security, rows = payload['security'], payload['count']
    return dataframe_to_payload(bars(rows) if isinstance(security, str) else long_bars(tuple(security), rows))


async def get_current_tick(symbol):
    """The newest one of the same rhythm that our server has; its time is when the server has it."""
    pacer = RUNNING['pacer']
    newest = pacer and pacer.newest(symbol, time.perf_counter())
    if not newest:
        return None
    number, stamp = newest
    return {'sid': symbol, 'last_price': 12.34, 'dt': '2026-11-26 10:00:00', 'open': 12.3, 'high': 12.4, 'low': 12.2,
            'pre_close': 12.31, 'volume': number, 'money': stamp, 'high_limit': 13.54, 'low_limit': 11.08,
            'paused': False, 'a1_p': 12.35, 'a1_v': 1200, 'b1_p': 12.34, 'b1_v': 800}


def start(token, max_subscriptions, tls_cert=None, tls_key=None):
    """The port of a server that runs in a thread of its own."""
    ready = threading.Event()
    threading.Thread(target=lambda: asyncio.run(serve(token, max_subscriptions, TLSConfig(
        bool(tls_cert), tls_cert, tls_key), ready)), name='peer-server', daemon=True).start()
    if not ready.wait(30):
        raise RuntimeError('the server of the peer did not start')
    return RUNNING['app']._server.sockets[0].getsockname()[1]


async def serve(token, max_subscriptions, tls, ready):
    config = ServerConfig(server_type='stub', listen='127.0.0.1', port=0, token=token, tls=tls, max_connections=256,
                          max_subscriptions=max_subscriptions, accounts=[AccountConfig('main', '123456')])
    router = AccountRouter(config.accounts)
    bundle = build_stub_bundle(config, router)
    bundle.data_adapter.get_history, bundle.data_adapter.get_current_tick = get_history, get_current_tick
    RUNNING['app'] = app = ServerApplication(config, router, bundle)
    await asyncio.gather(app.start(), announce(app, ready))


async def announce(app, ready):
    app._ensure_runtime_events()
    await app._started.wait()
    ready.set()


def begin_ticks(symbols, per_second, burst):
    RUNNING['pacer'] = Pacer(symbols, per_second, burst)


def made():
    return RUNNING['pacer'].count(time.perf_counter())


def end_ticks():
    RUNNING['pacer'] = None
