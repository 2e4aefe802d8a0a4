"""Scores images by their heat maps, and one step against two."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from data.node_images import NodeImages
from experiments.two_step_patches import Places
from kmil_jax import heatmap, intervals
from kmil_jax.heatmap import FIRES, STRIDE, WINDOW, Windows

VOTES = (WINDOW // STRIDE) ** 2  # Of a pixel; a score is a number of them.
SHARES = ('sensitivity', 'specificity', 'accuracy')


def one_step(windows: Windows) -> Windows:
  """Returns the same windows without the secondary network."""
  return Windows(primary=windows.primary, secondary=None)


def image_scores(windows: Sequence[Windows]) -> np.ndarray:
  """Returns the most votes that a pixel of each image has, int [n]."""
  found = []
  for said in windows:
    positive = said.positive()
    shape = tuple((n - 1) * STRIDE + WINDOW for n in positive.shape)
    found.append(heatmap.votes(positive, shape).max())
  return np.rint(np.array(found) * VOTES).astype(int)


def threshold(score: np.ndarray, positive: np.ndarray) -> int:
  """Returns the votes from which an image is positive.

  The smallest number, from 1 to 16, with the highest mean of sensitivity and
  specificity. In the paper, where positive images have 15 or more and negative
  ones fewer than 11, that is 11: its 0.6875.

  Args:
    score: of the development images alone, int [n].
    positive: the truth, bool [n].
  """
  votes = np.arange(1, VOTES + 1)
  said = score >= votes[:, None]
  balanced = said[:, positive].mean(1) + (~said[:, ~positive]).mean(1)
  return int(votes[balanced.argmax()])


def threshold_as_sensitive(
  score: np.ndarray, positive: np.ndarray, sensitivity: float
) -> int:
  """Returns the highest threshold that is at least as sensitive; 1 if none."""
  for votes in range(VOTES, 1, -1):
    if (score[positive] >= votes).mean() >= sensitivity:
      return votes
  return 1


@dataclasses.dataclass(frozen=True)
class Shares:
  """Sensitivity, specificity and accuracy; of each hits, total, interval."""

  hits: tuple[int, ...]
  total: tuple[int, ...]
  interval: tuple[tuple[float, float], ...]

  @property
  def value(self) -> tuple[float, ...]:
    return tuple(h / n for h, n in zip(self.hits, self.total, strict=True))


def shares(
  said: np.ndarray, positive: np.ndarray, patient: np.ndarray
) -> Shares:
  """Compares decisions with the truth, bool [n]; patients are what varies."""
  hit = said == positive
  counted = (positive, ~positive, np.ones_like(positive))
  return Shares(
    tuple(int(hit[rows].sum()) for rows in counted),
    tuple(int(rows.sum()) for rows in counted),
    tuple(
      tuple(intervals.proportion(hit, rows, patient).tolist())
      for rows in counted
    ),
  )


def rules(
  primary: np.ndarray, both: np.ndarray, tumour: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns what is taken for tumour, bool [n] by rule.

  One step, as the primary network decides; one step whose bar is raised until
  it finds as much tumour as two steps do; and two steps.

  Args:
    primary: probability, [n].
    both: the decision in two steps, bool [n].
    tumour: the truth, bool [n].
  """
  found = int((both & tumour).sum())
  bar = np.sort(primary[tumour])[::-1][found - 1] if found else np.inf
  return {
    'one step': primary >= FIRES,
    'one step, as sensitive as two': primary >= bar,
    'two steps': both,
  }


@dataclasses.dataclass(frozen=True)
class WindowShares:
  """How many windows of a set of images a rule takes for tumour."""

  rule: str
  sensitivity: float  # of windows with tumour
  false_positives: int
  share: float  # of windows without tumour
  interval: tuple[float, float]  # of that
  per_negative: float  # mean number in a negative image


def window_shares(
  images: NodeImages,
  rows: np.ndarray,
  windows: Sequence[Windows],
  truth: Sequence[Places],
) -> list[WindowShares]:
  """Compares one step with two by windows, at equal sensitivity too.

  Args:
    images: all images.
    rows: those to compare on, int [n].
    windows: what the networks say of these, with a secondary network.
    truth: of the same windows.

  Returns:
    The rules of `rules`.
  """
  join = lambda arrays: np.concatenate([a.ravel() for a in arrays])
  seen = join(t.tissue for t in truth)
  tumour = join(t.tumour for t in truth) & seen
  normal = join(t.normal for t in truth) & seen
  prob = np.nan_to_num(join(w.primary for w in windows), nan=-1.0)
  sizes = [w.primary.size for w in windows]
  patient = np.repeat(images.patient[rows], sizes)
  negative = np.repeat(~images.positive[rows], sizes)
  both = join(w.positive() for w in windows)
  return [
    WindowShares(
      rule,
      float(said[tumour].mean()),
      int(said[normal].sum()),
      float(said[normal].mean()),
      tuple(intervals.proportion(said, normal, patient).tolist()),
      float(said[negative].sum() / (~images.positive[rows]).sum()),
    )
    for rule, said in rules(prob, both, tumour).items()
  ]
