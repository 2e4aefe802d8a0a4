"""A study yields tables, files and texts; the runner prints and writes them."""

import dataclasses
import importlib
import re

from matplotlib import figure
import pytest

from data.weights import WeightsError
from experiments.evaluation.tables import HERE, Published, Row, Table
from experiments.patches import study
from experiments.run.results import ResultsError
from experiments.run.start import Output


@dataclasses.dataclass(frozen=True)
class Recipe:
  epochs: int = 30
  batch: int = 4


@dataclasses.dataclass(frozen=True)
class Training:
  """How it is trained."""

  batch: int | None = dataclasses.field(default=None)
  weights: str | None = None


@dataclasses.dataclass(frozen=True)
class Material(study.Material):
  @property
  def inputs(self):
    return {'tiles_sha256': 'a'}

  def tables(self):
    rows = [Row(('a',), {'': (3,)})]
    yield Table('parts', 'Parts', ('part',), {'n': 'd'}, rows)


PAPER = study.Paper(
  'toy',
  'Nobody 2020',
  {'a': Recipe(), 'b': Recipe()},
  'Counts toys.\n\n  python -m experiments.toy\n\nThe number of toys by hand.',
  {'b': {'epochs': 2}},
)


def run(tmp_path, stages, batch=None, search=None, weights=None, **options):
  output = Output(seed=7, results_dir=tmp_path)
  material = Material(
    note='a phantom',
    is_phantom=True,
    warnings=('part a is small',),
    search=search,
  )
  study.run(
    PAPER, material, [Training(batch, weights), output], stages, **options
  )
  return tmp_path / 'toy_s7'


def test_the_paper_says_what_is_done_otherwise():
  here = PAPER.here([Training(batch=8)], is_phantom=True)
  assert here == {'a': Recipe(30, 8), 'b': Recipe(2, 8)}
  assert PAPER.differences(here) == (
    'here (paper): batch 8 (4), epochs 2 (30) of b'
  )
  same = PAPER.here([Training()], is_phantom=False)
  assert PAPER.differences(same) == 'here (paper): the same recipe'


def test_what_is_yielded_is_printed_and_written(tmp_path, capsys):
  """Also where it ends with an error that was yielded."""

  def stages(one):
    assert one.seed == 7 and one.recipe['b'].epochs == 2
    yield 'a text'
    yield ValueError('slide_3 is torn')
    yield study.File('summary.json', {'x': 1})
    yield study.File('figures/empty.png', figure.Figure((1, 1)))
    yield study.File('unshown/empty.png', figure.Figure((1, 1)))
    paper = Published('Nobody, Table 1', {('a',): {'n': 4}}, ['n: of five'])
    rows = [Row(('a',), {HERE: (5,)})]
    yield Table('t', 'Title', ('k',), {'n': 'd'}, rows, ('is <b>',), paper)

  with pytest.raises(ValueError, match='slide_3 is torn'):
    run(tmp_path, stages)
  folder = tmp_path / 'toy_s7'
  assert (folder / 'figures/empty.png').read_bytes()[1:4] == b'PNG'
  lines = (folder / 't.csv').read_text().splitlines()
  assert lines == ['k,from,n', 'a,here,5', 'a,"Nobody, Table 1",4']
  assert '- n: of five' in (folder / 't.md').read_text()
  report = (folder / 'report.html').read_text()
  shown = capsys.readouterr().out
  for text in ('a phantom', 'Parts', 'epochs 2 (30) of b', 'a text', 'Title'):
    assert text in report and text in shown
  assert f'results in {folder}, on one page in {folder}/report.html' in shown
  # The page says all by itself: what it is, what failed, what to see.
  for text in ('<h1>Counts toys</h1>', 'of toys by hand', 'is &lt;b&gt;'):
    assert text in report
  assert 'python -m' not in report.partition('id="results"')[0]
  for title, text in (
    ('Warning: Phantom data', 'not taken from patients'),
    ('Warning: Found in the inputs', 'slide_3 is torn'),
    ('Warning: Found in the inputs', 'part a is small'),
  ):
    assert re.search(rf'<h3>{title}</h3>\s*<p>[^<]*{text}', report)
  assert report.count('<img src="data:image/webp;base64,') == 1
  assert not re.search(r'<script|(src|href)="(?!data:|#)', report)
  assert 'warning: part a is small\n' in shown


def test_it_goes_on_in_its_folder_but_not_with_other_options(tmp_path):
  run(tmp_path, lambda one: iter(()))
  run(tmp_path, lambda one: iter(()))
  with pytest.raises(ResultsError, match='batch: none before, 8 now'):
    run(tmp_path, lambda one: iter(()), batch=8)


def test_check_trains_nothing(tmp_path, capsys):
  with pytest.raises(SystemExit) as end:
    run(tmp_path, None, check=True)
  assert not end.value.code
  shown = capsys.readouterr().out
  assert 'Parts' in shown and 'warning: part a is small\n' in shown
  assert not list(tmp_path.iterdir())
  (tmp_path / 'toy_s7').symlink_to('nothing')
  with pytest.raises(SystemExit, match='1'):
    run(tmp_path, None, check=True)
  assert 'toy_s7: there is a file, or a link' in capsys.readouterr().out


def test_weights_of_all_networks_are_read_before_any_is_trained(
  tmp_path, capsys
):
  (tmp_path / 'torn.pth').write_text('torn')
  weights = f'resnet18={tmp_path}/torn.pth,googlenet={tmp_path}/absent.pth'
  with pytest.raises(WeightsError, match=r'torn\.pth: (.|\n)*absent\.pth: no'):
    run(tmp_path, None, weights=weights)
  for name in ('torn', 'absent'):
    with pytest.raises(SystemExit, match='1'):
      run(tmp_path, None, weights=f'{tmp_path}/{name}.pth', check=True)
    assert f'problem: {tmp_path}/{name}.pth: n' in capsys.readouterr().out
  assert not (tmp_path / 'toy_s7').exists()


def test_what_takes_long_is_searched_once_and_told_each_time(tmp_path, capsys):
  found = [['tile 3 is tile 4']]
  for _ in range(2):
    run(tmp_path, lambda one: iter(()), search=found.pop)
    found = []
    assert 'warning: tile 3 is tile 4\n' in capsys.readouterr().out
    assert 'tile 3 is tile 4' in (tmp_path / 'toy_s7/report.html').read_text()


@pytest.mark.parametrize(
  'name', ('two_step', 'hard_negatives', 'ct_nodes', 'few_shot')
)
def test_help_names_the_recipe_of_the_paper_and_of_the_phantom(name):
  script = importlib.import_module(f'experiments.{name}')
  fields = 'weight_decay', 'epochs', 'batch', 'augment', 'schedule', 'select'
  flags = {field: field for field in (*fields, 'input_size', 'width')}
  flags |= {'learning_rate': 'lr', 'batch': 'batch_size'}
  told = ' '.join(script.__doc__.partition('By default (on the')[2].split())
  _, *pieces = re.split(rf'\b({"|".join(flags.values())}) ', told)
  values = dict.fromkeys(pieces[::2], '')
  for flag, text in zip(pieces[::2], pieces[1::2], strict=True):
    values[flag] += text
  recipes = [script.PAPER.here([], is_phantom) for is_phantom in (False, True)]
  for used in (one for recipe in recipes for one in recipe.values()):
    for field in flags.keys() & vars(used).keys():
      if (value := getattr(used, field)) not in (None, 0, 'none'):
        words = re.findall(r'[\w.-]*\w', values[flags[field]])
        assert str(value) in words, (field, value)
  assert len(values) > 3
