"""What a model's step has to compute and to move, at the least."""

import dataclasses

from experiments.benchmarks.bags import CLASSES as C, WIDTH as D

_MOMENTS = 3  # Parameters and Adam's two moments.


@dataclasses.dataclass(frozen=True)
class Work:
  """Useful floating point operations, and bytes that memory must give."""

  flops: float
  bytes: float


def step(model: str, n: int, runs: int, params: int, itemsize: int) -> Work:
  """The work of a training step of all runs on one bag.

  Products with the features are done twice, forwards and for the weights'
  gradient; the others three times. The features are read forwards and
  backwards, once for all runs; parameters and moments are read and written.

  Args:
    model: one of the five.
    n: instances of the bag.
    runs: R.
    params: of one run.
    itemsize: bytes of a feature.
  """
  if model == 'kmil':
    n = max(n * 9 // 10, 1)
  outer, inner = _products(model, n)
  return Work(
    flops=2 * runs * (2 * outer + 3 * inner),
    bytes=2 * n * D * itemsize + runs * 2 * _MOMENTS * 4 * params,
  )


def inference(
  model: str, n: int, runs: int, params: int, itemsize: int
) -> Work:
  """The work of the logits and attention of one bag under all runs."""
  outer, inner = _products(model, max(n * 9 // 10, 1) if model == 'kmil' else n)
  if model == 'kmil':
    outer += n * D * C  # The chooser's.
  return Work(
    flops=2 * runs * (outer + inner),
    bytes=n * D * itemsize + runs * 4 * params,
  )


def memory(model: str, n: int, runs: int) -> float:
  """Bytes that runs at once need beside the features to train on one bag.

  By XLA's own account at N = 4,096, in float32; torch's are taken for alike.
  """
  kilobytes = {'transmil': 150, 'abmil': 16, 'dtfd': 14}.get(model, 7)
  return 1024.0 * kilobytes * n * runs


def trunk(tiles: int, size: int, params: int, itemsize: int) -> Work:
  """The work of ResNet-50's features up to conv4_x (He et al., table 1)."""
  side = size // 2
  products = side**2 * 49 * 3 * 64
  side, inputs = side // 2, 64
  for stage, blocks in enumerate((3, 4, 6)):
    width = 64 * 2**stage
    for block in range(blocks):
      before, side = side, side // (2 if stage and not block else 1)
      products += before**2 * inputs * width
      products += side**2 * width * (9 * width + 4 * width)
      if not block:
        products += side**2 * inputs * 4 * width
      inputs = 4 * width
  return Work(
    flops=2 * tiles * products,
    bytes=tiles * size**2 * 3 * itemsize + params * itemsize,
  )


def _products(model: str, n: int) -> tuple[float, float]:
  """Multiplications of a forward pass: with the features, and all others."""
  if model == 'abmil':
    return n * D * (2 * 256 + 1), n * 256
  if model in ('dsmil', 'kmil'):
    return n * D * (128 + 2 * C), n * 128 * (128 + C)
  if model == 'dtfd':
    return n * D * 512, n * (512 * 128 + 128 + 4 * 512)
  return n * D * 512, _transmil(n)


def _transmil(n: int, width=512, marks=256, heads=8) -> float:
  """TransMIL's, with the fewest known products for its pseudo-inverses.

  The second layer answers the class token alone; see `models.nystrom`.
  """
  inverse = 14.5 * heads * marks**3
  means = 4 * marks * width**2 + marks**2 * width
  keys_and_values = 2 * n * width**2 + 2 * n * marks * width + 33 * n * width
  layer = inverse + means + keys_and_values
  answers = n * 2 * (width**2 + marks * width)
  return 2 * layer + answers + (49 + 25 + 9) * n * width
