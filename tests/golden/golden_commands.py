"""The rows of commands.toml: every documented command, its width and names."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import shlex
import tomllib

from golden_comparer import Width
import golden_inputs
import golden_pictures

TABLE = pathlib.Path(__file__).with_name('commands.toml')


@dataclasses.dataclass(frozen=True)
class Command:
  """A command, and what is held of it.

  Attributes:
    name: unique in its chain.
    run: what follows `python -m experiments.`.
    fails: texts that it must print before it ends with 1: flags, files, slides,
      rows; no wording. None: it must end with 0.
    names: texts that it must print otherwise.
    printed: whether the numbers on standard output are a result.
    width: how far numbers of two commits may be apart.
    choices: whether a choice that rounding decides excuses what follows.
    serves: whether it is a server, to be asked for its page and ended.
    needs: names of the commands of the chain that must have run.
    slow: whether it takes minutes.
    suite: how far numbers may be from the stored golden; None: there is none.
  """

  name: str
  run: str
  fails: Sequence[str] | None = None
  names: Sequence[str] = ()
  printed: bool = False
  width: str = 'usual'
  choices: bool = False
  serves: bool = False
  needs: Sequence[str] = ()
  slow: bool = False
  suite: str | None = None

  @property
  def exit(self) -> int:
    """The status that it must end with."""
    return int(self.fails is not None)

  @property
  def module(self) -> str:
    """What `python -m` is given."""
    return f'experiments.{self.run.split()[0]}'

  @property
  def args(self) -> list[str]:
    """Its flags."""
    return shlex.split(self.run)[1:]


@dataclasses.dataclass(frozen=True)
class Chain:
  """Commands that run one after the other in one folder.

  Attributes:
    name: of the chain.
    inputs: fills the folder.
    commands: in the order they run.
  """

  name: str
  inputs: Callable[[pathlib.Path], None]
  commands: tuple[Command, ...]

  def chosen(self, wanted: Callable[[Command], bool]) -> 'Chain':
    """Returns the wanted commands, and those that they need."""
    names = {command.name for command in self.commands if wanted(command)}
    for command in reversed(self.commands):  # Needs stand before their users.
      if command.name in names:
        names.update(command.needs)
    kept = tuple(one for one in self.commands if one.name in names)
    return dataclasses.replace(self, commands=kept)


def _written_out(line: str) -> str:
  while '{' in line:
    line = line.format(**_WORDS)
  return line


_ROWS = tomllib.loads(TABLE.read_text(encoding='utf-8'))
_WORDS, _INPUTS = _ROWS.pop('words'), _ROWS.pop('inputs')
WIDTHS = {name: Width(**row) for name, row in _ROWS.pop('width').items()}
CHAINS = tuple(
  Chain(
    name,
    getattr(golden_inputs, _INPUTS[name], None)
    or getattr(golden_pictures, _INPUTS[name]),
    tuple(
      Command(key, **(row | {'run': _written_out(row['run'])}))
      for key, row in rows.items()
    ),
  )
  for name, rows in _ROWS.items()
)
SUITE = tuple(
  chosen
  for chain in CHAINS
  if (chosen := chain.chosen(lambda command: command.suite)).commands
)
