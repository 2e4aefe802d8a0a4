"""A drawn results folder with all that a report may show."""

import html.parser
import itertools
import json

from drawn_results import part
import numpy as np
from PIL import Image

from experiments.evaluation import figures, predictions, summary as summaries
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder

CLASSES = ('non-tumor', '<b>lymph</b>oma', 'breast')
# Ids are the users' own: of slides, which are file names, and of cases.
HOSTILE = '"><img src=x onerror=hacked=1>'
SCRIPT = '</script><script>hacked=2</script>'
K = 3
FLAGS = {
  'csv_path': 'labels.csv',
  'features_dir': 'features',
  'drop': 'lowest',
  'drop_fraction': 0.1,
  'epochs': 40,
  'exp_code': SCRIPT,
  'heat_maps': None,
  'k': K,
  'labels': None,
  'model': 'kmil',
  'lr': 0.0002,
  'precision': 'float32',
  'score': 'var',
  'seed': 7,
  'select': 'f1_macro',
  'task': 'origin',
  'weight_decay': 1e-5,
}
INPUTS = {'labels_sha256': 'abc', 'features_sha256': 'd', 'splits_sha256': 'e'}


class Page(html.parser.HTMLParser):
  """The elements of a page and its text."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.words = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.words.append(' '.join(data.split()))

  @property
  def text(self):
    return ' '.join(word for word in self.words if word)

  def all(self, *tags):
    return [attrs for tag, attrs in self.elements if tag in tags]


def write(folder, folds=(0, 1, 2), external=True):
  """Writes a folder as experiments.kmil leaves it; returns its test parts."""
  tests = {}
  for fold in folds:
    val, test = (_named(part(s, n), s) for s, n in ((50 + fold, 6), (fold, 12)))
    tests[fold] = test
    at = folder / f'fold_{fold}'
    parts = {'val': val, 'test': test}
    predictions.write(Folder(at), fold, parts, CLASSES)
    if external:
      second = _named(part(90, 15), 90)
      prob = part(90 + fold, 15).prob
      second = Predictions(second.case, second.slide, second.label, prob)
      predictions.write(Folder(at), fold, {'external': second}, CLASSES)
    Folder(at).write('metrics.jsonl', _metrics(fold))
    for slide in test.slide:
      path = folder / 'figures' / 'heat_maps' / f'fold_{fold}_{slide}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (60, 20), (10 * fold, 90, 40)).save(path)
  summaries.summarise(Folder(folder), 'kmil', 'origin', K, CLASSES)
  figures.draw(Folder(folder), CLASSES)
  _write_cohort(folder, tests)
  config = {
    'flags': FLAGS,
    'decides': ['lr', 'seed'],
    'inputs': INPUTS,
    'made_by': [
      {
        'versions': {'python': '3.11.0', 'jax': '0.10.2'},
        'commit': 'c0ffee',
        'command': f"python -m experiments.kmil '--exp_code={SCRIPT}'",
      }
    ],
    'cohort': {'width': 16, 'features': {'encoder': 'uni', 'mpp': '0.5'}},
  }
  Folder(folder).write('config.json', config)
  return tests


def change(folder, name, **changes):
  """Overwrites keys of a JSON file of the folder."""
  value = json.loads((folder / name).read_text())
  Folder(folder).write(name, value | changes)


def _named(p, seed):
  """The same slides, some under names that a page must not take for HTML."""
  slide = np.array([f'{seed}_{i}é' for i in range(len(p))], dtype='U40')
  slide[1] = f'{seed}_{HOSTILE}'
  case = p.case.astype('U40')
  case[1] = f'{seed} {SCRIPT}'
  return Predictions(case, slide, p.label, p.prob)


def _metrics(fold):
  return [
    {
      'stage': stage,
      'epoch': epoch,
      'train_loss': 1 / (1 + epoch) + fold,
      'val_loss': 1.5 - 0.01 * epoch,
      'val_accuracy': 0.5,
      'val_f1_macro': 0.4,
      'val_auroc': None,
      'best_epoch': min(epoch, 20),
    }
    for stage, epochs in (('chooser', 5), ('model', 40))
    for epoch in range(epochs)
  ]


def _write_cohort(folder, tests):
  """Every test slide, and the splits that test one fold after the other."""
  rows = [['case_id', 'slide_id', 'label', 'instances']]
  for p in tests.values():
    for i in range(len(p)):
      ids = [p.case[i], p.slide[i], CLASSES[p.label[i]]]
      rows.append([*ids, 10 * (i + 1)])
  Folder(folder).write('cohort.csv', rows)
  group = [tests[f].slide if f in tests else [] for f in range(K)]
  for fold in range(K):
    columns = [group[(fold + i) % K] for i in (2, 1, 0)]
    lines = itertools.zip_longest(*columns, fillvalue='')
    header = ['', 'train', 'val', 'test']
    rows = [header, *([j, *row] for j, row in enumerate(lines))]
    Folder(folder).write(f'splits/splits_{fold}.csv', rows)
