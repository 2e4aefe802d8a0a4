"""Saving and restoring training with Orbax.

Beside the files of a checkpoint stands `sha256.json`, their hashes: what was
changed since is never taken for parameters.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any
import warnings

import chex
import jax
import numpy as np

from kmil_jax import checksums, parallel

_METADATA, _STATE = '_CHECKPOINT_METADATA', 'state'  # Orbax's names.


class CheckpointError(OSError):
  """A checkpoint that cannot be used; names the file."""


class Checkpoints:
  """The newest states of a training, safe against a kill at any moment.

  Two are kept: where the files of the newest are damaged, the one before it
  serves, and the next save removes the other.

  States cross this border as NumPy trees, equal in all processes: Orbax refuses
  the process-local arrays that pmap returns on a pod, and NumPy trees restore
  onto any number of devices.

  Attributes:
    damaged: a damaged file of each checkpoint that is passed over; in process
      0 alone.
  """

  def __init__(self, root: str | pathlib.Path):
    self._root = root = pathlib.Path(root).absolute()
    self._stack = contextlib.ExitStack()
    self._plain = self._stack.enter_context(_plain(root))
    self._checkpointer, self.damaged, newest = None, [], -1
    if parallel.is_first():
      root.mkdir(parents=True, exist_ok=True)
      # What a killed save left; the checkpoint before it is intact.
      for leftover in self._plain.glob('*.orbax-checkpoint-tmp'):
        shutil.rmtree(leftover)
      for step in sorted(_steps(root)):
        if file := damage(root / f'{step}'):
          self.damaged.append(file)
        else:
          newest = step
    self._newest = int(parallel.agree(newest))

  def check_space(self, like: Any) -> None:
    """Warns if the disk has no room for the states that a training keeps.

    Args:
      like: a tree of their structure, shapes and types.
    """
    if not parallel.is_first():
      return
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(_arrays(like)))
    # Two are kept while a third is written.
    needed = size * max(3 - len(_steps(self._root)), 1)
    if (free := shutil.disk_usage(self._root).free) < needed:
      warnings.warn(
        f'{self._root}: the checkpoints of this training take up to'
        f' {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free. Free'
        ' some space, or give another --results_dir.',
        stacklevel=2,
      )

  def save(self, step: int, tree: Any) -> None:
    """Writes `tree` atomically, then drops all but the one before it."""
    self._checkpointer = self._checkpointer or self._writer()
    self._checkpointer.save(step, _arrays(tree), overwrite=True)
    if parallel.is_first():
      folder = self._root / f'{step}'
      part = folder / f'.{checksums.SUMS}'
      part.write_text(json.dumps(_sums(folder), indent=2))
      _sync(*folder.rglob('*'))
      part.replace(folder / checksums.SUMS)
      _sync(folder, self._root)
    self._newest = step

  def latest(self, like: Any) -> Any | None:
    """Returns the newest tree that is sound, or None if there is none.

    Args:
      like: a tree of the structure, shapes and types that are expected.

    Raises:
      AssertionError: if a leaf was stored with another shape; types follow
        `like`.
    """
    if self._newest < 0:
      return None
    from orbax.checkpoint import v1 as ocp  # Takes a quarter of a second.

    like = _arrays(like)
    path = self._plain / f'{self._newest}'
    tree = ocp.load_checkpointables(path, {_STATE: like})[_STATE]
    # Orbax returns the stored shape even where `like` asks for another.
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, like)
    return tree

  def close(self) -> None:
    self._stack.close()

  def _writer(self) -> Any:
    """Returns Orbax's, which reads all that is there: the damaged go first."""
    from orbax.checkpoint import v1 as ocp  # Takes a quarter of a second.

    for file in self.damaged:
      shutil.rmtree(self._root / file.relative_to(self._root).parts[0])
    parallel.wait_for_all('removed')
    decisions = ocp.training.save_decision_policies
    keep = ocp.training.preservation_policies
    return self._stack.enter_context(
      ocp.training.Checkpointer(
        self._plain,
        save_decision_policy=decisions.FixedIntervalPolicy(1),
        preservation_policy=keep.LatestN(2),
      )
    )


def damage(folder: pathlib.Path) -> pathlib.Path | None:
  """Returns a file of a checkpoint that is missing or changed, None if none is.

  One without hashes, which an older version wrote, or whose save was killed, is
  sound if it is whole: Orbax renames a folder once all of it is there.

  Args:
    folder: of one checkpoint, if present.
  """
  if folder.exists() and not (folder / _METADATA).exists():
    return folder / _METADATA
  return checksums.damage(folder)


@contextlib.contextmanager
def _plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path of a folder that Orbax does not take for a pattern."""
  if not set('[]*?\\').intersection(str(folder)):
    yield folder
    return
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as parent:
    link = pathlib.Path(parent, 'checkpoints')
    link.symlink_to(folder)
    yield link


def _sums(folder: pathlib.Path) -> dict[str, str]:
  """Returns the hashes of a checkpoint's files."""
  return {
    path.relative_to(folder).as_posix(): checksums.of_file(path)
    for path in sorted(folder.rglob('*'))
    if path.is_file() and not path.name.endswith(checksums.SUMS)
  }


def _sync(*paths: pathlib.Path) -> None:
  """Waits until files and folders are on the disk."""
  for path in paths:
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _steps(root: pathlib.Path) -> set[int]:
  names = [path.name for path in root.iterdir()]
  return {int(name) for name in names if name.isdecimal()}


def _arrays(tree: Any) -> Any:
  return jax.tree.map(np.asarray, jax.device_get(tree))
