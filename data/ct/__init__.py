"""CT volumes with lymph-node masks: reading, resampling, nodes."""

from collections.abc import Iterator
import contextlib
import locale
from types import ModuleType

from data.labelled_tiles import TileError


class VolumeError(TileError):
  """A volume or mask that cannot be used; names the file and what to do."""


def simpleitk() -> ModuleType:
  """Returns SimpleITK, imported on first use.

  Raises:
    VolumeError: if it is not installed.
  """
  try:
    import SimpleITK
  except ImportError as e:
    raise VolumeError(
      "CT volumes need SimpleITK: pip install 'kmil_jax[ct]', or"
      " 'SimpleITK>=2.4,<3'"
    ) from e
  SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
  return SimpleITK


@contextlib.contextmanager
def itk_errors(what: str) -> Iterator[None]:
  """Raises what ITK says went wrong as a VolumeError, '<what>: <reason>'.

  Keeps the locale: GDCM sets it to C, in which Python's text is ASCII.
  """
  before = locale.setlocale(locale.LC_ALL)
  try:
    yield
  except RuntimeError as e:
    reason = str(e).strip().splitlines()[-1].strip()
    raise VolumeError(f'{what}: {reason}') from e
  finally:
    locale.setlocale(locale.LC_ALL, before)
