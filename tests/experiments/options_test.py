"""Options are the same on the command line and in config.json."""

import dataclasses
import pathlib

import next_command
import pytest

from experiments import __main__ as listing
from experiments.bags.options import Training
from experiments.run import options, start
from experiments.run.options import OptionError, field
from experiments.run.start import Findings


@dataclasses.dataclass(frozen=True)
class Model:
  """What is trained."""

  model: str = field('kmil', 'The model.', choices=('kmil', 'dtfd'))
  tiers: int = field(4, 'Parts of a bag.', least=1, only={'model': ('dtfd',)})
  rate: float | None = field(None, 'Rate.', flag='lr', least=0, most=1)
  runs: tuple[int, ...] = field((1, 10), 'Runs.', least=1)
  names: tuple[str, ...] | None = field(None, 'Names.')
  combine: bool = field(False, 'Whether to average.')


@dataclasses.dataclass(frozen=True)
class Place:
  """Where results go."""

  folder: pathlib.Path = field(pathlib.Path('x'), 'Folder.', result=False)
  host: str | None = field(None, 'Host.', result=False)
  port: int | None = field(None, 'Port.', result=False, only={'host': True})


@dataclasses.dataclass(frozen=True)
class Input:
  """What is read."""

  slides: pathlib.Path = field(None, 'Slides.')
  others: tuple[pathlib.Path, ...] = field((), 'Them.', positional=True)


CLASSES = (Model, Place)


def parse(*args, classes=CLASSES):
  return options.parse(['script', *args], classes, 'Trains.')


@pytest.mark.parametrize(
  'args,fields',
  [
    ([], {}),
    (['--model=dtfd', '--tiers=2'], {'model': 'dtfd', 'tiers': 2}),
    (['--lr=0.5', '--combine'], {'rate': 0.5, 'combine': True}),
    (['--runs=3,4', '--nocombine'], {'runs': (3, 4)}),
    (['--names=a b,c'], {'names': ('a b', 'c')}),
    (['--names='], {'names': ()}),
  ],
)
def test_what_is_given_is_what_config_json_gives_back(args, fields):
  given = parse(*args)
  assert given == [dataclasses.replace(Model(), **fields), Place()]
  assert options.from_json(options.to_json(given), CLASSES, 'c.json') == given


def test_what_is_no_flag_may_be_an_option_and_a_home_is_found(monkeypatch):
  monkeypatch.setenv('HOME', '/home/someone')
  (given,) = parse('a,b', '--slides=~/x', '~/c', classes=(Input,))
  home = pathlib.Path('/home/someone')
  assert given == Input(home / 'x', (pathlib.Path('a,b'), home / 'c'))


@pytest.mark.parametrize(
  'args,message',
  [
    (['--modle=kmil'], "Unknown command line flag 'modle'"),
    (['extra'], "'extra' is not a flag"),
    (['--model=abmil'], 'model'),
    (['--runs=1,0'], 'runs'),
    (['--runs='], '--runs is empty'),
    (['--lr=2'], 'lr'),
    (['--lr=nan'], 'lr=nan: it must be finite'),
    (['--tiers=2'], '--tiers has no effect with --model=kmil, only with dtfd'),
    (['--port=1'], '--port requires --host'),
    (['--deep=7'], 'deep'),
  ],
)
def test_a_flag_that_cannot_be_is_named(args, message):
  with pytest.raises(OptionError, match=message):
    parse(*args)


def test_a_seed_that_is_no_key_of_jax_is_refused():
  (output,) = parse(f'--seed={2**32 - 1}', classes=(start.Output,))
  assert output.seed == 2**32 - 1
  with pytest.raises(OptionError, match='seed'):
    parse(f'--seed={2**32}', classes=(start.Output,))


def test_processes_that_would_not_join_are_refused():
  with pytest.raises(OptionError, match='--process_id requires --coordinator'):
    parse('--process_id=0', classes=(start.Machine,))


def test_an_option_without_a_default_is_required():
  with pytest.raises(OptionError, match='--slides is missing: Slides'):
    parse(classes=(Input,))


def test_help_has_a_section_of_each_class_with_defaults(capsys):
  with pytest.raises(SystemExit) as end:
    parse('--help')
  assert end.value.code == 0
  shown = capsys.readouterr().out
  assert shown.startswith('Trains.')
  first, second = shown.index('What is trained'), shown.index('Where results')
  assert first < shown.index('--[no]combine') < second < shown.index('--host')
  assert "(default: '1,10')" in shown


def test_an_unknown_or_impossible_value_of_config_json_is_named():
  with pytest.raises(OptionError, match=r'c.json: unknown options tires'):
    options.from_json({'tires': 4}, CLASSES, 'c.json')
  for values in ({'tiers': 'many'}, {'combine': 1}, {'runs': 3}, {'lr': 7}):
    with pytest.raises(OptionError, match=f'c.json: {next(iter(values))} is'):
      options.from_json(values, CLASSES, 'c.json')


def test_former_names_are_understood_and_hidden(monkeypatch, capsys):
  # The first new name that a script has.
  names = [('average', 'combine'), ('old', 'absent'), ('old', 'port')]
  monkeypatch.setattr(options, 'ALIASES', [*names, ('old', 'tiers')])
  model, place = parse('--average', '--old=3', '--host=x')
  assert model.combine and place.port == 3
  assert options.from_json({'average': True}, CLASSES, 'c')[0].combine
  with pytest.raises(SystemExit):
    parse('--help')
  assert 'average:' not in capsys.readouterr().out


@pytest.mark.parametrize(
  'flag,value,want',
  [
    ('--stream', True, 'streamed'),
    ('--nostream', False, 'resident'),
    ('--stream=false', False, 'resident'),
    ('--store=auto', None, 'auto'),
  ],
)
def test_a_store_that_was_a_stream_is_understood(flag, value, want):
  classes = (Training,)
  assert parse(flag, classes=classes)[0].store == want
  assert options.from_json({'stream': value}, classes, 'c')[0].store == want


@pytest.mark.parametrize('stream', ['x', 1, [], {}])
def test_a_damaged_stream_is_refused_by_name(stream):
  with pytest.raises(OptionError, match='c: store is '):
    options.from_json({'stream': stream}, (Training,), 'c')


def test_a_subclass_may_fix_an_option(capsys):
  @dataclasses.dataclass(frozen=True)
  class OfOne(Model):
    """One model."""

    model: str = options.fixed('kmil')

  (given,) = parse('--tiers=2', classes=(OfOne,))  # Needs no --model.
  assert (given.model, given.tiers) == ('kmil', 2)
  with pytest.raises(OptionError, match="Unknown command line flag 'model'"):
    parse('--model=dtfd', classes=(OfOne,))
  with pytest.raises(SystemExit):
    parse('--help', classes=(OfOne,))
  assert '--model' not in capsys.readouterr().out
  values = options.to_json([given])
  assert values['model'] == 'kmil' and 'model' in options.decisive([OfOne])
  assert options.from_json(values | {'model': 1}, (OfOne,), 'c') == [given]


def test_fields_say_what_decides_results():
  decisive = {'model', 'tiers', 'lr', 'runs', 'names', 'combine'}
  assert options.decisive(CLASSES) == decisive


def test_classes_may_share_a_flag_but_not_disagree_about_it():
  @dataclasses.dataclass(frozen=True)
  class Other:
    """Others."""

    tiers: int = field(5, 'Parts of a bag.', least=1)

  assert parse('--lr=.5', classes=(Model, Model))[1].rate == 0.5
  with pytest.raises(ValueError, match='--tiers differs'):
    parse(classes=(Model, Other))


def test_what_is_shown_differs_from_the_defaults(capsys):
  given = Model(model='dtfd', rate=0.5, runs=(2,)), Place(host='a b')
  start.show_options(given)
  shown = "options: '--host=a b' --lr=0.5 --model=dtfd --runs=2 (all others"
  assert capsys.readouterr().out.startswith(shown)


def test_what_two_scripts_declare_alike_is_handed_on(capsys):
  def run(model: Model, output: start.Output) -> start.Next:
    return 'report', {'run': 'results/a b'}

  given = '--model=dtfd', '--results_dir=new', '--lr=.5'
  start.script(run)(['', *given])
  last = capsys.readouterr().err
  assert last == "next: python -m experiments.report '--run=results/a b'\n"

  def run(model: Model, output: start.Output) -> start.Next:
    return 'kmil', {'exp_code': 'new', 'seed': None}

  start.script(run)(['', *given, '--seed=3', '--exp_code=old'])
  following = '--results_dir=new', '--exp_code=new'
  assert next_command.read(capsys.readouterr().err) == ('kmil', [*following])


@pytest.mark.parametrize(
  'problem, known',
  [
    ('a: is torn', True),
    ('tables:\n  a: is torn', True),
    ("no such file: 'a'", True),
    ('--slides=a: is torn', True),
    ('/d/a: is torn', False),
    ('data: is torn', False),
  ],
)
def test_a_path_that_is_absent_is_named_once(problem, known):
  findings = Findings([problem])
  findings.add_absent([Input(pathlib.Path('a'))])
  absent = [] if known else ['--slides=a: no such file or folder.']
  assert findings.problems == [problem, *absent]
  findings.add_absent([Input(pathlib.Path('b' * 300))])  # No file can be so.
  assert findings.problems[-1].endswith('bb: no such file or folder.')


def test_every_script_is_listed_with_what_it_does(capsys):
  scripts = pathlib.Path(listing.__file__).parent
  names = {path.stem for path in scripts.glob('[!_]*.py')}
  listing.main(['kmil_jax'])
  shown = capsys.readouterr().out.splitlines()
  assert names == {line.split()[0] for line in shown if line[:2] == '  '}
  assert 'Cross-validates KMIL' in '\n'.join(shown)
  with pytest.raises(SystemExit, match="no script 'kmill'"):
    listing.main(['kmil_jax', 'kmill'])
