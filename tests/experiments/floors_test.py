"""What a bag model is held against, and when it is not above it."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest

from data.labels import Manifest
from data.splits import Split
from experiments.evaluation import floors, predictions
from experiments.evaluation.predictions import Predictions
from experiments.run.results import Folder

N = 60
CLASSES = ('no', 'yes')


@dataclasses.dataclass
class Cohort:
  """Slides whose class is in the mean of their bags, or in nothing."""

  manifest: Manifest
  label: np.ndarray
  bags: list[np.ndarray]
  classes: tuple[str, ...] = CLASSES
  reads: int = 0

  def read(self, index):
    self.reads += 1
    return Bag(self.bags[index])


class Bag(NamedTuple):
  features: np.ndarray


class Material(NamedTuple):
  cohort: Cohort
  splits: list[Split]


def material(shift):
  rng = np.random.default_rng(0)
  label = np.arange(N) % 2
  bags = [rng.normal(shift * y, 1, (rng.integers(4, 9), 3)) for y in label]
  ids = np.array([f's{i:02}' for i in range(N)])
  # A fold that tests more of a class trains on less of it.
  fold = np.arange(N) // (2 + label) % 3
  parts = [
    Split(*(fold == (i + shift) % 3 for shift in (2, 1, 0))) for i in range(3)
  ]
  table = Manifest(ids, ids, np.array(CLASSES)[label])
  return Material(Cohort(table, label, bags), parts)


def written(folder, material, confidence):
  """Writes what a model predicts that is right with a confidence."""
  cohort = material.cohort
  rng = np.random.default_rng(1)
  for i, split in enumerate(material.splits):
    parts = {}
    for name in ('val', 'test'):
      rows = rng.permutation(np.flatnonzero(getattr(split, name)))
      noise = rng.normal(size=len(rows))
      score = confidence * (2 * cohort.label[rows] - 1) + noise
      p = 1 / (1 + np.exp(-score))
      table, prob = cohort.manifest, np.stack([1 - p, p], 1)
      columns = table.case[rows], table.slide[rows], cohort.label[rows]
      parts[name] = Predictions(*columns, prob)
    predictions.write(Folder(folder / f'fold_{i}'), i, parts, CLASSES)
  return Folder(folder)


@pytest.mark.parametrize('confidence', [0.0, 1.5])
@pytest.mark.parametrize('shift', [0, 2])
def test_a_model_is_named_unless_it_is_above_the_best(
  tmp_path, shift, confidence
):
  of = material(shift)
  folder = written(tmp_path, of, confidence)
  floors.write(folder, of)
  found = {floor['name']: floor for floor in floors.read(folder)}
  assert found.keys() == floors.FLOORS.keys()
  assert found['majority class']['auroc'] == 0.5
  if shift:
    assert found['mean pooling']['auroc'] > 0.95
  best = floors.not_beaten(list(found.values()))
  if confidence and not shift:
    assert best is None
  else:
    assert best['auroc'] == max(floor['auroc'] for floor in found.values())
    assert not best['ci_low'] or best['ci_low'] <= 0


def test_floors_are_of_the_slides_in_the_order_of_the_model(tmp_path):
  """Rows of predictions.csv are in an order of their own."""
  of = material(2)
  folder = written(tmp_path, of, 4.0)
  one = floors.write(folder, of).cells()
  assert one == floors.write(folder, of).cells()
  assert of.cohort.reads == N  # The second time they are on record.
  written(tmp_path, of, 0.0)
  other = floors.write(folder, of).cells()
  assert [row[:4] for row in one] == [row[:4] for row in other]
  assert one != other
