"""Times kmil_jax against torch on the same bags, in one process.

  python -m experiments.benchmark --format=markdown
  python -m experiments.benchmark --models=kmil --instances=1024 --parts=step
  python -m experiments.benchmark --slide=slide.svs

Synthetic bags of 1,024 features and 5 classes lie on the device; torch runs in
the fastest form that works; both sides take turns, and medians are compared.
Before anything is timed, torch's weights are given to kmil_jax and the
predictions must agree. With --slide, its readers are compared instead.
"""

import json
import os
import sys

from absl import logging

from experiments.benchmarks.work import Work, table
from experiments.run import start


def run(work: Work) -> start.Next:
  logging.set_verbosity(logging.WARNING)  # JAX names what it does not find.
  # Both sides share one device. JAX and torch read these once.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
  if work.slide:
    from experiments.benchmarks import reading

    print(reading.table(work.slide, work.repeats).terminal())
    return 'cost', {}
  from experiments.benchmarks import suite

  measured = suite.run(work, lambda line: print(line, file=sys.stderr))
  if work.format == 'json':
    print(json.dumps(measured))
  else:
    rows = table(measured)
    print(rows.markdown() if work.format == 'markdown' else rows.terminal())
  return 'cost', {}


main = start.script(run)

if __name__ == '__main__':
  main()
