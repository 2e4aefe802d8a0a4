"""The local page of slides: what it serves, refuses and shows."""

import contextlib
import hashlib
import http.client
import importlib.resources
import io
import json
import re
import shutil
import socket
import threading
import time
import urllib.parse

import browser
import drawn_maps
import next_command
import numpy as np
from PIL import Image
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from data import tiff
from experiments import view
from experiments.maps import overlay, tile_scores
from experiments.maps.source import Slides
from experiments.maps.tile_scores import MapError
from experiments.viewer import server, slide_view

SIDE = drawn_maps.SIDE
SHA256 = '14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad'
# The third one's file is no slide.
NAMES = ('007.a', 'a b#é%2F', 'broken', 'z')
# True class, and probabilities, of those that the tables have.
TABLE = {
  '007.a': ('lymphoma', [0.1, 0.6, 0.3]),
  'a b#é%2F': ('breast', [0.02, 0.9, 0.08]),
  'z': ('non-tumor', [0.5, 0.3, 0.2]),
}
RING = [[64, 64], [192, 64], [192, 256]]


@pytest.fixture(scope='module')
def viewed(tmp_path_factory):
  """A results folder of three folds."""
  root = tmp_path_factory.mktemp('viewer')
  run = drawn_maps.run_folder(root, NAMES, kept=0.8)
  (root / 'slides' / 'broken.tiff').write_bytes(b'no slide')
  (root / 'secret.txt').write_text('secret')
  write_table(run / 'fold_1', TABLE)
  known = {'positive': [RING], 'negative': []}
  (root / 'outlines').mkdir()
  (root / 'outlines' / '007.a.json').write_text(json.dumps(known))
  (root / 'outlines' / 'z.xml').write_text('no outlines')
  return run


def write_table(folder, table):
  columns = [f'prob_{name}' for name in drawn_maps.CLASSES]
  lines = [['case_id', 'slide_id', 'split', 'label', *columns]]
  for name, (label, prob) in table.items():
    of = f'case {label}', name
    lines += [[*of, 'test', label, *prob], [*of, 'val', 'none', 0, 0, 1]]
  text = ''.join(','.join(map(str, line)) + '\n' for line in lines)
  (folder / 'predictions.csv').write_text(text)


@pytest.fixture(scope='module')
def scores(viewed):
  return tile_scores.read(tile_scores.find(viewed)['007.a'])


@pytest.fixture(scope='module')
def served(viewed):
  """The page of it, from a thread."""
  slides = Slides(viewed)
  tables = slides.tables() | {'note': {'007.a': tile_scores.VALIDATION}}
  with server.Server(slides.files(), slides.scores(), tables) as running:
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
    'slides/007.a/top/999.jpg',
    'slides/007.a/top/-1.jpg',
    urllib.parse.quote('slides/007.a/at/\u0661_1', safe='/_'),
  ):
    answer, content = ask(served, path)
    assert answer.status == 404, path
    assert b'secret' not in content and b'root:' not in content


def test_names_of_any_kind_are_found_and_a_bad_slide_costs_only_itself(served):
  listed = json.loads(read(served, 'slides'))
  assert [slide['id'] for slide in listed] == sorted(NAMES)
  for slide in listed:
    label, prob = TABLE.get(slide['id'], (None, None))
    assert slide['label'] == label
    of_classes = prob and dict(zip(drawn_maps.CLASSES, prob, strict=True))
    assert slide['prob'] == of_classes
  answer, content = ask(served, 'slides/broken/')
  assert answer.status == 500 and 'broken' in content.decode()
  name = urllib.parse.quote(NAMES[1], safe='')
  assert json.loads(read(served, f'slides/{name}/'))['id'] == NAMES[1]
  with pytest.raises(MapError, match='--slides_dir'):
    server.Server({}, {'a': {}}, {})


def test_the_address_without_its_token_says_what_to_open(served):
  answer, content = ask(served, '', token='')
  assert answer.status == 404 and b'whole address' in content
  assert served.token.encode() not in content


def test_probabilities_are_means_of_rows_or_those_of_the_fold(tmp_path):
  for fold, prob in enumerate(([0.2, 0.8, 0], [0.4, 0.2, 0.4])):
    (tmp_path / f'fold_{fold}').mkdir()
    write_table(tmp_path / f'fold_{fold}', {'a': ('breast', prob)})
  of_classes = Slides(tmp_path).predictions()['a']
  assert of_classes == pytest.approx(
    {'non-tumor': 0.3, 'lymphoma': 0.5, 'breast': 0.2}
  )
  assert Slides(tmp_path).labels() == {'a': 'breast'}
  for fold in range(2):
    (tmp_path / f'fold_{fold}' / 'predictions.csv').unlink()
  # As experiments.predict writes it.
  path = tmp_path / 'predictions.csv'
  path.write_text('slide_id,prob_x,std_x,fold_3_prob_x\na,0.25,0.1,0.75\n')
  assert Slides(tmp_path).predictions() == {'a': {'x': 0.25}}
  assert Slides(tmp_path, fold=3).predictions() == {'a': {'x': 0.75}}
  for damaged in ('slide_id,prob_x\na,1.5\n', 'prob_x\n0.5\n', 'prob_x\nx\n'):
    path.write_text(damaged)
    with pytest.raises(MapError, match='damaged'):
      Slides(tmp_path).predictions()


def test_what_is_no_test_of_the_models_is_noted(tmp_path):
  drawn_maps.write_config(tmp_path)
  (tmp_path / 'fold_0').mkdir()
  write_table(tmp_path / 'fold_0', {'a': ('breast', [0, 0, 1])})
  assert Slides(tmp_path).notes() == {}
  path = tmp_path / 'fold_0' / 'predictions.csv'
  path.rename(path.with_name('validation_predictions.csv'))
  assert Slides(tmp_path).notes() == {'a': tile_scores.VALIDATION}
  # As experiments.predict writes it: wherever the training's folder is now.
  folder = tmp_path / 'predicted'
  folder.mkdir()
  drawn_maps.write_config(folder, flags={'run': 'moved'})
  (folder / 'predictions.csv').write_text(
    'slide_id,prob_x,trained_on\na,1,slide\nb,1,patient\nc,1,no\nd,1,\n'
  )
  assert Slides(folder).notes() == {
    'a': tile_scores.TRAINING,
    'b': tile_scores.PATIENT,
  }


def test_known_outlines_come_with_their_slide(served, viewed, tmp_path):
  assert json.loads(read(served, 'slides/007.a/'))['outlines'] == [RING]
  name = urllib.parse.quote(NAMES[1], safe='')
  assert json.loads(read(served, f'slides/{name}/'))['outlines'] == []
  answer, content = ask(served, 'slides/z/')
  assert answer.status == 500 and b'z.xml' in content
  (path,) = (viewed.parent / 'slides').glob('z.tiff')
  paths = path, tile_scores.find(viewed)['z']
  view = slide_view.SlideView(*paths, outlines_dir=tmp_path)
  assert view.describe()['outlines'] == []


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
  for scale in tile_scores.SCALES:
    for layer in overlay.layers(scores, scale).values():
      heat = stitched(
        served,
        f'slides/007.a/heat/{scale}/{layer.key}/viridis/{level}/{{}}.png',
        size,
        about['heat_tile']['size'],
      )
      expected = np.zeros((*size[::-1], 4), np.uint8)
      for (x, y), value in zip(scores.coords, layer.values, strict=True):
        place = expected[y : y + SIDE, x : x + SIDE]
        if np.isnan(value):
          across, down = place.shape[1::-1]
          lines = np.add.outer(np.arange(down) + y, np.arange(across) + x)
          place[lines % 8 < 2] = (96, 96, 96, 255)
        else:
          of_value = np.rint(255 * layer.norm(value)).astype(int)
          place[:] = overlay.colour_map('viridis')[of_value]
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


def test_the_highest_tiles_of_each_map_are_led_to(served, scores):
  about = json.loads(read(served, 'slides/007.a/'))
  for scale, layers in about['layers'].items():
    for layer in layers:
      values = overlay.layers(scores, scale)[layer['key']].values
      highest = np.sort(values[~np.isnan(values)])[::-1][:8]
      assert [one['value'] for one in layer['top']] == highest.tolist()
      assert layer['without'] == np.isnan(values).sum()
      for one in layer['top']:
        assert one['value'] == values[one['tile']]
        assert one['box'][:2] == scores.coords[one['tile']].tolist()
  for i, corner in enumerate(scores.coords):
    if (corner + SIDE <= (drawn_maps.WIDTH, drawn_maps.HEIGHT)).all():
      content = read(served, f'slides/007.a/top/{i}.jpg')
      picture = np.asarray(Image.open(io.BytesIO(content)), int)
      assert picture.shape == (SIDE, SIDE, 3)
      off = picture[8:-8, 8:-8] - drawn_maps.pixel(corner)
      assert abs(off).max() <= 8


def test_the_thumbnail_is_the_scanners_or_a_whole_small_level(
  served, viewed, monkeypatch
):
  content = read(served, 'slides/007.a/thumbnail.jpg')
  picture = np.asarray(Image.open(io.BytesIO(content)), int)
  assert picture.shape == (59, 75, 3)  # 2^-3 of the slide.
  for row, column in (5, 5), (50, 30), (30, 60):
    colour = drawn_maps.pixel([8 * column, 8 * row])
    assert abs(picture[row, column] - colour).max() < 16
  paths = viewed.parent / 'slides/007.a.tiff', tile_scores.find(viewed)['007.a']
  monkeypatch.setattr(slide_view, '_READ', 60)
  assert slide_view.SlideView(*paths).thumbnail() is None
  stored = {'thumbnail': Image.new('RGBA', (900, 600), (200, 0, 0))}
  name = 'associated_images'
  monkeypatch.setattr(slide_view.openslide.OpenSlide, name, stored)
  content = slide_view.SlideView(*paths).thumbnail()
  assert Image.open(io.BytesIO(content)).size == (256, 171)


def test_no_tile_takes_more_pixels_than_it_may(viewed, tmp_path, monkeypatch):
  """The pyramid's levels are 2^10 to 1."""
  monkeypatch.setattr(slide_view, '_READ', 520)
  (path,) = (viewed.parent / 'slides').glob('007.a.tiff')
  scores = tile_scores.find(viewed)['007.a']
  # The file stores levels of 1, 2 and 4, and the last has few pixels.
  assert slide_view.SlideView(path, scores).min_level == 0
  image = np.zeros((drawn_maps.HEIGHT, drawn_maps.WIDTH, 3), np.uint8)
  tiff.write(tmp_path / 'a.tiff', image, mpp=drawn_maps.MPP, levels=1)
  view = slide_view.SlideView(tmp_path / 'a.tiff', scores)
  assert view.min_level == 9  # 2 * 254 pixels; all 600 would be too many.
  assert view.picture(8, 0, 0) is None
  assert view.picture(9, 0, 0)
  monkeypatch.setattr(slide_view, '_READ', SIDE - 1)
  assert view.tile(0) is None


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


def look_at(page, name):
  page.evaluate(f"location.hash = '#' + encodeURIComponent({json.dumps(name)})")


def test_the_page_shows_slide_and_map_with_the_asked_opacity(served, scores):
  layer = overlay.layers(scores, 'absolute')['probability-2']
  i = int(np.nanargmax(layer.values))
  spot = tuple((scores.coords[i] + SIDE // 2).tolist())
  below = drawn_maps.pixel(scores.coords[i])
  place = int(np.rint(255 * layer.norm(layer.values[i])))
  above = overlay.colour_map('viridis')[place][:3].astype(float)
  with browser.Page(served.url + '#007.a') as page:
    page.wait_for(LOADED)
    # Which tiles decided is seen first.
    assert page.evaluate("$('#layer').value") == 'attention'
    choose(page, 'layer', layer.key)
    page.wait_for(f"$('#legend figcaption').textContent[0] === 't' && {LOADED}")
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
    page.wait_for(LOADED)
    page.evaluate(POINT)
    page.wait_for(
      "$('#tile tbody').textContent.includes('probability of breast')"
    )
    # The true class is shown, and a slide of odd name can be chosen.
    facts = page.evaluate("$('#facts').textContent")
    assert facts.startswith('patientcase lymphomatrue classlymphoma')
    note = "$('#note').textContent"
    assert page.evaluate(note) == tile_scores.VALIDATION
    look_at(page, NAMES[1])
    page.wait_for(f'document.title === {json.dumps(NAMES[1])} && ({LOADED})')
    assert page.evaluate(note) == ''
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
    look_at(page, 'broken')
    page.wait_for("!$('#fault').hidden")
    assert 'broken' in page.evaluate("$('#fault').textContent")
    # Of the slide that is named nothing is shown, of no other either.
    assert page.evaluate("$('#name').textContent") == 'broken'
    assert page.evaluate('viewer.world.getItemCount()') == 0
    assert page.evaluate("$('#facts').textContent") == ''
    page.evaluate(POINT)
    time.sleep(0.2)
    assert not page.evaluate("$('#fault').hidden")
    look_at(page, 'none of these')
    page.wait_for("$('#fault').textContent.startsWith('none of these: no')")
    assert not page.evaluate("$('#list').hidden")
    # Of a slide whose outlines cannot be read they are named.
    look_at(page, 'z')
    page.wait_for("$('#fault').textContent.includes('z.xml')")


CARDS = "[...document.querySelectorAll('#cards b')].map((b) => b.textContent)"
CENTRE = 'picture.viewportToImageCoordinates(viewer.viewport.getCenter(true))'
SEEN = (
  f'[{CENTRE}.x, {CENTRE}.y, zoomed(), document.title, $("#layer").value,'
  ' $("#marks").checked, $("#outlines").checked]'
)
KEPT = f"""(() => {{
  const at = new URLSearchParams(location.hash);
  return at.get('layer') === 'attention' &&
    +at.get('x') === Math.round({CENTRE}.x) &&
    +at.get('zoom') === +zoomed().toPrecision(4);
}})()"""


def test_slides_are_found_and_the_address_keeps_what_is_seen(served, viewed):
  (viewed.parent / 'outlines' / 'z.xml').rename(viewed / 'z.xml')
  first, second, broken, last = NAMES
  with browser.Page(served.url) as page:
    find = lambda selector: page.driver.find_element(By.CSS_SELECTOR, selector)
    press = lambda *keys: ActionChains(page.driver).send_keys(*keys).perform()

    def is_open(name):
      page.wait_for(f'document.title === {json.dumps(name)} && ({LOADED})')

    page.wait_for(f'{CARDS}.length === 4')
    page.wait_for(
      '[...document.images].filter((image) => image.naturalWidth > 60)'
      '.length === 3'
    )
    # The list: its order, and what is searched for.
    for order, names in (
      ('wrong', [second, first, broken, last]),
      ('label', [second, first, last, broken]),
      ('name', [first, second, broken, last]),
      ('uncertain', [last, first, second, broken]),
    ):
      Select(find('#sort')).select_by_value(order)
      assert page.evaluate(CARDS) == names
    for text, names in (
      ('NON-t', [last]),
      ('wrong 0.90', [second]),
      ('right', [last, first]),
      ('validation slide', [first]),
      ('patient: case br', [second]),
      ('no such slide', []),
    ):
      find('#search').send_keys(text)
      assert page.evaluate(CARDS) == names
      find('#search').send_keys(Keys.CONTROL, 'a')
      find('#search').send_keys(Keys.DELETE)
    # The next slide is that of the list; one that fails is passed.
    find('#cards a').click()
    is_open(last)
    for key, name in ('p', last), ('n', first), ('n', second), ('p', first):
      press(key)
      is_open(name)
    assert find('#place').text == '2 of 4'
    press('nn')
    page.wait_for("!$('#fault').hidden && document.title === 'broken'")
    press('p')
    is_open(second)
    press('p')
    is_open(first)
    assert page.evaluate("$('#fault').hidden")
    # Outlines and numbers lie over the slide, and can be hidden.
    for name, part in ('outlines', '.outlines'), ('marks', '.mark'):
      assert find(part).is_displayed()
      find(f'#{name}').click()
      assert not find(part).is_displayed()
    # A top tile is brought to the middle.
    Select(find('#layer')).select_by_value('attention')
    page.wait_for(f"$('#legend figcaption').textContent[0] === 'a' && {LOADED}")
    find('#top li:nth-child(2) button').click()
    tile = 'slide.layers.absolute.find((l) => l.key === "attention").top[1]'
    page.wait_for(
      f'(() => {{ const {{x, y}} = {CENTRE}, box = {tile}.box;'
      f' return Math.hypot(x - box[0] - {SIDE // 2}, y - box[1] - {SIDE // 2})'
      ' < 1; })()'
    )
    # Magnification and bar agree: 10x is 1 um/px.
    times = float(find('#magnification').text[:-1])
    micrometres = float(find('#bar').text.removesuffix(' µm'))
    pixels = page.evaluate("$('#bar').getBoundingClientRect().width")
    assert times == pytest.approx(10 * pixels / micrometres, rel=0.05)
    # All of it is there after a reload, and for who is given the address.
    page.wait_for(KEPT)
    before, address = page.evaluate(SEEN), page.driver.current_url
    assert before[3:] == [first, 'attention', False, False]

    def assert_seen():
      now = page.evaluate(SEEN)
      assert now[:3] == pytest.approx(before[:3], rel=1e-3)
      assert now[3:] == before[3:]

    page.driver.refresh()
    is_open(first)
    assert_seen()
    page.driver.get('about:blank')
    page.driver.get(address)
    is_open(first)
    assert_seen()
    assert page.driver.current_url == address
    press(Keys.ESCAPE)
    page.wait_for("!$('#list').hidden")
    assert page.evaluate('document.activeElement.textContent').startswith(first)
    page.driver.back()
    is_open(first)
    assert_seen()
    # On a phone slide and list can be used.
    page.resize(390, 844)
    page.wait_for(LOADED)
    for shown in '#view', '#next', '#name', '#in':
      place = find(shown).rect
      assert place['x'] >= 0 and place['x'] + place['width'] <= 390
      assert place['y'] >= 0 and place['y'] + place['height'] <= 844
    assert find('#view').rect['height'] > 400
    assert not find('.navigator').is_displayed()  # It would hide tiles.
    find('nav a').click()
    page.wait_for("!$('#list').hidden")
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    assert page.evaluate("$('#list').scrollWidth") <= 390
    # The library warns of tiles that come when their slide has gone.
    known = re.compile('/broken/|Ignoring tile')
    assert [p for p in page.problems if not known.search(str(p))] == []


def test_the_script_names_the_slide_asked_for_and_what_is_next(
  viewed, monkeypatch, tmp_path, capsys
):
  """That it serves until Ctrl-C is in tests/golden."""
  monkeypatch.setattr(server.Server, 'serve_forever', lambda self: None)
  flags = ['view', '--port=0', f'--run={viewed}']
  view.main([*flags, '--slide=007.a'])
  assert re.search('open http.*/#007.a\n', capsys.readouterr().out)
  view.main(flags)
  printed = capsys.readouterr()
  assert re.search('open http://[^#]*/\n', printed.out)
  assert next_command.read(printed.err)[0] == 'draw_maps'
  trained = shutil.copytree(viewed, tmp_path / 'trained')
  config = json.loads((trained / 'config.json').read_text())
  config['flags']['fold'] = 3
  (trained / 'config.json').write_text(json.dumps(config))
  (trained / 'cohort.csv').touch()
  view.main([*flags, f'--run={trained}'])
  following = [f'--run={trained}', '--slides_dir=new_slides', '--fold=3']
  assert next_command.read(capsys.readouterr().err) == ('predict', following)
  with pytest.raises(SystemExit, match='--slide=other: not among the 4'):
    view.main([*flags, '--slide=other'])
