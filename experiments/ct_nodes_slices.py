"""Cuts the slices of all nodes of a table, once."""

from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import os
import pathlib

import numpy as np

from data.ct import VolumeError, nodes, volumes
from data.ct.table import Row
from data.files import replacing
from experiments.run import progress
from kmil_jax import parallel

LARGEST = 162  # Isotropic voxels, 128 mm: the largest box there can be.
_PATIENCE = 0.5  # Seconds before a bar shows.
_CODE = pathlib.Path(nodes.__file__).parent


@dataclasses.dataclass(frozen=True)
class Slices:
  """n slices of m nodes, each slice as large as its volume has room for.

  Nodes that the first or last slice of their volume cuts have no slices.
  """

  id: np.ndarray  # [n] str, unique
  node: np.ndarray  # [n] int, place among the nodes
  z: np.ndarray  # [n] mm from the volume's lower face
  side: np.ndarray  # [n] int, S, isotropic voxels; even
  hu: np.ndarray  # [sum of S x S] float32, one slice after the other
  inside: np.ndarray  # [sum of S x S] bool, the node
  patient: np.ndarray  # [m] str
  image: np.ndarray  # [m] str, the volume's path
  label: np.ndarray  # [m] int, place among the classes
  extent: np.ndarray  # [m] larger side of its bounding box in a slice, mm
  volume: np.ndarray  # [m] mm^3
  room: np.ndarray  # [m] int, isotropic voxels
  is_cut: np.ndarray  # [m] bool
  specks: np.ndarray  # [] int, parts of masks too small to be nodes

  def middle(self, i: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """HU and node in the middle of slice i, [side, side] each.

    Args:
      i: place of the slice.
      side: even, and at most that of the slice.
    """
    whole = int(self.side[i])
    start = int((self.side[:i].astype(np.int64) ** 2).sum())
    at = slice(start, start + whole**2)
    off = (whole - side) // 2
    keep = slice(off, off + side)
    return tuple(
      array[at].reshape(whole, whole)[keep, keep]
      for array in (self.hu, self.inside)
    )


def collect(
  rows: Sequence[Row],
  classes: Sequence[str],
  *,
  mode: str,
  every: bool,
  cache_dir: pathlib.Path,
) -> Slices:
  """Cuts the slices, or loads them where that was done before.

  Args:
    rows: of `table.read`, sorted as there.
    classes: the labels.
    mode: how masks are resampled.
    every: all slices of a node, or the one in which it is largest.
    cache_dir: where the slices are kept, by files and settings.

  Raises:
    VolumeError: naming all volumes and masks that cannot be used, and why.
  """
  path = cache_dir / f'ct_slices_{_key(rows, classes, mode, every)}.npz'
  if parallel.is_first() and not path.exists():
    found = _cut_all(rows, classes, mode, every)
    with replacing(path) as part, part.open('wb') as file:
      np.savez(file, **dataclasses.asdict(found))
  parallel.wait_for_all('ct_slices')
  with np.load(path) as held:
    return Slices(**held)


def _cut_all(
  rows: Sequence[Row], classes: Sequence[str], mode: str, every: bool
) -> Slices:
  columns = {field.name: [] for field in dataclasses.fields(Slices)}
  problems, specks = [], 0
  root = os.path.commonpath([row.mask.parent for row in rows])
  groups = itertools.groupby(
    progress.bar(rows, desc='nodes', unit='row', delay=_PATIENCE),
    lambda row: (row.image, row.mask),
  )
  for (image, mask_path), group in groups:
    try:
      volume = volumes.read(image)
      mask = volumes.read_mask(mask_path, volume)
    except VolumeError as e:
      problems.append(str(e))
      continue
    for row in group:
      numbered = nodes.parts(mask, row.value)
      if not numbered.any():
        problems.append(f'{mask_path}: no voxel of value {row.value}')
      found, small = nodes.find(numbered, volume.spacing)
      specks += small
      for node in found:
        scan = mask_path.relative_to(root).as_posix()
        name = f'{row.patient}/{scan}/{row.value or 0}.{node.index}'
        columns['patient'].append(row.patient)
        columns['image'].append(str(image))
        columns['label'].append(classes.index(row.label))
        for key in ('extent', 'volume', 'room', 'is_cut'):
          columns[key].append(getattr(node, key))
        side = min(LARGEST, node.room)
        if node.is_cut or not side:
          continue
        cuts = nodes.cut(volume, numbered, node, side, mode=mode, every=every)
        for k, piece in enumerate(cuts):
          columns['id'].append(f'{name}.{k}')
          columns['node'].append(len(columns['patient']) - 1)
          columns['z'].append(piece.z)
          columns['side'].append(side)
          columns['hu'].append(piece.hu.ravel())
          columns['inside'].append(piece.inside.ravel())
  if problems:
    raise VolumeError.listing(problems, 'volumes or masks that cannot be used')
  if not columns['id']:
    raise VolumeError('no node that is inside its volume: nothing to classify')
  for key in ('hu', 'inside'):
    columns[key] = np.concatenate(columns[key])
  columns['specks'] = specks
  return Slices(**{key: np.array(value) for key, value in columns.items()})


def _key(
  rows: Sequence[Row], classes: Sequence[str], mode: str, every: bool
) -> str:
  """Hash of what slices are a function of; of files, their size and age."""
  digest = hashlib.sha256(repr((mode, every, LARGEST, *classes)).encode())
  for row in rows:
    digest.update(repr(dataclasses.astuple(row)).encode())
    files = [row.mask, row.image]
    if row.image.is_dir():
      files = [row.mask, *sorted(row.image.iterdir())]
    for file in files:
      stat = file.stat()
      digest.update(f'{file} {stat.st_size} {stat.st_mtime_ns}'.encode())
  for path in (*sorted(_CODE.glob('*.py')), pathlib.Path(__file__)):
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]
