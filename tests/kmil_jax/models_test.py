"""Every bag model: no output, loss or gradient depends on padding."""

import functools
import itertools

import chex
from hypothesis import example, given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models import SPECS, cpu, pooling

WIDTH, CLASSES, LABEL = 12, 3, 2
SIZE = 8  # Most tests pad to this: a model is compiled once for them.
ORDERED = ('dtfd', 'dtfd_gated', 'transmil')
RANDOM = ('abmil', 'dtfd', 'dtfd_gated', 'transmil')
# Models with options that change what of a bag they look at; the pseudo-bags of
# 8 instances have 2 each, and k is 2.
MODES = {
  f'{name} {distill} {score}': (
    name,
    {'distill': distill, 'score': score, 'total_instances': 8},
  )
  for name, distill, score in itertools.product(
    ('dtfd', 'dtfd_gated'), ('mas', 'maxs', 'maxmins'), ('last', 'predicted')
  )
  if (distill, score) != ('mas', 'predicted')  # It ranks nothing.
}

every_model = pytest.mark.parametrize('name', sorted(SPECS))
every_mode = pytest.mark.parametrize('name', [*sorted(SPECS), *MODES])
# What compiles a program of its own makes do with the mode that has most parts.
some_modes = pytest.mark.parametrize(
  'name', [*sorted(SPECS), 'dtfd maxmins predicted']
)


def model_of(name, num_classes=CLASSES, dtype=None):
  spec, options = MODES.get(name, (name, {}))
  return SPECS[spec].make(num_classes=num_classes, dtype=dtype, **options)


def loss_of(name):
  return SPECS[MODES.get(name, (name,))[0]].loss


@functools.cache
def params_of(name):
  """A start by the model itself; modes have that of their model."""
  name, _ = MODES.get(name, (name, {}))
  init = functools.partial(model_of(name).init, train=False)
  return jax.jit(init)(jax.random.key(0), bag(1), np.ones(1, bool))['params']


@functools.cache
def evaluator(name):
  model = model_of(name)

  def loss_fn(params, x, mask):
    prediction = model.apply({'params': params}, x, mask, train=False)
    return loss_of(name)(prediction, mask, jnp.int32(LABEL)), prediction

  return jax.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))


def evaluate(name, x, mask, params=None):
  """Prediction, loss and the gradients of parameters and input."""
  params = params_of(name) if params is None else params
  (loss, prediction), grads = evaluator(name)(params, x, mask)
  return jax.device_get((prediction, loss, *grads))


def bag(n, seed=0, shift=0.0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(n, WIDTH)) + shift).astype(np.float32)


def pad(x, length=SIZE, padding=None):
  """A bag of some length, and its mask."""
  if padding is None:
    padding = np.zeros((length - len(x), WIDTH), np.float32)
  return np.concatenate([x, padding]), np.arange(length) < len(x)


def assert_same(padded, plain, n):
  prediction, loss, grad, grad_x = padded
  want, want_loss, want_grad, want_grad_x = plain
  close = lambda a, b: chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-6)
  close((prediction.logits, loss, grad), (want.logits, want_loss, want_grad))
  close(prediction.pseudo_logits, want.pseudo_logits)
  close(prediction.attention[:n], want.attention[:n])
  close(prediction.instance_logits[:n], want.instance_logits[:n])
  close(grad_x[:n], want_grad_x[:n])
  np.testing.assert_array_equal(prediction.attention[n:], 0)
  np.testing.assert_array_equal(grad_x[n:], 0)


@every_mode
@settings(max_examples=10)
@given(
  n=st.integers(1, SIZE - 1),
  scale=st.sampled_from([1.0, 100.0, np.nan, np.inf, -np.inf]),
  seed=st.integers(0, 100),
)
@example(n=1, scale=np.nan, seed=0)
@example(n=SIZE - 1, scale=100.0, seed=0)
@example(n=1, scale=(np.nan, np.inf, -np.inf), seed=0)
@example(n=3, scale=(np.nan, np.inf, -np.inf), seed=0)
@example(n=7, scale=(np.nan, np.inf, -np.inf), seed=0)
def test_what_padding_holds_never_matters(name, n, scale, seed):
  x = bag(n, seed)
  garbage = bag(SIZE - n, seed + 1)
  scale = np.resize(np.float32(scale), garbage.shape)
  garbage = np.where(np.isfinite(scale), scale * garbage, scale)
  padded = evaluate(name, *pad(x, padding=garbage))
  chex.assert_tree_all_finite(padded)
  assert_same(padded, evaluate(name, *pad(x)), n)
  attention = padded[0].attention
  np.testing.assert_allclose(attention.sum(0), 1, rtol=1e-6)


@every_model
def test_training_depends_on_its_seed_and_not_on_nan_in_padding(name):
  """With dropout, in bfloat16 and for several bags at once."""
  model = model_of(name, dtype=jnp.bfloat16)

  def loss(params, x, mask, seed):
    prediction = model.apply(
      {'params': params},
      x,
      mask,
      train=True,
      rngs={'dropout': jax.random.key(seed)},
    )
    value = loss_of(name)(prediction, mask, jnp.int32(LABEL))
    return value, prediction.logits

  grad = jax.value_and_grad(loss, has_aux=True)
  train = jax.jit(jax.vmap(grad, (None, 0, 0, None)))
  bags = [pad(bag(n, n)) for n in (1, 6)]
  x, mask = map(np.stack, zip(*bags, strict=True))
  want, again, other = (train(params_of(name), x, mask, s) for s in (0, 0, 1))
  chex.assert_trees_all_equal(again, want)
  assert np.array_equal(other[0][1], want[0][1]) == (name not in RANDOM)
  x = np.where(mask[..., None], x, np.nan)
  got = train(params_of(name), x, mask, 0)
  chex.assert_tree_all_finite(got)
  chex.assert_trees_all_close(got, want, rtol=1e-6)


@pytest.mark.parametrize('name', ['abmil', 'abmil_plain', 'dsmil'])
def test_accelerators_train_as_cpus_do(name):
  """Of one instance, of equal ones, of any mask, with NaN in padding."""
  model, (a, b) = model_of(name), bag(2)

  @jax.jit
  def evaluated(params, x, mask):
    def loss(params, x):
      prediction = model.apply(
        {'params': params},
        x,
        mask,
        train=True,
        rngs={'dropout': jax.random.key(0)},
      )
      return loss_of(name)(prediction, mask, jnp.int32(LABEL)), prediction

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

  bags = bag(1), np.stack([a, b, b, a, b]), bag(SIZE - 1), bag(4)
  for seed, real in enumerate(bags):
    x, mask = pad(real, padding=np.full((SIZE - len(real), WIDTH), np.nan))
    order = np.random.default_rng(seed).permutation(SIZE)
    outputs = []
    for platform in ('cpu', 'tpu'):
      with cpu.lowering_for(platform):
        outputs.append(evaluated(params_of(name), x[order], mask[order]))
    chex.assert_tree_all_finite(outputs)
    chex.assert_trees_all_close(*outputs, rtol=1e-4, atol=1e-6)


@some_modes
def test_how_much_padding_there_is_never_matters(name):
  n = 3  # Fewer than DTFD's pseudo-bags and than what one of them distils.
  padded = evaluate(name, *pad(bag(n), padding=bag(SIZE - n, 1)))
  assert_same(padded, evaluate(name, bag(n), np.ones(n, bool)), n)


@every_mode
def test_padding_of_a_clearly_negative_bag_never_wins(name):
  """Zero rows score above every instance here; they must not be critical."""
  x = bag(5, shift=3.0)
  params = dict(params_of(name))
  # An instance stream that dislikes every real instance in every class.
  for layer in ('instance', 'classifier'):
    if layer in params:
      params[layer] = jax.tree.map(lambda w: -jnp.abs(w), params[layer])
  plain = evaluate(name, *pad(x, padding=bag(3, shift=3.0)), params)
  padded = evaluate(name, *pad(x), params)
  if 'instance' in params:
    highest = plain[0].instance_logits[:5].max()
    assert highest < padded[0].instance_logits[5:].min()
  assert_same(padded, plain, 5)


@pytest.mark.parametrize('name', sorted(set(SPECS) - set(ORDERED)))
@given(n=st.sampled_from([2, 5, 6]), seed=st.integers(0, 100))
def test_the_order_of_instances_never_matters(name, n, seed):
  x = bag(n, seed)
  order = np.random.default_rng(seed).permutation(n)
  shuffled, loss, grad, grad_x = evaluate(name, *pad(x[order]))
  plain, want_loss, want_grad, want_grad_x = evaluate(name, *pad(x))
  chex.assert_trees_all_close(
    (shuffled.logits, shuffled.attention[:n], loss, grad, grad_x[:n]),
    (
      plain.logits,
      plain.attention[order],
      want_loss,
      want_grad,
      want_grad_x[order],
    ),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.parametrize('name', ['abmil', 'dsmil', 'kmil'])
def test_instances_that_are_not_seen_keep_logits_of_their_own(name):
  """KMIL's maps show those of the instances that it dropped."""
  x = bag(SIZE)
  seen = np.arange(SIZE) % 3 > 0
  whole, *_ = evaluate(name, x, np.ones(SIZE, bool))
  some, *_ = evaluate(name, x, seen)
  np.testing.assert_allclose(
    some.instance_logits, whole.instance_logits, rtol=1e-5, atol=1e-6
  )


def in_blocks(monkeypatch, whole):
  monkeypatch.setattr(pooling, 'WHOLE', whole)
  monkeypatch.setattr(pooling, 'BLOCK', whole // 2)


@pytest.mark.parametrize(
  'name', [*sorted({*SPECS} - {'kmil', 'transmil'}), 'dtfd maxmins predicted']
)
def test_a_long_bag_in_blocks_is_the_whole_bag(name, monkeypatch):
  """5 blocks of 4 rows and one of 3; padding begins within the fourth."""
  nothing = np.full((9, WIDTH), np.nan, np.float32)
  x, mask = pad(bag(14), 23, nothing)
  whole = evaluate(name, x, mask)
  in_blocks(monkeypatch, SIZE)
  step = evaluator.__wrapped__(name)  # Not traced yet.
  (loss, prediction), grads = step(params_of(name), x, mask)
  assert_same((prediction, loss, *grads), whole, 14)


@pytest.mark.parametrize('name', ['abmil', 'abmil_ilse', 'dsmil_value', 'dtfd'])
def test_memory_of_a_long_bag_does_not_grow_with_its_instances(
  name, monkeypatch
):
  in_blocks(monkeypatch, 256)
  step, params = evaluator.__wrapped__(name), params_of(name)

  def temporary(rows):
    x, mask = pad(bag(rows), rows)
    return step.lower(params, x, mask).compile().memory_analysis()

  short, long = temporary(1024), temporary(2048)
  grown = long.temp_size_in_bytes - short.temp_size_in_bytes
  # A hidden row alone takes 4 x 128 or more.
  assert grown / 1024 < 256


def test_blocks_drop_units_of_their_own(monkeypatch):
  in_blocks(monkeypatch, SIZE)
  x, mask = np.ones((24, WIDTH), np.float32), np.ones(24, bool)
  apply = jax.jit(functools.partial(model_of('abmil').apply, train=True))
  params, rngs = params_of('abmil'), {'dropout': jax.random.key(0)}
  prediction = apply({'params': params}, x, mask, rngs=rngs)
  assert len(np.unique(prediction.attention)) > 20


@some_modes
def test_a_batch_of_bags_is_each_bag_alone(name):
  lengths = (3, SIZE, 1, 5)
  x, mask = map(np.stack, zip(*(pad(bag(n, n)) for n in lengths), strict=True))
  apply = functools.partial(model_of(name).apply, train=False)
  variables = {'params': params_of(name)}
  together = jax.jit(jax.vmap(apply, (None, 0, 0)))(variables, x, mask)
  for i in range(len(lengths)):
    alone, *_ = evaluate(name, x[i], mask[i])
    chex.assert_trees_all_close(
      (together.logits[i], together.attention[i]),
      (alone.logits, alone.attention),
      rtol=1e-5,
      atol=1e-6,
    )


@pytest.mark.parametrize(
  'name,count',
  [
    ('abmil', 530_182),
    ('abmil_plain', 592_646),
    ('abmil_ilse', 643_390),
    ('abmil_ilse_plain', 579_262),
    ('dsmil', 178_442),
    ('dsmil_value', 1_228_042),
    ('kmil', 178_442),
    ('dtfd', 726_668),
    ('dtfd_gated', 792_332),
    ('transmil', 2_673_685),
  ],
)
def test_parameters_are_as_many_as_published(name, count):
  init = functools.partial(model_of(name, num_classes=5).init, train=False)
  params = jax.eval_shape(
    init, jax.random.key(0), jnp.zeros((1, 1024)), jnp.ones(1, bool)
  )['params']
  assert sum(x.size for x in jax.tree.leaves(params)) == count
