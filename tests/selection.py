"""Which files of tests a run of a part of them takes."""
import glob
import os

from tests.environments import ROOT

TEST_FILES = sorted('tests/' + os.path.basename(path) for path in glob.glob(os.path.join(ROOT, 'tests', 'test_*.py')))
# What takes more than some twelve seconds, mostly of waiting for servers of its own: `--fast` does without.
SLOW = ['answers', 'backtest_command', 'bare_machine', 'bench', 'cli', 'clients', 'closing', 'console', 'contract',
        'docs', 'door', 'engine_future', 'jq_compat', 'jq_compat_again', 'jq_compat_strategies', 'live_command',
        'live_kill', 'live_orders', 'live_run', 'live_same', 'live_strategies', 'order_stream', 'peer', 'qmt_chaos',
        'qmt_data', 'qmt_e2e', 'report_browser', 'run_orders', 'shutdown', 'stub_data', 'terminal', 'unhindered']
# What a server on Windows stands and falls with: `--core` takes these there.
CORE = ['accounts', 'autostart', 'cli', 'clients', 'closing', 'compat', 'desk', 'desk_kill', 'errors', 'garbage',
        'gate', 'interrupts', 'live_command', 'live_kill', 'live_state', 'options', 'qmt_broker', 'qmt_e2e',
        'qmt_vendor', 'records', 'rules', 'server', 'settling', 'shutdown', 'ticks', 'tls', 'wire', 'writer']


def fast_files():
    slow = set(map(file_of, SLOW))
    return [file for file in TEST_FILES if file not in slow]


def core_files():
    return list(map(file_of, CORE))


def file_of(name):
    return 'tests/test_%s.py' % name


def dealt(files, count):
    """As many heaps as that, of about the same size; a long file mostly takes long."""
    heaps = [[0] for _ in range(count)]
    for file in sorted(files, key=lambda file: -os.path.getsize(os.path.join(ROOT, file))):
        heap = min(heaps, key=lambda heap: heap[0])
        heap[0] += os.path.getsize(os.path.join(ROOT, file))
        heap.append(file)
    return [sorted(heap[1:]) for heap in heaps if heap[1:]]
