"""Our server with ticks and bars that the benchmark makes, as a worker: all but the source of data is real."""
import random
from array import array
from datetime import date
from functools import lru_cache

import bullet_qmt as bq
from tests.bench.timing import Pacer, Ticker

RUNNING, TICKER = {}, Ticker()


def start(token, max_subscriptions):
    """The port of a server whose source sends no ticks of its own."""
    settings = bq.load_settings(['server', 'stub'], {
        'server_type': 'stub', 'port': '0', 'token': token, 'max_subscriptions': str(max_subscriptions)},
        environ={}, dotenv=None)
    RUNNING['server'] = server = bq.serve(settings)
    data = server.service.backend.data
    data.subscribe = data.unsubscribe = lambda codes: None
    data._minutes = lambda code, first, last: bq.slice_columns(minutes(), first, last)
    return server.address[1]


@lru_cache(maxsize=None)
def minutes():
    """More than a million minutes, to the end of 2025: a random walk in cents, volumes in lots. One for all codes."""
    days = [day for day in map(date.fromordinal, range(date(2005, 1, 4).toordinal(), date(2026, 1, 1).toordinal()))
            if bq.exchange_opens(day)]
    times = array('q', [bq.to_ms(day) + minute * 60000 for day in days for minute in bq.BAR_MINUTES])
    draw, cents, close = random.Random(7), 2000, array('d')
    for _ in times:
        cents = max(100, cents + int(draw.random() * 3) - 1)
        close.append(cents / 100)
    volume = array('d', [int(draw.random() * 9000) * 100.0 for _ in times])
    money = array('d', [round(price * shares, 2) for price, shares in zip(close, volume)])
    return {'time': times, 'open': close, 'close': close, 'high': close, 'low': close, 'volume': volume, 'money': money}


def begin_ticks(symbols, per_second, burst):
    """Ticks from now on; each carries its number as volume and its time of perf_counter as money."""
    hub, day = RUNNING['server'].service.hub, bq.Clock().now().replace(microsecond=0)

    def make(symbol, number, stamp):
        hub.deliver(bq.Tick(sid=symbol, last_price=12.34, dt=day, open=12.3, high=12.4, low=12.2, pre_close=12.31,
                            volume=number, money=stamp, high_limit=13.54, low_limit=11.08, a1_p=12.35, a1_v=1200,
                            b1_p=12.34, b1_v=800))
    TICKER.begin(Pacer(symbols, per_second, burst), make)


def made():
    """How many ticks there have been."""
    return TICKER.made


def end_ticks():
    TICKER.end()
