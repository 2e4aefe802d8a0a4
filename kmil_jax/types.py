"""The types that cross module borders, with their shapes and invariants."""

from collections.abc import Callable, Collection
import dataclasses
from typing import Any

import chex
from flax import linen as nn
import jax


@chex.dataclass(frozen=True)
class Bags:
  """A batch of bags, padded to one length.

  Features beyond a bag's end are arbitrary (often those of the next bag; NaN
  and infinity, too) and their mask is False: no function of a bag may depend
  on them.
  """

  features: chex.Array  # [B, N, D]
  mask: chex.Array  # [B, N] bool, True on real instances
  label: chex.Array  # [B] int32
  index: chex.Array  # [B] int32, place in the cohort; -1 marks a filler
  offset: chex.Array  # [B] int32, row of the first instance in the store


@chex.dataclass(frozen=True)
class Prediction:
  """What a bag model says of one bag.

  `attention` is after the softmax: its columns sum to 1 over real instances
  and are 0 on padding. A is 1, or C where every class has an attention of its
  own. `instance_logits` of padding are finite and meaningless. Models that
  split a bag into G pseudo-bags classify those too; some may be empty.
  """

  logits: chex.Array  # [C] float32
  attention: chex.Array  # [N, A] float32
  instance_logits: chex.Array  # [N, C] float32
  pseudo_logits: chex.Array | None = None  # [G, C] float32
  pseudo_mask: chex.Array | None = None  # [G] bool, False on empty ones


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How one stage is trained; `dataclasses.replace` makes an ablation."""

  learning_rate: float = 2e-4
  weight_decay: float = 1e-5  # of 'adam': L2, added to the gradient
  epochs: int = 400
  batch: int = 1  # bags per step over the whole pod
  optimizer: str = 'adam'  # see `optim.make`
  betas: tuple[float, float] = (0.9, 0.999)
  clip: float | None = None  # largest gradient norm of a top-level module
  accumulate: int = 1  # steps whose mean gradient makes one update
  orthogonal: bool = False  # start of the weights; see `optim.orthogonal`
  schedule: str = 'cosine'  # see `selection.SCHEDULES`
  learning_rate_min: float = 5e-6
  shuffle: bool = True  # False: every epoch in the order of epoch 0
  select: str = 'f1_macro'  # see `selection.SELECTS`
  patience: int | None = None  # epochs without improvement before a run stops


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """How to build a bag model, and what the papers train it with."""

  make: Callable[..., nn.Module]  # make(num_classes=C, dtype=...)
  loss: Callable[[Prediction, jax.Array, jax.Array], jax.Array]
  paper: str
  own: Recipe = Recipe()  # its authors'; by default that of Zheng et al. 2024
  # KMIL only: a first model chooses the instances that the second one sees.
  chooser: str | None = None
  chooser_recipe: Recipe | None = None
  # Whether its program needs the padded length as a number; see `export`.
  fixed_length: bool = False
  # Whether CPUs take its runs and folds one by one on bags of any length, too;
  # see `models.cpu`.
  one_by_one: bool = False


@chex.dataclass(frozen=True)
class Store:
  """The bags of a cohort, one after the other.

  Bag b is `features[offset[b]:offset[b] + length[b]]`; enough rows of zeros
  follow for a slice of any bag's padded length to stay inside.
  `features` is None where they do not fit and are streamed; or each device
  holds its share of the rows, see `parallel.Spread`.
  """

  features: Any  # [T, D]
  offset: chex.Array  # [n] int32
  length: chex.Array  # [n] int32
  label: chex.Array  # [n] int32


@chex.dataclass(frozen=True)
class Tiles:
  """A batch of labelled tiles.

  Fillers, which complete the last batch of an evaluation, have weight 0.
  Batches to train on have none: batch-norm statistics would see them.
  """

  image: chex.Array  # [T, S, S, C] uint8, or float32 in 0..1
  label: chex.Array  # [T] int32
  weight: chex.Array  # [T] float32, 1 for tiles and 0 for fillers


@chex.dataclass(frozen=True)
class TilePrediction:
  """What a patch classifier says of T tiles.

  C is 1 where one logit stands for the second of two classes (sigmoid), else
  the number of classes (softmax).
  """

  logits: chex.Array  # [T, C] float32
  features: chex.Array  # [T, F] float32, what the last layer sees


@dataclasses.dataclass(frozen=True)
class PatchRecipe:
  """How a patch classifier is trained."""

  learning_rate: float = 1e-3
  weight_decay: float = 0.0  # L2, added to the gradient
  betas: tuple[float, float] = (0.9, 0.999)
  epochs: int = 30
  batch: int = 128  # tiles per step over the whole pod
  binary: bool = False  # one sigmoid logit instead of a softmax
  class_weight: tuple[float, ...] | None = None
  balanced: bool = False  # tiles drawn so that classes are equally frequent
  augment: str = 'none'  # see `augment.PRESETS`
  input_size: int | None = None  # tiles are resized to this side, in pixels
  # Of each channel in [0, 1], subtracted and divided by; ImageNet's.
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  schedule: str = 'cosine'  # see `selection.SCHEDULES`
  learning_rate_min: float = 0.0
  select: str = 'loss'  # see `selection.SELECTS`
  patience: int | None = None  # epochs without improvement before the end


def unknown(option: str, value: str, known: Collection[str]) -> ValueError:
  """Returns what is raised for an option's value that is not a known one."""
  return ValueError(
    f'{option} {value!r} is unknown. Choose one of {", ".join(known)}.'
  )
