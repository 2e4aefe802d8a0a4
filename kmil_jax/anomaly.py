"""Where a student fails its teacher: anomaly maps and scores of patches."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from kmil_jax.losses import cosine

# In pixels of the patch (Deng and Li, CVPR 2022).
_SIGMA = 4.0


def maps(
  f: Sequence[jax.Array], g: Sequence[jax.Array], size: int
) -> jax.Array:
  """How unlike two networks' maps are, place by place.

    A = G * sum_k upsample(1 - cos(f_k, g_k)),

  cosines of channels, bilinear upsampling that aligns corners, G a Gaussian of
  4 pixels, cut off at 4 sigma, borders reflected (Deng and Li, CVPR 2022, eq. 4
  and released code). Upsampling and blurring are linear: each axis is one
  matrix.

  Args:
    f: maps of the teacher, [T, H_k, H_k, C_k].
    g: those of the student.
    size: side of the patches, in pixels.

  Returns:
    [T, size, size] float32, from 0 to the number of maps where no element is
    negative.
  """
  total = 0
  for teacher, student in zip(f, g, strict=True):
    rows, columns = (_enlarge(n, size) for n in teacher.shape[1:3])
    # Equal vectors may come out above 1.
    distance = 1 - jnp.clip(cosine(teacher, student), -1, 1)
    total += jnp.einsum(
      'yh,thw,xw->tyx', rows, distance, columns, precision='highest'
    )
  return total


@functools.cache
def _enlarge(side: int, size: int) -> np.ndarray:
  """Returns the matrix [size, side] that upsamples, then blurs, one axis."""
  place = np.arange(size) * ((side - 1) / max(size - 1, 1))
  upsample = np.maximum(1 - np.abs(place[:, None] - np.arange(side)), 0)
  blurred = scipy.ndimage.gaussian_filter1d(
    upsample, _SIGMA, axis=0, mode='reflect', truncate=4.0
  )
  return blurred.astype(np.float32)
