"""The first edition's results folder is still read, and gives what it gave."""

import golden_subset

test_kept_folder = golden_subset.test_of('kept')
