"""Maps tumour over an image: windows that overlap vote, in two steps.

Tang et al., "Diagnosis of lymph node metastasis in head and neck squamous cell
carcinoma using deep learning", Laryngoscope Investigative Otolaryngology 2022,
section 2.5.
"""

import numpy as np

WINDOW = 40  # Pixels of 1 um, as is the stride.
STRIDE = 10
FIRES = 0.5  # Probability from which a network says tumour.
_LEAST_TISSUE = 0.5  # Windows with less of it are glass.


def on_tissue(tissue: np.ndarray, stride: int = STRIDE) -> np.ndarray:
  """Returns which windows are to be looked at, bool [h, w].

  The paper removes edge areas without tissue after the fact; here windows that
  are glass for more than a half are never evaluated and do not vote.

  Args:
    tissue: True on tissue, bool [H, W].
    stride: from one window to the next.
  """
  share = sums(tissue, WINDOW)[::stride, ::stride] / WINDOW**2
  return share >= _LEAST_TISSUE


def sums(mask: np.ndarray, window: int) -> np.ndarray:
  """Counts True pixels in every window, int32 [H - window + 1, ...]."""
  total = np.pad(mask.astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
  high = total[window:] - total[:-window]
  return high[:, window:] - high[:, :-window]


def votes(positive: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Returns the heat map: each positive window adds its vote to its pixels.

  With k = window / stride = 4 a vote is 1 / k**2 = 0.0625, so that a pixel that
  k**2 windows cover reaches 1 where all are positive. On blocks of
  stride x stride pixels the map is the k x k convolution of the decisions with
  ones, divided by k**2. Pixels closer to the border than window - stride have
  fewer windows and stay below 1, as in the paper; those beyond the last
  window have none and are 0.

  Args:
    positive: the decision on each window, bool [h, w] of `on_tissue`.
    shape: the image's, (H, W).

  Returns:
    float32 [H, W], multiples of 1 / k**2 from 0 to 1.
  """
  result = np.zeros(shape, np.float32)
  if positive.size:
    k = WINDOW // STRIDE
    # Block (i, j) lies in the windows (i - k + 1 .. i, j - k + 1 .. j).
    blocks = sums(np.pad(positive, k - 1), k)
    pixels = blocks.repeat(STRIDE, 0).repeat(STRIDE, 1)
    result[: pixels.shape[0], : pixels.shape[1]] = pixels / k**2
  return result
