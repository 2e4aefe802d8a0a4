"""Thresholds, rules and outlines against their definitions."""

import numpy as np
import pytest

from data.node_images import NodeImages
from experiments import two_step_outlines, two_step_scores as scores
from experiments.two_step_patches import Places
from kmil_jax import heatmap
from kmil_jax.heatmap import Windows


def test_the_papers_development_scores_give_its_threshold():
  positive = np.arange(85) < 38
  score = np.where(positive, 15, 10)
  assert scores.threshold(score, positive) / scores.VOTES == 0.6875
  # One negative image at the top cannot be told apart: the rest decides.
  score[84] = 16
  assert scores.threshold(score, positive) == 11


def test_the_threshold_is_the_smallest_of_the_best():
  rng = np.random.default_rng(0)
  for _ in range(50):
    score, positive = rng.integers(0, 17, 12), np.arange(12) < 5
    value = [
      (score[positive] >= k).mean() + (score[~positive] < k).mean()
      for k in range(1, 17)
    ]
    best = [k for k in range(1, 17) if np.isclose(value[k - 1], max(value))]
    assert scores.threshold(score, positive) == best[0]


def test_one_step_is_as_sensitive_at_its_highest_threshold():
  score = np.array([16, 12, 8, 3, 16, 9])
  positive = np.array([True, True, True, False, False, False])
  found = scores.threshold_as_sensitive
  assert found(score, positive, 1.0) == 8
  assert found(score, positive, 0.6) == 12
  assert found(score, positive, 0.1) == 16
  assert found(0 * score, positive, 1.0) == 1


def test_the_raised_bar_finds_as_much_tumour():
  primary = np.array([0.9, 0.8, 0.7, 0.6, 0.95, 0.85, 0.55, 0.2])
  tumour = np.arange(8) < 4
  both = np.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
  found = scores.rules(primary, both, tumour)
  raised = found['one step, as sensitive as two']
  assert (raised & tumour).sum() == (both & tumour).sum() == 3
  assert (raised & ~tumour).sum() == 2 and (both & ~tumour).sum() == 1
  assert found['one step'].sum() == 7
  nothing = scores.rules(primary, np.zeros(8, bool), tumour)
  assert not nothing['one step, as sensitive as two'].any()


def test_windows_are_counted_on_tissue_and_without_the_lesions_edge():
  primary = np.array([[0.9, 0.8, 0.7], [0.6, np.nan, 0.2]], np.float32)
  second = np.array([[0.9, 0.1, 0.7], [0.2, np.nan, np.nan]], np.float32)
  said = Windows(primary=primary, secondary=second)
  truth = Places(
    tumour=np.array([[True, False, False], [False, True, False]]),
    normal=np.array([[False, True, False], [True, False, True]]),
    tissue=np.array([[True, True, True], [True, False, True]]),
  )
  clean = Windows(primary=0 * primary, secondary=np.full((2, 3), np.nan))
  none = Places(
    tumour=np.zeros((2, 3), bool),
    normal=np.ones((2, 3), bool),
    tissue=np.ones((2, 3), bool),
  )
  images = NodeImages(
    np.array(['a', 'b']),
    np.array(['p', 'q']),
    np.ones(2, bool),
    np.array([True, False]),
    (),
    (),
    1.0,
  )
  found = scores.window_shares(
    images, np.arange(2), [said, clean], [truth, none]
  )
  one, _, two = found
  # Tumour: one window, for the other lies on glass.
  assert (one.sensitivity, two.sensitivity) == (1, 1)
  assert (one.false_positives, two.false_positives) == (2, 0)
  assert one.share == pytest.approx(2 / 9) and two.share == 0
  assert one.per_negative == 0


def test_image_scores_are_the_highest_votes():
  rng = np.random.default_rng(0)
  primary = rng.random((7, 9)).astype(np.float32)
  said = Windows(primary=primary, secondary=None)
  votes = heatmap.votes(primary >= 0.5, (100, 125))
  assert scores.image_scores([said]) == [round(votes.max() * 16)]
  none = Windows(primary=0 * primary, secondary=None)
  assert scores.image_scores([said, none])[1] == 0


def test_outlines_run_around_areas_and_holes():
  votes = np.zeros((30, 40), np.float32)
  votes[5:20, 10:30] = 11 / 16
  votes[10:14, 15:20] = 10 / 16  # A hole.
  votes[25:, 36:] = 1.0  # At the border.
  first, second = sorted(two_step_outlines.outlines(votes, 11), key=len)[::-1]
  assert [len(first), len(second)] == [2, 1]
  for ring in (*first, *second):
    np.testing.assert_array_equal(ring[0], ring[-1])
  outer, hole = first
  assert outer.min(0).tolist() == [10, 5] and outer.max(0).tolist() == [30, 20]
  assert hole.min(0).tolist() == [15, 10] and hole.max(0).tolist() == [20, 14]
  assert second[0].max(0).tolist() == [40, 30]
  assert two_step_outlines.outlines(votes * 0, 1) == []
