"""The tables of experiments.compare, as text."""

from collections.abc import Sequence
import itertools

_HOLM = (
  'Holm: p corrected within each metric for all pairs of runs, not across'
  ' metrics.'
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
