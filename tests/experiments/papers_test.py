"""Published numbers can be read, say where they stand, and hang together."""

import pathlib

import numpy as np
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
    known = {'where', 'columns', 'rows'}
    assert content.keys() - {'page', 'notes'} == known, table
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
    "notes = ['n of 9']\ncolumns = ['n', 'p']\n"
    "rows = [['a', 0.1, 5, nan], ['a', 0.2, 6, 'x']]"
  )
  monkeypatch.setattr(papers.importlib.resources, 'files', lambda _: tmp_path)
  found = papers.read('nobody')['x']
  assert found.source == 'Nobody 2020, Table 1, p. 9'
  assert found.notes == ['n of 9']
  assert found.values == {
    ('a', 0.1): {'n': 5},
    ('a', 0.2): {'n': 6, 'p': 'x'},
  }


def test_zhengs_tables_agree():
  paper = {name: one.values for name, one in papers.read('zheng').items()}
  # The classes of Table 1 give KMIL's F1 of the text and of Table 4.
  kmil = list(paper['table_1']['KMIL',].values())
  r, p = np.reshape(kmil, (2, 5)) / 100
  text = paper['figure_2']['KMIL',]
  macro = (2 * r * p / (r + p)).mean()
  assert macro == pytest.approx(text['F1 score'], abs=1e-3)
  assert paper['table_4']['0.1',] == text
  assert paper['table_4']['0',] == paper['table_5']['1',]
  assert paper['figure_3'] == {('KMIL', 'internal'): text} | {
    (*labels, 'external'): values for labels, values in paper['table_2'].items()
  }
  for (task,), known in paper['table_6'].items():
    shown = paper['figure_4'][task, 'internal']
    assert shown.items() <= known.items()
    if task != 'A':
      # What the paper calls AUROC is its balanced accuracy.
      recalls = [v for name, v in known.items() if name.startswith('ACC: ')]
      assert known['AUROC'] == known['balanced ACC']
      assert known['AUROC'] == pytest.approx(np.mean(recalls), abs=6e-5)


@pytest.mark.parametrize('number', [2, 3, 4, 5])
def test_lees_deltas_follow_from_the_rows(number):
  """Each is that of means that were rounded to four digits."""
  held = papers.read('lee')[f'table_{number}'].values
  for label in {label for label, _ in held}:
    weak, strong, delta = (
      np.array([*held[label, kind].values()])
      for kind in ('weak', 'strong', 'delta')
    )
    np.testing.assert_allclose(strong / weak - 1, delta, atol=4e-4)
