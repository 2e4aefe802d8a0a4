"""Renders the phantom of node images: regions of nodes, lesions with masks."""

from collections.abc import Callable
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from data import files
from data.phantom import lesions, lymph_node, stain

MPP = 1.0  # Micrometres per pixel, as in Tang et al. 2022.
_SIDE = 70  # Of an image on the anatomy's maps, 280 um.
_NODE = (290, 290)  # Of the maps of the node it is cut from.
_LOOK = stain.Appearance(mpp=MPP)
# Keratinising and poorly differentiated carcinoma, as drawn for the slides.
_TUMOURS = ('squamous', 'breast')
# What is mistaken for tumour, and how much of a negative image it must fill.
_HARD = ((lymph_node.GERMINAL, 0.12), (lymph_node.SINUS, 0.15))
_LEAST_NODE = 0.6  # Part of an image that lies inside the node.


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which image to render; its pixels are a function of these alone."""

  seed: int
  patient: int
  number: int
  positive: bool


def specs(patients: int, seed: int) -> dict[str, Spec]:
  """Returns the images by id: three per patient, one or two with tumour."""
  images = {}
  for patient in range(patients):
    positives = 1 + patient // 2 % 2
    order = np.random.default_rng([seed, patient, 7]).permutation(3)
    for number in range(3):
      name = f'node_{patient + 1:02d}{"abc"[number]}'
      images[name] = Spec(
        seed, patient, number, bool(order[number] < positives)
      )
  return images


def make(
  root: Path,
  *,
  development: int = 10,
  test: int = 8,
  seed: int = 0,
  progress: Callable[[int, int], None] | None = None,
) -> Path:
  """Writes images of lymph nodes at 1 um per pixel whose truth is known.

  Images that are there are kept, which makes an interrupted call resumable.

  Args:
    root: the folder to fill: images/<image_id>.png, masks/<image_id>.png (of
      images with tumour; 255 on the lesion) and images.csv, in the layout of
      `data.node_images`.
    development: patients of the development part.
    test: patients of the test part.
    seed: another seed is another set.
    progress: called with (images done, images in all) after every image.

  Returns:
    `root`.
  """
  root = Path(root)
  for folder in ('images', 'masks'):
    (root / folder).mkdir(parents=True, exist_ok=True)
  wanted = specs(development + test, seed)
  for done, (name, spec) in enumerate(wanted.items(), 1):
    target = root / 'images' / f'{name}.png'
    if not target.exists():
      image, mask = render(spec)
      if spec.positive:  # The mask first: an image there is complete.
        _save(root / 'masks' / f'{name}.png', mask.astype(np.uint8) * 255)
      _save(target, image)
    if progress is not None:
      progress(done, len(wanted))
  rows = [('image_id', 'patient_id', 'part', 'label')]
  for name, spec in wanted.items():
    part = 'development' if spec.patient < development else 'test'
    label = 'positive' if spec.positive else 'negative'
    rows.append((name, f'patient_{spec.patient + 1:02d}', part, label))
  files.write_csv(root / 'images.csv', rows)
  return root


def render(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
  """Renders a region of a node with what is mistaken for tumour in it.

  Of a negative image an eighth or more are germinal centres, or a seventh
  sinuses, which are full of histiocytes in all images. A positive image holds
  a lesion of 0.1 to 0.3 mm. The mask is the lesion with its own stroma: the
  drawing does not keep them apart.

  Args:
    spec: which image.

  Returns:
    uint8 [H, W, 3] at 1 um per pixel, and its mask, bool [H, W].
  """
  patient = np.random.default_rng([spec.seed, spec.patient])
  layout, tumour, cells, glass, dye = np.random.default_rng(
    [spec.seed, spec.patient, spec.number]
  ).spawn(5)
  label = _TUMOURS[spec.patient % len(_TUMOURS)]
  while True:
    node = lymph_node.draw(layout, _NODE)
    placed = lesions.place(
      tumour,
      node,
      label if spec.positive else 'non-tumor',
      radius=(85, 150),
      share=0.15,
    )
    corner = _corner(layout, node, placed, _HARD[spec.number % len(_HARD)])
    if corner is not None:
      break
  node = _crop(node, corner)
  placed = [_shrunk(tumour, lesion, corner) for lesion in placed]
  drawn = (_SIDE * lymph_node.SCALE,) * 2
  haematoxylin, eosin = lymph_node.fill(
    cells, node, drawn, lesions.taken(placed, node.region.shape)
  )
  mask = np.zeros(drawn, bool)
  y, x = np.indices(drawn, np.float32)
  for lesion in placed:
    inside = lesion.inside(y, x)
    mask |= inside > 0
    if inside.max() > 0:
      lesions.paint(tumour, lesion, haematoxylin, eosin)
  image = stain.expose(
    _LOOK,
    stain.draw(_LOOK, patient, dye),
    glass,
    haematoxylin,
    eosin,
    np.ones((_SIDE, _SIDE, 3), np.float32),
  )
  step = round(MPP / stain.DRAWN_MPP)
  return image, mask[::step, ::step]


def _corner(
  rng: np.random.Generator,
  node: lymph_node.Node,
  placed: list[lesions.Lesion],
  hard: tuple[int, float],
) -> tuple[int, int] | None:
  """Returns where to cut the image out of the maps; None if nowhere."""
  rows, columns = (n - _SIDE for n in node.region.shape)
  if placed:  # Around a lesion, not always in its middle.
    scale = 1 / lymph_node.SCALE
    middle = np.array([placed[0].y, placed[0].x]) * scale - _SIDE / 2
    y, x = np.rint(middle + rng.uniform(-12, 12, 2)).astype(int)
    return int(np.clip(y, 0, rows)), int(np.clip(x, 0, columns))
  region, least = hard
  for y, x in rng.integers(0, (rows + 1, columns + 1), (200, 2)):
    cut = np.s_[y : y + _SIDE, x : x + _SIDE]
    inside = (node.depth[cut] > 0).mean()
    if (node.region[cut] == region).mean() > least and inside > _LEAST_NODE:
      return int(y), int(x)
  return None


def _crop(node: lymph_node.Node, corner: tuple[int, int]) -> lymph_node.Node:
  y, x = corner
  cut = lambda values: values[y : y + _SIDE, x : x + _SIDE]
  return lymph_node.Node(
    cut(node.region),
    cut(node.depth),
    cut(node.orientation),
    max(node.histiocytes, 0.6),
  )


def _shrunk(
  rng: np.random.Generator, lesion: lesions.Lesion, corner: tuple[int, int]
) -> lesions.Lesion:
  """Moves a lesion to the image; draws some smaller than on slides."""
  y, x = (
    place - start * lymph_node.SCALE
    for place, start in zip((lesion.y, lesion.x), corner, strict=True)
  )
  reach = lesion.corners - [lesion.x, lesion.y]
  corners = [x, y] + reach * rng.uniform(0.6, 1.0)
  return dataclasses.replace(lesion, y=y, x=x, corners=corners)


def _save(path: Path, pixels: np.ndarray) -> None:
  with files.replacing(path) as part:
    Image.fromarray(pixels).save(part, format='PNG')
