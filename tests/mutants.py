"""Seeded mutants: small faults, those of mutants.toml, that tests must find.

  python tests/mutants.py                # all of them: a few minutes
  python tests/mutants.py 3 pooling      # number 3, and those of a file
  python tests/mutants.py --list         # runs nothing, checks the texts

Each is put into a temporary copy of the tree, alone, and a file of tests that
should fail is run there. Prints what became of each, and a table; the exit code
is 1 if one lives. Not collected by pytest.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
TABLE = pathlib.Path(__file__).with_suffix('.toml')
COPIED = ('data', 'experiments', 'kmil_jax', 'tests', 'pyproject.toml')
SECONDS = 1200


class Mutant(NamedTuple):
  """A fault: `old`, which a file holds once, becomes `new`."""

  file: str
  old: str
  new: str
  tests: str  # a file under tests/, and maybe a -k


MUTANTS = [
  Mutant(row['file'], old, new, row['tests'])
  for row in tomllib.loads(TABLE.read_text(encoding='utf-8'))['faults']
  for old, new in row['changes']
]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('which', nargs='*', help='numbers, or parts of a path')
  parser.add_argument('--list', action='store_true')
  args = parser.parse_args()
  chosen = [
    (number, mutant)
    for number, mutant in enumerate(MUTANTS)
    if not args.which
    or any(w == str(number) for w in args.which)
    or any(w in mutant.file for w in args.which if not w.isdecimal())
  ]
  stale = [(n, m) for n, m in chosen if m.old not in once(m.file, m.old)]
  for number, mutant in stale:
    print(f'{number}: {mutant.file} does not hold {mutant.old!r} once')
  if stale or args.list:
    print(f'{len(chosen)} mutants, {len(stale)} whose text is not there')
    return int(bool(stale))
  with tempfile.TemporaryDirectory() as folder:
    tree = copy(pathlib.Path(folder))
    rows = []
    for number, mutant in chosen:
      start = time.monotonic()
      fate = run(tree, mutant)
      seconds = time.monotonic() - start
      rows.append((fate, number, mutant))
      print(f'{number:3} {fate:8} {seconds:5.0f} s  {mutant.file}', flush=True)
  print(f'\n| mutant | file | {"was":40} | tests | |\n|--|--|--|--|--|')
  for fate, number, mutant in rows:
    was = mutant.old.splitlines()[0][:40]
    print(f'| {number} | {mutant.file} | {was:40} | {mutant.tests} | {fate} |')
  lives = sum(fate != 'killed' for fate, *_ in rows)
  print(f'{len(rows) - lives} of {len(rows)} killed')
  return int(lives > 0)


def once(file: str, text: str) -> str:
  """Returns what a file holds, '' unless `text` is there once."""
  path = ROOT / file
  whole = path.read_text(encoding='utf-8') if path.exists() else ''
  return whole if whole.count(text) == 1 else ''


def copy(folder: pathlib.Path) -> pathlib.Path:
  ignored = shutil.ignore_patterns('__pycache__', 'stored')
  for name in COPIED:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    else:
      shutil.copy(ROOT / name, folder / name)
  return folder


def run(tree: pathlib.Path, mutant: Mutant) -> str:
  """Returns 'killed', 'lives', or 'broken' where no test could be run."""
  path = tree / mutant.file
  whole = path.read_text(encoding='utf-8')
  file, *rest = mutant.tests.split()
  command = [sys.executable, '-m', 'pytest', '-n0', '-x', '-q']
  command += ['-p', 'no:cacheprovider', f'tests/{file}', *rest]
  try:
    path.write_text(whole.replace(mutant.old, mutant.new), encoding='utf-8')
    done = subprocess.run(
      command,
      cwd=tree,
      env={
        **os.environ,
        'PYTHONPATH': str(tree),
        # A file written within a second of the last must be read anew.
        'PYTHONDONTWRITEBYTECODE': '1',
      },
      capture_output=True,
      timeout=SECONDS,
    )
  except subprocess.TimeoutExpired:
    return 'killed'  # As by a loop without end.
  finally:
    path.write_text(whole, encoding='utf-8')
  return {0: 'lives', 1: 'killed'}.get(done.returncode, 'broken')


if __name__ == '__main__':
  sys.exit(main())
