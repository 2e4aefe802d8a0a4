"""timm's networks. torchvision, which timm imports for its transforms, is
replaced by an empty module: wheels of it that fit a CPU's torch are rare."""

import enum
import importlib.machinery
import sys
import types


class Empty(types.ModuleType):
  """A module in which every name is a class without use."""

  __path__ = ()

  def __init__(self, name):
    super().__init__(name)
    self.__spec__ = importlib.machinery.ModuleSpec(name, None)

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return type(name, (), {})


class InterpolationMode(enum.Enum):
  NEAREST = 'nearest'
  BILINEAR = 'bilinear'
  BICUBIC = 'bicubic'
  BOX = 'box'
  HAMMING = 'hamming'
  LANCZOS = 'lanczos'


for name in (
  *('', '.datasets', '.datasets.folder', '.models', '.ops', '.ops.misc'),
  *('.models.feature_extraction', '.transforms', '.transforms.functional'),
):
  module = sys.modules[f'torchvision{name}'] = Empty(f'torchvision{name}')
  module.InterpolationMode = InterpolationMode
  above, _, own = module.__name__.rpartition('.')
  if above:
    setattr(sys.modules[above], own, module)
import timm  # noqa: E402
from timm.layers import LayerNorm, SwiGLUPacked  # noqa: E402, F401
from timm.models.eva import Eva  # noqa: E402, F401
from timm.models.vision_transformer import VisionTransformer  # noqa: E402, F401

create_model = timm.create_model
