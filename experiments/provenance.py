"""What the results of a folder are a function of, kept in config.json."""

from collections.abc import Iterable
import importlib.metadata
import json
import pathlib
import platform
import shlex
import subprocess
import sys

from experiments import files
from experiments.run.results import ResultsError as ResultsError

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def open_folder(
  folder: pathlib.Path,
  flags: dict,
  decides: Iterable[str],
  inputs: dict,
  cohort: dict | None = None,
) -> None:
  """Makes the folder and records what its results are a function of.

  Args:
    folder: of the experiment; may hold an earlier, unfinished run of it.
    flags: resolved flags.
    decides: names of those that decide the result.
    inputs: hashes of labels, features and splits.
    cohort: what whoever uses the models later must know of it.

  Raises:
    ResultsError: if the folder was begun with other flags or inputs.
  """
  path = folder / 'config.json'
  decides = sorted(decides)
  made_by = {
    'versions': {'python': platform.python_version()}
    | {p: importlib.metadata.version(p) for p in _PACKAGES},
    'commit': _commit(),
    'command': shlex.join(['python', *sys.orig_argv[1:]]),
  }
  config = {
    'flags': flags,
    'decides': decides,
    'inputs': inputs,
    'made_by': [made_by],
  }
  if path.exists():
    old = json.loads(path.read_text())
    before = {k: old['flags'].get(k) for k in old['decides']} | old['inputs']
    now = {k: flags[k] for k in decides} | inputs
    now = json.loads(json.dumps(now))
    differ = [
      f'  {name}: {before.get(name)} before, {now.get(name)} now'
      for name in sorted(before | now)
      if before.get(name) != now.get(name)
    ]
    if differ:
      raise ResultsError(
        f'{folder} holds results of other settings:\n'
        + '\n'.join(differ)
        + '\nchoose another --exp_code, or remove the folder'
      )
    # What began it stays on record; what goes on with it is added.
    config = old
    if made_by not in old['made_by']:
      old['made_by'].append(made_by)
  if cohort is not None:
    config['cohort'] = cohort
  files.write_text(path, json.dumps(config, indent=2) + '\n')


def _commit() -> str | None:
  """The checkout's commit, '-dirty' if changed since; None if installed."""
  root = pathlib.Path(__file__).parents[1]
  if not (root / '.git').exists():
    return None
  try:
    done = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
      cwd=root,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
