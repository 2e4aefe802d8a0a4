"""Writes report.html of a finished results folder.

  python -m experiments.report --run=results/kmil_origin_s2023

`experiments.kmil` does this at its end; the script makes the page anew, for a
folder that was copied from elsewhere, or when an ablation or the costs came
after: of experiments.ablations it takes the results that lie beside the folder
on the same slides, labels and splits, with the same options but the model's; of
experiments.cost --format=json what was put into cost.json there. Only what is
in the folder is needed, and the page needs no other file.
"""

from experiments.run import start
from experiments.run.start import Source


def run(source: Source) -> start.Next:
  """Writes the page."""
  # It imports matplotlib, which takes half a second.
  from experiments.reporting import page

  path = page.write(source.folder())
  print(f'report in {path}, {path.stat().st_size / 2**20:.1f} MiB')
  return source.next()


main = start.script(run)


if __name__ == '__main__':
  main()
