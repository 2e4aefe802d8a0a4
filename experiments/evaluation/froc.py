"""Lesion-level scores: files of detections and masks, values, the curve."""

import collections
from collections.abc import Collection, Mapping
import contextlib
import pathlib
import re
from typing import Any

import numpy as np

from data import files, images
from data.files import counted
from data.labelled_tiles import TileError
from experiments.run.start import Findings
from kmil_jax import froc
from kmil_jax.froc import Case, Froc

# Of tables: formats by name; see `values`.
COLUMNS = {'FROC': '.3f'} | {f'at {rate:g}': '.3f' for rate in froc.RATES}
NOTE = (
  'FROC: mean sensitivity at 1/4 to 8 false positives per slide, by the'
  ' definition of CAMELYON16.'
)
_NAMES = 'probability', 'x', 'y'
_SWAPPED = 'Perhaps x and y are swapped.'
_XY, _PIXELS = 'x for y', 'pixels of the masks for those of level 0'


class DetectionError(TileError):
  """Masks or detections that cannot be used; names files."""


def values(curve: Froc) -> list[float]:
  """Returns what `COLUMNS` of a table hold."""
  return [curve.score, *curve.sensitivity.tolist()]


def draw(curves: Mapping[str, Froc]) -> Any:
  """Draws curves up to 8 false positives per slide.

  Marks are where the score is read off; a dotted line continues a curve whose
  largest rate is lower, as the score does.

  Args:
    curves: by name; '' for one that needs none.
  """
  from matplotlib import figure  # Takes half a second.

  drawing = figure.Figure((5.6, 4.9), layout='constrained')
  ax = drawing.subplots()
  last = froc.RATES[-1]
  for i, (name, result) in enumerate(curves.items()):
    label = f'{name}, FROC {result.score:.3f}'.removeprefix(', ')
    ax.plot(result.rate, result.curve, f'C{i}', lw=1.5, label=label)
    marks = froc.RATES, result.sensitivity, f'C{i}o'
    ax.plot(*marks, ms=5, zorder=3, clip_on=False)
    if result.rate[-1] < last:
      ends = [result.rate[-1], last], result.curve[[-1, -1]]
      ax.plot(*ends, f'C{i}:', lw=1.5)
  ax.set(xlim=(0, 1.02 * last), ylim=(0, 1.02))
  ax.set(xlabel='false positives per slide', ylabel='sensitivity, lesions')
  some = next(iter(curves.values()))
  ax.set_title(f'slides: {some.slides}, lesions: {some.lesions}', pad=10)
  ax.grid(color='0.92')
  # Below: curves may be anywhere within.
  drawing.legend(loc='outside lower center', ncols=2, fontsize=9)
  return drawing


def read(
  masks_dir: pathlib.Path,
  detections_dir: pathlib.Path,
  *,
  mpp: float = froc.MPP,
  level: int = froc.LEVEL,
  findings: Findings | None = None,
) -> dict[str, Case]:
  """Returns what the detections of every slide hit and miss, by case.

  Args:
    masks_dir: <case>_mask_level<level>.png of slides with tumour, 0 and 255;
      those of other levels are not looked at. A mask without 255 is one of a
      slide with nothing to find.
    detections_dir: <case>.csv of every slide, see `read_detections`.
    mpp: um per level-0 pixel.
    level: of the masks.
    findings: gets a warning if places seem to be meant otherwise.

  Raises:
    DetectionError: naming all files that cannot be used.
  """
  for folder in (masks_dir, detections_dir):
    if not folder.is_dir():
      raise DetectionError(f'{folder}: no such folder. Give another one.')
  kind = detections_dir, ('.csv',), '*'
  cases = {path.stem: path for path in files.listed(*kind)}
  masks, problems = {}, []
  if not cases:
    problems.append(f'{detections_dir}: no <case>.csv. Each slide needs one.')
    problems += files.left_out(*kind)
  for path in files.listed(masks_dir, pattern='*'):
    named = re.fullmatch(r'(.+)_mask_level(\d+)', path.stem)
    if bool(named) != (path.suffix.lower() == '.png'):
      problems.append(f'{path}: no mask. Call it <case>_mask_level{level}.png.')
    elif named and int(named[2]) == level:
      masks[named[1]] = path
      if named[1] not in cases:
        problems.append(
          f'{path}: no detections {named[1]}.csv in {detections_dir}. Write an'
          ' empty file if nothing was found.'
        )
  judged = {}
  hits = collections.Counter()  # As given, and as `_otherwise`.
  for name, path in cases.items():
    try:
      score, xy = read_detections(path)
      truth = None
      if name in masks:
        truth = froc.lesions(read_mask(masks[name]), mpp=mpp, level=level)
      others = _otherwise(truth, score, xy, level)
      judged[name] = froc.judge(truth, score, xy, level=level)
      hits.update({'': _hit(judged[name])} | others)
    except DetectionError as e:
      problems.append(str(e))
    except ValueError as e:  # Of a score or a place.
      problems.append(f'{path}: {e}' + f' {_SWAPPED}' * (_XY in others))
  if problems:
    raise DetectionError.listing(problems)
  if findings:
    findings.warnings += files.left_out(*kind)
    findings.warnings += [
      f'{detections_dir}: detections hit {counted(hits[""], "lesion")}, and'
      f' {count} with {how}. Write {",".join(_NAMES)} in level-0 pixels.'
      for how, count in hits.items()
      if count > 2 * hits['']
    ]
  return judged


def _otherwise(
  truth: froc.Lesions | None, score: np.ndarray, xy: np.ndarray, level: int
) -> dict[str, int]:
  """Returns how many lesions are hit if places were meant in another way."""
  hits = {}
  for how, places in ((_XY, xy[:, ::-1]), (_PIXELS, 2**level * xy)):
    with contextlib.suppress(ValueError):  # Outside.
      if truth:
        hits[how] = _hit(froc.judge(truth, score, places, level=level))
  return hits


def _hit(case: Case) -> int:
  return int((case.hits > 0).sum())


def never_counted(cases: Collection[Case], curve: Froc) -> int:
  """Returns how many lesions are hit with the lowest score of all alone."""
  return sum(map(_hit, cases)) - round(curve.curve[-1] * curve.lesions)


def read_detections(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads lines `probability,x,y`.

  Args:
    path: see `data.files.read_rows`; there may be nothing else but a first line
      that names the columns, which then may have any order.

  Returns:
    Scores [K] and places in level-0 pixels [K, 2].

  Raises:
    DetectionError: naming the first line that is not of this form, or whose
      probability seems to be in another column.
  """
  fits = lambda cells: len(cells) == len(_NAMES)
  lines = files.read_rows(path, DetectionError, fits)
  rows, numbers, names = [], [], _NAMES
  for number, cells in lines:
    cells = [cell.strip().lower() for cell in cells]
    if number == lines[0][0] and sorted(cells) == sorted(names):
      names = cells
      continue
    try:
      row = dict(zip(names, map(float, cells), strict=True))
    except ValueError:
      raise DetectionError(
        f'{path}, line {number}: found {",".join(cells)[:60]!r};'
        f' {",".join(_NAMES)} is needed'
      ) from None
    rows.append([row[name] for name in _NAMES])
    numbers.append(number)
  table = np.array(rows, float).reshape(-1, 3)
  score, xy = table[:, 0], table[:, 1:]
  # Scores that are no probabilities may be above 1, at whole pixels.
  odd = ((0 < xy) & (xy < 1)).any(1) | (xy <= 1).all(0).any()
  for i in np.flatnonzero(odd & (score > 1))[:1]:
    raise DetectionError(
      f'{path}, line {numbers[i]}: a probability of {score[i]:g} at'
      f' ({xy[i, 0]:g}, {xy[i, 1]:g}). The order of columns is'
      f' {",".join(_NAMES)}.'
    )
  return score, xy


def read_mask(path: pathlib.Path) -> np.ndarray:
  """Reads a mask, True where its first channel is 255, bool [H, W].

  What is transparent is 0.

  Raises:
    DetectionError: if the image cannot be read, or holds other values than 0
      and 255.
  """
  image = images.read(path, DetectionError)
  kind = {'1': 'L', 'P': 'RGB'}.get(image.mode, image.mode)
  values = images.mask_values(path, image.convert(kind), DetectionError)
  first = np.atleast_3d(values)[..., 0]
  if values.any() and not first.any():
    raise DetectionError(
      f'{path}: marks nothing in its first channel, red. Save it in grey.'
    )
  others = np.unique(first[(first != 0) & (first != 255)])[:5]
  if len(others):
    raise DetectionError(
      f'{path}: holds {", ".join(map(str, others))}. Masks are 255 on tumour '
      'and 0 elsewhere (those of ASAP may be 1: multiply them).'
    )
  return first == 255
