"""Times all models on the GPU of this machine, in less than ten minutes.

  experiments/benchmarks/gpu.sh
  experiments/benchmarks/gpu.sh --smoke

Training steps of 10 runs and of 1, an epoch of KMIL of the paper's size, and
encoders of tiles, in float32 and bfloat16, beside torch where it is installed.
The report is written anew after each row, as JSON and in Markdown.
"""

import dataclasses
import json
import os
import pathlib
import sys

from absl import logging

from data.files import replacing
from experiments.benchmarks.work import MODELS, PRECISIONS, Work, table
from experiments.run import start
from experiments.run.options import field


@dataclasses.dataclass(frozen=True)
class Day:
  """What is done on the machine."""

  smoke: bool = field(
    False, 'All rows in small, as on a machine of CPUs alone.'
  )
  seconds: int = field(540, 'Begin nothing that may not end by then.', least=0)
  output: pathlib.Path = field(
    pathlib.Path('gpu_report'), 'The report, without .json and .md.'
  )


def run(day: Day) -> None:
  logging.set_verbosity(logging.WARNING)  # JAX names what it does not find.
  # Both sides share one device. JAX and torch read these once.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
  from experiments.benchmarks import jax_side, suite

  small = {'bags': 10, 'tiles': 2, 'repeats': 1} if day.smoke else {}
  work = Work(**{'repeats': 3} | small, compile=False, seconds=day.seconds)
  n = 16 if day.smoke else 4000
  rows = []
  for precision in PRECISIONS:
    steps = lambda runs, of=precision: [
      suite.Entry('step', model, n, runs, of) for model in MODELS
    ]
    rows += steps(2 if day.smoke else suite.FOLDS)
    rows.append(suite.Entry('epoch', 'kmil', n, suite.FOLDS, precision))
    rows += [suite.encoded(work, name, precision) for name in jax_side.NETWORKS]
    rows += steps(1)

  def save(report):
    shown = json.dumps(report, indent=2, default=str, allow_nan=False)
    for ending, text in ('json', shown), ('md', table(report).markdown()):
      with replacing(day.output.with_suffix(f'.{ending}')) as part:
        part.write_text(text, encoding='utf-8')

  report = suite.run(work, lambda s: print(s, file=sys.stderr), save, rows)
  print(table(report).markdown())


main = start.script(run)

if __name__ == '__main__':
  main()
