"""How a script starts: the flags of every one of them, and plain errors."""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import sys

from absl import app, flags, logging

from experiments import provenance
from kmil_jax import parallel

_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache'))

SEED = flags.DEFINE_integer(
  'seed', 2023, 'Seed of splits, order and parameters.', lower_bound=0
)
RESULTS_DIR = flags.DEFINE_string('results_dir', 'results', 'Where to write.')
EXP_CODE = flags.DEFINE_string(
  'exp_code', None, 'Name of the experiment; by default model and task.'
)
CACHE_DIR = flags.DEFINE_string(
  'cache_dir',
  str(_CACHE.expanduser() / 'kmil_jax'),
  'Where the phantom cohort is made, once.',
)
COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  "Multi-host runs: 'auto' on Cloud TPU, Slurm and Kubernetes, else the"
  ' host:port of process 0.',
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'With --coordinator=host:port: processes in all.'
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'With --coordinator=host:port: this one, from 0.'
)

# Flags that say where a result is computed or shown, not what it is.
NOT_RESULT = frozenset({
  'cache_dir',
  'coordinator',
  'num_processes',
  'process_id',
  'results_dir',
  'tensorboard',  # Of recipe_flags.
})  # fmt: skip

_ERRORS = (
  provenance.ResultsError,
  FloatingPointError,
  OSError,
  app.UsageError,
)


def resolved(script: str) -> dict[str, object]:
  """Values of a script's flags, by name.

  Args:
    script: its `__name__`; it must have adopted the flags of this module.
  """
  held = flags.FLAGS.get_key_flags_for_module(script)
  return {flag.name: flag.value for flag in sorted(held, key=lambda f: f.name)}


def script(
  run: Callable[[], None], errors: tuple[type[Exception], ...] = ()
) -> Callable[[list[str]], None]:
  """Returns `run` as a main function for `app.run`.

  Stray arguments are refused, the processes of a pod joined, and faults of the
  user's input end the script with one message.

  Args:
    run: the script.
    errors: what it raises for such faults, besides those of files, folders,
      flags and losses that are not finite.
  """

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'unexpected argument {argv[1]!r}')
    with _plain(_ERRORS + errors):
      _start()
      run()

  return main


def folder(default_code: str) -> pathlib.Path:
  """Returns the results folder."""
  code = EXP_CODE.value or default_code
  return pathlib.Path(RESULTS_DIR.value) / f'{code}_s{SEED.value}'


@contextlib.contextmanager
def _plain(errors: tuple[type[Exception], ...]) -> Iterator[None]:
  """Ends the script with one message where the user's input is at fault."""
  try:
    yield
  except errors as e:
    sys.exit(f'error: {e}')


def _start() -> None:
  """Joins the other processes of a pod."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every save.
  parallel.cache_programs(pathlib.Path(CACHE_DIR.value) / 'programs')
  try:
    parallel.initialize(
      COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    )
  except ValueError as e:
    raise app.UsageError(f'--coordinator={COORDINATOR.value}: {e}') from e
