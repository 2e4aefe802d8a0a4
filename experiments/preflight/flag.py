"""The flag --check, which scripts that train or predict share."""

from absl import flags

CHECK = flags.DEFINE_bool(
  'check',
  False,
  'Only check the inputs: lists every problem at once, and what would run. The'
  ' exit code is 1 if there are problems.',
)
