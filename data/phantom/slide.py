"""Renders one slide of the phantom cohort from its specification."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.phantom import lesions, lymph_node, stain, texture

LABELS = ('non-tumor', *lesions.KINDS)
_DEFAULT_LOOK = stain.Appearance()
# Radii of lesions and mimics, um, and the share of the node that they take at
# most; how many mimics there are.
_LESION = (70, 130)
_LESIONS = 0.2
_MIMICS = (1, 4)
# Transmission of red, green and blue through the ink of marker pens.
_INKS = (
  (0.22, 0.36, 0.8),
  (0.16, 0.6, 0.36),
  (0.13, 0.13, 0.15),
  (0.82, 0.2, 0.22),
)


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which slide to render; its pixels are a function of these alone.

  Attributes:
    seed: the cohort's seed.
    case: the case's number.
    slide: the slide's number within its case.
    label: one of `LABELS`.
    look: laboratory and scanner.
  """

  seed: int
  case: int
  slide: int
  label: str
  look: stain.Appearance = _DEFAULT_LOOK


def render(spec: Spec) -> tuple[np.ndarray, list[np.ndarray]]:
  """Renders a slide.

  Args:
    spec: which slide.

  Returns:
    Level 0, uint8 [H, W, 3] with H and W multiples of 8; and the outlines of
    the lesions, each float64 [K, 2], corners (x, y) in level-0 pixels, not
    closed. Non-tumor slides have none, all others at least one. Structures
    have the same size in micrometres whatever the look's `mpp`.
  """
  case = np.random.default_rng([spec.seed, spec.case])
  # One stream per part: a change of one part leaves the others as they were.
  layout, cells, tumour, glass, dye = np.random.default_rng(
    [spec.seed, spec.case, spec.slide]
  ).spawn(5)
  size = layout.integers(272, 321, 2)
  placed: list[lesions.Lesion] = []
  while True:
    node = lymph_node.draw(layout, (int(size[0]), int(size[1])))
    placed = lesions.place(
      tumour,
      node,
      spec.label,
      radius=_LESION,
      share=_LESIONS,
      mimics=int(tumour.integers(*_MIMICS)),
    )
    truth = [lesion for lesion in placed if not lesion.is_benign]
    if truth or spec.label == LABELS[0]:
      break
  shape = (
    node.region.shape[0] * lymph_node.SCALE,
    node.region.shape[1] * lymph_node.SCALE,
  )
  haematoxylin, eosin = lymph_node.fill(
    cells, node, shape, lesions.taken(placed, node.region.shape)
  )
  for lesion in placed:
    lesions.paint(tumour, lesion, haematoxylin, eosin)
  fold = _fold(glass, node)
  if fold is not None:
    thickness = texture.enlarge(fold, shape)
    haematoxylin *= thickness
    eosin *= thickness
  image = stain.expose(
    spec.look,
    stain.draw(spec.look, case, dye),
    glass,
    haematoxylin,
    eosin,
    _ink(glass, node),
  )
  pixels = stain.DRAWN_MPP / spec.look.mpp  # Per pixel drawn.
  return image, [lesion.corners * pixels for lesion in truth]


def _ink(rng: np.random.Generator, node: lymph_node.Node) -> np.ndarray:
  """Returns the transmission of pen strokes and dust, float32 [h, w, 3].

  About a quarter of slides carry one to three strokes of one pen around the
  tissue, now and then across its edge; the others have 1 but for dust.
  """
  height, width = node.region.shape
  image = Image.new('L', (width, height), 0)
  brush = ImageDraw.Draw(image)
  colour = _INKS[rng.integers(len(_INKS))]
  if rng.random() < 0.25:
    turn = np.linspace(0, 1, 40)
    for _ in range(int(rng.integers(1, 4))):
      start, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.8)
      angle = start + length * turn
      reach = rng.uniform(0.44, 0.52) * (1 + 0.05 * np.sin(9 * turn))
      x = width * (0.5 + reach * np.cos(angle))
      y = height * (0.5 + reach * np.sin(angle))
      brush.line(
        list(zip(x.tolist(), y.tolist(), strict=True)),
        fill=int(rng.integers(190, 256)),
        width=int(rng.integers(9, 20)),
        joint='curve',
      )
  streaks = 0.75 + 0.25 * texture.noise(rng, (height, width), 7).clip(-1, 1)
  cover = np.asarray(image.filter(ImageFilter.BoxBlur(1))) / 255 * streaks
  light = 1 - cover[..., None] * (1 - np.array(colour))
  dust = Image.new('L', (width, height), 255)
  brush = ImageDraw.Draw(dust)
  for y, x, size in rng.uniform(0, 1, (int(rng.integers(0, 9)), 3)):
    size = 0.4 + 1.2 * size**2
    box = np.array([x * width, y * height]).repeat(2).reshape(2, 2).T
    brush.ellipse([*(box[0] - size), *(box[1] + size)], fill=90)
  dust = np.asarray(dust.filter(ImageFilter.GaussianBlur(0.7))) / 255
  return (light * dust[..., None]).astype(np.float32)


def _fold(rng: np.random.Generator, node: lymph_node.Node) -> np.ndarray | None:
  """Returns how much a fold thickens the tissue, [h, w], None for no fold."""
  if rng.random() > 0.2:
    return None
  shape = node.region.shape
  y, x = np.indices(shape, np.float32)
  turn = rng.uniform(0, np.pi)
  across = np.cos(turn) * (y - shape[0] / 2) + np.sin(turn) * (x - shape[1] / 2)
  along = np.cos(turn) * (x - shape[1] / 2) - np.sin(turn) * (y - shape[0] / 2)
  away = across - rng.uniform(-60, 60) + 4 * texture.noise(rng, shape, 30)
  ends = np.exp(-((along / rng.uniform(40, 90)) ** 4))
  return 1 + 0.9 * ends * (np.abs(away) < rng.uniform(2.5, 6))
