"""Packs labels and feature files into one dataset, to be moved as a whole.

  python -m experiments.pack --csv_path=labels.csv --features_dir=features \\
      --out_dir=packed

Writes packed/slide_bags/cohort/1.0.0, a TFDS dataset of a few large files: what
object storage and the hosts of a pod copy faster than thousands of small ones.
It is complete or absent: a run that is stopped leaves nothing that counts, and
none is ever overwritten.
"""

import pathlib
import sys
import time

from absl import app, flags, logging

from data import features as feature_files, labels as label_files, packed
from data.slide_bags import slide_bags_dataset_builder as slide_bags

_FEATURES_DIR = flags.DEFINE_string(
  'features_dir', None, 'Folder of <slide_id>.h5.', required=True
)
_CSV_PATH = flags.DEFINE_string(
  'csv_path',
  None,
  'Labels: a CSV with the columns case_id,slide_id,label.',
  required=True,
)
_OUT_DIR = flags.DEFINE_string(
  'out_dir', None, 'Folder for packed datasets.', required=True
)
_NAME = flags.DEFINE_string(
  'name', 'cohort', 'Name of this dataset among those in --out_dir.'
)
_FILE_FORMAT = flags.DEFINE_enum(
  'file_format',
  'array_record',
  ['array_record', 'tfrecord'],
  'array_record is read slide by slide, without TensorFlow; tfrecord by'
  ' tfds.load(...) as a tf.data.Dataset.',
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__]):
    print(f'--{flag.name}={flag.value}')
  try:
    _pack()
  except (
    feature_files.FeatureError,
    label_files.ManifestError,
    OSError,
  ) as error:
    sys.exit(f'error: {error}')


def _pack() -> None:
  logging.set_verbosity(logging.ERROR)  # TFDS tells of every file.
  start = time.perf_counter()
  builder = slide_bags.Builder(
    data_dir=_OUT_DIR.value,
    config=slide_bags.SlideBagsConfig(
      name=_NAME.value,
      csv_path=_CSV_PATH.value,
      features_dir=_FEATURES_DIR.value,
    ),
    file_format=_FILE_FORMAT.value,
  )
  folder = pathlib.Path(builder.data_dir)
  if folder.exists():
    raise FileExistsError(
      f'{folder} is there already; delete it, or give another --name'
    )
  builder.download_and_prepare()
  seconds = time.perf_counter() - start
  index = builder.info.metadata
  size = sum(path.stat().st_size for path in folder.iterdir())
  files = packed.Folder(_FEATURES_DIR.value)
  before = sum(files.file(s).stat().st_size for s in index['slide_id'])
  print(
    f'{folder}: {len(index["slide_id"])} slides, {sum(index["length"])} '
    f'instances of {index["width"]} dimensions '
    f'({builder.info.features["features"].np_dtype}), {size / 1e6:.1f} MB; '
    f'feature files {before / 1e6:.1f} MB; packed in {seconds:.1f} s'
  )


if __name__ == '__main__':
  app.run(main)
