"""Scores of tiles: read, averaged over folds, scaled, painted."""

import drawn_maps
import h5py
from hypothesis import given, strategies as st
import numpy as np
import pytest

from data import features
from experiments.maps import overlay, tile_scores
from experiments.maps.tile_scores import MapError, UnplacedError

C = len(drawn_maps.CLASSES)


def read(folder, *arrays, **attributes):
  paths = {
    fold: drawn_maps.write_scores(folder, fold, 's', each, **attributes)
    for fold, each in enumerate(arrays)
  }
  return tile_scores.read(paths)


@pytest.fixture
def three(tmp_path):
  """Scores of three folds that drop some tiles, and what was written."""
  coords = drawn_maps.lattice()
  drawn = [drawn_maps.scores(coords, seed, kept=0.6) for seed in range(3)]
  return read(tmp_path, *drawn), drawn


def test_folds_count_only_for_tiles_that_they_keep(three):
  found, drawn = three
  prob = np.stack(
    [np.where(d['kept'][:, None], d['instance_prob'], np.nan) for d in drawn]
  )
  count = np.isfinite(prob[..., 0]).sum(0)
  assert set(count) == {0, 1, 2, 3}
  np.testing.assert_array_equal(found.shown, count > 0)
  for c in range(C):
    mean, deviation = found.probability(c), found.disagreement(c)
    np.testing.assert_allclose(
      mean[count > 0], np.nanmean(prob[:, count > 0, c], 0), rtol=1e-6
    )
    np.testing.assert_allclose(
      deviation[count > 1], np.nanstd(prob[:, count > 1, c], 0), atol=1e-7
    )
    assert np.isnan(mean[count == 0]).all()
    assert np.isnan(deviation[count < 2]).all()


def test_attention_is_a_multiple_of_an_equal_share(tmp_path):
  coords = drawn_maps.lattice()
  kept = np.arange(len(coords)) % 4 > 0
  equal = np.repeat(kept[:, None] / kept.sum(), C, 1)
  drawn = drawn_maps.scores(coords, 0) | {'kept': kept, 'attention': equal}
  multiples = read(tmp_path, drawn).multiples(1)
  np.testing.assert_allclose(multiples[kept], 1)
  assert np.isnan(multiples[~kept]).all()


def test_disagreement_fills_its_scale_and_no_more(tmp_path):
  coords = drawn_maps.lattice()
  sides = [
    drawn_maps.scores(coords, 0)
    | {'instance_prob': np.eye(C)[np.full(len(coords), c)]}
    for c in (0, 2)  # The slide is predicted to be of class 2.
  ]
  layer = overlay.layers(read(tmp_path, *sides), 'absolute')['disagreement']
  assert (layer.low, layer.high) == (0, 0.5)
  np.testing.assert_array_equal(layer.values, 0.5)


def test_the_absolute_scale_is_that_of_every_slide(tmp_path):
  coords = drawn_maps.lattice()
  flat, peaked = (drawn_maps.scores(coords, 0) for _ in range(2))
  peaked['attention'] = np.eye(len(coords))[:, :1]  # One tile takes all.
  one, two = (
    overlay.layers(read(tmp_path / name, drawn), 'absolute')
    for name, drawn in (('flat', flat), ('peaked', peaked))
  )
  ends = [
    [(x.key, x.low, x.high) for x in found.values()] for found in (one, two)
  ]
  assert ends[0] == ends[1]
  layer = one['probability-2']
  np.testing.assert_allclose(layer.norm(layer.values), layer.values)
  # An equal share lies in the middle, whatever the highest one.
  norm = one['attention'].norm
  np.testing.assert_allclose(norm(np.array([0, 0.1, 1, 1e9])), [0, 0, 0.5, 1])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_a_rank_counts_the_tiles_that_score_less(values):
  values = np.array([*values, np.nan])
  ranked = overlay._ranked(overlay.Layer('a', 'a', values)).values
  has = values[:-1]
  less = (has[:, None] > has).sum(1) + 0.5 * (has[:, None] == has).sum(1)
  np.testing.assert_allclose(ranked[:-1], less / len(has))
  assert np.isnan(ranked[-1])


def boxes_of(seed, n=12):
  rng = np.random.default_rng(seed)
  corner, size = rng.integers(-5, 25, (n, 2)), rng.integers(1, 12, (n, 2))
  values = np.where(rng.random(n) < 0.2, np.nan, rng.random(n))
  return np.c_[corner, corner + size].astype(float), values


@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 3.7]))
def test_painting_averages_the_tiles_over_a_pixel(seed, scale):
  boxes, values = boxes_of(seed)
  x, y = np.meshgrid(np.arange(30), np.arange(20))
  left, top, right, bottom = (b[:, None, None] for b in boxes.T)
  over = (left <= x) & (x < right) & (top <= y) & (y < bottom)
  over &= ~np.isnan(values)[:, None, None]
  total = (np.nan_to_num(values)[:, None, None] * over).sum(0)
  count = over.sum(0)
  expected = np.where(count, total / np.maximum(count, 1), np.nan)
  painted = overlay.paint(boxes, values, 1, (20, 30))
  np.testing.assert_allclose(painted, expected, atol=1e-12)
  whole = overlay.paint(boxes, values, scale, (20, 30))
  part = overlay.paint(boxes, values, scale, (9, 12), (11, 7))
  np.testing.assert_allclose(part, whole[7:16, 11:23], atol=1e-12)


def test_tiles_smaller_than_a_pixel_stay_visible():
  box = np.array([[1000.0, 2000, 1010, 2010]])
  painted = overlay.paint(box, np.ones(1), 100, (40, 40))
  assert np.argwhere(~np.isnan(painted)).tolist() == [[20, 10]]


@pytest.mark.parametrize('side', [64, 51.3, 513.026])
def test_rounded_tiles_touch_their_neighbours(side, tmp_path):
  """As STAMP's, whose sides in pixels are not whole numbers."""
  for apart in (1, 3):  # Tiles farther apart keep their own size.
    starts = np.rint(np.arange(40) * side) * apart
    coords = np.stack([starts, np.zeros(40)], 1)
    drawn = drawn_maps.scores(coords, 0)
    found = read(tmp_path / f'{apart}', drawn, patch_size_level0=side)
    ends, own = overlay.boxes(found)[:, 2], np.rint(starts + side)
    if apart == 1:
      np.testing.assert_array_equal(ends[:-1], starts[1:])
      assert ends[-1] == own[-1]
    else:
      np.testing.assert_array_equal(ends, own)


def test_colours_show_the_value_and_no_tile_is_clear():
  layer = overlay.Layer('a', 'a', np.empty(0))
  colours = overlay.colour_map('viridis')
  image = layer.coloured(np.array([[0, 0.25, 1, np.nan]]), colours)
  assert image[0, :3].tolist() == colours[[0, 64, 255]].tolist()
  assert image[0, 3, 3] == 0


def test_stamps_micrometres_give_the_same_map(tmp_path):
  """Features of one slide in two layouts; everything else is the same."""
  mpp, coords = drawn_maps.MPP, drawn_maps.lattice(share=0.7)
  drawn = drawn_maps.scores(coords, 1)
  x = np.ones((len(coords), 4), np.float32)
  pixels = tmp_path / 'pixels.h5'
  side = drawn_maps.SIDE
  made = dict.fromkeys(features.ATTRIBUTES, 1) | {'patch_size_level0': side}
  features.write(pixels, x, coords, made)
  stamp = tmp_path / 'stamp.h5'
  with h5py.File(stamp, 'w') as file:
    file['feats'], file['coords'] = x, coords.astype(np.float32) * mpp
    file.attrs.update(
      unit='um', extractor='e', tile_size_um=side * mpp, tile_size_px=32
    )
  boxes = []
  for name, of_tool in (
    ('pixels', features.read(pixels)),
    ('stamp', features.read(stamp, level0_mpp=mpp)),
  ):
    found = read(
      tmp_path / name,
      drawn | {'coords': of_tool.coords},
      patch_size_level0=of_tool.attributes['patch_size_level0'],
    )
    boxes.append(overlay.boxes(found))
  np.testing.assert_array_equal(*boxes)


def change(name, array):
  return lambda d: d | {name: array(d)}


@pytest.mark.parametrize(
  ('arrays', 'attributes', 'message'),
  [
    (lambda d: d, {'patch_size_level0': None}, '--tile_size'),
    (lambda d: d, {'patch_size_level0': np.nan}, '--tile_size'),
    (lambda d: d, {'classes': None}, 'classes'),
    (lambda d: {k: v for k, v in d.items() if k != 'coords'}, {}, 'coord'),
    (lambda d: {k: v for k, v in d.items() if k != 'prob'}, {}, 'prob'),
    (change('coords', lambda d: d['coords'][1:]), {}, 'coords'),
    (change('attention', lambda d: d['attention'] * np.nan), {}, 'attention'),
    (change('prob', lambda d: d['prob'][:2]), {}, 'prob'),
  ],
)
def test_a_file_that_cannot_be_drawn_is_named(
  tmp_path, arrays, attributes, message
):
  drawn = arrays(drawn_maps.scores(drawn_maps.lattice(), 0))
  error = UnplacedError if message in ('--tile_size', 'coord') else MapError
  with pytest.raises(error, match=rf'fold_0/attention/s\.h5.*{message}'):
    read(tmp_path, drawn, **attributes)
  if message == '--tile_size' and attributes['patch_size_level0'] is None:
    path = tmp_path / 'fold_0' / 'attention' / 's.h5'
    assert tile_scores.read({0: path}, 32).side == 32


def test_a_damaged_file_is_named(tmp_path):
  drawn = drawn_maps.scores(drawn_maps.lattice(), 0)
  path = drawn_maps.write_scores(tmp_path, 0, 's', drawn)
  path.write_bytes(path.read_bytes()[:900])
  with pytest.raises(MapError, match=r's\.h5: not a complete HDF5'):
    tile_scores.read({0: path})


def test_folds_of_other_tiles_are_refused(tmp_path):
  one, two = (
    drawn_maps.scores(drawn_maps.lattice(share=0.5, seed=s), 0) for s in (0, 1)
  )
  with pytest.raises(MapError, match=r'fold_0.* and .*fold_1.* differ in coor'):
    read(tmp_path, one, two)


def test_slides_are_found_by_fold(tmp_path):
  drawn = drawn_maps.scores(drawn_maps.lattice(), 0)
  for fold, name in ((0, '007.a'), (10, '007.a'), (2, 'b'), (2, '.b.part')):
    drawn_maps.write_scores(tmp_path, fold, name, drawn)
  found = tile_scores.find(tmp_path)
  assert {k: list(v) for k, v in found.items()} == {'007.a': [0, 10], 'b': [2]}
  assert list(tile_scores.find(tmp_path, 2)) == ['b']
  with pytest.raises(MapError, match='fold_5'):
    tile_scores.find(tmp_path, 5)
