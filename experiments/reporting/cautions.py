"""What a reader must know before believing the numbers of a report."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from experiments.reporting.record import Record

_FEW_CASES = 10  # Tested, of one class.
_SHOWN = 8  # Names listed.
# The column that a --select looks at, and 1 if more is better.
_CHOSEN_BY = {
  'loss': ('val_loss', -1),
  'accuracy': ('val_accuracy', 1),
  'auroc': ('val_auroc', 1),
}


@dataclasses.dataclass(frozen=True)
class Caution:
  """Something to know; serious where the numbers must not be quoted."""

  title: str
  text: str
  serious: bool = False


def of(record: Record, unmapped: list[str]) -> list[Caution]:
  """Returns the cautions of a run, the serious ones first.

  Args:
    record: the run.
    unmapped: test slides that should have a heat map and have none.
  """
  found = [
    *_material(record),
    *_protocol(record),
    *_numbers(record),
    *_making(record),
  ]
  if unmapped:
    found.append(
      Caution(
        f'{_count(len(unmapped), "slide")} without a heat map',
        'The slide file could not be read, or its features lack coordinates or'
        f' the size of tiles: {_some(unmapped)}.',
      )
    )
  return sorted(found, key=lambda caution: not caution.serious)


def _material(record: Record) -> Iterator[Caution]:
  if record.is_phantom:
    yield Caution(
      'Phantom data',
      'The slides are drawn by a program, not scanned. The numbers show that'
      ' the software works and say nothing about patients.',
      serious=True,
    )
  encoder = str(record.features.get('encoder', ''))
  if 'random' in encoder:
    yield Caution(
      'Random encoder weights',
      f'The features are those of an untrained network ({encoder}). Extract'
      ' them again with --weights before any comparison.',
      serious=True,
    )
  left_out = record.config.get('cohort', {}).get('left_out')
  if left_out:
    yield Caution(
      f'{_count(len(left_out), "listed slide")} left out',
      'Their labels are in no class of this run, or they have no features:'
      f' {_some(left_out)}.',
    )
  for warning in record.config.get('cohort', {}).get('warnings', ()):
    yield Caution('Found while checking the inputs', warning)
  if record.flags.get('shuffle_labels'):
    yield Caution(
      'Shuffled labels',
      'The labels were dealt anew to the cases to look for leaks. An AUROC of'
      ' 0.5 is what is right here.',
      serious=True,
    )


def _protocol(record: Record) -> Iterator[Caution]:
  k, folds = record.summary['k'], record.summary['folds']
  missing = [fold for fold in range(k) if fold not in folds]
  if missing:
    yield Caution(
      f'{_count(len(missing), "fold")} of {k} missing',
      f'Not trained or not finished: {", ".join(map(str, missing))}. Pooled'
      ' figures are of the test parts of the other folds alone.',
      serious=True,
    )
  case_of = record.slides.case_of
  for fold, parts in enumerate(record.splits):
    cases = [{case_of.get(slide, slide) for slide in parts[p]} for p in parts]
    shared = set.union(
      *(a & b for i, a in enumerate(cases) for b in cases[i + 1 :])
    )
    if shared:
      yield Caution(
        f'Fold {fold} shares cases between its parts',
        f'{_some(sorted(shared))}. Its test part is not independent.',
        serious=True,
      )
  if record.external is not None:
    shared = set(record.external.case) & set(record.slides.case)
    if shared:
      yield Caution(
        'Cases of one name in both cohorts',
        f'{_some(sorted(shared))}. If they are the same patients, the second'
        ' cohort is not external.',
        serious=True,
      )


def _numbers(record: Record) -> Iterator[Caution]:
  test = record.test
  cases = {
    name: len(set(test.case[test.label == c]))
    for c, name in enumerate(record.classes)
  }
  absent = [name for name, count in cases.items() if not count]
  if absent:
    yield Caution(
      'Classes without test slides',
      f'{_some(absent)}. Their recall and AUROC are n/a, and so are macro F1,'
      ' balanced accuracy and the mean AUROC.',
    )
  few = [f'{n} ({c})' for n, c in cases.items() if 0 < c < _FEW_CASES]
  if few:
    yield Caution(
      'Few patients',
      f'Classes with fewer than {_FEW_CASES} tested cases: {_some(few)}. Their'
      ' intervals are wide, and too narrow rather than too wide; an interval is'
      ' n/a where nothing varies.',
    )
  calibration = record.summary['calibration']
  if 'temperature_reason' not in calibration:
    yield Caution(
      'Temperatures of single folds',
      'An older version fitted each on the validation part of its fold, which'
      ' is too small. experiments.predict fits them anew; give the training'
      ' command again to see them here.',
    )
  reasons = calibration.get('temperature_reason', [])
  for reason in sorted(set(reasons) - {''}):
    pairs = zip(record.summary['folds'], reasons, strict=True)
    of = [fold for fold, its in pairs if its == reason]
    yield Caution('No temperature', f'{_folds(of)}: {reason}.')
  select = record.flags.get('select')
  last = [
    fold
    for fold, lines in record.history.items()
    if lines and lines[-1]['best_epoch'] == lines[-1]['epoch']
    if _improves(lines, select)
  ]
  if last and select != 'last':
    yield Caution(
      'Best at the last epoch',
      f'{_folds(last)}: the epoch kept is the last one; longer training'
      ' (--epochs) may do better.',
    )


def _improves(lines: Sequence[Mapping[str, Any]], select: str | None) -> bool:
  """Whether the last epoch is better than all before, not as good as one."""
  name, sign = _CHOSEN_BY.get(select, ('val_f1_macro', 1))
  values = [sign * x[name] for x in lines if x.get(name) is not None]
  return len(values) < 2 or values[-1] > max(values[:-1])


def _making(record: Record) -> Iterator[Caution]:
  made_by = record.config['made_by']
  commits = [made.get('commit') or '' for made in made_by]
  if any(commit.endswith('-dirty') for commit in commits):
    yield Caution(
      'Changed code',
      'The code had changes that its commit does not hold.',
    )
  versions = [(made.get('versions'), made.get('commit')) for made in made_by]
  if any(version != versions[0] for version in versions):
    yield Caution(
      'Several versions',
      'The run was continued with other code or packages than it began with;'
      ' see the configuration.',
    )
  if (record.folder / 'state').exists():
    yield Caution(
      'Unfinished training',
      'The folder holds the state of a training that was interrupted.',
    )


def _folds(numbers: list[int]) -> str:
  return f'Fold{"s" * (len(numbers) != 1)} {", ".join(map(str, numbers))}'


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"s" * (number != 1)}'


def _some(names: list[str]) -> str:
  more = len(names) - _SHOWN
  return ', '.join(names[:_SHOWN]) + (f' and {more} more' if more > 0 else '')
