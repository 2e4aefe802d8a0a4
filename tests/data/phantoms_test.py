"""The phantoms of the patch papers: layout, truth, an interrupted call.

And what all phantoms draw: a change of code moves no picture unnoticed. Means
of pictures, which another processor's rounding leaves as they are.
"""

import numpy as np
import pytest

from data import node_images, phantom, tissue
from data.camelyon16 import annotations, patches
from data.ct import nodes as ct_nodes, table, volumes
from data.phantom import cohort, ct, few_shot, invasion, nodes
from data.slides import Slide


def main_slide():
  """Of which published numbers were made."""
  image, truth = phantom.render(cohort.specs(1, 0)['case_001_a'])
  corners = np.concatenate(truth.outlines)
  return image.mean((0, 1)), image.std((0, 1)), corners.mean(0)


def external_slide():
  spec = phantom.Spec(0, 3, 0, 'thyroid', phantom.EXTERNAL['look'])
  image, truth = phantom.render(spec)
  return image.mean((0, 1)), np.concatenate(truth.outlines).mean(0)


def node_pictures():
  pictures = map(phantom.render, nodes.specs(2, 1).values())
  return [
    (image.mean(), 99 * truth.mask(image.shape[:2]).mean())
    for image, truth in pictures
  ]


def invasion_patches():
  drawn = invasion.make(
    patients=2, patches=22, positives=0.2, hard=0.4, seed=3, prefix='a'
  )
  assert set(drawn['kind']) == set(invasion.KINDS)
  return drawn['image'].reshape(4, 11, -1).mean((1, 2))


def ct_volumes():
  return [
    (volume.hu.mean(), 1e4 * mask.mean())
    for volume, mask, _ in (ct.render(patient) for patient in (1, 9))
  ]


@pytest.mark.parametrize(
  'draw, means',
  [
    (
      main_slide,
      [202.507, 186.890, 206.126, 72.932, 80.173, 56.600, 1216.0, 1036.0],
    ),
    (external_slide, [212.481, 204.870, 212.103, 1578.261, 1217.391]),
    (
      node_pictures,
      # Brightness and hundredths of tumour, of two patients' three images.
      [
        [163.507, 0, 189.823, 11.357, 155.557, 0],
        [157.025, 0, 186.875, 0, 174.121, 34.298],
      ],
    ),
    (invasion_patches, [171.461, 177.797, 190.375, 185.937]),
    (ct_volumes, [-310.09, 6.245, -324.436, 25.767]),
  ],
)
def test_pictures_are_those_of_before(draw, means):
  found = np.concatenate([np.ravel(part) for part in draw()])
  np.testing.assert_allclose(found, np.ravel(means), rtol=0, atol=5e-3)


FEW_SHOT = {'train': (1, 0), 'val': (0, 0), 'test': (0, 1)}


@pytest.fixture(scope='module')
def camelyon(tmp_path_factory):
  root = tmp_path_factory.mktemp('phantom')
  few_shot.make(root, slides=FEW_SHOT)
  return root


@pytest.fixture(scope='module')
def node_folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('nodes')
  nodes.make(root, development=2, test=2, seed=3)
  return root


def test_few_shot_patches_show_what_their_list_says(camelyon):
  known = annotations.find(camelyon / 'annotations')
  assert set(known.files) == {'tumor_001'}
  assert not (camelyon / 'lists/test_bad.txt').read_text()
  for list_name, name, is_tumour in (
    ('train_bad', 'tumor_001', True),
    ('train_good', 'tumor_001', False),
    ('test_good', 'test_001', False),
  ):
    listed = patches.read(camelyon / f'lists/{list_name}.txt')
    assert set(listed.slide.tolist()) == {name}
    with Slide(camelyon / f'slides/{name}.tiff') as slide:
      shape = slide.height, slide.width
      on = patches.tissue_map(slide, few_shot.STRIDE)
    half = few_shot.SIZE // 2
    assert (listed.xy >= half).all()
    assert (listed.xy + half <= shape[::-1]).all()
    x, y = listed.xy.T
    if name in known.files:
      tumour = known.mask(name, shape, 1)
      # Half a patch from the border of tumour, on both its sides.
      assert 0.002 < tumour.mean() < 0.2
      assert (tumour[y, x] == is_tumour).all()
    assert is_tumour or on[y // few_shot.STRIDE, x // few_shot.STRIDE].all()


@pytest.mark.parametrize(
  'make, root, options, lost',
  [
    (
      few_shot.make,
      'camelyon',
      {'slides': FEW_SHOT},
      ['slides/tumor_001.tiff', 'lists/train_bad.txt', 'reference.csv'],
    ),
    (
      nodes.make,
      'node_folder',
      {'development': 2, 'test': 2, 'seed': 3},
      ['images/node_01b.png', 'images.csv'],
    ),
  ],
)
def test_an_interrupted_call_goes_on_to_the_same_files(
  make, root, options, lost, request
):
  root = request.getfixturevalue(root)
  before = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
  for name in lost:
    (root / name).unlink()
  make(root, **options)
  assert {p: p.read_bytes() for p in root.rglob('*') if p.is_file()} == before


def test_node_images_are_read_as_users_images_are(node_folder):
  images = node_images.load(
    *(node_folder / name for name in ('images', 'masks', 'images.csv'))
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


def test_invasion_is_a_function_of_seed_and_patient():
  options = {'patches': 6, 'positives': 0.4, 'hard': 0.5}
  draw = lambda patients, seed=3, prefix='a': invasion.make(
    patients=patients, seed=seed, prefix=prefix, **options
  )
  made, fewer = draw(3), draw(1)
  assert made['image'].shape == (18, invasion.SIZE, invasion.SIZE, 3)
  np.testing.assert_array_equal(fewer['image'], made['image'][:6])
  for other in (draw(1, seed=4), draw(1, prefix='b')):
    assert (other['image'] != fewer['image']).mean() > 0.5
  assert len(set(made['id'])) == 18 and len(set(made['patient'])) == 3
  np.testing.assert_array_equal(made['label'], made['kind'] == 'embolus')
  options['positives'] = 0.0
  assert not draw(1)['label'].any()


def test_the_truth_of_a_patch_outlines_its_embolus():
  kinds = np.array(invasion.KINDS)
  image, truths = invasion.render(np.random.default_rng(5), kinds)
  assert [truth.kind for truth in truths] == kinds.tolist()
  for pixels, truth in zip(image, truths, strict=True):
    mask = truth.mask(pixels.shape[:2])
    assert mask.any() == (truth.kind == invasion.POSITIVE)
    if mask.any():  # Cells float in a space that is paler than all around.
      green = pixels[..., 1]
      assert green[mask].max() > green[~mask].max()
      assert 0.05 < mask.mean() < 0.6


def test_every_ct_label_is_a_node_in_fat_among_tissues_of_their_units():
  for volume, mask, labels in map(ct.render, (0, 1, 6)):
    hu = volume.hu
    share = lambda low, high, hu=hu: ((hu > low) & (hu < high)).mean()
    assert share(-1100, -900) > 0.15  # Air about the body.
    assert share(-150, -50) > 0.2  # Fat.
    assert share(20, 100) > 0.1  # Muscle.
    assert 0.002 < share(300, 4000) < 0.05  # Bone, and bowel contrast.
    assert np.diff(hu[:, 130:150, :10], axis=2).std() < 40  # Noise.
    assert set(np.unique(mask)) == set(range(len(labels) + 1))
    for value in range(1, len(labels) + 1):
      numbered = ct_nodes.parts(mask, value)
      (node,), _ = ct_nodes.find(numbered, volume.spacing)
      assert node.extent < 40
      z, y, x = node.box
      around = hu[z, y.start - 4 : y.stop + 4, x.start - 4 : x.stop]
      assert np.percentile(around, 10) < -60


def test_written_ct_volumes_are_those_rendered(tmp_path):
  ct.make(tmp_path, patients=2)
  rows = table.read(tmp_path / 'labels.csv', ct.CLASSES)
  wanted = []
  for i in range(2):
    volume, mask, labels = ct.render(i)
    wanted += [(f'ct00{i}', label) for label in labels]
    found = volumes.read(tmp_path / f'ct00{i}_image.nii.gz')
    np.testing.assert_array_equal(found.hu, volume.hu)
    np.testing.assert_allclose(found.spacing, volume.spacing, rtol=1e-6)
    again = volumes.read_mask(tmp_path / f'ct00{i}_mask.nii.gz', found)
    np.testing.assert_array_equal(again, mask)
  assert [(row.patient, row.label) for row in rows] == wanted
