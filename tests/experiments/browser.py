"""A page in a headless Chromium, driven through its debugging pipe."""

import contextlib
import fcntl
import json
import os
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
  '--disable-background-networking',
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


class Page:
  """A page in a browser of its own profile; closes with its `with` block.

  Skips the test where no browser is installed.
  """

  def __init__(self, url):
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
    self._rest, self._number, self._about, self._events = b'', 0, {}, []
    target = self._send('Target.createTarget', url='about:blank')['targetId']
    session = self._send('Target.attachToTarget', targetId=target, flatten=True)
    self._about = {'sessionId': session['sessionId']}
    for domain in ('Runtime', 'Network', 'Log'):
      self._send(f'{domain}.enable')
    self.resize(1280, 800)
    self._events.clear()  # Those of the blank page.
    self._send('Page.navigate', url=url)
    self.wait_for("document.readyState === 'complete'")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with contextlib.suppress(OSError, AssertionError, TimeoutError):
      self._about = {}
      self._send('Browser.close')
      self._process.wait(_LOADS)
    self._process.kill()
    self._process.wait()
    os.close(self._in)
    os.close(self._out)
    shutil.rmtree(self._profile, ignore_errors=True)

  @property
  def requests(self):
    """Addresses that the page asked for, but for data: ones."""
    sent = self._of('Network.requestWillBeSent')
    urls = [event['request']['url'] for event in sent]
    return [url for url in urls if not url.startswith('data:')]

  @property
  def problems(self):
    """Exceptions, messages of errors and loads that failed."""
    self.evaluate('1')  # What happened before is in by then.
    logged = [event['entry'] for event in self._of('Log.entryAdded')]
    called = self._of('Runtime.consoleAPICalled')
    return [
      *self._of('Runtime.exceptionThrown'),
      *(e for e in called if e['type'] in ('error', 'assert', 'warning')),
      *(e for e in logged if e['level'] in ('error', 'warning')),
      *self._of('Network.loadingFailed'),
    ]

  def evaluate(self, script):
    """Returns the value of a script."""
    answer = self._send(
      'Runtime.evaluate', expression=script, returnByValue=True
    )
    assert 'exceptionDetails' not in answer, answer['exceptionDetails']
    return answer['result'].get('value')

  def wait_for(self, script):
    """Waits until a script is true."""
    end = time.monotonic() + _LOADS
    while not self.evaluate(script):
      assert time.monotonic() < end, f'{script}; {self.problems}'
      time.sleep(0.05)

  def resize(self, width, height):
    size = {'width': width, 'height': height, 'deviceScaleFactor': 1}
    name = 'Emulation.setDeviceMetricsOverride'
    self._send(name, mobile=False, **size)

  def _send(self, method, **params):
    """Sends a command of the DevTools protocol; returns its result."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': params}
    os.write(self._out, json.dumps(message | self._about).encode() + b'\0')
    while (answer := self._receive()).get('id') != self._number:
      self._events.append(answer)
    assert 'error' not in answer, f'{method}: {answer["error"]}'
    return answer['result']

  def _receive(self):
    """Returns the next message, an event or an answer."""
    while b'\0' not in self._rest:
      ready = select.select([self._in], [], [], _LOADS)[0]
      data = os.read(self._in, 1 << 20) if ready else b''
      assert data, 'the browser does not answer'
      self._rest += data
    head, _, self._rest = self._rest.partition(b'\0')
    return json.loads(head)

  def _of(self, method):
    return [e['params'] for e in self._events if e.get('method') == method]
