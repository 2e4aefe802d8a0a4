"""Faults in reading a file that are not the file's own."""

import errno

_OUTSIDE = frozenset({
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  errno.ESTALE,
  errno.ENODEV,
  errno.ENOTCONN,
  errno.ETIMEDOUT,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
})  # fmt: skip


def outer_fault(error: Exception) -> str | None:
  """Says what kept a file from being read; None where it is damaged itself."""
  if isinstance(error, MemoryError):
    return 'does not fit in memory' + (f' ({error})' if str(error) else '')
  if isinstance(error, OSError) and error.errno in _OUTSIDE:
    return f'cannot be read ({error}); see to its permissions and its disk'
  return None
