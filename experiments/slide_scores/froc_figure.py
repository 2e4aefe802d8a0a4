"""Draws free-response ROC curves."""

from collections.abc import Mapping
import pathlib

from matplotlib import figure
import numpy as np

from data.files import replacing
from kmil_jax import froc


def draw(path: pathlib.Path, curves: Mapping[str, froc.Froc]) -> None:
  """Draws curves up to 8 false positives per slide, as a PNG.

  Marks are where the score is read off; a dotted line continues a curve whose
  largest rate is lower, as the score does.

  Args:
    path: of the PNG.
    curves: by name; '' for one that needs none.
  """
  drawing = figure.Figure((5.6, 4.9), layout='constrained')
  ax = drawing.subplots()
  last = froc.RATES[-1]
  for place, (name, found) in enumerate(curves.items()):
    colour = f'C{place % 10}'
    label = f'{name}, FROC {found.score:.3f}'.removeprefix(', ')
    ax.plot(found.rate, found.curve, color=colour, lw=1.5, label=label)
    ax.plot(
      froc.RATES,
      found.sensitivity,
      'o',
      color=colour,
      ms=5,
      zorder=3,
      clip_on=False,  # Of marks on an axis.
    )
    if found.rate[-1] < last:
      held = np.array([found.curve[-1]] * 2)
      ax.plot([found.rate[-1], last], held, ':', color=colour, lw=1.5)
  ax.set(
    xlim=(0, 1.02 * last),
    ylim=(0, 1.02),
    xlabel='false positives per slide',
    ylabel='sensitivity, lesions',
  )
  some = next(iter(curves.values()))
  ax.set_title(f'{some.slides} slides, {some.lesions} lesions', pad=10)
  ax.grid(color='0.92')
  # Below: curves may be anywhere within.
  drawing.legend(loc='outside lower center', ncols=2, fontsize=9)
  with replacing(path) as part:
    drawing.savefig(part, dpi=120, format='png')
