"""Scans node images with two networks and keeps what they say of windows."""

from collections.abc import Iterator
import pathlib

import numpy as np

from data.files import replacing
from data.labelled_tiles import LabelledTiles
from data.node_images import NodeImages
from experiments import (
  cutter,
  two_step_patches,
)
from experiments.cutter import Cutter
from experiments.patches.training import Trained
from experiments.run import progress
from kmil_jax.heatmap import STRIDE, WINDOW, Windows

_COARSE = 20  # Stride, in pixels, that false positives are gathered with.


def network(trained: Trained) -> Cutter:
  """Returns a trained classifier as it looks at windows."""
  classify = cutter.classifier(trained.model, trained.recipe)
  return Cutter(classify, trained.variables, window=WINDOW)


def false_positives(images: NodeImages, primary: Cutter) -> LabelledTiles:
  """Returns what the primary takes for tumour in negative development images.

  Windows are 20 pixels apart, so that each overlaps its neighbours by a half.
  """
  where = [np.empty((0, 3), int)]
  for row in _bar(np.flatnonzero(~images.test & ~images.positive), 'negatives'):
    image, mask = images.read(row)
    look = two_step_patches.places(image, mask, _COARSE).tissue
    said = cutter.scan(cutter.Image(image), primary, stride=_COARSE, look=look)
    yx = np.argwhere(said.positive()) * _COARSE
    where.append(np.c_[np.full(len(yx), row), yx])
  where = np.concatenate(where)
  return two_step_patches.cut(images, where, np.zeros(len(where), int))


def scan(
  folder: pathlib.Path,
  images: NodeImages,
  primary: Cutter,
  secondary: Cutter | None = None,
) -> list[Windows]:
  """Returns what both networks say of every window of every image.

  Each image's is kept in `folder`, <image_id>.npz, and is not asked for again.
  """
  found = []
  for row in _bar(range(len(images)), 'heat maps'):
    path = folder / f'{images.id[row]}.npz'
    said = _read(path)
    if said is None:
      image, mask = images.read(row)
      look = two_step_patches.places(image, mask, STRIDE).tissue
      said = cutter.scan(cutter.Image(image), primary, secondary, look=look)
      arrays = {k: v for k, v in said.items() if v is not None}
      with replacing(path) as part, part.open('wb') as f:
        np.savez_compressed(f, **arrays)
    found.append(said)
  return found


def _read(path: pathlib.Path) -> Windows | None:
  try:
    with np.load(path) as arrays:
      return Windows(
        primary=arrays['primary'], secondary=arrays.get('secondary')
      )
  except FileNotFoundError:
    return None


def _bar(rows, name: str) -> Iterator[int]:
  return progress.bar(rows, desc=name, unit='image')
