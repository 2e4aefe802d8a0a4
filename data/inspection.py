"""Reads all of many feature files, once: what they hold, and what is odd of it.

HDF5's library can hang or crash on damaged files. They are read in processes of
their own, which end then and take nothing with them. What was read of a file is
kept, until its size or one of its times changes.
"""

import atexit
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

import h5py
import numpy as np

from data import features, files
from data.features import FeatureError, FeatureFile, Folder, Header
from data.files import first_of
from data.packed import Packed

_VERSION = 3  # Of what is kept; what other versions kept is read anew.
_MOST = 16  # Processes.
_WORTH = 32  # Files that take longer than another process does to start.
_PATIENCE, _SLOWEST = 30, 2**20  # Seconds for a file, and bytes in another.
_BETWEEN_SAVES = 60.0  # Seconds.
_SETTLED = 2e9  # Nanoseconds after which any change shows in a file's times.
_LARGEST = 1e15  # Of a feature: sums of products of larger ones are infinite.
_ODD = 1e3  # So many times as large, or as small, as those of most slides.
_WORKER = (
  'import json, sys; sys.path[:] = json.loads(sys.argv[1]);'
  'from data import inspection; inspection.serve()'
)
_idle: dict[int, list[subprocess.Popen]] = {}  # By process: forks share none.


@atexit.register
def _end() -> None:
  for worker in _idle.pop(os.getpid(), []):
    worker.communicate()


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What reading all of a slide's features found.

  Attributes:
    header: None if the file cannot be opened.
    fault: why features cannot be used, '' if they can.
    digest: of the file.
    content: hash of the features alone, whatever file and order they are in.
    largest: absolute value of a feature.
    empty: tiles whose features are all zero; all tiles if these are all alike.
    twice: tiles beyond the first at one place; of files without places, beyond
      the first of one content, if these are most.
  """

  header: Header | None = None
  fault: str = ''
  digest: str = ''
  content: str = ''
  largest: float = 0.0
  empty: int = 0
  twice: int = 0


def inspect(
  source: Folder | Packed,
  slide_ids: Sequence[str],
  cache: Path | None = None,
  *,
  keep: bool = True,
) -> Iterator[str]:
  """Reads the features of slides; fills `source.seen` with what it found.

  Args:
    source: of features.
    slide_ids: of which those without features are passed over.
    cache: a folder of what is known of files, if any.
    keep: writes there.

  Yields:
    Slide ids as they are done.
  """
  packed, begun = isinstance(source, Packed), time.time_ns()
  kept, path, stamps = {}, None, {}
  if cache and not packed:
    name = hashlib.sha256(str(source.path.resolve()).encode()).hexdigest()[:16]
    path = cache / 'features' / f'{name}.json'
    kept = _kept(path)
  for slide in slide_ids:
    if slide not in source:
      continue
    stamps[slide] = [] if packed else _stamp(source.file(slide))
    if stamps[slide] and slide in kept and kept[slide][0] == stamps[slide]:
      source.seen[slide] = kept[slide][1]
      yield slide
  left = [slide for slide in stamps if slide not in source.seen]

  def read(slide):
    return _inspect(slide, source) if packed else _in_worker(source.file(slide))

  def save(new):
    if path and new and keep:
      # If it cannot be kept, it is read again.
      with contextlib.suppress(OSError), files.replacing(path) as part:
        part.write_text(_to_json({'version': _VERSION, 'slides': kept | new}))

  count = min(_MOST, os.cpu_count() or 1, 1 + len(left) // _WORTH)
  new, saved = {}, time.monotonic()
  try:
    with futures.ThreadPoolExecutor(count) as pool:
      for slide, one in zip(left, pool.map(read, left), strict=True):
        source.seen[slide], stamp = one, stamps[slide]
        if not one.fault and max(stamp[1:], default=0) < begun - _SETTLED:
          new[slide] = stamp, one
        yield slide
        if time.monotonic() > saved + _BETWEEN_SAVES:  # A kill costs no more.
          save(new)
          saved = time.monotonic()
  finally:
    save(new)


def of(bag: FeatureFile, header: Header, digest: str = '') -> Inspection:
  """Returns what there is to say of features that were read."""
  rows, coords = np.ascontiguousarray(bag.features), bag.coords
  low, high = rows.min(0).astype(float), rows.max(0).astype(float)
  largest = float(np.maximum(-low, high).max())
  empty = int((~rows.any(1)).sum())
  if len(rows) > 1 and (high - low).max() <= 1e-6 * largest:
    empty = len(rows)
  if coords is not None:
    twice = len(coords) - len(np.unique(coords, axis=0))
  else:
    twice = len(rows) - len({row.tobytes() for row in rows})
    # Tiles of glass may well be the same.
    twice *= len(rows) <= 2 * twice and empty < len(rows)
  content = hashlib.sha256(repr(rows.shape).encode())
  for numbers in (low, high, np.sort(rows.sum(1, float))):  # In any order.
    content.update(numbers)
  fault = ''
  if largest > _LARGEST:
    fault = (
      f'{bag.path}: features of {largest:.3g}, which are too large to compute'
      ' with. Extract the slide again, or take it out of the CSV.'
    )
  return Inspection(
    header, fault, digest, content.hexdigest(), largest, empty, twice
  )


def report(
  path: Path,
  seen: Mapping[str, Inspection],
  cases: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
  """Returns problems and warnings on the features of slides that were read.

  Args:
    path: of the features.
    seen: by slide.
    cases: of the slides; None if they are not known.
  """
  # What cannot be opened was named when its header was asked for.
  problems = [one.fault for one in seen.values() if one.header and one.fault]
  sound = {slide: one for slide, one in seen.items() if not one.fault}
  if not sound:
    return problems, []
  warnings, same = [], {}
  usual = float(np.median([one.largest for one in sound.values()]))
  odd, empty, twice, single = [], [], [], []
  for slide, one in sound.items():
    size = one.header.length
    if usual and one.largest and not 1 / _ODD < one.largest / usual < _ODD:
      odd.append(f'{slide} ({one.largest:.3g})')
    if one.empty:
      empty.append(f'{slide} ({one.empty} of {size})')
    if one.twice:
      twice.append(f'{slide} ({one.twice} of {size})')
    if size == 1:
      single.append(slide)
    same.setdefault(one.content, []).append(slide)
  for names, fault in (
    (
      odd,
      f'features above {_ODD:.0f} times those of most slides, or below their'
      f' {_ODD:.0f}th part',
    ),
    (empty, 'tiles whose features are all zero, or all alike'),
    (twice, 'tiles that are there more than once, and count so'),
  ):
    if names:
      warnings.append(
        f'{path}: {fault}, in slides {first_of(names)}. Extract these slides'
        ' again, or take them out of the CSV.'
      )
  if 2 * len(single) > len(sound):
    warnings.append(
      f'{path}: {len(single)} of {len(sound)} slides have one instance (one'
      f' tile) each: {first_of(single)}. Nothing can be ranked or mapped in'
      ' them. Give features of tiles, not of whole slides.'
    )
  for slides in filter(lambda slides: len(slides) > 1, same.values()):
    owners = {(cases or {}).get(slide) for slide in slides}
    text = f'{path}: slides {first_of(slides)} have the very same features'
    if len(owners) > 1:
      owners = first_of(sorted(owners))
      problems.append(
        f'{text}, and belong to the cases {owners}: one slide under several'
        ' names, a leak between parts of a split. Take all but one out of the'
        ' CSV.'
      )
    else:
      warnings.append(f'{text}: are they one slide under several names?')
  return problems, warnings


def serve() -> None:
  """Answers paths on standard input with inspections, until it is closed."""
  for line in sys.stdin:
    path, patience, inspects = json.loads(line)
    signal.alarm(patience)  # It ends C code, too, and needs no parent.
    one = _to_json((_inspect if inspects else _visit)(files.place(path)))
    signal.alarm(0)
    print(one, flush=True)


def _inspect(place: Path | str, source: Any = features) -> Inspection:
  """Inspects a file, or by its id the slide of a packed dataset."""
  one = Inspection()
  try:
    steps = (
      features.steps(place)
      if source is features
      else (read(place) for read in (source.header, source.read))
    )
    one = Inspection(next(steps))
    digest = source.digest(place)
    return of(next(steps), one.header, digest)
  except (FeatureError, OSError) as e:
    return dataclasses.replace(one, fault=str(e))


def _visit(path: Path) -> Inspection:
  """Reads an HDF5 file of any content; its faults are for whoever opens it."""
  with contextlib.suppress(Exception):
    with h5py.File(path, 'r', locking=False) as file:
      dict(file.attrs)
      for name in file:
        features.part(file, name)[()]
  return Inspection()


def ends(path: Path) -> bool:
  """Returns whether reading an HDF5 file ends, without a crash."""
  return not _in_worker(path, inspects=False).fault


def _in_worker(path: Path, inspects: bool = True) -> Inspection:
  """Inspects, or only reads, a file in another process, which may end of it."""
  idle = _idle.setdefault(os.getpid(), [])
  worker = idle.pop() if idle else None
  if worker is None or worker.poll() is not None:
    worker = subprocess.Popen(
      [sys.executable, '-P', '-c', _WORKER, json.dumps(sys.path)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
  line, patience = '', _patience(path)
  with contextlib.suppress(OSError):
    worker.stdin.write(f'{json.dumps([str(path), patience, inspects])}\n')
    worker.stdin.flush()
    line = worker.stdout.readline()
  if line:
    idle.append(worker)
    return _from_json(json.loads(line))
  worker.kill()
  worker.communicate()
  if worker.returncode >= 0:  # No process could be started.
    return (_inspect if inspects else _visit)(path)
  late = worker.returncode == -signal.SIGALRM
  if late and not isinstance(path, Path):
    return Inspection(
      fault=f'{path}: it took more than {patience} s to read. Copy or mount the'
      ' bucket.'
    )
  what = 'never ends' if late else 'crashed'
  return Inspection(
    fault=f'{path}: damaged (reading it {what}). Delete it and extract the'
    ' slide again.'
  )


def _patience(path: Path) -> int:
  """Returns how many seconds it may take to read a file; networks are slow."""
  slowest = _SLOWEST if isinstance(path, Path) else _SLOWEST // 16
  with contextlib.suppress(Exception):  # Buckets raise errors of many kinds.
    return _PATIENCE + path.stat().st_size // slowest
  return _PATIENCE


def _stamp(path: Path) -> list[int]:
  """Returns size and times of a file, whose content has changed if they did."""
  with contextlib.suppress(OSError):
    stat = path.stat()
    if stat.st_mtime:
      return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
  return []  # A link to no file, or a server that does not tell.


def _kept(path: Path) -> dict[str, tuple[list[int], Inspection]]:
  """Returns what is kept of slides; nothing of a file that is damaged."""
  with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
    value = json.loads(path.read_text())
    if value['version'] == _VERSION:
      return {
        slide: (stamp, _from_json(one))
        for slide, (stamp, one) in dict(value['slides']).items()
      }
  return {}


def _to_json(value: Any) -> str:
  plain = lambda x: vars(x) if dataclasses.is_dataclass(x) else str(x)
  return json.dumps(value, default=plain)


def _from_json(value: dict[str, Any]) -> Inspection:
  header = value['header'] and Header(**value['header'])
  return Inspection(**value | {'header': header})
