"""Slides of two colours in CAMELYON16's layout, for tests: violet is tumour."""

import json
import pathlib

import numpy as np

from data.camelyon16 import patches
from data.phantom import tiff
from experiments.studies.few_shot_data import Scale

SCALE = Scale(size=64, stride=32, radius=3, mpp=1.0, level=3)
WIDTH, HEIGHT = 768, 640
BOX = (320, 192, 640, 512)  # Of tumour: x0, y0, x1, y1.
_PINK, _VIOLET = (230, 130, 180), (130, 70, 170)


def make(root: pathlib.Path, names: dict[str, bool]) -> pathlib.Path:
  """Writes slides, annotations, reference.csv and lists of good and bad.

  Args:
    root: the folder to fill.
    names: of slides, and whether they hold tumour.
  """
  for place, (name, tumour) in enumerate(names.items()):
    rng = np.random.default_rng(place)
    image = np.full((HEIGHT, WIDTH, 3), 245.0)
    image[64:-64, 64:-64] = _PINK
    x0, y0, x1, y1 = BOX
    if tumour:
      image[y0:y1, x0:x1] = _VIOLET
      corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
      text = json.dumps({'positive': [corners], 'negative': []})
      path = root / f'annotations/{name}.json'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    image += rng.normal(0, 4, image.shape)
    (root / 'slides').mkdir(parents=True, exist_ok=True)
    image = image.clip(0, 255).astype(np.uint8)
    tiff.write(root / f'slides/{name}.tiff', image, mpp=1.0, levels=3)
  (root / 'reference.csv').write_text(
    ''.join(
      f'{name},{"Tumor,IDC,Macro" if tumour else "Normal,IDC,None"}\n'
      for name, tumour in names.items()
      if name.startswith('test')
    )
  )
  (root / 'lists').mkdir(exist_ok=True)
  for part, prefix in (('train', 't'), ('test', 'test')):
    mine = [n for n in names if n.startswith(prefix) and n != 'tumor_002']
    mine = [n for n in mine if n.startswith('test') == (part == 'test')]
    for kind, x, keep in (
      ('good', 150, mine),
      ('bad', 450, [n for n in mine if names[n]]),
    ):
      xy = [[x, y] for _ in keep for y in (250, 330, 410)]
      slide = np.repeat(keep, 3)
      patches.write(
        root / f'lists/{part}_{kind}.txt',
        patches.Patches(slide, np.array(xy).reshape(-1, 2)),
      )
  return root


def violet(image: np.ndarray) -> np.ndarray:
  """Returns nearly 3 times the share of violet of patches [T, S, S, 3]."""
  share = (image[..., 1] < 100).mean((1, 2))
  # No two patches have the same score.
  return np.float32(2.9 * share + image.mean((1, 2, 3)) / 2550)
