"""Draws validation patches, which He and Li did not release."""

from collections.abc import Collection, Mapping
import pathlib

from data.camelyon16 import patches, slides, tissue
from data.camelyon16.annotations import Annotations
from data.camelyon16.patches import Patches
from data.labelled_tiles import TileError
from data.slides import Slide, list_slides, slide_id

_COUNT = 2000  # Of each kind, as theirs.


def choose(
  slides_dir: pathlib.Path, listed: Collection[str], known: Annotations
) -> list[str]:
  """Returns a slide with tumour and one without, the first that can serve.

  Args:
    slides_dir: with slides of the official training part.
    listed: slides that other parts have patches of.
    known: annotations; the slide with tumour must have one.

  Raises:
    TileError: if there is none of either kind.
  """
  free = sorted({slide_id(p).lower() for p in list_slides(slides_dir)})
  free = [
    name
    for name in free
    if name not in listed and name not in slides.RELABELLED
  ]
  tumour = [n for n in free if n.startswith('tumor_') and n in known.files]
  normal = [n for n in free if n.startswith('normal_')]
  if not tumour or not normal:
    raise TileError(
      f'{slides_dir}: validation patches are drawn of an annotated tumor slide'
      ' and a normal slide without other patches, and there is no'
      f' {"normal" if tumour else "tumor"} one; add it, or val_good.txt and'
      ' val_bad.txt to the lists'
    )
  return [tumour[0], normal[0]]


def draw(
  files: Mapping[str, pathlib.Path],
  known: Annotations,
  *,
  seed: int,
  size: int,
) -> dict[tuple[str, str], Patches]:
  """Draws the patches of `choose`'s slides by He and Li's rule.

  Args:
    files: of the slide with tumour and of the other.
    known: annotations.
    seed: of the draw.
    size: side of a patch.

  Returns:
    ('val', 'good') from the normal slide and ('val', 'bad') from the other.
  """
  (tumour, _), (normal, _) = files.items()
  masks, sizes = {}, {}
  for name, path in files.items():
    with Slide(path, default_mpp=1.0) as slide:
      masks[name] = tissue.tissue_map(slide)
      sizes[name] = (slide.width, slide.height)
  # With its holes, as in the released code.
  masks[tumour] = known.mask(
    tumour, masks[tumour].shape, tissue.STRIDE, holes=False
  )
  pick = lambda name: patches.sample(
    {name: masks[name]}, sizes, _COUNT, seed, patch=size
  )
  return {('val', 'good'): pick(normal), ('val', 'bad'): pick(tumour)}
