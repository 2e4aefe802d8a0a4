"""The benchmark: its gate, its turns, what it prints."""

import json
import time

import numpy as np
import pytest

pytest.importorskip('torch')
# What follows imports torch.
from data import slides, tiff
from experiments import benchmark
from experiments.benchmarks import gpu, jax_side, suite, torch_models
from experiments.benchmarks.work import MODELS, Work, table
from experiments.run import options

ROW = {
  'part', 'model', 'instances', 'runs', 'torch_s', 'jax_s', 'ratio',
  'torch_best_s', 'jax_best_s', 'torch_form', 'torch_compile_s',
  'jax_compile_s', 'repeats', 'torch_forms', 'precision', 'torch_peak_MB',
}  # fmt: skip
COUNTS = {'launches', 'jax_temp_MB', 'jax_peak_MB'}


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
  """Threads for every core are for quiet machines: torch's wait for each other.

  So are many steps.
  """
  monkeypatch.setattr(suite.os, 'sched_getaffinity', lambda _: {0})
  monkeypatch.setattr(suite, '_MOST_STEPS', 2)
  monkeypatch.setattr(suite, 'BAGS', {'cpu': 10})


def measure(**options):
  work = Work(repeats=1, compile=False, instances=(16,), **options)
  return suite.run(work, lambda _: 0)


def check_rows(measured, *expected):
  names = 'part', 'model', 'instances', 'runs'
  assert [tuple(row[name] for name in names) for row in measured['rows']] == [
    *expected
  ]
  for row in measured['rows']:
    assert row.keys() == ROW | (COUNTS if row['part'] != 'encode' else set())
    assert all(row[name] > 0 for name in COUNTS & row.keys())
    assert row['torch_s'] > 0 and row['jax_s'] > 0
    assert row['ratio'] == pytest.approx(row['torch_s'] / row['jax_s'])
    assert row['torch_form'] in row['torch_forms']


def test_steps_and_epochs_are_measured_on_the_same_instances(monkeypatch):
  kept = {}
  steps, visits = jax_side.steps, suite.torch_side.Visits

  def ours(model, weights, store, keep, *args):
    kept['ours'] = keep.sum()
    return steps(model, weights, store, keep, *args)

  class Theirs(visits):
    def __init__(self, *args):
      super().__init__(*args)
      kept['theirs'] = sum(map(len, self.bags))

  monkeypatch.setattr(jax_side, 'steps', ours)
  monkeypatch.setattr(suite.torch_side, 'Visits', Theirs)
  measured = measure(parts=('step',), models=('kmil',), runs=(2,))
  check_rows(measured, ('step', 'kmil', 16, 2))
  assert kept['ours'] == kept['theirs'] == 28
  forms = measured['rows'][0]['torch_forms']
  assert set(forms) == {'loop', 'vmap'}
  assert all(isinstance(seconds, float) for seconds in forms.values())
  measured = measure(parts=('epoch',), models=('kmil',))
  check_rows(measured, ('epoch', 'kmil', 16, 10))
  assert kept['ours'] == kept['theirs']
  for printed in (table(measured).terminal(), table(measured).markdown()):
    assert 'kmil' in printed


def test_folds_train_on_eight_tenths():
  trains = suite.training_parts(20)
  np.testing.assert_array_equal(trains.sum(1), 16)
  np.testing.assert_array_equal(trains.sum(0), 8)


def test_encoders_of_equal_features_are_timed(monkeypatch):
  monkeypatch.setattr(suite, 'TILES', {'cpu': 5})
  monkeypatch.setattr(suite, '_SIDE', 32)
  monkeypatch.setattr(suite.torch_side, '_BATCHES', (2, 5))
  measured = measure(parts=('encode',))
  names = 'efficientnet_lite0', 'resnet50_trunk'
  check_rows(measured, *[('encode', name, 5, 1) for name in names])
  for row in measured['rows']:
    assert set(row['torch_forms']) == {'2 tiles', '5 tiles'}
    rates = [5 / row[f'{side}_s'] for side in ('torch', 'jax')]
    line = '{:.0f} tiles/s in torch, {:.0f} tiles/s in kmil_jax'.format(*rates)
    assert line in table(measured).terminal()
  other = np.ones((5, 1280), np.float32)
  monkeypatch.setattr(jax_side, 'encoding', lambda *_: lambda: other)
  with pytest.raises(suite.ParityError, match='efficientnet_lite0: features'):
    measure(parts=('encode',))


def test_the_readers_of_a_slide_are_timed(tmp_path, capsys):
  path = tmp_path / 'a.tiff'
  tiff.write(path, np.full((300, 600, 3), 90, np.uint8), mpp=0.5, levels=1)
  benchmark.main(['benchmark', f'--slide={path}', '--repeats=1'])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('a.tiff: tiles per second')
  assert [line.split()[0] for line in lines[2:]] == [*slides.READERS]
  with pytest.raises(SystemExit, match='absent'):
    benchmark.main(['benchmark', f'--slide={tmp_path / "absent.tiff"}'])


def test_the_command_prints_json(capsys):
  benchmark.main([
    'benchmark', '--models=dtfd', '--instances=16', '--runs=1',
    '--parts=step', '--repeats=1', '--compile_s=0', '--format=json',
  ])  # fmt: skip
  measured = json.loads(capsys.readouterr().out)
  check_rows(measured, ('step', 'dtfd', 16, 1))
  assert not measured['settings']['compile']
  (work,) = options.parse(['benchmark', '--compile_s=60'], (Work,))
  assert work.compile


@pytest.mark.parametrize('model', MODELS)
def test_the_gate_opens_for_equal_weights_only(model):
  module = torch_models.MODELS[model](5, suite.WIDTH).eval()
  weights = suite.weights_of(model, module)
  bag = suite.cohort(np.array([9]), seed=0).features[:9]
  suite.check(model, module, weights, bag)
  for name, weight in module.named_parameters():
    if name.endswith(('classifiers.bias', 'fcc.bias', '_fc2.bias', 'fc.bias')):
      weight.data[0] += 0.01
  with pytest.raises(suite.ParityError, match=f'{model}, 9 instances'):
    suite.check(model, module, weights, bag)


def test_a_closed_gate_stops_the_benchmark(monkeypatch):
  port = suite.weights_of
  other = lambda model, _: port(model, torch_models.ABMIL(5, suite.WIDTH))
  monkeypatch.setattr(suite, 'weights_of', other)
  with pytest.raises(suite.ParityError, match='Nothing is timed'):
    measure(parts=('step',), models=('abmil',), runs=(1,))


def test_sides_take_turns_and_the_fastest_form_that_works_competes():
  calls = []
  side = lambda name: lambda: lambda: calls.append(name)
  suite.contest(side('a'), {'loop': side('b')}, 1, 3)
  assert ''.join(calls) == 'aa' + 'bbbb' + 'abbaab'

  def broken():
    raise ValueError('not here')

  ours = lambda: lambda: None
  forms = {
    'slow': lambda: lambda: time.sleep(0.05),
    'broken': broken,
    'fast': lambda: lambda: time.sleep(0.01),
  }
  row = suite.contest(ours, forms, 1, 2)
  assert (row['torch_form'], row['repeats']) == ('fast', 2)
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
  measured = measure(parts=('step',), models=('abmil', 'dsmil'), runs=(1,))
  (missing,) = measured['not_measured']
  assert (missing['model'], missing['reason']) == ('abmil', 'nothing works')
  assert [row['model'] for row in measured['rows']] == ['dsmil']
  assert 'nothing works' in table(measured).terminal()


def run_gpu(folder, *flags):
  gpu.main(['gpu', '--smoke', f'--output={folder / "report"}', *flags])
  return json.loads((folder / 'report.json').read_text('utf-8'))


def test_the_gpu_report_in_small_has_figures_of_every_part(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(gpu, 'MODELS', ('abmil', 'dsmil'))
  monkeypatch.setattr(suite, '_SIDE', 32)
  report = run_gpu(tmp_path)
  assert report['not_measured'] == []
  rows = [(r['part'], r['model'], r['runs']) for r in report['rows']]
  steps = [('step', model, r) for r in (2, 1) for model in ('abmil', 'dsmil')]
  encoders = [('encode', name, 1) for name in jax_side.NETWORKS]
  expected = [*steps[:2], ('epoch', 'kmil', 10), *encoders, *steps[2:]]
  assert rows == 2 * expected
  for row in report['rows']:
    figures = row.keys() & {'jax_s', 'torch_s', 'ratio', *COUNTS}
    assert all(0 < row[name] < np.inf for name in figures)
  written = (tmp_path / 'report.md').read_text('utf-8')
  assert all(f'| {name} |' in written for name in ('kmil', *jax_side.NETWORKS))


def test_without_time_every_part_of_the_gpu_report_is_named_as_skipped(
  tmp_path,
):
  report = run_gpu(tmp_path, '--seconds=0')
  assert report['rows'] == []
  skipped = report['not_measured']
  assert len(skipped) == 2 * (2 * len(MODELS) + 1 + len(jax_side.NETWORKS))
  assert {row['part'] for row in skipped} == {'step', 'epoch', 'encode'}
  assert all('skipped: 0 s are left' in row['reason'] for row in skipped)
  written = (tmp_path / 'report.md').read_text('utf-8')
  assert written.count('not measured') == len(skipped)


def test_without_torch_kmil_jax_is_timed_alone(monkeypatch):
  monkeypatch.setattr(suite, 'torch', None)
  monkeypatch.setattr(suite, '_SIDE', 32)
  measured = measure(parts=('step', 'encode'), models=('kmil',), tiles=2)
  assert measured['not_measured'] == []
  assert len(measured['rows']) == 4
  for row in measured['rows']:
    assert row['jax_s'] > 0 and row['torch_s'] is row['ratio'] is None
  assert table(measured).markdown().count('not installed') == 4
