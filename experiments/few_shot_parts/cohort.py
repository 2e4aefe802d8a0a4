"""Opens the patches and slides of a few-shot study: phantom or CAMELYON16."""

from collections.abc import Mapping
from concurrent import futures
import dataclasses
import hashlib
import pathlib

import numpy as np

from data.camelyon16 import annotations, patches, slides
from data.camelyon16.annotations import Annotations
from data.camelyon16.slides import KnownSlide
from data.labelled_tiles import LabelledTiles, TileError
from data.phantom import few_shot as phantom
from experiments.code_hash import code_hash
from experiments.few_shot_parts import paper, validation
from experiments.patches import tiles as patch_tiles
from experiments.run import progress
from kmil_jax import froc, parallel
from kmil_jax.tasks.distill import TUMOUR

PARTS = ('train', 'val', 'test')
_AT_ONCE = 64  # Tiles that a thread decodes at a time.
_CODE = (
  'data/phantom/*.py',
  'data/camelyon16/*.py',
  'data/outlines.py',
  'data/slides.py',
  'data/tissue.py',
)


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
  stride: int = patches.STRIDE
  radius: int = 6
  mpp: float = froc.MPP
  level: int = froc.LEVEL


# Half a patch apart, not a quarter: a CPU scores them.
PHANTOM = Scale(phantom.SIZE, 2 * phantom.STRIDE, 3, phantom.MPP, phantom.LEVEL)


@dataclasses.dataclass(frozen=True)
class Cohort:
  """What a study is made on.

  Attributes:
    parts: patches of `PARTS`, of the classes `patches.CLASSES`.
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
    with progress.bar(unit='slide', desc='phantom') as bar:

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
  drawn = not all(lists['val', kind].exists() for kind in ('good', 'bad'))
  read = {
    key: patches.read(path)
    for key, path in lists.items()
    if key[0] != 'val' or not drawn
  }
  names = lambda lists: {n for some in lists for n in some.slide.tolist()}
  known = annotations.find(annotations_path)
  chosen = []
  if drawn:
    val = validation.draw(
      slides_dir, names(read.values()), known, seed=seed, size=scale.size
    )
    chosen = sorted(names(val.values()), reverse=True)
    read |= val
  wanted = names(read.values()) | set(slides.read_reference(reference_csv))
  found = slides.find(slides_dir, reference_csv, wanted=wanted)
  for name in sorted(wanted & set(slides.EXCLUDED)):
    print(f'{name}: left out, {slides.EXCLUDED[name]}', flush=True)
  for name in sorted(wanted & set(slides.RELABELLED)):
    print(f'{name}: {slides.RELABELLED[name]}, whatever its name', flush=True)
  test = tuple(s for s in found if s.part == 'test')
  known.require([s.id for s in test if s.label == 'tumor'])
  files = {s.id: s.path for s in found}
  for key, some in read.items():
    kept = ~np.isin(some.slide, list(slides.EXCLUDED))
    if not kept.all():
      print(f'{"_".join(key)}: {(~kept).sum()} patches of slides left out')
    read[key] = patches.Patches(some.slide[kept], some.xy[kept])
  parts = {
    part: patches.from_lists(
      files, read[part, 'bad'], read[part, 'good'], size=scale.size
    )
    for part in PARTS
  }
  tumour = int((parts['train'].label == TUMOUR).sum())
  return Cohort(
    parts=parts,
    slides=test,
    annotations=known,
    scale=scale,
    main=min(paper.TUMOUR, tumour),
    counts=counts(tumour),
    note=f'patches of {lists_dir} in slides of {slides_dir}'
    + drawn * f'; validation patches drawn of {" and ".join(chosen)}',
  )


def fingerprint(cohort: Cohort) -> dict[str, str]:
  """Returns a hash of the patches of every part: names, labels and pixels."""
  found = {
    f'{part}_sha256': patch_tiles.fingerprint(tiles)
    for part, tiles in cohort.parts.items()
  }
  slides_text = '\n'.join(f'{s.id},{s.label}' for s in cohort.slides)
  digest = hashlib.sha256(slides_text.encode()).hexdigest()
  return found | {'slides_sha256': digest}


def counts(tumour: int) -> dict[int, int]:
  """Returns the paper's numbers of tumour patches that there are, as keys."""
  return {n: n for n in paper.COUNTS if n <= tumour}


def pixels(tiles: LabelledTiles) -> np.ndarray:
  """Returns all tiles [n, S, S, 3], also of sets that memory does not keep."""
  if tiles.pixels is not None:
    return tiles.pixels
  rows = np.array_split(np.arange(len(tiles)), -(-len(tiles) // _AT_ONCE))
  with futures.ThreadPoolExecutor() as pool:
    return np.concatenate(list(pool.map(tiles.load, rows)))
