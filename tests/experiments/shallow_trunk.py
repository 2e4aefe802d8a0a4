"""A tile encoder of three of its thirteen blocks; imported before a script.

Weights for it lie where ImageNet's are looked for, in `cache` of the folder the
script runs in.
"""

import os
import pathlib

import numpy as np
import safetensors.numpy

from kmil_jax import encoder, port
from kmil_jax.models import resnet

resnet.STAGES = (1, 1, 1)
os.environ['XDG_CACHE_HOME'] = str(pathlib.Path('cache').absolute())

_FILE = pathlib.Path('cache/kmil_jax/weights/resnet50.tv_in1k.safetensors')
if not _FILE.exists():
  _FILE.parent.mkdir(parents=True)
  tiles = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
  variables = encoder.random_trunk(tiles.astype(np.float32), seed=0)
  state = port.resnet50_trunk_state_dict(variables)
  safetensors.numpy.save_file(state, _FILE)
