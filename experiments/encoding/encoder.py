"""The tile encoder: ResNet-50's trunk and its weights, or a user's function."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import pathlib
import pkgutil
import re
from typing import Any

import chex
from flax import linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from data.files import replacing
from kmil_jax import parallel, port
from kmil_jax.models import cpu, resnet

RANDOM_FILE = 'encoder.safetensors'  # Beside the features it made.
_HUB = ('timm/resnet50.tv_in1k', 'model.safetensors')
_FUNCTION = re.compile(r'[\w.]+:[\w.]+')  # module:function
_SEED = 'kmil_jax.random_seed'  # Marks a random trunk in the file's metadata.
# Of the last norm of a residual branch. A random branch knows nothing: at 1,
# thirteen of them bury what the shortcut carries (see BUILD_NOTES.md).
_BRANCH_SCALE = 0.25


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A named function from tiles to features.

  Attributes:
    name: goes into every feature file. Ours end in a hash of the weights, so
      features of two encoders are never taken for one another's.
    encode: tiles [T, S, S, 3] float32, normalised by ImageNet's mean and
      deviation, to features [T, D].
    note: what the weights are, in words.
    precision: of the computation, 'float32' or 'bfloat16'.
  """

  name: str
  encode: Callable[[np.ndarray], np.ndarray]
  note: str = 'a function of your own'
  precision: str = 'float32'

  def attributes(self) -> dict[str, str]:
    """Returns what features must have in common to be of this encoder."""
    return {'encoder': self.name, 'precision': self.precision}


def make_encoder(
  weights: str | None,
  *,
  features_dir: str | pathlib.Path,
  cache_dir: str | pathlib.Path,
  sample: Callable[[], np.ndarray],
  precision: str = 'float32',
  seed: int = 0,
) -> Encoder:
  """Returns the encoder asked for: the ResNet-50 trunk, or a function.

  Without weights the trunk is random, with batch-norm statistics of
  `sample()`. As those depend on the tiles, the trunk is kept in
  `features_dir/encoder.safetensors` (torchvision's names) and never made
  again: later runs there use it, and so do other cohorts when they are given
  that file as their weights.

  Args:
    weights: a .safetensors or .pth file of torchvision's or timm's ResNet-50,
      'imagenet', or None; or module:function, a function of `Encoder.encode`.
    features_dir: where the features go.
    cache_dir: where ImageNet weights may have been put.
    sample: returns normalised calibration tiles [T, S, S, 3]; called only to
      make a random trunk that is not there yet.
    precision: of the computation, 'float32' or 'bfloat16'.
    seed: of the random trunk.

  Raises:
    PortError: if the file cannot be read or does not hold that network, listing
      the names; if ImageNet weights cannot be downloaded; if `features_dir`
      holds a random trunk of another seed; or if there is no such function.
  """
  if weights and _FUNCTION.fullmatch(weights):
    return _function(weights, precision)
  if weights == 'imagenet':
    path = _imagenet_file(cache_dir)
  elif weights:
    path = pathlib.Path(weights).expanduser()
  else:
    path = pathlib.Path(features_dir) / RANDOM_FILE
    if not path.exists():
      variables = random_trunk(sample(), seed=seed)
      state = port.to_torch('resnet50_trunk', variables)
      with replacing(path) as part:
        part.write_bytes(safetensors.numpy.save(state, {_SEED: str(seed)}))
    if (drawn := _seed_of(path)) != str(seed):
      raise port.PortError(
        f'{path} holds a trunk of seed {drawn}, not {seed}. Give its seed, or'
        ' another folder for the features.'
      )
  state = port.load_state_dict(path)
  try:
    variables = port.from_torch('resnet50_trunk', state)
  except port.PortError as error:
    raise port.PortError(
      f"{path} does not fit torchvision's ResNet-50:\n{error}"
    ) from error
  digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
  if (drawn := _seed_of(path)) is None:
    name, note = f'resnet50-conv4-{digest}', f'weights of {path.name}'
  else:
    name = f'resnet50-conv4-random-seed{drawn}-{digest}'
    note = f'WARNING: RANDOM weights (seed {drawn}), NOT pretrained'
  encode = pmap_encode(variables, precision=precision)
  return Encoder(name, encode, note, precision)


def _function(reference: str, precision: str) -> Encoder:
  """Returns a function of the user's, named module:function."""
  if precision != Encoder.precision:
    raise port.PortError(
      f'--precision={precision} applies only to ResNet-50, not to {reference}.'
      ' Leave it out.'
    )
  try:
    return Encoder(reference, pkgutil.resolve_name(reference))
  except (ImportError, AttributeError) as error:
    raise port.PortError(
      f'--weights={reference} cannot be imported ({error}). Give'
      ' module:function of a module in this folder or on PYTHONPATH.'
    ) from error


def _imagenet_file(cache_dir: str | pathlib.Path) -> pathlib.Path:
  """Returns the file of timm's `resnet50.tv_in1k`, torchvision's first weights.

  It is taken from `cache_dir/weights/resnet50.tv_in1k.safetensors`, else from
  the hub's own cache, else downloaded into the latter.
  """
  path = pathlib.Path(cache_dir).expanduser().absolute()
  path = path / 'weights' / 'resnet50.tv_in1k.safetensors'
  if path.exists():
    return path
  repo, name = _HUB
  try:
    return pathlib.Path(huggingface_hub.hf_hub_download(repo, name))
  except Exception as error:  # The hub's, the HTTP client's or the system's.
    raise port.PortError(
      f'--weights=imagenet: the Hugging Face hub does not give it'
      f' ({type(error).__name__}). Download {name} of {repo} elsewhere and put'
      f' it at {path}.'
    ) from error


def _seed_of(path: pathlib.Path) -> str | None:
  """Returns the seed of a random trunk, None for any other file."""
  if path.suffix.lower() != '.safetensors':
    return None
  with safetensors.safe_open(path, 'np') as file:
    return (file.metadata() or {}).get(_SEED)


def random_trunk(tiles: np.ndarray, *, seed: int) -> dict[str, Any]:
  """Returns random `ResNet50Trunk` variables, as `random_network`."""
  return random_network(resnet.ResNet50Trunk(momentum=0.0), tiles, seed=seed)


def random_network(
  network: nn.Module, tiles: np.ndarray, *, seed: int
) -> dict[str, Any]:
  """Returns random variables of a residual network, calibrated on tiles.

  Kernels are normal with variance 2 / fan-out (He et al., "Delving deep into
  rectifiers", ICCV 2015, eq. 14), drawn by NumPy, so that they do not change
  with JAX. The running statistics are those of one pass over `tiles` in
  training mode: each layer is normalised with this batch's own statistics
  before the next one sees it, so that one pass is consistent through all
  layers, and features of such tiles are of order 1 and well spread. Residual
  branches start at a quarter of the shortcut's scale.

  Args:
    network: of bottlenecks, whose norms keep the statistics of the last batch
      alone (momentum 0).
    tiles: normalised tiles, [T, S, S, 3] float32, a hundred or so.
    seed: of the kernels.

  Returns:
    `{'params', 'batch_stats'}`, float32 NumPy.
  """
  chex.assert_shape(tiles, (None, None, None, 3))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale' and path[-2].key == 'bn3':
      return np.full(leaf.shape, _BRANCH_SCALE, leaf.dtype)
    if path[-1].key != 'kernel':  # Scales and variances 1, all others 0.
      return np.full(leaf.shape, path[-1].key in ('scale', 'var'), leaf.dtype)
    height, width, _, out = leaf.shape
    kernel = rng.standard_normal(leaf.shape, leaf.dtype)
    return kernel * np.float32((2 / (height * width * out)) ** 0.5)

  few = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), few)
  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  calibrate = jax.jit(
    functools.partial(network.apply, train=True, mutable=['batch_stats'])
  )
  _, mutated = calibrate(variables, tiles)
  return jax.device_get({'params': variables['params'], **mutated})


def apply_trunk(
  variables: Mapping[str, Any], tiles: jax.Array, *, precision: str
) -> jax.Array:
  """Returns the features of tiles, [T, 1024] float32; few at a time on CPUs.

  Args:
    variables: of `ResNet50Trunk`.
    tiles: normalised, [T, S, S, 3].
    precision: of the computation, 'float32' or 'bfloat16'.
  """
  trunk = resnet.ResNet50Trunk(dtype=jnp.dtype(precision))
  return cpu.map_tiles(functools.partial(trunk.apply, variables), tiles)


def pmap_encode(
  variables: Mapping[str, Any], *, precision: str
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns `apply_trunk` as a function of tiles alone, over local devices.

  It compiles once per shape of its argument.
  """
  run = parallel.pmap_local(functools.partial(apply_trunk, precision=precision))
  return functools.partial(run, parallel.replicate(variables))


def default_batch() -> int:
  """Tiles per call: 16 per CPU device, the fastest there, else 256."""
  per_device = 16 if parallel.platform() == 'cpu' else 256
  return per_device * parallel.num_local_devices()
