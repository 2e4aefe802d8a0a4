"""Hard negatives: options, tiles, models and tables of the study of Lee et al.

The test part is fixed before anything is mined and holds annotated tiles alone.
What a weak model mines joins the training part of the strong one.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib
import warnings

import numpy as np

from data import labelled_tiles, tile_sources
from data.files import first_of
from data.labelled_tiles import LabelledTiles, TileError
from data.labels import leaks_between
from data.phantom import invasion
from data.splits import PARTS
from experiments import papers
from experiments.evaluation.tables import HERE, INTERVAL, Row, Table
from experiments.patches import tiles as patch_tiles, training
from experiments.patches.study import File, Material, Study, gathers_warnings
from experiments.patches.tiles import TileFiles
from experiments.patches.training import Trained, Training
from experiments.run import phantoms, results
from experiments.run.options import OptionError, field, free
from experiments.run.start import Findings
from kmil_jax import intervals, metrics, mining as search, parallel

WEAK, RANDOM = 'weak', 'random'
ALPHAS = (5, 10, 20, 50, 100)  # Of Table 3.
SHARES = (10, 30, 50, 70, 100)  # Of Tables 4 and 5, per cent.
POSITIVE = 1  # Place of the positive class.
LOW = 0.1  # The threshold that the paper's text names; its figures are at 0.5.
_SENSITIVITY = 0.9  # At which specificities are compared.
_STD = 'std over models'
_RESAMPLES = 2000
# Of tables and of models.csv; the first five are the paper's.
COLUMNS = dict.fromkeys(
  (
    *('auroc', 'auprc', 'f1_micro', 'sensitivity', 'specificity', 'f1'),
    *('f1_micro_low', 'sensitivity_low', 'specificity_low', 'f1_low'),
    *('specificity_at', 'auroc_hard'),
  ),
  '.4f',
) | {'false_positives': '.1f', 'mined': '.1f', 'mined_hard': '.2f'}
_PUBLISHED = papers.read('lee')
_CODE = ('data/phantom/*.py', 'experiments/studies/hard_negatives.py')
# Tables, and what names their rows.
_TITLES = {
  2: ('Models by query criterion (random: as many tiles)', 'criterion'),
  3: ('Models by the number of mined tiles per false positive', 'alpha'),
  4: ('Models of a share of the annotated training tiles', 'per cent'),
  5: ('Models of a share of the positive training tiles', 'per cent'),
}
_NOTES = (
  'Here: mean over models of other seeds, all tested on one test part. F1,'
  f' sensitivity and specificity at 0.5, low: at {LOW}; specificity_at: at a'
  f' sensitivity of {_SENSITIVITY}; auroc_hard: positives against the hard'
  ' negatives alone, which are what mining is for. delta: relative change.'
  ' false_positives: those of the weak model on the validation part, for which'
  ' tiles were mined.',
  'Intervals are those of the mean of these trainings when the patients of the'
  ' test part are resampled. The std shows how far others would differ.',
  'The paper: other data, not to be matched by these; means of three models.'
  ' Its F1 is f1_micro, the share of right tiles, its AUPRC the mean of both'
  ' classes (here: of the positive class), and its strong models were tested on'
  ' mined negatives, too.',
)
# A third is positive, as of what Lee et al. 2024 annotated. Hard negatives are
# so rare that a training part holds about a dozen, and the test part is large:
# it holds some ninety.
PHANTOM = {
  'case': {'patients': 110, 'patches': 25, 'positives': 0.31, 'hard': 0.06},
  'pool': {'patients': 24, 'patches': 125, 'positives': 0.0, 'hard': 0.04},
}


@dataclasses.dataclass(frozen=True)
class Data(TileFiles):
  """Annotated tiles and the pool; a phantom by default."""

  tiles_dir: pathlib.Path | None = free(
    None,
    'Annotated tiles: a folder for each of two classes, as neg and pos. File'
    ' names begin with the patient or slide and an underscore. Or a prepared'
    ' TFDS dataset, as .../lymphatic_invasion/hard/1.0.0.',
    only={'pool_dir': True, 'tiles_zip': False},
  )
  pool_dir: pathlib.Path | None = free(
    None,
    'Tiles of other patients, who have no positive, in any folders; or a TFDS'
    ' dataset, as .../lymphatic_invasion/weak/1.0.0.',
    only={'tiles_dir': True},
  )
  positive: str | None = field(
    None, 'Name of the positive class. By default the last in the alphabet.'
  )
  pool_share: float = field(
    0.4,
    'Share of the patients of --tiles_zip whose negative tiles make the pool.',
    least=0,
    most=1,
    only={'tiles_zip': True},
  )

  def __post_init__(self):
    if self.positive and self.is_phantom:
      raise OptionError('--positive requires --tiles_dir or --tiles_zip.')

  @property
  def is_phantom(self) -> bool:
    return not (self.tiles_dir or self.tiles_zip)


@dataclasses.dataclass(frozen=True)
class Mining:
  """How hard negatives are mined, and which tables are made.

  The paper's and the phantom's stand in place of None.
  """

  table: tuple[int, ...] = free(
    (2,),
    'Tables to make: 2 distances, 3 --alpha, 4 and 5 fewer training tiles.',
    least=2,
    most=5,
  )
  alpha: int | None = free(
    None,
    'How many tiles of the pool to add for each false positive (default 20).'
    ' Table 3 compares others.',
    least=1,
  )
  metric: str = field(
    'l2',
    'Distance of features by which the nearest tiles are found in Tables 3 to'
    ' 5. Table 2 compares both; its random control adds as many as this one.',
    choices=search.METRICS,
  )
  threshold: float = field(
    LOW,
    'A negative tile with at least this probability is a false positive.',
    least=0,
    most=1,
  )
  fractions: tuple[float, ...] | None = field(
    None,
    'Shares of the annotated tiles for training, validation and test (default'
    ' 0.6,0.2,0.2; phantom 0.11,0.13,0.76). Patients stay together.',
    least=0,
    most=1,
  )
  seeds: int = free(
    3,
    'Number of models of each kind, with --seed, --seed + 1 and so on.',
    least=1,
  )

  def __post_init__(self):
    if self.fractions and (len(self.fractions) != 3 or 0 in self.fractions):
      raise OptionError('--fractions needs three numbers above 0.')


@dataclasses.dataclass(frozen=True)
class TilesAndPool(Material):
  """Annotated tiles of two classes, and a pool."""

  annotated: LabelledTiles
  sets: Mapping[str, LabelledTiles]  # parts of these by name, and the pool
  hard: np.ndarray  # ids of negatives known to be hard, of the phantom alone

  @property
  def inputs(self) -> dict[str, str]:
    return {
      'annotated_sha256': patch_tiles.fingerprint(self.annotated),
      'pool_sha256': patch_tiles.fingerprint(self.sets['pool']),
    }

  def check(self, findings: Findings) -> None:
    patch_tiles.check(findings, self.sets)

  def tables(self) -> Iterator[Table]:
    yield patch_tiles.counts(self.sets, 'Tiles')


@gathers_warnings
def open_material(
  data: Data, mining: Mining, seed: int, cache_dir: pathlib.Path
) -> TilesAndPool:
  """Opens the annotated tiles and the pool of the user, or of the phantom.

  Args:
    data: where they are.
    mining: as it is used.
    seed: of the split, of the phantom and of the pool of a zip file.
    cache_dir: of the phantom.

  Raises:
    TileError: if the tiles cannot be read or split, or the pool is too small,
      has patients of the annotated tiles, or tiles of another kind.
  """
  hard = np.array([], str)
  if data.is_phantom:
    tiles, weak, note, hard = _phantom(seed, cache_dir)
  elif data.tiles_zip:
    tiles, weak, note = _from_zip(data, seed)
  else:
    tiles, weak, note = _from_folders(data)
  positive = tiles.label == POSITIVE
  annotated, pool = tiles.take(~weak), tiles.take(weak & ~positive)
  if left_out := (weak & positive).sum():
    note += f'; {left_out} positives of the pool are left out'
  note += f'; {tiles.classes[POSITIVE]} is positive'
  alpha = max(mining.alpha, *ALPHAS * (3 in mining.table), 0)
  if alpha > len(pool):
    raise TileError(
      f'alpha={alpha} is more than the {len(pool)} tiles of the pool. Give it'
      ' more, or a smaller --alpha.'
    )
  split = patch_tiles.split(annotated, mining.fractions, seed=seed)
  sets = dict(zip(PARTS, map(annotated.take, split), strict=True))
  sets['pool'] = pool
  return TilesAndPool(
    annotated,
    sets,
    hard,
    note=note,
    is_phantom=data.is_phantom,
    search=functools.partial(patch_tiles.shared, [annotated, pool]),
  )


def _from_folders(data: Data) -> tuple[LabelledTiles, np.ndarray, str]:
  """Opens folders of images, or prepared TFDS datasets.

  Returns:
    All tiles, which of them are the pool, bool [n], and where they are from.
  """

  def read(folder, otherwise):
    if not (folder / 'dataset_info.json').is_file():
      return otherwise(folder)
    from data import dataset_tiles  # TensorFlow takes seconds to import.

    return dataset_tiles.from_tfds(folder, 'train')

  annotated = labelled_tiles.binary(
    read(data.tiles_dir, tile_sources.from_folders), data.positive
  )
  pool = read(
    data.pool_dir, lambda path: tile_sources.from_pool(path, annotated.classes)
  )
  if pool.classes == annotated.classes[::-1]:  # Of TFDS, and --positive.
    pool = labelled_tiles.binary(pool, annotated.classes[POSITIVE])
  patients = set(pool.group)
  for path in map(pathlib.PurePosixPath, pool.id.tolist()):
    patients |= {*path.parts[:-1], tile_sources.before_underscore(path.stem)}
  if known := sorted(patients & set(annotated.group)):
    raise TileError(
      f'{data.pool_dir}: patients of annotated tiles are in the pool, too:'
      f' {first_of(known)}. They would be in the test part. Take them out.'
    )
  if set(annotated.id) & set(pool.id):
    pool = dataclasses.replace(pool, id=np.char.add('pool/', pool.id))
  note = f'{data.tiles_dir}, pool {data.pool_dir}'
  for line in leaks_between([annotated.group.tolist(), pool.group.tolist()]):
    warnings.warn(f'{note}: {line}', stacklevel=2)
  try:
    tiles = labelled_tiles.concatenate([annotated, pool])
  except TileError as e:
    raise TileError(f'{note}: {e}') from e
  return tiles, np.arange(len(tiles)) >= len(annotated), note


def _from_zip(data: Data, seed: int) -> tuple[LabelledTiles, np.ndarray, str]:
  """Opens a zip file and draws the patients of the pool; as `_from_folders`."""
  tiles = labelled_tiles.binary(
    tile_sources.from_zip(data.tiles_zip, data.tiles_csv), data.positive
  )
  patients = np.unique(tiles.group)
  drawn = np.random.default_rng([seed, 1]).permutation(patients)
  drawn = drawn[: round(data.pool_share * len(patients))]
  note = f'{data.tiles_csv}, pool of {len(drawn)} of {len(patients)} patients'
  if not 0 < len(drawn) < len(patients):
    raise TileError(f'{note}. Choose another --pool_share.')
  return tiles, np.isin(tiles.group, drawn), note


def _phantom(
  seed: int, cache_dir: pathlib.Path
) -> tuple[LabelledTiles, np.ndarray, str, np.ndarray]:
  """Returns the phantom as `_from_folders`, and ids of its hard negatives."""
  name, last = 'invasion_phantom', f'patches_s{seed}.npz'

  def render(root, progress):
    sets = [
      invasion.make(seed=seed, prefix=name, progress=progress, **about)
      for name, about in PHANTOM.items()
    ]
    both = {key: np.concatenate([s[key] for s in sets]) for key in sets[0]}
    results.Folder(root).write(last, both)

  root = phantoms.made(
    name, _CODE, render, cache_dir, last=last, unit='patient'
  )
  patches = results.read_arrays(root / last)
  note = (
    f'phantom of lymphatic invasion, seed {seed}: {invasion.SIZE} px of'
    f' {invasion.MPP:g} um. It shows that mining finds what a weak model is'
    ' mistaken about where a pool holds it, and what that is worth. It does not'
    ' show how common such tiles are in tissue, nor any figure of the paper'
  )
  about = patches['image'], patches['label'], patches['patient']
  ids, classes = patches['id'], invasion.CLASSES
  tiles = labelled_tiles.from_arrays(*about, classes, ids=ids)
  hard = ids[np.isin(patches['kind'], invasion.HARD)]
  return tiles, np.char.startswith(ids, 'pool'), note, hard


@dataclasses.dataclass(frozen=True)
class Setting:
  """One training.

  Attributes:
    seed: of parameters, order and augmentation.
    choice: 'weak', without tiles of the pool; or the metric by which they are
      chosen; or 'random', as many as the study's metric chooses.
    alpha: tiles of the pool per false positive, 0 for a weak model.
    share: per cent of the annotated training part that is used.
    of: 'all' tiles or the 'positives' alone are reduced to that share.
  """

  seed: int
  choice: str = WEAK
  alpha: int = 0
  share: int = 100
  of: str = 'all'

  @property
  def weak(self) -> 'Setting':
    """The setting of the weak model that mines for this one."""
    return dataclasses.replace(self, choice=WEAK, alpha=0)

  @property
  def name(self) -> str:
    """Its folder within the study's."""
    alpha = '' if self.choice == WEAK else f'_{self.alpha}'
    return f'seed_{self.seed}/{self.of}_{self.share}/{self.choice}{alpha}'


class Models:
  """Weak and strong models, each trained, tested and mined with once.

  Attributes:
    trained: the model of a setting.
    searched: with a weak model: its false positives, rows of the validation
      part; their features [Q, F]; and those of the pool [M, F].
    mined: of a setting, which rows of the pool join its training part.
    prob: of a setting, P(positive) of the test part, [n].
    notes: what a reader needs to know of the models so far.
  """

  def __init__(self, study: Study, material: TilesAndPool, options: Training):
    self.study, self.options, self.sets = study, options, material.sets
    self.mining: Mining = study.recipe['mining']
    self.hard = np.isin(self.sets['test'].id, material.hard)
    self.hard_in_pool = np.isin(self.sets['pool'].id, material.hard)
    self.trained = functools.lru_cache(maxsize=2)(self._train)
    self.searched = functools.cache(self._search)
    self.mined = functools.cache(self._mine)
    self.prob = functools.cache(self._test)
    self.notes: list[str] = []

  def _train(self, setting: Setting) -> Trained:
    tiles = reduced(self.sets['train'], setting, self.study.seed)
    if setting.choice != WEAK:
      chosen = self.sets['pool'].take(self.mined(setting).index)
      tiles = labelled_tiles.concatenate([tiles, chosen])
    return training.train(
      self.study.folder,
      setting.name,
      model='resnet18',
      train=tiles,
      val=self.sets['val'],
      recipe=self.study.recipe['resnet18'],
      options=self.options,
      seed=setting.seed,
    )

  def _search(
    self, setting: Setting
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    val, trained = self.sets['val'], self.trained(setting)
    prob, features = trained.predict(val)
    prob, negative = prob[:, POSITIVE], val.label != POSITIVE
    rows = np.flatnonzero(negative & (prob >= self.mining.threshold))
    if not len(rows):
      self.notes.append(
        f'{setting.name}: no negative of the validation part reaches'
        f' --threshold={self.mining.threshold:g} (the highest:'
        f' {prob[negative].max():.3g}), so that nothing is mined and the strong'
        ' model is the weak one. Lower the threshold, or annotate more'
        ' negatives.'
      )
    folder, name = self.study.folder, f'{setting.name}/pool_features.npy'
    if not folder.has(name):
      _, of_pool = trained.predict(self.sets['pool'])
      folder.write(name, of_pool)
      parallel.wait_for_all('pool')
    return rows, features[rows], np.load(folder.at(name), mmap_mode='r')

  def _mine(self, setting: Setting) -> search.Mined:
    if setting.choice != RANDOM:
      _, queries, pool = self.searched(setting.weak)
      return search.mine(queries, pool, setting.alpha, metric=setting.choice)
    like = dataclasses.replace(setting, choice=self.mining.metric)
    count = len(self.mined(like).index)
    rng = np.random.default_rng([self.study.seed, setting.seed, setting.alpha])
    chosen = rng.permutation(len(self.sets['pool']))[:count]
    return search.Mined(chosen, np.full(count, np.nan), np.full(count, -1))

  def _test(self, setting: Setting) -> np.ndarray:
    is_weak = setting.choice == WEAK
    if not is_weak and not len(self.mined(setting).index):
      return self.prob(setting.weak)
    folder, test = self.study.folder, self.sets['test']
    prob = self.trained(setting).predict(test)[0][:, POSITIVE]
    columns = test.id, test.group, test.label, prob
    rows = zip(*(column.tolist() for column in columns), strict=True)
    head = 'tile', 'group', 'label', 'prob_positive'
    folder.write(f'{setting.name}/predictions.csv', [head, *rows])
    if not is_weak:
      query = self.sets['val'].id[self.searched(setting.weak)[0]]
      mined, pool = self.mined(setting), self.sets['pool']
      rows = [('tile', 'distance', 'false_positive')]
      for i, d, q in zip(*vars(mined).values(), strict=True):
        why = ('', '') if q < 0 else (f'{d:.6g}', query[q])  # Random: none.
        rows.append((pool.id[i], *why))
      folder.write(f'{setting.name}/mined.csv', rows)
    return prob

  def scores(self, setting: Setting) -> dict[str, float | None]:
    """Returns the values of `COLUMNS`; None where one is undefined.

    False positives and what was mined with them are those that a strong model
    was trained with; a weak one has none of these values.
    """
    positive, prob = self.sets['test'].label == POSITIVE, self.prob(setting)
    rows = positive | self.hard
    high, low = (
      metrics.evaluate_binary(positive, prob, threshold)
      for threshold in (0.5, LOW)
    )
    values = high | {f'{name}_low': value for name, value in low.items()}
    values |= {
      'specificity_at': metrics.specificity_at(positive, prob, _SENSITIVITY),
      'auroc_hard': metrics.auroc(positive[rows], prob[rows]),
      **dict.fromkeys(('false_positives', 'mined', 'mined_hard'), np.nan),
    }
    if setting.choice != WEAK:
      mined = self.mined(setting).index
      values['false_positives'] = len(self.searched(setting.weak)[0])
      values['mined'] = len(mined)
      if len(mined) and self.hard_in_pool.any():
        values['mined_hard'] = float(self.hard_in_pool[mined].mean())
    return {k: None if np.isnan(values[k]) else values[k] for k in COLUMNS}

  def auroc_intervals(
    self, settings: Sequence[Setting], others: Sequence[Setting]
  ) -> dict[str, tuple[float, float]]:
    """Returns 95 % intervals of what models' AUROC is above that of others.

    Patients of the test part are resampled, for both alike.
    """
    test = self.sets['test']
    positive = test.label == POSITIVE

    def draw(settings, kept):
      return intervals.auroc_replicates(
        positive[kept],
        np.stack([self.prob(setting)[kept] for setting in settings]),
        test.group[kept],
        resamples=_RESAMPLES,
      )

    kinds = {'auroc': positive | True, 'auroc_hard': positive | self.hard}
    change = {k: draw(settings, v) - draw(others, v) for k, v in kinds.items()}
    return {k: tuple(intervals.percentile(v)) for k, v in change.items()}


def reduced(tiles: LabelledTiles, setting: Setting, seed: int) -> LabelledTiles:
  """Returns a random share of the tiles, or of the positives and all others.

  Unlike Lee et al., each class is reduced by itself, and keeps a tile at least;
  a smaller share is a subset of a larger one.

  Args:
    tiles: the annotated training part.
    setting: has the share.
    seed: of the draw.
  """
  if setting.share == 100:
    return tiles
  kept = []
  for c in range(len(tiles.classes)):
    rows = np.flatnonzero(tiles.label == c)
    if len(rows) and (setting.of == 'all' or c == POSITIVE):
      count = max(1, round(len(rows) * setting.share / 100))
      rows = np.random.default_rng([seed, c]).permutation(rows)[:count]
    kept.append(rows)
  return tiles.take(np.sort(np.concatenate(kept)))


def stages(
  study: Study, material: TilesAndPool, options: Training
) -> Iterator[Table | File | str]:
  """Trains the models of each table in turn, and yields what they predict."""
  mining: Mining = study.recipe['mining']
  seeds = range(study.seed, study.seed + mining.seeds)
  models, scores, by_share = Models(study, material, options), {}, []
  for number in sorted(set(mining.table)):
    groups = _groups(number, mining, seeds)
    # Seed by seed: weak models come before those that they mine for.
    for strong in itertools.chain(*zip(*groups.values(), strict=True)):
      for setting in (strong.weak, strong):
        scores[setting] = models.scores(setting)
    yield (table := _table(number, groups, scores, models))
    if number in (4, 5):
      by_share.append(table)
  yield from models.notes
  short = lambda value: f'{value:.6g}' if isinstance(value, float) else value
  every = [dataclasses.asdict(s) | values for s, values in scores.items()]
  rows = [[*map(short, one.values())] for one in every]
  yield File('models.csv', [every[0].keys(), *rows])
  # It imports matplotlib, which takes half a second.
  from experiments.studies import mined_pictures as pictures

  if by_share:
    yield File('figures/figure_4.png', pictures.radar(by_share, _PUBLISHED))
  setting = Setting(study.seed, mining.metric, mining.alpha)
  if len(models.mined(setting).index):
    false = models.sets['val'].take(models.searched(setting.weak)[0])
    test, pool = models.sets['test'], models.sets['pool']
    pair = {
      'weak': models.trained(setting.weak),
      'strong': models.trained(setting),
    }
    mined = pictures.mined(false, pool, models.mined(setting))
    yield File('figures/mined.png', mined)
    placed = pictures.features(test, pair, mining.threshold)
    yield File('figures/tsne.png', placed)
    yield File('figures/grad_cam.png', pictures.grad_cam(test, pair))


def _groups(
  number: int, mining: Mining, seeds: Sequence[int]
) -> dict[str | int, list[Setting]]:
  """Returns the strong models of a table by label, one of every seed."""
  changes = {
    2: {choice: {'choice': choice} for choice in (*search.METRICS, RANDOM)},
    3: {alpha: {'alpha': alpha} for alpha in ALPHAS},
    4: {share: {'share': share} for share in SHARES},
    5: {
      share: {'share': share, 'of': 'positives' if share < 100 else 'all'}
      for share in SHARES
    },
  }
  usual = {'choice': mining.metric, 'alpha': mining.alpha}
  return {
    label: [Setting(seed, **usual | change) for seed in seeds]
    for label, change in changes[number].items()
  }


def _table(
  number: int,
  groups: Mapping[str | int, Sequence[Setting]],
  scores: Mapping[Setting, Mapping[str, float | None]],
  models: Models,
) -> Table:
  """Returns a table of the paper: weak and strong models, and their change.

  Args:
    number: of the table.
    groups: strong models of every seed, by label.
    scores: of all models.
    models: all of them.
  """
  # Of a user's tiles nobody knows which are hard.
  columns = {
    name: form
    for name, form in COLUMNS.items()
    if any(values[name] is not None for values in scores.values())
  }

  def scores_of(settings):
    values = [[scores[s][name] for name in columns] for s in settings]
    return np.array(values, float)

  kinds, ends, rows = {}, {}, []  # By labels; [seeds, columns].
  for label, settings in groups.items():
    weak, strong = scores_of([s.weak for s in settings]), scores_of(settings)
    mean = np.where(weak.mean(0) > 0, weak.mean(0), np.nan)
    kinds |= {(label, 'weak'): weak, (label, 'strong'): strong}
    kinds[label, 'delta'] = strong.mean(0, keepdims=True) / mean - 1
  if number == 2:
    metric = models.mining.metric
    strong = groups[metric]
    weak = [setting.weak for setting in strong]
    for name, others in ((RANDOM, groups[RANDOM]), (WEAK, weak)):
      labels = metric, f'minus {name}'
      kinds[labels] = scores_of(strong) - scores_of(others)
      ends[labels] = models.auroc_intervals(strong, others)
  for labels, values in kinds.items():
    lines = {HERE: values.mean(0).tolist()}
    if len(values) > 1:
      lines[_STD] = values.std(0, ddof=1).tolist()
    if labels in ends:
      lines[INTERVAL] = [ends[labels].get(column) for column in columns]
    for name in (f'table_{number}', f'table_{number}_std'):
      lines |= _PUBLISHED[name].line(labels, columns)
    rows.append(Row(labels, lines))
  title, head = _TITLES[number]
  return Table(
    f'table_{number}',
    f'Table {number}. {title}',
    (head, 'model'),
    columns,
    rows,
    _NOTES,
  )
