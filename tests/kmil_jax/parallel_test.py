"""Devices made of CPU cores, unless the user says how many there are."""

import types

import jax
import pytest

from kmil_jax import parallel


@pytest.fixture
def devices(monkeypatch):
  """What the number of devices is set to, on a machine of three cores."""
  seen = []
  monkeypatch.setattr(parallel.os, 'cpu_count', lambda: 3)
  monkeypatch.setattr(
    jax.config, 'update', lambda *setting: seen.append(setting)
  )
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  return seen


def configure(monkeypatch, number):
  monkeypatch.setattr(
    type(jax.config), 'jax_num_cpu_devices', number, raising=False
  )


def test_every_core_is_a_device_up_to_a_limit(devices, monkeypatch):
  configure(monkeypatch, -1)
  parallel.use_cores()
  parallel.use_cores(most=2)
  assert [number for _, number in devices] == [3, 2]


def test_what_the_user_says_stays(devices, monkeypatch):
  configure(monkeypatch, 1)
  parallel.use_cores()
  configure(monkeypatch, -1)
  flag = '--xla_force_host_platform_device_count=4'
  monkeypatch.setenv('XLA_FLAGS', flag)
  parallel.use_cores()
  assert not devices


def test_a_chips_peak_is_that_of_its_compiler():
  """Which refuses a program of a higher one; temporaries may be above it."""
  sizes = {'argument': 4, 'output': 2, 'temp': 9, 'alias': 1}
  memory = types.SimpleNamespace(
    peak_memory_in_bytes=7,
    **{f'{k}_size_in_bytes': v for k, v in sizes.items()},
  )
  compiled = types.SimpleNamespace(memory_analysis=lambda: memory)
  peaks = {
    on: parallel.peak_bytes(compiled, on) for on in ('cpu', 'gpu', 'tpu')
  }
  assert peaks == {'cpu': 14, 'gpu': 14, 'tpu': 7}
