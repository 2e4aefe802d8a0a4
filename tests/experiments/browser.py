"""A headless Chromium, driven through its debugging pipe."""

import base64
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_FLAGS = (
  '--headless=new',
  '--no-sandbox',  # It refuses to run as root with one.
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-extensions',
  '--disable-background-networking',
  '--disable-component-update',
  '--no-first-run',
  '--hide-scrollbars',
  '--force-color-profile=srgb',
  '--remote-debugging-pipe',
)
# The browser reads from descriptor 3 and writes to 4.
_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_LOADS = 30  # Seconds that a page or an answer may take.


def find():
  """Path of the installed browser, None if there is none."""
  return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
  """A browser of its own profile; closes with its `with` block.

  Skips the test where no browser is installed.
  """

  def __init__(self):
    path = find()
    if path is None:
      pytest.skip('no Chromium on PATH (Debian: apt-get install chromium)')
    self._profile = tempfile.mkdtemp(prefix='browser_')
    self._in, write = os.pipe()  # The browser's answers.
    read, self._out = os.pipe()  # Our commands.
    pass_fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read, write)]
    command = [path, *_FLAGS, f'--user-data-dir={self._profile}', 'about:blank']
    self._process = subprocess.Popen(
      [sys.executable, '-c', _EXEC, *map(str, pass_fds), *command],
      pass_fds=pass_fds,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      env={**os.environ, 'HOME': self._profile},
    )
    for fd in (read, write, *pass_fds):
      os.close(fd)
    self._rest = b''
    self._number = 0
    self.events = []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    try:
      self.send('Browser.close')
      self._process.wait(_LOADS)
    except (OSError, AssertionError, subprocess.TimeoutExpired):
      self._process.kill()
      self._process.wait()
    os.close(self._in)
    os.close(self._out)
    shutil.rmtree(self._profile, ignore_errors=True)

  def open(self, url, width=1280, height=800):
    """Opens a page in a tab of its own, fully loaded."""
    target = self.send('Target.createTarget', url='about:blank')['targetId']
    session = self.send('Target.attachToTarget', targetId=target, flatten=True)[
      'sessionId'
    ]
    return Page(self, session, url, width, height)

  def send(self, method, session=None, **params):
    """Sends a command of the DevTools protocol; returns its result."""
    self._number += 1
    number = self._number
    message = {'id': number, 'method': method, 'params': params}
    if session:
      message['sessionId'] = session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    answer = self.wait(lambda m: m.get('id') == number)
    assert 'error' not in answer, f'{method}: {answer["error"]}'
    return answer['result']

  def wait(self, wanted, since=None):
    """Returns the first message that is wanted, an event or an answer."""
    for event in self.events[since:] if since is not None else []:
      if wanted(event):
        return event
    end = time.monotonic() + _LOADS
    while True:
      head, found, tail = self._rest.partition(b'\0')
      if found:
        self._rest = tail
        message = json.loads(head)
        if 'method' in message:
          self.events.append(message)
        if wanted(message):
          return message
        continue
      left = end - time.monotonic()
      ready = left > 0 and select.select([self._in], [], [], left)[0]
      data = os.read(self._in, 1 << 20) if ready else b''
      assert data, 'the browser does not answer'
      self._rest += data


class Page:
  """One open page and what it did."""

  def __init__(self, browser, session, url, width, height):
    self._browser, self._session = browser, session
    for domain in ('Page', 'Runtime', 'Network', 'Log'):
      self._send(f'{domain}.enable')
    self.resize(width, height)
    since = len(browser.events)
    found = self._send('Page.navigate', url=url)
    assert 'errorText' not in found, f'{url}: {found["errorText"]}'
    browser.wait(
      lambda m: (
        m.get('method') == 'Page.loadEventFired'
        and m.get('sessionId') == session
      ),
      since,
    )

  @property
  def requests(self):
    """Addresses that the page asked for, but for data: ones."""
    urls = [
      event['params']['request']['url']
      for event in self._events('Network.requestWillBeSent')
    ]
    return [url for url in urls if not url.startswith('data:')]

  @property
  def problems(self):
    """Exceptions, messages of errors and loads that failed."""
    self.evaluate('1')  # What happened before is in by then.
    found = [
      json.dumps(event['params']['exceptionDetails'])
      for event in self._events('Runtime.exceptionThrown')
    ]
    found += [
      json.dumps(event['params']['args'])
      for event in self._events('Runtime.consoleAPICalled')
      if event['params']['type'] in ('error', 'assert', 'warning')
    ]
    found += [
      event['params']['entry']['text']
      for event in self._events('Log.entryAdded')
      if event['params']['entry']['level'] in ('error', 'warning')
    ]
    found += [
      event['params']['errorText']
      for event in self._events('Network.loadingFailed')
    ]
    return found

  def evaluate(self, script):
    """Returns the value of a script, which may be a promise."""
    answer = self._send(
      'Runtime.evaluate',
      expression=script,
      returnByValue=True,
      awaitPromise=True,
    )
    assert 'exceptionDetails' not in answer, answer['exceptionDetails']
    return answer['result'].get('value')

  def resize(self, width, height):
    self._send(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def click(self, x, y):
    for kind in ('mousePressed', 'mouseReleased'):
      self._send(
        'Input.dispatchMouseEvent',
        type=kind,
        x=x,
        y=y,
        button='left',
        clickCount=1,
      )

  def screenshot(self, path, whole=False):
    """Writes a PNG of the window, or of the whole page."""
    found = self._send('Page.captureScreenshot', captureBeyondViewport=whole)
    pathlib.Path(path).write_bytes(base64.b64decode(found['data']))

  def pdf(self, path):
    """Prints to A4, as the page's own style says."""
    found = self._send(
      'Page.printToPDF', printBackground=True, preferCSSPageSize=True
    )
    pathlib.Path(path).write_bytes(base64.b64decode(found['data']))

  def _send(self, method, **params):
    return self._browser.send(method, self._session, **params)

  def _events(self, method):
    return [
      event
      for event in self._browser.events
      if event['method'] == method and event.get('sessionId') == self._session
    ]
