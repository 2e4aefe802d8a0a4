"""CT volumes with lymph-node masks: reading, resampling, nodes."""

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


def itk_reason(error: RuntimeError) -> str:
  """Returns what ITK says went wrong, without where in its code."""
  return str(error).strip().splitlines()[-1].strip()
