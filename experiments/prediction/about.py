"""What a reader of an exported model must know: card.json, README.md."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import jinja2

from experiments.prediction.models import Card
from experiments.run.results import Folder


def describe(folder: Folder, card: Card, licence: str) -> dict[str, Any]:
  """Returns what card.json holds.

  Args:
    folder: of the results. Of one without cohort.csv, as of a setting of
      ablations, metrics and cautions are not known.
    card: of the models.
    licence: of the models.

  Raises:
    ResultsError, OptionError: as `record.read`.
  """
  about = card.to_json() | {'license': licence, 'encoder_weights': None}
  if not folder.has('cohort.csv'):
    return about
  # They import matplotlib, which takes half a second.
  from experiments.reporting import cautions, pictures, record as records

  record = records.read(folder)
  notes = cautions.find(record, pictures.heat_maps(record))
  return about | {
    'slides': len({one.slide for one in record.tested}),
    'patients': len({one.case for one in record.tested}),
    'part': record.summary.get('part', 'test'),
    'may_be_quoted': not any(note.serious for note in notes),
    'k': record.summary['k'],
    'evaluated_folds': record.summary['folds'],
    'metrics': record.summary['metrics'],
    'per_class': record.summary['per_class'],
    'cautions': [f'{note.title}. {note.text}' for note in notes],
  }


def readme(card: Mapping[str, Any]) -> str:
  """Returns README.md, a model card as Hugging Face has them.

  Args:
    card: content of card.json.
  """
  path = pathlib.Path(__file__).with_name('README.md.jinja')
  page = jinja2.Template(
    path.read_text('utf-8'),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  return page.render(card=card, jax=jax.__version__)
