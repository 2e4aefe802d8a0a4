"""Opens tiles of TFDS datasets that are prepared already."""

from collections.abc import Sequence
import io
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.host_tensorflow import tf
from data.labelled_tiles import LabelledTiles, TileError
from data.tile_images import decode

_GROUPS = ('patient', 'slide', 'group')  # Features that name what splits keep.
_HEAD, _TAIL = 12, 4  # Bytes of length and checksums about a TFRecord.


def from_tfds(
  name: str, split: str, *, data_dir: pathlib.Path | str | None = None
) -> LabelledTiles:
  """Opens a split of a prepared dataset with one image and one class label.

  Nothing is downloaded. All records are read once, for their labels and
  checksums; images stay in the files until they are asked for. Groups are the
  feature `patient`, `slide` or `group`; without one, as in patch_camelyon,
  whose own splits keep slides apart, they are empty. Ids are the feature `id`,
  or '<split>/<number>'; places come from `x` and `y`.

  Args:
    name: of the dataset, with its configuration: 'patch_camelyon',
      'lymphatic_invasion/hard'; or the folder of a prepared one.
    split: 'train', 'test[:10%]'.
    data_dir: where datasets are; TFDS's own place by default.

  Raises:
    TileError: if the dataset is unknown, not prepared, damaged, or has other
      features, or its images no fixed square size.
  """
  builder = _builder(name, data_dir)
  features = builder.info.features
  image, label = _columns(name, features)
  side, _, channels = features[image].shape
  try:
    records = _open(builder, split)
    examples = [
      _example(features, record, image, drop=True) for record in records
    ]
  except (AssertionError, KeyError, ValueError, tf.errors.OpError) as e:
    raise TileError(
      f'{name}: split {split!r} of {builder.data_dir} cannot be read '
      f'({type(e).__name__}: {e}); it has the splits '
      f'{", ".join(builder.info.splits)}'
    ) from e

  def column(feature: str) -> list[Any]:
    return [example[feature] for example in examples]

  def texts(feature: str) -> np.ndarray:
    return np.array([x.decode() for x in column(feature)], str)

  n = len(examples)
  numbers = np.array([f'{split}/{i:07d}' for i in range(n)], str)
  ids = texts('id') if 'id' in features else numbers
  group = next((g for g in _GROUPS if g in features), None)
  x_y = 'x' in features and 'y' in features

  def read(i: int) -> np.ndarray:
    content = _example(features, records[i], image)[image]
    return decode(
      f'{name} {split} {ids[i]}', lambda: io.BytesIO(content), channels
    )

  return LabelledTiles(
    id=ids,
    label=np.array(column(label), np.int32),
    group=texts(group) if group else np.full(n, ''),
    classes=tuple(features[label].names),
    read=read,
    size=side,
    channels=channels,
    xy=np.array([column('x'), column('y')]).T if x_y else None,
  )


def _builder(
  name: str, data_dir: pathlib.Path | str | None
) -> tfds.core.DatasetBuilder:
  try:
    if (pathlib.Path(name) / 'dataset_info.json').is_file():
      return tfds.builder_from_directory(name)
    builder = tfds.builder(name, data_dir=data_dir)
  except (
    AssertionError,
    tfds.core.registered.DatasetNotFoundError,
    ValueError,
  ) as e:
    raise TileError(f'{name}: no such dataset ({e})') from e
  if not builder.info.splits:
    raise TileError(
      f'{name}: not prepared in {builder.data_dir}; run '
      f'tfds.builder({name!r}).download_and_prepare(), or say where it is'
    )
  return builder


def _columns(
  name: str, features: tfds.features.FeaturesDict
) -> tuple[str, str]:
  """Returns the features that are the image and the label."""
  found = []
  for kind in (tfds.features.Image, tfds.features.ClassLabel):
    names = [k for k, f in features.items() if isinstance(f, kind)]
    if len(names) != 1:
      raise TileError(
        f'{name}: {len(names)} features are a {kind.__name__}; one is needed: '
        f'{", ".join(features)}'
      )
    found += names
  image, label = found
  shape = features[image].shape
  if shape[0] is None or shape[0] != shape[1] or shape[2] not in (1, 3):
    raise TileError(
      f'{name}: images of the shape {shape}; squares of one size are needed'
    )
  return image, label


def _example(
  features: tfds.features.FeaturesDict,
  record: bytes,
  image: str,
  drop: bool = False,
) -> dict[str, Any]:
  """Returns the features of a record, its image as encoded or dropped."""
  example = features.deserialize_example_np(
    record, decoders={image: tfds.decode.SkipDecoding()}
  )
  if drop:
    del example[image]
  return example


def _open(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[bytes]:
  """Returns the records of a split."""
  formats = {f.value for f in builder.info.available_file_formats()}
  if 'array_record' in formats:
    return builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
  if 'tfrecord' in formats:
    return _TfRecords(builder.info.splits[split].file_instructions)
  raise ValueError(f'its files are {", ".join(formats)}')


class _TfRecords(Sequence):
  """Records of TFRecord files by their number.

  Opening reads the files once, which verifies all checksums.
  """

  def __init__(self, files: Sequence[Any]):
    self._places = []  # Of each record: file, first byte, number of bytes.
    for file in files:
      offset = 0
      for i, record in enumerate(tf.data.TFRecordDataset(file.filename)):
        size = len(record.numpy())
        if file.skip <= i < file.skip + file.take:
          self._places.append((file.filename, offset + _HEAD, size))
        offset += _HEAD + size + _TAIL

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, i: int) -> bytes:
    name, offset, size = self._places[i]
    with open(name, 'rb') as f:
      f.seek(offset)
      return f.read(size)
