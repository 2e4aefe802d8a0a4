"""Holds the external phantom to its promises: other looks, same structures."""

import csv
import dataclasses
import json

import numpy as np
import openslide
from PIL import Image
import pytest

from data import phantom
from data.phantom import cohort, slide, stain

LOOK = phantom.EXTERNAL['look']
SPEC = phantom.Spec(seed=3, case=1, slide=0, label='squamous')


def um(look, image):
  """An image at 4 um per pixel, grey, cut to what both looks show."""
  side = int(1000 / look.mpp)
  cut = Image.fromarray(image[:side, :side]).convert('L')
  return np.asarray(cut.resize((250, 250), Image.Resampling.BOX), float)


@pytest.fixture(scope='module')
def pair():
  """The same slide in the main cohort's look and in the external one."""
  return phantom.render(SPEC), phantom.render(
    dataclasses.replace(SPEC, look=LOOK)
  )


def test_the_main_cohort_is_what_it_was():
  """Published numbers were made from these pixels.

  Means, not a hash: exponentials differ by a bit from processor to processor.
  """
  name, spec = next(iter(cohort.specs(1, 0).items()))
  image, corners = phantom.render(spec)
  assert (name, spec.label) == ('case_001_a', 'lymphoma')
  assert image.shape == (2488, 2544, 3)
  means = [202.728, 187.191, 206.102]
  np.testing.assert_allclose(image.mean((0, 1)), means, atol=0.01)
  deviations = [74.256, 81.027, 60.062]
  np.testing.assert_allclose(image.std((0, 1)), deviations, atol=0.01)
  np.testing.assert_allclose(np.concatenate(corners).mean(0), [1224.0, 1560.0])


def test_structures_keep_their_micrometres(pair):
  (main, rings), (external, other_rings) = pair
  scale = 0.5 / 0.46
  for ring, other in zip(rings, other_rings, strict=True):
    np.testing.assert_allclose(other * 0.46, ring * 0.5)
  for a, b in zip(main.shape[:2], external.shape[:2], strict=True):
    assert 0 <= a * scale - b < 8 and b % 8 == 0
  one, other = um(stain.Appearance(), main), um(LOOK, external)
  centred = one - one.mean(), other - other.mean()

  def alike(shift):
    return np.corrcoef(
      centred[0].ravel(), np.roll(centred[1], shift, 1).ravel()
    )[0, 1]

  shifts = [alike(shift) for shift in (-2, -1, 0, 1, 2)]
  assert np.argmax(shifts) == 2 and shifts[2] > 0.95
  # Pixels taken for ones of 0.5 um lie elsewhere: 80 um off at the far edge.
  wrong = um(stain.Appearance(), external)
  assert np.corrcoef(one.ravel(), wrong.ravel())[0, 1] < 0.7


def test_the_scanner_blurs_more_and_is_noisier(pair):
  def sharpness(look):
    """Of an edge without noise: the largest step per micrometre."""
    edge = np.zeros((64, 64), np.float32)
    edge[:, 32:] = 2
    quiet = dataclasses.replace(look, noise=0)
    image = expose(quiet, edge)[32, :, 0].astype(float)
    return np.abs(np.diff(image)).max() / look.mpp / np.ptp(image)

  def grain(look):
    return expose(look, np.zeros((128, 128), np.float32))[..., 1].std()

  def expose(look, density):
    rng = np.random.default_rng(0)
    glass = stain.Stain(np.full((2, 3), 0.5), np.full(3, 0.9))
    nothing = np.zeros_like(density)
    ink = np.ones((density.shape[0] // 8, density.shape[1] // 8, 3))
    return stain.expose(look, glass, rng, density, nothing, ink)

  main = stain.Appearance()
  assert sharpness(LOOK) < 0.9 * sharpness(main)
  assert grain(LOOK) > 1.2 * grain(main)
  (image, _), (external, _) = pair
  assert np.percentile(external, 99) < np.percentile(image, 99) - 4  # Glass.


def test_stains_differ_by_more_than_between_cases():
  """Hue, the share of a stain's absorbance in each colour, is another."""
  main = stain.Appearance()
  for name in ('haematoxylin', 'eosin'):
    mine, other = (np.array(getattr(look, name)) for look in (main, LOOK))
    assert np.abs(mine - other).max() > 2.5 * main.hue_case
  draw = lambda look, i: (
    stain.draw(
      look, np.random.default_rng(i), np.random.default_rng(100 + i)
    ).absorbance
  )
  hue = lambda a: a[1] / a[1].sum()
  blue = {
    look: [hue(draw(look, i))[2] for i in range(40)] for look in (main, LOOK)
  }
  assert np.mean(blue[LOOK]) > np.quantile(blue[main], 0.9)


def test_cohort_on_disk(tmp_path):
  options = phantom.EXTERNAL | {'cases_per_class': 1}
  specs = dict(list(cohort.specs(1, 1, 'ext_', LOOK).items())[:2])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cohort, 'specs', lambda *args: asked.append(args) or specs)
    asked = []
    phantom.make(tmp_path, **options)
  assert asked == [(1, 1, 'ext_', LOOK)]
  with (tmp_path / 'labels.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['slide_id'] for row in rows] == list(specs)
  for row, spec in zip(rows, specs.values(), strict=True):
    assert row['slide_id'].startswith('ext_case_')
    assert row['case_id'] == f'ext_case_{spec.case + 1:03d}'
    name = row['slide_id']
    with openslide.OpenSlide(tmp_path / f'slides/{name}.tiff') as file:
      assert float(file.properties['openslide.mpp-x']) == pytest.approx(0.46)
      size = file.dimensions
    image, corners = slide.render(spec)
    assert size == image.shape[1::-1]
    outline = json.loads((tmp_path / f'outlines/{name}.json').read_text())
    assert len(outline['features']) == len(corners)
    for ring, feature in zip(corners, outline['features'], strict=True):
      found = feature['geometry']['coordinates'][0][:-1]
      np.testing.assert_allclose(found, ring, atol=0.051)


def test_the_cohorts_have_nothing_in_common():
  external = dict(phantom.EXTERNAL)
  specs = cohort.specs(
    *(external[k] for k in ('cases_per_class', 'seed', 'prefix', 'look'))
  )
  main = cohort.specs(12, 0)
  assert not {cohort.case_id(n) for n in specs} & {
    cohort.case_id(n) for n in main
  }
  assert len(specs) == 75
  assert len({spec.case for spec in specs.values()}) == 35
  assert {spec.label for spec in specs.values()} == set(phantom.LABELS)
  assert list(specs) == sorted(specs)
  assert all(spec.seed != 0 and spec.look == LOOK for spec in specs.values())
