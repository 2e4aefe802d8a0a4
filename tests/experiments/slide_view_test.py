"""Single slides as the viewer shows them."""

import io

import drawn_maps
import numpy as np
from PIL import Image

from experiments.viewer.slide_view import SlideView


def view(tmp_path, coords, **attributes):
  """A view of a slide of 0.5 um/px whose features state this of it."""
  path = drawn_maps.slide(tmp_path / 'a.tiff')
  scores = drawn_maps.scores(np.int32(coords), 0)
  file = drawn_maps.write_scores(tmp_path, 0, 'a', scores, **attributes)
  return SlideView(path, {0: file})


def test_the_scale_is_that_of_the_tiles(tmp_path):
  """As maps have it: slides state a wrong one, which --slide_mpp_csv mends."""
  places = drawn_maps.lattice()
  assert view(tmp_path, places).mpp == drawn_maps.MPP
  assert view(tmp_path, places, level0_mpp=0.45).mpp == 0.45


def test_what_a_tile_has_beyond_the_slide_is_white(tmp_path):
  content = view(tmp_path, [[0, 0], [-32, 0]]).tile(1)
  picture = np.asarray(Image.open(io.BytesIO(content)), int)
  assert (picture[:, :24] > 247).all()
  off = picture[8:-8, 40:56] - drawn_maps.pixel([0, 0])
  assert abs(off).max() <= 8
