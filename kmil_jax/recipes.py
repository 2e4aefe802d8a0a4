"""What the authors of each model trained it with, from their released code."""

from kmil_jax.types import Recipe

# Zheng et al., iScience 2024: of every model, and of KMIL's second stage.
COMMON = Recipe()

# Zheng et al. 2024, released code: KMIL's first stage.
CHOOSER = Recipe(
  learning_rate=1e-3,
  learning_rate_min=1e-4,
  epochs=100,
  schedule='plateau',
  shuffle=False,
  select='loss_or_accuracy',
  patience=20,
)

# Ilse et al., ICML 2018: no validation, so the last epoch counts.
ABMIL = Recipe(
  learning_rate=5e-4,
  weight_decay=1e-4,
  epochs=20,
  schedule='constant',
  select='last',
)

# Li et al., CVPR 2021, code of 2024. Its selection adds AUROCs of classes that
# may occur together; for exclusive ones their mean stands in.
DSMIL = Recipe(
  learning_rate=1e-4,
  weight_decay=1e-3,
  betas=(0.5, 0.9),
  epochs=50,
  orthogonal=True,
  select='auroc_accuracy',
  patience=10,
)

# Zhang et al., CVPR 2022. Two Adams of the same rate are one.
DTFD = Recipe(
  learning_rate=1e-4,
  weight_decay=1e-4,
  epochs=200,
  clip=5.0,
  schedule='step',
  select='late_auroc',
)

# Shao et al., NeurIPS 2021, but for its half precision.
TRANSMIL = Recipe(
  learning_rate=2e-4,
  weight_decay=1e-5,
  epochs=200,
  optimizer='lookahead_radam',
  accumulate=2,
  schedule='constant',
  select='loss',
  patience=10,
)
