"""Tries a two-step detector on real tiles that lie on the grids of patients."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from data import labelled_tiles, tile_sources
from data.labelled_tiles import LabelledTiles, TileError
from experiments import (
  files,
  two_step_run,
  two_step_scores as scores,
  two_step_tables,
)
from experiments.patches import pictures as patch_pictures, tiles as patch_tiles
from experiments.run import results
from experiments.two_step_patches import CLASSES
from experiments.two_step_run import Settings
from experiments.two_step_scores import Shares
from kmil_jax import intervals, metrics
from kmil_jax.heatmap import FIRES

_FRACTIONS = (0.6, 0.2, 0.2)
_LARGEST = 10**8  # Pixels of a picture.


@dataclasses.dataclass(frozen=True)
class Grids:
  """Labelled tiles and a hash of their files."""

  tiles: LabelledTiles
  inputs: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Said:
  """What the networks say of test tiles, [n] each."""

  primary: np.ndarray  # probability of tumour
  both: np.ndarray | None  # bool, the decision in two steps if there are two

  def positive(self) -> np.ndarray:
    """Returns the decision of the last step there is, bool [n]."""
    return self.primary >= FIRES if self.both is None else self.both

  def take(self, rows: np.ndarray) -> 'Said':
    """Returns what was said of the tiles at `rows`."""
    return Said(
      self.primary[rows], None if self.both is None else self.both[rows]
    )


def open_tiles(zip_path: str, csv_path: str, positive: str | None) -> Grids:
  """Opens tiles; of the labels 0 and 1 the second is tumour.

  Args:
    zip_path: see `tile_sources.from_zip`.
    csv_path: their table.
    positive: label of tumour; needed where labels are not 0 and 1.

  Raises:
    TileError: as `tile_sources.from_zip`, or if there are not two labels or it
      is not known which is tumour.
  """
  tiles = tile_sources.from_zip(zip_path, csv_path)
  if len(tiles.classes) == 2 and not positive and tiles.classes != ('0', '1'):
    raise TileError(
      f'{csv_path}: found the labels {", ".join(tiles.classes)}; say by'
      ' --positive which is tumour'
    )
  tiles = labelled_tiles.binary(tiles, positive)
  print(
    f'{len(tiles)} tiles of {tiles.size} px, {len(set(tiles.group))} patients;'
    f' {tiles.classes[0]} is non-tumour, {tiles.classes[1]} tumour'
  )
  inputs = {}
  for name, path in (('tiles_zip', zip_path), ('tiles_csv', csv_path)):
    with pathlib.Path(path).open('rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
    inputs[f'{name}_sha256'] = digest
  return Grids(dataclasses.replace(tiles, classes=CLASSES), inputs)


def parts(tiles: LabelledTiles, seed: int) -> list[LabelledTiles]:
  """Returns the tiles of training, validation and test, by patient.

  Raises:
    TileError: if a class has too few patients.
  """
  split = patch_tiles.split(tiles, _FRACTIONS, seed=seed)
  return [tiles.take(rows) for rows in split]


def run(folder: pathlib.Path, grids: Grids, settings: Settings) -> None:
  """Runs all stages, tiles split by patient.

  Tiles do not overlap: every pixel of a map has one vote, and false positives
  are whole tiles of the development part, of which the networks have seen most.
  """
  train, val, test = parts(grids.tiles, settings.seed)
  for name, part in (('train', train), ('validation', val), ('test', test)):
    count = np.bincount(part.label, minlength=2)
    print(
      f'{name}: {len(set(part.group))} patients, {count[0]} non-tumour and'
      f' {count[1]} tumour tiles',
      flush=True,
    )
  name, found = two_step_run.primaries(folder, (train, val), settings)
  two_step_run.show(folder, two_step_run.networks_table(found, 'patient'))
  print(f'primary network: {name}', flush=True)
  primary = found[name]
  development = labelled_tiles.concatenate([train, val])
  fires = primary.predict(development)[0][:, 1] >= FIRES
  secondary, table = two_step_run.secondary(
    folder,
    development.take(fires & (development.label == 0)),
    (train, val),
    name,
    settings,
    'False positives are tiles of the training and validation parts.',
  )
  if table is not None:
    two_step_run.show(folder, table)
  prob = primary.predict(test)[0][:, 1]
  both = None
  if secondary is not None:
    both = secondary.predict(test)[0][:, 1] >= FIRES
    both &= prob >= FIRES
  said = Said(prob, both)
  two_step_run.show(
    folder, two_step_tables.tiles(compare(test, said), auroc(test, prob))
  )
  aurocs = _by_patient(folder, test, said)
  best = _shown(test, aurocs)
  if best is None:
    print(
      'no heat map is drawn: no test patient has tiles of both labels that lie'
      " on a grid; x and y are the pixels of a tile's upper left corner in the"
      f' one image of its patient\nresults: {folder}'
    )
    return
  path = folder / 'figures' / f'grid_{best}.png'
  rows = test.group == best
  _draw(path, test.take(rows), said.take(rows), aurocs[best])
  print(
    f'heat map of patient {best}: AUROC {aurocs[best]:.3f} over'
    f' {rows.sum()} tiles of the grid; median of {len(aurocs)} test patients'
    f' {np.nanmedian(list(aurocs.values())):.3f}\nresults: {folder}'
  )


def auroc(tiles: LabelledTiles, prob: np.ndarray) -> tuple[float, np.ndarray]:
  """Returns the AUROC, and its 95 % interval from resampled patients."""
  tumour = tiles.label == 1
  drawn = intervals.auroc_replicates(tumour, prob[None], tiles.group)
  return metrics.auroc(tumour, prob), intervals.percentile(drawn)


def compare(tiles: LabelledTiles, said: Said) -> dict[str, Shares]:
  """Returns how tiles are decided on by one step and by two, by rule."""
  tumour = tiles.label == 1
  rules = {'one step': said.positive()}
  if said.both is not None:
    rules = scores.rules(said.primary, said.both, tumour)
  return {
    rule: scores.shares(decided, tumour, tiles.group)
    for rule, decided in rules.items()
  }


def _by_patient(
  folder: pathlib.Path, tiles: LabelledTiles, said: Said
) -> dict[str, float]:
  """Writes patients.csv and test_tiles.csv; returns AUROC by patient."""
  aurocs, rows = {}, []
  for patient in np.unique(tiles.group):
    mine = tiles.group == patient
    tumour = tiles.label[mine] == 1
    aurocs[patient] = float(metrics.auroc(tumour, said.primary[mine]))
    rows.append([patient, mine.sum(), tumour.sum(), aurocs[patient]])
  header = ['patient_id', 'tiles', 'tumour_tiles', 'auroc']
  files.write_csv(folder / 'patients.csv', [header, *rows])
  columns = (tiles.id, tiles.group, *tiles.xy.T, tiles.label, said.primary)
  header = ['tile', 'patient_id', 'x', 'y', 'label', 'primary', 'decision']
  files.write_csv(
    folder / 'test_tiles.csv',
    [header, *zip(*columns, said.positive().astype(int), strict=True)],
  )
  return aurocs


def _shown(tiles: LabelledTiles, aurocs: dict[str, float]) -> str | None:
  """Returns the patient with most tiles, of both classes and on a grid."""
  known = [
    p
    for p, value in aurocs.items()
    if np.isfinite(value) and cells(tiles.take(tiles.group == p)) is not None
  ]
  size = lambda patient: (tiles.group == patient).sum()
  return max(known, key=size, default=None)


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


def _draw(
  path: pathlib.Path, tiles: LabelledTiles, said: Said, auroc: float
) -> None:
  """Draws the grid: tiles, labels, the primary's probability, decisions."""
  side = tiles.size
  column, row = cells(tiles).T
  shape = (row.max() + 1, column.max() + 1)

  def lay(values):
    grid = np.full(shape, np.nan)
    grid[row, column] = values
    return grid

  image = np.full((shape[0] * side, shape[1] * side, 3), 255, np.uint8)
  pixels = tiles.load(np.arange(len(tiles)))
  for tile, y, x in zip(pixels, row * side, column * side, strict=True):
    image[y : y + side, x : x + side] = tile
  drawing = patch_pictures.overlay(
    f'patient {tiles.group[0]}, {len(tiles)} tiles',
    image,
    {
      'label': (lay(tiles.label), ()),
      f'primary, AUROC {auroc:.3f}': (lay(said.primary), ()),
      'decision': (lay(said.positive()), ()),
    },
    label='tumour',
  )
  results.Folder(path.parent).write(path.name, drawing)
