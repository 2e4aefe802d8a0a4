"""What classes are called, in which order, and other names for them."""

import dataclasses

import numpy as np

from data import labels as label_files
from data.labels import Manifest

# The paper's class ids; its slide names end in them.
PAPER_CLASSES = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')
METASTATIC = 'metastatic'


class LabelError(ValueError):
  """A relabelling that cannot be understood; says which and how."""


def mapping_of(task: str, labels: list[str] | None) -> dict[str, str] | None:
  """Returns the relabelling of --task and --labels, None for none.

  The paper's tasks (Zheng et al. 2024, as run in the released code): a tells
  non-tumor, lymphoma and metastatic apart; b non-tumor and lymphoma; c lymphoma
  and metastatic.

  Raises:
    LabelError: if both flags are given, a pair is not old:new, or an old label
      has two new ones.
  """
  if labels and task != 'origin':
    raise LabelError(f'--labels and --task={task} exclude each other')
  if labels:
    pairs = [pair.split(':') for pair in labels]
    wrong = [':'.join(p) for p in pairs if len(p) != 2 or not all(p)]
    if wrong:
      raise LabelError(f'--labels: {wrong[0]!r} is not of the form old:new')
    mapping = dict(pairs)
    twice = [old for old, new in pairs if mapping[old] != new]
    if twice:
      raise LabelError(f'--labels: {twice[0]} is given twice')
    return mapping
  if task == 'origin':
    return None
  kept = {'a': (0, 1, 2, 3, 4), 'b': (0, 1), 'c': (1, 2, 3, 4)}[task]
  return {
    PAPER_CLASSES[c]: METASTATIC if c > 1 else PAPER_CLASSES[c] for c in kept
  }


def relabelled(table: Manifest, mapping: dict[str, str] | None) -> Manifest:
  """Relabels; the paper's classes may be numbered in the table."""
  if mapping is None:
    return table
  names = {str(c): name for c, name in enumerate(PAPER_CLASSES)}
  if set(table.label) <= set(names) and set(mapping) <= set(PAPER_CLASSES):
    table = label_files.relabel(table, {c: names[c] for c in set(table.label)})
  return label_files.relabel(table, mapping)


def ordered(labels: np.ndarray) -> tuple[str, ...]:
  """Orders class names: as the paper does, by number, or by name."""
  names = sorted(set(labels.tolist()))
  known = (*PAPER_CLASSES, METASTATIC)
  if set(names) <= set(known):
    return tuple(sorted(names, key=known.index))
  if all(name.isdecimal() for name in names):
    return tuple(sorted(names, key=int))
  return tuple(names)


def shuffled(table: Manifest, seed: int) -> Manifest:
  """Deals the labels anew: whole cases swap the label of their first slide."""
  cases, first, of = np.unique(
    table.case, return_index=True, return_inverse=True
  )
  order = np.random.default_rng(seed).permutation(len(cases))
  return dataclasses.replace(table, label=table.label[first][order][of])
