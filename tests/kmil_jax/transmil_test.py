"""TransMIL against torch; its shortcuts against what they replace."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models import nystrom, transmil
from kmil_jax.models.nystrom import Sequence
from kmil_jax.models.transmil import TransMIL

WIDTH, CLASSES, LABEL = 16, 3, 1
MODEL = TransMIL(CLASSES)


@functools.cache
def torch_model(sharper=1):
  """A torch module and its port.

  Its queries and keys are 2 `sharper` times as long as at its start.
  """
  torch = pytest.importorskip('torch')
  from experiments.benchmarks.torch_models import TransMIL as TorchTransMIL

  torch.manual_seed(0)
  torch.set_num_threads(1)  # As fast as two where others compute.
  module = TorchTransMIL(CLASSES, WIDTH).eval()
  with torch.no_grad():
    for layer in (module.layer1, module.layer2):
      layer.attn.to_qkv.weight *= 2
      layer.attn.to_qkv.weight[: 2 * 512] *= sharper
      layer.norm.bias += 0.1 * torch.randn(512)
  return module, ported(module.state_dict())


def ported(state):
  return port.from_torch(
    'transmil', {name: t.detach().numpy() for name, t in state.items()}
  )['params']


@functools.cache
def evaluator():
  def loss_fn(params, x, mask):
    prediction = MODEL.apply({'params': params}, x, mask, train=False)
    return -jax.nn.log_softmax(prediction.logits)[LABEL], prediction

  return jax.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))


@functools.cache
def start():
  x, mask = jnp.zeros((1, WIDTH)), jnp.ones(1, bool)
  init = jax.jit(functools.partial(MODEL.init, train=False))
  return init(jax.random.key(0), x, mask)['params']


def bag(n):
  return np.random.default_rng(n).normal(size=(n, WIDTH)).astype('f4')


def padded(n, length):
  """A bag with garbage behind its end, and its mask."""
  garbage = 30 * bag(length - n)
  return np.concatenate([bag(n), garbage]), np.arange(length) < n


def relative(got, want):
  return np.abs(got - want).max() / np.abs(want).max()


def test_torchs_residual_has_the_right_gradient():
  """The baseline turns oneDNN's (33, 1) convolution off: see `_convolve`."""
  torch = pytest.importorskip('torch')
  from experiments.benchmarks import torch_models

  torch.manual_seed(0)
  attention = torch_models.NystromAttention()
  weight = attention.res_conv.weight
  v, cotangent = torch.randn(2, 8, 256, 64)
  (attention._convolve(v) * cotangent).sum().backward()
  wide = weight.detach().double().requires_grad_()
  with torch.backends.mkldnn.flags(enabled=False):
    y = torch.nn.functional.conv2d(
      v.double()[None], wide, padding=(16, 0), groups=8
    )
    (y[0] * cotangent.double()).sum().backward()
  np.testing.assert_allclose(weight.grad, wide.grad, rtol=1e-4, atol=1e-2)


# Lengths up to 225 take the short path; 5 is tried on both.
@pytest.mark.parametrize(
  'n,length', [(1, 8), (5, 8), (5, 300), (57, 300), (257, 300)]
)
def test_values_and_gradients_equal_torch(n, length):
  module, params = torch_model()
  import torch

  x = torch.tensor(bag(n), requires_grad=True)
  module.zero_grad()
  logits, _ = module(x)
  loss = torch.nn.functional.cross_entropy(logits[None], torch.tensor([LABEL]))
  loss.backward()
  want = ported({name: p.grad for name, p in module.named_parameters()})

  values, mask = padded(n, length)
  (_, prediction), (grad, grad_x) = evaluator()(params, values, mask)
  np.testing.assert_allclose(prediction.logits, logits.detach(), atol=1e-4)
  errors = jax.tree.map(relative, grad, want)
  assert max(jax.tree.leaves(errors)) < 1e-3, errors
  assert relative(grad_x[:n], x.grad.numpy()) < 1e-3
  np.testing.assert_array_equal(grad_x[n:], 0)


@functools.cache
def forward(dtype=None):
  model = TransMIL(CLASSES, dtype=dtype)
  return jax.jit(
    lambda params, x, mask: model.apply(
      {'params': params}, x, mask, train=False
    )
  )


@pytest.mark.parametrize(
  'n,length,sharper',
  [
    *((n, 225, 1) for n in (24, 100, 225)),
    *((n, 1200, 1) for n in (1, 2, 3, 24, 225, 255, 256, 600, 1100)),
    *((n, 225, sharper) for n in (57, 225) for sharper in (2, 4)),
    *((n, 1200, sharper) for n in (257, 600) for sharper in (2, 4)),
  ],
)
def test_logits_equal_torch(n, length, sharper):
  module, params = torch_model(sharper)
  import torch

  with torch.no_grad():
    want, _ = module(torch.tensor(bag(n)))
  got = forward()(params, *padded(n, length))
  # See `_polynomials` about the digits that sharp weights cost.
  atol = 3e-4 if length > 225 and sharper > 2 else 1e-4
  np.testing.assert_allclose(got.logits, want, atol=atol)


@pytest.mark.parametrize('length', [8, 300])
def test_attention_is_the_class_tokens_row_folded(length):
  module, params = torch_model()
  import torch

  from experiments.benchmarks.torch_models import pseudo_inverse

  n, side = 5, 3
  seen = {}
  hook = module.layer2.attn.register_forward_pre_hook(
    lambda _, inputs: seen.update(x=inputs[0])
  )
  with torch.no_grad():
    module(torch.tensor(bag(n)))
    hook.remove()
    x = torch.nn.functional.pad(seen['x'], (0, 0, 256 - 1 - side**2, 0))
    q, k, _ = (
      module.layer2.attn.to_qkv(x).view(256, 3, 8, 64).permute(1, 2, 0, 3)
    )
    a = torch.softmax(q @ k.transpose(1, 2) / 8, -1)
    row = (a @ pseudo_inverse(a) @ a)[:, -1 - side**2].mean(0)[-(side**2) :]
  want = row[:n].clone()
  want[: side**2 - n] += row[n:]
  want = want.clamp(min=0) / want.clamp(min=0).sum()
  (_, prediction), _ = evaluator()(params, *padded(n, length))
  np.testing.assert_allclose(prediction.attention[:n, 0], want, atol=2e-5)
  np.testing.assert_array_equal(prediction.attention[n:], 0)


def test_nothing_depends_on_how_much_padding_there_is():
  """Of one bag, on both sides of the short path's end."""
  n, length = 5, 300
  (_, want), (want_grad, want_x) = evaluator()(start(), *padded(n, 8))
  (_, got), (grad, grad_x) = evaluator()(start(), *padded(n, length))
  close = functools.partial(chex.assert_trees_all_close, rtol=1e-3, atol=1e-5)
  close(got.logits, want.logits)
  close(got.attention[:n], want.attention[:n])
  close(got.instance_logits[:n], want.instance_logits[:n])
  close(grad_x[:n], want_x[:n])
  close(grad, want_grad)


def test_runs_and_bags_together_are_each_alone():
  lengths = (3, 5)
  x, mask = map(np.stack, zip(*(padded(n, 8) for n in lengths), strict=True))
  runs = [start(), jax.tree.map(lambda p: 1.1 * p, start())]
  both = jax.tree.map(lambda *p: jnp.stack(p), *runs)
  evaluate = jax.vmap(evaluator(), (None, 0, 0))
  (_, got), (grad, grad_x) = jax.jit(jax.vmap(evaluate, (0, None, None)))(
    both, x, mask
  )
  for r, params in enumerate(runs):
    for b in range(len(lengths)):
      (_, want), (want_grad, want_x) = evaluator()(params, x[b], mask[b])
      chex.assert_trees_all_close(
        (got.logits[r, b], grad_x[r, b]),
        (want.logits, want_x),
        rtol=1e-3,
        atol=1e-5,
      )
      errors = jax.tree.map(lambda g: g[r, b], grad)  # noqa: B023
      errors = jax.tree.map(relative, errors, want_grad)
      assert max(jax.tree.leaves(errors)) < 1e-3, errors


@pytest.mark.parametrize('sharper,tolerance', [(2, 0.02), (8, 0.04)])
@pytest.mark.parametrize('n,length', [(57, 225), (257, 1200)])
def test_bfloat16_stays_close_with_sharp_weights(n, length, sharper, tolerance):
  _, params = torch_model(sharper)
  want = forward()(params, *padded(n, length))
  got = forward(jnp.bfloat16)(params, *padded(n, length))
  assert got.logits.dtype == jnp.float32
  error = relative(got.logits, want.logits)
  assert 0 < error < tolerance


def test_the_pseudo_inverse_inverts():
  torch = pytest.importorskip('torch')
  from experiments.benchmarks.torch_models import pseudo_inverse

  scores = np.random.default_rng(0).normal(size=(2, 40, 40)) + 6 * np.eye(40)
  a = jax.nn.softmax(jnp.asarray(scores, jnp.float32))
  scale = a.sum(1).max()
  eye = jnp.broadcast_to(jnp.eye(40), a.shape)
  z = jnp.swapaxes(a, 1, 2) @ nystrom._polynomials(a, scale, eye) / scale
  np.testing.assert_allclose(a @ z @ a, a, atol=1e-4)
  np.testing.assert_allclose(
    z, pseudo_inverse(torch.tensor(np.asarray(a))), atol=1e-3
  )


@pytest.mark.parametrize(
  'count,zeros,group', [(2, 254, 1), (256, 0, 1), (257, 255, 2), (626, 142, 3)]
)
def test_row_zero_stands_for_the_zero_tokens(count, zeros, group):
  sequence = Sequence.of(jnp.int32(count), 700)
  assert sequence.group == group
  assert sequence.weight[0] == zeros
  np.testing.assert_array_equal(
    np.flatnonzero(sequence.real), np.arange(1, count + 1)
  )
  # Their means are those of the right-aligned rows of the reference.
  x = np.random.default_rng(0).normal(size=(700, 4)).astype('f4')
  x *= np.asarray(sequence.real)[:, None]
  rows = np.concatenate([np.zeros((zeros, 4)), x[1 : count + 1]])
  np.testing.assert_allclose(
    nystrom._means(jnp.asarray(x), sequence),
    rows.reshape(256, group, 4).mean(1),
    atol=1e-6,
  )


@pytest.mark.parametrize('part', [slice(0, 150), slice(1, 2), slice(3, 130)])
def test_values_are_filtered_along_the_tokens(part):
  rng = np.random.default_rng(0)
  v, taps = rng.normal(size=(8, 150, 64)), rng.normal(size=(8, 33))
  got = nystrom._convolution(
    jnp.asarray(v, jnp.float32), jnp.asarray(taps, jnp.float32), part
  )
  filtered = lambda h, d: np.correlate(np.pad(v[h, :, d], 16), taps[h])
  for h, d in ((0, 0), (7, 63)):
    np.testing.assert_allclose(got[h, :, d], filtered(h, d)[part], atol=1e-4)


@pytest.mark.parametrize('side', [1, 3, 5])
def test_convolution_of_a_traced_square_is_that_of_a_canvas(side):
  rng = np.random.default_rng(side)
  longest, width = 5, 4
  x = rng.normal(size=(longest**2, width)).astype('f4')
  x[side**2 :] = 0
  kernel = rng.normal(size=(49, width)).astype('f4')
  inside = (np.arange(longest**2) < side**2)[:, None]
  cotangent = inside * rng.normal(size=x.shape).astype('f4')

  def canvas(x, kernel):
    y = jax.lax.conv_general_dilated(
      x[: side**2].reshape(1, side, side, width),
      kernel.reshape(7, 7, 1, width),
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=width,
    )
    y = y.reshape(side**2, width)
    return jnp.pad(y, ((0, longest**2 - side**2), (0, 0)))

  want, back = jax.vjp(canvas, x, kernel)
  got, mine = jax.vjp(
    jax.jit(lambda x, k: transmil._convolve(x, k, jnp.int32(side))), x, kernel
  )
  np.testing.assert_allclose(inside * got, want, atol=1e-5)
  (want_x, want_kernel), (got_x, got_kernel) = back(cotangent), mine(cotangent)
  np.testing.assert_allclose(inside * got_x, want_x, atol=1e-5)
  np.testing.assert_allclose(got_kernel, want_kernel, atol=1e-5)
