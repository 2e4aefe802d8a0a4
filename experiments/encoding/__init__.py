"""Slides to feature files: tiles, the encoder, and what writes the files."""
