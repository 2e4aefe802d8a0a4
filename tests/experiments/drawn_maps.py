"""A small slide and a results folder with scores of its tiles, drawn."""

import json

import h5py
import numpy as np

from data import tiff

CLASSES = ('non-tumor', 'lymphoma', 'breast')
SIDE = 64
WIDTH, HEIGHT = 600, 470  # Not whole numbers of tiles.
MPP = 0.5


def pixel(coords):
  """The colour of the slide within a tile, which tells where it lies."""
  column, row = (np.asarray(coords) // SIDE).T
  return np.stack([40 + 20 * column, 40 + 24 * row, 0 * row + 128], -1)


def slide(path):
  """Writes a slide whose tiles of SIDE pixels each have a colour."""
  path.parent.mkdir(parents=True, exist_ok=True)
  y, x = np.mgrid[:HEIGHT, :WIDTH]
  image = pixel(np.stack([x.ravel(), y.ravel()], 1))
  image = image.reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
  tiff.write(path, image, mpp=MPP, levels=3, quality=95)
  return path


def lattice(columns=9, rows=7, share=1.0, seed=0):
  """Upper left corners of a part of a lattice, row by row."""
  x, y = np.meshgrid(np.arange(columns), np.arange(rows))
  coords = np.stack([x.ravel(), y.ravel()], 1) * SIDE
  rng = np.random.default_rng(seed)
  return coords[rng.random(len(coords)) < share].astype(np.int32)


def scores(coords, seed, kept=1.0, attentions=3):
  """Datasets of one file of tile scores."""
  rng = np.random.default_rng(seed)
  n = len(coords)
  keep = rng.random(n) < kept
  attention = rng.dirichlet(np.ones(n), attentions).T * keep[:, None]
  return {
    'coords': coords,
    'attention': attention / attention.sum(0),
    'instance_prob': rng.dirichlet(np.ones(3) / 2, n).astype(np.float32),
    'kept': keep,
    'prob': rng.dirichlet([1, 1, 5]).astype(np.float32),
  }


def write_scores(run, fold, name, arrays, **attributes):
  """Writes one file of tile scores and returns its path."""
  path = run / f'fold_{fold}' / 'attention' / f'{name}.h5'
  path.parent.mkdir(parents=True, exist_ok=True)
  made = {'patch_size_level0': SIDE, 'classes': list(CLASSES)} | attributes
  with h5py.File(path, 'w') as file:
    file.update(arrays)
    file.attrs.update({k: v for k, v in made.items() if v is not None})
  return path


def run_folder(root, names=('007.a',), folds=(0, 1, 2), **options):
  """A results folder of folds that have all seen the same slides."""
  run = root / 'run'
  for name in names:
    slide(root / 'slides' / f'{name}.tiff')
    for fold in folds:
      coords = lattice(share=0.8)
      write_scores(run, fold, name, scores(coords, 10 + fold, **options))
  flags = {'slides_dir': str(root / 'slides'), 'csv_path': 'labels.csv'}
  write_config(run, flags=flags)
  return run


def write_config(run, **changes):
  config = {'flags': {}, 'inputs': {}, 'made_by': []} | changes
  (run / 'config.json').write_text(json.dumps(config))
