"""Draws what was mined, where features lie and where models look."""

import pathlib

import jax
from matplotlib import figure
import numpy as np
from sklearn import manifold

from data.files import replacing
from data.labelled_tiles import LabelledTiles
from experiments.hard_negatives_runs import Study
from experiments.hard_negatives_settings import POSITIVE, Setting
from experiments.patches import pictures
from experiments.patches.training import Trained

_SHOWN = 6  # False positives, and tiles of each kind.
_NEIGHBOURS = 3
_PERPLEXITY = 50  # Lee et al. 2024 drew 50 and 500.
_MOST = 400  # Tiles that t-SNE places.
_INNER = 'layer2_1'  # Of ResNet-18; 4 x 4 cells of 32 pixels.


def draw(
  folder: pathlib.Path,
  study: Study,
  setting: Setting,
  weak: Trained,
  strong: Trained,
) -> list[str]:
  """Writes mined.png, tsne.png and grad_cam.png of a setting that was run.

  Where tiles are so small that the last map has one cell, Grad-CAM is that of
  the network's second stage.

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
    with replacing(folder / f'{name}.png') as part:
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


def _map_side(trained: Trained, tiles: LabelledTiles) -> int:
  """Returns the side of a network's last map of such tiles."""
  side = trained.recipe.input_size or tiles.size
  image = jax.ShapeDtypeStruct((1, side, side, tiles.channels), np.float32)
  maps = jax.eval_shape(
    lambda x: trained.model.apply(trained.variables, x, method='feature_map'),
    image,
  )
  return maps.shape[1]


def _grad_cam(study: Study, weak: Trained, strong: Trained) -> figure.Figure:
  """Where both models see positives, in what the weak one is surest of."""
  order = np.argsort(-weak.predict(study.test)[0][:, POSITIVE], kind='stable')
  positive = study.test.label[order] == POSITIVE
  half = _SHOWN // 2
  rows = np.concatenate([order[positive][:half], order[~positive][:half]])
  some = study.test.take(rows)
  target = np.full(len(some), POSITIVE)
  layer = None if _map_side(weak, some) > 1 else _INNER
  maps = {
    name: (
      model.grad_cam(some, target, layer),
      model.predict(some)[0][:, POSITIVE],
    )
    for name, model in (('weak', weak), ('strong', strong))
  }
  return pictures.heat(
    'Grad-CAM of the positive class: test tiles of which the weak model is'
    f' surest ({"last map" if layer is None else layer})',
    some,
    maps,
  )


def _pixels(tiles: LabelledTiles, row: int) -> np.ndarray:
  return tiles.load(np.array([row]))[0].squeeze()


def _grid(height: int, width: int) -> tuple[figure.Figure, np.ndarray]:
  """Empty frames for pictures, [height, width] of them."""
  drawing = figure.Figure(
    (max(1.6 * width, 5), 1.6 * height + 0.6), layout='constrained'
  )
  axes = drawing.subplots(height, width, squeeze=False)
  for ax in axes.ravel():
    ax.set(xticks=[], yticks=[])
    for edge in ax.spines.values():
      edge.set_visible(False)
  return drawing, axes
