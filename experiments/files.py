"""Writes texts, tables and arrays, each there in full or not at all."""

from collections.abc import Mapping
import pathlib
from typing import Any

import h5py
import numpy as np

from data.files import replacing, write_csv as write_csv


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text in UTF-8."""
  with replacing(path) as part:
    part.write_text(text, encoding='utf-8')


def write_h5(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  attributes: Mapping[str, Any],
) -> None:
  """Writes arrays and the attributes of an HDF5 file."""
  with replacing(path) as part, h5py.File(part, 'w') as f:
    for name, array in arrays.items():
      f[name] = array
    f.attrs.update(attributes)
