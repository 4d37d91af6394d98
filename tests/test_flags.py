"""An option that is accepted has an effect: what each command takes reaches what it is for."""
import argparse
import inspect
import io
import os
from datetime import datetime

import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.base import TOKEN, serving, short_client
from tests.fakes import FakeClock

CODE = '000001.XSHE'
LINES = {  # what runs each command that asks a server, to where it has looked at all that it takes
    'doctor': [], 'account': [], 'positions': [], 'orders': [], 'trades': [], 'quote': [CODE], 'history': [CODE],
    'order': [CODE, 'buy', '100', '--market'], 'cancel': ['1'], 'resolve': ['k'],
    'call': ['broker.account', '{}'], 'backtest': ['s.py', '--start', '2024-01-02', '--end', '2024-01-05'],
    'live': ['s.py'], 'env': []}


@pytest.fixture(autouse=True)
def clean_place(monkeypatch, tmp_path):
    monkeypatch.chdir(str(tmp_path))
    for name in [name for name in os.environ if name.startswith(('QMT_', 'BT_', 'DEFAULT_'))]:
        monkeypatch.delenv(name)
    (tmp_path / 's.py').write_text('N = 1\n\n\ndef initialize(context):\n    run_daily(print, "9:30")\n')


class Seen:
    """Names that somebody has read of a namespace or of settings."""

    def __init__(self):
        self.names = set()

    def watched(self, value):
        names = self.names

        class Watched(type(value)):
            def __getattribute__(self, name):
                names.add(name)
                return super().__getattribute__(name)
        copy = Watched.__new__(Watched)
        object.__getattribute__(copy, '__dict__').update(vars(value))
        return copy


@pytest.fixture
def seen(monkeypatch):
    """What a command reads of its arguments (`.args`) and settings (`.settings`)."""
    class Both:
        args, settings = Seen(), Seen()
    load, build, settings_from = bq.load_settings, bq.build_parser, bq.settings_from
    monkeypatch.setattr(bq, 'load_settings', lambda *a, **k: Both.settings.watched(load(*a, **k)))

    def build_watched():
        parser = build()
        parse = parser.parse_args
        parser.parse_args = lambda argv: Both.args.watched(parse(argv))
        return parser
    monkeypatch.setattr(bq, 'build_parser', build_watched)
    monkeypatch.setattr(bq, 'settings_from', lambda args: settings_from(argparse.Namespace(**vars(args))))
    return Both


def declared(command):
    """(names of the arguments of its own, names of the options of its groups that have a flag)."""
    _, _, groups, arguments = bq.COMMANDS[command]
    own = {options.get('dest') or flags[-1].lstrip('-').replace('-', '_') for flags, options in arguments}
    return own, {option.name for option in bq.offered_options(groups) if option.flags}


# token_file is the token once the settings are loaded; there is but one broker to choose.
ELSEWHERE = {'token_file', 'broker'}


@pytest.mark.parametrize('command', sorted(LINES))
def test_a_command_looks_at_all_that_it_takes(command, seen, monkeypatch, capsys):
    monkeypatch.setattr(jq.LiveRun, 'run', lambda self: None)
    monkeypatch.setattr(bq.StopSignal, 'install', lambda self: self)
    with serving(FakeClock(datetime(2024, 1, 8, 10))) as server, short_client(server) as connection:
        bq.RemoteQmtBroker(connection=connection).buy(CODE, 100)
        to = ['--host', server.address[0], '--port', str(server.address[1]), '--token', TOKEN]
        bq.main([command] + LINES[command] + (to if 'client' in bq.COMMANDS[command][2] else []))
    own, options = declared(command)
    assert own - seen.args.names - ELSEWHERE == set(), capsys.readouterr()
    assert options - seen.settings.names - ELSEWHERE == set()


def test_no_command_is_left_out():
    assert set(LINES) == set(bq.COMMANDS) - {'server', 'install-task', 'uninstall-task'}  # they have no client


# -- what a connection is made of --------------------------------------------------------------------------------------
CONNECTION = {'host': '127.0.0.2', 'port': '12345', 'token': 'another-token-0123456789', 'tls_cert': 'some.pem',
              'rpc_timeout': '7.5', 'compress': 'never'}


def made_connection(monkeypatch, argv):
    """What the connection of a command was made of: name -> value."""
    class Made(Exception):
        pass
    made = []
    for cls in (bq.ShortConnection, bq.RemoteQmtConnection):
        def init(self, *args, real=inspect.signature(cls.__init__), **options):
            made.append(real.bind(self, *args, **options).arguments)
            raise Made
        monkeypatch.setattr(cls, '__init__', init)
    with pytest.raises(Made):
        bq.main(argv)
    found = dict(made[0])
    return dict(found, rpc_timeout=found.get('request_timeout'))


@pytest.mark.parametrize('how', ['flags', 'environment', 'dotenv', 'env file'])
@pytest.mark.parametrize('command', sorted(set(LINES) - {'env'}))
def test_every_way_to_give_it_reaches_the_connection(monkeypatch, tmp_path, command, how):
    options = {option.name: option for option in bq.OPTIONS}
    lines, flags = ['%s=%s' % (options[name].env, value) for name, value in CONNECTION.items()], []
    if how == 'flags':
        flags = [text for name, value in CONNECTION.items() for text in (options[name].flags[0], value)]
    elif how == 'environment':
        for line in lines:
            monkeypatch.setenv(*line.split('='))
    else:
        (tmp_path / ('.env' if how == 'dotenv' else 'my.env')).write_text('\n'.join(lines))
        flags = [] if how == 'dotenv' else ['--env-file', 'my.env']
    found = made_connection(monkeypatch, [command] + LINES[command] + flags)
    assert {name: str(found[name]) for name in CONNECTION} == CONNECTION


@pytest.mark.parametrize('command', ['account', 'positions', 'orders', 'trades', 'order', 'cancel', 'resolve', 'doctor',
                                     'live'])
@pytest.mark.parametrize('flag', ['--account-key', '--sub-account'])
def test_an_account_that_is_not_there_is_refused_by_each_command_of_one(command, flag, capsys):
    with serving(FakeClock(datetime(2024, 1, 8, 10))) as server:
        to = ['--host', server.address[0], '--port', str(server.address[1]), '--token', TOKEN, flag, 'nobody']
        code = bq.main([command] + LINES[command] + to)
    assert code == bq.Exit.FAILED and 'ACCOUNT_NOT_FOUND' in capsys.readouterr().err


@pytest.mark.parametrize('command', ['quote', 'history', 'backtest'])
@pytest.mark.parametrize('flag', ['--account-key', '--sub-account'])
def test_market_data_are_of_no_account(command, flag, capsys):
    with pytest.raises(SystemExit):
        bq.main([command] + LINES[command] + [flag, 'main'])
    assert '不认识的选项 %s' % flag in capsys.readouterr().err


# -- what would have no effect is refused ------------------------------------------------------------------------------
@pytest.mark.parametrize('more, said', [
    (['--dask', 'tcp://127.0.0.1:1'], '--dask 只用于参数扫描'), (['--grid', 'N=1,2', '--log', 'x.log'], '--log 不起作用')])
def test_a_backtest_refuses_what_it_would_not_heed(more, said, capsys):
    assert bq.main(['backtest'] + LINES['backtest'] + more) == bq.Exit.USAGE
    assert said in capsys.readouterr().err and not os.path.exists('x.log')


@pytest.mark.parametrize('argv', [
    ['--stub-cash', '1000'], ['--server-type', 'qmt', '--stub-clock', 'market'], ['--stub-seed=5'],
    ['--server-type', 'stub', '--no-auto-download'], ['--server-type', 'stub', '--quote-max-age', '5']])
def test_a_server_refuses_what_is_the_other_kind_s(argv, capsys):
    """Who writes --stub-cash and forgets --server-type stub would trade with real money."""
    assert bq.main(['server', '--accounts', 'main=1:stock:C:/none'] + argv) == bq.Exit.USAGE
    assert '只用于 --server-type' in capsys.readouterr().err


def test_in_a_file_the_settings_of_both_kinds_may_stand(tmp_path):
    (tmp_path / '.env').write_text('QMT_STUB_CASH=5\nQMT_SERVER_QUOTE_MAX_AGE=5\nQMT_SERVER_TYPE=stub\n')
    bq.refuse_idle_options(bq.load_settings(['server', 'stub']))


def test_every_option_of_the_server_is_looked_at(seen):
    """In a server of the one kind or, by the text of the program, of the other."""
    settings = bq.load_settings(['server', 'stub'], {'server_type': 'stub', 'port': '0', 'token': TOKEN}, {}, None)
    bq.serve(settings).close()
    declared_names = {option.name for option in bq.options_of('server', 'stub')}
    with io.open(bq.__file__, encoding='utf-8') as file:
        text = file.read()
    unread = {name for name in declared_names - seen.settings.names - ELSEWHERE if 'settings.%s' % name not in text}
    assert unread == set() and len(seen.settings.names & declared_names) > 15
