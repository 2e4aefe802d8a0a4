"""Hard negatives: what is trained and tested on what, and the tables."""

import csv
import itertools

import numpy as np
import pytest

from data import labelled_tiles
from data.splits import PARTS
from experiments import papers
from experiments.evaluation.tables import HERE, INTERVAL, Table
from experiments.patches import tiles as patch_tiles
from experiments.patches.study import File, Study
from experiments.patches.training import Training
from experiments.run import results
from experiments.studies import hard_negatives as hn
from experiments.studies.hard_negatives import Mining, Setting

FRACTIONS = (0.5, 0.25, 0.25)


def tiles(name, *, groups, each, positives):
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

  def predict(self, tiles):
    pixels = tiles.load(np.arange(len(tiles))).reshape(len(tiles), -1)
    prob = np.where(tiles.label == 1, 0.9, 1 - pixels.mean(1) / 255)
    return np.stack([1 - prob, prob], 1), pixels.astype(np.float32)


ANNOTATED = tiles('case', groups=12, each=10, positives=3)
POOL = tiles('pool', groups=6, each=50, positives=0)


@pytest.fixture
def begin(tmp_path, monkeypatch):
  """Begins a study, whose trainings are listed by folder."""

  def begin(*, hard=(), **changes):
    done = {}

    def train(folder, name, *, train, val, seed, **about):
      assert folder.path == tmp_path
      done.setdefault(name, []).append((train, val, seed))
      return Stub()

    monkeypatch.setattr(hn.training, 'train', train)
    split = patch_tiles.split(ANNOTATED, FRACTIONS, seed=0)
    sets = dict(zip(PARTS, map(ANNOTATED.take, split), strict=True))
    sets['pool'] = POOL
    material = hn.Material(ANNOTATED, sets, np.array(hard, str), '', False)
    mining = Mining(alpha=3, seeds=2, **{'threshold': 0.55} | changes)
    recipe = {'mining': mining, 'resnet18': None}
    study = Study(results.Folder(tmp_path), recipe, seed=0)
    return study, material, done

  return begin


@pytest.fixture
def models(begin):
  """Returns models, and what was trained."""

  def models(**changes):
    study, material, done = begin(**changes)
    return hn.Models(study, material, Training()), done

  return models


def ids(tiles):
  return set(tiles.id.tolist())


def rows_of(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def test_what_is_mined_joins_the_training_part_alone(models, tmp_path):
  made, done = models()
  parts = [ids(made.sets[part]) for part in PARTS]
  assert set.union(*parts) == ids(ANNOTATED)
  groups = [set(made.sets[part].group) for part in PARTS]
  assert sum(map(len, groups)) == len(set.union(*groups))
  for choice, alpha in (('weak', 0), ('l2', 2), ('cosine', 9), ('random', 9)):
    setting = Setting(0, choice, alpha)
    assert len(made.prob(setting)) == len(parts[2])
    tested = rows_of(tmp_path / setting.name / 'predictions.csv')
    assert {row['tile'] for row in tested} == parts[2]
    ((train, val, _),) = done[setting.name]
    mined = set()
    if choice != 'weak':
      mined = set(POOL.id[made.mined(setting).index])
      assert mined
    assert ids(val) == parts[1] and ids(train) == parts[0] | mined
    assert not train.label[np.isin(train.id, POOL.id)].any()


def test_false_positives_of_validation_mine_their_neighbours(models, tmp_path):
  made, _ = models()
  setting, val = Setting(0, 'l2', 4), made.sets['val']
  prob, features = Stub().predict(val)
  wrong = np.flatnonzero((val.label == 0) & (prob[:, 1] >= 0.55))
  np.testing.assert_array_equal(made.searched(setting.weak)[0], wrong)
  assert 0 < len(wrong) < (val.label == 0).sum()
  away = features[wrong][:, None] - Stub().predict(POOL)[1][None]
  order = np.argsort(np.linalg.norm(away, axis=2), 1)
  want = set(POOL.id[order[:, :4]].ravel().tolist())
  found = made.scores(setting)
  assert (found['mined'], found['false_positives']) == (len(want), len(wrong))
  # The control has as many, and others.
  control = Setting(0, 'random', 4)
  assert made.scores(control)['mined'] == len(want)
  assert set(POOL.id[made.mined(control).index]) != want
  # The record names both ends of every choice.
  rows = rows_of(tmp_path / setting.name / 'mined.csv')
  assert {row['tile'] for row in rows} == want
  assert {row['false_positive'] for row in rows} <= set(val.id[wrong])


def test_the_annotated_part_is_reduced_before_mined_tiles_join(models):
  made, done = models()
  for of, want in (('all', [30, 30]), ('positives', [100, 30])):
    setting = Setting(0, 'l2', 3, share=30, of=of)
    made.prob(setting)
    weak, strong = (done[s.name][0][0] for s in (setting.weak, setting))
    assert ids(strong) == ids(weak) | set(POOL.id[made.mined(setting).index])
    for c, per_cent in enumerate(want):
      whole = (made.sets['train'].label == c).sum()
      assert (weak.label == c).sum() == round(whole * per_cent / 100)
  shares = [
    ids(hn.reduced(ANNOTATED, Setting(0, share=s), 0)) for s in (1, 30, 70, 100)
  ]
  assert all(a < b for a, b in itertools.pairwise(shares))
  assert len(shares[0]) == 2  # One of each class.


def test_the_pools_features_are_computed_once(models, tmp_path):
  made, _ = models()
  held = np.array(made.searched(Setting(0))[2])
  np.testing.assert_array_equal(held, Stub().predict(POOL)[1])
  path = tmp_path / Setting(0).name / 'pool_features.npy'
  np.save(path, held + 1)
  again, _ = models()
  assert again.searched(Setting(0))[2][0, 0] == held[0, 0] + 1


def test_every_model_of_all_tables_is_trained_once(begin, monkeypatch):
  study, material, done = begin(table=(2, 3, 4, 5), hard=POOL.id[:150])
  for name in ('mined', 'features', 'grad_cam'):  # Stubs have no Grad-CAM.
    monkeypatch.setattr(hn.pictures, name, lambda *_: None)
  found = list(hn.stages(study, material, Training()))
  # Per seed: 9 weak ones; l2 at 3 and at the paper's 5 alphas, cosine, random;
  # and l2 at 4 shares of all and of the positives.
  assert len(done) == 2 * (9 + 6 + 2 + 8)
  tables = {one.name: one for one in found if isinstance(one, Table)}
  assert list(tables) == [*('table_2', 'table_3', 'table_4', 'table_5')]
  files = {one.name: one.content for one in found if isinstance(one, File)}
  names = 'figure_4', 'mined', 'tsne', 'grad_cam'
  assert [*files] == [
    *('summary.json', 'models.csv', *(f'figures/{n}.png' for n in names))
  ]
  assert len(files['summary.json']) == len(done)
  for cells, one in zip(
    files['models.csv'][1:], files['summary.json'], strict=True
  ):
    assert float(cells[5]) == pytest.approx(one['auroc'], abs=1e-6)
  strong = next(one for one in files['summary.json'] if one['choice'] == 'l2')
  assert 0 < strong['mined_hard'] < 1 and strong['auroc_hard'] is None
  # The paper's lines, and ours: weak, strong and their relative change.
  lines = {row.labels: row.lines for row in tables['table_4'].rows}
  assert list(lines) == [
    (s, kind) for s in hn.SHARES for kind in ('weak', 'strong', 'delta')
  ]
  here, std, paper, paper_std = lines[70, 'strong'].values()
  assert paper[:5] == [0.9563, 0.9178, 0.9171, 0.8083, 0.9448]
  assert paper_std[:5] == [0.01, 0.01, 0.02, 0.07, 0.01]
  auroc = [
    one['auroc']
    for one in files['summary.json']
    if (one['share'], one['of'], one['choice']) == (70, 'all', 'l2')
  ]
  assert here[0] == np.mean(auroc) and std[0] == np.std(auroc, ddof=1)
  weak, delta = lines[70, 'weak'][HERE], lines[70, 'delta'][HERE]
  assert delta[0] == pytest.approx(here[0] / weak[0] - 1)


def test_without_false_positives_the_strong_model_is_the_weak_one(begin):
  study, material, done = begin(threshold=0.999)
  found = list(hn.stages(study, material, Training()))
  assert sorted(done) == [f'seed_{i}/all_100/weak' for i in (0, 1)]
  assert sum('Lower the threshold' in str(one) for one in found) == 2
  assert not [one for one in found if getattr(one, 'name', '').endswith('png')]
  (table,) = (one for one in found if getattr(one, 'name', '') == 'table_2')
  lines = {row.labels: row.lines[HERE] for row in table.rows}
  assert lines['l2', 'strong'] == lines['l2', 'weak']
  assert 'auroc_hard' not in table.columns  # Nobody knows which are hard.


def test_the_papers_deltas_follow_from_its_rows():
  """Each is that of means that were rounded to four digits."""
  paper = papers.read('lee')
  count = 0
  for number in (2, 3, 4, 5):
    held = paper[f'table_{number}'].values
    for label in {label for label, _ in held}:
      weak, strong, delta = (
        np.array([*held[label, kind].values()])
        for kind in ('weak', 'strong', 'delta')
      )
      np.testing.assert_allclose(strong / weak - 1, delta, atol=4e-4)
      count += 1
  assert count == 17


def test_scores_know_both_thresholds_and_hard_tiles(models):
  made, _ = models()
  test = made.sets['test']
  prob = np.resize([0.9, 0.3], len(test))  # Half of the positives.
  prob[test.label == 0] = np.resize([0.6, 0.2, 0.05], (test.label == 0).sum())
  made.prob, made.hard = lambda _: prob, (test.label == 0) & (prob == 0.6)
  values = made.scores(Setting(0))
  assert [*values] == [*hn.COLUMNS]
  high = (prob[test.label == 1] == 0.9).mean()
  assert values['sensitivity'] == high and values['sensitivity_low'] == 1
  assert values['specificity'] == pytest.approx(2 / 3)
  assert values['specificity_low'] == pytest.approx(1 / 3)
  assert values['specificity_at'] == pytest.approx(2 / 3)
  share = (test.label == 1).mean()
  accuracy = share * high + (1 - share) * 2 / 3
  assert values['f1_micro'] == pytest.approx(accuracy)
  assert values['auroc_hard'] == pytest.approx(high)


def test_differences_are_paired_by_seed(models):
  made, _ = models()
  rng = np.random.default_rng(7)
  positive = made.sets['test'].label == 1
  noise = rng.normal(0, 0.2, (2, len(positive)))
  gain = {'weak': 0.1, 'l2': 0.4, 'cosine': 0.4, 'random': 0.4}
  made.prob = lambda s: noise[s.seed] + gain[s.choice] * positive
  made.mined = lambda s: hn.search.Mined(*np.zeros((3, 0), int))
  made.hard = ~positive & (np.arange(len(positive)) % 2 == 0)
  groups = hn._groups(2, made.mining, (0, 1))

  settings = [*itertools.chain(*groups.values())]

  def differences():
    found = {s: made.scores(s) for s in settings + [s.weak for s in settings]}
    rows = hn._table(2, groups, found, made).rows
    return {row.labels: row.lines for row in rows[-2:]}

  before = differences()
  same, better = before['l2', 'minus random'], before['l2', 'minus weak']
  assert same[HERE][0] == 0 and np.isnan(same[INTERVAL][0]).all()
  assert list(same) == list(better) == [HERE, 'std over models', INTERVAL]
  low, high = better[INTERVAL][0]
  assert 0 < low < better[HERE][0] < high
  assert better[INTERVAL][1] is None  # Of AUROC alone.
  # Among positives and hard tiles alone, the others count for nothing.
  noise[:, ~positive & ~made.hard] += 5
  after = differences()['l2', 'minus weak']
  hard = list(hn.COLUMNS).index('auroc_hard')
  for line in (HERE, INTERVAL):
    assert after[line][hard] == better[line][hard]
    assert after[line][0] != better[line][0]
