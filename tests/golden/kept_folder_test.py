"""The first edition's results folder is still read, and gives what it gave."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import golden_checks
import golden_subset


def test_kept_folder(tmp_path):
  golden_checks.check(golden_subset.KEPT_FOLDER, tmp_path)
