"""Predictions of trained models for one bag, and their lowered programs."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, Self

import chex
from flax import linen as nn, traverse_util
import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from kmil_jax import export as archives
from kmil_jax.models import SPECS, cpu, kmil, network
from kmil_jax.models.dtfd import DTFD
from kmil_jax.models.kmil import Choice

CHOOSER, MODEL = 'chooser', 'model'
PLATFORMS = ('cpu', 'cuda', 'tpu')  # That programs are lowered for.


def is_dtfd(name: str) -> bool:
  """Whether a bag model takes the options of `DTFD`, whatever its name."""
  make = SPECS[name].make
  return getattr(make, 'func', make) is DTFD


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """A form of a bag model, and what is made of its outputs."""

  model: str  # of SPECS
  precision: str = 'float32'  # see `network.build`
  # Where the model has a first stage.
  choice: Choice = dataclasses.field(default_factory=Choice)
  combine: bool = False
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def of_options(cls, options: Mapping[str, Any], **others: Any) -> Self:
    """Returns what the options of a training ask for.

    Args:
      options: by name, as config.json of a results folder has them, of whatever
        version; what is absent is by default.
      **others: further fields.
    """

    def get(name, former, default):
      return options.get(name, options.get(former, default))

    extra = {}
    if is_dtfd(options['model']):
      names = ('distill', 'pseudo_bags', 'total_instances')
      extra = {name: options[name] for name in names}
      extra['score'] = get('dtfd_rank_by', 'instance_score', 'last')
    share = options.get('drop_fraction', Choice.drop_per_mille / 1000)
    return cls(
      model=options['model'],
      precision=options['precision'],
      choice=Choice(
        get('kmil_score', 'score', Choice.score),
        get('kmil_drop', 'drop', Choice.drop),
        round(1000 * share),
      ),
      combine=get('average_with_top_instance', 'combine', False),
      options=extra,
      **others,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design(Variant):
  """The networks of a prediction."""

  num_classes: int
  width: int  # of the features

  def networks(self) -> dict[str, nn.Module]:
    """Returns the model, and the first stage that chooses its instances."""
    spec, size = SPECS[self.model], {'num_classes': self.num_classes}
    make = {MODEL: functools.partial(spec.make, **size, **self.options)}
    if spec.chooser:
      chooser = SPECS[spec.chooser].make
      make[CHOOSER] = functools.partial(chooser, **size)
    return {n: network.build(f, self.precision) for n, f in make.items()}

  def like(self) -> dict[str, Any]:
    """Returns zeros in the shapes of one fold's parameters, by network."""
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    return {
      name: jax.tree.map(zeros, network.shapes(model, self.width)['params'])
      for name, model in self.networks().items()
    }

  def predict(
    self, weights: Mapping[str, Any], x: jax.Array, count: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns the predictions of R folds for one bag.

    Args:
      weights: as of `stack`.
      x: features, [N, D]; what follows the bag's end is arbitrary.
      count: instances of the bag, 1 to N, [].

    Returns:
      `prob` [R, C], `attention` [R, N, A] as of `types.Prediction`,
      `instance_prob` [R, N, C], meaningless on padding, and `kept` [R, N], True
      on the instances that the model sees.
    """
    chex.assert_shape(x, (None, self.width))
    chex.assert_rank(count, 0)
    networks = self.networks()
    x = x.astype(network.dtype_of(self.precision))
    mask = jnp.arange(x.shape[0]) < count

    def one_fold(params):
      apply = lambda name, mask: networks[name].apply(
        {'params': params[name]}, x, mask, train=False
      )
      kept = mask
      if CHOOSER in networks:
        logits = apply(CHOOSER, mask).instance_logits
        kept = kmil.chosen(logits, mask, self.choice)
      prediction = apply(MODEL, kept)
      return {
        'prob': kmil.prob(prediction, kept, self.combine),
        'attention': prediction.attention,
        'instance_prob': jax.nn.softmax(prediction.instance_logits),
        'kept': kept,
      }

    params = traverse_util.unflatten_dict(dict(weights), sep='/')
    return cpu.map_folds(SPECS[self.model], one_fold, params)

  def predictor(self, weights: Mapping[str, np.ndarray]) -> archives.Predictor:
    """Returns what predicts a bag, see `stack` of the weights."""
    return archives.Predictor(
      self.predict,
      dict(weights),
      dtype=network.dtype_of(self.precision),
    )

  def lower(self, weights: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Returns `predict` as StableHLO for all `PLATFORMS`, by file name.

    Args:
      weights: in the shapes that it will be given.
    """
    shape = jax.ShapeDtypeStruct
    call = export.export(jax.jit(self.predict), platforms=PLATFORMS)
    bag = lambda n: (shape((n, self.width), jnp.float32), shape((), jnp.int32))
    if SPECS[self.model].fixed_length:
      sizes = {archives.program_name(n): n for n in archives.LENGTHS}
    else:
      # A program for any length counts on all rows that DTFD may distil.
      least = max(self.options.get('total_instances', 1), archives.LEAST)
      (n,) = export.symbolic_shape('n', constraints=[f'n >= {least}'])
      sizes = {archives.ANY: n}
    # Do not store local file paths in the exported program.
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update('jax_traceback_in_locations_limit', 0)
    try:
      with cpu.lowering_for(None):
        return {
          name: bytes(call(dict(weights), *bag(n)).serialize())
          for name, n in sizes.items()
        }
    finally:
      jax.config.update('jax_traceback_in_locations_limit', limit)


def stack(folds: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Puts the parameters of R folds together.

  Args:
    folds: parameters by network, as of `Design.like`.

  Returns:
    Arrays [R, ...] by their path, as 'model/classifier/weight'.
  """
  tree = jax.tree.map(lambda *leaves: np.stack(leaves), *folds)
  return traverse_util.flatten_dict(tree, sep='/')
