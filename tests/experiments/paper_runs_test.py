"""What is missing for a table is run, once, by the command one would type."""

import types

import feature_folder
import numpy as np
from paper_folders import K, run, value
import pytest

from experiments.papers import runs


@pytest.fixture
def commands(monkeypatch):
  """Commands that fail, with the status that each is to end with."""
  ended = types.SimpleNamespace(seen=[], status=lambda count: 1)

  def end(command, **_):
    ended.seen.append(command)
    status = ended.status(len(ended.seen))
    return types.SimpleNamespace(returncode=status)

  monkeypatch.setattr(runs.subprocess, 'run', end)
  return ended


@pytest.mark.parametrize(('status', 'code'), [(3, 3), (-9, 137)])
def test_a_failing_command_ends_the_script(
  commands, tmp_path, capsys, status, code
):
  commands.status = lambda count: status
  with pytest.raises(SystemExit) as e:
    run('--table=1', K, f'--results_dir={tmp_path}')
  assert e.value.code == code
  err = capsys.readouterr().err
  assert 'failed: python -m experiments.kmil --model=abmil' in err
  assert not (tmp_path / 'paper_s2023').exists()


def test_check_is_passed_on_to_every_command(commands, tmp_path):
  commands.status = lambda count: count == 2
  with pytest.raises(SystemExit) as e:
    run('--table=1', '--check', K, f'--results_dir={tmp_path}')
  assert e.value.code == 1  # The second of them had problems; the rest ran.
  assert len(commands.seen) == 5
  assert all('--check' in command for command in commands.seen)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'Give one of --table and --figure'),
    (['--table=1', '--figure=2'], 'Give one of'),
    (['--table=1', '--task=a'], '--task follows from the table or figure'),
    (['--table=1', '--models=kmil,clam'], 'abmil'),
    (['--table=1', '--models='], '--models is empty. Name some of abmil'),
    (['--table=6', '--models=kmil'], '--models has no effect here'),
    (['--figure=2', '--models=abmil'], 'lacks kmil'),
    (
      ['--table=2', '--csv_path=a.csv', '--features_dir=b'],
      'table 2 needs a second cohort. Give --external_csv and'
      ' --external_features_dir',
    ),
    (['--figure=4', '--external_csv=a'], 'requires --external_features_dir'),
  ],
)
def test_flags_that_do_not_fit_are_refused(commands, args, message):
  with pytest.raises(SystemExit) as e:
    run(*args)
  assert str(e.value.code).startswith('error: ') and message in e.value.code
  assert commands.seen == []


def test_an_experiment_of_ones_own_name_has_its_own_folders(commands, tmp_path):
  for table, code in (('4', 'short_ablations_origin'), ('6', 'short_kmil_a')):
    with pytest.raises(SystemExit):
      run(f'--table={table}', '--exp_code=short', f'--results_dir={tmp_path}')
    assert value(commands.seen[-1], '--exp_code') == code


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Two models, trained by the commands that a first table starts."""
  folder = tmp_path_factory.mktemp('cohort')
  bags, labels = feature_folder.planted(num_bags=18, classes=2)
  bags = [np.resize(bag, (8, bag.shape[1])) for bag in bags]  # Compiles once.
  args = [*feature_folder.write(folder, bags, labels), '--k=3', '--epochs=2']
  args += ['--models=abmil,dsmil', '--exp_code=tiny', '--seed=4']
  args += ['--select=last', f'--results_dir={folder}', '--table=1']
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_NUM_CPU_DEVICES', '1')
    run(*args)
  return args, folder


def test_what_is_missing_is_trained_once(trained, monkeypatch, capsys):
  args, folder = trained
  for model in ('abmil', 'dsmil'):
    found = folder / f'tiny_{model}_origin_s4'
    assert len(list(found.glob('fold_*/predictions.csv'))) == 3
  monkeypatch.setattr(runs.subprocess, 'run', None)
  run(*args)
  out, err = capsys.readouterr()
  assert out == (folder / 'tiny_paper_s4' / 'table_1.md').read_text()
  assert '$ python' not in err
  assert 'labels.csv' in out and '18 slides of 18 cases' in out
  assert 'phantom' not in out
  # The paper's numbers of its classes 0 and 1 stand beside those so named.
  assert 'Table 1, p. 4 | 76.30 | 79.86 | 71.89 | 73.94 |' in out


@pytest.mark.parametrize(
  ('flag', 'model'),
  [
    ('--epochs=3', 'abmil'),
    ('--lr=0.5', 'abmil'),
    ('--shuffle_labels', 'abmil'),
    (None, 'dsmil'),  # A flag of its own command, on an earlier day.
  ],
)
def test_what_was_made_otherwise_is_left_to_the_command(
  trained, commands, flag, model
):
  args, folder = trained
  config = folder / 'tiny_dsmil_origin_s4' / 'config.json'
  before, args = config.read_text(), [*args, *filter(None, [flag])]
  if not flag:
    assert '_instance": false' in before
    config.write_text(before.replace('_instance": false', '_instance": true'))
  with pytest.raises(SystemExit):
    run(*args)
  config.write_text(before)
  assert [value(command, '--model') for command in commands.seen] == [model]
