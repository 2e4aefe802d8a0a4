"""The tables that end a script, as text."""

from collections.abc import Sequence
import itertools

_HOLM = (
  'Holm: p corrected within each metric for all pairs of runs, not across'
  ' metrics.'
)


def closing(summary: dict) -> str:
  """Returns a summary, as `summaries.summarise` makes it, for the terminal."""
  blocks = [
    f'{summary["model"]}, task {summary["task"]}: test parts of folds '
    + ', '.join(map(str, summary['folds'])),
    *_metrics(summary, 'pooled'),
    '',
    *_classes(summary),
    '',
    *_calibration(summary['calibration']),
  ]
  if external := summary.get('external'):
    blocks += [
      '',
      f'external cohort, {external["slides"]} slides of'
      f' {external["cases"]} cases: each fold, and the mean probability',
      *_metrics(external, 'ensemble'),
      '',
      *_classes(external),
    ]
  return '\n' + '\n'.join(blocks)


def one_line(table: dict) -> str:
  """Returns the pooled metrics of a summary with their intervals, in short."""
  return '  '.join(
    f'{short} {number(m["pooled"]).strip()}'
    f' [{number(m["ci_low"]).strip()}, {number(m["ci_high"]).strip()}]'
    for short, m in (
      ('ACC', table['accuracy']),
      ('F1', table['f1_macro']),
      ('AUROC', table['auroc']),
    )
  )


def number(x: float | None) -> str:
  """Three decimals in six columns; n/a where it is undefined."""
  return '   n/a' if x is None else f'{x:6.3f}'


def comparison(rows: Sequence[dict]) -> str:
  """Returns the rows of `comparison.compare` for the terminal, by pair."""
  width = max(len(row['metric']) for row in rows)
  lines = [_HOLM]
  for (a, b), group in itertools.groupby(rows, lambda r: (r['a'], r['b'])):
    lines += [
      f'\na: {a}\nb: {b}',
      f'{"":{width}}      a      b    b-a  [95 % interval ]      p   Holm'
      ' DeLong   Holm',
    ]
    for row in group:
      values = [number(row[key]) for key in ('value_a', 'value_b')]
      change = [
        _signed(row[key]) for key in ('difference', 'ci_low', 'ci_high')
      ]
      keys = ('p', 'p_holm', 'p_delong', 'p_delong_holm')
      lines.append(
        f'{row["metric"]:{width}} {values[0]} {values[1]} {change[0]}'
        f'  [{change[1]}, {change[2]}] '
        + ' '.join(_p(row[key]) for key in keys)
      )
  return '\n'.join(lines)


def comparison_markdown(rows: Sequence[dict]) -> str:
  """Returns the rows of `comparison.compare` as a table in Markdown."""
  names = ('a', 'b', 'metric', 'of a', 'of b', 'b - a', '95 % interval', 'p')
  names += ('p, Holm', 'DeLong p', 'DeLong p, Holm')
  lines = [names, [':--'] * 3 + ['--:'] * 8]
  for row in rows:
    change = [_signed(row[key]) for key in ('difference', 'ci_low', 'ci_high')]
    keys = ('p', 'p_holm', 'p_delong', 'p_delong_holm')
    lines.append(
      [
        *(row[key].replace('|', '\\|') for key in ('a', 'b', 'metric')),
        *(number(row[key]) for key in ('value_a', 'value_b')),
        change[0],
        f'{change[1].strip()} to {change[2].strip()}',
        *(_p(row[key]) for key in keys),
      ]
    )
  strip = lambda line: ' | '.join(cell.strip() for cell in line)
  return '\n'.join([*(f'| {strip(line)} |' for line in lines), '', _HOLM])


def _signed(x: float | None) -> str:
  return '   n/a' if x is None else f'{x:+6.3f}'


def _p(x: float | None) -> str:
  """Four decimals in six columns."""
  if x is None:
    return '   n/a'
  return '<.0001' if x < 1e-4 else f'{x:6.4f}'


def _metrics(table: dict, whole: str) -> list[str]:
  lines = [f'{"":18}{whole:>8}  [95 % interval]    mean    std']
  for name, m in table['metrics'].items():
    interval = f'[{number(m["ci_low"])}, {number(m["ci_high"])}]'
    lines.append(
      f'{name:18}  {number(m[whole])}  {interval}'
      f'  {number(m["mean"])} {number(m["std"])}'
    )
  closed = table['auroc_delong']
  interval = f'[{number(closed["low"])}, {number(closed["high"])}]'
  return [*lines, f'{"  by DeLong":18}{"":10}{interval}']


def _classes(table: dict) -> list[str]:
  width = max(14, *(len(name) for name in table['per_class']))
  lines = [f'{"":{width}}   precision recall  auroc   confusion']
  for row, (name, m) in zip(
    table['confusion'], table['per_class'].items(), strict=True
  ):
    values = ' '.join(number(m[x]) for x in ('precision', 'recall', 'auroc'))
    counts = ' '.join(f'{n:4}' for n in row)
    lines.append(f'{name:{width}}      {values}   {counts}')
  return lines


def _calibration(found: dict) -> list[str]:
  after = found['after_temperature']
  lines = [f'{"calibration":18}  before   after']
  for name in after:
    lines.append(f'{name:18}  {number(found[name])}  {number(after[name])}')
  reasons = found['temperature_reason']
  shown = [
    f'{t:.2f}' + '*' * bool(reason)
    for t, reason in zip(found['temperature'], reasons, strict=True)
  ]
  lines += [
    f'temperatures of the folds: {" ".join(shown)}',
    '  Log probabilities are divided by them. They are fitted on validation',
    '  patients of all folds, without those that the fold tests.',
  ]
  for reason in sorted(set(reasons) - {''}):
    lines.append(f'* not fitted: {reason}')
  return lines
