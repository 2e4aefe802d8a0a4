"""TensorFlow on the host alone: accelerators and their memory are JAX's."""

from collections.abc import Iterator
import os
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # Fewer words.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Nor its greeting.
# While it loads, TensorFlow would load Keras, which takes more than a second;
# whoever asks for tf.keras still gets it.
_KERAS = 'TF_USE_LEGACY_KERAS'
_asked = os.environ.get(_KERAS)
os.environ[_KERAS] = '1'
import tensorflow as tf  # noqa: E402

if _asked is None:
  del os.environ[_KERAS]
else:
  os.environ[_KERAS] = _asked
tf.config.set_visible_devices([], 'GPU')


def as_numpy(dataset: tf.data.Dataset) -> Iterator[Any]:
  """Yields what a dataset holds, which no thread tunes meanwhile.

  Nothing here asks for tuning, and whoever lets go of an iterator waits for
  that thread, which may sleep for most of a minute.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  yield from dataset.with_options(options).as_numpy_iterator()
