"""docs/extend.md, applied to a copy of the packages and run there."""

import hashlib
import pathlib
import re
import shutil

import h5py
import numpy as np
from PIL import Image
import pytest
import script_process

from data import features, tiff
from experiments.run.results import Folder

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ('data', 'experiments', 'kmil_jax')
# The copy stands before the packages that the server of forks has.
BEFORE = f"""{script_process.HASTY}
import os, sys
for name in [name for name in sys.modules if name.split('.')[0] in {PACKAGES}]:
  del sys.modules[name]
sys.path.insert(0, os.getcwd())
"""
# Commands of the page, in one process.
COMMANDS = """
import my_reader
import numpy as np
import kmil_jax
from experiments import breast_carcinoma, extract, predict
from experiments import kmil
from experiments.evaluation import figures
from experiments.reporting import page

rng = np.random.default_rng(0)
labels = ['benign', 'tumour'] * 12
bags = [rng.normal(size=(rng.integers(3, 20), 4)) for _ in labels]
for bag, label in zip(bags, labels):
  bag[0, 0] += 8 * (label == 'tumour')
recipe = kmil_jax.Recipe(epochs=12, learning_rate=3e-3)
model = kmil_jax.fit(bags, labels, model='mi_net', folds=3, recipe=recipe)
np.save('auroc.npy', model.metrics(resamples=10)['auroc'][0])

figures.draw = page.write = lambda *_: None  # Looked at by others.
kmil.main([
  *('', '--plugin=my_loss.py', '--model=abmil_smooth'),
  '--csv_path=labels.csv',
  *('--features_dir=features', '--k=3', '--fold=0', '--epochs=1'),
])
extract.main([
  *('', '--slides_dir=slides', '--features_dir=encoded', '--tile_size=32'),
  *('--min_tissue=0', '--weights=my_encoder:encode'),
])
command = [
  *('', '--run=results/abmil_smooth_origin_s2023', '--features_dir=features'),
  *('--fold=0', '--exp_code=predicted'),
]
try:
  predict.main(command)
except SystemExit as refused:
  assert 'If you trust it' in refused.code
else:
  raise AssertionError('config.json alone made code run')
predict.main([*command, '--plugin=my_loss.py'])
breast_carcinoma.main(['', '--tiles_dir=tiles', '--epochs=3', '--batch_size=8'])
"""


def apply(page, tree):
  """Writes and changes the files of a page's blocks in a tree."""
  names = []
  for kind, name, body in re.findall(
    r'^```(\w+)\n# (\S+)\n(.*?)^```', page, re.S | re.M
  ):
    path = tree / name
    names.append(name)
    if kind != 'diff':
      assert not path.exists(), f'{name} is there already'
      path.write_text(body, encoding='utf-8')
      continue
    lines = body.splitlines(keepends=True)
    old = ''.join(line[1:] for line in lines if line[0] in ' -')
    new = ''.join(line[1:] for line in lines if line[0] in ' +')
    text = path.read_text(encoding='utf-8')
    assert text.count(old) == 1, f'{name}: not once there: {old}'
    path.write_text(text.replace(old, new), encoding='utf-8')
  return names


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  """The packages and the page's files, inputs, and results of `COMMANDS`."""
  tree = tmp_path_factory.mktemp('extended')
  for name in PACKAGES:
    shutil.copytree(
      ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__')
    )
  page = (ROOT / 'docs' / 'extend.md').read_text(encoding='utf-8')
  assert len(apply(page, tree)) == page.count('```') / 2
  rng = np.random.default_rng(0)
  rows = ['case_id,slide_id,label']
  for name in ('embeddings', 'features', 'slides'):
    (tree / name).mkdir()
  for i in range(12):
    rows.append(f'case {i},s{i:02},{"benign" if i % 2 else "tumour"}')
    np.savez(
      tree / f'embeddings/s{i:02}.npz',
      embeddings=rng.normal(size=(6, 5)),
      xy=512 * np.stack([np.arange(6), np.zeros(6)], 1),
      size=(4096, 1024),
    )
  (tree / 'labels.csv').write_text('\n'.join(rows))
  image = np.full((128, 128, 3), (180, 90, 160), np.uint8)
  tiff.write(tree / 'slides/a.tiff', image, mpp=0.5, levels=1)
  for i in range(80):
    label = ('benign', 'tumour')[i % 2]
    colour = np.array((230, 200, 220) if i % 2 else (90, 40, 120))
    noise = rng.integers(0, 25, (16, 16, 3))
    path = tree / 'tiles' / label / f'patient{i // 4}_{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + noise).astype(np.uint8)).save(path)
  (tree / 'commands.py').write_text(COMMANDS)
  arguments = 'embeddings', 'features'
  done = script_process.run('commands', *arguments, before=BEFORE, cwd=tree)
  assert done.returncode == 0, done.stdout + done.stderr
  return tree


def test_a_model_of_one_file_learns(tree):
  assert np.load(tree / 'auroc.npy') > 0.9


def test_a_loss_is_an_option_of_scripts(tree):
  trained = Folder(tree / 'results/abmil_smooth_origin_s2023')
  assert trained.config().values['model'] == 'abmil_smooth'
  assert trained.config().plugin == str(tree / 'my_loss.py')
  content = (tree / 'my_loss.py').read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  assert trained.config().inputs['plugin_sha256'] == digest
  assert len(trained.read('predictions.csv')) == 4
  predicted = Folder(tree / 'results/predicted').read('predictions.csv')
  assert len(predicted) == 12


def test_an_encoder_of_another_library_makes_features(tree):
  encoded = features.read(tree / 'encoded/a.h5')
  assert encoded.features.shape == (16, 16)
  assert encoded.attributes['encoder'] == 'my_encoder:encode'


def test_a_reader_makes_features(tree):
  with h5py.File(tree / 'features/s03.h5') as file:
    assert file['features'].shape == (6, 5)
    assert file.attrs['encoder'] == 'my tool 1.0'


def test_a_study_of_three_files_stands_beside_its_paper(tree):
  study = Folder(tree / 'results/breast_carcinoma_s2023')
  here, paper = study.read('detection.csv')
  assert here['from'] == 'here' and float(here['balanced accuracy']) > 0.9
  assert paper['from'] == 'Cruz-Roa et al. 2014, abstract'
  assert paper['F1'] == '0.718'
  assert study.has('report.html', 'predictions.csv', 'figures/cnn.png')
  assert 'epochs 3 (25)' in study.at('report.html').read_text()


def test_pages_name_files_that_are_there(tree):
  known = re.compile(r'\b(?:data|docs|experiments|kmil_jax|tests)/[\w/]+\.\w+')
  pages = [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')]
  absent = {
    f'{page.name}: {name}'
    for page in pages
    for name in known.findall(page.read_text(encoding='utf-8'))
    if not (ROOT / name).exists() and not (tree / name).exists()
  }
  assert absent == set()
