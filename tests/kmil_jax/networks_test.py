"""Convolutional networks: counts, shapes, types, starts, norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_classifier

from kmil_jax.models import CLASSIFIERS
from kmil_jax.models.convolutions import Upsample, conv_norm
from kmil_jax.models.resnet import Block, ResNet50Trunk
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes

FLOAT32 = np.dtype('float32')
WIDTH = {'googlenet': 1024, 'mobilenet_v2': 1280,
         'node_cnn': 128, 'resnet18': 512, 'resnet50': 2048,
         'resnet101': 2048}  # fmt: skip
shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def shapes(model, *inputs):
  return jax.eval_shape(model.init, jax.random.key(0), *inputs)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  'name,classes,channels,count',
  [
    ('resnet18', 1000, 3, 11_689_512),
    ('resnet50', 1000, 3, 25_557_032),
    ('resnet101', 1000, 3, 44_549_160),
    ('mobilenet_v2', 1000, 3, 3_504_872),
    ('googlenet', 1000, 3, 6_624_904),
    ('node_cnn', 1, 1, 12_937_985),
    ('node_cnn', 1, 3, 12_938_561),
  ],
)
def test_classifiers_have_as_many_parameters_as_published(
  name, classes, channels, count
):
  model = CLASSIFIERS[name](num_classes=classes)
  tiles = shape((1, 224, 224, channels))
  assert size(shapes(model, tiles)['params']) == count


@pytest.mark.parametrize(
  'model,inputs,counts',
  [
    (ResNet50Trunk(), shape((1, 32, 32, 3)), [8_543_296]),
    (Teacher(), shape((1, 32, 32, 3)), [24_862_528]),
    (Student(shortcut=1), map_shapes(64), [58_885_120, 24_917_504]),
    (Student(shortcut=3), map_shapes(64), [109_216_768, 24_917_504]),
  ],
)
def test_encoders_have_as_many_parameters_as_published(model, inputs, counts):
  params = shapes(model, inputs)['params']
  parts = params.values() if isinstance(model, Student) else [params]
  assert [size(part) for part in parts] == counts


@pytest.mark.parametrize('name', sorted(CLASSIFIERS))
def test_tiles_of_8_pixels_are_classified(name):
  model = CLASSIFIERS[name](num_classes=2)
  tiles = shape((1, 8, 8, 3))
  maps = functools.partial(model.apply, method='feature_map')
  assert jax.eval_shape(maps, shapes(model, tiles), tiles).shape[1:3] == (1, 1)


@pytest.mark.parametrize('name', sorted(CLASSIFIERS))
def test_float32_comes_out_whatever_goes_on_inside(name):
  few = tiny_classifier.of_few_blocks(name)
  make = functools.partial(few, 1, dtype=jnp.bfloat16)
  tiles = jnp.zeros((2, 50, 40, 1))
  variables = shapes(make(), tiles)
  assert ('batch_stats' in variables) == (name != 'node_cnn')
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {FLOAT32}

  def train(variables):
    return make(axis_name='tiles').apply(
      variables,
      tiles,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )

  program, (got, mutated) = jax.make_jaxpr(
    train, axis_env=[('tiles', 4)], return_shape=True
  )(variables)
  assert (got.logits.shape, got.features.shape) == ((2, 1), (2, WIDTH[name]))
  leaves = jax.tree.leaves((got, mutated))
  assert {leaf.dtype for leaf in leaves} == {FLOAT32}
  # Inside, it is bfloat16.
  maps = functools.partial(make().apply, method='feature_map')
  assert jax.eval_shape(maps, variables, tiles).dtype == jnp.bfloat16
  # The two moments of every norm are those of all devices.
  moments = len(jax.tree.leaves(variables.get('batch_stats', {})))
  assert str(program).count('psum') == moments


def test_maps_have_the_papers_shapes_and_the_computations_type():
  tiles = shape((2, 256, 256, 3))
  teacher = shapes(Teacher(), tiles)
  student = shapes(Student(), map_shapes(64))
  for dtype in (jnp.float32, jnp.bfloat16):
    maps = jax.eval_shape(Teacher(dtype=dtype).apply, teacher, tiles)
    assert [(m.shape, m.dtype) for m in maps] == [
      ((2, 64, 64, 256), dtype),
      ((2, 32, 32, 512), dtype),
      ((2, 16, 16, 1024), dtype),
    ]
    guess = jax.eval_shape(Student(dtype=dtype).apply, student, maps)
    assert guess == maps


def test_tiles_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r'96 x 80 pixels.*multiples of 32'):
    shapes(Teacher(), shape((1, 80, 96, 3)))


def test_layers_start_as_in_torch():
  # A student's blocks, and torch's start where the fan-in is unlike others'.
  layer = functools.partial(conv_norm, train=False, dtype=jnp.float32)
  block = Block(64, 2, layer, expansion=2, shortcut=3)
  x = np.zeros((1, 4, 4, 96), np.float32)
  params = jax.jit(block.init)(jax.random.key(0), x)['params']
  # Normal with variance 2 / fan-out.
  kernel = np.asarray(params['downsample_conv']['kernel'])
  assert kernel.shape == (3, 3, 96, 128)
  np.testing.assert_allclose(kernel.std(), (2 / (9 * 128)) ** 0.5, rtol=0.01)
  assert np.abs(kernel).max() > 4 * kernel.std()
  norm = params['downsample_bn']
  assert (norm['scale'] == 1).all() and (norm['bias'] == 0).all()
  # Uniform; torch takes the fan-in from the channels that come out.
  params = jax.jit(Upsample(64).init)(jax.random.key(0), x)['params']
  kernel = np.asarray(params['kernel'])
  assert kernel.shape == (2, 2, 64, 96)
  bound = (4 * 64) ** -0.5
  np.testing.assert_allclose(np.abs(kernel).max(), bound, rtol=0.01)
  np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.01)


def test_four_devices_norm_as_one():
  """Statistics, predictions and gradients are those of the whole batch."""
  model = tiny_classifier.Tiny(2, axis_name='tiles')
  tiles = tiny_classifier.make_tiles(8)
  # Parts unlike each other: their own statistics would not do.
  x = tiles.image + np.arange(8, dtype=np.float32)[:, None, None, None]
  variables = jax.jit(model.init)(jax.random.key(0), x)

  def step(variables, x, label):
    def loss_of(params):
      given = {**variables, 'params': params}
      out, stats = model.apply(given, x, train=True, mutable=['batch_stats'])
      chosen = jax.nn.log_softmax(out.logits)[jnp.arange(len(x)), label]
      return -chosen.mean(), (stats, out.logits)

    loss_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (stats, logits)), grad = loss_and_grad(variables['params'])
    return *jax.lax.pmean((loss, grad), 'tiles'), stats, logits

  def on(count):
    devices = jax.local_devices()[:count]
    mapped = jax.pmap(step, 'tiles', in_axes=(None, 0, 0), devices=devices)
    cut = lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:])
    *rest, logits = jax.device_get(mapped(variables, cut(x), cut(tiles.label)))
    return rest, logits.reshape(8, 2)

  (one, logits), (four, cut_logits) = on(1), on(4)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(cut_logits, logits)
  jax.tree.map(lambda mine, all: close(mine, np.repeat(all, 4, 0)), four, one)
