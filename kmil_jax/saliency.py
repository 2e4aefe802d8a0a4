"""Grad-CAM: where in a tile a patch classifier sees a class."""

from collections.abc import Mapping
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp


def grad_cam(
  model: nn.Module,
  variables: Mapping[str, Any],
  image: jax.Array,
  target: jax.Array,
  *,
  layer: str | None = None,
) -> jax.Array:
  """Returns maps of what speaks for a class, gradient-weighted.

  a_k = mean_ij dy/dA_ijk and L_ij = ReLU(sum_k a_k A_ijk), where A is the last
  map, [h, w, F], or a layer's, and y the logit of the class. Selvaraju et al.,
  "Grad-CAM: visual explanations from deep networks via gradient-based
  localization", ICCV 2017, eqs. 1 and 2 (https://arxiv.org/abs/1610.02391). L
  is enlarged bilinearly to the tile and divided by its largest value.

  Args:
    model: a patch classifier with the methods `feature_map` and `head`.
    variables: of the model.
    image: normalised tiles, [T, S, S, C].
    target: classes, [T] int32. Where the model has one logit, y is the logit
      for class 1 and minus the logit for class 0.
    layer: the part of the model whose output is A, such as 'layer2_1' of a
      ResNet; None: the map before pooling, which may have one cell.

  Returns:
    Maps [T, S, S] float32 in [0, 1]; all 0 where nothing speaks for the class.

  Raises:
    ValueError: if the model has no such layer.
  """
  chex.assert_rank([image, target], [4, 1])
  chex.assert_equal_shape_prefix([image, target], 1)
  if layer is None:
    maps = model.apply(variables, image, method='feature_map')
    rest = lambda m: model.apply(variables, m, method='head')
  else:
    maps, rest = _split_at(model, variables, image, layer)
  # Tiles do not see each other: one cotangent asks for every tile's own y.
  logits, pull = jax.vjp(lambda m: rest(m).logits, maps)
  if logits.shape[-1] == 1:
    cotangent = jnp.where(target == 1, 1.0, -1.0)[:, None]
  else:
    cotangent = jax.nn.one_hot(target, logits.shape[-1])
  (gradient,) = pull(cotangent)
  maps, gradient = maps.astype(jnp.float32), gradient.astype(jnp.float32)
  weights = gradient.mean((1, 2))  # [T, F]
  cam = jnp.einsum('tijf,tf->tij', maps, weights, precision='highest')
  cam = jax.nn.relu(cam)
  cam = jax.image.resize(cam, image.shape[:3], 'bilinear')
  largest = cam.max((1, 2), keepdims=True)
  return cam / jnp.where(largest > 0, largest, 1)


def _split_at(model, variables, image, layer):
  """Returns the map of a layer, and the prediction as a function of it."""

  def run(swap):
    seen = []

    def intercept(call, args, kwargs, context):
      out = call(*args, **kwargs)
      if context.module.path != (layer,) or context.method_name != '__call__':
        return out
      seen.append(out)
      return swap(out)

    with nn.intercept_methods(intercept):
      return model.apply(variables, image), seen

  _, seen = run(lambda out: out)
  if len(seen) != 1:
    raise ValueError(f'{type(model).__name__} has no layer {layer}')
  return seen[0], lambda m: run(lambda _: m)[0]
