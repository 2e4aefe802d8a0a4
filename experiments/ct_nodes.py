"""Classifies lymph nodes in CT as benign or metastatic (Ansari).

  python -m experiments.ct_nodes              # on a phantom of CT volumes
  python -m experiments.ct_nodes --csv_path=nodes.csv

Around each node that a mask outlines a square is cut out of its CT slice, and
networks learn to tell benign from metastatic ones. Table 3 compares a small
network, without and with augmentation, and ResNet-50; Grad-CAM shows where they
look.

The paper does not say how many slices of a node it takes. Its 608 slices of 385
volumes are hardly more than one of a node: by default it is that in which the
node is largest. It split slices, not patients: --split_by=slice.

By default (on the phantom): lr 0.001, of resnet50 0.0001; epochs 30, of
resnet50 30 (4); batch_size 4, input_size 224 (64), schedule constant, select
loss, patience 30; augment ansari of custom_aug. The paper names no learning
rate.
Reading volumes needs the extra `ct` (SimpleITK).
"""

import dataclasses

from experiments.patches import study
from experiments.run import start
from experiments.run.start import Check, Machine, Output
from experiments.studies import ct_nodes as ct
from experiments.studies.ct_nodes import Data, Networks, Training
from kmil_jax.types import PatchRecipe

# The paper names Adam, batches of 4, 30 epochs and a patience of 30 on the
# validation loss, but no learning rate: those here are ours.
_CUSTOM = PatchRecipe(
  learning_rate=1e-3,
  epochs=30,
  batch=4,
  binary=True,
  schedule='constant',
  select='loss',
  patience=30,
  input_size=224,
  mean=(0.0,),
  std=(1.0,),
)
_SMALL = {'input_size': 64}  # Pixels: above the 22 mm box at 0.79 mm already.

PAPER = study.Paper(
  name='ct_nodes',
  about=__doc__,
  inputs={'csv_path': 'nodes.csv'},
  source='Ansari, "Binary Classification of Metastatic Lymph Nodes using Deep'
  ' Learning"',
  recipe={
    'custom': _CUSTOM,
    'custom_aug': dataclasses.replace(_CUSTOM, augment='ansari'),
    'resnet50': dataclasses.replace(
      _CUSTOM, learning_rate=1e-4, mean=PatchRecipe.mean, std=PatchRecipe.std
    ),
  },
  phantom={
    'custom': _SMALL,
    'custom_aug': _SMALL,
    'resnet50': _SMALL | {'epochs': 4},
  },
)


def run(
  data: Data,
  networks: Networks,
  options: Training,
  output: Output,
  machine: Machine,
  check: Check,
) -> start.Next:
  """Trains the networks of Table 3 in turn and tests them."""
  material = ct.open_material(data, output.seed, machine.cache_dir)
  given = [data, networks, options, output, machine, check]
  stages = lambda s: ct.stages(s, material, networks.networks, options)
  return study.run(PAPER, material, given, stages, check=check.check)


main = start.script(run)

if __name__ == '__main__':
  main()
