"""Holds the phantom cohort to its promises: truth, format, determinism."""

import csv
import io
import json
import struct

import numpy as np
import openslide
from PIL import Image, ImageDraw
import pytest

from data import phantom
from data.phantom import cohort, lesions, lymph_node, nuclei, texture, tiff


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  return phantom.make(tmp_path_factory.mktemp('phantom'), cases_per_class=1)


def _rows(root):
  with open(root / 'labels.csv', newline='') as file:
    return list(csv.DictReader(file))


def _polygons(root, slide_id):
  collection = json.loads((root / 'outlines' / f'{slide_id}.json').read_text())
  assert collection['type'] == 'FeatureCollection'
  return collection['features']


def _blocks(rng, height, width):
  """Returns a random image of 16-pixel squares, which JPEG keeps well."""
  small = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
  image = small.repeat(16, 0).repeat(16, 1)[:height, :width]
  return image.astype(np.uint8)


def test_tiff_read_by_openslide_is_the_image(tmp_path):
  image = _blocks(np.random.default_rng(0), 600, 777)
  path = tmp_path / 'a.tiff'
  tiff.write(path, image, mpp=0.25, levels=3, quality=95)
  with openslide.OpenSlide(path) as slide:
    assert slide.properties['openslide.vendor'] == 'generic-tiff'
    assert float(slide.properties['openslide.mpp-x']) == pytest.approx(0.25)
    assert float(slide.properties['openslide.mpp-y']) == pytest.approx(0.25)
    assert slide.dimensions == (777, 600)
    assert slide.level_dimensions[1:] == ((388, 300), (194, 150))
    read = np.asarray(slide.read_region((0, 0), 0, (777, 600)))
    half = np.asarray(slide.read_region((0, 0), 1, (388, 300)))
  assert (read[..., 3] == 255).all()
  error = np.abs(read[..., :3].astype(int) - image)
  assert np.median(error) <= 3  # JPEG halves the chroma at edges.
  means = np.asarray(Image.fromarray(image[:, :776]).reduce(2))
  assert np.median(np.abs(half[..., :3].astype(int) - means)) <= 4


def test_tiff_tiles_are_complete_jpegs_with_increasing_tags(tmp_path):
  image = _blocks(np.random.default_rng(1), 300, 520)
  path = tmp_path / 'a.tiff'
  tiff.write(path, image, mpp=0.5, levels=2)
  data = path.read_bytes()
  order, magic, at = struct.unpack_from('<2sHI', data)
  assert (order, magic) == (b'II', 42)
  reduced, widths = [], []
  while at:
    assert at % 2 == 0
    (count,) = struct.unpack_from('<H', data, at)
    entries = [
      struct.unpack_from('<HHII', data, at + 2 + 12 * i) for i in range(count)
    ]
    tags = {tag: (n, value) for tag, _, n, value in entries}
    assert list(tags) == sorted(tags)
    assert tags[259][1] == 7
    reduced.append(tags[254][1])
    widths.append(tags[256][1])
    tiles = tags[324][0]
    offsets = struct.unpack_from(f'<{tiles}I', data, tags[324][1])
    sizes = struct.unpack_from(f'<{tiles}I', data, tags[325][1])
    for offset, size in zip(offsets, sizes, strict=True):
      tile = Image.open(io.BytesIO(data[offset : offset + size]))
      assert (tile.format, tile.size) == ('JPEG', (256, 256))
    (at,) = struct.unpack_from('<I', data, at + 2 + 12 * count)
  assert reduced == [0, 1]
  assert widths == [520, 260]


def test_tiff_names_file_and_fault(tmp_path):
  path = tmp_path / 'a.tiff'
  with pytest.raises(ValueError, match=r'a\.tiff.*float64'):
    tiff.write(path, np.zeros((64, 64, 3)), mpp=0.5, levels=1)
  with pytest.raises(ValueError, match=r'a\.tiff.*8 levels'):
    tiff.write(path, np.zeros((64, 64, 3), np.uint8), mpp=0.5, levels=8)
  assert not list(tmp_path.iterdir())


def test_cohort_has_every_class_alike_and_two_slides_a_case():
  specs = cohort.specs(12, 0)
  cases = {spec.case: spec.label for spec in specs.values()}
  labels = list(cases.values())
  assert {labels.count(label) for label in phantom.LABELS} == {12}
  per_case = [sum(s.case == case for s in specs.values()) for case in cases]
  assert set(per_case) == {1, 2, 3}
  assert 1.75 < np.mean(per_case) < 2.25
  assert list(specs) == sorted(specs)


def test_smaller_cohort_begins_the_larger_and_seeds_differ():
  small, large = cohort.specs(2, 0), cohort.specs(12, 0)
  assert list(large.items())[: len(small)] == list(small.items())
  order = [spec.label for spec in large.values()]
  assert order != [spec.label for spec in cohort.specs(12, 1).values()]


def test_ids_and_order_do_not_tell_the_class():
  """Each class is spread over the numbers: no class sits at one place."""
  specs = cohort.specs(12, 0).values()
  for label in phantom.LABELS:
    places = {spec.case % 5 for spec in specs if spec.label == label}
    assert len(places) >= 4


def test_files_on_disk(small):
  rows = _rows(small)
  assert list(rows[0]) == ['case_id', 'slide_id', 'label']
  assert {row['label'] for row in rows} == set(phantom.LABELS)
  on_disk = sorted(path.stem for path in (small / 'slides').iterdir())
  assert on_disk == [row['slide_id'] for row in rows]
  for row in rows:
    assert row['slide_id'].startswith(row['case_id'] + '_')
    with openslide.OpenSlide(small / f'slides/{row["slide_id"]}.tiff') as slide:
      assert float(slide.properties['openslide.mpp-x']) == pytest.approx(0.5)
      assert slide.level_downsamples == pytest.approx((1, 2, 4, 8))


def test_outlines_are_closed_on_the_slide_sparse_and_of_the_label(small):
  for row in _rows(small):
    features = _polygons(small, row['slide_id'])
    assert bool(features) == (row['label'] != 'non-tumor')
    with openslide.OpenSlide(small / f'slides/{row["slide_id"]}.tiff') as slide:
      width, height = slide.dimensions
      image = np.asarray(
        slide.read_region((0, 0), 3, slide.level_dimensions[3])
      )[..., :3].astype(float)
    mask = Image.new('1', (width // 8, height // 8))
    for feature in features:
      assert feature['properties']['classification']['name'] == row['label']
      (ring,) = feature['geometry']['coordinates']
      assert ring[0] == ring[-1] and len(ring) > 8
      assert np.min(ring) >= 0
      assert (np.max(ring, 0) <= [width, height]).all()
      ImageDraw.Draw(mask).polygon([(x / 8, y / 8) for x, y in ring], fill=1)
    tissue = image.max(-1) - image.min(-1) > 25
    mask = np.asarray(mask)
    share = (mask & tissue).sum() / tissue.sum()
    assert share < 0.3
    if features:
      assert share > 0.02
      assert tissue[mask].mean() > 0.6  # Outlines lie on tissue, not on glass.


def test_lesion_looks_unlike_the_tissue_it_replaces():
  """The same node without its lesions differs inside the outlines only."""
  shape = (280, 280)
  node = lymph_node.draw(np.random.default_rng(5), shape)
  for label in phantom.LABELS[1:]:
    found = lesions.place(
      np.random.default_rng(3), node, label, radius=(95, 165), share=0.18
    )
    haematoxylin = np.full((2240, 2240), 0.7, np.float32)
    eosin = np.full((2240, 2240), 0.4, np.float32)
    for lesion in found:
      lesions.paint(
        np.random.default_rng(4), label, lesion, haematoxylin, eosin
      )
    changed = (np.abs(haematoxylin - 0.7) > 1e-3) | (abs(eosin - 0.4) > 1e-3)
    changed = changed[::4, ::4]
    y, x = 4 * np.indices(changed.shape, np.float32)
    inside = np.max([lesion.inside(y, x) for lesion in found], 0)
    assert not changed[inside < -45].any()
    assert changed[inside > 45].mean() > 0.9


def test_pixels_are_a_function_of_the_specification(small):
  name, spec = next(iter(cohort.specs(1, 0).items()))
  image, corners = phantom.render(spec)
  again, _ = phantom.render(spec)
  np.testing.assert_array_equal(image, again)
  assert image.dtype == np.uint8
  assert image.shape[0] % 8 == 0 and image.shape[1] % 8 == 0
  with openslide.OpenSlide(small / f'slides/{name}.tiff') as slide:
    read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
  assert np.abs(read.astype(int) - image).mean() < 8
  assert len(corners) == len(_polygons(small, name))


def test_workers_change_nothing_and_finished_slides_are_kept(small, tmp_path):
  names = [row['slide_id'] for row in _rows(small)]
  for folder, suffix in (('slides', 'tiff'), ('outlines', 'json')):
    (tmp_path / folder).mkdir()
    for name in names[2:]:  # Two slides are left to make.
      file = f'{folder}/{name}.{suffix}'
      (tmp_path / file).write_bytes((small / file).read_bytes())
  kept = tmp_path / f'slides/{names[-1]}.tiff'
  before = kept.stat().st_mtime_ns
  seen = []
  phantom.make(
    tmp_path,
    cases_per_class=1,
    workers=1,
    progress=lambda *counts: seen.append(counts),
  )
  assert seen == [(len(names) - 1, len(names)), (len(names), len(names))]
  assert kept.stat().st_mtime_ns == before
  for name in names[:2]:
    for file in (f'slides/{name}.tiff', f'outlines/{name}.json'):
      assert (tmp_path / file).read_bytes() == (small / file).read_bytes()


def test_make_refuses_nothing_to_do(tmp_path):
  with pytest.raises(ValueError, match='cases_per_class=0'):
    phantom.make(tmp_path, cases_per_class=0)


def test_paste_keeps_the_denser_and_stays_on_the_canvas():
  canvas = np.zeros((9, 9), np.float32)
  library = np.stack([np.full((3, 3), 1.0), np.full((3, 3), 2.0)])
  yx = np.array([[4, 4], [4, 5], [0, 4], [8, 8]])  # The last two cross over.
  nuclei.paste(canvas, library.astype(np.float32), np.array([1, 0, 1, 1]), yx)
  expected = np.zeros((9, 9))
  expected[3:6, 4:7] = 1
  expected[3:6, 3:6] = 2
  np.testing.assert_array_equal(canvas, expected)


def test_elongated_stamps_lie_at_their_angle():
  library = nuclei.stamps('spindle')
  y, x = np.indices(library.shape[1:]) - library.shape[1] // 2
  for k in range(0, len(library), 12):
    mass = library[k] / library[k].sum()
    angle = 0.5 * np.arctan2(
      2 * (mass * x * y).sum(), (mass * (x**2 - y**2)).sum()
    )
    gap = (angle - np.pi * k / len(library) + np.pi / 2) % np.pi - np.pi / 2
    assert abs(gap) < 0.15


@pytest.mark.parametrize('make', [texture.grain, texture.fibre, texture.fat])
def test_textures_repeat_without_a_seam(make):
  pattern = make()
  assert pattern.shape == (texture.PERIOD, texture.PERIOD)
  seam = np.abs(pattern[0] - pattern[-1]).mean()
  inner = np.abs(np.diff(pattern, axis=0)).mean()
  assert seam < 1.6 * inner
  seam = np.abs(pattern[:, 0] - pattern[:, -1]).mean()
  inner = np.abs(np.diff(pattern, axis=1)).mean()
  assert seam < 1.6 * inner


def test_voronoi_measures_the_distance_to_the_border():
  inside, index = texture.voronoi(np.array([[5.0, 2.0], [5.0, 12.0]]), (11, 15))
  np.testing.assert_allclose(inside[5, :8], [5, 5, 5, 4, 3, 2, 1, 0])
  assert (index[:, :7] == 0).all() and (index[:, 8:] == 1).all()
