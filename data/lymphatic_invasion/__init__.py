"""The TFDS dataset of tiles with and without lymphatic invasion."""
