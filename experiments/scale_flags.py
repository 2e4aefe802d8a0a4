"""Flags that say how large the pixels of slides are."""

from collections.abc import Sequence
import dataclasses
import pathlib

from absl import flags

from data import slides
from data.files import first_of
from experiments.run.options import free

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


@dataclasses.dataclass(frozen=True)
class Scale:
  """The scale of slides that state none, or a wrong one."""

  slide_mpp: float | None = free(
    None,
    'Micrometres per level-0 pixel of slides that do not state it.',
    least=1e-3,
    only={'slides_dir': True},
  )
  slide_mpp_csv: pathlib.Path | None = free(
    None,
    'CSV with the columns slide_id,mpp: micrometres per level-0 pixel of slides'
    ' that state none or a wrong one. Slides that it does not name, or whose'
    ' cell is empty, keep what they state.',
    only={'slides_dir': True},
  )

  def of(self, paths: Sequence[pathlib.Path]) -> dict[str, float]:
    """Returns the scales of --slide_mpp_csv by slide id.

    Args:
      paths: of all slides; a warning is printed of other ids.

    Raises:
      SlideError: if the file cannot be used.
    """
    if not self.slide_mpp_csv:
      return {}
    found = slides.read_mpp_csv(self.slide_mpp_csv)
    absent = sorted(found.keys() - {slides.slide_id(path) for path in paths})
    if absent:
      print(
        f'warning: {self.slide_mpp_csv}: no slide files of {first_of(absent)}'
      )
    return found


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
