import dataclasses
import pathlib

import numpy as np
import openslide
import pytest

from data.outlines import Ring
from data.phantom import tiff
from data.slides import Slide, SlideError
from data.tiling import read_tile_bgrx, tile_grid, tissue_part

WSI = pathlib.Path(__file__).parents[3] / 'shared/data/wsi'
CMU = WSI / 'CMU-1-Small-Region.svs'
needs_wsi = pytest.mark.skipif(
  not WSI.is_dir(), reason=f'no real slides at {WSI}'
)


def read_tile(slide, grid, i):
  out = np.empty((grid.tile_size, grid.tile_size, 4), np.uint8)
  return read_tile_bgrx(slide, grid, i, out)[..., 2::-1]


def pattern(width, height, mpp):
  """Tissue-like colours that depend on the position in micrometres only."""
  y, x = (np.mgrid[:height, :width] + 0.5) * mpp
  red = 170 + 30 * np.sin(x / 17) + 30 * np.cos(y / 23)
  # JPEG halves the resolution of hue, so the hue is the same everywhere.
  return np.rint(np.stack([red, red - 80, red - 20], -1)).astype(np.uint8)


@pytest.fixture(scope='module')
def slide_at(tmp_path_factory):
  """Writes the same 420 x 300 um field as a scanner of that um/px would."""
  folder = tmp_path_factory.mktemp('slides')

  def write(mpp, levels=1):
    path = folder / f'{mpp}_{levels}.tiff'
    if not path.exists():
      image = pattern(round(420 / mpp), round(300 / mpp), mpp)
      tiff.write(path, image, mpp=mpp, levels=levels, quality=98)
    return path

  return write


@needs_wsi
def test_tiles_of_a_real_slide_are_openslides_own_pixels():
  with Slide(CMU) as slide, openslide.OpenSlide(CMU) as reference:
    grid = tile_grid(slide)
    assert grid.mpp == 0.5 and grid.effective_mpp == pytest.approx(0.499)
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
    coords, side = grid.coords, grid.size_level0
    assert coords.dtype == np.int32 and side == round(64 * 0.7 / 0.25)
    assert (coords % side == 0).all()
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    np.testing.assert_array_equal(order, np.arange(len(coords)))
    assert len(np.unique(coords, axis=0)) == len(coords)
    assert (coords + side <= (slide.width, slide.height)).all()
    lattice = (slide.width // side) * (slide.height // side)
    assert len(coords) == lattice


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
      x, y = grid.coords[i] * slide.mpp
      rows, columns = (np.mgrid[:96, :96] + 0.5) * 0.6
      red = 170 + 30 * np.sin((x + columns) / 17) + 30 * np.cos((y + rows) / 23)
      error = (read_tile(slide, grid, i)[..., 0] - red)[4:-4, 4:-4]
      assert np.abs(error).mean() < 2
      slope_x = 30 / 17 * 0.6 * np.cos((x + columns) / 17)
      slope_y = -30 / 23 * 0.6 * np.sin((y + rows) / 23)
      basis = np.stack([slope_x, slope_y, np.ones_like(red)], -1)[4:-4, 4:-4]
      shift = np.linalg.lstsq(basis.reshape(-1, 3), error.ravel())[0][:2]
      assert np.abs(shift).max() < 0.1  # Pixels of 0.6 um.


def test_upsampling_stops_at_a_factor_of_two(slide_at):
  with Slide(slide_at(0.77)) as slide:
    assert len(tile_grid(slide, tile_size=64, mpp=0.39).coords)
    with pytest.raises(
      SlideError, match=r'^0\.77_1\.tiff: 0\.77 .*--tile_mpp=0\.77'
    ):
      tile_grid(slide, tile_size=64, mpp=0.35)


def test_a_slide_smaller_than_a_tile_is_reported(slide_at):
  with Slide(slide_at(0.77)) as slide:
    with pytest.raises(SlideError, match=r'^0\.77_1\.tiff: .*smaller'):
      tile_grid(slide, tile_size=1024, mpp=0.77)


def test_a_slide_of_glass_is_reported_with_the_figures(tmp_path):
  noise = np.random.default_rng(0).normal(240, 3, (600, 600, 3))
  tiff.write(
    tmp_path / 'glass.tiff',
    noise.clip(0, 255).astype(np.uint8),
    mpp=1,
    levels=1,
  )
  with Slide(tmp_path / 'glass.tiff') as slide:
    with pytest.raises(SlideError, match=r'^glass\.tiff: no tissue: 0\.0%'):
      tile_grid(slide, tile_size=128, mpp=1.0)
    assert (
      len(tile_grid(slide, tile_size=128, mpp=1, min_tissue=0).coords) == 16
    )


def test_min_tissue_is_the_part_of_the_tile_that_is_stained(tmp_path):
  image = np.full((512, 1024, 3), 243, np.uint8)
  image[:, 96:1000] = (200, 110, 170)  # Covers 1/4 and 4/5 of the outer tiles.
  tiff.write(tmp_path / 'a.tiff', image, mpp=1, levels=1)
  with Slide(tmp_path / 'a.tiff') as slide:

    def columns(min_tissue):
      grid = tile_grid(slide, tile_size=128, mpp=1.0, min_tissue=min_tissue)
      assert (np.diff(grid.coords[:, 1]) >= 0).all()
      return sorted(set((grid.coords[:, 0] // 128).tolist()))

    assert columns(0.0) == list(range(8))
    assert columns(0.2) == list(range(8))
    assert columns(0.5) == list(range(1, 8))
    assert columns(0.95) == list(range(1, 7))


def test_tissue_part_is_the_exact_area():
  rng = np.random.default_rng(0)
  mask = rng.random((12, 15)) < 0.5
  slide = dataclasses.make_dataclass('Size', ['width', 'height'])(150, 120)
  coords = rng.integers(0, 80, (50, 2))
  fine = np.kron(mask, np.ones((10, 10)))  # One value per level-0 pixel.
  expected = [fine[y : y + 37, x : x + 37].mean() for x, y in coords]
  np.testing.assert_allclose(tissue_part(mask, slide, coords, 37), expected)


@needs_wsi
def test_fixtures_tile_at_fractional_downsamples_within_their_levels():
  path = WSI / 'openslide-fixtures/boxes.tiff'
  with Slide(path, default_mpp=1.0) as slide:
    for mpp, level in ((1.0, 0), (2.3, 1), (4.0, 2), (4.3, 2), (8.5, 3)):
      for tile_size in range(1, 28):
        grid = tile_grid(slide, tile_size=tile_size, mpp=mpp, min_tissue=0)
        assert grid.level == level
        end = grid.coords / slide.level_downsamples[level] + grid.level_size
        assert (end <= np.add(slide.level_dimensions[level], 1e-6)).all()
        assert read_tile(slide, grid, len(grid.coords) - 1).any()


@needs_wsi
def test_small_and_dicom_fixtures_tile():
  for name in ('small.svs', 'boxes_0.dcm'):
    with Slide(WSI / 'openslide-fixtures' / name) as slide:
      grid = tile_grid(slide, tile_size=8, min_tissue=0)
      expected = [[0, 0], [8, 0], [0, 8], [8, 8]]
      np.testing.assert_array_equal(grid.coords, expected)
      whole = slide.read(0, 0, 0, 16, 16)
      np.testing.assert_array_equal(read_tile(slide, grid, 1), whole[:8, 8:])


def test_outlines_take_the_place_of_tissue(slide_at):
  """A square from 100 to 300, with a hole from 150 to 200, in um = pixels."""
  square = np.array([[100, 100], [300, 100], [300, 300], [100, 300]], float)
  rings = [Ring(square, False), Ring((square - 100) / 4 + 150, True)]
  with Slide(slide_at(1.0)) as slide:

    def corners(min_tissue):
      grid = tile_grid(
        slide, tile_size=50, mpp=1.0, min_tissue=min_tissue, regions=rings
      )
      return grid.coords.tolist()

    inside = [
      [x, y] for y in range(100, 300, 50) for x in range(100, 300, 50)
    ]  # fmt: skip
    inside.remove([150, 150])
    assert corners(1.0) == corners(0.0) == inside
    rings[0] = Ring(square - 25, False)
    # A half of a tile at an edge is inside, a quarter at a corner.
    assert len(corners(0.5)) == 9 + 12 - 1
    assert len(corners(0.0)) == 25 - 1
    rings[:] = [Ring(square + 1e4, False)]
    with pytest.raises(SlideError, match='no tissue: of its 1 outlines'):
      corners(0.0)
