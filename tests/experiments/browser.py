"""A headless Chromium, driven through its debugging pipe."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile

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


class Browser:
  """A browser of its own profile; closes with its `with` block.

  Skips the test where no browser is installed.
  """

  def __init__(self):
    path = next(filter(None, map(shutil.which, _NAMES)), None)
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
    session = self.send('Target.attachToTarget', targetId=target, flatten=True)
    return Page(self, session['sessionId'], url, width, height)

  def send(self, method, session=None, **params):
    """Sends a command of the DevTools protocol; returns its result."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': params}
    if session:
      message['sessionId'] = session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    while (answer := self._receive()).get('id') != self._number:
      pass
    assert 'error' not in answer, f'{method}: {answer["error"]}'
    return answer['result']

  def wait_for(self, method, session):
    """Waits until a session has had an event."""
    wanted = {'method': method, 'sessionId': session}.items()
    while not any(wanted <= event.items() for event in self._plain()):
      self._receive()

  def _plain(self):
    return [{k: e.get(k) for k in ('method', 'sessionId')} for e in self.events]

  def _receive(self):
    """Returns the next message, an event or an answer."""
    while b'\0' not in self._rest:
      ready = select.select([self._in], [], [], _LOADS)[0]
      data = os.read(self._in, 1 << 20) if ready else b''
      assert data, 'the browser does not answer'
      self._rest += data
    head, _, self._rest = self._rest.partition(b'\0')
    message = json.loads(head)
    if 'method' in message:
      self.events.append(message)
    return message


class Page:
  """One open page and what it did."""

  def __init__(self, browser, session, url, width, height):
    self._browser, self._session = browser, session
    for domain in ('Page', 'Runtime', 'Network', 'Log'):
      self._send(f'{domain}.enable')
    self.resize(width, height)
    browser.events.clear()  # Those of the blank page.
    found = self._send('Page.navigate', url=url)
    assert 'errorText' not in found, f'{url}: {found["errorText"]}'
    browser.wait_for('Page.loadEventFired', session)

  @property
  def requests(self):
    """Addresses that the page asked for, but for data: ones."""
    events = self._events('Network.requestWillBeSent')
    urls = [event['request']['url'] for event in events]
    return [url for url in urls if not url.startswith('data:')]

  @property
  def problems(self):
    """Exceptions, messages of errors and loads that failed."""
    self.evaluate('1')  # What happened before is in by then.
    logged = [event['entry'] for event in self._events('Log.entryAdded')]
    called = self._events('Runtime.consoleAPICalled')
    return [
      *self._events('Runtime.exceptionThrown'),
      *(e for e in called if e['type'] in ('error', 'assert', 'warning')),
      *(e for e in logged if e['level'] in ('error', 'warning')),
      *self._events('Network.loadingFailed'),
    ]

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
    size = {'width': width, 'height': height, 'deviceScaleFactor': 1}
    name = 'Emulation.setDeviceMetricsOverride'
    self._send(name, mobile=False, **size)

  def _send(self, method, **params):
    return self._browser.send(method, self._session, **params)

  def _events(self, method):
    return [
      event['params']
      for event in self._browser.events
      if event['method'] == method and event.get('sessionId') == self._session
    ]
