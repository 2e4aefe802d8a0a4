"""What a reader of an exported model must know: card.json, README.md."""

from collections.abc import Mapping
import importlib.metadata
from typing import Any

import jinja2

from experiments.prediction.models import Card
from experiments.run.results import Folder

_INPUTS = {'features': ['n', 'D'], 'dtype': 'float32'}
_OUTPUTS = {
  'prob': ['C'],
  'prob_of_folds': ['R', 'C'],
  'attention': ['R', 'n', 'A'],
  'instance_prob': ['R', 'n', 'C'],
  'kept': ['R', 'n'],
}
_USE = 'Research. It is no medical device, and was not validated for diagnosis.'
_LIMITS = (
  'It knows its classes alone, and gives one of them to every slide, whatever'
  ' the slide shows. Other scanners, stains, laboratories and patients than'
  ' those of the training may lower its accuracy: test it on slides of your own'
  ' first. Features of another encoder, tile size or pixel size make its'
  ' answers worthless.'
)
_TEMPERATURE = (
  'The probabilities of fold i are softmax(log p / temperature[i]), where that'
  ' is a number; prob is their mean over the folds.'
)


def describe(folder: Folder, card: Card, licence: str) -> dict[str, Any]:
  """Returns what card.json holds beyond the card.

  Args:
    folder: of the results. Of one without cohort.csv, as of a setting of
      ablations, metrics and cautions are not known.
    card: of the models.
    licence: of the models.

  Raises:
    ResultsError, OptionError: as `record.read`.
  """
  about = {
    'license': licence,
    'inputs': _INPUTS,
    'outputs': _OUTPUTS,
    'temperature_is_applied_as': _TEMPERATURE,
    'intended_use': _USE,
    'limits': _LIMITS,
    'versions': {'jax': importlib.metadata.version('jax')},
    'encoder_weights': None,
  }
  if not folder.has('cohort.csv'):
    return about
  # They import matplotlib, which takes half a second.
  from experiments.reporting import cautions, pictures, record as records

  record = records.read(folder)
  tested = record.tested
  notes = cautions.find(record, pictures.heat_maps(record))
  return about | {
    'slides': len({one.slide for one in tested}),
    'patients': len({one.case for one in tested}),
    'slides_of_class': {
      name: of['slides'] for name, of in record.summary['per_class'].items()
    },
    'metrics': {
      name: [of['pooled'], of['ci_low'], of['ci_high']]
      for name, of in record.summary['metrics'].items()
    },
    'cautions': [f'{note.title}. {note.text}' for note in notes],
  }


def readme(card: Mapping[str, Any]) -> str:
  """Returns README.md, a model card of Hugging Face.

  Args:
    card: content of card.json.
  """
  import huggingface_hub

  measured = [
    huggingface_hub.EvalResult(
      task_type='image-classification',
      dataset_type='own',
      dataset_name=f'{card["patients"]} patients, cross-validation',
      metric_type=name,
      metric_value=value,
    )
    for name, (value, *_) in card.get('metrics', {}).items()
    if value is not None
  ]
  head = huggingface_hub.ModelCardData(
    license=card['license'],
    library_name='kmil_jax',
    tags=['pathology', 'whole-slide-image', 'multiple-instance-learning'],
    model_name=f'{card["model"]} {card["task"]}',
    eval_results=measured or None,
  )
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('experiments.prediction', '.'),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template('README.md.jinja')
  return page.render(head=head.to_yaml(), card=card)
