"""Problems and warnings, for the scripts that have flags of absl."""

from experiments.run.check import Findings as Findings
