"""Patches and slides of He and Li's study: CAMELYON16, a phantom, folders."""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re

import numpy as np

from data import labelled_tiles, tile_sources
from data.camelyon16 import annotations, patches, slides
from data.camelyon16.annotations import Annotations
from data.camelyon16.patches import Patches
from data.camelyon16.slides import KnownSlide
from data.labelled_tiles import LabelledTiles, TileError
from data.labels import leaks_between
from data.phantom import few_shot as phantom
from data.slides import Slide, SlideError, list_slides, slide_id
from data.splits import PARTS
from experiments import papers
from experiments.evaluation.tables import Table
from experiments.patches import tiles as patch_tiles
from experiments.patches.study import Material, gathers_warnings
from experiments.run import phantoms
from experiments.run.options import OptionError, free
from experiments.run.start import Findings, gathered
from kmil_jax import checksums, froc
from kmil_jax.models.reverse_distillation import MULTIPLE
from kmil_jax.tasks.distill import TUMOUR

PUBLISHED = papers.read('he')
_MAIN = 500  # Tumour patches of He and Li's main training.
_COUNTS = [count for (count,) in PUBLISHED['table_3'].values]
_DRAWN = 2000  # Validation patches of each kind, of a slide each, as theirs.
_KINDS = ('bad', 'good')  # Lists, and folders, in the order of the classes.
_RANDOM = (
  'The teacher has random weights, calibrated on normal training patches: it'
  ' knows no images. Give --weights=<wide_resnet50_2 of torchvision> for the'
  ' one of the paper.'
)
_CODE = ('data/*.py', 'data/phantom/*.py', 'data/camelyon16/*.py')


@dataclasses.dataclass(frozen=True)
class Data:
  """Slides and patches; a phantom of CAMELYON16 by default."""

  slides_dir: pathlib.Path | None = free(
    None,
    'Folder of the slides of CAMELYON16, which may lie in folders below it.',
  )
  annotations: pathlib.Path | None = free(
    None,
    'Outlines of tumour: a folder of <slide>.xml, <slide>.json or'
    ' <slide>_mask.tif, or one .json or .json.gz file for all slides.',
  )
  lists_dir: pathlib.Path | None = free(
    None,
    'Folder of the lists of patches released with FW-RD, with a line slide,x,y'
    ' for the centre of each: train_good.txt, train_bad.txt, test_good.txt and'
    ' test_bad.txt. Validation patches are drawn if val_good.txt and'
    ' val_bad.txt are missing.',
  )
  reference_csv: pathlib.Path | None = free(
    None, "CSV with CAMELYON16's labels of the test slides."
  )
  patches_dir: pathlib.Path | None = free(
    None,
    'Use images of patches instead of slides: a folder with train, val and'
    ' test, each with the folders good and bad of <slide>_<x>_<y>.png.',
  )
  # The file is hashed.
  weights: pathlib.Path | None = free(
    None,
    'Weights of the teacher: wide_resnet50_2 of torchvision, .pth or'
    ' .safetensors. A random teacher is used by default.',
  )

  def __post_init__(self):
    names = 'slides_dir', 'annotations', 'lists_dir', 'reference_csv'
    missing = [f'--{name}' for name in names if getattr(self, name) is None]
    if missing and len(missing) < len(names):
      raise OptionError(f'Slides also need {", ".join(missing)}.')
    if not missing and self.patches_dir:
      raise OptionError('--patches_dir cannot be used together with slides.')

  @property
  def is_phantom(self) -> bool:
    return self.slides_dir is None and self.patches_dir is None


@dataclasses.dataclass(frozen=True)
class Scale:
  """Lengths of patches, of slide inference and of the lesion-level score.

  Attributes:
    size: side of a patch, level-0 pixels.
    stride: level-0 pixels between patches of a slide.
    radius: of detections, in strides; He and Li's (NCRF: 12).
    mpp: um per level-0 pixel that the lesion-level score takes.
    level: of the masks that it is computed on.
  """

  size: int = patches.SIZE
  stride: int = patches.STRIDE
  radius: int = 6
  mpp: float = froc.MPP
  level: int = froc.LEVEL


# Half a patch apart, not a quarter: a CPU scores them.
_PHANTOM = Scale(
  phantom.SIZE, 2 * phantom.STRIDE, 3, phantom.MPP, phantom.LEVEL
)


@dataclasses.dataclass(frozen=True)
class PatchesAndSlides(Material):
  """Patches, test slides and a teacher.

  Attributes:
    parts: patches of `PARTS`, of the classes `patches.CLASSES`.
    main: tumour patches of the main training.
    counts: of the other trainings of Table 3, and the paper's number that each
      stands for.
    weights: of the teacher; a random one if None.
    slides: test slides; none where there are patches alone.
    annotations: of those with tumour.
    scale: lengths.
  """

  parts: Mapping[str, LabelledTiles]
  main: int
  counts: Mapping[int, int]
  weights: pathlib.Path | None = None
  slides: tuple[KnownSlide, ...] = ()
  annotations: Annotations | None = None
  scale: Scale = Scale()

  @functools.cached_property
  def inputs(self) -> dict[str, str]:
    named = '\n'.join(f'{slide.id},{slide.label}' for slide in self.slides)
    hashes = {
      f'{part}_sha256': patch_tiles.fingerprint(tiles)
      for part, tiles in self.parts.items()
    }
    hashes['slides_sha256'] = hashlib.sha256(named.encode()).hexdigest()
    if self.weights:
      hashes['weights_sha256'] = checksums.of_file(self.weights)
    return hashes

  def check(self, findings: Findings) -> None:
    patch_tiles.check(findings, self.parts)
    for slide in self.slides:
      try:
        with (
          gathered(findings.warnings),
          Slide(slide.path, self.scale.mpp) as opened,
        ):
          self.mask(slide, opened)
      except (SlideError, TileError) as e:
        findings.problems.append(str(e))

  def mask(self, slide: KnownSlide, opened: Slide) -> np.ndarray | None:
    """Returns True on the tumour of a test slide; None of a normal one."""
    if slide.label != 'tumor':
      return None
    level = self.scale.level
    # One more: the middle of a map's last pixel may be the slide's very end.
    shape = tuple(n // 2**level + 1 for n in (opened.height, opened.width))
    return self.annotations.mask(slide.id, shape, 2**level)

  def tables(self) -> Iterator[Table]:
    yield dataclasses.replace(
      patch_tiles.counts(self.parts, 'Patches'), published=PUBLISHED['table_1']
    )


@gathers_warnings
def open_material(
  data: Data, seed: int, cache_dir: pathlib.Path
) -> PatchesAndSlides:
  """Returns the patches of lists and the test slides, or patches of folders.

  Args:
    data: what to open.
    seed: of validation patches that have no list.
    cache_dir: of the phantom.

  Raises:
    TileError: naming what is missing or cannot be used.
    SlideError: if a slide that patches are drawn of cannot be read.
  """
  if data.patches_dir:
    return _of_folders(data)
  if data.slides_dir:
    return of_slides(data, seed=seed)
  root = phantoms.made(
    'few_shot_phantom', _CODE, phantom.make, cache_dir, last='reference.csv'
  )
  rendered = dataclasses.replace(
    data,
    slides_dir=root / 'slides',
    annotations=root / 'annotations',
    lists_dir=root / 'lists',
    reference_csv=root / 'reference.csv',
  )
  return dataclasses.replace(
    of_slides(rendered, seed=0, scale=_PHANTOM),
    main=phantom.MAIN,
    counts=phantom.COUNTS,
    note='a phantom of CAMELYON16: its numbers say nothing about patients',
    is_phantom=True,
  )


def of_slides(
  data: Data, *, seed: int, scale: Scale = Scale()
) -> PatchesAndSlides:
  """Returns the patches of lists and the test slides; see `open_material`."""
  lists = {
    (part, kind): data.lists_dir / f'{part}_{kind}.txt'
    for part in PARTS
    for kind in _KINDS
  }
  if is_drawn := not all(lists['val', kind].exists() for kind in _KINDS):
    lists = {key: path for key, path in lists.items() if key[0] != 'val'}
  if missing := [path.name for path in lists.values() if not path.exists()]:
    raise TileError(
      f'{data.lists_dir}: no {", ".join(missing)}. Copy the released lists'
      ' there.'
    )
  listed = {key: patches.read(path) for key, path in lists.items()}
  named = lambda: {n for some in listed.values() for n in some.slide.tolist()}
  known = annotations.find(data.annotations)
  notes = [f'patches of {data.lists_dir} in slides of {data.slides_dir}']
  if is_drawn:
    drawn = _draw_validation(data.slides_dir, named(), known, seed, scale.size)
    listed |= drawn
    from_slides = [some.slide[0] for some in drawn.values()]
    notes.append(f'validation patches drawn of {" and ".join(from_slides)}')
  wanted = named() | set(slides.read_reference(data.reference_csv))
  known_slides = slides.find(data.slides_dir, data.reference_csv, wanted=wanted)
  for name in sorted(wanted & slides.EXCLUDED.keys()):
    notes.append(f'{name}: left out, {slides.EXCLUDED[name]}')
  for name in sorted(wanted & slides.RELABELLED.keys()):
    notes.append(f'{name}: {slides.RELABELLED[name]}, whatever its name')
  for key, some in listed.items():
    out = np.isin(some.slide, list(slides.EXCLUDED))
    if out.any():
      notes.append(f'{"_".join(key)}: {out.sum()} patches of slides left out')
    listed[key] = Patches(some.slide[~out], some.xy[~out])
  is_test = lambda slide: slide.id.startswith('test_')
  test = tuple(filter(is_test, known_slides))
  known.require([slide.id for slide in test if slide.label == 'tumor'])
  files = {slide.id: slide.path for slide in known_slides}
  parts = {
    part: patches.from_lists(
      files, *(listed[part, kind] for kind in _KINDS), size=scale.size
    )
    for part in PARTS
  }
  return PatchesAndSlides(
    parts,
    **_about(data, parts, test),
    note='\n'.join(notes),
    slides=test,
    annotations=known,
    scale=scale,
  )


def _draw_validation(
  slides_dir: pathlib.Path,
  listed: Collection[str],
  known: Annotations,
  seed: int,
  size: int,
) -> dict[tuple[str, str], Patches]:
  """Draws validation patches, which He and Li did not release, by their rule.

  Of the slides of each kind in the official training part it is the first that
  has room for 2,000 patches, else the one with most: in many slides with tumour
  there are fewer than 50.

  Args:
    slides_dir: with slides of the official training part.
    listed: slides that other parts have patches of, which are not used.
    known: annotations; slides with tumour that have none are not used.
    seed: of the draw.
    size: side of a patch.
  """
  files = {slide_id(path).lower(): path for path in list_slides(slides_dir)}
  free, drawn = sorted(files.keys() - listed - slides.RELABELLED.keys()), {}
  for list_name, kind in zip(_KINDS, patches.CLASSES, strict=True):
    best = Patches(np.zeros(0, str), np.zeros((0, 2), np.int64))
    for name in (n for n in free if n.startswith(f'{kind}_')):
      if kind == 'tumor' and name not in known.files:
        continue
      with Slide(files[name], default_mpp=1.0) as slide:
        sides = slide.width, slide.height
        mask = patches.tissue_map(slide)
      if kind == 'tumor':  # With its holes, as in the released code.
        shape = tuple(-(-side // patches.STRIDE) for side in sides[::-1])
        mask = known.mask(name, shape, patches.STRIDE, holes=False)
      some = patches.sample(
        {name: mask}, {name: sides}, _DRAWN, seed, patch=size
      )
      best = max(best, some, key=len)
      if len(best) == _DRAWN:
        break
    if not len(best):
      raise TileError(
        f'{slides_dir}: validation patches are drawn of an annotated tumor'
        ' slide and a normal slide without other patches, and there is no'
        f' {kind} one with room for any. Add it, or val_good.txt and'
        ' val_bad.txt to the lists.'
      )
    drawn['val', list_name] = best
  return drawn


def _of_folders(data: Data) -> PatchesAndSlides:
  """Returns patches that are images, without slides.

  The slide of a patch is what its name holds before a last _<x>_<y>, or before
  the first underscore: tumor_001 of tumor_001_70592_125632.
  """

  def slide_of(name: str) -> str:
    match = re.fullmatch(r'(.+)_\d+_\d+', name)
    return match[1] if match else tile_sources.before_underscore(name)

  root, parts = data.patches_dir, {}
  for part in PARTS:
    tiles = tile_sources.from_folders(root / part, slide_of)
    if tiles.classes != _KINDS:
      raise TileError(
        f'{root / part}: found the folders {", ".join(tiles.classes)}. Name'
        ' them good and bad.'
      )
    parts[part] = dataclasses.replace(tiles, classes=patches.CLASSES)
  about = _about(data, parts)
  size = labelled_tiles.concatenate(list(parts.values())).size  # Of all.
  if size % MULTIPLE:
    raise TileError(
      f'{root}: images of {size} px. Networks take multiples of {MULTIPLE}:'
      ' resize them, or cut them anew.'
    )
  return PatchesAndSlides(
    parts,
    **about,
    note=f'patches of {root}',
    scale=Scale(size=size),
  )


def _about(
  data: Data,
  parts: Mapping[str, LabelledTiles],
  tested: Sequence[KnownSlide] = (),
) -> dict:
  """The teacher, and the paper's numbers of patches, up to those there are.

  Raises:
    TileError: if a slide is in several parts.
  """
  held = {part: set(tiles.group.tolist()) for part, tiles in parts.items()}
  held['test'] |= {slide.id for slide in tested}
  groups = [*itertools.chain(*held.values())]
  if both := sorted({group for group in groups if groups.count(group) > 1}):
    raise TileError(
      f'{data.patches_dir or data.lists_dir}: slide(s) {", ".join(both[:5])} in'
      f' more than one of {", ".join(PARTS)}. Move the patches of each into one'
      ' of them.'
    )
  tumour = int((parts['train'].label == TUMOUR).sum())
  counts = {n: n for n in _COUNTS if n <= tumour}
  numbers = {'main': min(_MAIN, tumour), 'counts': counts}
  warnings = leaks_between(held.values()) + [_RANDOM] * (not data.weights)
  return numbers | {'weights': data.weights, 'warnings': warnings}
