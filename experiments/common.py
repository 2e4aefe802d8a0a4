"""Flags that the scripts share, and what they resolve to."""

import os
import pathlib

from absl import flags, logging

from kmil_jax import parallel

_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache'))

FEATURES_DIR = flags.DEFINE_string(
  'features_dir',
  None,
  'Folder of <slide_id>.h5. Without it the phantom cohort is used.',
)
CSV_PATH = flags.DEFINE_string(
  'csv_path', None, 'Labels: a CSV with the columns case_id,slide_id,label.'
)
SLIDES_DIR = flags.DEFINE_string(
  'slides_dir', None, 'Folder of slide files, for thumbnails of heat maps.'
)
SPLIT_DIR = flags.DEFINE_string(
  'split_dir',
  None,
  'Folder of splits_<i>.csv with the columns train,val,test; made if absent.',
)
K = flags.DEFINE_integer('k', 10, 'Number of folds.', lower_bound=3)
SEED = flags.DEFINE_integer(
  'seed', 2023, 'Seed of splits, order and parameters.', lower_bound=0
)
TASK = flags.DEFINE_enum(
  'task',
  'origin',
  ['origin', 'a', 'b', 'c'],
  "origin: the labels as they are. a, b, c: the paper's groupings of"
  ' non-tumor, lymphoma, breast, squamous and thyroid (or 0 to 4).',
)
LABELS = flags.DEFINE_list(
  'labels',
  None,
  'Any other relabelling, old:new,...; slides of other labels are left out.',
)
SHUFFLE_LABELS = flags.DEFINE_bool(
  'shuffle_labels',
  False,
  'Leak alarm: deals the labels anew to the cases. AUROC must come to 0.5.',
)
RESULTS_DIR = flags.DEFINE_string('results_dir', 'results', 'Where to write.')
EXP_CODE = flags.DEFINE_string(
  'exp_code', None, 'Name of the experiment; by default model and task.'
)
CACHE_DIR = flags.DEFINE_string(
  'cache_dir',
  str(_CACHE.expanduser() / 'kmil_jax'),
  'Where the phantom cohort is made, once.',
)
COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  "Multi-host runs: 'auto' on Cloud TPU, Slurm and Kubernetes, else the"
  ' host:port of process 0.',
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'With --coordinator=host:port: processes in all.'
)
PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'With --coordinator=host:port: this one, from 0.'
)

# Flags that say where and how a result is computed, not what it is.
_NOT_RESULT = {
  'cache_dir',
  'check',
  'coordinator',
  'fold',
  'heat_maps',
  'num_processes',
  'process_id',
  'results_dir',
  'slides_dir',
  'stream',
}


def start() -> None:
  """Joins the other processes of a pod; call first in main."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every save.
  parallel.cache_programs(pathlib.Path(CACHE_DIR.value) / 'programs')
  parallel.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)


def resolved(own: flags.FlagHolder) -> dict[str, object]:
  """Values of a script's flags, by name.

  Args:
    own: any flag that the script itself defines; it must have adopted the
      flags of this module.
  """
  script = flags.FLAGS.find_module_defining_flag(own.name)
  held = flags.FLAGS.get_key_flags_for_module(script)
  return {flag.name: flag.value for flag in sorted(held, key=lambda f: f.name)}


def decides_result(name: str) -> bool:
  """True for flags whose change makes another experiment."""
  return name not in _NOT_RESULT
