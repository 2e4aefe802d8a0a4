"""Saving and restoring training with Orbax."""

import contextlib
import pathlib
import shutil
import tempfile
from typing import Any

import chex
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

_decisions = ocp.training.save_decision_policies
_keep = ocp.training.preservation_policies


class Checkpoints:
  """The newest state of a training, safe against a kill at any moment.

  States cross this border as NumPy trees, equal in all processes: Orbax refuses
  the process-local arrays that pmap returns on a pod, and NumPy trees restore
  onto any number of devices.
  """

  def __init__(self, root: str | pathlib.Path):
    root, self._link = pathlib.Path(root).absolute(), contextlib.ExitStack()
    if set('[]*?\\').intersection(str(root)):
      # Orbax takes these for a pattern, and cannot load what it saved there.
      root.mkdir(parents=True, exist_ok=True)
      folder = self._link.enter_context(tempfile.TemporaryDirectory())
      link = pathlib.Path(folder, 'checkpoints')
      link.symlink_to(root)
      root = link
    if jax.process_index() == 0:
      # What a killed save left; the checkpoint before it is intact.
      for leftover in root.glob('*.orbax-checkpoint-tmp'):
        shutil.rmtree(leftover)
    self._checkpointer = ocp.training.Checkpointer(
      root,
      save_decision_policy=_decisions.FixedIntervalPolicy(1),
      preservation_policy=_keep.LatestN(1),
    )

  def save(self, step: int, tree: Any) -> None:
    """Writes `tree` atomically, then drops the one before it."""
    self._checkpointer.save(step, _arrays(tree), overwrite=True)

  def latest(self, like: Any) -> Any | None:
    """Returns the newest tree, or None before the first save.

    Args:
      like: a tree of the structure, shapes and types that are expected.

    Raises:
      AssertionError: if a leaf was stored with another shape; types follow
        `like`.
    """
    if self._checkpointer.latest is None:
      return None
    like = _arrays(like)
    tree = self._checkpointer.load(self._checkpointer.latest, like)
    # Orbax returns the stored shape even where `like` asks for another.
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, like)
    return tree

  def close(self) -> None:
    self._checkpointer.close()
    self._link.close()


def _arrays(tree: Any) -> Any:
  return jax.tree.map(np.asarray, jax.device_get(tree))
