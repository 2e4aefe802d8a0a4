"""How long a loop will take: a bar on a terminal, lines in a log."""

from collections.abc import Iterable
import sys
from typing import Any

import tqdm

_SECONDS = 30.0  # Between the lines of a log.
_LINE = (
  '{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'
)


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm.tqdm:
  """Returns what shows the progress of a loop on standard error.

  On a terminal, a bar. In a file or a pipe, a plain line at the start, at the
  end and every half minute between: no carriage returns.

  Args:
    iterable: to go over, if any.
    **options: of tqdm.
  """
  if sys.stderr.isatty():
    return tqdm.tqdm(iterable, **options)
  return tqdm.tqdm(
    iterable,
    **options
    | {
      'file': _Log(),
      'bar_format': _LINE,
      'mininterval': _SECONDS,
      'maxinterval': 2 * _SECONDS,
      'position': 0,
    },
  )


class _Log:
  """Standard error, to which each write is a whole line or nothing."""

  def write(self, text: str) -> None:
    if line := text.strip():
      sys.stderr.write(line + '\n')

  def flush(self) -> None:
    sys.stderr.flush()
