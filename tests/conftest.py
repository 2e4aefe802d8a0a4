"""Four CPU devices, parsed flags, the folder of real data."""

import atexit
import gc
import os
import pathlib
import re
import shutil
import sys
import tempfile

import xla_flags

# Tests, pytest's workers and the processes they start share what they compile;
# the first process makes the folder and removes it.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _PROGRAMS = tempfile.mkdtemp(prefix='kmil_jax_programs_')
  atexit.register(shutil.rmtree, _PROGRAMS, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _PROGRAMS
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ.setdefault('XLA_FLAGS', xla_flags.HASTY)
# One thread of torch and NumPy per worker: those of two wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '4')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# To torch it is not installed: loaded after TensorFlow, it crashes Python.
sys.modules['triton'] = None

# Programs are millions of long-lived objects, which Python would visit time and
# again in search of garbage: a tenth of the time.
gc.set_threshold(200_000, 50, 1000)
# A kill leaves what the system holds, and no test cuts the power.
os.fsync = lambda file: None

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


def pytest_configure(config):
  """`pytest` alone leaves out what is slow; `pytest tests` does not."""
  alone = config.args_source is pytest.Config.ArgsSource.TESTPATHS
  if alone and not config.option.markexpr:
    config.option.markexpr = 'not slow'


def pytest_collection_finish():
  """What is imported by now is no garbage, wherever that is collected."""
  gc.freeze()


def pytest_collection_modifyitems(items):
  """What comes last is short: no worker waits long for the other."""
  short = re.compile('tests/(data|experiments/(?!kmil_test))')
  items.sort(key=lambda item: bool(short.match(item.nodeid)))
