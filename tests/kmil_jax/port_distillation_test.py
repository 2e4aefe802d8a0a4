"""Reverse distillation's weights by torch's names."""

import jax
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models.reverse_distillation import Student, Teacher, map_shapes
from kmil_jax.port import PortError

torch = pytest.importorskip('torch')
resnet = pytest.importorskip('torch_networks.resnet')
twin = pytest.importorskip('torch_networks.reverse_distillation')
# What torchvision's wide_resnet50_2 has beyond the teacher.
BEYOND = {
  'fc.weight': (1000, 2048),
  'fc.bias': (1000,),
  'layer4.0.conv1.weight': (1024, 1024, 1, 1),
  'layer4.2.bn3.running_var': (2048,),
}


def names_and_shapes(make, *args):
  """Of a torch module, none of whose weights is ever made."""
  with torch.device('meta'):
    module = make(*args)
  return {n: tuple(v.shape) for n, v in module.state_dict().items()}


def numbered(shapes):
  """Arrays, each starting with its own number."""
  return {
    name: np.linspace(i, i + 0.9, int(np.prod(shape)), dtype=np.float32)
    .reshape(shape)
    for i, (name, shape) in enumerate(shapes.items())
  }  # fmt: skip


def without_counters(names):
  return {n for n in names if not n.endswith('num_batches_tracked')}


def test_every_tensor_of_the_teacher_finds_its_leaf():
  shapes = names_and_shapes(twin.Teacher, 8)
  state = numbered(shapes | BEYOND)
  variables = port.from_torch('teacher', state)
  firsts = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(variables)}
  wanted = without_counters(shapes)
  assert firsts == {float(state[n].ravel()[0]) for n in wanted}
  kernel = variables['params']['layer2_0']['downsample_conv']['kernel']
  np.testing.assert_array_equal(
    kernel[0, 0].T, state['layer2.0.downsample.0.weight'][..., 0, 0]
  )
  tiles = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  maps = jax.eval_shape(Teacher(8).apply, variables, tiles)
  assert [m.shape for m in maps] == [
    (1, 16, 16, 32), (1, 8, 8, 64), (1, 4, 4, 128)
  ]  # fmt: skip


def test_names_of_the_full_width_are_torchvisions():
  shapes = names_and_shapes(twin.Teacher)
  with torch.device('meta'):
    plain = resnet.ResNet(resnet.Bottleneck, (3, 4, 6, 3)).state_dict()
  assert set(shapes) == {
    n for n in plain if not n.startswith(('layer4.', 'fc.'))
  }
  assert shapes['layer3.5.conv2.weight'] == (512, 512, 3, 3)
  assert shapes['layer3.5.conv3.weight'] == (1024, 512, 1, 1)


def test_ill_fitting_names_are_listed():
  state = numbered(names_and_shapes(twin.Teacher, 8))
  state['encoder.conv1.weight'] = state['conv1.weight']
  del state['layer1.0.bn1.bias']
  state['bn1.bias'][0] = np.inf
  state['layer4_extra.weight'] = np.zeros(3, np.float32)
  with pytest.raises(PortError) as error:
    port.from_torch('teacher', state)
  assert str(error.value).splitlines() == [
    '1 missing: layer1.0.bn1.bias',
    '2 unexpected: encoder.conv1.weight, layer4_extra.weight',
    '1 not finite: bn1.bias',
  ]


def test_a_plain_resnet_is_no_teacher():
  with torch.device('meta'):
    plain = resnet.ResNet(resnet.Bottleneck, (3, 4, 6, 3))
  shapes = {n: tuple(v.shape) for n, v in plain.state_dict().items()}
  with pytest.raises(PortError, match=r'wrongly shaped: .*layer1\.0\.conv2'):
    port.from_torch('teacher', numbered(shapes))


@pytest.mark.parametrize('shortcut', [1, 3])
def test_student_goes_there_and_back_by_the_released_names(shortcut):
  shapes = names_and_shapes(twin.Student, 4, shortcut)
  state = numbered(shapes)
  variables = port.from_torch('student', state)
  expected = jax.eval_shape(
    Student(4, shortcut).init, jax.random.key(0), map_shapes(4)
  )
  assert jax.tree.map(np.shape, variables) == jax.tree.map(
    lambda leaf: leaf.shape, expected
  )
  back = port.to_torch('student', variables)
  assert set(back) == {
    n for n in without_counters(shapes)
    if not n.startswith(('bn.conv4.', 'bn.bn4.'))
  }  # fmt: skip
  for name, value in back.items():
    np.testing.assert_array_equal(value, state[name], name)
  del variables['params']['bn']['conv1']
  with pytest.raises(PortError, match=r'1 missing: bn.conv1.weight'):
    port.to_torch('student', variables)
