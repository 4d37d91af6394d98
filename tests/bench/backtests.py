"""python -m tests.bench.backtests [--case days|minutes] [--start D --end D] [--peer PYTHON]

The time of whole backtests, interpreter start, data and all, against a paper exchange in a process of its own; with
--peer, of the same strategy in bullet-trade, which that Python has, on the same server. One line each: seconds on the
clock and on the processor.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOKEN = 'a-token-of-the-benchmark-0123456789'
# Strategy, frequency, start and end, the most seconds it may take.
CASES = {'days': ('averages20.py', 'day', '2014-01-02', '2023-12-29', 5.0),
         'minutes': ('each_minute.py', 'minute', '2022-01-04', '2022-12-30', 20.0)}


def start_server():
    """(process, port)"""
    command = [sys.executable, os.path.join(ROOT, 'bullet_qmt.py'), 'server', '--server-type', 'stub', '--port', '0',
               '--token', TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env=dict(os.environ, PYTHONIOENCODING='utf-8'))
    line = process.stdout.readline().decode('utf-8')
    return process, line.split('127.0.0.1:')[1].split('（')[0]


def timed(command, directory, port):
    """(seconds on the clock, on the processor, the process's output); raises where it fails."""
    environment = dict(os.environ, PYTHONIOENCODING='utf-8', QMT_SERVER_HOST='127.0.0.1', QMT_SERVER_PORT=port,
                       QMT_SERVER_TOKEN=TOKEN, DEFAULT_DATA_PROVIDER='qmt-remote')
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = subprocess.check_output(command, cwd=directory, env=environment, stderr=subprocess.STDOUT)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output.decode('utf-8')


def span(options, case):
    return ['--start', options.start or case[2], '--end', options.end or case[3], '--frequency', case[1], '--cash',
            '1000000', '--no-html', '--no-csv']


def show(name, seconds, processor):
    print('%-14s %8.2f s   processor %8.2f s' % (name, seconds, processor), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument('--case', choices=sorted(CASES), default='days')
    parser.add_argument('--start')
    parser.add_argument('--end')
    parser.add_argument('--runs', type=int, default=2, help='the first one finds a server that has made no bars yet')
    parser.add_argument('--peer', metavar='PYTHON', type=os.path.abspath)
    options = parser.parse_args()
    case = CASES[options.case]
    strategy = os.path.join(ROOT, 'tests', 'bench', 'strategies', case[0])
    server, port = start_server()
    try:
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, os.path.join(ROOT, 'bullet_qmt.py'), 'backtest', strategy]
            for number in range(options.runs):
                show('ours, run %d' % (number + 1), *timed(command + span(options, case), directory, port)[:2])
            print('at most %g s are wanted' % case[4])
            if options.peer:
                peer = os.path.join(os.path.dirname(options.peer), 'bullet-trade')
                command = [peer, 'backtest', strategy, '--no-logs']
                show('bullet-trade', *timed(command + span(options, case), directory, port)[:2])
    finally:
        server.terminate()
        server.wait()


if __name__ == '__main__':
    main()
