"""Projects of CLAM and STAMP train as they are, and map alike."""

import csv

import h5py
import numpy as np
import pytest
from run_of_no_epoch import rows

from data import slides
from experiments import kmil

SLIDE = 'CMU-1-Small-Region'
IDS = ['007', '0012', '1.5', 'TCGA-3C-AALI.01Z', 'b c', 'é', *'abcdfg']
CLASSES = ('normal_tissue', 'tumor_tissue')


def table(path, lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(lines)


@pytest.fixture(scope='module')
def project(tmp_path_factory, real_data):
  """Of 12 slides: table, splits and features as CLAM's and as STAMP's."""
  root = tmp_path_factory.mktemp('project')
  slide = real_data / f'wsi/{SLIDE}.svs'
  with slides.Slide(slide) as opened:
    mpp = opened.mpp
  source = real_data / f'feature_files/clam/feats/h5_files/{SLIDE}.h5'
  with h5py.File(source) as file:
    features, coords = file['features'][()], file['coords'][()]
  folders = [
    root / name for name in ('slides', 'CLAM/h5_files', 'CLAM/pt_files')
  ]
  folders.append(root / 'STAMP/rgb-01234567')
  for folder in folders:
    folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i, name in enumerate(IDS):
    (folders[0] / f'{name}.svs').symlink_to(slide)
    bag = features + rng.normal(size=features.shape).astype(np.float32) / 50
    bag[:9, 0] += i % 2
    with h5py.File(folders[1] / f'{name}.h5', 'w') as file:
      for key, data in ('features', bag), ('coords', coords):
        shape = (None, data.shape[1])
        file.create_dataset(key, data=data, chunks=True, maxshape=shape)
    (folders[2] / f'{name}.pt').write_bytes(b'not looked at')
    with h5py.File(folders[3] / f'{name}.h5', 'w') as file:
      file['feats'] = bag.astype(np.float16)
      file['coords'] = (coords * mpp).astype(np.float32)
      file.attrs.update(
        unit='um', tile_size_um=256 * mpp, tile_size_px=256, extractor='rgb'
      )
  lines = [[f'p_{i}', name, CLASSES[i % 2], 'x'] for i, name in enumerate(IDS)]
  header = ['case_id', 'slide_id', 'label', 'site']
  table(root / 'dataset.csv', [header, *lines])
  for i in range(2):  # Repeated random splits: the last two are tested twice.
    order = [*np.random.default_rng(i).permutation(IDS[:10]), *IDS[10:]]
    parts = [order[:6], order[6:9], order[9:]]
    lines = [
      [j, *(p[j] if j < len(p) else '' for p in parts)] for j in range(6)
    ]
    header = ['', 'train', 'val', 'test']
    table(root / f'splits/splits_{i}.csv', [header, *lines])
    table(root / f'splits/splits_{i}_bool.csv', [header, ['007', 1, 0, 0]])
  return root


def train(project, features, *flags):
  """Returns probabilities and maps of the test slides, by fold and slide."""
  kmil.main([
    'kmil', f'--csv_path={project / "dataset.csv"}',
    f'--features_dir={project / features}', f'--split_dir={project / "splits"}',
    f'--results_dir={project / "results"}', f'--exp_code={features}', '--k=2',
    '--epochs=2', '--model=dsmil', '--seed=1', *flags,
  ])  # fmt: skip
  results = project / f'results/{features}_s1'
  found = {}
  for row in rows(results / 'predictions.csv'):
    key = row['fold'], row['slide_id']
    path = results / f'fold_{row["fold"]}/attention/{row["slide_id"]}.h5'
    with h5py.File(path) as file:
      assert file.attrs['patch_size_level0'] == 256
      found[key] = {name: file[name][()] for name in file}
    prob = [float(row[f'prob_{name}']) for name in CLASSES]
    np.testing.assert_allclose(prob, found[key]['prob'], rtol=1e-5)
  return found


def test_projects_train_with_no_renaming_and_map_alike(project):
  want = train(project, 'CLAM')
  tested = [
    (f'{i}', row['test'])
    for i in range(2)
    for row in rows(project / f'splits/splits_{i}.csv')
    if row['test']
  ]
  assert sorted(want) == sorted(tested) and len(tested) == 6
  slides_dir = f'--slides_dir={project / "slides"}'
  found = train(project, 'STAMP', slides_dir, '--heat_maps=1')
  assert found.keys() == want.keys()
  for key, arrays in found.items():
    for name in ('coords', 'kept'):
      np.testing.assert_array_equal(arrays[name], want[key][name])
    assert arrays['coords'].shape == (49, 2)
    # STAMP rounds to float16.
    for name in ('attention', 'prob'):
      np.testing.assert_allclose(
        arrays[name], want[key][name], rtol=0.02, atol=1e-4
      )
  drawn = project / 'results/STAMP_s1/figures/heat_maps'
  assert len(list(drawn.iterdir())) == 2
