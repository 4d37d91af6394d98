"""Section 3: the five layers, the .env parser, every malformed value, accounts and sub-accounts."""
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as b

SERVER = ('server', 'stub')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text, encoding='utf-8'):
    with io.open(str(path), 'w', encoding=encoding, newline='') as file:
        file.write(text)
    return str(path)


def load(given=None, environ=None, groups=SERVER, dotenv='.env'):
    return b.load_settings(groups, given, environ or {}, dotenv)


def refused(given=None, environ=None, groups=SERVER):
    with pytest.raises(b.ConfigError) as caught:
        load(given, environ, groups)
    return str(caught.value)


# -- precedence -----------------------------------------------------------------------------------------
def test_each_layer_gives_way_to_the_one_above(folder):
    file = write(folder / 'my.env', 'QMT_SERVER_PORT=2\n')
    write(folder / '.env', 'QMT_SERVER_PORT=4\n')
    environ = {'QMT_SERVER_PORT': '3'}
    assert load({'port': '1', 'env_file': file}, environ).port == 1
    assert load({'env_file': file}, environ).port == 2
    assert load({}, dict(environ, BT_ENV_FILE=file)).port == 2
    assert load({}, environ).port == 3
    assert load({}, {}).port == 4
    os.remove('.env')
    assert load({}, {}).port == 58620


def test_the_source_of_each_value_is_known(folder):
    file = write(folder / 'my.env', 'QMT_SERVER_TOKEN=abc\n')
    write(folder / '.env', 'QMT_SERVER_LISTEN=0.0.0.0\n')
    settings = load({'port': '1', 'env_file': file}, {'QMT_STUB_SEED': '7'})
    sources = [settings.sources[name] for name in ('port', 'token', 'stub_seed', 'listen', 'max_connections')]
    assert sources == ['命令行', file, '环境变量', '.env', '默认值']


def test_the_file_of_the_command_line_beats_that_of_the_environment(folder):
    one, two = write(folder / '1.env', 'QMT_SERVER_PORT=1'), write(folder / '2.env', 'QMT_SERVER_PORT=2')
    assert load({'env_file': one}, {'BT_ENV_FILE': two}).port == 1


def test_an_empty_value_gives_way_to_the_layer_below(folder):
    write(folder / '.env', 'QMT_SERVER_PORT=4\n')
    assert load({}, {'QMT_SERVER_PORT': ' '}).port == 4


def test_a_missing_file_that_was_asked_for_is_an_error(folder):
    assert 'no.env' in refused({'env_file': 'no.env'})
    assert 'no.env' in refused({}, {'BT_ENV_FILE': 'no.env'})


def test_without_dotenv_nothing_is_read_from_the_working_directory(folder):
    write(folder / '.env', 'QMT_SERVER_PORT=4\n')
    assert load(dotenv=None).port == 58620


# -- the parser of .env files ---------------------------------------------------------------------------
@pytest.mark.parametrize('line, value', [
    ('A=1', '1'), ('A = 1 ', '1'), ('export A=1', '1'), ('  export   A=1', '1'), ('A=', ''), ('A= # nothing', ''),
    ('A=1 # comment', '1'), ('A=1\t# comment', '1'), ('A=a#b', 'a#b'), ('A="1 # 2"', '1 # 2'), ("A='1 # 2'", '1 # 2'),
    ('A="x" # comment', 'x'), ("A='x'   # comment", 'x'), ('A=""', ''), ("A=''", ''), ('A=a b', 'a b'),
    ('A="it\'s"', "it's"), ("A='say \"x\"'", 'say "x"'), ('A=C:\\Qmt\\new_mini', 'C:\\Qmt\\new_mini'),
    ('A="C:\\国金 QMT\\userdata_mini"', 'C:\\国金 QMT\\userdata_mini'), ('A=C:\\Qmt\\ # path', 'C:\\Qmt\\'),
    ('A="C:\\Qmt\\"', 'C:\\Qmt\\'), ('A=main=1:stock:C:\\Q,h=2', 'main=1:stock:C:\\Q,h=2'), ('A=中文', '中文'),
    ('A=research@main:limit=200000', 'research@main:limit=200000'), ('A=p@ss=w0rd', 'p@ss=w0rd')])
def test_dotenv_lines(line, value):
    assert b.parse_dotenv(line) == {'A': value}


def test_dotenv_of_several_lines_skips_blanks_and_comments():
    assert b.parse_dotenv('\n# head\n\nA=1\r\n  # x=3\n \t\nexport B="2"\n') == {'A': '1', 'B': '2'}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_dotenv_with_and_without_bom(folder, encoding, newline):
    write(folder / '.env', newline.join(['QMT_SERVER_PORT=5', 'QMT_DATA_PATH=C:\\国金\\userdata', '']), encoding)
    settings = load()
    assert settings.port == 5
    assert os.fsencode(settings.data_path) == 'C:\\国金\\userdata'.encode('utf-8')  # as the C locale of 3.6 names files


@pytest.mark.parametrize('line', ['A', 'A b', '=1', '1A=2', 'A="x', "A='x", 'A="x" y', '中文=1', 'A-B=1', 'A: 1'])
def test_dotenv_names_file_and_line_of_what_it_cannot_read(folder, line):
    path = write(folder / 'x.env', 'OK=1\n%s\n' % line)
    with pytest.raises(b.ConfigError) as caught:
        b.read_dotenv(path, True)
    assert '%s 第 2 行' % path in str(caught.value)


def test_a_bad_line_of_dotenv_does_not_show_a_token(folder):
    path = write(folder / 'x.env', 'QMT_SERVER_TOKEN="geheim-geheim\n')
    with pytest.raises(b.ConfigError) as caught:
        b.read_dotenv(path, True)
    assert 'geheim' not in str(caught.value)


def test_a_file_that_is_no_text_is_an_error(folder):
    (folder / 'x.env').write_bytes(b'A=\xff\xfe\x00')
    assert 'x.env' in refused({'env_file': 'x.env'})


@given(st.dictionaries(st.from_regex(r'\A[A-Z_][A-Z0-9_]{0,8}\Z'),
                       st.text(st.characters(blacklist_characters='"', blacklist_categories=('Cc', 'Cs', 'Zl', 'Zp')))))
def test_quoted_values_survive(values):
    assert b.parse_dotenv('\n'.join('%s="%s"' % item for item in values.items())) == values


# -- the template ---------------------------------------------------------------------------------------
def test_the_template_is_all_comment_and_names_every_option():
    text = b.dotenv_template()
    assert b.parse_dotenv(text) == {}
    assert [option.env for option in b.OPTIONS if '#%s=' % option.env not in text] == []


def test_the_template_switched_on_gives_the_defaults(folder):
    lines = [line[1:] if line.startswith('#') and not line.startswith('# ') else line
             for line in b.dotenv_template().splitlines()]
    path = write(folder / 'all.env', '\n'.join(lines))
    groups = ('server', 'stub', 'client')
    filled, plain = load({'env_file': path}, {}, groups), load({}, {}, groups)
    values = [{name: value for name, value in vars(item).items() if name != 'sources'} for item in (filled, plain)]
    assert values[0] == values[1]
    assert filled.sources['port'] == path


def test_the_table_of_options_is_sound():
    for attribute in ('name', 'env'):
        names = [getattr(option, attribute) for option in b.OPTIONS]
        assert len(names) == len(set(names))
    flags = [flag for option in b.OPTIONS for flag in option.flags]
    assert len(flags) == len(set(flags)) and all(flag.startswith('--') for flag in flags)
    for option in b.OPTIONS:
        assert option.help and set(option.group.split()) <= {'server', 'stub', 'client'}
        assert option.default is None or option.parse(option.default) is not None
        assert len(option.flags) == 2 if option.is_switch and option.flags else len(option.flags) <= 1


def test_defaults_are_the_documented_ones(folder):
    settings = load({}, {}, ('server', 'stub', 'client'))
    assert (settings.server_type, settings.listen, settings.port) == ('qmt', '127.0.0.1', 58620)
    assert (settings.max_connections, settings.max_subscriptions) == (64, 200)
    assert (settings.access_log, settings.log_account, settings.token) == (True, False, None)
    assert (settings.enable_data, settings.enable_broker, settings.stub_clock) == (True, True, 'always')
    assert (settings.data_provider, settings.broker) == ('qmt-remote', 'qmt-remote')


# -- malformed values -----------------------------------------------------------------------------------
BAD = [('server_type', ['real', 'STUB', 'stub,qmt']), ('listen', ['a b', 'http://x', 'x/y']),
       ('port', ['-1', '65536', 'x', '1.5', '0x10', '１２', '1 2', '9' * 20]),
       ('token', ['a\x00b', 'a\x1bb']), ('enable_data', ['2', 'ja', 'enabled']), ('enable_broker', ['nope']),
       ('allowlist', ['10.0.0.1/8', '300.1.1.1', 'localhost', '10.0.0.0/33', '::1/129', '1.2.3.4;5.6.7.8']),
       ('max_connections', ['0', '-5', 'many']), ('max_subscriptions', ['0']), ('access_log', ['x']),
       ('log_account', ['x']), ('request_timeout', ['0', 'inf', 'nan', '1e3', '-1']), ('auto_subscribe', ['x']),
       ('account_type', ['shares']), ('session_id', ['0', 'x', '2147483648']), ('stub_cash', ['-1', 'nan', '1e5',
                                                                                              'inf']),
       ('stub_seed', ['-1', '1.5']), ('stub_tick_interval', ['0', 'x']), ('stub_clock', ['never']),
       ('rpc_timeout', ['0', 'x']), ('data_provider', ['tushare', 'csv', 'csv:', 'stub:x']), ('broker', ['x']),
       ('accounts', ['x', 'main', '=1', 'main=', 'a b=1', 'main=1:shares', 'main=1,main=2', 'a=1,b=1', 'main=1,x',
                     'a=1:stock:C:\\x,a=2:stock:C:\\y', '主/账=1', 'main=1,,b=2']),
       ('sub_accounts', ['x', '@main', 'x@', 'x@main:limit=', 'x@main:limit=0', 'x@main:limit=-5', 'x@main:limit=1e5',
                         'x@main:limit=nan', 'x@main:limit=inf', 'x@main:max=5', 'a@main,a@main', 'a@main,a@other',
                         'a@b@c', 'x @ main', 'x@main:5'])]
CASES = [(name, text) for name, texts in BAD for text in texts]


@pytest.mark.parametrize('name, text', CASES)
def test_a_malformed_value_names_the_item_and_its_source(folder, name, text):
    option = next(option for option in b.OPTIONS if option.name == name)
    groups = option.group.split()
    from_environ = refused({}, {option.env: text}, groups)
    assert option.env in from_environ and '环境变量' in from_environ and from_environ.startswith('[CONFIG_INVALID]')
    if option.flags:
        from_command = refused({name: text}, {}, groups)
        assert option.flags[0] in from_command and '命令行' in from_command
    if text.isprintable():
        write(folder / 'x.env', '%s="%s"\n' % (option.env, text))
        assert 'x.env' in refused({'env_file': 'x.env'}, {}, groups)


@pytest.mark.parametrize('name', sorted({option.name for option in b.OPTIONS} - {name for name, _ in BAD}))
def test_what_takes_any_text_refuses_an_empty_one(folder, name):
    option = next(option for option in b.OPTIONS if option.name == name)
    with pytest.raises(ValueError):
        option.parse(' ')


def test_a_token_is_never_shown(folder):
    text = refused({'token': 'geheim\x07geheim'})
    assert 'geheim' not in text and '--token' in text
    assert 'geheim' not in refused({'token': 'geheimgeheim', 'port': 'x'})


def test_each_error_names_the_offending_part(folder):
    assert '10.0.0.1/8' in refused({'allowlist': '127.0.0.1, 10.0.0.1/8'})
    assert 'qa@' in refused({'sub_accounts': 'a@main,qa@'})
    assert 'hedge 出现了两次' in refused({'accounts': 'hedge=1,hedge=2'})


def test_a_misspelt_name_gives_a_warning(folder):
    write(folder / '.env', 'QMT_SERVER_ALOWLIST=10.0.0.0/8\n')
    warnings = load({}, {'QMT_SERVER_TOKN': 'geheim', 'PATH': 'x', 'QMT_SERVER_HOST': 'h'}).warnings
    assert len(warnings) == 2
    assert 'QMT_SERVER_ALOWLIST' in warnings[0] and 'QMT_SERVER_TOKN' in warnings[1]
    assert 'geheim' not in ''.join(warnings)


# -- values ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('text, expected', [('1', True), ('TRUE', True), (' yes ', True), ('on', True), ('0', False),
                                            ('false', False), ('No', False), ('OFF', False)])
def test_switches(text, expected):
    assert b.parse_bool(text) is expected


def test_the_allowlist_takes_addresses_and_networks():
    networks = b.parse_allowlist('127.0.0.1, 10.0.0.0/8,::1 ,fd00::/8')
    assert [str(network) for network in networks] == ['127.0.0.1/32', '10.0.0.0/8', '::1/128', 'fd00::/8']
    assert b.parse_allowlist('') == b.parse_allowlist('  ') == ()
    for text in (',', ' , ,'):  # meant to name somebody, but would admit everybody
        with pytest.raises(ValueError):
            b.parse_allowlist(text)


@pytest.mark.parametrize('given', [{'state': 'x', 'log_file': 'x'}, {'state': './x', 'log_file': 'sub/../x'},
                                   {'state': 'x', 'tls_cert': 'x', 'tls_key': 'k'}, {'log_file': 'k', 'tls_cert': 'c',
                                                                                     'tls_key': 'k'}])
def test_two_things_in_one_file_are_refused(given, tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / 'sub').mkdir()
    settings = b.load_settings(['server', 'stub'], dict(given, server_type='stub'), environ={}, dotenv=None)
    with pytest.raises(b.ConfigError) as caught:
        b.check_server_settings(settings)
    assert '同一个文件' in caught.value.message


def test_a_certificate_and_its_key_may_share_a_file():
    given = {'server_type': 'stub', 'tls_cert': 'both.pem', 'tls_key': 'both.pem'}
    settings = b.load_settings(['server', 'stub'], given, environ={}, dotenv=None)
    assert b.check_server_settings(settings) is settings


# -- accounts -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('text, expected', [
    ('main=55001234', [('main', '55001234', 'stock', None)]),
    ('main=55001234:credit', [('main', '55001234', 'credit', None)]),
    ('main=55001234:STOCK', [('main', '55001234', 'stock', None)]),
    ('main=55001234:stock:C:\\Qmt\\userdata_mini', [('main', '55001234', 'stock', 'C:\\Qmt\\userdata_mini')]),
    ('main=55001234:C:\\Qmt\\userdata_mini', [('main', '55001234', 'stock', 'C:\\Qmt\\userdata_mini')]),
    ('main=55001234:\\\\qmt\\d\\userdata_mini', [('main', '55001234', 'stock', '\\\\qmt\\d\\userdata_mini')]),
    ('main=1::D:/Qmt/u', [('main', '1', 'stock', 'D:/Qmt/u')]),
    ('main=1:stock:/opt/qmt', [('main', '1', 'stock', '/opt/qmt')]),
    (' main = 1 , hedge = 2:credit ', [('main', '1', 'stock', None), ('hedge', '2', 'credit', None)]),
    ('main=1:stock:C:\\a, b\\c,hedge=2:stock:C:\\Qmt\\user_b',
     [('main', '1', 'stock', 'C:\\a, b\\c'), ('hedge', '2', 'stock', 'C:\\Qmt\\user_b')]),
    ('a=1:stock,b=1:credit', [('a', '1', 'stock', None), ('b', '1', 'credit', None)]),
    ('主账户=1', [('主账户', '1', 'stock', None)])])
def test_accounts(text, expected):
    assert [tuple(spec[:4]) for spec in b.parse_accounts(text)] == expected


def test_accounts_and_sub_accounts_together(folder):
    settings = load({'accounts': 'main=55001234:stock:C:\\Qmt\\userdata_mini,hedge=55004321:stock:C:\\Qmt\\user_b',
                     'sub_accounts': 'research@main:limit=200000,qa@hedge'})
    assert [spec.key for spec in b.account_specs(settings)] == ['main', 'hedge']
    assert settings.sub_accounts == (('research', 'main', 200000.0), ('qa', 'hedge', None))
    assert b.check_server_settings(settings) is settings


def test_single_account_from_the_environment(folder):
    settings = load({}, {'QMT_ACCOUNT_ID': '55001234', 'QMT_ACCOUNT_TYPE': 'credit', 'QMT_DATA_PATH': 'C:\\Q',
                         'QMT_SESSION_ID': '77', 'QMT_AUTO_SUBSCRIBE': '0'})
    assert b.account_specs(settings) == (('default', '55001234', 'credit', 'C:\\Q', 77, False),)


def test_accounts_beat_the_single_account(folder):
    settings = load({'accounts': 'main=1'}, {'QMT_ACCOUNT_ID': '2'})
    assert [spec.key for spec in b.account_specs(settings)] == ['main']


def test_the_stub_has_an_account_of_its_own_and_qmt_has_none(folder):
    assert [spec.key for spec in b.account_specs(load({'server_type': 'stub'}))] == ['default']
    with pytest.raises(b.ConfigError):
        b.account_specs(load({'server_type': 'qmt'}))


def test_a_sub_account_of_an_unknown_account_is_refused(folder):
    settings = load({'accounts': 'main=1', 'sub_accounts': 'qa@hedge'})
    with pytest.raises(b.ConfigError) as caught:
        b.check_server_settings(settings)
    assert 'qa' in str(caught.value) and 'hedge' in str(caught.value) and 'main' in str(caught.value)


@pytest.mark.parametrize('given', [{'tls_cert': 'a.pem'}, {'tls_key': 'a.pem'}])
def test_half_of_tls_is_refused(folder, given):
    settings = load(dict(given, server_type='stub'))
    with pytest.raises(b.ConfigError) as caught:
        b.check_server_settings(settings)
    assert '--tls-cert' in str(caught.value) and '--tls-key' in str(caught.value)


def test_settings_can_be_changed_in_a_copy(folder):
    settings = load({'port': '5'})
    other = settings.replace(port=6)
    assert (settings.port, other.port, other.listen) == (5, 6, settings.listen)
    assert other.sources == settings.sources


@pytest.mark.parametrize('option', b.OPTIONS, ids=lambda option: option.name)
def test_an_error_names_the_parameter_the_flag_and_the_variable(option):
    wrong = {'enable_data': 'perhaps'}.get(option.name, '\n')
    if option.parse in (b.parse_allowlist, b.parse_sub_accounts):
        wrong = 'x y'
    with pytest.raises(b.ConfigError) as caught:
        b.load_settings(option.group.split(), {option.name: wrong}, environ={}, dotenv=None)
    names = {option.name, option.env}.union(option.flags)
    assert all(name in caught.value.message for name in names)


def test_a_missing_token_is_asked_for_in_all_three_ways():
    with pytest.raises(b.ConfigError) as caught:
        b.ShortConnection('127.0.0.1', 1, None)
    assert caught.value.hint == '给出 token（命令行 --token，环境变量 QMT_SERVER_TOKEN）'


# -- where the token comes from, and where it goes ---------------------------------------------------------------------
SECRET = 'a-secret-of-the-tests-0123456789'


def written(path, text, mode=0o600):
    path.write_text(text, encoding='utf-8')
    path.chmod(mode)
    return str(path)


def from_client(given=None, environ=None, dotenv=None):
    return b.load_settings(['client'], given, environ or {}, dotenv)


@pytest.mark.parametrize('text', [SECRET, SECRET + '\n', '\ufeff' + SECRET + '\r\n', ' %s ' % SECRET])
@pytest.mark.parametrize('way', ['flag', 'environment'])
def test_a_token_in_a_file_of_its_own(tmp_path, text, way):
    path = written(tmp_path / 'token', text)
    settings = from_client({'token_file': path}) if way == 'flag' else from_client(
        environ={'QMT_SERVER_TOKEN_FILE': path})
    assert settings.token == SECRET and settings.warnings == []


def test_what_is_nearer_to_the_command_line_counts(tmp_path):
    path = written(tmp_path / 'token', SECRET)
    assert from_client({'token_file': path}, {'QMT_SERVER_TOKEN': 'x' * 20}).token == SECRET
    assert from_client({'token': 'y' * 20}, {'QMT_SERVER_TOKEN_FILE': path}).token == 'y' * 20
    dotenv = written(tmp_path / '.env', 'QMT_SERVER_TOKEN=%s' % ('z' * 20))
    assert from_client(environ={'QMT_SERVER_TOKEN_FILE': path}, dotenv=dotenv).token == SECRET
    for both, environ in (({'token_file': path, 'token': SECRET}, {}),
                          ({}, {'QMT_SERVER_TOKEN': SECRET, 'QMT_SERVER_TOKEN_FILE': path})):
        with pytest.raises(b.ConfigError) as caught:
            from_client(both, environ)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize('text', ['', '\n', SECRET + '\nsecond', SECRET + '\x00', SECRET + '\t' + SECRET])
def test_a_token_file_that_holds_none_is_refused_and_not_shown(tmp_path, text):
    with pytest.raises(b.ConfigError) as caught:
        from_client({'token_file': written(tmp_path / 'token', text)})
    assert SECRET not in str(caught.value)


def test_a_token_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / 'nothing', tmp_path):
        with pytest.raises(b.ConfigError):
            from_client({'token_file': str(path)})


@pytest.mark.skipif(b.IS_WINDOWS, reason='Windows keeps who may read a file in the folder')
@pytest.mark.parametrize('mode, told', [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1), (0o644, 1)])
def test_a_secret_that_others_can_read_is_told(tmp_path, mode, told):
    dotenv = written(tmp_path / '.env', 'QMT_SERVER_TOKEN=%s\n' % SECRET, mode)
    assert len(from_client(dotenv=dotenv).warnings) == told
    assert len(from_client({'env_file': dotenv}).warnings) == told
    assert len(from_client({'token_file': written(tmp_path / 'token', SECRET, mode)}).warnings) == told
    plain = written(tmp_path / 'plain.env', 'QMT_SERVER_PORT=1\n', mode)
    assert from_client(dotenv=plain).warnings == [], 'no secret'


@pytest.mark.parametrize('host', ['192.0.2.2', 'evil.example.com', '::2', '128.0.0.1', '127.0.0.1.evil.example',
                                  'localhost.evil.example', '0.0.0.0', '127.0.0.1%.evil.example', '::1%evil'])
@pytest.mark.parametrize('way', ['environment', 'flag', 'file'])
def test_a_directory_of_somebody_else_gets_no_token(tmp_path, host, way):
    dotenv = written(tmp_path / '.env', 'QMT_SERVER_HOST=%s\n' % host)
    given = {'flag': {'token': SECRET}, 'file': {'token_file': written(tmp_path / 'token', SECRET)}}.get(way)
    with pytest.raises(b.ConfigError) as caught:
        from_client(given, {'QMT_SERVER_TOKEN': SECRET} if way == 'environment' else {}, dotenv)
    assert host in str(caught.value) and SECRET not in str(caught.value)


def test_a_host_that_was_meant_gets_it(tmp_path):
    both = written(tmp_path / 'both', 'QMT_SERVER_HOST=192.0.2.2\nQMT_SERVER_TOKEN=%s\n' % SECRET)
    host = written(tmp_path / 'host', 'QMT_SERVER_HOST=192.0.2.2\n')
    near = written(tmp_path / 'near', 'QMT_SERVER_HOST=127.0.0.5\n')
    token = {'QMT_SERVER_TOKEN': SECRET}
    for settings in (from_client(dotenv=both), from_client({'host': '192.0.2.2'}, token, host),
                     from_client(environ=dict(token, QMT_SERVER_HOST='192.0.2.2'), dotenv=host),
                     from_client({'env_file': host}, token), from_client({}, token, near),
                     from_client({'host': '192.0.2.2'}, {}, both)):
        assert settings.token == SECRET


def test_a_host_without_a_token_is_no_leak(tmp_path):
    host = written(tmp_path / 'host', 'QMT_SERVER_HOST=192.0.2.2\n')
    assert from_client(dotenv=host).token is None


@pytest.mark.parametrize('line, value', [
    ('A=' + ' ' * 300000 + 'x', 'x'), ('A' + ' ' * 300000 + '=x', 'x'), ('A=x' + ' ' * 300000 + 'y', None),
    ('export' + ' ' * 300000 + 'A=x', 'x'), ('A=x' + ' #' * 150000, 'x'), ('A="x"' + ' ' * 300000 + '# c', 'x')])
def test_a_long_line_is_read_at_once(line, value):
    """A pattern that looks back at each blank takes hours for these: the runner's own limit ends the test then."""
    values = b.parse_dotenv(line)
    assert values == {'A': line[2:] if value is None else value}


@pytest.mark.parametrize('line', ['A' + ' ' * 300000, 'A="' + ' ' * 300000, 'A=#' + ' ' * 300000 + 'x',
                                  'A="x"' + ' ' * 300000 + 'y'])
def test_a_long_line_that_is_wrong_is_refused_at_once(line):
    with pytest.raises(b.ConfigError):
        b.parse_dotenv(line + '\nB=1')


# -- paths that are none on Windows --------------------------------------------------------------------------------
PATHS = ['token_file', 'tls_cert', 'tls_key', 'log_file', 'state', 'stub_data', 'data_path']
WINDOWS = pytest.mark.skipif(os.name != 'nt', reason='elsewhere these are names as any other')


@WINDOWS
@pytest.mark.parametrize('text', ['NUL', 'D:x', 'logs\\aux.log', 'x.log.', 'D:\\x" --port'])
@pytest.mark.parametrize('name', PATHS)
def test_a_path_that_windows_takes_for_something_else_is_refused(name, text, folder):
    option = next(option for option in b.OPTIONS if option.name == name)
    told = refused(environ={option.env: text})
    assert option.env in told and '环境变量' in told and os.listdir(str(folder)) == []
    assert 'main' not in told and '应写成' not in refused(environ={'QMT_SERVER_ACCOUNTS': 'main=1:stock:' + text})


@WINDOWS
@pytest.mark.parametrize('arguments', [
    ['backtest', 'con.py', '--start', '2024-01-02', '--end', '2024-01-03'], ['live', 'aux.py'],
    ['env', '--write', 'NUL'],
    ['backtest', 'x.py', '--start', '2024-01-02', '--end', '2024-01-03', '--output', 'D:x'],
    ['backtest', 'x.py', '--start', '2024-01-02', '--end', '2024-01-03', '--log', 'nul'],
    ['backtest', 'x.py', '--start', '2024-01-02', '--end', '2024-01-03', '--data-provider', 'csv:COM1'],
    ['live', 'x.py', '--runtime-dir', 'live.'], ['live', 'x.py', '--log', 'prn']], ids=' '.join)
def test_so_is_one_on_the_command_line(arguments, folder, capsys):
    write(folder / 'x.py', 'def initialize(context):\n    pass\n')
    try:
        code = b.main(arguments)
    except SystemExit as error:
        code = error.code
    err = capsys.readouterr().err
    assert code == b.Exit.USAGE and err.count('错误 [CONFIG_INVALID]') == 1 and os.listdir(str(folder)) == ['x.py']


@WINDOWS
def test_a_path_that_was_pasted_with_its_quotes_is_that_path(folder):
    assert load({'log_file': '"D:\\a b\\x.log"'}).log_file == 'D:\\a b\\x.log'
    assert b.parse_accounts('main=1:stock:"D:\\a b\\userdata_mini"')[0].data_path == 'D:\\a b\\userdata_mini'


def by_environment(path):
    return b.load_settings(['server'], {}, {'BT_ENV_FILE': path}, None)


def by_command_line(path):
    return b.load_settings(['server'], {'env_file': path}, {}, None)


@WINDOWS
@pytest.mark.parametrize('load_from', [by_environment, by_command_line])
def test_the_file_of_settings_is_named_as_any_other_path(folder, load_from):
    (folder / 'a b.env').write_bytes(b'QMT_SERVER_PORT=1234\n')
    assert load_from('"%s"' % (folder / 'a b.env')).port == 1234
    for path, reason in [('C:a b.env', 'C:\\a b.env'), ('a b.env.', '末尾'), ('NUL', '设备名')]:
        with pytest.raises(b.ConfigError) as caught:
            load_from(path)
        assert reason in str(caught.value) and 'BT_ENV_FILE' in caught.value.hint
