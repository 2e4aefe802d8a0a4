"""Features of any encoder fit every bag model: 384 to 2560 dimensions."""

import jax
import jax.numpy as jnp
import pytest

from kmil_jax.models import SPECS


@pytest.mark.parametrize('width', [384, 2560])
@pytest.mark.parametrize('model', sorted(SPECS))
def test_models_take_features_of_any_width(model, width):
  """Shapes alone are traced: nothing is compiled or run."""
  network = SPECS[model].make(num_classes=3)
  x, mask = jnp.zeros((9, width)), jnp.ones(9, bool)
  init = lambda: network.init(jax.random.key(0), x, mask, train=False)
  variables = jax.eval_shape(init)
  apply = lambda v: network.apply(v, x, mask, train=False)
  said = jax.eval_shape(apply, variables)
  assert said.logits.shape[-1] == 3
  first = jax.tree.leaves(variables['params'])
  assert any(width in leaf.shape for leaf in first)
