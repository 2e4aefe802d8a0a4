"""Slides of two colours in CAMELYON16's layout, for tests: violet is tumour."""

import json
import pathlib

import numpy as np

from data.camelyon16 import patches
from data.phantom import tiff
from experiments.studies.few_shot_data import Data, Scale

# Of names, and whether they hold tumour.
NAMES = {
  'tumor_001': True,
  'tumor_002': True,
  'normal_003': False,
  'test_001': False,
  'test_002': True,
  'test_003': True,
}
SCALE = Scale(size=64, stride=32, radius=3, mpp=1.0, level=3)
WIDTH, HEIGHT = 768, 640
BOX = (320, 192, 640, 512)  # Of tumour: x0, y0, x1, y1.
_PINK, _VIOLET = (230, 130, 180), (130, 70, 170)


def make(root: pathlib.Path) -> pathlib.Path:
  """Writes slides, annotations, reference.csv and lists of good and bad."""
  for folder in ('annotations', 'slides', 'lists'):
    (root / folder).mkdir(parents=True)
  x0, y0, x1, y1 = BOX
  ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
  for i, (name, tumour) in enumerate(NAMES.items()):
    image = np.full((HEIGHT, WIDTH, 3), 245.0)
    image[64:-64, 64:-64] = _PINK
    if tumour:
      image[y0:y1, x0:x1] = _VIOLET
      text = json.dumps({'positive': [ring], 'negative': []})
      (root / f'annotations/{name}.json').write_text(text)
    image += np.random.default_rng(i).normal(0, 4, image.shape)
    image = image.clip(0, 255).astype(np.uint8)
    tiff.write(root / f'slides/{name}.tiff', image, mpp=1.0, levels=3)
  test = [name for name in NAMES if name.startswith('test')]
  (root / 'reference.csv').write_text(
    ''.join(
      f'{name},{"Tumor,IDC,Macro" if NAMES[name] else "Normal,IDC,None"}\n'
      for name in test
    )
  )
  for part, names in (('train', ['tumor_001']), ('test', test)):
    bad = [name for name in names if NAMES[name]]
    for kind, x, some in (('good', 150, names), ('bad', 450, bad)):
      xy = np.array([[x, y] for _ in some for y in (250, 330, 410)])
      listed = patches.Patches(np.repeat(some, 3), xy)
      patches.write(root / f'lists/{part}_{kind}.txt', listed)
  return root


def data(root: pathlib.Path, **others) -> Data:
  """Returns the options that open what `make` wrote."""
  paths = {
    'slides_dir': root / 'slides',
    'annotations': root / 'annotations',
    'reference_csv': root / 'reference.csv',
    'lists_dir': root / 'lists',
  }
  return Data(**paths | others)


def violet(image: np.ndarray) -> np.ndarray:
  """Returns nearly 3 times the share of violet of patches [T, S, S, 3]."""
  share = (image[..., 1] < 100).mean((1, 2))
  # No two patches have the same score.
  return np.float32(2.9 * share + image.mean((1, 2, 3)) / 2550)
