"""The few-shot study on real tiles of lymph nodes; how its script starts."""

import dataclasses
import json

import numpy as np
from PIL import Image
import pytest
import script_process

from data import labelled_tiles, tile_sources
from data.camelyon16 import patch_tiles
from experiments.few_shot_parts import (
  cohort as cohorts,
  report,
  scores,
  settings,
  training,
)
from experiments.few_shot_parts.training import Job, Options
from kmil_jax import port
from kmil_jax.models import reverse_distillation

# Shapes of kmil_jax's test of the training loop, so that both compile once.
SIDE, COUNT, TUMOUR = 64, 40, 18
OPTIONS = Options(
  width=4,
  shortcut=1,
  per='location',
  epochs=2,
  learning_rate=3e-3,
  batch=8,
  seed=4,
  seeds=1,
  weights=None,
  precision='float32',
  tensorboard=False,
)


@pytest.fixture(scope='module')
def cohort(real_data):
  """The middles of 89 tiles: 40 to train on, 16 of either kind to test."""
  tiles = tile_sources.from_folders(
    real_data / 'camelyon16/tiles_256', group=lambda name: name[:9]
  )
  low = (tiles.size - SIDE) // 2
  tiles = labelled_tiles.from_arrays(
    tiles.pixels[:, low : low + SIDE, low : low + SIDE],
    1 - tiles.label,  # Folders are in the order normal, tumor.
    tiles.group,
    patch_tiles.CLASSES,
    ids=tiles.id,
  )
  held_out = tiles.group == 'tumor_073'
  rest = np.flatnonzero(~held_out)
  order = np.argsort(tiles.label[rest], kind='stable')
  tumour, normal = rest[order[:28]], rest[order[28:]]
  train = np.r_[tumour[:TUMOUR], normal[: COUNT - TUMOUR]]
  val = np.r_[tumour[TUMOUR:], normal[COUNT - TUMOUR :]]
  rows = {'train': train, 'val': val, 'test': held_out}
  return cohorts.Cohort(
    parts={part: tiles.take(some) for part, some in rows.items()},
    slides=(),
    annotations=None,
    scale=cohorts.Scale(size=SIDE),
    main=TUMOUR,
    counts={0: 0, 5: 5},
    note='real tiles',
  )


@pytest.fixture(scope='module')
def trained(cohort, tmp_path_factory):
  folder = tmp_path_factory.mktemp('real')
  study = settings.study(COUNT - TUMOUR, cohort.main, cohort.counts)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reverse_distillation, 'STAGES', (1, 1, 1))
    training.train(folder, cohort, study, OPTIONS)
    for name in ('RD', 'FW-RD'):
      setting = next(s for s in study if s.name == name)
      training.load_student(folder, Job(setting, OPTIONS.seed))
  return folder, study


def test_real_tiles_are_trained_on_and_scored(trained, cohort):
  folder, study = trained
  seen = []
  for setting in study:
    run = Job(setting, OPTIONS.seed).folder(folder)
    found = scores.read(run)
    for part, some in found.items():
      tiles = cohort.parts[part]
      assert some.patch.tolist() == tiles.id.tolist()
      np.testing.assert_array_equal(some.tumour, tiles.label == 0)
      assert (some.mean > 0).all() and (some.max >= some.mean).all()
      assert some.max.max() < 3
    seen.append(found['test'].mean)
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in lines] == [0, 1]
  assert len(np.unique(np.stack(seen), axis=0)) == len(study)
  assert not any((folder / 'checkpoints').iterdir())
  loss = lambda name: [
    json.loads(line)['train_loss']
    for line in (folder / f'runs/{name}_s4/metrics.jsonl')
    .read_text()
    .splitlines()
  ]
  assert loss('RD')[1] < loss('RD')[0]


def test_what_is_trained_is_not_trained_again(trained, cohort, monkeypatch):
  folder, study = trained

  def never(*args, **kwargs):
    raise AssertionError

  monkeypatch.setattr(training.distill_fit, 'fit', never)
  monkeypatch.setattr(reverse_distillation, 'STAGES', (1, 1, 1))
  training.train(folder, cohort, study, OPTIONS)
  more = dataclasses.replace(OPTIONS, seeds=2)
  with pytest.raises(AssertionError):
    training.train(folder, cohort, study, more)


def test_tables_of_real_tiles(trained, capsys):
  report.patches(*trained, OPTIONS)
  said = capsys.readouterr().out
  assert 'Table 3.' in said and 'One seed' in said
  held = json.loads((trained[0] / 'summary.json').read_text())
  # There is one test slide, so nothing is known of others.
  assert held['patches']['RD']['accuracy']['ci_low'] is None
  assert 0 <= held['patches']['FW-RD']['auroc']['mean'] <= 1


def test_groups_fit_in_memory(trained, monkeypatch):
  folder, study = trained
  jobs = [Job(s, seed) for seed in (1, 2) for s in study]
  model = port.load_state_dict(
    Job(study[0], 4).folder(folder) / 'model.safetensors'
  )
  weights = 4 * sum(x.size for x in model.values())
  monkeypatch.setattr(reverse_distillation, 'STAGES', (1, 1, 1))
  distiller = training.Distiller(OPTIONS.width, OPTIONS.shortcut)
  counts = {}
  for held in (0.5, 2.5, 100):  # Runs of five times its weights, per device.
    memory = int(5 * held * weights / 0.6)
    monkeypatch.setattr(training.parallel, 'memory_bytes', lambda m=memory: m)
    groups = training._groups(jobs, distiller, OPTIONS)
    assert [job for group in groups for job in group] == jobs
    counts[held] = len(groups[0])
  assert counts == {0.5: 4, 2.5: 8, 100: len(jobs)}  # Of four devices.


@pytest.fixture(scope='module')
def patches(tmp_path_factory):
  root = tmp_path_factory.mktemp('patches')
  for part in cohorts.PARTS:
    for kind, level in (('good', 200), ('bad', 60)):
      (root / part / kind).mkdir(parents=True)
      image = Image.new('RGB', (32, 32), (level, 60, 90))
      image.save(root / part / kind / f'{part}_0_0.png')
  return root


def test_the_script_says_what_it_will_do(patches, tmp_path):
  def run(*flags):
    return script_process.run(
      'experiments.few_shot',
      f'--patches_dir={patches}',
      f'--results_dir={tmp_path}',
      '--width=2',
      *flags,
      before='from experiments.few_shot_parts import training;'
      ' training.train = lambda *args: None',
    )

  done = run('--stage=train')
  assert done.returncode == 0, done.stderr
  assert (
    'train: 1 normal and 1 tumour patches of 32 px, 1 slides' in done.stdout
  )
  assert 'not the paper; here (paper): width 2 (64), patch 32' in done.stdout
  refused = run('--per=map', '--stage=train')
  assert refused.returncode == 1
  assert 'per: location before, map now' in refused.stderr
