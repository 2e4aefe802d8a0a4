"""The tables of He and Li, here beside the paper's own numbers."""

from collections.abc import Mapping, Sequence

from experiments.few_shot_parts import paper
from experiments.few_shot_parts.scores import METRICS, Summary, minus
from experiments.few_shot_parts.settings import FW_RD, RD, Setting, sweep
from experiments.paper_text import Entry, Table

_COLUMNS = (
  'accuracy',
  'accuracy, threshold 2',
  "accuracy, test's best F1",
  'AUROC',
)
_NOTES = (
  'Of patches. accuracy: at the threshold of the highest F1 on the validation'
  " patches. threshold 2: the paper's, fixed. test's best F1: at the threshold"
  ' that the test patches choose, which the released code reports and is'
  ' optimistic.',
  'here: mean over the seeds; 95 % interval: of that mean, over slides drawn'
  ' with their patches.',
  "The paper's accuracies are of its own data, by its text at a threshold of 2,"
  " by its code at the test patches' best F1.",
)


def methods(found: Mapping[str, Summary], width: int) -> Table:
  """Returns Table 2.

  Args:
    found: of `settings.RD` and `settings.FW_RD`.
    width: of the networks.
  """
  entries = [
    Entry((name,), _lines(found[name]) | _paper(paper.TABLE_2[name]))
    for name in (RD, FW_RD)
  ]
  entries.append(
    Entry(('FW-RD minus RD',), _lines(minus(found[FW_RD], found[RD])))
  )
  others = ', '.join(f'{k} {v:.3f}' for k, v in paper.TABLE_2_OTHERS.items())
  return Table(
    'table_2',
    'Table 2. Patches: reverse distillation without and with tumour patches',
    ('method',),
    _COLUMNS,
    tuple(entries),
    (3,) * len(METRICS),
    (
      *_NOTES,
      f'Networks of width {width} (the paper: {paper.WIDTH}), the same of both'
      ' methods.',
      f'Other methods in the paper: {others}.',
    ),
    paper.SOURCE,
  )


def counts(study: Sequence[Setting], found: Mapping[str, Summary]) -> Table:
  """Returns Table 3: how many tumour patches it takes."""
  entries = []
  for setting in sweep(study):
    lines = _lines(found[setting.name])
    known = paper.TABLE_3.get(setting.counterpart)
    if known is not None:
      lines |= _paper(known)
    beside = setting.counterpart
    entries.append(
      Entry(
        (
          str(setting.tumour),
          'n/a' if beside is None else str(beside),
          f'{setting.alpha:.3g}',
        ),
        lines,
      )
    )
  return Table(
    'table_3',
    'Table 3. Patches: number of tumour patches in training',
    ('tumour patches', 'in the paper', 'alpha'),
    _COLUMNS,
    tuple(entries),
    (3,) * len(METRICS),
    (
      *_NOTES,
      f'{study[0].normal} normal patches in all rows (the paper:'
      f' {paper.NORMAL}). alpha 0 is the loss of RD.',
      'The tumour patches of a row are among those of the rows below it; each'
      ' seed draws others.',
      'The paper has 0.652 of RD in its Table 2 and 0.646 here.',
    ),
    paper.SOURCE,
  )


def ablations(study: Sequence[Setting], found: Mapping[str, Summary]) -> Table:
  """Returns the ablations of the loss and of balance, section 4.3 and 4.4."""
  entries = []
  longer = max(setting.longer for setting in study)
  for setting in study:
    if setting.paper is None or setting.name == RD:
      continue
    label = (
      setting.name.replace('_', ', '),
      str(setting.normal),
      str(setting.tumour),
      f'{setting.alpha:g}',
      f'{setting.gamma:g}',
    )
    entries.append(
      Entry(label, _lines(found[setting.name]) | _paper(setting.paper))
    )
  return Table(
    'ablations',
    'Ablations: weights of the loss, balance of the classes',
    ('training', 'normal', 'tumour', 'alpha', 'gamma'),
    _COLUMNS,
    tuple(entries),
    (3,) * len(METRICS),
    (
      *_NOTES,
      'The paper does not define its unweighted loss: both rows have its number'
      ' beside them.',
      'Balanced classes are fewer patches: '
      + (
        'they take as many epochs, so fewer steps.'
        if longer == 1
        else f'they take {longer} times the epochs, so as many steps.'
      ),
      f'The paper also has {paper.SUPERVISED:.3f} with 100,000 patches of each'
      ' kind from all training slides, which is not trained here.',
    ),
    paper.SOURCE,
  )


def spread(
  study: Sequence[Setting], found: Mapping[str, Summary], seeds: int
) -> str:
  """Says in a line how accuracies differ between seeds."""
  if seeds < 2:
    return 'One seed: how far another one would be is not known.'
  parts = [f'{s.name} {found[s.name].spread["accuracy"]:.3f}' for s in study]
  return f'Standard deviation of the accuracy over {seeds} seeds: ' + ', '.join(
    parts
  )


def _lines(summary: Summary) -> dict[str, list]:
  return {
    'here': [summary.value[name] for name in METRICS],
    'interval': [_known(summary.interval(name)) for name in METRICS],
  }


def _known(ends: tuple[float, float]) -> tuple[float | None, float | None]:
  """Ends of an interval, None where there is none."""
  return ends if ends[0] == ends[0] else (None, None)


def _paper(accuracy: float) -> dict[str, list]:
  """The paper's line, in the column of the threshold that it states."""
  return {'paper': [None, accuracy, None, None]}
