"""Optimisers and schedules with PyTorch's meaning."""

import math

import optax


def adam(weight_decay: float) -> optax.GradientTransformation:
  """`torch.optim.Adam(weight_decay=...)` short of its learning rate.

  The decay is an L2 term in the gradient, not decoupled as in AdamW. Multiply
  the updates by minus the learning rate, which differs between runs.

  Args:
    weight_decay: factor of the parameters added to their gradient.

  Returns:
    A transformation with betas (0.9, 0.999) and epsilon 1e-8.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.scale_by_adam()
  )


def cosine(peak: float, floor: float, epoch: int, epochs: int) -> float:
  """Learning rate of one epoch under `torch`'s CosineAnnealingLR.

    floor + (peak - floor) (1 + cos(pi epoch / epochs)) / 2

  Args:
    peak: the rate of epoch 0.
    floor: the rate that epoch `epochs` would have.
    epoch: from 0.
    epochs: length of the annealing.

  Returns:
    The rate, constant within the epoch.
  """
  phase = (1 + math.cos(math.pi * epoch / epochs)) / 2
  return floor + (peak - floor) * phase
