"""The benchmark: its gate, its turns, its budget, what it prints."""

import time

import jax
import numpy as np
import pytest

pytest.importorskip('torch')
# What follows imports torch.
from experiments.benchmarks import (
  bags,
  contest,
  jax_side,
  parity,
  report,
  suite,
  timing,
  torch_side,
  work,
)

ROW = {
  'part': str, 'model': str, 'instances': int, 'runs': int,
  'torch_s': float, 'jax_s': float, 'ratio': float,
  'torch_best_s': float, 'jax_best_s': float,
  'torch_form': str, 'torch_compile_s': float, 'jax_compile_s': float,
  'fraction': float, 'bound': str, 'repeats': int, 'torch_forms': dict,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
  """Products of 2,048 and copies of 256 MiB are for quiet machines.

  So are threads for every core: torch's wait for each other busily.
  """
  small = dict.fromkeys(suite.ceilings.SIDES, (64, 2**12))
  monkeypatch.setattr(suite.ceilings, 'SIDES', small)
  monkeypatch.setattr(torch_side.os, 'sched_getaffinity', lambda _: {0})


SMALL = {'repeats': 1, 'compile_s': 0.0, 'cached_programs': True}


def measure(**settings):
  return suite.run(suite.Settings(**SMALL | settings), lambda _: 0)


def check_rows(measured, expected):
  assert [
    (row['part'], row['model'], row['instances'], row['runs'])
    for row in measured['rows']
  ] == expected
  for row in measured['rows']:
    assert {name: type(value) for name, value in row.items()} == ROW
    assert row['torch_s'] > 0 and row['jax_s'] > 0 and row['fraction'] > 0
    assert row['ratio'] == pytest.approx(row['torch_s'] / row['jax_s'])
    assert row['torch_form'] in row['torch_forms']
    assert row['bound'] in ('compute', 'memory')
    assert row['repeats'] == 1


@pytest.mark.parametrize(
  'part,models', [('step', ['kmil']), ('inference', ['dsmil', 'dtfd'])]
)
def test_several_runs_are_measured(part, models):
  measured = measure(parts=[part], models=models, instances=[16], runs=[2])
  check_rows(measured, [(part, model, 16, 2) for model in models])
  assert measured['not_measured'] == []
  for row in measured['rows']:
    assert set(row['torch_forms']) == {'loop', 'vmap'}
    assert all(isinstance(s, float) for s in row['torch_forms'].values())
  for printed in (report.text(measured), report.markdown(measured)):
    assert all(model in printed for model in models)


def test_an_epoch_and_the_trunk_are_measured():
  measured = measure(
    parts=['trunk', 'epoch'],
    models=['kmil'],
    instances=[16],
    cohort=10,
    tile=32,
    tiles=2,
  )
  check_rows(measured, [('trunk', 'resnet50', 2, 1), ('epoch', 'kmil', 16, 10)])
  assert 'tiles/s' in report.text(measured)


def test_transmil_is_measured():
  asked = {'models': ['transmil'], 'instances': [16], 'runs': [1]}
  check_rows(
    measure(parts=['inference'], **asked), [('inference', 'transmil', 16, 1)]
  )


@pytest.mark.parametrize('model', suite.MODELS)
def test_the_gate_opens_for_equal_weights_only(model):
  (module,) = torch_side.make(model, 1, seed=0)
  params = jax_side.params_of(model, module)
  bag = bags.equal_bags(1, 9, seed=0).bag(0)
  parity.check_logits(model, module, params, bag)
  for name, weight in module.named_parameters():
    if name.endswith(('classifiers.bias', 'fcc.bias', '_fc2.bias', 'fc.bias')):
      weight.data += 0.01
  with pytest.raises(parity.ParityError, match=f'{model}, 9 instances'):
    parity.check_logits(model, module, params, bag)


def test_a_closed_gate_stops_the_benchmark(monkeypatch):
  port = jax_side.params_of
  other = lambda model, module: port(model, torch_side.make(model, 1, 1)[0])
  monkeypatch.setattr(jax_side, 'params_of', other)
  with pytest.raises(parity.ParityError, match='nothing is timed'):
    measure(parts=['step'], models=['abmil'], instances=[8], runs=[1])


def test_sides_take_turns_and_turn_round():
  calls = []
  sides = {name: lambda name=name: calls.append(name) for name in 'ab'}
  seconds = timing.interleave(sides, 3, timing.Budget(None))
  assert ''.join(calls) == 'abbaab'
  assert {name: len(s) for name, s in seconds.items()} == {'a': 3, 'b': 3}


def test_a_budget_cuts_repeats_for_both_sides():
  sides = {'a': lambda: time.sleep(0.01), 'b': lambda: time.sleep(0.4)}
  seconds = timing.interleave(sides, 9, timing.Budget(1.0))
  assert len(seconds['a']) == len(seconds['b']) == 2


def test_a_spent_budget_measures_nothing_and_says_so():
  start = time.monotonic()
  measured = measure(
    parts=['step'], models=['abmil', 'dtfd'], instances=[8], budget_s=1e-3
  )
  assert time.monotonic() - start < 10
  assert measured['rows'] == []
  assert [
    (entry['model'], entry['runs'], entry['reason'])
    for entry in measured['not_measured']
  ] == [
    (model, runs, 'out of time') for runs in (1, 10)
    for model in ('abmil', 'dtfd')
  ]  # fmt: skip
  assert report.text(measured).count('Not measured') == 4


def test_what_memory_does_not_hold_is_not_tried(monkeypatch):
  monkeypatch.setattr(suite.parallel, 'memory_bytes', lambda: 2**24)
  measured = measure(
    parts=['step'], models=['transmil'], instances=[2**14], runs=[10]
  )
  assert measured['rows'] == []
  (entry,) = measured['not_measured']
  assert 'GiB' in entry['reason']


def test_torch_does_not_train_at_once_what_memory_does_not_hold(monkeypatch):
  if jax.default_backend() != 'cpu':
    pytest.skip('only CPUs train runs one by one')

  def refuse(ours, theirs, **options):
    with pytest.raises(MemoryError, match='GiB'):
      theirs['vmap']()
    theirs['loop']()
    raise contest.NoForm('looked at')

  monkeypatch.setattr(contest, 'hold', refuse)
  monkeypatch.setattr(suite.parallel, 'memory_bytes', lambda: 2**23)
  measured = measure(
    parts=['step'], models=['abmil'], instances=[64], runs=[10]
  )
  (missing,) = measured['not_measured']
  assert missing['reason'] == 'looked at'


def test_an_entry_that_torch_cannot_do_ends_no_other(monkeypatch):
  hold = contest.hold

  def first_fails(*args, **options):
    monkeypatch.setattr(contest, 'hold', hold)
    raise contest.NoForm('nothing works')

  monkeypatch.setattr(contest, 'hold', first_fails)
  measured = measure(
    parts=['inference'], models=['abmil', 'dsmil'], instances=[64], runs=[1]
  )
  (missing,) = measured['not_measured']
  assert (missing['model'], missing['reason']) == ('abmil', 'nothing works')
  assert [row['model'] for row in measured['rows']] == ['dsmil']


def test_the_fastest_form_that_works_competes():
  def broken():
    raise ValueError('not here')

  late = f'late{contest.COMPILED}'
  forms = {
    'slow': lambda: lambda: time.sleep(0.05),
    'broken': broken,
    late: lambda: lambda: time.sleep(60),
    'fast': lambda: lambda: time.sleep(0.01),
  }
  result = contest.hold(
    lambda: lambda: None,
    forms,
    repeats=2,
    budget=timing.Budget(None),
    limit=1.0,
  )
  assert result.torch_form == 'fast'
  assert result.torch_forms['broken'] == 'ValueError: not here'
  assert result.torch_forms[late] == 'out of time'
  assert result.torch_s > result.jax_s
  with pytest.raises(contest.NoForm, match='not here'):
    contest.hold(
      lambda: lambda: None,
      {'broken': broken},
      repeats=1,
      budget=timing.Budget(None),
      limit=1.0,
    )


def test_folds_train_on_eight_tenths():
  trains = bags.training_parts(20)
  np.testing.assert_array_equal(trains.sum(1), 16)
  np.testing.assert_array_equal(trains.sum(0), 8)


def test_bag_lengths_stay_in_bounds():
  cohort = bags.ragged_bags(200, 100, 160, seed=0)
  assert cohort.length.max() == 160 and 80 < np.median(cohort.length) < 120
  assert len(cohort.features) == cohort.length.sum()
  np.testing.assert_array_equal(cohort.bag(3), cohort.features[
    cohort.offset[3] : cohort.offset[4]
  ])  # fmt: skip


def test_work_counts_what_abmil_multiplies():
  """Two products with the features, of 256 columns each, and small ones."""
  n, width = 1000, bags.WIDTH
  forward = work.inference('abmil', n, 1, 0, 4)
  assert forward.flops == 2 * (n * width * 513 + n * 256)
  step = work.step('abmil', n, 3, 0, 4)
  assert step.flops == 3 * 2 * (2 * n * width * 513 + 3 * n * 256)
  assert step.bytes == 2 * n * width * 4
  # He et al. give 3.8 GFLOPs for all four stages at 224 pixels, the fourth
  # having 0.8; strides in the 3 x 3 convolutions add some.
  assert 3.0e9 < work.trunk(1, 224, 0, 4).flops / 2 < 3.6e9
