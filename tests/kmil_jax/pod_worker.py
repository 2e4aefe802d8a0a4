"""Trains in one process of a pod; process 0 writes what came out."""

import json
import pathlib
import sys

from kmil_jax import parallel


def train(folder):
  """Returns losses and predictions of three arrangements, by name."""
  import training_run  # Beside this file; it needs devices.

  out = {}
  for name, kwargs in {
    'runs_over_devices': {'folds': (0, 1, 2)},
    'bags_over_devices': {'folds': (0, 1), 'batch': 4},
    'streamed_bags': {'folds': (0, 1), 'batch': 4, 'streamed': True},
  }.items():
    losses, prob = training_run.run(folder / name, **kwargs)
    out[f'{name}_losses'] = losses.tolist()
    out[f'{name}_prob'] = prob.tolist()
  return out


def main(folder, address, processes, rank):
  parallel.initialize(address if processes > 1 else None, processes, rank)
  out = train(folder)
  if parallel.is_first():
    (folder / 'out.json').write_text(json.dumps(out))
  parallel.wait_for_all('end')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
