"""Reverse distillation's networks: counts, shapes, starts, types, one step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import programs, train
from kmil_jax.models.convolutions import Upsample, conv_norm
from kmil_jax.models.resnet import Block
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes
from kmil_jax.tasks.distill import DistillTask, Patches, Setting, runs_of


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def shapes(width=64, shortcut=3):
  """Variables of teacher and student."""
  tiles = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  make = lambda model, x: jax.eval_shape(model.init, jax.random.key(0), x)
  student = make(Student(width, shortcut), map_shapes(width))
  return make(Teacher(width), tiles), student


@pytest.mark.parametrize('shortcut,embedding', [
  (1, 58_885_120), (3, 109_216_768),
])  # fmt: skip
def test_parameters_are_as_many_as_released(shortcut, embedding):
  teacher, student = shapes(shortcut=shortcut)
  assert size(teacher['params']) == 24_862_528
  assert size(student['params']['bn']) == embedding
  assert size(student['params']['decoder']) == 24_917_504


def test_maps_have_the_papers_shapes_and_the_computations_type():
  teacher, student = shapes()
  tiles = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
  for dtype in (jnp.float32, jnp.bfloat16):
    maps = jax.eval_shape(Teacher(dtype=dtype).apply, teacher, tiles)
    assert [(m.shape, m.dtype) for m in maps] == [
      ((2, 64, 64, 256), dtype),
      ((2, 32, 32, 512), dtype),
      ((2, 16, 16, 1024), dtype),
    ]
    guess = jax.eval_shape(Student(dtype=dtype).apply, student, maps)
    assert guess == maps
  assert jax.eval_shape(
    Teacher().apply, teacher, jax.ShapeDtypeStruct((1, 32, 32, 3), 'f4')
  ) == map_shapes(64)


def test_patches_that_cannot_halve_five_times_are_refused():
  with pytest.raises(ValueError, match=r'96 x 80 pixels.*multiples of 32'):
    tiles = jax.ShapeDtypeStruct((1, 80, 96, 3), jnp.float32)
    jax.eval_shape(Teacher().apply, shapes()[0], tiles)


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


def test_upsampling_is_torchs_transposed_convolution():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 5, 4)).astype('f4')
  weight = rng.normal(size=(4, 6, 2, 2)).astype('f4')
  want = torch.nn.functional.conv_transpose2d(
    torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(weight), stride=2
  )
  params = {'params': {'kernel': weight.transpose(2, 3, 1, 0)}}
  got = jax.jit(Upsample(6).apply)(params, x)
  np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_a_step_of_the_papers_width_keeps_every_shape():
  """What a step does is tested on narrow networks, in distill_parity_test."""
  task = DistillTask(64, 3)
  teacher, student = shapes(64, 3)
  image, label = np.zeros((2, 256, 256, 3), np.uint8), np.array([1, 0])
  patches = Patches(teacher=teacher, image=image, label=label)
  of_one = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), student
  )
  runs = runs_of([Setting(np.arange(2), 0)], label)
  opt_state = jax.eval_shape(jax.vmap(task.tx.init), of_one['params'])
  state = train.state_of(runs, of_one, opt_state)
  step, _ = programs.chunk_functions(task, None, (None,))
  chunk = np.zeros(1, np.int32), np.arange(2)[None, None]
  after, _ = jax.eval_shape(step, state, patches, chunk)
  shapes_of = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes_of(after) == shapes_of(state)
