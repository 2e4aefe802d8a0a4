"""Bag models against torch: outputs, losses, ten steps; TransMIL has its own.

Weights go one way, since port_test shows that the other is its inverse.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kmil_jax import optim, port
from kmil_jax.models import SPECS, kmil
from kmil_jax.models.dsmil import DSMIL
from kmil_jax.models.dtfd import pseudo_bags
from kmil_jax.types import Recipe

torch = pytest.importorskip('torch')
twins = pytest.importorskip('torch_modules')

pytestmark = pytest.mark.usefixtures('one_thread')

WIDTH, CLASSES, N, LABEL = 32, 4, 11, 2
RECIPE = Recipe(learning_rate=2e-4, weight_decay=1e-5)
MASK = np.ones(N, bool)
BAG = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)
DTFD = [
  ('dtfd', 'afs', 'last'),
  ('dtfd', 'mas', 'last'),
  ('dtfd', 'maxs', 'last'),
  ('dtfd', 'maxs', 'predicted'),
  ('dtfd', 'maxmins', 'last'),
  ('dtfd', 'maxmins', 'predicted'),
  ('dtfd_gated', 'afs', 'last'),
  ('dtfd_gated', 'maxmins', 'last'),
]
CASES = [(name, {}) for name in SPECS if name[:4] in ('abmi', 'dsmi')] + [
  (name, {'distill': distill, 'score': score, 'total_instances': 8})
  for name, distill, score in DTFD
]
# Of scores, which a softmax ignores: their gradient is nothing but rounding,
# of which Adam makes steps in both frameworks.
BIASES = {'path_attn_head.attention_c.bias', 'attention.2.bias',
          'attention_w.bias', 'attention.attention.2.bias',
          'attention.attention_weights.bias',
          'att_classifier.attention.attention_weights.bias'}  # fmt: skip


@functools.cache
def step_of(name, **options):
  """The optimiser and one compiled step: loss, prediction, state."""
  spec, tx = SPECS[name], optim.make(RECIPE)
  model = spec.make(num_classes=CLASSES, **options)

  def loss_fn(params, mask):
    prediction = model.apply({'params': params}, BAG, mask, train=False)
    return spec.loss(prediction, mask, jnp.int32(LABEL)), prediction

  def step(params, opt_state, mask):
    (loss, prediction), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, mask
    )
    updates, opt_state = tx.update(
      grads, opt_state, params, learning_rate=RECIPE.learning_rate
    )
    return loss, prediction, optax.apply_updates(params, updates), opt_state

  return tx, jax.jit(step)


def assert_ten_steps_equal(name, options, module, trained, mask, **extra):
  """Trains `trained`, a part of `module`, and the model of its weights."""
  x, label = torch.tensor(BAG), torch.tensor(LABEL)
  close = lambda got, want: np.testing.assert_allclose(
    got, want.detach(), atol=1e-5
  )
  params = port.from_torch(name, twins.state_of(trained))['params']
  tx, step = step_of(name, **options)
  opt_state = tx.init(params)
  adam = torch.optim.Adam(
    trained.parameters(), RECIPE.learning_rate, weight_decay=RECIPE.weight_decay
  )
  for number in range(10):
    logits, attention = module(x, **extra)
    want = module.loss(x, label, **extra)
    adam.zero_grad()
    want.backward()
    adam.step()
    loss, got, params, opt_state = step(params, opt_state, mask)
    close(got.logits, logits)
    close(got.attention, attention)
    close(loss, want)
    if number in (0, 9):
      theirs = twins.state_of(trained)
      ours = port.to_torch(name, {'params': jax.device_get(params)})
      assert set(ours) == set(theirs)
      for entry in set(ours) - BIASES:
        np.testing.assert_allclose(
          ours[entry], theirs[entry], atol=1e-5, err_msg=entry
        )


def groups_of(mask):
  """The pseudo-bags that every evaluation of these instances draws."""
  member, _ = pseudo_bags(jax.random.key(0), jnp.asarray(mask), 4)
  return torch.tensor(np.asarray(member)[mask].argmax(1))


def twin(name, options):
  torch.manual_seed(0)
  return twins.BAG_MODELS[name](CLASSES, WIDTH, **options).eval()


@pytest.mark.parametrize('name,options', CASES)
def test_ten_steps_equal_torch(name, options):
  module = twin(name, options)
  extra = {'groups': groups_of(MASK)} if options else {}
  assert_ten_steps_equal(name, options, module, module, MASK, **extra)


@pytest.mark.parametrize('name,options', [c for c in CASES if c[1]])
def test_bags_smaller_than_their_pseudo_bags_equal_torch(name, options):
  module = twin(name, options)
  params = port.from_torch(name, twins.state_of(module))['params']
  tx, step = step_of(name, **options)
  for n in (3, 5):  # An empty pseudo-bag, and some with fewer than k = 2.
    mask = np.arange(N) < n
    want, attention = module(torch.tensor(BAG[:n]), groups_of(mask))
    _, got, *_ = step(params, tx.init(params), mask)
    np.testing.assert_allclose(got.logits, want.detach(), atol=1e-5)
    np.testing.assert_allclose(got.attention[:n], attention.detach(), atol=1e-6)


def test_kmil_keeps_and_classifies_as_torch_does():
  torch.manual_seed(0)
  module = twins.bag_models.KMIL(CLASSES, WIDTH).eval()
  chooser = port.from_torch('abmil', twins.state_of(module.chooser))
  model = SPECS['abmil'].make(num_classes=CLASSES)
  chosen = model.apply(chooser, BAG, MASK, train=False)
  keep = kmil.chosen(chosen.instance_logits, MASK, kmil.Choice())
  rows = module.key_instances(torch.tensor(BAG))
  np.testing.assert_array_equal(np.flatnonzero(keep), rows)
  assert len(rows) == 9
  assert_ten_steps_equal('kmil', {}, module, module.classifier, keep)
  assert all(p.grad is None for p in module.chooser.parameters())


def test_layers_start_as_torch_linear_does():
  params = DSMIL(5).init(
    jax.random.key(1), jnp.zeros((1, 1024)), jnp.ones(1, bool), train=False
  )['params']
  for layer, fan_in in (('query_1', 1024), ('query_2', 128), ('fuse', 5120)):
    bound = fan_in**-0.5
    weight = np.asarray(params[layer]['weight'])
    assert np.abs(weight).max() <= bound
    # A uniform variable on [-b, b] has the standard deviation b / sqrt(3).
    np.testing.assert_allclose(weight.std(), bound / 3**0.5, rtol=0.02)
    assert 0 < np.abs(params[layer]['bias']).max() <= bound
