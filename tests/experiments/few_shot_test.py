"""The few-shot script from end to end, on real tiles of lymph nodes."""

import json

import numpy as np
from PIL import Image
import pytest
import script_process

from experiments.few_shot_parts import scores, settings, training
from experiments.few_shot_parts.training import Job, Options
from kmil_jax import port
from kmil_jax.models import reverse_distillation

# Slides of the 89 tiles, by part; labels and slides are confounded.
PARTS = {
  'train': ('tumor_001', 'tumor_004'),
  'val': ('tumor_064',),
  'test': ('tumor_073',),
}
SIDE, WIDTH = 32, 2
FLAGS = (f'--width={WIDTH}', '--epochs=2', '--batch=8', '--lr=0.003')
# One block in every stage, and no optimisation: a fifth of the compilation.
HASTY = (
  script_process.HASTY
  + 'from kmil_jax.models import reverse_distillation\n'
  + 'reverse_distillation.STAGES = (1, 1, 1)'
)


@pytest.fixture(scope='module')
def patches(real_data, tmp_path_factory):
  """The middles of the tiles, in the folders of He and Li's code."""
  root = tmp_path_factory.mktemp('patches')
  for kind, name in (('good', 'normal'), ('bad', 'tumor')):
    for path in (real_data / 'camelyon16/tiles_256' / name).iterdir():
      slide = path.stem.rsplit('_', 2)[0]
      part = next(p for p, slides in PARTS.items() if slide in slides)
      folder = root / part / kind
      folder.mkdir(parents=True, exist_ok=True)
      with Image.open(path) as image:
        low = (256 - SIDE) // 2
        image.crop((low, low, low + SIDE, low + SIDE)).save(folder / path.name)
  return root


def run(patches, results, *flags):
  return script_process.run(
    'experiments.few_shot',
    f'--patches_dir={patches}',
    f'--results_dir={results}',
    '--seed=4',
    *FLAGS,
    *flags,
    before=HASTY,
  )


@pytest.fixture(scope='module')
def trained(patches, tmp_path_factory):
  results = tmp_path_factory.mktemp('results')
  done = run(patches, results, '--stage=train')
  assert done.returncode == 0, done.stderr
  return results / 'few_shot_s4', done.stdout


def test_real_tiles_are_trained_on_and_scored(trained):
  folder, said = trained
  assert 'THE TEACHER IS RANDOM' in said
  assert 'train: 7 normal and 24 tumour patches of 32 px, 2 slides' in said
  assert 'not the paper; here (paper): width 2 (64), patch 32 (256)' in said
  runs = sorted((folder / 'runs').iterdir())
  assert [p.name for p in runs] == [
    'FW-RD_s4',
    'RD_s4',
    'balanced_s4',
    'tumour_10_s4',
    'tumour_5_s4',
    'unweighted_focal_s4',
    'unweighted_s4',
  ]
  seen, losses = [], {}
  for path in runs:
    found = scores.read(path)
    assert (len(found['val'].mean), len(found['test'].mean)) == (26, 32)
    assert found['test'].tumour.sum() == 16
    assert set(found['test'].slide) == {'tumor_073'}
    for some in found.values():
      assert (some.mean > 0).all() and (some.max >= some.mean).all()
      assert some.max.max() < 3
    seen.append(found['test'].mean)
    lines = (path / 'metrics.jsonl').read_text().splitlines()
    losses[path.name] = [json.loads(line)['train_loss'] for line in lines]
  assert len(np.unique(np.stack(seen), axis=0)) == len(runs)
  for loss in losses.values():
    assert loss[1] < loss[0]
  assert not any((folder / 'checkpoints').iterdir())


def test_a_run_goes_on_and_makes_its_tables(trained, patches):
  folder, _ = trained
  kept = folder / 'runs/RD_s4/model.safetensors'
  before = kept.stat().st_mtime_ns
  done = run(patches, folder.parent)
  assert done.returncode == 0, done.stderr
  assert kept.stat().st_mtime_ns == before
  assert 'Table 3.' in done.stdout and 'One seed' in done.stdout
  held = json.loads((folder / 'summary.json').read_text())
  # There is one test slide, so nothing is known of others.
  assert held['patches']['RD']['accuracy']['ci_low'] is None
  assert {p.name for p in (folder / 'figures').iterdir()} == {
    'patch_roc.png',
    'table_3.png',
  }
  refused = run(patches, folder.parent, '--per=map')
  assert refused.returncode == 1
  assert 'per: location before, map now' in refused.stderr


def test_groups_fit_in_memory(trained, monkeypatch):
  study = settings.study(100, 10, {0: 0, 5: 5}, longer=3)
  jobs = [Job(s, seed) for seed in (1, 2) for s in study]
  model = port.load_state_dict(trained[0] / 'runs/RD_s4' / training.MODEL)
  weights = 4 * sum(x.size for x in model.values())
  monkeypatch.setattr(reverse_distillation, 'STAGES', (1, 1, 1))
  options = Options(
    width=WIDTH,
    shortcut=3,
    per='map',
    epochs=1,
    learning_rate=1e-3,
    batch=4,
    seed=1,
    seeds=2,
    weights=None,
    precision='float32',
    tensorboard=False,
  )
  task = training.DistillTask(WIDTH, 3)
  sizes = {}
  for held in (0.5, 2.5, 100):  # Runs of five times its weights, per device.
    memory = int(5 * held * weights / 0.6)
    monkeypatch.setattr(training.parallel, 'memory_bytes', lambda m=memory: m)
    groups = training._groups(jobs, task, options)
    sizes[held] = [len(group) for group in groups]
    # Those of other epochs apart, the order is that of the jobs.
    assert {job.setting.name for job in groups[-1]} == {'balanced'}
    assert [j for g in groups[:-1] for j in g] == [
      job for job in jobs if job.setting.longer == 1
    ]
  # Of four devices.
  assert sizes == {0.5: [4, 4, 2, 2], 2.5: [8, 2, 2], 100: [10, 2]}
