"""A results folder: one writer at a time, every file whole or absent.

A run goes on only with the options and inputs it began with, see `differences`:
every option on which results depend (`result=` of `options.field`), and the
hashes of labels, features and splits.

with results.opened(path, [training, output], inputs) as folder:
  folder.write('summary.json', summary)
folder = results.Folder('results/kmil_origin_s2023')
folder.config().options(Training, Output)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
import dataclasses
import fcntl
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import time
from typing import Any

import numpy as np

from data import weights
from data.files import free_space, replacing
from data.weights import WeightsError
from experiments.run import options
from kmil_jax import checksums, parallel

CONFIG, REPORT = 'config.json', 'report.html'
_LOCK = '.lock'
_VERSION = 2
_LITTLE = 2**28  # Bytes: states of a training may need that much.
_AGAIN = (
  'Run the command of the training again: it repeats nothing that is done'
)
# Of JSON, whose files are small here.
_LARGEST, _DEEPEST = 2**28, 50
NUMBER = (int, float, type(None))
# What config.json holds, see `fits`.
_KIND = {
  'version?': int,
  'options?': dict,
  'flags?': dict,  # Version 1 has them instead of options.
  'decides?': [str],
  'inputs': dict,
  'plugin?': str,
  'made_by': [
    {'versions?': {'*': str}, 'commit?': (str, type(None)), 'command?': str}
  ],
  'cohort?': {
    'classes?': [str],
    'width?': range(1, 2**20),
    'features?': {'*': str},
    'features_dir?': str,
    'left_out?': [str],
    'warnings?': [str],
    '*': object,
  },
}
# Of a script: by its module, or by the list of scripts. A file of that name may
# be the user's own, which calls several.
_COMMAND = re.compile(r'python (?:-m experiments[. ]|(?:\S*/)?kmil_jax )(\w+)')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


class ResultsError(ValueError):
  """A results folder that cannot be used; says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What results were made with, of either version of config.json."""

  path: pathlib.Path
  values: Mapping[str, Any]  # options by flag, as they were resolved
  inputs: Mapping[str, Any]  # hashes of labels, features and splits
  made_by: Sequence[Mapping[str, Any]]  # versions, commit, command
  cohort: Mapping[str, Any]  # what users of the models need to know of it
  plugin: str | None = None  # that registered the model, see `options.Plugin`

  def options(self, *classes: type) -> list[Any]:
    """Returns the options, an instance of each class of the script.

    Raises:
      OptionError: if one is unknown, or its value is not one that it takes; or
        if the run had a plugin, and this command was given none: a file that
        is read runs no code by itself.
    """
    if self.plugin and not options.plugin_given:
      raise options.OptionError(
        f'{self.path}: the run was made with code of its own, which runs as'
        f' you. If you trust it, give --plugin={self.plugin}'
      )
    return options.from_json(self.values, classes, str(self.path))


class Folder:
  """Reads and writes the files of a folder, by names relative to it.

  The end of a name says what its file holds: .json any value, .jsonl a list of
  them, .csv rows, .npy an array, .npz arrays by name; all else is text. Only
  process 0 writes. Names may hold any character that the file system takes:
  none is a pattern.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path).expanduser()

  def at(self, name: str) -> pathlib.Path:
    """Returns the path of a file.

    Raises:
      ResultsError: if it would be outside of the folder.
    """
    if pathlib.PurePath(name).is_absolute() or '..' in pathlib.Path(name).parts:
      raise ResultsError(f'{name!r} is no name of a file in {self.path}.')
    return self.path / name

  def has(self, *names: str) -> bool:
    """Whether process 0 finds all of these; the same in every process."""
    return bool(parallel.agree(all(self.at(name).exists() for name in names)))

  def read(self, name: str, kind: Any = object) -> Any:
    """Returns what a file holds; of a .csv a dict per row.

    Args:
      name: of the file.
      kind: what a .json must hold, or each line of a .jsonl, see `fits`.

    Raises:
      ResultsError: if it is missing or damaged.
    """
    path = self.at(name)
    try:
      if path.stat().st_size > _LARGEST:
        raise ValueError(f'more than {_LARGEST} bytes')
      text = path.read_text(encoding='utf-8')
      match path.suffix:
        case '.json':
          return _loads(text, kind)
        case '.jsonl':
          return [_loads(line, kind) for line in text.splitlines()]
        case '.csv':
          return list(csv.DictReader(io.StringIO(text, newline='')))
      return text
    except FileNotFoundError:
      raise ResultsError(
        f'{path}: no such file. Give the folder of a training. If this is one:'
        f' {_AGAIN[0].lower()}{_AGAIN[1:]}.'
      ) from None
    except OSError as e:
      raise ResultsError(
        f'{path} cannot be read ({e.strerror}). It must be a file that you may'
        ' read: move what is there away, or change its permissions.'
      ) from e
    except (ValueError, csv.Error, RecursionError) as e:
      again = f'Remove it. {_AGAIN}'
      raise ResultsError(f'{path} is damaged ({e}). {again}.') from e

  def write(self, name: str, content: Any) -> None:
    """Writes a file.

    Args:
      name: of the file.
      content: of a .csv rows of cells, of a .png a figure of matplotlib, of a
        .npz a dict of arrays. A text is written as it is.

    Raises:
      ValueError: if a number for JSON is not finite.
    """
    match pathlib.PurePath(name).suffix:
      case '.png':
        self.save(
          name, lambda path: content.savefig(path, dpi=130, format='png')
        )
        return
      case '.npy' | '.npz':
        self.save(name, lambda path: _save_arrays(path, content))
        return
      case _ if isinstance(content, str):
        pass
      case '.json':
        content = json.dumps(content, indent=2, allow_nan=False) + '\n'
      case '.jsonl':
        lines = [json.dumps(row, allow_nan=False) + '\n' for row in content]
        content = ''.join(lines)
      case '.csv':
        text = io.StringIO(newline='')
        csv.writer(text, lineterminator='\n').writerows(content)
        content = text.getvalue()
    # Names of files need not be text.
    content = content.encode(errors='backslashreplace')
    self.save(name, lambda path: path.write_bytes(content))

  def is_newest(self, name: str) -> bool:
    """Whether this process finds a file, and nothing in the folder newer."""
    paths = [p for p in self.path.rglob('[!.]*') if p.is_file()]
    times = {path: path.stat().st_mtime_ns for path in paths}
    return times.get(self.at(name), -1) == max(times.values(), default=0)

  def save(self, name: str, write: Callable[[pathlib.Path], Any]) -> None:
    """Calls `write` with a path, whose file then takes the place of `name`."""
    if parallel.is_first():
      with replacing(self.at(name)) as part:
        write(part)

  def save_model(self, name: str, content: bytes) -> None:
    """Writes a file, and before it its hash into `sha256.json` beside it."""
    path = pathlib.PurePath(name)
    sums = checksums.to_json({path.name: content})
    self.write(str(path.parent / checksums.SUMS), sums)
    self.save(name, lambda path: path.write_bytes(content))

  def has_model(self, name: str) -> bool:
    """Whether a file is there as `save_model` wrote it; warns if it is not."""
    path, damaged = self.at(name), None
    if parallel.is_first() and path.exists():
      damaged = checksums.damage(path.parent, path.name)
    if damaged:
      print(f'warning: {damaged} is damaged. {name} is made again.', flush=True)
    return self.has(name) and not parallel.agree(bool(damaged))

  def config(self) -> Config:
    """Returns what the results were made with.

    Raises:
      ResultsError: if config.json is missing, damaged or of a newer version.
    """
    path, held = self.at(CONFIG), self.read(CONFIG)
    known = {name.removesuffix('?') for name in _KIND}
    if isinstance(held, dict) and (unknown := sorted(held.keys() - known)):
      raise ResultsError(
        f'{path}: unknown entries {", ".join(unknown)}. They may be of a newer'
        ' version of this software.'
      )
    if not fits(_KIND, held):
      raise ResultsError(f'{path} is no record of a run. Give another folder.')
    values = held.get('options' if 'version' in held else 'flags', {})
    rest = held['inputs'], held['made_by'], held.get('cohort', {})
    return Config(path, values, *rest, held.get('plugin'))


def _save_arrays(path: pathlib.Path, content: Any) -> None:
  with path.open('wb') as file:  # Of a path, NumPy would change the name.
    if isinstance(content, np.ndarray):
      np.save(file, content)
    else:
      np.savez_compressed(file, **content)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz that a command keeps for the next.

  Raises:
    ResultsError: if it is damaged.
  """
  try:
    with np.load(path) as arrays:
      return dict(arrays)
  except Exception as e:  # NumPy, zip and zlib raise errors of many kinds.
    raise ResultsError(
      f'{path} is damaged ({e}). Remove it: the same command makes it anew.'
    ) from e


def read_weights(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of named weights; see `data.weights.read`.

  Raises:
    WeightsError: as that, or if the file is not the one that was written.
  """
  file = weights.file_of(path)
  if damaged := checksums.damage(file.parent, file.name):
    raise WeightsError(
      f'{damaged} was changed since it was written. Run the command that'
      f' trained {file} again, which trains it anew.'
    )
  return weights.read(file)


@contextlib.contextmanager
def opened(
  path: pathlib.Path,
  resolved: Sequence[Any],
  inputs: Mapping[str, Any],
  cohort: Mapping[str, Any] | None = None,
) -> Iterator[Folder]:
  """Opens a folder for one process, or one pod, to write results into.

  Args:
    path: of the folder, which is made if absent.
    resolved: options, as the run takes them.
    inputs: hashes of labels, features and splits.
    cohort: what users of the models will need to know of it.

  Raises:
    ResultsError: in every process, if another one writes into the folder, or it
      was begun with other options or inputs.
  """
  folder = Folder(path)
  with contextlib.ExitStack() as held:
    _in_first(path, lambda: held.enter_context(_locked(folder)))
    record(folder, resolved, inputs, cohort)
    yield folder


def record(
  folder: Folder,
  resolved: Sequence[Any],
  inputs: Mapping[str, Any],
  cohort: Mapping[str, Any] | None = None,
) -> None:
  """Writes config.json, or compares with the one that is there.

  Args:
    folder: of the results, or of one part of them.
    resolved: see `opened`, as the other arguments.

  Raises:
    ResultsError: in every process, if there is one of other options or inputs.
  """
  inputs = {**inputs, **options.plugin_inputs()}
  content = {
    'version': _VERSION,
    'options': options.to_json(resolved),
    'decides': sorted(options.decisive([type(one) for one in resolved])),
    'inputs': inputs,
    'made_by': [],
  }
  if cohort is not None:
    content['cohort'] = dict(cohort)
  if options.plugin_given:
    content['plugin'] = options.plugin_given

  def write():
    content['made_by'] = [_made_by()]
    if folder.at(CONFIG).exists():
      old = folder.config()
      before, now = map(_script, (old.made_by, content['made_by']))
      if before and now and before != now:
        raise ResultsError(
          f'{folder.path} holds results of {before}. Choose another --exp_code,'
          ' or remove the folder.'
        )
      if differ := differences(old, resolved, inputs):
        raise ResultsError(
          f'{folder.path} holds results of other settings:\n'
          + '\n'.join(differ)
          + '\nChoose another --exp_code, or remove the folder.'
        )
      former = [one for one in old.made_by if one not in content['made_by']]
      content['made_by'] = former + content['made_by']
    folder.write(CONFIG, content)

  _in_first(folder.path, write)


def differences(
  old: Config, resolved: Sequence[Any], inputs: Mapping[str, Any]
) -> list[str]:
  """Returns lines on options and inputs that were others.

  Args:
    old: of the results.
    resolved: see `opened`, as `inputs`.
  """
  classes = [type(one) for one in resolved]
  before = options.to_json(old.options(*classes))
  now, names = options.to_json(resolved), sorted(options.decisive(classes))
  pairs = [(name, before[name], now[name]) for name in names]
  names = sorted(old.inputs.keys() | inputs)
  pairs += [(name, old.inputs.get(name), inputs.get(name)) for name in names]
  return [
    f'  {name}: {_shown(one)} before, {_shown(other)} now'
    for name, one, other in pairs
    if one != other
  ]


def fits(kind: Any, value: Any) -> bool:
  """Whether a value of JSON is of a kind.

  Args:
    kind: a type or several; a range of whole numbers; a list of one kind; or
      kinds by key, where a key with ? may be absent, and * stands for all keys
      that are not named.
    value: read from a file.
  """
  match kind:
    case dict():
      kinds = {name.removesuffix('?'): kind[name] for name in kind}
      needed = [name for name in kind if name[-1] not in '*?']
      return (
        isinstance(value, dict)
        and all(name in value for name in needed)
        and all(
          fits(kinds.get(name, kinds.get('*', ())), value[name])
          for name in value
        )
      )
    case [each]:
      return isinstance(value, list) and all(fits(each, one) for one in value)
    case range():
      return type(value) is int and value in kind
  if isinstance(value, bool):
    return kind in (bool, object)
  return isinstance(value, kind)


def _loads(text: str, kind: Any) -> Any:
  """Reads JSON of a kind, no deeper and with no larger numbers than ours."""
  value = json.loads(text)
  level = [value]
  for _ in range(_DEEPEST):
    if any(isinstance(x, int | float) and not abs(x) < 2**1000 for x in level):
      raise ValueError('a number that is not finite')
    level = [
      inner
      for x in level
      if isinstance(x, dict | list)
      for inner in (x.values() if isinstance(x, dict) else x)
    ]
  if level or not fits(kind, value):
    raise ValueError('its content is of another kind')
  return value


def _in_first(path: pathlib.Path, call: Callable[[], Any]) -> None:
  """Calls in process 0; if that fails, every process raises."""
  fault = None
  if parallel.is_first():
    try:
      call()
    except (ResultsError, options.OptionError, OSError) as e:
      fault = e
  if not parallel.agree(not fault):
    text = fault or f'{path} was refused by process 0.'
    raise ResultsError(str(text)) from fault


@contextlib.contextmanager
def _locked(folder: Folder) -> Iterator[None]:
  """Holds the lock of a folder, in which stands who holds it.

  The system frees the lock of a process that was killed. The file stays: if it
  were removed, two processes could each lock a file of that name.
  """
  folder.path.mkdir(parents=True, exist_ok=True)
  if (free := free_space(folder.path)) < _LITTLE:
    print(
      f'warning: only {free / 2**20:.0f} MiB are free for {folder.path}.'
      ' Results may not fit; what was saved by then would stay.',
      flush=True,
    )
  with folder.at(_LOCK).open('a+', errors='replace') as file:
    # Children that outlive this process would keep it.
    os.set_inheritable(file.fileno(), False)
    os.register_at_fork(after_in_child=file.close)
    file.seek(0)
    holder = file.read()
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ResultsError(
        f'{folder.path} is in use by {holder or "another process"}. Wait for'
        ' it, or choose another --exp_code.'
      ) from None
    except OSError as e:
      print(f'warning: {folder.path} cannot be locked ({e}).', flush=True)
    file.truncate(0)
    now = time.strftime('%Y-%m-%d %H:%M')
    file.write(f'process {os.getpid()} on {platform.node()} since {now}')
    file.flush()
    yield
    file.truncate(0)


def _made_by() -> dict[str, Any]:
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    'versions': {'python': platform.python_version()} | versions,
    'commit': _commit(),
    'command': shlex.join(['python', *sys.orig_argv[1:]]),
  }


def _script(made_by: Sequence[Mapping[str, Any]]) -> str | None:
  """Returns the script of the first command, as 'experiments.kmil'.

  None if that is not known, as of a notebook or of a file of the user's.
  """
  command = made_by[0].get('command', '') if made_by else ''
  match = _COMMAND.match(command)
  return match and f'experiments.{match[1]}'


def _commit() -> str | None:
  """Returns the checkout's commit, '-dirty' if changed; None if installed."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists():
    return None
  command = 'git describe --always --dirty --abbrev=40 --exclude=*'
  try:
    done = subprocess.run(
      command.split(), cwd=root, capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _shown(value: Any) -> str:
  return 'none' if value is None else str(value)
