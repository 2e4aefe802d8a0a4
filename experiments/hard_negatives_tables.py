"""The tables of the study of hard negatives, beside the paper's."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from experiments import hard_negatives_paper as paper
from experiments.hard_negatives_settings import (
  POSITIVE,
  RANDOM,
  WEAK,
  Outcome,
  Setting,
)
from kmil_jax import intervals, metrics

SENSITIVITY = 0.9  # At which specificities are compared.
_RESAMPLES = 2000

# Columns by the name of their value in `scores`.
COLUMNS = {
  'auroc': 'AUROC',
  'auprc': 'AUPRC',
  'f1_micro': 'F1 micro',
  'sensitivity': 'sens.',
  'specificity': 'spec.',
  'f1': 'F1 pos.',
  'f1_micro_low': 'F1 micro, 0.1',
  'sensitivity_low': 'sens., 0.1',
  'specificity_low': 'spec., 0.1',
  'f1_low': 'F1 pos., 0.1',
  'specificity_at': f'spec. at sens. {SENSITIVITY:g}',
  'auroc_hard': 'AUROC, hard',
}
_COLUMNS_NOTE = (
  "F1, sensitivity and specificity at 0.5, from the column '0.1' on at 0.1."
)
TESTED_NOTE = (
  'Here: mean (standard deviation) over models of other seeds, all tested on'
  f' one test part. {_COLUMNS_NOTE}'
)
LEAKING_NOTE = (
  'Here: mean (standard deviation) over models of other seeds, each tested on'
  f' another part. {_COLUMNS_NOTE}'
)
PAPER_NOTE = (
  f'{paper.SOURCE}: other data, not to be matched by these. Its F1 is the'
  ' micro-averaged one, its AUPRC the mean over both classes (here: of the'
  ' positive class), and its strong models were tested on mined negatives.'
)
HARD_NOTE = (
  "'AUROC, hard' is that of the positives against the hard negatives alone,"
  ' which are what mining is for.'
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One kind of model: its settings, a seed each, and what the paper has."""

  labels: tuple[str, str]
  settings: tuple[Setting, ...]
  paper: tuple[tuple[float, float], ...] | None = None  # mean, deviation


def rows(
  table: int, seeds: Sequence[int], *, metric: str, alpha: int, leaking: bool
) -> list[Row]:
  """Returns the rows of Table 2, 3, 4 or 5.

  Args:
    table: its number.
    seeds: of the models.
    metric: by which negatives are chosen in Tables 3 to 5.
    alpha: negatives per false positive but in Table 3.
    leaking: as the released code does it: negatives are always random.
  """
  own = RANDOM if leaking else metric
  some = lambda **k: tuple(Setting(seed, **k).canonical() for seed in seeds)
  if table == 2:
    weak, strong = paper.TABLE_2[metric]
    found = [Row(('', WEAK), some(), weak)]
    if leaking:
      return [
        *found,
        Row(
          (f'random, as {metric}', 'strong'),
          some(choice=RANDOM, alpha=alpha),
          strong,
        ),
      ]
    for choice in paper.TABLE_2:
      strong = some(choice=choice, alpha=alpha)
      found.append(Row((choice, 'strong'), strong, paper.TABLE_2[choice][1]))
    control = some(choice=RANDOM, alpha=alpha)
    return [*found, Row((f'random, as many as {metric}', 'control'), control)]
  if table == 3:
    found = [Row(('alpha', WEAK), some(), paper.TABLE_3[paper.ALPHA][0])]
    for a in paper.ALPHAS:
      strong = some(choice=own, alpha=a)
      found.append(Row((f'{a}', 'strong'), strong, paper.TABLE_3[a][1]))
    return found
  of, published = {
    4: ('all', paper.TABLE_4),
    5: ('positives', paper.TABLE_5),
  }[table]
  found = []
  for share in paper.SHARES:
    cut = {'share': share, 'of': of}
    weak, strong = published[share]
    found.append(Row((f'{share} %', WEAK), some(**cut), weak))
    tried = some(choice=own, alpha=alpha, **cut)
    found.append(Row(('', 'strong'), tried, strong))
  return found


TITLES = {
  2: 'Table 2. Weak and strong models by query criterion',
  3: 'Table 3. Strong models by alpha, the negatives per false positive',
  4: 'Table 4. Models of a share of the annotated training tiles',
  5: 'Table 5. Models of a share of the positive training tiles',
}


def scores(found: Outcome, hard: np.ndarray) -> dict[str, float]:
  """Returns the values of `COLUMNS`; NaN where one is undefined.

  Args:
    found: of a model.
    hard: which of its test tiles are known to be hard negatives, bool [n].
  """
  positive = found.label == POSITIVE
  high, low = (
    metrics.evaluate_binary(positive, found.prob, threshold)
    for threshold in (0.5, paper.THRESHOLD)
  )
  values = high | {f'{name}_low': value for name, value in low.items()}
  values['specificity_at'] = metrics.specificity_at(
    positive, found.prob, SENSITIVITY
  )
  rows = positive | hard
  values['auroc_hard'] = metrics.auroc(positive[rows], found.prob[rows])
  return {name: values[name] for name in COLUMNS}


def markdown(
  title: str, found: Sequence[tuple[Row, Sequence[Mapping[str, float]]]]
) -> str:
  """Returns a table of rows with the scores of their models."""
  lines = [['', 'model', 'from', *COLUMNS.values()]]
  lines.append([':--'] * 3 + ['--:'] * len(COLUMNS))
  for row, values in found:
    cells = []
    for name in COLUMNS:
      each = np.array([value[name] for value in values])
      cells.append(
        _cell(each.mean(), each.std(ddof=1) if len(each) > 1 else None)
      )
    lines.append([*row.labels, 'here', *cells])
    if row.paper is not None:
      cells = [f'{mean:.4f} ({std:.2f})' for mean, std in row.paper]
      empty = [''] * (len(COLUMNS) - len(cells))
      lines.append(['', '', paper.SOURCE, *cells, *empty])
  # What is known of no tile, as hard negatives of the user's, is left out.
  kept = [
    i
    for i in range(len(lines[0]))
    if i < 3 or any(line[i] not in ('n/a', '') for line in lines[2:])
  ]
  return '\n'.join(
    [f'**{title}**', '']
    + ['| ' + ' | '.join(line[i] for i in kept) + ' |' for line in lines]
  )


def margin(
  a: Sequence[Outcome], b: Sequence[Outcome], hard: np.ndarray
) -> list[str]:
  """Says by how much models `b` differ from models `a`, seed by seed.

  The interval of an AUROC is that of the mean of these trainings when the
  patients of the test part are resampled, for both alike. How far trainings of
  other seeds or tiles would differ it does not say: the seeds' own values do.

  Args:
    a: of each seed.
    b: likewise, on the same test tiles.
    hard: see `scores`.
  """
  values = [[scores(found, hard) for found in each] for each in (a, b)]
  positive = a[0].label == POSITIVE
  counted = {
    'auroc': np.ones_like(positive),
    'auroc_hard': positive | hard,
    'specificity_at': None,
  }
  lines = []
  for name, rows in counted.items():
    change = [y[name] - x[name] for x, y in zip(*values, strict=True)]
    if np.isnan(change).any():
      continue
    each = ' '.join(f'{x:+.3f}' for x in change)
    line = f'{COLUMNS[name]}: {np.mean(change):+.4f} (seeds: {each})'
    if rows is not None:
      draws = [
        intervals.auroc_replicates(
          positive[rows],
          np.stack([one.prob[rows] for one in found]),
          a[0].group[rows],
          resamples=_RESAMPLES,
        )
        for found in (a, b)
      ]
      low, high = intervals.percentile(draws[1] - draws[0])
      within = 'n/a' if np.isnan(low) else f'{low:+.4f} to {high:+.4f}'
      line += f', 95 % over test patients, of these trainings, {within}'
    lines.append(line)
  return lines


def _cell(mean: float, std: float | None) -> str:
  if np.isnan(mean):
    return 'n/a'
  return f'{mean:.4f}' if std is None else f'{mean:.4f} ({std:.3f})'
