"""Slides and their scores, drawn and served for a test."""

import contextlib
import http.client
import threading

import drawn_maps

from experiments.maps import tile_scores
from experiments.maps.source import Slides
from experiments.viewer import server

# The last one's file is no slide.
NAMES = ('007.a', 'a b#é%2F', 'broken')


def run_folder_of(root):
  """Draws a results folder of three folds."""
  run = drawn_maps.run_folder(root, NAMES, kept=0.8)
  (root / 'slides' / 'broken.tiff').write_bytes(b'no slide')
  (root / 'secret.txt').write_text('secret')
  return run


@contextlib.contextmanager
def serving(run):
  """Serves a results folder from a thread."""
  with server.Server(
    Slides(run).files(), tile_scores.find(run), {'007.a': 'lymphoma'}
  ) as running:
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    thread.join()


def ask(served, path, *, token=None, host=None, method='GET'):
  """Sends a path as it is, which clients would normalise."""
  connection = http.client.HTTPConnection('127.0.0.1', served.server_port)
  token = served.token if token is None else token
  connection.putrequest(method, f'/{token}/{path}', skip_host=True)
  if host != '':
    connection.putheader('Host', host or f'127.0.0.1:{served.server_port}')
  connection.endheaders()
  answer = connection.getresponse()
  content = answer.read()
  connection.close()
  return answer, content


def read(served, path):
  answer, content = ask(served, path)
  assert answer.status == 200, (path, content)
  return content
