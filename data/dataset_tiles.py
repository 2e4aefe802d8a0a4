"""TFDS datasets of labelled tiles: what builders share, and how to open one."""

from collections.abc import Callable, Iterator
import io
import pathlib
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data.host_tensorflow import tf
from data.labelled_tiles import LabelledTiles, TileError
from data.tile_sources import decode

_GROUPS = ('patient', 'slide', 'group')  # Features that name what splits keep.
_HEAD, _TAIL = 12, 4  # Bytes of length and checksums about a TFRecord.


class TileBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds a dataset of square RGB tiles in one split, `train`.

  Parts are drawn later, by patient or slide.

  Attributes:
    SIZE: side of the tiles, pixels.
    CLASSES: their names.
    FURTHER: features beside id, image, label and patient.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First version.'}
  SIZE: ClassVar[int]
  CLASSES: ClassVar[tuple[str, ...]]
  FURTHER: ClassVar[dict[str, Any]]

  def _info(self) -> tfds.core.DatasetInfo:
    """See base class."""
    features = {
      'id': tfds.features.Text(),
      'image': tfds.features.Image(
        shape=(self.SIZE, self.SIZE, 3), encoding_format=self._encoding()
      ),
      'label': tfds.features.ClassLabel(names=list(self.CLASSES)),
      'patient': tfds.features.Text(),
    }
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features | self.FURTHER),
      supervised_keys=('image', 'label'),
    )

  def _encoding(self) -> str:
    return 'png'

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    """See base class."""
    return {'train': self._generate_examples(dl_manager.manual_dir)}

  def _generate_examples(self, folder: Any) -> Iterator[tuple[str, dict]]:
    """See base class.

    Raises:
      TileError: naming all that is missing, broken or of another kind.
    """
    tiles, further = self._tiles(folder)
    if tiles.size != self.SIZE or not set(tiles.classes) <= set(self.CLASSES):
      raise TileError(
        f'{folder}: tiles of {tiles.size} px and the classes'
        f' {", ".join(tiles.classes)}. {self.name} holds {self.SIZE} px and'
        f' {", ".join(self.CLASSES)}.'
      )
    for i, name in enumerate(tiles.id.tolist()):
      example = {
        'id': name,
        'image': tiles.read(i),  # In full: a dataset of broken files is none.
        'label': tiles.classes[tiles.label[i]],
        'patient': str(tiles.group[i]),
      }
      yield name, example | {key: column[i] for key, column in further.items()}

  def _tiles(self, folder: Any) -> tuple[LabelledTiles, dict[str, list]]:
    """Returns the tiles in a folder and columns of what else they have."""
    raise NotImplementedError


def from_tfds(folder: pathlib.Path | str, split: str) -> LabelledTiles:
  """Opens a split of a prepared dataset with one image and one class label.

  All records are read once, for their labels and checksums; images stay in the
  files until they are asked for. Groups are the feature `patient`, `slide` or
  `group`; without one, as in patch_camelyon, whose own splits keep slides
  apart, they are empty. Ids are the feature `id`, or '<split>/<number>'.

  Args:
    folder: of the dataset, with dataset_info.json.
    split: 'train', 'test[:10%]'.

  Raises:
    TileError: if the dataset is damaged or has other features, or its images
      no fixed square size.
  """
  builder = tfds.builder_from_directory(folder)
  features = builder.info.features
  images, labels = (
    [name for name, f in features.items() if isinstance(f, kind)]
    for kind in (tfds.features.Image, tfds.features.ClassLabel)
  )
  if len(images) != 1 or len(labels) != 1:
    raise TileError(
      f'{folder}: {len(images)} features are an Image, {len(labels)} features'
      f' are a ClassLabel. One of each is needed: {", ".join(features)}.'
    )
  image, label = *images, *labels
  side, width, channels = features[image].shape
  if side is None or side != width or channels not in (1, 3):
    raise TileError(
      f'{folder}: images of the shape {features[image].shape}. Squares of one'
      ' size are needed.'
    )

  def example(i: int) -> dict[str, Any]:
    """Returns the features of record i, its image as encoded."""
    return features.deserialize_example_np(
      record(i), decoders={image: tfds.decode.SkipDecoding()}
    )

  columns = {name: [] for name in features if name != image}
  try:
    n, record = _records(builder, split)
    for row in map(example, range(n)):
      for name, column in columns.items():
        column.append(row[name])
  except (AssertionError, KeyError, ValueError, tf.errors.OpError) as e:
    raise TileError(
      f'{folder}: split {split!r} cannot be read ({type(e).__name__}: {e}). It'
      f' has the splits {", ".join(builder.info.splits)}.'
    ) from e
  texts = lambda name: np.array([x.decode() for x in columns[name]], str)
  numbers = np.array([f'{split}/{i:07d}' for i in range(n)], str)
  ids = texts('id') if 'id' in columns else numbers
  group = next((g for g in _GROUPS if g in columns), None)

  def read(i: int) -> np.ndarray:
    content = example(i)[image]
    name = f'{folder} {split} {ids[i]}'
    return decode(name, lambda: io.BytesIO(content))

  return LabelledTiles(
    id=ids,
    label=np.array(columns[label], np.int32),
    group=texts(group) if group else np.full(n, ''),
    classes=tuple(features[label].names),
    read=read,
    size=side,
  )


def _records(
  builder: tfds.core.DatasetBuilder, split: str
) -> tuple[int, Callable[[int], bytes]]:
  """Returns how many records a split has, and what reads one by its number.

  TFRecord files are read once here, which verifies their checksums and tells
  where their records lie.
  """
  if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
    source = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    return len(source), source.__getitem__
  places = []  # Of each record: file, first byte, number of bytes.
  for file in builder.info.splits[split].file_instructions:
    offset = 0
    for i, record in enumerate(tf.data.TFRecordDataset(file.filename)):
      size = len(record.numpy())
      if file.skip <= i < file.skip + file.take:
        places.append((file.filename, offset + _HEAD, size))
      offset += _HEAD + size + _TAIL

  def read(i: int) -> bytes:
    name, offset, size = places[i]
    with open(name, 'rb') as f:
      f.seek(offset)
      return f.read(size)

  return len(places), read
