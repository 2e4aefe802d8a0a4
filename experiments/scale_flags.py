"""Flags of experiments.predict that say how large the pixels of slides are."""

import pathlib

from absl import flags

from experiments.encoding.tiles import Scale

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
  ' that state none or a wrong one.',
)


def scale() -> Scale:
  """Returns what the flags say."""
  file = MPP_CSV.value
  return Scale(DEFAULT_MPP.value, pathlib.Path(file) if file else None)
