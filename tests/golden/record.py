"""Records what every documented command does, and compares two commits.

python tests/golden/record.py --against COMMIT [-k EXPR] [--keep DIR] [--slow]
python tests/golden/record.py --out DIR [-k EXPR]
python tests/golden/record.py --compare DIR DIR
python tests/golden/record.py --store [-k EXPR]
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import golden_commands
import golden_comparer
import golden_runner

TREE = pathlib.Path(__file__).resolve().parents[2]
_MOST = 5  # Differences of a command that are printed.


def record(tree, out, folder, programs, wanted) -> None:
  """Records a checkout: `<chain>.json` of every chain, in `out`.

  Args:
    tree: the checkout.
    out: folder of the records.
    folder: where commands run, each chain in a folder below.
    programs: folder of compiled programs.
    wanted: whether a command of a chain is to be recorded.
  """
  out.mkdir(parents=True, exist_ok=True)
  for chain in golden_commands.CHAINS:
    chosen = chain.chosen(lambda command, chain=chain: wanted(chain, command))
    if chosen.commands:
      records = golden_runner.record_chain(
        chosen,
        tree,
        folder / chain.name,
        programs,
        report=lambda line: print(f'  {line}', file=sys.stderr, flush=True),
      )
      text = json.dumps(records, indent=1, ensure_ascii=False)
      path = out / f'{chain.name}.json'
      path.write_text(text + '\n', encoding='utf-8')


def compare(first: pathlib.Path, second: pathlib.Path) -> int:
  """Compares two folders of records, prints a line each; returns how many.

  Args:
    first: of the older commit.
    second: of the newer one.
  """
  counts = {'ok': 0, 'differs': 0}
  for chain in golden_commands.CHAINS:
    old, new = (
      json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
      for path in (first / f'{chain.name}.json', second / f'{chain.name}.json')
    )
    for command in chain.commands:
      sides = [
        side[command.name] for side in (old, new) if command.name in side
      ]
      if not sides:
        continue
      bad, notes = ['recorded on one side only'], []
      if len(sides) == 2:
        width = golden_commands.WIDTHS[command.width]
        outcome = golden_comparer.compare(*sides, width, command.choices)
        odd = golden_runner.unexpected(command, sides[1])
        bad = [str(difference) for difference in outcome.differences]
        bad += [f'not as in the table: {what}' for what in odd]
        notes = outcome.notes[:3]
      fate = 'differs' if bad else 'ok'
      counts[fate] += 1
      print(f'{fate:8}{chain.name}/{command.name}', *notes, sep='  ')
      if len(bad) > _MOST:
        bad = [*bad[:_MOST], f'and {len(bad) - _MOST} more']
      for line in bad:
        print(f'          {line}')
  print(f'{counts["ok"]} ok, {counts["differs"]} differ')
  return counts['differs']


@contextlib.contextmanager
def worktree(commit: str, folder: pathlib.Path):
  """Checks a commit out into a folder, and removes it in the end."""
  git = ['git', '-C', str(TREE), 'worktree']
  add = [*git, 'add', '--detach', str(folder), commit]
  subprocess.run(add, check=True, capture_output=True)
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
  parser.add_argument(
    '-k', metavar='EXPR', default='', help='"part of chain/command or part"'
  )
  parser.add_argument('--keep', metavar='DIR', help='keep records and folders')
  parser.add_argument('--slow', action='store_true', help='also what is slow')
  return parser.parse_args()


def main() -> int:
  """Runs the script; returns its exit status."""
  args = _arguments()
  if args.compare:
    return int(compare(*map(pathlib.Path, args.compare)) > 0)
  words = [word.strip() for word in args.k.split(' or ')]
  if args.store:
    sys.path.append(str(TREE / 'tests/experiments'))
    import golden_subset

    golden_subset.store(words)
    return 0

  def wanted(chain, command):
    name = f'{chain.name}/{command.name}'
    chosen = any(word in name for word in words)
    return chosen and (args.slow or not command.slow)

  temporary = pathlib.Path(tempfile.mkdtemp(prefix='golden_')).resolve()
  kept = pathlib.Path(args.keep).resolve() if args.keep else temporary
  programs = temporary / 'programs'
  try:
    if args.out:
      out = pathlib.Path(args.out).resolve()
      record(TREE, out, kept / 'now', programs, wanted)
      return 0
    with worktree(args.against, temporary / 'tree') as tree:
      for name, checkout in (('then', tree), ('now', TREE)):
        print(f'recording {name}', file=sys.stderr)
        out = kept / f'{name}_records'
        record(checkout, out, kept / name, programs, wanted)
    return int(compare(kept / 'then_records', kept / 'now_records') > 0)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


if __name__ == '__main__':
  sys.exit(main())
