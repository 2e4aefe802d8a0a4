"""The tables of docs/inventory.md against what there is; see that page."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'inventory.md'
FLAGS = ROOT / 'tests' / 'experiments' / 'inventory_flags.py'
GOLDEN = ROOT / 'tests' / 'golden' / 'stored'
HEADS = {
  'commands': 'command does page now',
  'flags': 'flag default type defined_in commands read_in says_nothing_to'
  ' named_in now',
  'files': 'file commands holds written_by note now',
}
TOKEN = re.compile(r'`([^`]+)`')


def tables():
  """Returns the rows of the page's tables, dicts, by name of the table."""
  found = {name: [] for name in HEADS}
  name = None
  for line in PAGE.read_text(encoding='utf-8').splitlines():
    if not line.startswith('|'):
      name = None
      continue
    cells = [cell.strip() for cell in line.strip('|').split(' | ')]
    head = ' '.join(cell.replace(' ', '_') for cell in cells)
    if head in HEADS.values():
      name = next(key for key, value in HEADS.items() if value == head)
    elif name and not set(line) <= set('|- '):
      columns = HEADS[name].split()
      assert len(cells) == len(columns), f'cells of another number: {line}'
      found[name].append(dict(zip(columns, cells, strict=True)))
  return found


TABLES = tables()
COMMANDS = {
  row['command'].strip('`').removeprefix('experiments.'): row['now']
  for row in TABLES['commands']
}


def names(cell):
  return cell.split(', ')


def note_for(command, now):
  """Returns the note of a cell `now` that is about a command."""
  general = None
  for part in now.split('; '):
    about, colon, note = part.partition(': ')
    if colon and set(names(about)) <= set(COMMANDS):
      if command in names(about):
        return note
    else:
      general = part
  assert general, f'says nothing of {command}: {now}'
  return general


def module_of(command):
  """Returns the module that a command is now; None if it is gone."""
  now = COMMANDS[command]
  if now.startswith('gone: '):
    return None
  if now == 'same' or now.startswith('new: '):
    return f'experiments.{command}'
  return TOKEN.fullmatch(now)[1]


def scripts():
  """Returns the modules that are run as scripts."""
  for top in ('data', 'experiments', 'kmil_jax'):
    for path in (ROOT / top).rglob('*.py'):
      if "\nif __name__ == '__main__'" in path.read_text(encoding='utf-8'):
        yield '.'.join(path.relative_to(ROOT).with_suffix('').parts)


@pytest.fixture(scope='module')
def present():
  """Flags with defaults of each command there is, by module."""
  done = subprocess.run(
    [sys.executable, str(FLAGS), *sorted(scripts())],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_tables_are_sorted_and_name_each_thing_once():
  for name, key in (
    ('commands', ('command',)),
    ('flags', ('flag', 'defined_in')),
  ):
    found = [tuple(row[k].strip('`') for k in key) for row in TABLES[name]]
    assert found == sorted(set(found)), name
  files = [(row['file'], row['commands']) for row in TABLES['files']]
  assert len(files) == len(set(files)) > 100
  for row in TABLES['flags'] + TABLES['files']:
    assert set(names(row['commands'])) <= set(COMMANDS), row
  for row in (row for rows in TABLES.values() for row in rows):
    assert row['now'] and not re.search(r'(gone|new): *($|;)', row['now']), row


def test_the_page_counts_what_it_lists():
  flags = [row for row in TABLES['flags'] if 'new: ' not in row['now']]
  distinct = {row['flag'] for row in flags}
  silent = {row['flag'] for row in flags if row['named_in'] == 'undocumented'}
  text = ' '.join(PAGE.read_text(encoding='utf-8').split())
  count = lambda rows: len([r for r in rows if 'new: ' not in r['now']])
  assert (
    f'{count(TABLES["commands"])} commands; {len(distinct)} distinct flags,'
    f' defined at {len(flags)} places, of which README and the pages name'
    f' {len(distinct - silent)} and leave out {len(silent)};'
    f' {count(TABLES["files"])} kinds of files'
  ) in text


def test_commands_are_those_of_the_page():
  told = {module_of(command) for command in COMMANDS} - {None}
  assert told == set(scripts())


def test_flags_are_those_of_the_page(present):
  told = {module: {} for module in present}
  for row in TABLES['flags']:
    for command in names(row['commands']):
      module, note = module_of(command), note_for(command, row['now'])
      if module is None or note.startswith('gone: '):
        continue
      now, _, default = note.partition(', default ')
      flag = row['flag']
      if now != 'same' and not now.startswith('new: '):
        flag = now
        assert re.fullmatch('`--[a-z0-9_]+`', flag), f'unknown note: {row}'
      told[module][flag.strip('`-')] = default or row['default']
  faults = []
  for module, found in present.items():
    faults += [
      f'{module} --{flag}: not there; note it in `now`'
      for flag in sorted(told[module].keys() - found.keys())
    ]
    faults += [
      f'{module} --{flag}: not in docs/inventory.md, or gone by its note'
      for flag in sorted(found.keys() - told[module].keys())
    ]
    faults += [
      f'{module} --{flag}: default {found[flag]}, in docs/inventory.md {known}'
      for flag, known in told[module].items()
      if flag in found and '`' in known and known != f'`{found[flag]}`'
    ]
  assert not faults, '\n'.join(faults)


def expression(pattern):
  """Returns the regular expression of a file, column or key of the page."""
  signs = {'**': '.+', '<path>': '.+', '[]': r'\[\]', '[': '(?:', ']': ')?'}
  parts = re.split(r'(\*\*|\[\]|<[^<>]*>|[\[\]])', pattern)
  made = ''
  for part in parts:
    other = '[^/]+' if part.startswith('<') else re.escape(part)
    made += signs.get(part, other)
  return made


def test_expressions_are_of_whole_names():
  found = expression('[<setting>/]fold_<i>/checkpoints/**')
  assert re.fullmatch(found, 'all/fold_0/checkpoints/0/state/d')
  assert re.fullmatch(found, 'fold_12/checkpoints/0')
  assert not re.fullmatch(found, 'fold_1/metrics.jsonl')
  found = expression('bins[].from')
  assert re.fullmatch(found, 'bins[].from')
  assert not re.fullmatch(found, 'bins.from')


def known_files():
  """Returns expressions of file names, how much they say, and their rows."""
  # Results may lie deep in a recording; other folders are given as they are.
  deep = ('<results>', '<results_dir>', '<predictions>', '<run>')
  found = []
  for row in TABLES['files']:
    # Those of another command have rows of their own.
    if row['file'] == '`<stdout>`' or row['holds'].startswith('what '):
      continue
    for name in TOKEN.findall(row['file'] + row['now']):
      before = '(?:.*/)?' if name.startswith(deep) else ''
      said = len(re.sub(r'\[[^]]*\]|<[^<>]*>|[*/]', '', name))
      found.append((re.compile(before + expression(name)), said, row))
  return found


def keys(values, before=''):
  """Yields the keys of JSON as the page has them."""
  if isinstance(values, dict) and values:
    for name, value in values.items():
      yield from keys(value, f'{before}.{name}'.removeprefix('.'))
  elif isinstance(values, list) and values:
    for value in values:
      yield from keys(value, before + '[]')
  elif before:
    yield before


def held(record):
  """Yields the columns, keys, arrays and entries of a recorded file."""
  yield from record.get('columns', ())
  for values in (record.get('values', {}), *record.get('lines', ())):
    if isinstance(values, dict) and isinstance(values.get('decides'), dict):
      values = values | {'decides': []}  # A list that was made a dict.
    yield from keys(values)
  for name in ('sets', 'tensors', 'members'):
    yield from record.get(name, ())
  for some in record.get('attributes', {}).values():
    yield from (f'@{name}' for name in some)


def records(value):
  """Yields path and record of every file that a recording has."""
  if isinstance(value, dict):
    for name, below in value.items():
      if isinstance(below, dict) and isinstance(below.get('kind'), str):
        yield name, below
        for entry, said in below.get('members', {}).items():
          what = 'values' if entry.endswith('.json') else 'tensors'
          if isinstance(said, dict):
            yield f'{name}!{entry}', {what: said}
      else:
        yield from records(below)
  elif isinstance(value, list):
    for below in value:
      yield from records(below)


def is_told(name, rows):
  """Whether rows of the page name a column or key, or one above their keys."""
  short = lambda text: re.sub(r'(\[\])+$', '', text)
  for row in rows:
    for token in TOKEN.findall(row['holds'] + row['now']):
      parts = token.strip("'").split('.')
      above = ('.'.join(parts[:n]) for n in range(1, len(parts) + 1))
      if any(re.fullmatch(expression(short(k)), short(name)) for k in above):
        return True
  return False


def test_recorded_files_and_what_they_hold_are_on_the_page():
  stored = sorted(GOLDEN.glob('*.json'))
  if not stored:
    pytest.skip('no recordings in tests/golden/stored')
  files, faults, seen = known_files(), set(), 0
  for path in stored:
    for name, record in records(json.loads(path.read_text(encoding='utf-8'))):
      seen += 1
      # What lies there has names that are drawn: recorded is the folder.
      whole = re.sub('/checkpoints$', '/checkpoints/0', name)
      whole = re.sub('/events$', '/events.out.tfevents.0.kmil_jax', whole)
      fit = [(said, row) for p, said, row in files if p.fullmatch(whole)]
      if not fit:
        faults.add(f'{path.name}: {name}: no such file on the page')
        continue
      most = max(said for said, _ in fit)
      rows = [row for said, row in fit if said == most]
      if all('without header' in row['holds'] for row in rows):
        continue
      faults |= {
        f'{path.name}: {name}: {said!r} is not on the page'
        for said in held(record)
        if not is_told(said, rows)
      }
  assert seen and not faults, '\n'.join(sorted(faults))
