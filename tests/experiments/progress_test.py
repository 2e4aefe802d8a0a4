"""metrics.jsonl: one line per epoch and fold, also after a kill."""

import json

from progress_lines import FOLDS, history, of_folders, progress, report
import pytest

from experiments.run.progress import (
  Progress,
  below,
  raise_if_diverged,
  record_divergence,
)


def lines_of(tmp_path, fold):
  text = (tmp_path / f'fold_{fold}' / 'metrics.jsonl').read_text()
  assert text.endswith('\n')
  return [json.loads(line) for line in text.splitlines()]


def places(tmp_path, fold):
  return [(x['stage'], x['epoch']) for x in lines_of(tmp_path, fold)]


def test_every_epoch_of_every_fold_is_a_line(tmp_path):
  report(progress(tmp_path, 'model', 3), range(3))
  assert places(tmp_path, 2) == [('model', 0), ('model', 1), ('model', 2)]
  assert lines_of(tmp_path, 5)[2] == {
    'stage': 'model',
    'epoch': 2,
    'train_loss': 4.0,
    'val_loss': 2.0,
    'val_accuracy': 0.75,
    'val_f1_macro': 0.5,
    'val_auroc': None,
    'best_epoch': 2,
  }


def test_a_stopped_fold_has_no_more_lines(tmp_path):
  report(progress(tmp_path, 'chooser', 6), range(6), stopped_from=4)
  assert [e for _, e in places(tmp_path, 2)] == [0, 1, 2, 3]
  assert [e for _, e in places(tmp_path, 5)] == list(range(6))


@pytest.mark.parametrize('cut', ['', '{"stage": "model", "ep', '{'])
def test_after_a_kill_no_epoch_is_told_twice(tmp_path, cut):
  report(progress(tmp_path, 'chooser', 2), range(2))
  report(progress(tmp_path, 'model', 9), range(5))
  with (tmp_path / 'fold_2' / 'metrics.jsonl').open('a') as f:
    f.write(cut)
  # The last checkpoint was that of epoch 2.
  report(progress(tmp_path, 'model', 9), range(3, 6))
  want = [('chooser', e) for e in range(2)] + [('model', e) for e in range(6)]
  for fold in FOLDS:
    assert places(tmp_path, fold) == want


def test_a_chooser_that_goes_on_makes_its_models_lines_void(tmp_path):
  report(progress(tmp_path, 'chooser', 2), range(2))
  report(progress(tmp_path, 'model', 9), range(5))
  report(progress(tmp_path, 'chooser', 2), range(1, 2))
  assert places(tmp_path, 5) == [('chooser', 0), ('chooser', 1)]


def test_a_stage_that_is_done_leaves_its_lines(tmp_path):
  report(progress(tmp_path, 'model', 2), range(2))
  report(progress(tmp_path, 'model', 2), range(0))
  assert places(tmp_path, 2) == [('model', 0), ('model', 1)]


def test_the_bar_counts_epochs_of_before(tmp_path, capsys):
  report(progress(tmp_path, 'model', 8), range(5, 8))
  shown = capsys.readouterr().err
  assert 'model x 2 runs' in shown and '8/8' in shown
  assert 'val_f1_macro=0.375' in shown


def test_runs_that_share_a_stage_are_told_of_it_alike(tmp_path):
  folders = [[tmp_path / 'a', tmp_path / 'b'], [tmp_path / 'c']]
  report(of_folders(folders, 'chooser', 2), range(2))
  a, b, c = (
    (tmp_path / x / 'metrics.jsonl').read_text().splitlines() for x in 'abc'
  )
  assert a == b != c and len(c) == 2


def test_a_training_without_stages_begins_its_file_anew(tmp_path):
  columns = {'loss': 'val_loss', 'best_epoch': 'best_epoch'}
  for epochs in ((0, 1, 2), (2, 3)):  # The last checkpoint was that of epoch 2.
    shown = Progress([[tmp_path]], columns, 4, name='x', unit='tile', steps=32)
    for epoch in epochs:
      shown.advance(epoch, 16)
      shown.report(history(epoch + 1))
    shown.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {'epoch': e, 'loss': 1.0, 'best_epoch': e} for e in range(4)
  ]


def test_runs_that_diverged_are_named(tmp_path):
  folders = [tmp_path / name for name in 'abc']
  for folder in folders:
    record_divergence(folder, {'model': (3, 1)})
  record_divergence(folders[1], {})  # Trained anew.
  record_divergence(folders[2], {'chooser': (5, 4), 'model': (0, -1)})
  with pytest.raises(FloatingPointError) as e:
    raise_if_diverged(folders)
  first, *others = str(e.value).splitlines()
  assert f'{folders[0]}: the loss of the model' in first
  assert 'epoch 3. Epoch 1 was kept' in first
  assert 'epoch 5. Epoch 4 was kept' in others[0]
  assert 'epoch 0. No epoch' in others[1]
  assert '--lr' in others[-1]
  raise_if_diverged(folders[1:2])
  assert below(tmp_path) == [folders[0], folders[2]]
