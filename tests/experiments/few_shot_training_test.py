"""Trainings of the few-shot study: their patches, weights and groups."""

import dataclasses

import jax
import numpy as np
import pytest

from data import labelled_tiles
from experiments.studies import few_shot_training as training
from experiments.studies.few_shot_data import Material
from experiments.studies.few_shot_training import Students
from kmil_jax.models import reverse_distillation

LABEL = np.repeat([0, 1], [1001, 5000])
COUNTS = (0, 5, 10, 50, 100, 500, 1000)


def settings_of(tumour=1001, normal=5000, main=500, counts=COUNTS):
  label = np.repeat([0, 1], [tumour, normal])
  patches = labelled_tiles.from_arrays(
    np.zeros((len(label), 1, 1, 3), np.uint8),
    label,
    np.repeat('s', len(label)),
    ('tumor', 'normal'),
  )
  material = Material({'train': patches}, main, {n: n for n in counts}, '')
  (found,) = training.settings(material, Students(seeds=1), 3)
  return found


def sweep(settings):
  return sorted(
    (s for s in settings if s.counterpart is not None), key=lambda s: s.tumour
  )


def test_the_papers_trainings():
  settings = settings_of()
  assert [s.tumour for s in sweep(settings)] == list(COUNTS)
  by_name = {s.name: s for s in settings}
  assert len(by_name) == len(settings) == 10
  assert by_name['RD'].alpha == 0
  assert by_name['FW-RD'].alpha == 0.1
  assert by_name['tumour_1000'].alpha == pytest.approx(1 / 6)
  assert by_name['balanced'].normal == by_name['balanced'].tumour == 500
  assert by_name['balanced'].alpha == by_name['unweighted'].alpha == 0.5
  assert by_name['unweighted'].gamma == 0
  # Fewer patches keep their main training.
  few = settings_of(7, 80, 7, (0, 5))
  assert [s.tumour for s in sweep(few)] == [0, 5, 7]


def test_patches_of_fewer_are_among_those_of_more():
  settings = settings_of()
  previous, normal = set(), None
  for setting in sweep(settings):
    run = setting.run(LABEL)
    assert (run.alpha, run.gamma, run.seed) == (setting.alpha, 2.0, 3)
    tumour = set(run.patches[LABEL[run.patches] == 0].tolist())
    assert len(tumour) == setting.tumour
    assert previous <= tumour
    previous = tumour
    now = set(run.patches[LABEL[run.patches] == 1].tolist())
    assert len(now) == 5000 and normal in (None, now)
    normal = now
  other = dataclasses.replace(settings[1], seed=4).run(LABEL).patches
  one = settings[1].run(LABEL).patches
  assert set(one.tolist()) != set(other.tolist())


def test_groups_fit_in_memory(monkeypatch):
  jobs = 2 * settings_of(20, 100, 10, (0, 5))
  for i in (5, 11):
    jobs[i] = dataclasses.replace(jobs[i], longer=3)
  monkeypatch.setattr(reverse_distillation, 'STAGES', (1, 1, 1))
  students = Students(width=2)
  student = jax.eval_shape(
    students.task().student.init,
    jax.random.key(0),
    reverse_distillation.map_shapes(2),
  )
  weights, sizes = 4 * sum(x.size for x in jax.tree.leaves(student)), {}
  for held in (0.5, 2.5, 100):  # Runs of five times its weights, per device.
    memory = int(5 * held * weights / 0.6)
    monkeypatch.setattr(training.parallel, 'memory_bytes', lambda m=memory: m)
    groups = list(training.groups(jobs, students))
    sizes[held] = [len(group) for group in groups]
    # Those of other epochs apart, the order is that of the jobs.
    assert {job.name for job in groups[-1]} == {'balanced'}
    assert [job for group in groups[:-1] for job in group] == [
      job for job in jobs if job.longer == 1
    ]
  # Of four devices.
  assert sizes == {0.5: [4, 4, 2, 2], 2.5: [8, 2, 2], 100: [10, 2]}
