"""The phantom of node images: its layout, truth, difficulty and stability."""

import numpy as np
import pytest

from data import node_images, tissue
from data.phantom import nodes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('nodes')
  return nodes.make(root, development=2, test=2, seed=3)


def test_it_is_read_as_users_images_are(folder):
  images = node_images.load(
    folder / 'images', folder / 'masks', folder / 'images.csv'
  )
  assert len(images) == 12
  for test in (False, True):
    part = images.test == test
    assert len(set(images.patient[part])) == 2
    assert images.positive[part].sum() in (2, 4)
  for row in range(len(images)):
    pixels, mask = images.read(row)
    assert pixels.shape == (280, 280, 3)
    assert mask.any() == images.positive[row]
    if mask.any():
      assert 0.005 < mask.mean() < 0.6
      # Tumour is on tissue, and is not what is around it.
      assert tissue.glass(pixels, 1.0)[mask].mean() < 0.1
      apart = np.abs(pixels[mask].mean(0) - pixels[~mask].mean(0)).max()
      assert apart > 5


def test_an_interrupted_rendering_is_gone_on_with(folder):
  target = folder / 'images/node_01b.png'
  other = folder / 'images/node_01a.png'
  before, kept = target.read_bytes(), other.stat().st_mtime_ns
  target.unlink()
  nodes.make(folder, development=2, test=2, seed=3)
  assert target.read_bytes() == before
  assert other.stat().st_mtime_ns == kept


def test_patients_have_both_kinds_and_a_larger_set_begins_with_a_smaller():
  small, large = nodes.specs(4, 1), nodes.specs(9, 1)
  assert list(large.items())[: len(small)] == list(small.items())
  by_patient = np.array([s.positive for s in large.values()]).reshape(9, 3)
  assert set(by_patient.sum(1)) == {1, 2}
  assert len({tuple(row) for row in by_patient}) > 3  # Ids tell nothing.
