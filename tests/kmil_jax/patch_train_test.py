"""One step of a patch classifier: torch's, whatever the devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_classifier
from tiny_classifier import SIZE, SPEC, Tiny

from kmil_jax import parallel, patch_losses
from kmil_jax.freezing import FreezeError
from kmil_jax.patch_fit import Program
from kmil_jax.patch_train import PatchError, PatchTrainer
from kmil_jax.types import PatchRecipe, PatchSpec, TilePrediction

RATE = 1e-2
WEIGHTS = (1.0, 3.0)
RECIPE = PatchRecipe(weight_decay=1e-2, class_weight=WEIGHTS)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def spec_of(**options):
  return PatchSpec(make=functools.partial(Tiny, **options), paper='')


@functools.cache
def program(recipe=RECIPE, dropout=0.0, precision='float32', freeze=''):
  spec = spec_of(dropout=dropout) if dropout else SPEC
  return Program(
    PatchTrainer(spec, recipe, 2, precision=precision, freeze=freeze)
  )


@functools.cache
def variables():
  return program().trainer.draw((SIZE, SIZE, 3), 0)


def start(trainer, seed=0):
  state = trainer.init(variables(), seed)
  return state.replace(learning_rate=np.float32(RATE))


def train(program, steps=1, seed=0, tiles=None):
  """The state and what was told, after some steps on all devices."""
  state, told = parallel.replicate(start(program.trainer, seed)), []
  for step in range(steps):
    batch = tiles or tiny_classifier.make_tiles(seed=step)
    state, said = program.step(state, parallel.share(batch))
    told.append(jax.device_get(said))
  return state, told


def on_one_device(trainer):
  return jax.pmap(
    trainer.step,
    axis_name=parallel.AXIS,
    in_axes=(None, 0),
    out_axes=None,
    devices=jax.local_devices()[:1],
  )


def test_losses_and_probabilities_are_torchs():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  for width in (1, 2, 4):
    draw = lambda w=width: rng.normal(scale=3, size=(7, w)).astype(np.float32)
    main, aux = draw(), (draw(), draw())
    label = rng.integers(0, max(width, 2), 7)
    class_weight = rng.random(max(width, 2)).astype(np.float32) + 0.1
    loss, weight = patch_losses.classification(
      TilePrediction(logits=main, features=main, aux_logits=aux),
      jnp.asarray(label),
      class_weight,
    )

    def torchs(logits, label=label, class_weight=class_weight):
      logits, y = torch.tensor(logits), torch.tensor(label)
      w = torch.tensor(class_weight)
      if logits.shape[1] > 1:
        return torch.nn.functional.cross_entropy(logits, y, w)
      total = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 0], y.float(), w[y], reduction='sum'
      )
      return total / w[y].sum()

    want = torchs(main) + 0.3 * torchs(aux[0]) + 0.3 * torchs(aux[1])
    close((loss * weight).sum() / weight.sum(), want.item())
    prob = patch_losses.probabilities(jnp.asarray(main))
    if width > 1:
      close(prob, torch.softmax(torch.tensor(main), 1))
    else:
      close(prob[:, 1:], torch.sigmoid(torch.tensor(main)))
      close(prob.sum(1), 1)


def test_three_steps_are_torchs():
  torch = pytest.importorskip('torch')
  params, stats = variables()['params'], variables()['batch_stats']
  conv = torch.nn.Conv2d(3, 4, 3, 2, 1, bias=False)
  norm, dense = torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)
  conv.weight.data = torch.tensor(
    params['conv1']['kernel'].transpose(3, 2, 0, 1)
  )
  dense.weight.data = torch.tensor(params['fc']['kernel'].T)
  dense.bias.data = torch.tensor(params['fc']['bias'])
  model = torch.nn.Sequential(conv, norm, torch.nn.ReLU())
  leaves = [*model.parameters(), *dense.parameters()]
  adam = torch.optim.Adam(leaves, RATE, weight_decay=RECIPE.weight_decay)
  losses = []
  for step in range(3):
    tiles = tiny_classifier.make_tiles(seed=step)
    x = torch.tensor(tiles.image.transpose(0, 3, 1, 2))
    loss = torch.nn.functional.cross_entropy(
      dense(model(x).mean((2, 3))),
      torch.tensor(tiles.label).long(),
      torch.tensor(WEIGHTS),
    )
    adam.zero_grad()
    loss.backward()
    adam.step()
    losses.append(loss.item())
  state, told = train(program(), 3)
  close([t['loss'] / t['weight'] for t in told], losses, rtol=1e-4)
  close(state.params['fc']['kernel'].T, dense.weight.detach(), atol=1e-4)
  close(state.params['bn1']['scale'], norm.weight.detach(), atol=1e-4)
  kernel = np.transpose(state.params['conv1']['kernel'], (3, 2, 0, 1))
  close(kernel, conv.weight.detach(), atol=1e-4)
  close(state.batch_stats['bn1']['mean'], norm.running_mean, atol=1e-4)
  close(state.batch_stats['bn1']['var'], norm.running_var, atol=1e-4)
  assert np.abs(stats['bn1']['mean'] - norm.running_mean.numpy()).max() > 1e-3


def test_one_device_is_as_good_as_four():
  if parallel.num_devices() == 1:
    pytest.skip('there is one device')
  trainer = program().trainer
  alone = on_one_device(trainer)
  one, told_alone = start(trainer), []
  for step in range(3):
    batch = jax.tree.map(
      lambda x: x[None], tiny_classifier.make_tiles(seed=step)
    )
    one, said = alone(one, batch)
    told_alone.append(jax.device_get(said))
  many, told = train(program(), 3)
  for got, want in zip(
    jax.tree.leaves((many, told)),
    jax.tree.leaves((one, told_alone)),
    strict=True,
  ):
    close(got, want)
  assert int(many.step) == 3
  assert told[0]['tiles'] == 32


def test_replicas_are_equal_after_steps():
  state, _ = train(program(dropout=0.5), 2)
  for leaf in jax.tree.leaves(state):
    shards = [np.asarray(s.data) for s in leaf.addressable_shards]
    assert len(shards) == parallel.num_local_devices()
    for shard in shards[1:]:
      np.testing.assert_array_equal(shard, shards[0])


def test_dropout_depends_on_seed_step_and_device_alone():
  p = program(dropout=0.5)
  tiles = tiny_classifier.make_tiles()
  moved = lambda *args: np.asarray(
    train(p, *args, tiles=tiles)[0].opt_state[1].mu['fc']['kernel']
  )
  np.testing.assert_array_equal(moved(1, 0), moved(1, 0))
  assert np.abs(moved(1, 0) - moved(1, 1)).max() > 1e-4

  # All devices get the same tiles: only the keys can tell them apart.
  block = jax.tree.map(lambda x: x[:8], tiles)
  repeat = lambda n: jax.tree.map(lambda x: np.stack([x] * n), block)
  _, alone = on_one_device(p.trainer)(start(p.trainer), repeat(1))
  state = parallel.replicate(start(p.trainer))
  _, all_ = p.step(state, repeat(parallel.num_devices()))
  if parallel.num_devices() > 1:
    mean = lambda told: float(told['loss'] / told['weight'])
    assert abs(mean(alone) - mean(all_)) > 1e-4


def test_frozen_modules_do_not_move_and_norm_with_running_statistics():
  p = program(freeze='conv1|bn1')
  tiles = tiny_classifier.make_tiles()
  stats = jax.tree.map(lambda x: x + 0.7, variables()['batch_stats'])
  before = {**variables(), 'batch_stats': stats}
  state = p.trainer.init(before, 0).replace(learning_rate=np.float32(RATE))
  after, said = p.step(parallel.replicate(state), parallel.share(tiles))
  for name in ('conv1', 'bn1'):
    chex.assert_trees_all_equal(
      jax.device_get(after.params[name]), before['params'][name]
    )
  chex.assert_trees_all_equal(jax.device_get(after.batch_stats), stats)
  moved = np.abs(
    after.params['fc']['kernel'] - before['params']['fc']['kernel']
  )
  close(moved, RATE, rtol=1e-2)  # Adam's first step.
  # A step sees what an evaluation sees.
  out = p.predict(parallel.replicate(before), [tiles], ('loss', 'weight'))
  want = (out['loss'] * out['weight']).sum() / out['weight'].sum()
  close(said['loss'] / said['weight'], want)
  _, (thawed,) = train(program(), tiles=tiles)
  assert abs(thawed['loss'] - said['loss']) / said['weight'] > 1e-3


@pytest.mark.parametrize(
  'freeze,match',
  [
    ('.*', 'leaves nothing to train'),
    ('layer1', 'no module; at the top there are bn1, conv1, fc'),
    ('(', r"freeze='\('"),
  ],
)
def test_an_expression_that_freezes_nothing_or_all_is_refused(freeze, match):
  with pytest.raises(FreezeError, match=match):
    PatchTrainer(SPEC, RECIPE, 2, freeze=freeze).init(variables(), 0)


def test_recipes_that_do_not_fit_the_classes_are_refused():
  with pytest.raises(PatchError, match='here are 3'):
    PatchTrainer(SPEC, PatchRecipe(binary=True), 3)
  with pytest.raises(PatchError, match='2 class weights were given for 3'):
    PatchTrainer(SPEC, RECIPE, 3)


def test_bfloat16_is_near_float32_which_parameters_stay():
  state, (told,) = train(program(precision='bfloat16'))
  _, (exact,) = train(program())
  chex.assert_trees_all_equal_dtypes(
    state.params, jax.tree.map(jnp.asarray, variables()['params'])
  )
  difference = abs(told['loss'] / exact['loss'] - 1)
  assert 1e-7 < difference < 0.02


def test_predictions_depend_neither_on_the_batch_nor_on_fillers():
  p = program()
  tiles = tiny_classifier.make_tiles(30)
  state, _ = train(p)
  predict = lambda size: p.predict(
    state.variables, tiny_classifier.batches(tiles, size)
  )
  want = predict(32)
  assert want['prob'].shape == (30, 2) and want['features'].shape == (30, 4)
  got = predict(8)
  for name in want:
    close(got[name], want[name], rtol=1e-6, atol=1e-6)
  assert np.ptp(want['prob'][:, 1]) > 1e-2


def test_a_batch_that_does_not_divide_over_devices_is_refused():
  if parallel.num_devices() == 1:
    pytest.skip('one device divides everything')
  with pytest.raises(ValueError, match='6 does not divide over 4'):
    parallel.share(tiny_classifier.make_tiles(6))
