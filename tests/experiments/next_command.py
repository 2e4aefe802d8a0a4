"""Reads the line in which a script says what may come next."""

import importlib
import shlex

from experiments.run import options


def read(printed):
  """Returns the command in the last line, which its script must take.

  Returns:
    The name of the script, and its flags.
  """
  said, _, command = printed.splitlines()[-1].partition(': ')
  python, m, module, *flags = shlex.split(command)
  assert (said.partition(', with ')[0], python, m) == ('next', 'python', '-m')
  script = importlib.import_module(module)
  options.parse([module, *flags], script.main.options)
  return module.removeprefix('experiments.'), flags
