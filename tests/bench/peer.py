"""The peer's client, as a worker in its own environment: the same functions as those of ours."""
import warnings

warnings.simplefilter('ignore')

from bullet_trade.data.providers.remote_qmt import _dataframe_from_payload  # noqa: E402
from bullet_trade.remote.connection import RemoteQmtConnection  # noqa: E402

from tests.bench.timing import arrived_of, calls_between, follow, rate, timed  # noqa: E402

OPEN, ARRIVALS = [], []


def connect(port, token, tls_cert=None):
    connection = RemoteQmtConnection('127.0.0.1', port, token, tls_cert=tls_cert, tls_enabled=bool(tls_cert))
    connection.start()
    return connection


def open_connections(port, token, count=1, compress='auto'):
    for _ in range(count):
        OPEN.append(connect(port, token))


def close_connections():
    while OPEN:
        OPEN.pop().close()
    del ARRIVALS[:]


def account():
    return OPEN[0].request('broker.account', {})


def account_times(count):
    return timed(account, count)


def account_calls(begin, end):
    return calls_between([lambda c=c: c.request('broker.account', {}) for c in OPEN], begin, end)


def bars_times(securities, rows, count):
    """What get_price of its provider does, on a connection that is open."""
    shapes = []

    def ask():
        payload = {'security': securities[0] if len(securities) == 1 else securities, 'frequency': '1m', 'fq': None,
                   'count': rows, 'panel': False}
        shapes.append(_dataframe_from_payload(OPEN[0].request('data.history', payload)).shape)
    return {'times': timed(ask, count), 'rows': shapes[-1][0]}


def order():
    return OPEN[0].request('broker.place_order', {'security': '000001.XSHE', 'side': 'BUY', 'amount': 100,
                                                  'style': {'type': 'market'}, 'wait_timeout': 0})


def orders_rate(count):
    return rate(order, count)


def visit_times(port, token, tls_cert, count):
    def visit():
        connection = connect(port, token, tls_cert)
        connection.request('broker.account', {})
        connection.close()
    return timed(visit, count)


def subscribe(port, token, symbols, count):
    open_connections(port, token, count)
    ARRIVALS.extend(follow(connection, symbols) for connection in OPEN[-count:])


def arrived(first, last):
    return arrived_of(ARRIVALS, first, last)
