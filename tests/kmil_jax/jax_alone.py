"""Python with few packages."""

import importlib.util
import os
import pathlib
import subprocess
import sys

# JAX and what it needs, beside the package that reads programs.
NEEDED = ('jax', 'jaxlib', 'ml_dtypes', 'numpy', 'opt_einsum', 'scipy')
READER = 'flatbuffers'


def alone(folder, packages, *arguments):
  """Runs Python in a folder, with these packages alone; returns the process."""
  site = folder / f'packages_{len(packages)}'
  site.mkdir(exist_ok=True)
  for name in packages:
    package = pathlib.Path(importlib.util.find_spec(name).origin).parent
    for part in (package, package.with_name(f'{name}.libs')):
      if part.exists() and not (site / part.name).exists():
        (site / part.name).symlink_to(part)
  return subprocess.run(
    [sys.executable, '-S', '-P', *arguments],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(site)},
    capture_output=True,
    check=False,
    text=True,
  )
