"""The studies of patches, CT and few-shot detection write what they wrote."""

import golden_subset

test_patches = golden_subset.test_of('two_step', 'tiles', 'hard_negatives')
test_others = golden_subset.test_of('ct_nodes', 'few_shot')
