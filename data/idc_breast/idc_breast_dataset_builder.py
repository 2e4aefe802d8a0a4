"""Builds a TFDS dataset of breast tiles from a zip file and a table."""

from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data.dataset_tiles import TileBuilder
from data.labelled_tiles import LabelledTiles
from data.tile_sources import from_zip


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

  def _tiles(self, folder: Any) -> tuple[LabelledTiles, dict[str, list]]:
    """See base class."""
    tiles = from_zip(folder / 'idc_tiles.zip', folder / 'index.csv')
    x, y = tiles.xy.T.tolist()
    return tiles, {'x': x, 'y': y}
