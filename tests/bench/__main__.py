"""python -m tests.bench [--json] [--quick] [--only NAME,...] [--growth] [--rounds N]

Starts servers and clients of all sides on the loopback, measures them at the same work in turns, prints one table.
"""
import argparse
import importlib.util
import subprocess
import sys

from tests.environments import ROOT, EnvironmentFailed, test_environment

NEEDED = ('pandas', 'numpy', 'cryptography')


def say(line=''):
    """Progress; the results alone go to stdout."""
    print(line.encode(sys.stderr.encoding or 'ascii', 'backslashreplace').decode(sys.stderr.encoding or 'ascii'),
          file=sys.stderr, flush=True)


def is_here():
    """Whether this interpreter has what is needed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDED)


def in_environment(arguments, module='tests.bench'):
    """The same in the environment of the tests, which has what a client needs; its exit code."""
    try:
        python = test_environment(sys.version_info[:2], sys.executable, say)
    except EnvironmentFailed as error:
        say(str(error))
        return 1
    return subprocess.call([python, '-m', module] + arguments, cwd=ROOT)


def build_parser():
    parser = argparse.ArgumentParser(prog='python -m tests.bench', allow_abbrev=False,
                                     description='我们、裸极限与 bullet-trade 做同样的事，在同一次运行里轮流测量。')
    parser.add_argument('--json', action='store_true', help='结果是 JSON')
    parser.add_argument('--quick', action='store_true', help='每项只测一小会儿：看能不能运行，数字不作数')
    parser.add_argument('--only', metavar='NAME,...', help='只测这些项目')
    parser.add_argument('--growth', action='store_true', help='随连接数、行数、证券数如何增长')
    parser.add_argument('--rounds', type=int, metavar='N', help='每项轮流测几轮（默认 3，--quick 时 1），取中位数')
    return parser


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if not is_here():
        return in_environment(arguments)
    from tests.bench.runner import bench
    options = build_parser().parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        build_parser().error('--rounds 应为正整数')
    return bench(options, say)


if __name__ == '__main__':
    sys.exit(main())
