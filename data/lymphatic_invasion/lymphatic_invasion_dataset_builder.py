"""Builds a TFDS dataset of tiles with and without lymphatic invasion."""

from collections.abc import Iterator
import functools
import pathlib
import re
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data.dataset_tiles import TileBuilder
from data.labelled_tiles import TileError
from data.tile_sources import check_sizes, decode

_REST = r'_(?P<patient>[^_]+)_(?P<slide>[^_.]+)(_.*)?'
# What a file's name says, by configuration; the weak have one label.
_NAMES = {
  'hard': re.compile(rf'(?P<label>pos|neg){_REST}\.png', re.ASCII),
  'weak': re.compile(rf'(?P<label>){_REST[1:]}\.jpe?g', re.ASCII),
}
_EXPECTED = {
  'hard': '(pos|neg)_<patient>_<slide>_<anything>.png',
  'weak': '<patient>_<slide>_<anything>.jpg',
}


class Builder(TileBuilder):
  """One example per tile of 512 x 512 px; see README.md."""

  SIZE = 512
  CLASSES = ('negative', 'positive')
  FURTHER: ClassVar[dict[str, Any]] = {'slide': tfds.features.Text()}
  BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
    tfds.core.BuilderConfig(
      name='hard', description='Labelled regions of slides with invasion.'
    ),
    tfds.core.BuilderConfig(
      name='weak', description='Tiles of slides on which none was found.'
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download record 10020633 of Zenodo, unpack it, and lay its files out in the
  folder for manual downloads as
    hard/pos_<patient>_<slide>_<anything>.png
    hard/neg_<patient>_<slide>_<anything>.png
    weak/<patient>_<slide>_<anything>.jpg
  """

  def _encoding(self) -> str:
    return 'png' if self.builder_config.name == 'hard' else 'jpeg'

  def _generate_examples(self, root: Any) -> Iterator[tuple[str, dict]]:
    """See base class.

    Raises:
      TileError: naming every file that has another name or size, or is broken.
    """
    kind = self.builder_config.name
    folder = pathlib.Path(root) / kind
    paths = sorted(
      p
      for p in folder.rglob('*')
      if p.is_file()
      and not any(s.startswith('.') for s in p.relative_to(folder).parts)
    )
    if not paths:
      raise TileError(
        f'{folder}: no file in it; {_EXPECTED[kind]} are expected there'
      )
    matches = {path: _NAMES[kind].fullmatch(path.name) for path in paths}
    problems = [
      f'{path}: {_EXPECTED[kind]} is expected; rename it or take it away'
      for path, match in matches.items()
      if match is None
    ]
    kept = {str(path): path for path, match in matches.items() if match}
    images = {
      name: functools.partial(path.open, 'rb') for name, path in kept.items()
    }
    side, channels, cut, faults = check_sizes(images)
    problems += faults
    problems += [f'{name}: smaller than the others' for name in cut]
    if kept and not problems and (side, channels) != (self.SIZE, 3):
      problems.append(
        f'tiles of {side} px with {channels} channel(s); {self.SIZE} px RGB is '
        'expected'
      )
    if problems:
      raise TileError.listing(problems, str(folder))
    for name, path in kept.items():
      decode(
        name, images[name], 3
      )  # In full: a dataset of broken files is none.
      key, match = path.relative_to(folder).as_posix(), matches[path]
      yield (
        key,
        {
          'id': key,
          'image': name,
          'label': self.CLASSES[match['label'] == 'pos'],
          'patient': match['patient'],
          'slide': f'{match["patient"]}_{match["slide"]}',
        },
      )
