"""The TFDS dataset of packed cohorts."""
