"""Draws training curves (Figures 2 to 4) and where the networks look."""

from collections.abc import Sequence
import pathlib

from matplotlib import figure
import numpy as np

from data.files import replacing
from experiments.ct_nodes_parts import Parts
from experiments.ct_nodes_table import Said


def save_curves(path: pathlib.Path, title: str, history: list[dict]) -> None:
  """Draws accuracy, loss and AUROC of every epoch, the kept one marked.

  Args:
    path: of the PNG.
    title: of the network.
    history: `Trained.history`.
  """
  drawing = figure.Figure((10.5, 3.2), layout='constrained')
  axes = drawing.subplots(1, 3)
  epoch = [line['epoch'] + 1 for line in history]
  kept = history[-1]['best_epoch'] + 1
  for ax, name, columns in (
    (axes[0], 'accuracy', ('train_accuracy', 'val_accuracy')),
    (axes[1], 'loss', ('train_loss', 'val_loss')),
    (axes[2], 'AUROC', ('val_auroc',)),
  ):
    for column in columns:
      values = [
        np.nan if line[column] is None else line[column] for line in history
      ]
      part = 'training' if column.startswith('train') else 'validation'
      color = 'C0' if part == 'training' else 'C1'
      ax.plot(epoch, values, color=color, label=part, marker='.', ms=4)
    ax.axvline(kept, color='0.6', ls=':', lw=1.2)
    ax.set(xlabel='epoch', title=name)
    if name != 'loss':
      ax.set_ylim(-0.03, 1.03)
    ax.grid(color='0.92')
  axes[0].legend(loc='lower right', fontsize=9)
  drawing.suptitle(f'{title}; dotted: the epoch kept, {kept}', fontsize=11)
  _save(drawing, path)


def save_cams(
  path: pathlib.Path,
  parts: Parts,
  shown: np.ndarray,
  said: Sequence[Said],
  cams: Sequence[np.ndarray],
) -> None:
  """Draws test slices with each network's Grad-CAM of the class it says.

  Args:
    path: of the PNG.
    parts: of the slices.
    shown: places in `Parts.tiles`, [k].
    said: of each network.
    cams: of each network, [k, s, s] in [0, 1]; s need not be that of slices.
  """
  columns = 1 + len(said)
  drawing = figure.Figure(
    (1.15 * len(shown) + 1.3, 1.3 * columns + 0.3), layout='constrained'
  )
  axes = drawing.subplots(columns, len(shown), squeeze=False)
  side = parts.side
  frame = (0, side, side, 0)
  for column, place in enumerate(shown):
    grey = parts.tiles.read(int(place))[..., 0]
    label = int(parts.tiles.label[place])
    for row in range(columns):
      ax = axes[row][column]
      ax.imshow(grey, cmap='gray', vmin=0, vmax=1, extent=frame)
      ax.contour(
        np.arange(side) + 0.5,
        np.arange(side) + 0.5,
        parts.inside[place],
        levels=[0.5],
        colors='C2',
        linewidths=0.7,
      )
      ax.set(xticks=[], yticks=[])
      if row:
        ax.imshow(
          cams[row - 1][column],
          cmap='autumn',
          alpha=0.6 * cams[row - 1][column],
          vmin=0,
          vmax=1,
          extent=frame,
          interpolation='bilinear',
        )
        prob = said[row - 1].prob[place, 1]
        wrong = (prob >= 0.5) != label
        ax.set_xlabel(
          f'{prob:.2f}', fontsize=8, color='C3' if wrong else '0.2', labelpad=2
        )
      else:
        ax.set_title(parts.tiles.classes[label], fontsize=8)
  for row, name in enumerate(['slice', *(one.title for one in said)]):
    axes[row][0].set_ylabel(name.replace(' (', '\n('), fontsize=8)
  drawing.suptitle(
    f'Test slices; green: the mask; numbers: P({parts.tiles.classes[1]}), red'
    ' where wrong',
    fontsize=9,
  )
  _save(drawing, path)


def spread(parts: Parts, count: int) -> np.ndarray:
  """Test slices to show: of each class in turn, the first by id, [<= count]."""
  test = parts.rows['test']
  test = test[np.argsort(parts.tiles.id[test])]
  by_class = [test[parts.tiles.label[test] == c] for c in range(2)]
  half = -(-count // 2)
  return np.concatenate([rows[:half] for rows in by_class])[:count]


def _save(drawing: figure.Figure, path: pathlib.Path) -> None:
  with replacing(path) as part:
    drawing.savefig(part, dpi=130, format='png')
