"""Folders of labels and features for tests of the scripts."""

import csv

import numpy as np
import script_process

from data import features
from experiments.bags import cohort as cohorts
from experiments.run import start

# Statements for scripts whose pictures, floors and report nobody looks at.
UNDRAWN = """
from experiments.evaluation import figures, floors
from experiments.reporting import page
figures.draw = page.write = lambda *_: None
floors.write = lambda *_: floors.table([])
"""
ATTRIBUTES = {
  'encoder': 'planted',
  'patch_size': 128,
  'patch_size_level0': 256,
  'mpp': 1.0,
  'level0_mpp': 0.5,
  'level0_width': 3000,
  'level0_height': 2500,
  'overlap': 0,
}


def write(folder, bags, labels, cases=None, coords=True):
  """Writes features of bags [N_i, D] and labels.csv; returns its flags."""
  (folder / 'features').mkdir(parents=True)
  rows = []
  for i, (bag, label) in enumerate(zip(bags, labels, strict=True)):
    slide = f'slide_{i:03d}'
    place = np.stack([np.arange(len(bag)) * 256, np.zeros(len(bag))], 1)
    path = folder / 'features' / f'{slide}.h5'
    features.write(path, bag.astype(np.float32), place, ATTRIBUTES)
    case = f'case_{i:03d}' if cases is None else cases[i]
    rows.append([case, slide, label])
  with (folder / 'labels.csv').open('w', newline='') as f:
    csv.writer(f).writerows([['case_id', 'slide_id', 'label'], *rows])
  return [
    f'--csv_path={folder / "labels.csv"}',
    f'--features_dir={folder / "features"}',
  ]


def cohort(csv_path, features_dir, **options):
  """Returns a cohort and its warnings.

  Raises:
    CohortError: naming all problems.
  """
  findings = start.Findings()
  found, *_ = cohorts.join(csv_path, features_dir, findings, **options)
  if findings.problems:
    raise cohorts.CohortError('\n'.join(findings.problems))
  return found, findings.warnings


def planted(num_bags=60, width=16, classes=3, seed=0):
  """Bags of 1 to 12 instances, one or two of which tell the class."""
  rng = np.random.default_rng(seed)
  labels = np.arange(num_bags) % classes
  bags = []
  for label in labels:
    bag = rng.normal(size=(rng.integers(1, 13), width))
    bag[: rng.integers(1, 3), label] += 6
    bags.append(bag)
  return bags, labels


def script(*args, module='kmil', before=script_process.HASTY + UNDRAWN):
  """Starts `python -m experiments.<module>` after the statements `before`."""
  return script_process.Script(f'experiments.{module}', args, before=before)


def run(*args, **kwargs):
  """Runs the script to its end; returns what it printed."""
  process = script(*args, **kwargs)
  out, _ = process.communicate(timeout=900)
  assert process.returncode == 0, out
  return out
