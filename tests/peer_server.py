"""Runs in the peer's environment: its own server over its own stub exchange, on a free port, until stdin ends.

Prints "listening PORT". Bars come through its own encoder for QMT, so that they look as its real servers send them.
"""
import asyncio
import os
import sys
import threading
import warnings

warnings.simplefilter('ignore')

import pandas  # noqa: E402
from bullet_trade.server.adapters.base import AccountRouter  # noqa: E402
from bullet_trade.server.adapters.qmt import dataframe_to_payload  # noqa: E402
from bullet_trade.server.adapters.stub import build_stub_bundle  # noqa: E402
from bullet_trade.server.app import ServerApplication  # noqa: E402
from bullet_trade.server.config import AccountConfig, ServerConfig, SubAccountConfig  # noqa: E402

FIELDS = ['open', 'close', 'volume']


def bars(number, payload):
    """Three bars; the second has no open."""
    intraday = payload.get('frequency') in ('1m', 'minute')
    first, step = ('2026-04-01 09:31', 'min') if intraday else ('2026-04-01', 'D')
    columns = {'open': [10.5 + number, float('nan'), 10.7 + number], 'close': [10.6, 10.7 + number, 10.8],
               'volume': [100.0, 200.0, 300.0]}
    index = pandas.date_range(first, periods=3, freq=step)
    return pandas.DataFrame(columns, index=index)[payload.get('fields') or FIELDS]


def history(payload):
    security = payload['security']
    if isinstance(security, str):
        return bars(0, payload)
    frames = {code: bars(number, payload) for number, code in enumerate(security)}
    if payload.get('panel'):
        return pandas.concat(frames, axis=1)
    parts = [part.rename_axis('time').reset_index().assign(code=code) for code, part in frames.items()]
    long = pandas.concat(parts, ignore_index=True)
    return long[['time', 'code'] + (payload.get('fields') or FIELDS)]


async def get_history(payload):
    return dataframe_to_payload(history(payload))


async def announce(app):
    while app._server is None:
        await asyncio.sleep(0.01)
    print('listening %d' % app._server.sockets[0].getsockname()[1], flush=True)


async def main(token):
    accounts = [AccountConfig('main', '123456'), AccountConfig('hedge', '654321')]
    config = ServerConfig(server_type='stub', listen='127.0.0.1', port=0, token=token, accounts=accounts,
                          sub_accounts=[SubAccountConfig('demo', 'main', 5000.0)])
    router = AccountRouter(config.accounts)
    bundle = build_stub_bundle(config, router)
    bundle.data_adapter.get_history = get_history
    app = ServerApplication(config, router, bundle)
    await asyncio.gather(app.start(), announce(app))


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


if __name__ == '__main__':
    threading.Thread(target=end_with_stdin, daemon=True).start()
    asyncio.run(main(sys.argv[1]))
