"""Builds a TFDS dataset of tiles with and without lymphatic invasion."""

import pathlib
import re
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data import files
from data.dataset_tiles import TileBuilder
from data.labelled_tiles import LabelledTiles, TileError
from data.tile_sources import from_files

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

  def _tiles(self, folder: Any) -> tuple[LabelledTiles, dict[str, list]]:
    """See base class; images are stored as they are encoded."""
    kind = self.builder_config.name
    folder = pathlib.Path(folder) / kind
    paths = files.listed(folder)
    if not paths:
      raise TileError(
        f'{folder}: no file in it. {_EXPECTED[kind]} are expected there.'
      )
    matches = {path: _NAMES[kind].fullmatch(path.name) for path in paths}
    problems = [
      f'{path}: {_EXPECTED[kind]} is expected. Rename it or take it away.'
      for path, match in matches.items()
      if match is None
    ]
    known = {path: match for path, match in matches.items() if match}
    tiles = from_files(
      folder,
      list(known),
      [int(match['label'] == 'pos') for match in known.values()],
      [match['patient'] for match in known.values()],
      self.CLASSES,
      problems,
      self.SIZE,
    )
    slides = [f'{m["patient"]}_{m["slide"]}' for m in known.values()]
    return tiles, {'image': list(map(str, known)), 'slide': slides}
