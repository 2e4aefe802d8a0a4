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
import sys

from experiments.benchmarks.work import Work, prepare, table
from experiments.run import start


def run(work: Work) -> start.Next:
  prepare()
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
