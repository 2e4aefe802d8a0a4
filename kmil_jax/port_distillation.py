"""Weights of reverse distillation: by torch's names, or random ones."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kmil_jax import anomaly, encoder, port
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes

_STUDENT: port.Names = (
  (r'/upsample_conv/', '/upsample/0/'),
  (r'/upsample_bn/', '/upsample/1/'),
  (r'/bn_layer_(\d+)/', r'/bn_layer/\1/'),
  *port.RESNET,
)
_COUNTERS = r'.*\.num_batches_tracked'
# What the teacher knowingly leaves of torchvision's whole network.
_BEYOND = rf'layer4\..*|fc\.(weight|bias)|{_COUNTERS}'
# Made in the released code and never used there.
_IDLE = rf'bn\.(conv4|bn4)\..*|{_COUNTERS}'


def teacher(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns `Teacher` variables made of torchvision's wide_resnet50_2 weights.

  Args:
    state: arrays by torchvision's or timm's names, OIHW kernels. `layer4`,
      `fc` and `num_batches_tracked` may be there and are left unused. The
      width is that of `conv1`.

  Returns:
    `{'params', 'batch_stats'}`, float32 NumPy.

  Raises:
    port.PortError: listing every name that is missing, unexpected, of the
      wrong shape (as those of a plain ResNet-50 are), or not finite.
  """
  width = _channels(state, 'conv1.weight', axis=0, default=64)
  entries = port.entries_of(_teacher_shapes(width), port.RESNET)
  return port.fill(state, entries, _BEYOND)


def random_teacher(
  image: np.ndarray, *, seed: int, width: int = 64
) -> dict[str, Any]:
  """Returns random `Teacher` variables, calibrated on patches.

  Args:
    image: patches to calibrate on, uint8 [T, S, S, 3], a hundred or so.
    seed: of the kernels; see `encoder.random_network`.
    width: of the teacher.
  """
  tiles = np.asarray(anomaly.normalise(image))
  return encoder.random_network(Teacher(width, momentum=0.0), tiles, seed=seed)


def student(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns `Student` variables made of weights of the released code.

  Args:
    state: arrays by RD4AD's names: those of the embedding after `bn.`, those
      of the decoder after `decoder.`, which is what `port.load_state_dict`
      makes of its checkpoints. The 1x1 convolution and norm that are not used
      there, and `num_batches_tracked`, may be there and are left. Width and
      shortcut are those of the weights.

  Returns:
    `{'params', 'batch_stats'}`, float32 NumPy.

  Raises:
    port.PortError: listing every name that is missing, unexpected, of the
      wrong shape, or not finite.
  """
  width = _channels(state, 'bn.conv1.weight', axis=0, default=512) // 8
  shortcut = _channels(
    state, 'bn.bn_layer.0.downsample.0.weight', axis=2, default=1
  )
  entries = port.entries_of(_student_shapes(width, shortcut), _STUDENT)
  return port.fill(state, entries, _IDLE)


def student_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of `student`, without the layers that are not used.

  Raises:
    port.PortError: listing, by torch's names, what is missing, unexpected, of
      the wrong shape, or not finite.
  """
  state = port.unfill(variables, port.entries_of(variables, _STUDENT))
  student(state)
  return state


def _channels(
  state: Mapping[str, np.ndarray], name: str, *, axis: int, default: int
) -> int:
  """Returns a length of a kernel; the default where there is no such kernel."""
  shape = np.shape(state.get(name))
  return shape[axis] if len(shape) == 4 else default


def _teacher_shapes(width: int) -> Any:
  tiles = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return jax.eval_shape(Teacher(width).init, jax.random.key(0), tiles)


def _student_shapes(width: int, shortcut: int) -> Any:
  return jax.eval_shape(
    Student(width, shortcut).init, jax.random.key(0), map_shapes(width)
  )
