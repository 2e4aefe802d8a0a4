"""Hard negatives: tiles, what is trained and tested on what, the tables."""

import csv
import itertools
import re

import numpy as np
from PIL import Image
import pytest

from data import labelled_tiles
from data.labelled_tiles import TileError
from data.splits import PARTS
from experiments import hard_negatives
from experiments.evaluation.tables import HERE, INTERVAL, Table
from experiments.patches import tiles as patch_tiles
from experiments.patches.study import File, Study
from experiments.patches.training import Training
from experiments.run import results
from experiments.studies import hard_negatives as hn, mined_pictures
from experiments.studies.hard_negatives import Data, Mining, Setting
from kmil_jax.types import PatchRecipe

NOWHERE = {'tiles_dir': None, 'pool_dir': None}


def save(path, size=16):
  """Writes a tile that no other path has."""
  pixels = np.random.default_rng([*path.name.encode()])
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels.integers(0, 256, (size, size, 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
  """Ten annotated patients with four positives of ten, and a pool of four."""
  for patient, i in itertools.product(range(10), range(10)):
    save(tmp_path / 'tiles' / ('pos', 'neg')[i > 3] / f'p{patient}_{i}.png')
  for patient, i in itertools.product(range(4), range(25)):
    save(tmp_path / f'pool/w{patient}_{i}.png')
  return tmp_path


def opened(root, **about):
  about = {'tiles_dir': root / 'tiles', 'pool_dir': root / 'pool'} | about
  mining = Mining(alpha=2, fractions=(0.5, 0.25, 0.25))
  return hn.open_material(Data(**about), mining, 0, root)


def rows_of(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def test_more_than_the_pool_holds_is_refused_at_once(root, capsys):
  where = {'tiles_dir': 'tiles', 'pool_dir': 'pool', 'results_dir': ''}
  paths = [f'--{flag}={root / name}' for flag, name in where.items()]
  (root / 'tiles/neg/p0_1.bmp').write_text('')
  for flag in [], ['--check']:
    with pytest.raises(SystemExit) as end:
      hard_negatives.main(['hard_negatives', *paths, '--alpha=1000', *flag])
    printed = capsys.readouterr().out
    assert re.search(r'warning: .*left out.*: p0_1\.bmp\. Convert', printed)
  assert end.value.code == 1 and '1 problem, 1 warning;' in printed
  assert 'problem: alpha=1000 is more than the 100 tiles' in printed
  assert not list(root.rglob('config.json'))


def test_folders_are_annotated_tiles_and_a_pool_of_negatives(root, monkeypatch):
  found = opened(root, positive='neg')
  sets = found.sets
  assert sets['pool'].classes == sets['test'].classes == ('pos', 'neg')
  assert not sets['pool'].label.any() and found.annotated.label.sum() == 60
  assert set(sets['pool'].group) == {f'w{i}' for i in range(4)}
  assert not set(sets['pool'].id) & set(found.annotated.id)
  assert not len(found.hard) and not found.is_phantom and not found.warnings
  content = (root / 'tiles/neg/p3_7.png').read_bytes()
  for name in ('tiles/neg/p3_8.png', 'pool/w1_2.png', 'tiles/pos/p5_0.png'):
    (root / name).write_bytes(content)
  for name in ('pool/w1_3.png', 'tiles/pos/p5_1.png'):  # Glass.
    Image.new('RGB', (16, 16), 'white').save(root / name)
  found = opened(root)
  [warning] = found.search()
  sets = found.annotated, found.sets['pool']
  monkeypatch.setattr(labelled_tiles, 'IN_MEMORY', 0)
  assert opened(root).search() == [warning]
  monkeypatch.setattr(type(sets[0]), 'load', None)  # Each is decoded once.
  assert patch_tiles.shared(sets) == [warning]
  assert warning.startswith('1 tiles are there under several patients, which')
  assert ': neg/p3_7.png and neg/p3_8.png and pos/p5_0.png. Keep' in warning


def test_a_prepared_pool_has_the_positive_class_that_was_asked_for(
  root, monkeypatch
):
  sets = {'tiles': drawn('p', groups=10, each=10, positives=4)}
  sets['pool'] = drawn('w', groups=4, each=25, positives=5)
  read = lambda folder, split: sets[folder.name]
  monkeypatch.setattr('data.dataset_tiles.from_tfds', read)
  for name in sets:
    (root / name / 'dataset_info.json').write_text('')
  for positive, negatives in (('pos', 20), ('neg', 5)):
    pool = opened(root, positive=positive).sets['pool']
    assert pool.classes[1] == positive and not pool.label.any()
    assert len(pool) == 4 * negatives


@pytest.mark.parametrize('name', ['p3_x.png', 'neg/p3_x.png', 'new/p3/x.png'])
def test_a_pool_of_annotated_patients_is_refused(root, name):
  save(root / 'pool' / name)
  with pytest.raises(TileError, match=r'patients of annotated tiles.*: p3\.'):
    opened(root)


def test_the_last_class_is_positive_in_capitals_too(root):
  (root / 'tiles/pos').rename(root / 'tiles/Tumour')
  found = opened(root)
  assert found.annotated.classes == ('neg', 'Tumour')
  assert found.annotated.label.sum() == 40
  assert found.note.endswith('; Tumour is positive')


def test_patients_that_are_spelled_apart_in_the_pool_are_warned_of(root):
  save(root / 'pool/P03/x.png')
  (warning,) = opened(root).warnings
  assert 'cases P03 and p3 look like one patient' in warning


def test_a_pool_is_of_the_size_of_the_annotated_tiles(root):
  for path in (root / 'pool').iterdir():
    save(path, size=12)
  with pytest.raises(TileError, match='pool: sets of different size'):
    opened(root)


def test_of_a_zip_file_the_negatives_of_some_patients_are_the_pool(
  tmp_path, monkeypatch
):
  tiles = drawn('p', groups=10, each=4, positives=2)
  monkeypatch.setattr(hn.tile_sources, 'from_zip', lambda *_: tiles)
  where = {'tiles_zip': 'a', 'tiles_csv': 'b', **NOWHERE}
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
  found = opened(tmp_path, **NOWHERE)
  tiles, pool = found.annotated, found.sets['pool']
  assert found.is_phantom and len(tiles) == len(pool) == 120
  assert not set(tiles.group) & set(pool.group) and not pool.label.any()
  hard = np.isin(tiles.id, found.hard)
  assert hard.any() and not (hard & (tiles.label == 1)).any()
  monkeypatch.setattr(hn.invasion, 'make', None)
  assert opened(tmp_path, **NOWHERE).inputs == found.inputs


def drawn(name, *, groups, each, positives):
  """Tiles of 2 x 2 pixels; the first of each group are positive."""
  rng = np.random.default_rng([*name.encode()])
  n = groups * each
  return labelled_tiles.from_arrays(
    rng.integers(0, 256, (n, 2, 2, 3), np.uint8),
    np.tile(np.arange(each) < positives, groups),
    np.repeat([f'{name}{g}' for g in range(groups)], each),
    ('neg', 'pos'),
    ids=[f'{name}/{i}' for i in range(n)],
  )


class Stub:
  """Calls dark tiles positive; features are the pixels."""

  recipe = PatchRecipe(input_size=96)

  def predict(self, tiles):
    pixels = tiles.load(np.arange(len(tiles))).reshape(len(tiles), -1)
    prob = np.where(tiles.label == 1, 0.9, 1 - pixels.mean(1) / 255)
    return np.stack([1 - prob, prob], 1), pixels.astype(np.float32)

  def grad_cam(self, tiles, target, layer):
    assert layer is None and (target == 1).all()
    return np.zeros((len(tiles), 2, 2))


ANNOTATED = drawn('case', groups=12, each=10, positives=3)
POOL = drawn('pool', groups=6, each=50, positives=0)


@pytest.fixture
def begin(tmp_path, monkeypatch):
  """Begins a study: itself, its material, and its trainings by folder."""

  def begin(*, hard=(), **changes):
    trainings = {}

    def train(folder, name, *, train, val, seed, **about):
      assert folder.path == tmp_path
      trainings.setdefault(name, []).append((train, val, seed))
      return Stub()

    monkeypatch.setattr(hn.training, 'train', train)
    split = patch_tiles.split(ANNOTATED, (0.5, 0.25, 0.25), seed=0)
    sets = dict(zip(PARTS, map(ANNOTATED.take, split), strict=True))
    sets['pool'] = POOL
    material = hn.TilesAndPool(ANNOTATED, sets, np.array(hard, str))
    mining = Mining(alpha=3, seeds=2, **{'threshold': 0.55} | changes)
    recipe = {'mining': mining, 'resnet18': None}
    study = Study(results.Folder(tmp_path), recipe, seed=0)
    return study, material, trainings

  return begin


@pytest.fixture
def models(begin):
  study, material, trainings = begin()
  found = hn.Models(study, material, Training())
  found.trainings = trainings
  return found


def ids(tiles):
  return set(tiles.id.tolist())


def test_what_is_mined_joins_the_training_part_alone(models, tmp_path):
  parts = [ids(models.sets[part]) for part in PARTS]
  assert set.union(*parts) == ids(ANNOTATED)
  groups = [set(models.sets[part].group) for part in PARTS]
  assert sum(map(len, groups)) == len(set.union(*groups))
  for choice, alpha in (('weak', 0), ('l2', 2), ('cosine', 9), ('random', 9)):
    setting = Setting(0, choice, alpha)
    assert len(models.prob(setting)) == len(parts[2])
    tested = rows_of(tmp_path / setting.name / 'predictions.csv')
    assert {row['tile'] for row in tested} == parts[2]
    ((train, val, _),) = models.trainings[setting.name]
    mined = set()
    if choice != 'weak':
      mined = set(POOL.id[models.mined(setting).index])
      assert mined
    assert ids(val) == parts[1] and ids(train) == parts[0] | mined
    assert not train.label[np.isin(train.id, POOL.id)].any()


def test_false_positives_of_validation_mine_their_neighbours(models, tmp_path):
  setting, val = Setting(0, 'l2', 4), models.sets['val']
  prob, features = Stub().predict(val)
  wrong = np.flatnonzero((val.label == 0) & (prob[:, 1] >= 0.55))
  np.testing.assert_array_equal(models.searched(setting.weak)[0], wrong)
  assert 0 < len(wrong) < (val.label == 0).sum()
  of_pool = Stub().predict(POOL)[1]
  away = features[wrong][:, None] - of_pool[None]
  order = np.argsort(np.linalg.norm(away, axis=2), 1)
  want = set(POOL.id[order[:, :4]].ravel().tolist())
  found = models.scores(setting)
  assert (found['mined'], found['false_positives']) == (len(want), len(wrong))
  # The control has as many, and others.
  control = Setting(0, 'random', 4)
  assert models.scores(control)['mined'] == len(want)
  assert set(POOL.id[models.mined(control).index]) != want
  # The record names both ends of every choice.
  rows = rows_of(tmp_path / setting.name / 'mined.csv')
  assert {row['tile'] for row in rows} == want
  assert {row['false_positive'] for row in rows} <= set(val.id[wrong])
  # The pool's features are computed once.
  path = tmp_path / setting.weak.name / 'pool_features.npy'
  np.testing.assert_array_equal(np.load(path), of_pool)
  np.save(path, of_pool + 1)
  models.searched.cache_clear()
  again = models
  assert again.searched(setting.weak)[2][0, 0] == of_pool[0, 0] + 1


def test_the_annotated_part_is_reduced_before_mined_tiles_join(models):
  for of, want in (('all', [30, 30]), ('positives', [100, 30])):
    setting = Setting(0, 'l2', 3, share=30, of=of)
    models.prob(setting)
    weak, strong = (
      models.trainings[s.name][0][0] for s in (setting.weak, setting)
    )
    assert ids(strong) == ids(weak) | set(POOL.id[models.mined(setting).index])
    for c, per_cent in enumerate(want):
      whole = (models.sets['train'].label == c).sum()
      assert (weak.label == c).sum() == round(whole * per_cent / 100)
  shares = [
    ids(hn.reduced(ANNOTATED, Setting(0, share=s), 0)) for s in (1, 30, 70, 100)
  ]
  assert all(a < b for a, b in itertools.pairwise(shares))
  assert len(shares[0]) == 2  # One of each class.


def test_every_model_of_all_tables_is_trained_once(begin):
  study, material, trainings = begin(table=(2, 3, 4, 5), hard=POOL.id[:150])
  found = list(hn.stages(study, material, Training()))
  # Per seed: 9 weak ones; l2 at 3 and at the paper's 5 alphas, cosine, random;
  # and l2 at 4 shares of all and of the positives.
  assert len(trainings) == 2 * (9 + 6 + 2 + 8)
  tables = {one.name: one for one in found if isinstance(one, Table)}
  assert list(tables) == [*('table_2', 'table_3', 'table_4', 'table_5')]
  files = {one.name: one.content for one in found if isinstance(one, File)}
  header, *rows = files['models.csv']
  every = [dict(zip(header, row, strict=True)) for row in rows]
  assert len(every) == len(trainings)
  for name in ('figure_4', 'mined', 'tsne', 'grad_cam'):
    study.folder.write('drawn.png', files[f'figures/{name}.png'])
    with Image.open(study.folder.at('drawn.png')) as image:
      assert np.asarray(image.convert('L')).std() > 5
  strong = next(one for one in every if one['choice'] == 'l2')
  assert 0 < float(strong['mined_hard']) < 1 and strong['auroc_hard'] is None
  # The paper's lines, and ours: weak, strong and their relative change.
  lines = {row.labels: row.lines for row in tables['table_4'].rows}
  assert list(lines) == [
    (s, kind) for s in hn.SHARES for kind in ('weak', 'strong', 'delta')
  ]
  here, std, paper, paper_std = lines[70, 'strong'].values()
  assert paper[:5] == [0.9563, 0.9178, 0.9171, 0.8083, 0.9448]
  assert paper_std[:5] == [0.01, 0.01, 0.02, 0.07, 0.01]
  auroc = [
    float(one['auroc'])
    for one in every
    if (one['share'], one['of'], one['choice']) == (70, 'all', 'l2')
  ]
  assert here[0] == pytest.approx(np.mean(auroc), abs=1e-6)
  assert std[0] == pytest.approx(np.std(auroc, ddof=1), abs=1e-6)
  weak, delta = lines[70, 'weak'][HERE], lines[70, 'delta'][HERE]
  assert delta[0] == pytest.approx(here[0] / weak[0] - 1)


def test_without_false_positives_the_strong_model_is_the_weak_one(begin):
  study, material, trainings = begin(threshold=0.999)
  found = list(hn.stages(study, material, Training()))
  assert sorted(trainings) == [f'seed_{i}/all_100/weak' for i in (0, 1)]
  assert sum('Lower the threshold' in str(one) for one in found) == 2
  assert not [one for one in found if getattr(one, 'name', '').endswith('png')]
  (table,) = (one for one in found if getattr(one, 'name', '') == 'table_2')
  lines = {row.labels: row.lines[HERE] for row in table.rows}
  strong, weak = lines['l2', 'strong'], lines['l2', 'weak']
  # Weak models have false positives, which are listed with what they mine.
  assert strong[:-2] == weak[:-2] and strong[-2:] == [0, 0]
  assert np.isnan(weak[-2:]).all()
  assert 'auroc_hard' not in table.columns  # Nobody knows which are hard.


def test_features_that_do_not_vary_are_drawn():
  class Dead(Stub):
    def predict(self, tiles):
      prob, features = super().predict(tiles)
      return prob, 0 * features

  pair = {'weak': Stub(), 'dead': Dead()}
  drawing = mined_pictures.features(ANNOTATED, pair, 0.1)
  prob = Stub().predict(ANNOTATED)[0][:, 1]
  wrong = (ANNOTATED.label == 0) & (prob >= 0.1)  # As mining has them.
  for ax in drawing.axes:
    dots = np.concatenate([d.get_offsets() for d in ax.collections])
    assert np.isfinite(dots).all() and len(dots) == len(ANNOTATED)
    assert len(ax.collections[-1].get_offsets()) == wrong.sum()


def test_scores_know_both_thresholds_and_hard_tiles(models):
  test = models.sets['test']
  prob = np.resize([0.9, 0.3], len(test))  # Half of the positives.
  prob[test.label == 0] = np.resize([0.6, 0.2, 0.05], (test.label == 0).sum())
  models.prob, models.hard = lambda _: prob, (test.label == 0) & (prob == 0.6)
  high, share = (prob[test.label == 1] == 0.9).mean(), (test.label == 1).mean()
  wanted = {
    'sensitivity': high,
    'sensitivity_low': 1,
    'specificity': 2 / 3,
    'specificity_low': 1 / 3,
    'specificity_at': 2 / 3,
    'f1_micro': share * high + (1 - share) * 2 / 3,  # The accuracy.
    'auroc_hard': high,
  }
  values = models.scores(Setting(0))
  assert [*values] == [*hn.COLUMNS]
  assert {name: values[name] for name in wanted} == pytest.approx(wanted)


def test_differences_are_paired_by_seed(models):
  rng = np.random.default_rng(7)
  positive = models.sets['test'].label == 1
  noise = rng.normal(0, 0.2, (2, len(positive)))
  gain = {'weak': 0.1, 'l2': 0.4, 'cosine': 0.4, 'random': 0.4}
  models.prob = lambda s: noise[s.seed] + gain[s.choice] * positive
  models.mined = lambda s: hn.search.Mined(*np.zeros((3, 0), int))
  models.hard = ~positive & (np.arange(len(positive)) % 2 == 0)
  groups = hn._groups(2, models.mining, (0, 1))
  settings = [*itertools.chain(*groups.values())]

  def differences():
    pairs = settings + [s.weak for s in settings]
    rows = hn._table(2, groups, {s: models.scores(s) for s in pairs}, models)
    return {row.labels: row.lines for row in rows.rows[-2:]}

  before = differences()
  same, better = before['l2', 'minus random'], before['l2', 'minus weak']
  assert same[HERE][0] == 0 and np.isnan(same[INTERVAL][0]).all()
  low, high = better[INTERVAL][0]
  assert 0 < low < better[HERE][0] < high
  assert better[INTERVAL][1] is None  # Of AUROC alone.
  # Among positives and hard tiles alone, the others count for nothing.
  noise[:, ~positive & ~models.hard] += 5
  after = differences()['l2', 'minus weak']
  hard = list(hn.COLUMNS).index('auroc_hard')
  for line in (HERE, INTERVAL):
    assert after[line][hard] == better[line][hard]
    assert after[line][0] != better[line][0]
