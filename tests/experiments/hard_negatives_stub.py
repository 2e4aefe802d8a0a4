"""Tiny annotated tiles, a pool and a model that needs no training."""

import numpy as np

from data import labelled_tiles


def tiles(name, *, groups, each, positives):
  """Tiles of 2 x 2 pixels; the first of each group are positive."""
  rng = np.random.default_rng([*name.encode()])
  n = groups * each
  return labelled_tiles.from_arrays(
    rng.integers(0, 256, (n, 2, 2, 3), np.uint8),
    np.tile(np.arange(each) < positives, groups),
    np.repeat([f'{name}{g}' for g in range(groups)], each),
    ('neg', 'pos'),
    ids=[f'{name}/{i}' for i in range(n)],
  )


class Stub:
  """Calls dark tiles positive; features are the pixels."""

  def predict(self, tiles):
    pixels = tiles.load(np.arange(len(tiles))).reshape(len(tiles), -1)
    prob = 1 - pixels.mean(1) / 255
    prob = np.where(tiles.label == 1, 0.9, prob)
    return np.stack([1 - prob, prob], 1), pixels.astype(np.float32)


ANNOTATED = tiles('case', groups=12, each=10, positives=3)
POOL = tiles('pool', groups=6, each=50, positives=0)
