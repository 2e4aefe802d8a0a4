"""TensorBoard's event files say what metrics.jsonl says."""

import json

from absl import flags
from absl.testing import flagsaver
import feature_folder
import progress_lines
import pytest

from data.host_tensorflow import tf
from experiments import crossval, kmil
from experiments.run.progress import Progress


def events_of(folder):
  """Steps and values of the scalars in a folder's event files, by name."""
  found = {}
  for path in folder.glob('events.out.tfevents.*'):
    # It checks the sums of every record.
    for event in tf.compat.v1.train.summary_iterator(str(path)):
      for value in event.summary.value:
        found.setdefault(value.tag, []).append((event.step, value.simple_value))
  return found


def scalars_of(folder):
  """The same, from metrics.jsonl."""
  found = {}
  for line in map(
    json.loads, (folder / 'metrics.jsonl').read_text().splitlines()
  ):
    stage = f'{line["stage"]}/' if 'stage' in line else ''
    for name, value in line.items():
      if name not in ('stage', 'epoch') and value is not None:
        scalars = found.setdefault(stage + name, [])
        scalars.append((line['epoch'], pytest.approx(value, rel=1e-6)))
  return found


@pytest.mark.parametrize('before', [True, False])
def test_events_say_what_metrics_say_also_after_a_kill(tmp_path, before):
  """Also where only the command that goes on asks for them."""
  progress, report = progress_lines.progress, progress_lines.report
  report(progress(tmp_path, 'chooser', 2, before), range(2))
  killed = progress(tmp_path, 'model', 9, before)
  killed.close = lambda: None
  report(killed, range(5))
  folder = tmp_path / 'fold_2'
  assert not before or events_of(folder) == scalars_of(folder)
  for path in folder.glob('events*'):  # The kill cut the last record.
    cut = path.read_bytes()[:-3]
    path.unlink()
    path.with_name('events.out.tfevents.1.kmil_jax').write_bytes(cut)
  # The last checkpoint was that of epoch 2.
  report(progress(tmp_path, 'model', 9, True), range(3, 6))
  for fold in progress_lines.FOLDS:
    got = events_of(tmp_path / f'fold_{fold}')
    assert got == scalars_of(tmp_path / f'fold_{fold}')
    assert [step for step, _ in got['model/val_loss']] == list(range(6))
  assert 'model/val_auroc' not in got  # Undefined in this fold.


def test_without_the_flag_there_are_no_events(tmp_path):
  progress = progress_lines.progress(tmp_path, 'model', 1)
  progress_lines.report(progress, range(1))
  assert events_of(tmp_path / 'fold_2') == {}


def test_of_patches_too_also_after_a_kill(tmp_path):
  columns = {'val_loss': 'val_loss', 'val_auroc': 'val_auroc'}
  for epochs in ((1, 2, 3), (3, 4)):  # The second begins from its checkpoint.
    shown = Progress([[tmp_path]], columns, 4, name='x', tensorboard=True)
    for epoch in epochs:
      shown.report(progress_lines.history(epoch))
  shown.close()
  got = events_of(tmp_path)
  assert got == scalars_of(tmp_path)
  assert [step for step, _ in got['val_auroc']] == [0, 1, 2, 3]


def test_the_flag_reaches_the_training(tmp_path, monkeypatch):
  class Asked(Exception):
    """Ends the script where training would begin."""

  def progress(*args, tensorboard, **options):
    raise Asked(tensorboard)

  data = feature_folder.write(tmp_path, *feature_folder.planted(12, 4, 2))
  monkeypatch.setattr(crossval.progress, 'Progress', progress)
  args = ['kmil', *data, '--k=3', '--model=abmil', f'--results_dir={tmp_path}']
  with flagsaver.flagsaver(), pytest.raises(Asked) as asked:
    kmil.main(flags.FLAGS([*args, '--tensorboard']))
  assert asked.value.args == (True,)
