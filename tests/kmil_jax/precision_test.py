"""Products are as precise as asked on any hardware, gradients included."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_classifier import of_few_blocks

from experiments.encoding import encoder
from kmil_jax import inference, losses
from kmil_jax.inference import Design
from kmil_jax.models import CLASSIFIERS, SPECS, cpu, network
from kmil_jax.tasks import distill

HIGHEST = jax.lax.Precision.HIGHEST
PRODUCTS = ('dot_general', 'conv_general_dilated')
WIDTH, CLASSES = 12, 3
# TransMIL's iteration magnifies its errors; pictures are no part of a network.
ALWAYS_EXACT = ('_polynomials', '_resize')
# CPUs round nothing in any case.
PLACES = [('cpu', 'float32'), ('tpu', 'float32'), ('tpu', 'tf32')]
everywhere = pytest.mark.parametrize('platform,precision', PLACES)
shape = jax.ShapeDtypeStruct


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def products(f, *args):
  """Returns the products of float32: exact ones, and those rounded."""
  exact, inexact = [], []
  for e in equations(jax.make_jaxpr(f)(*args).jaxpr):
    types = {x.aval.dtype for x in e.invars}
    if e.primitive.name in PRODUCTS and types != {jnp.dtype('bfloat16')}:
      is_exact = e.params['precision'] == (HIGHEST, HIGHEST)
      (exact if is_exact else inexact).append(e)
  return exact, inexact


def assert_all(precision, f, *args):
  """Asserts that all products of float32 are exact, or that all are rounded."""
  exact, inexact = products(f, *args)
  wanted, others = exact, inexact
  if precision == 'tf32':
    is_named = lambda e: any(
      name in str(e.source_info.traceback) for name in ALWAYS_EXACT
    )
    wanted, others = inexact, [e for e in exact if not is_named(e)]
  assert wanted and not others, f'{len(others)}: {others[:2]}'


def shapes_of(model, *args, **kwargs):
  init = functools.partial(model.init, **kwargs)
  key = jax.random.key(0)
  return jax.eval_shape(init, {'params': key, 'dropout': key}, *args)


@functools.cache
def classifier_shapes(name):
  model = of_few_blocks(name)(num_classes=2)
  return shapes_of(model, jnp.ones((2, 32, 32, 3)), train=True)


def test_the_walk_sees_what_is_rounded():
  """Also in a loop, a compiled function and a gradient of its own."""
  x = jnp.ones((3, 3))
  loop = lambda x: jax.lax.map(lambda row: row @ x, x).sum()
  assert len(products(jax.grad(jax.jit(loop)), x)[1]) == 3
  dense = nn.Dense(2)
  params = shapes_of(dense, x)
  assert products(dense.apply, params, x)[1]


# TransMIL has programs of two kinds, for short bags and for long ones.
@everywhere
@pytest.mark.parametrize(
  'name,length', [*((name, 8) for name in sorted(SPECS)), ('transmil', 300)]
)
def test_bag_models(name, length, platform, precision):
  spec = SPECS[name]
  make = functools.partial(spec.make, num_classes=CLASSES)
  model = network.build(make, precision)
  x, mask = jnp.ones((length, WIDTH)), np.arange(length) < length - 1
  variables = shapes_of(model, x, mask, train=False)

  @jax.jit
  def loss(variables, x):
    rngs = {'dropout': jax.random.key(0)}
    prediction = model.apply(variables, x, mask, train=True, rngs=rngs)
    return spec.loss(prediction, mask, jnp.int32(0))

  with cpu.lowering_for(platform):
    assert_all(precision, jax.grad(loss, (0, 1)), variables, x)


@everywhere
@pytest.mark.parametrize('name', sorted(CLASSIFIERS))
def test_patch_classifiers(name, platform, precision):
  make = functools.partial(of_few_blocks(name), num_classes=2, axis_name=None)
  model = network.build(make, precision)
  x = jnp.ones((2, 32, 32, 3))
  variables = classifier_shapes(name)

  def loss(variables):
    prediction, _ = model.apply(
      variables,
      x,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    return losses.tile_cross_entropy(prediction, jnp.array([0, 1])).sum()

  with cpu.lowering_for(platform):
    assert_all(precision, jax.grad(loss), variables)


@everywhere
def test_students_and_their_teacher(monkeypatch, platform, precision):
  monkeypatch.setattr('kmil_jax.models.reverse_distillation.STAGES', (2, 1, 1))
  task = distill.DistillTask(width=4, precision=precision)
  run = distill.StudentRuns(
    seed=np.uint32(0),
    row=np.int32(0),
    alpha=np.float32(0.1),
    gamma=np.float32(2),
  )
  variables = jax.eval_shape(task.init, run)
  image = np.zeros((2, 32, 32, 3), np.uint8)
  teacher = shapes_of(task.teacher, image.astype(np.float32))
  rows = np.arange(2)[None]

  def loss(variables, teacher):
    store = distill.Patches(
      teacher=teacher, image=jnp.asarray(image), label=jnp.array([0, 1])
    )
    batch = task.batch(store, rows, None)
    return task.loss(variables, batch, run, None)[0].sum()

  with cpu.lowering_for(platform):
    assert_all(precision, jax.grad(loss), variables, teacher)


@everywhere
@pytest.mark.parametrize('model', ['dsmil', 'dtfd', 'kmil', 'transmil'])
def test_predictions(model, platform, precision):
  sizes = {'num_classes': CLASSES, 'width': WIDTH}
  design = Design(model=model, precision=precision, **sizes)
  weights = inference.stack([design.like()])
  x = np.ones((8, WIDTH), np.float32)
  with cpu.lowering_for(platform):
    assert_all(precision, design.predict, weights, x, jnp.int32(7))
  assert design.predictor(weights)(x)['prob'].shape == (1, CLASSES)


@everywhere
@pytest.mark.parametrize('name', ['random', encoder.DEFAULT, 'dinov3_small'])
def test_encoder(name, platform, precision):
  of = encoder.network(name)
  encode = functools.partial(of.apply, precision=precision)
  tiles = shape((2, 32, 32, 3), jnp.uint8)
  one = shape((1, 224, 224, 3), jnp.float32)
  with cpu.lowering_for(platform):
    variables = shapes_of(of.make(dtype=jnp.float32), one)
    assert_all(precision, encode, variables, tiles)
