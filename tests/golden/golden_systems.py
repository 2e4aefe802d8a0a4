"""Commands of the four other systems, and of phantoms."""

from golden_chain import NETWORK, STUDENTS, Chain, Command, fails
import golden_pictures as pictures

_SMALL_CNN = '--primaries=node_cnn --primary=node_cnn --secondary=node_cnn'
_IMAGES = (
  '--images_dir=images --masks_dir=masks --images_csv=images.csv --mpp=0.5'
)

TWO_STEP = Chain(
  'two_step',
  pictures.node_images,
  (
    Command('check', f'two_step {_IMAGES} --check'),
    Command(
      'images',
      f'two_step {_IMAGES} --epochs=1 --patches=20 --pictures=1 {_SMALL_CNN}',
      choices=True,
    ),
    Command(
      'again',
      f'two_step {_IMAGES} --epochs=1 --patches=20 --pictures=1 {_SMALL_CNN}',
      needs=('images',),
    ),
    fails(
      'changed_flags',
      f'two_step {_IMAGES} --epochs=2 --patches=20 --pictures=1 {_SMALL_CNN}',
      'epochs',
      'results/two_step_s2023',
      needs=('images',),
    ),
    fails(
      'unknown',
      f'two_step {_IMAGES} --primaries=nothing',
      'primaries',
      'nothing',
    ),
    Command(
      'mobilenet',
      f'two_step {_IMAGES} --epochs=1 --patches=20 --pictures=0'
      ' --primaries=mobilenet_v2 --primary=mobilenet_v2'
      ' --secondary=mobilenet_v2 --exp_code=mobilenet',
      width=NETWORK,
      choices=True,
      slow=True,
    ),
  ),
)

TILES = Chain(
  'tiles',
  pictures.zipped_tiles,
  (
    Command(
      'tiles',
      'two_step --tiles_zip=tiles.zip --tiles_csv=tiles.csv --exp_code=tiles'
      f' --epochs=1 {_SMALL_CNN}',
      choices=True,
    ),
    fails(
      'no_zip',
      'two_step --tiles_zip=none.zip --tiles_csv=tiles.csv',
      'none.zip',
    ),
  ),
)

HARD_NEGATIVES = Chain(
  'hard_negatives',
  pictures.annotated_and_weak,
  (
    Command(
      'check', 'hard_negatives --tiles_dir=annotated --pool_dir=weak --check'
    ),
    Command(
      'mined',
      'hard_negatives --tiles_dir=annotated --pool_dir=weak --epochs=1'
      ' --seeds=1',
      width=NETWORK,
      choices=True,
    ),
    fails(
      'no_pool',
      'hard_negatives --tiles_dir=annotated --pool_dir=nowhere',
      'nowhere',
    ),
  ),
)

CT_NODES = Chain(
  'ct_nodes',
  pictures.nodes,
  (
    Command('check', 'ct_nodes --csv_path=nodes.csv --check'),
    Command(
      'table_3',
      'ct_nodes --csv_path=nodes.csv --networks=custom --epochs=2'
      ' --input_size=32',
      choices=True,
    ),
    fails(
      'unknown', 'ct_nodes --csv_path=nodes.csv --networks=nothing', 'nothing'
    ),
  ),
)

FEW_SHOT = Chain(
  'few_shot',
  pictures.few_patches,
  (
    Command('check', 'few_shot --patches_dir=patches --check'),
    Command(
      'students',
      'few_shot --patches_dir=patches --width=2 --epochs=1 --seeds=1 --batch=4',
      width=STUDENTS,
      choices=True,
    ),
    Command(
      'untrained',
      'few_shot --patches_dir=patches --width=2 --epochs=1 --seeds=1 --batch=4'
      ' --lr=0 --exp_code=untrained',
      width=NETWORK,
      choices=True,
    ),
    fails(
      'changed_flags',
      'few_shot --patches_dir=patches --width=2 --epochs=1 --seeds=1 --batch=4'
      ' --per=map',
      'per',
      'map',
      needs=('students',),
    ),
  ),
)


def _nothing(folder):
  """Writes no inputs: the command makes its phantom."""


PHANTOMS = Chain(
  'phantoms',
  _nothing,
  (
    Command(
      'ct_nodes',
      'ct_nodes --networks=custom --epochs=1 --input_size=32',
      width=NETWORK,
      choices=True,
      slow=True,
    ),
    Command(
      'two_step',
      f'two_step --patches=20 --epochs=1 --pictures=1 {_SMALL_CNN}',
      width=NETWORK,
      choices=True,
      slow=True,
    ),
    Command(
      'hard_negatives',
      'hard_negatives --seeds=1 --epochs=1',
      width=NETWORK,
      choices=True,
      slow=True,
    ),
    Command(
      'few_shot',
      'few_shot --width=2 --epochs=1 --seeds=1',
      width=STUDENTS,
      choices=True,
      slow=True,
    ),
    Command('kmil', 'kmil --fold=3 --epochs=2', choices=True, slow=True),
  ),
)
