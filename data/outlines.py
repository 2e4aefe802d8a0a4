"""Reads outlines of lesions and tells what lies within them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import json
import pathlib
from typing import Any, NamedTuple
import warnings
from xml.etree import ElementTree

import numpy as np
import shapely

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
  """Reads GeoJSON (QuPath, the phantom), NCRF's JSON or ASAP's XML (CAMELYON).

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

  def rings() -> Iterator[Ring]:
    if path.suffix.lower() == '.xml':
      return _xml_rings(ElementTree.parse(path).getroot())
    return _json_rings(json.loads(path.read_text(encoding='utf-8')))

  return _sound(str(path), rings, drop_empty)


def from_ncrf(name: str, entry: dict[str, Any]) -> list[Ring]:
  """Returns the rings of a slide in NCRF's JSON.

  Args:
    name: for messages.
    entry: {'positive': [...], 'negative': [...]}, whose polygons are lists of
      corners or have them as their 'vertices'.

  Raises:
    TileError: as `read` with `drop_empty`.
  """
  return _sound(name, lambda: _ncrf_rings(entry), drop_empty=True)


def _sound(
  name: str, parse: Callable[[], Iterator[Ring]], drop_empty: bool
) -> list[Ring]:
  """Returns the rings with an area of a source; a TileError names its fault."""
  try:
    rings = list(parse())
  except OSError as e:
    raise TileError(f'{name}: cannot be read ({e})') from e
  except Exception as e:  # Damaged files raise errors of many kinds.
    raise TileError(
      f'{name}: no outlines in the layout of GeoJSON, NCRF or ASAP '
      f'({type(e).__name__}: {e}); export them again'
    ) from e
  for few in (len(r.corners) for r in rings if len(r.corners) < 3):
    fault = f'{name}: an outline of {few} corners has no area'
    if not drop_empty:
      raise TileError(f'{fault}; draw it again')
    warnings.warn(f'{fault}: left out', stacklevel=3)
  return [ring for ring in rings if len(ring.corners) > 2]


def _json_rings(content: Any) -> Iterator[Ring]:
  if isinstance(content, dict):
    if 'positive' in content:
      yield from _ncrf_rings(content)
      return
    content = content['features'] if 'features' in content else [content]
  for i, feature in enumerate(content):
    shape = feature['geometry']
    if shape['type'] not in ('Polygon', 'MultiPolygon'):
      raise ValueError(f'feature {i} is a {shape["type"]}, not a polygon')
    polygons = shape['coordinates']
    for polygon in [polygons] if shape['type'] == 'Polygon' else polygons:
      for k, corners in enumerate(polygon):
        yield _ring(f'feature {i}', corners, k > 0)


def _ncrf_rings(entry: dict[str, Any]) -> Iterator[Ring]:
  for key, hole in (('positive', False), ('negative', True)):
    if not isinstance(entry[key], list):
      raise ValueError(f'{key} is no list of polygons')
    for i, polygon in enumerate(entry[key]):
      corners = polygon['vertices'] if isinstance(polygon, dict) else polygon
      yield _ring(f'{key} {i}', corners, hole)


def _xml_rings(root: ElementTree.Element) -> Iterator[Ring]:
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
    yield _ring(name, [(c.get('X'), c.get('Y')) for c in corners], hole)


def _ring(name: str, corners: Any, hole: bool) -> Ring:
  corners = np.array([corner[:2] for corner in corners], float)
  if len(corners) > 1 and (corners[0] == corners[-1]).all():
    corners = corners[:-1]
  if corners.shape[1:] != (2,) or not np.isfinite(corners).all():
    raise ValueError(f'{name} has {len(corners)} corners or a place unknown')
  return Ring(corners, hole)


def region(rings: Iterable[Ring], *, holes: bool = True) -> shapely.Geometry:
  """Returns what lies in an outline and in no hole, level-0 pixels.

  Outlines join. A ring that crosses itself holds what an even-odd count of its
  edges says.

  Args:
    rings: outlines and holes.
    holes: whether holes are cut out.
  """
  rings = list(rings)
  inside = _joined(r.corners for r in rings if not r.hole)
  if holes:
    inside -= _joined(r.corners for r in rings if r.hole)
  return inside


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


def rasterise(
  rings: Sequence[Ring],
  shape: tuple[int, int],
  scale: float,
  *,
  holes: bool = True,
) -> np.ndarray:
  """Returns True on pixels whose middle lies within outlines, bool [H, W].

  Args:
    rings: see `region`; parts beyond the mask are cut off.
    shape: (H, W) of the mask.
    scale: level-0 pixels per pixel of the mask.
    holes: whether holes are cut out. FW-RD's code leaves them in.
  """
  mask = np.zeros(shape, bool)
  for part in shapely.get_parts(region(rings, holes=holes)):
    left, top, right, bottom = np.array(part.bounds) / scale
    rows = slice(*np.clip([int(top), int(bottom) + 1], 0, shape[0]))
    columns = slice(*np.clip([int(left), int(right) + 1], 0, shape[1]))
    y, x = (np.mgrid[rows, columns] + 0.5) * scale
    mask[rows, columns] |= shapely.contains_xy(part, x, y)
  return mask
