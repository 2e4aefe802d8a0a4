"""The phantom of lymphatic invasion: shares, independence, what tells kinds."""

import numpy as np

from data.phantom import invasion


def test_patches_are_a_function_of_the_seed_and_the_patient():
  options = {
    'patches': 6,
    'positives': 0.4,
    'hard': 0.5,
    'seed': 3,
    'prefix': 'a',
  }
  done = []
  made = invasion.make(
    patients=3, progress=lambda *some: done.append(some), **options
  )
  assert made.image.shape == (
    18,
    invasion.SIZE,
    invasion.SIZE,
    3,
  )
  assert made.image.dtype == np.uint8 and done == [(1, 3), (2, 3), (3, 3)]
  fewer = invasion.make(patients=1, **options)
  np.testing.assert_array_equal(fewer.image, made.image[:6])
  for change in ({'seed': 4}, {'prefix': 'b'}):
    other = invasion.make(patients=1, **options | change)
    assert (other.image != fewer.image).mean() > 0.5
  assert len(set(made.id)) == 18 and len(set(made.patient)) == 3
  np.testing.assert_array_equal(made.label, made.kind == 'embolus')


def test_shares_are_those_asked_for(monkeypatch):
  # Kinds are drawn before anything is painted.
  blank = np.zeros((invasion.SIDE, invasion.SIDE), np.float32)
  monkeypatch.setattr(invasion, 'paint', lambda rng, kind: (blank, blank))
  made = invasion.make(
    patients=3, patches=150, positives=0.3, hard=0.1, seed=0, prefix='a'
  )
  hard = np.isin(made.kind, invasion.HARD)
  assert abs(made.label.mean() - 0.3) < 0.06
  assert abs(hard[made.label == 0].mean() - 0.1) < 0.05
  assert set(made.kind) == set(invasion.KINDS)
  pool = invasion.make(
    patients=2, patches=40, positives=0.0, hard=0.1, seed=0, prefix='p'
  )
  assert not pool.label.any()


def test_hard_kinds_come_nearest_to_emboli():
  """By a coarse look: both densities around the middle."""
  rng = np.random.default_rng(0)
  y, x = np.indices((invasion.SIDE, invasion.SIDE)) - invasion.SIDE / 2
  ring = (np.hypot(y, x) / 20).astype(int).clip(0, 4).ravel()

  def profile(kind):
    found = []
    for _ in range(12):
      densities = invasion.paint(rng, kind)
      assert all(d.min() >= 0 and np.isfinite(d).all() for d in densities)
      found.append([np.bincount(ring, d.ravel()) for d in densities])
    return np.mean(found, 0) / np.bincount(ring)

  embolus = profile('embolus')
  away = {
    kind: np.abs(profile(kind) - embolus).mean() for kind in invasion.KINDS[1:]
  }
  assert set(sorted(away, key=away.get)[:2]) <= set(invasion.HARD), away
