"""Serves slides and their maps to a browser on the same machine."""

from collections.abc import Callable, Mapping
import functools
from http import HTTPStatus, server
import importlib.resources
import io
import json
import mimetypes
import pathlib
import re
import secrets
import socket
import sys
import threading
import time
from typing import Any
import urllib.parse

from data.files import counted, first_of
from data.slides import SlideError
from experiments.maps.tile_scores import MapError
from experiments.viewer.slide_view import SlideView

ADDRESS = '127.0.0.1'
# The only files there are; their names never come from a request.
_FILES = {
  '': 'index.html',
  'viewer.css': 'viewer.css',
  'list.js': 'list.js',
  'viewer.js': 'viewer.js',
  'openseadragon.min.js': 'openseadragon/openseadragon.min.js',
}
# The style sheet that OpenSeadragon 6.1.1 adds to a page, for touch screens.
_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
_HEADERS = {
  # Nothing from elsewhere, nothing inline; no other page may embed this one.
  'Content-Security-Policy': (
    f"default-src 'none'; script-src 'self'; style-src 'self' {_STYLE};"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
  ),
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-store',  # Slides are patients'.
}
_NOTHING = (
  'Nothing is here. Open the whole address that the command printed: the list'
  ' of slides is behind its last slash.'
)
_NUMBER = r'(\d{1,9})'
_PLACE = rf'{_NUMBER}/{_NUMBER}_{_NUMBER}'
_SECONDS = 30  # For a request to arrive, however slowly it does.
_OPEN = 4  # Slides open at a time.
_CONNECTIONS = 64  # More are closed at once: each takes a thread.

Answer = tuple[str, bytes | None]  # Content type and content, if any.


class Server(server.ThreadingHTTPServer):
  """Answers on 127.0.0.1 only, at `url`.

  The address holds a token that is drawn anew each time, so that other users of
  the machine, and pages of other sites, cannot ask for slides. Requests that
  name another host are refused: a name that an attacker lets point here (DNS
  rebinding) is one.

  Attributes:
    ids: slides with both a file and scores, by name.
    tables: what else is known of slides, by its name and slide: `case`, the
      patient; `label`, the true class; `prob`, the probability of each class;
      and `note`, what makes it no test of the models.
    view: opens a slide, or returns one that is open. A slide that makes way for
      others is closed when nobody reads it any more.
  """

  daemon_threads, request_queue_size = True, _CONNECTIONS

  def __init__(
    self,
    files: Mapping[str, pathlib.Path],
    scores: Mapping[str, Mapping[int, pathlib.Path]],
    tables: Mapping[str, Mapping[str, Any]],
    port: int = 0,
    **options: float | pathlib.Path | None,
  ):
    """Opens the port, any free one if it is 0.

    Args:
      files: of slides, by id.
      scores: files of tile scores by slide and fold.
      tables: see above.
      port: to listen on.
      **options: see `SlideView`.

    Raises:
      MapError: if no slide has both a file and scores.
      OSError: if the port is taken.
    """
    self.ids = tuple(slide for slide in scores if slide in files)
    if not self.ids:
      raise MapError(
        f'None of {counted(len(scores), "slide")} with scores'
        f' ({first_of([*scores])}) has a file among'
        f' {counted(len(files), "slide")} ({first_of([*files])}). Give'
        ' --slides_dir, or another one.'
      )
    self.tables = tables
    self.view = functools.lru_cache(_OPEN)(
      lambda slide: SlideView(files[slide], scores[slide], **options)
    )
    self.token = secrets.token_urlsafe(12)
    self._free = threading.BoundedSemaphore(_CONNECTIONS)
    super().__init__((ADDRESS, port), _Handler)

  def process_request(self, request, address) -> None:
    """Takes a connection, or closes it if there are too many."""
    if self._free.acquire(blocking=False):
      super().process_request(request, address)
    else:
      self.shutdown_request(request)

  def process_request_thread(self, request, address) -> None:
    """Answers the requests of a connection."""
    try:
      super().process_request_thread(request, address)
    finally:
      self._free.release()

  def handle_error(self, request, address) -> None:
    """Reports an error, unless a browser just hung up."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, address)

  @property
  def url(self) -> str:
    """Address of the page."""
    return f'http://{ADDRESS}:{self.server_port}/{self.token}/'

  def answer(self, path: str) -> Answer | None:
    """Returns what is at a path below the token, None if there is nothing.

    Raises:
      SlideError, MapError: if a slide or its scores cannot be read.
    """
    if path in _FILES:
      name = _FILES[path]
      page = importlib.resources.files('experiments.viewer') / 'page' / name
      return mimetypes.guess_type(name)[0], page.read_bytes()
    if path == 'slides':
      row = lambda i: {name: of.get(i) for name, of in self.tables.items()}
      return _json([{'id': i} | row(i) for i in self.ids])
    # Decoded once, after the slashes were looked for; the id is then a key of
    # a table and never a part of a path.
    prefix, _, rest = path.partition('/')
    name, slash, rest = rest.partition('/')
    slide = urllib.parse.unquote(name)
    if prefix != 'slides' or not slash or slide not in self.ids:
      return None
    for pattern, answer in _ROUTES.items():
      if match := re.fullmatch(pattern, rest, re.ASCII):
        try:
          kind, content = answer(self.view(slide), *match.groups())
        except SlideError:
          self.view.cache_clear()  # OpenSlide's handle is dead after an error.
          raise
        return (kind, content) if content else None
    return None


# What is sent of a slide, by the path below its own.
_ROUTES: dict[str, Callable[..., Answer]] = {
  '': lambda view: _json(view.describe()),
  rf'tiles/{_PLACE}\.jpg': lambda view, *place: (
    'image/jpeg',
    view.picture(*map(int, place)),
  ),
  rf'heat/([a-z]+)/([a-z0-9-]+)/(\w+)/{_PLACE}\.png': lambda view, *at: (
    'image/png',
    view.heat(*at[:3], *map(int, at[3:])),
  ),
  r'thumbnail\.jpg': lambda view: ('image/jpeg', view.thumbnail()),
  rf'top/{_NUMBER}\.jpg': lambda view, i: ('image/jpeg', view.tile(int(i))),
  rf'at/{_NUMBER}_{_NUMBER}': lambda view, x, y: _json(view.at(int(x), int(y))),
}


class _Timed(socket.SocketIO):
  """Reads from a connection until the time `until`, `time.monotonic()`."""

  until = 0.0

  def readinto(self, buffer) -> int | None:
    left = self.until - time.monotonic()
    if left <= 0:
      raise TimeoutError
    self._sock.settimeout(left)
    return super().readinto(buffer)


class _Handler(server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  error_content_type = 'text/plain; charset=utf-8'
  error_message_format = '%(explain)s'
  server_version, sys_version = 'slides', ''
  disable_nagle_algorithm = True  # It waits 40 ms before the last packet.
  server: Server

  def setup(self) -> None:
    super().setup()
    self._timed = _Timed(self.connection, 'r')
    self.rfile = io.BufferedReader(self._timed)

  def handle_one_request(self) -> None:
    self._timed.until = time.monotonic() + _SECONDS
    super().handle_one_request()

  def do_GET(self) -> None:
    port = self.server.server_port
    hosts = [f'{name}:{port}' for name in (ADDRESS, 'localhost')]
    if self.headers.get_all('Host') not in [[host] for host in hosts]:
      self.send_error(HTTPStatus.FORBIDDEN)
      return
    token, slash, path = self.path.removeprefix('/').partition('/')
    is_ours = slash and secrets.compare_digest(
      token.encode('latin-1', 'replace'), self.server.token.encode()
    )
    try:
      answer = self.server.answer(path) if is_ours else None
    except (SlideError, MapError) as e:
      self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=str(e))
      return
    if answer is None:
      self.send_error(HTTPStatus.NOT_FOUND, explain=_NOTHING)
      return
    kind, content = answer
    self.send_response(HTTPStatus.OK)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def end_headers(self) -> None:
    for name, value in _HEADERS.items():
      self.send_header(name, value)
    super().end_headers()

  def log_message(self, *_) -> None:
    """Prints nothing: a page asks for hundreds of tiles."""


def _json(content: object) -> Answer:
  text = json.dumps(content, allow_nan=False)
  return 'application/json', text.encode()
