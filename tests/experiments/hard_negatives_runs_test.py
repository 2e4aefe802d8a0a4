"""The study of hard negatives: what is trained and tested on what."""

import csv
import dataclasses
import itertools

from hard_negatives_stub import ANNOTATED, POOL, Stub
import numpy as np
import pytest

from data.labelled_tiles import TileError
from experiments.hard_negatives_runs import Study
from experiments.hard_negatives_settings import Setting, perturb

FRACTIONS = (0.5, 0.25, 0.25)


def study(
  folder, pool=POOL, *, annotated=ANNOTATED, threshold=0.55, seed=0, **options
):
  """A study whose trainings are listed by folder."""
  done = {}

  def fit(results, name, *, train, val, seed):
    assert results.path == folder and name not in done
    done[name] = (train, val, seed)
    return Stub()

  made = Study(
    folder,
    annotated,
    pool,
    fit=fit,
    fractions=FRACTIONS,
    seed=seed,
    threshold=threshold,
    metric='l2',
    **options,
  )
  return made, done


def ids(tiles):
  return set(tiles.id.tolist())


def test_the_parts_are_fixed_before_mining_and_hold_nothing_mined(tmp_path):
  made, done = study(tmp_path)
  parts = [ids(part) for part in (made.train, made.val, made.test)]
  assert set.union(*parts) == ids(ANNOTATED)
  groups = [set(part.group) for part in (made.train, made.val, made.test)]
  assert sum(map(len, groups)) == len(set.union(*groups))
  for choice in ('weak', 'l2', 'cosine', 'random'):
    for alpha in (2, 9):
      found = made.outcome(Setting(0, choice, alpha))
      assert set(found.id) == parts[2], 'the test part of all models'
      assert found.leaked == (0, 0)
      train, val, _ = done[str(Setting(0, choice, alpha).canonical().path())]
      assert ids(val) == parts[1]
      assert ids(train) == parts[0] | set(found.mined)
      assert set(found.mined) <= ids(POOL)
      assert (train.label[np.isin(train.id, found.mined)] == 0).all()
  # Another seed of the model is tested on the same tiles.
  assert set(made.outcome(Setting(1, 'l2')).id) == parts[2]
  assert len(done) == 1 + 6 + 2


def test_false_positives_of_validation_mine_their_neighbours(tmp_path):
  made, _ = study(tmp_path)
  setting = Setting(0, 'l2', 4)
  prob, features = Stub().predict(made.val)
  wrong = np.flatnonzero((made.val.label == 0) & (prob[:, 1] >= 0.55))
  np.testing.assert_array_equal(made.false_positives(setting), wrong)
  assert 0 < len(wrong) < (made.val.label == 0).sum()
  away = np.linalg.norm(
    features[wrong][:, None] - Stub().predict(POOL)[1][None], axis=2
  )
  want = set(POOL.id[np.argsort(away, 1)[:, :4]].ravel().tolist())
  found = made.outcome(setting)
  assert set(found.mined) == want and found.false_positives == len(wrong)
  # The control has as many, and others.
  control = made.outcome(Setting(0, 'random', 4))
  assert len(set(control.mined)) == len(want)
  assert set(control.mined) != want
  # The record names both ends of every choice.
  with (tmp_path / setting.path() / 'mined.csv').open() as f:
    rows = list(csv.DictReader(f))
  assert {row['tile'] for row in rows} == want
  assert {row['false_positive'] for row in rows} <= set(made.val.id[wrong])


def test_the_annotated_part_is_reduced_before_mined_tiles_join(tmp_path):
  made, done = study(tmp_path)
  for of in ('all', 'positives'):
    found = made.outcome(Setting(0, 'l2', 3, share=30, of=of))
    weak = done[str(Setting(0, share=30, of=of).canonical().path())][0]
    strong = done[str(Setting(0, 'l2', 3, share=30, of=of).path())][0]
    assert ids(strong) == ids(weak) | set(found.mined)
    want = [30, 30] if of == 'all' else [100, 30]
    for c, per_cent in enumerate(want):
      whole = (made.train.label == c).sum()
      assert (weak.label == c).sum() == round(whole * per_cent / 100)
  # Nothing reduced is one setting, however it is called.
  whole = [
    Setting(0, share=100, of=of).canonical() for of in ('all', 'positives')
  ]
  assert whole[0] == whole[1]


def test_smaller_shares_are_subsets_and_keep_every_class():
  shares = [ids(perturb(ANNOTATED, s, 'all', 0)) for s in (1, 30, 70, 100)]
  assert all(a < b for a, b in itertools.pairwise(shares))
  assert set(perturb(ANNOTATED, 1, 'all', 0).label) == {0, 1}


def test_the_released_protocol_leaks_and_is_caught(tmp_path):
  made, _ = study(tmp_path, leaking=True)
  weak = made.outcome(Setting(0))
  found = made.outcome(Setting(0, 'random', 9))
  in_test = set(found.id) & ids(POOL)
  assert len(in_test) == found.leaked[1] > 0 and found.leaked[0] > 0
  # The test parts differ, and the strong one's has more negatives.
  ratio = lambda o: (o.label == 0).sum() / (o.label == 1).sum()
  assert set(found.id) != set(weak.id) and ratio(found) > 1.2 * ratio(weak)


def test_without_false_positives_the_strong_model_is_the_weak_one(tmp_path):
  made, done = study(tmp_path, threshold=0.999)
  weak, strong = (made.outcome(Setting(0, c)) for c in ('weak', 'l2'))
  np.testing.assert_array_equal(weak.prob, strong.prob)
  assert strong.mined == () and len(done) == 1
  assert len(made.notes) == 1 and 'Lower the threshold' in made.notes[0]


def test_a_pool_that_cannot_be_mined_is_refused(tmp_path):
  with pytest.raises(TileError, match='pool holds no tile'):
    study(tmp_path, POOL.take(np.arange(0)))
  known = dataclasses.replace(POOL, group=np.repeat(['x', 'case3'], 150))
  with pytest.raises(TileError, match=r'1 patients .* case3'):
    study(tmp_path, known)
  made, _ = study(tmp_path, POOL.take(np.arange(5)))
  with pytest.raises(ValueError, match='alpha=6 is more than the 5'):
    made.outcome(Setting(0, 'l2', 6))


def test_a_class_of_one_patient_is_refused(tmp_path):
  alone = ANNOTATED.take((ANNOTATED.label == 0) | (ANNOTATED.group == 'case3'))
  with pytest.raises(TileError, match='class pos: tiles of 1 group'):
    study(tmp_path, annotated=alone)


def test_the_pools_features_are_computed_once(tmp_path):
  made, _ = study(tmp_path)
  made.outcome(Setting(0, 'l2'))
  path = tmp_path / Setting(0).canonical().path() / 'pool_features.npy'
  held = np.load(path)
  np.testing.assert_array_equal(held, Stub().predict(POOL)[1])
  np.save(path, held + 1)
  again, _ = study(tmp_path)
  assert again._weak_of(Setting(0)).pool[0, 0] == held[0, 0] + 1
