"""Sound inputs of every reader, and how the commands read them."""

from collections.abc import Callable
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
import reader_fuzz_test as fuzz
import run_of_no_epoch
from samples import write_features
import tiny_classifier
import tiny_training
import torch

from data import node_images, outlines, slides, tiff, tile_sources, weights
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

RUN = 'kmil_s1'
_TABLES = 'features/* labels.csv splits/*'
_PARAMETERS = f'{RUN}/fold_*/checkpoints/**/*'
_SCORES = f'{RUN}/fold_*/attention/*.h5'
_RECORDS = (
  f'{RUN}/*.json {RUN}/*.csv {RUN}/splits/*'
  f' {RUN}/fold_*/*.json {RUN}/fold_*/*.csv {RUN}/fold_*/*.jsonl'
)


class Reader(NamedTuple):
  """What is damaged, and what reads it."""

  write: Callable[[pathlib.Path], Any]  # fills a folder
  damaged: str  # patterns of files in it
  read: Callable[[pathlib.Path], Any]
  sealed: bool = False  # whether the project keeps a hash that tells changes


def write_cohort(folder: pathlib.Path) -> None:
  """Writes features in the layouts of all tools."""
  golden_inputs.cohort(folder, slides=12)
  names = [f'0-{i:03d}.x' for i in range(12)]
  rows = [['train', 'val', 'test']]
  for i in range(6):
    rows.append([names[i], *((names[6 + i], names[9 + i]) if i < 3 else '  ')])
  golden_inputs.table(folder / 'splits/splits_0.csv', rows)
  (folder / 'tensors').mkdir()
  for name in names:
    with h5py.File(folder / f'features/{name}.h5') as file:
      rows, coords = file['features'][()], file['coords'][()]
    micrometres = {'unit': 'um', 'tile_size_um': 128.0, 'tile_size_px': 128}
    half = {'feats': rows.astype(np.float16), 'coords': coords / 2}
    write_features(folder / f'stamp/{name}.h5', micrometres, **half)
    one = {'features': rows[None], 'coords': coords[None]}
    write_features(folder / f'trident/features_x/{name}.h5', **one)
    torch.save(torch.from_numpy(rows), folder / f'tensors/{name}.pt')


def write_packed(folder: pathlib.Path) -> None:
  write_cohort(folder)
  flags = f'--csv_path={folder}/labels.csv', f'--features_dir={folder}/features'
  pack.main(['pack', *flags, f'--out_dir={folder}/packed'])


def read_cohort(folder: pathlib.Path, name: str = 'features') -> tuple:
  """Reads a cohort whose features are in a folder of that name."""
  paths = {'csv_path': folder / 'labels.csv', 'features_dir': folder / name}
  folds = options.Folds(k=1, split_dir=folder / 'splits')
  material = cohorts.load(options.Data(**paths), folds, 0, folder / 'cache')
  material.check()
  rows = material.cohort.bags('float32', 'resident').store.features
  return material.cohort.manifest, rows, material.splits


def _read(name: str) -> Callable[[pathlib.Path], tuple]:
  return lambda folder: read_cohort(folder, name)


def write_run(folder: pathlib.Path) -> None:
  shared = folder.parents[1] / 'run'
  if not shared.exists():
    part = shared.with_name('run_part')
    shutil.rmtree(part, ignore_errors=True)
    run_of_no_epoch.make(part)
    part.rename(shared)
  shutil.copytree(shared / RUN, folder / RUN)


def write_export(folder: pathlib.Path) -> None:
  write_run(folder)
  out = f'--out={folder}/model.kmil'
  export_script.main(['export', f'--run={folder / RUN}', out])


def read_export(folder: pathlib.Path) -> tuple:
  path = folder / 'model.kmil'
  return models.Models(model=path).read()[0], export.read(path)


def read_models(folder: pathlib.Path) -> tuple:
  card, trained = models.read(Folder(folder / RUN), None)
  return card, trained.weights


def read_report(folder: pathlib.Path) -> int:
  return len(page.write(Folder(folder / RUN)).read_text()) > 0


def read_scores(folder: pathlib.Path) -> list:
  return [*map(tile_scores.read, tile_scores.find(folder / RUN).values())]


def write_states(folder: pathlib.Path) -> None:
  states = checkpoint.Checkpoints(folder)
  for step in 1, 2:
    states.save(step, checkpoint_test.tree(step))
  states.close()


def read_states(folder: pathlib.Path) -> Any:
  states = checkpoint.Checkpoints(folder)
  found = states.latest(checkpoint_test.tree(0))
  states.close()
  if states.damaged and (found is None or found['epoch'] == 1):
    raise checkpoint.CheckpointError(str(states.damaged))
  return found


def train(folder: pathlib.Path) -> dict:
  with mock.patch.dict(networks.CLASSIFIERS, tiny=tiny_classifier.Tiny):
    return tiny_training.train(folder / 'tiny').variables


def read_start(folder: pathlib.Path) -> tuple:
  path = str(folder / 'tiny' / training.MODEL)
  return training._read_weights(path, 'tiny', tiny_training.RECIPE)[::2]


def read_comparison(folder: pathlib.Path) -> Any:
  return comparison.read(folder / RUN, 'a')


def read_weights(folder: pathlib.Path) -> list:
  states = [*map(weights.read, sorted(folder.iterdir()))]
  for state in states:  # As if they were those of a network.
    port.check(state, {name: leaf.shape for name, leaf in state.items()})
  return states


def read_series(folder: pathlib.Path) -> Any:
  return volumes.read(folder / 'series')


def write_weights(folder: pathlib.Path) -> None:
  for name in 'weights.pth', 'weights.safetensors':
    (folder / name).write_bytes(fuzz.READERS[name][0])


def write_nodes(folder: pathlib.Path) -> None:
  golden_pictures.nodes(folder, patients=2)
  (folder / 'raw.nii').write_bytes(fuzz.volume())


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


def write_zip(folder: pathlib.Path) -> None:
  golden_pictures.zipped_tiles(folder, patients=2)


def read_zip(folder: pathlib.Path) -> tuple:
  names = folder / 'tiles.zip', folder / 'tiles.csv'
  return pixels(tile_sources.from_zip(*names))


def write_folders(folder: pathlib.Path) -> None:
  golden_pictures.annotated_and_weak(folder, patients=3)
  for path in (folder / 'weak').glob('*.png'):
    Image.open(path).save(path.with_suffix('.jpg'))
    path.unlink()


def read_folders(folder: pathlib.Path) -> tuple:
  tiles = tile_sources.from_folders(folder / 'annotated')
  pool = tile_sources.from_pool(folder / 'weak', tiles.classes)
  return pixels(tiles), pixels(pool)


def read_images(folder: pathlib.Path) -> tuple:
  names = folder / 'images', folder / 'masks', folder / 'images.csv'
  found = node_images.load(*names, mpp=0.5)
  return found.id, found.test, [found.read(i) for i in range(len(found))]


def write_slides(folder: pathlib.Path) -> None:
  image = golden_pictures.tissue(0)
  golden_pictures.tiff(folder / 'slides/a.tiff', image, None)
  tiff.write(folder / 'slides/b.tiff', image, mpp=0.5, levels=2)
  (folder / 'scales.csv').write_text('slide_id,mpp\na,0.5\nc,0.25\n')


def read_slides(folder: pathlib.Path) -> list:
  scales, found = slides.read_mpp_csv(folder / 'scales.csv'), []
  for path in slides.list_slides(folder / 'slides'):
    with slides.Slide(path, mpp=scales.get(path.stem)) as slide:
      size = min(slide.width, 1024), min(slide.height, 1024)
      found += [slide.mpp, slide.thumbnail(4.0), slide.read(0, 0, 0, *size)]
  return found


def read_lesions(folder: pathlib.Path) -> dict:
  return froc.read(folder / 'masks', folder / 'detections')


def write_outlines(folder: pathlib.Path) -> None:
  golden_pictures.outlines(folder)
  (folder / 'outlines/two.xml').write_bytes(fuzz.asap())


def read_outlines(folder: pathlib.Path) -> list:
  return [*map(outlines.read, sorted((folder / 'outlines').iterdir()))]


images, lesions = golden_pictures.node_images, golden_inputs.detections
_PACKED = 'packed/slide_bags/cohort/1.0.0'
READERS = {
  'CLAM': Reader(write_cohort, _TABLES, read_cohort),
  'STAMP': Reader(write_cohort, 'stamp/*', _read('stamp')),
  'TRIDENT': Reader(write_cohort, 'trident/*/*', _read('trident')),
  'tensors': Reader(write_cohort, 'tensors/*', _read('tensors')),
  'packed': Reader(write_packed, f'{_PACKED}/*', _read(_PACKED)),
  'models': Reader(write_run, _RECORDS, read_models),
  'report': Reader(write_run, _RECORDS, read_report),
  'comparison': Reader(write_run, _RECORDS, read_comparison),
  'parameters': Reader(write_run, _PARAMETERS, read_models, True),
  'states': Reader(write_states, '**/*', read_states, True),
  'tile scores': Reader(write_run, _SCORES, read_scores),
  'export': Reader(write_export, 'model.kmil', read_export, True),
  'classifier': Reader(train, 'tiny/*.*', train, True),
  'own weights': Reader(train, 'tiny/model*', read_start),
  'weights': Reader(write_weights, '*', read_weights),
  'volumes': Reader(write_nodes, '*', read_nodes),
  'DICOM': Reader(write_series, 'series/*', read_series),
  'tiles zip': Reader(write_zip, '*', read_zip),
  'tile folders': Reader(write_folders, '**/*.*g', read_folders),
  'images': Reader(images, '**/*.*g *.csv', read_images),
  'slides': Reader(write_slides, 'slides/* *.csv', read_slides),
  'lesions': Reader(lesions, '*/*', read_lesions),
  'outlines': Reader(write_outlines, 'outlines/*', read_outlines),
}
