"""Folds of a bag model, trained together, stage by stage.

KMIL has two stages: a first model chooses the key instances of every bag, which
alone the second one sees. All other models have one.
"""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import checkpoint, loop, selection, splits, train
from kmil_jax.inference import CHOOSER, MODEL, Design, Variant, stack
from kmil_jax.models import SPECS, kmil
from kmil_jax.models.kmil import Choice
from kmil_jax.tasks.bags import BagLoader, BagRuns, BagTask, num_rows
from kmil_jax.types import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Variant):
  """What is trained and how."""

  recipe: Recipe = dataclasses.field(default_factory=Recipe)
  seed: int = 2023

  @property
  def recipes(self) -> dict[str, Recipe]:
    """How each stage is trained, in their order.

    Batch and weight decay of a first stage are the model's, its epochs not
    more.
    """
    spec, recipe = SPECS[self.model], self.recipe
    if not spec.chooser:
      return {MODEL: recipe}
    first = dataclasses.replace(
      spec.chooser_recipe,
      weight_decay=recipe.weight_decay,
      batch=recipe.batch,
      epochs=min(recipe.epochs, spec.chooser_recipe.epochs),
    )
    return {CHOOSER: first, MODEL: recipe}

  def design(self, num_classes: int, width: int) -> Design:
    """Returns what predicts with the models so trained."""
    names = [field.name for field in dataclasses.fields(Variant)]
    shared = {name: getattr(self, name) for name in names}
    return Design(num_classes=num_classes, width=width, **shared)


@dataclasses.dataclass(frozen=True)
class Fold:
  """What one run trains on, validates by and is tested on, bool [n] each."""

  number: int
  train: np.ndarray
  val: np.ndarray
  test: np.ndarray
  choice: Choice = dataclasses.field(default_factory=Choice)
  seed: int | None = None  # by default that of the settings


# Given a stage's name and recipe and, for each of its runs, which of ours it
# serves: a context with the checkpoints and the report that `loop.fit` takes.
Watch = Callable[
  [str, Recipe, list[list[int]]], contextlib.AbstractContextManager
]


@dataclasses.dataclass(frozen=True)
class FoldResults:
  """What training leaves of R runs."""

  task: BagTask  # of the model
  params: dict[str, Any]  # [R, ...] of each network, see `Design.networks`
  keep: np.ndarray | None  # bool [R, T], instances that each run sees
  best_epoch: np.ndarray  # [R]
  lost: np.ndarray  # bool [R], diverged before an epoch could be kept
  # Per run, of each stage that did, in which epoch and which one was kept.
  diverged: list[dict[str, tuple[int, int]]]
  prob: dict[str, list[np.ndarray]]  # by part, per run [bags, C]

  def of_run(self, run: int) -> dict[str, Any]:
    """Returns the parameters of one run by network."""
    return _rows(self.params, run)


def unwatched(name: str, recipe: Recipe, serves: list[list[int]]) -> Any:
  """A `Watch` that keeps no checkpoints and shows nothing."""
  return contextlib.nullcontext((None, lambda history: None))


def train_folds(
  bags: BagLoader,
  folds: Sequence[Fold],
  settings: Settings,
  watch: Watch = unwatched,
  count: Callable[[Iterable], Iterable] = iter,
) -> FoldResults:
  """Trains all stages of a model for several runs in one program each.

  Runs of one fold and seed that differ in their choice share its first stage.

  Args:
    bags: of the cohort.
    folds: R.
    settings: of all runs, but for the choices and seeds, which are the runs'
      own. The order of bags is that of the settings' seed.
    watch: keeps checkpoints and shows progress.
    count: returns the bags whose key instances are chosen, which it is given,
      and shows how many were taken.

  Returns:
    The chosen parameters of the runs, and their validation and test
    predictions.

  Raises:
    splits.SplitError: if the recipe selects by an AUROC that a validation part
      does not have.
  """
  select, label = settings.recipe.select, bags.store.label
  alone = {f.number for f in folds if len(np.unique(label[f.val])) < 2}
  if select in selection.NEED_AUROC and alone:
    raise splits.SplitError(
      f'validation parts of folds {[*alone]} hold one class, and no AUROC to'
      f' choose the epoch by ({select}). Take the last one: --select=last.'
    )
  keep, params, diverged = None, {}, [{} for _ in folds]
  lost = np.zeros(len(folds), bool)
  seeds = [settings.seed if f.seed is None else f.seed for f in folds]
  for name, recipe in settings.recipes.items():
    key = list(range(len(folds)))
    if name == CHOOSER:
      key = [(f.number, s) for f, s in zip(folds, seeds, strict=True)]
    distinct = list(dict.fromkeys(key))
    place = np.array([distinct.index(k) for k in key])
    serves = [np.flatnonzero(place == i).tolist() for i in range(len(distinct))]
    mine = [folds[ours[0]] for ours in serves]
    task = make_task(name, settings, bags)
    runs = BagRuns(
      seed=np.array([seeds[ours[0]] % 2**32 for ours in serves], np.uint32),
      fold=np.array([fold.number for fold in mine], np.uint32),
      trains=np.stack([fold.train for fold in mine]),
      keep=keep,
    )
    # That of the first stage, and its copy of the features, makes room.
    program = None
    program = bags.program(
      task, len(mine), recipe, seed=settings.seed, trains=runs.trains
    )
    with watch(name, recipe, serves) as (checkpoints, report):
      result = loop.fit(
        program,
        recipe,
        runs,
        train.draw(task, runs),
        validation=np.stack([fold.val for fold in mine]),
        checkpoints=checkpoints,
        report=report,
      )
    lost |= result.lost[place]
    for r, i in enumerate(place):
      if result.failed[i] >= 0:
        diverged[r][name] = int(result.failed[i]), int(result.epoch[i])
    chosen = result.variables['params']
    params[name] = _rows(chosen, place)
    if name == CHOOSER:
      choices = [fold.choice for fold in folds]
      keep = choose(bags, task, chosen, place, choices, count)
  models, prob = program.put((result.variables, runs)), {}
  for part in ('val', 'test'):
    rows = np.stack([getattr(fold, part) for fold in folds])
    out = program.evaluate(models, rows)
    prob[part] = [out['prob'][out['run'] == r] for r in range(len(folds))]
  return FoldResults(
    task=task,
    params=params,
    keep=keep,
    best_epoch=result.epoch,
    lost=lost,
    diverged=diverged,
    prob=prob,
  )


def make_task(name: str, settings: Settings, bags: BagLoader) -> BagTask:
  """Returns what a stage of `Settings.recipes` trains."""
  spec, recipe = SPECS[settings.model], settings.recipes[name]
  of_model = {'combine': settings.combine, 'options': settings.options}
  if name == CHOOSER:
    spec, of_model = SPECS[spec.chooser], {}
  of_model['precision'] = settings.precision
  return BagTask(spec, recipe, bags.num_classes, bags.width, **of_model)


def choose(
  bags: BagLoader,
  chooser: BagTask,
  params: Any,
  place: np.ndarray,
  choices: Sequence[Choice],
  count: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
  """Returns the key instances of every run and bag, bool [R, T].

  Args:
    bags: of the cohort.
    chooser: the first stage.
    params: F parameters of it, [F, ...].
    place: which of them each run has, int [R].
    choices: of each run.
    count: see `train_folds`.
  """
  distinct = list(dict.fromkeys(choices))
  which = np.array([distinct.index(choice) for choice in choices])

  @jax.jit
  def keys(params, x, mask):
    logits = chooser.predict_bag(params, x, mask).instance_logits
    of = lambda choice: lambda logits: kmil.chosen(logits, mask, choice)
    return jnp.stack([jax.vmap(of(choice))(logits) for choice in distinct])

  index = np.arange(len(bags.store.length))
  rows = num_rows(bags.store.length)
  keep = np.zeros((len(choices), rows), bool)
  params = jax.device_put(params)
  for bag, x in count(zip(index, bags.read(index), strict=True)):
    length, offset = bags.store.length[bag], bags.store.offset[bag]
    kept = jax.device_get(keys(params, x, np.arange(len(x)) < length))
    keep[:, offset : offset + length] = kept[which, place, :length]
  return keep


def predict(
  bags: BagLoader,
  design: Design,
  models: Sequence[dict[str, Any]],
  count: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
  """Returns R models' probabilities of every bag, [R, n, C].

  Args:
    bags: of a cohort, which none of the models has seen.
    design: of the training.
    models: parameters by network, see `load`.
    count: returns the bags that it is given, and shows how many were taken.
  """
  predictor, length = design.predictor(stack(models)), bags.store.length
  read = zip(bags.read(np.arange(len(length))), length, strict=True)
  return np.stack([predictor(x[:size])['prob'] for x, size in count(read)], 1)


def save(folder: pathlib.Path, results: FoldResults, run: int) -> None:
  """Keeps the parameters of one of R runs in `<folder>/checkpoints`."""
  with contextlib.closing(_checkpoints(folder)) as saved:
    saved.save(0, _stored(results.of_run(run), results.best_epoch[run]))


def load(folder: pathlib.Path, design: Design) -> dict[str, Any]:
  """Fetches what `save` kept of one fold: parameters by network, NumPy.

  Args:
    folder: of the fold.
    design: of the training.

  Raises:
    FileNotFoundError: if the fold has no model.
    CheckpointError: if its model was damaged.
    AssertionError: if its model has other shapes.
  """
  if file := damage(folder):
    raise checkpoint.CheckpointError(
      f'{file} is damaged. Run the command of the training again, which trains'
      ' this fold anew.'
    )
  if not (folder / 'checkpoints/0').exists():
    raise FileNotFoundError(
      f'{folder / "checkpoints"}: no model was kept. Run the command of the'
      ' training again.'
    )
  with contextlib.closing(_checkpoints(folder)) as saved:
    tree = saved.latest(_stored(design.like(), 0))
  both = {CHOOSER: tree['chooser_params'], MODEL: tree['params']}
  return {name: params for name, params in both.items() if params}


def damage(folder: pathlib.Path) -> pathlib.Path | None:
  """Returns a file of what `save` kept that was damaged since, if any."""
  return checkpoint.damage(folder / 'checkpoints/0')


def _checkpoints(folder: pathlib.Path) -> checkpoint.Checkpoints:
  return checkpoint.Checkpoints(folder / 'checkpoints')


def _stored(params: dict[str, Any], epoch: int) -> dict[str, Any]:
  return {
    'params': params[MODEL],
    'chooser_params': params.get(CHOOSER),
    'epoch': np.int64(epoch),
  }


def _rows(tree: Any, rows: Any) -> Any:
  return jax.tree.map(lambda x: x[rows], tree)
