"""Times heat maps against a loop that looks at one window after another."""

from collections.abc import Callable, Sequence
import time

import jax
import numpy as np

from kmil_jax import cutter, heatmap
from kmil_jax.cutter import Cutter
from kmil_jax.heatmap import FIRES, STRIDE, WINDOW

_SIDE = 100  # Pixels of the image that is timed.
_ROUNDS = 3


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
    image: uint8 [H, W, 3]; its middle is taken.
    networks: primary and, if there is one, secondary.

  Returns:
    Seconds per megapixel of `map` and `naive`, medians; the median `ratio` of
    naive to map; and `difference`, the largest between the maps: 0 but for a
    window that rounding decides. Compilation is not counted.
  """
  y, x = (max(0, (n - _SIDE) // 2) for n in image.shape[:2])
  image = np.ascontiguousarray(image[y : y + _SIDE, x : x + _SIDE])

  def one_by_one(network):
    look = jax.jit(network.classify)
    return lambda window: float(look(network.variables, window[None])[0])

  def fast():
    said = heatmap.scan(cutter.Image(image), *networks)
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
  megapixels = image.shape[0] * image.shape[1] / 1e6
  ratio = np.array(seconds['naive']) / np.array(seconds['map'])
  return {
    name: float(np.median(s)) / megapixels for name, s in seconds.items()
  } | {'ratio': float(np.median(ratio)), 'difference': float(difference)}
