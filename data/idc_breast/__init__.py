"""The TFDS dataset of breast-cancer tiles with a table of labels."""
