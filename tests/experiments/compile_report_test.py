"""Compiled programs as text, and the forms that accelerators take."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys

import jax
from jax.sharding import Mesh
import next_command
import numpy as np
import pytest

from experiments import compile_report
from experiments.benchmarks import hlo
from experiments.benchmarks.compiled import Compiled
from kmil_jax import parallel

TEXT = """HloModule m

%product (p.0: f32[8,4], p.1: f32[4,2]) -> f32[8,2] {
  %p.0 = f32[8,4]{1,0} parameter(0)
  %p.1 = f32[4,2]{1,0} parameter(1)
  ROOT %dot = f32[8,2]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}PRECISION
}

%inner (i: (f32[8,4], f32[4,2])) -> f32[8,2] {
  %i = (f32[8,4]{1,0}, f32[4,2]{1,0}) parameter(0)
  %a = f32[8,4]{1,0} get-tuple-element(%i), index=0
  %b = f32[4,2]{1,0} get-tuple-element(%i), index=1
  ROOT %f = f32[8,2]{1,0} fusion(%a, %b), kind=kCustom, calls=%product
}

%outer (o: f32[8,4]) -> f32[8,4] {
  %o = f32[8,4]{1,0} parameter(0)
  %w = f32[8,2]{1,0} while(%o), condition=%c, body=%inner, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %copy = f32[8,4]{1,0} copy(%o)
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  ROOT %scan = f32[8,4]{1,0} while(%x), condition=%c, body=%outer, \
backend_config={"known_trip_count":{"n":"9"}}
}
"""
THUNKS = """000: kWhile
    condition:
        000: kKernel
    body:
        000: kKernel
        001: kCommandBuffer
            000: kKernel
        002: kConditional
            000: kKernel
"""


@pytest.mark.parametrize(
  'precision,kind',
  [('', 'tf32'), (', operand_precision={highest,highest}', 'float32')],
)
def test_a_step_is_read_with_the_trips_of_its_loops(precision, kind):
  program = hlo.Program(TEXT.replace('PRECISION', precision))
  assert program.products == {kind: 1}
  step = program.step()
  assert step.control == {'conditionals': 0, 'loops': 1, 'trips': 3}
  assert len(step.kernels) == 4
  # Thrice 32 + 8 + 16 floats, and a copy of 32.
  assert step.bytes == 4 * (3 * (32 + 8 + 16) + 2 * 32)
  assert step.flops == 3 * 2 * 8 * 2 * 4
  assert step.kernels[0].flops == {kind: 128}


def test_collectives_are_counted_once_and_told_apart():
  gather = '  %g{0} = f32[8] all-gather(%x), channel_id={0}'
  hidden = [
    f'%async_collective_fusion.{i} (x: f32[2]) -> f32[8] {{' for i in '12'
  ]
  lines = [x for name in hidden for x in (name, gather.format(1), '}')]
  text = '\n'.join(
    [*lines, 'ENTRY %main (x: f32[2]) -> f32[8] {', gather.format(2)]
  )
  program = hlo.Program(text)
  assert (program.collectives, program.asynchronous) == (2, 1)


def test_each_branch_gathers_the_next_bag_of_a_spread_store():
  mesh = Mesh(np.array(jax.devices()), (parallel.AXIS,))
  work = Compiled(runs=2, bags=2, instances=(8, 16), store='spread')
  gathers = lambda work: (
    work.lower('dsmil', 'tpu', mesh).as_text().count('stablehlo.all_gather')
  )
  assert gathers(work) == 2 + 1  # And the first bag's, before the loop.
  assert not gathers(dataclasses.replace(work, store='resident'))


def test_what_the_host_launches():
  assert hlo.host_launches(THUNKS) == 3
  inside = '\n'.join(' ' * 4 + line for line in THUNKS.splitlines())
  assert hlo.host_launches('000: kCommandBuffer\n' + inside) == 0


@pytest.mark.parametrize('model', ['abmil', 'dsmil', 'dtfd', 'transmil'])
def test_no_model_takes_a_cpus_form_for_accelerators(model):
  mesh = Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
  work = Compiled(runs=2, bags=2, instances=(8,), precision='float32')
  # CPUs write factors out before they multiply them, see `cpu.transposed`; the
  # barriers of several arrays are those of `jax.checkpoint`.
  barriers = lambda platform: re.findall(
    r'optimization_barrier %\w+ :',
    work.lower(model, platform, mesh).as_text(),
  )
  assert barriers('cpu') and not barriers('tpu')


def test_products_are_lowered_as_precise_as_asked():
  mesh = Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
  exact = {}
  for precision in ('float32', 'tf32'):
    work = Compiled(runs=2, bags=2, instances=(300,), precision=precision)
    text = work.lower('dsmil', 'cuda', mesh).as_text()
    products = [x for x in text.splitlines() if 'dot_general' in x]
    exact[precision] = sum('[HIGHEST, HIGHEST]' in x for x in products)
  assert exact['float32'] == len(products) > 0
  assert exact['tf32'] == 0


# XLA itself writes some factors of a TPU's in bfloat16.
@pytest.mark.parametrize(
  'precision,kinds', [('float32', {'float32'}), ('tf32', {'tf32', 'bfloat16'})]
)
@pytest.mark.parametrize(
  'target,module', [('v5e:2x2', 'libtpu'), ('h200', 'jax_cuda12_plugin')]
)
def test_models_compile_where_jax_is_installed_for_it(
  target, module, precision, kinds
):
  if not importlib.util.find_spec(module):
    pytest.skip(f'{module} is not installed')
  command = 'experiments.compile_report', '--model=dsmil,abmil', '--runs=2'
  sizes = '--bags=2', '--instances=300', '--format=markdown'
  options = f'--target={target}', f'--precision={precision}'
  out = subprocess.run(
    [sys.executable, '-m', *command, *sizes, *options],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  for model in ('dsmil', 'abmil'):
    row = re.search(rf'^\| {model} \|.*', out, re.M)[0]
    found = set(re.findall(r'\d+ (float32|tf32|bfloat16)', row))
    assert found and found <= kinds


@pytest.mark.parametrize('target', ['h200', 'v5e:2x2'])
def test_the_command_after_a_report_is_one(monkeypatch, capsys, target):
  monkeypatch.setattr(Compiled, 'prepare', lambda self: None)
  monkeypatch.setattr(Compiled, 'row', lambda self, model: {})
  compile_report.main(['', f'--target={target}'])
  assert next_command.read(capsys.readouterr().err)[1] == []


def test_flags_of_one_graph_are_known_and_can_be_left_out(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')
  parallel.use_one_graph(False)
  assert not os.environ['XLA_FLAGS']
  parallel.use_one_graph(True)
  command = (
    'import jax; jax.devices()'  # It aborts if it knows one of them not.
  )
  subprocess.run([sys.executable, '-c', command], check=True)
