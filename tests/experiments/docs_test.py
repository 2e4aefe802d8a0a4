"""Every command of the documentation, run in the order of its page.

Trainings are shortened, cohorts and networks made small. ImageNet's weights are
stood in for by random ones of a shallow encoder; clusters' processes are one.
"""

import csv
import json
import pathlib
import re
import shlex
import time

import drawn_patches
import feature_folder
import numpy as np
import pytest
import safetensors.numpy
import script_process

from data.phantom import tiff
from experiments.encoding import encoder
from kmil_jax import port
from kmil_jax.models import resnet

DOCS = script_process.ROOT / 'docs'
README = script_process.ROOT / 'README.md'
NOTES = script_process.ROOT / 'BUILD_NOTES.md'
IN_CI = ('experiments.kmil', ['--fold=3'])
COMMAND = re.compile(
  r'^ {4}(?:srun )?python -m (experiments\.\w+)([^#\n]*)', re.M
)

SHORT = {
  'kmil': ['--k=3', '--epochs=2'],
  'mean_pooling': ['--k=3'],
  'cost': ['--num_instances=8', '--width=16'],
  'view': ['--port=0'],
}
BEFORE = {
  'extract': script_process.SHALLOW,
  'predict': script_process.SHALLOW,
  'paper': script_process.FORKED,
}
# They take minutes on phantoms, which are made small, as their networks.
SMALL = {
  'benchmark': [
    '--parts=inference',
    '--repeats=1',
    '--nocompile',
    '--format=json',
  ],
  'ct_nodes': ['--networks=custom', '--epochs=1', '--input_size=32'],
  'few_shot': ['--width=2', '--epochs=1', '--seeds=1'],
  'hard_negatives': ['--seeds=1', '--epochs=1'],
  'two_step': ['--patches=40', '--epochs=1', '--pictures=1'],
}
# Reads flags, and runs nothing.
ONLY_FLAGS = """
import sys
from absl import app, flags
from experiments.run import options

parse = options.parse

def parse_all(argv, *classes):
  for args in COMMANDS:
    parse([argv[0], *args], *classes)
  sys.exit()

options.parse = parse_all
app.run = lambda main: [flags.FLAGS([sys.argv[0], *args]) for args in COMMANDS]
"""


def commands(page):
  """Yields module and arguments of each command of a page, in order."""
  text = (DOCS / page).read_text(encoding='utf-8')
  for module, rest in COMMAND.findall(text):
    yield module, shlex.split(rest)


def command(module, args, *extra):
  """Runs a command of the page; returns what it printed."""
  name = module.removeprefix('experiments.')
  args = [*args, *SHORT.get(name, [])]
  done = script_process.run(
    module,
    *args,
    *extra,
    before=script_process.HASTY + BEFORE.get(name, ''),
    cwd=pathlib.Path.cwd(),
  )
  assert done.returncode == 0, f'{module} {args}\n{done.stdout}\n{done.stderr}'
  return done.stdout


def small(module, args, folder):
  """Runs a command whose phantom and networks are made small."""
  name = module.removeprefix('experiments.')
  less = SMALL[name]
  if any(arg.startswith('--tiles_zip=') for arg in args):  # Not to be cut.
    less = ['--epochs=1']
  more = [] if name == 'benchmark' else [f'--cache_dir={folder / "cache"}']
  done = script_process.run(
    module,
    *args,
    *less,
    *more,
    before=script_process.HASTY + script_process.SMALL,
    cwd=folder,
  )
  assert done.returncode == 0, f'{module} {args}\n{done.stdout}\n{done.stderr}'
  return done


def draw_slides(folder, names, seed):
  """Writes slides of coarse purple tissue, 2 by 2 tiles each."""
  folder.mkdir()
  rng = np.random.default_rng(seed)
  for name in names:
    spots = rng.integers(0, 60, (64, 64, 3)).repeat(8, 0).repeat(8, 1)
    image = (np.array([200, 120, 190]) - spots).astype(np.uint8)
    tiff.write(folder / f'{name}.tiff', image, mpp=0.5, levels=2, quality=90)


def put_weights(path, monkeypatch):
  """Writes random weights of a shallow encoder, as if ImageNet's."""
  monkeypatch.setattr(resnet, 'STAGES', (1, 1, 1))
  tiles = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
  trunk = encoder.random_trunk(tiles.astype(np.float32), seed=0)
  path.parent.mkdir(parents=True)
  safetensors.numpy.save_file(port.to_torch('resnet50_trunk', trunk), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_own_slides(folder, monkeypatch):
  weights = folder / 'cache/kmil_jax/weights/resnet50.tv_in1k.safetensors'
  put_weights(weights, monkeypatch)
  names = [f'2024-01{i}_A' for i in range(6)]
  draw_slides(folder / 'slides', names, 0)
  draw_slides(folder / 'new_slides', ['007.new'], 1)
  rows = [[name[:8], name, 'ab'[i % 2]] for i, name in enumerate(names)]
  with (folder / 'labels.csv').open('w', newline='') as f:
    csv.writer(f).writerows([['case_id', 'slide_id', 'label'], *rows])
  said = ''
  for module, args in commands('own_slides.md'):
    if module == 'experiments.view':
      serving(args)
    else:
      said += command(module, args)
  assert said.count('weights of resnet50.tv_in1k.safetensors') == 2
  results = folder / 'results'
  assert (results / 'mine_s2023' / 'report.html').exists()
  assert len(list((results / 'mine_s2023' / 'qupath').glob('*.geojson'))) == 6
  for code, slides in (('new', ['007.new']), ('from_file', names)):
    with (results / code / 'predictions.csv').open(newline='') as f:
      assert [row['slide_id'] for row in csv.DictReader(f)] == slides
  assert (folder / 'model.kmil').stat().st_size > 10_000


def serving(args):
  """Starts the viewer and waits for its address."""
  script = script_process.Script(
    'experiments.view', [*args, *SHORT['view']], cwd=pathlib.Path.cwd()
  )
  deadline = time.monotonic() + 60
  try:
    while 'open http://127.0.0.1:' not in script.printed():
      assert script.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    script.kill()
    script.communicate()


def test_own_features(folder):
  bags, labels = feature_folder.planted(num_bags=12)
  bags = [bag[:8] for bag in bags]
  feature_folder.write(folder, bags, labels)
  other = folder / 'other'
  feature_folder.write(other, *feature_folder.planted(num_bags=6, seed=1))
  (other / 'labels.csv').rename(folder / 'other.csv')
  (other / 'features').rename(folder / 'other_features')
  for module, args in commands('own_features.md'):
    command(module, args)
  mine = folder / 'results' / 'mine_s2023'
  assert (mine / 'external_predictions.csv').exists()
  assert (
    folder / 'results' / 'packed_s2023' / 'predictions.csv'
  ).read_bytes() == (mine / 'predictions.csv').read_bytes()


def test_patches(folder):
  for write in (
    drawn_patches.node_images,
    drawn_patches.zipped_tiles,
    drawn_patches.annotated_and_weak,
    drawn_patches.nodes,
  ):
    write(folder)
  for module, args in commands('patches.md'):
    small(module, args, folder)


def test_papers_and_clusters(folder):
  classes = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')
  bags, labels = feature_folder.planted(num_bags=15, classes=5)
  labels = [classes[label] for label in labels]
  own = feature_folder.write(folder, [bag[:8] for bag in bags], labels)
  bags, _ = feature_folder.planted(num_bags=15, classes=5, seed=1)
  second = feature_folder.write(folder / 'second', bags, labels)
  second = [flag.replace('--', '--external_') for flag in second]
  second[0] = second[0].replace('_path', '')
  cluster = ('--coordinator', '--num_processes', '--process_id')
  seen = []
  for page in ('reproduce.md', 'clusters.md'):
    for module, args in commands(page):
      name = module.removeprefix('experiments.')
      args = [a for a in args if not a.startswith(cluster)]
      if name == 'paper':  # Of inputs, a shorter training has the same.
        args = [a for a in args if not a.startswith('--epochs=')]
      if (name, args) in seen:
        continue
      seen.append((name, args))
      if name in SMALL:
        continue
      extra = []
      if name in ('ablations', 'kmil', 'paper'):
        extra += [*own, '--k=3', '--epochs=1']
      if name == 'paper' and not {'--table=4', '--table=5', '--table=6'} & {
        *args
      }:
        extra.append('--models=kmil')
      if '--table=2' in args:
        extra += second
      command(module, args, *extra)


def test_the_other_papers_and_speed(folder):
  found = [
    (module, args)
    for module, args in commands('reproduce.md')
    if module.removeprefix('experiments.') in SMALL
  ]
  assert len(found) == len(SMALL)
  for module, args in found:
    name = module.removeprefix('experiments.')
    done = small(module, args, folder)
    if name == 'benchmark':
      rows = json.loads(done.stdout)['rows']
      assert [row['model'] for row in rows] == ['abmil']
    else:
      assert (folder / f'results/{name}_s2023').is_dir()


def test_no_other_page_has_commands_of_its_own():
  run = (
    'own_slides.md',
    'own_features.md',
    'reproduce.md',
    'clusters.md',
    'patches.md',
  )
  known = [c for page in run for c in commands(page)]
  for page in {*DOCS.glob('*.md'), README} - {DOCS / name for name in run}:
    for found in commands(page):
      assert found in (*known, IN_CI), f'{page.name}: {found}'


INLINE = re.compile(r'`python -m (experiments\.\w+)([^`]*)`')


def test_commands_within_text_have_flags_of_their_scripts():
  asked = {}
  for page in (README, NOTES, *DOCS.glob('*.md')):
    for module, rest in INLINE.findall(page.read_text(encoding='utf-8')):
      args = [arg for arg in shlex.split(rest) if arg != '...']
      asked.setdefault(module, []).append(args)
  assert len(asked) > 5
  for module, some in asked.items():
    every = f'COMMANDS = {some!r}\n{ONLY_FLAGS}'
    done = script_process.run(module, before=every)
    assert done.returncode == 0, (module, done.stderr)
