"""The cohort: slides, labels and features joined, or every fault named."""

import collections
import csv

import feature_folder
import h5py
import hypothesis
from hypothesis import given, strategies as st
import numpy as np
import pytest

from data import features
from data.cohort import CohortError
from experiments.bags import cohort as cohorts
from experiments.run.options import OptionError

WIDTH = 4
ATTRS = dict.fromkeys(features.ATTRIBUTES, 1) | {'encoder': 'resnet50'}


def make(tmp_path, labels, *, cases=None, name='labels.csv'):
  """Writes a CSV and features of s00, s01, ... with 3, 4, ... instances."""
  folder = tmp_path / 'features'
  folder.mkdir(exist_ok=True)
  lines = ['case_id,slide_id,label']
  for i, label in enumerate(labels):
    case = cases[i] if cases else f'c{i:02}'
    lines.append(f'{case},s{i:02},{label}')
    rows = np.full((i + 3, WIDTH), i, np.float32)
    path = folder / f's{i:02}.h5'
    features.write(path, rows, np.zeros((i + 3, 2)), ATTRS)
  path = tmp_path / name
  path.write_text('\n'.join(lines) + '\n')
  return path, folder


def load(*args, **options):
  return feature_folder.cohort(*args, **options)[0]


def test_the_parts_are_joined_in_the_order_of_ids(tmp_path):
  path, folder = make(tmp_path, ['z', 'y', 'z', 'x'])
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([lines[0], *lines[:0:-1]]))
  cohort = load(path, folder)
  assert cohort.manifest.slide.tolist() == ['s00', 's01', 's02', 's03']
  assert cohort.classes == ('x', 'y', 'z')
  assert cohort.label.tolist() == [2, 1, 2, 0]
  assert cohort.length.tolist() == [3, 4, 5, 6]
  assert (cohort.width, cohort.slides) == (WIDTH, {})
  assert cohort.label.dtype == cohort.length.dtype == np.int32
  for i in range(4):
    assert (cohort.read(i).features == i).all()


def test_slide_files_are_found_by_id(tmp_path):
  path, folder = make(tmp_path, 'xy')
  slides_dir = tmp_path / 'slides'
  slides_dir.mkdir()
  (slides_dir / 's01.tiff').touch()
  cohort = load(path, folder, slides_dir=slides_dir)
  assert cohort.slides == {'s01': slides_dir / 's01.tiff'}


def test_real_feature_files_make_a_cohort(tmp_path, real_data):
  folder = tmp_path / 'features'
  folder.mkdir()
  layouts = ('clam/feats/h5_files', 'trident/*/features_*', 'stamp/*')
  lines = ['case_id,slide_id,label']
  for i, layout in enumerate(layouts):
    file = next((real_data / 'feature_files').glob(f'{layout}/*.h5'))
    (folder / f'slide.{i}.h5').symlink_to(file)
    lines.append(f'{i},slide.{i},{i % 2}')
  (tmp_path / 'labels.csv').write_text('\n'.join(lines))
  cohort = load(tmp_path / 'labels.csv', folder)
  assert cohort.length.tolist() == [49, 49, 49] and cohort.width == 27


def test_missing_features_are_counted_and_named(tmp_path):
  path, folder = make(tmp_path, 'xy' * 7)
  for i in range(1, 13):
    (folder / f's{i:02}.h5').unlink()
  with pytest.raises(CohortError) as e:
    load(path, folder)
  names = ', '.join(f's{i:02}' for i in range(1, 11))
  assert str(e.value) == (
    f'{folder}: no features of 12 of 14 labelled slides: {names} and 2'
    ' more. Run experiments.extract, or take them out of the CSV.'
  )
  with pytest.raises(CohortError, match='nowhere: no such folder of features'):
    load(path, tmp_path / 'nowhere')


def test_all_damaged_files_are_named_at_once(tmp_path):
  path, folder = make(tmp_path, 'xyxyxy')
  (folder / 's01.h5').write_bytes((folder / 's01.h5').read_bytes()[:600])
  (folder / 's02.h5').write_bytes(b'')
  for name, rows in (('s03', np.zeros((0, WIDTH))), ('s04', None)):
    with h5py.File(folder / f'{name}.h5', 'w') as f:
      if rows is not None:
        f['features'] = rows.astype(np.float32)
  with pytest.raises(CohortError) as e:
    load(path, folder)
  lines = str(e.value).splitlines()
  assert len(lines) == 4
  for name, line in zip(('s01', 's02', 's03', 's04'), lines, strict=True):
    assert line.startswith(f'{folder}/{name}.h5: ')


def test_mixed_magnifications_of_trident_are_refused(tmp_path):
  path, folder = make(tmp_path, 'xyx')
  for i, magnification in enumerate((20, 20, 40)):
    with h5py.File(folder / f's0{i}.h5', 'a') as f:
      f.attrs['target_magnification'] = np.int64(magnification)
  with pytest.raises(
    CohortError,
    match=r'different target_magnification are mixed: 20, 40; .* are s02',
  ):
    load(path, folder)


def test_mixed_encoders_are_refused(tmp_path):
  path, folder = make(tmp_path, 'xyx')
  other = ATTRS | {'encoder': 'another'}
  features.write(
    folder / 's02.h5', np.ones((2, 4), np.float32), np.zeros((2, 2)), other
  )
  with pytest.raises(CohortError, match='different encoder are mixed'):
    load(path, folder)


def test_mixed_widths_are_refused(tmp_path):
  path, folder = make(tmp_path, 'xyx')
  features.write(
    folder / 's01.h5', np.ones((2, 7), np.float32), np.zeros((2, 2)), ATTRS
  )
  with pytest.raises(CohortError) as e:
    load(path, folder)
  assert str(e.value) == (
    f'{folder}: features of different dimensions are mixed: 4, 7; other than'
    ' the rest are s01'
  )


def test_one_class_or_a_bad_table_is_refused(tmp_path):
  path, folder = make(tmp_path, 'xxx')
  with pytest.raises(CohortError, match=r'labels\.csv: one class only, x'):
    load(path, folder)
  with pytest.raises(CohortError, match='cannot be read as CSV'):
    load(tmp_path / 'absent.csv', folder)


NAMES = cohorts.PAPER_CLASSES
TASKS = {
  'origin': (NAMES, dict(zip(NAMES, NAMES, strict=True))),
  'a': (
    ('non-tumor', 'lymphoma', 'metastatic'),
    {
      'non-tumor': 'non-tumor',
      'lymphoma': 'lymphoma',
      'breast': 'metastatic',
      'squamous': 'metastatic',
      'thyroid': 'metastatic',
    },
  ),
  'b': (
    ('non-tumor', 'lymphoma'),
    {'non-tumor': 'non-tumor', 'lymphoma': 'lymphoma'},
  ),
  'c': (
    ('lymphoma', 'metastatic'),
    {
      'lymphoma': 'lymphoma',
      'breast': 'metastatic',
      'squamous': 'metastatic',
      'thyroid': 'metastatic',
    },
  ),
}


@pytest.mark.parametrize('digits', [False, True])
@pytest.mark.parametrize('task', TASKS)
def test_the_papers_tasks_take_names_and_digits(tmp_path, task, digits):
  old = [NAMES[i % 5] for i in range(10)]
  path, folder = make(
    tmp_path, [str(NAMES.index(x)) for x in old] if digits else old
  )
  mapping = cohorts.relabelling(task, None)
  cohort = load(path, folder, mapping=mapping)
  classes, new = TASKS[task]
  if task == 'origin' and digits:
    assert mapping is None and cohort.classes == ('0', '1', '2', '3', '4')
    return
  assert cohort.classes == classes
  got = dict(zip(cohort.manifest.slide, cohort.label, strict=True))
  want = {
    f's{i:02}': classes.index(new[x]) for i, x in enumerate(old) if x in new
  }
  assert got == want


def test_labels_relabel_anything(tmp_path):
  mapping = cohorts.relabelling('origin', ['0:benign', '2:tumour', '1:tumour'])
  path, folder = make(tmp_path, '012302')
  cohort = load(path, folder, mapping=mapping)
  assert cohort.classes == ('benign', 'tumour')
  assert cohort.manifest.slide.tolist() == ['s00', 's01', 's02', 's04', 's05']
  assert cohort.label.tolist() == [0, 1, 1, 0, 1]
  with pytest.raises(CohortError, match='no slide has the label 7'):
    load(path, folder, mapping={'0': 'a', '7': 'b'})


def test_wrong_relabellings_are_refused():
  with pytest.raises(OptionError, match='--labels and --task=a exclude'):
    cohorts.relabelling('a', ['x:y'])
  for pair in ('xy', 'x:', ':y', 'x:y:z'):
    with pytest.raises(OptionError, match=f"'{pair}' is not of the form old"):
      cohorts.relabelling('origin', ['a:b', pair])
  with pytest.raises(OptionError, match='--labels: x is given twice'):
    cohorts.relabelling('origin', ['x:y', 'x:z'])


def test_numbers_are_ordered_as_numbers(tmp_path):
  path, folder = make(tmp_path, ['10', '9', '2'])
  assert load(path, folder).classes == ('2', '9', '10')


@hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
  max_examples=10,
)
@given(
  case_of=st.lists(st.integers(0, 5), min_size=4, max_size=12),
  seed=st.integers(0, 10**6),
)
def test_shuffled_labels_keep_cases_whole_and_classes_as_large(
  tmp_path, case_of, seed
):
  label_of = ['x', 'y', 'y', 'z', 'x', 'z']
  labels = [label_of[i] for i in case_of]
  hypothesis.assume(len(set(labels)) > 1)
  cases = [f'c{i}' for i in case_of]
  path, folder = make(tmp_path, labels, cases=cases)
  plain = load(path, folder)
  dealt = load(path, folder, shuffle_seed=seed)
  by_case = collections.defaultdict(set)
  for case, label in zip(dealt.manifest.case, dealt.label, strict=True):
    by_case[case].add(dealt.classes[label])
  assert all(len(found) == 1 for found in by_case.values())
  before = {c: label_of[i] for c, i in zip(cases, case_of, strict=True)}
  count = lambda values: collections.Counter(values)
  assert count(x for (x,) in by_case.values()) == count(before.values())
  np.testing.assert_array_equal(dealt.manifest.slide, plain.manifest.slide)
  np.testing.assert_array_equal(dealt.manifest.case, plain.manifest.case)
  again = load(path, folder, shuffle_seed=seed)
  np.testing.assert_array_equal(again.label, dealt.label)


def test_shuffled_labels_are_another_cohort(tmp_path):
  path, folder = make(tmp_path, 'xy' * 10)
  plain = load(path, folder)
  dealt = [load(path, folder, shuffle_seed=s) for s in range(3)]
  prints = {x.fingerprint()['labels_sha256'] for x in (plain, *dealt)}
  assert len(prints) == 4


def test_the_fingerprint_follows_what_decides_a_result(tmp_path):
  path, folder = make(tmp_path, 'xyxy')
  before = load(path, folder).fingerprint()
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([lines[0], *lines[:0:-1], '']))
  assert load(path, folder).fingerprint() == before
  # Classes of other names: results of before cannot be read with these.
  path.write_text('\n'.join(lines).replace(',y', ',z'))
  renamed = load(path, folder).fingerprint()
  assert renamed['labels_sha256'] != before['labels_sha256']
  assert renamed['features_sha256'] == before['features_sha256']
  path.write_text('\n'.join(lines).replace('c00', 'c99'))
  moved = load(path, folder).fingerprint()
  assert moved['labels_sha256'] != before['labels_sha256']
  path.write_text('\n'.join(lines))
  features.write(
    folder / 's01.h5',
    np.ones((4, WIDTH), np.float32) * 9,
    np.zeros((4, 2)),
    ATTRS,
  )
  changed = load(path, folder).fingerprint()
  assert changed['labels_sha256'] == before['labels_sha256']
  assert changed['features_sha256'] != before['features_sha256']


def made_of(folder, labels, *, width=4, attributes=(), like=None):
  rng = np.random.default_rng(len(labels))
  bags = [rng.normal(size=(3, width)) for _ in labels]
  feature_folder.write(folder, bags, labels)
  for path in sorted((folder / 'features').iterdir()):
    made = feature_folder.ATTRIBUTES | dict(attributes)
    found = features.read(path)
    features.write(path, found.features, found.coords, made)
  return load(folder / 'labels.csv', folder / 'features', like=like)


def test_classes_are_those_of_the_first_cohort_in_its_order(tmp_path):
  first = made_of(tmp_path / 'a', ['b', 'a', 'c', 'a'])
  other = made_of(tmp_path / 'b', ['c', 'c', 'b'], like=first)
  assert other.classes == first.classes == ('a', 'b', 'c')
  assert other.label.tolist() == [2, 2, 1]
  # One class is enough to be tried on, though not to be trained on.
  assert made_of(tmp_path / 'c', ['b', 'b'], like=first).label.tolist() == [
    1,
    1,
  ]


def test_labels_that_the_models_do_not_know_are_named(tmp_path):
  first = made_of(tmp_path / 'a', ['b', 'a'])
  with pytest.raises(CohortError, match=r'labels x, y are none of .*: a, b'):
    made_of(tmp_path / 'b', ['x', 'a', 'y'], like=first)


@pytest.mark.parametrize(
  'made,message',
  [
    ({'attributes': {'encoder': 'other'}}, 'encoder other here, planted there'),
    ({'attributes': {'mpp': 0.5}}, 'mpp 0.5 here, 1.0 there'),
    ({'attributes': {'patch_size': 64}}, 'patch_size 64 here, 128 there'),
    ({'width': 5}, 'dimensions 5 here, 4 there'),
  ],
)
def test_features_made_otherwise_are_refused(tmp_path, made, message):
  first = made_of(tmp_path / 'a', ['b', 'a'])
  with pytest.raises(CohortError, match=message):
    made_of(tmp_path / 'b', ['b', 'a'], like=first, **made)


def test_what_only_one_side_states_is_no_difference(tmp_path):
  first = made_of(tmp_path / 'a', ['b', 'a'])
  rows = [['case_id', 'slide_id', 'label'], ['c', 's', 'a']]
  with (tmp_path / 'labels.csv').open('w', newline='') as f:
    csv.writer(f).writerows(rows)
  (tmp_path / 'features').mkdir()
  with h5py.File(tmp_path / 'features' / 's.h5', 'w') as f:
    f['features'] = np.ones((2, 4), np.float32)
  found = load(tmp_path / 'labels.csv', tmp_path / 'features', like=first)
  assert set(first.made) - set(found.made) == {'encoder', 'mpp', 'patch_size'}


def test_slides_of_the_first_cohort_are_refused(tmp_path):
  first = made_of(tmp_path / 'a', ['b', 'a', 'b'])
  message = r'holds 3 slides .* slide_000, slide_001, slide_002'
  with pytest.raises(CohortError, match=message):
    load(tmp_path / 'a/labels.csv', tmp_path / 'a/features', like=first)
  other = {'level0_mpp': 0.25}
  made_of(tmp_path / 'b', ['b', 'a'], attributes=other)
  _, warnings = feature_folder.cohort(
    tmp_path / 'b/labels.csv', tmp_path / 'b/features', like=first
  )
  # The same names may be other patients': a warning, no problem.
  assert 'cases named case_000, case_001; if' in warnings[0]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_streamed_bags_equal_resident_ones(tmp_path, precision):
  bags, labels = feature_folder.planted(num_bags=12)
  feature_folder.write(tmp_path, bags, labels)
  cohort = load(tmp_path / 'labels.csv', tmp_path / 'features')
  read = [
    list(cohort.bags(precision, stream).read(np.arange(12)))
    for stream in (False, True)
  ]
  for bag, resident, streamed in zip(bags, *read, strict=True):
    assert resident.shape == streamed.shape
    assert resident.dtype == streamed.dtype == precision
    rows = slice(0, len(bag))
    np.testing.assert_array_equal(resident[rows], streamed[rows])
    np.testing.assert_allclose(
      resident[rows].astype(float), bag, rtol=0.01, atol=1e-6
    )
