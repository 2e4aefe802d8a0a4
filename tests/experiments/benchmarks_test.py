"""Classic MIL benchmarks, cross-validated by the command itself."""

import json

import feature_folder
import numpy as np
import pytest


def write_bags(folder, path):
  """Writes a benchmark as feature files, standardised over instances."""
  with np.load(path) as f:
    x, bag, label = f['X'], f['bag'], f['y']
  scale = x.std(0)
  x = (x - x.mean(0)) / np.where(scale > 0, scale, 1)
  bags = [x[bag == i] for i in range(len(label))]
  return feature_folder.write(folder, bags, label)


# torch with this recipe at 60 epochs, training on nine tenths of the bags and
# keeping the last epoch, reached 0.85 to 0.88 and 0.79. Nine bags of musk1 are
# too few to choose an epoch by and eight tenths too few to learn from (see
# BUILD_NOTES.md), so there nineteen of twenty parts train and the last epoch is
# kept. The recipe's own rate reaches 0.84 to 0.86 in 40 epochs; ten epochs of
# five times that rate, which is no reference's, take a third of the time.
NINE_TENTHS = ('--k=20', '--select=last', '--epochs=10', '--lr=0.001')


# Each model and each data set once; BUILD_NOTES.md has all four.
@pytest.mark.slow
@pytest.mark.parametrize(
  'model,name,protocol,least',
  [
    ('abmil', 'musk1', NINE_TENTHS, 0.83),
    ('dsmil', 'tiger', ('--epochs=10',), 0.76),
  ],
)
def test_accuracy_on_real_labels(
  real_data, tmp_path, name, protocol, least, model
):
  data_flags = write_bags(tmp_path, real_data / 'mil' / f'{name}.npz')
  feature_folder.run(
    *data_flags,
    *protocol,
    f'--model={model}',
    f'--results_dir={tmp_path}',
    before=feature_folder.UNDRAWN,  # It runs for longer than it compiles.
  )
  path = tmp_path / f'{model}_origin_s2023' / 'summary.json'
  accuracy = json.loads(path.read_text())['metrics']['accuracy']
  assert accuracy['pooled'] >= least, accuracy
