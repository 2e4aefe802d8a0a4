"""Renders the pictures of the phantoms: a slide of a node, or a part of it."""

import dataclasses
import json

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from data.phantom import lesions, lymph_node, nuclei, stain, texture

LABELS = ('non-tumor', *lesions.KINDS)
# Transmission of red, green and blue through the ink of marker pens.
_INKS = (
  (0.22, 0.36, 0.8),
  (0.16, 0.6, 0.36),
  (0.13, 0.13, 0.15),
  (0.82, 0.2, 0.22),
)


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which picture to render; its pixels are a function of these alone.

  Attributes:
    seed: the cohort's seed.
    case: the case's number.
    slide: the slide's number within its case.
    label: one of `LABELS`.
    look: laboratory and scanner.
    window: side of the part that is rendered, around a lesion or a mimic, in
      pixels of the anatomy's maps; None for the whole slide.
    mimics: of which tumours there are benign ones.
  """

  seed: int
  case: int
  slide: int
  label: str
  look: stain.Appearance = stain.DEFAULT
  window: int | None = None
  mimics: tuple[str, ...] = lesions.KINDS


@dataclasses.dataclass(frozen=True)
class Truth:
  """What a picture shows.

  Attributes:
    kind: the label of a slide, or what a patch shows.
    outlines: of tumour, each float64 [K, 2], corners (x, y) in level-0 pixels,
      not closed.
  """

  kind: str
  outlines: list[np.ndarray]

  def mask(self, shape: tuple[int, int]) -> np.ndarray:
    """Returns True on tumour, bool [H, W]."""
    image = Image.new('1', shape[::-1])
    for corners in self.outlines:
      ImageDraw.Draw(image).polygon([*map(tuple, corners)], fill=1)
    return np.asarray(image)

  def geojson(self) -> str:
    """Returns the outlines as a FeatureCollection of closed polygons."""
    rings = (np.r_[ring, ring[:1]].round(1).tolist() for ring in self.outlines)
    about = {'classification': {'name': self.kind}}
    feature = {'type': 'Feature', 'properties': about}
    shapes = [{'type': 'Polygon', 'coordinates': [ring]} for ring in rings]
    features = [feature | {'geometry': shape} for shape in shapes]
    return json.dumps({'type': 'FeatureCollection', 'features': features})


def render(spec: Spec) -> tuple[np.ndarray, Truth]:
  """Renders a slide, or a part of it.

  Args:
    spec: which.

  Returns:
    Level 0, uint8 [H, W, 3] with H and W multiples of 8; and its truth:
    non-tumor slides have no lesions, all others at least one. Structures have
    the same size in micrometres whatever the look's `mpp`.
  """
  case = np.random.default_rng([spec.seed, spec.case])
  # One stream per part: a change of one part leaves the others as they were.
  layout, tumour, glass, cells, brush, scan = np.random.default_rng(
    [spec.seed, spec.case, spec.slide]
  ).spawn(6)
  shape = tuple(layout.integers(272, 321, 2).tolist())
  while True:
    node = lymph_node.draw(layout, shape)
    placed = lesions.place(tumour, node, spec.label, spec.mimics)
    if placed and placed[0].is_benign == (spec.label == LABELS[0]):
      break
  ink, side = None, spec.window
  if side:  # There is room around what was placed, which becomes smaller.
    middle = np.array([placed[0].y, placed[0].x]) / lymph_node.SCALE
    corner = np.rint(middle - side / 2 + layout.uniform(-12, 12, 2)).astype(int)
    y, x = corner.clip(0, np.array(shape) - side)
    at, scale = np.s_[y : y + side, x : x + side], layout.uniform(0.6, 0.9)
    maps = (m[at] for m in (node.region, node.depth, node.orientation))
    node = lymph_node.Node(*maps, node.histiocytes)
    away = -lymph_node.SCALE * y, -lymph_node.SCALE * x
    placed = [lesion.moved(*away, scale) for lesion in placed]
  canvas = lesions.densities(cells, brush, node, placed)
  if not side:
    _fold(glass, canvas)
    ink = _ink(glass, shape)
  image = stain.expose(spec.look, case, scan, canvas, ink)
  pixels = stain.DRAWN_MPP / spec.look.mpp  # Per pixel drawn.
  outlines = [pixels * one.corners for one in placed if not one.is_benign]
  return image, Truth(spec.label, outlines)


def _ink(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
  """Returns the transmission of pen strokes and dust, float32 [h, w, 3].

  About a quarter of slides carry one to three strokes of one pen around the
  tissue, now and then across its edge; the others have 1 but for dust.
  """
  height, width = shape
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
      fill, wide = int(rng.integers(190, 256)), int(rng.integers(9, 20))
      brush.line(np.stack([x, y], 1).ravel().tolist(), fill, wide, 'curve')
  streaks = 0.75 + 0.25 * texture.noise(rng, (height, width), 7).clip(-1, 1)
  cover = np.asarray(image.filter(ImageFilter.BoxBlur(1))) / 255 * streaks
  light = 1 - cover[..., None] * (1 - np.array(colour))
  dust = Image.new('L', (width, height), 255)
  brush = ImageDraw.Draw(dust)
  for y, x, size in rng.uniform(0, 1, (int(rng.integers(0, 9)), 3)):
    y, x, size = y * height, x * width, 0.4 + 1.2 * size**2
    brush.ellipse([x - size, y - size, x + size, y + size], fill=90)
  dust = np.asarray(dust.filter(ImageFilter.GaussianBlur(0.7))) / 255
  return (light * dust[..., None]).astype(np.float32)


def _fold(rng: Generator, canvas: nuclei.Canvas) -> None:
  """Thickens the tissue along a line, of some slides."""
  if rng.random() > 0.2:
    return
  shape = tuple(n // lymph_node.SCALE for n in canvas.shape)
  y, x = np.indices(shape, np.float32)
  y, x = y - shape[0] / 2, x - shape[1] / 2
  turn = rng.uniform(0, np.pi)
  across = np.cos(turn) * y + np.sin(turn) * x
  along = np.cos(turn) * x - np.sin(turn) * y
  away = across - rng.uniform(-60, 60) + 4 * texture.noise(rng, shape, 30)
  ends = np.exp(-((along / rng.uniform(40, 90)) ** 4))
  thickness = 1 + 0.9 * ends * (np.abs(away) < rng.uniform(2.5, 6))
  canvas.clear(1 - texture.enlarge(thickness, canvas.shape))
