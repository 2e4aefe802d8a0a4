"""CAMELYON16: its slides, annotations, patch lists and rules."""
