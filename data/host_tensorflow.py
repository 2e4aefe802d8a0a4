"""TensorFlow on the host alone: accelerators and their memory are JAX's."""

import os

# All of it before TensorFlow loads: fewer words, and no Keras, which takes more
# than a second to load (the legacy one is not installed).
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
import tensorflow as tf

tf.config.set_visible_devices([], 'GPU')
