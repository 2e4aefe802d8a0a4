"""The public library: bag models trained on arrays, for a notebook."""

from collections.abc import Hashable, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any
import warnings

from flax import traverse_util
import jax
import numpy as np

from kmil_jax import folds as stages, intervals, losses, metrics, port, splits
from kmil_jax.export import Predictor
from kmil_jax.folds import Fold, Settings
from kmil_jax.inference import CHOOSER, MODEL, Design, stack
from kmil_jax.models import SPECS, network
from kmil_jax.tasks.bags import BagLoader, num_rows
from kmil_jax.types import ModelSpec, Recipe, Store

_OURS = frozenset(SPECS)


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What models say of n bags that they were not trained on."""

  prob: np.ndarray  # [n, C]; NaN of a fold without a model
  label: np.ndarray  # [n] int, place in `Trained.classes`
  patient: np.ndarray  # [n] str
  fold: np.ndarray  # [n] int, whose model it is of


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
  """The models of R folds.

  Attributes:
    classes: C names, in the order of probabilities.
    predictions: out of fold, of every bag; None of models that were loaded.
    design: of the models.
    weights: their parameters, see `inference.stack`; of folds with a model.
    diverged: per fold, the stages whose loss became infinite or NaN: in which
      epoch, and which one was kept (-1: the fold has no model). Of `fit` alone.
  """

  classes: tuple[Any, ...]
  design: Design
  weights: dict[str, np.ndarray]
  predictions: Predictions | None = None
  diverged: tuple[dict[str, tuple[int, int]], ...] = ()

  def __repr__(self) -> str:
    folds = len(next(iter(self.weights.values())))
    return (
      f'Trained(model={self.design.model!r}, folds={folds},'
      f' classes={self.classes}, width={self.design.width})'
    )

  def metrics(self, resamples: int = intervals.RESAMPLES) -> dict[str, tuple]:
    """Returns value, low and high of each of `kmil_jax.metrics.NAMES`.

    Of the out-of-fold predictions; 95 % intervals over patients, who bring all
    their bags; those of folds without a model are left out. NaN where a metric
    is undefined.

    Raises:
      ValueError: of models that were loaded, which have no predictions.
    """
    p = self.predictions
    if p is None:
      raise ValueError('Models that were loaded have no predictions.')
    known = np.isfinite(p.prob).all(1)
    label, prob, patient = p.label[known], p.prob[known], p.patient[known]
    value = metrics.evaluate(label, prob)
    bounds = intervals.of_metrics(label, prob, patient, resamples=resamples)
    return {
      name: tuple(float(x) for x in (value[name], *bounds[name]))
      for name in metrics.NAMES
    }

  def predict(self, bags: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the folds' mean probabilities of bags [N_i, D], [m, C]."""
    bags = _checked(bags, self.design.width)
    return np.stack([self.predictor(bag)['prob'].mean(0) for bag in bags])

  def attention(self, bag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the folds look in a bag [N, D].

    Returns:
      The mean attention of the predicted class, [N], with a sum of 1; and the
      share of the folds that keep each instance, [N] (1 but for KMIL).
    """
    (bag,) = _checked([bag], self.design.width)
    out = self.predictor(bag)
    attention = out['attention']
    column = out['prob'].mean(0).argmax() if attention.shape[-1] > 1 else 0
    return attention[..., column].mean(0), out['kept'].mean(0)

  def to_torch(self, folds: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
    """Returns state dicts by the names of published code, see `port.to_torch`.

    Args:
      folds: numbers of the R folds.

    Returns:
      `fold_<i>_model`, and `fold_<i>_chooser` if the model has a first stage.
    """
    names = {MODEL: self.design.model}
    names[CHOOSER] = SPECS[self.design.model].chooser
    params = traverse_util.unflatten_dict(self.weights, sep='/')
    return {
      f'fold_{fold}_{network}': port.to_torch(
        names[network], {'params': jax.tree.map(lambda x, r=r: x[r], tree)}
      )
      for r, fold in enumerate(folds)
      for network, tree in params.items()
    }

  @functools.cached_property
  def predictor(self) -> Predictor:
    """What predicts a bag."""
    return self.design.predictor(self.weights)

  def __getstate__(self) -> dict[str, Any]:
    """Returns what pickle keeps: all but compiled programs."""
    return {k: v for k, v in vars(self).items() if k != 'predictor'}


def fit(
  bags: Sequence[np.ndarray],
  labels: Sequence[Hashable],
  *,
  patients: Sequence[Hashable] | None = None,
  model: str = 'kmil',
  folds: int = 10,
  seed: int = 2023,
  recipe: Recipe | None = None,
  **settings: Any,
) -> Trained:
  """Cross-validates a bag model: R folds, trained together.

  Args:
    bags: features of n bags, [N_i, D].
    labels: class of each bag; classes are sorted as NumPy does.
    patients: of each bag; bags of one patient stay in one part. By default
      every bag is a patient.
    model: of `kmil_jax.models.SPECS`, see `register`.
    folds: R, at least 3; fold i tests the i-th part of the patients, validates
      on the next and trains on the others. Or 1, which tests nothing: what is
      predicted are the fifth of the patients that validate.
    seed: of parts, order and parameters.
    recipe: how the model is trained; by default as Zheng et al. 2024 train all
      models.
    **settings: further fields of `kmil_jax.folds.Settings`.

  Raises:
    ValueError: naming the bag, label or model that does not fit.
    FloatingPointError: if every fold diverged before an epoch could be kept.
    splits.SplitError: if a class has fewer patients than there are folds.
  """
  if model not in SPECS:
    raise ValueError(
      f'model {model!r} is unknown. Register it, or choose one of'
      f' {", ".join(sorted(SPECS))}.'
    )
  bags, recipe = _checked(bags), recipe or Recipe()
  if min(recipe.epochs, recipe.batch) < 1:
    raise ValueError(f'{recipe}: epochs and batch must be at least 1.')
  labels = _labelled('labels', labels, len(bags))
  classes, label = np.unique(labels, return_inverse=True)
  if len(classes) < 2:
    raise ValueError(f'All labels are {labels[0]}. Give two classes or more.')
  patients = range(len(bags)) if patients is None else patients
  patient = _labelled('patients', patients, len(bags)).astype(str)
  chosen = Settings(model=model, recipe=recipe, seed=seed, **settings)
  chosen.choice.check()
  if 'choice' in settings and not SPECS[model].chooser:
    raise ValueError(f'{model} sees all instances. Leave out choice.')
  if chosen.combine and SPECS[model].loss is not losses.dual_stream:
    raise ValueError(f'{model} learns from bags alone. Leave out combine.')
  if folds == 1:
    warnings.warn(
      'One fold tests nothing: predictions and metrics are of the bags that'
      ' validate it.',
      stacklevel=2,
    )
  parts = splits.make(patient, classes[label].astype(str), folds, seed)
  runs = [
    Fold(i, p.train, p.val, p.test if p.test.any() else p.val, chosen.choice)
    for i, p in enumerate(parts)
  ]
  store = _store(bags, label, network.dtype_of(chosen.precision))
  loader = BagLoader(store, len(classes), bags[0].shape[1])
  results = stages.train_folds(loader, runs, chosen)
  if results.lost.all():
    raise FloatingPointError(
      'The loss of every fold became infinite or NaN before an epoch could be'
      ' kept. Choose a lower learning rate.'
    )
  prob = np.full((len(bags), len(classes)), np.nan)
  fold = np.zeros(len(bags), int)
  for r, run in enumerate(runs):
    fold[run.test] = run.number
    if not results.lost[r]:
      prob[run.test] = results.prob['test'][r]
  return Trained(
    classes=tuple(classes.tolist()),
    design=chosen.design(len(classes), loader.width),
    weights=stack([results.of_run(r) for r in np.flatnonzero(~results.lost)]),
    predictions=Predictions(prob, label, patient, fold),
    diverged=tuple(results.diverged),
  )


def load(
  folder: str | pathlib.Path, folds: Sequence[int] | None = None
) -> Trained:
  """Returns the models of folds of a results folder.

  Their probabilities are those before any temperature.

  Args:
    folder: of `experiments.kmil`, or of one setting of `experiments.ablations`.
    folds: their numbers; by default those of all finished folds.

  Raises:
    FileNotFoundError: if it is no results folder, or a fold is not finished.
    ValueError: if it is of another script or of several seeds, or its files do
      not fit each other.
  """
  folder = pathlib.Path(folder).expanduser()
  if not (path := folder / 'config.json').exists():
    raise FileNotFoundError(
      f'{folder}: no results folder, it has no config.json. Give one of'
      ' experiments.kmil.'
    )
  config = json.loads(path.read_text(encoding='utf-8'))
  # Version 1 of the file calls them flags.
  options = config.get('options', config.get('flags', {}))
  if 'plugin' in config and options.get('model') not in SPECS:
    raise ValueError(
      f'{folder}: model {options.get("model")!r} is unknown. Import the module'
      f' that registers it first: {config["plugin"]}.'
    )
  if options.get('model') not in SPECS:
    raise ValueError(
      f'{folder}: these are no models of bags. Give a folder of'
      ' experiments.kmil or experiments.ablations.'
    )
  if 'cohort' not in config:
    raise ValueError(
      f'{folder}: an older version began it, and did not record what features'
      ' the models take. Run its command again: it trains nothing that is done.'
    )
  check_of_one_seed(folder)
  classes, width = tuple(config['cohort']['classes']), config['cohort']['width']
  design = Design.of_options(options, num_classes=len(classes), width=width)
  if folds is None:
    done = folder.glob('fold_*/predictions.csv')
    folds = sorted(int(path.parent.name.removeprefix('fold_')) for path in done)
  if not folds:
    raise FileNotFoundError(f'{folder}: no fold is finished.')
  try:
    models = [stages.load(folder / f'fold_{fold}', design) for fold in folds]
  except (AssertionError, KeyError, ValueError) as error:
    raise ValueError(
      f'{folder}: the folds have no parameters of {design.model} with'
      f' {len(classes)} classes and {width} features ({error}).'
    ) from error
  return Trained(classes=classes, design=design, weights=stack(models))


def check_of_one_seed(folder: pathlib.Path) -> None:
  """Raises ValueError if a results folder is that of several seeds."""
  if seeds := sorted(path.name for path in folder.glob('seed_*')):
    raise ValueError(
      f'{folder}: holds the mean of several seeds and no models. Give the'
      f' folder of one of them: {", ".join(seeds)}.'
    )


def register(name: str, spec: ModelSpec) -> None:
  """Adds a bag model of your own, which `fit` then knows in this process.

  Registered again, as by a cell that is run again, it replaces the former one.

  Args:
    name: for `model=`.
    spec: its Flax module of one bag and its loss; see `types.ModelSpec`.

  Raises:
    ValueError: if the name is that of a model of this library.
  """
  if name in _OURS:
    raise ValueError(f'There is a model {name!r} already. Choose another name.')
  SPECS[name] = spec


def _labelled(name: str, values: Sequence[Hashable], count: int) -> np.ndarray:
  """Returns a column of the bags; names the first that is missing."""
  values = list(values)
  if len(values) != count:
    raise ValueError(f'{len(values)} {name} were given for {count} bags.')
  for i, value in enumerate(values):
    # NaN is not equal to itself; whether pandas's NA is, it does not say.
    same = np.ndim(value) == 0 and np.asarray(value == value).item()
    if value is None or same is not True or value == '':
      raise ValueError(f'Bag {i} has {value!r} among the {name}.')
  return np.asarray(values)


def _checked(
  bags: Sequence[np.ndarray], width: int | None = None
) -> list[np.ndarray]:
  """Returns the bags as float32 arrays; names the first that is no bag."""
  bags = [np.asarray(bag, np.float32) for bag in bags]
  if not bags:
    raise ValueError('No bags were given.')
  for i, bag in enumerate(bags):
    if bag.ndim != 2 or not bag.size:
      raise ValueError(
        f'Bag {i} has the shape {bag.shape}. Give features [N, D], N and D at'
        ' least 1.'
      )
    if not np.isfinite(bag).all():
      raise ValueError(f'Bag {i} has features that are not finite.')
    width = width or bag.shape[1]
    if bag.shape[1] != width:
      raise ValueError(f'Bag {i} has {bag.shape[1]} features, not {width}.')
  return bags


def _store(bags: list[np.ndarray], label: np.ndarray, dtype: np.dtype) -> Store:
  length = np.array([len(bag) for bag in bags], np.int32)
  flat = np.zeros((num_rows(length), bags[0].shape[1]), dtype)
  np.concatenate(bags, out=flat[: length.sum()])
  return Store(
    features=flat,
    offset=np.cumsum(length, dtype=np.int32) - length,
    length=length,
    label=label.astype(np.int32),
  )
