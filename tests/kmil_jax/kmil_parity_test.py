"""KMIL's weights, of both its models, moved from Flax to torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models import SPECS, kmil

torch = pytest.importorskip('torch')
torch_models = pytest.importorskip('experiments.benchmarks.torch_models')

WIDTH, CLASSES, N = 16, 4, 23


def load(module, name, params):
  state = port.to_torch(name, {'params': params})
  module.load_state_dict({n: torch.tensor(v) for n, v in state.items()})


def test_torch_keeps_and_classifies_with_flaxs_weights():
  x = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)
  mask = np.ones(N, bool)
  models = {n: SPECS[n].make(num_classes=CLASSES) for n in ('abmil', 'kmil')}
  rng = np.random.default_rng(1)
  params = {}
  for name, model in models.items():
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), x, mask)['params']
    params[name] = jax.tree.map(
      lambda leaf: rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32), shapes
    )
  module = torch_models.KMIL(CLASSES, WIDTH).eval()
  load(module.chooser, 'abmil', params['abmil'])
  load(module.classifier, 'kmil', params['kmil'])

  chosen = models['abmil'].apply(
    {'params': params['abmil']}, x, mask, train=False
  )
  scores = kmil.instance_scores(chosen.instance_logits, 'var')
  keep = kmil.key_instances(scores, mask, 100, 'lowest')
  rows = module.key_instances(torch.tensor(x)).numpy()
  np.testing.assert_array_equal(np.flatnonzero(keep), rows)
  assert len(rows) == 20

  got = models['kmil'].apply({'params': params['kmil']}, x, keep, train=False)
  label = 2
  loss = SPECS['kmil'].loss(got, keep, jnp.int32(label))
  logits, attention = module(torch.tensor(x))
  want = module.loss(torch.tensor(x), torch.tensor(label))
  for ours, theirs in ((got.logits, logits), (got.attention, attention),
                       (loss, want)):  # fmt: skip
    np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)
  # And back: nothing was lost on the way.
  for name, part in (('abmil', module.chooser), ('kmil', module.classifier)):
    state = {n: v.numpy() for n, v in part.state_dict().items()}
    back = port.from_torch(name, state)['params']
    jax.tree.map(np.testing.assert_array_equal, back, params[name])
