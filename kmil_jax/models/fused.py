"""Softmax attention whose scores never leave an NVIDIA GPU's cores."""

import functools
import warnings

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from kmil_jax import parallel
from kmil_jax.models import cpu

try:
  from jax.experimental.pallas import triton
except ImportError:  # Later versions of JAX may do without it.
  triton = None

_BLOCK = 64  # Rows of a step; a power of 2.
_SHORT = 256  # Rows, at most.
_NEVER = -1e30  # A score whose exp is 0.
_INTERPRETED = False  # On the host, for tests.


@jax.custom_vjp
def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array
) -> jax.Array:
  """Returns softmax(q k' + bias) v of every head, [H, M, D] float32.

  The scores are made anew in the backward pass, from what is returned and the
  logarithms of the softmax's sums: Dao et al., "FlashAttention", 2022.

  Args:
    q: [H, M, D] float32, D a power of 2.
    k: [H, T, D] float32.
    v: [H, T, D].
    bias: of the keys, [T], finite; it is given no gradient.
  """
  return _sums(q, k, v, bias)[0]


def usable() -> bool:
  """Whether programs are lowered for a GPU on which this is right.

  Not in pods: each process would find out by itself, and might run another
  program than the others.
  """
  is_alone = parallel.num_local_devices() == parallel.num_devices()
  return cpu.is_gpu() and is_alone and _works()


@functools.cache
def _works() -> bool:
  """Whether JAX makes the kernels and, where there is a GPU, they are right.

  Older GPUs lack TF32, and what JAX makes for GPUs changes with its versions.
  """
  x = np.random.default_rng(0).normal(size=(2, 300, 64)).astype(np.float32)
  bias = np.linspace(-1, 1, len(x[0]), dtype=np.float32)
  cut = lambda k: bias[: k.shape[1]]
  kernels = lambda q, k: attend(q, k, k, cut(k))
  plain = lambda q, k: jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) + cut(k)) @ k
  loss = lambda f, x: (
    (f(x[:, :100], x) ** 2).sum() + (f(x, x[:, :100]) ** 2).sum()
  )
  slope = lambda f: jax.jit(jax.grad(functools.partial(loss, f))).trace(x)
  try:
    lowered = slope(kernels).lower(lowering_platforms=('cuda',))
    if parallel.platform() == 'cpu':  # It is compiled for a GPU elsewhere.
      return True
    got = lowered.compile()(x)
    with jax.default_matmul_precision('highest'):
      want = slope(plain).lower().compile()(x)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  except Exception as e:  # There is no end to what compilers say.
    fault, _, _ = str(e).strip().partition('\n')
    warnings.warn(
      'attention is computed in blocks: its kernels do not work here'
      f' ({type(e).__name__}: {fault})',
      stacklevel=2,
    )
    return False
  return True


def _sums(q, k, v, bias):
  sums = jax.ShapeDtypeStruct(q.shape, jnp.float32)
  logs = jax.ShapeDtypeStruct(q.shape[:2], jnp.float32)
  return _call(_forward, (sums, logs), q, k, v, _columns(bias, _NEVER))


def _attend_fwd(q, k, v, bias):
  out, logs = _sums(q, k, v, bias)
  return out, (q, k, v, bias, out, logs)


def _attend_bwd(saved, grad):
  q, k, v, bias, out, logs = saved
  bias, nothing = _columns(bias, _NEVER), _columns(jnp.zeros_like(bias), 0)
  queries = q, grad, _columns(-logs, _NEVER), _columns((grad * out).sum(-1), 0)
  keys = k, v, bias, nothing
  (grad_q,) = _call(_backward, (q,), *queries, *keys)
  grad_k, grad_v = _call(_backward, (k, v), *keys, *queries)
  return grad_q, grad_k, grad_v, None


attend.defvjp(_attend_fwd, _attend_bwd)


def _columns(x, fill):
  """Pads [T] or [H, T] to whole blocks."""
  behind = (0, -x.shape[-1] % _BLOCK)
  return jnp.pad(x, ((0, 0), behind)[-x.ndim :], constant_values=fill)


def _call(kernel, out, *args):
  """Runs a kernel for every head and block of rows; arrays are [H, T, ...].

  Long ones are read and written as [T, H, ...], as projections make and take
  them, and short ones, which much is done to, as they are.
  """
  is_long = lambda x: x.ndim == 3 and x.shape[1] > _SHORT
  turned = lambda x: jnp.swapaxes(x, 0, 1) if is_long(x) else x

  def spec(x):
    if x.ndim == 1:
      return pl.BlockSpec(x.shape, lambda head, block: (0,))
    axis, rest, zeros = int(is_long(x)), x.shape[1:], (0,) * (x.ndim - 1)
    return pl.BlockSpec(
      (*rest[:axis], None, *rest[axis:]),
      lambda head, block: (*zeros[:axis], head, *zeros[axis:]),
    )

  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out]
  results = pl.pallas_call(
    kernel,
    grid=(out[0].shape[0], pl.cdiv(out[0].shape[1], _BLOCK)),
    in_specs=[spec(x) for x in args],
    out_specs=[spec(x) for x in out],
    out_shape=[jax.eval_shape(turned, x) for x in shapes],
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    interpret=_INTERPRETED,
  )(*map(turned, args))
  back = lambda x, like: jnp.swapaxes(x, 0, 1) if is_long(like) else x
  return [back(x, like) for x, like in zip(results, out, strict=True)]


def _forward(q_ref, k_ref, v_ref, bias_ref, out_ref, logs_ref):
  rows = pl.program_id(1)
  q = _read(q_ref, rows)

  def block(i, carry):
    top, total, sums = carry
    scores = _dot(q, _read(k_ref, i).T) + _read(bias_ref, i)
    new = jnp.maximum(top, scores.max(1))
    weights, scale = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
    sums = sums * scale[:, None] + _dot(weights, _read(v_ref, i))
    return new, total * scale + weights.sum(1), sums

  zero = jnp.zeros(_BLOCK)
  start = zero + _NEVER, zero, jnp.zeros(q.shape)
  top, total, sums = jax.lax.fori_loop(0, _blocks(bias_ref), block, start)
  _write(out_ref, rows, sums / total[:, None])
  _write(logs_ref, rows, top + jnp.log(total))


def _backward(*refs):
  """The gradients of queries, or of keys and of values.

  Those of queries are sums over keys, and those of keys over queries, of
  weight * (value . gradient - shift) times what the scores multiplied.
  """
  *own, a_ref, b_ref, log_ref, shift_ref = refs[:8]
  outs = refs[8:]
  rows = pl.program_id(1)
  own_a, own_b, own_log, own_shift = (_read(ref, rows) for ref in own)

  def block(i, sums):
    a, b = _read(a_ref, i), _read(b_ref, i)
    scores = _dot(own_a, a.T) + own_log[:, None] + _read(log_ref, i)
    weights = jnp.exp(scores)
    shift = own_shift[:, None] + _read(shift_ref, i)
    slopes = weights * (_dot(own_b, b.T) - shift)
    terms = _dot(slopes, a), _dot(weights, b)
    return tuple(x + y for x, y in zip(sums, terms[: len(sums)], strict=True))

  start = tuple(jnp.zeros(own_a.shape) for _ in outs)
  sums = jax.lax.fori_loop(0, _blocks(log_ref), block, start)
  for ref, x in zip(outs, sums, strict=True):
    _write(ref, rows, x)


def _blocks(ref):
  return ref.shape[0] // _BLOCK


def _at(ref, i):
  """Where the rows of a block are, and which of them there are."""
  row = i * _BLOCK + jnp.arange(_BLOCK)
  at = ref.at[pl.ds(i * _BLOCK, _BLOCK)]
  inside = (row < ref.shape[0]).reshape(-1, *(1,) * (at.ndim - 1))
  return at, jnp.broadcast_to(inside, at.shape)


def _read(ref, i):
  at, inside = _at(ref, i)
  return triton.load(at, mask=inside, other=0).astype(jnp.float32)


def _write(ref, i, x):
  at, inside = _at(ref, i)
  triton.store(at, x.astype(ref.dtype), mask=inside)


def _dot(a, b):
  """A product of three passes in TF32, in which little of float32 is lost."""
  precision = 'highest' if _INTERPRETED else 'TF32_TF32_F32_X3'
  return jnp.dot(a, b, precision=precision)
