"""--check: problems and warnings, gathered instead of raised one by one."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import os
import pathlib
import re
import sys
from typing import Any
import warnings

from experiments.run import faults, options
from experiments.run.options import free


@dataclasses.dataclass(frozen=True)
class Check:
  """Checking only."""

  check: bool = free(
    False,
    'Only check the inputs: list every problem at once, and what would run. The'
    ' exit code is 1 if there are problems.',
  )


@contextlib.contextmanager
def gathered(messages: list[str]) -> Iterator[None]:
  """Adds what the block warns of to a list, in place of printing it.

  An error that ends the block keeps the list as its attribute `warnings`.
  """
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      yield
    except Exception as e:
      e.warnings = messages
      raise
    finally:
      messages += dict.fromkeys(str(one.message) for one in caught)


@dataclasses.dataclass
class Findings:
  """What is wrong with the inputs of a script.

  Attributes:
    problems: with any of them nothing can run; each names what and where.
    warnings: what may be meant.
  """

  problems: list[str] = dataclasses.field(default_factory=list)
  warnings: list[str] = dataclasses.field(default_factory=list)

  def add_folder(self, folder: pathlib.Path) -> None:
    """Adds a problem if a folder of that name cannot be written there."""
    folder = folder.absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not there.is_dir():
      self.problems.append(faults.NO_FOLDER.format(there))
      return
    longest = os.pathconf(there, 'PC_NAME_MAX')
    if any(len(os.fsencode(name)) > longest for name in folder.parts):
      self.problems.append(
        f'{folder}: names of folders here have at most {longest} bytes.'
        ' Give a shorter one.'
      )

  def warn(self) -> None:
    """Prints the warnings."""
    for warning in self.warnings:
      print(f'warning: {warning}')

  def add_absent(self, given: Sequence[Any]) -> None:
    """Adds the paths to read that do not exist and that no problem names.

    Args:
      given: options of the script.
    """
    known = '\n'.join(self.problems)
    self.problems += [
      f'--{flag}={path}: no such file or folder.'
      for flag, path in options.absent(given).items()
      if not re.search(rf"""(?<![^\s'"=]){re.escape(str(path))}[:'"]""", known)
    ]

  def close(self) -> None:
    """Prints what was found and ends the script: with 1 if anything is wrong.

    Raises:
      SystemExit: always.
    """
    self.warn()
    for problem in self.problems:
      print(f'problem: {problem}')
    counts = (len(self.problems), 'problem'), (len(self.warnings), 'warning')
    text = ', '.join(f'{n} {name}{"s" * (n != 1)}' for n, name in counts)
    print(f'check: {text}; nothing else was done', flush=True)
    sys.exit(1 if self.problems else 0)
