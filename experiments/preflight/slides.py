"""--check of the extraction of features: are all slides readable?"""

from collections.abc import Mapping, Sequence
from concurrent import futures
import pathlib
from typing import NoReturn
import warnings

from data import features, slides, tiling
from experiments.cohort_tiles import TileSpec
from experiments.preflight.findings import Findings
from experiments.run import progress

_WIDTH = 1024 * 4  # Bytes of an instance.


def check(
  paths: Sequence[pathlib.Path],
  features_dir: str,
  spec: TileSpec,
  encoder: Mapping[str, str],
  problems: Sequence[str] = (),
) -> NoReturn:
  """Opens every slide and reads a tile of its middle and its smallest level.

  Scales, files that are there already, whether they were made as asked, and an
  upper bound of the size of the features are looked at, too. A slide damaged
  elsewhere is found only by extracting it.

  Args:
    paths: as of `slides.list_slides`.
    features_dir: of the features to be.
    spec: how slides will be cut.
    encoder: attributes of the encoder, as far as they are known.
    problems: found before.

  Raises:
    SystemExit: always; with 1 if there are problems.
  """
  findings, most, done, unread = Findings(list(problems)), 0, 0, 0
  with (
    warnings.catch_warnings(record=True) as caught,
    futures.ThreadPoolExecutor(spec.threads) as pool,
  ):
    warnings.simplefilter('always')
    looks = pool.map(lambda path: _look(path, spec), paths)
    for path, found in zip(
      paths,
      progress.bar(looks, total=len(paths), desc='slides', unit='slide'),
      strict=True,
    ):
      if isinstance(found, str):
        findings.problems.append(found)
        unread += 1
        continue
      file = pathlib.Path(features_dir) / f'{slides.slide_id(path)}.h5'
      if not file.exists():
        most += found
        continue
      done += 1
      try:
        made = features.header(file).attributes
      except features.FeatureError as e:
        findings.problems.append(str(e))
      else:
        findings.problems += spec.differences(path, file, made, encoder)
  findings.warnings += [str(w.message) for w in caught]
  readable = len(paths) - unread
  print(
    f'{len(paths)} slides, {readable} readable, {done} have features; at most'
    f' {most} tiles of {spec.tile_size} px at {spec.mpp:g} um/px to encode, by'
    f' the area of the slides: {most * _WIDTH / 2**30:.1f} GiB of features'
  )
  findings.close()


def _look(path: pathlib.Path, spec: TileSpec) -> int | str:
  """Returns how many tiles a slide has at most, or what is wrong with it."""
  try:
    with spec.open(path) as slide:
      if slide.mpp > spec.mpp * tiling.MAX_UPSAMPLING:
        return (
          f'{path.name}: {slide.mpp:g} um/px at its finest; tiles of'
          f' --mpp={spec.mpp:g} would be mostly interpolation'
        )
      last = len(slide.level_dimensions) - 1
      for level in {0, last}:
        size = [min(n, 256) for n in slide.level_dimensions[level]]
        x = (slide.width - size[0] * slide.level_downsamples[level]) // 2
        y = (slide.height - size[1] * slide.level_downsamples[level]) // 2
        slide.read(max(0, int(x)), max(0, int(y)), level, *size)
      side = spec.tile_size * spec.mpp / slide.mpp
      if not (most := int(slide.width // side) * int(slide.height // side)):
        return (
          f'{path.name}: {slide.width} x {slide.height} px, smaller than one'
          f' tile of {side:g} px of level 0'
        )
      return most
  except slides.SlideError as e:
    return str(e)
  except Exception as e:  # Whatever it is, the other slides are looked at.
    return f'{path.name}: {type(e).__name__}: {e}'
