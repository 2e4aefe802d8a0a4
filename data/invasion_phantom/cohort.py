"""Draws the patches of annotated slides and those of the weak pool."""

from collections.abc import Callable
from concurrent import futures
import dataclasses

import numpy as np

from data.invasion_phantom import scenes
from data.phantom import stain

CLASSES = ('negative', 'positive')
MPP = 2.5  # Micrometres per pixel of a patch.
SIZE = int(scenes.SIDE * stain.DRAWN_MPP / MPP)  # 40 pixels.
_LOOK = stain.Appearance(mpp=MPP, blur=0.4)


@dataclasses.dataclass(frozen=True)
class Patches:
  """Patches whose truth is known."""

  image: np.ndarray  # [n, SIZE, SIZE, 3] uint8
  label: np.ndarray  # [n] int32, place in `CLASSES`
  kind: np.ndarray  # [n] str, one of `scenes.KINDS`
  patient: np.ndarray  # [n] str
  id: np.ndarray  # [n] str


def make(
  *,
  patients: int,
  patches: int,
  positives: float,
  hard: float,
  seed: int,
  prefix: str,
  progress: Callable[[int], None] | None = None,
) -> Patches:
  """Draws the patches of a set of patients, one slide each.

  Kinds are drawn independently: a patch is an embolus with probability
  `positives`; else it is one of `scenes.HARD` with probability `hard`, else one
  of `scenes.EASY`, each equally often.

  Args:
    patients: number of them; each has a stain of its own.
    patches: of each patient.
    positives: share of patches with an embolus; 0 for the weak pool.
    hard: share of negative patches that are mistaken for emboli.
    seed: another seed is another set.
    prefix: of ids; sets of other prefixes differ, with one seed too.
    progress: called with the number of new patches.

  Returns:
    The patches in the order of patients.
  """
  key = [seed, *prefix.encode()]

  def render(patient: int):
    rng = np.random.default_rng([*key, patient])
    chance = [positives]
    for kinds, share in ((scenes.EASY, 1 - hard), (scenes.HARD, hard)):
      chance += [(1 - positives) * share / len(kinds)] * len(kinds)
    kinds = rng.choice(scenes.KINDS, patches, p=chance)
    image = _expose(rng, kinds)
    if progress is not None:
      progress(patches)
    return image, kinds

  with futures.ThreadPoolExecutor(2) as pool:
    found = list(pool.map(render, range(patients)))
  kind = np.concatenate([kinds for _, kinds in found])
  names = [f'{prefix}_{i + 1:03d}' for i in range(patients)]
  return Patches(
    image=np.concatenate([image for image, _ in found]),
    label=(kind == scenes.POSITIVE).astype(np.int32),
    kind=kind,
    patient=np.repeat(names, patches),
    id=np.array([f'{name}_{i:03d}' for name in names for i in range(patches)]),
  )


def _expose(rng: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
  """Paints the patches of a slide and scans them side by side."""
  painted = [scenes.paint(rng, kind) for kind in kinds]
  # One above the other, each with a margin that hides its neighbours' blur.
  haematoxylin, eosin = (
    np.pad(np.stack(some), ((0, 0), (10, 10), (0, 0)), 'edge').reshape(
      -1, scenes.SIDE
    )
    for some in zip(*painted, strict=True)
  )
  side = SIZE + 4
  rows = -len(haematoxylin) % 40  # A multiple of 8 pixels.
  haematoxylin, eosin = (
    np.pad(some, ((0, rows), (0, 0))) for some in (haematoxylin, eosin)
  )
  image = stain.expose(
    _LOOK,
    stain.draw(_LOOK, rng, rng),
    rng,
    haematoxylin,
    eosin,
    np.ones((1, 1, 3), np.float32),
  )[: side * len(kinds)]
  return image.reshape(len(kinds), side, SIZE, 3)[:, 2:-2]
