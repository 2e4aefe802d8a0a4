"""The scores of a slide's tiles, as the models of one or several folds see it.

`fold_<i>/attention/<slide_id>.h5` of a results folder holds those of one fold:
`coords` [N, 2] (level-0 pixels), `attention` [N, A], `instance_prob` [N, C],
`kept` [N] and the slide's `prob` [C].
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
import re
from typing import Any

import h5py
import numpy as np

from data import features, inspection
from data.features import FeatureError
from data.files import replacing
from kmil_jax import calibration

SCALES = ('absolute', 'rank')
# By the flag --colours. All but jet are even to the eye.
COLOURS = ('viridis', 'YlGn', 'coolwarm', 'jet')
# What makes a slide no test of the models.
VALIDATION = 'validation slide, not a test'
TRAINING = 'slide of the training, not a test'
PATIENT = 'patient of the training, not a test'
_SAME = ('coords', 'side', 'classes', 'size', 'mpp')  # In all folds.
_FAR = 2**31  # No pixel is there, and no score is so large.


class MapError(ValueError):
  """A map cannot be made: the file or slide, what was found, what to do."""


class UnplacedError(MapError):
  """Scores of tiles whose place or size is not known."""


@dataclasses.dataclass(frozen=True)
class TileScores:
  """What the models of F folds predict of the N tiles of one slide.

  A tile is kept by a fold unless its model drops it (KMIL), and a model
  predicts no class of a tile that it drops.
  """

  slide: str
  folds: tuple[int, ...]
  classes: tuple[str, ...]
  coords: np.ndarray  # int64 [N, 2], upper left corners (x, y), level-0 pixels
  side: float  # of a tile, level-0 pixels
  # [F, C], of the slide, at the temperature of the fold where its file has one
  prob: np.ndarray
  instance_prob: np.ndarray  # [F, N, C]
  attention: np.ndarray  # [F, N, A], A is 1 or C; columns sum to 1
  kept: np.ndarray  # bool [F, N]
  size: tuple[int, int] | None = None  # of the slide, level-0 pixels, if known
  mpp: float | None = None  # um per level-0 pixel, if the features state it

  def __len__(self) -> int:
    return len(self.coords)

  @functools.cached_property
  def predicted(self) -> int:
    """The class that the mean probability of the folds makes likeliest."""
    return int(self.prob.mean(0).argmax())

  def check_slide(self, path: pathlib.Path, width: int, height: int) -> None:
    """Raises a MapError unless the tiles can be those of a slide of that size.

    It is the size that their features state, if they do; tiles may reach across
    the edge of a slide but do not lie beyond it.
    """
    low, high = self.coords.min(0), self.coords.max(0)
    if self.size not in (None, (width, height)):
      other = 'of a slide of {} x {} px'.format(*self.size)
    elif (high >= (width, height)).any() or (low <= -self.side).any():
      other = 'from x {}, y {} to x {}, y {} px'.format(*low, *high)
    else:
      return
    raise MapError(
      f'{path}: has {width} x {height} px, but the tiles of {self.slide} are'
      f' {other}. Maps would lie in wrong places. Give the folder of the slides'
      ' that the features were made of.'
    )

  @property
  def spread(self) -> np.ndarray:
    """Sample standard deviation of `prob` over the folds, [C]; NaN of one."""
    nothing = np.full(len(self.classes), np.nan)
    return self.prob.std(0, ddof=1) if len(self.folds) > 1 else nothing

  @functools.cached_property
  def shown(self) -> np.ndarray:
    """Tiles that any fold keeps, bool [N]."""
    return self.kept.any(0)

  def probability(self, c: int) -> np.ndarray:
    """Mean probability of class c, over the folds that keep a tile, [N].

    NaN where no fold does.
    """
    return self._kept(c).mean(0).filled(np.nan)

  def multiples(self, c: int) -> np.ndarray:
    """Mean attention for class c as multiples of an equal share, [N].

    An equal share is 1 over the tiles that a fold keeps: what mean pooling
    would give every tile. NaN where no fold keeps the tile.
    """
    column = c if self.attention.shape[-1] > 1 else 0
    share = self.attention[..., column] * self.kept.sum(1, keepdims=True)
    return np.where(self.shown, share.mean(0), np.nan)

  def disagreement(self, c: int) -> np.ndarray:
    """Standard deviation over folds of the probability of class c, [N].

    Of the population (divided by the number of folds), 0 to 0.5; over the folds
    that keep a tile, NaN where these are fewer than two.
    """
    kept = self._kept(c)
    deviation = kept.std(0).filled(np.nan)
    return np.where(kept.count(0) > 1, deviation, np.nan)

  def _kept(self, c: int) -> np.ma.MaskedArray:
    return np.ma.array(self.instance_prob[..., c], mask=~self.kept)


def path_of(run: pathlib.Path, fold: int, slide: str) -> pathlib.Path:
  """Returns the path of the scores of a slide by the model of a fold."""
  return run / f'fold_{fold}' / 'attention' / f'{slide}.h5'


def write(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  attributes: Mapping[str, Any],
) -> None:
  """Writes an HDF5 file, which is there in full or not at all."""
  with replacing(path) as part, h5py.File(part, 'w') as file:
    for name, array in arrays.items():
      file[name] = array
    file.attrs.update(attributes)


def find(
  run: pathlib.Path, fold: int | None = None
) -> dict[str, dict[int, pathlib.Path]]:
  """Returns the files of tile scores in a results folder.

  Args:
    run: the folder.
    fold: the only one looked at.

  Returns:
    By slide, in the order of names, and by fold.

  Raises:
    MapError: if there are none.
  """
  files: dict[str, dict[int, pathlib.Path]] = {}
  for path in sorted(run.glob('fold_*/attention/*.h5')):
    number = re.fullmatch(r'fold_(\d+)', path.parts[-3])
    hidden = path.name.startswith('.')  # Being written.
    if number and not hidden and fold in (None, int(number[1])):
      files.setdefault(path.stem, {})[int(number[1])] = path
  if not files:
    name = 'fold_*' if fold is None else f'fold_{fold}'
    raise MapError(
      f'{run}: holds no {name}/attention/<slide_id>.h5. Give --run the folder'
      ' of a finished run of experiments.kmil or experiments.predict.'
    )
  return {slide: dict(sorted(files[slide].items())) for slide in sorted(files)}


def read(
  paths: Mapping[int, pathlib.Path], tile_size: float | None = None
) -> TileScores:
  """Reads the scores of one slide.

  Args:
    paths: of its files, by fold; see `find`.
    tile_size: side of a tile in level-0 pixels, for files that do not state it.

  Raises:
    UnplacedError: if a file lacks the tiles' coordinates or their size.
    MapError: if a file is damaged, or two folds have seen different tiles.
  """
  by_path = {path: _read(path, tile_size) for path in paths.values()}
  first_path, first = next(iter(by_path.items()))
  for path, other in by_path.items():
    for name in _SAME:
      if not np.array_equal(first[name], other[name]):
        raise MapError(
          f'{first_path} and {path} differ in {name}: the folds saw different'
          ' tiles. Remove the older folder.'
        )
  stacked = {
    name: np.stack([one[name] for one in by_path.values()])
    for name in first.keys() - set(_SAME)
  }
  return TileScores(
    slide=first_path.stem,
    folds=tuple(paths),
    **{name: first[name] for name in _SAME},
    **stacked,
  )


def _read(path: pathlib.Path, tile_size: float | None) -> dict[str, Any]:
  try:
    if not inspection.ends(path):
      raise MapError(
        f'{path}: damaged, reading it never ends or crashes. Delete it and run'
        ' the fold again.'
      )
    return _parse(path, tile_size)
  except MapError:
    raise
  except FeatureError as e:
    raise MapError(str(e)) from e
  except Exception as e:  # Damaged files raise errors of many kinds.
    raise MapError(
      f'{path}: not a complete HDF5 file of tile scores ({e}). Delete it and'
      ' run the fold again.'
    ) from e


def _parse(path: pathlib.Path, tile_size: float | None) -> dict[str, Any]:
  """Returns what a file of scores holds; errors of any kind if damaged."""
  needed = {'attention', 'instance_prob', 'kept', 'prob', 'classes'}
  with h5py.File(path, 'r', locking=False) as file:
    names = file.keys() & {*needed, 'coords'}
    arrays = {name: features.part(file, name)[()] for name in names}
    marks = dict(file.attrs)
  if lacks := sorted(needed - arrays.keys() - marks.keys()):
    raise MapError(f'{path}: lacks {", ".join(lacks)}. Run the fold again.')
  if 'coords' not in arrays:
    raise UnplacedError(
      f'{path}: its features had no coordinates in level-0 pixels, so the tiles'
      ' cannot be placed. Extract the slide with coordinates, or, if they are'
      ' in micrometres (STAMP), train with --slides_dir and another --exp_code.'
    )
  classes = tuple(map(str, marks['classes']))
  guessed = tile_size and 'patch_size_level0_source' in marks
  side = tile_size if guessed else marks.get('patch_size_level0', tile_size)
  if side is None or not 0 < float(side) < 2**14:
    stated = 'is not stated' if side is None else f'cannot be {side}'
    raise UnplacedError(
      f'{path}: the side of its tiles (patch_size_level0) {stated}. Give'
      ' --tile_size, in level-0 pixels below 16384.'
    )
  n = len(arrays['kept']) if arrays['kept'].ndim else 0
  shapes = {
    'coords': [(n, 2)],
    'attention': [(n, 1), (n, len(classes))],
    'instance_prob': [(n, len(classes))],
    'kept': [(n,)],
    'prob': [(len(classes),)],
  }
  for name, allowed in shapes.items():
    array = arrays[name]
    finite = (np.abs(array) < _FAR).all()  # Nor NaN.
    if not n or array.shape not in allowed or not finite:
      raise MapError(
        f'{path}: {name} has shape {list(array.shape)} for {n} tiles and'
        f' {len(classes)} classes, or numbers that are not finite. Run the'
        ' fold again.'
      )
  if 'temperature' in marks:  # Of experiments.predict.
    t = marks['temperature']
    arrays['prob'] = calibration.scale(arrays['prob'][None], t)[0]
  size = [marks.get(f'level0_{name}') for name in ('width', 'height')]
  return {name: arrays[name] for name in shapes} | {
    'coords': arrays['coords'].astype(np.int64),
    'kept': arrays['kept'].astype(bool),
    'side': float(side),
    'size': None if None in size else tuple(map(int, size)),
    'mpp': None if (mpp := marks.get('level0_mpp')) is None else float(mpp),
    'classes': classes,
  }
