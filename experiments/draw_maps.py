"""Draws what the models of a run see in slides, and exports it to QuPath.

  python -m experiments.draw_maps --run=results/kmil_origin_s2023 --geojson

Works on what training or experiments.predict left in fold_<i>/attention, and
writes into the same folder, or with --fold into that of the fold:

  figures/slide_maps/absolute/<slide_id>.png   heat maps; disagreement of folds
  figures/topk/<slide_id>_<rank>_<score>.png   highest and lowest tiles
  disagreement/<slide_id>.h5                   where several folds saw a slide
  qupath/<slide_id>.geojson                    with --geojson

A slide that cannot be read is named, with the reason, at the end; the exit code
is then 1.
"""

import math
import pathlib
import sys

from absl import app, flags

from data import slides
from data.files import replacing
from experiments import (
  start,
)
from experiments.run import progress
from experiments.slide_maps import (
  geojson,
  heat_map,
  layers,
  map_flags,
  run_folder,
  tile_scores,
  top_tiles,
)
from experiments.slide_maps.tile_scores import TileScores

_SLIDE = flags.DEFINE_list('slide', None, 'Slide ids to draw; all by default.')
_SCALE = flags.DEFINE_enum(
  'scale',
  'absolute',
  layers.SCALES,
  'Of heat maps. absolute: the same for every slide. rank: among the tiles of'
  ' the slide.',
)
_COLOURS = flags.DEFINE_enum('colours', 'YlGn', layers.COLOURS, 'Of heat maps.')
_SCORE = flags.DEFINE_enum(
  'score',
  'attention',
  ['attention', 'probability'],
  'What --top_tiles and --top_fraction rank by, for the predicted class.',
)
_TOP_TILES = flags.DEFINE_integer(
  'top_tiles', 8, 'Highest and lowest tiles to cut out of every slide.', 0
)
_GEOJSON = flags.DEFINE_bool('geojson', False, 'Export tiles and regions.')
_THRESHOLD = flags.DEFINE_float(
  'threshold', 0.5, 'GeoJSON: least probability of a region.', 0, 1
)
_TOP_FRACTION = flags.DEFINE_float(
  'top_fraction',
  1.0,
  'GeoJSON: part of the tiles, the highest, that are written one by one.',
  0,
  1,
)
flags.adopt_module_key_flags(map_flags)


def _run() -> None:
  run, files, found = map_flags.resolve()
  if unknown := sorted(set(_SLIDE.value or ()) - set(found)):
    raise tile_scores.MapError(
      f'--slide={",".join(unknown)}: no scores in {run}; there are'
      f' {", ".join(list(found)[:5])} and others, {len(found)} in all'
    )
  fold = map_flags.FOLD.value
  target = run if fold is None else run / f'fold_{fold}'
  faults, bare, labels = {}, 0, run_folder.labels(run)
  asked = _SLIDE.value or list(found)
  for slide in progress.bar(asked, unit='slide', desc='maps'):
    try:
      scores = tile_scores.read(found[slide], map_flags.TILE_SIZE.value)
      _write_data(target, scores)
      if slide in files:
        _write_pictures(target, scores, files[slide], labels.get(slide))
      bare += slide not in files
    except (tile_scores.MapError, slides.SlideError) as e:
      faults[slide] = e
  if bare:
    print(
      f'{bare} of {len(asked)} slides have no pictures, for want of a slide'
      ' file: pass --slides_dir'
    )
  print(f'maps of {len(asked) - len(faults)} slides in {target}')
  if faults:
    lines = (f'  {slide}: {e}' for slide, e in faults.items())
    sys.exit(f'error: {len(faults)} slides failed:\n' + '\n'.join(lines))


def _write_data(target: pathlib.Path, scores: TileScores) -> None:
  if len(scores.folds) > 1:
    path = target / 'disagreement' / f'{scores.slide}.h5'
    tile_scores.write_spread(path, scores)
  if _GEOJSON.value:
    order = top_tiles.order(scores, _SCORE.value)
    order = order[: math.ceil(_TOP_FRACTION.value * len(order))]
    geojson.write(
      target / 'qupath' / f'{scores.slide}.geojson',
      geojson.of_slide(scores, _THRESHOLD.value, order),
    )


def _write_pictures(
  target: pathlib.Path,
  scores: TileScores,
  path: pathlib.Path,
  label: str | None,
) -> None:
  drawing = heat_map.draw(
    path,
    scores,
    scale=_SCALE.value,
    colours=_COLOURS.value,
    label=label,
  )
  folder = target / 'figures' / 'slide_maps' / _SCALE.value
  with replacing(folder / f'{scores.slide}.png') as part:
    drawing.savefig(part, dpi=100, format='png')
  if _TOP_TILES.value:
    top_tiles.write(
      target / 'figures' / 'topk',
      path,
      scores,
      score=_SCORE.value,
      count=_TOP_TILES.value,
    )


main = start.script(_run, (tile_scores.MapError, slides.SlideError))


if __name__ == '__main__':
  app.run(main)
