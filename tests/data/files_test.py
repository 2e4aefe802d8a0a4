"""Files are there in full or not at all."""

import pytest

from data.files import replacing


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
