"""Nodes in CT: options, slices, stages and tables of Ansari's study."""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from data import labelled_tiles
from data.ct import VolumeError, nodes, resample, simpleitk, table, volumes
from data.files import counted, first_of, listed
from data.labelled_tiles import LabelledTiles, TileError
from data.phantom import ct as phantom
from data.splits import PARTS
from experiments import papers
from experiments.evaluation.tables import HERE, INTERVAL, Row, Table
from experiments.patches import pictures, tiles as patch_tiles, training
from experiments.patches.study import File, Material, Study, gathers_warnings
from experiments.run import phantoms, progress, results
from experiments.run.options import OptionError, field, fixed, free
from kmil_jax import intervals, metrics, parallel
from kmil_jax.models.node_cnn import NodeCNN

_FRACTIONS = (0.8, 0.1, 0.1)  # Ansari's.
_LARGEST = 162  # Isotropic voxels, 128 mm: the largest box there can be.
_SHOWN = 10  # Test slices with Grad-CAM.
_COLUMNS = 'train accuracy', 'test accuracy', 'test AUROC', 'Grad-CAM in node'
_PUBLISHED = papers.read('ansari')
_CODE = ('data/ct/*.py', 'experiments/studies/ct_nodes.py')
_PHANTOM_CODE = ('data/ct/*.py', 'data/phantom/*.py')
_AREA = 'area of the node alone'
# Before predictions.csv.
_NAMES = {'train': 'training_', 'val': 'validation_', 'test': ''}
_MEASURED = 'extent', 'room', 'is_cut'  # Of nodes.

# Rows of Table 3.
NETWORKS = {
  'custom': 'custom (no augmentation)',
  'custom_aug': 'custom (augmentation)',
  'resnet50': 'ResNet-50 (no augm.)',
}


@dataclasses.dataclass(frozen=True)
class Data:
  """CT volumes, and the slices that are cut from them."""

  csv_path: pathlib.Path | None = free(
    None,
    'CSV with patient_id, image_path (NIfTI, or the folder of a DICOM series),'
    ' mask_path (NIfTI), label and, where one mask holds nodes of both classes,'
    ' mask_value. By default a phantom is rendered.',
  )
  data_dir: pathlib.Path | None = free(
    None,
    'Folder of the paths in the CSV; that of the CSV by default.',
    only={'csv_path': True},
  )
  classes: tuple[str, ...] = field(
    phantom.CLASSES,
    'The two labels, the negative one first.',
    only={'csv_path': True},
  )
  split_by: str = field(
    'patient',
    'Keep whole patients, or only whole slices, in one part. patient avoids'
    ' leakage; slice repeats the paper.',
    choices=('patient', 'slice'),
  )
  slices: str = field(
    '1',
    'Slices of a node: the one in which it is largest, or all that hold it.',
    choices=('1', 'all'),
  )
  box_mm: float | None = field(
    None,
    'Side of the square around a node, in mm. By default the one that suits the'
    ' most nodes outside the test part.',
    least=4,
    most=_LARGEST * resample.SPACING,
  )
  mask_interpolation: str = field(
    'nearest',
    'How masks are resampled. bspline repeats the paper.',
    choices=('nearest', 'bspline'),
  )

  def __post_init__(self):
    if len(self.classes) != 2 or len(set(self.classes)) != 2:
      raise OptionError('--classes needs two labels, the negative one first.')


@dataclasses.dataclass(frozen=True)
class Training(training.Training):
  """How networks are trained; by default as in the paper."""

  augment: None = fixed(None)  # Table 3 compares networks with and without.


@dataclasses.dataclass(frozen=True)
class Networks:
  """The networks that are compared."""

  networks: tuple[str, ...] = free(
    tuple(NETWORKS), 'Rows of Table 3 to make.', choices=tuple(NETWORKS)
  )


@dataclasses.dataclass(frozen=True)
class Slices(Material):
  """Slices of nodes in a box of one size, split."""

  tiles: LabelledTiles  # [n, S, S, 1] float32 in [0, 1]
  inside: np.ndarray  # [n, S, S] bool, the node
  image: np.ndarray  # [n] str, path of the volume
  z: np.ndarray  # [n] mm from the volume's lower face
  rows: Mapping[str, np.ndarray]  # of `tiles`, by part
  fates: Mapping[str, Mapping[str, int]]  # by class: what became of its nodes
  specks: int  # parts of masks too small to be nodes

  @property
  def inputs(self) -> dict[str, str]:
    return {'slices_sha256': patch_tiles.fingerprint(self.tiles)}

  def tables(self) -> Iterator[Table]:
    rows = {name: list(counts.values()) for name, counts in self.fates.items()}
    rows['both'] = np.sum(list(rows.values()), 0).tolist()
    yield Table(
      'nodes',
      'Nodes',
      ('class',),
      dict.fromkeys(next(iter(self.fates.values())), 'd'),
      [Row((name,), {'': counts}) for name, counts in rows.items()],
      [f'{self.specks} parts of masks below 4 mm are no nodes']
      * bool(self.specks),
    )
    parts = {part: self.tiles.take(rows) for part, rows in self.rows.items()}
    yield patch_tiles.counts(parts, 'Slices')

  def part(self, part: str | None, channels: int) -> LabelledTiles:
    """Slices of a part, or all; the grey value in each of `channels`."""
    tiles = dataclasses.replace(
      self.tiles,
      read=lambda i: np.repeat(self.tiles.read(i), channels, -1),
      channels=channels,
    )
    return tiles.take(self.rows[part]) if part else tiles


@gathers_warnings
def open_material(data: Data, seed: int, cache_dir: pathlib.Path) -> Slices:
  """Cuts the slices of the user's volumes or of the phantom's, and splits them.

  Patients, or slices, are split; then the side of the box is chosen on training
  and validation slices. A node's slices that the box does not fit into are
  dropped; a node that reaches beyond its box stays, and is cut.

  Raises:
    VolumeError: naming all volumes and masks that cannot be used, and why.
    TileError: if a class cannot be in every part.
  """
  simpleitk()
  csv_path, last = data.csv_path, 'labels.csv'
  if not csv_path:
    about = 'ct_phantom', _PHANTOM_CODE, phantom.make, cache_dir
    csv_path = phantoms.made(*about, last=last, unit='patient') / last
  rows = table.read(csv_path, data.classes, data.data_dir)
  cut = collect(rows, data, cache_dir)
  node, extent = cut['node'], cut['extent']
  label, patient = cut['label'][node], cut['patient'][node]
  slices = LabelledTiles(  # To be split; the box is not known yet.
    cut['id'], label, patient, tuple(data.classes), cut['hu'].take, size=0
  )
  by = {'patient': 'group', 'slice': 'tile'}[data.split_by]
  split = patch_tiles.split(slices, _FRACTIONS, seed=seed, by=by)
  if data.box_mm is None:
    known = np.unique(node[np.concatenate(split[:2])])
    side = nodes.choose_box(extent[known], cut['room'][known], _LARGEST)
  else:
    side = nodes.box_side(data.box_mm)
  kept = np.flatnonzero(cut['side'] >= side)
  parts = {
    part: np.flatnonzero(np.isin(kept, some))
    for part, some in zip(PARTS, split, strict=True)
  }
  mm = side * resample.SPACING
  for part, some in parts.items():
    for c in set(range(2)) - set(label[kept[some]].tolist()):
      raise TileError(
        f'the {part} part has no {data.classes[c]} node whose box of'
        f' {mm:.1f} mm is inside its slice. Give a smaller --box_mm, another'
        ' --seed, or more data.'
      )
  middle = slice((_LARGEST - side) // 2, (_LARGEST + side) // 2)
  stays = np.isin(np.arange(len(extent)), node[kept])
  fates = {}
  for c, name in enumerate(data.classes):
    mine, is_cut = cut['label'] == c, cut['is_cut']
    counts = {
      'nodes': mine,
      'cut by an end': mine & is_cut,
      'at the border': mine & ~is_cut & ~stays,
      'kept': mine & stays,
      'slices': label[kept] == c,
      'larger than the box': mine & stays & (extent > mm),
    }
    fates[name] = {key: int(which.sum()) for key, which in counts.items()}
  return Slices(
    labelled_tiles.from_arrays(
      resample.window(cut['hu'][kept, middle, middle])[..., None],
      label[kept],
      patient[kept],
      data.classes,
      ids=cut['id'][kept],
    ),
    cut['inside'][kept, middle, middle],
    cut['image'][node[kept]],
    cut['z'][kept],
    parts,
    fates,
    int(cut['specks']),
    note=f'box of {side} x {side} voxels of {resample.SPACING} mm: {mm:.1f} mm',
    is_phantom=data.csv_path is None,
    warnings=cut['warnings'].tolist(),
  )


def collect(
  rows: Sequence[table.Row], data: Data, cache_dir: pathlib.Path
) -> Mapping[str, np.ndarray]:
  """Cuts the slices of all nodes, or loads them where that was done before.

  Returns:
    Arrays by name. Of n slices: `id`, unique; `node`, its place; `z`, mm from
    the volume's lower face; `hu` and `inside`, whether of the node, [n, L, L]
    in isotropic voxels, of which the middle [S, S] lie in the volume; and
    `side`, S. Of m nodes: `extent`, `room` and `is_cut` of `nodes.Node`;
    `patient`; `image`, the path from the masks' folder; and `label`, place
    among the classes. Those cut by the first or last slice of their volume have
    no slices. `specks`: how many parts of masks are too small to be nodes. And
    `warnings` of volumes.

  Raises:
    VolumeError: naming all volumes and masks that cannot be used, and why.
  """
  about = data.mask_interpolation, data.slices, *data.classes
  digest = hashlib.sha256(repr((about, rows)).encode())
  for row in rows:
    is_series = row.image.is_dir()
    images = listed(row.image, pattern='*') if is_series else [row.image]
    for file in (row.mask, *images):
      stat = file.stat() if file.exists() else file.lstat()
      digest.update(f'{file} {stat.st_size} {stat.st_mtime_ns}'.encode())
  name = f'ct_slices_{phantoms.code_hash(*_CODE)}_{digest.hexdigest()[:12]}.npz'
  path = cache_dir / name
  if parallel.is_first() and not path.exists():
    arrays = _cut_all(rows, data)
    results.Folder(cache_dir).write(name, arrays)
  parallel.wait_for_all('ct_slices')
  return results.read_arrays(path)


def _cut_all(rows: Sequence[table.Row], data: Data) -> dict[str, np.ndarray]:
  measured, cut, problems, specks, without = [], [], [], 0, []
  odd, same = collections.defaultdict(list), collections.defaultdict(dict)
  root = os.path.commonpath([row.mask.parent for row in rows])
  how = {'mode': data.mask_interpolation, 'every': data.slices == 'all'}
  shown = progress.bar(rows, desc='nodes', unit='row', delay=0.5)
  for files, group in itertools.groupby(shown, lambda r: (r.image, r.mask)):
    try:
      volume = volumes.read(files[0])
      mask = volumes.read_mask(files[1], volume)
    except VolumeError as e:
      problems.append(str(e))
      continue
    if doubt := volumes.hu_warning(volume):
      odd[doubt].append(files[0])
    digest = hashlib.sha256(np.ascontiguousarray(volume.hu)).hexdigest()
    for row in group:
      numbered = nodes.parts(mask, row.value)
      if not numbered.any():
        problems.append(
          f'{row.mask}: no voxel of value {row.value}. Correct mask_value.'
        )
      in_mask, small = nodes.find(numbered, volume.spacing)
      specks += small
      without += [] if in_mask else [row.mask]
      same[digest][row.image] = row.patient
      scan = row.mask.relative_to(root).as_posix()
      about = {
        'patient': row.patient,
        'image': os.path.relpath(row.image, root),
        'label': np.int32(data.classes.index(row.label)),
      }
      for node in in_mask:
        of_node = {key: getattr(node, key) for key in _MEASURED}
        measured.append(of_node | about)
        side = min(_LARGEST, node.room)
        if node.is_cut or not side:
          continue
        name = f'{row.patient}/{scan}/{row.value or 0}.{node.index}'
        pieces = nodes.cut(volume, numbered, node, side, **how)
        if not pieces:  # Thinner than an isotropic voxel.
          measured.pop()
          specks += 1
        for k, piece in enumerate(pieces):
          slice_of = {'id': f'{name}.{k}', 'node': len(measured) - 1}
          slice_of |= {'side': side, 'z': piece.z}
          for key in ('hu', 'inside'):
            slice_of[key] = np.pad(getattr(piece, key), (_LARGEST - side) // 2)
          cut.append(slice_of)
  if problems:
    raise VolumeError.listing(problems, 'volumes or masks that cannot be used')
  if not cut:
    raise VolumeError(
      'No node lies inside its volume, so there is nothing to classify. Look at'
      ' the masks.'
    )
  warnings = [
    f'{len(paths)} volume(s) may not be in HU: {warning}: {first_of(paths)}'
    for warning, paths in odd.items()
  ] + [
    f'patients {first_of(sorted(set(some.values())))} have the same volume, and'
    f' may be in several parts: {first_of(list(some))}'
    for some in same.values()
    if len(set(some.values())) > 1
  ]
  if without:
    warnings.append(
      f'{len(without)} row(s) have no node as wide as 4 mm, and are left out:'
      f' {first_of(without)}'
    )
  return {'specks': specks, 'warnings': np.array(warnings, str)} | {
    name: np.array([one[name] for one in some])
    for some in (measured, cut)
    for name in some[0]
  }


def stages(
  study: Study, material: Slices, names: Sequence[str], options: Training
) -> Iterator[Table | File]:
  """Trains networks in turn and yields what they see, and Tables 2 and 3."""
  test, prob, cams, rows = material.rows['test'], {}, {}, []
  own = dataclasses.replace(options, weights=None, freeze='')
  for name in names:
    recipe, is_resnet = study.recipe[name], name == 'resnet50'
    part = functools.partial(material.part, channels=len(recipe.mean))
    try:
      trained = training.train(
        study.folder,
        name,
        model='resnet50' if is_resnet else 'node_cnn',
        train=part('train'),
        val=part('val'),
        recipe=recipe,
        options=options if is_resnet else own,
        seed=study.seed,
        title=NETWORKS[name],
      )
    except FloatingPointError:  # It is named at the end.
      continue
    prob[name], _ = trained.predict(part(None))
    # The last map of a smaller image has 2 x 2 cells, which show no place.
    if not is_resnet or (recipe.input_size or material.tiles.size) > 64:
      target = prob[name][test].argmax(1)
      cams[name] = trained.grad_cam(part('test'), target)
    cam = cams.get(name)
    rows.append(_row(name, trained, prob[name], cam, material))
    curves = pictures.curves(NETWORKS[name], trained.history)
    yield File(f'figures/{name}_curves.png', curves)
  if not rows:
    return
  for part, name in _NAMES.items():
    yield File(f'{name}predictions.csv', _predictions(material, part, prob))
  area = material.inside[test].sum((1, 2)).astype(float)
  by_area = metrics.auroc(material.tiles.label[test] == 1, area)
  if cams:
    yield File('figures/grad_cam.png', _cam_figure(material, prob, cams))
  here = None, None, by_area, material.inside[test].mean(), ''
  yield Table(
    'table_3',
    f'Table 3: {counted(len(test), "test slice")} of'
    f' {counted(len(set(material.tiles.group[test].tolist())), "patient")},'
    ' which the intervals draw',
    ('network',),
    dict.fromkeys(_COLUMNS, '.3f') | {'kept epoch': ''},
    [*rows, Row((_AREA,), {HERE: here})],
    published=_PUBLISHED['table_3'],
  )
  layers = _PUBLISHED['table_2']
  yield Table(
    'table_2',
    'Table 2: output shapes of the custom network at 224 x 224',
    ('number', 'layer'),
    {'output shape': ''},
    [
      Row(layer, {HERE: (', '.join(map(str, shape)),)})
      for layer, shape in zip(layers.values, _output_shapes(), strict=True)
    ],
    published=layers,
  )


def _row(
  name: str,
  trained: training.Trained,
  prob: np.ndarray,
  cams: np.ndarray | None,
  material: Slices,
) -> Row:
  """A network's scores; intervals of the test part by patient."""
  tiles, train, test = material.tiles, *map(material.rows.get, PARTS[::2])
  label, of_test = tiles.label[test], ('accuracy', 'auroc')
  values = metrics.evaluate(label, prob[test])
  ends = intervals.of_metrics(label, prob[test], tiles.group[test])
  right = (prob.argmax(1) == tiles.label)[train].mean()
  inside = None
  if cams is not None:
    inside = share_inside(cams, material.inside[test])
  kept = f'{trained.epoch + 1} of {len(trained.history)}'
  here = right, *(float(values[metric]) for metric in of_test), inside, kept
  pairs = (tuple(map(float, ends[metric])) for metric in of_test)
  lines = {HERE: here, INTERVAL: (None, *pairs, None, '')}
  return Row((NETWORKS[name],), lines)


def share_inside(cam: np.ndarray, inside: np.ndarray) -> float | None:
  """Mean share of a slice's Grad-CAM that lies in the node.

  Args:
    cam: [k, s, s].
    inside: the nodes, bool [k, S, S].

  Returns:
    The mean over maps that are not 0 throughout; None if all are.
  """
  place = (np.arange(cam.shape[1]) + 0.5) * inside.shape[1] / cam.shape[1]
  place = place.astype(int)
  total = cam.sum((1, 2))
  some = total > 0
  if not some.any():
    return None
  where = inside[:, place][:, :, place]
  return float(((cam * where).sum((1, 2))[some] / total[some]).mean())


def _output_shapes() -> list[tuple[int, ...]]:
  """Returns what the layers of the custom network give of a slice, in order."""
  network = functools.partial(
    NodeCNN(1).init, mutable=True, capture_intermediates=True
  )
  image = jax.ShapeDtypeStruct((1, 224, 224, 1), np.float32)
  given = jax.eval_shape(network, jax.random.key(0), image)['intermediates']
  of = lambda name: [out.shape[1:] for out in given[name]['__call__']]
  shapes = []
  for i, pooled in enumerate(of('drop_map'), 1):
    shapes += [*of(f'conv{i}'), pooled, pooled]
  flat = (math.prod(shapes[-1]),)
  return [*shapes, flat, *of('fc1'), *of('drop_hidden'), *of('fc2')]


def _predictions(
  material: Slices, part: str, prob: Mapping[str, np.ndarray]
) -> list[list[Any]]:
  """A row per slice of a part: patient, volume, label, probabilities."""
  tiles, order = material.tiles, material.rows[part]
  columns = {
    'patient_id': tiles.group[order],
    'slice_id': tiles.id[order],
    'image_path': material.image[order],
    'z_mm': [f'{z:.2f}' for z in material.z[order]],
    'split': [part] * len(order),
    'label': np.take(tiles.classes, tiles.label[order]),
  } | {
    f'prob_{tiles.classes[1]}_{name}': values[order, 1].tolist()
    for name, values in prob.items()
  }
  return [[*columns], *zip(*columns.values(), strict=True)]


def _cam_figure(
  material: Slices,
  prob: Mapping[str, np.ndarray],
  cams: Mapping[str, np.ndarray],
) -> Any:
  """Test slices of each class, the first by id, and what networks see there."""
  tiles = material.part('test', 1)
  order = np.argsort(tiles.id)
  by_class = [order[tiles.label[order] == c][: _SHOWN // 2] for c in range(2)]
  shown = np.concatenate(by_class)
  rows = material.rows['test'][shown]
  return pictures.heat(
    f'Test slices, {tiles.size * resample.SPACING:.0f} mm wide; green: the'
    f' mask; numbers: P({tiles.classes[1]}), red where wrong',
    tiles.take(shown),
    {
      NETWORKS[name]: (cam[shown], prob[name][rows, 1])
      for name, cam in cams.items()
    },
    material.inside[rows],
  )
