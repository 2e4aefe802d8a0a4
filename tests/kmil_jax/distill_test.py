"""Runs of reverse distillation: orders, independence, selection."""

import contextlib
import dataclasses
import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import numpy as np
import pytest
import training_run

from kmil_jax import loop
from kmil_jax.models.batch_norm import BatchNorm
from kmil_jax.tasks import distill
from kmil_jax.tasks.distill import (
  DistillError,
  DistillTask,
  Patches,
  Setting,
  orders,
  patch_threshold,
  runs_of,
)

WIDTH, SIDE, BATCH, EPOCHS = 4, 32, 8, 3
COUNT = 40
LABEL = (np.arange(COUNT) % 4 > 0).astype(np.int32)
NORMAL = np.flatnonzero(LABEL == 1)
RATE = 3e-3
# Three of normal patches alone; in the second group, a shorter epoch.
RUNS = [
  Setting(NORMAL, seed=0, alpha=0.0),
  Setting(NORMAL, seed=1, alpha=0.0),
  Setting(np.arange(COUNT), seed=0, alpha=0.25),
  Setting(np.arange(COUNT), seed=0, alpha=0.1),
  Setting(np.arange(20), seed=2, alpha=0.5, gamma=0.0),
  Setting(np.arange(COUNT), seed=3, alpha=0.25),
]


def patches(label, seed):
  """Normal ones are of large smooth blots, tumour of small grain."""
  rng = np.random.default_rng(seed)
  cells = rng.integers(0, 256, (len(label), 4, 4, 3), np.uint8)
  smooth = cells.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
  grain = rng.integers(0, 256, (len(label), SIDE, SIDE, 3), np.uint8)
  return np.where((label == 1)[:, None, None, None], smooth, grain)


IMAGE = patches(LABEL, 0)
VAL_LABEL = np.array([0, 1] * 5)
VAL_IMAGE = patches(VAL_LABEL, 1)


class TinyTeacher(nn.Module):
  """Three convolutions: deeper ones make more of rounding than a pod may."""

  width: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x):
    maps = []
    for stage, stride in enumerate((4, 2, 2)):
      channels = 4 * self.width * 2**stage
      conv = nn.Conv(channels, (stride, stride), stride)
      x = nn.relu(conv(x))
      maps.append(x)
    return tuple(maps)


class TinyStudent(nn.Module):
  """Guesses each map from eight channels of it."""

  width: int
  shortcut: int
  dtype: Any = None

  @nn.compact
  def __call__(self, maps, train=False):
    guesses = []
    for m in maps:
      x = BatchNorm()(nn.Dense(8)(m), use_running_average=not train)
      guesses.append(nn.relu(nn.Dense(m.shape[-1])(nn.relu(x))))
    return tuple(guesses)


@contextlib.contextmanager
def tiny_networks():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(distill, 'Teacher', TinyTeacher)
    patch.setattr(distill, 'Student', TinyStudent)
    yield


@pytest.fixture(scope='module', autouse=True)
def tiny():
  with tiny_networks():
    yield


@functools.cache
def task_and_patches():
  x = np.zeros((1, SIDE, SIDE, 3), np.float32)
  drawn = jax.jit(TinyTeacher(WIDTH).init)(jax.random.key(0), x)
  teacher = jax.tree.map(np.asarray, drawn)
  patches = Patches(teacher=teacher, image=IMAGE, label=LABEL)
  return DistillTask(WIDTH, 1), patches


def fit(settings, folder):
  task, patches = task_and_patches()
  return training_run.fit(
    folder,
    distill.program(task, settings, patches, BATCH),
    distill.recipe(RATE, EPOCHS, BATCH),
    runs_of(settings),
    validation=VAL_IMAGE,
    validate=distill.validation(VAL_LABEL),
  )


def losses_of(folder):
  """Training losses [E, R] of all runs, in whatever arrangement of devices."""
  with tiny_networks():
    return fit(RUNS, folder).history['train_loss']


@pytest.fixture(scope='module')
def fitted(tiny, tmp_path_factory):
  return fit(RUNS, tmp_path_factory.mktemp('all'))


def of(variables, rows):
  return jax.tree.map(lambda x: x[rows], variables)


def test_a_run_does_not_depend_on_the_others(fitted, tmp_path):
  # On other devices, beside other runs, of which none is as long as run 5.
  rows = np.array([4, 0])
  alone = fit([RUNS[row] for row in rows], tmp_path)
  chex.assert_trees_all_equal(alone.variables, of(fitted.variables, rows))
  for name in set(loop.COLUMNS) - {'examples_per_second'}:
    want = fitted.history[name][:, rows]
    np.testing.assert_array_equal(alone.history[name], want)
  # And they are runs of their own.
  leaf = fitted.variables['params']['Dense_0']['kernel']
  assert all(
    np.abs(leaf[a] - leaf[b]).max() > 1e-4 for a in range(6) for b in range(a)
  )


def test_training_learns_and_scores_are_those_of_validation(fitted):
  task, patches = task_and_patches()
  losses = fitted.history['train_loss']
  assert (losses[-1] < losses[0]).all()
  program = distill.program(task, RUNS, patches, BATCH)
  models = program.put((fitted.variables, runs_of(RUNS)))
  out = program.evaluate(models, VAL_IMAGE)
  mean, highest = (out[n].reshape(len(RUNS), -1) for n in ('mean', 'max'))
  assert mean.shape == (len(RUNS), len(VAL_IMAGE))
  assert (0 < mean).all() and (mean < highest).all() and (highest < 3).all()
  for run, epoch in enumerate(fitted.epoch):
    threshold = fitted.history['val_threshold'][epoch, run]
    called = mean[run] >= threshold
    accuracy = (called == (VAL_LABEL == 0)).mean()
    assert accuracy == fitted.history['val_accuracy'][epoch, run]
    assert patch_threshold(VAL_LABEL, mean[run]) == threshold
  # The best epoch of several is the one kept.
  accuracies = fitted.history['val_accuracy']
  np.testing.assert_array_equal(
    accuracies[fitted.epoch, np.arange(len(RUNS))], accuracies.max(0)
  )
  # A student alone, as on slides.
  alone = jax.jit(lambda v, batch: task.predict(v, batch, None))
  scores = alone(of(fitted.variables, 2), (patches, VAL_IMAGE[:6]))
  np.testing.assert_allclose(scores['mean'], mean[2, :6], rtol=1e-4)
  np.testing.assert_allclose(scores['max'], highest[2, :6], rtol=1e-4)


def test_orders_are_a_function_of_seed_and_epoch_and_of_ones_own_patches():
  make = lambda runs, epoch: orders(
    runs, COUNT, size=BATCH, epoch=epoch
  ).swapaxes(0, 1)
  table = make(RUNS, 0)
  assert table.shape == (6, 5, 8)
  for row, run in zip(table, RUNS, strict=True):
    flat = row.ravel()
    shown, filler = np.split(flat, [len(run.patches)])
    np.testing.assert_array_equal(np.sort(shown), run.patches)
    size = -(-len(run.patches) // BATCH) * BATCH - len(run.patches)
    np.testing.assert_array_equal(filler[:size], shown[:size])
    assert (filler[size:] == -1).all()
  np.testing.assert_array_equal(make(RUNS[::-1], 0), table[::-1])
  assert (make(RUNS, 1)[3] != table[3]).any()
  assert (table[5] != table[3]).any()
  # Of one seed, patches that both see come in the same order.
  both = table[3].ravel()
  np.testing.assert_array_equal(
    both[np.isin(both, NORMAL)], table[0].ravel()[: len(NORMAL)]
  )


def test_a_run_without_patches_is_refused():
  settings = [RUNS[0], dataclasses.replace(RUNS[2], patches=np.array([], int))]
  with pytest.raises(DistillError, match='A training has no patches'):
    runs_of(settings)


def test_a_seed_may_be_of_a_clock():
  seeds = 20261130210832, 2**63
  settings = [dataclasses.replace(RUNS[2], seed=seed) for seed in seeds]
  assert runs_of(settings).seed.tolist() == [20261130210832 % 2**32, 0]


def test_validation_needs_both_kinds():
  with pytest.raises(DistillError, match='normal patches and tumour'):
    distill.validation(np.ones(3, int))


def test_threshold_has_the_highest_f1():
  rng = np.random.default_rng(0)
  label, score = rng.integers(0, 2, 30), rng.integers(0, 12, 30) / 4

  def f1(threshold):
    called = score >= threshold
    hits = (called & (label == 0)).sum()
    return 2 * hits / (called.sum() + (label == 0).sum())

  got = patch_threshold(label, score)
  best = max(f1(value) for value in score)
  assert got == max(value for value in score if f1(value) == best)
  assert patch_threshold(np.array([1, 0, 1]), np.array([0.1, 2.0, 0.3])) == 2
  # From 1 on all are called, from 3 on one: F1 is 2 / 3 for both.
  assert (
    patch_threshold(np.array([0, 1, 1, 0]), np.arange(4.0)[[1, 2, 2, 3]]) == 3
  )
