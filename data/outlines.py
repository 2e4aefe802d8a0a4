"""Reads outlines of lesions and tells what lies within them."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import json
import pathlib
from typing import Any, NamedTuple
import warnings
from xml.etree import ElementTree

import numpy as np
import shapely

from data.files import first_of
from data.labelled_tiles import TileError

EXTENSIONS = ('.json', '.geojson', '.xml')
# Groups that CAMELYON16, CAMELYON17 and ASAP itself give to holes.
_HOLES = ('_2', 'normal', 'exclusion')
# What only QuPath's features have: since its versions 0.4, 0.3 and 0.2.
_QUPATHS = ('objectType', 'object_type', 'PathAnnotationObject')
_SHAPES = ('Polygon', 'Rectangle', 'Spline')
_CROSSINGS = 1000  # Of a ring; what it holds is known in seconds.
_AT_ONCE = 64  # Edges that are looked at together.


class Ring(NamedTuple):
  """A closed outline, or a hole in others."""

  corners: np.ndarray  # (x, y), level-0 pixels, float64 [K, 2], not repeated
  hole: bool
  polygon: str = ''  # A hole is one in the outlines of this name alone.


def read(path: pathlib.Path | str, corner: Sequence = (0, 0)) -> list[Ring]:
  """Reads GeoJSON (QuPath, TRIDENT), NCRF's JSON or ASAP's XML (CAMELYON).

  In GeoJSON all rings of a polygon but the first are holes of that polygon; in
  XML those of the groups _2, normal and Exclusion are, of all outlines. Names
  of classes are not looked at. The corners of a spline are joined by straight
  lines. Shapes without an area (points, lines, objects without a shape) are
  left out, with a warning; tumor_054 of CAMELYON16 has one. A file without any
  shape is sound: nothing was found on that slide.

  Args:
    path: coordinates in it are level-0 pixels.
    corner: (x, y) where QuPath begins to count them, see `slides.corner`.

  Raises:
    TileError: if the file cannot be parsed, or no shape in it has an area.
  """
  path = pathlib.Path(path)

  def shapes() -> Iterator[Ring | str]:
    if path.suffix.lower() == '.xml':
      return _xml_rings(ElementTree.parse(path).getroot())
    return _json_rings(json.loads(path.read_bytes()), corner)

  return _sound(str(path), shapes)


def from_ncrf(name: str, entry: dict[str, Any]) -> list[Ring]:
  """Returns the rings of a slide in NCRF's JSON.

  Args:
    name: for messages.
    entry: {'positive': [...], 'negative': [...]}, whose polygons are lists of
      corners or have them as their 'vertices'.

  Raises:
    TileError: as `read`.
  """
  return _sound(name, lambda: _ncrf_rings(entry))


def _sound(name: str, parse: Callable[[], Iterator[Ring | str]]) -> list[Ring]:
  """Returns the rings with an area of a source; a TileError names its fault."""
  try:
    shapes = list(parse())
  except OSError as e:
    raise TileError(f'{name}: cannot be read ({e}). Copy it again.') from e
  except TileError as e:
    raise TileError(f'{name}: {e}') from e
  except Exception as e:  # Damaged files raise errors of many kinds.
    raise TileError(
      f'{name}: no outlines in the layout of GeoJSON, NCRF or ASAP '
      f'({type(e).__name__}: {e}). Export them again.'
    ) from e
  rings = [shape for shape in shapes if isinstance(shape, Ring)]
  empty = [shape for shape in shapes if isinstance(shape, str)]
  if empty:
    fault = f'{name}: no area in {first_of(empty)}'
    if not rings:
      raise TileError(f'{fault}. Draw polygons around what is meant.')
    warnings.warn(f'{fault}. Left out.', stacklevel=3)
  return rings


def _json_rings(content: Any, corner: Sequence) -> Iterator[Ring | str]:
  """Yields outlines, and the names of shapes without an area."""
  if isinstance(content, dict):
    if 'positive' in content:
      yield from _ncrf_rings(content)
      return
    content = content['features'] if 'features' in content else [content]
  for i, feature in enumerate(content):
    about = {*(feature.get('properties') or ()), str(feature.get('id'))}
    by_qupath = not about.isdisjoint(_QUPATHS)
    for shape in _geometry(f'feature {i}', feature['geometry']):
      if by_qupath and isinstance(shape, Ring):
        shape = shape._replace(corners=shape.corners + corner)
      yield shape


def _geometry(name: str, shape: Any) -> Iterator[Ring | str]:
  """Yields what a geometry of GeoJSON holds."""
  kind = shape['type'] if shape else 'object without a shape'
  name = f'{name} ({kind})'
  if kind == 'GeometryCollection' and shape['geometries']:
    for i, part in enumerate(shape['geometries']):
      yield from _geometry(f'{name} {i}', part)
    return
  polygons = shape['coordinates'] if 'Polygon' in kind else []
  polygons = [polygons] if kind == 'Polygon' else polygons
  for i, polygon in enumerate(polygons):
    for k, corners in enumerate(polygon):
      yield _ring(name, corners, k > 0, f'{name} {i}')
  if not any(polygons):
    yield name


def _ncrf_rings(entry: dict[str, Any]) -> Iterator[Ring | str]:
  for key, hole in (('positive', False), ('negative', True)):
    if not isinstance(entry[key], list):
      raise ValueError(f'{key} is no list of polygons')
    for i, polygon in enumerate(entry[key]):
      corners = polygon['vertices'] if isinstance(polygon, dict) else polygon
      yield _ring(f'{key} {i}', corners, hole)


def _xml_rings(root: ElementTree.Element) -> Iterator[Ring | str]:
  if root.tag != 'ASAP_Annotations':
    raise ValueError(f'its root is {root.tag}, not ASAP_Annotations')
  order = lambda corner: int(corner.get('Order'))
  for i, shape in enumerate(root.iter('Annotation')):
    name = f'annotation {shape.get("Name", i)} ({shape.get("Type")})'
    if shape.get('Type') not in _SHAPES:
      yield name
      continue
    corners = sorted(shape.iter('Coordinate'), key=order)
    hole = (shape.get('PartOfGroup') or '').lower() in _HOLES
    yield _ring(name, [(c.get('X'), c.get('Y')) for c in corners], hole)


def _ring(name: str, corners: Any, hole: bool, polygon: str = '') -> Ring | str:
  if not len(corners):
    return name
  corners = np.array([corner[:2] for corner in corners], float)
  if len(corners) > 1 and (corners[0] == corners[-1]).all():
    corners = corners[:-1]
  if corners.shape[1:] != (2,) or not np.isfinite(corners).all():
    raise ValueError(f'{name} has {len(corners)} corners or a place unknown')
  # On a line or a point, however many there are.
  if np.linalg.matrix_rank(corners - corners[0]) < 2:
    return name
  if not shapely.is_valid(shapely.Polygon(corners)):
    edges = shapely.linestrings(np.stack([corners, np.roll(corners, -1, 0)], 1))
    tree, crossings = shapely.STRtree(edges), 0
    for start in range(0, len(edges), _AT_ONCE):  # The first of many tell.
      some = edges[start : start + _AT_ONCE]
      crossings += tree.query(some, predicate='crosses').shape[1] / 2
      if crossings > _CROSSINGS:
        raise TileError(
          f'{name} crosses itself over {_CROSSINGS} times. Draw it again.'
        )
  return Ring(corners, hole, polygon)


def warn_of_beyond(
  name: str, rings: Sequence[Ring], size: tuple[int, int]
) -> None:
  """Warns if outlines reach beyond a slide of (width, height) pixels."""
  lines = [shapely.LinearRing(ring.corners) for ring in rings]
  left, top, right, bottom = shapely.total_bounds(lines)  # NaN of none.
  if min(left, top) < -1 or right > size[0] + 1 or bottom > size[1] + 1:
    warnings.warn(
      f'{name}: its outlines reach from ({left:.0f}, {top:.0f}) to'
      f' ({right:.0f}, {bottom:.0f}), beyond its {size[0]} x {size[1]} px, and'
      ' count only within. Are they in level-0 pixels, and of this slide?',
      stacklevel=3,
    )


def region(rings: Iterable[Ring], *, holes: bool = True) -> shapely.Geometry:
  """Returns what lies in an outline and in no hole of it, level-0 pixels.

  Outlines join, also with those that lie in a hole of another polygon. A ring
  that crosses itself holds what an even-odd count of its edges says.

  Args:
    rings: outlines and holes.
    holes: whether holes are cut out.
  """
  polygons = collections.defaultdict(lambda: ([], []))
  for corners, hole, polygon in rings:
    polygons[polygon][hole].append(corners)
  parts = [
    _joined(outer) - _joined(inner if holes else [])
    for outer, inner in polygons.values()
  ]
  return shapely.union_all(parts)


def _joined(rings: Iterable[np.ndarray]) -> shapely.Geometry:
  valid = shapely.make_valid([shapely.Polygon(corners) for corners in rings])
  # Making valid may leave lines, and polygons in collections with them.
  parts = shapely.get_parts(shapely.get_parts(valid))
  return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def covered(
  rings: Sequence[Ring], coords: np.ndarray, size: float
) -> np.ndarray:
  """Returns the part of each tile's area inside the outlines, float64 [T].

  Args:
    rings: see `region`.
    coords: upper left corners of the tiles (x, y), [T, 2].
    size: side of a tile, in the same pixels.
  """
  inside = region(rings)
  tiles = shapely.box(*np.transpose(coords), *np.transpose(coords + size))
  shapely.prepare(inside)
  part = shapely.contains(inside, tiles).astype(float)
  crossed = (part == 0) & shapely.intersects(inside, tiles)
  common = shapely.intersection(tiles[crossed], inside)
  part[crossed] = shapely.area(common) / size**2
  return part


def of_mask(mask: np.ndarray, size: tuple[int, int]) -> list[shapely.Polygon]:
  """Returns the outlines of a mask, which `rasterise` gives back.

  Args:
    mask: bool [H, W], of a whole slide.
    size: (width, height) of the slide, level-0 pixels.
  """
  # The ends of each row's runs, in turn.
  y, x = np.nonzero(np.diff(np.pad(mask, ((0, 0), (1, 1)))))
  runs = shapely.box(x[::2], y[::2], x[1::2], y[::2] + 1)
  union = shapely.simplify(shapely.union_all(runs), 0)
  scale = np.divide(size, mask.shape[::-1])
  union = shapely.transform(union, lambda corners: (corners * scale).round())
  return list(shapely.get_parts(shapely.orient_polygons(union)))


def rasterise(
  rings: Sequence[Ring],
  shape: tuple[int, int],
  scale: float | Sequence[float],
  *,
  holes: bool = True,
) -> np.ndarray:
  """Returns True on pixels whose middle lies within outlines, bool [H, W].

  Args:
    rings: see `region`; parts beyond the mask are cut off.
    shape: (H, W) of the mask.
    scale: level-0 pixels per pixel of the mask, or (down, across).
    holes: whether holes are cut out. FW-RD's code leaves them in.
  """
  mask, (down, across) = np.zeros(shape, bool), np.broadcast_to(scale, 2)
  for part in shapely.get_parts(region(rings, holes=holes)):
    bounds = np.divide(part.bounds, (across, down, across, down))
    left, top, right, bottom = bounds.astype(int)
    rows = slice(*np.clip([top, bottom + 1], 0, shape[0]))
    columns = slice(*np.clip([left, right + 1], 0, shape[1]))
    y, x = np.mgrid[rows, columns] + 0.5
    mask[rows, columns] |= shapely.contains_xy(part, x * across, y * down)
  return mask
