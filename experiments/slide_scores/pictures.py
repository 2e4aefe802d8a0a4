"""Writes a map of scores as a pyramidal TIFF and as a picture."""

from collections.abc import Sequence
import pathlib

import matplotlib
from matplotlib import cm, colors, figure, patches
import numpy as np

from data.camelyon16.patches import STRIDE
from data.files import replacing
from data.phantom import tiff
from data.slides import Slide

_ALPHAS = np.linspace(0, 0.8, 256)
_COLOURS = colors.ListedColormap(
  np.c_[matplotlib.colormaps['YlGn'](np.linspace(0.3, 1, 256))[:, :3], _ALPHAS]
)
_PICTURE = 700  # Pixels of a thumbnail's longer side.
_SMALLEST = 128  # Pixels of a pyramid's last level, shorter side, or more.


def write_tiff(
  path: pathlib.Path, scores: np.ndarray, *, mpp: float, highest: float = 3.0
) -> None:
  """Writes a map as a grey pyramid that viewers lay over the slide.

  Black is 0; JPEG at its best quality, so that values are off by up to about
  1 %: the map itself is what `score_slide` keeps.

  Args:
    path: of the TIFF.
    scores: [H, W].
    mpp: um per pixel of the map: that of the slide times the stride.
    highest: the score that is white, as are those above it.
  """
  grey = np.round(np.clip(scores / highest, 0, 1) * 255).astype(np.uint8)
  levels = max(1, (min(grey.shape) // _SMALLEST).bit_length())
  image = np.repeat(grey[..., None], 3, -1)
  tiff.write(path, image, mpp=mpp, levels=levels, quality=100)


def draw(
  path: pathlib.Path,
  slide_path: pathlib.Path | str,
  scores: np.ndarray,
  found: np.ndarray,
  *,
  stride: int = STRIDE,
  outlines: Sequence[np.ndarray] = (),
  title: str = '',
  lowest: float = 0.0,
  highest: float = 3.0,
) -> None:
  """Draws the slide, and the map over it with its detections, as a PNG.

  Args:
    path: of the PNG.
    slide_path: of the slide.
    scores: [H, W]; 0 where nothing was scored.
    found: detections, see `detections.find`.
    stride: level-0 pixels per pixel of the map.
    outlines: of tumour, each [K, 2], level-0 pixels (x, y).
    title: above the slide; its id by default.
    lowest: the start of the colour scale.
    highest: its end.

  Raises:
    SlideError: if the slide cannot be read.
  """
  with Slide(slide_path, default_mpp=1.0) as slide:
    longer = max(slide.width, slide.height)
    picture = slide.thumbnail(slide.mpp * longer / _PICTURE)
    width, height = slide.width, slide.height
    title = title or slide.slide_id
  drawing = figure.Figure(
    (10.5, 4.6 * max(0.4, min(height / width, 2.5)) + 0.9), layout='constrained'
  )
  left, right = drawing.subplots(1, 2)
  for ax in (left, right):
    ax.imshow(picture, extent=(0, width, height, 0))
    ax.set_axis_off()
    for corners in outlines:
      ax.add_patch(
        patches.Polygon(corners, fill=False, edgecolor='black', lw=1.2, ls='--')
      )
  left.set_title(title, fontsize=10)
  norm = colors.Normalize(lowest, highest)
  shown = np.ma.masked_equal(scores, 0)
  rows, columns = scores.shape
  right.imshow(
    shown,
    _COLOURS,
    norm,
    extent=(0, columns * stride, rows * stride, 0),
    interpolation='nearest',
  )
  right.plot(*found[:, 1:].T, 'o', mfc='none', mec='tab:blue', ms=8, mew=1.5)
  right.set(xlim=(0, width), ylim=(height, 0))
  right.set_title(f'score; {len(found)} detection(s), circled', fontsize=10)
  drawing.colorbar(cm.ScalarMappable(norm, _COLOURS), ax=right, shrink=0.7)
  with replacing(path) as part:
    drawing.savefig(part, dpi=100, format='png')
