"""--check finds everything at once, and training refuses the same inputs."""

import pathlib
import re

import feature_folder
import h5py
import numpy as np
import pytest

from data import features, labels as label_files
from experiments import kmil, mean_pooling
from experiments.bags import cohort as cohorts

QUICK = ['--k=3', '--seed=1']


def check(*args, script=kmil, capsys):
  """Returns exit code, problems, warnings and all that is printed."""
  with pytest.raises(SystemExit) as done:
    script.main(['script', '--check', *args])
  out = capsys.readouterr().out
  lines = out.splitlines()
  said = lambda kind: [
    line.removeprefix(f'{kind}: ') for line in lines if line.startswith(kind)
  ]
  return done.value.code, said('problem'), said('warning'), out


def refused(*args, script=kmil):
  """Returns the message that ends a run without --check."""
  with pytest.raises(SystemExit) as done:
    script.main(['script', *args])
  return str(done.value)


def change(path, **attributes):
  with h5py.File(path, 'a') as file:
    file.attrs.update(attributes)


def edit(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


@pytest.fixture
def cohort(tmp_path):
  """24 sound slides of 24 cases and three classes, and their flags."""
  bags, labels = feature_folder.planted(24, width=4)
  return tmp_path, feature_folder.write(tmp_path, bags, labels) + QUICK


def spoil(root):
  """Every fault there is, each in a slide of its own."""
  at = root / 'features'
  path = lambda i: at / f'slide_{i:03d}.h5'
  table = root / 'labels.csv'
  edit(table, 'slide_001,', '1,')
  path(1).rename(at / '001.h5')
  path(2).unlink()
  path(3).write_bytes(path(3).read_bytes()[:700])
  bag = features.read(path(4))
  with h5py.File(path(4), 'w') as file:
    file['features'] = np.where(
      np.eye(*bag.features.shape), np.nan, 1.0
    ).astype(np.float32)
  with h5py.File(path(5), 'w') as file:
    file['features'] = np.zeros((0, 4), np.float32)
  with h5py.File(path(6), 'w') as file:
    file['features'] = np.ones((3, 7), np.float32)
  change(path(7), encoder='other')
  change(path(8), mpp=0.5)
  change(path(9), patch_size=512)
  change(path(10), level0_mpp=50.0)
  with h5py.File(path(11), 'a') as file:
    del file['coords']
    file['coords'] = np.zeros((99, 2))
  path(0).with_name('stranger.h5').write_bytes(path(0).read_bytes())
  edit(table, 'case_013,', 'case_012,')  # Two classes.
  with table.open('a') as file:
    file.write('case_x,slide_012,0\ncase_y,,0\ncase_z,../z,0\n')
  splits = root / 'splits'
  splits.mkdir()
  slides = [f'slide_{i:03d}' for i in range(12, 24)]
  for fold in range(3):
    test, val = (
      slides[4 * fold :][:4],
      slides[4 * (fold - 1) :][:4] or slides[8:],
    )
    train = [s for s in slides if s not in (*test, *val)]
    lines = [f'{a},{b},{c}' for a, b, c in zip(train, val, test, strict=True)]
    (splits / f'splits_{fold}.csv').write_text(
      '\n'.join(['train,val,test', *lines]) + '\n'
    )
  edit(splits / 'splits_0.csv', 'slide_016', 'slide_013')
  edit(splits / 'splits_1.csv', 'slide_020', 'ghost')
  return at, table, splits


def test_every_problem_is_reported_at_once(cohort, capsys):
  root, args = cohort
  at, table, splits = spoil(root)
  args = [*args, f'--split_dir={splits}', f'--results_dir={root / "results"}']
  code, problems, warnings, out = check(*args, capsys=capsys)
  assert code == 1
  expected = [
    f'{table}: row 27: empty slide_id',
    f'{table}: slide slide_012: 2 rows',
    f'{table}: slide ../z: an id is a file name, without folders',
    f'{at}: no features of 2 of 24 labelled slides: 1, slide_002',
    f'{at / "slide_003.h5"}: not a complete HDF5 file',
    f'{at / "slide_005.h5"}: features are float32 [0, ',
    f'{at / "slide_011.h5"}: coords have shape [99, 2] for',
    'features of different dimensions are mixed: 4, 7; other than the rest are'
    ' slide_006',
    'features of different encoder are mixed: other, planted; other than the'
    ' rest are slide_007',
    'features of different mpp are mixed: 0.5, 1.0; other than the rest are'
    ' slide_008',
    'features of different patch_size are mixed: 128, 512; other than the rest'
    ' are slide_009',
    f'{splits / "splits_1.csv"}: slide ghost (',
    f'{splits / "splits_0.csv"}: case case_012 is in both',
    f'{at / "slide_004.h5"}: NaN or infinity in',
  ]
  for text in expected:
    assert sum(text in problem for problem in problems) == 1, (text, problems)
  assert len(problems) == len(expected) + sum(
    'slide_013' in p for p in problems
  )
  assert '1 in the CSV, 001 on disk' in ' '.join(problems)
  for text in (
    'level0_mpp outside 0.1 to 2.0 um (slide slide_010: 50.0)',
    '2 feature files have no row in the CSV and are not used: 001, stranger',
    '1 cases have slides of several labels: case_012 (0, 1)',
    'no fold names the slides 1, slide_000, slide_002',
  ):
    assert sum(text in warning for warning in warnings) == 1, (text, warnings)
  assert f'check: {len(problems)} problems, ' in out
  assert not (root / 'results').exists()
  # Without --check the same list ends the run, but for what only reading finds.
  message = refused(*args).removeprefix('error: ').splitlines()
  assert message == [p for p in problems if 'NaN' not in p]
  assert not (root / 'results').exists()


def test_faults_found_by_reading_end_the_run_all_at_once(cohort):
  root, args = cohort
  for i in (3, 8):
    path = root / 'features' / f'slide_{i:03d}.h5'
    with h5py.File(path, 'a') as file:
      file['features'][0, 1] = np.inf
  first, second = refused(*args, f'--results_dir={root}').splitlines()
  assert 'slide_003.h5: NaN or infinity in 1 of' in first
  assert 'slide_008.h5: NaN or infinity in 1 of' in second


def test_a_sound_cohort_is_described_and_passes(cohort, capsys):
  root, args = cohort
  code, problems, warnings, out = check(*args, capsys=capsys)
  assert (code, problems, warnings) == (0, [], [])
  assert 'check: 0 problems, 0 warnings; nothing was trained' in out
  assert '24 slides of 24 cases: 0 8, 1 8, 2 8' in out
  assert 'fold 2: 8 train, 8 val, 8 test slides; 0 ' in out
  for text in (
    'instances per slide, half of the slides',
    'padded lengths',
    'GiB',
    'estimated time of 3 runs (h:mm:ss): about chooser 0:0',
  ):
    assert text in out
  assert {p.name for p in root.iterdir()} == {'features', 'labels.csv'}


def test_warnings_do_not_change_the_exit_code(cohort, capsys):
  root, args = cohort
  edit(root / 'labels.csv', 'case_013,', 'case_012,')
  code, problems, warnings, _ = check(*args, script=mean_pooling, capsys=capsys)
  assert (code, problems) == (0, []) and 'case_012 (0, 1)' in warnings[0]


def test_too_few_patients_for_k_are_a_problem(cohort, capsys):
  _, args = cohort
  code, problems, _, out = check(*args, '--k=9', capsys=capsys)
  assert code == 1
  assert problems == [
    '--k=9: class 0 has 8 cases; class 1 has 8 cases; class 2 has 8 cases:'
    ' fewer than 9 folds. Choose fewer folds, or merge classes. --labels merges'
    ' classes, --split_dir reads other splits.'
  ]
  assert '24 slides of 24 cases' in out  # What can be said is.


@pytest.mark.parametrize(
  'content', [None, b'', b'\xff\xfe', b'case_id;slide_id;label\n']
)
def test_a_table_that_cannot_be_read_is_one_problem(cohort, capsys, content):
  root, args = cohort
  path = root / 'labels.csv'
  path.unlink() if content is None else path.write_bytes(content)
  code, problems, _, _ = check(*args, capsys=capsys)
  assert code == 1 and len(problems) == 1 and str(path) in problems[0]


@pytest.mark.parametrize(
  'rows,faults', [([], 1), (['1,a,carcinoma, squamous'] * 2, 2)]
)
def test_a_table_without_a_row_that_can_be_used_has_its_faults_told(
  cohort, capsys, rows, faults
):
  root, args = cohort
  (root / 'labels.csv').write_text('\n'.join(['case_id,slide_id,label', *rows]))
  code, problems, _, _ = check(*args, capsys=capsys)
  assert code == 1 and len(problems) >= faults
  assert all('labels.csv' in problem for problem in problems[:faults])


def test_missing_slides_can_be_left_out_and_are_counted(cohort, capsys):
  root, args = cohort
  for i in (2, 9):
    (root / 'features' / f'slide_{i:03d}.h5').unlink()
  assert check(*args, capsys=capsys)[0] == 1
  (root / 'features/failures.csv').write_text(
    'slide_id,reason\nslide_009,slide_009.svs: no tissue\n'
  )
  code, problems, warnings, out = check(*args, '--allow_missing', capsys=capsys)
  assert (code, problems) == (0, [])
  assert warnings[0].endswith(
    'no features of 2 of 24 labelled slides: slide_002, slide_009 (extraction'
    ' failed: slide_009: slide_009.svs: no tissue). They are left out.'
  )
  assert '22 slides of 22 cases' in out
  tested = re.findall(r'fold \d: .* (\d+) test slides', out)
  assert len(tested) == 3 and sum(map(int, tested)) == 22
  edit(root / 'labels.csv', 'slide_003', '3')
  (root / 'features/slide_003.h5').rename(root / 'features/003.h5')
  _, _, warnings, _ = check(*args, '--allow_missing', capsys=capsys)
  assert 'leading zeros' in warnings[0] and '3 in the CSV, 003' in warnings[0]


def test_a_second_cohort_is_checked_with_the_first(cohort, capsys):
  root, args = cohort
  two = [np.ones((3, 5))] * 2
  other = feature_folder.write(root / 'second', two, ['0', 'novel'])
  with h5py.File(root / 'second/features/slide_000.h5', 'a') as f:
    f['features'][0, 0] = np.nan
  values = [flag.split('=')[1] for flag in other]
  second = [
    f'--external_csv={values[0]}',
    f'--external_features_dir={values[1]}',
  ]
  code, problems, _, _ = check(*args, *second, capsys=capsys)
  assert code == 1 and len(problems) == 3
  assert 'labels novel are none of those the models know: 0, 1,' in problems[0]
  assert 'dimensions 5 here, 4 there' in problems[1]
  assert 'slide_000.h5: NaN' in problems[2]
  itself = [
    f'--external_csv={root / "labels.csv"}',
    f'--external_features_dir={root / "features"}',
  ]
  _, problems, _, _ = check(*args, *itself, capsys=capsys)
  assert len(problems) == 1 and 'holds 24 slides of the first' in problems[0]


def test_conflicts_are_listed_with_their_labels():
  column = lambda text: np.array(text.split())
  table = label_files.Manifest(
    column('a b b c c'), column('1 2 3 4 5'), column('x x y x x')
  )
  assert cohorts.mixed_cases(table) == ['b (x, y)']


# They train and predict nothing on data of the user.
_WITHOUT = (
  'benchmark compare cost draw_maps export froc pack report view'
).split()


def test_every_script_that_trains_or_predicts_has_the_flag():
  root = pathlib.Path(kmil.__file__).parent
  texts = {p.stem: p.read_text(encoding='utf-8') for p in root.glob('*.py')}
  scripts = {name for name, text in texts.items() if '__main__' in text}
  looks = re.compile(r'CHECK\.value|check\.check')
  lacking = {name for name in scripts if not looks.search(texts[name])}
  assert lacking == set(_WITHOUT)
