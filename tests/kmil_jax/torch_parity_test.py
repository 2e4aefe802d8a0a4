"""ABMIL and DSMIL against torch modules written for this comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import losses, optim
from kmil_jax.models.abmil import ABMIL
from kmil_jax.models.dsmil import DSMIL

torch = pytest.importorskip('torch')
WIDTH, CLASSES, N = 32, 4, 11


class TorchABMIL(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.value = torch.nn.Linear(WIDTH, 256)
    self.gate = torch.nn.Linear(WIDTH, 256)
    self.score = torch.nn.Linear(256, 1)
    self.classifier = torch.nn.Linear(WIDTH, CLASSES)

  def forward(self, x):
    hidden = torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))
    attention = torch.softmax(self.score(hidden), 0)
    return self.classifier((attention * x).sum(0)), attention

  def loss(self, x, label):
    logits, _ = self(x)
    return torch.nn.functional.cross_entropy(logits[None], label[None])


class TorchDSMIL(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.instance = torch.nn.Linear(WIDTH, CLASSES)
    self.query_1 = torch.nn.Linear(WIDTH, 128)
    self.query_2 = torch.nn.Linear(128, 128)
    self.fuse = torch.nn.Conv1d(CLASSES, CLASSES, WIDTH)

  def streams(self, x):
    query = lambda h: torch.tanh(self.query_2(torch.relu(self.query_1(h))))
    c = self.instance(x)
    critical = x[c.argmax(0)]
    scores = query(x) @ query(critical).T / 128**0.5
    attention = torch.softmax(scores, 0)
    return c, attention, self.fuse((attention.T @ x)[None])[0, :, 0]

  def forward(self, x):
    _, attention, logits = self.streams(x)
    return logits, attention

  def loss(self, x, label):
    c, _, logits = self.streams(x)
    ce = torch.nn.functional.cross_entropy
    bag = ce(logits[None], label[None])
    highest = ce(c.max(0)[0][None], label[None])
    return 0.5 * bag + 0.5 * highest


def ported(module):
  """torch parameters as Flax ones: the same layout, Conv1d as a dense map."""
  params = {}
  for name, tensor in module.state_dict().items():
    layer, kind = name.split('.')
    array = tensor.detach().numpy().copy()
    if kind == 'weight':  # Linear [out, in]; Conv1d [out, in, D].
      array = array.reshape(len(array), -1)
    params.setdefault(layer, {})[kind] = jnp.asarray(array)
  return params


CASES = [
  (TorchABMIL, ABMIL(CLASSES, dropout=0.0), losses.cross_entropy),
  (TorchDSMIL, DSMIL(CLASSES), losses.dual_stream),
]


@pytest.mark.parametrize('make,model,loss', CASES, ids=['abmil', 'dsmil'])
def test_forward_loss_and_ten_steps_equal_torch(make, model, loss):
  torch.manual_seed(0)
  module = make()
  rng = np.random.default_rng(0)
  x = rng.normal(size=(N, WIDTH)).astype(np.float32)
  mask, label = np.ones(N, bool), 2

  params = ported(module)
  init = model.init(jax.random.key(0), x, mask, train=False)['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init)

  def loss_fn(params):
    prediction = model.apply({'params': params}, x, mask, train=False)
    return loss(prediction, mask, jnp.int32(label)), prediction

  logits, attention = module(torch.tensor(x))
  _, got = loss_fn(params)
  np.testing.assert_allclose(got.logits, logits.detach(), atol=1e-5)
  np.testing.assert_allclose(got.attention, attention.detach(), atol=1e-5)

  torch_adam = torch.optim.Adam(module.parameters(), lr=2e-4, weight_decay=1e-5)
  tx = optim.adam(1e-5)
  opt_state = tx.init(params)
  for _ in range(10):
    torch_adam.zero_grad()
    want = module.loss(torch.tensor(x), torch.tensor(label))
    want.backward()
    torch_adam.step()
    (value, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    np.testing.assert_allclose(value, want.item(), atol=1e-5)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(lambda p, u: p - 2e-4 * u, params, updates)
  # The attention bias has no true gradient (a softmax ignores it): Adam turns
  # its rounding errors into steps, in both frameworks.
  theirs = ported(module)
  for tree in (params, theirs):
    tree.get('score', {}).pop('bias', None)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, theirs
  )


def test_layers_start_as_torch_linear_does():
  model = DSMIL(5)
  params = model.init(
    jax.random.key(1), jnp.zeros((1, 1024)), jnp.ones(1, bool), train=False
  )['params']
  for layer, fan_in in (
    ('query_1', 1024),
    ('query_2', 128),
    ('fuse', 5 * 1024),
  ):
    bound = fan_in**-0.5
    weight = np.asarray(params[layer]['weight'])
    assert np.abs(weight).max() <= bound
    # A uniform variable on [-b, b] has the standard deviation b / sqrt(3).
    np.testing.assert_allclose(weight.std(), bound / 3**0.5, rtol=0.02)
    assert 0 < np.abs(params[layer]['bias']).max() <= bound
