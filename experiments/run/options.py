"""Options of scripts: frozen dataclasses that are flags and `config.json`.

  @dataclasses.dataclass(frozen=True)
  class Folds:
    '''How patients are dealt to folds.'''

    k: int = field(10, 'Number of folds.', least=3)

  (folds,) = options.parse(sys.argv, (Folds,), usage=__doc__)  # --k=5
  (folds,) = options.from_json(config['options'], (Folds,))

A field is an int, float, str, bool, pathlib.Path or a tuple of one of these,
and may be None. A tuple is written with commas between its values. A subclass
for a script in which a field has no effect makes it `fixed`.

Every script has --plugin: a module of the user's own, which may register models
and hold encoders. It is imported before the other flags are read, so that they
know its models; config.json names it, and what uses the run asks for it.
"""

import argparse
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
import dataclasses
import importlib
import json
import math
import os
import pathlib
import sys
import traceback
import types
import typing
from typing import Any

from absl import flags

from data import files
from kmil_jax import checksums

# Former names of flags, and what they are now. They are understood, and not
# shown. One may be that of several flags: of the first that a script has.
ALIASES: Sequence[tuple[str, str]] = (
  ('batch', 'batch_size'),
  ('combine', 'average_with_top_instance'),
  ('compile_s', 'compile'),
  ('default_mpp', 'slide_mpp'),
  ('drop', 'kmil_drop'),
  ('instance_score', 'dtfd_rank_by'),
  ('mpp', 'image_mpp'),
  ('mpp', 'tile_mpp'),
  ('mpp', 'slide_mpp'),
  ('mpp_csv', 'slide_mpp_csv'),
  ('per', 'similarity'),
  ('score', 'kmil_score'),
  ('score', 'rank_tiles_by'),
)
# --stream was a flag of its own; its values, and those of --store.
_STREAM = {True: 'streamed', False: 'resident', None: 'auto'}
_HELP = frozenset(('--help', '-help', '-h', '--helpshort', '--helpfull'))


class OptionError(ValueError):
  """Options that cannot be used; says which, why, and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
  """What an option is, besides its name, type and default.

  Attributes:
    help: a sentence for `--help`.
    flag: its name on the command line and in config.json; that of the field by
      default.
    least: the smallest value, of every value of a tuple.
    most: the largest one.
    choices: all values there are; a table that grows, as of models, may be
      given itself.
    result: False if results do not depend on it, as on the place of a cache.
    only: other flags by name, and the values of them with which this one has an
      effect, or a function that returns them; True for any value but None,
      False for None. Given otherwise, it is refused.
    remote: whether a path may be a URL, of what is only read.
    made: whether a path is made if it is absent.
    positional: whether it has no flag: a tuple of all that is not a flag.
    fixed: whether it has no flag: it is in config.json alone.
  """

  help: str = ''
  flag: str
  least: float | None = None
  most: float | None = None
  choices: Collection[Any] = ()
  result: bool = True
  only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  remote: bool = False
  made: bool = False
  positional: bool = False
  fixed: bool = False


def field(default: Any, help: str, **about: Any) -> Any:
  """Returns a field of a class of options.

  Args:
    default: of the flag; None, of a field that may not be None, requires it.
    help: see `About`.
    **about: see `About`.
  """
  return dataclasses.field(default=default, metadata={'help': help, **about})


def free(default: Any, help: str, **about: Any) -> Any:
  """Returns a field on which results do not depend; see `field`."""
  return field(default, help, result=False, **about)


def fixed(value: Any, **about: Any) -> Any:
  """Returns a field that has this value always; see `About`."""
  metadata = {'fixed': True, **about}
  return dataclasses.field(default=value, init=False, metadata=metadata)


def parse(
  argv: Sequence[str], classes: Sequence[type], usage: str = ''
) -> list[Any]:
  """Returns the options of a command line, an instance of each class.

  Args:
    argv: the command and its flags.
    classes: each is a section of `--help`. Several may have the same field.
    usage: what stands before these sections.

  Raises:
    OptionError: if there is no such flag, or a value is not one that it takes,
      or it has no effect with the others.
    SystemExit: after `--help`.
  """
  values = _flags(classes)
  if _HELP.intersection(argv[1:]):
    sections = [values.module_help(_title(cls)) for cls in classes]
    print(usage.strip(), *filter(str.strip, sections), sep='\n\n')
    sys.exit(0)
  held, asked = {}, [o for o in _options(classes) if not o.fixed]
  try:
    rest = values(list(map(_current, argv)))[1:]
    for option in asked:
      if option.positional:
        held[option.flag] = tuple(map(option.parser.parse, rest))
        rest = []
      else:
        held[option.flag] = values[option.flag].value
  except (flags.Error, ValueError) as e:
    raise OptionError(f'{e}. --help shows all flags.') from e
  if rest:
    raise OptionError(f'{rest[0]!r} is not a flag. Flags are --name=value.')
  for option in asked:
    if not option.positional and values[option.flag].present:
      _check_effect(option, values)
      if option.many and option.default and not held[option.flag]:
        some = f'some of {_text(option.choices)}' if option.choices else 'some'
        raise OptionError(f'--{option.flag} is empty. Name {some}.')
    elif option.default is None and not option.optional:
      raise OptionError(f'--{option.flag} is missing: {option.help}')
  return [
    cls(**{o.name: held[o.flag] for o in _options((cls,)) if not o.fixed})
    for cls in classes
  ]


def to_json(objects: Sequence[Any]) -> dict[str, Any]:
  """Returns the values of options by flag, as JSON holds them."""
  values = {option.flag: value for option, value in _held(objects)}
  return json.loads(json.dumps(values, default=str))


def changed(objects: Sequence[Any]) -> dict[str, Any]:
  """Returns those of `to_json` that are not as by default."""
  held = {o.flag for o, value in _held(objects) if value != o.default}
  return {flag: v for flag, v in to_json(objects).items() if flag in held}


def shared(objects: Sequence[Any], classes: Sequence[type]) -> dict[str, Any]:
  """Returns those of `changed` that other classes declare in the same way."""
  declared = [*_options(classes)]
  alike = {o.flag for o, _ in _held(objects) if o in declared}
  return {flag: v for flag, v in changed(objects).items() if flag in alike}


def absent(objects: Sequence[Any]) -> dict[str, pathlib.Path]:
  """Returns the paths to read, by flag, that do not exist."""
  return {
    option.flag: path
    for option, path in _held(objects)
    if isinstance(path, pathlib.Path)
    and not (option.made or files.exists(path))
  }


def from_json(
  values: Mapping[str, Any], classes: Sequence[type], source: str
) -> list[Any]:
  """Returns the options that `to_json` wrote; those it lacks by default.

  Args:
    values: by flag, or by a former name of it.
    classes: all that the values may be of.
    source: file, for messages.

  Raises:
    OptionError: if a value is of no option, or not one that it takes.
  """
  known = {option.flag for option in _options(classes)}
  values = renamed(values, classes)
  if unknown := sorted(values.keys() - known):
    raise OptionError(
      f'{source}: unknown options {", ".join(unknown)}. They may be of another'
      ' version of this software.'
    )
  loaded = []
  for cls in classes:
    given = {}
    for option in _options((cls,)):
      if option.fixed:
        continue
      value = values.get(option.flag, option.default)
      try:
        given[option.name] = option.checked(value)
      except (TypeError, ValueError) as e:
        raise OptionError(f'{source}: {option.flag} is {value!r}: {e}') from e
    loaded.append(cls(**given))
  return loaded


def renamed(
  values: Mapping[str, Any], classes: Sequence[type]
) -> dict[str, Any]:
  """Returns values by the flags' names of today."""
  known = {option.flag for option in _options(classes)}
  former = dict(_aliases(known))
  if 'store' in known and 'stream' in values:
    values = dict(values)
    stream = values.pop('stream')
    # Anything else is refused as a value of --store.
    stores = (store for old, store in _STREAM.items() if old is stream)
    values['store'] = next(stores, stream)
  return {former.get(name, name): value for name, value in values.items()}


def decisive(classes: Sequence[type]) -> set[str]:
  """Returns the flags on which results depend."""
  return {option.flag for option in _options(classes) if option.result}


@dataclasses.dataclass(frozen=True)
class Plugin:
  """Code of your own."""

  plugin: str | None = free(
    None,
    'Python module or file to import first, which registers a model'
    ' (kmil_jax.register) or holds an encoder for --weights=module:function.',
  )


# By the command that runs, as config.json names it.
plugin_given: str | None = None


def load_given_plugin(argv: Sequence[str]) -> None:
  """Imports what --plugin names on a command line, if it does.

  Raises:
    OptionError: see `load_plugin`.
  """
  global plugin_given
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument('--plugin', '-plugin', nargs='?')
  plugin = parser.parse_known_args(argv[1:])[0].plugin
  plugin_given = load_plugin(plugin, f'--plugin={plugin}') if plugin else None


def plugin_inputs() -> dict[str, str]:
  """Returns the hash of the file that --plugin names, as results depend on."""
  if not plugin_given:
    return {}
  file = sys.modules[
    pathlib.Path(plugin_given).stem if _is_file(plugin_given) else plugin_given
  ]
  return {'plugin_sha256': checksums.of_file(pathlib.Path(file.__file__))}


def _is_file(plugin: str) -> bool:
  """Whether a plugin is a file, and no module."""
  return plugin.endswith('.py')


def load_plugin(plugin: str, source: str) -> str:
  """Imports a module or file, once.

  Args:
    plugin: name of a module, or a path that ends in .py.
    source: what names it, for messages.

  Returns:
    The name, or the absolute path.

  Raises:
    OptionError: if it cannot be imported, or another module has its name.
  """
  path = pathlib.Path(plugin).expanduser().absolute()
  if _is_file(plugin) and not path.is_file():
    raise OptionError(f'{source}: no such file. Give its place by --plugin.')
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))
  try:
    module = importlib.import_module(path.stem if _is_file(plugin) else plugin)
  except Exception as e:  # The user's code may raise anything.
    at = traceback.extract_tb(e.__traceback__)[-1]
    raise OptionError(
      f'{source} cannot be imported: {type(e).__name__}: {e} ({at.filename},'
      f' line {at.lineno}). Give a Python file, or a module in this folder or'
      ' on PYTHONPATH, by --plugin.'
    ) from e
  if _is_file(plugin) and not path.samefile(module.__file__ or '/'):
    raise OptionError(
      f'{source}: a module {path.stem} is there already, {module.__file__}.'
      ' Rename the file.'
    )
  return str(path) if _is_file(plugin) else plugin


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Option(About):
  """A field of a class of options."""

  name: str
  section: str = dataclasses.field(compare=False)
  default: Any
  kind: type
  many: bool
  optional: bool

  @property
  def parser(self) -> flags.ArgumentParser:
    """Returns what reads one value of it."""
    if self.choices and self.kind is str:
      return flags.EnumParser(list(self.choices))
    if self.kind is int:
      return flags.IntegerParser(self.least, self.most)
    if self.kind is float:
      return _Number(self.least, self.most)
    is_path = self.kind is pathlib.Path
    return _Path(self.remote) if is_path else flags.ArgumentParser()

  def checked(self, value: Any) -> Any:
    """Returns a value of JSON in the type of the field."""
    if value is None and self.optional:
      return None
    if self.kind is bool:
      if not isinstance(value, bool):
        raise ValueError('it must be true or false')
      return value
    if self.many:
      return tuple(self.parser.parse(_plain(one)) for one in value)
    return self.parser.parse(_plain(value))


class _Number(flags.FloatParser):
  """Reads a number that JSON has."""

  def convert(self, argument: Any) -> float:
    if not math.isfinite(number := super().convert(argument)):
      raise ValueError('it must be finite')
    return number


class _Path(flags.ArgumentParser):
  """Reads a path; the home folder may be written as ~."""

  def __init__(self, remote: bool):
    super().__init__()
    self._remote = remote

  def parse(self, text: Any) -> pathlib.Path:
    if not str(text):
      raise ValueError('a path cannot be empty')
    if '://' in str(text):
      if self._remote:
        return files.place(text)
      raise ValueError(
        'only features and their labels are read from a URL. Copy the files, or'
        ' mount the bucket (gcsfuse, mount-s3, rclone), and give that folder'
      )
    try:
      path = pathlib.Path(text).expanduser()
    except RuntimeError as e:  # No such home.
      raise ValueError(str(e)) from e
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):
      raise ValueError('it is a pipe or device. Give a file or folder')
    return path

  def flag_type(self) -> str:
    return 'path'


class _Tuple(flags.ArgumentParser):
  """Reads values with commas between them."""

  def __init__(self, one: flags.ArgumentParser):
    super().__init__()
    self._one = one
    self.syntactic_help = one.syntactic_help and f'each {one.syntactic_help}'

  def parse(self, text: Any) -> tuple[Any, ...]:
    if not isinstance(text, str):  # The default.
      return text
    parts = [part.strip() for part in text.split(',')]
    return tuple(self._one.parse(part) for part in parts if part)

  def flag_type(self) -> str:
    return f'{self._one.flag_type()}s with commas between'


def _current(argument: str) -> str:
  """Returns an argument as flags take it: some had values of another type."""
  name, _, value = argument.partition('=')
  if name == '--compile_s' and value.isdecimal():
    return f'{name}={int(value) > 0}'
  if name in ('--stream', '--nostream'):
    yes = name == '--stream' and value.lower() not in ('false', 'f', '0')
    return f'--store={_STREAM[yes]}'
  return argument


def _flags(classes: Sequence[type]) -> flags.FlagValues:
  """Defines the flags of a script; two classes may share one."""
  values, known = flags.FlagValues(), {}
  for option in _options(classes):
    if option.positional or option.fixed:
      continue
    if same := known.get(option.flag):
      if option != same:
        raise ValueError(
          f'--{option.flag} differs between {same.section!r} and'
          f' {option.section!r}'
        )
      continue
    known[option.flag] = option
    choices = '|'.join(map(str, option.choices))
    text = f'<{choices}>: {option.help}' if choices else option.help
    about = option.flag, option.default, text
    where = {'flag_values': values, 'module_name': option.section}
    if option.kind is bool:
      flags.DEFINE_boolean(*about, **where)
    elif option.many:
      comma = flags.CsvListSerializer(',')
      flags.DEFINE(_Tuple(option.parser), *about, serializer=comma, **where)
    else:
      one = flags.ArgumentSerializer()
      flags.DEFINE(option.parser, *about, serializer=one, **where)
  for former, name in _aliases(known):
    flags.DEFINE_alias(former, name, flag_values=values, module_name='')
  return values


def _aliases(known: Container[str]) -> list[tuple[str, str]]:
  """Returns the former names of known flags, and the first that each is now."""
  aliases: dict[str, str] = {}
  for former, name in ALIASES:
    if name in known and former not in known:
      aliases.setdefault(former, name)
  return list(aliases.items())


def _check_effect(option: _Option, values: flags.FlagValues) -> None:
  """Raises if a flag was given that the others leave without an effect."""
  for name, wanted in option.only.items():
    if name not in values:  # The script has no such flag.
      continue
    value = values[name].value
    wanted = wanted() if callable(wanted) else wanted
    if isinstance(wanted, bool):
      if wanted and not value:
        raise OptionError(f'--{option.flag} requires --{name}. Give both.')
      if value and not wanted:
        raise OptionError(
          f'--{option.flag} has no effect with --{name}. Leave one out.'
        )
      continue
    held = value if isinstance(value, tuple) else (value,)
    if not set(held).intersection(wanted):
      raise OptionError(
        f'--{option.flag} has no effect with --{name}={_text(value)}, only with'
        f' {_text(tuple(wanted))}. Leave one out.'
      )


def _held(objects: Sequence[Any]) -> Iterator[tuple[_Option, Any]]:
  """Yields all options of objects, with their values."""
  for one in objects:
    for option in _options((type(one),)):
      yield option, getattr(one, option.name)


def _options(classes: Sequence[type]) -> Iterator[_Option]:
  for cls in classes:
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
      kind, optional, many = hints[one.name], False, False
      if isinstance(kind, types.UnionType):
        kind, optional = typing.get_args(kind)[0], True
      if typing.get_origin(kind) is tuple:
        kind, many = typing.get_args(kind)[0], True
      yield _Option(
        name=one.name,
        section=_title(cls),
        default=one.default,
        kind=kind,
        many=many,
        optional=optional,
        **{'flag': one.name, **one.metadata},
      )


def _title(cls: type) -> str:
  """Returns the section of `--help`: the first line of the docstring."""
  return cls.__doc__.strip().splitlines()[0].rstrip('.')


def _plain(value: Any) -> Any:
  """Returns a number as it is, all else as text."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return value if is_number else str(value)


def _text(value: Any) -> str:
  return ', '.join(map(str, value)) if isinstance(value, tuple) else str(value)
