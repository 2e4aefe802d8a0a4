"""Opens patches that are image files, in the folders of He and Li's code."""

import dataclasses
import itertools
import pathlib
import re

import numpy as np

from data import tile_sources
from data.camelyon16 import patches
from data.labelled_tiles import LabelledTiles, TileError
from experiments.few_shot_parts import paper
from experiments.few_shot_parts.cohort import PARTS, Cohort, Scale, counts
from kmil_jax.tasks.distill import TUMOUR

# Folders of He and Li's code, and of ours.
_NAMES = {
  'good': 'normal',
  'normal': 'normal',
  'bad': 'tumor',
  'tumor': 'tumor',
  'tumour': 'tumor',
}


def open_folders(root: pathlib.Path) -> Cohort:
  """Returns patches that are image files, without slides.

  Args:
    root: holds train, val and test, each with a folder of normal patches
      (good, as of He and Li, or normal) and one of tumour patches (bad, tumor
      or tumour). The slide of a patch is what its name holds before a last
      _<x>_<y>, or before the first underscore.

  Raises:
    TileError: naming folders and files that cannot be used, and slides whose
      patches are in more than one part.
  """
  parts = {part: _folder(root / part) for part in PARTS}
  sizes = {part: tiles.size for part, tiles in parts.items()}
  if len(set(sizes.values())) > 1:
    raise TileError(f'{root}: patches of different sizes: {sizes}')
  for one, other in itertools.combinations(PARTS, 2):
    both = set(parts[one].group.tolist()) & set(parts[other].group.tolist())
    if both:
      raise TileError(
        f'{root}: slide(s) {", ".join(sorted(both)[:5])} in both {one} and'
        f' {other}; patches of a slide belong in one part'
      )
  tumour = int((parts['train'].label == TUMOUR).sum())
  return Cohort(
    parts=parts,
    slides=(),
    annotations=None,
    scale=Scale(size=sizes['train']),
    main=min(paper.TUMOUR, tumour),
    counts=counts(tumour),
    note=f'patches of {root}',
  )


def _folder(root: pathlib.Path) -> LabelledTiles:
  tiles = tile_sources.from_folders(root, _slide)
  names = [_NAMES.get(name.lower()) for name in tiles.classes]
  if sorted(filter(None, names)) != ['normal', 'tumor'] or None in names:
    raise TileError(
      f'{root}: found the folders {", ".join(tiles.classes)}; good and bad are'
      ' needed (or normal and tumor)'
    )
  if tiles.channels != 3:
    raise TileError(f'{root}: its images are grey; they must have colours')
  place = np.array([patches.CLASSES.index(name) for name in names])
  return dataclasses.replace(
    tiles,
    label=place[tiles.label].astype(np.int32),
    classes=patches.CLASSES,
  )


def _slide(name: str) -> str:
  """Returns the slide of a patch: tumor_001 of tumor_001_70592_125632."""
  found = re.fullmatch(r'(.+)_\d+_\d+', name)
  return found[1] if found else name.partition('_')[0]
