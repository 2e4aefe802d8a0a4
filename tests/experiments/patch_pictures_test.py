"""Pictures of studies show what they are given."""

import numpy as np
from tiny_training import make_tiles

from experiments.patches import pictures


def test_the_kept_epoch_and_undefined_values_are_drawn():
  history = [
    {'val_auroc': None, 'train_loss': 0.7, 'val_loss': 0.6, 'best_epoch': 0},
    {'val_auroc': 0.9, 'train_loss': 0.5, 'val_loss': 0.8, 'best_epoch': 0},
  ]
  _, loss, auroc = pictures.curves('net', history).axes
  train, val = (line.get_ydata().tolist() for line in loss.lines[:2])
  assert (train, val) == ([0.7, 0.5], [0.6, 0.8])
  assert np.isnan(auroc.lines[1].get_ydata()[0])
  assert auroc.lines[2].get_xdata()[0] == 1


def test_heat_lies_on_tiles_and_wrong_probabilities_are_red():
  tiles = make_tiles(4)
  cams = np.arange(4)[:, None, None] * np.full((4, 3, 3), 0.2)
  maps = {'net (small)': (cams, np.array([0.9, 0.8, 0, 1]))}
  drawing = pictures.heat(
    't', tiles, maps, np.zeros((4, *[tiles.size] * 2), bool)
  )
  *axes, bar = drawing.axes
  top, bottom = np.reshape(axes, (2, 4))
  assert "each map's own largest value" in bar.get_xlabel()
  empty = [ax.get_title() for ax in bottom]
  assert empty == ['map is all zero', '', '', '']
  assert [ax.get_title() for ax in top] == [*tiles.classes] * 2
  labels = [ax.xaxis.label for ax in bottom]
  texts = [label.get_text() for label in labels]
  assert texts == ['0.90', '0.80', '0.00', '1.00']
  colours = [label.get_color() for label in labels]
  assert colours == ['C3', '0.2', '0.2', '0.2']
  assert all(len(ax.images) == 2 for ax in bottom)


def test_maps_lie_on_the_image_with_what_is_true_and_found():
  image = np.zeros((20, 40, 3), np.uint8)
  ring = np.array([[0, 0], [9, 0], [9, 9], [0, 0]])
  maps = {f'map {i}': (np.full((2, 4), np.nan), [[ring]]) for i in range(3)}
  drawing = pictures.overlay('t', image, maps, label='votes', truth=[[ring]])
  *panels, bar = drawing.axes
  assert [len(ax.images) for ax in panels] == [1, 2, 2, 2]
  assert [len(ax.lines) for ax in panels] == [1, 2, 2, 2]
  assert panels[1].images[1].get_extent() == [0, 40, 20, 0]
  assert bar.get_ylabel() == 'votes'
