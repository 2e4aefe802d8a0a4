"""The trainings of the few-shot study: which patches, which loss."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from experiments.few_shot_parts import paper
from kmil_jax.tasks import distill
from kmil_jax.tasks.distill import NORMAL, TUMOUR

# Names of the trainings of Table 2, in its order.
RD, FW_RD = 'RD', 'FW-RD'
_COUNT = 'tumour_'  # Begins the others' of Table 3.


@dataclasses.dataclass(frozen=True)
class Setting:
  """A training, but for its seed.

  Attributes:
    name: unique, of files and columns.
    normal: how many normal patches it has.
    tumour: how many tumour patches.
    alpha: of the focal loss; 0 is the loss of RD.
    gamma: of the focal loss.
    paper: accuracy that He and Li have of it, or None.
    counterpart: number of tumour patches in the paper that this one stands
      for, or None if there is none.
    longer: how many times the epochs of the others it takes.
  """

  name: str
  normal: int
  tumour: int
  alpha: float
  gamma: float = paper.GAMMA
  paper: float | None = None
  counterpart: int | None = None
  longer: int = 1


def study(
  normal: int,
  main: int,
  counts: Mapping[int, int | None],
  *,
  longer: int = 1,
) -> list[Setting]:
  """Returns the trainings of Tables 2 and 3 and of the ablations.

  The paper has alpha follow the share of tumour patches, gives 0.1 for 500 of
  5,500 and 0.5 for balanced classes: here it is that share, but 0.1 in the
  main training. "Unweighted" is not defined in the paper: here alpha is 0.5,
  and gamma either 0, which leaves a cross entropy, or 2.

  Args:
    normal: normal patches of the cohort.
    main: tumour patches of the main training.
    counts: other numbers of tumour patches, and the paper's they stand for.
    longer: times the others' epochs for balanced classes, which are fewer
      patches; 1 in the paper.
  """
  found = [
    Setting(RD, normal, 0, 0.0, paper=paper.TABLE_2[RD], counterpart=0),
    Setting(
      FW_RD,
      normal,
      main,
      paper.ALPHA,
      paper=paper.TABLE_2[FW_RD],
      counterpart=paper.TUMOUR,
    ),
  ]
  found += [
    Setting(
      f'{_COUNT}{count}',
      normal,
      count,
      count / (count + normal),
      counterpart=original,
    )
    for count, original in counts.items()
    if count not in (0, main)
  ]
  even = min(main, normal)
  found += [
    Setting('unweighted', normal, main, 0.5, 0.0, paper.UNWEIGHTED),
    Setting('unweighted_focal', normal, main, 0.5, paper=paper.UNWEIGHTED),
    Setting('balanced', even, even, 0.5, paper=paper.BALANCED, longer=longer),
  ]
  return found


def sweep(settings: Sequence[Setting]) -> list[Setting]:
  """Returns the trainings of Table 3, by number of tumour patches."""
  rows = [
    s for s in settings if s.name in (RD, FW_RD) or s.name.startswith(_COUNT)
  ]
  return sorted(rows, key=lambda s: s.tumour)


def run(setting: Setting, seed: int, label: np.ndarray) -> distill.Setting:
  """Returns a training of a seed.

  Patches are drawn by the seed: those of a smaller number are among those of
  any larger one.

  Args:
    setting: of the training.
    seed: of the draw, the weights and the order.
    label: of all training patches, 1 normal and 0 tumour, [n].
  """
  rows = []
  for kind, count in ((NORMAL, setting.normal), (TUMOUR, setting.tumour)):
    of_kind = np.flatnonzero(label == kind)
    order = np.random.default_rng([seed, kind]).permutation(of_kind)
    rows.append(order[:count])
  return distill.Setting(
    patches=np.sort(np.concatenate(rows)),
    seed=seed,
    alpha=setting.alpha,
    gamma=setting.gamma,
  )
