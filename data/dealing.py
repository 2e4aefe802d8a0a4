"""Deals cases, or groups of them, to the folds of a cross-validation."""

import numpy as np

from data.manifest import Manifest

_TRIES = 200  # Random dealings of the groups, of which the best is taken.
_DEALT = 40_000  # Groups dealt in all tries together, and at least one try.
_SPREAD = 0.7  # Of the log-normal factor that shuffles groups by size.
_CLOSE = 0.02  # Of a class's members: a dealing this close is taken at once.
_ATTEMPTS = 20  # Times that all these are tried for folds that can be trained.
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
  labels, counts = np.unique(list(label_of.values()), return_counts=True)
  if (rare := counts < k).any():
    told = [
      f'class {label} has {count} cases'
      for label, count in zip(labels[rare], counts[rare], strict=True)
    ]
    least = counts.min()
    advice = (
      f'choose --k={least} or less' if least >= 3 else 'check the spelling'
    )
    raise SplitError(
      f'{"; ".join(told)}, fewer than --k={k} folds: {advice},'
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
  """Deals groups of cases, classes as evenly as random tries find it.

  Args:
    manifest: slides.
    k: number of folds.
    seed: of the dealing.
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
    advice = (
      f'choose --k={count} or less'
      if count >= 3
      else 'whole groups need 3 at least, to train, validate and test on'
    )
    raise SplitError(
      f'{count} groups ({", ".join(sorted(set(group.tolist()))[:_SHOWN])}),'
      f' fewer than --k={k} folds: {advice}'
    )
  names, place = np.unique(group, return_inverse=True)
  classes, label = np.unique(manifest.label, return_inverse=True)
  slides = np.zeros((len(names), len(classes)))
  np.add.at(slides, (place, label), 1)
  for attempt in range(_ATTEMPTS):
    rng = np.random.default_rng([seed, attempt])
    fold = evenly(slides, np.full(k, 1 / k), rng)
    held = np.stack([slides[fold == i].sum(0) for i in range(k)])
    trained = held.sum(0) - held - np.roll(held, -1, axis=0)
    if held.any(1).all() and trained.all():
      break
  return fold[place]


def evenly(
  count: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Deals groups to parts that hold the same share of every class.

  Groups, the large ones mostly first, go to the part that lacks most of what
  they hold. The first random dealing is taken whose parts hold their shares of
  every class to 2 %, which leaves seeds their variety, or else the closest.

  Args:
    count: members of each class in each group, [G, C].
    share: that each part is to hold, [P], with a sum of 1; none where it is 0.
    rng: of the dealings.

  Returns:
    The part of every group, int [G].
  """
  relative = count / count.sum(0)  # So that a rare class counts as much.
  used = np.flatnonzero(share)
  best, least = None, np.inf
  for _ in range(int(np.clip(_DEALT // len(count), 1, _TRIES))):
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
    if least <= _CLOSE:
      break
  return best
