"""What every script does: read its options, join a pod, tell faults plainly.

A script is a function, whose parameters are its options:

  def run(folds: Folds, output: Output, machine: Machine) -> None:
    ...

  main = start.script(run, errors=(CohortError,))

  if __name__ == '__main__':
    main()
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
import typing
from typing import Any
import warnings

from absl import logging

from experiments.run import faults, options, plugins, results
from experiments.run.check import Check, Findings
from experiments.run.options import OptionError, field, free
from kmil_jax import parallel

PRECISIONS = ('float32', 'tf32', 'bfloat16')
_ERRORS = (FloatingPointError, OSError, OptionError, results.ResultsError)


def _cache() -> pathlib.Path:
  """Returns where caches are; a user without a home cannot have one there."""
  try:
    folder = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
    return folder.expanduser() / 'kmil_jax'
  except RuntimeError:
    return pathlib.Path('/dev/null/no home folder')


@dataclasses.dataclass(frozen=True)
class Output:
  """Where results go."""

  seed: int = field(
    2023, 'Seed of splits, of the order of training and of weights.', least=0
  )
  results_dir: pathlib.Path = free(
    pathlib.Path('results'), 'Folder of all results.', made=True
  )
  exp_code: str | None = free(
    None,
    'Name of the results folder, before its seed. By default that of the study,'
    ' or of the model and the task.',
  )

  def folder(self, default_code: str) -> pathlib.Path:
    """Returns the results folder."""
    code = self.exp_code or default_code
    return self.results_dir / f'{code}_s{self.seed}'


@dataclasses.dataclass(frozen=True)
class Precision:
  """Number format."""

  precision: str = field(
    'float32',
    'Number format in which networks compute. tf32 is float32 whose products'
    ' GPUs round to TF32 and TPUs to bfloat16; in bfloat16, slides also take'
    ' half the memory. Both are faster there, see docs/accelerators.md, and not'
    ' on CPUs.',
    choices=PRECISIONS,
  )


@dataclasses.dataclass(frozen=True)
class Training(Precision):
  """How networks are trained; by default as in the paper."""

  epochs: int | None = field(None, 'Number of training epochs.', least=1)
  learning_rate: float | None = field(
    None, 'Initial learning rate.', flag='lr', least=0
  )
  tensorboard: bool = free(
    False, 'Also write the numbers of metrics.jsonl as TensorBoard event files.'
  )


@dataclasses.dataclass(frozen=True)
class Source:
  """The run."""

  run: pathlib.Path | None = field(
    None, 'Results folder of a run, like results/kmil_origin_s2023.'
  )

  def folder(self) -> results.Folder:
    """Returns the results folder.

    Raises:
      OptionError: if it is not given or does not exist.
    """
    if not self.run:
      raise OptionError('--run=<results folder> is required.')
    if not self.run.is_dir():
      raise OptionError(f'--run={self.run}: no such folder.')
    return results.Folder(self.run)


@dataclasses.dataclass(frozen=True)
class Cache:
  """The cache."""

  cache_dir: pathlib.Path = free(
    _cache(),
    'Folder in which phantoms and compiled programs are kept.',
    made=True,
  )


@dataclasses.dataclass(frozen=True)
class Machine(Cache):
  """Where it runs."""

  coordinator: str | None = free(
    None,
    "For several hosts: 'auto' on Cloud TPU, Slurm and Kubernetes, else"
    ' host:port of process 0.',
  )
  num_processes: int | None = free(
    None, 'With --coordinator=host:port: number of processes.'
  )
  process_id: int | None = free(
    None, 'With --coordinator=host:port: number of this process, from 0.'
  )


def script(
  run: Callable[..., None], errors: Sequence[type[Exception]] = ()
) -> Callable[..., None]:
  """Returns a main function that reads the options of `run` and calls it.

  Every script has --plugin. The processes of a pod are joined if it takes a
  `Machine`. Faults of the user's input end the process with exit code 1 and a
  message without a traceback; with --check, among all problems.

  Args:
    run: the script. The annotations of its parameters are classes of options;
      the docstring of its module begins `--help`.
    errors: what it raises for faults of the user's input, besides those of
      files, folders, options and losses that are not finite.

  Returns:
    A function of the command line, `sys.argv` by default. Its attribute
    `options` holds the classes.
  """
  hints = typing.get_type_hints(run)
  hints.pop('return', None)
  classes = (*hints.values(), plugins.Plugin)

  def main(argv: Sequence[str] | None = None) -> None:
    usage = sys.modules[run.__module__].__doc__
    # Of code that nobody asked about, a user needs no line.
    warnings.formatwarning = lambda message, *_: f'warning: {message}\n'
    if argv is None:
      faults.prepare()
    argv, cache = sys.argv if argv is None else argv, Cache()
    given = []
    try:
      plugins.begin(argv)
      *given, _ = options.parse(argv, classes, usage)
      parallel.use_one_graph()
      for name in parallel.use_own_numerics():
        print(f'note: {name} is ignored: models compute in float32')
      for cache in (one for one in given if isinstance(one, Cache)):
        _begin(cache)
      run(*given)
    except (Exception, KeyboardInterrupt) as e:
      if explained := faults.explained(e, cache.cache_dir):
        code, message = explained
        faults.leave_pod(code, message)
        print(message, file=sys.stderr, flush=True)
        sys.exit(code)
      if isinstance(e, (*_ERRORS, *errors)):
        faults.leave_pod(1, f'error: {e}')
        findings = Findings([str(e)], getattr(e, 'warnings', []))
        if any(isinstance(one, Check) and one.check for one in given):
          findings.add_absent(given)
          findings.close()
        findings.warn()
        sys.exit(f'error: {e}')
      raise

  main.options = classes
  return main


def show(text: str) -> None:
  """Prints in process 0 alone."""
  if parallel.is_first():
    print(text, flush=True)


def _begin(machine: Cache) -> None:
  # Orbax reports every save, and logs what it also raises.
  logging.set_verbosity(logging.FATAL)
  chosen = os.environ.get('JAX_COMPILATION_CACHE_DIR', '')
  programs = pathlib.Path(chosen or machine.cache_dir / 'programs')
  if '://' not in chosen:
    with contextlib.suppress(OSError):
      programs.mkdir(parents=True, exist_ok=True)
    if programs.is_dir() and os.access(programs, os.W_OK):
      parallel.cache_programs(programs)
    elif chosen:
      raise OptionError(
        f'JAX_COMPILATION_CACHE_DIR={chosen} is no folder that can be written.'
        ' Give another one, or unset that environment variable.'
      )
  if not isinstance(machine, Machine) or not machine.coordinator:
    return
  faults.watch_pod()
  try:
    parallel.initialize(
      machine.coordinator, machine.num_processes, machine.process_id
    )
  except (ValueError, IndexError, RuntimeError) as e:
    raise OptionError(
      f'--coordinator={machine.coordinator} cannot be used ({e}). Give the host'
      ' of process 0 and a free port of it, as host0:1234.'
    ) from e


def show_next(script: str, **flags: Any) -> None:
  """Prints the command that may come next; flags that are None are left out."""
  given = [(name, value) for name, value in flags.items() if value is not None]
  shown = [shlex.quote(f'--{name}={value}') for name, value in given]
  show(' '.join([f'next: python -m experiments.{script}', *shown]))


def show_options(given: Sequence[Any]) -> None:
  """Prints the options that are not as by default."""
  shown = shlex.join(flags(given))
  show(' '.join(['options:', shown, '(all others as by default)']))


def flags(given: Sequence[Any]) -> list[str]:
  """Returns, as flags, the options that are not as by default."""
  text = lambda v: ','.join(map(str, v)) if isinstance(v, list) else v
  return [
    f'--{name}={"" if value is None else text(value)}'
    for name, value in sorted(options.changed(given).items())
  ]
