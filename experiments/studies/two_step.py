"""A second network against the first one's mistakes: stages of Tang's study.

The second network learns to tell tumour from what the first one takes for it;
tumour is what both call so. Here are the stages that all material shares, and
tiles that lie on the grids of patients; images of nodes are in `node_images`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
from typing import Any, Protocol

import jax
import numpy as np

from data import labelled_tiles, tile_sources
from data.labelled_tiles import LabelledTiles, TileError
from experiments import papers
from experiments.evaluation.tables import HERE, INTERVAL, Row, Table
from experiments.patches import pictures, tiles as patch_tiles, training
from experiments.patches.study import File, Material, Study
from experiments.patches.tiles import TileFiles
from experiments.patches.training import Trained, Training
from experiments.run.check import Findings
from experiments.run.options import field
from kmil_jax import intervals, metrics
from kmil_jax.heatmap import FIRES
from kmil_jax.models import CLASSIFIERS

CLASSES = ('non-tumour', 'tumour')
ONE, RAISED, TWO = 'one step', 'one step, as sensitive as two', 'two steps'
SHARES = {'sensitivity': '.1f', 'specificity': '.1f', 'accuracy': '.1f'}
PUBLISHED = papers.read('tang')
_LEAST = 20  # False positives below which there is nothing to learn.
# Of the learning rate, for a secondary that starts from the primary's weights:
# at the full rate it forgets them before it has learned from so few tiles.
_FINE_TUNE = 0.3
_LARGEST = 10**8  # Pixels of a picture.
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
  """Both networks."""

  primaries: tuple[str, ...] | None = field(
    None,
    'Networks to compare as the first one. By default those of the paper,'
    ' googlenet, mobilenet_v2, resnet50 and resnet101; on the phantom the first'
    ' two of them, on tiles resnet18.',
    choices=_NAMES,
  )
  primary: str | None = field(
    None,
    'The first network. By default the one with the highest accuracy on the'
    ' validation patches.',
    choices=_NAMES,
  )
  secondary: str | None = field(
    None,
    'The second network. By default of the kind of the first, as in the paper.',
    choices=_NAMES,
  )

  def compared(self, design: Design) -> list[str]:
    """Returns the networks to train on all patches."""
    asked = [self.primary] if self.primary else []
    names = asked if asked and not self.primaries else design.primaries
    return list(dict.fromkeys([*names, *asked]))

  def weights(self, design: Design, options: Training) -> dict[str, str]:
    """Returns the files that networks start from, see `Training.weights_of`."""
    names = self.compared(design)
    return options.weights_of(
      [*names, *([self.secondary] if self.secondary else [])]
    )


@dataclasses.dataclass(frozen=True)
class Tiles(TileFiles):
  """Labelled tiles of your own, in one zip file."""

  positive: str | None = field(
    None,
    'Label of tumour. Needed unless labels are 0 and 1.',
    only={'tiles_zip': True},
  )


class Detectable(Material, Protocol):
  """What the two networks are trained on and applied to.

  Attributes:
    parts: tiles of `CLASSES` to train and to validate the first network with.
    split_by: what keeps these apart, 'patient' or 'patch'.
    origin: says where false positives are from.
  """

  parts: tuple[LabelledTiles, LabelledTiles]
  split_by: str
  origin: str

  def false_positives(self, primary: Trained) -> LabelledTiles:
    """Returns what a network takes for tumour and is not."""

  def decisions(
    self, study: Study, networks: Sequence[Trained]
  ) -> Iterator[Table | File | str]:
    """Yields what one network says, or two, beside the truth."""


def stages(
  study: Study, material: Detectable, networks: Networks, options: Training
) -> Iterator[Table | File | str]:
  """Trains both networks and yields Table 2, Figure 3 and the decisions."""
  design, recipe = study.recipe['design'], study.recipe['training']
  weights = networks.weights(design, options)

  def train(step, name, parts, start, rate=1.0):
    return training.train(
      study.folder,
      f'{step}_{name}',
      model=name,
      train=parts[0],
      val=parts[1],
      recipe=dataclasses.replace(
        recipe, learning_rate=rate * recipe.learning_rate
      ),
      options=dataclasses.replace(options, weights=start),
      seed=study.seed,
    )

  found = {
    name: train('primary', name, material.parts, weights.get(name))
    for name in networks.compared(design)
  }
  yield _table_2(found, material.split_by)
  best = max(found, key=lambda name: found[name].kept['val_accuracy'])
  primary = networks.primary or best
  yield f'primary network: {primary}'
  mistakes = material.false_positives(found[primary])
  yield f'false positives of the primary network: {len(mistakes)}'
  if len(mistakes) < _LEAST:
    yield f'fewer than {_LEAST}: no second step, and tables are of one'
    yield from material.decisions(study, [found[primary]])
    return
  parts = second_parts(mistakes, material.parts, material.split_by, study.seed)
  name = networks.secondary or primary
  start, rate = weights.get(name), 1.0
  if not start and name in found:
    start = str(study.folder.at(f'primary_{name}/{training.MODEL}'))
    rate = _FINE_TUNE
  second = train('secondary', name, parts, start, rate)
  notes = [material.origin]
  if material.split_by == 'patient' and set.intersection(
    *(set(part.group.tolist()) for part in parts)
  ):
    notes.append('Split by patch: the false positives of a part are too few.')
  accuracy, auroc = (second.kept[f'val_{k}'] for k in ('accuracy', 'auroc'))
  yield Table(
    'secondary',
    'The secondary network on its validation patches: false positives of the'
    ' primary, and tumour',
    ('step',),
    {
      'network': '',
      'false positives found': 'd',
      'accuracy (%)': '.1f',
      'AUROC': '.4f',
    },
    [Row(('secondary',), {HERE: (name, len(mistakes), 100 * accuracy, auroc)})],
    notes,
    PUBLISHED['secondary'],
  )
  curve = parts[1].label == 1, second.predict(parts[1])[0][:, 1]
  published = PUBLISHED['figure_3'].values['secondary',]['AUROC']
  title = f'Figure 3: the secondary network\n(AUROC in the paper: {published})'
  yield File('figures/secondary_roc.png', pictures.roc(title, {name: curve}))
  yield from material.decisions(study, [found[primary], second])


def _table_2(found: Mapping[str, Trained], split_by: str) -> Table:
  rows = []
  for name, trained in found.items():
    sizes = [x.size for x in jax.tree.leaves(trained.variables['params'])]
    kept = trained.kept
    here = 100 * kept['val_accuracy'], kept['val_auroc']
    rows.append(Row((name,), {HERE: (None, sum(sizes) / 1e6, *here)}))
  return Table(
    'table_2',
    'Table 2. Networks on the validation patches',
    ('network',),
    {
      'depth': 'd',
      'parameters (million)': '.1f',
      'accuracy (%)': '.1f',
      'AUROC': '.4f',
    },
    rows,
    [
      'The paper counts the parameters of 1000 classes, here there are two. Its'
      " networks started from ImageNet's weights and, as is implied, saw"
      ' patches at 224 pixels: --weights and --input_size do that.',
      {
        'patient': 'Patches are split by patient here, at random in the paper,'
        ' where patches of one image are on both sides: that is optimistic.',
        'patch': 'Patches are split at random, as in the paper: those of one'
        ' image are on both sides, which is optimistic.',
      }[split_by],
    ],
    PUBLISHED['table_2'],
  )


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
  drawn = mistakes.take(pick(len(mistakes)))
  drawn = labelled_tiles.concatenate(
    [drawn, known.take(tumour[pick(len(tumour))])]
  )
  trains = np.isin(drawn.group, parts[0].group)
  full = all(len(set(drawn.label[some])) == 2 for some in (trains, ~trains))
  if split_by == 'patch' or not full:
    wrong = np.flatnonzero(drawn.label == 0)
    order = np.random.default_rng([seed, 3]).permutation(wrong)
    trains = (drawn.label == 1) & np.isin(drawn.id, parts[0].id)
    trains[order[: round(0.7 * len(wrong))]] = True
  return drawn.take(trains), drawn.take(~trains)


def rules(
  primary: np.ndarray, both: np.ndarray, tumour: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns what is taken for tumour, bool [n] by rule.

  One step, as the primary network decides; one step whose bar is raised until
  it finds as much tumour as two steps do; and two steps.

  Args:
    primary: probability, [n].
    both: the decision in two steps, bool [n].
    tumour: the truth, bool [n].
  """
  bar = raised_bar(primary, tumour, int((both & tumour).sum()))
  return {ONE: primary >= FIRES, RAISED: primary >= bar, TWO: both}


def raised_bar(score: np.ndarray, truth: np.ndarray, found: int) -> float:
  """Returns the highest bar that so many true ones reach; infinite for none."""
  return np.sort(score[truth])[::-1][found - 1] if found else np.inf


def decided(
  labels: Sequence[str],
  said: np.ndarray,
  truth: np.ndarray,
  patient: np.ndarray,
  first: float | None,
  ends: tuple[float, float] | None = None,
) -> Row:
  """Returns a row: a value, hits of all, and `SHARES` of these in per cent.

  Args:
    labels: of the row.
    said: decisions, bool [n].
    truth: bool [n].
    patient: what varies, [n].
    first: value of the first column.
    ends: of its interval.
  """
  hit = said == truth
  counted = truth, ~truth, np.ones_like(truth)
  pairs = [(int(hit[some].sum()), int(some.sum())) for some in counted]
  return Row(
    labels,
    {
      HERE: (
        first,
        ', '.join(f'{h}/{n}' for h, n in pairs),
        *(100 * (h / n) for h, n in pairs),
      ),
      INTERVAL: (
        ends,
        None,
        *(percent(intervals.proportion(hit, c, patient)) for c in counted),
      ),
    },
  )


def percent(ends: np.ndarray) -> tuple[float, float]:
  """Returns an interval of a share in per cent."""
  low, high = ends.tolist()
  return 100 * low, 100 * high


@dataclasses.dataclass(frozen=True)
class Grids:
  """Tiles on the grids of patients; see `Detectable`.

  Tiles do not overlap: every pixel of a map has one vote, and false positives
  are whole tiles of the development part, of which the networks have seen most.
  """

  tiles: LabelledTiles
  inputs: Mapping[str, str]
  note: str
  seed: int
  is_phantom = False
  split_by = 'patient'
  origin = 'False positives are tiles of the training and validation parts.'

  @functools.cached_property
  def split(self) -> list[LabelledTiles]:
    """Tiles to train, validate and test with, of other patients each.

    Raises:
      TileError: if a class has too few patients.
    """
    rows = patch_tiles.split(self.tiles, seed=self.seed)
    return [self.tiles.take(some) for some in rows]

  @property
  def parts(self) -> tuple[LabelledTiles, LabelledTiles]:
    return tuple(self.split[:2])

  def check(self, findings: Findings) -> None:
    patch_tiles.check(findings, {'tiles': self.tiles}, lambda: self.split)

  def tables(self) -> Iterator[Table]:
    yield patch_tiles.counts({'all': self.tiles}, 'Tiles')

  def false_positives(self, primary: Trained) -> LabelledTiles:
    known = labelled_tiles.concatenate(self.parts)
    fires = primary.predict(known)[0][:, 1] >= FIRES
    return known.take(fires & (known.label == 0))

  def decisions(
    self, study: Study, networks: Sequence[Trained]
  ) -> Iterator[Table | File | str]:
    test = self.split[2]
    tumour = test.label == 1
    probs = [network.predict(test)[0][:, 1] for network in networks]
    prob, said = probs[0], np.all(np.array(probs) >= FIRES, 0)
    found = rules(prob, said, tumour) if probs[1:] else {ONE: said}
    overall, _ = intervals.bootstrap(
      test.label, np.stack([1 - prob, prob], 1), test.group
    )
    auroc = metrics.auroc(tumour, prob), tuple(overall['auroc'].tolist())
    counts = patch_tiles.counts(
      dict(zip(('training', 'validation', 'test'), self.split, strict=True)),
      'Parts',
    )
    yield dataclasses.replace(counts, name='parts')
    yield Table(
      'tiles',
      'Test tiles, of other patients than the networks learned from; shares in'
      ' per cent',
      ('rule',),
      {'AUROC': '.4f', 'tiles': ''} | SHARES,
      [
        decided(
          (rule,),
          some,
          tumour,
          test.group,
          *(auroc if rule == ONE else (None,)),
        )
        for rule, some in found.items()
      ],
      [
        'As sensitive as two: the bar for the primary network is raised on the'
        ' test tiles until one step finds as many with tumour as two.',
        'Intervals: of the AUROC percentiles of resampled patients, of the'
        " others Wilson's on the effective number of tiles, of which patients"
        ' hold several.',
      ],
    )
    lines = [['tile', 'patient_id', 'x', 'y', 'label', 'primary', 'decision']]
    columns = test.id, test.group, *test.xy.T, test.label, prob
    lines += zip(*columns, said.astype(int), strict=True)
    yield File('test_tiles.csv', lines)
    lines, shown = [['patient_id', 'tiles', 'tumour_tiles', 'auroc']], {}
    for patient in np.unique(test.group).tolist():
      mine = test.group == patient
      value = float(metrics.auroc(tumour[mine], prob[mine]))
      lines.append([patient, mine.sum(), tumour[mine].sum(), value])
      if np.isfinite(value) and cells(test.take(mine)) is not None:
        shown[patient] = mine.sum()
    yield File('patients.csv', lines)
    if not shown:
      yield (
        'no heat map is drawn: no test patient has tiles of both labels that'
        " lie on a grid; x and y are the pixels of a tile's upper left corner"
        ' in the one image of its patient'
      )
      return
    most = max(shown, key=shown.get)
    mine = test.group == most
    values = {line[0]: line[-1] for line in lines[1:]}
    maps = {
      'label': test.label[mine],
      f'primary, AUROC {values[most]:.3f}': prob[mine],
      'decision': said[mine],
    }
    yield File(f'figures/grid_{most}.png', _grid_figure(test.take(mine), maps))
    yield (
      f'heat map of patient {most}: AUROC {values[most]:.3f} over'
      f' {mine.sum()} tiles of the grid; median of {len(values)} test patients'
      f' {np.nanmedian(list(values.values())):.3f}'
    )


def open_tiles(files: Tiles, seed: int) -> Grids:
  """Opens tiles of the user.

  Raises:
    TileError: as `tile_sources.from_zip`, or if there are not two labels or it
      is not known which is tumour.
  """
  tiles = tile_sources.from_zip(files.tiles_zip, files.tiles_csv)
  found = tiles.classes
  if len(found) == 2 and not files.positive and found != ('0', '1'):
    raise TileError(
      f'{files.tiles_csv}: found the labels {", ".join(found)}. Give the one of'
      ' tumour with --positive.'
    )
  tiles = labelled_tiles.binary(tiles, files.positive)
  note = (
    f'{len(tiles)} tiles of {len(set(tiles.group))} patients;'
    f' {tiles.classes[0]} is non-tumour, {tiles.classes[1]} tumour'
  )
  inputs = {}
  for name in ('tiles_zip', 'tiles_csv'):
    with getattr(files, name).open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256')
    inputs[f'{name}_sha256'] = digest.hexdigest()
  tiles = dataclasses.replace(tiles, classes=CLASSES)
  return Grids(tiles, inputs, note, seed)


def cells(tiles: LabelledTiles) -> np.ndarray | None:
  """Returns column and row of the tiles of a patient, as of one image.

  Returns:
    int [n, 2]; None if they make no picture: several lie in one place, as
    those of several images or of indices in place of pixels, or far apart.
  """
  places = (tiles.xy.astype(np.int64) - tiles.xy.min(0)) // tiles.size
  if len(np.unique(places, axis=0)) < len(places):
    return None
  large = np.prod((places.max(0) + 1) * tiles.size) > _LARGEST
  return None if large else places


def _grid_figure(tiles: LabelledTiles, maps: Mapping[str, np.ndarray]) -> Any:
  """Draws tiles where they lie, and values of each."""
  side, (column, row) = tiles.size, cells(tiles).T
  shape = row.max() + 1, column.max() + 1
  image = np.full((*shape, side, side, 3), 255, np.uint8)
  image[row, column] = tiles.load(np.arange(len(tiles)))
  laid = {}
  for name, values in maps.items():
    grid = np.full(shape, np.nan)
    grid[row, column] = values
    laid[name] = grid, ()
  height, width = np.multiply(shape, side)
  return pictures.overlay(
    f'patient {tiles.group[0]}, {len(tiles)} tiles',
    image.swapaxes(1, 2).reshape(height, width, 3),
    laid,
    label='tumour',
  )
