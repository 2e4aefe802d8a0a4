"""Damages one file of a reader at a time, and notes what becomes of it.

Readers run in a process of their own, of limited memory and time, which is
started anew when it ends.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import select
import shutil
import subprocess
import sys
import traceback

import numpy as np

_PREPARING, _SECONDS = 900, 240
_MEMORY = 2**31  # Bytes beyond those of a process that has read a sound file.
# What breaks texts and their numbers.
_WORDS = b'nan -1 1e999 0 null "" \0 \xff \n , {} true \xe2\x80\xa8 ../a'
_WORDS = [*_WORDS.split(b' '), b'9' * 30, b'[' * 3000]
_FOREVER = (resource.RLIM_INFINITY,) * 2


def changed(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  """Returns what was done to a content, and what came of it."""
  size = max(1, len(content))

  def place():  # Headers are at either end.
    edge = min(size, 400 if rng.random() < 0.5 else size)
    return int(rng.integers(edge) + (size - edge) * rng.integers(2))

  kind = ('flips', 'cut', 'inserted', 'swapped', 'word')[rng.integers(5)]
  at, length = place(), int(2 ** rng.uniform(0, 8))
  before, after = content[:at], content[at:]
  one, rest = after[:length], after[length:]
  match kind:
    case 'flips':
      out = bytearray(content or b'\0')
      for where in [at, *(place() for _ in range(rng.integers(8)))]:
        out[where] ^= 1 << rng.integers(8)
      return kind, bytes(out)
    case 'cut':
      return kind, before + rest * rng.integers(2)
    case 'inserted':
      return kind, before + rng.bytes(length) + after
    case 'swapped':
      cut = rng.integers(len(rest) + 1)
      other, end = rest[cut : cut + len(one)], rest[cut + len(one) :]
      return kind, before + other + rest[:cut] + one + end
  word = _WORDS[rng.integers(len(_WORDS))]
  return kind, before + word + after[len(word) * rng.integers(2) :]


class Trials:
  """Trials of mutations, or of files made to do harm.

  Args:
    folder: to work in.
    part: 'mutations' or 'hostile'.
  """

  def __init__(self, folder: pathlib.Path, part: str):
    import hostile
    import readers

    self._folder, self._worker = folder / 'read', None
    self.names = [*(readers.READERS if part == 'mutations' else hostile.FILES)]

  def trial(self, name: str, rng: np.random.Generator) -> dict:
    """Damages a file and reads it, or reads what does harm."""
    if self._worker is None:
      self._worker = subprocess.Popen(
        [sys.executable, __file__, str(self._folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
        bufsize=0,
      )
    job = json.dumps([name, int(rng.integers(2**32))])
    self._worker.stdin.write(f'{job}\n'.encode())
    about = {}
    for limit in _PREPARING, _SECONDS:
      ready, *_ = select.select([self._worker.stdout], [], [], limit)
      line = self._worker.stdout.readline() if ready else b''
      if not line:
        self._worker.kill()
        self._worker.communicate()
        self._worker = None
        return about | {'outcome': 'killed' if ready else 'hang'}
      about |= json.loads(line)
    return about


def serve(folder: pathlib.Path) -> None:
  """Answers names of readers and seeds with what became of them."""
  import hostile
  import readers

  answers = os.fdopen(os.dup(1), 'w')
  nothing = os.open(os.devnull, os.O_WRONLY)
  for stream in 1, 2:
    os.dup2(nothing, stream)
  known = {}
  for job in sys.stdin:
    name, seed = json.loads(job)
    of, spoil = hostile.FILES.get(name, (name, None))
    reader, place = readers.READERS[of], folder / of / 'tried'
    if of not in known:
      begin(reader, place)
      known[of] = hashed(reader.read(place))
    begin(reader, place)
    about = {'kind': 'hostile'}
    if spoil:
      spoil(place)
    else:
      about = damage(reader, place, seed)
    print(json.dumps(about), file=answers, flush=True)
    found = attempt(reader, place, known[of], about.get('file', ''))
    print(json.dumps(found), file=answers, flush=True)


def begin(reader, place: pathlib.Path) -> None:
  """Puts sound files into a folder."""
  sound, part = place.with_name('sound'), place.with_name('part')
  for folder in part, place:
    shutil.rmtree(folder, ignore_errors=True)
  if not sound.exists():
    part.mkdir(parents=True)
    reader.write(part)
    part.rename(sound)
  shutil.copytree(sound, place)


def damage(reader, place: pathlib.Path, seed: int) -> dict[str, str]:
  """Damages one file: any of any pattern."""
  rng = np.random.default_rng(seed)
  some = map(place.glob, reader.damaged.split())
  lists = [sorted(filter(pathlib.Path.is_file, paths)) for paths in some]
  lists = list(filter(None, lists))
  paths = lists[rng.integers(len(lists))]
  path = paths[rng.integers(len(paths))]
  kind, content = changed(path.read_bytes(), rng)
  path.write_bytes(content)
  return {'file': path.relative_to(place).as_posix(), 'kind': kind}


def attempt(reader, place, known, file: str) -> dict[str, str]:
  """Reads, in limited memory, and compares with what was read before."""
  from experiments.run import start

  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * resource.getpagesize() + _MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, _FOREVER[1]))
  try:
    value, infinite = hashed(reader.read(place))
  except (Exception, SystemExit) as e:
    explained = start.fault_of_machine(e, pathlib.Path('no cache'))
    named = isinstance(e, SystemExit) or start.is_explained(e)
    if not explained and not named:
      lines = traceback.format_exception(e)
      return {'outcome': 'traceback', 'text': ''.join(lines)[-1500:]}
    text = explained[1] if explained else str(e)
    names = [path.name for path in place.rglob('*')]
    names += [pathlib.Path(file).stem] if file else []
    outcome = 'refused' if any(name in text for name in names) else 'unnamed'
    return {'outcome': outcome, 'text': text[:300]}
  finally:
    resource.setrlimit(resource.RLIMIT_AS, _FOREVER)
  if value == known[0]:
    return {'outcome': 'equal'}
  silent = reader.sealed or infinite > known[1]
  return {'outcome': 'silent' if silent else 'changed'}


def hashed(value) -> tuple[str, int]:
  """Returns a hash of any value, and how many numbers are not finite."""
  content, infinite = hashlib.sha256(), 0

  def visit(one):
    nonlocal infinite
    if dataclasses.is_dataclass(one):
      one = vars(one)
    elif hasattr(one, '__dict__'):
      one = type(one).__name__
    if isinstance(one, dict):
      one = sorted(one.items(), key=str)
    if isinstance(one, list | tuple):
      content.update(f'{len(one)}('.encode())
      for inner in one:
        visit(inner)
      return
    if isinstance(one, float | np.generic | np.ndarray):
      one = np.asarray(one)
      if one.dtype.kind in 'fc':
        infinite += int((~np.isfinite(one)).sum())
      content.update(f'{one.dtype}{one.shape}'.encode())
      one = one.tolist() if one.dtype.kind == 'O' else one.tobytes()
    content.update(repr(one).encode('utf-8', 'backslashreplace'))

  visit(value)
  return content.hexdigest(), infinite


if __name__ == '__main__':
  serve(pathlib.Path(sys.argv[1]))
