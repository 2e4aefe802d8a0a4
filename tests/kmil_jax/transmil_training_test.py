"""TransMIL's start, and its steps against torch, weights ported both ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kmil_jax import optim, port
from kmil_jax.models import SPECS
from kmil_jax.types import Recipe

torch = pytest.importorskip('torch')
twins = pytest.importorskip('torch_modules')
torch_models = pytest.importorskip('experiments.benchmarks.torch_models')

pytestmark = pytest.mark.usefixtures('one_thread')

WIDTH, CLASSES = 16, 3
SIZES, LABELS, LENGTH = (11, 7), (1, 2), 12
SPEC = SPECS['transmil']
MODEL = SPEC.make(num_classes=CLASSES)


def bag(n, length=None):
  """A bag, and rows that are none of it up to `length`."""
  x = np.random.default_rng(n).normal(size=(length or n, WIDTH))
  return x.astype(np.float32)


def twin():
  torch.manual_seed(0)
  return torch_models.TransMIL(CLASSES, WIDTH).eval()  # No dropout.


@functools.cache
def shapes():
  init = functools.partial(MODEL.init, train=False)
  x, mask = jnp.zeros((1, WIDTH)), jnp.ones(1, bool)
  return jax.eval_shape(init, jax.random.key(0), x, mask)['params']


@functools.cache
def evaluator():
  """The loss and its gradient, compiled as in training."""

  def loss_fn(params, x, mask, label):
    prediction = MODEL.apply({'params': params}, x, mask, train=False)
    return SPEC.loss(prediction, mask, label), prediction

  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def evaluate(params, which):
  n = SIZES[which]
  x, mask = bag(n, LENGTH), np.arange(LENGTH) < n
  return evaluator()(params, x, mask, jnp.int32(LABELS[which]))


def torch_loss(module, which):
  logits, _ = module(torch.tensor(bag(SIZES[which], LENGTH)[: SIZES[which]]))
  return torch.nn.functional.cross_entropy(
    logits[None], torch.tensor([LABELS[which]])
  )


def stepper(tx, rate):
  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, learning_rate=rate)
    return optax.apply_updates(params, updates), state

  return step


def assert_same_step(params, module, before, tolerance):
  """Compares weights, in both layouts, and how far each array has moved.

  Adam divides a gradient by its size: where that is nothing but rounding, a
  weight may go either way. One in 10,000 may.
  """
  ours, theirs = (
    port.to_torch('transmil', {'params': params}),
    twins.state_of(module),
  )
  assert set(ours) == set(theirs)
  for entry, want in theirs.items():
    error = ours[entry] - want
    moved = np.linalg.norm(want - before[entry])
    assert np.linalg.norm(error) < tolerance * moved, entry
    assert np.mean(np.abs(error) > 1e-4) < 1e-4, entry
  back = port.from_torch('transmil', theirs)['params']
  for got, want in zip(*map(jax.tree.leaves, (params, back)), strict=True):
    assert np.mean(np.abs(got - want) > 1e-4) < 1e-4


def test_one_step_of_the_common_recipe_equals_torch():
  module, recipe = twin(), Recipe()
  before = twins.state_of(module)
  params = port.from_torch('transmil', before)['params']
  theirs = torch.optim.Adam(
    module.parameters(),
    lr=recipe.learning_rate,
    weight_decay=recipe.weight_decay,
  )
  want = torch_loss(module, 0)
  want.backward()
  theirs.step()
  (loss, _), grads = evaluate(params, 0)
  np.testing.assert_allclose(loss, want.item(), atol=1e-4)
  tx = optim.make(recipe)
  params, _ = stepper(tx, recipe.learning_rate)(params, tx.init(params), grads)
  assert_same_step(params, module, before, 0.01)


def radam(module, recipe):
  """Decays neither biases nor norms."""
  weights = list(module.parameters())
  kept = [p for p in weights if p.ndim == 1]
  decayed = [p for p in weights if p.ndim > 1]
  return torch.optim.RAdam(
    [{'params': decayed}, {'params': kept, 'weight_decay': 0}],
    lr=recipe.learning_rate,
    betas=recipe.betas,
    weight_decay=recipe.weight_decay,
    decoupled_weight_decay=True,
  )


def test_seven_steps_of_its_own_recipe_equal_torch():
  """Of the mean gradients of two bags.

  The slow weights begin at step 6 as the fast ones are, which moves nothing:
  torch needs no lookahead here. See optim_test for the later ones.
  """
  module, recipe = twin(), SPEC.own
  before = twins.state_of(module)
  params = port.from_torch('transmil', before)['params']
  theirs, tx = radam(module, recipe), optim.make(recipe)
  step, state = stepper(tx, recipe.learning_rate), tx.init(params)
  assert recipe.accumulate == len(SIZES)
  for number in range(1, 8):
    for which in range(recipe.accumulate):
      want = torch_loss(module, which)
      (want / recipe.accumulate).backward()
      (loss, _), grads = evaluate(params, which)
      # From step 6 on updates are rectified, in optax by three digits.
      atol = 1e-4 if number <= 6 else 3e-4
      np.testing.assert_allclose(loss, want.item(), atol=atol)
      params, state = step(params, state, grads)
    theirs.step()
    theirs.zero_grad()
    if number in (1, 7):
      assert_same_step(params, module, before, 0.01 if number == 1 else 0.1)


def test_weights_of_flax_give_the_same_in_torch():
  rng = np.random.default_rng(3)
  params = jax.tree.map(
    lambda leaf: rng.uniform(-0.1, 0.1, leaf.shape).astype(np.float32), shapes()
  )
  module = twin()
  state = port.to_torch('transmil', {'params': params})
  module.load_state_dict(
    {name: torch.tensor(value) for name, value in state.items()}, strict=True
  )
  for which, n in enumerate(SIZES):
    (loss, got), _ = evaluate(params, which)
    logits, _ = module(torch.tensor(bag(n, LENGTH)[:n]))
    np.testing.assert_allclose(got.logits, logits.detach(), atol=1e-4)
    want = torch_loss(module, which)
    np.testing.assert_allclose(loss, want.item(), atol=1e-4)


def test_it_starts_as_torch_does():
  init = jax.jit(functools.partial(MODEL.init, train=False))
  x, mask = jnp.zeros((1, WIDTH)), jnp.ones(1, bool)
  params = init(jax.random.key(0), x, mask)['params']
  np.testing.assert_allclose(params['class_token'].std(), 1, rtol=0.1)
  for weights, fan_in in (
    (params['embed']['weight'], WIDTH),
    (params['layer1']['qkv']['weight'], 512),
    (params['layer2']['residual'], 33),
    (params['ppeg']['conv5']['kernel'], 25),
    (params['ppeg']['conv7']['bias'], 49),
  ):
    bound = fan_in**-0.5
    assert np.abs(weights).max() <= bound
    # A uniform variable on [-b, b] has the standard deviation b / sqrt(3).
    np.testing.assert_allclose(weights.std(), bound / 3**0.5, rtol=0.1)
