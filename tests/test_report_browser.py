"""The report in a real browser: what it draws, says under the pointer, and how it looks on a phone and in the dark."""
import sys

import pytest

import jq_helper as jq
from tests import browser as b
from tests.runs import busy_run, curve_result, evil_run, long_run

if sys.version_info < (3, 13):
    pytest.skip('the browser is driven on Python 3.13 alone', allow_module_level=True)
pytest.importorskip('selenium')
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

SIZES = {'phone': (360, 740, True), 'tablet': (768, 1024, True), 'desktop': (1280, 900, False)}


@pytest.fixture(scope='module')
def driver():
    problem = b.browser_problem()
    if problem:
        pytest.skip(problem)
    with b.browser() as driver:
        yield driver


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """dict name -> (result, metrics, address of its report)."""
    folder, made = tmp_path_factory.mktemp('reports'), {}
    runs = {'long': long_run(messages=['一条提醒']), 'evil': evil_run(), 'busy': busy_run(), 'one day': curve_result([1.1]),
            'no days': jq.BacktestResult(finished=False), 'flat': curve_result([1.0] * 5, [1.0] * 5),
            'ruin': curve_result([1.1, -0.5, -0.5], [1.0, 1.1, 1.0]), 'short': long_run(45)}
    for name, result in runs.items():
        metrics, path = jq.compute_metrics(result), folder / (name.replace(' ', '-') + '.html')
        made[name] = result, metrics, (path, jq.write_html(result, metrics, str(path)))[0].as_uri()
    return made


@pytest.fixture
def page(driver, files):
    """The ten years on a desktop."""
    return Report(driver, files['long'])


class Report:
    """An open report and what a reader does with it."""

    def __init__(self, driver, made, size='desktop', scheme='light'):
        self.driver = driver
        self.result, self.metrics, self.url = made
        b.set_screen(driver, *SIZES[size])
        b.set_colours(driver, scheme)
        b.console_lines(driver)
        b.requested_urls(driver)
        driver.get(self.url)

    def unfold(self):
        self.run('document.querySelectorAll("details").forEach(details => details.open = true)')

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def point(self, name, part):
        """Moves the pointer into the chart; part: 0 is the left edge of its drawing, 1 the right one."""
        plot = self.find('#%s .plot' % name)
        self.run('arguments[0].scrollIntoView({block: "center"})', plot)
        width = plot.size['width']
        offset = round(54 + part * (width - 62) - width / 2)
        ActionChains(self.driver, duration=0).move_to_element_with_offset(plot, offset, 0).perform()

    def legend(self, name):
        """(date, dict of a curve's name -> its figure) that the chart reads out."""
        items = self.driver.find_elements(By.CSS_SELECTOR, '#%s .series' % name)
        pairs = [(item.text.split('\n') if '\n' in item.text else item.text.rsplit(None, 1)) for item in items]
        return self.find('#%s time' % name).text, {key.strip(): value.strip() for key, value in pairs}

    def paths(self, name, kind='curve'):
        return self.run('return [...document.querySelectorAll(arguments[0])].map(path => path.getAttribute("d"))',
                        '#%s path.%s' % (name, kind))

    def crosses(self):
        return len(self.driver.find_elements(By.CSS_SELECTOR, 'line.cross'))


def gain(value):
    return jq.shown_value(value, 'gain')


# -- it opens ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['long', 'evil', 'busy', 'one day', 'no days', 'flat', 'ruin', 'short'])
@pytest.mark.parametrize('size', sorted(SIZES))
def test_it_opens_without_a_complaint_a_request_or_sideways_scrolling(driver, files, name, size):
    page = Report(driver, files[name], size)
    page.unfold()
    assert page.run('return document.documentElement.scrollWidth') <= SIZES[size][0]
    assert page.run('return window.evil') is None
    assert b.console_lines(driver) == []
    assert set(b.requested_urls(driver)) - {'data:,'} == {page.url}


def test_what_got_past_the_escaping_would_not_run(page):
    page.run('document.body.insertAdjacentHTML("beforeend", arguments[0])',
             '<img src="http://127.0.0.1:9/a.png" onerror="window.evil=1"><a onclick="window.evil=2" id="bait">x</a>')
    page.run('const script = document.createElement("script"); script.textContent = "window.evil=3";'
             'document.body.append(script); document.getElementById("bait").click()')
    assert page.run('return window.evil') is None
    complaints = b.console_lines(page.driver)
    assert len(complaints) >= 3 and all('Content Security Policy' in line for line in complaints)
    assert set(b.requested_urls(page.driver)) - {'data:,'} == {page.url}


def test_curves_are_drawn_inside_their_frames(page):
    for name, count in (('equity', 2), ('drawdown', 1), ('exposure', 1), ('records', 2), ('price', 1)):
        paths, height = page.paths(name), page.run('return document.querySelector("#%s svg").clientHeight' % name)
        assert len(paths) == count
        for path in paths:
            points = [tuple(map(float, point.split())) for point in path.strip('M').split('L')]
            assert len(points) > 1000 and all(54 <= x <= 1280 and 0 <= y <= height - 20 for x, y in points)


def test_the_summary_tiles_say_what_was_computed(page):
    tiles = [tile.text.split('\n')[1] for tile in page.driver.find_elements(By.CSS_SELECTOR, '.tile')]
    values = page.metrics.values
    assert tiles[:4] == [gain(values['returns']), gain(values['benchmark_returns']), gain(values['excess_returns']),
                         jq.shown_value(values['max_drawdown'], 'percent')]


def test_a_busy_run_is_no_larger_a_page_than_a_quiet_one(driver, files):
    """Twenty thousand trades: a browser that has to lay out a row for each is slow."""
    count = 'return document.getElementsByTagName("*").length'
    assert Report(driver, files['busy']).run(count) < 20000


# -- reading out ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('part', [0, 0.37, 1])
def test_the_pointer_reads_out_all_charts_at_one_day(page, part):
    result, metrics = page.result, page.metrics
    page.point('equity', part)
    shown, figures = page.legend('equity')
    day = list(map(str, result.days)).index(shown)
    assert day == pytest.approx(part * (len(result.days) - 1), abs=4)
    assert figures['策略'] == gain(metrics.own.growth[day] - 1)
    assert figures['基准'] == gain(metrics.benchmark.growth[day] - 1)
    assert figures['总资产'] == jq.shown_value(result.equity[day], 'money')
    assert page.legend('drawdown') == (shown, {'回撤': jq.shown_value(metrics.own.drawdowns[day], 'percent')})
    assert page.legend('exposure') == (shown, {'仓位': jq.shown_value(metrics.exposure[day], 'percent')})
    assert page.legend('price')[0] == page.legend('records')[0] == shown and page.crosses() == 5


def test_without_pointer_the_last_day_is_read_out(page):
    page.point('equity', 0.5)
    ActionChains(page.driver).move_to_element(page.find('#exposure h3')).perform()
    shown, figures = page.legend('equity')
    assert shown == str(page.result.days[-1]) and figures['策略'] == gain(page.metrics.values['returns'])
    assert page.crosses() == 0


def test_the_keyboard_moves_the_cursor(page):
    days, plot = list(map(str, page.result.days)), page.find('#equity .plot')
    moves = [(Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.PAGE_DOWN, 21), (Keys.ARROW_LEFT, 20), (Keys.END, -1)]
    for keys, day in moves:
        plot.send_keys(keys)
        assert page.legend('equity')[0] == days[day] and page.crosses() == 5
    plot.send_keys(Keys.ESCAPE)
    assert page.crosses() == 0


def test_a_finger_leaves_the_cursor_where_it_was(driver, files):
    page = Report(driver, files['long'], 'phone')
    plot = page.find('#equity .plot')
    page.run('arguments[0].scrollIntoView({block: "center"})', plot)
    box = page.run('const box = arguments[0].getBoundingClientRect(); return [box.left, box.top]', plot)
    driver.execute_cdp_cmd('Input.dispatchTouchEvent', {
        'type': 'touchStart', 'touchPoints': [{'x': box[0] + 150, 'y': box[1] + 60}]})
    driver.execute_cdp_cmd('Input.dispatchTouchEvent', {'type': 'touchEnd', 'touchPoints': []})
    assert page.crosses() == 5 and str(page.result.days[0]) < page.legend('equity')[0] < str(page.result.days[-1])


# -- switches and lists --------------------------------------------------------------------------------------------
def test_the_scale_switch(page):
    linear = page.paths('equity')
    page.find('[data-scale=log]').click()
    assert page.paths('equity') != linear
    assert page.find('[data-scale=log]').get_attribute('aria-pressed') == 'true'
    assert page.find('[data-scale=linear]').get_attribute('aria-pressed') == 'false'
    page.find('[data-scale=linear]').click()
    assert page.paths('equity') == linear


def test_no_log_scale_for_what_fell_below_nothing(driver, files):
    page = Report(driver, files['ruin'])
    linear = page.paths('equity')
    page.find('[data-scale=log]').click()
    assert page.paths('equity') == linear and '只能用线性轴' in page.find('#equity .note').text


def test_a_year_counts_from_its_start_in_every_chart(page):
    years = [row for row in page.metrics.annual if row['period'] == '2018']
    Select(page.find('select.range')).select_by_visible_text('2018 年')
    lists = page.driver.find_elements(By.CSS_SELECTOR, 'select.range')
    assert [Select(item).first_selected_option.text for item in lists] == ['2018 年'] * 3
    shown, figures = page.legend('equity')
    assert shown.startswith('2018-12') and page.legend('price')[0] == page.legend('records')[0] == shown
    assert figures['策略'] == gain(years[0]['returns']) and figures['基准'] == gain(years[0]['benchmark_returns'])
    assert figures['超额'] == gain(years[0]['excess_returns'])
    page.point('equity', 0)
    assert page.legend('equity')[0] == '2018-01-01'


def test_the_list_of_securities(page):
    before, select = page.paths('price'), Select(page.find('#security'))
    assert len(select.options) == len(page.result.prices) == 12
    select.select_by_index(3)
    code = select.first_selected_option.text.split()[0]
    dates, closes = page.result.prices[code]
    assert page.paths('price') != before
    assert page.legend('price') == (str(dates[-1]), {'收盘': jq.shown_value(closes[-1], 'price')})
    counts = [''.join(page.paths('price', kind)).count('M') for kind in ('bought', 'sold')]
    trades = [row['side'] for row in page.result.trades if row['security'] == code]
    assert counts == [trades.count('BUY'), trades.count('SELL')] and min(counts) > 5


def test_the_pointer_finds_the_trades_of_a_day(page):
    code = Select(page.find('#security')).first_selected_option.text.split()[0]
    sold = [row for row in page.result.trades if row['security'] == code and row['side'] == 'SELL'][-1]
    hint = page.find('#price .note').text
    page.point('price', page.result.days.index(sold['time'].date()) / (len(page.result.days) - 1))
    assert page.legend('price')[0] == str(sold['time'].date())
    assert page.find('#price .note').text == '▼ 卖出 %s 股，均价 %s，盈亏 %s' % (
        jq.shown_value(sold['amount'], 'count'), jq.shown_value(sold['price'], 'price'),
        jq.shown_value(sold['profit'], 'profit'))
    page.find('#price .plot').send_keys(Keys.ESCAPE)
    assert page.find('#price .note').text == hint and '买入' in hint


def test_a_curve_can_be_switched_off(page):
    button = page.find('#records button.series')
    button.click()
    assert len(page.paths('records')) == 1 and button.get_attribute('aria-pressed') == 'false'
    button.click()
    assert len(page.paths('records')) == 2 and button.get_attribute('aria-pressed') == 'true'


def test_charts_follow_the_width_of_the_window(page):
    wide = page.paths('equity')
    b.set_screen(page.driver, *SIZES['phone'])
    WebDriverWait(page.driver, 20).until(lambda driver: page.paths('equity') != wide)
    points = [point.split() for point in page.paths('equity')[0].strip('M').split('L')]
    assert float(points[-1][0]) < 360


def test_what_can_be_used_has_a_name(page):
    page.unfold()
    for node in page.driver.find_elements(By.CSS_SELECTOR, 'select, button, summary, svg, [tabindex]'):
        assert node.accessible_name.strip(), node.get_attribute('outerHTML')[:200]


# -- looks ---------------------------------------------------------------------------------------------------------
LOW_CONTRAST = '''
const parse = text => text.match(/[\\d.]+/g).map(Number);
const part = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
function ground(node) {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length === 3) return colour;
  }
  return [255, 255, 255];
}
const found = [];
for (const node of document.querySelectorAll('body *:not(script):not(option)')) {
  const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
  if (!own || !node.getClientRects().length) continue;
  const style = getComputedStyle(node), colour = parse(node instanceof SVGElement ? style.fill : style.color);
  const [low, high] = [light(colour), light(ground(node))].sort((a, b) => a - b);
  if ((high + 0.05) / (low + 0.05) < 4.5 || parseFloat(style.fontSize) < 11)
    found.push([node.tagName, node.textContent.slice(0, 30), style.color, style.fontSize]);
}
return found;
'''


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('size', ['phone', 'desktop'])
def test_every_text_can_be_read(driver, files, scheme, size):
    page = Report(driver, files['long'], size, scheme)
    page.unfold()
    assert page.run(LOW_CONTRAST) == []


def test_the_dark_page_is_dark(driver, files):
    grounds = []
    for scheme in ('light', 'dark'):
        page = Report(driver, files['long'], scheme=scheme)
        grounds.append([sum(page.run('return getComputedStyle(document.querySelector("%s")).%s.match(/\\d+/g)'
                                     '.slice(0, 3).map(Number)' % pair)) / 3
                        for pair in (('body', 'backgroundColor'), ('section', 'backgroundColor'), ('body', 'color'))])
    assert grounds[0][0] > 230 and grounds[0][1] > 230 and grounds[0][2] < 60
    assert grounds[1][0] < 40 and grounds[1][1] < 40 and grounds[1][2] > 200


def test_up_is_red_and_down_is_green(page):
    for tone, strong, weak in (('up', 0, 1), ('down', 1, 0)):
        colour = page.run('return getComputedStyle(document.querySelector("td.%s")).color.match(/\\d+/g).map(Number)'
                          % tone)
        assert colour[strong] > colour[weak] + 60
    assert '红色为涨' in page.find('footer').text


def test_wide_tables_scroll_inside_their_box(driver, files):
    page = Report(driver, files['long'], 'phone')
    page.find('summary').click()
    boxes = page.run('return [...document.querySelectorAll(".scroll")].map(box => [box.scrollWidth, box.clientWidth])')
    assert any(inner > outer for inner, outer in boxes)
    assert page.run('return document.documentElement.scrollWidth') == 360
