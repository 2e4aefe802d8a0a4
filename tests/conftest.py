"""Four CPU devices, parsed flags, the folder of real data."""

import atexit
import os
import pathlib
import shutil
import tempfile

# Tests and the processes they start share what they compile.
_PROGRAMS = tempfile.mkdtemp(prefix='kmil_jax_programs_')
atexit.register(shutil.rmtree, _PROGRAMS, ignore_errors=True)
os.environ['JAX_COMPILATION_CACHE_DIR'] = _PROGRAMS
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
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
