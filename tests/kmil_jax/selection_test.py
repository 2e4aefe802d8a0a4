"""Selection: the released rule, literally, and each run on its own."""

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
  """Of every epoch and run, or of one epoch."""

  f1_macro: np.ndarray
  accuracy: np.ndarray
  auroc: np.ndarray
  loss: np.ndarray


CHOOSER = Recipe(
  learning_rate=1e-3,
  learning_rate_min=1e-4,
  epochs=100,
  schedule='plateau',
  select='loss_or_accuracy',
  patience=20,
)
MODEL = Recipe(learning_rate=2e-4, epochs=100)


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


def follow(recipe, val):
  """Selections after every epoch and what was kept; val is [epochs, R]."""
  chosen = selection.start(val.loss.shape[1], recipe)
  trace = []
  for epoch in range(len(val.loss)):
    now = Validation(**{name: x[epoch] for name, x in val.items()})
    chosen, improved = selection.update(chosen, recipe, epoch, now)
    trace.append((chosen, improved))
  return trace


@st.composite
def histories(draw, epochs=70):
  """Validations of a few runs; `levels` few means many ties."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  runs = draw(st.integers(1, 4))
  shape = (draw(st.integers(1, epochs)), runs)
  levels = draw(st.sampled_from([2, 5, 30, 1000]))
  metric = lambda: rng.integers(0, levels + 1, shape) / levels
  return Validation(
    f1_macro=metric(), accuracy=metric(), auroc=metric(), loss=metric()
  )


@given(
  val=histories(),
  rate=st.sampled_from([1e-3, 3e-4, 1e-4]),
  patience=st.sampled_from([20, 7]),  # At 7 it stops as its rate falls.
)
def test_the_first_stage_is_the_released_rule(val, rate, patience):
  recipe = dataclasses.replace(CHOOSER, learning_rate=rate, patience=patience)
  trace = follow(recipe, val)
  for r in range(val.loss.shape[1]):
    want = released(val.loss[:, r], val.accuracy[:, r], rate, patience)
    for (chosen, improved), (kept, counter, rate_now, better) in zip(
      trace, want, strict=False
    ):
      assert chosen.epoch[r] == kept
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


def test_rates_fall_thrice_and_the_run_stops_by_hand():
  shape = (30, 1)
  val = Validation(
    f1_macro=np.zeros(shape),
    accuracy=np.zeros(shape),
    auroc=np.zeros(shape),
    loss=np.ones(shape),
  )
  val.accuracy[0] = 1
  val.accuracy[9] = 1  # A tie: kept, and the count starts again.
  trace = follow(CHOOSER, val)
  rate = np.array([chosen.learning_rate[0] for chosen, _ in trace])
  np.testing.assert_allclose(rate[:7], 1e-3)
  np.testing.assert_allclose(rate[7:16], 1e-3 / 3)
  np.testing.assert_allclose(rate[16:23], 1e-3 / 9)
  np.testing.assert_allclose(rate[23:], 1e-4)
  assert [chosen.stopped[0] for chosen, _ in trace].index(True) == 29
  assert trace[-1][0].epoch[0] == 9


def test_a_rate_below_the_floor_stays():
  recipe = dataclasses.replace(CHOOSER, learning_rate=5e-5)
  shape = (9, 1)
  val = Validation(
    f1_macro=np.zeros(shape),
    accuracy=-np.arange(9.0)[:, None],
    auroc=np.zeros(shape),
    loss=np.ones(shape),
  )
  assert follow(recipe, val)[-1][0].learning_rate[0] == 5e-5
  # Patch classifiers begin at such rates, and theirs may fall further.
  recipe = dataclasses.replace(recipe, learning_rate_min=0.0)
  assert follow(recipe, val)[-1][0].learning_rate[0] == pytest.approx(5e-5 / 3)


@given(val=histories(), patience=st.sampled_from([None, 3]))
def test_macro_f1_keeps_the_last_of_the_best(val, patience):
  recipe = dataclasses.replace(MODEL, patience=patience)
  trace = follow(recipe, val)
  for r in range(val.loss.shape[1]):
    last = None
    for epoch, (chosen, improved) in enumerate(trace):
      if last is not None and last.stopped[r]:
        assert not improved[r]
        for name, values in chosen.items():
          assert values[r] == last[name][r], name
        continue
      seen = val.f1_macro[: epoch + 1, r]
      best = np.flatnonzero(seen == seen.max())[-1]
      assert chosen.epoch[r] == best and chosen.score[r] == seen.max()
      assert improved[r] == (best == epoch)
      assert chosen.stopped[r] == (patience == epoch - best)
      last = chosen


@given(val=histories())
def test_runs_do_not_see_each_other(val):
  together = follow(CHOOSER, val)
  for r in range(val.loss.shape[1]):
    alone = follow(
      CHOOSER, Validation(**{name: x[:, r : r + 1] for name, x in val.items()})
    )
    for (a, kept_a), (b, kept_b) in zip(together, alone, strict=True):
      assert kept_a[r] == kept_b[0]
      for name, values in a.items():
        assert values[r] == b[name][0], name


def test_cosine_sets_the_next_epochs_rate():
  shape = (100, 2)
  val = Validation(
    f1_macro=np.zeros(shape),
    accuracy=np.zeros(shape),
    auroc=np.zeros(shape),
    loss=np.zeros(shape),
  )
  assert (selection.start(2, MODEL).learning_rate == 2e-4).all()
  for epoch, (chosen, _) in enumerate(follow(MODEL, val)):
    want = optim.cosine(2e-4, 5e-6, epoch + 1, 100)
    np.testing.assert_array_equal(chosen.learning_rate, want)
  np.testing.assert_allclose(chosen.learning_rate, 5e-6)


def test_the_last_epoch_is_kept_whatever_validation_says():
  recipe = Recipe(select='last')
  chosen = selection.start(2, recipe)
  for epoch, value in enumerate((0.9, 0.1, 0.5)):
    val = Validation(
      f1_macro=np.full(2, value),
      accuracy=np.full(2, value),
      auroc=np.full(2, value),
      loss=np.full(2, 1 - value),
    )
    chosen, improved = selection.update(chosen, recipe, epoch, val)
    assert improved.all()
  np.testing.assert_array_equal(chosen.epoch, 2)


@pytest.mark.parametrize(
  'select,kept',
  [('loss', 1), ('auroc_accuracy', 2), ('late_auroc', 9), ('last', 9)],
)
def test_each_rule_keeps_its_own_epoch_by_hand(select, kept):
  recipe = Recipe(select=select, epochs=10, schedule='constant')
  column = lambda *values: np.array(values)[:, None]
  val = Validation(
    f1_macro=np.zeros((10, 1)),
    # Twice the lowest loss: the first of the two stays.
    loss=column(3, 1, 1, 2, 2, 2, 2, 2, 2, 2),
    accuracy=column(0, 0.1, 0.9, 0.9, 0, 0, 0, 0, 0, 0),
    # The best of all are too early for the late rule, which takes epoch 9.
    auroc=column(0.6, 0.7, 0.8, 0.8, 0.9, 0.9, 0.9, 1.0, 0.9, 0.5),
  )
  trace = follow(recipe, val)
  assert trace[-1][0].epoch[0] == kept
  assert np.flatnonzero([improved[0] for _, improved in trace])[-1] == kept
  assert {chosen.learning_rate[0] for chosen, _ in trace} == {2e-4}


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
  best, kept, waited = -1, -1, 0
  for epoch in range(epochs):
    if epoch > int(epochs * 0.8):
      waited += 1
      if auroc[epoch] > best:
        best, kept, waited = auroc[epoch], epoch, 0
      if waited == patience:
        break
  assert follow_values(recipe, auroc=auroc)[-1][1] == kept
  assert kept > int(epochs * 0.8)


@pytest.mark.parametrize('epochs', [1, 2, 5])
def test_of_few_epochs_the_late_rule_keeps_the_last(epochs):
  recipe = dataclasses.replace(SPECS['dtfd'].own, epochs=epochs, patience=1)
  kept = follow_values(recipe, auroc=np.linspace(0.9, 0.1, epochs))[-1][1]
  assert kept == epochs - 1


def test_dsmil_stops_when_its_count_exceeds_ten_as_released():
  """Li et al., code of 2024: counted up, set to 0 by a gain, then compared."""
  recipe = dataclasses.replace(SPECS['dsmil'].own, schedule='constant')
  score = [0.2, 0.5, *[0.5] * 30]
  best, counter, last = 0, 0, None
  for epoch, value in enumerate(score):
    counter += 1
    if value > best:
      best, counter = value, 0
    if counter > 10:
      last = epoch
      break
  column = np.array(score)[:, None]
  zeros = np.zeros_like(column)
  val = Validation(f1_macro=zeros, accuracy=column, auroc=column, loss=zeros)
  stopped = [chosen.stopped[0] for chosen, _ in follow(recipe, val)]
  assert stopped.index(True) == last == 12


def test_a_step_divides_the_rate_by_five_at_half():
  recipe = Recipe(schedule='step', epochs=10, learning_rate=1e-4)
  zeros = np.zeros((10, 1))
  val = Validation(f1_macro=zeros, accuracy=zeros, auroc=zeros, loss=zeros)
  rates = [chosen.learning_rate[0] for chosen, _ in follow(recipe, val)]
  # Those of epochs 1 to 10; torch's MultiStepLR falls at milestone 5.
  np.testing.assert_allclose(rates, [1e-4] * 4 + [2e-5] * 6)


@pytest.mark.parametrize('field', ['select', 'schedule'])
def test_an_unknown_rule_is_refused(field):
  recipe = dataclasses.replace(Recipe(), **{field: 'best'})
  zeros = np.zeros(1)
  val = Validation(f1_macro=zeros, accuracy=zeros, auroc=zeros, loss=zeros)
  with pytest.raises(ValueError, match="'best': there are"):
    selection.update(selection.start(1, recipe), recipe, 0, val)


def follow_values(recipe, **values):
  """Rates after and epochs kept at every epoch of a validation."""
  length = len(next(iter(values.values())))
  table = {
    name: np.zeros((length, 1))
    for name in ('f1_macro', 'accuracy', 'auroc', 'loss')
  }
  table |= {k: np.array(v, float)[:, None] for k, v in values.items()}
  chosen, trace = selection.start(1, recipe), []
  for epoch in range(length):
    now = Validation(**{name: x[epoch] for name, x in table.items()})
    chosen, _ = selection.update(chosen, recipe, epoch, now)
    trace.append((float(chosen.learning_rate[0]), int(chosen.epoch[0])))
  return trace


def test_every_decade_takes_a_tenth_of_the_rate():
  recipe = PatchRecipe(schedule='decade', learning_rate=1e-3, epochs=30)
  rates = [
    1e-3,
    *(rate for rate, _ in follow_values(recipe, loss=np.zeros(30))),
  ]
  want = [1e-3 * 0.1 ** (epoch // 10) for epoch in range(31)]
  np.testing.assert_allclose(rates, want)


@pytest.mark.parametrize('select', ['accuracy', 'auroc'])
def test_the_highest_is_kept_and_the_earlier_on_a_tie(select):
  values = {select: [np.nan, 0.5, 0.7, 0.7, 0.6, 0.8]}
  kept = [k for _, k in follow_values(PatchRecipe(select=select), **values)]
  assert kept == [-1, 1, 2, 2, 2, 5]


def test_accuracy_decides_then_auroc_then_the_later():
  recipe = PatchRecipe(select='accuracy_then_auroc')
  accuracy = [0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.5]
  auroc = [0.6, 0.6, 0.5, 0.7, 0.1, 0.0, 1.0]
  kept = [k for _, k in follow_values(recipe, accuracy=accuracy, auroc=auroc)]
  assert kept == [0, 1, 1, 3, 4, 4, 4]
