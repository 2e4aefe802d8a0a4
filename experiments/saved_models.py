"""Models of finished folds: kept, fetched, and put to work on a cohort."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from kmil_jax import checkpoint, folds, inference
from kmil_jax.folds import FoldResults, Settings
from kmil_jax.inference import Design
from kmil_jax.tasks.bags import BagLoader, BagRuns


@dataclasses.dataclass(frozen=True)
class Model:
  """One fold's parameters, NumPy."""

  params: Any
  chooser_params: Any  # of the first stage, None without one


def save(folder: pathlib.Path, trained: FoldResults, run: int) -> None:
  """Keeps the parameters of one of R runs in `<folder>/checkpoints`."""
  mine = lambda tree: jax.tree.map(lambda x: x[run], tree)
  saved = checkpoint.Checkpoints(folder / 'checkpoints')
  saved.save(
    0,
    {
      'params': mine(trained.params),
      'chooser_params': mine(trained.chooser_params),
      'epoch': np.int64(trained.best_epoch[run]),
    },
  )
  saved.close()


def load(folder: pathlib.Path, design: Design) -> Model:
  """Fetches what `save` kept of one fold.

  Args:
    folder: of the fold.
    design: of the training.

  Raises:
    FileNotFoundError: if the fold has no model.
    AssertionError: if its model has other shapes.
  """
  networks = design.like()
  like = {
    'params': networks[inference.MODEL],
    'chooser_params': networks.get(inference.CHOOSER),
    'epoch': np.int64(0),
  }
  saved = checkpoint.Checkpoints(folder / 'checkpoints')
  found = saved.latest(like)
  saved.close()
  if found is None:
    raise FileNotFoundError(f'{folder / "checkpoints"}: no model was kept')
  return Model(found['params'], found['chooser_params'])


def predict(
  bags: BagLoader, settings: Settings, models: Sequence[Model]
) -> np.ndarray:
  """Returns what every model says of every slide, [R, n, C].

  KMIL's instances are chosen by each model's own first stage.

  Args:
    bags: of a cohort, which none of the models has seen.
    settings: of the training.
    models: R models.
  """
  stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
  count, size = len(models), len(bags.store.length)
  keep = None
  if settings.has_chooser:
    keep = folds.choose(
      bags,
      folds.chooser_stage(bags, settings).task,
      stack([model.chooser_params for model in models]),
      np.arange(count),
      [settings.choice] * count,
    )
  stage = folds.model_stage(bags, settings)
  program = bags.program(stage.task, count, stage.recipe)
  runs = BagRuns(
    seed=np.zeros(count, np.uint32),
    fold=np.zeros(count, np.uint32),
    trains=np.zeros((count, size), bool),
    keep=keep,
  )
  variables = {'params': stack([model.params for model in models])}
  put = program.put((variables, runs))
  return np.stack(folds.evaluate(program, put, np.ones((count, size), bool)))
