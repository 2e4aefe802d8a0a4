"""Slides to feature files; reading goes on while the encoder computes."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib
import time
from typing import Any, NoReturn

import numpy as np

from data import features, files, slides
from data.ahead import ahead
from data.files import counted
from experiments.encoding import encoder as encoders
from experiments.encoding.encoder import Encoder
from experiments.encoding.tiles import SlideTiles
from experiments.run import progress
from experiments.run.start import Findings, gathered

_AHEAD = 4  # Batches read in advance, whichever slides they come from.
_WIDTH = 1024  # Features of a tile, where that is not known.


class EncodingError(features.FeatureError):
  """A request that would spoil or mix feature files; says what to change."""


@dataclasses.dataclass
class _Bag:
  """A slide on its way; `rows` are its features so far, in order."""

  slide_id: str
  coords: np.ndarray
  attributes: dict[str, Any]
  rows: list[np.ndarray] = dataclasses.field(default_factory=list)


def extract(
  cohort: SlideTiles,
  features_dir: str | pathlib.Path,
  encoder: Encoder,
  *,
  batch: int | None = None,
) -> dict[str, str]:
  """Writes `<slide_id>.h5` for every slide that has none yet.

  Batches run across slides: tiles of one are encoded while those of the next
  are read, and only the very last batch is padded. A slide's file is written,
  atomically, when its last tile has been encoded. Prints what the encoder is,
  a progress bar, and the rate.

  Args:
    cohort: slides, and how they are cut.
    features_dir: made if absent.
    encoder: as of `encoder.make_encoder`.
    batch: tiles per call of the encoder; by default what suits the devices.

  Returns:
    By slide that failed the reason; the others have their files.

  Raises:
    EncodingError: before anything is read, if a file already there is damaged
      or was made otherwise; if the encoder does not return a row of each tile.
  """
  folder = pathlib.Path(features_dir)
  folder.mkdir(parents=True, exist_ok=True)
  Findings(warnings=cohort.warnings).warn()
  paths, faults = _survey(cohort, folder, encoder.attributes())
  if faults:
    raise EncodingError(
      'Nothing was done. Move these files, or give another folder for the'
      ' features:\n' + '\n'.join(faults)
    )
  count, done = len(cohort.paths), len(cohort.paths) - len(paths)
  if not paths:
    print(f'{folder} has features of all slides, {count}: none to encode')
    return {}
  print(
    f'encoder {encoder.name}: {encoder.note}; {cohort.summary}\n'
    f'{counted(len(paths), "slide")} to encode, {done} done before',
    flush=True,
  )
  batch, failures = batch or encoders.default_batch(), {}
  read = _read(cohort, paths, encoder, batch, failures)
  batches = _in_thread(_batches(cohort, read, batch))
  idle, begun, tiles = 0.0, 0, 0
  about = {'desc': f'slides {done}/{count}', 'unit': 'tile', 'mininterval': 1}
  with progress.bar(**about) as bar:
    for bags, rows, waited in _encoded(encoder, batches):
      if rows.ndim != 2 or len(rows) != batch:
        raise EncodingError(
          f'encoder {encoder.name} makes {list(rows.shape)} of {batch}'
          ' tiles. Return features [T, D], a row of each tile.'
        )
      idle += waited
      for bag, row in zip(bags, rows, strict=False):  # Fillers have no bag.
        if not bag.rows:
          begun, tiles = begun + 1, tiles + len(bag.coords)
          # The slides to come count as the mean of those begun.
          bar.total = tiles * (len(paths) - len(failures)) // begun
        bag.rows.append(row)
        if len(bag.rows) == len(bag.coords):
          path = folder / f'{bag.slide_id}.h5'
          try:
            features.write(path, np.stack(bag.rows), bag.coords, bag.attributes)
          except features.FeatureError as error:
            failures[bag.slide_id] = str(error)
          done += 1
      bar.update(len(bags))
      failed = f', {len(failures)} failed' if failures else ''
      bar.set_description_str(f'slides {done}/{count}{failed}', False)
    seconds = bar.format_dict['elapsed']
  if bar.n:
    rate = bar.n / seconds
    print(
      f'{counted(bar.n, "tile")} in {seconds:.1f} s: {rate:.1f} tiles/s; the'
      f' encoder waited for tiles {idle / seconds:.0%} of the time',
      flush=True,
    )
  return failures


def check(
  cohort: SlideTiles,
  features_dir: pathlib.Path,
  encoder: Mapping[str, str],
  problems: Sequence[str] = (),
) -> NoReturn:
  """Opens every slide and reads a tile of its middle and its smallest level.

  Scales, files that are there already, whether they were made as asked, and an
  upper bound of the size of the features are looked at, too. A slide damaged
  elsewhere is found only by extracting it.

  Args:
    cohort: slides, and how they will be cut.
    features_dir: of the features to be.
    encoder: attributes of the encoder, as far as they are known.
    problems: found before.

  Raises:
    SystemExit: always; with 1 if there are problems.
  """
  missing, faults = _survey(cohort, features_dir, encoder)
  caught = [*cohort.warnings]
  with gathered(caught):
    counts, unread = cohort.each(functools.partial(_most_tiles, cohort))
  total, most = len(cohort.paths), sum(counts.get(path, 0) for path in missing)
  name = encoders.named(encoder.get('encoder', ''))
  width = encoders.network(name).width() if name else _WIDTH
  size = 4 * width * most
  print(
    f'{counted(total, "slide")}, {len(counts)} readable,'
    f' {total - len(missing)} with features; at most {most} {cohort.summary}'
    ' to encode, by the area of the slides:'
    f' {size / 2**30:.1f} GiB of features, {width} a tile'
  )
  if (free := files.free_space(features_dir)) < size:
    caught.append(
      f'{features_dir}: {free / 2**30:.1f} GiB are free, and features may take'
      f' {size / 2**30:.1f}. Free some space, or give another folder.'
    )
  findings = Findings([*problems, *unread.values(), *faults], caught)
  findings.add_folder(features_dir)
  findings.close()


def _most_tiles(cohort: SlideTiles, path: pathlib.Path) -> int:
  """Returns how many tiles a slide that can be read has at most."""
  with cohort.open(path) as slide:
    for level in {0, len(slide.level_dimensions) - 1}:
      size = np.minimum(slide.level_dimensions[level], 256)
      spans = size * slide.level_downsamples[level]
      corner = np.maximum((slide.width, slide.height) - spans, 0) // 2
      slide.read(*corner.astype(int).tolist(), level, *size.tolist())
    whole = slide.slide_id not in cohort.regions or cohort.tiles.min_focus > 0
    return len(cohort.grid(slide, whole=whole).coords)


def _survey(
  cohort: SlideTiles, features_dir: pathlib.Path, encoder: Mapping[str, str]
) -> tuple[list[pathlib.Path], list[str]]:
  """Returns the slides without features, and what is wrong with the others."""
  missing, faults = [], []
  for path in cohort.paths:
    file = features_dir / f'{slides.slide_id(path)}.h5'
    if not file.exists():
      missing.append(path)
      continue
    try:
      attributes = features.header(file).attributes
      faults += cohort.differences(path, file, attributes, encoder)
    except features.FeatureError as error:
      faults.append(str(error))
  return missing, faults


def _read(
  cohort: SlideTiles,
  paths: Sequence[pathlib.Path],
  encoder: Encoder,
  batch: int,
  failures: dict[str, str],
) -> Iterator[tuple[_Bag, int, np.ndarray]]:
  """Yields the tiles of slides one by one; notes the slides that fail."""
  about = {'encoder_note': encoder.note, 'normalisation': encoder.normalisation}
  common = encoder.attributes() | about

  def opened(path):
    try:
      slide = cohort.open(path)
      return slide, cohort.grid(slide), slides.digest(path), None
    except Exception as error:  # Whatever it is, the other slides go on.
      return None, None, None, error

  # The next slide is opened while this one is read.
  for path, (slide, grid, digest, error) in zip(
    paths, ahead(opened, paths, count=1), strict=True
  ):
    name = slides.slide_id(path)
    try:
      if error:
        raise error
      with slide:
        geometry = {
          'patch_size_level0': grid.size_level0,
          'effective_mpp': grid.effective_mpp,
          'level0_mpp': slide.mpp,
          'level0_mpp_source': slide.mpp_source,
          'level0_width': slide.width,
          'level0_height': slide.height,
          'slide_sha256': digest,
        }
        attributes = common | cohort.attributes(name) | geometry
        stated = {k: v for k, v in attributes.items() if v is not None}
        bag = _Bag(name, grid.coords, stated)
        for place, tile in enumerate(cohort.read(slide, grid, 2 * batch)):
          yield bag, place, tile
    except slides.SlideError as error:
      failures[name] = str(error)
    except Exception as error:
      failures[name] = f'{type(error).__name__}: {error}'


def _batches(
  cohort: SlideTiles, tiles: Iterator[tuple[_Bag, int, np.ndarray]], size: int
) -> Iterator[tuple[Sequence[_Bag], np.ndarray]]:
  """Yields tiles [size, S, S, 3], and whose they are; zeros fill the last."""
  while part := list(itertools.islice(tiles, size)):
    bags, places, images = zip(*part, strict=True)
    batch = np.zeros((size, *images[0].shape), np.uint8)
    np.stack(images, out=batch[: len(images)])
    yield bags, cohort.augmented(batch, places)


def _encoded(
  encoder: Encoder, batches: Iterator[tuple[Sequence[_Bag], np.ndarray]]
) -> Iterator[tuple[Sequence[_Bag], np.ndarray, float]]:
  """Yields whose tiles they are, and features, which other threads make.

  With them, the seconds before in which the encoder had nothing to do.
  """

  def encode(batch):
    bags, images = batch
    start = time.perf_counter()
    rows = np.asarray(encoder.encode(images), np.float32)
    return bags, rows, start, time.perf_counter()

  n, free = encoder.at_once, time.perf_counter()
  for bags, rows, start, end in ahead(encode, batches, count=n, threads=n):
    waited, free = max(start - free, 0.0), max(end, free)
    yield bags, rows, waited


def _in_thread(items: Iterator) -> Iterator:
  """Yields `items`; another thread makes a few of them in advance."""
  every = ahead(lambda _: next(items, None), itertools.count(), count=_AHEAD)
  return itertools.takewhile(lambda item: item is not None, every)
