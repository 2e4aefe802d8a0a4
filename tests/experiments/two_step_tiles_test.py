"""Tiles on the grids of patients: split, decided on and drawn."""

import csv
import io
import zipfile

from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest
from two_step_networks import NETWORKS

from data import labelled_tiles
from data.labelled_tiles import TileError
from experiments import two_step, two_step_tiles
from kmil_jax import metrics, models

TISSUE, TUMOUR, RARE = (150, 110, 190), (220, 90, 120), (220, 150, 120)


def write(folder, labels=(0, 1)):
  """Ten patients of 6 x 5 tiles; some of the others look like tumour."""
  rng = np.random.default_rng(0)
  rows = [['patient', 'x', 'y', 'label', 'zip_path']]
  with zipfile.ZipFile(folder / 'tiles.zip', 'w') as archive:
    for patient in range(10):
      for i in range(30):
        kind = rng.choice(3, p=(0.45, 0.4, 0.15))
        colour = (TISSUE, TUMOUR, RARE)[kind] + rng.normal(0, 12, 3)
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


def run(folder):
  asked = {
    'tiles_zip': str(folder / 'tiles.zip'),
    'tiles_csv': str(folder / 'index.csv'),
    'results_dir': str(folder),
    'cache_dir': str(folder / 'cache'),
    'batch': 4,
    'select': 'loss',
    'epochs': 6,
    'lr': 0.05,
    'augment': 'none',
    'primary': 'googlenet',
    'secondary': 'mobilenet_v2',
  }
  with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(**asked):
    for name, spec in NETWORKS.items():
      patch.setitem(models.CLASSIFIERS, name, spec)
    two_step.main(['two_step'])
  return folder / 'two_step_s2023'


def read(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def test_tiles_of_unseen_patients_are_decided_on_in_two_steps(tmp_path, capsys):
  write(tmp_path)
  done = run(tmp_path)
  here = {r['rule']: r for r in read(done / 'tiles.csv') if r['from'] == 'here'}
  raised, two = 'one step, as sensitive as two', 'two steps'
  value = lambda rule, name: float(here[rule][name])
  assert value(two, 'sensitivity') > 60
  assert value(raised, 'sensitivity') >= value(two, 'sensitivity')
  assert value(two, 'specificity') > value(raised, 'specificity') + 8
  # What is printed of a patient follows from the tiles that are written.
  rows = read(done / 'test_tiles.csv')
  patients = read(done / 'patients.csv')
  assert {row['patient_id'] for row in rows} == {
    row['patient_id'] for row in patients
  }
  for patient in patients:
    mine = [r for r in rows if r['patient_id'] == patient['patient_id']]
    assert len(mine) == int(patient['tiles']) == 30
    tumour = np.array([row['label'] == '1' for row in mine])
    prob = np.array([float(row['primary']) for row in mine])
    auroc = metrics.auroc(tumour, prob)
    assert float(patient['auroc']) == pytest.approx(auroc, abs=1e-4)
  [picture] = (done / 'figures').glob('grid_p*.png')
  shown = picture.stem.removeprefix('grid_')
  assert f'heat map of patient {shown}: AUROC' in capsys.readouterr().out


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
  found = two_step_tiles.cells(tiles)
  assert (found if found is None else list(map(tuple, found.tolist()))) == want


def test_which_label_is_tumour_is_never_guessed(tmp_path):
  write(tmp_path, labels=('normal', 'cancer'))
  files = str(tmp_path / 'tiles.zip'), str(tmp_path / 'index.csv')
  with pytest.raises(TileError, match='say by --positive which is tumour'):
    two_step_tiles.open_tiles(*files, None)
  with pytest.raises(TileError, match='--positive=tumour: the classes are'):
    two_step_tiles.open_tiles(*files, 'tumour')
  tiles = two_step_tiles.open_tiles(*files, 'cancer').tiles
  red = tiles.pixels[..., 0].mean((1, 2)) > 185  # Tumour, and what looks so.
  assert red[tiles.label == 1].all() and not red[tiles.label == 0].all()


def test_three_labels_are_refused(tmp_path):
  write(tmp_path, labels=('a', 'b'))
  path = tmp_path / 'index.csv'
  path.write_text(path.read_text().replace(',b,', ',c,', 1))
  with pytest.raises(SystemExit, match='found the classes a, b, c; two are'):
    run(tmp_path)
