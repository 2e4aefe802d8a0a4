"""What test patches say of a training, and the tables made of it."""

import types

import numpy as np
import pytest

from experiments.few_shot_parts import paper, scores, settings, tables
from experiments.few_shot_parts.scores import Scores

SLIDES = 6


def patches(seed, gap, n=120):
  """Patches of six slides whose tumour scores `gap` higher on average."""
  rng = np.random.default_rng(seed)
  tumour = np.arange(n) % 2 == 0
  mean = 1.2 + gap * tumour + rng.normal(0, 0.3, n)
  slide = np.array([f's{i % SLIDES}' for i in rng.integers(0, SLIDES, n)])
  ids = np.array([f'p{i}' for i in range(n)])
  return Scores(ids, slide, tumour, mean, mean)


def outcome(gap, seed=0):
  return scores.outcome(
    {'val': patches(seed + 1, gap), 'test': patches(seed, gap)}
  )


def test_thresholds_by_hand():
  make = lambda tumour, mean: Scores(
    np.array(['a', 'b', 'c', 'd']),
    np.array(['s', 's', 't', 't']),
    np.array(tumour, bool),
    np.array(mean, float),
    np.array(mean, float),
  )
  # Validation chooses 1.0; the test patches themselves would choose 1.5.
  found = scores.outcome(
    {
      'val': make([0, 1, 0, 1], [0.5, 1.0, 0.6, 1.2]),
      'test': make([0, 1, 0, 1], [1.1, 1.5, 0.6, 2.0]),
    }
  )
  assert found.threshold == 1.0
  assert found.value == {
    'accuracy': 0.75,
    'accuracy_at_2': 0.75,
    'accuracy_best_f1': 1.0,
    'auroc': 1.0,
  }


def test_scores_survive_their_file(tmp_path):
  tiles = patches(0, 1.0)

  part = types.SimpleNamespace(
    id=tiles.patch, group=tiles.slide, label=(~tiles.tumour).astype(int)
  )
  cohort = types.SimpleNamespace(parts={'val': part, 'test': part})
  told = np.stack([tiles.mean, tiles.mean + 1]).astype(np.float32)
  scores.write(tmp_path, cohort, {'val': told, 'test': told * 2})
  found = scores.read(tmp_path)
  np.testing.assert_array_equal(found['val'].tumour, tiles.tumour)
  np.testing.assert_array_equal(np.float32(found['test'].max), told[1] * 2)
  np.testing.assert_array_equal(found['test'].slide, tiles.slide)


def test_a_summary_is_of_all_seeds_and_pairs_settings():
  better = scores.summary([outcome(1.0, 0), outcome(1.0, 2)])
  worse = scores.summary([outcome(0.2, 0), outcome(0.2, 2)])
  single = [outcome(1.0, 0).value['auroc'], outcome(1.0, 2).value['auroc']]
  assert better.value['auroc'] == pytest.approx(np.mean(single))
  assert better.spread['auroc'] == pytest.approx(np.std(single, ddof=1))
  low, high = better.interval('accuracy')
  assert low < better.value['accuracy'] < high
  gap = scores.minus(better, worse)
  assert gap.interval('auroc')[0] > 0
  same = scores.minus(better, better)
  assert np.isnan(same.interval('auroc')[0])  # Nothing differs.


@pytest.fixture(scope='module')
def found():
  study = settings.study(300, 30, {0: 0, 1: None, 3: 50, 60: 1000})
  return study, {
    s.name: scores.summary([outcome(0.1 + s.tumour / 30)]) for s in study
  }


def test_tables_show_the_papers_numbers_beside(found):
  study, summaries = found
  two = tables.methods(summaries, width=8).rows()
  paper_rows = [row for row in two if row[1] == paper.SOURCE]
  assert [row[0] for row in paper_rows] == ['RD', 'FW-RD']
  assert [row[3] for row in paper_rows] == ['0.652', '0.881']
  here = {row[0]: float(row[5]) for row in two if row[1] == 'here'}
  assert here['FW-RD minus RD'] == pytest.approx(
    here['FW-RD'] - here['RD'], abs=1e-5
  )
  three = tables.counts(study, summaries).rows()
  told = [(row[0], row[1]) for row in three if row[3] == 'here']
  assert told == [
    ('0', '0'), ('1', 'n/a'), ('3', '50'), ('30', '500'), ('60', '1000'),
  ]  # fmt: skip
  known = [row[5] for row in three if row[3] == paper.SOURCE]
  assert known == ['0.646', '0.812', '0.881', '0.879']


def test_ablations_name_their_loss(found):
  text = tables.ablations(*found).markdown()
  for row in (
    '| FW-RD | 300 | 30 | 0.1 | 2 | here |',
    '| unweighted | 300 | 30 | 0.5 | 0 | here |',
    '| balanced | 30 | 30 | 0.5 | 2 | here |',
  ):
    assert row in text
  assert '| n/a | 0.838 | n/a | n/a |' in text
