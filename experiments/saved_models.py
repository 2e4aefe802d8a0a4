"""Models of finished folds: kept, fetched, and put to work on a cohort."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import choosing, training
from experiments.feed import Feed
from experiments.training import Settings, Trained
from kmil_jax import checkpoint, inference, train
from kmil_jax.inference import Design


@dataclasses.dataclass(frozen=True)
class Model:
  """One fold's parameters, NumPy."""

  params: Any
  chooser_params: Any  # of the first stage, None without one


def save(folder: pathlib.Path, trained: Trained, run: int) -> None:
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
  feed: Feed, settings: Settings, models: Sequence[Model]
) -> np.ndarray:
  """Returns what every model says of every slide, [R, n, C].

  KMIL's instances are chosen by each model's own first stage.

  Args:
    feed: a cohort, which none of the models has seen.
    settings: of the training.
    models: R models.
  """
  stack = lambda *leaves: np.stack(leaves)
  keep = None
  if settings.has_chooser:
    stage = training.chooser_stage(feed, settings, len(models))
    keep = choosing.choose(
      feed,
      stage.trainer,
      jax.tree.map(stack, *(model.chooser_params for model in models)),
      np.arange(len(models)),
      [settings.choice] * len(models),
    )
  stage = training.model_stage(feed, settings, len(models))
  params = jax.tree.map(stack, *(model.params for model in models))
  state = _blank(feed, stage, keep).replace(params=params, best=params)
  program = feed.program(stage.trainer, stage.layout)
  everything = np.ones(len(feed.cohort.label), bool)
  return np.stack(
    training.evaluate(feed, stage, program, state, [everything] * len(models))
  )


def _blank(
  feed: Feed, stage: training.Stage, keep: np.ndarray | None = None
) -> train.RunState:
  """Returns as many untrained runs as the stage has."""
  runs = stage.layout.num_runs
  return stage.trainer.init(
    feed.cohort.width,
    seed=np.zeros(runs, np.uint32),
    fold=np.arange(runs),
    trains=np.zeros((runs, len(feed.cohort.label)), bool),
    keep=keep,
  )
