"""What reading all features finds, in processes that may end of it."""

import json
import os
import re
import shutil
import time

import numpy as np
import pytest
from samples import write_features

from data import inspection
from data.features import FeatureError, Folder

PLACES = np.stack([np.arange(6) * 256, np.zeros(6, int)], 1)


@pytest.fixture
def new_workers():
  inspection._end()
  yield
  inspection._end()


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """Sound slides, a cache that keeps what is read, and what is read again."""
  monkeypatch.setattr(inspection, '_SETTLED', 0)
  again, read = [], inspection._in_worker

  def noted(path):
    again.append(path.stem)
    return read(path)

  monkeypatch.setattr(inspection, '_in_worker', noted)
  root = folder(tmp_path / 'in')
  time.sleep(0.02)  # A step of the clock that stamps files.
  return root, tmp_path / 'cache', again


def rows(seed, count=6):
  return np.random.default_rng(seed).normal(size=(count, 4)).astype('f4')


def folder(root, **changes):
  """Writes sound slides a, b, c, d but for what is given of some."""
  for seed, name in enumerate('abcd'):
    bag, places = changes.get(name, (rows(seed), PLACES))
    coords = {} if places is None else {'coords': places}
    write_features(root / f'{name}.h5', features=bag, **coords)
  return root


def seen(root, cache=None):
  source = Folder(root)
  ids = [*'abcd', 'absent']
  assert sorted(inspection.inspect(source, ids, cache)) == source.ids()
  return source


def test_it_is_what_reading_each_file_gives(tmp_path):
  (tmp_path / 'x').write_text('')
  folder(tmp_path, b=(rows(1) * np.float32('nan'), PLACES))
  (tmp_path / 'c.h5').write_bytes(b'x')
  source, plain = seen(tmp_path), Folder(tmp_path)
  for name in 'ad':
    assert source.header(name) == plain.header(name)
    assert source.digest(name) == plain.digest(name)
  assert source.header('b') == plain.header('b')
  for name in 'bc':
    messages = []
    for one in (source, plain):
      with pytest.raises(FeatureError) as error:
        one.read(name)
      messages.append(str(error.value))
    assert messages[0] == messages[1]


SLIDES = {name: [1, {'header': None}] for name in 'abcd'}
DAMAGED = json.dumps({'version': 1, 'slides': SLIDES})


@pytest.mark.parametrize('damage', [None, '', '[1]', '{"version": 1}', DAMAGED])
def test_what_is_known_is_not_read_again_until_it_changes(kept, damage):
  root, cache, again = kept
  before = seen(root, cache).seen
  (file,) = cache.rglob('*.json')
  if damage is not None:
    file.write_text(damage)
    assert seen(root, cache).seen == before
  times = os.stat(root / 'c.h5')
  content = bytearray((root / 'c.h5').read_bytes())
  content[-1] ^= 1
  time.sleep(0.02)
  (root / 'c.h5').write_bytes(content)
  os.utime(root / 'c.h5', ns=(times.st_atime_ns, times.st_mtime_ns))
  again.clear()
  after = seen(root, cache).seen
  assert again == ['c'] and after['c'].digest != before['c'].digest
  assert {**after, 'c': 0} == {**before, 'c': 0}


@pytest.mark.parametrize('stop', ['interrupted', 'killed'])
def test_what_was_read_before_a_stop_is_not_read_again(kept, monkeypatch, stop):
  root, cache, again = kept
  if stop == 'killed':
    monkeypatch.setattr(inspection, '_BETWEEN_SAVES', -1)
  stopped = inspection.inspect(Folder(root), 'abcd', cache)
  assert [next(stopped) for _ in range(3)] == [*'abc']
  if stop == 'interrupted':
    stopped.close()
  again.clear()
  seen(root, cache)
  assert again == (['d'] if stop == 'interrupted' else ['c', 'd'])


@pytest.mark.parametrize('kind', ['never ends', 'crashed', 'no process'])
def test_a_file_that_ends_its_reader_is_named_alone(
  tmp_path, monkeypatch, new_workers, kind
):
  folder(tmp_path)
  code = inspection._WORKER
  if kind == 'never ends':
    (tmp_path / 'b.h5').unlink()
    os.mkfifo(tmp_path / 'b.h5')  # Nobody ever writes into it.
    monkeypatch.setattr(inspection, '_PATIENCE', 1)
  elif kind == 'crashed':
    code = code.replace('inspection.serve()', '') + (
      'read = inspection._inspect; inspection._inspect = lambda path:'
      ' os.abort() if path.stem == "b" else read(path); inspection.serve()'
    )
    code = f'import os; {code}'
  else:
    code = 'raise SystemExit(1)'
  monkeypatch.setattr(inspection, '_WORKER', code)
  found = seen(tmp_path).seen
  faults = {name: one.fault for name, one in found.items() if one.fault}
  if kind == 'no process':
    assert faults == {}
  else:
    assert list(faults) == ['b']
    assert f'b.h5: damaged (reading it {kind})' in faults['b']


HUGE = rows(1)
HUGE[3, 2] = 1e38


@pytest.mark.parametrize(
  ('changes', 'cases', 'problem', 'warning'),
  [
    ({}, 'abcd', None, None),
    ({'b': (HUGE, PLACES)}, 'abcd', 'b.h5: features of 1e.38, .*large', None),
    ({'b': (rows(1) * 1e5, PLACES)}, 'abcd', None, '1000 times those of most'),
    ({'b': (rows(1) * 1e-5, PLACES)}, 'abcd', None, 'or below .* slides b '),
    (
      {'b': (np.zeros((6, 4), 'f4'), PLACES)},
      'abcd',
      None,
      'alike, .* b .6 of',
    ),
    ({'b': (np.full((6, 4), 0.3, 'f2'), PLACES)}, 'abcd', None, 'b .6 of 6'),
    ({'b': (rows(1) * (PLACES[:, :1] > 0), PLACES)}, 'abcd', None, 'b .1 of 6'),
    (
      {'b': (np.tile(rows(1, 3), (2, 1)), None)},
      'abcd',
      None,
      'once.* b .3 of',
    ),
    ({'b': (rows(1), PLACES // 512)}, 'abcd', None, 'than once, .* b .3 of 6'),
    (
      {'b': (rows(0), None)},
      'abcd',
      'a, b have the very.* cases a, b: one',
      None,
    ),
    ({'b': (rows(0)[::-1], PLACES)}, 'abcd', 'a, b have the very same', None),
    (
      {'b': (rows(0), PLACES)},
      'aacd',
      None,
      'a, b have the very same .* names',
    ),
    (
      {n: (rows(i, 1), None) for i, n in enumerate('abcd')},
      'abcd',
      None,
      '4 of 4 slides have one instance .*: a, b, c, d',
    ),
  ],
)
def test_odd_features_are_named(tmp_path, changes, cases, problem, warning):
  root = folder(tmp_path, **changes)
  owners = dict(zip('abcd', cases, strict=True))
  found = inspection.report(root, seen(root).seen, owners)
  for lines, words in zip(found, (problem, warning), strict=True):
    assert len(lines) == (words is not None), found
    if words:
      (line,) = lines
      assert line.startswith((f'{root}: ', f'{root}/b.h5: '))
      assert re.search(words, line), line


def test_a_slide_under_another_name_and_in_another_file_is_known(tmp_path):
  folder(tmp_path)
  shutil.copy(tmp_path / 'a.h5', tmp_path / 'd.h5')
  write_features(tmp_path / 'd.h5', {'encoder': 'x'}, feats=rows(0)[None])
  found = seen(tmp_path).seen
  assert found['a'].content == found['d'].content
  assert found['a'].digest != found['d'].digest
