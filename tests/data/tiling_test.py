"""Tiles of one physical size, on tissue or in outlines, to the pixel."""

import dataclasses
import json

import numpy as np
import openslide
import pytest

from data import tiff, tiling
from data.outlines import Ring
from data.slides import Slide, SlideError
from data.tiling import Tissue, read_tile, tile_grid, tissue_part


def pattern(x, y):
  """A red that depends on the position in micrometres only."""
  return 170 + 30 * np.sin(x / 17) + 30 * np.cos(y / 23)


@pytest.fixture(scope='module')
def slide_at(tmp_path_factory):
  """Writes the same 420 x 300 um field as a scanner of that um/px would."""
  folder = tmp_path_factory.mktemp('slides')

  def write(mpp, levels=1):
    path = folder / f'{mpp}_{levels}.tiff'
    if not path.exists():
      y, x = (np.mgrid[: round(300 / mpp), : round(420 / mpp)] + 0.5) * mpp
      red = pattern(x, y)
      # JPEG halves the resolution of hue, so the hue is the same everywhere.
      image = np.rint(np.stack([red, red - 80, red - 20], -1))
      tiff.write(
        path, image.astype(np.uint8), mpp=mpp, levels=levels, quality=98
      )
    return path

  return write


def test_tiles_of_a_real_slide_are_openslides_own_pixels(real_data):
  path = real_data / 'wsi/CMU-1-Small-Region.svs'
  with Slide(path) as slide, openslide.OpenSlide(path) as reference:
    grid = tile_grid(slide)
    assert grid.effective_mpp == pytest.approx(0.499)
    assert (grid.level, grid.level_size, grid.size_level0) == (0, 256, 256)
    assert 25 <= len(grid.coords) <= 40
    for i, (x, y) in enumerate(grid.coords.tolist()):
      expected = reference.read_region((x, y), 0, (256, 256))
      np.testing.assert_array_equal(
        read_tile(slide, grid, i), np.asarray(expected)[..., :3]
      )


@pytest.mark.parametrize('min_tissue', [0.0, 0.5])
def test_coordinates_are_row_major_on_the_lattice_and_inside(
  slide_at, min_tissue
):
  with Slide(slide_at(0.25, 3)) as slide:
    grid = tile_grid(slide, tile_size=64, mpp=0.7, min_tissue=min_tissue)
    side = grid.size_level0
    assert grid.coords.dtype == np.int32 and side == round(64 * 0.7 / 0.25)
    y, x = np.mgrid[: slide.height // side, : slide.width // side] * side
    expected = np.stack([x.ravel(), y.ravel()], 1)
    np.testing.assert_array_equal(grid.coords, expected)


@pytest.mark.parametrize(
  'mpp, level, footprint',
  [
    (0.25, 0, 64),  # As it is.
    (0.252, 0, 64),  # Within 1 %.
    (0.26, 0, 66.56),
    (0.49, 0, 125.44),  # Level 1 is 2 % too coarse.
    (0.499, 1, 64),
    (0.5, 1, 64),
    (0.7, 1, 89.6),
    (1.0, 2, 64),
    (4.0, 2, 256),
    (0.2, 0, 51.2),
  ],
)
def test_level_is_chosen_by_float_downsample(slide_at, mpp, level, footprint):
  with Slide(slide_at(0.25, 3)) as slide:
    grid = tile_grid(slide, tile_size=64, mpp=mpp, min_tissue=0)
    assert grid.level == level
    assert grid.footprint == pytest.approx(footprint)
    assert grid.level_size == np.ceil(round(footprint, 6))
    assert read_tile(slide, grid, 0).shape == (64, 64, 3)
    native = footprint == 64
    expected = 0.25 * slide.level_downsamples[level] if native else mpp
    assert grid.effective_mpp == pytest.approx(expected)


@pytest.mark.parametrize('scanner, levels', [(0.243, 1), (0.31, 3), (0.77, 1)])
def test_a_tile_shows_its_physical_field_whatever_the_scanner(
  slide_at, scanner, levels
):
  with Slide(slide_at(scanner, levels)) as slide:
    grid = tile_grid(slide, tile_size=96, mpp=0.6, min_tissue=0)
    for i in (0, len(grid.coords) - 1):
      y, x = (np.mgrid[:96, :96] + 0.5) * 0.6
      left, top = grid.coords[i] * slide.mpp
      seen = read_tile(slide, grid, i)[..., 0]
      # Of all shifts by a tenth of a pixel of 0.6 um, none fits best.
      error = {
        (dx, dy): np.abs(seen - pattern(x + left + dx, y + top + dy))[
          4:-4, 4:-4
        ].mean()
        for dx in (-0.06, 0, 0.06)
        for dy in (-0.06, 0, 0.06)
      }
      assert min(error, key=error.get) == (0, 0) and error[0, 0] < 2


def test_slides_without_a_tile_are_reported(slide_at, tmp_path):
  with Slide(slide_at(0.77)) as slide:
    assert len(tile_grid(slide, tile_size=64, mpp=0.39).coords)
    with pytest.raises(
      SlideError, match=r'^0\.77_1\.tiff: 0\.77 .*--tile_mpp=0\.77'
    ):
      tile_grid(slide, tile_size=64, mpp=0.35)
    with pytest.raises(SlideError, match=r'^0\.77_1\.tiff: .*smaller'):
      tile_grid(slide, tile_size=1024, mpp=0.77)
  glass = np.random.default_rng(0).normal(240, 3, (600, 600, 3))
  path = tmp_path / 'glass.tiff'
  tiff.write(path, glass.clip(0, 255).astype(np.uint8), mpp=1, levels=1)
  with Slide(path) as slide:
    with pytest.raises(SlideError, match=r'^glass\.tiff: no tissue: 0\.0%'):
      tile_grid(slide, tile_size=128, mpp=1.0)
    grid = tile_grid(slide, tile_size=128, mpp=1, min_tissue=0)
    assert len(grid.coords) == 16


def test_min_tissue_is_the_part_of_the_tile_that_is_stained(tmp_path):
  image = np.full((512, 1024, 3), 243, np.uint8)
  image[:, 96:1000] = (200, 110, 170)  # Covers 1/4 and 4/5 of the outer tiles.
  tiff.write(tmp_path / 'a.tiff', image, mpp=1, levels=1)
  with Slide(tmp_path / 'a.tiff') as slide:
    for min_tissue, columns in (
      (0.0, range(8)),
      (0.2, range(8)),
      (0.5, range(1, 8)),
      (0.95, range(1, 7)),
    ):
      grid = tile_grid(slide, tile_size=128, mpp=1.0, min_tissue=min_tissue)
      assert set(grid.coords[:, 0] // 128) == set(columns)
      assert len(grid.coords) == 4 * len(columns)


def test_tissue_part_is_the_exact_area():
  rng = np.random.default_rng(0)
  mask = rng.random((12, 15)) < 0.5
  slide = dataclasses.make_dataclass('Size', ['width', 'height'])(150, 120)
  coords = rng.integers(0, 80, (50, 2))
  fine = np.kron(mask, np.ones((10, 10)))  # One value per level-0 pixel.
  expected = [fine[y : y + 37, x : x + 37].mean() for x, y in coords]
  np.testing.assert_allclose(tissue_part(mask, slide, coords, 37), expected)


def test_fixtures_tile_at_fractional_downsamples_within_their_levels(real_data):
  folder = real_data / 'wsi/openslide-fixtures'
  with Slide(folder / 'boxes.tiff', default_mpp=1.0) as slide:
    for mpp, level in ((1.0, 0), (2.3, 1), (4.0, 2), (4.3, 2), (8.5, 3)):
      for tile_size in range(1, 28):
        grid = tile_grid(slide, tile_size=tile_size, mpp=mpp, min_tissue=0)
        assert grid.level == level
        end = grid.coords / slide.level_downsamples[level] + grid.level_size
        assert (end <= np.add(slide.level_dimensions[level], 1e-6)).all()
        assert read_tile(slide, grid, len(grid.coords) - 1).any()


def test_outlines_take_the_place_of_tissue(slide_at):
  """A square from 100 to 300, with a hole from 150 to 200, in um = pixels."""
  square = np.array([[100, 100], [300, 100], [300, 300], [100, 300]], float)
  rings = [Ring(square, False), Ring((square - 100) / 4 + 150, True)]
  with Slide(slide_at(1.0)) as slide:

    def corners(min_tissue):
      grid = tile_grid(
        slide,
        tile_size=50,
        mpp=1.0,
        min_tissue=min_tissue,
        tissue=Tissue(rings, regions_only=True),
      )
      return grid.coords.tolist()

    steps = range(100, 300, 50)
    inside = [[x, y] for y in steps for x in steps if (x, y) != (150, 150)]
    assert corners(1.0) == corners(0.0) == inside
    rings[0] = Ring(square - 25, False)
    # A half of a tile at an edge is inside, a quarter at a corner.
    assert len(corners(0.5)) == 9 + 12 - 1
    assert len(corners(0.0)) == 25 - 1
    rings[:] = [Ring(square + 1e4, False)]
    beyond = r'outlines reach from \(10100, 10100\) to \(10300, 10300\)'
    with (
      pytest.warns(UserWarning, match=beyond),
      pytest.raises(SlideError, match='no tissue: of its 1 outlines'),
    ):
      corners(0.0)


def test_in_outlines_only_tissue_counts(tmp_path):
  """Tissue right of 192 um, outlined from 128 to 448: four columns of five."""
  image = np.full((384, 640, 3), 243, np.uint8)
  image[:, 192:] = (200, 110, 170)
  tiff.write(tmp_path / 'a.tiff', image, mpp=1, levels=1)
  corners = np.array([[128, 0], [448, 0], [448, 384], [128, 384]], float)
  rings = [Ring(corners, False)]

  def columns(min_tissue, only=False, size=64):
    grid = tile_grid(
      slide,
      tile_size=size,
      mpp=1.0,
      min_tissue=min_tissue,
      tissue=Tissue(rings, only),
    )
    return sorted(set((grid.coords[:, 0] // size).tolist()))

  with Slide(tmp_path / 'a.tiff') as slide:
    assert columns(0.5, only=True) == [2, 3, 4, 5, 6]
    assert columns(0.5) == [3, 4, 5, 6]
    mask = Tissue(rings).mask(slide)
    assert not mask[:, :23].any() and mask[:, 25:56].all()
    assert not mask[:, 56:].any()
    corners[1:3, 0] = 443  # 7 of 8 columns of the mask are inside.
    assert columns(0.85)[-1] == 6 and columns(0.9)[-1] == 5
    # The mask's pixel at 248 to 256 is, and meets a tile that is not.
    corners[[0, 3], 0] = 251
    assert columns(0.01, size=50)[0] == 5
    corners[:, 0] -= 128
    corners[1:3, 0] = 180
    with pytest.raises(SlideError, match=r'no tissue: .* the fullest tile has'):
      columns(0.5)


@pytest.mark.parametrize('slide_mpp, mpp', [(0.3, 2.1), (0.172, 0.516)])
def test_a_slide_of_whole_tiles_has_them_all(tmp_path, slide_mpp, mpp):
  assert mpp / slide_mpp > round(mpp / slide_mpp)  # By rounding.
  side = 32 * round(mpp / slide_mpp)
  image = np.zeros((2 * side, 3 * side, 3), np.uint8)
  tiff.write(tmp_path / 'a.tiff', image, mpp=slide_mpp, levels=1)
  with Slide(tmp_path / 'a.tiff', mpp=slide_mpp) as slide:
    grid = tile_grid(slide, tile_size=32, mpp=mpp, min_tissue=0)
    assert len(grid.coords) == 6 and grid.level_size == side
    assert read_tile(slide, grid, 5).shape == (32, 32, 3)


def test_outlines_lie_right_at_the_end_of_a_narrow_slide(tmp_path):
  """Of 35 x 1024 um a mask at 8 um has 4 x 128 pixels, which are no squares."""
  tiff.write(
    tmp_path / 'a.tiff', np.zeros((1024, 35, 3), np.uint8), mpp=1, levels=1
  )
  corners = np.array([[0, 896], [35, 896], [35, 1024], [0, 1024]], float)
  with Slide(tmp_path / 'a.tiff') as slide:
    mask = Tissue([Ring(corners, False)], True).mask(slide)
  assert mask.shape == (128, 4)
  assert not mask[:112].any() and mask[112:].all()


@pytest.mark.parametrize(
  'mpp, overlap', [(0.5, 0), (0.5, 16), (0.7, 32), (1, 63)]
)
def test_tiles_overlap_by_so_many_of_their_pixels(slide_at, mpp, overlap):
  with Slide(slide_at(0.25, 3)) as slide:
    grid = tile_grid(
      slide, tile_size=64, mpp=mpp, min_tissue=0, overlap=overlap
    )
    for axis, length in ((0, slide.width), (1, slide.height)):
      places = np.unique(grid.coords[:, axis])
      assert set(np.diff(places)) == {round((64 - overlap) * mpp / 0.25)}
      # Another one would not be on the slide.
      rest = length - places[-1] - grid.size_level0
      assert 0 <= rest < places[1] + grid.level_size
    pair = [read_tile(slide, grid, i)[4:-4, 4:-4] for i in (0, 1)]
    step = 64 - overlap
    if overlap > 8:  # One shows again what the other does.
      again = pair[0][:, step:].astype(int) - pair[1][:, : 56 - step]
      assert np.abs(again).mean() < 2


def write_outlines(path, *rings):
  shape = {'type': 'Polygon', 'coordinates': list(rings)}
  features = [{'geometry': shape}] if rings else []
  path.write_text(json.dumps({'features': features}))


def test_outlines_belong_to_slides_by_their_names(tmp_path):
  ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
  with pytest.raises(SlideError, match='outlines: no such folder'):
    tiling.read_regions(tmp_path / 'outlines', {})
  (tmp_path / 'notes.txt').write_text('not outlines')
  with (
    pytest.raises(SlideError, match=r'no \.json, \.geojson, \.xml of'),
    pytest.warns(UserWarning, match=r'left out, .*\.xml: notes\.txt'),
  ):
    tiling.read_regions(tmp_path, {})
  (tmp_path / 'notes.txt').unlink()
  write_outlines(tmp_path / '007.a.geojson', ring, ring)
  paths = {name: tmp_path / f'{name}.svs' for name in ('007.a', 'b', 'c')}
  found = tiling.read_regions(tmp_path, paths)
  assert [ring.hole for ring in found.pop('007.a')] == [False, True]
  assert not found
  write_outlines(tmp_path / '007.a.json', ring)
  write_outlines(tmp_path / 'other.geojson', ring)
  write_outlines(tmp_path / 'b.geojson')
  (tmp_path / 'c.xml').write_text('<a')
  with pytest.raises(SlideError) as error:
    tiling.read_regions(tmp_path, paths)
  lines = str(error.value).splitlines()
  assert len(lines) == 4
  assert '007.a.json: a second file of slide 007.a' in lines[0]
  assert 'b.geojson: no outlines' in lines[1]
  assert 'c.xml: no outlines in the layout of GeoJSON, NCRF or ASAP' in lines[2]
  assert 'other.geojson: there is no slide other' in lines[3]
