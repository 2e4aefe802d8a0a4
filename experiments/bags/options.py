"""Options of the scripts that train on bags, and what they come to.

training = training.resolved(model.model)
settings = options.settings(model, training, output.seed)

# Of a results folder, with the same result:
settings = options.trained(folder.config())
"""

import dataclasses
import pathlib

from experiments.run import results, start
from experiments.run.options import OptionError, field, fixed, free, to_json
from experiments.run.start import Check, Machine, Output
from kmil_jax import folds, inference, losses, parallel, selection
from kmil_jax.models import SPECS, dtfd, kmil
from kmil_jax.types import Recipe

# Models that options are for, by the flag --model; plugins may add some.
_CHOOSING = {'model': lambda: [m for m in SPECS if SPECS[m].chooser]}
_DTFD = {'model': lambda: list(filter(inference.is_dtfd, SPECS))}
_RANKING = _DTFD | {'distill': dtfd.RANKING}
# Where features are, in the order of preference.
STORES = ('resident', 'spread', 'streamed')
# What a recipe has, and a flag may change.
_OF_RECIPE = ('epochs', 'learning_rate', 'weight_decay', 'select')
_DUAL = {
  'model': lambda: [m for m in SPECS if SPECS[m].loss is losses.dual_stream]
}


@dataclasses.dataclass(frozen=True)
class Model:
  """The model."""

  model: str = field('kmil', 'Model to train.', choices=SPECS)
  drop_fraction: float = field(
    0.1,
    'Share of the instances of a slide that KMIL drops, to three decimals.',
    least=0,
    most=0.999,
    only=_CHOOSING,
  )
  kmil_drop: str = field(
    'lowest',
    'Which instances KMIL drops: those of the lowest or the highest scores.',
    choices=kmil.DROPS,
    only=_CHOOSING,
  )
  kmil_score: str = field(
    'var',
    'Score of an instance in KMIL: the variance of its probabilities over'
    ' classes, as in the released code, or one minus it, as in equation 3.',
    choices=kmil.SCORES,
    only=_CHOOSING,
  )
  average_with_top_instance: bool = field(
    False,
    'Average the probabilities of a slide with those of its highest instance.',
    only=_DUAL,
  )
  distill: str = field(
    'afs',
    'What the second tier of DTFD is given of each pseudo-bag: its pooled'
    ' features (afs), the instances of the highest class activation (maxs),'
    ' of the highest and the lowest (maxmins), or of the highest attention'
    ' (mas).',
    choices=dtfd.DISTILL,
    only=_DTFD,
  )
  pseudo_bags: int = field(
    4, 'Pseudo-bags that DTFD splits a slide into.', least=1, only=_DTFD
  )
  total_instances: int = field(
    4,
    'Instances of a slide that the second tier of DTFD is given; with'
    ' --distill=maxmins, of either end.',
    least=1,
    only=_RANKING,
  )
  dtfd_rank_by: str = field(
    'last',
    'Probability that ranks instances in DTFD: that of the last class, as in'
    ' the released code, or of the class predicted for their pseudo-bag.',
    choices=dtfd.SCORES,
    only=_RANKING,
  )


@dataclasses.dataclass(frozen=True)
class Data:
  """Slides, their labels and features. Without any, a phantom cohort."""

  # Where labels and features are decides nothing: what they hold is hashed.
  csv_path: pathlib.Path | None = free(
    None,
    'Labels of slides: a CSV with the columns case_id,slide_id,label.',
    only={'features_dir': True},
    remote=True,
  )
  features_dir: pathlib.Path | None = free(
    None,
    'Folder of <slide_id>.h5 or .pt, or the folder around it that CLAM, TRIDENT'
    ' or STAMP wrote, or a dataset of experiments.pack.',
    only={'csv_path': True},
    remote=True,
  )
  slides_dir: pathlib.Path | None = free(
    None, 'Folder of slide files, for heat maps.', only={'csv_path': True}
  )
  allow_missing: bool = free(
    False, 'Leave out labelled slides without features, and print how many.'
  )
  task: str = field(
    'origin',
    'Labels as they are (origin), or grouped as in tasks a, b and c of Zheng et'
    ' al. 2024; those are non-tumor, lymphoma, breast, squamous and thyroid, or'
    ' 0 to 4.',
    choices=('origin', 'a', 'b', 'c'),
  )
  labels: tuple[str, ...] | None = field(
    None,
    'New names of labels, old:new,... Slides of other labels are left out.',
    only={'task': ('origin',)},
  )
  shuffle_labels: bool = field(
    False,
    'Leak alarm: assign the labels anew to the cases. AUROC must be about 0.5.',
  )


@dataclasses.dataclass(frozen=True)
class Features(Data):
  """Slides, their labels and features. Without any, a phantom cohort."""

  slides_dir: None = fixed(None, result=False)  # No heat maps are drawn.


@dataclasses.dataclass(frozen=True)
class External:
  """A second cohort, on which the model of every fold is tested."""

  external_csv: pathlib.Path | None = free(
    None,
    'Labels of the second cohort, in the columns of --csv_path.',
    only={'external_features_dir': True},
    remote=True,
  )
  external_features_dir: pathlib.Path | None = free(
    None,
    'Features of the second cohort.',
    only={'external_csv': True},
    remote=True,
  )
  external_phantom: bool = free(
    False,
    'Take the second phantom cohort, of another laboratory and scanner.',
    only={'csv_path': False, 'external_csv': False},
  )


@dataclasses.dataclass(frozen=True)
class Folds:
  """How patients are assigned to training, validation and test."""

  k: int = field(
    10,
    'Number of folds: at least 3, or as many as --split_dir has; 1 trains once,'
    ' validates by a fifth of the patients and tests nothing.',
    least=1,
  )
  # The splits are hashed.
  split_dir: pathlib.Path | None = free(
    None, 'Folder of splits_<i>.csv (train,val,test), instead of new folds.'
  )
  group_col: str | None = free(
    None,
    'Column of --csv_path, as of sites or scanners: slides of one value are in'
    ' one part of a fold, and groups.csv has the metrics of each.',
    only={'csv_path': True, 'split_dir': False},
  )


@dataclasses.dataclass(frozen=True)
class Requested:
  """Which folds are trained, and what is drawn of them."""

  fold: int | None = free(None, 'The only fold to train, from 0.', least=0)
  seeds: int = field(
    1,
    'Train every fold so many times, with the seeds --seed, --seed + 1, ... of'
    ' weights and dropout, and one order of slides. Results are of the mean'
    ' probabilities; seeds.csv has the spread.',
    least=1,
  )
  heat_maps: int | None = free(
    None, 'Heat maps to draw per fold. By default of all test slides.', least=0
  )

  def folds(self, k: int) -> list[int]:
    """Returns the numbers of the folds to train."""
    if self.fold is None:
      return list(range(k))
    if self.fold >= k:
      raise OptionError(f'--fold={self.fold}: folds are 0 to {k - 1}.')
    return [self.fold]


@dataclasses.dataclass(frozen=True)
class Training(start.Training):
  """How the model is trained."""

  recipe: str = field(
    'common',
    'That of Zheng et al. 2024 for every model (common: 400 epochs, 100 at most'
    ' of the first stage of KMIL, with a learning rate of 2e-4), or what the'
    ' authors of the model trained it with (own). Flags change single values.',
    choices=('common', 'own'),
  )
  weight_decay: float | None = field(
    None, 'Weight decay. The common recipe has 1e-5.', least=0
  )
  select: str | None = field(
    None,
    'Which epoch to keep: the last, or the best on validation. The common'
    ' recipe takes f1_macro; loss_or_accuracy, accuracy_then_auroc,'
    ' auroc_accuracy and late_auroc are rules of single papers (see'
    ' kmil_jax.selection).',
    choices=selection.SELECTS,
  )
  batch: int = field(
    1,
    'Slides per step. With more than one, the devices share them; with one,'
    ' they share the folds.',
    flag='batch_size',
    least=1,
  )
  store: str = free(
    'auto',
    'Where features are: a copy on each device, spread over the devices of the'
    ' pod, or streamed from disk; by default the first for which they fit.',
    choices=('auto', *STORES),
  )
  stream_cache: int = free(
    100,
    'GiB up to which streamed features are copied once to a file in --cache_dir'
    ' that epochs read; 0 for none.',
    least=0,
  )

  def recipe_of(self, model: str) -> Recipe:
    """Returns how a model is trained."""
    recipe = SPECS[model].own if self.recipe == 'own' else Recipe()
    given = {name: getattr(self, name) for name in (*_OF_RECIPE, 'batch')}
    changed = {name: v for name, v in given.items() if v is not None}
    return dataclasses.replace(recipe, **changed)

  def resolved(self, model: str) -> 'Training':
    """Returns the options with the recipe's values where none was given.

    Raises:
      OptionError: if the devices cannot share the slides of a step.
    """
    if self.batch > 1 and self.batch % parallel.num_devices():
      raise OptionError(
        f'--batch_size={self.batch} must be a multiple of the'
        f' {parallel.num_devices()} devices.'
      )
    recipe = self.recipe_of(model)
    values = {name: getattr(recipe, name) for name in _OF_RECIPE}
    return dataclasses.replace(self, **values)


@dataclasses.dataclass(frozen=True)
class Regression:
  """The logistic regression of experiments.mean_pooling."""

  c: float = field(1.0, 'Inverse strength of the L2 penalty.', least=1e-9)


# All that config.json of a run on bags may hold.
OPTIONS = (
  Model,
  Data,
  External,
  Folds,
  Requested,
  Training,
  Regression,
  Check,
  Output,
  Machine,
)


def settings(model: Model, training: Training, seed: int) -> folds.Settings:
  """Returns what is trained and how.

  Raises:
    OptionError: if options of the model do not fit together.
  """
  per_mille = 1000 * model.drop_fraction
  if abs(per_mille - round(per_mille)) > 1e-6:
    raise OptionError(
      f'--drop_fraction={model.drop_fraction} must be a number of thousandths.'
    )
  ranks = model.model in _DTFD['model']() and model.distill in dtfd.RANKING
  if ranks and model.total_instances < model.pseudo_bags:
    raise OptionError(
      f'--total_instances={model.total_instances} must be at least'
      f' --pseudo_bags={model.pseudo_bags}.'
    )
  return folds.Settings.of_options(
    to_json([model, training]),
    recipe=training.recipe_of(model.model),
    seed=seed,
  )


def trained(config: results.Config) -> folds.Settings | None:
  """Returns what a results folder was trained with; None of no bag model.

  Raises:
    OptionError: if config.json has an option that is unknown, or a value that
      it does not take.
  """
  if config.values.get('model') not in SPECS:
    return None
  held = dict(zip(OPTIONS, config.options(*OPTIONS), strict=True))
  return settings(held[Model], held[Training], held[Output].seed)
