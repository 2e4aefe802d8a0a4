"""A campaign against commands and readers: kills, damaged and hostile files.

  python tests/campaign/run.py --out=campaign.jsonl              # an hour each
  python tests/campaign/run.py --out=campaign.jsonl --only=mutations \\
      --seconds=600 --seed=1 --trials=10000
  python tests/campaign/run.py --out=campaign.jsonl --summary

Appends a line of JSON per trial. A trial is known by its part, the seed and its
number: given again, the command goes on after the last one of this commit. Not
collected by pytest.

  kills_training    kill -9 in trainings of bag models and patch classifiers
  kills_extraction  and of the extraction of features
  kills_after       and of predict, export and report
  mutations         changed bytes, cuts, insertions, swapped blocks of any input
  hostile           files made to do harm

What may become of one: `equal` to what the sound file or the whole run gives;
`refused` by an error that names it; `changed`, another value of a file that has
no hash. All else is a fault: `unequal`, `silent` (another value of what has a
hash, or one that is not finite), `unnamed`, `traceback`, `hang`, `killed`.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [
  str(ROOT),
  *(str(ROOT / f'tests/{n}') for n in ('data', 'experiments', 'golden')),
  str(ROOT / 'tests/kmil_jax'),
]
FINE = ('equal', 'refused', 'changed')
TRIALS = {
  'kills_training': 100,
  'kills_extraction': 30,
  'kills_after': 30,
  'mutations': 10_000,
  'hostile': 1,  # Of each.
}


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--only', choices=TRIALS, action='append')
  parser.add_argument('--seconds', type=float, default=3600, help='of a part')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--trials', type=int, help='of a part; else the goal')
  parser.add_argument('--match', default='', help='only such readers, commands')
  parser.add_argument('--work', type=pathlib.Path, help='keeps sound files')
  parser.add_argument('--summary', action='store_true')
  args = parser.parse_args()
  if args.summary:
    return summarise(args.out)
  with tempfile.TemporaryDirectory() as name:
    folder = (args.work or pathlib.Path(name)).absolute()
    os.environ |= {
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'OMP_NUM_THREADS': '1',
      'TF_CPP_MIN_LOG_LEVEL': '3',
      'XDG_CACHE_HOME': str(folder / 'cache'),
    }
    for part in args.only or TRIALS:
      run(part, folder, args)
  return 0


def run(part: str, folder: pathlib.Path, args: argparse.Namespace) -> None:
  """Runs the trials of a part that are left, as long as there is time."""
  import numpy as np

  if part.startswith('kills'):
    import kills

    names, trial = kills.PARTS[part], kills.Kills(folder).trial
  else:
    import mutations

    tested = mutations.Trials(folder, part)
    names, trial = tested.names, tested.trial
  goal = args.trials or TRIALS[part] * (len(names) if part == 'hostile' else 1)
  about = {'commit': commit(), 'part': part, 'seed': args.seed}
  done = {
    line['number']
    for line in read(args.out)
    if all(line[key] == value for key, value in about.items())
  }
  end = time.monotonic() + args.seconds
  for number in sorted(set(range(goal)) - done):
    began, name = time.monotonic(), names[number % len(names)]
    if began > end:
      break
    if args.match not in name:
      continue
    found = trial(name, np.random.default_rng([args.seed, number]))
    line = about | {'number': number, 'name': name} | found
    line['seconds'] = round(time.monotonic() - began, 2)
    with args.out.open('a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')
    if line['outcome'] not in FINE:
      text = str(line.get('text', ''))[-200:]
      print(part, number, name, line['outcome'], text, flush=True)


def commit() -> str:
  """Returns the commit, '-dirty' if files of it were changed."""
  command = 'git describe --always --dirty --abbrev=12 --exclude=*'
  done = subprocess.run(
    command.split(), cwd=ROOT, capture_output=True, text=True, check=True
  )
  return done.stdout.strip()


def read(path: pathlib.Path) -> list[dict]:
  """Returns the trials so far, but for a line that was cut short."""
  lines = []
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  for line in text.splitlines():
    try:
      lines.append(json.loads(line))
    except ValueError:
      continue
  return lines


def summarise(path: pathlib.Path) -> int:
  """Prints a table of counts per commit; returns 1 if the last had a fault."""
  counts = collections.defaultdict(collections.Counter)
  kills, lines = collections.Counter(), read(path)
  for line in lines:
    key = line['commit'], line['part'], line['name']
    counts[key][line['outcome']] += 1
    kills[key] += line.get('kills', 0)
  outcomes = sorted({o for c in counts.values() for o in c}, key=_order)
  print('| commit | part | of | trials | kills |', ' | '.join(outcomes), '|')
  print('|--' * (5 + len(outcomes)) + '|')
  for key, count in counts.items():
    cells = [*key, count.total(), kills[key], *(count[o] for o in outcomes)]
    print('|', ' | '.join(map(str, cells)), '|')
  last = lines[-1]['commit'] if lines else ''
  faults = [
    line
    for line in lines
    if line['commit'] == last and line['outcome'] not in FINE
  ]
  tried = sum(line['commit'] == last for line in lines)
  print(f'{last}: {tried} trials, {len(faults)} faults')
  return int(bool(faults))


def _order(outcome: str) -> tuple[bool, str]:
  return outcome not in FINE, outcome


if __name__ == '__main__':
  sys.exit(main())
