"""The CT phantom: its tissues, its nodes, its files."""

import numpy as np
import pytest

from data.ct import nodes, table, volumes
from data.phantom import ct as phantom


@pytest.fixture(scope='module')
def patients():
  """Some patients: volume, mask and labels of each."""
  return [phantom.render(i) for i in (0, 1, 6)]


def test_it_is_a_function_of_seed_and_patient(patients):
  volume, mask, labels = phantom.render(6)
  again, again_mask, again_labels = patients[2]
  np.testing.assert_array_equal(volume.hu, again.hu)
  np.testing.assert_array_equal(mask, again_mask)
  assert labels == again_labels
  assert volume.spacing != patients[0][0].spacing


def test_tissues_have_their_hounsfield_units(patients):
  for volume, mask, _ in patients:
    hu = volume.hu
    share = lambda low, high, hu=hu: ((hu > low) & (hu < high)).mean()
    assert share(-1100, -900) > 0.15  # Air about the body.
    assert share(-150, -50) > 0.2  # Fat.
    assert share(20, 100) > 0.1  # Muscle.
    assert 0.002 < share(300, 4000) < 0.05  # Bone, and bowel contrast.
    np.testing.assert_array_equal(hu, np.rint(hu))
    assert -60 < hu[mask > 0].mean() < 130
    noise = np.diff(hu[:, 130:150, :10], axis=2).std()
    assert noise < 40


def test_every_label_is_a_node_in_fat(patients):
  for volume, mask, labels in patients:
    assert len(labels) > 1
    assert set(np.unique(mask)) == set(range(len(labels) + 1))
    for value in range(1, len(labels) + 1):
      numbered = nodes.parts(mask, value)
      found, _ = nodes.find(numbered, volume.spacing)
      assert len(found) == 1
      assert found[0].extent < 40
      z, y, x = (side.start for side in found[0].box)
      z1, y1, x1 = (side.stop for side in found[0].box)
      margin = 4
      around = volume.hu[z:z1, y - margin : y1 + margin, x - margin : x1]
      assert np.percentile(around, 10) < -60


def test_classes_differ_but_overlap():
  """Metastases are larger and rounder on average, not always."""
  short = {name: [] for name in phantom.CLASSES}
  signs = {name: [] for name in phantom.CLASSES}
  rng = np.random.default_rng(0)
  for is_metastatic in (0, 1) * 200:
    look = phantom._look(rng, bool(is_metastatic))
    short[phantom.CLASSES[is_metastatic]].append(look.short)
    signs[phantom.CLASSES[is_metastatic]].append(look.ratio > 0.75)
  benign, metastatic = (np.array(short[c]) for c in phantom.CLASSES)
  assert metastatic.mean() > 1.2 * benign.mean()
  assert metastatic.min() < np.median(benign)
  rates = [np.mean(signs[c]) for c in phantom.CLASSES]
  # Nodes without a sign of their class are dealt evenly.
  assert 0.03 < rates[0] < 0.13
  assert 0.87 < rates[1] < 0.97


def test_written_volumes_are_those_rendered(tmp_path, patients):
  seen = []
  phantom.make(tmp_path, patients=2, progress=lambda *at: seen.append(at))
  assert seen == [(1, 2), (2, 2)]
  rows = table.read(tmp_path / 'labels.csv', phantom.CLASSES)
  assert [row.patient for row in rows] == [
    f'ct00{i}' for i, (_, _, labels) in enumerate(patients[:2]) for _ in labels
  ]
  assert [r.label for r in rows] == [x for p in patients[:2] for x in p[2]]
  for i, (volume, mask, _) in enumerate(patients[:2]):
    found = volumes.read(tmp_path / f'ct00{i}_image.nii.gz')
    np.testing.assert_array_equal(found.hu, volume.hu)
    np.testing.assert_allclose(found.spacing, volume.spacing, rtol=1e-6)
    again = volumes.read_mask(tmp_path / f'ct00{i}_mask.nii.gz', found)
    np.testing.assert_array_equal(again, mask)
  assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]
  made = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
  phantom.make(tmp_path, patients=2)
  assert made == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
