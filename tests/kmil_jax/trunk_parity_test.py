"""Convolutional networks against torch: outputs, statistics, one step."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kmil_jax import optim, port
from kmil_jax.models import CLASSIFIERS, resnet as flax_resnet
from kmil_jax.types import Recipe

torch = pytest.importorskip('torch')
twins = pytest.importorskip('torch_modules')
resnet = pytest.importorskip('torch_networks.resnet')
googlenet, mobilenet, node_cnn = (
  pytest.importorskip(f'torch_networks.{name}')
  for name in ('googlenet', 'mobilenet', 'node_cnn')
)

pytestmark = pytest.mark.usefixtures('one_thread')

TILES, SIZE, CLASSES = 4, 64, 3
LABEL = np.array([0, 1, 2, 1])
bottlenecks = functools.partial(resnet.ResNet, resnet.Bottleneck)
TWINS = {
  'googlenet': googlenet.GoogLeNet,
  'googlenet_aux': functools.partial(googlenet.GoogLeNet, auxiliary=True),
  'mobilenet_v2': mobilenet.MobileNetV2,
  'node_cnn': functools.partial(node_cnn.NodeCNN, SIZE, channels=3),
  'resnet18': functools.partial(resnet.ResNet, resnet.BasicBlock, (2,) * 4),
  'resnet50': functools.partial(bottlenecks, (3, 4, 6, 3)),
  'resnet101': functools.partial(bottlenecks, (3, 4, 23, 3)),
}
# Each with a learning rate. In training, deep random networks make of 1e-7 in
# the weights 1e-3 in the features, in either framework: their steps are short,
# and torch computes with 64 bits. Bottlenecks are trained below, with running
# statistics.
TRAINED = {
  'googlenet_aux': 1e-5,
  'mobilenet_v2': 1e-6,
  'node_cnn': 1e-2,
  'resnet18': 1e-2,
}
hastily = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def tiles(size=SIZE):
  shape = (TILES, size, size, 3)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def without_dropout(module):
  for part in module.modules():
    if isinstance(part, torch.nn.Dropout):
      part.p = 0.0
  return module


def twin(name):
  torch.manual_seed(0)
  module = TWINS[name](classes=CLASSES)
  gain = 1.0 if isinstance(module, resnet.ResNet) else 2.4
  return without_dropout(twins.randomized(module, gain))


def scaled(variables, seed):
  """Other variables: each number times one between 0.8 and 1.2."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: leaf * rng.uniform(0.8, 1.2, leaf.shape).astype('f4'),
    variables,
  )


def load(module, state):
  """Loads arrays; torch's counters of batches may stay as they are."""
  tensors = {n: torch.tensor(v) for n, v in state.items()}
  missing, unexpected = module.load_state_dict(tensors, strict=False)
  assert not unexpected
  assert all(n.endswith('num_batches_tracked') for n in missing)


def skip_dropout(call, args, kwargs, context):
  if isinstance(context.module, nn.Dropout):
    return args[0]
  return call(*args, **kwargs)


@functools.cache
def evaluation(name):
  model = CLASSIFIERS[name](num_classes=CLASSES)
  return hastily(model.apply)


@functools.cache
def training(name):
  """One compiled step of gradient descent on the sum of all heads' losses."""
  model = CLASSIFIERS[name](num_classes=CLASSES)

  def loss_fn(params, variables, x):
    with nn.intercept_methods(skip_dropout):
      got, mutated = model.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
    heads = jnp.stack([got.logits, *got.aux_logits])
    losses = optax.softmax_cross_entropy_with_integer_labels(
      heads, jnp.broadcast_to(LABEL, heads.shape[:2])
    )
    return losses.mean(1).sum(), (got, mutated)

  def step(variables, x):
    params = variables['params']
    (loss, (got, mutated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, variables, x
    )
    params = jax.tree.map(lambda p, g: p - TRAINED[name] * g, params, grads)
    return loss, got, {**mutated, 'params': params}

  return hastily(step)


def assert_close(got, want, tolerance=1e-4):
  np.testing.assert_allclose(
    got, want.detach().numpy(), rtol=tolerance, atol=tolerance
  )


# In evaluation, GoogLeNet's auxiliary heads are idle.
@pytest.mark.parametrize('name', sorted(set(CLASSIFIERS) - {'googlenet_aux'}))
def test_outputs_equal_torchs_whichever_way_weights_go(name):
  module, x = twin(name).eval(), tiles()
  variables = port.from_torch(name, twins.state_of(module), num_classes=CLASSES)
  for _ in range(2):
    got = evaluation(name)(variables, x)
    with torch.no_grad():
      logits, features = module(twins.to_torch(x))
    assert features.std(0).max() > 1e-2
    assert_close(got.logits, logits)
    assert_close(got.features, features)
    assert got.aux_logits == ()
    # Now to torch, other weights.
    variables = scaled(variables, 1)
    load(module, port.to_torch(name, variables))


@pytest.mark.parametrize('name', sorted(TRAINED))
def test_two_steps_and_their_statistics_equal_torchs(name):
  module, x = twin(name).train().double(), tiles()
  variables = port.from_torch(name, twins.state_of(module), num_classes=CLASSES)
  sgd = torch.optim.SGD(module.parameters(), lr=TRAINED[name])
  label, losses = torch.tensor(LABEL), []
  for _ in range(2):
    logits, features, *aux = module(twins.to_torch(x).double())
    want = sum(
      torch.nn.functional.cross_entropy(head, label) for head in [logits, *aux]
    )
    sgd.zero_grad()
    want.backward()
    sgd.step()
    loss, got, variables = training(name)(variables, x)
    assert_close(loss, want)
    assert_close(got.logits, logits)
    assert_close(got.features, features, 1e-3)
    assert len(got.aux_logits) == len(aux)
    losses.append(loss.item())
  assert abs(losses[1] - losses[0]) > 3e-4, losses
  theirs = twins.state_of(module)
  for entry, value in port.to_torch(name, variables).items():
    np.testing.assert_allclose(
      value, theirs[entry], rtol=1e-4, atol=1e-4, err_msg=entry
    )


@functools.cache
def trunk_step():
  tx = optim.make(Recipe(learning_rate=1e-4, weight_decay=1e-2))
  trunk = flax_resnet.ResNet50Trunk()

  def step(variables, x, target):
    params, stats = variables['params'], variables['batch_stats']

    def loss_fn(params):
      features = trunk.apply({'params': params, 'batch_stats': stats}, x)
      return jnp.square(features - target).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, _ = tx.update(grads, tx.init(params), params, learning_rate=1e-4)
    params = optax.apply_updates(params, updates)
    return loss, grads, {'params': params, 'batch_stats': stats}

  return hastily(step)


@pytest.mark.parametrize('way', ['torch to Flax', 'Flax to torch'])
def test_trunk_learns_as_torchs(way):
  torch.manual_seed(2)
  module = twins.randomized(resnet.ResNet50(), gain=1.0).eval()
  variables = port.from_torch('resnet50_trunk', twins.state_of(module))
  if way == 'Flax to torch':
    variables = scaled(variables, 3)
    state = port.to_torch('resnet50_trunk', variables)
    module.load_state_dict(
      {n: torch.tensor(v) for n, v in state.items()}, strict=False
    )
  x = tiles(48)
  target = np.random.default_rng(4).normal(size=(TILES, 1024)).astype('f4')
  adam = torch.optim.Adam(module.parameters(), lr=1e-4, weight_decay=1e-2)
  want = (module(twins.to_torch(x)) - torch.tensor(target)).square().mean()
  want.backward()
  loss, grads, variables = trunk_step()(variables, x, target)
  assert_close(loss, want)
  theirs = {
    n: p.grad.numpy().copy() for n, p in module.named_parameters()
    if p.grad is not None
  }  # fmt: skip
  ours = port.to_torch('resnet50_trunk', {**variables, 'params': grads})
  assert set(theirs) <= set(ours)
  for entry, gradient in theirs.items():
    np.testing.assert_allclose(
      ours[entry], gradient, atol=1e-4 * np.abs(gradient).max(), err_msg=entry
    )
  adam.step()
  moved = twins.state_of(module)
  for entry, value in port.to_torch('resnet50_trunk', variables).items():
    if entry in theirs:  # Adam's first step is a sign: not that of noise.
      sure = np.abs(theirs[entry]) > 1e-3 * np.abs(theirs[entry]).max()
      np.testing.assert_allclose(
        value[sure], moved[entry][sure], atol=1e-5, err_msg=entry
      )
      assert np.abs(value - moved[entry]).max() < 3e-4
  want_after = (
    (module(twins.to_torch(x)) - torch.tensor(target)).square().mean()
  )
  after, *_ = trunk_step()(variables, x, target)
  assert_close(after, want_after)
  assert after < loss - 1e-3
