"""The commands that train on bags: what they learn, recovery, refusals.

Their files and columns are in tests/golden.
"""

import json
import pathlib
import random
import shutil
import signal
import socket
import time

import feature_folder
import h5py
import next_command
import numpy as np
import pytest
import script_process

from experiments import mean_pooling
from experiments.bags.ablation import SETTINGS
from experiments.maps import tile_scores
from experiments.prediction import models
from experiments.reporting import page
from experiments.run.results import Folder, ResultsError
from kmil_jax import library

# Saves often enough for a kill to find a checkpoint to go on from.
PLAIN = script_process.HASTY + feature_folder.UNDRAWN
SAVE_OFTEN = (
  f'{PLAIN}from kmil_jax import loop; loop.SECONDS_BETWEEN_SAVES = 0.3'
)
NEVER = f'{PLAIN}from kmil_jax import loop; loop.fit = None'
# Shows bars of what mostly is short.
BARS = '\nfrom experiments.run import progress; progress.PATIENCE = 0'
QUICK = ['--k=3', '--seed=1', '--lr=0.005']
EPOCHS = 16
FOLDER = 'kmil_origin_s1'
PLANTED = feature_folder.planted()


def probabilities(folder, name='predictions.csv'):
  """By fold and slide."""
  return {
    (row['fold'], row['slide_id']): [
      float(value) for name, value in row.items() if name.startswith('prob_')
    ]
    for row in Folder(folder).read(name)
  }


def assert_alike(one, other, atol):
  """Holds the probabilities of two folders against each other."""
  got, want = probabilities(one), probabilities(other)
  assert got.keys() == want.keys()
  for key, prob in got.items():
    np.testing.assert_allclose(prob, want[key], atol=atol)


def losses(folder):
  lines = Folder(folder).read('metrics.jsonl')
  return np.array([line['train_loss'] for line in lines])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """All folds of a run that nobody disturbed."""
  results = tmp_path_factory.mktemp('results')
  data = feature_folder.write(results, *PLANTED)
  args = [*data, *QUICK, f'--epochs={EPOCHS}', f'--results_dir={results}']
  out = feature_folder.run(*args, before=SAVE_OFTEN + BARS)
  return args, results / FOLDER, out


@pytest.fixture(scope='module')
def short(tmp_path_factory):
  """All folds of a run of few epochs, on bags of one padded length."""
  results, (bags, labels) = tmp_path_factory.mktemp('short'), PLANTED
  data = feature_folder.write(results, [bag[:8] for bag in bags], labels)
  args = [*data, *QUICK, '--epochs=8', f'--results_dir={results}']
  feature_folder.run(*args, '--tensorboard')
  return args, results / FOLDER


def test_planted_instances_are_learnt_and_found(finished):
  _, folder, out = finished
  summary = Folder(folder).read('summary.json')
  auroc = summary['metrics']['auroc']['pooled']
  assert auroc > 0.9 and f'{auroc:.3f}' in out
  assert 'choosing instances: 60/60 [' in out
  # Every slide is test once and val once.
  for name in ('predictions.csv', 'validation_predictions.csv'):
    assert len({slide for _, slide in probabilities(folder, name)}) == 60
  hits = []
  for path in folder.glob('fold_*/attention/*.h5'):
    scores = tile_scores.read({0: path})
    assert scores.classes == tuple(summary['classes'])
    (attention,), (kept,) = scores.attention, scores.kept
    assert attention.shape == (len(kept), 3)
    np.testing.assert_allclose(attention.sum(0), 1, rtol=1e-5)
    assert not attention[~kept].any()
    assert kept.sum() == max(len(kept) * 9 // 10, 1)
    hits.append(attention[:, scores.predicted].argmax() < 2)
  assert len(hits) == 60 and np.mean(hits) > 0.7
  lines = Folder(folder).read('fold_2/metrics.jsonl')
  epochs = [(line['stage'], line['epoch']) for line in lines]
  model = [('model', e) for e in range(EPOCHS)]
  assert epochs == [('chooser', e) for e in range(len(lines) - EPOCHS)] + model


# Folds 1 and 2 diverge in these epochs of their models.
LOST = {1: 0, 2: 12}
DIVERGING = f"""{PLAIN}
from kmil_jax import programs
train = programs.Program.train
def broken(self, states, epoch, *args):
  states, sums = train(self, states, epoch, *args)
  for fold, lost in {LOST}.items():
    if epoch == lost and self.task.model.__class__.__name__ == 'DSMIL':
      sums['loss'][fold] = float('nan')
  return states, sums
programs.Program.train = broken
"""


def test_folds_that_diverge_stop_alone_and_are_named(finished, tmp_path):
  args, whole, _ = finished
  folder, path = tmp_path / FOLDER, 'fold_0/predictions.csv'
  for before in (DIVERGING, script_process.HASTY):
    process = feature_folder.script(
      *args, f'--results_dir={tmp_path}', before=before
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    error = out[out.index('error:') :]
    assert 'fold_0' not in error and '--lr' in error
    assert (folder / path).read_bytes() == (whole / path).read_bytes()
    for fold, epoch in LOST.items():
      text = f'fold_{fold}: the loss of the model became infinite or NaN in'
      assert f'{text} epoch {epoch}.' in error
      at = folder / f'fold_{fold}'
      record = json.loads((at / 'diverged.json').read_text())['model']
      assert record['epoch'] == epoch
      assert -1 <= record['kept'] < max(epoch, 1)
      kept = record['kept'] >= 0
      assert (at / 'predictions.csv').exists() == kept == (epoch > 0)
  assert (folder / 'report.html').exists()


def killed(args, reached, saves):
  """Kills the script when `reached()` and one of `saves` is there."""
  process = feature_folder.script(*args, before=SAVE_OFTEN)
  deadline = time.monotonic() + 120
  try:
    while not (reached() and list(saves())):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.002)
  finally:
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_thrice_ends_with_the_same_predictions(finished, tmp_path):
  """In each stage at some epoch, and where predictions are being written."""
  args, folder, _ = finished
  args = [*args, f'--results_dir={tmp_path}']
  results = tmp_path / FOLDER
  metrics = results / 'fold_1/metrics.jsonl'
  for stage in ('chooser', 'model'):
    epochs, name = random.randint(2, 12), f'"stage": "{stage}"'
    killed(
      args,
      lambda n=epochs, name=name: (
        metrics.exists() and metrics.read_text().count(name) >= n
      ),
      lambda stage=stage: results.glob(f'state/runs_0-2/{stage}/*'),
    )
  killed(
    args,
    (results / 'fold_0/predictions.csv').exists,
    lambda: results.glob('state/runs_0-2/*/*'),
  )
  # Damage costs no more than a kill, and nothing need be removed.
  state = results / 'state/runs_0-2/model'
  newest = max(map(int, (path.name for path in state.iterdir())))
  damaged = [f'{state}/{newest}', f'{results}/fold_0/checkpoints/0']
  damaged = [pathlib.Path(folder, 'state/manifest.ocdbt') for folder in damaged]
  for path in damaged:
    path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(OSError, match=r'fold_0.*damaged\. Run the command'):
    library.load(results, [0])
  out = feature_folder.run(*args, before=SAVE_OFTEN)
  for path in damaged:
    assert f'warning: {path} is damaged. ' in out
  for name in ('predictions.csv', 'fold_1/metrics.jsonl'):
    assert (results / name).read_bytes() == (folder / name).read_bytes()
  assert not (results / 'state').exists()
  # A kill after the last fold leaves its state to the next command.
  state.mkdir(parents=True)
  feature_folder.run(*args)
  assert not (results / 'state').exists()


@pytest.mark.parametrize('how', [[], ['--stream']])
def test_one_fold_alone_or_streamed_gives_what_all_folds_gave(
  short, tmp_path, how
):
  args, folder = short
  feature_folder.run(*args, '--fold=1', *how, f'--results_dir={tmp_path}')
  got, want = tmp_path / FOLDER / 'fold_1', folder / 'fold_1'
  assert_alike(got, want, atol=1e-4)
  np.testing.assert_allclose(losses(got), losses(want), atol=1e-5)
  assert list(want.glob('events*')) and not list(got.glob('events*'))


# A process of a pod is missed sooner than otherwise.
MISS_SOON = SAVE_OFTEN + (
  '\nfrom kmil_jax import parallel; parallel._HEARTBEAT = 10'
)


def pod(args, results, victim=None):
  """Runs two processes; kills one at the first checkpoint, if asked to.

  Returns:
    The code and the output of each.
  """
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  processes = [
    feature_folder.script(
      *args,
      f'--results_dir={results}',
      f'--coordinator={address}',
      '--num_processes=2',
      f'--process_id={rank}',
      before=MISS_SOON,
    )
    for rank in range(2)
  ]
  try:
    deadline = time.monotonic() + 120
    while victim is not None and not list(results.glob('*/state/*/*/*')):
      assert [p.poll() for p in processes] == [None, None]
      assert time.monotonic() < deadline
      time.sleep(0.01)
    if victim is not None:
      processes[victim].kill()
    logs = [
      process.communicate(timeout=200 if victim is None else 60)[0]
      for process in processes
    ]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], logs


@pytest.fixture(scope='module')
def of_two(short, tmp_path_factory):
  """What two processes write."""
  results = tmp_path_factory.mktemp('pod')
  codes, logs = pod(short[0], results)
  assert codes == [0, 0], '\n'.join(logs)
  return results / FOLDER


@pytest.mark.slow
def test_a_pod_that_loses_a_process_ends_with_a_line_and_goes_on(
  short, of_two, tmp_path
):
  victim = random.randrange(2)
  codes, logs = pod(short[0], tmp_path, victim)
  assert codes[victim] == -signal.SIGKILL
  assert codes[1 - victim] == 1
  out = logs[1 - victim]
  assert 'Traceback' not in out and 'coordination' not in out
  assert out.splitlines()[-1].startswith('error: another process of this pod')
  assert out.count('error') == 1 and 'same command' in out
  codes, logs = pod(short[0], tmp_path)
  assert codes == [0, 0], '\n'.join(logs)
  for name in ('predictions.csv', 'fold_1/metrics.jsonl'):
    got = (tmp_path / FOLDER / name).read_bytes()
    assert got == (of_two / name).read_bytes()


@pytest.mark.slow
def test_two_processes_write_what_one_wrote(short, of_two):
  _, folder = short
  for fold in range(3):
    got = of_two / f'fold_{fold}'
    want = folder / f'fold_{fold}'
    np.testing.assert_allclose(losses(got)[:5], losses(want)[:5], atol=1e-5)
    assert_alike(got, want, atol=1e-3)
    assert (got / 'checkpoints/0').is_dir()


def test_a_second_cohort_is_tested_by_the_models_that_are_there(
  short, tmp_path
):
  """Its bags are those of the first in other files; nothing is trained."""
  args, folder = short
  before = (folder / 'predictions.csv').read_bytes()
  source = Folder(folder).config().values
  shutil.copytree(source['features_dir'], tmp_path / 'copy')
  for path in (tmp_path / 'copy').iterdir():
    with h5py.File(path, 'a') as f:
      f.attrs['copied'] = True
  args = [
    *args,
    f'--external_csv={source["csv_path"]}',
    f'--external_features_dir={tmp_path / "copy"}',
  ]
  out = feature_folder.run(*args, before=NEVER + BARS)
  assert 'runs done before: 3 of 3' in out
  assert 'external cohort: 60/60 [' in out
  assert (folder / 'predictions.csv').read_bytes() == before
  assert 'external cohort, 60 slides of 60 cases' in out
  external = probabilities(folder, 'external_predictions.csv')
  assert len(external) == 4 * 60  # Three folds and their mean.
  for (fold, slide), prob in probabilities(folder).items():
    np.testing.assert_allclose(external[fold, slide], prob, atol=1e-5)
    folds = [external[fold, slide] for fold in '012']
    np.testing.assert_allclose(external['mean', slide], np.mean(folds, 0))
    assert np.ptp(folds, axis=0).max() > 1e-6
  Folder(folder).write('external.json', {'labels_sha256': 'of another'})
  process = feature_folder.script(*args, before=NEVER)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 1
  assert 'the external results are of another cohort' in out


def test_without_a_test_part_all_is_of_validation_and_says_so(short, tmp_path):
  args = [*short[0], '--k=1', '--epochs=2', f'--results_dir={tmp_path}']
  out = feature_folder.run(*args)
  assert 'without a test part' in out
  folder = Folder(tmp_path / FOLDER)
  (split,) = [folder.read('splits/splits_0.csv')]
  assert not any(row['test'] for row in split)
  rows = folder.read('validation_predictions.csv')
  held = {row['slide_id'] for row in rows}
  assert held == {row['val'] for row in split} - {''}
  assert not folder.at('predictions.csv').exists()
  (line,) = folder.read('summary.csv')
  for name, value in line.items():
    assert name == 'folds' or bool(value) == name.startswith('val_'), name
  looked_at = folder.at('fold_0/attention').glob('*.h5')
  assert {path.stem for path in looked_at} == held
  report = page.write(folder).read_text(encoding='utf-8')
  assert 'No test part' in report
  assert 'test parts' not in report
  assert 'cross-validation' not in report.split('<main>')[1].split('<h2>')[0]
  out = feature_folder.run(*args, module='ablations')
  assert 'test parts' not in out
  assert next_command.read(out)[0] == 'report'


def test_seeds_are_runs_of_one_program_and_their_mean(short, tmp_path):
  """The first is what it is alone, wherever features are; the others differ."""
  args, alone = short
  args = [*args, '--store=spread', f'--results_dir={tmp_path}']
  feature_folder.run(*args, '--seeds=2')
  folder = tmp_path / FOLDER
  first, second = folder / 'seed_1', folder / 'seed_2'
  assert_alike(first, alone, 1e-5)
  one, other, mean = map(probabilities, (first, second, folder))
  assert one.keys() == other.keys() == mean.keys()
  apart = 0
  for key, prob in mean.items():
    np.testing.assert_allclose(prob, np.mean([one[key], other[key]], 0), 1e-6)
    apart = max(apart, np.abs(np.subtract(one[key], other[key])).max())
  assert apart > 1e-3
  both = Folder(folder).read('predictions_seeds.csv')
  assert {row['seed'] for row in both} == {'1', '2'}
  values = [
    Folder(part).read('summary.json')['metrics']['auroc']['pooled']
    for part in (first, second, folder)
  ]
  (row,) = [
    r for r in Folder(folder).read('seeds.csv') if r['metric'] == 'auroc'
  ]
  want = np.mean(values[:2]), np.std(values[:2], ddof=1), values[2]
  got = [float(row[name]) for name in ('mean', 'std', 'of_mean_prob')]
  np.testing.assert_allclose(got, want, atol=2e-6)
  for fold in None, 9:  # Which is not finished either.
    with pytest.raises(ResultsError, match='seed_1, seed_2'):
      models.read(Folder(folder), fold)


def test_kmil_that_drops_nothing_is_dsmil(short, tmp_path):
  args = [*short[0], '--epochs=4', f'--results_dir={tmp_path}']
  feature_folder.run(*args, '--model=kmil', '--drop_fraction=0')
  feature_folder.run(*args, '--model=dsmil')
  assert_alike(tmp_path / FOLDER, tmp_path / 'dsmil_origin_s1', atol=1e-6)


def test_a_slide_file_that_cannot_be_read_costs_its_picture_only(
  short, tmp_path
):
  (tmp_path / 'slide_011.svs').write_bytes(b'not a slide')
  args = [*short[0], '--epochs=2', f'--results_dir={tmp_path}']
  process = feature_folder.script(*args, f'--slides_dir={tmp_path}')
  out, _ = process.communicate(timeout=200)
  assert process.returncode == 1
  assert 'slides without a heat map:\nslide_011.svs' in out
  assert (tmp_path / FOLDER / 'summary.json').exists()
  assert len(probabilities(tmp_path / FOLDER)) == 60


@pytest.fixture(scope='module')
def ablated(tmp_path_factory):
  """Flags of a small cohort, and the results of all settings."""
  folder = tmp_path_factory.mktemp('cohort')
  # Long enough for 10, 15 and 20 % to be different instances, and of one padded
  # length: the others here have several.
  rng = np.random.default_rng(0)
  bags, labels = feature_folder.planted(num_bags=30)
  bags = [np.r_[b, rng.normal(size=(20, b.shape[1]))][:24] for b in bags]
  args = [*feature_folder.write(folder, bags, labels), *QUICK, '--epochs=6']
  args.append(f'--results_dir={folder}')
  out = feature_folder.run(*args, module='ablations')
  script, flags = next_command.read(out)
  assert script == 'paper'
  assert {*args, '--table=4'} == {*flags}
  return args, folder / 'ablations_origin_s1'


@pytest.mark.parametrize(
  'setting,command',
  [
    ('lowest_0.10', []),
    # Eq. 3 as printed ranks the other way round.
    ('highest_0.15', ['--score=one_minus_var', '--drop_fraction=0.15']),
  ],
)
def test_a_setting_is_what_its_own_command_gives(ablated, setting, command):
  args, root = ablated
  assert {p.name for p in root.iterdir() if p.is_dir()} == set(SETTINGS)
  feature_folder.run(*args, *command, f'--exp_code={setting}_alone')
  alone = root.with_name(f'{setting}_alone_s1')
  assert_alike(root / setting, alone, atol=1e-4)


@pytest.mark.parametrize('shuffled', [False, True])
def test_the_mean_of_shifted_bags_is_told_apart(tmp_path, shuffled):
  """The floor finds what the mean shows, and nothing in shuffled labels."""
  rng = np.random.default_rng(0)
  labels = np.arange(90) % 3
  bags = [rng.normal(size=(5, 8)) for _ in labels]
  for bag, label in zip(bags, labels, strict=True):
    bag[:, label] += 3
  args = feature_folder.write(tmp_path, bags, labels)
  args += [f'--results_dir={tmp_path}', f'--shuffle_labels={shuffled}']
  mean_pooling.main(['mean_pooling', *args])
  summary = Folder(tmp_path / 'mean_pooling_origin_s2023').read('summary.json')
  assert np.sum(summary['confusion']) == 90
  auroc = summary['metrics']['auroc']['pooled']
  # The standard error of an AUROC of 0.5 is about 0.07 here.
  assert abs(auroc - 0.5) < 0.15 if shuffled else auroc > 0.99
  with pytest.raises(SystemExit, match='c=0'):
    mean_pooling.main(['mean_pooling', *args, '--c=0'])
