"""Pictures of hard negatives: what was mined, where features lie, Figure 4."""

from collections.abc import Mapping, Sequence

from matplotlib import figure
import numpy as np
from sklearn import manifold

from data.labelled_tiles import LabelledTiles
from experiments.evaluation.tables import HERE, Published, Table
from experiments.patches import pictures
from experiments.patches.training import Trained
from experiments.studies.hard_negatives import POSITIVE
from kmil_jax.mining import Mined

MOST = 400  # Tiles that t-SNE places.
_SHOWN = 6  # False positives, and tiles of each kind.
_NEIGHBOURS = 3
_PERPLEXITY = 50  # Lee et al. 2024 drew 50 and 500.
_BARE = {'xticks': [], 'yticks': [], 'frame_on': False}
ONE_CELL = 32  # Pixels of which the last map of ResNet-18 has one cell.


def mined(
  queries: LabelledTiles, pool: LabelledTiles, mining: Mined
) -> figure.Figure:
  """Draws false positives above the tiles of the pool that they chose.

  Args:
    queries: the false positives.
    pool: the tiles that were searched.
    mining: which of them were chosen.
  """
  # Each tile is listed with one query; those that have most show most.
  count = np.bincount(mining.query, minlength=len(queries))
  shown = np.argsort(-count, kind='stable')[:_SHOWN]
  sides = max(1.6 * len(shown), 5), 1.6 * (1 + _NEIGHBOURS) + 0.6
  drawing = figure.Figure(sides, layout='constrained')
  axes = drawing.subplots(
    1 + _NEIGHBOURS, len(shown), squeeze=False, subplot_kw=_BARE
  )
  for column, query in zip(axes.T, shown, strict=True):
    chosen = np.flatnonzero(mining.query == query)[:_NEIGHBOURS]
    images = [queries.load([query]), pool.load(mining.index[chosen])]
    texts = [queries.id[query], *(f'{d:.3g}' for d in mining.distance[chosen])]
    for ax, image, text in zip(
      column, np.concatenate(images), texts, strict=False
    ):
      ax.imshow(image.squeeze())
      ax.set_title(text, fontsize=7)
  for i, ax in enumerate(axes[:, 0]):
    ax.set_ylabel('mined, distance' if i else 'false positive', fontsize=8)
  drawing.suptitle('False positives (validation) and the nearest of the pool')
  return drawing


def features(
  tiles: LabelledTiles, models: Mapping[str, Trained], threshold: float
) -> figure.Figure:
  """Draws the features of tiles, placed by t-SNE.

  Args:
    tiles: of the test part; of many, some are drawn.
    models: by name; the first is the weak one, whose false positives are shown.
    threshold: probability from which a negative tile is one.
  """
  if len(tiles) > MOST:
    draw = np.random.default_rng(0).permutation(len(tiles))[:MOST]
    tiles = tiles.take(np.sort(draw))
  output = {name: model.predict(tiles) for name, model in models.items()}
  prob = next(iter(output.values()))[0][:, POSITIVE]
  positive = tiles.label == POSITIVE
  wrong = ~positive & (prob >= threshold)
  kinds = {
    'negative': (~positive & ~wrong, '0.65'),
    'positive': (positive, 'C0'),
    f'false positive of the weak model, from {threshold:g}': (wrong, 'C3'),
  }
  drawing = figure.Figure((9, 5), layout='constrained')
  perplexity = min(_PERPLEXITY, (len(tiles) - 1) / 3)
  axes = drawing.subplots(1, len(models))
  for ax, (name, (_, x)) in zip(axes, output.items(), strict=True):
    # Of features that do not vary, scikit-learn's PCA is NaN, and it crashes.
    start = 'pca' if np.ptp(x, 0).any() else 'random'
    place = manifold.TSNE(
      perplexity=perplexity, init=start, random_state=0
    ).fit_transform(x)
    for label, (rows, color) in kinds.items():
      ax.scatter(*place[rows].T, 14, color=color, lw=0, alpha=0.8, label=label)
    ax.set(xticks=[], yticks=[], title=f'{name} model')
  handles, labels = axes[0].get_legend_handles_labels()
  drawing.legend(handles, labels, loc='outside lower center', ncols=3)
  about = f'{len(tiles)} test tiles, perplexity {perplexity:.0f}'
  drawing.suptitle(f't-SNE of the features of {about}', fontsize=10)
  return drawing


def grad_cam(
  tiles: LabelledTiles, models: Mapping[str, Trained]
) -> figure.Figure:
  """Draws where models see positives, in what the first is surest of.

  Where tiles are so small that the last map has one cell, Grad-CAM is that of
  the network's second stage.

  Args:
    tiles: of the test part.
    models: by name.
  """
  first = next(iter(models.values()))
  order = np.argsort(-first.predict(tiles)[0][:, POSITIVE], kind='stable')
  positive = tiles.label[order] == POSITIVE
  half = _SHOWN // 2
  rows = np.concatenate([order[positive][:half], order[~positive][:half]])
  shown = tiles.take(rows)
  target = np.full(len(shown), POSITIVE)
  side = first.recipe.input_size or tiles.size
  layer = None if side > 2 * ONE_CELL else 'layer2_1'  # 2 x 2 show no place.
  maps = {
    name: (
      model.grad_cam(shown, target, layer),
      model.predict(shown)[0][:, POSITIVE],
    )
    for name, model in models.items()
  }
  return pictures.heat(
    'Grad-CAM of the positive class: test tiles of which the weak model is'
    f' surest ({layer or "last map"})',
    shown,
    maps,
  )


def radar(
  tables: Sequence[Table], published: Mapping[str, Published]
) -> figure.Figure:
  """Draws Figure 4: weak and strong models by share of the training tiles.

  Args:
    tables: Tables 4 and 5, or one of them.
    published: the paper's, by name, which are dotted.
  """
  drawing = figure.Figure((10, 3.6 * len(tables) + 0.4), layout='constrained')
  axes = drawing.subplots(
    len(tables), 3, subplot_kw={'projection': 'polar'}, squeeze=False
  )
  for row, table in zip(axes, tables, strict=True):
    here = {tuple(one.labels): one.lines[HERE] for one in table.rows}
    shares = list(dict.fromkeys(share for share, _ in here))
    angle = np.linspace(0, 2 * np.pi, len(shares), endpoint=False)
    for i, (ax, column) in enumerate(zip(row, table.columns, strict=False)):
      for kind, color in (('strong', '0.5'), ('weak', 'C2')):
        ours = [here[share, kind][i] for share in shares]
        theirs = [
          published[table.name].values[share, kind][column] for share in shares
        ]
        ax.fill(angle, ours, color=color, alpha=0.4, label=kind)
        about = {'fill': False, 'ls': ':', 'lw': 2}
        ax.fill(angle, theirs, ec=color, label=f'{kind}, paper', **about)
      ax.set(xticks=angle, ylim=(0, 1), title=column)
      ax.set_xticklabels([f'{share} %' for share in shares])
    row[0].set_ylabel(table.title.split('. ')[0], labelpad=28)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  drawing.legend(handles, labels, loc='outside lower center', ncols=4)
  return drawing
