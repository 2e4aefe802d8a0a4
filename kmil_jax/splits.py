"""Assigns patients, or groups of them, to folds and parts; NumPy alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESTARTS = 200  # Random assignments of groups, of which the best is taken.
_MOST_GROUPS = 40_000  # Assigned in all restarts together; one is always made.
_SPREAD = 0.7  # Of the log-normal factor that shuffles groups by size.
_TOLERANCE = 0.02  # Of a class's members: one this close is taken at once.
_ATTEMPTS = 20  # Times that all these are tried for folds that can be trained.
_SHOWN = 5  # Names listed in an error.
_HELD_OUT = 5  # Of so many cases of a class one validates, without folds.


class SplitError(ValueError):
  """Splits that cannot be made or used; says why and what to do."""


class Parts(NamedTuple):
  """What a fold trains on, validates by and is tested on, bool [n] each."""

  train: np.ndarray
  val: np.ndarray
  test: np.ndarray


def make(
  case: np.ndarray,
  label: np.ndarray,
  k: int,
  seed: int,
  group: np.ndarray | None = None,
) -> list[Parts]:
  """Splits cases into k folds of 8/1/1 parts where k is 10.

  The cases of each class are shuffled and dealt into k groups, continuing where
  the class before ended so that the groups are of nearly equal size. Fold i
  tests group i, validates on group i + 1 and trains on the others. A case with
  slides of several classes counts for the last of them in the order of labels.

  With groups, as the cases of a site, those are dealt instead: see
  `fold_of_groups`.

  One fold tests nothing: a fifth of the cases of each class validates, at least
  one where there are two, and the others are trained on. If no class has two,
  all slides are trained on, and validate, too.

  Args:
    case: patient of each slide, str [n].
    label: of each slide, str [n].
    k: number of folds, at least 3; or 1.
    seed: of the shuffles.
    group: of each slide, str [n], whole in every part; None: cases are.

  Returns:
    k splits whose tests are disjoint and cover all slides, but for one fold;
    every training part has every class.

  Raises:
    SplitError: if a class has fewer than k cases, or a training part lacks it;
      with groups, if there are fewer than k, or a case is in two.
  """
  if k == 1 and group is None:
    return [without_test(case, label, seed)]
  if k == 1:
    raise SplitError('one fold keeps no groups whole. Leave out the column.')
  if k < 3:
    raise SplitError(f'{k} folds: train, val and test parts need at least 3.')
  for attempt in range(1 if group is None else _ATTEMPTS):
    if group is None:
      fold = fold_of_cases(case, label, k, seed)
    else:
      fold = fold_of_groups(case, label, group, k, [seed, attempt])
    parts, faults = [], []
    for i in range(k):
      val, test = fold == (i + 1) % k, fold == i
      train = ~(val | test)
      parts.append(Parts(train, val, test))
      if not test.any():
        faults.append(f'fold {i}: its test part is empty')
      lost = np.setdiff1d(label, label[train])
      faults += [f'fold {i}: no training slide of class {c}' for c in lost]
    if not faults:
      return parts
  advice = 'Choose another number of folds, or join groups or classes.'
  raise SplitError('\n'.join([*faults, advice]))


def without_test(case: np.ndarray, label: np.ndarray, seed: int) -> Parts:
  """Returns one fold that tests nothing, see `make`."""
  cases, code = class_of_cases(case, label)
  val = np.zeros(len(cases), bool)
  for c in np.unique(code):
    rng = np.random.default_rng([seed, c])
    own = rng.permutation(np.flatnonzero(code == c))
    val[own[: max(len(own) // _HELD_OUT, len(own) > 1)]] = True
  val = np.isin(case, cases[val])
  if lost := np.setdiff1d(label, label[~val]).tolist():
    raise SplitError(
      f'no training slide of class {", ".join(lost)}: its cases have slides of'
      ' other classes, too. Choose another seed.'
    )
  return Parts(~val, val if val.any() else ~val, np.zeros_like(val))


def class_of_cases(
  case: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the cases, and of each the place of its last class, in order."""
  cases, place = np.unique(case, return_inverse=True)
  code = np.unique(label, return_inverse=True)[1]
  last = np.zeros(len(cases), int)
  np.maximum.at(last, place, code)
  return cases, last


def fold_of_cases(
  case: np.ndarray, label: np.ndarray, k: int, seed: int
) -> np.ndarray:
  """Deals the cases of each class evenly, those with several labels once.

  Args:
    case: of each slide, str [n].
    label: of each slide, str [n]; a case has the last of its slides' labels.
    k: number of folds.
    seed: of the shuffles.

  Returns:
    The fold that tests each slide, int [n].

  Raises:
    SplitError: if a class has fewer than k cases.
  """
  cases, code_of_case = class_of_cases(case, label)
  classes, count = np.unique(label), np.bincount(code_of_case)
  present = np.flatnonzero(count)
  if rare := present[count[present] < k].tolist():
    few = [f'cases of class {classes[c]}: {count[c]}' for c in rare]
    least = count[rare].min()
    most = f'at most {least} folds, or ' if least >= 3 else ''
    raise SplitError(
      f'{"; ".join(few)}, fewer than {k} folds. Choose {most}a single one,'
      ' which tests nothing; or merge classes.'
    )
  order = [
    np.random.default_rng([seed, i]).permutation(np.flatnonzero(own))
    for i, own in enumerate(code_of_case == present[:, None])
  ]
  fold = np.empty(len(cases), int)
  fold[np.concatenate(order)] = np.arange(len(cases)) % k
  return fold[np.searchsorted(cases, case)]


def fold_of_groups(
  case: np.ndarray,
  label: np.ndarray,
  group: np.ndarray,
  k: int,
  seed: Sequence[int],
) -> np.ndarray:
  """Deals groups of cases, classes as evenly as random tries find it.

  Args:
    case: of each slide, str [n].
    label: of each slide, str [n].
    group: of each slide, as its site, str [n].
    k: number of folds.
    seed: of the assignment.

  Returns:
    The fold that tests each slide, int [n].

  Raises:
    SplitError: if a case is in several groups, or there are too few of them.
  """
  pairs = np.unique(np.stack([case, group], 1), axis=0)
  cases, count = np.unique(pairs[:, 0], return_counts=True)
  if (count > 1).any():
    raise SplitError(
      f'cases with slides of several groups, {(count > 1).sum()}:'
      f' {", ".join(cases[count > 1][:_SHOWN])}. Give each case one group.'
    )
  names, place = np.unique(group, return_inverse=True)
  if len(names) < k:
    raise SplitError(
      f'{len(names)} groups ({", ".join(names[:_SHOWN])}): fewer than {k}'
      ' folds. Choose fewer folds.'
    )
  classes, code = np.unique(label, return_inverse=True)
  slides = np.zeros((len(names), len(classes)))
  np.add.at(slides, (place, code), 1)
  rng = np.random.default_rng(seed)
  return part_of_groups(slides, np.full(k, 1 / k), rng)[place]


def part_of_groups(
  count: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Deals groups to parts that hold the same share of every class.

  Groups, the large ones mostly first, go to the part that lacks most of what
  they hold. The first random assignment is taken whose parts hold their shares
  of every class to 2 %, which leaves seeds their variety, or else the closest.

  Args:
    count: members of each class in each group, [G, C].
    share: that each part is to hold, [P], with a sum of 1; none where it is 0.
    rng: of the assignments.

  Returns:
    The part of every group, int [G].
  """
  relative = count / count.sum(0)  # So that a rare class counts as much.
  used = np.flatnonzero(share)
  best, least = None, np.inf
  for _ in range(int(np.clip(_MOST_GROUPS // len(count), 1, _RESTARTS))):
    size = relative.sum(1) * np.exp(_SPREAD * rng.normal(size=len(count)))
    part = np.empty(len(count), int)
    got = np.zeros((len(used), count.shape[1]))
    for g in np.argsort(-size, kind='stable'):
      # What the group does to the squared distance from the wanted shares,
      # which are relative to the part so that small parts count as much.
      short = share[used, None] - got
      gain = (relative[g] * (2 * short - relative[g])).sum(1) / share[used]
      p = int(np.argmax(gain))
      got[p] += relative[g]
      part[g] = used[p]
    off = np.abs(got - share[used, None]).max() + (got == 0).sum()
    if off < least:
      best, least = part, off
    if least <= _TOLERANCE:
      break
  return best


def part_of_each(
  label: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Deals single tiles to three parts, each class by itself, int [n].

  Args:
    label: of each tile, int [n].
    share: of each class that each part is to hold, [3].
    rng: of the shuffles.
  """
  part = np.empty(len(label), int)
  for c in np.unique(label):
    rows = rng.permutation(np.flatnonzero(label == c))
    cuts = np.rint(np.cumsum(share)[:2] * len(rows)).astype(int)
    part[rows] = np.searchsorted(cuts, np.arange(len(rows)), 'right')
  return part
