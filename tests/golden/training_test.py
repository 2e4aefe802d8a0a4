"""Two epochs of training on bags end where they ended."""

import golden_subset

test_training = golden_subset.test_of('cohort', 'paper')
