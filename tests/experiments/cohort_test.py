"""The cohort: slides, labels, features and folds joined, or every fault named.

What makes a cohort unusable is looked for by --check; training refuses the same
with the same list.
"""

import collections
import contextlib
import dataclasses
import errno
import importlib
import pathlib
import re

import feature_folder
import h5py
from hypothesis import given, strategies as st
import numpy as np
import pytest

from data import features, labels as label_files
from data.cohort import CohortError
from data.labels import Manifest
from experiments import extract, kmil, predict, two_step
from experiments.bags import cohort as cohorts, crossval
from experiments.bags.options import Data, Folds
from experiments.evaluation import groups
from experiments.run.results import Folder
from experiments.run.start import Check, Findings
from kmil_jax import parallel
from kmil_jax.models import pooling
from kmil_jax.tasks.bags import num_rows


def bag(i):
  return i + np.arange(4 * (i + 3)).reshape(-1, 4) / 64


def make(folder, labels, first=0, **options):
  """Writes features of slides of 3, 4, ... instances, and their labels."""
  bags = [bag(first + i) for i in range(len(labels))]
  feature_folder.write(folder, bags, labels, **options)
  return folder / 'labels.csv', folder / 'features'


def load(*args, **options):
  return feature_folder.cohort(*args, **options)[0]


def turn(path):
  """Reverses the rows of a CSV file."""
  header, *rows = path.read_text().splitlines()
  path.write_text('\n'.join([header, *rows[::-1]]))


def test_the_parts_are_joined_in_the_order_of_ids(tmp_path):
  path, folder = make(tmp_path, ['z', 'y', 'z', 'x'])
  turn(path)
  slides_dir = tmp_path / 'slides'
  slides_dir.mkdir()
  (slides_dir / 'slide_001.tiff').touch()
  cohort = load(path, folder, slides_dir=slides_dir)
  assert cohort.manifest.slide.tolist() == [f'slide_00{i}' for i in range(4)]
  assert cohort.classes == ('x', 'y', 'z')
  assert cohort.label.tolist() == [2, 1, 2, 0]
  assert cohort.length.tolist() == [3, 4, 5, 6] and cohort.width == 4
  assert cohort.label.dtype == cohort.length.dtype == np.int32
  assert cohort.slides == {'slide_001': slides_dir / 'slide_001.tiff'}
  for i in range(4):
    np.testing.assert_array_equal(cohort.read(i).features, bag(i))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_streamed_bags_equal_resident_ones(tmp_path, precision):
  bags, labels = feature_folder.planted(num_bags=12)
  feature_folder.write(tmp_path, bags, labels)
  cohort = load(tmp_path / 'labels.csv', tmp_path / 'features')
  cohort = dataclasses.replace(cohort, cache_dir=tmp_path / 'cache')
  ways = ('resident',), ('streamed',), ('streamed', 1), ('spread',)
  read = lambda way: [*cohort.bags(precision, *way).read(np.arange(12))]
  resident, *others = (read(way) for way in ways)
  for i, bag in enumerate(bags):
    for other in others:
      assert resident[i].shape == other[i].shape
      assert resident[i].dtype == other[i].dtype == precision
      np.testing.assert_array_equal(
        resident[i][: len(bag)], other[i][: len(bag)]
      )
    one = resident[i][: len(bag)].astype(float)
    np.testing.assert_allclose(one, bag, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize('cache', [0, 1])
def test_fillers_are_streamed_where_the_store_ends_early(
  tmp_path, monkeypatch, cache
):
  monkeypatch.setattr(pooling, 'WHOLE', 16)
  monkeypatch.setattr(pooling, 'BLOCK', 16)
  bags = [bag(i) for i in (40, 0, 1)]
  feature_folder.write(tmp_path, bags, 'xyx')
  cohort = load(tmp_path / 'labels.csv', tmp_path / 'features')
  cohort = dataclasses.replace(cohort, cache_dir=tmp_path / 'cache')
  loader = cohort.bags('float32', 'streamed', cache)
  assert cohort.length.sum() < num_rows(cohort.length) < 2 * loader.buckets[-1]
  steps = np.array([1, 0]), np.array([[-1, 0], [2, -1]])
  for b, index, batch in zip(*steps, loader.stream(*steps), strict=True):
    assert batch.shape == (2, loader.buckets[b], 4)
    assert np.isfinite(batch).all()
    for x, bag_of in zip(batch[index >= 0], index[index >= 0], strict=True):
      np.testing.assert_array_equal(x[: len(bags[bag_of])], bags[bag_of])


def test_features_are_where_they_fit_first(tmp_path, monkeypatch):
  cohort, devices = load(*make(tmp_path, 'xyxy')), parallel.num_devices()
  size = cohort.resident_bytes('float32')
  for platform, spread in {'tpu': 'spread', 'cpu': 'streamed'}.items():
    monkeypatch.setattr(
      parallel, 'platform', lambda platform=platform: platform
    )
    for room, want in (
      (size, 'resident'),
      (size / devices, spread),
      (size / devices - 1, 'streamed'),
    ):
      monkeypatch.setattr(cohorts, 'room', lambda room=room: room)
      assert cohort.store_of('float32', 'auto') == want
      assert cohort.store_of('float32', 'resident') == 'resident'


def test_streamed_features_are_copied_once_if_there_is_room(
  tmp_path, capsys, monkeypatch
):
  bags, labels = feature_folder.planted(num_bags=12)
  feature_folder.write(tmp_path, bags, labels)
  cohort = load(tmp_path / 'labels.csv', tmp_path / 'features')
  cache = tmp_path / 'cache'
  cohort = dataclasses.replace(cohort, cache_dir=cache)
  cohort.bags('float32', 'streamed', 0)
  cohort.bags('float32', 'resident', 1)
  monkeypatch.setattr(cohorts, 'free_space', lambda path: 2**10)
  cohort.bags('float32', 'streamed', 1)
  assert not cache.exists()
  (line,) = capsys.readouterr().out.splitlines()
  assert '--stream_cache allows 1 GiB, and 0.0 are free in' in line
  monkeypatch.undo()

  @contextlib.contextmanager
  def full(path):
    raise OSError(errno.EDQUOT, 'Disk quota exceeded')
    yield

  monkeypatch.setattr(cohorts, 'replacing', full)
  cohort.bags('float32', 'streamed', 1)
  first, second = capsys.readouterr().out.splitlines()
  assert 'Disk quota exceeded' in first and 'from their files' in second
  monkeypatch.undo()
  cohort.bags('float32', 'streamed', 1)
  (path,) = (cache / 'features').iterdir()
  rows = sum(map(len, bags)) + cohort.bags('float32', 'streamed').buckets[-1]
  assert path.stat().st_size == 4 * rows * cohort.width
  assert f'features are streamed from {path} (' in capsys.readouterr().out
  # From now on nothing else is read.
  monkeypatch.setattr(cohorts.Cohort, 'read', None)
  again = cohort.bags('float32', 'streamed', 1).read(np.array([7, 3]))
  for x, bag in zip(again, (bags[7], bags[3]), strict=True):
    np.testing.assert_array_equal(x[: len(bag)], np.float32(bag))


def test_a_scale_in_single_precision_is_no_other_scale(tmp_path):
  path, folder = make(tmp_path, 'xyx')
  for i, mpp in enumerate((0.499, np.float32(0.499), np.float16(0.5))):
    change(folder / f'slide_00{i}.h5', mpp=mpp)
  with pytest.raises(CohortError, match=r'0\.499, 0\.5\. .* are slide_002'):
    load(path, folder)


def test_slides_that_encoders_are_trained_on_are_named(tmp_path):
  path, folder = make(tmp_path, 'xyx')
  found = lambda: feature_folder.cohort(path, folder)[1]
  assert found() == []
  (folder / 'slide_001.h5').rename(folder / 'tumor_001.h5')
  edit(path, 'slide_001', 'tumor_001')
  (warning,) = found()
  assert "CAMELYON16's: tumor_001. The tiles of PatchCamelyon are" in warning
  assert '(here: planted)' in warning
  for file in folder.iterdir():
    change(file, encoder='resnet50-random')
  assert found() == []


NAMES = cohorts.PAPER_CLASSES
TASKS = {
  'origin': NAMES,
  'a': ('non-tumor', 'lymphoma', 'metastatic', 'metastatic', 'metastatic'),
  'b': ('non-tumor', 'lymphoma', None, None, None),
  'c': (None, 'lymphoma', 'metastatic', 'metastatic', 'metastatic'),
}


@pytest.mark.parametrize('digits', [False, True])
@pytest.mark.parametrize('task', TASKS)
def test_the_papers_tasks_take_names_and_digits(tmp_path, task, digits):
  path, folder = make(tmp_path, range(5) if digits else NAMES)
  cohort = load(path, folder, mapping=cohorts.relabelling(task, None))
  new = '01234' if task == 'origin' and digits else TASKS[task]
  assert cohort.classes == tuple(dict.fromkeys(filter(None, new)))
  got = dict(zip(cohort.manifest.slide, cohort.manifest.label, strict=True))
  want = {f'slide_00{i}': name for i, name in enumerate(new) if name}
  assert got == want


def test_labels_relabel_anything(tmp_path):
  mapping = cohorts.relabelling('origin', ['0:benign', '2:tumour', '1:tumour'])
  path, folder = make(tmp_path, '0123')
  cohort = load(path, folder, mapping=mapping)
  assert cohort.classes == ('benign', 'tumour')
  assert cohort.label.tolist() == [0, 1, 1]
  assert cohort.left_out == {'slide_003'}
  with pytest.raises(CohortError, match='no slide has the label 7'):
    load(path, folder, mapping={'0': 'a', '7': 'b'})
  numbers = np.array(['10', '9', '2'])
  assert cohorts.ordered(numbers) == ('2', '9', '10')


@given(
  case_of=st.lists(st.integers(0, 5), min_size=4, max_size=12),
  seed=st.integers(0, 10**6),
)
def test_shuffled_labels_keep_cases_whole_and_classes_as_large(case_of, seed):
  case = np.array([f'c{i}' for i in case_of])
  label = np.array(list('xyyzxz'))[case_of]
  plain = Manifest(case, np.arange(len(case)).astype(str), label)
  moved = label_files.shuffled(plain, seed)
  before, after = (
    dict(zip(t.case, t.label, strict=True)) for t in (plain, moved)
  )
  assert [after[c] for c in case] == moved.label.tolist()
  count = collections.Counter
  assert count(after.values()) == count(before.values())
  np.testing.assert_array_equal(moved.slide, plain.slide)
  np.testing.assert_array_equal(moved.case, plain.case)
  again = label_files.shuffled(plain, seed)
  np.testing.assert_array_equal(again.label, moved.label)


def test_the_fingerprint_follows_what_decides_a_result(tmp_path):
  path, folder = make(tmp_path, 'xyxyxy')
  before = load(path, folder).fingerprint()
  text = path.read_text()
  turn(path)
  assert load(path, folder).fingerprint() == before
  # Classes of other names: results of before cannot be read with these.
  for old, new in ((',y', ',z'), ('case_000', 'c99')):
    path.write_text(text.replace(old, new))
    other = load(path, folder).fingerprint()
    assert other['labels_sha256'] != before['labels_sha256']
    assert other['features_sha256'] == before['features_sha256']
  path.write_text(text)
  shuffled = load(path, folder, shuffle_seed=1).fingerprint()
  assert shuffled['labels_sha256'] != before['labels_sha256']
  with h5py.File(folder / 'slide_001.h5', 'a') as file:
    file['features'][0, 0] = 9
  changed = load(path, folder).fingerprint()
  assert changed['labels_sha256'] == before['labels_sha256']
  assert changed['features_sha256'] != before['features_sha256']


def test_classes_are_those_of_the_first_cohort_in_its_order(tmp_path):
  first = load(*make(tmp_path / 'a', ['b', 'a', 'c', 'a']))
  # One class is enough to be tried on, though not to be trained on.
  for i, labels in enumerate((['c', 'c', 'b'], ['b', 'b'])):
    other = make(tmp_path / f'{i}', labels, first=9)
    for file in other[1].iterdir():
      change(file, level0_mpp=0.25)
    second, warnings = feature_folder.cohort(*other, like=first)
    assert second.classes == first.classes == ('a', 'b', 'c')
    assert [second.classes[c] for c in second.label] == labels
    # The same names may be other patients': a warning, no problem.
    assert 'both cohorts have cases named case_000, case_001' in warnings[0]


# --check, and what training refuses.

QUICK = ['--k=3', '--seed=1']


def check(*args, capsys):
  """Returns exit code, problems, warnings and all that is printed."""
  with pytest.raises(SystemExit) as end:
    kmil.main(['script', '--check', *args])
  out = capsys.readouterr().out
  problems, warnings = (
    re.findall(rf'^{kind}: (.*(?:\n .*)*)', out, re.MULTILINE)
    for kind in ('problem', 'warning')
  )
  return end.value.code, problems, warnings, out


def refused(*args):
  """Returns the message that ends a run without --check."""
  with pytest.raises(SystemExit) as end:
    kmil.main(['script', *args])
  return str(end.value)


def change(path, **attributes):
  with h5py.File(path, 'a') as file:
    file.attrs.update(attributes)
    file['coords'].attrs.update(attributes)


def edit(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


@pytest.fixture
def cohort(tmp_path):
  """24 sound slides of 24 cases and three classes, and their flags."""
  bags, labels = feature_folder.planted(24, width=4)
  return tmp_path, feature_folder.write(tmp_path, bags, labels) + QUICK


def replace_features(path, rows):
  with h5py.File(path, 'w') as file:
    file['features'] = rows.astype(np.float32)


def spoil(root):
  """Every fault there is, each in a slide of its own."""
  at = root / 'features'
  path = lambda i: at / f'slide_{i:03d}.h5'
  table = root / 'labels.csv'
  edit(table, 'slide_001,', '1,')
  path(1).rename(at / '001.h5')
  path(2).unlink()
  path(3).write_bytes(path(3).read_bytes()[:700])
  shape = features.read(path(4)).features.shape
  replace_features(path(4), np.where(np.eye(*shape), np.nan, 1.0))
  replace_features(path(5), np.zeros((0, 4)))
  replace_features(path(6), np.ones((3, 7)))
  change(path(7), encoder='other')
  change(path(8), mpp=0.5)
  change(path(9), patch_size=512)
  change(path(10), level0_mpp=50.0)
  for i, magnification in ((14, 20), (15, 20), (16, 40)):
    change(path(i), target_magnification=magnification)
  with h5py.File(path(11), 'a') as file:
    del file['coords']
    file['coords'] = np.zeros((99, 2))
  path(0).with_name('stranger.h5').write_bytes(path(0).read_bytes())
  edit(table, 'case_013,', 'case_012,')  # Two classes.
  with table.open('a') as file:
    file.write('case_x,slide_012,0\ncase_y,,0\ncase_z,../z,0\n')
  splits = root / 'splits'
  slides = np.array([f'slide_{i:03d}' for i in range(12, 24)]).reshape(3, 4)
  for fold in range(3):
    columns = slides[fold - 2], slides[fold - 1], slides[fold]
    rows = [('train', 'val', 'test'), *zip(*columns, strict=True)]
    Folder(splits).write(f'splits_{fold}.csv', rows)
  edit(splits / 'splits_0.csv', 'slide_016', 'slide_013')
  edit(splits / 'splits_1.csv', 'slide_020', 'ghost')
  return at, table, splits


def test_every_problem_is_reported_at_once(cohort, capsys):
  root, args = cohort
  at, table, splits = spoil(root)
  args = [*args, f'--split_dir={splits}', f'--results_dir={root / "results"}']
  code, problems, warnings, out = check(*args, capsys=capsys)
  assert code == 1
  mixed = 'features of different {} are mixed: {}. Other than the rest are {}'
  expected = [
    f'{table}: row 27: empty slide_id',
    f'{table}: slide slide_012: 2 rows',
    f'{table}: slide ../z: an id is a file name, without folders',
    f'{at}: no features of 2 of 24 labelled slides: 1, slide_002',
    f'{at / "slide_003.h5"}: not a complete HDF5 file',
    f'{at / "slide_005.h5"}: features are float32 [0, ',
    f'{at / "slide_011.h5"}: coords have shape [99, 2] for',
    mixed.format('dimensions', '4, 7', 'slide_006'),
    mixed.format('encoder', 'other, planted', 'slide_007'),
    mixed.format('mpp', '0.5, 1.0', 'slide_008'),
    mixed.format('patch_size', '128, 512', 'slide_009'),
    mixed.format('target_magnification', '20, 40', 'slide_016'),
    f'{splits / "splits_1.csv"}: slide ghost (',
    f'{splits / "splits_0.csv"}: case case_012 is in both',
    f'{at / "slide_004.h5"}: NaN or infinity in',
  ]
  for text in expected:
    assert sum(text in problem for problem in problems) == 1, (text, problems)
  twice = sum('slide_013' in problem for problem in problems)
  assert len(problems) == len(expected) + twice
  assert '1 in the CSV, 001 on disk' in ' '.join(problems)
  for text in (
    'level0_mpp outside 0.1 to 2.0 um (slide slide_010: 50.0)',
    '2 feature files have no row in the CSV and are not used: 001, stranger',
    'cases with slides of several labels: case_012 (0, 1)',
    'no fold names the slides 1, slide_000, slide_002',
  ):
    assert sum(text in warning for warning in warnings) == 1, (text, warnings)
  assert f'check: {len(problems)} problems, ' in out
  # Without --check the same list ends the run.
  message = refused(*args).removeprefix('error: ').splitlines()
  assert message == problems
  assert not (root / 'results').exists()


def test_a_file_in_place_of_the_results_is_a_problem(cohort, capsys):
  root, args = cohort
  (root / 'mine_s1').touch()
  args = [*args, f'--results_dir={root}', '--exp_code=mine']
  code, [problem], _, _ = check(*args, capsys=capsys)
  assert code == 1 and problem.startswith(f'{root}/mine_s1: there is a file')


def test_a_cohort_of_which_nothing_is_there_is_a_problem(cohort, capsys):
  root, args = cohort
  for path in (root / 'features').iterdir():
    path.rename(path.with_name(f'other_{path.name}'))
  code, problems, _, _ = check(*args, capsys=capsys)
  assert code == 1
  assert 'no features of 24 of 24 labelled slides' in problems[0]


@pytest.mark.parametrize(
  'script,flags',
  [
    (kmil, 'csv_path features_dir slides_dir split_dir'),
    (kmil, 'csv_path features_dir external_csv external_features_dir'),
    (predict, 'run slides_dir csv_path'),
    (two_step, 'images_dir masks_dir images_csv'),
    (extract, 'slides_dir regions_dir tissue_csv'),
  ],
)
def test_all_paths_that_do_not_exist_are_named_at_once(
  script, flags, tmp_path, capsys
):
  """But for folders that the command makes."""
  paths = {name: tmp_path / name for name in flags.split()}
  args = [f'--{name}={path}' for name, path in paths.items()]
  args.append(f'--cache_dir={tmp_path / "made"}')
  if script is extract:
    args.append(f'--features_dir={tmp_path / "made_too"}')
  with pytest.raises(SystemExit) as end:
    script.main(['script', '--check', *args])
  problems = re.findall('problem: (.*)', capsys.readouterr().out)
  assert end.value.code == 1 and len(problems) == len(paths)
  for path in paths.values():
    assert sum(str(path) in problem for problem in problems) == 1


def test_a_sound_cohort_is_described_and_passes(cohort, capsys):
  root, args = cohort
  code, problems, warnings, out = check(*args, '--stream', capsys=capsys)
  assert (code, problems, warnings) == (0, [], [])
  for text in (
    'check: 0 problems, 0 warnings; nothing else was done',
    '24 slides of 24 cases: 0 8, 1 8, 2 8',
    'fold 2: 8 train, 8 val, 8 test slides; 0 ',
    'instances per slide, half of the slides',
    'padded lengths',
    'features are streamed, as --store asks: all take ',
    'memory of a device, features streamed from disk: about ',
    'estimated time of 3 runs (h:mm:ss): about chooser 0:0',
  ):
    assert text in out
  assert {p.name for p in root.iterdir()} == {'features', 'labels.csv'}


@pytest.mark.parametrize(
  'old, new, kind, words',
  [
    ('slide_001,1', 'slide_001,1.0', 'problem', 'labels 1 and 1.0 differ only'),
    ('slide_001,1', 'slide_001,NA', 'warning', '1 slide with the label NA,'),
    ('case_001', 'CASE_2', 'warning', 'cases CASE_2 and case_002 look like'),
  ],
)
def test_names_spelled_apart_are_told_by_check_and_by_training(
  cohort, capsys, old, new, kind, words
):
  root, args = cohort
  edit(root / 'labels.csv', old, new)
  code, problems, warnings, _ = check(*args, capsys=capsys)
  assert code == bool(problems)
  found = {'problem': problems, 'warning': warnings}[kind]
  (line,) = [line for line in found if words in line]
  data = Data(root / 'labels.csv', root / 'features')
  material = cohorts.load(data, Folds(k=3), 1, root)
  assert line in getattr(material.findings, f'{kind}s')
  # What the labels are renamed to is what counts.
  kept = ['0:x', '1:y', '2:x', *(['1.0: y '] if kind == 'problem' else [])]
  data = dataclasses.replace(data, labels=kept)
  again = cohorts.load(data, Folds(k=3), 1, root).findings
  assert again.problems == [] and (words in str(again)) == ('cases' in words)


def test_missing_slides_can_be_left_out_and_are_counted(cohort, capsys):
  root, args = cohort
  for i in (2, 9):
    (root / 'features' / f'slide_{i:03d}.h5').unlink()
  assert check(*args, capsys=capsys)[0] == 1
  code, problems, warnings, out = check(*args, '--allow_missing', capsys=capsys)
  assert (code, problems) == (0, [])
  assert warnings[0].endswith(
    'no features of 2 of 24 labelled slides: slide_002, slide_009. They are'
    ' left out.'
  )
  assert '22 slides of 22 cases' in out
  tested = re.findall(r'fold \d: .* (\d+) test slides', out)
  assert len(tested) == 3 and sum(map(int, tested)) == 22
  for i in range(1, 24, 3):  # All of class 1.
    (root / 'features' / f'slide_{i:03d}.h5').unlink()
  code, problems, *_ = check(*args, '--allow_missing', capsys=capsys)
  assert code == 1 and 'no slide of the classes 1 has features' in problems[0]


def test_a_second_cohort_is_checked_with_the_first(cohort, capsys):
  root, args = cohort
  feature_folder.write(root / 'second', [np.ones((3, 5))] * 2, ['0', 'novel'])
  with h5py.File(root / 'second/features/slide_000.h5', 'a') as f:
    f['features'][0, 0] = np.nan

  def problems(folder, *others):
    second = f'--external_csv={folder}/labels.csv'
    features_dir = f'--external_features_dir={folder}/features'
    return check(*args, second, features_dir, *others, capsys=capsys)[1]

  unknown, damaged, made = problems(root / 'second')
  assert 'labels novel are none of those the models know: 0, 1,' in unknown
  assert 'dimensions 5 here, 4 there' in made
  assert 'slide_000.h5: NaN' in damaged
  (itself,) = problems(root)
  assert 'holds slides of the first, on' in itself
  # It may lack classes that are renamed.
  bags = np.arange(24.0).reshape(2, 3, 4)
  feature_folder.write(root / 'few', bags, ['0', '2'])
  assert problems(root / 'few', '--labels=0:x,1:y,2:y') == []
  assert 'no slide has the label 3' in problems(root / 'few', '--labels=3:x')[0]


def test_a_fold_without_a_class_is_foretold(tmp_path):
  path, folder = make(tmp_path, ['rare'] * 3 + ['usual'] * 9)
  rows = 'train,val,test', 'slide_000,slide_001,slide_009', 'slide_003,,'
  Folder(tmp_path / 'splits').write('splits_0.csv', '\n'.join(rows))
  found, table = Findings(), load(path, folder).manifest
  cohorts.make_folds(table, Folds(1, tmp_path / 'splits'), 0, found)
  assert found.problems == []
  assert found.warnings[0] == (
    'test parts without a slide of a class: rare in fold 0. There is no AUROC'
    ' of that fold, only the pooled one.'
  )
  Folder(tmp_path / 'splits').write('splits_1.csv', '\n'.join(rows))
  cohorts.make_folds(table, Folds(1, tmp_path / 'splits'), 0, found)
  assert any('more splits than --k=1' in text for text in found.warnings)


# They train and predict nothing on data of the user.
WITHOUT_CHECK = (
  'benchmark compare compile_report cost draw_maps export froc gpu_report pack'
  ' report view'
).split()


def test_every_script_that_trains_or_predicts_has_the_flag():
  names = [p.stem for p in pathlib.Path(kmil.__file__).parent.glob('[a-z]*.py')]
  scripts = {n: importlib.import_module(f'experiments.{n}') for n in names}
  lacking = {n for n, s in scripts.items() if Check not in s.main.options}
  assert lacking == set(WITHOUT_CHECK)


# --group_col: folds that keep sites whole, and figures of each.


def with_sites(cohort, *change):
  """Adds a column of six sites; returns the site of each slide, and flags."""
  root, args = cohort
  path = root / 'labels.csv'
  header, *rows = path.read_text().splitlines()
  site = {row.split(',')[1]: 'ABCDEF'[i // 4] for i, row in enumerate(rows)}
  rows = [f'{row},{site[row.split(",")[1]]}' for row in rows]
  if change:
    rows = [row.replace(*change) for row in rows]
  path.write_text('\n'.join([f'{header},site', *rows]))
  return site, [*args, '--group_col=site', f'--results_dir={root}']


def test_a_site_is_whole_and_has_metrics_of_its_own(cohort):
  root, _ = cohort
  site, _ = with_sites(cohort)
  data = Data(root / 'labels.csv', root / 'features')
  material = cohorts.load(data, Folds(k=3, group_col='site'), 1, root)
  table, folder = material.cohort.manifest, Folder(root / 'results')
  rng, tests = np.random.default_rng(0), []
  for i, split in enumerate(material.splits):
    sites = [
      {site[s] for s in table.slide[part]} for part in vars(split).values()
    ]
    assert sorted(map(len, sites)) == [2, 2, 2]
    assert set.union(*sites) == set('ABCDEF')
    prob = {
      part: rng.dirichlet(np.ones(3), getattr(split, part).sum())
      for part in ('val', 'test')
    }
    fold = Folder(folder.at(f'fold_{i}'))
    crossval.write_predictions(fold, i, material, prob)
    tests += fold.read('predictions.csv')
  shown = groups.write(folder, material.group, material.cohort.classes).cells()
  rows = folder.read('groups.csv')
  assert [row['group'] for row in rows] == list('ABCDEF')
  for row, line in zip(rows, shown[1:], strict=True):
    own = [r for r in tests if site[r['slide_id']] == row['group']]
    right = np.mean([r['label'] == r['pred'] for r in own])
    assert float(row['accuracy']) == pytest.approx(right, abs=1e-6)
    assert (row['cases'], row['slides']) == ('4', '4')
    assert {r['fold'] for r in own} == {row['fold']}
    assert line[0] == row['group'] and f'{right:.3f}' in line


@pytest.mark.parametrize(
  'change,flag,message',
  [
    ((), '--group_col=town', 'no column town (found: case_id,'),
    ((), '--split_dir=x', '--group_col has no effect with --split_dir.'),
    ((), '--k=7', '--k=7: 6 groups (A, B, C, D, E): fewer than 7 folds.'),
    (('A', ''), '--k=3', 'column site: 4 empty cells, of slide_000, slide_001'),
    (
      ('case_001', 'case_020'),
      '--k=3',
      'cases with slides of several groups, 1: case_020',
    ),
  ],
)
def test_what_is_wrong_with_sites_is_named(cohort, change, flag, message):
  _, args = with_sites(cohort, *change)
  assert message in refused(*args, flag)
