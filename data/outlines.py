"""Reads outlines of lesions and measures what they cover of tiles."""

import json
import pathlib
from typing import Any, NamedTuple
import warnings
from xml.etree import ElementTree

import numpy as np

from data.labelled_tiles import TileError

EXTENSIONS = ('.json', '.geojson', '.xml')
# Groups that CAMELYON16, CAMELYON17 and ASAP itself give to holes.
_HOLES = ('_2', 'normal', 'exclusion')
_SHAPES = ('Polygon', 'Rectangle')


class Ring(NamedTuple):
  """A closed outline, or a hole in others."""

  corners: np.ndarray  # (x, y), level-0 pixels, float64 [K, 2], not repeated
  hole: bool


def read(path: pathlib.Path | str, *, drop_empty: bool = False) -> list[Ring]:
  """Reads GeoJSON (QuPath, the phantom) or the XML of ASAP (CAMELYON).

  In GeoJSON all rings of a polygon but the first are holes; in XML those of the
  groups _2, normal and Exclusion are. Names of classes are not looked at. A
  file without outlines is sound: nothing was found on that slide.

  Args:
    path: coordinates in it are level-0 pixels.
    drop_empty: whether shapes of one or two corners, which have no area, are
      left out, with a warning, rather than refused; tumor_054 of CAMELYON16 has
      one.

  Raises:
    TileError: if the file cannot be parsed, or holds a shape without an area.
  """
  path = pathlib.Path(path)
  parse = _read_xml if path.suffix.lower() == '.xml' else _read_geojson
  try:
    rings = parse(path)
  except OSError as e:
    raise TileError(f'{path}: cannot be read ({e})') from e
  except (
    AttributeError,
    ElementTree.ParseError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
  ) as e:
    raise TileError(
      f'{path}: no outlines in the layout of GeoJSON or ASAP '
      f'({type(e).__name__}: {e}); export them again'
    ) from e
  for few in (len(r.corners) for r in rings if len(r.corners) < 3):
    fault = f'{path}: an outline of {few} corners has no area'
    if not drop_empty:
      raise TileError(f'{fault}; draw it again')
    warnings.warn(f'{fault}: left out', stacklevel=2)
  return [ring for ring in rings if len(ring.corners) > 2]


def _read_geojson(path: pathlib.Path) -> list[Ring]:
  content = json.loads(path.read_text(encoding='utf-8'))
  if isinstance(content, dict):
    content = content['features'] if 'features' in content else [content]
  rings = []
  for i, feature in enumerate(content):
    shape = feature['geometry']
    if shape['type'] not in ('Polygon', 'MultiPolygon'):
      raise ValueError(f'feature {i} is a {shape["type"]}, not a polygon')
    polygons = shape['coordinates']
    for polygon in [polygons] if shape['type'] == 'Polygon' else polygons:
      rings += [_ring(f'feature {i}', r, k > 0) for k, r in enumerate(polygon)]
  return rings


def _read_xml(path: pathlib.Path) -> list[Ring]:
  rings = []
  root = ElementTree.parse(path).getroot()
  if root.tag != 'ASAP_Annotations':
    raise ValueError(f'its root is {root.tag}, not ASAP_Annotations')
  for i, shape in enumerate(root.iter('Annotation')):
    name = f'annotation {shape.get("Name", i)}'
    if shape.get('Type') not in _SHAPES:
      raise ValueError(f'{name} is a {shape.get("Type")}, not a polygon')
    corners = sorted(
      shape.iter('Coordinate'), key=lambda c: int(c.get('Order'))
    )
    hole = (shape.get('PartOfGroup') or '').lower() in _HOLES
    rings.append(_ring(name, [(c.get('X'), c.get('Y')) for c in corners], hole))
  return rings


def _ring(name: str, corners: Any, hole: bool) -> Ring:
  corners = np.array([corner[:2] for corner in corners], float)
  if len(corners) > 1 and (corners[0] == corners[-1]).all():
    corners = corners[:-1]
  if corners.shape[1:] != (2,) or not np.isfinite(corners).all():
    raise ValueError(f'{name} has {len(corners)} corners or a place unknown')
  return Ring(corners, hole)


def covered(rings: list[Ring], coords: np.ndarray, size: float) -> np.ndarray:
  """Returns the part of each tile's area inside the outlines, float64 [T].

  Exact for rings that do not cross themselves. Holes are subtracted; where
  outlines overlap the area counts twice, but a tile is never more than full.

  Args:
    rings: the outlines.
    coords: upper left corners of the tiles (x, y), [T, 2].
    size: side of a tile, in the same pixels.
  """
  area = np.zeros(len(coords))
  for corners, hole in rings:
    low, high = corners.min(0), corners.max(0)
    near = ((coords < high) & (coords + size > low)).all(1)
    for y in np.unique(coords[near, 1]):  # One strip of tiles at a time.
      strip = _cut(_cut(corners, 1, y, 1), 1, y + size, -1)
      for t in np.flatnonzero(near & (coords[:, 1] == y)):
        x = coords[t, 0]
        inside = _cut(_cut(strip, 0, x, 1), 0, x + size, -1)
        area[t] += (-1 if hole else 1) * _area(inside)
  return np.clip(area / size**2, 0, 1)


def _cut(corners: np.ndarray, axis: int, bound: float, sign: int) -> np.ndarray:
  """Returns the part of a ring on one side of an axis-parallel line.

  Sutherland and Hodgman, "Reentrant polygon clipping", CACM 1974. Pieces stay
  joined along the line, which adds no area.
  """
  if not len(corners):
    return corners
  depth = sign * (corners[:, axis] - bound)
  after, end = np.roll(depth, -1), np.roll(corners, -1, 0)
  crosses = (depth >= 0) != (after >= 0)
  span = np.where(crosses, depth - after, 1)
  meeting = corners + (depth / span)[:, None] * (end - corners)
  points = np.stack([meeting, end], 1)
  return points[np.stack([crosses, after >= 0], 1)]


def _area(corners: np.ndarray) -> float:
  if len(corners) < 3:
    return 0.0
  x, y = (corners - corners[0]).T
  return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
