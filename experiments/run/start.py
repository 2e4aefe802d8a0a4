"""What every script does: read its options, join a pod, tell faults plainly.

With --check, problems and warnings are gathered instead of raised one by one.
What a machine does to a command (Ctrl-C, full disks, lost processes) ends it
with a line or two; what it has saved so far stays, and the same command goes on
from there.

A script is a function, whose parameters are its options:

  def run(folds: Folds, output: Output, machine: Machine) -> start.Next:
    ...
    return 'view', {'run': path}

  main = start.script(run)

  if __name__ == '__main__':
    main()
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import ctypes
import dataclasses
import errno
import importlib
import os
import pathlib
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
import types
from types import FrameType
import typing
from typing import Any, TextIO
import warnings

from absl import logging
import jax

from data.files import counted
from experiments.run import options, results
from experiments.run.options import OptionError, field, free
from kmil_jax import parallel

# The script that may come next, None for the same one again, and values of its
# flags, None for none. Options that both declare alike are handed on. And an
# exit code, where a part has failed.
Next = tuple[str | None, Mapping[str, Any], *tuple[int, ...]]
PRECISIONS = ('float32', 'tf32', 'bfloat16')
_PACKAGES = ('data', 'experiments', 'kmil_jax')
_INTERRUPTED = 130  # The exit code, as that of a shell.
_NO_FOLDER = (
  '{}: there is a file, or a link to nothing, where a folder is needed. Give'
  ' another folder.'
)
_NO_FILE = '{}: there is a folder, where a file is needed. Give another path.'
_NO_ACCESS = '{}: you may not read or write there. Give another path.'
_PATIENCE = 5  # Seconds in which a command says why it ends.
_FULL = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
_PATH = re.compile(r"""["'](/[^"']+)["']""")
# Of what tells one process that another one is not there.
_POD = re.compile('gloo|nccl|coordination|barrier', re.IGNORECASE)
_LOST = (
  'error: another process of this pod has ended. Give the same command to all'
  ' of them again: it goes on from what was saved.'
)
_ALONE = (
  'error: the processes of this pod did not find each other. Start all of them,'
  ' with one --coordinator and --num_processes and each with its --process_id.'
)


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
    2023,
    'Seed of splits, of the order of training and of weights.',
    least=0,
    most=2**32 - 1,  # Keys have 32 bits.
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

  def next(self) -> Next:
    """Returns what may follow a training."""
    values = self.folder().config().values
    if 'model' not in values:
      script = importlib.import_module('experiments.mean_pooling').main
      given = self.folder().config().options(*script.options)
      kmil = importlib.import_module('experiments.kmil').main
      return 'kmil', options.shared(given, kmil.options)
    # Of the mean of several seeds there are no models.
    run = min(self.run.glob('seed_*'), default=self.run)
    has_slides = values.get('slides_dir') or not values.get('csv_path')
    if has_slides and any(run.glob('fold_*/attention/*.h5')):
      return 'view', {'run': run}
    of = {'features_dir': 'new_features', 'fold': values.get('fold')}
    return 'predict', {'run': run, **of}


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
    None,
    'With --coordinator=host:port: number of processes.',
    only={'coordinator': True},
  )
  process_id: int | None = free(
    None,
    'With --coordinator=host:port: number of this process, from 0.',
    only={'coordinator': True},
  )


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
    """Adds a problem if a folder of that name cannot be written there.

    And a warning if it holds results.
    """
    folder = folder.absolute()
    if (folder / results.CONFIG).exists():
      self.warnings.append(
        f'{folder} holds results. The same options and data go on with them,'
        ' others are refused: choose another --exp_code for those.'
      )
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not there.is_dir():
      self.problems.append(_NO_FOLDER.format(there))
      return
    if not os.access(there, os.W_OK):
      self.problems.append(_NO_ACCESS.format(there))

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
    text = ', '.join(counted(n, name) for n, name in counts)
    print(f'check: {text}; nothing else was done', flush=True)
    sys.exit(1 if self.problems else 0)


def script(run: Callable[..., Next | None]) -> Callable[..., None]:
  """Returns a main function that reads the options of `run` and calls it.

  Every script has --plugin. The processes of a pod are joined if it takes a
  `Machine`. Faults of the user's input, see `is_explained`, end the process
  with exit code 1 and a message without a traceback; with --check, among all
  problems.

  Args:
    run: the script. The annotations of its parameters are classes of options;
      the docstring of its module begins `--help`. The command that it returns
      is printed; after --check, the same one without.

  Returns:
    A function of the command line, `sys.argv` by default. Its attribute
    `options` holds the classes.
  """
  hints = typing.get_type_hints(run)
  hints.pop('return', None)
  classes = (*hints.values(), options.Plugin)

  def main(argv: Sequence[str] | None = None) -> None:
    module = sys.modules[run.__module__]
    # Of code that nobody asked about, a user needs no line.
    warnings.formatwarning = lambda message, *_: f'warning: {message}\n'
    if argv is None:
      prepare()
    argv, cache, given = sys.argv if argv is None else argv, Cache(), []
    try:
      options.load_given_plugin(argv)
      given = options.parse(argv, classes, module.__doc__)
      parallel.use_one_graph()
      for name in parallel.use_own_numerics():
        print(f'note: {name} is ignored: models compute in float32')
      for cache in (one for one in given if isinstance(one, Cache)):
        _begin(cache)
      if following := run(*given[:-1]):
        script, changes, *code = following
        _show_next(module, script, changes, given)
        if any(code):
          sys.exit(*code)
    except SystemExit as e:
      if given and not e.code:  # Of --check, and not of --help.
        _show_next(module, None, {'check': None}, given)
      raise
    except (Exception, KeyboardInterrupt) as e:
      if explained := fault_of_machine(e, cache.cache_dir):
        code, message = explained
        _leave_pod(code, message)
        print(message, file=sys.stderr, flush=True)
        sys.exit(code)
      if is_explained(e):
        _leave_pod(1, f'error: {e}')
        findings = Findings([str(e)], getattr(e, 'warnings', []))
        if any(isinstance(one, Check) and one.check for one in given):
          findings.add_absent(given)
          findings.close()
        findings.warn()
        sys.exit(f'error: {e}')
      raise

  main.options = classes
  return main


def is_explained(error: BaseException) -> bool:
  """Whether an error says what is wrong and what to do.

  Those of the project's own classes do, and of classes derived from them; and
  those of files, folders and losses that are not finite.
  """
  packages = [c.__module__.split('.')[0] for c in type(error).__mro__]
  named = isinstance(error, FloatingPointError | OSError)
  return named or not set(_PACKAGES).isdisjoint(packages)


def show(text: str, file: TextIO | None = None) -> None:
  """Prints in process 0 alone; starts no device to know which it is."""
  if not jax.distributed.is_initialized() or parallel.is_first():
    print(text, file=file, flush=True)


def _begin(machine: Cache) -> None:
  # Orbax reports every save, and logs what it also raises.
  logging.set_verbosity(logging.FATAL)
  programs = machine.cache_dir / 'programs'
  with contextlib.suppress(OSError):
    programs.mkdir(parents=True, exist_ok=True)
  if programs.is_dir() and os.access(programs, os.W_OK):
    parallel.cache_programs(programs)
  if not isinstance(machine, Machine) or not machine.coordinator:
    return
  _watch_pod()
  try:
    parallel.initialize(
      machine.coordinator, machine.num_processes, machine.process_id
    )
  except (ValueError, IndexError, RuntimeError) as e:
    raise OptionError(
      f'--coordinator={machine.coordinator} cannot be used ({e}). Give the host'
      ' of process 0 and a free port of it, as host0:1234.'
    ) from e


def _show_next(
  same: types.ModuleType,
  script: str | None,
  changes: Mapping[str, Any],
  given: Sequence[Any],
) -> None:
  """Prints what may come next, on standard error: results may be JSON."""
  spec, values = same.__spec__, options.changed(given)
  if script:
    module = importlib.import_module(f'experiments.{script}')
    spec, values = module.__spec__, options.shared(given, module.main.options)
  name = ['-m', spec.name] if spec else [same.__file__]
  command = shlex.join(['python', *name, *_flags(values | changes)])
  sys.stdout.flush()
  # Paths that are given as text are but examples, if nothing is there.
  paths = [changes[k] for k in changes if k.endswith(('_dir', '_csv', '_path'))]
  yours = [p for p in paths if isinstance(p, str) and not os.path.exists(p)]
  note = f', with {" and ".join(yours)} of your own' if yours else ''
  show(f'next{note}: {command}', sys.stderr)


def show_options(given: Sequence[Any]) -> None:
  """Prints the options that are not as by default."""
  shown = shlex.join(flags(given))
  show(' '.join(['options:', shown, '(all others as by default)']))


def flags(given: Sequence[Any]) -> list[str]:
  """Returns, as flags, the options that are not as by default."""
  return _flags(dict(sorted(options.changed(given).items())))


def _flags(values: Mapping[str, Any]) -> list[str]:
  text = lambda v: ','.join(map(str, v)) if isinstance(v, list) else v
  return [
    f'--{name}={text(value)}'
    for name, value in values.items()
    if value is not None
  ]


def prepare() -> None:
  """Readies the process of a command; it may begin anew, in UTF-8.

  Names of files are read in the locale's encoding: where that has few letters,
  those of others would not be found. Threads that fail as the command does are
  not shown beside it.
  """
  if sys.getfilesystemencoding() != 'utf-8' and not sys.flags.utf8_mode:
    os.environ['PYTHONUTF8'] = '1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  os.environ['MPLBACKEND'] = 'agg'  # Others may be absent, or need a screen.
  for name in 'stdout', 'stderr':
    stream = getattr(sys, name) or open(os.devnull, 'w')  # Closed by `>&-`.
    stream.reconfigure(errors='backslashreplace')
    setattr(sys, name, stream)
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _interrupt)
  for module, name in (threading, 'excepthook'), (sys, 'unraisablehook'):
    setattr(module, name, _without_echoes(getattr(module, name)))


def _watch_pod() -> None:
  """Ends this process with a line when JAX misses another one of its pod.

  JAX aborts it, from any thread, after a log of native code. What such code
  writes to standard error is only shown if something else aborts the process.
  """
  shown = os.fdopen(os.dup(2), 'w', buffering=1, errors='backslashreplace')
  with tempfile.TemporaryFile() as hidden:
    os.dup2(hidden.fileno(), 2)
  sys.stderr = shown
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
  """Takes the place of an abort; when it returns, the process is aborted."""
  written = os.pread(2, 2**20, 0).decode(errors='replace')
  if not _POD.search(written):
    print(written, file=sys.stderr, flush=True)
    return
  time.sleep(_PATIENCE)  # The command may be about to say why it ends.
  message = _ALONE if 'RegisterTask' in written else _LOST
  print(message, file=sys.stderr, flush=True)
  os._exit(1)


def _leave_pod(code: int, message: str) -> None:
  """Ends a process of a pod, which does not wait for those that wait for it."""
  if jax.distributed.is_initialized():
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def fault_of_machine(
  error: BaseException, cache_dir: pathlib.Path
) -> tuple[int, str] | None:
  """Returns exit code and message; None for what is no fault of a machine.

  Args:
    error: what ends the command.
    cache_dir: if it cannot be used, the message says how to choose another.
  """
  if any(
    isinstance(e, KeyboardInterrupt) or 'KeyboardInterrupt' in str(e)
    for e in _chain(error)
  ):
    return _INTERRUPTED, (
      'stopped. Nothing that was saved is lost: the same command goes on from'
      ' there.'
    )
  if full := _full(error):
    return 1, (
      f'error: {full}. Free some space, or give another folder. What was saved'
      ' before is intact: the same command goes on from there.'
    )
  if isinstance(error, MemoryError):
    too_little = 'error: this machine has too little memory for it.'
    return 1, f'{too_little} {error}'.rstrip()
  if any('RESOURCE_EXHAUSTED' in str(e) for e in _chain(error)):
    return 1, (
      'error: the memory of a device is full. Use --precision=bfloat16, a'
      ' smaller batch or, if there is such an option, --store=streamed.'
    )
  if isinstance(error, OSError) and str(cache_dir) in str(error):
    return 1, f'error: {error}. Give a folder that can be used: --cache_dir.'
  for e in _chain(error):
    if isinstance(e, FileExistsError | NotADirectoryError) and e.filename:
      return 1, 'error: ' + _NO_FOLDER.format(e.filename)
  if isinstance(error, OSError) and error.filename:
    if isinstance(error, IsADirectoryError):
      return 1, 'error: ' + _NO_FILE.format(error.filename)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
      return 1, 'error: ' + _NO_ACCESS.format(error.filename)
  lost = any(_POD.search(str(e)) for e in _chain(error))
  if lost and jax.distributed.is_initialized():
    return 1, _LOST
  if isinstance(error, RuntimeError | AssertionError) and (
    fault := parallel.device_fault()
  ):
    return 1, f'error: {fault}'
  return None


def _interrupt(number: int, frame: FrameType | None) -> None:
  """Stops the command in order; at a second Ctrl-C, at once."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  raise KeyboardInterrupt


def _without_echoes(show: Callable[[Any], None]) -> Callable[[Any], None]:
  """Passes over faults of threads with which the command itself ends, too."""

  def hook(args):
    error = args.exc_value
    if not _full(error) and 'Event loop is closed' not in str(error):
      show(args)

  return hook


def _full(error: BaseException | None) -> str | None:
  """Returns the file, if known, that found no space, and what was said."""
  for e in _chain(error):
    for text in _FULL:
      if text in str(e):
        match = _PATH.search(str(e))
        return f'{match[1]}: {text}' if match else text
  return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error:
    yield error
    error = error.__cause__ or error.__context__
