"""Trains the runs of an experiment that are not done; tests a second cohort.

What the models see in test slides is stored as HDF5, and drawn.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import scipy

from data import slides
from data.files import counted
from data.splits import Split
from experiments.bags.cohort import Cohort, Material
from experiments.bags.options import Training
from experiments.evaluation import floors, groups, predictions, seeds, summary
from experiments.evaluation.predictions import TEST, Predictions
from experiments.maps import tile_scores
from experiments.run import progress, start
from experiments.run.results import REPORT, Folder, ResultsError
from kmil_jax import folds, parallel
from kmil_jax.folds import Fold, FoldResults, Settings
from kmil_jax.inference import MODEL
from kmil_jax.models.kmil import Choice
from kmil_jax.tasks.bags import BagLoader
from kmil_jax.types import Recipe

# Of metrics.jsonl.
COLUMNS = (
  'train_loss',
  'val_loss',
  'val_accuracy',
  'val_f1_macro',
  'val_auroc',
  'best_epoch',
)
_STATE = 'state'
_SECOND = 'external.json'
# Compiled once for all folds: a task is its own key.
_predict = jax.jit(
  lambda task, *args: task.predict_bag(*args), static_argnums=0
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One fold under one choice and seed, and where its results go."""

  folder: pathlib.Path  # <results>/fold_<i>
  fold: int
  choice: Choice
  seed: int

  def is_done(self) -> bool:
    return (self.folder / TEST).exists()


def train_folds(
  material: Material,
  runs: Sequence[Run],
  requested: Sequence[int],
  settings: Settings,
  training: Training,
  folder: Folder,
  *,
  attention: bool,
) -> None:
  """Trains those of the requested runs that are not done.

  A run is done when its folder holds `predictions.csv`. A training that was
  killed goes on with the runs it began with. A run that diverged is recorded,
  see `progress.raise_if_diverged`; it has no predictions if it did so before an
  epoch could be kept.

  Args:
    material: to train and test on.
    runs: all of the experiment.
    requested: places in `runs`.
    settings: of all runs, but for the choices, which are the runs' own.
    training: how features are streamed, and whether TensorBoard's files are
      written.
    folder: unfinished training is kept in its `state`.
    attention: also stores what the models see in the test slides.

  Raises:
    kmil_jax.splits.SplitError: if the recipe selects by an AUROC that a
      validation part does not have.
    FloatingPointError: if no run of the experiment has an epoch to keep.
  """
  todo = _to_train(runs, requested, folder)
  if not todo:
    _drop_finished(runs, folder)
    return
  chosen = [runs[i] for i in todo]
  cohort, splits = material.cohort, material.splits
  bags = cohort.bags(settings.precision, training.store, training.stream_cache)
  devices = parallel.num_devices()
  if settings.recipe.batch == 1 and len(todo) < devices:
    spread = isinstance(bags.store.features, parallel.Spread)
    start.show(
      f'note: idle devices: {devices - len(todo)} of {devices}, as a run trains'
      f' on one{"; they hold a share of the features" if spread else ""}. More'
      ' folds or seeds at once would take no longer.'
    )
  results = folds.train_folds(
    bags,
    [_fold(run, splits[run.fold]) for run in chosen],
    settings,
    _watch(chosen, folder, f'{_STATE}/{_name(todo)}', training.tensorboard),
    _counted('choosing instances', cohort),
  )
  for r, run in enumerate(chosen):
    if parallel.is_first():
      progress.record_divergence(run.folder, results.diverged[r])
    if results.lost[r]:
      continue
    # All processes: Orbax waits for each of them.
    folds.save(run.folder, results, r)
    if attention and parallel.is_first():
      test = splits[run.fold].evaluated
      _write_attention(run.folder, cohort, bags, test, results, r)
    prob = {part: values[r] for part, values in results.prob.items()}
    write_predictions(Folder(run.folder), run.fold, material, prob)
  parallel.wait_for_all('trained')
  if not any(run.is_done() for run in runs):
    progress.raise_if_diverged([run.folder for run in runs])
  _drop_finished(runs, folder)


def _write_attention(
  folder: pathlib.Path,
  cohort: Cohort,
  bags: BagLoader,
  rows: np.ndarray,
  trained: FoldResults,
  run: int,
) -> None:
  """Stores what one fold's model sees in each of its test slides.

  Writes `attention/<slide_id>.h5`, see `tile_scores`, with the attributes of
  the feature file and `classes`, and without `coords` if the features have
  none; for models that choose instances also `keep/keep.h5` with bool [N] of
  every slide of the cohort.

  Args:
    folder: of the fold.
    cohort: the slides.
    bags: theirs.
    rows: the test part, bool [n].
    trained: all runs.
    run: the fold's.
  """
  params = jax.tree.map(lambda x: x[run : run + 1], trained.params[MODEL])
  index, store = np.flatnonzero(rows), bags.store
  ends = store.offset + store.length
  probs = trained.prob['test'][run]
  each = zip(index, bags.read(index), probs, strict=True)
  for bag, x, prob in progress.over(each, 'attention files', len(index)):
    length, kept = store.length[bag], np.zeros(len(x), bool)
    kept[:length] = True
    if trained.keep is not None:
      kept[:length] = trained.keep[run, store.offset[bag] : ends[bag]]
    output = jax.device_get(_predict(trained.task, params, x, kept))
    logits = output.instance_logits[0, :length]
    arrays = {
      'attention': output.attention[0, :length],
      # By JAX each new length of a bag would be compiled for.
      'instance_prob': scipy.special.softmax(logits, axis=-1),
      'kept': kept[:length],
      'prob': prob,
    }
    source = cohort.read_placed(bag)
    if source.coords is not None:
      arrays['coords'] = source.coords
    path = folder / 'attention' / f'{cohort.manifest.slide[bag]}.h5'
    attributes = source.attributes | {'classes': list(cohort.classes)}
    tile_scores.write(path, arrays, attributes)
  if trained.keep is not None:
    places = zip(cohort.manifest.slide, store.offset, ends, strict=True)
    kept = {name: trained.keep[run, a:b] for name, a, b in places}
    tile_scores.write(folder / 'keep' / 'keep.h5', kept, {})


def _fold(run: Run, split: Split) -> Fold:
  """Returns what a run trains on, validates by and is evaluated on."""
  parts = split.train, split.val, split.evaluated
  return Fold(run.fold, *parts, run.choice, run.seed)


def _drop_finished(runs: Sequence[Run], folder: Folder) -> None:
  """Removes the states of trainings whose runs are all done.

  A command that was killed after its last run leaves them to the next one.
  """
  if not parallel.is_first():
    return
  for name, places in _unfinished(folder).items():
    if all(runs[i].is_done() for i in places):
      shutil.rmtree(folder.at(_STATE) / name)
  if not _unfinished(folder):
    shutil.rmtree(folder.at(_STATE), ignore_errors=True)


def write_predictions(
  folder: Folder, fold: int, material: Material, prob: dict[str, np.ndarray]
) -> None:
  """Writes the probabilities [n, C] of the parts of a fold into its folder."""
  cohort, split = material.cohort, material.splits[fold]
  if not split.test.any():
    prob = prob | {'test': prob['test'][:0]}
  parts = {
    name: of_slides(cohort, getattr(split, name), prob[name])
    for name in ('val', 'test')
  }
  predictions.write(folder, fold, parts, cohort.classes)


def of_slides(
  cohort: Cohort, rows: np.ndarray, prob: np.ndarray
) -> Predictions:
  """Returns the probabilities of the slides `rows`, bool [n], with labels."""
  table = cohort.manifest
  return Predictions(
    case=table.case[rows],
    slide=table.slide[rows],
    label=cohort.label[rows],
    prob=prob,
  )


def check_second(folder: Folder, cohort: Cohort) -> None:
  """Refuses a folder that holds results of another second cohort.

  Raises:
    ResultsError: saying what to do.
  """
  if not folder.has(_SECOND) or folder.read(_SECOND) == cohort.fingerprint():
    return
  raise ResultsError(
    f'{folder.at(_SECOND)}: the external results are of another cohort. Choose'
    f' another --exp_code, or remove {_SECOND} and fold_*/external.csv.'
  )


def test_second(
  folder: Folder,
  requested: Sequence[int],
  cohort: Cohort,
  settings: Settings,
  store: str,
) -> None:
  """Writes `fold_<i>/external.csv` of every finished fold that lacks it.

  KMIL's instances are chosen by the fold's own first stage, as Zheng et al.
  2024 do. `external.json` records which cohort it was.

  Args:
    folder: of the results.
    requested: folds.
    cohort: the second one, with the classes of the first.
    settings: of the training.
    store: see `Cohort.store_of`.
  """
  todo = [
    fold
    for fold in requested
    if folder.has(f'fold_{fold}/{TEST}')
    and not folder.has(f'fold_{fold}/{predictions.EXTERNAL}')
  ]
  if not todo:
    return
  design = settings.design(len(cohort.classes), cohort.width)
  models = [folds.load(folder.at(f'fold_{fold}'), design) for fold in todo]
  bags = cohort.bags(settings.precision, store)
  count = _counted('external cohort', cohort)
  probs = folds.predict(bags, design, models, count)
  folder.write(_SECOND, cohort.fingerprint())
  everything = np.ones(len(cohort.label), bool)
  for fold, prob in zip(todo, probs, strict=True):
    parts = {'external': of_slides(cohort, everything, prob)}
    fold_folder = Folder(folder.at(f'fold_{fold}'))
    predictions.write(fold_folder, fold, parts, cohort.classes)


def draw_heat_maps(
  folder: Folder, fold: int, material: Material, *, limit: int | None
) -> list[str]:
  """Draws the maps of the first `limit` test slides, or of all.

  Each picture, `figures/heat_maps/fold_<i>_<slide_id>.png`, is that of
  `overlay.draw`, on the absolute scale. Slides without a file, or whose
  features lack coordinates or the tiles' size, have no picture; how many they
  are is printed. Pictures that are there stay.

  Args:
    folder: of the results.
    fold: its number; where it tests nothing, its validation slides are drawn.
    material: that it was trained on.
    limit: of slides.

  Returns:
    What was wrong with slide files that could not be read or are others.
  """
  # It imports matplotlib, which takes half a second.
  from experiments.maps import overlay

  cohort, is_tested = material.cohort, material.splits[fold].test.any()
  label = dict(zip(cohort.manifest.slide, cohort.label, strict=True))
  without, faults = {}, []
  paths = sorted(folder.at(f'fold_{fold}/attention').glob('*.h5'))[:limit]
  for path in progress.over(paths, 'heat maps'):
    name = f'figures/heat_maps/fold_{fold}_{path.stem}.png'
    if folder.at(name).exists():
      continue
    if path.stem not in cohort.slides:
      without[path.stem] = 'no slide file'
      continue
    try:
      drawing = overlay.draw(
        cohort.slides[path.stem],
        tile_scores.read({fold: path}),
        label=cohort.classes[label[path.stem]],
        note=None if is_tested else tile_scores.VALIDATION,
      )
    except tile_scores.UnplacedError as e:
      without[path.stem] = str(e).removeprefix(f'{path}: ')
    except (slides.SlideError, tile_scores.MapError) as e:
      faults.append(str(e))
    else:
      folder.save(
        name, lambda p, d=drawing: d.savefig(p, dpi=100, format='png')
      )
  if without and cohort.slides:
    slide, reason = next(iter(without.items()))
    print(
      f'fold {fold}: no heat map of {counted(len(without), "slide")}. {slide}:'
      f' {reason}'
    )
  return faults


def folders_of_seeds(
  folder: Folder, seed: int, count: int
) -> dict[int, Folder]:
  """Returns where the results of each seed go: one has the folder itself."""
  if count == 1:
    return {seed: folder}
  every = range(seed, seed + count)
  return {seed: Folder(folder.at(f'seed_{seed}')) for seed in every}


def conclude(
  folder: Folder,
  model: str,
  task: str,
  material: Material,
  parts: Mapping[int, Folder] | None = None,
) -> None:
  """Writes tables, pictures and the report of the finished folds.

  Pictures and report stay if nothing in the folder changed since.

  Args:
    folder: of the results.
    model: name of it.
    task: name of it.
    material: that was trained and tested on.
    parts: the folders of the seeds, see `folders_of_seeds`.
  """
  if not parallel.is_first():
    return
  classes, tables = material.cohort.classes, []
  k = len(material.splits)
  if parts and len(parts) > 1:
    for part in parts.values():
      if any(part.path.glob(f'fold_*/{TEST}')):
        summary.summarise(part, model, task, k, classes)
    table = seeds.write(folder, parts, classes)
    if not table:
      print(f'No fold of {folder.path} is finished with all seeds.')
      return
    tables.append(table)
  results = summary.summarise(folder, model, task, k, classes)
  if parts and len(parts) > 1:
    print(f'\nof the mean probabilities of {len(parts)} seeds:')
  print(summary.text(results))
  if model != 'mean_pooling':  # That is one.
    tables.append(floors.write(folder, material))
  if material.group:
    tables.append(groups.write(folder, material.group, classes))
  for table in tables:
    print(f'\n{table.terminal()}')
  if folder.is_newest(REPORT):
    return
  # They import matplotlib, which takes half a second.
  from experiments.evaluation import figures
  from experiments.reporting import page

  figures.draw(folder, classes)
  page.write(folder)


def _watch(
  runs: Sequence[Run], folder: Folder, state: str, tensorboard: bool
) -> folds.Watch:
  """Keeps a stage's checkpoints in `state`, and shows its progress."""

  @contextlib.contextmanager
  def watch(
    stage: str, recipe: Recipe, serves: list[list[int]]
  ) -> Iterator[Any]:
    with progress.training(
      folder.at(state) / stage,
      [[runs[r].folder for r in ours] for ours in serves],
      {name: name for name in COLUMNS},
      recipe.epochs,
      name=f'{stage} x {counted(len(serves), "run")}',
      stage=stage,
      tensorboard=tensorboard,
    ) as (saved, shown):
      yield saved, shown.report

  return watch


def _counted(name: str, cohort: Cohort) -> Callable[[Iterable], Iterable]:
  """Returns what shows how many slides of a cohort were taken."""
  return functools.partial(progress.over, name=name, total=len(cohort.label))


def _to_train(
  runs: Sequence[Run], requested: Sequence[int], folder: Folder
) -> list[int]:
  """Returns the runs that are not done, or those of a killed training."""
  for run in (runs[i] for i in requested if runs[i].is_done()):
    if parallel.is_first() and (file := folds.damage(run.folder)):
      print(f'warning: {file} is damaged. Fold {run.fold} is trained again.')
      (run.folder / TEST).unlink()
      (run.folder / predictions.EXTERNAL).unlink(missing_ok=True)
  todo = [i for i in requested if not runs[i].is_done()]
  if len(todo) < len(requested) and parallel.is_first():
    done = len(requested) - len(todo)
    print(f'runs done before: {done} of {len(requested)}')
  for places in _unfinished(folder).values() if todo else []:
    if set(todo) <= set(places) <= set(requested):
      todo = places
      break
  # Writing may have begun: what process 0 saw counts.
  chosen = parallel.agree(np.isin(requested, todo))
  return [i for i, train in zip(requested, chosen, strict=True) if train]


def _unfinished(folder: Folder) -> dict[str, list[int]]:
  """Returns the runs of every training that was killed, by its folder."""
  unfinished = {}
  for path in sorted(folder.at(_STATE).glob('runs_*')):
    places = []
    for first, last in re.findall(r'(\d+)(?:-(\d+))?', path.name):
      places += range(int(first), int(last or first) + 1)
    unfinished[path.name] = places
  return unfinished


def _name(places: Sequence[int]) -> str:
  """Names a training by its runs: runs_0-9, or runs_0-2_5."""
  spans = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
  names = [f'{s[0]}-{s[-1]}' if len(s) > 1 else str(s[0]) for s in spans]
  return 'runs_' + '_'.join(names)
