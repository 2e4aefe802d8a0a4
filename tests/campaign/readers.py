"""Sound inputs of every reader, and how the commands read them."""

from collections.abc import Callable, Sequence
import pathlib
import shutil
from typing import Any, NamedTuple
from unittest import mock

import checkpoint_test
import ct_test
import golden_inputs
import golden_pictures
import h5py
import numpy as np
from PIL import Image
import reader_fuzz_test as samples
import run_of_no_epoch
import tiny_classifier
import tiny_training
import torch

from data import node_images, outlines, slides, tiff, tile_sources
from data.camelyon16 import slides as camelyon
from data.ct import table as ct_table, volumes
from experiments import export as export_script, pack
from experiments.bags import cohort as cohorts, options
from experiments.evaluation import comparison, froc
from experiments.maps import tile_scores
from experiments.patches import training
from experiments.prediction import models
from experiments.reporting import page
from experiments.run.results import Folder
from kmil_jax import checkpoint, export, models as networks, port

_RUN = 'kmil_s1'
_TABLES = 'labels.csv', 'splits/*'
_RECORDS = ('*.json', '*.csv', '*.jsonl', 'splits/*', *(
  f'fold_*/{end}' for end in ('*.json', '*.csv', '*.jsonl')
))  # fmt: skip
_PREDICTING = export.ExportError, models.PredictionError


class Sealed(NamedTuple):
  """A value and a hash that the project has of it, which tells any change."""

  value: Any
  seal: Any = None


class Reader(NamedTuple):
  """What is damaged, and what reads it."""

  write: Callable[[pathlib.Path], Any]  # fills a folder
  damaged: Sequence[str]  # patterns of files in it
  read: Callable[[pathlib.Path], Any]
  errors: tuple[type[Exception], ...] = ()  # that the scripts catch, too


def write_cohort(folder: pathlib.Path) -> None:
  """Writes features in the layouts of all tools."""
  golden_inputs.cohort(folder, slides=12)
  names = [f'0-{i:03d}.x' for i in range(12)]
  rows = zip(names, names[6:9] + [''] * 9, names[9:] + [''] * 9, strict=True)
  rows = [row if i < 6 else ('', *row[1:]) for i, row in enumerate(rows)]
  golden_inputs.table(
    folder / 'splits/splits_0.csv', [['train', 'val', 'test'], *rows]
  )
  for name in 'stamp', 'trident/features_x', 'tensors':
    (folder / name).mkdir(parents=True)
  for name in names:
    with h5py.File(folder / f'features/{name}.h5') as file:
      rows, coords = file['features'][()], file['coords'][()]
    with h5py.File(folder / f'stamp/{name}.h5', 'w') as file:
      half = rows.astype(np.float16)
      file.create_dataset('feats', data=half, chunks=(2, 8), compression=4)
      file['coords'] = coords * 0.5
      file.attrs.update(unit='um', tile_size_um=128.0, tile_size_px=128)
    with h5py.File(folder / f'trident/features_x/{name}.h5', 'w') as file:
      file['features'], file['coords'] = rows[None], coords[None]
      file['coords'].attrs.update(golden_inputs.ATTRIBUTES)
    torch.save(torch.from_numpy(rows), folder / f'tensors/{name}.pt')


def write_packed(folder: pathlib.Path) -> None:
  write_cohort(folder)
  names = f'--csv_path={folder}/labels.csv', f'--features_dir={folder}/features'
  pack.main(['pack', *names, f'--out_dir={folder}/packed'])


def cohort(name: str) -> Callable[[pathlib.Path], Sealed]:
  """Returns what reads a cohort whose features are in a folder."""

  def read(folder):
    paths = {'csv_path': folder / 'labels.csv', 'features_dir': folder / name}
    folds = options.Folds(k=1, split_dir=folder / 'splits')
    material = cohorts.load(options.Data(**paths), folds, 0, folder / 'cache')
    material.check()
    found = material.cohort
    bags = found.bags('float32', False).store
    value = found.manifest, found.label, bags.features, material.splits
    return Sealed(value, material.inputs())

  return read


def write_run(folder: pathlib.Path) -> None:
  shared = folder.parent / 'run'
  if not shared.exists():
    part = shared.with_name('run_part')
    shutil.rmtree(part, ignore_errors=True)
    run_of_no_epoch.make(part)
    part.rename(shared)
  shutil.copytree(shared / _RUN, folder / _RUN)


def write_export(folder: pathlib.Path) -> None:
  write_run(folder)
  run, out = f'--run={folder / _RUN}', f'--out={folder}/model.kmil'
  export_script.main(['export', run, out])


def read_export(folder: pathlib.Path) -> Sealed:
  path = folder / 'model.kmil'
  card, _ = models.Models(model=path).read()
  return Sealed((card, export.read(path)))


def read_models(folder: pathlib.Path) -> tuple:
  card, trained = models.read(Folder(folder / _RUN), None)
  return card, trained.weights


def read_scores(folder: pathlib.Path) -> list:
  found = tile_scores.find(folder / _RUN)
  return [tile_scores.read(paths) for paths in found.values()]


def write_states(folder: pathlib.Path) -> None:
  states = checkpoint.Checkpoints(folder)
  for step in 1, 2:
    states.save(step, checkpoint_test.tree(step))
  states.close()


def read_states(folder: pathlib.Path) -> Sealed:
  states = checkpoint.Checkpoints(folder)
  found = states.latest(checkpoint_test.tree(0))
  states.close()
  if states.damaged and (found is None or found['epoch'] == 1):
    raise checkpoint.CheckpointError(str(states.damaged))
  return Sealed(found)


def train(folder: pathlib.Path) -> Sealed:
  tiny = {'tiny': tiny_classifier.Tiny}
  with mock.patch.dict(networks.CLASSIFIERS, tiny):
    return Sealed(tiny_training.train(folder / 'tiny').variables)


def read_start(folder: pathlib.Path) -> tuple:
  path = str(folder / f'tiny/{training.MODEL}')
  state, _, recipe = training._read_weights(path, 'tiny', tiny_training.RECIPE)
  return state, recipe


def write_weights(folder: pathlib.Path) -> None:
  for name in 'weights.pth', 'weights.safetensors':
    (folder / name).write_bytes(samples.READERS[name][0])


def read_weights(folder: pathlib.Path) -> list:
  return [port.load_state_dict(path) for path in sorted(folder.iterdir())]


def write_nodes(folder: pathlib.Path) -> None:
  golden_pictures.nodes(folder, patients=2)
  (folder / 'raw.nii').write_bytes(samples.volume())


def read_nodes(folder: pathlib.Path) -> list:
  found = [volumes.read(folder / 'raw.nii')]
  for row in ct_table.read(folder / 'nodes.csv', ('benign', 'metastatic')):
    found.append(volumes.read(row.image))
    found.append(volumes.read_mask(row.mask, found[-1]))
  return found


def write_series(folder: pathlib.Path) -> None:
  (folder / 'series').mkdir()
  ct_test.write_series(folder / 'series')


def pixels(tiles: Any) -> tuple:
  read = [tiles.read(i) for i in range(len(tiles))]
  return tiles.id, tiles.label, tiles.group, read


def write_folders(folder: pathlib.Path) -> None:
  golden_pictures.annotated_and_weak(folder, patients=3)
  for path in (folder / 'weak').glob('*.png'):
    Image.open(path).save(path.with_suffix('.jpg'), quality=90)
    path.unlink()


def read_folders(folder: pathlib.Path) -> tuple:
  tiles = tile_sources.from_folders(folder / 'annotated')
  pool = tile_sources.from_pool(folder / 'weak', tiles.classes)
  return pixels(tiles), pixels(pool)


def read_images(folder: pathlib.Path) -> list:
  names = folder / 'images', folder / 'masks', folder / 'images.csv'
  found = node_images.load(*names, mpp=0.5)
  return [found.id, found.test, [found.read(i) for i in range(len(found))]]


def write_slides(folder: pathlib.Path) -> None:
  image = golden_pictures.tissue(0)
  golden_pictures.tiff(folder / 'slides/a.tiff', image, None)
  tiff.write(folder / 'slides/b.tiff', image, mpp=0.5, levels=2)
  (folder / 'scales.csv').write_text('slide_id,mpp\na,0.5\nc,0.25\n')


def read_slides(folder: pathlib.Path) -> list:
  scales, found = slides.read_mpp_csv(folder / 'scales.csv'), []
  for path in slides.list_slides(folder / 'slides'):
    with slides.Slide(path, mpp=scales.get(path.stem)) as slide:
      side = min(slide.width, slide.height, 1024)
      found += [
        slide.mpp,
        slide.thumbnail(4.0),
        slide.read(0, 0, 0, side, side),
      ]
  return found


def read_lesions(folder: pathlib.Path) -> Any:
  return froc.read(folder / 'masks', folder / 'detections')


def write_outlines(folder: pathlib.Path) -> None:
  golden_pictures.outlines(folder)
  (folder / 'outlines/two.xml').write_bytes(samples.asap())
  lines = 'test_001,Tumor,None,Macro\ntest_002,Normal,None,None\n'
  (folder / 'outlines/reference.csv').write_text(lines)


def read_outlines(folder: pathlib.Path) -> list:
  drawn = [folder / f'outlines/{name}' for name in ('one.geojson', 'two.xml')]
  reference = camelyon.read_reference(folder / 'outlines/reference.csv')
  return [reference, *map(outlines.read, drawn)]


READERS = {
  'CLAM': Reader(
    write_cohort,
    ('features/*', *_TABLES),
    cohort('features'),
    cohorts.ERRORS,
  ),
  'STAMP': Reader(write_cohort, ['stamp/*'], cohort('stamp'), cohorts.ERRORS),
  'TRIDENT': Reader(
    write_cohort, ['trident/*/*'], cohort('trident'), cohorts.ERRORS
  ),
  'tensors': Reader(
    write_cohort, ['tensors/*'], cohort('tensors'), cohorts.ERRORS
  ),
  'packed': Reader(
    write_packed,
    ['packed/*/*/*/*'],
    cohort('packed/slide_bags/cohort/1.0.0'),
    cohorts.ERRORS,
  ),
  'models': Reader(
    write_run, [f'{_RUN}/{end}' for end in _RECORDS], read_models, _PREDICTING
  ),
  'report': Reader(
    write_run,
    [f'{_RUN}/{end}' for end in _RECORDS],
    lambda folder: page.write(Folder(folder / _RUN)).read_text()[:0],
  ),
  'comparison': Reader(
    write_run,
    [f'{_RUN}/{end}' for end in _RECORDS],
    lambda folder: vars(comparison.read(folder / _RUN, 'a')),
  ),
  'parameters': Reader(
    write_run,
    [f'{_RUN}/fold_*/checkpoints/**/*'],
    lambda folder: Sealed(read_models(folder)),
    _PREDICTING,
  ),
  'states': Reader(write_states, ['**/*'], read_states),
  'tile scores': Reader(
    write_run,
    [f'{_RUN}/fold_*/attention/*.h5'],
    read_scores,
    (tile_scores.MapError, slides.SlideError),
  ),
  'export': Reader(write_export, ['model.kmil'], read_export, _PREDICTING),
  'classifier': Reader(
    train, [f'tiny/{training.MODEL}', 'tiny/*.json*'], train, training.ERRORS
  ),
  'own weights': Reader(
    train, [f'tiny/{training.MODEL}'], read_start, training.ERRORS
  ),
  'weights': Reader(write_weights, ['*'], read_weights, training.ERRORS),
  'volumes': Reader(write_nodes, ['*'], read_nodes, training.ERRORS),
  'DICOM': Reader(
    write_series,
    ['series/*'],
    lambda folder: volumes.read(folder / 'series'),
    training.ERRORS,
  ),
  'tiles zip': Reader(
    lambda folder: golden_pictures.zipped_tiles(folder, patients=2),
    ['*'],
    lambda folder: pixels(
      tile_sources.from_zip(folder / 'tiles.zip', folder / 'tiles.csv')
    ),
    training.ERRORS,
  ),
  'tile folders': Reader(
    write_folders, ['**/*.*g'], read_folders, training.ERRORS
  ),
  'images': Reader(
    golden_pictures.node_images,
    ['**/*.*g', '*.csv'],
    read_images,
    training.ERRORS,
  ),
  'slides': Reader(
    write_slides, ['slides/*', '*.csv'], read_slides, (slides.SlideError,)
  ),
  'lesions': Reader(
    golden_inputs.detections, ['*/*'], read_lesions, (froc.DetectionError,)
  ),
  'outlines': Reader(
    write_outlines, ['outlines/*'], read_outlines, training.ERRORS
  ),
}
