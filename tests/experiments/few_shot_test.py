"""The few-shot study: its patches and trainings, tables, slides, a restart."""

import dataclasses
import itertools
import json
import shutil

from matplotlib.backends import backend_agg
import numpy as np
from PIL import Image
import pytest

from data import labelled_tiles, tiff
from data.labelled_tiles import TileError
from data.splits import PARTS
from data.weights import WeightsError
from experiments import few_shot as script
from experiments.evaluation import froc as froc_files
from experiments.evaluation.tables import INTERVAL
from experiments.patches import pictures
from experiments.patches.study import Study
from experiments.run.results import Folder, ResultsError
from experiments.run.start import Findings
from experiments.studies import (
  few_shot,
  few_shot_data,
  few_shot_training as training,
)
from experiments.studies.few_shot_data import Data, PatchesAndSlides
from experiments.studies.few_shot_training import FW_RD, RD, Scores, Setting
from experiments.studies.slide_scores import ScoreError
from kmil_jax import froc
from kmil_jax.models import reverse_distillation

SEED = 5


# Slides of two colours in CAMELYON16's layout, and whether they hold tumour,
# which is violet, in a box x0, y0, x1, y1.
NAMES = {
  'tumor_001': True,
  'tumor_002': True,
  'normal_003': False,
  'test_001': False,
  'test_002': True,
  'test_003': True,
}
SCALE = few_shot_data.Scale(size=64, stride=32, radius=3, mpp=1.0, level=3)
WIDTH, HEIGHT, BOX = 768, 640, (320, 192, 640, 512)
PINK, VIOLET = (230, 130, 180), (130, 70, 170)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Slides, annotations, reference.csv and lists of good and bad."""
  root = tmp_path_factory.mktemp('c16')
  for folder in ('annotations', 'slides', 'lists'):
    (root / folder).mkdir()
  x0, y0, x1, y1 = BOX
  ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
  for i, (name, tumour) in enumerate(NAMES.items()):
    image = np.full((HEIGHT, WIDTH, 3), 245.0)
    image[64:-64, 64:-64] = PINK
    if tumour:
      image[y0:y1, x0:x1] = VIOLET
      text = json.dumps({'positive': [ring], 'negative': []})
      (root / f'annotations/{name}.json').write_text(text)
    image += np.random.default_rng(i).normal(0, 4, image.shape)
    image = image.clip(0, 255).astype(np.uint8)
    tiff.write(root / f'slides/{name}.tiff', image, mpp=1.0, levels=3)
  test = [name for name in NAMES if name.startswith('test')]
  labels = ('Normal,IDC,None', 'Tumor,IDC,Macro')
  lines = [f'{name},{labels[NAMES[name]]}\n' for name in test]
  (root / 'reference.csv').write_text(''.join(lines))
  for part, names in (('train', ['tumor_001']), ('test', test)):
    bad = [name for name in names if NAMES[name]]
    for kind, x, some in (('good', 150, names), ('bad', 450, bad)):
      lines = [f'{n},{x},{y}\n' for n in some for y in (250, 330, 410)]
      (root / f'lists/{part}_{kind}.txt').write_text(''.join(lines))
  return root


def data(root, **others):
  paths = {
    'slides_dir': root / 'slides',
    'annotations': root / 'annotations',
    'reference_csv': root / 'reference.csv',
    'lists_dir': root / 'lists',
  }
  return Data(**paths | others)


def open_slides(root, **others):
  return few_shot_data.of_slides(data(root, **others), seed=0, scale=SCALE)


def violet(image):
  """Returns nearly 3 times the share of violet of patches [T, S, S, 3]."""
  share = (image[..., 1] < 100).mean((1, 2))
  # No two patches have the same score.
  return np.float32(2.9 * share + image.mean((1, 2, 3)) / 2550)


def tissue(image):
  """Scores that tell nothing apart but what is white."""
  return 3 * (image[..., 1] < 200).mean((1, 2))


def slides_of(tiles, label):
  return set(tiles.group[tiles.label == label])


def test_lists_become_parts_and_validation_is_drawn(root):
  found = open_slides(root)
  for tiles in found.parts.values():
    is_violet = violet(tiles.pixels) > 1.5
    np.testing.assert_array_equal(is_violet, tiles.label == 0)
  assert set(found.parts['train'].group) == {'tumor_001'}
  val = found.parts['val']
  assert slides_of(val, 0) == {'tumor_002'}
  assert slides_of(val, 1) == {'normal_003'}
  assert 'tumor_002 and normal_003' in found.note
  np.testing.assert_array_equal(open_slides(root).parts['val'].xy, val.xy)
  assert [(s.id, s.label) for s in found.slides] == [
    ('test_001', 'normal'),
    ('test_002', 'tumor'),
    ('test_003', 'tumor'),
  ]
  # Three tumour patches: less than any but none of the paper's.
  assert (found.main, found.counts) == (3, {0: 0})


def test_lists_that_are_there_are_used_but_for_excluded_slides(root, tmp_path):
  before = open_slides(root).parts['test']
  lists = shutil.copytree(root / 'lists', tmp_path / 'lists')
  (lists / 'val_good.txt').write_text('normal_003,200,300\n')
  (lists / 'val_bad.txt').write_text('tumor_002,400,400\n')
  with (lists / 'test_good.txt').open('a') as f:
    f.write('test_114,200,300\ntest_114,400,300\n')
  found = open_slides(root, lists_dir=lists)
  xy = found.parts['val'].xy + 32
  assert xy.tolist() == [[400, 400], [200, 300]]
  np.testing.assert_array_equal(found.parts['test'].id, before.id)
  assert 'test_114: left out, not all of its tumour is annot' in found.note
  assert 'test_good: 2 patches of slides left out' in found.note
  # Test slides are scored whole, without a patch of theirs in a list, too.
  for part, slide in (('val', 'tumor_001'), ('train', 'test_003')):
    with (lists / f'{part}_bad.txt').open('a') as f:
      f.write(f'{slide},450,362\n')
    with pytest.raises(TileError, match=rf'lists: slide.* {slide} in more'):
      open_slides(root, lists_dir=lists)
    if part == 'val':
      (lists / 'val_bad.txt').write_text('tumor_002,400,400\n')
      for kind in ('good', 'bad'):
        path = lists / f'test_{kind}.txt'
        lines = path.read_text().splitlines()
        path.write_text('\n'.join(n for n in lines if '_003' not in n))


def test_validation_is_of_a_slide_with_room(root, tmp_path):
  root = shutil.copytree(root, tmp_path / 'c16')
  for name in ('slides/{}.tiff', 'annotations/{}.json'):
    shutil.copy(
      root / name.format('tumor_002'), root / name.format('tumor_003')
    )
  small = {'positive': [[[320, 192], [420, 192], [420, 292]]], 'negative': []}
  (root / 'annotations/tumor_002.json').write_text(json.dumps(small))
  assert slides_of(open_slides(root).parts['val'], 0) == {'tumor_003'}
  (root / 'annotations/tumor_003.json').unlink()
  with pytest.raises(TileError, match='no tumor one with room'):
    open_slides(root)


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (
      ['lists/train_bad.txt', 'lists/test_good.txt'],
      r'no train_bad\.txt, test_',
    ),
    (['slides/normal_003.tiff'], 'there is no normal one'),
    (['annotations/test_002.json'], 'without annotation: test_002'),
  ],
)
def test_what_is_missing_is_named(root, tmp_path, names, message):
  root = shutil.copytree(root, tmp_path / 'c16')
  for name in names:
    (root / name).unlink()
  with pytest.raises(TileError, match=message):
    open_slides(root)


def open_folders(root, kinds=('good', 'bad'), slides='abc', each=2, side=64):
  """Writes and opens patches, bright (normal) or dark (tumour)."""
  for part, slide in zip(PARTS, slides, strict=True):
    for kind, level in zip(kinds, (200, 60), strict=True):
      folder = root / part / kind
      folder.mkdir(parents=True)
      for i in range(each):
        pixels = np.random.default_rng(i).normal(level, 20, (side, side, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.convert('RGBA').save(folder / f'tumor_{slide}_{i}_{7 * i}.png')
  return few_shot_data.open_material(Data(patches_dir=root), 0, root)


def test_folders_are_labelled_by_their_names(tmp_path):
  found = open_folders(tmp_path)
  for tiles, slide in zip(found.parts.values(), 'abc', strict=True):
    assert tiles.label.tolist().count(1) == 2
    bright = tiles.pixels.mean((1, 2, 3)) > 100
    np.testing.assert_array_equal(bright, tiles.label == 1)
    assert set(tiles.group) == {f'tumor_{slide}'}
  assert (found.scale.size, found.main, found.slides) == (64, 2, ())


def test_a_slide_that_is_spelled_apart_in_two_parts_is_warned_of(tmp_path):
  leak, _ = open_folders(tmp_path, slides='abA').warnings
  assert 'cases tumor_A and tumor_a look like one patient' in leak


@pytest.mark.parametrize(
  ('about', 'message'),
  [
    ({'kinds': ('fine', 'bad')}, 'found the folders bad, fine'),
    ({'slides': 'aac'}, r'slide.* tumor_a in more than one'),
    ({'side': 100}, 'images of 100 px. Networks take multiples of 32'),
  ],
)
def test_folders_that_cannot_be_are_refused(tmp_path, about, message):
  with pytest.raises(TileError, match=message):
    open_folders(tmp_path, **about)


LABEL = np.repeat([0, 1], [1001, 5000])
COUNTS = (0, 5, 10, 50, 100, 500, 1000)


def settings_of(tumour=1001, normal=5000, main=500, counts=COUNTS):
  label = np.repeat([0, 1], [tumour, normal])
  patches = labelled_tiles.from_arrays(
    np.zeros((len(label), 1, 1, 3), np.uint8),
    label,
    np.repeat('s', len(label)),
    ('tumor', 'normal'),
  )
  if not isinstance(counts, dict):
    counts = dict(zip(counts, counts, strict=True))
  material = PatchesAndSlides({'train': patches}, main, counts)
  (found,) = training.settings(material, training.Students(seeds=1), 3)
  sweep = [s for s in found if s.counterpart is not None]
  return found, sorted(sweep, key=lambda s: s.tumour)


def test_the_papers_trainings():
  settings, sweep = settings_of()
  assert [s.tumour for s in sweep] == list(COUNTS)
  by_name = {s.name: s for s in settings}
  assert len(by_name) == len(settings) == 10
  assert by_name['RD'].alpha == 0
  assert by_name['FW-RD'].alpha == 0.1
  assert by_name['tumour_1000'].alpha == pytest.approx(1 / 6)
  assert by_name['balanced'].normal == by_name['balanced'].tumour == 500
  assert by_name['balanced'].alpha == by_name['unweighted'].alpha == 0.5
  assert by_name['unweighted'].gamma == 0
  # Fewer patches keep their main training.
  _, few = settings_of(7, 80, 7, (0, 5))
  assert [s.tumour for s in few] == [0, 5, 7]
  _, few = settings_of(100, 5000, 100, (0, 5, 10, 50, 100))
  assert [s.counterpart for s in few] == [0, 5, 10, 50, 100]
  _, few = settings_of(60, 300, 30, {0: 0, 3: 50, 30: 500, 60: 1000})
  assert [s.counterpart for s in few] == [0, 50, 500, 1000]


def test_patches_of_fewer_are_among_those_of_more():
  settings, sweep = settings_of()
  previous, normal = set(), None
  for setting in sweep:
    run = setting.run(LABEL)
    assert (run.alpha, run.gamma, run.seed) == (setting.alpha, 2.0, 3)
    tumour = set(run.patches[LABEL[run.patches] == 0].tolist())
    assert len(tumour) == setting.tumour
    assert previous <= tumour
    previous = tumour
    now = set(run.patches[LABEL[run.patches] == 1].tolist())
    assert len(now) == 5000 and normal in (None, now)
    normal = now
  other = dataclasses.replace(settings[1], seed=4).run(LABEL).patches
  assert set(settings[1].run(LABEL).patches) != set(other)


def test_groups_fit_in_memory(monkeypatch):
  jobs = 2 * settings_of(20, 100, 10, (0, 5))[0]
  for i in (5, 11):
    jobs[i] = dataclasses.replace(jobs[i], longer=3)
  weights, sizes = [np.zeros((10, 3)), np.zeros(10)], {}
  monkeypatch.setattr(training.jax, 'eval_shape', lambda *_: weights)
  for held in (0.5, 2.5, 100):  # Runs of five times its weights, per device.
    memory = 4 * (5 * held * 4 * 40 / 0.6 + 1)  # Of four devices.
    monkeypatch.setattr(training, 'memory', lambda m=memory: m)
    groups = list(training.groups(jobs, training.Students(width=2)))
    sizes[held] = [len(group) for group in groups]
    # Those of other epochs apart, the order is that of the jobs.
    assert {job.name for job in groups[-1]} == {'balanced'}
    assert [job for group in groups[:-1] for job in group] == [
      job for job in jobs if job.longer == 1
    ]
  # Of four devices.
  assert sizes == {0.5: [4, 4, 2, 2], 2.5: [8, 2, 2], 100: [10, 2]}


@pytest.fixture(scope='module')
def stages(root, tmp_path_factory):
  """Runs the study with students of which FW-RD sees violet, and RD tissue.

  Returns its folder, its material and all that it yields, by name.
  """
  folder, material = Folder(tmp_path_factory.mktemp('run')), open_slides(root)
  study = Study(folder, script.PAPER.recipe, SEED)
  by = lambda name: tissue if name == RD else violet
  folder.write(training.TEACHER, 'teacher')
  ((*settings,),) = training.settings(material, study.recipe['students'], SEED)
  for setting in settings:
    folder.write(f'{setting.folder}/{training.MODEL}', setting.name)
    for part, file in training.SCORES.items():
      tiles = material.parts[part]
      score = by(setting.name)(tiles.pixels)
      columns = tiles.id, tiles.group, 1 - tiles.label, score, score
      rows = [training._HEADER, *zip(*columns, strict=True)]
      folder.write(f'{setting.folder}/{file}', rows)

  def run():
    found = {}
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(training, 'teacher', lambda *_: None)
      patch.setattr(training, 'train', lambda *_: None)
      patch.setattr(training, 'student', lambda path: path.read_text())
      patch.setattr(few_shot, 'pmap_score', lambda *about: by(about[-1]))
      for item in few_shot.stages(study, material):
        if isinstance(item, Exception):
          raise item
        if not isinstance(item, str):
          found[item.name] = item
          if item.name.endswith(('.json', '.csv')):
            folder.write(item.name, item.content)
    return folder, material, found

  return run


def test_maps_scores_and_lesions(stages):
  folder, _, found = stages()
  rows = folder.read('slides/scores.csv')
  assert [r['slide'] for r in rows] == ['test_001', 'test_002', 'test_003']
  assert [r['tumour'] for r in rows] == ['0', '1', '1']
  # The map is that of the patches around its pixels.
  with np.load(folder.at(f'slides/FW-RD_s{SEED}/maps/test_002.npz')) as file:
    scored = file['scores']
  assert scored.shape == (640 // 32, 768 // 32)
  assert scored[10, 15] > 2.9  # (496, 336)
  assert 0 < scored[10, 4] < 0.1
  assert scored[0, 0] == 0
  # Drawn black as normal patches, white as the highest of the validation part;
  # that of RD, to which all patches are alike, is black.
  for name, in_lesion in ((FW_RD, 250), (RD, 0)):
    path = folder.at(f'slides/{name}_s{SEED}/maps/test_002.tiff')
    with Image.open(path) as image:
      drawn = np.asarray(image.convert('L'), int)
    assert abs(drawn[10, 15] - in_lesion) < 6 and drawn[10, 4] < 6, name
  # RD, which calls all tissue tumour, cannot tell the slides.
  np.testing.assert_allclose([float(r[RD]) for r in rows], 3, rtol=1e-6)
  here = {row.labels[0]: row.lines['here'] for row in found['slides'].rows}
  assert here[FW_RD][:2] == [1, 1] and here[RD][2] < here[FW_RD][2]
  # The files say the same to `experiments.froc`.
  for name in (RD, FW_RD):
    detections = folder.at(f'slides/{name}_s{SEED}/detections')
    masks = folder.at('slides/masks')
    cases = froc_files.read(masks, detections, mpp=1.0, level=3)
    curve = froc.froc(list(cases.values()))
    assert curve.score == here[name][2] and curve.lesions == 2
  table = found['slides'].terminal()
  assert '2 with tumour, 2 lesions to find; 1 without' in table
  for name in ('froc', 'slide_roc', 'localisation', 'patch_roc'):
    folder.write('drawn.png', found[f'figures/{name}.png'].content)
    with Image.open(folder.path / 'drawn.png') as image:
      assert np.asarray(image.convert('L')).std() > 5


def test_tables_of_patches_stand_beside_the_papers(stages):
  _, _, found = stages()
  table_2, ablations = (
    {tuple(row.labels): row.lines for row in found[name].rows}
    for name in ('table_2', 'ablations')
  )
  assert 'beside “accuracy, threshold 2”' in found['table_2'].markdown()
  gap = table_2[FW_RD,]['here'][3] - table_2[RD,]['here'][3]
  assert table_2['FW-RD minus RD',]['here'][3] == pytest.approx(gap)
  assert 'here' in ablations['unweighted', 3, 3, '0.5', '0']
  assert 'here' not in ablations['supervised', 100000, 100000, '0.5', '2']
  # Three tumour patches are no number of the paper's: nothing stands beside.
  sweep = {tuple(row.labels): row.lines for row in found['table_3'].rows}
  assert list(sweep) == [(0, 0, '0'), (3, 'none', '0.1')]
  assert [len(lines) for lines in sweep.values()] == [3, 2]


@pytest.mark.parametrize('kind', ['slide', 'annotation'])
def test_slides_that_cannot_be_read_are_named_last(stages, kind):
  folder, material, _ = stages()
  path = material.slides[-1].path
  if kind == 'annotation':
    path = material.annotations.files['test_003']
  content = path.read_bytes()
  path.write_bytes(b'torn')
  material.check(findings := Findings())
  assert '003' in findings.problems[-1]
  shutil.rmtree(folder.at(f'slides/RD_s{SEED}'))
  try:
    with pytest.raises(ScoreError, match=r'1 slide\(s\) not scored:\n.*003'):
      stages()
  finally:
    path.write_bytes(content)
  assert len(folder.read('slides/scores.csv')) == 2
  with pytest.raises(ResultsError, match=r'other_s5/validation_scores\.csv'):
    training.scores(folder, Setting('other', 3, 1, 0.1, seed=5))


def test_what_colours_mean_is_read_in_low_pictures_too():
  image, maps = np.zeros((250, 700, 3), np.uint8), {'RD': (np.eye(9), [])}
  drawing = pictures.overlay('s', image, maps, label=few_shot._COLOURS)
  backend_agg.FigureCanvasAgg(drawing).draw()
  label = drawing.axes[-1].yaxis.label.get_window_extent()
  assert 0 < label.y0 < label.y1 < drawing.bbox.y1


def test_thresholds_by_hand():
  tumour = np.array([False, True, False, True])
  val, test = (
    Scores(np.array([*'sstt']), tumour, np.array(mean))
    for mean in ([0.5, 1.0, 0.6, 1.2], [1.1, 1.5, 0.6, 2.0])
  )
  # Validation chooses 1.0; the test patches themselves would choose 1.5.
  assert val.threshold == 1.0
  found = few_shot.measure({'val': val, 'test': test})
  np.testing.assert_array_equal(found[:, 0], [0.75, 0.75, 1, 1])


def test_settings_are_paired_by_their_resamples():
  def measured(gap):
    """Of patches of six slides whose tumour scores `gap` higher on average."""
    parts = {}
    for part, seed in (('val', 1), ('test', 0)):
      rng = np.random.default_rng(seed)
      tumour = np.arange(120) % 2 == 0
      slide = rng.integers(0, 6, 120).astype(str)
      mean = 1.2 + gap * tumour + rng.normal(0, 0.3, 120)
      parts[part] = Scores(slide, tumour, mean)
    return few_shot.measure(parts)

  better, worse = measured(1.0), measured(0.2)
  methods = {
    'better': better[None],
    'change': (better - worse)[None],
    'none': (better - better)[None],  # Nothing differs.
    'both': np.stack([better, worse]),
  }
  rows = [(name, (name,), values) for name, values in methods.items()]
  table = few_shot._table('table_2', '', ('method',), rows)
  lines = {row.labels[0]: row.lines for row in table.rows}
  low, high = lines['better'][INTERVAL][0]
  assert low < better[0, 0] < high
  assert lines['change'][INTERVAL][-1][0] > 0
  assert np.isnan(lines['none'][INTERVAL]).all()
  assert 'std over seeds' not in lines['better']
  want = np.std([better[:, 0], worse[:, 0]], axis=0, ddof=1)
  np.testing.assert_allclose(lines['both']['std over seeds'], want)


def test_more_seeds_train_what_is_not_there(root, tmp_path, monkeypatch):
  material, trained = open_slides(root, weights=root / 'reference.csv'), []
  students = training.Students(width=2, seeds=2)
  study = Study(Folder(tmp_path), {'students': students}, SEED)
  jobs = [*itertools.chain(*training.settings(material, students, SEED))]
  of_seed = {seed: [j for j in jobs if j.seed == seed] for seed in (5, 6)}

  def train_group(study, material, group, *_):
    trained.append(group)
    for job in group:
      for file in training.SCORES.values():
        study.folder.write(f'{job.folder}/{file}', [['patch']])

  monkeypatch.setattr(training, 'teacher', lambda *_: None)
  monkeypatch.setattr(training, '_train_group', train_group)
  training.train(study, material, of_seed[5])
  training.train(study, material, jobs)
  assert trained == [of_seed[5], of_seed[6]]
  # A group that was killed while it wrote goes on as a whole.
  shutil.rmtree(study.folder.at(f'{jobs[0].folder}'))
  study.folder.at(training._checkpoints(jobs)).mkdir(parents=True)
  training.train(study, material, jobs)
  assert trained[2:] == [jobs]
  # And so does what more seeds had added to one.
  shutil.rmtree(study.folder.at('checkpoints'))
  shutil.rmtree(study.folder.at(f'{jobs[-1].folder}'))
  study.folder.at(training._checkpoints(of_seed[6])).mkdir(parents=True)
  training.train(study, material, jobs)
  assert trained[3:] == [of_seed[6]]


@pytest.mark.slow
def test_a_training_that_is_done_and_sound_is_not_repeated(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(reverse_distillation, 'STAGES', (1, 1, 1))
  open_folders(tmp_path / 'patches', each=8)
  flags = [f'--patches_dir={tmp_path / "patches"}', f'--results_dir={tmp_path}']
  flags += ['--width=2', '--epochs=2', '--batch_size=4']
  flags += ['--lr=0.003', '--seed=4']
  folder = Folder(tmp_path / 'few_shot_s4')
  script.main(['few_shot', *flags])
  for name in ('RD', 'FW-RD', 'unweighted', 'unweighted_focal', 'balanced'):
    lines = folder.read(f'runs/{name}_s4/metrics.jsonl')
    assert lines[1]['train_loss'] < lines[0]['train_loss']
  assert not list(folder.at('checkpoints').iterdir())
  # What is there is not made again, and makes the same.
  table = folder.read('table_2.csv')
  folder.at('table_2.csv').unlink()
  monkeypatch.setattr(training, '_train_group', None)
  script.main(['few_shot', *flags])
  assert folder.read('table_2.csv') == table
  # Nor is one that was changed.
  path, again = folder.at('runs/RD_s4/model.safetensors'), []
  path.write_bytes(path.read_bytes()[:-1] + b'!')
  train = lambda study, material, group, *_: again.extend(group)
  monkeypatch.setattr(training, '_train_group', train)
  script.main(['few_shot', *flags])
  assert 'RD' in [setting.name for setting in again]
  assert f'{path} is damaged. ' in capsys.readouterr().out
  with pytest.raises(WeightsError, match=f'{path} was changed'):
    training.student(path)
