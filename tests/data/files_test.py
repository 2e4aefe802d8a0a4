"""Files are there in full or not at all; tables have their columns."""

import os
import subprocess
import sys

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
  with pytest.raises(OSError, match=r'no space .*a\.txt'), replacing(path) as f:
    f.write_text('half')
    raise OSError('no space left on device')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_the_space_of_a_folder_that_is_to_be_made_is_known(tmp_path):
  assert files.free_space(tmp_path / 'a/b') > 0


def test_what_a_killed_process_left_is_removed_and_no_other(tmp_path):
  dies = (
    'import os, sys\nfrom data.files import replacing\n'
    'with replacing(sys.argv[1]) as part:\n'
    "  part.write_text('half')\n"
    '  os.kill(os.getpid(), 9)'
  )
  command = [sys.executable, '-c', dies, str(tmp_path / 'a.txt')]
  subprocess.run(command, cwd=files.__file__.rsplit('data', 1)[0], check=False)
  (left,) = tmp_path.iterdir()
  parent = left.name.replace(left.name.split('-')[1], str(os.getppid()))
  others = {tmp_path / name for name in (parent, '.a.txt', '.a-1-2')}
  for path in others:
    path.write_text('')
  with replacing(tmp_path / 'b.txt') as part:
    part.write_text('b')
  assert set(tmp_path.iterdir()) == others | {tmp_path / 'b.txt'}


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
