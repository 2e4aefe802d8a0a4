"""Serves a catalogue of slides to a browser on the same machine."""

from collections.abc import Callable
from http import HTTPStatus, server
import importlib.resources
import json
import re
import secrets
import sys
import urllib.parse

from data.slides import SlideError
from experiments.slide_maps.tile_scores import MapError
from experiments.viewer.catalogue import Catalogue

ADDRESS = '127.0.0.1'
# The only files there are; their names never come from a request.
_FILES = {
  '': ('index.html', 'text/html; charset=utf-8'),
  'viewer.css': ('viewer.css', 'text/css; charset=utf-8'),
  'viewer.js': ('viewer.js', 'text/javascript; charset=utf-8'),
  'openseadragon.min.js': (
    'openseadragon/openseadragon.min.js',
    'text/javascript; charset=utf-8',
  ),
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
_NUMBER = r'(\d{1,9})'
_PLACE = rf'{_NUMBER}/{_NUMBER}_{_NUMBER}'
_IDLE = 60  # Seconds before a silent connection is closed.

Answer = tuple[str, bytes] | None  # Content type and content.


class Server(server.ThreadingHTTPServer):
  """Answers on 127.0.0.1 only, at `url`.

  The address holds a token that is drawn anew each time, so that other users of
  the machine, and pages of other sites, cannot ask for slides. Requests that
  name another host are refused: a name that an attacker lets point here (DNS
  rebinding) is one.
  """

  daemon_threads = True

  def __init__(self, catalogue: Catalogue, port: int = 0):
    """Opens the port, any free one if it is 0.

    Raises:
      OSError: if it is taken.
    """
    super().__init__((ADDRESS, port), _Handler)
    self.catalogue = catalogue
    self.token = secrets.token_urlsafe(12)

  def handle_error(self, request, address) -> None:
    """Reports an error, unless a browser just hung up."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, address)

  @property
  def url(self) -> str:
    """Address of the page."""
    return f'http://{ADDRESS}:{self.server_port}/{self.token}/'

  @property
  def hosts(self) -> tuple[str, ...]:
    """What requests may call this server."""
    return tuple(f'{h}:{self.server_port}' for h in (ADDRESS, 'localhost'))


class _Handler(server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server_version, sys_version = 'slides', ''
  timeout = _IDLE
  server: Server

  def do_GET(self) -> None:
    if self.headers.get('Host') not in self.server.hosts:
      self._send(HTTPStatus.FORBIDDEN, *_text('this host is not served'))
      return
    token, slash, path = self.path.removeprefix('/').partition('/')
    mine = slash and secrets.compare_digest(
      token.encode('latin-1', 'replace'), self.server.token.encode()
    )
    try:
      answer = self._answer(path) if mine else None
    except (SlideError, MapError) as e:
      self._send(HTTPStatus.INTERNAL_SERVER_ERROR, *_text(str(e)))
      return
    if answer is None:
      self._send(HTTPStatus.NOT_FOUND, *_text('there is nothing here'))
    else:
      self._send(HTTPStatus.OK, *answer)

  do_HEAD = do_GET

  def _answer(self, path: str) -> Answer:
    """Returns what is at a path, None if there is nothing."""
    if path in _FILES:
      name, kind = _FILES[path]
      page = importlib.resources.files('experiments.viewer') / 'page' / name
      return kind, page.read_bytes()
    catalogue = self.server.catalogue
    if path == 'slides':
      return _json(
        [{'id': i, 'label': catalogue.labels.get(i)} for i in catalogue.ids]
      )
    prefix, _, rest = path.partition('/')
    if prefix != 'slides':
      return None
    name, _, rest = rest.partition('/')
    # Decoded once, after the slashes were looked for; the id is then a key of
    # a table and never a part of a path.
    slide = urllib.parse.unquote(name)
    view = catalogue.view(slide)
    if view is None:
      return None
    for pattern, answer in _ROUTES.items():
      if found := pattern.fullmatch(rest):
        try:
          return answer(self, slide, view, *found.groups())
        except SlideError:
          catalogue.drop(slide)
          raise
    return None

  def _describe(self, slide, view) -> Answer:
    label = self.server.catalogue.labels.get(slide)
    return _json(view.describe() | {'label': label})

  def _picture(self, slide, view, *place) -> Answer:
    tile = view.picture(*map(int, place))
    return tile and ('image/jpeg', tile)

  def _heat(self, slide, view, scale, key, colours, *place) -> Answer:
    tile = view.heat(scale, key, colours, *map(int, place))
    return tile and ('image/png', tile)

  def _at(self, slide, view, x, y) -> Answer:
    return _json(view.at(int(x), int(y)))

  def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
    self.send_response(status)
    for name, value in _HEADERS.items():
      self.send_header(name, value)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)

  def log_message(self, *_) -> None:
    """Says nothing: a page asks for hundreds of tiles."""


_ROUTES: dict[re.Pattern, Callable[..., Answer]] = {
  re.compile(pattern, re.ASCII): answer
  for pattern, answer in {
    '': _Handler._describe,
    rf'tiles/{_PLACE}\.jpg': _Handler._picture,
    rf'heat/([a-z]+)/([a-z0-9-]+)/(\w+)/{_PLACE}\.png': _Handler._heat,
    rf'at/{_NUMBER}_{_NUMBER}': _Handler._at,
  }.items()
}


def _json(content: object) -> Answer:
  text = json.dumps(content, allow_nan=False)
  return 'application/json; charset=utf-8', text.encode()


def _text(message: str) -> tuple[str, bytes]:
  return 'text/plain; charset=utf-8', message.encode()
