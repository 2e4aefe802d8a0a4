"""Two epochs of training end where they ended."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import golden_checks
import golden_subset


def test_training(tmp_path):
  golden_checks.check(golden_subset.COHORT, tmp_path)
