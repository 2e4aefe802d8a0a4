"""Every published table can be read, and says where it was published."""

import pathlib

import pytest

from experiments import papers

FOLDER = pathlib.Path(papers.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob('*.toml'))


@pytest.mark.parametrize('name', NAMES)
def test_rows_have_labels_of_their_own_and_a_value_per_column(name):
  text = (FOLDER / f'{name}.toml').read_text(encoding='utf-8')
  held = papers.tomllib.loads(text)
  assert held.pop('source') and held
  for table, content in held.items():
    assert content.keys() - {'page'} == {'where', 'columns', 'rows'}, table
    sizes = {len(row) for row in content['rows']}
    assert len(sizes) == 1 and sizes.pop() > len(content['columns']), table
    read = papers.read(name)[table]
    assert len(read.values) == len(content['rows']), table
    columns = set().union(*read.values.values())
    assert columns == set(content['columns']), table


def test_a_table_says_where_it_is_and_leaves_out_what_is_not_published(
  tmp_path, monkeypatch
):
  (tmp_path / 'nobody.toml').write_text(
    "source = 'Nobody 2020'\n[x]\nwhere = 'Table 1'\npage = 9\n"
    "columns = ['n', 'p']\nrows = [['a', 0.1, 5, nan], ['a', 0.2, 6, [1, 2]]]"
  )
  monkeypatch.setattr(papers.importlib.resources, 'files', lambda _: tmp_path)
  found = papers.read('nobody')['x']
  assert found.source == 'Nobody 2020, Table 1, p. 9'
  assert found.values == {
    ('a', 0.1): {'n': 5},
    ('a', 0.2): {'n': 6, 'p': (1, 2)},
  }
