"""Section REPORT of jq_helper: lines for the terminal, CSV files, and what stands in the HTML page."""
import base64
import csv
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
from collections import OrderedDict
from datetime import date, datetime
from html.parser import HTMLParser

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bullet_qmt as bq
import jq_helper as jq
from tests.runs import EVIL, busy_run, curve_result, evil_run, long_run, sale

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = ['annual_returns', 'daily_records', 'dividends', 'metrics', 'monthly_returns', 'orders', 'positions', 'trades']


@pytest.fixture(scope='module')
def run():
    result = long_run(300, messages=['第一条提醒', '第二条\n提醒'])
    return result, jq.compute_metrics(result)


def written(result, directory):
    """dict of file name without .csv -> list of rows, as Python's own csv reads them."""
    tables = {}
    for path in jq.write_csvs(result, jq.compute_metrics(result), str(directory)):
        with io.open(path, encoding='utf-8-sig', newline='') as file:
            tables[os.path.basename(path)[:-4]] = list(csv.reader(file))
    return tables


# -- values as text --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('value, kind, text', [
    (0.12345, 'gain', '+12.35%'), (-0.5, 'gain', '-50.00%'), (-0.000001, 'gain', '0.00%'), (0.0, 'gain', '0.00%'),
    (0.25, 'percent', '25.00%'), (12.3456, 'percent', '1,234.56%'), (1234567.891, 'money', '1,234,567.89'),
    (-0.001, 'money', '0.00'), (-12.5, 'profit', '-12.50'), (12.5, 'profit', '+12.50'), (1.23456, 'number', '1.235'),
    (1200, 'count', '1,200'), (10.5, 'price', '10.50'), (4.125, 'price', '4.125'), (1680.0, 'price', '1,680.00'),
    (date(2024, 1, 2), 'date', '2024-01-02'), (datetime(2024, 1, 2, 9, 30), 'date', '2024-01-02'),
    (datetime(2024, 1, 2, 9, 30), 'time', '2024-01-02 09:30:00'), ('BUY', 'side', '买入'), ('SELL', 'side', '卖出'),
    ('held', 'status', '已成'), ('filling', 'status', '部成'), ('rejected', 'status', '废单'),
    ('strange', 'status', 'strange'), ('a\x1b[31mb', 'text', 'a\\x1b[31mb'), ('万\u3000科', 'text', '万  科'),
    (None, 'gain', '-'), (float('nan'), 'money', '-'), (float('inf'), 'number', '-'), (None, 'text', '-')])
def test_values_as_text(value, kind, text):
    assert jq.shown_value(value, kind) == text


# -- terminal --------------------------------------------------------------------------------------------------------
def test_summary_lines_name_every_metric_and_line_up(run):
    result, metrics = run
    lines = jq.summary_lines(result, metrics)
    assert lines[0] == '策略 动量轮动.py：2015-01-05 至 2016-02-26，300 个交易日'
    assert '期末总资产 %s' % '{:,.2f}'.format(result.equity[-1]) in lines[1]
    assert lines[-2:] == ['注意：第一条提醒', '注意：第二条\\x0a提醒']
    for rows in jq.METRIC_GROUPS.values():
        for name, label, kind in rows:
            assert re.search(r'%s +%s( |$)' % (label, re.escape(jq.shown_value(metrics.values[name], kind))),
                             '\n'.join(lines), re.MULTILINE)
    table = lines[3:-2]
    starts = [[match.start() for match in re.finditer(r'-+', table[1])][2]]
    for line in table[2:10]:  # the second group begins in the same column everywhere
        cells = re.split(r' {2,}', line)
        assert bq.text_width(line[:line.index(cells[2], len(cells[0]))]) == starts[0]


def test_summary_of_a_run_that_was_stopped():
    result = curve_result([1.0], finished=False, messages=['被 Ctrl-C 打断'])
    lines = jq.summary_lines(result, jq.compute_metrics(result))
    assert '回测没有走完' in lines[2] and lines[-1] == '注意：被 Ctrl-C 打断'


def test_summary_of_nothing():
    result = jq.BacktestResult(name='a.py')
    lines = jq.summary_lines(result, jq.compute_metrics(result))
    assert lines[0] == '策略 a.py：没有走完一个交易日' and any('夏普比率' in line for line in lines)


# -- CSV -------------------------------------------------------------------------------------------------------------
def test_csv_files_and_their_columns(run, tmp_path):
    tables = written(run[0], tmp_path)
    assert sorted(tables) == sorted(FILES + ['records']) == sorted(name[:-4] for name in os.listdir(str(tmp_path)))
    assert tables['daily_records'][0] == list(jq.DAILY_COLUMNS)
    assert tables['trades'][0] == ['time', 'order_id', 'security', 'name', 'side', 'amount', 'price', 'value',
                                   'commission', 'tax', 'profit']
    assert tables['records'][0] == ['date', '持股数', '仓位']
    assert {len(row) for table in tables.values() for row in table} <= {3, 4, 7, 9, 11, 12}


def test_csv_rows_are_the_runs(run, tmp_path):
    result, metrics = run
    tables = written(result, tmp_path)
    for name in ('trades', 'orders', 'positions', 'dividends'):
        rows = getattr(result, name)
        assert len(tables[name]) == len(rows) + 1 > 1
        for cells, row in zip(tables[name][1:], rows):
            for column, text in zip(tables[name][0], cells):
                value = row[column]
                assert (float(text) == pytest.approx(value, rel=1e-14)) if isinstance(value, float) else (
                    text == ('' if value is None else str(value)))
    assert [row[:3] for row in tables['metrics'][1:3]] == [
        ['returns', '策略收益', tables['metrics'][1][2]], ['annual_returns', '策略年化收益', tables['metrics'][2][2]]]
    assert float(tables['metrics'][1][2]) == pytest.approx(metrics.values['returns'], rel=1e-14)


def test_csv_files_through_pandas(run, tmp_path):
    result, metrics = run
    written(result, tmp_path)
    days = pandas.read_csv(str(tmp_path / 'daily_records.csv'), parse_dates=['date'])
    assert [stamp.date() for stamp in days.date] == result.days
    for name, values in (('equity', result.equity), ('benchmark', result.benchmark), ('exposure', metrics.exposure),
                         ('drawdown', metrics.own.drawdowns), ('returns', metrics.own.returns)):
        assert list(days[name]) == pytest.approx(values, rel=1e-14)
    assert list(days.cumulative_returns + 1) == pytest.approx(metrics.own.growth)
    trades = pandas.read_csv(str(tmp_path / 'trades.csv'), dtype={'order_id': str}, parse_dates=['time'])
    assert list(trades.time) == [row['time'] for row in result.trades]
    assert list(trades['name']) == [row['name'] for row in result.trades]
    assert trades.profit.isnull().sum() == sum(row['profit'] is None for row in result.trades)
    months = pandas.read_csv(str(tmp_path / 'monthly_returns.csv'))
    assert list(months.returns) == pytest.approx([row['returns'] for row in metrics.monthly])


def test_csv_bytes(tmp_path):
    written(curve_result([1.0], trades=[sale(1e-7, price=1e16)]), tmp_path)
    data = (tmp_path / 'trades.csv').read_bytes()
    assert data.startswith(b'\xef\xbb\xbftime,') and data.endswith(b'\r\n') and data.count(b'\n') == data.count(b'\r\n')
    assert '平安银行'.encode('utf-8') in data and b',10000000000000000,' in data and data.endswith(b',0.0000001\r\n')


@pytest.mark.parametrize('text', ['=1+1', '+1', '-1', '@SUM(A1)', ' =1+1', '\t=1+1', '=cmd|\'/c calc\'!A1'])
def test_no_text_becomes_a_formula(text, tmp_path):
    result = curve_result([0.5], trades=[sale(-2.5, name=text)], records=[(date(2024, 1, 2), {text: -1.5})])
    tables = written(result, tmp_path)
    named, head = tables['trades'][1][3], tables['records'][0][1]
    assert named == head and not named.startswith(('=', '+', '-', '@', '\t', ' '))
    assert named.lstrip("'") == text.replace('\t', '\\x09')
    assert tables['trades'][1][-1] == '-2.5' and tables['records'][1][1] == '-1.5'  # figures stay figures


def test_odd_texts_come_back_from_csv(tmp_path):
    rows = written(evil_run(), tmp_path)['orders']
    shown = bq.printable(EVIL)
    assert all(row[1] == shown and row[2].startswith(shown) for row in rows[1:]) and len(rows) > 3


def test_no_value_is_an_empty_cell(tmp_path):
    tables = written(curve_result([1.0, 0.0, 0.0]), tmp_path)
    last = dict(zip(*[tables['daily_records'][place] for place in (0, -1)]))
    assert last['returns'] == last['benchmark'] == last['exposure'] == '' and last['cumulative_returns'] == '-1'


def test_a_run_of_no_days_has_files_with_heads_alone(tmp_path):
    tables = written(jq.BacktestResult(), tmp_path / 'deep' / 'er')
    assert sorted(tables) == FILES and all(len(tables[name]) == 1 for name in FILES if name != 'metrics')


def test_records_of_an_earlier_run_do_not_stay(run, tmp_path):
    assert 'records' in written(run[0], tmp_path)
    written(curve_result([1.0]), tmp_path)
    assert not (tmp_path / 'records.csv').exists()


# -- files are whole -------------------------------------------------------------------------------------------------
def test_a_file_that_fails_half_way_leaves_the_old_one(run, tmp_path, monkeypatch):
    written(run[0], tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(str(tmp_path))}

    def fail(descriptor):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(jq.os, 'fsync', fail)
    with pytest.raises(bq.ConfigError, match='写不了 .*daily_records.csv：No space left'):
        written(curve_result([2.0]), tmp_path)
    with pytest.raises(bq.ConfigError, match='report.html'):
        jq.write_html(run[0], run[1], str(tmp_path / 'report.html'))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(str(tmp_path))} == before


def test_an_error_in_the_rows_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes(b'old')

    def rows():
        yield ['x']
        raise ValueError('in the middle')
    with pytest.raises(ValueError):
        jq._write_csv(str(path), ['name'], rows())
    assert path.read_bytes() == b'old' and os.listdir(str(tmp_path)) == ['a.csv']


def test_a_directory_that_cannot_be_made_is_one_clear_error(run, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    for write in (lambda: jq.write_csvs(run[0], run[1], str(tmp_path / 'file')),
                  lambda: jq.write_html(run[0], run[1], str(tmp_path / 'file' / 'report.html'))):
        with pytest.raises(bq.ConfigError, match='写不了 .*file'):
            write()


# -- the page ---------------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """A page as a browser's parser sees it: elements as (tag, attributes, path of tags), texts, unbalanced tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open, self.problems = [], [], [], []
        self.feed(text)
        self.close()
        self.problems += self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in ('meta', 'link'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else '', text))

    def all(self, name):
        return [attributes for tag, attributes, _ in self.elements if tag == name]

    def text_of(self, name):
        return [text for tag, text in self.texts if tag == name]

    @property
    def data(self):
        return json.loads(self.text_of('script')[0])


def page_of(result):
    return Page(jq.report_html(result, jq.compute_metrics(result)))


@pytest.fixture(scope='module')
def page(run):
    return page_of(run[0])


RUNS = OrderedDict([
    ('whole', lambda: long_run(300)), ('evil', evil_run), ('no days', lambda: jq.BacktestResult(finished=False)),
    ('one day', lambda: curve_result([1.1])), ('no trades', lambda: curve_result([1.1, 1.2], [1.0, 1.1])),
    ('ruin', lambda: curve_result([1.1, -0.5, -0.5], [1.0, 1.1, 1.0])),
    ('gaps', lambda: curve_result([1.0, float('nan'), float('inf'), 1.1], [1.0, float('nan'), 1.0, 1.0])),
    ('stopped', lambda: long_run(60, finished=False))])


@pytest.mark.parametrize('name', list(RUNS))
def test_structure_of_the_page(name):
    page = page_of(RUNS[name]())
    assert page.problems == []
    tags = {tag for tag, _, _ in page.elements}
    assert tags <= set('html head meta title link style body main header h1 h2 h3 p ul li span div strong small '
                       'section noscript figure figcaption label select option button svg desc table caption thead '
                       'tbody tr th td details summary pre footer script'.split())
    identifiers = [attributes['id'] for _, attributes, _ in page.elements if 'id' in attributes]
    assert len(identifiers) == len(set(identifiers)) and len(page.all('h1')) == 1
    assert page.all('html')[0]['lang'] == 'zh-CN' and len(page.all('script')) == 2
    assert page.data['dates'] == sorted(page.data['dates'])


@pytest.mark.parametrize('name', list(RUNS))
def test_nothing_is_fetched_and_only_the_pages_own_script_may_run(name):
    page = page_of(RUNS[name]())
    for _, attributes, _ in page.elements:
        assert not {'src', 'action', 'srcset', 'style', 'background'} & set(attributes)
        assert not [key for key in attributes if key.startswith('on')]
        assert attributes.get('href', 'data:,') == 'data:,'
    script = page.text_of('script')[1]
    digest = base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')
    policy = [attributes['content'] for attributes in page.all('meta') if 'http-equiv' in attributes][0]
    assert "default-src 'none'" in policy and "script-src 'sha256-%s'" % digest in policy
    assert 'unsafe-inline' not in policy.replace("style-src 'unsafe-inline'", '')


def test_the_constants_cannot_end_their_elements():
    assert '</' not in jq.REPORT_SCRIPT and '<!--' not in jq.REPORT_SCRIPT and '<' not in jq.REPORT_STYLE
    assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)|@import|url\(', jq.REPORT_SCRIPT + jq.REPORT_STYLE)
    assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|eval\(', jq.REPORT_SCRIPT)


def test_charts_and_tables_can_be_read_without_seeing_them(page):
    svgs = page.all('svg')
    assert len(svgs) == 5
    known = {attributes['id'] for attributes in page.all('title') + page.all('desc') if 'id' in attributes}
    for attributes in svgs:
        assert attributes['role'] == 'img' and set(attributes['aria-labelledby'].split()) <= known
    assert len(page.all('caption')) == len(page.all('table')) and {'scope'} <= set(page.all('th')[0])
    assert all('scope' in attributes for attributes in page.all('th'))


def test_rows_are_as_long_as_their_heads(run):
    tables = re.findall(r'<table.*?</table>', jq.report_html(*run), re.DOTALL)
    assert len(tables) > 8
    for table in tables:
        rows = re.findall(r'<tr>.*?</tr>', table, re.DOTALL)
        assert len({len(re.findall(r'<t[hd][ >]', row)) for row in rows}) == 1


def test_every_metric_is_in_the_page(run):
    text = jq.report_html(*run)
    for rows in jq.METRIC_GROUPS.values():
        for name, label, kind in rows:
            assert re.search(r'<th scope="row">%s</th><td[^>]*>%s</td>' % (
                label, re.escape(jq.shown_value(run[1].values[name], kind))), text)


def test_the_evil_stays_text():
    page, shown = page_of(evil_run()), bq.printable(EVIL)
    assert page.all('img') == [] and len(page.all('script')) == 2
    for tag in ('h1', 'option', 'td', 'th', 'li', 'pre'):
        assert shown in ''.join(page.text_of(tag)), tag
    charts = {chart['id']: chart for chart in page.data['charts']}
    assert [series['name'] for series in charts['records']['series']] == [shown + '持股数', shown + '仓位']
    raw = jq.report_html(evil_run(), jq.compute_metrics(evil_run()))
    assert '<img' not in raw and 'window.evil=1</script>' not in raw
    assert not re.search('[\u2028\u202e\x00\ud800]', raw)


@given(st.text())
def test_any_text_survives_escaping(text):
    page = Page('<!DOCTYPE html><p>%s</p>' % jq._markup(text))
    assert ''.join(page.text_of('p')) == jq._plain(text) and len(page.elements) == 1
    data = Page('<script>%s</script>' % jq._json_text({'a': text}))
    assert json.loads(data.text_of('script')[0]) == {'a': text} and len(data.elements) == 1


def test_a_stopped_run_says_so(run):
    result = long_run(60, finished=False)
    text = jq.report_html(result, jq.compute_metrics(result))
    assert '未走完' in text and '回测没有走完' in text
    assert '没有走完' not in jq.report_html(*run) and '未走完' not in jq.report_html(*run)


def test_messages_are_shown(page):
    assert '第二条\n提醒' in page.text_of('li')


def test_of_many_messages_the_first_are_shown():
    result = curve_result([1.0], messages=['提醒 %d' % number for number in range(jq.MESSAGES + 7)])
    metrics = jq.compute_metrics(result)
    lines = jq.summary_lines(result, metrics)
    assert lines[-2:] == ['注意：提醒 %d' % (jq.MESSAGES - 1), '注意：另有 7 条提醒没有列出']
    assert Page(jq.report_html(result, metrics)).text_of('li')[-1] == '另有 7 条提醒没有列出'


def test_a_run_without_trades_has_no_prices_and_says_no_rows():
    page = page_of(curve_result([1.1, 1.2], [1.0, 1.1]))
    assert page.data['prices'] == [] and len(page.all('svg')) == 3
    assert page.text_of('p').count('没有') == 4


def test_a_run_without_benchmark_has_one_curve_and_dashes():
    result = curve_result([1.1, 1.2])
    names = [series['name'] for series in page_of(result).data['charts'][0]['series']]
    assert names == ['策略', '总资产'] and '<strong>-</strong>' in jq.report_html(result, jq.compute_metrics(result))


def test_the_positions_shown_are_those_of_the_last_day(run):
    result = run[0]
    text = jq.report_html(*run)
    table = re.search(r'<caption>期末持仓</caption>.*?</table>', text, re.DOTALL).group(0)
    last = [row['security'] for row in result.positions if row['date'] == result.days[-1]]
    assert re.findall(r'<td>(\d{6}\.XSH[EG])</td>', table) == last


def test_nothing_held_on_the_last_day_is_no_position():
    result = long_run(60)
    result.positions = [row for row in result.positions if row['date'] != result.days[-1]]
    text = jq.report_html(result, jq.compute_metrics(result))
    assert '<caption>期末持仓</caption>' not in text


def test_an_order_of_joinquants_filled_is_filled_in_part():
    row = dict(order_id='1', security='000001.XSHE', name='平安银行', side='BUY', amount=300, order_price=None,
               avg_price=10.0, message='', add_time=datetime(2024, 1, 2, 9, 30))
    result = curve_result([1.0], orders=[dict(row, filled=100, status='filled'), dict(row, filled=300, status='filled'),
                                         dict(row, filled=300, status='held')])
    text = jq.report_html(result, jq.compute_metrics(result))
    assert re.findall(r'<td>(部成|已成)</td>', text) == ['部成', '已成', '已成']


def test_long_tables_show_their_end_and_name_the_file():
    trades = [sale(1.0, order_id='no%d' % number) for number in range(jq.TABLE_ROWS + 7)]
    result = curve_result([1.0, 1.0], trades=trades)
    text = jq.report_html(result, jq.compute_metrics(result))
    assert '最后 %d 行，共 %d 行；全部在 trades.csv' % (jq.TABLE_ROWS, jq.TABLE_ROWS + 7) in text
    assert '<td>no6</td>' not in text and '<td>no7</td>' in text and text.count('<td>no') == jq.TABLE_ROWS


# -- data of the charts ------------------------------------------------------------------------------------------------
def test_curves_are_the_runs(run, page):
    result, metrics = run
    charts = {chart['id']: chart for chart in page.data['charts']}
    assert [page.data['dates'][place] for place in charts['equity']['at']] == list(map(str, result.days))
    own, market, excess, equity = [series['y'] for series in charts['equity']['series']]
    assert own == pytest.approx(metrics.own.growth, rel=1e-5)
    assert market == pytest.approx(result.benchmark, rel=1e-5)
    assert excess == pytest.approx(metrics.excess.growth, rel=1e-5)
    assert equity == pytest.approx(result.equity, rel=1e-12)
    assert charts['drawdown']['series'][0]['y'] == pytest.approx(metrics.own.drawdowns, rel=1e-5)
    assert charts['exposure']['series'][0]['y'] == pytest.approx(metrics.exposure, rel=1e-5)
    assert [page.data['dates'][place] for place in charts['equity']['band']] == [
        str(metrics.values['max_drawdown_' + name]) for name in ('start', 'end')]


def test_trades_of_a_day_and_side_are_one_mark():
    trades = [sale(None, side='BUY', amount=100, price=10.0), sale(None, side='BUY', amount=300, price=11.0),
              sale(5.0, amount=100, price=12.0), sale(7.0, amount=100, price=12.0, time=datetime(2024, 1, 4, 10))]
    days = [date(2024, 1, 2), date(2024, 1, 3), date(2024, 1, 4)]
    result = curve_result([1.0] * 3, trades=trades, prices={'000001.XSHE': (days, [10.0, 10.5, 12.0])})
    assert page_of(result).data['prices'][0]['marks'] == [[1, 1, 400, 10.75, 0], [1, -1, 100, 12, 5],
                                                          [2, -1, 100, 12, 7]]


def test_the_trade_of_a_day_that_was_not_finished_is_drawn():
    result = curve_result([1.0], finished=False, trades=[sale(5.0)],
                          prices={'000001.XSHE': ([date(2024, 1, 2)], [10.0])})
    data = page_of(result).data
    assert data['dates'] == ['2024-01-02', '2024-01-03'] and data['prices'][0]['marks'][0][0] == 1


def test_securities_are_listed_by_what_was_traded(run, page):
    values = {}
    for row in run[0].trades:
        values[row['security']] = values.get(row['security'], 0) + row['value']
    options = [text for text in page.text_of('option') if 'XSH' in text]
    assert [text[:11] for text in options][:len(values)] == sorted(values, key=lambda code: -values[code])


def test_record_curves_of_other_days_lie_on_their_own():
    result = curve_result([1.0] * 3, records=[(date(2024, 1, 2), {'a': 1.0}), (date(2024, 1, 4), {'b': 2.5, 'a': 3.0}),
                                              (date(2024, 1, 5), {'a': float('nan')})])
    data = page_of(result).data
    chart = data['charts'][-1]
    assert [data['dates'][place] for place in chart['at']] == ['2024-01-02', '2024-01-04', '2024-01-05']
    assert [series['y'] for series in chart['series']] == [[1, 3, None], [None, 2.5, None]]


@given(st.integers(0, 10 ** 6), st.integers(1, 3), st.integers(10, 600))
def test_thinning_keeps_ends_and_extremes(seed, count, limit):
    chance = random.Random(seed)
    curves = [[chance.choice([None, chance.uniform(-1e6, 1e6)]) for _ in range(700)] for _ in range(count)]
    kept = jq._extremes(curves, limit)
    assert kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == 699
    assert len(kept) <= max(limit, 2 * len(curves)) + 2
    for curve in curves:
        values = [value for value in curve if value is not None]
        if values:
            assert {min(values), max(values)} <= {curve[place] for place in kept}


@pytest.mark.parametrize('securities, trades', [(20, 20000), (400, 20000)])
def test_a_large_run_is_a_small_page(securities, trades):
    result = busy_run(securities, trades)
    size = len(jq.report_html(result, jq.compute_metrics(result)).encode('utf-8'))
    assert 1e5 < size < 5e6


def test_more_securities_than_charts_are_counted():
    result = busy_run(jq.PRICE_CHARTS + 5, 2000, 60)
    page = page_of(result)
    assert len(page.data['prices']) == jq.PRICE_CHARTS and '另有 5 只没有画出' in ''.join(page.text_of('p'))
    assert '曲线只画了' not in ''.join(page.text_of('p'))


def test_thinned_price_curves_say_so_and_keep_the_days_of_trades(monkeypatch):
    monkeypatch.setattr(jq, 'PRICE_POINTS', 1200)
    page = page_of(long_run(600))
    assert '曲线只画了' in ''.join(page.text_of('p'))
    for chart in page.data['prices']:
        assert len(chart['at']) < 200 and {mark[0] for mark in chart['marks']} <= set(chart['at'])


# -- colours -----------------------------------------------------------------------------------------------------------
def palettes():
    """The colours of light and dark, as dict name -> (r, g, b) from 0 to 1."""
    blocks = re.findall(r':root \{(.*?)\}', jq.REPORT_STYLE, re.DOTALL)
    light, dark = [{name: tuple(int(code[place:place + 2], 16) / 255.0 for place in (0, 2, 4))
                    for name, code in re.findall(r'--(\w+): #(\w{6});', block)} for block in blocks]
    assert set(light) == set(dark)
    return {'light': light, 'dark': dark}


def luminance(colour):
    parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    lower, higher = sorted([luminance(one), luminance(other)])
    return (higher + 0.05) / (lower + 0.05)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_can_be_read(scheme):
    colours = palettes()[scheme]
    pairs = [(text, ground) for text in ('text', 'quiet', 'up', 'down') for ground in ('page', 'panel')]
    pairs += [('text', '%s%d' % (tone, level)) for tone in ('up', 'down') for level in range(1, 6)] + [('text', 'warn')]
    assert {pair: round(contrast(*[colours[name] for name in pair]), 2) for pair in pairs
            if contrast(*[colours[name] for name in pair]) < 4.5} == {}
    lines = ['own', 'market'] + ['pen%d' % number for number in range(8)]
    assert [name for name in lines if contrast(colours[name], colours['panel']) < 3] == []


# -- without pandas ----------------------------------------------------------------------------------------------------
def test_neither_pandas_nor_numpy_is_needed(tmp_path):
    program = ('import sys; sys.modules["pandas"] = sys.modules["numpy"] = None\n'
               'import jq_helper as jq; from tests.runs import long_run\n'
               'result = long_run(60); metrics = jq.compute_metrics(result)\n'
               'jq.write_csvs(result, metrics, sys.argv[1])\n'
               'jq.write_html(result, metrics, sys.argv[1] + "/report.html")')
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(os.path.abspath(jq.__file__)), ROOT]))
    assert subprocess.call([sys.executable, '-c', program, str(tmp_path)], env=environment, cwd=str(tmp_path)) == 0
    assert (tmp_path / 'report.html').stat().st_size > 30000
