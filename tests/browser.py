"""A real Chromium without a window, for tests of pages. Debian's packages; elsewhere what is on the path."""
import base64
import contextlib
import json
import os
import shutil
import tempfile

from tests.environments import EnvironmentFailed, install_debian

PACKAGES = ['chromium', 'chromium-driver', 'fonts-wqy-zenhei']  # without a Chinese font all widths are wrong
SWITCHES = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
            '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars']


def browser_problem():
    """Installs what is missing where it can. Why there is no browser to test with, or '' if there is one."""
    if _found():
        return ''
    if not os.path.exists('/etc/debian_version'):
        return 'chromium and chromedriver are not on the path, and this is no Debian'
    if not hasattr(os, 'geteuid') or os.geteuid() != 0:
        return 'chromium and chromedriver are not on the path, and only root can install them'
    return _install()


def _found():
    return shutil.which('chromium') and shutil.which('chromedriver')


def _install():
    try:
        install_debian(PACKAGES, lambda line: None)
    except EnvironmentFailed as error:
        return 'chromium cannot be installed: %s' % str(error)[-500:]
    return '' if _found() else 'chromium was installed and is still not on the path'


@contextlib.contextmanager
def browser():
    """A driver of a fresh browser that logs its console and its network."""
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    with tempfile.TemporaryDirectory() as profile:
        for switch in SWITCHES + ['--user-data-dir=' + profile, '--window-size=1280,900']:
            options.add_argument(switch)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
        try:
            yield driver
        finally:
            driver.quit()


def set_screen(driver, width, height, mobile=False):
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
        'width': width, 'height': height, 'deviceScaleFactor': 2 if mobile else 1, 'mobile': mobile})


def set_colours(driver, scheme):
    """'light' or 'dark', as if the user's system were so."""
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {
        'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})


def requested_urls(driver):
    """Addresses that pages asked for since this was called last, but for what the browser itself kept from leaving."""
    messages = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
    blocked = {message['params']['requestId'] for message in messages
               if message['method'] == 'Network.loadingFailed' and message['params'].get('blockedReason')}
    return [message['params']['request']['url'] for message in messages
            if message['method'] == 'Network.requestWillBeSent' and message['params']['requestId'] not in blocked]


def console_lines(driver):
    """Lines of the console since this was called last, of any level, as they came."""
    return ['%s %s' % (entry['level'], entry['message']) for entry in driver.get_log('browser')]


def take_picture(driver, path):
    """The whole page as a PNG."""
    picture = driver.execute_cdp_cmd('Page.captureScreenshot', {'captureBeyondViewport': True, 'format': 'png'})
    with open(path, 'wb') as file:
        file.write(base64.b64decode(picture['data']))
