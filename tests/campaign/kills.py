"""Kills commands at any moment; the same command must end as if nothing was.

Results of two runs that nobody stopped say which files are always the same:
those must be so after a kill, too. A third of the kills come at random, a third
after the first file is there, a third just as a file of the folder changes.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import time

import golden_inputs
import golden_pictures
import numpy as np
import script_process

_TRAINED = '--csv_path=labels.csv --features_dir=features --k=3 --epochs=2'
_LEFT = re.compile(r'^\..+\.[0-9a-f]{8}-[0-9]+-[0-9a-f]{12}$')
_STATED = re.compile(rb'\d{4}-\d\d-\d\d \d\d:\d\d UTC')  # In a report.
_LIMIT = 300  # Seconds.


@dataclasses.dataclass(frozen=True)
class Victim:
  """A command, what must be there before, and files that it must write."""

  command: str
  inputs: str
  writes: tuple[str, ...]
  needs: str | None = None


def _kmil(model: str) -> Victim:
  folder = f'results/{model}_s2023'
  return Victim(
    f'kmil {_TRAINED} --model={model} --exp_code={model}',
    'two_cohorts',
    (f'{folder}/predictions.csv', f'{folder}/summary.json'),
  )


_BAGS = ('kmil', 'abmil', 'dsmil', 'dtfd', 'transmil')
_PATCHES = Victim(
  'hard_negatives --tiles_dir=annotated --pool_dir=weak --epochs=2 --seeds=1'
  ' --table=2 --batch=4 --input_size=16 --exp_code=mining',
  'annotated_and_weak',
  ('results/mining_s2023/table_2.csv',),
)
VICTIMS = {
  **{model: _kmil(model) for model in _BAGS},
  'patches': _PATCHES,
  'extract': Victim(
    'extract --slides_dir=slides --features_dir=features --tile_size=64',
    'slides',
    ('features/2024-010_A.h5',),
  ),
  'predict': Victim(
    'predict --run=results/kmil_s2023 --features_dir=other_features'
    ' --exp_code=others',
    'two_cohorts',
    ('results/others/predictions.csv',),
    'kmil',
  ),
  'export': Victim(
    'export --run=results/kmil_s2023 --out=model.kmil',
    'two_cohorts',
    ('model.kmil',),
    'kmil',
  ),
  'report': Victim(
    'report --run=results/kmil_s2023',
    'two_cohorts',
    ('results/kmil_s2023/report.html',),
    'kmil',
  ),
}
# What is killed in which order, by part of the campaign.
PARTS = {
  'kills_training': ('kmil', *_BAGS, 'kmil', 'patches'),
  'kills_extraction': ('extract',),
  'kills_after': ('predict', 'export', 'report'),
}


@dataclasses.dataclass(frozen=True)
class Whole:
  """What a command does that nobody stops."""

  folder: pathlib.Path
  files: dict[str, str]  # hashes of those that are always the same
  seconds: float
  changes: list[float]  # seconds at which files changed


class Kills:
  """Trials of kills.

  Args:
    folder: to work in, with what is compiled.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self._whole = folder, {}

  def trial(self, name: str, rng: np.random.Generator) -> dict:
    """Kills a command, once or more, and gives it again until it ends."""
    whole = self._uninterrupted(name)
    place, kills, share = self._begin(name, 'trial'), [], 1.0
    while not kills or (len(kills) < 4 and rng.random() < 0.3):
      kind = ('any', 'later', 'writing')[rng.integers(3)]
      first = 0.05 if kind == 'any' else whole.changes[0]
      last = whole.changes[-1] if kind == 'writing' else whole.seconds
      at = share * rng.uniform(first, last)
      code, *found = _run(name, place, at, kind)
      if code is None:
        kills.append([kind, *found])
      elif kills or code:
        break
      else:  # It was done before.
        place, share = self._begin(name, 'trial'), share / 2
    about = {'kills': len(kills), 'at': kills}
    code, text = (code, found[0]) if code is not None else (_run(name, place))
    if code:
      kind = 'traceback' if 'Traceback' in text else 'refused'
      return about | {'outcome': kind, 'text': text[-600:]}
    after = _hashes(place)
    differ = [n for n, h in whole.files.items() if after.get(n) != h]
    left = [n for n in after if _LEFT.match(pathlib.PurePath(n).name)]
    outcome = 'unequal' if differ else 'leftover' if left else 'equal'
    return about | {'outcome': outcome, 'text': ' '.join(differ + left)}

  def _uninterrupted(self, name: str) -> Whole:
    if name not in self._whole:
      _run(name, self._begin(name, 'first'))  # It fills the cache.
      places = [self._begin(name, f'whole_{i}') for i in range(2)]
      code, text, seconds, changes = _watched(name, places[0])
      others = _run(name, places[1])
      if code or others[0]:
        raise RuntimeError(f'{name}: {text}{others[1]}')
      one, other = map(_hashes, places)
      same = {n: h for n, h in one.items() if other.get(n) == h}
      missing = [n for n in VICTIMS[name].writes if n not in same]
      if missing or not changes:
        raise RuntimeError(f'{name}: {missing} is not always the same')
      self._whole[name] = Whole(places[0], same, seconds, changes)
    return self._whole[name]

  def _begin(self, name: str, folder: str) -> pathlib.Path:
    """Returns a folder with what a command needs."""
    place = self._folder / name / folder
    shutil.rmtree(place, ignore_errors=True)
    if needs := VICTIMS[name].needs:
      shutil.copytree(self._uninterrupted(needs).folder, place)
    else:
      fill = VICTIMS[name].inputs
      modules = golden_inputs, golden_pictures
      next(getattr(m, fill) for m in modules if hasattr(m, fill))(place)
    return place


def _start(name: str, place: pathlib.Path) -> script_process.Script:
  module, *args = VICTIMS[name].command.split()
  return script_process.Script(
    f'experiments.{module}', args, before=script_process.HASTY, cwd=place
  )


def _run(name, place, seconds=None, kind='') -> tuple:
  """Runs a command to its end, or kills it.

  Args:
    name: of the command.
    place: the folder it runs in.
    seconds: after which it is killed.
    kind: 'writing' if that is at the next change of a file.

  Returns:
    Exit code and what was printed; of what was killed None, the seconds and the
    file that was written last.
  """
  script, began = _start(name, place), time.monotonic()
  before = _state(place)
  while script.poll() is None and time.monotonic() - began < _LIMIT:
    now = time.monotonic() - began
    if seconds is not None and now > seconds:
      state = _state(place)
      if kind != 'writing' or (state != before and now > seconds + 0.002):
        script.kill()
        script.communicate()
        newest = max(state, key=lambda name: state[name], default='')
        return None, round(now, 3), newest
      before = state
    time.sleep(0.0005 if kind == 'writing' else 0.005)
  if script.poll() is None:
    script.kill()
    return -1, 'it never ends'
  return script.returncode, script.communicate()[0]


def _watched(name, place) -> tuple[int, str, float, list[float]]:
  """Runs a command; also returns its seconds, and when files changed."""
  script, began = _start(name, place), time.monotonic()
  before, changes = _state(place), []
  while script.poll() is None:
    if (state := _state(place)) != before:
      changes.append(time.monotonic() - began)
      before = state
    time.sleep(0.002)
  seconds = time.monotonic() - began
  return script.returncode, script.communicate()[0], seconds, changes


def _state(place: pathlib.Path) -> dict[str, int]:
  """Returns the time of change of all files below a folder."""
  state = {}
  for folder, _, names in os.walk(place):
    for name in names:
      path = os.path.join(folder, name)
      try:
        state[os.path.relpath(path, place)] = os.stat(path).st_mtime_ns
      except OSError:  # It is gone.
        continue
  return state


def _hashes(place: pathlib.Path) -> dict[str, str]:
  """Returns the hashes of files, but for what says who ran the command."""
  hashes = {}
  for path in sorted(place.rglob('*')):
    if path.is_file() and path.name not in ('config.json', '.lock'):
      content = _STATED.sub(b'', path.read_bytes())
      digest = hashlib.sha256(content).hexdigest()
      hashes[path.relative_to(place).as_posix()] = digest
  return hashes
