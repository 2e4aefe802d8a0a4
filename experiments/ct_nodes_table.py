"""Scores the networks of Table 3 and prints them beside the paper's."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from data.ct import resample
from experiments import scores, tables
from experiments.ct_nodes_parts import FATES, LARGER, Parts
from kmil_jax import intervals, metrics


@dataclasses.dataclass(frozen=True)
class Said:
  """What one network says of all slices."""

  name: str
  title: str
  prob: np.ndarray  # [n, 2], of every slice of `Parts.tiles`
  epoch: int  # the one kept, from 0
  epochs: int  # trained
  paper: tuple[float, float, float]  # train acc, test acc, test AUROC


def score(said: Said, parts: Parts) -> dict:
  """Train and test accuracy and test AUROC, 95 % intervals by patient."""
  tiles, test = parts.tiles, parts.rows['test']
  train = parts.rows['train']
  hit = said.prob.argmax(1) == tiles.label
  label, prob = tiles.label[test], said.prob[test]
  values = metrics.evaluate(label, prob)
  bounds = intervals.of_metrics(label, prob, tiles.group[test])
  found = {
    'kept_epoch': said.epoch + 1,
    'epochs': said.epochs,
    'train_accuracy': float(hit[train].mean()),
  }
  for name in ('accuracy', 'auroc'):
    low, high = bounds[name]
    found[f'test_{name}'] = {
      'value': scores.number(values[name]),
      'ci_low': scores.number(low),
      'ci_high': scores.number(high),
    }
  names = ('train_accuracy', 'test_accuracy', 'test_auroc')
  return found | {'paper': dict(zip(names, said.paper, strict=True))}


def area_auroc(parts: Parts) -> float | None:
  """Test AUROC of the node's area in its slice: what size alone tells."""
  test = parts.rows['test']
  area = parts.inside[test].sum((1, 2)).astype(float)
  return scores.number(metrics.auroc(parts.tiles.label[test] == 1, area))


def of_nodes(parts: Parts, specks: int) -> str:
  """What became of the nodes of each class, for the terminal."""
  names = [*FATES, LARGER]
  width = max(12, *(len(name) for name in parts.fates))
  mm = parts.side * resample.SPACING
  lines = [
    f'box of {parts.side} x {parts.side} voxels of {resample.SPACING} mm:'
    f' {mm:.1f} mm',
    ' '.join([f'{"":{width}}', *names]),
  ]
  total = dict.fromkeys(names, 0)
  for label, counts in parts.fates.items():
    lines.append(_row(label, counts, names, width))
    total = {name: total[name] + counts[name] for name in names}
  lines.append(_row('both', total, names, width))
  if specks:
    lines.append(f'{specks} parts of masks below 4 mm are no nodes')
  for part, rows in parts.rows.items():
    lines.append(
      f'{part}: {_count(parts, rows)}'
      f' of {len(set(parts.tiles.group[rows].tolist()))} patients'
    )
  return '\n'.join(lines)


def table_3(said: Sequence[Said], found: dict[str, dict], parts: Parts) -> str:
  """The paper's Table 3 with intervals, for the terminal."""
  test = parts.rows['test']
  patients = len(set(parts.tiles.group[test].tolist()))
  lines = [
    f'Table 3: {len(test)} test slices of {patients} patients, which the'
    ' intervals draw',
    f'{"":26} train acc   test acc [95 % interval]'
    '  test AUROC [95 % interval]   paper (its own data)',
  ]
  for one in said:
    row = found[one.name]
    cells = []
    for key in ('test_accuracy', 'test_auroc'):
      value, low, high = (
        tables.number(row[key][k]) for k in ('value', 'ci_low', 'ci_high')
      )
      cells.append(f'{value} [{low}, {high}]')
    paper = ' '.join(f'{x:.2f}' for x in one.paper)
    lines.append(
      f'{one.title:26} {tables.number(row["train_accuracy"]):>9}'
      f'   {cells[0]:>24}  {cells[1]:>26}   {paper}'
    )
  lines.append(
    f'{"area of the node alone":26} {"":9}   {"":24}'
    f'  {tables.number(area_auroc(parts))}'
  )
  kept = ', '.join(
    f'{one.title} {one.epoch + 1} of {one.epochs}' for one in said
  )
  lines.append(f'epochs kept: {kept}')
  return '\n'.join(lines)


def looks(
  said: Sequence[Said], share: dict[str, float | None], parts: Parts
) -> str:
  """How much of each Grad-CAM lies in the node, for the terminal."""
  area = parts.inside[parts.rows['test']].mean()
  found = ', '.join(
    f'{one.title} {tables.number(share[one.name]).strip()}' for one in said
  )
  return (
    f'share of Grad-CAM in the node, which is {area:.3f} of the slice: {found}'
  )


def _row(label: str, counts: dict, names: list[str], width: int) -> str:
  cells = (f'{counts[name]:>{len(name)}}' for name in names)
  return ' '.join([f'{label:{width}}', *cells])


def _count(parts: Parts, rows: np.ndarray) -> str:
  by_class = np.bincount(parts.tiles.label[rows], minlength=2)
  return ' + '.join(
    f'{n} {name}' for n, name in zip(by_class, parts.fates, strict=True)
  )
