"""The results folder: predictions, summaries, and what made them."""

from collections.abc import Iterable, Sequence
import csv
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess

import numpy as np

from data import atomic
from kmil_jax import metrics

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_COLUMNS = ('case_id', 'slide_id', 'fold', 'split', 'label', 'pred')


class ResultsError(ValueError):
  """A results folder that belongs to another experiment; lists what differs."""


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Slides of one fold and part with their probabilities."""

  case: np.ndarray  # [n] str
  slide: np.ndarray  # [n] str
  label: np.ndarray  # [n] int
  prob: np.ndarray  # [n, C]

  def __len__(self) -> int:
    return len(self.label)


def open_folder(
  folder: pathlib.Path, flags: dict, decides: Iterable[str], inputs: dict
) -> None:
  """Makes the folder and records what its results are a function of.

  Args:
    folder: of the experiment; may hold an earlier, unfinished run of it.
    flags: resolved flags.
    decides: names of those that decide the result.
    inputs: hashes of labels, features and splits.

  Raises:
    ResultsError: if the folder was begun with other flags or inputs.
  """
  path = folder / 'config.json'
  decides = sorted(decides)
  made_by = {
    'versions': {'python': platform.python_version()}
    | {p: importlib.metadata.version(p) for p in _PACKAGES},
    'commit': _commit(),
  }
  config = {
    'flags': flags,
    'decides': decides,
    'inputs': inputs,
    'made_by': [made_by],
  }
  if path.exists():
    old = json.loads(path.read_text())
    before = {k: old['flags'].get(k) for k in old['decides']} | old['inputs']
    now = {k: flags[k] for k in decides} | inputs
    now = json.loads(json.dumps(now))
    differ = [
      f'  {name}: {before.get(name)} before, {now.get(name)} now'
      for name in sorted(before | now)
      if before.get(name) != now.get(name)
    ]
    if differ:
      raise ResultsError(
        f'{folder} holds results of other settings:\n'
        + '\n'.join(differ)
        + '\nchoose another --exp_code, or remove the folder'
      )
    # What began it stays on record; what goes on with it is added.
    config = old
    if made_by not in old['made_by']:
      old['made_by'].append(made_by)
  write_text(path, json.dumps(config, indent=2) + '\n')


def write_predictions(
  path: pathlib.Path,
  fold: int,
  parts: dict[str, Predictions],
  classes: Sequence[str],
) -> None:
  """Writes the predictions of one fold, atomically."""
  lines = [[*_COLUMNS, *(f'prob_{c}' for c in classes)]]
  for part, p in parts.items():
    for i in range(len(p)):
      pred = classes[p.prob[i].argmax()]
      ids = [p.case[i], p.slide[i], fold, part, classes[p.label[i]], pred]
      lines.append(ids + [repr(float(x)) for x in p.prob[i]])
  _write_rows(path, lines)


def read_predictions(
  path: pathlib.Path, classes: Sequence[str]
) -> dict[str, Predictions]:
  """Reads what `write_predictions` wrote, by part."""
  with path.open(newline='', encoding='utf-8') as f:
    rows = list(csv.DictReader(f))
  parts = {}
  for part in ('val', 'test'):
    mine = [row for row in rows if row['split'] == part]
    parts[part] = Predictions(
      case=np.array([row['case_id'] for row in mine]),
      slide=np.array([row['slide_id'] for row in mine]),
      label=np.array([classes.index(row['label']) for row in mine]),
      prob=np.array(
        [[float(row[f'prob_{c}']) for c in classes] for row in mine]
      ),
    )
  return parts


def summarise(
  folder: pathlib.Path, model: str, task: str, k: int, classes: Sequence[str]
) -> dict:
  """Gathers the finished folds into the tables of the folder.

  Writes predictions.csv, summary.csv and summary.json.

  Returns:
    What summary.json holds. `std` is over folds; `pooled` takes the test
    predictions of all folds together, and the interval is its patient-cluster
    bootstrap. A number that is not defined, as an AUROC where a class is
    missing, is None.
  """
  paths = {i: folder / f'fold_{i}' / 'predictions.csv' for i in range(k)}
  folds = {
    i: read_predictions(path, classes)
    for i, path in paths.items()
    if path.exists()
  }
  lines = []
  for i in folds:
    with paths[i].open(newline='', encoding='utf-8') as f:
      rows = list(csv.reader(f))
    lines += rows if not lines else rows[1:]
  _write_rows(folder / 'predictions.csv', lines)

  scores = {
    i: {part: metrics.evaluate(p.label, p.prob) for part, p in parts.items()}
    for i, parts in folds.items()
  }
  header = ['folds', 'test_auc', 'val_auc', 'test_acc', 'val_acc']
  header += ['test_f1_macro', 'val_f1_macro', 'test_f1_weighted']
  names = ['auroc'] * 2 + ['accuracy'] * 2 + ['f1_macro'] * 2 + ['f1_weighted']
  columns = [
    (column.split('_')[0], name)
    for column, name in zip(header[1:], names, strict=True)
  ]
  lines = [header]
  for i, by_part in scores.items():
    values = [by_part[part][name] for part, name in columns]
    lines.append([i, *('' if np.isnan(v) else f'{v:.6f}' for v in values)])
  _write_rows(folder / 'summary.csv', lines)

  test = pool([parts['test'] for parts in folds.values()])
  summary = {
    'model': model,
    'task': task,
    'classes': list(classes),
    'k': k,
    'folds': list(folds),
    'metrics': _metric_table(test, [s['test'] for s in scores.values()]),
    **_class_table(test, classes),
  }
  write_text(folder / 'summary.json', json.dumps(summary, indent=2) + '\n')
  return summary


def table(summary: dict) -> str:
  """Returns a summary as the closing table in the terminal."""
  number = lambda x: '   n/a' if x is None else f'{x:6.3f}'
  lines = [
    f'\n{summary["model"]}, task {summary["task"]}: test parts of folds '
    + ', '.join(map(str, summary['folds'])),
    f'{"":14}pooled  [95 % interval]    mean    std',
  ]
  for name, m in summary['metrics'].items():
    interval = f'[{number(m["ci_low"])}, {number(m["ci_high"])}]'
    lines.append(
      f'{name:14}{number(m["pooled"])}  {interval}'
      f'  {number(m["mean"])} {number(m["std"])}'
    )
  lines.append(f'\n{"":14}precision recall  auroc   confusion')
  for row, (name, m) in zip(
    summary['confusion'], summary['per_class'].items(), strict=True
  ):
    scores = ' '.join(number(m[x]) for x in ('precision', 'recall', 'auroc'))
    lines.append(f'{name:14}   {scores}   ' + ' '.join(f'{n:4}' for n in row))
  return '\n'.join(lines)


def pool(parts: Sequence[Predictions]) -> Predictions:
  """Puts predictions of several folds together."""
  return Predictions(
    *(
      np.concatenate([getattr(p, f.name) for p in parts])
      for f in dataclasses.fields(Predictions)
    )
  )


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file so that it is there in full or not at all."""
  with atomic.replacing(path) as part:
    part.write_text(text, encoding='utf-8')


def _metric_table(test: Predictions, per_fold: list[dict]) -> dict:
  pooled = metrics.evaluate(test.label, test.prob)
  intervals = metrics.bootstrap(test.label, test.prob, test.case)
  table = {}
  for name in metrics.NAMES:
    values = np.array([scores[name] for scores in per_fold])
    defined = values[np.isfinite(values)]
    low, high = intervals[name]
    table[name] = {
      'mean': _number(defined.mean() if len(defined) else np.nan),
      'std': _number(defined.std(ddof=1) if len(defined) > 1 else np.nan),
      'pooled': _number(pooled[name]),
      'ci_low': _number(low),
      'ci_high': _number(high),
      'per_fold': [_number(v) for v in values],
    }
  return table


def _class_table(test: Predictions, classes: Sequence[str]) -> dict:
  confusion = metrics.confusion(test.label, test.prob.argmax(1), len(classes))
  scores = metrics.per_class(confusion)
  aurocs = metrics.class_aurocs(test.label, test.prob)
  return {
    'per_class': {
      name: {
        'precision': _number(scores['precision'][c]),
        'recall': _number(scores['recall'][c]),
        'auroc': _number(aurocs[c]),
      }
      for c, name in enumerate(classes)
    },
    'confusion': confusion.tolist(),
  }


def _write_rows(path: pathlib.Path, rows: Iterable[Sequence]) -> None:
  with (
    atomic.replacing(path) as part,
    part.open('w', newline='', encoding='utf-8') as f,
  ):
    csv.writer(f).writerows(rows)


def _number(value: float) -> float | None:
  return None if np.isnan(value) else round(float(value), 6)


def _commit() -> str | None:
  """The checkout's commit, '-dirty' if changed since; None if installed."""
  root = pathlib.Path(__file__).parents[1]
  if not (root / '.git').exists():
    return None
  try:
    done = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
      cwd=root,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
