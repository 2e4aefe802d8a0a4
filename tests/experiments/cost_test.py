"""The cost table, as the command prints it and beside the paper's."""

import dataclasses
import json
import subprocess
import sys

from absl import app
import pytest

from experiments import cost, cost_table
from experiments.cost_table import SETTING
from kmil_jax.cost import Cost
from kmil_jax.models import SPECS

PARAMS = {
  'abmil': 530_182,
  'abmil_plain': 592_646,
  'dsmil': 178_442,
  'dsmil_value': 1_228_042,
  'dtfd': 726_668,
  'dtfd_gated': 792_332,
  'kmil': 178_442,
  'transmil': 2_673_685,
}
CLASS_TOKEN = 512


@pytest.fixture(scope='module')
def printed():
  """What `--format=json` prints, in the paper's setting."""
  command = [sys.executable, '-m', 'experiments.cost', '--format=json']
  return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture(scope='module')
def costs(printed):
  found = json.loads(printed.stdout)
  return {name: Cost(**row) for name, row in found.items()}


def cells(markdown):
  """The table's rows by model, as lists of cells."""
  lines = [line for line in markdown.splitlines() if line.startswith('|')]
  rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
  assert {len(row) for row in rows} == {len(rows[0])}
  return {row[0]: row for row in rows[2:]}


def test_json_is_all_of_standard_output(printed):
  found = json.loads(printed.stdout)
  assert list(found) == list(SPECS)
  types = {
    'params': int,
    'macs': int,
    'flops_xla': float,
    'peak_bytes': int,
    'seconds': float,
  }
  for row in found.values():
    assert {key: type(value) for key, value in row.items()} == types
    assert all(value > 0 for value in row.values())
  assert '100 instances of 1024 features, 5 classes' in printed.stderr
  assert 'jax ' in printed.stderr


def test_parameters_are_counted_exactly(costs):
  assert {name: costs[name].params for name in PARAMS} == PARAMS


def test_what_equals_the_paper_is_marked_and_nothing_else(costs):
  rows = cells(cost_table.markdown(costs, SETTING))
  assert list(rows) == list(cost_table.with_both_stages(costs))
  marked = {
    (name, row[i - 1]) for name, row in rows.items() for i in (3, 6) if row[i]
  }
  assert marked == {
    ('abmil', '530.2K'),
    ('dtfd', '726.7K'),
    ('transmil', '602.82M'),
  }
  printed = {name: (row[5], row[2], row[10]) for name, row in rows.items()}
  assert {name: row for name, row in printed.items() if any(row)} == {
    name: dataclasses.astuple(paper) for name, paper in cost_table.PAPER.items()
  }


def test_what_the_notes_claim(costs):
  less_token = costs['transmil'].params - CLASS_TOKEN
  assert f'{less_token / 1e3:.1f}K' == cost_table.PAPER['transmil'].params
  thousands = {f'{row.params / 1e3:.1f}K' for row in costs.values()}
  assert not thousands & {'641.4K', '643.6K'}


def test_both_stages_are_the_sum_of_the_two(costs):
  both = cost_table.with_both_stages(costs)['kmil, both stages']
  assert both.params == 708_624
  assert both.macs == costs['abmil'].macs + costs['kmil'].macs
  assert both.peak_bytes == costs['abmil'].peak_bytes
  assert both.seconds == costs['abmil'].seconds + costs['kmil'].seconds


def test_text_and_markdown_say_the_same(costs):
  text = cost_table.text(costs, SETTING)
  markdown = cost_table.markdown(costs, SETTING)
  for name, row in cells(markdown).items():
    line = next(x for x in text.splitlines() if x.startswith(f'{name}  '))
    assert line.split('  ', 1)[1].split() == ' '.join(row[1:]).split()
  for note in cost_table.notes(SETTING):
    assert note in text and f'* {note}' in markdown


def test_another_setting_is_not_judged_by_the_paper(costs):
  setting = SETTING | {'num_instances': 7}
  assert 'bags of 100 instances' in cost_table.text(costs, setting)
  assert 'class token' not in cost_table.text(costs, setting)


def test_what_a_backend_does_not_say_is_left_open(costs):
  unknown = {
    name: dataclasses.replace(row, flops_xla=None, peak_bytes=None)
    for name, row in costs.items()
  }
  for row in cells(cost_table.markdown(unknown, SETTING)).values():
    assert row[7:9] == ['n/a', 'n/a']


def test_stray_arguments_are_refused():
  with pytest.raises(app.UsageError, match='slides'):
    cost.main(['cost', 'slides'])
