"""A training of a tiny classifier on tiny tiles, which ends in seconds."""

import numpy as np
from tiny_classifier import SIZE

from data.labelled_tiles import from_arrays
from experiments.patches import training
from experiments.run import results
from kmil_jax.types import PatchRecipe

RECIPE = PatchRecipe(
  learning_rate=0.03, epochs=5, batch=16, augment='tang', balanced=True
)


def make_tiles(n=48, seed=0, channels=3):
  rng = np.random.default_rng(seed)
  label = np.arange(n) % 2
  image = rng.normal(120, 40, (n, SIZE, SIZE, channels))
  image[..., 0] += 30 * label[:, None, None]
  return from_arrays(
    image.clip(0, 255).astype(np.uint8),
    label,
    [f'patient {i // 4}' for i in range(n)],
    ('normal', 'tumour'),
    ids=[f'{seed}_{i}' for i in range(n)],
  )


TRAIN, VAL = make_tiles(), make_tiles(20, seed=1)


def train(folder, recipe=RECIPE, train=TRAIN, val=VAL, seed=3, **options):
  return training.train(
    results.Folder(folder.parent),
    folder.name,
    model='tiny',
    train=train,
    val=val,
    recipe=recipe,
    options=training.Training(**options),
    seed=seed,
  )
