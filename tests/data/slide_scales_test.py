"""Scales of single slides, as a user writes them into a table."""

import pytest

from data import slide_scales
from data.slide_files import SlideError


def write(folder, text):
  path = folder / 'scales.csv'
  path.write_text(text, encoding='utf-8')
  return path


def test_a_table_of_labels_may_have_the_column(tmp_path):
  text = '\ufeffcase_id,slide_id,label,mpp\nc,007.a,x,0.25\nc,b,x,\nc,c,y, 1\n'
  found = slide_scales.read(write(tmp_path, text))
  assert found == {'007.a': 0.25, 'c': 1.0}


def test_all_wrong_rows_are_named(tmp_path):
  text = 'slide_id,mpp\na,40x\nb,nan\nc,250\n,0.5\nd,0.5\nd,0.25\ne,0.5\n'
  with pytest.raises(SlideError) as error:
    slide_scales.read(write(tmp_path, text))
  rows = str(error.value).split(': ', 1)[1].split('; ')
  assert [row.split(':')[0] for row in rows] == [
    f'row {i}' for i in (2, 3, 4, 5, 7)
  ]
  assert "mpp '250', not 0.05 to 20 um/px" in rows[2]


@pytest.mark.parametrize('content', [None, b'', b'slide_id\na\n', b'\xff\xfe'])
def test_what_is_no_such_table_is_refused(tmp_path, content):
  path = tmp_path / 'scales.csv'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(SlideError, match=r'scales\.csv: '):
    slide_scales.read(path)
