"""The benchmark: its gate, its turns, what it prints."""

import json
import time

import numpy as np
import pytest

pytest.importorskip('torch')
# What follows imports torch.
from experiments import benchmark
from experiments.benchmarks import jax_side, suite, torch_models
from experiments.benchmarks.work import MODELS, Work, table
from kmil_jax.inference import Design

ROW = {
  'part': str, 'model': str, 'instances': int, 'runs': int,
  'torch_s': float, 'jax_s': float, 'ratio': float,
  'torch_best_s': float, 'jax_best_s': float,
  'torch_form': str, 'torch_compile_s': float, 'jax_compile_s': float,
  'repeats': int, 'torch_forms': dict,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
  """Threads for every core are for quiet machines: torch's wait for each other.

  So are many steps.
  """
  monkeypatch.setattr(suite.os, 'sched_getaffinity', lambda _: {0})
  monkeypatch.setattr(suite, '_MOST_STEPS', 2)
  monkeypatch.setattr(suite, 'COUNTS', {'cpu': (10, 2), 'cuda': (10, 2)})
  monkeypatch.setattr(suite, 'TILE', 32)


def measure(**asked):
  work = Work(repeats=1, compile=False, instances=(16,), **asked)
  return suite.run(work, lambda _: 0)


def check_rows(measured, expected):
  assert [
    (row['part'], row['model'], row['instances'], row['runs'])
    for row in measured['rows']
  ] == expected
  for row in measured['rows']:
    assert {name: type(value) for name, value in row.items()} == ROW
    assert row['torch_s'] > 0 and row['jax_s'] > 0
    assert row['ratio'] == pytest.approx(row['torch_s'] / row['jax_s'])
    assert row['torch_form'] in row['torch_forms']
    assert row['repeats'] == 1


@pytest.mark.parametrize(
  'part,models', [('step', ('kmil',)), ('inference', ('dsmil', 'dtfd'))]
)
def test_several_runs_are_measured(part, models):
  measured = measure(parts=(part,), models=models, runs=(2,))
  check_rows(measured, [(part, model, 16, 2) for model in models])
  assert measured['not_measured'] == []
  for row in measured['rows']:
    assert set(row['torch_forms']) == {'loop', 'vmap'}
    assert all(isinstance(s, float) for s in row['torch_forms'].values())
  for printed in (table(measured).terminal(), table(measured).markdown()):
    assert all(model in printed for model in models)


def test_an_epoch_and_the_trunk_are_measured():
  measured = measure(parts=('trunk', 'epoch'), models=('kmil',))
  check_rows(measured, [('trunk', 'resnet50', 2, 1), ('epoch', 'kmil', 16, 10)])


def test_the_command_prints_json_of_transmil(capsys):
  benchmark.main([
    'benchmark', '--models=transmil', '--instances=16', '--runs=1',
    '--parts=inference', '--repeats=1', '--compile_s=0', '--format=json',
  ])  # fmt: skip
  measured = json.loads(capsys.readouterr().out)
  check_rows(measured, [('inference', 'transmil', 16, 1)])
  assert not measured['settings']['compile']


@pytest.mark.parametrize('model', MODELS)
def test_the_gate_opens_for_equal_weights_only(model):
  module = torch_models.MODELS[model](5, suite.WIDTH).eval()
  weights = jax_side.weights_of(model, module)
  design = Design(model=model, num_classes=5, width=suite.WIDTH)
  bag = suite.cohort(np.array([9]), seed=0).features[:9]
  suite.check(design, module, weights, bag)
  for name, weight in module.named_parameters():
    if name.endswith(('classifiers.bias', 'fcc.bias', '_fc2.bias', 'fc.bias')):
      weight.data[0] += 0.01
  with pytest.raises(suite.ParityError, match=f'{model}, 9 instances'):
    suite.check(design, module, weights, bag)


def test_a_closed_gate_stops_the_benchmark(monkeypatch):
  port = jax_side.weights_of
  other = lambda model, _: port(model, torch_models.ABMIL(5, suite.WIDTH))
  monkeypatch.setattr(jax_side, 'weights_of', other)
  with pytest.raises(suite.ParityError, match='Nothing is timed'):
    measure(parts=('step',), models=('abmil',), runs=(1,))


def test_sides_take_turns_and_turn_round():
  calls = []
  side = lambda name: lambda: lambda: calls.append(name)
  row = suite.contest(side('a'), {'loop': side('b')}, 1, 3)
  assert ''.join(calls) == 'aa' + 'bbbb' + 'abbaab'
  assert row['repeats'] == 3


def test_the_fastest_form_that_works_competes():
  def broken():
    raise ValueError('not here')

  ours = lambda: lambda: None
  forms = {
    'slow': lambda: lambda: time.sleep(0.05),
    'broken': broken,
    'fast': lambda: lambda: time.sleep(0.01),
  }
  row = suite.contest(ours, forms, 1, 2)
  assert row['torch_form'] == 'fast'
  assert row['torch_forms']['broken'] == 'ValueError: not here'
  assert row['torch_s'] > row['jax_s']
  with pytest.raises(suite.NoForm, match='not here'):
    suite.contest(ours, {'broken': broken}, 1, 1)


def test_an_entry_that_torch_cannot_do_ends_no_other(monkeypatch):
  contest = suite.contest

  def first_fails(*args):
    monkeypatch.setattr(suite, 'contest', contest)
    raise suite.NoForm('nothing works')

  monkeypatch.setattr(suite, 'contest', first_fails)
  measured = measure(parts=('inference',), models=('abmil', 'dsmil'), runs=(1,))
  (missing,) = measured['not_measured']
  assert (missing['model'], missing['reason']) == ('abmil', 'nothing works')
  assert [row['model'] for row in measured['rows']] == ['dsmil']
  assert 'nothing works' in table(measured).terminal()


def test_folds_train_on_eight_tenths():
  trains = suite.training_parts(20)
  np.testing.assert_array_equal(trains.sum(1), 16)
  np.testing.assert_array_equal(trains.sum(0), 8)


def test_both_sides_train_on_the_same_instances(monkeypatch):
  seen = {}
  steps, visits = jax_side.steps, suite.torch_side.Visits

  def ours(design, weights, store, keep, order, trains):
    seen['kept'] = keep.sum(1).tolist()
    return steps(design, weights, store, keep, order, trains)

  class Theirs(visits):
    def __init__(self, *args):
      super().__init__(*args)
      seen['bags'] = [sum(map(len, bags)) for bags in self.bags]

  monkeypatch.setattr(jax_side, 'steps', ours)
  monkeypatch.setattr(suite.torch_side, 'Visits', Theirs)
  measure(parts=('step',), models=('kmil',), runs=(2,))
  assert seen['kept'] == seen['bags'] == [28, 28]
