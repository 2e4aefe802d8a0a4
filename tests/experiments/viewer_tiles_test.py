"""The pyramids of a slide and its maps, as the local page gets them."""

import io
import json

import drawn_maps
import numpy as np
from PIL import Image
import pytest
from served_slides import read

from experiments.maps import overlay, tile_scores
from experiments.viewer import slide_view

SIDE = drawn_maps.SIDE


def picture(content):
  return np.asarray(Image.open(io.BytesIO(content)))


def stitched(served, template, size, tile, overlap=0):
  """Puts the tiles of one level together."""
  width, height = size
  columns, rows = -(-width // tile), -(-height // tile)
  lines = []
  for row in range(rows):
    cells = [
      picture(read(served, template.format(f'{column}_{row}')))
      for column in range(columns)
    ]
    cells = [
      cell[
        overlap * (row > 0) : overlap * (row > 0) + tile,
        overlap * (column > 0) : overlap * (column > 0) + tile,
      ]
      for column, cell in enumerate(cells)
    ]
    lines.append(np.concatenate(cells, 1))
  return np.concatenate(lines)


def test_slide_and_map_lie_over_each_other(served, viewed):
  """At the finest level, where every tile's colour is known in both."""
  about = json.loads(read(served, 'slides/007.a/'))
  size = (about['width'], about['height'])
  assert size == (drawn_maps.WIDTH, drawn_maps.HEIGHT)
  assert about['mpp'] == pytest.approx(drawn_maps.MPP, rel=1e-3)
  level = about['max_level']
  slide = stitched(
    served,
    f'slides/007.a/tiles/{level}/{{}}.jpg',
    size,
    about['tile']['size'],
    about['tile']['overlap'],
  )
  assert slide.shape == (*size[::-1], 3)
  scores = tile_scores.read(tile_scores.find(viewed)['007.a'])
  for scale in overlay.SCALES:
    for layer in overlay.layers(scores, scale).values():
      heat = stitched(
        served,
        f'slides/007.a/heat/{scale}/{layer.key}/viridis/{level}/{{}}.png',
        size,
        about['heat_tile']['size'],
      )
      assert heat.shape == (*size[::-1], 4)
      expected = np.zeros_like(heat)
      for (x, y), value in zip(scores.coords, layer.values, strict=True):
        if not np.isnan(value):
          place = np.rint(255 * layer.norm(value)).astype(int)
          colour = overlay.colour_map('viridis')[place]
          expected[y : y + SIDE, x : x + SIDE] = colour
      np.testing.assert_array_equal(heat, expected)
  for x, y in scores.coords:
    seen = slide[y + 8 : y + SIDE - 8, x + 8 : x + SIDE - 8]
    assert abs(seen - drawn_maps.pixel([x, y])).max() <= 8


def test_coarse_levels_cover_the_whole_slide(served):
  about = json.loads(read(served, 'slides/007.a/'))
  for level in range(about['max_level'] + 1):
    scale = 2 ** (about['max_level'] - level)
    size = tuple(-(-about[k] // scale) for k in ('width', 'height'))
    heat = f'slides/007.a/heat/absolute/probability-2/jet/{level}/{{}}.png'
    assert stitched(served, heat, size, 256).shape == (*size[::-1], 4)


def test_the_pointer_tells_the_tile_below_it(served, viewed):
  scores = tile_scores.read(tile_scores.find(viewed)['007.a'])
  for i in (0, 7, len(scores) - 1):
    x, y = scores.coords[i].tolist()
    for dx, dy in ((0, 0), (SIDE - 1, SIDE - 1)):
      said = json.loads(read(served, f'slides/007.a/at/{x + dx}_{y + dy}'))
      assert said['tile'] == i
      assert said['box'] == [x, y, x + SIDE, y + SIDE]
      expected = scores.probability(2)[i]
      assert said['scores']['probability of breast'] == (
        None if np.isnan(expected) else pytest.approx(expected)
      )
  corners = {tuple(c) for c in scores.coords.tolist()}
  empty = next(
    tuple(c) for c in drawn_maps.lattice().tolist() if tuple(c) not in corners
  )
  assert (
    json.loads(read(served, 'slides/007.a/at/{}_{}'.format(*empty))) is None
  )


def test_no_tile_takes_more_pixels_than_it_may(viewed, monkeypatch):
  """The file stores levels of 1, 2 and 4; the pyramid's are 2^10 to 1."""
  monkeypatch.setattr(slide_view, '_READ', 600)
  (path,) = (viewed.parent / 'slides').glob('007.a.tiff')
  view = slide_view.SlideView(path, tile_scores.find(viewed)['007.a'])
  assert view.min_level == 7  # 8 times as coarse, from pixels of 4 times.
  assert view.picture(6, 0, 0) is None
  assert view.picture(7, 0, 0)
