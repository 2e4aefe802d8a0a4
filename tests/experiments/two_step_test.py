"""The two-step detector from end to end on coloured discs."""

import csv
import json

from absl import flags
from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest
from two_step_networks import NETWORKS

from data import node_images, tissue
from experiments import two_step, two_step_patches, two_step_scores
from kmil_jax import heatmap, models

# The first network sees red alone, which follicles and tumour share.
TISSUE, TUMOUR, FOLLICLE = (150, 110, 190), (220, 90, 120), (220, 150, 120)


def disc(shape, middle, radius):
  y, x = np.indices(shape)
  return np.hypot(y - middle[0], x - middle[1]) < radius


@pytest.fixture(scope='module')
def nodes(tmp_path_factory):
  """Six patients; tumour is a disc, and so are follicles of negative images."""
  root = tmp_path_factory.mktemp('nodes')
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (root / name).mkdir()
  rows = [[*node_images.COLUMNS, 'label']]
  for patient in range(6):
    for positive in (True, False):
      name = f'n{patient}{"np"[positive]}'
      shape = (110, 120 + 10 * patient)
      mask = disc(shape, rng.uniform(40, 70, 2), rng.uniform(18, 26))
      image = np.full((*shape, 3), TISSUE, float)
      image[mask] = TUMOUR if positive else FOLLICLE
      image += rng.normal(0, 6, image.shape) + rng.normal(0, 3, 3)
      image[:, -30:] = 250  # Glass.
      pixels = image.clip(0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(root / f'images/{name}.png')
      if positive:
        mask = Image.fromarray(mask.astype(np.uint8))
        mask.save(root / f'masks/{name}.png')
      part = 'development' if patient < 4 else 'test'
      label = 'positive' if positive else 'negative'
      rows.append([name, f'p{patient}', part, label])
  with (root / 'images.csv').open('w', newline='') as f:
    csv.writer(f).writerows(rows)
  return root


def arguments(nodes, results):
  return {
    'images_dir': str(nodes / 'images'),
    'masks_dir': str(nodes / 'masks'),
    'images_csv': str(nodes / 'images.csv'),
    'results_dir': str(results),
    'cache_dir': str(results / 'cache'),
    'patches': 80,
    'batch': 16,
    'epochs': 12,
    'lr': 0.02,
    'augment': 'none',
    'pictures': 2,
    'primaries': ['googlenet'],
    'secondary': 'mobilenet_v2',
  }


def run(asked):
  with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(**asked):
    for name, spec in NETWORKS.items():
      patch.setitem(models.CLASSIFIERS, name, spec)
    two_step.main(['two_step'])


@pytest.fixture(scope='module')
def done(nodes, tmp_path_factory):
  """The results folder and what was printed."""
  results = tmp_path_factory.mktemp('results')
  run(arguments(nodes, results))
  return results / 'two_step_s2023'


def read(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def test_the_second_step_cuts_false_positives_at_equal_sensitivity(done):
  rows = read(done / 'windows.csv')
  here = {row['rule']: row for row in rows if row['from'] == 'here'}
  number = lambda rule, name: float(here[rule][name])
  raised, two = 'one step, as sensitive as two', 'two steps'
  assert number(two, 'sensitivity (%)') > 50
  assert number(raised, 'sensitivity (%)') >= number(two, 'sensitivity (%)')
  assert number(raised, 'false positives') > 40
  assert number(two, 'false positives') < 0.4 * number(
    raised, 'false positives'
  )


def test_images_are_decided_by_a_threshold_of_the_development_part(done):
  rows = read(done / 'images.csv')
  assert len(rows) == 12
  positive = np.array([row['label'] == 'positive' for row in rows])
  development = np.array([row['part'] == 'development' for row in rows])
  assert development.sum() == 8
  # Follicles look like tumour to the first network.
  score = lambda column: np.array([float(row[column]) for row in rows])
  assert score('score_one_step').min() > 0.5
  two = np.rint(16 * score('score')).astype(int)
  threshold = two_step_scores.threshold(two[development], positive[development])
  said = [row['decision'] == 'positive' for row in rows]
  assert said == (two >= threshold).tolist()
  table = read(done / 'table_3.csv')
  told = {float(r['threshold']) for r in table if r['rule'] == 'two steps'}
  assert told == {threshold / 16}
  assert (said == positive).mean() > 0.8


def test_outlines_are_where_the_tumour_is(done, nodes):
  threshold = float(
    next(r for r in read(done / 'table_3.csv') if r['rule'] == 'two steps')[
      'threshold'
    ]
  )
  for row in read(done / 'images.csv'):
    name = row['image_id']
    features = json.loads((done / f'outlines/{name}.json').read_text())
    assert features['type'] == 'FeatureCollection'
    with np.load(done / f'maps/{name}.npz') as arrays:
      said = heatmap.Windows(**dict(arrays))
    with Image.open(nodes / f'images/{name}.png') as image:
      shape = image.size[::-1]
    votes = heatmap.votes(said.positive(), shape)
    area = sum(
      sum(_area(np.array(ring)) for ring in f['geometry']['coordinates'])
      for f in features['features']
    )
    assert abs(area - (votes >= threshold).sum()) < 0.02 * area + 20
    assert (area > 0) == (row['decision'] == 'positive')


def _area(ring):
  """Signed, so that holes count against their area."""
  x, y = ring.T
  return 0.5 * (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()


def test_pictures_and_tables_are_written(done):
  for name in ('table_2', 'secondary', 'table_3', 'windows'):
    text = (done / f'{name}.md').read_text()
    assert 'Tang et al. 2022 (their data)' in text or name == 'windows'
  assert (done / 'figures/scores.png').exists()
  assert len(list((done / 'figures').glob('n*.png'))) == 2
  maps = {path.stem for path in (done / 'maps').glob('*.npz')}
  assert maps == {row['image_id'] for row in read(done / 'images.csv')}


def test_a_finished_run_is_read_and_other_settings_are_refused(
  done, nodes, capsys
):
  before = {p: p.stat().st_mtime_ns for p in (done / 'maps').iterdir()}
  table = (done / 'table_3.md').read_text()
  asked = arguments(nodes, done.parent)
  run(asked)
  assert (done / 'table_3.md').read_text() == table
  assert {p: p.stat().st_mtime_ns for p in (done / 'maps').iterdir()} == before
  with flagsaver.flagsaver(**asked | {'epochs': 11}):
    with pytest.raises(SystemExit, match='epochs: 12 before, 11 now'):
      two_step.main(['two_step'])


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ({'masks_dir': None}, 'need --images_dir, --masks_dir and --images_csv'),
    ({'tiles_zip': 'a.zip'}, 'tiles need both --tiles_zip and --tiles_csv'),
    (
      {'tiles_zip': 'a.zip', 'tiles_csv': 'a.csv'},
      'images and tiles exclude each other',
    ),
    ({'primaries': ['alexnet']}, '--primaries=alexnet: there are'),
    ({'positive': 'x'}, '--positive goes with --tiles_zip'),
    (
      {'primaries': ['googlenet', 'resnet50'], 'weights': 'a.pth'},
      '--weights=a.pth is one file, but googlenet, resnet50, ',
    ),
    (
      {
        'primaries': ['googlenet'],
        'secondary': 'mobilenet_v2',
        'weights': 'a.pth',
      },
      'is one file, but googlenet, mobilenet_v2 are trained',
    ),
    (
      {'primaries': ['googlenet'], 'weights': 'googlenet=a.pth,resnet50=b.pth'},
      '--weights: resnet50 would not be trained, only googlenet',
    ),
    ({'images_csv': 'no.csv'}, 'no.csv: cannot be read as CSV'),
  ],
)
def test_wrong_flags_end_in_one_message(nodes, tmp_path, asked, message):
  with flagsaver.flagsaver(**arguments(nodes, tmp_path) | asked):
    with pytest.raises(SystemExit, match=message):
      two_step.main(['two_step'])
  assert not (tmp_path / 'two_step_s2023').exists()


def test_flags_that_nothing_would_read_are_refused(nodes, tmp_path):
  tiles = {'tiles_zip': 'a.zip', 'tiles_csv': 'a.csv'}
  for asked in (
    tiles | {'patches': 20},
    tiles | {'split_patches': 'patch'},
    {'mpp': 0.25},
  ):
    with flagsaver.flagsaver(**asked, results_dir=str(tmp_path)):
      with pytest.raises(SystemExit, match=f'--{list(asked)[-1]} goes with'):
        two_step.main(['two_step'])


def test_a_check_draws_and_splits_patches(nodes, tmp_path, capsys):
  with flagsaver.flagsaver(**arguments(nodes, tmp_path), check=True):
    with pytest.raises(SystemExit) as done:
      two_step.main(['two_step'])
  assert done.value.code == 0 and 'check: 0 problems' in capsys.readouterr().out
  table = (nodes / 'images.csv').read_text().splitlines()
  few = tmp_path / 'few.csv'
  few.write_text('\n'.join([*table[:3], *table[-2:]]))  # One to train on.
  asked = arguments(nodes, tmp_path) | {'images_csv': str(few), 'check': True}
  with flagsaver.flagsaver(**asked), pytest.raises(SystemExit) as done:
    two_step.main(['two_step'])
  assert done.value.code == 1
  assert 'problem: ' in (out := capsys.readouterr().out) and 'p0' in out


def test_patches_hold_what_their_class_says(nodes):
  images = node_images.load(
    nodes / 'images', nodes / 'masks', nodes / 'images.csv'
  )
  patches = two_step_patches.draw(images, 50, seed=1)
  assert np.bincount(patches.label).tolist() == [50, 50]
  test = set(images.patient[images.test])
  assert not test & set(patches.group.tolist())
  for i, (x, y) in enumerate(patches.xy):
    row = images.id.tolist().index(patches.id[i].rsplit('_', 2)[0])
    image, mask = images.read(row)
    window = np.s_[y : y + 40, x : x + 40]
    np.testing.assert_array_equal(patches.read(i), image[window])
    inside = mask[window].sum()
    assert inside >= 100 if patches.label[i] else inside == 0
    assert tissue.glass(image, 1.0)[window].mean() <= 0.5
  again = two_step_patches.draw(images, 50, seed=1)
  assert again.id.tolist() == patches.id.tolist()
  other = two_step_patches.draw(images, 50, seed=2)
  assert other.id.tolist() != patches.id.tolist()
  train, val = two_step_patches.split(patches, 'patient', 0)
  assert not set(train.group) & set(val.group)
  train, val = two_step_patches.split(patches, 'patch', 0)
  assert (len(train), len(val)) == (70, 30)
  assert set(train.group) & set(val.group)


def test_flags_have_help():
  assert all(
    flag.help for flag in flags.FLAGS.get_key_flags_for_module(two_step)
  )
