"""The two-step detector: on images of nodes, and on tiles of patients."""

import dataclasses
import itertools
import json
import pathlib
import types
from unittest import mock

import numpy as np
import pytest

from data import labelled_tiles, tile_sources, tissue
from data.labelled_tiles import TileError
from data.node_images import NodeImages
from experiments import two_step as script
from experiments.evaluation.tables import HERE
from experiments.patches import training
from experiments.patches.study import File, Study
from experiments.patches.training import Training
from experiments.run.results import Folder
from experiments.studies import node_images as nodes, two_step
from experiments.studies.two_step import Design, Networks, Tiles
from kmil_jax import heatmap, metrics
from kmil_jax.types import PatchRecipe

TISSUE, TUMOUR, ALIKE = (150, 110, 190), (220, 90, 120), (220, 150, 120)


class Spy:
  """A network with a known probability of tumour, which notes what it sees."""

  kept = types.MappingProxyType({'val_accuracy': 0.9, 'val_auroc': 0.8})
  variables = types.MappingProxyType({'params': {'w': np.zeros(7)}})

  def __init__(self, prob):
    self.prob = prob

  def predict(self, tiles):
    self.seen = tiles.load(np.arange(len(tiles)))
    prob = self.prob(self.seen.mean((1, 2)) / 255)
    return np.stack([1 - prob, prob], 1), None


# Red is high in tumour and what looks so; green is low in tumour.
RED, GREEN = (
  Spy(lambda rgb: rgb[:, 0] - 0.15),
  Spy(lambda rgb: 0.95 - rgb[:, 1]),
)


class Discs(NodeImages):
  """Images with tumour, a disc, and without, where a follicle looks like it."""

  def read(self, row):
    rng, shape = np.random.default_rng(row), (110, 120 + 10 * (row // 2))
    y, x = np.indices(shape) - rng.uniform(40, 70, (2, 1, 1))
    disc = np.hypot(y, x) < rng.uniform(18, 26)
    image = np.full((*shape, 3), TISSUE, float)
    image[disc] = TUMOUR if self.positive[row] else ALIKE
    image += rng.normal(0, 6, image.shape)
    image[:, -30:] = 250  # Glass.
    return image.clip(0, 255).astype(np.uint8), disc & self.positive[row]


ROWS = np.arange(12)
IMAGES = Discs(
  ROWS.astype(str),
  np.char.add('p', (ROWS // 2).astype(str)),
  ROWS >= 8,
  ROWS % 2 == 0,
  (),
  (),
  mpp=0.5,
)
NODES = nodes.Nodes(IMAGES, (), 'patient', least=100, pictures=2, is_phantom=0)


@pytest.fixture(scope='module')
def decided(tmp_path_factory):
  """The results folder, and what is yielded, by name."""
  folder = Folder(tmp_path_factory.mktemp('results'))
  items = NODES.decisions(Study(folder, {}, 0), [RED, GREEN])
  return folder, {one.name: one for one in items}


def test_the_second_step_cuts_false_positives_at_equal_sensitivity(decided):
  rows = {row.labels[0]: row.lines[HERE] for row in decided[1]['windows'].rows}
  wrong, _, sensitivity, *_, hits = rows[two_step.TWO]
  raised, _, raised_sensitivity, *_ = rows[two_step.RAISED]
  assert raised_sensitivity >= sensitivity > 50
  assert raised > 40 and wrong < 0.4 * raised
  right, total = map(int, hits.split(', ')[1].split('/'))
  assert total - right == wrong


def test_images_are_decided_and_outlined_by_the_development_part(decided):
  folder, items = decided
  _, *rows = items['images.csv'].content
  assert {row[2] for row in rows} == {'test'}  # Nothing to be left out.
  rows += items['development_images.csv'].content[1:]
  rows.sort(key=lambda row: IMAGES.id.tolist().index(row[0]))
  names, patients, parts, labels, one, two, decisions = map(
    np.array, zip(*rows, strict=True)
  )
  assert (names == IMAGES.id).all() and (patients == IMAGES.patient).all()
  assert ((parts == 'test') == IMAGES.test).all()
  assert ((labels == 'positive') == IMAGES.positive).all()
  assert one.min() > 0.5  # Follicles look like tumour to the first network.
  development = ~IMAGES.test, IMAGES.positive[~IMAGES.test]
  bar = nodes.threshold(np.rint(16 * two)[development[0]], development[1]) / 16
  assert ((decisions == 'positive') == (two >= bar)).all()
  assert (decisions == labels).mean() > 0.8
  of_two = [r for r in items['table_3'].rows if r.labels[0] == two_step.TWO]
  assert {row.lines[HERE][0] for row in of_two} == {bar}
  assert {row.labels[1] for row in items['table_3'].rows} == {'test'}
  drawn = {name for name in items if name.startswith('figures/')}
  assert len(drawn) == 3 and 'figures/scores.png' in drawn
  for picture in drawn - {'figures/scores.png'}:
    (row,) = np.flatnonzero(names == pathlib.Path(picture).stem)
    verdict = 'right' if labels[row] == decisions[row] else 'WRONG'
    title = items[picture].content.axes[0].get_title()
    assert title.endswith(f'| predicted {decisions[row]} | {verdict}')
  for row, name in enumerate(names):
    with np.load(folder.at(f'maps/{name}.npz')) as maps:
      prob = maps['secondary']
      assert (np.isfinite(prob) == (maps['primary'] >= 0.5)).all()
    votes = heatmap.votes(prob >= 0.5, IMAGES.read(row)[1].shape)
    assert two[row] == votes.max()
    lesions = json.loads(items[f'outlines/{name}.json'].content)['features']
    rings = [one['geometry']['coordinates'] for one in lesions]
    wanted = nodes.outlines(votes >= bar)
    both = map(itertools.chain.from_iterable, (rings, wanted))
    for ring, in_microns in zip(*both, strict=True):
      np.testing.assert_allclose(ring, 2 * in_microns, atol=0.05)
    assert bool(rings) == (two[row] >= bar)


def test_maps_that_are_there_are_not_made_again(decided):
  folder, items = decided
  again = NODES.decisions(Study(folder, {}, 0), [None, None])
  assert next(again).csv() == items['table_3'].csv()


def test_maps_are_outlined_at_the_thresholds_of_their_rules(
  decided, monkeypatch
):
  bars, seen = iter((12, 5)), []
  monkeypatch.setattr(nodes, 'threshold', lambda *_: next(bars))
  overlay = lambda title, image, maps, **_: seen.append(maps.values())
  monkeypatch.setattr(nodes.pictures, 'overlay', overlay)
  list(NODES.decisions(Study(decided[0], {}, 0), [None, None]))
  assert len(seen) == 2
  for (heat, drawn), bar in zip(
    itertools.chain(*seen), (12, 5) * 2, strict=True
  ):
    wanted = nodes.outlines(heat >= bar / 16)
    assert [*map(len, drawn)] == [*map(len, wanted)]
    rings = [itertools.chain(*areas) for areas in (drawn, wanted)]
    assert all(map(np.array_equal, *rings))


def test_false_positives_are_of_negative_development_images():
  tiles = NODES.false_positives(RED)
  rows = np.array([name.split('_')[0] for name in tiles.id], int)
  assert set(rows) == {1, 3, 5, 7} and not tiles.label.any()
  assert (RED.prob(tiles.pixels.mean((1, 2)) / 255) >= 0.5).all()


def test_the_second_network_starts_from_the_firsts_weights(
  monkeypatch, tmp_path
):
  trained, patches = {}, nodes.draw(IMAGES, 40, 0, 100)
  train = lambda _, name, **about: trained.update({name: about}) or RED
  monkeypatch.setattr(training, 'train', train)
  kept = np.arange(80) % 4 > 0
  material = types.SimpleNamespace(
    parts=(patches.take(kept), patches.take(~kept)),
    split_by='patch',
    decisions=lambda *_: iter(()),
  )
  design, recipe = Design(('resnet18',)), PatchRecipe(learning_rate=1.0)
  recipes = {'design': design, 'training': recipe}
  study = Study(Folder(tmp_path), recipes, 0)
  own = f'{tmp_path}/primary_resnet18/model.safetensors'
  for few, weights, wanted in (
    (30, None, (own, 0.3)),
    (30, 'a.pth', ('a.pth', 1.0)),
    (19, None, None),
  ):
    trained.clear()
    mistakes = patches.take(np.arange(few))
    material.false_positives = lambda _, found=mistakes: found
    options = Training(weights=weights)
    list(two_step.stages(study, material, Networks(), options))
    second = trained.get('secondary_resnet18')
    assert wanted == (
      second and (second['options'].weights, second['recipe'].learning_rate)
    )


def test_the_recipe_is_the_papers():
  recipe = script.PAPER.recipe['training']
  assert (recipe.learning_rate, recipe.batch, recipe.epochs) == (1e-3, 128, 30)
  assert (recipe.augment, recipe.schedule) == ('tang', 'decade')
  assert script.PAPER.recipe['design'].patches == 16_000


def test_the_first_network_is_among_those_compared():
  names = lambda *asked: Networks(*asked).with_primary().primaries
  assert names(None, None) is None
  assert names(None, 'c') == ('c',)
  assert names(('d', 'c'), 'c') == ('d', 'c')
  assert names(('d',), 'c') == ('d', 'c')


def test_patches_hold_what_their_class_says():
  patches = nodes.draw(IMAGES, 50, 1, 100)
  assert np.bincount(patches.label).tolist() == [50, 50]
  test = set(IMAGES.patient[IMAGES.test])
  assert not test & set(patches.group.tolist())
  for i, name in enumerate(patches.id.tolist()):
    image, *place = name.rsplit('_', 2)
    row, (y, x) = IMAGES.id.tolist().index(image), map(int, place)
    image, mask = IMAGES.read(row)
    window = np.s_[y : y + 40, x : x + 40]
    np.testing.assert_array_equal(patches.read(i), image[window])
    inside = mask[window].sum()
    assert inside >= 100 if patches.label[i] else inside == 0
    assert tissue.glass(image, 1.0)[window].mean() <= 0.5
  assert nodes.draw(IMAGES, 50, 1, 100).id.tolist() == patches.id.tolist()
  assert nodes.draw(IMAGES, 50, 2, 100).id.tolist() != patches.id.tolist()


def test_each_window_is_evaluated_once_and_the_second_where_the_first_fires():
  image = np.random.default_rng(0).integers(0, 256, (90, 110, 3), np.uint8)
  some = np.random.default_rng(1).random((6, 8)) < 0.7
  networks = Spy(lambda rgb: rgb[:, 0]), Spy(lambda rgb: rgb[:, 1])
  maps = nodes.scan(image, networks, some)
  seen = some
  for network, prob in zip(networks, maps, strict=True):
    wanted = [image[y : y + 40, x : x + 40] for y, x in np.argwhere(seen) * 10]
    np.testing.assert_array_equal(network.seen, wanted)
    np.testing.assert_array_equal(np.isfinite(prob), seen)
    rgb = np.mean(wanted, (1, 2)) / 255
    np.testing.assert_allclose(prob[seen], network.prob(rgb), rtol=1e-6)
    seen = prob >= 0.5
  assert 0 < seen.sum() < some.sum()


def test_the_threshold_is_the_smallest_of_the_best():
  rng = np.random.default_rng(0)
  for _ in range(50):
    score, positive = rng.integers(0, 17, 12), np.arange(12) < 5
    value = [
      (score[positive] >= k).mean() + (score[~positive] < k).mean()
      for k in range(1, 17)
    ]
    best = [k for k in range(1, 17) if np.isclose(value[k - 1], max(value))]
    assert nodes.threshold(score, positive) == best[0]
  # 2/3 + 1/6 and 0 + 5/6 are equal, whatever their floating-point sums are.
  score = np.array([8, 12, 16, 0, 8, 8, 3, 8, 8])
  assert nodes.threshold(score, np.isin(np.arange(9), [3, 7, 8])) == 4
  # The paper's scores give its threshold.
  positive = np.arange(85) < 38
  votes = nodes.threshold(np.where(positive, 15, 10), positive)
  assert votes / nodes.VOTES == 0.6875


def test_outlines_run_around_areas_and_holes():
  inside = np.zeros((30, 40), bool)
  inside[5:20, 10:30] = True
  inside[10:14, 15:20] = False  # A hole.
  inside[25:, 36:] = True  # At the border.
  first, second = sorted(nodes.outlines(inside), key=len)[::-1]
  assert [len(first), len(second)] == [2, 1]
  for ring in (*first, *second):
    np.testing.assert_array_equal(ring[0], ring[-1])
  outer, hole = first
  assert outer.min(0).tolist() == [10, 5] and outer.max(0).tolist() == [30, 20]
  assert hole.min(0).tolist() == [15, 10] and hole.max(0).tolist() == [20, 14]
  assert second[0].max(0).tolist() == [40, 30]
  assert nodes.outlines(inside & False) == []


@pytest.fixture(scope='module')
def grids():
  """Ten patients of 6 x 5 tiles; some of the others look like tumour."""
  rng = np.random.default_rng(0)
  kind = rng.choice(3, 300, p=(0.45, 0.4, 0.15))
  colour = np.array([TISSUE, TUMOUR, ALIKE])[kind] + rng.normal(0, 12, (300, 3))
  pixels = colour[:, None, None] + rng.normal(0, 8, (300, 20, 20, 3))
  patient, place = np.divmod(np.arange(300), 30)
  tiles = labelled_tiles.from_arrays(
    pixels.clip(0, 255).astype(np.uint8),
    kind == 1,
    patient.astype(str),
    two_step.CLASSES,
  )
  xy = 20 * np.stack([place % 6, place // 6], 1) + 1
  return dataclasses.replace(tiles, xy=xy)


def test_tiles_of_unseen_patients_are_decided_on_in_two_steps(
  grids, monkeypatch
):
  monkeypatch.setattr(tile_sources, 'from_zip', lambda *_: grids)
  material = two_step.open_tiles(Tiles(positive=two_step.CLASSES[1]), 2023)
  false = material.false_positives(RED)
  assert 10 < len(false) < 60 and not false.label.any()
  assert not set(false.group) & set(material.split['test'].group)
  items = [*material.decisions(None, [RED, GREEN])]
  [table] = [one for one in items if getattr(one, 'name', '') == 'tiles']
  here = {row.labels[0]: row.lines[HERE] for row in table.rows}
  raised, two = here[two_step.RAISED], here[two_step.TWO]
  assert raised[1] >= two[1] > 90 and two[2] > raised[2] + 8
  # What is written of a patient follows from the tiles that are written.
  files = {one.name: one.content for one in items if isinstance(one, File)}
  _, *rows = files['test_tiles.csv']
  _, *patients = files['patients.csv']
  assert {row[1] for row in rows} == {name for name, *_ in patients}
  for name, *about, auroc in patients:
    label, prob = np.array([row[4:6] for row in rows if row[1] == name]).T
    assert about == [30, label.sum()]
    assert auroc == pytest.approx(metrics.auroc(label == 1, prob))
  # A patient without tumour has no AUROC to be in the median.
  test = material.split['test']
  test.label[test.group == patients[0][0]] = 0
  *_, note = material.decisions(None, [RED, GREEN])
  assert f'of the {len(patients) - 1} test patients' in note


@pytest.mark.parametrize(
  ('classes', 'positive', 'problem'),
  [
    ('ab', None, 'Give the one of tumour with --positive'),
    ('ab', 'c', '--positive=c: the classes are a, b'),
    ('abc', None, 'the classes a, b, c. Two are needed'),
    ('ab', 'a', ''),
    ('01', None, ''),
  ],
)
def test_which_label_is_tumour_is_never_guessed(
  grids, monkeypatch, classes, positive, problem
):
  tiles = dataclasses.replace(grids, classes=tuple(classes))
  monkeypatch.setattr(tile_sources, 'from_zip', lambda *_: tiles)
  if problem:
    with pytest.raises(TileError, match=problem):
      two_step.open_tiles(Tiles(positive=positive), 0)
  else:
    tumour = two_step.open_tiles(Tiles(positive=positive), 0).tiles.label == 1
    assert (tumour == (tiles.label == classes.index(positive or '1'))).all()


@pytest.mark.parametrize('by', ['patient', 'patch'])
def test_the_second_network_is_not_validated_on_what_the_first_saw(grids, by):
  row = np.arange(300)
  trains = row < 210 if by == 'patient' else row % 3 > 0
  first = grids.take(trains), grids.take(~trains)
  mistakes = dataclasses.replace(
    grids, id=np.char.add('mistake', grids.id), label=0 * grids.label
  )
  some = mistakes.take(row % 5 == 0)
  train, val = two_step.second_parts(some, first, by, 0)
  assert len(train) + len(val) == 2 * len(some)
  assert not {*val.id} & {*first[0].id}
  assert not {*train.id} & {*first[1].id}
  if by == 'patient':
    assert not {*val.group} & {*first[0].group}
  for part in (train, val):
    assert set(part.label) == {0, 1}
  # Of one patient, they are split by patch.
  train, val = two_step.second_parts(mistakes.take(row < 30), first, by, 0)
  assert [(p.label == 0).sum() for p in (train, val)] == [21, 9]
  assert not {*val.id} & {*first[0].id}


def test_the_raised_bar_finds_as_much_tumour():
  primary = np.array([0.9, 0.8, 0.7, 0.6, 0.95, 0.85, 0.55, np.nan])
  second = np.array([1, 1, 1, 0, 1, 0, 0, np.nan])
  tumour = np.arange(8) < 4
  found = two_step.rules([primary, second], tumour)
  raised, both = found[two_step.RAISED], found[two_step.TWO]
  assert (raised & tumour).sum() == (both & tumour).sum() == 3
  assert (raised & ~tumour).sum() == 2 and (both & ~tumour).sum() == 1
  assert found[two_step.ONE].sum() == 7
  nothing = two_step.rules([primary, 0 * primary], tumour)
  assert not nothing[two_step.RAISED].any()
  assert list(two_step.rules([primary], tumour)) == [two_step.ONE]


def test_one_step_finds_no_image_where_two_find_none():
  test, positive, of = np.arange(8) > 3, np.arange(8) % 2 > 0, mock.Mock()
  of.images = mock.Mock(test=test, positive=positive, patient=np.arange(8))
  one, two = 16 * positive, 16 * (positive & ~test)
  scores = {two_step.ONE: one, two_step.TWO: two}
  _, (table, _) = nodes.Nodes._table_3(of, scores)
  assert [row.lines[HERE][1] for row in table.rows] == [100, 0, 0]
