"""Pictures of what was taken as tissue and where the tiles lie."""

from collections.abc import Sequence
import pathlib

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from data import features, slides, tiling, tissue

_PICTURE = 1000  # Pixels of the longer side.
_TISSUE_COLOUR = (0, 140, 60)
_TILE_COLOUR = (30, 60, 220)


def draw(
  slide_paths: Sequence[pathlib.Path],
  features_dir: str | pathlib.Path,
) -> None:
  """Writes `<features_dir>/grids/<slide_id>.png` where there is none yet.

  Each shows the slide, the edge of its tissue mask in green, unless outlines
  were given in its place, and the tiles, from the coordinates of the feature
  file, in blue. Slides without features are left out.
  """
  folder = pathlib.Path(features_dir) / 'grids'
  for path in slide_paths:
    name = slides.slide_id(path)
    file = pathlib.Path(features_dir) / f'{name}.h5'
    if not file.exists() or (folder / f'{name}.png').exists():
      continue
    found = features.read(file)
    mpp = found.attributes['level0_mpp']
    with slides.Slide(path, mpp=mpp) as slide:
      longer = max(slide.width, slide.height)
      image = slide.thumbnail(slide.mpp * max(longer / _PICTURE, 1)).copy()
      mask = tissue.tissue_mask(
        slide.thumbnail(tiling.MASK_MPP), tiling.MASK_MPP
      )
      scale = image.shape[1] / slide.width
    size = image.shape[1::-1]
    mask = np.asarray(Image.fromarray(mask).resize(size, Image.NEAREST))
    if 'regions' not in found.attributes:
      image[mask & ~ndimage.binary_erosion(mask, iterations=2)] = _TISSUE_COLOUR
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    side = found.attributes['patch_size_level0']
    for corner in found.coords:
      box = np.concatenate([corner, corner + side]) * scale
      pen.rectangle([*box.round()], outline=_TILE_COLOUR)
    folder.mkdir(exist_ok=True)
    picture.save(folder / f'{name}.png')
