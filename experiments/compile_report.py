"""Prints what a compiled step of training takes on a GPU or TPUs.

  python -m experiments.compile_report --target=h200 --model=dsmil,abmil
  python -m experiments.compile_report --target=v5e:4x4 --model=all

XLA compiles the project's own epoch for them on a machine that has none. Times
are estimates from data sheets, not measurements. See docs/accelerators.md.
"""

import json
import sys

from absl import logging
import jax

from data.files import counted
from experiments.benchmarks.compiled import Compiled
from experiments.benchmarks.work import COLUMNS
from experiments.evaluation.tables import Row, Table
from experiments.run import start
from experiments.run.options import OptionError

_NOTES = (
  'of one step, on one device, in the branch of the longest bags; loops times'
  ' their trips. For TPUs, MB and GFLOP count the body of a loop once.',
  'estimate: the longer of moving the bytes and multiplying, at the rates of'
  ' the device. It is not a measurement.',
  'products: in the program, by the type of their factors; tf32 is float32 that'
  ' GPUs round to TF32, and TPUs to bfloat16.',
  'host launches: in a step; 0 where the whole epoch is one CUDA graph.',
)


def run(compiled: Compiled) -> start.Next:
  """Compiles every model and prints a row of each."""
  logging.set_verbosity(logging.WARNING)
  compiled.prepare()
  rows = {}
  for model in compiled.models:
    print(f'{model}: compiling', file=sys.stderr, flush=True)
    try:
      rows[model] = compiled.row(model)
    except jax.errors.JaxRuntimeError as e:
      raise OptionError(str(e)) from e
  if compiled.format == 'json':
    print(json.dumps(rows))
  else:
    title = (
      f'A compiled step of {compiled.part} on {compiled.target}:'
      f' {counted(compiled.runs, "run")}, {compiled.precision}, jax'
      f' {jax.__version__}'
    )
    lines = [
      Row((model,), {'': [row.get(c) for c in COLUMNS]})
      for model, row in rows.items()
    ]
    table = Table('compiled', title, ('model',), COLUMNS, lines, _NOTES)
    is_text = compiled.format == 'text'
    print(table.terminal() if is_text else table.markdown())
  return 'gpu_report' if compiled.target == 'h200' else 'cost', {}


main = start.script(run)

if __name__ == '__main__':
  main()
