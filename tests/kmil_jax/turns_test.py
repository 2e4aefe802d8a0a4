"""Folds in turn say what all at once say, on CPUs alone."""

import dataclasses

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import turns
from kmil_jax.models import SPECS


@pytest.mark.parametrize('in_turn', [True, False])
def test_folds_take_turns_on_cpus_alone(in_turn):
  spec = dataclasses.replace(SPECS['dsmil'], one_by_one=in_turn)
  weights = jnp.arange(24.0).reshape(4, 3, 2)
  x = jnp.ones((5, 3))

  @jax.jit
  def predict(weights):
    return turns.over_folds(spec, lambda w: {'y': x @ w}, weights)

  np.testing.assert_allclose(predict(weights)['y'], x @ weights)
  for platform, loops in (('cpu', in_turn), ('cuda', False), ('tpu', False)):
    program = predict.trace(weights).lower(lowering_platforms=(platform,))
    assert ('stablehlo.while' in program.as_text()) == loops, platform


def test_a_program_for_several_platforms_takes_turns_too():
  spec = dataclasses.replace(SPECS['dsmil'], one_by_one=True)
  predict = lambda weights: turns.over_folds(spec, jnp.sin, weights)
  weights = jnp.arange(4.0)
  exported = export.export(jax.jit(predict), platforms=('cpu', 'cuda'))(weights)
  assert 'stablehlo.while' in exported.mlir_module()
  if jax.default_backend() == 'cpu':
    np.testing.assert_allclose(exported.call(weights), jnp.sin(weights))
