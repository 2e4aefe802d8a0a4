"""The cohort of an experiment: slides, labels, features and splits, joined."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from data import (
  features as feature_files,
  manifest as manifests,
  phantom,
  slides,
)
from data.manifest import Manifest
from kmil_jax import parallel

# The paper's class ids; its slide names end in them.
PAPER_CLASSES = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')
METASTATIC = 'metastatic'

# The paper's 128-um tiles at half its resolution: a CPU encodes them 4 times
# faster.
_PHANTOM_TILES = {'tile_size': 128, 'mpp': 1.0}
_ROOT = pathlib.Path(__file__).parents[1]
# The code that phantom slides, and their features, are a function of.
_SLIDE_CODE = ('data/phantom/*.py',)
_FEATURE_CODE = (
  'data/pixel_size.py',
  'data/slides.py',
  'data/tile_stream.py',
  'data/tiling.py',
  'data/tissue.py',
  'experiments/cohort_tiles.py',
  'kmil_jax/encoder.py',
  'kmil_jax/models/resnet.py',
)
_SHOWN = 10  # Names listed in an error.


class CohortError(ValueError):
  """Slides, labels and features that do not fit; says which and how."""


@dataclasses.dataclass(frozen=True)
class Cohort:
  """n slides in the order of their ids, each with a feature file."""

  manifest: Manifest
  classes: tuple[str, ...]  # C names
  label: np.ndarray  # int32 [n]
  paths: tuple[pathlib.Path, ...]  # feature files
  length: np.ndarray  # int32 [n], instances
  width: int  # D
  slides: dict[str, pathlib.Path]  # slide files by id, where there are any

  def fingerprint(self) -> dict[str, str]:
    """Hashes of what a result depends on: labels and feature files."""
    table, labels = self.manifest, hashlib.sha256()
    for column in (table.case, table.slide, table.label):
      labels.update('\n'.join(column).encode())
    content = hashlib.sha256()
    for path in self.paths:
      content.update(path.name.encode())
      content.update(_ends(path))
    return {
      'labels_sha256': labels.hexdigest(),
      'features_sha256': content.hexdigest(),
    }


def mapping_of(task: str, labels: list[str] | None) -> dict[str, str] | None:
  """Returns the relabelling of --task and --labels, None for none.

  The paper's tasks (Zheng et al. 2024, as run in the released code): a tells
  non-tumor, lymphoma and metastatic apart; b non-tumor and lymphoma; c lymphoma
  and metastatic.

  Raises:
    CohortError: if both flags are given, a pair is not old:new, or an old label
      has two new ones.
  """
  if labels and task != 'origin':
    raise CohortError(f'--labels and --task={task} exclude each other')
  if labels:
    pairs = [pair.split(':') for pair in labels]
    wrong = [':'.join(p) for p in pairs if len(p) != 2 or not all(p)]
    if wrong:
      raise CohortError(f'--labels: {wrong[0]!r} is not of the form old:new')
    mapping = dict(pairs)
    twice = [old for old, new in pairs if mapping[old] != new]
    if twice:
      raise CohortError(f'--labels: {twice[0]} is given twice')
    return mapping
  if task == 'origin':
    return None
  kept = {'a': (0, 1, 2, 3, 4), 'b': (0, 1), 'c': (1, 2, 3, 4)}[task]
  return {
    PAPER_CLASSES[c]: METASTATIC if c > 1 else PAPER_CLASSES[c] for c in kept
  }


def load(
  csv_path: str,
  features_dir: str,
  *,
  slides_dir: str | None = None,
  mapping: dict[str, str] | None = None,
  shuffle_seed: int | None = None,
) -> Cohort:
  """Joins labels and features; every fault is reported at once.

  Args:
    csv_path: labels.
    features_dir: holds <slide_id>.h5 of every slide in the table.
    slides_dir: slide files, if any.
    mapping: old label to new; slides of other labels are left out.
    shuffle_seed: deals the labels anew to the cases, for the leak alarm.

  Raises:
    CohortError: if slides lack features, files cannot be read, or widths or
      encoders are mixed.
    data.manifest.ManifestError: if the table cannot be used.
  """
  table = manifests.read(csv_path)
  if mapping is not None:
    names = {str(c): name for c, name in enumerate(PAPER_CLASSES)}
    if set(table.label) <= set(names) and set(mapping) <= set(PAPER_CLASSES):
      table = manifests.relabel(table, {c: names[c] for c in set(table.label)})
    table = manifests.relabel(table, mapping)
  if shuffle_seed is not None:
    table = _shuffled(table, shuffle_seed)
  classes = _classes(table.label)
  if len(classes) < 2:
    raise CohortError(f'{csv_path}: one class only, {classes[0]}')
  paths = tuple(pathlib.Path(features_dir) / f'{s}.h5' for s in table.slide)
  shapes = _shapes(paths, features_dir)
  found = {}
  if slides_dir:
    found = {slides.slide_id(p): p for p in slides.list_slides(slides_dir)}
  return Cohort(
    manifest=table,
    classes=classes,
    label=np.array([classes.index(x) for x in table.label], np.int32),
    paths=paths,
    length=np.array([n for n, _ in shapes], np.int32),
    width=shapes[0][1],
    slides=found,
  )


def make_phantom(
  cache_dir: str, *, cases_per_class: int = 12
) -> tuple[pathlib.Path, pathlib.Path]:
  """Renders and encodes the phantom cohort, unless that is done.

  Args:
    cache_dir: every version of the code that makes slides, tiles or features
      has a folder of its own in it.
    cases_per_class: cases of each of the five classes.

  Returns:
    The cohort's folder (`slides`, `outlines`, `labels.csv`) and its feature
    folder.

  Raises:
    CohortError: if a phantom slide cannot be encoded.
  """
  root = pathlib.Path(cache_dir).expanduser()
  root = root / f'phantom_{cases_per_class}x5_{_code_hash(_SLIDE_CODE)}'
  features_dir = root / f'features_{_code_hash(_FEATURE_CODE)}'
  if parallel.is_first():
    if not (root / 'labels.csv').exists():
      print(f'rendering the phantom cohort in {root}', flush=True)
    phantom.make(root, cases_per_class=cases_per_class)
    ids = manifests.read(root / 'labels.csv').slide
    if not all((features_dir / f'{i}.h5').exists() for i in ids):
      _encode(root / 'slides', features_dir, cache_dir)
  parallel.wait_for_all('phantom')
  return root, features_dir


def _encode(
  slides_dir: pathlib.Path, features_dir: pathlib.Path, cache_dir: str
) -> None:
  # They import TensorFlow, which takes seconds: only where slides are encoded.
  from experiments import cohort_tiles, encoding, weights

  paths = slides.list_slides(slides_dir)
  spec = cohort_tiles.TileSpec(**_PHANTOM_TILES)
  encoder = weights.make_encoder(
    None,
    features_dir=features_dir,
    cache_dir=cache_dir,
    sample=lambda: cohort_tiles.calibration_tiles(paths, spec),
  )
  print(f'encoder {encoder.name}: {encoder.note}', flush=True)
  failures = encoding.extract(paths, features_dir, encoder, spec)
  if failures:
    raise CohortError(f'phantom slides without features: {failures}')


def _classes(labels: np.ndarray) -> tuple[str, ...]:
  """Orders class names: as the paper does, by number, or by name."""
  names = sorted(set(labels.tolist()))
  known = (*PAPER_CLASSES, METASTATIC)
  if set(names) <= set(known):
    return tuple(sorted(names, key=known.index))
  if all(name.isdecimal() for name in names):
    return tuple(sorted(names, key=int))
  return tuple(names)


def _shapes(
  paths: tuple[pathlib.Path, ...], features_dir: str
) -> list[tuple[int, int]]:
  """Returns (N, D) of every feature file, or all faults in one error."""
  missing = [p.stem for p in paths if not p.exists()]
  if missing:
    raise CohortError(
      f'{features_dir}: no feature file for {len(missing)} of {len(paths)}'
      f' labelled slides: {_some(missing)}; run experiments.extract, or take'
      ' them out of the CSV'
    )
  shapes, faults = [], []
  for path in paths:
    try:
      shapes.append(feature_files.shape(path))
      if not all(shapes[-1]):
        faults.append(f'{path}: no features; extract the slide again')
    except feature_files.FeatureError as e:
      faults.append(str(e))
  if faults:
    raise CohortError('\n'.join(faults))
  widths = np.array([d for _, d in shapes])
  if len(set(widths)) > 1:
    odd = [p.stem for p in np.array(paths)[widths != widths[0]]]
    raise CohortError(
      f'{features_dir}: features of {sorted(set(widths.tolist()))} dimensions'
      f' are mixed; other than the first are {_some(odd)}'
    )
  return shapes


def _shuffled(table: Manifest, seed: int) -> Manifest:
  """Deals the labels anew: whole cases swap the label of their first slide."""
  cases, first, of = np.unique(
    table.case, return_index=True, return_inverse=True
  )
  order = np.random.default_rng(seed).permutation(len(cases))
  return dataclasses.replace(table, label=table.label[first][order][of])


def _some(names: list[str]) -> str:
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more


def _code_hash(patterns: tuple[str, ...]) -> str:
  digest = hashlib.sha256()
  for pattern in patterns:
    for path in sorted(_ROOT.glob(pattern)):
      digest.update(path.read_bytes())
  return digest.hexdigest()[:8]


def _ends(path: pathlib.Path) -> bytes:
  """Size and the first and last megabyte: enough to tell files apart."""
  size = path.stat().st_size
  with path.open('rb') as f:
    head = f.read(2**20)
    f.seek(max(size - 2**20, 0))
    return f'{size}'.encode() + head + f.read()
