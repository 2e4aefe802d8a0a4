"""FROC and its lesions, by hand and by a literal reading of the definition."""

import numpy as np
import pytest
from scipy import ndimage

from kmil_jax import froc
from kmil_jax.froc import Case

PIXEL = 0.243 * 32  # um per pixel of level 5.


def disc(shape, middle, diameter_um):
  y, x = np.mgrid[: shape[0], : shape[1]]
  away = np.hypot(y - middle[0], x - middle[1])
  return away * PIXEL <= diameter_um / 2


def at(*pixels):
  """Level-0 places of pixels (row, column) of level 5."""
  return np.array(pixels, float).reshape(-1, 2)[:, ::-1] * 32 + 16


# A lesion of 1 mm in the middle of row 100, and a cluster of 100 um.
MASK = disc((300, 400), (100, 100), 1000) | disc((300, 400), (100, 300), 100)
TWO = disc((200, 500), (100, 100), 1000) | disc((200, 500), (100, 350), 1000)


def test_hits_double_hits_misses_and_cells_are_told_apart():
  truth = froc.lesions(MASK)
  case = froc.judge(
    truth,
    [0.8, 0.9, 0.7, 0.95, 0.6, 0.0],
    at((100, 100), (110, 90), (90, 90), (100, 300), (250, 200), (0, 0)),
  )
  np.testing.assert_array_equal(np.sort(case.hits), [0, 0.9])
  np.testing.assert_array_equal(case.alarms, [0.6, 0])
  assert case.targets == 1


def test_places_are_rounded_down_to_pixels():
  truth = froc.Lesions(np.array([[0, 1]], np.int32), np.array([False]))
  places = [(31.9, 31.9), (32, 0), (63.9, 0)]
  case = froc.judge(truth, [0.1, 0.2, 0.3], places)
  np.testing.assert_array_equal(case.alarms, [0.1])
  np.testing.assert_array_equal(case.hits, [0.3])


def hand_cases():
  first = froc.judge(
    froc.lesions(MASK),
    [0.9, 0.8, 0.95, 0.7],
    at((100, 100), (110, 90), (100, 300), (250, 200)),
  )
  second = froc.judge(froc.lesions(TWO), [0.6], at((100, 350)))
  third = froc.judge(None, [0.5, 0.3], at((0, 0), (7, 9)))
  return [first, second, third]


def test_a_curve_counted_by_hand():
  """Thresholds 0.9, 0.7, 0.6, 0.5, 0.3 on 3 slides with 3 lesions."""
  result = froc.froc(hand_cases())
  assert (result.lesions, result.slides) == (3, 3)
  np.testing.assert_allclose(result.rate * 3, [0, 0, 1, 1, 2, 3])
  np.testing.assert_allclose(result.curve * 3, [0, 1, 1, 2, 2, 2])
  np.testing.assert_allclose(result.sensitivity * 3, [1, 2, 2, 2, 2, 2])
  assert result.score == pytest.approx(11 / 18)


def test_the_smallest_score_is_no_threshold():
  """The only lesion's score is the smallest: it is never found."""
  result = froc.froc([Case(np.zeros(0), np.array([0.9]), 1)])
  assert result.score == 0
  result = froc.froc([Case(np.array([0.1]), np.array([0.9]), 1)])
  assert result.score == 1


def test_without_detections_the_score_is_0_and_without_lesions_undefined():
  nothing = froc.judge(froc.lesions(MASK), [], [])
  assert froc.froc([nothing, froc.judge(None, [], [])]).score == 0
  for truth in (None, froc.lesions(np.zeros((30, 40), bool))):
    case = froc.judge(truth, [0.5, 0.6], at((0, 0), (20, 20)))
    np.testing.assert_array_equal(case.alarms, [0.5, 0.6])
    assert case.targets == 0 and np.isnan(froc.froc([case]).score)
  cells = disc((60, 60), (30, 30), 100)
  hit = froc.judge(froc.lesions(cells), [0.5], at((30, 30)))
  assert (hit.targets, len(hit.alarms)) == (0, 0)
  assert np.isnan(froc.froc([hit]).score)


def literal(cases):
  """The definition, one threshold after the other."""
  alarms = [s for case in cases for s in case.alarms]
  hits = [s for case in cases for s in case.hits]
  targets = sum(case.targets for case in cases)
  points = [(0.0, 0.0)]
  for threshold in sorted(set(alarms) | set(hits), reverse=True)[:-1]:
    points.append(
      (
        sum(s >= threshold for s in alarms) / len(cases),
        sum(s >= threshold for s in hits) / targets,
      )
    )
  return np.interp([0.25, 0.5, 1, 2, 4, 8], *np.transpose(points))


def random_cases(rng, digits):
  cases = []
  for _ in range(rng.integers(1, 8)):
    lesions = rng.integers(0, 4)
    hits = rng.random(lesions) * rng.integers(0, 2, lesions)
    cases.append(
      Case(
        rng.random(rng.integers(0, 20)).round(digits),
        hits.round(digits),
        int(lesions),
      )
    )
  return [*cases, Case(rng.random(3).round(digits), np.array([0.4]), 1)]


@pytest.mark.parametrize('digits', [1, 6])  # With one digit, many are equal.
def test_the_curve_equals_a_literal_one(digits):
  rng = np.random.default_rng(digits)
  for _ in range(50):
    cases = random_cases(rng, digits)
    np.testing.assert_allclose(froc.froc(cases).sensitivity, literal(cases))


def test_the_order_of_slides_and_detections_does_not_matter():
  rng = np.random.default_rng(0)
  score = rng.random(40).round(1)
  xy = rng.uniform(0, [400 * 32, 300 * 32], (40, 2))
  truth = froc.lesions(MASK)
  mixed = rng.permutation(40)
  expected = froc.froc([*hand_cases(), froc.judge(truth, score, xy)])
  again = froc.judge(truth, score[mixed], xy[mixed])
  result = froc.froc([again, *hand_cases()[::-1]])
  np.testing.assert_array_equal(result.sensitivity, expected.sensitivity)
  np.testing.assert_array_equal(result.rate, expected.rate)


def test_the_interval_is_of_slides():
  cases = hand_cases() * 4
  low, high = froc.interval(cases, resamples=200, seed=1)
  assert low < froc.froc(cases).score < high
  np.testing.assert_array_equal(
    froc.interval(cases, resamples=200, seed=1), (low, high)
  )
  assert np.isnan(froc.interval(hand_cases()[:1], resamples=9)).all()
  # Nothing varies: all is found above all false positives.
  perfect = [froc.Case(np.array([0.1]), np.array([0.9, 0.8]), 2)] * 6
  assert np.isnan(froc.interval(perfect, resamples=99)).all()


@pytest.mark.parametrize(
  'score, place, fault',
  [
    (np.nan, (0, 0), 'detection 1: found the score nan'),
    (-0.1, (0, 0), 'detection 1: found the score -0.1'),
    (np.inf, (0, 0), 'detection 1: found the score inf'),
    (0.5, (np.inf, 0), r'detection 1: .* at \(inf, 0\)'),
    (0.5, (np.nan, 0), r'detection 1: .* at \(nan, 0\)'),
    (0.5, (-1, 0), r'detection 1: .* at \(-1, 0\)'),
    (0.5, (400 * 32, 0), r'\(12800, 0\).* within 12800 x 9600 level-0'),
    (0.5, (0, 300 * 32), r'\(0, 9600\).* within 12800 x 9600 level-0'),
  ],
)
def test_detections_that_mean_nothing_are_refused(score, place, fault):
  with pytest.raises(ValueError, match=fault):
    froc.judge(froc.lesions(MASK), [0.5, score], [(0, 0), place])
  if not 0 <= place[0] < np.inf:
    with pytest.raises(ValueError, match=fault):  # Of a normal slide too.
      froc.judge(None, [0.5, score], [(0, 0), place])


def test_lesions_reach_half_of_75_um_beyond_the_mask():
  truth = froc.lesions(MASK)
  grown = truth.label == truth.label[100, 100]
  radius = np.sqrt(grown.sum() / np.pi) * PIXEL
  assert radius == pytest.approx(500 + 37.5, abs=PIXEL)


@pytest.mark.parametrize('diameter, cells', [(190, True), (212, False)])
def test_isolated_cells_measure_275_um_with_their_surroundings(diameter, cells):
  truth = froc.lesions(disc((80, 80), (40, 40), diameter))
  assert truth.cells.tolist() == [cells]


def test_pixels_that_meet_at_a_corner_are_one_lesion():
  """A pixel of level 8 is 62 um wide: nothing else is within 37.5 um."""
  mask = np.zeros((9, 9), bool)
  mask[3, 3] = mask[4, 4] = mask[7, 4] = True
  truth = froc.lesions(mask, level=8)
  np.testing.assert_array_equal(truth.label > 0, mask)
  assert truth.label[3, 3] == truth.label[4, 4] != truth.label[7, 4]


def test_lesions_equal_those_of_the_whole_mask():
  """Only what is near tumour is looked at."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    mask = np.zeros((90, 120), bool)
    for _ in range(rng.integers(1, 5)):
      y, x = rng.integers(0, 85), rng.integers(0, 115)
      mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] = True
    near = ndimage.distance_transform_edt(~mask) < 37.5 / PIXEL
    whole, count = ndimage.label(
      ndimage.binary_fill_holes(near), np.ones((3, 3))
    )
    truth = froc.lesions(mask)
    assert len(truth.cells) == count
    pairs = np.unique(np.stack([whole, truth.label]).reshape(2, -1), axis=1)
    # One to one, the outside with itself.
    assert pairs.shape[1] == len(np.unique(whole)) == len(np.unique(pairs[1]))
    assert (pairs[:, 0] == 0).all()
