"""How the work grows: with connections, rows, securities, and orders that rest in the book."""
from tests.bench import figures as f
from tests.bench.cases import MS, AccountRate, Case, Orders, Ticks
from tests.bench.stage import NotHere, OurServer, pinned


class MoreConnections(AccountRate):
    """As many processes as there is work for, at most four."""

    figures = (f.figure('rate', '每秒', '次'),)


class MoreRows(Case):
    """Plain, as on the loopback. More rows than one security has minutes are those of two."""

    figures = (f.figure('p50', '耗时', '毫秒'), f.figure('each', '每万行', '毫秒'))
    rows = 0

    def ours(self, side='ours'):
        worker, port = self.stage.tick_server(side)
        codes = ['000001.XSHE', '600000.XSHG'] if self.rows > 1000000 else ['000001.XSHE']
        with self.connected(side, port) as client, pinned(worker.pid, client.pid):
            return self.spread(client('bars_times', codes, self.rows // len(codes), 2))

    def peer(self):
        if self.rows > 300000:  # asking all the same ends only with its timeout of three minutes
            raise NotHere('它的一帧到 32 MiB 为止，放不下这么多行')
        return self.ours('peer')

    def raw(self):
        server = self.stage.raw_server()
        port = self.stage.once(('floats', self.rows), lambda: server('start_floats', self.rows))
        with self.connected('raw', port) as client, pinned(server.pid, client.pid):
            return self.spread(client('bars_times', self.rows, 2))

    def spread(self, measured):
        if measured['rows'] != self.rows:
            raise AssertionError('%d rows came' % measured['rows'])
        fastest = min(measured['times']) * MS
        return {'p50': fastest, 'each': fastest / self.rows * 10000}


class MoreSymbols(Ticks):
    figures = tuple(item._replace(bars=()) for item in Ticks.figures)


class MoreResting(Orders):
    """Market orders while others rest, on a server of its own."""

    sides, once, figures = ('ours',), True, (f.figure('rate', '每秒', '笔'),)
    resting = 0

    def ours(self):
        server = OurServer(self.stage.directory, '--state=%s' % self.stage.path('resting-%d.sqlite' % self.resting))
        try:
            with self.connected('ours', server.port) as client, pinned(server.pid, client.pid):
                client('rest_orders', self.resting)
                return {'rate': client('orders_rate', self.size(100))}
        finally:
            server.close()


def sized(base, name, title, attribute, sizes):
    """A case for each size."""
    return [type('%s%d' % (base.__name__, size), (base,), {
        attribute: size, 'name': '%s%d' % (name, size), 'title': title % '{:,}'.format(size)}) for size in sizes]


GROWTH = (sized(MoreConnections, 'connections', '账户查询，%s 个连接，最多 4 个进程', 'connections', [1, 4, 16, 64])
          + sized(MoreRows, 'rows', '%s 行 × 6 到 DataFrame', 'rows', [10000, 100000, 500000, 2000000])
          + sized(MoreSymbols, 'symbols', '行情到回调，每秒 %s 只，8 个订阅者', 'symbols', [1, 10, 100, 1000, 5000])
          + sized(MoreResting, 'resting', '市价委托，已有 %s 笔挂单', 'resting', [1, 100, 500]))
