"""Flags that name the scores and slides of a run, and what they resolve to."""

import pathlib

from absl import flags

from experiments import run_flag
from experiments.slide_maps import run_folder, tile_scores

FOLD = flags.DEFINE_integer(
  'fold', None, 'The only fold to look at; by default the mean of all.', 0
)
SLIDES_DIR = flags.DEFINE_string(
  'slides_dir', None, 'Folder of slide files; by default that of the run.'
)
TILE_SIZE = flags.DEFINE_float(
  'tile_size',
  None,
  'Side of a tile in level-0 pixels, if the features do not say it.',
  1,
)
flags.declare_key_flag('run')


def resolve() -> tuple[
  pathlib.Path,
  dict[str, pathlib.Path],
  dict[str, dict[int, pathlib.Path]],
]:
  """Returns the run, its slide files, and its files of scores.

  The files by slide, those of scores also by fold.

  Raises:
    app.UsageError: if there is no such folder.
    tile_scores.MapError: if it is not that of a run.
    data.slides.SlideError: if the folder of slides cannot be used.
  """
  run = run_flag.folder()
  files = run_folder.slide_files(run, SLIDES_DIR.value)
  return run, files, tile_scores.find(run, FOLD.value)
