"""Devices and processes: the only module that knows how many there are."""

from collections.abc import Callable
import math
import os
import pathlib
from typing import Any

import chex
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

AXIS = 'data'  # The pmap axis: one position per device of the whole pod.
_HEARTBEAT = 30  # Seconds without one after which a process is lost.
_NUMERICS = {
  'jax_enable_x64': False,
  'jax_numpy_dtype_promotion': 'standard',
  'jax_numpy_rank_promotion': 'allow',
}
# All that a step launches, and no copies whose place the host works out. Joined
# products would be cut apart again to add their biases.
_ONE_GRAPH = (
  '--xla_gpu_enable_command_buffer='
  'FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE',
  '--xla_disable_hlo_passes=fusion-dynamic-memcpy-rewriter',
  '--xla_gpu_graph_min_graph_size=1',
  '--xla_gpu_dot_merger_threshold_mb=0',
)


def initialize(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins a multi-process run; call before anything touches a device.

  When a process ends, JAX aborts the others within `_HEARTBEAT` seconds.

  Args:
    coordinator: None for a single process, 'auto' where the cluster says who
      takes part (Cloud TPU, Slurm, Kubernetes), else `host:port` of process 0.
    num_processes: processes in all; needed with `host:port`.
    process_id: this process, from 0; needed with `host:port`.
  """
  if coordinator == 'auto':
    coordinator = num_processes = process_id = None
  elif not coordinator:
    return
  jax.distributed.initialize(
    coordinator,
    num_processes,
    process_id,
    heartbeat_timeout_seconds=_HEARTBEAT,
  )


def use_one_graph(needed: bool | None = None) -> None:
  """Lets XLA make one CUDA graph of an epoch; call before touching a device.

  By default the host launches the steps of some models, and waits inside them.
  These flags of XLA reach pmap, which takes no compiler options; they also keep
  products of the same factor apart. Flags that XLA_FLAGS holds already come
  later, and count.

  Args:
    needed: by default where there is an NVIDIA GPU, and a JAX whose flags are
      known, since others end the process; not with KMIL_JAX_ONE_GRAPH=0, as for
      profilers, to which a graph is a single launch.
  """
  if needed is None:
    platforms = jax.config.jax_platforms or 'cuda'
    needed = (
      os.environ.get('KMIL_JAX_ONE_GRAPH') != '0'
      and jax.__version_info__ < (0, 13)
      and ('cuda' in platforms or 'gpu' in platforms)
      and pathlib.Path('/dev/nvidiactl').exists()
    )
  chosen = os.environ.get('XLA_FLAGS', '')
  if needed and _ONE_GRAPH[0] not in chosen:
    os.environ['XLA_FLAGS'] = ' '.join((*_ONE_GRAPH, chosen))


def use_cores(most: int = 8) -> None:
  """Makes a device of each CPU core; call before anything touches a device.

  A step of a small network takes one core, however many its device has. Nothing
  changes where JAX_NUM_CPU_DEVICES or XLA_FLAGS say how many devices there are,
  nor on accelerators.

  Args:
    most: devices, each of which holds a copy of what all runs share.
  """
  chosen = 'device_count' in os.environ.get('XLA_FLAGS', '')
  if jax.config.jax_num_cpu_devices < 0 and not chosen:
    cores = os.cpu_count() or 1
    jax.config.update('jax_num_cpu_devices', min(cores, most))


def cache_programs(folder: pathlib.Path) -> None:
  """Keeps compiled programs in `folder`, where the next run finds them.

  JAX runs what it finds there: the folder must be the user's own. A folder that
  JAX was already given, as by JAX_COMPILATION_CACHE_DIR, is left in place.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def use_own_numerics() -> list[str]:
  """Undoes settings of JAX's numbers that programs here are not written for.

  Returns:
    The environment variables that were set otherwise, as for other work.
  """
  changed = [
    name
    for name, value in _NUMERICS.items()
    if getattr(jax.config, name) != value
  ]
  for name in changed:
    jax.config.update(name, _NUMERICS[name])
  return [name.upper() for name in changed]


def device_fault() -> str | None:
  """Returns why JAX has no device to compute on; None if it has one."""
  try:
    jax.local_devices()
  except Exception as e:  # Asserts, too, for want of a plug-in.
    name, chosen = 'JAX_PLATFORMS', jax.config.jax_platforms
    if not chosen:  # Its former name.
      name, chosen = 'JAX_PLATFORM_NAME', jax.config.jax_platform_name
    return (
      f'{name}={chosen}: JAX finds no such device on this machine'
      f' ({str(e) or "its plug-in is not installed"}). Unset {name} and'
      ' JAX_NUM_CPU_DEVICES to compute on what there is, or install JAX for it.'
    )
  return None


def is_first() -> bool:
  """True in the one process that writes files and prints."""
  return jax.process_index() == 0


def num_devices() -> int:
  """Devices of the whole pod."""
  return jax.device_count()


def num_local_devices() -> int:
  """Devices of this process."""
  return jax.local_device_count()


def platform() -> str:
  """Platform of the devices, as 'cpu', 'gpu' or 'tpu'."""
  return jax.default_backend()


def memory_bytes(host: int) -> int:
  """Memory of one device; CPU devices share the `host` bytes of the machine."""
  device = jax.local_devices()[0]
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit']
  return host // jax.local_device_count()


def peak_bytes(
  compiled: jax.stages.Compiled, on: str | None = None
) -> int | None:
  """Bytes of a program's arguments, outputs and temporaries together.

  Parameters and features are arguments. The machine code is left out, and what
  shares memory is counted once. None where the backend does not say.

  Args:
    compiled: the program.
    on: the platform that it is compiled for; that of the devices by default.
  """
  if (memory := compiled.memory_analysis()) is None:
    return None
  if (on or platform()) == 'tpu':
    # Its temporaries are more than a chip has in programs that fit; other
    # backends leave some out of their peak.
    return memory.peak_memory_in_bytes
  size = lambda kind: getattr(memory, f'{kind}_size_in_bytes')
  return sum(map(size, ('argument', 'output', 'temp'))) - size('alias')


def wait_for_all(name: str) -> None:
  """Blocks until every process has reached the barrier `name`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(value: Any) -> np.ndarray:
  """Returns process 0's `value` in every process."""
  if jax.process_count() == 1:
    return np.asarray(value)
  return np.asarray(multihost_utils.broadcast_one_to_all(value))


def replicate(tree: Any) -> Any:
  """Copies `tree` to every local device, without a leading device axis."""
  return jax.device_put(tree, NamedSharding(_local_mesh(), P()))


@chex.dataclass(frozen=True)
class Spread:
  """An array [T, D] over the pod: row t lies on device t modulo its devices.

  `rows` is [local devices, T', D] on the host, [T', D] in a program of one
  device; T' is T / devices and at most two rows more, whose values are free.
  """

  rows: chex.Array

  @classmethod
  def zeros(cls, shape: tuple[int, int], dtype: Any) -> 'Spread':
    """Returns the share of this process of zeros [T, D], to be written to."""
    each = shape[0] // num_devices() + 2
    return cls(rows=np.zeros((num_local_devices(), each, shape[1]), dtype))

  def write(self, start: int, x: np.ndarray) -> None:
    """Keeps what is this process's of the rows from `start` on."""
    row = np.arange(start, start + len(x))
    place, device = np.divmod(row, num_devices())
    device -= local_devices().start
    mine = (device >= 0) & (device < num_local_devices())
    self.rows[device[mine], place[mine]] = x[mine]

  def cut(self, start: jax.Array, size: int, *, same: bool) -> jax.Array:
    """Returns the rows [B, size, D] from each of `start` [B] on, on a device.

    Every device takes part with as many of its rows. What a device receives are
    the rows that it asked for: where all ask for the same, by one all-gather.

    Args:
      start: of this device; within T - size.
      size: the same on all devices.
      same: whether `start` is, too.
    """
    n = jax.lax.axis_size(AXIS)
    shape = (size + n - 2) // n + 1, self.rows.shape[-1]
    part = jax.vmap(
      lambda at: jax.lax.dynamic_slice(self.rows, (at // n, 0), shape)
    )
    if same:
      parts = jax.lax.all_gather(part(start), AXIS)
    else:
      of_all = jax.lax.all_gather(start, AXIS)
      parts = jax.lax.all_to_all(jax.vmap(part)(of_all), AXIS, 0, 0)
    whole = parts.transpose(1, 2, 0, 3).reshape(len(start), -1, shape[1])
    trim = lambda x, at: jax.lax.dynamic_slice_in_dim(x, at % n, size)
    return jax.vmap(trim)(whole, start)


def place(store: Any) -> Any:
  """Sends what all runs share to the local devices, whose axis leaves gain.

  Args:
    store: NumPy leaves, of which each device holds a copy, and `Spread`.
  """
  spread = lambda x: isinstance(x, Spread)
  copies = lambda x: np.broadcast_to(x, (num_local_devices(), *np.shape(x)))
  return jax.device_put(
    jax.tree.map(
      lambda x: x if spread(x) else copies(x), store, is_leaf=spread
    ),
    NamedSharding(_local_mesh(), P(AXIS)),
  )


def pmap_local(step: Callable) -> Callable:
  """Maps `step(state, batch) -> per-row outputs` over this process's devices.

  Args:
    step: pure function of a replicated state and a batch [B', ...].

  Returns:
    A function of the state and an array [B, ...], which zeros complete to a
    multiple of the devices; it returns NumPy leaves [B, ...]. It compiles once
    per shape; no other process takes part.
  """
  mapped = jax.pmap(step, in_axes=(None, 0), devices=jax.local_devices())

  def run(state, batch):
    rows, n = len(batch), jax.local_device_count()
    if filler := -rows % n:
      batch = np.pad(batch, ((0, filler), *((0, 0),) * (batch.ndim - 1)))
    out = mapped(state, batch.reshape((n, -1, *batch.shape[1:])))
    join = lambda x: np.asarray(x).reshape((-1, *x.shape[2:]))[:rows]
    return jax.tree.map(join, out)

  return run


class RunsOverDevices:
  """Runs spread over devices: each device trains its own part of them.

  Leaves [R, ...] of a state become [local devices, R', ...]; R is padded to a
  multiple of the devices by repeating the last run, and `gather` drops the
  copies again. Within an epoch no device waits for another.
  """

  psum_axis: str | None = None  # over which steps add gradients
  _chunk: int | None = None  # the axis of local devices that `share` adds

  def __init__(self, num_runs: int):
    self.num_runs = num_runs
    self._per_device = math.ceil(num_runs / num_devices())

  @staticmethod
  def side_by_side() -> int:
    """Runs that train on devices of their own."""
    return num_devices()

  def put(self, tree: Any) -> Any:
    """Sends leaves [R, ...], equal in all processes, to this one's devices."""
    return jax.device_put(
      jax.tree.map(self._local, tree), NamedSharding(_local_mesh(), P(AXIS))
    )

  def _local(self, x: np.ndarray) -> np.ndarray:
    runs = np.arange(num_devices() * self._per_device)
    rows = np.minimum(runs, self.num_runs - 1).reshape(num_devices(), -1)
    return np.asarray(x)[rows[local_devices()]]

  def gather(self, tree: Any) -> Any:
    """Returns NumPy leaves [R, ...] of all processes in every process."""
    merge = lambda x: x.reshape((-1, *x.shape[2:]))[: self.num_runs]
    return jax.tree.map(merge, fetch(tree))

  @classmethod
  def pmap_train(cls, step: Callable) -> Callable:
    """Maps `step(state, store, chunk) -> (state, sums)` over the devices.

    `state` comes from `put` and is donated, `store` from `place`, `chunk`
    from `share`. Where examples are spread, `step` must `psum` whatever it
    derives from its own: `pmap` does not check that it did.
    """
    axes = 0, 0, cls._chunk
    return jax.pmap(step, axis_name=AXIS, in_axes=axes, donate_argnums=0)

  @staticmethod
  def pmap_evaluate(step: Callable) -> Callable:
    """Maps `step(model, store, chunk) -> outputs [S, ...]` over the devices.

    `model` comes from `put`, `store` from `place`; `chunk` has an axis of local
    devices, as have the outputs, of which `fetch` makes those of all processes.
    """
    return jax.pmap(step, axis_name=AXIS, in_axes=0)

  def share(self, chunk: Any) -> Any:
    """Returns a chunk of training as it is: every device sees all examples."""
    return chunk

  def owner(self, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the device that holds each run and the run's place there."""
    return run // self._per_device, run % self._per_device


class ExamplesOverDevices(RunsOverDevices):
  """Examples spread over devices, which hold all runs and add gradients.

  Leaves [R, ...] of a state become [local devices, R, ...], equal on all.
  """

  psum_axis, _chunk = AXIS, 0

  @staticmethod
  def side_by_side() -> int:
    return 1

  def _local(self, x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, (num_local_devices(), *np.shape(x)))

  def gather(self, tree: Any) -> Any:
    """Returns NumPy leaves [R, ...], those of the first device."""
    first = lambda x: np.asarray(x.addressable_data(0)).reshape(x.shape[1:])
    return jax.tree.map(first, tree)

  def share(self, chunk: Any) -> Any:
    """Cuts this process's [local devices, S, B', ...] out of [S, B, ...].

    Leaves [S] are repeated for every device.

    Raises:
      ValueError: if B does not divide over the devices of the pod.
    """
    n = num_devices()

    def cut(x):
      if np.ndim(x) == 1:
        return self._local(x)
      if x.shape[1] % n:
        raise ValueError(
          f'A batch of {x.shape[1]} does not divide over {n} devices. Choose a'
          ' multiple of that.'
        )
      return np.stack(np.split(x, n, 1)[local_devices()])

    return jax.tree.map(cut, chunk)

  def owner(self, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a device for each evaluation, in turn, and the run's place."""
    return np.arange(len(run)) % num_devices(), run


Layout = RunsOverDevices  # And those that derive from it.


def layout(batch: int) -> type[Layout]:
  """Spreads examples where a step of runs has several of them, else runs."""
  return RunsOverDevices if batch == 1 else ExamplesOverDevices


def deal(owner: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
  """Deals rows out to the devices that own them, in their order.

  Args:
    owner: the device of every row, [P].
    *columns: int arrays [P].

  Returns:
    Every column as int32 [devices, S], with -1 where a device has fewer rows.
    S is the most rows of a device, rounded up by at most a quarter to a number
    of three binary digits: programs over S steps compile a bounded number of
    times, whatever P.
  """
  counts = np.bincount(owner, minlength=num_devices())
  most = max(int(counts.max()), 1)
  unit = 2 ** max(most.bit_length() - 3, 0)
  tables = np.full(
    (len(columns), num_devices(), -(-most // unit) * unit), -1, np.int32
  )
  for device in range(num_devices()):
    mine = np.stack(columns)[:, owner == device]
    tables[:, device, : counts[device]] = mine
  return tuple(tables)


def local_devices() -> slice:
  """Returns which of the pod's devices are those of this process."""
  n = jax.local_device_count()
  return slice(jax.process_index() * n, (jax.process_index() + 1) * n)


def fetch(tree: Any) -> Any:
  """Returns leaves [local devices, ...] as NumPy [devices, ...] of the pod."""
  if jax.process_count() > 1:
    tree = multihost_utils.process_allgather(tree, tiled=True)
  return jax.tree.map(np.asarray, tree)


def _local_mesh() -> Mesh:
  return Mesh(np.array(jax.local_devices()), (AXIS,))
