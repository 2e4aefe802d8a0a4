"""Files that are there in full or not at all."""

import os

from drawn_results import rows_of
import pytest

from experiments import files


def test_a_file_is_there_in_full_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'new' / 'a.txt'
  files.write_text(path, 'old')
  with monkeypatch.context() as m:
    m.setattr(os, 'replace', None)
    m.setattr(type(path), 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      files.write_text(path, 'new')
  assert path.read_text() == 'old'
  files.write_text(path, 'new')
  assert path.read_text() == 'new'


def test_rows_are_quoted_where_they_must_be(tmp_path):
  rows = [['a', 'b'], ['1,"é"', '']]
  files.write_csv(tmp_path / 'x.csv', rows)
  assert rows_of(tmp_path / 'x.csv') == rows
