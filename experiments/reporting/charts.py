"""Geometry of the small charts that the page draws as SVG."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

_BINS = 14
_TICKS = 5  # Of an axis, about.
_COLOURS = 8  # `.series-<i>` of the style.


@dataclasses.dataclass(frozen=True)
class Tick:
  """A mark on an axis; `at` is in shares of its length, from 0 to 1."""

  at: float
  text: str


@dataclasses.dataclass(frozen=True)
class Bar:
  """A bar of a histogram, in shares of the axes, from the lower left."""

  left: float
  right: float
  height: float
  text: str  # said of it on hovering


@dataclasses.dataclass(frozen=True)
class Histogram:
  """How many slides have bags of which size, sizes on a log scale."""

  bars: Sequence[Bar]
  x: Sequence[Tick]
  y: Sequence[Tick]


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve; `points` is what SVG's polyline takes, in per cent of the axes."""

  name: str
  colour: int
  dashed: bool  # where the colours come round again
  points: str


@dataclasses.dataclass(frozen=True)
class Curves:
  """Curves of one quantity over epochs."""

  title: str
  lines: Sequence[Line]
  x: Sequence[Tick]
  y: Sequence[Tick]


def sizes(instances: np.ndarray) -> Histogram:
  """Counts bags by their size.

  Args:
    instances: of n bags, [n], at least one.
  """
  low, high = int(instances.min()), int(instances.max())
  # Between whole numbers, so that every bin holds one at least.
  edges = np.unique(np.floor(np.geomspace(low, high + 1, _BINS + 1))) - 0.5
  edges[[0, -1]] = low - 0.5, high + 0.5  # What rounding took.
  count, _ = np.histogram(instances, edges)
  place = lambda x: math.log(x / edges[0]) / math.log(edges[-1] / edges[0])
  top = _steps(0, int(count.max()))[-1]
  bars = [
    Bar(
      left=place(a),
      right=place(b),
      height=n / top,
      text=f'{math.ceil(a)} to {math.floor(b)} instances: {n} slides',
    )
    for (a, b), n in zip(itertools.pairwise(edges), count.tolist(), strict=True)
  ]
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for steps in ((1, 2, 5), (1, 2, 3, 4, 5, 6, 8), range(10, 100)):
    scale = 10 if max(steps) > 10 else 1
    round_ones = [m * 10.0**d / scale for d in decades for m in steps]
    inside = [
      v
      for v in round_ones
      if v >= 1 and v == round(v) and edges[0] <= v <= edges[-1]
    ]
    if len(inside) > 2:
      break
  return Histogram(
    bars,
    [Tick(place(v), f'{v:,.0f}') for v in inside],
    [Tick(v / top, f'{v:g}') for v in _steps(0, int(count.max()))],
  )


def curves(
  history: Mapping[int, Sequence[Mapping[str, Any]]], key: str, title: str
) -> Curves | None:
  """Returns a curve for every fold; None where there is nothing to draw.

  Args:
    history: lines of metrics.jsonl by fold.
    key: of the lines.
    title: of the chart.
  """
  series = {
    fold: [(x['epoch'], x[key]) for x in lines if x.get(key) is not None]
    for fold, lines in history.items()
  }
  values = [y for points in series.values() for _, y in points]
  last = max((x for points in series.values() for x, _ in points), default=0)
  if not values or last < 1:
    return None
  x, y = _steps(0, last), _steps(min(values), max(values))
  span = y[-1] - y[0]
  lines = [
    Line(
      name=f'fold {fold}',
      colour=place % _COLOURS,
      dashed=place >= _COLOURS,
      points=' '.join(
        f'{100 * a / last:.2f},{100 - 100 * (b - y[0]) / span:.2f}'
        for a, b in _thinned(points)
      ),
    )
    for place, (fold, points) in enumerate(series.items())
  ]
  return Curves(
    title,
    lines,
    [Tick(v / last, f'{v:g}') for v in x if v <= last],
    [Tick((v - y[0]) / span, f'{v:g}') for v in y],
  )


def _thinned(points: list, most: int = 500) -> list:
  """Returns about `most` of the points, the last among them."""
  step = max(len(points) // most, 1)
  return points[::step] + points[-1:] * bool((len(points) - 1) % step)


def _steps(low: float, high: float) -> list[float]:
  """Round numbers from below `low` to above `high`, two at least."""
  span = max(high - low, abs(high) * 1e-3, 1e-9)
  rough = span / _TICKS
  unit = 10.0 ** math.floor(math.log10(rough))
  step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
  if isinstance(low, int) and isinstance(high, int):
    step = max(step, 1)
  first, last = math.floor(low / step), math.ceil(high / step)
  last = max(last, first + 1)
  return [float(f'{i * step:.6g}') for i in range(first, last + 1)]
