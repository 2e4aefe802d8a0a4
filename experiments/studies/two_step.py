"""A second network against the first one's mistakes: stages of Tang's study.

The second network learns to tell tumour from what the first one takes for it;
tumour is what both call so. Here are the stages that all material shares, and
tiles that lie on the grids of patients; images of nodes are in `node_images`,
the map of votes over an image in `kmil_jax.heatmap`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

from data import labelled_tiles, tile_sources
from data.labelled_tiles import LabelledTiles, TileError
from data.splits import PARTS
from experiments import papers
from experiments.evaluation.tables import HERE, INTERVAL, Row, Table
from experiments.patches import tiles as patch_tiles, training
from experiments.patches.study import File, Material, Study, gathers_warnings
from experiments.patches.tiles import TileFiles
from experiments.patches.training import Trained, Training
from experiments.run.options import field
from experiments.run.start import Findings
from kmil_jax import checksums, intervals, metrics
from kmil_jax.heatmap import FIRES
from kmil_jax.models import CLASSIFIERS

CLASSES = ('non-tumour', 'tumour')
ONE, RAISED, TWO = 'one step', 'one step, as sensitive as two', 'two steps'
PUBLISHED = papers.read('tang')
_VALIDATION = {'accuracy (%)': '.1f', 'AUROC': '.4f'}
_LEAST = 20  # False positives below which there is nothing to learn.
# Of the learning rate, for a secondary that starts from the primary's weights:
# at the full rate it forgets them before it has learned from so few tiles.
_FINE_TUNE = 0.3
_NAMES = tuple(sorted(CLASSIFIERS))


@dataclasses.dataclass(frozen=True)
class Design:
  """What is compared and learned from, as in the paper.

  Fields that options have, too, are changed by them; see `study.Paper.here`.
  """

  primaries: tuple[str, ...] = tuple(
    name for (name,) in PUBLISHED['table_2'].values
  )
  patches: int = 16_000  # of each class
  least_tumour: int = 100  # um2: about one cell of squamous carcinoma


@dataclasses.dataclass(frozen=True)
class Networks:
  """The networks of both steps."""

  primaries: tuple[str, ...] | None = field(
    None,
    'Networks to compare for the first step. By default those of the paper,'
    ' googlenet, mobilenet_v2, resnet50 and resnet101; on the phantom the first'
    ' two of them, on tiles resnet18.',
    choices=_NAMES,
  )
  primary: str | None = field(
    None,
    'The network to take for the first step. By default the one of --primaries'
    ' with the highest accuracy on the validation patches.',
    choices=_NAMES,
  )
  secondary: str | None = field(
    None,
    'Network of the second step. By default the first one, as in the paper.',
    choices=_NAMES,
  )

  def with_primary(self) -> 'Networks':
    """Returns the same with the first network among those compared."""
    names = self.primaries or ()
    if self.primary is None or self.primary in names:
      return self
    return dataclasses.replace(self, primaries=(*names, self.primary))

  def weights(self, design: Design, options: Training) -> dict[str, str]:
    """Returns the files that networks start from, see `Training.weights_of`."""
    second = [self.secondary] if self.secondary else []
    return options.weights_of([*design.primaries, *second])


@dataclasses.dataclass(frozen=True)
class Tiles(TileFiles):
  """Labelled tiles of your own, in one zip file."""

  positive: str | None = field(
    None,
    'Which label means tumour. Needed unless labels are 0 and 1.',
    only={'tiles_zip': True},
  )


def stages(
  study: Study,
  material: Any,
  networks: Networks,
  options: Training,
) -> Iterator[Table | File | str]:
  """Trains both networks and yields Table 2, Figure 3 and the decisions.

  Args:
    study: recipes and folder.
    material: holds `parts`, tiles of `CLASSES` to train and to validate the
      first network with; `split_by`, what keeps these apart, 'patient' or
      'patch'. Its `false_positives` are those of the first network, its
      `decisions` what one network says, or two, beside the truth.
    networks: which.
    options: of the training.
  """
  design, recipe = study.recipe['design'], study.recipe['training']
  weights = networks.weights(design, options)

  def train(step, name, parts, start, rate=1.0):
    learning_rate = rate * recipe.learning_rate
    return training.train(
      study.folder,
      f'{step}_{name}',
      model=name,
      train=parts[0],
      val=parts[1],
      recipe=dataclasses.replace(recipe, learning_rate=learning_rate),
      options=dataclasses.replace(options, weights=start),
      seed=study.seed,
    )

  compared = {
    name: train('primary', name, material.parts, weights.get(name))
    for name in design.primaries
  }
  yield _table_2(compared, material.split_by)
  best = max(compared, key=lambda name: compared[name].kept['val_accuracy'])
  primary = networks.primary or best
  yield f'primary network: {primary}'
  mistakes = material.false_positives(compared[primary])
  yield f'false positives of the primary network: {len(mistakes)}'
  if len(mistakes) < _LEAST:
    yield f'fewer than {_LEAST}: no second step, and tables are of one'
    yield from material.decisions(study, [compared[primary]])
    return
  parts = second_parts(mistakes, material.parts, material.split_by, study.seed)
  name = networks.secondary or primary
  start, rate = weights.get(name), 1.0
  if not start and name in compared:
    start = str(study.folder.at(f'primary_{name}/{training.MODEL}'))
    rate = _FINE_TUNE
  second = train('secondary', name, parts, start, rate)
  here = name, len(mistakes), *_percent_and_auroc(second)
  yield Table(
    'secondary',
    'The secondary network on its validation patches: false positives of the'
    ' primary, and tumour',
    ('step',),
    {'network': '', 'false positives found': 'd'} | _VALIDATION,
    [Row(('secondary',), {HERE: here})],
    [
      'False positives are windows of negative development images, 20 um apart;'
      ' of tiles, those of the training and validation parts.',
      'Patches are split as for the first network; at random where a part would'
      ' lack false positives or tumour.',
    ],
    PUBLISHED['secondary'],
  )
  # It imports matplotlib, which takes half a second.
  from experiments.evaluation import figures

  shown = parts[1]
  curve = shown.label == 1, second.predict(shown)[0][:, 1], shown.group
  published = PUBLISHED['figure_3'].values['secondary',]['AUROC']
  title = f'Figure 3: the secondary network\n(AUROC in the paper: {published})'
  yield File('figures/secondary_roc.png', figures.roc(title, {name: curve}))
  yield from material.decisions(study, [compared[primary], second])


def _table_2(compared: Mapping[str, Trained], split_by: str) -> Table:
  rows = []
  for name, trained in compared.items():
    sizes = [x.size for x in jax.tree.leaves(trained.variables['params'])]
    here = None, sum(sizes) / 1e6, *_percent_and_auroc(trained)
    rows.append(Row((name,), {HERE: here}))
  return Table(
    'table_2',
    'Table 2. Networks on the validation patches',
    ('network',),
    {'depth': 'd', 'parameters (million)': '.1f'} | _VALIDATION,
    rows,
    [
      f'Patches are split by {split_by} here, by patch in the paper: then'
      ' patches of one image are on both sides, which is optimistic.',
    ],
    PUBLISHED['table_2'],
  )


def _percent_and_auroc(trained: Trained) -> tuple[float, float]:
  kept = trained.kept
  return 100 * kept['val_accuracy'], kept['val_auroc']


def second_parts(
  mistakes: LabelledTiles,
  parts: Sequence[LabelledTiles],
  split_by: str,
  seed: int,
) -> tuple[LabelledTiles, LabelledTiles]:
  """Returns false positives and as many tumour tiles, to train and validate.

  Each tile stays in the part that its patient, or the tile, had for the first
  network: the second one, which starts from its weights, is not validated on
  what these were made of.

  Args:
    mistakes: false positives; of more than there are tumour tiles, as many are
      drawn.
    parts: what the first network was trained and validated with.
    split_by: 'patient' or 'patch'. Where by patient a part would lack a class,
      as all false positives may be of one, tiles are split.
    seed: of what is drawn.
  """
  known = labelled_tiles.concatenate(parts)
  tumour = np.flatnonzero(known.label == 1)
  count = min(len(mistakes), len(tumour))
  rng = np.random.default_rng([seed, 2])
  pick = lambda n: np.sort(rng.choice(n, count, replace=False))
  false_positives = mistakes.take(pick(len(mistakes)))
  positives = known.take(tumour[pick(len(tumour))])
  drawn = labelled_tiles.concatenate([false_positives, positives])
  trains = np.isin(drawn.group, parts[0].group)
  full = all(len(set(drawn.label[some])) == 2 for some in (trains, ~trains))
  if split_by == 'patch' or not full:
    wrong = np.flatnonzero(drawn.label == 0)
    order = np.random.default_rng([seed, 3]).permutation(wrong)
    trains = (drawn.label == 1) & np.isin(drawn.id, parts[0].id)
    trains[order[: round(0.7 * len(wrong))]] = True
  return drawn.take(trains), drawn.take(~trains)


def evaluate(
  networks: Sequence[Trained], tiles: LabelledTiles
) -> list[np.ndarray]:
  """Returns probabilities of tumour by each network, float32 [n].

  The first network sees all tiles, the second one those alone that the first
  takes for tumour: the others are NaN.
  """
  probs, seen = [], np.ones(len(tiles), bool)
  for network in networks:
    prob = np.full(len(tiles), np.nan, np.float32)
    if seen.any():
      prob[seen] = network.predict(tiles.take(seen))[0][:, 1]
    probs.append(prob)
    seen = prob >= FIRES
  return probs


def rules(
  probs: Sequence[np.ndarray], tumour: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns what is taken for tumour, bool [n] by rule.

  One step, as the primary network decides; if there are two, also one step
  whose bar is raised until it finds as much tumour as two steps do; and two
  steps.

  Args:
    probs: as `evaluate` returns them.
    tumour: the truth, bool [n].
  """
  one = probs[0] >= FIRES
  if len(probs) == 1:
    return {ONE: one}
  both = one & (probs[1] >= FIRES)
  bar = raised_bar(probs[0], tumour, (both & tumour).sum())
  return {ONE: one, RAISED: probs[0] >= bar, TWO: both}


def raised_bar(score: np.ndarray, truth: np.ndarray, count: int) -> float:
  """Returns the highest bar that so many true ones reach; infinite for none."""
  return np.sort(score[truth])[::-1][count - 1] if count else np.inf


def decision_table(
  name: str,
  title: str,
  labels: Sequence[str],
  first: Mapping[str, str],
  decisions: Iterable[Sequence[Any]],
) -> Table:
  """Returns rules beside the truth.

  Args:
    name: of the table, and of what is decided on.
    title: stands above it.
    labels: columns of labels.
    first: formats of the first columns.
    decisions: of each row its labels; the decisions and the truth, bool [n];
      the patients, which vary, [n]; and of each first column the value and the
      ends of its interval, or None.
  """
  rows = []
  for of_row, decision, truth, patient, *values in decisions:
    hit, counts = decision == truth, []
    for some in (truth, ~truth, np.ones_like(truth)):
      hits, total = int(hit[some].sum()), int(some.sum())
      ends = 100 * intervals.proportion(hit, some, patient)
      share = 100 * (hits / total) if total else None
      values.append((share, tuple(ends.tolist())))
      counts.append(f'{hits}/{total}')
    here, ends = zip(*values, (', '.join(counts), None), strict=True)
    rows.append(Row(of_row, {HERE: here, INTERVAL: ends}))
  shares = dict.fromkeys(('sensitivity', 'specificity', 'accuracy'), '.1f')
  return Table(
    name,
    f'{title}; shares in per cent',
    labels,
    {**first, **shares, 'hits': ''},
    rows,
    [
      *[
        f'{RAISED}: the bar for the primary network is raised on the test part,'
        ' to the benefit of one step, while it finds as much tumour as two, or'
        ' more.'
      ]
      * any(RAISED in row.labels for row in rows),
      "Intervals: Wilson's on the effective number of images, windows or tiles,"
      ' of which patients hold several; of AUROC percentiles of resampled'
      ' patients.',
    ],
    PUBLISHED.get(name.removesuffix('_development')),
  )


def sha256(paths: Iterable[pathlib.Path], *about: Any) -> str:
  """Returns a hash of files, and of what else there is."""
  content = [*about, *map(checksums.of_file, paths)]
  return hashlib.sha256(repr(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Grids(Material):
  """Tiles on the grids of patients; see `stages`.

  Tiles do not overlap: every pixel of a map has one vote, and false positives
  are whole tiles of the development part, of which the networks have seen most.
  """

  tiles: LabelledTiles
  files: Tiles
  split: Mapping[str, LabelledTiles]  # by part
  split_by = 'patient'

  @property
  def parts(self) -> list[LabelledTiles]:
    return [self.split['train'], self.split['val']]

  @property
  def inputs(self) -> dict[str, str]:
    files = self.files
    return {'tiles_sha256': sha256([files.tiles_zip, files.tiles_csv])}

  def check(self, findings: Findings) -> None:
    patch_tiles.check(findings, {'tiles': self.tiles})

  def tables(self) -> Iterator[Table]:
    yield patch_tiles.counts(self.split, 'Tiles')

  def false_positives(self, primary: Trained) -> LabelledTiles:
    known = labelled_tiles.concatenate(self.parts)
    (prob,) = evaluate([primary], known)
    return known.take((prob >= FIRES) & (known.label == 0))

  def decisions(
    self, study: Study, networks: Sequence[Trained]
  ) -> Iterator[Table | File | str]:
    test = self.split['test']
    probs = evaluate(networks, test)
    prob, tumour, patient = probs[0], test.label == 1, test.group
    by_rule = rules(probs, tumour)
    decision = list(by_rule.values())[-1]
    drawn = intervals.auroc_replicates(tumour, prob[None], patient)
    ends = tuple(intervals.percentile(drawn).tolist())
    auroc = {ONE: (metrics.auroc(tumour, prob), ends)}
    yield decision_table(
      'tiles',
      'Test tiles, of other patients than the networks learned from',
      ('rule',),
      {'AUROC': '.4f'},
      [
        ((rule,), some, tumour, patient, auroc.get(rule, (None, None)))
        for rule, some in by_rule.items()
      ],
    )
    header = 'tile', 'patient_id', 'x', 'y', 'label', 'primary', 'decision'
    columns = test.id, patient, *test.xy.T, test.label, prob, 1 * decision
    yield File('test_tiles.csv', [header, *zip(*columns, strict=True)])
    lines, known = [('patient_id', 'tiles', 'tumour_tiles', 'auroc')], []
    for name in np.unique(patient):
      mine = patient == name
      value = float(metrics.auroc(tumour[mine], prob[mine]))
      lines.append((name, mine.sum(), tumour[mine].sum(), value))
      if np.isfinite(value):
        known.append(value)
    yield File('patients.csv', lines)
    if known:
      yield (
        f'AUROC of single patients: median {np.median(known):.3f} of the'
        f' {len(known)} test patients with tiles of both labels'
      )


@gathers_warnings
def open_tiles(files: Tiles, seed: int) -> Grids:
  """Opens tiles of the user.

  Raises:
    TileError: as `tile_sources.from_zip`, or if there are not two labels, it is
      not known which is tumour, or a class has too few patients.
  """
  tiles = tile_sources.from_zip(files.tiles_zip, files.tiles_csv)
  classes = tiles.classes
  if len(classes) == 2 and not files.positive and classes != ('0', '1'):
    raise TileError(
      f'{files.tiles_csv}: found the labels {", ".join(classes)}. Give the one'
      ' of tumour with --positive.'
    )
  tiles = labelled_tiles.binary(tiles, files.positive)
  note = f'{tiles.classes[0]} is non-tumour, {tiles.classes[1]} tumour'
  tiles = dataclasses.replace(tiles, classes=CLASSES)
  rows = patch_tiles.split(tiles, seed=seed)
  split = dict(zip(PARTS, map(tiles.take, rows), strict=True))
  search = functools.partial(patch_tiles.shared, [tiles])
  return Grids(tiles, files, split, note=note, search=search)
