"""Draws the patches that the two networks of a detector learn from."""

import dataclasses

import numpy as np

from data import labelled_tiles
from data.labelled_tiles import LabelledTiles, TileError
from data.node_images import MPP, NodeImages
from data.tissue import glass
from experiments.patches import tiles as patch_tiles
from kmil_jax import heatmap
from kmil_jax.heatmap import WINDOW

CLASSES = ('non-tumour', 'tumour')
LEAST_TUMOUR = 100  # um2, pixels: about one cell of squamous carcinoma.
_LATTICE = 4  # Patches lie on every fourth pixel: fewer places to remember.


@dataclasses.dataclass(frozen=True)
class Places:
  """Windows of one image on a grid, [h, w] each."""

  tumour: np.ndarray  # bool, holds tumour
  normal: np.ndarray  # bool, holds none
  tissue: np.ndarray  # bool, not mostly glass: the others are never seen


def places(
  image: np.ndarray, mask: np.ndarray, stride: int, least: int = LEAST_TUMOUR
) -> Places:
  """Says what the windows of an image are.

  As in the paper a window with a single tumour cell is one of tumour; with less
  than that it belongs to neither class.

  Args:
    image: uint8 [H, W, 3].
    mask: True on tumour, bool [H, W].
    stride: from one window to the next.
    least: pixels of tumour that make a window one of tumour.
  """
  pixels = heatmap.sums(mask, WINDOW)[::stride, ::stride]
  tissue = heatmap.on_tissue(~glass(image, MPP), stride=stride)
  return Places(tumour=pixels >= least, normal=pixels == 0, tissue=tissue)


def draw(
  images: NodeImages, count: int, seed: int, least: int = LEAST_TUMOUR
) -> LabelledTiles:
  """Draws patches of both classes from the development images.

  All windows of a class on tissue, on a lattice of 4 pixels, are equally
  likely, and none is drawn twice. Non-tumour is that of negative and of
  positive images.

  Args:
    images: of both parts; those of the test part are not touched.
    count: patches of each class; where a class has fewer windows, both get that
      many.
    seed: of the draw.
    least: as of `places`.

  Returns:
    Tiles of `CLASSES` grouped by patient; ids are <image>_<y>_<x>, `xy` the
    first pixel.

  Raises:
    TileError: if a class has no window.
  """
  development = np.flatnonzero(~images.test)
  found = []  # Per class a row per window: image, y, x.
  for row in development:
    here = places(*images.read(row), _LATTICE, least)
    for label, where in enumerate((here.normal, here.tumour)):
      yx = np.argwhere(where & here.tissue) * _LATTICE
      found.append((label, np.c_[np.full(len(yx), row), yx]))
  by_class = [
    np.concatenate([rows for c, rows in found if c == label])
    for label in range(2)
  ]
  if not all(map(len, by_class)):
    empty = CLASSES[0] if not len(by_class[0]) else CLASSES[1]
    raise TileError(
      f'no window of {WINDOW} um in the development images is {empty} (with'
      f' {least} um2 of the mask, on tissue): look at the masks'
    )
  count = min(count, *map(len, by_class))
  rng = np.random.default_rng([seed, 1])
  chosen = [
    rows[np.sort(rng.choice(len(rows), count, replace=False))]
    for rows in by_class
  ]
  label = np.repeat([0, 1], count)
  return cut(images, np.concatenate(chosen), label)


def cut(
  images: NodeImages, where: np.ndarray, label: np.ndarray
) -> LabelledTiles:
  """Cuts patches out of images.

  Args:
    images: the images.
    where: row of the image, y and x of the first pixel, int [n, 3].
    label: place in `CLASSES`, [n].
  """
  pixels = np.empty((len(where), WINDOW, WINDOW, 3), np.uint8)
  for row in np.unique(where[:, 0]):
    image, _ = images.read(row)
    for i in np.flatnonzero(where[:, 0] == row):
      _, y, x = where[i]
      pixels[i] = image[y : y + WINDOW, x : x + WINDOW]
  return labelled_tiles.from_arrays(
    pixels,
    label,
    images.patient[where[:, 0]],
    CLASSES,
    ids=[f'{images.id[row]}_{y}_{x}' for row, y, x in where],
    xy=where[:, :0:-1],
  )


def matched(
  false_positives: LabelledTiles, patches: LabelledTiles, seed: int
) -> LabelledTiles:
  """Returns false positives and as many tumour patches drawn at random.

  Of more false positives than there are tumour patches, as many are drawn.
  """
  tumour = np.flatnonzero(patches.label == 1)
  count = min(len(false_positives), len(tumour))
  rng = np.random.default_rng([seed, 2])
  pick = lambda n: np.sort(rng.choice(n, count, replace=False))
  return labelled_tiles.concatenate(
    [
      false_positives.take(pick(len(false_positives))),
      patches.take(tumour[pick(len(tumour))]),
    ]
  )


def split_like(
  tiles: LabelledTiles, trained: LabelledTiles, by: str, seed: int
) -> tuple[LabelledTiles, LabelledTiles]:
  """Splits tiles as those that a network was trained on were split.

  So that a second network, which starts from the first one's weights, is not
  validated on what these were made of.

  Args:
    tiles: false positives and tumour patches.
    trained: what the first network was trained on.
    by: as of `split`. Where by patient a part would lack a class, as all false
      positives may be of one, patches are split, which is said.
    seed: of the split of false positives by patch.
  """
  if by == 'patient':
    trains = np.isin(tiles.group, trained.group)
    parts = tiles.take(trains), tiles.take(~trains)
    if all(len(np.unique(part.label)) == 2 for part in parts):
      return parts
    print('split by patch: the false positives of either part are too few')
  mistakes = np.flatnonzero(tiles.label == 0)
  rng = np.random.default_rng([seed, 3])
  drawn = rng.permutation(mistakes)[: round(0.7 * len(mistakes))]
  trains = np.isin(tiles.id, trained.id)
  trains[mistakes] = False
  trains[drawn] = True
  return tiles.take(trains), tiles.take(~trains)


def split(
  patches: LabelledTiles, by: str, seed: int
) -> tuple[LabelledTiles, LabelledTiles]:
  """Splits patches 7:3 into training and validation.

  Args:
    patches: of the development images.
    by: 'patient', or 'patch' as in the paper, whose accuracies are optimistic:
      patches of one image, which may overlap, are on both sides.
    seed: of the split.

  Raises:
    TileError: if a class is of one patient.
  """
  train, val, _ = patch_tiles.split(
    patches,
    (0.7, 0.3, 0.0),
    seed=seed,
    by={'patient': 'group', 'patch': 'tile'}[by],
  )
  return patches.take(train), patches.take(val)
