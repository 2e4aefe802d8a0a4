"""A bar of micrometres on pictures of slides."""

from typing import Any

import numpy as np

from data.slides import Slide, scale_bar


def known_mpp(slide: Slide) -> float | None:
  """Returns um per level-0 pixel; None if that is but `default_mpp`."""
  return None if slide.mpp_source == 'default_mpp' else slide.mpp


def add_scale_bar(ax: Any, mpp: float | None) -> None:
  """Adds a bar of micrometres and the magnification to a picture.

  Args:
    ax: matplotlib's axes of the picture.
    mpp: um per unit of its axes; None: no bar is drawn.
  """
  # It imports matplotlib, which takes half a second.
  from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

  if mpp is None:
    return
  width = np.ptp(ax.get_xlim()) * mpp
  length, text = scale_bar(width, ax.images[0].get_size()[1])

  class Bar(AnchoredSizeBar):
    """Says the magnification of what is drawn, known when all is laid out."""

    def draw(self, renderer):
      drawn = ax.get_window_extent(renderer).width
      self.txt_label.set_text(scale_bar(width, drawn)[1])
      super().draw(renderer)

  place, font = (ax.transData, length / mpp, text, 'lower left'), {'size': 8}
  bar = Bar(*place, borderpad=0.2, fontproperties=font)
  bar.patch.set(alpha=0.8, linewidth=0)
  ax.add_artist(bar)
