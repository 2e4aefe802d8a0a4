"""Small inputs of every command, drawn with fixed seeds.

Nothing here imports the project: its readers must take what these write.
"""

import csv
import pathlib
import shutil

import h5py
import numpy as np
from PIL import Image

ATTRIBUTES = {
  'encoder': 'planted',
  'patch_size': 128,
  'patch_size_level0': 256,
  'mpp': 1.0,
  'level0_mpp': 0.5,
  'level0_width': 3000,
  'level0_height': 2500,
  'overlap': 0,
}
PAPER_CLASSES = ('non-tumor', 'lymphoma', 'breast', 'squamous', 'thyroid')
LETTERS = ('a', 'b', 'c')
WIDTH = 16  # Of planted features.


def table(path: pathlib.Path, rows: list) -> None:
  """Writes a CSV file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows(rows)


def picture(place, values) -> None:
  """Writes a PNG to a path or a file."""
  if isinstance(place, pathlib.Path):
    place.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(values, np.uint8)).save(place, 'PNG')


def planted(label: int, rng: np.random.Generator, width: int = WIDTH):
  """Returns a bag [N, D] of 2 to 8 instances, some of which tell the class."""
  bag = rng.normal(size=(rng.integers(2, 9), width))
  bag[: rng.integers(1, 3), label] += 6
  return bag.astype(np.float32)


def feature_file(path: pathlib.Path, bag, attributes=ATTRIBUTES) -> None:
  """Writes the features of a slide in CLAM's layout."""
  path.parent.mkdir(parents=True, exist_ok=True)
  coords = np.stack([np.arange(len(bag)) * 256, np.zeros(len(bag))], 1)
  with h5py.File(path, 'w') as file:
    file['features'] = bag
    file['coords'] = coords.astype(np.int32)
    file.attrs.update(attributes)
    file['coords'].attrs.update(attributes)


def cohort(
  folder: pathlib.Path,
  *,
  slides: int = 15,
  classes=LETTERS,
  seed: int = 0,
  width: int = WIDTH,
  features: str = 'features',
  labels: str = 'labels.csv',
) -> None:
  """Writes features and a table of labels, two slides of the first case."""
  rng = np.random.default_rng(seed)
  rows = [['case_id', 'slide_id', 'label', 'site']]
  for i in range(slides):
    place = i % len(classes)
    slide = f'{seed}-{i:03d}.x'
    bag = planted(place, rng, width)
    feature_file(folder / features / f'{slide}.h5', bag)
    case = 0 if i == len(classes) else i
    site = f's{case // len(classes)}'
    rows.append([f'case {seed} {case:02d}', slide, classes[place], site])
  table(folder / labels, rows)


def two_cohorts(folder: pathlib.Path) -> None:
  """Writes a cohort, and another laboratory's."""
  cohort(folder)
  cohort(
    folder,
    slides=6,
    seed=1,
    features='other_features',
    labels='other.csv',
  )


def paper_cohorts(folder: pathlib.Path) -> None:
  """Writes two cohorts of the five classes of the paper."""
  cohort(folder, slides=20, classes=PAPER_CLASSES)
  cohort(
    folder,
    slides=10,
    seed=1,
    classes=PAPER_CLASSES,
    features='other_features',
    labels='other.csv',
  )


def detections(folder: pathlib.Path) -> None:
  """Writes masks of three lesions, and detections of four slides."""
  masks = {
    'test_001': ((200, 300), ((20, 20, 60), (150, 250, 8))),
    'test_002': ((150, 300), ((20, 20, 60), (20, 200, 60))),
  }
  for name, (shape, boxes) in masks.items():
    mask = np.zeros(shape, np.uint8)
    for y, x, side in boxes:
      mask[y : y + side, x : x + side] = 255
    picture(folder / f'masks/{name}_mask_level5.png', mask)
  lines_of = {  # In the lesions, in cells alone, and twice in one.
    'test_001': [(0.9, 1600, 1600), (0.8, 1616, 1632), (0.7, 8100, 4900)],
    'test_002': [(0.6, 1600.5, 1600), (0.2, 7360.5, 1600)],
    'test_003': [],
    'test_004': [],
  }
  rng = np.random.default_rng(0)
  for name, lines in lines_of.items():
    number = 0 if name == 'test_004' else 6
    for _ in range(number):
      probability, x = rng.uniform(0.1, 0.95), rng.uniform(3200, 6000)
      lines.append((round(probability, 3), round(x), 300))
    header = ['probability,x,y'] if name == 'test_002' else []
    rows = [','.join(map(str, line)) for line in lines]
    path = folder / f'detections/{name}.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(header + rows))


def faulty_detections(folder: pathlib.Path) -> None:
  """Writes detections, a line of which has no number."""
  detections(folder)
  (folder / 'detections/test_003.csv').write_text('0.5,1,1\n0.3,x,9\n')


def nothing(folder: pathlib.Path) -> None:
  """Writes no inputs: the command makes its phantom."""


def faulty_cohorts(folder: pathlib.Path) -> None:
  """Writes a cohort, and tables, splits and features with a fault each."""
  cohort(folder)
  rows = list(csv.reader((folder / 'labels.csv').open(encoding='utf-8')))
  slide = rows[4][1]
  extra = ['case 77', 'no-features', 'a', 's1']
  table(folder / 'more.csv', [*rows, extra])
  no_label = [[row[0], row[1], row[3]] for row in rows]
  table(folder / 'columns.csv', no_label)
  long = [*rows]
  long[3] = [*rows[3], 'one cell more']
  table(folder / 'long.csv', long)
  twice = [*rows, rows[2]]
  table(folder / 'twice.csv', twice)
  names = [row[1] for row in rows[1:]]
  for i in range(3):  # The first case has slides 0 and 3.
    turned = names[i:] + names[:i]
    parts = (turned[:9], turned[9:12], turned[12:])
    longest = [['train', 'val', 'test']]
    for j in range(9):
      longest.append([part[j] if j < len(part) else '' for part in parts])
    table(folder / f'splits/splits_{i}.csv', longest)
  for name in ('broken', 'nan', 'wide'):
    shutil.copytree(folder / 'features', folder / f'{name}_features')
  broken = folder / f'broken_features/{slide}.h5'
  broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
  with h5py.File(folder / f'nan_features/{slide}.h5', 'a') as file:
    file['features'][0, 0] = np.nan
  wide = np.ones((3, WIDTH + 1), np.float32)
  feature_file(folder / f'wide_features/{slide}.h5', wide)
