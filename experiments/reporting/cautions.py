"""What a reader must know before believing the numbers of a report."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np

from data.files import first_of
from experiments.evaluation.summary import FEW_CASES, name_folds
from experiments.reporting.pictures import HeatMaps
from experiments.reporting.record import Record
from experiments.run.results import Config, Folder

_FEW_SLIDES = 10  # That validate.


class Caution(NamedTuple):
  """Something to know; serious where the numbers must not be quoted."""

  title: str
  text: str
  serious: bool = False


PHANTOM = Caution(
  'Phantom data',
  'The data are made by a program, not taken from patients. The numbers show'
  ' that the software works and say nothing about patients.',
  serious=True,
)


def find(record: Record, maps: HeatMaps) -> list[Caution]:
  """Returns the cautions of a run, the serious ones first."""
  cautions = [
    *_cohort(record),
    *_numbers(record),
    *software(record.folder, record.config),
  ]
  if maps.missing:
    cautions.append(
      Caution(
        f'Slides without a heat map: {len(maps.missing)}',
        'The slide file could not be read, or its features lack coordinates or'
        f' the size of tiles: {first_of(maps.missing)}.',
      )
    )
  if maps.damaged:
    names = first_of(maps.damaged)
    text = f'Pictures of figures/heat_maps that cannot be read: {names}.'
    cautions.append(Caution('Damaged heat maps', text))
  return sorted(cautions, key=lambda caution: not caution.serious)


def _cohort(record: Record) -> Iterator[Caution]:
  cohort, slides = record.config.cohort, record.slides
  if record.is_phantom:
    yield PHANTOM
  encoder = str(cohort.get('features', {}).get('encoder', ''))
  if 'random' in encoder:
    yield Caution(
      'Random encoder weights',
      f'The features are those of an untrained network ({encoder}). Extract'
      ' them again with --weights before any comparison.',
      serious=True,
    )
  if left_out := cohort.get('left_out'):
    yield Caution(
      f'Listed slides left out: {len(left_out)}',
      'Their labels are in no class of this run, or they have no features:'
      f' {first_of(left_out)}.',
    )
  for warning in cohort.get('warnings', ()):
    yield Caution('Found while checking the inputs', warning)
  if record.flags['shuffle_labels']:
    yield Caution(
      'Shuffled labels',
      'The labels were assigned anew to the cases to look for leaks. An AUROC'
      ' of about 0.5 is right here.',
      serious=True,
    )
  case_of = dict(zip(slides.slide, slides.case, strict=True))
  for fold, parts in enumerate(record.splits):
    if set(parts['train']) & set(parts['val']):
      yield Caution(
        'Evaluated on the training slides',
        'No class has two cases, so that nobody is left to validate. The'
        ' numbers say nothing about other slides.',
        serious=True,
      )
      continue
    cases = [{case_of.get(slide, slide) for slide in p} for p in parts.values()]
    pairs = itertools.combinations(cases, 2)
    if shared := set().union(*(a & b for a, b in pairs)):
      yield Caution(
        f'Fold {fold} shares cases between its parts',
        f'{first_of(sorted(shared))}. Its test part is not independent.',
        serious=True,
      )
  external = set() if record.external is None else set(record.external.case)
  if shared := external & set(slides.case):
    yield Caution(
      'Cases of one name in both cohorts',
      f'{first_of(sorted(shared))}. If they are the same patients, the second'
      ' cohort is not external.',
      serious=True,
    )


def _numbers(record: Record) -> Iterator[Caution]:
  summary, select = record.summary, record.flags['select']
  if summary.get('part') == 'val':
    yield Caution(
      'No test part',
      'The numbers are of the validation slides, which chose the'
      f' {"epoch" if record.chose_epoch else "temperature"}, and flatter the'
      ' model. What it is worth on other patients is not known.',
      serious=True,
    )
  missing = set(range(summary['k'])) - record.folds.keys()
  if missing:
    yield Caution(
      f'Folds missing: {len(missing)} of {summary["k"]}',
      f'Not trained or not finished: {name_folds(sorted(missing))}. Pooled'
      ' values are of the test parts of the other folds alone.',
      serious=True,
    )
  cases = Counter(
    label for label, _ in {(t.label, t.case) for t in record.tested}
  )
  if absent := [name for name in summary['classes'] if not cases[name]]:
    yield Caution(
      'Classes without test slides',
      f'{first_of(absent)}. Their recall and AUROC are n/a, and so are macro'
      ' F1, balanced accuracy and the mean AUROC.',
    )
  counts = [(name, cases[name]) for name in summary['classes']]
  if few := [f'{c} ({n})' for c, n in counts if 0 < n < FEW_CASES]:
    yield Caution(
      'Few patients',
      f'Classes with fewer than {FEW_CASES} cases: {first_of(few)}.'
      ' Their intervals are wide, and too narrow rather than too wide; an'
      ' interval is n/a where nothing varies.',
    )
  reasons = summary['calibration'].get('temperature_reason')
  if reasons is None:  # Of the first edition.
    yield Caution(
      'Temperatures of single folds',
      'Each was fitted on the validation part of its fold, which is too small.'
      ' Run the training command again to fit them anew.',
    )
    reasons = [''] * len(record.folds)
  for reason in sorted(set(reasons) - {''}):
    pairs = zip(summary['folds'], reasons, strict=True)
    folds = [fold for fold, its in pairs if its == reason]
    named = name_folds(folds).capitalize()
    yield Caution('No temperature', f'{named}: {reason}.')
  val = {fold: len(parts['val']) for fold, parts in enumerate(record.splits)}
  few = {f: n for f, n in val.items() if f in record.folds and n < _FEW_SLIDES}
  if few and select != 'last' and any(record.history.values()):
    yield Caution(
      'Epoch chosen on few slides',
      f'{name_folds(few).capitalize()}: as few as {min(few.values())}'
      ' validation slides chose the epoch that was kept, which is partly luck.'
      ' Look at other seeds (--seeds), or keep the last epoch (--select=last).',
    )
  last = [f for f, lines in record.history.items() if _improves(lines, select)]
  if last and select != 'last':
    yield Caution(
      'Best at the last epoch',
      f'{name_folds(last).capitalize()}: the epoch kept is the last one. Longer'
      ' training (--epochs) may do better.',
    )


def _improves(lines: Sequence[Mapping[str, Any]], select: str | None) -> bool:
  """Whether the last epoch is kept and better than all, not as good as one.

  See `kmil_jax.selection` for what a rule judges by.
  """
  if not lines or lines[-1]['best_epoch'] != lines[-1]['epoch']:
    return False
  f1, accuracy, auroc, loss = (
    np.array([x.get(f'val_{name}') for x in lines], float)
    for name in ('f1_macro', 'accuracy', 'auroc', 'loss')
  )
  top = np.where(accuracy == accuracy.max(), auroc, -np.inf)
  judged = {
    'loss': [-loss],
    'accuracy': [accuracy],
    'loss_or_accuracy': [-loss, accuracy],
    'accuracy_then_auroc': [top],
    'auroc_accuracy': [auroc + accuracy],
    'auroc': [auroc],
    'late_auroc': [auroc],
  }
  every = judged.get(select, [f1])
  return any(x[-1] > np.fmax.reduce(x[:-1], initial=-np.inf) for x in every)


def software(folder: Folder, config: Config) -> Iterator[Caution]:
  """Yields what there is to say of the code and of an unfinished training."""
  made_by = config.made_by
  if any((entry.get('commit') or '').endswith('-dirty') for entry in made_by):
    text = 'The code had changes that its commit does not hold.'
    yield Caution('Changed code', text)
  if any(
    entry.get(key) != made_by[0].get(key)
    for entry in made_by
    for key in ('versions', 'commit')
  ):
    yield Caution(
      'Several versions',
      'The run was continued with other code or packages than it began with;'
      ' see the configuration.',
    )
  if folder.at('state').exists():
    text = 'The folder holds the state of a training that was interrupted.'
    yield Caution('Unfinished training', text)
