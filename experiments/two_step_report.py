"""Writes what a two-step detector decides on images: scores, outlines, maps."""

from collections.abc import Sequence
import pathlib

import numpy as np

from data.node_images import MPP, PARTS, NodeImages
from experiments import (
  files,
  two_step_outlines,
  two_step_pictures,
  two_step_scores as scores,
  two_step_tables,
)
from experiments.paper_text import Table
from experiments.patches import pictures as patch_pictures
from experiments.run import progress, results
from experiments.two_step_scores import VOTES
from kmil_jax import heatmap
from kmil_jax.heatmap import Windows


def decisions(
  images: NodeImages, one: np.ndarray, two: np.ndarray | None
) -> tuple[Table, int]:
  """Compares decisions with the truth.

  Args:
    images: all images.
    one: votes of every image by the primary network alone, int [n].
    two: votes by both networks, if there are two.

  Returns:
    Table 3, and the threshold in votes, of two steps if there are two.
  """
  test, positive = images.test, images.positive
  rules = {'one step': one} | ({} if two is None else {'two steps': two})
  thresholds = {
    rule: scores.threshold(votes[~test], positive[~test])
    for rule, votes in rules.items()
  }
  found = {
    (rule, part): scores.shares(
      votes[rows] >= thresholds[rule], positive[rows], images.patient[rows]
    )
    for rule, votes in rules.items()
    for part, rows in zip(PARTS, (~test, test), strict=True)
  }
  if two is None:
    return two_step_tables.images(found, thresholds), thresholds['one step']
  rule = 'one step, as sensitive as two'
  thresholds[rule] = scores.threshold_as_sensitive(
    one[test], positive[test], found['two steps', 'test'].value[0]
  )
  found[rule, 'test'] = scores.shares(
    one[test] >= thresholds[rule], positive[test], images.patient[test]
  )
  return two_step_tables.images(found, thresholds), thresholds['two steps']


def write_scores(
  folder: pathlib.Path,
  images: NodeImages,
  one: np.ndarray,
  final: np.ndarray,
  threshold: int,
) -> None:
  """Writes images.csv, a row per image, and draws Figure 4.

  Args:
    folder: of the results.
    images: all images.
    one: votes in one step, int [n].
    final: votes of the last step there is.
    threshold: votes from which an image is positive.
  """
  header = ['image_id', 'patient_id', 'part', 'label']
  header += ['score_one_step', 'score', 'decision']
  rows = [
    [
      images.id[row],
      images.patient[row],
      PARTS[int(images.test[row])],
      _label(images.positive[row]),
      one[row] / VOTES,
      final[row] / VOTES,
      _label(final[row] >= threshold),
    ]
    for row in range(len(images))
  ]
  files.write_csv(folder / 'images.csv', [header, *rows])
  two_step_pictures.scores(
    folder / 'figures' / 'scores.png',
    {
      part: (final[rows], images.positive[rows])
      for part, rows in zip(PARTS, (~images.test, images.test), strict=True)
    },
    threshold,
  )


def draw(
  folder: pathlib.Path,
  images: NodeImages,
  windows: Sequence[Windows],
  one: np.ndarray,
  final: np.ndarray,
  threshold: int,
  pictures: int,
) -> None:
  """Outlines the lesions of all images, and draws some of the test part.

  Drawn are, of positive and of negative images half each, those with the
  highest scores in one step: what the second step has to do with.

  Args:
    folder: gets outlines/<image_id>.json, in pixels of the image's file, and
      figures/<image_id>.png.
    images: all images.
    windows: what the networks say of each.
    one: votes in one step, int [n].
    final: votes of the last step there is.
    threshold: votes from which a pixel is tumour.
    pictures: how many to draw.
  """
  drawn = set()
  for wanted in (True, False):
    rows = np.flatnonzero(images.test & (images.positive == wanted))
    order = rows[np.argsort(-one[rows], kind='stable')]
    drawn |= set(order[: (pictures + wanted) // 2].tolist())
  for row in progress.bar(range(len(images)), desc='outlines', unit='image'):
    image, mask = images.read(row)
    said, name = windows[row], images.id[row]
    votes = heatmap.votes(said.positive(), image.shape[:2])
    found = two_step_outlines.outlines(votes, threshold)
    two_step_outlines.write(
      folder / 'outlines' / f'{name}.json', found, MPP / images.mpp
    )
    if row not in drawn:
      continue
    steps = 'one step' if said.secondary is None else 'two steps'
    maps = {f'{steps}, score {final[row] / VOTES:.4f}': (votes, found)}
    if said.secondary is not None:
      first = heatmap.votes(scores.one_step(said).positive(), image.shape[:2])
      shown = (first, two_step_outlines.outlines(first, threshold))
      maps = {f'one step, score {one[row] / VOTES:.4f}': shown} | maps
    title = (
      f'{name}, {_label(images.positive[row])}: decision'
      f' {_label(final[row] >= threshold)}'
    )
    drawing = patch_pictures.overlay(
      title,
      image,
      maps,
      label='votes for tumour',
      truth=two_step_outlines.outlines(mask.astype(float), VOTES),
    )
    results.Folder(folder).write(f'figures/{name}.png', drawing)


def _label(positive: bool) -> str:
  return 'positive' if positive else 'negative'
