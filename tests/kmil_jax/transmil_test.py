"""TransMIL against torch: values, gradients, attention, start and steps."""

import contextlib
import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kmil_jax import optim, port
from kmil_jax.models import SPECS, cpu, fused, pooling
from kmil_jax.models.nystrom import NystromLayer, Sequence
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


def bag(n):
  return np.random.default_rng(n).normal(size=(n, WIDTH)).astype('f4')


def padded(n, length):
  """A bag with garbage behind its end, and its mask."""
  garbage = 30 * bag(length - n)
  return np.concatenate([bag(n), garbage]), np.arange(length) < n


def relative(got, want):
  return np.abs(got - want).max() / np.abs(want).max()


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


@pytest.mark.parametrize('sharper,tolerance', [(2, 0.02), (8, 0.04)])
@pytest.mark.parametrize('n,length', [(57, 225), (257, 1200)])
def test_bfloat16_stays_close_with_sharp_weights(n, length, sharper, tolerance):
  _, params = torch_model(sharper)
  want = forward()(params, *padded(n, length))
  got = forward(jnp.bfloat16)(params, *padded(n, length))
  assert got.logits.dtype == jnp.float32
  error = relative(got.logits, want.logits)
  assert 0 < error < tolerance


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


def test_steps_of_its_own_recipe_equal_torch():
  """Of the mean gradients of two bags; optim_test has the later ones.

  Adam divides a gradient by its size: where that is nothing but rounding, a
  weight may go either way. One in 10,000 may.
  """
  import torch

  module, params = torch_model()
  module, recipe = copy.deepcopy(module), SPECS['transmil'].own
  before = {n: p.numpy().copy() for n, p in module.state_dict().items()}
  weights = list(module.parameters())
  theirs = torch.optim.RAdam(
    [
      {'params': [p for p in weights if p.ndim > 1]},
      # Biases and norms.
      {'params': [p for p in weights if p.ndim == 1], 'weight_decay': 0},
    ],
    lr=recipe.learning_rate,
    betas=recipe.betas,
    weight_decay=recipe.weight_decay,
    decoupled_weight_decay=True,
  )
  tx = optim.make(recipe)
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(3):
    theirs.zero_grad()
    for n in (5, 7):
      loss = module.loss(torch.tensor(bag(n)), torch.tensor(LABEL))
      (loss / recipe.accumulate).backward()
      (got, _), (grads, _) = evaluator()(params, *padded(n, 8))
      np.testing.assert_allclose(got, loss.item(), atol=1e-4)
      updates, state = update(
        grads, state, params, learning_rate=recipe.learning_rate
      )
      params = optax.apply_updates(params, updates)
    theirs.step()
  ours = port.to_torch('transmil', {'params': params})
  for entry, want in module.state_dict().items():
    want = want.numpy()
    error = ours[entry] - want
    moved = np.linalg.norm(want - before[entry])
    assert np.linalg.norm(error) < 0.03 * moved, entry
    assert np.mean(np.abs(error) > 1e-4) < 1e-4, entry


def both_forms(length, real, blocks):
  """What whole bags and `blocks`, a context, give for `real` instances each."""
  x = jax.random.normal(jax.random.key(0), (length, WIDTH))
  params = MODEL.init(jax.random.key(1), x[:1], jnp.ones(1, bool), train=False)

  def loss(params, x, n):
    mask = jnp.arange(length) < n
    prediction = MODEL.apply(params, x, mask, train=False)
    attended = (prediction.attention**2).sum()
    shown = jnp.where(mask[:, None], prediction.instance_logits, 0)
    loss = prediction.logits[LABEL] + n * attended + (shown**2).sum() / n
    return loss, (prediction.logits, prediction.attention, shown)

  def evaluated(context):
    with context:
      of = lambda *args: jax.value_and_grad(loss, (0, 1), has_aux=True)(*args)
      compiled = jax.jit(of).lower(params, x, 1).compile()
    return [compiled(params, x, n) for n in real]

  whole = evaluated(cpu.lowering_for('cpu'))
  return jax.tree.leaves(whole), jax.tree.leaves(evaluated(blocks))


@pytest.mark.slow
def test_scores_in_blocks_give_what_whole_ones_give():
  """The form of accelerators, of three blocks here, beside that of CPUs."""
  forms = both_forms(5000, [4321], cpu.lowering_for('cuda'))
  for want, got in zip(*forms, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def attend(q, k, v, bias):
  scores = jnp.einsum('hmd,htd->hmt', q, k) + bias
  return jax.nn.softmax(scores) @ v.astype(jnp.float32)


def test_fused_attention_is_attention(monkeypatch, rows=70, keys=300, real=99):
  """Of rows and keys that are no whole blocks; some keys are padding.

  Keys are so many that they are read as [T, H, D].
  """
  monkeypatch.setattr(fused, '_INTERPRETED', True)
  q, k, v, w = (
    jax.random.normal(jax.random.key(i), (2, 2, n, 16))
    for i, n in enumerate((rows, keys, keys, rows))
  )
  inside = jnp.arange(keys) < real
  bias = jnp.where(inside, jnp.log(1 + jnp.arange(keys)), -1e30)

  @functools.partial(jax.jit, static_argnums=0)
  def evaluated(attend, q):
    attend = jax.vmap(attend, (0, 0, 0, None))  # Of two runs.
    y, pull = jax.vjp(lambda *x: attend(*x, bias), q, k, v)
    return y, *pull(w)

  for got, want in zip(
    evaluated(fused.attend, 4 * q), evaluated(attend, 4 * q), strict=True
  ):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_fused_attention_is_tried_where_it_is_used():
  # From then on kernels are only made where GPUs are.
  if jax.__version_info__ < (0, 12):
    assert fused._works()
    return
  with pytest.warns(match='kernels do not work here'):
    assert not fused._works()


def test_gpus_take_fused_attention_in_bfloat16(monkeypatch, rows=300, real=270):
  _, params = torch_model()
  layer = NystromLayer(dtype=jnp.bfloat16)
  h = jax.random.normal(jax.random.key(0), (rows, 512))
  sequence = Sequence.of(jnp.int32(real), rows)
  calls = []
  monkeypatch.setattr(fused, '_works', lambda: True)
  monkeypatch.setattr(
    fused, 'attend', lambda *args: calls.append(1) or attend(*args)
  )

  def attended(platform):
    apply = lambda params: layer.apply(
      {'params': params}, h, sequence, (slice(1, real + 1),), train=False
    )
    with cpu.lowering_for(platform):
      (y,), _ = jax.jit(apply)(params['layer1'])
    return y - h[1 : real + 1]

  want = attended('cpu')
  assert not calls
  assert relative(attended('cuda'), want) < 5e-3
  assert len(calls) == 2


@pytest.mark.slow
def test_a_long_bag_gives_what_a_whole_one_gives(monkeypatch, length=350):
  """In blocks of 128; all, most and one of its instances are real."""

  @contextlib.contextmanager
  def long():
    with monkeypatch.context() as patch, cpu.lowering_for('cpu'):
      patch.setattr(pooling, 'WHOLE', 256)
      patch.setattr(pooling, 'BLOCK', 128)
      yield

  forms = both_forms(length, [length, length - 77, 1], long())
  # See `_polynomials` about the digits that short sequences cost.
  for want, got in zip(*forms, strict=True):
    np.testing.assert_allclose(got, want, atol=5e-5 * np.abs(want).max())


def test_a_long_bag_takes_less_memory_than_a_whole_one(monkeypatch):
  """CPUs start with zeros for every loop: six times [N, 512], of eleven."""
  monkeypatch.setattr(pooling, 'WHOLE', 1024)
  monkeypatch.setattr(pooling, 'BLOCK', 2048)
  _, params = torch_model()

  def temporary(rows):
    predict = forward.__wrapped__()  # Not traced yet.
    compiled = predict.lower(params, *padded(rows, rows)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert (temporary(10240) - temporary(6144)) / 4096 < 6 * 4 * 512
