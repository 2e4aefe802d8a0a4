"""The tile encoder: ResNet-50 and its weights, or a function of the user's."""

from collections.abc import Callable
import dataclasses
import hashlib
import pathlib
import pkgutil
import re

import huggingface_hub
import numpy as np
import safetensors
import safetensors.numpy

from data.files import replacing
from experiments import encoder
from kmil_jax import port

RANDOM_FILE = 'encoder.safetensors'  # Beside the features it made.
_HUB = ('timm/resnet50.tv_in1k', 'model.safetensors')
_FUNCTION = re.compile(r'[\w.]+:[\w.]+')  # module:function
_DRAWN = 'kmil_jax.random_seed'  # Marks a random trunk in the file's metadata.


class WeightsError(Exception):
  """Weights that are not to be had; says what to do."""


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
    port.PortError: if the file cannot be read.
    WeightsError: if it does not hold that network, listing the names; if
      ImageNet weights are not to be had; if `features_dir` holds a random
      trunk of another seed; or if there is no such function.
  """
  if weights and _FUNCTION.fullmatch(weights):
    return _function(weights, precision)
  if weights == 'imagenet':
    path = imagenet_file(cache_dir)
  elif weights:
    path = pathlib.Path(weights).expanduser()
  else:
    path = pathlib.Path(features_dir) / RANDOM_FILE
    if not path.exists():
      _save(path, encoder.random_trunk(sample(), seed=seed), seed)
    if (drawn := _drawn(path)) != str(seed):
      raise WeightsError(
        f'{path} holds a trunk of seed {drawn}, not {seed}: give its seed, or '
        'another folder for the features'
      )
  state = port.load_state_dict(path)
  try:
    variables = port.from_torch('resnet50_trunk', state)
  except port.PortError as error:
    raise WeightsError(
      f"{path} does not fit torchvision's ResNet-50:\n{error}"
    ) from error
  digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
  if (drawn := _drawn(path)) is None:
    name, note = f'resnet50-conv4-{digest}', f'weights of {path.name}'
  else:
    name = f'resnet50-conv4-random-seed{drawn}-{digest}'
    note = f'WARNING: RANDOM weights (seed {drawn}), NOT pretrained'
  encode = encoder.pmap_encode(variables, precision=precision)
  return Encoder(name, encode, note, precision)


def _function(reference: str, precision: str) -> Encoder:
  """Returns a function of the user's, named module:function."""
  if precision != Encoder.precision:
    raise WeightsError(
      f'--precision={precision} applies only to ResNet-50, not to {reference}.'
      ' Leave it out.'
    )
  try:
    return Encoder(reference, pkgutil.resolve_name(reference))
  except (ImportError, AttributeError) as error:
    raise WeightsError(
      f'--weights={reference} cannot be imported ({error}). Give'
      ' module:function of a module in this folder or on PYTHONPATH.'
    ) from error


def imagenet_file(cache_dir: str | pathlib.Path) -> pathlib.Path:
  """Returns the file of timm's `resnet50.tv_in1k`, torchvision's first weights.

  It is taken from `cache_dir/weights/resnet50.tv_in1k.safetensors`, else from
  the hub's own cache, else downloaded into the latter.

  Raises:
    WeightsError: if it is in neither place and cannot be downloaded.
  """
  path = pathlib.Path(cache_dir).expanduser().absolute()
  path = path / 'weights' / 'resnet50.tv_in1k.safetensors'
  if path.exists():
    return path
  repo, name = _HUB
  try:
    return pathlib.Path(huggingface_hub.hf_hub_download(repo, name))
  except Exception as error:  # The hub's, the HTTP client's or the system's.
    raise WeightsError(
      f'--weights=imagenet: the Hugging Face hub does not give it '
      f'({type(error).__name__}); download {name} of {repo} elsewhere and put '
      f'it at {path}'
    ) from error


def _save(path: pathlib.Path, variables, seed: int) -> None:
  """Writes a random trunk; whoever opens `path` finds all of it or nothing."""
  content = safetensors.numpy.save(
    port.to_torch('resnet50_trunk', variables), {_DRAWN: str(seed)}
  )
  with replacing(path) as part:
    part.write_bytes(content)


def _drawn(path: pathlib.Path) -> str | None:
  """Returns the seed of a random trunk, None for any other file."""
  if path.suffix != '.safetensors':
    return None
  with safetensors.safe_open(path, 'np') as file:
    return (file.metadata() or {}).get(_DRAWN)
