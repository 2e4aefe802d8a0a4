"""Annotated tiles and the weak pool: the phantom's or the user's."""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

from data import (
  labelled_tiles,
  tile_sources,
)
from data.files import replacing
from data.labelled_tiles import LabelledTiles, TileError
from data.phantom import invasion
from experiments.code_hash import code_hash
from experiments.run import progress
from kmil_jax import parallel

_CODE = (
  'data/phantom/*.py',
  'experiments/hard_negatives_data.py',
)
# A third is positive, as of what Lee et al. 2024 annotated. Hard negatives are
# so rare that a training part holds about a dozen, and the test part is large:
# it holds some ninety.
_ANNOTATED = {
  'patients': 110,
  'patches': 25,
  'positives': 0.31,
  'hard': 0.06,
  'prefix': 'case',
}
_POOL = {
  'patients': 24,
  'patches': 125,
  'positives': 0.0,
  'hard': 0.04,
  'prefix': 'pool',
}


@dataclasses.dataclass(frozen=True)
class Material:
  """What a study is made on.

  Attributes:
    annotated: tiles of two classes, the second positive.
    pool: tiles without a positive, of other patients; label 0.
    hard: ids of negatives that are known to be mistaken for positives, of the
      phantom alone.
    note: where the tiles come from.
  """

  annotated: LabelledTiles
  pool: LabelledTiles
  hard: frozenset[str]
  note: str


def phantom(cache_dir: str, seed: int) -> Material:
  """Returns the phantom of lymphatic invasion, rendered once.

  Args:
    cache_dir: every version of the code that draws it has a folder there.
    seed: another seed is another phantom.
  """
  root = pathlib.Path(cache_dir).expanduser()
  root = root / f'invasion_phantom_{code_hash(*_CODE)}'
  annotated, pool = (
    _rendered(root / f'{options["prefix"]}_s{seed}.npz', seed, options)
    for options in (_ANNOTATED, _POOL)
  )
  kinds = zip(
    (*annotated.id, *pool.id), (*annotated.kind, *pool.kind), strict=True
  )
  return Material(
    _tiles(annotated),
    _tiles(pool),
    frozenset(str(name) for name, kind in kinds if kind in invasion.HARD),
    f'phantom of lymphatic invasion, seed {seed}: {len(annotated.id)} annotated'
    f' patches of {_ANNOTATED["patients"]} patients,'
    f' {100 * _ANNOTATED["hard"]:g} % of the negatives hard;'
    f' {len(pool.id)} of {_POOL["patients"]} others in the pool,'
    f' {100 * _POOL["hard"]:g} % hard; {invasion.SIZE} px of'
    f' {invasion.MPP:g} um',
  )


def from_folders(
  tiles_dir: str, pool_dir: str, positive: str | None
) -> Material:
  """Returns the tiles of a folder, and those of another as the pool.

  Either may be a folder of a prepared TFDS dataset, of which the split `train`
  is taken: `lymphatic_invasion/hard/1.0.0` and `lymphatic_invasion/weak/1.0.0`
  are the data of Lee et al.

  Args:
    tiles_dir: else holds a folder for each of two classes; the patient or slide
      of a tile precedes the first underscore of its name.
    pool_dir: tiles of patients without a positive; see
      `tile_sources.from_pool`.
    positive: name of the positive class; by default the last.

  Raises:
    TileError: as of `tile_sources`, and if the classes are not two or the
      tiles of both folders differ in size.
  """
  annotated = _prepared(tiles_dir)
  if annotated is None:
    annotated = tile_sources.from_folders(tiles_dir)
  annotated = labelled_tiles.binary(annotated, positive)
  pool = _prepared(pool_dir)
  if pool is None:
    pool = tile_sources.from_pool(pool_dir, annotated.classes)
  elif pool.classes != annotated.classes:
    raise TileError(
      f'{pool_dir} has the classes {", ".join(pool.classes)}, {tiles_dir}'
      f' {", ".join(annotated.classes)}: they must agree'
    )
  if known := _named_in(pool.id, set(annotated.group)):
    raise TileError(
      f'{pool_dir}: the names of tiles tell patients of annotated tiles, whose'
      f' test part they would reach: {", ".join(known)}; take them out of the'
      ' pool'
    )
  if pool.label.any():
    raise TileError(f'{pool_dir}: {pool.label.sum()} tiles are positive')
  return _own(annotated, pool, f'{tiles_dir}, pool {pool_dir}')


def from_zip(
  zip_path: str,
  csv_path: str,
  positive: str | None,
  *,
  share: float,
  seed: int,
) -> Material:
  """Returns the tiles of a zip file; negatives of some patients are the pool.

  Patients are drawn for the pool; their positives are left out. All tiles of
  the others are annotated.

  Args:
    zip_path: see `tile_sources.from_zip`.
    csv_path: likewise.
    positive: name of the positive class; by default the last.
    share: of the patients, for the pool.
    seed: of the draw.

  Raises:
    TileError: as of `tile_sources`; if the classes are not two, or no patient
      is left for either.
  """
  tiles = labelled_tiles.binary(
    tile_sources.from_zip(zip_path, csv_path), positive
  )
  patients = np.unique(tiles.group)
  drawn = np.random.default_rng([seed, 1]).permutation(patients)
  drawn = drawn[: round(share * len(patients))]
  if not 0 < len(drawn) < len(patients):
    raise TileError(
      f'{csv_path}: {len(drawn)} of {len(patients)} patients would make the'
      f' pool (--pool_share={share:g}): some must, and some be annotated'
    )
  weak = np.isin(tiles.group, drawn)
  return _own(
    tiles.take(~weak),
    tiles.take(weak & (tiles.label == 0)),
    f'{csv_path}, negatives of {len(drawn)} of {len(patients)} patients as pool'
    f' ({int((weak & (tiles.label == 1)).sum())} positives of theirs left out)',
  )


def _named_in(ids: np.ndarray, groups: set[str]) -> list[str]:
  """Returns the groups that folders or beginnings of files are named after."""
  found = set()
  for path in map(pathlib.PurePosixPath, ids.tolist()):
    found |= {*path.parts[:-1], path.stem.split('_')[0]} & groups
  return sorted(found)


def _prepared(folder: str) -> LabelledTiles | None:
  """Returns the tiles of a prepared TFDS dataset, None if it is none."""
  if not (pathlib.Path(folder) / 'dataset_info.json').is_file():
    return None
  from data import dataset_tiles  # TensorFlow takes seconds to import.

  return dataset_tiles.from_tfds(folder, 'train')


def _own(annotated: LabelledTiles, pool: LabelledTiles, note: str) -> Material:
  if (annotated.size, annotated.channels) != (pool.size, pool.channels):
    raise TileError(
      f'annotated tiles are of {annotated.size} px and {annotated.channels}'
      f' channel(s), those of the pool of {pool.size} and {pool.channels}: cut'
      ' both alike'
    )
  both = (*annotated.id.tolist(), *pool.id.tolist())
  if len(set(both)) < len(both):
    pool = dataclasses.replace(pool, id=np.char.add('pool/', pool.id))
  return Material(annotated, pool, frozenset(), note)


def _tiles(patches: invasion.Patches) -> LabelledTiles:
  return labelled_tiles.from_arrays(
    patches.image,
    patches.label,
    patches.patient,
    invasion.CLASSES,
    ids=patches.id,
  )


def _rendered(path: pathlib.Path, seed: int, options: dict) -> invasion.Patches:
  """Returns a part of the phantom, from its file if that is there."""
  if parallel.is_first() and not path.exists():
    total = options['patients'] * options['patches']
    print(f'rendering {total} phantom patches in {path}', flush=True)
    with progress.bar(total=total, unit='patch') as bar:
      patches = invasion.make(seed=seed, progress=bar.update, **options)
    with replacing(path) as part, part.open('wb') as file:
      np.savez(file, **dataclasses.asdict(patches))
  parallel.wait_for_all(path.name)
  with np.load(path) as held:
    return invasion.Patches(**held)


def hard_rows(material: Material, ids: Sequence[str]) -> np.ndarray:
  """Returns which tiles are known to be hard negatives, bool [n]."""
  return np.array([name in material.hard for name in ids], bool)
