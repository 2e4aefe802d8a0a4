"""Compares results folders whose models were tested on the same slides.

  python -m experiments.compare results/abmil_origin_s1 results/kmil_origin_s1

For each pair and metric: the difference of the pooled test parts, its 95 %
interval and p from paired resamples of patients, and for AUROCs DeLong's p of
patients; each p also after Holm's correction for the pairs of folders, within
each metric. Folders of other slides, labels or splits are refused.
"""

import csv
import dataclasses
import json
import pathlib
import sys

from data.files import counted, first_of
from experiments.evaluation import comparison, predictions, summary
from experiments.run import start
from experiments.run.options import OptionError, field
from experiments.run.results import CONFIG


@dataclasses.dataclass(frozen=True)
class Compared:
  """What is compared, and how it is printed."""

  folders: tuple[pathlib.Path, ...] = field(
    (), 'Results folders, two or more.', positional=True
  )
  format: str = field(
    'text',
    'Tables for a terminal or in Markdown; or one row per metric and pair of'
    ' folders, as CSV or JSON.',
    choices=('text', 'markdown', 'csv', 'json'),
  )
  patients: str | None = field(
    None,
    'Compare patients instead of slides, by the mean of the probabilities of'
    ' their slides or by the highest of each class. Patients with slides of'
    ' several classes are left out.',
    choices=predictions.JOINED,
  )


def run(compared: Compared) -> start.Next:
  """Prints the comparison of the folders."""
  if len(compared.folders) < 2:
    raise OptionError('There is nothing to compare. Name two results folders.')
  runs = comparison.read_all(compared.folders)
  if how := compared.patients:
    runs = [
      dataclasses.replace(
        run, name=f'{run.name} (patients, {how})', patients=how
      )
      for run in runs
    ]
    if mixed := runs[0].mixed():
      print(
        f'warning: {counted(mixed, "patient")} left out, with slides of several'
        ' classes.',
        file=sys.stderr,
      )
  rows = comparison.compare(runs)
  match compared.format:
    case 'json':
      print(json.dumps(rows, indent=2, allow_nan=False))
    case 'csv':
      writer = csv.DictWriter(sys.stdout, rows[0], lineterminator='\n')
      writer.writeheader()
      writer.writerows(rows)
    case 'markdown':
      for table in comparison.tables(rows):
        print(table.markdown())
    case 'text':
      test, cases = runs[0].test(), len(set(runs[0].test().case))
      tested = f'{counted(len(test), "test slide")} of {counted(cases, "case")}'
      print(
        f'{counted(cases, "test patient") if how else tested},'
        f' {summary.name_folds(runs[0].folds)}'
      )
      for line in comparison.other_options(runs):
        print(line)
      if few := runs[0].few_patients():
        print(
          f'classes with fewer than {summary.FEW_CASES} patients:'
          f' {first_of(few)}. Their intervals may be too narrow and'
          ' p too small'
        )
      for table in comparison.tables(rows):
        print(f'\n{table.terminal()}')
  last = runs[-1].folder
  if last.at(CONFIG).exists():
    return start.Source(last.path).next()
  return 'report', {'run': last.path}


main = start.script(run)


if __name__ == '__main__':
  main()
