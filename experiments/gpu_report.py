"""Times all models on the GPU of this machine, in less than ten minutes.

  experiments/benchmarks/gpu.sh
  python -m experiments.gpu_report --smoke

Training steps of 10 runs and of 1, an epoch of KMIL on a cohort of the paper's
size, and encoders of tiles, beside torch where it is installed; what compiled
steps take, beside those that the same JAX compiles for an H200 without one. The
report is written anew after each row. See docs/accelerators.md.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from data.files import replacing
from experiments.benchmarks.compiled import counts
from experiments.benchmarks.work import MODELS, Entry, Work, prepare, table
from experiments.run import start
from experiments.run.options import field, free

_PATIENCE = 120  # Seconds for what is compiled without a GPU.


@dataclasses.dataclass(frozen=True)
class Day:
  """What is done on the machine."""

  models: tuple[str, ...] = field(MODELS, 'Models to time.', choices=MODELS)
  smoke: bool = field(False, 'All in small, as on a machine of CPUs.')
  seconds: int = field(480, 'Begin no row after so many.', least=0)
  output: pathlib.Path = free(
    pathlib.Path('gpu_report'), 'The report, without .json and .md.'
  )

  def entries(self) -> list[Entry]:
    """Returns the rows: TransMIL's, and those that need no GPU, are last."""
    n, runs, bags, tiles = (16, 2, 10, 4) if self.smoke else (
      4000, 10, 1036, 1024,
    )  # fmt: skip
    rows = []
    for precision in start.PRECISIONS:
      rows += [
        Entry(part, model, n, number, precision)
        for model in self.models
        for part, number in (
          ('step', runs),
          ('compiled for H200', runs),
          ('step', 1),
        )
      ]
      if 'kmil' in self.models:
        rows.append(Entry('epoch', 'kmil', n, 10, precision, bags))
      rows += [
        Entry('encode', name, tiles, 1, precision)
        for name in ('efficientnet_lite0', 'resnet50')
      ]
    compiled = lambda row: row.part == 'compiled for H200'
    return sorted(rows, key=lambda r: (compiled(r), r.model == 'transmil'))


def run(day: Day) -> start.Next:
  """Measures row by row until the time is over."""
  prepare()
  from experiments.benchmarks import suite

  end = time.monotonic() + day.seconds
  work = Work(repeats=1 if day.smoke else 3, compile=False)
  report = suite.about(day) | {'rows': []}
  waiting = dict.fromkeys(day.entries(), 'the time was over')
  for entry in [*waiting]:
    _save(day.output, report, waiting)
    if (left := end - time.monotonic()) < 0:
      break
    print(f'{left:.0f} s are left: {entry}', file=sys.stderr)
    try:
      if entry.part == 'compiled for H200':
        row = dataclasses.asdict(entry) | _compiled(entry, left)
        report['rows'].append(row)
      else:
        row, call = suite.measure(entry, work)
        report['rows'].append(row)
        if entry.part != 'encode':
          row |= counts(call.compiled())
      del waiting[entry]
    except Exception as error:  # The other rows are still there.
      waiting[entry] = (str(error) or repr(error)).splitlines()[0][:300]
  print(_save(day.output, report, waiting))
  return 'compile_report', {'model': 'all'}


def _compiled(entry: Entry, seconds: float) -> dict[str, Any]:
  """Returns what a step takes that is compiled for an H200 without one."""
  names = 'model', 'instances', 'runs', 'precision'
  flags = [f'--{name}={getattr(entry, name)}' for name in names]
  module = '-m', 'experiments.compile_report', '--target=h200'
  done = subprocess.run(
    [sys.executable, *module, *flags, '--bags=8', '--format=json'],
    capture_output=True,
    text=True,
    timeout=min(seconds, _PATIENCE),
  )
  if done.returncode:
    raise RuntimeError(done.stderr.partition('error: ')[2] or done.stderr)
  return json.loads(done.stdout)[entry.model]


def _save(
  path: pathlib.Path, report: dict[str, Any], waiting: dict[Entry, str]
) -> str:
  """Writes the report, and why rows are not in it; returns it in Markdown."""
  missing = [dataclasses.asdict(e) | {'reason': waiting[e]} for e in waiting]
  report = report | {'not_measured': missing}
  text = table(report).markdown()
  shown = json.dumps(report, indent=2, default=str)
  for ending, content in ('json', shown), ('md', text):
    with replacing(path.with_suffix(f'.{ending}')) as part:
      part.write_text(content, encoding='utf-8')
  return text


main = start.script(run)

if __name__ == '__main__':
  main()
