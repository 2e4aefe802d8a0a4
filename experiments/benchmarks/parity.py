"""The gate: both sides must compute the same before either is timed."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from experiments import encoder
from experiments.benchmarks import jax_side, torch_side
from kmil_jax.models.dtfd import pseudo_bags

_TOLERANCE = 1e-3


class ParityError(Exception):
  """The sides compute different things: to time them would say nothing."""


def check_logits(
  model: str, module: nn.Module, params: Mapping[str, Any], bag: np.ndarray
) -> None:
  """Compares the logits of one bag, in exact float32.

  Args:
    model: one of the five.
    module: torch's, on its device.
    params: kmil_jax's, from `jax_side.params_of`.
    bag: features, [N, D].

  Raises:
    ParityError: if a logit differs by more than 0.001.
  """
  x, mask = jnp.asarray(bag), jnp.ones(len(bag), bool)
  with jax.default_matmul_precision('highest'):
    ours = jax.jit(jax_side.forward(model))(params, x, mask).logits
  device = next(module.parameters()).device
  arguments = [torch.from_numpy(bag).to(device)]
  if model == 'dtfd':
    member, _ = pseudo_bags(jax.random.key(0), mask, module.pseudo_bags)
    arguments.append(torch.tensor(np.asarray(member).argmax(1), device=device))
  module.eval()
  with torch.inference_mode(), torch_side.exact():
    theirs = module(*arguments)[0]
  _compare(f'{model}, {len(bag)} instances: logits', ours, theirs)


def check_trunk(
  module: nn.Module, variables: Mapping[str, Any], tiles: np.ndarray
) -> None:
  """Compares features of tiles [T, S, S, 3], relative to the largest.

  Raises:
    ParityError: if a feature differs by more than 0.001 of it.
  """
  with jax.default_matmul_precision('highest'):
    apply = functools.partial(encoder.apply_trunk, precision='float32')
    ours = jax.jit(apply)(variables, tiles)
  device = next(module.parameters()).device
  with torch.inference_mode(), torch_side.exact():
    theirs = module(torch.from_numpy(tiles.transpose(0, 3, 1, 2)).to(device))
  scale = theirs.abs().max()
  _compare('trunk: features', ours / scale.item(), theirs / scale)


def _compare(what: str, ours: jax.Array, theirs: torch.Tensor) -> None:
  difference = float(np.abs(np.asarray(ours) - theirs.cpu().numpy()).max())
  if not difference <= _TOLERANCE:
    raise ParityError(
      f'{what} of kmil_jax and torch differ by {difference:.2g}, more than'
      f' {_TOLERANCE}: nothing is timed'
    )
