"""Tables of patches and slides, by two students that know colours."""

import shutil

import few_shot_slides
import numpy as np
from PIL import Image
import pytest

from experiments import few_shot as script
from experiments.evaluation import froc as froc_files
from experiments.patches.study import Study
from experiments.run.results import Folder, ResultsError
from experiments.studies import (
  few_shot,
  few_shot_data,
  few_shot_slides as slides,
  few_shot_training as training,
)
from experiments.studies.few_shot_training import FW_RD, RD, Scores, Setting
from experiments.studies.slide_scores import ScoreError
from kmil_jax import froc

SEED = 5
PATIENTS = 6


@pytest.fixture(scope='module')
def material(tmp_path_factory):
  root = few_shot_slides.make(tmp_path_factory.mktemp('c16'))
  return few_shot_data.of_slides(
    few_shot_slides.data(root), seed=0, scale=few_shot_slides.SCALE
  )


def settings_of(material):
  recipe = script.PAPER.recipe['students']
  return training.settings(material, recipe, SEED)[0]


@pytest.fixture(scope='module')
def run(tmp_path_factory, material):
  """Yields all that a study yields, by name of table or file.

  In its folder FW-RD sees violet, and RD whatever is not white.
  """
  study = Study(
    Folder(tmp_path_factory.mktemp('run')), script.PAPER.recipe, SEED
  )
  tissue = lambda image: 3 * (image[..., 1] < 200).mean((1, 2))
  study.folder.write(training.TEACHER, 'teacher')
  for setting in settings_of(material):
    name = setting.folder
    study.folder.write(f'{name}/{training.MODEL}', setting.name)
    by = tissue if setting.name == RD else few_shot_slides.violet
    rows = [training._HEADER]
    for part in ('val', 'test'):
      tiles = material.parts[part]
      columns = tiles.id, tiles.group, 1 - tiles.label, by(tiles.pixels)
      rows += [(part, *row, row[-1]) for row in zip(*columns, strict=True)]
    study.folder.write(f'{name}/{training.SCORES}', rows)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training, 'teacher', lambda *_: None)
    patch.setattr(training, 'train', lambda *_: None)
    patch.setattr(training, 'student', lambda path: path.read_text())
    patch.setattr(
      slides,
      'pmap_score',
      lambda task, teacher, name: (
        tissue if name == RD else few_shot_slides.violet
      ),
    )

    def stages(material=material):
      found = {}
      for item in few_shot.stages(study, material):
        if isinstance(item, Exception):
          raise item
        if not isinstance(item, str):
          found[item.name] = item
          if item.name.endswith(('.json', '.csv')):
            study.folder.write(item.name, item.content)
      return found

    yield study.folder, stages


@pytest.fixture(scope='module')
def found(run):
  return run[1]()


def test_maps_scores_and_lesions(run, found):
  folder, _ = run
  rows = folder.read('slides/scores.csv')
  assert [r['slide'] for r in rows] == ['test_001', 'test_002', 'test_003']
  assert [r['tumour'] for r in rows] == ['0', '1', '1']
  # The map is that of the patches around its pixels.
  with np.load(folder.at(f'slides/FW-RD_s{SEED}/maps/test_002.npz')) as file:
    scored = file['scores']
  assert scored.shape == (640 // 32, 768 // 32)
  assert scored[10, 15] > 2.9  # (496, 336)
  assert 0 < scored[10, 4] < 0.1
  assert scored[0, 0] == 0
  # RD, which calls all tissue tumour, cannot tell the slides.
  np.testing.assert_allclose([float(r[RD]) for r in rows], 3, rtol=1e-6)
  held = folder.read('summary.json')['slides']
  assert held[FW_RD]['auroc'] == held[FW_RD]['auroc_at_2.01'] == 1
  assert held[RD]['froc'] < held[FW_RD]['froc']
  # The files say the same to `experiments.froc`.
  for name in (RD, FW_RD):
    detections = folder.at(f'slides/{name}_s{SEED}/detections')
    cases = froc_files.read(
      folder.at('slides/masks'), detections, mpp=1.0, level=3
    )
    curve = froc.froc(list(cases.values()))
    assert curve.score == held[name]['froc'] and curve.lesions == 2
  table = found['slides'].terminal()
  assert '2 with tumour, 2 lesions that count; 1 without' in table
  assert '0.904' in table
  for name in ('froc', 'slide_roc', 'localisation', 'patch_roc'):
    drawing = found[f'figures/{name}.png'].content
    drawing.savefig(folder.path / 'drawn.png')
    with Image.open(folder.path / 'drawn.png') as image:
      assert np.asarray(image.convert('L')).std() > 5


def test_slides_that_cannot_be_read_are_named_last(run, material):
  folder, stages = run
  path = material.slides[-1].path
  kept = path.read_bytes()
  path.write_bytes(b'torn')
  shutil.rmtree(folder.at(f'slides/RD_s{SEED}'))
  try:
    with pytest.raises(ScoreError, match=r'1 slide\(s\) not scored:\n.*003'):
      stages()
  finally:
    path.write_bytes(kept)
  assert len(folder.read('slides/scores.csv')) == 2


def test_tables_of_patches_stand_beside_the_papers(run, found, material):
  rows = {name: found[name].csv() for name in ('table_2', 'table_3')}
  paper = few_shot_data.PUBLISHED['table_2'].source
  known = {row[0]: row[3] for row in rows['table_2'] if row[1] == paper}
  assert (known[RD], known[FW_RD], known['SLFCD']) == (
    '0.652',
    '0.881',
    '0.933',
  )
  here = {row[0]: float(row[5]) for row in rows['table_2'] if row[1] == 'here'}
  gap = here[FW_RD] - here[RD]
  assert here['FW-RD minus RD'] == pytest.approx(gap, abs=1e-5)
  paper = few_shot_data.PUBLISHED['table_3'].source
  known = [row[:2] + row[5:6] for row in rows['table_3'] if row[3] == paper]
  assert known == [[0, 0, '0.646'], [3, 500, '0.881']]
  text = found['ablations'].markdown()
  for row in (
    '| FW-RD | 3 | 3 | 0.1 | 2 | here |',
    '| unweighted | 3 | 3 | 0.5 | 0 | here |',
    '| supervised | 100000 | 100000 | 0.5 | 2 | He and Li 2023',
  ):
    assert row in text
  held = found['summary.json'].content['patches']
  assert held[FW_RD]['auroc']['per_seed'] == [1.0]
  assert held[FW_RD]['auroc']['std'] is None
  assert set(held) == {s.name for s in settings_of(material)}


def test_a_training_that_is_not_done_is_named(run):
  with pytest.raises(ResultsError, match=r'other_s5/scores\.csv'):
    training.scores(run[0], Setting('other', 3, 1, 0.1, seed=5))


def patches(seed, gap, n=120):
  """Patches of six slides whose tumour scores `gap` higher on average."""
  rng = np.random.default_rng(seed)
  tumour = np.arange(n) % 2 == 0
  slide = [f's{i}' for i in rng.integers(0, PATIENTS, n)]
  mean = 1.2 + gap * tumour + rng.normal(0, 0.3, n)
  return Scores(np.array(slide), tumour, mean)


def test_thresholds_by_hand():
  make = lambda mean: Scores(
    np.array(['s', 's', 't', 't']),
    np.array([False, True, False, True]),
    np.array(mean),
  )
  # Validation chooses 1.0; the test patches themselves would choose 1.5.
  val, test = make([0.5, 1.0, 0.6, 1.2]), make([1.1, 1.5, 0.6, 2.0])
  assert val.threshold == 1.0
  found = few_shot.measure({'val': val, 'test': test})
  np.testing.assert_array_equal(found[:, 0], [0.75, 0.75, 1, 1])


def test_settings_are_paired_by_their_resamples():
  better, worse = (
    few_shot.measure({'val': patches(1, gap), 'test': patches(0, gap)})
    for gap in (1.0, 0.2)
  )
  low, high = few_shot._ends(better)[0]
  assert low < better[0, 0] < high
  assert few_shot._ends(better - worse)[-1, 0] > 0
  # Nothing differs.
  assert np.isnan(few_shot._ends(better - better)).all()
