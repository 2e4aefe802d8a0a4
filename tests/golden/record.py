"""Records what every documented command does, and compares two commits.

python tests/golden/record.py --against COMMIT [-k EXPR] [--keep DIR]
python tests/golden/record.py --out DIR [-k EXPR]
python tests/golden/record.py --compare DIR DIR
python tests/golden/record.py --store [-k EXPR]
python tests/golden/record.py --list
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import golden_chain
import golden_commands
import golden_comparer
import golden_runner

TREE = pathlib.Path(__file__).resolve().parents[2]


def wanted(expression: str | None, slow: bool):
  """Returns which command of which chain is asked for.

  Args:
    expression: texts joined by `or`, one of which `<chain>/<command>` must
      hold; None: any.
    slow: whether those that take minutes are.
  """
  words = [w.strip() for w in (expression or '').split(' or ')]

  def of(chain):
    def is_wanted(command):
      name = f'{chain.name}/{command.name}'
      return any(word in name for word in words) and (slow or not command.slow)

    return is_wanted

  return of


def record(tree, out, folder, programs, asked, jobs) -> None:
  """Records a checkout: `<chain>.json` of every chain, in `out`."""
  out.mkdir(parents=True, exist_ok=True)
  chains = [
    chain
    for chain in golden_commands.CHAINS
    if golden_chain.needed(chain, asked(chain))
  ]

  def one(chain):
    records = golden_runner.record_chain(
      chain,
      tree,
      folder / chain.name,
      programs,
      wanted=asked(chain),
      report=lambda line: print(f'  {line}', file=sys.stderr, flush=True),
    )
    write(out / f'{chain.name}.json', records)

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    list(pool.map(one, chains))


def write(path: pathlib.Path, records: dict) -> None:
  """Writes records in a stable order."""
  text = json.dumps(records, indent=1, ensure_ascii=False)
  path.write_text(text + '\n', encoding='utf-8')


def compare(first: pathlib.Path, second: pathlib.Path, most: int = 5) -> int:
  """Compares two folders of records, prints a line each; returns how many.

  Args:
    first: of the older commit.
    second: of the newer one.
    most: differences of a command to print.
  """
  counts = {'ok': 0, 'differs': 0}
  for chain in golden_commands.CHAINS:
    paths = first / f'{chain.name}.json', second / f'{chain.name}.json'
    if not any(path.exists() for path in paths):
      continue
    old, new = (
      json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
      for path in paths
    )
    for command in chain.commands:
      sides = (command.name in old) + (command.name in new)
      if sides == 1:
        counts['differs'] += 1
        print(f'differs {chain.name}/{command.name}  recorded on one side only')
      if sides < 2:
        continue
      found = golden_comparer.compare(
        old[command.name],
        new[command.name],
        command.width,
        command.choices,
      )
      odd = [
        f'not as in the table: {what}'
        for what in golden_runner.unexpected(command, new[command.name])
      ]
      bad = [str(d) for d in found.differences] + odd
      counts['differs' if bad else 'ok'] += 1
      name = f'{chain.name}/{command.name}'
      print(f'{"differs" if bad else "ok":8}{name}', *found.notes[:3], sep='  ')
      for line in bad[:most]:
        print(f'          {line}')
      if len(bad) > most:
        print(f'          and {len(bad) - most} more')
  print(f'{counts["ok"]} ok, {counts["differs"]} differ')
  return counts['differs']


@contextlib.contextmanager
def worktree(commit: str, folder: pathlib.Path):
  """Checks a commit out into a folder, and removes it in the end."""
  git = ['git', '-C', str(TREE), 'worktree']
  subprocess.run(
    [*git, 'add', '--detach', str(folder), commit],
    check=True,
    capture_output=True,
  )
  try:
    yield folder
  finally:
    subprocess.run([*git, 'remove', '--force', str(folder)], check=False)


def _arguments():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('--against', metavar='COMMIT', help='record both, compare')
  what.add_argument('--out', metavar='DIR', help='only record')
  what.add_argument('--compare', nargs=2, metavar='DIR', help='two recordings')
  what.add_argument('--store', action='store_true', help="the suite's goldens")
  what.add_argument('--list', action='store_true', help='list the commands')
  parser.add_argument('-k', metavar='EXPR', help='"name or name", of commands')
  parser.add_argument('--keep', metavar='DIR', help='keep records and folders')
  parser.add_argument('--slow', action='store_true', help='also what is slow')
  parser.add_argument('--jobs', type=int, default=1, help='chains at once')
  parser.add_argument('--most', type=int, default=5, help='differences shown')
  return parser.parse_args()


def main() -> int:
  """Runs the script; returns its exit status."""
  args = _arguments()
  asked = wanted(args.k, args.slow)
  if args.list:
    for chain in golden_commands.CHAINS:
      for command in chain.commands:
        slow = '  (slow)' if command.slow else ''
        print(f'{chain.name}/{command.name}: {command.line}{slow}')
    return 0
  if args.compare:
    first, second = map(pathlib.Path, args.compare)
    return int(compare(first, second, args.most) > 0)
  if args.store:
    import golden_subset

    golden_subset.store(args.k)
    return 0
  began = time.monotonic()
  temporary = pathlib.Path(tempfile.mkdtemp(prefix='golden_')).resolve()
  kept = pathlib.Path(args.keep).resolve() if args.keep else temporary
  programs = temporary / 'programs'
  try:
    if args.out:
      out = pathlib.Path(args.out).resolve()
      record(TREE, out, kept / 'now', programs, asked, args.jobs)
      return 0
    with worktree(args.against, temporary / 'tree') as tree:
      for name, checkout in (('then', tree), ('now', TREE)):
        print(f'recording {name}', file=sys.stderr)
        place = kept / name
        out = kept / f'{name}_records'
        record(checkout, out, place, programs, asked, args.jobs)
    differ = compare(kept / 'then_records', kept / 'now_records', args.most)
    print(f'{time.monotonic() - began:.0f} s')
    return int(differ > 0)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


if __name__ == '__main__':
  sys.exit(main())
