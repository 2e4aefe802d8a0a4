"""Masked, tested multiple-instance learning for whole slides in JAX."""
