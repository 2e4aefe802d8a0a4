"""Draws validation patches, which He and Li did not release."""

from collections.abc import Callable, Collection
import pathlib

import numpy as np

from data.camelyon16 import patches, slides
from data.camelyon16.annotations import Annotations
from data.camelyon16.patches import Patches
from data.labelled_tiles import TileError
from data.slides import Slide, list_slides, slide_id

_COUNT = 2000  # Of each kind, of a slide each, as theirs.


def draw(
  slides_dir: pathlib.Path,
  listed: Collection[str],
  known: Annotations,
  *,
  seed: int,
  size: int,
) -> dict[tuple[str, str], Patches]:
  """Draws patches of a slide with tumour and of one without, by FW-RD's rule.

  Of the slides of each kind in the official training part it is the first that
  has room for 2,000 patches, else the one with most: in many slides with tumour
  there are fewer than 50.

  Args:
    slides_dir: with slides of the official training part.
    listed: slides that other parts have patches of, which are not used.
    known: annotations; slides with tumour that have none are not used.
    seed: of the draw.
    size: side of a patch.

  Returns:
    ('val', 'good') of the normal slide and ('val', 'bad') of the other.

  Raises:
    TileError: if there is no slide of either kind, or no patch in any.
    SlideError: if a slide cannot be read.
  """
  files = {slide_id(p).lower(): p for p in list_slides(slides_dir)}
  free = sorted(set(files) - set(listed) - set(slides.RELABELLED))
  tumour = [n for n in free if n.startswith('tumor_') and n in known.files]
  normal = [n for n in free if n.startswith('normal_')]

  def outlined(name: str, slide: Slide) -> np.ndarray:
    shape = tuple(-(-n // patches.STRIDE) for n in (slide.height, slide.width))
    # With its holes, as in the released code.
    return known.mask(name, shape, patches.STRIDE, holes=False)

  def most(names: list[str], mask: Callable[[str, Slide], np.ndarray]):
    best = Patches(np.zeros(0, str), np.zeros((0, 2), np.int64))
    for name in names:
      with Slide(files[name], default_mpp=1.0) as slide:
        masks, sizes = mask(name, slide), (slide.width, slide.height)
      found = patches.sample(
        {name: masks}, {name: sizes}, _COUNT, seed, patch=size
      )
      best = max(best, found, key=len)
      if len(best) == _COUNT:
        break
    return best

  found = {
    ('val', 'good'): most(normal, lambda _, slide: patches.tissue_map(slide)),
    ('val', 'bad'): most(tumour, outlined),
  }
  for (_, kind), some in found.items():
    if not len(some):
      raise TileError(
        f'{slides_dir}: validation patches are drawn of an annotated tumor'
        ' slide and a normal slide without other patches, and there is no'
        f' {"normal" if kind == "good" else "tumor"} one with room for any;'
        ' add it, or val_good.txt and val_bad.txt to the lists'
      )
  return found
