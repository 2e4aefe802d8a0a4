"""Slides to feature files; reading goes on while the encoder computes."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

from data import features, slides, tiling
from experiments import (
  encoder as encoders,
)
from experiments.cohort_tiles import TileSpec
from experiments.run import progress
from experiments.weights import Encoder

_AHEAD = 4  # Batches read in advance, whichever slides they come from.


class EncodingError(Exception):
  """A request that would spoil or mix feature files; says what to change."""


class Failure(NamedTuple):
  """A slide without features, and why."""

  slide_id: str
  reason: str


def extract(
  slide_paths: Sequence[pathlib.Path],
  features_dir: str | pathlib.Path,
  encoder: Encoder,
  spec: TileSpec,
  *,
  batch: int | None = None,
) -> list[Failure]:
  """Writes `<slide_id>.h5` for every slide that has none yet.

  Batches run across slides: tiles of one are encoded while those of the next
  are read, and only the very last batch is padded. A slide's file is written,
  atomically, when its last tile has been encoded. Prints what the encoder
  is, a progress bar, and the rates of reading and encoding.

  Args:
    slide_paths: as of `slides.list_slides`.
    features_dir: made if absent.
    encoder: as of `weights.make_encoder`.
    spec: how to cut the slides.
    batch: tiles per call of the encoder; by default what suits the devices.

  Returns:
    The slides that failed; the others have their files.

  Raises:
    EncodingError: before anything is read, if two slides share an id, or if a
      file already there is damaged or was made otherwise; if the encoder does
      not return a row of each tile.
  """
  features_dir = pathlib.Path(features_dir)
  features_dir.mkdir(parents=True, exist_ok=True)
  wanted = encoder.attributes()
  paths = _missing(slide_paths, features_dir, wanted, spec)
  done = len(slide_paths) - len(paths)
  print(
    f'encoder {encoder.name}: {encoder.note}\n'
    f'{len(paths)} slides to encode, {done} done before',
    flush=True,
  )
  if not paths:
    return []
  batch = batch or encoders.default_batch()
  failures, reading, encoding = [], _Clock(), _Clock()
  extra = wanted | spec.attributes() | {'encoder_note': encoder.note}
  pieces = _read(paths, spec, extra, batch, failures)
  with progress.bar(total=0, unit='tile', desc='slides', mininterval=1) as bar:
    for tiles, owners in _ahead(_pack(pieces, batch), reading):
      rows = np.asarray(encoding(encoder.encode, tiles), np.float32)
      if rows.ndim != 2 or len(rows) != len(tiles):
        raise EncodingError(
          f'encoder {encoder.name} makes {list(rows.shape)} of {len(tiles)}'
          ' tiles. Return features [T, D], a row of each tile.'
        )
      for bag, count in owners:
        if not bag.parts:
          bar.total += len(bag.coords)  # Of the slides begun so far.
        part, rows = rows[:count], rows[count:]
        bag.parts.append(part)
        if bag.complete():
          failures += _write(features_dir, bag)
          done += 1
        bar.update(count)
      failed = f', {len(failures)} failed' if failures else ''
      bar.set_description_str(
        f'{done}/{len(slide_paths)} slides{failed}', False
      )
    seconds = bar.format_dict['elapsed']
  if bar.n:
    print(
      f'{bar.n} tiles in {seconds:.1f} s: {bar.n / seconds:.1f} tiles/s; while '
      f'busy, reading gave {bar.n / reading.seconds:.1f} and encoding '
      f'{bar.n / encoding.seconds:.1f} tiles/s',
      flush=True,
    )
  return failures


@dataclasses.dataclass
class _Bag:
  """A slide on its way; `parts` are its features so far, in order."""

  slide_id: str
  coords: np.ndarray
  attributes: dict[str, Any]
  parts: list[np.ndarray] = dataclasses.field(default_factory=list)

  def complete(self) -> bool:
    return sum(map(len, self.parts)) == len(self.coords)


class _Clock:
  """Calls functions and adds up the seconds they take."""

  def __init__(self):
    self.seconds = 0.0

  def __call__(self, function, *args):
    start = time.perf_counter()
    try:
      return function(*args)
    finally:
      self.seconds += time.perf_counter() - start


def _missing(slide_paths, features_dir, wanted, spec) -> list[pathlib.Path]:
  """Returns the slides without features, once all files there are sound."""
  ids = [slides.slide_id(path) for path in slide_paths]
  faults = [
    f'{name}: {count} slides have this id; features would overwrite each other'
    for name, count in collections.Counter(ids).items()
    if count > 1
  ]
  missing = []
  for name, path in zip(ids, slide_paths, strict=True):
    file = features_dir / f'{name}.h5'
    if not file.exists():
      missing.append(path)
      continue
    try:
      found = features.header(file).attributes
    except features.FeatureError as error:
      faults.append(str(error))
      continue
    faults += spec.differences(path, file, found, wanted)
  if faults:
    raise EncodingError(
      'nothing was done; move these files, or give another folder for the '
      'features:\n' + '\n'.join(faults)
    )
  return missing


def _read(
  paths: Iterable[pathlib.Path],
  spec: TileSpec,
  extra: dict[str, Any],
  batch: int,
  failures: list[Failure],
) -> Iterator[tuple[_Bag, np.ndarray]]:
  """Yields the tiles of all slides in pieces; notes the slides that fail."""
  for path in paths:
    name = slides.slide_id(path)
    try:
      with spec.open(path) as slide:
        grid = spec.grid(slide)
        made = extra | _geometry(slide, grid) | spec.outlined(name)
        bag = _Bag(name, grid.coords, made)
        for tiles in spec.tiles(slide, grid, batch):
          yield bag, tiles
    except slides.SlideError as error:
      failures.append(Failure(name, str(error)))
    except Exception as error:  # Whatever it is, the other slides go on.
      reason = f'{type(error).__name__}: {error}'
      failures.append(Failure(name, reason))


def _geometry(slide: slides.Slide, grid: tiling.Grid) -> dict[str, Any]:
  return {
    'patch_size_level0': grid.size_level0,
    'effective_mpp': grid.effective_mpp,
    'level0_mpp': slide.mpp,
    'level0_mpp_source': slide.mpp_source,
    'level0_width': slide.width,
    'level0_height': slide.height,
    'slide_sha256': slides.digest(slide.path),
  }


def _pack(
  pieces: Iterable[tuple[_Bag, np.ndarray]], batch: int
) -> Iterator[tuple[np.ndarray, list[tuple[_Bag, int]]]]:
  """Yields batches [batch, S, S, 3] and whose their rows are, in order.

  The last batch ends in rows of zeros, which are nobody's.
  """
  packed, owners, filled = None, [], 0
  for bag, tiles in pieces:
    while len(tiles):
      if packed is None:
        packed = np.zeros((batch, *tiles.shape[1:]), np.float32)
      taken, tiles = tiles[: batch - filled], tiles[batch - filled :]
      packed[filled : filled + len(taken)] = taken
      filled += len(taken)
      owners.append((bag, len(taken)))
      if filled == batch:
        yield packed, owners
        packed, owners, filled = None, [], 0
  if filled:
    yield packed, owners


def _ahead(items: Iterator, clock: _Clock) -> Iterator:
  """Yields `items`; another thread, timed, makes a few of them in advance."""
  pool = futures.ThreadPoolExecutor(1)
  submit = lambda: pool.submit(clock, next, items, None)
  try:
    waiting = collections.deque(submit() for _ in range(_AHEAD))
    while (item := waiting.popleft().result()) is not None:
      waiting.append(submit())
      yield item
  finally:
    pool.shutdown(cancel_futures=True)


def _write(features_dir: pathlib.Path, bag: _Bag) -> list[Failure]:
  """Writes a finished slide; returns its failure if features are not finite."""
  try:
    features.write(
      features_dir / f'{bag.slide_id}.h5',
      np.concatenate(bag.parts),
      bag.coords,
      bag.attributes,
    )
  except features.FeatureError as error:
    return [Failure(bag.slide_id, str(error))]
  return []
