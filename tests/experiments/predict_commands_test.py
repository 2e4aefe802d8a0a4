"""The commands predict and export, as users give them."""

import signal

import feature_folder
import h5py
import numpy as np
from run_of_no_epoch import prob, rows, some_features

from experiments import export, predict
from experiments.prediction import bags, outputs
from experiments.run.results import Folder


def test_the_commands(finished, model_file, tmp_path, capsys):
  folder, _ = finished
  names = ['slide_000', 'slide_001']
  source = some_features(finished, tmp_path / 'new', names)
  (source / 'broken.h5').write_bytes(b'no features')
  other = some_features(finished, tmp_path / 'elsewhere/new', names)
  mixed = some_features(finished, tmp_path / 'mixed', ['slide_002'], mpp=0.5)
  some_features(finished, mixed, ['slide_003'], encoder='other')
  with h5py.File(
    some_features(finished, mixed, names) / 'slide_001.h5', 'a'
  ) as f:
    f['features'][0, 0] = np.nan
  run, new = f'--run={folder}', f'--features_dir={source}'
  out, mine = f'--results_dir={tmp_path}', tmp_path / 'mine.kmil'

  def end(script, *asked):
    """Returns how a command ends, and what it prints."""
    try:
      return script.main(['name', *asked]), capsys.readouterr().out
    except SystemExit as e:
      return e.code, capsys.readouterr().out

  assert end(export, run, f'--out={mine}')[0] is None
  # The same run gives the same file, wherever it is made.
  assert mine.read_bytes() == model_file.read_bytes()
  code, printed = end(predict, run, new, out, '--fold=2')
  assert code.startswith('error: 1 slides have no prediction:\n  broken')
  assert 'warning: 1 of 1 models are not calibrated' in printed
  assert 'warning: 2 slides have the ids of slides of the training: sl' in (
    printed
  )
  predicted = tmp_path / f'predict_{folder.name}_fold_2_new'
  assert len(rows(predicted / 'predictions.csv')) == 2
  code, printed = end(predict, run, new, out, '--fold=2', '--check')
  assert code == 1 and '/broken.h5: ' in printed
  for script, asked, message in (
    (export, [run], '--out is missing'),
    (export, [f'--out={mine}'], '--run=<results folder> is required'),
    (predict, [run, new, '--fold=3'], 'of its 3 folds, [3] have no model'),
    (predict, [run, new, f'--model={mine}'], 'Give one of --run and --model'),
    (predict, [f'--model={mine}', new, '--fold=1'], '--fold requires --run'),
    (predict, [run, new, '--weights=imagenet'], 'requires --slides_dir'),
    (predict, [run, f'--slides_dir={tmp_path}'], 'of encoder planted'),
    # A folder of the same name is not the same slides.
    (
      predict,
      [run, f'--features_dir={other}', out, '--fold=2'],
      f'features_dir: {source} before, {other} now',
    ),
  ):
    code, _ = end(script, *asked)
    assert code.startswith('error: ') and message in code
  # All that is wrong at once.
  code, printed = end(predict, run, f'--features_dir={mixed}', '--check')
  assert code == 1
  found = [x for x in printed.splitlines() if x.startswith('problem: ')]
  for problem, message in zip(
    found,
    (
      'features of different encoder are mixed',
      'features of different mpp are mixed: 0.5, 1.0; other than the rest are'
      ' slide_002',
      '001.h5: NaN',
    ),
    strict=True,
  ):
    assert message in problem


# Without models; and dead once half of the fifth file is written.
_ALONE = """
import sys
for name in ('kmil_jax.models', 'kmil_jax.train', 'experiments.bags.crossval'):
  sys.modules[name] = None
"""
_KILLED = """
import os, signal
from experiments.maps import tile_scores
write, written = tile_scores.write, []
def killed(path, arrays, attributes):
  if len(written) == 4:
    path.with_name('.' + path.name + '.part').write_bytes(b'half of it')
    os.kill(os.getpid(), signal.SIGKILL)
  written.append(path)
  write(path, arrays, attributes)
tile_scores.write = killed
"""


def test_a_killed_prediction_by_file_goes_on_without_the_models_code(
  finished, models, model_file, tmp_path
):
  names = ['slide_000', 'slide_001', 'slide_002']
  source = some_features(finished, tmp_path / 'new', names)
  arguments = [
    f'--model={model_file}',
    f'--features_dir={source}',
    f'--results_dir={tmp_path}',
    '--exp_code=out',
    '--nocalibrate',
  ]
  process = feature_folder.script(
    *arguments, module='predict', before=_ALONE + _KILLED
  )
  printed, _ = process.communicate(timeout=120)
  assert process.returncode == -signal.SIGKILL, printed
  assert not (tmp_path / 'out' / 'predictions.csv').exists()
  printed = feature_folder.run(*arguments, module='predict', before=_ALONE)
  assert 'done before: 1 of 3 slides' in printed
  card, function = models
  outputs.predict(bags.find(source, card), card, function, Folder(tmp_path))
  want = rows(tmp_path / 'predictions.csv')
  got = rows(tmp_path / 'out' / 'predictions.csv')
  for one, other in zip(want, got, strict=True):
    assert one['slide_id'] == other['slide_id']
    for i in range(3):
      np.testing.assert_allclose(
        prob(other, f'fold_{i}_'), prob(one, f'fold_{i}_'), atol=1e-6
      )
