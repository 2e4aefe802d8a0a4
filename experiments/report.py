"""Writes report.html of a finished results folder.

  python -m experiments.report --run=results/kmil_origin_s2023

`experiments.kmil` does this at its end; the script makes the page anew, for a
folder that was copied from elsewhere, or when an ablation or the costs came
after: of experiments.ablations it takes the results on the same slides, labels
and splits that lie beside the folder, of experiments.cost --format=json what
was put into cost.json there. Only what is in the folder is needed, and the page
needs no other file.
"""

from absl import app, flags
import jinja2

from experiments import provenance, run_flag
from experiments.reporting import page

flags.declare_key_flag('run')


def main(argv: list[str]) -> None:
  """Writes the page and says where."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}')
  try:
    path = page.write(run_flag.folder())
  except (provenance.ResultsError, OSError) as e:
    raise SystemExit(f'error: {e}') from e
  # Values of another kind than a training writes come to light anywhere.
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    jinja2.UndefinedError,
  ) as e:
    raise SystemExit(
      f'error: {run_flag.folder()}: a file there holds something other than a'
      f' training writes ({type(e).__name__}: {e}); was it edited? Give the'
      ' command of the training again, into another folder'
    ) from e
  print(f'report in {path}, {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
  app.run(main)
