"""Renders the phantom of CAMELYON16 and draws its patch lists."""

from pathlib import Path

import numpy as np

from data import files
from data.camelyon16 import annotations, patches
from data.phantom import cohort, slide, stain
from data.phantom.slide import Spec
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
_TUMOUR, _NORMAL = 'breast', slide.LABELS[0]
_MIMICS = ('lymphoma',)  # Reactive follicles.
# Of each part, slides with tumour and without; patches of normal tissue of
# each slide, and of tumour of those that have it. As in He and Li, training
# slides all hold tumour. There, 500 normal patches were drawn of each, and
# validation had one slide of either kind.
_SLIDES = {'train': (10, 0), 'val': (4, 1), 'test': (8, 8)}
_PATCHES = {'train': (30, 20), 'val': (16, 32), 'test': (13, 32)}


def make(
  root: Path,
  *,
  seed: int = 0,
  slides: dict[str, tuple[int, int]] | None = None,
  progress: cohort.Progress = cohort.no_progress,
) -> None:
  """Writes slides whose truth is known, in CAMELYON16's layout.

  Nodes with metastases of 0.1 to 0.3 mm, drawn as those of breast cancer, and
  nodes without, every one of a patient of its own. Slides that are there are
  kept, which makes an interrupted call resumable.

  Args:
    root: the folder to fill: slides/<slide>.tiff (`MPP` um per pixel, names as
      CAMELYON16's), annotations/<slide>.json (GeoJSON) of slides with tumour,
      reference.csv of test slides, and lists/<part>_good.txt and
      lists/<part>_bad.txt, lines `slide,x,y` of patches of `SIZE`.
    seed: another seed is another cohort.
    slides: of each of `LISTS`, how many with tumour and how many without; by
      default 10 and 0, 4 and 1, 8 and 8.
    progress: called with (slides done, slides in all) after every slide.
  """
  parts = _plan(seed, _SLIDES | (slides or {}))
  wanted = parts['train'] | parts['val'] | parts['test']
  cohort.write(root, wanted, 'annotations', progress)
  for part in LISTS:
    _write_lists(root, part, parts[part], seed)
  kinds = {_TUMOUR: ('Tumor', 'Micro'), _NORMAL: ('Normal', 'None')}
  rows = []
  for name, spec in parts['test'].items():
    kind, size = kinds[spec.label]
    rows.append((name, kind, 'IDC', size))
  # Last: its presence says that all is there.
  files.write_csv(root / 'reference.csv', rows)


def _plan(seed: int, slides: dict[str, tuple[int, int]]) -> dict[str, dict]:
  """Returns the slides of each part, which does not depend on the others."""
  parts, count = {}, {_TUMOUR: 0, _NORMAL: 0}
  for number, (part, (tumour, normal)) in enumerate(slides.items()):
    labels = np.repeat((_TUMOUR, _NORMAL), (tumour, normal))
    if part == 'test':  # The number of a test slide does not tell its label.
      labels = np.random.default_rng([seed, number]).permutation(labels)
    parts[part] = {}
    for place, label in enumerate(labels.tolist()):
      count[label] += 1
      name = f'{"tumor" if label == _TUMOUR else "normal"}_{count[label]:03d}'
      if part == 'test':
        name = f'test_{place + 1:03d}'
      case = 1000 * number + place
      parts[part][name] = Spec(seed, case, 0, label, _LOOK, None, _MIMICS)
  return parts


def _write_lists(root: Path, part: str, wanted: dict[str, Spec], seed: int):
  """Draws the patches of a part by FW-RD's rule."""
  masks, sizes = {'good': {}, 'bad': {}}, {}
  for name, spec in wanted.items():
    with Slide(root / 'slides' / f'{name}.tiff') as opened:
      tissue = patches.tissue_map(opened, STRIDE)
      sizes[name] = (opened.width, opened.height)
    if spec.label == _TUMOUR:
      known = annotations.find(root / 'annotations')
      masks['bad'][name] = known.mask(name, tissue.shape, STRIDE)
      tissue &= ~masks['bad'][name]
    masks['good'][name] = tissue
  about = {'patch': SIZE, 'apart': APART, 'stride': STRIDE}
  for (kind, some), count in zip(masks.items(), _PATCHES[part], strict=True):
    drawn = patches.sample(some, sizes, count, seed, **about)
    patches.write(root / 'lists' / f'{part}_{kind}.txt', drawn)
