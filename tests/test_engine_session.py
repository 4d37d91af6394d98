"""What surrounds a strategy: its names and modules, its log, its errors, what it leaves behind."""
import sys
from datetime import datetime

import pandas as pd
import pytest

import bullet_qmt as bq
import jq_helper as jq
from tests.engine import A, B, REAL, MadeMarket, day_row, days_from, open_run, run, written

DAYS = days_from('2024-03-04', 6)


@pytest.fixture
def market(tmp_path):
    made = MadeMarket(tmp_path)
    for number, code in enumerate((A, B)):
        made.daily(code, [day_row(day, 10.0 + n, pre_close=10.0 + max(0, n - 1), volume=1000 * (n + 1))
                          for n, day in enumerate(DAYS)])
    return made


def play(market, tmp_path, body, days=2, **options):
    text = 'from jqdata import *\n\n\n' + body
    return run(tmp_path, text, market.source, DAYS[0], DAYS[days - 1], **options)


def failing(market, tmp_path, body, **options):
    with pytest.raises(jq.StrategyError) as caught:
        play(market, tmp_path, body, **options)
    return caught.value


# -- errors --------------------------------------------------------------------------------------------------------
BROKEN = '''def initialize(context):
    run_daily(trade, '9:30')


def trade(context):
    order('%s', 100)
    helper(context)


def helper(context):
    if context.current_dt.day == 5:
        raise ValueError('no luck')
''' % A


def test_a_failure_ends_the_run_with_the_strategy_s_own_traceback(market, tmp_path):
    error = failing(market, tmp_path, BROKEN, days=4)
    assert error.line == 15 and error.text.endswith('ValueError: no luck')
    assert "helper(context)" in error.text and 'in trade' in error.text and 'jq_helper' not in error.text
    assert isinstance(error.__cause__, ValueError)
    result = error.result
    assert [str(day) for day in result.days] == [DAYS[0]] and not result.finished and len(result.trades) == 1
    assert any('no luck' in text for text in result.messages)


def test_a_message_is_the_error_not_its_hint(market, tmp_path):
    body = 'def initialize(context):\n    set_option("nothing", 1)\n'
    error = failing(market, tmp_path, body)
    assert '建议：' in error.text.splitlines()[-1]
    assert error.summary.startswith('第 5 行 BadRequest: ') and 'nothing' in error.summary
    assert error.result.messages[0] == '回测中止：' + error.summary
    odd = failing(market, tmp_path, '''class Odd(Exception):
    def __str__(self):
        raise ValueError


def initialize(context):
    raise Odd
''')
    assert odd.line == 10 and 'Odd' in odd.summary
    syntax = failing(market, tmp_path, 'def initialize(context)\n    pass\n')
    assert syntax.summary.startswith('第 4 行 SyntaxError: ') and '\n' not in syntax.summary


@pytest.mark.parametrize('line, hint', [
    ("pd.Series([1.0], ['x'])[-1]", 'series.iloc[-1]'),
    ("pd.Series([1.0], ['x'])[0]", 'series.iloc[0]'),
    ("attribute_history('%s', 1).append(1)" % A, 'pd.concat'), ("attribute_history('%s', 1).ix" % A, 'iloc'),
    ('pd.Panel()', 'panel=False'), ('{}[-1]', None), ("attribute_history('%s', 1)['none']" % A, None),
    ("attribute_history('%s', 1).fillna(method='ffill')" % A, 'ffill()'),
    ("attribute_history('%s', 1)['close'].fillna(method='bfill')" % A, 'bfill()'),
    ("attribute_history('%s', 1).rolling(2, axis=1).mean()" % A, 'df.T.rolling'),
    ("attribute_history('%s', 1).resample('M').last()" % A, "写 'ME'"),
    ("attribute_history('%s', 1).resample('H').last()" % A, "写 'h'"),
    ("attribute_history('%s', 1).index < context.current_dt.date()" % A, 'pd.Timestamp(日期)'),
    ("get_price('%s', count=1).index[-1] < context.current_dt.date()" % A, 'pd.Timestamp(日期)'),
    ("context.current_dt.date() - get_price('%s', count=1).index[-1]" % A, '.date()'),
    ("attribute_history('%s', 1).drop('close', 1)" % A, 'axis=1'),
    ("pd.rolling_mean(attribute_history('%s', 1), 2)" % A, 'rolling(n).mean()'),
    ("get_price(['%s', '%s'], count=2)['close']['%s']" % (A, B, A), 'pivot'),
    ("get_price(['%s', '%s'], count=2)['close', '%s']" % (A, B, A), 'pivot'),
    ("get_price(['%s', '%s'], count=2).iloc[:, :, 0]" % (A, B), 'pivot'),
    ("get_price(['%s', '%s'], count=2).minor_axis" % (A, B), 'code 列'),
    ("get_all_securities()['start_date'].dt.year", 'pd.to_datetime'), ('np.float(1)', '写 float'),
    ('np.NaN', '写 np.nan'), ("{}['%s']" % A, None), ("dict(method=1)['%s']" % B, None)])
def test_what_pandas_no_longer_takes_has_a_hint(market, tmp_path, line, hint):
    if int(pd.__version__.split('.')[0]) < 3 and hint is not None:
        pytest.skip('this pandas takes it')
    error = failing(market, tmp_path, 'def handle_data(context, data):\n    %s\n' % line)
    assert error.line == 5 and ('建议：' in error.text) == (hint is not None) and (hint or '') in error.text


def test_or_is_logged_and_the_run_goes_on(market, tmp_path):
    result, lines = play(market, tmp_path, BROKEN, days=4, on_error='continue')
    assert len(result.days) == 4 and result.finished and len(result.trades) == 3  # at the limit on one
    assert sum('no luck' in text for text in result.messages) == 1
    assert any('line 15' in line for line in lines)


@pytest.mark.parametrize('body, line, said', [
    ('def initialize(context)\n    pass\n', 4, 'SyntaxError'), ('1 / 0\n', 4, 'ZeroDivisionError'),
    ('def initialize(context):\n    g.never_set\n', 5, 'never_set'),
    ('def initialize(context):\n    raise SystemExit(3)\n', 5, 'SystemExit'),
    ("def initialize(context):\n    order('%s', 'many')\n" % A, 5, 'many'),
    ("def initialize(context):\n    get_price('600001.XSHG', count=1)\n", 5, '600001'),
    ("def initialize(context):\n    get_fundamentals(query())\n", 5, 'read_file'),
    ("def initialize(context):\n    order('%s', 100, side='short')\n" % A, 5, '做空'),
    ("def initialize(context):\n    set_option('use_real_prices', True)\n", 5, 'use_real_price'),
    ('import jqlib.technical_analysis\n', 4, 'pandas'), ('from jqfactor import *\n', 4, 'pandas')])
def test_failures_of_all_kinds_name_the_line(market, tmp_path, body, line, said):
    error = failing(market, tmp_path, body, on_error='continue')
    assert error.line == line and said in error.text, error.text


def test_ctrl_c_leaves_what_was_done(market, tmp_path):
    result, _ = play(market, tmp_path, '''def handle_data(context, data):
    if context.current_dt.day == 6:
        raise KeyboardInterrupt
''', days=5)
    assert [str(day) for day in result.days] == DAYS[:2] and not result.finished
    assert any('Ctrl-C' in text for text in result.messages)


def test_a_progress_that_is_interrupted_counts_as_one_too(market, tmp_path):
    def stop(done, total, day, equity):
        if done == 3:
            raise KeyboardInterrupt
    result, _ = play(market, tmp_path, 'def initialize(context):\n    pass\n', days=5, progress=stop)
    assert len(result.days) == 3 and not result.finished


# -- settings ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('call, said', [
    ("set_option('use_real_price', 'False')", 'True 或 False'), ("set_option('t0_mode', 1)", 'True 或 False'),
    ("set_option('avoid_future_data', None)", 'True 或 False'), ("set_option('order_volume_ratio', '0.1')", '0 到 1'),
    ("set_option('order_volume_ratio', True)", '0 到 1'), ("set_option('order_volume_ratio', 2)", '0 到 1'),
    ("set_option('set', True)", 'use_real_price'), ("set_option(None, True)", 'use_real_price'),
    ("set_order_cost(OrderCost(), 'stocks')", 'stock、fund'), ("set_order_cost(OrderCost(), ['stock'])", 'stock、fund'),
    ("set_order_cost(OrderCost(), None)", 'stock'),
    ("set_order_cost(OrderCost(), 'Stock', ref='%s')" % A, 'stock、fund'),
    ("set_order_cost(0.0003, 'stock')", 'OrderCost'), ("set_slippage(FixedSlippage(0), 'funds')", 'stock、fund'),
    ("set_slippage(FixedSlippage(0), type='%s')" % A, 'stock、fund'), ("set_slippage(0.02)", 'FixedSlippage')])
def test_a_setting_of_the_wrong_kind_is_refused(market, tmp_path, call, said):
    error = failing(market, tmp_path, 'def initialize(context):\n    %s\n' % call)
    assert isinstance(error.__cause__, bq.BadRequest) and said in error.text and error.line == 5


def test_settings_for_what_is_not_traded_here_change_nothing(market, tmp_path):
    body = 'def initialize(context):\n    set_slippage(FixedSlippage(0))\n'
    body += "    set_order_cost(OrderCost(open_commission=0.5), 'futures', ref='RB9999.XSGE')\n"
    body += "    for each in ('fja', 'fjb', 'fjm', 'index_futures', 'open_fund', 'QDII_fund'):\n"
    body += '        set_slippage(StepRelatedSlippage(100), each)\n'
    body += "    for each in ('stock', 'fund', 'mmf', 'bond', 'etf', 'lof', 'money_market_fund'):\n"
    body += "        set_slippage(FixedSlippage(0), each)\n        set_order_cost(OrderCost(), each)\n"
    body += "    run_daily(lambda context: order('%s', 100), '9:30')\n" % A
    result, lines = play(market, tmp_path, body, days=1)
    assert (result.trades[0]['price'], result.trades[0]['commission']) == (10.0, 0.0)
    assert len([line for line in lines if '不起作用' in line]) == 7 and 'futures' in lines[0]


# -- names and modules ---------------------------------------------------------------------------------------------
def test_modules_are_there_for_the_run_alone(market, tmp_path):
    kept = dict(sys.modules)
    play(market, tmp_path, '''import jqdata, kuanke.user_space_api as api
from kuanke.user_space_api import order_target_value, get_price
from kuanke.wizard import *
assert jqdata.get_price == api.get_price == get_price and jqdata.g is g


def initialize(context):
    import jqdata as again
    assert again.order is order and pd.DataFrame and np.nan != 1
''')
    assert not {'jqdata', 'kuanke', 'kuanke.user_space_api', 'kuanke.wizard'} & set(sys.modules)
    assert all(sys.modules.get(name) is module for name, module in kept.items())
    assert not any(type(finder).__name__ == '_NoSuchModules' for finder in sys.meta_path)


def test_another_module_of_the_name_is_put_back(market, tmp_path):
    sys.modules['jqdata'] = own = type(sys)('jqdata')
    try:
        play(market, tmp_path, 'import jqdata\njqdata.order\n\ndef initialize(context): pass\n')
        assert sys.modules['jqdata'] is own
    finally:
        del sys.modules['jqdata']


def test_each_name_of_common_use_is_there(market, tmp_path):
    with open_run(tmp_path, 'def initialize(context): pass', market.source, DAYS[0], DAYS[1]) as prepared:
        names = prepared.session.names()
    assert set('''log g set_option set_benchmark run_daily set_order_cost get_current_data order_target_value
        set_slippage get_fundamentals query get_price get_security_info order_target attribute_history FixedSlippage
        get_index_stocks get_all_securities history run_weekly order_value PriceRelatedSlippage OrderStatus run_monthly
        order run_query get_bars record get_trades get_extras OrderCost PerTrade set_commission send_message read_file
        write_file LimitOrderStyle MarketOrderStyle get_orders get_open_orders cancel_order get_trade_days
        get_all_trade_days set_universe unschedule_all inout_cash batch_submit_orders enable_profile
        disable_cache'''.split()) <= set(names)


@pytest.mark.parametrize('name', sorted(jq.LEFT_OUT))
def test_what_is_left_out_names_a_way_out(name):
    with pytest.raises(NotImplementedError) as caught:
        jq.LEFT_OUT[name]()
    assert name in str(caught.value) and '：' in str(caught.value)


@pytest.mark.parametrize('line, name', [
    ('query(valuation.code)', 'valuation.code'), ('income.net_profit > 0', 'income.net_profit'),
    ('import jqdata as jq; jq.finance.STK_XR_XD', 'finance.STK_XR_XD'), ('macro.MAC_CPI', 'macro.MAC_CPI'),
    ('get_index_weights("000300.XSHG")', 'get_index_weights'), ('purchase("519888.OF", 1)', 'purchase')])
def test_what_is_left_out_says_so_where_the_module_uses_it(market, tmp_path, line, name):
    error = failing(market, tmp_path, line + '\n\ndef initialize(context):\n    pass\n')
    assert error.summary.startswith('第 4 行 NotImplementedError: %s（' % name)


def test_a_strategy_s_own_names_go_before_those_that_are_left_out(market, tmp_path):
    _, lines = play(market, tmp_path, 'bond = 1\n\ndef initialize(context):\n    log.info(str(bond))\n',
                    params={'bond': 2})
    assert lines[0].endswith('INFO - 2')


def test_names_that_mean_nothing_here_are_there(market, tmp_path):
    play(market, tmp_path, '''enable_profile()
disable_cache()


def initialize(context):
    assert not isinstance(context, (DividendsEvent, ForcedLiquidationEvent))
''')


def test_ticks_come_in_live_runs_alone_and_that_is_said_once(market, tmp_path):
    result, _ = play(market, tmp_path, '''def initialize(context):
    subscribe('%s', 'tick')


def handle_tick(context, tick):
    unsubscribe_all()
''' % A, days=3)
    assert result.finished and sum('handle_tick' in text for text in result.messages) == 1


def test_a_file_in_which_nothing_can_run(market, tmp_path):
    with pytest.raises(bq.ConfigError) as caught:
        play(market, tmp_path, 'def initialise(context):\n    pass\n')
    assert 'strategy.py' in caught.value.message and 'initialize' in caught.value.message
    result, _ = play(market, tmp_path, 'def initialise(context): pass\n\ndef handle_data(context, data): pass\n')
    assert any('没有 initialize' in text for text in result.messages)
    result, _ = play(market, tmp_path, 'def initialize(context): pass\n')
    assert any('什么也不会运行' in text for text in result.messages)


def test_parameters_are_in_g_and_replace_constants(market, tmp_path):
    _, lines = play(market, tmp_path, '''FAST = 5


def initialize(context):
    log.info('%s %s', FAST, g.slow)
''', params={'FAST': 7, 'slow': 'x'})
    assert lines == [DAYS[0] + ' 00:00:00 - INFO - 7 x']


# -- log, records, files -------------------------------------------------------------------------------------------
def test_log_levels_and_print(market, tmp_path):
    _, lines = play(market, tmp_path, '''def initialize(context):
    log.debug('d %d', 1)
    log.info('50%')
    log.warn('w', 2)
    log.error('e')
    print('p', 3)
    log.set_level('strategy', 'error')
    log.info('hidden')
    log.error('shown')
''')
    assert [line.split(' - ', 1)[1] for line in lines] == [
        'DEBUG - d 1', 'INFO - 50%', 'WARNING - w 2', 'ERROR - e', 'INFO - p 3', 'ERROR - shown']


def test_an_empty_position_and_its_warning(market, tmp_path):
    _, lines = play(market, tmp_path, '''def initialize(context):
    position = context.portfolio.positions['%s']
    assert position.total_amount == position.closeable_amount == position.avg_cost == position.price == 0
    assert '%s' not in context.portfolio.positions and len(context.portfolio.positions) == 0
''' % (A, A))
    assert len(lines) == 1 and 'WARNING' in lines[0] and A in lines[0]


def test_records_files_messages(market, tmp_path):
    result, lines = play(market, tmp_path, '''def initialize(context):
    write_file('kept.txt', 'one')
    write_file('kept.txt', b' two', append=True)
    assert read_file('kept.txt') == b'one two'
    send_message('hello')
    run_daily(early, '9:00')
    run_daily(late, '14:00')
    run_daily(after, '16:30')


def early(context):
    record(a=1)


def late(context):
    record(a=2, b=context.current_dt.day)


def after(context):
    record(c=3)
''', days=3)
    assert [(str(day), dict(values)) for day, values in result.records] == [
        (DAYS[0], {'a': 2.0, 'b': 4.0}), (DAYS[1], {'a': 2.0, 'b': 5.0, 'c': 3.0}),
        (DAYS[2], {'a': 2.0, 'b': 6.0, 'c': 3.0})]
    assert any('hello' in line for line in lines)


def test_a_record_without_a_value_is_a_gap(market, tmp_path):
    result, _ = play(market, tmp_path, '''def initialize(context):
    run_daily(note, '9:30')


def note(context):
    record(mean=float('nan') if context.current_dt.day == 5 else np.float32(2), on=context.current_dt.day == 6)
    record(none=float('nan'))
''', days=3)
    assert [(str(day), dict(values)) for day, values in result.records] == [
        (DAYS[0], {'mean': 2.0, 'on': 0.0}), (DAYS[1], {'on': 0.0}), (DAYS[2], {'mean': 2.0, 'on': 1.0})]


@pytest.mark.parametrize('value', ['None', '"5"', 'float("inf")', '10 ** 400', '[1, 2]', 'np.array([1, 2])', '1e16'])
def test_what_is_no_number_is_not_recorded(market, tmp_path, value):
    with pytest.raises(jq.StrategyError) as caught:
        play(market, tmp_path, 'def initialize(context):\n    record(a=%s)\n' % value)
    assert 'BadRequest' in caught.value.text and '建议' in caught.value.text


def test_money_in_counts_as_capital(market, tmp_path):
    result, _ = play(market, tmp_path, '''def initialize(context):
    run_monthly(pay, 2, '9:30')


def pay(context):
    inout_cash(500000)
''', days=3)
    assert result.capital == [1000000, 1500000, 1500000] and result.equity == result.capital
    assert jq.compute_metrics(result).values['returns'] == 0


def test_units_of_handle_data(market, tmp_path):
    _, lines = play(market, tmp_path, '''def initialize(context):
    set_option('use_real_price', True)


def handle_data(context, data):
    bar = data['{0}']
    if context.current_dt.day == 8:
        assert (bar.close, bar.volume, bar.security, bar.isnan()) == (13.0, 4000.0, '{0}', False)
        assert abs(bar.returns - (13 / 12 - 1)) < 1e-12 and bar.mavg(3) == 12.0
        assert abs(bar.vwap(2) - (12 * 3000 + 13 * 4000) / 7000) < 1e-9
        log.info('looked')
    if context.current_dt.day == 4:
        assert bar.mavg(3) != bar.mavg(3)
'''.format(A), days=5)
    assert len(lines) == 1 and 'looked' in lines[0]


@pytest.mark.parametrize('frequency', ['day', 'minute'])
def test_figures_of_handle_data_are_those_of_days(tmp_path, frequency):
    """JoinQuant: mavg, vwap and stddev over days, whatever the run's frequency; stddev is that of the closes."""
    made, days = MadeMarket(tmp_path), days_from('2024-03-04', 7)
    closes, volumes = [8, 9, 11, 10, 12, 14, 15], [100, 200, 300, 400, 500, 600, 700]
    made.daily(A, [day_row(day, close, volume=volume, pre_close=before)
                   for day, close, volume, before in zip(days, closes, volumes, [8] + closes)])
    made.write_minutes(A, sum([made.minutes(A, day, {'09:31': (close, close, close, close, 100)})
                               for day, close in zip(days, closes)], []))
    five = closes[1:6]
    mean = sum(five) / 5
    result, lines = run(tmp_path, '''
    from jqdata import *

    def handle_data(context, data):
        if context.current_dt.minute == 30 and context.current_dt.hour == 9:
            bar = data['%s']
            record(mean=bar.mavg(5), spread=bar.stddev(5), price=bar.vwap(3), opened=bar.mavg(2, 'open'))
    ''' % A, made.source, days[6], days[6], frequency=frequency)
    ((_, seen),) = result.records
    assert seen['mean'] == pytest.approx(11.2) and seen['opened'] == 13
    assert seen['spread'] == pytest.approx((sum((value - mean) ** 2 for value in five) / 5) ** 0.5)
    assert seen['price'] == pytest.approx((10 * 400 + 12 * 500 + 14 * 600) / 1500)


NUMBERS = ["pd.Series([0.4], index=['score'])", 'np.array([0.4])', '[0.4]', '(0.4,)', 'np.array([[0.4]])', '[[0.4]]',
           "pd.DataFrame({'a': [0.4]})", "pd.Series([0.4], dtype=object)", 'pd.Index([0.4])',
           'np.float32(0.4)', 'np.array(0.4)', "Decimal('0.4')"]


@pytest.mark.parametrize('value', NUMBERS)
def test_the_only_number_of_a_container_is_recorded(market, tmp_path, value):
    result, _ = play(market, tmp_path, 'from decimal import Decimal\ndef handle_data(context, data):\n'
                     '    record(x=%s)\n' % value, days=1)
    assert [values for _, values in result.records] == [{'x': pytest.approx(0.4)}]


@pytest.mark.parametrize('value', [
    '[0.4, 0.5]', '[]', 'pd.Series([0.4, 0.5])', 'pd.Series([], dtype=float)', "'0.4'", "['0.4']", 'None', '[None]',
    "pd.Series(['0.4'])", "np.array(['0.4'])", "pd.Series([pd.Timestamp('2024-01-01')])", '{}', '{0.4}', 'object()'])
def test_what_is_no_single_number_is_not_recorded(market, tmp_path, value):
    error = failing(market, tmp_path, 'def handle_data(context, data):\n    record(x=%s)\n' % value)
    assert 'record 的 x 应为数字' in error.summary


def test_a_pool_may_be_empty(market, tmp_path):
    result, _ = play(market, tmp_path, '''def initialize(context):
    set_universe([])
    assert context.universe == []


def handle_data(context, data):
    assert history(3, '1d', 'close').empty and history(3, df=False) == {} and get_bars([], 3) == {}
    assert get_extras('is_st', [], count=1).empty and batch_submit_orders([]) == [] and batch_cancel_orders([]) == []
    subscribe([], 'tick')
    unsubscribe([], 'tick')
    record(looked=1)
''', days=1)
    assert len(result.records) == 1


@pytest.mark.parametrize('call', ['order([], 100)', "order('', 100)", 'order_target([], 0)', 'order_value([], 1000)',
                                  'order_target_value([], 0)', 'order(None, 100)', "order(['%s'], 100)" % A])
def test_an_order_names_a_security(market, tmp_path, call):
    result, _ = play(market, tmp_path, '''def handle_data(context, data):
    try:
        assert %s is None
    except Exception as error:
        assert 'BadRequest' in repr(type(error)) or 'SecurityNotFound' in repr(type(error))
''' % call, days=1)
    assert not result.orders


def test_names_that_are_on_joinquant_are_here(market, tmp_path):
    result, lines = play(market, tmp_path, '''def handle_data(context, data):
    log.critical('of %%s', 'weight')
    portfolio = context.portfolio
    only, = portfolio.subportfolios
    assert only is context.subportfolios[0] and only.net_value == only.total_value == portfolio.net_value == 1000000
    assert only.total_liability == only.interest == 0
    assert get_trade_day('%s', context.current_dt) == {'%s': context.current_dt.date()}
    placed = [order('%s', 100, LimitOrderStyle(9.5)), order('%s', 100, LimitOrderStyle(9.6))]
    assert batch_cancel_orders(placed) == placed and not get_open_orders()
    assert [str(each.status) for each in placed] == ['canceled'] * 2
    assert batch_cancel_orders([each.order_id for each in placed] + [77]) == [None] * 3
''' % (A, A, A, B), days=1)
    assert any(line.endswith(' - CRITICAL - of weight') for line in lines) and len(result.orders) == 2


@pytest.mark.parametrize('orders', ["'1'", 'None', '{}', '5'])
def test_what_is_no_list_of_orders_is_not_cancelled(market, tmp_path, orders):
    error = failing(market, tmp_path, 'def handle_data(context, data):\n    batch_cancel_orders(%s)\n' % orders)
    assert 'batch_cancel_orders' in error.summary


# -- benchmark, arguments ------------------------------------------------------------------------------------------
def test_the_benchmark_grows_from_the_close_before_the_start(market, tmp_path):
    body = 'def initialize(context):\n    set_benchmark({"%s": 3, "%s": 1})\n' % (A, B)
    result, _ = run(tmp_path, 'from jqdata import *\n' + body, market.source, DAYS[2], DAYS[4])
    assert result.benchmark == pytest.approx([12 / 11, 13 / 11, 14 / 11])


def test_a_benchmark_of_no_weight_is_none(market, tmp_path):
    """JoinQuant documents {code: 0} as the way to have no benchmark."""
    result, _ = play(market, tmp_path, 'def initialize(context):\n    set_benchmark({"%s": 0})\n' % A)
    assert result.benchmark is None and result.params['benchmark'] == ''
    assert not any('基准' in text for text in result.messages)
    body = 'from jqdata import *\ndef initialize(context):\n    set_benchmark({"%s": 1, "000003.XSHE": 0})\n' % A
    assert run(tmp_path, body, market.source, DAYS[2], DAYS[3])[0].benchmark == pytest.approx([12 / 11, 13 / 11])


@pytest.mark.parametrize('weights', ['{}', '{"%s": -1}' % A, '{"%s": "1"}' % A])
def test_what_is_no_benchmark_is_refused(market, tmp_path, weights):
    error = failing(market, tmp_path, 'def initialize(context):\n    set_benchmark(%s)\n' % weights)
    assert 'BadRequest' in error.summary


def test_a_benchmark_whose_base_is_zero_is_not_drawn(market, tmp_path):
    market.daily(A, [day_row(day, 10.0, pre_close=10.0 if number else 0.0) for number, day in enumerate(DAYS)])
    result, _ = play(market, tmp_path, 'def initialize(context):\n    set_benchmark("%s")\n' % A)
    assert result.benchmark is None and any('不全' in text for text in result.messages)


def test_a_benchmark_without_data_is_none_and_says_so(market, tmp_path):
    result, _ = play(market, tmp_path, 'def initialize(context):\n    pass\n')
    assert result.benchmark is None and any('000300' in text for text in result.messages)
    result, _ = play(market, tmp_path, 'def initialize(context):\n    pass\n', benchmark=A)
    assert result.benchmark == pytest.approx([1.0, 1.1])


@pytest.mark.parametrize('change, word', [
    (dict(start='2024-03-09', end='2024-03-08'), '2024-03-09'), (dict(start='soon'), 'start'),
    (dict(start='2031-01-01', end='2031-02-01'), '交易日'), (dict(cash=-1), 'cash'),
    (dict(frequency='tick'), 'frequency'), (dict(provider='nowhere'), 'nowhere'),
    (dict(path='missing.py'), 'missing.py')])
def test_arguments_that_cannot_be(market, tmp_path, change, word):
    given = dict(path=written(tmp_path, 'def initialize(context): pass'), start=DAYS[0], end=DAYS[1],
                 provider=market.source)
    with pytest.raises(bq.BulletError) as caught:
        jq.backtest(**dict(given, **change))
    assert word in str(caught.value)


def test_a_span_beyond_the_data_says_so(tmp_path):
    result, _ = run(tmp_path, 'def initialize(context): pass', REAL, '2020-04-01', '2020-06-30')
    assert str(result.days[-1]) == '2020-04-10' and any('2020-04-10' in text for text in result.messages)
    for end, told in (('2020-04-12', False), ('2020-04-13', True)):  # Sunday, Monday
        result, _ = run(tmp_path, 'def initialize(context): pass', REAL, '2020-04-01', end)
        assert any('行情到 2020-04-10 为止' in text for text in result.messages) == told


@pytest.mark.parametrize('now, last', [('2020-04-09 09:29', '2020-04-08'), ('2020-04-09 09:30', '2020-04-09'),
                                       ('2020-04-09 15:30', '2020-04-09'), ('2020-04-09 00:00', '2020-04-08')])
def test_a_day_that_has_not_begun_is_not_run(tmp_path, monkeypatch, now, last):
    """The provider has the days of later, as calendars do; JoinQuant's opens at 9:30."""
    monkeypatch.setattr(jq, '_beijing_now', lambda: datetime.strptime(now, '%Y-%m-%d %H:%M'))
    for end in ('2020-04-09', '2020-04-10'):
        result = jq.backtest(written(tmp_path, 'def initialize(context): pass'), '2020-04-01', end, provider=REAL)
        assert str(result.days[-1]) == last
        assert any('行情到 %s 为止' % last in text for text in result.messages) == (last != end)


def test_without_pandas_there_is_one_clear_error(market, tmp_path, monkeypatch):
    monkeypatch.setattr(jq, 'optional_import', lambda name: None)
    with pytest.raises(bq.ConfigError) as caught:
        play(market, tmp_path, 'def initialize(context): pass')
    assert 'pip install pandas' in caught.value.hint


def test_previous_date_and_run_params(market, tmp_path):
    _, lines = play(market, tmp_path, '''def initialize(context):
    run_daily(look, '9:30')


def look(context):
    assert context.portfolio is context.subportfolios[0] and context.portfolio.type == 'stock'
    log.info('%s %s %s', context.previous_date, context.current_dt, context.run_params.frequency)
''', days=3)
    assert lines[-1].endswith('%s %s 09:30:00 day' % (DAYS[1], DAYS[2]))
    assert datetime.strptime(lines[0][:19], '%Y-%m-%d %H:%M:%S').hour == 9


def test_a_strategy_may_sell_in_a_loop_over_its_positions(market, tmp_path):
    result, _ = run(tmp_path, '''
        from jqdata import *

        def initialize(context):
            run_daily(trade, '9:30')

        def trade(context):
            positions = context.portfolio.positions
            if not positions:
                order('{0}', 1000), order('{1}', 1000)
                assert list(positions) == sorted(positions.keys()) == ['{1}', '{0}'] or len(positions) == 2
                assert [item.security for item in positions.values()] == list(positions) == list(dict(positions))
            elif context.current_dt.day % 2:
                for security in positions:
                    order_target(security, 0)
            else:
                for security, position in positions.items():
                    order_target(security, 0)
                assert not positions and list(positions.values()) == []
        '''.format(A, B), market.source, DAYS[0], DAYS[3])
    assert [row['side'] for row in result.trades] == ['BUY', 'BUY', 'SELL', 'SELL'] * 2


def test_all_money_may_be_taken_out(market, tmp_path):
    result, _ = run(tmp_path, '''
        def initialize(context):
            run_daily(leave, '9:30')

        def leave(context):
            inout_cash(-context.portfolio.available_cash)
            assert context.portfolio.returns == 0
        ''', market.source, DAYS[0], DAYS[2])
    assert result.equity == result.capital == [0, 0, 0]
    assert jq.compute_metrics(result).values['returns'] is None


def test_the_first_strategy_of_joinquant_s_handbook(market, tmp_path):
    result, _ = run(tmp_path, '''
        import jqdata

        def initialize(context):
            g.security = '%s'
            set_option('use_real_price', True)
            run_daily(market_open, time='every_bar')

        def market_open(context):
            security = g.security
            close_data = attribute_history(security, 2, '1d', ['close'])
            MA5 = close_data['close'].mean()
            current_price = close_data['close'][-1]
            cash = context.portfolio.available_cash
            if current_price > 1.01 * MA5:
                order_value(security, cash)
                log.info('Buying %%s' %% (security))
            elif current_price < MA5 and context.portfolio.positions[security].closeable_amount > 0:
                order_target(security, 0)
            record(stock_price=current_price)
        ''' % A, market.source, DAYS[2], DAYS[-1], cash=10000)
    assert result.trades and len(result.records) == len(DAYS) - 2
