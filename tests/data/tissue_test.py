"""Tissue is told from glass and ink, to the pixel."""

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from data import tissue
from data.phantom import slide as phantom_slide
from data.slides import Slide
from data.tissue import Rule, focus, otsu, tissue_mask

GLASS = (243, 242, 244)
PINK = (222, 150, 190)
PURPLE = (120, 75, 150)
INKS = {
  'blue': (40, 60, 180),
  'light blue': (90, 140, 225),
  'navy': (25, 25, 110),
  'green': (30, 130, 70),
  'teal': (40, 110, 130),
  'red': (215, 40, 45),
  'black': (28, 26, 29),
  'tinted black': (14, 9, 12),
}


def overview(*squares, glass=GLASS, size=200, noise=2.0):
  """Glass with squares (y, x, side, colour) and the noise of a camera."""
  image = np.empty((size, size, 3))
  image[:] = glass
  for y, x, side, colour in squares:
    image[y : y + side, x : x + side] = colour
  image += np.random.default_rng(0).normal(0, noise, image.shape)
  return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
  'colour, glass',
  [
    (PINK, GLASS),
    (PURPLE, GLASS),
    ((60, 25, 95), GLASS),
    ((222, 190, 200), (238, 231, 217)),  # Pale, on tinted glass.
  ],
)
def test_finds_stained_squares_to_the_pixel(colour, glass):
  mask = tissue_mask(overview((40, 60, 80, colour), glass=glass), 8)
  truth = np.zeros((200, 200), bool)
  truth[40:120, 60:140] = True
  assert mask.dtype == bool
  assert (mask ^ truth).sum() <= 4 * 80  # Its border is one pixel wide.


@pytest.mark.parametrize('ink', INKS)
def test_rejects_ink_beside_and_on_tissue(ink):
  tissue, beside, on = (10, 10, 100, PINK), (130, 130, 50, INKS[ink]), 30
  mask = tissue_mask(overview(tissue, beside, (40, 40, on, INKS[ink])), 8)
  assert not mask[125:185, 125:185].any()
  assert not mask[40:70, 40:70].any()
  assert mask[10:110, 85:108].all()


def test_a_dot_of_ink_is_not_closed_like_a_hole():
  dots = [
    (60, x, 5, colour) for x, colour in ((50, INKS['blue']), (100, GLASS))
  ]
  mask = tissue_mask(overview((10, 10, 150, PINK), *dots), 8)
  assert not mask[60:65, 50:55].any() and mask[60:65, 100:105].all()


@pytest.mark.parametrize(
  'glass, squares',
  [
    (GLASS, [(0, 0, 40, (150, 150, 152)), (0, 150, 50, (60, 58, 60))]),
    ((255, 255, 255), []),
    ((236, 230, 216), []),
    ((225, 230, 240), []),
  ],
)
@pytest.mark.parametrize('noise', [0.0, 4.0])
def test_glass_holds_no_tissue_be_it_tinted_grey_or_dark(glass, squares, noise):
  image = overview(*squares, glass=glass, noise=noise)
  assert not tissue_mask(image, 8).any()


def test_pale_tissue_is_kept_beside_dark_tissue_and_without_glass():
  pale = (225, 185, 205)
  mask = tissue_mask(overview((0, 0, 90, PURPLE), (100, 100, 90, pale)), 8)
  assert mask[2:88, 2:88].all() and mask[102:188, 102:188].all()
  image = overview((0, 0, 100, PURPLE), glass=(205, 130, 175))
  assert tissue_mask(image, 8).mean() > 0.98


@pytest.mark.parametrize('mpp', [4.0, 8.0])
def test_specks_and_holes_are_judged_by_their_area(mpp):
  small, large = (
    round(area_mm2**0.5 * 1000 / mpp) for area_mm2 in (0.002, 0.02)
  )
  image = overview(
    (10, 10, 300, PINK),
    (30, 30, small, GLASS),
    (100, 100, large, GLASS),
    (350, 10, small, PURPLE),
    (350, 100, large, PURPLE),
    size=400,
  )
  mask = tissue_mask(image, mpp)
  assert mask[30 : 30 + small, 30 : 30 + small].all()
  assert not mask[103 : 97 + large, 103 : 97 + large].any()
  assert not mask[350 : 350 + small, 10 : 10 + small].any()
  assert mask[352 : 348 + large, 102 : 98 + large].all()


def test_a_rule_takes_the_place_of_what_is_usual():
  pale, size = (225, 215, 222), 30  # 0.06 mm2 at 8 um/px; saturated by 1/23.
  image = overview(
    (10, 10, size, PINK), (60, 10, 120, pale), (90, 40, 30, GLASS)
  )
  strip = np.s_[62:88, 12:128]

  def seen(**rule):
    mask = tissue_mask(image, 8, Rule(**rule))
    return (
      mask[12:38, 12:38].all(),
      mask[strip].mean(),
      mask[93:117, 43:67].any(),
    )

  assert seen() == (True, 0, False)
  small, strip_seen, hole = seen(saturation=0.02)
  assert small and strip_seen > 0.9 and not hole
  assert seen(saturation=0.02, max_hole_mm2=0.1)[2]
  assert not seen(min_piece_mm2=0.1)[0] and seen(min_piece_mm2=0.05)[0]


def test_focus_is_the_variance_of_the_laplacian():
  """Of a wave of amplitude 50, 50 (2 - 2 cos) of its steps, squared, halved."""
  x = np.arange(256)
  for period in (4, 8):
    wave = np.rint(128 + 50 * np.cos(2 * np.pi * x / period)).astype(np.uint8)
    tile = np.broadcast_to(wave[None, :, None], (256, 256, 3)).copy()
    gain = 2 - 2 * np.cos(2 * np.pi / period)
    assert focus(tile) == pytest.approx((50 * gain) ** 2 / 2, rel=0.05)
    np.testing.assert_allclose(
      focus(tile.transpose(1, 0, 2)), focus(tile), 1e-5
    )
  assert focus(np.full((64, 64, 3), 200, np.uint8)) == 0


def test_otsu_is_the_best_of_all_thresholds():
  rng = np.random.default_rng(1)
  values = np.concatenate([rng.beta(2, 30, 3000), rng.beta(8, 12, 1000)])
  binned = (np.floor(values * 256) + 0.5) / 256

  def between(threshold):
    low, high = binned[binned < threshold], binned[binned >= threshold]
    if not len(low) or not len(high):
      return 0.0
    return len(low) * len(high) * (low.mean() - high.mean()) ** 2

  scores = [between(i / 256) for i in range(257)]
  assert otsu(values) == pytest.approx(np.argmax(scores) / 256)
  assert otsu(np.array([])) == 0


def test_real_tissue_is_found_and_real_glass_is_not(real_data):
  with Slide(real_data / 'wsi/CMU-1-Small-Region.svs') as slide:
    image = slide.thumbnail(8)
  mask = tissue_mask(image, 8)
  assert 0.30 < mask.mean() < 0.40
  assert image[~mask].mean() > 225 and image[mask].mean() < 190
  assert not mask[:60, :40].any() and mask[110:180, 60:95].mean() > 0.98


@pytest.fixture(scope='module', params=['phantom', 'real'])
def slide_overview(request):
  """A slide without a pen mark at 8 um per pixel, and its tissue."""
  if request.param == 'real':
    folder = request.getfixturevalue('real_data')
    with Slide(folder / 'wsi/CMU-1-Small-Region.svs') as slide:
      image = slide.thumbnail(8)
  else:
    spec = phantom_slide.Spec(5, 1, 0, 'breast')
    clean = lambda rng, shape: np.ones((*shape, 3), np.float32)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(phantom_slide, '_ink', clean)
      image, _ = phantom_slide.render(spec)
    image = np.asarray(Image.fromarray(image).reduce(16))
  return image, tissue_mask(image, 8)


@pytest.mark.parametrize('ink', range(len(phantom_slide._INKS)))
@pytest.mark.parametrize('cover', [1.0, 0.6])
def test_a_pen_is_no_tissue_and_loses_none_that_is_not_under_it(
  slide_overview, ink, cover
):
  image, known = slide_overview
  height, width = known.shape
  y, x = np.mgrid[:height, :width]
  stroke = abs(y - 0.2 * height - 0.3 * x) < 5
  stroke |= abs(y - 0.85 * height + 0.1 * x) < 7
  rng = np.random.default_rng(0)
  ink_there = cover * ndimage.gaussian_filter(stroke.astype(float), 1)
  ink_there *= 1 - 0.25 * rng.random(known.shape)
  light = 1 - ink_there[..., None] * (1 - np.array(phantom_slide._INKS[ink]))
  mask = tissue_mask((image * light).astype(np.uint8), 8)
  near = ndimage.binary_dilation(stroke, iterations=6)  # Ink fades to there.
  glass = ndimage.minimum_filter(image.min(-1), 5) > 220  # And no debris.
  assert mask[stroke & glass].mean() < 0.02
  assert mask[known & ~near].mean() > 0.99
  assert not mask[~known & ~near].any()
  blue_green_black = ink < 3
  if blue_green_black and cover == 1:  # Red on tissue looks like eosin.
    assert mask[stroke & known].mean() < 0.25


@pytest.mark.parametrize('strength', [0.7, 0.5, 0.3])
def test_pale_slides_keep_their_tissue(slide_overview, strength):
  """Beer-Lambert: both dyes absorb less by a factor."""
  image, known = slide_overview
  glass = np.percentile(image.reshape(-1, 3), 99, axis=0)
  density = -np.log((image / glass).clip(1 / 255, 1))
  noise = np.random.default_rng(0).normal(0, 0.7, image.shape)
  pale = (glass * np.exp(-strength * density) + noise).clip(0, 255)
  mask = tissue_mask(pale.astype(np.uint8), 8)
  assert mask[known].mean() > 0.92 and mask[~known].mean() < 0.01


@pytest.mark.parametrize(
  'colour',
  [
    (0, 0, 0),
    (60, 58, 60),
    (70, 55, 45),
    (110, 118, 130),
    (120, 110, 100),
    (160, 150, 150),
  ],
)
@pytest.mark.parametrize('width', [6, 14])
def test_the_dark_border_of_a_scan_is_no_tissue(slide_overview, colour, width):
  image, known = slide_overview
  inside = np.zeros(known.shape, bool)
  inside[width:-width, width:-width] = True
  inner = ndimage.gaussian_filter(inside.astype(float), 1.5)[..., None]
  framed = image * inner + np.array(colour) * (1 - inner)
  mask = tissue_mask(framed.astype(np.uint8), 8)
  far = ndimage.binary_erosion(inside, iterations=6)
  assert mask[~inside & ~known].mean() < 0.01
  assert (mask & ~known).sum() < 0.01 * known.sum()
  assert mask[known & far].mean() > 0.98


def test_glass_ends_where_tissue_begins():
  tissue_alone = overview(glass=(225, 170, 215), noise=4)
  assert not tissue.glass(tissue_alone, 1.0).any()
  for light in (244, 215):  # Of a bright and of a dim lamp.
    image = overview((0, 100, 200, (200, 120, 180)), glass=(light,) * 3)
    found = tissue.glass(image, 1.0)
    assert found[:, :94].all() and not found[:, 106:].any()


@pytest.mark.parametrize('mpp', [1.0, 0.5])
def test_slits_between_cells_are_no_glass_and_lumens_are(mpp):
  image = overview(glass=(200, 120, 180), noise=4)
  slit, lumen = round(3 / mpp), round(30 / mpp)
  image[:, 20 : 20 + slit] = 245
  image[50 : 50 + lumen, 60 : 60 + lumen] = 245
  found = tissue.glass(image, mpp)
  assert not found[:, :50].any()
  assert found[50 + lumen // 2, 60 + lumen // 2]
