"""Prints and writes the tables and figures of a few-shot study."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib

from experiments import files
from experiments.few_shot_parts import figures, paper, scores, slides, tables
from experiments.few_shot_parts.cohort import Cohort
from experiments.few_shot_parts.scores import METRICS, Summary, minus
from experiments.few_shot_parts.settings import FW_RD, RD, Setting, sweep
from experiments.few_shot_parts.training import Job, Options
from experiments.paper_text import Table
from experiments.slide_scores.scoring import ScoreError
from kmil_jax import froc, metrics

_SUMMARY = 'summary.json'


def begin(
  cohort: Cohort, study: Sequence[Setting], options: Options, phantom: bool
) -> None:
  """Says what is trained, and how that differs from the paper."""
  print(f'{cohort.note}.')
  for part, tiles in cohort.parts.items():
    tumour = int((tiles.label == 0).sum())
    print(
      f'{part}: {len(tiles) - tumour} normal and {tumour} tumour patches of'
      f' {tiles.size} px, {len(set(tiles.group.tolist()))} slides'
    )
  here = {
    'width': (options.width, paper.WIDTH),
    'patch': (cohort.scale.size, 256),
    'normal patches': (study[0].normal, paper.NORMAL),
    'tumour patches': (cohort.main, paper.TUMOUR),
    'epochs': (options.epochs, paper.EPOCHS),
    'learning rate': (options.learning_rate, paper.LEARNING_RATE),
    'batch': (options.batch, paper.BATCH),
    'similarities per': (options.per, 'location'),
  }
  differ = [f'{k} {a} ({b})' for k, (a, b) in here.items() if a != b]
  if differ:
    name = "the phantom's own recipe" if phantom else 'not the paper'
    print(f'{name}; here (paper): {", ".join(differ)}')
  print(
    f'{len(study)} settings x {options.seeds} seed(s) from {options.seed}',
    flush=True,
  )


def patches(
  folder: pathlib.Path, study: Sequence[Setting], options: Options
) -> None:
  """Makes Tables 2 and 3, the ablations and the figures of patches.

  Raises:
    FileNotFoundError: if a training is not done.
  """
  outcomes = {
    s.name: [
      scores.outcome(scores.read(Job(s, seed).folder(folder)))
      for seed in options.all_seeds
    ]
    for s in study
  }
  found = {name: scores.summary(some) for name, some in outcomes.items()}
  for table in (
    tables.methods(found, options.width),
    tables.counts(study, found),
    tables.ablations(study, found),
  ):
    show(folder, table)
  print(tables.spread(study, found, options.seeds))
  print(_margins(study, found, outcomes), flush=True)
  first = {
    name: scores.read(
      Job(next(s for s in study if s.name == name), options.seed).folder(folder)
    )['test']
    for name in (RD, FW_RD)
  }
  figures.patch_roc(
    folder / 'figures' / 'patch_roc.png',
    {name: (some.tumour, some.mean) for name, some in first.items()},
  )
  figures.counts(folder / 'figures' / 'table_3.png', sweep(study), found)
  _write_summary(
    folder,
    'patches',
    {
      name: {
        metric: {
          'mean': some.value[metric],
          'std': some.spread[metric],
          'ci_low': some.interval(metric)[0],
          'ci_high': some.interval(metric)[1],
          'per_seed': [o.value[metric] for o in outcomes[name]],
        }
        for metric in METRICS
      }
      for name, some in found.items()
    },
  )


def of_slides(
  folder: pathlib.Path, cohort: Cohort, found: Mapping[str, slides.Found]
) -> None:
  """Makes the table and figures of slides.

  Raises:
    ScoreError: naming the slides that could not be read, once all is made of
      the others; both methods see the same.
  """
  some = next(iter(found.values()))
  faults = [f'\n  {some.faults[name]}' for name in sorted(some.faults)]
  fault = f'{len(faults)} slide(s) not scored:{"".join(faults)}'
  if not some.slide:
    raise ScoreError(fault)
  show(folder, slides.table(found))
  curves = {name: froc.froc(some.cases) for name, some in found.items()}
  figures.froc_curves(folder / 'figures' / 'froc.png', curves)
  figures.slide_roc(
    folder / 'figures' / 'slide_roc.png',
    {n: (some.tumour, some.score['validation']) for n, some in found.items()},
  )
  figures.localisation(folder / 'figures' / 'localisation.png', cohort, found)
  rows = [['slide', 'tumour', *found]]
  for i, slide in enumerate(some.slide):
    values = [f'{f.score["validation"][i]:.6g}' for f in found.values()]
    rows.append([slide, int(some.tumour[i]), *values])
  files.write_csv(folder / 'slides' / 'scores.csv', rows)
  _write_summary(
    folder,
    'slides',
    {
      name: {
        'auroc': float(metrics.auroc(some.tumour, some.score['validation'])),
        'auroc_at_2.01': float(metrics.auroc(some.tumour, some.score['paper'])),
        'froc': curves[name].score,
        'sensitivity': curves[name].sensitivity.tolist(),
      }
      for name, some in found.items()
    },
  )
  if faults:
    raise ScoreError(fault)


def show(folder: pathlib.Path, table: Table) -> None:
  """Prints a table and writes it as Markdown and CSV."""
  text = table.markdown() + '\n'
  files.write_text(folder / f'{table.name}.md', text)
  files.write_csv(folder / f'{table.name}.csv', table.rows())
  print(f'\n{text}', flush=True)


def _margins(
  study: Sequence[Setting],
  found: Mapping[str, Summary],
  outcomes: Mapping[str, list[scores.Outcome]],
) -> str:
  """Says by how much tumour patches help, seed by seed."""
  rows = sweep(study)
  few = next((s.name for s in rows if s.tumour), FW_RD)
  lines = []
  for better, worse in ((FW_RD, RD), (FW_RD, few)):
    if better == worse:
      continue
    gap = minus(found[better], found[worse])
    ends = [f'{end:+.3f}' for end in gap.interval('auroc') if end == end]
    each = [
      f'{a.value["auroc"] - b.value["auroc"]:+.3f}'
      for a, b in zip(outcomes[better], outcomes[worse], strict=True)
    ]
    lines.append(
      f'{better} minus {worse}: accuracy {gap.value["accuracy"]:+.3f}, AUROC'
      f' {gap.value["auroc"]:+.3f} [{", ".join(ends) or "n/a"}]; seed by seed'
      f' {", ".join(each)}'
    )
  return '\n'.join(lines)


def _write_summary(folder: pathlib.Path, key: str, values: dict) -> None:
  """Puts a part into summary.json beside the others."""
  path = folder / _SUMMARY
  held = json.loads(path.read_text()) if path.exists() else {}
  text = json.dumps(held | {key: _plain(values)}, indent=2, allow_nan=False)
  files.write_text(path, text + '\n')


def _plain(value):
  """Returns numbers that are not defined as None."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_plain(v) for v in value]
  undefined = isinstance(value, float) and math.isnan(value)
  return None if undefined else value
