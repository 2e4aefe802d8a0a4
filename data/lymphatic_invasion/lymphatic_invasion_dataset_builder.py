"""Builds a TFDS dataset of tiles with and without lymphatic invasion."""

from collections.abc import Iterator
import functools
import pathlib
import re
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data.labelled_tiles import TileError
from data.tile_images import check_sizes, decode

SIZE = 512
CLASSES = ('negative', 'positive')
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


class Builder(tfds.core.GeneratorBasedBuilder):
  """One example per tile of 512 x 512 px; see README.md."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First version.'}
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

  def _info(self) -> tfds.core.DatasetInfo:
    """See base class."""
    hard = self.builder_config.name == 'hard'
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Text(),
          'image': tfds.features.Image(
            shape=(SIZE, SIZE, 3), encoding_format='png' if hard else 'jpeg'
          ),
          'label': tfds.features.ClassLabel(names=list(CLASSES)),
          'patient': tfds.features.Text(),
          'slide': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    """See base class; parts are drawn later, by patient or slide."""
    return {'train': self._generate_examples(dl_manager.manual_dir)}

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
    said = [_NAMES[kind].fullmatch(p.name) for p in paths]
    problems = [
      f'{path}: {_EXPECTED[kind]} is expected; rename it or take it away'
      for path, match in zip(paths, said, strict=True)
      if match is None
    ]
    kept = [p for p, match in zip(paths, said, strict=True) if match]
    names = [str(p) for p in kept]
    files = [functools.partial(p.open, 'rb') for p in kept]
    side, channels, cut, faults = check_sizes(names, files)
    problems += faults + [f'{names[i]}: smaller than the others' for i in cut]
    if kept and not problems and (side, channels) != (SIZE, 3):
      problems.append(
        f'tiles of {side} px with {channels} channel(s); {SIZE} px RGB is '
        'expected'
      )
    if problems:
      raise TileError.listing(problems, str(folder))
    for path, name, file, match in zip(
      kept, names, files, filter(None, said), strict=True
    ):
      decode(name, file, 3)  # In full: a dataset of broken files is none.
      key = path.relative_to(folder).as_posix()
      yield (
        key,
        {
          'id': key,
          'image': str(path),
          'label': CLASSES[match['label'] == 'pos'],
          'patient': match['patient'],
          'slide': f'{match["patient"]}_{match["slide"]}',
        },
      )
