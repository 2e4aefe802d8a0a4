"""Improves a tile classifier with hard negatives (Lee et al. 2024).

  python -m experiments.hard_negatives              # on a phantom
  python -m experiments.hard_negatives --tiles_dir=annotated --pool_dir=weak \\
      --table=2,3,4,5
  python -m experiments.hard_negatives --tiles_zip=... --tiles_csv=...

A weak model is trained on annotated tiles. For every negative validation tile
that it takes for positive, the most similar tiles are taken from a pool of
patients without positives. A strong model is trained on the annotated tiles and
these. Both are tested on tiles that were set aside before.

Tables 2 to 5 compare weak and strong models; random tiles of the pool are the
control. Without data flags a phantom of lymphatic invasion is rendered. The
paper's tiles are 512 pixels of 2 um.

By default (on the phantom): lr 0.0001 (0.001), epochs 30 (6), batch_size 32,
augment lee, input_size 224 (32), schedule cosine, select loss.
"""

from experiments.patches import study
from experiments.patches.training import Training
from experiments.run import start
from experiments.run.start import Check, Machine, Output
from experiments.studies import hard_negatives as hard
from experiments.studies.hard_negatives import Data, Mining
from kmil_jax.types import PatchRecipe

PAPER = study.Paper(
  name='hard_negatives',
  about=__doc__,
  inputs={'tiles_dir': 'annotated', 'pool_dir': 'weak'},
  source='Lee et al., "A robust model training strategy using hard negative'
  ' mining in a weakly labeled dataset for lymphatic invasion in gastric'
  ' cancer", J Pathol Clin Res 2024',
  recipe={
    'resnet18': PatchRecipe(
      learning_rate=1e-4,
      epochs=30,
      batch=32,
      binary=True,
      balanced=True,
      augment='lee',
      input_size=224,
      schedule='cosine',
      select='loss',
    ),
    'mining': Mining(table=(2, 3, 4, 5), alpha=20, fractions=(0.6, 0.2, 0.2)),
  },
  # What a CPU trains in minutes, from random weights.
  phantom={
    'resnet18': {'learning_rate': 1e-3, 'epochs': 6, 'input_size': 32},
    'mining': {'fractions': (0.11, 0.13, 0.76)},
  },
)


def run(
  data: Data,
  mining: Mining,
  options: Training,
  output: Output,
  machine: Machine,
  check: Check,
) -> start.Next:
  """Trains the weak and strong models of some of the paper's tables."""
  given = [data, mining, options, output, machine, check]
  mining = PAPER.here(given, data.is_phantom)['mining']
  material = hard.open_material(data, mining, output.seed, machine.cache_dir)
  stages = lambda s: hard.stages(s, material, options)
  return study.run(PAPER, material, given, stages, check=check.check)


main = start.script(run)

if __name__ == '__main__':
  main()
