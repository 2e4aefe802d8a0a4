"""What a command cannot do it refuses in words, before it writes anything."""

import importlib
import pathlib
import tomllib

import feature_folder
import pytest

TABLE = pathlib.Path(__file__).with_name('refusals.toml')
ROWS = [
  (script, flags, words)
  for script, rows in tomllib.loads(TABLE.read_text(encoding='utf-8')).items()
  for flags, words in rows.items()
]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  bags, labels = feature_folder.planted(12, width=4)
  flags = feature_folder.write(tmp_path_factory.mktemp('data'), bags, labels)
  return ' '.join([*flags, '--k=3'])


@pytest.mark.parametrize(('script', 'flags', 'words'), ROWS)
def test_flags_that_cannot_be_are_named(
  data, tmp_path, monkeypatch, script, flags, words
):
  monkeypatch.chdir(tmp_path)
  main = importlib.import_module(f'experiments.{script}').main
  with pytest.raises(SystemExit) as end:
    main([script, *flags.format(DATA=data).split()])
  error = str(end.value.code)
  assert error.startswith('error: ')
  assert all(word in error for word in words), error
  assert not list(tmp_path.iterdir())
