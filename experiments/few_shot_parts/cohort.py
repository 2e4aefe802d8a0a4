"""Opens the patches and slides of a few-shot study: phantom or CAMELYON16."""

from collections.abc import Mapping
import dataclasses
import pathlib

from data import few_shot_phantom as phantom, labelled_tiles, tile_sources
from data.camelyon16 import (
  annotations,
  patch_tiles,
  patches,
  slides,
  tissue,
)
from data.camelyon16.annotations import Annotations
from data.camelyon16.slides import KnownSlide
from data.labelled_tiles import LabelledTiles, TileError
from data.slides import Slide
from experiments import bars
from experiments.code_hash import code_hash
from experiments.few_shot_parts import paper
from kmil_jax import froc, parallel

PARTS = ('train', 'val', 'test')
_CODE = (
  'data/few_shot_phantom/*.py',
  'data/phantom/*.py',
  'data/camelyon16/*.py',
)
# Folders of He and Li's code, and of ours.
_NAMES = {
  'good': 'normal',
  'normal': 'normal',
  'bad': 'tumor',
  'tumor': 'tumor',
  'tumour': 'tumor',
}
# Of each slide that validation patches are drawn from (He and Li: 2,000 of
# each kind from one slide with tumour and one without).
_VAL_PATCHES = 2000


@dataclasses.dataclass(frozen=True)
class Scale:
  """Lengths of slide inference and of the lesion-level score.

  Attributes:
    size: side of a patch, level-0 pixels.
    stride: level-0 pixels between patches of a slide.
    radius: of detections, in strides.
    mpp: um per level-0 pixel that the lesion-level score takes.
    level: of the masks it is computed on.
  """

  size: int = patches.SIZE
  stride: int = tissue.STRIDE
  radius: int = 6
  mpp: float = froc.MPP
  level: int = froc.LEVEL


# Half a patch apart, not a quarter: a CPU scores them.
PHANTOM = Scale(phantom.SIZE, 2 * phantom.STRIDE, 3, phantom.MPP, phantom.LEVEL)


@dataclasses.dataclass(frozen=True)
class Cohort:
  """What a study is made on.

  Attributes:
    parts: patches of `PARTS`, of the classes `patch_tiles.CLASSES`.
    slides: test slides; none where there are patches alone.
    annotations: of those with tumour.
    scale: lengths.
    main: tumour patches of the main training.
    counts: of the other trainings of Table 3, and those of the paper that they
      stand for.
    note: where all that comes from.
  """

  parts: dict[str, LabelledTiles]
  slides: tuple[KnownSlide, ...]
  annotations: Annotations | None
  scale: Scale
  main: int
  counts: Mapping[int, int | None]
  note: str


def open_phantom(cache_dir: str) -> Cohort:
  """Returns the phantom of CAMELYON16, rendered once.

  Args:
    cache_dir: every version of the code that makes it has a folder there.
  """
  root = pathlib.Path(cache_dir).expanduser()
  root = root / f'few_shot_phantom_{code_hash(*_CODE)}'
  if parallel.is_first() and not (root / 'reference.csv').exists():
    print(f'rendering phantom slides in {root}', flush=True)
    with bars.bar(unit='slide', desc='phantom') as bar:

      def show(done, total):
        bar.total = total
        bar.update(done - bar.n)

      phantom.make(root, progress=show)
  parallel.wait_for_all('few-shot phantom')
  found = open_camelyon(
    root / 'slides',
    root / 'annotations',
    root / 'reference.csv',
    root / 'lists',
    seed=0,
    scale=PHANTOM,
  )
  return dataclasses.replace(
    found,
    main=phantom.MAIN,
    counts=phantom.COUNTS,
    note='a phantom of CAMELYON16: rendered, so that the figures say nothing'
    ' about patients',
  )


def open_camelyon(
  slides_dir: pathlib.Path,
  annotations_path: pathlib.Path,
  reference_csv: pathlib.Path,
  lists_dir: pathlib.Path,
  *,
  seed: int,
  scale: Scale,
) -> Cohort:
  """Returns the patches of lists and the test slides.

  Args:
    slides_dir: slides, see `slides.find`; those that the lists name, the test
      slides, and a normal and a tumour slide to validate on where the lists
      have none.
    annotations_path: see `annotations.find`.
    reference_csv: labels of test slides.
    lists_dir: train_good.txt, train_bad.txt, test_good.txt and test_bad.txt,
      as released, and val_good.txt and val_bad.txt, which are not: without
      them, validation patches are drawn by He and Li's rule.
    seed: of that draw.
    scale: lengths.

  Raises:
    TileError: naming what is missing or cannot be used.
  """
  lists = {
    (part, kind): lists_dir / f'{part}_{kind}.txt'
    for part in PARTS
    for kind in ('good', 'bad')
  }
  needed = [p for (part, _), p in lists.items() if part != 'val']
  if missing := [p.name for p in needed if not p.exists()]:
    raise TileError(f'{lists_dir}: no {", ".join(missing)}')
  drawn = not (lists['val', 'good'].exists() and lists['val', 'bad'].exists())
  read = {
    key: patches.read(path)
    for key, path in lists.items()
    if key[0] != 'val' or not drawn
  }
  official = slides.read_reference(reference_csv)
  wanted = {name for some in read.values() for name in some.slide.tolist()}
  wanted |= set(official)
  known = annotations.find(annotations_path)
  if drawn:
    wanted |= set(_val_slides(slides_dir, wanted, known))
  found = slides.find(slides_dir, reference_csv, wanted=wanted)
  for name, why in sorted(found.left_out.items()):
    if name in wanted:
      print(f'left out: {name}, {why}', flush=True)
  files = {s.id: s.path for s in found.slides}
  test = tuple(s for s in found.slides if s.part == 'test')
  known.require([s.id for s in test if s.label == 'tumor'])
  if drawn:
    val = [name for name in _val_slides(slides_dir, wanted, known)]
    read |= _draw_val(val, files, known, seed)
  parts = {}
  for part in PARTS:
    good, bad = (_kept(read[part, k], found.left_out) for k in ('good', 'bad'))
    parts[part] = patch_tiles.from_lists(files, bad, good, size=scale.size)
  tumour = int((parts['train'].label == 0).sum())
  return Cohort(
    parts=parts,
    slides=test,
    annotations=known,
    scale=scale,
    main=min(paper.TUMOUR, tumour),
    counts=_counts(tumour),
    note=f'{len(files)} slides of {slides_dir}, patches of {lists_dir}'
    + ('; validation patches drawn here' if drawn else ''),
  )
