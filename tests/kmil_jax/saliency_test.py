"""Grad-CAM against torch's hooks, of one logit and of several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kmil_jax import port
from kmil_jax.models import CLASSIFIERS
from kmil_jax.saliency import grad_cam

torch = pytest.importorskip('torch')
twins = pytest.importorskip('torch_modules')

IMAGE = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype('f4')


def torchs(module, hooked, target):
  """Maps of a module, by the gradients of the output of its part `hooked`."""
  kept = {}
  hooked.register_forward_hook(lambda *a: kept.update(maps=a[2]))
  logits, _ = module(twins.to_torch(IMAGE))
  if logits.shape[1] == 1:  # It speaks for class 1 and against class 0.
    logits = torch.cat([-logits, logits], 1)
  chosen = logits.gather(1, torch.tensor(target)[:, None]).sum()
  (gradient,) = torch.autograd.grad(chosen, kept['maps'])
  cam = (kept['maps'] * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
  cam = torch.nn.functional.interpolate(
    cam[None], size=(32, 32), mode='bilinear', align_corners=False
  )[0].detach()
  return (cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-30)).numpy()


@pytest.mark.parametrize('classes', [1, 3])
@pytest.mark.parametrize(
  'name,layer', [('node_cnn', None), ('resnet18', 'layer2_1')]
)
def test_equals_torch_by_hooks(name, layer, classes):
  torch.manual_seed(0)
  sides = {'size': 32} if name == 'node_cnn' else {}
  module = twins.CLASSIFIERS[name](classes=classes, **sides).eval()
  hooked = module.layer2[1] if layer else module.drop_map
  variables = port.from_torch(name, twins.state_of(module))
  model = CLASSIFIERS[name](num_classes=classes)
  highest = []
  for target in np.array([[0, 1], [1, 0], [classes - 1] * 2]):
    got = grad_cam(
      model, variables, jnp.asarray(IMAGE), jnp.asarray(target), layer=layer
    )
    want = torchs(module, hooked, target)
    np.testing.assert_allclose(got, want, atol=1e-4)
    highest.append(want.max())
  assert max(highest) == 1


def test_is_zero_where_nothing_speaks_for_the_class():
  model = CLASSIFIERS['node_cnn'](num_classes=2)
  variables = jax.tree.map(
    jnp.zeros_like, model.init(jax.random.key(0), jnp.asarray(IMAGE))
  )
  cam = grad_cam(model, variables, jnp.asarray(IMAGE), jnp.array([0, 1]))
  np.testing.assert_array_equal(cam, 0)


def test_a_layer_that_is_not_there_is_refused():
  model = CLASSIFIERS['node_cnn'](num_classes=2)
  variables = model.init(jax.random.key(0), jnp.asarray(IMAGE))
  with pytest.raises(ValueError, match='NodeCNN has no layer layer2_1'):
    grad_cam(model, variables, IMAGE, jnp.array([0, 1]), layer='layer2_1')
