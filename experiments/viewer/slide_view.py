"""Cuts a slide and its maps into the tiles of a deep-zoom pyramid."""

from collections.abc import Callable, Mapping
import functools
import io
import math
import pathlib
from typing import Any

import numpy as np
import openslide
from openslide import deepzoom
from PIL import Image

from data import images, slides
from data.slides import SlideError
from experiments.maps import overlay, tile_scores

_TILE = 254  # Pixels of a picture tile; with an overlap of 1, 256 are sent.
_OVERLAP = 1
_READ = 4096  # Longest side, in pixels, of what is read for one tile.
_QUALITY = 80  # Of JPEG.
_LARGEST = 256  # Longest side of what is sent.
_SMALL = 7  # The last level that one tile always holds.
_TOP = 8  # Tiles of a layer that the page leads to.
_HATCH = (96, 96, 96, 255)  # Lines over tiles without a value,
_EVERY = 8  # of 2 pixels in so many.
_STEPS = 32  # Colours that a legend is drawn with.


class SlideView:
  """An open slide and the scores of its tiles; threads may share it.

  Pyramids are those of Deep Zoom: the last level is level 0 of the slide, each
  one before it half as large, rounded up. Where a file has no small levels, the
  pyramid has none either: a tile of theirs would take the whole slide to make.
  """

  def __init__(
    self,
    path: pathlib.Path,
    scores_paths: Mapping[int, pathlib.Path],
    *,
    tile_size: float | None = None,
    slide_mpp: float | None = None,
    outlines_dir: pathlib.Path | None = None,
  ):
    """Opens a slide.

    Args:
      path: a slide file, or the folder of a DICOM slide.
      scores_paths: its scores by fold, see `tile_scores.find`.
      tile_size: see `tile_scores.read`.
      slide_mpp: um/px of a slide of which neither scores nor file state it.
      outlines_dir: see `overlay.known_outlines`.

    Raises:
      SlideError: if the slide cannot be opened.
      tile_scores.MapError: if its scores or outlines cannot be read, or are of
        a slide of another size.
    """
    self.scores = tile_scores.read(scores_paths, tile_size)
    try:
      self._slide = openslide.OpenSlide(slides.first_file(path))
    except (openslide.OpenSlideError, OSError) as e:
      raise SlideError(f'{path}: OpenSlide cannot open it ({e}).') from e
    self.scores.check_slide(path, *self._slide.dimensions)
    try:
      about = path.name, self._slide.properties
      self.mpp, _ = slides.pixel_size(*about, slide_mpp, self.scores.mpp)
    except SlideError:
      self.mpp = None  # Then there is no scale bar.
    known = overlay.known_outlines(path, self.scores.slide, outlines_dir)
    self._rings = [np.rint(ring).astype(int).tolist() for ring in known]
    self._zoom = deepzoom.DeepZoomGenerator(self._slide, _TILE, _OVERLAP)
    self._boxes = overlay.boxes(self.scores)
    scales = tile_scores.SCALES
    self._layers = {s: overlay.layers(self.scores, s) for s in scales}

  @functools.cached_property
  def min_level(self) -> int:
    """The smallest level whose tiles are made of few enough pixels."""
    top = self._zoom.level_count - 1
    for level in range(top):
      wanted = 2 ** (top - level)
      stored = self._slide.get_best_level_for_downsample(wanted)
      downsample = wanted / self._slide.level_downsamples[stored]
      side = min(_TILE, max(self._zoom.level_dimensions[level]))
      if side * downsample <= _READ:
        return level
    return top

  def describe(self) -> dict[str, Any]:
    """Returns what the page has to know of the slide, fit for JSON."""
    scores, (width, height) = self.scores, self._slide.dimensions
    return {
      'id': scores.slide,
      'width': width,
      'height': height,
      'mpp': self.mpp,
      'min_level': self.min_level,
      'max_level': self._zoom.level_count - 1,
      'tile': {'size': _TILE, 'overlap': _OVERLAP},
      'heat_tile': {'size': _LARGEST, 'overlap': 0},
      'tiles': len(scores),
      'outlines': self._rings,
      'folds': list(scores.folds),
      'predicted': scores.classes[scores.predicted],
      'classes': [
        {'name': name, 'prob': float(prob), 'sd': _number(sd)}
        for name, prob, sd in zip(
          scores.classes, scores.prob.mean(0), scores.spread, strict=True
        )
      ],
      'layers': {
        scale: [
          {k: v for k, v in vars(layer).items() if k != 'values'}
          | {
            'top': self._top(layer),
            'without': int(np.isnan(layer.values).sum()),
          }
          for layer in of_scale.values()
        ]
        for scale, of_scale in self._layers.items()
      },
      'colours': {
        name: overlay.colour_map(name)[
          np.linspace(0, 255, _STEPS).astype(int)
        ].tolist()
        for name in tile_scores.COLOURS
      },
    }

  def picture(self, level: int, column: int, row: int) -> bytes | None:
    """Returns a tile of the slide as JPEG, None if there is no such tile.

    Raises:
      SlideError: if the slide cannot be read there; open it anew after that.
    """
    if level < self.min_level:
      return None
    try:
      return self._jpeg(self._zoom.get_tile, level, (column, row))
    except ValueError:  # As documented, of places that are not there.
      return None

  def thumbnail(self) -> bytes | None:
    """Returns the whole slide as JPEG, None if too much had to be read.

    Raises:
      SlideError: see `picture`.
    """
    stored = self._slide.associated_images
    if 'thumbnail' in stored:  # The scanner's own.
      return self._jpeg(stored.__getitem__, 'thumbnail')
    return self.picture(min(_SMALL, self._zoom.level_count - 1), 0, 0)

  def heat(
    self, scale: str, key: str, colours: str, level: int, column: int, row: int
  ) -> bytes | None:
    """Returns a tile of a map as PNG, None if there is no such tile or map."""
    layer = self._layers.get(scale, {}).get(key)
    if (
      layer is None
      or colours not in tile_scores.COLOURS
      or level >= self._zoom.level_count
    ):
      return None
    width, height = self._zoom.level_dimensions[level]
    x, y = column * _LARGEST, row * _LARGEST
    if x >= width or y >= height:
      return None
    shape = min(_LARGEST, height - y), min(_LARGEST, width - x)
    factor = np.divide(self._slide.dimensions, (width, height))
    paint = lambda values: overlay.paint(
      self._boxes, values, factor, shape, (x, y)
    )
    painted, empty = paint(layer.values), np.isnan(layer.values)
    image = layer.coloured(painted, overlay.colour_map(colours))
    without = ~np.isnan(paint(np.where(empty, 0, np.nan))) & np.isnan(painted)
    # They go on in the next picture, whose side is a multiple of _EVERY.
    lines = np.add.outer(*map(np.arange, shape)) % _EVERY < 2
    image[without & lines] = _HATCH
    return _encode(Image.fromarray(image), 'PNG', compress_level=3)

  def tile(self, i: int) -> bytes | None:
    """Returns the picture of a tile as JPEG, None if there is no such tile.

    Raises:
      SlideError: see `picture`.
    """
    if i >= len(self._boxes):
      return None
    left, top, right, bottom = map(int, self._boxes[i])
    longest = max(right - left, bottom - top)
    level = self._slide.get_best_level_for_downsample(longest / _LARGEST)
    factor = self._slide.level_downsamples[level]
    if longest / factor > _READ:
      return None
    size = [math.ceil(n / factor) for n in (right - left, bottom - top)]
    return self._jpeg(self._slide.read_region, (left, top), level, size)

  def _jpeg(self, read: Callable[..., Image.Image], *place: Any) -> bytes:
    try:
      image = read(*place)
    except openslide.OpenSlideError as e:
      raise SlideError(f'{self.scores.slide}: cannot be read ({e}).') from e
    image.thumbnail((_LARGEST, _LARGEST))
    # Transparent where the file has no pixels.
    image = images.on_white(image).convert('RGB')
    return _encode(image, 'JPEG', quality=_QUALITY)

  def _top(self, layer: overlay.Layer) -> list[dict[str, Any]]:
    """Returns the tiles of the highest values, from the highest on."""
    order = np.argsort(-layer.values, kind='stable')  # NaN are the last.
    has = order[~np.isnan(layer.values[order])]
    return [
      {'tile': i, 'box': self._boxes[i].tolist(), 'value': layer.values[i]}
      for i in has[:_TOP].tolist()
    ]

  def at(self, x: int, y: int) -> dict[str, Any] | None:
    """Returns the tile over a level-0 pixel and its scores, None without one.

    Of tiles that overlap, the one whose centre is nearest.
    """
    left, top, right, bottom = self._boxes.T
    over = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    if not over.any():
      return None
    near = np.hypot((left + right) / 2 - x, (top + bottom) / 2 - y)
    i = int(np.where(over, near, np.inf).argmin())
    return {
      'tile': i,
      'box': self._boxes[i].tolist(),
      'kept': int(self.scores.kept[:, i].sum()),
      'scores': {
        layer.title.removeprefix('tile '): _number(layer.values[i])
        for layer in self._layers['absolute'].values()
      },
    }


def _number(value: float) -> float | None:
  """Returns a number as JSON has it."""
  return None if math.isnan(value) else float(value)


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()
