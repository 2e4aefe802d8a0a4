"""Convolutions by products: equal to XLA's, values and gradients."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import convolutions

# Size of the maps, side of the kernel, stride, padding; is it small?
CASES = [
  ((2, 2), 3, 1, 1, True),
  ((3, 3), 3, 2, 1, True),
  ((1, 4), 5, 2, 2, True),
  ((4, 3), 3, 1, 1, False),
  ((5, 4), 1, 2, 0, False),
]


def test_it_is_the_convolution():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  inputs = [(draw(2, *c[0], 5), draw(c[1], c[1], 5, 4)) for c in CASES]

  def usual(*args):
    return lax.conv_general_dilated(
      *args, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  @jax.jit  # All cases at once: each alone would be compiled.
  def run():
    found = []
    for (x, k), (*_, stride, padding, _) in zip(inputs, CASES, strict=True):
      where = ((stride, stride), ((padding, padding),) * 2)
      for convolve in (usual, convolutions.by_product):
        y, pull = jax.vjp(lambda x, k: convolve(x, k, *where), x, k)  # noqa: B023
        found.append((y, *pull(jnp.sin(y))))
    return found

  found = run()
  for want, by_product in zip(found[::2], found[1::2], strict=True):
    for a, b in zip(want, by_product, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4)
  for (x, k), (*_, stride, padding, small) in zip(inputs, CASES, strict=True):
    where = ((stride, stride), ((padding, padding),) * 2)
    assert convolutions._small(x, k, *where) == small


@pytest.mark.parametrize(
  'convolve,side,options',
  [
    (convolutions.convolution, 3, {'padding': 1}),
    (convolutions.pointwise_by_product, 3, {'padding': 1}),
    (convolutions.pointwise_by_product, 1, {}),
    (convolutions.pointwise_by_product, 1, {'strides': 2}),
    (convolutions.pointwise_by_product, 1, {'padding': 0, 'strides': 2}),
  ],
)
def test_a_layer_of_flax_takes_it(convolve, side, options):
  x = jnp.asarray(np.random.default_rng(0).random((2, 2, 2, 3)))
  usual = nn.Conv(4, (side, side), **options)
  layer = usual.clone(conv_general_dilated=convolve)
  variables = layer.init(jax.random.key(0), x)
  want = usual.apply(variables, x)
  np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-5)
  program = str(jax.make_jaxpr(layer.apply)(variables, x))
  own = jax.default_backend() == 'cpu'
  assert ('conv_general' not in program) == own


def test_a_padded_kernel_of_one_pads():
  x, usual = jnp.ones((1, 2, 2, 3)), nn.Conv(4, (1, 1), padding=1)
  layer = usual.clone(conv_general_dilated=convolutions.pointwise_by_product)
  variables = layer.init(jax.random.key(0), x)
  np.testing.assert_allclose(
    layer.apply(variables, x), usual.apply(variables, x), atol=1e-5
  )


@pytest.mark.parametrize(
  'side,options',
  [
    (3, {}),  # Flax pads by name.
    (1, {'input_dilation': 2}),
    (3, {'padding': 1, 'kernel_dilation': 2}),
    (1, {'feature_group_count': 2}),
  ],
)
def test_what_it_does_not_do_is_refused(side, options):
  layer = nn.Conv(
    4,
    (side, side),
    **options,
    conv_general_dilated=convolutions.convolution,
  )
  with pytest.raises(AssertionError):
    layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
