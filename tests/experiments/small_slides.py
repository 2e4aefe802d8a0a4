"""Small slides of coloured blocks, and an encoder that needs no network."""

import numpy as np

from data import slides, tiff
from experiments.encoding.encoder import Encoder, network


def write(folder, sizes):
  """Writes slides of 0.5 um per pixel by name and (height, width)."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name, (height, width) in sizes.items():
    coarse = rng.integers(0, 256, (height // 32, width // 32, 3), np.uint8)
    image = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
    tiff.write(folder / f'{name}.tiff', image, mpp=0.5, levels=1)
  return slides.list_slides(folder)


def colours(tiles):
  """Mean and deviation of each colour of normalised tiles, [T, 6]."""
  return np.concatenate([tiles.mean((1, 2)), tiles.std((1, 2))], 1)


def encoder(calls=None, **others):
  """The encoder `colours`; notes the shapes of its batches."""

  def encode(tiles):
    if calls is not None:
      calls.append(tiles.shape)
    return colours(np.asarray(network('resnet50').normalise(tiles)))

  about = {'name': 'colours-0', 'note': 'a test'} | others
  return Encoder(encode=encode, **about)
