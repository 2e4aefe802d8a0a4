"""The scores of tiles that maps show, their scales and their colours."""

import dataclasses

import matplotlib
from matplotlib import colors
import numpy as np
from scipy import stats

from experiments.slide_maps.tile_scores import TileScores

SCALES = ('absolute', 'rank')
# By the flag --colours. All but jet are even to the eye.
COLOURS = ('viridis', 'YlGn', 'coolwarm', 'jet')
_SHARES = (0.1, 10)  # Multiples of the mean attention that the scale spans.


@dataclasses.dataclass(frozen=True)
class Layer:
  """One score of every tile of a slide.

  Attributes:
    key: a short name, of letters, digits and hyphens.
    title: what it is.
    values: [N], NaN on tiles without one.
    low, high: ends of the scale, the same for every slide.
    log: whether the scale is logarithmic.
  """

  key: str
  title: str
  values: np.ndarray
  low: float
  high: float
  log: bool = False

  def place(self, values: np.ndarray) -> np.ndarray:
    """Returns places on the scale, 0 to 1; values beyond an end at that end."""
    values, ends = np.clip(values, self.low, self.high), (self.low, self.high)
    if self.log:
      values, ends = np.log(values), np.log(ends)
    return (values - ends[0]) / (ends[1] - ends[0])

  @property
  def norm(self) -> colors.Normalize:
    """The same for a colour bar."""
    kind = colors.LogNorm if self.log else colors.Normalize
    return kind(self.low, self.high)

  @property
  def beyond(self) -> str:
    """Ends of the scale beyond which values can lie, as colour bars say it."""
    return 'both' if self.log else 'neither'


def of(scores: TileScores, scale: str) -> list[Layer]:
  """Returns all layers of a slide.

  Of every class the tiles' probability, the predicted one's first; the
  attention for the predicted class; and, where several folds saw the slide, the
  standard deviation of its probability over them.

  Args:
    scores: of its tiles.
    scale: 'absolute': probabilities from 0 to 1, their deviation from 0 to its
      bound of 0.5, attention from a tenth to ten times an equal share.
      'rank': the part of the slide's tiles that score less, equal ones
      counted half.
  """
  predicted = scores.predicted
  order = sorted(range(len(scores.classes)), key=lambda c: c != predicted)
  layers = [
    Layer(
      f'probability-{c}',
      f'tile probability of {scores.classes[c]}',
      scores.probability(c),
      0,
      1,
    )
    for c in order
  ]
  name = scores.classes[predicted]
  per_class = scores.attention.shape[-1] > 1
  layers.append(
    Layer(
      'attention',
      f'attention{f" for {name}" if per_class else ""}, multiples of the mean',
      scores.multiples(predicted),
      *_SHARES,
      log=True,
    )
  )
  if len(scores.folds) > 1:
    layers.append(
      Layer(
        'disagreement',
        f'probability of {name}: s.d. over {len(scores.folds)} folds',
        scores.disagreement(predicted),
        0,
        0.5,
      )
    )
  if scale == 'rank':
    layers = [_ranked(layer) for layer in layers]
  return layers


def _ranked(layer: Layer) -> Layer:
  has = ~np.isnan(layer.values)
  ranks = np.full(layer.values.shape, np.nan)
  ranks[has] = (stats.rankdata(layer.values[has]) - 0.5) / max(has.sum(), 1)
  title = layer.title.split(', multiples')[0]
  return Layer(layer.key, f'rank of {title}', ranks, 0, 1)


def colour_map(name: str) -> np.ndarray:
  """Returns 256 colours, uint8 [256, 4]; low ones of YlGn are transparent.

  Args:
    name: one of `COLOURS`.
  """
  ramp = np.linspace(0, 1, 256)
  if name == 'YlGn':  # Its lightest are nearly white.
    colours = matplotlib.colormaps[name](0.3 + 0.7 * ramp)
    colours[:, 3] = 0.1 + 0.9 * ramp
  else:
    colours = matplotlib.colormaps[name](ramp)
  return np.rint(255 * colours).astype(np.uint8)


def palette(count: int) -> list[tuple[int, int, int]]:
  """Returns a colour (red, green, blue; 0 to 255) for each of some classes."""
  basis = matplotlib.colormaps['tab10' if count <= 10 else 'tab20'].colors
  return [
    tuple(round(255 * x) for x in basis[c % len(basis)]) for c in range(count)
  ]
