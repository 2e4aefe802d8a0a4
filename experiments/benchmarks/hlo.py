"""Reads compiled programs as text: kernels of a step, launches by the host."""

import collections
from collections.abc import Iterator
import dataclasses
import math
import re

# What launches nothing.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all partition-id'
  ' replica-id opt-barrier'.split()
)
_SLICES = frozenset(('dynamic-slice', 'slice', 'gather'))
_COLLECTIVE = re.compile(
  r' (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)'
  r'(-start)?\(.*?channel_id=(\d+)'
)


@dataclasses.dataclass(frozen=True)
class Op:
  """An instruction; `text` is its whole line."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  text: str

  def called(self, attribute: str) -> list[str]:
    """Returns the computations that an attribute names."""
    pattern = attribute + r'=\{?((?:%[\w.\-]+(?:, )?)+)'
    names = re.search(pattern, self.text)
    return re.findall(r'%([\w.\-]+)', names[1]) if names else []

  @property
  def trips(self) -> int:
    """Passes of a loop; 1 where the compiler does not say, as for TPUs."""
    count = re.search(r'known_trip_count":\{"n":"(\d+)"', self.text)
    return int(count[1]) if count else 1


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A launch: bytes that it moves, and operations of its products.

  Attributes:
    bytes: read and written; of slices of a parameter, the slices alone.
    flops: by the type of the factors: 'bfloat16', 'tf32' or 'float32', which
      are factors of float32 with and without `operand_precision=highest`.
  """

  bytes: float
  flops: dict[str, float]


@dataclasses.dataclass
class Step:
  """What a computation launches; of a conditional, the branch of most bytes."""

  kernels: list[Kernel] = dataclasses.field(default_factory=list)
  conditionals: int = 0
  loops: int = 0
  trips: int = 0  # of all loops

  def add(self, part: 'Step', times: int = 1) -> None:
    """Adds what a part launches, `times` over."""
    self.kernels += part.kernels * times
    self.conditionals += part.conditionals
    self.loops += part.loops
    self.trips += part.trips

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
    ops: list[Op] = []
    for line in text.splitlines():
      if header := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$', line):
        ops = self._computations.setdefault(header[2], [])
        self._entry = ops if header[1] else getattr(self, '_entry', ops)
      elif op := _op(line):
        ops.append(op)
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
    """Number of products by the type of their factors, see `Kernel`."""
    return collections.Counter(
      _factors(op, {one.name: one.shape for one in ops})
      for ops in self._computations.values()
      for op in ops
      if op.opcode == 'convolution' or _is_matmul(op)
    )

  def step(self) -> Step:
    """Returns a pass of the entry's longest loop, else of the entry."""
    loops = [op for op in self._entry if op.opcode == 'while']
    if not loops:
      return self._launched(self._entry)
    longest = max(loops, key=lambda op: op.trips)
    return self._launched(self._computations[longest.called('body')[0]])

  def _launched(self, ops: list[Op]) -> Step:
    step, shapes = Step(), {op.name: op.shape for op in ops}
    parts = lambda op, *attributes: [
      self._launched(self._computations[name])
      for attribute in attributes
      for name in op.called(attribute)
    ]
    for op in ops:
      if op.opcode == 'while':
        step.add(*parts(op, 'body'), times=op.trips)
        step.add(Step(loops=1, trips=op.trips))
      elif op.opcode == 'conditional':
        names = 'branch_computations', 'true_computation', 'false_computation'
        step.add(max(parts(op, *names), key=lambda part: part.bytes))
        step.add(Step(conditionals=1))
      elif op.opcode in ('call', 'async-start'):
        for part in parts(op, 'to_apply', 'calls'):
          step.add(part)
      elif op.opcode not in _FREE and not op.opcode.endswith('-done'):
        step.kernels.append(self._kernel(op, shapes))
    return step

  def _kernel(self, op: Op, shapes: dict[str, str]) -> Kernel:
    written, body = _size(op.shape), self._body(op)
    read = [_size(shapes.get(name, '')) for name in op.operands]
    numbers = (re.search(r'parameter\((\d+)\)', o.text) for o in body)
    for number, one in zip(numbers, body, strict=True):
      if number:  # A fusion may read less than it is given.
        at = int(number[1])
        read[at] = min(read[at], _read(one, body))
    for root in body:
      if root.opcode == 'dynamic-update-slice' and 'ROOT' in root.text:
        sizes = {one.name: _size(one.shape) for one in body}
        written += 2 * (sizes[root.operands[1]] - written)
    flops: dict[str, float] = {}
    for product, kinds in self._products(op, shapes):
      kind, count = _product(product, kinds)
      flops[kind] = flops.get(kind, 0) + count
    return Kernel(max(written + sum(read), 0), flops)

  def _body(self, op: Op) -> list[Op]:
    calls = op.called('calls') if op.opcode == 'fusion' else ()
    return [o for name in calls for o in self._computations[name]]

  def _products(
    self, op: Op, shapes: dict[str, str]
  ) -> Iterator[tuple[Op, dict[str, str]]]:
    """Yields the products of a kernel, also in fusions inside fusions."""
    if _is_matmul(op):
      yield op, shapes
    body = self._body(op)
    inner = {one.name: one.shape for one in body}
    for one in body:
      yield from self._products(one, inner)


def host_launches(thunks: str) -> int:
  """Returns what the host launches in a pass of a program's largest loop.

  Args:
    thunks: XLA's dump of what it launches: kernels, copies, CUDA graphs.

  Returns:
    Their number, that of loops and conditionals counted once; 0 where the loop
    itself is part of a CUDA graph.
  """
  kinds: list[str] = []
  paths: list[list[int]] = []  # of each, from the outermost
  in_condition, depths = False, []
  for line in thunks.splitlines():
    if line.strip() in ('condition:', 'body:'):
      in_condition = line.strip() == 'condition:'
    thunk = re.match(r'( *)\d+: k(\w+)', line)
    if not thunk or in_condition:
      continue
    depths.append(len(thunk[1]) // 4)
    above = reversed(list(enumerate(depths[:-1])))
    outer = next((i for i, depth in above if depth < depths[-1]), None)
    paths.append([*([] if outer is None else paths[outer]), len(kinds)])
    kinds.append(thunk[2])
  loops = [i for i, kind in enumerate(kinds) if kind == 'While']
  inside = lambda loop: [path for path in paths if loop in path[:-1]]
  loop = max(loops, key=lambda loop: len(inside(loop)))
  within = lambda path, *some: any(kinds[i] in some for i in path)
  return sum(
    not within(path[:-1], 'CommandBuffer', 'DynamicSliceFusion')
    and not within(path[-1:], 'While', 'Conditional')
    for path in inside(loop)
  )


def _op(line: str) -> Op | None:
  op = re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = (.*)$', line)
  if not op:
    return None
  # A shape has no space but in a tuple, and a tuple no ") " but at its end.
  shape = re.match(r'\(.*?\)(?= [a-z])|\S+', op[2])[0]
  opcode, _, rest = op[2][len(shape) :].strip().partition('(')
  operands = re.findall(r'%([\w.\-]+)', rest.partition('), ')[0])
  return Op(op[1], shape, opcode, tuple(operands), line)


def _arrays(shape: str) -> list[tuple[str, list[int]]]:
  """Returns type and dimensions of the arrays of a shape."""
  arrays = re.findall(r'([a-z]+\d*\w*)\[([\d,]*)\]', shape)
  return [(t, [int(d) for d in dims.split(',') if d]) for t, dims in arrays]


def _size(shape: str) -> float:
  """Returns the bytes of a shape; of a type without a width, one each."""
  bits = lambda name: int((re.findall(r'\d+', name) or ['8'])[0])
  arrays = _arrays(shape)
  return sum(math.prod(dims) * bits(name) / 8 for name, dims in arrays)


def _read(parameter: Op, body: list[Op]) -> float:
  """Returns the bytes that a fusion reads of a parameter: slices, or all."""
  names, users = {parameter.name}, []
  for op in body:
    if names.intersection(op.operands):
      if op.opcode == 'bitcast':
        names.add(op.name)
      else:
        users.append(op)
  if users and all(op.opcode in _SLICES for op in users):
    return sum(_size(op.shape) for op in users)
  return _size(parameter.shape)


def _is_matmul(op: Op) -> bool:
  return op.opcode == 'dot' or '__cublas' in op.text


def _factors(op: Op, shapes: dict[str, str]) -> str:
  """Returns the type of a product's factors."""
  if not shapes[op.operands[0]].startswith('f32'):
    return 'bfloat16'
  return 'float32' if 'highest' in op.text.lower() else 'tf32'


def _product(op: Op, shapes: dict[str, str]) -> tuple[str, float]:
  """Returns the type of a product's factors and its operations."""
  pattern = r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)'
  (_, lhs), *_ = _arrays(shapes[op.operands[0]])
  dims = re.search(pattern, op.text)
  depth = math.prod(lhs[int(d)] for d in re.findall(r'\d+', dims[1]))
  count = 2.0 * math.prod(_arrays(op.shape)[0][1]) * depth
  return _factors(op, shapes), count
