"""Pictures that several studies draw: histories, Grad-CAM, heat maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.labelled_tiles import LabelledTiles
from experiments.maps.scale_bar import add_scale_bar

# Rings of polygons, each [K, 2] of (x, y) in pixels of an image.
Polygons = Sequence[Sequence[np.ndarray]]


def curves(title: str, history: Sequence[Mapping[str, Any]]) -> Any:
  """Draws accuracy, loss and AUROC of every epoch, the kept one marked.

  Args:
    title: of the network.
    history: of `training.Trained`.
  """
  from matplotlib import figure  # Takes half a second.

  drawing = figure.Figure((10.5, 3.2), layout='constrained')
  panels = drawing.subplots(1, 3)
  kept = history[-1]['best_epoch'] + 1
  for ax, name in zip(panels, ('accuracy', 'loss', 'auroc'), strict=True):
    for part, color in (('train', 'C0'), ('val', 'C1')):
      values = np.array([h.get(f'{part}_{name}') for h in history], float)
      epochs = range(1, len(values) + 1)
      ax.plot(epochs, values, '.-', color=color, label=part, ms=4)
    ax.axvline(kept, color='0.6', ls=':', lw=1.2)
    ax.set(xlabel='epoch', title=name)
    ax.locator_params('x', integer=True)
    ax.grid(color='0.92')
    if name != 'loss':
      ax.set_ylim(-0.03, 1.03)
  panels[0].legend(loc='lower right', fontsize=9)
  drawing.suptitle(f'{title}; dotted: the epoch kept, {kept}', fontsize=11)
  return drawing


def heat(
  title: str,
  tiles: LabelledTiles,
  maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
  inside: np.ndarray | None = None,
) -> Any:
  """Draws tiles, and below each the map and the probability of every network.

  Args:
    title: of the picture.
    tiles: n of two classes.
    maps: by network: Grad-CAM maps [n, s, s] in [0, 1], each scaled by its
      largest value, and probabilities of the second class, [n].
    inside: what is outlined, bool [n, S, S].
  """
  # Takes half a second.
  from matplotlib import cm, colormaps, colors, figure

  n, size = len(tiles), tiles.size
  sides = 1.15 * n + 1.3, 1.3 * (1 + len(maps)) + 0.9
  drawing = figure.Figure(sides, layout='constrained')
  axes = drawing.subplots(1 + len(maps), n, squeeze=False)
  images = tiles.load(np.arange(n)).squeeze(-1 if tiles.channels == 1 else ())
  most = 1 if images.dtype.kind == 'f' else 255
  frame, middle = (0, size, size, 0), np.arange(size) + 0.5
  stretched = {'extent': frame, 'interpolation': 'bilinear'}
  warm = colormaps['autumn'](np.linspace(0, 1, 256))
  warm[:, 3] = np.linspace(0, 0.6, 256)  # Where a map is 0 the tile shows.
  scale = cm.ScalarMappable(colors.Normalize(0, 1), colors.ListedColormap(warm))
  for row, name in zip(axes, ('tile', *maps), strict=True):
    row[0].set_ylabel(name.replace(' (', '\n('), fontsize=8)
    for i, ax in enumerate(row):
      ax.imshow(images[i], 'gray', vmin=0, vmax=most, extent=frame)
      ax.set(xticks=[], yticks=[])
      if inside is not None:
        ax.contour(
          middle, middle, inside[i], [0.5], colors='C2', linewidths=0.7
        )
      if name in maps:
        cam, prob = maps[name][0][i], maps[name][1][i]
        ax.imshow(cam, scale.cmap, scale.norm, **stretched)
        if not cam.any():
          ax.set_title('map is all zero', fontsize=7, pad=2)
        wrong = (prob >= 0.5) != tiles.label[i]
        ax.set_xlabel(f'{prob:.2f}', fontsize=8, color='C3' if wrong else '0.2')
      else:
        ax.set_title(tiles.classes[tiles.label[i]], fontsize=8)
  drawing.suptitle(title, fontsize=9)
  bar = drawing.colorbar(scale, ax=axes, location='bottom', aspect=60)
  label = "Grad-CAM, as parts of each map's own largest value"
  bar.set_label(label, fontsize=8)
  bar.ax.tick_params(labelsize=8)
  return drawing


def overlay(
  title: str,
  image: np.ndarray,
  maps: Mapping[str, tuple[np.ndarray, Polygons]],
  *,
  label: str,
  most: float = 1.0,
  truth: Polygons = (),
  mpp: float | None = None,
) -> Any:
  """Draws an image, and beside it the image under each of its maps.

  Args:
    title: of the image.
    image: uint8 [H, W, 3].
    maps: by title: values from 0 to `most`, NaN where there is none, of any
      size, which are stretched over the image; and outlines of what they show.
    label: what the values are.
    most: the largest value.
    truth: true outlines, drawn on every panel.
    mpp: um per pixel of the image, if known.
  """
  # Takes half a second.
  from matplotlib import cm, colormaps, colors, figure, lines

  height, width = image.shape[:2]
  count = 1 + len(maps)
  rows = -(-count // 3)
  columns = -(-count // rows)
  size = 5 * columns, rows * (4.4 * height / width + 0.5) + 0.5
  drawing = figure.Figure(size, layout='constrained')
  panels = drawing.subplots(rows, columns, squeeze=False).ravel()
  greens = colormaps['YlGn'](np.linspace(0.3, 1, 256))
  greens[:, 3] = np.linspace(0, 0.75, 256)  # Where a map is 0 the image shows.
  scale = cm.ScalarMappable(
    colors.Normalize(0, most), colors.ListedColormap(greens)
  )
  about = {title: None} | dict(maps)
  for ax in panels:
    ax.set_axis_off()
  for ax, (name, shown) in zip(panels, about.items(), strict=False):
    extent = (0, width, height, 0)
    ax.imshow(image, extent=extent)
    ax.autoscale(False)  # Nothing that is drawn enlarges the image.
    ax.set_title(name, fontsize=10)
    for ring in (ring for polygon in truth for ring in polygon):
      ax.plot(*ring.T, '--', color='black', lw=1.6)
    if shown is None:
      add_scale_bar(ax, mpp)
      continue
    values, outlines = shown
    ax.imshow(values, scale.cmap, scale.norm, extent=extent)
    for ring in (ring for polygon in outlines for ring in polygon):
      ax.plot(*ring.T, '-', color='C1', lw=1.6)
  drawing.colorbar(scale, ax=panels, shrink=0.7, label=label)
  known = lines.Line2D([], [], color='black', ls='--', label='truth')
  seen = lines.Line2D([], [], color='C1', label='found')
  drawing.legend(
    handles=[known, seen], loc='outside lower center', ncols=2, fontsize=9
  )
  return drawing
