"""Published numbers, a TOML file for each paper.

  source = 'Tang et al. 2022'

  [table_2]                       # any name
  where = 'Table 2'
  notes = ['On validation patches.']  # what a reader must know; may be absent
  page = 9                        # absent if the source has no pages
  columns = ['accuracy', 'AUROC']
  rows = [
    ['GoogLeNet', 0.973, 0.9957],       # labels, then a value per column
    ['ResNet-50', 'external', 0.9, nan],  # nan: not published
  ]

Labels and columns are named as in the table here that the values stand in. A
value is a number or a text.
"""

import functools
import importlib.resources
import math
import tomllib

from experiments.evaluation.tables import Published


@functools.cache
def read(name: str) -> dict[str, Published]:
  """Returns the tables of a paper, by name.

  Args:
    name: of the file, as 'tang'.
  """
  file = importlib.resources.files(__name__) / f'{name}.toml'
  tables = tomllib.loads(file.read_text(encoding='utf-8'))
  source, published = tables.pop('source'), {}
  for table, content in tables.items():
    columns = content['columns']
    values = {
      tuple(row[: -len(columns)]): {
        column: value
        for column, value in zip(columns, row[-len(columns) :], strict=True)
        if not (isinstance(value, float) and math.isnan(value))
      }
      for row in content['rows']
    }
    page = f', p. {content["page"]}' if 'page' in content else ''
    where = f'{source}, {content["where"]}{page}'
    published[table] = Published(where, values, content.get('notes', ()))
  return published
