"""Bags come out of the feed alike, from the device or streamed."""

import feature_folder
import numpy as np
import pytest

from experiments import cohort as cohorts, feed


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_streamed_bags_equal_resident_ones(tmp_path, precision):
  bags, labels = feature_folder.planted(num_bags=12)
  feature_folder.write(tmp_path, bags, labels)
  cohort = cohorts.load(tmp_path / 'labels.csv', tmp_path / 'features')
  read = [
    list(feed.load(cohort, precision, stream).read(np.arange(12)))
    for stream in (False, True)
  ]
  for bag, resident, streamed in zip(bags, *read, strict=True):
    assert resident.shape == streamed.shape
    assert resident.dtype == streamed.dtype == precision
    rows = slice(0, len(bag))
    np.testing.assert_array_equal(resident[rows], streamed[rows])
    np.testing.assert_allclose(
      resident[rows].astype(float), bag, rtol=0.01, atol=1e-6
    )
