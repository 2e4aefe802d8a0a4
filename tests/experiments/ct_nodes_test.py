"""CT nodes: from a table of volumes to Table 3, on a tiny written cohort."""

import csv
import json

from absl.testing import flagsaver
import numpy as np
import pytest
from sklearn import metrics as reference

from data.ct import VolumeError, table, volumes
from data.ct.volumes import Volume
from data.labelled_tiles import TileError
from data.phantom import ct as phantom
from experiments import (
  ct_nodes,
  ct_nodes_parts,
  ct_nodes_slices,
)

SIZE, SPACING = (8, 44, 48), (2.0, 0.8, 0.8)
CLASSES = phantom.CLASSES
PATIENTS = 20
HEADER = ['patient_id', 'image_path', 'mask_path', 'mask_value', 'label']


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
  volume = Volume(folder, hu, SPACING, (0.0, 0.0, 0.0))
  names = [f'p{i}_{kind}.nii.gz' for kind in ('image', 'mask')]
  volumes.write(folder / names[0], hu.astype(np.int16), volume)
  volumes.write(folder / names[1], mask, volume)
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
  options = {'mode': 'nearest', 'every': False} | changes
  rows = table.read(path, CLASSES)
  return ct_nodes_slices.collect(rows, CLASSES, cache_dir=cache, **options)


@pytest.fixture(scope='module')
def slices(cohort):
  return collect(cohort, cohort.parent)


def place(slices, **changes):
  options = {'seed': 0, 'by': 'patient', 'box_mm': None} | changes
  return ct_nodes_parts.make(slices, CLASSES, **options)


def test_the_script_from_volumes_to_table_3(cohort, tmp_path, capsys):
  settings = {
    'csv_path': str(cohort),
    'networks': ['custom_aug'],
    'epochs': 1,
    'input_size': 16,
    'box_mm': 11.0,
    'results_dir': str(tmp_path),
    'cache_dir': str(tmp_path / 'cache'),
  }
  with flagsaver.flagsaver(**settings):
    ct_nodes.main(['ct_nodes'])
    said = capsys.readouterr().out
    folder = tmp_path / 'ct_nodes_s2023'
    before = (folder / 'predictions.csv').read_bytes()
    weights = folder / 'custom_aug/model.safetensors'
    made = weights.stat().st_mtime_ns
    # Finished networks are loaded: the same again.
    ct_nodes.main(['ct_nodes'])
  assert (folder / 'predictions.csv').read_bytes() == before
  assert weights.stat().st_mtime_ns == made
  assert 'box of 14 x 14 voxels of 0.79 mm' in said
  assert '0.99 0.58 0.63' in said
  assert 'on the phantom' not in said
  with (folder / 'predictions.csv').open() as f:
    rows = list(csv.DictReader(f))
  assert len(rows) == 2 * PATIENTS
  parts = {}
  for row in rows:
    parts.setdefault(row['patient_id'], set()).add(row['split'])
  assert all(len(found) == 1 for found in parts.values())
  summary = json.loads((folder / 'summary.json').read_text())
  test = [row for row in rows if row['split'] == 'test']
  label = [row['label'] == 'metastatic' for row in test]
  assert len(test) == summary['slices']['test'] == 4
  for name in settings['networks']:
    prob = np.array([float(r[f'prob_metastatic_{name}']) for r in test])
    found = summary['networks'][name]
    auroc = reference.roc_auc_score(label, prob)
    assert found['test_auroc']['value'] == pytest.approx(auroc)
    accuracy = reference.accuracy_score(label, prob > 0.5)
    assert found['test_accuracy']['value'] == pytest.approx(accuracy)
    assert (folder / f'figures/{name}_curves.png').stat().st_size > 5000
  assert (folder / 'figures/grad_cam.png').stat().st_size > 5000
  assert summary['nodes']['benign']['nodes'] == PATIENTS


def test_parts_share_no_patient_and_slices_are_where_they_should(slices):
  parts = place(slices)
  tiles = parts.tiles
  groups = [set(tiles.group[rows]) for rows in parts.rows.values()]
  assert sum(map(len, groups)) == len(set.union(*groups)) == PATIENTS
  assert sorted(np.concatenate(list(parts.rows.values()))) == list(
    range(2 * PATIENTS)
  )
  assert tiles.pixels.dtype == np.float32
  # The bright ball is the benign one, in the middle of every slice.
  middle = parts.side // 2
  grey = tiles.pixels[:, middle, middle, 0]
  np.testing.assert_allclose(
    grey, np.where(tiles.label == 0, 235, 155) / 350, atol=0.04
  )
  assert parts.inside[:, middle, middle].all()
  assert not parts.inside[:, 0, 0].any()
  three = parts.of('test', 3)
  assert three.load(np.arange(2)).shape == (2, parts.side, parts.side, 3)
  np.testing.assert_array_equal(
    three.pixels, np.repeat(parts.of('test', 1).pixels, 3, -1)
  )


def test_slices_of_a_patient_straddle_only_when_asked(slices):
  straddling = lambda parts: len(
    set(parts.tiles.group[parts.rows['train']])
    & set(parts.tiles.group[parts.rows['test']])
  )
  assert straddling(place(slices)) == 0
  assert straddling(place(slices, by='slice')) > 0


def test_the_box_is_chosen_without_the_test_part(slices):
  before = place(slices)
  test = np.unique(slices.node[before.source[before.rows['test']]])
  slices.extent[test] += 30
  try:
    assert place(slices).side == before.side
    train = np.setdiff1d(np.arange(len(slices.extent)), test)
    slices.extent[train] += 3
    assert place(slices).side > before.side
    slices.extent[train] -= 3
  finally:
    slices.extent[test] -= 30


def test_nodes_at_the_border_are_dropped_and_counted(slices):
  # The benign balls lie 9 mm from the border.
  with pytest.raises(TileError, match='no benign node whose box of 20'):
    place(slices, box_mm=20.0)
  with pytest.raises(TileError, match='fits around no node'):
    place(slices, box_mm=60.0)
  room = slices.side[slices.label[slices.node] == 0]
  assert room.max() * 0.79 < 20
  parts = place(slices, box_mm=6.0)
  for counts in parts.fates.values():
    assert counts['nodes'] == counts['kept'] == PATIENTS
    assert counts['at the border'] == counts['cut by an end'] == 0
    assert 0 < counts['larger than the box'] <= PATIENTS


def test_a_node_at_the_border_and_one_at_the_end_are_counted(cohort, tmp_path):
  rows = [row for i in range(PATIENTS) for row in write_patient(tmp_path, i)]
  scans = {'near': (3, 5, 20, 26, 0, 4), 'end': (0, 2, 20, 26, 20, 26)}
  for name, (z0, z1, y0, y1, x0, x1) in scans.items():
    mask = np.zeros(SIZE, np.uint8)
    mask[z0:z1, y0:y1, x0:x1] = 1
    volume = Volume(tmp_path, mask, SPACING, (0.0, 0.0, 0.0))
    # Files of one name in folders of one name, as exports have them.
    folder = tmp_path / name / 'nifti'
    folder.mkdir(parents=True)
    volumes.write(folder / 'image.nii.gz', mask.astype(np.int16), volume)
    volumes.write(folder / 'mask.nii.gz', mask, volume)
    paths = [f'{name}/nifti/{kind}.nii.gz' for kind in ('image', 'mask')]
    rows.append(('both', *paths, 1, 'benign'))
  slices = collect(write_table(tmp_path / 'nodes.csv', rows), tmp_path)
  assert len(set(slices.id.tolist())) == len(slices.id)
  fates = place(slices, box_mm=6.0).fates
  assert fates['benign']['nodes'] == PATIENTS + 2
  assert fates['benign']['at the border'] == 1
  assert fates['benign']['cut by an end'] == 1
  assert fates['benign']['kept'] == fates['metastatic']['kept'] == PATIENTS


def test_slices_are_cut_once_and_again_when_a_file_changes(
  cohort, tmp_path, monkeypatch
):
  first = collect(cohort, tmp_path)
  reader = volumes.read

  def fail(path):
    raise AssertionError(path)

  monkeypatch.setattr(volumes, 'read', fail)
  again = collect(cohort, tmp_path)
  for name, value in vars(first).items():
    np.testing.assert_array_equal(value, getattr(again, name))
  with pytest.raises(AssertionError):
    collect(cohort, tmp_path, mode='bspline')
  monkeypatch.setattr(volumes, 'read', reader)
  write_patient(cohort.parent, 3)  # The same, but newer.
  monkeypatch.setattr(volumes, 'read', fail)
  with pytest.raises(AssertionError):
    collect(cohort, tmp_path)
  monkeypatch.setattr(volumes, 'read', reader)
  every = collect(cohort, tmp_path, every=True)
  assert len(every.id) > 4 * len(first.id)
  assert set(every.node) == set(first.node)


def test_volumes_that_cannot_be_used_are_all_named(tmp_path):
  rows = [row for i in range(3) for row in write_patient(tmp_path, i)]
  (tmp_path / 'p0_image.nii.gz').write_bytes(b'nothing')
  image = volumes.read(tmp_path / 'p1_image.nii.gz')
  shifted = Volume(image.path, image.hu, image.spacing, (0.0, 3.0, 0.0))
  mask = tmp_path / 'p1_mask.nii.gz'
  volumes.write(mask, volumes.read_mask(mask, image), shifted)
  rows[-1] = (*rows[-1][:3], 7, 'metastatic')
  path = write_table(tmp_path / 'nodes.csv', rows)
  with pytest.raises(VolumeError) as error:
    collect(path, tmp_path)
  message = str(error.value)
  assert message.startswith(
    'volumes or masks that cannot be used: 3 problem(s)'
  )
  for part in ('p0_image.nii.gz', 'p1_mask.nii.gz: another grid', 'value 7'):
    assert part in message
  settings = {'csv_path': str(path), 'cache_dir': str(tmp_path)}
  with flagsaver.flagsaver(**settings), pytest.raises(SystemExit) as ended:
    ct_nodes.main(['ct_nodes'])
  assert str(ended.value).startswith(
    'error: volumes or masks that cannot be used'
  )
