"""Trains a patch classifier into a folder, or loads the one that is there."""

from collections.abc import Iterator
import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

from flax import linen as nn
import numpy as np

from data import augment
from data.labelled_tiles import LabelledTiles, TileError
from experiments import patch_files, patch_inputs, patch_progress, provenance
from kmil_jax import (
  checkpoint,
  encoder,
  freezing,
  models,
  parallel,
  patch_fit,
  patch_train,
  port,
)
from kmil_jax.patch_fit import Program
from kmil_jax.patch_train import PatchError, Variables
from kmil_jax.types import PatchRecipe, Tiles

# What is raised for faults of the user's tiles, weights and wishes.
ERRORS = (TileError, PatchError, freezing.FreezeError, port.PortError)

_MODEL = 'model.safetensors'


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A trained patch classifier.

  Attributes:
    variables: of the epoch that validation chose, NumPy.
    epoch: that one, from 0.
    history: one dict per epoch, `epoch` and `patch_fit.COLUMNS`; an AUROC that
      is not defined is None.
    recipe: that it was trained with.
    classes: names of the classes.
    program: its compiled step and prediction.
  """

  variables: Variables
  epoch: int
  history: list[dict[str, Any]]
  recipe: PatchRecipe
  classes: tuple[str, ...]
  program: Program

  @property
  def model(self) -> nn.Module:
    """Flax module of T tiles."""
    return self.program.trainer.model

  def predict(self, tiles: LabelledTiles) -> tuple[np.ndarray, np.ndarray]:
    """Returns what it says of n tiles, each by itself, in their order.

    Returns:
      Probabilities [n, C] and features [n, F], float32.
    """
    if not len(tiles):
      raise TileError('found no tile to evaluate')
    said = self.program.predict(self._replicated, _in_order(tiles, self.recipe))
    return said['prob'], said['features']

  @functools.cached_property
  def _replicated(self) -> Variables:
    return parallel.replicate(self.variables)


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
    freeze: modules that stay as they are, see `freezing`.
    precision: 'float32' or 'bfloat16', of the computation.
    name: before the progress bar; that of the folder by default.
    tensorboard: writes event files beside metrics.jsonl, too.

  Raises:
    PatchError: if the settings do not fit the tiles, the model or the devices.
    provenance.ResultsError: if the folder was begun with other settings or
      tiles.
    TileError, port.PortError, freezing.FreezeError: for faults of tiles,
      weights and `freeze`.
    FloatingPointError: if a loss is not finite.
  """
  if weights:
    recipe = patch_files.as_trained(weights, model, recipe)
  patch_inputs.check(model, train, val, recipe)
  program = _program(
    model,
    models.CLASSIFIERS[model],
    # What the program does not depend on is left out: it serves any of these.
    PatchRecipe(
      weight_decay=recipe.weight_decay,
      betas=recipe.betas,
      binary=recipe.binary,
      class_weight=recipe.class_weight,
    ),
    len(train.classes),
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
    side = recipe.input_size or train.size
    start = program.trainer.draw((side, side, train.channels), seed)
    if weights:
      start = patch_files.start(weights, model, start)
    state = program.trainer.init(start, seed)
    shown = patch_progress.Progress(
      folder, name or folder.name, len(train), recipe, tensorboard
    )
    fitted = _fit(folder, program, recipe, state, train, val, shown)
    if parallel.is_first():
      patch_files.save(path, fitted.variables, fitted.epoch, recipe)
  parallel.wait_for_all('model')
  if parallel.is_first():
    shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  variables, epoch = patch_files.load(path)
  lines = (
    (folder / patch_progress.METRICS).read_text(encoding='utf-8').splitlines()
  )
  history = [json.loads(line) for line in lines]
  return Trained(variables, epoch, history, recipe, train.classes, program)


def _fit(
  folder: pathlib.Path,
  program: Program,
  recipe: PatchRecipe,
  state: patch_train.TileState,
  train: LabelledTiles,
  val: LabelledTiles,
  shown: patch_progress.Progress,
) -> patch_fit.Fitted:
  from data import tile_pipeline  # TensorFlow takes seconds to import.

  def batches(epoch):
    shown.begin(epoch)
    for batch in tile_pipeline.batches(
      train,
      batch=recipe.batch,
      epoch=epoch,
      seed=int(state.seed),
      policy=augment.PRESETS[recipe.augment],
      balanced=recipe.balanced,
      input_size=recipe.input_size,
      mean=recipe.mean,
      std=recipe.std,
    ):
      yield _tiles(batch)
      shown.advance(recipe.batch)

  saved = checkpoint.Checkpoints(folder / 'checkpoints')
  try:
    return patch_fit.fit(
      program,
      recipe,
      state,
      train=batches,
      val=lambda: _in_order(val, recipe),
      label=val.label,
      checkpoints=saved,
      report=shown.report,
    )
  finally:
    saved.close()
    shown.close()


@functools.lru_cache(maxsize=16)
def _program(
  model: str,
  spec: Any,
  recipe: PatchRecipe,
  num_classes: int,
  precision: str,
  freeze: str,
) -> Program:
  """Returns the same program for trainings that can share it."""
  return Program(
    patch_train.PatchTrainer(
      spec, recipe, num_classes, precision=precision, freeze=freeze
    )
  )


def _in_order(tiles: LabelledTiles, recipe: PatchRecipe) -> Iterator[Tiles]:
  from data import tile_pipeline

  for batch in tile_pipeline.ordered_batches(
    tiles,
    batch=encoder.default_batch(),
    input_size=recipe.input_size,
    mean=recipe.mean,
    std=recipe.std,
  ):
    yield _tiles(batch)


def _tiles(batch: dict[str, np.ndarray]) -> Tiles:
  return Tiles(
    image=batch['image'], label=batch['label'], weight=batch['weight']
  )
