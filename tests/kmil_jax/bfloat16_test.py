"""bfloat16 rounds features and weights, and nothing that is made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import SPECS, network

WIDTH, CLASSES, LABEL = 256, 3, 2
# Weights of the attention's layers are this much larger than they start.
SHARPER = {
  'value': 4,
  'gate': 4,
  'score': 32,
  'query_1': 4,
  'query_2': 8,
  'qkv': 4,
  'instance': 8,
}
# TransMIL multiplies what its attention reads in bfloat16, too.
EXACT = {name: 2e-5 for name in SPECS} | {'transmil': 1e-2}
low = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
wide = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float32))


def sharp_params(spec, x, mask):
  init = functools.partial(spec.make(num_classes=CLASSES).init, train=False)
  params = jax.jit(init)(jax.random.key(0), x, mask)['params']

  def scale(path, leaf):
    factors = [SHARPER.get(key.key, 1) for key in path]
    return leaf * max(factors)

  return wide(low(jax.tree_util.tree_map_with_path(scale, params)))


@pytest.mark.parametrize('name', sorted(SPECS))
def test_sharp_attention_is_that_of_float32(name):
  spec = SPECS[name]
  rng = np.random.default_rng(0)
  x = wide(low(jnp.asarray(rng.normal(size=(64, WIDTH)), jnp.float32)))
  mask = np.arange(64) < 60
  params = sharp_params(spec, x, mask)

  def evaluate(dtype, params):
    model = spec.make(num_classes=CLASSES, dtype=dtype)
    prediction = model.apply(
      {'params': params}, x.astype(dtype), mask, train=False
    )
    return spec.loss(prediction, mask, jnp.int32(LABEL)), prediction

  run = jax.jit(
    jax.value_and_grad(evaluate, argnums=1, has_aux=True), static_argnums=0
  )
  (want_loss, want), want_grads = run(jnp.float32, params)
  (loss, got), grads = run(jnp.bfloat16, params)
  # Sharp: a tenth of the instances has most of the weight.
  share = np.sort(want.attention, axis=0)[-6:].sum(0).max()
  assert share > 0.5 or name == 'transmil', share
  close = functools.partial(np.testing.assert_allclose, rtol=EXACT[name])
  for field in ('logits', 'attention', 'instance_logits'):
    scale = np.abs(want[field]).max()
    close(got[field], want[field], atol=EXACT[name] * scale, err_msg=field)
    assert got[field].dtype == jnp.float32
  close(loss, want_loss)
  # Gradients pass through factors of bfloat16; that of a score's bias is 0.
  for g, w in zip(*map(jax.tree.leaves, (grads, want_grads)), strict=True):
    assert g.dtype == jnp.float32
    atol = 0.02 * np.abs(w).max() + 1e-6
    np.testing.assert_allclose(g, w, rtol=0, atol=atol)


def test_products_of_bfloat16_are_summed_in_float32():
  x, weight = jnp.ones((3, 7), jnp.bfloat16), jnp.ones((5, 7), jnp.bfloat16)
  y, pull = jax.vjp(network.product, x, weight)
  assert y.dtype == jnp.float32
  assert {a.dtype for a in pull(y)} == {jnp.dtype('bfloat16')}
