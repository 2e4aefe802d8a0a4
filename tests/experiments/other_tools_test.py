"""A project of other tools trains as it is: CLAM's tables, STAMP's features."""

import csv

import h5py
import numpy as np
from run_of_no_epoch import rows

from data import slides
from experiments import kmil

SLIDE = 'CMU-1-Small-Region'
IDS = ['007', '0012', '1.5', 'TCGA-3C-AALI.01Z', 'b c', 'é', *'abcdfg']
CLASSES = ('normal_tissue', 'tumor_tissue')


def table(path, lines):
  path.parent.mkdir(exist_ok=True)
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(lines)


def test_a_project_trains_with_no_renaming_and_its_maps_lie_on_the_slides(
  tmp_path, real_data
):
  slide = real_data / f'wsi/{SLIDE}.svs'
  with slides.Slide(slide) as opened:
    mpp = opened.mpp
  source = real_data / f'feature_files/clam/feats/h5_files/{SLIDE}.h5'
  with h5py.File(source) as file:
    features, coords = file['features'][()], file['coords'][()]
  job, slides_dir = tmp_path / 'STAMP/rgb-01234567', tmp_path / 'slides'
  job.mkdir(parents=True)
  slides_dir.mkdir()
  for i, name in enumerate(IDS):
    (slides_dir / f'{name}.svs').symlink_to(slide)
    bag = features.copy()
    bag[:9, 0] += i % 2
    bag[9, 1] += i  # No two slides are the same.
    with h5py.File(job / f'{name}.h5', 'w') as file:
      file['feats'] = bag.astype(np.float16)
      file['coords'] = (coords * mpp).astype(np.float32)  # Micrometres.
      file.attrs.update(
        unit='um', tile_size_um=256 * mpp, tile_size_px=256, extractor='rgb'
      )
  header = ['case_id', 'slide_id', 'label', 'site']
  lines = [[f'p_{i}', name, CLASSES[i % 2], 'x'] for i, name in enumerate(IDS)]
  table(tmp_path / 'dataset.csv', [header, *lines])
  header, tested = ['', 'train', 'val', 'test'], []
  for i in range(2):  # Repeated random splits: the last two are tested twice.
    order = [*np.random.default_rng(i).permutation(IDS[:10]), *IDS[10:]]
    parts = [order[:6], order[6:9], order[9:]]
    tested += [(f'{i}', name) for name in parts[2]]
    lines = [
      [j, *(p[j] if j < len(p) else '' for p in parts)] for j in range(6)
    ]
    table(tmp_path / f'splits/splits_{i}.csv', [header, *lines])
    table(tmp_path / f'splits/splits_{i}_bool.csv', [header, ['007', 1, 0, 0]])
  kmil.main([
    'kmil', f'--csv_path={tmp_path / "dataset.csv"}',
    f'--features_dir={tmp_path / "STAMP"}', f'--slides_dir={slides_dir}',
    f'--split_dir={tmp_path / "splits"}', f'--results_dir={tmp_path}',
    '--exp_code=x', '--k=2', '--epochs=2', '--model=dsmil', '--heat_maps=1',
  ])  # fmt: skip
  results = tmp_path / 'x_s2023'
  found = {
    (row['fold'], row['slide_id']): [float(row[f'prob_{c}']) for c in CLASSES]
    for row in rows(results / 'predictions.csv')
  }
  assert sorted(found) == sorted(tested)
  for (fold, name), prob in found.items():
    with h5py.File(results / f'fold_{fold}/attention/{name}.h5') as file:
      np.testing.assert_array_equal(file['coords'], coords)
      np.testing.assert_allclose(file['prob'], prob, rtol=1e-5)
      assert file.attrs['patch_size_level0'] == 256
  assert len(list((results / 'figures/heat_maps').iterdir())) == 2
