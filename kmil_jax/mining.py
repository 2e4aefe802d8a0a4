"""Finds the candidates that lie nearest to queries: hard negatives."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

METRICS = ('l2', 'cosine')
# Rows of a block: 32 MiB of 512 features, and 64 KiB of distances per query.
BLOCK = 16_384
_ROWS = 64  # Queries are padded to a multiple of it.


class MiningError(ValueError):
  """Features that cannot be searched; says which."""


@dataclasses.dataclass(frozen=True)
class Mined:
  """Candidates near any of the queries, each once, the nearest first."""

  index: np.ndarray  # [K] int64, places among the candidates
  distance: np.ndarray  # [K] float32, to the nearest query that has it
  query: np.ndarray  # [K] int64, that query


def nearest(
  queries: np.ndarray, candidates: np.ndarray, alpha: int, metric: str = 'l2'
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the `alpha` nearest candidates of every query.

  Lee et al., "A robust model training strategy using hard negative mining in a
  weakly labeled dataset for lymphatic invasion in gastric cancer", J Pathol
  Clin Res 2024, algorithm 1 with eq. 1, the distance |q - c|, or eq. 2, the
  cosine, here as the distance 1 - q.c / (|q| |c|).

  Candidates are visited in blocks: a matrix product, |q|^2 + |c|^2 - 2 q.c,
  says which of a block may be near, their differences say how near, and the
  best so far are kept. At no time are there more than Q x (`BLOCK` + alpha)
  distances, whatever the number of candidates.

  Args:
    queries: features, [Q, F].
    candidates: features, [M, F]; they may be mapped from a file.
    alpha: how many candidates per query, from 1 to M.
    metric: one of `METRICS`. The cosine of a vector of zeros with any other is
      0, its distance 1.

  Returns:
    Places among the candidates, [Q, alpha] int64, and their distances,
    [Q, alpha] float32, in ascending order; of equally distant ones the first
    comes first. Among more than 2 `alpha` candidates whose squared distances
    differ by less than 1e-6 |q|^2, those chosen are any.

  Raises:
    MiningError: if a feature is not finite.
  """
  queries = _finite(queries, 'queries')
  # Distances do not change with the origin, but |q|^2 rounds less near it.
  origin = queries.mean(0) if metric == 'l2' and len(queries) else 0.0
  # So that another number of queries is not compiled anew.
  padded = np.pad(queries - origin, ((0, -len(queries) % _ROWS), (0, 0)))
  shape = (len(padded), alpha)
  best = jnp.full(shape, jnp.inf), jnp.full(shape, -1, jnp.int32)  # None yet.
  block = min(BLOCK, len(candidates))
  for first in range(0, len(candidates), block):
    some = _finite(candidates[first : first + block], 'candidates', first)
    # Sums of other shapes may round otherwise: equals would differ.
    rows = np.pad(some - origin, ((0, block - len(some)), (0, 0)))
    best = _merge(best, padded, rows, first, len(some), metric=metric)
  distance, index = (x[: len(queries)] for x in jax.device_get(best))
  return index.astype(np.int64), distance


def mine(
  queries: np.ndarray, candidates: np.ndarray, alpha: int, metric: str = 'l2'
) -> Mined:
  """Returns the union of the nearest candidates of all queries.

  Args:
    queries: features of false positives, [Q, F].
    candidates: features of the pool; see `nearest`.
    alpha: candidates per query.
    metric: one of `METRICS`.

  Returns:
    Between `alpha` and Q x `alpha` candidates, none twice; none for no queries.

  Raises:
    MiningError: as of `nearest`.
  """
  index, distance = nearest(queries, candidates, alpha, metric)
  query = np.repeat(np.arange(len(index)), alpha)
  index, distance = index.ravel(), distance.ravel()
  # By distance, then by place; the first of each place is its nearest query.
  order = np.lexsort((query, index, distance))
  _, first = np.unique(index[order], return_index=True)
  kept = order[np.sort(first)]
  return Mined(index[kept], distance[kept], query[kept])


def _finite(features: np.ndarray, name: str, first: int = 0) -> np.ndarray:
  """Returns features [n, F] as float32, of which `first` is the first row."""
  features = np.asarray(features, np.float32)
  finite = np.isfinite(features).all(1)
  if not finite.all():
    row = first + finite.argmin()
    raise MiningError(
      f'{name}: the features of row {row} are not finite. Compute them again.'
    )
  return features


@functools.partial(jax.jit, static_argnames='metric')
def _merge(
  best: tuple[jax.Array, jax.Array],
  queries: jax.Array,
  block: jax.Array,
  offset: int,
  count: int,
  *,
  metric: str,
) -> tuple[jax.Array, jax.Array]:
  """Takes the first `count` rows of a block into the best so far.

  Args:
    best: distances and places, [Q, alpha] each, ascending.
    queries: [Q, F].
    block: [B, F]; rows from `count` on are padding.
    offset: place of the block's first row among the candidates.
    count: rows that are candidates.
    metric: one of `METRICS`.

  Returns:
    The new best.
  """
  distance, index = best
  dot = lambda q, c: jnp.matmul(q, c.T, precision=lax.Precision.HIGHEST)
  if metric == 'cosine':
    rough = 1 - dot(_unit(queries), _unit(block))
  else:
    square = lambda x: jnp.sum(x * x, 1)
    rough = square(queries)[:, None] + square(block) - 2 * dot(queries, block)
  rough = jnp.where(jnp.arange(len(block)) < count, rough, jnp.inf)
  # Twice as many as needed: rounding may swap those that are nearly as far.
  _, near = lax.top_k(-rough, min(2 * index.shape[1], len(block)))
  # Ascending places: `top_k` prefers the first of equals.
  near = jnp.sort(near, axis=1)
  exact = jnp.take_along_axis(rough, near, 1)
  if metric == 'l2':
    # Unlike the squares' difference, exact for candidates close by.
    away = lambda x: jnp.linalg.norm(block[x[1]] - x[0], axis=1)
    exact = jnp.where(near < count, lax.map(away, (queries, near)), jnp.inf)
  # What was seen before has lower places and comes first here too.
  distance = jnp.concatenate([distance, exact], 1)
  index = jnp.concatenate([index, near + offset], 1)
  nearest, place = lax.top_k(-distance, best[0].shape[1])
  return -nearest, jnp.take_along_axis(index, place, 1)


def _unit(x: jax.Array) -> jax.Array:
  """Divides rows by their length; rows of zeros stay."""
  # Squares of small or large numbers would leave the range of float32.
  x = x / jnp.maximum(jnp.abs(x).max(1, keepdims=True), jnp.finfo(x.dtype).tiny)
  length = jnp.linalg.norm(x, axis=1, keepdims=True)
  return x / jnp.where(length > 0, length, 1)
