"""Slides, tiles and volumes, drawn with fixed seeds."""

import io
import json
import pathlib
import shutil
import zipfile

from golden_inputs import ATTRIBUTES, WIDTH, feature_file, picture, table
import h5py
import numpy as np
import safetensors.numpy
import SimpleITK
import tifffile

STORED = pathlib.Path(__file__).resolve().parent / 'stored'


def tiff(path: pathlib.Path, image: np.ndarray, mpp: float | None) -> None:
  """Writes a tiled TIFF of one level that OpenSlide opens.

  Args:
    path: the file.
    image: uint8 [H, W, 3], its sides multiples of 256.
    mpp: micrometres per pixel; None: the file does not say.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  scale = {}
  if mpp:
    scale = {'resolution': (1e4 / mpp,) * 2, 'resolutionunit': 'CENTIMETER'}
  tifffile.imwrite(path, image, tile=(256, 256), compression='zlib', **scale)


def tissue(seed: int, height: int = 512, width: int = 512) -> np.ndarray:
  """Returns coarse purple tissue, uint8 [H, W, 3]."""
  rng = np.random.default_rng(seed)
  spots = rng.integers(0, 60, (height // 8, width // 8, 3))
  spots = spots.repeat(8, 0).repeat(8, 1)
  return (np.array([200, 120, 190]) - spots).astype(np.uint8)


def slides(folder: pathlib.Path) -> None:
  """Writes six slides of two classes, their table, and a new slide."""
  rows = [['case_id', 'slide_id', 'label']]
  for i in range(6):
    name = f'2024-01{i}_A'
    tiff(folder / f'slides/{name}.tiff', tissue(i), 0.5)
    rows.append([name[:8], name, 'ab'[i % 2]])
  table(folder / 'labels.csv', rows)
  tiff(folder / 'new_slides/007.new.tiff', tissue(9), 0.5)


def faulty_slides(folder: pathlib.Path) -> None:
  """Writes a good slide, one without um/px, and one that is none."""
  tiff(folder / 'slides/good.tiff', tissue(0), 0.5)
  tiff(folder / 'slides/unscaled.tiff', tissue(1), None)
  (folder / 'slides/broken.tiff').write_bytes(b'II*\0no slide')
  table(folder / 'scales.csv', [['slide_id', 'mpp'], ['unscaled', '0.5']])


def trained_slides(folder: pathlib.Path, width: int = WIDTH) -> None:
  """Writes slides and planted features that lie on them."""
  slides(folder)
  attributes = ATTRIBUTES | {
    'patch_size': 256,
    'mpp': 0.5,
    'level0_width': 512,
    'level0_height': 512,
  }
  rng = np.random.default_rng(3)
  coords = np.array([[0, 0], [256, 0], [0, 256], [256, 256]], np.int32)
  for i in range(6):
    bag = rng.normal(size=(4, width)).astype(np.float32)
    bag[0, i % 2] += 6
    path = folder / f'features/2024-01{i}_A.h5'
    feature_file(path, bag, attributes)
    with h5py.File(path, 'a') as file:
      file['coords'][:] = coords


def node_images(folder: pathlib.Path, patients: int = 4) -> None:
  """Writes images, masks and images.csv: with tumour and without."""
  rows = [['image_id', 'patient_id', 'part']]
  for i in range(2 * patients):
    part = 'development' if i // 2 < patients - 2 else 'test'
    rows.append([f'{i:02d}', f'p{i // 2}', part])
    mask = np.zeros((240, 240), np.uint8)
    mask[60:160, 60:160] = 255 * (i % 2)
    image = np.where(mask[..., None] > 0, (220, 90, 120), (150, 110, 190))
    image = image + np.random.default_rng(i).integers(0, 30, image.shape)
    picture(folder / f'images/{i:02d}.png', image)
    picture(folder / f'masks/{i:02d}.png', mask)
  table(folder / 'images.csv', rows)


def zipped_tiles(folder: pathlib.Path, patients: int = 8) -> None:
  """Writes tiles.zip and tiles.csv: grids of 3 x 2 tiles of both labels."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = [['patient', 'x', 'y', 'label', 'zip_path']]
  with zipfile.ZipFile(folder / 'tiles.zip', 'w') as archive:
    for i in range(6 * patients):
      place = i % 6
      name = f'{i:03d}.png'
      file = io.BytesIO()
      rng = np.random.default_rng(i)
      tile = rng.integers(0, 60, (20, 20, 3)) + 120 * (place % 2)
      picture(file, tile)
      archive.writestr(name, file.getvalue())
      x, y = 20 * (place % 3), 20 * (place // 3)
      rows.append([f'p{i // 6}', x, y, place % 2, name])
  table(folder / 'tiles.csv', rows)


def annotated_and_weak(folder: pathlib.Path, patients: int = 10) -> None:
  """Writes annotated/neg and /pos, and the pool of others in weak."""
  for i in range(patients):
    rng = np.random.default_rng(i)
    for name, brightness in (
      (f'annotated/neg/p{i}_0', 90),
      (f'annotated/pos/p{i}_1', 120),
      (f'weak/w{i}_0', 90),
      (f'weak/w{i}_1', 105),
    ):
      tile = brightness + rng.integers(0, 60, (20, 20, 3))
      picture(folder / f'{name}.png', tile)


def nodes(folder: pathlib.Path, patients: int = 20) -> None:
  """Writes nodes.csv and its volumes, with a node in the middle of each."""
  rows = [['patient_id', 'image_path', 'mask_path', 'label']]
  for i in range(patients):
    image = np.random.default_rng(i).normal(40 * (i % 2), 30, (6, 60, 60))
    mask = np.zeros(image.shape, np.uint8)
    mask[2:4, 26:34, 26:34] = 1
    names = [f'p{i}_{kind}.nii.gz' for kind in ('image', 'mask')]
    for name, voxels in zip(names, (image.astype(np.int16), mask), strict=True):
      volume = SimpleITK.GetImageFromArray(voxels)
      volume.SetSpacing((0.8, 0.8, 2.0))
      SimpleITK.WriteImage(volume, folder / name)
    rows.append([f'p{i}', *names, ('benign', 'metastatic')[i % 2]])
  table(folder / 'nodes.csv', rows)


def few_patches(folder: pathlib.Path) -> None:
  """Writes good and bad patches of the three parts."""
  counts = {'train': (8, 12), 'val': (4, 4), 'test': (6, 6)}
  seed = 0
  for part, (good, bad) in counts.items():
    for kind, number in (('good', good), ('bad', bad)):
      for i in range(number):
        seed += 1
        rng = np.random.default_rng(seed)
        colour = (230, 130, 180) if kind == 'good' else (130, 70, 170)
        tile = colour + rng.normal(0, 12, (32, 32, 3))
        name = f'{part}_00{i % 2}_{32 * i}_64.png'
        picture(folder / f'patches/{part}/{kind}/{name}', tile.clip(0, 255))


def outlines(folder: pathlib.Path) -> None:
  """Writes a slide and what QuPath exports as its outline."""
  tiff(folder / 'slides/one.tiff', tissue(0, 768, 768), 0.5)
  ring = [[0, 0], [512, 0], [512, 300], [0, 300], [0, 0]]
  feature = {
    'type': 'Feature',
    'geometry': {'type': 'Polygon', 'coordinates': [ring]},
    'properties': {'objectType': 'annotation'},
  }
  path = folder / 'outlines/one.geojson'
  path.parent.mkdir(parents=True)
  collection = {'type': 'FeatureCollection', 'features': [feature]}
  path.write_text(json.dumps(collection))


def encoder_weights(path: pathlib.Path) -> None:
  """Writes random weights by torchvision's names, as if ImageNet's."""
  rng = np.random.default_rng(0)
  arrays = {}

  def convolution(name, out, into, side):
    scale = np.sqrt(2 / (into * side * side))
    values = rng.standard_normal((out, into, side, side), np.float32)
    arrays[f'{name}.weight'] = values * np.float32(scale)

  def norm(name, width, gain=1.0):
    arrays[f'{name}.weight'] = np.full(width, gain, np.float32)
    arrays[f'{name}.bias'] = np.zeros(width, np.float32)
    arrays[f'{name}.running_mean'] = np.zeros(width, np.float32)
    arrays[f'{name}.running_var'] = np.ones(width, np.float32)

  convolution('conv1', 64, 3, 7)
  norm('bn1', 64)
  into = 64
  for stage, blocks in enumerate((3, 4, 6), 1):
    width = 32 * 2**stage
    for block in range(blocks):
      name = f'layer{stage}.{block}'
      convolution(f'{name}.conv1', width, into, 1)
      convolution(f'{name}.conv2', width, width, 3)
      convolution(f'{name}.conv3', 4 * width, width, 1)
      for i, size in ((1, width), (2, width), (3, 4 * width)):
        norm(f'{name}.bn{i}', size, 0.3 if i == 3 else 1.0)
      if block == 0:
        convolution(f'{name}.downsample.0', 4 * width, into, 1)
        norm(f'{name}.downsample.1', 4 * width)
      into = 4 * width
  path.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(arrays, path)


def weighted_slides(folder: pathlib.Path) -> None:
  """Writes slides, and an encoder where ImageNet's is looked for."""
  slides(folder)
  name = 'resnet50.tv_in1k.safetensors'
  encoder_weights(folder / 'cache/kmil_jax/weights' / name)


def kept(folder: pathlib.Path) -> None:
  """Writes a cohort, and results that the first edition trained on it."""
  trained_slides(folder, width=4)
  names = [f'2024-01{i}_A' for i in range(6)]
  first, middle, last = names[:2], names[2:4], names[4:]
  for i, parts in enumerate(((first, middle, last), (last, first, middle))):
    rows = [['train', 'val', 'test'], *zip(*parts, strict=True)]
    table(folder / f'splits/splits_{i}.csv', rows)
  for name in ('kept_s2023', 'other_s2023'):
    shutil.copytree(STORED / name, folder / 'results' / name)
