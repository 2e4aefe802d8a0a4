"""Holds the phantom cohorts to their promises: truth, format, determinism."""

import csv
import dataclasses
import json

import numpy as np
import openslide
from PIL import Image
import pytest

from data import phantom, tiff
from data.phantom import cohort, lesions, lymph_node, slide

LOOK = phantom.EXTERNAL['look']
MADE = {
  name: spec
  for name, spec in cohort.specs(1, 1, 'ext_', LOOK).items()
  if name.endswith('a') and spec.label in ('non-tumor', 'lymphoma', 'breast')
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Three slides of the external cohort."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cohort, 'specs', lambda *args: MADE)
    folder = tmp_path_factory.mktemp('phantom')
    phantom.make(folder, cases_per_class=1, look=LOOK)
  return folder


@pytest.fixture(scope='module')
def drawn():
  """Images and truths, rendered apart."""
  return {name: slide.render(spec) for name, spec in MADE.items()}


def outlines_of(root, name):
  path = root / f'outlines/{name}.json'
  if not path.exists():
    return []
  collection = json.loads(path.read_text())
  assert collection['type'] == 'FeatureCollection'
  return collection['features']


def test_tiff_read_by_openslide_is_the_image(tmp_path):
  small = np.random.default_rng(0).integers(0, 256, (38, 49, 3), np.uint8)
  image = small.repeat(16, 0).repeat(16, 1)[:600, :777]  # JPEG keeps it well.
  path = tmp_path / 'a.tiff'
  tiff.write(path, image, mpp=0.25, levels=3, quality=95)
  with openslide.OpenSlide(path) as file:
    assert file.properties['openslide.vendor'] == 'generic-tiff'
    for axis in 'xy':
      mpp = float(file.properties[f'openslide.mpp-{axis}'])
      assert mpp == pytest.approx(0.25)
    assert file.level_dimensions == ((777, 600), (388, 300), (194, 150))
    read = np.asarray(file.read_region((0, 0), 0, (777, 600)))
    half = np.asarray(file.read_region((0, 0), 1, (388, 300)))
  assert (read[..., 3] == 255).all()
  error = np.abs(read[..., :3].astype(int) - image)
  assert np.median(error) <= 3  # JPEG halves the chroma at edges.
  means = np.asarray(Image.fromarray(image[:, :776]).reduce(2))
  assert np.median(np.abs(half[..., :3].astype(int) - means)) <= 4


def test_cohorts_have_every_class_alike_and_ids_tell_nothing():
  specs = cohort.specs(12, 0)
  labels = list({spec.case: spec.label for spec in specs.values()}.values())
  for label in phantom.LABELS:  # No class sits at one place of the numbers.
    places = [i % 5 for i, one in enumerate(labels) if one == label]
    assert len(places) == 12 and len(set(places)) >= 4
  per_case = np.bincount([spec.case for spec in specs.values()])
  assert set(per_case) == {1, 2, 3} and 1.75 < per_case.mean() < 2.25
  small = cohort.specs(2, 0)
  assert list(specs.items())[: len(small)] == list(small.items())
  assert labels != [s.label for s in cohort.specs(12, 1).values()]
  external = cohort.specs(*phantom.EXTERNAL.values())
  assert len({spec.case for spec in external.values()}) == 35
  cases = [set(map(cohort.case_id, one)) for one in (specs, external)]
  assert not cases[0] & cases[1]


def test_files_hold_what_was_drawn(root, drawn):
  with (root / 'labels.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [tuple(row.values()) for row in rows] == [
    (f'ext_case_{spec.case + 1:03d}', name, spec.label)
    for name, spec in MADE.items()
  ]
  assert {path.stem for path in (root / 'slides').iterdir()} == set(MADE)
  for name, (image, truth) in drawn.items():
    height, width = image.shape[:2]
    assert image.dtype == np.uint8 and height % 8 == width % 8 == 0
    with openslide.OpenSlide(root / f'slides/{name}.tiff') as file:
      assert float(file.properties['openslide.mpp-x']) == pytest.approx(0.46)
      assert file.level_downsamples == pytest.approx((1, 2, 4, 8))
      read = np.asarray(file.read_region((0, 0), 0, file.dimensions))[..., :3]
    assert np.abs(read.astype(int) - image).mean() < 8
    shapes = outlines_of(root, name)
    assert bool(shapes) == (MADE[name].label != 'non-tumor')
    for shape, ring in zip(shapes, truth.outlines, strict=True):
      assert shape['properties']['classification']['name'] == MADE[name].label
      (closed,) = shape['geometry']['coordinates']
      assert closed[0] == closed[-1]
      np.testing.assert_allclose(closed[:-1], ring, atol=0.051)


def test_an_interrupted_cohort_is_not_taken_for_whole(monkeypatch, tmp_path):
  """The labels say that all slides are there."""
  monkeypatch.setattr(cohort, 'specs', lambda *args: MADE)
  monkeypatch.setattr(cohort, '_WORKERS', 1)

  def interrupt(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    phantom.make(tmp_path, progress=interrupt)
  assert len(list((tmp_path / 'slides').iterdir())) < len(MADE)
  assert not (tmp_path / 'labels.csv').exists()


def test_outlines_lie_on_tissue_and_are_sparse(drawn):
  for name, (image, truth) in drawn.items():
    corners, (height, width) = truth.outlines, image.shape[:2]
    for ring in corners:
      assert len(ring) > 8 and (ring >= 0).all()
      assert (ring <= [width, height]).all()
    small = np.asarray(Image.fromarray(image).reduce(8), int)
    tissue = small.max(-1) - small.min(-1) > 25
    mask = truth.mask((height, width))[4::8, 4::8]
    share = (mask & tissue).sum() / tissue.sum()
    assert (0.02 if corners else 0) <= share < 0.3, name
    assert not corners or tissue[mask].mean() > 0.6


def test_slides_of_every_class_hold_mimics_of_every_tumour():
  node = lymph_node.draw(np.random.default_rng(0), (300, 300))
  kinds = {label: set() for label in phantom.LABELS}
  for seed in range(40):
    for label, mimicked in kinds.items():
      placed = lesions.place(
        np.random.default_rng(seed), node, label, lesions.KINDS
      )
      tumours = [one for one in placed if not one.is_benign]
      assert placed[: len(tumours)] == tumours
      assert len(tumours) <= 3 and {one.kind for one in tumours} <= {label}
      assert bool(tumours) == (label != 'non-tumor')
      mimicked |= {one.kind for one in placed if one.is_benign}
      for one in placed:
        gaps = [np.hypot(one.y - b.y, one.x - b.x) for b in placed]
        assert all(gap > 2 * 2.0 * 75 for gap in sorted(gaps)[1:])  # Apart.
  assert all(found == set(lesions.KINDS) for found in kinds.values())


def test_a_mimic_has_the_architecture_but_not_the_nuclei_of_its_tumour():
  even = np.ones((60, 60), np.float32)
  node = lymph_node.Node(0 * even.astype(np.uint8), even, even)
  for kind in lesions.KINDS:
    drawn = lesions.draw(np.random.default_rng(1), kind, (240, 240), 90)
    dark = []
    for is_benign in (False, True):
      canvas = lymph_node.fill(np.random.default_rng(2), node, even == 1)
      lesion = dataclasses.replace(drawn, is_benign=is_benign)
      lesions.paint(np.random.default_rng(3), lesion, canvas)
      dark.append((canvas.eosin, canvas.haematoxylin))
    (eosin, tumour), (benign_eosin, benign) = dark
    alike = np.corrcoef(eosin.ravel(), benign_eosin.ravel())[0, 1]
    assert alike > 0.7
    assert (tumour > 0.3).mean() > 1.1 * (benign > 0.3).mean()


def test_workers_change_nothing_and_finished_slides_are_kept(root, monkeypatch):
  files = [path for path in root.rglob('*') if path.is_file()]
  before = {path: path.read_bytes() for path in files}
  first, *_, last = (root / f'slides/{name}.tiff' for name in MADE)
  first.unlink()
  kept, seen = last.stat().st_mtime_ns, []
  monkeypatch.setattr(cohort, 'specs', lambda *args: MADE)
  monkeypatch.setattr(cohort, '_WORKERS', 1)
  phantom.make(
    root,
    cases_per_class=1,
    look=LOOK,
    progress=lambda *counts: seen.append(counts),
  )
  assert seen == [(len(MADE), len(MADE))]
  assert last.stat().st_mtime_ns == kept
  assert {path: path.read_bytes() for path in files} == before
