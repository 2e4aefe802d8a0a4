"""The local page of slides in a browser, and the script that opens it."""

import json
import re
import signal
import time
import urllib.request

import browser
import drawn_maps
import numpy as np
import script_process
from served_slides import NAMES

from experiments.maps import overlay, tile_scores

SIDE = drawn_maps.SIDE


def until(page, script, seconds=20):
  """Waits until a script in the page is true."""
  end = time.monotonic() + seconds
  while not page.evaluate(script):
    assert time.monotonic() < end, f'{script}; {page.problems}'
    time.sleep(0.05)


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


def test_the_page_shows_slide_and_map_with_the_asked_opacity(
  served, viewed, tmp_path
):
  scores = tile_scores.read(tile_scores.find(viewed)['007.a'])
  layer = overlay.layers(scores, 'absolute')['probability-2']
  i = int(np.nanargmax(layer.values))
  spot = tuple((scores.coords[i] + SIDE // 2).tolist())
  below = drawn_maps.pixel(scores.coords[i])
  place = int(np.rint(255 * layer.norm(layer.values[i])))
  above = overlay.colour_map('viridis')[place][:3].astype(float)
  with browser.Browser() as opened:
    page = opened.open(served.url + '#007.a')
    until(page, LOADED)
    for percent in (0, 50, 100):
      choose(page, 'opacity', percent, 'input')
      expected = below + (above - below) * percent / 100
      until(
        page,
        f'{COLOUR % spot}.slice(0, 3).every((x, k) =>'
        f' Math.abs(x - {expected.tolist()}[k]) < 10)',
      )
    for width in (1280, 800):
      page.resize(width, 800)
      until(page, LOADED)
      assert page.evaluate('document.documentElement.scrollWidth') <= width
      page.screenshot(tmp_path / f'{width}.png')
    choose(page, 'scale', 'rank')
    until(page, "$('#legend figcaption').textContent.startsWith('rank')")
    until(page, LOADED)
    choose(page, 'layer', 'attention')
    until(page, "$('#legend figcaption').textContent.includes('attention')")
    page.evaluate(POINT)
    until(
      page, "$('#tile tbody').textContent.includes('probability of breast')"
    )
    # The true class is told, and a slide of odd name can be chosen.
    assert 'lymphoma' in page.evaluate("$('#facts').textContent")
    choose(page, 'slide', NAMES[1])
    until(page, f'document.title === {json.dumps(NAMES[1])} && ({LOADED})')
    assert page.problems == []
    assert all(url.startswith(served.url) for url in page.requests)
    # Of choices in a row the last one stays, alone.
    page.evaluate(
      "for (const key of ['probability-0', 'disagreement', 'probability-1']) {"
      " $('#layer').value = key;"
      " $('#layer').dispatchEvent(new Event('change')); }"
    )
    until(page, "$('#legend figcaption').textContent.includes('lymphoma')")
    until(page, LOADED)
    choose(page, 'slide', 'broken')
    until(page, "!$('#fault').hidden")
    assert 'broken' in page.evaluate("$('#fault').textContent")
    # The slide that is shown is the one that is named; the fault stays told.
    assert page.evaluate("$('#slide').value") == NAMES[1]
    page.evaluate(POINT)
    until(page, "$('#tile tbody').textContent.includes('place')")
    assert not page.evaluate("$('#fault').hidden")


def test_the_script_serves_the_slide_asked_for(viewed):
  # What runs in the background may have been told to ignore Ctrl-C.
  heed = 'import signal; signal.signal(2, signal.default_int_handler)'
  script = script_process.Script(
    'experiments.view',
    ['--port=0', f'--run={viewed}', '--slide=007.a'],
    before=heed,
  )
  try:
    end = time.monotonic() + 60
    while 'end with' not in script.printed():
      assert script.poll() is None and time.monotonic() < end, script.printed()
      time.sleep(0.05)
    url = re.search('open (http.*)/#007.a\n', script.printed())[1]
    with urllib.request.urlopen(f'{url}/', timeout=200) as answer:
      assert b'viewer.js' in answer.read()
  finally:
    script.send_signal(signal.SIGINT)  # Ctrl-C.
    script.communicate()
  assert script.returncode == 0
