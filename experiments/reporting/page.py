"""Puts a report together and writes it."""

import base64
from collections.abc import Sequence
import datetime
import hashlib
import pathlib

import jinja2
from markupsafe import Markup

from experiments import files
from experiments.papers.tables import MODELS
from experiments.reporting import (
  beside,
  cautions,
  charts,
  mistakes,
  pictures,
  protocol,
  record as records,
  tables,
)
from experiments.reporting.record import Record

NAME = 'report.html'
_HERE = pathlib.Path(__file__).parent
_FIGURES = {
  'roc': 'ROC curves',
  'pr': 'Precision-recall curves',
  'reliability': 'Reliability',
  'confusion': 'Confusion matrix',
}


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes `report.html` of a results folder, one file that needs no other.

  Returns:
    Its path.

  Raises:
    ResultsError: if the folder is not that of a run with finished folds.
  """
  path = folder / NAME
  files.write_text(path, text(records.read(folder)))
  return path


def text(record: Record) -> str:
  """Returns the page."""
  wrong, mistaken = mistakes.worst(record)
  maps = pictures.heat_maps(record, [(m.fold, m.slide) for m in wrong])
  style = (_HERE / 'style.css').read_text(encoding='utf-8')
  script = (_HERE / 'contents.js').read_text(encoding='utf-8')
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {'number': _number, 'interval': _range}
  sizes = record.slides.instances
  return environment.get_template('report.html.jinja').render(
    record=record,
    summary=record.summary,
    title=_title(record),
    written=f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC',
    style=Markup(style),
    script=Markup(script),
    script_hash=_hash(script),
    cautions=cautions.of(record, maps.unmapped),
    protocol=protocol.paragraphs(record),
    recipe=protocol.recipe(record),
    metrics=tables.METRICS,
    cohort=tables.cohort(record),
    features=tables.features(record),
    splits=tables.splits(record),
    folds=tables.folds(record),
    second_folds=tables.second_folds,
    flags=tables.flags(record),
    inputs=tables.inputs(record),
    sizes=None if sizes is None else charts.sizes(sizes),
    curves=_curves(record),
    figures=_figures(record, '', _FIGURES),
    second_figures=_figures(record, 'external_', ('roc', 'pr', 'confusion')),
    groups=beside.groups(record),
    ablation=beside.ablation(record),
    cost=beside.cost(record),
    cost_name=beside.COST,
    mistakes=wrong,
    mistaken=mistaken,
    anchors={(m.fold, m.slide): m.anchor for m in maps.shown},
    maps=maps,
  )


def _title(record: Record) -> str:
  task = record.summary.get('task', 'origin')
  told = '' if task == 'origin' else f', task {task.upper()}'
  model = record.summary['model']
  model = MODELS.get(model, model)
  return f'{model}{told}: {record.summary["k"]}-fold cross-validation'


def _curves(record: Record) -> list[charts.Curves]:
  found = [
    charts.curves(record.history, 'train_loss', 'Training loss'),
    charts.curves(record.history, 'val_loss', 'Validation loss'),
    charts.curves(record.history, 'val_f1_macro', 'Validation macro F1'),
  ]
  return [chart for chart in found if chart]


def _figures(
  record: Record, prefix: str, names: Sequence[str]
) -> list[tuple[str, str, str]]:
  """Names, titles and data URIs of the figures that are there."""
  folder = record.folder / 'figures'
  found = [
    (name, _FIGURES[name], pictures.figure(folder / f'{prefix}{name}.png'))
    for name in names
  ]
  return [(name, title, uri) for name, title, uri in found if uri]


def _hash(script: str) -> str:
  """As a content security policy names a script."""
  digest = hashlib.sha256(script.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _number(value: float | None, digits: int = 3) -> str:
  """A number with its decimals; n/a where it is undefined."""
  return 'n/a' if value is None else f'{value:.{digits}f}'


def _range(pair: tuple[float | None, float | None]) -> str:
  """An interval; n/a where it is undefined."""
  if None in pair:
    return 'n/a'
  return f'{pair[0]:.3f} to {pair[1]:.3f}'
