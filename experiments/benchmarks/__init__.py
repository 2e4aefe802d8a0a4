"""kmil_jax against torch on the same bags, in one process."""
