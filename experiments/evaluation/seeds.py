"""The same folds trained with several seeds: their mean, and their spread."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.evaluation import predictions
from experiments.evaluation.predictions import Folds, Predictions
from experiments.evaluation.summary import number, with_intervals
from experiments.evaluation.tables import INTERVAL, Row, Table
from experiments.run.results import Folder, ResultsError
from kmil_jax import metrics

NAME = 'seeds.csv'
_NOTE = (
  'Seeds differ in initial weights and in what models draw (dropout,'
  ' pseudo-bags). Folds and the order of slides are the same for all: what'
  ' these add to chance is not in the spread.'
)


def write(
  folder: Folder, parts: Mapping[int, Folder], classes: Sequence[str]
) -> Table | None:
  """Averages the probabilities of the folds that all seeds have finished.

  Writes them into `folder` as if one model had predicted them, and
  predictions_seeds.csv with the evaluated slides of every seed.

  Args:
    folder: of all seeds.
    parts: the results of each seed.
    classes: names, C.

  Returns:
    A line for each metric, which seeds.csv has, too: mean and sample standard
    deviation over the seeds, and its value for the mean probabilities, with a
    95 % interval over patients. None if no fold is finished.
  """
  held = {seed: predictions.read_folds(f, classes) for seed, f in parts.items()}
  second = {s: predictions.read_external(f, classes) for s, f in parts.items()}
  means, scores, lines = Folds(), [], []
  for fold in sorted(set.intersection(*map(set, held.values()))):
    of_fold = [of_seed[fold] for of_seed in held.values()]
    means[fold] = mean = {
      name: _mean([parts[name] for parts in of_fold])
      for name in ('val', 'test')
    }
    if all(fold in external for external in second.values()):
      mean = mean | {'external': _mean([e[fold] for e in second.values()])}
    predictions.write(Folder(folder.at(f'fold_{fold}')), fold, mean, classes)
  if not means:
    return None
  for seed, of_seed in held.items():
    done = Folds({fold: of_seed[fold] for fold in means})
    scores.append(metrics.evaluate(done.pooled.label, done.pooled.prob))
    part = 'test' if len(mean['test']) else 'val'
    header, *rows = predictions.rows(done.evaluated, part, classes)
    lines += [[seed, *row] for row in rows]
  folder.write('predictions_seeds.csv', [['seed', *header], *lines])
  rows = [['metric', 'mean', 'std', 'of_mean_prob', 'ci_low', 'ci_high']]
  for name, cells in with_intervals(means.pooled).items():
    each = np.array([score[name] for score in scores])
    rows.append([name, number(each.mean()), number(each.std(ddof=1)), *cells])
  folder.write(NAME, rows)
  return read(folder)


def read(folder: Folder) -> Table | None:
  """Returns what `write` wrote as a table; None of one seed."""
  if not folder.at(NAME).exists():
    return None
  rows = []
  try:
    for name, *cells in map(dict.values, folder.read(NAME)):
      mean, std, value, *ends = (float(x) if x else None for x in cells)
      rows.append(Row((name,), {'': (mean, std, value, tuple(ends))}))
  except (TypeError, ValueError) as e:
    raise ResultsError(
      f'{folder.at(NAME)} is damaged ({e}). Run the command of the training'
      ' again: it repeats nothing that is done.'
    ) from e
  columns = 'mean of seeds', 'std', 'of mean probabilities', INTERVAL
  columns = dict.fromkeys(columns, '.3f')
  title, labels = 'Spread over seeds', ('metric',)
  return Table('seeds', title, labels, columns, rows, (_NOTE,))


def _mean(parts: Sequence[Predictions]) -> Predictions:
  """Averages the probabilities of the same slides."""
  return predictions.mean(dict(enumerate(parts)))
