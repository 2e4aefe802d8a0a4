"""What a row of the table of commands is, and the usual widths."""

from collections.abc import Callable
import dataclasses
import pathlib
import shlex

from golden_comparer import Width

USUAL = Width()
# See README.md for the measurements behind these.
ATTENTION = Width(
  1e-5,
  1e-5,
  reason='attention of nearly alike instances: 2.4e-6 when sums are reordered',
)
NETWORK = Width(
  5e-3,
  5e-3,
  reason='batch norm over few tiles and the first steps of Adam, which are'
  ' signs of small gradients, amplify the rounding of sums: 8.5e-4',
)
STUDENTS = Width(
  loose=(
    '*/metrics.jsonl/lines/*',
    '*/scores.csv/rows/*/[45]',
    '*/table_?.csv/rows/*',
    '*/table_?.md/cells/*',
    '*/ablations.csv/rows/*',
    '*/ablations.md/cells/*',
    '*/summary.json/*',
  ),
  reason='the same of deeper networks: scores are 0.04 apart when sums'
  ' are reordered, which leaves nothing of them',
)


@dataclasses.dataclass(frozen=True)
class Command:
  """A command, and what is held of it.

  Attributes:
    name: unique in its chain.
    line: what follows `python -m experiments.`.
    exit: the status that it must end with.
    names: texts that it must print: flags, files, slides, rows; no wording.
    printed: whether the numbers on standard output are a result.
    width: how far numbers may be apart.
    choices: whether a choice that rounding decides excuses what follows.
    serves: whether it is a server, to be asked for its page and ended.
    needs: names of the commands of the chain that must have run.
    slow: whether it takes minutes.
  """

  name: str
  line: str
  exit: int = 0
  names: tuple[str, ...] = ()
  printed: bool = False
  width: Width = USUAL
  choices: bool = False
  serves: bool = False
  needs: tuple[str, ...] = ()
  slow: bool = False

  @property
  def module(self) -> str:
    """What `python -m` is given."""
    return f'experiments.{self.line.split()[0]}'

  @property
  def args(self) -> list[str]:
    """Its flags."""
    return shlex.split(self.line)[1:]


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


def needed(chain: Chain, wanted: Callable[[Command], bool]) -> list[Command]:
  """Returns the wanted commands of a chain, and those that they need."""
  by_name = {command.name: command for command in chain.commands}
  names = set()

  def add(command):
    if command.name not in names:
      names.add(command.name)
      for name in command.needs:
        add(by_name[name])

  for command in chain.commands:
    if wanted(command):
      add(command)
  return [command for command in chain.commands if command.name in names]


DATA = '--csv_path=labels.csv --features_dir=features'
SHORT = f'{DATA} --k=3 --epochs=2'
FOLD = f'{DATA} --k=3 --epochs=2 --fold=1'
MINE = 'results/mine_s2023'


def train(name, flags, base=SHORT, **options) -> Command:
  """Returns a training of kmil under an --exp_code of its own name."""
  line = f'kmil {base} {flags} --exp_code={name}'
  return Command(name, line, choices=True, **options)


def fails(name, line, *names, **options) -> Command:
  """Returns a command that must end with 1 and print these names."""
  return Command(name, line, exit=1, names=names, **options)
