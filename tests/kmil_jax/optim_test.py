"""Optimisers and the cosine schedule are PyTorch's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from kmil_jax import optim
from kmil_jax.types import Recipe

SHAPES = {'kernel': (5, 3), 'bias': (3,)}


def gradients(steps):
  rng = np.random.default_rng(1)
  return [
    {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}
    for _ in range(steps)
  ]


def with_torch(make, start, grads, after=lambda step, params: None):
  params = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
  optimiser = make(params.values())
  for t, step in enumerate(grads, 1):
    for k, p in params.items():
      p.grad = torch.tensor(step[k])
    optimiser.step()
    with torch.no_grad():
      after(t, params)
  return {k: p.detach().numpy() for k, p in params.items()}


def with_jax(recipe, start, grads, rate):
  tx = optim.make(recipe)

  @jax.jit
  def step(params, state, grad):
    updates, state = tx.update(grad, state, params, learning_rate=rate)
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, start)
  state = tx.init(params)
  for grad in grads:
    params, state = step(params, state, grad)
  return params


@pytest.mark.parametrize(
  'decay,betas', [(0.0, (0.9, 0.999)), (0.3, (0.9, 0.999)), (1e-5, (0.5, 0.9))]
)
def test_twenty_steps_are_torchs_adam(decay, betas):
  rate, grads = 0.01, gradients(20)
  start = gradients(1)[0]
  make = lambda p: torch.optim.Adam(p, rate, betas, weight_decay=decay)
  want = with_torch(make, start, grads)
  recipe = Recipe(weight_decay=decay, betas=betas)
  params = with_jax(recipe, start, grads, rate)
  for name in SHAPES:
    np.testing.assert_allclose(params[name], want[name], atol=1e-6)
    assert np.abs(want[name] - start[name]).max() > 0.05


def test_lookahead_radam_is_torchs_with_slow_weights_from_the_first_sync():
  # optax rectifies in float32, where 1999 - 1994 leaves few digits.
  rate, decay = 1e-3, 0.3
  grads, start = gradients(40), gradients(1)[0]
  slow = {}

  def look_ahead(step, params):
    if step % 6:
      return
    for name, fast in params.items():
      if name in slow:
        slow[name] += 0.5 * (fast - slow[name])
      else:
        slow[name] = fast.clone()
      fast.copy_(slow[name])

  def radam(params):
    kernel, bias = params
    return torch.optim.RAdam(
      [{'params': [kernel]}, {'params': [bias], 'weight_decay': 0}],
      lr=rate,
      weight_decay=decay,
      decoupled_weight_decay=True,
    )

  want = with_torch(radam, start, grads, look_ahead)
  recipe = Recipe(optimizer='lookahead_radam', weight_decay=decay)
  got = with_jax(recipe, start, grads, rate)
  for name in SHAPES:
    np.testing.assert_allclose(got[name], want[name], atol=1e-6)
  # Neither the slow weights nor the decay is without effect.
  for other in (
    with_torch(radam, start, grads),
    with_jax(Recipe(optimizer='lookahead_radam'), start, grads, rate),
  ):
    assert np.abs(other['kernel'] - want['kernel']).max() > 1e-3


def long_and_short(seed=0):
  """Gradients of two modules, of norms above and below 5."""
  rng = np.random.default_rng(seed)
  draw = lambda scale: rng.normal(0, scale, (4, 3)).astype(np.float32)
  return {
    'long': {'weight': draw(30.0), 'bias': draw(30.0)},
    'short': {'weight': draw(0.1)},
  }


def clipped_by_torch(leaves):
  """Clips the gradients of one module, as DTFD's code does."""
  params = [torch.nn.Parameter(torch.zeros(4, 3)) for _ in leaves]
  for p, g in zip(params, leaves.values(), strict=True):
    p.grad = torch.tensor(g)
  torch.nn.utils.clip_grad_norm_(params, 5.0)
  return {name: p.grad.numpy() for p, name in zip(params, leaves, strict=True)}


def test_a_recipe_that_clips_is_torchs_clipping_and_adam():
  # Adam forgets a gradient's scale, unless decay is added to it.
  start, decay, rate = long_and_short(9), 0.3, 0.01
  grads = [long_and_short(seed) for seed in range(3)]
  got = with_jax(Recipe(clip=5, weight_decay=decay), start, grads, rate)
  make = lambda p: torch.optim.Adam(p, rate, weight_decay=decay)
  for module, leaves in start.items():
    clipped = [clipped_by_torch(step[module]) for step in grads]
    want = with_torch(make, leaves, clipped)
    chex.assert_trees_all_close(got[module], want, atol=1e-6)


def test_accumulated_steps_are_one_step_of_their_mean():
  grads, start = gradients(8), gradients(1)[0]
  means = [
    {k: (a[k] + b[k]) / 2 for k in SHAPES}
    for a, b in zip(grads[::2], grads[1::2], strict=True)
  ]
  got = with_jax(Recipe(accumulate=2), start, grads, 0.01)
  want = with_jax(Recipe(), start, means, 0.01)
  chex.assert_trees_all_close(got, want, atol=1e-6)
  # An odd step waits for the next.
  odd = with_jax(Recipe(accumulate=2), start, grads[:7], 0.01)
  even = with_jax(Recipe(accumulate=2), start, grads[:6], 0.01)
  chex.assert_trees_all_equal(odd, even)


def test_orthogonal_weights_and_no_biases():
  params = {
    'wide': {'weight': np.ones((4, 9), np.float32), 'bias': np.ones(4)},
    'tall': {'weight': np.ones((9, 4), np.float32)},
  }
  drawn = optim.orthogonal(jax.random.key(0), params)
  wide, tall = drawn['wide']['weight'], drawn['tall']['weight']
  np.testing.assert_allclose(wide @ wide.T, np.eye(4), atol=1e-6)
  np.testing.assert_allclose(tall.T @ tall, np.eye(4), atol=1e-6)
  assert np.abs(wide.T - tall).max() > 0.1  # Each has a key of its own.
  np.testing.assert_array_equal(drawn['wide']['bias'], 0)


def test_an_unknown_optimiser_is_refused():
  with pytest.raises(ValueError, match=r"'sgd' is unknown\. Choose one"):
    optim.make(Recipe(optimizer='sgd'))


@pytest.mark.parametrize(
  ('peak', 'floor', 'epochs'), [(2e-4, 5e-6, 100), (1e-3, 0, 7), (1, 0.5, 1)]
)
def test_cosine_is_torchs_at_every_epoch(peak, floor, epochs):
  optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
    optimiser, epochs, eta_min=floor
  )
  for epoch in range(epochs + 1):
    want = optimiser.param_groups[0]['lr']
    got = optim.cosine(peak, floor, epoch, epochs)
    assert got == pytest.approx(want, rel=1e-9, abs=1e-15)
    optimiser.step()
    schedule.step()
