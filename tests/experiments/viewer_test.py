"""The local page of slides: what it serves, refuses and shows."""

import contextlib
import hashlib
import http.client
import importlib.resources
import io
import json
import re
import socket
import threading
import time
import urllib.parse

import browser
import drawn_maps
import numpy as np
from PIL import Image
import pytest

from experiments import view
from experiments.maps import overlay, tile_scores
from experiments.maps.source import Slides
from experiments.maps.tile_scores import MapError
from experiments.viewer import server, slide_view

SIDE = drawn_maps.SIDE
SHA256 = '14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad'
# The last one's file is no slide.
NAMES = ('007.a', 'a b#é%2F', 'broken')


@pytest.fixture(scope='module')
def viewed(tmp_path_factory):
  """A results folder of three folds."""
  root = tmp_path_factory.mktemp('viewer')
  run = drawn_maps.run_folder(root, NAMES, kept=0.8)
  (root / 'slides' / 'broken.tiff').write_bytes(b'no slide')
  (root / 'secret.txt').write_text('secret')
  return run


@pytest.fixture(scope='module')
def scores(viewed):
  return tile_scores.read(tile_scores.find(viewed)['007.a'])


@pytest.fixture(scope='module')
def served(viewed):
  """The page of it, from a thread."""
  slides = Slides(viewed)
  labels = {'007.a': 'lymphoma'}
  with server.Server(slides.files(), slides.scores(), labels) as running:
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


def test_this_machine_alone_is_served_with_the_token(served):
  port = served.server_port
  assert served.server_address[0] == '127.0.0.1'
  assert served.url.startswith(f'http://127.0.0.1:{port}/')
  assert ask(served, '', host=f'localhost:{port}')[0].status == 200
  for path in ('', 'slides', 'slides/007.a/'):
    for host in (
      '', 'evil.example', f'evil.example:{port}', '127.0.0.1', 'localhost:1',
    ):  # fmt: skip
      answer, content = ask(served, path, host=host)
      assert answer.status == 403
      assert b'007' not in content
    for token in ('', 'a', '..', '%2e%2e', 'é'.encode().hex()):
      assert ask(served, path, token=token)[0].status == 404
    for method in ('POST', 'PUT', 'DELETE', 'OPTIONS'):
      assert ask(served, path, method=method)[0].status == 501
  for path in ('', 'slides', 'unknown'):
    headers = ask(served, path)[0].headers
    policy = headers['Content-Security-Policy']
    assert "default-src 'none'" in policy
    assert 'unsafe' not in policy and 'http' not in policy
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'


def opened(served, content=b''):
  """Opens a connection and sends bytes."""
  connection = socket.create_connection(('127.0.0.1', served.server_port), 9)
  connection.sendall(content)
  return connection


def test_one_host_is_named(served):
  host = f'Host: 127.0.0.1:{served.server_port}\r\n'
  for hosts, status in (host, b'200'), (host * 2, b'403'), ('', b'403'):
    request = f'GET /{served.token}/ HTTP/1.1\r\n{hosts}\r\n'
    with opened(served, request.encode()) as connection:
      assert connection.recv(12) == b'HTTP/1.1 ' + status


def test_small_answers_do_not_wait(served):
  connection = http.client.HTTPConnection('127.0.0.1', served.server_port)
  start = time.monotonic()
  for _ in range(50):
    connection.request('GET', f'/{served.token}/unknown')
    connection.getresponse().read()
  assert time.monotonic() - start < 1
  connection.close()


def test_slow_and_many_connections_are_closed(served, monkeypatch):
  monkeypatch.setattr(server, '_SECONDS', 0.5)
  start = time.monotonic()
  with opened(served, b'GET / HTTP/1.1\r\nX: ') as connection:
    connection.settimeout(0.1)
    while time.monotonic() - start < 5:
      try:
        connection.sendall(b'x')
        if not connection.recv(1):
          break
      except TimeoutError:
        continue
      except ConnectionError:
        break
  assert time.monotonic() - start < 3
  monkeypatch.setattr(server, '_SECONDS', 9)
  many = [opened(served) for _ in range(server._CONNECTIONS + 1)]
  assert not many[-1].recv(1)
  for connection in many:
    connection.close()
  deadline = time.monotonic() + 9
  while time.monotonic() < deadline:
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
      assert ask(served, '')[0].status == 200
      break
  assert time.monotonic() < deadline


ELSEWHERE = [
  f'{prefix}{up * 4}{file}'
  for prefix in ('', 'slides/', 'slides/007.a/', 'slides/007.a/tiles/')
  for up in ('../', '..%2f', '%2e%2e/', '%252e%252e%252f', '..%5c', '..//')
  for file in ('secret.txt', 'etc/passwd', 'slides/007.a.tiff')
]


def test_what_is_not_there_is_not_found(served):
  for path in (
    *ELSEWHERE,
    '/etc/passwd',
    '%2fetc%2fpasswd',
    'index.html',
    'server.py',
    'openseadragon/LICENSE.txt',
    'slides/',
    'slides/unknown/',
    'slides/007.a/x',
    'slides/007.a%00/',
    'slides/%ff/',
    'slides/007.A/',
    'slides?x=1',
    'slides/007.a/tiles/0/0_0.png',
    'slides/007.a/tiles/99/0_0.jpg',
    'slides/007.a/tiles/10/3_0.jpg',
    'slides/007.a/tiles/10/-1_0.jpg',
    'slides/007.a/tiles/9999999999/0_0.jpg',
    'slides/007.a/heat/absolute/attention/viridis/10/3_0.png',
    'slides/007.a/heat/absolute/attention/viridis/11/0_0.png',
    'slides/007.a/heat/absolute/attention/__class__/10/0_0.png',
    'slides/007.a/heat/absolute/probability-3/viridis/10/0_0.png',
    'slides/007.a/heat/other/attention/viridis/10/0_0.png',
    'slides/007.a/at/1_x',
    urllib.parse.quote('slides/007.a/at/\u0661_1', safe='/_'),
  ):
    answer, content = ask(served, path)
    assert answer.status == 404, path
    assert b'secret' not in content and b'root:' not in content


def test_names_of_any_kind_are_found_and_a_bad_slide_costs_only_itself(served):
  listed = json.loads(read(served, 'slides'))
  assert [slide['id'] for slide in listed] == sorted(NAMES)
  assert {'id': '007.a', 'label': 'lymphoma'} in listed
  answer, content = ask(served, 'slides/broken/')
  assert answer.status == 500 and 'broken' in content.decode()
  name = urllib.parse.quote(NAMES[1], safe='')
  assert json.loads(read(served, f'slides/{name}/'))['id'] == NAMES[1]
  with pytest.raises(MapError, match='--slides_dir'):
    server.Server({}, {'a': {}}, {})


def test_openseadragon_is_the_published_file():
  folder = importlib.resources.files('experiments.viewer') / 'page'
  library = folder / 'openseadragon' / 'openseadragon.min.js'
  assert hashlib.sha256(library.read_bytes()).hexdigest() == SHA256
  licence = (library.parent / 'LICENSE.txt').read_text()
  assert 'Redistribution and use in source and binary forms' in licence


def stitched(served, template, size, tile, overlap=0):
  """Puts the tiles of one level together."""
  width, height = size
  columns, rows = -(-width // tile), -(-height // tile)
  lines = []
  for row in range(rows):
    cells = [
      np.asarray(
        Image.open(io.BytesIO(read(served, template.format(f'{column}_{row}'))))
      )[
        overlap * (row > 0) : overlap * (row > 0) + tile,
        overlap * (column > 0) : overlap * (column > 0) + tile,
      ]
      for column in range(columns)
    ]
    lines.append(np.concatenate(cells, 1))
  return np.concatenate(lines)


def test_slide_and_map_lie_over_each_other(served, scores):
  """At the finest level, where every tile's colour is known in both."""
  about = json.loads(read(served, 'slides/007.a/'))
  size = (about['width'], about['height'])
  assert size == (drawn_maps.WIDTH, drawn_maps.HEIGHT)
  assert about['mpp'] == pytest.approx(drawn_maps.MPP, rel=1e-3)
  level = about['max_level']
  tiles = f'slides/007.a/tiles/{level}/{{}}.jpg'
  slide = stitched(served, tiles, size, *about['tile'].values())
  assert slide.shape == (*size[::-1], 3)
  for scale in overlay.SCALES:
    for layer in overlay.layers(scores, scale).values():
      heat = stitched(
        served,
        f'slides/007.a/heat/{scale}/{layer.key}/viridis/{level}/{{}}.png',
        size,
        about['heat_tile']['size'],
      )
      expected = np.zeros((*size[::-1], 4), np.uint8)
      for (x, y), value in zip(scores.coords, layer.values, strict=True):
        if not np.isnan(value):
          place = np.rint(255 * layer.norm(value)).astype(int)
          colour = overlay.colour_map('viridis')[place]
          expected[y : y + SIDE, x : x + SIDE] = colour
      np.testing.assert_array_equal(heat, expected)
  for x, y in scores.coords:
    seen = slide[y + 8 : y + SIDE - 8, x + 8 : x + SIDE - 8]
    assert abs(seen - drawn_maps.pixel([x, y])).max() <= 8
  # Coarse levels cover the whole slide.
  for level in range(about['max_level']):
    scale = 2 ** (about['max_level'] - level)
    size = tuple(-(-about[k] // scale) for k in ('width', 'height'))
    heat = f'slides/007.a/heat/absolute/probability-2/jet/{level}/{{}}.png'
    assert stitched(served, heat, size, 256).shape == (*size[::-1], 4)


def test_the_pointer_tells_the_tile_below_it(served, scores):
  def at(x, y):
    return json.loads(read(served, f'slides/007.a/at/{x}_{y}'))

  for i in (0, 7, len(scores) - 1):
    x, y = scores.coords[i].tolist()
    for apart in (0, SIDE - 1):
      tile = at(x + apart, y + apart)
      assert tile['tile'] == i
      assert tile['box'] == [x, y, x + SIDE, y + SIDE]
      expected = scores.probability(2)[i]
      assert tile['scores']['probability of breast'] == (
        None if np.isnan(expected) else pytest.approx(expected)
      )
  corners = {tuple(c) for c in scores.coords.tolist()}
  places = map(tuple, drawn_maps.lattice().tolist())
  assert at(*next(c for c in places if c not in corners)) is None


def test_no_tile_takes_more_pixels_than_it_may(viewed, monkeypatch):
  """The file stores levels of 1, 2 and 4; the pyramid's are 2^10 to 1."""
  monkeypatch.setattr(slide_view, '_READ', 600)
  (path,) = (viewed.parent / 'slides').glob('007.a.tiff')
  view = slide_view.SlideView(path, tile_scores.find(viewed)['007.a'])
  assert view.min_level == 7  # 8 times as coarse, from pixels of 4 times.
  assert view.picture(6, 0, 0) is None
  assert view.picture(7, 0, 0)


LOADED = (
  'heat && viewer.world.getItemCount() === 2 &&'
  ' [0, 1].every(i => viewer.world.getItemAt(i).getFullyLoaded())'
)
# Colour of the canvas at a place of the slide.
COLOUR = """(() => {
  const place = picture.imageToViewerElementCoordinates(
    new OpenSeadragon.Point(%d, %d));
  const canvas = document.querySelector('#view canvas');
  const ratio = canvas.width / canvas.clientWidth;
  const pen = new OffscreenCanvas(1, 1).getContext(
    '2d', {willReadFrequently: true});
  pen.drawImage(canvas, -Math.round(place.x * ratio),
    -Math.round(place.y * ratio));
  return [...pen.getImageData(0, 0, 1, 1).data];
})()"""
POINT = (
  "$('#view').dispatchEvent(new PointerEvent('pointermove',"
  ' {clientX: 550, clientY: 400, bubbles: true}))'
)


def choose(page, name, value, event='change'):
  page.evaluate(
    f"$('#{name}').value = {json.dumps(value)};"
    f" $('#{name}').dispatchEvent(new Event('{event}'))"
  )


def test_the_page_shows_slide_and_map_with_the_asked_opacity(served, scores):
  layer = overlay.layers(scores, 'absolute')['probability-2']
  i = int(np.nanargmax(layer.values))
  spot = tuple((scores.coords[i] + SIDE // 2).tolist())
  below = drawn_maps.pixel(scores.coords[i])
  place = int(np.rint(255 * layer.norm(layer.values[i])))
  above = overlay.colour_map('viridis')[place][:3].astype(float)
  with browser.Page(served.url + '#007.a') as page:
    page.wait_for(LOADED)
    for percent in (0, 50, 100):
      choose(page, 'opacity', percent, 'input')
      expected = below + (above - below) * percent / 100
      page.wait_for(
        f'{COLOUR % spot}.slice(0, 3).every((x, k) =>'
        f' Math.abs(x - {expected.tolist()}[k]) < 10)',
      )
    for width in (1280, 800):
      page.resize(width, 800)
      page.wait_for(LOADED)
      assert page.evaluate('document.documentElement.scrollWidth') <= width
    choose(page, 'scale', 'rank')
    page.wait_for("$('#legend figcaption').textContent.startsWith('rank')")
    page.wait_for(LOADED)
    choose(page, 'layer', 'attention')
    page.wait_for("$('#legend figcaption').textContent.includes('attention')")
    page.evaluate(POINT)
    page.wait_for(
      "$('#tile tbody').textContent.includes('probability of breast')"
    )
    # The true class is shown, and a slide of odd name can be chosen.
    assert 'lymphoma' in page.evaluate("$('#facts').textContent")
    choose(page, 'slide', NAMES[1])
    page.wait_for(f'document.title === {json.dumps(NAMES[1])} && ({LOADED})')
    assert page.problems == []
    assert all(url.startswith(served.url) for url in page.requests)
    # Of choices in a row the last one stays, alone.
    page.evaluate(
      "for (const key of ['probability-0', 'disagreement', 'probability-1']) {"
      " $('#layer').value = key;"
      " $('#layer').dispatchEvent(new Event('change')); }"
    )
    page.wait_for("$('#legend figcaption').textContent.includes('lymphoma')")
    page.wait_for(LOADED)
    choose(page, 'slide', 'broken')
    page.wait_for("!$('#fault').hidden")
    assert 'broken' in page.evaluate("$('#fault').textContent")
    # The slide that is shown is the one that is named; the fault stays.
    assert page.evaluate("$('#slide').value") == NAMES[1]
    page.evaluate(POINT)
    page.wait_for("$('#tile tbody').textContent.includes('place')")
    assert not page.evaluate("$('#fault').hidden")


def test_the_script_names_the_slide_asked_for(viewed, monkeypatch, capsys):
  """That it serves until Ctrl-C is in tests/golden."""
  monkeypatch.setattr(server.Server, 'serve_forever', lambda self: None)
  view.main(['view', '--port=0', f'--run={viewed}', '--slide=007.a'])
  assert re.search('open http.*/#007.a\n', capsys.readouterr().out)
