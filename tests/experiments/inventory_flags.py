"""Prints the flags of the modules named on its command line, as JSON.

For tests/inventory_test.py: by module, names with defaults.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import sys

from absl import flags

ROOT = pathlib.Path(__file__).parents[2]
# Importing these takes seconds: once, for all commands.
_HEAVY = (
  'flax.linen',
  'jax',
  'matplotlib.figure',
  'openslide',
  'optax',
  'orbax.checkpoint',
  'scipy.ndimage',
  'sklearn.metrics',
)


def shown(default):
  """Returns a default as the page has it."""
  if isinstance(default, list | tuple):
    return ','.join(map(str, default))
  return "''" if default == '' else str(default)


def defaults(classes):
  """Returns the defaults of a script's classes of options, by flag."""
  return {
    field.metadata.get('flag') or field.name: field.default
    for one in classes
    for field in dataclasses.fields(one)
    if not field.metadata.get('positional')
  }


def flags_of(module):
  """Imports a module; returns the defaults of this project's flags by name."""
  main = getattr(importlib.import_module(module), 'main', None)
  if classes := getattr(main, 'options', ()):
    return {flag: shown(value) for flag, value in defaults(classes).items()}
  return {
    flag.name: shown(flag.default)
    for definer, some in flags.FLAGS.flags_by_module_dict().items()
    if (file := getattr(sys.modules.get(definer), '__file__', None))
    and ROOT in pathlib.Path(file).parents
    for flag in some
  }


def main(modules):
  """Prints the flags of modules as JSON, each imported in a fork."""
  for name in _HEAVY:
    importlib.import_module(name)
  found = {}
  for module in modules:
    read, write = os.pipe()
    if not os.fork():
      with os.fdopen(write, 'w') as out:
        json.dump(flags_of(module), out)
        out.flush()
        os._exit(0)  # Without the parent's handlers.
    os.close(write)
    with os.fdopen(read) as told:
      found[module] = json.load(told)
    os.wait()
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1:])
