"""What the machine is, and how programs are compiled and multiply on it."""

from collections.abc import Iterator
import contextlib
import datetime
import importlib.metadata
import os
import platform

import jax
import torch

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'numpy')


@contextlib.contextmanager
def compiling(cached: bool) -> Iterator[None]:
  """Lets JAX find compiled programs on the disk, or not."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', before and cached)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def describe(device: torch.device) -> dict:
  """Returns `device`, `versions` and `date` of a report."""
  return {
    'device': _describe_device(device),
    'versions': {'python': platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _PACKAGES},
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def products(device: torch.device) -> dict:
  """How each side multiplies float32, and what else ran."""
  kind = 'TF32' if device.type == 'cuda' else 'float32'
  ours = jax.config.jax_default_matmul_precision or 'default'
  return {
    'jax_matmul_precision': f'{ours}: {kind}',
    'torch_matmul_precision': (
      f'{torch.get_float32_matmul_precision()}: {kind}'
    ),
    'torch_threads': torch.get_num_threads(),
    'load_average': os.getloadavg()[0],
  }


def _describe_device(device: torch.device) -> dict:
  found = jax.local_devices()
  return {
    'torch': torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu',
    'jax': found[0].device_kind,
    'jax_devices': len(found),
    'machine': platform.machine(),
    'cores': len(os.sched_getaffinity(0)),
  }
