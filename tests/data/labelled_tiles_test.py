"""Sets of tiles: subsets, unions, decoding once, faults named together."""

import dataclasses

import numpy as np
import pytest
from samples import picture

from data.labelled_tiles import TileError, concatenate, from_arrays

CLASSES = ('no', 'yes')


def planted(n=10, seed=0, prefix='t'):
  images = picture(seed, (n, 6, 6, 3))
  tiles = from_arrays(
    images,
    np.arange(n) % 2,
    [f'p{i // 3}' for i in range(n)],
    CLASSES,
    ids=[f'{prefix}{i}' for i in range(n)],
  )
  places = np.arange(2 * n).reshape(n, 2)
  return images, dataclasses.replace(tiles, xy=places)


def test_taking_from_what_was_taken_reads_the_right_tile():
  images, tiles = planted()
  odd = tiles.take(np.arange(10) % 2 == 1)
  few = odd.take([3, 0])
  assert few.id.tolist() == ['t7', 't1']
  assert few.group.tolist() == ['p2', 'p0']
  assert few.xy.tolist() == [[14, 15], [2, 3]]
  np.testing.assert_array_equal(few.load([0, 1]), images[[7, 1]])
  np.testing.assert_array_equal(few.pixels, images[[7, 1]])
  assert len(tiles.take([])) == 0


def test_a_union_reads_every_set():
  a, first = planted(3)
  b, second = planted(4, 1, 'u')
  none = planted(2, prefix='v')[1].take([])
  both = concatenate([first, none, second])
  np.testing.assert_array_equal(both.pixels, np.concatenate([a, b]))
  assert both.id.tolist() == [*first.id, *second.id]
  picked = both.take([5, 1])
  np.testing.assert_array_equal(picked.pixels, [b[2], a[1]])
  with pytest.raises(TileError, match='t0: 2 tiles'):
    concatenate([first, first])
  other = from_arrays(b, [0] * 4, [''] * 4, ('a', 'b'))
  with pytest.raises(TileError, match='different classes'):
    concatenate([first, other])
  floats = from_arrays(b / np.float32(255), [0] * 4, [''] * 4, CLASSES)
  with pytest.raises(TileError, match='different dtype'):
    concatenate([first, floats])


def test_all_faults_are_named_at_once():
  images, tiles = planted(200)

  def read(i):
    if i % 10 == 3:
      raise TileError(f't{i}: torn')
    return images[i, :5] if i == 100 else images[i]

  broken = dataclasses.replace(tiles, read=read)
  with pytest.raises(TileError) as error:
    broken.pixels  # noqa: B018
  text = str(error.value)
  assert '21 problem(s)' in text and 'and 11 more' in text
  assert text.count('torn') == 10 and 't3: torn' in text
  with pytest.raises(TileError, match=r't100: uint8 \[5, 6, 3\], where'):
    broken.load(np.array([100]))


def test_what_is_no_number_is_refused():
  images = np.full((4, 3, 3, 1), 0.5, np.float32)
  images[2, 1, 1] = np.nan
  tiles = from_arrays(images, [0, 1, 0, 1], ['a'] * 4, CLASSES)
  assert tiles.channels == 1 and tiles.dtype == np.float32
  with pytest.raises(TileError, match='0000002: 1 of 9 values'):
    tiles.pixels  # noqa: B018


@pytest.mark.parametrize(
  'label, words',
  [
    ([0, 1, 1], '2 tiles and 3'),
    ([0, 2], 'labels run from 0 to 2'),
    ([-1, 0], 'labels run from -1'),
  ],
)
def test_other_labels_are_refused(label, words):
  images = np.zeros((2, 3, 3, 3), np.uint8)
  with pytest.raises(TileError, match=words):
    from_arrays(images, label, ['a', 'b'], CLASSES)
