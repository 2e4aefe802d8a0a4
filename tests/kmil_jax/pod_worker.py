"""Trains in one process of a pod; process 0 writes what came out."""

import json
import pathlib
import sys
from unittest import mock

from kmil_jax import parallel
from kmil_jax.tasks import bags


@mock.patch.object(bags, 'MAX_BUCKETS', 2)  # Each is compiled.
def train(folder):
  """Returns losses and predictions of some arrangements, by name."""
  # Beside this file; they need devices.
  import distill_test
  import tiles_test
  import toy_task
  import training_run

  out = {}
  for name, kwargs in {
    'runs_over_devices': {'folds': (0, 1, 2)},
    'bags_over_devices': {'folds': (0, 1), 'batch': 4},
    'spread_runs': {'folds': (0, 1, 2), 'spread': True},
    'spread_bags': {'folds': (0, 1), 'batch': 4, 'spread': True},
    'streamed_bags': {'folds': (0, 1), 'batch': 4, 'streamed': True},
  }.items():
    result, prob = training_run.run(folder / name, **kwargs)
    out[f'{name}_losses'] = result.history['train_loss'].tolist()
    out[f'{name}_prob'] = prob.tolist()
  for name, kwargs in {
    'groups': {'at_once': parallel.num_devices(), 'streamed': True},
    'points': {'layout': parallel.ExamplesOverDevices},
  }.items():
    result = toy_task.run(folder / name, **kwargs)
    out[f'{name}_losses'] = result.history['val_loss'].tolist()
  result, prob = tiles_test.fitted(folder / 'tiles')
  out['tiles_losses'] = result.history['val_loss'].tolist()
  out['tiles_prob'] = prob.tolist()
  out['students'] = distill_test.losses_of(folder / 'students').tolist()
  return out


def main(folder, address, processes, rank):
  parallel.initialize(address if processes > 1 else None, processes, rank)
  out = train(folder)
  if parallel.is_first():
    (folder / 'out.json').write_text(json.dumps(out))
  parallel.wait_for_all('end')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
