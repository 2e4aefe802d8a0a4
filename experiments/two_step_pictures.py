"""Draws how scores of images are distributed."""

from collections.abc import Mapping
import pathlib

from matplotlib import axes, figure
import numpy as np

from data.files import replacing
from experiments.two_step_scores import VOTES


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
