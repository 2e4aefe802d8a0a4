"""What lies beside a run and belongs into its report."""

from collections.abc import Mapping
import csv
import json
import pathlib
from typing import Any

from experiments.bags import ablation as ablations
from experiments.evaluation import groups as group_table
from experiments.reporting.record import Record

COST = 'cost.json'  # Of `experiments.cost --format=json`.


def ablation(record: Record) -> list[tuple[str, Mapping[str, Any]]]:
  """Returns settings and metrics of the ablation on the same material.

  Looks for folders of experiments.ablations in the results folder that holds
  this run, or around this run if it is one of their settings. Those of other
  slides, labels or splits are passed over.
  """
  roots = [record.folder.parent, *record.folder.parent.glob('*ablations_*')]
  for root in sorted(roots):
    found = []
    for name in ablations.SETTINGS:
      config = _json(root / name / 'config.json')
      summary = _json(root / name / 'summary.json')
      if config and summary and config.get('inputs') == record.config['inputs']:
        found.append((name, summary['metrics']))
    if len(found) > 1:
      return found
  return []


def cost(record: Record) -> Mapping[str, Any] | None:
  """Returns what each model costs, by name; None where nothing says it."""
  for folder in (record.folder, record.folder.parent):
    found = _json(folder / COST)
    if found and all(isinstance(row, dict) for row in found.values()):
      return found
  return None


def groups(record: Record) -> list[dict[str, Any]]:
  """Returns the rows of groups.csv, numbers or None; none without the file."""
  try:
    with (record.folder / group_table.NAME).open(newline='') as f:
      rows = list(csv.DictReader(f))
    text = ('group', 'fold', 'cases', 'slides')
    return [
      {k: v if k in text else float(v) if v else None for k, v in row.items()}
      for row in rows
    ]
  except (OSError, ValueError):
    return []


def _json(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) else None
