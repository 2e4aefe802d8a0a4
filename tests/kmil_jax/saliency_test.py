"""Grad-CAM finds what was planted, and equals its formula and torch's hooks."""

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax.models.network import TorchDense
from kmil_jax.saliency import grad_cam
from kmil_jax.types import TilePrediction


class ByColour(nn.Module):
  """Means of 4 x 4 pixels, one map per channel; the mean of each; a layer."""

  num_classes: int

  def setup(self):
    self.fc = TorchDense(self.num_classes)

  def __call__(self, x, *, train=False):
    return self.head(self.feature_map(x, train=train), train=train)

  def feature_map(self, x, *, train=False):
    return nn.avg_pool(x, (4, 4), (4, 4))

  def head(self, m, *, train=False):
    features = m.mean((1, 2))
    return TilePrediction(logits=self.fc(features), features=features)


def cam(weight, image, target, layer=None):
  weight = np.asarray(weight, np.float32)
  fc = {'weight': weight, 'bias': np.ones(len(weight), np.float32)}
  model = ByColour(num_classes=len(weight))
  variables = {'params': {'fc': fc}}
  return np.asarray(
    grad_cam(
      model, variables, jnp.asarray(image), jnp.asarray(target), layer=layer
    )
  )


def planted():
  """Class 1 is red, class 0 green; each tile has a square of both."""
  image = np.zeros((2, 16, 16, 3), np.float32)
  image[:, 0:4, 4:8, 0] = 2
  image[:, 12:16, 8:12, 1] = 3
  return image


def test_one_logit_speaks_for_one_class_and_against_the_other():
  maps = cam([[1, -1, 0]], planted(), [1, 0])
  two = cam([[-1, 1, 0], [1, -1, 0]], planted(), [1, 0])
  np.testing.assert_allclose(maps, two, atol=1e-6)
  assert maps[0, 1, 5] > 0.5 and maps[0, 13, 9] == 0
  assert maps[1, 13, 9] > 0.5 and maps[1, 1, 5] == 0


def test_is_zero_where_nothing_speaks_for_the_class():
  maps = cam([[-1, -1, 0], [1, 1, 0]], planted(), [0, 1])
  np.testing.assert_array_equal(maps[0], 0)
  assert maps[1].max() == 1
  np.testing.assert_array_equal(cam(np.zeros((2, 3)), planted(), [0, 1]), 0)


@pytest.mark.parametrize(
  'name,channels,layer', [('node_cnn', 1, None), ('resnet18', 3, 'layer2_1')]
)
def test_equals_torch_by_hooks(name, channels, layer):
  torch = pytest.importorskip('torch')
  from torch_networks import node_cnn, resnet

  from kmil_jax import port
  from kmil_jax.models import CLASSIFIERS

  torch.manual_seed(0)
  if layer is None:
    module = node_cnn.NodeCNN(32, classes=3).eval()
    hooked = module.drop_map
  else:
    module = resnet.ResNet(resnet.BasicBlock, (2, 2, 2, 2), 3).eval()
    hooked = module.layer2[1]
  kept = {}
  hooked.register_forward_hook(lambda *a: kept.update(maps=a[2]))
  shape = (2, 32, 32, channels)
  image = np.random.default_rng(1).normal(size=shape).astype('f4')
  logits, _ = module(torch.tensor(image.transpose(0, 3, 1, 2)))
  target = logits.argmax(1)
  chosen = logits.gather(1, target[:, None]).sum()
  (gradient,) = torch.autograd.grad(chosen, kept['maps'])
  want = (kept['maps'] * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
  want = torch.nn.functional.interpolate(
    want[None], size=(32, 32), mode='bilinear', align_corners=False
  )[0].detach()
  assert want.amax((1, 2)).min() > 0
  want = want / want.amax((1, 2), keepdim=True)

  state = {n: v.numpy() for n, v in module.state_dict().items()}
  variables = port.from_torch(name, state, num_classes=3)
  model = CLASSIFIERS[name](num_classes=3)
  got = grad_cam(
    model, variables, jnp.asarray(image), target.numpy(), layer=layer
  )
  np.testing.assert_allclose(got, want.numpy(), atol=1e-4)


def test_a_layer_that_is_not_there_is_refused():
  with pytest.raises(ValueError, match='ByColour has no layer layer2_1'):
    cam(np.zeros((2, 3)), planted(), [0, 1], layer='layer2_1')
