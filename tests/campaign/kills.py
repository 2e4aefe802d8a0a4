"""Kills commands at any moment; the same command must end as if nothing was.

Results of two runs that nobody stopped say which files are always the same:
those must be so after a kill, too. A third of the kills come at random, a third
after the first file is there, a third just as a file of the folder changes.
"""

from collections.abc import Callable
import hashlib
import os
import pathlib
import re
import shutil
import time
from typing import NamedTuple

import golden_inputs
import golden_pictures
import numpy as np
import script_process

_COHORT = '--csv_path=labels.csv --features_dir=features --k=3 --epochs=2'
_MINING = '--tiles_dir=annotated --pool_dir=weak --exp_code=mining --table=2'
_SMALL = '--epochs=2 --seeds=1 --batch_size=4 --input_size=16'
_RUN = '--run=results/kmil_s2023'
_PART = re.compile(r'^\..+\.[0-9a-f]{8}-[0-9]+-[0-9a-f]{12}$')
_STATED = re.compile(rb'\d{4}-\d\d-\d\d \d\d:\d\d UTC')  # In a report.
_LIMIT = 300  # Seconds.
_BAGS = ('kmil', 'abmil', 'dsmil', 'dtfd', 'transmil')
_SLIDES = golden_pictures.slides


class Victim(NamedTuple):
  """A command."""

  command: str
  writes: str  # a file of it that is always the same
  inputs: Callable[[pathlib.Path], None] = golden_inputs.two_cohorts
  needs: str = ''  # a command that must have run


def _trained(name: str) -> Victim:
  command = f'kmil {_COHORT} --model={name} --exp_code={name}'
  return Victim(command, f'results/{name}_s2023/summary.json')


VICTIMS = {name: _trained(name) for name in _BAGS} | {
  'patches': Victim(
    f'hard_negatives {_MINING} {_SMALL}',
    'results/mining_s2023/table_2.csv',
    golden_pictures.annotated_and_weak,
  ),
  'extract': Victim(
    'extract --slides_dir=slides --features_dir=features --tile_size=64',
    'features/2024-010_A.h5',
    golden_pictures.slides,
  ),
  'predict': Victim(
    f'predict {_RUN} --features_dir=other_features --exp_code=others',
    'results/others/predictions.csv',
    needs='kmil',
  ),
  'export': Victim(
    f'export {_RUN} --out=model.kmil', 'model.kmil', needs='kmil'
  ),
  'report': Victim(
    f'report {_RUN}', 'results/kmil_s2023/report.html', needs='kmil'
  ),
}
# What is killed in which order, by part of the campaign.
PARTS = {
  'kills_training': ('kmil', *_BAGS, 'kmil', 'patches'),
  'kills_extraction': ('extract',),
  'kills_after': ('predict', 'export', 'report'),
}


class Done(NamedTuple):
  """How a command ended, and when files changed; -9 if it was killed."""

  code: int | None
  text: str
  seconds: float
  changes: list[float]
  newest: str  # of its files


class Kills:
  """Trials of kills, in a folder that also keeps what is compiled."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._whole = folder / 'kills', {}

  def trial(self, name: str, rng: np.random.Generator) -> dict:
    """Kills a command, once or more, and gives it again until it ends."""
    folder, same, whole = self._uninterrupted(name)
    del folder
    place, kills, share, done = self._begin(name, 'trial'), [], 1.0, None
    while not kills or (len(kills) < 4 and rng.random() < 0.3):
      kind = ('any', 'later', 'writing')[rng.integers(3)]
      first = 0.05 if kind == 'any' else whole.changes[0]
      last = whole.changes[-1] if kind == 'writing' else whole.seconds
      at = share * rng.uniform(first, last)
      done = _run(name, place, at, kind == 'writing')
      if done.code == -9:
        kills.append([kind, round(done.seconds, 3), done.newest])
      elif kills or done.code:
        break
      else:  # It was done before.
        place, share = self._begin(name, 'trial'), share / 2
    if done.code == -9:
      done = _run(name, place)
    after = _hashes(place)
    differ = [n for n, h in same.items() if after.get(n) != h]
    parts = [n for n in after if _PART.match(pathlib.PurePath(n).name)]
    about = {'kills': len(kills), 'at': kills, 'text': ' '.join(differ + parts)}
    if done.code == 0:
      return about | {'outcome': 'unequal' if differ + parts else 'equal'}
    kind = 'traceback' if 'Traceback' in done.text else 'refused again'
    kind = 'hang' if done.code is None else kind
    return about | {'outcome': kind, 'text': done.text[-900:]}

  def _uninterrupted(self, name: str) -> tuple[pathlib.Path, dict, Done]:
    """Returns a folder, hashes of what is always the same, and the run."""
    if name not in self._whole:
      _run(name, self._begin(name, 'first'))  # It fills the cache.
      places = [self._begin(name, f'whole_{i}') for i in range(2)]
      both = [_run(name, place) for place in places]
      one, other = map(_hashes, places)
      same = {n: h for n, h in one.items() if other.get(n) == h}
      if any(done.code for done in both) or VICTIMS[name].writes not in same:
        raise RuntimeError(f'{name} fails, or never ends alike: {both}')
      self._whole[name] = places[0], same, both[0]
    return self._whole[name]

  def _begin(self, name: str, folder: str) -> pathlib.Path:
    """Returns a folder with what a command needs."""
    place, victim = self._folder / name / folder, VICTIMS[name]
    shutil.rmtree(place, ignore_errors=True)
    if victim.needs:
      shutil.copytree(self._uninterrupted(victim.needs)[0], place)
    else:
      victim.inputs(place)
    return place


def _run(name: str, place: pathlib.Path, at=np.inf, writing=False) -> Done:
  """Runs a command in a folder to its end, or kills it.

  Args:
    name: of the command.
    place: the folder.
    at: seconds after which it is killed.
    writing: kills it at the next change of a file.
  """
  module, *args = VICTIMS[name].command.split()
  hasty = script_process.HASTY
  script = script_process.Script(
    f'experiments.{module}', args, before=hasty, cwd=place
  )
  began, seconds, state, changes = time.monotonic(), 0.0, _state(place), []
  while script.poll() is None and seconds < _LIMIT:
    time.sleep(0.002)
    before, state = state, _state(place)
    seconds = time.monotonic() - began
    if state != before:
      changes.append(seconds)
    if seconds > at and (state != before or not writing):
      break
  code = -9 if seconds < _LIMIT else None
  if script.poll() is None:
    script.kill()
    script.communicate()
  else:
    code = script.returncode
  newest = max(state, key=lambda file: state[file], default='')
  return Done(code, script.printed(), seconds, changes, newest)


def _state(place: pathlib.Path) -> dict[str, int]:
  """Returns the time of change of all files below a folder."""
  state = {}
  for folder, _, names in os.walk(place):
    for path in (os.path.join(folder, name) for name in names):
      try:
        state[os.path.relpath(path, place)] = os.stat(path).st_mtime_ns
      except OSError:  # It is gone.
        continue
  return state


def _hashes(place: pathlib.Path) -> dict[str, str]:
  """Returns the hashes of files, but for what says who ran the command."""
  return {
    name: hashlib.sha256(
      _STATED.sub(b'', (place / name).read_bytes())
    ).hexdigest()
    for name in _state(place)
    if pathlib.PurePath(name).name not in ('config.json', '.lock')
  }
