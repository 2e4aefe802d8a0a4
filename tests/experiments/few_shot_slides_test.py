"""Slides scored by two students of the few-shot study, which know colours."""

import dataclasses
import json

from few_shot_slides import SCALE, make, violet
import numpy as np
from PIL import Image
import pytest

from experiments.few_shot_parts import (
  cohort as cohorts,
  report,
  scores,
  settings,
  slides,
  training,
)
from experiments.few_shot_parts.settings import FW_RD, RD
from experiments.few_shot_parts.training import Job, Options
from experiments.slide_scores import froc_files
from experiments.slide_scores.scoring import ScoreError
from kmil_jax import froc

NAMES = {
  'tumor_001': True,
  'tumor_002': True,
  'normal_003': False,
  'test_001': False,
  'test_002': True,
  'test_003': True,
}
OPTIONS = Options(
  width=4,
  shortcut=3,
  per='location',
  epochs=1,
  learning_rate=1e-3,
  batch=4,
  seed=5,
  seeds=1,
  weights=None,
  precision='float32',
  tensorboard=False,
)


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  root = make(tmp_path_factory.mktemp('c16'), NAMES)
  return cohorts.open_camelyon(
    root / 'slides',
    root / 'annotations',
    root / 'reference.csv',
    root / 'lists',
    seed=0,
    scale=SCALE,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory, cohort):
  """A folder in which FW-RD sees violet, and RD whatever is not white."""
  tmp_path = tmp_path_factory.mktemp('trained')
  study = settings.study(3, cohort.main, cohort.counts)
  (tmp_path / training.TEACHER).write_bytes(b'teacher')
  tell = {
    FW_RD: violet,
    RD: lambda image: 3 * (image[..., 1] < 200).mean((1, 2)),
  }
  for setting in study:
    folder = Job(setting, OPTIONS.seed).folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / training.MODEL).write_bytes(setting.name.encode())
    by = tell.get(setting.name, violet)
    told = {p: by(cohort.parts[p].pixels) for p in scores.PARTS}
    scores.write(folder, cohort, {p: np.stack([s, s]) for p, s in told.items()})
  return tmp_path, study, tell


@pytest.fixture(scope='module')
def found(trained, cohort):
  folder, study, tell = trained

  def pmap_score(teacher, student, options):
    assert options is OPTIONS
    return tell[student]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training, 'open_teacher', lambda *args: None)
    patch.setattr(training, 'load_student', lambda _, job: job.setting.name)
    patch.setattr(slides, 'pmap_score', pmap_score)
    return slides.run(folder, cohort, study, OPTIONS)


def test_maps_scores_and_lesions(trained, found):
  assert list(found) == [RD, FW_RD]
  some = found[FW_RD]
  assert some.slide == ['test_001', 'test_002', 'test_003']
  assert some.tumour.tolist() == [False, True, True]
  # The map is that of the patches around its pixels.
  scored = slides.load_map(some.folder, 'test_002')
  assert scored.shape == (640 // 32, 768 // 32)
  assert scored[10, 15] > 2.9  # (496, 336)
  assert 0 < scored[10, 4] < 0.1
  assert scored[0, 0] == 0
  np.testing.assert_array_equal(some.score['paper'] > 2, some.tumour)
  # RD, which calls all tissue tumour, cannot tell the slides.
  rd = found[RD].score['validation']
  np.testing.assert_allclose(rd, 3, rtol=1e-6)
  curve = froc.froc(some.cases)
  assert (curve.lesions, curve.slides) == (2, 3)
  assert froc.froc(found[RD].cases).score < curve.score
  # The files say the same to `experiments.froc`.
  cases = froc_files.read(
    trained[0] / 'slides/masks', some.folder / 'detections', mpp=1.0, level=3
  )
  assert froc.froc(list(cases.values())).score == curve.score


def test_the_report_of_slides(trained, cohort, found, capsys):
  folder = trained[0]
  report.of_slides(folder, cohort, found)
  said = capsys.readouterr().out
  assert '2 with tumour, 2 lesions that count; 1 without' in said
  assert '| 0.904 |' in said
  held = json.loads((folder / 'summary.json').read_text())
  assert held['slides'][FW_RD]['auroc'] == 1.0
  for name in ('froc', 'slide_roc', 'localisation'):
    with Image.open(folder / f'figures/{name}.png') as image:
      assert np.asarray(image.convert('L')).std() > 5


def test_slides_that_cannot_be_read_are_a_fault(trained, cohort, found):
  torn = {
    name: dataclasses.replace(some, faults={'test_009': 'test_009: torn'})
    for name, some in found.items()
  }
  with pytest.raises(ScoreError, match=r'1 slide\(s\) not scored:\n.*torn'):
    report.of_slides(trained[0], cohort, torn)


def test_the_report_of_patches(trained, cohort, capsys):
  folder, study, _ = trained
  report.patches(folder, study, OPTIONS)
  said = capsys.readouterr().out
  for title in ('Table 2.', 'Table 3.', 'Ablations'):
    assert f'**{title}' in said
  assert 'FW-RD minus RD: accuracy +' in said
  held = json.loads((folder / 'summary.json').read_text())['patches']
  assert held[FW_RD]['auroc']['per_seed'] == [1.0]
  assert set(held) == {s.name for s in study}
  with pytest.raises(FileNotFoundError):
    more = [*study, settings.Setting('other', 3, 1, 0.1)]
    report.patches(folder, more, OPTIONS)
