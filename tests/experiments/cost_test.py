"""The cost table, as the command prints it and beside the paper's."""

import dataclasses
import json

from absl import app
import pytest
import script_process

from experiments import cost, cost_table, paper_numbers
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
  done = script_process.run('experiments.cost', '--format=json')
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope='module')
def costs(printed):
  found = json.loads(printed.stdout)
  return {name: Cost(**row) for name, row in found.items()}


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


def test_what_the_papers_table_has_and_what_no_released_network_has(costs):
  thousands = {name: f'{row.params / 1e3:.1f}' for name, row in costs.items()}
  paper = paper_numbers.TABLE_3
  for name in ('abmil', 'dtfd'):
    assert thousands[name] == f'{paper[name][1]:.1f}'
  less_token = costs['transmil'].params - CLASS_TOKEN
  assert f'{less_token / 1e3:.1f}' == f'{paper["transmil"][1]:.1f}'
  assert costs['transmil'].macs == 602_823_168
  assert f'{602_823_168 / 1e6:.2f}' == f'{paper["transmil"][0]:.2f}'
  for name in ('dsmil', 'kmil'):
    assert f'{paper[name][1]:.1f}' not in thousands.values()


def test_both_stages_are_the_sum_of_the_two(costs):
  both = cost_table.both_stages(costs, 'kmil')
  assert both.params == 708_624
  assert both.macs == costs['abmil'].macs + costs['kmil'].macs
  assert both.peak_bytes == costs['abmil'].peak_bytes
  assert both.seconds == costs['abmil'].seconds + costs['kmil'].seconds


def test_the_table_holds_every_model_and_both_stages_of_kmil(costs):
  text = cost_table.text(costs, SETTING)
  for name, row in costs.items():
    (line,) = (x for x in text.splitlines() if x.startswith(f'{name}  '))
    assert line.split()[1:3] == [f'{row.params:,}', f'{row.macs:,}']
  assert 'kmil, both stages     708,624     68,480,000' in text
  for note in cost_table.NOTES:
    assert note in text


def test_what_a_backend_does_not_say_is_left_open(costs):
  unknown = {
    name: dataclasses.replace(row, flops_xla=None, peak_bytes=None)
    for name, row in costs.items()
  }
  table = cost_table.text(unknown, SETTING).split('\n\n')[1]
  assert table.count('n/a') == 2 * (len(costs) + 1)


def test_stray_arguments_are_refused():
  with pytest.raises(app.UsageError, match='slides'):
    cost.main(['cost', 'slides'])
