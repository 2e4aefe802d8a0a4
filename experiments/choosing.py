"""KMIL's first stage at work: the key instances of every bag."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.feed import Feed
from kmil_jax.models import kmil
from kmil_jax.tasks.bags import BagTask


def choose(
  feed: Feed,
  chooser: BagTask,
  params: Any,
  first: np.ndarray,
  choices: Sequence[kmil.Choice],
) -> np.ndarray:
  """Returns the key instances of every run and bag, bool [R, T].

  Args:
    feed: the cohort.
    chooser: the first stage.
    params: F parameters of it, [F, ...].
    first: which of them each run has, int [R].
    choices: of each run.
  """
  groups = {
    choice: np.array([r for r, other in enumerate(choices) if other == choice])
    for choice in dict.fromkeys(choices)
  }

  @jax.jit
  def keys(params, x, mask):
    logits = chooser.predict_bag(params, x, mask).instance_logits
    return [
      jax.vmap(
        lambda logits, choice=choice: kmil.key_instances(
          kmil.instance_scores(logits, choice.score),
          mask,
          choice.drop_per_mille,
          choice.drop,
        )
      )(logits[first[runs]])
      for choice, runs in groups.items()
    ]

  bags = np.arange(len(feed.cohort.label))
  keep = np.zeros((len(choices), feed.num_rows), bool)
  params = jax.device_put(params)
  read = feed.read(feed.bucket(bags), bags[:, None])
  for bag, x in zip(bags, read, strict=True):
    length, offset = feed.store.length[bag], feed.store.offset[bag]
    mask = np.arange(x.shape[1]) < length
    kept = jax.device_get(keys(params, x[0], mask))
    for runs, rows in zip(groups.values(), kept, strict=True):
      keep[runs, offset : offset + length] = rows[:, :length]
  return keep
