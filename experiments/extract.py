"""Turns a folder of slides into a folder of feature files.

  python -m experiments.extract --slides_dir=slides --features_dir=features

Every slide becomes <slide_id>.h5 with `features` [N, 1280] and `coords` [N, 2]
(level-0 pixels) in the layout of CLAM and TRIDENT, and a picture of tissue and
tiles to look at, grids/<slide_id>.png, with both as GeoJSON beside it. A run
that was stopped goes on with the slides that have no file yet. A slide that
cannot be read is skipped and named, with the reason, in a table at the end; the
exit code is then 1.
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
import sys

from data.files import counted
from experiments.encoding import encoder, extraction, pictures
from experiments.encoding.tiles import Scale, SlideTiles, Tiles
from experiments.run import results, start
from experiments.run.options import field, free
from experiments.run.start import Check, Findings


@dataclasses.dataclass(frozen=True)
class Folders:
  """Slides and their features."""

  slides_dir: pathlib.Path = field(None, 'Folder with whole-slide images.')
  features_dir: pathlib.Path = field(
    None, 'Folder for <slide_id>.h5.', made=True
  )


@dataclasses.dataclass(frozen=True)
class Preview:
  """Looking only."""

  preview: bool = free(
    False,
    'Encode nothing: write a picture of each slide, its tissue, the tiles that'
    ' would be taken and some of them at full size,'
    ' <features_dir>/previews/<slide_id>.png.',
    only={'check': False},
  )


@dataclasses.dataclass(frozen=True)
class Encoding(start.Precision):
  """The encoder."""

  encoder: str | None = field(
    None,
    'Encoder of tiles, see docs/encoders.md. By default efficientnet_lite0,'
    ' which needs no weights, or resnet50 where --weights is given. random is a'
    ' RANDOM ResNet-50, kept as encoder.safetensors in --features_dir.',
    choices=encoder.NAMES,
  )
  weights: str | None = field(
    None,
    'Weights of the encoder: a .safetensors, .pth or .bin file, or a folder of'
    " the Hugging Face hub's cache; or 'imagenet' of resnet50; or an encoder of"
    ' your own as module:function, see docs/extend.md.',
  )
  batch_size: int | None = field(
    None,
    'Tiles per step over all devices; by default 16 per CPU device, else 256.',
    least=1,
  )


def run(
  folders: Folders,
  tiles: Tiles,
  scale: Scale,
  encoding: Encoding,
  cache: start.Cache,
  check: Check,
  look: Preview,
) -> start.Next:
  """Encodes all slides, and names those that failed."""
  start.show_options((folders, tiles, scale, encoding, cache, check, look))
  cohort = SlideTiles(folders.slides_dir, tiles, scale)
  target = folders.features_dir
  if look.preview:
    target.mkdir(parents=True, exist_ok=True)
    Findings(warnings=cohort.warnings).warn()
    failures = pictures.preview(cohort, target)
    code = _close(failures, 'would have no features')
    return 'extract', {'preview': None}, code
  make = functools.partial(
    encoder.make_encoder,
    encoding.encoder,
    encoding.weights,
    features_dir=target,
    cache_dir=cache.cache_dir,
    sample=cohort.sample,
    precision=encoding.precision,
    seed=tiles.seed,
  )
  if check.check:
    known, problems = {'precision': encoding.precision}, []
    # Nothing is drawn for a check.
    if encoding.encoder != 'random' or any(target.glob('*.h5')):
      try:
        known = make().attributes()
      except encoder.ERRORS as e:
        known, problems = {}, [str(e)]
    extraction.check(cohort, target, known, problems)
  failures = extraction.extract(
    cohort, target, make(), batch=encoding.batch_size
  )
  rows = [['slide_id', 'reason'], *failures.items()]
  results.Folder(target).write('failures.csv', rows)
  pictures.draw(cohort, target)
  code = _close(failures, 'without features')
  if len(failures) == len(cohort.paths):
    sys.exit(code)
  own = {'csv_path': 'labels.csv', 'exp_code': 'mine', 'precision': None}
  own['allow_missing'] = bool(failures) or None
  return 'kmil', vars(folders) | own, code


def _close(failures: Mapping[str, str], what: str) -> int:
  """Names the slides that failed, and returns the exit code."""
  if failures:
    print(f'{counted(len(failures), "slide")} {what}:')
    width = max(map(len, failures))
    for slide, reason in failures.items():
      print(f'  {slide:{width}}  {reason}')
  return int(bool(failures))


main = start.script(run)

if __name__ == '__main__':
  main()
