"""Tiles on the grids of patients: split, decided on and drawn."""

import csv
import io
import zipfile

import numpy as np
from PIL import Image
import pytest
from two_step_networks import ALIKE, TISSUE, TUMOUR, run

from data import labelled_tiles
from data.labelled_tiles import TileError
from experiments.studies import two_step
from experiments.studies.two_step import Tiles
from kmil_jax import metrics


def write(folder, labels=(0, 1)):
  """Ten patients of 6 x 5 tiles; some of the others look like tumour."""
  rng = np.random.default_rng(0)
  rows = [['patient', 'x', 'y', 'label', 'zip_path']]
  with zipfile.ZipFile(folder / 'tiles.zip', 'w') as archive:
    for patient in range(10):
      for i in range(30):
        kind = rng.choice(3, p=(0.45, 0.4, 0.15))
        colour = (TISSUE, TUMOUR, ALIKE)[kind] + rng.normal(0, 12, 3)
        tile = colour + rng.normal(0, 8, (20, 20, 3))
        x, y, label = 20 * (i % 6) + 1, 20 * (i // 6) + 1, int(kind == 1)
        name = f'{patient}/{label}/x{x}_y{y}.png'
        file = io.BytesIO()
        pixels = tile.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, 'PNG')
        archive.writestr(name, file.getvalue())
        rows.append([f'p{patient}', x, y, labels[label], name])
  with (folder / 'index.csv').open('w', newline='') as f:
    csv.writer(f).writerows(rows)
  return f'--tiles_zip={folder}/tiles.zip', f'--tiles_csv={folder}/index.csv'


def read(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def test_tiles_of_unseen_patients_are_decided_on_in_two_steps(tmp_path, capsys):
  done = run(
    tmp_path,
    *write(tmp_path),
    '--primary=googlenet',
    '--batch=4',
    '--select=loss',
    '--epochs=6',
    '--lr=0.05',
  )
  here = {r['rule']: r for r in read(done / 'tiles.csv') if r['from'] == 'here'}
  value = lambda rule, name: float(here[rule][name])
  raised, two = two_step.RAISED, two_step.TWO
  assert value(two, 'sensitivity') > 60
  assert value(raised, 'sensitivity') >= value(two, 'sensitivity')
  assert value(two, 'specificity') > value(raised, 'specificity') + 8
  # What is printed of a patient follows from the tiles that are written.
  rows = read(done / 'test_tiles.csv')
  patients = read(done / 'patients.csv')
  names = {row['patient_id'] for row in patients}
  assert {row['patient_id'] for row in rows} == names
  for patient in patients:
    mine = [r for r in rows if r['patient_id'] == patient['patient_id']]
    assert len(mine) == int(patient['tiles']) == 30
    tumour = np.array([row['label'] == '1' for row in mine])
    prob = np.array([float(row['primary']) for row in mine])
    auroc = metrics.auroc(tumour, prob)
    assert float(patient['auroc']) == pytest.approx(auroc, abs=1e-4)
  [picture] = (done / 'figures').glob('grid_p*.png')
  shown = picture.stem.removeprefix('grid_')
  out = capsys.readouterr().out
  assert f'heat map of patient {shown}: AUROC' in out
  assert 'augment none (tang)' in out and 'patience None (5)' in out


@pytest.mark.parametrize(
  'xy,want',
  [
    # Corners may be shifted, and no multiple of the side.
    ([(7, -13), (27, 9), (7, 7)], [(0, 0), (1, 1), (0, 1)]),
    ([(0, 0), (1, 0), (2, 0)], None),  # Indices.
    ([(0, 0), (40, 0), (0, 0)], None),  # Two images of the patient.
    ([(0, 0), (20, 0), (10**9 - 1, 1 - 10**9)], None),
  ],
)
def test_a_picture_is_drawn_of_tiles_on_a_grid_alone(xy, want):
  images, places = np.zeros((3, 20, 20, 3), np.uint8), np.array(xy, np.int32)
  tiles = labelled_tiles.from_arrays(
    images, [0, 1, 0], ['p'] * 3, ('0', '1'), xy=places
  )
  found = two_step.cells(tiles)
  assert (found if found is None else list(map(tuple, found.tolist()))) == want


def test_which_label_is_tumour_is_never_guessed(tmp_path):
  write(tmp_path, labels=('normal', 'cancer'))
  files = tmp_path / 'tiles.zip', tmp_path / 'index.csv'
  with pytest.raises(TileError, match='Give the one of tumour with --positive'):
    two_step.open_tiles(Tiles(*files), 0)
  with pytest.raises(TileError, match='--positive=tumour: the classes are'):
    two_step.open_tiles(Tiles(*files, 'tumour'), 0)
  tiles = two_step.open_tiles(Tiles(*files, 'cancer'), 0).tiles
  red = tiles.pixels[..., 0].mean((1, 2)) > 185  # Tumour, and what looks so.
  assert red[tiles.label == 1].all() and not red[tiles.label == 0].all()
  table = files[1].read_text()
  files[1].write_text(table.replace(',cancer,', ',third,', 1))
  with pytest.raises(TileError, match='the classes cancer, normal, third; two'):
    two_step.open_tiles(Tiles(*files), 0)


def named(label, group, prefix):
  return labelled_tiles.from_arrays(
    np.zeros((len(group), 4, 4, 3), np.uint8),
    np.broadcast_to(label, len(group)),
    np.array(group),
    two_step.CLASSES,
    ids=[f'{prefix}_{i}' for i in range(len(group))],
  )


PATIENTS = [f'p{i}' for i in range(10)]
FIRST = named(np.arange(200) % 2, np.repeat(PATIENTS, 20), 'patch')


@pytest.mark.parametrize('by', ['patient', 'patch'])
def test_the_second_network_is_not_validated_on_what_the_first_saw(by):
  trains = np.arange(200) < 140 if by == 'patient' else np.arange(200) % 3 > 0
  first = FIRST.take(trains), FIRST.take(~trains)
  mistakes = named(0, np.repeat(PATIENTS, 6), 'mistake')
  train, val = two_step.second_parts(mistakes, first, by, 0)
  assert len(train) + len(val) == 2 * len(mistakes)
  assert not {*val.id} & {*first[0].id}
  assert not {*train.id} & {*first[1].id}
  if by == 'patient':
    assert not {*val.group} & {*first[0].group}
  for part in (train, val):
    assert set(part.label) == {0, 1}
  # Of one patient, they are split by patch.
  mistakes = named(0, ['p0'] * 40, 'mistake')
  train, val = two_step.second_parts(mistakes, first, by, 0)
  assert [(p.label == 0).sum() for p in (train, val)] == [28, 12]
  assert not {*val.id} & {*first[0].id}


def test_the_raised_bar_finds_as_much_tumour():
  primary = np.array([0.9, 0.8, 0.7, 0.6, 0.95, 0.85, 0.55, np.nan])
  second = np.array([1, 1, 1, 0, 1, 0, 0, np.nan])
  tumour = np.arange(8) < 4
  found = two_step.rules([primary, second], tumour)
  raised, both = found[two_step.RAISED], found[two_step.TWO]
  assert (raised & tumour).sum() == (both & tumour).sum() == 3
  assert (raised & ~tumour).sum() == 2 and (both & ~tumour).sum() == 1
  assert found[two_step.ONE].sum() == 7
  nothing = two_step.rules([primary, 0 * primary], tumour)
  assert not nothing[two_step.RAISED].any()
  assert list(two_step.rules([primary], tumour)) == [two_step.ONE]
