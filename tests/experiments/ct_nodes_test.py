"""CT nodes: from a table of volumes to Table 3, on a tiny written cohort."""

import csv
import dataclasses
import pathlib
import types

from flax import linen as nn
import jax
import numpy as np
import pytest
from sklearn import metrics as reference

from data.ct import table, volumes
from data.ct.volumes import Volume
from data.labelled_tiles import TileError
from data.phantom import ct as phantom
from experiments import ct_nodes
from experiments.evaluation.tables import HERE
from experiments.patches import training
from experiments.patches.study import Study
from experiments.run.results import Folder
from experiments.studies import ct_nodes as ct
from experiments.studies.ct_nodes import Data, Training
from kmil_jax.models import node_cnn

SIZE, SPACING = (8, 44, 48), (2.0, 0.8, 0.8)
CLASSES = phantom.CLASSES
PATIENTS = 20
HEADER = ['patient_id', 'image_path', 'mask_path', 'mask_value', 'label']


def write_volume(folder, name, hu, mask, spacing=SPACING):
  folder.mkdir(parents=True, exist_ok=True)
  volume = Volume(folder, hu, spacing, (0.0, 0.0, 0.0))
  names = [f'{name}_{kind}.nii.gz' for kind in ('image', 'mask')]
  volumes.write(folder / names[0], hu.astype(np.int16), volume)
  volumes.write(folder / names[1], mask, volume)
  return names


def write_patient(folder, i):
  """A volume with a bright benign and a dark metastatic ball."""
  rng = np.random.default_rng(i)
  hu = rng.normal(-100, 5, SIZE).astype(np.float32)
  mask = np.zeros(SIZE, np.uint8)
  z, y, x = np.indices(SIZE) * np.array(SPACING)[:, None, None, None]
  for value, (centre, inside) in enumerate(((9.0, 100), (27.0, 20)), 1):
    radius = rng.uniform(3.2, 4.8)
    away = np.sqrt((z - 7) ** 2 + (y - 17) ** 2 + (x - centre) ** 2)
    mask[away < radius] = value
    hu[away < radius] = inside + rng.normal(0, 3)
  names = write_volume(folder, f'p{i}', hu, mask)
  return [
    (f'p{i:02d}', *names, value, label)
    for value, label in enumerate(CLASSES, 1)
  ]


def write_table(path, rows):
  with path.open('w', newline='') as f:
    csv.writer(f).writerows([HEADER, *rows])
  return path


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
  """Path of the table of 20 patients with a node of each class."""
  folder = tmp_path_factory.mktemp('ct')
  rows = [row for i in range(PATIENTS) for row in write_patient(folder, i)]
  return write_table(folder / 'nodes.csv', rows)


def collect(path, cache, **changes):
  return ct.collect(table.read(path, CLASSES), Data(**changes), cache)


@pytest.fixture(scope='module')
def place(cohort):
  """Opens the cohort with other options."""
  return lambda seed=0, **changes: ct.open_material(
    Data(csv_path=cohort, **changes), seed, cohort.parent
  )


def run(*flags):
  ct_nodes.main(['ct_nodes', *flags])


def test_tables_follow_from_the_predictions_that_are_written(
  place, tmp_path, monkeypatch
):
  material = place(box_mm=11.0)
  prob = np.random.default_rng(0).random(2 * PATIENTS)
  trained = types.SimpleNamespace(
    epoch=0,
    history=[{'best_epoch': 0}],
    predict=lambda tiles: (np.stack([1 - prob, prob], 1), None),
    grad_cam=lambda tiles, target: np.ones((len(tiles), *[tiles.size] * 2)),
  )
  monkeypatch.setattr(training, 'train', lambda *_, **__: trained)
  study = Study(Folder(tmp_path), dict(ct_nodes.PAPER.recipe), 0)
  recipe = study.recipe['resnet50']
  small = dataclasses.replace(recipe, input_size=64)
  for used, kept in ((recipe, 2), (small, 1)):
    study.recipe['resnet50'] = used
    items = ct.stages(study, material, ['custom', 'resnet50'], Training())
    items = {one.name: one for one in items}
    drawn = len(items['figures/grad_cam.png'].content.axes) - 1
    assert drawn == 4 * (1 + kept)
    shares = [row.lines[HERE][3] for row in items['table_3'].rows[:2]]
    assert [share is None for share in shares] == [False, kept < 2]
  # The network is the paper's, layer by layer.
  _, *rows = items['table_2'].csv()
  shapes = [row[-1] for row in rows]
  assert len(shapes) == 26 and shapes[::2] == shapes[1::2]
  rows, test = [], []
  for name, part in (
    ('training_', 'train'),
    ('validation_', 'val'),
    ('', 'test'),
  ):
    _, *test = items[f'{name}predictions.csv'].content
    assert {row[4] for row in test} == {part}
    rows += test
  assert len(rows) == 2 * PATIENTS
  assert not any(pathlib.Path(row[2]).is_absolute() for row in rows)
  test = np.array([row[5:7] for row in test])
  truth, tested = test[:, 0] == 'metastatic', test[:, 1].astype(float)
  assert len(test) == 4
  auroc = reference.roc_auc_score(truth, tested)
  accuracy = reference.accuracy_score(truth, tested > 0.5)
  here = items['table_3'].rows[0].lines[HERE]
  inside = material.inside[material.rows['test']].mean()
  assert here[1:4] == pytest.approx((accuracy, auroc, inside))


def test_the_custom_network_has_the_papers_layers_in_its_order(monkeypatch):
  names = {'Conv': 'Conv2D', 'TorchDense': 'Dense', 'Dropout': 'Dropout'}
  walked, pool = [], node_cnn.max_pool
  add = lambda name, out: walked.append((name, out.shape[1:])) or out

  def module(call, args, kwargs, context):
    if context.module.name is None or context.method_name != '__call__':
      return call(*args, **kwargs)
    if walked and args[0].shape[1:] != walked[-1][1]:
      add('Flatten', args[0])  # By no module.
    return add(names[type(context.module).__name__], call(*args, **kwargs))

  pooled = lambda *args: add('MaxPooling', pool(*args))
  monkeypatch.setattr(node_cnn, 'max_pool', pooled)
  image = jax.ShapeDtypeStruct((1, 224, 224, 1), np.float32)
  with nn.intercept_methods(module):
    jax.eval_shape(node_cnn.NodeCNN(1).init, jax.random.key(0), image)
  paper = ct._PUBLISHED['table_2'].values.items()
  want = [(layer, row['output shape']) for (_, layer), row in paper]
  assert want == [(n, ', '.join(map(str, shape))) for n, shape in walked]


def test_parts_share_no_patient_and_slices_are_where_they_should(place):
  material = place()
  tiles = material.tiles
  groups = [set(tiles.group[rows]) for rows in material.rows.values()]
  assert sum(map(len, groups)) == len(set.union(*groups)) == PATIENTS
  assert sorted(np.concatenate(list(material.rows.values()))) == list(
    range(2 * PATIENTS)
  )
  # The bright ball is the benign one, in the middle of every slice.
  middle = tiles.size // 2
  grey = tiles.pixels[:, middle, middle, 0]
  np.testing.assert_allclose(
    grey, np.where(tiles.label == 0, 235, 155) / 350, atol=0.04
  )
  assert material.inside[:, middle, middle].all()
  assert not material.inside[:, 0, 0].any()
  np.testing.assert_array_equal(
    material.part('test', 3).pixels,
    np.repeat(material.part('test', 1).pixels, 3, -1),
  )
  material = place(split_by='slice')  # As the paper does.
  train, test = (set(material.part(p, 1).group) for p in ('train', 'test'))
  assert train & test


def test_the_box_is_chosen_without_the_test_part(cohort, place, monkeypatch):
  before, collected = place(), collect(cohort, cohort.parent)
  names = before.tiles.id[before.rows['test']]
  test = collected['node'][np.isin(collected['id'], names)]
  for rows, more in ((test, 30), (~np.isin(np.arange(2 * PATIENTS), test), 3)):
    extent = collected['extent'].copy()
    extent[rows] += more
    changed = {**collected, 'extent': extent}
    monkeypatch.setattr(ct, 'collect', lambda *_: changed)  # noqa: B023
    assert (place().tiles.size > before.tiles.size) == (more == 3)


def test_nodes_at_the_border_or_an_end_are_dropped_and_counted(place, tmp_path):
  # The benign balls lie 9 mm from the border.
  with pytest.raises(TileError, match='no benign node whose box of 20'):
    place(box_mm=20.0)
  for counts in place(box_mm=6.0).fates.values():
    assert counts['nodes'] == counts['kept'] == PATIENTS
    assert counts['at the border'] == counts['cut by an end'] == 0
    assert 0 < counts['larger than the box'] <= PATIENTS
  rows = [row for i in range(PATIENTS) for row in write_patient(tmp_path, i)]
  scans = {'near': (3, 5, 20, 26, 0, 4), 'end': (0, 2, 20, 26, 20, 26)}
  scans['thin'] = 2, 3, 12, 32, 14, 34  # Between slices of 0.79 mm.
  for name, (z0, z1, y0, y1, x0, x1) in scans.items():
    spacing = (0.3 if name == 'thin' else 2.0, 0.8, 0.8)
    mask = np.zeros(SIZE, np.uint8)
    mask[z0:z1, y0:y1, x0:x1] = 1
    # Files of one name in folders of one name, as exports have them.
    where = tmp_path / name / 'nifti'
    files = write_volume(where, 'scan', mask, mask, spacing)
    paths = [f'{name}/nifti/{file}' for file in files]
    rows.append(('both', *paths, 1, 'benign'))
  path = write_table(tmp_path / 'nodes.csv', rows)
  data = Data(csv_path=path, box_mm=6.0)
  material = ct.open_material(data, 0, tmp_path)
  fates = material.fates
  assert fates['benign']['nodes'] == PATIENTS + 2 and material.specks == 1
  assert fates['benign']['at the border'] == 1
  assert fates['benign']['cut by an end'] == 1
  assert fates['benign']['kept'] == fates['metastatic']['kept'] == PATIENTS


def test_slices_are_cut_once_and_again_when_a_file_changes(
  cohort, tmp_path, monkeypatch
):
  first = collect(cohort, tmp_path)

  def fail(path):
    raise AssertionError(path)

  with monkeypatch.context() as patch:
    patch.setattr(volumes, 'read', fail)
    again = collect(cohort, tmp_path)
    for name, value in first.items():
      np.testing.assert_array_equal(value, again[name])
    with pytest.raises(AssertionError):
      collect(cohort, tmp_path, mask_interpolation='bspline')
    write_patient(cohort.parent, 3)  # The same, but newer.
    with pytest.raises(AssertionError):
      collect(cohort, tmp_path)
  every = collect(cohort, tmp_path, slices='all')
  assert len(every['id']) > 4 * len(first['id'])
  assert set(every['node']) == set(first['node'])


def test_volumes_that_cannot_be_used_are_all_named(tmp_path):
  rows = [row for i in range(3) for row in write_patient(tmp_path, i)]
  (tmp_path / 'p0_image.nii.gz').write_bytes(b'nothing')
  image = volumes.read(tmp_path / 'p1_image.nii.gz')
  shifted = Volume(image.path, image.hu, image.spacing, (0.0, 3.0, 0.0))
  mask = tmp_path / 'p1_mask.nii.gz'
  volumes.write(mask, volumes.read_mask(mask, image), shifted)
  rows[-1] = (*rows[-1][:3], 7, 'metastatic')
  path = write_table(tmp_path / 'nodes.csv', rows)
  with pytest.raises(SystemExit) as ended:
    run(f'--csv_path={path}', f'--cache_dir={tmp_path}')
  message = str(ended.value)
  assert 'volumes or masks that cannot be used: 3 problem(s)' in message
  for part in ('p0_image.nii.gz', 'p1_mask.nii.gz: another grid', 'value 7'):
    assert part in message


def test_what_is_odd_about_volumes_and_patients_is_counted(
  tmp_path, capsys, monkeypatch
):
  rows = [row for i in range(PATIENTS) for row in write_patient(tmp_path, i)]
  volume = volumes.read(tmp_path / 'p1_image.nii.gz')
  volumes.write(volume.path, (volume.hu + 1024).astype(np.uint16), volume)
  for kind in ('image', 'mask'):  # One scan under two patients.
    of_two = (tmp_path / f'p2_{kind}.nii.gz').read_bytes()
    (tmp_path / f'p3_{kind}.nii.gz').write_bytes(of_two)
  speck = np.zeros(SIZE, np.uint8)
  speck[2, 2, 2] = 1
  names = write_volume(tmp_path, 'speck', volume.hu, speck)
  rows.append(('p2', *names, 1, CLASSES[0]))
  path = write_table(tmp_path / 'nodes.csv', rows)
  monkeypatch.setattr(ct, 'stages', lambda *_: iter(()))
  flags = [f'--csv_path={path}', f'--cache_dir={tmp_path}']
  with pytest.raises(SystemExit) as ended:
    run(*flags, '--check')
  checked = capsys.readouterr().out
  assert ended.value.code == 0 and '0 problems, 4 warnings' in checked
  warnings = [line for line in checked.splitlines() if 'warning: ' in line]
  assert 'cases p02 and p2 look like one patient' in warnings[0]
  assert 'may not be in HU' in warnings[1] and 'p1_image' in warnings[1]
  assert 'patients p02, p03 have the same volume' in warnings[2]
  assert '1 row(s) have no node' in warnings[3] and 'speck' in warnings[3]
  run(*flags, f'--results_dir={tmp_path}')  # Cut before.
  trained = capsys.readouterr().out
  assert all(warning in trained for warning in warnings)


def test_recipes_are_the_papers():
  for name, recipe in ct_nodes.PAPER.recipe.items():
    assert (recipe.batch, recipe.epochs, recipe.patience) == (4, 30, 30)
    assert recipe.input_size == 224 and recipe.binary
    assert recipe.augment == ('ansari' if name == 'custom_aug' else 'none')


def test_share_of_a_map_in_the_node():
  inside = np.zeros((2, 4, 4), bool)
  inside[:, 1:3, 1:3] = True
  cam = np.zeros((2, 8, 8), np.float32)
  assert ct.share_inside(cam, inside) is None
  cam[0] = 1  # A quarter of it; the other map is empty.
  assert ct.share_inside(cam, inside) == pytest.approx(0.25)
  cam[1, 2:6, 2:6] = 1
  assert ct.share_inside(cam, inside) == pytest.approx(0.625)
