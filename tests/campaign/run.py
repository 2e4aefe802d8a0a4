"""A campaign against commands and readers: kills, damaged and hostile files.

  python tests/campaign/run.py --out=campaign.jsonl
  python tests/campaign/run.py --out=campaign.jsonl --only=mutations \\
      --seconds=600 --seed=1 --work=folder
  python tests/campaign/run.py --out=campaign.jsonl --summary

Appends a line of JSON per trial. A trial is known by its part, the seed and its
number: given again, the command goes on after the last one of this commit. Not
collected by pytest.

  kills_training    kill -9 in trainings of bag models and patch classifiers
  kills_extraction  and of the extraction of features
  kills_after       and of predict, export and report
  mutations         flipped bits, cuts, insertions, swapped blocks of any input
  hostile           files made to do harm

What may become of one: `equal` to what the sound file or the whole run gives;
`refused` by an error that names it; `changed`, another value of a file that has
no hash. All else is a fault: `unequal` or part files left, `silent` (another
value of what has a hash, or numbers that are not finite), `unnamed`,
`traceback`, `hang`, `killed`.
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

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FOLDERS = 'data', 'experiments', 'golden', 'kmil_jax'
sys.path[:0] = [str(ROOT), *(f'{ROOT}/tests/{name}' for name in _FOLDERS)]
FINE = 'equal', 'refused', 'changed'
TRIALS = {
  'kills_training': 100,
  'kills_extraction': 30,
  'kills_after': 30,
  'mutations': 10_000,
  'hostile': 100,  # Again and again.
}
COMMIT = 'git describe --always --dirty --abbrev=12 --exclude=*'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  add = parser.add_argument
  add('--out', type=pathlib.Path, required=True)
  add('--only', choices=TRIALS, action='append')
  add('--seconds', type=float, default=3600, help='of a part')
  add('--seed', type=int, default=0)
  add('--match', default='', help='only readers or commands with this in them')
  add('--work', type=pathlib.Path, help='keeps sound files for the next time')
  add('--summary', action='store_true')
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
  if part.startswith('kills'):
    import kills

    names, trial = kills.PARTS[part], kills.Kills(folder).trial
  else:
    import mutations

    tested = mutations.Trials(folder, part)
    names, trial = tested.names, tested.trial
  commit = subprocess.check_output(COMMIT.split(), cwd=ROOT, text=True).strip()
  about = {'commit': commit, 'part': part, 'seed': args.seed}
  done = {
    line['number'] for line in read(args.out) if about.items() <= line.items()
  }
  end = time.monotonic() + args.seconds
  for number in sorted(set(range(TRIALS[part])) - done):
    name, began = names[number % len(names)], time.monotonic()
    if began > end:
      break
    if args.match in name:
      found = trial(name, np.random.default_rng([args.seed, number]))
      line = about | {'number': number, 'name': name} | found
      line['seconds'] = round(time.monotonic() - began, 2)
      with args.out.open('a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')
      if line['outcome'] not in FINE:
        text = line.get('text', '')[-300:]
        print(part, number, name, line['outcome'], text, flush=True)


def read(path: pathlib.Path) -> list[dict]:
  """Returns the trials so far, but for a line that was cut short."""
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  return [json.loads(line) for line in text.splitlines() if line[-1:] == '}']


def summarise(path: pathlib.Path) -> int:
  """Prints a table of counts per commit; returns 1 if the last had a fault."""
  counts, lines = collections.defaultdict(collections.Counter), read(path)
  for line in lines:
    count = counts[line['commit'], line['part'], line['name']]
    count.update(kills=line.get('kills', 0), trials=1)
    count[line['outcome']] += 1
  heads = ['trials', 'kills', *FINE]
  heads += sorted({h for count in counts.values() for h in count} - {*heads})
  print('| commit | part | of |', ' | '.join(heads), '|')
  print('|--' * (3 + len(heads)) + '|')
  for key, count in counts.items():
    print('|', ' | '.join([*key, *(str(count[head]) for head in heads)]), '|')
  last = [line for line in lines if line['commit'] == lines[-1]['commit']]
  faults = sum(line['outcome'] not in FINE for line in last)
  print(f'{lines[-1]["commit"]}: {len(last)} trials, {faults} faults')
  return int(faults > 0)


if __name__ == '__main__':
  sys.exit(main())
