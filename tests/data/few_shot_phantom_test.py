"""The phantom of CAMELYON16: its layout, its truth, an interrupted call."""

import numpy as np
import pytest

from data.camelyon16 import annotations, patches, slides
from data.phantom import few_shot as phantom
from data.slides import Slide

SLIDES = {'train': (1, 0), 'val': (0, 0), 'test': (0, 1)}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return phantom.make(tmp_path_factory.mktemp('phantom'), slides=SLIDES)


def test_slides_are_named_and_labelled_as_camelyon16s(root):
  wanted = [path.stem for path in (root / 'slides').iterdir()]
  found = slides.find(root / 'slides', root / 'reference.csv', wanted=wanted)
  assert {(s.id, s.part, s.label) for s in found} == {
    ('tumor_001', 'train', 'tumor'),
    ('test_001', 'test', 'normal'),
  }
  with Slide(found[0].path) as slide:
    assert slide.mpp == pytest.approx(phantom.MPP)


def of(found, slide):
  """Centres of a list in one slide."""
  return found.xy[found.slide == slide]


def test_patches_show_what_their_list_says(root):
  known = annotations.find(root / 'annotations')
  assert set(known.files) == {'tumor_001'}
  bad = patches.read(root / 'lists/train_bad.txt')
  assert set(bad.slide.tolist()) == {'tumor_001'}
  assert not (root / 'lists/test_bad.txt').read_text()
  for part in ('train', 'test'):
    good = patches.read(root / f'lists/{part}_good.txt')
    assert len(good) >= 10
    for name in set(good.slide.tolist()):
      with Slide(root / f'slides/{name}.tiff') as slide:
        shape = slide.height, slide.width
        on = patches.tissue_map(slide, phantom.STRIDE)
      tumour = np.zeros(shape, bool)
      if name in known.files:
        tumour = known.mask(name, shape, 1)
        # Half a patch from the border of tumour, on both its sides.
        assert 0.002 < tumour.mean() < 0.2
      for centres, inside in ((of(good, name), False), (of(bad, name), True)):
        x, y = centres.T
        assert (tumour[y, x] == inside).all()
        low, high = centres.min(0, initial=99), centres.max(0, initial=0)
        assert (low >= phantom.SIZE // 2).all()
        assert (high + phantom.SIZE // 2 <= shape[::-1]).all()
      x, y = of(good, name).T // phantom.STRIDE
      assert on[y, x].all()


def test_an_interrupted_call_goes_on_to_the_same_files(root):
  kept = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
  slide = root / 'slides/tumor_001.tiff'
  for path in (slide, root / 'lists/train_bad.txt', root / 'reference.csv'):
    path.unlink()
  told = []
  phantom.make(root, slides=SLIDES, progress=lambda *n: told.append(n))
  assert {p: p.read_bytes() for p in root.rglob('*') if p.is_file()} == kept
  assert told == [(1, 2), (2, 2)]
