"""Writes tiles and regions as GeoJSON that QuPath opens."""

from collections.abc import Iterable, Iterator
import json
import pathlib
from typing import Any
import uuid

import matplotlib
import numpy as np
import shapely

from data.files import replacing
from experiments.maps import overlay
from experiments.maps.tile_scores import TileScores

_IDS = uuid.UUID('7d1b6a6e-2f4c-5a55-9c3f-0f6d5a1f8c52')  # Namespace of ids.


def write(path: pathlib.Path, features: Iterable[dict[str, Any]]) -> None:
  """Writes a feature collection.

  One feature a line; only one is held at a time, so that memory does not grow
  with the slide.

  Raises:
    ValueError: if a number is not finite; no file is written then.
  """
  with (
    replacing(path) as part,
    part.open('w', encoding='utf-8', newline='\n') as file,
  ):
    file.write('{"type": "FeatureCollection", "features": [')
    separator = '\n'
    for feature in features:
      file.write(separator + json.dumps(feature, allow_nan=False))
      separator = ',\n'
    file.write('\n]}\n')


def of_slide(
  scores: TileScores, threshold: float, order: np.ndarray
) -> Iterator[dict[str, Any]]:
  """Yields the regions of a slide, then its tiles.

  Coordinates are level-0 pixels, y down. Rings are closed; the outer ones have
  a positive shoelace sum and holes a negative one (RFC 7946, section 3.1.6,
  which names these counterclockwise and clockwise).

  Args:
    scores: of the slide's tiles.
    threshold: a tile belongs to the regions of each class of at least this
      probability.
    order: the tiles to write as detections. Regions are of all tiles.
  """
  for c, of_class in enumerate(scores.classes):
    probability = scores.probability(c)
    for n, (polygon, tiles) in enumerate(regions(scores, c, threshold), 1):
      measured = {
        'tiles': len(tiles),
        'threshold': threshold,
        'mean probability': probability[tiles].mean(),
        'highest probability': probability[tiles].max(),
      }
      name = f'{of_class} {n}'
      yield _feature(scores, 'annotation', name, polygon, c, measured)
  yield from _tiles(scores, order)


def regions(
  scores: TileScores, c: int, threshold: float
) -> list[tuple[shapely.Polygon, np.ndarray]]:
  """Returns the regions of one class and the tiles of each, largest first.

  A region is the union of tiles that share edges (or overlap) and whose
  probability of the class is at least the threshold; its holes are kept. Tiles
  that meet at a corner only belong to different regions.

  Args:
    scores: of the slide's tiles.
    c: the class.
    threshold: least probability.
  """
  above = np.flatnonzero(scores.probability(c) >= threshold)  # NaN is not.
  if not len(above):
    return []
  boxes = shapely.box(*overlay.boxes(scores)[above].T)
  # Of tolerance 0: drops the corners of tiles along straight edges.
  union = shapely.simplify(shapely.union_all(boxes), 0)
  polygons = sorted(shapely.get_parts(union), key=lambda r: (-r.area, r.bounds))
  tile, region = shapely.STRtree(polygons).query(boxes, predicate='covered_by')
  return [
    (shapely.orient_polygons(polygon), above[tile[region == i]])
    for i, polygon in enumerate(polygons)
  ]


def _tiles(scores: TileScores, order: np.ndarray) -> Iterator[dict[str, Any]]:
  corners = [[0, 1], [2, 1], [2, 3], [0, 3]]
  boxes = shapely.polygons(overlay.boxes(scores)[:, corners])
  columns = {
    'attention, multiples of the mean': scores.multiples(scores.predicted)
  }
  for c, name in enumerate(scores.classes):
    columns[f'probability {name}'] = scores.probability(c)
    if len(scores.folds) > 1:
      columns[f's.d. over folds {name}'] = scores.disagreement(c)
  columns['folds that keep it'] = scores.kept.sum(0)
  of_classes = map(scores.probability, range(len(scores.classes)))
  likeliest = np.argmax(list(of_classes), 0)
  for i in order.tolist():
    measured = {k: v[i] for k, v in columns.items() if not np.isnan(v[i])}
    c = likeliest[i] if scores.shown[i] else None
    yield _feature(scores, 'detection', f'tile {i}', boxes[i], c, measured)


def _feature(
  scores: TileScores,
  kind: str,
  name: str,
  polygon: shapely.Polygon,
  c: int | None,
  measurements: dict[str, float],
) -> dict[str, Any]:
  """Returns a feature of class c as QuPath 0.4 and later export it."""
  properties = {'objectType': kind, 'name': name}
  if c is not None:
    few = len(scores.classes) <= 10
    colours = matplotlib.colormaps['tab10' if few else 'tab20'].colors
    colour = [round(255 * x) for x in colours[c % len(colours)]]
    properties['classification'] = {'name': scores.classes[c], 'color': colour}
  properties['measurements'] = {
    key: float(f'{value:.6g}') for key, value in measurements.items()
  }
  rings = [
    np.rint(shapely.get_coordinates(ring)).astype(int).tolist()
    for ring in (polygon.exterior, *polygon.interiors)
  ]
  return {
    'type': 'Feature',
    # QuPath takes UUIDs only; the same tile always has the same.
    'id': str(uuid.uuid5(_IDS, f'{scores.slide}/{kind}/{name}')),
    'geometry': {'type': 'Polygon', 'coordinates': rings},
    'properties': properties,
  }
