"""Compiles a step of training for a GPU or TPUs on a machine without them."""

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
import os
import pathlib
import tempfile
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from experiments.benchmarks import hlo, jax_side
from experiments.benchmarks.work import CLASSES, WIDTH
from experiments.run import start
from experiments.run.options import OptionError, field
from kmil_jax import parallel, programs, train
from kmil_jax.models import SPECS, cpu
from kmil_jax.models.network import dtype_of
from kmil_jax.tasks import bags
from kmil_jax.tasks.bags import BagTask, bucket_lengths, num_rows
from kmil_jax.types import Recipe, Store

# Bytes and operations a second of a chip, by the type of the factors. Of an
# H200 the bandwidth of copies, and the data sheet's dense rates; of TPUs those
# of the data sheet, where factors of float32 take six passes.
_H200 = 4.3e12, {'bfloat16': 989e12, 'tf32': 494e12, 'float32': 67e12}
_TPUS = {
  'v4': (1.228e12, 275e12),
  'v5e': (0.819e12, 197e12),
  'v5p': (2.765e12, 459e12),
  'v6e': (1.640e12, 918e12),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What is compiled."""

  target: str = field(
    'h200', 'h200, or TPU chips, as v5e:4x4, v5p:2x2x1 or v6e:2x2.'
  )
  model: tuple[str, ...] = field(
    ('dsmil',), 'Models; kmil is its second stage.', choices=(*SPECS, 'all')
  )
  runs: int = field(10, 'Runs on each device.', least=1)
  precision: str = field(
    'bfloat16', 'See experiments.kmil.', choices=start.PRECISIONS
  )
  part: str = field(
    'train', 'A step of training or evaluation.', choices=('train', 'evaluate')
  )
  store: str = field(
    'resident',
    'Where features are: a copy on each device, or spread over them.',
    choices=('resident', 'spread'),
  )
  bags: int = field(1036, 'Bags of the cohort.', least=2)
  instances: tuple[int, ...] = field(
    (3000, 5000), 'Instances of the bags, in turn.', least=1
  )
  one_graph: bool = field(True, 'A CUDA graph of a whole epoch.')
  format: str = field(
    'text', 'How the table is printed.', choices=('text', 'markdown', 'json')
  )

  @property
  def models(self) -> tuple[str, ...]:
    return tuple(SPECS) if 'all' in self.model else self.model

  def prepare(self) -> None:
    """Sets what JAX reads before it touches a device.

    Raises:
      OptionError: if the target is unknown, or JAX is not installed for it.
    """
    gpu = self.target == 'h200'
    if not gpu and self.target.split(':')[0] not in _TPUS:
      raise OptionError(
        f'--target={self.target} is unknown. Give h200, or one of'
        f' {", ".join(_TPUS)} with its chips, as v5e:4x4.'
      )
    if not importlib.util.find_spec('jax_cuda12_plugin' if gpu else 'libtpu'):
      extra = 'cuda12' if gpu else 'tpu'
      raise OptionError(
        f'--target={self.target}: JAX is not installed for it. Install'
        f' "jax[{extra}]=={jax.__version__}" in an environment of its own.'
      )
    jax.config.update('jax_platforms', 'cpu')
    if gpu:
      flags = os.environ.get('XLA_FLAGS', ''), f'--xla_dump_to={_dump().name}'
      os.environ['XLA_FLAGS'] = ' '.join(flags)
      if self.one_graph:
        parallel.use_one_graph(True)
    else:  # There is nobody to ask about a TPU, and none to share.
      os.environ['TPU_SKIP_MDS_QUERY'] = '1'
      os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'

  def row(self, model: str) -> dict[str, Any]:
    """Compiles a model, which takes minutes; returns values by `COLUMNS`."""
    gpu = self.target == 'h200'
    mesh = _mesh(self.target)
    lowered = self.lower(model, 'cuda' if gpu else 'tpu', mesh)
    dumped = lambda: pathlib.Path(_dump().name).glob('*thunk_sequence*')
    for former in dumped():
      former.unlink()
    options = {'xla_gpu_autotune_level': '0'} if gpu else None
    compiled = lowered.compile(options)
    row = counts(compiled)
    if gpu:
      # That after XLA's passes has the longer name, if they changed it.
      last = max(dumped(), key=lambda path: len(path.name))
      row['host launches'] = hlo.host_launches(last.read_text())
      seconds = sum(
        max(
          kernel.bytes / _H200[0],
          sum(n / _H200[1][kind] for kind, n in kernel.flops.items()),
        )
        for kernel in hlo.Program(compiled.as_text()).step().kernels
      )
    else:
      cost, (bandwidth, rate) = compiled.cost_analysis(), self._tpu
      moved, flops = cost['bytes accessed'], cost['flops']
      passes = 6 if self.precision == 'float32' else 1
      seconds = max(moved / bandwidth, passes * flops / rate)
      peak = parallel.peak_bytes(compiled, 'tpu') / 1e6
      row |= {'trips': None, 'MB': moved / 1e6, 'GFLOP': flops / 1e9}
      row['temporary (MB)'] = peak - 1e3 * row['arguments (GB)']
    return row | {'estimate (us)': seconds * 1e6}

  def lower(self, model: str, platform: str, mesh: Mesh) -> jax.stages.Lowered:
    """Returns an epoch of a model as lowered for a mesh of devices."""
    place = lambda spec, tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
      ),
      tree,
    )
    with cpu.lowering_for(platform):
      function, specs, args, donated = self._program(model, mesh.devices.size)
      args = jax.tree.map(place, specs, args)
      mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=specs,
        out_specs=P(parallel.AXIS),
        check_vma=False,
      )
      return jax.jit(mapped, donate_argnums=donated).lower(*args)

  @property
  def _tpu(self) -> tuple[float, float]:
    return _TPUS[self.target.split(':')[0]]

  def _program(
    self, model: str, devices: int
  ) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...], tuple]:
    """Returns a function of a device, places and shapes of its arguments."""
    spec, recipe = SPECS[model], Recipe(epochs=1)
    dtype = dtype_of(self.precision)
    task = BagTask(spec, recipe, CLASSES, WIDTH, precision=self.precision)
    lengths = np.resize(self.instances, self.bags)
    rows, buckets = num_rows(lengths), bucket_lengths(lengths)
    functions = programs.chunk_functions(task, None, buckets)
    keep = np.zeros((1, rows), bool) if spec.chooser else None
    runs = jax_side.runs_of(np.ones((self.runs, self.bags), bool), keep)
    state = train.init(task, runs, train.draw(task, runs))
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
    store = Store(
      features=jax.ShapeDtypeStruct((rows, WIDTH), dtype),
      offset=ints(self.bags),
      length=ints(self.bags),
      label=ints(self.bags),
    )
    spread, where = P(parallel.AXIS), jax.tree.map(lambda _: P(), store)
    if self.store == 'spread':
      share = (rows + buckets[-1]) // devices + 2
      share = jax.ShapeDtypeStruct((devices * share, WIDTH), dtype)
      store = store.replace(features=parallel.Spread(rows=share))
      where = where.replace(features=spread)
    on_all = lambda tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        (devices * x.shape[0], *x.shape[1:]), x.dtype
      ),
      tree,
    )
    if self.part == 'train':
      chunk = ints(self.bags), ints(self.bags, recipe.batch)
      args = on_all(state), store, chunk
      return functions[0], (spread, where, P()), args, (0,)
    state = on_all(state)
    pairs = ints(self.bags, bags.pairs_at_once(buckets))
    chunk = on_all((ints(self.bags), pairs, pairs))
    args = (state.variables, state.run), store, chunk
    return functions[1], (spread, where, spread), args, ()


def counts(compiled: jax.stages.Compiled) -> dict[str, Any]:
  """Returns what a step of a compiled epoch takes, by `COLUMNS`."""
  program = hlo.Program(compiled.as_text())
  step, memory = program.step(), compiled.memory_analysis()
  products = program.products.items()
  return {
    'kernels': len(step.kernels),
    **step.control,
    'MB': step.bytes / 1e6,
    'GFLOP': step.flops / 1e9,
    'products': ', '.join(f'{n} {kind}' for kind, n in products),
    'arguments (GB)': memory.argument_size_in_bytes / 1e9,
    'temporary (MB)': memory.temp_size_in_bytes / 1e6,
    'collectives': program.collectives,
    'asynchronous': program.asynchronous,
  }


def _mesh(target: str) -> Mesh:
  """Returns the devices of a target along one axis."""
  if target == 'h200':
    config = pathlib.Path(__file__).with_name('h200.textproto').read_text()
    devices = topologies.get_topology_desc(
      platform='cuda',
      topology_name='',
      target_config=config,
      topology='1x1x1',
    ).devices
  else:
    devices = topologies.get_topology_desc(
      platform='tpu', topology_name=target
    ).devices
  return Mesh(np.array(devices), (parallel.AXIS,))


@functools.cache
def _dump() -> tempfile.TemporaryDirectory:
  """Returns the folder in which XLA says what the host launches."""
  return tempfile.TemporaryDirectory()
