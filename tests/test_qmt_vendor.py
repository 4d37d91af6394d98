"""The vendor's own native modules, with no terminal to talk to: what they do to a disk, and what is kept from them."""
import importlib.util
import os
import sys

import pytest

from tests.base import TOKEN
from tests.environments import ROOT
from tests.processes import LISTENING, LineProcess

pytestmark = pytest.mark.skipif(os.name != 'nt' or importlib.util.find_spec('xtquant') is None,
                                reason="the vendor's native modules are for Windows")


def test_only_a_folder_of_a_terminal_is_given_to_the_vendor(tmp_path):
    """The other one proves that it is the vendor's code: its connect() leaves its queue, and answers -1."""
    typo, good = tmp_path / 'userdata_min', tmp_path / '国金 QMT交易端' / 'userdata_mini'
    (good / 'users').mkdir(parents=True)
    accounts = 'wrong=55001234:stock:%s,right=55004321:stock:%s' % (typo, good)
    command = [sys.executable, os.path.join(ROOT, 'bullet_qmt.py'), 'server', '--server-type=qmt', '--port=0',
               '--token', TOKEN, '--accounts', accounts, '--state', str(tmp_path / 'orders.sqlite')]
    with LineProcess(command, dict(os.environ, PYTHONIOENCODING='utf-8'), str(tmp_path)) as process:
        process.line_with(LISTENING)
        assert str(typo) in process.line_with('账户 wrong 暂时读不到.*没有目录.*').group()
        process.line_with('账户 right 暂时读不到.*返回 -1')
        process.interrupt()
        assert process.wait() == 0 and 'Traceback' not in process.story()
    assert not typo.exists()
    queue, = [name for name in os.listdir(str(good)) if name.startswith('down_queue_')]
    assert os.path.getsize(str(good / queue)) > 2 ** 20
    os.remove(str(good / queue))
