"""Flags that the scripts on bags share, and what they resolve to."""

import pathlib

from absl import app, flags
import numpy as np

from data import (
  features as feature_files,
  labels as label_files,
  slides,
  splits as split_files,
)
from data.splits import Split
from experiments import (
  class_labels,
  cohort as cohorts,
  files,
  group_table,
  phantom_cohort,
  provenance,
  start,
)
from experiments.cohort import Cohort, Joined
from experiments.csv_flag import CSV_PATH
from experiments.preflight import patients
from experiments.preflight.findings import Findings
from experiments.preflight.flag import CHECK as CHECK

FEATURES_DIR = flags.DEFINE_string(
  'features_dir',
  None,
  'Folder of <slide_id>.h5 or .pt, or the folder around it that CLAM, TRIDENT'
  ' or STAMP wrote, or a dataset of experiments.pack. Without it the phantom'
  ' cohort is used.',
)
ALLOW_MISSING = flags.DEFINE_bool(
  'allow_missing',
  False,
  'Leaves out labelled slides without features; how many is printed.',
)
SLIDES_DIR = flags.DEFINE_string(
  'slides_dir', None, 'Folder of slide files, for thumbnails of heat maps.'
)
SPLIT_DIR = flags.DEFINE_string(
  'split_dir',
  None,
  'Folder of splits_<i>.csv with the columns train,val,test.',
)
GROUP_COL = flags.DEFINE_string(
  'group_col',
  None,
  'Column of --csv_path, as of sites or scanners: slides of one are in one part'
  ' of a fold. experiments.kmil and mean_pooling tell the figures of each in'
  ' groups.csv.',
)
K = flags.DEFINE_integer(
  'k',
  10,
  'Number of folds: at least 3, or as many as --split_dir has.',
  lower_bound=1,
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
EXTERNAL_FEATURES_DIR = flags.DEFINE_string(
  'external_features_dir',
  None,
  'Features of a second cohort, which the model of every fold is tried on.',
)
EXTERNAL_CSV = flags.DEFINE_string(
  'external_csv', None, 'Its labels, with the columns of --csv_path.'
)
EXTERNAL_PHANTOM = flags.DEFINE_bool(
  'external_phantom',
  False,
  "Takes the phantom's second cohort, of another laboratory and scanner.",
)
flags.declare_key_flag('csv_path')
flags.declare_key_flag('check')
flags.adopt_module_key_flags(start)

# Flags that say where and how a result is computed, not what it is.
_NOT_RESULT = start.NOT_RESULT | {
  # What the files hold is hashed: their place is immaterial.
  'csv_path',
  'features_dir',
  'split_dir',
  'allow_missing',
  'check',
  # Their results lie beside those of the folds.
  'external_csv',
  'external_features_dir',
  'external_phantom',
  'fold',
  'group_col',  # The splits are hashed.
  'heat_maps',
  'slides_dir',
  'stream',
}


# What is raised for faults of the user's bags, labels and splits.
ERRORS = (
  class_labels.LabelError,
  cohorts.CohortError,
  feature_files.FeatureError,
  label_files.ManifestError,
  slides.SlideError,
  split_files.SplitError,
)


def cohort(task: str | None = None) -> tuple[Cohort, pathlib.Path | None]:
  """Returns the cohort and, of the phantom, the folder of lesion outlines.

  Args:
    task: instead of --task.

  Raises:
    CohortError: if labels, features and splits do not fit; names all problems.
  """
  found, outlines_dir = joined(task)
  if found.findings.problems and found.table is not None and SPLIT_DIR.value:
    folds(found)  # Its problems come with the others.
  return found.checked(), outlines_dir


def joined(task: str | None = None) -> tuple[Joined, pathlib.Path | None]:
  """As `cohort`, with all that does not fit instead of an error."""
  csv_path, features_dir = CSV_PATH.value, FEATURES_DIR.value
  slides_dir, outlines_dir = SLIDES_DIR.value, None
  if bool(csv_path) != bool(features_dir) or (slides_dir and not csv_path):
    raise app.UsageError(
      "one's own data needs both --csv_path and --features_dir (see"
      ' experiments.extract)'
    )
  if not csv_path:
    root, features_dir = phantom_cohort.make(start.CACHE_DIR.value)
    csv_path, slides_dir = root / 'labels.csv', root / 'slides'
    outlines_dir = root / 'outlines'
  found = cohorts.join(
    csv_path,
    features_dir,
    slides_dir=slides_dir,
    mapping=class_labels.mapping_of(task or TASK.value, LABELS.value),
    shuffle_seed=start.SEED.value if SHUFFLE_LABELS.value else None,
    allow_missing=ALLOW_MISSING.value,
  )
  return found, outlines_dir


def folds(found: Joined) -> list[Split]:
  """Reads or makes the folds; problems join those that were found."""
  try:
    group = groups(found.table)
  except label_files.ManifestError as e:
    found.findings.problems.append(str(e))
    return []
  return patients.folds(
    found.table,
    found.findings,
    split_dir=SPLIT_DIR.value,
    k=K.value,
    seed=start.SEED.value,
    left_out=found.left_out,
    group=group,
  )


def groups(table: label_files.Manifest) -> np.ndarray | None:
  """Returns the group of each slide by --group_col, str [n]; None without it.

  Raises:
    ManifestError: if the column is missing or has empty cells.
  """
  if not GROUP_COL.value:
    return None
  if not CSV_PATH.value or SPLIT_DIR.value:
    raise app.UsageError(
      '--group_col is of a column of --csv_path, and makes splits: it goes'
      ' without --split_dir'
    )
  return label_files.column(CSV_PATH.value, GROUP_COL.value, table)


def tell_groups(folder: pathlib.Path, cohort: Cohort) -> None:
  """Writes and prints the figures of every group, if there are groups."""
  group = groups(cohort.manifest)
  if group is not None:
    of = dict(zip(cohort.manifest.slide.tolist(), group.tolist(), strict=True))
    print('\n' + group_table.write(folder, of, cohort.classes))


def refuse_second_cohort() -> None:
  """Ends a script that would leave the flags of a second cohort unheard."""
  for flag in (EXTERNAL_CSV, EXTERNAL_FEATURES_DIR, EXTERNAL_PHANTOM):
    if flag.value:
      raise app.UsageError(
        f'--{flag.name} says nothing to this script, only to'
        ' experiments.kmil and experiments.paper'
      )


def external_cohort(cohort: Cohort, task: str | None = None) -> Cohort | None:
  """Returns the second cohort, if one is asked for.

  Args:
    cohort: the first, whose models will be tried.
    task: instead of --task.

  Raises:
    CohortError: if it has problems, or slides of the first are in it.
  """
  found = external_joined(cohort, task)
  if found is None:
    return None
  second = found.checked()
  cohorts.check_apart(cohort, second)
  return second


def external_joined(cohort: Cohort, task: str | None = None) -> Joined | None:
  """As `external_cohort`, with all that does not fit instead of an error."""
  csv_path, features_dir = EXTERNAL_CSV.value, EXTERNAL_FEATURES_DIR.value
  if bool(csv_path) != bool(features_dir):
    raise app.UsageError(
      'a second cohort needs both --external_csv and --external_features_dir'
    )
  if EXTERNAL_PHANTOM.value:
    if csv_path or CSV_PATH.value:
      raise app.UsageError(
        '--external_phantom goes with the phantom cohort alone: leave out'
        ' --csv_path and --external_csv'
      )
    root, features_dir = phantom_cohort.make_external(start.CACHE_DIR.value)
    csv_path = root / 'labels.csv'
  if not csv_path:
    return None
  return cohorts.join(
    csv_path,
    features_dir,
    mapping=class_labels.mapping_of(task or TASK.value, LABELS.value),
    like=cohort,
    allow_missing=ALLOW_MISSING.value,
  )


def splits(cohort: Cohort) -> list[Split]:
  """Returns the folds of --split_dir, or makes --k of them; prints warnings.

  Raises:
    SplitError: naming all that is wrong with them.
  """
  found = Findings()
  made = folds(Joined(cohort, cohort.manifest, cohort.left_out, found))
  if found.problems:
    raise split_files.SplitError('\n'.join(found.problems))
  found.warn()
  return made


def open_folder(
  folder: pathlib.Path, values: dict, cohort: Cohort, splits: list[Split]
) -> None:
  """Makes the results folder, or refuses one of another experiment."""
  fingerprint = split_files.fingerprint(cohort.manifest, splits)
  odd = [*cohort.warnings, *patients.warnings(cohort.manifest, splits)]
  provenance.open_folder(
    folder,
    values,
    [name for name in values if name not in _NOT_RESULT],
    cohort.fingerprint() | {'splits_sha256': fingerprint},
    cohort.about() | {'warnings': odd},
  )
  split_files.write(folder / 'splits', cohort.manifest, splits)
  files.write_csv(folder / 'cohort.csv', cohort.rows())
