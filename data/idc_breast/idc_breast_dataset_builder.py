"""Builds a TFDS dataset of breast tiles from a zip file and a table."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data import tile_sources
from data.labelled_tiles import TileError

SIZE = 50
CLASSES = ('0', '1')


class Builder(tfds.core.GeneratorBasedBuilder):
  """One example per tile of 50 x 50 px; see README.md."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put into the folder for manual downloads
    idc_tiles.zip: the tiles, 50 x 50 px
    index.csv: a row for each, with the columns patient,x,y,label,zip_path;
      label is 0 or 1, zip_path the tile's name in the zip
  """

  def _info(self) -> tfds.core.DatasetInfo:
    """See base class."""
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Text(),
          'image': tfds.features.Image(
            shape=(SIZE, SIZE, 3), encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=list(CLASSES)),
          'patient': tfds.features.Text(),
          'x': tfds.features.Scalar(dtype=np.int32),
          'y': tfds.features.Scalar(dtype=np.int32),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    """See base class; parts are drawn later, by patient."""
    return {'train': self._generate_examples(dl_manager.manual_dir)}

  def _generate_examples(self, folder: Any) -> Iterator[tuple[str, dict]]:
    """See base class.

    Raises:
      TileError: naming what is missing, broken or of another size.
    """
    tiles = tile_sources.from_zip(
      folder / 'idc_tiles.zip', folder / 'index.csv'
    )
    if tiles.size != SIZE or not set(tiles.classes) <= set(CLASSES):
      raise TileError(
        f'{folder}: tiles of {tiles.size} px and the classes '
        f'{", ".join(tiles.classes)}; {SIZE} px and {", ".join(CLASSES)} are '
        'idc_breast'
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
