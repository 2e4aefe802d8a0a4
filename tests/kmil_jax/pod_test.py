"""One device, four devices and two processes train the same."""

import json
import pathlib
import socket

import numpy as np
import pod_worker
import pytest
import script_process

from kmil_jax import parallel

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent
TIMEOUT = 600  # Seconds.


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def run_pod(folder, processes, devices):
  """Runs pod_worker.py in `processes` of `devices` CPU devices each."""
  folder.mkdir()
  address = f'localhost:{free_port()}'
  before = (
    f'{script_process.HASTY}import sys; sys.path.insert(0, {str(HERE)!r})\n'
    f"import jax; jax.config.update('jax_num_cpu_devices', {devices})"
  )
  workers = [
    script_process.Script(
      'pod_worker', [folder, address, processes, rank], before=before
    )
    for rank in range(processes)
  ]
  try:
    logs = [w.communicate(timeout=TIMEOUT)[0] for w in workers]
  finally:
    for w in workers:
      w.kill()
  assert all(w.returncode == 0 for w in workers), '\n'.join(logs)
  return json.loads((folder / 'out.json').read_text())


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  return run_pod(tmp_path_factory.mktemp('pod') / 'one', 1, 1)


def check(got, want):
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)
  # Wherever the features are, they give what resident ones give.
  for place in ('spread_runs', 'spread_bags', 'streamed_bags'):
    for what in ('losses', 'prob'):
      resident = want[f'{place.partition("_")[2]}_over_devices_{what}']
      same = want[f'{place}_{what}']
      np.testing.assert_allclose(same, resident, rtol=1e-5, atol=1e-5)


def test_two_processes_of_two_devices_learn_what_one_learns(
  tmp_path, one_device
):
  check(run_pod(tmp_path / 'pod', 2, 2), one_device)


def test_the_devices_of_this_process_learn_what_one_learns(
  tmp_path, one_device
):
  assert parallel.num_devices() == 4
  check(pod_worker.train(tmp_path), one_device)
