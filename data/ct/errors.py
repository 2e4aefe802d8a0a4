"""The error that every reader of CT files raises."""


class VolumeError(ValueError):
  """A volume or mask that cannot be used; names the file and what to do."""
