"""A page in a headless Chromium, driven by Selenium."""

import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_FLAGS = (
  '--headless=new',
  '--no-sandbox',  # It refuses to run as root with one.
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-background-networking',
  '--no-first-run',
  '--hide-scrollbars',
  '--force-color-profile=srgb',
)
_LOADS = 60  # Seconds that a page or an answer may take.


class Page:
  """A page in a browser of its own profile; closes with its `with` block.

  Skips the test where no browser is installed.

  Attributes:
    driver: Selenium's, for clicks and keys.
  """

  def __init__(self, url):
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    driver = shutil.which('chromedriver')
    if path is None or driver is None:
      pytest.skip(
        'no Chromium and chromedriver on PATH (Debian: apt-get install chromium'
        ' chromium-driver)'
      )
    options = webdriver.ChromeOptions()
    options.binary_location = path
    logs = {'browser': 'ALL', 'performance': 'ALL'}
    options.set_capability('goog:loggingPrefs', logs)
    for flag in _FLAGS:
      options.add_argument(flag)
    self._logged, self._events = [], []
    self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
    self.resize(1280, 800)
    self.driver.get(url)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.driver.quit()

  @property
  def requests(self):
    """Addresses that the page asked for, but for data: ones."""
    sent = self._of('Network.requestWillBeSent')
    urls = [event['request']['url'] for event in sent]
    return [url for url in urls if not url.startswith('data:')]

  @property
  def problems(self):
    """Exceptions, messages of errors and loads that failed."""
    self._logged += self.driver.get_log('browser')
    return [
      *(e for e in self._logged if e['level'] in ('SEVERE', 'WARNING')),
      *self._of('Network.loadingFailed'),
    ]

  def evaluate(self, script):
    """Returns the value of a script."""
    answer = self.driver.execute_cdp_cmd(
      'Runtime.evaluate', {'expression': script, 'returnByValue': True}
    )
    assert 'exceptionDetails' not in answer, answer['exceptionDetails']
    return answer['result'].get('value')

  def wait_for(self, script):
    """Waits until a script is true."""
    wait = WebDriverWait(self.driver, _LOADS, 0.05)
    wait.until(lambda _: self.evaluate(script), script)

  def resize(self, width, height):
    size = {'width': width, 'height': height, 'deviceScaleFactor': 1}
    name = 'Emulation.setDeviceMetricsOverride'
    self.driver.execute_cdp_cmd(name, {'mobile': False, **size})

  def _of(self, method):
    entries = self.driver.get_log('performance')
    self._events += [json.loads(e['message'])['message'] for e in entries]
    return [e['params'] for e in self._events if e['method'] == method]
