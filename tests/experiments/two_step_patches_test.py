"""Patches of the second network lie in the parts of the first one's."""

import numpy as np
import pytest

from data import labelled_tiles
from experiments import two_step_patches as patches

PATIENTS = [f'p{i}' for i in range(10)]


def tiles(label, group, prefix):
  return labelled_tiles.from_arrays(
    np.zeros((len(group), 4, 4, 3), np.uint8),
    np.broadcast_to(label, len(group)),
    np.array(group),
    patches.CLASSES,
    ids=[f'{prefix}_{i}' for i in range(len(group))],
  )


def drawn():
  label = np.arange(200) % 2
  return tiles(label, np.repeat(PATIENTS, 20), 'patch')


@pytest.mark.parametrize('by', ['patient', 'patch'])
def test_the_second_network_is_not_validated_on_what_the_first_saw(by):
  first = patches.split(drawn(), by, 0)
  mistakes = tiles(0, np.repeat(PATIENTS, 6), 'mistake')
  both = patches.matched(mistakes, labelled_tiles.concatenate(first), 0)
  train, val = patches.split_like(both, first[0], by, 0)
  assert {*train.id} | {*val.id} == {*both.id}
  assert not {*val.id} & {*first[0].id}
  assert not {*train.id} & {*first[1].id}
  if by == 'patient':
    assert not {*val.group} & {*first[0].group}
  for part in (train, val):
    assert len(np.unique(part.label)) == 2


def test_false_positives_of_one_patient_are_split_by_patch(capsys):
  first = patches.split(drawn(), 'patient', 0)
  mistakes = tiles(0, ['p0'] * 40, 'mistake')
  both = patches.matched(mistakes, labelled_tiles.concatenate(first), 0)
  train, val = patches.split_like(both, first[0], 'patient', 0)
  assert 'split by patch' in capsys.readouterr().out
  assert [(p.label == 0).sum() for p in (train, val)] == [28, 12]
  assert not {*val.id} & {*first[0].id}
