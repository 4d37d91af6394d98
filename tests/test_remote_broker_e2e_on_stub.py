"""Runs test_remote_broker_e2e.py in a pytest of its own, against a server process with the paper exchange."""
import os
import sys
import xml.etree.ElementTree as ElementTree

import bullet_qmt as bq
from tests.environments import ROOT
from tests.processes import LISTENING, LineProcess, run

TOKEN = 'a-token-for-the-broker-test-0123456789'
LIMITED, FUND = '510300.XSHG', '511880.XSHG'  # the second hardly moves: it is never at a limit


def clean_environment(**more):
    """Ours without what would configure a client or the test, and with our own modules in reach."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('QMT_', 'REMOTE_QMT_', 'BT_ENV'))}
    path = os.pathsep.join([os.path.dirname(os.path.abspath(bq.__file__)), ROOT])
    return dict(kept, PYTHONPATH=path, PYTHONIOENCODING='utf-8', **more)


def low_limit(port):
    connection = bq.ShortConnection('127.0.0.1', port, TOKEN)
    return bq.RemoteQmtProvider(connection=connection).get_live_current(LIMITED)['low_limit']


def outcomes(directory, cwd, environment):
    """{test: 'passed', 'failed' or its reason to skip} of the file, and pytest's output."""
    report = os.path.join(str(directory), 'report.xml')
    done = run([sys.executable, '-m', 'pytest', '-c', os.path.join(ROOT, 'setup.cfg'), '--rootdir', ROOT,
                '-p', 'no:cacheprovider', '--junitxml=' + report,
                os.path.join(ROOT, 'tests', 'test_remote_broker_e2e.py')], timeout_s=120, env=environment, cwd=cwd)
    assert os.path.exists(report), done.stdout
    cases = ElementTree.parse(report).getroot().iter('testcase')
    return {case.get('name'): _outcome(case) for case in cases}, done.stdout


def _outcome(case):
    skipped = case.find('skipped')
    if skipped is not None:
        return skipped.get('message')
    return 'passed' if len(case) == 0 or case.find('failure') is case.find('error') is None else 'failed'


def test_it_passes_on_the_paper_exchange(tmp_path):
    command = [sys.executable, bq.__file__, 'server', '--server-type=stub', '--port', '0', '--token', TOKEN,
               '--accounts', 'main=55001234,hedge=2', '--sub-accounts', 'robot@main', '--stub-tick-interval', '0.1']
    with LineProcess(command, env=clean_environment(), cwd=str(tmp_path)) as server:
        port = int(server.line_with(LISTENING).group(1))
        environment = clean_environment(
            QMT_SERVER_HOST='127.0.0.1', QMT_SERVER_PORT=str(port), QMT_SERVER_TOKEN=TOKEN,
            QMT_SERVER_ACCOUNT_KEY='main', QMT_SERVER_SUB_ACCOUNT='robot', REMOTE_QMT_TEST_ENABLED='1',
            REMOTE_QMT_TEST_ACCOUNT='55001234', REMOTE_QMT_TEST_LIMIT_SYMBOL=LIMITED,
            REMOTE_QMT_TEST_LIMIT_PRICE=str(low_limit(port)), REMOTE_QMT_TEST_LIMIT_AMOUNT='100',
            REMOTE_QMT_TEST_MARKET_SYMBOL=FUND, REMOTE_QMT_TEST_MARKET_AMOUNT='100')
        seen, output = outcomes(tmp_path, str(tmp_path), environment)
        assert len(seen) == 4 and set(seen.values()) == {'passed'}, output
        connection = bq.ShortConnection('127.0.0.1', port, TOKEN)
        rest = bq.RemoteQmtBroker(config={'account_key': 'main'}, connection=connection)
        assert len(rest.get_orders()) == 3 and rest.get_open_orders() == []


def test_it_is_skipped_with_a_reason_unless_asked_for(tmp_path):
    seen, output = outcomes(tmp_path, str(tmp_path), clean_environment())
    assert len(seen) == 4, output
    assert all('REMOTE_QMT_TEST_ENABLED=1' in reason for reason in seen.values()), output
