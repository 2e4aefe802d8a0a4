"""Runs of reverse distillation as device programs: a step, and a scoring."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from kmil_jax import parallel
from kmil_jax.distill_train import (
  Distiller,
  DistillState,
  Patches,
  Variables,
  keep_best,
)

# Steps that may wait: more of them deadlock simulated devices.
_STEPS_AHEAD = 16

_keep_best = jax.jit(keep_best, donate_argnums=0)
_first = lambda tree: jax.tree.map(lambda x: x[0], tree)


class Program:
  """Step and scoring of R runs, compiled once each for any R.

  Runs are in groups of as many as there are devices, which take turns. A tree
  of R runs is a list here, with a tree on the devices for each group.

  Args:
    distiller: of all runs.
    num_runs: R.
  """

  def __init__(self, distiller: Distiller, num_runs: int):
    size = parallel.num_devices()
    self._groups = [
      np.arange(start, min(start + size, num_runs))
      for start in range(0, num_runs, size)
    ]
    self._layouts = [parallel.RunsOverDevices(len(g)) for g in self._groups]
    self._step, self._score = _programs(distiller)

  def put(self, tree: Any) -> list[Any]:
    """Sends NumPy leaves [R, ...] to the devices of their runs."""
    return [
      layout.put(jax.tree.map(lambda x: np.asarray(x)[group], tree))  # noqa: B023
      for layout, group in zip(self._layouts, self._groups, strict=True)
    ]

  def gather(self, trees: list[Any]) -> Any:
    """Returns NumPy leaves [R, ...] of what `put` made."""
    parts = [
      layout.gather(tree)
      for layout, tree in zip(self._layouts, trees, strict=True)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  def train(
    self, states: list[DistillState], patches: Patches, order: np.ndarray
  ) -> tuple[list[DistillState], np.ndarray]:
    """Trains one epoch.

    Args:
      states: R runs, donated.
      patches: replicated.
      order: see `distill_runs.orders`.

    Returns:
      The runs and the mean loss of each, [R].
    """
    lengths = (order[..., 0] >= 0).sum(1)
    zero = self.put(np.zeros(len(order), np.float32))
    states = [s.replace(loss=z) for s, z in zip(states, zero, strict=True)]
    # A group's runs end together: what is shorter waits.
    for place, group in enumerate(self._groups):
      state, put = states[place], self._layouts[place].put
      for step in range(lengths[group].max()):
        index = put(order[group, step])
        state = self._step(state.replace(index=index), patches, None)
        if step % _STEPS_AHEAD == 0:
          jax.block_until_ready(state.loss)
      states[place] = state
    return states, self.gather([s.loss for s in states]) / lengths

  def keep_best(
    self, states: list[DistillState], improved: np.ndarray
  ) -> list[DistillState]:
    """Copies the variables of the runs in `improved`, bool [R], to `best`."""
    return [
      _keep_best(*pair) for pair in zip(states, self.put(improved), strict=True)
    ]

  def score(
    self,
    variables: list[Variables],
    teacher: Variables,
    image: np.ndarray,
    *,
    batch: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores patches by every run.

    Args:
      variables: of R students.
      teacher: its variables, replicated.
      image: uint8 [T, S, S, 3].
      batch: patches at a time.

    Returns:
      Mean and maximum of the anomaly maps, [R, T] each.
    """
    parts = []
    for start in range(0, len(image), batch):
      # The last batch is completed, to be of the shape that is compiled.
      rows = np.arange(start, start + batch) % len(image)
      # Every device scores all patches, by its own run.
      images = np.stack([image[rows]] * parallel.num_local_devices())
      told = [self._score(v, teacher, images) for v in variables]
      parts.append([
        np.concatenate([
          x[: len(group)] for x, group in zip(xs, self._groups, strict=True)
        ])
        for xs in zip(*told, strict=True)
      ])  # fmt: skip
    mean, highest = (np.concatenate(x, 1) for x in zip(*parts, strict=True))
    return mean[:, : len(image)], highest[:, : len(image)]


@functools.lru_cache(maxsize=4)
def _programs(distiller: Distiller) -> tuple[Callable, Callable]:
  """Returns the pmapped step and scoring of one run per device."""

  def step(state, patches, _):
    return jax.tree.map(
      lambda x: x[None], distiller.step(_first(state), patches)
    )

  def score(variables, teacher, image):
    return distiller.score(_first(variables), teacher, image)

  layout = parallel.RunsOverDevices(1)
  return layout.pmap_train(step), layout.pmap_eval(score)
