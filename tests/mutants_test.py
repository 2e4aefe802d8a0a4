"""The seeded mutants fit the code: those whose text went would test nothing."""

import pathlib
import subprocess
import sys


def test_the_text_of_every_mutant_is_there():
  script = pathlib.Path(__file__).with_name('mutants.py')
  done = subprocess.run(
    [sys.executable, str(script), '--list'], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr
