"""The costs of the models, as they are printed and beside the paper's."""

import dataclasses
import json

import next_command
import pytest

from experiments import cost, papers
from experiments.evaluation import costs
from experiments.papers.tables import MODELS
from kmil_jax.cost import Cost
from kmil_jax.models import SPECS

CLASS_TOKEN = 512


@pytest.fixture(scope='module')
def measured():
  """The costs of all models, in the paper's setting."""
  return costs.Slide().costs()


def test_what_the_papers_table_has_and_what_no_released_network_has(measured):
  paper = {
    model: papers.read('zheng')['table_3'].values[name,]
    for model, name in MODELS.items()
  }
  published = lambda name: paper[name]['parameters (K)']
  ours = {name: one.params for name, one in measured.items()}
  rounded = lambda params: round(params / 1e3, 1)
  for name in ('abmil', 'dtfd'):
    assert rounded(ours[name]) == published(name)
  assert rounded(ours['transmil'] - CLASS_TOKEN) == published('transmil')
  assert measured['transmil'].macs == 602_823_168
  known = paper['transmil']['operations (M), as the paper counts']
  assert round(602_823_168 / 1e6, 2) == known
  for name in ('dsmil', 'kmil'):
    assert published(name) not in map(rounded, ours.values())


def test_both_stages_are_the_sum_of_the_two(measured):
  both = costs.both_stages(measured, 'kmil')
  first, second = measured['abmil'], measured['kmil']
  assert both.params == 708_624 and both.macs == first.macs + second.macs
  assert both.peak_bytes == first.peak_bytes
  assert both.seconds == first.seconds + second.seconds
  assert costs.both_stages(measured, 'abmil') == first


def test_costs_are_printed_as_json_alone_or_as_a_table(
  measured, monkeypatch, capsys
):
  def printed(of, *args):
    monkeypatch.setattr(costs.Slide, 'costs', lambda self: of)
    cost.main(['cost', *args])
    return capsys.readouterr()

  out, err = printed(measured, '--format=json')
  found = json.loads(out)
  assert list(found) == list(SPECS)
  assert {name: Cost(**row) for name, row in found.items()} == measured
  assert all(value > 0 for row in found.values() for value in row.values())
  assert '100 instances of 1024 features, 5 classes' in err and 'jax ' in err
  assert next_command.read(err) == ('paper', ['--table=3'])
  lines = printed(measured).out.splitlines()
  for name, row in measured.items():
    (line,) = (x for x in lines if x.startswith(f'{name}  '))
    assert line.split()[1:3] == [f'{row.params:,}', f'{row.macs:,}']
  (line,) = (x for x in lines if x.startswith('kmil, both stages'))
  assert line.split()[3:5] == ['708,624', '68,480,000']
  # What a backend does not report is left open.
  unknown = {
    name: dataclasses.replace(row, flops_xla=None, peak_bytes=None)
    for name, row in measured.items()
  }
  assert printed(unknown).out.count('n/a') == 2 * (len(unknown) + 1)
