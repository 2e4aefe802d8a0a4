"""Four CPU devices, parsed flags, and the folder of real data."""

import os
import pathlib

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '4')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from absl import flags
import hypothesis
import pytest

REAL_DATA = pathlib.Path(__file__).parents[2] / 'shared/data'

flags.FLAGS.mark_as_parsed()
hypothesis.settings.register_profile('suite', deadline=None, max_examples=25)
hypothesis.settings.load_profile('suite')


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """The folder of real files beside the checkout."""
  if not REAL_DATA.is_dir():
    pytest.skip(f'no real data at {REAL_DATA}')
  return REAL_DATA
