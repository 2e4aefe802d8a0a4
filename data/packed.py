"""Opens the features of a cohort: a folder of files or a packed dataset.

Both kinds have the same operations, by slide id: `in`, `ids`, `header`, `read`,
`digest`.
"""

import json
from pathlib import Path

import numpy as np

from data import files
from data.features import FeatureError, FeatureFile, Folder, Header

SPLIT = 'slides'  # The only split of a packed dataset.
# Of the metadata: what is known of all slides before a bag is read.
INDEX = {'slide_id', 'length', 'width', 'attributes', 'digest'}
_MARK = 'dataset_info.json'  # Every TFDS dataset's folder holds it.


class Packed:
  """A dataset that `experiments.pack` wrote, read without TensorFlow.

  Any slide is read on its own, from any thread. What a slide's file held is
  given back: features as float32, `digest` as of the `Folder` it came from.

  Attributes:
    cases: of each slide, if known.
  """

  def __init__(self, path: Path | str):
    """Opens a packed dataset, reading its index alone.

    Args:
      path: the folder with dataset_info.json.

    Raises:
      FeatureError: if this is another dataset, or not random access.
    """
    # It takes a third of a second: only where there is something packed.
    import tensorflow_datasets as tfds

    self.path, self.seen = Path(path), {}  # See `Folder`.
    try:
      builder = tfds.builder_from_directory(self.path)
      self._index = index = dict(builder.info.metadata or {})
      if not INDEX <= index.keys():
        raise FeatureError(
          f'{path}: a TFDS dataset {builder.name}, not one of experiments.pack.'
          ' Pack the features.'
        )
      if builder.info.file_format.value != 'array_record':
        raise FeatureError(
          f'{path}: packed as {builder.info.file_format.value}, which cannot be'
          ' read slide by slide. Pack with --file_format=array_record.'
        )
      self._source = builder.as_data_source(SPLIT)
      self._row = {files.clean(s): i for i, s in enumerate(index['slide_id'])}
      # Datasets of former versions name the cases in their records alone.
      cases = index.get('case_id', {})
      self.cases = cases and dict(zip(self._row, cases, strict=True))
      self._dtype = np.dtype(builder.info.features['features'].np_dtype).name
      if len({len(index[name]) for name in INDEX - {'width'}}) > 1:
        raise ValueError('its lists are not of the same slides')
    except FeatureError:
      raise
    except Exception as error:  # TFDS raises anything on damaged files.
      raise FeatureError(
        f'{path}: its index cannot be read ({error}). Copy or pack the dataset'
        ' again.'
      ) from error

  def __contains__(self, slide_id: str) -> bool:
    return slide_id in self._row

  def ids(self) -> list[str]:
    """Returns the ids of all slides, sorted."""
    return sorted(self._row)

  def header(self, slide_id: str) -> Header:
    """Returns N, D and the attributes of a slide, reading no features.

    Raises:
      FeatureError: if the slide is not in the dataset.
    """
    row, index = self._find(slide_id), self._index
    return Header(
      index['length'][row],
      index['width'],
      index['attributes'][row],
      self._dtype,
    )

  def read(self, slide_id: str, level0_mpp: float | None = None) -> FeatureFile:
    """Returns the features of a slide as `data.features.read` does.

    Micrometres without a scale were left out when the slide was packed, so
    `level0_mpp` changes nothing.

    Raises:
      FeatureError: if the slide is not in the dataset, or its record damaged.
    """
    del level0_mpp
    row, header = self._find(slide_id), self.header(slide_id)
    try:
      example = self._source[row]
      if (shape := example['features'].shape) != (header.length, header.width):
        raise ValueError(f'its shape is {list(shape)}')
    except Exception as error:  # array_record has no class of its own.
      raise FeatureError(
        f'{self.path}: the record of {slide_id} cannot be read ({error}). Copy '
        'or pack the dataset again.'
      ) from error
    coords = example['coords']
    return FeatureFile(
      self.path / slide_id,
      example['features'].astype(np.float32),
      coords if len(coords) else None,
      json.loads(example['attributes']),
    )

  def digest(self, slide_id: str) -> str:
    """Returns the hash of the file that was packed; see `Folder.digest`."""
    return self._index['digest'][self._find(slide_id)]

  def _find(self, slide_id: str) -> int:
    if slide_id not in self._row:
      raise FeatureError(f'{self.path}: holds no slide {slide_id}')
    return self._row[slide_id]


def find(path: Path | str) -> Folder | Packed:
  """Returns the features at `path`, packed or not.

  Raises:
    FeatureError: if there is a dataset that cannot be used, or it lies
      elsewhere than on a disk.
  """
  path = files.place(path)
  if not isinstance(path, Path):
    return Folder(path)
  if (path / _MARK).exists():
    return Packed(path)
  below = sorted(path.glob(f'slide_bags/*/*/{_MARK}'))
  if below:
    raise FeatureError(
      f'{path}: holds packed datasets. Give one, as {below[0].parent}.'
    )
  return Folder(path)
