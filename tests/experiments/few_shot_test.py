"""The few-shot script from end to end, on real tiles of lymph nodes."""

import json

import numpy as np
from PIL import Image
import pytest
import script_process

from experiments.few_shot_parts import scores
from kmil_jax import port, port_distillation

# Slides of the 89 tiles, by part; labels and slides are confounded.
PARTS = {
  'train': ('tumor_001', 'tumor_004'),
  'val': ('tumor_064',),
  'test': ('tumor_073',),
}
SIDE = 32
# One block in every stage: a quarter of what there is to compile.
SHALLOW = (
  'from kmil_jax.models import reverse_distillation as rd;'
  ' rd.STAGES = (1, 1, 1)'
)
SMALL = ('--width=2', '--epochs=1', '--batch=8', '--lr=0.001', '--seed=4')


@pytest.fixture(scope='module')
def patches(real_data, tmp_path_factory):
  """The middles of the tiles, in the folders of He and Li's code."""
  root = tmp_path_factory.mktemp('patches')
  tiles = real_data / 'camelyon16/tiles_256'
  for kind, name in (('good', 'normal'), ('bad', 'tumor')):
    for path in sorted((tiles / name).iterdir()):
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
    '--exp_code=real',
    *SMALL,
    *flags,
    before=SHALLOW,
  )


@pytest.fixture(scope='module')
def trained(patches, tmp_path_factory):
  results = tmp_path_factory.mktemp('results')
  done = run(patches, results, '--stage=train')
  assert done.returncode == 0, done.stdout
  return results, done.stdout


def test_real_tiles_are_trained_on_and_scored(trained):
  results, said = trained
  assert 'THE TEACHER IS RANDOM' in said
  assert 'train: 7 normal and 24 tumour patches of 32 px, 2 slides' in said
  assert 'here (paper): width 2 (64), patch 32 (256)' in said
  runs = sorted((results / 'real_s4/runs').iterdir())
  assert [p.name for p in runs] == [
    'FW-RD_s4',
    'RD_s4',
    'balanced_s4',
    'tumour_10_s4',
    'tumour_5_s4',
    'unweighted_focal_s4',
    'unweighted_s4',
  ]
  seen = []
  for folder in runs:
    found = scores.read(folder)
    assert (len(found['val'].mean), len(found['test'].mean)) == (26, 32)
    assert found['test'].tumour.sum() == 16
    assert set(found['test'].slide) == {'tumor_073'}
    for some in found.values():
      assert (some.mean > 0).all() and (some.max >= some.mean).all()
      assert some.max.max() < 3
    seen.append(found['test'].mean)
    line = json.loads((folder / 'metrics.jsonl').read_text())
    assert np.isfinite([line['train_loss'], line['val_accuracy']]).all()
    student = port.load_state_dict(folder / 'model.safetensors')
    port_distillation.student(student)
  assert len(np.unique(np.stack(seen), axis=0)) == len(runs)


def test_a_run_goes_on_and_makes_its_tables(trained, patches):
  results, _ = trained
  folder = results / 'real_s4'
  kept = folder / 'runs/RD_s4/model.safetensors'
  before = kept.stat().st_mtime_ns
  done = run(patches, results)
  assert done.returncode == 0, done.stdout
  assert kept.stat().st_mtime_ns == before
  assert 'Table 3.' in done.stdout and 'One seed' in done.stdout
  held = json.loads((folder / 'summary.json').read_text())
  assert held['patches']['RD']['accuracy']['ci_low'] is None  # One slide.
  assert {p.name for p in (folder / 'figures').iterdir()} == {
    'patch_roc.png',
    'table_3.png',
  }
  refused = run(patches, results, '--per=map')
  assert refused.returncode == 1
  assert 'per: location before, map now' in refused.stdout
  none = run(patches, results, '--stage=slides')
  assert none.returncode == 1
  assert '--patches_dir has no slides' in none.stdout
