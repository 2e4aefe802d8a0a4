"""Trains a patch classifier for a study, or loads the one that is there.

  trained = training.train(
    folder, 'resnet18', model='resnet18', train=tiles, val=others,
    recipe=recipe, options=options, seed=seed,
  )
  prob, features = trained.predict(test)

A trained classifier is a .safetensors file whose names are paths in Flax, as
`params/layer1_0/conv1/kernel`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from data import labelled_tiles
from data.labelled_tiles import LabelledTiles, TileError
from experiments.patches import tiles as patch_tiles
from experiments.run import progress, results, start
from experiments.run.options import OptionError, field, free
from kmil_jax import augment, loop, models, parallel, port, saliency, selection
from kmil_jax.programs import Program
from kmil_jax.tasks import tiles as tile_task
from kmil_jax.tasks.tiles import PatchError, TileRuns, TileTask
from kmil_jax.train import Variables, draw
from kmil_jax.types import PatchRecipe, Tiles

# Columns of metrics.jsonl, and their names in the training's history.
COLUMNS = {
  name.replace('examples', 'tiles'): name
  for name in loop.COLUMNS
  if name != 'val_threshold'
}
MODEL = 'model.safetensors'
_CAM_BATCH = 16
_ABOUT = 'kmil_jax.input'  # Metadata of `MODEL`.
_NORMAL = ('mean', 'std')  # How tiles are normalised.
_OF_PROGRAM = (
  *_NORMAL,
  'weight_decay',
  'betas',
  'binary',
  'class_weight',
  'augment',
)
# Of ct_nodes, whose other networks start at random and are trained in full.
_STARTED = {'networks': ('resnet50',)}
# The same task, and programs, for trainings that can share it.
_task = functools.lru_cache(maxsize=16)(TileTask)


@dataclasses.dataclass(frozen=True)
class Training(start.Training):
  """How networks are trained; by default as in the paper.

  Fields that a `PatchRecipe` has, too, change it; see `study.Paper.here`.
  """

  weight_decay: float | None = field(
    None, 'Weight decay, added to the gradient.', least=0
  )
  batch: int | None = field(
    None,
    'Tiles per training step, over all devices.',
    flag='batch_size',
    least=1,
  )
  input_size: int | None = field(
    None, 'Resize tiles to this side for the network, in pixels.', least=8
  )
  augment: str | None = field(
    None,
    'How training tiles are changed at random.',
    choices=tuple(augment.PRESETS),
  )
  schedule: str | None = field(
    None,
    'How the learning rate falls; decade: to a tenth every 10 epochs.',
    choices=tuple(selection.SCHEDULES),
  )
  select: str | None = field(
    None,
    'Which epoch to keep: best validation macro-F1, loss, accuracy or AUROC, or'
    ' the last.',
    choices=('f1_macro', 'loss', 'accuracy', 'auroc', 'last'),
  )
  patience: int | None = field(
    None, 'Stop after this many epochs without a better one to keep.', least=1
  )
  # The file is hashed.
  weights: str | None = free(
    None,
    'Weights to start from, random by default: a .safetensors or .pth file with'
    ' the names of torchvision, or a model.safetensors of this software. For'
    ' several networks: network=file,network=file.',
    only=_STARTED,
  )
  freeze: str = field(
    '',
    'Do not train these modules: a regular expression, matched from the'
    ' beginning of their paths, as conv1|bn1|layer[12].',
    only=_STARTED,
  )

  def weights_of(self, networks: Sequence[str]) -> dict[str, str]:
    """Returns the file that each network starts from; none of the others.

    Args:
      networks: all that will be trained.

    Raises:
      OptionError: if it is not clear which network starts from a file.
    """
    if not self.weights:
      return {}
    pairs = [part.split('=', 1) for part in self.weights.split(',')]
    if all(len(pair) == 2 and pair[0] in networks for pair in pairs):
      return dict(pairs)
    if len(set(networks)) > 1 or pairs[0][0] in models.CLASSIFIERS:
      raise OptionError(
        f'--weights={self.weights}: networks are {", ".join(networks)}. Give'
        ' network=file for each of them that shall start from one.'
      )
    return {networks[0]: self.weights}


@dataclasses.dataclass(frozen=True)
class _Network:
  """What a training depends on besides its recipe."""

  model: str
  seed: int
  precision: str
  freeze: str
  classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A trained patch classifier.

  Attributes:
    variables: of the epoch that validation chose, NumPy.
    history: one dict per epoch, `epoch` and `COLUMNS`; an AUROC that is not
      defined is None.
    recipe: that it was trained with.
    task: what was trained.
  """

  variables: Variables
  history: list[dict[str, Any]]
  recipe: PatchRecipe
  task: TileTask

  @property
  def epoch(self) -> int:
    """The epoch that validation chose, from 0."""
    return self.history[-1]['best_epoch']

  @property
  def kept(self) -> dict[str, Any]:
    """Metrics of the epoch that validation chose."""
    return self.history[self.epoch]

  def predict(self, tiles: LabelledTiles) -> tuple[np.ndarray, np.ndarray]:
    """Classifies n tiles of the kind it was trained on, each by itself.

    Returns:
      Probabilities [n, C] and features [n, F], float32, in the tiles' order.
    """
    if not len(tiles):
      raise TileError('There is no tile to evaluate. Give some.')
    program, on_devices = self._on_devices
    out = program.evaluate(on_devices, lambda: _in_order(tiles))
    return out['prob'], out['features']

  def grad_cam(
    self, tiles: LabelledTiles, target: np.ndarray, layer: str | None = None
  ) -> np.ndarray:
    """Returns maps of what speaks for classes; see `saliency.grad_cam`.

    Args:
      tiles: n of them.
      target: a class for each tile, [n].
      layer: whose map is weighted; the last one by default.

    Returns:
      Maps [n, S, S] in [0, 1].
    """
    maps, targets = [], np.asarray(target, np.int32)
    labelled = dataclasses.replace(tiles, label=targets)
    for batch in _batches(labelled, _CAM_BATCH):
      cam = _maps(self.task, layer, self.variables, batch.image, batch.label)
      maps.append(np.asarray(cam)[batch.weight > 0])
    return np.concatenate(maps)

  @functools.cached_property
  def _on_devices(self) -> tuple[Program, list[Any]]:
    program = tile_task.program(self.task)
    return program, program.put((_one_run(self.variables), _runs(0)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _maps(task, layer, variables, image, target) -> jax.Array:
  image = task.normalise(image)
  return saliency.grad_cam(task.model, variables, image, target, layer=layer)


def train(
  folder: results.Folder,
  name: str,
  *,
  model: str,
  train: LabelledTiles,
  val: LabelledTiles,
  recipe: PatchRecipe,
  options: Training,
  seed: int,
  title: str = '',
) -> Trained:
  """Trains a classifier, or goes on with it, or loads it if it is done.

  Its folder gets `config.json`, `metrics.jsonl` with a line per epoch, and at
  last `model.safetensors`. Until then `checkpoints` holds the newest state:
  training that was killed goes on from there and ends in the same model.

  Args:
    folder: of the results.
    name: of the training's own folder in it.
    model: a name in `CLASSIFIERS`.
    train: to train on.
    val: by which the epoch is chosen.
    recipe: of the training.
    options: weights, which decide how tiles are normalised, freeze, precision
      and tensorboard; the others are in the recipe.
    seed: of parameters, order, augmentation and dropout.
    title: before the progress bar; the name by default.

  Raises:
    PatchError: if the recipe does not fit the tiles, the model or the devices.
    ResultsError: if the folder was begun with another recipe or other tiles, or
      its model is not of the epoch that its history names.
    TileError, PortError: for faults of tiles and weights.
    FloatingPointError: if the loss was not finite before an epoch could be
      kept; later ones are recorded, see `progress.raise_if_diverged`.
  """
  state, digest, recipe = _read_weights(options.weights, model, recipe)
  _check(train, val, recipe)
  side = recipe.input_size or train.size
  # What programs do not depend on is left out: they serve any of these.
  of_program = {name: getattr(recipe, name) for name in _OF_PROGRAM}
  task = _task(
    models.CLASSIFIERS[model],
    PatchRecipe(**of_program),
    len(train.classes),
    (side, side, train.channels),
    precision=options.precision,
    freeze=options.freeze,
  )
  part = results.Folder(folder.at(name))
  network = _Network(
    model, seed, options.precision, options.freeze, train.classes
  )
  inputs = {
    'train_sha256': patch_tiles.fingerprint(train),
    'val_sha256': patch_tiles.fingerprint(val),
    'weights_sha256': digest,
  }
  results.record(part, [recipe, network], inputs)
  if not part.has_model(MODEL):
    start = draw(task, _runs(seed))
    if state:
      drawn = jax.tree.map(lambda x: x[0], start)
      start = _one_run(_start(state, model, drawn))
    with progress.training(
      part.at('checkpoints'),
      [[part.path]],
      COLUMNS,
      recipe.epochs,
      name=title or name,
      unit='tile',
      steps=-(-len(train) // recipe.batch) * recipe.batch,
      tensorboard=options.tensorboard,
    ) as (saved, shown):
      batches = lambda epoch: _epoch(train, recipe, seed, epoch, shown)
      result = loop.fit(
        tile_task.program(task, batches),
        recipe,
        _runs(seed),
        start,
        validation=lambda: _in_order(val),
        checkpoints=saved,
        report=shown.report,
      )
    progress.record_divergence(
      part.path, {'network': (int(result.failed[0]), int(result.epoch[0]))}
    )
    parallel.wait_for_all('trained')
    if result.lost[0]:
      progress.raise_if_diverged([part.path])
    part.save_model(MODEL, _content(result, recipe))
  parallel.wait_for_all('model')
  if parallel.is_first():
    shutil.rmtree(part.at('checkpoints'), ignore_errors=True)
  flat, history = safetensors.numpy.load_file(part.at(MODEL)), _history(part)
  variables = {'batch_stats': {}} | traverse_util.unflatten_dict(flat, sep='/')
  return Trained(variables, history, recipe, task)


def _history(part: results.Folder) -> list[dict[str, Any]]:
  """Returns the history of a training, whose model must be of its best epoch.

  Raises:
    ResultsError: if it is not.
  """
  kind = {'best_epoch': (int, type(None)), '*': object}
  history = part.read(progress.METRICS, kind)
  held = _about(part.at(MODEL)).get('epoch')
  kept = history[-1]['best_epoch'] if history else None
  if held != str(kept):
    raise results.ResultsError(
      f'{part.at(MODEL)} is of epoch {held}, and {progress.METRICS} beside it'
      f' ends with best_epoch {kept}: one of them was replaced. Remove the'
      f' folder {part.path} and give the command again: it trains this network'
      ' anew, and no other.'
    )
  return history


def _content(result: loop.Result, recipe: PatchRecipe) -> bytes:
  """Returns a file of the classifier, its epoch and how input is normalised."""
  one = jax.tree.map(lambda x: np.ascontiguousarray(x[0]), result.variables)
  about = {name: getattr(recipe, name) for name in _NORMAL}
  about['epoch'] = str(result.epoch[0])
  flat = traverse_util.flatten_dict(one, sep='/')
  # One entry: several would be written in any order, and the hash differ.
  return safetensors.numpy.save(flat, {_ABOUT: json.dumps(about)})


def _about(path: pathlib.Path) -> dict[str, Any]:
  """Returns what `_content` states of a classifier, as far as a file does."""
  with safetensors.safe_open(path, 'np') as file:
    stated = file.metadata() or {}
  return json.loads(stated.get(_ABOUT, '{}'))


def _read_weights(
  path: str | None, model: str, recipe: PatchRecipe
) -> tuple[Mapping[str, np.ndarray], str | None, PatchRecipe]:
  """Returns weights, a hash of their file, and the recipe with their input.

  A file of this software says how its input is normalised. torchvision's
  GoogLeNet, unlike its other networks, turns what is normalised by ImageNet's
  mean and deviation into (v - 0.5) / 0.5 first, as its weights are from another
  framework.
  """
  if not path:
    return {}, None, recipe
  file, normalised = pathlib.Path(path).expanduser(), {}
  state = results.read_weights(file)
  if file.suffix.lower() == '.safetensors' and _is_own(state):
    own = _about(file)
    normalised = {n: tuple(own[n]) for n in ('mean', 'std') if n in own}
  elif model.startswith('googlenet'):
    normalised = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
  digest = hashlib.sha256(file.read_bytes()).hexdigest()
  return state, digest, dataclasses.replace(recipe, **normalised)


def _is_own(state: Mapping[str, np.ndarray]) -> bool:
  """Whether weights have the names that `_content` gives them."""
  return any(name.startswith('params/') for name in state)


def _start(
  state: Mapping[str, np.ndarray], model: str, drawn: Variables
) -> Variables:
  """Returns variables to start from.

  Args:
    state: of a file of this software, which must fit in full, or by
      torchvision's names, whose head may be of other classes.
    model: its name in `CLASSIFIERS`.
    drawn: freshly drawn variables, of which such a head is kept.
  """
  if not _is_own(state):
    return port.from_torch(model, state, drawn=drawn)
  like = traverse_util.flatten_dict(drawn, sep='/')
  port.check(state, {name: leaf.shape for name, leaf in like.items()})
  return traverse_util.unflatten_dict(state, sep='/')


def _check(
  train: LabelledTiles, val: LabelledTiles, recipe: PatchRecipe
) -> None:
  """Raises for what would fail late, or not at all."""
  for part, tiles in (('training', train), ('validation', val)):
    if not len(tiles):
      raise PatchError(f'The {part} part holds no tile. Give more tiles.')
  labelled_tiles.concatenate([train, val])  # Of one kind, and none in both.
  count = np.bincount(train.label, minlength=len(train.classes))
  if absent := [c for c, n in zip(train.classes, count, strict=True) if not n]:
    raise PatchError(
      f'No training tile is of class {", ".join(absent)}. Give some.'
    )
  if recipe.batch % parallel.num_devices():
    raise PatchError(
      f'--batch_size={recipe.batch} does not divide over'
      f' {parallel.num_devices()} devices. Choose a multiple of that.'
    )
  if recipe.select in selection.NEED_AUROC and len(set(val.label)) < 2:
    raise PatchError(
      'The validation part holds one class, so it has no AUROC to choose the'
      f' epoch by ({recipe.select}). Give --select=loss.'
    )


def _runs(seed: int) -> TileRuns:
  return TileRuns(seed=np.array([seed % 2**32], np.uint32))


def _one_run(variables: Variables) -> Variables:
  """Adds the axis of runs."""
  variables = {'batch_stats': {}, **variables}
  return jax.tree.map(lambda x: np.asarray(x)[None], variables)


def _epoch(
  tiles: LabelledTiles,
  recipe: PatchRecipe,
  seed: int,
  epoch: int,
  shown: progress.Progress,
) -> Iterator[Tiles]:
  """Yields batches to train on."""
  shown.advance(epoch, 0)
  order = {'epoch': epoch, 'seed': seed, 'balanced': recipe.balanced}
  for step, batch in enumerate(_batches(tiles, recipe.batch, **order), 1):
    yield batch
    shown.advance(epoch, step * recipe.batch)


def _in_order(tiles: LabelledTiles) -> Iterator[Tiles]:
  """Yields batches to evaluate."""
  per_device = 16 if parallel.platform() == 'cpu' else 256
  return _batches(tiles, per_device * parallel.num_devices())


def _batches(tiles: LabelledTiles, batch: int, **order: Any) -> Iterator[Tiles]:
  from data import pipeline  # TensorFlow takes seconds to import.

  for one in pipeline.tile_batches(tiles, batch=batch, **order):
    yield Tiles(image=one['image'], label=one['label'], weight=one['weight'])
