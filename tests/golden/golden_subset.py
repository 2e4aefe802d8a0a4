"""The commands that the suite holds to stored goldens, on any machine."""

import hashlib
import json
import os
import pathlib
import tempfile

from golden_commands import SUITE, WIDTHS, Chain
import golden_comparer
from golden_pictures import STORED
import golden_runner
import next_command
import pytest
import script_process

TREE = STORED.parents[2]
# A class whose probability leads by less is not told from the next.
_MARGIN = 0.04
# Of lists, as the points of an outline, so many values are kept and the length.
_LONGEST = 40


def test_of(*names: str):
  """Returns a test that runs chains and compares them with their goldens."""
  chains = [chain for chain in SUITE if chain.name in names]
  assert len(chains) == len(names)

  @pytest.mark.slow
  @pytest.mark.parametrize('chain', chains, ids=lambda chain: chain.name)
  def test(chain, tmp_path):
    goldens = json.loads(_path(chain).read_text(encoding='utf-8'))
    shared = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    programs = pathlib.Path(shared or tmp_path / 'programs')
    records = recorded(chain, tmp_path / 'chain', programs)
    assert list(records) == list(goldens)
    wrong = []
    for command in chain.commands:
      golden, record = goldens[command.name], records[command.name]
      width = WIDTHS[command.suite]
      differences = golden_comparer.compare(golden, record, width).differences
      lines = [str(difference) for difference in differences]
      lines += golden_runner.unexpected(command, record)
      wrong += [f'{chain.name}/{command.name}: {line}' for line in lines[:8]]
      if not command.exit:
        log = tmp_path / f'chain/cache/{command.name}.log'
        next_command.read(log.read_text(encoding='utf-8'))
    assert not wrong, '\n'.join(wrong)

  return test


def recorded(chain: Chain, folder: pathlib.Path, programs: pathlib.Path):
  """Returns the reduced records of a chain, run in forks."""
  records = golden_runner.record_chain(
    chain, TREE, folder, programs, call=_in_fork
  )
  return reduced(records)


def _in_fork(module, args, folder, variables) -> golden_runner.Done:
  """Runs `python -m <module> <args>` where JAX is imported already."""
  before = f'import os; os.environ.update({variables!r})'
  done = script_process.run(module, *args, before=before, cwd=folder)
  return golden_runner.Done(done.returncode, done.stdout, done.stderr)


def reduced(records: dict) -> dict:
  """Returns records without what another machine or version may change.

  Pictures' sizes go, a class that leads by a hair becomes '?', numbers are
  rounded, long lists are cut, tensors' names and shapes become a hash.
  """
  for record in records.values():
    for name, file in record['files'].items():
      if file.get('kind') == 'png':
        file.pop('size', None)
      if name.endswith('predictions.csv'):
        _forget_close_classes(file)
      if 'tensors' in file:
        text = json.dumps(file['tensors']).encode()
        file['tensors'] = hashlib.sha256(text).hexdigest()[:16]
  return _short(records)


def _forget_close_classes(file: dict) -> None:
  """Puts '?' for the class of rows whose best two are about as probable."""
  columns = file['columns']
  if 'pred' not in columns:
    return
  places = [i for i, name in enumerate(columns) if name.startswith('prob_')]
  for row in file['rows']:
    best = sorted(float(row[i]) for i in places)
    if best[-1] - best[-2] < _MARGIN:
      row[columns.index('pred')] = '?'


def _short(values):
  """Rounds numbers, and cuts lists that are longer than _LONGEST."""
  if isinstance(values, dict):
    return {key: _short(value) for key, value in values.items()}
  if isinstance(values, list):
    cut = [_short(value) for value in values[:_LONGEST]]
    return [*cut, len(values)] if len(values) > _LONGEST else cut
  return float(f'{values:.8g}') if isinstance(values, float) else values


def _pretty(values, indent: str = '\n') -> str:
  """Returns JSON with a line for each key, and for each list of values."""
  deeper = f'{indent} '
  if isinstance(values, dict) and values:
    text = lambda key: json.dumps(key, ensure_ascii=False)
    lines = [f'{text(k)}: {_pretty(v, deeper)}' for k, v in values.items()]
    return '{' + deeper + f',{deeper}'.join(lines) + indent + '}'
  if isinstance(values, list) and any(
    isinstance(value, dict | list) for value in values
  ):
    lines = [_pretty(value, deeper) for value in values]
    return '[' + deeper + f',{deeper}'.join(lines) + indent + ']'
  return json.dumps(values, ensure_ascii=False)


def _path(chain: Chain) -> pathlib.Path:
  return STORED / f'{chain.name}.json'


def store(words: list[str]) -> None:
  """Writes the goldens of chains anew, of which one of some words is a part."""
  with tempfile.TemporaryDirectory(prefix='golden_') as temporary:
    root = pathlib.Path(temporary).resolve()
    for chain in SUITE:
      if any(word in chain.name for word in words):
        records = recorded(chain, root / chain.name, root / 'programs')
        for command in chain.commands:
          for what in golden_runner.unexpected(command, records[command.name]):
            raise SystemExit(f'{chain.name}/{command.name}: {what}')
        _path(chain).write_text(_pretty(records) + '\n', encoding='utf-8')
