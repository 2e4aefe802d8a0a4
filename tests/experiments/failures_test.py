"""Every failure that users of such systems meet, and the test of its message.

The failures are those that public issue trackers of pathology toolkits report
again and again. Tests elsewhere are named with their file and the beginning of
their name; the others are below.

 1 damaged tile in mid-slide       experiments/extract: bad_slides_are_named,
                                   data/slides: a_dead_handle_is_replaced,
                                   a_region_that_fails_twice_is_reported
 2 slide that cannot be opened     data/slides: unopenable_and_truncated,
                                   experiments/extract: requests_that_cannot
 3 no um/px                        data/slides: no_usable_scale_is_an_error
 4 um/px that cannot be, unequal   data/slides: unequal_scales,
   or against the objective        a_scale_that_no_scanner_has
 5 two centres, two pixel sizes    data/tiling: a_tile_shows_its_physical_field,
                                   level_is_chosen_by_float_downsample
 6 one huge level                  data/slides: thumbnail_does_not_depend_on
 7 no tissue                       data/tiling: a_slide_of_glass_is_reported
 8 pen marks, blur, holes          experiments/encoding: slides_can_be_given
 9 bags too large for the memory   below
10 bags of one instance            kmil_jax/models: one_instance_is_its_own_bag,
                                   below
11 padding leaks                   kmil_jax/models: what_padding_holds
12 a fold without a class          data/splits: too_few_cases,
                                   experiments/summaries: a_class_missing_in_a,
                                   below
13 patient in two parts            data/splits: a_case_that_straddles_parts
14 two labels in a patient         experiments/preflight: warnings_do_not_change
15 the site as a confounder        experiments/group: a_site_is_whole_and
16 encoder trained on CAMELYON16   below
17 known-bad CAMELYON16 slides     data/camelyon16_slides: known_bad_slides_are
18 features, labels, splits        experiments/preflight: every_problem
19 features of several encoders    experiments/cohort: mixed_encoders, below
20 NaN in features                 data/features: non_finite_rows_are_counted,
                                   experiments/preflight: faults_found_by
21 half-written files              data/features: a_truncated_file_is_named,
                                   data/feature_fuzz: huge_shapes, below
22 HDF5 locks on network disks     below
23 fork beside OpenSlide and JAX   below
24 open slides pile up             below
25 two writers in one folder       data/files: a_failed_write_leaves,
                                   data/features: a_killed_writer, below
26 resumed with other flags        experiments/kmil: other_settings_in_the_same,
                                   experiments/results: other_options_and_
27 dropout on while evaluating     kmil_jax/models: evaluation_is_deterministic
28 loss that is not finite         kmil_jax/loop: a_run_that_diverges_stops
29 a program for every bag         kmil_jax/train: an_epoch_compiles_once,
                                   kmil_jax/plan: sixteen_buckets
30 TensorFlow takes the device     below
31 heat map all hot                experiments/maps: the_absolute_scale,
                                   a_rank_counts_the_tiles
32 GeoJSON too large               experiments/maps_geojson: memory_does_not,
                                   only_the_tiles_asked
33 CT without spacing, flipped     data/ct_volumes: what_cannot_be_used,
                                   data/ct_dicom: missing_tags_are_named
"""

import fcntl
import importlib
import os
import pathlib
import re
import threading

import feature_folder
import h5py
import numpy as np
import pytest

from data import features, host_tensorflow, slides
from data.cohort import CohortError
from data.features import ATTRIBUTES, FeatureError
from experiments import kmil
from experiments.bags import cohort as cohorts
from experiments.bags.options import Folds
from experiments.encoding import extraction
from experiments.encoding.encoder import Encoder
from experiments.encoding.tiles import SlideTiles, Tiles
from experiments.run.check import Findings

ROOT = pathlib.Path(__file__).parents[2]
ATTRS = dict.fromkeys(ATTRIBUTES, 1)
ROWS, COORDS = np.ones((3, 4), np.float32), np.zeros((3, 2))


def test_9_the_estimate_comes_before_the_start(tmp_path, capsys):
  """With the share of memory, and what is done where features do not fit."""
  args = feature_folder.write(tmp_path, *feature_folder.planted(9, width=4))
  with pytest.raises(SystemExit):
    kmil.main(['kmil', *args, '--k=3', '--check', '--stream'])
  out = capsys.readouterr().out
  assert re.search(
    r'memory of a device, features streamed from disk: about \d+ MiB of', out
  )


def test_10_an_empty_bag_is_named(tmp_path):
  feature_folder.write(tmp_path, [np.ones((2, 4))] * 3, 'xyx')
  path = tmp_path / 'features/slide_001.h5'
  with h5py.File(path, 'w') as file:
    file['features'] = np.zeros((0, 4), np.float32)
  with pytest.raises(CohortError, match=r'slide_001\.h5: .*at least one row'):
    feature_folder.cohort(tmp_path / 'labels.csv', tmp_path / 'features')


def test_12_a_fold_without_a_class_is_foretold(tmp_path):
  bags, labels = [np.ones((2, 4))] * 12, ['rare'] * 3 + ['usual'] * 9
  feature_folder.write(tmp_path, bags, labels)
  splits = tmp_path / 'splits'
  splits.mkdir()
  (splits / 'splits_0.csv').write_text(
    'train,val,test\nslide_000,slide_001,slide_009\n'
    'slide_003,slide_004,slide_010\n'
  )
  found = Findings()
  cohort, _ = feature_folder.cohort(
    tmp_path / 'labels.csv', tmp_path / 'features'
  )
  cohorts.make_folds(cohort.manifest, Folds(1, splits), 0, found)
  assert found.problems == []
  assert found.warnings[0] == (
    'test parts without a slide of a class: rare in fold 0; there is no AUROC'
    ' of that fold, only the pooled one'
  )
  cohorts.make_folds(cohort.manifest, Folds(4), 0, found)
  assert '--k=4: class rare has 3 cases: fewer than 4' in found.problems[0]


def test_16_slides_that_encoders_are_trained_on_are_named(tmp_path):
  feature_folder.write(tmp_path, [ROWS] * 3, 'xyx')
  table, folder = tmp_path / 'labels.csv', tmp_path / 'features'
  found = lambda: feature_folder.cohort(table, folder)[1]
  assert found() == []
  (folder / 'slide_001.h5').rename(folder / 'tumor_001.h5')
  table.write_text(table.read_text().replace('slide_001', 'tumor_001'))
  (warning,) = found()
  assert "CAMELYON16's: tumor_001; the tiles of PatchCamelyon are" in warning
  assert '(here: planted)' in warning
  for path in folder.iterdir():
    with h5py.File(path, 'a') as file:
      file.attrs['encoder'] = 'resnet50-random'
  assert found() == []


@pytest.mark.parametrize(
  'name,values',
  [('encoder', 'ab'), ('mpp', (0.5, 0.25)), ('patch_size', (1, 2))],
)
def test_19_features_made_in_two_ways_are_named(tmp_path, name, values):
  feature_folder.write(tmp_path, [ROWS] * 3, 'xyx')
  for i, value in ((0, values[0]), (1, values[0]), (2, values[1])):
    with h5py.File(tmp_path / f'features/slide_00{i}.h5', 'a') as file:
      file.attrs[name] = value
  with pytest.raises(CohortError, match=f'different {name} are mixed.*_002'):
    feature_folder.cohort(tmp_path / 'labels.csv', tmp_path / 'features')


def test_19_a_scale_in_single_precision_is_no_other_scale(tmp_path):
  feature_folder.write(tmp_path, [ROWS] * 3, 'xyx')
  for i, mpp in enumerate((0.499, np.float32(0.499), np.float16(0.5))):
    with h5py.File(tmp_path / f'features/slide_00{i}.h5', 'a') as file:
      file.attrs['mpp'] = mpp
      file['coords'].attrs['mpp'] = mpp
  with pytest.raises(CohortError, match=r'0\.499, 0\.5; .* are slide_002'):
    feature_folder.cohort(tmp_path / 'labels.csv', tmp_path / 'features')


def test_21_extraction_names_a_file_that_a_kill_left(tmp_path):
  (tmp_path / 'features').mkdir()
  (tmp_path / 'features/a.h5').write_bytes(b'\x89HDF')
  encoder = Encoder('x', lambda tiles: tiles, 'a test')
  with pytest.raises(
    extraction.EncodingError,
    match=r'Nothing was done\. .*\n.*a\.h5: not a complete',
  ):
    cohort = SlideTiles([tmp_path / 'a.svs'], Tiles())
    extraction.extract(cohort, tmp_path / 'features', encoder)


def test_22_a_locked_file_is_read(tmp_path):
  """Disks of clusters refuse locks; a reader of ours asks for none."""
  path = tmp_path / 'a.h5'
  features.write(path, ROWS, COORDS, ATTRS)
  with path.open('rb') as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(OSError, match='lock'):
      h5py.File(path, 'r', locking=True)
    np.testing.assert_array_equal(features.read(path).features, ROWS)


def test_23_no_process_is_forked():
  """Threads read slides; JAX and OpenSlide do not survive a fork."""
  forks = r'\bmultiprocessing\b|\bos\.fork\b|ProcessPoolExecutor|\bjoblib\b'
  found = [
    path.name
    for package in ('data', 'experiments', 'kmil_jax')
    for path in (ROOT / package).rglob('*.py')
    if re.search(forks, path.read_text(encoding='utf-8'))
  ]
  assert found == []


def test_24_closed_slides_leave_no_files_open(real_data):
  path = real_data / 'wsi/openslide-fixtures/boxes.tiff'
  opened = lambda: len(os.listdir('/proc/self/fd'))
  before = opened()
  for _ in range(20):
    with slides.Slide(path, default_mpp=0.5) as slide:
      slide.read(0, 0, 0, 8, 8)
    with pytest.raises(slides.SlideError):
      slides.Slide(path)  # It has no scale.
  assert opened() == before


def test_25_many_writers_of_one_file_leave_one_whole_file(tmp_path):
  path = tmp_path / 'a.h5'
  rows = [np.full((50, 64), i, np.float32) for i in range(8)]
  threads = [
    threading.Thread(
      target=features.write, args=(path, row, np.zeros((50, 2)), ATTRS)
    )
    for row in rows
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert list(tmp_path.iterdir()) == [path]
  assert len(np.unique(features.read(path).features)) == 1


def test_30_tensorflow_leaves_accelerators_alone(monkeypatch):
  """One module loads it, and hides them before anything can take them."""
  importing = re.compile(r'^ *(import|from) tensorflow\b', re.MULTILINE)
  found = [
    path.relative_to(ROOT).as_posix()
    for package in ('data', 'experiments', 'kmil_jax')
    for path in (ROOT / package).rglob('*.py')
    if importing.search(path.read_text(encoding='utf-8'))
  ]
  assert found == ['data/host_tensorflow.py']
  hidden = []
  config = host_tensorflow.tf.config
  monkeypatch.setattr(
    config, 'set_visible_devices', lambda *args: hidden.append(args)
  )
  importlib.reload(host_tensorflow)
  assert hidden == [([], 'GPU')]
  assert 'TF_USE_LEGACY_KERAS' not in os.environ  # tf.keras is as it was.


def test_an_id_may_be_as_long_as_file_systems_take(tmp_path):
  name = 'é' * 90
  features.write(tmp_path / f'{name}.h5', ROWS, COORDS, ATTRS)
  assert features.read(tmp_path / f'{name}.h5').features.shape == (3, 4)
  with pytest.raises((FeatureError, OSError)):
    features.read(tmp_path / f'{"x" * 300}.h5')


def named_tests():
  """Yields the file and the beginning of the name of all that the table has."""
  table = __doc__.split('are below.\n')[1].split('\nNot')[0]
  place = None
  for line in table.splitlines():
    for word in re.split(r'[\s,;]+', line[35:]):
      if word.endswith(':'):
        place = word[:-1]
      elif word and word != 'below':
        yield place, word
    if 'below' in line:
      place = None


def test_the_table_names_tests_that_exist():
  found = list(named_tests())
  assert len(found) > 30
  for place, name in found:
    path = ROOT / 'tests' / f'{place}_test.py'
    tests = path.read_text(encoding='utf-8')
    assert f'def test_{name}' in tests, (place, name)
