"""The commands predict and export, as users give them."""

import json
import signal

import feature_folder
import h5py
import numpy as np
from run_of_no_epoch import prob, rows, some_features

from experiments.prediction import bags, loop, outputs

# Runs a script for each list of its name and flags, and notes how it ends.
_RUNS = """
import json
from absl import flags
from absl.testing import flagsaver
from experiments import export, predict
outcomes = []
for module, *arguments in {runs}:
  with flagsaver.flagsaver():
    try:
      dict(export=export, predict=predict)[module].main(
        flags.FLAGS([module, *arguments])
      )
      outcomes.append(0)
    except BaseException as error:
      outcomes.append(getattr(error, 'code', str(error)))
print(json.dumps(outcomes))
raise SystemExit
"""


def test_the_commands(finished, model_file, tmp_path):
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
  runs = [
    ['export', run, f'--out={mine}'],
    ['export', run, f'--out={mine}', '--fold=two'],
    ['export', run],
    ['predict', run, new, out, '--fold=2'],
    ['predict', run, new, out, '--fold=2', '--check'],
    ['predict', run, new, out, '--fold=3'],
    ['predict', run, new, out, f'--model={mine}'],
    ['predict', f'--model={mine}', new, '--fold=1'],
    ['predict', run, new, '--weights=imagenet'],
    ['predict', run, f'--slides_dir={tmp_path}'],
    ['predict', run, f'--features_dir={other}', out, '--fold=2'],
    ['predict', run, f'--features_dir={mixed}', '--check'],
  ]
  before = _RUNS.format(runs=runs)
  printed = feature_folder.run(module='predict', before=before)
  codes = json.loads(printed.splitlines()[-1])
  assert codes[0] == 0
  # The same run gives the same file, wherever it is made.
  assert mine.read_bytes() == model_file.read_bytes()
  assert "--fold=two: give a number, or 'ensemble'" in codes[1]
  assert 'give --run and --out' in codes[2]
  assert codes[3].startswith('error: 1 slides have no prediction:\n  broken')
  assert 'warning: 2 slides have the ids of slides of the training: sl' in (
    printed
  )
  assert codes[4] == 1 and 'problem: broken: ' in printed
  predicted = tmp_path / f'predict_{folder.name}_fold_2_new'
  assert len(rows(predicted / 'predictions.csv')) == 2
  assert 'folds of' in codes[5] and 'are 0 to 2' in codes[5]
  assert 'give one of --run and --model' in codes[6]
  assert '--fold goes with --run' in codes[7]
  assert '--weights goes with --slides_dir' in codes[8]
  # A folder of the same name is not the same slides.
  assert f'features_dir: {source} before, {other} now' in codes[10]
  assert 'features of encoder planted' in codes[9]
  # All that is wrong at once.
  assert codes[11] == 1
  told = [x for x in printed.splitlines() if x.startswith('problem: ')][-3:]
  for problem, said in zip(
    told,
    ('slide_002: mpp 0.5, not 1.0', 'slide_003: encoder other', '001.h5: NaN'),
    strict=True,
  ):
    assert said in problem


# Without models; and dead once half of the fifth file is written.
_ALONE = """
import sys
for name in ('kmil_jax.models', 'kmil_jax.train', 'experiments.bags.crossval'):
  sys.modules[name] = None
"""
_KILLED = """
import os, signal
from experiments import files
write_h5, written = files.write_h5, []
def killed(path, arrays, attributes):
  if len(written) == 4:
    path.with_name('.' + path.name + '.part').write_bytes(b'half of it')
    os.kill(os.getpid(), signal.SIGKILL)
  written.append(path)
  write_h5(path, arrays, attributes)
files.write_h5 = killed
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
  found, _ = bags.check(source, models.card)
  loop.predict(found, models, tmp_path)
  card = models.card.uncalibrated()
  outputs.write_tables(tmp_path, card, names, [])
  want = rows(tmp_path / 'predictions.csv')
  got = rows(tmp_path / 'out' / 'predictions.csv')
  for one, other in zip(want, got, strict=True):
    assert one['slide_id'] == other['slide_id']
    for i in range(3):
      np.testing.assert_allclose(
        prob(other, f'fold_{i}_'), prob(one, f'fold_{i}_'), atol=1e-6
      )
