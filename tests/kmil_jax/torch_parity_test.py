"""Models, losses and steps against torch, weights ported both ways."""

import dataclasses
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
bag_models = pytest.importorskip('torch_networks.bag_models')
torch_models = pytest.importorskip('experiments.benchmarks.torch_models')

pytestmark = pytest.mark.usefixtures('one_thread')

WIDTH, CLASSES, N, LABEL = 32, 4, 11, 2
RECIPE = Recipe(learning_rate=2e-4, weight_decay=1e-5)
MASK = np.ones(N, bool)
# Compiling is all that takes time here.
hastily = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model of `SPECS` and its twin."""

  name: str
  make: type
  twin: tuple = ()  # options of `make`
  options: tuple = ()  # and of the model

  def __str__(self):
    return '-'.join([self.name, *(str(value) for _, value in self.options)])


BAGS = [
  Case('abmil', torch_models.ABMIL),
  Case('abmil_plain', bag_models.ABMILPlain),
  Case('abmil_ilse', bag_models.ABMILIlse),
  Case('abmil_ilse_plain', bag_models.ABMILIlsePlain),
  Case('dsmil', torch_models.DSMIL),
  Case('dsmil_value', bag_models.DSMILValue),
]
PSEUDO_BAGS = [
  Case(
    name, bag_models.DTFD, (*options, ('gated', name == 'dtfd_gated')), options
  )
  for name, distill, score in [
    ('dtfd', 'afs', 'last'),
    ('dtfd', 'mas', 'last'),
    ('dtfd', 'maxs', 'last'),
    ('dtfd', 'maxs', 'predicted'),
    ('dtfd', 'maxmins', 'last'),
    ('dtfd', 'maxmins', 'predicted'),
    ('dtfd_gated', 'afs', 'last'),
    ('dtfd_gated', 'maxmins', 'last'),
  ]
  for options in [
    (('distill', distill), ('score', score), ('total_instances', 8))
  ]
]
# Compiled as in training: one of each family.
OPTIMIZED = [
  (case.name, case.options)
  for case in [*BAGS, PSEUDO_BAGS[0]]
  if case.name in ('abmil', 'dsmil', 'dtfd')
]
every_case = pytest.mark.parametrize('case', BAGS + PSEUDO_BAGS, ids=str)


def bag(scale=1.0):
  x = np.random.default_rng(0).normal(size=(N, WIDTH))
  return (scale * x).astype(np.float32)


@functools.cache
def groups():
  """The pseudo-bags that every evaluation of N instances draws."""
  member, _ = pseudo_bags(jax.random.key(0), jnp.asarray(MASK), 4)
  return torch.tensor(np.asarray(member).argmax(1))


def twin(case):
  """The torch model, and what it takes beside the bag."""
  module = case.make(CLASSES, WIDTH, **dict(case.twin)).eval()
  return module, {'groups': groups()} if case in PSEUDO_BAGS else {}


@functools.cache
def program(name, options, clip=None):
  """The Flax model and one compiled step: loss, prediction, norms, state."""
  spec = SPECS[name]
  model = spec.make(num_classes=CLASSES, **dict(options))
  tx = optim.make(dataclasses.replace(RECIPE, clip=clip))

  def loss_fn(params, x, mask):
    prediction = model.apply({'params': params}, x, mask, train=False)
    return spec.loss(prediction, mask, jnp.int32(LABEL)), prediction

  def step(params, opt_state, x, mask):
    (loss, prediction), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, x, mask
    )
    updates, opt_state = tx.update(
      grads, opt_state, params, learning_rate=RECIPE.learning_rate
    )
    norms = [optax.tree.norm(module) for module in grads.values()]
    params = optax.apply_updates(params, updates)
    return loss, prediction, norms, params, opt_state

  compiled = jax.jit if (name, options) in OPTIMIZED else hastily
  return model, tx, compiled(step)


def adam(parameters):
  return torch.optim.Adam(
    parameters, lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay
  )


def close(got, want):
  np.testing.assert_allclose(got, want.detach(), atol=1e-5)


def assert_close_weights(name, params, module):
  """Compares all weights but those whose gradient is nothing but rounding.

  A softmax ignores its scores' bias: Adam makes steps of its rounding errors,
  in both frameworks.
  """
  theirs = twins.state_of(module)
  biases = {'path_attn_head.attention_c.bias', 'attention.2.bias',
            'attention_w.bias', 'attention.attention.2.bias',
            'attention.attention_weights.bias',
            'att_classifier.attention.attention_weights.bias'}  # fmt: skip
  ours = port.to_torch(name, {'params': jax.device_get(params)})
  assert set(ours) == set(theirs)
  for entry in set(ours) - biases:
    np.testing.assert_allclose(
      ours[entry], theirs[entry], atol=1e-5, err_msg=entry
    )


@every_case
def test_forward_loss_and_ten_steps_equal_torch(case):
  torch.manual_seed(0)
  module, extra = twin(case)
  x, label = torch.tensor(bag()), torch.tensor(LABEL)
  params = port.from_torch(case.name, twins.state_of(module))['params']
  _, tx, step = program(case.name, case.options)
  opt_state, theirs = tx.init(params), adam(module.parameters())
  for number in range(10):
    logits, attention = module(x, **extra)
    want = module.loss(x, label, **extra)
    theirs.zero_grad()
    want.backward()
    theirs.step()
    loss, got, _, params, opt_state = step(params, opt_state, bag(), MASK)
    close(got.logits, logits)
    close(got.attention, attention)
    close(loss, want)
    if number in (0, 9):
      assert_close_weights(case.name, params, module)


@every_case
def test_weights_of_flax_give_the_same_in_torch(case):
  model, tx, step = program(case.name, case.options)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), bag(), MASK)['params']
  rng = np.random.default_rng(3)
  params = jax.tree.map(
    lambda leaf: rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32), shapes
  )
  loss, got, *_ = step(params, tx.init(params), bag(), MASK)
  module, extra = twin(case)
  state = port.to_torch(case.name, {'params': params})
  module.load_state_dict(
    {name: torch.tensor(value) for name, value in state.items()}
  )
  x = torch.tensor(bag())
  logits, attention = module(x, **extra)
  close(got.logits, logits)
  close(got.attention, attention)
  close(loss, module.loss(x, torch.tensor(LABEL), **extra))


def test_kmil_keeps_and_classifies_as_torch_does():
  torch.manual_seed(0)
  module = torch_models.KMIL(CLASSES, WIDTH).eval()
  chooser = port.from_torch('abmil', twins.state_of(module.chooser))['params']
  params = port.from_torch('kmil', twins.state_of(module.classifier))['params']
  x, label = torch.tensor(bag()), torch.tensor(LABEL)

  chosen = (
    SPECS['abmil']
    .make(num_classes=CLASSES)
    .apply({'params': chooser}, bag(), MASK, train=False)
  )
  scores = kmil.instance_scores(chosen.instance_logits, 'var')
  keep = kmil.key_instances(scores, MASK, 100, 'lowest')
  rows = module.key_instances(x)
  np.testing.assert_array_equal(np.flatnonzero(keep), rows)
  assert len(rows) == 9

  _, tx, step = program('dsmil', ())  # KMIL's second model.
  opt_state, theirs = tx.init(params), adam(module.classifier.parameters())
  for _ in range(10):
    logits, attention = module(x)
    want = module.loss(x, label)
    theirs.zero_grad()
    want.backward()
    theirs.step()
    loss, got, _, params, opt_state = step(params, opt_state, bag(), keep)
    close(got.logits, logits)
    close(got.attention, attention)
    close(loss, want)
  assert_close_weights('kmil', params, module.classifier)
  assert all(p.grad is None for p in module.chooser.parameters())


@pytest.mark.parametrize('scale', [0.3, 2.0], ids=['free', 'clipped'])
def test_one_clipped_step_is_that_of_dtfds_two_optimisers(scale):
  torch.manual_seed(1)
  case = PSEUDO_BAGS[0]
  module, extra = twin(case)
  x, label = torch.tensor(bag(scale)), torch.tensor(LABEL)
  params = port.from_torch(case.name, twins.state_of(module))['params']
  _, tx, step = program(case.name, case.options, clip=bag_models.CLIP)
  opt_state = tx.init(params)
  tiers = bag_models.optimizers(
    module, lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay
  )
  clipped = 0
  for _ in range(10):
    want = bag_models.step(module, tiers, x, label, **extra)
    loss, _, norms, params, opt_state = step(params, opt_state, x.numpy(), MASK)
    np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-5)
    clipped += sum(norm > bag_models.CLIP for norm in norms)
  assert (clipped > 0) == (scale > 1)
  assert_close_weights(case.name, params, module)


def test_dtfd_deals_nearly_equal_pseudo_bags():
  module = bag_models.DTFD(CLASSES, WIDTH)
  for n in (1, 3, 4, 11):
    sizes = torch.bincount(module.deal(torch.zeros(n, 1)), minlength=4)
    want = [len(part) for part in np.array_split(np.arange(n), 4)]
    assert sizes.tolist() == want
  logits, attention = module(torch.zeros(2, WIDTH))
  assert logits.isfinite().all()
  np.testing.assert_allclose(attention.sum().item(), 1, rtol=1e-6)


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
