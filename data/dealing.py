"""Deals cases, or groups of them, to the folds of a cross-validation."""

import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from data.manifest import Manifest

_SHOWN = 5  # Names listed in an error.


class SplitError(ValueError):
  """Splits that cannot be made or used; says why and what to do."""


def cases(manifest: Manifest, k: int, seed: int) -> np.ndarray:
  """Deals the cases of each class evenly, those with several labels once.

  Args:
    manifest: slides.
    k: number of folds.
    seed: of the shuffles.

  Returns:
    The fold that tests each slide, int [n].

  Raises:
    SplitError: if a class has fewer than k cases.
  """
  label_of = {}
  for case, label in zip(manifest.case, manifest.label, strict=True):
    label_of[case] = max(label, label_of.get(case, label))
  labels = sorted(label_of.values())
  rarest = min(labels, key=labels.count)
  if (count := labels.count(rarest)) < k:
    advice = (
      f'choose --k={count} or less' if count >= 3 else 'check its spelling'
    )
    raise SplitError(
      f'class {rarest} has {count} cases, fewer than --k={k} folds: {advice},'
      ' merge classes with --labels, or pass --split_dir'
    )
  place_of, dealt = {}, 0
  for c, label in enumerate(sorted(set(label_of.values()))):
    named = sorted(case for case in label_of if label_of[case] == label)
    order = np.random.default_rng([seed, c]).permutation(len(named))
    for i in order:
      place_of[named[i]] = dealt % k
      dealt += 1
  return np.array([place_of[case] for case in manifest.case])


def groups(
  manifest: Manifest, k: int, seed: int, group: np.ndarray
) -> np.ndarray:
  """Deals groups of cases, classes as even as whole groups allow.

  Args:
    manifest: slides.
    k: number of folds.
    seed: of the shuffle.
    group: of each slide, as its site, str [n].

  Returns:
    The fold that tests each slide, int [n].

  Raises:
    SplitError: if a case is in several groups, or there are too few of them.
  """
  groups_of: dict[str, set[str]] = {}
  for case, name in zip(manifest.case.tolist(), group.tolist(), strict=True):
    groups_of.setdefault(case, set()).add(name)
  both = sorted(case for case, names in groups_of.items() if len(names) > 1)
  if both:
    raise SplitError(
      f'{len(both)} cases have slides of several groups, which must be one:'
      f' {", ".join(both[:_SHOWN])}'
    )
  if (count := len(set(group.tolist()))) < k:
    advice = f'choose --k={count} or less' if count >= 3 else 'needed are 3'
    raise SplitError(f'{count} groups, fewer than --k={k} folds: {advice}')
  folds = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
  place = np.zeros(len(group), int)
  with warnings.catch_warnings():
    # Of classes with few slides: `check` and its callers tell which.
    warnings.simplefilter('ignore')
    try:
      found = list(folds.split(group, manifest.label, group))
    except ValueError as e:
      raise SplitError(
        f'no class has --k={k} slides: choose fewer folds'
      ) from e
  for i, (_, rows) in enumerate(found):
    place[rows] = i
  return place
