"""Puts trained models into one file that runs without the training's code.

  python -m experiments.export --run=results/kmil_origin_s2023 --out=model.kmil
  python -m experiments.predict --model=model.kmil --features_dir=...

The file holds the models of all folds, or of --fold, as a StableHLO program for
CPUs, CUDA GPUs and TPUs, their weights, and a card.json that says what they are
and which features they take; see `kmil_jax.export`.
"""

import pathlib

from absl import app, flags

from data.files import replacing
from experiments import start
from experiments.prediction import run_flags, run_folder
from kmil_jax import export

_OUT = flags.DEFINE_string('out', None, 'File to write.')
flags.adopt_module_key_flags(run_flags)


def _run() -> None:
  if not run_flags.RUN.value or not _OUT.value:
    raise app.UsageError('give --run and --out')
  card, design, weights = run_folder.read(run_flags.run(), run_flags.fold())
  archive = export.Archive(card.to_json(), weights, design.lower(weights))
  content = export.pack(archive)
  out = pathlib.Path(_OUT.value)
  with replacing(out) as part:
    part.write_bytes(content)
  sizes = archive.lengths()
  print(
    f'{card.summary()}; bags of {f"up to {sizes[-1]}" if sizes else "any"}'
    f' instances\nwrote {out}, {len(content) / 2**20:.1f} MiB'
  )


main = start.script(_run)


if __name__ == '__main__':
  app.run(main)
