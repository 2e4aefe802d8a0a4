"""The script of hard negatives on files, with a network that sees colours."""

import csv
import zipfile

from colour_network import Colours
import numpy as np
from PIL import Image
import pytest
from sklearn import metrics as reference

from data.labelled_tiles import TileError
from experiments import hard_negatives
from experiments.studies import hard_negatives as hn
from experiments.studies.hard_negatives import Data, Mining
from kmil_jax import models

# Few negatives of annotated patients look nearly like positives.
NEGATIVE, POSITIVE, HARD = (150, 110, 190), (220, 90, 120), (215, 140, 125)
MINING = Mining(alpha=2, fractions=(0.5, 0.25, 0.25))


def save(path, colour, rng=None, size=16):
  rng = rng or np.random.default_rng(len(str(path)))
  shape = (size, size, 3)
  tile = np.array(colour) + rng.normal(0, 8, 3) + rng.normal(0, 5, shape)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(path)


def write(root, classes=('neg', 'pos')):
  """Ten annotated patients and a pool of four; returns ids of hard tiles."""
  rng, hard = np.random.default_rng(0), set()
  for patient in range(10):
    for i in range(4):
      name = root / 'tiles' / classes[1] / f'p{patient}_{i}.png'
      save(name, POSITIVE, rng)
    for i in range(6):
      name = root / 'tiles' / classes[0] / f'p{patient}_{i}.png'
      save(name, NEGATIVE if i else HARD, rng)
  for patient in range(4):
    for i in range(25):
      rare = rng.random() < 0.2
      save(root / f'pool/w{patient}_{i}.png', HARD if rare else NEGATIVE, rng)
      if rare:
        hard.add(f'w{patient}_{i}.png')
  return hard


def opened(root, mining=MINING, **about):
  about = {'tiles_dir': root / 'tiles', 'pool_dir': root / 'pool'} | about
  return hn.open_material(Data(**about), mining, 0, root)


def read(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def run(root, *flags):
  """Runs the script on what `write` wrote."""
  where = {'tiles_dir': 'tiles', 'pool_dir': 'pool', 'results_dir': ''}
  paths = [f'--{flag}={root / name}' for flag, name in where.items()]
  recipe = (
    '--seeds=1 --alpha=6 --fractions=0.4,0.4,0.2 --batch=4 --input_size=16'
    ' --epochs=8 --lr=0.02 --select=last --augment=none'
  )
  paths.append(f'--cache_dir={root / "cache"}')
  hard_negatives.main(['hard_negatives', *paths, *recipe.split(), *flags])


def test_from_files_to_tables_and_figures(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(models.CLASSIFIERS, 'resnet18', Colours)
  monkeypatch.setattr(hn.pictures, 'ONE_CELL', 0)  # It has no stages.
  hard = write(tmp_path)
  run(tmp_path)
  shown = capsys.readouterr().out
  folder = tmp_path / 'hard_negatives_s2023'
  report = (folder / 'report.md').read_bytes()
  weights = sorted(folder.rglob('model.safetensors'))
  made = [path.stat().st_mtime_ns for path in weights]
  run(tmp_path)  # Finished networks are loaded: the same again.
  assert (folder / 'report.md').read_bytes() == report
  assert [path.stat().st_mtime_ns for path in weights] == made
  assert len(made) == 4
  assert 'alpha 6 (20), ' in shown and 'Table 2.' in shown
  assert 'phantom' not in shown
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
  'flags,message',
  [
    (['--pool_share=0.2'], '--pool_share requires --tiles_zip'),
    (['--tiles_zip=a', '--tiles_csv=b'], 'exclude each other'),
    (['--table='], '--table is empty'),
    (['--fractions=0.5,0.5,0'], 'three numbers above 0'),
    (['--alpha=1000'], 'alpha=1000 is more than the 100 tiles of the pool'),
    (['--alpha=1000', '--check'], 'alpha=1000 is more than the 100 tiles'),
  ],
)
def test_what_cannot_be_done_is_refused_at_once(tmp_path, flags, message):
  write(tmp_path)
  with pytest.raises(SystemExit, match=message):
    run(tmp_path, *flags)
  assert not list(tmp_path.rglob('config.json'))


def test_a_phantom_has_no_class_to_choose():
  with pytest.raises(SystemExit, match='--positive requires --tiles_dir or'):
    hard_negatives.main(['hard_negatives', '--positive=x'])


def test_folders_are_annotated_tiles_and_a_pool_of_negatives(tmp_path):
  write(tmp_path, ('normal', 'invasion'))
  found = opened(tmp_path, positive='invasion')
  sets = found.sets
  assert sets['pool'].classes == sets['test'].classes == ('normal', 'invasion')
  assert not sets['pool'].label.any() and found.annotated.label.sum() == 40
  assert set(sets['pool'].group) == {f'w{i}' for i in range(4)}
  assert not set(sets['pool'].id) & set(found.annotated.id)
  assert not len(found.hard) and not found.is_phantom
  with pytest.raises(TileError, match='--positive=pos: the classes are inv'):
    opened(tmp_path, positive='pos')


@pytest.mark.parametrize('name', ['p3_x.png', 'neg/p3_x.png', 'p3/x.png'])
def test_a_pool_of_annotated_patients_is_refused(tmp_path, name):
  write(tmp_path)
  save(tmp_path / 'pool' / name, HARD)
  with pytest.raises(TileError, match=r'patients of annotated tiles.*: p3\.'):
    opened(tmp_path)


def test_tiles_that_cannot_be_used_are_named(tmp_path):
  write(tmp_path)
  for path in (tmp_path / 'pool').iterdir():
    save(path, HARD, size=12)
  with pytest.raises(TileError, match='pool: sets of different size'):
    opened(tmp_path)
  save(tmp_path / 'tiles/third/p0_0.png', HARD)
  with pytest.raises(TileError, match='classes neg, pos, third; two are need'):
    opened(tmp_path)


def test_of_a_zip_file_the_negatives_of_some_patients_are_the_pool(tmp_path):
  rows = [('patient', 'x', 'y', 'label', 'zip_path')]
  with zipfile.ZipFile(tmp_path / 'tiles.zip', 'w') as archive:
    for p in range(10):
      for label in '0011':
        name = f'{p}_{len(rows)}.png'
        save(tmp_path / name, HARD)
        archive.write(tmp_path / name, name)
        rows.append((p, len(rows), 0, label, name))
  with (tmp_path / 'tiles.csv').open('w', newline='') as f:
    csv.writer(f).writerows(rows)
  where = {
    f'tiles_{kind}': tmp_path / f'tiles.{kind}' for kind in ('zip', 'csv')
  }
  where |= {'tiles_dir': None, 'pool_dir': None}
  found = opened(tmp_path, **where, pool_share=0.3)
  pool = found.sets['pool']
  assert len(set(pool.group)) == 3 and len(pool) == 6
  assert not set(pool.group) & set(found.annotated.group)
  assert not pool.label.any() and len(found.annotated) == 28
  assert '6 positives of the pool are left out' in found.note
  for share in (0.0, 1.0):
    with pytest.raises(TileError, match='Choose another --pool_share'):
      opened(tmp_path, **where, pool_share=share)


def test_the_phantom_is_rendered_once_and_knows_what_is_hard(
  tmp_path, monkeypatch
):
  for name, about in hn.PHANTOM.items():
    small = about | {'patients': 6, 'patches': 20}
    monkeypatch.setitem(hn.PHANTOM, name, small)
  find = lambda: hn.open_material(Data(), MINING, 0, tmp_path)
  found = find()
  tiles, pool = found.annotated, found.sets['pool']
  assert found.is_phantom and len(tiles) == len(pool) == 120
  assert not set(tiles.group) & set(pool.group) and not pool.label.any()
  hard = np.isin(tiles.id, found.hard)
  assert hard.any() and not (hard & (tiles.label == 1)).any()
  monkeypatch.setattr(hn.invasion, 'make', None)
  again = find()
  np.testing.assert_array_equal(again.annotated.pixels, tiles.pixels)
  np.testing.assert_array_equal(again.hard, found.hard)
