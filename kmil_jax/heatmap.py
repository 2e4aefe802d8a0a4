"""Maps tumour over an image: windows that overlap vote, in two steps.

Tang et al., "Diagnosis of lymph node metastasis in head and neck squamous cell
carcinoma using deep learning", Laryngoscope Investigative Otolaryngology 2022,
section 2.5.
"""

import chex
import numpy as np

WINDOW = 40  # Pixels of 1 um, as is the stride.
STRIDE = 10
FIRES = 0.5  # Probability from which a network says tumour.
_LEAST_TISSUE = 0.5  # Windows with less of it are glass.


def grid(
  shape: tuple[int, int], window: int = WINDOW, stride: int = STRIDE
) -> tuple[int, int]:
  """Returns how many windows fit, down and across; (0, 0) if none does."""
  if min(shape) < window:
    return 0, 0
  return tuple((side - window) // stride + 1 for side in shape)


def on_tissue(
  tissue: np.ndarray, window: int = WINDOW, stride: int = STRIDE
) -> np.ndarray:
  """Returns which windows are to be looked at, bool [h, w].

  The paper removes edge areas without tissue after the fact; here windows that
  are glass for more than a half are never evaluated and do not vote.

  Args:
    tissue: True on tissue, bool [H, W].
    window: side of the windows.
    stride: from one to the next.
  """
  share = sums(tissue, window)[::stride, ::stride] / window**2
  return share >= _LEAST_TISSUE


def sums(mask: np.ndarray, window: int) -> np.ndarray:
  """Counts True pixels in every window, int32 [H - window + 1, ...]."""
  total = np.pad(mask.astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
  high = total[window:] - total[:-window]
  return high[:, window:] - high[:, :-window]


def votes(
  positive: np.ndarray,
  shape: tuple[int, int],
  window: int = WINDOW,
  stride: int = STRIDE,
) -> np.ndarray:
  """Returns the heat map: each positive window adds its vote to its pixels.

  With k = window / stride a vote is 1 / k**2, 0.0625 in the paper, so that a
  pixel that k**2 windows cover reaches 1 where all are positive. On blocks of
  stride x stride pixels the map is the k x k convolution of the decisions with
  ones, divided by k**2. Pixels closer to the border than window - stride have
  fewer windows and stay below 1, as in the paper; those beyond the last
  window have none and are 0.

  Args:
    positive: the decision on each window, bool [h, w] of `grid`.
    shape: the image's, (H, W).
    window: side of the windows, a multiple of the stride.
    stride: from one window to the next.

  Returns:
    float32 [H, W], multiples of 1 / k**2 from 0 to 1.
  """
  if window % stride:
    raise ValueError(f'a window of {window} is no multiple of {stride}')
  chex.assert_shape(positive, grid(shape, window, stride))
  result = np.zeros(shape, np.float32)
  if not positive.size:
    return result
  k = window // stride
  padded = np.pad(positive.astype(np.int32), k)
  # Block (i, j) lies in the windows (i - k + 1 .. i, j - k + 1 .. j).
  blocks = sums(padded, k)[1:-1, 1:-1]
  pixels = blocks.repeat(stride, 0).repeat(stride, 1)
  result[: pixels.shape[0], : pixels.shape[1]] = pixels / k**2
  return result
