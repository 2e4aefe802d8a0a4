"""Makes devices of CPU cores, for runs whose steps keep one core busy."""

import os

import jax


def use(most: int = 8) -> None:
  """Makes a device of each CPU core; call before anything touches a device.

  A step of a small network takes one core, however many its device has. Nothing
  changes where JAX_NUM_CPU_DEVICES or XLA_FLAGS say how many devices there are,
  nor on accelerators.

  Args:
    most: devices, each of which holds a copy of what all runs share.
  """
  told = 'device_count' in os.environ.get('XLA_FLAGS', '')
  if jax.config.jax_num_cpu_devices < 0 and not told:
    cores = os.cpu_count() or 1
    jax.config.update('jax_num_cpu_devices', min(cores, most))
