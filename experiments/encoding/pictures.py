"""Pictures of what was taken as tissue and where the tiles lie."""

import pathlib

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from data import features, slides, tiling, tissue
from data.files import replacing
from experiments.encoding.tiles import SlideTiles

_PICTURE = 1000  # Pixels of the longer side.
_TISSUE_COLOUR = (0, 140, 60)
_TILE_COLOUR = (30, 60, 220)


def draw(cohort: SlideTiles, features_dir: pathlib.Path) -> None:
  """Writes `<features_dir>/grids/<slide_id>.png` where there is no newer one.

  Each shows the slide, the edge of its tissue mask in green, unless outlines
  were given in its place, and the tiles, from the coordinates of the feature
  file, in blue: none of a slide that has no features.
  """
  for path in cohort.paths:
    file = features_dir / f'{slides.slide_id(path)}.h5'
    picture = features_dir / 'grids' / f'{file.stem}.png'
    written = lambda path: path.stat().st_mtime_ns if path.exists() else -1
    if file.exists() and written(picture) >= written(file):
      continue
    bag = features.read(file) if file.exists() else None
    try:
      with cohort.open(path) as slide:
        drawing = _draw(slide, bag)
    except slides.SlideError as error:
      if bag:  # Its coarse levels, which the tiles did without.
        print(f'warning: no picture of {error}')
      continue
    with replacing(picture) as part:
      drawing.save(part, format='png')


def _draw(slide: slides.Slide, bag: features.FeatureFile | None) -> Image.Image:
  longer = max(slide.width, slide.height)
  image = slide.thumbnail(slide.mpp * max(longer / _PICTURE, 1)).copy()
  mask = tissue.tissue_mask(slide.thumbnail(tiling.MASK_MPP), tiling.MASK_MPP)
  scale = image.shape[1] / slide.width
  size = image.shape[1::-1]
  mask = np.asarray(Image.fromarray(mask).resize(size, Image.NEAREST))
  if bag is None or 'regions' not in bag.attributes:
    image[mask & ~ndimage.binary_erosion(mask, iterations=2)] = _TISSUE_COLOUR
  picture = Image.fromarray(image)
  if bag is not None:
    pen = ImageDraw.Draw(picture)
    side = bag.attributes['patch_size_level0']
    for corner in bag.coords:
      box = np.concatenate([corner, corner + side]) * scale
      pen.rectangle([*box.round()], outline=_TILE_COLOUR)
  return picture
