"""Renders one slide of the phantom cohort from its specification."""

import dataclasses

import numpy as np

from data.phantom import (
  anatomy,
  artefacts,
  lesions,
  stain,
  texture,
  tissue_cells,
)

LABELS = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')
_DEFAULT_LOOK = stain.Appearance()
# Radii of lesions, um, and the share of the node that they take at most.
_LESION = (95, 165)
_LESIONS = 0.18


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
  found: list[lesions.Lesion] = []
  while True:
    node = anatomy.draw(layout, (int(size[0]), int(size[1])))
    found = lesions.place(
      tumour, node, spec.label, radius=_LESION, share=_LESIONS
    )
    if found or spec.label == LABELS[0]:
      break
  shape = (
    node.region.shape[0] * tissue_cells.SCALE,
    node.region.shape[1] * tissue_cells.SCALE,
  )
  haematoxylin, eosin = tissue_cells.fill(
    cells, node, shape, lesions.taken(found, node.region.shape)
  )
  for lesion in found:
    lesions.paint(tumour, spec.label, lesion, haematoxylin, eosin)
  fold = artefacts.fold(glass, node)
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
    artefacts.ink(glass, node),
  )
  pixels = stain.DRAWN_MPP / spec.look.mpp  # Per pixel drawn.
  return image, [lesion.corners * pixels for lesion in found]
