"""What trained models say of one bag, without anything that trains them."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import export
from kmil_jax.models import SPECS, cpu, kmil
from kmil_jax.models.kmil import Choice

CHOOSER, MODEL = 'chooser', 'model'


@dataclasses.dataclass(frozen=True)
class Design:
  """The networks of a prediction, and what is made of their outputs."""

  model: str  # of SPECS
  num_classes: int
  width: int  # of the features
  precision: str = 'float32'
  # Where the model has a first stage.
  choice: Choice = dataclasses.field(default_factory=Choice)
  combine: bool = False
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def networks(self) -> dict[str, nn.Module]:
    """Returns the model, and the first stage that chooses its instances."""
    spec = SPECS[self.model]
    make = lambda spec, **options: spec.make(
      num_classes=self.num_classes, dtype=jnp.dtype(self.precision), **options
    )
    networks = {MODEL: make(spec, **self.options)}
    if spec.chooser:
      networks[CHOOSER] = make(SPECS[spec.chooser])
    return networks

  def like(self) -> dict[str, Any]:
    """Returns zeros in the shapes of one fold's parameters, by network."""
    x, mask = jnp.zeros((1, self.width)), jnp.ones(1, bool)

    def shapes(network):
      init = lambda: network.init(jax.random.key(0), x, mask, train=False)
      return jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(init)['params'],
      )

    return {name: shapes(network) for name, network in self.networks().items()}

  def predict(
    self, weights: Mapping[str, Any], x: jax.Array, count: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns what R folds say of one bag.

    Args:
      weights: as of `stack`.
      x: features, [N, D]; what follows the bag's end must be finite.
      count: instances of the bag, 1 to N, [].

    Returns:
      `prob` [R, C], `attention` [R, N, A] as of `types.Prediction`,
      `instance_prob` [R, N, C], meaningless on padding, and `kept` [R, N], True
      on the instances that the model sees.
    """
    chex.assert_shape(x, (None, self.width))
    chex.assert_rank(count, 0)
    networks = self.networks()
    x = x.astype(self.precision)
    mask = jnp.arange(x.shape[0]) < count

    def one_fold(params):
      apply = lambda name, mask: networks[name].apply(
        {'params': params[name]}, x, mask, train=False
      )
      kept = mask
      if CHOOSER in networks:
        scores = kmil.instance_scores(
          apply(CHOOSER, mask).instance_logits, self.choice.score
        )
        kept = kmil.key_instances(
          scores, mask, self.choice.drop_per_mille, self.choice.drop
        )
      said = apply(MODEL, kept)
      return {
        'prob': (
          kmil.combined_prob(said, kept)
          if self.combine
          else jax.nn.softmax(said.logits)
        ),
        'attention': said.attention,
        'instance_prob': jax.nn.softmax(said.instance_logits),
        'kept': kept,
      }

    return cpu.map_folds(SPECS[self.model], one_fold, _nested(weights))

  def lower(self, weights: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Returns `predict` for these weights as programs; see `export.lower`."""
    with cpu.lowering_for(None):
      return export.lower(
        self.predict,
        weights,
        self.width,
        least=self.options.get('total_instances', 1),
        lengths=export.LENGTHS if SPECS[self.model].fixed_length else None,
      )


def stack(folds: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Puts the parameters of R folds together.

  Args:
    folds: parameters by network, as of `Design.like`.

  Returns:
    Arrays [R, ...] by their path, as 'model/classifier/weight'.
  """
  tree = jax.tree.map(lambda *leaves: np.stack(leaves), *folds)
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {'/'.join(key.key for key in path): leaf for path, leaf in leaves}


def _nested(weights: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters by network that `stack` flattened."""
  tree: dict[str, Any] = {}
  for path, leaf in weights.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree
