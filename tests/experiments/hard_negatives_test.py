"""The whole script on files, with a network that sees colours."""

import csv
import re

import numpy as np
from PIL import Image
import pytest
import script_process
from sklearn import metrics as reference

# Few negatives of annotated patients look nearly like positives.
NEGATIVE, POSITIVE, HARD = (150, 110, 190), (220, 90, 120), (215, 140, 125)


def write(root):
  """Ten annotated patients and a pool of four; returns ids of hard tiles."""
  rng = np.random.default_rng(0)
  hard = set()

  def save(name, colour):
    tile = (
      np.array(colour) + rng.normal(0, 8, 3) + rng.normal(0, 5, (16, 16, 3))
    )
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)

  for patient in range(10):
    for i in range(4):
      save(f'tiles/pos/p{patient}_{i}.png', POSITIVE)
    for i in range(6):
      rare = i == 0
      save(f'tiles/neg/p{patient}_{i}.png', HARD if rare else NEGATIVE)
  for patient in range(4):
    for i in range(25):
      rare = rng.random() < 0.2
      save(f'pool/w{patient}_{i}.png', HARD if rare else NEGATIVE)
      if rare:
        hard.add(f'w{patient}_{i}.png')
  return hard


def read(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


@pytest.fixture
def asked(tmp_path):
  return {
    'tiles_dir': tmp_path / 'tiles',
    'pool_dir': tmp_path / 'pool',
    'results_dir': tmp_path,
    'cache_dir': tmp_path / 'cache',
    'seeds': 1,
    'alpha': 6,
    'fractions': '0.4,0.4,0.2',
    'batch': 4,
    'input_size': 16,
    'epochs': 8,
    'lr': 0.02,
    'select': 'last',
    'augment': 'none',
  }


def run(asked):
  """Runs the script with networks that see colours."""
  return script_process.run(
    'experiments.hard_negatives',
    *(
      f'--{name}={value}' for name, value in asked.items() if value is not None
    ),
    before=script_process.HASTY + script_process.SMALL,
  )


def test_from_files_to_tables_and_figures(asked, tmp_path):
  hard = write(tmp_path)
  done = run(asked)
  assert done.returncode == 0, done.stderr
  said = done.stdout
  folder = tmp_path / 'hard_negatives_s2023'
  tables = (folder / 'tables.md').read_bytes()
  weights = sorted(folder.rglob('model.safetensors'))
  made = [path.stat().st_mtime_ns for path in weights]
  # Finished networks are loaded: the same again.
  assert run(asked | {'figures': False}).returncode == 0
  assert (folder / 'tables.md').read_bytes() == tables
  assert [path.stat().st_mtime_ns for path in weights] == made
  assert len(made) == 4
  assert '**Table 2.' in said and 'train 40 (16 positive' in said
  # Nobody knows which of a user's tiles are hard.
  assert 'AUROC, hard' not in said and 'phantom' not in said
  rows = {row['choice']: row for row in read(folder / 'models.csv')}
  assert len(rows) == len(made)
  share = {}
  for choice, row in rows.items():
    alpha = '' if choice == 'weak' else '_6'
    at = folder / f'seed_2023/all_100/{choice}{alpha}'
    tested = read(at / 'predictions.csv')
    label = [r['label'] == '1' for r in tested]
    prob = [float(r['prob_positive']) for r in tested]
    auroc = reference.roc_auc_score(label, prob)
    assert float(row['auroc']) == pytest.approx(auroc, abs=1e-6)
    if choice != 'weak':
      mined = [r['tile'] for r in read(at / 'mined.csv')]
      assert int(row['mined']) == len(set(mined)) == len(mined) > 5
      share[choice] = np.mean([m in hard for m in mined])
  # A weak model's false positives lead to their like.
  assert min(share['l2'], share['cosine']) > 2 * share['random'], share
  for name in ('mined', 'tsne', 'grad_cam'):
    assert (folder / f'figures/{name}.png').stat().st_size > 5000


@pytest.mark.parametrize(
  'flag,message',
  [
    ({'pool_share': 0.2}, '--pool_share goes with --tiles_zip'),
    (
      {'tiles_dir': None, 'pool_dir': None, 'positive': 'x'},
      '--positive goes with --tiles_dir or --tiles_zip',
    ),
  ],
)
def test_flags_that_nothing_would_read_are_refused(asked, flag, message):
  done = run(asked | flag)
  assert done.returncode != 0 and message in done.stderr


@pytest.mark.parametrize('check', [False, True])
def test_a_pool_that_is_too_small_is_told_before_training(
  asked, tmp_path, check
):
  write(tmp_path)
  done = run(asked | {'alpha': 1000, 'check': check})
  assert done.returncode == 1
  assert re.search(
    r'alpha=1000 is more than the \d+ tiles of the pool',
    done.stdout + done.stderr,
  )
  assert not list(tmp_path.rglob('model.safetensors'))


def test_the_leaking_protocol_has_a_folder_and_a_name_of_its_own(
  asked, tmp_path
):
  write(tmp_path)
  done = run(asked | {'protocol': 'original'})
  assert done.returncode == 0, done.stderr
  said = done.stdout
  assert said.count('WRONG ON PURPOSE') == 2 and 'LEAKED: ' in said
  assert 'on one test part' not in said
  folder = tmp_path / 'hard_negatives_original_s2023'
  weak, strong = read(folder / 'models.csv')
  assert (weak['choice'], strong['choice']) == ('weak', 'random')
  assert int(weak['leaked_test']) == 0 < int(strong['leaked_test'])
