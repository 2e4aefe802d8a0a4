"""Checkpoints: whole trees, the newest two, whatever kills the process."""

import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple
import warnings

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kmil_jax import checkpoint, optim
from kmil_jax.types import Recipe


class Moments(NamedTuple):
  count: np.ndarray
  mean: dict


def tree(value, width=4):
  """Parameters, the state of an optimiser and scalars, all equal to value."""
  params = {'layer': {'kernel': np.full((3, width), value, np.float32)}}
  state = optim.make(Recipe()).init(params)
  return {
    'params': params,
    'opt_state': state,
    'moments': Moments(np.int32(value), {'m': np.full(2, value)}),
    'stopped': np.array([True, False]),
    'epoch': np.int64(value),
  }


def steps(root):
  return sorted(p.name for p in pathlib.Path(root).iterdir())


def test_a_disk_without_room_for_the_states_is_named(tmp_path, monkeypatch):
  saved = checkpoint.Checkpoints(tmp_path / 'new')
  state = {'a': np.zeros(2**20, np.uint8)}
  usage = lambda mib: lambda path: shutil._ntuple_diskusage(0, 0, mib << 20)
  # Two are kept, and one written; of what goes on, one is to be written.
  for newest, room in ((-1, 3), (0, 2), (1, 1), (2, 1)):
    if newest >= 0:
      monkeypatch.undo()
      saved.save(newest, state)
    monkeypatch.setattr(checkpoint.shutil, 'disk_usage', usage(room))
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      saved.check_space(state)
    monkeypatch.setattr(checkpoint.shutil, 'disk_usage', usage(room - 1))
    with pytest.warns(UserWarning, match=rf'new: .* {room} MiB'):
      saved.check_space(state)


def test_round_trip_of_an_optimisers_state(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path)
  want = tree(3)
  grads = {'layer': {'kernel': jnp.ones((3, 4))}}
  _, want['opt_state'] = optim.make(Recipe()).update(
    grads, want['opt_state'], want['params'], learning_rate=0.1
  )
  assert saved.latest(tree(0)) is None
  saved.save(3, want)
  for checkpoints in (saved, checkpoint.Checkpoints(tmp_path)):
    got = checkpoints.latest(tree(0))
    chex.assert_trees_all_equal(got, want)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    assert isinstance(got['moments'], Moments)
    assert isinstance(got['opt_state'][1], optax.ScaleByAdamState)
    assert int(got['opt_state'][1].count) == 1
    assert all(
      isinstance(x, np.ndarray) for x in got['params']['layer'].values()
    )
    checkpoints.close()


@pytest.mark.parametrize('name', ['state', 'a [1]*\\'])
def test_the_newest_two_are_kept(tmp_path, name):
  saved = checkpoint.Checkpoints(tmp_path / name)
  for step, kept in (1, {'1'}), (2, {'1', '2'}), (10, {'2', '10'}):
    saved.save(step, tree(step))
    assert set(steps(tmp_path / name)) == kept
  assert saved.latest(tree(0))['epoch'] == 10
  saved.save(10, tree(11))  # Again, as after a kill.
  assert saved.latest(tree(0))['epoch'] == 11
  saved.close()


def test_another_shape_or_structure_is_refused(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path)
  saved.save(1, tree(1))
  with pytest.raises(AssertionError, match=r'layer/kernel.*\(3, 4\)'):
    saved.latest(tree(1, width=5))
  with pytest.raises(Exception, match='bias'):
    saved.latest({**tree(1), 'params': {'layer': {'bias': np.zeros(2)}}})
  chex.assert_trees_all_equal(saved.latest(tree(0)), tree(1))
  saved.close()


def test_what_a_killed_save_left_is_removed(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path)
  saved.save(1, tree(1))
  saved.close()
  leftover = tmp_path / '2.orbax-checkpoint-tmp'
  (leftover / 'state').mkdir(parents=True)
  (leftover / 'state' / 'd').write_bytes(b'half')
  saved = checkpoint.Checkpoints(tmp_path)
  assert not leftover.exists()
  assert saved.latest(tree(0))['epoch'] == 1
  saved.save(2, tree(2))
  assert steps(tmp_path) == ['1', '2']
  saved.close()


@pytest.mark.parametrize('kind', ['changed', 'cut', 'removed'])
def test_what_is_damaged_gives_way_to_the_one_before(tmp_path, kind):
  root = tmp_path / 'a [1]*'
  saved = checkpoint.Checkpoints(root)
  for step in (1, 2):
    saved.save(step, tree(step))
  saved.close()
  files = [p for p in sorted((root / '2').rglob('*')) if p.is_file()]
  for file in files:
    whole = file.read_bytes()
    if kind == 'removed' and file.name != 'sha256.json':
      file.unlink()
    else:
      file.write_bytes(whole[:-1] + b'!' * (kind == 'changed'))
    assert checkpoint.damage(root / '1') is None
    saved = checkpoint.Checkpoints(root)
    assert saved.damaged == [file]
    assert saved.latest(tree(0))['epoch'] == 1
    saved.close()
    file.write_bytes(whole)
  assert checkpoint.damage(root / '2') is None
  # Orbax reads what stands beside, too, and fails of a word that it misses.
  about = root / '1/_CHECKPOINT_METADATA'
  whole = about.read_bytes()
  about.write_bytes(whole.replace(b'nsecs', b'nsess'))
  saved = checkpoint.Checkpoints(root)
  assert saved.damaged == [about] and saved.latest(tree(0))['epoch'] == 2
  saved.save(3, tree(3))
  assert steps(root) == ['2', '3'] and saved.latest(tree(0))['epoch'] == 3
  saved.close()
  shutil.move(root / '3', root / '1')
  # Nothing is left to the user, nor of both damaged ones.
  for step in ('1', '2'):
    (root / step / 'sha256.json').write_bytes(b'[')
  saved = checkpoint.Checkpoints(root)
  assert len(saved.damaged) == 2 and saved.latest(tree(0)) is None
  saved.save(1, tree(3))
  assert steps(root) == ['1'] and saved.latest(tree(0))['epoch'] == 3
  saved.close()


def test_of_an_older_version_the_newest_that_is_whole_serves(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path)
  for step in (1, 2):
    saved.save(step, tree(step))
    (tmp_path / f'{step}/sha256.json').unlink()
  saved.close()
  for damaged, epoch in ([], 2), ([tmp_path / '2/_CHECKPOINT_METADATA'], 1):
    for file in damaged:
      file.unlink()
    saved = checkpoint.Checkpoints(tmp_path)
    assert saved.damaged == damaged
    assert saved.latest(tree(0))['epoch'] == epoch
    saved.close()


# Saves 1, 2, 3 ... and says so after each; the tree takes a while to write.
_CHILD = """
import sys
import numpy as np
from kmil_jax import checkpoint
saved = checkpoint.Checkpoints(sys.argv[1])
for step in range(1, 10_000):
  leaves = {str(i): np.full(20_000, step) for i in range(12)}
  saved.save(step, {'leaves': leaves, 'step': np.int64(step)})
  print(step, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no kill -9 here')
def test_kill_9_leaves_a_complete_state(tmp_path):
  roots = [tmp_path / str(i) for i in range(4)]
  children = [
    subprocess.Popen(
      [sys.executable, '-c', _CHILD, root],
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
    )
    for root in roots
  ]
  like = {
    'leaves': {str(i): np.zeros(20_000, int) for i in range(12)},
    'step': np.int64(0),
  }
  try:
    for i, child in enumerate(children):
      assert select.select([child.stdout], [], [], 120)[0], 'no save at all'
      time.sleep(0.037 * i)  # At different moments of a save.
      child.kill()
  finally:
    for child in children:
      child.kill()
  for child, root in zip(children, roots, strict=True):
    printed = [int(line) for line in child.communicate()[0].split()]
    assert child.returncode == -signal.SIGKILL
    saved = checkpoint.Checkpoints(root)
    got = saved.latest(like)
    step = int(got['step'])
    assert step in (
      printed[-1],
      printed[-1] + 1,
    )  # The last may have been unsaid.
    for leaf in got['leaves'].values():
      np.testing.assert_array_equal(leaf, step)
    saved.save(step + 1, {**got, 'step': np.int64(step + 1)})
    assert saved.latest(like)['step'] == step + 1
    assert set(steps(root)) == {str(step), str(step + 1)}
    saved.close()
