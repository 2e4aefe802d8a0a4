"""Times heat maps against a loop that looks at one window after another."""

from collections.abc import Callable, Sequence
import math
import time

import jax
import numpy as np

from experiments import cutter
from experiments.cutter import Cutter
from kmil_jax import heatmap
from kmil_jax.heatmap import FIRES, STRIDE, WINDOW

_ROUNDS = 3
_MEGAPIXEL = 1e6 / STRIDE**2  # Windows of a large image.


def naive(
  image: np.ndarray, networks: list[Callable[[np.ndarray], float]]
) -> np.ndarray:
  """Returns the heat map by the paper's words, window by window.

  Args:
    image: uint8 [H, W, 3].
    networks: primary and secondary, of one window [S, S, 3] each.
  """
  votes = np.zeros(image.shape[:2])
  for y in range(0, image.shape[0] - WINDOW + 1, STRIDE):
    for x in range(0, image.shape[1] - WINDOW + 1, STRIDE):
      window = np.s_[y : y + WINDOW, x : x + WINDOW]
      if all(network(image[window]) >= FIRES for network in networks):
        votes[window] += (STRIDE / WINDOW) ** 2
  return votes


def compare(image: np.ndarray, networks: Sequence[Cutter]) -> dict[str, float]:
  """Times both ways on the same image, in turns.

  Args:
    image: uint8 [H, W, 3]; as much of its middle is taken as has a batch of
      windows.
    networks: primary and, if there is one, secondary.

  Returns:
    Seconds per megapixel of `map` and `naive`, medians, by the windows of a
    large image; the median `ratio` of naive to map; and `difference`, the
    largest between the maps: 0 but for a window that rounding decides.
    Compilation is not counted.
  """
  side = WINDOW + STRIDE * (math.isqrt(networks[0].batch) - 1)
  y, x = (max(0, (n - side) // 2) for n in image.shape[:2])
  image = np.ascontiguousarray(image[y : y + side, x : x + side])
  count = math.prod((n - WINDOW) // STRIDE + 1 for n in image.shape[:2])

  def one_by_one(network):
    look = jax.jit(network.classify)
    return lambda window: float(look(network.variables, window[None])[0])

  def fast():
    said = cutter.scan(cutter.Image(image), *networks)
    return heatmap.votes(said.positive(), image.shape[:2])

  single = [one_by_one(network) for network in networks]
  ways = {'map': fast, 'naive': lambda: naive(image, single)}
  for network in single:
    network(image[:WINDOW, :WINDOW])
  difference = np.abs(fast() - ways['naive']()).max()
  seconds = {name: [] for name in ways}
  for _ in range(_ROUNDS):
    for name, way in ways.items():
      start = time.perf_counter()
      way()
      seconds[name].append(time.perf_counter() - start)
  ratio = np.array(seconds['naive']) / np.array(seconds['map'])
  return {
    name: float(np.median(s)) / count * _MEGAPIXEL
    for name, s in seconds.items()
  } | {'ratio': float(np.median(ratio)), 'difference': float(difference)}
