"""The whole command: contract of its output, recovery, refusals."""

import json
import random
import signal
import socket
import time

import feature_folder
import numpy as np
import pytest
import script_process

from experiments import kmil
from experiments.maps import tile_scores

# Saves often enough for a kill to find a checkpoint to go on from.
SAVE_OFTEN = (
  script_process.HASTY
  + 'from kmil_jax import loop; loop.SECONDS_BETWEEN_SAVES = 0.3'
)
QUICK = ['--k=3', '--seed=1', '--lr=0.005']


@pytest.fixture(scope='module')
def data_flags(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cohort')
  return feature_folder.write(folder, *feature_folder.planted())


@pytest.fixture(scope='module')
def finished(data_flags, tmp_path_factory):
  """All folds of a run that nobody disturbed."""
  results = tmp_path_factory.mktemp('results')
  args = [*data_flags, *QUICK, '--epochs=25', f'--results_dir={results}']
  out = feature_folder.run(*args, before=SAVE_OFTEN)
  return args, results / 'kmil_origin_s1', out


def test_the_results_folder_keeps_its_contract(finished):
  _, folder, out = finished
  summary = json.loads((folder / 'summary.json').read_text())
  assert summary['model'] == 'kmil'
  assert summary['k'] == 3
  assert set(summary['metrics']) == {
    'accuracy',
    'balanced_accuracy',
    'f1_macro',
    'f1_weighted',
    'auroc',
  }
  for metric in summary['metrics'].values():
    assert metric['ci_low'] <= metric['pooled'] <= metric['ci_high']
    assert len(metric['per_fold']) == 3
  assert np.sum(summary['confusion']) == 60
  lines = (folder / 'predictions.csv').read_text().splitlines()
  assert lines[0] == (
    'case_id,slide_id,fold,split,label,pred,prob_0,prob_1,prob_2'
  )
  # Every slide is test once and val once.
  assert len(lines) == 1 + 60
  others = (folder / 'validation_predictions.csv').read_text().splitlines()
  assert len(others) == 1 + 60 and others[0] == lines[0]
  header = (folder / 'summary.csv').read_text().splitlines()[0]
  assert header.startswith('folds,test_auc,val_auc,test_acc,val_acc')
  assert len((folder / 'cohort.csv').read_text().splitlines()) == 1 + 60
  assert 'kmil: 3-fold' in (folder / 'report.html').read_text('utf-8')
  for name in ('roc.png', 'confusion.png'):
    assert (folder / 'figures' / name).stat().st_size > 5000
  assert 'auroc' in out
  assert f'{summary["metrics"]["auroc"]["pooled"]:.3f}' in out
  assert not (folder / 'state').exists()


def test_planted_instances_are_learnt_and_found(finished):
  _, folder, _ = finished
  summary = json.loads((folder / 'summary.json').read_text())
  assert summary['metrics']['auroc']['pooled'] > 0.9
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
  assert len(hits) == 60
  assert np.mean(hits) > 0.7


def test_metrics_are_recorded_for_every_epoch_of_both_stages(finished):
  _, folder, _ = finished
  lines = (folder / 'fold_2' / 'metrics.jsonl').read_text().splitlines()
  epochs = [(x['stage'], x['epoch']) for x in map(json.loads, lines)]
  model = [('model', e) for e in range(25)]
  chooser = [('chooser', e) for e in range(len(epochs) - 25)]
  assert epochs == chooser + model


def test_the_same_command_again_trains_nothing(finished):
  args, folder, _ = finished
  before = (folder / 'predictions.csv').read_bytes()
  never = script_process.HASTY + 'from kmil_jax import loop; loop.fit = None'
  out = feature_folder.run(*args, before=never)
  assert 'done before: 3 of 3 runs' in out
  assert (folder / 'predictions.csv').read_bytes() == before


# Fold 1 diverges in an epoch of its model.
DIVERGING = (
  script_process.HASTY
  + """
from kmil_jax import programs
train = programs.Program.train
def broken(self, states, epoch, *args):
  states, sums = train(self, states, epoch, *args)
  if epoch == {epoch} and self.task.model.__class__.__name__ == 'DSMIL':
    sums['loss'][1] = float('nan')
  return states, sums
programs.Program.train = broken
"""
)


@pytest.mark.parametrize('epoch', [0, 20])
def test_a_fold_that_diverges_stops_alone_and_is_named(
  finished, tmp_path, epoch
):
  args, whole, _ = finished
  args = [*args[:-1], f'--results_dir={tmp_path}']
  folder = tmp_path / 'kmil_origin_s1'
  for before in (DIVERGING.format(epoch=epoch), script_process.HASTY):
    process = feature_folder.script(*args, before=before)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    error = out[out.index('error:') :]
    assert 'fold_1: the loss of the model became infinite or NaN in' in error
    assert f'epoch {epoch}.' in error and '--lr' in error
    assert 'fold_0' not in error and 'fold_2' not in error
    for fold in (0, 2):
      path = f'fold_{fold}/predictions.csv'
      assert (folder / path).read_bytes() == (whole / path).read_bytes()
    record = json.loads((folder / 'fold_1' / 'diverged.json').read_text())
    assert record['model']['epoch'] == epoch
    assert -1 <= record['model']['kept'] < max(epoch, 1)
    kept = record['model']['kept'] >= 0
    assert (folder / 'fold_1' / 'predictions.csv').exists() == kept
    assert kept == (epoch > 0)
  assert (folder / 'report.html').exists()


def test_other_settings_in_the_same_folder_are_refused(finished):
  args, _, _ = finished
  process = feature_folder.script(*args, '--lr=0.01')
  out, _ = process.communicate(timeout=120)
  assert process.returncode != 0
  assert 'lr: 0.005 before, 0.01 now' in out
  assert 'exp_code' in out


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


def test_a_run_killed_thrice_ends_with_the_same_predictions(finished, tmp_path):
  """In each stage at some epoch, and where predictions are being written."""
  args, folder, _ = finished
  args = [*args, f'--results_dir={tmp_path}']
  results = tmp_path / 'kmil_origin_s1'
  metrics = results / 'fold_1' / 'metrics.jsonl'
  for stage in ('chooser', 'model'):
    epochs, name = random.randint(2, 20), f'"stage": "{stage}"'
    killed(
      args,
      lambda n=epochs, name=name: (
        metrics.exists() and metrics.read_text().count(name) >= n
      ),
      lambda stage=stage: results.glob(f'state/runs_0-2/{stage}/*'),
    )
  killed(
    args,
    (results / 'fold_0' / 'predictions.csv').exists,
    lambda: results.glob('state/runs_0-2/*/*'),
  )
  feature_folder.run(*args, before=SAVE_OFTEN)
  for name in ('predictions.csv', 'fold_1/metrics.jsonl'):
    assert (results / name).read_bytes() == (folder / name).read_bytes()
  assert not (results / 'state').exists()


def probabilities(path):
  lines = path.read_text().splitlines()[1:]
  return np.array([[float(x) for x in line.split(',')[6:]] for line in lines])


def losses(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return np.array([json.loads(line)['train_loss'] for line in lines])


@pytest.fixture(scope='module')
def short(data_flags, tmp_path_factory):
  """All folds of a run of few epochs."""
  results = tmp_path_factory.mktemp('short')
  args = [*data_flags, *QUICK, '--epochs=8', f'--results_dir={results}']
  feature_folder.run(*args)
  return args, results / 'kmil_origin_s1'


@pytest.mark.parametrize('how', [[], ['--stream']])
def test_one_fold_alone_or_streamed_gives_what_all_folds_gave(
  short, tmp_path, how
):
  args, folder = short
  feature_folder.run(*args, '--fold=1', *how, f'--results_dir={tmp_path}')
  got, want = tmp_path / 'kmil_origin_s1' / 'fold_1', folder / 'fold_1'
  np.testing.assert_allclose(
    probabilities(got / 'predictions.csv'),
    probabilities(want / 'predictions.csv'),
    atol=1e-4,
  )
  np.testing.assert_allclose(losses(got), losses(want), atol=1e-5)


@pytest.mark.parametrize(
  'wrong,message',
  [
    ('--batch_size=3', '--batch_size=3 must be a multiple of the 4 devices'),
    ('--model=abmil --drop=highest', '--kmil_drop has no effect with'),
    ('--distill=mas', '--distill has no effect with --model=kmil'),
    (
      '--model=dtfd --instance_score=last',
      '--dtfd_rank_by has no effect with --distill=afs, only with maxs',
    ),
    (
      '--model=dtfd --distill=maxs --pseudo_bags=8',
      '--total_instances=4 must be at least --pseudo_bags=8',
    ),
    ('--external_csv=x.csv', '--external_csv requires --external_features_dir'),
    ('--external_phantom', '--external_phantom requires the phantom cohort'),
    ('--features_dir=', 'a path cannot be empty'),
    ('--k=25', 'class 2 has 20 cases: fewer than 25 folds'),
    ('--fold=7', '--fold=7: folds are 0 to 2'),
    ('--labels=0:x,9:y', 'no slide has the label 9'),
    ('--nonsense=1', "Unknown command line flag 'nonsense'"),
    ('--drop_fraction=0.12345', 'must be a number of thousandths'),
    ('extra', "'extra' is not a flag"),
  ],
)
def test_wrong_flags_get_one_clear_message(data_flags, wrong, message):
  with pytest.raises(SystemExit) as error:
    kmil.main(['kmil', *data_flags, *QUICK, *wrong.split()])
  assert message in str(error.value)


def test_kmil_that_drops_nothing_is_dsmil(data_flags, tmp_path):
  args = [*data_flags, *QUICK, '--epochs=4', f'--results_dir={tmp_path}']
  feature_folder.run(*args, '--model=kmil', '--drop_fraction=0')
  feature_folder.run(*args, '--model=dsmil')
  np.testing.assert_allclose(
    probabilities(tmp_path / 'kmil_origin_s1' / 'predictions.csv'),
    probabilities(tmp_path / 'dsmil_origin_s1' / 'predictions.csv'),
    atol=1e-6,
  )


def test_two_processes_write_what_one_wrote(short, tmp_path):
  args, folder = short
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  pod = [
    feature_folder.script(
      *args,
      f'--results_dir={tmp_path}',
      f'--coordinator={address}',
      '--num_processes=2',
      f'--process_id={rank}',
    )
    for rank in range(2)
  ]
  try:
    logs = [process.communicate(timeout=200)[0] for process in pod]
  finally:
    for process in pod:
      process.kill()
  assert [process.returncode for process in pod] == [0, 0], '\n'.join(logs)
  for fold in range(3):
    got = tmp_path / 'kmil_origin_s1' / f'fold_{fold}'
    want = folder / f'fold_{fold}'
    np.testing.assert_allclose(losses(got)[:5], losses(want)[:5], atol=1e-5)
    name = 'predictions.csv'
    np.testing.assert_allclose(
      probabilities(got / name), probabilities(want / name), atol=1e-3
    )
    assert (got / 'checkpoints' / '0').is_dir()


def test_a_slide_file_that_cannot_be_read_costs_its_picture_only(
  finished, tmp_path
):
  args, _, _ = finished
  (tmp_path / 'slides').mkdir()
  (tmp_path / 'slides' / 'slide_011.svs').write_bytes(b'not a slide')
  args = [*args, '--epochs=2', f'--results_dir={tmp_path / "results"}']
  process = feature_folder.script(*args, f'--slides_dir={tmp_path / "slides"}')
  out, _ = process.communicate(timeout=200)
  assert process.returncode == 1
  assert 'slides without a heat map:\nslide_011.svs' in out
  folder = tmp_path / 'results' / 'kmil_origin_s1'
  assert (folder / 'summary.json').exists()
  assert len((folder / 'predictions.csv').read_text().splitlines()) == 61
