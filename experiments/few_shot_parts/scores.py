"""Scores of patches by every training: their file, and what they come to."""

from collections.abc import Mapping
import csv
import dataclasses
import pathlib

import numpy as np

from experiments import files
from experiments.few_shot_parts import paper
from experiments.few_shot_parts.cohort import Cohort
from kmil_jax import intervals, metrics
from kmil_jax.tasks.distill import TUMOUR, patch_threshold

FILE = 'scores.csv'
PARTS = ('val', 'test')  # That are scored.
RESAMPLES = 1000
_HEADER = ('part', 'patch', 'slide', 'tumour', 'mean', 'max')
# What a training comes to on the test patches.
METRICS = ('accuracy', 'accuracy_at_2', 'accuracy_best_f1', 'auroc')


@dataclasses.dataclass(frozen=True)
class Scores:
  """Patches of one part, n of them, as one training sees them."""

  patch: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str
  tumour: np.ndarray  # [n] bool
  mean: np.ndarray  # [n], of the anomaly map; He and Li's score
  max: np.ndarray  # [n]


def write(
  folder: pathlib.Path, cohort: Cohort, found: Mapping[str, np.ndarray]
) -> None:
  """Writes scores.csv of a training.

  Args:
    folder: of the training.
    cohort: the patches.
    found: mean and maximum of the maps of every part, [2, n].
  """
  rows = [_HEADER]
  for part, (mean, highest) in found.items():
    tiles = cohort.parts[part]
    columns = (
      tiles.id.tolist(),
      tiles.group.tolist(),
      (tiles.label == TUMOUR).astype(int).tolist(),
      (f'{x:.9g}' for x in mean),  # Exact for float32.
      (f'{x:.9g}' for x in highest),
    )
    rows += [(part, *row) for row in zip(*columns, strict=True)]
  files.write_csv(folder / FILE, rows)


def read(folder: pathlib.Path) -> dict[str, Scores]:
  """Reads scores.csv of a training, by part.

  Raises:
    FileNotFoundError: if the training is not done.
  """
  with (folder / FILE).open(newline='', encoding='utf-8') as f:
    rows = list(csv.DictReader(f))
  found = {}
  for part in PARTS:
    mine = [row for row in rows if row['part'] == part]
    column = lambda name, mine=mine: np.array([row[name] for row in mine])
    found[part] = Scores(
      column('patch'),
      column('slide'),
      column('tumour') == '1',
      column('mean').astype(float),
      column('max').astype(float),
    )
  return found


def threshold(scores: Scores) -> float:
  """The threshold that these patches choose: that of the highest F1."""
  return patch_threshold(np.where(scores.tumour, TUMOUR, 1), scores.mean)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What the test patches say of a training.

  Attributes:
    threshold: chosen on the validation patches.
    value: of `METRICS`.
    replicates: of `METRICS` on resampled slides, [W] each; those of all
      trainings on the same patches are paired.
  """

  threshold: float
  value: dict[str, float]
  replicates: dict[str, np.ndarray]


def outcome(scores: Mapping[str, Scores]) -> Outcome:
  """Measures a training.

  Args:
    scores: of `PARTS`.

  Returns:
    Its accuracy at the threshold that validation chose, at the paper's fixed 2,
    and at that of the highest F1 on the test patches themselves, which the
    released code reports and is optimistic; and its AUROC.
  """
  test = scores['test']
  chosen = threshold(scores['val'])
  limits = dict(
    zip(METRICS, (chosen, paper.THRESHOLD, threshold(test)), strict=False)
  )
  value, replicates = {}, {}
  for name, limit in limits.items():
    called = test.mean >= limit
    value[name] = float((called == test.tumour).mean())
    prob = np.stack([~called, called], 1).astype(float)
    drawn = _replicates(test, prob)
    replicates[name] = drawn['accuracy']
  value['auroc'] = float(metrics.auroc(test.tumour, test.mean))
  drawn = _replicates(test, np.stack([-test.mean, test.mean], 1))
  replicates['auroc'] = drawn['auroc']
  return Outcome(chosen, value, replicates)


def _replicates(test: Scores, prob: np.ndarray) -> dict[str, np.ndarray]:
  return intervals.replicates(
    test.tumour.astype(int), prob, test.slide, resamples=RESAMPLES
  )


@dataclasses.dataclass(frozen=True)
class Summary:
  """A setting: the mean over its seeds, and how it varies.

  Attributes:
    value: mean of `METRICS`.
    spread: standard deviation over seeds; NaN of a single one.
    replicates: mean over seeds, [W].
  """

  value: dict[str, float]
  spread: dict[str, float]
  replicates: dict[str, np.ndarray]

  def interval(self, name: str) -> tuple[float, float]:
    """Returns the ends of a 95 % interval over slides."""
    low, high = intervals.percentile(self.replicates[name])
    return float(low), float(high)


def summary(outcomes: list[Outcome]) -> Summary:
  """Returns what the seeds of a setting come to."""
  many = len(outcomes) > 1
  column = lambda name: np.array([o.value[name] for o in outcomes])
  return Summary(
    {name: float(column(name).mean()) for name in METRICS},
    {
      name: float(column(name).std(ddof=1)) if many else float('nan')
      for name in METRICS
    },
    {
      name: np.mean([o.replicates[name] for o in outcomes], 0)
      for name in METRICS
    },
  )


def minus(one: Summary, other: Summary) -> Summary:
  """Returns the difference of two settings on the same patches."""
  return Summary(
    {name: one.value[name] - other.value[name] for name in METRICS},
    {name: float('nan') for name in METRICS},
    {name: one.replicates[name] - other.replicates[name] for name in METRICS},
  )
