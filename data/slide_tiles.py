"""Opens tiles of slides, labelled by the outlines drawn on them."""

from collections.abc import Callable, Collection
import functools
import pathlib

import numpy as np

from data import outlines, tiling
from data.labelled_tiles import LabelledTiles, TileError
from data.slides import Slide, SlideError, list_slides, slide_id

CLASSES = ('negative', 'positive')
_OPEN = 32  # Slides kept open at a time.


def from_slides(
  slides_dir: pathlib.Path | str,
  outlines_dir: pathlib.Path | str,
  *,
  tile_size: int,
  mpp: float,
  min_part: float = 0.0,
  min_tissue: float = 0.5,
  clear: Collection[str] = (),
  group: Callable[[str], str] | None = None,
) -> LabelledTiles:
  """Returns the tiles with tissue of all slides of a folder.

  Args:
    slides_dir: see `slides.list_slides`.
    outlines_dir: <slide_id>.json, .geojson or .xml of every slide; see
      `outlines.read`.
    tile_size: side of a tile, pixels.
    mpp: um/px of the tiles.
    min_part: a tile is positive if at least this part of it, and some of it,
      lies within the outlines; 0 means any overlap.
    min_tissue: least part of a tile that is tissue.
    clear: ids of slides that need no file because nothing is to be found on
      them. A slide without a file is never taken for clear.
    group: returns the patient of a slide id; by default the slide is its own
      group.

  Returns:
    Tiles of the classes `CLASSES` in the order of slide ids, each slide in rows
    from the top; `xy` are the upper left corners in level-0 pixels, ids
    '<slide_id>/x<x>_y<y>'.

  Raises:
    TileError: naming every slide that cannot be used, has no outlines or has
      them beyond its border, and every file of outlines without a slide.
  """
  outlines_dir = pathlib.Path(outlines_dir)
  try:
    paths = {slide_id(p): p for p in list_slides(slides_dir)}
  except SlideError as e:
    raise TileError(str(e)) from e
  files = {
    p.stem: p
    for p in sorted(outlines_dir.glob('*'))
    if p.suffix.lower() in outlines.EXTENSIONS
  }
  problems = [
    f'{files[name]}: no slide {name} in {slides_dir}'
    for name in sorted(set(files) - set(paths))
  ]
  if not paths:
    problems.append(f'{slides_dir}: no slide in it')
  grids, label = {}, []
  for name, path in sorted(paths.items()):
    if name not in files and name not in clear:
      problems.append(
        f'{path.name}: no outlines {name}.json, .geojson or .xml in '
        f'{outlines_dir}; if there is nothing to outline, say so'
      )
      continue
    try:
      with Slide(path) as slide:
        grid = tiling.tile_grid(
          slide, tile_size=tile_size, mpp=mpp, min_tissue=min_tissue
        )
        rings = outlines.read(files[name]) if name in files else []
        _check_inside(rings, slide, files.get(name))
    except (SlideError, TileError) as e:
      problems.append(str(e))
      continue
    part = outlines.covered(rings, grid.coords, grid.size_level0)
    label.append((part > 0) & (part >= min_part))
    grids[name] = grid
  if problems:
    raise TileError.listing(problems, str(slides_dir))
  names = list(grids)
  of_tile = np.repeat(
    np.arange(len(names)), [len(grids[name].coords) for name in names]
  )
  xy = np.concatenate([grids[name].coords for name in names])
  place = np.concatenate([np.arange(len(g.coords)) for g in grids.values()])
  # A slide that leaves the cache is closed when its last reader is done.
  opened = functools.lru_cache(_OPEN)(lambda name: Slide(paths[name]))

  def read(i: int) -> np.ndarray:
    name = names[of_tile[i]]
    try:
      return tiling.read_tile(opened(name), grids[name], int(place[i]))
    except SlideError as e:
      raise TileError(str(e)) from e

  group = group or str
  return LabelledTiles(
    id=np.array(
      [
        f'{names[s]}/x{x}_y{y}'
        for s, (x, y) in zip(of_tile, xy.tolist(), strict=True)
      ]
    ),
    label=np.concatenate(label).astype(np.int32),
    group=np.array([group(name) for name in names])[of_tile],
    classes=CLASSES,
    read=read,
    size=tile_size,
    xy=xy,
  )


def _check_inside(
  rings: list[outlines.Ring], slide: Slide, path: pathlib.Path | None
) -> None:
  """Raises a TileError if an outline lies beyond the slide, in other units."""
  for corners, _ in rings:
    low, high = corners.min(0), corners.max(0)
    if (high <= 0).any() or (low >= (slide.width, slide.height)).any():
      raise TileError(
        f'{path}: an outline at x {low[0]:g} to {high[0]:g}, y {low[1]:g} to '
        f'{high[1]:g} lies beyond the {slide.width} x {slide.height} px of '
        f'{slide.path.name}; level-0 pixels are needed'
      )
