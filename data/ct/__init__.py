"""CT volumes with lymph-node masks: reading, resampling, nodes."""

from collections.abc import Iterator
import contextlib
import locale
import pathlib
from types import ModuleType

from data import files
from data.labelled_tiles import TileError

_PACKED = 300  # Times that a CT may be larger than its file; real ones are 20.
_SMALL = 2**28  # Bytes of voxels that any file may unpack to.


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


def check_size(
  path: pathlib.Path, voxels: int, itemsize: int, stored: int | None
) -> None:
  """Checks what a header declares, before any of it is read.

  Args:
    path: of the volume.
    voxels: number of them.
    itemsize: bytes of one.
    stored: bytes of its files; None for a mask, which packs as far as any.

  Raises:
    VolumeError: if this machine cannot hold them, or no CT packs so far.
  """
  memory = files.memory()
  # Three copies as they are stored, and HU, mask and parts.
  if (needed := voxels * (3 * itemsize + 12)) > memory:
    raise VolumeError(
      f'{path}: its header declares {voxels} voxels, which take'
      f' {needed / 2**30:.1f} GiB to read. This machine has'
      f' {memory / 2**30:.1f} GiB of memory. Crop or resample the volume.'
    )
  declared = voxels * itemsize
  if stored is not None and declared > max(_SMALL, _PACKED * stored):
    raise VolumeError(
      f'{path}: its header declares {declared / 2**30:.1f} GiB of voxels, and'
      f' {stored / 2**20:.1f} MiB are there: no CT packs so far. Copy or'
      ' convert it again.'
    )


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
