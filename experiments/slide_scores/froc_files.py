"""Reads masks and detections of slides for their FROC score."""

import pathlib
import re

import numpy as np
from PIL import Image, UnidentifiedImageError

from kmil_jax import froc

HEADER = 'probability,x,y'
_CHANNELS = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')  # Of 8 bits or one.
_NAMED = 20  # Problems that an error lists; the others are counted.


class DetectionError(ValueError):
  """Masks or detections that cannot be used; names files and lines."""


def read(
  masks_dir: pathlib.Path,
  detections_dir: pathlib.Path,
  *,
  mpp: float = froc.MPP,
  level: int = froc.LEVEL,
) -> dict[str, froc.Case]:
  """Returns what the detections of every slide hit and miss, by case.

  Args:
    masks_dir: <case>_mask_level<level>.png of slides with tumour, 0 and 255;
      those of other levels are not looked at. A mask without 255 is one of a
      slide with nothing to find.
    detections_dir: <case>.csv of every slide, see `read_detections`.
    mpp: um per level-0 pixel.
    level: of the masks.

  Raises:
    DetectionError: naming all files and lines that cannot be used.
  """
  for folder in (masks_dir, detections_dir):
    if not folder.is_dir():
      raise DetectionError(f'{folder}: no such folder')
  tables = _shown(detections_dir, '.csv')
  masks, problems = {}, []
  for path in _shown(masks_dir, '.png'):
    named = re.fullmatch(r'(.+)_mask_level(\d+)', path.stem)
    if named is None:
      problems.append(f'{path}: masks are called <case>_mask_level{level}.png')
    elif int(named[2]) == level:
      masks[named[1]] = path
  cases = {path.stem: path for path in tables}
  if not cases:
    problems.append(f'{detections_dir}: no <case>.csv in it')
  problems += [
    f'{masks[name]}: no detections {name}.csv in {detections_dir}; write an '
    'empty file if nothing was found'
    for name in sorted(set(masks) - set(cases))
  ]
  found = {}
  for name, path in cases.items():
    try:
      score, xy, line = read_detections(path)
      truth = None
      if name in masks:
        mask = read_mask(masks[name])
        _check_inside(path, xy, line, mask.shape, level)
        truth = froc.lesions(mask, mpp=mpp, level=level)
      found[name] = froc.judge(truth, score, xy, level=level)
    except DetectionError as e:
      problems.append(str(e))
  if problems:
    more = len(problems) - _NAMED
    problems = problems[:_NAMED] + [f'and {more} more'] * (more > 0)
    raise DetectionError('\n  '.join(problems))
  return found


def read_detections(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads lines `probability,x,y`.

  Args:
    path: UTF-8; blank lines are skipped, a first line that reads
      `probability,x,y` too, and there may be nothing else.

  Returns:
    Probabilities [K], any score that is not negative; places in level-0 pixels
    [K, 2]; and line numbers from 1, [K].

  Raises:
    DetectionError: naming the first lines that are not of this form.
  """
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as e:
    raise DetectionError(f'{path}: cannot be read ({e})') from e
  rows, lines, problems = [], [], []
  for number, line in enumerate(text.split('\n'), 1):
    line = line.strip()
    if not line or (number == 1 and line.replace(' ', '') == HEADER):
      continue
    try:
      row = [float(cell) for cell in line.split(',')]
      valid = len(row) == 3 and np.isfinite(row).all() and min(row) >= 0
    except ValueError:
      valid = False
    if not valid:
      problems.append(
        f'{path}, line {number}: found {line[:60]!r}; {HEADER} is needed, '
        'three finite numbers that are not negative'
      )
    else:
      rows.append(row)
      lines.append(number)
  if problems:
    more = [f'{path}: and {len(problems) - 3} more'] * (len(problems) > 3)
    raise DetectionError('\n  '.join(problems[:3] + more))
  table = np.array(rows, float).reshape(-1, 3)
  return table[:, 0], table[:, 1:], np.array(lines, int)


def read_mask(path: pathlib.Path) -> np.ndarray:
  """Reads a mask, True where its first channel is 255, bool [H, W].

  Raises:
    DetectionError: if the image cannot be read, or holds other values than 0
      and 255.
  """
  try:
    with Image.open(path) as image:
      if image.mode not in _CHANNELS:
        raise DetectionError(
          f'{path}: pixels of mode {image.mode}; masks have 8 bits'
        )
      image = image.convert('L' if image.mode in ('1', 'L') else 'RGB')
      first = np.asarray(image).reshape(image.height, image.width, -1)[..., 0]
  except (
    Image.DecompressionBombError,
    OSError,
    SyntaxError,  # Pillow's, of a broken PNG.
    UnidentifiedImageError,
    ValueError,
  ) as e:
    if isinstance(e, DetectionError):
      raise
    raise DetectionError(f'{path}: cannot be read ({e})') from e
  counts = np.bincount(first.ravel(), minlength=256)
  if counts[1:255].any():
    others = np.flatnonzero(counts[1:255])[:5] + 1
    raise DetectionError(
      f'{path}: holds {", ".join(map(str, others))}; masks are 255 on tumour '
      'and 0 elsewhere (those of ASAP may be 1: multiply them)'
    )
  return first == 255


def _check_inside(
  path: pathlib.Path,
  xy: np.ndarray,
  line: np.ndarray,
  shape: tuple[int, int],
  level: int,
) -> None:
  width, height = shape[1] * 2**level, shape[0] * 2**level
  outside = np.flatnonzero((xy >= (width, height)).any(1))
  if len(outside):
    x, y = xy[outside[0]]
    raise DetectionError(
      f'{path}, line {line[outside[0]]}: ({x:g}, {y:g}) lies outside the '
      f"slide's mask, {shape[1]} x {shape[0]} px or {width} x {height} of level"
      f' 0; {len(outside)} such line(s). Level-0 pixels are needed, x first'
    )


def _shown(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
  return sorted(
    path
    for path in folder.iterdir()
    if path.suffix.lower() == suffix and not path.name.startswith('.')
  )
