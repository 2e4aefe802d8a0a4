"""Folders of CLAM, TRIDENT and STAMP train as they are, and map alike."""

import csv

import h5py
import numpy as np
import pytest

from data import slides
from experiments import kmil

SLIDE = 'CMU-1-Small-Region'
IDS = ['007', '0012', '1.5', 'TCGA-3C-AALI.01Z', 'b c', 'é'] + [
  f'{i}' for i in range(20, 26)
]


@pytest.fixture(scope='module')
def clam(tmp_path_factory, real_data):
  """A CLAM project of 12 slides: table, splits and features as CLAM's."""
  root = tmp_path_factory.mktemp('clam')
  with h5py.File(
    real_data / f'feature_files/clam/feats/h5_files/{SLIDE}.h5'
  ) as file:
    features, coords = file['features'][()], file['coords'][()]
  rng = np.random.default_rng(0)
  for i, slide in enumerate(IDS):
    bag = features + rng.normal(size=features.shape).astype(np.float32) / 50
    bag[:9, 0] += i % 2
    folder = root / 'FEATURES/h5_files'
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f'{slide}.h5', 'w') as file:
      file.create_dataset(
        'features', data=bag, chunks=(32, 27), maxshape=(None, 27)
      )
      file.create_dataset(
        'coords', data=coords, chunks=(32, 2), maxshape=(None, 2)
      )
    folder = root / 'FEATURES/pt_files'
    folder.mkdir(exist_ok=True)
    (folder / f'{slide}.pt').write_bytes(b'not looked at')
  with (root / 'dataset.csv').open('w', newline='') as file:
    lines = [
      [f'patient_{i}', slide, ('normal_tissue', 'tumor_tissue')[i % 2], 'x']
      for i, slide in enumerate(IDS)
    ]
    csv.writer(file).writerows(
      [['case_id', 'slide_id', 'label', 'site'], *lines]
    )
  splits = root / 'splits/task_1_tumor_vs_normal_100'
  splits.mkdir(parents=True)
  for i in range(2):  # Repeated random splits: the last two are tested twice.
    order = [*np.random.default_rng(i).permutation(IDS[:10]), *IDS[10:]]
    parts = [order[:6], order[6:9], order[9:]]
    rows = [[j, *(p[j] if j < len(p) else '' for p in parts)] for j in range(6)]
    with (splits / f'splits_{i}.csv').open('w', newline='') as file:
      csv.writer(file).writerows([['', 'train', 'val', 'test'], *rows])
    (splits / f'splits_{i}_bool.csv').write_text(',train,val,test\n007,1,0,0\n')
    (splits / f'splits_{i}_descriptor.csv').write_text(',train\nnormal,3\n')
  return root, splits


def trident(root, source):
  """The same features as TRIDENT stores them."""
  job = root / 'trident/20x_256px_0px_overlap'
  for path in source.glob('*.h5'):
    with h5py.File(path) as file:
      bag, coords = file['features'][()], file['coords'][()]
    (job / 'features_rgb').mkdir(parents=True, exist_ok=True)
    with h5py.File(job / 'features_rgb' / path.name, 'w') as file:
      file.create_dataset('features', data=bag[None], chunks=(1, 1, 27))
      file.create_dataset('coords', data=coords.astype(int), chunks=(1, 2))
      file['features'].attrs['encoder'] = 'rgb'
      file['coords'].attrs.update(
        patch_size=256, patch_size_level0=256, target_magnification=20
      )
  return root / 'trident'


def stamp(root, source, mpp):
  """The same features as STAMP stores them: micrometres, half precision."""
  folder = root / 'stamp/rgb-01234567'
  folder.mkdir(parents=True)
  for path in source.glob('*.h5'):
    with h5py.File(path) as file:
      bag, coords = file['features'][()], file['coords'][()]
    with h5py.File(folder / path.name, 'w') as file:
      file['feats'] = bag.astype(np.float16)
      file['coords'] = (coords * mpp).astype(np.float32)
      file.attrs.update(
        unit='um', tile_size_um=256 * mpp, tile_size_px=256, extractor='rgb'
      )
  return root / 'stamp'


def train(results, root, splits, features_dir, *more):
  args = [
    'kmil',
    f'--csv_path={root / "dataset.csv"}',
    f'--features_dir={features_dir}',
    f'--split_dir={splits}',
    f'--results_dir={results}',
    '--k=2',
    '--epochs=2',
    '--model=dsmil',
    '--exp_code=x',
    '--seed=1',
    *more,
  ]
  kmil.main(args)
  return results / 'x_s1'


@pytest.fixture(scope='module')
def of_clam(clam, tmp_path_factory):
  root, splits = clam
  return train(
    tmp_path_factory.mktemp('of_clam'), root, splits, root / 'FEATURES'
  )


def predictions(folder):
  with (folder / 'predictions.csv').open(newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  return {
    (row['fold'], row['slide_id']): [float(row[f'prob_{c}']) for c in CLASSES]
    for row in rows
  }


CLASSES = ('normal_tissue', 'tumor_tissue')


def maps(folder):
  found = {}
  for path in sorted(folder.glob('fold_*/attention/*.h5')):
    with h5py.File(path) as file:
      arrays = {name: file[name][()] for name in file}
      found[path.parents[1].name, path.stem] = arrays, dict(file.attrs)
  return found


def test_a_clam_project_trains_with_no_renaming(clam, of_clam):
  _, splits = clam
  tested = set()
  for i in range(2):
    with (splits / f'splits_{i}.csv').open(newline='') as file:
      tested |= {(f'{i}', r['test']) for r in csv.DictReader(file) if r['test']}
  found = predictions(of_clam)
  assert set(found) == tested and len(tested) == 6
  np.testing.assert_allclose([sum(p) for p in found.values()], 1, rtol=1e-5)
  for arrays, attributes in maps(of_clam).values():
    assert attributes['patch_size_level0'] == 256
    assert arrays['coords'].shape == (49, 2)


def test_a_trident_job_gives_what_the_clam_project_gave(
  clam, of_clam, tmp_path
):
  root, splits = clam
  job = trident(tmp_path, root / 'FEATURES/h5_files')
  got = train(tmp_path / 'results', root, splits, job)
  want = predictions(of_clam)
  found = predictions(got)
  assert set(found) == set(want)
  for key, prob in found.items():
    np.testing.assert_allclose(prob, want[key], atol=1e-6)


def test_stamps_micrometres_give_the_same_maps(
  clam, of_clam, tmp_path, real_data
):
  root, splits = clam
  folder = tmp_path / 'slides'
  folder.mkdir()
  for slide in IDS:
    (folder / f'{slide}.svs').symlink_to(real_data / f'wsi/{SLIDE}.svs')
  with slides.Slide(folder / '007.svs') as slide:
    output = stamp(tmp_path, root / 'FEATURES/h5_files', slide.mpp)
  got = maps(
    train(
      tmp_path / 'results',
      root,
      splits,
      output,
      f'--slides_dir={folder}',
      '--heat_maps=1',
    )
  )
  want = maps(of_clam)
  assert set(got) == set(want) and len(want) == 6
  for key, (arrays, attributes) in got.items():
    for name in ('coords', 'kept'):
      np.testing.assert_array_equal(arrays[name], want[key][0][name])
    assert attributes['patch_size_level0'] == 256
    # STAMP rounds to float16.
    np.testing.assert_allclose(
      arrays['attention'], want[key][0]['attention'], rtol=0.02, atol=1e-4
    )
  drawn = tmp_path / 'results/x_s1/figures/heat_maps'
  assert len(list(drawn.iterdir())) == 2
