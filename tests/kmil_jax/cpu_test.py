"""Both forms of a program agree, and each platform gets its own."""

import dataclasses
import functools

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.inference import PLATFORMS
from kmil_jax.models import SPECS, cpu, network
from kmil_jax.models.convolutions import convolution, max_pool

IN_TURN = dataclasses.replace(SPECS['dsmil'], one_by_one=True)
AT_ONCE = dataclasses.replace(SPECS['dsmil'], one_by_one=False)
OPTIONS = {
  'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
  'lhs_dilation': (1, 1),
  'rhs_dilation': (1, 1),
  'precision': None,
}


def convolved(x, kernel, stride=1, padding=0, **options):
  options = {'feature_group_count': 1} | OPTIONS | options
  padding = ((padding, padding),) * 2
  return convolution(x, kernel, (stride, stride), padding, **options)


def forms_of(f, cpus, others, *cases):
  """A function's cases, and operations that only CPUs, or others, take."""
  return [
    (functools.partial(f, **options), shapes, cpus, others)
    for *shapes, options in cases
  ]


dense = network.product
folds = lambda x, w: cpu.map_folds(IN_TURN, lambda w: {'y': x @ w}, w)
tiles = lambda x, w: cpu.map_tiles(lambda x: jnp.einsum('thc,cd->thd', x, w), x)
EACH = {'padding': 1, 'feature_group_count': 4}
CASES = [
  *forms_of(
    *(convolved, 'dot_general', 'convolution'),
    ((2, 2, 2, 5), (3, 3, 5, 4), {'padding': 1}),
    ((2, 3, 3, 5), (3, 3, 5, 4), {'padding': 1, 'stride': 2}),
    ((2, 1, 4, 5), (5, 5, 5, 4), {'padding': 2, 'stride': 2}),
    ((2, 5, 4, 3), (1, 1, 3, 4), {'pointwise': True}),
    ((2, 5, 4, 3), (1, 1, 3, 4), {'pointwise': True, 'stride': 2}),
  ),
  *forms_of(
    *(convolved, 'slice', 'convolution'),
    ((2, 5, 8, 4), (3, 3, 1, 4), EACH),
    ((2, 5, 8, 4), (3, 3, 1, 4), EACH | {'stride': 2}),
    ((2, 5, 8, 4), (4, 2, 1, 4), EACH),
  ),
  *forms_of(
    *(max_pool, 'multiply', 'reduce_window'),
    ((2, 7, 10, 3), {'size': 3, 'stride': 2, 'padding': ((1, 1), (1, 1))}),
    ((2, 7, 10, 3), {'size': 3, 'stride': 1, 'padding': ((1, 1), (1, 1))}),
    ((2, 7, 10, 3), {'size': 3, 'stride': 2, 'padding': ((0, 0), (0, 1))}),
    ((2, 7, 10, 3), {'size': 2, 'stride': 2, 'padding': ((0, 1), (0, 0))}),
  ),
  (dense, [(2, 3, 7), (5, 7)], 'optimization_barrier', None),
  (jax.vmap(dense), [(2, 3, 7), (2, 5, 7)], 'optimization_barrier', None),
  (folds, [(5, 3), (4, 3, 2)], 'while', None),
  (tiles, [(9, 4, 3), (3, 2)], 'while', None),
]


def with_gradients(f):
  def run(*args):
    y, pull = jax.vjp(f, *args)
    return y, pull(jax.tree.map(jnp.sin, y))

  return jax.jit(run)


def program(f, args, *platforms):
  """`f`, lowered for all of the platforms."""
  with cpu.lowering_for(platforms[0] if len(platforms) == 1 else None):
    return export.export(f, platforms=platforms)(*args)


def close(a, b):
  close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4)
  jax.tree.map(close, a, b)


@pytest.mark.parametrize('f,shapes,cpus,others', CASES)
def test_forms_agree_and_go_to_their_platforms(f, shapes, cpus, others):
  rng = np.random.default_rng(0)
  args = [np.float32(rng.normal(size=shape)) for shape in shapes]
  f = with_gradients(f)
  outputs = []
  for platform in ('cpu', 'tpu'):
    with cpu.lowering_for(platform):
      outputs.append(f(*args))
  close(*outputs)

  of_all = program(f, args, *PLATFORMS)
  close(of_all.call(*args), outputs[0])
  has = lambda program: {
    name for name in (cpus, others) if f'stablehlo.{name}' in program
  }
  assert has(of_all.mlir_module()) == {cpus, others} - {None}
  for platform in PLATFORMS:
    alone = program(f, args, platform).mlir_module()
    assert has(alone) == {cpus if platform == 'cpu' else others} - {None}


def test_a_program_is_traced_anew_for_another_platform():
  f = jax.jit(lambda x: cpu.choose(jnp.sin, jnp.cos, x))
  for platform, want in (('cpu', 0.0), ('cuda', 1.0), ('cpu', 0.0)):
    with cpu.lowering_for(platform):
      assert f(0.0) == want
  assert f(0.0) == (0.0 if jax.default_backend() == 'cpu' else 1.0)


def test_choices_within_a_form_do_not_multiply():
  inner = lambda x: cpu.choose(jnp.sin, jnp.cos, x)
  outer = lambda x: cpu.choose(inner, lambda x: inner(x) + 1, x)
  outputs = program(jax.jit(outer), (np.float32(0),), *PLATFORMS)
  text = outputs.mlir_module()
  assert text.count('stablehlo.sine') == text.count('stablehlo.cosine') == 1


def test_runs_go_one_by_one_on_cpus_alone():
  for spec, count, length, want in [
    (AT_ONCE, 10, 256, False),
    (AT_ONCE, 10, 4096, True),
    (AT_ONCE, 1, 256, True),
    (IN_TURN, 10, 256, True),
  ]:
    for platform in PLATFORMS:
      with cpu.lowering_for(platform):
        in_turn = cpu.one_by_one(spec, count, length)
        assert in_turn == (want and platform == 'cpu')
