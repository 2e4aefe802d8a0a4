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

_SECONDS, _PREPARING = 90, 900
_MEMORY = 2**31  # Bytes beyond those of a process that has read a sound file.
# What breaks texts and their numbers.
_WORDS = [
  *(b'nan', b'-1', b'1e999', b'0', b'9' * 30, b'null', b'""', b'\0', b'\xff'),
  *(b'[' * 3000, b'\n', b',', b'{}', b'true', b'\xe2\x80\xa8', b'"', b'../a'),
]


def changed(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  """Returns what was done to a content, and what came of it."""
  size = max(1, len(content))

  def place():  # Headers are at either end.
    edge = min(size, 400 if rng.random() < 0.5 else size)
    return int(rng.integers(edge) + (size - edge) * rng.integers(2))

  kind = ('flips', 'cut', 'inserted', 'swapped', 'word')[rng.integers(5)]
  at, length = place(), int(2 ** rng.uniform(0, 8))
  before, after = content[:at], content[at:]
  match kind:
    case 'flips':
      out = bytearray(content or b'\0')
      for where in [at, *(place() for _ in range(rng.integers(8)))]:
        out[where] ^= 1 << rng.integers(8)
      return kind, bytes(out)
    case 'cut':
      return kind, before + (after[length:] if rng.random() < 0.5 else b'')
    case 'inserted':
      return kind, before + rng.bytes(length) + after
    case 'swapped':
      one, rest = after[:length], after[length:]
      cut = rng.integers(len(rest) + 1)
      other = rest[cut : cut + len(one)]
      return kind, before + other + rest[:cut] + one + rest[cut + len(one) :]
  word = _WORDS[rng.integers(len(_WORDS))]
  over = len(word) if rng.random() < 0.5 else 0
  return kind, before + word + after[over:]


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
    of_part = {'mutations': readers.READERS, 'hostile': hostile.FILES}
    self.names = list(of_part[part])

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
    job = json.dumps([name, int(rng.integers(2**32))]) + '\n'
    self._worker.stdin.write(job.encode())
    about = {}
    for limit in _PREPARING, _SECONDS:
      ready, *_ = select.select([self._worker.stdout], [], [], limit)
      line = self._worker.stdout.readline() if ready else b''
      if not line:
        self._worker.kill()
        self._worker.communicate()
        code, self._worker = self._worker.returncode, None
        return about | {'outcome': 'killed' if ready else 'hang', 'text': code}
      about |= json.loads(line)
    return about


def serve(folder: pathlib.Path) -> None:
  """Answers names of readers and seeds with what became of them."""
  import hostile
  import readers

  from data import inspection

  inspection._PATIENCE = 10
  answers = os.fdopen(os.dup(1), 'w')
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, 1)
  os.dup2(nothing, 2)
  sound = {}
  for job in sys.stdin:
    name, seed = json.loads(job)
    of, spoil = hostile.FILES.get(name, (name, None))
    reader, place = readers.READERS[of], folder / of / 'tried'
    begin(reader, place)
    if of not in sound:
      sound[of] = known(reader.read(place))
      begin(reader, place)
    about = spoil(place) if spoil else damage(reader, place, seed)
    print(json.dumps(about), file=answers, flush=True)
    found = attempt(reader, place, sound[of], about['file'])
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
  """Damages one file."""
  rng = np.random.default_rng(seed)
  lists = [sorted(place.glob(pattern)) for pattern in reader.damaged]
  paths = [[p for p in found if p.is_file()] for found in lists]
  paths = [found for found in paths if found]
  some = paths[rng.integers(len(paths))]
  path = some[rng.integers(len(some))]
  kind, content = changed(path.read_bytes(), rng)
  path.write_bytes(content)
  return {'file': path.relative_to(place).as_posix(), 'kind': kind}


def attempt(reader, place, sound, file: str) -> dict[str, str]:
  """Reads, in limited memory, and compares with what was read before."""
  from experiments.run import faults, start

  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * resource.getpagesize() + _MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
  try:
    value, seal, infinite = known(reader.read(place))
  except (Exception, SystemExit) as e:
    explained = faults.explained(e, place)
    text = explained[1] if explained else str(e)
    named = *start._ERRORS, *reader.errors, SystemExit
    if not explained and not isinstance(e, named):
      lines = traceback.format_exception(e)
      return {'outcome': 'traceback', 'text': ''.join(lines)[-1500:]}
    names = [pathlib.Path(file).stem, *(p.name for p in place.rglob('*'))]
    outcome = 'refused' if any(name in text for name in names) else 'unnamed'
    return {'outcome': outcome, 'text': text[:300]}
  finally:
    unlimited = (resource.RLIM_INFINITY,) * 2
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
  if value == sound[0]:
    return {'outcome': 'equal'}
  silent = infinite > sound[2] or (seal is not None and seal == sound[1])
  return {'outcome': 'silent' if silent else 'changed'}


def known(value) -> tuple[str, str | None, int]:
  """Returns hashes of a value and its seal, and how much is not finite."""
  from readers import Sealed

  seal = None
  if isinstance(value, Sealed):
    value, seal = value.value, hashed(value.seal)[0]
  digest, infinite = hashed(value)
  return digest, seal, infinite


def hashed(value) -> tuple[str, int]:
  """Returns a hash of any value, and how many numbers are not finite."""
  content, infinite = hashlib.sha256(), 0

  def visit(one):
    nonlocal infinite
    if dataclasses.is_dataclass(one):
      one = vars(one)
    elif hasattr(one, '__dict__') and not isinstance(one, str):
      one = type(one).__name__
    if isinstance(one, dict):
      one = sorted(one.items(), key=lambda item: str(item[0]))
    if isinstance(one, list | tuple):
      content.update(f'{len(one)}('.encode())
      for inner in one:
        visit(inner)
      return
    array = np.asarray(one) if isinstance(one, float | np.generic) else one
    if isinstance(array, np.ndarray):
      if array.dtype.kind in 'fc':
        infinite += int((~np.isfinite(array)).sum())
      content.update(f'{array.dtype}{array.shape}'.encode())
      one = array.tolist() if array.dtype.kind == 'O' else array.tobytes()
    content.update(repr(one).encode('utf-8', 'backslashreplace'))

  visit(value)
  return content.hexdigest(), infinite


if __name__ == '__main__':
  serve(pathlib.Path(sys.argv[1]))
