"""Builds a TFDS dataset of breast tiles from a zip file and a table."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data import tile_sources
from data.dataset_tiles import TileBuilder
from data.labelled_tiles import TileError


class Builder(TileBuilder):
  """One example per tile of 50 x 50 px; see README.md."""

  SIZE = 50
  CLASSES = ('0', '1')
  FURTHER: ClassVar[dict[str, Any]] = {
    'x': tfds.features.Scalar(dtype=np.int32),
    'y': tfds.features.Scalar(dtype=np.int32),
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put into the folder for manual downloads
    idc_tiles.zip: the tiles, 50 x 50 px
    index.csv: a row for each, with the columns patient,x,y,label,zip_path;
      label is 0 or 1, zip_path the tile's name in the zip
  """

  def _generate_examples(self, folder: Any) -> Iterator[tuple[str, dict]]:
    """See base class.

    Raises:
      TileError: naming what is missing, broken or of another size.
    """
    tiles = tile_sources.from_zip(
      folder / 'idc_tiles.zip', folder / 'index.csv'
    )
    if tiles.size != self.SIZE or not set(tiles.classes) <= set(self.CLASSES):
      raise TileError(
        f'{folder}: tiles of {tiles.size} px and the classes '
        f'{", ".join(tiles.classes)}; {self.SIZE} px and '
        f'{", ".join(self.CLASSES)} are idc_breast'
      )
    for i, name in enumerate(tiles.id.tolist()):
      x, y = tiles.xy[i].tolist()
      yield (
        name,
        {
          'id': name,
          'image': tiles.read(i),
          'label': tiles.classes[tiles.label[i]],
          'patient': str(tiles.group[i]),
          'x': x,
          'y': y,
        },
      )
