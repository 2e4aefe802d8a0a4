"""Flags that say how large the pixels of slides are."""

from collections.abc import Sequence
import pathlib

from absl import flags

from data import slides
from data.files import first_of

DEFAULT_MPP = flags.DEFINE_float(
  'default_mpp',
  None,
  'Micrometres per level-0 pixel of slides that do not state it.',
  lower_bound=1e-3,
)
MPP_CSV = flags.DEFINE_string(
  'mpp_csv',
  None,
  'CSV with the columns slide_id,mpp: micrometres per level-0 pixel of slides'
  ' that state none or a wrong one. Empty cells, and slides that it does not'
  ' name, leave what the slide states.',
)


def of(paths: Sequence[pathlib.Path]) -> dict[str, float]:
  """Returns the scales of --mpp_csv by slide id.

  Args:
    paths: of all slides; a warning is printed of other ids.

  Raises:
    SlideError: if the file cannot be used.
  """
  if not MPP_CSV.value:
    return {}
  found = slides.read_mpp_csv(MPP_CSV.value)
  absent = sorted(found.keys() - {slides.slide_id(path) for path in paths})
  if absent:
    print(f'warning: {MPP_CSV.value}: no slide files of {first_of(absent)}')
  return found
