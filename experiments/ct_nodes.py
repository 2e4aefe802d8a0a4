"""Classifies lymph nodes in CT as benign or metastatic, slice by slice.

  python -m experiments.ct_nodes              # on a phantom of CT volumes
  python -m experiments.ct_nodes --csv_path=nodes.csv

Ansari's three experiments, Table 3: the small network without and with
augmentation, and ResNet-50. The CSV has the columns patient_id, image_path (a
NIfTI file, or the folder of a DICOM series), mask_path (NIfTI) and label, and
mask_value where one mask holds nodes of both classes. Volumes need the extra
`ct` (SimpleITK).

The paper does not say how many slices of a node it takes. Its 608 slices of 385
volumes are hardly more than one of a node: by default it is that in which the
node is largest. It split slices, not patients: --split_by=slice. The loss
decides which epoch is kept.
"""

import hashlib
import pathlib

from absl import app, flags
import numpy as np

from data.ct import VolumeError, resample, simpleitk, table
from data.phantom import ct as phantom
from experiments import (
  ct_nodes_figures,
  ct_nodes_files,
  ct_nodes_networks,
  ct_nodes_parts,
  ct_nodes_phantom,
  ct_nodes_slices,
  ct_nodes_table,
  patch_flags,
  patch_inputs,
  patch_training,
  provenance,
  start,
)
from experiments.csv_flag import CSV_PATH
from experiments.ct_nodes_networks import NETWORKS
from experiments.preflight.findings import Findings
from experiments.preflight.flag import CHECK
from experiments.run import progress
from kmil_jax import parallel

_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, "What its paths are relative to; the CSV's folder if not."
)
_CLASSES = flags.DEFINE_list(
  'classes', list(phantom.CLASSES), 'The two labels, the negative first.'
)
_NETWORKS = flags.DEFINE_list(
  'networks', list(NETWORKS), 'Rows of Table 3: ' + ', '.join(NETWORKS) + '.'
)
_SPLIT_BY = flags.DEFINE_enum(
  'split_by',
  'patient',
  ['patient', 'slice'],
  'What the parts share none of; slice is what the paper did.',
)
_SLICES = flags.DEFINE_enum(
  'slices',
  '1',
  ['1', 'all'],
  'Slices of a node: that in which it is largest, or all that hold it.',
)
_BOX_MM = flags.DEFINE_float(
  'box_mm',
  None,
  'Side of the square around a node, mm; by default that which suits the most'
  ' nodes outside the test part.',
  4,
  ct_nodes_slices.LARGEST * resample.SPACING,
)
_MASK_INTERPOLATION = flags.DEFINE_enum(
  'mask_interpolation',
  'nearest',
  ['nearest', 'bspline'],
  'How masks are resampled; bspline is what the paper did.',
)
flags.declare_key_flag('check')
flags.declare_key_flag('csv_path')
flags.adopt_module_key_flags(start)
flags.adopt_module_key_flags(patch_flags)

_NOT_RESULT = start.NOT_RESULT | {
  'check',
  'csv_path',
  'data_dir',
  'networks',
}  # fmt: skip
_SHOWN = 10  # Test slices with Grad-CAM.


def _run() -> None:
  simpleitk()
  networks, classes = _asked()
  is_phantom = CSV_PATH.value is None
  recipes = {
    name: ct_nodes_networks.recipe(name, is_phantom) for name in networks
  }
  csv_path = CSV_PATH.value or ct_nodes_phantom.make(start.CACHE_DIR.value)
  rows = table.read(csv_path, classes, _DATA_DIR.value)
  slices = ct_nodes_slices.collect(
    rows,
    classes,
    mode=_MASK_INTERPOLATION.value,
    every=_SLICES.value == 'all',
    cache_dir=pathlib.Path(start.CACHE_DIR.value).expanduser(),
  )
  parts = ct_nodes_parts.make(
    slices,
    classes,
    seed=start.SEED.value,
    by=_SPLIT_BY.value,
    box_mm=_BOX_MM.value,
  )
  if CHECK.value:
    print(ct_nodes_table.of_nodes(parts, int(slices.specks)))
    Findings().close()  # Cutting the slices has found all problems.
  folder = start.folder('ct_nodes')
  if parallel.is_first():
    print(ct_nodes_table.of_nodes(parts, int(slices.specks)), flush=True)
    if is_phantom and (notes := ct_nodes_networks.reductions(networks)):
      print('on the phantom, to be quick: ' + '; '.join(notes), flush=True)
    _open(folder, parts)
  parallel.wait_for_all('folder')
  shown = ct_nodes_figures.spread(parts, _SHOWN)
  test = parts.rows['test']
  said, cams, looks = [], [], {}
  for name in networks:
    try:
      one, trained = ct_nodes_networks.train(
        folder / name, name, parts, recipes[name], seed=start.SEED.value
      )
    except FloatingPointError:  # It is named at the end.
      continue
    cam = ct_nodes_networks.cams(name, one, trained, parts, test)
    said.append(one)
    cams.append(cam[np.searchsorted(test, shown)])
    looks[name] = ct_nodes_networks.share_inside(cam, parts.inside[test])
    if parallel.is_first():
      path = folder / 'figures' / f'{name}_curves.png'
      ct_nodes_figures.save_curves(path, one.title, trained.history)
  if not said:
    progress.raise_if_diverged(progress.below(folder))
  if parallel.is_first():
    found = {one.name: ct_nodes_table.score(one, parts) for one in said}
    ct_nodes_files.write_predictions(folder / 'predictions.csv', parts, said)
    ct_nodes_files.write_summary(folder / 'summary.json', parts, found, looks)
    path = folder / 'figures/grad_cam.png'
    ct_nodes_figures.save_cams(path, parts, shown, said, cams)
    print('\n' + ct_nodes_table.table_3(said, found, parts))
    print(ct_nodes_table.looks(said, looks, parts))
    print(f'results in {folder}')
  parallel.wait_for_all('end')
  progress.raise_if_diverged(progress.below(folder))


def _asked() -> tuple[list[str], list[str]]:
  """Networks and classes asked for."""
  networks, classes = _NETWORKS.value, _CLASSES.value
  if unknown := [name for name in networks if name not in NETWORKS]:
    raise app.UsageError(
      f'--networks={unknown[0]}: there are {", ".join(NETWORKS)}'
    )
  if not networks:
    raise app.UsageError('--networks names none')
  if len(set(classes)) != 2 or len(classes) != 2:
    raise app.UsageError('--classes: two labels are needed, the negative first')
  if CSV_PATH.value is None:
    for flag in (_DATA_DIR, _CLASSES):
      if flag.value != flag.default:
        raise app.UsageError(f'--{flag.name} goes with --csv_path')
  if patch_flags.AUGMENT.value is not None:
    raise app.UsageError(
      '--augment: which network sees augmented slices is what Table 3'
      ' compares; choose with --networks'
    )
  for flag in (patch_flags.WEIGHTS, patch_flags.FREEZE):
    if flag.value and 'resnet50' not in networks:
      raise app.UsageError(f'--{flag.name} is for resnet50 alone')
  return networks, classes


def _open(folder: pathlib.Path, parts: ct_nodes_parts.Parts) -> None:
  """Makes the results folder, or refuses one of another experiment."""
  values = start.resolved(__name__)
  digest = hashlib.sha256()
  for part, rows in parts.rows.items():
    digest.update(repr((part, parts.tiles.id[rows].tolist())).encode())
  provenance.open_folder(
    folder,
    values,
    [name for name in values if name not in _NOT_RESULT],
    {
      'slices_sha256': patch_inputs.fingerprint(parts.tiles),
      'splits_sha256': digest.hexdigest(),
    },
  )


main = start.script(_run, (VolumeError, *patch_training.ERRORS))


if __name__ == '__main__':
  app.run(main)
