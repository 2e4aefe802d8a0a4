"""Trainings of the few-shot study: their patches and their weights."""

import numpy as np
import pytest

from experiments.few_shot_parts import paper, settings
from experiments.few_shot_parts.settings import FW_RD, RD

COUNTS = {n: n for n in paper.COUNTS}
LABEL = np.repeat([0, 1], [1001, 5000])


@pytest.fixture
def study():
  return settings.study(paper.NORMAL, paper.TUMOUR, COUNTS)


def run(setting, seed=3):
  return settings.run(setting, seed, LABEL)


def test_the_papers_trainings(study):
  rows = settings.sweep(study)
  assert [s.tumour for s in rows] == list(paper.COUNTS)
  assert [paper.TABLE_3[s.counterpart] for s in rows] == [
    0.646, 0.759, 0.784, 0.812, 0.843, 0.881, 0.879,
  ]  # fmt: skip
  by_name = {s.name: s for s in study}
  assert len(by_name) == len(study) == 10
  assert by_name[RD].alpha == 0
  assert by_name[FW_RD].alpha == 0.1
  assert by_name['tumour_1000'].alpha == pytest.approx(1 / 6)
  assert by_name['balanced'].normal == by_name['balanced'].tumour == 500
  assert by_name['balanced'].alpha == by_name['unweighted'].alpha == 0.5
  assert by_name['unweighted'].gamma == 0


def test_a_cohort_with_fewer_patches_keeps_its_main_training():
  study = settings.study(80, 7, {0: 0, 5: 5})
  assert [s.tumour for s in settings.sweep(study)] == [0, 5, 7]


def test_patches_of_fewer_are_among_those_of_more(study):
  previous = set()
  normal = None
  for setting in settings.sweep(study):
    patches = run(setting).patches
    tumour = set(patches[LABEL[patches] == 0].tolist())
    assert len(tumour) == setting.tumour
    assert previous <= tumour
    previous = tumour
    now = set(patches[LABEL[patches] == 1].tolist())
    assert len(now) == 5000 and normal in (None, now)
    normal = now
  other = run(study[1], seed=4).patches
  assert set(other.tolist()) != set(run(study[1]).patches.tolist())


def test_a_run_has_the_loss_of_its_setting(study):
  for setting in study:
    made = run(setting)
    assert (made.alpha, made.gamma) == (setting.alpha, setting.gamma)
    assert made.seed == 3
