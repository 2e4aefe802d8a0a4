"""The two-step detector of node images, from end to end on coloured discs."""

import collections
import csv
import json

import numpy as np
from PIL import Image
import pytest
from two_step_networks import ALIKE, TISSUE, TUMOUR, run

from data import node_images, tissue
from experiments import two_step as script
from experiments.studies import node_images as study, two_step
from kmil_jax import heatmap

ZIPPED = '--tiles_zip=a.zip --tiles_csv=a.csv'


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
      image[mask] = TUMOUR if positive else ALIKE
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


def flags(nodes):
  return [
    f'--images_dir={nodes / "images"}',
    f'--masks_dir={nodes / "masks"}',
    f'--images_csv={nodes / "images.csv"}',
    '--patches=80',
    '--batch=16',
    '--epochs=12',
    '--lr=0.02',
    '--pictures=2',
    '--primaries=googlenet',
  ]


@pytest.fixture(scope='module')
def done(nodes, tmp_path_factory):
  """The results folder."""
  return run(tmp_path_factory.mktemp('results'), *flags(nodes))


def read(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def bar(done):
  """The threshold of two steps."""
  rows = read(done / 'table_3.csv')
  mine = lambda r: (r['rule'], r['from']) == (two_step.TWO, 'here')
  [value] = {float(row['threshold']) for row in rows if mine(row)}
  return value


def test_the_second_step_cuts_false_positives_at_equal_sensitivity(done):
  rows = read(done / 'windows.csv')
  here = {row['rule']: row for row in rows if row['from'] == 'here'}
  number = lambda rule, name: float(here[rule][name])
  raised, two, wrong = two_step.RAISED, two_step.TWO, 'false positives'
  assert number(two, 'sensitivity') > 50
  assert number(raised, 'sensitivity') >= number(two, 'sensitivity')
  assert number(raised, wrong) > 40
  assert number(two, wrong) < 0.4 * number(raised, wrong)
  hits, total = map(int, here[two]['hits'].split(', ')[1].split('/'))
  assert total - hits == number(two, wrong)


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
  threshold = study.threshold(two[development], positive[development])
  said = [row['decision'] == 'positive' for row in rows]
  assert said == (two >= threshold).tolist()
  assert bar(done) == threshold / 16
  assert (said == positive).mean() > 0.8


def test_outlines_are_where_the_tumour_is(done, nodes):
  for row in read(done / 'images.csv'):
    name = row['image_id']
    features = json.loads((done / f'outlines/{name}.json').read_text())
    assert features['type'] == 'FeatureCollection'
    with np.load(done / f'maps/{name}.npz') as held:
      said = held['secondary'] >= 0.5
      assert (np.isfinite(held['secondary']) == (held['primary'] >= 0.5)).all()
    with Image.open(nodes / f'images/{name}.png') as image:
      votes = heatmap.votes(said, image.size[::-1])
    area = sum(
      sum(_area(np.array(ring)) for ring in f['geometry']['coordinates'])
      for f in features['features']
    )
    assert abs(area - (votes >= bar(done)).sum()) < 0.02 * area + 20
    assert (area > 0) == (row['decision'] == 'positive')


def _area(ring):
  """Signed, so that holes count against their area."""
  x, y = ring.T
  return 0.5 * (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()


def test_pictures_and_tables_are_written(done):
  text = (done / 'report.md').read_text()
  assert 'Tang et al. 2022 (their data), section 3.3' in text
  published = {'depth': '22', 'accuracy (%)': '97.3', 'AUROC': '0.9957'}
  assert published.items() <= read(done / 'table_2.csv')[1].items()
  drawn = {path.stem for path in (done / 'figures').iterdir()}
  assert {'scores', 'secondary_roc'} < drawn and len(drawn) == 4


def test_a_finished_run_is_read_and_other_settings_are_refused(done, nodes):
  files = [*(done / 'maps').iterdir(), *done.rglob('model.safetensors')]
  before = {p: p.stat().st_mtime_ns for p in files}
  table = (done / 'table_3.md').read_text()
  run(done.parent, *flags(nodes))
  assert (done / 'table_3.md').read_text() == table
  assert {p: p.stat().st_mtime_ns for p in files} == before
  with pytest.raises(SystemExit, match='epochs: 12 before, 11 now'):
    run(done.parent, *flags(nodes), '--epochs=11')


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ('--masks_dir=a', '--masks_dir requires --images_dir'),
    ('--images_dir=a', '--images_dir requires --masks_dir'),
    ('--tiles_zip=a.zip', '--tiles_zip requires --tiles_csv'),
    (f'{ZIPPED} --images_dir=a', '--images_dir has no effect with --tiles_zip'),
    (f'{ZIPPED} --patches=20', '--patches has no effect with --tiles_zip'),
    ('--mpp=0.25', '--image_mpp requires --images_dir'),
    ('--positive=x', '--positive requires --tiles_zip'),
    ('--primaries=alexnet', 'alexnet'),
    ('--primaries=googlenet --weights=a.pth', 'googlenet, mobilenet_v2. Give'),
    (f'{ZIPPED} --weights=googlenet=a.pth', 'resnet18, mobilenet_v2. Give'),
    ('--images_dir=a --masks_dir=a --images_csv=no.csv', 'no.csv: cannot be'),
  ],
)
def test_wrong_flags_end_in_one_message(tmp_path, asked, message):
  with pytest.raises(SystemExit, match=message):
    run(tmp_path, *asked.split())
  assert not (tmp_path / 'two_step_s2023').exists()


def test_a_check_draws_and_splits_patches(nodes, tmp_path, capsys):
  with pytest.raises(SystemExit) as ended:
    run(tmp_path, *flags(nodes), '--check')
  assert ended.value.code == 0
  assert 'check: 0 problems' in capsys.readouterr().out
  table = (nodes / 'images.csv').read_text().splitlines()
  few = tmp_path / 'few.csv'
  few.write_text('\n'.join([*table[:3], *table[-2:]]))  # One to train on.
  with pytest.raises(SystemExit, match='p0'):
    run(tmp_path, *flags(nodes), f'--images_csv={few}', '--check')


def test_the_recipe_is_the_papers():
  recipe = script.PAPER.recipe['training']
  assert (recipe.learning_rate, recipe.batch, recipe.epochs) == (1e-3, 128, 30)
  assert (recipe.augment, recipe.schedule) == ('tang', 'decade')
  assert script.PAPER.recipe['design'].patches == 16_000


def test_the_first_network_is_among_those_compared():
  names = lambda *asked: two_step.Networks(*asked).complete().primaries
  assert names(None, None) is None
  assert names(None, 'c') == ('c',)
  assert names(('d', 'c'), 'c') == ('d', 'c')
  assert names(('d',), 'c') == ('d', 'c')


def test_patches_hold_what_their_class_says(nodes):
  images = node_images.load(
    nodes / 'images', nodes / 'masks', nodes / 'images.csv'
  )
  patches = study.draw(images, 50, 1, 100)
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
  assert study.draw(images, 50, 1, 100).id.tolist() == patches.id.tolist()
  assert study.draw(images, 50, 2, 100).id.tolist() != patches.id.tolist()


class Spy:
  """A network that takes for tumour what is bright, and counts what it sees."""

  def __init__(self, least):
    self.least, self.seen = least, collections.Counter()

  def predict(self, tiles, batch):
    corners = tiles.load(np.arange(len(tiles)))[:, 0, 0]
    self.seen.update(map(tuple, corners.tolist()))
    prob = np.where(corners[:, 2] >= self.least, 0.9, 0.1)
    return np.stack([1 - prob, prob], 1), None


def test_each_window_is_evaluated_once_and_the_second_where_the_first_fires():
  shape = (90, 110)
  rng = np.random.default_rng(0)
  y, x = np.indices(shape)
  image = np.stack([y, x, rng.integers(0, 256, shape)], -1).astype(np.uint8)
  look = rng.random(heatmap.grid(shape)) < 0.7
  networks = Spy(100), Spy(200)
  first, second = study.scan(image, networks, look)
  corners = image[:51:10, :71:10]
  bright = corners[..., 2]
  for network, asked, prob in (
    (networks[0], look, first),
    (networks[1], look & (bright >= 100), second),
  ):
    want = collections.Counter(map(tuple, corners[asked].tolist()))
    assert network.seen == want and max(want.values()) == 1
    np.testing.assert_array_equal(np.isfinite(prob), asked)
    assert ((prob >= 0.5) == (asked & (bright >= network.least))).all()


def test_the_threshold_is_the_smallest_of_the_best():
  rng = np.random.default_rng(0)
  for _ in range(50):
    score, positive = rng.integers(0, 17, 12), np.arange(12) < 5
    value = [
      (score[positive] >= k).mean() + (score[~positive] < k).mean()
      for k in range(1, 17)
    ]
    best = [k for k in range(1, 17) if np.isclose(value[k - 1], max(value))]
    assert study.threshold(score, positive) == best[0]
  # The paper's scores give its threshold.
  positive = np.arange(85) < 38
  votes = study.threshold(np.where(positive, 15, 10), positive)
  assert votes / study.VOTES == 0.6875


def test_image_scores_are_the_highest_votes():
  prob = np.random.default_rng(0).random((7, 9)).astype(np.float32)
  votes = heatmap.votes(prob >= 0.5, (100, 125))
  assert study.most_votes(prob) == round(votes.max() * 16)
  assert study.most_votes(0 * prob) == 0


def test_outlines_run_around_areas_and_holes():
  inside = np.zeros((30, 40), bool)
  inside[5:20, 10:30] = True
  inside[10:14, 15:20] = False  # A hole.
  inside[25:, 36:] = True  # At the border.
  first, second = sorted(study.outlines(inside), key=len)[::-1]
  assert [len(first), len(second)] == [2, 1]
  for ring in (*first, *second):
    np.testing.assert_array_equal(ring[0], ring[-1])
  outer, hole = first
  assert outer.min(0).tolist() == [10, 5] and outer.max(0).tolist() == [30, 20]
  assert hole.min(0).tolist() == [15, 10] and hole.max(0).tolist() == [20, 14]
  assert second[0].max(0).tolist() == [40, 30]
  assert study.outlines(inside & False) == []
