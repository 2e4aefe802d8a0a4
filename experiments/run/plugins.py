"""Code of the user's own: models that it registers, encoders that it holds.

  python -m experiments.kmil --plugin=clam_sb.py --model=clam_sb

It is imported before the other flags are read, so that they know its models.
config.json names it, and what uses the run asks for it.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import importlib
import pathlib
import sys
import traceback

from experiments.run.options import OptionError, free
from kmil_jax import checksums


@dataclasses.dataclass(frozen=True)
class Plugin:
  """Code of your own."""

  plugin: str | None = free(
    None,
    'Python module or file to import first, which registers a model'
    ' (kmil_jax.register) or holds an encoder for --weights=module:function.',
  )


given: str | None = None  # By the command that runs, as config.json names it.


def begin(argv: Sequence[str]) -> None:
  """Imports what --plugin names on a command line, if it does.

  Raises:
    OptionError: see `load`.
  """
  global given
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument('--plugin', '-plugin', nargs='?')
  plugin = parser.parse_known_args(argv[1:])[0].plugin
  given = load(plugin, f'--plugin={plugin}') if plugin else None


def inputs() -> dict[str, str]:
  """Returns the hash of the file that --plugin names, as results depend on."""
  if not given:
    return {}
  file = sys.modules[pathlib.Path(given).stem if is_file(given) else given]
  return {'plugin_sha256': checksums.of_file(pathlib.Path(file.__file__))}


def is_file(plugin: str) -> bool:
  """Whether a plugin is a file, and no module."""
  return plugin.endswith('.py')


def load(plugin: str, source: str) -> str:
  """Imports a module or file, once.

  Args:
    plugin: name of a module, or a path that ends in .py.
    source: what names it, for messages.

  Returns:
    The name, or the absolute path.

  Raises:
    OptionError: if it cannot be imported, or another module has its name.
  """
  path = pathlib.Path(plugin).expanduser().absolute()
  if is_file(plugin) and not path.is_file():
    raise OptionError(f'{source}: no such file. Give its place by --plugin.')
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))
  try:
    module = importlib.import_module(path.stem if is_file(plugin) else plugin)
  except Exception as e:  # The user's code may raise anything.
    at = traceback.extract_tb(e.__traceback__)[-1]
    raise OptionError(
      f'{source} cannot be imported: {type(e).__name__}: {e} ({at.filename},'
      f' line {at.lineno}). Give a Python file, or a module in this folder or'
      ' on PYTHONPATH, by --plugin.'
    ) from e
  if is_file(plugin) and not path.samefile(module.__file__ or '/'):
    raise OptionError(
      f'{source}: a module {path.stem} is there already, {module.__file__}.'
      ' Rename the file.'
    )
  return str(path) if is_file(plugin) else plugin
