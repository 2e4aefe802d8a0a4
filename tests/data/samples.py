"""What several tests of readers write: pictures, tables, feature files."""

import csv
import io

import h5py
import hypothesis
import numpy as np
from PIL import Image

from data import features, labels

ATTRIBUTES = dict.fromkeys(features.ATTRIBUTES, 1) | {'encoder': 'planted'}
# Every example writes to the same folder anew.
one_folder = hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def picture(seed, shape=(8, 8, 3)):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image, kind='PNG'):
  """The bytes of an image file."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


def write_rows(path, rows):
  with path.open('w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows(rows)
  return path


def write_manifest(path, table):
  rows = zip(table.case, table.slide, table.label, strict=True)
  return write_rows(path, [labels.COLUMNS, *rows])


def write_features(path, attributes=(), **datasets):
  """Writes an HDF5 file of these datasets, whatever they are."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with h5py.File(path, 'w') as file:
    for name, values in datasets.items():
      file[name] = values
    file.attrs.update(attributes)
  return path
