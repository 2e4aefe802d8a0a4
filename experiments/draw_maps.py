"""Draws what the models of a run see in slides, and exports it to QuPath.

  python -m experiments.draw_maps --run=results/kmil_origin_s2023 --geojson

Works on what training or experiments.predict left in fold_<i>/attention, and
writes into the same folder, or with --fold into that of the fold:

  figures/slide_maps/absolute/<slide_id>.png   heat maps; disagreement of folds
  figures/topk/<slide_id>_<rank>_<score>.png   highest and lowest tiles
  qupath/<slide_id>.geojson                    with --geojson

A slide that cannot be read is named, with the reason, at the end; the exit code
is then 1.
"""

import dataclasses
import math
import pathlib
import sys
from typing import Any

from data.slides import SlideError, corner
from experiments.maps import source, tile_scores, top_tiles
from experiments.maps.tile_scores import COLOURS, SCALES, MapError, TileScores
from experiments.run import progress, start
from experiments.run.options import field
from experiments.run.results import Folder


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What is drawn and exported."""

  slide: tuple[str, ...] | None = field(
    None, 'Ids of slides to draw, with commas between. By default all.'
  )
  scale: str = field(
    'absolute',
    'Scale of heat maps: the same for every slide (absolute), or ranks among'
    ' the tiles of a slide (rank).',
    choices=SCALES,
  )
  colours: str = field('YlGn', 'Colours of heat maps.', choices=COLOURS)
  rank_tiles_by: str = field(
    'attention',
    'Score that --top_tiles and --top_fraction rank tiles by, for the predicted'
    ' class.',
    choices=top_tiles.RANKS,
  )
  top_tiles: int = field(
    8, 'Highest and lowest tiles to cut out of every slide.', least=0
  )
  geojson: bool = field(False, 'Also export tiles and regions for QuPath.')
  threshold: float = field(
    0.5,
    'Least probability of a class for a tile to be in a region of it.',
    least=0,
    most=1,
  )
  top_fraction: float = field(
    1.0,
    'Share of the tiles, the highest, that --geojson exports one by one.',
    least=0,
    most=1,
  )


def run(slides: source.Slides, drawn: Drawn) -> start.Next:
  """Draws and exports the slides, one after the other."""
  files, scores = slides.files(), slides.scores()
  path = slides.folder().path
  if unknown := sorted(set(drawn.slide or ()) - set(scores)):
    raise MapError(
      f'--slide={",".join(unknown)}: no scores in {path}. There are'
      f' {", ".join(list(scores)[:5])} and others, {len(scores)} in all.'
    )
  names = drawn.slide or list(scores)
  if not drawn.geojson and not files.keys() & set(names):
    raise MapError(
      'No slide has a slide file: there is nothing to draw. Give --slides_dir,'
      ' or --geojson alone.'
    )
  target = Folder(path if slides.fold is None else path / f'fold_{slides.fold}')
  faults, labels, notes = {}, slides.labels(), slides.notes()
  for name in progress.bar(names, unit='slide', desc='maps'):
    try:
      of_slide = tile_scores.read(scores[name], slides.tile_size)
      known = {
        'label': labels.get(name),
        'note': notes.get(name),
        'outlines_dir': slides.outlines_dir,
      }
      _write(target, of_slide, files.get(name), known, drawn)
    except (MapError, SlideError) as e:
      faults[name] = e
  if without := len(set(names) - faults.keys() - files.keys()):
    print(
      'slides without pictures, for want of a slide file in --slides_dir:'
      f' {without} of {len(names)}'
    )
  print(f'slides with maps: {len(names) - len(faults)}, in {target.path}')
  if faults:
    lines = (f'  {name}: {e}' for name, e in faults.items())
    sys.exit(f'error: slides that failed: {len(faults)}\n' + '\n'.join(lines))
  return 'view', {}


def _write(
  target: Folder,
  of_slide: TileScores,
  path: pathlib.Path | None,
  known: dict[str, Any],
  drawn: Drawn,
) -> None:
  """Writes what there is of a slide; pictures, if it has a file."""
  # They import matplotlib, which takes half a second.
  from experiments.maps import geojson, overlay

  name = of_slide.slide
  if drawn.geojson:
    order = top_tiles.order(of_slide, drawn.rank_tiles_by)
    order = order[: math.ceil(drawn.top_fraction * len(order))]
    # Where no slide tells its corner, it is that of level 0.
    coords = of_slide.coords - (corner(path) if path else 0)
    in_qupath = dataclasses.replace(of_slide, coords=coords)
    features = geojson.of_slide(in_qupath, drawn.threshold, order)
    geojson.write(target.at(f'qupath/{name}.geojson'), features)
  if path is None:
    return
  look = {'scale': drawn.scale, 'colours': drawn.colours}
  drawing = overlay.draw(path, of_slide, **look, **known)
  target.save(
    f'figures/slide_maps/{drawn.scale}/{name}.png',
    lambda part: drawing.savefig(part, dpi=100, format='png'),
  )
  if drawn.top_tiles:
    folder, count = target.at('figures/topk'), drawn.top_tiles
    rank_by = drawn.rank_tiles_by
    top_tiles.write(folder, path, of_slide, rank_by=rank_by, count=count)


main = start.script(run)


if __name__ == '__main__':
  main()
