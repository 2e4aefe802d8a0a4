"""Finds tumour in images of lymph nodes in two steps (Tang et al. 2022).

  python -m experiments.two_step              # on a phantom of node images
  python -m experiments.two_step --images_dir=images --masks_dir=masks \\
      --images_csv=images.csv [--image_mpp=0.5] [--input_size=224]
  python -m experiments.two_step --tiles_zip=tiles.zip --tiles_csv=tiles.csv

A first network learns to tell small windows of tumour from others. It is run
over images without tumour, and a second network learns from the windows that
the first wrongly took for tumour. A window is called tumour if both networks
call it so. Overlapping windows vote on every pixel; an image is positive if a
pixel has enough votes.

Table 2 compares networks for the first step. Table 3 has the decisions on
images, in one step and in two. Tumour is outlined in pictures and as GeoJSON.

By default (on the phantom): lr 0.001, weight_decay 0.0001, epochs 30 (9),
batch_size 128 (16), augment tang, schedule decade (cosine), select loss,
patience 5. Tiles of your own, which are few and stained by many hands, have
another recipe: epochs 12, batch_size 64, augment stain, schedule cosine, select
last.
"""

import dataclasses

from experiments.patches import study
from experiments.patches.training import Training
from experiments.run import start
from experiments.run.start import Check, Machine, Output
from experiments.studies import node_images, two_step
from experiments.studies.node_images import Images
from experiments.studies.two_step import Design, Networks, Tiles
from kmil_jax.types import PatchRecipe

PAPER = study.Paper(
  name='two_step',
  about=__doc__,
  inputs=dict(images_dir='images', masks_dir='masks', images_csv='images.csv'),
  source='Tang et al., "Diagnosis of lymph node metastasis in head and neck'
  ' squamous cell carcinoma using deep learning", 2022',
  recipe={
    'design': Design(),
    'training': PatchRecipe(
      learning_rate=1e-3,
      weight_decay=1e-4,  # MATLAB's default; the paper gives no value.
      epochs=30,
      batch=128,
      augment='tang',
      schedule='decade',
      select='loss',
      patience=5,  # Ours; the paper stops early by a rule it does not give.
    ),
  },
  phantom={
    'design': {
      'primaries': ('googlenet', 'mobilenet_v2'),
      'patches': 300,
      'least_tumour': 400,
    },
    # Before the tenth epoch the paper's learning rate does not fall.
    'training': {'batch': 16, 'epochs': 9, 'schedule': 'cosine'},
  },
)
OF_TILES = {
  'design': {'primaries': ('resnet18',)},
  'training': {
    'batch': 64,
    'epochs': 12,
    'augment': 'stain',
    'schedule': 'cosine',
    'select': 'last',  # Few patients validate: they favour an early epoch.
    'patience': None,
  },
}


def run(
  images: Images,
  tiles: Tiles,
  networks: Networks,
  options: Training,
  output: Output,
  machine: Machine,
  check: Check,
) -> start.Next:
  """Trains both networks, and decides on what they have not seen."""
  networks = networks.with_primary()
  given = [images, tiles, networks, options, output, machine, check]
  is_phantom = not images.images_dir and not tiles.tiles_zip
  paper = PAPER
  if tiles.tiles_zip:
    paper = dataclasses.replace(PAPER, own=OF_TILES)
  design = paper.here(given, is_phantom)['design']
  networks.weights(design, options)  # If it is not clear whose they are: now.
  if tiles.tiles_zip:
    material = two_step.open_tiles(tiles, output.seed)
  else:
    material = node_images.open_nodes(
      images, design, output.seed, machine.cache_dir
    )
  stages = lambda s: two_step.stages(s, material, networks, options)
  return study.run(paper, material, given, stages, check=check.check)


main = start.script(run)

if __name__ == '__main__':
  main()
