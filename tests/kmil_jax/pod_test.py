"""One device, four devices and two processes train the same."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pod_worker
import pytest

from kmil_jax import parallel

WORKER = pathlib.Path(__file__).with_name('pod_worker.py')
TIMEOUT = 600  # Seconds.


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def run_pod(folder, processes, devices):
  """Runs pod_worker.py in `processes` of `devices` CPU devices each."""
  folder.mkdir()
  address = f'localhost:{free_port()}'
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
  }
  workers = [
    subprocess.Popen(
      [sys.executable, WORKER, folder, address, str(processes), str(rank)],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
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


def test_two_processes_of_two_devices_learn_what_one_learns(
  tmp_path, one_device
):
  check(run_pod(tmp_path / 'pod', 2, 2), one_device)


def test_the_devices_of_this_process_learn_what_one_learns(
  tmp_path, one_device
):
  assert parallel.num_devices() == 4
  check(pod_worker.train(tmp_path), one_device)
