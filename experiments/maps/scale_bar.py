"""A bar of micrometres on pictures of slides."""

from matplotlib import axes
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
import numpy as np

from data.slides import Slide


def add_scale_bar(ax: axes.Axes, slide: Slide) -> None:
  """Adds a bar of micrometres and the magnification, if the scale is known.

  The magnification is 10 / (um per pixel of the picture): 10x is 1 um.

  Args:
    ax: has a picture and level-0 pixels as units.
    slide: whose scale is unknown if it is that of `default_mpp`.
  """
  if slide.mpp_source == 'default_mpp':
    return
  width = np.ptp(ax.get_xlim()) * slide.mpp
  unit = 10 ** np.floor(np.log10(width / 3))
  length = unit * max(n for n in (1, 2, 5) if n * unit <= width / 3)
  text = f'{length:g} µm' if length < 1000 else f'{length / 1000:g} mm'
  power = 10 * ax.images[0].get_size()[1] / width
  bar = AnchoredSizeBar(
    ax.transData,
    length / slide.mpp,
    f'{text}, {power:.2g}x',
    'lower left',
    borderpad=0.2,
    fontproperties={'size': 8},
  )
  bar.patch.set(alpha=0.8, linewidth=0)
  ax.add_artist(bar)
