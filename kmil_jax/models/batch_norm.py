"""Batch normalisation with the statistics of all devices, kept as in torch."""

import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp


class BatchNorm(nn.Module):
  """Normalises each channel: scale (x - mean) / sqrt(var + epsilon) + bias.

  Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithms 1 and 2
  (https://arxiv.org/abs/1502.03167). In training, mean and variance are those
  of this batch, over all devices where `axis_name` says which axis holds
  them, each with as many tiles. The running variance is made of unbiased ones
  (n - 1 in the denominator, as in the paper and in torch), which
  `flax.linen.BatchNorm` does not do.

  Attributes:
    axis_name: the pmapped axis over which a training batch is spread.
    epsilon: added to the variance.
    momentum: weight of the old running statistics; torch's momentum of 0.1 is
      0.9 here.
    dtype: type of the result; parameters and statistics are float32.
  """

  axis_name: str | None = None
  epsilon: float = 1e-5
  momentum: float = 0.9
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
    """Normalises `x` [T, ..., F] with its own, or the running, statistics.

    With its own, the running ones are moved.
    """
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    if use_running_average:
      mean, var = running_mean.value, running_var.value
    else:
      axes = tuple(range(x.ndim - 1))
      wide = x.astype(jnp.float32)
      moments = wide.mean(axes), (wide * wide).mean(axes)
      count = math.prod(x.shape[:-1])
      if self.axis_name is not None and not self.is_initializing():
        moments = lax.pmean(moments, self.axis_name)
        count *= lax.axis_size(self.axis_name)
      mean, square = moments
      var = jnp.maximum(square - mean * mean, 0)
      if not self.is_initializing():
        keep = self.momentum
        unbiased = var * (count / max(count - 1, 1))
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * unbiased
    y = (x - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias
    return y.astype(self.dtype)
