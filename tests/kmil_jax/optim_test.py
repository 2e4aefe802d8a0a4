"""Adam and the cosine schedule are PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from kmil_jax import optim

SHAPES = {'kernel': (5, 3), 'bias': (3,)}


def gradients(steps):
  rng = np.random.default_rng(1)
  return [
    {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}
    for _ in range(steps)
  ]


def with_torch(make, start, grads):
  params = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
  optimiser = make(params.values())
  for step in grads:
    for k, p in params.items():
      p.grad = torch.tensor(step[k])
    optimiser.step()
  return {k: p.detach().numpy() for k, p in params.items()}


@pytest.mark.parametrize('decay', [0.0, 1e-5, 0.3])
def test_twenty_steps_are_torchs_adam(decay):
  rate, grads = 0.01, gradients(20)
  start = gradients(1)[0]
  want = with_torch(
    lambda p: torch.optim.Adam(p, lr=rate, weight_decay=decay), start, grads
  )
  tx = optim.adam(decay)

  @jax.jit
  def step(params, state, grad):
    updates, state = tx.update(grad, state, params)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, start)
  state = tx.init(params)
  for grad in grads:
    params, state = step(params, state, grad)
  for name in SHAPES:
    np.testing.assert_allclose(params[name], want[name], atol=1e-6)
    assert np.abs(want[name] - start[name]).max() > 0.05
  if decay == 0.3:  # The decay is not decoupled: AdamW goes elsewhere.
    other = with_torch(
      lambda p: torch.optim.AdamW(p, lr=rate, weight_decay=decay), start, grads
    )
    assert np.abs(other['kernel'] - want['kernel']).max() > 1e-3


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
