"""Products of dense layers have the gradients of the plain product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import network


@pytest.mark.parametrize('runs', [None, 2])
@pytest.mark.parametrize('shape', [(7,), (3, 7), (2, 3, 7)])
def test_gradients_are_those_of_the_plain_product(shape, runs):
  rng = np.random.default_rng(0)
  axes = () if runs is None else (runs,)
  draw = lambda *s: jnp.asarray(rng.normal(size=axes + s), jnp.float32)
  x, weight = draw(*shape), draw(5, 7)

  def value_and_gradients(product):
    loss = lambda x, w: jnp.sin(product(x, w)).sum()
    of_one = jax.value_and_grad(loss, argnums=(0, 1))
    return (of_one if runs is None else jax.vmap(of_one))(x, weight)

  plain = lambda x, w: jnp.tensordot(x, w, ((-1,), (1,)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    value_and_gradients(network.product),
    value_and_gradients(plain),
  )


def test_products_of_bfloat16_are_summed_in_float32():
  x, weight = jnp.ones((3, 7), jnp.bfloat16), jnp.ones((5, 7), jnp.bfloat16)
  y, pull = jax.vjp(network.product, x, weight)
  assert y.dtype == jnp.float32
  assert {a.dtype for a in pull(y)} == {jnp.dtype('bfloat16')}
