"""Trains a patch classifier into a folder, or loads the one that is there."""

from collections.abc import Iterator
import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from data import augment
from data.labelled_tiles import LabelledTiles, TileError
from experiments import (
  encoder,
  patch_files,
  patch_inputs,
  provenance,
)
from experiments.run import progress
from kmil_jax import (
  checkpoint,
  loop,
  models,
  parallel,
  port,
)
from kmil_jax.programs import Program
from kmil_jax.tasks import tiles as tile_task
from kmil_jax.tasks.tiles import PatchError, TileRuns, TileTask
from kmil_jax.train import Variables, draw
from kmil_jax.types import PatchRecipe, Tiles

# What is raised for faults of the user's tiles, weights and wishes.
ERRORS = (TileError, PatchError, port.PortError)

# Of metrics.jsonl, and of the training's history.
COLUMNS = {
  'train_loss': 'train_loss',
  'train_accuracy': 'train_accuracy',
  'val_loss': 'val_loss',
  'val_accuracy': 'val_accuracy',
  'val_f1_macro': 'val_f1_macro',
  'val_auroc': 'val_auroc',
  'learning_rate': 'learning_rate',
  'tiles_per_second': 'examples_per_second',
  'best_epoch': 'best_epoch',
}
_MODEL = 'model.safetensors'


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A trained patch classifier.

  Attributes:
    variables: of the epoch that validation chose, NumPy.
    epoch: that one, from 0.
    history: one dict per epoch, `epoch` and `COLUMNS`; an AUROC that is not
      defined is None.
    recipe: that it was trained with.
    classes: names of the classes.
    task: what was trained.
  """

  variables: Variables
  epoch: int
  history: list[dict[str, Any]]
  recipe: PatchRecipe
  classes: tuple[str, ...]
  task: TileTask

  @property
  def model(self) -> nn.Module:
    """Flax module of T tiles."""
    return self.task.model

  def predict(self, tiles: LabelledTiles) -> tuple[np.ndarray, np.ndarray]:
    """Returns what it says of n tiles, each by itself, in their order.

    Returns:
      Probabilities [n, C] and features [n, F], float32.
    """
    if not len(tiles):
      raise TileError('found no tile to evaluate')
    program, models = self._on_devices
    out = program.evaluate(models, lambda: _in_order(tiles, self.recipe))
    return out['prob'], out['features']

  @functools.cached_property
  def _on_devices(self) -> tuple[Program, list[Any]]:
    program = tile_task.program(self.task)
    return program, program.put((_one_run(self.variables), _runs(0)))


def train(
  folder: pathlib.Path,
  *,
  model: str,
  train: LabelledTiles,
  val: LabelledTiles,
  recipe: PatchRecipe,
  seed: int,
  weights: str | None = None,
  freeze: str = '',
  precision: str = 'float32',
  name: str = '',
  tensorboard: bool = False,
) -> Trained:
  """Trains a classifier, or goes on with it, or loads it if it is done.

  The folder gets `config.json`, `metrics.jsonl` with a line per epoch, and at
  last `model.safetensors`, see `patch_files`. Until then `checkpoints` holds
  the newest state: training that was killed goes on from there and ends in the
  same model.

  Args:
    folder: of this training alone.
    model: a name in `CLASSIFIERS`.
    train: to train on.
    val: by which the epoch is chosen.
    recipe: of the training.
    seed: of parameters, order, augmentation and dropout.
    weights: a file to start from, see `patch_files.start`; it decides how tiles
      are normalised.
    freeze: modules that stay as they are, see `TileTask`.
    precision: 'float32' or 'bfloat16', of the computation.
    name: before the progress bar; that of the folder by default.
    tensorboard: writes event files beside metrics.jsonl, too.

  Raises:
    PatchError: if the settings do not fit the tiles, the model or the devices.
    provenance.ResultsError: if the folder was begun with other settings or
      tiles.
    TileError, port.PortError, PatchError: for faults of tiles,
      weights and `freeze`.
    FloatingPointError: if the loss was not finite before an epoch could be
      kept; later ones are recorded, see `progress.raise_if_diverged`.
  """
  if weights:
    recipe = patch_files.as_trained(weights, model, recipe)
  patch_inputs.check(model, train, val, recipe)
  side = recipe.input_size or train.size
  task = _task(
    model,
    models.CLASSIFIERS[model],
    # What programs do not depend on is left out: they serve any of these.
    PatchRecipe(
      weight_decay=recipe.weight_decay,
      betas=recipe.betas,
      binary=recipe.binary,
      class_weight=recipe.class_weight,
    ),
    len(train.classes),
    (side, side, train.channels),
    precision,
    freeze,
  )
  settings = {
    'model': model,
    'seed': seed,
    'precision': precision,
    'freeze': freeze,
    'classes': train.classes,
  } | dataclasses.asdict(recipe)
  if parallel.is_first():
    inputs = patch_inputs.hashes(train, val, weights)
    provenance.open_folder(folder, settings, settings, inputs)
  parallel.wait_for_all('folder')
  path = folder / _MODEL
  if not parallel.agree(path.exists()):
    start = draw(task, _runs(seed))
    if weights:
      one = jax.tree.map(lambda x: x[0], start)
      start = _one_run(patch_files.start(weights, model, one))
    shown = progress.Progress(
      [[folder]],
      COLUMNS,
      recipe.epochs,
      name=name or folder.name,
      unit='tile',
      steps=-(-len(train) // recipe.batch) * recipe.batch,
      tensorboard=tensorboard,
    )
    variables, epoch = _fit(
      folder, task, recipe, seed, start, train, val, shown
    )
    if parallel.is_first():
      patch_files.save(path, variables, epoch, recipe)
  parallel.wait_for_all('model')
  if parallel.is_first():
    shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  variables, epoch = patch_files.load(path)
  lines = (folder / progress.METRICS).read_text(encoding='utf-8').splitlines()
  history = [json.loads(line) for line in lines]
  return Trained(variables, epoch, history, recipe, train.classes, task)


def _fit(
  folder: pathlib.Path,
  task: TileTask,
  recipe: PatchRecipe,
  seed: int,
  start: Variables,
  train: LabelledTiles,
  val: LabelledTiles,
  shown: progress.Progress,
) -> tuple[Variables, int]:
  """Returns the variables that validation chose, and the epoch they are of."""
  from data import pipeline  # TensorFlow takes seconds to import.

  def batches(epoch):
    shown.advance(epoch, 0)
    for step, batch in enumerate(
      pipeline.tile_batches(
        train,
        batch=recipe.batch,
        epoch=epoch,
        seed=seed,
        policy=augment.PRESETS[recipe.augment],
        balanced=recipe.balanced,
        input_size=recipe.input_size,
        mean=recipe.mean,
        std=recipe.std,
      )
    ):
      yield _tiles(batch)
      shown.advance(epoch, (step + 1) * recipe.batch)

  saved = checkpoint.Checkpoints(folder / 'checkpoints')
  try:
    result = loop.fit(
      tile_task.program(task, batches),
      recipe,
      _runs(seed),
      start,
      validation=lambda: _in_order(val, recipe),
      checkpoints=saved,
      report=shown.report,
    )
  finally:
    saved.close()
    shown.close()
  failed, epoch = int(result.failed[0]), int(result.epoch[0])
  if parallel.is_first():
    stages = {'network': (failed, epoch)} if failed >= 0 else {}
    progress.record_divergence(folder, stages)
  parallel.wait_for_all('trained')
  if result.lost[0]:
    progress.raise_if_diverged([folder])
  return jax.tree.map(lambda x: x[0], result.variables), epoch


def _runs(seed: int) -> TileRuns:
  return TileRuns(seed=np.array([seed], np.uint32))


def _one_run(variables: Variables) -> Variables:
  """Adds the axis of runs."""
  variables = {'batch_stats': {}, **variables}
  return jax.tree.map(lambda x: np.asarray(x)[None], variables)


@functools.lru_cache(maxsize=16)
def _task(
  model: str,
  spec: Any,
  recipe: PatchRecipe,
  num_classes: int,
  shape: tuple[int, int, int],
  precision: str,
  freeze: str,
) -> TileTask:
  """Returns the same task, and programs, for trainings that can share it."""
  return TileTask(
    spec, recipe, num_classes, shape, precision=precision, freeze=freeze
  )


def _in_order(tiles: LabelledTiles, recipe: PatchRecipe) -> Iterator[Tiles]:
  from data import pipeline

  per_device = encoder.default_batch() // parallel.num_local_devices()
  for batch in pipeline.tile_batches(
    tiles,
    batch=per_device * parallel.num_devices(),
    input_size=recipe.input_size,
    mean=recipe.mean,
    std=recipe.std,
  ):
    yield _tiles(batch)


def _tiles(batch: dict[str, np.ndarray]) -> Tiles:
  return Tiles(
    image=batch['image'], label=batch['label'], weight=batch['weight']
  )
