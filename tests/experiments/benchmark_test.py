"""The benchmark: its gate, its turns, what it prints."""

import dataclasses
import json
import subprocess
import sys
import time

import next_command
import numpy as np
import pytest

pytest.importorskip('torch')
# What follows imports torch.
from data import slides, tiff
from experiments import benchmark, gpu_report
from experiments.benchmarks import jax_side, suite, torch_models
from experiments.benchmarks.work import MODELS, Entry, Work, table
from experiments.run import options

pytestmark = pytest.mark.slow

ROW = {
  'part', 'model', 'instances', 'runs', 'torch_s', 'jax_s', 'ratio',
  'torch_best_s', 'jax_best_s', 'torch_form', 'torch_compile_s',
  'jax_compile_s', 'repeats', 'torch_forms', 'precision', 'bags',
  'torch peak (MB)',
}  # fmt: skip


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
    assert row.keys() == ROW
    assert row['torch_s'] > 0 and row['jax_s'] > 0
    assert row['ratio'] == pytest.approx(row['torch_s'] / row['jax_s'])
    assert row['torch_form'] in row['torch_forms']


def test_steps_and_epochs_are_measured_on_the_same_instances(monkeypatch):
  kept = {}
  steps, bags_of = jax_side.steps, suite.torch_side.bags_of

  def ours(visits, weights):
    kept['ours'] = visits.keep.sum(1).tolist()
    return steps(visits, weights)

  def theirs(visits):
    seen = bags_of(visits)
    kept['theirs'] = [sum(map(len, bags)) for bags in seen]
    return seen

  monkeypatch.setattr(jax_side, 'steps', ours)
  monkeypatch.setattr(suite.torch_side, 'bags_of', theirs)
  measured = measure(parts=('step',), models=('kmil',), runs=(2,))
  check_rows(measured, ('step', 'kmil', 16, 2))
  assert kept['ours'] == kept['theirs'] == [28, 28]
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
  check_rows(measured, ('encode', 'efficientnet_lite0', 5, 1))
  (row,) = measured['rows']
  assert set(row['torch_forms']) == {'2 tiles', '5 tiles'}
  rates = [5 / row[f'{side}_s'] for side in ('torch', 'jax')]
  line = '{:.0f} tiles/s in torch, {:.0f} in kmil_jax'.format(*rates)
  assert line in table(measured).terminal()
  other = np.ones((5, 1280), np.float32)
  monkeypatch.setattr(jax_side, 'encoding', lambda *_: lambda: other)
  with pytest.raises(suite.ParityError, match='efficientnet_lite0: features'):
    measure(parts=('encode',))


def test_the_readers_of_a_slide_are_timed(tmp_path, capsys):
  path = tmp_path / 'a.tiff'
  tiff.write(path, np.full((300, 600, 3), 90, np.uint8), mpp=0.5, levels=1)
  benchmark.main(['benchmark', f'--slide={path}', '--repeats=1'])
  printed = capsys.readouterr()
  assert next_command.read(printed.err) == ('cost', [])
  lines = printed.out.splitlines()
  assert lines[0].startswith('a.tiff: tiles per second')
  assert [line.split()[0] for line in lines[2:]] == [*slides.READERS]
  with pytest.raises(SystemExit, match='absent'):
    benchmark.main(['benchmark', f'--slide={tmp_path / "absent.tiff"}'])
  with pytest.raises(SystemExit, match='--format has no effect with --slide'):
    benchmark.main(['benchmark', f'--slide={path}', '--format=json'])


def test_the_command_prints_json(capsys):
  benchmark.main([
    'benchmark', '--models=dtfd', '--instances=16', '--runs=1',
    '--parts=step', '--repeats=1', '--compile_s=0', '--format=json',
  ])  # fmt: skip
  printed = capsys.readouterr()
  measured = json.loads(printed.out)
  assert next_command.read(printed.err) == ('cost', [])
  check_rows(measured, ('step', 'dtfd', 16, 1))
  assert not measured['settings']['compile']
  (work,) = options.parse(['benchmark', '--compile_s=60'], (Work,))
  assert work.compile


@pytest.mark.parametrize('model', MODELS)
def test_the_gate_opens_for_equal_weights_only(model):
  module = torch_models.MODELS[model](5, suite.WIDTH).eval()
  weights = suite.torch_side.weights_of(model, module)
  bag = suite.cohort(np.array([9]), seed=0).features[:9]
  suite.check(model, module, weights, bag)
  for name, weight in module.named_parameters():
    if name.endswith(('classifiers.bias', 'fcc.bias', '_fc2.bias', 'fc.bias')):
      weight.data[0] += 0.01
  with pytest.raises(suite.ParityError, match=f'{model}, 9 instances'):
    suite.check(model, module, weights, bag)


def test_a_closed_gate_stops_the_benchmark(monkeypatch):
  port = suite.torch_side.weights_of
  other = lambda model, _: port(model, torch_models.ABMIL(5, suite.WIDTH))
  monkeypatch.setattr(suite.torch_side, 'weights_of', other)
  with pytest.raises(suite.ParityError, match='Nothing is timed'):
    measure(parts=('step',), models=('abmil',), runs=(1,))


def test_sides_take_turns_and_the_fastest_form_that_works_competes():
  calls = []
  side = lambda name: lambda: lambda: calls.append(name)
  suite.contest(side('a')(), {'loop': side('b')}, 1, 3)
  assert ''.join(calls) == 'aa' + 'bbbb' + 'abbaab'

  def broken():
    raise ValueError('not here')

  ours = lambda: None
  forms = {
    'slow': lambda: lambda: time.sleep(0.05),
    'broken': broken,
    'fast': lambda: lambda: time.sleep(0.01),
  }
  row = suite.contest(ours, forms, 1, 2)
  assert (row['torch_form'], row['repeats']) == ('fast', 2)
  assert row['torch_forms']['broken'] == 'ValueError: not here'
  assert row['torch_s'] > row['jax_s']
  row = suite.contest(ours, {'broken': broken}, 1, 1)
  assert row['jax_s'] > 0 and row['torch_s'] is row['ratio'] is None
  assert row['torch_form'] == 'ValueError: not here'


def report(monkeypatch, folder, *entries, **flags):
  """The GPU's report of these rows, in small, and its table."""
  monkeypatch.setattr(gpu_report.Day, 'entries', lambda day: entries)
  path = folder / 'report'
  flags = [f'--{name}={value}' for name, value in flags.items()]
  gpu_report.main(['gpu_report', '--smoke', f'--output={path}', *flags])
  read = lambda ending: path.with_suffix(ending).read_text('utf-8')
  return json.loads(read('.json')), read('.md')


def test_the_gpu_report_has_figures_of_every_part(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(suite, '_SIDE', 32)
  entries = (
    Entry('step', 'dsmil', 16, 2, 'bfloat16'),
    Entry('epoch', 'kmil', 16, 10, 'float32', 10),
    Entry('encode', 'resnet50', 4, 1, 'float32'),
  )
  measured, text = report(monkeypatch, tmp_path, *entries)
  assert next_command.read(capsys.readouterr().err)[0] == 'compile_report'
  assert measured['not_measured'] == [] and len(measured['rows']) == 3
  for row, entry in zip(measured['rows'], entries, strict=True):
    assert min(row['jax_s'], row['torch_s'], row['ratio']) > 0
    assert f'| {entry.part} | {entry.model} | {entry.instances} |' in text
    if entry.part != 'encode':
      assert min(row['kernels'], row['MB'], row['arguments (GB)']) > 0


def test_what_the_gpu_report_has_not_measured_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr(suite, 'LACKING', ImportError("No module named 'torch'"))
  monkeypatch.setattr(gpu_report.sys, 'executable', 'absent')
  step = Entry('step', 'dsmil', 16, 1)
  compiled = dataclasses.replace(step, part='compiled for H200')
  measured, text = report(monkeypatch, tmp_path, step, compiled)
  (row,) = measured['rows']
  assert row['jax_s'] > 0 and row['torch_s'] is row['ratio'] is None
  figures = next(line for line in text.splitlines() if '| dsmil |' in line)
  assert figures.split(' | ')[5:9] == [
    'n/a', f'{row["jax_s"]:.3g}', 'n/a', "ImportError: No module named 'torch'"
  ]  # fmt: skip
  (missing,) = measured['not_measured']
  assert missing['part'] == compiled.part and 'absent' in missing['reason']
  assert 'not measured: compiled for H200, dsmil, 16, 1, float32' in text
  later, text = report(monkeypatch, tmp_path, step, seconds=0)
  assert later['rows'] == []
  assert 'not measured: step, dsmil, 16, 1, float32, the time' in text


def test_the_gpu_report_needs_none_of_what_other_scripts_need():
  absent = (
    'h5py huggingface_hub matplotlib openslide orbax PIL safetensors sklearn'
    ' tensorflow tensorflow_datasets timm torch'
  )
  code = (
    f'import sys; sys.modules |= dict.fromkeys({absent.split()});'
    'from experiments import gpu_report; import experiments.benchmarks.suite'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
