"""Draws patches of lymphatic invasion: emboli and what is taken for them."""

import numpy as np
from numpy.random import Generator

from data.phantom import cohort, lesions, lymph_node, stain
from data.phantom.slide import Truth

CLASSES = ('negative', 'positive')
MPP = 2.5  # Micrometres per pixel of a patch.
SIZE = 40  # Pixels of a patch, 100 um.
_LOOK = stain.Appearance(mpp=MPP, blur=0.4)
# On the anatomy's maps: a patch with a margin that hides its neighbours.
_SIDE = 30
_MARGIN = 4  # Pixels of it at either side.

# What a negative patch shows, and what is mistaken for an embolus.
_TISSUES = {
  'stroma': lymph_node.FIBROSIS,
  'muscle': lymph_node.TRABECULA,
  'lymphoid': lymph_node.PARACORTEX,
  'fat': lymph_node.FAT,
}
EASY = (*_TISSUES, 'gland', 'empty_vessel')
HARD = ('retracted_gland', 'retracted_nest', 'blood_vessel', 'lymph_cells')
POSITIVE = 'embolus'
KINDS = (POSITIVE, *EASY, *HARD)


def make(
  *,
  patients: int,
  patches: int,
  positives: float,
  hard: float,
  seed: int,
  prefix: str,
  progress: cohort.Progress = cohort.no_progress,
) -> dict[str, np.ndarray]:
  """Draws the patches of a set of patients, one slide each.

  Kinds are drawn independently: a patch is an embolus with probability
  `positives`; else it is one of `HARD` with probability `hard`, else one
  of `EASY`, each equally often.

  Args:
    patients: number of them; each has a stain of its own.
    patches: of each patient.
    positives: share of patches with an embolus; 0 for the weak pool.
    hard: share of negative patches that are mistaken for emboli.
    seed: another seed is another set.
    prefix: of ids; sets of other prefixes differ, with one seed too.
    progress: called with (patients done, patients in all) after each of them.

  Returns:
    Of the n patches, in the order of patients: `image`, uint8 [n, SIZE, SIZE,
    3]; `label`, int32 [n], place in `CLASSES`; `kind`, one of `KINDS`,
    `patient` and `id`, str [n].
  """
  chance = [positives]
  for kinds, share in ((EASY, 1 - hard), (HARD, hard)):
    chance += [(1 - positives) * share / len(kinds)] * len(kinds)

  def draw(patient: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, *prefix.encode(), patient])
    kinds = rng.choice(KINDS, patches, p=chance)
    return render(rng, kinds)[0], kinds

  drawn = cohort.in_threads(draw, range(patients), progress)
  image, kind = map(np.concatenate, zip(*drawn, strict=True))
  names = [f'{prefix}_{i + 1:03d}' for i in range(patients)]
  ids = [f'{name}_{i:03d}' for name in names for i in range(patches)]
  return {
    'image': image,
    'label': (kind == POSITIVE).astype(np.int32),
    'kind': kind,
    'patient': np.repeat(names, patches),
    'id': np.array(ids),
  }


def render(rng: Generator, kinds: np.ndarray) -> tuple[np.ndarray, list[Truth]]:
  """Renders the patches of a slide, side by side, and cuts them out.

  Args:
    rng: where the randomness comes from.
    kinds: of `KINDS`, [n].

  Returns:
    uint8 [n, SIZE, SIZE, 3], and the truth of each.
  """
  layout, case, cells, brush, scan = rng.spawn(5)
  tissue = [_TISSUES.get(kind, lymph_node.FIBROSIS) for kind in kinds]
  rows = lambda values: np.repeat(values, _SIDE)[:, None].repeat(_SIDE, 1)
  region, turn = rows(tissue), rows(layout.uniform(0, np.pi, len(kinds)))
  node = lymph_node.Node(region, np.zeros(region.shape), turn)
  placed, truths = [], []
  for i, kind in enumerate(kinds.tolist()):
    outlines, top = [], i * _SIDE * lymph_node.SCALE
    if kind in lesions.SPACES:
      y, x = lymph_node.SCALE * (_SIDE / 2 + layout.uniform(-2.75, 2.75, 2))
      drawn = lesions.draw(layout, kind, (y, x), layout.uniform(21, 35), 0.12)
      placed.append(drawn.moved(top, 0))
      if kind == POSITIVE:
        outlines = [drawn.corners * stain.DRAWN_MPP / MPP - _MARGIN]
    truths.append(Truth(kind, outlines))
  canvas = lesions.densities(cells, brush, node, placed)
  image = stain.expose(_LOOK, case, scan, canvas)
  side = SIZE + 2 * _MARGIN
  whole = image.reshape(len(kinds), side, side, 3)
  return whole[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN], truths
