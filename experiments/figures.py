"""Curves, confusion matrix and calibration of a results folder."""

from collections.abc import Sequence
import pathlib

from matplotlib import axes, figure
import numpy as np
from sklearn import metrics as sklearn_metrics

from experiments import predictions, scores
from experiments.predictions import Predictions
from kmil_jax import calibration, metrics


def draw(folder: pathlib.Path, classes: Sequence[str]) -> None:
  """Draws the test parts, all folds together, into `figures`.

  Writes roc.png, pr.png, confusion.png and reliability.png; of an external
  cohort, its mean probabilities over folds, external_roc.png, external_pr.png
  and external_confusion.png.
  """
  folds = predictions.read_folds(folder, classes)
  test = predictions.pool([parts['test'] for parts in folds.values()])
  after = scores.scaled(folds, scores.temperatures(folds))
  drawings = _of_cohort(test, classes, 'test parts pooled', '')
  drawings['reliability'] = _reliability(test, after)
  if external := predictions.read_external(folder, classes):
    drawings |= _of_cohort(
      predictions.mean(external), classes, 'external cohort', 'external_'
    )
  target = folder / 'figures'
  target.mkdir(parents=True, exist_ok=True)
  for name, drawing in drawings.items():
    drawing.savefig(target / f'{name}.png', dpi=120)


def _of_cohort(
  p: Predictions, classes: Sequence[str], title: str, prefix: str
) -> dict[str, figure.Figure]:
  title = f'{title}, {len(p)} slides'
  return {
    f'{prefix}roc': _roc(p, classes, title),
    f'{prefix}pr': _precision_recall(p, classes, title),
    f'{prefix}confusion': _confusion(p, classes, title),
  }


def _shown(classes: Sequence[str]) -> list[int]:
  """Classes with a curve: of two, the second, for they mirror one another."""
  return list(range(len(classes))) if len(classes) > 2 else [1]


def _line(place: int, count: int) -> dict:
  """How the curve at a place among `count` is drawn.

  Curves that coincide, as those of perfect classes do, show as stripes: each is
  narrower than those below it.
  """
  return {
    'color': f'C{place % 10}',
    'linewidth': 1.0 + 1.15 * (count - 1 - place),
    'clip_on': False,  # A perfect curve runs along the frame.
    'solid_capstyle': 'butt',
    'zorder': 3,
  }


def _square(drawing: figure.Figure) -> axes.Axes:
  """Axes from 0 to 1."""
  ax = drawing.subplots()
  ax.set(xlim=(0, 1), ylim=(0, 1), aspect='equal')
  ax.grid(color='0.92')
  for side in ax.spines.values():
    side.set_color('0.7')
  return ax


def _value(x: float) -> str:
  return 'n/a' if np.isnan(x) else f'{x:.3f}'


def _roc(p: Predictions, classes: Sequence[str], title: str) -> figure.Figure:
  drawing = figure.Figure((5.2, 5.2), layout='constrained')
  ax = _square(drawing)
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  shown = _shown(classes)
  for place, c in enumerate(shown):
    positive, prob = p.label == c, p.prob[:, c]
    value = metrics.auroc(positive, prob)
    if np.isnan(value):
      ax.plot([], [], ' ', label=f'{classes[c]}, AUROC n/a')
      continue
    fpr, tpr, _ = sklearn_metrics.roc_curve(
      positive, prob, drop_intermediate=False
    )
    label = f'{classes[c]}, AUROC {_value(value)}'
    ax.plot(fpr, tpr, label=label, **_line(place, len(shown)))
  ax.set(xlabel='1 - specificity', ylabel='sensitivity')
  ax.set_title(title, pad=10)
  ax.legend(loc='lower right', fontsize=9)
  return drawing


def _precision_recall(
  p: Predictions, classes: Sequence[str], title: str
) -> figure.Figure:
  drawing = figure.Figure((5.2, 6.2), layout='constrained')
  ax = _square(drawing)
  shown = _shown(classes)
  for place, c in enumerate(shown):
    positive, prob = p.label == c, p.prob[:, c]
    if not positive.any():
      ax.plot([], [], ' ', label=f'{classes[c]}, AP n/a')
      continue
    curve = sklearn_metrics.precision_recall_curve(positive, prob)
    # From the highest threshold on.
    precision, recall = curve[0][::-1], curve[1][::-1]
    value = sklearn_metrics.average_precision_score(positive, prob)
    # Lower thresholds than that of full recall say nothing more.
    stop = np.searchsorted(recall, 1) + 1
    # What guessing reaches: the share of the class.
    ax.axhline(positive.mean(), ls=':', lw=1, color=f'C{place % 10}')
    label = f'{classes[c]}, AP {_value(value)}'
    line = _line(place, len(shown))
    ax.step(recall[:stop], precision[:stop], where='pre', label=label, **line)
  ax.set(xlabel='recall', ylabel='precision')
  ax.set_title(title, pad=10)
  # Curves may pass through any corner.
  drawing.legend(loc='outside lower center', ncols=2, fontsize=9)
  return drawing


def _confusion(
  p: Predictions, classes: Sequence[str], title: str
) -> figure.Figure:
  pred = p.prob.argmax(1)
  table = sklearn_metrics.confusion_matrix(
    p.label, pred, labels=range(len(classes))
  )
  share = table / np.maximum(table.sum(1, keepdims=True), 1)
  drawing = figure.Figure((5.6, 5), layout='constrained')
  ax = drawing.subplots()
  image = ax.imshow(share, cmap='Blues', vmin=0, vmax=1)
  for (row, column), count in np.ndenumerate(table):
    ax.text(
      column,
      row,
      str(count),
      ha='center',
      va='center',
      color='white' if share[row, column] > 0.5 else 'black',
    )
  ticks = range(len(classes))
  ax.set_xticks(ticks, classes, rotation=30, ha='right')
  ax.set_yticks(ticks, classes)
  ax.set(xlabel='predicted', ylabel='true', title=title)
  drawing.colorbar(image, label='share of the true class', shrink=0.8)
  return drawing


def _reliability(test: Predictions, after: np.ndarray) -> figure.Figure:
  """Accuracy against confidence, and below it the slides of each bin."""
  drawing = figure.Figure((5.2, 6.4), layout='constrained')
  ax, below = drawing.subplots(
    2, sharex=True, gridspec_kw={'height_ratios': [4, 1]}
  )
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  for name, prob, color, marker in (
    ('as is', test.prob, 'C0', 'o'),
    ('at the temperatures', after, 'C1', 's'),
  ):
    bins = calibration.reliability(test.label, prob)
    ece = _value(calibration.ece(test.label, prob))
    held = bins.count > 0
    # The area of a mark says how many slides stand behind it.
    size = 12 + 200 * bins.count[held] / max(bins.count.sum(), 1)
    x, y = bins.confidence[held], bins.accuracy[held]
    ax.plot(x, y, color=color, lw=1.2, alpha=0.85)
    label = f'{name}, ECE {ece}'
    style = {'color': color, 'marker': marker, 'alpha': 0.7}
    ax.scatter(x, y, size, label=label, zorder=3, **style)
    below.stairs(bins.count, bins.edges, color=color, lw=1.5)
  ax.set(ylabel='accuracy', ylim=(-0.03, 1.03))
  ax.set_title(f'test parts pooled, {len(test)} slides')
  legend = ax.legend(loc='lower right', fontsize=9)
  for handle in legend.legend_handles:
    handle.set_sizes([40])
  below.set(
    xlabel='probability of the predicted class',
    ylabel='slides',
    xlim=(-0.03, 1.03),
  )
  for each in (ax, below):
    each.grid(color='0.92')
    each.set_axisbelow(True)
  return drawing
