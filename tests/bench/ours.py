"""Our client, as a worker: the functions that the worker of the peer has as well, done with bullet_qmt."""
import time

import bullet_qmt as bq
from tests.bench.timing import arrived_of, calls_between, follow, rate, timed

OPEN, ARRIVALS, PROVIDERS = [], [], []
BARS_END = '2025-12-31 15:00:00'  # as many bars as anybody asks for lie before it


def open_connections(port, token, count=1, compress='auto'):
    """This many long connections beside those that are open."""
    for _ in range(count):
        OPEN.append(bq.RemoteQmtConnection('127.0.0.1', port, token, compress=compress).start())


def close_connections():
    while OPEN:
        OPEN.pop().close()
    del ARRIVALS[:]


def account():
    return OPEN[0].request('broker.account')


def account_times(count):
    return timed(account, count)


def account_calls(begin, end):
    """Queries of all connections at once, between two times of perf_counter."""
    return calls_between([lambda c=c: c.request('broker.account') for c in OPEN], begin, end)


def bars_times(securities, rows, count):
    """Seconds for a frame of so many minute bars of each security, `count` times; and the rows that came."""
    provider, shapes = bq.RemoteQmtProvider(connection=OPEN[0]), []

    def ask():
        shapes.append(provider.get_price(securities[0] if len(securities) == 1 else securities, end_date=BARS_END,
                                         count=rows, frequency='1m', fq=None, panel=False).shape)
    return {'times': timed(ask, count), 'rows': shapes[-1][0]}


def codec_times(security, rows, count):
    """Seconds of encoding and decoding one packed frame, and its length; the table is that of the server."""
    table = bq.Table.from_wire(OPEN[0].request('data.history', {
        'security': security, 'end': BARS_END, 'count': rows, 'frequency': '1m', 'fq': None}))
    encode, decode, frame = [], [], {'type': 'response', 'id': '1'}
    for _ in range(count):
        begun = time.perf_counter()
        data = b''.join(map(bytes, bq.encode_table_frame(frame, table, compact=True)))
        between = time.perf_counter()
        arrived = bq.decode_table_frame(bytearray(data[4:]))['payload']
        encode, decode = encode + [between - begun], decode + [time.perf_counter() - between]
    if not arrived.to_pandas().equals(table.to_pandas()):
        raise AssertionError('what was decoded is not what was encoded')
    return {'encode': encode, 'decode': decode, 'bytes': len(data)}


def order_payload(style):
    return {'security': '000001.XSHE', 'side': 'BUY', 'amount': 100, 'style': style, 'wait_timeout': 0}


def order():
    return OPEN[0].request('broker.place_order', order_payload({'type': 'market'}))


def orders_rate(count):
    """Orders a second, each answered before the next."""
    return rate(order, count)


def rest_orders(count):
    """Orders at the lower limit, which nobody fills; how many a second."""
    price = OPEN[0].request('data.live_current', {'security': '000001.XSHE'})['low_limit']
    return rate(lambda: OPEN[0].request('broker.place_order', order_payload({'type': 'limit', 'price': price})), count)


def visit_times(port, token, tls_cert, count):
    """Seconds of connect, log in, query and close. A closed one stays closed: each visit has its own."""
    unused = [bq.ShortConnection('127.0.0.1', port, token, tls_cert=tls_cert) for _ in range(count)]

    def visit():
        connection = unused.pop()
        connection.request('broker.account')
        connection.close()
    return timed(visit, count)


def subscribe(port, token, symbols, count):
    """So many connections, each subscribed to all of the symbols, that keep what comes."""
    open_connections(port, token, count)
    ARRIVALS.extend(follow(connection, symbols) for connection in OPEN[-count:])


def arrived(first, last):
    """Seconds on the way of the ticks numbered [first, last), of all subscribers here."""
    return arrived_of(ARRIVALS, first, last)
