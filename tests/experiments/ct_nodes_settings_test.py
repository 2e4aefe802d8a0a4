"""CT nodes: flags, recipes and the measure of maps."""

import sys

from absl.testing import flagsaver
import numpy as np
import pytest

from experiments import ct_nodes, ct_nodes_networks
from experiments.ct_nodes_networks import NETWORKS


def test_without_simpleitk_one_line_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'SimpleITK', None)
  with (
    flagsaver.flagsaver(cache_dir=str(tmp_path)),
    pytest.raises(SystemExit) as ended,
  ):
    ct_nodes.main(['ct_nodes'])
  assert "pip install 'kmil_jax[ct]'" in str(ended.value)
  assert '\n' not in str(ended.value)


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ({'networks': ['vgg']}, 'networks=vgg: there are custom'),
    ({'networks': []}, 'names none'),
    ({'augment': 'lee'}, 'choose with --networks'),
    ({'weights': 'w.pth', 'networks': ['custom']}, 'for resnet50 alone'),
    ({'data_dir': '/data'}, '--data_dir goes with --csv_path'),
    ({'classes': ['a']}, 'two labels are needed'),
    ({'classes': ['a', 'b']}, '--classes goes with --csv_path'),
  ],
)
def test_flags_that_say_nothing_are_refused(asked, message, tmp_path):
  with (
    flagsaver.flagsaver(cache_dir=str(tmp_path), **asked),
    pytest.raises(SystemExit, match=message),
  ):
    ct_nodes.main(['ct_nodes'])


def test_recipes_are_the_papers_and_reductions_are_told():
  for name in NETWORKS:
    paper = ct_nodes_networks.recipe(name, is_phantom=False)
    assert (paper.batch, paper.epochs, paper.patience) == (4, 30, 30)
    assert paper.input_size == 224 and paper.binary
    assert paper.augment == ('ansari' if name == 'custom_aug' else 'none')
  small = ct_nodes_networks.recipe('resnet50', is_phantom=True)
  told = ct_nodes_networks.reductions(list(NETWORKS))
  assert f'slices of {small.input_size} px instead of 224' in told[0]
  assert f'{small.epochs} epochs of ResNet-50' in told[1]
  with flagsaver.flagsaver(input_size=224, epochs=30):
    assert (
      ct_nodes_networks.recipe('resnet50', True) == NETWORKS['resnet50'].recipe
    )
    assert ct_nodes_networks.reductions(list(NETWORKS)) == []


def test_share_of_a_map_in_the_node():
  inside = np.zeros((2, 4, 4), bool)
  inside[:, 1:3, 1:3] = True
  cam = np.zeros((2, 8, 8), np.float32)
  assert ct_nodes_networks.share_inside(cam, inside) is None
  cam[0] = 1  # A quarter of it; the other map is empty.
  assert ct_nodes_networks.share_inside(cam, inside) == pytest.approx(0.25)
  cam[1, 2:6, 2:6] = 1
  assert ct_nodes_networks.share_inside(cam, inside) == pytest.approx(0.625)
