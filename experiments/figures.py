"""ROC curves and the confusion matrix of a results folder."""

from collections.abc import Sequence
import pathlib

from matplotlib import figure
import numpy as np

from experiments import results
from kmil_jax import metrics


def draw(folder: pathlib.Path, classes: Sequence[str]) -> None:
  """Draws figures/roc.png and figures/confusion.png from the test parts."""
  paths = sorted(folder.glob('fold_*/predictions.csv'))
  test = results.pool(
    [results.read_predictions(path, classes)['test'] for path in paths]
  )
  target = folder / 'figures'
  target.mkdir(parents=True, exist_ok=True)
  _roc(test, classes).savefig(target / 'roc.png', dpi=120)
  _confusion(test, classes).savefig(target / 'confusion.png', dpi=120)


def _roc(test: results.Predictions, classes: Sequence[str]) -> figure.Figure:
  drawing = figure.Figure((5.2, 5), layout='constrained')
  ax = drawing.subplots()
  ax.plot([0, 1], [0, 1], ':', color='grey', lw=1)
  aurocs = metrics.class_aurocs(test.label, test.prob)
  # Two classes share one curve, mirrored.
  shown = range(len(classes)) if len(classes) > 2 else [1]
  for c in shown:
    fpr, tpr = metrics.roc(test.label == c, test.prob[:, c])
    value = 'n/a' if np.isnan(aurocs[c]) else f'{aurocs[c]:.3f}'
    ax.plot(fpr, tpr, label=f'{classes[c]}, AUROC {value}')
  ax.set(
    xlabel='1 - specificity',
    ylabel='sensitivity',
    title=f'test parts pooled, {len(test)} slides',
    aspect='equal',
  )
  ax.legend(loc='lower right', fontsize=9)
  return drawing


def _confusion(
  test: results.Predictions, classes: Sequence[str]
) -> figure.Figure:
  table = metrics.confusion(test.label, test.prob.argmax(1), len(classes))
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
  ax.set(xlabel='predicted', ylabel='true', title='slides, test parts pooled')
  drawing.colorbar(image, label='share of the true class', shrink=0.8)
  return drawing
