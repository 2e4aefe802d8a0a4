"""Draws heat maps beside the truth, and how scores are distributed."""

from collections.abc import Mapping, Sequence
import pathlib

import matplotlib
from matplotlib import axes, cm, colors, figure, lines
import numpy as np

from data.files import replacing
from experiments.two_step_scores import VOTES

_ALPHAS = np.linspace(0, 0.75, 256)
_COLOURS = colors.ListedColormap(
  np.c_[matplotlib.colormaps['YlGn'](np.linspace(0.3, 1, 256))[:, :3], _ALPHAS]
)
_TRUTH, _FOUND = 'black', 'tab:blue'


def heat_maps(
  path: pathlib.Path,
  title: str,
  image: np.ndarray,
  truth: Sequence[Sequence[np.ndarray]],
  maps: Mapping[str, tuple[np.ndarray, Sequence[Sequence[np.ndarray]]]],
) -> None:
  """Draws an image with the true outlines, and its heat maps beside it.

  Args:
    path: of the PNG.
    title: of the image.
    image: uint8 [H, W, 3].
    truth: polygons of the lesions, see `two_step_outlines.outlines`.
    maps: heat map [H, W] and polygons found in it, by title.
  """
  height = 4.4 * image.shape[0] / image.shape[1] + 1.0
  drawing = figure.Figure((5 * (len(maps) + 1), height), layout='constrained')
  panels = drawing.subplots(1, len(maps) + 1)
  extent = (0, image.shape[1], image.shape[0], 0)
  for ax, (name, shown) in zip(
    panels, [(title, None), *maps.items()], strict=True
  ):
    ax.imshow(image, extent=extent)
    ax.set_title(name, fontsize=10)
    ax.set_axis_off()
    if shown is not None:
      votes, found = shown
      ax.imshow(votes, _COLOURS, vmin=0, vmax=1, extent=extent)
      _rings(ax, found, _FOUND, '-')
    _rings(ax, truth, _TRUTH, '--')
  scale = cm.ScalarMappable(colors.Normalize(0, 1), _COLOURS)
  drawing.colorbar(scale, ax=panels, shrink=0.7, label='votes for tumour')
  handles = [
    lines.Line2D([], [], color=_TRUTH, ls='--', label='tumour'),
    lines.Line2D([], [], color=_FOUND, label='found'),
  ]
  drawing.legend(
    handles=handles, loc='outside lower center', ncols=2, fontsize=9
  )
  with replacing(path) as part:
    drawing.savefig(part, dpi=100, format='png')


def grid(
  path: pathlib.Path,
  title: str,
  image: np.ndarray,
  maps: Mapping[str, np.ndarray],
) -> None:
  """Draws tiles on their grid, and values of the tiles beside it.

  Args:
    path: of the PNG.
    title: of the tiles.
    image: uint8 [H, W, 3].
    maps: values from 0 to 1 by title, [h, w]; NaN where there is no tile.
  """
  rows = (len(maps) + 2) // 2
  height = rows * (6.0 * image.shape[0] / image.shape[1] + 0.5)
  drawing = figure.Figure((13.5, height), layout='constrained')
  panels = drawing.subplots(rows, 2).ravel()
  for ax in panels[len(maps) + 1 :]:
    ax.set_axis_off()
  panels[0].imshow(image)
  panels[0].set_title(title, fontsize=10)
  for ax, (name, values) in zip(panels[1:], maps.items(), strict=False):
    shown = ax.imshow(values, 'YlGn', vmin=0, vmax=1)
    ax.set_title(name, fontsize=10)
    ax.set_facecolor('0.9')
  for ax in panels:
    ax.set(xticks=[], yticks=[])
  drawing.colorbar(shown, ax=panels, shrink=0.7, label='tumour')
  with replacing(path) as part:
    drawing.savefig(part, dpi=100, format='png')


def scores(
  path: pathlib.Path,
  parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
  threshold: int,
) -> None:
  """Draws the paper's Figure 4: scores of negative and positive images.

  Args:
    path: of the PNG.
    parts: votes, int [n], and the truth, bool [n], of each part.
    threshold: votes from which an image is positive.
  """
  drawing = figure.Figure((4.2 * len(parts), 4.2), layout='constrained')
  panels = drawing.subplots(1, len(parts), sharey=True, squeeze=False)[0]
  for ax, (name, (votes, positive)) in zip(panels, parts.items(), strict=True):
    for label, colour in ((0, 'C0'), (1, 'C3')):
      _dots(ax, label, votes[positive == label] / VOTES, colour)
    level = (threshold - 0.5) / VOTES
    ax.axhline(level, color='grey', ls='--', lw=1)
    ax.text(
      1.48,
      level - 0.045,
      f'positive from {threshold / VOTES:.4f}',
      ha='right',
      color='0.35',
      fontsize=8,
    )
    ax.set_title(name)
    ax.set_xticks(
      [0, 1],
      [f'negative\n{(~positive).sum()}', f'positive\n{positive.sum()}'],
    )
    ax.set(xlim=(-0.5, 1.5), ylim=(-0.05, 1.05))
    ax.grid(axis='y', color='0.92')
    ax.set_axisbelow(True)
  panels[0].set_ylabel('score: highest share of votes in the image')
  with replacing(path) as part:
    drawing.savefig(part, dpi=120, format='png')


def _dots(ax: axes.Axes, x: int, values: np.ndarray, colour: str) -> None:
  """Draws equal values side by side."""
  for value in np.unique(values):
    n = (values == value).sum()
    step = min(0.05, 0.8 / n)
    place = x + step * (np.arange(n) - (n - 1) / 2)
    ax.plot(place, np.full(n, value), 'o', color=colour, ms=5, alpha=0.7)


def _rings(
  ax: axes.Axes,
  polygons: Sequence[Sequence[np.ndarray]],
  colour: str,
  style: str,
) -> None:
  for rings in polygons:
    for ring in rings:
      ax.plot(*ring.T, style, color=colour, lw=1.6)
