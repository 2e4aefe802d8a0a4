"""Files are there in full or not at all; tables have their columns."""

import pytest

from data.files import listed, read_csv, replacing


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


def test_linked_folders_are_followed_once_and_broken_links_are_files(tmp_path):
  top, disk = tmp_path / 'top', tmp_path / 'disk'
  for path in (top / 'a/1.svs', disk / 'deep/2.SVS', top / '.x/3.svs'):
    path.parent.mkdir(parents=True)
    path.touch()
  links = {
    'more': disk,
    'again': disk / 'deep',  # Of what `more` holds, too.
    '0': top / 'a',  # Before the folder itself.
    'a/up': top,
    'round': top / 'round',
    'gone.svs': disk / 'gone',
    'gone': disk / 'gone',
    '.gone.svs': disk / 'gone',
  }
  for name, target in links.items():
    (top / name).symlink_to(target)
  below = lambda *args: [
    path.relative_to(top).as_posix() for path in listed(top, *args)
  ]
  assert below({'.svs'}) == ['a/1.svs', 'again/2.SVS', 'gone.svs']
  assert below(None, '*') == ['gone', 'gone.svs', 'round']
  assert below({'.svs'}, '*/*') == ['0/1.svs', 'a/1.svs', 'again/2.SVS']
  assert listed(tmp_path / 'absent') == []
