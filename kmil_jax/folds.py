"""Folds of a bag model, trained together, stage by stage.

KMIL has two stages: a first model chooses the key instances of every bag, which
alone the second one sees. All other models have one.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import checkpoint, loop, train
from kmil_jax.inference import CHOOSER, MODEL, Design
from kmil_jax.models import SPECS, kmil
from kmil_jax.models.kmil import Choice
from kmil_jax.programs import Program
from kmil_jax.tasks.bags import BagLoader, BagRuns, BagTask
from kmil_jax.types import ModelSpec, Recipe


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is trained and how."""

  model: str  # of SPECS
  recipe: Recipe = dataclasses.field(default_factory=Recipe)
  chooser_recipe: Recipe | None = None  # of the first stage, if there is one
  seed: int = 2023
  precision: str = 'float32'
  choice: Choice = dataclasses.field(default_factory=Choice)
  combine: bool = False
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def has_chooser(self) -> bool:
    return SPECS[self.model].chooser is not None

  def design(self, num_classes: int, width: int) -> Design:
    """Returns what predicts with the models so trained."""
    return Design(
      model=self.model,
      num_classes=num_classes,
      width=width,
      precision=self.precision,
      choice=self.choice,
      combine=self.combine,
      options=self.options,
    )


@dataclasses.dataclass(frozen=True)
class Fold:
  """What one run trains on, validates by and is tested on, bool [n] each."""

  number: int
  train: np.ndarray
  val: np.ndarray
  test: np.ndarray
  choice: Choice = dataclasses.field(default_factory=Choice)


@dataclasses.dataclass(frozen=True)
class Stage:
  """One of the models that are trained one after the other."""

  name: str  # 'chooser' or 'model'
  recipe: Recipe
  task: BagTask


# Given a stage and, for each of its runs, which of ours it serves: a context
# with the checkpoints and the report that `loop.fit` takes.
Watch = Callable[[Stage, list[list[int]]], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class FoldResults:
  """What training leaves of R runs."""

  task: BagTask  # of the model
  params: Any  # [R, ...]
  chooser_params: Any  # [R, ...] of the first stage, None without one
  keep: np.ndarray | None  # bool [R, T], instances that each run sees
  best_epoch: np.ndarray  # [R]
  lost: np.ndarray  # bool [R], diverged before an epoch could be kept
  # Per run, of each stage that did, in which epoch and which one was kept.
  diverged: list[dict[str, tuple[int, int]]]
  prob: dict[str, list[np.ndarray]]  # by part, per run [bags, C]


def unwatched(stage: Stage, serves: list[list[int]]) -> Any:
  """A `Watch` that keeps no checkpoints and shows nothing."""
  return contextlib.nullcontext((None, lambda history: None))


def train_folds(
  bags: BagLoader,
  folds: Sequence[Fold],
  settings: Settings,
  watch: Watch = unwatched,
) -> FoldResults:
  """Trains all stages of a model for several runs in one program each.

  Runs of one fold that differ in their choice share its first stage.

  Args:
    bags: of the cohort.
    folds: R.
    settings: of all runs, but for the choices, which are the runs' own.
    watch: keeps checkpoints and shows progress.

  Returns:
    The chosen parameters of the runs, and their validation and test
    predictions.
  """
  everyone = [[r] for r in range(len(folds))]
  keep = chooser_params = None
  # By stage, what it came to and its run for each of ours.
  results: dict[str, tuple[loop.Result, np.ndarray]] = {}
  if settings.has_chooser:
    numbers = list(dict.fromkeys(fold.number for fold in folds))
    first = np.array([numbers.index(fold.number) for fold in folds])
    serves = [np.flatnonzero(first == f).tolist() for f in range(len(numbers))]
    stage = chooser_stage(bags, settings)
    some = [folds[ours[0]] for ours in serves]
    # Its program, and copy of the features, makes room for the model's.
    result = _train_stage(stage, bags, some, settings, watch, serves)[0]
    results[stage.name] = result, first
    params = result.variables['params']
    chooser_params = jax.tree.map(lambda x: x[first], params)
    choices = [fold.choice for fold in folds]
    keep = choose(bags, stage.task, params, first, choices)
  stage = model_stage(bags, settings)
  result, program, runs = _train_stage(
    stage, bags, folds, settings, watch, everyone, keep
  )
  results[stage.name] = result, np.arange(len(folds))
  models = program.put((result.variables, runs))
  return FoldResults(
    task=stage.task,
    params=result.variables['params'],
    chooser_params=chooser_params,
    keep=keep,
    best_epoch=result.epoch,
    lost=np.any([r.lost[of] for r, of in results.values()], 0),
    diverged=[
      {
        name: (int(r.failed[of[run]]), int(r.epoch[of[run]]))
        for name, (r, of) in results.items()
        if r.failed[of[run]] >= 0
      }
      for run in range(len(folds))
    ],
    prob={
      part: evaluate(program, models, [getattr(f, part) for f in folds])
      for part in ('val', 'test')
    },
  )


def chooser_recipe(spec: ModelSpec, recipe: Recipe) -> Recipe | None:
  """Returns how the first stage of a model is trained, if it has one.

  Its batch and weight decay are the model's, its epochs not more.
  """
  own = spec.chooser_recipe
  return own and dataclasses.replace(
    own,
    weight_decay=recipe.weight_decay,
    batch=recipe.batch,
    epochs=min(recipe.epochs, own.epochs),
  )


def chooser_stage(bags: BagLoader, settings: Settings) -> Stage:
  """Returns the first stage of a model that has one."""
  spec = SPECS[SPECS[settings.model].chooser]
  recipe, dtype = settings.chooser_recipe, jnp.dtype(settings.precision)
  task = BagTask(spec, recipe, bags.num_classes, bags.width, dtype=dtype)
  return Stage('chooser', recipe, task)


def model_stage(bags: BagLoader, settings: Settings) -> Stage:
  """Returns the stage whose predictions count."""
  task = BagTask(
    SPECS[settings.model],
    settings.recipe,
    bags.num_classes,
    bags.width,
    dtype=jnp.dtype(settings.precision),
    combine=settings.combine,
    options=settings.options,
  )
  return Stage('model', settings.recipe, task)


def choose(
  bags: BagLoader,
  chooser: BagTask,
  params: Any,
  first: np.ndarray,
  choices: Sequence[Choice],
) -> np.ndarray:
  """Returns the key instances of every run and bag, bool [R, T].

  Args:
    bags: of the cohort.
    chooser: the first stage.
    params: F parameters of it, [F, ...].
    first: which of them each run has, int [R].
    choices: of each run.
  """
  groups = {
    choice: np.array([r for r, other in enumerate(choices) if other == choice])
    for choice in dict.fromkeys(choices)
  }

  @jax.jit
  def keys(params, x, mask):
    logits = chooser.predict_bag(params, x, mask).instance_logits
    return [
      jax.vmap(
        lambda logits, choice=choice: kmil.key_instances(
          kmil.instance_scores(logits, choice.score),
          mask,
          choice.drop_per_mille,
          choice.drop,
        )
      )(logits[first[runs]])
      for choice, runs in groups.items()
    ]

  index = np.arange(len(bags.store.length))
  keep = np.zeros((len(choices), bags.num_rows), bool)
  params = jax.device_put(params)
  for bag, x in zip(index, bags.read(index), strict=True):
    length, offset = bags.store.length[bag], bags.store.offset[bag]
    kept = jax.device_get(keys(params, x, np.arange(len(x)) < length))
    for runs, rows in zip(groups.values(), kept, strict=True):
      keep[runs, offset : offset + length] = rows[:, :length]
  return keep


def evaluate(
  program: Program, models: list[Any], parts: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Returns the class probabilities [bags, C] of every run's own part.

  Args:
    program: over the cohort.
    models: variables and constants of R runs, from `program.put`.
    parts: bags of each run, R x bool [n].
  """
  out = program.evaluate(models, np.stack(parts))
  return [out['prob'][out['run'] == r] for r in range(len(parts))]


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
    'params': networks[MODEL],
    'chooser_params': networks.get(CHOOSER),
    'epoch': np.int64(0),
  }
  saved = checkpoint.Checkpoints(folder / 'checkpoints')
  tree = saved.latest(like)
  saved.close()
  if tree is None:
    raise FileNotFoundError(f'{folder / "checkpoints"}: no model was kept')
  return Model(tree['params'], tree['chooser_params'])


def predict_all(
  bags: BagLoader, settings: Settings, models: Sequence[Model]
) -> np.ndarray:
  """Returns every model's probabilities of every bag, [R, n, C].

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
    keep = choose(
      bags,
      chooser_stage(bags, settings).task,
      stack([model.chooser_params for model in models]),
      np.arange(count),
      [settings.choice] * count,
    )
  stage = model_stage(bags, settings)
  program = bags.program(stage.task, count, stage.recipe)
  runs = BagRuns(
    seed=np.zeros(count, np.uint32),
    fold=np.zeros(count, np.uint32),
    trains=np.zeros((count, size), bool),
    keep=keep,
  )
  variables = {'params': stack([model.params for model in models])}
  put = program.put((variables, runs))
  return np.stack(evaluate(program, put, np.ones((count, size), bool)))


def _train_stage(
  stage: Stage,
  bags: BagLoader,
  folds: Sequence[Fold],
  settings: Settings,
  watch: Watch,
  serves: list[list[int]],
  keep: np.ndarray | None = None,
) -> tuple[loop.Result, Program, BagRuns]:
  """Trains one stage of the runs of some folds."""
  runs = BagRuns(
    seed=np.full(len(folds), settings.seed, np.uint32),
    fold=np.array([fold.number for fold in folds], np.uint32),
    trains=np.stack([fold.train for fold in folds]),
    keep=keep,
  )
  program = bags.program(
    stage.task,
    len(folds),
    stage.recipe,
    seed=settings.seed,
    trains=runs.trains,
  )
  with watch(stage, serves) as (checkpoints, report):
    result = loop.fit(
      program,
      stage.recipe,
      runs,
      train.draw(stage.task, runs),
      validation=np.stack([fold.val for fold in folds]),
      checkpoints=checkpoints,
      report=report,
    )
  return result, program, runs
