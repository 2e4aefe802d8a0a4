"""Phantoms draw what they drew: a change of code moves no picture unnoticed.

Means of pictures, which another processor's rounding leaves as they are.
"""

import numpy as np
import pytest

from data import phantom
from data.phantom import ct, invasion, nodes


def slide():
  spec = phantom.Spec(0, 3, 0, 'thyroid', phantom.EXTERNAL['look'])
  image, corners = phantom.render(spec)
  return image.mean((0, 1)), np.concatenate(corners).mean(0)


def node_images():
  pictures = map(nodes.render, nodes.specs(2, 1).values())
  return [(image.mean(), 99 * mask.mean()) for image, mask in pictures]


def patches():
  drawn = invasion.make(
    patients=2, patches=22, positives=0.2, hard=0.4, seed=3, prefix='a'
  )
  assert set(drawn.kind) == set(invasion.KINDS)
  return drawn.image.reshape(4, 11, -1).mean((1, 2))


def volumes():
  return [
    (volume.hu.mean(), 1e4 * mask.mean())
    for volume, mask, _ in (ct.render(patient) for patient in (1, 9))
  ]


@pytest.mark.parametrize(
  'draw, means',
  [
    (slide, [212.565, 204.829, 212.561, 1795.652, 1213.043]),
    (
      node_images,
      [
        (151.443, 0),
        (172.669, 31.593),
        (143.619, 0),
        (148.333, 0),
        (161.234, 0),
        (170.852, 23.012),
      ],
    ),
    (patches, [172.973, 182.379, 180.279, 180.091]),
    (volumes, [-310.09, 6.245, -324.436, 25.767]),
  ],
)
def test_pictures_are_those_of_before(draw, means):
  found = np.concatenate([np.ravel(part) for part in draw()])
  np.testing.assert_allclose(found, np.ravel(means), rtol=0, atol=5e-3)
