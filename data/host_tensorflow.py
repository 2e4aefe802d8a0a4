"""TensorFlow on the host alone: accelerators and their memory are JAX's."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # Before TensorFlow loads.
import tensorflow as tf

tf.config.set_visible_devices([], 'GPU')
