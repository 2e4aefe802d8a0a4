"""Files are there in full or not at all; tables have their columns."""

import pytest

from data import files
from data.files import read_csv, replacing


def test_what_is_written_takes_the_place(tmp_path):
  path = tmp_path / 'new folder' / 'a.txt'
  for content in ('old', 'new'):
    with replacing(path) as part:
      part.write_text(content)
      assert not path.exists() or path.read_text() == 'old'
    assert path.read_text() == content
  assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(OSError, match='no space'), replacing(path) as part:
    part.write_text('half')
    raise OSError('no space left on device')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('size', [0, 1, 4, 7, 8, 9, 12, 13, 30])
def test_every_byte_counts(tmp_path, monkeypatch, size):
  monkeypatch.setattr(files, '_EDGE', 4)
  path, hashes = tmp_path / 'a', set()
  for i in range(-1, size):
    content = bytes(1 if i == j else 0 for j in range(size))
    path.write_bytes(content)
    hashes.add(files.hash_of_edges(path, middle=True))
    same = files.hash_of_edges(path) == files.hash_of_edges(path, middle=True)
    assert same == (size <= 8)  # Results of earlier versions hold these.
  assert len(hashes) == size + 1


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (None, 'cannot be read as CSV'),
    (b'\xff\xfe\x00c\xd8', 'cannot be read as CSV'),
    (b'a,c\n1,2\n', 'no column b; found a, c; a header a,b is needed'),
    (b'a,b,b\n', 'several columns b'),
  ],
)
def test_what_is_no_such_table_is_refused(tmp_path, content, words):
  path = tmp_path / 'table.csv'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=rf'table\.csv: {words}'):
    read_csv(path, ('a', 'b'), ValueError)
