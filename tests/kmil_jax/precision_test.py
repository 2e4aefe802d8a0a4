"""Products in float32 are float32 on any hardware, gradients included."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.encoding import encoder
from kmil_jax import inference, losses
from kmil_jax.inference import Design
from kmil_jax.models import CLASSIFIERS, SPECS, cpu
from kmil_jax.models.resnet import ResNet50Trunk
from kmil_jax.tasks import distill

HIGHEST = jax.lax.Precision.HIGHEST
PRODUCTS = ('dot_general', 'conv_general_dilated')
WIDTH, CLASSES = 12, 3
on_both = pytest.mark.parametrize('platform', ['cpu', 'tpu'])
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


def rounded(f, *args):
  """Returns how many products of float32 there are, and those rounded."""
  products = [
    e
    for e in equations(jax.make_jaxpr(f)(*args).jaxpr)
    if e.primitive.name in PRODUCTS
    and {x.aval.dtype for x in e.invars} != {jnp.dtype('bfloat16')}
  ]
  return len(products), [
    e for e in products if e.params['precision'] != (HIGHEST, HIGHEST)
  ]


def assert_exact(f, *args):
  count, inexact = rounded(f, *args)
  assert count and not inexact, f'{len(inexact)} of {count}: {inexact[:2]}'


def shapes_of(model, *args, **kwargs):
  init = functools.partial(model.init, **kwargs)
  key = jax.random.key(0)
  return jax.eval_shape(init, {'params': key, 'dropout': key}, *args)


def test_the_walk_sees_what_is_rounded():
  """Also in a loop, a compiled function and a gradient of its own."""
  x = jnp.ones((3, 3))
  loop = lambda x: jax.lax.map(lambda row: row @ x, x).sum()
  assert len(rounded(jax.grad(jax.jit(loop)), x)[1]) == 3
  dense = nn.Dense(2)
  params = shapes_of(dense, x)
  assert rounded(dense.apply, params, x)[1]


# TransMIL has programs of two kinds, for short bags and for long ones.
@on_both
@pytest.mark.parametrize(
  'name,length', [*((name, 8) for name in sorted(SPECS)), ('transmil', 300)]
)
def test_bag_models(name, length, platform):
  spec = SPECS[name]
  model = spec.make(num_classes=CLASSES, dtype=jnp.float32)
  x, mask = jnp.ones((length, WIDTH)), np.arange(length) < length - 1
  variables = shapes_of(model, x, mask, train=False)

  @jax.jit
  def loss(variables, x):
    rngs = {'dropout': jax.random.key(0)}
    prediction = model.apply(variables, x, mask, train=True, rngs=rngs)
    return spec.loss(prediction, mask, jnp.int32(0))

  with cpu.lowering_for(platform):
    assert_exact(jax.grad(loss, (0, 1)), variables, x)


@on_both
@pytest.mark.parametrize('name', sorted(CLASSIFIERS))
def test_patch_classifiers(name, platform):
  model = CLASSIFIERS[name](num_classes=2, dtype=jnp.float32, axis_name=None)
  x = jnp.ones((2, 32, 32, 3))
  variables = shapes_of(model, x, train=True)

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
    assert_exact(jax.grad(loss), variables)


@on_both
def test_students_and_their_teacher(platform):
  task = distill.DistillTask(width=4)
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
    assert_exact(jax.grad(loss), variables, teacher)


@on_both
@pytest.mark.parametrize('model', ['dsmil', 'dtfd', 'kmil', 'transmil'])
def test_predictions(model, platform):
  design = Design(model=model, num_classes=CLASSES, width=WIDTH)
  weights = inference.stack([design.like()])
  x = np.ones((8, WIDTH), np.float32)
  with cpu.lowering_for(platform):
    assert_exact(design.predict, weights, x, jnp.int32(7))


@on_both
def test_encoder(platform):
  encode = functools.partial(encoder.apply_trunk, precision='float32')
  tiles = shape((2, 32, 32, 3), jnp.float32)
  with cpu.lowering_for(platform):
    assert_exact(encode, shapes_of(ResNet50Trunk(), tiles), tiles)
