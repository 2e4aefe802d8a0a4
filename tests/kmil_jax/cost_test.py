"""Costs: formulas against the layers of torch, counts against products."""

import collections
import math
import time

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import pytest

from kmil_jax import cost, parallel
from kmil_jax.models import SPECS

X, A = jnp.ones((32, 64)), jnp.ones((64, 64))
PRODUCT = 2 * X.shape[0] * A.size
SETTINGS = [(100, 1024, 5), (1, 16, 2), (3, 16, 2), (257, 48, 3)]


def times_tanh(h, a):
  return jnp.tanh(h @ a)


def layers_operations(model, run):
  """What the dense layers, convolutions and norms that `run` calls do."""
  from torch import nn as torch_nn

  total = collections.Counter()

  def dense(layer, _, y):
    total['dense'] += layer.in_features * y.numel()

  def conv(layer, _, y):
    seen = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    total['conv'] += seen * y.numel()

  def norm(layer, _, y):
    total['norm'] += 4 * y.numel()

  hooks = {
    torch_nn.Linear: dense,
    torch_nn.Conv1d: conv,
    torch_nn.Conv2d: conv,
    torch_nn.LayerNorm: norm,
  }
  for layer in model.modules():
    if hook := hooks.get(type(layer)):
      layer.register_forward_hook(hook)
  run()
  return sum(total.values())


def published_dsmil(model, x):
  """As published: critical instances queried again, fused by the layer."""
  stream = model.b_classifier
  critical = model.i_classifier.fc(x).argmax(0)
  scores = stream.q(x) @ stream.q(x[critical]).T
  return stream.fcc((scores.softmax(0).T @ stream.v(x))[None])


def published_transmil(model, x):
  """As published: every row is put out and normalised, also those not used."""
  import torch

  def attend(layer, h):
    padded = torch.nn.functional.pad(layer.norm(h), (0, 0, -len(h) % 256, 0))
    conv = layer.attn.res_conv
    layer.attn._convolve = lambda v: conv(v[None])[0]
    return h + layer.attn(padded)[-len(h) :]

  h = model._fc1(x)
  side = math.ceil(len(h) ** 0.5)
  h = torch.cat([model.cls_token[0], h, h[: side * side - len(h)]])
  h = attend(model.layer2, model.pos_layer(attend(model.layer1, h), side))
  return model._fc2(model.norm(h)[0])


# Forward passes that are not the twin's.
PUBLISHED = {
  'dsmil': published_dsmil,
  'dsmil_value': published_dsmil,
  'kmil': published_dsmil,
  'transmil': published_transmil,
}


FORMS = [
  *((name, {}) for name in SPECS),
  # What pseudo-bags distil counts.
  *(
    ('dtfd', {'distill': distill, 'pseudo_bags': 3, 'total_instances': 6})
    for distill in ('maxs', 'maxmins', 'mas')
  ),
]


@pytest.mark.parametrize('n,width,num_classes', SETTINGS)
@pytest.mark.parametrize('name,options', FORMS)
def test_the_formula_is_what_the_layers_do(
  name, options, n, width, num_classes
):
  torch = pytest.importorskip('torch')
  import torch_modules

  model = torch_modules.BAG_MODELS[name](num_classes, width, **options)
  run = PUBLISHED.get(name, lambda model, x: model(x))
  x = torch.randn(n, width)
  with torch.no_grad():
    expected = layers_operations(model, lambda: run(model, x))
  ours = SPECS[name].make(num_classes=num_classes, **options)
  assert cost.multiply_adds(ours, n, width) == expected


def test_without_a_formula_every_weight_sees_every_instance():
  class Sum(nn.Module):
    @nn.compact
    def __call__(self, x, mask, *, train):
      return nn.Dense(3)(x).sum(0)

  assert cost.multiply_adds(Sum(), 7, 10) == 7 * 10 * 3


def test_products_count_twice_and_a_loops_body_once():
  loop = lambda x, a: lax.scan(
    lambda h, _: (times_tanh(h, a), None), x, None, length=10
  )[0]
  for f in (times_tanh, loop):
    result = cost.flops(jax.jit(f).lower(X, A))
    assert result == pytest.approx(PRODUCT, abs=10)


@pytest.mark.parametrize(
  'analysis', [None, {}, {'flops': -1.0}, {'flops': math.nan}]
)
def test_what_xla_does_not_say_is_none(monkeypatch, analysis):
  lowered = jax.jit(times_tanh).lower(X, A)
  compiled = lowered.compile()
  stages = jax.stages
  monkeypatch.setattr(stages.Lowered, 'cost_analysis', lambda self: analysis)
  monkeypatch.setattr(stages.Compiled, 'memory_analysis', lambda self: None)
  assert cost.flops(lowered) is None
  assert parallel.peak_bytes(compiled) is None


def test_peak_is_arguments_outputs_and_temporaries():
  f = lambda x: x + 1
  compiled = jax.jit(f).lower(X).compile()
  assert parallel.peak_bytes(compiled) == 2 * X.nbytes
  reused = jax.jit(f, donate_argnums=0).lower(X).compile()
  assert parallel.peak_bytes(reused) == X.nbytes
  # What is between two products has to lie somewhere.
  twice = jax.jit(lambda x, a: times_tanh(x, a) @ a).lower(X, A).compile()
  assert parallel.peak_bytes(twice) >= 3 * X.nbytes + A.nbytes


def test_time_is_the_median_of_calls_after_the_first():
  calls = []

  def call():
    calls.append(len(calls))
    time.sleep(0.3 if len(calls) <= 2 else 0.002)

  assert 0.002 <= cost.median_seconds(call) < 0.1
  assert 7 <= len(calls) <= 52


def test_a_measured_model():
  model = SPECS['abmil'].make(num_classes=3)
  result = cost.measure(model, 50, 32)
  assert result.params == 2 * (32 * 256 + 256) + 257 + 32 * 3 + 3
  assert result.macs == cost.multiply_adds(model, 50, 32)
  assert result.flops_xla > 2 * result.macs
  # Its parameters, features and mask are arguments.
  assert result.peak_bytes > 4 * (result.params + 50 * 32) + 50
  assert result.seconds > 0
