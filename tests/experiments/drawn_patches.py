"""Node images, tiles and CT volumes as docs/patches.md describes them."""

import csv
import io
import zipfile

import numpy as np
from PIL import Image

from data.ct import volumes
from data.ct.volumes import Volume


def node_images(root, patients=6):
  """images, masks and images.csv: each patient with tumour, and without."""
  rows = [['image_id', 'patient_id', 'part']]
  for kind in ('images', 'masks'):
    (root / kind).mkdir()
  for i in range(2 * patients):
    part = 'development' if i // 2 < patients - 2 else 'test'
    rows.append([f'{i:02d}', f'p{i // 2}', part])
    mask = np.zeros((240, 240), np.uint8)
    mask[60:160, 60:160] = 255 * (i % 2)
    image = np.where(mask[..., None] > 0, (220, 90, 120), (150, 110, 190))
    image = image + np.random.default_rng(i).integers(0, 30, image.shape)
    save(image, root / f'images/{i:02d}.png')
    save(mask, root / f'masks/{i:02d}.png')
  table(root / 'images.csv', rows)


def zipped_tiles(root, patients=8):
  """tiles.zip and tiles.csv: grids of 3 x 2 tiles of both labels."""
  rows = [['patient', 'x', 'y', 'label', 'zip_path']]
  with zipfile.ZipFile(root / 'tiles.zip', 'w') as archive:
    for i in range(6 * patients):
      place = i % 6
      name = f'{i:03d}.png'
      file = io.BytesIO()
      save(np.full((20, 20, 3), i), file)
      archive.writestr(name, file.getvalue())
      x, y = 20 * (place % 3), 20 * (place // 3)
      rows.append([f'p{i // 6}', x, y, place % 2, name])
  table(root / 'tiles.csv', rows)


def annotated_and_weak(root, patients=10):
  """annotated/neg and /pos, and the pool of others in weak."""
  for i in range(patients):
    for name in (
      f'annotated/neg/p{i}_0',
      f'annotated/pos/p{i}_1',
      f'weak/w{i}_0',
      f'weak/w{i}_1',
    ):
      save(np.full((20, 20, 3), 9 * i), root / f'{name}.png')


def nodes(root, patients=20):
  """nodes.csv and its volumes, with a node in the middle of each."""
  rows = [['patient_id', 'image_path', 'mask_path', 'label']]
  for i in range(patients):
    image = np.random.default_rng(i).normal(0, 30, (6, 60, 60))
    mask = np.zeros(image.shape, np.uint8)
    mask[2:4, 26:34, 26:34] = 1
    volume = Volume(root, image, (2.0, 0.8, 0.8), (0.0, 0.0, 0.0))
    names = [f'p{i}_{kind}.nii.gz' for kind in ('image', 'mask')]
    for name, values in zip(names, (image.astype(np.int16), mask), strict=True):
      volumes.write(root / name, values, volume)
    rows.append([f'p{i}', *names, ('benign', 'metastatic')[i % 2]])
  table(root / 'nodes.csv', rows)


def save(values, place):
  """Writes a PNG to a path or a file."""
  if hasattr(place, 'parent'):
    place.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(values, np.uint8)).save(place, 'PNG')


def table(path, rows):
  with path.open('w', newline='') as f:
    csv.writer(f).writerows(rows)
