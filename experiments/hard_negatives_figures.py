"""Draws what was mined, where features lie and where models look."""

import pathlib

from matplotlib import figure
import numpy as np
from sklearn import manifold

from data import atomic
from data.labelled_tiles import LabelledTiles
from data.tile_pipeline import ordered_batches
from experiments.hard_negatives_runs import Study
from experiments.hard_negatives_settings import POSITIVE, Setting
from experiments.patch_training import Trained
from kmil_jax import saliency

_SHOWN = 6  # False positives, and tiles of each kind.
_NEIGHBOURS = 3
_PERPLEXITY = 50  # Lee et al. 2024 drew 50 and 500.
_MOST = 2000  # Tiles that t-SNE places.
_FIELD = 5  # Tiles along the side of a field.
_STRIDE = 32  # Pixels of a tile per pixel of the last map.


def draw(
  folder: pathlib.Path,
  study: Study,
  setting: Setting,
  weak: Trained,
  strong: Trained,
) -> list[str]:
  """Writes mined.png, tsne.png and grad_cam.png of a setting that was run.

  Args:
    folder: for the files.
    study: of the setting.
    setting: of the strong model, with at least one mined tile.
    weak: that mined for it.
    strong: of `setting`.

  Returns:
    Their names.
  """
  drawings = {
    'mined': _mined(study, setting),
    'tsne': _tsne(study, weak, strong),
    'grad_cam': _grad_cam(study, weak, strong),
  }
  for name, drawing in drawings.items():
    with atomic.replacing(folder / f'{name}.png') as part:
      drawing.savefig(part, format='png', dpi=120)
  return [f'{name}.png' for name in drawings]


def _mined(study: Study, setting: Setting) -> figure.Figure:
  """False positives above the tiles of the pool that they chose."""
  rows, mined = study.false_positives(setting), study.mined(setting)
  # Each tile is listed with one query; those that have most show most.
  count = np.bincount(mined.query, minlength=len(rows))
  asked = np.argsort(-count, kind='stable')[:_SHOWN]
  drawing, axes = _grid(1 + _NEIGHBOURS, len(asked))
  for column, query in zip(axes.T, asked, strict=True):
    at = np.flatnonzero(mined.query == query)[:_NEIGHBOURS]
    column[0].imshow(_pixels(study.val, rows[query]))
    column[0].set_title(study.val.id[rows[query]], fontsize=7)
    for ax, i in zip(column[1:], at, strict=False):
      ax.imshow(_pixels(study.pool, mined.index[i]))
      ax.set_title(f'{mined.distance[i]:.3g}', fontsize=7)
  for ax, text in zip(
    axes[:, 0], ['false positive'] + ['mined'] * 9, strict=False
  ):
    ax.set_ylabel(text, fontsize=8)
  drawing.suptitle(
    'False positives of the weak model (validation) and what they chose from'
    f' the pool, {setting.choice} distance above',
    fontsize=9,
  )
  return drawing


def _tsne(study: Study, weak: Trained, strong: Trained) -> figure.Figure:
  """Both models' features of test tiles, placed by t-SNE."""
  tiles = study.test
  if len(tiles) > _MOST:
    draw = np.random.default_rng(0).permutation(len(tiles))[:_MOST]
    tiles = tiles.take(np.sort(draw))
  prob = weak.predict(tiles)[0][:, POSITIVE]
  positive = tiles.label == POSITIVE
  wrong = ~positive & (prob >= 0.5)
  kinds = {
    'negative': (~positive & ~wrong, '0.65'),
    'positive': (positive, 'C0'),
    'false positive of the weak model': (wrong, 'C3'),
  }
  drawing = figure.Figure((9, 5), layout='constrained')
  perplexity = min(_PERPLEXITY, (len(tiles) - 1) / 3)
  for ax, name, model in zip(
    drawing.subplots(1, 2), ('weak', 'strong'), (weak, strong), strict=True
  ):
    features = model.predict(tiles)[1]
    place = manifold.TSNE(
      perplexity=perplexity, init='pca', random_state=0
    ).fit_transform(features)
    for label, (rows, color) in kinds.items():
      ax.scatter(*place[rows].T, 14, color=color, lw=0, alpha=0.8, label=label)
    ax.set(xticks=[], yticks=[], title=f'{name} model')
  handles, labels = ax.get_legend_handles_labels()
  drawing.legend(handles, labels, loc='outside lower center', ncols=3)
  drawing.suptitle(
    f't-SNE of the features of {len(tiles)} test tiles,'
    f' perplexity {perplexity:.0f}',
    fontsize=10,
  )
  return drawing


def _grad_cam(study: Study, weak: Trained, strong: Trained) -> figure.Figure:
  """Where both models see positives, in tiles or in fields of many."""
  side = weak.recipe.input_size or study.test.size
  prob = weak.predict(study.test)[0][:, POSITIVE]
  by_prob = np.argsort(-prob, kind='stable')
  positive = by_prob[study.test.label[by_prob] == POSITIVE]
  negative = by_prob[study.test.label[by_prob] != POSITIVE]
  if side >= 4 * _STRIDE:
    half = _SHOWN // 2
    rows = np.concatenate([positive[:half], negative[:half]])
    titles = [
      f'{study.test.classes[c]}, {prob[i]:.2f}'
      for i in rows
      for c in [study.test.label[i]]
    ]
    fields = [
      (np.array([[row]]), title)
      for row, title in zip(rows, titles, strict=True)
    ]
  else:
    fields = _fields(positive, negative)
  images = [_field(study.test, weak, where) for where, _ in fields]
  shown = [_field(study.test, None, where) for where, _ in fields]
  drawing, axes = _grid(3, len(fields), 2.4 if side >= 4 * _STRIDE else 3.2)
  target = np.full(1, POSITIVE, np.int32)
  for column, image, seen, (_, title) in zip(
    axes.T, images, shown, fields, strict=True
  ):
    column[0].set_title(title, fontsize=8)
    for ax, model in zip(column, (None, weak, strong), strict=True):
      ax.imshow(seen)
      if model is not None:
        heat = saliency.grad_cam(
          model.model, model.variables, image[None], target
        )[0]
        extent = (-0.5, seen.shape[1] - 0.5, seen.shape[0] - 0.5, -0.5)
        ax.imshow(heat, cmap='jet', alpha=0.4, vmin=0, vmax=1, extent=extent)
  for ax, text in zip(axes[:, 0], ('tiles', 'weak', 'strong'), strict=True):
    ax.set_ylabel(text, fontsize=9)
  drawing.suptitle('Grad-CAM of the positive class, test tiles', fontsize=10)
  return drawing


def _fields(
  positive: np.ndarray, negative: np.ndarray
) -> list[tuple[np.ndarray, str]]:
  """Two fields of tiles: on tiles this small the last map has few pixels.

  The network takes any size; a field shows which of its tiles it looks at.
  """
  rng = np.random.default_rng(0)
  count = _FIELD**2
  mix = lambda some, share: np.concatenate(
    [some[:share], rng.permutation(negative[len(negative) // 2 :])]
  )[:count]
  found = []
  for some, title in (
    (rng.permutation(positive), 'positives among easy negatives'),
    (negative, 'hardest negatives of the weak model among easy ones'),
  ):
    rows = rng.permutation(mix(some, _FIELD))
    if len(rows) == count:
      found.append((rows.reshape(_FIELD, _FIELD), title))
  return found


def _field(
  tiles: LabelledTiles, model: Trained | None, where: np.ndarray
) -> np.ndarray:
  """Returns tiles side by side, as `model` gets them or as they are.

  Args:
    tiles: all.
    model: whose input it is to be.
    where: rows of `tiles`, [h, w].
  """
  some = tiles.take(where.ravel())
  if model is None:
    pixels = some.load(np.arange(len(some)))
  else:
    r = model.recipe
    pixels = next(
      ordered_batches(
        some, batch=len(some), input_size=r.input_size, mean=r.mean, std=r.std
      )
    )['image']
  pixels = np.asarray(pixels).reshape(*where.shape, *pixels.shape[1:])
  h, w, side = pixels.shape[:3]
  return pixels.swapaxes(1, 2).reshape(h * side, w * side, -1).squeeze()


def _pixels(tiles: LabelledTiles, row: int) -> np.ndarray:
  return tiles.load(np.array([row]))[0].squeeze()


def _grid(
  height: int, width: int, size: float = 1.6
) -> tuple[figure.Figure, np.ndarray]:
  drawing = figure.Figure(
    (max(size * width, 5), size * height + 0.6), layout='constrained'
  )
  axes = drawing.subplots(height, width, squeeze=False)
  for ax in axes.ravel():
    ax.set(xticks=[], yticks=[])
    for edge in ax.spines.values():
      edge.set_visible(False)
  return drawing, axes
