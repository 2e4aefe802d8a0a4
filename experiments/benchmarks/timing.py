"""Clocks: turns taken by both sides, and an alarm at the end of the time."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import math
import signal
import time

# Threads of the side that ran last spin for a moment and would take a core.
_REST = 0.02


class OutOfTime(Exception):
  """The alarm rang."""

  def __str__(self):
    return 'out of time'


class Budget:
  """Seconds that the whole run may take.

  Args:
    seconds: of it; None for no end.
  """

  def __init__(self, seconds: float | None):
    self._end = math.inf if seconds is None else time.monotonic() + seconds

  def left(self) -> float:
    return self._end - time.monotonic()

  @contextlib.contextmanager
  def alarm(self, limit: float = math.inf) -> Iterator[None]:
    """Raises `OutOfTime` inside once the budget, or `limit` seconds, is spent.

    It rings between Python instructions: a device program that runs is waited
    for. For the main thread, and not to be nested.
    """
    seconds = min(limit, self.left())
    if seconds <= 0:
      raise OutOfTime
    if math.isinf(seconds):
      yield
      return

    def ring(*_):
      raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
      yield
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
      signal.signal(signal.SIGALRM, before)


def seconds_of(run: Callable[[], None]) -> float:
  """Returns how long `run`, which waits for its device, takes."""
  time.sleep(_REST)
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def interleave(
  sides: Mapping[str, Callable[[], None]], repeats: int, budget: Budget
) -> dict[str, list[float]]:
  """Times all sides by turns, in an order that turns round every time.

  Args:
    sides: what to time; already warm.
    repeats: how often.
    budget: of the run; what it cuts short is dropped for every side.

  Returns:
    Seconds by side, one of every repeat that was completed.
  """
  seconds = {name: [] for name in sides}
  for repeat in range(repeats):
    taken = {}
    try:
      with budget.alarm():
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
          taken[name] = seconds_of(sides[name])
    except OutOfTime:
      break
    for name, value in taken.items():
      seconds[name].append(value)
  return seconds
