"""--check of the scripts that train on bags."""

from collections.abc import Sequence
import dataclasses
import sys
from typing import NoReturn

from experiments import cohort as cohorts, common
from experiments.crossval import Settings
from experiments.preflight import features, outlook
from kmil_jax import parallel


def check(
  values: dict[str, object],
  settings: Settings | None = None,
  runs_of_fold: int = 1,
  asked: Sequence[int] | None = None,
) -> NoReturn:
  """Checks labels, features, splits and second cohort, and ends the script.

  Args:
    values: resolved flags, which are printed.
    settings: of the training, to predict what it takes; None for scripts whose
      training takes no time.
    runs_of_fold: that train on each fold.
    asked: folds; all by default.

  Raises:
    SystemExit: always; with 1 if there are problems.
  """
  if not parallel.is_first():
    sys.exit(0)
  for name, value in values.items():
    print(f'--{name}={"" if value is None else value}')
  found, _ = common.joined()
  findings, cohort = found.findings, found.cohort
  if cohort is not None and not findings.problems:
    # Folds are those of the slides that will be trained on.
    found = dataclasses.replace(
      found, table=cohort.manifest, left_out=cohort.left_out
    )
  splits = common.folds(found) if found.table is not None else []
  if cohort is not None:
    features.scan(cohort.source, cohort.manifest.slide.tolist(), findings)
    second = common.external_joined(cohort)
    if second is not None:
      findings.problems += second.findings.problems
      findings.warnings += second.findings.warnings
      if second.cohort is not None:
        _second(cohort, second.cohort, findings)
    for line in (*outlook.of_cohort(cohort), *outlook.histogram(cohort.length)):
      print(line)
    # Of slides without features nobody knows in which fold they count.
    if len(found.table.slide) == len(cohort.label):
      for line in outlook.of_folds(cohort, splits):
        print(line)
    if settings is not None and not findings.problems:
      folds = [
        f for f in asked or range(len(splits)) for _ in range(runs_of_fold)
      ]
      for line in outlook.of_training(cohort, splits, settings, folds):
        print(line)
  findings.close()


def _second(first, second, findings) -> None:
  """Checks a second cohort's features, and that it is another."""
  print('second cohort:')
  for line in outlook.of_cohort(second):
    print(line)
  features.scan(second.source, second.manifest.slide.tolist(), findings)
  try:
    cohorts.check_apart(first, second)
  except cohorts.CohortError as e:
    findings.problems.append(str(e))
