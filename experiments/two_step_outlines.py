"""Outlines the lesions of a heat map as GeoJSON."""

import itertools
import json
import pathlib

import contourpy
import numpy as np

from data.files import replacing
from experiments.two_step_scores import VOTES


def outlines(votes: np.ndarray, threshold: int) -> list[list[np.ndarray]]:
  """Returns the areas of a heat map that reach a threshold.

  Args:
    votes: heat map from 0 to 1, [H, W].
    threshold: in votes, of 16.

  Returns:
    A polygon per area: its outer ring, then its holes, each [K, 2] of (x, y) in
    pixels, closed. A pixel's middle lies at a half, so that an area that fills
    the image runs along its border, from 0 to H and W.
  """
  # Areas must close: beyond the border there is nothing.
  level = (threshold - 0.5) / VOTES
  padded = np.pad((votes >= level).astype(float), 1)
  generator = contourpy.contour_generator(
    z=padded, name='serial', fill_type=contourpy.FillType.OuterOffset
  )
  points, offsets = generator.filled(0.5, np.inf)
  return [
    [p[a:b] - 0.5 for a, b in itertools.pairwise(o)]
    for p, o in zip(points, offsets, strict=True)
  ]


def write(
  path: pathlib.Path, polygons: list[list[np.ndarray]], scale: float
) -> None:
  """Writes polygons as a GeoJSON feature collection.

  Args:
    path: of the file.
    polygons: as `outlines` returns them.
    scale: pixels of the image's file per pixel of the map.
  """
  features = [
    {
      'type': 'Feature',
      'geometry': {
        'type': 'Polygon',
        'coordinates': [(scale * r).round(1).tolist() for r in rings],
      },
      'properties': {'classification': {'name': 'tumour'}},
    }
    for rings in polygons
  ]
  collection = {'type': 'FeatureCollection', 'features': features}
  with replacing(path) as part:
    part.write_text(json.dumps(collection))
