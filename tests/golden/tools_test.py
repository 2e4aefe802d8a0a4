"""What is computed without training, and written by networks, is as it was."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import golden_checks
import golden_subset


@pytest.mark.parametrize('chain', ['FROC', 'FAULTS', 'SLIDE', 'CT_NODES'])
def test_tools(chain, tmp_path):
  golden_checks.check(getattr(golden_subset, chain), tmp_path)
