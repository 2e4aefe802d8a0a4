"""kmil_jax against torch on the same bags, in one process.

It imports torch, and neither TensorFlow nor a slide library.
"""
