"""Reads compiled programs as text: kernels of a step, launches by the host."""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import re

# What launches nothing.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all partition-id'
  ' replica-id opt-barrier'.split()
)
_SLICES = frozenset(('dynamic-slice', 'slice', 'gather'))
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
# A shape has no space but in a tuple, and a tuple no ") " but at its end.
_OP = re.compile(
  r'\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)(?= [a-z])|\S+) ([^(]*)\((.*)'
)
_COLLECTIVE = re.compile(
  r' (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)'
  r'(-start)?\(.*?channel_id=(\d+)'
)


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
  """An instruction.

  Attributes:
    shape: of its result.
    opcode: its kind.
    operands: those whose results it takes.
    text: its whole line.
    computations: of the program, by name.
  """

  shape: str
  opcode: str
  operands: Sequence['Op']
  text: str
  computations: Mapping[str, Sequence['Op']] = dataclasses.field(repr=False)

  def called(self, *attributes: str) -> list[Sequence['Op']]:
    """Returns the computations that attributes name."""
    pattern = rf'(?:{"|".join(attributes)})=\{{?((?:%[\w.\-]+(?:, )?)+)'
    names = ''.join(re.findall(pattern, self.text))
    return [self.computations[n] for n in re.findall(r'%([\w.\-]+)', names)]

  @property
  def trips(self) -> int:
    """Passes of a loop; 1 where the compiler does not say, as for TPUs."""
    count = re.search(r'known_trip_count":\{"n":"(\d+)"', self.text)
    return int(count[1]) if count else 1

  @property
  def size(self) -> float:
    """Bytes of its result; of a type without a width, one each."""
    bits = lambda name: int((re.findall(r'\d+', name) or ['8'])[0])
    arrays = _arrays(self.shape)
    return sum(math.prod(dims) * bits(name) / 8 for name, dims in arrays)

  @property
  def body(self) -> Sequence['Op']:
    """Returns the instructions of a fusion."""
    return self.called('calls')[0] if self.opcode == 'fusion' else ()

  @functools.cached_property
  def bytes(self) -> float:
    """What a kernel reads and writes; of slices of a parameter, these alone."""
    written, read = self.size, [operand.size for operand in self.operands]
    for op in self.body:
      if op.opcode == 'parameter':  # A fusion may read less than it is given.
        at = int(re.search(r'parameter\((\d+)\)', op.text)[1])
        read[at] = min(read[at], _read(op, self.body))
      elif op.opcode == 'dynamic-update-slice' and 'ROOT' in op.text:
        written = 2 * op.operands[1].size - written
    return max(written + sum(read), 0)

  @functools.cached_property
  def flops(self) -> dict[str, float]:
    """Operations of a kernel's products, by `factors`."""
    flops: dict[str, float] = {}
    for product in self.products():
      pattern = r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)'
      dims = re.search(pattern, product.text)[1]
      lhs, result = (
        _arrays(x.shape)[0][1] for x in (product.operands[0], product)
      )
      depth = math.prod(lhs[int(d)] for d in re.findall(r'\d+', dims))
      count = 2.0 * math.prod(result) * depth
      flops[product.factors] = flops.get(product.factors, 0) + count
    return flops

  def products(self) -> Iterator['Op']:
    """Yields the products of a kernel, also in fusions inside fusions."""
    if self.is_matmul:
      yield self
    for op in self.body:
      yield from op.products()

  @property
  def is_matmul(self) -> bool:
    return self.opcode == 'dot' or '__cublas' in self.text

  @property
  def factors(self) -> str:
    """The type of a product's factors: 'bfloat16', 'tf32' or 'float32'.

    The last two are of float32 without and with `operand_precision=highest`.
    """
    if not self.operands[0].shape.startswith('f32'):
      return 'bfloat16'
    return 'float32' if 'highest' in self.text.lower() else 'tf32'


@dataclasses.dataclass
class Step:
  """What a computation launches; of a conditional, the branch of most bytes."""

  kernels: list[Op] = dataclasses.field(default_factory=list)
  # Number of conditionals, of loops, and of the trips of all loops.
  control: dict[str, int] = dataclasses.field(
    default_factory=lambda: collections.Counter(
      conditionals=0, loops=0, trips=0
    )
  )

  @property
  def bytes(self) -> float:
    return sum(kernel.bytes for kernel in self.kernels)

  @property
  def flops(self) -> float:
    return sum(sum(kernel.flops.values()) for kernel in self.kernels)


class Program:
  """The computations of a compiled program.

  Args:
    text: of the program, as `Compiled.as_text` returns it.
  """

  def __init__(self, text: str):
    self._computations: dict[str, list[Op]] = {}
    for line in text.splitlines():
      if header := _COMPUTATION.match(line):
        ops, known = self._computations.setdefault(header[2], []), {}
        self._entry = ops if header[1] else getattr(self, '_entry', ops)
      elif op := _OP.match(line):
        name, shape, opcode, rest = op.groups()
        names = re.findall(r'%([\w.\-]+)', rest.partition('), ')[0])
        operands = [known[n] for n in names if n in known]
        known[name] = Op(shape, opcode, operands, line, self._computations)
        ops.append(known[name])
    found = [
      (name.startswith('async') or bool(collective[1]), collective[2])
      for name, ops in self._computations.items()
      for op in ops
      if (collective := _COLLECTIVE.search(op.text))
    ]
    # Of an asynchronous one, each kernel beside which it goes on names it.
    self.collectives = len({channel for _, channel in found})
    self.asynchronous = len({channel for hidden, channel in found if hidden})

  @property
  def products(self) -> dict[str, int]:
    """Number of products by the type of their factors, see `Op.factors`."""
    return collections.Counter(
      op.factors
      for ops in self._computations.values()
      for op in ops
      if op.opcode == 'convolution' or op.is_matmul
    )

  def step(self) -> Step:
    """Returns a pass of the entry's longest loop, else of the entry."""
    loops = [op for op in self._entry if op.opcode == 'while']
    if not loops:
      return _launched(self._entry)
    return _launched(max(loops, key=lambda op: op.trips).called('body')[0])


def _launched(ops: Sequence[Op]) -> Step:
  step = Step()
  for op in ops:
    parts, times = [], 1
    match op.opcode:
      case 'while':
        parts, times = map(_launched, op.called('body')), op.trips
        step.control.update(loops=1, trips=times)
      case 'conditional':
        names = 'branch_computations', 'true_computation', 'false_computation'
        branches = map(_launched, op.called(*names))
        parts = [max(branches, key=lambda branch: branch.bytes)]
        step.control.update(conditionals=1)
      case 'call' | 'async-start':
        parts = map(_launched, op.called('to_apply', 'calls'))
      case name if name not in _FREE and not name.endswith('-done'):
        step.kernels.append(op)
    for part in parts:
      step.kernels += part.kernels * times
      step.control.update(part.control)
  return step


def host_launches(thunks: str) -> int:
  """Returns what the host launches in a pass of a program's largest loop.

  Args:
    thunks: XLA's dump of what it launches: kernels, copies, CUDA graphs.

  Returns:
    Their number, that of loops and conditionals counted once; 0 where the loop
    itself is part of a CUDA graph.
  """
  around: list[tuple[int, str, int]] = []  # indent, kind, line: what holds it
  size, launches = collections.Counter(), collections.Counter()  # by loop
  in_condition = False
  for number, line in enumerate(thunks.splitlines()):
    if line.strip() in ('condition:', 'body:'):
      in_condition = line.strip() == 'condition:'
    thunk = re.match(r'( *)\d+: k(\w+)', line)
    if not thunk or in_condition:
      continue
    around = [outer for outer in around if outer[0] < len(thunk[1])]
    kinds = {kind for _, kind, _ in around}
    by_host = kinds.isdisjoint(('CommandBuffer', 'DynamicSliceFusion'))
    by_host &= thunk[2] not in ('While', 'Conditional')
    loops = [start for _, kind, start in around if kind == 'While']
    size.update(loops)
    launches.update(dict.fromkeys(loops, int(by_host)))
    around.append((len(thunk[1]), thunk[2], number))
  (largest, _), *_ = size.most_common(1)
  return launches[largest]


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
  """Returns type and dimensions of the arrays of a shape."""
  arrays = re.findall(r'([a-z]+\d*\w*)\[([\d,]*)\]', shape)
  return [(t, [int(d) for d in dims.split(',') if d]) for t, dims in arrays]


def _read(parameter: Op, body: Sequence[Op]) -> float:
  """Returns the bytes that a fusion reads of a parameter: slices, or all."""
  same, users = {parameter}, []
  for op in body:
    if same.intersection(op.operands):
      if op.opcode == 'bitcast':
        same.add(op)
      else:
        users.append(op)
  if users and all(op.opcode in _SLICES for op in users):
    return sum(op.size for op in users)
  return parameter.size
