"""What is computed without training, or encoded, is as it was."""

import golden_subset

test_tools = golden_subset.test_of('froc', 'faults', 'outlines', 'slides')
