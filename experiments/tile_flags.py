"""Flags that name labelled tiles of the user."""

from absl import app, flags

TILES_ZIP = flags.DEFINE_string(
  'tiles_zip', None, 'Labelled tiles, as a zip file of images.'
)
TILES_CSV = flags.DEFINE_string(
  'tiles_csv', None, 'Their table: patient,x,y,label,zip_path.'
)
POSITIVE = flags.DEFINE_string(
  'positive', None, 'Label of the positive class, if it is not the last.'
)


def zipped() -> tuple[str, str] | None:
  """Returns the zip file and its table, or None where neither is given.

  Raises:
    app.UsageError: if one is given without the other.
  """
  given = TILES_ZIP.value, TILES_CSV.value
  if any(given) and not all(given):
    raise app.UsageError('tiles need both --tiles_zip and --tiles_csv')
  return given if all(given) else None


def refuse(*holders: flags.FlagHolder, goes_with: str) -> None:
  """Ends a script that would leave flags unheard.

  Args:
    *holders: the flags, which must have their defaults.
    goes_with: what they say something to.

  Raises:
    app.UsageError: if one was given.
  """
  for flag in holders:
    if flag.value != flag.default:
      raise app.UsageError(f'--{flag.name} goes with {goes_with}')
