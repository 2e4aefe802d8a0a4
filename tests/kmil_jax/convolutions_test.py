"""Layers of Flax that convolve as the package does."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import cpu
from kmil_jax.models.convolutions import convolution

POINTWISE = functools.partial(convolution, pointwise=True)


@pytest.mark.parametrize(
  'convolve,side,options',
  [
    (convolution, 3, {'padding': 1}),
    (POINTWISE, 3, {'padding': 1}),
    (POINTWISE, 1, {}),
    (POINTWISE, 1, {'strides': 2}),
    (POINTWISE, 1, {'padding': 0, 'strides': 2}),
  ],
)
def test_a_layer_of_flax_takes_it(convolve, side, options):
  x = jnp.asarray(np.random.default_rng(0).random((2, 2, 2, 3)))
  usual = nn.Conv(4, (side, side), **options)
  layer = usual.clone(conv_general_dilated=convolve)
  variables = layer.init(jax.random.key(0), x)
  want = usual.apply(variables, x)
  for platform in ('cpu', 'tpu'):
    with cpu.lowering_for(platform):
      found = layer.apply(variables, x)
      program = str(jax.make_jaxpr(layer.apply)(variables, x))
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert ('conv_general' in program) == (platform == 'tpu')


def test_a_padded_kernel_of_one_pads():
  x, usual = jnp.ones((1, 2, 2, 3)), nn.Conv(4, (1, 1), padding=1)
  layer = usual.clone(conv_general_dilated=POINTWISE)
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
    conv_general_dilated=convolution,
  )
  with pytest.raises(AssertionError):
    layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
