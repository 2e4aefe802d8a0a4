"""Puts a report together and writes it."""

import datetime
import pathlib
from typing import Any

import jinja2

from experiments.evaluation import floors, groups, seeds, summary as summaries
from experiments.reporting import cautions, pictures, record as records, tables
from experiments.run.results import REPORT, Folder
from kmil_jax.models import SPECS

_SPELLING = {'dtfd': 'DTFD-MIL', 'transmil': 'TransMIL'}


def _spelt(model: str) -> str:
  """Returns the name of a model as papers write it."""
  return ' '.join(
    _SPELLING.get(word, word.upper() if word.endswith('mil') else word)
    for word in model.split('_')
  )


def write(folder: Folder) -> pathlib.Path:
  """Writes `report.html` of a results folder, one file that needs no other.

  Returns:
    Its path.

  Raises:
    ResultsError, OptionError: if the folder is not that of a run with finished
      folds.
  """
  record = records.read(folder)
  maps = pictures.heat_maps(record)
  return fill(
    folder,
    'report.html.jinja',
    record=record,
    model=_spelt(record.summary['model']),
    spec=SPECS.get(record.summary['model']),
    least_patients=summaries.LEAST_PATIENTS,
    cautions=cautions.find(record, maps),
    maps=maps,
    flags=record.flags,
    floors=floors,
    groups=groups.read(folder),
    seeds=seeds.read(folder),
    pictures=pictures,
    summaries=summaries,
  )


def fill(folder: Folder, template: str, **values: Any) -> pathlib.Path:
  """Writes `report.html` of a results folder.

  Args:
    folder: to write into.
    template: name of a template of this package.
    **values: what it shows.

  Returns:
    The path of the page.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('experiments.reporting', '.'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template(template).render(
    written=f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC',
    folder=folder.path.resolve().name,
    tables=tables,
    **values,
  )
  folder.write(REPORT, page)
  return folder.at(REPORT)
