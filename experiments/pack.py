"""Packs labels and feature files into one dataset, to be moved as a whole.

  python -m experiments.pack --csv_path=labels.csv --features_dir=features \\
      --out_dir=packed

Writes packed/slide_bags/cohort/1.0.0, a TFDS dataset of a few large files: what
object storage and the hosts of a pod copy faster than thousands of small ones.
It is complete or absent: a run that is stopped leaves nothing that counts, and
none is ever overwritten.

Files are first read in other processes, where HDF5's library may hang or crash
on a damaged one: it is named. What was read is kept, as for --check.
"""

import dataclasses
import pathlib

from absl import logging

from data.files import counted, first_of
from experiments.run import progress, start
from experiments.run.options import field


@dataclasses.dataclass(frozen=True)
class Packing:
  """What is packed."""

  features_dir: pathlib.Path = field(
    None, 'Folder of <slide_id>.h5.', remote=True
  )
  csv_path: pathlib.Path = field(
    None, 'Labels: a CSV with the columns case_id,slide_id,label.', remote=True
  )
  out_dir: pathlib.Path = field(None, 'Folder for packed datasets.')
  name: str = field('cohort', 'Name of this dataset among those in --out_dir.')
  file_format: str = field(
    'array_record',
    'array_record is read slide by slide, without TensorFlow; tfrecord by'
    ' tfds.load(...) as a tf.data.Dataset.',
    choices=('array_record', 'tfrecord'),
  )


def run(packing: Packing) -> start.Next:
  """Packs, and prints how large it is."""
  # They import TensorFlow, which takes seconds.
  import tensorflow_datasets as tfds

  from data.slide_bags import slide_bags_dataset_builder as slide_bags

  logging.set_verbosity(logging.ERROR)  # TFDS tells of every file.
  tfds.disable_progress_bar()  # It has many, of which none counts slides.
  start.show_options((packing,))
  builder = slide_bags.Builder(
    data_dir=packing.out_dir,
    config=slide_bags.SlideBagsConfig(
      name=packing.name,
      csv_path=str(packing.csv_path),
      features_dir=str(packing.features_dir),
      watch=lambda slides, done: progress.bar(slides, desc=done, unit='slide'),
    ),
    file_format=packing.file_format,
  )
  folder = pathlib.Path(builder.data_dir)
  if folder.exists():
    raise FileExistsError(
      f'{folder} is there already. Delete it, or give another --name.'
    )
  builder.download_and_prepare()
  index = builder.info.metadata
  size = sum(path.stat().st_size for path in folder.iterdir())
  print(
    f'{folder}: {counted(len(index["slide_id"]), "slide")},'
    f' {counted(sum(index["length"]), "instance")} of {index["width"]}'
    ' dimensions '
    f'({builder.info.features["features"].np_dtype}), {size / 1e6:.1f} MB'
  )
  of = dict(zip(index['slide_id'], index['attributes'], strict=True))
  scales = {s: of[s].get('level0_mpp') for s in of if of[s].get('unit') == 'um'}
  if lost := [slide for slide in scales if scales[slide] is None]:
    print(
      'warning: without coordinates, which are in micrometres of slides whose'
      f' scale is not stated: {first_of(lost)}. For heat maps train on the'
      ' feature files, with --slides_dir.'
    )
  return 'kmil', {'csv_path': packing.csv_path, 'features_dir': folder}


main = start.script(run)

if __name__ == '__main__':
  main()
