"""A results folder: who writes into it, and what its files are.

One of the first edition is read, and goes on, in tests/golden.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import run_of_no_epoch
from safetensors.numpy import save

from experiments import kmil
from experiments.evaluation import figures
from experiments.reporting import page
from experiments.run import results
from experiments.run.options import OptionError, field
from experiments.run.results import Folder, ResultsError
from experiments.run.start import Findings


@dataclasses.dataclass(frozen=True)
class Training:
  """Options."""

  seed: int = field(1, 'Seed.')
  lr: float = field(2e-4, 'Rate.')
  labels: tuple[str, ...] | None = field(('a:b',), 'Labels.')
  maps: int = field(12, 'Maps.', result=False)


INPUTS = {'labels_sha256': 'abc'}


def begin(path, training=Training(), inputs=INPUTS):
  with results.opened(path, [training], inputs, {'classes': ['a']}) as folder:
    return folder


def test_a_folder_is_opened_again_with_the_same_options(tmp_path, monkeypatch):
  folder = begin(tmp_path)
  config = folder.config()
  assert config.options(Training) == [Training()]
  assert config.inputs == INPUTS and config.cohort == {'classes': ['a']}
  (made_by,) = config.made_by
  assert made_by['versions'].keys() >= {'python', 'jax', 'flax', 'optax'}
  found = Findings()
  found.add_folder(tmp_path)
  assert not found.problems and 'holds results' in found.warnings[0]
  before = folder.read('config.json')
  begin(tmp_path)
  assert folder.read('config.json') == before
  begin(tmp_path, Training(maps=0))  # What is drawn decides nothing.
  assert folder.read('config.json')['options']['maps'] == 0
  monkeypatch.setattr(results, '_commit', lambda: 'another')
  made_by = begin(tmp_path).config().made_by
  assert [one['commit'] == 'another' for one in made_by] == [False, True]


def test_a_check_names_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda *_: False)  # As on a read-only disk.
  found = Findings()
  found.add_folder(tmp_path / 'results' / 'run_s1')
  (problem,) = found.problems
  assert problem.startswith(f'{tmp_path}: you may not')


def test_a_report_is_the_newest_until_something_changes(tmp_path):
  folder = begin(tmp_path)
  assert not folder.is_newest('report.html')
  for name, text in ('fold_0/a.csv', '1'), ('report.html', 'of 1'):
    folder.write(name, text)
  begin(tmp_path)
  folder.write('fold_0/a.csv', '1')
  assert folder.is_newest('report.html')
  folder.write('fold_0/a.csv', '2')
  assert not folder.is_newest('report.html')


def test_what_did_not_change_is_not_drawn_again(
  finished, tmp_path, monkeypatch
):
  folder, drawn = shutil.copytree(finished[0], tmp_path / 'kmil_s1'), []
  monkeypatch.setattr(figures, 'draw', lambda *_: None)

  def write(folder):
    drawn.append(folder)
    folder.write('report.html', f'{len(drawn)}')

  monkeypatch.setattr(page, 'write', write)
  command = run_of_no_epoch.command(finished[0].parent, tmp_path)
  kmil.main(command)  # config.json names another --results_dir.
  kmil.main(command)
  assert len(drawn) == 1
  (folder / 'figures/new.png').touch()
  kmil.main(command)
  assert len(drawn) == 2


def test_other_options_and_inputs_are_refused_with_their_list(tmp_path):
  folder = begin(tmp_path)
  before = folder.at('config.json').read_bytes()
  with pytest.raises(ResultsError) as e:
    begin(tmp_path, Training(seed=2, maps=0), {'labels_sha256': 'xyz'})
  assert str(e.value).splitlines() == [
    f'{tmp_path} holds results of other settings:',
    '  seed: 1 before, 2 now',
    '  labels_sha256: abc before, xyz now',
    'Choose another --exp_code, or remove the folder.',
  ]
  assert folder.at('config.json').read_bytes() == before


@pytest.mark.parametrize(
  'call', ['-m experiments.{}', '-m experiments {}', '/venv/bin/kmil_jax {}']
)
def test_a_folder_of_another_script_is_refused(tmp_path, monkeypatch, call):
  """Options that both have may well agree."""
  for script in 'kmil', 'ablations':
    command = f'python {call.format(script)} --k=3'
    made_by = {'versions': {}, 'commit': None, 'command': command}
    monkeypatch.setattr(results, '_made_by', lambda made_by=made_by: made_by)
    begin(tmp_path / script)
  with pytest.raises(ResultsError, match=r'holds results of experiments\.kmil'):
    begin(tmp_path / 'kmil')
  # By the same script, however it is called, and where that is not known.
  for command in (
    '-m experiments.kmil',
    '-m ipykernel',
    '/my/experiments/all.py',
  ):
    made_by = {'versions': {}, 'commit': None, 'command': f'python {command}'}
    monkeypatch.setattr(results, '_made_by', lambda made_by=made_by: made_by)
    begin(tmp_path / 'kmil')


@pytest.mark.parametrize(
  'change,message',
  [
    (lambda content: content | {'more': 1}, 'unknown entries more'),
    (lambda content: content | {'options': {'more': 1}}, 'unknown options'),
    (lambda content: [], 'no record of a run'),
    (lambda content: content | {'cohort': {'width': -8}}, 'no record of a run'),
    (lambda content: content | {'cohort': {'width': 2**40}}, 'no record'),
  ],
)
def test_what_is_no_config_of_ours_is_refused(tmp_path, change, message):
  folder = begin(tmp_path)
  folder.write('config.json', change(folder.read('config.json')))
  with pytest.raises((OptionError, ResultsError), match=message):
    folder.config().options(Training)


HOLD = """
import pathlib, sys
from experiments.run import results
with results.opened(pathlib.Path(sys.argv[1]), [], {}):
  print('opened', flush=True)
  sys.stdin.read()
"""


def test_a_second_process_is_told_who_is_at_work(tmp_path):
  other = subprocess.Popen(
    [sys.executable, '-c', HOLD, tmp_path],
    cwd=pathlib.Path(__file__).parents[2],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert other.stdout.readline() == b'opened\n'
  with pytest.raises(ResultsError) as e:
    begin(tmp_path)
  assert f'{tmp_path} is in use by process {other.pid} on' in str(e.value)
  # The lock of a process that was killed is free.
  other.kill()
  other.communicate()
  (tmp_path / '.lock').write_bytes(b'\xff')  # Whatever it left there.
  with results.opened(tmp_path, [], {}) as folder:
    assert folder.config().inputs == {}


def test_a_disk_with_little_space_is_named(tmp_path, monkeypatch, capsys):
  begin(tmp_path / 'a')
  assert capsys.readouterr().out == ''
  monkeypatch.setattr(results, 'free_space', lambda folder: 3 << 20)
  begin(tmp_path / 'b')
  assert f'only 3 MiB are free for {tmp_path}/b' in capsys.readouterr().out


def test_files_hold_what_the_end_of_their_name_says(tmp_path):
  folder = Folder(tmp_path / 'a [1]' / 'ä')
  values = {
    'a.json': {'x': [1, None]},
    'b.jsonl': [{'epoch': 0}, {'epoch': 1}],
    'c/d.md': 'Text ä\n',
  }
  for name, value in values.items():
    folder.write(name, value)
    assert folder.read(name) == value
  folder.write('t.csv', [['a', 'b'], ['1,"é"', '']])
  assert folder.read('t.csv') == [{'a': '1,"é"', 'b': ''}]
  folder.write('x.npz', {'x': np.arange(3)})
  np.testing.assert_array_equal(
    results.read_arrays(folder.at('x.npz'))['x'], np.arange(3)
  )
  assert folder.has(*values) and not folder.has('a.json', 'none')
  folder.write('d.md', '\udcff')  # Of a name that is no text.
  assert folder.read('d.md') == '\\udcff'
  with pytest.raises(ValueError, match='Out of range'):
    folder.write('a.json', float('nan'))
  assert folder.read('a.json') == values['a.json']


def test_missing_and_damaged_files_are_named(tmp_path):
  folder = Folder(tmp_path)
  with pytest.raises(ResultsError, match=r'a\.json: no such file\. Give the'):
    folder.read('a.json')
  deep = b'[' * 60 + b']' * 60
  for content in (b'{', b'\xff', b'[' * 100_000, deep, b'[NaN]', b'1e999'):
    folder.at('a.json').write_bytes(content)
    with pytest.raises(ResultsError, match=r'a\.json is damaged'):
      folder.read('a.json')
  np.savez_compressed(folder.at('a.npz'), a=np.arange(9))
  whole = folder.at('a.npz').read_bytes()
  for content in whole[:-9], whole[:90] + b'?' + whole[91:], b'', b'x':
    folder.at('a.npz').write_bytes(content)
    with pytest.raises(ResultsError, match=r'a\.npz is damaged'):
      results.read_arrays(folder.at('a.npz'))
  for name in ('../a', '/etc/passwd', 'a/../../b'):
    with pytest.raises(ResultsError, match='no name of a file'):
      folder.at(name)
  folder.at('b.json').mkdir()
  with pytest.raises(ResultsError, match=r'b\.json cannot be read \(Is a dir'):
    folder.read('b.json')


def test_a_changed_model_is_found_among_others(tmp_path, capsys):
  folder, model = Folder(tmp_path), {'w': np.arange(3.0)}
  folder.save_model('model.safetensors', save(model))
  np.testing.assert_array_equal(results.read_weights(tmp_path)['w'], model['w'])
  sums = folder.read('sha256.json')
  folder.write('sha256.json', {'another': '0'} | sums)
  assert folder.has_model('model.safetensors')
  results.read_weights(tmp_path)  # What is said of other files does not matter.
  file = folder.at('model.safetensors')
  file.write_bytes(save({'w': np.arange(3.0) + 1}))
  with pytest.raises(results.WeightsError, match=r'model\.safetensors was'):
    results.read_weights(file)
  assert not folder.has_model('model.safetensors')
  folder.at('sha256.json').write_text('{')
  with pytest.raises(results.WeightsError, match=r'sha256\.json was changed'):
    results.read_weights(file)
  assert 'sha256.json' not in capsys.readouterr().out
