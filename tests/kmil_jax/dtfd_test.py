"""DTFD-MIL against its equations written out, group by group."""

import functools

import chex
from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import losses
from kmil_jax.models import pooling
from kmil_jax.models.dtfd import DTFD, pseudo_bags

WIDTH, CLASSES, LABEL = 12, 3, 1
# Compiling is all that takes time here.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
PERMUTED = np.random.default_rng(0).permutation(9)


def bag(n, seed=0):
  return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


@functools.cache
def params():
  init = functools.partial(DTFD(CLASSES).init, train=False)
  variables = compiled(init)(jax.random.key(0), bag(1), np.ones(1, bool))
  return jax.device_get(variables['params'])


@functools.cache
def program(**options):
  return compiled(
    functools.partial(DTFD(CLASSES, **options).apply, train=False)
  )


def predict(x, params, **options):
  """What is said of a bag, in one program for all lengths below 20."""
  padded = np.pad(x, ((0, 20 - len(x)), (0, 0)), constant_values=9.0)
  mask = np.arange(20) < len(x)
  got = program(**options)({'params': params}, padded, mask)
  return got.replace(
    attention=got.attention[: len(x)],
    instance_logits=got.instance_logits[: len(x)],
  )


deal = compiled(pseudo_bags, static_argnums=2)


@given(
  n=st.integers(1, 16),
  count=st.sampled_from([1, 4, 5]),
  seed=st.integers(0, 2**31),
)
def test_pseudo_bags_are_nearly_equal_and_indifferent_to_padding(
  n, count, seed
):
  key = jax.random.key(seed)
  member, real = deal(key, np.arange(20) < n, count)
  want = [len(part) for part in np.array_split(np.arange(n), count)]
  np.testing.assert_array_equal(member.sum(0), want)
  np.testing.assert_array_equal(member.sum(1), np.arange(20) < n)
  np.testing.assert_array_equal(real, np.array(want) > 0)
  again, _ = deal(key, np.arange(16) < n, count)
  np.testing.assert_array_equal(member[:16], again)


def test_pseudo_bags_are_drawn_uniformly():
  keys = jax.random.split(jax.random.key(0), 4000)
  members = jax.vmap(lambda key: pseudo_bags(key, jnp.ones(6, bool), 3)[0])(
    keys
  )
  # Six standard deviations of a mean of 4,000 draws of probability 1/3.
  np.testing.assert_allclose(members.mean(0), 1 / 3, atol=0.045)
  together = (members[:, 0] & members[:, 1]).any(1).mean()
  np.testing.assert_allclose(together, 1 / 5, atol=0.04)


def softmax(x):
  return np.exp(x) / np.exp(x).sum(0)


def groups(n, count=4):
  """The instances of each pseudo-bag that is not empty."""
  member, _ = deal(jax.random.key(0), np.arange(20) < n, count)
  return [np.flatnonzero(who) for who in np.asarray(member).T if who.any()]


def dense(layer, x):
  return x @ layer['weight'].T + layer['bias']


def distilled(p, x, distill, score, k):
  """The rows that the pseudo-bags distil, one after the other."""
  h = np.maximum(x @ p['reduce']['weight'].T, 0)
  value = np.tanh(dense(p['attention']['value'], h))
  scores = dense(p['attention']['score'], value)
  rows = []
  for who in groups(len(x)):
    a = softmax(scores[who])
    z = (a * h[who]).sum(0)
    cam = softmax((a * h[who] @ p['classifier']['weight'].T).T)  # [C, n]
    column = -1 if score == 'last' else dense(p['classifier'], z).argmax()
    order = who[np.argsort(-cam[column])]
    rows += {
      'afs': [z],
      'mas': [h[who[a.argmax()]]],
      'maxs': [*h[order[:k]]],
      'maxmins': [*h[order[:k]], *h[order[::-1][:k]]],
    }[distill]
  return np.stack(rows)


def tier2(p, rows):
  layer = p['tier2']['attention']
  value = np.tanh(dense(layer['value'], rows))
  gate = 1 / (1 + np.exp(-dense(layer['gate'], rows)))
  a = softmax(dense(layer['score'], value * gate))
  return dense(p['tier2']['classifier'], (a * rows).sum(0))


def test_class_activation_weights_are_the_slopes_of_tier_1s_logits():
  """Which is why no derivative is taken of t_c by a_i h_i."""
  classifier = params()['classifier']
  weighted = np.random.default_rng(0).normal(size=(5, 512))
  logits = lambda weighted: dense(classifier, weighted.sum(0))
  slopes = compiled(jax.jacobian(logits))(weighted)  # [C, n, H]
  for n in range(5):
    np.testing.assert_array_equal(slopes[:, n], classifier['weight'])


MODES = [
  ('afs', 'last'),
  ('mas', 'last'),
  ('maxs', 'last'),
  ('maxs', 'predicted'),
  ('maxmins', 'last'),
  ('maxmins', 'predicted'),
]


@pytest.mark.parametrize('distill,score', MODES)
def test_tier_2_sees_the_rows_of_the_equations(distill, score):
  # 5 leaves groups with fewer than k = 2 instances, 3 an empty one.
  for n in (3, 5, 18):
    x = bag(n, n)
    want = tier2(params(), distilled(params(), x, distill, score, k=2))
    got = predict(x, params(), distill=distill, score=score, total_instances=8)
    np.testing.assert_allclose(got.logits, want, rtol=1e-5, atol=1e-6)


def test_among_equal_attentions_the_first_is_distilled():
  p = jax.tree.map(np.copy, params())
  p['attention']['score']['weight'][:] = 0
  x = bag(9)
  h = np.maximum(x @ p['reduce']['weight'].T, 0)
  want = tier2(p, h[[who[0] for who in groups(9)]])
  got = predict(x, p, distill='mas', total_instances=8).logits
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('distill', ['afs', 'maxmins'])
def test_each_tier_is_trained_by_its_own_loss(distill):
  model = DTFD(CLASSES, distill=distill)

  def terms(params):
    mask = jnp.ones(9, bool)
    prediction = model.apply({'params': params}, bag(9), mask, train=False)
    total = losses.two_tier(prediction, mask, jnp.int32(LABEL))
    second = losses.cross_entropy(prediction, mask, jnp.int32(LABEL))
    return jnp.stack([total - second, second])

  grads = compiled(jax.jacrev(terms))(params())
  size = {
    module: jax.tree.reduce(
      np.add, jax.tree.map(lambda g: np.abs(g).reshape(2, -1).sum(1), tree)
    )
    for module, tree in grads.items()
  }
  for module in ('reduce', 'attention', 'classifier'):
    assert size[module][0] > 0 and size[module][1] == 0, module
  assert size['tier2'][1] > 0
  np.testing.assert_allclose(size['tier2'][0], 0, atol=1e-5)


def test_the_loss_is_the_mean_over_pseudo_bags_that_are_not_empty():
  prediction = predict(
    bag(3), params(), total_instances=8, distill='afs', score='last'
  )
  np.testing.assert_array_equal(prediction.pseudo_mask, [1, 1, 1, 0])
  prob = lambda logits: jax.nn.softmax(logits)[..., LABEL]
  want = -np.log(prob(prediction.pseudo_logits)[:3]).mean()
  want -= np.log(prob(prediction.logits))
  got = losses.two_tier(prediction, np.ones(3, bool), jnp.int32(LABEL))
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('distill', ['afs', 'mas', 'maxmins'])
def test_empty_pseudo_bags_count_nowhere(distill):
  """Two instances are two pseudo-bags, be there two or four."""
  two, four = (
    predict(bag(2), params(), distill=distill, pseudo_bags=count)
    for count in (2, 4)
  )
  for kind in ('logits', 'attention', 'instance_logits'):
    np.testing.assert_allclose(two[kind], four[kind], rtol=1e-5, atol=1e-6)
  loss = lambda got: losses.two_tier(got, None, jnp.int32(LABEL))
  np.testing.assert_allclose(loss(two), loss(four), rtol=1e-6)


def test_one_pseudo_bag_of_averages_has_no_order():
  x = bag(9)
  plain, shuffled = (
    predict(rows, params(), pseudo_bags=1) for rows in (x, x[PERMUTED])
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  close(shuffled.logits, plain.logits)
  close(shuffled.attention, plain.attention[PERMUTED])
  # With four, the draw goes by place.
  four = [
    predict(
      rows, params(), total_instances=8, distill='afs', score='last'
    ).logits
    for rows in (x, x[PERMUTED])
  ]
  assert np.abs(four[0] - four[1]).max() > 1e-6


def test_training_draws_by_key_and_ignores_padding():
  model = DTFD(CLASSES)

  @compiled
  def train(x, mask, seed):
    return model.apply(
      {'params': params()},
      x,
      mask,
      train=True,
      rngs={'dropout': jax.random.key(seed)},
    )

  x, mask = np.concatenate([bag(9), 7 * bag(7, 1)]), np.arange(16) < 9
  short, long = train(x[:9], mask[:9], 1), train(x, mask, 1)
  np.testing.assert_allclose(long.logits, short.logits, rtol=1e-5)
  np.testing.assert_allclose(long.attention[:9], short.attention, rtol=1e-5)
  other = train(x, mask, 2)
  assert np.abs(other.pseudo_logits - long.pseudo_logits).max() > 1e-6


@pytest.mark.parametrize(
  'options,named',
  [
    ({'distill': 'maxmin'}, "'maxmin': there are afs, maxmins, maxs, mas"),
    ({'score': 'true'}, "score 'true': there are last, predicted"),
    (
      {'pseudo_bags': 8, 'distill': 'maxs'},
      'total_instances 4 .* 8 pseudo-bags',
    ),
    ({'pseudo_bags': 0}, '0 pseudo-bags'),
  ],
)
def test_options_that_mean_nothing_are_refused(options, named):
  with pytest.raises(ValueError, match=named):
    predict(bag(2), params(), **options)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), k=st.sampled_from([1, 3, 9]))
def test_top_values_are_those_of_a_sort(seed, k):
  rng = np.random.default_rng(seed)
  values = rng.integers(-3, 3, size=(6, 2)).astype(np.float32)
  mask = rng.random((6, 2)) < 0.6
  index, found = compiled(pooling.masked_top, static_argnums=2)(values, mask, k)
  chex.assert_shape([index, found], (min(k, 6), 2))
  for column in range(2):
    real = np.flatnonzero(mask[:, column])
    order = real[np.argsort(-values[real, column], kind='stable')][:k]
    np.testing.assert_array_equal(found[:, column].sum(), len(order))
    np.testing.assert_array_equal(index[: len(order), column], order)
