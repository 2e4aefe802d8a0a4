"""Selection: the released rules, literally, and each run on its own."""

import dataclasses
import math

import chex
from hypothesis import given, strategies as st
import numpy as np
import pytest

from kmil_jax import optim, selection
from kmil_jax.models import SPECS
from kmil_jax.types import PatchRecipe, Recipe


@chex.dataclass(frozen=True)
class Validation:
  """Of every run after one epoch."""

  f1_macro: np.ndarray
  accuracy: np.ndarray
  auroc: np.ndarray
  loss: np.ndarray


CHOOSER = SPECS['kmil'].chooser_recipe


def follow(recipe, **values):
  """Selections after every epoch and what was kept.

  Values are [E] of one run or [E, R]; those that are not given are 0.
  """
  values = {name: np.array(x, float) for name, x in values.items()}
  values = {n: x if x.ndim == 2 else x[:, None] for n, x in values.items()}
  shape = next(iter(values.values())).shape
  chosen, trace = selection.start(shape[1], recipe), []
  for epoch in range(shape[0]):
    now = dict.fromkeys(Validation.__annotations__, np.zeros(shape[1]))
    now |= {name: x[epoch] for name, x in values.items()}
    chosen, improved = selection.update(
      chosen, recipe, epoch, Validation(**now)
    )
    trace.append((chosen, improved))
  return trace


def kept(recipe, **values):
  """The epoch of one run that is kept after every epoch."""
  return [int(chosen.epoch[0]) for chosen, _ in follow(recipe, **values)]


def released(losses, accuracies, rate, patience):
  """The released first stage, for one run, line by line.

  Zheng et al. 2024: the checkpoint is overwritten whenever the loss strictly
  improves or the accuracy is at least the best; the counter starts again on
  either; at 20 (`patience`) it stops; at multiples of 7 the rate falls to a
  third, not below 1e-4.
  """
  best_loss, best_accuracy, counter, kept = math.inf, 0.0, 0, -1
  trace = []
  for epoch, (loss, accuracy) in enumerate(
    zip(losses, accuracies, strict=True)
  ):
    better = False
    if loss < best_loss:
      best_loss, kept, better = loss, epoch, True
    if accuracy >= best_accuracy:
      best_accuracy, kept, better = accuracy, epoch, True
    counter = 0 if better else counter + 1
    if counter > 0 and counter % 7 == 0:
      rate = max(rate / 3, 1e-4)
    trace.append((kept, counter, rate, better))
    if counter >= patience:
      break
  return trace


@given(
  seed=st.integers(0, 2**32 - 1),
  runs=st.integers(1, 4),
  epochs=st.integers(1, 70),
  levels=st.sampled_from([2, 5, 30, 1000]),  # Few mean many ties.
  rate=st.sampled_from([1e-3, 3e-4, 1e-4]),
  patience=st.sampled_from([20, 7]),  # At 7 it stops as its rate falls.
)
def test_the_first_stage_is_the_released_rule(
  seed, runs, epochs, levels, rate, patience
):
  rng = np.random.default_rng(seed)
  loss, accuracy = rng.integers(0, levels + 1, (2, epochs, runs)) / levels
  recipe = dataclasses.replace(CHOOSER, learning_rate=rate, patience=patience)
  trace = follow(recipe, loss=loss, accuracy=accuracy)
  for r in range(runs):
    want = released(loss[:, r], accuracy[:, r], rate, patience)
    for (chosen, improved), (epoch, counter, rate_now, better) in zip(
      trace, want, strict=False
    ):
      assert chosen.epoch[r] == epoch
      assert chosen.stale[r] == counter
      assert improved[r] == better
      assert chosen.learning_rate[r] == pytest.approx(rate_now, rel=1e-12)
      assert chosen.stopped[r] == (counter >= patience)
    # After it stopped, nothing moves.
    last = trace[len(want) - 1][0]
    for chosen, improved in trace[len(want) :]:
      assert not improved[r]
      for name, values in chosen.items():
        assert values[r] == last[name][r], name


def test_a_rate_below_the_floor_stays():
  falling = {'accuracy': -np.arange(9.0), 'loss': np.ones(9)}
  recipe = dataclasses.replace(CHOOSER, learning_rate=5e-5)
  assert follow(recipe, **falling)[-1][0].learning_rate[0] == 5e-5
  # Patch classifiers begin at such rates, and theirs may fall further.
  recipe = dataclasses.replace(recipe, learning_rate_min=0.0)
  rate = follow(recipe, **falling)[-1][0].learning_rate[0]
  assert rate == pytest.approx(5e-5 / 3)
  # A cosine would rise to its floor.
  trace = follow(Recipe(learning_rate=1e-6, epochs=9), **falling)
  assert {float(s.learning_rate[0]) for s, _ in trace} == {1e-6}


@pytest.mark.parametrize(
  'schedule,want',
  [
    ('constant', lambda epoch: 1e-3),
    # torch's MultiStepLR falls at milestone 15.
    ('step', lambda epoch: 1e-3 if epoch < 15 else 2e-4),
    ('decade', lambda epoch: 1e-3 * 0.1 ** (epoch // 10)),
    ('cosine', lambda epoch: optim.cosine(1e-3, 5e-6, epoch, 30)),
  ],
)
def test_a_schedule_sets_the_next_epochs_rate(schedule, want):
  recipe = Recipe(schedule=schedule, epochs=30, learning_rate=1e-3)
  trace = follow(recipe, loss=np.zeros((30, 2)))
  assert (selection.start(2, recipe).learning_rate == want(0)).all()
  for epoch, (chosen, _) in enumerate(trace, 1):
    np.testing.assert_allclose(chosen.learning_rate, want(epoch))


@pytest.mark.parametrize(
  'select,epoch',
  [
    ('f1_macro', 4),
    ('loss', 1),
    ('accuracy', 2),
    ('auroc', 7),
    ('auroc_accuracy', 2),
    ('late_auroc', 9),
    ('last', 9),
  ],
)
def test_each_rule_keeps_its_own_epoch_by_hand(select, epoch):
  trace = follow(
    Recipe(select=select, epochs=10),
    # Twice the highest: the last of the two stays.
    f1_macro=[0, 0.5, 0.9, 0.1, 0.9, 0, 0, 0, 0, 0],
    # Twice the lowest loss: the first of the two stays.
    loss=[3, 1, 1, 2, 2, 2, 2, 2, 2, 2],
    accuracy=[0, 0.1, 0.9, 0.9, 0, 0, 0, 0, 0, 0],
    # The best of all are too early for the late rule, which takes epoch 9.
    auroc=[0.6, 0.7, 0.8, 0.8, 0.9, 0.9, 0.9, 1.0, 0.9, 0.5],
  )
  assert trace[-1][0].epoch[0] == epoch
  assert np.flatnonzero([improved[0] for _, improved in trace])[-1] == epoch


@given(
  seed=st.integers(0, 1000),
  epochs=st.sampled_from([6, 7, 20, 33, 200]),
  patience=st.sampled_from([None, 1, 3]),
)
def test_dtfd_keeps_the_best_after_four_fifths_as_released(
  seed, epochs, patience
):
  """Zhang et al., CVPR 2022: `if epoch > int(EPOCH * 0.8)`, from 0."""
  auroc = np.random.default_rng(seed).integers(0, 20, epochs) / 20
  recipe = dataclasses.replace(
    SPECS['dtfd'].own, epochs=epochs, patience=patience
  )
  best, want, waited = -1, -1, 0
  for epoch in range(epochs):
    if epoch > int(epochs * 0.8):
      waited += 1
      if auroc[epoch] > best:
        best, want, waited = auroc[epoch], epoch, 0
      if waited == patience:
        break
  assert kept(recipe, auroc=auroc)[-1] == want
  assert want > int(epochs * 0.8)


@pytest.mark.parametrize('epochs', [1, 2, 5])
def test_of_few_epochs_the_late_rule_keeps_the_last(epochs):
  recipe = dataclasses.replace(SPECS['dtfd'].own, epochs=epochs, patience=1)
  assert kept(recipe, auroc=np.linspace(0.9, 0.1, epochs))[-1] == epochs - 1


def test_dsmil_stops_when_its_count_exceeds_ten_as_released():
  """Li et al., code of 2024: counted up, set to 0 by a gain, then compared."""
  score = [0.2, 0.5, *[0.5] * 30]  # The count is 1 in epoch 2 and 11 in 12.
  trace = follow(SPECS['dsmil'].own, accuracy=score, auroc=score)
  assert [chosen.stopped[0] for chosen, _ in trace].index(True) == 12


@pytest.mark.parametrize('select', ['accuracy', 'auroc'])
def test_what_is_nan_is_never_kept(select):
  values = {select: [np.nan, 0.5, 0.7, np.nan, 0.6, 0.8]}
  assert kept(PatchRecipe(select=select), **values) == [-1, 1, 2, 2, 2, 5]


def test_accuracy_decides_then_auroc_then_the_later():
  recipe = PatchRecipe(select='accuracy_then_auroc')
  accuracy = [0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.5]
  auroc = [0.6, 0.6, 0.5, 0.7, 0.1, 0.0, 1.0]
  want = [0, 1, 1, 3, 4, 4, 4]
  assert kept(recipe, accuracy=accuracy, auroc=auroc) == want


@pytest.mark.parametrize('field', ['select', 'schedule'])
def test_an_unknown_rule_is_refused(field):
  recipe = dataclasses.replace(Recipe(), **{field: 'best'})
  with pytest.raises(ValueError, match=r"'best' is unknown\. Choose"):
    follow(recipe, loss=[0])
