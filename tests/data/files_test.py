"""Files are there in full or not at all; tables have their columns."""

import os
import subprocess
import sys

import numpy as np
import pytest

from data import files
from data.files import listed, read_csv, replacing


def test_what_is_written_takes_the_place(tmp_path):
  path = tmp_path / 'new folder' / 'a.txt'
  for content in ('old', 'new'):
    with replacing(path) as part:
      part.write_text(content)
      assert not path.exists() or path.read_text() == 'old'
    assert path.read_text() == content
  assert list(path.parent.iterdir()) == [path]


def test_what_is_written_again_keeps_its_time(tmp_path):
  path, times = tmp_path / 'a.txt', []
  for content in ('one', 'one', 'two'):
    with replacing(path) as part:
      part.write_text(content)
    times.append(path.stat().st_mtime_ns)
  assert times[0] == times[1] < times[2]
  assert path.read_text() == 'two' and len(list(tmp_path.iterdir())) == 1
  longest = tmp_path / ('é' * 127)
  files.write_csv(longest, [['\udcff']])  # A name of a file need not be text.
  assert longest.read_text() == '\\udcff\n'


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(OSError, match=r'no space .*a\.txt'), replacing(path) as f:
    f.write_text('half')
    raise OSError('no space left on device')
  assert path.read_text() == 'old'
  with pytest.raises(IsADirectoryError) as error, replacing(tmp_path):
    pass
  assert error.value.filename == str(tmp_path)
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


def test_the_space_of_a_folder_that_is_to_be_made_is_known(tmp_path):
  assert files.free_space(tmp_path / 'a/b') > 0


@pytest.mark.parametrize(
  ('group', 'limit'),
  [
    ('0::/a/b', 'memory.max'),
    ('0::/a', 'a/b/memory.max'),  # That of another group.
    ('5:cpu:/\n4:memory:/a/b\n0::/', 'memory/a/memory.limit_in_bytes'),
    ('4:memory:/seen/from/outside', 'memory/memory.limit_in_bytes'),
  ],
)
def test_the_memory_of_a_container_is_what_there_is(tmp_path, group, limit):
  whole = files.memory(tmp_path)
  assert whole > 2**20
  path = tmp_path / 'sys/fs/cgroup' / limit
  path.parent.mkdir(parents=True)
  (tmp_path / 'proc/self').mkdir(parents=True)
  (tmp_path / 'proc/self/cgroup').write_text(f'{group}\n')
  for text, want in ('max', whole), (f'{2**62}', whole), ('4096\n', 4096):
    path.write_text(text)
    files.memory.cache_clear()
    got = files.memory(tmp_path)
    assert got == (whole if limit.startswith('a/') else want)


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
    (b'a,c\n1,2\n', r'no column b \(found: a, c\). Write the header a,b.'),
    (b'a,b,b\n', 'several columns b'),
    ('a,b\n1,ö'.encode('cp1252'), r'cannot .* \(line 2: .*"CSV UTF-8"'),
    ('a,b\n1,ö'.encode('utf-16-le'), r'cannot .* not in UTF-8\. Save it as'),
    (b'a,b,c\n1,2,3\n4,5,"6\n7,8,9\n', r'cannot .* mark after line 2 is never'),
    (b'a,b\n1,"2', r'cannot .* mark after line 1 is never'),
    (b'PK\x03\x04 ...', r'cannot .* a workbook .* Save it as "CSV UTF-8"'),
    (b'a,b\n' + b'1,2\n' * 2**14, 'cannot .* more than 65536 bytes'),
  ],
)
def test_what_is_no_such_table_is_refused(
  tmp_path, monkeypatch, content, words
):
  monkeypatch.setattr(files, '_LARGEST', 2**16)
  path = tmp_path / 'table.csv'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=rf'table\.csv: {words}'):
    read_csv(path, ('a', 'b'), ValueError)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize(
  'text',
  [
    'a,b,x path\n1,é;x,é\n',
    'a, b ,x path\r\n, ,\r\n1, "é;x" , é\r\n,,\r\n\r\n , , \r\n',
    'b;x path;a\r"é;x";é;1\r',
    '\n\nx path\tb\ta\né\te\u0301;x\t1',
    'sep=;\r\na;"b";x path\r\n1;"é;x";é\r\n',
    'a|b|x path\n1|é;x|é\n',
  ],
)
def test_a_table_is_the_same_however_a_spreadsheet_saved_it(
  tmp_path, text, encoding
):
  path = tmp_path / 'table.csv'
  path.write_text(text, encoding=encoding, newline='')
  rows = read_csv(path, ('a', 'b'), ValueError)
  assert [row for _, row in rows] == [{'a': '1', 'b': 'é;x', 'x path': 'é'}]


def test_lines_are_those_of_the_file_and_paths_keep_their_spelling(tmp_path):
  path = tmp_path / 'table.csv'
  apart = 'e\u0301'  # As macOS writes names; NumPy and == tell them apart.
  path.write_text(f'{apart},path\n,\n1,{apart} \n\n2,x,more\n')
  assert read_csv(path, ('é', 'path'), ValueError) == [
    (3, {'é': '1', 'path': apart}),
    (5, {'é': '2', 'path': 'x', None: ['more']}),
  ]


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


@pytest.mark.parametrize('n', [0, 1, 2, np.int64(1), np.int64(3)])
def test_one_of_a_kind_has_no_plural(n):
  assert files.counted(n, 'slide') == f'{n} slide' + 's' * int(n != 1)
