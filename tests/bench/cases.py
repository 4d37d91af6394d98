"""The work of the benchmark. A case does one round of one side at a time and says what it took."""
import contextlib
import socket
import subprocess
import sys
import time

from tests.bench import figures as f
from tests.bench.stage import (LOAD_PROCESSES, SERVER, TOKEN, CountingProxy, OurServer, clean_environment, pinned,
                               resident_kb, until_listening)
from tests.bench.timing import wait_until
from tests.environments import ROOT
from tests.processes import LineProcess, run

BAR_ROWS, SECURITY = 60000, '000001.XSHE'
MS, US = 1e3, 1e6


class Case:
    """To provide: name, title, figures, and a method for each of the sides that gives {figure key: value}.

    once: whether one round tells it all, without a warm-up.
    """

    name, title, figures, sides, once = '', '', (), ('ours', 'raw', 'peer'), False

    def __init__(self, stage, quick=False):
        self.stage, self.quick = stage, quick

    def size(self, count):
        """A count of the full run, or what of it a quick one does."""
        return max(2, count // 10) if self.quick else count

    def round(self, side):
        return getattr(self, side)()

    @contextlib.contextmanager
    def connected(self, side, port, count=1, compress='never'):
        """A client of a side with open connections."""
        client = self.stage.client(side)
        client('open_connections', port, TOKEN, count, compress)
        try:
            yield client
        finally:
            client('close_connections')

    @contextlib.contextmanager
    def alone(self, side):
        """A client with one warm connection to the whole server of its side, each of them on a core of its own."""
        pid, port = self.stage.server_of(side)
        with self.connected(side, port) as client, pinned(pid, client.pid):
            client('account_times', 20)
            yield client


def bytes_on_the_line(stage, side, call, count=20):
    """(up, down) bytes of one call on a warm connection; its framing included, TCP's not."""
    client = stage.worker(side, side, 'bytes')
    with contextlib.closing(CountingProxy(stage.server_of(side)[1])) as proxy:
        client('open_connections', proxy.port, TOKEN, 1, 'never')
        client(call)
        before = proxy.counts()
        for _ in range(count):
            client(call)
        after = proxy.counts()
        client('close_connections')
    return [(now - then) / count for then, now in zip(before, after)]


def exchange(stage):
    """(bytes of the question, bytes of the answer) of our account query, which the raw echo imitates."""
    return stage.once('exchange', lambda: [int(round(size)) for size in bytes_on_the_line(stage, 'ours', 'account')])


def echo_port(stage, with_json):
    return stage.once(('echo', with_json), lambda: stage.raw_server()('start_echo', exchange(stage)[1], with_json))


class Account(Case):
    name, title = 'account', '账户查询，一个热连接'
    sides = ('ours', 'raw', 'plain', 'peer')
    figures = (f.figure('p50', 'p50', '微秒', f.at_most_raw(1.5), f.faster_than_peer(2)), f.figure('p99', 'p99', '微秒'),
               f.Figure('p50', 'p50，对不带 JSON 的回声', '微秒', 'plain', 'p50', ()))

    def ours(self, side='ours'):
        with self.alone(side) as client:
            return f.spread_of(client('account_times', self.size(3000)), US)

    def peer(self):
        return self.ours('peer')

    def raw(self, with_json=True):
        port, question = echo_port(self.stage, with_json), exchange(self.stage)[0]
        with self.connected('raw', port) as client, pinned(self.stage.raw_server().pid, client.pid):
            client('account_times', question, with_json, 20)
            return f.spread_of(client('account_times', question, with_json, self.size(3000)), US)

    def plain(self):
        return self.raw(False)


class AccountRate(Case):
    name, title, connections = 'rate', '账户查询，4 个进程 16 个连接', 16
    figures = (f.figure('rate', '每秒', '次', f.more_than_peer(2)),)

    def ours(self, side='ours'):
        return self.rate(side, self.stage.server_of(side)[1])

    def peer(self):
        return self.ours('peer')

    def raw(self):
        return self.rate('raw', echo_port(self.stage, True), exchange(self.stage)[0])

    def rate(self, side, port, *args):
        clients = self.stage.load(side)[:self.connections]
        for client in clients:
            client('open_connections', port, TOKEN, self.connections // len(clients))
        begin = time.perf_counter() + 0.1
        end = begin + (0.5 if self.quick else 2.0)
        for client in clients:
            client.begin('account_calls', *(args + (begin, end)))
        count = sum(client.result() for client in clients)
        for client in clients:
            client('close_connections')
        return {'rate': count / (end - begin)}


class Bars(Case):
    name, title = 'bars', '60,000 × 6 分钟线到 DataFrame'
    figures = (f.figure('p50', '耗时', '毫秒', f.at_most(10), f.at_most_raw(6)),)

    def ours(self, side='ours'):
        with self.alone(side) as client:
            return self.checked(client('bars_times', [SECURITY], BAR_ROWS, self.size(20 if side == 'ours' else 3)))

    def peer(self):
        return self.ours('peer')

    def raw(self):
        server = self.stage.raw_server()
        port = self.stage.once('floats', lambda: server('start_floats', BAR_ROWS))
        with self.connected('raw', port) as client, pinned(server.pid, client.pid):
            return self.checked(client('bars_times', BAR_ROWS, self.size(20)))

    @staticmethod
    def checked(measured):
        if measured['rows'] != BAR_ROWS:
            raise AssertionError('%d rows came' % measured['rows'])
        return f.spread_of(measured['times'], MS)


class Compact(Case):
    name, title = 'compact', '同上，压缩'
    figures = (f.figure('line', '线路上', 'MB', f.at_most(0.8)), f.figure('codec', '编码 + 解码', '毫秒', f.at_most(60)),
               f.figure('p50', '耗时', '毫秒', raw_key='none'))

    def ours(self, side='ours'):
        port = self.stage.server_of(side)[1]
        with contextlib.closing(CountingProxy(port)) as proxy, self.connected(
                side, proxy.port, compress='always') as client:
            measured = client('bars_times', [SECURITY], BAR_ROWS, 1)
            Bars.checked(measured)
            line = {'line': sum(proxy.counts()) / 1e6}
        return dict(line, **self.times(port)) if side == 'ours' else line

    def peer(self):
        return self.ours('peer')

    def raw(self):
        """The floats as they are."""
        return {'line': 7 * 8 * BAR_ROWS / 1e6}

    def times(self, port):
        with self.connected('ours', port, compress='always') as client, pinned(
                self.stage.main_server().pid, client.pid):
            codec = client('codec_times', SECURITY, BAR_ROWS, self.size(20))
            whole = client('bars_times', [SECURITY], BAR_ROWS, self.size(20))['times']
        both = [encode + decode for encode, decode in zip(codec['encode'], codec['decode'])]
        return {'codec': f.spread_of(both, MS)['p50'], 'p50': f.spread_of(whole, MS)['p50']}


class Orders(Case):
    name, title = 'orders', '委托，一个连接，日志在文件里、意向先落盘'
    figures = (f.figure('rate', '每秒', '笔', f.more_than_peer(1), f.at_least(2010)),)

    def ours(self, side='ours'):
        with self.alone(side) as client:
            client('orders_rate', 5)
            return {'rate': client('orders_rate', self.size(500))}

    def peer(self):
        return self.ours('peer')

    def raw(self):
        """A commit for each, on the same disk; no network, no exchange."""
        return {'rate': self.stage.client('raw')('orders_rate', self.stage.path('raw.sqlite'), self.size(1000))}


class Visits(Case):
    name, title = 'connect', '连接、登录、查询、断开'
    sides = ('ours', 'raw', 'floor', 'peer')
    figures = (f.figure('plain', '明文 p50，对一次 TCP 连接', '毫秒', f.at_most(0.45)),
               f.Figure('plain', '明文 p50，对连接 + 两次 JSON 回声', '毫秒', 'floor', 'plain', ()),
               f.figure('tls', 'TLS p50，对一次握手', '毫秒', f.at_most_raw(1.4, 0.5)))

    def ours(self, side='ours'):
        found, client = {}, self.stage.client(side)
        for key, tls_cert in (('plain', None), ('tls', self.stage.certificate()[0])):
            pid, port = self.stage.server_of(side, tls=bool(tls_cert))
            with pinned(pid, client.pid):
                client('visit_times', port, TOKEN, tls_cert, 3)
                found[key] = f.spread_of(client('visit_times', port, TOKEN, tls_cert, self.size(200)), MS)['p50']
        return found

    def peer(self):
        return self.ours('peer')

    def raw(self):
        found, client, server = {}, self.stage.client('raw'), self.stage.raw_server()
        for key, files in (('plain', ()), ('tls', self.stage.certificate())):
            port = self.stage.once(('visits', key), lambda files=files: server('start_visits', *files))
            with pinned(server.pid, client.pid):
                times = client('visit_times', port, None, files[0] if files else None, self.size(400))
            found[key] = f.spread_of(times, MS)['p50']
        return found

    def floor(self):
        """A login and a query are two exchanges, whatever is in them."""
        client, port, question = self.stage.client('raw'), echo_port(self.stage, True), exchange(self.stage)[0]
        with pinned(self.stage.raw_server().pid, client.pid):
            return {'plain': f.spread_of(client('exchange_times', port, question, self.size(200)), MS)['p50']}


class Ticks(Case):
    name, title, burst, symbols = 'ticks', '行情到回调，每秒 200 只，8 个订阅者', 1, 200
    figures = (f.figure('p50', 'p50', '毫秒', f.at_most(0.8)), f.figure('p99', 'p99', '毫秒', f.at_most(2)),
               f.figure('delivered', '送达', '%', f.at_least(100)))
    SETTLE_S = 1.3  # longer than the peer's poll takes to come round

    def ours(self, side='ours'):
        server, port = self.stage.tick_server(side)
        names, clients = ['%d.XSHG' % (600000 + number) for number in range(self.symbols)], self.stage.load(side)
        for client in clients:
            client('subscribe', port, TOKEN, names, 8 // LOAD_PROCESSES)
        try:
            first, last = self.watch(server, names)
            late = [seconds for client in clients for seconds in client('arrived', first, last)]
        finally:
            for client in clients:
                client('close_connections')
        assert late, 'none of %d ticks came' % (last - first)
        return dict(f.spread_of(late, MS), delivered=100.0 * len(late) / (8 * (last - first)))

    def watch(self, server, names):
        """The numbers of the first tick that counts and of the first that does not."""
        server('begin_ticks', names, self.symbols, self.burst)
        wait_until(time.perf_counter() + self.SETTLE_S)
        first = server('made')
        wait_until(time.perf_counter() + max(1.0 if self.quick else 2.0, 3.0 / self.symbols))  # three ticks at least
        last = server('made')
        wait_until(time.perf_counter() + self.SETTLE_S)
        server('end_ticks')
        return first, last

    def raw(self):
        return self.ours('raw')

    def peer(self):
        return self.ours('peer')


class TickBursts(Ticks):
    name, title, burst = 'bursts', '同上，200 只同时来', 200
    figures = tuple(item._replace(bars=item.bars if item.key == 'delivered' else ()) for item in Ticks.figures)


class Start(Case):
    name, title = 'start', '冷启动'
    figures = (f.figure('script', '服务端到监听：python bullet_qmt.py', '毫秒', f.at_most(120)),
               f.figure('module', '服务端到监听：python -m bullet_qmt', '毫秒', f.at_most(120)),
               f.figure('import', '客户端 import', '毫秒', f.at_most(50)))
    # Its command line knows its stub only when somebody has imported it.
    PEER_PROGRAM = 'import bullet_trade.server.adapters.stub; from bullet_trade.cli.main import main; main()'
    SERVER_OPTIONS = ['server', '--server-type=stub', '--listen=127.0.0.1', '--token=' + TOKEN]

    def ours(self):
        python = self.stage.python('ours')
        return {'script': self.to_listening([python, SERVER]),
                'module': self.to_listening([python, '-m', 'bullet_qmt']),
                'import': self.importing(python, 'bullet_qmt')}

    def peer(self):
        python = self.stage.python('peer')
        whole = self.to_listening([python, '-W', 'ignore', '-c', self.PEER_PROGRAM])
        return {'script': whole, 'module': whole, 'import': self.importing(
            python, 'bullet_trade.broker.qmt_remote, bullet_trade.data.providers.remote_qmt')}

    def raw(self):
        """The interpreter alone, from its start to its end."""
        begun = time.perf_counter()
        subprocess.check_call([sys.executable, '-c', 'pass'], env=self.environment(), cwd=self.stage.directory)
        taken = (time.perf_counter() - begun) * MS
        return {'script': taken, 'module': taken}

    @staticmethod
    def environment():
        """Compiled modules are kept and found, as with a user."""
        return clean_environment(PYTHONPATH=ROOT)

    def to_listening(self, command):
        port = free_port()
        begun = time.perf_counter()
        process = LineProcess(command + self.SERVER_OPTIONS + ['--port=%d' % port], self.environment(),
                              self.stage.directory)
        try:
            until_listening(port, begun + 60)
            return (time.perf_counter() - begun) * MS
        finally:
            process.interrupt()
            process.close()

    def importing(self, python, names):
        """Inside the process, the interpreter's own start not counted."""
        code = 'import time; begun = time.perf_counter(); import %s; print("took", time.perf_counter() - begun)' % names
        done = run([python, '-W', 'ignore', '-c', code], env=self.environment(), cwd=self.stage.directory)
        took = [line.split()[1] for line in done.stdout.splitlines() if line.startswith('took ')]
        if not took:
            raise AssertionError(done.stdout)
        return float(took[0]) * MS


def free_port():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


class Memory(Case):
    name, title, sides, once = 'memory', '以上之后服务端的内存', ('ours', 'peer'), True
    FOLLOWED = ['000001.XSHE', '000002.XSHE', '000333.XSHE', '600000.XSHG', '600036.XSHG', '600519.XSHG', '601318.XSHG']
    figures = (f.figure('bare', 'python -m，没有 pandas 和 numpy', 'MB', f.at_most(40)),
               f.figure('script', 'python bullet_qmt.py，同样没有', 'MB', f.at_most(40)),
               f.figure('loaded', 'python bullet_qmt.py，有 numpy', 'MB'))

    def ours(self):
        found = {key: self.of_bare(key, program) for key, program in (
            ('bare', ['-m', 'bullet_qmt']), ('script', [SERVER]))}
        return dict(found, loaded=resident_kb(self.stage.main_server().pid) / 1024)

    def of_bare(self, name, program):
        """Of a server that finds neither numpy nor pandas, when it has done some of everything."""
        server = OurServer(self.stage.directory, '--state=' + self.stage.path(name + '.sqlite'),
                           program=[sys.executable, '-S'] + program)
        with contextlib.closing(server):
            self.use(server.port)
            return resident_kb(server.pid) / 1024

    def use(self, port):
        with self.connected('ours', port, 8) as client:
            client('account_times', self.size(2000))
            client('orders_rate', self.size(300))
            client('bars_times', [SECURITY], BAR_ROWS, 2)
            client('visit_times', port, TOKEN, None, self.size(50))
        with self.connected('ours', port, compress='always') as client:
            client('bars_times', [SECURITY], BAR_ROWS, 1)
            client('subscribe', port, TOKEN, self.FOLLOWED, 7)
            give_up_at = time.perf_counter() + 60
            while len(client('arrived', 0, 1e15)) < 7 * len(self.FOLLOWED):
                assert time.perf_counter() < give_up_at, 'no ticks came'
                wait_until(time.perf_counter() + 0.2)

    def peer(self):
        taken = resident_kb(self.stage.peer_server()[0].pid) / 1024
        return {item.key: taken for item in self.figures}


class Bytes(Case):
    name, title, sides, once = 'bytes', '线路上的字节', ('ours', 'peer'), True
    figures = (f.figure('account_up', '账户查询：请求', '字节'), f.figure('account_down', '账户查询：回答', '字节'),
               f.figure('order_up', '委托：请求', '字节'), f.figure('order_down', '委托：回答', '字节'))

    def ours(self, side='ours'):
        account = bytes_on_the_line(self.stage, side, 'account')
        order = bytes_on_the_line(self.stage, side, 'order')
        return dict(zip([item.key for item in self.figures], account + order))

    def peer(self):
        return self.ours('peer')


CASES = [Account, AccountRate, Bytes, Bars, Compact, Orders, Visits, Ticks, TickBursts, Start, Memory]
