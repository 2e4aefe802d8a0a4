"""Compares results folders whose models were tested on the same slides.

  python -m experiments.compare results/abmil_origin_s1 results/kmil_origin_s1

For each pair and metric: the difference of the pooled test parts, its 95 %
interval and p from paired resamples of patients, and for AUROCs DeLong's p of
patients; each p also after Holm's correction for the pairs of folders, within
each metric. Folders of other slides, labels or splits are refused.
"""

import csv
import io
import json
import sys

from absl import app, flags

from experiments import comparison, tables
from experiments.run.results import ResultsError

_FORMAT = flags.DEFINE_enum(
  'format', 'text', ['text', 'markdown', 'csv', 'json'], 'How to print.'
)


def main(argv: list[str]) -> None:
  """Prints the comparison of the folders named on the command line."""
  if len(argv) < 3:
    raise app.UsageError('give two results folders or more')
  try:
    runs = comparison.read(argv[1:])
    rows = comparison.compare(runs)
  except (ResultsError, OSError) as e:
    sys.exit(f'error: {e}')
  if _FORMAT.value == 'json':
    print(json.dumps(rows, indent=2, allow_nan=False))
  elif _FORMAT.value == 'csv':
    text = io.StringIO()
    writer = csv.DictWriter(text, comparison.COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    print(text.getvalue(), end='')
  elif _FORMAT.value == 'markdown':
    print(tables.comparison_markdown(rows))
  else:
    slides = runs[0].test()
    print(
      f'{len(slides)} test slides of {len(set(slides.case))} cases, folds '
      + ', '.join(map(str, runs[0].folds))
    )
    for line in comparison.other_settings(runs):
      print(line)
    print(tables.comparison(rows))


if __name__ == '__main__':
  app.run(main)
