"""Renders the phantom of CAMELYON16 and draws its patch lists."""

from collections.abc import Callable
from concurrent import futures
import dataclasses
import json
from pathlib import Path

import numpy as np

from data import files, tiff
from data.camelyon16 import annotations, patches
from data.phantom import slide, stain
from data.slides import Slide

# All lengths are a quarter of CAMELYON16's in pixels, and the same in um.
MPP = 1.0  # Micrometres per level-0 pixel.
SIZE = 64  # Side of a patch.
APART = 32  # Between the centres of patches, in x or y.
STRIDE = 16  # Level-0 pixels per pixel of the maps that patches are drawn on.
LEVEL = 3  # Of the masks of the lesion-level score: 8 um per pixel.
LISTS = ('train', 'val', 'test')
# Tumour patches of the main training, and of all and those in He and Li that
# they stand for: 6 % of theirs, as the normal patches are (300 of 5,000). Of 5
# and 10 that would be less than one.
MAIN = 30
COUNTS = {0: 0, 3: 50, 6: 100, 30: 500, 60: 1000}

_LOOK = stain.Appearance(mpp=MPP, blur=0.4)
_TUMOUR = 'breast'
_LEVELS = 4  # Of the files: downsampled by 1, 2, 4 and 8.


@dataclasses.dataclass(frozen=True)
class _Part:
  """Slides of a part and the patches drawn of each; see `make`."""

  tumour: int
  normal: int
  good: int  # Patches of normal tissue per slide.
  bad: int  # Patches of tumour per slide that has it.


# As in He and Li, training slides all hold tumour. There, 500 normal patches
# were drawn of each, and validation had one slide of either kind.
_PARTS = {
  'train': _Part(10, 0, 30, 20),
  'val': _Part(4, 1, 16, 32),
  'test': _Part(8, 8, 13, 32),
}


@dataclasses.dataclass(frozen=True)
class _Planned:
  name: str
  part: str
  spec: slide.Spec

  @property
  def tumour(self) -> bool:
    return self.spec.label == _TUMOUR


def make(
  root: Path,
  *,
  seed: int = 0,
  slides: dict[str, tuple[int, int]] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Path:
  """Writes slides whose truth is known, in CAMELYON16's layout.

  Nodes with metastases of 0.1 to 0.3 mm, drawn as those of breast cancer, and
  nodes without, every one of a patient of its own. Files that are there are
  kept, which makes an interrupted call resumable.

  Args:
    root: the folder to fill: slides/<slide>.tiff (`MPP` um per pixel, names as
      CAMELYON16's), annotations/<slide>.json (NCRF's layout) of slides with
      tumour, reference.csv of test slides, and lists/<part>_good.txt and
      lists/<part>_bad.txt, lines `slide,x,y` of patches of `SIZE`.
    seed: another seed is another cohort.
    slides: of each of `LISTS`, how many with tumour and how many without; by
      default 10 and 0, 4 and 1, 8 and 8.
    progress: called with (slides done, slides in all) after every slide.

  Returns:
    `root`.
  """
  root = Path(root)
  planned = _plan(seed, slides or {})
  for name in ('slides', 'annotations', 'lists'):
    (root / name).mkdir(parents=True, exist_ok=True)
  with futures.ThreadPoolExecutor(2) as pool:
    jobs = [pool.submit(_write_slide, root, some) for some in planned]
    for done, job in enumerate(futures.as_completed(jobs), 1):
      job.result()
      if progress is not None:
        progress(done, len(jobs))
  for part in LISTS:
    _write_lists(root, part, [p for p in planned if p.part == part], seed)
  truth = {True: ('Tumor', 'IDC', 'Micro'), False: ('Normal', 'IDC', 'None')}
  # Last: its presence says that all is there.
  files.write_csv(
    root / 'reference.csv',
    [(p.name, *truth[p.tumour]) for p in planned if p.part == 'test'],
  )
  return root


def _plan(seed: int, slides: dict[str, tuple[int, int]]) -> list[_Planned]:
  """Returns all slides; those of a part do not depend on the other parts."""
  planned = []
  count = {'tumor': 0, 'normal': 0}
  for number, (part, default) in enumerate(_PARTS.items()):
    sizes = slides.get(part, (default.tumour, default.normal))
    kinds = [('tumor', _TUMOUR)] * sizes[0] + [('normal', 'non-tumor')] * sizes[
      1
    ]
    # The number of a test slide does not tell its label.
    order = np.random.default_rng([seed, number]).permutation(len(kinds))
    for place in range(len(kinds)):
      kind, label = kinds[order[place] if part == 'test' else place]
      count[kind] += part != 'test'
      name = (
        f'test_{place + 1:03d}'
        if part == 'test'
        else f'{kind}_{count[kind]:03d}'
      )
      spec = slide.Spec(seed, 1000 * number + place, 0, label, _LOOK)
      planned.append(_Planned(name, part, spec))
  return planned


def _write_slide(root: Path, planned: _Planned) -> None:
  path = root / 'slides' / f'{planned.name}.tiff'
  if path.exists():
    return
  image, truth = slide.render(planned.spec)
  if planned.tumour:  # First: a slide that is there is complete.
    polygons = [
      {'name': f'Annotation {i}', 'vertices': corners.round(1).tolist()}
      for i, corners in enumerate(truth.outlines)
    ]
    text = json.dumps({'positive': polygons, 'negative': []})
    with files.replacing(_annotation(root, planned.name)) as part:
      part.write_text(text)
  tiff.write(path, image, mpp=MPP, levels=_LEVELS)


def _annotation(root: Path, name: str) -> Path:
  return root / 'annotations' / f'{name}.json'


def _write_lists(
  root: Path, part: str, planned: list[_Planned], seed: int
) -> None:
  """Draws the patches of a part by FW-RD's rule."""
  paths = [root / 'lists' / f'{part}_{kind}.txt' for kind in ('good', 'bad')]
  if all(path.exists() for path in paths):
    return
  good, bad, sizes = {}, {}, {}
  for some in planned:
    with Slide(root / 'slides' / f'{some.name}.tiff') as opened:
      tissue = patches.tissue_map(opened, STRIDE)
      sizes[some.name] = (opened.width, opened.height)
    if some.tumour:
      known = annotations.find(root / 'annotations')
      bad[some.name] = known.mask(some.name, tissue.shape, STRIDE)
      tissue &= ~bad[some.name]
    good[some.name] = tissue
  default = _PARTS[part]
  for path, masks, count in zip(
    paths, (good, bad), (default.good, default.bad), strict=True
  ):
    drawn = patches.sample(
      masks, sizes, count, seed, patch=SIZE, apart=APART, stride=STRIDE
    )
    patches.write(path, drawn)
