"""One entry of the benchmark: the best form of torch against kmil_jax."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import statistics

from experiments.benchmarks import timing

_PILOTS = 2
COMPILED = ', compiled'  # In the names of forms that torch.compile makes.
Side = Callable[[], None]


class NoForm(Exception):
  """No form of torch works."""


@dataclasses.dataclass(frozen=True)
class Result:
  """Seconds of a call, median over repeats, and how they came about.

  Attributes:
    torch_best_s: the fastest repeat; far below the median on a busy machine.
    torch_forms: by form, the fastest pilot's seconds, or why there is none.
  """

  torch_s: float
  jax_s: float
  torch_best_s: float
  jax_best_s: float
  torch_form: str
  torch_compile_s: float
  jax_compile_s: float
  repeats: int
  torch_forms: dict[str, float | str]


def hold(
  ours: Callable[[], Side],
  theirs: Mapping[str, Callable[[], Side]],
  *,
  repeats: int,
  budget: timing.Budget,
  limit: float,
) -> Result:
  """Warms both sides, lets pilots choose torch's form, and times by turns.

  Args:
    ours: makes kmil_jax's side.
    theirs: by form, makes torch's; what fails, or takes too long to compile,
      drops out.
    repeats: of the timing.
    budget: of the run.
    limit: seconds that a compiled form may take until it is warm.

  Raises:
    timing.OutOfTime: if the budget ends before one repeat of both sides.
    NoForm: if no form of torch works, with what came of each.
  """
  with budget.alarm():
    side = ours()
    jax_compile = _warm(side)
  pilots, best = {}, None
  for form, make in theirs.items():
    try:
      with budget.alarm(limit if COMPILED in form else math.inf):
        other = make()
        compiling = _warm(other)
        pilots[form] = min(timing.seconds_of(other) for _ in range(_PILOTS))
    # Whatever a compiler raises, the other forms are still there.
    except Exception as error:
      pilots[form] = _reason(error)
      continue
    if best is None or pilots[form] < pilots[best[0]]:
      best = form, other, compiling
  if best is None:
    if budget.left() <= 0:
      raise timing.OutOfTime
    raise NoForm(f'no form of torch works: {pilots}')
  form, other, torch_compile = best
  seconds = timing.interleave({'torch': other, 'jax': side}, repeats, budget)
  if not seconds['jax']:
    raise timing.OutOfTime
  return Result(
    torch_s=statistics.median(seconds['torch']),
    jax_s=statistics.median(seconds['jax']),
    torch_best_s=min(seconds['torch']),
    jax_best_s=min(seconds['jax']),
    torch_form=form,
    torch_compile_s=torch_compile,
    jax_compile_s=jax_compile,
    repeats=len(seconds['jax']),
    torch_forms=pilots,
  )


def _warm(side: Side) -> float:
  """Returns by how much the first call is longer than the second."""
  return max(timing.seconds_of(side) - timing.seconds_of(side), 0.0)


def _reason(error: Exception) -> str:
  if isinstance(error, timing.OutOfTime):
    return str(error)
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:120]}'
