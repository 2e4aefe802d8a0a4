"""Pictures of a report as data URIs, small enough for one page."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
import io
import pathlib
from typing import Any, NamedTuple

from matplotlib import figure, ticker
import numpy as np
from PIL import Image

from experiments.reporting.record import Record, Tested

_WIDTH = 1100  # Pixels of a heat map in the page.
_QUALITY = 80  # Of WebP.
_MOST = 24  # Heat maps in the page.
_CURVES = ('train_loss', 'val_loss', 'val_f1_macro')
_FIGURES = {
  'roc': 'ROC curves',
  'pr': 'Precision-recall curves',
  'reliability': 'Reliability',
  'confusion': 'Confusion matrix',
}


class Picture(NamedTuple):
  """A picture, and what it shows."""

  title: str
  uri: str


class HeatMaps(NamedTuple):
  """The heat maps of a run, and what became of the others."""

  shown: Sequence[tuple[Tested, str]]  # with the URI of its picture
  more: int  # in the folder only
  missing: Sequence[str]  # test slides that should have one and have none
  damaged: Sequence[str]  # slides


def figures(record: Record, prefix: str = '') -> list[Picture]:
  """Returns what `evaluation.figures` drew of the test parts.

  Args:
    record: the run.
    prefix: 'external_' for the second cohort.
  """
  drawn = []
  for name, title in _FIGURES.items():
    path = record.folder.at(f'figures/{prefix}{name}.png')
    if path.exists():
      drawn.append(Picture(title, _uri('png', path.read_bytes())))
  return drawn


def sizes(record: Record) -> Picture:
  """Draws how many slides have bags of which size, sizes on a log scale."""
  drawing = figure.Figure((7, 2.4), layout='constrained')
  ax = drawing.subplots()
  sizes = record.slides.instances
  # Between whole numbers, so that every bin can hold one.
  edges = np.unique(np.floor(np.geomspace(sizes.min(), sizes.max() + 1, 15)))
  ax.hist(sizes, edges - 0.5, color='C0', edgecolor='white')
  ax.set(xscale='log', xlabel='instances of a slide', ylabel='slides')
  ax.xaxis.set_major_formatter(ticker.LogFormatter())
  ax.xaxis.set_minor_formatter(ticker.LogFormatter())
  return _drawn('Slides by the size of their bags', drawing)


def curves(record: Record) -> Picture | None:
  """Draws losses and macro F1 of every epoch; None of models of no epochs."""
  if not any(record.history.values()):
    return None
  drawing = figure.Figure((10, 3.2), layout='constrained')
  panels = drawing.subplots(1, len(_CURVES))
  for ax, name in zip(panels, _CURVES, strict=True):
    for fold, lines in record.history.items():
      values = np.array([line.get(name) for line in lines], float)
      ax.plot(range(1, len(values) + 1), values, lw=1.1, label=f'fold {fold}')
    ax.set(xlabel='epoch', title=name)
    ax.locator_params('x', integer=True)
    ax.grid(color='0.92')
  shown = panels[0].get_legend_handles_labels()
  drawing.legend(*shown, loc='outside lower center', ncols=5)
  return _drawn('Training, one curve a fold', drawing)


def intervals(part: Mapping[str, Any], whole: str) -> Picture:
  """Draws every metric with its interval, and the values of single folds.

  Args:
    part: summary.json, or what it has of a second cohort.
    whole: the name of the value that the interval is of.
  """
  drawing = figure.Figure((7, 2.4), layout='constrained')
  ax = drawing.subplots()
  for row, m in enumerate(part['metrics'].values()):
    for values, style in (
      ((m['ci_low'], m['ci_high']), {'lw': 5, 'color': 'C0', 'alpha': 0.4}),
      (m['per_fold'], {'ls': '', 'marker': '|', 'ms': 9, 'color': '0.45'}),
      ((m[whole],), {'marker': 'o', 'color': 'C0'}),
    ):
      ax.plot(np.array(values, float), [row] * len(values), **style)
  ax.set_yticks(range(len(part['metrics'])), part['metrics'])
  ax.set(xlim=(0, 1), ylim=(len(part['metrics']) - 0.5, -0.5))
  ax.grid(color='0.92')
  title = f'Dots: {whole}; bars: 95 % intervals; strokes: single folds'
  return _drawn(title, drawing)


def heat_maps(record: Record) -> HeatMaps:
  """Returns heat maps: the surest mistakes, then the other classes in turn."""
  folder = record.folder.at('figures/heat_maps')
  shown, missing, damaged, more = [], [], [], 0
  for t in _ordered(record.tested):
    path = folder / f'fold_{t.fold}_{t.slide}.png'
    if not path.exists():
      missing.append(t.slide)
    elif len(shown) == _MOST:
      more += 1
    else:
      try:
        shown.append((t, shrunk(path)))
      except (OSError, SyntaxError, Image.DecompressionBombError):
        damaged.append(t.slide)
  all_asked = folder.exists() and record.flags['heat_maps'] is None
  return HeatMaps(shown, more, missing if all_asked else (), damaged)


def shrunk(path: pathlib.Path) -> str:
  """Returns a PNG as a WebP that is no wider than a page."""
  with Image.open(path, formats=['PNG']) as image:
    picture = image.convert('RGB')
  picture.thumbnail((_WIDTH, picture.height), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, 'webp', quality=_QUALITY)
  return _uri('webp', file.getvalue())


def _ordered(tested: Sequence[Tested]) -> list[Tested]:
  keys, count = {}, Counter()
  for t in tested:
    count[t.label] += not t.is_wrong
    turn = -t.prob if t.is_wrong else count[t.label]
    keys[t] = not t.is_wrong, turn, t.label, t.slide
  return sorted(tested, key=keys.get)


def _drawn(title: str, drawing: figure.Figure) -> Picture:
  file = io.BytesIO()
  drawing.savefig(file, dpi=150, format='png')
  return Picture(title, _uri('png', file.getvalue()))


def _uri(kind: str, content: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
