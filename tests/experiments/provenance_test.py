"""Whose a results folder is."""

from drawn_results import strict
import pytest

from experiments import provenance
from experiments.provenance import ResultsError

FLAGS = {'seed': 1, 'lr': 2e-4, 'labels': ['a:b'], 'heat_maps': 12}
DECIDES = ('seed', 'lr', 'labels')
INPUTS = {'labels_sha256': 'abc'}


def test_a_folder_is_opened_again_with_the_same_settings(tmp_path):
  folder = tmp_path / 'x_s1'
  provenance.open_folder(folder, FLAGS, DECIDES, INPUTS)
  config = strict((folder / 'config.json').read_text())
  assert config['flags'] == FLAGS and config['inputs'] == INPUTS
  (made_by,) = config['made_by']
  assert made_by['versions'].keys() >= {'python', 'jax', 'flax', 'optax'}
  assert 'commit' in made_by
  # A tuple is written as a list, and where to draw decides nothing.
  provenance.open_folder(
    folder, FLAGS | {'labels': ('a:b',), 'heat_maps': 0}, DECIDES, INPUTS
  )
  # What began the folder stays on record.
  assert strict((folder / 'config.json').read_text()) == config


def test_another_version_that_goes_on_is_added(tmp_path, monkeypatch):
  folder = tmp_path / 'x_s1'
  provenance.open_folder(folder, FLAGS, DECIDES, INPUTS)
  monkeypatch.setattr(provenance, '_commit', lambda: 'another')
  provenance.open_folder(folder, FLAGS, DECIDES, INPUTS)
  made_by = strict((folder / 'config.json').read_text())['made_by']
  assert [m['commit'] == 'another' for m in made_by] == [False, True]


def test_changed_settings_are_refused_with_their_list(tmp_path):
  folder = tmp_path / 'x_s1'
  provenance.open_folder(folder, FLAGS, DECIDES, INPUTS)
  before = (folder / 'config.json').read_bytes()
  with pytest.raises(ResultsError) as e:
    provenance.open_folder(
      folder,
      FLAGS | {'seed': 2, 'heat_maps': 0, 'new': 5},
      (*DECIDES, 'new'),
      {'labels_sha256': 'xyz'},
    )
  assert str(e.value).splitlines() == [
    f'{folder} holds results of other settings:',
    '  labels_sha256: abc before, xyz now',
    '  new: None before, 5 now',
    '  seed: 1 before, 2 now',
    'choose another --exp_code, or remove the folder',
  ]
  assert (folder / 'config.json').read_bytes() == before
