"""TensorFlow on the host alone: accelerators and their memory are JAX's."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # Fewer words.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Nor its greeting.
# While it loads, TensorFlow would load Keras, which takes more than a second;
# whoever asks for tf.keras still gets it.
_KERAS = 'TF_USE_LEGACY_KERAS'
_previous = os.environ.get(_KERAS)
os.environ[_KERAS] = '1'
import tensorflow as tf  # noqa: E402

if _previous is None:
  del os.environ[_KERAS]
else:
  os.environ[_KERAS] = _previous
tf.config.set_visible_devices([], 'GPU')
