"""The tables of Tang et al. 2022, here beside the paper's own numbers."""

from collections.abc import Mapping, Sequence

from experiments.paper_text import Entry, Table
from experiments.two_step_scores import SHARES, VOTES, Shares, WindowShares

SOURCE = 'Tang et al. 2022 (their data)'

# Table 2: million parameters, accuracy in per cent, AUROC.
TABLE_2 = {
  'googlenet': (7.0, 97.3, 0.9957),
  'mobilenet_v2': (3.5, 98.7, 0.9982),
  'resnet50': (25.6, 98.1, 0.9974),
  'resnet101': (44.6, 97.9, 0.9975),
}
# Section 3.3: false positives, accuracy in per cent, AUROC.
SECONDARY = (10137, 96.3, 0.9933)
# Table 3, per cent, at a threshold of 0.6875.
TABLE_3 = {'development': (100.0, 100.0, 100.0), 'test': (100.0, 75.9, 86.0)}
TABLE_3_THRESHOLD = 0.6875

_PATIENTS = (
  "Intervals, 95 %: Wilson's on the effective number of independent images or"
  ' windows, of which patients hold several.'
)


def networks(
  found: Mapping[str, tuple[int, float, float]], split: str
) -> Table:
  """Returns Table 2.

  Args:
    found: of each network parameters, accuracy and AUROC on the validation
      patches.
    split: of the patches, 'patient' or 'patch'.
  """
  entries = []
  for name, (parameters, accuracy, auroc) in found.items():
    lines = {'here': [parameters / 1e6, 100 * accuracy, auroc]}
    if name in TABLE_2:
      lines['paper'] = TABLE_2[name]
    entries.append(Entry((name,), lines))
  notes = [
    'The paper counts the parameters of 1000 classes, here there are two.',
    {
      'patient': 'Patches are split by patient here, at random in the paper,'
      ' where patches of one image are on both sides: that is optimistic.',
      'patch': 'Patches are split at random, as in the paper: those of one'
      ' image are on both sides, which is optimistic.',
    }[split],
  ]
  return Table(
    'table_2',
    'Table 2. Networks on the validation patches',
    ('network',),
    ('parameters (million)', 'accuracy (%)', 'AUROC'),
    tuple(entries),
    (1, 1, 4),
    tuple(notes),
    SOURCE,
  )


def secondary(
  name: str, count: int, accuracy: float, auroc: float | None, source: str
) -> Table:
  """Returns the secondary network's validation, section 3.3.

  Args:
    name: of the network.
    count: of false positives.
    accuracy: on its validation patches.
    auroc: likewise; None where it is not defined.
    source: says where the false positives are from.
  """
  return Table(
    'secondary',
    'The secondary network on its validation patches: false positives of the'
    ' primary, and tumour',
    ('network',),
    ('false positives found', 'accuracy (%)', 'AUROC'),
    (
      Entry(
        (name,),
        {'here': [count, 100 * accuracy, auroc], 'paper': SECONDARY},
      ),
    ),
    (0, 1, 4),
    (source,),
    SOURCE,
  )


def images(
  found: Mapping[tuple[str, str], Shares], thresholds: Mapping[str, int]
) -> Table:
  """Returns Table 3: decisions on images.

  Args:
    found: by rule and part.
    thresholds: votes of each rule.
  """
  entries = []
  for (rule, part), table in found.items():
    score = f'{thresholds[rule] / VOTES:.4f}'
    lines = {
      'here': [100 * v for v in table.value],
      'interval': [(100 * a, 100 * b) for a, b in table.interval],
    }
    if rule == 'two steps':
      lines['paper'] = TABLE_3[part]
    counts = ', '.join(
      f'{h}/{n}' for h, n in zip(table.hits, table.total, strict=True)
    )
    entries.append(Entry((rule, part, score, counts), lines))
  return Table(
    'table_3',
    'Table 3. Decisions on images, in per cent',
    ('rule', 'part', 'threshold', 'images'),
    SHARES,
    tuple(entries),
    (1, 1, 1),
    (
      'An image is positive if a pixel of its map reaches the threshold: the'
      ' smallest of 1/16 to 16/16 with the highest mean of sensitivity and'
      f' specificity on the development images; {TABLE_3_THRESHOLD} in the'
      ' paper.',
      'As sensitive as two: the highest threshold at which one step misses no'
      ' more test images than two steps do, chosen on the test images, to the'
      ' benefit of one step.',
      _PATIENTS,
    ),
    SOURCE,
  )


def tiles(
  found: Mapping[str, Shares], auroc: tuple[float, Sequence[float]]
) -> Table:
  """Returns decisions on the test tiles.

  Args:
    found: by rule.
    auroc: of the primary network, and its interval.
  """
  entries = []
  for rule, table in found.items():
    first = rule == 'one step'
    counts = ', '.join(
      f'{h}/{n}' for h, n in zip(table.hits, table.total, strict=True)
    )
    ends = [(100 * a, 100 * b) for a, b in table.interval]
    interval = tuple(auroc[1]) if first else (None, None)
    lines = {
      'here': [auroc[0] if first else None, *(100 * v for v in table.value)],
      'interval': [interval, *ends],
    }
    entries.append(Entry((rule, counts), lines))
  return Table(
    'tiles',
    'Test tiles, of other patients than the networks learned from; shares in'
    ' per cent',
    ('rule', 'tiles'),
    ('AUROC', *SHARES),
    tuple(entries),
    (4, 1, 1, 1),
    (
      'As sensitive as two: the bar for the primary network is raised on the'
      ' test tiles until one step finds as many with tumour as two.',
      'Intervals, 95 %: of the AUROC percentiles of resampled patients, of the'
      " others Wilson's on the effective number of tiles, of which patients"
      ' hold several.',
    ),
    SOURCE,
  )


def windows(found: Sequence[WindowShares]) -> Table:
  """Returns how many windows of the test images are taken for tumour."""
  entries = [
    Entry(
      (one.rule,),
      {
        'here': [
          100 * one.sensitivity,
          100 * one.share,
          one.false_positives,
          one.per_negative,
        ],
        'interval': [
          (None, None),
          tuple(100 * end for end in one.interval),
          (None, None),
          (None, None),
        ],
      },
    )
    for one in found
  ]
  return Table(
    'windows',
    'Windows of the test images: what the second step does',
    ('rule',),
    (
      'sensitivity (%)',
      'false positives (%)',
      'false positives',
      'per negative image',
    ),
    tuple(entries),
    (1, 2, 0, 1),
    (
      'False positives are windows without any tumour, in per cent of these;'
      ' windows that are mostly glass do not count.',
      'As sensitive as two: the bar for the primary network is raised on the'
      ' test windows until one step finds as many windows with tumour as two.',
      _PATIENTS,
    ),
    SOURCE,
  )
